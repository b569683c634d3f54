"""The loop from votes to a promoted adapter, against the real store; the trainer follows a script."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from service.alarms import AlarmKind
from service.contracts import Round, RoundBody, RoundState
from service.errors import Conflict, NotFound
from service.gate import summary
from service.store.round_rows import StaleRound
from service.store.store import Store
from serving.contracts import BASE
from tests.adapter_files import FINGERPRINTS
from tests.fake_trainer import DIED, RUNNING, Answer, Done, evaluation, failed, progress, step
from tests.small_service import SmallService
from training.contracts import Progress
from training.snapshot import iterate

QUESTIONS = ["first question", "second question"]
MORE_QUESTIONS = [f"another question {number}" for number in range(3)]

Start = Callable[..., Awaitable[SmallService]]


@pytest.fixture
def start(store: Store, tmp_path: Path) -> Start:
    """A service whose users have voted on every question; the arguments are the trainer's scripts."""

    async def start(*scripts: list[Answer], questions: list[str] = QUESTIONS, **training: Any) -> SmallService:
        small = await SmallService.start(store, tmp_path, *scripts, **training)
        await small.like(*questions)
        return small

    return start


async def _events(small: SmallService, round: Round, kind: str) -> list[dict[str, Any]]:
    return [event.data for event in await small.store.rounds.events(round.n) if event.kind == kind]


async def _states(small: SmallService, round: Round) -> list[tuple[str, int]]:
    return [(data["state"], data["attempt"]) for data in await _events(small, round, "state")]


# --- the way that everybody hopes for -----------------------------------------------------------------


async def test_votes_become_a_policy_that_answers(start: Start) -> None:
    small = await start()
    ended = await small.round(note="first light")
    assert (ended.state, ended.note, ended.requested_by) == (RoundState.PROMOTED, "first light", "tess")
    assert ended.adapter is not None
    assert await small.answers_by() == {ended.adapter}
    assert ended.verdict is not None
    assert ended.verdict.promote
    assert (ended.pairs, ended.parent, ended.attempt, ended.reason) == (2, BASE, 1, summary(ended.verdict))
    assert ended.environment is not None
    assert ended.environment["training_sha256"]
    assert ended.funnel is not None
    assert (ended.funnel["votes"], ended.funnel["votes_in_pairs"], ended.funnel["left_out"]) == (4, 4, {})
    assert [state for state, _ in await _states(small, ended)] == [
        *("queued", "collecting", "collecting", "training", "judging", "promoted")
    ]
    assert small.trainer.running == set()


async def test_what_is_trained_on_is_what_was_frozen_and_was_served(start: Start) -> None:
    small = await start(beta=0.3, seed=5)
    ended = await small.round(epochs=7)
    [spec] = small.trainer.started
    rows = list(iterate(Path(spec.snapshot)))
    assert {row.split for row in rows} == {"train", "held_out"}
    assert len(rows) == 2
    assert all(row.prompt_token_ids and row.chosen_token_ids != row.rejected_token_ids for row in rows)
    assert (spec.round, spec.attempt, spec.pair_digest) == (ended.n, 1, ended.pair_digest)
    assert (spec.parent, spec.fingerprints, spec.model) == (None, FINGERPRINTS, str(small.settings.state / "model"))
    assert (spec.beta, spec.epochs, spec.seed, spec.dtype) == (0.3, 7, 5, "float32")


async def test_the_adapter_knows_where_it_comes_from(start: Start) -> None:
    small = await start()
    ended = await small.round()
    adapter = await small.store.adapters.get(str(ended.adapter))
    assert (adapter.parent, adapter.round, adapter.pair_digest) == (BASE, ended.n, ended.pair_digest)
    assert adapter.verdict == ended.verdict
    [promotion] = await small.store.audit.list()
    assert (promotion.who, promotion.action, promotion.subject) == (f"round {ended.n}", "promote", adapter.name)


async def test_the_second_round_continues_the_first_and_uses_only_new_pairs(start: Start) -> None:
    small = await start()
    first = await small.round()
    await small.like(*MORE_QUESTIONS)
    second = await small.round()
    assert (second.state, second.parent, second.pairs) == (RoundState.PROMOTED, first.adapter, 3)
    assert await small.answers_by() == {second.adapter}
    parent = small.trainer.started[1].parent
    assert parent is not None
    assert (parent.name, Path(parent.directory).name) == (first.adapter, first.adapter)
    snapshots = [list(iterate(Path(spec.snapshot))) for spec in small.trainer.started]
    assert not {row.pair_id for row in snapshots[0]} & {row.pair_id for row in snapshots[1]}
    assert (await small.store.adapters.get(str(second.adapter))).parent == first.adapter
    assert second.funnel is not None
    assert second.funnel["left_out"] == {"already_learned": 4}


