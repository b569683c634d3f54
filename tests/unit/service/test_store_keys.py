from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import Engine, select

from service.contracts import Role
from service.errors import BadRequest, NotFound
from service.limiting.settings import LimitSettings
from service.postgres.line import Row
from service.postgres.sessions import Sessions
from service.store.keys import Keys
from service.store.known_keys import EARLY_SECONDS, FRESH_SECONDS, KnownKeys
from service.store.store import Store
from service.store.tables import keys


class CountingSessions(Sessions):
    reads = 0

    async def read(self, query: bytes, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        rows = await super().read(query, parameters)
        self.reads += 1
        return rows


@pytest.mark.parametrize("role", Role)
async def test_an_issued_key_is_recognised_with_its_role_and_app(store: Store, role: Role) -> None:
    key, presented = await store.keys.issue(role, "shop")
    assert (key.role, key.app) == (role, "shop")
    assert await store.keys.verify(presented) == key


async def test_a_key_keeps_the_limits_it_was_issued_with(store: Store) -> None:
    limits = LimitSettings(requests_per_minute=7, concurrent_requests=2)
    key, presented = await store.keys.issue(Role.APP, "shop", limits)
    assert key.limits == limits
    assert await store.keys.verify(presented) == key
    assert await store.keys.list() == (key,)


async def test_a_key_names_its_role_and_id_and_holds_256_random_bits(store: Store) -> None:
    key, presented = await store.keys.issue(Role.OPERATOR, "ops")
    assert re.fullmatch(rf"hel_operator_{key.id}_[A-Za-z0-9_-]{{43}}", presented)


async def test_the_secret_is_nowhere_in_the_database(store: Store, database_engine: Engine) -> None:
    _, presented = await store.keys.issue(Role.APP, "shop")
    with database_engine.connect() as connection:
        row = connection.execute(select(keys)).one()
    secret = presented.split("_", 3)[3]
    assert all(secret not in str(value) for value in row)


async def test_a_key_that_was_made_elsewhere_is_let_in_once(store: Store) -> None:
    made = f"hel_operator_0123456789ab_{'x' * 43}"
    await store.keys.adopt(Role.OPERATOR, "first", made)
    await store.keys.adopt(Role.OPERATOR, "first", made)
    key = await store.keys.verify(made)
    assert key is not None
    assert (key.role, key.app) == (Role.OPERATOR, "first")
    assert await store.keys.list() == (key,)


@pytest.mark.parametrize("made", ["", "secret", f"hel_app_0123456789ab_{'x' * 43}", f"hel_operator_1_{'x' * 43}"])
async def test_what_has_not_a_keys_form_is_not_let_in(store: Store, made: str) -> None:
    with pytest.raises(BadRequest, match=r"server\.first_keys\.operator: .* reads hel_operator_"):
        await store.keys.adopt(Role.OPERATOR, "first", made)
    assert await store.keys.list() == ()


async def test_every_other_text_opens_nothing(store: Store) -> None:
    _, presented = await store.keys.issue(Role.APP, "shop")
    _, other = await store.keys.issue(Role.APP, "shop")
    flipped = presented[:-1] + ("A" if presented[-1] != "A" else "B")
    swapped_role = presented.replace("hel_app_", "hel_operator_")
    swapped_secret = "_".join([*presented.split("_", 3)[:3], other.split("_", 3)[3]])
    unknown_id = "_".join(["hel", "app", "0" * 12, presented.split("_", 3)[3]])
    malformed = ["", "hel_app", presented + "x", presented + "\n", "\0", "hel_app_\ud800", "ключ"]
    for text in [flipped, swapped_role, swapped_secret, unknown_id, *malformed]:
        assert await store.keys.verify(text) is None


async def test_a_revoked_key_opens_nothing_and_is_not_listed(store: Store) -> None:
    key, presented = await store.keys.issue(Role.APP, "shop")
    kept, _ = await store.keys.issue(Role.OPERATOR, "ops")
    await store.keys.revoke(key.id)
    await store.keys.revoke(key.id)
    assert await store.keys.verify(presented) is None
    assert await store.keys.list() == (kept,)


async def test_revoking_an_unknown_key_says_so(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.keys.revoke("no-such-key")


async def test_a_key_that_another_process_revoked_soon_opens_nothing_here_either(
    store: Store, database_url: str
) -> None:
    now = 0.0
    sessions = Sessions(database_url)
    here = Keys(sessions, KnownKeys(lambda: now))
    key, presented = await store.keys.issue(Role.APP, "shop")
    assert await here.verify(presented) == key
    await store.keys.revoke(key.id)
    now += FRESH_SECONDS
    assert await here.verify(presented) is None
    now -= FRESH_SECONDS
    assert await here.verify(presented) is None
    await sessions.close()


async def test_many_who_present_the_same_key_at_once_ask_the_database_once(store: Store, database_url: str) -> None:
    """A wave of requests after a pause would else take every connection."""
    sessions = CountingSessions(database_url)
    here = Keys(sessions)
    key, presented = await store.keys.issue(Role.APP, "shop")
    found = await asyncio.gather(*(here.verify(presented) for _ in range(32)))
    await sessions.close()
    assert found == [key] * 32
    assert sessions.reads == 1


async def test_a_key_in_use_is_asked_for_again_while_it_opens(store: Store, database_url: str) -> None:
    """Else whoever comes first after `FRESH_SECONDS` would wait for the database, every time."""
    now = 0.0
    sessions = CountingSessions(database_url)
    here = Keys(sessions, KnownKeys(lambda: now))
    key, presented = await store.keys.issue(Role.APP, "shop")
    assert await here.verify(presented) == key
    for reads in range(2, 5):
        now += FRESH_SECONDS - EARLY_SECONDS
        assert [await here.verify(presented) for _ in range(3)] == [key] * 3
        assert sessions.reads == reads - 1, "who presents it does not wait"
        await here.close()
        assert sessions.reads == reads
        assert await here.verify(presented) == key
        assert sessions.reads == reads
    await store.keys.revoke(key.id)
    now += FRESH_SECONDS - EARLY_SECONDS
    assert await here.verify(presented) == key
    await here.close()
    assert await here.verify(presented) is None
    await sessions.close()


async def test_one_who_gives_up_waiting_takes_the_answer_from_nobody(store: Store, database_url: str) -> None:
    sessions = Sessions(database_url)
    here = Keys(sessions)
    key, presented = await store.keys.issue(Role.APP, "shop")
    first, second = (asyncio.create_task(here.verify(presented)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == key
    await sessions.close()
