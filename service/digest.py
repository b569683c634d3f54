"""One way to turn JSON content into an identity: the same content has the same digest on every machine."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def content_digest(value: Any) -> str:
    """sha256 hex over the canonical JSON of `value`: sorted keys, no spaces, ASCII only."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
