"""How long a key is known to be good, with the store and without it."""

from __future__ import annotations

import pytest

from service.contracts import Key, Role
from service.store import known_keys
from service.store.known_keys import EARLY_SECONDS, FRESH_SECONDS, OUTAGE_SECONDS, RETRY_SECONDS, KnownKeys

KEY = Key(id="k" * 12, role=Role.APP, app="shop")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(clock: Clock) -> KnownKeys:
    return KnownKeys(clock)


def test_a_key_is_fresh_for_a_while_and_then_asked_for_again(known: KnownKeys, clock: Clock) -> None:
    assert known.fresh("digest") is None
    known.learn("digest", KEY)
    clock.now += FRESH_SECONDS - 0.01
    assert known.fresh("digest") == KEY
    clock.now += 0.01
    assert known.fresh("digest") is None


def test_a_key_in_use_is_asked_for_again_before_anybody_has_to_wait(known: KnownKeys, clock: Clock) -> None:
    known.learn("digest", KEY)
    clock.now += FRESH_SECONDS - EARLY_SECONDS - 0.01
    assert not known.ages("digest")
    clock.now += 0.01
    assert known.ages("digest")
    assert known.fresh("digest") == KEY
    known.learn("digest", KEY)
    assert not known.ages("digest")
    clock.now += FRESH_SECONDS
    assert not known.ages("digest")  # it is too late for that
    assert not known.ages("of nobody")


def test_what_the_store_no_longer_knows_is_forgotten_also_without_it(known: KnownKeys) -> None:
    known.learn("digest", KEY)
    known.learn("digest", None)
    assert known.fresh("digest") is None
    assert known.without_store("digest") is None


def test_without_the_store_a_key_opens_for_a_bounded_time(known: KnownKeys, clock: Clock) -> None:
    known.learn("digest", KEY)
    clock.now += OUTAGE_SECONDS - 0.01
    assert known.fresh("digest") is None
    assert known.without_store("digest") == KEY
    clock.now += 0.01
    assert known.without_store("digest") is None


def test_while_the_store_is_away_it_is_asked_now_and_then(known: KnownKeys, clock: Clock) -> None:
    known.learn("digest", KEY)
    clock.now += FRESH_SECONDS
    known.without_store("digest")
    assert known.fresh("digest") == KEY
    assert not known.ages("digest")
    clock.now += RETRY_SECONDS
    assert known.fresh("digest") is None


def test_a_revoked_key_is_forgotten_by_its_id(known: KnownKeys) -> None:
    known.learn("digest", KEY)
    known.learn("other", KEY.model_copy(update={"id": "o" * 12}))
    known.forget(KEY.id)
    assert known.fresh("digest") is None
    assert known.fresh("other") is not None


def test_only_so_many_are_known_and_those_in_use_stay(known: KnownKeys) -> None:
    for number in range(known_keys.MOST):
        known.learn(str(number), KEY)
    assert known.fresh("0") == KEY
    known.learn("one more", KEY)
    assert known.fresh("0") == KEY
    assert known.fresh("1") is None
