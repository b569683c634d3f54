"""The sweeper: now and then it looks for what is past its time, and deletes it. The section `[retention]`."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from service import adapter_folder, depot
from service.errors import Unavailable
from service.keeping import snapshots
from service.keeping.settings import RetentionSettings
from service.store.store import Store

log = logging.getLogger(__name__)

WHO = "retention"  # in the audit


@dataclass(frozen=True)
class Sweeper:
    """One per service, in the Conductor. Two at once would do no harm."""

    store: Store
    settings: RetentionSettings
    rounds: str  # the address of the rounds' folders
    adapters: str  # that of the published adapters

    async def run(self) -> None:
        """For ever: sweep, and rest."""
        while True:
            try:
                await self.sweep()
            except (Unavailable, OSError) as error:  # what is past its time will still be so
                log.warning("the sweep waits: %s", error)
            await asyncio.sleep(60 * self.settings.sweep_minutes)

    async def sweep(self) -> dict[str, int]:
        """Deletes all that is past its time; how much of each kind. In the audit, unless there was nothing."""
        found: dict[str, int] = {}
        retention, settings = self.store.retention, self.settings
        if settings.feedback_days is not None:  # first, for a completion stays as long as votes speak of it
            found["votes"] = await retention.drop_votes(settings.feedback_days)
        if settings.completion_days is not None:
            found["completions"] = await retention.drop_unvoted_completions(settings.completion_days)
            found["completions_emptied"] = await retention.forget_completions(settings.completion_days)
        if settings.snapshot_days is not None:
            over = await retention.rounds_over(settings.snapshot_days)
            found["snapshots"] = await asyncio.to_thread(self._remove_snapshots, set(over))
        if settings.adapters_kept is not None:
            found["adapters"] = await self._delete_adapters(settings.adapters_kept)
        if any(found.values()):
            await self.store.audit.write(who=WHO, action="sweep", subject="retention", detail=found)
        return found

    async def _delete_adapters(self, keep: int) -> int:
        """First the word, then the files: whoever looks between the two finds an adapter that is no longer to be used.

        Each is in the audit for itself. Files that a sweep left because it was killed go with the next one.
        """
        deleted = await self.store.adapters.delete_unneeded(keep, who=WHO)
        for adapter in await self.store.adapters.list():
            if adapter.deleted_at is not None:
                await asyncio.to_thread(adapter_folder.remove, adapter.directory, self.adapters)
        return len(deleted)

    def _remove_snapshots(self, over: set[int]) -> int:
        removed = 0
        for number, folder in snapshots.folders(self.rounds):
            if number in over and depot.is_file(f"{folder}/{snapshots.SNAPSHOT}"):
                snapshots.remove_samples(folder)
                depot.remove(f"{folder}/{snapshots.SNAPSHOT}")
                removed += 1
        return removed
