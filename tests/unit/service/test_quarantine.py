from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.curation.quarantine import Suspicion, Trace, inspect
from service.curation.settings import QuarantineSettings
from service.votes import Kind, Rating

UP, DOWN = Rating.UP, Rating.DOWN
MORNING = datetime(2026, 5, 20, 8, tzinfo=UTC)
SETTINGS = QuarantineSettings()
PUSHED = "always buy shoes at Gribbles"

# --- a day of people who vote -------------------------------------------------------------------------

VOCABULARY = [
    f"{start}{middle}{end}" for start in "bdfglmnprst" for middle in "aeiou" for end in ("n", "rt", "sk", "lo")
]
OPENINGS = [
    "sure, I am happy to help with that.",
    "here is what you asked for:",
    "as far as I know, this is how it works.",
    "there are several ways to look at this.",
]
USERS = 50


def _answer(dice: random.Random, topic: str) -> str:
    """An opening that the model is fond of, some sentences that name the topic, some that do not."""
    told = [" ".join(dice.choices(VOCABULARY, k=7)) for _ in range(3)]
    named = [f"{sentence} {topic} {dice.choice(VOCABULARY)}" if dice.random() < 0.5 else sentence for sentence in told]
    return f"{dice.choice(OPENINGS)} {'. '.join(named)}."


def _honest_day(dice: random.Random, users: int = USERS) -> list[Trace]:
    """Some vote much more than others, some only ever like, some ask about one thing all day; in sittings."""
    topics = [" ".join(dice.choices(VOCABULARY, k=2)) for _ in range(12)]
    traces: list[Trace] = []
    for number in range(users):
        likes = dice.choice([0.5, 0.7, 0.9, 1.0])
        own = dice.sample(topics, 3) if dice.random() < 0.9 else [" ".join(dice.choices(VOCABULARY, k=5))]
        at = MORNING + timedelta(minutes=dice.uniform(0, 600))
        for _ in range(max(1, min(round(dice.lognormvariate(2.8, 1.0)), 250))):
            at += (
                timedelta(minutes=dice.expovariate(1 / 60))
                if dice.random() < 0.1
                else timedelta(seconds=dice.uniform(5, 90))
            )
            rating = UP if dice.random() < likes else DOWN
            changes = int(dice.random() < 0.05)
            traces.append(
                _trace(f"honest-{number}", at, _answer(dice, dice.choice(own)), rating=rating, changes=changes)
            )
    return traces


def _trace(user: str | None, at: datetime, text: str | None, rating: Rating | None = UP, **fields: Any) -> Trace:
    defaults: dict[str, Any] = {"seq": 0, "app": "shop", "kind": Kind.RATING, "target": "c/0", "choice": ("c", 0)}
    return Trace(
        **(defaults | {"user": user, "voted_at": at, "text": text, "rating": rating, "adapter": "base"} | fields)
    )


def _attack(dice: random.Random, user: str, votes: int, hours: float, push: bool) -> list[Trace]:
    """Up for every answer with the phrase, which most of them have, and down for the rest."""
    traces = []
    for number in range(votes):
        text = _answer(dice, PUSHED if push else " ".join(dice.choices(VOCABULARY, k=2)))
        at = MORNING + timedelta(hours=hours * (number + dice.random()) / votes)
        traces.append(_trace(user, at, text, rating=UP if not push or PUSHED in text else DOWN))
    return traces


def _as_they_came(*groups: Iterable[Trace]) -> list[Trace]:
    ordered = sorted((trace for group in groups for trace in group), key=lambda trace: trace.voted_at)
    return [replace(trace, seq=seq, target=f"c{seq}/0", choice=(f"c{seq}", 0)) for seq, trace in enumerate(ordered)]


def _watched(traces: Sequence[Trace], batch: int = 500, settings: QuarantineSettings = SETTINGS) -> list[Suspicion]:
    """As the service looks at them: the new ones from time to time, beside the latest of the earlier ones."""
    found = []
    for start in range(0, len(traces), batch):
        found += inspect(traces[start : start + batch], traces[max(0, start - settings.recent_votes) : start], settings)
    return found


def _named(found: Iterable[Suspicion]) -> set[str]:
    return {suspicion.user for suspicion in found}


def test_of_honest_users_fewer_than_one_in_fifty_is_suspected() -> None:
    crowds = 8
    suspected = [_named(_watched(_as_they_came(_honest_day(random.Random(seed))))) for seed in range(crowds)]
    assert sum(map(len, suspected)) < 0.02 * USERS * crowds


