"""What each round has learned from or held out: written once, when it freezes its input.

With its pairs a round takes those that these settle: what says the same, and what fewer people said against it. It learns
none of them and they count nowhere: they are used up, free or retired with the others. To a later round, where what
settled them is no longer open, they would else look new.

A pair of a round that ended without a verdict (failed, cancelled) was not learned and is free again. Of a round with a
verdict, which may have been rolled back since, an operator can say what becomes of its pairs:

    learned    they are used up; a later round may learn them again beside new ones, so that they are not forgotten
    released   they count as new again
    retired    no round will ever learn them again

Whenever pairs are taken or set free, their prompts are matched anew: `stale` says so in the transaction that takes or
frees them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal

from sqlalchemy import ARRAY, DateTime, Row, Select, and_, any_, func, insert, literal, or_, select, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from service.contracts import RoundState
from service.curation.ballots import Learned
from service.digest import content_digest
from service.errors import Conflict, NotFound
from service.pairs import Pair, Source
from service.postgres.arrays import as_table, texts
from service.postgres.sessions import Sessions
from service.preferences import voter
from service.store import audit
from service.store.tables import completions, feedback, imported_pairs, round_pairs, rounds, stale_prompts
from service.votes import ChoiceKey, Rating
from training.contracts import HELD_OUT, TRAIN

SETTLED = "settled"  # the split of a pair that is neither learned nor held out, beside TRAIN and HELD_OUT

_OF_RATINGS = {Source.SIBLINGS.value, Source.SAME_PROMPT.value, Source.THUMB.value}
_LEARNED_NOTHING = [RoundState.FAILED.value, RoundState.CANCELLED.value]

Fate = Literal["learned", "released", "retired"]


class RoundPairs:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def decide(self, n: int, fate: Fate, *, who: str, reason: str | None) -> int:
        """What becomes of the pairs of a round that is over; how many they are, without settled ones. Audited; another
        decision may follow.

        Raises `NotFound`, and `Conflict` for a round that runs, that took no pairs, or of which it was decided so
        already.
        """
        async with self._sessions.transaction() as connection:
            found = await connection.execute(select(rounds).where(rounds.c.n == n).with_for_update())
            round = found.one_or_none()
            if round is None:
                raise NotFound(f"There is no round {n}.", param="n", code="round_not_found")
            _require_decidable(round, fate)
            await connection.execute(update(rounds).where(rounds.c.n == n).values(pairs_fate=fate))
            await stale(connection, n)
            taken = select(func.count()).where(round_pairs.c.round == n, round_pairs.c.split != SETTLED)
            pairs = (await connection.execute(taken)).scalar_one()
            detail = {"pairs": pairs, "was": round.pairs_fate, "reason": reason}
            await audit.append(connection, who=who, action=f"pairs_{fate}", subject=f"round {n}", detail=detail)
            return pairs


def _require_decidable(round: Row[Any], fate: Fate) -> None:
    state = RoundState(round.state)
    if not state.final:
        raise Conflict(f"Round {round.n} is {state}. Wait for its end, or cancel it.", param="n", code="round_running")
    if state.value in _LEARNED_NOTHING:
        said = f"Round {round.n} was {state}, so its pairs are free already: a round that has a verdict keeps its own."
        raise Conflict(said, param="n", code="nothing_learned")
    if round.pairs_fate == fate:
        raise Conflict(f"The pairs of round {round.n} are {fate} already.", param="fate", code="already_decided")


async def append(
    connection: AsyncConnection,
    n: int,
    pairs: Sequence[Pair],
    held_out: AbstractSet[str],
    settled: Sequence[Pair],
) -> None:
    """The round takes these pairs, and with them those that they settle."""
    assert pairs or not settled, "what is settled has a pair that settles it"
    if pairs:
        rows = [_row(n, pair, HELD_OUT if pair.id in held_out else TRAIN) for pair in pairs]
        rows += [_row(n, pair, SETTLED) for pair in settled]
        await connection.execute(insert(round_pairs), rows)
        await stale(connection, n)


async def stale(connection: AsyncConnection, n: int) -> None:
    """What the round took is to be looked at anew: it is taken, or free again."""
    answer = func.coalesce(round_pairs.c.rejected_completion_id, round_pairs.c.chosen_completion_id)
    prompts = (
        select(completions.c.app, completions.c.prompt_digest)
        .join(round_pairs, answer == completions.c.id)
        .where(round_pairs.c.round == n)
        .distinct()
        .order_by(completions.c.app, completions.c.prompt_digest)
    )
    await connection.execute(insert(stale_prompts).from_select(["app", "prompt_digest"], prompts))
    taken = select(round_pairs.c.pair_id).where(round_pairs.c.round == n)
    await connection.execute(update(imported_pairs).where(imported_pairs.c.id.in_(taken)).values(stale=True))


def used_up(pair_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Some round has learned the pair with this id, or may still; or one that settles it."""
    return _taken(pair_id).exists()


