"""What preferences are made from: the effective votes, the imported pairs, and what earlier rounds learned.

Only reads and keeps; which pairs follow is `service/preferences.py`'s to say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, Row, Select, Text, any_, literal, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.pairs import ImportedPair, Pair
from service.store import round_pairs
from service.store.feedback import NO_USER
from service.store.round_pairs import ChoiceKey
from service.store.sessions import Sessions
from service.store.tables import choices, completions, feedback, imported_pairs
from service.votes import Vote
from training.contracts import HELD_OUT, NEW, TRAIN
from training.snapshot import SnapshotRow


class _Served(NamedTuple):
    prompt_token_ids: list[int]
    token_ids: list[int]


class Preferences:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def effective_votes(self) -> list[Vote]:
        """The last vote of each user on each choice, those retracted left out, in the order of `seq`."""
        async with self._sessions.transaction() as connection:
            return [_vote(row) for row in await connection.execute(_effective_votes())]

    async def learned_choices(self) -> set[ChoiceKey]:
        """The choices in pairs of rounds that ended with a verdict, or that may still do so."""
        async with self._sessions.transaction() as connection:
            return await round_pairs.learned_choices(connection)

    async def trained_in(self, rounds: Sequence[int]) -> list[Pair]:
        """What the promoted ones of these rounds have trained on, by id; never what they held out."""
        async with self._sessions.transaction() as connection:
            return await round_pairs.trained(connection, rounds)

    async def add_imported(self, pairs: Sequence[ImportedPair]) -> int:
        """Keeps the pairs, all or none; those already there are left alone. How many were new."""
        if not pairs:
            return 0
        rows = [
            {"id": pair.id, "messages": list(pair.messages), "chosen": pair.chosen, "rejected": pair.rejected}
            for pair in pairs
        ]
        statement = upsert(imported_pairs).on_conflict_do_nothing().returning(imported_pairs.c.id)
        async with self._sessions.transaction() as connection:
            return len((await connection.execute(statement, rows)).all())

    async def imported_new(self) -> list[ImportedPair]:
        """The imported pairs that no round has learned, nor may still, oldest first."""
        statement = select(imported_pairs).where(~round_pairs.learned_import()).order_by(imported_pairs.c.seq)
        async with self._sessions.transaction() as connection:
            return [_imported_pair(row) for row in await connection.execute(statement)]

    async def snapshot_rows(
        self, pairs: Sequence[Pair], held_out: AbstractSet[str], origin: str = NEW
    ) -> list[SnapshotRow]:
        """The content of each pair, in the order of `pairs`: what was served for votes, the text for imports.

        Raises `KeyError` when a pair names content that the store does not hold.
        """
        async with self._sessions.transaction() as connection:
            served = await _served(connection, pairs)
            imported = await _imported(connection, pairs)
        rows = []
        for pair in pairs:
            content = _content_of_text(imported[pair.id]) if pair.origin == "import" else _served_content(pair, served)
            split = HELD_OUT if pair.id in held_out else TRAIN
            rows.append(SnapshotRow(pair.id, split, origin=origin, voter=pair.voter, **content))
        return rows


def _effective_votes() -> Select[*tuple[Any, ...]]:
    target = (feedback.c.completion_id, feedback.c.choice_index, feedback.c.user, feedback.c.kind)
    last = select(feedback).ext(distinct_on(*target)).order_by(*target, feedback.c.seq.desc()).subquery("last")
    same_choice = (choices.c.completion_id == last.c.completion_id) & (choices.c.choice_index == last.c.choice_index)
    return (
        select(
            *(last.c.seq, last.c.app, last.c.user, last.c.completion_id, last.c.choice_index, last.c.rating),
            *(completions.c.adapter, completions.c.prompt_digest),
            *(choices.c.finish_reason, choices.c.text, choices.c.token_ids),
        )
        .join(completions, completions.c.id == last.c.completion_id)
        .join(choices, same_choice)
        # Asked of the last vote, not before it is chosen: else a retraction would bring an older vote back.
        .where(~last.c.retracted)
        .order_by(last.c.seq)
    )


async def _served(connection: AsyncConnection, pairs: Sequence[Pair]) -> dict[ChoiceKey, _Served]:
    """The token ids of every choice that the pairs name, and perhaps of others of the same completions."""
    ids = {key[0] for pair in pairs for key in (pair.chosen, pair.rejected) if key is not None}
    found = await connection.execute(
        select(choices.c.completion_id, choices.c.choice_index, completions.c.prompt_token_ids, choices.c.token_ids)
        .join(completions, completions.c.id == choices.c.completion_id)
        .where(choices.c.completion_id == any_(literal(sorted(ids), ARRAY(Text))))
    )
    return {
        (row.completion_id, row.choice_index): _Served(row.prompt_token_ids, row.token_ids)
        for row in found
        if row.prompt_token_ids is not None and row.token_ids is not None
    }


async def _imported(connection: AsyncConnection, pairs: Sequence[Pair]) -> dict[str, ImportedPair]:
    ids = [pair.id for pair in pairs if pair.origin == "import"]
    found = await connection.execute(
        select(imported_pairs).where(imported_pairs.c.id == any_(literal(ids, ARRAY(Text))))
    )
    return {row.id: _imported_pair(row) for row in found}


def _served_content(pair: Pair, served: dict[ChoiceKey, _Served]) -> dict[str, Any]:
    """The token ids of a pair, or of a thumb, which has one answer."""
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    answers = {side: served[key] for side, key in sides.items() if key is not None}
    prompts = [answer.prompt_token_ids for answer in answers.values()]
    assert prompts and all(prompt == prompts[0] for prompt in prompts), "a pair has one prompt"
    return {"prompt_token_ids": prompts[0]} | {
        f"{side}_token_ids": answer.token_ids for side, answer in answers.items()
    }


def _content_of_text(pair: ImportedPair) -> dict[str, Any]:
    messages = json.dumps(pair.messages, ensure_ascii=False)
    return {"messages": messages, "chosen_text": pair.chosen, "rejected_text": pair.rejected}


def _vote(row: Row[Any]) -> Vote:
    fields = dict(row._mapping)
    fields["user"] = None if row.user == NO_USER else row.user
    return Vote.model_validate(fields)


def _imported_pair(row: Row[Any]) -> ImportedPair:
    return ImportedPair(id=row.id, messages=tuple(row.messages), chosen=row.chosen, rejected=row.rejected)
