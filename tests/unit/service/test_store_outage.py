"""What callers get while the database is away, locked or full of others, and that it all works again by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from sqlalchemy import Engine, make_url, text

from service.contracts import Role
from service.errors import Unavailable
from service.journal import StoreJournal
from service.postgres.embedded import EmbeddedDatabase
from service.postgres.sessions import BURST_CONNECTIONS, POOL_CONNECTIONS, Sessions
from service.store.database import migrate
from service.store.store import Store
from serving.contracts import Completion
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.fakes import FakeEngine, until
from tests.small_service import Refusal, SmallService, client, refusal

HELLO: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hello"}]}
AWAY = Refusal(503, "storage_unavailable")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedDatabase]:
    """One that these tests stop and start."""
    server = EmbeddedDatabase(tmp_path_factory.mktemp("mortal"))
    server.start()
    migrate(server.url)
    yield server
    server.stop()


@pytest.fixture
async def mortal(server: EmbeddedDatabase) -> AsyncIterator[Store]:
    server.start()
    store = Store(server.url)
    yield store
    await store.close()


async def _back(store: Store) -> None:
    """Waits until the store works again, as it does by itself."""
    while True:
        try:
            return await store.ping()
        except Unavailable:
            await asyncio.sleep(0.01)


# --- the service --------------------------------------------------------------------------------------


@pytest.fixture
async def small(mortal: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(mortal, tmp_path)


async def test_chat_goes_on_and_says_what_cannot_be_rated(small: SmallService, server: EmbeddedDatabase) -> None:
    """With OpenAI's own client, which knows nothing of the mark."""
    _, key = await small.store.keys.issue(Role.APP, "shop")
    http = client(small.chat_app(), None)
    same: Any = http  # it asks for a class that only has another name
    plain = AsyncOpenAI(base_url="http://heliotrope", api_key=key, http_client=same, max_retries=0)

    async def streamed() -> list[Any]:
        return [chunk async for chunk in await plain.chat.completions.create(**HELLO, stream=True)]

    rated = await plain.chat.completions.with_raw_response.create(**HELLO)
    assert "x-heliotrope-rateable" not in rated.headers
    before = await streamed()

    server.stop()
    unrated = await plain.chat.completions.with_raw_response.create(**HELLO)
    assert unrated.headers["x-heliotrope-rateable"] == "false"
    assert unrated.parse().model_extra == {"rateable": False}
    assert unrated.parse().choices[0].message.content == rated.parse().choices[0].message.content
    *chunks, last = await streamed()
    assert last.model_extra == {"rateable": False}
    assert not any(chunk.model_extra for chunk in (*chunks, *before))
    words = [[chunk.choices[0].delta.content for chunk in stream] for stream in (before, [*chunks, last])]
    assert words[0] == words[1]
    assert small.replica.status().unlogged == 2

    server.start()
    await _back(small.store)
    again = await plain.chat.completions.with_raw_response.create(**HELLO)
    assert "x-heliotrope-rateable" not in again.headers
    votes = [
        (await http.post("/feedback", json={"completion_id": answer.parse().id, "rating": "up"},
                         headers={"authorization": f"Bearer {key}"})).status_code
        for answer in (rated, unrated, again)
    ]  # fmt: skip
    assert votes == [201, 404, 201]
    await plain.close()


async def test_votes_and_imports_are_refused_and_nothing_is_half_done(
    small: SmallService, server: EmbeddedDatabase
) -> None:
    app, operator = await small.app(), await small.operator()
    id = (await app.post("/chat/completions", json=HELLO)).json()["id"]
    assert (await operator.get("/ops/audit")).status_code == 200
    server.stop()
    vote = {"completion_id": id, "rating": "up", "feedback_id": "once"}
    line = b'{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}\n'
    answers = [
        await app.post("/feedback", json=vote),
        await operator.post("/ops/preferences/import", content=line),
        await operator.get("/ops/audit"),
    ]
    for answer in answers:
        assert refusal(answer) == AWAY
        assert answer.headers["retry-after"] == "1"
    server.start()
    await _back(small.store)
    assert (await app.post("/feedback", json=vote)).status_code == 201
    imported = await operator.post("/ops/preferences/import", content=line)
    assert (imported.status_code, imported.json()["added"]) == (200, 1)


async def test_a_key_that_nobody_saw_before_opens_nothing(small: SmallService, server: EmbeddedDatabase) -> None:
    app = await small.app()
    server.stop()
    assert refusal(await app.post("/chat/completions", json=HELLO)) == AWAY
    server.start()
    await _back(small.store)
    assert (await app.post("/chat/completions", json=HELLO)).status_code == 200


