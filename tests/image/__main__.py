"""`make image`: the steps of the Dockerfile's `cpu` target, as they stand, where no container engine is at hand.

python -m tests.image

Afterwards the root is closed and what pods run is started in it as they run it: uid 1000, no capabilities, nothing to
write to but what the manifests mount. Takes minutes and several GB below the temporary folder; says what each step took.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.image.dockerfile import Instruction, Mount, lineage, pairs, stages
from tests.image.root import Root, why_not

REPOSITORY = Path(__file__).parents[2]
TARGET = "cpu"
INSIDE = "--inside"
SITE_PACKAGES = "/opt/heliotrope/lib/python3.11/site-packages"
PACKAGES = ("service", "training", "serving")
WRITABLE = ("/tmp", "/var/lib/heliotrope", "/dev/shm", "/models")  # in the pods of k8s/; the rest is read-only there
VARIABLES = {"HOME": "/var/lib/heliotrope", "PATH": "/opt/heliotrope/bin:/usr/local/bin:/usr/bin:/bin"}

# What pods run, besides CMD: KubeRay's start and probes, both applications, a replica's engine, a worker, the seedling.
STARTED = (
    ("ray", "--version"),
    ("wget", "--version"),
    ("python", "-c", "from service.cluster import chat, operations"),
    ("python", "-c", "import serving.engine"),
    ("python", "-c", "import training.learn, s3fs"),
    ("heliotrope", "round", "start", "--help"),
    ("sh", "-ec", 'test -f "$(HOME=/tmp python -m training.seedling | tail -n 1)/model.safetensors"'),
)


def main() -> None:
    if sys.argv[1:2] == [INSIDE]:
        build_and_start(Path(sys.argv[2]))
        return
    image = lineage(stages(_dockerfile()), TARGET)[0].image
    reason = why_not(image)
    if reason is not None:
        sys.exit(f"the steps cannot be run here: {reason}")
    with tempfile.TemporaryDirectory(prefix="heliotrope-image-") as scratch:
        command = ["unshare", "--mount", sys.executable, "-m", "tests.image", INSIDE, scratch]
        sys.exit(subprocess.run(command, cwd=REPOSITORY, check=False).returncode)


def _dockerfile() -> str:
    return (REPOSITORY / "k8s" / "Dockerfile").read_text()


def build_and_start(scratch: Path) -> None:
    image = Build(Root(scratch), _context(scratch / "context"))
    for stage in lineage(stages(_dockerfile()), TARGET):
        print(f"FROM {stage.image} AS {stage.name}", flush=True)
        for step in stage.instructions:
            image.follow(step)
    image.require_whole()
    image.start_as_a_pod()


def _context(folder: Path) -> Path:
    """What reaches the builder: the files that the repository keeps and the .dockerignore lets through."""
    let_through = (REPOSITORY / "k8s" / "Dockerfile.dockerignore").read_text().splitlines()
    sent = [line.removeprefix("!") for line in let_through if line.startswith("!")]
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *sent]
    for name in subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


class Build:
    """What a builder keeps from step to step."""

    def __init__(self, root: Root, context: Path) -> None:
        self._root, self._context = root, context
        self._shell, self._at, self._user = ["/bin/sh", "-c"], "/", "0:0"
        self._variables = dict(root.environment)
        self._command: list[str] = []

    def follow(self, step: Instruction) -> None:
        match step.word:
            case "SHELL":
                self._shell = step.words
            case "ENV":
                path = self._variables["PATH"]
                for name, value in pairs(step.text.split()).items():
                    self._variables[name] = value.replace("$PATH", path)
            case "WORKDIR":
                self._at = step.text
                self._root.path(self._at).mkdir(parents=True, exist_ok=True)
            case "USER":
                self._user = step.text
            case "CMD":
                self._command = step.words
            case "RUN":
                self._run(step)
            case "FROM":
                raise AssertionError("a stage has one FROM, which lineage() has followed")

    def _run(self, step: Instruction) -> None:
        before, began = self._root.written_bytes, time.monotonic()
        where = self._lend(step.mount) if step.mount else None
        done = self._root.run([*self._shell, step.text], at=self._at, environment=self._variables)
        if where is not None:
            self._root.take_back(where)
        _require(done, f"RUN {step.text}")
        added = (self._root.written_bytes - before) / 1e6
        print(f"  RUN {step.text[:100]} ...  {time.monotonic() - began:.0f} s, {added:,.0f} MB", flush=True)

    def _lend(self, mount: Mount) -> str:
        """A step may write to a copy, which nobody sees afterwards."""
        where = str(Path(self._at, mount.target))
        copy = Path(tempfile.mkdtemp(dir=self._context.parent)) / "lent"
        shutil.copytree(self._context / mount.source, copy)
        self._root.lend(copy, where)
        return where

    def require_whole(self) -> None:
        """Every file of our packages is installed, and no second copy lies beside them."""
        ours = {file.relative_to(self._context) for name in PACKAGES for file in (self._context / name).rglob("*")}
        needed = {name for name in ours if name.suffix and name.name != "README.md"}
        lost = sorted(str(name) for name in needed if not self._root.path(f"{SITE_PACKAGES}/{name}").is_file())
        left = [file.name for file in self._root.path(self._at).rglob("*") if file.is_file()]
        if lost or left:
            sys.exit(f"not installed: {lost}; left in {self._at}: {left}")
        print(f"  {len(needed)} files of ours are installed, and no copy of one in {self._at}", flush=True)

    def start_as_a_pod(self) -> None:
        if self._user != "1000:1000":
            sys.exit(f"the image runs as {self._user}, the manifests say 1000:1000")
        for folder in WRITABLE:
            self._root.scratch(folder)
        self._root.close()
        writes = self._root.run(["touch", f"{self._at}/a"], at="/", environment=VARIABLES)  # not even root
        if writes.returncode == 0:
            sys.exit("the root can be written to: nothing below was started as a pod is")
        for command in (tuple(self._command), *STARTED):
            began = time.monotonic()
            done = self._root.run(command, at=self._at, environment=self._variables | VARIABLES, restricted=True)
            _require(done, " ".join(command))
            print(f"  as uid 1000, read-only: {' '.join(command)[:90]}  {time.monotonic() - began:.0f} s", flush=True)


def _require(done: subprocess.CompletedProcess[str], what: str) -> None:
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{what}\nended with {done.returncode}")


if __name__ == "__main__":
    main()
