"""What a user of a chaos run did, written down by the user itself: a line before each call, and one after it.

Lines are appended by single writes, and a killed process takes none of them back. Whoever goes on in its place reads
them first. The checker (`checker.py`) believes these files and nothing else.
"""

from __future__ import annotations

import enum
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Op(enum.StrEnum):
    ASK = "ask"  # POST /v1/chat/completions
    VOTE = "vote"  # POST /v1/feedback
    RETRACT = "retract"  # DELETE /v1/feedback/{feedback_id}
    IMPORT = "import"  # POST /ops/preferences/import


class Outcome(enum.StrEnum):
    ACKNOWLEDGED = "acknowledged"  # a 2xx was read to its last byte
    REFUSED = "refused"  # an answer that says for certain that nothing was done
    UNKNOWN = "unknown"  # the connection broke, or a 503: it may be done or not
    BROKEN = "broken"  # what must never come: a 500, a refusal without cause, no answer for long


# Of one and the same call made again and again, the first of these that any of its tries came to.
_STRONGEST = (Outcome.BROKEN, Outcome.ACKNOWLEDGED, Outcome.UNKNOWN, Outcome.REFUSED)


@dataclass
class Deed:
    """One call, tried once or more, each time with the same body."""

    token: str  # unique in the run; a vote carries it as its comment
    op: Op
    body: dict[str, Any]
    answers: list[dict[str, Any]] = field(default_factory=list)  # of those acknowledged, in the order of tries
    outcomes: list[Outcome] = field(default_factory=list)
    tries: int = 0
    faults: list[str] = field(default_factory=list)  # what came with the broken ones

    @property
    def outcome(self) -> Outcome:
        """Of a try without an outcome nobody knows: its user was killed."""
        known = self.outcomes + [Outcome.UNKNOWN] * (self.tries - len(self.outcomes))
        return next(outcome for outcome in _STRONGEST if outcome in known)

    @property
    def acknowledged(self) -> bool:
        return Outcome.ACKNOWLEDGED in self.outcomes


class History:
    """The file of one user. `deeds` is all that it says, in the order of their first tries."""

    def __init__(self, path: Path) -> None:
        self.deeds: dict[str, Deed] = {}
        for line in path.read_bytes().splitlines() if path.exists() else ():
            self._apply(json.loads(line))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def attempt(self, token: str, op: Op, body: dict[str, Any]) -> Deed:
        """To be called before the call: what is not in here was never tried."""
        self._write({"token": token, "op": op, "body": body})
        return self.deeds[token]

    def end(self, deed: Deed, outcome: Outcome, answer: dict[str, Any] | None = None, fault: str = "") -> None:
        self._write({"token": deed.token, "outcome": outcome, "answer": answer, "fault": fault})

    def close(self) -> None:
        os.close(self._file)

    def _write(self, record: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(record).encode() + b"\n")
        self._apply(record)

    def _apply(self, record: dict[str, Any]) -> None:
        if "op" in record:
            new = Deed(record["token"], Op(record["op"]), record["body"])
            self.deeds.setdefault(new.token, new).tries += 1
            return
        deed = self.deeds[record["token"]]
        deed.outcomes.append(Outcome(record["outcome"]))
        if deed.outcomes[-1] is Outcome.ACKNOWLEDGED:
            deed.answers.append(record["answer"] or {})
        if record["fault"]:
            deed.faults.append(record["fault"])


def read(path: Path) -> list[Deed]:
    history = History(path)
    history.close()
    return list(history.deeds.values())
