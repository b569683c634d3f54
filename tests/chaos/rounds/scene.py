"""The processes of one run with rounds and who restarts them.

    people ----> listening sockets --> replicas <-- line -- Conductor --> orders --> attempts
    operator --> listening socket  --> Conductor                (all of them)  --> PostgreSQL

Ray's part is played here: whatever dies by a kill is started again, but for attempts, which stay dead and are started where
the Conductor orders another. Each kill waits for its moment; nothing else looks at the clock.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.chaos import process
from tests.chaos.rounds.attempts import Lobby, live
from tests.chaos.rounds.books import Books
from tests.chaos.rounds.conductor import ConductorPlan, conduct
from tests.chaos.rounds.faults import Kill, Victim
from tests.chaos.rounds.operator import OperatorPlan, attend
from tests.chaos.rounds.people import PeoplePlan, ask_and_vote
from tests.chaos.rounds.replica import ReplicaPlan, serve
from tests.chaos.rounds.script import AT_ONCE, KINDS, Kind, settings
from tests.chaos.scene import RunFailed

REPLICAS = 2
_KILLED = -signal.SIGKILL
_TICK_SECONDS = 0.02  # between looks at orders and at the store
_STATE_SECONDS = 6.0  # for which a kill waits for its state; then any is right
_CALM_SECONDS = 30.0  # until all is settled after the last round
_Start = Callable[[], ForkServerProcess]


@dataclass(frozen=True)
class World:
    """What the processes of a run are told."""

    store_url: str
    folder: Path  # logs, and the state folder
    lobby: Lobby
    keys: tuple[str, str]  # the app's and the operator's
    seed: int

    @property
    def state(self) -> Path:
        return self.folder / "state"


class Scene:
    """Use `play` once, then `end`, whatever happened."""

    def __init__(self, world: World, books: Books, listeners: Sequence[socket.socket]) -> None:
        self.killed: Counter[str] = Counter()  # victims
        self.moments: Counter[str] = Counter()  # states of the newest round in which somebody was killed
        self.attempts: set[str] = set()  # that were started
        self.unsound: list[str] = []  # what a route has named and must not
        self._world = world
        self._books = books
        self._listeners = listeners  # the Conductor's, then the replicas'
        self._running: dict[str, ForkServerProcess] = {}
        self._starts: dict[str, _Start] = {}  # of whoever is started again
        self._people = 0  # processes so far
        self._kind = AT_ONCE
        self._played = 0  # rounds that operators have seen end
        self._generation = -1  # of the last route that was looked at

    def play(self, kills: Sequence[Kill]) -> None:
        """Round upon round until all kills have happened, and then one in peace."""
        self._begin()
        self._next_round()
        for kill in kills:
            self._await_moment(kill)
            self._kill(kill)
        played = self._played
        while self._played == played:
            self._react()
        self._switch(AT_ONCE)
        self._operate()
        while self._played == played + 1:
            self._react()
        self._settle()

    def end(self) -> None:
        """No process of the run is left."""
        for each in self._running.values():
            each.kill()
            each.join()

    def attempts_alive(self) -> list[str]:
        return [name for name, each in self._running.items() if name.startswith("attempt-") and each.is_alive()]

    # --- what happens -------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._start("conductor", self._conductor)
        for number in range(REPLICAS):
            self._start(f"replica-{number}", lambda number=number: self._replica(number))
        self._start("people", self._crowd)

    def _next_round(self) -> None:
        self._switch(KINDS[self._played % len(KINDS)])
        self._operate()

    def _react(self) -> None:
        """A moment passes."""
        sentinels = {each.sentinel: name for name, each in self._running.items()}
        for ready in wait(list(sentinels), _TICK_SECONDS):
            assert isinstance(ready, int)
            self._ended(sentinels[ready])
        for name in self._world.lobby.ordered():
            if name not in self.attempts:
                self.attempts.add(name)
                log = self._log("attempts")
                self._running[f"attempt-{name}"] = process.start(log, live, self._world.lobby, name)
        self._look_at_route()

    def _ended(self, name: str) -> None:
        ended = self._running.pop(name)
        ended.join()
        if ended.exitcode not in (0, _KILLED):
            raise self._failed(name, f"ended with {ended.exitcode}")
        if name.startswith("attempt-"):
            self._world.lobby.order(name.removeprefix("attempt-")).unlink(missing_ok=True)
        elif ended.exitcode == _KILLED:
            self._start(name, self._starts[name])
        elif name == "operator":
            self._played += 1
        else:
            raise self._failed(name, "ended by itself")

    def _look_at_route(self) -> None:
        route = self._books.route()
        if route.generation != self._generation:
            self._generation = route.generation
            self.unsound += self._books.faults_of(route)

    def _settle(self) -> None:
        """What the last rounds have left to do is done."""
        until = time.monotonic() + _CALM_SECONDS
        while self._books.unsettled() and time.monotonic() < until:
            self._react()

    def _failed(self, name: str, what: str) -> RunFailed:
        log = self._log("attempts" if name.startswith("attempt-") else name)
        said = log.read_text(errors="replace").strip().splitlines()[-1:]
        return RunFailed(f"{name} {what}: {said}; all of it is in {self._world.folder}")

    # --- who is started -----------------------------------------------------------------------------

    def _start(self, name: str, start: _Start) -> None:
        self._starts[name] = start
        self._running[name] = start()

    def _switch(self, kind: Kind) -> None:
        """The service is set otherwise, and so its Conductor is started anew."""
        if kind is not self._kind:
            self._kind = kind
            conductor = self._running.pop("conductor")
            conductor.kill()
            conductor.join()
            self._start("conductor", self._conductor)

    def _operate(self) -> None:
        port, (_, key) = self._listeners[0].getsockname()[1], self._world.keys
        plan = OperatorPlan(port, key, self._kind, f"request {self._played}", self._books.newest()[0])
        self._start("operator", lambda: process.start(self._log("operator"), attend, plan))

    def _conductor(self) -> ForkServerProcess:
        plan = ConductorPlan(self._world.store_url, settings(self._kind, self._world.state), self._world.lobby)
        return process.start(self._log("conductor"), conduct, plan, self._listeners[0])

    def _replica(self, number: int) -> ForkServerProcess:
        name, of_all = f"replica-{number}", settings(AT_ONCE, self._world.state)
        plan = ReplicaPlan(name, self._world.store_url, of_all, self._world.lobby.sockets)
        return process.start(self._log(name), serve, plan, self._listeners[1 + number])

    def _crowd(self) -> ForkServerProcess:
        self._people += 1
        ports = tuple(listener.getsockname()[1] for listener in self._listeners[1:])
        plan = PeoplePlan(ports, self._world.keys[0], f"{self._world.seed}/{self._people}")
        return process.start(self._log("people"), ask_and_vote, plan)

    def _log(self, name: str) -> Path:
        return self._world.folder / f"{name}.log"

    # --- who is killed ------------------------------------------------------------------------------

    def _await_moment(self, kill: Kill) -> None:
        """The state, the seconds from then on, and somebody who can be killed. Rounds follow one another meanwhile."""
        until = time.monotonic() + _STATE_SECONDS
        while kill.state not in (None, self._books.newest()[1]) and time.monotonic() < until:
            self._go_on()
        due = time.monotonic() + kill.seconds
        while time.monotonic() < due or not self._victims(kill.victim):
            self._go_on()

    def _go_on(self) -> None:
        self._react()
        if "operator" not in self._running:
            self._next_round()

    def _kill(self, kill: Kill) -> None:
        victims = self._victims(kill.victim)
        _, state = self._books.newest()
        with contextlib.suppress(ProcessLookupError):
            os.kill(victims[int(kill.pick * len(victims))], signal.SIGKILL)
            self.killed[kill.victim] += 1
            self.moments[str(state)] += 1

    def _victims(self, victim: Victim) -> list[int]:
        found = [each for name, each in self._running.items() if name.split("-")[0] == victim]
        return [each.pid for each in found if each.pid is not None and each.is_alive()]
