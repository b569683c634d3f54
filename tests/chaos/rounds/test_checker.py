"""The checker of rounds finds each kind of fault, and none where all is well."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.rounds.checker import Ledger, Row, check


def round(n: int, state: str, adapter: str | None = None, reason: str | None = None) -> Row:
    return {"n": n, "state": state, "reason": reason, "attempt": 1, "adapter": adapter}


def promotion(n: int, adapter: str) -> Row:
    return {"who": f"round {n}", "action": "promote", "subject": adapter}


GOOD = Ledger(
    rounds=[
        round(1, "promoted", "a"),
        round(2, "failed"),
        round(3, "rejected", "b", "stopped in its canary: the route was changed meanwhile"),
        round(4, "promoted", "c"),
    ],
    adapters=[{"name": "a", "round": 1}, {"name": "b", "round": 3}, {"name": "c", "round": 4}],
    audit=[
        promotion(1, "a"),
        {"who": "round 3", "action": "split", "subject": "b"},
        {"who": "tess", "action": "approve", "subject": "round 4"},
        promotion(4, "c"),
    ],
    answers=7,
    waits=1,
    chain_fault=None,
)


def found(ledger: Ledger, **seen: Any) -> list[str]:
    return check(ledger, **({"unsound": [], "left": [], "unlike": []} | seen)).faults


def test_nothing_is_found_where_all_is_well() -> None:
    assert found(GOOD) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"rounds": [*GOOD.rounds, round(5, "canary")]}, "stuck: round 5 is canary"),
        ({"adapters": [*GOOD.adapters, {"name": "d", "round": 4}]}, "twice: round 4 published 2 adapters"),
        ({"audit": [*GOOD.audit, promotion(4, "c")]}, "twice: c was promoted 2 times"),
        ({"audit": GOOD.audit[:-1]}, "unsaid: round 4 says that it has promoted c"),
        ({"audit": [*GOOD.audit, promotion(3, "b")]}, "unsaid: round 3 has promoted b, and does not say so"),
        ({"rounds": [*GOOD.rounds, round(5, "failed", "c")]}, "unsaid: round 5 has c of round 4"),
        (
            {"rounds": [*GOOD.rounds, round(5, "rejected", None, "loadable: it died")]},
            "misjudged: round 5 was rejected: loadable: it died",
        ),
        ({"chain_fault": "entry 3 was changed"}, "chain: entry 3 was changed"),
    ],
)
def test_each_fault_is_found(changes: dict[str, Any], fault: str) -> None:
    assert found(replace(GOOD, **changes)) == [fault]


@pytest.mark.parametrize("kind", ["unsound", "left", "unlike"])
def test_what_was_seen_while_it_went_on_counts(kind: str) -> None:
    assert found(GOOD, **{kind: ["something"]}) == [f"{kind}: something"]
