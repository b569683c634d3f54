"""`trace`, `audit`, `round report|pairs|replay` and `adapters notes`: what is asked for, shown and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.cli.dry_run import duration, shown
from service.contracts import AuditEntry
from service.pairs import Funnel
from service.terminal import console
from tests.fake_api import OPERATOR_KEY, FakeApi
from tests.fake_evidence import AFTER, a_dry_run, a_log

Run = Callable[..., Result]
FUNNEL = Funnel(votes=130, votes_in_pairs=100, left_out={"no_partner": 30}, pairs_from_votes=64, pairs_imported=0)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        api.audit = a_log(4)
        yield api


@pytest.fixture
def run(api: FakeApi) -> Run:
    environment = {"HELIOTROPE_URL": api.url, "HELIOTROPE_KEY": OPERATOR_KEY}
    return lambda *words: CliRunner().invoke(app, list(words), env=environment)


# --- lineage ------------------------------------------------------------------------------------------


def test_a_trace_shows_both_ways_with_all_counts(api: FakeApi, run: Run) -> None:
    result = run("trace", "round", "2")
    assert result.exit_code == 0, result.output
    assert api.requests[-1][1] == "/ops/lineage/round/2?shown=5"
    said = result.stdout
    assert said.index("comes from") < said.index("2 votes") < said.index("leads to") < said.index("4321 completions")
    assert "chatcmpl-9" in said and "..." in said
    assert json.loads(run("trace", "round", "2", "--json").stdout)["kind"] == "round"


def test_a_kind_that_there_is_not_is_a_usage_error(api: FakeApi, run: Run) -> None:
    assert run("trace", "person", "ada").exit_code == 2
    assert api.requests == []


def test_an_id_may_hold_anything(api: FakeApi, run: Run) -> None:
    result = run("trace", "vote", "a/b?c")
    assert result.exit_code == 1
    assert api.requests[-1][1] == "/ops/lineage/vote/a%2Fb%3Fc?shown=5"


# --- the audit log ------------------------------------------------------------------------------------


def test_the_audit_alone_lists_its_entries(api: FakeApi, run: Run) -> None:
    result = run("audit", "--limit", "10")
    assert result.exit_code == 0, result.output
    assert "policy-0003" in result.stdout and "reason=ünïcode 3" in result.stdout
    assert api.requests[-1][1] == "/ops/audit?limit=10"


def test_the_service_verifies_its_log(api: FakeApi, run: Run) -> None:
    good = run("audit", "verify")
    assert (good.exit_code, good.stdout) == (
        0, f"3 entries are as they were written; the last digest is {'a' * 64}\n"
    )  # fmt: skip
    bad = run("audit", "verify", "--kept", "f" * 64)
    assert (bad.exit_code, bad.stderr) == (1, "error: entry 8 does not follow\n")
    assert json.loads(run("audit", "verify", "--kept", "f" * 64, "--json").stdout)["fault"] == "entry 8 does not follow"
    assert run("audit", "verify", "--kept", "xyz").exit_code == 2


def test_an_export_is_verified_without_the_service(api: FakeApi, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    assert run("audit", "export", "--out", str(file)).exit_code == 0
    assert run("audit", "export").stdout == file.read_text()
    asked = len(api.requests)
    verified = run("audit", "verify", "--file", str(file))
    assert (verified.exit_code, verified.stdout) == (
        0, f"4 entries are as they were written; the last digest is {api.audit[-1].digest}\n"
    )  # fmt: skip
    entries = [AuditEntry.model_validate_json(line) for line in file.read_text().splitlines()]
    entries[1] = entries[1].model_copy(update={"who": "mallory"})
    file.write_text("".join(f"{entry.model_dump_json()}\n" for entry in entries))
    changed = run("audit", "verify", "--file", str(file))
    assert changed.exit_code == 1
    assert "entry 4 does not follow" in changed.stderr
    assert len(api.requests) == asked, "nobody was asked"


def test_an_export_that_was_cut_off_is_seen_by_who_noted_its_end(api: FakeApi, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    file.write_text("".join(f"{entry.model_dump_json()}\n" for entry in api.audit[:2]))
    assert run("audit", "verify", "--file", str(file)).exit_code == 0
    result = run("audit", "verify", "--file", str(file), "--kept", api.audit[-1].digest)
    assert result.exit_code == 1 and "is gone" in result.stderr


def test_a_file_that_is_no_log_is_an_error_in_one_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "other"
    file.write_text("hello\n")
    result = run("audit", "verify", "--file", str(file))
    assert (result.exit_code, result.stderr) == (1, f"error: {file}, line 1: no entry of an audit log.\n")


# --- a round's evidence -------------------------------------------------------------------------------


def test_the_report_of_a_round_is_shown_and_written_as_a_page(api: FakeApi, run: Run, tmp_path: Path) -> None:
    result = run("round", "report", "2")
    assert result.exit_code == 0, result.output
    for part in ("held_out", "thus harmless", "4321 completions", "promoted"):
        assert part in result.stdout
    file = tmp_path / "round.html"
    written = run("round", "report", "2", "--html", str(file))
    assert (written.exit_code, written.stdout, written.stderr) == (0, "", f"the report is in {file}\n")
    assert file.read_text() == api.last_text
    assert file.read_text().startswith("<!doctype html>")
    assert run("round", "report", "2", "--html", str(tmp_path / "no" / "folder")).exit_code == 1


def test_release_notes_are_markdown(run: Run) -> None:
    result = run("adapters", "notes", AFTER)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"# {AFTER}\n")


@pytest.mark.parametrize(
    ("option", "fate"), [("--keep", "learned"), ("--release", "released"), ("--retire", "retired")]
)
def test_the_pairs_of_a_round_are_kept_released_or_retired(api: FakeApi, run: Run, option: str, fate: str) -> None:
    result = run("round", "pairs", "2", option, "--reason", "a bad day")
    assert (result.exit_code, result.stdout) == (0, f"36 pairs of round 2 are {fate} now\n")
    assert api.requests[-1] == ("POST", "/ops/rounds/2/pairs", {"fate": fate, "reason": "a bad day"})


@pytest.mark.parametrize("options", [(), ("--keep", "--retire")])
def test_one_fate_is_to_be_named(api: FakeApi, run: Run, options: tuple[str, ...]) -> None:
    assert run("round", "pairs", "2", *options).exit_code == 2
    assert api.requests == []


# --- dry run ------------------------------------------------------------------------------------------


def _said(**estimate: object) -> str:
    made = console()
    with made.capture() as captured:
        made.print(shown(a_dry_run(FUNNEL, ("sums",), 32, **estimate).model_dump(mode="json")))
    return " ".join(captured.get().split())


def test_a_dry_run_says_what_a_round_would_take() -> None:
    said = _said()
    assert "a round would learn from these" in said
    assert "12, of 2 apps" in said
    assert "54 pairs, at most 6 of earlier rounds; 10 are held out" in said
    assert "slice name" in said
    assert "about 61 s, of which training 40 s (55 s to 70 s, by the last 3 rounds)" in said
    assert "at most 1.5 GiB in the worker in the last rounds" in said


def test_before_the_first_round_a_dry_run_guesses_and_says_so() -> None:
    said = _said(basis="guess", rounds=0, seconds_low=None, seconds_high=None)
    assert "a guess, for no round has been trained yet" in said


def test_a_round_with_too_little_says_what_is_missing(run: Run) -> None:
    shown = run("round", "start", "--dry-run", "--min-pairs", "65").stdout
    assert "would do nothing: 64 new pairs, 65 are needed (min_pairs)" in shown


@pytest.mark.parametrize(("seconds", "said"), [(61.0, "61 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert duration(seconds) == said
