"""The figure of a round: valid, the same bytes for the same numbers, and complete."""

from __future__ import annotations

import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from training.contracts import Evaluation, StepMetrics
from training.curves import PANELS, draw

SVG = "{http://www.w3.org/2000/svg}"
DEPLOYED = Evaluation(pairs=120, accuracy=0.61, mean_margin=1.2, mean_logp_chosen=-1.31)
CANDIDATE = Evaluation(pairs=120, accuracy=0.7, mean_margin=2.9, mean_logp_chosen=-1.33)
NO_PAIRS = {
    "rewards_margins": None,
    "rewards_accuracies": None,
    "rewards_rejected": None,
    "logps_rejected": None,
    "kl": 0.1,
}


def step(number: int, steps: int, **fields: Any) -> StepMetrics:
    progress = number / steps
    defaults: dict[str, Any] = {
        "loss": 0.69 - 0.3 * progress,
        "rewards_chosen": 0.3 * progress,
        "rewards_rejected": -0.5 * progress,
        "rewards_margins": 0.8 * progress,
        "rewards_accuracies": progress,
        "logps_chosen": -31 - progress,
        "logps_rejected": -36 - progress,
        "grad_norm": 1 + progress,
        "learning_rate": 1e-4 * progress,
        "seconds": float(number),
    }
    return StepMetrics.model_validate({"step": number, "steps": steps, **defaults, **fields})


def steps(count: int, **fields: Any) -> list[StepMetrics]:
    return [step(number, count, **fields) for number in range(1, count + 1)]


def texts(svg: bytes) -> set[str]:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return {"".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")}


def test_each_curve_of_pairs_is_there_with_its_unit() -> None:
    found = texts(draw(steps(5)))
    assert {"Loss", "Rewards", "Accuracy", "Log-probs", "Gradient norm", "Learning rate"} <= found
    assert {"chosen", "rejected", "margin", "optimiser step", "Optimiser steps: 5"} <= found
    assert {"beta × log-ratio, nats", "share of pairs with margin > 0", "nats per answer"} <= found
    assert "KTO baseline" not in found


def test_a_round_of_thumbs_alone_has_its_baseline_and_no_accuracy() -> None:
    found = texts(draw(steps(5, **NO_PAIRS)))
    assert {"Loss", "Rewards", "KTO baseline", "Gradient norm"} <= found
    assert not {"Accuracy", "rejected", "margin"} & found


def test_steps_with_nothing_to_say_are_passed_over() -> None:
    mixed = [step(1, 3), step(2, 3, **NO_PAIRS), step(3, 3)]
    assert {"margin", "KTO baseline"} <= texts(draw(mixed))


def test_a_single_step_is_a_figure() -> None:
    assert "Optimiser steps: 1" in texts(draw(steps(1)))


def test_a_thinned_out_round_says_so() -> None:
    assert "Optimiser steps: 900, 2 of them drawn" in texts(draw([step(1, 900), step(900, 900)]))


def test_held_out_results_stand_beside_the_curves_they_belong_to() -> None:
    evaluation = {"eval_loss": 0.42, "eval_rewards/margins": 0.7, "eval_samples_per_second": 3.0}
    found = texts(draw(steps(5), evaluation, DEPLOYED, CANDIDATE))
    assert {"loss, held out", "margin, held out"} <= found
    assert "accuracy, held out" not in found
    (summary,) = [text for text in found if text.startswith("Optimiser steps: 5")]
    assert "120 held-out pairs" in summary
    assert "accuracy 0.610 → 0.700" in summary
    assert "log p(chosen) -1.310 → -1.330 nats per token" in summary


def test_the_same_numbers_give_the_same_bytes_whatever_style_is_set() -> None:
    first = draw(steps(50), {"eval_loss": 0.42}, DEPLOYED, CANDIDATE)
    with matplotlib.rc_context({"lines.linewidth": 9, "svg.fonttype": "path"}):
        assert draw(steps(50), {"eval_loss": 0.42}, DEPLOYED, CANDIDATE) == first
        assert matplotlib.rcParams["lines.linewidth"] == 9
    assert draw(steps(50), {"eval_loss": 0.43}, DEPLOYED, CANDIDATE) != first


def test_another_process_gives_the_same_bytes_and_needs_no_pyplot() -> None:
    code = (
        "import sys; from training.contracts import StepMetrics; from training.curves import draw\n"
        f"sys.stdout.buffer.write(draw([StepMetrics.model_validate_json({step(1, 1).model_dump_json()!r})]))\n"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    assert found == draw(steps(1))


def test_every_curve_is_a_metric_under_trls_name() -> None:
    metrics = step(1, 1).model_dump(by_alias=True)
    assert {series.metric for panel in PANELS for series in panel.series} <= metrics.keys()


def test_a_round_without_steps_has_no_curves() -> None:
    with pytest.raises(ValueError, match="without steps"):
        draw([])
