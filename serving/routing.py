"""Which adapter answers a request that leaves the choice to the route: stable, the candidate or the baseline. Pure.

Who asks is always answered by the same one. A draw is a hash and needs no memory, so all replicas agree without a word.
Each place is drawn with a salt of its own: a candidate whose share grows keeps those it had and the next candidate draws
others, while the baseline has the same users over all rounds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from serving.contracts import Route

_BASELINE = "baseline"  # no adapter's name, so it is no candidate's salt
_CONVERSATION = "conversation_id"  # in a request's metadata


def draw(route: Route, key: str) -> str:
    """The adapter that answers `policy` for whoever has this sticky key.

    Over many keys each place gets its share: the baseline is drawn first, and the candidate out of the rest.
    """
    if route.baseline is not None and _uniform(_BASELINE, key) >= 1 - route.baseline_share:
        return route.baseline
    if route.candidate is not None and _uniform(route.candidate, key) < _of_the_rest(route):
        return route.candidate
    return route.stable


def sticky_key(app: str, user: str | None, metadata: Mapping[str, str] | None, completion_id: str) -> str:
    """What a request is drawn by: its user, else its conversation, else itself. Users of two apps are two users."""
    if user:
        return json.dumps(("user", app, user))
    conversation = (metadata or {}).get(_CONVERSATION)
    if conversation:
        return json.dumps(("conversation", app, conversation))
    return json.dumps(("completion", completion_id))


def _of_the_rest(route: Route) -> float:
    """The candidate's share of those whom the baseline leaves."""
    return route.candidate_share / (1 - route.baseline_share)


def _uniform(salt: str, key: str) -> float:
    """In [0, 1), the same on every machine: the first 53 bits, all that a float holds exactly."""
    digest = hashlib.sha256(f"{salt}\n{key}".encode()).digest()
    return (int.from_bytes(digest[:7]) >> 3) / 2**53
