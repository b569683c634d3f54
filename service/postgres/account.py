"""The system account that the embedded server runs as when we are root, for PostgreSQL refuses to run as root."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import Unavailable

NAME = "heliotrope"


@dataclass(frozen=True)
class Account:
    uid: int
    gid: int

    def for_subprocess(self) -> dict[str, Any]:
        """Arguments of `subprocess.run` that give up root for good."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, folder: Path) -> None:
        os.chown(folder, self.uid, self.gid)
        self.let_through(folder)

    def let_through(self, path: Path) -> None:
        """Opens the folders that lead to `path` for passing through; what is in them can still not be listed."""
        for folder in path.parents:
            mode = stat.S_IMODE(folder.stat().st_mode)
            if not mode & stat.S_IXOTH:
                folder.chmod(mode | stat.S_IXOTH)


def server_account() -> Account | None:
    """None: we are not root, and the server runs as ourselves. Else the account, made where it is missing.

    Raises `Unavailable` with the remedies when it cannot be made.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(NAME)
    except KeyError:
        _make()
        entry = pwd.getpwnam(NAME)
    return Account(entry.pw_uid, entry.pw_gid)


def _make() -> None:
    options = ("--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin")
    try:
        subprocess.run(["useradd", *options, NAME], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        raise Unavailable(
            f"PostgreSQL does not run as root, and the account '{NAME}' cannot be made for it ({reason}). "
            "Make that account, run as another user, or name a database by its URL.",
            code="database_account",
        ) from error
