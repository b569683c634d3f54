"""Publishing, promoting and rolling back, against the real store and two replicas."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from service.contracts import Round, RoundState, Verdict
from service.errors import (
    AdapterRejected,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from service.store.round_rows import StaleRound
from service.store.store import Store
from serving.adapters import WEIGHTS
from serving.contracts import BASE, Answer, Route
from serving.errors import AdapterRefused, HostError
from tests.adapter_files import flip_byte, write_adapter
from tests.fake_trainer import report
from tests.fakes import logprob
from tests.small_service import SmallService
from training.contracts import RoundReport

VERDICT = Verdict(promote=True, checks=())


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path)


# --- promote ------------------------------------------------------------------------------------------


async def test_a_promoted_adapter_answers_on_every_replica_and_the_change_is_audited(small: SmallService) -> None:
    adapter = await small.publish(1)
    switch = await small.registry.promote(adapter.name, who="tess", reason="looks good")
    assert switch.route == Route(generation=1, stable=adapter.name, previous=BASE)
    assert await small.store.route.read() == switch.route
    assert await small.answers_by() == {adapter.name}
    assert switch.prepare_seconds > 0
    assert switch.flip_seconds > 0
    [entry] = await small.store.audit.list()
    assert (entry.who, entry.action, entry.subject) == ("tess", "promote", adapter.name)
    assert entry.detail == {"from": BASE, "to": adapter.name, "reason": "looks good"}


async def test_nothing_changes_before_every_replica_is_prepared(small: SmallService) -> None:
    adapter = await small.publish(1)

    async def look() -> None:
        assert await small.store.route.read() == Route()
        assert await small.answers_by() == {BASE}
        assert small.loaded == [{adapter.name}, {adapter.name}]

    small.host.after["prepare"] = look
    await small.registry.promote(adapter.name, who="tess")
    assert small.host.after == {}, "the promotion asked for no prepare"


async def test_the_route_row_is_changed_before_any_replica_flips(small: SmallService) -> None:
    adapter = await small.publish(1)

    async def look() -> None:
        assert (await small.store.route.read()).stable == adapter.name
        assert await small.answers_by() == {BASE}

    small.host.before["flip"] = look
    await small.registry.promote(adapter.name, who="tess")
    assert small.host.before == {}


async def test_when_one_replica_cannot_prepare_nothing_has_changed_and_the_others_let_go(small: SmallService) -> None:
    current, next = await small.publish(1), await small.publish(2)
    await small.registry.promote(current.name, who="tess")
    small.engines[1].unloadable.add(next.name)
    with pytest.raises(AdapterRejected, match=r"replica two: .*The route is unchanged") as refused:
        await small.registry.promote(next.name, who="tess")
    assert refused.value.code == "prepare_failed"
    assert (await small.store.route.read()).generation == 1
    assert await small.answers_by() == {current.name}
    assert small.loaded == [{current.name}, {current.name}]
    assert len(await small.store.audit.list()) == 1


async def test_a_replica_that_does_not_answer_stops_the_promotion(small: SmallService) -> None:
    adapter = await small.publish(1)
    small.host.deaf.add("two")
    with pytest.raises(AdapterRejected, match="2 replicas run but only 1 answered"):
        await small.registry.promote(adapter.name, who="tess")
    assert await small.store.route.read() == Route()
    assert small.loaded == [set(), set()]


async def test_when_no_replica_is_there_the_answer_is_to_try_again(small: SmallService) -> None:
    adapter = await small.publish(1)
    small.host.gone = True
    with pytest.raises(Unavailable, match="no replica answers"):
        await small.registry.promote(adapter.name, who="tess")
    assert await small.store.route.read() == Route()


async def test_a_flip_that_reaches_nobody_is_done_all_the_same_and_is_caught_up(small: SmallService) -> None:
    """The row is the truth; the broadcast only makes it quick."""
    adapter = await small.publish(1)

    async def vanish() -> None:
        raise HostError("the cluster is away")

    small.host.before["flip"] = vanish
    switch = await small.registry.promote(adapter.name, who="tess")
    assert await small.store.route.read() == switch.route
    assert await small.answers_by() == {BASE}
    await small.poll()
    assert await small.answers_by() == {adapter.name}


async def test_promoting_what_answers_changes_nothing(small: SmallService) -> None:
    adapter = await small.publish(1)
    first = await small.registry.promote(adapter.name, who="tess")
    again = await small.registry.promote(adapter.name, who="tess", expected_current=adapter.name)
    assert (again.route, again.prepare_seconds, again.flip_seconds) == (first.route, 0.0, 0.0)
    assert len(await small.store.audit.list()) == 1


async def test_an_expected_current_that_has_moved_is_a_failed_precondition(small: SmallService) -> None:
    first, second = await small.publish(1), await small.publish(2)
    await small.registry.promote(first.name, who="tess", expected_current=BASE)
    with pytest.raises(PreconditionFailed, match=f"{first.name} answers, not base") as refused:
        await small.registry.promote(second.name, who="tess", expected_current=BASE)
    assert (refused.value.param, refused.value.code) == ("expected_current", "route_moved")
    assert await small.answers_by() == {first.name}
    assert small.loaded == [{first.name}, {first.name}]


async def test_of_two_conductors_one_changes_the_route_and_the_other_lets_go(small: SmallService) -> None:
    """Compare-and-set: whoever prepared while the route moved has decided on what is no longer so."""
    ours, theirs = await small.publish(1), await small.publish(2)

    async def meanwhile() -> None:
        route = Route(generation=1, stable=theirs.name, previous=BASE)
        await small.store.route.change(0, route, who="other", action="promote", subject=theirs.name, detail={})

    small.host.after["prepare"] = meanwhile
    with pytest.raises(PreconditionFailed) as refused:
        await small.registry.promote(ours.name, who="tess")
    assert refused.value.code == "route_moved"
    assert (await small.store.route.read()).stable == theirs.name
    assert [entry.who for entry in await small.store.audit.list()] == ["other"]
    await small.poll()
    assert small.loaded == [{theirs.name}, {theirs.name}]


async def test_simultaneous_promotions_happen_one_after_the_other(small: SmallService) -> None:
    adapters = [await small.publish(ordinal) for ordinal in range(1, 5)]
    await asyncio.gather(*(small.registry.promote(adapter.name, who="tess") for adapter in adapters))
    route = await small.store.route.read()
    assert (route.generation, route.stable, route.previous) == (4, adapters[3].name, adapters[2].name)
    assert await small.answers_by() == {adapters[3].name}


async def test_an_unknown_adapter_is_not_found(small: SmallService) -> None:
    with pytest.raises(NotFound) as refused:
        await small.registry.promote("policy-0009-00000000", who="tess")
    assert refused.value.code == "adapter_not_found"


@pytest.mark.parametrize("fault", ["flipped", "gone", "replaced"])
async def test_a_published_adapter_that_was_spoiled_is_refused_and_the_old_one_stays(
    small: SmallService, fault: str
) -> None:
    current, next = await small.publish(1), await small.publish(2)
    await small.registry.promote(current.name, who="tess")
    directory = Path(next.directory)
    if fault == "flipped":
        flip_byte(directory / WEIGHTS)
    if fault == "gone":
        shutil.rmtree(directory)
    if fault == "replaced":
        shutil.rmtree(directory)
        write_adapter(directory, 2, pair_digest="e" * 64)  # the same name and weights, another manifest
    with pytest.raises(AdapterRejected, match="The route is unchanged") as refused:
        await small.registry.promote(next.name, who="tess")
    assert refused.value.code == "adapter_rejected"
    assert await small.answers_by() == {current.name}
    assert all(("load", next.name) not in engine.history for engine in small.engines)


# --- publish ------------------------------------------------------------------------------------------


def _candidate(folder: Path) -> RoundReport:
    files = write_adapter(folder / "attempt-0" / "adapter")
    digest = files.name.split("-")[2].ljust(64, "0")
    return report(adapter_name=files.name, adapter_directory=files.directory, adapter_digest=digest)


StartRound = Callable[..., Awaitable[Round]]


async def test_a_published_adapter_has_a_place_of_its_own(
    small: SmallService, start_round: StartRound, tmp_path: Path
) -> None:
    round = await start_round(RoundState.JUDGING)
    candidate = _candidate(tmp_path)
    adapter = await small.registry.publish(round, candidate, VERDICT)
    assert await small.store.adapters.get(adapter.name) == adapter
    assert (adapter.ordinal, adapter.parent, adapter.round, adapter.pair_digest) == (
        1,
        BASE,
        round.n,
        candidate.pair_digest,
    )
    assert adapter.added_by is None
    assert Path(adapter.directory) == small.settings.state / "adapters" / adapter.name
    shutil.rmtree(candidate.adapter_directory)
    await small.registry.promote(adapter.name, who="tess")
    assert await small.answers_by() == {adapter.name}


async def test_publishing_twice_publishes_once(small: SmallService, start_round: StartRound, tmp_path: Path) -> None:
    round = await start_round(RoundState.JUDGING)
    candidate = _candidate(tmp_path)
    first = await small.registry.publish(round, candidate, VERDICT)
    again = await small.registry.publish(round, candidate, VERDICT)
    assert [adapter.name for adapter in await small.store.adapters.list()] == [first.name]
    assert again.manifest_sha256 == first.manifest_sha256
    assert [entry.name for entry in (small.settings.state / "adapters").iterdir()] == [first.name]


@pytest.mark.parametrize("how", ["another attempt", "cancelled", "still training"])
async def test_a_stale_attempt_cannot_publish(
    small: SmallService, start_round: StartRound, tmp_path: Path, how: str
) -> None:
    state = {"cancelled": RoundState.CANCELLED, "still training": RoundState.TRAINING}.get(how, RoundState.JUDGING)
    round = await start_round(state)
    if how == "another attempt":
        await small.store.rounds.next_attempt(round.n, 0)
    with pytest.raises(StaleRound):
        await small.registry.publish(round, _candidate(tmp_path), VERDICT)
    assert await small.store.adapters.list() == ()


async def test_a_spoiled_candidate_is_never_published(
    small: SmallService, start_round: StartRound, tmp_path: Path
) -> None:
    round = await start_round(RoundState.JUDGING)
    candidate = _candidate(tmp_path)
    flip_byte(Path(candidate.adapter_directory) / WEIGHTS)
    fault = small.registry.fault(candidate.adapter_directory, candidate.adapter_name)
    assert fault is not None
    assert "does not hash" in fault
    with pytest.raises(AdapterRefused, match="does not hash"):
        await small.registry.publish(round, candidate, VERDICT)
    assert await small.store.adapters.list() == ()
    assert list((small.settings.state / "adapters").iterdir()) == []


def test_a_sound_candidate_has_no_fault(small: SmallService, tmp_path: Path) -> None:
    files = write_adapter(tmp_path / "sound")
    assert small.registry.fault(files.directory, files.name) is None
    assert small.registry.fault(str(tmp_path / "nowhere"), files.name) is not None


# --- score --------------------------------------------------------------------------------------------

ANSWER = Answer(prompt_token_ids=(1, 2), token_ids=(30, 31, 32))


async def test_one_replica_scores_a_candidate_that_nobody_has_published(small: SmallService, tmp_path: Path) -> None:
    files = write_adapter(tmp_path / "adapter")
    scores = await small.registry.score(files.directory, files.name, [ANSWER, ANSWER])
    assert scores.logprobs == (tuple(logprob(token) for token in ANSWER.token_ids),) * 2
    assert (scores.replica, scores.dtype) == ("one", "float32")
    assert small.loaded == [{files.name}, set()], "the other goes on undisturbed"
    assert await small.store.adapters.list() == ()
    await small.registry.abandon(files.name)
    assert small.loaded == [set(), set()]


async def test_a_candidate_that_cannot_be_scored_leaves_nothing_behind(small: SmallService, tmp_path: Path) -> None:
    files = write_adapter(tmp_path / "adapter")
    small.engines[0].unloadable.add(files.name)
    with pytest.raises(AdapterRejected, match="The route is unchanged") as refused:
        await small.registry.score(files.directory, files.name, [ANSWER])
    assert refused.value.code == "adapter_rejected"
    assert small.loaded == [set(), set()]


async def test_while_no_replica_runs_scoring_is_to_be_tried_again(small: SmallService, tmp_path: Path) -> None:
    files = write_adapter(tmp_path / "adapter")
    small.host.gone = True
    with pytest.raises(Unavailable):
        await small.registry.score(files.directory, files.name, [ANSWER])
