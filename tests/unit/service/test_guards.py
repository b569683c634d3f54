from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.curation import likeness
from service.curation.guards import Context, Selection, select
from service.curation.settings import PreferenceSettings
from service.pairs import LeftOut, Pair, Source

pair_signature = cache(likeness.pair_signature)
NOW = datetime(2026, 5, 20, 12, tzinfo=UTC)
TODAY = NOW.date()
SETTLED = (LeftOut.DUPLICATE, LeftOut.NEAR_DUPLICATE, LeftOut.CONTRADICTED)


def _pair(number: int, **fields: Any) -> Pair:
    """By default each pair has a prompt, texts and a voter of its own, and votes in the order of the numbers."""
    user = fields.pop("user", f"user-{number}")
    texts = fields.pop("texts", (f"question {number}", f"good {number}", f"bad {number}"))
    defaults: dict[str, Any] = {
        "id": f"{number:04d}",
        "source": Source.SIBLINGS,
        "prompt_digest": f"p{number}",
        "app": "shop",
        "chosen": (f"c{number}", 0),
        "rejected": (f"r{number}", 0),
        "votes": (2 * number, 2 * number + 1),
        "voter": user,
        "voters": (user,),
        "charged_to": (user,),
        "adapters": ("base",),
        "voted_at": NOW - timedelta(hours=1),
        "chosen_length": len(texts[1]),
        "rejected_length": len(texts[2]),
        "signature": pair_signature(*texts),
    }
    return Pair(**(defaults | fields))


def _thumb(number: int, **fields: Any) -> Pair:
    texts = (f"question {number}", f"good {number}", "")
    return _pair(number, **({"source": Source.THUMB, "rejected": None, "texts": texts} | fields))


def _imported(number: int, **fields: Any) -> Pair:
    nobody = {"app": None, "chosen": None, "rejected": None, "votes": (), "voter": None, "voters": ()}
    return _pair(
        number, **({"source": Source.IMPORT, "voted_at": None, "charged_to": (), "adapters": ()} | nobody | fields)
    )


def _select(*pairs: Pair, context: Context | None = None, **settings: Any) -> Selection:
    return select(pairs, PreferenceSettings(**settings), context or Context(now=NOW))


def _kept(selection: Selection) -> list[int]:
    return [int(pair.id) for pair in selection.kept]


# --- a pair by itself ---------------------------------------------------------------------------------


def test_pairs_that_no_guard_minds_are_all_kept() -> None:
    selection = _select(_pair(2), _pair(1), _thumb(3), _imported(4))
    assert (_kept(selection), selection.left_out) == ([1, 2, 3, 4], {})
    assert {pair.weight for pair in selection.kept} == {1.0}


def test_old_pairs_are_left_out_by_their_latest_vote() -> None:
    old = _pair(1, voted_at=NOW - timedelta(days=8))
    selection = _select(old, _pair(2, voted_at=NOW - timedelta(days=6)), _imported(3), max_age_days=7)
    assert (_kept(selection), selection.left_out) == ([2, 3], {"0001": LeftOut.TOO_OLD})


def test_answers_of_adapters_too_far_behind_are_left_out() -> None:
    context = Context(now=NOW, adapters_behind={"base": 3, "policy-1": 2, "policy-3": 0})
    pairs = [
        _pair(1, adapters=("base", "policy-3")),
        _pair(2, adapters=("policy-1",)),
        _pair(3, adapters=("policy-3",)),
    ]
    selection = _select(*pairs, context=context, max_adapters_behind=2)
    assert (_kept(selection), selection.left_out) == ([2, 3], {"0001": LeftOut.STALE_ADAPTER})


def test_a_pair_weighs_half_with_every_half_life_and_never_nothing() -> None:
    context = Context(now=NOW, adapters_behind={"base": 4, "policy-2": 2, "ancient": 10_000})
    adapters = [("base",), ("policy-2",), ("policy-4",), ("policy-4", "policy-2"), ("ancient",)]
    pairs = [_pair(number, adapters=names) for number, names in enumerate(adapters)]
    selection = _select(*pairs, _imported(9), context=context, staleness_half_life=2.0)
    assert [pair.weight for pair in selection.kept] == [0.25, 0.5, 1.0, 0.5, 0.001, 1.0]


def test_an_answer_that_its_prompt_dictates_is_left_out() -> None:
    selection = _select(_pair(1, copied=0.81), _pair(2, copied=0.8), dictated=0.8)
    assert (_kept(selection), selection.left_out) == ([2], {"0001": LeftOut.DICTATED})


# --- pairs among each other ---------------------------------------------------------------------------

