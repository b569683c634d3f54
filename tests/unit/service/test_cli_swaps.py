"""What an operator sees of swaps, and the commands that split the requests, against a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from serving.contracts import BASE, ReplicaStatus, Route
from tests.fake_api import FIRST, OPERATOR_KEY, SECOND, FakeApi

Run = Callable[..., Result]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


@pytest.fixture
def run(api: FakeApi, tmp_path: Path) -> Run:
    environment = {
        "HELIOTROPE_URL": api.url,
        "HELIOTROPE_KEY": OPERATOR_KEY,
        "HELIOTROPE_STATE": str(tmp_path / "state"),
        "COLUMNS": "250",
    }

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), env=environment)

    return run


def test_a_split_names_only_what_changes(api: FakeApi, run: Run) -> None:
    result = run("split", "--candidate", FIRST, "--share", "0.05", "--reason", "canary")
    assert result.exit_code == 0, result.output
    assert f"candidate is {FIRST} with 0.05 of the requests" in result.stdout
    assert api.requests[-1][::2] == (
        "PUT",
        {"candidate": FIRST, "candidate_share": 0.05, "expected_generation": None, "reason": "canary"},
    )
    run("split", "--baseline", "base", "--baseline-share", "0.01", "--expect", "3")
    assert api.requests[-1][2] == {
        "baseline": "base", "baseline_share": 0.01, "expected_generation": 3, "reason": None,
    }  # fmt: skip
    assert (api.route.candidate_share, api.route.baseline_share) == (0.05, 0.01)


def test_off_lets_the_stable_adapter_answer_all(api: FakeApi, run: Run) -> None:
    api.route = Route(stable=SECOND, candidate=FIRST, candidate_share=0.3, baseline=BASE, baseline_share=0.1)
    assert run("split", "--off").exit_code == 0
    assert api.route == Route(stable=SECOND)


@pytest.mark.parametrize("words", [(), ("--off", "--share", "0.1"), ("--share", "1.5"), ("--share", "some")])
def test_a_split_that_says_nothing_clear_is_a_usage_error(api: FakeApi, run: Run, words: tuple[str, ...]) -> None:
    assert run("split", *words).exit_code == 2
    assert api.requests == []


def test_a_refused_split_ends_in_one_line(run: Run) -> None:
    result = run("split", "--share", "0.5")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: The shares do not fit:")


def test_a_rollback_can_name_what_it_leaves(api: FakeApi, run: Run) -> None:
    assert run("rollback", "--expect", SECOND).exit_code == 0
    again = run("rollback", "--expect", SECOND)
    assert (again.exit_code, again.stderr) == (1, f"error: {FIRST} answers by now.\n")
    assert api.route.stable == FIRST


def test_the_status_shows_shares_and_why_a_replica_lags(api: FakeApi, run: Run) -> None:
    api.route = Route(generation=9, stable=SECOND, candidate=FIRST, candidate_share=0.05)
    lagging = ReplicaStatus(
        replica="r-1", generation=8, stable=BASE, wanted=(FIRST, SECOND), loaded=(SECOND,),
        in_flight={BASE: 3, SECOND: 2}, waiting=4, error="adapter is refused: its weights are not all finite",
    )  # fmt: skip
    api.replica = lagging
    shown = run("status").stdout
    for part in (f"{FIRST} (0.05 of the requests)", f"5 (2 on {SECOND})", "not all finite"):
        assert part in shown
    [row] = [line for line in shown.splitlines() if "r-1" in line]
    assert row.split()[:6] == ["r-1", BASE, "8", SECOND, FIRST, "5"]
    api.replica = lagging.model_copy(update={"error": None})
    assert "has not heard of generation 9 yet" in run("status").stdout