def learned(pair_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Some round has learned the pair with this id, or may still."""
    return _taken(pair_id).where(round_pairs.c.split != SETTLED).exists()


def _taken(pair_id: ColumnElement[str]) -> Select[tuple[str]]:
    return select(round_pairs.c.pair_id).join(rounds).where(counts(), round_pairs.c.pair_id == pair_id)


async def used_up_among(connection: AsyncConnection, pair_ids: Sequence[str]) -> set[str]:
    """Those of these pairs that some round has learned, or may still; or one that settles them."""
    ids = any_(texts(pair_ids))
    found = await connection.execute(
        select(round_pairs.c.pair_id).join(rounds).where(counts(), round_pairs.c.pair_id == ids)
    )
    return set(found.scalars())


async def used_up_of(
    connection: AsyncConnection, completion_ids: Collection[str]
) -> tuple[dict[ChoiceKey, Learned], set[str]]:
    """What rounds have used up, or may, of these completions: the answers in pairs made of ratings, and the ids of all
    pairs."""
    ids = any_(texts(sorted(completion_ids)))
    sides = [(round_pairs.c[f"{s}_completion_id"], round_pairs.c[f"{s}_choice_index"]) for s in ("chosen", "rejected")]
    found = await connection.execute(
        select(round_pairs.c.pair_id, round_pairs.c.source, rounds.c.created_at, *sides[0], *sides[1])
        .join(rounds)
        .where(counts(), or_(*(completion_id == ids for completion_id, _ in sides)))
        .order_by(rounds.c.created_at)
    )
    choices: dict[ChoiceKey, Learned] = {}
    pair_ids: set[str] = set()
    for pair_id, source, asked_at, *keys in found:
        pair_ids.add(pair_id)
        if source in _OF_RATINGS:
            sides_of_pair = {Rating.UP: choice_key(*keys[:2]), Rating.DOWN: choice_key(*keys[2:])}
            choices |= {key: Learned(rating, asked_at) for rating, key in sides_of_pair.items() if key is not None}
    return choices, pair_ids


async def counted(connection: AsyncConnection, days: Collection[date]) -> dict[tuple[str, date], int]:
    """(voter, UTC day) -> pairs of that voter and that day which rounds have learned, or may; of these days."""
    begins = [datetime.combine(day, time(), UTC) for day in sorted(days)]
    day = as_table("day", begins=literal(begins, ARRAY(DateTime(timezone=True))))
    of_day = (round_pairs.c.voted_at >= day.c.begins) & (round_pairs.c.voted_at < day.c.begins + timedelta(days=1))
    used = (
        select(func.unnest(round_pairs.c.charged_to).label("voter"), day.c.begins)
        .select_from(day.join(round_pairs, of_day).join(rounds, rounds.c.n == round_pairs.c.round))
        .where(counts(), round_pairs.c.source != Source.THUMB.value, round_pairs.c.split != SETTLED)
        .subquery("used")
    )
    found = await connection.execute(select(*used.c, func.count().label("pairs")).group_by(*used.c))
    return {(row.voter, row.begins.astimezone(UTC).date()): row.pairs for row in found}


async def trained(connection: AsyncConnection, promoted: Sequence[int]) -> list[Pair]:
    """The pairs and thumbs that those of the given rounds which were promoted have trained on, each once, by id.

    What is no longer stored is left out, and what an operator has released or retired.
    """
    served = func.coalesce(round_pairs.c.chosen_completion_id, round_pairs.c.rejected_completion_id)
    first, corrected = feedback.alias("first"), feedback.alias("corrected")
    first_vote = round_pairs.c.votes[1]  # SQL counts from 1
    found = await connection.execute(
        select(round_pairs, completions.c.app, completions.c.prompt_digest, first.c.user, imported_pairs.c.messages)
        .join(rounds, rounds.c.n == round_pairs.c.round)
        .outerjoin(completions, (completions.c.id == served) & completions.c.prompt_token_ids.is_not(None))
        .outerjoin(first, first.c.seq == first_vote)
        .outerjoin(corrected, corrected.c.seq == round_pairs.c.correction)
        .outerjoin(imported_pairs, imported_pairs.c.id == round_pairs.c.pair_id)
        .where(round_pairs.c.round.in_(promoted), round_pairs.c.split == TRAIN)
        .where(rounds.c.state == RoundState.PROMOTED.value, rounds.c.pairs_fate == "learned")
        .where(or_(completions.c.prompt_digest.is_not(None), imported_pairs.c.messages.is_not(None)))
        .where(or_(round_pairs.c.correction.is_(None), corrected.c.correction.is_not(None)))
        .ext(distinct_on(round_pairs.c.pair_id))  # what was released and kept again may have been learned twice
        .order_by(round_pairs.c.pair_id)
    )
    return [_pair(row) for row in found]


def choice_key(completion_id: str | None, choice_index: int | None) -> ChoiceKey | None:
    return None if completion_id is None or choice_index is None else (completion_id, choice_index)


def _pair(row: Row[Any]) -> Pair:
    imported = row.messages is not None
    return Pair(
        id=row.pair_id,
        source=row.source,
        prompt_digest=content_digest(row.messages) if imported else row.prompt_digest,
        app=row.app,
        chosen=choice_key(row.chosen_completion_id, row.chosen_choice_index),
        rejected=choice_key(row.rejected_completion_id, row.rejected_choice_index),
        correction=row.correction,
        votes=tuple(row.votes),
        voter=None if imported or row.user is None else voter(row.app, row.user or None),
    )


def counts() -> ColumnElement[bool]:
    """Of a row of `rounds`: its pairs are used up. It ended with a verdict, or may still do so, and nobody released them."""
    return and_(rounds.c.state.not_in(_LEARNED_NOTHING), rounds.c.pairs_fate != "released")


def _row(n: int, pair: Pair, split: str) -> dict[str, Any]:
    chosen, rejected = pair.chosen or (None, None), pair.rejected or (None, None)
    return {
        "round": n,
        "pair_id": pair.id,
        "split": split,
        "source": pair.source.value,
        "correction": pair.correction,
        "chosen_completion_id": chosen[0],
        "chosen_choice_index": chosen[1],
        "rejected_completion_id": rejected[0],
        "rejected_choice_index": rejected[1],
        "votes": list(pair.votes),
        "charged_to": list(pair.charged_to),
        "voted_at": pair.voted_at,
    }
