"""The pairs that follow from votes and imports, as rows: written prompt by prompt, read by rounds.

Which pairs follow is `service/preferences.py`'s to say. The functions work in their caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, any_, delete, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import TableValuedAlias

from service.pairs import ImportedPair, LeftOut, Pair, Source
from service.postgres.arrays import as_table, seqs, texts
from service.preferences import Matched, unmatched
from service.store import round_pairs
from service.store.round_pairs import choice_key
from service.store.tables import MATCH_LOCK, feedback, preference_pairs, vote_fates

PromptKey = tuple[str, str]  # (app, prompt_digest)

TURN_SECONDS = 60

_AS_THEY_ARE = (
    *("id", "source", "prompt_digest", "app", "correction", "votes", "voter", "voters", "charged_to", "adapters"),
    *("tags", "voted_at", "chosen_length", "rejected_length", "copied", "signature"),
)  # columns that are fields of a pair


def among(keys: Sequence[PromptKey]) -> TableValuedAlias:
    """The prompts as a table with the columns `app` and `prompt_digest`, to join with."""
    return as_table("prompt", app=texts(app for app, _ in keys), prompt_digest=texts(digest for _, digest in keys))


def is_open() -> ColumnElement[bool]:
    """Of a row of `preference_pairs`: no round has used it up, nor may still. Matching drops what a round has taken,
    but only when its turn comes."""
    return ~round_pairs.used_up(preference_pairs.c.id)


async def turn(connection: AsyncConnection) -> None:
    """One transaction at a time writes pairs; the others wait, for a batch may take its time."""
    await connection.execute(text(f"SET LOCAL lock_timeout = '{TURN_SECONDS}s'"))
    await connection.execute(select(func.pg_advisory_xact_lock(MATCH_LOCK)))


async def replace(
    connection: AsyncConnection,
    keys: Sequence[PromptKey],
    matched: Sequence[Matched],  # one for each of `keys`
) -> None:
    """All that follows from the votes on these prompts, instead of what followed before.

    Only what differs is written: one vote more changes little, on a prompt however many votes it has.
    """
    await _replace_pairs(connection, keys, [pair for of_prompt in matched for pair in of_prompt.pairs])
    fates = {
        seq: (*key, fate.pair_id, None if fate.reason is None else fate.reason.value)
        for key, of_prompt in zip(keys, matched, strict=True)
        for seq, fate in of_prompt.fates.items()
    }
    await _replace_fates(connection, keys, fates)


async def _replace_pairs(connection: AsyncConnection, keys: Sequence[PromptKey], pairs: Sequence[Pair]) -> None:
    """A pair with the same id and votes is the same."""
    stored, prompt, alone = preference_pairs.c, among(keys), unmatched(pairs)
    on_prompt = (stored.app == prompt.c.app) & (stored.prompt_digest == prompt.c.prompt_digest)
    found = await connection.execute(
        select(stored.id, stored.source, stored.votes, stored.alone)
        .select_from(prompt)
        .join(preference_pairs, on_prompt)
    )
    before = {row.id: (row.source, tuple(row.votes), row.alone) for row in found}
    after = {pair.id: (pair.source.value, pair.votes, alone.get(pair.id)) for pair in pairs}
    gone = [id for id, said in before.items() if after.get(id) != said]
    await connection.execute(delete(preference_pairs).where(stored.id == any_(texts(gone))))
    await _insert(connection, [pair for pair in pairs if before.get(pair.id) != after[pair.id]], alone)


async def _replace_fates(
    connection: AsyncConnection, keys: Sequence[PromptKey], fates: Mapping[int, tuple[str, str, str | None, str | None]]
) -> None:
    """`fates`: seq -> app, prompt_digest, pair_id, reason."""
    stored, prompt = vote_fates.c, among(keys)
    on_prompt = (stored.app == prompt.c.app) & (stored.prompt_digest == prompt.c.prompt_digest)
    found = await connection.execute(select(vote_fates).select_from(prompt).join(vote_fates, on_prompt))
    before = {row.seq: (row.app, row.prompt_digest, row.pair_id, row.reason) for row in found}
    gone = [seq for seq, fate in before.items() if fates.get(seq) != fate]
    await connection.execute(delete(vote_fates).where(stored.seq == any_(seqs(gone))))
    new = [(seq, *fate) for seq, fate in fates.items() if before.get(seq) != fate]
    if new:
        numbers, *others = zip(*new, strict=True)
        names = ("app", "prompt_digest", "pair_id", "reason")
        fate = as_table("fate", seq=seqs(numbers), **{n: texts(v) for n, v in zip(names, others, strict=True)})
        # A vote that is being erased has none: its prompt is matched again when it is gone.
        still_there = fate.select().join(feedback, feedback.c.seq == fate.c.seq)
        still_there = still_there.with_for_update(read=True, key_share=True, of=feedback)
        await connection.execute(insert(vote_fates).from_select(("seq", *names), still_there))


async def replace_imported(connection: AsyncConnection, ids: Sequence[str], pairs: Sequence[Pair]) -> None:
    """Of the imported pairs with these ids, `pairs` may be learned and the others no longer."""
    gone = preference_pairs.c.id == any_(texts(ids))
    await connection.execute(delete(preference_pairs).where(gone))
    await _insert(connection, pairs, unmatched(pairs))


async def list_open(connection: AsyncConnection) -> list[Pair]:
    """All that a round may learn from, before the guards; by id."""
    found = await connection.execute(select(preference_pairs).where(is_open()).order_by(preference_pairs.c.id))
    return [_pair(row) for row in found]


def imported_pair(row: Row[Any]) -> ImportedPair:
    return ImportedPair(
        id=row.id, messages=tuple(row.messages), chosen=row.chosen, rejected=row.rejected, format=row.format
    )


async def _insert(connection: AsyncConnection, pairs: Sequence[Pair], alone: Mapping[str, LeftOut]) -> None:
    if pairs:
        rows = [_row(pair) | {"alone": alone.get(pair.id)} for pair in pairs]
        await connection.execute(insert(preference_pairs), rows)


def _row(pair: Pair) -> dict[str, Any]:
    chosen, rejected = pair.chosen or (None, None), pair.rejected or (None, None)
    return {name: _plain(getattr(pair, name)) for name in _AS_THEY_ARE} | {
        "chosen_completion_id": chosen[0],
        "chosen_choice_index": chosen[1],
        "rejected_completion_id": rejected[0],
        "rejected_choice_index": rejected[1],
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _pair(row: Row[Any]) -> Pair:
    """Not validated again: it was when it was made, and there may be very many."""
    values: dict[str, Any] = {name: getattr(row, name) for name in _AS_THEY_ARE}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    values |= {
        "source": Source(row.source),
        "chosen": choice_key(row.chosen_completion_id, row.chosen_choice_index),
        "rejected": choice_key(row.rejected_completion_id, row.rejected_choice_index),
    }
    return Pair.model_construct(**values)
