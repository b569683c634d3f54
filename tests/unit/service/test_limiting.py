"""How much one key may ask for on one replica, and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from service.contracts import Key, Role
from service.errors import TooManyRequests
from service.limiting import limiter
from service.limiting.buckets import Bucket
from service.limiting.limiter import Limiter
from service.limiting.settings import LimitSettings


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(id: str = "a", **limits: int) -> Key:
    return Key(id=id, role=Role.APP, app="shop", limits=LimitSettings(**limits))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def made(clock: Clock) -> Callable[..., Limiter]:
    return lambda replicas=1, **limits: Limiter(LimitSettings(**limits), replicas, clock)


def refusal(limiter: Limiter, who: Key) -> TooManyRequests:
    with pytest.raises(TooManyRequests) as refused:
        limiter.admit(who)
    assert refused.value.code == "rate_limited"
    return refused.value


def test_without_limits_everything_is_admitted_and_nothing_is_said(made: Callable[..., Limiter]) -> None:
    open_to_all = made()
    for _ in range(1000):
        assert open_to_all.admit(key()).headers == {}


def test_requests_come_back_at_a_steady_rate(made: Callable[..., Limiter], clock: Clock) -> None:
    door = made(requests_per_minute=60)
    for _ in range(60):
        door.admit(key()).used(0)
    refused = refusal(door, key())
    assert "60 requests a minute" in str(refused)
    assert refused.headers["retry-after"] == "1"
    clock.now += 1.0
    door.admit(key()).used(0)
    refusal(door, key())
    clock.now += 3600
    for _ in range(60):
        door.admit(key()).used(0)
    refusal(door, key())


def test_tokens_are_charged_when_they_are_known_and_a_debt_is_paid_off(
    made: Callable[..., Limiter], clock: Clock
) -> None:
    door = made(tokens_per_minute=600)  # 10 a second
    first, second = door.admit(key()), door.admit(key())
    assert first.headers["x-ratelimit-remaining-tokens"] == "600"
    first.used(500)
    second.used(300)
    refused = refusal(door, key())
    assert "600 tokens a minute" in str(refused)
    assert refused.headers["retry-after"] == "21"
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    assert refused.headers["x-ratelimit-reset-tokens"] == "80.000s"
    clock.now += 20
    refusal(door, key())
    clock.now += 1
    assert door.admit(key()).headers["x-ratelimit-remaining-tokens"] == "10"


def test_requests_at_once_are_counted_until_they_are_over(made: Callable[..., Limiter]) -> None:
    door = made(concurrent_requests=2)
    first, _ = door.admit(key()), door.admit(key())
    refused = refusal(door, key())
    assert "2 requests at once" in str(refused)
    assert refused.headers == {
        "retry-after": "1",
        "x-ratelimit-limit-concurrent": "2",
        "x-ratelimit-remaining-concurrent": "0",
    }
    first.used(0)
    door.admit(key())


def test_what_is_refused_is_not_charged(made: Callable[..., Limiter], clock: Clock) -> None:
    door = made(requests_per_minute=60, concurrent_requests=1)
    running = door.admit(key())
    for _ in range(100):
        refusal(door, key())
    running.used(0)
    assert door.admit(key()).headers["x-ratelimit-remaining-requests"] == "58"


def test_one_key_takes_nothing_from_another_and_its_own_limits_come_first(made: Callable[..., Limiter]) -> None:
    door = made(requests_per_minute=1, concurrent_requests=100)
    door.admit(key("a"))
    refusal(door, key("a"))
    door.admit(key("b"))
    generous = key("c", requests_per_minute=10)
    headers = [door.admit(generous).headers for _ in range(10)][-1]
    assert headers["x-ratelimit-limit-requests"] == "10"
    assert headers["x-ratelimit-limit-concurrent"] == "100"
    refusal(door, generous)


def test_a_limit_that_is_changed_holds_from_then_on(made: Callable[..., Limiter]) -> None:
    door = made(requests_per_minute=10)
    for _ in range(5):
        door.admit(key())
    assert door.admit(key(requests_per_minute=100)).headers["x-ratelimit-remaining-requests"] == "94"
    refusal(door, key(requests_per_minute=4))


def test_each_replica_gives_its_share_and_says_so(made: Callable[..., Limiter]) -> None:
    door = made(replicas=4, requests_per_minute=8, concurrent_requests=2)
    first = door.admit(key())
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-limit-concurrent"] == "1", "less than one would be none"
    assert "of which this replica gives 1/4" in str(refusal(door, key()))


def test_a_share_of_less_than_one_is_one_and_comes_back_slowly(made: Callable[..., Limiter], clock: Clock) -> None:
    door = made(replicas=10, requests_per_minute=1)
    door.admit(key())
    assert refusal(door, key()).headers["retry-after"] == "600"
    clock.now += 600
    door.admit(key())


def test_only_so_many_keys_are_remembered_and_never_is_one_forgotten_that_runs(
    made: Callable[..., Limiter],
) -> None:
    door = made(concurrent_requests=1)
    running = door.admit(key("runs"))
    for number in range(limiter.MOST_KEYS + 10):
        door.admit(key(str(number))).used(0)
    assert len(door._accounts) == limiter.MOST_KEYS
    refusal(door, key("runs"))
    running.used(0)


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    bucket = Bucket.full(60, 1000.0)
    bucket.take(60)
    bucket.fill(500.0)
    assert bucket.level == 0
    bucket.fill(1001.0)
    assert bucket.level == pytest.approx(1.0)


@pytest.mark.parametrize("limits", [{"requests_per_minute": 0}, {"tokens_per_minute": -1}, {"concurrency": 1}], ids=str)
def test_a_limit_is_at_least_one_and_known(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        LimitSettings(**limits)
