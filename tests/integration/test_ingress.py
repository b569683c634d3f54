"""What callers meet at each ingress: headers that would steer Ray, connections that break, replicas that come and go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import psutil
import pytest
from sqlalchemy import create_engine, select

from service.store.tables import completions
from tests.conftest import free_port
from tests.fake_cluster import FakeCluster, eventually, fake_cluster
from tests.line import DONE, Line
from tests.storm import BODY, CHAT, Storm, storming

TOKENS = 1500  # of an answer that nobody waits for
SHORT = BODY | {"max_tokens": 4}


@pytest.fixture(scope="module", params=["python", "haproxy"])
def fake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    """One replica, and a second when there is more to do than one does well."""
    sections = {
        "server": {"ingress": request.param},
        "serving": {"replicas": 1, "max_replicas": 2, "max_requests": 8},
    }
    folder = tmp_path_factory.mktemp(request.param)
    with fake_cluster(folder, free_port(), tokens=TOKENS, token_seconds=0.05, sections=sections) as cluster:
        yield cluster


@pytest.fixture
def app(fake: FakeCluster) -> Iterator[httpx.Client]:
    with fake.client("app") as client:
        yield client


def idle(fake: FakeCluster) -> bool:
    """No request is pinned to any adapter."""
    replicas = fake.status()["replicas"]
    return bool(replicas) and not any(replica["in_flight"] for replica in replicas)


def outcomes(fake: FakeCluster, *, ids: list[str]) -> set[str]:
    """How these completions ended, as far as they are recorded."""

    engine = create_engine(fake.store_url)
    with engine.begin() as connection:
        found = set(connection.execute(select(completions.c.outcome).where(completions.c.id.in_(ids))).scalars())
    engine.dispose()
    return found


# --- headers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"x-request-timeout-seconds": "0.001"},
        {"x-request-timeout-seconds": "0"},
        {"serve_multiplexed_model_id": "policy-0001-00000000"},
        {"serve-multiplexed-model-id": "x" * 1000},
        {"x-session-id": "mine"},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_headers_that_steer_ray_change_nothing(app: httpx.Client, headers: dict[str, str], stream: bool) -> None:
    answer = app.post(CHAT, json=SHORT | {"stream": stream}, headers=headers)
    assert answer.status_code == 200
    assert not stream or answer.text.rstrip().endswith(DONE)


def test_an_id_of_the_callers_is_never_a_completions(app: httpx.Client) -> None:
    answers = [app.post(CHAT, json=SHORT, headers={"x-request-id": "mine"}).json() for _ in range(2)]
    assert len({answer["id"] for answer in answers}) == 2
    assert not any("mine" in answer["id"] for answer in answers)


# --- connections that break ---------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"x-request-disconnect-disabled": "?1"}])
def test_a_stream_that_is_closed_frees_its_pin_and_is_recorded_as_cancelled(
    fake: FakeCluster, app: httpx.Client, headers: dict[str, str]
) -> None:
    with app.stream("POST", CHAT, json=BODY | {"stream": True}, headers=headers) as answer:
        first = next(answer.iter_lines())
        assert "/0/0/0" in first
        id = answer.headers["x-completion-id"]
    eventually(lambda: idle(fake))
    eventually(lambda: outcomes(fake, ids=[id]) == {"cancelled"})


@pytest.mark.parametrize("headers", [{}, {"x-request-disconnect-disabled": "?1"}])
def test_a_call_that_is_given_up_frees_its_pin(fake: FakeCluster, headers: dict[str, str]) -> None:
    async def give_up() -> None:
        server = fake.settings.server
        async with Line(server.host, server.port, fake.keys["app"]) as line:
            asking = asyncio.create_task(line.post(CHAT, BODY, headers))
            await asyncio.to_thread(eventually, lambda: not idle(fake))
            asking.cancel()
            await asyncio.wait([asking])

    asyncio.run(give_up())
    eventually(lambda: idle(fake))


# --- replicas that come and go ------------------------------------------------------------------------


def test_a_replica_is_added_under_load_and_answers_with_the_routes_adapter(fake: FakeCluster) -> None:
    (files,) = fake.publish(1)
    with fake.client("operator") as operator:
        operator.post(f"/ops/adapters/{files.name}/promote").raise_for_status()
    storm = Storm(
        fake.settings.server.host, fake.settings.server.port, fake.keys["app"], clients=16, tokens=20, newest=1
    )
    with storming(storm):
        eventually(lambda: len(fake.status()["replicas"]) == 2 or bool(storm.faults))
        enough = storm.answers + 5 * storm.clients
        eventually(lambda: storm.answers > enough)
    assert [fault for fault in storm.faults if "overloaded" not in fault] == []
    assert all(replica["loaded"] == [files.name] for replica in fake.status()["replicas"])


def test_a_replica_that_is_killed_leaves_its_callers_with_an_error_that_says_so(fake: FakeCluster) -> None:
    """The requests that it worked on, and no others. HAProxy can only break a stream off: its head has gone out."""
    storm = Storm(fake.settings.server.host, fake.settings.server.port, fake.keys["app"], clients=8, tokens=20)
    lost = fake.orders.pids()[0]
    with storming(storm):
        eventually(lambda: storm.answers > storm.clients)
        psutil.Process(lost).kill()
        enough = storm.answers + 10 * storm.clients
        eventually(lambda: storm.answers > enough and lost not in fake.orders.pids())
    failed = [fault for fault in storm.faults if "overloaded" not in fault]
    untold = [fault for fault in failed if "replica_lost" not in fault and "no_replica" not in fault]
    streams = storm.clients // 2 if fake.settings.server.ingress == "haproxy" else 0
    assert all("IncompleteReadError" in fault for fault in untold), untold
    assert len(untold) <= streams
    assert len(failed) <= storm.clients


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_of_openais_never_takes_what_a_killed_replica_said_for_a_whole_answer(
    fake: FakeCluster, stream: bool
) -> None:
    def ask(client: openai.OpenAI) -> None:
        if stream:
            list(client.chat.completions.create(**question, stream=True))
        else:
            client.chat.completions.create(**question)

    question: Any = {"model": "policy", "messages": [{"role": "user", "content": "hello"}]}
    eventually(lambda: idle(fake) and len(fake.orders.pids()) == len(fake.status()["replicas"]))
    with openai.OpenAI(base_url=f"{fake.url}/v1", api_key=fake.keys["app"], max_retries=0) as client:
        client.models.list()  # the connection is an old one: such a one HAProxy might end without a word
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask, client)
            eventually(lambda: not idle(fake))
            for pid in fake.orders.pids():
                psutil.Process(pid).kill()
            with pytest.raises((openai.APIError, httpx.RemoteProtocolError)) as broken:
                asking.result()
    if not stream:
        assert isinstance(broken.value, openai.InternalServerError)
        assert (broken.value.status_code, broken.value.code) == (502, "replica_lost")
        assert broken.value.response.headers["retry-after"] == "1"


def test_who_asks_while_there_is_no_replica_waits_for_the_next_one(fake: FakeCluster, app: httpx.Client) -> None:
    """Over a connection that an old HAProxy holds, and over a new one."""
    eventually(lambda: app.post(CHAT, json=SHORT).status_code == 200)  # those killed before may not be replaced yet
    eventually(lambda: len(fake.orders.pids()) == len(fake.status()["replicas"]))
    lost = [psutil.Process(pid) for pid in fake.orders.pids()]
    for replica in lost:
        replica.kill()
    psutil.wait_procs(lost)  # until then it may still be asked, and is lost then with the question
    with fake.client("app") as another:
        assert another.post(CHAT, json=SHORT).status_code == 200
    assert app.post(CHAT, json=SHORT).status_code == 200


def test_the_proxy_listens_to_the_callers_alone(fake: FakeCluster) -> None:
    """All other doors are this machine's own."""
    program = "haproxy" if fake.settings.server.ingress == "haproxy" else "ray::ProxyActor"
    proxies = [child for child in fake.process.children(recursive=True) if child.name() == program]
    assert proxies
    listening = [one for proxy in proxies for one in proxy.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    served = {one.laddr for one in listening if one.laddr.ip == fake.settings.server.host}
    assert fake.settings.server.port in {address.port for address in served}
    if program == "haproxy":  # the others hold Ray's own port besides, which asks for Ray's token
        assert {one.laddr for one in listening} == served


def test_what_ray_itself_answers_tells_no_more_than_that_it_lives(fake: FakeCluster) -> None:
    with httpx.Client(base_url=fake.url) as nobody:
        assert nobody.get("/-/healthz").text == "success"
        assert nobody.get("/v1/nothing").json()["error"]["code"] == "route_not_found"


def test_a_service_that_is_told_to_end_answers_its_streams_to_the_end_and_leaves_no_process(fake: FakeCluster) -> None:
    """The last of this file: nothing can run after it."""
    below = fake.process.children(recursive=True)
    begun = threading.Event()

    def read() -> str:
        body = BODY | {"stream": True, "max_tokens": 60}
        with fake.client("app") as app, app.stream("POST", CHAT, json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            begun.set()
            return [line for line in lines if line][-1]

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        begun.wait()
        fake.stop()
        assert reading.result() == f"data: {DONE}"
    _, alive = psutil.wait_procs(below)
    assert not alive
