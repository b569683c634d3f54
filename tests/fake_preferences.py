"""Votes and the quarantine of `fake_api.py`: three votes that never change, and items that are decided."""

from __future__ import annotations

from typing import Any, Literal

from service.curation.held import Held
from service.errors import NotFound

NOW = "2026-01-02T03:04:05Z"
_BECAME = (None, "no_partner", "truncated")  # the reasons of three votes, the newest first
_FILTERS = ("status", "reason", "app", "user", "source")


def listed(query: dict[str, str]) -> dict[str, Any]:
    """The votes that are asked for, and where the next page begins."""
    filters = {name: query[name] for name in _FILTERS if name in query}
    votes = [_vote(3 - i, reason) for i, reason in enumerate(_BECAME)]
    votes = [vote for vote in votes if all(vote[name] == value for name, value in filters.items())]
    shown = votes[: int(query.get("limit", 100))]
    return {"votes": shown, "next": shown[-1]["seq"] if len(shown) < len(votes) else None}


def _vote(seq: int, reason: str | None) -> dict[str, Any]:
    return {
        "seq": seq, "feedback_id": f"fb-{seq}", "app": "shop", "user": "ada", "kind": "rating",
        "completion_id": f"chatcmpl-{reason}", "choice_index": 0, "rating": "up", "rival_completion_id": None,
        "rival_choice_index": None, "tie": False, "tags": [], "created_at": NOW, "adapter": "policy-0001-aaaaaaaa",
        "status": "left_out" if reason else "paired", "reason": reason, "pair_id": None if reason else "p" * 64,
        "source": None if reason else "same_prompt",
    }  # fmt: skip


def decided(items: dict[int, Held], id: int, word: Literal["release", "drop"]) -> Held:
    """The item as it is now. Raises `NotFound`."""
    if id not in items:
        raise NotFound(f"There is no item {id} in quarantine.", param="id", code="quarantine_not_found")
    status = {"release": "released", "drop": "dropped"}[word]
    items[id] = items[id].model_copy(update={"status": status, "decided_by": "admin"})
    return items[id]
