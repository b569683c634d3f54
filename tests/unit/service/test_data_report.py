"""The data report's numbers, each against one worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from service.curation.likeness import SLOTS
from service.pairs import LeftOut, Pair, Source
from service.report.evidence import DAYS_SHOWN, DayVotes, SliceVotes, VoteFacts
from service.report.measuring import measure
from service.report.records import DataReport, Share
from service.report.slices import SLICES_SHOWN
from tests.data_pairs import NOW, a_funnel, a_pair, a_signature, a_thumb, an_import, evidence


def report(*pairs: Pair, **fields: Any) -> DataReport:
    return measure(evidence(pairs, **fields))


def test_pairs_thumbs_imports_and_what_guards_left_out_are_counted_apart() -> None:
    kept = [a_pair(0), a_pair(1, source=Source.CORRECTION, chosen=None), an_import(2), a_thumb(3)]
    out = [(a_pair(4), LeftOut.USER_CAP), (a_pair(5), LeftOut.DUPLICATE), (a_thumb(6), LeftOut.DUPLICATE)]
    counts = report(*kept, left_out=out, held_out={kept[0].id, kept[3].id}).counts
    assert (counts.pairs, counts.from_votes, counts.imported, counts.thumbs) == (3, 2, 1, 1)
    assert (counts.training, counts.held_out) == (2, 1)
    assert counts.sources == {"correction": 1, "side_by_side": 1, "import": 1}
    assert counts.left_out == {LeftOut.DUPLICATE: 1, LeftOut.USER_CAP: 1}


def test_voters_are_counted_and_their_concentration_measured() -> None:
    """Ann gives three of four pairs, and 5 of the 10 votes; Ben gives 2, and 3 votes name nobody."""
    pairs = [a_pair(n, voter="ben" if n == 3 else "ann") for n in range(4)]
    voters = report(*pairs, an_import(9), votes=VoteFacts(people_of={5: 1, 2: 1}, unnamed=3)).voters
    assert (voters.people, voters.people_in_pairs, voters.top_voter, voters.pairs_of_top) == (2, 2, "ann", (3, 1))
    assert (voters.top_of_votes.share, voters.unnamed.share) == (0.5, 0.3)
    assert (voters.top_of_pairs.count, voters.top_of_pairs.total) == (3, 4)
    assert voters.gini_of_votes == pytest.approx(2 * (2 + 10) / (2 * 7) - 3 / 2)
    assert voters.gini_of_pairs == pytest.approx(0.25)


def test_agreement_and_changes_of_mind() -> None:
    votes = VoteFacts(
        rated={(2, 0): 1, (0, 2): 1}, compared={(1, 1, 0): 2}, repeats=8, changes=2, written=40, retracted=4
    )
    made = report(votes=votes)
    assert (made.ratings.things, made.ratings.votes, made.ratings.raw, made.ratings.alpha) == (2, 4, 1, 1)
    assert (made.comparisons.raw, made.comparisons.alpha) == (0, pytest.approx(1 - 3 * 4 / 8))
    assert (made.constancy.changed.share, made.constancy.retracted.share) == (0.25, 0.1)


def test_length_bias_leaves_equal_lengths_and_unknown_ones_aside() -> None:
    lengths = [(200, 100), (100, 50), (100, 200), (70, 70), (0, 90)]
    pairs = [a_pair(n, chosen_length=c, rejected_length=r) for n, (c, r) in enumerate(lengths)]
    length = report(*pairs).length
    assert (length.chosen_longer.count, length.chosen_longer.total) == (2, 3)
    assert length.mean_ratio == pytest.approx(2 ** (1 / 4))  # 2 * 2 * 1/2 * 1, four pairs
    assert sum(bin.pairs for bin in length.ratios) == 4
    at = {bin.low: bin.pairs for bin in length.ratios}
    assert (at[0.5], at[1.0], at[2.0]) == (1, 1, 2)


def test_length_and_being_chosen_correlate_fully_where_length_decides() -> None:
    pairs = [a_pair(n, chosen_length=200, rejected_length=100) for n in range(3)]
    assert report(*pairs).length.correlation == pytest.approx(1)
    assert report(a_pair(0)).length.correlation is None


def test_position_is_asked_of_answers_that_were_shown_together() -> None:
    pairs = [
        a_pair(0, chosen=("c", 0), rejected=("c", 1)),
        a_pair(1, chosen=("d", 2), rejected=("d", 1)),
        a_pair(2, chosen=("e", 0), rejected=("e", 3), source=Source.SIBLINGS),
        a_pair(3, chosen=("f", 0), rejected=("g", 1)),  # asked again: never side by side
        a_pair(4, chosen=("h", 0), rejected=("h", 1), source=Source.SAME_PROMPT),
        a_pair(5, chosen=None, rejected=("i", 0), source=Source.CORRECTION),
    ]
    first = report(*pairs).position.first_chosen
    assert (first.count, first.total) == (2, 3)


def test_duplicates_are_shares_of_the_pairs_before_the_guards() -> None:
    out = [
        (a_pair(n), reason) for n, reason in enumerate([LeftOut.DUPLICATE, LeftOut.NEAR_DUPLICATE, LeftOut.USER_CAP])
    ]
    kept = [a_pair(9)]
    likeness = report(*kept, left_out=out, funnel=a_funnel(kept, left_out={"contradicted": 6})).likeness
    assert (likeness.duplicates.count, likeness.duplicates.total) == (1, 4)
    assert likeness.near_duplicates.share == 0.25
    assert (likeness.contradicted.count, likeness.contradicted.total) == (6, 8)


def test_pairs_that_repeat_another_are_counted_but_not_the_first_of_them() -> None:
    same = [a_pair(n, signature=a_signature(7)) for n in range(3)]
    assert report(*same, a_pair(3), a_pair(4, signature=())).likeness.look_alikes.count == 2


def test_leakage_is_seen_by_prompt_by_likeness_and_by_what_was_learned() -> None:
    same_prompt = a_pair(0, prompt_digest="p")
    alike = a_pair(1)
    learned = a_pair(2, prompt_digest="q")
    clean = a_pair(3)
    nearly = tuple(slot + (place % 8 == 0) for place, slot in enumerate(alike.signature))  # 7 of 8 slots agree
    training = [a_pair(4, prompt_digest="p"), a_pair(5, signature=nearly)]
    held_out = [same_prompt, alike, learned, clean]
    leakage = report(*held_out, *training, held_out={pair.id for pair in held_out}, learned_prompts={"q"}).leakage
    assert [share.count for share in (leakage.prompts, leakage.look_alikes, leakage.learned_before)] == [1, 1, 1]
    assert {share.total for share in (leakage.prompts, leakage.look_alikes, leakage.learned_before)} == {4}


def test_ages_are_those_of_the_latest_vote() -> None:
    pairs = [a_pair(n, voted_at=NOW - timedelta(days=days)) for n, days in enumerate((0.5, 3, 40, 400))]
    ages = report(*pairs, an_import(9)).ages
    assert (ages.median_days, ages.oldest_days) == (pytest.approx(21.5), pytest.approx(400))
    assert [bin.pairs for bin in ages.days] == [1, 1, 0, 1, 0, 1]


def test_days_have_votes_and_pairs_and_reach_back_only_so_far() -> None:
    votes = VoteFacts(days=[DayVotes(date(2026, 2, 28), up=3, down=1, comparisons=2, corrections=1)])
    pairs = [a_pair(0), a_pair(1, voted_at=NOW - timedelta(days=DAYS_SHOWN))]
    days = report(*pairs, votes=votes).days
    assert [(day.day.isoformat(), day.up, day.corrections, day.pairs) for day in days] == [
        ("2026-02-28", 3, 1, 0),
        ("2026-03-01", 0, 0, 1),
    ]


def test_slices_say_share_likes_and_length_of_each_part() -> None:
    pairs = [a_pair(0, tags=("sums",), chosen_length=200), a_pair(1, app="help", tags=("sums", "short")), an_import(2)]
    votes = VoteFacts(slices=[SliceVotes("app", "shop", 10, up=6, down=2), SliceVotes("tag", "rude", 4, 0, 4)])
    parts = {(part.kind, part.name): part for part in report(*pairs, votes=votes).slices}
    shop, sums, rude = parts["app", "shop"], parts["tag", "sums"], parts["tag", "rude"]
    assert (shop.pairs, shop.share, shop.votes, shop.liked.share) == (1, pytest.approx(1 / 3), 10, 0.75)
    assert (sums.pairs, sums.votes, sums.mean_length_ratio) == (2, None, pytest.approx(2**0.5))
    assert (rude.pairs, rude.share, rude.liked.count, rude.mean_length_ratio) == (0, 0, 0, None)
    assert {name for kind, name in parts if kind == "source"} == {"side_by_side", "import"}
    assert {name for kind, name in parts if kind == "adapter"} == {"base"}


def test_of_many_tags_the_largest_are_shown_and_the_rest_counted() -> None:
    pairs = [a_pair(n, tags=(f"tag{n:02}", "all")) for n in range(SLICES_SHOWN + 4)]
    made = report(*pairs)
    tags = [part.name for part in made.slices if part.kind == "tag"]
    assert (tags[0], len(tags)) == ("all", SLICES_SHOWN)
    assert made.slices_left_out == {"tag": 5}


def test_the_gate_s_sight_follows_from_the_held_out_pairs() -> None:
    pairs = [a_pair(n) for n in range(40)]
    power = report(*pairs, held_out={pair.id for pair in pairs[:28]}).power
    assert power.held_out_pairs == 28
    assert power.win_rate == pytest.approx(0.73, abs=0.005)
    assert {need.win_rate: need.pairs for need in power.needed}[0.55] == 617
    assert report().power.win_rate is None


def test_the_same_evidence_makes_the_same_report() -> None:
    pairs = [a_pair(n, tags=("b", "a")) for n in range(5)]
    assert report(*pairs) == report(*reversed(pairs))


PAIRS = st.builds(
    lambda number, lengths, tags, voter, hours, signature, make: make(
        number, chosen_length=lengths[0], rejected_length=lengths[1], tags=tags, signature=signature
    ).model_copy(update={"voter": voter, "voted_at": None if hours is None else NOW - timedelta(hours=hours)}),
    st.integers(0, 30),
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    st.lists(st.text(min_size=1, max_size=4), max_size=3).map(tuple),
    st.sampled_from([None, "ann", "ben", "cem"]),
    st.none() | st.integers(-5, 10**5),
    st.sampled_from([(), a_signature(0), a_signature(1), (7,) * 3 * SLOTS]),
    st.sampled_from([a_pair, an_import, a_thumb]),
)  # fmt: skip
AMOUNTS = st.integers(0, 10**6)
FACTS = st.builds(
    VoteFacts,
    days=st.lists(st.builds(DayVotes, st.dates(), AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS), max_size=3),
    slices=st.lists(
        st.builds(
            lambda kind, name, up, down, more: SliceVotes(kind, name, up + down + more, up, down),
            *(st.sampled_from(["app", "adapter", "tag"]), st.text(max_size=4), AMOUNTS, AMOUNTS, AMOUNTS),
        ),
        max_size=4,
    ),
    people_of=st.dictionaries(st.integers(1, 1000), st.integers(1, 1000), max_size=4),
    unnamed=AMOUNTS,
    rated=st.dictionaries(st.tuples(st.integers(0, 9), st.integers(0, 9)), st.integers(0, 99), max_size=4),
    compared=st.dictionaries(st.tuples(*[st.integers(0, 9)] * 3), st.integers(0, 99), max_size=4),
)


def shares(model: BaseModel) -> Iterator[Share]:
    """All shares in a record, however deep."""
    for _, value in model:
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Share):
                yield inner
            elif isinstance(inner, BaseModel):
                yield from shares(inner)


@given(st.lists(PAIRS, max_size=12, unique_by=lambda pair: pair.id), FACTS, st.integers(0, 12), st.data())
def test_whatever_the_data_there_is_a_report_and_every_share_is_one(
    pairs: list[Pair], votes: VoteFacts, kept: int, data: st.DataObject
) -> None:
    held_out = {pair.id for pair in pairs[: data.draw(st.integers(0, 12))]}
    out = [(pair, data.draw(st.sampled_from(LeftOut))) for pair in pairs[kept:]]
    left_out = data.draw(st.dictionaries(st.sampled_from(LeftOut).map(str), st.integers(1, 99), max_size=4))
    funnel = a_funnel(pairs[:kept], left_out=left_out)
    made = report(*pairs[:kept], funnel=funnel, left_out=out, held_out=held_out, votes=votes)
    found = list(shares(made))
    assert len(found) >= 11
    for share in found:
        if share.share is not None:
            assert share.low is not None and share.high is not None
            assert 0 <= share.low <= share.share <= share.high <= 1
    assert all(part.share is None or 0 <= part.share <= 1 for part in made.slices)
    assert sum(bin.pairs for bin in made.length.ratios) <= made.counts.pairs
    assert DataReport.model_validate_json(made.model_dump_json()) == made
