"""Amazon Nova's format on SageMaker and Bedrock: a conversation whose last turn has two candidates.

    nova  {"system": [{"text": "Be kind."}],
           "messages": [{"role": "user", "content": [{"text": "Hi"}]},
                        {"role": "assistant", "candidates": [
                            {"content": [{"text": "Hello!"}], "preferenceLabel": "preferred"},
                            {"content": [{"text": "What?"}], "preferenceLabel": "non-preferred"}]}]}

SageMaker's other models take TRL's formats.
"""

from __future__ import annotations

from typing import Any

from training.formats.parts import (
    Message,
    Row,
    RowError,
    Said,
    Shape,
    Spelling,
    content,
    ending_with_user,
    messages,
    pair,
)

_SPELLING = Spelling(part="text")
_LABELS = ("preferred", "non-preferred")


def _has_candidates(row: Row) -> bool:
    turns = row.get("messages")
    return isinstance(turns, list) and bool(turns) and isinstance(turns[-1], dict) and bool(turns[-1].get("candidates"))


def _said(row: Row) -> Said:
    *turns, last = row["messages"]
    where = f"messages.{len(turns)}.candidates"
    prompt = ending_with_user([*_system(row), *(messages("messages", turns, _SPELLING) if turns else [])], "messages")
    labelled = _labelled(where, last["candidates"])
    chosen, rejected = (_answer(where, labelled, label) for label in _LABELS)
    return pair(prompt, chosen, rejected, where)


def _system(row: Row) -> list[Message]:
    given = row.get("system")
    return [{"role": "system", "content": content("system", {"content": given}, _SPELLING)}] if given else []


def _labelled(where: str, candidates: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(candidates, list) or not all(isinstance(candidate, dict) for candidate in candidates):
        raise RowError(where, "must be a list of candidates")
    return {str(candidate.get("preferenceLabel")).lower(): candidate for candidate in candidates}


def _answer(where: str, labelled: dict[str, dict[str, Any]], label: str) -> str:
    if label not in labelled:
        raise RowError(where, f"no candidate has the preferenceLabel {label!r}")
    return content(f"{where}.content", {"content": labelled[label].get("content")}, _SPELLING)


FORMATS = (
    Shape(
        "nova", "nova", "{system, messages: [..., {candidates: [{content, preferenceLabel}]}]}", ("system", "messages"),
        _has_candidates, _said,
    ),
)  # fmt: skip
