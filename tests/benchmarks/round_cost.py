"""What a round costs beside its steps, on the seedling and a running service: where the seconds go.

The people of `make demo` vote, a round is started as an operator does, and its events say when what happened: from
the request to the first optimizer step, and from the last one to the end of the swap.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from service import node
from service.client import KEYS_FILE, Client
from service.contracts import RoundState
from service.demo.people import FIRST
from service.demo.traffic import Clients
from service.settings import load
from training.corpus import voted

_QUESTIONS = 120
# Between the attempt's start and the worker's first phase two processes follow each other, and each imports:
_IMPORTS = {
    "the attempt's actor imports Ray Train": "import training.round",
    "the worker imports Ray Train": "import training.worker",
    "then torch and transformers": "from training.process import importing\nwith importing(): import training.learn",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        overrides = {"state": folder, "training": {"min_pairs": 20}}
        with node.running(load(environment={}, overrides=overrides)) as url:
            keys = json.loads((Path(folder) / KEYS_FILE).read_text())
            _vote(Clients(url, keys["app"]))
            operator = Client(url, keys["operator"])
            n = operator.post("/ops/rounds", {}).data["n"]
            events = list(_events(operator, n))
            round = operator.get(f"/ops/rounds/{n}").data
    steps = [i for i, event in enumerate(events) if event["kind"] == "step"]
    before, after = events[: steps[0] + 1], events[steps[-1] :]
    requested = _at(round["created_at"])
    print(f"A round of {round['pairs']} pairs on the seedling, {round['state']}:")
    print(f"  to the first step   {_seconds(requested, before[-1]):6.1f} s")
    _timeline(before)
    print(f"  from the last step  {_seconds(_at(after[0]['at']), after[-1]):6.1f} s")
    _timeline(after)
    print("  the worker's phases:", ", ".join(f"{k} {s:.2f} s" for k, s in round["report"]["seconds"].items()))
    for what, statement in _IMPORTS.items():
        print(f"  of the attempt's start, {what}: {_seconds_of(statement):.2f} s in a new process")


def _vote(clients: Clients) -> None:
    dice = random.Random(1)
    answers = clients.ask(dice.sample(list(voted()), _QUESTIONS), n=4)
    clients.vote([(a, FIRST.rates_up(a.question, a.text, dice), f"user-{dice.randrange(9)}") for a in answers])


def _events(operator: Client, n: int) -> Iterator[dict[str, Any]]:
    """All of the round's, to its end."""
    after = 0
    while True:
        for event in operator.events(n, after):
            after = event["seq"]
            yield event
        if RoundState(operator.get(f"/ops/rounds/{n}").data["state"]).final:
            return


def _timeline(events: list[dict[str, Any]]) -> None:
    """How long it took from each event to the next; the steps in between are left out."""
    for event, following in pairwise(events):
        print(f"    {_seconds(_at(event['at']), following):6.2f} s  {_name(event)} -> {_name(following)}")


def _seconds_of(statement: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - began


def _name(event: dict[str, Any]) -> str:
    data = event["data"]
    said = data.get("state") or data.get("phase") or data.get("step") or data.get("attempt") or ""
    return f"{event['kind']} {said}".strip()


def _seconds(since: datetime, event: dict[str, Any]) -> float:
    return (_at(event["at"]) - since).total_seconds()


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text)
