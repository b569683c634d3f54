"""The base model that this database belongs to: adapters, recorded tokens and pairs in it fit no other."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert

from service.postgres.sessions import Sessions
from service.store.tables import base_model
from training.contracts import Fingerprints


class BaseModel:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def settle(self, here: Fingerprints) -> Fingerprints:
        """What the first start has recorded, which is `here` if this is the first; of several at once, one is."""
        async with self._sessions.transaction() as connection:
            await connection.execute(upsert(base_model).values(id=1, **here.model_dump()).on_conflict_do_nothing())
            row = (await connection.execute(select(base_model.c.base_model, base_model.c.tokenizer))).one()
        return Fingerprints.model_validate(dict(row._mapping))
