"""A store that has been in use for a long time, made in a minute or two: completions, votes, and what was matched.

Every voted completion has two answers, of which its user liked one and not the other: one pair, of a prompt of its own.
The oldest pairs are in earlier rounds; the others are open. Rows are written by the database itself, with indexes made
afterwards, and not by the service: that would take an hour.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, text

from service.store.store import Store
from service.store.tables import (
    choices,
    completions,
    feedback,
    preference_pairs,
    round_pairs,
    vote_fates,
)
from service.votes import FeedbackBody, Rating
from serving.contracts import Choice, Completion

APPS, USERS, ADAPTERS, ROUNDS = 4, 20_000, 20, 20
SIGNATURE = 96  # numbers, as `curation/likeness.py` makes them of a pair
DAYS = 180  # over which the votes are spread
NEW_PAIRS = 500  # of two votes each
WORDS_PER_ANSWER = 120


@dataclass(frozen=True)
class Size:
    completions: int = 1_000_000
    pairs: int = 100_000  # of two votes each
    open: int = 5_000  # of the pairs: no round has taken them

    @property
    def numbers(self) -> dict[str, int]:
        return {
            "completions": self.completions, "pairs": self.pairs, "learned": self.pairs - self.open, "apps": APPS,
            "users": USERS, "adapters": ADAPTERS, "rounds": ROUNDS, "signature": SIGNATURE, "days": DAYS,
        }  # fmt: skip


_COMPLETIONS = """
    INSERT INTO completions (id, app, adapter, model, "user", metadata, messages, sampling, tokenizer_fingerprint,
        prompt_digest, prompt_token_ids, single_turn, created_at)
    SELECT 'chatcmpl-' || n, 'app-' || n % :apps, 'policy-' || n % :adapters, 'policy', 'user-' || n % :users, '{}',
        '[{"role": "user", "content": "a question"}]', '{}', 'f', encode(sha256(n::text::bytea), 'hex'), '{1,2,3}', true,
        now() - n * interval '1 day' * :days / :completions
    FROM generate_series(0, :completions - 1) AS n
"""
_CHOICES = """
    INSERT INTO choices (completion_id, choice_index, text, token_ids, finish_reason)
    SELECT 'chatcmpl-' || n, choice_index, 'an answer', '{4,5}', 'stop'
    FROM generate_series(0, :completions - 1) AS n, generate_series(0, CASE WHEN n < :pairs THEN 1 ELSE 0 END) AS choice_index
"""
# The votes of pair n have the numbers 2n + 1 (up) and 2n + 2 (down).
_FEEDBACK = """
    INSERT INTO feedback (feedback_id, app, completion_id, choice_index, "user", kind, target, rating, tags,
        prompt_digest, body_sha256, created_at)
    SELECT 'fb-' || n || '-' || side, 'app-' || n % :apps, 'chatcmpl-' || n, side, 'user-' || n % :users, 'rating',
        'chatcmpl-' || n || '/' || side, CASE side WHEN 0 THEN 'up' ELSE 'down' END,
        CASE WHEN n % 1000 = 0 THEN '{tone}'::text[] ELSE '{}' END, encode(sha256(n::text::bytea), 'hex'), 'b',
        now() - (:pairs - n) * interval '1 day' * :days / :pairs
    FROM generate_series(0, :pairs - 1) AS n, generate_series(0, 1) AS side
    ORDER BY n, side
"""
_ROUNDS = """
    INSERT INTO rounds (state, requested_by, body_sha256, settings, snapshot)
    SELECT 'promoted', 'tess', 'b', '{}', '/pairs.parquet' FROM generate_series(1, :rounds)
"""
_ROUND_PAIRS = """
    INSERT INTO round_pairs (round, pair_id, split, source, chosen_completion_id, chosen_choice_index,
        rejected_completion_id, rejected_choice_index, votes, charged_to, voted_at)
    SELECT 1 + n * :rounds / :learned, 'pair-' || n, 'train', 'siblings', 'chatcmpl-' || n, 0, 'chatcmpl-' || n, 1,
        ARRAY[2 * n + 1, 2 * n + 2], ARRAY[md5('user-' || n % :users)],
        now() - (:pairs - n) * interval '1 day' * :days / :pairs
    FROM generate_series(0, :learned - 1) AS n
"""
_FATES = """
    INSERT INTO vote_fates (seq, app, prompt_digest, pair_id, reason)
    SELECT seq, app, prompt_digest, CASE WHEN n >= :learned THEN 'pair-' || n END,
        CASE WHEN n < :learned THEN 'already_learned' END
    FROM (SELECT feedback.*, (seq - 1) / 2 AS n FROM feedback) AS voted
