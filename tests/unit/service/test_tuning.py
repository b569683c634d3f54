"""What a round is told about learning: from the request, else from the settings, all of it in the attempt's spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.errors import BadRequest
from service.settings import load
from service.store.store import Store
from service.tuning import LEARNING, TUNABLE, Tuning, chosen
from tests.small_service import SmallService, refusal
from training.contracts import RoundSpec

QUESTIONS = ["first question", "second question"]


def test_what_is_tunable_has_a_default_and_a_place_in_the_spec() -> None:
    defaults = load(environment={}).round_defaults
    assert set(defaults) == set(TUNABLE)
    assert None not in defaults.values()
    assert set(LEARNING) <= set(RoundSpec.model_fields)
    assert set(TUNABLE) - set(LEARNING) == {"replay", "min_pairs"}


def test_what_is_asked_for_wins_also_where_it_is_zero() -> None:
    defaults = load(environment={"HELIOTROPE_TRAINING__REPLAY": "0.3"}).round_defaults
    assert chosen(Tuning(), defaults) == defaults
    assert chosen(Tuning(replay=0.0), defaults) == defaults | {"replay": 0.0}


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"objective": "dpu"}, "objective", "unknown loss 'dpu'"),
    ({"objective": "dpo+dpo"}, "objective", "names 'dpo' twice"),
    ({"objective": "x*dpo"}, "objective", "is not a number"),
    ({"label_smoothing": 0.5}, "label_smoothing", "less than 0.5"),
    ({"ld_alpha": 1.1}, "ld_alpha", "less than or equal to 1"),
    ({"desirable_weight": 0}, "desirable_weight", "greater than 0"),
    ({"replay": 0.51}, "replay", "less than or equal to 0.5"),
    ({"label_smoothing": 0.1}, "label_smoothing", "has no effect on 'dpo'"),
    ({"objective": "kto", "ld_alpha": 0.5}, "ld_alpha", "has no effect on 'kto'"),
]


@pytest.mark.parametrize(("body", "field", "why"), BAD, ids=[str(body) for body, _, _ in BAD])
async def test_a_bad_value_is_refused_by_name(
    store: Store, tmp_path: Path, body: dict[str, Any], field: str, why: str
) -> None:
    operator = await (await SmallService.start(store, tmp_path)).operator()
    answer = await operator.post("/ops/rounds", json=body)
    assert refusal(answer) == (400, "invalid_value", field)
    assert why in answer.json()["error"]["message"]


async def test_an_unknown_objective_is_answered_with_what_there_is(store: Store, tmp_path: Path) -> None:
    operator = await (await SmallService.start(store, tmp_path)).operator()
    message = (await operator.post("/ops/rounds", json={"objective": "orpo"})).json()["error"]["message"]
    assert all(name in message for name in ("dpo", "robust", "ipo", "nll", "kto", "rpo"))


def test_the_settings_refuse_the_same() -> None:
    with pytest.raises(BadRequest, match="unknown loss 'orpo'") as refused:
        load(environment={"HELIOTROPE_TRAINING__OBJECTIVE": "orpo"})
    assert refused.value.param == "training.objective"
    with pytest.raises(BadRequest, match="label_smoothing has no effect on 'dpo'"):
        load(environment={"HELIOTROPE_TRAINING__LABEL_SMOOTHING": "0.1"})
    with pytest.raises(BadRequest, match="shard_base needs workers"):
        load(environment={"HELIOTROPE_TRAINING__SHARD_BASE": "true"})


async def test_all_of_it_reaches_the_attempt(store: Store, tmp_path: Path) -> None:
    of_the_node = {
        "dtype": "auto", "gradient_checkpointing": "on", "seconds_between_checkpoints": 5.0, "restarts": 1,
        "trackers": ("mlflow",), "workers": 2, "shard_base": True,
    }  # fmt: skip
    small = await SmallService.start(store, tmp_path, ld_alpha=0.5, undesirable_weight=3, **of_the_node)
    await small.like(*QUESTIONS)
    asked = {"objective": "robust+0.2*nll", "label_smoothing": 0.1, "desirable_weight": 2.0, "beta": 0.25}
    await small.round(**asked)
    [spec] = small.trainer.started
    assert {name: getattr(spec, name) for name in asked} == asked
    assert (spec.ld_alpha, spec.undesirable_weight) == (0.5, 3)
    assert {name: getattr(spec, name) for name in of_the_node} == of_the_node
    assert spec.candidate is None
