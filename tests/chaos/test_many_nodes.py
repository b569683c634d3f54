"""Many nodes on one machine: what is noticed when one is lost or comes, and the loop over all of them.

The nodes are what the pods of the manifests are, and are lost as pods are: at once, with all that lay on their disks. The
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
from tests.many_nodes import BUCKET, KEYS, SERVING, ManyNodes, many_nodes
from tests.storm import Storm, storming
from training.corpus import unsafe, voted

QUESTIONS = 160  # twice so many are still fewer votes a user than quarantine takes for a burst
ENDED = {"promoted", "rejected", "failed", "cancelled"}
CLIENTS = 6
ANSWERS = 100  # enough of them to say that chat goes on


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManyNodes]:
    # So few pairs can hardly tell a gain from chance; the gate's own bound is what its unit tests are about.
    few = {"TRAINING__MIN_PAIRS": "20", "TRAINING__HELD_OUT_SHARE": "0.3", "GATE__HELD_OUT_P": "0.25"}
    with many_nodes(tmp_path_factory.mktemp("many"), **{f"HELIOTROPE_{name}": few[name] for name in few}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def answering(nodes: ManyNodes) -> ManyNodes:
    """With fake engines, two adapters, and the second of them promoted."""
    nodes.deploy(fake=True)
    for ordinal in (101, 102):  # those of rounds begin at 1
        promote(nodes, nodes.publish(ordinal))
    return nodes


@pytest.fixture(scope="module")
def learning(answering: ManyNodes) -> ManyNodes:
    """With the seedling on vLLM, as it is installed."""
    promote(answering, BASE)  # the fake engines' adapters fit no other
    answering.deploy(fake=False)
    return answering


def promote(cluster: ManyNodes, name: str) -> None:
    with cluster.client("operations") as operator:
        operator.post(f"/ops/adapters/{name}/promote").raise_for_status()


def rolled_back(cluster: ManyNodes) -> None:
    with cluster.client("operations") as operator:
        operator.post("/ops/rollback").raise_for_status()


def stable(cluster: ManyNodes) -> str:
    return cluster.status()["route"]["stable"]


def replicas(cluster: ManyNodes) -> set[str]:
    return {replica["replica"] for replica in cluster.status()["replicas"]}


def copies(cluster: ManyNodes, adapter: str) -> set[str]:
    """The nodes on whose disks the adapter lies."""
    return {folder.name for folder in cluster.nodes.folder.iterdir() if any(folder.rglob(f"{adapter}/*.safetensors"))}


def storm(cluster: ManyNodes, *, authored: bool = True) -> Storm:
    """Not so strong that a node that starts gets no core."""
    door, key = cluster.doors["chat"], KEYS["chat"]
    return Storm("127.0.0.1", door, key, clients=CLIENTS, tokens=16, pause_seconds=0.1, authored=authored)


def goes_on(blowing: Storm) -> None:
    """Waits for answers to questions that are asked from now on."""
    before = blowing.answers
    eventually(lambda: blowing.answers >= before + ANSWERS)


# --- answering --------------------------------------------------------------------------------------------


def test_only_what_a_lost_node_was_working_on_fails(answering: ManyNodes) -> None:
    with storming(storm(answering)) as blowing:
        goes_on(blowing)
        answering.nodes.kill(SERVING[1])
        goes_on(blowing)
    assert all(fault.startswith("failed") for fault in blowing.faults), blowing.faults
    assert len(blowing.faults) <= blowing.clients, blowing.faults


def test_a_node_that_comes_during_swaps_answers_as_all_others(answering: ManyNodes) -> None:
    newest = stable(answering)
    with storming(storm(answering)) as blowing, ThreadPoolExecutor(1) as pool:
        there = pool.submit(lambda: (answering.start_serving(SERVING[1]), eventually(answering.ready)))
        while not there.done():
            promote(answering, BASE)
            promote(answering, newest)
        there.result()
        goes_on(blowing)
    assert blowing.faults == []
    assert answering.ready()
    assert SERVING[1] in copies(answering, newest)


def test_chat_goes_on_without_the_head_and_operators_do_when_it_is_back(answering: ManyNodes) -> None:
    newest, before = stable(answering), replicas(answering)
    with storming(storm(answering)) as blowing:
        answering.nodes.kill("head")
        goes_on(blowing)
        assert "the head of the Ray cluster is away" in answering.status()["trouble"]
        rolled_back(answering)
        answering.nodes.start_head()
        eventually(answering.ready)
        promote(answering, newest)
        goes_on(blowing)
    assert blowing.faults == []
    assert replicas(answering) == before  # nobody was started anew


# --- learning ---------------------------------------------------------------------------------------------


def converse(cluster: ManyNodes, taste: Taste, seed: int) -> None:
    dice, clients = random.Random(seed), Clients(cluster.url("chat"), KEYS["chat"])
    questions = dice.sample(list(voted()), QUESTIONS) + [q for q in unsafe() if not q.held_out]
    answers = clients.ask(questions, n=4)
    clients.vote([(a, taste.rates_up(a.question, a.text, dice), f"user-{dice.randrange(9)}") for a in answers])
    assert clients.tally.failed == 0, clients.tally.first_error


def started(operator: httpx.Client) -> int:
    return operator.post("/ops/rounds", json={}).raise_for_status().json()["n"]


def round_of(operator: httpx.Client, n: int) -> dict[str, Any]:
    return operator.get(f"/ops/rounds/{n}").raise_for_status().json()


def ended(operator: httpx.Client, n: int) -> dict[str, Any]:
    eventually(lambda: round_of(operator, n)["state"] in ENDED)
    return round_of(operator, n)


def test_the_whole_loop_runs_over_nodes_that_share_no_disk(learning: ManyNodes) -> None:
    converse(learning, FIRST, seed=1)
    with learning.client("operations") as operator:
        round = ended(operator, started(operator))
    assert round["state"] == "promoted", round["reason"]
    eventually(learning.ready)
    answers = Clients(learning.url("chat"), KEYS["chat"]).ask(voted()[:8])
    assert {answer.model for answer in answers} == {round["adapter"]}
    assert copies(learning, round["adapter"]) == set(SERVING)  # nothing is left where it was trained, or on the head
    assert learning.objects.files().exists(f"{BUCKET}/artifacts/adapters/{round['adapter']}/manifest.json")


def test_a_round_goes_on_when_the_node_that_learns_is_lost(learning: ManyNodes) -> None:
    converse(learning, DRIFTED, seed=2)
    with learning.client("operations") as operator, storming(storm(learning, authored=False)) as blowing:
        n = started(operator)
        with operator.stream("GET", f"/ops/rounds/{n}/events") as events:
            assert any('"kind":"step"' in line for line in events.iter_lines())  # training is under way
        learning.nodes.kill("training")
        learning.start_training()
        round = ended(operator, n)
    assert round["state"] in ("promoted", "rejected"), round["reason"]
    assert round["attempt"] >= 2  # the next one may be given to the lost node, as long as Ray has not noticed
    assert blowing.faults == []
