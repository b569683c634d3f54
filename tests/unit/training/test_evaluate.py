"""Numbers of the held-out examples, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.training.conftest import MakeSpec, written
from training.contracts import Evaluation
from training.evaluate import discordant, evaluate, evaluation_metrics, outcomes
from training.examples import Examples
from training.metrics import Loss
from training.outcomes import Outcome
from training.pairs import Pair, Thumb


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    return written(
        tmp_path,
        [
            Thumb("up", (1,), (2, 3), up=True),
            Pair("a", (1,), (2,) * 4, (3,) * 2),
            Pair("b", (1,), (2,) * 5, (3,) * 10),
            Thumb("down", (1,), (2, 3, 4), up=False),
            Pair("c", (1,), (2,) * 2, (3,) * 3),
        ],
    )


def logprobs(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)[:, :, None].expand(-1, -1, 2).clone()


CURRENT = logprobs((-5, 0), (-8, -9), (-10, -9), (-6, 0), (-4, -4))
CANDIDATE = logprobs((-4, 0), (-8, -7), (-10, -12), (-9, 0), (-3, -4))


def test_a_policy_is_judged_by_its_pairs(examples: Examples) -> None:
    assert evaluate(CURRENT, examples) == Evaluation(pairs=3, accuracy=1 / 3, mean_margin=0.0, mean_logp_chosen=-2.0)
    assert evaluate(CANDIDATE, examples).model_dump() == pytest.approx(
        {"pairs": 3, "accuracy": 2 / 3, "mean_margin": 2 / 3, "mean_logp_chosen": -11 / 6}
    )


def test_each_pair_is_told_apart_and_thumbs_are_none(examples: Examples) -> None:
    found = outcomes(CURRENT, CANDIDATE, examples)
    assert found == [Outcome("a", 1.0, -1.0), Outcome("b", -1.0, 2.0), Outcome("c", 0.0, 1.0)]
    gained = [outcome.gained for outcome in found]
    assert (gained.count(1), gained.count(-1)) == discordant(CURRENT, CANDIDATE, examples)


def test_pairs_that_only_one_policy_gets_right_are_counted(examples: Examples) -> None:
    """b and c only by the candidate, which had them wrong or tied; a only by the current one."""
    assert discordant(CURRENT, CANDIDATE, examples) == (2, 1)
    assert discordant(CANDIDATE, CURRENT, examples) == (1, 2)
    assert discordant(CURRENT, CURRENT, examples) == (0, 0)


def test_metrics_have_trls_names_and_the_current_policy_is_their_reference(
    examples: Examples, make_spec: MakeSpec
) -> None:
    found = evaluation_metrics(CANDIDATE, CURRENT, examples, Loss(make_spec(rows=[], beta=0.1)))
    margins = (0 - 2, 0 + 3, 1 - 0)  # log-ratio chosen - log-ratio rejected
    assert found["eval_loss"] == pytest.approx(sum(math.log1p(math.exp(-0.1 * margin)) for margin in margins) / 3)
    assert found["eval_rewards/chosen"] == pytest.approx(0.1 / 3)
    assert found["eval_rewards/rejected"] == pytest.approx(0.1 * (2 - 3 + 0) / 3)
    assert found["eval_rewards/margins"] == pytest.approx(0.2 / 3)
    assert found["eval_rewards/accuracies"] == pytest.approx(2 / 3)
    assert found["eval_logps/chosen"] == -7.0
    assert found["eval_logps/rejected"] == pytest.approx(-23 / 3)
    assert found["eval_nll/chosen"] == pytest.approx(11 / 6)
    assert found["eval_length/chosen"] == pytest.approx(11 / 3)
    assert found["eval_length/rejected"] == 5.0
    assert all(name.startswith("eval_") for name in found)


def test_thumbs_are_part_of_the_loss_where_the_objective_learns_from_them(
    examples: Examples, make_spec: MakeSpec
) -> None:
    def loss(objective: str) -> float:
        return evaluation_metrics(CANDIDATE, CURRENT, examples, Loss(make_spec(rows=[], objective=objective)))[
            "eval_loss"
        ]

    up, down = 1 / (1 + math.exp(0.1 * 1)), 1 / (1 + math.exp(0.1 * 3))
    assert loss("apo_zero_unpaired") == pytest.approx((up + down) / 2)
    assert loss("dpo+2*apo_zero_unpaired") == pytest.approx(loss("dpo") + up + down)


def test_ktos_held_out_loss_has_the_baseline_of_the_held_out_thumbs(examples: Examples, make_spec: MakeSpec) -> None:
    """As in training: the mean log-ratio of the mismatched answers, here 0.8 and 0.4 nats."""
    current, candidate = CURRENT.clone(), CANDIDATE.clone()
    current[[0, 3], 1] = -7.0
    candidate[0, 1], candidate[3, 1] = -6.2, -6.6
    found = evaluation_metrics(candidate, current, examples, Loss(make_spec(rows=[], objective="kto")))
    up, down = 1 / (1 + math.exp(0.1 * (1 - 0.6))), 1 / (1 + math.exp(0.1 * (0.6 + 3)))
    assert found["eval_loss"] == pytest.approx((up + down) / 2)


def test_what_is_measured_counts_in_full(examples: Examples, tmp_path: Path, make_spec: MakeSpec) -> None:
    lighter = written(tmp_path, [replace(example, weight=0.1) for example in examples])
    loss = Loss(make_spec(rows=[], objective="dpo+kto"))
    of_lighter = evaluation_metrics(CANDIDATE, CURRENT, lighter, loss)
    assert of_lighter == evaluation_metrics(CANDIDATE, CURRENT, examples, loss)


def test_nothing_held_out_has_no_metrics(tmp_path: Path, make_spec: MakeSpec) -> None:
    nothing = written(tmp_path, [])
    assert evaluation_metrics(torch.zeros(0, 2, 2), torch.zeros(0, 2, 2), nothing, Loss(make_spec(rows=[]))) == {}
