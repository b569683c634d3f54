"""Ray's HAProxy, mended: on the configuration that this version of Ray itself writes, by the program that comes with it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from serving import haproxy, ingress
from tests.conftest import free_port


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="heliotrope-", dir=haproxy.ROOT) as folder:
        yield Path(folder)


def configured(folder: Path, node: str = "n" * 56) -> tuple[dict[str, str], Path, list[int]]:
    """Ray's variables, and what Ray itself writes by them on a node: two replicas, and its Python proxy behind them."""
    variables = ingress.environment("haproxy", folder, longest_seconds=610.0)

    def path(name: str) -> str:
        file = Path(variables[f"RAY_SERVE_HAPROXY_{name}"])
        return str(file.parent / node / file.name)

    config = HAProxyConfig(
        http_options=HTTPOptions(host="0.0.0.0", port=free_port()),
        metrics_port=int(variables["RAY_SERVE_HAPROXY_METRICS_PORT"]),
        stats_port=int(variables["RAY_SERVE_HAPROXY_STATS_PORT"]),
        hard_stop_after_s=int(variables["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]),
        socket_path=path("SOCKET_PATH"),
        metrics_socket_path=path("METRICS_SOCKET_PATH"),
        server_state_base=str(folder / node),
        server_state_file=path("SERVER_STATE_FILE"),
        is_head=True,
    )
    servers = [ServerConfig(name, "127.0.0.1", free_port(), name) for name in ("one", "two", "fallback")]
    chat = BackendConfig("http-chat", "/v1", servers=servers[:2], app_name="chat", fallback_server=servers[2])
    api = HAProxyApi(config, {"http-chat": chat}, path("CONFIG_FILE_LOC"))
    api._generate_config_file_internal()
    return variables, Path(path("CONFIG_FILE_LOC")), [server.port for server in servers]


@contextmanager
def hanging_up(port: int) -> Iterator[None]:
    """A replica that answers whether it is well, and ends at its first question."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/-/healthz":
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


def test_each_haproxy_has_sockets_and_ports_of_its_own(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    first, second = (ingress.environment("haproxy", folder, 610.0) for folder in folders)
    own = {name for name in first if "PATH" in name or "FILE" in name or "PORT" in name}
    assert all(first[name] != second[name] for name in own - {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"})
    assert first["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert ingress.environment("python", tmp_path, 610.0)["RAY_SERVE_ENABLE_HA_PROXY"] == "0"


def test_haproxy_listens_beyond_this_machine_only_where_it_was_told(short: Path) -> None:
    variables, config, _ = configured(short)
    program = variables["RAY_SERVE_HAPROXY_BINARY_PATH"]
    before = config.read_text()
    checked = subprocess.run([program, "-c", "-db", "-f", config], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    bound = {line.split()[1] for line in config.read_text().splitlines() if line.strip().startswith("bind")}
    assert {address for address in bound if not address.startswith("127.0.0.1:")} == {
        line.split()[1] for line in before.splitlines() if line.startswith("    bind *:")
    }
    assert len(bound) == 3


def test_haproxy_ends_no_answer_before_its_time_and_asks_no_replica_twice(short: Path) -> None:
    variables, config, _ = configured(short)
    subprocess.run([variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-c", "-f", config], check=True, capture_output=True)
    lines = {line.strip() for line in config.read_text().splitlines()}
    assert {"hard-stop-after 610s", "retry-on conn-failure", "option http-server-close", "http-reuse never"} <= lines
    assert "http-reuse always" not in lines
    assert not [line for line in lines if line.startswith("log")]


@pytest.mark.parametrize(("listens", "status", "code"), [(False, 503, "no_replica"), (True, 502, "replica_lost")])
def test_what_haproxy_answers_itself_has_the_contracts_shape(
    short: Path, listens: bool, status: int, code: str
) -> None:
    """Each time, over the same connection: a replica that is gone, and one that hangs up when it was asked."""
    variables, config, replicas = configured(short)
    front = next(line.rpartition(":")[2] for line in config.read_text().splitlines() if line.startswith("    bind *:"))
    command = [variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", config]
    with ExitStack() as stack:
        for port in replicas if listens else ():
            stack.enter_context(hanging_up(port))
        program = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        stack.callback(program.kill)
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{front}"))
        answers = [_answer(client, "/v1/models") for _ in range(3)]
    for answer in answers:
        assert (answer.status_code, answer.headers["retry-after"]) == (status, "1")
        assert answer.json()["error"]["code"] == code


def _answer(client: httpx.Client, path: str) -> httpx.Response:
    while True:
        with contextlib.suppress(httpx.ConnectError):  # it is only just starting
            return client.get(path)


def test_a_haproxy_that_cannot_mend_its_configuration_does_not_start(tmp_path: Path) -> None:
    variables = ingress.environment("haproxy", tmp_path, 610.0)
    missing = subprocess.run(
        [variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-v", tmp_path / "no.cfg"], capture_output=True, check=False
    )
    assert missing.returncode != 0
