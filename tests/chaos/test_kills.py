"""Whatever is killed: no acknowledged vote is lost, none is stored twice, none is made up. `make chaos` does the same for long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import faults
from tests.chaos.database import Database
from tests.chaos.faults import Kill, Victim
from tests.chaos.replica import Death, Point
from tests.chaos.run import REPLICAS, perform, run

VOTES = 200


@pytest.mark.parametrize("seed", [3, 8])
def test_every_signal_survives_kills_at_random_moments(chaos_database: Database, tmp_path: Path, seed: int) -> None:
    report = run(chaos_database, tmp_path, seed, VOTES)
    assert report.findings.faults == [], report
    assert report.findings.acknowledged >= VOTES
    assert report.kills.total() > 0


def test_a_replica_may_die_at_every_point_between_commit_and_answer(chaos_database: Database, tmp_path: Path) -> None:
    deaths = [Death(point, 5) for point in Point]
    report = perform(chaos_database, tmp_path, 1, VOTES, lambda scene: [], deaths)
    assert report.findings.faults == [], report
    assert report.kills == {point.value: 1 for point in Point}
    assert report.findings.recovered + report.findings.acknowledged >= VOTES


def test_each_process_of_the_database_may_be_killed(chaos_database: Database, tmp_path: Path) -> None:
    victims = [Victim.BACKEND, Victim.CHECKPOINTER, Victim.WALWRITER, Victim.POSTMASTER]
    kills = [Kill(victim, 40 * number, 0.0, 0.5) for number, victim in enumerate(victims, start=1)]
    report = perform(chaos_database, tmp_path, 2, VOTES + 40, lambda scene: scene.kills(kills))
    assert report.findings.faults == [], report
    assert report.kills[Victim.POSTMASTER] == 1


def test_a_seed_says_all_that_will_be_killed() -> None:
    assert faults.kills(7, 500) == faults.kills(7, 500) != faults.kills(8, 500)
    assert {kill.victim for seed in range(50) for kill in faults.kills(seed, 500)} == set(Victim)
    deaths = {death.point for seed in range(50) for death in faults.deaths(seed, 500, REPLICAS) if death}
    assert deaths == set(Point)
