"""The HTTP client of the command line: where the service is, which key opens it, and how to speak with it.

Knows the two files that `up` leaves in the state folder and OpenAI's error shape; knows nothing of terminals.
Speaks through urllib: a library with more comfort costs each command longer to import than the service needs to answer.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from service.errors import TYPE_OF_STATUS, BadRequest, HeliotropeError, Unavailable, error_body

UP_FILE = "up.json"  # {"pid": int, "url": str}: there while `up` runs
KEYS_FILE = "keys.json"  # {"app": str, "operator": str}: the keys of the first start, mode 0600
CONFIG_FILE = "heliotrope.toml"
DEFAULT_URL = "http://127.0.0.1:8000"

ANSWER_SECONDS = 300.0  # of silence; a promotion loads an adapter on every replica before it answers
UPLOAD_SECONDS = 3600.0  # of silence, while the service stores what it was sent
EVENT_SECONDS = 30.0  # of silence between two events, before we ask for the rest anew
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Refused(HeliotropeError):
    """The service answered with an error. `status_code` is HTTP's, `answer` the whole JSON that came."""

    def __init__(self, status_code: int, answer: dict[str, Any]) -> None:
        error = answer["error"]
        super().__init__(str(error.get("message")), param=error.get("param"), code=error.get("code"))
        self.status_code = status_code
        self.answer = answer
        if status_code == 401:
            self.message += f" Put it into HELIOTROPE_KEY, or name with --state the folder that holds its {KEYS_FILE}."

    def body(self) -> dict[str, Any]:
        return self.answer


class Unreachable(Unavailable):
    """Nobody answers, or the connection broke before the answer was complete."""


@dataclass(frozen=True)
class Answer:
    """A success: the JSON as it came, and what it says. Both empty for 204."""

    text: str
    data: Any


# --- where the service is -----------------------------------------------------------------------------


def state_folder(given: Path | None, config: Path | None) -> Path:
    """The state folder by the same order as `service/settings.py`: the default < the file < what is given."""
    if given is not None:
        return given.expanduser()
    file = config or Path(CONFIG_FILE)
    if config is not None or file.is_file():
        try:
            named = tomllib.loads(file.read_text()).get("state")
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise BadRequest(f"{file} cannot be read as TOML: {error}", code="unreadable_settings") from error
        if named is not None:
            return Path(str(named)).expanduser()
    from platformdirs import user_state_path

    return user_state_path("heliotrope")


def running(state: Path) -> dict[str, Any] | None:
    """What `up` wrote when it started in this folder; None: it stopped in good order, or never ran."""
    return _read_object(state / UP_FILE)


def find_url(state: Path) -> str:
    """The URL of the service that runs on this folder, or of one that runs with the defaults."""
    started = running(state)
    return DEFAULT_URL if started is None else str(started["url"])


def find_key(state: Path, role: Literal["app", "operator"], environment: Mapping[str, str] = os.environ) -> str | None:
    """From HELIOTROPE_KEY, the file that HELIOTROPE_KEY_FILE names, or the state folder. None: a service without keys may
    answer all the same. Raises `BadRequest` where that file cannot be read."""
    if named := environment.get("HELIOTROPE_KEY_FILE"):
        try:
            return environment.get("HELIOTROPE_KEY") or Path(named).read_text().strip()
        except OSError as error:
            raise BadRequest(
                f"HELIOTROPE_KEY_FILE names {named}, which cannot be read: {error.strerror}.", code="unreadable_key"
            ) from error
    return environment.get("HELIOTROPE_KEY") or (_read_object(state / KEYS_FILE) or {}).get(role)


