"""The users of a chaos run: they ask, vote, change their mind, take votes back, repeat themselves
and import pairs.

Each is a thread with connections and a history of its own, several share a process. They stop when enough of their
votes are acknowledged. What they do is drawn from a seed; a process that takes a killed one's place goes on from the
histories, with dice of its own.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.chaos.calls import Answer, Call, feedback_id, judge, own_id, repeatable
from tests.chaos.history import Deed, History, Op, Outcome

# Signs of progress: a vote is acknowledged for the first time; a call was in vain; an answer came without a record.
ACKNOWLEDGED, UNKNOWN, UNRATEABLE = b".", b"?", b"!"
HEAL_SECONDS = 60.0  # of nothing but refusals: the service does not recover
_BACK_OFF_SECONDS = 0.05
_REPEAT = 0.8  # share of the calls without a known outcome that are made again
_QUESTIONS = 40  # different ones, so that users vote on answers to the same prompts


@dataclass(frozen=True)
class UserPlan:
    name: str  # no other user has it, so each thing is voted on by one thread
    history: Path
    ports: tuple[int, ...]  # of the replicas; each call goes to any of them
    app: str
    key: str  # of the app
    operator_key: str
    seed: str
    votes: int  # to be acknowledged
    patience_seconds: float = 30.0  # an answer that takes longer does not come


class NotHealed(Exception):
    """The service has refused everything for HEAL_SECONDS."""


def live(plans: list[UserPlan], progress: Connection) -> None:
    """The process of several users, who put signs of progress into the pipe."""
    failed = threading.Event()

    def one(plan: UserPlan) -> None:
        try:
            User(plan, partial(os.write, progress.fileno())).live()
        except BaseException as error:
            sys.stderr.write(f"{plan.name}: {type(error).__name__}: {error}\n")
            failed.set()
            raise

    threads = [threading.Thread(target=one, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit(1 if failed.is_set() else 0)


class User:
    def __init__(self, plan: UserPlan, sign: Callable[[bytes], object]) -> None:
        self._plan = plan
        self._history = History(plan.history)
        self._sign = sign
        self._dice = random.Random(f"{plan.seed}/{len(self._history.deeds)}")
        self._doors = [
            http.client.HTTPConnection("127.0.0.1", port, timeout=plan.patience_seconds) for port in plan.ports
        ]
        self._pause = threading.Event()  # never set: only waited for
        self._healthy_at = time.monotonic()

    def live(self) -> None:
        for deed in list(self._history.deeds.values())[-1:]:
            if deed.outcome is Outcome.UNKNOWN and repeatable(deed):  # what the process before this one was killed in
                self._perform(deed.token, deed.op, deed.body)
        while sum(1 for _ in self._votes()) < self._plan.votes:
            self._act()
        self._history.close()
        for door in self._doors:
            door.close()

    def _act(self) -> None:
        acts = {self._ask: 15, self._vote: 65, self._retract: 8, self._again: 8, self._contradict: 4, self._import: 2}
        if not self._completions():
            return self._ask()
        act = self._dice.choices(list(acts), list(acts.values()))[0]
        return act()

    # --- what they do -------------------------------------------------------------------------------

    def _ask(self) -> None:
        messages = [{"role": "user", "content": f"question {self._dice.randrange(_QUESTIONS)}"}]
        body = {"model": "policy", "n": 2, "seed": self._dice.randrange(1 << 30), "messages": messages}
        self._perform(self._token(), Op.ASK, body)

    def _vote(self) -> None:
        """Of any kind, often on what was voted on before."""
        token, completion_id = self._token(), self._dice.choice(self._completions())
        choice = self._dice.randrange(2)
        other = {"choice_index": 1 - choice, "tie": self._dice.random() < 0.2}
        says = self._dice.choices(
            [
                {"rating": self._dice.choice(["up", "down"])},
                {"preferred_over": other},
                {"correction": f"rather {token}"},
            ],
            [5, 3, 2],
        )[0]
        body = {
            "completion_id": completion_id,
            "choice_index": choice,
            "user": self._plan.name,
            "comment": token,
            **says,
            "tags": self._dice.sample(["tone", "facts", "length"], k=self._dice.randrange(3)),
        }
        if self._dice.random() < 0.8:
            body["feedback_id"] = own_id(token)
        self._perform(token, Op.VOTE, body)

    def _retract(self) -> None:
        for vote in self._some(self._votes()):
            self._perform(self._token(), Op.RETRACT, {"feedback_id": feedback_id(vote)})

    def _again(self) -> None:
        """The same call a second time: the same answer, nothing more is stored."""
        for vote in self._some(vote for vote in self._votes() if "feedback_id" in vote.body):
            self._perform(vote.token, Op.VOTE, vote.body)

    def _contradict(self) -> None:
        """Another vote under an id that is taken: refused."""
        for vote in self._some(vote for vote in self._votes() if "feedback_id" in vote.body):
            token = self._token()
            self._perform(token, Op.VOTE, vote.body | {"comment": token, "tags": ["another"]})

    def _import(self) -> None:
        """As an operator: some pairs from a file, all of them or none."""
        token = self._token()
        prompts = [f"{self._plan.app} {token} {row}" for row in range(self._dice.randint(2, 9))]
        rows = [{"prompt": prompt, "chosen": "so", "rejected": "not so"} for prompt in prompts]
        self._perform(token, Op.IMPORT, {"rows": rows})

    # --- how they do it -----------------------------------------------------------------------------

    def _perform(self, token: str, op: Op, body: dict[str, Any]) -> None:
        """One call, mostly repeated until its outcome is known."""
        while True:
            deed = self._history.attempt(token, op, body)
            new = not deed.acknowledged
            answer = self._call(deed)
            self._history.end(deed, answer.outcome, answer.body, answer.fault)
            if answer.outcome is not Outcome.UNKNOWN:
                self._healthy_at = time.monotonic()
                if answer.outcome is Outcome.ACKNOWLEDGED and op is Op.VOTE and new:
                    self._sign(ACKNOWLEDGED)
                if op is Op.ASK and "id" not in answer.body:
                    self._sign(UNRATEABLE)
                return
            self._sign(UNKNOWN)
            if time.monotonic() > self._healthy_at + HEAL_SECONDS:
                raise NotHealed(f"nothing but refusals for {HEAL_SECONDS:.0f} seconds; the last: {answer}")
            self._pause.wait(self._dice.uniform(0, _BACK_OFF_SECONDS))
            if not repeatable(deed) or self._dice.random() > _REPEAT:
                return

    def _call(self, deed: Deed) -> Answer:
        door, call = self._dice.choice(self._doors), Call.of(deed)
        key = self._plan.operator_key if deed.op is Op.IMPORT else self._plan.key
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        try:
            door.request(call.method, call.path, call.data, headers)
            response = door.getresponse()
            data = response.read()
        except TimeoutError:
            door.close()
            return Answer(Outcome.BROKEN, {}, f"{deed.op}: no answer within {self._plan.patience_seconds:.0f} seconds")
        except (OSError, http.client.HTTPException):
            door.close()
            return Answer(Outcome.UNKNOWN, {})
        return judge(deed, response.status, json.loads(data) if data else {})

    # --- what they remember -------------------------------------------------------------------------

    def _token(self) -> str:
        return f"{self._plan.name}-{len(self._history.deeds)}"

    def _completions(self) -> list[str]:
        """The latest ones that can be rated."""
        asked = (deed for deed in self._history.deeds.values() if deed.op is Op.ASK)
        return [answer["id"] for deed in asked for answer in deed.answers if "id" in answer][-6:]

    def _votes(self) -> Iterator[Deed]:
        return (deed for deed in self._history.deeds.values() if deed.op is Op.VOTE and deed.acknowledged)

    def _some(self, deeds: Iterator[Deed]) -> list[Deed]:
        """One of them, if there is any."""
        among = list(deeds)
        return [self._dice.choice(among)] if among else []
