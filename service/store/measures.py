"""How the service stands, as numbers: for metrics, and for alarms that no single event rings. Read in one transaction.

Everything is counted from rows that are there anyway, so a restart of any process resets nothing. Only what is small is
counted: rounds, audit entries and alarms, never votes or answers; those come as sums that others keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.pairs import Funnel
from service.postgres.sessions import Sessions
from serving.contracts import Route

MOST_PENDING = 10_000  # prompts; counted no further

_ROUTE = text("SELECT now() AS now, updated_at, route.* FROM route")

_PLACES = text("""
    SELECT place, name, weights_sha256
    FROM route, LATERAL (VALUES
        ('stable', stable), ('previous', previous), ('candidate', candidate), ('baseline', baseline)) AS held (place, name)
    LEFT JOIN adapters USING (name)
    WHERE name IS NOT NULL
""")

# When a round ended is what its events say: the row may be written later too, as when its adapter is watched.
_ROUNDS = text("""
    SELECT state, count(*) AS rounds, sum(attempt) AS attempts, max(ended_at) AS last,
        coalesce(sum(extract(epoch FROM ended_at - created_at)), 0) AS seconds
    FROM rounds LEFT JOIN LATERAL (
        SELECT max(at) AS ended_at FROM round_events
        WHERE round = n AND kind = 'state' AND data ->> 'state' = state) AS ended ON true
    GROUP BY state
""")

_GATE = text("""
    SELECT check_ ->> 'name', check_ ->> 'outcome', count(*)
    FROM rounds, jsonb_array_elements(verdict -> 'checks') AS check_
    GROUP BY 1, 2
""")

_LAST_STEP = text("SELECT report -> 'steps' -> -1 FROM rounds WHERE report IS NOT NULL ORDER BY n DESC LIMIT 1")

_DRIFT = text("""
    SELECT (check_ ->> 'value')::float8, (check_ ->> 'bound')::float8
    FROM route JOIN rounds ON adapter = stable, jsonb_array_elements(verdict -> 'checks') AS check_
    WHERE check_ ->> 'name' = 'kl_base' AND check_ ->> 'value' IS NOT NULL AND check_ ->> 'bound' IS NOT NULL
    ORDER BY n DESC LIMIT 1
""")

# What the loop does by itself it does in a name of several words, such as `watch of round 7`; those of keys have none.
_ROLLBACKS = text("""
    SELECT CASE WHEN who LIKE '% %' THEN 'alarm' ELSE 'operator' END, count(*)
    FROM audit WHERE action = 'rollback' GROUP BY 1
""")

_DELETED = text("""
    SELECT key, sum(value::bigint) FROM audit, jsonb_each_text(detail) WHERE action = 'sweep' GROUP BY key
""")

_AUDIT = text("SELECT action, count(*) FROM audit GROUP BY action")
_ADAPTERS = text("SELECT count(*), coalesce(max(ordinal), 0) FROM adapters")
_QUARANTINE = text("""
    SELECT kind, status, count(seq) FROM quarantine LEFT JOIN quarantined_votes ON quarantine_id = id GROUP BY kind, status
