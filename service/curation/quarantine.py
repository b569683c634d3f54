"""Votes that come in a way that people do not vote in, to be held until an operator has looked. Pure.

A detector names one user of one app and the votes to hold; it does not know who that is, or whether it was right.
Votes whose user the app does not name are never suspected: they may be anyone's, and the caps of
`service/curation/guards.py` hold them all together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any, Literal

from service.curation.likeness import words
from service.curation.settings import QuarantineSettings
from service.votes import ChoiceKey, Kind, Rating

CROWD = 5  # voters: among fewer, one who votes the most is nothing to wonder at
DOMINANT_TIMES = 8  # the votes of the app's median voter that a dominant one has at least
PHRASE_WORDS = 3
PHRASES_SHOWN = 10
ELSEWHERE = 0.02  # share of the others' liked answers in which a phrase that is pushed may stand
TOPICAL = 0.5  # a phrase in the user's disliked answers this often, relative to the liked ones, is what they ask about
FEW_PUSH = 0.25  # of an app's voters: a phrase that more of them like is a taste, not a push


@dataclass(frozen=True)
class Trace:
    """One effective vote, as the detectors see it."""

    seq: int
    app: str
    user: str | None  # None: the app named no user
    kind: Kind
    rating: Rating | None
    target: str
    choice: ChoiceKey
    adapter: str
    voted_at: datetime
    text: str | None  # of the answer voted on; of a correction the user's own; None: not stored
    changes: int = 0  # how often this user changed their mind about this target

    @property
    def likes(self) -> bool:
        """Does the vote push the policy towards its text?"""
        return self.rating is not Rating.DOWN


@dataclass(frozen=True)
class Suspicion:
    """What an operator is shown, and the votes that wait for the operator's word."""

    kind: Literal["burst", "flips", "user_dominance", "phrase_dominance"]
    app: str
    user: str
    why: str
    evidence: dict[str, Any]
    votes: tuple[int, ...]  # seq to hold, sorted


Phrase = tuple[str, ...]  # PHRASE_WORDS words
OfUser = Mapping[str, list[Trace]]  # one app's named users, each with their votes in the order of seq


def inspect(new: Sequence[Trace], recent: Sequence[Trace], settings: QuarantineSettings) -> list[Suspicion]:
    """Who of those with new votes is suspected of what, by app and user; the order of the input does not matter.

    `recent` are the latest earlier votes of the same apps within a day, all users', at most `settings.recent_votes` of
    an app. It may hold the new ones too. A suspicion may name recent votes, which were matched before it arose.
    """
    if not settings.enabled:
        return []
    active = {(trace.app, trace.user) for trace in new}
    found = []
    for app, of_user in _by_app([*recent, *new]).items():
        suspicions = [
            *(_burst(app, user, votes, settings) for user, votes in of_user.items()),
            *(_flips(app, user, votes, settings) for user, votes in of_user.items()),
            *_dominant_users(app, of_user, settings),
            *_dominant_phrases(app, of_user, settings),
        ]
        found += [one for one in suspicions if one is not None and (app, one.user) in active]
    return sorted(found, key=lambda one: (one.app, one.user, one.kind))


def _by_app(traces: Iterable[Trace]) -> dict[str, OfUser]:
    apps: defaultdict[str, defaultdict[str, list[Trace]]] = defaultdict(lambda: defaultdict(list))
    for trace in sorted({trace.seq: trace for trace in traces}.values(), key=lambda trace: trace.seq):
        if trace.user is not None:
            apps[trace.app][trace.user].append(trace)
    return dict(sorted(apps.items()))


def _seqs(traces: Iterable[Trace]) -> tuple[int, ...]:
    return tuple(sorted(trace.seq for trace in traces))


# --- one user alone -----------------------------------------------------------------------------------


def _burst(app: str, user: str, votes: Sequence[Trace], settings: QuarantineSettings) -> Suspicion | None:
    """More votes in a short time than a person casts who reads what they vote on."""
    if len(votes) < settings.burst_votes:
        return None
    timed = sorted(votes, key=lambda trace: (trace.voted_at, trace.seq))
    window = timedelta(minutes=settings.burst_minutes)
    held: list[Trace] = []
    first = most = ahead = 0  # `timed[:ahead]` are held already, or were cast too slowly
    for last, trace in enumerate(timed):
        while trace.voted_at - timed[first].voted_at > window:
            first += 1
        if last - first + 1 >= settings.burst_votes:
            most = max(most, last - first + 1)
            held += timed[max(first, ahead) : last + 1]
            ahead = last + 1
    if not held:
        return None
    why = f"{most} votes within {settings.burst_minutes:g} minutes; {settings.burst_votes} or more are held"
    return Suspicion("burst", app, user, why, {"votes": most, "minutes": settings.burst_minutes}, _seqs(held))


def _flips(app: str, user: str, votes: Sequence[Trace], settings: QuarantineSettings) -> Suspicion | None:
    """Changing one's mind about one answer again and again."""
    flipped = [trace for trace in votes if trace.changes >= settings.flips]
    if not flipped:
        return None
    worst = max(flipped, key=lambda trace: (trace.changes, -trace.seq))
    why = f"changed their mind {worst.changes} times about {worst.target}; {settings.flips} or more are held"
    evidence = {"changes": {trace.target: trace.changes for trace in flipped}}
    return Suspicion("flips", app, user, why, evidence, _seqs(flipped))


