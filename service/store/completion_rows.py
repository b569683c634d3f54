"""An answered request as it is kept: redacted, storable, with the digest that finds its prompt again. Pure."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from typing import Any

from service.keeping.redaction import Redactor
from serving.contracts import Completion

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # PostgreSQL's text holds neither NUL nor half a surrogate pair
_NO_TEXT = frozenset({"role", "type"})  # fields of a message that say what it is, not what somebody wrote


def prompt_digest(token_ids: Sequence[int]) -> str:
    """sha256 hex over the rendered prompt's token ids as little-endian 32-bit unsigned integers."""
    return hashlib.sha256(struct.pack(f"<{len(token_ids)}I", *token_ids)).hexdigest()


def completion_row(completion: Completion, redact: Redactor) -> dict[str, Any]:
    """The columns of `completions`, and under `choices` those of its choices, as JSON can hold them; token ids are
    written as PostgreSQL writes arrays.

    `store=False` keeps the messages, the texts and the token ids out; so does the hook for the token ids, where it
    changes any text, for they would say what was taken out. Raises `RedactionFailed`.
    """
    messages = [_redacted(message, redact) for message in completion.messages] if completion.store else None
    texts = [redact.text(choice.text) for choice in completion.choices] if completion.store else None
    redacted = texts is not None and (
        messages != completion.messages or texts != [choice.text for choice in completion.choices]
    )
    keep_tokens = completion.store and not redacted
    return {
        "id": completion.id,
        "app": completion.app,
        "adapter": completion.adapter,
        "model": completion.model,
        "user": _storable(completion.user),
        "metadata": _storable({name: redact.text(value) for name, value in completion.metadata.items()}),
        "messages": _storable(messages),
        "sampling": _storable(completion.sampling),
        "tokenizer_fingerprint": completion.tokenizer_fingerprint,
        "prompt_digest": prompt_digest(completion.prompt_token_ids),
        "prompt_token_ids": _array(completion.prompt_token_ids) if keep_tokens else None,
        "single_turn": sum(message["role"] != "system" for message in completion.messages) == 1,
        "redacted": redacted,
        "outcome": completion.outcome,
        "first_token_seconds": completion.first_token_seconds,
        "seconds": completion.seconds,
        "created_at": completion.created_at.isoformat(),
        "choices": [
            {
                "choice_index": choice.index,
                "text": None if texts is None else _storable(texts[i]),
                "token_ids": _array(choice.token_ids) if keep_tokens else None,
                "finish_reason": choice.finish_reason,
                "tokens": len(choice.token_ids),
            }
            for i, choice in enumerate(completion.choices)
        ],
    }


def _array(token_ids: Sequence[int]) -> str:
    """As PostgreSQL writes an array: it reads one text far quicker than as many JSON numbers."""
    return "{" + ",".join(map(str, token_ids)) + "}"


def _redacted(value: Any, redact: Redactor) -> Any:
    """Whatever somebody wrote in a message: its content, the parts of its content, a name."""
    if isinstance(value, str):
        return redact.text(value)
    if isinstance(value, dict):
        return {key: inner if key in _NO_TEXT else _redacted(inner, redact) for key, inner in value.items()}
    if isinstance(value, list):
        return [_redacted(inner, redact) for inner in value]
    return value


def _storable(value: Any) -> Any:
    """Text as the database can hold it. The token ids stay exact, and they are what is trained on (invariant 2)."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, dict):
        return {_storable(key): _storable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(inner) for inner in value]
    return value