""")
_ALARMS = text("SELECT kind, count(*) FROM alarms GROUP BY kind")
_UNDELIVERED = text("SELECT count(*) FROM alarms WHERE delivered_at IS NULL AND attempts > 0")
_PENDING = text(f"SELECT count(*) FROM (SELECT FROM stale_prompts LIMIT {MOST_PENDING}) AS waiting")
_FUNNELS = text("SELECT funnels FROM preference_state")
_FIRST_ANSWER = text("SELECT min(created_at) FROM completions")
_PAUSED = text("SELECT count(*) FROM pause")
_SIZE = text("SELECT pg_database_size(current_database())")
_SCHEMA = text("SELECT max(version_num) FROM alembic_version")


@dataclass(frozen=True)
class Place:
    """An adapter that the route names."""

    place: str  # stable, previous, candidate, baseline
    adapter: str
    weights_sha256: str | None  # None: the base


@dataclass(frozen=True)
class RoundSum:
    """All rounds in one state."""

    rounds: int
    attempts: int
    seconds: float  # from the order to the end; 0 for a round that has not ended


@dataclass(frozen=True)
class Bounded:
    value: float
    bound: float


@dataclass(frozen=True)
class Measures:
    now: datetime
    route: Route
    route_changed_at: datetime
    places: tuple[Place, ...]
    adapters: int  # that were ever published
    newest_ordinal: int  # of them; 0: none
    rounds: dict[str, RoundSum]  # by state
    last_success: datetime | None  # a round was promoted
    first_answer: datetime | None
    gate: dict[tuple[str, str], int]  # (check, outcome) -> rounds
    last_step: dict[str, Any]  # of the last round that trained, by TRL's names; empty: none did
    drift: (
        Bounded | None
    )  # of the adapter that answers, from the base, nats a token; None: the gate has not measured it
    swaps: dict[str, int]  # promote, rollback, split -> how often
    rollbacks: dict[str, int]  # by what triggered them
    audit: dict[str, int]  # action -> entries
    deleted: dict[str, int]  # what was past its time, by its kind
    quarantined: dict[tuple[str, str], int]  # (kind, status) -> votes
    pending: int  # prompts to be matched anew; at most MOST_PENDING
    funnel: Funnel | None  # of new pairs; None: never looked at
    paused: bool
    alarms: dict[str, int]  # by kind
    undelivered: int  # alarms
    database_bytes: int
    schema: str


class StoredMeasures:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def read(self) -> Measures:
        async with self._sessions.transaction() as connection:
            route = (await connection.execute(_ROUTE)).one()._mapping
            rounds = (await connection.execute(_ROUNDS)).all()
            audit = await _counts(connection, _AUDIT)
            adapters, newest = (await connection.execute(_ADAPTERS)).one()
            drift = (await connection.execute(_DRIFT)).one_or_none()
            funnels = (await connection.execute(_FUNNELS)).scalar_one_or_none()
            return Measures(
                now=route["now"],
                route=Route.model_validate({name: route[name] for name in Route.model_fields}),
                route_changed_at=route["updated_at"],
                places=tuple(Place(*row) for row in await connection.execute(_PLACES)),
                adapters=adapters,
                newest_ordinal=newest,
                rounds={row.state: RoundSum(row.rounds, row.attempts, float(row.seconds)) for row in rounds},
                last_success=next((row.last for row in rounds if row.state == "promoted"), None),
                first_answer=(await connection.execute(_FIRST_ANSWER)).scalar_one(),
                gate={(name, outcome): count for name, outcome, count in await connection.execute(_GATE)},
                last_step=(await connection.execute(_LAST_STEP)).scalar_one_or_none() or {},
                drift=None if drift is None else Bounded(*drift),
                swaps={action: audit.get(action, 0) for action in ("promote", "rollback", "split")},
                rollbacks=await _counts(connection, _ROLLBACKS),
                audit=audit,
                deleted={kind: int(count) for kind, count in (await _counts(connection, _DELETED)).items()},
                quarantined={(kind, status): count for kind, status, count in await connection.execute(_QUARANTINE)},
                pending=(await connection.execute(_PENDING)).scalar_one(),
                funnel=None if funnels is None else Funnel.model_validate(funnels["false"]),
                paused=bool((await connection.execute(_PAUSED)).scalar_one()),
                alarms=await _counts(connection, _ALARMS),
                undelivered=(await connection.execute(_UNDELIVERED)).scalar_one(),
                database_bytes=(await connection.execute(_SIZE)).scalar_one(),
                schema=(await connection.execute(_SCHEMA)).scalar_one(),
            )


async def _counts(connection: AsyncConnection, statement: TextClause) -> dict[str, int]:
    return {row[0]: row[1] for row in await connection.execute(statement)}
