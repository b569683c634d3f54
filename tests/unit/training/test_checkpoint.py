"""A round that was interrupted goes on, and ends with the very adapter it would have had."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.conftest import MakeSpec, plan_of, random_pairs, random_rows, written
from training.checkpoint import KEPT, Checkpoints
from training.contracts import TRAIN, Progress, RoundSpec, StepMetrics
from training.folder import Folder, open_folder
from training.learn import learn
from training.policy import Policy
from training.reporting import NOT_LEARNED_FROM
from training.score import score
from training.snapshot import SnapshotRow
from training.steps import Descent
from training.world import ALONE


class Killed(Exception):
    """Stands for the end of the process."""


def rows_and_thumbs() -> list[SnapshotRow]:
    """Twelve pairs, of which three are held out, and six thumbs."""
    thumbs = [
        SnapshotRow(f"thumb {row.pair_id}", TRAIN, row.prompt_token_ids, chosen_token_ids=row.chosen_token_ids)
        if i % 2
        else SnapshotRow(f"thumb {row.pair_id}", TRAIN, row.prompt_token_ids, rejected_token_ids=row.rejected_token_ids)
        for i, row in enumerate(random_rows(6, seed=9))
    ]
    return [*random_rows(12), *thumbs]


def killed_before_the_end_of(step: int | None) -> Callable[[Progress], None]:
    """A reporter in which the process dies when that step is told, before there is a checkpoint of it."""

    def report(progress: Progress) -> None:
        if progress.step is not None and progress.step.step == step:
            raise Killed

    return report


def without_clock(steps: tuple[StepMetrics, ...]) -> list[dict[str, Any]]:
    return [step.model_dump(exclude={"seconds", "tokens_per_second", "mfu"}) for step in steps]


@pytest.mark.parametrize("objective", ["dpo", "dpo+kto"])
def test_a_round_killed_in_every_step_ends_with_the_same_adapter(
    objective: str, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec(rows=rows_and_thumbs(), objective=objective, pairs_per_step=3, seconds_between_checkpoints=0)
    elsewhere = {name: str(tmp_path / "whole" / name) for name in ("out", "storage", "checkpoints")}
    whole = learn(spec.model_copy(update=elsewhere), killed_before_the_end_of(None))
    assert len(whole.steps) == 3
    assert whole.thumbs_trained == (6 if objective == "dpo+kto" else 0)

    for attempt, step in enumerate((1, 2, 3), start=1):  # each goes on from the step before the one it dies in
        with pytest.raises(Killed):
            learn(spec.model_copy(update={"attempt": attempt}), killed_before_the_end_of(step))
        assert not (Path(spec.out) / "adapter").exists()
    ended = learn(spec.model_copy(update={"attempt": 4}), killed_before_the_end_of(None))

    assert ended.resumed_from == 2
    assert whole.resumed_from is None
    assert ended.adapter_digest == whole.adapter_digest
    assert without_clock(ended.steps) == without_clock(whole.steps)
    assert ended.step0_loss == whole.step0_loss
    assert ended.drift == whole.drift
    assert [path.name for path in Path(spec.checkpoints).iterdir()] == ["reference.safetensors"]


MakeDescent = Callable[[], tuple[Descent, Policy]]


@pytest.fixture
def make_descent(make_spec: MakeSpec, moved_policy: Callable[[str], Policy], tmp_path: Path) -> MakeDescent:
    """The same four steps each time, at their beginning."""
    examples = written(tmp_path / "examples", random_pairs(8))
    plan, spec = plan_of(examples, per_step=2), make_spec(rows=[])
    reference = score(moved_policy("llama"), examples, plan, ALONE)

    def make() -> tuple[Descent, Policy]:
        policy = moved_policy("llama")
        return Descent(spec, policy, examples, reference, plan, ALONE, peak_rate=1e12), policy

    return make


@pytest.fixture
def checkpoints(folder: Folder, make_descent: MakeDescent) -> Checkpoints:
    """Those of a whole descent that wrote one after each step."""
    made, (descent, policy) = Checkpoints(folder, "identity"), make_descent()
    descent.run(lambda step: None, lambda: made.save(policy, descent))
    return made


def test_the_latest_two_are_kept_and_the_last_is_restored(checkpoints: Checkpoints, make_descent: MakeDescent) -> None:
    assert [name[:13] for name in checkpoints.folder.names()] == ["step-00000003", "step-00000004"]
    assert KEPT == 2
    descent, policy = make_descent()
    assert checkpoints.restore(policy, descent, ALONE) == 4
    assert descent.position.done == 4
    assert [step.step for step in descent.position.history.steps] == [1, 2, 3, 4]
    assert {state["step"].item() for state in descent.optimizer.state.values()} == {4.0}


def test_a_damaged_one_is_passed_over_for_the_one_before(
    checkpoints: Checkpoints, make_descent: MakeDescent, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = checkpoints.folder.names()[-1]
    content = bytearray(checkpoints.folder.read(damaged) or b"")
    content[len(content) // 2] ^= 1
    checkpoints.folder.write(damaged, bytes(content))
    descent, policy = make_descent()
    assert checkpoints.restore(policy, descent, ALONE) == 3
    assert f"{damaged} is damaged" in caplog.text
    descent.run(lambda step: None)
    whole, expected = make_descent()
    whole.run(lambda step: None)
    assert all(torch.equal(*pair) for pair in zip(policy.trainable, expected.trainable, strict=True))


@pytest.mark.parametrize("left_bytes", [0, 5, 1000])
def test_without_any_sound_one_the_round_begins_again(
    left_bytes: int, checkpoints: Checkpoints, make_descent: MakeDescent
) -> None:
    for name in checkpoints.folder.names():
        checkpoints.folder.write(name, (checkpoints.folder.read(name) or b"")[:left_bytes])
    descent, policy = make_descent()
    before = policy.weights()
    assert checkpoints.restore(policy, descent, ALONE) is None
    assert descent.position.done == 0
    assert all((before[name] == tensor).all() for name, tensor in policy.weights().items())


def test_one_of_other_settings_is_not_used_and_does_not_crowd_out_new_ones(
    checkpoints: Checkpoints, make_descent: MakeDescent, caplog: pytest.LogCaptureFixture
) -> None:
    other, (descent, policy) = Checkpoints(checkpoints.folder, "other settings"), make_descent()
    with caplog.at_level(logging.WARNING):
        assert other.restore(policy, descent, ALONE) is None
    assert "belongs to other pairs, settings or another machine" in caplog.text
    with pytest.raises(Killed):
        descent.run(lambda step: None, lambda: save_and_die(other, policy, descent))
    again, restored = make_descent()
    assert other.restore(restored, again, ALONE) == 1


def save_and_die(checkpoints: Checkpoints, policy: Policy, descent: Descent) -> None:
    checkpoints.save(policy, descent)
    raise Killed


def test_a_file_that_was_never_completed_is_ignored_and_goes_with_the_rest(
    tmp_path: Path, make_descent: MakeDescent
) -> None:
    directory = tmp_path / "checkpoints"
    made, (descent, policy) = Checkpoints(open_folder(str(directory)), "identity"), make_descent()
    descent.run(lambda step: None, lambda: made.save(policy, descent))
    newest = max(directory.iterdir())
    newest.rename(newest.with_name(f".{newest.name}.123.partial"))
    assert made.restore(policy, descent, ALONE) == 3
    made.remove()
    assert list(directory.iterdir()) == []


def test_what_is_no_checkpoint_stays_when_they_are_removed(checkpoints: Checkpoints) -> None:
    others = ["reference.safetensors", "step-1.safetensors"]
    for name in others:
        checkpoints.folder.write(name, b"x")
    checkpoints.remove()
    assert checkpoints.folder.names() == others


def test_there_is_nothing_to_go_on_from_at_first(folder: Folder, make_descent: MakeDescent) -> None:
    descent, policy = make_descent()
    assert Checkpoints(folder, "identity").restore(policy, descent, ALONE) is None


def test_the_spec_says_where_checkpoints_are_and_that_changes_no_identity(make_spec: MakeSpec) -> None:
    assert set(NOT_LEARNED_FROM) <= set(RoundSpec.model_fields)
    assert {"checkpoints", "attempt", "restarts"} <= set(NOT_LEARNED_FROM)
    assert not {"learning_rate", "seed", "objective", "pair_digest"} & set(NOT_LEARNED_FROM)
