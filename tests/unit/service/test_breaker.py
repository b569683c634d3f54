"""Who waits for a database that does not answer: one, and nobody after that."""

from __future__ import annotations

import pytest

from service.errors import Unavailable
from service.postgres.breaker import Breaker
from tests.fakes import until

AWAY = Unavailable("The database does not answer.", code="storage_unavailable")


class Database:
    """Answers a probe, or does not."""

    def __init__(self) -> None:
        self.here = False
        self.probes = 0

    async def probe(self) -> None:
        self.probes += 1
        if not self.here:
            raise AWAY


async def test_it_refuses_from_the_first_failure_until_a_probe_comes_through() -> None:
    database = Database()
    breaker = Breaker(database.probe)
    breaker.check()
    breaker.trip(AWAY)
    with pytest.raises(Unavailable) as refused:
        breaker.check()
    assert (refused.value.message, refused.value.code) == (AWAY.message, AWAY.code)
    await until(lambda: database.probes == 2)
    assert breaker.open
    database.here = True
    await until(lambda: not breaker.open)
    breaker.check()
    assert database.probes == 3


async def test_many_failures_at_once_are_one_outage() -> None:
    database = Database()
    breaker = Breaker(database.probe)
    for _ in range(10):
        breaker.trip(AWAY)
    database.here = True
    await until(lambda: not breaker.open)
    assert database.probes == 1


async def test_it_opens_again_at_the_next_outage() -> None:
    database = Database()
    database.here = True
    breaker = Breaker(database.probe)
    for _ in range(2):
        breaker.trip(AWAY)
        assert breaker.open
        await until(lambda: not breaker.open)


async def test_when_it_is_closed_for_good_nobody_probes_any_more() -> None:
    database = Database()
    breaker = Breaker(database.probe)
    breaker.trip(AWAY)
    await breaker.close()
    assert not breaker.open
    assert database.probes == 0
