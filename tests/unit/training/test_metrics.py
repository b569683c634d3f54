"""Metrics by hand: the golden numbers, thumbs on their own, and a history that stays short."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.training.conftest import MakeSpec
from training.contracts import StepMetrics, trl_name
from training.losses import replay_weights
from training.metrics import MAX_STEPS_KEPT, Facts, History, Loss, Scale, facts, preference_metrics
from training.pairs import Pair, Thumb

CPU = torch.device("cpu")


def example(chosen: int, rejected: int, *, replay: bool = False) -> Pair:
    return Pair("pair", (1,), (2,) * chosen, (3,) * rejected, replay=replay)


def both(logprobs: list[list[float]]) -> Tensor:
    """[examples, 2] -> [examples, 2, 2], nothing discounted."""
    return torch.tensor(logprobs, dtype=torch.float64)[:, :, None].expand(-1, -1, 2).clone()


# Two pairs whose metrics TRL 1.16 gives, with beta 0.1.
PAIRS: list[Pair | Thumb] = [example(30, 40), example(10, 12)]
POLICY = both([[-42.0, -55.0], [-20.0, -18.0]])
REFERENCE = both([[-45.0, -50.0], [-19.5, -18.5]])
KNOWN = facts(PAIRS, [False, False], CPU)


def test_the_golden_numbers() -> None:
    found = preference_metrics(POLICY, REFERENCE, KNOWN, beta=0.1)
    assert {trl_name(name): value for name, value in found.items()} == pytest.approx(
        {
            "rewards/chosen": 0.125,
            "rewards/rejected": -0.225,
            "rewards/margins": 0.35,
            "rewards/accuracies": 0.5,
            "logps/chosen": -31.0,
            "logps/rejected": -36.5,
            "logratio/chosen": 1.25,
            "logratio/rejected": -2.25,
            "chosen_logp_drop_rate": 0.5,
            "tie_rate": 0.0,
            "nll/chosen": 1.7,
            "length/chosen": 20.0,
            "length/rejected": 26.0,
            "length/margin": -6.0,
        }
    )


def test_a_tie_is_no_success() -> None:
    found = preference_metrics(REFERENCE, REFERENCE, KNOWN, beta=0.1)
    assert (found["tie_rate"], found["rewards_accuracies"], found["chosen_logp_drop_rate"]) == (1.0, 0.0, 0.0)


THUMBS: list[Pair | Thumb] = [Thumb("thumb", (1,), (2,) * n, up=n % 2 == 0) for n in (4, 5, 6, 7)]


def test_thumbs_alone_have_rewards_of_ups_and_of_downs() -> None:
    policy, reference = both([[-7.0, 0], [-15.0, 0], [-10.5, 0], [-9.5, 0]]), both([[-10.0, 0]] * 4)
    found = preference_metrics(policy, reference, facts(THUMBS, [False] * 4, CPU), beta=0.1)
    assert found["rewards_chosen"] == pytest.approx(0.1 * (3 - 0.5) / 2)
    assert found["rewards_rejected"] == pytest.approx(0.1 * (-5 + 0.5) / 2)
    assert found["rewards_margins"] == pytest.approx(0.125 + 0.225)
    assert (found["logps_chosen"], found["logps_rejected"]) == (-8.75, -12.25)
    assert found["nll_chosen"] == pytest.approx((7 / 4 + 10.5 / 6) / 2)
    assert (found["length_chosen"], found["length_rejected"]) == (5.0, 6.0)
    assert found["rewards_accuracies"] is None


def test_a_step_of_ups_alone_has_no_rewards_of_downs() -> None:
    ups = [thumb for thumb in THUMBS if isinstance(thumb, Thumb) and thumb.up]
    found = preference_metrics(both([[-1.0, 0]] * 2), both([[-2.0, 0]] * 2), facts([*ups], [False] * 2, CPU), beta=0.1)
    assert found["rewards_chosen"] == pytest.approx(0.1)
    assert (found["rewards_rejected"], found["rewards_margins"], found["logps_rejected"]) == (None, None, None)


def test_thumbs_beside_pairs_leave_the_metrics_to_the_pairs() -> None:
    mixed = facts([*PAIRS, *THUMBS], [False] * 6, CPU)
    policy, reference = torch.cat([POLICY, both([[-99.0, 0]] * 4)]), torch.cat([REFERENCE, both([[-9.0, 0]] * 4)])
    assert preference_metrics(policy, reference, mixed, 0.1) == preference_metrics(POLICY, REFERENCE, KNOWN, 0.1)


def test_a_mixed_loss_is_the_mean_of_pairs_plus_the_mean_of_thumbs(make_spec: MakeSpec) -> None:
    """Golden numbers of both: DPO 0.557748663 and KTO 0.457060980."""
    loss = Loss(make_spec(objective="dpo+kto"))
    ratios, mismatched = [3.0, -5.0, -0.5, 0.5], [0.4, -0.2, 0.3, 0.1]
    reference = torch.cat([REFERENCE, both([[-9.0, -9.0]] * 4)])
    policy = reference + torch.cat(
        [POLICY - REFERENCE, both([list(of) for of in zip(ratios, mismatched, strict=True)])]
    )
    known = facts([*PAIRS, *THUMBS], [False, False, True, True, True, True], CPU)
    scale = Scale.of(known, policy, reference)
    assert (scale.pairs, scale.thumbs, scale.tokens_per_chosen) == (2, 4, 20.0)
    assert scale.baseline.item() == pytest.approx(0.15)
    assert loss(policy, reference, known, scale).item() == pytest.approx(0.557748663 + 0.457060980, abs=1e-9)


def test_the_shares_of_micro_batches_add_up_to_the_loss(make_spec: MakeSpec) -> None:
    known = facts([*PAIRS, *THUMBS], [False, False, True, True, True, True], CPU)
    draw = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(6, 2, 2, generator=draw, dtype=torch.float64) - 20 for _ in range(2))
    for objective in ("dpo", "dpo+0.2*nll_tokens", "ipo+kto", "kto"):
        loss, scale = Loss(make_spec(objective=objective)), Scale.of(known, policy, reference)
        parts = [loss(policy[i], reference[i], known.at(i), scale).item() for i in ([0, 3], [4], [5, 1, 2])]
        assert sum(parts) == pytest.approx(loss(policy, reference, known, scale).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("dpo", 0.557748663), ("ipo", 24.362847222), ("nll", 1.7), ("nll_tokens", 1.55), ("rpo", 2.257748663)],
)
def test_golden_losses_of_a_step(objective: str, expected: float, make_spec: MakeSpec) -> None:
    loss, scale = Loss(make_spec(objective=objective)), Scale.of(KNOWN, POLICY, REFERENCE)
    assert loss(POLICY, REFERENCE, KNOWN, scale).item() == pytest.approx(expected, abs=1e-9)


def test_replayed_pairs_that_are_satisfied_count_less_and_new_ones_always_one(make_spec: MakeSpec) -> None:
    satisfied, unsatisfied = [-10.0, -40.0], [-40.0, -10.0]
    reference = both([satisfied, satisfied, unsatisfied])
    known = facts([example(5, 5), example(5, 5, replay=True), example(5, 5, replay=True)], [False] * 3, CPU)
    loss = Loss(make_spec())
    new, learned, forgotten = loss.weights(reference, known).tolist()
    assert new == 1.0
    assert learned < 0.5 < forgotten <= 1.0
    expected = torch.log(torch.tensor(2.0)).item() * (new + learned + forgotten) / 3
    scale = Scale.of(known, reference, reference)
    assert loss(reference, reference, known, scale).item() == pytest.approx(expected)  # divided by pairs, not weights


def test_an_examples_own_weight_multiplies_that_of_replay_and_nothing_is_divided_by_it(make_spec: MakeSpec) -> None:
    reference = both([[-10.0, -40.0]] * 2 + [[-10.0, 0.0]])
    pairs = [replace(example(5, 5, replay=replay), weight=0.5) for replay in (False, True)]
    known = facts([*pairs, Thumb("thumb", (1,), (2,), up=True, weight=0.25)], [False] * 3, CPU)
    loss, scale = Loss(make_spec(objective="dpo+apo_zero_unpaired")), Scale.of(known, reference, reference)
    new, learned = loss.weights(reference, known).tolist()
    assert (new, learned) == (0.5, 0.5 * replay_weights(reference[1:2, :, 0], loss.settings.beta).item())
    expected = math.log(2) * (new + learned) / 2 + 0.25 * 0.5
    assert loss(reference, reference, known, scale).item() == pytest.approx(expected, abs=1e-12)


def test_a_discount_is_in_the_ratios_and_not_in_the_logps() -> None:
    policy, reference = POLICY.clone(), REFERENCE.clone()
    policy[0, 0, 1], reference[0, 0, 1] = -30.0, -32.0
    found = preference_metrics(policy, reference, KNOWN, beta=0.1)
    assert found["logps_chosen"] == -31.0
    assert found["logratio_chosen"] == pytest.approx((2.0 - 0.5) / 2)


def step(number: int) -> StepMetrics:
    values = dict.fromkeys(
        ("loss", "rewards_chosen", "rewards_rejected", "rewards_margins", "rewards_accuracies", "logps_chosen",
         "logps_rejected", "grad_norm", "learning_rate", "seconds"), 0.0,
    )  # fmt: skip
    return StepMetrics.model_validate({"step": number, "steps": 9999, **values})


STEPS = [step(number) for number in range(1, 5 * MAX_STEPS_KEPT)]


@pytest.mark.parametrize(
    "count", [1, 2, MAX_STEPS_KEPT, MAX_STEPS_KEPT + 1, 2 * MAX_STEPS_KEPT, 5 * MAX_STEPS_KEPT - 2]
)
def test_a_history_keeps_evenly_spaced_steps_and_the_last(count: int) -> None:
    history = History()
    for made in STEPS[:count]:
        history.add(made)
    kept = [made.step for made in history.steps]
    assert (kept[0], kept[-1]) == (1, count)
    assert len(kept) <= MAX_STEPS_KEPT
    assert len(kept) >= min(count, MAX_STEPS_KEPT // 2)
    assert len({later - earlier for earlier, later in itertools.pairwise(kept[:-1])}) <= 1


def test_a_restored_history_goes_on_as_if_nothing_had_happened() -> None:
    for interrupted in (1, 100, MAX_STEPS_KEPT, MAX_STEPS_KEPT + 1, MAX_STEPS_KEPT + 2, 1300, 2100):
        whole, first = History(), History()
        for made in STEPS[:interrupted]:
            whole.add(made)
            first.add(made)
        restored = History(first.steps)
        for made in STEPS[interrupted:]:
            whole.add(made)
            restored.add(made)
        assert restored.steps == whole.steps, interrupted


def test_facts_of_a_part_are_the_part_of_the_facts() -> None:
    known = facts([*PAIRS, *THUMBS], [False] * 5 + [True], CPU)
    part = known.at([5, 0])
    assert isinstance(part, Facts)
    assert part.is_pair.tolist() == [False, True]
    assert part.mismatched.tolist() == [True, False]
    assert part.up.tolist() == [False, False]
    assert part.lengths.tolist() == [[7, 7], [30, 40]]