async def test_progress_is_kept_once_and_in_order_whoever_looks(start: Start) -> None:
    entries = [Progress(kind="phase", phase="train")] + [Progress(kind="step", step=step(n)) for n in (1, 2, 3)]
    small = await start([progress(*entries[:2]), progress(), progress(*entries[2:]), Done()])
    round = await small.ask_for_round()
    while await small.rounds.step():
        small.restart_conductor()
    assert [data["phase"] for data in await _events(small, round, "phase")] == ["train"]
    steps = await _events(small, round, "step")
    assert [(data["step"], data["attempt"]) for data in steps] == [(1, 1), (2, 1), (3, 1)]
    assert steps[0].keys() >= {"loss", "rewards/margins", "rewards/accuracies"}
    [swap] = await _events(small, round, "swap")
    assert swap["flip_seconds"] > 0


async def test_without_a_round_there_is_nothing_to_do(start: Start) -> None:
    assert await (await start()).rounds.step() is None


# --- asking for a round -------------------------------------------------------------------------------


async def test_a_round_uses_the_settings_where_the_body_says_nothing(start: Start) -> None:
    small = await start(beta=0.3, learning_rate=0.01, epochs=2)
    round = await small.ask_for_round(learning_rate=0.02, min_pairs=5)
    assert round.settings == {
        "objective": "dpo", "beta": 0.3, "label_smoothing": 0.0, "ld_alpha": 1.0, "desirable_weight": 1.0,
        "undesirable_weight": 1.0, "learning_rate": 0.02, "epochs": 2, "replay": 0.0, "min_pairs": 5,
    }  # fmt: skip


async def test_an_idempotency_key_starts_one_round(start: Start) -> None:
    small = await start()
    body = RoundBody(note="nightly")
    first, created = await small.rounds.start(body, who="tess", idempotency_key="k")
    again, created_again = await small.rounds.start(body, who="tess", idempotency_key="k")
    assert (first.n, created, created_again) == (again.n, True, False)
    with pytest.raises(Conflict) as refused:
        await small.rounds.start(RoundBody(note="other"), who="tess", idempotency_key="k")
    assert refused.value.code == "idempotency_conflict"


async def test_a_preview_says_what_a_round_would_use_and_uses_nothing(start: Start) -> None:
    small = await start()
    assert (await small.rounds.preview()).pairs == 2
    assert (await small.rounds.preview()).pairs == 2
    await small.round()
    preview = await small.rounds.preview()
    assert (preview.pairs, preview.left_out) == (0, {"already_learned": 4})


# --- ends without a new adapter -----------------------------------------------------------------------


async def test_too_few_pairs_fail_with_what_is_missing(start: Start) -> None:
    small = await start(questions=QUESTIONS[:1])
    ended = await small.round()
    assert ended.state is RoundState.FAILED
    assert ended.reason == "1 new pairs, 2 are needed (min_pairs): 1 are missing"
    assert ended.funnel is not None
    assert ended.funnel["pairs_from_votes"] == 1
    assert small.trainer.started == []
    await small.like(*QUESTIONS[1:])
    assert (await small.round()).state is RoundState.PROMOTED, "the pairs were still there"


REJECTED: list[tuple[dict[str, Any], str]] = [
    ({"candidate": evaluation(accuracy=0.2)}, "held_out: "),
    ({"candidate": None}, "held_out: 0 held-out pairs cannot decide"),
    ({"weights_changed": False}, "learned: the weights did not change"),
    ({"nonfinite_steps": 1}, "finite: "),
    ({"step0_loss": 0.9}, "step0: "),
]


