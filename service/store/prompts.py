"""Prompts whose pairs must be made anew: the queue of them, what was said of each, and the place for what follows.

Votes, retractions, decisions about the quarantine, erasures and rounds put prompts on the queue in their own
transactions. Which pairs follow is `service/preferences.py`'s to say, and `service/matching.py` asks it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate

from sqlalchemy import any_, delete, func, literal, select, union_all, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.curation.ballots import Answered, PromptVotes
from service.curation.quarantine import Suspicion, Trace
from service.pairs import ImportedPair, Pair
from service.postgres.arrays import texts
from service.postgres.sessions import Sessions
from service.preferences import Matched
from service.store import pairs, round_pairs, said, suspects
from service.store.pairs import PromptKey, among, imported_pair
from service.store.said import NOTHING_STORED, Asked, Said
from service.store.tables import feedback, imported_pairs, preference_state, stale_prompts
from service.votes import ChoiceKey, Vote

BATCH_SECONDS = 300.0  # that a statement of a batch may take: one prompt may have very many votes


@dataclass(frozen=True)
class Mark:
    """A place in both queues; what is put on them from now on is behind it."""

    prompt: int
    imported: int


class Prompts:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def mark(self) -> Mark:
        """The end of the queues as they are now."""
        async with self._sessions.transaction() as connection:
            prompt = await connection.execute(select(func.coalesce(func.max(stale_prompts.c.id), 0)))
            imported = await connection.execute(select(func.coalesce(func.max(imported_pairs.c.seq), 0)))
            return Mark(prompt.scalar_one(), imported.scalar_one())

    async def wait_before(self, mark: Mark) -> bool:
        """Whether something that was queued before the mark is still to be matched."""
        prompt = select(literal(1)).where(stale_prompts.c.id <= mark.prompt)
        imported = select(literal(1)).where(imported_pairs.c.stale, imported_pairs.c.seq <= mark.imported)
        async with self._sessions.transaction() as connection:
            return (await connection.execute(select(prompt.exists() | imported.exists()))).scalar_one()

    async def waiting(self, most: int) -> int:
        """How much is to be matched: votes ever cast on the prompts that wait, and imported pairs. Counted to `most`."""
        queue = select(stale_prompts.c.app, stale_prompts.c.prompt_digest).limit(most).subquery("queue")
        prompt = select(queue).distinct().subquery("prompt")
        on_it = (feedback.c.app == prompt.c.app) & (feedback.c.prompt_digest == prompt.c.prompt_digest)
        votes = select(literal(1).label("one")).select_from(prompt.outerjoin(feedback, on_it)).limit(most)
        imports = select(literal(1).label("one")).where(imported_pairs.c.stale).limit(most)
        rows = union_all(votes.subquery().select(), imports.subquery().select()).limit(most).subquery()
        async with self._sessions.transaction() as connection:
            return (await connection.execute(select(func.count()).select_from(rows))).scalar_one()

    @asynccontextmanager
    async def batch(self, *, prompts: int, votes: int) -> AsyncIterator[Batch]:
        """The next ones: at most so many prompts, fewer where they have more votes than that together; never none, as
        long as there is one. They are off the queue when the block ends, and on it again when it raises.

        Who comes second waits: when it gets its batch, whatever was queued before it came has been matched, or is in
        its batch, or is still on the queue.
        """
        async with self._sessions.transaction(statement_seconds=BATCH_SECONDS) as connection:
            await pairs.turn(connection)
            keys = await _taken(connection, prompts, votes)
            imports = await _imports(connection, prompts)
            if keys or imports:
                await _next_generation(connection)
            yield await Batch.read(connection, keys, imports)


@dataclass
class Batch:
    """Prompts with all that was said of them, and imported pairs, while the transaction lasts that took them."""

    connection: AsyncConnection
    keys: Sequence[PromptKey]
    imports: Sequence[ImportedPair]
    said: Sequence[Said] = ()
    answers: Mapping[ChoiceKey, Answered] = field(default_factory=dict)
    asked: Mapping[PromptKey, Asked] = field(default_factory=dict)

    @classmethod
    async def read(
        cls, connection: AsyncConnection, keys: Sequence[PromptKey], imports: Sequence[ImportedPair]
    ) -> Batch:
        votes = await said.votes_on(connection, keys) if keys else []
        answers, asked = await said.answers_to(connection, votes) if votes else ({}, {})
        return cls(connection, keys, imports, votes, answers, asked)

    @property
    def empty(self) -> bool:
        return not self.keys and not self.imports

    def new_votes(self) -> list[Trace]:
        """The effective votes that were never matched, as detectors see them; by `seq`."""
        return [
            suspects.trace(one.vote, one.target, one.changes, answer.adapter, answer.text)
            for one in self.said
            if one.is_new and (answer := self.answers.get(one.vote.choice)) is not None
        ]

    async def recent_votes(self, app: str, since: datetime, most: int) -> list[Trace]:
        """What detectors compare the new votes of an app with: see `suspects.recent`."""
        return await suspects.recent(self.connection, app, since, most)

    async def hold(self, suspicions: Iterable[Suspicion]) -> None:
        """Into the quarantine, and with them the new votes of everybody who is under suspicion already."""
        await suspects.join(self.connection, self.new_votes())
        for suspicion in suspicions:
            await suspects.hold(self.connection, suspicion)

    async def prompts(self) -> list[PromptVotes]:
        """One for each of `keys`."""
        held, dropped = await suspects.held_and_dropped(self.connection, [one.vote.seq for one in self.said])
        choices, pair_ids = await round_pairs.used_up_of(self.connection, {id for id, _ in self.answers})
        votes: dict[PromptKey, list[Vote]] = {key: [] for key in self.keys}
        for one in self.said:
            vote = one.vote.model_copy(update={"held": True}) if one.vote.seq in held else one.vote
            votes[one.prompt].append(vote)
        return [
            PromptVotes(
                app=app,
                prompt_digest=digest,
                prompt_text=asked.text,
                question=asked.question,
                single_turn=asked.single_turn,
                votes=tuple(votes[app, digest]),
                answers=self.answers,
                learned_choices=choices,
                learned_pairs=frozenset(pair_ids),
                dropped=frozenset(dropped),
            )
            for app, digest in self.keys
            for asked in [self.asked.get((app, digest), NOTHING_STORED)]
        ]

    async def learned_imports(self) -> set[str]:
        """The ids of those imported pairs that some round has used up, or may still."""
        return await round_pairs.used_up_among(self.connection, [pair.id for pair in self.imports])

    async def replace(self, matched: Sequence[Matched], imported: Sequence[Pair]) -> None:
        """What follows, instead of what followed before. `matched`: one for each of `keys`."""
        if self.keys:
            await pairs.replace(self.connection, self.keys, matched)
        if self.imports:
            ids = [pair.id for pair in self.imports]
            await pairs.replace_imported(self.connection, ids, imported)
            done = update(imported_pairs).where(imported_pairs.c.id == any_(texts(ids)))
            await self.connection.execute(done.values(stale=False))


async def _taken(connection: AsyncConnection, prompts: int, votes: int) -> list[PromptKey]:
    """The next prompts, off the queue; the oldest entries come first."""
    queue = select(stale_prompts.c.app, stale_prompts.c.prompt_digest).order_by(stale_prompts.c.id).limit(prompts)
    waiting = list(dict.fromkeys((app, digest) for app, digest in await connection.execute(queue)))
    if not waiting:
        return []
    prompt = among(waiting)
    on_it = (feedback.c.app == prompt.c.app) & (feedback.c.prompt_digest == prompt.c.prompt_digest)
    counts = await connection.execute(
        select(*prompt.c, func.count(feedback.c.seq).label("votes"))
        .select_from(prompt.outerjoin(feedback, on_it))
        .group_by(*prompt.c)
    )
    of_prompt = {(row.app, row.prompt_digest): row.votes for row in counts}
    total = accumulate(of_prompt[key] for key in waiting)
    keys = [key for i, (key, sum) in enumerate(zip(waiting, total, strict=True)) if i == 0 or sum <= votes]
    taken = among(keys)
    done = (stale_prompts.c.app == taken.c.app) & (stale_prompts.c.prompt_digest == taken.c.prompt_digest)
    await connection.execute(delete(stale_prompts).where(done))
    return keys


async def _imports(connection: AsyncConnection, most: int) -> list[ImportedPair]:
    """The next ones that may have to be among the pairs, or to leave them. A round that takes some now holds them:
    those are passed over, and come again."""
    found = await connection.execute(
        select(imported_pairs)
        .where(imported_pairs.c.stale)
        .order_by(imported_pairs.c.seq)
        .limit(most)
        .with_for_update(skip_locked=True)
    )
    return [imported_pair(row) for row in found]


async def _next_generation(connection: AsyncConnection) -> None:
    first = upsert(preference_state).values(id=1, generation=1)
    following = first.on_conflict_do_update(
        index_elements=[preference_state.c.id], set_={"generation": preference_state.c.generation + 1}
    )
    await connection.execute(following)
