"""Which chat bodies we pass to the engine: pure checks, before any engine sees them.

The engine's own request model ignores what it does not know. Here, what is not listed is refused by name, so
nothing that a caller asks for is silently left undone, and nothing reaches inside the engine.
"""

from __future__ import annotations

import json
from typing import Any

from serving.errors import RequestRefused

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 256
MAX_CHOICES = 16  # n
MAX_LOGPROBS = 5
MAX_STOPS = 4
MAX_METADATA = 16  # keys, as OpenAI counts them

# Recorded here and taken out of the body before the engine gets it.
OURS = ("metadata", "store")

PASSED_ON = frozenset({
    "model", "messages", "user", "n", "stream", "stream_options",
    "max_tokens", "max_completion_tokens", "stop", "seed",
    "temperature", "top_p", "frequency_penalty", "presence_penalty",
    "logprobs", "top_logprobs", "response_format",
})  # fmt: skip


def check(body: Any) -> dict[str, Any]:
    """Return the body the engine gets, without our own fields. Raises `RequestRefused` naming the field."""
    if not isinstance(body, dict):
        raise RequestRefused("The body must be a JSON object.", code="invalid_json")
    if not _is_finite(body):
        raise RequestRefused("NaN and Infinity are no JSON. Send a number or leave the field out.",
                             code="invalid_json")  # fmt: skip
    for name in body:
        if name not in PASSED_ON and name not in OURS:
            raise RequestRefused(f"Unsupported parameter: '{name[:100]}'. Remove it.", param=name[:100],
                                 code="unsupported_parameter")  # fmt: skip
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise RequestRefused("The field 'model' is required; use 'policy'.", param="model", code="missing_parameter")
    _check_messages(body.get("messages"))
    _check_integer(body, "n", 1, MAX_CHOICES)
    _check_integer(body, "top_logprobs", 0, MAX_LOGPROBS)
    _check_integer(body, "max_tokens", 1, None)
    _check_integer(body, "max_completion_tokens", 1, None)
    if isinstance(body.get("stop"), list) and len(body["stop"]) > MAX_STOPS:
        raise RequestRefused(f"'stop' takes at most {MAX_STOPS} strings.", param="stop", code="invalid_value")
    _check_ours(body)
    return {name: value for name, value in body.items() if name not in OURS}


def sampling(body: dict[str, Any]) -> dict[str, Any]:
    """The part of a body that says how to sample; kept in the record."""
    return {k: v for k, v in body.items() if k not in {"model", "messages", "user", "stream", "stream_options", *OURS}}


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise RequestRefused("'messages' must be a list with at least one message.", param="messages",
                             code="invalid_value")  # fmt: skip
    if len(messages) > MAX_MESSAGES:
        raise RequestRefused(f"'messages' holds {len(messages)} messages; the limit is {MAX_MESSAGES}.",
                             param="messages", code="invalid_value")  # fmt: skip
    for i, message in enumerate(messages):
        field = f"messages.{i}"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise RequestRefused(f"'{field}.role' must be one of {', '.join(ROLES)}.", param=f"{field}.role",
                                 code="invalid_value")  # fmt: skip
        text = text_of(message.get("content"))
        if text is None:
            raise RequestRefused(f"'{field}.content' must be text.", param=f"{field}.content", code="invalid_value")
        if not text.strip() and message["role"] == "user":
            raise RequestRefused(f"'{field}.content' is empty. Write what you want to ask.",
                                 param=f"{field}.content", code="empty_prompt")  # fmt: skip
        if "\0" in text:
            raise RequestRefused(f"'{field}.content' holds the NUL character.", param=f"{field}.content",
                                 code="invalid_value")  # fmt: skip
    if messages[-1]["role"] == "assistant":
        raise RequestRefused("The last message must not be the assistant's.", param="messages", code="invalid_value")


def text_of(content: Any) -> str | None:
    """The text of a message: a string, or OpenAI's list of text parts. None: it is anything else."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        if all(isinstance(p, str) for p in parts):
            return "".join(p for p in parts if p is not None)
    return None


def _is_finite(body: dict[str, Any]) -> bool:
    """Python's parser takes NaN and Infinity; the engine would sample with them and the store refuse them."""
    try:
        json.dumps(body, allow_nan=False)
    except ValueError:
        return False
    return True


def _check_integer(body: dict[str, Any], name: str, low: int, high: int | None) -> None:
    value = body.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        bounds = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise RequestRefused(f"'{name}' must be an integer {bounds}.", param=name, code="invalid_value")


def _check_ours(body: dict[str, Any]) -> None:
    metadata = body.get("metadata")
    if metadata is not None and not (
        isinstance(metadata, dict)
        and len(metadata) <= MAX_METADATA
        and all(
            isinstance(v, str) and len(k) <= 64 and len(v) <= 512 and "\0" not in k + v for k, v in metadata.items()
        )
    ):
        raise RequestRefused(f"'metadata' takes at most {MAX_METADATA} keys of up to 64 characters with string values "
                             "of up to 512.", param="metadata", code="invalid_value")  # fmt: skip
    if not isinstance(body.get("store", True), bool | None):
        raise RequestRefused("'store' must be true or false.", param="store", code="invalid_value")
    user = body.get("user")
    if user is not None and not (isinstance(user, str) and 0 < len(user) <= 256 and "\0" not in user):
        raise RequestRefused("'user' must be a string of 1 to 256 characters.", param="user", code="invalid_value")
