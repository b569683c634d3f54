"""The two applications as KubeRay builds them: `service.cluster:chat` and `service.cluster:operations` of a Serve config.

What `service/node.py` does for one machine, without starting anything: Ray runs already, PostgreSQL and the object store
are somewhere else. What could only go wrong later, on another node, is refused here; `python -m service.cluster FILE`
does that and no more, for a container that runs before Ray's.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from ray import serve

from service import model
from service.app import Blueprint
from service.app import chat as chat_application
from service.app import operations as operations_application
from service.artifacts import require_usable
from service.errors import BadRequest, HeliotropeError
from service.keeping import redaction
from service.settings import Settings, load, secret
from service.store.database import migrate
from service.store.store import Store


def chat(args: dict[str, Any]) -> serve.Application:
    """`args`: {"settings": the path of a heliotrope.toml}."""
    return chat_application(blueprint(settings_of(args)))


def operations(args: dict[str, Any]) -> serve.Application:
    """As `chat`; also brings the database to this version's schema, and lets the first keys in."""
    return operations_application(blueprint(settings_of(args)))


def settings_of(args: dict[str, Any]) -> Settings:
    """Raises `BadRequest` that names the key, for whatever a cluster cannot run with."""
    unknown = set(args) - {"settings"}
    if unknown:
        raise BadRequest(f"unknown argument '{min(unknown)}' of the application. Put it into the settings file.")
    if "settings" not in args:
        raise BadRequest("the application's args name no 'settings', the path of a heliotrope.toml.", param="settings")
    settings = load(Path(args["settings"]))
    require_shared(settings)
    return settings


def require_shared(settings: Settings) -> None:
    """Refuse what only one machine can have: every node must reach the same database and the same artifacts."""
    if settings.store_url is None:
        raise BadRequest(
            "store.url and store.url_file are not set: the embedded database is for one machine. Name a PostgreSQL "
            "server that every node reaches.",
            param="store.url", code="store_not_shared",
        )  # fmt: skip
    if not settings.artifacts.shared:
        raise BadRequest(
            "artifacts.url is not set, or is a directory: adapters and snapshots of rounds would lie on one node only. "
            "Name an object store, such as s3://bucket/heliotrope.",
            param="artifacts.url", code="artifacts_not_shared",
        )  # fmt: skip
    if settings.serving.device == "auto":
        raise BadRequest(
            "serving.device is 'auto': whether there is a GPU differs from node to node. Say 'cpu' or 'gpu'.",
            param="serving.device", code="device_not_said",
        )  # fmt: skip


def blueprint(settings: Settings) -> Blueprint:
    """All that both applications are built from. Both migrate: whichever is built first does it."""
    require_usable(settings.artifacts)  # refused now, and not in the process of a replica
    redaction.load(settings.store.redact)  # the same
    directory = model.resolve(settings.model.name)
    url = settings.store_url
    assert url is not None, "require_shared was asked first"
    migrate(url)
    asyncio.run(_let_in(url, settings))
    return Blueprint(settings, url, directory, model.settled(directory, url), use_gpu=settings.serving.device == "gpu")


async def _let_in(url: str, settings: Settings) -> None:
    """The keys that the settings name files for are valid from the start; with the first operator's, others are made."""
    store = Store(url)
    try:
        for role, file in settings.server.first_keys.items():
            await store.keys.adopt(role, "first", secret(file, f"server.first_keys.{role}"))
    finally:
        await store.close()


def main() -> None:
    try:
        told = blueprint(settings_of({"settings": sys.argv[1]}))
    except HeliotropeError as error:
        sys.exit(error.message)
    print(f"{told.model}: base model {told.fingerprints.base_model}, tokenizer {told.fingerprints.tokenizer}")


if __name__ == "__main__":
    main()
