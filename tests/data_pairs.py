"""Pairs and evidence as the tests of the data report need them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from service.curation.likeness import SLOTS
from service.digest import content_digest
from service.pairs import Funnel, Pair, Source
from service.report.evidence import DayVotes, Evidence, SliceVotes, VoteFacts
from service.report.measuring import measure
from service.report.records import DataReport

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def a_signature(number: int) -> tuple[int, ...]:
    """[3 * SLOTS] of a question and two answers that share no word with those of another number."""
    return tuple(range(1000 * number, 1000 * number + 3 * SLOTS))


def a_pair(number: int = 0, **fields: Any) -> Pair:
    """What a test does not name is something valid, and the same only for the same number."""
    given: dict[str, Any] = {
        "id": content_digest(number), "source": Source.SIDE_BY_SIDE, "prompt_digest": content_digest([number]),
        "app": "shop", "chosen": (f"c{number}", 0), "rejected": (f"c{number}", 1), "votes": (2 * number, 2 * number + 1),
        "voter": f"voter{number}", "voters": (f"voter{number}",), "adapters": ("base",), "voted_at": NOW,
        "chosen_length": 100, "rejected_length": 100, "signature": a_signature(number),
    }  # fmt: skip
    return Pair.model_validate(given | fields)


def an_import(number: int = 0, **fields: Any) -> Pair:
    nothing: dict[str, Any] = {"app": None, "chosen": None, "rejected": None, "votes": (), "voter": None, "voters": ()}
    given = nothing | {"adapters": (), "voted_at": None, "source": Source.IMPORT}
    return a_pair(number, **(given | fields))


def a_thumb(number: int = 0, **fields: Any) -> Pair:
    return a_pair(number, **({"source": Source.THUMB, "rejected": None, "rejected_length": 0} | fields))


def a_funnel(pairs: Sequence[Pair] = (), **fields: Any) -> Funnel:
    """Of these pairs, with no vote left out unless `fields` say so."""
    voted = [pair for pair in pairs if pair.source not in (Source.IMPORT, Source.THUMB)]
    in_pairs = sum(len(pair.votes) for pair in voted)
    left_out: dict[str, int] = fields.pop("left_out", {})
    given: dict[str, Any] = {
        "votes": in_pairs + sum(left_out.values()), "votes_in_pairs": in_pairs, "left_out": left_out,
        "pairs_from_votes": len(voted), "pairs_imported": sum(pair.source is Source.IMPORT for pair in pairs),
    }  # fmt: skip
    return Funnel.model_validate(given | fields)


def evidence(pairs: Sequence[Pair] = (), **fields: Any) -> Evidence:
    given: dict[str, Any] = {"now": NOW, "objective": "dpo", "funnel": a_funnel(pairs), "kept": list(pairs)}
    return Evidence(**(given | fields))


def a_data_report(funnel: Funnel, tags: tuple[str, ...] = (), min_pairs: int = 2) -> DataReport:
    """Of 60 pairs with these tags, nine of them held out, and some votes."""
    pairs = [a_pair(n, tags=tags) for n in range(60)]
    votes = VoteFacts(days=[DayVotes(NOW.date(), up=3)], people_of={2: 60}, slices=[SliceVotes("app", "shop", 9, 6, 3)])
    held_out = {pair.id for pair in pairs[:9]}
    return measure(evidence(pairs, funnel=funnel, held_out=held_out, votes=votes, min_pairs=min_pairs))
