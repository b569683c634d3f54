"""Many nodes on one machine: the loop over them, and what is noticed when one is lost or comes.

The nodes are what pods of the manifests are, and are lost as pods are: at once, with all that lay on their disks. The
order of the tests is the order of a story.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from service.demo.people import DRIFTED, FIRST, Taste
from service.demo.traffic import Clients
from serving.contracts import BASE
from tests.fake_cluster import eventually
from tests.many_nodes import BUCKET, SERVING, ManyNodes, many_nodes
from tests.storm import Storm, storming
from training.corpus import unsafe, voted

QUESTIONS = 160  # twice so many are still fewer votes a user than quarantine takes for a burst
ENDED = {"promoted", "rejected", "failed", "cancelled"}
ANSWERS = 40  # enough of them to say that chat goes on


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManyNodes]:
    # So few pairs can hardly tell a gain from chance; the gate's own bound is what its unit tests are about.
    few = {"TRAINING__MIN_PAIRS": "20", "TRAINING__HELD_OUT_SHARE": "0.3", "GATE__HELD_OUT_P": "0.25"}
    settings = {f"HELIOTROPE_{name}": value for name, value in few.items()}
    with many_nodes(tmp_path_factory.mktemp("many"), **settings) as cluster:
        yield cluster


@pytest.fixture
def operator(cluster: ManyNodes) -> Iterator[httpx.Client]:
    with cluster.client("operations", timeout=300) as operator:
        yield operator


def converse(cluster: ManyNodes, taste: Taste, seed: int) -> None:
    dice, clients = random.Random(seed), Clients(cluster.url("chat"), cluster.app_key)
    questions = dice.sample(list(voted()), QUESTIONS) + [q for q in unsafe() if not q.held_out]
    answers = clients.ask(questions, n=4)
    clients.vote([(a, taste.rates_up(a.question, a.text, dice), f"user-{dice.randrange(9)}") for a in answers])
    assert clients.tally.failed == 0, clients.tally.first_error


def round_of(operator: httpx.Client, n: int) -> dict[str, Any]:
    return operator.get(f"/ops/rounds/{n}").raise_for_status().json()


def ended(operator: httpx.Client, n: int) -> dict[str, Any]:
    eventually(lambda: round_of(operator, n)["state"] in ENDED)
    return round_of(operator, n)


def copies(cluster: ManyNodes, adapter: str) -> set[str]:
    """The nodes on whose disks the adapter lies."""
    return {folder.name for folder in cluster.nodes.folder.iterdir() if any(folder.rglob(f"{adapter}/*.safetensors"))}


def storm(cluster: ManyNodes) -> Storm:
    stable = cluster.status()["route"]["stable"]
    newest = 0 if stable == BASE else int(stable.split("-")[1])
    return Storm(
        "127.0.0.1", cluster.doors["chat"], cluster.app_key, clients=6, tokens=16, authored=False, newest=newest
    )


def goes_on(blowing: Storm) -> None:
    """Waits for answers to questions that are asked from now on."""
    before = blowing.answers
    eventually(lambda: blowing.answers >= before + ANSWERS)


def test_the_whole_loop_runs_over_nodes_that_share_no_disk(cluster: ManyNodes, operator: httpx.Client) -> None:
    converse(cluster, FIRST, seed=1)
    n = operator.post("/ops/rounds", json={}).raise_for_status().json()["n"]
    round = ended(operator, n)
    assert round["state"] == "promoted", round
    adapter = round["adapter"]
    eventually(cluster.ready)
    assert {answer.model for answer in Clients(cluster.url("chat"), cluster.app_key).ask(voted()[:8])} == {adapter}
    assert copies(cluster, adapter) == set(SERVING)  # and nothing is left where it was trained, or on the head
    assert cluster.objects.files().exists(f"{BUCKET}/artifacts/adapters/{adapter}/manifest.json")


def test_a_round_goes_on_when_the_node_that_learns_is_lost(cluster: ManyNodes, operator: httpx.Client) -> None:
    converse(cluster, DRIFTED, seed=2)
    n = operator.post("/ops/rounds", json={}).raise_for_status().json()["n"]
    with operator.stream("GET", f"/ops/rounds/{n}/events") as events:
        assert any('"kind":"step"' in line for line in events.iter_lines())  # training is under way
    with storming(storm(cluster)) as blowing:
        cluster.nodes.kill("training")
        goes_on(blowing)
        cluster.start_training()
        round = ended(operator, n)
    assert (round["state"] in ("promoted", "rejected"), round["attempt"]) == (True, 2), round
    assert blowing.faults == []


def test_only_what_a_lost_node_was_working_on_fails(cluster: ManyNodes) -> None:
    with storming(storm(cluster)) as blowing:
        goes_on(blowing)
        cluster.nodes.kill(SERVING[1])
        goes_on(blowing)
    assert all(fault.startswith("failed") for fault in blowing.faults), blowing.faults
    assert len(blowing.faults) <= blowing.clients, blowing.faults


def test_a_node_that_comes_during_swaps_answers_as_all_others(cluster: ManyNodes, operator: httpx.Client) -> None:
    adapter = cluster.status()["route"]["stable"]
    with storming(storm(cluster)) as blowing, ThreadPoolExecutor(1) as pool:
        cluster.start_serving(SERVING[1])
        there = pool.submit(eventually, cluster.ready)
        blowing.newest = 0
        while not there.done():
            for name in (BASE, adapter):
                operator.post(f"/ops/adapters/{name}/promote").raise_for_status()
        goes_on(blowing)
    assert blowing.faults == []
    assert cluster.ready() and cluster.status()["route"]["stable"] == adapter
    assert SERVING[1] in copies(cluster, adapter)


def test_chat_goes_on_without_the_head_and_operators_when_it_is_back(
    cluster: ManyNodes, operator: httpx.Client
) -> None:
    before = {replica["replica"] for replica in cluster.status()["replicas"]}
    adapter = cluster.status()["route"]["stable"]
    with storming(storm(cluster)) as blowing:
        cluster.nodes.kill("head")
        goes_on(blowing)
        cluster.nodes.start_head()
        eventually(cluster.ready)
        blowing.newest = 0
        operator.post(f"/ops/adapters/{BASE}/promote").raise_for_status()
        operator.post(f"/ops/adapters/{adapter}/promote").raise_for_status()
        goes_on(blowing)
    assert blowing.faults == []
    assert {replica["replica"] for replica in cluster.status()["replicas"]} == before  # nobody was started anew
