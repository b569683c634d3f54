"""The way in, run for real: the HAProxy of Ray's ingress takes the configuration that the manifests mount."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.edge import CONFIGURATION, edge


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
    replica = ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    threading.Thread(target=replica.serve_forever, daemon=True).start()
    with edge(tmp_path_factory.mktemp("edge"), [f"127.0.0.1:{replica.server_address[1]}"]) as ports:
        yield ports
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
    text = CONFIGURATION.read_text()
    bodies = re.findall(r"string '(.+?)'", text)
    assert len(bodies) == 5
    for body in bodies:
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
