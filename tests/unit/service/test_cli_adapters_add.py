"""`adapters add`: which files leave this machine, and what is refused before any does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.cli.adapters import CONFIG, MANIFEST, WEIGHTS
from service.contracts import RoundState
from serving import adapters
from tests.adapter_files import write_adapter
from tests.fake_api import OPERATOR_KEY, PASSED, SECOND, FakeApi, a_report, a_round, a_whole_round

Run = Callable[..., Result]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


@pytest.fixture
def run(api: FakeApi) -> Run:
    environment = {"HELIOTROPE_URL": api.url, "HELIOTROPE_KEY": OPERATOR_KEY}
    return lambda *words: CliRunner().invoke(app, list(words), env=environment)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    directory = tmp_path / "run" / "adapter"
    write_adapter(directory, 3)
    (directory / "README.md").write_text("made by PEFT")
    (directory / "checkpoint-8").mkdir()
    return directory


def test_the_names_of_the_files_are_those_of_serving() -> None:
    assert (CONFIG, WEIGHTS, MANIFEST) == (adapters.CONFIG, adapters.WEIGHTS, adapters.MANIFEST)


def test_the_files_of_the_adapter_are_sent_and_no_others(api: FakeApi, run: Run, adapter: Path) -> None:
    result = run("adapters", "add", str(adapter), "--note", "by hand")
    assert result.exit_code == 0
    assert api.received == {name: (adapter / name).read_bytes() for name in (CONFIG, WEIGHTS, MANIFEST)}
    assert api.requests[-1][:2] == ("POST", "/ops/adapters?note=by+hand")
    assert "round 1 is queued" in result.stdout


def test_an_adapter_is_found_where_training_writes_it_and_behind_links(
    api: FakeApi, run: Run, adapter: Path, tmp_path: Path
) -> None:
    assert run("adapters", "add", str(adapter.parent)).exit_code == 0
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in (CONFIG, WEIGHTS):
        (linked / name).symlink_to(adapter / name)
    api.rounds.clear()
    assert run("adapters", "add", str(linked), "--assume-base").exit_code == 0
    assert api.received.keys() == {CONFIG, WEIGHTS}
    assert api.rounds[1].candidate is not None
    assert api.rounds[1].candidate.assumed_base


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_folder_that_is_no_adapter_is_refused_before_anything_is_sent(
    api: FakeApi, run: Run, adapter: Path, missing: str
) -> None:
    (adapter / missing).unlink()
    result = run("adapters", "add", str(adapter))
    assert result.exit_code == 1
    assert f"holds no {missing}" in result.stderr
    assert api.requests == []


def test_a_folder_that_is_not_there_is_a_usage_error(api: FakeApi, run: Run, tmp_path: Path) -> None:
    assert run("adapters", "add", str(tmp_path / "nowhere")).exit_code == 2
    assert api.requests == []


def test_its_round_is_watched_to_the_end(api: FakeApi, run: Run, adapter: Path) -> None:
    api.events[1] = a_whole_round(RoundState.REJECTED, "held_out: 0 held-out pairs cannot decide")
    result = run("adapters", "add", str(adapter), "--watch")
    assert result.exit_code == 1
    assert "round 1: rejected (held_out: 0 held-out pairs cannot decide)" in result.stdout


def test_what_was_measured_is_shown(api: FakeApi, run: Run) -> None:
    report = a_report().model_dump(mode="json") | {
        "thumbs_trained": 12, "thumbs_held_out": 3, "layout": "dense", "layout_reason": "sliding window",
        "dtype": "bfloat16", "objective": "dpo+kto", "drift": {"tokens": 900, "kl_previous": 0.0125, "kl_base": 0.5},
        "findings": [{"check": "missing_eos", "action": "noted", "count": 3, "rows": [4, 9], "why": "no end of turn"}],
        "evaluation": {"eval_loss": 0.4375, "eval_rewards/margins": 1.5},
    }  # fmt: skip
    parity = {
        "samples": 4, "tokens": 60, "mean_abs": 0.0002, "max_abs": 0.0031,
        "training_dtype": "float32", "serving_dtype": "bfloat16",
    }  # fmt: skip
    api.rounds[1] = a_round(1, RoundState.PROMOTED, report=report, parity=parity, verdict=PASSED, adapter=SECOND)
    shown = run("round", "show", "1").stdout
    for part in (
        "12 thumbs, 3 held out", "dpo+kto, dense prompts (sliding window), bfloat16", "eval_loss=0.4375",
        "KL 0.0125 to the deployed adapter, 0.5 to the base", "serving is 0.0002 from training in the mean",
        "missing_eos", "no end of turn", "4, 9",
    ):  # fmt: skip
        assert part in shown
    api.events[1] = a_whole_round(RoundState.PROMOTED, "passed 2 checks")
    assert "KL 0.0125 to the deployed adapter" in run("round", "watch", "1").stdout


def test_lineage_says_who_brought_it(api: FakeApi, run: Run) -> None:
    api.adapters[1] = api.adapters[1].model_copy(update={"added_by": "tess"})
    assert "outside, added by tess" in run("adapters", "show", SECOND).stdout
    assert "tess" in run("adapters", "list").stdout
    assert "a round of training here" in run("adapters", "show", api.adapters[0].name).stdout
