"""A Ray cluster of several nodes on one machine, each started by `ray start` as KubeRay starts the one of a pod.

A node has a folder of its own, in which its processes run, and an environment of its own; so what a setting names by a
relative path lies on no disk that two nodes share. (`ray.cluster_utils.Cluster` gives all nodes one folder, and tells
every other program of this machine to join its cluster.) A node is lost as with a power cut: every process at once.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import free_port
from tests.fake_cluster import eventually

log = logging.getLogger(__name__)

AGENTS = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
OBJECT_STORE_BYTES = 80 << 20  # the least that Ray takes
LOG = "ray.log"  # what `ray start` says
STARTS = 5  # Ray gives up after 15 seconds, too few on a busy machine; Kubernetes would start the pod anew, too
STARTED = "This command will now block forever"
TOKEN = "0123456789abcdef0123456789abcdef"  # nobody without it may run code in the cluster

# Of this machine, for a program to run at all. Nothing else: a pod has none of it, and while the tests share a cluster of
# their own, this process has variables that name that one's ports.
OF_THE_MACHINE = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "XDG_CACHE_HOME")

# What KubeRay adds for `gcsFaultToleranceOptions` with the backend rocksdb: to the head, and to all others.
GCS_ON_A_VOLUME = {"RAY_gcs_storage": "rocksdb"}
WAITS_FOR_THE_HEAD = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}


@dataclass(frozen=True)
class Node:
    folder: Path
    process: subprocess.Popen[bytes]  # `ray start --block`, whose folder all others have

    def log(self) -> str:
        return (self.folder / LOG).read_text(errors="replace")

    def started(self) -> bool:
        return STARTED in self.log()

    def ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        """Whatever runs in its folder, and all of it within a millisecond; the oldest first, which would else end the
        others with care."""
        while lost := [process for process in psutil.process_iter() if _folder(process) == str(self.folder)]:
            for process in lost:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


class RayNodes:
    """The nodes that run, by name. `environment` is that of every node."""

    def __init__(self, folder: Path, temporary: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._temporary = temporary
        self._environment = {
            **environment,
            "RAY_TMPDIR": str(temporary),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),  # the tests are in it, installed or not
        }
        self._port, self._client_port = free_port(), free_port()  # the head's, whenever it is started
        self.running: dict[str, Node] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def environment(self) -> dict[str, str]:
        """Of a process that may speak with the cluster."""
        machine = {name: os.environ[name] for name in OF_THE_MACHINE if name in os.environ}
        return machine | self._environment

    def start_head(self) -> None:
        """The first time, or again: it finds what it knew on its volume."""
        (self._temporary / "ray" / "ray_current_cluster").unlink(
            missing_ok=True
        )  # it went with the disk of the lost one
        head = ["--head", "--num-cpus=0", "--include-dashboard=false"]
        ports = [f"--port={self._port}", f"--ray-client-server-port={self._client_port}"]
        self._start("head", head + ports, GCS_ON_A_VOLUME | {"RAY_gcs_storage_path": str(self.folder / "gcs")})

    def start(self, name: str, resource: str, cpus: int, **environment: str) -> None:
        """A node of a group of workers: such as `serving`, with one of the resource `serving`."""
        options = [f"--address={self.address}", f"--num-cpus={cpus}", f'--resources={{"{resource}": 1}}']
        self._start(name, options, WAITS_FOR_THE_HEAD | environment)

    def kill(self, name: str) -> None:
        """All of its processes at once, without a word to anybody, and what is on its disk."""
        node = self.running.pop(name)
        node.kill()
        shutil.rmtree(node.folder)

    def _start(self, name: str, options: Sequence[str], environment: Mapping[str, str]) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        ports = [f"--{agent}-port={free_port()}" for agent in AGENTS]
        command = [*ray, f"--object-store-memory={OBJECT_STORE_BYTES}", "--include-log-monitor=false", *ports, *options]
        node_environment = {**self.environment(), **environment, "HOME": str(folder)}
        for start in range(STARTS):
            with (folder / LOG).open("wb") as out:
                process = subprocess.Popen(
                    command, cwd=folder, env=node_environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    start_new_session=True,
                )  # fmt: skip
            node = self.running[name] = Node(folder, process)
            eventually(lambda node=node: node.started() or node.ended())
            if node.started():
                return
            node.kill()
            log.warning("start %d of %s failed:\n%s", start + 1, name, node.log())
        raise RuntimeError(f"{name} does not start")


def _folder(process: psutil.Process) -> str | None:
    """None: it is gone, or another's."""
    try:
        return process.cwd()
    except psutil.Error:
        return None


@contextmanager
def ray_nodes(folder: Path, environment: Mapping[str, str]) -> Iterator[RayNodes]:
    """No node yet. Those that run when the block ends are killed."""
    temporary = Path(tempfile.mkdtemp(prefix="nodes-"))  # the path of a socket is short
    nodes = RayNodes(folder, temporary, environment)
    try:
        yield nodes
    finally:
        for name in sorted(nodes.running, key=lambda name: name == "head"):
            nodes.kill(name)
        shutil.rmtree(temporary, ignore_errors=True)
