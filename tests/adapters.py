"""Random adapters that visibly change what a tiny model says."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def random_adapter(model: Path, directory: Path, seed: int, rank: int = 8) -> Path:
    """A LoRA adapter with non-zero A and B, as PEFT writes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(str(directory))
    return directory
