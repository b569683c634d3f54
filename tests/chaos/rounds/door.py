"""HTTP calls of a run's people: whatever breaks is tried again until there is an answer, within one's patience."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import Any, NamedTuple

PATIENCE_SECONDS = 60.0  # an answer that takes longer does not come
_BACK_OFF_SECONDS = 0.02


class Reply(NamedTuple):
    status: int
    body: dict[str, Any]


class NoReply(Exception):
    """Whatever was tried."""


class Door:
    """One listening socket of the service. A process behind it may die at any time; the socket stays."""

    def __init__(self, port: int, key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._pause = threading.Event()  # never set: only waited for

    def call(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        """To be used for what may be done twice. Raises `NoReply`."""
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            reply = self.attempt(method, path, body, **headers)
            if reply is not None and reply.status != 503:
                return reply
            self._pause.wait(_BACK_OFF_SECONDS)
        raise NoReply(f"{method} {path} had no answer for {PATIENCE_SECONDS:.0f} seconds")

    def attempt(self, method: str, path: str, body: object = None, **headers: str) -> Reply | None:
        """Once. None: the connection broke, and nobody knows whether it was done. Raises `NoReply` after long silence."""
        data = None if body is None else json.dumps(body)
        try:
            self._connection.request(method, path, data, self._headers | headers)
            response = self._connection.getresponse()
            answer = response.read()
            return Reply(response.status, json.loads(answer))
        except TimeoutError as silence:
            raise NoReply(f"{method} {path} had no answer for {PATIENCE_SECONDS:.0f} seconds") from silence
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return None
