"""The Dockerfile: no engine builds it here, so it is linted, and each of its steps is held to what the tests ran with.

`make image` runs the steps of `cpu` (tests/image/); that takes minutes and gigabytes, so it is no test.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.image.dockerfile import Mount, lineage, stages
from tests.unit.k8s.rendering import K8S

ROOT = K8S.parent
TEXT = (K8S / "Dockerfile").read_text()
STAGES = stages(TEXT)


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, K8S / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_its_steps_are_lent_is_there_and_reaches_the_builder() -> None:
    sent = [line[1:] for line in (K8S / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert set(sent) == {"pyproject.toml", "README.md", "LICENSE", "requirements", "service", "training", "serving"}
    assert all((ROOT / source).exists() for source in sent)
    lent = {step.mount for stage in STAGES.values() for step in stage.instructions if step.mount}
    assert lent == {Mount("requirements", "requirements", writable=False), Mount(".", ".", writable=True)}


def test_it_installs_what_the_makefile_installs() -> None:
    """The same locks, without resolving, with the same torch."""
    makefile = (ROOT / "Makefile").read_text()
    torch = re.search(r"^TORCH := (\S+)$", makefile, re.M)
    index = re.search(r"^TORCH_CPU_INDEX := (\S+)$", makefile, re.M)
    assert torch and index
    assert f"--index-url {index[1]} torch=={torch[1]}+cpu" in TEXT
    installs = re.findall(r"pip install (.+?)(?: \\)?$", TEXT, re.M)
    assert installs
    assert all("--no-deps" in line for line in installs)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_nobody_in_a_target_is_root_and_it_begins_with_a_pinned_image(target: str) -> None:
    line = lineage(STAGES, target)
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", line[0].image)
    assert [step.text for stage in line for step in stage.instructions if step.word == "USER"] == ["1000:1000"]
    assert line[-1].instructions[-1].words == ["heliotrope", "--help"]


def test_the_targets_differ_in_their_dependencies_alone() -> None:
    assert STAGES["cpu"].instructions == STAGES["gpu"].instructions
    assert [stage.name for stage in lineage(STAGES, "gpu")] == ["base", "gpu-dependencies", "gpu"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("FROM a AS b\nADD x y", "ADD: only FROM"),
        ("FROM a AS b\nRUN --network=none ls", "a flag that is not read"),
        ("FROM a AS b\nRUN --mount=type=secret,target=x ls", "only binds"),
    ],
)
def test_what_the_reader_of_dockerfiles_does_not_know_it_refuses(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        stages(text)
