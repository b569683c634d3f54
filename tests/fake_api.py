"""The service's HTTP API in small: a real server on a real socket, whose records and bodies are the real contracts.

What it holds is plain data that a test sets. It trains nothing; a round's events are those the test wrote down.
Streams can be cut on purpose, in the middle of an event and without the end that HTTP promises.
"""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import pydantic
from pydantic import BaseModel

from service.contracts import (
    Adapter,
    AuditEntry,
    Candidate,
    Check,
    Key,
    PromoteBody,
    Role,
    RollbackBody,
    Round,
    RoundBody,
    RoundEvent,
    RoundState,
    SplitBody,
    Verdict,
)
from service.curation.held import Held
from service.errors import (
    Conflict,
    Forbidden,
    HeliotropeError,
    NotFound,
    Unauthenticated,
    Unavailable,
    from_faults,
)
from service.exchange.exports import Exportable
from service.pairs import Funnel
from service.report.page import page
from service.votes import FeedbackBody, FeedbackReceipt
from serving.contracts import ReplicaStatus, Route
from tests import fake_evidence, fake_exchange, fake_learning, fake_preferences, fake_routes
from tests.data_pairs import a_data_report
from training.contracts import Evaluation, RoundReport, StepMetrics

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
APP_KEY = "hel_app_key"
OPERATOR_KEY = "hel_operator_key"
FIRST, SECOND = "policy-0001-aaaaaaaa", "policy-0002-bbbbbbbb"
CHUNK = b"%x\r\n%s\r\n"

Body = TypeVar("Body", bound=BaseModel)

PASSED = Verdict(
    promote=True,
    checks=(
        Check(name="integrity", outcome="pass", why="every file hashes to its manifest"),
        Check(name="held_out", outcome="pass", value=0.875, bound=0.5, why="accuracy on 24 held-out pairs"),
    ),
)
TURNED_DOWN = Verdict(
    promote=False,
    checks=(
        Check(name="integrity", outcome="pass", why="every file hashes to its manifest"),
        Check(name="learned", outcome="fail", value=0.001, bound=0.01, why="mean reward margin of the last steps"),
        Check(name="held_out", outcome="abstain", value=2, bound=4, why="2 held-out pairs cannot decide"),
    ),
)


def a_step(step: int, steps: int, loss: float) -> StepMetrics:
    return StepMetrics(
        step=step, steps=steps, loss=loss, rewards_chosen=0.5, rewards_rejected=-0.25, rewards_margins=0.75,
        rewards_accuracies=0.875, logps_chosen=-3, logps_rejected=-4, grad_norm=1, learning_rate=1e-4, seconds=step * 0.5,
    )  # fmt: skip


def a_report() -> RoundReport:
    return RoundReport(
        adapter_name=SECOND, adapter_directory="/adapters/2", adapter_digest="b" * 64, pair_digest="d" * 64,
        pairs_trained=80, pairs_held_out=24, pairs_skipped={"too_long": 2}, step0_loss=0.6931, step0_max_abs_logratio=0,
        nonfinite_steps=0, weights_changed=True, steps=(a_step(1, 2, 0.69), a_step(2, 2, 0.31)),
        current=Evaluation(pairs=24, accuracy=0.5, mean_margin=0, mean_logp_chosen=-1),
        candidate=Evaluation(pairs=24, accuracy=0.875, mean_margin=1, mean_logp_chosen=-1),
        candidate_correct_current_wrong=9, current_correct_candidate_wrong=0, seconds={"train": 12.5},
    )  # fmt: skip


def a_round(n: int, state: RoundState = RoundState.QUEUED, **fields: Any) -> Round:
    settings = {"objective": "dpo", "beta": 0.1, "learning_rate": 2e-4, "epochs": 2, "min_pairs": 32}
    given = {
        "n": n, "state": state, "requested_by": "admin", "settings": settings, "created_at": NOW, "updated_at": NOW,
    }  # fmt: skip
    return Round(**(given | fields))


def events_of(*happened: tuple[str, dict[str, Any]]) -> list[RoundEvent]:
    """(kind, data) pairs as a round's events; the attempt is 1 where it is not said."""
    return [
        RoundEvent(seq=10 * i, at=NOW, kind=kind, data={"attempt": 1, **data})
        for i, (kind, data) in enumerate(happened, 1)
    ]