LONG = "a question of a good many words, so that one of them more or less makes no large difference to it at all " * 3
TEXTS = (LONG, LONG.replace("question", "reply"), LONG.replace("question", "refusal"))


def test_of_pairs_that_say_the_very_same_the_best_signal_stays_then_the_earliest() -> None:
    pairs = [_pair(number, texts=TEXTS) for number in (1, 2, 3)]
    pairs[2] = pairs[2].model_copy(update={"source": Source.CORRECTION})
    selection = _select(*pairs, _imported(4, texts=TEXTS), near_duplicate=1.0)
    assert _kept(selection) == [3]
    assert set(selection.left_out.values()) == {LeftOut.DUPLICATE}
    assert selection.settled == {"0001": "0003", "0002": "0003", "0004": "0003"}
    assert _kept(_select(*pairs[:2])) == [1]


def test_near_duplicates_count_as_one_from_the_set_likeness_on() -> None:
    nearly = (TEXTS[0] + "and this", *TEXTS[1:])
    selection = _select(_pair(1, texts=TEXTS), _pair(2, texts=nearly), _pair(3), near_duplicate=0.8)
    assert (_kept(selection), selection.left_out) == ([1, 3], {"0002": LeftOut.NEAR_DUPLICATE})
    assert selection.settled == {"0002": "0001"}
    assert _kept(_select(_pair(1, texts=TEXTS), _pair(2, texts=nearly), near_duplicate=1.0)) == [1, 2]


def test_what_a_cap_left_out_is_no_reason_against_its_duplicate() -> None:
    """Who votes a thousand times before the others does not keep theirs out."""
    greedy = [_pair(number, user="greedy", texts=(f"first come {number}", "x", "y")) for number in (1, 2)]
    honest = _pair(3, texts=("first come 2", "x", "y"))
    selection = _select(*greedy, honest, max_pairs_per_user=1)
    assert (_kept(selection), selection.left_out) == ([1, 3], {"0002": LeftOut.USER_CAP})


def test_what_doubles_a_pair_that_is_left_out_after_all_is_nobodys_duplicate() -> None:
    """It keeps waiting with it, and a later round may learn one of the two."""
    texts = ("question 2", "the longer answer", "short")
    selection = _select(
        _pair(1), _pair(2, texts=texts), _pair(3, texts=texts), max_longer_share=0.5, near_duplicate=1.0
    )
    assert selection.left_out == {"0001": LeftOut.LENGTH_BALANCE} | {
        "0002": LeftOut.LENGTH_BALANCE,
        "0003": LeftOut.DUPLICATE,
    }
    assert selection.settled == {}


def test_pairs_that_contradict_each_other_are_decided_by_their_voters() -> None:
    forth, back = ("q", "one answer", "other answer"), ("q", "other answer", "one answer")
    selection = _select(_pair(1, texts=forth), _pair(2, texts=back), _pair(3))
    assert (_kept(selection), set(selection.left_out.values())) == ([3], {LeftOut.CONTRADICTED})
    assert selection.settled == {}, "nobody has won"
    selection = _select(_pair(1, texts=forth), _pair(2, texts=back), _pair(3, texts=back))
    assert selection.left_out == {"0001": LeftOut.CONTRADICTED, "0003": LeftOut.DUPLICATE}
    assert selection.settled == {"0001": "0002", "0003": "0002"}
    selection = _select(_pair(1, texts=forth), _pair(2, texts=back, user="a"), _pair(3, texts=back, user="a"))
    assert _kept(selection) == [], "one person twice is one voter"
    assert _kept(_select(_pair(1, texts=forth), _pair(2, texts=back, app="other"))) == [1, 2]


# --- caps ---------------------------------------------------------------------------------------------


def test_a_person_has_so_many_pairs_in_a_round_the_best_signals_first() -> None:
    pairs = [_pair(number, user="u") for number in range(4)]
    pairs += [_pair(4, user="u", source=Source.CORRECTION), _pair(5)]
    selection = _select(*pairs, max_pairs_per_user=3)
    assert _kept(selection) == [0, 1, 4, 5]
    assert set(selection.left_out.values()) == {LeftOut.USER_CAP}


def test_a_pair_needs_room_for_everyone_it_is_charged_to_and_for_nobody_else() -> None:
    pairs = [
        _pair(1, user="full"),
        _pair(2, charged_to=("full", "other"), voters=("full", "other")),
        _pair(3, charged_to=(), voters=("full", "other", "third")),
    ]
    assert _select(*pairs, max_pairs_per_user=1).left_out == {"0002": LeftOut.USER_CAP}


