"""The Dockerfile: no engine builds it here, so it is linted, and each of its steps is held to what the tests ran with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.unit.k8s.rendering import K8S

ROOT = K8S.parent
DOCKERFILE = (K8S / "Dockerfile").read_text()


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, K8S / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_it_copies_is_there_and_reaches_the_builder() -> None:
    sent = (K8S / "Dockerfile.dockerignore").read_text().splitlines()
    copied = {source for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M) for source in line.split()}
    assert copied == {"requirements/cpu.txt", "requirements/gpu.txt", "pyproject.toml", "README.md", "LICENSE",
                      "service", "training", "serving"}  # fmt: skip
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source.split('/')[0]}" in sent


def test_it_installs_what_the_makefile_installs() -> None:
    """The same locks, without resolving, with the same torch."""
    makefile = (ROOT / "Makefile").read_text()
    torch = re.search(r"^TORCH := (\S+)$", makefile, re.M)
    index = re.search(r"^TORCH_CPU_INDEX := (\S+)$", makefile, re.M)
    assert torch and index
    assert f"--index-url {index[1]} torch=={torch[1]}+cpu" in DOCKERFILE
    installs = re.findall(r"pip install (.+?)(?: \\)?$", DOCKERFILE, re.M)
    assert installs
    assert all("--no-deps" in line for line in installs)


def test_nobody_in_it_is_root_and_its_tags_are_pinned() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.M)
    assert [stage for _, stage in stages if stage in ("cpu", "gpu")] == ["cpu", "gpu"]
    assert DOCKERFILE.count("USER 1000:1000") == 2
    for image, _ in stages:
        assert image in {stage for _, stage in stages} or re.search(r":\d+\.\d+\.\d+", image)