def a_whole_round(end: RoundState, reason: str) -> list[RoundEvent]:
    swap = ("swap", {"to": SECOND, "prepare_seconds": 1.25, "flip_seconds": 0.0421})
    return events_of(
        ("state", {"state": "queued", "attempt": 0, "reason": None}),
        ("state", {"state": "training", "reason": None}),
        ("attempt", {}),
        ("phase", {"phase": "reference"}),
        ("step", a_step(1, 2, 0.69).model_dump(mode="json")),
        ("step", a_step(2, 2, 0.31).model_dump(mode="json")),
        ("state", {"state": "judging", "reason": None}),
        *([swap] if end is RoundState.PROMOTED else []),
        ("state", {"state": end.value, "reason": reason}),
    )


class FakeApi:
    """Use it as a context: it serves while the context is open."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []  # method, path with query, body
        self.last_text = ""  # the JSON of the last answer, as it was sent
        self.keys = [Key(id="aaa", role=Role.APP, app="shop"), Key(id="bbb", role=Role.OPERATOR, app="admin")]
        self.route = Route(generation=2, stable=SECOND, previous=FIRST)
        self.unusual: dict[str, Any] = {"silent": [], "trouble": None, "canary": None, "pause": None}  # in the status
        self.replica: ReplicaStatus | None = None  # None: one that is well
        self.funnel = Funnel(
            votes=130, votes_in_pairs=100, left_out={"no_partner": 25, "truncated": 5}, pairs_from_votes=60, pairs_imported=4
        )  # fmt: skip
        self.adapters = [_an_adapter(1, FIRST, "base"), _an_adapter(2, SECOND, FIRST)]
        self.tags: tuple[str, ...] = ("sums",)  # of all votes
        self.rounds: dict[int, Round] = {}
        self.events: dict[int, list[RoundEvent]] = {}
        self.audit: list[AuditEntry] = []
        self.cuts: list[int] = []  # for one event stream each: after how many events the connection breaks
        self.outage = 0  # so many event streams are answered with 503
        self.answer_tokens = ["Hello", ", ", "world", "."]
        self.finish_reason = "stop"
        self.votes: list[FeedbackBody] = []
        self.stored: list[Exportable] = []
        self.quarantine: dict[int, Held] = {}
        self.erased: list[tuple[str, str | None]] = []  # user and app
        self.erasure: BaseModel | None = None  # what became of them
        self.received: dict[str, bytes] = {}  # the files of the last adapter that was brought

    def __enter__(self) -> FakeApi:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # --- answers ------------------------------------------------------------------------------------

    def answer(self, method: str, path: list[str], query: dict[str, str], body: Any) -> tuple[int, Any]:
        """Status and JSON. Raises the service's own errors."""
        match method, path:
            case "GET", ["healthz"]:
                return 200, {"status": "ok"}
            case "GET", ["ops", "status"]:
                return 200, self._status()
            case "POST", ["ops", "rounds"]:
                return self._start(_parsed(RoundBody, body))
            case "GET", ["ops", "rounds"]:
                return 200, {"data": [_json(self.rounds[n]) for n in sorted(self.rounds, reverse=True)]}
            case "GET", ["ops", "rounds", n]:
                return 200, _json(self._round(n))
            case "POST", ["ops", "rounds", n, "cancel"]:
                self.rounds[int(n)] = self._round(n).model_copy(update={"state": RoundState.CANCELLED})
                return 200, _json(self.rounds[int(n)])
            case "GET", ["ops", "adapters"]:
                return 200, {"data": [_json(adapter) for adapter in self.adapters]}
            case "POST", ["ops", "adapters"]:
                return self._add(body, query)
            case "GET", ["ops", "adapters", name]:
                return 200, _json(self._adapter(name))
            case "POST", ["ops", "adapters", name, "promote"]:
                asked = _parsed(PromoteBody, body)
                return self._changed(fake_routes.promoted(self.route, self._adapter(name).name, asked))
            case "POST", ["ops", "rollback"]:
                return self._changed(fake_routes.rolled_back(self.route, _parsed(RollbackBody, body)))
            case "PUT", ["ops", "split"]:
                return self._changed(fake_routes.split(self.route, _parsed(SplitBody, body)))
            case "GET", ["ops", "preferences"]:
                return 200, {"funnel": _json(self.funnel), "up_to_date": True, **fake_preferences.listed(query)}
            case "GET", ["ops", "quarantine"]:
                items = [item for item in self.quarantine.values() if query.get("status") in (None, item.status)]
                return 200, {"data": [_json(item) for item in items], "next": None}
            case "POST", ["ops", "quarantine", id, "release" | "drop" as word]:
                return 200, _json(fake_preferences.decided(self.quarantine, int(id), word))
            case "GET", ["ops", "preferences", "report"]:
                report = a_data_report(self.funnel, self.tags, 32)
                return 200, page(report) if query.get("as") == "html" else _json(report)
            case "POST", ["ops", "preferences", "import"]:
                return fake_exchange.imported(body, query)
            case "GET", ["ops", "audit"]:
                return 200, {"data": [_json(entry) for entry in self.audit]}
            case "GET", ["ops", "keys"]:
                return 200, {"data": [_json(key) for key in self.keys]}
            case "POST", ["ops", "keys"]:
                key = Key(id="ccc", role=Role(body["role"]), app=body["app"], limits=body.get("limits", {}))
                self.keys.append(key)
                return 201, {"key": _json(key), "secret": f"hel_{key.role}_ccc_{'s' * 43}"}
            case "DELETE", ["ops", "keys", id]:
                self.keys = [key for key in self.keys if key.id != id]
                return 204, None
            case "DELETE", ["ops", "users", user]:
                self.erased.append((user, query.get("app")))
                return 200, _json(self.erasure) if self.erasure else None
            case "GET", ["v1", "models"]:
                return 200, {"object": "list", "data": [{"id": name} for name in ("policy", "base", SECOND)]}
            case "POST", ["v1", "feedback"]:
                vote = _parsed(FeedbackBody, body)
                self.votes.append(vote)
                return 201, _json(FeedbackReceipt(feedback_id="fb-1", adapter=SECOND, effective=True))
        answer = fake_learning.answered(self.rounds, NOW, method, path, body)
        answer = answer or fake_evidence.answered(path, query, body, self.audit)
        if answer is None:
            raise NotFound(f"There is no {method} /{'/'.join(path)}.", code="route_not_found")
        return 200, answer

    def _status(self) -> dict[str, Any]:
        running = next((r for r in self.rounds.values() if not r.state.final), None)
        replica = self.replica or ReplicaStatus(
            replica="r-1", generation=2, stable=SECOND, wanted=(SECOND,), loaded=(FIRST, SECOND), in_flight={SECOND: 3}
        )
        return {
            "model": "seedling",
            "route": _json(self.route),
            "replicas": [_json(replica)],
            "running_round": None if running is None else _json(running),
            "funnel": _json(self.funnel),
        } | self.unusual

    def _start(self, body: RoundBody) -> tuple[int, Any]:
        if body.dry_run:
            needed = body.min_pairs or 32
            return 200, _json(fake_evidence.a_dry_run(self.funnel, self.tags, needed))
        for round in self.rounds.values():
            if not round.state.final:
                raise Conflict(f"Round {round.n} is {round.state}. Wait for it or cancel it.", code="round_running")
        n = len(self.rounds) + 1
        self.rounds[n] = a_round(n, note=body.note)
        return 202, _json(self.rounds[n])

    def _add(self, body: bytes, query: dict[str, str]) -> tuple[int, Any]:
        with tarfile.open(fileobj=io.BytesIO(body), mode="r:") as tar:
            self.received = {m.name: file.read() for m in tar if (file := tar.extractfile(m)) is not None}
        n = len(self.rounds) + 1
        candidate = Candidate(
            directory="/uploads/1", weights_sha256="e" * 64, name=None, parent=None,
            assumed_base=query.get("assume_base") == "true",
        )  # fmt: skip
        self.rounds[n] = a_round(n, note=query.get("note"), candidate=candidate)
        return 202, _json(self.rounds[n])

    def _round(self, n: str) -> Round:
        if not n.isdigit() or int(n) not in self.rounds:
            raise NotFound(f"There is no round {n}.", param="n", code="round_not_found")
        return self.rounds[int(n)]

    def _adapter(self, name: str) -> Adapter:
        found = [adapter for adapter in self.adapters if adapter.name == name]
        if not found:
            raise NotFound(f"There is no adapter '{name}'.", param="name", code="adapter_not_found")
        return found[0]

    def _changed(self, route: Route) -> tuple[int, Any]:
        self.route = route
        return 200, {"route": _json(self.route), "prepare_seconds": 1.25, "flip_seconds": 0.0421, "seconds": 1.2921}

    def stream(self, path: list[str], query: dict[str, str], body: Any) -> tuple[Iterable[bytes], int | None] | None:
        """The parts of a stream, and after how many of them it breaks; None where the answer is no stream."""
        match path:
            case ["ops", "rounds", n, "events"]:
                self._round(n)
                if self.outage:
                    self.outage -= 1
                    raise Unavailable("The Conductor starts.", code="starting")
                events = [event for event in self.events[int(n)] if event.seq > int(query.get("after", 0))]
                parts = [f"id: {e.seq}\nevent: {e.kind}\ndata: {e.model_dump_json()}\n\n".encode() for e in events]
                return parts, self.cuts.pop(0) if self.cuts else None
            case ["ops", "preferences", "export"]:
                return fake_exchange.exported(self.stored, query), self.cuts.pop(0) if self.cuts else None
            case ["v1", "chat", "completions"]:
                if body["model"] == "nobody":
                    raise NotFound("The model 'nobody' does not exist.", param="model", code="model_not_found")
                return self._chat(), self.cuts.pop(0) if self.cuts else None
        return None

    def _chat(self) -> list[bytes]:
        number = sum(path.endswith("completions") for _, path, _ in self.requests)
        deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
        deltas += [({"content": token}, None) for token in self.answer_tokens] + [({}, self.finish_reason)]
        chunks = [
            {
                "id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "model": SECOND,
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            }
            for delta, reason in deltas
        ]  # fmt: skip
        return [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks] + [b"data: [DONE]\n\n"]


