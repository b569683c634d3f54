"""The rules that no single file can keep: who imports whom, and how a file begins and where it ends."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("service", "training", "serving")
MAX_LINES = 400
HEAVY = ("torch", "vllm", "ray", "transformers", "peft")


def _files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def _loaded_by(module: str) -> set[str]:
    """The modules that a fresh interpreter has after importing this one."""
    program = f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stdout.splitlines()[-1]))


def test_the_import_rules_hold() -> None:
    """The contracts in pyproject.toml, as `make check` runs them."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    ended = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 broken" in ended.stdout


def test_the_command_line_loads_nothing_heavy() -> None:
    """Operators' laptops need neither torch nor vLLM, and an answer must come at once."""
    loaded = _loaded_by("service.cli")
    assert "service.cli" in loaded
    assert not loaded & {*HEAVY, "sqlalchemy", "fastapi"}


def test_what_learns_and_what_answers_is_loaded_only_where_it_runs() -> None:
    """The parts that tests use without a cluster, and the Conductor's process, which only talks to the cluster."""
    pure = "service.rounds, service.registry, serving.replica, serving.adapters, training.snapshot, training.adapter"
    assert not _loaded_by(pure) & set(HEAVY)
    assert not _loaded_by("service.conductor") & (set(HEAVY) - {"ray"})


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_the_one_of_this_repository(package: str) -> None:
    """These are common names: another distribution's package of the same name must not win."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    assert Path(found.origin) == ROOT / package / "__init__.py"


def test_every_file_begins_by_saying_what_it_is() -> None:
    silent = [
        str(file.relative_to(ROOT))
        for file in _files(*PACKAGES)
        if (text := file.read_text()).strip() and ast.get_docstring(ast.parse(text)) is None
    ]
    assert silent == []


def test_no_file_is_too_long_to_read_in_one_sitting() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in _files(*PACKAGES, "tests")}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}
