"""The data report as a page: complete, by itself, and deaf to what strangers wrote."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.report.evidence import DayVotes, SliceVotes, VoteFacts
from service.report.html import VOID, Html, join, tag
from service.report.measuring import measure
from service.report.page import page
from service.report.plots import Column, columns, interval
from service.report.records import DataReport, Share
from tests.data_pairs import NOW, a_pair, evidence
from tests.page_reader import LOADS, Reader

HOSTILE = "<script>alert(1)</script>\"'&amp; onload=x"


def full(name: str = "shop", **fields: Any) -> DataReport:
    """A report with something in every part of it, its user-given names being `name`."""
    pairs = [a_pair(n, app=name, tags=(name,), adapters=(name,), chosen_length=100 + n) for n in range(30)]
    votes = VoteFacts(
        days=[DayVotes(NOW.date(), 3, 2, 1, 1)],
        slices=[SliceVotes("app", name, 300, 200, 100), SliceVotes("tag", name, 60, 10, 50)],
        people_of={2: 9, 30: 1}, unnamed=2, rated={(2, 0): 12, (1, 1): 9}, repeats=40, changes=9,
    )  # fmt: skip
    given = {"votes": votes, "held_out": {pair.id for pair in pairs[:5]}} | fields
    return measure(evidence(pairs, **given))


def test_the_page_says_what_the_report_says() -> None:
    report = full()
    text = Reader(page(report)).text
    for finding in report.findings:
        assert finding.says in text
    for part in ("Findings", "From votes to pairs", "Who", "Agreement", "Length and position", "Slices"):
        assert part in text
    assert text.index("Findings") < text.index("From votes to pairs")


def test_the_page_needs_neither_network_nor_script() -> None:
    read = Reader(page(full()))
    assert "script" not in read.elements
    assert not {name for name, _ in read.attributes} & LOADS
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in read.attributes


def test_an_empty_report_is_a_page_too() -> None:
    assert "nothing yet" in Reader(page(measure(evidence()))).text


def test_what_strangers_wrote_stays_text() -> None:
    hostile, harmless = Reader(page(full(HOSTILE))), Reader(page(full("shop")))
    assert hostile.elements == harmless.elements
    assert [name for name, _ in hostile.attributes] == [name for name, _ in harmless.attributes]
    assert "<script>" not in page(full(HOSTILE))
    assert HOSTILE in hostile.text
    assert f"the tag '{HOSTILE}'" in hostile.text


@given(st.text(max_size=30))
def test_any_name_stays_text(name: str) -> None:
    text = name.replace("\r", "")  # a parser makes a line feed of it
    assert Reader(tag("td", text, title=text)).elements == ["td"]
    assert Reader(join("a", text)).elements == []


def test_a_string_becomes_markup_only_by_name() -> None:
    assert tag("p", "<b>", tag("b", "&"), class_="x", aria_label='"') == (
        '<p class="x" aria-label="&quot;">&lt;b&gt;<b>&amp;</b></p>'
    )
    assert tag("rect", x=1.0, y=0.25, width=None) == '<rect x="1" y="0.25"/>'
    assert tag("p", Html("<b/>")) == "<p><b/></p>"
    assert "rect" in VOID


def test_columns_stand_on_each_other_and_name_what_they_show() -> None:
    drawn = columns("Votes", ("up", "down"), [Column("Mon", (3, 1)), Column("Tue", (0, 2))])
    read = Reader(drawn)
    assert read.elements.count("rect") == 3, "nothing is drawn for a zero"
    assert {"Mon: 3 up", "Mon: 1 down", "Tue: 2 down"} <= set(read.words)
    heights = [float(value or "nan") for name, value in read.attributes if name == "height"]
    assert heights[0] + heights[1] == pytest.approx(2 * heights[2], abs=0.02)


def test_an_interval_says_its_numbers() -> None:
    said = Reader(interval(Share.of(30, 40))).text
    assert said == "75.0% (30 of 40), 95 % between 59.8% and 85.8%"
    assert Reader(interval(Share.of(0, 0))).text == "-"