def _read_object(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadRequest(f"{file} cannot be read: {error}", code="unreadable_state") from error


# --- speaking with it ---------------------------------------------------------------------------------


class Client:
    """One service, one key. Every method raises `Refused` or `Unreachable`."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        loopback = urlsplit(url).hostname in LOOPBACK
        self._opener = build_opener(ProxyHandler({})) if loopback else build_opener()  # no proxy leads to ourselves

    def get(self, path: str, **query: str | None) -> Answer:
        return self._ask("GET", path + _query(query))

    def text(self, path: str, **query: str | None) -> str:
        """An answer that is a document, and no JSON."""
        with self._open("GET", path + _query(query)) as response:
            return response.read().decode()

    def post(self, path: str, body: dict[str, Any]) -> Answer:
        return self._ask("POST", path, json.dumps(body).encode(), "application/json")

    def put(self, path: str, body: dict[str, Any]) -> Answer:
        return self._ask("PUT", path, json.dumps(body).encode(), "application/json")

    def upload_file(
        self, path: str, file: BinaryIO, kind: str, sent: Callable[[int], None] | None = None, /, **query: str | None
    ) -> Answer:
        """Sends the file from where it stands to its end, piece by piece; a pipe too, whose length nobody knows.

        `sent` hears of the bytes of each piece, and of 0 at the end.
        """
        length = None
        if file.seekable():
            start, end = file.tell(), file.seek(0, os.SEEK_END)
            file.seek(start)
            length = end - start
        content = _Read(file, sent or (lambda count: None))
        return self._ask("POST", path + _query(query), content, kind, length=length, seconds=UPLOAD_SECONDS)

    def lines(self, path: str, **query: str | None) -> Iterator[bytes]:
        """The lines of an answer as they come; the last one may be half of one, when the connection breaks."""
        with self._open("GET", path + _query(query)) as response:
            yield from response

    def delete(self, path: str) -> Answer:
        return self._ask("DELETE", path)

    def events(self, n: int, after: int) -> Iterator[dict[str, Any]]:
        """A round's events behind the one with the number `after`, until it is final or the stream ends early."""
        try:
            with self._open("GET", f"/ops/rounds/{n}/events?after={after}", seconds=EVENT_SECONDS) as response:
                for data in _data_lines(response):
                    yield json.loads(data)
        except Unreachable as silence:
            if silence.code != "timed_out":
                raise

    def chat(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed answer, each with `id`, `model` and `choices`."""
        content = json.dumps({**body, "stream": True}).encode()
        with self._open("POST", "/v1/chat/completions", content, "application/json") as response:
            for data in _data_lines(response):
                if data == "[DONE]":
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    raise Refused(500, chunk)
                yield chunk
        raise self._broken(EOFError("it just ends"))

    def _ask(
        self,
        method: str,
        path: str,
        content: bytes | _Read | None = None,
        kind: str | None = None,
        *,
        length: int | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> Answer:
        with self._open(method, path, content, kind, length=length, seconds=seconds) as response:
            text = response.read()
        try:
            return Answer(text.decode(), json.loads(text) if response.status != 204 else None)
        except ValueError as error:
            raise HeliotropeError(f"{self.url} does not answer as Heliotrope does. Is the URL right?") from error

    @contextmanager
    def _open(
        self,
        method: str,
        path: str,
        content: bytes | _Read | None = None,
        kind: str | None = None,
        *,
        length: int | None = None,  # of a file; the length of bytes is known
        seconds: float = ANSWER_SECONDS,
    ) -> Iterator[HTTPResponse]:
        request = Request(self.url + path, content, {"Content-Type": kind} if kind else {}, method=method)
        if length is not None:
            request.add_header("Content-Length", str(length))
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)  # a redirect must not carry the key to another host
        try:
            with self._opener.open(request, timeout=seconds) as response:
                yield response
        except HTTPError as error:
            raise self._refusal(error) from error
        except URLError as error:
            if isinstance(error.reason, BrokenPipeError | ConnectionResetError):  # it did answer, and then hung up
                raise self._broken(error.reason) from error
            raise Unreachable(
                f"Nothing answers at {self.url} ({_reason(error.reason)}). Start the service with `heliotrope up`, "
                "or name another with --url or HELIOTROPE_URL.",
                code="unreachable",
            ) from error
        except TimeoutError as error:
            raise Unreachable(f"{self.url} has said nothing for {seconds:.0f} seconds.", code="timed_out") from error
        except (OSError, HTTPException) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> Unreachable:
        said = f"The connection to {self.url} broke before the answer was complete ({_reason(error)})."
        return Unreachable(said, code="connection_broken")

    def _refusal(self, error: HTTPError) -> Refused:
        """What is not in our shape comes from something between us and the service, such as a proxy."""
        with error:
            text = error.read().decode(errors="replace")
        try:
            return Refused(error.code, json.loads(text))
        except (ValueError, LookupError, TypeError, AttributeError):
            said = f"{self.url} answers {error.code} {error.reason}: {' '.join(text.split())[:200]}"
            return Refused(error.code, error_body(said, TYPE_OF_STATUS.get(error.code, "server_error")))


class _Read:
    """A file on its way out."""

    def __init__(self, file: BinaryIO, sent: Callable[[int], None]) -> None:
        self._file = file
        self._sent = sent

    def read(self, size: int = -1, /) -> bytes:
        piece = self._file.read(size)
        self._sent(len(piece))
        return piece


def in_path(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")


def _query(values: dict[str, str | None]) -> str:
    given = {name: value for name, value in values.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def _data_lines(response: HTTPResponse) -> Iterator[str]:
    """The payloads of server-sent events. Ours are one line each and hold their number and kind themselves."""
    for line in response:
        if line.startswith(b"data: ") and line.endswith(b"\n"):  # a broken connection leaves half a line
            yield line.removeprefix(b"data: ").strip().decode()


def _reason(error: BaseException | str) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
