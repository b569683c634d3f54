"""Which base model, and can it be served at all? Answered before anything is started."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from service.errors import BadRequest
from service.settings import SEEDLING
from service.store.store import Store
from training.contracts import Fingerprints
from training.fingerprints import fingerprints


def resolve(name: str) -> Path:
    """The directory of the base model: the seedling's (built when missing), a given one, or a hub's copy.

    Raises `BadRequest` that says why the model cannot be loaded.
    """
    if name == SEEDLING:
        return _seedling()
    directory = Path(name).expanduser()
    if not directory.is_dir():
        directory = _from_hub(name)
    _check(directory.resolve(), name)
    return directory.resolve()


def settled(directory: Path, store_url: str) -> Fingerprints:
    """The directory's fingerprints, which are those that the first start has recorded in the store; this may be it.

    Raises `BadRequest` for another base model or tokenizer: what the store holds was learned on the recorded one.
    """
    here = fingerprints(directory)
    recorded = asyncio.run(_recorded(here, store_url))
    for part, found, known in (
        ("base model", here.base_model, recorded.base_model),
        ("tokenizer or chat template", here.tokenizer, recorded.tokenizer),
    ):
        if found != known:
            raise BadRequest(
                f"model.name: the {part} in {directory} has the digest {found}, and this database belongs to one with "
                f"{known}: its adapters, answers and pairs fit no other. Name that model again, or a database "
                "(store.url) or state folder (--state) of its own for this one.",
                param="model.name", code="base_model_changed",
            )  # fmt: skip
    return here


async def _recorded(here: Fingerprints, store_url: str) -> Fingerprints:
    store = Store(store_url)
    try:
        return await store.base_model.settle(here)
    finally:
        await store.close()


def _seedling() -> Path:
    """In a process of its own, so that this one never loads torch. Its last line is the directory."""
    command = [sys.executable, "-m", "training.seedling"]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        raise BadRequest("The seedling could not be trained; the lines above say why.", code="model_not_loadable")
    return Path(built.stdout.strip().splitlines()[-1])


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadRequest(
            f"Model '{name}' cannot be loaded: it is no directory here, and the hub says: {reason}",
            param="model.name", code="model_not_loadable",
        ) from error  # fmt: skip


def _check(directory: Path, name: str) -> None:
    def refuse(why: str) -> BadRequest:
        return BadRequest(f"Model '{name}' cannot be loaded: {why}", param="model.name", code="model_not_loadable")

    def read(file: str) -> dict[str, Any]:
        try:
            value = json.loads((directory / file).read_bytes())
        except ValueError as error:
            raise refuse(f"its {file} is not JSON") from error
        if not isinstance(value, dict):
            raise refuse(f"its {file} is not a JSON object")
        return value

    if not (directory / "config.json").is_file():
        raise refuse(f"{directory} has no config.json")
    config = read("config.json")
    architectures = config.get("architectures") or []
    if not any(str(a).endswith("ForCausalLM") for a in architectures):
        raise refuse(f"its architecture {architectures} is not a causal language model")
    if not any(directory.glob("*.safetensors")):
        raise refuse("it has no *.safetensors weights (pickled weights are never loaded)")
    if not (directory / "tokenizer_config.json").is_file():
        raise refuse("it has no tokenizer")
    template = read("tokenizer_config.json").get("chat_template")
    if not template and not any((directory / f).is_file() for f in ("chat_template.jinja", "chat_template.json")):
        raise refuse("its tokenizer has no chat template")
