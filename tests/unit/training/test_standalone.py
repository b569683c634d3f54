"""`python -m training`: whole runs through the command line, what they leave behind, and how they refuse."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.standalone import failed, reported, run, some_pairs, some_thumbs, written
from training import display
from training.adapter import read_adapter
from training.contracts import Progress, StepMetrics
from training.errors import TrainingError
from training.standalone import ADAPTER, model_directory


@pytest.fixture(autouse=True)
def own_determinism() -> Iterator[None]:
    """A run makes its process deterministic; this one goes on to other tests."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return written(tmp_path / "pairs.jsonl", some_pairs(40))


# --- whole runs ---------------------------------------------------------------------------------------


def test_a_run_says_what_it_does_and_where_everything_is(pairs: Path, models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(pairs, models["llama"], out, trackers="tensorboard", objective="dpo+0.2*nll", epochs=2)
    assert result.exit_code == 0, result.output
    assert "format: trl (32 of 32 first rows)" in result.stderr
    assert "read: 40 trl, {prompt, chosen, rejected} of strings" in result.stderr
    assert "step 1 of " in result.stderr
    assert {path.name for path in out.iterdir()} == {
        "adapter",
        "curves.svg",
        "held_out.json",
        "metrics",
        "samples.json",
    }
    said = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if line)
    assert said["adapter"] == str(out / "adapter")
    assert (said["curves"], said["metrics"]) == (str(out / "curves.svg"), str(out / "metrics"))
    assert said["next"] == f"heliotrope adapters add {out / 'adapter'}"
    assert said["name"] == read_adapter(out / "adapter")[0].name
    assert {"held", "loss", "drift", "evaluation"} <= set(said)


def test_the_report_as_json_is_alone_on_standard_output(pairs: Path, models: dict[str, Path], tmp_path: Path) -> None:
    report = reported(pairs, models["llama"], tmp_path / "out")
    assert report.pairs_trained + report.pairs_held_out == 40
    assert report.pairs_held_out > 0
    assert report.step0_max_abs_logratio == 0.0
    assert report.weights_changed


def test_thumbs_alone_train_by_kto(models: dict[str, Path], tmp_path: Path) -> None:
    thumbs = written(tmp_path / "thumbs.jsonl", some_thumbs(40))
    report = reported(thumbs, models["llama"], tmp_path / "out", objective="kto")
    assert (report.pairs_trained, report.pairs_held_out) == (0, 0)
    assert report.thumbs_trained + report.thumbs_held_out == 40
    assert report.step0_loss == pytest.approx(0.5)
    result = run(thumbs, models["llama"], tmp_path / "text", objective="kto")
    assert "40 kto, {prompt, completion, label}" in result.stderr
    assert "0 pairs, 0 held out; " in result.stdout
    failed(run(thumbs, models["llama"], tmp_path / "dpo"), 1, "use --objective kto")


def test_pairs_and_thumbs_of_one_file_train_together(models: dict[str, Path], tmp_path: Path) -> None:
    both = written(tmp_path / "both.jsonl", [*some_pairs(24), *some_thumbs(16)])
    report = reported(both, models["llama"], tmp_path / "out", objective="dpo+kto", held_out=0)
    assert (report.pairs_trained, report.thumbs_trained) == (24, 16)
    assert (report.pairs_held_out, report.current) == (0, None)
    alone = reported(both, models["llama"], tmp_path / "alone", held_out=0)
    assert (alone.pairs_trained, alone.pairs_skipped) == (24, {"single_thumb": 16})


def test_an_adapter_is_continued_in_its_own_shape(pairs: Path, models: dict[str, Path], tmp_path: Path) -> None:
    first = reported(pairs, models["llama"], tmp_path / "first")
    keep: dict[str, Any] = {"rank": None, "alpha": None, "parent": tmp_path / "first", "ordinal": 2, "round": 2}
    second = reported(pairs, models["llama"], tmp_path / "second", **keep)
    manifest, _ = read_adapter(Path(second.adapter_directory))
    assert (manifest.parent, manifest.rank, manifest.round) == (first.adapter_name, 4, 2)
    assert second.adapter_name.startswith("policy-0002-")
    assert second.current == first.candidate
    other = run(pairs, models["llama"], tmp_path / "third", **(keep | {"rank": 8}))
    failed(other, 1, "has rank 4 and alpha 8, the round asks for rank 8")


# --- refusals -----------------------------------------------------------------------------------------


def test_bad_rows_are_named_and_nothing_is_trained_unless_they_may_be_skipped(
    models: dict[str, Path], tmp_path: Path
) -> None:
    rows = ["", *some_pairs(20), "{", {"prompt": "a", "chosen": "b", "rejected": "b"}]
    rows.append({"prompt": "say <|user|>", "chosen": "b", "rejected": "c"})  # row 24: for the checks of the data
    bad = written(tmp_path / "bad.jsonl", rows)
    refused = run(bad, models["llama"], tmp_path / "out")
    failed(refused, 1, "2 of 23 rows are bad, so nothing is trained")
    assert "row 22: not valid JSON" in refused.stderr
    assert "row 23: rejected: the same as chosen" in refused.stderr
    assert list((tmp_path / "out").iterdir()) == []
    skipped = run(bad, models["llama"], tmp_path / "out", skip_bad=True, held_out=0)
    assert skipped.exit_code == 0, skipped.output
    assert "21 rows to train on, 0 held out, 2 bad ones left out" in skipped.stderr
    assert "1 left out, control_tokens (row 24)" in skipped.stdout
    assert "20 pairs, 0 held out; left out: 1 control_tokens" in skipped.stdout