class _Handler(BaseHTTPRequestHandler):
    """HTTP around the fake's answers: keys, JSON, chunked streams."""

    api: FakeApi
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        path = [unquote(part) for part in url.path.strip("/").split("/")]
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        content = fake_exchange.body(self.headers, self.rfile)
        body = json.loads(content) if self.headers.get_content_subtype() == "json" and content else content
        self.api.requests.append((self.command, self.path, body))
        try:
            self._authorize(path)
            streamed = self.api.stream(path, query, body) if path[-1] in ("events", "completions", "export") else None
            if streamed is not None:
                self._send_stream(*streamed)
            else:
                self._send_json(*self.api.answer(self.command, path, query, body))
        except HeliotropeError as error:
            self._send_json(error.status, error.body())

    do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815  (the names that http.server calls)

    def _authorize(self, path: list[str]) -> None:
        needed = {"v1": APP_KEY, "ops": OPERATOR_KEY}.get(path[0])
        shown = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        if needed is not None and shown != needed:
            if shown in (APP_KEY, OPERATOR_KEY):
                raise Forbidden("This call needs a key with another role.", code="insufficient_role")
            raise Unauthenticated("The API key is missing or not valid.", code="invalid_api_key")

    def _send_json(self, status: int, answer: Any) -> None:
        page = isinstance(answer, str)
        text = answer if page else json.dumps(answer, separators=(",", ":"), ensure_ascii=False)
        content = b"" if status == 204 else text.encode()
        self.api.last_text = content.decode()
        self.send_response(status)
        self.send_header("content-type", "text/html" if page else "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_stream(self, parts: Iterable[bytes], cut_after: int | None) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for i, part in enumerate(parts):
            if i == cut_after:
                self.wfile.write((CHUNK % (len(part), part))[: len(part) // 2])
                self.close_connection = True
                return
            self.wfile.write(CHUNK % (len(part), part))
        self.wfile.write(CHUNK % (0, b""))

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def _an_adapter(ordinal: int, name: str, parent: str) -> Adapter:
    return Adapter(
        name=name, ordinal=ordinal, parent=parent, round=ordinal, weights_sha256=str(ordinal) * 64,
        manifest_sha256="c" * 64, directory=f"/adapters/{name}", pair_digest="d" * 64, verdict=PASSED, created_at=NOW,
    )  # fmt: skip


def _parsed(contract: type[Body], body: Any) -> Body:
    try:
        return contract.model_validate(body)
    except pydantic.ValidationError as error:
        raise from_faults(error.errors()) from error


def _json(model: BaseModel) -> Any:
    return model.model_dump(mode="json")
