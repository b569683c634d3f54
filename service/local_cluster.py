"""This machine's Ray cluster, and both Serve applications in it.

Knows how they are started and ended; what is in them is put together in `service/app.py`, and who owns the cluster's
processes is said in `service/node.py`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve

from service import leftovers
from service.app import Blueprint, chat, operations
from service.settings import ServerSettings
from serving import ingress, machine
from serving.deployment import APPLICATION

NAMESPACE = "heliotrope"
OBJECT_STORE_BYTES = 128 << 20  # nothing large ever goes through Ray's object store
_LOOK_SECONDS = 0.2

# For every process of the cluster; they inherit it.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's own is 15: chat would give way to every other process here, and hardly less to a round at 19.
    "RAY_worker_niceness": "0",
    # Ray's own is 5: on a busy machine a proxy starts for longer, is killed for it, and the start fails.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # Engine and training share a laptop's cores: a thread that waits for the others must not spin meanwhile.
    "OMP_WAIT_POLICY": "PASSIVE",
}


@contextmanager
def cluster(state: Path, server: ServerSettings, *, cpus: int, drain_seconds: float) -> Iterator[None]:
    """A Ray cluster of this machine alone, with Serve listening and no application yet. `cpus` are logical.

    At its end no chat begins any more, and those under way have `drain_seconds`; KeyboardInterrupt cuts them off.
    """
    with (
        leftovers.short_folder(state) as folder,
        _variables(ENVIRONMENT, ingress.environment(server.ingress, folder, drain_seconds) | machine.sockets(folder)),
    ):
        try:
            ray.init(
                address="local",  # never a cluster that runs already: on its other nodes nobody reaches this machine's store
                namespace=NAMESPACE,
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
            )
            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            serve.start(http_options={"host": server.host, "port": server.port}, logging_config={"log_level": "ERROR"})
            yield
        finally:
            with contextlib.suppress(Exception, KeyboardInterrupt):  # whatever is left goes with the cluster
                _drain(drain_seconds)
            ray.shutdown()


def deploy(blueprint: Blueprint) -> None:
    """Returns when both applications are ready."""
    # The Conductor first: it can say how things stand while the engines load.
    serve.run(operations(blueprint), name="operations", route_prefix="/")
    serve.run(chat(blueprint), name=APPLICATION, route_prefix="/v1")


def _drain(seconds: float) -> None:
    """Chat first: the Conductor can say meanwhile how things stand. Serve's own wait gives up after a minute."""
    until = time.monotonic() + seconds
    for name in (APPLICATION, "operations"):
        serve.delete(name, _blocking=False)
        while name in serve.status().applications and time.monotonic() < until:
            threading.Event().wait(_LOOK_SECONDS)


@contextmanager
def _variables(defaults: Mapping[str, str], values: Mapping[str, str]) -> Iterator[None]:
    """Set in this process as long as the block lasts. A default that the caller has set already stays."""
    before = dict(os.environ)
    os.environ.update({**defaults, **before, **values})
    try:
        yield
    finally:
        for name in defaults.keys() | values.keys():
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
