"""Tiny models, pairs of random tokens, and specs of rounds over them: what all tests of `training` begin with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny_models
from training.contracts import HELD_OUT, TRAIN, LoraSpec, RoundSpec
from training.fingerprints import fingerprints
from training.pairs import Pair
from training.policy import Policy, load_policy
from training.snapshot import SnapshotRow, write_snapshot

LORA = LoraSpec(rank=4, alpha=8)

MakeSpec = Callable[..., RoundSpec]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tests share their cores; and the number of threads changes the last bits of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Architecture -> model directory."""
    root = tmp_path_factory.mktemp("models")
    return {name: tiny_models.build(name, root / name) for name in tiny_models.ARCHITECTURES}


@pytest.fixture
def make_spec(models: dict[str, Path], tmp_path: Path) -> MakeSpec:
    """A round over random pairs; keyword arguments replace fields, `rows` the pairs and `model` the architecture."""

    def make(model: str = "llama", rows: list[SnapshotRow] | None = None, **fields: Any) -> RoundSpec:
        snapshot = tmp_path / "snapshot.parquet"
        digest = write_snapshot(snapshot, random_rows(32) if rows is None else rows)
        defaults: dict[str, Any] = {
            "round": 1,
            "attempt": 1,
            "snapshot": str(snapshot),
            "pair_digest": digest,
            "model": str(models[model]),
            "fingerprints": fingerprints(models[model]),
            "parent": None,
            "adapter_ordinal": 1,
            "out": str(tmp_path / "out"),
            "storage": str(tmp_path / "storage"),
            "checkpoints": str(tmp_path / "checkpoints"),
            "learning_rate": 1e-3,
            "lora": LORA,
            "pairs_per_step": 8,
            "tokens_per_micro_batch": 256,
        }
        return RoundSpec.model_validate(defaults | fields)

    return make


@pytest.fixture
def moved_policy(make_spec: MakeSpec) -> Callable[[str], Policy]:
    """A policy whose adapter is random and not zero, as after earlier rounds."""

    def load(architecture: str) -> Policy:
        policy = load_policy(make_spec(architecture), torch.device("cpu"))
        move(policy)
        return policy

    return load


def move(policy: Policy) -> None:
    """Give every adapter weight a random value."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.trainable:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def random_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Pairs of random tokens with prompts of 3 to 24 tokens and answers of 1 to 20."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(6, 300) for _ in range(draw.randint(low, high)))

    return [Pair(f"{i:04d}", tokens(3, 24), (*tokens(0, 19), tiny_models.EOS), tokens(1, 20)) for i in range(count)]


def random_rows(count: int, seed: int = 0) -> list[SnapshotRow]:
    """The same as rows of a snapshot; every fourth is held out."""
    return [
        SnapshotRow(pair.pair_id, HELD_OUT if i % 4 == 3 else TRAIN, pair.prompt, pair.chosen, pair.rejected)
        for i, pair in enumerate(random_pairs(count, seed))
    ]