@pytest.mark.parametrize(("report", "why"), REJECTED, ids=[why for _, why in REJECTED])
async def test_a_candidate_that_the_gate_turns_down_keeps_the_old_adapter(
    start: Start, report: dict[str, Any], why: str
) -> None:
    small = await start([Done(report)])
    ended = await small.round()
    assert (ended.state, ended.adapter) == (RoundState.REJECTED, None)
    assert ended.verdict is not None
    assert not ended.verdict.promote
    assert str(ended.reason).startswith(why)
    assert await small.answers_by() == {BASE}
    assert await small.store.adapters.list() == ()
    assert await small.store.audit.list() == ()
    assert (await small.rounds.preview()).pairs == 0, "a verdict was given on these pairs"


async def test_a_spoiled_candidate_is_rejected_by_its_integrity(start: Start, tmp_path: Path) -> None:
    small = await start([Done({"adapter_directory": str(tmp_path / "nowhere")})])
    ended = await small.round()
    assert ended.state is RoundState.REJECTED
    assert str(ended.reason).startswith("integrity: ")


async def test_a_report_on_other_pairs_fails_the_round(start: Start) -> None:
    small = await start([Done({"pair_digest": "0" * 64})])
    ended = await small.round()
    assert ended.state is RoundState.FAILED
    assert "other pairs" in str(ended.reason)
    assert await small.answers_by() == {BASE}


async def test_an_adapter_that_a_replica_cannot_load_fails_the_round_and_changes_nothing(start: Start) -> None:
    small = await start()
    round = await small.ask_for_round()

    async def refuse() -> None:
        small.engines[1].unloadable = {adapter.name for adapter in await small.store.adapters.list()}

    small.host.before["prepare"] = refuse
    ended = await small.finish(round)
    assert ended.state is RoundState.FAILED
    assert "replica two" in str(ended.reason)
    assert await small.answers_by() == {BASE}


async def test_an_operator_who_changes_the_route_meanwhile_is_not_overridden(start: Start) -> None:
    small = await start([RUNNING, Done()])
    theirs = await small.publish(90)
    round = await small.ask_for_round()
    while (await small.store.rounds.get(round.n)).state is not RoundState.TRAINING:
        await small.rounds.step()
    await small.registry.promote(theirs.name, who="tess")
    ended = await small.finish(round)
    assert ended.state is RoundState.FAILED
    assert f"{theirs.name} answers, not base" in str(ended.reason)
    assert await small.answers_by() == {theirs.name}


async def test_operators_are_told_of_a_candidate_that_was_turned_down_and_of_a_round_that_broke(start: Start) -> None:
    small = await start([Done({"weights_changed": False})], questions=QUESTIONS)
    rejected = await small.round()
    failed_round = await small.round()
    told = [(alarm.kind, alarm.subject) for alarm in reversed(await small.store.alarms.list())]
    assert told == [
        (AlarmKind.GATE_REJECTED, f"round {rejected.n}"),
        (AlarmKind.ROUND_FAILED, f"round {failed_round.n}"),
    ]
    assert str(failed_round.reason) in (await small.store.alarms.list())[0].message


# --- attempts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [DIED, failed("worker was killed", retryable=True)], ids=["silently", "with a word"])
async def test_an_attempt_that_dies_is_tried_again_under_the_next_number(start: Start, end: Answer) -> None:
    small = await start([RUNNING, end], [end], [RUNNING, Done()])
    ended = await small.round()
    assert (ended.state, ended.attempt) == (RoundState.PROMOTED, 3)
    specs = small.trainer.started
    assert [spec.attempt for spec in specs] == [1, 2, 3]
    assert len({spec.out for spec in specs}) == len({spec.storage for spec in specs}) == 3
    assert len({(spec.snapshot, spec.pair_digest, spec.seed, spec.adapter_ordinal) for spec in specs}) == 1
    assert [data["attempt"] for data in await _events(small, ended, "attempt")] == [1, 2, 3]


@pytest.mark.parametrize(("end", "why"), [(DIED, "its process died"), (failed("killed", retryable=True), "killed")])
async def test_after_the_last_attempt_the_round_fails(start: Start, end: Answer, why: str) -> None:
    small = await start([end], [end], [Done()], max_attempts=2)
    ended = await small.round()
    assert (ended.state, ended.attempt) == (RoundState.FAILED, 2)
    assert ended.reason == f"attempt 2 of 2: {why}"
    assert await small.answers_by() == {BASE}
    assert (await small.rounds.preview()).pairs == 2, "nothing was learned from them"
    assert small.trainer.running == set()