def test_of_many_bad_rows_the_first_are_named(models: dict[str, Path], tmp_path: Path) -> None:
    result = run(written(tmp_path / "bad.jsonl", ["{"] * 100), models["llama"], tmp_path / "out")
    failed(result, 1, "100 of 100 rows are bad")
    assert len(result.stderr.splitlines()) == 22


def test_a_forced_format_refuses_the_others(pairs: Path, models: dict[str, Path], tmp_path: Path) -> None:
    failed(run(pairs, models["llama"], tmp_path / "out", format="kto"), 1, "its format is trl, not kto")


def test_an_adapter_is_never_overwritten(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out" / ADAPTER).mkdir(parents=True)
    unread = written(tmp_path / "pairs.jsonl", ["not even JSON"])
    failed(run(unread, models["llama"], tmp_path / "out"), 1, "exists already: name another --out, or remove it")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"objective": "dpo+nonsense"}, "Invalid value for --objective: unknown loss 'nonsense'"),
        ({"label_smoothing": 0.1}, "label_smoothing has no effect on 'dpo'"),
        ({"beta": 0}, "Invalid value for --beta"),
        ({"rank": 0}, "--rank"),
        ({"rank": "four"}, "--rank"),
        ({"checkpoint_seconds": -1}, "Invalid value for --checkpoint-seconds"),
        ({"ordinal": 0}, "Invalid value for --ordinal"),
        ({"held_out": 1}, "--held-out"),
        ({"trackers": "tensorboard,nothing"}, "Invalid value for --trackers"),
        ({"format": "standard"}, "--format"),
        ({"colour": "blue"}, "--colour"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """Found before the model or the pairs are looked at: neither is any."""
    pairs = written(tmp_path / "pairs.jsonl", ["not even JSON"])
    failed(run(pairs, "nowhere", tmp_path / "out", **options), 2, reason)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "\n\n", "prompt,chosen,rejected\na,b,c\n", "[]"])
def test_a_file_without_preferences_fails_in_one_line(content: str, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(content)
    result = run(tmp_path / "pairs.jsonl", models["llama"], tmp_path / "out")
    failed(result, 1, "error: ")
    assert len(result.stderr.splitlines()) == 1


def test_an_output_that_cannot_be_written_to_is_refused(pairs: Path, models: dict[str, Path]) -> None:
    failed(run(pairs, models["llama"], pairs), 1, "cannot be written to: File exists")


def test_what_is_no_model_is_refused_with_the_reason(models: dict[str, Path], tmp_path: Path) -> None:
    def reason(name: Path | str) -> str:
        with pytest.raises(TrainingError) as raised:
            model_directory(str(name))
        return str(raised.value)

    folder = tmp_path / "model"
    folder.mkdir()
    assert "has no config.json" in reason(folder)
    for file in models["llama"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert model_directory(str(folder)) == folder
    for name, said in (
        ("chat_template.jinja", "no chat template"),
        ("tokenizer_config.json", "no tokenizer"),
        ("model.safetensors", "no *.safetensors"),
    ):
        (folder / name).unlink()
        assert said in reason(folder)
    assert "it is a file" in reason(folder / "config.json")
    assert "no name of a model" in reason("./nowhere")


# --- what is seen -------------------------------------------------------------------------------------


def step(number: int, steps: int, **values: Any) -> Progress:
    silent = dict.fromkeys(
        (
            "rewards_chosen",
            "rewards_rejected",
            "rewards_margins",
            "rewards_accuracies",
            "logps_chosen",
            "logps_rejected",
        )
    )
    known = {"step": number, "steps": steps, "loss": 0.5, "grad_norm": 1.0, "learning_rate": 1e-4, "seconds": number}
    return Progress(kind="step", step=StepMetrics.model_validate(silent | known | values))


def test_a_pipe_gets_about_a_hundred_lines_of_a_long_run() -> None:
    console = Console(file=io.StringIO(), record=True, width=200)
    with display.shown(console) as report:
        report(Progress(kind="phase", phase="train"))
        for number in range(1, 1001):
            report(step(number, 1000))
    said = console.export_text().splitlines()
    assert said[0] == "training"
    assert len(said) == 101
    assert said[1] == "step 10 of 1000, loss 0.5000, margin -, accuracy -, 16:30 left"


def test_a_terminal_gets_a_bar_with_the_numbers_of_the_step() -> None:
    console = Console(file=io.StringIO(), record=True, width=200, force_terminal=True)
    with display.shown(console) as report:
        report(Progress(kind="phase", phase="train"))
        report(step(2, 4, rewards_margins=0.25, rewards_accuracies=0.75))
    assert "2 of 4, loss 0.5000, margin 0.2500, accuracy 75%, 0:02 left" in console.export_text()
