"""The operators' commands against a real server: what they ask, what they show, how they end."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.cli import app, global_first
from service.contracts import AuditEntry
from tests.fake_api import APP_KEY, FIRST, NOW, OPERATOR_KEY, PASSED, SECOND, FakeApi, a_report, a_round

Run = Callable[..., Result]

GOOD_LINE = '{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}\n'
BAD_LINE = '{"prompt": "Hi", "chosen": "", "rejected": "What?"}\n'


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
    }

    def run(*words: str, input: str | None = None, **other: str | None) -> Result:
        return CliRunner().invoke(app, list(words), input=input, env={**environment, **other})

    return run


def in_order(text: str, *parts: str) -> bool:
    """Whether the parts stand in the text one behind the other."""
    position = 0
    for part in parts:
        position = text.find(part, position)
        if position < 0:
            return False
    return True


# --- reads --------------------------------------------------------------------------------------------


def test_status_shows_who_answers_and_what_a_round_would_learn_from(api: FakeApi, run: Run) -> None:
    result = run("status")
    assert result.exit_code == 0
    assert in_order(
        result.stdout, "seedling", f"{SECOND} (generation 2)", FIRST, "64 (60 from votes, 4 imported)", "r-1"
    )


def test_a_running_round_is_part_of_the_status(api: FakeApi, run: Run) -> None:
    api.rounds[7] = a_round(7)
    assert "7 is queued" in run("status").stdout


def test_a_pause_a_canary_and_a_silent_replica_are_part_of_the_status(api: FakeApi, run: Run) -> None:
    api.unusual["pause"] = {"who": "tess", "at": "2026-01-02T03:04:05+00:00", "reason": "a holiday"}
    api.unusual["canary"] = {
        "candidate": SECOND, "steps_begun": 2, "share": 0.25, "requests": 40, "held": False, "waits_for": "its soak time",
    }  # fmt: skip
    api.unusual["silent"] = ["no answer within 5 s"]
    shown = " ".join(run("status").stdout.split())
    assert "step 2, 0.25 of the users, 40 requests; waits for its soak time" in shown
    assert "by tess at" in shown
    assert "a holiday" in shown
    assert "a replica does not answer: no answer within 5 s" in shown


def test_adapters_are_listed_and_shown_with_their_verdict(run: Run) -> None:
    assert in_order(run("adapters", "list").stdout, FIRST, "base", SECOND, FIRST)
    assert in_order(run("adapters", "show", SECOND).stdout, SECOND, FIRST, "2" * 64, "held_out", "pass", "0.875", "0.5")


def test_preferences_show_every_reason_in_plain_words(run: Run) -> None:
    result = run("preferences")
    assert in_order(
        result.stdout, "130", "100", "25", "no_partner", "no opposite vote", "5", "truncated", "token limit"
    )
    assert "chatcmpl-" not in result.stdout


def test_votes_are_listed_when_a_filter_is_given(run: Run) -> None:
    result = run("preferences", "--status", "left_out", "--reason", "truncated")
    assert "chatcmpl-truncated" in result.stdout
    assert "chatcmpl-no_partner" not in result.stdout


def test_audit_shows_who_why_and_hides_what_is_empty(api: FakeApi, run: Run) -> None:
    detail = {"reason": "too chatty", "from": None, "generation": 3}
    api.audit = [
        AuditEntry(seq=1, at=NOW, who="admin", action="rollback", subject=FIRST, detail=detail, digest="0" * 64)
    ]
    result = run("audit")
    assert in_order(result.stdout, "admin", "rollback", FIRST, "reason=too chatty", "generation=3")
    assert "from=" not in result.stdout


def test_rounds_are_listed_and_shown_with_what_was_measured(api: FakeApi, run: Run) -> None:
    fields: dict[str, Any] = {
        "report": a_report().model_dump(mode="json"), "verdict": PASSED, "adapter": SECOND, "pairs": 104,
        "funnel": api.funnel.model_dump(mode="json"), "reason": "passed 2 checks", "attempt": 1,
    }  # fmt: skip
    api.rounds = {1: a_round(1, **fields), 2: a_round(2)}
    assert in_order(run("round", "list").stdout, "2", "queued", "1", SECOND, "passed 2 checks")
    shown = run("round", "show", "1").stdout
    assert in_order(
        shown, "beta=0.1", "25", "no_partner", "80 pairs, 24 held out, 2 too_long", "87.5%", "50.0%", "integrity"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("audit",),
        ("round", "list"),
        ("round", "show", "1"),
        ("adapters", "list"),
        ("adapters", "show", FIRST),
        ("preferences",),
        ("keys", "list"),
    ],
    ids=" ".join,
)
def test_json_is_the_service_s_own(api: FakeApi, run: Run, words: tuple[str, ...]) -> None:
    api.rounds[1] = a_round(1, note="for Zoë")
    result = run(*words, "--json")
    assert result.exit_code == 0
    assert result.stdout == api.last_text + "\n"


# --- changes ------------------------------------------------------------------------------------------


def test_promote_names_the_adapter_and_what_must_still_answer(api: FakeApi, run: Run) -> None:
    result = run("promote", FIRST, "--expect", SECOND, "--reason", "better")
    assert in_order(result.stdout, f"{FIRST} answers (generation 3)", "1.25 s", "42 ms", f"previous is {SECOND}")
    assert api.requests[-1][2] == {"expected_current": SECOND, "reason": "better"}


def test_promote_is_refused_when_another_adapter_answers_by_now(api: FakeApi, run: Run) -> None:
    result = run("promote", FIRST, "--expect", FIRST)
    assert result.exit_code == 1
    assert result.stderr == f"error: {SECOND} answers by now.\n"
    assert api.route.stable == SECOND


def test_rollback_goes_to_the_previous_adapter_or_to_a_named_one(api: FakeApi, run: Run) -> None:
    assert f"{FIRST} answers" in run("rollback", "--reason", "too chatty").stdout
    assert api.requests[-1][2] == {"to": None, "expected_current": None, "reason": "too chatty"}
    assert "base answers" in run("rollback", "--to", "base").stdout


def test_import_reads_a_file_and_stdin(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(GOOD_LINE)
    said = "format: trl (1 of 1 first rows)\n1 preferences added, 0 were known already\n"
    assert run("import", str(file)).stdout == said
    assert run("import", "-", input=GOOD_LINE).stdout == said


def test_import_names_each_bad_line_and_imports_nothing(run: Run) -> None:
    result = run("import", "-", input=GOOD_LINE + BAD_LINE)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert in_order(result.stderr, "format: trl", "2", "chosen", "empty text", "error: 1 of 2 rows are not valid")


def test_import_skips_bad_lines_when_told_to_and_still_names_them(run: Run) -> None:
    result = run("import", "-", "--skip-bad", input=GOOD_LINE + BAD_LINE)
    assert result.exit_code == 0
    assert in_order(result.stdout, "1 preferences added", "2", "chosen", "empty text")


def test_import_as_json_reports_the_bad_lines_as_json(run: Run) -> None:
    result = run("import", "-", "--json", input=BAD_LINE)
    assert [fault["row"] for fault in json.loads(result.stderr)["faults"]] == [1]


def test_a_key_is_issued_shown_once_and_revoked(api: FakeApi, run: Run) -> None:
    issued = run("keys", "issue", "reader", "--role", "operator")
    assert in_order(issued.stdout, "ccc", "operator", "reader", "hel_operator_ccc_", "never shown again")
    assert "ccc" in run("keys", "list").stdout
    assert run("keys", "revoke", "ccc").stdout == "key ccc is revoked\n"
    assert "ccc" not in run("keys", "list").stdout


# --- how it ends --------------------------------------------------------------------------------------


def test_a_refusal_is_one_line_on_stderr(run: Run) -> None:
    result = run("adapters", "show", "policy-9")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: There is no adapter 'policy-9'.\n"


def test_with_json_a_refusal_is_the_service_s_error_object(api: FakeApi, run: Run) -> None:
    result = run("adapters", "show", "policy-9", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert json.loads(result.stderr) == json.loads(api.last_text)


def test_a_name_cannot_lead_to_another_path(api: FakeApi, run: Run) -> None:
    assert run("adapters", "show", "x/../../keys?a").exit_code == 1
    assert api.requests[-1][1] == "/ops/adapters/x%2F..%2F..%2Fkeys%3Fa"


def test_without_a_valid_key_it_says_how_to_give_one(run: Run) -> None:
    for key in ("wrong", None):
        result = run("status", HELIOTROPE_KEY=key)
        assert result.exit_code == 1
        assert in_order(result.stderr, "missing or not valid", "HELIOTROPE_KEY", "--state", "keys.json")


def test_the_wrong_role_is_refused_in_one_line(run: Run) -> None:
    result = run("status", HELIOTROPE_KEY=APP_KEY)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_the_key_of_the_state_folder_opens_the_service(run: Run, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps({"app": APP_KEY, "operator": OPERATOR_KEY}))
    result = run("status", "--state", str(tmp_path), HELIOTROPE_KEY=None)
    assert result.exit_code == 0


def test_the_url_of_the_state_folder_is_used_when_none_is_given(api: FakeApi, run: Run, tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"pid": 1, "url": api.url}))
    result = run("status", "--state", str(tmp_path), HELIOTROPE_URL=None)
    assert result.exit_code == 0


def test_a_service_that_is_not_there_is_named_with_the_remedy(run: Run) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody can answer there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        result = run("status", "--url", url)
    assert result.exit_code == 1
    assert in_order(result.stderr, url, "heliotrope up")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("round", "show", "seven"),
        ("round", "show", "0"),
        ("promote",),
        ("import", "/no/such/file"),
        ("status", "--url", "localhost:8000"),
        ("status", "--frobnicate"),
        ("up", "--port", "99999"),
        ("up", "--config", "/no/such/file.toml"),
    ],
    ids=" ".join,
)
def test_a_usage_error_exits_with_2_and_asks_nothing(api: FakeApi, run: Run, words: tuple[str, ...]) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr
    assert api.requests == []


def test_up_refuses_an_unknown_setting_by_name_before_anything_starts(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "heliotrope.toml"
    config.write_text("[server]\nprot = 80\n")
    result = run("up", "--config", str(config))
    assert result.exit_code == 1
    assert in_order(result.stderr, "error: ", "server.prot", str(config))
    assert result.stderr.count("\n") == 1


def test_control_characters_of_the_service_do_not_reach_the_terminal(api: FakeApi, run: Run) -> None:
    api.rounds[1] = a_round(1, note="\x1b[2Jgone", reason="\x1b]0;title\x07")
    result = run("round", "show", "1")
    assert "[2Jgone" in result.stdout
    assert "\x1b" not in result.stdout


def test_global_options_may_stand_anywhere_but_behind_two_dashes() -> None:
    assert global_first(["status", "--url", "u", "--json"]) == ["--url", "u", "status", "--json"]
    assert global_first(["status", "--state=s"]) == ["--state=s", "status"]
    assert global_first(["import", "--", "--url"]) == ["import", "--", "--url"]
    assert global_first(["status", "--url"]) == ["--url", "status"]
