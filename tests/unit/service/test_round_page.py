"""The report of a round as a page and as release notes: complete, by itself, and deaf to what strangers wrote."""

from __future__ import annotations

import re

import pytest

from service.contracts import Check, RoundState, Verdict
from service.evidence.notes import notes
from service.evidence.page import page
from service.evidence.records import Sample
from service.report.plots import lines
from tests.fake_evidence import AFTER, BEFORE, a_whole_round, an_evidence
from tests.page_reader import LOADS, Reader

HOSTILE = "<script>alert(1)</script>\"'&amp; onload=x"


def test_the_page_says_what_is_known() -> None:
    text = Reader(page(an_evidence())).text
    for part in ("The gate", "Answers before and after", "Behaviour", "Training, step by step", "Held-out pairs",
                 "From votes to pairs", "Rollout", "What happened", "Lineage", "What it stood on"):  # fmt: skip
        assert part in text
    for said in (AFTER, BEFORE, "d" * 64, "accuracy on 24 held-out pairs", "· newest", "say harmless", "thus harmless",
                 "no partner", "4321 completions", "2 votes", "seed", "learned", "canary · steps · 1 · share",
                 "environment · packages · torch"):  # fmt: skip
        assert said in text, said
    assert text.index("The gate") < text.index("What it stood on")


def test_both_sides_of_what_was_measured_stand_in_one_row() -> None:
    shown = page(an_evidence())
    assert re.search(r"<td>mean_tokens</td><td[^>]*>31\.5</td><td[^>]*>28</td>", shown)


def test_the_page_needs_neither_network_nor_script() -> None:
    read = Reader(page(an_evidence()))
    assert "script" not in read.elements
    assert not {name for name, _ in read.attributes} & LOADS
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in read.attributes
    assert "url(" not in page(an_evidence()) and "@import" not in page(an_evidence())


def test_what_strangers_wrote_stays_text() -> None:
    hostile, harmless = Reader(page(an_evidence(HOSTILE))), Reader(page(an_evidence()))
    assert hostile.elements == harmless.elements
    assert [name for name, _ in hostile.attributes] == [name for name, _ in harmless.attributes]
    assert "<script" not in page(an_evidence(HOSTILE))
    assert f"thus {HOSTILE}" in hostile.text


@pytest.mark.parametrize("state", list(RoundState))
def test_a_round_of_which_little_is_known_has_a_page_too(state: RoundState) -> None:
    bare = a_whole_round(
        state=state, reason=None, note=None, parent=None, adapter=None, pair_digest=None, pairs=None, funnel=None,
        verdict=None, report=None, behaviour=None, canary=None, environment=None,
    )  # fmt: skip
    evidence = an_evidence(round=bare, adapter=None, recipe=None, timeline=(), samples=(), audit=())
    text = Reader(page(evidence)).text
    assert f"Round 2: {state}" in " ".join(text.split())
    assert "The gate" not in text
    assert "Where it comes from" in notes(evidence)


def test_an_adapter_from_outside_has_no_curves() -> None:
    round = a_whole_round()
    assert round.report is not None
    outside = a_whole_round(report=round.report | {"steps": []})
    assert "Training, step by step" not in Reader(page(an_evidence(round=outside))).text


def test_lines_say_their_numbers_and_keep_within_the_plot() -> None:
    read = Reader(lines("Loss", {"loss": [(1, 0.7), (2, 0.3), (3, 0.4)], "none": []}))
    assert "loss: 0.7 at first, 0.4 at last" in read.text
    (points,) = [value for name, value in read.attributes if name == "points"]
    places = [tuple(map(float, point.split(","))) for point in (points or "").split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert places[1][1] > places[2][1] > places[0][1], "down is larger in SVG"
    assert all(0 <= x <= 640 and 0 <= y <= 180 for x, y in places)


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.5), (2, 0.5)]])
def test_a_line_without_a_range_is_drawn_all_the_same(points: list[tuple[float, float]]) -> None:
    assert "polyline" in Reader(lines("Loss", {"loss": points})).elements
    assert Reader(lines("Loss", {"loss": []})).text == "Loss: nothing yet"


# --- release notes ------------------------------------------------------------------------------------


def test_the_notes_say_what_changed() -> None:
    said = notes(an_evidence())
    assert said.startswith(f"# {AFTER}\n")
    assert f"It continues {BEFORE}. It answers now." in said
    assert "| held-out pairs ranked right | 0.5 | 0.8 |" in said
    assert "| mean tokens | 31.5 | 28 |" in said
    assert "2 of 3 checks passed." in said
    assert "- win_rate could not say: no judge is set (gate.judge)" in said
    assert "1 of 2 sample answers changed." in said
    assert "the same" not in said, "only what changed is shown"
    assert "They come from 2 votes." in said
    assert "better in 65% of 40 prompts, at equal lengths (95 % between 52% and 78%)" in said


def test_a_failed_check_is_named_in_the_notes() -> None:
    verdict = Verdict(
        promote=False, checks=(Check(name="kl_base", outcome="fail", value=3, bound=2, why="it drifted"),)
    )
    round = a_whole_round(state=RoundState.REJECTED, adapter=None, verdict=verdict)
    said = notes(an_evidence(round=round, adapter=None, stable=BEFORE))
    assert "- kl\\_base failed: it drifted" in said or "- kl_base failed: it drifted" in said
    assert f"{BEFORE} answers now." in said


def test_no_answer_can_end_its_block() -> None:
    text = "a\n```\n# not a heading\n````\n<b>"
    said = notes(an_evidence(samples=(Sample(prompt=text, before=text, after=f"{text}!"),)))
    lines_of = said.splitlines()
    fences = [i for i, line in enumerate(lines_of) if line == "`````"]
    assert len(fences) == 6, "three blocks, each with a fence longer than any in it"
    inside = {i for start, end in zip(fences[::2], fences[1::2], strict=True) for i in range(start, end + 1)}
    assert {i for i, line in enumerate(lines_of) if "not a heading" in line} <= inside
