"""`preferences` and `quarantine` against a real server: what they ask, what they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.cli.preferences import REASONS
from service.curation.held import Held
from service.pairs import LeftOut
from tests.fake_api import NOW, OPERATOR_KEY, FakeApi

Run = Callable[..., Result]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        held = {"kind": "burst", "app": "shop", "why": "many votes at once", "evidence": {"votes": 150}, "votes": 150}
        api.quarantine = {
            2: Held(id=2, user="bob", status="held", created_at=NOW, decided_at=None, decided_by=None, **held),
            1: Held(id=1, user="eve", status="dropped", created_at=NOW, decided_at=NOW, decided_by="tess", **held),
        }
        yield api


@pytest.fixture
def run(api: FakeApi, tmp_path: Path) -> Run:
    environment = {"HELIOTROPE_URL": api.url, "HELIOTROPE_KEY": OPERATOR_KEY, "HELIOTROPE_STATE": str(tmp_path)}

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), env=environment)

    return run


def test_there_are_plain_words_for_every_reason() -> None:
    assert set(REASONS) == {reason.value for reason in LeftOut}


@pytest.mark.parametrize(
    ("words", "query"),
    [
        ((), ""),
        (("--app", "shop", "--user", "ada", "--limit", "2"), "?app=shop&user=ada&limit=2"),
        (("--tag", "tone", "--source", "same_prompt"), "?tag=tone&source=same_prompt"),
        (("--objective", "kto", "--status", "thumb", "--after", "7"), "?objective=kto&status=thumb&after=7"),
    ],
    ids=" ".join,
)
def test_every_filter_reaches_the_service(api: FakeApi, run: Run, words: tuple[str, ...], query: str) -> None:
    result = run("preferences", *words)
    assert result.exit_code == 0
    assert api.requests[-1][1] == f"/ops/preferences{query}"


def test_a_page_of_votes_says_how_to_get_the_next(run: Run) -> None:
    first = run("preferences", "--limit", "2").stdout
    assert "chatcmpl-None" in first
    assert "more: --after 2" in first
    assert "more:" not in run("preferences", "--limit", "3").stdout


def test_what_is_held_is_listed_with_why(api: FakeApi, run: Run) -> None:
    shown = run("quarantine", "list").stdout
    for part in ("bob", "held", "150", "many votes at once", "eve", "dropped"):
        assert part in shown
    assert "eve" not in run("quarantine", "list", "--status", "held").stdout


@pytest.mark.parametrize(("word", "status"), [("release", "released"), ("drop", "dropped")])
def test_the_word_on_an_item_is_given_with_a_reason(api: FakeApi, run: Run, word: str, status: str) -> None:
    result = run("quarantine", word, "2", "--reason", "we asked bob")
    assert (result.exit_code, result.stdout) == (0, f"item 2 is {status}: 150 votes of bob\n")
    assert api.requests[-1] == ("POST", f"/ops/quarantine/2/{word}", {"reason": "we asked bob"})
    assert api.quarantine[2].status == status


def test_what_is_not_there_is_one_line_and_a_failure(run: Run) -> None:
    result = run("quarantine", "release", "9")
    assert result.exit_code == 1
    assert result.stderr == "error: There is no item 9 in quarantine.\n"
