"""Random adapters that visibly change what a tiny model says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from serving.adapters import CONFIG, MANIFEST, WEIGHTS, sha256_of
from serving.contracts import AdapterFiles
from training.adapter import Lineage, write_adapter
from training.contracts import LoraSpec
from training.fingerprints import fingerprints


def random_adapter(model: Path, directory: Path, seed: int, rank: int = 8) -> Path:
    """A LoRA adapter with non-zero A and B, as PEFT writes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(str(directory))
    return directory


def published_adapters(model: Path, folder: Path, count: int) -> dict[int, AdapterFiles]:
    """By ordinal: one random adapter of the model's, published in so many strengths."""
    drawn = random_adapter(model, folder / "drawn", seed=0)
    config = json.loads((drawn / CONFIG).read_text())
    lora, weights = LoraSpec(rank=config["r"], alpha=config["lora_alpha"]), load_file(drawn / WEIGHTS)
    published = {}
    for ordinal in range(1, count + 1):
        scaled = {name: values * np.float32(ordinal / count) for name, values in weights.items()}
        out = folder / str(ordinal)
        out.mkdir()
        lineage = Lineage(ordinal, None, 1, fingerprints(model), "d" * 64, training={})
        manifest = write_adapter(out, scaled, lora, sorted(config["target_modules"]), str(model), lineage)
        directory = out / "adapter"
        published[ordinal] = AdapterFiles(
            name=manifest.name, directory=str(directory), manifest_sha256=sha256_of(directory / MANIFEST)
        )
    return published
