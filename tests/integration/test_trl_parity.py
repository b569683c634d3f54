"""A round of ours is TRL's: the same losses and the same adapter over many optimizer steps in float32.

TRL repeats the prompt for each answer, pads, checkpoints gradients and asks for the reference at each step; we do none
of that, so what is equal here is the mathematics.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import trl_peer
from tests.round_specs import round_spec
from tests.tiny_models import EOS, VOCABULARY, build
from training.contracts import TRAIN, RoundSpec
from training.learn import learn
from training.policy import load_policy
from training.snapshot import SnapshotRow
from training.world import ALONE

ROWS, ROWS_A_STEP = 96, 4  # 24 optimizer steps
LOSS_TOLERANCE = 1e-5  # |ours - TRL's| / |TRL's|, of each step's loss
WEIGHT_TOLERANCE = 1e-4  # |ours - TRL's| / |TRL's - first|, Frobenius norms: relative to how far a tensor has moved


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(("objective", "label_smoothing"), [("dpo", 0.0), ("ipo", 0.0), ("robust", 0.1), ("kto", 0.0)])
def test_losses_and_weights_equal_those_of_trl(
    model: Path, tmp_path: Path, objective: str, label_smoothing: float
) -> None:
    rows = thumbs() if objective == "kto" else pairs()
    spec = make_spec(model, rows, tmp_path, objective=objective, label_smoothing=label_smoothing)
    first = load_policy(spec, ALONE).weights()

    report = learn(spec, lambda progress: None)
    theirs = trl_peer.train(spec, trl_peer.steps_of(rows, spec), tmp_path / "trl", initial=first)

    losses = np.array([step.loss for step in report.steps])
    assert len(losses) == len(theirs.losses) == ROWS // ROWS_A_STEP
    np.testing.assert_allclose(losses, theirs.losses, rtol=LOSS_TOLERANCE)
    assert max(losses) > 1.01 * min(losses), "the loss has hardly changed: nothing was compared"
    assert objective != "kto" or any(step.kl for step in report.steps), "z0 was never above 0"

    ours = load_file(Path(report.adapter_directory) / "adapter_model.safetensors")
    assert ours.keys() == theirs.weights.keys()
    for name, tensor in theirs.weights.items():
        moved = np.linalg.norm(tensor - first[name])
        assert moved > 0, name
        assert np.linalg.norm(ours[name] - tensor) <= WEIGHT_TOLERANCE * moved, name


def pairs() -> list[SnapshotRow]:
    draw = random.Random(3)
    return [SnapshotRow(f"{i:04d}", TRAIN, prompt(draw), answer(draw), answer(draw)) for i in range(ROWS)]


def thumbs() -> list[SnapshotRow]:
    """Thumbs up and down in random order, two up for each one down."""
    draw = random.Random(4)
    rows = []
    for i in range(ROWS):
        up = draw.random() < 2 / 3
        given = answer(draw)
        rows.append(SnapshotRow(f"{i:04d}", TRAIN, prompt(draw), given if up else None, None if up else given))
    return rows


def prompt(draw: random.Random) -> list[int]:
    return [draw.randrange(6, VOCABULARY) for _ in range(draw.randint(2, 40))]


def answer(draw: random.Random) -> list[int]:
    return [*(draw.randrange(6, VOCABULARY) for _ in range(draw.randint(1, 24))), EOS]


def make_spec(model: Path, rows: list[SnapshotRow], folder: Path, **settings: object) -> RoundSpec:
    several = {"pairs_per_step": ROWS_A_STEP, "tokens_per_micro_batch": 160}  # micro-batches a step, where TRL has one
    return round_spec(model, rows, folder, learning_rate=1e-3, **several | settings)
