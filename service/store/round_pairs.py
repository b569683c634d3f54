"""What each round has learned from or held out: written once, when it freezes its input.

A pair of a round that ended without a verdict (failed, cancelled) was not learned and is free again.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal

from sqlalchemy import Row, Select, func, insert, select, union
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from service.contracts import RoundState
from service.digest import content_digest
from service.pairs import Pair
from service.preferences import voter
from service.store.feedback import NO_USER
from service.store.tables import completions, feedback, imported_pairs, round_pairs, rounds
from training.contracts import HELD_OUT, TRAIN

ChoiceKey = tuple[str, int]  # (completion_id, choice_index)
_LEARNED_NOTHING = [RoundState.FAILED.value, RoundState.CANCELLED.value]


async def append(connection: AsyncConnection, n: int, pairs: Sequence[Pair], held_out: AbstractSet[str]) -> None:
    if pairs:
        await connection.execute(insert(round_pairs), [_row(n, pair, held_out) for pair in pairs])


async def learned_choices(connection: AsyncConnection) -> set[ChoiceKey]:
    """The choices in pairs of rounds that ended with a verdict, or that may still do so."""
    found = await connection.execute(union(_learned_side("chosen"), _learned_side("rejected")))
    return {(completion_id, choice_index) for completion_id, choice_index in found}


def learned_import() -> ColumnElement[bool]:
    """Of a row of `imported_pairs`: some round has learned it, or may still."""
    learned = (
        select(round_pairs.c.pair_id)
        .select_from(round_pairs.join(rounds))
        .where(rounds.c.state.not_in(_LEARNED_NOTHING))
        .where(round_pairs.c.pair_id == imported_pairs.c.id)
    )
    return learned.exists()


async def trained(connection: AsyncConnection, promoted: Sequence[int]) -> list[Pair]:
    """The pairs and thumbs that those of the given rounds which were promoted have trained on, by id.

    What is no longer stored is left out.
    """
    served = func.coalesce(round_pairs.c.chosen_completion_id, round_pairs.c.rejected_completion_id)
    first_vote = round_pairs.c.votes[1]  # SQL counts from 1
    found = await connection.execute(
        select(round_pairs, completions.c.app, completions.c.prompt_digest, feedback.c.user, imported_pairs.c.messages)
        .join(rounds, rounds.c.n == round_pairs.c.round)
        .outerjoin(completions, (completions.c.id == served) & completions.c.prompt_token_ids.is_not(None))
        .outerjoin(feedback, feedback.c.seq == first_vote)
        .outerjoin(imported_pairs, imported_pairs.c.id == round_pairs.c.pair_id)
        .where(round_pairs.c.round.in_(promoted), round_pairs.c.split == TRAIN)
        .where(rounds.c.state == RoundState.PROMOTED.value)
        .order_by(round_pairs.c.pair_id)
    )
    return [_pair(row) for row in found if row.prompt_digest is not None or row.messages is not None]


def _pair(row: Row[Any]) -> Pair:
    imported = row.messages is not None
    return Pair(
        id=row.pair_id,
        origin=row.origin,
        prompt_digest=content_digest(row.messages) if imported else row.prompt_digest,
        app=row.app,
        chosen=_key(row.chosen_completion_id, row.chosen_choice_index),
        rejected=_key(row.rejected_completion_id, row.rejected_choice_index),
        votes=tuple(row.votes),
        voter=None if imported or row.user in (None, NO_USER) else voter(row.app, row.user),
    )


def _key(completion_id: str | None, choice_index: int | None) -> ChoiceKey | None:
    return None if completion_id is None or choice_index is None else (completion_id, choice_index)


def _learned_side(side: Literal["chosen", "rejected"]) -> Select[Any, Any]:
    completion_id, choice_index = round_pairs.c[f"{side}_completion_id"], round_pairs.c[f"{side}_choice_index"]
    return (
        select(completion_id, choice_index)
        .join(rounds, rounds.c.n == round_pairs.c.round)
        .where(rounds.c.state.not_in(_LEARNED_NOTHING), completion_id.is_not(None))
    )


def _row(n: int, pair: Pair, held_out: AbstractSet[str]) -> dict[str, Any]:
    chosen, rejected = pair.chosen or (None, None), pair.rejected or (None, None)
    return {
        "round": n,
        "pair_id": pair.id,
        "split": HELD_OUT if pair.id in held_out else TRAIN,
        "origin": pair.origin,
        "chosen_completion_id": chosen[0],
        "chosen_choice_index": chosen[1],
        "rejected_completion_id": rejected[0],
        "rejected_choice_index": rejected[1],
        "votes": list(pair.votes),
    }