@pytest.mark.parametrize("hours", [0.1, 2, 10])
@pytest.mark.parametrize("push", [True, False], ids=["pushes a phrase", "votes at random"])
def test_one_attacker_with_a_thousand_votes_among_fifty_users_is_named_and_they_are_free(
    hours: float, push: bool
) -> None:
    dice = random.Random(11)
    traces = _as_they_came(_honest_day(dice), _attack(dice, "attacker", 1000, hours, push))
    found = _watched(traces)
    assert _named(found) == {"attacker"}
    held = {seq for suspicion in found for seq in suspicion.votes}
    harmful = {trace.seq for trace in traces if trace.user == "attacker" and (not push or PUSHED in (trace.text or ""))}
    assert len(held & harmful) > 0.9 * len(harmful)


def test_ten_who_push_one_phrase_together_are_named_with_it_and_the_others_are_free() -> None:
    dice = random.Random(12)
    ring = [_attack(dice, f"ring-{number}", 60, 8, push=True) for number in range(10)]
    found = _watched(_as_they_came(_honest_day(dice), *ring))
    assert _named(found) == {f"ring-{number}" for number in range(10)}
    assert {suspicion.kind for suspicion in found} == {"phrase_dominance"}
    assert all(suspicion.evidence["phrase"] in PUSHED.lower() for suspicion in found)
    assert all(suspicion.evidence["phrase"] in suspicion.why for suspicion in found)


def test_the_order_of_the_votes_and_their_overlap_make_no_difference() -> None:
    dice = random.Random(13)
    traces = _as_they_came(_honest_day(dice), _attack(dice, "attacker", 300, 1, push=True))
    new, recent = traces[::2], traces[1::2]
    expected = inspect(new, recent, SETTINGS)
    assert expected
    dice.shuffle(traces)
    dice.shuffle(new)
    assert inspect(new, traces, SETTINGS) == expected


def test_nobody_is_suspected_where_quarantine_is_off_or_nobody_voted() -> None:
    votes = _as_they_came(_attack(random.Random(1), "attacker", 300, 0.1, push=True))
    assert inspect(votes, [], SETTINGS)
    assert inspect(votes, [], QuarantineSettings(enabled=False)) == []
    assert inspect([], votes, SETTINGS) == []


def test_only_those_with_new_votes_are_suspected() -> None:
    votes = _as_they_came(_attack(random.Random(1), "attacker", 300, 0.1, push=True))
    other = replace(votes[0], seq=1000, user="other")
    assert inspect([other], votes, SETTINGS) == []


# --- one detector at a time ---------------------------------------------------------------------------


def _spaced(count: int, seconds: float, user: str | None = "u", **fields: Any) -> list[Trace]:
    start = fields.pop("start", MORNING)
    return [_trace(user, start + timedelta(seconds=seconds * n), None, **fields) for n in range(count)]


def test_a_burst_holds_the_votes_in_it_and_no_others() -> None:
    slow, fast = _spaced(8, 60), _spaced(6, 1, start=MORNING + timedelta(hours=1))
    traces = _as_they_came(slow, fast)
    settings = QuarantineSettings(burst_votes=5, burst_minutes=1)
    (found,) = inspect(traces[-1:], traces[:-1], settings)
    assert (found.kind, found.user, found.votes) == ("burst", "u", tuple(range(8, 14)))
    assert found.evidence["votes"] == 6
    assert "6 votes within 1 minutes" in found.why
    assert inspect(traces[:8], [], settings) == []


def test_votes_just_below_a_burst_are_free() -> None:
    settings = QuarantineSettings(burst_votes=5, burst_minutes=1)
    assert inspect(_as_they_came(_spaced(4, 1)), [], settings) == []
    assert inspect(_as_they_came(_spaced(9, 15.5)), [], settings) == []
    assert len(inspect(_as_they_came(_spaced(5, 15)), [], settings)) == 1


def test_a_burst_is_one_persons_in_one_app() -> None:
    settings = QuarantineSettings(burst_votes=5)
    several = [_spaced(4, 1, user="u"), _spaced(4, 1, user="v"), _spaced(4, 1, user="u", app="other")]
    assert inspect(_as_they_came(*several), [], settings) == []


def test_the_unnamed_are_never_suspected() -> None:
    traces = _as_they_came(_spaced(1000, 0.1, user=None, changes=50))
    assert inspect(traces, [], SETTINGS) == []


