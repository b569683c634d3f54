"""What one replica counts, for Prometheus: requests, tokens and times of each adapter, swaps, records, refusals.

Labels are bounded: adapters are those that are loaded, reasons are codes of ours, never a caller's text. The series of
an adapter that was unloaded are exposed once more and then dropped. Names carry their unit (`_seconds`, `_total`) and
begin with `heliotrope_`. The Conductor collects `expose()` of all replicas; `service/metrics/` lists all names.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.contracts import BASE, Outcome, ReplicaStatus
from serving.http_meter import HttpMeter, Words

MOST_RETIRED = 16  # adapters whose series are kept until they are exposed, if nobody asks for a long while
STORE_AWAY = "storage_unavailable"  # the code of a vote that could not be kept

# In seconds and tokens. A token of a small model on a CPU takes a millisecond, a long answer of a large one minutes.
_FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_NEXT_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
_REQUEST = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300)
_TOKENS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_SWAP = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WRITE = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 3)


class Meter:
    """One per replica. Every method is cheap and raises nothing."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self._registry = registry = CollectorRegistry()
        self.http = HttpMeter(registry)
        self.last_token_at = float("-inf")  # in `time.monotonic` seconds; as far as it was told
        self._loaded = {BASE}
        self._retired: dict[str, None] = {}  # adapters to drop, in the order in which they were unloaded
        self._reasons = Words()
        self._requests = Counter(
            "heliotrope_chat_requests", "That reached the engine.", ["adapter", "outcome"], registry=registry
        )
        self._refused = Counter("heliotrope_requests_rejected", "Before the engine.", ["reason"], registry=registry)
        self._tokens = Counter(
            "heliotrope_chat_tokens", "Read (prompt) and written (answer).", ["adapter", "direction"], registry=registry
        )
        self._first_token = self._histogram("time_to_first_token_seconds", "From arrival.", _FIRST_TOKEN)
        self._next_token = self._histogram("inter_token_seconds", "Between parts of a stream.", _NEXT_TOKEN)
        self._request_seconds = self._histogram("request_duration_seconds", "From arrival to the end.", _REQUEST)
        self._answer_tokens = self._histogram("answer_tokens", "Of each choice of a finished answer.", _TOKENS)
        self._swap_seconds = Histogram(
            "heliotrope_adapter_swap_duration_seconds",
            "Phases of swaps on this replica.",
            ["phase", "outcome"],
            buckets=_SWAP,
            registry=registry,
        )
        self._write_seconds = Histogram(
            "heliotrope_store_write_duration_seconds",
            "Until a record was durable.",
            ["what"],
            buckets=_WRITE,
            registry=registry,
        )
        self._store_errors = Counter(
            "heliotrope_store_errors", "Records that the store could not take.", ["kind"], registry=registry
        )
        self._logged = Counter(
            "heliotrope_completions_logged", "Recorded, so that they can be rated.", ["outcome"], registry=registry
        )
        self._unlogged = Counter(
            "heliotrope_completions_unlogged", "Answered without a record; nobody can vote on them.", registry=registry
        )
        self._votes = Counter(
            "heliotrope_feedback_received", "Votes, and what became of them.", ["kind", "outcome"], registry=registry
        )
        self._adapter = Gauge("heliotrope_adapter_loaded", "1 while it is.", ["adapter"], registry=registry)
        self._in_flight = Gauge("heliotrope_inflight_requests", "Being answered.", ["adapter"], registry=registry)
        self._waiting = Gauge("heliotrope_waiting_requests", "For a place in the engine.", registry=registry)
        self._generation = Gauge("heliotrope_replica_route_generation", "That it serves.", registry=registry)
        self._of_adapters = (
            *(self._requests, self._tokens, self._first_token, self._next_token, self._request_seconds),
            *(self._answer_tokens, self._adapter, self._in_flight),
        )

    # --- requests -----------------------------------------------------------------------------------

    def refused(self, code: str) -> None:
        """A request was turned away before the engine; `code` is ours and never a caller's text."""
        self._refused.labels(self._reasons.bounded(code)).inc()

    def first_token(self, adapter: str, seconds: float) -> None:
        self.last_token_at = time.monotonic()
        self._first_token.labels(self._seen(adapter)).observe(seconds)

    def next_tokens(self, adapter: str, seconds: Sequence[float]) -> None:
        """Of several parts of a stream, each since the part before; finding the series costs more than counting in it."""
        self.last_token_at = time.monotonic()
        series = self._next_token.labels(self._seen(adapter))
        for gap in seconds:
            series.observe(gap)

    def ended(
        self, adapter: str, outcome: Outcome, seconds: float, *, prompt_tokens: int, answer_tokens: tuple[int, ...]
    ) -> None:
        """A request that reached the engine is over. `answer_tokens`: of each choice."""
        self._seen(adapter)
        self._requests.labels(adapter, outcome).inc()
        self._request_seconds.labels(adapter).observe(seconds)
        self._tokens.labels(adapter, "prompt").inc(prompt_tokens)
        self._tokens.labels(adapter, "answer").inc(sum(answer_tokens))
        if outcome == "finished":
            for tokens in answer_tokens:
                self._answer_tokens.labels(adapter).observe(tokens)

    # --- records and votes --------------------------------------------------------------------------

    def recorded(self, outcome: Outcome, seconds: float, *, durable: bool) -> None:
        """The record of a completion was written; not durable: the store could not take it."""
        if durable:
            self._logged.labels(outcome).inc()
            self._write_seconds.labels("completion").observe(seconds)
            return
        self._store_errors.labels("completion").inc()
        if outcome == "finished":
            self._unlogged.inc()

    def voted(self, kind: str, outcome: str, seconds: float) -> None:
        """`kind` of the vote; `outcome`: new, repeated, or the code of ours with which it was refused."""
        self._votes.labels(kind, outcome).inc()
        if outcome == "new":
            self._write_seconds.labels("feedback").observe(seconds)
        if outcome == STORE_AWAY:
            self._store_errors.labels("feedback").inc()

    # --- adapters -----------------------------------------------------------------------------------

    def swapped(self, phase: Literal["prepare", "flip"], seconds: float, *, ok: bool) -> None:
        self._swap_seconds.labels(phase, "ok" if ok else "failed").observe(seconds)

    def loaded(self, adapter: str) -> None:
        self._loaded.add(adapter)
        self._retired.pop(adapter, None)
        self._adapter.labels(adapter).set(1)

    def unloaded(self, adapter: str) -> None:
        self._loaded.discard(adapter)
        self._adapter.labels(adapter).set(0)
        self._retire(adapter)

    # --- what comes out -----------------------------------------------------------------------------

    def expose(self, status: ReplicaStatus) -> str:
        """All of it in Prometheus' text format, with how the replica stands now."""
        for adapter in self._loaded:
            self._in_flight.labels(adapter).set(status.in_flight.get(adapter, 0))
        self._waiting.set(status.waiting)
        self._generation.set(status.generation)
        text = generate_latest(self._registry).decode()
        for adapter in tuple(self._retired):
            self._drop(adapter)
        return text

    def _histogram(self, name: str, said: str, buckets: tuple[float, ...]) -> Histogram:
        """Of a chat, for each adapter."""
        return Histogram(f"heliotrope_chat_{name}", said, ["adapter"], buckets=buckets, registry=self._registry)

    def _seen(self, adapter: str) -> str:
        """What is counted of an adapter that was unloaded a moment ago makes its series anew, and they must go again."""
        if adapter not in self._loaded:
            self._retire(adapter)
        return adapter

    def _retire(self, adapter: str) -> None:
        self._retired[adapter] = None
        while len(self._retired) > MOST_RETIRED:
            self._drop(next(iter(self._retired)))

    def _drop(self, adapter: str) -> None:
        del self._retired[adapter]
        for metric in self._of_adapters:
            metric.remove_by_labels({"adapter": adapter})
