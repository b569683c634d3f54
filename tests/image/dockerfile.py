"""A Dockerfile as text in, the instructions of one target out. Knows only what ours uses, and refuses the rest. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Word = Literal["FROM", "SHELL", "ENV", "WORKDIR", "RUN", "USER", "CMD"]
WORDS = ("FROM", "SHELL", "ENV", "WORKDIR", "RUN", "USER", "CMD")

_MOUNT = re.compile(r"^--mount=(\S+)\s+")


@dataclass(frozen=True)
class Mount:
    """A part of the build context that a step is lent. Written data is discarded."""

    source: str  # below the context; "." is all of it
    target: str  # below the working directory
    writable: bool


@dataclass(frozen=True)
class Instruction:
    word: Word
    text: str  # without the word and without flags, on one line
    mount: Mount | None = None

    @property
    def words(self) -> list[str]:
        """Of SHELL and CMD, which are JSON."""
        return list(map(str, json.loads(self.text)))


@dataclass(frozen=True)
class Stage:
    name: str
    image: str  # another stage, or one of a registry
    instructions: tuple[Instruction, ...]


def stages(text: str) -> dict[str, Stage]:
    """Raises `ValueError` with the line that is none of `WORDS`, or has a flag that is not read here."""
    found: dict[str, Stage] = {}
    name, image, steps = "", "", []
    for line in _lines(text):
        step = _instruction(line)
        if step.word == "FROM":
            found |= {name: Stage(name, image, tuple(steps))} if name else {}
            image, _, name = step.text.partition(" AS ")
            steps = []
        else:
            steps.append(step)
    return found | {name: Stage(name, image, tuple(steps))}


def lineage(found: dict[str, Stage], target: str) -> list[Stage]:
    """The stages that the target is built of, from the one that begins with an image of a registry."""
    stage = found[target]
    return [*(lineage(found, stage.image) if stage.image in found else []), stage]


def pairs(parts: Iterable[str]) -> dict[str, str]:
    """`name=value` each; a bare name has an empty value."""
    return {name: value for name, _, value in (part.partition("=") for part in parts)}


def _lines(text: str) -> list[str]:
    """Logical lines: without comments, continuations joined."""
    kept = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [re.sub(r"\s+", " ", line) for line in re.sub(r"\\\n", " ", "\n".join(kept)).splitlines()]


def _instruction(line: str) -> Instruction:
    word, _, rest = line.partition(" ")
    if word not in WORDS:
        raise ValueError(f"{word}: only {', '.join(WORDS)} are read here")
    flag = _MOUNT.match(rest)
    if word == "RUN" and flag:
        return Instruction(word, rest[flag.end() :], _mount(flag[1]))
    if word != "CMD" and rest.startswith("--"):
        raise ValueError(f"{line}: a flag that is not read here")
    return Instruction(word, rest)


def _mount(flag: str) -> Mount:
    said = pairs(flag.split(","))
    if said.pop("type", None) != "bind" or set(said) - {"source", "target", "readwrite"}:
        raise ValueError(f"--mount={flag}: only binds of the build context are read here")
    return Mount(said.get("source", "."), said["target"], "readwrite" in said)
