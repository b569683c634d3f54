"""Which pairs a round learns from, and for each that it does not, why. Pure.

Where pairs stand in each other's way the best signal stays, and of equal signals the earliest. What a guard left out
takes nobody's place: who votes too much, or too late, keeps no one else's pair from the round.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from service.curation.likeness import SLOTS, Shelf, condensed
from service.curation.settings import PreferenceSettings
from service.pairs import LeftOut, Pair, Source

_Text = tuple[int, int]  # its signature in one number, and its length in characters

LEAST_WEIGHT = 1e-3  # of a pair in the loss, however stale its answers


@dataclass(frozen=True)
class Context:
    """What a selection depends on beside the pairs and the settings."""

    now: datetime  # when the round was created
    adapters_behind: Mapping[str, int] = field(default_factory=dict)  # adapter -> promotions since; of others 0
    counted: Mapping[tuple[str, date], int] = field(default_factory=dict)  # (voter, UTC day) -> pairs of other rounds
    frozen: AbstractSet[tuple[int, ...]] = frozenset()  # signatures of the questions in the gate's suites


@dataclass(frozen=True)
class Selection:
    kept: list[Pair]  # sorted by id, each with its weight
    left_out: dict[str, LeftOut]  # pair id -> why
    settled: dict[str, str]  # of them: pair id -> id of the kept pair that says the same, or has outvoted it


def select(pairs: Sequence[Pair], settings: PreferenceSettings, context: Context) -> Selection:
    """Those of the pairs, imported pairs and thumbs that count. The answer does not depend on their order.

    Thumbs come after all pairs, so that they take no pair's place; imported ones are only asked whether they are there
    already. The cost is linear in the number of pairs.
    """
    ordered = sorted({pair.id: pair for pair in pairs}.values(), key=_precedence)
    left_out = {pair.id: reason for pair in ordered if (reason := _alone(pair, settings, context)) is not None}
    said = _Said.of([pair for pair in ordered if pair.id not in left_out])
    outvoted = _contradicted([pair for pair in ordered if pair.id not in left_out], said)
    left_out |= dict.fromkeys(outvoted, LeftOut.CONTRADICTED)
    beside, doubled = _together([pair for pair in ordered if pair.id not in left_out], said, settings, context)
    left_out |= beside
    left_out |= _beyond_app_share([pair for pair in ordered if pair.id not in left_out], settings.max_share_per_app)
    left_out |= _too_many_longer([pair for pair in ordered if pair.id not in left_out], settings.max_longer_share)
    kept = [_weighted(pair, settings, context) for pair in ordered if pair.id not in left_out]
    return Selection(sorted(kept, key=lambda pair: pair.id), left_out, _settled(doubled, outvoted, left_out))


def _precedence(pair: Pair) -> tuple[int, int, str]:
    """Thumbs are the last of the sources."""
    return pair.source.rank, min(pair.votes, default=0), pair.id


def _is_voted(pair: Pair) -> bool:
    return pair.app is not None


def _voted_at(pair: Pair) -> datetime:
    assert pair.voted_at is not None, "a pair from votes has a time"
    return pair.voted_at


# --- a pair by itself ---------------------------------------------------------------------------------


def _alone(pair: Pair, settings: PreferenceSettings, context: Context) -> LeftOut | None:
    """What is wrong with the pair whatever the others are."""
    if pair.signature[:SLOTS] in context.frozen:
        return LeftOut.FROZEN
    if not _is_voted(pair):
        return None
    if settings.max_age_days is not None and context.now - _voted_at(pair) > timedelta(days=settings.max_age_days):
        return LeftOut.TOO_OLD
    if settings.max_adapters_behind is not None and _behind(pair, context) > settings.max_adapters_behind:
        return LeftOut.STALE_ADAPTER
    return LeftOut.DICTATED if pair.copied > settings.dictated else None


def _behind(pair: Pair, context: Context) -> int:
    """Promotions since the older of the adapters that wrote its answers."""
    return max((context.adapters_behind.get(adapter, 0) for adapter in pair.adapters), default=0)


def _weighted(pair: Pair, settings: PreferenceSettings, context: Context) -> Pair:
    if settings.staleness_half_life is None or not (behind := _behind(pair, context)):
        return pair
    weight = max(0.5 ** (behind / settings.staleness_half_life), LEAST_WEIGHT)
    return pair.model_copy(update={"weight": weight})


# --- pairs among each other ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Said:
    """What pairs say, as far as guards need to know: texts that have the same signature and length are the same."""

    rows: Mapping[str, int]  # pair id -> row; a pair without a signature has none
    signatures: NDArray[np.int64]  # [rows, 3 * SLOTS]
    parts: list[list[int]]  # [rows][3] stand for the question, the chosen and the rejected answer

    @classmethod
    def of(cls, pairs: Iterable[Pair]) -> _Said:
        signed = [pair for pair in pairs if pair.signature]
        signatures = np.array([pair.signature for pair in signed], dtype=np.int64).reshape(len(signed), 3 * SLOTS)
        return cls({pair.id: row for row, pair in enumerate(signed)}, signatures, condensed(signatures).tolist())

    def sides(self, pair: Pair) -> tuple[int, _Text, _Text] | None:
        """The question, what is preferred, and to what."""
        row = self.rows.get(pair.id)
        if row is None:
            return None
        question, chosen, rejected = self.parts[row]
        return question, (chosen, pair.chosen_length), (rejected, pair.rejected_length)


def _contradicted(pairs: Iterable[Pair], said: _Said) -> dict[str, list[str]]:
    """Of pairs that prefer the same two texts the other way round, those with fewer voters; of a draw all.

    For each the ids of the pairs that won; of a draw there are none.
    """
    opposed: defaultdict[object, defaultdict[_Text, list[Pair]]] = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        sides = said.sides(pair)
        if sides is not None and _is_voted(pair) and not pair.is_thumb:
            question, chosen, rejected = sides
            opposed[pair.app, question, frozenset((chosen, rejected))][chosen].append(pair)
    outvoted: dict[str, list[str]] = {}
    for of_chosen in (of_chosen for of_chosen in opposed.values() if len(of_chosen) > 1):
        voters = {chosen: len({one for pair in side for one in pair.voters}) for chosen, side in of_chosen.items()}
        most = [chosen for chosen in of_chosen if voters[chosen] == max(voters.values())]
        won = [pair.id for pair in of_chosen[most[0]]] if len(most) == 1 else []
        losers = [side for chosen, side in of_chosen.items() if most != [chosen]]
        outvoted |= {pair.id: won for side in losers for pair in side}
    return outvoted


def _together(
    pairs: Sequence[Pair], said: _Said, settings: PreferenceSettings, context: Context
) -> tuple[dict[str, LeftOut], dict[str, str]]:
    """Duplicates of what is kept, and what goes over the caps of a person and of a prompt; `pairs` by precedence.

    The second is for each duplicate the id of the pair that it doubles.
    """
    shelf = Shelf(said.signatures, settings.near_duplicate) if settings.near_duplicate < 1 else None
    room = _Room(settings, context.counted)
    ids = list(said.rows)  # [rows]
    kept: dict[tuple[int, _Text, _Text], str] = {}
    left_out: dict[str, LeftOut] = {}
    doubled: dict[str, str] = {}
    for pair in pairs:
        sides = said.sides(pair)
        if sides in kept:
            left_out[pair.id], doubled[pair.id] = LeftOut.DUPLICATE, kept[sides]
        elif shelf is not None and sides is not None and (alike := shelf.like(said.rows[pair.id])) is not None:
            left_out[pair.id], doubled[pair.id] = LeftOut.NEAR_DUPLICATE, ids[alike]
        elif _is_voted(pair) and (full := room.refuses(pair)) is not None:
            left_out[pair.id] = full
        else:
            room.take(pair)
            if sides is not None:
                kept[sides] = pair.id
            if shelf is not None and sides is not None:
                shelf.put(said.rows[pair.id])
    return left_out, doubled


def _settled(
    doubled: Mapping[str, str], outvoted: Mapping[str, Sequence[str]], left_out: Mapping[str, LeftOut]
) -> dict[str, str]:
    """Pairs on whose matter a kept pair has the word, and which. If no such pair is kept, it is for a later round."""
    settled = dict(doubled)
    for id, winners in outvoted.items():
        if prevailed := {doubled.get(winner, winner) for winner in winners} - left_out.keys():
            settled[id] = min(prevailed)
    return {id: kept for id, kept in settled.items() if kept not in left_out}


class _Room:
    """How much room the caps leave."""

    def __init__(self, settings: PreferenceSettings, counted: Mapping[tuple[str, date], int]) -> None:
        self._settings = settings
        self._of_user: Counter[str] = Counter()
        self._of_day: Counter[tuple[str, date]] = Counter(counted)
        self._of_prompt: Counter[tuple[str | None, str]] = Counter()

    def refuses(self, pair: Pair) -> LeftOut | None:
        """A pair counts for each person without whom it would not be, and needs room for all of them."""
        settings, day = self._settings, _day(pair)
        if any(self._of_user[user] >= settings.max_pairs_per_user for user in pair.charged_to):
            return LeftOut.USER_CAP
        if any(self._of_day[user, day] >= settings.max_pairs_per_user_per_day for user in pair.charged_to):
            return LeftOut.USER_DAY_CAP
        if self._of_prompt[pair.app, pair.prompt_digest] >= settings.max_pairs_per_prompt:
            return LeftOut.PROMPT_CAP
        return None

    def take(self, pair: Pair) -> None:
        if not _is_voted(pair):
            return
        self._of_prompt[pair.app, pair.prompt_digest] += 1
        self._of_user.update(pair.charged_to)
        self._of_day.update((user, _day(pair)) for user in pair.charged_to)


def _day(pair: Pair) -> date:
    return _voted_at(pair).astimezone(UTC).date()


# --- the shape of the whole ---------------------------------------------------------------------------


def _beyond_app_share(pairs: Sequence[Pair], share: float) -> dict[str, LeftOut]:
    """What an app has over its share of the pairs from votes that all guards before this one let through.

    Of what they let through, and not of what stays in the end: one pair more or less of a small app would else decide
    about many of a large one, and an app alone could keep nothing.
    """
    voted = [pair for pair in pairs if _is_voted(pair) and not pair.is_thumb]
    most = max(int(share * len(voted)), 1)
    seen: Counter[str | None] = Counter()
    left_out = {}
    for pair in voted:
        seen[pair.app] += 1
        if seen[pair.app] > most:
            left_out[pair.id] = LeftOut.APP_CAP
    return left_out


def _too_many_longer(pairs: Sequence[Pair], share: float) -> dict[str, LeftOut]:
    """The surplus of pairs from votes whose chosen answer is the longer one, the weakest signals first."""
    if share >= 1:
        return {}
    voted = [pair for pair in pairs if _is_voted(pair) and pair.source is not Source.THUMB]
    longer = [pair for pair in voted if pair.chosen_length > pair.rejected_length]
    most = int(share / (1 - share) * (len(voted) - len(longer)) + 1e-9)
    return {pair.id: LeftOut.LENGTH_BALANCE for pair in longer[most:]}
