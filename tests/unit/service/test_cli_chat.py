"""`chat`: questions, answers, votes, as lines in a pipe and as a person writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.client import Client
from service.talk import Talk
from service.votes import Rating
from tests.fake_api import APP_KEY, SECOND, FakeApi

Run = Callable[..., Result]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


@pytest.fixture
def chat(api: FakeApi) -> Run:
    environment = {"HELIOTROPE_URL": api.url, "HELIOTROPE_KEY": APP_KEY}
    return lambda *lines, **options: CliRunner().invoke(
        app, ["chat", *options.get("words", ())], input="\n".join(lines), env=environment
    )


def asked(api: FakeApi) -> list[list[str]]:
    """For each chat request the contents of its messages."""
    return [[m["content"] for m in body["messages"]] for _, path, body in api.requests if path.endswith("completions")]


def test_an_answer_goes_to_stdout_and_nothing_else_does(chat: Run) -> None:
    result = chat("hi", "+")
    assert (result.exit_code, result.stdout) == (0, "Hello, world.\n")
    assert result.stderr == f"voted up on {SECOND}\n"


def test_a_vote_is_about_the_last_answer_and_may_change(api: FakeApi, chat: Run) -> None:
    chat("one", "+", "two", "+", "-")
    assert [(vote.completion_id, vote.rating) for vote in api.votes] == [
        ("chatcmpl-1", Rating.UP),
        ("chatcmpl-2", Rating.UP),
        ("chatcmpl-2", Rating.DOWN),
    ]


def test_without_an_answer_there_is_nothing_to_rate(api: FakeApi, chat: Run) -> None:
    result = chat("+", "hi", "/new", "-")
    assert result.stderr.count("no answer to rate") == 2
    assert api.votes == []


def test_the_conversation_grows_until_a_new_one_begins(api: FakeApi, chat: Run) -> None:
    chat("one", "two", "/new", "three")
    assert asked(api) == [["one"], ["one", "Hello, world.", "two"], ["three"]]


def test_another_model_is_talked_to_when_asked_for(api: FakeApi, chat: Run) -> None:
    chat("one", "/model base", "two", words=("--model", "policy@previous"))
    assert [body["model"] for _, path, body in api.requests if path.endswith("completions")] == [
        "policy@previous",
        "base",
    ]


def test_the_models_there_are_and_the_help_are_shown(chat: Run) -> None:
    result = chat("/model", "/help", "/what")
    assert "policy\nbase\n" in result.stderr
    assert "vote the last answer" in result.stderr
    assert "There is no /what" in result.stderr


def test_in_a_pipe_an_error_ends_the_talk(api: FakeApi, chat: Run) -> None:
    result = chat("/model nobody", "one", "two")
    assert result.exit_code == 1
    assert result.stderr.endswith("error: The model 'nobody' does not exist.\n")
    assert asked(api) == [["one"]]


def test_an_answer_that_breaks_off_is_an_error(api: FakeApi, chat: Run) -> None:
    api.cuts = [2]
    result = chat("one")
    assert result.exit_code == 1
    assert "broke" in result.stderr


def test_a_person_goes_on_after_an_error_and_the_lost_question_is_left_out(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.cuts = [99, 2]
    Talk(Client(api.url, APP_KEY), "policy", interactive=True).run(["one", "lost", "+", "two"])
    assert asked(api)[2] == ["one", "Hello, world.", "two"]
    assert api.votes == []
    assert SECOND in capsys.readouterr().err


def test_an_answer_cut_at_the_token_limit_is_marked(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.finish_reason = "length"
    Talk(Client(api.url, APP_KEY), "policy", interactive=True).run(["one"])
    assert "cut off at the token limit" in capsys.readouterr().err


def test_stopping_an_answer_leaves_its_question_out(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    class Impatient(Client):
        def chat(self, body: dict[str, object]) -> Iterator[dict[str, object]]:
            for number, chunk in enumerate(super().chat(body)):
                if number == 2 and len(asked(api)) == 1:
                    raise KeyboardInterrupt
                yield chunk

    Talk(Impatient(api.url, APP_KEY), "policy", interactive=True).run(["one", "two"])
    assert asked(api) == [["one"], ["two"]]
    assert "Stopped" in capsys.readouterr().err


def test_what_a_model_writes_cannot_steer_the_terminal(api: FakeApi, chat: Run) -> None:
    api.answer_tokens = ["a\x1b[2J", "b\x07\n", "\u202ec"]
    assert chat("hi").stdout == "a[2Jb\n\u202ec\n"
