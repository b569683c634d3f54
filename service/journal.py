"""The store as a replica sees it, and what becomes of an answer when the store is away.

`serving.contracts.Journal` on the store: the only way from `serving/` to it. By default people get their answers all
the same, and each says that it cannot be rated; where `store.without_store` is "refuse", none is begun.
"""

from __future__ import annotations

import logging
from typing import Literal

from service.errors import NotFound, Unavailable
from service.store.store import Store
from serving.contracts import AdapterFiles, Completion, Route

log = logging.getLogger(__name__)


class StoreJournal:
    """One per replica, with a store of its own."""

    def __init__(self, store: Store, without_store: Literal["answer", "refuse"] = "answer") -> None:
        self.store = store
        self._refuse = without_store == "refuse"
        self._unlogged = 0  # answers in a row

    async def route(self) -> Route:
        return await self.store.route.read()

    async def adapter(self, name: str) -> AdapterFiles | None:
        try:
            adapter = await self.store.adapters.get(name)
        except NotFound:
            return None
        if adapter.deleted_at is not None:
            return None
        return adapter.files

    async def published(self) -> frozenset[str]:
        return await self.store.adapters.published()

    async def ready(self) -> None:
        """Raises `Unavailable` where no answer goes out without its record, and the store is away now."""
        if self._refuse:
            await self.store.reach()

    async def record(self, completion: Completion) -> bool:
        """Raises `Unavailable` where no answer goes out without its record, and the store has gone since `ready`."""
        try:
            await self.store.completions.record(completion)
        except Unavailable as error:
            if self._refuse:
                raise
            if not self._unlogged:  # once for each outage: it may last, and every answer would say the same
                log.warning("answers are not recorded and cannot be rated: %s", error)
            self._unlogged += 1
            return False
        if self._unlogged:
            log.warning("answers are recorded again; %d were not, and cannot be rated", self._unlogged)
            self._unlogged = 0
        return True

    async def lease(self, replica: str, adapters: frozenset[str], seconds: float) -> None:
        await self.store.adapters.lease(replica, adapters, seconds)

    async def close(self) -> None:
        await self.store.close()
