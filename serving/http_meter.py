"""What one HTTP application counts: requests by route and status, how long they took, how large they were.

Routes are the application's own templates, never a path that a caller made up: labels stay as few as the routes are.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

UNKNOWN_ROUTE = "none"  # no route matched
OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

MOST_REASONS = 64  # codes of errors that are told apart

_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BYTES = (256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 64 << 20)


class Words:
    """What may be a label: the first few of them that come, and `other` for the rest."""

    def __init__(self, most: int = MOST_REASONS) -> None:
        self._most = most
        self._known: set[str] = set()

    def bounded(self, word: str) -> str:
        if word not in self._known and len(self._known) >= self._most:
            return OTHER
        self._known.add(word)
        return word


class HttpMeter:
    """One per application. `registry` is what it is exposed with."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "heliotrope_http_requests", "Answered, by status.", ["route", "method", "code"], registry=registry
        )
        self._seconds = Histogram(
            "heliotrope_http_request_duration_seconds",
            "Until the last byte of the answer was sent.",
            ["route", "method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._bytes = Histogram(
            "heliotrope_http_request_body_bytes", "Of the body that came.", ["route"], buckets=_BYTES, registry=registry
        )
        self._gone = Counter(
            "heliotrope_client_disconnects", "Clients that left before the answer ended.", ["route"], registry=registry
        )

        self._reasons = Words()
        self._errors = Counter(
            "heliotrope_http_errors", "By the code in their body.", ["route", "reason"], registry=registry
        )
        self._strangers = Counter(
            "heliotrope_auth_failures", "Calls without the key they need.", ["reason"], registry=registry
        )

    def answered(
        self, route: str | None, method: str, code: int, seconds: float, body_bytes: int, reason: str | None = None
    ) -> None:
        """`route`: its template; None: none matched. `reason`: the code of ours in the body of an error."""
        route, method = route or UNKNOWN_ROUTE, method if method in METHODS else OTHER
        self._requests.labels(route, method, str(code)).inc()
        self._seconds.labels(route, method).observe(seconds)
        self._bytes.labels(route).observe(body_bytes)
        if reason is not None:
            reason = self._reasons.bounded(reason)
            self._errors.labels(route, reason).inc()
            if code in (401, 403):
                self._strangers.labels(reason).inc()

    def disconnected(self, route: str | None) -> None:
        self._gone.labels(route or UNKNOWN_ROUTE).inc()
