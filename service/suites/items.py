"""A question of a suite and how its answer is graded. One line of a JSONL file is one `Item`. Knows no policy.

{"id": "sums-1", "slice": "sums", "prompt": "What is 7 plus 5?", "check": {"regex": "\\\\b12\\\\b"}}
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

import jsonschema
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    return pattern


def _is_schema(schema: dict[str, Any]) -> dict[str, Any]:
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"is no JSON schema: {error.message}") from error
    return schema


class Expected(_Record):
    """Exactly one of these."""

    exact: str | None = None  # the whole answer; case, spaces around it and a full stop aside
    regex: Annotated[str, AfterValidator(_compiles)] | None = None  # found anywhere; case aside
    choice: str | None = None  # one of `among`, and the only one of them that the answer names
    among: tuple[str, ...] = ()
    json_schema: Annotated[dict[str, Any], AfterValidator(_is_schema)] | None = None  # the answer is JSON that fits it
    judge: str | None = None  # a rubric: what a judge, if there is one, must be able to say yes to

    @model_validator(mode="after")
    def _one(self) -> Self:
        ways = ("exact", "regex", "choice", "json_schema", "judge")
        if sum(getattr(self, way) is not None for way in ways) != 1:
            raise ValueError(f"give exactly one of {', '.join(ways)}")
        if (self.choice is not None) != bool(self.among) or (self.choice is not None and self.choice not in self.among):
            raise ValueError("`choice` is one of `among`, and goes with it")
        return self


class Item(_Record):
    """A question. Without a check nothing is right or wrong: only how it is answered counts."""

    id: str
    slice: str
    prompt: str | None = None  # one user message
    messages: tuple[dict[str, Any], ...] = ()  # a whole conversation instead
    check: Expected | None = None
    harmful: bool = False  # a policy should refuse
    max_tokens: int = Field(default=64, ge=1, le=4096)

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give `prompt` or `messages`")
        if self.messages and self.messages[-1].get("role") != "user":
            raise ValueError("the last of `messages` is the user's")
        return self

    @property
    def chat(self) -> tuple[dict[str, Any], ...]:
        """The messages that are sent."""
        return self.messages or ({"role": "user", "content": self.prompt},)

    @property
    def question(self) -> str:
        """The last thing the user says."""
        return str(self.chat[-1].get("content", ""))


class Suite(_Record):
    name: str
    items: tuple[Item, ...]
    digest: str  # sha256 hex of the items' content
