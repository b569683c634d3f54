"""The hash chain of the audit log: each entry's digest covers the one before it, so none can be changed or left out. Pure.

    digest_n = sha256(digest_{n-1} || canonical JSON of entry n)          digest_0 = 64 zeros

The last digest, kept elsewhere, vouches for all entries before it.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

GENESIS = "0" * 64


def entry_digest(before: str, *, at: datetime, who: str, action: str, subject: str, detail: dict[str, Any]) -> str:
    """sha256 in hex. `before`: the digest of the entry before, `GENESIS` for the first."""
    entry = {"at": at.astimezone(UTC).isoformat(), "who": who, "action": action, "subject": subject, "detail": detail}
    canonical = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256((before + canonical).encode()).hexdigest()
