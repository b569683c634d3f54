"""`import` and `export` on the command line: what is sent, what is shown, and which file is there in the end."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.errors import Unauthenticated
from service.exchange.exports import Exportable
from tests.fake_api import OPERATOR_KEY, FakeApi

Run = Callable[..., Result]
GOOD = json.dumps({"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"})
BAD = json.dumps({"prompt": "Hi", "chosen": " ", "rejected": "What?"})
PAIR = Exportable("p", [{"role": "user", "content": "Hi"}], "Hello!", "What?", is_thumb=False)
SAID = "1 pairs; left out: 1 pairs whose text is no longer stored, 2 votes redacted\n"


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        api.stored = [PAIR]
        yield api


@pytest.fixture
def run(api: FakeApi) -> Run:
    environment = {"HELIOTROPE_URL": api.url, "HELIOTROPE_KEY": OPERATOR_KEY}
    return lambda *words, **options: CliRunner().invoke(app, list(words), env=environment, **options)


def test_the_file_and_the_options_are_sent_as_they_are(api: FakeApi, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(GOOD)
    said = run("import", str(file), "--format", "trl", "--skip-bad", "--dry-run").stdout
    assert "1 preferences would be added" in said
    assert "format: trl (as asked for, 1 of 1 first rows)" in said
    assert api.requests[-1][1] == "/ops/preferences/import?format=trl&skip_bad=true&dry_run=true"
    assert api.requests[-1][2] == GOOD.encode()


def test_a_format_that_nobody_knows_and_a_file_that_is_not_there_are_usage_errors(
    api: FakeApi, run: Run, tmp_path: Path
) -> None:
    assert run("import", "-", "--format", "csv", input=GOOD).exit_code == 2
    assert run("import", str(tmp_path / "nowhere")).exit_code == 2
    assert api.requests == []


def test_of_many_faults_it_says_how_many_more_there_are(run: Run) -> None:
    few = run("import", "-", "--skip-bad", input=f"{GOOD}\n{BAD}\n")
    assert (few.exit_code, "empty text" in few.stdout, "more" in few.stdout) == (0, True, False)
    many = run("import", "-", "--skip-bad", input=f"{BAD}\n" * 150)
    assert many.stdout.endswith("and 50 more\n")


class _HangsUp(BaseHTTPRequestHandler):
    """Refuses at once and closes while a body still comes, as servers do."""

    def do_POST(self) -> None:
        if int(self.headers["content-length"]):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset at once
            self.connection.close()
            return
        refusal = json.dumps(Unauthenticated("The API key is missing or not valid.").body()).encode()
        self.send_response(401)
        self.send_header("content-length", str(len(refusal)))
        self.end_headers()
        self.wfile.write(refusal)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class _Quiet(HTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """The connection that it closed itself."""


def test_who_refuses_before_the_whole_file_has_come_is_heard_all_the_same(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(f"{GOOD}\n" * 200_000)
    with _Quiet(("127.0.0.1", 0), _HangsUp) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        result = run("--url", f"http://127.0.0.1:{server.server_port}", "import", str(tmp_path / "pairs.jsonl"))
        server.shutdown()
        thread.join()
    assert result.exit_code == 1
    assert result.stderr.startswith("error: The API key is missing or not valid.")


def test_an_export_goes_to_stdout_alone_and_what_is_missing_to_stderr(api: FakeApi, run: Run) -> None:
    result = run("export", "--format", "openai", "--status", "all")
    assert (result.exit_code, result.stderr) == (0, SAID)
    assert json.loads(result.stdout)["preferred_output"] == [{"role": "assistant", "content": "Hello!"}]
    assert api.requests[-1][1] == "/ops/preferences/export?format=openai&status=all&summary=true"


def test_an_export_into_a_file_is_there_when_it_is_complete(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "pairs.jsonl"
    result = run("export", "-o", str(out))
    assert (result.stdout, result.stderr) == ("", SAID)
    assert [set(json.loads(line)) for line in out.read_text().splitlines()] == [{"prompt", "chosen", "rejected"}]


@pytest.mark.parametrize("parts", [0, 1])
def test_an_export_that_breaks_off_leaves_no_file_and_the_old_one_as_it_was(
    api: FakeApi, run: Run, tmp_path: Path, parts: int
) -> None:
    out = tmp_path / "pairs.jsonl"
    out.write_text("before")
    api.cuts.append(parts)
    result = run("export", "--out", str(out))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and "complete" in result.stderr
    assert out.read_text() == "before"
    assert list(tmp_path.iterdir()) == [out]


def test_a_place_that_cannot_be_written_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("export", "--out", str(tmp_path / "file" / "pairs.jsonl"))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "pairs.jsonl cannot be written" in result.stderr
