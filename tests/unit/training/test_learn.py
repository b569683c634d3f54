"""A whole attempt in this process: what it reports and writes, that it repeats itself, and how it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import ARCHITECTURES
from tests.unit.training.conftest import LORA, MakeSpec, random_rows
from training.adapter import read_adapter
from training.contracts import HELD_OUT, LoraSpec, ParentAdapter, Progress, RoundReport, RoundSpec
from training.errors import AdapterInvalid, FingerprintMismatch, SnapshotInvalid, TrainingError
from training.learn import learn
from training.policy import load_policy
from training.samples import read_samples
from training.snapshot import SnapshotRow
from training.world import ALONE


def ignore(progress: Progress) -> None:
    """For tests that look at the report alone."""


def following(spec: RoundSpec, report: RoundReport, directory: Path, **fields: Any) -> RoundSpec:
    """The next round: it continues the adapter of this one."""
    parent = ParentAdapter(name=report.adapter_name, directory=report.adapter_directory)
    where = {name: str(directory / name) for name in ("out", "storage", "checkpoints")}
    changes = {"round": spec.round + 1, "adapter_ordinal": spec.adapter_ordinal + 1, "parent": parent}
    return spec.model_copy(update=changes | where | fields)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_rounds_in_a_row(architecture: str, make_spec: MakeSpec, tmp_path: Path) -> None:
    first_spec = make_spec(architecture, epochs=2)
    first = learn(first_spec, ignore)
    second = learn(following(first_spec, first, tmp_path / "second", seed=1), ignore)
    for report in (first, second):
        assert report.step0_max_abs_logratio == 0.0
        assert report.step0_loss == pytest.approx(math.log(2), abs=1e-15)
        assert report.weights_changed
        assert (report.pairs_trained, report.pairs_held_out, report.pairs_skipped) == (24, 8, {})
    assert len(first.steps) == 6
    assert first.candidate == second.current  # the held-out pairs see the policy that was written
    manifest, _ = read_adapter(Path(second.adapter_directory))
    assert (manifest.name, manifest.parent) == (second.adapter_name, first.adapter_name)
    assert manifest.name.startswith("policy-0002-")


def test_training_lowers_the_loss_on_its_pairs(make_spec: MakeSpec) -> None:
    report = learn(make_spec(epochs=10, learning_rate=1e-2), ignore)
    assert report.steps[-1].loss < 0.4 < report.steps[0].loss
    assert report.steps[-1].rewards_accuracies == 1.0
    assert (report.steps[-1].rewards_margins or 0) > 0


def test_the_same_spec_gives_the_same_digest_and_another_seed_another(make_spec: MakeSpec, tmp_path: Path) -> None:
    def digest(name: str, **fields: Any) -> str:
        where = {field: str(tmp_path / name / field) for field in ("out", "storage", "checkpoints")}
        return learn(make_spec(**where, **fields), ignore).adapter_digest

    assert digest("one") == digest("again") != digest("other", seed=1)
    first, second = ((tmp_path / name / "out" / "adapter" / "manifest.json").read_text() for name in ("one", "again"))
    assert first == second


def thumbs(count: int) -> list[SnapshotRow]:
    """Up and down in turn; every fourth is held out."""
    return [
        replace(
            row,
            pair_id=f"thumb {row.pair_id}",
            chosen_token_ids=None if i % 2 else row.chosen_token_ids,
            rejected_token_ids=row.rejected_token_ids if i % 2 else None,
        )
        for i, row in enumerate(random_rows(count, seed=9))
    ]


def test_activations_that_are_computed_twice_end_in_the_same_adapter(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec("gemma", [*random_rows(8), *thumbs(8)], objective="dpo+kto", gradient_checkpointing="off")
    kept = learn(spec, ignore)
    where = {name: str(tmp_path / "twice" / name) for name in ("out", "storage", "checkpoints")}
    twice = learn(spec.model_copy(update=where | {"gradient_checkpointing": "on"}), ignore)
    assert (kept.gradient_checkpointing, twice.gradient_checkpointing) == (False, True)
    assert twice.adapter_digest == kept.adapter_digest


def test_pairs_and_thumbs_are_learned_from_and_reported(make_spec: MakeSpec) -> None:
    spec = make_spec(rows=[*random_rows(16), *thumbs(8)], objective="dpo+0.5*kto", pairs_per_step=4)
    report = learn(spec, ignore)
    assert (report.pairs_trained, report.thumbs_trained) == (12, 6)
    assert (report.pairs_held_out, report.thumbs_held_out) == (4, 2)
    assert report.objective == "dpo+0.5*kto"
    assert report.step0_expected_loss == pytest.approx(math.log(2) + 0.25, abs=1e-12)
    assert report.step0_loss == pytest.approx(report.step0_expected_loss, abs=1e-12)
    assert report.step0_max_abs_logratio == 0.0
    assert (report.layout, report.layout_reason, report.dtype) == ("shared", None, "float32")
    assert all(step.kl is not None for step in report.steps)
    assert {"eval_loss", "eval_rewards/margins", "eval_logps/chosen"} <= report.evaluation.keys()
    assert report.drift is not None
    assert 0 < report.drift.kl_previous == report.drift.kl_base  # the first round's previous policy is the base
    assert report.samples is not None
    assert report.curves is not None
    assert len(read_samples(Path(report.samples))) == 2
    assert Path(report.curves).read_text().lstrip().startswith("<?xml")


def test_thumbs_alone_can_be_learned_from(make_spec: MakeSpec) -> None:
    report = learn(
        make_spec(rows=[*random_rows(4), *thumbs(12)], objective="kto", epochs=8, learning_rate=1e-2), ignore
    )
    assert (report.pairs_trained, report.thumbs_trained) == (0, 9 + 2 * 3)  # a pair is two thumbs
    assert report.step0_loss == pytest.approx(0.5, abs=1e-12)
    assert report.steps[-1].loss < 0.45
    assert (report.steps[-1].rewards_margins or 0) > 0
    assert report.steps[-1].rewards_accuracies is None


def test_a_second_round_has_moved_further_from_the_base_than_from_the_first(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec(rows=random_rows(8), learning_rate=1e-2)
    report = learn(following(spec, learn(spec, ignore), tmp_path / "second"), ignore)
    assert report.drift is not None
    assert 0 < report.drift.kl_previous < report.drift.kl_base


def test_progress_tells_phases_and_steps_in_order(make_spec: MakeSpec) -> None:
    told: list[Progress] = []
    report = learn(make_spec(), told.append)
    assert [entry.phase or entry.step for entry in told] == [
        "load", "reference", "train", *report.steps, "evaluate", "write",
    ]  # fmt: skip
    assert set(report.seconds) == {"load", "reference", "train", "evaluate", "write"}


def test_imported_text_and_served_tokens_train_together(make_spec: MakeSpec) -> None:
    messages = json.dumps([{"role": "user", "content": "What is the capital of France?"}])
    text = SnapshotRow("text", "train", messages=messages, chosen_text="Paris.", rejected_text="I think so.")
    report = learn(make_spec(rows=[*random_rows(8), text]), ignore)
    assert report.pairs_trained == 7


def test_no_held_out_pairs_are_reported_as_none(make_spec: MakeSpec) -> None:
    rows = [row for row in random_rows(8) if row.split != HELD_OUT]
    report = learn(make_spec(rows=rows), ignore)
    assert (report.current, report.candidate, report.pairs_held_out) == (None, None, 0)


def test_pairs_that_are_too_long_are_counted(make_spec: MakeSpec) -> None:
    rows = random_rows(8)
    rows[0] = replace(rows[0], prompt_token_ids=tuple(range(6, 506)), chosen_token_ids=tuple(range(6, 26)))
    report = learn(make_spec(rows=rows), ignore)
    assert (report.pairs_trained, report.pairs_skipped) == (5, {"too_long": 1})


def test_bfloat16_trains_a_float32_adapter(make_spec: MakeSpec) -> None:
    spec = make_spec(dtype="bfloat16")
    assert {p.dtype for p in load_policy(spec, ALONE, torch.bfloat16).trainable} == {torch.float32}
    assert learn(spec, ignore).weights_changed


def refused(spec: RoundSpec, error: type[TrainingError], reason: str) -> None:
    with pytest.raises(error, match=reason):
        learn(spec, ignore)
    assert not (Path(spec.out) / "adapter").exists()


def test_other_pairs_than_announced_are_refused(make_spec: MakeSpec) -> None:
    refused(make_spec(pair_digest="0" * 64), SnapshotInvalid, "instead of 000000000000")


def test_another_base_model_than_served_is_refused(make_spec: MakeSpec, models: dict[str, Path]) -> None:
    refused(make_spec(model="llama").model_copy(update={"model": str(models["qwen3"])}), FingerprintMismatch, "base")


def test_a_model_that_cannot_be_loaded_is_named(make_spec: MakeSpec, tmp_path: Path) -> None:
    from training.fingerprints import fingerprints

    empty = tmp_path / "empty"
    empty.mkdir()
    spec = make_spec().model_copy(update={"model": str(empty), "fingerprints": fingerprints(empty)})
    refused(spec, TrainingError, "empty cannot be loaded")


def test_a_parent_of_another_rank_is_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec()
    report = learn(spec, ignore)
    other = following(spec, report, tmp_path / "second", lora=LoraSpec(rank=8, alpha=8))
    refused(other, AdapterInvalid, f"the round asks for rank 8 and alpha {LORA.alpha}")


def test_a_parent_of_another_model_is_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec("llama")
    report = learn(spec, ignore)
    other = following(make_spec("gemma"), report, tmp_path / "second")
    refused(other, AdapterInvalid, "belongs to base_model")


def test_an_attempt_that_starts_again_uses_the_kept_reference(make_spec: MakeSpec, tmp_path: Path) -> None:
    """A worker that Ray Train restarts finds the file of the one before, and comes to the same adapter."""
    spec = make_spec()
    first = learn(spec, ignore)
    kept_at = (Path(spec.checkpoints) / "reference.safetensors").stat().st_mtime_ns
    again = learn(spec.model_copy(update={"out": str(tmp_path / "again")}), ignore)
    assert again.adapter_digest == first.adapter_digest
    assert (Path(spec.checkpoints) / "reference.safetensors").stat().st_mtime_ns == kept_at
