"""`alarms` against a real server: what it asks, what it shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.alarms import Alarm
from service.cli import app
from tests.fake_api import NOW, OPERATOR_KEY, FakeApi

TOLD = {"at": NOW, "detail": {}, "attempts": 3}
ALARMS = (
    Alarm(seq=9, kind="rollback", subject="policy-2", message="down-votes", trouble="hooks answered 500", **TOLD),
    Alarm(seq=8, kind="round_failed", subject="round 1", message="no memory", delivered_at=NOW, **TOLD),
)


class Alarmed(FakeApi):
    """It has something to tell."""

    def answer(self, method: str, path: list[str], query: dict[str, str], body: Any) -> tuple[int, Any]:
        if (method, path) == ("GET", ["ops", "alarms"]):
            return 200, {"data": [alarm.model_dump(mode="json") for alarm in ALARMS]}
        return super().answer(method, path, query, body)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with Alarmed() as api:
        yield api


def run(api: FakeApi, tmp_path: Path, *words: str) -> Result:
    environment = {"HELIOTROPE_URL": api.url, "HELIOTROPE_KEY": OPERATOR_KEY, "HELIOTROPE_STATE": str(tmp_path)}
    return CliRunner().invoke(app, ["alarms", *words], env=environment)


def test_alarms_are_listed_with_what_became_of_their_delivery(api: FakeApi, tmp_path: Path) -> None:
    result = run(api, tmp_path)
    assert result.exit_code == 0, result.output
    first, second = (line for line in result.stdout.splitlines() if "policy-2" in line or "round 1" in line)
    assert "rollback" in first
    assert "hooks answered 500" in first
    assert "round_failed" in second
    assert api.requests[-1][1] == "/ops/alarms?limit=100"


def test_older_ones_are_asked_for_by_number_and_json_is_the_services_own(api: FakeApi, tmp_path: Path) -> None:
    result = run(api, tmp_path, "--limit", "2", "--after", "8", "--json")
    assert api.requests[-1][1] == "/ops/alarms?limit=2&after=8"
    assert result.stdout.strip() == api.last_text
