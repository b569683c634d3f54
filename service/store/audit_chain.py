"""The hash chain of the audit log: each entry's digest covers the one before it, so none can be changed or left out. Pure.

    digest_n = sha256(digest_{n-1} || canonical JSON of entry n)          digest_0 = 64 zeros

The last digest, kept elsewhere, vouches for all entries before it. Without one nobody can tell a log from the same log
without its end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from service.contracts import AuditEntry

GENESIS = "0" * 64


def entry_digest(before: str, *, at: datetime, who: str, action: str, subject: str, detail: dict[str, Any]) -> str:
    """sha256 in hex. `before`: the digest of the entry before, `GENESIS` for the first."""
    entry = {"at": at.astimezone(UTC).isoformat(), "who": who, "action": action, "subject": subject, "detail": detail}
    canonical = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256((before + canonical).encode()).hexdigest()


@dataclass(frozen=True)
class Chain:
    """How far a log was followed. What comes behind a fault proves nothing, and is not looked at."""

    kept: str | None = None  # a digest that was noted elsewhere, and must be among those of the log
    entries: int = 0
    digest: str = GENESIS  # of the last entry that is as it was written
    met: bool = False  # `kept` is the digest of one of these entries
    fault: str | None = None

    def follow(self, entries: Iterable[AuditEntry]) -> Chain:
        """This chain with these entries behind it, in the order of their `seq`."""
        chain = self
        for entry in entries:
            if chain.fault is not None:
                break
            chain = chain._with(entry)
        return chain

    def _with(self, entry: AuditEntry) -> Chain:
        said = entry.model_dump(include={"at", "who", "action", "subject", "detail"})
        if entry_digest(self.digest, **said) != entry.digest:
            why = "it was changed, or one before it was changed or left out"
            return replace(self, fault=f"entry {entry.seq} does not follow from what stands before it: {why}")
        met = self.met or entry.digest == self.kept
        return replace(self, entries=self.entries + 1, digest=entry.digest, met=met)

    def ended(self) -> Chain:
        """When there are no more entries: what somebody has noted must have been among them."""
        if self.kept in (None, GENESIS) or self.met or self.fault is not None:
            return self
        return replace(self, fault=f"no entry has the digest {self.kept}: what was written when it was noted is gone")
