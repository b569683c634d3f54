"""A recorded round trained again on this machine: reproduced, not reproduced, or refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.errors import BadRequest, Conflict, HeliotropeError
from service.evidence.provenance import Environment, environment
from service.evidence.recipe import Recipe
from service.evidence.replaying import replay
from service.settings import TrainingSettings
from tests import tiny_models
from tests.round_specs import round_spec
from training.contracts import HELD_OUT, TRAIN, LoraSpec, ParentAdapter
from training.snapshot import SnapshotRow, write_snapshot

HERE = Environment.model_validate(environment(TrainingSettings()))
NOT_ITS_DIGEST = "0" * 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def recipe(model: Path, tmp_path: Path) -> Recipe:
    rows = [
        SnapshotRow(f"{i:04d}", HELD_OUT if i % 4 == 3 else TRAIN, [6, 7, 8 + i], [20 + i, 9, 3], [30 + i, 3])
        for i in range(8)
    ]
    spec = round_spec(model, rows, tmp_path, lora=LoraSpec(rank=4, alpha=8))
    return Recipe(spec=spec, threads=1, adapter_digest=NOT_ITS_DIGEST, environment=HERE)


def test_the_same_round_gives_the_same_digest_and_a_wrong_one_is_told_apart(recipe: Recipe) -> None:
    elsewhere = HERE.model_copy(update={"machine": HERE.machine.model_copy(update={"cpu": "Abacus 3000"})})
    first = replay(recipe.model_copy(update={"environment": elsewhere}))
    assert (first.reproduced, first.expected) == (False, NOT_ITS_DIGEST)
    assert "Abacus 3000" in first.caveats[0]
    again = replay(recipe.model_copy(update={"adapter_digest": first.found}))
    assert (again.reproduced, again.found, again.caveats) == (True, first.found, ())


def test_other_pairs_than_those_of_then_are_found_out(recipe: Recipe) -> None:
    write_snapshot(Path(recipe.spec.snapshot), [SnapshotRow("0001", TRAIN, [6, 7], [8, 3], [9, 3])])
    with pytest.raises(HeliotropeError) as refused:
        replay(recipe)
    assert refused.value.code == "replay_failed"


@pytest.mark.parametrize(
    "changed",
    [{"training_sha256": "0" * 64}, {"python": "2.7.18"}, {"packages": HERE.packages | {"torch": "1.0"}}],
    ids=lambda changed: next(iter(changed)),
)
def test_other_code_or_packages_are_refused_by_name(recipe: Recipe, changed: dict[str, Any]) -> None:
    with pytest.raises(Conflict, match="would not come out the same here") as refused:
        replay(recipe.model_copy(update={"environment": HERE.model_copy(update=changed)}))
    assert refused.value.code == "not_replayable"


@pytest.mark.parametrize("gone", ["snapshot", "model", "parent"])
def test_files_that_are_not_here_are_named(recipe: Recipe, gone: str) -> None:
    away = ParentAdapter(name="policy-0001-aaaaaaaa", directory="/away") if gone == "parent" else "/away"
    with pytest.raises(BadRequest, match="/away, is not on this machine"):
        replay(recipe.model_copy(update={"spec": recipe.spec.model_copy(update={gone: away})}))
