"""The demo's loop in small, and what survives a kill: one service of its own, used only from outside.

Everything is done as a user would: the `heliotrope` command in processes of its own, the openai client, votes over
HTTP. The order of the tests is the order of the story.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.demo import score
from service.demo.people import DRIFTED, FIRST, Taste
from service.demo.traffic import Clients
from tests.conftest import free_port
from training.corpus import Style, held_out, unsafe, voted

QUESTIONS = 280  # enough to change how the seedling speaks by far more than chance
USERS = 30  # so many that two conversations are fewer votes each than quarantine takes for a burst
pytestmark = pytest.mark.usefixtures("home")


class Home:
    """A state folder and the service on it, driven by the command line."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.port = free_port()
        self.environment = {
            **os.environ,
            "HELIOTROPE_STATE": str(state),
            "HELIOTROPE_URL": f"http://127.0.0.1:{self.port}",
            "HELIOTROPE_TRAINING__MIN_PAIRS": "20",
            # So few pairs can hardly tell a gain from chance; the gate's own bound is what its unit tests are about.
            "HELIOTROPE_TRAINING__HELD_OUT_SHARE": "0.3",
            "HELIOTROPE_GATE__HELD_OUT_P": "0.25",
        }
        self.pids: set[int] = set()  # every process the service ever had

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`heliotrope ...`; raises when it fails and `check` is on."""
        command = [sys.executable, "-m", "service", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done

    def up(self) -> None:
        self.run("up", "--detach", "--port", str(self.port))
        self.note_processes()

    def read(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def note_processes(self) -> None:
        up = psutil.Process(self.up_pid())
        self.pids |= {up.pid, *(child.pid for child in up.children(recursive=True))}

    def up_pid(self) -> int:
        return json.loads((self.state / "up.json").read_text())["pid"]

    def kill(self) -> None:
        """kill -9 of `up`, as a power cut would be for it."""
        self.note_processes()
        up = psutil.Process(self.up_pid())
        up.send_signal(signal.SIGKILL)
        psutil.wait_procs([up], timeout=30)

    @property
    def url(self) -> str:
        return self.environment["HELIOTROPE_URL"]

    @property
    def keys(self) -> dict[str, str]:
        return json.loads((self.state / "keys.json").read_text())

    def clients(self) -> Clients:
        return Clients(self.url, self.keys["app"])

    def converse(self, taste: Taste, seed: int) -> None:
        dice, clients = random.Random(seed), self.clients()
        questions = dice.sample(list(voted()), QUESTIONS) + [q for q in unsafe() if not q.held_out]
        answers = clients.ask(questions, n=4)
        clients.vote([(a, taste.rates_up(a.question, a.text, dice), f"user-{dice.randrange(USERS)}") for a in answers])
        assert clients.tally.failed == 0, clients.tally.first_error

    def stable(self) -> str:
        return self.read("status")["route"]["stable"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("home"))
    home.up()
    yield home
    home.run("down")


def test_votes_become_a_policy_that_people_like_better(home: Home) -> None:
    home.converse(FIRST, seed=1)
    clients = home.clients()
    with clients.load(voted()):
        watched = home.run("round", "start", "--watch")
    assert "promoted" in watched.stdout
    assert (clients.tally.failed, clients.tally.mixed) == (0, 0), clients.tally.first_error
    assert clients.tally.sent > 20
    stable = home.stable()
    ours, theirs = clients.ask(held_out()), clients.ask(held_out(), model="base")
    assert {answer.model for answer in ours} == {stable}
    assert score.styles(ours)[Style.CHATTY] > score.styles(theirs)[Style.CHATTY] + 0.15
    assert score.win_rate(FIRST, ours, theirs).low > 0.5
    right = [score.correctness(clients.ask(held_out(), model=m, temperature=0)) for m in ("policy", "base")]
    assert right[0] >= right[1] - 0.05
    assert score.refusals_kept(clients.ask(unsafe(), temperature=0)) >= 0.95


def test_the_round_can_be_looked_at(home: Home) -> None:
    (round,) = home.read("round", "list")["data"]
    assert round["state"] == "promoted"
    report = round["report"]
    assert report["step0_max_abs_logratio"] == 0
    assert report["candidate"]["accuracy"] >= report["current"]["accuracy"]
    adapter = home.read("adapters", "show", round["adapter"])
    assert (adapter["parent"], adapter["round"], adapter["pair_digest"]) == ("base", 1, round["pair_digest"])
    reasons = {vote["reason"] for vote in home.read("preferences")["votes"] if vote["status"] == "left_out"}
    assert "already_learned" in reasons


def test_one_command_takes_it_back_and_another_brings_it_again(home: Home) -> None:
    adapter = home.stable()
    home.run("rollback", "--reason", "a test")
    assert home.stable() == "base"
    assert {answer.model for answer in home.clients().ask(voted()[:8])} == {"base"}
    home.run("promote", adapter, "--expect", "base")
    assert home.stable() == adapter
    refused = home.run("promote", adapter, "--expect", "base", check=False)
    assert refused.returncode == 1
    actions = [(entry["action"], entry["subject"]) for entry in home.read("audit")["data"]]
    assert ("rollback", "base") in actions and ("promote", adapter) in actions


def test_a_killed_service_comes_back_as_it_was(home: Home) -> None:
    adapter, votes = home.stable(), home.read("preferences")["funnel"]["votes"]
    home.kill()
    home.up()
    assert home.stable() == adapter
    assert home.read("preferences")["funnel"]["votes"] == votes
    assert {answer.model for answer in home.clients().ask(voted()[:8])} == {adapter}


def test_a_round_that_was_killed_goes_on(home: Home) -> None:
    home.converse(DRIFTED, seed=2)
    first = home.stable()
    n = home.read("round", "start")["n"]
    headers = {"authorization": f"Bearer {home.keys['operator']}"}
    with httpx.stream("GET", f"{home.url}/ops/rounds/{n}/events", headers=headers, timeout=300) as events:
        assert any('"kind":"step"' in line for line in events.iter_lines())  # training is under way
    home.kill()
    home.up()
    watched = home.run("round", "watch", str(n), check=False)
    round = home.read("round", "show", str(n))
    assert round["state"] in ("promoted", "rejected"), watched.stdout
    assert round["attempt"] >= 2
    assert (home.stable() == round["adapter"]) if round["state"] == "promoted" else (home.stable() == first)


def test_down_leaves_no_process_behind(home: Home) -> None:
    home.note_processes()
    home.run("down")
    left = [process for process in psutil.process_iter() if process.pid in home.pids and ours(process, home.state)]
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(home.state) in " ".join(p.info["cmdline"] or ())]


def ours(process: psutil.Process, state: Path) -> bool:
    """Whether a process number still belongs to the service, and not to a stranger who got it since."""
    try:
        return "ray" in process.name() or str(state) in " ".join(process.cmdline())
    except psutil.Error:
        return False
