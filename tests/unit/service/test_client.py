"""The HTTP client: where it looks for the service, and what it makes of answers that are not the service's."""

from __future__ import annotations

import io
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from service.client import DEFAULT_URL, Client, Refused, Unreachable, find_key, find_url, running, state_folder
from service.errors import BadRequest, HeliotropeError
from service.settings import load
from tests.fake_api import OPERATOR_KEY, FakeApi, a_round


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


@contextmanager
def serving(respond: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Another server than ours; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def saying(status: int, text: str, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def respond(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(text.encode())

    return respond


# --- where the service is -----------------------------------------------------------------------------


def test_a_fresh_machine_has_the_default_url_and_no_key(tmp_path: Path) -> None:
    assert running(tmp_path) is None
    assert find_url(tmp_path) == DEFAULT_URL
    assert find_key(tmp_path, "app", environment={}) is None


def test_the_key_is_the_one_for_the_role_unless_the_environment_has_one(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('{"app": "a", "operator": "o"}')
    assert [find_key(tmp_path, role, environment={}) for role in ("app", "operator")] == ["a", "o"]
    assert find_key(tmp_path, "app", environment={"HELIOTROPE_KEY": "given"}) == "given"


def test_the_key_may_lie_in_a_file_as_a_mounted_secret_does(tmp_path: Path) -> None:
    (tmp_path / "operator").write_text("kept\n")
    named = {"HELIOTROPE_KEY_FILE": str(tmp_path / "operator")}
    assert find_key(tmp_path, "operator", environment=named) == "kept"
    assert find_key(tmp_path, "operator", environment=named | {"HELIOTROPE_KEY": "given"}) == "given"
    with pytest.raises(BadRequest, match=r"HELIOTROPE_KEY_FILE names .*lost, which cannot be read"):
        find_key(tmp_path, "operator", environment={"HELIOTROPE_KEY_FILE": str(tmp_path / "lost")})


def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text('{"pid":')
    with pytest.raises(BadRequest, match=r"up\.json"):
        find_url(tmp_path)


@pytest.mark.parametrize("text", ["", 'state = "here/state"\n'], ids=["default", "named"])
def test_commands_look_in_the_state_folder_that_the_service_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heliotrope.toml").write_text(text)
    assert state_folder(None, None) == load(environment={}).state
    assert state_folder(Path("other"), None) == load(environment={}, overrides={"state": Path("other")}).state


def test_a_settings_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("state =")
    with pytest.raises(BadRequest, match=r"mine\.toml"):
        state_folder(None, file)


# --- speaking with it ---------------------------------------------------------------------------------


def test_an_answer_that_is_not_json_is_not_heliotrope_s() -> None:
    with serving(saying(200, "<html>")) as url, pytest.raises(HeliotropeError, match="Is the URL right"):
        Client(url, None).get("/ops/status")


def test_an_error_of_a_proxy_becomes_one_of_ours() -> None:
    with serving(saying(502, "<h1>bad\ngateway</h1>")) as url, pytest.raises(Refused) as refused:
        Client(url, None).get("/ops/status")
    assert refused.value.status_code == 502
    assert "502" in refused.value.message
    assert refused.value.body()["error"]["type"] == "server_error"


def test_a_redirect_does_not_carry_the_key_away() -> None:
    seen: list[str | None] = []

    def elsewhere(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers.get("authorization"))
        saying(200, "{}")(request)

    with serving(elsewhere) as other, serving(saying(302, "", location=f"{other}/taken")) as url:
        Client(url, "secret").get("/ops/status")
    assert seen == [None]


def test_a_proxy_of_the_environment_is_not_asked_about_this_machine(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Client(api.url, None).get("/healthz").data == {"status": "ok"}


def test_a_server_that_hangs_up_while_we_send_is_told_from_one_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            connection, _ = listening.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset at once
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        client = Client(f"http://127.0.0.1:{listening.getsockname()[1]}", None)
        with pytest.raises(Unreachable) as broken:
            client.upload_file("/ops/preferences/import", io.BytesIO(b"x" * (64 << 20)), "application/octet-stream")
        thread.join()
    assert broken.value.code == "connection_broken"


def test_half_an_event_is_never_read_as_one(api: FakeApi) -> None:
    half = b'data: {"seq": 1, "kind": "state"'
    with serving(saying(200, half.decode(), **{"content-type": "text/event-stream"})) as url:
        assert list(Client(url, None).events(1, 0)) == []


def test_a_connection_that_breaks_is_told_from_one_that_ends(api: FakeApi) -> None:
    api.rounds[1], api.events[1], api.cuts = a_round(1), [], []
    assert list(Client(api.url, OPERATOR_KEY).events(1, 0)) == []

    def hang_up(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True

    with serving(hang_up) as url, pytest.raises(Unreachable):
        list(Client(url, None).events(1, 0))
