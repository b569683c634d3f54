"""Says what is wrong with what a run with rounds has left. Pure: rows in, findings out.

stuck       rounds that are not over
unsound     the route named an adapter that was never published, or not the files that were
twice       a round published two adapters, or one was promoted twice
unsaid      the audit and the rounds do not say the same of who was promoted
misjudged   the gate turned a candidate down: all of them are sound, and a replica that is killed says nothing of them
chain       the audit log is not as it was written
left        attempts that run on though their rounds are over, canaries and watches that nobody has ended
unlike      replicas that do not answer as the route says
All must be empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from service.contracts import RoundState

Row = Mapping[str, Any]
OF_CANARY = "stopped in its canary"  # how the reason of such a rejection begins


@dataclass(frozen=True)
class Ledger:
    """What the store holds at the end of a run."""

    rounds: Sequence[Row]  # n, state, reason, attempt, adapter
    adapters: Sequence[Row]  # name, round
    audit: Sequence[Row]  # who, action, subject; in order
    answers: int  # to people
    waits: int  # times when nobody answered who was asked about a candidate
    chain_fault: str | None


@dataclass(frozen=True)
class Findings:
    stuck: tuple[str, ...] = ()
    unsound: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()
    misjudged: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()

    @property
    def faults(self) -> list[str]:
        """Every one, in words; none is right."""
        return [f"{each.name}: {what}" for each in fields(self) for what in getattr(self, each.name)]


def check(ledger: Ledger, *, unsound: Sequence[str], left: Sequence[str], unlike: Sequence[str]) -> Findings:
    """`unsound`, `left` and `unlike` were found while the run went on, or in its processes."""
    return Findings(
        stuck=tuple(f"round {row['n']} is {row['state']}" for row in ledger.rounds if not _state(row).final),
        unsound=tuple(unsound),
        twice=tuple(_twice(ledger)),
        unsaid=tuple(_unsaid(ledger)),
        misjudged=tuple(_misjudged(ledger)),
        chain=() if ledger.chain_fault is None else (ledger.chain_fault,),
        left=tuple(left),
        unlike=tuple(unlike),
    )


def _twice(ledger: Ledger) -> list[str]:
    published = Counter(row["round"] for row in ledger.adapters)
    promoted = Counter(row["subject"] for row in ledger.audit if row["action"] == "promote")
    return [f"round {n} published {times} adapters" for n, times in published.items() if times > 1] + [
        f"{name} was promoted {times} times" for name, times in promoted.items() if times > 1
    ]


def _unsaid(ledger: Ledger) -> list[str]:
    """A round says that it was promoted when, and only when, its adapter was; by nobody but itself."""
    of_round = {row["name"]: row["round"] for row in ledger.adapters}
    by_audit = {(row["subject"], row["who"]) for row in ledger.audit if row["action"] == "promote"}
    by_rounds = {(r["adapter"], f"round {r['n']}") for r in ledger.rounds if _state(r) is RoundState.PROMOTED}
    strangers = [f"{row['n']} has {row['adapter']} of round {of_round.get(row['adapter'])}" for row in ledger.rounds
                 if row["adapter"] is not None and of_round.get(row["adapter"]) != row["n"]]  # fmt: skip
    return (
        [f"{who} has promoted {name}, and does not say so" for name, who in sorted(by_audit - by_rounds)]
        + [f"{who} says that it has promoted {name}" for name, who in sorted(by_rounds - by_audit)]
        + [f"round {stranger}" for stranger in strangers]
    )


def _misjudged(ledger: Ledger) -> list[str]:
    """A canary may stop for what its users happened to meet; the gate has no such excuse."""
    return [
        f"round {row['n']} was rejected: {row['reason']}"
        for row in ledger.rounds
        if _state(row) is RoundState.REJECTED and not str(row["reason"]).startswith(OF_CANARY)
    ]


def _state(row: Row) -> RoundState:
    return RoundState(row["state"])
