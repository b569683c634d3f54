"""`preferences report` and the findings of a dry run: what is asked for, shown and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.cli.data_report import BAR_COLUMNS, bar
from service.pairs import Funnel
from tests.fake_api import OPERATOR_KEY, FakeApi

Run = Callable[..., Result]
HOSTILE = "\x1b[2J<script>alert(1)</script>"


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


@pytest.fixture
def run(api: FakeApi) -> Run:
    environment = {"HELIOTROPE_URL": api.url, "HELIOTROPE_KEY": OPERATOR_KEY}
    return lambda *words: CliRunner().invoke(app, list(words), env=environment)


def test_the_report_begins_with_what_is_to_be_done(api: FakeApi, run: Run) -> None:
    result = run("preferences", "report")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["finding"]
    severities = [words[0] for words in lines[1:] if words and words[0] in ("act", "look", "ok")]
    assert severities[0] == "act"
    assert severities == sorted(severities, key=["act", "look", "ok"].index)
    assert api.requests[-1][1] == "/ops/preferences/report"


def test_the_report_shows_shares_as_bars_and_slices_with_their_names(run: Run) -> None:
    shown = run("preferences", "report").stdout
    first = next(line for line in shown.splitlines() if line.startswith("the first of two shown"))
    assert first.split()[-7:] == ["100.0%", "60", "of", "60", "94.0%", "to", "100.0%"]
    assert "█" * BAR_COLUMNS in first
    sums = next(line for line in shown.splitlines() if line.startswith("tag"))
    assert sums.split() == ["tag", "sums", "60", "100%", "-", "-", "1.00"]
    assert "no_partner" in shown


def test_the_objective_is_passed_on(api: FakeApi, run: Run) -> None:
    run("preferences", "report", "--objective", "kto")
    assert api.requests[-1][1] == "/ops/preferences/report?objective=kto"


def test_json_is_the_service_s_own(api: FakeApi, run: Run) -> None:
    result = run("preferences", "report", "--json")
    assert result.stdout == api.last_text + "\n"
    assert json.loads(result.stdout)["counts"]["pairs"] == 60


def test_the_page_is_written_as_it_came(api: FakeApi, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    result = run("preferences", "report", "--html", str(file))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"the report is in {file}\n")
    assert file.read_text() == api.last_text
    assert file.read_text().startswith("<!doctype html>")
    assert api.requests[-1][1] == "/ops/preferences/report?as=html"


def test_a_page_that_cannot_be_written_is_an_error_in_one_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "missing" / "report.html"
    result = run("preferences", "report", "--html", str(file))
    assert (result.exit_code, result.stderr) == (1, f"error: {file} cannot be written: No such file or directory.\n")


def test_a_report_on_nothing_is_shown_too(api: FakeApi, run: Run) -> None:
    api.funnel = Funnel(votes=0, votes_in_pairs=0, left_out={}, pairs_from_votes=0, pairs_imported=0)
    result = run("preferences", "report")
    assert result.exit_code == 0
    assert "0 new pairs are fewer than the 32" in result.stdout


def test_what_voters_sent_does_not_steer_the_terminal(api: FakeApi, run: Run) -> None:
    api.tags = (HOSTILE,)
    shown = run("preferences", "report").stdout
    assert "[2J<script>" in shown
    assert "\x1b" not in shown


def test_preferences_alone_still_show_the_funnel(api: FakeApi, run: Run) -> None:
    result = run("preferences")
    assert result.exit_code == 0
    assert "new pairs: 64 (60 from votes, 4 imported)" in result.stdout
    assert api.requests[-1][1] == "/ops/preferences"


def test_a_dry_run_shows_the_findings_before_the_funnel(run: Run) -> None:
    shown = run("round", "start", "--dry-run", "--min-pairs", "65").stdout
    assert shown.index("64 new pairs are fewer than the 65") < shown.index("no_partner  no opposite vote")


@pytest.mark.parametrize(("share", "full"), [(0.0, 0), (0.5, BAR_COLUMNS // 2), (1.0, BAR_COLUMNS)])
def test_a_bar_has_as_many_full_columns_as_its_share(share: float, full: int) -> None:
    assert (bar(share).count("█"), len(bar(share))) == (full, BAR_COLUMNS)
