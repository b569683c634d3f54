"""The embedded PostgreSQL of chaos runs: its processes, by what they do, and the way back after they died."""

from __future__ import annotations

import enum
import os
from pathlib import Path

import psutil

from service.postgres.embedded import EmbeddedDatabase
from service.store.database import migrate


class Part(enum.StrEnum):
    """The server's processes that a run kills."""

    POSTMASTER = "postmaster"
    BACKEND = "backend"
    CHECKPOINTER = "checkpointer"
    WALWRITER = "walwriter"


_TITLES = {Part.CHECKPOINTER: "postgres: checkpointer", Part.WALWRITER: "postgres: walwriter"}
_CLIENT = "[local]"  # in the title of a backend: where its client is


class Database:
    """One server for all runs; whoever makes it stops it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._embedded = EmbeddedDatabase(folder)
        self.url = self._embedded.url

    def start(self) -> None:
        self._embedded.start()
        migrate(self.url)

    def stop(self) -> None:
        self._embedded.start()  # whatever state a failed run left it in
        self._embedded.stop()

    def postmaster(self) -> int | None:
        """Its process id; None when none runs."""
        try:
            pid = int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
            process = psutil.Process(pid)
            alive = process.name() == "postgres" and process.status() != psutil.STATUS_ZOMBIE
            return pid if alive else None
        except (FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess):
            return None

    def pids(self, part: Part) -> list[int]:
        """Of the processes that are this part now; none while the server is down or recovers."""
        postmaster = self.postmaster()
        if postmaster is None or part is Part.POSTMASTER:
            return [] if postmaster is None else [postmaster]
        try:
            titles = {child.pid: _title(child) for child in psutil.Process(postmaster).children()}
        except psutil.NoSuchProcess:
            return []
        if part is Part.BACKEND:
            return sorted(pid for pid, title in titles.items() if _CLIENT in title)
        return sorted(pid for pid, title in titles.items() if title.startswith(_TITLES[part]))


def revive(folder: Path) -> None:
    """In a process of its own: returns when the server takes connections again."""
    EmbeddedDatabase(folder).start()


def watch(pid: int) -> int:
    """A file descriptor that is readable once the process has ended. Raises `ProcessLookupError` if it has already."""
    return os.pidfd_open(pid)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
