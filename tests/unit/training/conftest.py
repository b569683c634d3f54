"""Tiny models, pairs of random tokens, and specs of rounds over them: what all tests of `training` begin with."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny_models
from tests.round_specs import round_spec
from training.contracts import HELD_OUT, TRAIN, LoraSpec, RoundSpec
from training.examples import Examples, ExamplesWriter
from training.folder import Folder, open_folder
from training.pairs import Example, Pair, Thumb
from training.plan import Plan, Sizes, make_plan
from training.policy import Policy, load_policy
from training.rows import Layout
from training.snapshot import SnapshotRow
from training.world import ALONE, World

LORA = LoraSpec(rank=4, alpha=8)

MakeSpec = Callable[..., RoundSpec]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tests share their cores; and the number of threads changes the last bits of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["local", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """One that does not exist yet: of this machine, and of a store that fsspec opens."""
    local = request.param == "local"
    return open_folder(str(tmp_path / "new" / "folder") if local else f"memory://{tmp_path}/folder")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Architecture -> model directory."""
    root = tmp_path_factory.mktemp("models")
    return {name: tiny_models.build(name, root / name) for name in tiny_models.ARCHITECTURES}


@pytest.fixture
def make_spec(models: dict[str, Path], tmp_path: Path) -> MakeSpec:
    """A round over random pairs; keyword arguments replace fields, `rows` the pairs and `model` the architecture."""

    def make(model: str = "llama", rows: list[SnapshotRow] | None = None, **fields: Any) -> RoundSpec:
        return spec_of(models[model], tmp_path, random_rows(32) if rows is None else rows, **fields)

    return make


def spec_of(model: Path, folder: Path, rows: list[SnapshotRow], **fields: Any) -> RoundSpec:
    """A round over these rows in steps and micro-batches of a tiny size."""
    tiny = {"learning_rate": 1e-3, "lora": LORA, "pairs_per_step": 8, "tokens_per_micro_batch": 256}
    return round_spec(model, rows, folder, **tiny | fields)


@pytest.fixture(scope="session")
def moved_policies(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Policy]:
    """Architecture -> a policy whose adapter is random and not zero, as after earlier rounds. Not to be changed."""
    folder = tmp_path_factory.mktemp("snapshot")
    policies = {name: load_policy(spec_of(model, folder, random_rows(1)), ALONE) for name, model in models.items()}
    for policy in policies.values():
        move(policy)
    return policies


@pytest.fixture
def moved_policy(moved_policies: dict[str, Policy]) -> Callable[[str], Policy]:
    """Such a policy to be changed at will: equal at each call, and another one."""
    return lambda architecture: copy.deepcopy(moved_policies[architecture])


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

    return [Pair(f"{i:04d}", tokens(3, 24), (*tokens(1, 19), tiny_models.EOS), tokens(1, 20)) for i in range(count)]


def random_rows(count: int, seed: int = 0) -> list[SnapshotRow]:
    """The same as rows of a snapshot; every fourth is held out."""
    return [
        SnapshotRow(pair.pair_id, HELD_OUT if i % 4 == 3 else TRAIN, pair.prompt, pair.chosen, pair.rejected)
        for i, pair in enumerate(random_pairs(count, seed))
    ]


def random_thumbs(count: int, seed: int = 0) -> list[Thumb]:
    """The answers of random pairs as thumbs, up and down in turn."""
    pairs = random_pairs(count, seed)
    return [
        Thumb(pair.pair_id, pair.prompt, pair.rejected if i % 2 else pair.chosen, up=i % 2 == 0)
        for i, pair in enumerate(pairs)
    ]


def written(folder: Path, examples: Iterable[Example]) -> Examples:
    """Examples as a round has them."""
    writer = ExamplesWriter(folder)
    for example in examples:
        writer.add(example)
    return writer.close()


@dataclass(frozen=True)
class HalfOfTwo(World):
    """One of two workers that run one after the other: the second adds what the first has said."""

    heard: list[Tensor] = field(default_factory=list)
    said: list[Tensor] = field(default_factory=list)

    def sum(self, tensor: Tensor) -> Tensor:
        self.said.append(tensor.clone())
        if self.heard:
            tensor += self.heard.pop(0)
        return tensor


def plan_of(
    examples: Examples, layout: Layout = "shared", *, per_step: int = 8, token_budget: int = 256, workers: int = 1
) -> Plan:
    sizes = Sizes(examples.lengths, examples.prompts)
    return make_plan(sizes, layout, per_step=per_step, token_budget=token_budget, seed=0, workers=workers)
