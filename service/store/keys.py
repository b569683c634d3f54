"""API keys: issued once in clear, kept only as digests.

A key reads `hel_<role>_<id>_<secret>`. The id is public and finds the row; the secret is 256 random bits, so a plain
sha256 is enough: there is nothing to guess that a slow hash would protect. What was verified a moment ago is not asked
for again (`known_keys.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from service.contracts import Key, Role
from service.errors import BadRequest, NotFound, Unavailable
from service.limiting.settings import NO_LIMITS, LimitSettings
from service.postgres.sessions import Sessions, compiled
from service.store.known_keys import KnownKeys
from service.store.tables import keys

_ID_BYTES = 6
_SECRET_BYTES = 32  # 43 characters of URL-safe base64
_SHAPE = re.compile(rf"hel_(?:{'|'.join(Role)})_([0-9a-f]{{12}})_[A-Za-z0-9_-]{{43}}", re.ASCII)
_FIND = compiled(select(keys).where(keys.c.id == bindparam("id"), keys.c.revoked_at.is_(None)))
_NO_DIGEST = "0" * 64  # compared with when the id is unknown, so that both cases do the same work


class Keys:
    def __init__(self, sessions: Sessions, known: KnownKeys | None = None) -> None:
        self._sessions = sessions
        self._known = known or KnownKeys()
        self._asking: dict[str, asyncio.Task[Key | None]] = {}  # by the digest of what was presented

    async def issue(self, role: Role, app: str, limits: LimitSettings = NO_LIMITS) -> tuple[Key, str]:
        """A new key and its text, which can never be shown again."""
        key = Key(id=secrets.token_hex(_ID_BYTES), role=role, app=app, limits=limits)
        presented = f"hel_{role.value}_{key.id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        async with self._sessions.transaction() as connection:
            row = {"id": key.id, "role": role.value, "app": app, "secret_sha256": _digest(presented)}
            await connection.execute(insert(keys).values(**row, **limits.model_dump()))
        return key, presented

    async def adopt(self, role: Role, app: str, presented: str) -> None:
        """Let in a key that was made elsewhere; again does nothing. Raises `BadRequest` for what has not a key's form."""
        shape = _SHAPE.fullmatch(presented)
        if shape is None or not presented.startswith(f"hel_{role.value}_"):
            raise BadRequest(
                f"server.first_keys.{role.value}: the file must hold one key, which reads hel_{role.value}_<12 hexadecimal digits>_<43 characters>.",
                param=f"server.first_keys.{role.value}", code="malformed_key",
            )  # fmt: skip
        row = {"id": shape.group(1), "role": role.value, "app": app, "secret_sha256": _digest(presented)}
        async with self._sessions.transaction() as connection:
            await connection.execute(upsert(keys).values(**row).on_conflict_do_nothing())

    async def verify(self, presented: str) -> Key | None:
        """Whose key this is; None when it is malformed, unknown or revoked. Digests compare in constant time.

        While the store is away a key that was good before it went still is, for a while; of any other nobody can
        say, which raises `Unavailable`.
        """
        shape = _SHAPE.fullmatch(presented)
        if shape is None:
            return None
        digest = _digest(presented)
        known = self._known.fresh(digest)
        if known is None:
            return await asyncio.shield(self._asked(shape.group(1), digest))
        if self._known.ages(digest):
            self._asked(shape.group(1), digest)  # and not waited for
        return known

    def _asked(self, id: str, digest: str) -> asyncio.Task[Key | None]:
        """One question for all who present the key meanwhile. After a pause many come at once, and if each asked, they
        would take all connections and hold up one another."""
        if digest not in self._asking:
            task = self._asking[digest] = asyncio.create_task(self._ask(id, digest))
            task.add_done_callback(lambda task: self._answered(digest, task))
        return self._asking[digest]

    def _answered(self, digest: str, task: asyncio.Task[Key | None]) -> None:
        del self._asking[digest]
        if not task.cancelled():
            task.exception()  # whoever waits for it raises it; who asked early asks again soon

    async def _ask(self, id: str, digest: str) -> Key | None:
        try:
            key = await self._find(id, digest)
        except Unavailable:
            if (known := self._known.without_store(digest)) is None:
                raise
            return known
        self._known.learn(digest, key)
        return key

    async def _find(self, id: str, digest: str) -> Key | None:
        found = await self._sessions.read(_FIND, {"id": id})
        kept = found[0]["secret_sha256"] if found else _NO_DIGEST
        if not hmac.compare_digest(digest, kept) or not found:
            return None
        return _key(found[0])

    async def revoke(self, id: str) -> None:
        """From now on the key opens nothing; revoking it again changes nothing. Raises `NotFound`.

        Other processes may take it for good for `known_keys.FRESH_SECONDS` more.
        """
        async with self._sessions.transaction() as connection:
            revoked = await connection.execute(
                update(keys)
                .where(keys.c.id == id)
                .values(revoked_at=func.coalesce(keys.c.revoked_at, func.now()))
                .returning(keys.c.id)
            )
            if revoked.one_or_none() is None:
                raise NotFound(f"No key has the id '{id}'. List the keys to see which there are.", param="id")
        self._known.forget(id)

    async def list(self) -> tuple[Key, ...]:
        """The keys that are valid, oldest first."""
        async with self._sessions.transaction() as connection:
            found = await connection.execute(
                select(keys).where(keys.c.revoked_at.is_(None)).order_by(keys.c.created_at, keys.c.id)
            )
            return tuple(_key(row) for row in found.mappings())

    async def close(self) -> None:
        """Returns when nothing is asked any more."""
        if self._asking:
            await asyncio.wait(self._asking.values())


def _key(row: Mapping[Any, Any]) -> Key:
    limits = {name: row[name] for name in LimitSettings.model_fields}
    return Key(id=row["id"], role=Role(row["role"]), app=row["app"], limits=LimitSettings(**limits))


def _digest(presented: str) -> str:
    """Over the whole text, so that a key's role and id cannot be exchanged either."""
    return hashlib.sha256(presented.encode("ascii")).hexdigest()
