"""Readiness and metrics as Ray's processes tell them: each replica's own word, and all of them in one answer."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import free_port
from tests.fake_cluster import FakeCluster, eventually, fake_cluster
from tests.storm import BODY, CHAT


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    with fake_cluster(tmp_path_factory.mktemp("metrics"), free_port()) as cluster:
        yield cluster


def ready(fake: FakeCluster, path: str = "/readyz") -> bool:
    answer = httpx.get(f"{fake.url}{path}", timeout=60)
    assert answer.json()["ready"] == (answer.status_code == 200)
    return answer.status_code == 200


def summed(fake: FakeCluster, name: str) -> dict[str, float]:
    """Of one metric: replica -> the sum of its series."""
    with fake.client("metrics") as prometheus:
        text = prometheus.get("/metrics").raise_for_status().text
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                replica = sample.labels.get("replica", "")
                sums[replica] = sums.get(replica, 0.0) + sample.value
    return sums


def test_all_replicas_are_told_of_in_one_answer(fake: FakeCluster) -> None:
    names = {replica["replica"] for replica in fake.status()["replicas"]}
    assert len(names) == 2
    assert set(summed(fake, "heliotrope_replica_route_generation")) == names
    with fake.client("app") as app:
        for _ in range(20):
            app.post(CHAT, json=BODY).raise_for_status()
    assert sum(summed(fake, "heliotrope_chat_requests_total").values()) == 20
    assert sum(summed(fake, "heliotrope_completions_logged_total").values()) == 20
    assert summed(fake, "heliotrope_replicas") == {"": 2}


def test_without_a_living_engine_the_service_is_unready_until_replicas_were_replaced(fake: FakeCluster) -> None:
    assert ready(fake)
    assert ready(fake, "/v1/readyz")
    before = {replica["replica"] for replica in fake.status()["replicas"]}
    for pid in fake.orders.pids():
        fake.orders.give("die", pid)
    eventually(lambda: not ready(fake))
    assert httpx.get(f"{fake.url}/healthz").status_code == 200
    eventually(lambda: ready(fake) and len(fake.status()["replicas"]) == 2)
    assert before.isdisjoint(replica["replica"] for replica in fake.status()["replicas"])
