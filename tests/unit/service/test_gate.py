"""Numbers to verdict: each check passes, fails or abstains, and nothing is promoted by silence (invariant 6)."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import gate
from service.contracts import Check, Verdict
from service.gate.behaviour import Answered, Behaviour
from service.gate.evidence import Comparison, Evidence, Graded, Latency, Spoken, Trial
from service.gate.settings import CHECKS, GateSettings, JudgeSettings
from service.gate.statistics import Interval
from service.parity import Parity
from tests.fake_trainer import evaluation, report, step
from training.contracts import Drift

SETTINGS = GateSettings()
Outcome = Literal["pass", "fail", "abstain"]


OF_TRAINING = ("finite", "step0", "learned", "held_out", "logp_chosen", "kl_previous", "kl_base")
OF_SERVING = (
    *("length", "eos", "repetition", "format", "over_refusal", "under_refusal", "phrases"),
    *("suite:facts", "win_rate", "parity", "latency"),
)
GOOD = {
    "drift": Drift(tokens=90, kl_previous=0.1, kl_base=0.2),
    "evaluation": {"eval_chosen_logp_drop_rate": 0.3},
}


def _judge(
    fault: str | None = None,
    settings: GateSettings = SETTINGS,
    *,
    added_by: str | None = None,
    trial: Trial | None = None,
    **changes: Any,
) -> Verdict:
    return gate.judge(Evidence(report(**(GOOD | changes)), fault, added_by=added_by, trial=trial), settings)


def _check(verdict: Verdict, name: str) -> Check:
    return next(check for check in verdict.checks if check.name == name)


def _outcome(name: str, fault: str | None = None, settings: GateSettings = SETTINGS, **changes: Any) -> Outcome:
    return _check(_judge(fault, settings, **changes), name).outcome


def test_a_good_candidate_passes_every_check_that_needs_no_trial() -> None:
    verdict = _judge()
    assert verdict.promote
    assert [(c.name, c.outcome) for c in verdict.checks] == [(name, "pass") for name in ("integrity", *OF_TRAINING)]
    assert gate.summary(verdict) == "passed 8 checks"


CASES: list[tuple[str, dict[str, Any], Outcome]] = [
    ("finite", {"nonfinite_steps": 1}, "fail"),
    ("finite", {"steps": ()}, "fail"),
    ("step0", {"step0_max_abs_logratio": 1e-4}, "pass"),
    ("step0", {"step0_max_abs_logratio": 1.1e-4}, "fail"),
    ("step0", {"step0_loss": math.log(2) + 0.9e-4}, "pass"),
    ("step0", {"step0_loss": math.log(2) + 1.1e-4}, "fail"),
    ("step0", {"step0_loss": math.log(2) - 1.1e-4}, "fail"),
    ("step0", {"step0_loss": 0.0}, "fail"),
    ("step0", {"step0_loss": 0.25, "step0_expected_loss": 0.25}, "pass"),
    ("step0", {"step0_loss": math.log(2), "step0_expected_loss": 0.25}, "fail"),
    ("learned", {"weights_changed": False}, "fail"),
    ("learned", {"steps": (step(1, rewards_margins=0.01),)}, "pass"),
    ("learned", {"steps": (step(1, rewards_margins=0.0099),)}, "fail"),
    ("learned", {"steps": (step(1, rewards_margins=-0.4),)}, "fail"),
    ("learned", {"steps": ()}, "fail"),
    ("learned", {"steps": (step(1, rewards_margins=None),)}, "abstain"),
    ("learned", {"steps": tuple(step(n, rewards_margins=(None, 0.5)[n % 2]) for n in range(1, 9))}, "pass"),
    ("held_out", {"candidate_correct_current_wrong": 9, "current_correct_candidate_wrong": 3}, "pass"),
    ("held_out", {"candidate_correct_current_wrong": 3, "current_correct_candidate_wrong": 1}, "abstain"),
    ("held_out", {"candidate_correct_current_wrong": 1, "current_correct_candidate_wrong": 0}, "pass"),
    ("held_out", {"candidate_correct_current_wrong": 0, "current_correct_candidate_wrong": 0}, "abstain"),
    (
        "held_out",
        {
            "current": evaluation(accuracy=1.0),
            "candidate": evaluation(accuracy=1.0),
            "candidate_correct_current_wrong": 0,
        },
        "pass",
    ),
    ("held_out", {"current": evaluation(accuracy=0.8), "candidate": evaluation(accuracy=0.79)}, "fail"),
    ("held_out", {"candidate": evaluation(pairs=4, accuracy=1.0)}, "pass"),
    ("held_out", {"candidate": evaluation(pairs=3, accuracy=1.0)}, "abstain"),
    ("held_out", {"candidate": None}, "abstain"),
    ("held_out", {"current": None}, "abstain"),
    ("held_out", {"current": None, "candidate": None}, "abstain"),
    ("logp_chosen", {"candidate": evaluation(logp_chosen=-2.5)}, "pass"),
    ("logp_chosen", {"candidate": evaluation(logp_chosen=-2.51)}, "fail"),
    ("logp_chosen", {"candidate": None}, "abstain"),
    ("kl_previous", {"drift": Drift(tokens=9, kl_previous=0.5, kl_base=0.0)}, "pass"),
    ("kl_previous", {"drift": Drift(tokens=9, kl_previous=0.51, kl_base=0.0)}, "fail"),
    ("kl_previous", {"drift": None}, "abstain"),
    ("kl_base", {"drift": Drift(tokens=9, kl_previous=0.0, kl_base=1.0)}, "pass"),
    ("kl_base", {"drift": Drift(tokens=9, kl_previous=0.0, kl_base=1.01)}, "fail"),
    ("kl_base", {"drift": None}, "abstain"),
]


@pytest.mark.parametrize(("name", "changes", "outcome"), CASES, ids=[f"{n} {str(c)[:60]}" for n, c, _ in CASES])
def test_a_check_decides_by_its_own_numbers(name: str, changes: dict[str, Any], outcome: Outcome) -> None:
    assert _outcome(name, **changes) == outcome


def test_an_adapter_that_cannot_be_served_fails_with_the_reason() -> None:
    verdict = _judge("its weights are not all finite")
    assert not verdict.promote
    assert gate.summary(verdict) == "integrity: its weights are not all finite"


def test_only_the_last_quarter_of_the_steps_shows_what_was_learned() -> None:
    late = [step(n, rewards_margins=0.0) for n in range(1, 7)] + [step(n, rewards_margins=0.02) for n in (7, 8)]
    early = [step(n, rewards_margins=5.0) for n in range(1, 7)] + [step(n, rewards_margins=0.0) for n in (7, 8)]
    assert _outcome("learned", steps=late) == "pass"
    assert _outcome("learned", steps=early) == "fail"


def test_a_loss_stuck_at_ln_2_is_not_promoted() -> None:
    stuck = [step(n, loss=math.log(2), rewards_margins=0.0, rewards_accuracies=0.5) for n in range(1, 9)]
    assert not _judge(steps=stuck).promote


@pytest.mark.parametrize(
    ("bound", "name", "changes"),
    [
        ({"min_held_out_pairs": 7}, "held_out", {}),
        ({"step0_tolerance": 0.0}, "step0", {"step0_max_abs_logratio": 1e-9}),
        ({"min_final_margin": 0.41}, "learned", {}),
    ],
    ids=str,
)
def test_the_bounds_are_the_settings(bound: dict[str, Any], name: str, changes: dict[str, Any]) -> None:
    assert _outcome(name, **changes) == "pass"
    assert _outcome(name, settings=GateSettings(**bound), **changes) != "pass"


def test_a_check_names_its_value_and_bound() -> None:
    verdict = _judge(candidate=evaluation(accuracy=0.25))
    check = _check(verdict, "held_out")
    assert (check.value, check.bound) == (0.25, 0.5)


def test_how_many_liked_answers_became_less_likely_is_said() -> None:
    assert "; 30% became less likely" in _check(_judge(), "logp_chosen").why


def test_the_summary_names_every_check_that_stopped_it() -> None:
    verdict = _judge(nonfinite_steps=2, weights_changed=False, candidate=None)
    summary = gate.summary(verdict)
    assert [name for name in ("integrity", "finite", "step0", "learned", "held_out") if f"{name}: " in summary] == [
        "finite",
        "learned",
        "held_out",
    ]


@given(
    fault=st.none() | st.just("broken"),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "nonfinite_steps": st.integers(0, 2),
            "weights_changed": st.booleans(),
            "step0_max_abs_logratio": st.sampled_from([0.0, 1e-3]),
            "steps": st.sampled_from([(), (step(1),), (step(1, rewards_margins=0.0),)]),
            "candidate": st.none() | st.builds(evaluation, pairs=st.integers(0, 9), accuracy=st.floats(0, 1)),
            "current": st.none() | st.builds(evaluation, pairs=st.integers(0, 9), accuracy=st.floats(0, 1)),
        },
    ),
)
def test_only_a_candidate_that_no_check_stops_is_promoted(fault: str | None, changes: dict[str, Any]) -> None:
    verdict = _judge(fault, **changes)
    assert verdict.promote == (not any(check.stops for check in verdict.checks))
    assert all(check.stops for check in verdict.checks if check.outcome == "fail")
    assert len({check.name for check in verdict.checks}) == 8
    assert verdict.promote == gate.summary(verdict).startswith("passed")


# --- parity -------------------------------------------------------------------------------------------


def _parity(mean_abs: float | None, tokens: int = 50, serving_dtype: str = "float32") -> Parity:
    return Parity(
        samples=4, tokens=tokens, mean_abs=mean_abs, max_abs=mean_abs,
        training_dtype="float32", serving_dtype=serving_dtype,
    )  # fmt: skip


PARITIES: list[tuple[Parity, GateSettings, Outcome]] = [
    (_parity(0.0), SETTINGS, "pass"),
    (_parity(0.01), SETTINGS, "pass"),
    (_parity(0.011), SETTINGS, "fail"),
    (_parity(0.05, serving_dtype="bfloat16"), SETTINGS, "pass"),
    (_parity(0.051, serving_dtype="bfloat16"), SETTINGS, "fail"),
    (_parity(0.05), GateSettings(parity_tolerance=0.06), "pass"),
    (_parity(0.05, serving_dtype="bfloat16"), GateSettings(parity_tolerance=0.001), "fail"),
    (_parity(None), SETTINGS, "fail"),
    (_parity(None, tokens=0), SETTINGS, "abstain"),
]


@pytest.mark.parametrize(("parity", "settings", "outcome"), PARITIES)
def test_serving_must_agree_with_training(parity: Parity, settings: GateSettings, outcome: Outcome) -> None:
    verdict = _judge(settings=settings, trial=_trial(parity=parity))
    assert _check(verdict, "parity").outcome == outcome
    assert verdict.promote == (outcome == "pass")


def test_without_samples_there_is_no_check_of_parity() -> None:
    assert "parity" not in [check.name for check in _judge(trial=_trial(parity=None)).checks]


# --- on trial -----------------------------------------------------------------------------------------


def _behaviour(tokens: int = 10) -> Behaviour:
    plain = Answered(tokens, ended=True, loops=False, well_formed=True, refuses=False, harmful=False)
    return Behaviour((plain,) * 9 + (Answered(tokens, True, False, True, refuses=True, harmful=True),))


def _trial(**changes: Any) -> Trial:
    """A trial that passes, but for what is changed."""
    fields = {
        "parity": _parity(0.0),
        "current": _behaviour(),
        "candidate": _behaviour(),
        "said": (Spoken("a question", "an answer", "another answer"),) * 9,
        "suites": {"facts": (Graded("sums", True, True, True),) * 9},
        "latency": Latency(0.010, 0.015),
    }
    return Trial(**(fields | changes))


def _win(low: float, high: float) -> Comparison:
    rate = Interval((low + high) / 2, low, high)
    return Comparison(prompts=99, win_rate=rate, plain=rate, ties=0.1, swayed=0.05)


def test_a_candidate_that_does_as_well_on_trial_passes() -> None:
    verdict = _judge(trial=_trial())
    assert verdict.promote
    assert [check.name for check in verdict.checks] == ["integrity", "loadable", *OF_TRAINING, *OF_SERVING]
    assert {check.name for check in verdict.checks if check.outcome != "pass"} == {"win_rate"}
    assert gate.summary(verdict) == "passed 19 checks; without a word of win_rate"


def test_one_that_no_replica_can_load_fails_and_nothing_else_is_said_of_it() -> None:
    verdict = _judge(trial=Trial(fault="the engine does not load it"))
    assert gate.summary(verdict) == "loadable: the engine does not load it"
    assert [check.name for check in verdict.checks] == ["integrity", "loadable", *OF_TRAINING]


ON_TRIAL: list[tuple[str, dict[str, Any], Outcome]] = [
    ("length", {"candidate": _behaviour(tokens=25)}, "pass"),
    ("length", {"candidate": _behaviour(tokens=26)}, "fail"),
    ("length", {"candidate": _behaviour(tokens=4)}, "pass"),
    ("length", {"candidate": _behaviour(tokens=3)}, "fail"),
    ("length", {"current": _behaviour(tokens=0)}, "abstain"),
    ("eos", {"current": None, "candidate": None}, "abstain"),
    ("latency", {"latency": Latency(0.010, 0.030)}, "pass"),
    ("latency", {"latency": Latency(0.010, 0.031)}, "fail"),
    ("latency", {"latency": None}, "abstain"),
    ("win_rate", {"comparison": None}, "abstain"),
    ("win_rate", {"comparison": _win(0.5, 0.7)}, "pass"),
    ("win_rate", {"comparison": _win(0.45, 0.65)}, "abstain"),
    ("win_rate", {"comparison": _win(0.2, 0.49)}, "fail"),
    ("suite:facts", {"suites": {"facts": (Graded("sums", None, None, None),)}}, "abstain"),
]


@pytest.mark.parametrize(("name", "changes", "outcome"), ON_TRIAL)
def test_a_check_of_serving_decides_by_its_own_numbers(name: str, changes: dict[str, Any], outcome: Outcome) -> None:
    verdict = _judge(trial=_trial(**changes))
    assert _check(verdict, name).outcome == outcome
    assert verdict.promote == (outcome != "fail")


def test_with_a_judge_the_win_rate_must_decide() -> None:
    asked = GateSettings(judge=JudgeSettings(base_url="http://judge", model="wise"))
    verdict = _judge(settings=asked, trial=_trial(no_comparison="the judge does not answer"))
    assert gate.summary(verdict) == "win_rate: the judge does not answer"


def test_an_abstention_counts_where_the_check_is_needed() -> None:
    assert _judge(drift=None).promote
    assert not _judge(settings=GateSettings(needed=("kl_base",)), drift=None).promote
    assert _judge(settings=GateSettings(needed=()), candidate=None).promote


def test_a_failure_counts_whether_the_check_is_needed_or_not() -> None:
    assert not _judge(settings=GateSettings(needed=()), nonfinite_steps=1).promote


def test_only_checks_that_exist_can_be_needed() -> None:
    with pytest.raises(ValueError, match="no such check: vibes"):
        GateSettings(needed=("vibes",))
    named = {check.name.split(":")[0] for check in (*_judge(trial=_trial()).checks, *_judge(added_by="tess").checks)}
    assert named == set(CHECKS)


# --- from outside -------------------------------------------------------------------------------------


def test_a_candidate_from_outside_is_judged_by_how_it_answers_alone() -> None:
    verdict = _judge(added_by="tess", steps=(), step0_loss=0.0, nonfinite_steps=0)
    names = [check.name for check in verdict.checks]
    assert names == [
        "integrity",
        "outside",
        *(name for name in OF_TRAINING if name not in ("finite", "step0", "learned")),
    ]
    assert "brought from outside by tess" in verdict.checks[1].why
    assert verdict.promote


@pytest.mark.parametrize("changes", [{"current": None, "candidate": None}, {"candidate": evaluation(accuracy=0.1)}])
def test_a_candidate_from_outside_must_win_on_held_out_pairs_all_the_same(changes: dict[str, Any]) -> None:
    assert not _judge(added_by="tess", steps=(), **changes).promote
