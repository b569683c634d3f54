"""Reads suites: those that come along by name, any other from a JSONL file. A line that is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pydantic

from service.digest import content_digest
from service.errors import BadRequest
from service.gate.settings import GateSettings
from service.suites.items import Item, Suite

FOLDER = Path(__file__).parent
SEEDLING = "seedling"  # the base model of a first run, which knows too little for the general suites
OF_SEEDLING = ("seedling",)
GENERAL = ("honesty", "refusals", "sycophancy", "everyday")


def chosen(settings: GateSettings, model: str) -> tuple[Suite, ...]:
    """What every candidate is asked, where `model` is served. Raises `BadRequest` as `load` does."""
    if settings.suites is not None:
        return load_all(settings.suites)
    return load_all(OF_SEEDLING if model == SEEDLING else GENERAL)


def load_all(names: Sequence[str]) -> tuple[Suite, ...]:
    """Raises `BadRequest` as `load` does, and for two suites of one name."""
    suites = tuple(load(name) for name in names)
    twice = {suite.name for suite in suites if sum(other.name == suite.name for other in suites) > 1}
    if twice:
        raise BadRequest(
            f"gate.suites names {', '.join(sorted(twice))} twice.", param="gate.suites", code="invalid_suite"
        )
    return suites


def load(name: str) -> Suite:
    """A suite that comes along, or the JSONL file of that path. Raises `BadRequest` that names the file and the line."""
    ours = FOLDER / f"{name}.jsonl"
    path = ours if "/" not in name and ours.is_file() else Path(name).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        known = sorted(file.stem for file in FOLDER.glob("*.jsonl"))
        raise _wrong(
            f"'{name}' is neither a suite that comes along ({', '.join(known)}) nor a readable file"
        ) from error
    items = tuple(_item(path, number, line) for number, line in enumerate(lines, start=1) if line.strip())
    ids = [item.id for item in items]
    if repeated := sorted({id for id in ids if ids.count(id) > 1}):
        raise _wrong(f"{path}: the ids {', '.join(repeated[:3])} are there twice")
    if not items:
        raise _wrong(f"{path} has no items")
    return Suite(name=path.stem, items=items, digest=digest_of(items))


def digest_of(items: Sequence[Item]) -> str:
    """The same for the same questions in the same order, wherever they were read from."""
    return content_digest([item.model_dump(mode="json") for item in items])


def _item(path: Path, number: int, line: str) -> Item:
    try:
        return Item.model_validate(json.loads(line))
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        reason = fault["msg"].removeprefix("Value error, ")
        raise _wrong(f"{path}, line {number}: {f'{where}: ' if where else ''}{reason}") from error
    except ValueError as error:
        raise _wrong(f"{path}, line {number} is not JSON") from error


def _wrong(message: str) -> BadRequest:
    return BadRequest(f"{message}.", param="gate.suites", code="invalid_suite")
