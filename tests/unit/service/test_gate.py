"""Numbers to verdict: each check passes, fails or abstains, and nothing is promoted by silence (invariant 6)."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import gate
from service.parity import Parity
from service.settings import GateSettings
from tests.fake_trainer import evaluation, report, step

SETTINGS = GateSettings()
Outcome = Literal["pass", "fail", "abstain"]


def _outcome(name: str, fault: str | None = None, settings: GateSettings = SETTINGS, **changes: Any) -> Outcome:
    verdict = gate.judge(report(**changes), fault, settings)
    return next(check.outcome for check in verdict.checks if check.name == name)


def test_a_good_candidate_passes_every_check() -> None:
    verdict = gate.judge(report(), None, SETTINGS)
    assert verdict.promote
    assert [(c.name, c.outcome) for c in verdict.checks] == [
        (name, "pass") for name in ("integrity", "finite", "step0", "learned", "held_out")
    ]
    assert gate.summary(verdict) == "passed 5 checks"


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
    ("held_out", {"current": evaluation(accuracy=0.8), "candidate": evaluation(accuracy=0.8)}, "pass"),
    ("held_out", {"current": evaluation(accuracy=0.8), "candidate": evaluation(accuracy=0.79)}, "fail"),
    ("held_out", {"candidate": evaluation(pairs=4, accuracy=1.0)}, "pass"),
    ("held_out", {"candidate": evaluation(pairs=3, accuracy=1.0)}, "abstain"),
    ("held_out", {"candidate": None}, "abstain"),
    ("held_out", {"current": None}, "abstain"),
    ("held_out", {"current": None, "candidate": None}, "abstain"),
]


@pytest.mark.parametrize(("name", "changes", "outcome"), CASES, ids=[f"{n} {str(c)[:60]}" for n, c, _ in CASES])
def test_a_check_decides_by_its_own_numbers(name: str, changes: dict[str, Any], outcome: Outcome) -> None:
    assert _outcome(name, **changes) == outcome


def test_an_adapter_that_cannot_be_served_fails_with_the_reason() -> None:
    verdict = gate.judge(report(), "its weights are not all finite", SETTINGS)
    assert not verdict.promote
    assert gate.summary(verdict) == "integrity: its weights are not all finite"


def test_only_the_last_quarter_of_the_steps_shows_what_was_learned() -> None:
    late = [step(n, rewards_margins=0.0) for n in range(1, 7)] + [step(n, rewards_margins=0.02) for n in (7, 8)]
    early = [step(n, rewards_margins=5.0) for n in range(1, 7)] + [step(n, rewards_margins=0.0) for n in (7, 8)]
    assert _outcome("learned", steps=late) == "pass"
    assert _outcome("learned", steps=early) == "fail"


def test_a_loss_stuck_at_ln_2_is_not_promoted() -> None:
    stuck = [step(n, loss=math.log(2), rewards_margins=0.0, rewards_accuracies=0.5) for n in range(1, 9)]
    assert not gate.judge(report(steps=stuck), None, SETTINGS).promote


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
    verdict = gate.judge(report(candidate=evaluation(accuracy=0.25)), None, SETTINGS)
    check = next(check for check in verdict.checks if check.name == "held_out")
    assert (check.value, check.bound) == (0.25, 0.5)


def test_the_summary_names_every_check_that_stopped_it() -> None:
    verdict = gate.judge(report(nonfinite_steps=2, weights_changed=False, candidate=None), None, SETTINGS)
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
def test_only_a_candidate_that_passes_all_checks_is_promoted(fault: str | None, changes: dict[str, Any]) -> None:
    verdict = gate.judge(report(**changes), fault, SETTINGS)
    assert verdict.promote == all(check.outcome == "pass" for check in verdict.checks)
    assert len({check.name for check in verdict.checks}) == 5
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
    verdict = gate.judge(report(), None, settings, parity=parity)
    [check] = [check for check in verdict.checks if check.name == "parity"]
    assert check.outcome == outcome
    assert verdict.promote == (outcome == "pass")


def test_without_samples_there_is_no_check_of_parity() -> None:
    assert "parity" not in [check.name for check in gate.judge(report(), None, SETTINGS).checks]


# --- from outside -------------------------------------------------------------------------------------


def test_a_candidate_from_outside_is_judged_by_how_it_answers_alone() -> None:
    untrained = {"steps": (), "step0_loss": 0.0, "nonfinite_steps": 0}
    verdict = gate.judge(report(**untrained), None, SETTINGS, added_by="tess")
    assert [check.name for check in verdict.checks] == ["integrity", "outside", "held_out"]
    assert "brought from outside by tess" in verdict.checks[1].why
    assert verdict.promote


@pytest.mark.parametrize("changes", [{"current": None, "candidate": None}, {"candidate": evaluation(accuracy=0.1)}])
def test_a_candidate_from_outside_must_win_on_held_out_pairs_all_the_same(changes: dict[str, Any]) -> None:
    assert not gate.judge(report(steps=(), **changes), None, SETTINGS, added_by="tess").promote
