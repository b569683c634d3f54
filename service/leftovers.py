"""What a killed `up` leaves running, and how the next `up`, or `down`, finds and ends it.

Most of Ray dies with its driver. Its agents do not: they are noted, by number and birth. HAProxy does not either, holds
the port, and changes its number at each reload: it is found by the folder of its configuration, which the state folder
points to. Knows nothing of what these processes do.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from serving import haproxy

_PROCESSES = "processes.json"  # [[pid, created]] of all that `up` started
_SHORT = "short"  # a link to a folder of `up` whose path is short, as the path of a socket must be
_STOP_SECONDS = 120  # to be gone after a kill


def note(state: Path) -> None:
    """Every process below this one, so that they are found even if this one is killed."""
    below = [[child.pid, child.create_time()] for child in psutil.Process().children(recursive=True)]
    (state / _PROCESSES).write_text(json.dumps(below))


def forget(state: Path) -> None:
    """After an orderly end."""
    (state / _PROCESSES).unlink(missing_ok=True)


@contextmanager
def short_folder(state: Path) -> Iterator[Path]:
    """A folder for sockets, as long as the block lasts; at its end no HAProxy that was configured there is left."""
    folder = Path(tempfile.mkdtemp(prefix="heliotrope-", dir=haproxy.ROOT))
    (state / _SHORT).symlink_to(folder)
    try:
        yield folder
    finally:
        _end_short_folder(state)


def end(state: Path) -> bool:
    """Kill what a killed `up` left. Whether there was any.

    The caller holds the lock, or has seen that nobody does.
    """
    noted = _end_noted(state)  # first: as long as Ray lives it starts a new HAProxy for one that is gone
    return _end_short_folder(state) or noted


def _end_noted(state: Path) -> bool:
    """A process is known by its number and its birth, for numbers are given again."""
    file = state / _PROCESSES
    if not file.is_file():
        return False
    left = []
    for pid, born in json.loads(file.read_text()):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.create_time() == born:
                left.append(process)
    _kill(left)
    file.unlink()
    return bool(left)


def _end_short_folder(state: Path) -> bool:
    link = state / _SHORT
    if not link.is_symlink():
        return False
    folder = link.readlink()
    left = haproxy.processes(folder)
    _kill(left)
    shutil.rmtree(folder, ignore_errors=True)
    link.unlink()
    return bool(left)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=_STOP_SECONDS)
