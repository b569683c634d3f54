"""Votes of one prompt as tests write them, and what `service.preferences.match` makes of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from service.curation.settings import PreferenceSettings
from service.pairs import LeftOut, Source
from service.preferences import Answered, Matched, PromptVotes, match
from service.votes import ChoiceKey, Kind, Rating, Vote

UP, DOWN = Rating.UP, Rating.DOWN
BEGIN = datetime(2026, 5, 1, tzinfo=UTC)
RATED = (Source.SIBLINGS, Source.SAME_PROMPT, Source.THUMB)

Cast = tuple[Vote, list[Answered]]


def answered(key: ChoiceKey, answer: str | None, **fields: Any) -> Answered:
    tokens = None if answer is None else tuple(answer.encode())
    return Answered(
        **({"key": key, "adapter": "base", "finish_reason": "stop", "text": answer, "token_ids": tokens} | fields)
    )


def thumb(seq: int, rating: Rating, answer: str | None, *, key: ChoiceKey | None = None, **fields: Any) -> Cast:
    """By default each vote is on a choice of its own, by a user of its own."""
    of_answer = {name: fields.pop(name) for name in list(fields) if name in Answered.__dataclass_fields__}
    key = key or (f"c{seq}", 0)
    return cast(seq, Kind.RATING, key, rating=rating, **fields), [answered(key, answer, **of_answer)]


def comparison(seq: int, better: ChoiceKey, worse: ChoiceKey, texts: dict[ChoiceKey, str], **fields: Any) -> Cast:
    vote = cast(seq, Kind.COMPARISON, better, rival=worse, **fields)
    return vote, [answered(key, texts[key]) for key in (better, worse) if key in texts]


def correction(seq: int, correction: str, answer: str, *, key: ChoiceKey, **fields: Any) -> Cast:
    return cast(seq, Kind.CORRECTION, key, correction=correction, **fields), [answered(key, answer)]


def cast(seq: int, kind: Kind, key: ChoiceKey, **fields: Any) -> Vote:
    defaults = {"app": "shop", "user": f"user-{seq}", "voted_at": BEGIN + timedelta(seconds=seq)}
    return Vote(seq=seq, kind=kind, completion_id=key[0], choice_index=key[1], **(defaults | fields))


def prompt_votes(casts: list[Cast], **fields: Any) -> PromptVotes:
    answers = {answer.key: answer for _, answered in casts for answer in answered}
    defaults = {"app": "shop", "prompt_digest": "p", "prompt_text": "why?", "single_turn": True}
    return PromptVotes(**(defaults | fields), votes=tuple(vote for vote, _ in casts), answers=answers)


def match_of(*casts: Cast, settings: PreferenceSettings | None = None, **fields: Any) -> Matched:
    return match(prompt_votes(list(casts), **fields), settings or PreferenceSettings())


def sides(matched: Matched) -> list[tuple[object, object]]:
    """The completions that were chosen and rejected."""
    return sorted(
        ((pair.chosen and pair.chosen[0], pair.rejected and pair.rejected[0]) for pair in matched.pairs), key=str
    )


def reasons(matched: Matched) -> dict[int, LeftOut]:
    return {seq: fate.reason for seq, fate in matched.fates.items() if fate.reason is not None}
