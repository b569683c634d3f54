"""What the READMEs publish works: settings load, commands exist, snippets compile, named files are there.

The commands themselves run in `tests/e2e` and, for `make demo`, in the demo.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from service.cli import app
from service.settings import load
from training.__main__ import app as training

ROOT = Path(__file__).parents[2]
READMES = sorted([ROOT / "README.md", *(ROOT / room / "README.md" for room in ("service", "training", "serving"))])


def blocks(language: str) -> list[str]:
    return [
        found for readme in READMES for found in re.findall(rf"```{language}\n(.*?)```", readme.read_text(), re.DOTALL)
    ]


def commands() -> list[list[str]]:
    lines = [line for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]


def test_there_is_something_to_check() -> None:
    assert blocks("toml") and blocks("python") and len(commands()) > 8


def test_every_configuration_loads(tmp_path: Path) -> None:
    for block in blocks("toml"):
        file = tmp_path / "heliotrope.toml"
        file.write_text(block)
        settings = load(file, environment={})
        assert settings.model.name == tomllib.loads(block)["model"]["name"]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_exists(words: list[str]) -> None:
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[:3] == ["python", "-m", "training"]:
        shown = CliRunner().invoke(training, ["--help"])
    else:
        assert words[0].endswith("heliotrope"), words
        shown = CliRunner().invoke(app, [*(word for word in words[1:] if not word.startswith("-")), "--help"])
    assert shown.exit_code == 0, shown.output
    for option in (word for word in words[1:] if word.startswith("--")):
        assert option in shown.output


def test_every_python_snippet_compiles() -> None:
    for block in blocks("python"):
        compile(block, "README.md", "exec")


def test_every_command_of_the_contract_is_there() -> None:
    names = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert names >= {
        "up", "down", "status", "chat", "round", "adapters", "promote", "rollback", "import", "demo", "doctor", "keys",
    }  # fmt: skip


def test_every_file_that_a_readme_links_is_there() -> None:
    for readme in READMES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", readme.read_text()):
            assert (readme.parent / target).exists(), f"{readme}: {target}"