async def test_what_would_only_fail_again_is_not_tried_again(start: Start) -> None:
    small = await start([failed("step 0: the loss is not ln 2", retryable=False)])
    ended = await small.round()
    assert (ended.state, len(small.trainer.started)) == (RoundState.FAILED, 1)
    assert ended.reason == "attempt 1 of 3: step 0: the loss is not ln 2"


# --- cancelling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [RoundState.QUEUED, RoundState.COLLECTING, RoundState.TRAINING])
async def test_a_round_can_be_cancelled_and_its_pairs_are_free_again(start: Start, state: RoundState) -> None:
    small = await start([RUNNING])
    round = await small.ask_for_round()
    while (await small.store.rounds.get(round.n)).state is not state:
        await small.rounds.step()
    await small.rounds.step() if state is RoundState.TRAINING else None
    cancelled = await small.rounds.cancel(round.n, who="tess")
    assert (cancelled.state, cancelled.reason) == (RoundState.CANCELLED, "cancelled by tess")
    assert small.trainer.running == set()
    assert await small.rounds.step() is None
    assert (await small.rounds.preview()).pairs == 2


async def test_a_snapshot_that_is_written_while_its_round_is_cancelled_is_taken_away(start: Start) -> None:
    small = await start()
    round = await small.ask_for_round()
    await small.rounds.step()
    collecting = await small.store.rounds.get(round.n)
    assert collecting.state is RoundState.COLLECTING
    await small.rounds.cancel(round.n, who="tess")
    with pytest.raises(StaleRound):
        await small.rounds._steps.take(collecting)  # the step that was under way
    assert list((small.settings.state / "rounds").rglob("*.parquet")) == []


async def test_a_round_that_is_over_cannot_be_cancelled(start: Start) -> None:
    small = await start()
    ended = await small.round()
    with pytest.raises(Conflict) as refused:
        await small.rounds.cancel(ended.n, who="tess")
    assert refused.value.code == "round_over"
    assert await small.store.rounds.get(ended.n) == ended
    with pytest.raises(NotFound):
        await small.rounds.cancel(99, who="tess")


@pytest.mark.parametrize("moment", ["score", "prepare"])
async def test_a_round_that_is_cancelled_while_it_is_judged_changes_nothing(start: Start, moment: str) -> None:
    """Even when every replica holds its adapter already, and only the flip is left to do."""
    small = await start([Done(samples=2)])
    round = await small.ask_for_round()

    async def cancel() -> None:
        assert (await small.rounds.cancel(round.n, who="tess")).state is RoundState.CANCELLED

    small.host.after[moment] = cancel
    ended = await small.finish(round)
    assert (ended.state, ended.reason, small.host.after) == (RoundState.CANCELLED, "cancelled by tess", {})
    assert await small.answers_by() == {BASE}
    assert (await small.store.route.read()).generation == 0
    assert (await small.rounds.preview()).pairs == 2, "its pairs are free again"


async def test_a_round_whose_adapter_answers_already_cannot_be_cancelled(start: Start) -> None:
    """What is left to say then is a rollback."""
    small = await start()
    round = await small.ask_for_round()

    async def meanwhile() -> None:
        with pytest.raises(Conflict) as refused:
            await small.rounds.cancel(round.n, who="tess")
        assert refused.value.code == "round_promoted"

    small.host.after["flip"] = meanwhile
    assert (await small.finish(round)).state is RoundState.PROMOTED
    assert small.host.after == {}


async def test_an_attempt_that_starts_while_its_round_is_cancelled_is_stopped(start: Start) -> None:
    small = await start([RUNNING])
    round = await small.ask_for_round()

    async def cancel() -> None:
        await small.rounds.cancel(round.n, who="tess")

    small.trainer.before["start"] = cancel
    assert (await small.finish(round)).state is RoundState.CANCELLED
    assert len(small.trainer.started) == 1
    assert small.trainer.running == set()


async def test_an_attempt_that_ends_while_its_round_is_cancelled_changes_nothing(start: Start) -> None:
    small = await start([Done()])
    round = await small.ask_for_round()

    async def cancel() -> None:
        await small.rounds.cancel(round.n, who="tess")

    while small.trainer.started == []:
        await small.rounds.step()
    small.trainer.before["poll"] = cancel
    assert (await small.finish(round)).state is RoundState.CANCELLED
    assert await small.answers_by() == {BASE}
    assert await small.store.adapters.list() == ()
