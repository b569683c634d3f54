"""A root file system of its own, without a container engine: this machine's, copied on write, in a mount namespace.

It stands for the image that `FROM` names, so this machine must be of the same distribution and Python version. Nothing that
is done in it reaches this machine; all mounts end with the process that made them. Needs root, for apt and for uid 1000.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# What lets ordinary clients reach their registries from here: indexes, proxies, certificates.
_OF_THE_NETWORK = re.compile(r"^PIP_|_PROXY$|^SSL_CERT|^(REQUESTS_CA|CURL_CA)_BUNDLE$", re.IGNORECASE)
_PATH = f"{sys.base_prefix}/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"  # this Python stands for the image's
_LENT_BY_THE_KERNEL = ("proc", "sys", "dev")
_PEOPLE = range(1000, 60000)  # accounts of this machine that no image has; an image's packages make those below
_OURS = "heliotrope"  # made by the steps

RESTRICTED = (
    "--reuid=1000",
    "--regid=1000",
    "--clear-groups",
    "--no-new-privs",
    "--bounding-set=-all",
    "--inh-caps=-all",
)


class Root:
    """To be made in a process that has a mount namespace of its own (`unshare --mount`)."""

    def __init__(self, scratch: Path) -> None:
        self._upper, self._root = scratch / "upper", scratch / "root"
        for folder in (self._upper, scratch / "work", self._root):
            folder.mkdir()
        layers = f"lowerdir=/,upperdir={self._upper},workdir={scratch / 'work'}"
        _mount("-t", "overlay", "overlay", "-o", layers, str(self._root))
        for folder in _LENT_BY_THE_KERNEL:
            _mount("--rbind", f"/{folder}", str(self._root / folder))
        self.scratch("/tmp")
        self._forget_people()
        self.environment = {"PATH": _PATH, "HOME": "/root"}
        self.environment |= {name: value for name, value in os.environ.items() if _OF_THE_NETWORK.search(name)}

    def _forget_people(self) -> None:
        """An image has no accounts but those that packages make."""
        for name, secret in (("passwd", "shadow"), ("group", "gshadow")):
            file, hidden = self._root / "etc" / name, self._root / "etc" / secret
            kept = [line for line in file.read_text().splitlines() if _is_of_a_package(line)]
            file.write_text("".join(f"{line}\n" for line in kept))
            names = {line.partition(":")[0] for line in kept}
            lines = hidden.read_text().splitlines(keepends=True)
            hidden.write_text("".join(line for line in lines if line.partition(":")[0] in names))

    def path(self, inside: str) -> Path:
        return self._root / inside.lstrip("/")

    def scratch(self, inside: str) -> None:
        """An empty folder that anybody may write to, as an emptyDir of a pod."""
        self.path(inside).mkdir(parents=True, exist_ok=True)
        _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(self.path(inside)))

    def lend(self, folder: Path, inside: str) -> None:
        self.path(inside).mkdir(parents=True, exist_ok=True)
        _mount("--bind", str(folder), str(self.path(inside)))

    def take_back(self, inside: str) -> None:
        subprocess.run(["umount", str(self.path(inside))], check=True)

    def close(self) -> None:
        """From here on nobody writes to it, but to what is mounted in it."""
        _mount("-o", "remount,ro", str(self._root))

    def run(
        self, command: Sequence[str], *, at: str, environment: Mapping[str, str], restricted: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """As root while it is made; `restricted` as a pod: uid 1000, no capabilities, none to be gained."""
        who = ["setpriv", *RESTRICTED, "--"] if restricted else []
        inside = ["env", f"--chdir={at}", *who, *command]
        chroot = shutil.which("chroot")  # found on the PATH of this process, and not on the one inside
        assert chroot is not None, "why_not() was asked first"
        return subprocess.run(
            [chroot, str(self._root), *inside], env=dict(environment), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip

    @property
    def written_bytes(self) -> int:
        """What the steps so far have added to this machine's files: the layers of an image, together."""
        done = subprocess.run(["du", "--summarize", "--bytes", self._upper], check=True, capture_output=True, text=True)
        return int(done.stdout.split()[0])


def why_not(image: str) -> str | None:
    """Why this machine cannot stand for an image such as `python:3.11.14-slim-bookworm`; None: it can."""
    said = re.match(r"python:(\d+\.\d+)\.\d+-slim-(\w+)$", image)
    if said is None:
        return f"{image} is not an official image of Python on Debian"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    release = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.M)
    if (python, release and release[1]) != (said[1], said[2]):
        return f"this is Python {python} on {release and release[1]}, not {image}"
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "chroot", "setpriv"))):
        return "mounting and changing users need root and util-linux"
    return None


def _is_of_a_package(line: str) -> bool:
    name, _, number = line.split(":")[:3]
    return int(number) not in _PEOPLE and name != _OURS


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
