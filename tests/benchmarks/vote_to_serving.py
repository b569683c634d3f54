"""From the vote that completes the pairs of a round to all replicas serving its adapter, on the seedling.

The service runs as `heliotrope up` starts it, with a trigger at so many new pairs. The people of `make demo` vote through
the API until one pair is missing; the next vote is the last, and the clock starts. Clients chat all the while, and none of
their requests may fail.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from service import node
from service.client import KEYS_FILE, Client
from service.contracts import RoundState
from service.demo.people import FIRST
from service.demo.traffic import Answer, Clients
from service.pairs import Funnel
from service.settings import load
from tests.conftest import free_port
from training.corpus import voted

PAIRS = 200
REPLICAS = 2
BUDGET_SECONDS = 60.0
_USERS = 240  # so many that nobody votes more often than the default caps let count
_ANSWERS = 4  # to each question, of which one is liked and one is not
_AT_ONCE = 40  # questions
_CHATTING = 2  # clients
_LOOK_SECONDS = 0.05

Vote = tuple[Answer, bool, str]  # which answer, up or down, whose
T = TypeVar("T")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "state": folder,
            "server": {"port": free_port()},
            "serving": {"replicas": REPLICAS},
            "rounds": {"new_pairs": PAIRS},
        }
        with node.running(load(environment={}, overrides=overrides)) as url:
            keys = json.loads((Path(folder) / KEYS_FILE).read_text())
            clients, operator = Clients(url, keys["app"]), Client(url, keys["operator"])
            last = _all_but_one(clients, operator)
            with clients.load(list(voted()), clients=_CHATTING):
                measured = _measure(clients, operator, last)
    _print(measured, clients)


@dataclass(frozen=True)
class Measured:
    round: dict[str, Any]
    voted: datetime  # when the last vote was acknowledged
    states: dict[str, datetime]  # state -> when the round came there
    swap: dict[str, Any]
    served: datetime  # when the last replica was seen to answer with the new adapter


def _all_but_one(clients: Clients, operator: Client) -> Vote:
    """Votes until one pair is missing; the vote that makes it."""
    pairs = _pairs(clients)
    known = 0
    while known < PAIRS - 1:
        clients.vote([vote for _ in range(PAIRS - 1 - known) for vote in next(pairs)])
        shown = operator.get("/ops/preferences", limit="1", wait="true")
        known = Funnel.model_validate(shown.data["funnel"]).pairs
    assert known == PAIRS - 1, "each two votes make one pair at most"
    first, last = next(pairs)
    clients.vote([first])
    return last


def _pairs(clients: Clients) -> Iterator[tuple[Vote, Vote]]:
    """For question after question: the answer that is liked best and the one that is liked least, by one user."""
    dice = random.Random(1)
    questions = dice.sample(list(voted()), len(list(voted())))
    for first in range(0, len(questions), _AT_ONCE):
        answers = clients.ask(questions[first : first + _AT_ONCE], n=_ANSWERS)
        for _, choices in groupby(answers, key=lambda answer: answer.completion_id):
            ranked = sorted(choices, key=_liking)
            worst, best = ranked[0], ranked[-1]
            if _liking(best) > _liking(worst):
                user = f"user-{dice.randrange(_USERS):03d}"
                yield (best, True, user), (worst, False, user)


def _liking(answer: Answer) -> float:
    return FIRST.score(answer.question, answer.text)


def _measure(clients: Clients, operator: Client, last: Vote) -> Measured:
    clients.vote([last])
    began = datetime.now(UTC)
    [round] = _until(lambda: operator.get("/ops/rounds", limit="1").data["data"])
    events = list(_events(operator, round["n"]))
    ended = operator.get(f"/ops/rounds/{round['n']}").data
    assert ended["state"] == RoundState.PROMOTED, f"the round was {ended['state']}: {ended['reason']}"
    _until(lambda: _all_serve(operator, ended["adapter"]))
    served = datetime.now(UTC)
    states = {event["data"]["state"]: datetime.fromisoformat(event["at"]) for event in reversed(events)
              if event["kind"] == "state"}  # fmt: skip
    [swap] = [event["data"] for event in events if event["kind"] == "swap"]
    return Measured(ended, began, states, swap, served)


def _all_serve(operator: Client, adapter: str) -> bool:
    replicas = operator.get("/ops/status").data["replicas"]
    return len(replicas) == REPLICAS and all(replica["stable"] == adapter for replica in replicas)


def _events(operator: Client, n: int) -> Iterator[dict[str, Any]]:
    """All of the round's, to its end."""
    after, final = 0, False
    while not final:
        for event in operator.events(n, after):
            after = event["seq"]
            final |= event["kind"] == "state" and RoundState(event["data"]["state"]).final
            yield event


def _until(look: Callable[[], T]) -> T:
    """What it says when that is something."""
    pause = Event()  # never set: only waited for
    while not (seen := look()):
        pause.wait(_LOOK_SECONDS)
    return seen


def _print(measured: Measured, clients: Clients) -> None:
    states, round = measured.states, measured.round
    swap = measured.swap["prepare_seconds"] + measured.swap["flip_seconds"]
    judged = (states["promoted"] - states["judging"]).total_seconds() - swap
    of_training = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in round["report"]["seconds"].items())
    phases = {
        "the trigger": states["queued"] - measured.voted,
        "collecting": states["training"] - states["queued"],
        f"training ({of_training})": states["judging"] - states["training"],
    }
    total = (measured.served - measured.voted).total_seconds()
    tally = clients.tally
    print(f"From the vote that makes {PAIRS} pairs to {REPLICAS} replicas serving {round['adapter']}, the seedling:")
    for name, length in phases.items():
        print(f"  {length.total_seconds():6.1f} s  {name}")
    print(f"  {judged:6.1f} s  judging, and publishing")
    print(f"  {swap:6.1f} s  the swap: every replica loads and tries it, the flip")
    print(f"  {(measured.served - states['promoted']).total_seconds():6.1f} s  until it was seen on every replica")
    print(f"  {total:6.1f} s  in all, {'within' if total <= BUDGET_SECONDS else 'more than'} {BUDGET_SECONDS:.0f} s")
    print(f"  meanwhile {tally.sent} requests in all, failed = {tally.failed}, mixed = {tally.mixed}", end="")
    print(f"; the first failure: {tally.first_error}" if tally.first_error else "")
