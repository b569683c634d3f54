"""What a round ran with, and when the same training would give the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.evidence import environment
from service.evidence.provenance import DECIDING, ROOT, Environment, caveats, hindrances, source_digest
from service.settings import TrainingSettings

HERE = Environment.model_validate(environment(TrainingSettings(seed=7)))


def other(**changed: Any) -> Environment:
    return HERE.model_copy(update=changed)


def test_what_is_recorded_is_json_and_says_what_decides_an_adapter_s_bytes() -> None:
    recorded = environment(TrainingSettings(seed=7))
    assert Environment.model_validate(json.loads(json.dumps(recorded))) == HERE
    assert set(DECIDING) <= set(recorded["packages"])
    assert recorded["machine"]["cores"] >= 1
    assert recorded["machine"]["memory_bytes"] > 1 << 30
    assert recorded["machine"]["cpu"]
    assert recorded["training"]["seed"] == 7


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_a_checkout_names_its_commit_and_its_locks() -> None:
    assert HERE.commit is not None and len(HERE.commit.removesuffix("-dirty")) == 40
    assert set(HERE.lock_sha256) == {"requirements/cpu.txt", "requirements/gpu.txt"}


def test_the_digest_of_a_source_is_that_of_its_names_and_its_content(tmp_path: Path) -> None:
    def written(name: str, files: dict[str, str]) -> str:
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return source_digest(tmp_path / name)

    files = {"a.py": "x = 1\n", "part/b.py": "y = 2\n"}
    first = written("one", files)
    assert written("same", files | {"README.md": "other", "part/b.pyc": "other"}) == first
    assert written("content", files | {"a.py": "x = 2\n"}) != first
    assert written("name", {"a.py": "x = 1\n", "part/c.py": "y = 2\n"}) != first


def test_where_nothing_differs_nothing_hinders() -> None:
    assert hindrances(HERE, HERE) == caveats(HERE, HERE) == []
    assert hindrances(other(python=HERE.python + "9"), HERE) == [], "a patch of Python changes no sum"
    assert hindrances(other(commit="0" * 40, version="9"), HERE) == [], "what trains is the same"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"training_sha256": "0" * 64, "commit": "c" * 40}, f"the code of training is another: {'c' * 40} then"),
        ({"python": "3.10.1"}, "Python was 3.10.1"),
        ({"packages": HERE.packages | {"torch": "1.0"}}, "torch was 1.0"),
        ({"packages": {k: v for k, v in HERE.packages.items() if k != "numpy"}}, "numpy was not installed"),
    ],
)
def test_other_code_or_packages_are_named(changed: dict[str, Any], said: str) -> None:
    (found,) = hindrances(other(**changed), HERE)
    assert found.startswith(said)


def test_packages_that_decide_nothing_may_differ() -> None:
    assert hindrances(other(packages=HERE.packages | {"ray": "1.0"}), HERE) == []


def test_another_processor_is_a_caveat_and_no_hindrance() -> None:
    elsewhere = other(machine=HERE.machine.model_copy(update={"cpu": "Abacus 3000"}))
    assert hindrances(elsewhere, HERE) == []
    assert "Abacus 3000" in caveats(elsewhere, HERE)[0]
