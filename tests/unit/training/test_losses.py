"""Golden numbers, in float64; those of losses that TRL 1.16 has are reproduced to nine digits by its own code."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.losses import (
    PAIR_LOSSES,
    THUMB_LOSSES,
    LossSettings,
    PairBatch,
    ThumbBatch,
    cdpo,
    dpo_sigmoid,
    hinge,
    kto_baseline,
    pair_losses,
    replay_weights,
    robust,
    thumb_losses,
)
from training.objective import PAIRED, UNPAIRED, Objective, parse

nats = st.floats(-300, 300, allow_subnormal=False)


def doubles(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def nine_digits(values: object) -> object:
    return pytest.approx(values, abs=1e-9, rel=0)


PAIRS = PairBatch(
    policy=doubles([[-42, -55], [-20, -18]]),
    reference=doubles([[-45, -50], [-19.5, -18.5]]),
    lengths=doubles([[30, 40], [10, 12]]),
    chosen_logps=doubles([-42, -20]),
    tokens_per_chosen=20.0,
    weights=doubles([1, 1]),
)
SETTINGS = LossSettings(beta=0.1)
SMOOTHED = LossSettings(beta=0.1, label_smoothing=0.1)

GOLDEN_PAIRS = [
    ("dpo", SETTINGS, [0.371100666, 0.744396660], 0.557748663),
    ("cdpo", SMOOTHED, [0.451100666, 0.734396660], 0.592748663),
    ("robust", SMOOTHED, [0.271100666, 0.756896660], 0.513998663),
    ("hinge", SETTINGS, [0.2, 1.1], 0.65),
    ("ipo_sum", SETTINGS, [9, 36], 22.5),
    ("ipo", SETTINGS, [22.800625, 25.925069444], 24.362847222),
    ("sigmoid_norm", SETTINGS, [0.681960460, 0.697741017], 0.689850739),
    ("sigmoid_norm", LossSettings(beta=5), [0.281150136, 0.948345857], 0.614747996),
    ("nll", SETTINGS, [1.4, 2.0], 1.7),
    ("nll_tokens", SETTINGS, [2.1, 1.0], 1.55),
    ("rpo", SETTINGS, [1.771100666, 2.744396660], 2.257748663),
    ("dpo+nll_tokens", SETTINGS, [2.471100666, 1.744396660], 2.107748663),
    ("0.5*dpo+0.25*hinge", SETTINGS, [0.235550333, 0.647198330], 0.441374332),
]


def losses(objective: str, batch: PairBatch, settings: LossSettings) -> Tensor:
    return pair_losses(parse(objective).paired, batch, settings)


@pytest.mark.parametrize(("objective", "settings", "each", "mean"), GOLDEN_PAIRS)
def test_golden_losses_of_pairs(objective: str, settings: LossSettings, each: list[float], mean: float) -> None:
    found = losses(objective, PAIRS, settings)
    assert found.dtype == torch.float64
    assert found.tolist() == nine_digits(each)
    assert found.mean().item() == nine_digits(mean)


@pytest.mark.parametrize(
    ("objective", "settings", "by_difference"),
    [
        ("dpo", SETTINGS, [-0.031002552, -0.052497919]),
        ("cdpo", SMOOTHED, [-0.021002552, -0.042497919]),
        ("robust", SMOOTHED, [-0.043502552, -0.064997919]),
        ("hinge", SETTINGS, [-0.1, -0.1]),
        ("ipo_sum", SETTINGS, [6, -12]),
    ],
)
def test_golden_gradients_by_the_difference_of_log_ratios(
    objective: str, settings: LossSettings, by_difference: list[float]
) -> None:
    policy = PAIRS.policy.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses(objective, replace(PAIRS, policy=policy), settings).sum(), policy)
    assert gradient[:, 0].tolist() == nine_digits(by_difference)
    assert gradient[:, 1].tolist() == nine_digits([-value for value in by_difference])


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_a_policy_that_is_its_reference_has_a_dpo_loss_of_exactly_ln_2(beta: float) -> None:
    at_start = replace(PAIRS, policy=PAIRS.reference)
    assert losses("dpo", at_start, LossSettings(beta)).tolist() == [math.log(2)] * 2


def test_the_nll_sees_the_whole_chosen_answer_where_the_tail_is_discounted() -> None:
    discounted = replace(PAIRS, policy=PAIRS.policy / 2)
    assert losses("nll", discounted, SETTINGS).tolist() == nine_digits([1.4, 2.0])


@pytest.mark.parametrize("objective", ["dpo", "rpo"])
def test_a_pair_counts_by_its_weight(objective: str) -> None:
    full = losses(objective, PAIRS, SETTINGS)
    weighted = losses(objective, replace(PAIRS, weights=doubles([0.25, 0])), SETTINGS)
    assert weighted.tolist() == [0.25 * full[0].item(), 0]


@pytest.mark.parametrize("label_smoothing", [0.5, 0.9])
def test_robust_refuses_votes_that_are_mostly_wrong(label_smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        robust(PAIRS, LossSettings(label_smoothing=label_smoothing))


def one_pair(chosen: float, rejected: float) -> PairBatch:
    """A pair with these log-ratios."""
    return PairBatch(
        policy=doubles([[chosen, rejected]]),
        reference=doubles([[0, 0]]),
        lengths=doubles([[1, 1]]),
        chosen_logps=doubles([chosen]),
        tokens_per_chosen=1.0,
        weights=doubles([1]),
    )


@given(nats, nats)
def test_without_label_smoothing_cdpo_and_robust_are_dpo(chosen: float, rejected: float) -> None:
    pair = one_pair(chosen, rejected)
    assert cdpo(pair, SETTINGS).item() == dpo_sigmoid(pair, SETTINGS).item()
    assert robust(pair, SETTINGS).item() == dpo_sigmoid(pair, SETTINGS).item()


@given(nats, nats, st.floats(0, 1))
def test_cdpo_of_a_vote_is_that_of_the_flipped_vote_with_the_opposite_share_of_errors(
    chosen: float, rejected: float, wrong: float
) -> None:
    as_voted = cdpo(one_pair(chosen, rejected), LossSettings(label_smoothing=wrong))
    flipped = cdpo(one_pair(rejected, chosen), LossSettings(label_smoothing=1 - wrong))
    assert as_voted.item() == pytest.approx(flipped.item(), rel=1e-12, abs=1e-12)


@given(nats, nats, st.floats(0, 0.45))
def test_robust_is_dpo_of_the_true_vote_on_average_over_flipped_ones(
    chosen: float, rejected: float, flipped_share: float
) -> None:
    settings = LossSettings(label_smoothing=flipped_share)
    true, flipped = one_pair(chosen, rejected), one_pair(rejected, chosen)
    average = (1 - flipped_share) * robust(true, settings) + flipped_share * robust(flipped, settings)
    assert average.item() == pytest.approx(dpo_sigmoid(true, settings).item(), rel=1e-9, abs=1e-9)


@given(nats, nats)
def test_a_hinge_is_satisfied_by_a_margin_of_one(chosen: float, rejected: float) -> None:
    satisfied = 0.1 * (chosen - rejected) >= 1
    assert (hinge(one_pair(chosen, rejected), SETTINGS).item() == 0) == satisfied


def thumbs(log_ratios: list[float], up: list[bool], baseline: float = 0.0) -> ThumbBatch:
    reference = torch.linspace(-50, -10, len(up), dtype=torch.float64)
    of_each = torch.ones(len(up), dtype=torch.float64)
    return ThumbBatch(reference + doubles(log_ratios), reference, torch.tensor(up), doubles(baseline), of_each)


LOG_RATIOS, UP = [3.0, -5.0, -0.5, 0.5], [True, False, True, False]


def thumbs_losses(objective: str, batch: ThumbBatch, settings: LossSettings = SETTINGS) -> Tensor:
    return thumb_losses(parse(objective).unpaired, batch, settings)


def test_golden_losses_of_thumbs() -> None:
    baseline = kto_baseline(doubles([-29.6, -30.2, -29.7, -29.9]), doubles([-30] * 4))
    assert baseline.item() == nine_digits(0.15)
    found = thumbs_losses("kto", replace(thumbs(LOG_RATIOS, UP), baseline=baseline))
    assert found.dtype == torch.float64
    assert found.tolist() == nine_digits([0.429228388, 0.374022142, 0.516244281, 0.508749107])
    assert found.mean().item() == nine_digits(0.457060980)


def test_a_baseline_is_never_below_zero_and_then_kto_is_apo_zero_unpaired() -> None:
    baseline = kto_baseline(doubles([-30.4, -30.2, -29.9, -29.9]), doubles([-30] * 4))
    assert baseline.item() == 0
    kto = thumbs_losses("kto", replace(thumbs(LOG_RATIOS, UP), baseline=baseline))
    assert kto.mean().item() == nine_digits(0.457023236)
    assert kto.tolist() == thumbs_losses("apo_zero_unpaired", thumbs(LOG_RATIOS, UP, baseline=7.0)).tolist()


def test_a_baseline_carries_no_gradient_and_is_zero_without_answers() -> None:
    assert not kto_baseline(doubles([1.0]).requires_grad_(), doubles([0.0])).requires_grad
    nothing = kto_baseline(doubles([]), doubles([]))
    assert nothing.shape == ()
    assert nothing.item() == 0


def test_thumbs_up_and_down_have_weights_of_their_own_and_the_term_one_for_both() -> None:
    plain = thumbs_losses("kto", thumbs(LOG_RATIOS, UP, 0.15)).tolist()
    settings = replace(SETTINGS, desirable_weight=2.0, undesirable_weight=3.0)
    weighted = thumbs_losses("dpo+0.5*kto", thumbs(LOG_RATIOS, UP, 0.15), settings).tolist()
    assert weighted == nine_digits([factor * loss for factor, loss in zip([1, 1.5, 1, 1.5], plain, strict=True)])


@pytest.mark.parametrize("objective", ["kto", "0.5*apo_zero_unpaired"])
def test_a_thumb_counts_by_its_weight(objective: str) -> None:
    batch = thumbs(LOG_RATIOS, UP, 0.15)
    full = thumbs_losses(objective, batch).tolist()
    weights = [1, 0.5, 0.25, 0]
    weighted = thumbs_losses(objective, replace(batch, weights=doubles(weights))).tolist()
    assert weighted == [weight * loss for weight, loss in zip(weights, full, strict=True)]


@given(nats, st.booleans(), st.floats(0, 100))
def test_a_thumb_pulls_its_answer_up_or_pushes_it_down(log_ratio: float, up: bool, baseline: float) -> None:
    policy = doubles([log_ratio]).requires_grad_()
    batch = ThumbBatch(policy, doubles([0.0]), torch.tensor([up]), doubles(baseline), doubles([1.0]))
    loss = thumbs_losses("kto", batch)
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert 0 <= loss.item() <= 1
    assert gradient.item() <= 0 if up else gradient.item() >= 0


def test_replayed_pairs_count_in_full_until_the_reference_prefers_the_chosen_answer() -> None:
    reference = doubles([[-30, -10], [-10, -10], [-10, -20], [-10, -110]])
    assert replay_weights(reference, beta=0.1).tolist() == nine_digits([1, 1, 2 / (1 + math.e), 2 / (1 + math.exp(10))])


@given(nats, nats, st.floats(0.01, 5))
def test_a_replayed_pair_never_counts_more_than_a_new_one_nor_less_than_nothing(
    chosen: float, rejected: float, beta: float
) -> None:
    weight = replay_weights(doubles([[chosen, rejected]]), beta).item()
    assert 0 <= weight <= 1
    assert (weight == 1) or chosen > rejected


def test_each_loss_that_an_objective_may_name_has_its_function() -> None:
    assert PAIR_LOSSES.keys() == PAIRED.keys()
    assert THUMB_LOSSES.keys() == UNPAIRED.keys()


@pytest.mark.parametrize("name", PAIRED)
def test_all_losses_of_pairs_stay_finite_far_from_the_reference(name: str) -> None:
    policy = doubles([[-5000, 0], [0, -5000]]).requires_grad_()
    batch = replace(PAIRS, policy=policy, chosen_logps=policy[:, 0])
    found = losses(name, batch, SMOOTHED)
    (gradient,) = torch.autograd.grad(found.sum(), policy)
    assert found.isfinite().all()
    assert gradient.isfinite().all()


def test_no_terms_cost_nothing() -> None:
    nothing = Objective(paired=(), unpaired=())
    assert pair_losses(nothing.paired, PAIRS, SETTINGS).tolist() == [0, 0]
    assert thumb_losses(nothing.unpaired, thumbs(LOG_RATIOS, UP), SETTINGS).tolist() == [0] * 4
