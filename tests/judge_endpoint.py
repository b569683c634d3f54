"""A judge at the end of a wire, for the gate: a real HTTP server that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Endpoint:
    """`says` is what the model behind it says of a case; any other status than 200 is an endpoint out of order."""

    def __init__(self) -> None:
        self.says: Callable[[dict[str, Any]], str] = lambda case: ""
        self.status = 200
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.asked.append({"path": self.path} | body)
                endpoint.keys.append(self.headers["authorization"])
                said = endpoint.says(json.loads(body["messages"][-1]["content"]))
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
                answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "wise", "choices": [choice]}
                content = json.dumps(
                    answer if endpoint.status == 200 else {"error": {"message": "out of order"}}
                ).encode()
                self.send_response(endpoint.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()
