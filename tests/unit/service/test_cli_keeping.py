"""`users erase`, `backup` and `restore` in a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.keeping.erasing import Erased
from tests.fake_api import FIRST, OPERATOR_KEY, SECOND, FakeApi

ERASED = Erased(
    completions=3, votes=5, pairs=4, quarantine=0, snapshot_rows=2, snapshots=(1,), cancelled_round=None,
    rounds=(1,), adapters=(FIRST, SECOND),
)  # fmt: skip


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        api.erasure = ERASED
        yield api


def _run(state: Path, *words: str, url: str | None = None, input: str | None = None) -> Result:
    environment = {"HELIOTROPE_URL": url, "HELIOTROPE_KEY": OPERATOR_KEY, "HELIOTROPE_STATE": str(state)}
    return CliRunner().invoke(app, list(words), input=input, env=environment)


def test_erasing_shows_what_is_gone_and_who_has_learned_from_it(api: FakeApi, tmp_path: Path) -> None:
    shown = _run(tmp_path, "users", "erase", "ada lovelace", "--app", "the shop", "--yes", url=api.url)
    assert shown.exit_code == 0, shown.output
    assert api.erased == [("ada lovelace", "the shop")]
    assert all(word in shown.stdout for word in ("snapshot rows", FIRST, SECOND, "rollback"))


def test_erasing_asks_first(api: FakeApi, tmp_path: Path) -> None:
    for answer, asked in (("n\n", []), ("", []), ("y\n", [("ada", None)])):
        ended = _run(tmp_path, "users", "erase", "ada", url=api.url, input=answer)
        assert "Erase all that is kept of 'ada' in all apps?" in ended.stderr
        assert (ended.exit_code == 0, api.erased) == (bool(asked), asked)


def test_erasing_as_json_is_the_answer_itself(api: FakeApi, tmp_path: Path) -> None:
    shown = _run(tmp_path, "users", "erase", "ada", "--yes", "--json", url=api.url)
    assert json.loads(shown.stdout) == ERASED.model_dump(mode="json")


def test_where_nobody_learned_that_is_said(api: FakeApi, tmp_path: Path) -> None:
    api.erasure = ERASED.model_copy(update={"rounds": (), "adapters": (), "cancelled_round": 3})
    shown = _run(tmp_path, "users", "erase", "ada", "--yes", url=api.url)
    assert "No adapter has learned from it." in shown.stdout
    assert "cancelled round" in shown.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("backup",), "there is nothing to back up"),
        (("restore",), "There is no file"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    ended = _run(tmp_path / "state", *words, str(tmp_path / "file"))
    assert ended.exit_code == 1
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "file").exists()