def test_a_person_has_so_many_pairs_a_day_also_over_rounds() -> None:
    evening = datetime(2026, 5, 19, 23, 30, tzinfo=UTC)
    pairs = [_pair(number, user="u", voted_at=evening) for number in range(3)]
    pairs += [_pair(3, user="u", voted_at=evening + timedelta(hours=1))]
    counted = {("u", date(2026, 5, 19)): 1, ("other", TODAY): 9}
    selection = _select(*pairs, context=Context(now=NOW, counted=counted), max_pairs_per_user_per_day=2)
    assert _kept(selection) == [0, 3]
    assert set(selection.left_out.values()) == {LeftOut.USER_DAY_CAP}


def test_a_prompt_has_so_many_pairs_of_each_app() -> None:
    pairs = [_pair(number, prompt_digest="p") for number in range(3)] + [_pair(3, prompt_digest="p", app="other")]
    selection = _select(*pairs, max_pairs_per_prompt=2)
    assert (_kept(selection), selection.left_out) == ([0, 1, 3], {"0002": LeftOut.PROMPT_CAP})


def test_an_app_has_its_share_of_what_the_other_guards_let_through() -> None:
    large = [_pair(number, app="large") for number in range(8)]
    small = [_pair(number, app="small") for number in (8, 9)]
    capped = _pair(10, user="user-8", app="small")
    selection = _select(*large, *small, capped, _imported(11), max_share_per_app=0.5, max_pairs_per_user=1)
    assert _kept(selection) == [0, 1, 2, 3, 4, 8, 9, 11]
    assert Counter(selection.left_out.values()) == {LeftOut.APP_CAP: 3, LeftOut.USER_CAP: 1}
    assert len(_select(*large, max_share_per_app=0.5).kept) == 4, "an app alone keeps its share too"
    assert len(_select(large[0], max_share_per_app=0.1).kept) == 1


def test_imported_pairs_meet_no_cap() -> None:
    pairs = [_imported(number, prompt_digest="p", copied=1.0) for number in range(9)]
    selection = _select(
        *pairs,
        max_pairs_per_prompt=1,
        max_pairs_per_user=1,
        max_share_per_app=0.1,
        max_longer_share=0.5,
        max_age_days=1,
    )
    assert len(selection.kept) == 9


def test_the_surplus_of_longer_chosen_answers_is_left_out_the_weakest_signals_first() -> None:
    longer = [_pair(number, chosen_length=9, rejected_length=5) for number in range(4)]
    longer += [_pair(4, chosen_length=9, rejected_length=5, source=Source.CORRECTION)]
    others = [_pair(5, chosen_length=5, rejected_length=9), _pair(6, chosen_length=5, rejected_length=5)]
    selection = _select(*longer, *others, max_longer_share=0.6, near_duplicate=1.0)
    assert _kept(selection) == [0, 1, 4, 5, 6]
    assert set(selection.left_out.values()) == {LeftOut.LENGTH_BALANCE}
    assert len(_select(*longer, *others, max_longer_share=1.0).kept) == 7


def test_thumbs_meet_the_guards_but_take_no_pairs_place() -> None:
    thumbs = [_thumb(number, user="u") for number in range(3)]
    selection = _select(*thumbs, _pair(5, user="u"), _pair(6, user="u"), max_pairs_per_user=3)
    assert _kept(selection) == [0, 5, 6]
    assert _kept(_select(_thumb(1, copied=0.9), _thumb(2), _thumb(3, texts=("question 2", "good 2", "")))) == [2]


# --- whatever is collected ----------------------------------------------------------------------------


@st.composite
def _pairs(draw: st.DrawFn) -> list[Pair]:
    """Few people, prompts, apps and texts, so that pairs stand in each other's way."""
    some = st.sampled_from
    pairs = []
    for number in range(draw(st.integers(0, 14))):
        source = draw(some(Source))
        voters = tuple(sorted(draw(st.sets(some("uvwx"), min_size=1, max_size=3))))
        chosen, rejected = draw(st.permutations([*"abc", f"text {number}", f"longer text {number}"]))[:2]
        fields: dict[str, Any] = {
            "source": source,
            "app": draw(some(["large", "large", "small"])),
            "prompt_digest": draw(some("pqr")),
            "texts": (draw(some("pqr")), chosen, "" if source is Source.THUMB else rejected),
            "voters": voters,
            "charged_to": tuple(one for one in voters if draw(st.booleans())),
            "adapters": (draw(some(["base", "policy-1", "policy-2"])),),
            "voted_at": NOW - timedelta(hours=draw(st.integers(0, 72))),
            "copied": draw(some([0.0, 0.0, 0.9])),
        }
        pairs.append(_imported(number, texts=fields["texts"]) if source is Source.IMPORT else _pair(number, **fields))
    return pairs


