"""Which `response_format` is made into a grammar."""

from __future__ import annotations

from typing import Any

import pytest

from serving import schemas
from serving.errors import RequestRefused
from serving.schemas import MAX_BYTES, MAX_COUNT, MAX_DEPTH, MAX_NODES

FIELD = "response_format.json_schema.schema"


def schema(**keywords: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": keywords}}


def nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        made = {"items": made}
    return made


GOOD: list[Any] = [
    None,
    {"type": "text"},
    {"type": "json_object"},
    schema(type="object", properties={"yes": {"type": "boolean"}}, required=["yes"], additionalProperties=False),
    {"type": "json_schema", "json_schema": {"name": "a", "description": "b", "strict": True, "schema": {}}},
    schema(properties={"pattern": {"type": "string"}, "maxLength": {"type": "integer"}, "$ref": {}}),
    schema(**{"$ref": "#/$defs/node", "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}}}),
    schema(enum=["a" * 100] * 100),
    schema(type="string", maxLength=MAX_COUNT),
    schema(**nested(MAX_DEPTH - 1)),
]


@pytest.mark.parametrize("response_format", GOOD, ids=lambda value: str(value)[:60])
def test_what_is_small_and_plain_is_taken(response_format: Any) -> None:
    schemas.check(response_format)


BAD: dict[str, tuple[Any, str, str]] = {
    "no object": ("json_object", "response_format.type", "invalid_value"),
    "no type": ({}, "response_format.type", "invalid_value"),
    "a grammar": ({"type": "grammar", "grammar": "root ::= x"}, "response_format.type", "invalid_value"),
    "a structural tag": ({"type": "structural_tag"}, "response_format.type", "invalid_value"),
    "a regular expression": ({"type": "regex"}, "response_format.type", "invalid_value"),
    "something beside": (
        {"type": "json_object", "regex": "a+"},
        "response_format.regex",
        "unsupported_parameter",
    ),
    "no schema": ({"type": "json_schema"}, "response_format.json_schema", "invalid_value"),
    "no name": (
        {"type": "json_schema", "json_schema": {"schema": {}}},
        "response_format.json_schema",
        "invalid_value",
    ),
    "a schema that is none": (
        {"type": "json_schema", "json_schema": {"name": "a", "schema": True}},
        "response_format.json_schema",
        "invalid_value",
    ),
    "an unknown option": (
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "whitespace_pattern": ".*"}},
        "response_format.json_schema",
        "invalid_value",
    ),
    "too long": (schema(description="x" * MAX_BYTES), FIELD, "invalid_value"),
    "too deep": (schema(**nested(MAX_DEPTH + 1)), FIELD, "invalid_value"),
    "too many parts": (schema(enum=[0] * MAX_NODES), FIELD, "invalid_value"),
    "a pattern": (schema(properties={"a": {"type": "string", "pattern": "(a+)+$"}}), FIELD, "invalid_value"),
    "names by pattern": (schema(patternProperties={"(a+)+$": {}}), FIELD, "invalid_value"),
    "a reference to elsewhere": (schema(**{"$ref": "http://169.254.169.254/"}), FIELD, "invalid_value"),
    "a file": (schema(items={"$dynamicRef": "file:///etc/passwd"}), FIELD, "invalid_value"),
    "a repetition without end": (schema(type="string", minLength=10**9), FIELD, "invalid_value"),
    "very many items": (schema(type="array", maxItems=MAX_COUNT + 1), FIELD, "invalid_value"),
}


@pytest.mark.parametrize(("response_format", "param", "code"), BAD.values(), ids=BAD.keys())
def test_what_would_make_a_huge_or_slow_grammar_is_refused(response_format: Any, param: str, code: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        schemas.check(response_format)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, param, code)
    assert len(str(refused.value)) < 250
