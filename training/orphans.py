"""What a killed attempt leaves behind: processes that are about to end, and reserved resources nobody gives back.

Ray Train reserves CPUs and GPUs with a placement group, which the attempt's actor creates. Ray removes such a group
when its creator *and* the creator's job are gone, but the job here is the server's and lives on; so after a kill the
group would hold its resources for ever. Who created what is Ray's own record and has no public view: this file reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray import PlacementGroupID
from ray._private.state import state as cluster
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # pyright: ignore[reportAttributeAccessIssue]
from ray.util.placement_group import PlacementGroup, remove_placement_group

_ATTEMPT = "Attempt"  # the class of the actor that creates the group of a run: attempt.py


def descendants(actor_id: str) -> list[str]:
    """The ids of all actors that this one started, and that those started in turn, dead or alive.

    Detached ones left out: they are meant to stay.
    """
    actors = cluster.actor_table(None)
    return list(_descendants(actors, actor_id)) if actor_id in actors else []


def any_alive(actor_ids: list[str]) -> bool:
    actors = cluster.actor_table(None)
    return any(actors[actor_id]["State"] != "DEAD" for actor_id in actor_ids if actor_id in actors)


def release() -> int:
    """Remove every placement group whose attempt is dead; returns how many there were."""
    released = 0
    for record in cluster._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(record)
        if group.state != PlacementGroupTableData.REMOVED and group.creator_actor_dead and _by_attempt(group):
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
            released += 1
    return released


def _descendants(actors: dict[str, dict[str, Any]], parent: str) -> Iterator[str]:
    for actor_id, actor in actors.items():
        if actor["OwnerAddress"] == actors[parent]["Address"] and not actor["IsDetached"]:
            yield actor_id
            yield from _descendants(actors, actor_id)


def _by_attempt(group: PlacementGroupTableData) -> bool:
    creator = cluster.actor_table(group.creator_actor_id.hex())
    return bool(creator) and creator["ActorClassName"] == _ATTEMPT
