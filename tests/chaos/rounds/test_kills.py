"""Whoever is killed in the course of rounds: every round ends, the route is sound, nothing is done twice.

`python -m tests.chaos --rounds --kills 100` does the same for long.
"""

from __future__ import annotations

from pathlib import Path

from service.contracts import RoundState
from tests.chaos.database import Database
from tests.chaos.rounds import faults
from tests.chaos.rounds.faults import Victim
from tests.chaos.rounds.run import run
from tests.chaos.rounds.script import KINDS, settings

KILLS = 4


def test_rounds_survive_kills_at_random_moments(chaos_database: Database, tmp_path: Path) -> None:
    report = run(chaos_database, tmp_path, 2, KILLS)
    assert report.findings.faults == [], report
    assert report.kills.total() == KILLS
    assert report.rounds[RoundState.PROMOTED] > 0, report.reasons
    assert report.answers > 0


def test_a_seed_says_who_is_killed_and_when() -> None:
    assert faults.kills(7, 50) == faults.kills(7, 50) != faults.kills(8, 50)
    drawn = faults.kills(1, 100)
    assert {kill.victim for kill in drawn} == set(Victim)
    asked = [kill for kill in drawn if (kill.victim, kill.state) == (Victim.REPLICA, RoundState.JUDGING)]
    assert len(asked) > 2, "replicas die while they are asked about a candidate"
    assert {RoundState.JUDGING, RoundState.AWAITING_APPROVAL, RoundState.CANARY} < {kill.state for kill in drawn}


def test_kinds_of_rounds_differ_in_what_an_operator_may_set(tmp_path: Path) -> None:
    set_so = [settings(kind, tmp_path) for kind in KINDS]
    assert {each.rounds.approval for each in set_so} == {"never", "always"}
    assert {bool(each.canary.shares) for each in set_so} == {False, True}
    assert {each.canary.advance for each in set_so} == {"automatic", "approved"}
    assert any(each.watch.minutes for each in set_so)
