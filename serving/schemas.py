"""`response_format`: text, any JSON object, or JSON of a schema small and plain enough to be made into a grammar. Pure.

A grammar is built from the schema before the first token, for all requests in one process. What makes that slow or
huge is refused: regular expressions, references to elsewhere, deep nesting, repetition that is counted in thousands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from serving.errors import RequestRefused

MAX_BYTES = 16 << 10
MAX_DEPTH = 16
MAX_NODES = 512  # objects, lists and values
MAX_COUNT = 1024  # of characters, items or properties that a schema asks for

_FIELD = "response_format"
_OPTIONS = {"name", "description", "schema", "strict"}
_PATTERNS = {"pattern": str, "patternProperties": dict}  # a property may be called so too; then it is not of that type
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
                     "minContains", "maxContains"})  # fmt: skip


def check(response_format: Any) -> None:
    """Raises `RequestRefused`, which names what is wrong with it and the limit."""
    if response_format is None:
        return
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise _refused(f"'{_FIELD}.type' must be text, json_object or json_schema.", f"{_FIELD}.type")
    allowed = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    if unknown := sorted(response_format.keys() - allowed):
        raise _refused(f"Unsupported parameter: '{_FIELD}.{unknown[0][:100]}'. Remove it.",
                       f"{_FIELD}.{unknown[0][:100]}", "unsupported_parameter")  # fmt: skip
    if kind == "json_schema":
        _check_schema(response_format.get("json_schema"))


def _check_schema(given: Any) -> None:
    field = f"{_FIELD}.json_schema"
    if not (isinstance(given, dict) and isinstance(given.get("name"), str) and isinstance(given.get("schema"), dict)
            and given.keys() <= _OPTIONS):  # fmt: skip
        raise _refused(f"'{field}' takes 'name', 'schema' and, if you like, 'description' and 'strict'.", field)
    schema, field = given["schema"], f"{field}.schema"
    if (size := len(json.dumps(schema))) > MAX_BYTES:
        raise _refused(f"'{field}' has {size} bytes; the limit is {MAX_BYTES}.", field)
    for nodes, (depth, key, value) in enumerate(_nodes(schema)):
        if depth > MAX_DEPTH:
            raise _refused(f"'{field}' is nested more than {MAX_DEPTH} deep.", field)
        if nodes >= MAX_NODES:
            raise _refused(f"'{field}' has more than {MAX_NODES} parts.", field)
        _check_keyword(key, value, field)


def _check_keyword(key: str | None, value: Any, field: str) -> None:
    if key in _PATTERNS and isinstance(value, _PATTERNS[key]):
        raise _refused(f"'{field}' uses '{key}'; regular expressions are not taken.", field)
    if key in _REFERENCES and isinstance(value, str) and not value.startswith("#"):
        raise _refused(f"'{field}' refers to '{value[:100]}'; only parts of the same schema, '#/...', are.", field)
    if key in _COUNTS and isinstance(value, int | float) and value > MAX_COUNT:
        raise _refused(f"'{field}' asks for {key} = {value:g}; the limit is {MAX_COUNT}.", field)


def _nodes(schema: Any) -> Iterator[tuple[int, str | None, Any]]:
    """(depth, key of the object that it stands in, value) of everything in it; without recursion, however deep."""
    waiting: list[tuple[int, str | None, Any]] = [(0, None, schema)]
    while waiting:
        depth, key, value = waiting.pop()
        yield depth, key, value
        if isinstance(value, dict):
            waiting.extend((depth + 1, inner, child) for inner, child in value.items())
        elif isinstance(value, list):
            waiting.extend((depth + 1, None, child) for child in value)


def _refused(message: str, param: str, code: str = "invalid_value") -> RequestRefused:
    return RequestRefused(message, param=param, code=code)