async def test_where_chat_is_to_be_refused_no_token_is_generated(
    mortal: Store, tmp_path: Path, server: EmbeddedDatabase
) -> None:
    engine = FakeEngine()
    replica = Replica("one", engine, StoreJournal(mortal, "refuse"), tmp_path, ServingSettings())
    small = await SmallService.start(mortal, tmp_path)
    small.host.replicas["one"] = replica
    await replica.start()
    app = await small.app()
    assert (await app.post("/chat/completions", json=HELLO)).status_code == 200
    server.stop()
    engine.dead = True  # so that asking it would be a 500
    for stream in (False, True):
        assert refusal(await app.post("/chat/completions", json=HELLO | {"stream": stream})) == AWAY
    assert replica.status().unlogged == 0


async def test_while_it_is_known_to_be_away_nobody_waits_for_a_connection(
    mortal: Store, server: EmbeddedDatabase
) -> None:
    await mortal.ping()
    server.stop()
    with pytest.raises(Unavailable):
        await mortal.ping()
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(1000):
        with pytest.raises(Unavailable):
            await mortal.reach()
    assert loop.time() - began < 1


# --- the connection -----------------------------------------------------------------------------------


def _with(url: str, **options: str) -> str:
    settings = " ".join(f"-c {name}={value}" for name, value in options.items())
    return make_url(url).update_query_dict({"options": settings}).render_as_string(hide_password=False)


async def test_a_locked_table_is_a_clean_refusal_and_no_more(
    store: Store, database_url: str, database_engine: Engine, make_completion: Callable[..., Completion]
) -> None:
    impatient = Store(_with(database_url, lock_timeout="100ms"))
    with database_engine.connect() as connection:
        connection.execute(text("LOCK TABLE completions"))
        for _ in range(2):
            with pytest.raises(Unavailable, match="lock timeout"):
                await impatient.completions.record(make_completion("chatcmpl-1"))
    await impatient.completions.record(make_completion("chatcmpl-1"))
    await impatient.close()


async def test_every_connection_gives_up_what_takes_too_long(database_url: str) -> None:
    sessions = Sessions(database_url)
    async with sessions.transaction() as connection:
        shown = [
            (await connection.exec_driver_sql(f"SHOW {name}")).scalar()
            for name in ("lock_timeout", "statement_timeout")
        ]
    async with sessions.transaction(statement_seconds=600) as connection:
        shown.append((await connection.exec_driver_sql("SHOW statement_timeout")).scalar())
    async with sessions.statements() as connection:
        shown.append((await connection.exec_driver_sql("SHOW statement_timeout")).scalar())
    assert shown == ["3s", "30s", "10min", "30s"]
    await sessions.close()


async def test_who_finds_all_connections_taken_is_soon_refused(database_url: str) -> None:
    sessions, enough, held = Sessions(database_url), asyncio.Event(), 0

    async def hold() -> None:
        nonlocal held
        async with sessions.transaction():
            held += 1
            await enough.wait()

    holders = [asyncio.create_task(hold()) for _ in range(POOL_CONNECTIONS + BURST_CONNECTIONS)]
    await until(lambda: held == len(holders))
    with pytest.raises(Unavailable, match="QueuePool limit"):
        await sessions.reach()
    enough.set()
    await asyncio.gather(*holders)
    await sessions.reach()
    await sessions.close()


async def test_a_server_full_of_others_refuses_only_those_without_a_connection(
    database_url: str, database_engine: Engine
) -> None:
    with database_engine.begin() as connection:
        connection.execute(text("CREATE ROLE crowd LOGIN CONNECTION LIMIT 1"))
    url = make_url(database_url).set(username="crowd").render_as_string(hide_password=False)
    sessions = Sessions(url)
    try:
        async with sessions.transaction() as connection:
            for _ in range(2):
                with pytest.raises(Unavailable, match="too many connections"):
                    await sessions.reach()
            await connection.execute(text("SELECT 1"))
        await sessions.reach()
    finally:
        await sessions.close()
        with database_engine.begin() as connection:
            connection.execute(text("DROP ROLE crowd"))


# --- the line of the completions' log -----------------------------------------------------------------


async def test_a_record_that_finds_its_connection_cut_is_made_again(
    store: Store, database_engine: Engine, make_completion: Callable[..., Completion]
) -> None:
    others = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    for number in range(3):
        await store.completions.record(make_completion(f"chatcmpl-{number}"))
        with database_engine.connect() as connection:
            assert connection.execute(text(f"{others} AND backend_type = 'client backend'")).all()
    with database_engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM choices")).scalar() == 3


async def test_records_that_come_together_are_all_kept(
    store: Store, database_engine: Engine, make_completion: Callable[..., Completion]
) -> None:
    records = [make_completion(f"chatcmpl-{number % 150}", "one", "two") for number in range(200)]
    await asyncio.gather(*(store.completions.record(record) for record in records))
    with database_engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM choices")).scalar() == 300
