"""Which chat bodies we pass to the engine: pure checks, before any engine sees them.

The engine's own request model ignores what it does not know. Here, what is not listed is refused by name, so
nothing that a caller asks for is silently left undone, and nothing reaches inside the engine. Text of a caller
never becomes a token of control: who could write those could speak in another's role.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving import schemas
from serving.errors import RequestRefused

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 256
MAX_LOGPROBS = 5
MAX_STOPS = 4
MAX_STOP_LENGTH = 256  # characters
MAX_METADATA = 16  # keys, as OpenAI counts them
MOST_SEED = 2**53  # beyond, JSON readers disagree about integers

# Recorded here and taken out of the body before the engine gets it.
OURS = ("metadata", "store")

PASSED_ON = frozenset({
    "model", "messages", "user", "n", "stream", "stream_options",
    "max_tokens", "max_completion_tokens", "stop", "seed",
    "temperature", "top_p", "frequency_penalty", "presence_penalty",
    "logprobs", "top_logprobs", "response_format",
})  # fmt: skip

# Parameters of the engine and of OpenAI that callers know and might expect to work, and why they do not.
_WHY = {
    "How a prompt is written is the server's to say": (
        "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message",
        "add_special_tokens", "documents", "truncate_prompt_tokens", "reasoning_effort",
    ),
    "Only text is read and written": (
        "mm_processor_kwargs", "media_io_kwargs", "mm_payload", "prompt_embeds", "audio", "modalities",
    ),
    "Tools are not offered": ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
    "Use 'response_format' with json_object or json_schema": (
        "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar", "regex",
    ),
    "What is learned from answers is what the model itself would say": (
        "logit_bias", "allowed_token_ids", "bad_words", "ignore_eos", "min_tokens", "use_beam_search",
        "length_penalty", "thinking_token_budget", "repetition_detection", "watermarking", "top_k", "min_p",
        "repetition_penalty",
    ),
    "Prompts and tokens are not shown": (
        "prompt_logprobs", "echo", "return_token_ids", "return_prompt_text", "return_tokens_as_token_ids",
        "logprob_token_ids", "skip_special_tokens", "include_stop_str_in_output", "spaces_between_special_tokens",
    ),
    "The server keeps this for itself": (
        "kv_transfer_params", "ec_transfer_params", "vllm_xargs", "cache_salt", "priority", "request_id",
        "session_id", "stream_interval", "routed_experts", "service_tier",
    ),
}  # fmt: skip
REASONS: Mapping[str, str] = {name: why for why, names in _WHY.items() for name in names}

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NUMBERS = {  # name -> the least and the most
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}


@dataclass(frozen=True)
class Limits:
    """What a deployment sets."""

    max_choices: int = 16  # n
    max_output_tokens: int | None = None
    control_tokens: frozenset[str] = frozenset()


def check(body: Any, limits: Limits = Limits()) -> dict[str, Any]:
    """Return the body the engine gets, without our own fields. Raises `RequestRefused` naming the field."""
    if not isinstance(body, dict):
        raise RequestRefused("The body must be a JSON object.", code="invalid_json")
    if not _is_finite(body):
        raise RequestRefused("NaN and Infinity are no JSON. Send a number or leave the field out.",
                             code="invalid_json")  # fmt: skip
    _check_names(body)
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise RequestRefused("The field 'model' is required; use 'policy'.", param="model", code="missing_parameter")
    messages = _messages(body.get("messages"), limits.control_tokens)
    _check_integer(body, "n", 1, limits.max_choices)
    _check_integer(body, "top_logprobs", 0, MAX_LOGPROBS)
    _check_integer(body, "seed", -MOST_SEED, MOST_SEED)
    for name in ("max_tokens", "max_completion_tokens"):
        _check_integer(body, name, 1, None)
        _check_output(body, name, limits.max_output_tokens)
    for name, (least, most) in _NUMBERS.items():
        _check_number(body, name, least, most)
    for name in ("stream", "logprobs", "store"):
        _check_flag(body, name)
    _check_stream_options(body.get("stream_options"))
    _check_stops(body.get("stop"))
    schemas.check(body.get("response_format"))
    _check_ours(body)
    return {name: value for name, value in body.items() if name not in OURS} | {"messages": messages}


def sampling(body: dict[str, Any]) -> dict[str, Any]:
    """The part of a body that says how to sample; kept in the record."""
    return {k: v for k, v in body.items() if k not in {"model", "messages", "user", "stream", "stream_options", *OURS}}


def text_of(content: Any) -> str | None:
    """The text of a message: a string, or OpenAI's list of text parts. None: it is anything else."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        parts = [_part(part) for part in content]
        if all(isinstance(p, str) for p in parts):
            return "".join(p for p in parts if p is not None)
    return None


def _part(part: Any) -> Any:
    return (
        part["text"] if isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text" else None
    )


