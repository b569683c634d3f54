"""`up` is killed while it stops and while it starts, at moments drawn from a seed; the next `up` goes on as if it had not.

Killed while it runs it is in `test_first_light.py`. Here, too, everything is done from outside.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_first_light import Home, ours
from training.corpus import voted

SEED = 11
STARTS = 1  # that are killed


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    home.environment["HELIOTROPE_SERVING__REPLICAS"] = "1"
    yield home
    home.run("down")


def test_an_up_that_was_killed_at_any_moment_is_followed_by_one_that_works(home: Home) -> None:
    dice = random.Random(SEED)
    began = time.monotonic()
    home.up()
    start_seconds = time.monotonic() - began
    clients = home.clients()
    clients.vote([(answer, True, "ada") for answer in clients.ask(voted()[:4])])
    assert clients.tally.failed == 0, clients.tally.first_error
    votes = home.read("preferences")["funnel"]["votes"]

    stopping = psutil.Process(home.up_pid())
    stopping.send_signal(signal.SIGTERM)
    kill_after(home, stopping, dice.uniform(0, 2))
    for _ in range(STARTS):
        kill_after(home, start(home), dice.uniform(0, start_seconds))

    home.up()
    assert home.read("preferences")["funnel"]["votes"] == votes == 4
    assert home.clients().ask(voted()[:4])
    home.run("down")
    left = [process for process in psutil.process_iter() if process.pid in home.pids and ours(process, home.state)]
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive


def start(home: Home) -> psutil.Process:
    """`up` as it runs in a terminal."""
    with (home.state / "up.log").open("ab") as log:
        command = [sys.executable, "-m", "service", "up", "--port", str(home.port)]
        return psutil.Popen(command, env=home.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def kill_after(home: Home, up: psutil.Process, seconds: float) -> None:
    """kill -9, unless it ends by itself before."""
    _, alive = psutil.wait_procs([up], timeout=seconds)
    if alive:
        home.pids |= {up.pid, *(child.pid for child in up.children(recursive=True))}
        up.kill()
        psutil.wait_procs([up], timeout=30)