@st.composite
def _settings(draw: st.DrawFn) -> PreferenceSettings:
    few, maybe = st.integers(1, 6), st.none() | st.integers(1, 2)
    return PreferenceSettings(
        max_pairs_per_user=draw(few),
        max_pairs_per_user_per_day=draw(few),
        max_pairs_per_prompt=draw(few),
        max_share_per_app=draw(st.sampled_from([1.0, 0.5, 0.2])),
        near_duplicate=draw(st.sampled_from([0.5, 0.9, 1.0])),
        max_age_days=draw(maybe),
        max_adapters_behind=draw(maybe),
        staleness_half_life=draw(st.none() | st.floats(0.1, 10)),
        max_longer_share=draw(st.sampled_from([0.5, 0.7, 1.0])),
    )


CONTEXT = Context(now=NOW, adapters_behind={"base": 2, "policy-1": 1}, counted={("u", TODAY): 2, ("v", TODAY): 9})


@given(_pairs(), _settings(), st.randoms(use_true_random=False))
def test_each_pair_is_kept_or_has_a_reason_whatever_the_order(
    pairs: list[Pair], settings: PreferenceSettings, chance: random.Random
) -> None:
    selection = select(pairs, settings, CONTEXT)
    kept = [pair.id for pair in selection.kept]
    assert sorted([*kept, *selection.left_out]) == sorted(pair.id for pair in pairs)
    assert selection.settled.keys() <= {id for id, reason in selection.left_out.items() if reason in SETTLED}
    assert set(selection.settled.values()) <= set(kept)
    assert kept == sorted(kept)
    assert all(0 < pair.weight <= 1 for pair in selection.kept)
    chance.shuffle(pairs)
    assert select(pairs, settings, CONTEXT) == selection


@given(_pairs(), _settings())
def test_no_cap_is_ever_exceeded(pairs: list[Pair], settings: PreferenceSettings) -> None:
    kept = [pair for pair in select(pairs, settings, CONTEXT).kept if pair.app is not None]
    of_user = Counter(user for pair in kept for user in pair.charged_to)
    of_day = Counter((user, pair.voted_at and pair.voted_at.date()) for pair in kept for user in pair.charged_to)
    of_prompt = Counter((pair.app, pair.prompt_digest) for pair in kept)
    assert max(of_user.values(), default=0) <= settings.max_pairs_per_user
    for (user, day), count in of_day.items():
        earlier = CONTEXT.counted.get((user, day), 0) if day is not None else 0
        assert earlier + count <= settings.max_pairs_per_user_per_day
    assert max(of_prompt.values(), default=0) <= settings.max_pairs_per_prompt
    voted = [pair for pair in kept if not pair.is_thumb]
    longer = sum(pair.chosen_length > pair.rejected_length for pair in voted)
    assert longer <= settings.max_longer_share * len(voted) + 1e-9


@given(_pairs(), _settings())
def test_thumbs_change_nothing_for_the_pairs(pairs: list[Pair], settings: PreferenceSettings) -> None:
    without = select([pair for pair in pairs if not pair.is_thumb], settings, CONTEXT)
    assert [pair for pair in select(pairs, settings, CONTEXT).kept if not pair.is_thumb] == without.kept


@given(_pairs(), st.integers(1, 6), st.booleans())
def test_a_higher_cap_loses_no_pair(pairs: list[Pair], cap: int, of_user: bool) -> None:
    """Where no two pairs are alike and each is charged to one person, so that none can take another's place."""
    apart = [pair.model_copy(update={"signature": (), "charged_to": pair.charged_to[:1]}) for pair in pairs if pair.app]

    def capped(cap: int) -> PreferenceSettings:
        return PreferenceSettings(max_pairs_per_user=cap) if of_user else PreferenceSettings(max_pairs_per_prompt=cap)

    tight, loose = select(apart, capped(cap), CONTEXT), select(apart, capped(cap + 1), CONTEXT)
    assert {pair.id for pair in tight.kept} <= {pair.id for pair in loose.kept}


@given(_pairs(), _settings())
def test_what_is_kept_is_kept_again(pairs: list[Pair], settings: PreferenceSettings) -> None:
    """Selecting from a selection leaves out nothing but what shares are taken of."""
    whole = settings.model_copy(update={"max_share_per_app": 1.0})
    once = select(pairs, whole, CONTEXT)
    assert select(once.kept, whole, CONTEXT).kept == once.kept
