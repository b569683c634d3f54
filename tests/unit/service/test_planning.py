"""What a load asks for: how the figures go together, and where the plan says that the present design ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service import planning
from service.cli import app
from service.planning import Load, commits_a_second, plan
from service.postgres.sessions import POOL_CONNECTIONS

SMALL, LARGE = Load(requests_per_second=10), Load(requests_per_second=10_000, answer_tokens=300)
MILLION = 1e6


def test_a_small_load_has_no_limits() -> None:
    assert plan(SMALL, MILLION).limits == ()


def test_engines_decide_how_many_replicas_there_are_unless_they_are_quicker_than_our_code() -> None:
    slow = plan(replace(SMALL, answers_per_second=2), MILLION)
    assert slow.replicas == slow.replicas_for_engines == 5
    quick = plan(replace(LARGE, answers_per_second=1000), MILLION)
    assert quick.replicas > quick.replicas_for_engines == 10
    assert any("our own code" in limit for limit in quick.limits)


def test_haproxy_asks_for_fewer_cores_than_rays_proxy() -> None:
    python, haproxy = (plan(replace(LARGE, ingress=ingress), MILLION) for ingress in ("python", "haproxy"))
    assert haproxy.proxies < python.proxies


@pytest.mark.parametrize("replicas", [1, 8, 100])
def test_a_quiet_replica_commits_each_answer_and_a_busy_one_as_often_as_it_can(replicas: int) -> None:
    assert commits_a_second(0.01 * replicas, replicas) == pytest.approx(0.01 * replicas, rel=1e-3)
    assert commits_a_second(1e9, replicas) == pytest.approx(replicas / planning.COMMIT_SECONDS, rel=1e-3)


def test_the_disk_grows_with_the_completions_and_their_tokens() -> None:
    one, twice = plan(SMALL, MILLION), plan(SMALL, 2 * MILLION)
    assert twice.bytes_kept == 2 * one.bytes_kept
    assert plan(replace(SMALL, prompt_tokens=1000), MILLION).row_bytes > one.row_bytes
    assert one.seconds_kept == MILLION / 10


@pytest.mark.parametrize(
    ("load", "completions", "said"),
    [
        (replace(LARGE, requests_per_second=100_000), 1e12, "one PostgreSQL primary"),
        (LARGE, 1e12, "falls behind. It would take a table that is partitioned"),
        (LARGE, 1e8, "after 2.8 hours"),
        (LARGE, 1e12, "a pooler"),
        (replace(LARGE, votes_share=0.2), 1e12, "one Conductor"),
    ],
)
def test_each_limit_is_said(load: Load, completions: float, said: str) -> None:
    assert any(said in limit for limit in plan(load, completions).limits)


def test_a_replica_holds_as_many_connections_as_its_pool_and_its_lines() -> None:
    log, leases, reads = 1, 1, 1
    assert POOL_CONNECTIONS + log + leases + reads == planning.CONNECTIONS_A_REPLICA


def test_the_command_prints_the_plan() -> None:
    words = ["plan", "--requests-per-second", "10000", "--completions", "100e6", "--ingress", "haproxy"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "2,000, of which the engines ask for 2,000" in shown.output
    published = (Path(__file__).parents[3] / "k8s" / "README.md").read_text()
    assert " ".join(shown.output.split()) in " ".join(published.split())
    printed = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert printed["replicas"] == 2000
    assert printed["load"]["ingress"] == "haproxy"
    assert printed["limits"]
