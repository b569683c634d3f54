"""`up` and `down`: this machine's database, Ray cluster and Serve applications, owned by one process.

Everything that `up` starts ends with it. What a killed `up` leaves behind (the database, and some of Ray's helpers) is
found again: the next `up` goes on with the database and ends the rest, `down` ends both.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import httpx
import psutil
from rich.console import Console

from service import leftovers, model
from service.alarm_settings import REVEALED
from service.artifacts import require_usable
from service.client import KEYS_FILE, UP_FILE
from service.errors import BadRequest, Conflict, HeliotropeError
from service.keeping import redaction
from service.settings import Settings
from serving import haproxy
from serving.settings import Ingress
from training.contracts import Fingerprints

START_SECONDS = 600  # how long a detached `up` may take before its caller gives up
STOP_SECONDS = 120  # to end a process, besides the time that its requests may take

console = Console(stderr=True)


def up(settings: Settings, *, detach: bool) -> None:
    """Start everything and stay until SIGINT or SIGTERM. Raises `HeliotropeError` before anything is started."""
    settings = settings.model_copy(update={"state": settings.state.expanduser().resolve()})
    _prepare_state(settings.state)
    if detach:
        _up_detached(settings)
        return
    with running(settings) as url:
        _say_hello(settings, url)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        console.print("stopping: requests in flight finish first; ^C again cuts them off")


@contextmanager
def running(settings: Settings) -> Iterator[str]:
    """The whole service on this machine, as long as the block lasts; gives its URL."""
    from service import local_store

    lock = filelock.FileLock(settings.state / "up.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as taken:
        raise Conflict(
            f"Heliotrope already runs on {settings.state}. Stop it with 'heliotrope down'.", code="already_running"
        ) from taken
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        leftovers.end(settings.state)
        (settings.state / UP_FILE).unlink(missing_ok=True)  # of a killed `up`: it is no sign of this one
        require_usable(settings.artifacts)  # refused now, and not in the process of a replica
        redaction.load(settings.store.redact)  # the same
        _require_ingress(settings.server.ingress)
        _refuse_used_port(settings.server.host, settings.server.port)
        directory = model.resolve(settings.model.name)
        store_url = stack.enter_context(local_store.running(settings))
        _show_keys(local_store.first_keys(settings.state, store_url))
        url = _url(settings)
        base = model.settled(directory, store_url)
        stack.enter_context(_cluster(settings, directory, store_url, base))
        note = settings.state / UP_FILE
        drain_seconds = settings.serving.longest_drain_seconds
        note.write_text(json.dumps({"pid": os.getpid(), "url": url, "drain_seconds": drain_seconds}))
        stack.callback(note.unlink, missing_ok=True)
        yield url


def down(state: Path) -> bool:
    """Stop what runs on that state folder, also what a killed `up` left. False: nothing ran."""
    state = state.expanduser().resolve()
    found = _stop_up(state)
    if _is_locked(state / "up.lock"):
        raise HeliotropeError(f"`up` is only just starting on {state}. Stop it again when it is ready.")
    found = leftovers.end(state) or found
    if (state / "database").is_dir():
        from service.postgres.embedded import EmbeddedDatabase

        found = EmbeddedDatabase(state / "database").stop() or found
    return found


def _stop_up(state: Path) -> bool:
    if not _is_locked(state / "up.lock"):
        return False  # whatever `up.json` says: its number may belong to another program by now
    try:
        note = json.loads((state / UP_FILE).read_text())
        process, seconds = psutil.Process(int(note["pid"])), STOP_SECONDS + float(note.get("drain_seconds", 0))
        process.terminate()
    except (FileNotFoundError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        return False
    try:
        process.wait(seconds)
    except psutil.TimeoutExpired as slow:
        raise HeliotropeError(f"process {process.pid} did not stop within {seconds:.0f} seconds") from slow
    return True


def _is_locked(file: Path) -> bool:
    """Whether an `up` holds it; the lock dies with its holder."""
    if not file.is_file():
        return False
    try:
        with filelock.FileLock(file).acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True


def _prepare_state(state: Path) -> None:
    try:
        state.mkdir(parents=True, exist_ok=True)
        (state / ".writable").touch()
        (state / ".writable").unlink()
    except OSError as error:
        raise BadRequest(
            f"The state folder {state} cannot be written: {error.strerror}. Choose another with --state.",
            param="state", code="state_not_writable",
        ) from error  # fmt: skip


def _require_ingress(ingress: Ingress) -> None:
    if ingress == "haproxy" and (fault := haproxy.fault()):
        raise BadRequest(
            f"HAProxy does not run here: {fault}. server.ingress = 'python' does without, and answers half as fast.",
            param="server.ingress", code="ingress_missing",
        )  # fmt: skip


def _refuse_used_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            why = "is already in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise BadRequest(
                f"Port {port} on {host} {why}. Choose another with --port.", param="server.port", code="port_in_use"
            ) from error


@contextmanager
def _cluster(settings: Settings, directory: Path, store_url: str, base: Fingerprints) -> Iterator[None]:
    """Both applications, running and ready on a Ray cluster of this machine alone."""
    import ray

    from service.app import Blueprint
    from service.local_cluster import cluster, deploy

    console.print(f"starting: {settings.model.name}, {settings.serving.replicas} replica(s)", highlight=False)
    try:
        cpus = max(4, os.cpu_count() or 1)  # what must run at once on a laptop must also fit
        with cluster(settings.state, settings.server, cpus=cpus, drain_seconds=settings.serving.longest_drain_seconds):
            leftovers.note(settings.state)
            use_gpu = _use_gpu(settings, ray.cluster_resources())
            deploy(Blueprint(settings, store_url, directory, base, use_gpu=use_gpu))
            leftovers.note(settings.state)
            yield
    finally:
        leftovers.forget(settings.state)


def _show_keys(secrets: dict[str, str]) -> None:
    if secrets:
        console.print(
            f"One key of each role was made; they are shown once and kept in {KEYS_FILE} of the state folder:"
        )
    for role, secret in secrets.items():
        console.print(f"  {role:<9} {secret}", highlight=False, soft_wrap=True)


def _url(settings: Settings) -> str:
    """Where this machine reaches the service; a wildcard address is none to connect to."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.server.host, settings.server.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server.port}"


