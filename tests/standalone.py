"""`python -m training` as a test runs it: files of preferences, the command's words, and what came of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from training.__main__ import app
from training.contracts import RoundReport

WORDS = ("sun", "moon", "river", "stone", "green", "blue", "tree", "cat", "dog", "house")


def some_pairs(count: int) -> list[dict[str, Any]]:
    dice = random.Random(0)

    def text(words: int) -> str:
        return " ".join(dice.choice(WORDS) for _ in range(words))

    return [{"prompt": f"{text(3)} {i}?", "chosen": text(4), "rejected": f"{text(5)}."} for i in range(count)]


def some_thumbs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"thumb {pair['prompt']}", "completion": pair["chosen"], "label": i % 2 == 0}
        for i, pair in enumerate(some_pairs(count))
    ]


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row) if isinstance(row, dict) else row}\n" for row in rows))
    return path


def arguments(pairs: Path, model: Path | str, out: Path, **options: Any) -> list[str]:
    """The command's; an option that is True has no value."""
    common = {"dtype": "float32", "pairs_per_step": 8, "learning_rate": 1e-3, "rank": 4, "alpha": 8, "trackers": ""}
    words = [str(pairs), "--model", str(model), "--out", str(out)]
    for name, value in (common | options).items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return words


def run(pairs: Path, model: Path | str, out: Path, **options: Any) -> Result:
    return CliRunner().invoke(app, arguments(pairs, model, out, **options))


def reported(*args: Any, **options: Any) -> RoundReport:
    result = run(*args, json=True, **options)
    assert result.exit_code == 0, result.output
    return RoundReport.model_validate_json(result.stdout)


def failed(result: Result, status: int, reason: str) -> None:
    assert result.exit_code == status, result.output
    assert reason in " ".join(result.stderr.replace("│", " ").split())
    assert result.exception is None or isinstance(result.exception, SystemExit)
