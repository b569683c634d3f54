"""`round start` and `round watch`: what is asked for, what is seen while it runs, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from service.cli import app
from service.client import Client, Refused
from service.contracts import RoundState
from service.watch import FINAL, RoundView, follow, render, sparkline, watch
from tests.fake_api import (
    NOW,
    OPERATOR_KEY,
    PASSED,
    SECOND,
    TURNED_DOWN,
    FakeApi,
    a_round,
    a_step,
    a_whole_round,
    events_of,
)
from tests.fake_learning import a_canary, a_watch

Run = Callable[..., Result]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


@pytest.fixture
def run(api: FakeApi) -> Run:
    environment = {"HELIOTROPE_URL": api.url, "HELIOTROPE_KEY": OPERATOR_KEY}
    return lambda *words: CliRunner().invoke(app, list(words), env=environment)


def promoted(api: FakeApi, n: int = 1) -> None:
    api.rounds[n] = a_round(n, RoundState.PROMOTED, adapter=SECOND, verdict=PASSED, reason="passed 2 checks")
    api.events[n] = a_whole_round(RoundState.PROMOTED, "passed 2 checks")


# --- starting -----------------------------------------------------------------------------------------


def test_start_sends_only_what_was_given(api: FakeApi, run: Run) -> None:
    result = run("round", "start", "--beta", "0.2", "--epochs", "3", "--note", "first")
    assert result.exit_code == 0
    assert api.requests[-1][2] == {"beta": 0.2, "epochs": 3, "note": "first"}
    assert "round 1 is queued" in result.stdout
    assert "heliotrope round watch 1" in result.stdout


def test_a_value_out_of_bounds_is_refused_by_its_field(run: Run) -> None:
    result = run("round", "start", "--beta", "-1")
    assert result.exit_code == 1
    assert "beta" in result.stderr


def test_a_second_round_is_refused_while_one_runs(run: Run) -> None:
    run("round", "start")
    result = run("round", "start")
    assert (result.exit_code, result.stderr) == (1, "error: Round 1 is queued. Wait for it or cancel it.\n")


def test_a_dry_run_shows_the_funnel_and_starts_nothing(api: FakeApi, run: Run) -> None:
    result = run("round", "start", "--dry-run", "--min-pairs", "65", "--watch")
    assert result.exit_code == 0
    assert "no_partner" in result.stdout
    assert "would do nothing: 64 new pairs, 65 are needed (min_pairs)" in result.stdout
    assert "would learn from these" in run("round", "start", "--dry-run").stdout
    assert api.rounds == {}


def test_start_and_watch_follows_the_new_round(api: FakeApi, run: Run) -> None:
    api.events[1] = a_whole_round(RoundState.REJECTED, "learned: no margin")
    result = run("round", "start", "--watch")
    assert result.exit_code == 1
    assert "round 1: rejected (learned: no margin)" in result.stdout


def test_cancel_says_what_became_of_the_round(api: FakeApi, run: Run) -> None:
    api.rounds[1] = a_round(1, RoundState.TRAINING)
    assert run("round", "cancel", "1").stdout == "round 1 is cancelled\n"


def test_an_operator_approves_and_turns_down_with_a_reason(api: FakeApi, run: Run) -> None:
    api.rounds[1] = a_round(1, RoundState.AWAITING_APPROVAL)
    approved = run("round", "approve", "1", "--reason", "looks well")
    assert approved.stdout == "round 1 is awaiting_approval, approved by admin\n"
    assert api.requests[-1] == ("POST", "/ops/rounds/1/approve", {"reason": "looks well"})
    assert run("round", "reject", "1").stdout == "round 1 is rejected\n"
    assert run("round", "approve", "9").exit_code == 1


def test_a_round_shows_its_canary_and_what_was_watched(api: FakeApi, run: Run) -> None:
    api.rounds[1] = a_round(1, RoundState.PROMOTED, canary=a_canary(NOW), watch=a_watch(NOW))
    shown = run("round", "show", "1").stdout
    for part in ("5% of the users since", "12 of the candidate, 240 of old", "12 of 200 requests", "disliked"):
        assert part in shown
    assert "rolled_back (disliked: 15.0% of 400 users an hour)" in shown


def test_rounds_are_paused_resumed_and_what_starts_them_is_shown(api: FakeApi, run: Run) -> None:
    assert run("pause", "--reason", "audit").stdout.startswith("paused by admin at ")
    assert api.requests[-1] == ("POST", "/ops/pause", {"reason": "audit"})
    assert run("resume").stdout == "resumed\n"
    triggers = run("triggers").stdout
    assert "new_pairs=200" in triggers
    assert "20 are missing" in triggers


def test_the_power_of_a_canary_is_a_table_of_harms(run: Run) -> None:
    result = run("canary", "power")
    assert result.exit_code == 0
    assert "by 16800 users in 168 hours" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:4] for line in lines if line[:1] == ["disliked"]] == [
        ["disliked", "2.00%", "5%", times] for times in ("1.25", "1.50", "2.00", "4.00")
    ]
    assert json.loads(run("canary", "power", "--json").stdout)["alpha"] == 0.05


def test_steps_and_ends_of_a_canary_are_lines_of_the_watch(api: FakeApi, run: Run) -> None:
    api.rounds[1] = a_round(1, RoundState.REJECTED, reason="stopped")
    api.events[1] = events_of(
        ("canary", {"step": 1, "steps": 2, "share": 0.05, "adapter": SECOND}),
        ("watch", {"ended": "kept", "why": "no harm was seen", "adapter": SECOND}),
        ("state", {"state": "rejected", "reason": "stopped"}),
    )
    lines = run("round", "watch", "1").stdout.splitlines()
    assert lines[:2] == [
        "round 1: canary step 1 of 2: 5% of the users",
        f"round 1: {SECOND} was watched: kept (no harm was seen)",
    ]


# --- watching -----------------------------------------------------------------------------------------


def test_a_pipe_gets_one_line_an_event_then_the_verdict_and_the_result(api: FakeApi, run: Run) -> None:
    promoted(api)
    result = run("round", "watch", "1")
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[:5] == [
        "round 1: queued",
        "round 1: training",
        "round 1: attempt 1",
        "round 1: phase reference",
        "round 1: step 1 of 2, loss 0.6900, margin 0.7500, accuracy 88%",
    ]
    assert f"round 1: swap to {SECOND}, prepared in 1.25 s, swapped in 42 ms" in lines
    assert any(line.split()[:4] == ["held_out", "pass", "0.875", "0.5"] for line in lines)
    assert lines[-1] == f"round 1 was promoted (passed 2 checks): {SECOND} answers now"


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (RoundState.REJECTED, "round 1 was rejected (because): the adapter that answered stays"),
        (RoundState.FAILED, "round 1 failed (because): the adapter that answered stays"),
        (RoundState.CANCELLED, "round 1 was cancelled (because): the adapter that answered stays"),
    ],
)
def test_watching_exits_with_1_unless_promoted_and_says_why(api: FakeApi, run: Run, end: RoundState, said: str) -> None:
    api.rounds[1] = a_round(1, end, reason="because", verdict=TURNED_DOWN if end is RoundState.REJECTED else None)
    api.events[1] = a_whole_round(end, "because")
    result = run("round", "watch", "1")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == said


def test_watching_as_json_prints_the_events_as_they_came(api: FakeApi, run: Run) -> None:
    promoted(api)
    result = run("round", "watch", "1", "--json")
    assert result.exit_code == 0
    sent = [event.model_dump(mode="json") for event in api.events[1]]
    assert [json.loads(line) for line in result.stdout.splitlines()] == sent


def test_watching_a_round_that_does_not_exist_fails_at_once(run: Run) -> None:
    result = run("round", "watch", "9")
    assert (result.exit_code, result.stderr) == (1, "error: There is no round 9.\n")


def test_stopping_to_watch_exits_with_130_and_leaves_the_round_alone(api: FakeApi) -> None:
    api.rounds[1], api.events[1] = a_round(1), a_whole_round(RoundState.PROMOTED, "")[:2]
    environment = {**os.environ, "HELIOTROPE_URL": api.url, "HELIOTROPE_KEY": OPERATOR_KEY}
    command = [sys.executable, "-m", "service", "round", "watch", "1"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().strip() == "round 1: queued"
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate()
    assert watching.returncode == 130
    assert said == "The round goes on; see it again with `heliotrope round watch 1`.\n"
    assert {method for method, _, _ in api.requests} == {"GET"}


def test_a_broken_stream_is_taken_up_behind_the_last_event(api: FakeApi) -> None:
    promoted(api)
    api.cuts = [3, 0, 2]
    told: list[str] = []
    events = list(follow(Client(api.url, OPERATOR_KEY), 1, told.append, pause=lambda _: None))
    assert [event["seq"] for event in events] == [event.seq for event in api.events[1]]
    assert [path for _, path, _ in api.requests] == [f"/ops/rounds/1/events?after={n}" for n in (0, 30, 30, 50)]
    assert len(told) == 3


def test_a_restarting_conductor_is_waited_for(api: FakeApi) -> None:
    promoted(api)
    api.cuts, told = [2], []
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        api.outage = 2 if len(pauses) == 1 else api.outage

    events = list(follow(Client(api.url, OPERATOR_KEY), 1, told.append, pause))
    assert len(events) == len(api.events[1])
    assert told[1:] == ["The Conductor starts."] * 2


def test_a_stream_that_ends_before_the_round_does_is_opened_again(api: FakeApi) -> None:
    promoted(api)
    whole = api.events[1]
    api.events[1] = whole[:4]

    def pause(seconds: float) -> None:
        api.events[1] = whole

    events = list(follow(Client(api.url, OPERATOR_KEY), 1, lambda _: None, pause))
    assert [event["seq"] for event in events] == [event.seq for event in whole]


def test_a_refusal_ends_the_watching(api: FakeApi) -> None:
    with pytest.raises(Refused, match="no round 5"):
        list(follow(Client(api.url, OPERATOR_KEY), 5, lambda _: None, pause=lambda _: None))


def test_a_terminal_sees_the_last_step_the_verdict_and_the_result(api: FakeApi) -> None:
    promoted(api)
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False, markup=False)
    assert watch(Client(api.url, OPERATOR_KEY), 1, screen)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    for part in ("2 of 2", "0.3100", "█▁", "swapped in 42 ms", "held_out", f"{SECOND} answers now"):
        assert part in shown


# --- what is drawn ------------------------------------------------------------------------------------


def drawn(view: RoundView) -> str:
    page = Console(file=io.StringIO(), width=100)
    page.print(render(view))
    return page.file.getvalue()  # type: ignore[attr-defined]


def test_a_new_attempt_begins_from_its_first_step_again() -> None:
    view = RoundView(3)
    first = a_step(7, 10, 0.5).model_dump(mode="json")
    for event in events_of(("step", first), ("state", {"state": "training", "attempt": 2, "reason": None})):
        view.apply(event.model_dump(mode="json"))
    assert view.step is None
    assert view.losses == []
    assert "training, attempt 2" in drawn(view)
    assert "of 10" not in drawn(view)


def test_trouble_is_shown_until_something_is_heard_again() -> None:
    view = RoundView(3, trouble="the connection broke")
    assert "the connection broke" in drawn(view)
    (event,) = events_of(("phase", {"phase": "load"}))
    view.apply(event.model_dump(mode="json"))
    assert "the connection broke" not in drawn(view)


def test_the_time_left_follows_from_the_steps_so_far() -> None:
    view = RoundView(3)
    (event,) = events_of(("step", a_step(10, 30, 0.5).model_dump(mode="json")))  # half a second each
    view.apply(event.model_dump(mode="json"))
    assert "10 of 30, about 10 s left" in drawn(view)
    (event,) = events_of(("step", a_step(30, 30, 0.5).model_dump(mode="json")))
    view.apply(event.model_dump(mode="json"))
    assert "left" not in drawn(view)


def test_a_sparkline_spans_its_values() -> None:
    assert sparkline([3, 2, 1]) == "█▅▁"
    assert sparkline([1, 1]) == "▁▁"
    assert sparkline([9, *([0.0] * 3)], columns=3) == "▁▁▁"


def test_the_final_states_are_the_contract_s() -> None:
    assert frozenset(state.value for state in RoundState if state.final) == FINAL