"""
_PAIRS = """
    INSERT INTO preference_pairs (id, source, app, prompt_digest, chosen_completion_id, chosen_choice_index,
        rejected_completion_id, rejected_choice_index, votes, voter, voters, charged_to, adapters, tags, voted_at,
        chosen_length, rejected_length, copied, signature)
    SELECT 'pair-' || n, 'siblings', 'app-' || n % :apps, encode(sha256(n::text::bytea), 'hex'), 'chatcmpl-' || n, 0,
        'chatcmpl-' || n, 1, ARRAY[2 * n + 1, 2 * n + 2], md5('user-' || n % :users), ARRAY[md5('user-' || n % :users)],
        ARRAY[md5('user-' || n % :users)], ARRAY['policy-' || n % :adapters], '{}',
        now() - (:pairs - n) * interval '1 day' * :days / :pairs, 600, 700, 0,
        (SELECT array_agg(hashint8extended(n * 97 + slot, 0) & 2147483647) FROM generate_series(1, :signature) AS slot)
    FROM generate_series(:learned, :pairs - 1) AS n
"""
_TABLES = (
    (completions, _COMPLETIONS), (choices, _CHOICES), (feedback, _FEEDBACK), (round_pairs, _ROUND_PAIRS),
    (vote_fates, _FATES), (preference_pairs, _PAIRS),
)  # fmt: skip


def fill(engine: Engine, size: Size) -> None:
    """An empty database with the schema in it comes to have the size."""
    with engine.begin() as connection:
        _quick(connection)
        connection.execute(text(_ROUNDS), size.numbers)
        for table, statement in _TABLES:
            for index in table.indexes:
                index.drop(connection)
            connection.execute(text(statement), size.numbers)
            for index in table.indexes:
                index.create(connection)
        connection.execute(text("INSERT INTO preference_state (id, generation) VALUES (1, 1)"))
    _settle(engine)


def forget_rounds(engine: Engine, size: Size) -> None:
    """As if no round had ever run: all pairs are open."""
    every = Size(size.completions, size.pairs, size.pairs)
    with engine.begin() as connection:
        _quick(connection)
        connection.execute(text("TRUNCATE round_pairs"))
        connection.execute(text("DELETE FROM preference_pairs WHERE id LIKE 'pair-%'"))
        connection.execute(text(_PAIRS), every.numbers)
        connection.execute(
            text("UPDATE vote_fates SET reason = NULL, pair_id = 'pair-' || (seq - 1) / 2 WHERE seq <= 2 * :pairs"),
            every.numbers,
        )
        connection.execute(text("UPDATE preference_state SET generation = generation + 1"))
    _settle(engine)


async def vote(store: Store, run: int) -> None:
    """What people say next: NEW_PAIRS pairs more, through the service, of answers with as many words as usual."""
    dice = random.Random(run)
    vocabulary = [f"word{n}" for n in range(2000)]

    def answer(index: int) -> Choice:
        said = " ".join(dice.choices(vocabulary, k=WORDS_PER_ANSWER))
        return Choice(index=index, text=said, token_ids=tuple(dice.choices(range(30_000), k=160)), finish_reason="stop")

    votes = []
    for n in range(NEW_PAIRS):
        id, app, user = f"new-{run}-{n}", f"app-{n % APPS}", f"new-user-{n % 250}"
        question = " ".join(dice.choices(vocabulary, k=12))
        await store.completions.record(
            Completion(
                id=id, app=app, adapter="policy-1", model="policy", created_at=datetime.now(UTC), user=user, metadata={},
                store=True, messages=[{"role": "user", "content": question}], sampling={}, tokenizer_fingerprint="f",
                prompt_token_ids=tuple(dice.choices(range(30_000), k=30)), choices=(answer(0), answer(1)),
            )
        )  # fmt: skip
        for choice, rating in enumerate((Rating.UP, Rating.DOWN)):
            votes.append((app, FeedbackBody(completion_id=id, choice_index=choice, rating=rating, user=user)))
    await asyncio.gather(*(store.feedback.put(app, body) for app, body in votes))


def _quick(connection: Connection) -> None:
    for setting in ("synchronous_commit = off", "session_replication_role = replica", "maintenance_work_mem = '512MB'"):
        connection.execute(text(f"SET LOCAL {setting}"))


def _settle(engine: Engine) -> None:
    """What autovacuum does within minutes."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
