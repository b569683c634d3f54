"""The processes of one chaos run and who restarts them: users, replicas, what matches votes, the database.

    users --> listening sockets --> replicas --> PostgreSQL <-- matcher

Ray Serve's and `up`'s part is played here: whatever dies by a kill is started again. Everything waits for what happens,
for a process that ends or a vote that is acknowledged; the only clock is that of the kills.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.chaos import process
from tests.chaos.database import Database, Part, revive, watch
from tests.chaos.faults import Kill, Victim
from tests.chaos.matcher import match
from tests.chaos.replica import Death, ReplicaPlan, serve
from tests.chaos.user import ACKNOWLEDGED, UNKNOWN, UNRATEABLE, UserPlan, live

_KILLED = -signal.SIGKILL


class RunFailed(AssertionError):
    """Something else than a kill ended a process of the run."""


@dataclass
class Tally:
    """What the users have come to so far."""

    acknowledged: int = 0  # votes
    unknown: int = 0  # calls that were refused for now, or broke
    unrateable: int = 0  # chats that were answered but not recorded


@dataclass(frozen=True)
class Step:
    """Something that happens to the service while it works."""

    when: Callable[[Tally], bool]
    act: Callable[[], object]
    seconds: float = 0.0  # that pass before, from when on it is so


class Scene:
    """Use `play` once, then `end`, whatever happened."""

    def __init__(self, database: Database, folder: Path, listeners: Sequence[socket.socket]) -> None:
        self.killed: Counter[str] = Counter()  # victims
        self._database = database
        self._folder = folder
        self._listeners = listeners  # of the replicas, in their order
        self._progress, self._acknowledge = process.pipe(duplex=False)
        self._tally = Tally()
        self._replicas: dict[int, ForkServerProcess] = {}
        self._users: dict[int, ForkServerProcess] = {}
        self._matcher: ForkServerProcess | None = None
        self._plans: Sequence[list[UserPlan]] = ()
        self._reviver: ForkServerProcess | None = None  # brings the database back
        self._postmaster: int | None = None  # a file descriptor that tells when it ends

    def play(self, plans: Sequence[list[UserPlan]], deaths: Sequence[Death | None], steps: Iterable[Step]) -> None:
        """Until all users, those of a process in one list, have said what they want to say.

        Each step waits for the one before it; when the users are done, no more steps are taken.
        """
        self._plans = plans
        self._watch_database()
        for number, death in enumerate(deaths):
            self._start_replica(number, death)
        for number in range(len(plans)):
            self._start_users(number)
        self._start_matcher()
        for step in steps:
            while self._users and not step.when(self._tally):
                self._react(None)
            due = time.monotonic() + step.seconds
            while self._users and (left := due - time.monotonic()) > 0:
                self._react(left)
            if not self._users:
                break
            step.act()
        while self._users:
            self._react(None)

    def kills(self, drawn: Iterable[Kill]) -> list[Step]:
        return [
            Step(lambda tally, kill=kill: tally.acknowledged >= kill.votes, partial(self._kill, kill), kill.seconds)
            for kill in drawn
        ]

    def end(self) -> None:
        """No process of the run is left; the database serves the next one."""
        for each in (*self._users.values(), *self._replicas.values(), self._matcher, self._reviver):
            if each is not None:
                each.kill()
                each.join()
        if self._postmaster is not None:
            os.close(self._postmaster)
        self._progress.close()
        self._acknowledge.close()

    # --- what happens -------------------------------------------------------------------------------

    def _react(self, timeout_seconds: float | None) -> None:
        watched: dict[int, tuple[str, int]] = {self._progress.fileno(): ("progress", 0)}
        watched |= {each.sentinel: ("replica", number) for number, each in self._replicas.items()}
        watched |= {each.sentinel: ("users", number) for number, each in self._users.items()}
        if self._postmaster is not None:
            watched[self._postmaster] = ("postmaster", 0)
        if self._matcher is not None:
            watched[self._matcher.sentinel] = ("matcher", 0)
        if self._reviver is not None:
            watched[self._reviver.sentinel] = ("reviver", 0)
        for ready in wait(list(watched), timeout_seconds):
            assert isinstance(ready, int)
            what, number = watched[ready]
            if what == "progress":
                signs = os.read(ready, 1 << 16)
                self._tally.acknowledged += signs.count(ACKNOWLEDGED)
                self._tally.unknown += signs.count(UNKNOWN)
                self._tally.unrateable += signs.count(UNRATEABLE)
            elif what == "replica":
                self._replica_ended(number)
            elif what == "users":
                self._users_ended(number)
            elif what == "matcher":
                self._matcher_ended()
            elif what == "postmaster":
                self._start_reviver()
            else:
                self._watch_database()

    def _replica_ended(self, number: int) -> None:
        """By a kill, by its own hand, or because it could not start without the database."""
        self._replicas[number].join()
        self._start_replica(number, None)

    def _users_ended(self, number: int) -> None:
        ended = self._users.pop(number)
        ended.join()
        if ended.exitcode == _KILLED:
            self._start_users(number)
        elif ended.exitcode != 0:
            raise self._failed(f"users-{number}", ended)

    def _matcher_ended(self) -> None:
        ended, self._matcher = self._matcher, None
        assert ended is not None
        ended.join()
        if ended.exitcode != _KILLED:
            raise self._failed("matcher", ended)
        self._start_matcher()

    def _failed(self, name: str, ended: ForkServerProcess) -> RunFailed:
        said = self._log(name).read_text(errors="replace").strip().splitlines()[-1:]
        return RunFailed(f"{name} ended with {ended.exitcode}: {said}; all of it is in {self._folder}")

    def _watch_database(self) -> None:
        """After it was found or revived; when that went wrong, it is revived again."""
        pid = self._database.postmaster()
        try:
            self._postmaster = None if pid is None else watch(pid)
        except ProcessLookupError:
            self._postmaster = None
        if self._postmaster is None:
            self._start_reviver()
        else:
            self._reviver = None

    # --- who is started -----------------------------------------------------------------------------

    def _start_replica(self, number: int, death: Death | None) -> None:
        plan = ReplicaPlan(f"replica-{number}", self._database.url, self._folder, death)
        self._replicas[number] = process.start(self._log(plan.name), serve, plan, self._listeners[number])

    def _start_users(self, number: int) -> None:
        log = self._log(f"users-{number}")
        self._users[number] = process.start(log, live, self._plans[number], self._acknowledge)

    def _start_matcher(self) -> None:
        self._matcher = process.start(self._log("matcher"), match, self._database.url)

    def _start_reviver(self) -> None:
        if self._postmaster is not None:
            os.close(self._postmaster)
            self._postmaster = None
        self._reviver = process.start(self._log("database"), revive, self._database.folder)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    # --- who is killed ------------------------------------------------------------------------------

    def _kill(self, kill: Kill) -> None:
        """Nobody, where no such process is alive at the moment."""
        pids = self._pids(kill.victim)
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[int(kill.pick * len(pids))], signal.SIGKILL)
                self.killed[kill.victim] += 1

    def _pids(self, victim: Victim) -> list[int]:
        ours = {
            Victim.REPLICA: list(self._replicas.values()),
            Victim.USERS: list(self._users.values()),
            Victim.MATCHER: [self._matcher] if self._matcher else [],
        }
        if victim not in ours:
            return self._database.pids(Part(victim.value))
        return [each.pid for each in ours[victim] if each.pid is not None and each.is_alive()]