def _use_gpu(settings: Settings, resources: dict[str, Any]) -> bool:
    found = resources.get("GPU", 0) >= 1
    if settings.serving.device == "gpu" and not found:
        raise BadRequest("serving.device is 'gpu', but Ray finds none here.", param="serving.device", code="no_gpu")
    return found and settings.serving.device != "cpu"


def _say_hello(settings: Settings, url: str) -> None:
    console.print(f"[bold]ready[/bold]  chat {url}/v1   operations {url}/ops/status", highlight=False)
    if settings.server.insecure_no_auth:
        console.print(
            "[bold red]WARNING[/bold red] --insecure-no-auth: everybody who reaches this port may do everything"
        )
    console.print("talk to it: heliotrope chat      stop it: ^C or heliotrope down", highlight=False)


def _up_detached(settings: Settings) -> None:
    """Start `up` as a process of its own and wait until it is ready."""
    file, log = settings.state / "settings.json", settings.state / "up.log"
    file.touch(mode=0o600)
    file.write_text(settings.model_dump_json(context=REVEALED))
    command = [sys.executable, "-m", "service.node", str(file)]
    log.touch(mode=0o600)  # the first start prints the keys into it
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    url = _url(settings)
    pause = threading.Event()
    for _ in range(START_SECONDS):
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise HeliotropeError(f"up ended: {last[0] if last else 'no word'} (all of it is in {log})")
        with contextlib.suppress(httpx.HTTPError):
            if (settings.state / UP_FILE).is_file() and httpx.get(f"{url}/readyz").status_code == 200:
                console.print(f"ready  {url}   log {log}", highlight=False)
                return
        pause.wait(1.0)
    raise HeliotropeError(f"up is not ready after {START_SECONDS} seconds; see {log}")


def _main() -> None:
    """`python -m service.node SETTINGS.json`: what a detached `up` runs."""
    try:
        up(Settings.model_validate_json(Path(sys.argv[1]).read_text()), detach=False)
    except HeliotropeError as error:
        console.print(error.message, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    _main()
