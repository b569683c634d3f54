"""Training alone: a file of preferences and a model's name become a `RoundSpec`, and a round in this process.

No service and no Ray. What `python -m training` does between its options and what it prints; holds no option and
prints nothing. Loads torch only to train.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from training.adapter import CONFIG, read_adapter
from training.contracts import LoraSpec, ParentAdapter, Progress, RoundReport, RoundSpec
from training.errors import TrainingError
from training.fingerprints import fingerprints
from training.formats import Format
from training.intake import Intake
from training.process import settle
from training.reading import read
from training.snapshot import write_snapshot

SNAPSHOT, CHECKPOINTS, ADAPTER = "snapshot.parquet", "checkpoints", "adapter"  # in the directory that is written to

_HUB_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def require_free(out: Path) -> None:
    """Make the directory to write to. Raises `TrainingError` when it cannot be, or when it holds an adapter already."""
    if (out / ADAPTER).exists():
        raise TrainingError(f"{out / ADAPTER} exists already: name another --out, or remove it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written to: {error.strerror}") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise TrainingError(f"{out} cannot be written to: permission denied")


def model_directory(name: str) -> Path:
    """The directory of the base model: a given one, or the local copy of a model of the Hugging Face hub.

    Raises `TrainingError` that says why it cannot be trained on.
    """

    def refuse(why: str) -> TrainingError:
        return TrainingError(f"the model {name!r} cannot be trained on: {why}")

    directory = Path(name).expanduser()
    if directory.is_file():
        raise refuse("it is a file; give the directory that holds config.json")
    if not directory.is_dir():
        directory = _from_hub(name)
    if not (directory / "config.json").is_file():
        raise refuse(f"{directory} has no config.json")
    if not any(directory.glob("*.safetensors")):
        raise refuse("it has no *.safetensors weights (pickled weights are never loaded)")
    tokenizer = directory / "tokenizer_config.json"
    if not tokenizer.is_file():
        raise refuse("it has no tokenizer")
    own = json.loads(tokenizer.read_bytes()).get("chat_template")
    if not own and not any((directory / file).is_file() for file in _TEMPLATES):
        raise refuse("its tokenizer has no chat template; take its chat version, or add a chat_template.jinja")
    return directory.resolve()


def parent_of(directory: Path) -> tuple[ParentAdapter, LoraSpec]:
    """The adapter that a round continues, and its shape. Raises `AdapterInvalid` when it is none of ours."""
    if not (directory / CONFIG).is_file() and (directory / ADAPTER / CONFIG).is_file():
        directory = directory / ADAPTER  # what an earlier --out was given
    manifest, _ = read_adapter(directory)
    config = json.loads((directory / CONFIG).read_bytes())
    parent = ParentAdapter(name=manifest.name, directory=str(directory.resolve()))
    return parent, LoraSpec(rank=config["r"], alpha=config["lora_alpha"])


@contextmanager
def completed(spec: RoundSpec, model: Path, pairs: Path, format: Format | None, intake: Intake) -> Iterator[RoundSpec]:
    """The spec with the model and with the preferences. They are in its snapshot as long as the block lasts.

    Raises `TrainingError` when they are not to be trained on.
    """
    snapshot = Path(spec.snapshot)
    try:
        digest = write_snapshot(snapshot, intake.rows(read(pairs, format, intake.on_format)))
        intake.require_enough(spec.objective)
        known = {"model": str(model), "fingerprints": fingerprints(model), "pair_digest": digest}
        yield spec.model_copy(update=known)
    finally:
        snapshot.unlink(missing_ok=True)


def train(spec: RoundSpec, report: Callable[[Progress], None], threads: int | None = None) -> RoundReport:
    """The round, in this process: on the GPU if there is one, else on all cores. Raises a `TrainingError`.

    A round that was stopped goes on from its last checkpoint when it is run again; its files are removed in the end.
    """
    import torch

    from training.learn import learn
    from training.world import World

    spec = spec.model_copy(update={"use_gpu": torch.cuda.is_available()})
    settle(threads or torch.get_num_threads(), on_gpu=spec.use_gpu)
    try:
        learned = learn(spec, report, World(0, 1, torch.device("cuda" if spec.use_gpu else "cpu")))
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "the GPU has not enough memory: lower --tokens-per-micro-batch, or set --gradient-checkpointing on"
        ) from error
    shutil.rmtree(spec.checkpoints)
    return learned


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def refuse(why: str) -> TrainingError:
        return TrainingError(f"the model {name!r} is no directory here, and {why}")

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_PATTERNS), ignore_patterns="*/*"))
    except HFValidationError:
        raise refuse("no name of a model on Hugging Face either, such as Qwen/Qwen3-0.6B") from None
    except LocalEntryNotFoundError:
        raise refuse(
            "the hub cannot be reached and no copy of it is kept on this machine: "
            f"run `hf download {name}` where there is a network, and give the directory that it prints"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise refuse(f"the hub says: {str(error).strip().splitlines()[0]}") from error