def _refused(message: str, param: str, code: str = "invalid_value") -> RequestRefused:
    return RequestRefused(message, param=param, code=code)


def _check_names(body: dict[str, Any]) -> None:
    for name in body:
        if name not in PASSED_ON and name not in OURS:
            why = f" {REASONS[name]}." if name in REASONS else ""
            raise _refused(f"Unsupported parameter: '{name[:100]}'.{why} Remove it.", name[:100],
                           "unsupported_parameter")  # fmt: skip


# --- messages -----------------------------------------------------------------------------------------


def _messages(messages: Any, control_tokens: frozenset[str]) -> list[dict[str, Any]]:
    """The messages as the engine gets them."""
    if not isinstance(messages, list) or not messages:
        raise _refused("'messages' must be a list with at least one message.", "messages")
    if len(messages) > MAX_MESSAGES:
        raise _refused(f"'messages' holds {len(messages)} messages; the limit is {MAX_MESSAGES}.", "messages")
    checked = [_message(message, f"messages.{i}", control_tokens) for i, message in enumerate(messages)]
    if checked[-1]["role"] == "assistant":
        raise _refused("The last message must not be the assistant's.", "messages")
    return checked


def _message(message: Any, field: str, control_tokens: frozenset[str]) -> dict[str, Any]:
    """Clients send an answer back as they got it, with fields that say nothing: those are left out."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise _refused(f"'{field}.role' must be one of {', '.join(ROLES)}.", f"{field}.role")
    message = {name: value for name, value in message.items() if value or name in ("role", "content")}
    for name in message:
        if name not in ("role", "content", "name"):
            raise _refused(f"Unsupported parameter: '{field}.{name[:100]}'. A message has a role, a content and a name.",
                           f"{field}.{name[:100]}", "unsupported_parameter")  # fmt: skip
    name = message.get("name", "x")
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise _refused(f"'{field}.name' takes up to 64 letters, digits, '_' and '-'.", f"{field}.name")
    _check_text(text_of(message.get("content")), message["role"], f"{field}.content", control_tokens)
    return message


def _check_text(text: str | None, role: str, field: str, control_tokens: frozenset[str]) -> None:
    if text is None:
        raise _refused(f"'{field}' must be text.", field)
    if not text.strip() and role == "user":
        raise _refused(f"'{field}' is empty. Write what you want to ask.", field, "empty_prompt")
    if "\0" in text:
        raise _refused(f"'{field}' holds the NUL character.", field)
    for token in control_tokens:
        if token in text:
            raise _refused(f"'{field}' holds '{token[:100]}', which steers this model and is no text. Take it out, or "
                           "write it in another way.", field, "control_token")  # fmt: skip


# --- values -------------------------------------------------------------------------------------------


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
        raise _refused(f"'{name}' must be an integer {bounds}.", name)


def _check_output(body: dict[str, Any], name: str, most: int | None) -> None:
    if most is not None and (body.get(name) or 0) > most:
        raise _refused(f"'{name}' is {body[name]}; the limit is {most} tokens (serving.max_output_tokens).", name)


def _check_number(body: dict[str, Any], name: str, least: float, most: float) -> None:
    value = body.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not least <= value <= most:  # fmt: skip
        raise _refused(f"'{name}' must be a number from {least:g} to {most:g}.", name)


def _check_flag(body: dict[str, Any], name: str) -> None:
    if not isinstance(body.get(name), bool | None):
        raise _refused(f"'{name}' must be true or false.", name)


def _check_stream_options(options: Any) -> None:
    if options is None:
        return
    if not (isinstance(options, dict) and options.keys() <= {"include_usage"}
            and isinstance(options.get("include_usage"), bool | None)):  # fmt: skip
        raise _refused("'stream_options' takes 'include_usage', true or false, and nothing else.", "stream_options")


def _check_stops(stop: Any) -> None:
    if stop is None:
        return
    stops = [stop] if isinstance(stop, str) else stop
    if not (isinstance(stops, list) and len(stops) <= MAX_STOPS
            and all(isinstance(one, str) and 0 < len(one) <= MAX_STOP_LENGTH for one in stops)):  # fmt: skip
        raise _refused(f"'stop' takes at most {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters.", "stop")


def _check_ours(body: dict[str, Any]) -> None:
    metadata = body.get("metadata")
    if metadata is not None and not (
        isinstance(metadata, dict)
        and len(metadata) <= MAX_METADATA
        and all(
            isinstance(v, str) and len(k) <= 64 and len(v) <= 512 and "\0" not in k + v for k, v in metadata.items()
        )
    ):
        raise _refused(f"'metadata' takes at most {MAX_METADATA} keys of up to 64 characters with string values "
                       "of up to 512.", "metadata")  # fmt: skip
    user = body.get("user")
    if user is not None and not (isinstance(user, str) and 0 < len(user) <= 256 and "\0" not in user):
        raise _refused("'user' must be a string of 1 to 256 characters.", "user")
