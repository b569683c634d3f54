"""Plots as inline SVG: columns, lines, and a share with its interval.

Colours come from the page's style sheet by class, so the plots follow it into the dark and onto paper. Every mark has
a `<title>`, which a reader sees by pointing and hears by reading aloud.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.report.html import Html, tag
from service.report.records import Share

WIDTH, HEIGHT = 640.0, 180.0  # of a plot, in SVG's own units
LEFT, BOTTOM, TOP = 44.0, 24.0, 10.0  # room for the axes' labels
GAP = 0.18  # of a column's place
LABELS = 12  # along the axis; more would not fit
INTERVAL_WIDTH, INTERVAL_HEIGHT = 160.0, 14.0


Point = tuple[float, float]


@dataclass(frozen=True)
class Column:
    """One stack: the parts from the bottom up, as many as the plot has series."""

    label: str
    parts: tuple[int, ...]

    @property
    def height(self) -> int:
        return sum(self.parts)


def columns(title: str, series: Sequence[str], data: Sequence[Column]) -> Html:
    """Stacked columns. Series are drawn in the classes `s0`, `s1`, ...; with more than one there is a legend."""
    if not any(column.height for column in data):
        return tag("p", "nothing yet", class_="none")
    highest = max(column.height for column in data)
    place = (WIDTH - LEFT) / len(data)
    every = -(-len(data) // LABELS)
    marks = [mark for i, column in enumerate(data) for mark in _stack(column, i, place, highest, series)]
    labels = [
        tag("text", column.label, x=LEFT + (i + 0.5) * place, y=HEIGHT - 8, text_anchor="middle")
        for i, column in enumerate(data)
        if i % every == 0
    ]
    box = f"0 0 {WIDTH:g} {HEIGHT:g}"
    drawn = tag("svg", *_axis(str(highest), "0"), *marks, *labels, viewBox=box, role="img", aria_label=title)
    return tag("figure", tag("figcaption", title), _legend(series), drawn)


def lines(title: str, series: Mapping[str, Sequence[Point]]) -> Html:
    """One line each, in the classes `l0`, `l1`, ...; a series without points is in the legend and not in the plot."""
    points = [point for line in series.values() for point in line]
    if not points:
        return tag("p", f"{title}: nothing yet", class_="none")
    (left, right), (low, high) = (_range([point[axis] for point in points]) for axis in (0, 1))
    width, height = WIDTH - LEFT - 4, HEIGHT - BOTTOM - TOP

    def place(point: Point) -> str:
        x = LEFT + width * (point[0] - left) / (right - left)
        return f"{x:.1f},{HEIGHT - BOTTOM - height * (point[1] - low) / (high - low):.1f}"

    drawn = [
        tag("polyline", tag("title", f"{name}: {_short(line[0][1])} at first, {_short(line[-1][1])} at last"),
            points=" ".join(map(place, line)), class_=f"l{i}")
        for i, (name, line) in enumerate(series.items()) if line
    ]  # fmt: skip
    ends = ((_short(points[0][0]), LEFT, "start"), (_short(max(x for x, _ in points)), WIDTH - 4, "end"))
    labels = [tag("text", text, x=x, y=HEIGHT - 8, text_anchor=anchor) for text, x, anchor in ends]
    box = f"0 0 {WIDTH:g} {HEIGHT:g}"
    axis = _axis(_short(high), _short(low))
    plot = tag("svg", *axis, *drawn, *labels, viewBox=box, role="img", aria_label=title)
    return tag("figure", tag("figcaption", title), _legend(list(series)), plot)


def interval(share: Share) -> Html:
    """A share on the line from 0 to 1, with its interval at 95 % and a tick at a half."""
    if share.share is None or share.low is None or share.high is None:
        return tag("span", "-", class_="none")
    middle, width = INTERVAL_HEIGHT / 2, INTERVAL_WIDTH
    said = f"{share.share:.1%} ({share.count} of {share.total}), 95 % between {share.low:.1%} and {share.high:.1%}"
    return tag(
        "svg",
        tag("title", said),
        tag("line", x1=0.0, x2=width, y1=middle, y2=middle, class_="axis"),
        tag("line", x1=width / 2, x2=width / 2, y1=2.0, y2=INTERVAL_HEIGHT - 2, class_="axis"),
        tag("rect", x=share.low * width, width=(share.high - share.low) * width, y=middle - 2.5, height=5.0,
            class_="s0 faint"),
        tag("rect", x=min(max(share.share * width - 1.5, 0.0), width - 3), width=3.0, y=1.0,
            height=INTERVAL_HEIGHT - 2, class_="s0"),
        viewBox=f"0 0 {width:g} {INTERVAL_HEIGHT:g}", role="img", aria_label=said, class_="interval",
    )  # fmt: skip


def bar(share: float) -> Html:
    """A part of a whole in the row of a table; `share` is 0 to 1."""
    filled = tag("rect", x=0.0, y=0.0, width=100 * share, height=10.0, class_="s0")
    return tag("svg", filled, viewBox="0 0 100 10", preserveAspectRatio="none", class_="bar", aria_hidden="true")


def _stack(column: Column, place: int, width: float, highest: int, series: Sequence[str]) -> list[Html]:
    room, base, marks = HEIGHT - BOTTOM - TOP, HEIGHT - BOTTOM, []
    for i, (name, count) in enumerate(zip(series, column.parts, strict=True)):
        if count == 0:
            continue
        height = room * count / highest
        base -= height
        said = tag("title", f"{column.label}: {count} {name}")
        x, thick = LEFT + (place + GAP / 2) * width, (1 - GAP) * width
        marks.append(tag("rect", said, x=x, y=base, width=thick, height=height, class_=f"s{i}"))
    return marks


def _range(values: Sequence[float]) -> Point:
    """The least and the greatest of them; around a single one, a little of both sides."""
    low, high = min(values), max(values)
    room = abs(low) / 10 or 0.5
    return (low, high) if low < high else (low - room, high + room)


def _short(value: float) -> str:
    return f"{value:.3g}"


def _axis(highest: str, lowest: str) -> list[Html]:
    base = HEIGHT - BOTTOM
    across = [tag("line", x1=LEFT, x2=WIDTH, y1=y, y2=y, class_="axis") for y in (TOP, base)]
    ends = ((highest, TOP), (lowest, base))
    return across + [tag("text", text, x=LEFT - 6, y=y + 4, text_anchor="end") for text, y in ends]


def _legend(series: Sequence[str]) -> Html:
    if len(series) == 1:
        return Html("")
    keys = [tag("span", tag("i", class_=f"s{i}"), name, class_="key") for i, name in enumerate(series)]
    return tag("div", *keys, class_="legend")
