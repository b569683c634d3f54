"""What `up` refuses before it starts anything, and what `down` leaves alone."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock
import psutil
import pytest

from service import node
from service.errors import BadRequest, Conflict, HeliotropeError
from service.settings import ModelSettings, ServerSettings, Settings


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _settings(state: Path, port: int, model: str = "/no/such/model") -> Settings:
    return Settings(state=state, server=ServerSettings(port=port), model=ModelSettings(name=model))


def _start(settings: Settings) -> None:
    node.up(settings, detach=False)


def _nothing_was_started(state: Path) -> bool:
    return not {entry.name for entry in state.iterdir()} - {"up.lock"}


def test_a_port_in_use_is_one_clear_line(tmp_path: Path, used_port: int) -> None:
    with pytest.raises(BadRequest) as refused:
        _start(_settings(tmp_path, used_port))
    assert refused.value.message == f"Port {used_port} on 127.0.0.1 is already in use. Choose another with --port."
    assert (refused.value.param, refused.value.code) == ("server.port", "port_in_use")
    assert _nothing_was_started(tmp_path)


def test_a_host_that_is_not_here_is_named(tmp_path: Path, free_port: int) -> None:
    settings = _settings(tmp_path, free_port).model_copy(
        update={"server": ServerSettings(host="192.0.2.1", port=free_port)}
    )
    with pytest.raises(BadRequest, match=r"on 192\.0\.2\.1 cannot be used: "):
        _start(settings)
    assert _nothing_was_started(tmp_path)


def test_a_model_that_cannot_be_loaded_stops_the_start_before_the_database(tmp_path: Path, free_port: int) -> None:
    with pytest.raises(BadRequest) as refused:
        _start(_settings(tmp_path, free_port))
    assert refused.value.code == "model_not_loadable"
    assert _nothing_was_started(tmp_path)


def test_after_a_refused_start_the_folder_is_free_again(tmp_path: Path, used_port: int) -> None:
    for _ in range(2):
        with pytest.raises(BadRequest, match="already in use"):
            _start(_settings(tmp_path, used_port))


@pytest.mark.parametrize("below", [False, True])
def test_a_state_folder_that_cannot_be_written_is_named(tmp_path: Path, free_port: int, below: bool) -> None:
    file = tmp_path / "file"
    file.touch()
    state = file / "state" if below else file
    with pytest.raises(BadRequest) as refused:
        _start(_settings(state, free_port))
    assert refused.value.message.startswith(f"The state folder {state} cannot be written: ")
    assert (refused.value.param, refused.value.code) == ("state", "state_not_writable")


def test_a_second_up_on_the_same_folder_is_refused(tmp_path: Path, free_port: int) -> None:
    with filelock.FileLock(tmp_path / "up.lock"), pytest.raises(Conflict, match="heliotrope down") as refused:
        _start(_settings(tmp_path, free_port))
    assert refused.value.code == "already_running"


def test_a_detached_start_that_fails_says_why_and_where_more_is_written(tmp_path: Path, used_port: int) -> None:
    with pytest.raises(HeliotropeError) as failed:
        node.up(_settings(tmp_path, used_port), detach=True)
    assert "is already in use" in failed.value.message
    assert str(tmp_path / "up.log") in failed.value.message
    assert not (tmp_path / "up.json").exists()


# --- down ---------------------------------------------------------------------------------------------


def test_down_where_nothing_runs_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    assert node.down(tmp_path / "never") is False
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("note", ["", "{", "{}", "[]", '{"pid": "x"}', '{"pid": 2147483647}', '{"pid": -1}'])
@pytest.mark.parametrize("held", [False, True])
def test_down_does_not_trip_over_a_broken_or_stale_note(tmp_path: Path, note: str, held: bool) -> None:
    (tmp_path / "up.json").write_text(note)
    with filelock.FileLock(tmp_path / "up.lock") if held else contextlib.nullcontext():
        if held:  # somebody runs and has not said yet who
            with pytest.raises(HeliotropeError, match="only just starting"):
                node.down(tmp_path)
        else:
            assert node.down(tmp_path) is False


def test_down_never_ends_a_stranger_who_was_given_the_process_id(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (tmp_path / "up.lock").touch()
        (tmp_path / "up.json").write_text(json.dumps({"pid": stranger.pid, "url": "http://127.0.0.1:1"}))
        assert node.down(tmp_path) is False
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")
    assert stranger.returncode == 0


def test_down_ends_the_up_that_holds_the_folder(tmp_path: Path) -> None:
    holder = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); input()"
    command = [sys.executable, "-c", holder, str(tmp_path / "up.lock")]
    up = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with up:
        assert up.stdout is not None
        assert up.stdout.readline() == b"held\n"
        (tmp_path / "up.json").write_text(json.dumps({"pid": up.pid, "url": "http://127.0.0.1:1"}))
        assert node.down(tmp_path) is True
        assert not psutil.pid_exists(up.pid)
    assert node.down(tmp_path) is False
