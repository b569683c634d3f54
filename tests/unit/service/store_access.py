"""What a test of the store does to it in several calls, and reads of it that nobody else does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.dialects.postgresql import distinct_on

from service.contracts import RoundState
from service.pairs import ImportedPair, Pair
from service.store.store import Store
from service.store.tables import feedback, imported_pairs, preference_pairs, round_pairs, stale_prompts, vote_fates
from tests.unit.service.conftest import FROZEN
from tests.unit.service.store_model import VoteKey


async def open_store(url: str) -> Store:
    return Store(url)


async def take_in(store: Store, pairs: list[ImportedPair]) -> int:
    async with store.imports.begin() as file:
        return await file.add(pairs)


async def freeze(store: Store, pairs: list[Pair], settled: Sequence[Pair] = ()) -> int:
    round, _ = await store.rounds.create(
        settings={}, requested_by="tess", note=None, idempotency_key=None, body_sha256="0" * 64
    )
    await store.rounds.move(round.n, expect=RoundState.QUEUED, to=RoundState.COLLECTING)
    await store.rounds.freeze(round.n, attempt=0, pairs=pairs, settled=settled, held_out=set(), **FROZEN)
    return round.n


async def end_round(store: Store, n: int, ending: RoundState) -> None:
    await store.rounds.move(n, expect=RoundState.TRAINING, to=RoundState.JUDGING)
    await store.rounds.move(n, expect=RoundState.JUDGING, to=ending)


async def erase(store: Store, user: str, app: str | None) -> None:
    async with store.erasure.erase(user, app):
        pass


# --- what is in its tables ----------------------------------------------------------------------------


def effective(engine: Engine) -> set[VoteKey]:
    """The votes that count."""
    slot = (feedback.c.app, feedback.c.target, feedback.c.user, feedback.c.kind)
    last = select(feedback).ext(distinct_on(*slot)).order_by(*slot, feedback.c.seq.desc()).subquery()
    with engine.connect() as connection:
        rows = connection.execute(select(last.c.app, last.c.feedback_id).where(~last.c.retracted))
        return {(app, id) for app, id in rows}


def derived(engine: Engine) -> tuple[list[Any], list[Any]]:
    """All pairs, and the fates of the votes."""
    ids = (preference_pairs.c.id, preference_pairs.c.votes, preference_pairs.c.source)
    with engine.connect() as connection:
        pairs = connection.execute(select(*ids).order_by(preference_pairs.c.id)).all()
        fates = connection.execute(
            select(vote_fates.c.seq, vote_fates.c.pair_id, vote_fates.c.reason).order_by(vote_fates.c.seq)
        ).all()
    return list(pairs), list(fates)


def seqs(engine: Engine) -> dict[VoteKey, int]:
    with engine.connect() as connection:
        rows = connection.execute(select(feedback.c.app, feedback.c.feedback_id, feedback.c.seq))
        return {(app, id): seq for app, id, seq in rows}


def fates(engine: Engine) -> dict[int, str | None]:
    with engine.connect() as connection:
        return {row.seq: row.pair_id for row in connection.execute(select(vote_fates))}


def frozen(engine: Engine) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    with engine.connect() as connection:
        for n, pair in connection.execute(select(round_pairs.c.round, round_pairs.c.pair_id)):
            found.setdefault(n, set()).add(pair)
    return found


def match_all_anew(engine: Engine) -> None:
    """As soon as somebody matches."""
    with engine.begin() as connection:
        prompts = select(feedback.c.app, feedback.c.prompt_digest).distinct()
        connection.execute(insert(stale_prompts).from_select(["app", "prompt_digest"], prompts))
        connection.execute(update(imported_pairs).values(stale=True))
