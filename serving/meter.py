"""What one replica counts, for Prometheus: requests, tokens and times of each adapter, swaps, refusals.

Labels are bounded: adapters are those of the last few routes, reasons are codes of ours, never a caller's text. Names
carry units (`_seconds`, `_total`) and begin with `heliotrope_`. The Conductor collects `expose()` of all replicas.
"""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.contracts import Outcome


class Meter:
    """One per replica. Every method is cheap and raises nothing."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "heliotrope_requests", "Answered requests.", ["adapter", "outcome"], registry=self._registry
        )
        self._refused = Counter("heliotrope_requests_refused", "By error code.", ["code"], registry=self._registry)
        self._tokens = Counter("heliotrope_tokens", "Of requests.", ["adapter", "direction"], registry=self._registry)
        self._first_token = Histogram(
            "heliotrope_time_to_first_token_seconds", "From arrival.", ["adapter"], registry=self._registry
        )
        self._next_token = Histogram(
            "heliotrope_inter_token_seconds", "Between parts of a stream.", ["adapter"], registry=self._registry
        )
        self._request_seconds = Histogram(
            "heliotrope_request_seconds", "From arrival to the end.", ["adapter"], registry=self._registry
        )
        self._swap_seconds = Histogram(
            "heliotrope_swap_seconds", "Phases of swaps.", ["phase", "outcome"], registry=self._registry
        )
        self._adapter = Gauge("heliotrope_adapter_info", "1 while it is loaded.", ["adapter"], registry=self._registry)

    def refused(self, code: str) -> None:
        """A request was turned away before the engine; `code` is ours and never a caller's text."""
        self._refused.labels(code).inc()

    def first_token(self, adapter: str, seconds: float) -> None:
        self._first_token.labels(adapter).observe(seconds)

    def next_token(self, adapter: str, seconds: float) -> None:
        """Since the part of the stream before."""
        self._next_token.labels(adapter).observe(seconds)

    def ended(
        self, adapter: str, outcome: Outcome, seconds: float, *, prompt_tokens: int, answer_tokens: tuple[int, ...]
    ) -> None:
        """A request that reached the engine is over. `answer_tokens`: of each choice."""
        self._requests.labels(adapter, outcome).inc()
        self._request_seconds.labels(adapter).observe(seconds)
        self._tokens.labels(adapter, "prompt").inc(prompt_tokens)
        self._tokens.labels(adapter, "answer").inc(sum(answer_tokens))

    def swapped(self, phase: Literal["prepare", "flip"], seconds: float, *, ok: bool) -> None:
        self._swap_seconds.labels(phase, "ok" if ok else "failed").observe(seconds)

    def loaded(self, adapter: str) -> None:
        self._adapter.labels(adapter).set(1)

    def unloaded(self, adapter: str) -> None:
        self._adapter.remove(adapter)

    def expose(self) -> str:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry).decode()