# --- one user among the others ------------------------------------------------------------------------


def _dominant_users(app: str, of_user: OfUser, settings: QuarantineSettings) -> list[Suspicion]:
    """Someone who casts a large share of all votes, and many times what people commonly cast."""
    total = sum(map(len, of_user.values()))
    if len(of_user) < CROWD or total < settings.dominance_votes:
        return []
    common = median(map(len, of_user.values()))
    found = []
    for user, votes in of_user.items():
        share = len(votes) / total
        if share > settings.user_share and len(votes) >= DOMINANT_TIMES * common:
            why = (
                f"{share:.0%} of the app's latest {total} votes are this user's; the median of {len(of_user)} voters "
                f"is {common:g}"
            )
            evidence = {"votes": len(votes), "of": total, "share": share, "median": common, "voters": len(of_user)}
            found.append(Suspicion("user_dominance", app, user, why, evidence, _seqs(votes)))
    return found


def _dominant_phrases(app: str, of_user: OfUser, settings: QuarantineSettings) -> list[Suspicion]:
    """A phrase in much of what a few users like, and in hardly anything that all the others like.

    Several users may push one phrase together: whoever does is none of the others.
    """
    frequent = {user: _frequent(votes, settings) for user, votes in of_user.items()}
    watched = set().union(*frequent.values())
    if len(of_user) < CROWD or not watched:
        return []
    likes = {user: _Likes.of(votes, watched) for user, votes in of_user.items()}
    pushed: defaultdict[Phrase, list[str]] = defaultdict(list)  # by whom
    for user, phrases in frequent.items():
        for phrase in phrases:
            if not likes[user].is_topic(phrase):
                pushed[phrase].append(user)
    found: defaultdict[str, list[Phrase]] = defaultdict(list)
    for phrase, users in sorted(pushed.items()):
        others = [likes[user] for user in of_user if user not in users]
        if len(users) <= FEW_PUSH * len(of_user) and _is_rare(phrase, others, settings):
            for user in users:
                found[user].append(phrase)
    return [_phrase_suspicion(app, user, likes[user], phrases, len(of_user)) for user, phrases in found.items()]


def _runs(text: str) -> Iterable[Phrase]:
    """Every run of PHRASE_WORDS words, whatever marks stand between them."""
    found = [word for word in words(text) if word[0].isalnum()]
    return zip(*(found[at:] for at in range(PHRASE_WORDS)), strict=False)


def _frequent(votes: Sequence[Trace], settings: QuarantineSettings) -> set[Phrase]:
    """Phrases in much of what a user likes."""
    texts = [trace.text for trace in votes if trace.likes and trace.text is not None]
    if len(texts) < settings.phrase_votes:
        return set()
    counts = Counter(phrase for text in texts for phrase in set(_runs(text)))
    return {phrase for phrase, count in counts.items() if count >= settings.phrase_share * len(texts)}


@dataclass(frozen=True)
class _Likes:
    """In which of a user's answers the watched phrases stand."""

    liked: int  # answers with a text
    disliked: int
    votes: Mapping[Phrase, list[int]]  # seq of the liked answers it stands in
    rebuffs: Mapping[Phrase, int]  # disliked answers it stands in

    @classmethod
    def of(cls, traces: Sequence[Trace], watched: AbstractSet[Phrase]) -> _Likes:
        votes: defaultdict[Phrase, list[int]] = defaultdict(list)
        rebuffs: Counter[Phrase] = Counter()
        counts = Counter(trace.likes for trace in traces if trace.text is not None)
        for trace in traces:
            standing = watched & set(_runs(trace.text or ""))
            if trace.likes:
                for phrase in standing:
                    votes[phrase].append(trace.seq)
            else:
                rebuffs.update(standing)
        return cls(counts[True], counts[False], dict(votes), rebuffs)

    def share(self, phrase: Phrase) -> float:
        return len(self.votes.get(phrase, ())) / max(self.liked, 1)

    def is_topic(self, phrase: Phrase) -> bool:
        """It stands in what the user dislikes as well: they ask about it."""
        return self.rebuffs.get(phrase, 0) / max(self.disliked, 1) >= TOPICAL * self.share(phrase)


def _is_rare(phrase: Phrase, others: Sequence[_Likes], settings: QuarantineSettings) -> bool:
    """False too where the others have liked too little to say so."""
    liked = sum(likes.liked for likes in others)
    return liked >= settings.phrase_votes and (
        sum(len(likes.votes.get(phrase, ())) for likes in others) <= ELSEWHERE * liked
    )


def _phrase_suspicion(app: str, user: str, likes: _Likes, phrases: Sequence[Phrase], voters: int) -> Suspicion:
    top = max(phrases, key=likes.share)  # of equals the first: they are sorted
    share, spelled = likes.share(top), [" ".join(phrase) for phrase in phrases]
    why = (
        f'"{" ".join(top)}" stands in {share:.0%} of the {likes.liked} answers that this user likes, and in hardly any '
        f"that the other {voters - 1} voters like"
    )
    evidence = {"phrase": " ".join(top), "share": share, "liked": likes.liked, "phrases": spelled[:PHRASES_SHOWN]}
    held = {seq for phrase in phrases for seq in likes.votes[phrase]}
    return Suspicion("phrase_dominance", app, user, why, evidence, tuple(sorted(held)))