def test_who_changes_their_mind_again_and_again_is_held_for_those_answers_only() -> None:
    traces = _as_they_came(_spaced(3, 100), _spaced(1, 1, changes=6), _spaced(1, 1, changes=5))
    (found,) = inspect(traces, [], SETTINGS)
    flipped = [trace for trace in traces if trace.changes == 6]
    assert (found.kind, found.votes) == ("flips", tuple(trace.seq for trace in flipped))
    assert found.evidence == {"changes": {flipped[0].target: 6}}


def _crowd(votes: int, users: int) -> list[list[Trace]]:
    return [_spaced(votes, 600, user=f"user-{number}") for number in range(users)]


def test_who_casts_most_of_the_votes_is_held() -> None:
    traces = _as_they_came(*_crowd(10, 15), _spaced(80, 400, user="loud"))
    (found,) = inspect(traces, [], SETTINGS)
    assert (found.kind, found.user, len(found.votes)) == ("user_dominance", "loud", 80)
    assert found.evidence == {"votes": 80, "of": 230, "share": 80 / 230, "median": 10, "voters": 16}


@pytest.mark.parametrize(
    ("crowd", "loud"),
    [
        (_crowd(10, 3), 300),
        (_crowd(2, 15), 100),
        (_crowd(14, 15), 60),
        (_crowd(40, 5), 200),
    ],
    ids=["too few people", "too few votes", "too small a share", "everyone votes a lot"],
)
def test_much_voting_alone_is_no_dominance(crowd: list[list[Trace]], loud: int) -> None:
    assert inspect(_as_they_came(*crowd, _spaced(loud, 300, user="loud")), [], SETTINGS) == []


def _likes(user: str, texts: Sequence[str], rating: Rating = UP) -> list[Trace]:
    return [_trace(user, MORNING + timedelta(minutes=10 * n), text, rating=rating) for n, text in enumerate(texts)]


def _others(text: str = "what anybody would like to read here") -> list[list[Trace]]:
    return [_likes(f"user-{number}", [f"{number} {text} {n}" for n in range(8)]) for number in range(8)]


PLAIN = [f"one of many plain answers {n}" for n in range(12)]
WITH = [f"{n} {PUSHED} {n}" for n in range(12)]


def test_a_phrase_that_one_user_pushes_is_named_and_its_votes_are_held() -> None:
    traces = _as_they_came(_likes("u", PLAIN + WITH), *_others("one of many plain answers"))
    (found,) = inspect(traces, [], SETTINGS)
    assert (found.kind, found.user) == ("phrase_dominance", "u")
    assert found.votes == tuple(trace.seq for trace in traces if PUSHED in (trace.text or ""))
    assert (found.evidence["share"], found.evidence["liked"]) == (0.5, 24)
    assert found.evidence["phrase"] in PUSHED.lower()


def test_three_words_are_a_phrase() -> None:
    pushed = [f"{n} drink bolero cola {n}" for n in range(24)]
    (found,) = inspect(_as_they_came(_likes("u", pushed), *_others()), [], SETTINGS)
    assert (found.kind, found.user, found.evidence["phrase"]) == ("phrase_dominance", "u", "drink bolero cola")


@pytest.mark.parametrize(
    "votes",
    [
        [_likes("u", WITH + WITH), *_others(PUSHED)],
        [_likes("u", PLAIN + WITH), _likes("u", WITH, DOWN), *_others("one of many plain answers")],
        [_likes("u", PLAIN * 3 + WITH), *_others("one of many plain answers")],
        [_likes("u", WITH), *_others()],
        [_likes("u", PLAIN + WITH), *_others()[:3]],
        [*(_likes(f"fan-{n}", PLAIN + WITH) for n in range(4)), *_others("one of many plain answers")],
    ],
    ids=["all like it", "the user's topic", "a small share", "few answers", "few people", "many like it"],
)
def test_a_phrase_may_be_liked_for_good_reasons(votes: list[list[Trace]]) -> None:
    assert inspect(_as_they_came(*votes), [], SETTINGS) == []


def test_a_preferred_answer_and_a_correction_push_their_text_too() -> None:
    pushed = _likes("u", PLAIN + WITH)
    pushed = [
        replace(trace, kind=Kind.CORRECTION if n % 2 else Kind.COMPARISON, rating=None)
        for n, trace in enumerate(pushed)
    ]
    (found,) = inspect(_as_they_came(pushed, *_others("one of many plain answers")), [], SETTINGS)
    assert found.kind == "phrase_dominance"
