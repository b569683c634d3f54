"""The curves of a round as one SVG figure: what a person looks at before believing a verdict.

A pure function of a report's numbers: the same numbers give the same bytes. Knows no file; `trackers.py` serves those
who want to zoom and compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.contracts import Evaluation, StepMetrics

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
_BLUE, _VERMILION, _GREEN = "#0072B2", "#D55E00", "#009E73"

_COLUMNS = 3
_WIDTH, _HEIGHT = 4.2, 2.9  # inches of one panel, with the room around it:
_LEFT, _RIGHT, _BELOW, _ABOVE = 0.75, 0.15, 0.55, 0.35  # inches; matplotlib's own layouts draw everything twice
_TITLE = 0.4  # inches of the figure's title
_POINTS_WITH_MARKERS = 40  # more than these in one line would hide it

_STYLE = {
    "svg.hashsalt": "heliotrope",  # else the identifiers in the file are random
    "svg.fonttype": "none",  # text stays text: to be searched, and to be read aloud
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": "small",
}


@dataclass(frozen=True)
class Series:
    """One line: a metric under TRL's name."""

    metric: str
    label: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """Lines that share a unit."""

    title: str
    unit: str
    series: tuple[Series, ...]
    limits: tuple[float, float] | None = None


Curve = list[tuple[int, float]]  # step and value

PANELS = (
    Panel("Loss", "mean of the step", (Series("loss", "loss", _BLUE),)),
    Panel(
        "Rewards",
        "beta × log-ratio, nats",
        (
            Series("rewards/chosen", "chosen", _BLUE),
            Series("rewards/rejected", "rejected", _VERMILION),
            Series("rewards/margins", "margin", _GREEN),
        ),
    ),
    Panel(
        "Accuracy",
        "share of pairs with margin > 0",
        (Series("rewards/accuracies", "accuracy", _BLUE),),
        limits=(-0.03, 1.03),
    ),
    Panel(
        "Log-probs",
        "nats per answer",
        (Series("logps/chosen", "chosen", _BLUE), Series("logps/rejected", "rejected", _VERMILION)),
    ),
    Panel("KTO baseline", "z0, nats", (Series("kl", "z0", _BLUE),)),
    Panel("Gradient norm", "before clipping", (Series("grad_norm", "gradient norm", _BLUE),)),
    Panel("Learning rate", "of AdamW", (Series("learning_rate", "learning rate", _BLUE),)),
)


def draw(
    steps: Sequence[StepMetrics],
    evaluation: Mapping[str, float] | None = None,
    current: Evaluation | None = None,
    candidate: Evaluation | None = None,
) -> bytes:
    """The round's metrics over its steps, as SVG in UTF-8.

    `evaluation` has TRL's `eval_` names: those of a drawn metric are marked at the last step. The two policies'
    results on the held-out pairs stand above. A panel without a single value is left out. Raises `ValueError` when
    there are no steps.
    """
    if not steps:
        raise ValueError("a round without steps has no curves")
    curves = _curves(steps)
    panels = [panel for panel in PANELS if any(curves[series.metric] for series in panel.series)]
    rows = ceil(len(panels) / _COLUMNS)
    # The style is put back afterwards, and figures are made without pyplot, which would keep them all.
    with matplotlib.style.context(["default", _STYLE]):
        figure = _figure(rows)
        figure.suptitle(_summary(len(steps), steps[-1].steps, current, candidate), fontsize="medium")
        for place, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(rows, _COLUMNS, place)
            _draw_lines(axes, panel, curves)
            _mark_held_out(axes, panel, evaluation or {}, last_step=steps[-1].step)
            _label(axes, panel)
        svg = BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()


def _figure(rows: int) -> Figure:
    """An empty one, with room around each of its panels."""
    width, height = _WIDTH * _COLUMNS, _HEIGHT * rows + _TITLE
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        left=_LEFT / width,
        right=1 - _RIGHT / width,
        bottom=_BELOW / height,
        top=1 - (_TITLE + _ABOVE) / height,
        wspace=(_LEFT + _RIGHT) / (_WIDTH - _LEFT - _RIGHT),  # as shares of a panel's own size
        hspace=(_BELOW + _ABOVE) / (_HEIGHT - _BELOW - _ABOVE),
    )
    return figure


def _curves(steps: Sequence[StepMetrics]) -> dict[str, Curve]:
    """Metric -> its values; a step that has nothing to say about it is left out."""
    dumps = [step.model_dump(by_alias=True) for step in steps]
    metrics = [series.metric for panel in PANELS for series in panel.series]
    return {name: [(dump["step"], dump[name]) for dump in dumps if dump[name] is not None] for name in metrics}


def _draw_lines(axes: Axes, panel: Panel, curves: Mapping[str, Curve]) -> None:
    for series in panel.series:
        if curve := curves[series.metric]:
            numbers, values = zip(*curve, strict=True)
            marker = "o" if len(curve) <= _POINTS_WITH_MARKERS else None
            axes.plot(numbers, values, color=series.colour, label=series.label, marker=marker, markersize=3)


def _mark_held_out(axes: Axes, panel: Panel, evaluation: Mapping[str, float], last_step: int) -> None:
    for series in panel.series:
        value = evaluation.get(f"eval_{series.metric}")
        if value is not None:
            label = f"{series.label}, held out"
            axes.scatter(
                last_step, value, label=label, marker="D", facecolor="white", edgecolor=series.colour, zorder=3
            )


def _label(axes: Axes, panel: Panel) -> None:
    axes.set(title=panel.title, xlabel="optimiser step", ylabel=panel.unit, ylim=panel.limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    if len(axes.get_legend_handles_labels()[1]) > 1:  # a single line is named by the panel's title
        axes.legend()


def _summary(drawn: int, steps: int, current: Evaluation | None, candidate: Evaluation | None) -> str:
    title = f"Optimiser steps: {steps}" if drawn == steps else f"Optimiser steps: {steps}, {drawn} of them drawn"
    if current is None or candidate is None:
        return title
    return (
        f"{title} · {candidate.pairs} held-out pairs, deployed policy → candidate: "
        f"accuracy {current.accuracy:.3f} → {candidate.accuracy:.3f}, "
        f"margin {current.mean_margin:.2f} → {candidate.mean_margin:.2f} nats, "
        f"log p(chosen) {current.mean_logp_chosen:.3f} → {candidate.mean_logp_chosen:.3f} nats per token"
    )
