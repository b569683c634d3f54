"""The users of a run with rounds, as a process: they ask and vote all the time, whoever is killed.

Each answer must come from one adapter, and be what it says it is. What breaks with a killed replica is asked again; any
refusal ends the process, and with it the run: serving never pauses.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from dataclasses import dataclass
from typing import Any

from tests.chaos.rounds.door import Door
from tests.fakes import authors

_THREADS = 2
_USERS = 300
_PAUSE_SECONDS = 0.06  # of each thread after a question, at most
_VOTING = 0.5  # share of answers that are voted on
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class PeoplePlan:
    ports: tuple[int, ...]  # of the replicas
    key: str  # of their app
    seed: str  # of this process


class Broken(Exception):
    """An answer that must never come."""


def ask_and_vote(plan: PeoplePlan) -> None:
    """The process's whole life: until it is killed, or something is wrong."""
    failed = threading.Event()

    def one(number: int) -> None:
        try:
            _Person(plan, random.Random(f"{plan.seed}/{number}")).live()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            failed.set()

    for number in range(_THREADS):
        threading.Thread(target=one, args=(number,), daemon=True).start()
    failed.wait()
    sys.stderr.flush()
    os._exit(1)


class _Person:
    """One thread, in the names of many users."""

    def __init__(self, plan: PeoplePlan, dice: random.Random) -> None:
        self._dice = dice
        self._doors = [Door(port, plan.key) for port in plan.ports]
        self._pause = threading.Event()  # never set: only waited for

    def live(self) -> None:
        while True:
            user = f"user-{self._dice.randrange(_USERS)}"
            id = self._ask(user)
            if id is not None and self._dice.random() < _VOTING:
                for choice, rating in enumerate(("up", "down")):
                    self._vote(user, id, choice, rating)
            self._pause.wait(self._dice.uniform(0, _PAUSE_SECONDS))

    def _ask(self, user: str) -> str | None:
        """The completion's id; None: the replica died over it, or could not record it."""
        content = " ".join("".join(self._dice.choices(_LETTERS, k=5)) for _ in range(6))
        body: dict[str, Any] = {"model": "policy", "user": user, "n": 2, "seed": self._dice.randrange(1 << 30)}
        body["messages"] = [{"role": "user", "content": content}]
        reply = self._dice.choice(self._doors).attempt("POST", "/chat/completions", body)
        if reply is None:
            return None
        if reply.status != 200:
            raise Broken(f"a question was answered {reply.status}: {reply.body}")
        wrote = set[str]().union(*(authors(choice["message"]["content"]) for choice in reply.body["choices"]))
        if wrote != {reply.body["model"]}:
            raise Broken(f"{reply.body['model']} is said to have answered, and {wrote} did")
        return None if reply.body.get("rateable") is False else reply.body["id"]

    def _vote(self, user: str, id: str, choice: int, rating: str) -> None:
        body = {"completion_id": id, "choice_index": choice, "rating": rating, "user": user}
        body["feedback_id"] = f"{id}-{choice}"
        reply = self._dice.choice(self._doors).call("POST", "/feedback", body)
        if reply.status not in (200, 201):
            raise Broken(f"a vote was answered {reply.status}: {reply.body}")
