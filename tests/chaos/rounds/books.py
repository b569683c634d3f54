"""What the store of a run holds, read by the supervisor: where the newest round is, who answers, and at the end everything."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, func, select

from service.contracts import RoundState
from service.store.store import Store
from service.store.tables import adapters, audit, completions, round_events, rounds, route
from serving.adapters import verify
from serving.contracts import BASE, Route
from serving.errors import AdapterRefused
from tests.adapter_files import FINGERPRINTS
from tests.chaos.rounds.checker import Ledger

_MAX_RANK = 8
_PLACES = ("stable", "previous", "candidate", "baseline")


class Books:
    """Whoever makes it closes it."""

    def __init__(self, store_url: str) -> None:
        self._url = store_url
        self._engine = create_engine(store_url)

    def close(self) -> None:
        self._engine.dispose()

    def newest(self) -> tuple[int, RoundState | None]:
        """The number of the newest round, 0 where there was none, and where it is."""
        with self._engine.connect() as connection:
            row = connection.execute(select(rounds.c.n, rounds.c.state).order_by(rounds.c.n.desc()).limit(1)).first()
        return (0, None) if row is None else (row.n, RoundState(row.state))

    def route(self) -> Route:
        columns = [route.c[name] for name in Route.model_fields]
        with self._engine.connect() as connection:
            return Route.model_validate(dict(connection.execute(select(*columns)).one()._mapping))

    def faults_of(self, named: Route) -> list[str]:
        """What a route names and must not: adapters that were never published, or whose files are not what was published."""
        with self._engine.connect() as connection:
            columns = (adapters.c.name, adapters.c.directory, adapters.c.manifest_sha256)
            published = {row.name: row for row in connection.execute(select(*columns))}
        faults = []
        for place in _PLACES:
            name = getattr(named, place)
            if name in (None, BASE):
                continue
            if name not in published:
                faults.append(f"generation {named.generation} names {name}, which was never published")
                continue
            try:
                verify(
                    Path(published[name].directory), name=name, base=FINGERPRINTS.base_model,
                    tokenizer=FINGERPRINTS.tokenizer, max_rank=_MAX_RANK,
                    manifest_sha256=published[name].manifest_sha256,
                )  # fmt: skip
            except AdapterRefused as refusal:
                faults.append(f"generation {named.generation} names {name}: {refusal}")
        return faults

    def unsettled(self) -> int:
        """Rounds that are over and of which something is still to be done."""
        open = rounds.c.canary["open"].as_boolean() | rounds.c.watch["open"].as_boolean()
        with self._engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(rounds).where(open)).scalar_one()

    def ledger(self) -> Ledger:
        """All of it."""
        with self._engine.connect() as connection:

            def table(columns: tuple[Any, ...], order: Any) -> list[dict[str, Any]]:
                return [dict(row._mapping) for row in connection.execute(select(*columns).order_by(order))]

            of_rounds = (rounds.c.n, rounds.c.state, rounds.c.reason, rounds.c.attempt, rounds.c.adapter)
            return Ledger(
                rounds=table(of_rounds, rounds.c.n),
                adapters=table((adapters.c.name, adapters.c.round), adapters.c.ordinal),
                audit=table((audit.c.who, audit.c.action, audit.c.subject), audit.c.seq),
                answers=connection.execute(select(func.count()).select_from(completions)).scalar_one(),
                waits=connection.execute(
                    select(func.count()).select_from(round_events).where(round_events.c.kind == "waits")
                ).scalar_one(),
                chain_fault=asyncio.run(_chain_fault(self._url)),
            )


async def _chain_fault(store_url: str) -> str | None:
    store = Store(store_url)
    try:
        return (await store.audit.verify()).fault
    finally:
        await store.close()
