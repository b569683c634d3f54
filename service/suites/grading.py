"""Is an answer right? Everything but a judge's rubric is decided here. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema

from service.suites.items import Expected

_FENCED = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)


def right(check: Expected, answer: str) -> bool | None:
    """None: only a judge can tell."""
    if check.exact is not None:
        return _bare(answer) == _bare(check.exact)
    if check.regex is not None:
        return re.search(check.regex, answer, re.IGNORECASE) is not None
    if check.choice is not None:
        return _named(answer, check.among) == {check.choice}
    if check.json_schema is not None:
        return _fits(answer, check.json_schema)
    assert check.judge is not None, "a check has one way"
    return None


def _bare(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()


def _named(answer: str, among: tuple[str, ...]) -> set[str]:
    """Which of the choices stand in the answer as words; case counts, for `A` is a choice and `a` an article."""
    return {choice for choice in among if re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", answer)}


def _fits(answer: str, schema: dict[str, Any]) -> bool:
    """An answer may stand in a block of code, as many policies write JSON."""
    text = answer.strip()
    fenced = _FENCED.match(text)
    try:
        value = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):
        return False
    return jsonschema.Draft202012Validator(schema).is_valid(value)
