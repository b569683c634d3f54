"""May this key ask now? Counts requests, tokens and requests at once for each key. In memory: one per replica.

A replica knows nothing of the others and enforces its share, the limit divided by their number. So a key that always
meets the same replica gets less than its limit, and no key gets more; with several replicas at least one request at once.
Tokens are charged when an answer has ended and both its prompt and its choices are counted: a key is let in while it has
any left, may overdraw by what is under way, and then waits until that is paid off.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from service.contracts import Key
from service.errors import TooManyRequests
from service.limiting.buckets import Bucket
from service.limiting.settings import LimitSettings

MOST_KEYS = 4096  # whose use is remembered; the ones that asked for nothing for longest are forgotten first


@dataclass
class _Account:
    """What one key has used of late. Of what is not limited nothing is kept."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    most_at_once: int | None = None
    running: int = 0


@dataclass
class Grant:
    """Leave to ask once."""

    headers: Mapping[str, str]
    _account: _Account = field(repr=False)

    def used(self, tokens: int) -> None:
        """The request is over. Called once."""
        self._account.running -= 1
        if self._account.tokens is not None:
            self._account.tokens.take(tokens)


class Limiter:
    def __init__(self, settings: LimitSettings, replicas: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._replicas = replicas
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()  # by the key's id

    def admit(self, key: Key) -> Grant:
        """Raises `TooManyRequests`, which names the limit and says when to come again; then nothing is charged."""
        account, limits = self._account(key)
        self._require_room(account, limits)
        account.running += 1
        if account.requests is not None:
            account.requests.take(1)
        return Grant(_headers(account), account)

    def _account(self, key: Key) -> tuple[_Account, LimitSettings]:
        limits, now = self._settings.overridden_by(key.limits), self._clock()
        account = self._accounts.setdefault(key.id, _Account())
        self._accounts.move_to_end(key.id)
        account.requests = self._bucket(account.requests, limits.requests_per_minute, now)
        account.tokens = self._bucket(account.tokens, limits.tokens_per_minute, now)
        at_once = limits.concurrent_requests
        account.most_at_once = None if at_once is None else max(at_once // self._replicas, 1)
        if len(self._accounts) > MOST_KEYS:
            self._forget_one()
        return account, limits

    def _bucket(self, bucket: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
        if per_minute is None:
            return None
        share = per_minute / self._replicas
        if bucket is None:
            return Bucket.full(share, now)
        bucket.fill(now)
        bucket.limit_to(share)
        return bucket

    def _require_room(self, account: _Account, limits: LimitSettings) -> None:
        if account.most_at_once is not None and account.running >= account.most_at_once:
            raise self._refusal(f"{limits.concurrent_requests} requests at once", 1.0, account)
        if account.requests is not None and account.requests.level < 1:
            seconds = account.requests.seconds_until(1)
            raise self._refusal(f"{limits.requests_per_minute} requests a minute", seconds, account)
        if account.tokens is not None and account.tokens.level <= 0:
            seconds = account.tokens.seconds_until(1)
            raise self._refusal(f"{limits.tokens_per_minute} tokens a minute", seconds, account)

    def _refusal(self, limit: str, seconds: float, account: _Account) -> TooManyRequests:
        retry_after = max(math.ceil(seconds), 1)
        share = "" if self._replicas == 1 else f", of which this replica gives 1/{self._replicas}"
        return TooManyRequests(
            f"This key may have {limit}{share}. Try again in {retry_after} seconds.",
            retry_after_seconds=retry_after,
            headers=_headers(account),
        )

    def _forget_one(self) -> None:
        for id, account in self._accounts.items():
            if not account.running:
                del self._accounts[id]
                return


def _headers(account: _Account) -> dict[str, str]:
    """As OpenAI names them, and ours for requests at once. They speak of this replica's share."""
    headers: dict[str, str] = {}
    for name, bucket in (("requests", account.requests), ("tokens", account.tokens)):
        if bucket is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(math.floor(bucket.capacity))
            headers[f"x-ratelimit-remaining-{name}"] = str(bucket.remaining)
            headers[f"x-ratelimit-reset-{name}"] = f"{bucket.seconds_until(bucket.capacity):.3f}s"
    if account.most_at_once is not None:
        headers["x-ratelimit-limit-concurrent"] = str(account.most_at_once)
        headers["x-ratelimit-remaining-concurrent"] = str(max(account.most_at_once - account.running, 0))
    return headers
