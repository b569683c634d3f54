"""The log of answered requests: what was asked, which adapter answered, and the token ids of both."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert
from sqlalchemy.dialects.postgresql import insert as upsert

from service.store.sessions import Sessions
from service.store.tables import choices, completions
from serving.contracts import Choice, Completion

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # PostgreSQL's text holds neither NUL nor half a surrogate pair


class Completions:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def record(self, completion: Completion) -> None:
        """Durable when it returns. `store=False` keeps the messages, the texts and the token ids out.

        Recording the same id again changes nothing, so a caller that lost the connection may simply retry.
        """
        async with self._sessions.transaction() as connection:
            recorded = await connection.execute(
                upsert(completions)
                .values(_completion_row(completion))
                .on_conflict_do_nothing(index_elements=[completions.c.id])
                .returning(completions.c.id)
            )
            if recorded.one_or_none() is not None:
                rows = [_choice_row(completion, choice) for choice in completion.choices]
                await connection.execute(insert(choices), rows)


def prompt_digest(token_ids: Sequence[int]) -> str:
    """sha256 hex over the rendered prompt's token ids as little-endian 32-bit unsigned integers."""
    return hashlib.sha256(struct.pack(f"<{len(token_ids)}I", *token_ids)).hexdigest()


def _completion_row(completion: Completion) -> dict[str, Any]:
    return {
        "id": completion.id,
        "app": completion.app,
        "adapter": completion.adapter,
        "model": completion.model,
        "user": _storable(completion.user),
        "metadata": _storable(completion.metadata),
        "messages": _storable(completion.messages) if completion.store else None,
        "sampling": _storable(completion.sampling),
        "tokenizer_fingerprint": completion.tokenizer_fingerprint,
        "prompt_digest": prompt_digest(completion.prompt_token_ids),
        "prompt_token_ids": list(completion.prompt_token_ids) if completion.store else None,
        "created_at": completion.created_at,
    }


def _choice_row(completion: Completion, choice: Choice) -> dict[str, Any]:
    return {
        "completion_id": completion.id,
        "choice_index": choice.index,
        "text": _storable(choice.text) if completion.store else None,
        "token_ids": list(choice.token_ids) if completion.store else None,
        "finish_reason": choice.finish_reason,
    }


def _storable(value: Any) -> Any:
    """Text as the database can hold it. The token ids stay exact, and they are what is trained on (invariant 2)."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, dict):
        return {_storable(key): _storable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(inner) for inner in value]
    return value
