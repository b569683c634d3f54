"""Going back, splitting the requests, and what happens in the middle of a swap: the real store, several replicas."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from service.contracts import Adapter
from service.errors import AdapterRejected, BadRequest, Conflict, HeliotropeError, NotFound, PreconditionFailed
from service.shares import Split
from service.store.store import Store
from serving.adapters import WEIGHTS
from serving.contracts import BASE, Route
from tests.adapter_files import flip_byte
from tests.fakes import Killed, until
from tests.replica_acts import BODY, SHOP
from tests.small_service import SmallService


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path)


async def _actions(small: SmallService) -> list[tuple[str, str, str, str | None]]:
    """Who did what to which adapter and why, oldest first."""
    entries = reversed(await small.store.audit.list())
    return [(entry.who, entry.action, entry.subject, entry.detail["reason"]) for entry in entries]


# --- rollback -----------------------------------------------------------------------------------------


@pytest.fixture
async def two(small: SmallService) -> tuple[Adapter, Adapter]:
    """The first adapter was promoted, then the second."""
    first, second = await small.publish(1), await small.publish(2)
    for adapter in (first, second):
        await small.registry.promote(adapter.name, who="tess", reason="round")
    return first, second


async def test_a_rollback_returns_to_the_previous_adapter_as_a_new_event(
    small: SmallService, two: tuple[Adapter, Adapter]
) -> None:
    first, second = two
    loads = [list(engine.history) for engine in small.engines]
    switch = await small.registry.rollback(who="tess", reason="too chatty")
    assert switch.route == Route(generation=3, stable=first.name, previous=second.name)
    assert switch.prepare_seconds == 0.0
    assert [engine.history for engine in small.engines] == loads, "only a flip: nothing was loaded or unloaded"
    assert await small.answers_by() == {first.name}
    assert await _actions(small) == [
        ("tess", "promote", first.name, "round"),
        ("tess", "promote", second.name, "round"),
        ("tess", "rollback", first.name, "too chatty"),
    ]


async def test_a_rollback_to_a_named_adapter_that_is_no_longer_loaded_prepares_it(
    small: SmallService, two: tuple[Adapter, Adapter]
) -> None:
    first, second = two
    third = await small.publish(3)
    await small.registry.promote(third.name, who="tess")
    await small.poll()
    assert small.loaded == [{second.name, third.name}] * 2
    switch = await small.registry.rollback(who="tess", to=first.name)
    assert switch.prepare_seconds > 0
    assert switch.route.previous == third.name
    assert await small.answers_by() == {first.name}


async def test_a_promotion_prepares_all_but_what_the_route_names(
    small: SmallService, two: tuple[Adapter, Adapter]
) -> None:
    first, second = two
    switch = await small.registry.promote(first.name, who="tess")
    assert (switch.prepare_seconds, switch.route.previous) == (0.0, second.name)
    third = await small.publish(3)
    for replica in small.host.replicas.values():
        await replica.chat(BODY | {"model": third.name}, SHOP)
    assert all(third.name in loaded for loaded in small.loaded)
    switch = await small.registry.promote(third.name, who="tess")
    assert switch.prepare_seconds > 0, "what was asked for by its name may go at any moment"


async def test_the_base_can_be_returned_to(small: SmallService, two: tuple[Adapter, Adapter]) -> None:
    await small.registry.rollback(who="tess", to=BASE)
    assert await small.answers_by() == {BASE}


async def test_after_the_first_round_a_rollback_returns_to_the_base(small: SmallService) -> None:
    adapter = await small.publish(1)
    await small.registry.promote(adapter.name, who="tess")
    assert (await small.registry.rollback(who="tess")).route.stable == BASE
    assert await small.answers_by() == {BASE}


async def test_without_a_previous_adapter_there_is_nothing_to_return_to(small: SmallService) -> None:
    with pytest.raises(Conflict) as refused:
        await small.registry.rollback(who="tess")
    assert refused.value.code == "nothing_to_roll_back"


async def test_a_rollback_to_what_answers_is_a_conflict(small: SmallService, two: tuple[Adapter, Adapter]) -> None:
    with pytest.raises(Conflict) as refused:
        await small.registry.rollback(who="tess", to=two[1].name)
    assert (refused.value.param, refused.value.code) == ("to", "already_current")


async def test_a_rollback_to_an_unknown_adapter_is_not_found(small: SmallService, two: tuple[Adapter, Adapter]) -> None:
    with pytest.raises(NotFound):
        await small.registry.rollback(who="tess", to="policy-0009-00000000")
    assert await small.answers_by() == {two[1].name}


async def test_an_expected_current_keeps_a_second_rollback_from_returning_to_the_bad_adapter(
    small: SmallService, two: tuple[Adapter, Adapter]
) -> None:
    first, bad = two
    await small.registry.rollback(who="tess", expected_current=bad.name)
    with pytest.raises(PreconditionFailed, match=f"{first.name} answers, not {bad.name}"):
        await small.registry.rollback(who="alarm", expected_current=bad.name)
    assert await small.answers_by() == {first.name}


async def test_a_previous_adapter_that_a_new_replica_cannot_load_is_not_returned_to(
    small: SmallService, two: tuple[Adapter, Adapter]
) -> None:
    """Else the route would name as stable what replicas can no longer start with."""
    first, second = two
    flip_byte(Path(first.directory) / WEIGHTS)
    await small.start_replica("three")
    with pytest.raises(AdapterRejected, match="does not hash"):
        await small.registry.rollback(who="tess")
    assert await small.answers_by() == {second.name}
    assert (await small.store.route.read()).generation == 2


async def test_a_silent_replica_does_not_hold_up_a_rollback(small: SmallService, two: tuple[Adapter, Adapter]) -> None:
    small.host.deaf.add("two")
    switch = await small.registry.rollback(who="tess")
    assert switch.route.stable == two[0].name
    assert small.host.replicas["one"].status().stable == two[0].name
    await small.poll()
    assert await small.answers_by() == {two[0].name}


async def test_a_rollback_overtakes_a_promotion_that_still_prepares(
    small: SmallService, two: tuple[Adapter, Adapter]
) -> None:
    first, _ = two
    third = await small.publish(3)
    small.engines[1].loading.clear()
    promoting = asyncio.create_task(small.registry.promote(third.name, who="tess"))
    await until(lambda: third.name in small.host.replicas["two"].status().in_flight)
    await small.registry.rollback(who="alarm")
    assert await small.answers_by() == {first.name}
    small.engines[1].loading.set()
    with pytest.raises(PreconditionFailed) as refused:
        await promoting
    assert refused.value.code == "route_moved"
    assert await small.answers_by() == {first.name}
    assert all(third.name not in loaded for loaded in small.loaded)


# --- split --------------------------------------------------------------------------------------------


async def test_a_split_lets_a_candidate_and_a_baseline_answer_their_shares(
    small: SmallService, two: tuple[Adapter, Adapter]
) -> None:
    first, second = two
    third = await small.publish(3)
    switch = await small.registry.split(
        who="tess", reason="canary", candidate=third.name, candidate_share=0.5, baseline=BASE, baseline_share=0.1
    )
    assert switch.route == Route(
        generation=3, stable=second.name, previous=first.name,
        candidate=third.name, candidate_share=0.5, baseline=BASE, baseline_share=0.1,
    )  # fmt: skip
    assert switch.prepare_seconds > 0
    assert [replica.status().generation for replica in small.host.replicas.values()] == [3, 3]
    assert all(third.name in loaded for loaded in small.loaded)
    entry, *_ = await small.store.audit.list()
    assert (entry.who, entry.action, entry.subject, entry.detail["reason"]) == ("tess", "split", third.name, "canary")
    assert entry.detail["to"] == {
        "candidate": third.name,
        "candidate_share": 0.5,
        "baseline": BASE,
        "baseline_share": 0.1,
    }
    assert entry.detail["from"]["candidate"] is None


async def test_new_shares_alone_load_nothing_and_what_is_not_named_stays(
    small: SmallService, two: tuple[Adapter, Adapter]
) -> None:
    third = await small.publish(3)
    await small.registry.split(who="tess", candidate=third.name, candidate_share=0.05)
    await small.registry.split(who="tess", baseline=BASE, baseline_share=0.01)
    before = [list(engine.history) for engine in small.engines]
    switch = await small.registry.split(who="tess", candidate_share=0.25)
    assert (switch.route.candidate_share, switch.route.baseline_share) == (0.25, 0.01)
    assert switch.prepare_seconds == 0.0
    assert [engine.history for engine in small.engines] == before
    again = await small.registry.split(who="tess", candidate_share=0.25)
    assert again.route == switch.route, "a split that is so already changes nothing"
    emptied = await small.registry.split(who="tess", candidate=None)
    assert (emptied.route.candidate, emptied.route.candidate_share, emptied.route.baseline) == (None, 0.0, BASE)


@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"candidate_share": 0.5}, BadRequest, "invalid_value"),  # of nobody
        ({"candidate": "STABLE", "candidate_share": 0.1}, Conflict, "already_current"),
        ({"candidate": "OTHER", "candidate_share": 0.9, "baseline": BASE, "baseline_share": 0.2}, BadRequest, "invalid_value"),
        ({"candidate": "OTHER", "candidate_share": 1.5}, BadRequest, "invalid_value"),
        ({"candidate": "policy-0009-00000000", "candidate_share": 0.1}, NotFound, "adapter_not_found"),
    ],
)  # fmt: skip
async def test_a_split_that_cannot_be_is_refused_and_changes_nothing(
    small: SmallService, two: tuple[Adapter, Adapter], changes: Split, error: type[HeliotropeError], code: str
) -> None:
    names = {"STABLE": two[1].name, "OTHER": two[0].name}
    given = cast(Split, {key: names.get(cast(str, value), value) for key, value in changes.items()})
    with pytest.raises(error) as refused:
        await small.registry.split(who="tess", **given)
    assert refused.value.code == code
    assert (await small.store.route.read()).generation == 2
    assert await small.answers_by() == {two[1].name}


async def test_a_split_of_a_route_that_moved_is_a_failed_precondition(small: SmallService) -> None:
    adapter = await small.publish(1)
    with pytest.raises(PreconditionFailed, match="at generation 0, not 7") as refused:
        await small.registry.split(who="tess", expected_generation=7, candidate=adapter.name, candidate_share=0.1)
    assert (refused.value.param, refused.value.code) == ("expected_generation", "route_moved")
    assert small.loaded == [set(), set()]


async def test_when_one_of_two_cannot_be_prepared_both_are_let_go_of(small: SmallService) -> None:
    candidate, baseline = await small.publish(2), await small.publish(1)
    small.engines[1].unloadable.add(candidate.name)
    with pytest.raises(AdapterRejected, match="The route is unchanged"):
        await small.registry.split(
            who="tess", candidate=candidate.name, candidate_share=0.1, baseline=baseline.name, baseline_share=0.1
        )
    assert await small.store.route.read() == Route()
    assert small.loaded == [set(), set()]


async def test_a_candidate_is_promoted_by_a_flip_and_the_baseline_outlives_it(
    small: SmallService, two: tuple[Adapter, Adapter]
) -> None:
    third = await small.publish(3)
    await small.registry.split(
        who="tess", candidate=third.name, candidate_share=0.1, baseline=BASE, baseline_share=0.05
    )
    before = [list(engine.history) for engine in small.engines]
    switch = await small.registry.promote(third.name, who="tess")
    assert switch.prepare_seconds == 0.0
    assert [engine.history for engine in small.engines] == before
    kept = {"baseline": BASE, "baseline_share": 0.05}
    assert switch.route == Route(generation=4, stable=third.name, previous=two[1].name, **kept)
    back = await small.registry.rollback(who="tess")
    assert back.route == Route(generation=5, stable=two[1].name, previous=third.name, **kept)


# --- in the middle of it ------------------------------------------------------------------------------


async def test_a_replica_killed_between_the_phases_is_followed_by_one_that_holds_what_was_decided(
    small: SmallService,
) -> None:
    adapter = await small.publish(1)

    async def kill() -> None:
        del small.host.replicas["two"]

    small.host.before["flip"] = kill
    await small.registry.promote(adapter.name, who="tess")
    await small.start_replica("three")
    assert await small.answers_by() == {adapter.name}


async def test_a_replica_killed_while_it_prepares_stops_the_promotion_and_the_next_one_starts_as_before(
    small: SmallService,
) -> None:
    current, next = await small.publish(1), await small.publish(2)
    await small.registry.promote(current.name, who="tess")

    async def kill() -> None:
        small.engines[1].dead = True

    small.host.before["prepare"] = kill
    with pytest.raises(AdapterRejected, match="replica two"):
        await small.registry.promote(next.name, who="tess")
    del small.host.replicas["two"]
    await small.start_replica("three")
    await small.poll()
    assert await small.answers_by() == {current.name}
    assert small.loaded[0] == small.loaded[2] == {current.name}


async def test_a_replica_that_starts_between_the_phases_loads_what_it_is_told_to_flip_to(small: SmallService) -> None:
    current, next = await small.publish(1), await small.publish(2)
    await small.registry.promote(current.name, who="tess")

    async def start() -> None:
        await small.start_replica("three")

    small.host.after["prepare"] = start
    await small.registry.promote(next.name, who="tess")
    assert await small.answers_by() == {next.name}
    assert small.loaded == [{current.name, next.name}] * 3


@pytest.mark.parametrize("when", ["prepare", "flip"])
async def test_a_conductor_killed_in_the_middle_leaves_one_route_and_the_next_one_goes_on(
    small: SmallService, when: str
) -> None:
    current, next = await small.publish(1), await small.publish(2)
    await small.registry.promote(current.name, who="tess")

    async def kill() -> None:
        raise Killed

    (small.host.after if when == "prepare" else small.host.before)[when] = kill
    with pytest.raises(Killed):
        await small.registry.promote(next.name, who="tess")
    small.restart_conductor()
    await small.poll()
    decided = (await small.store.route.read()).stable
    assert decided == {"prepare": current.name, "flip": next.name}[when]
    assert await small.answers_by() == {decided}
    await small.registry.promote(next.name, who="tess")
    assert await small.answers_by() == {next.name}
    assert [entry.subject for entry in await small.store.audit.list()] == [next.name, current.name]


async def test_a_replica_that_hears_no_flip_is_seen_to_lag_and_catches_up(small: SmallService) -> None:
    adapter = await small.publish(1)

    async def deafen() -> None:
        small.host.deaf.add("two")

    small.host.before["flip"] = deafen
    await small.registry.promote(adapter.name, who="tess")
    small.host.deaf.clear()
    one, two = await small.host.status()
    assert (one.generation, two.generation) == (1, 0)
    small.engines[1].unloadable.add(adapter.name)
    await small.host.replicas["two"].abandon(adapter.name)
    await small.poll()
    _, two = await small.host.status()
    assert (two.generation, two.wanted, two.loaded) == (0, (adapter.name,), ())
    assert two.error is not None and adapter.name in two.error
    small.engines[1].unloadable.clear()
    await small.poll()
    assert await small.answers_by() == {adapter.name}


async def test_an_adapter_whose_files_were_deleted_is_refused_with_the_remedy(
    small: SmallService, two: tuple[Adapter, Adapter]
) -> None:
    first, _ = two
    for ordinal in (3, 4):
        await small.registry.promote((await small.publish(ordinal)).name, who="tess")
    for _ in range(2):  # it is let go of first, and then no longer leased
        await small.poll()
    assert first.name in await small.store.adapters.delete_unneeded(1, who="retention")
    for attempt in (
        small.registry.promote(first.name, who="tess"),
        small.registry.rollback(who="tess", to=first.name),
        small.registry.split(who="tess", candidate=first.name, candidate_share=0.1),
    ):
        with pytest.raises(Conflict, match="heliotrope adapters add") as refused:
            await attempt
        assert refused.value.code == "adapter_deleted"
    assert (await small.store.route.read()).generation == 4
