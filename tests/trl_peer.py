"""TRL on the very tokens, LoRA, order and schedule of a round of ours: whom parity tests and benchmarks compare us with.

TRL's trainers take text, not token ids, so each token id is written as a word of its own and read by a tokenizer that
gives the id back; everything after that, such as KTO's mismatched answers, is TRL's unchanged code. An answer must end
with `EOS`, because TRL appends it where it is missing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from tests.tiny_models import EOS, PAD
from training.contracts import RoundSpec
from training.examples import ExamplesWriter
from training.pairs import render
from training.plan import Sizes, make_plan
from training.snapshot import SnapshotRow
from training.steps import learning_rate

Steps = Sequence[Sequence[SnapshotRow]]  # the rows of each optimizer step, in their order

BEST: dict[str, Any] = {"gradient_checkpointing": False, "precompute_ref_log_probs": True}
"""TRL's fastest settings; `by_length` is what the order of the rows adds to them."""

_LOSS_TYPES = {"dpo": "sigmoid"}  # the other objectives have TRL's names


@dataclass(frozen=True)
class Trained:
    """What TRL made of the rows."""

    losses: list[float]  # of each step
    weights: dict[str, np.ndarray]  # the adapter's, under the names PEFT saves them with
    seconds: float  # from token ids to the adapter on disk, the model's loading included


def train(
    spec: RoundSpec, steps: Steps, directory: Path, initial: dict[str, np.ndarray] | None = None, **settings: Any
) -> Trained:
    """One epoch after another over the steps by TRL, under the spec's settings and in float32; the adapter is saved.

    `initial` are the adapter's first weights (drawn by `spec.seed` if None), `settings` go to TRL's configuration.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    rows = [row for step in steps for row in step]
    assert {len(step) for step in steps} == {spec.pairs_per_step}, "TRL cuts the rows into steps of one size"
    words = _one_word_a_token(1 + max(max(_token_ids(row)) for row in rows))
    paired = all(row.chosen_token_ids and row.rejected_token_ids for row in rows)
    config = _config(spec, directory, paired, settings)
    columns = [_pair(row) if paired else _thumb(row) for row in rows]
    began = time.perf_counter()
    trainer: Any = (_Dpo if paired else _Kto)(
        model=spec.model,
        args=config,
        train_dataset=Dataset.from_list(columns),
        processing_class=words,
        peft_config=_lora(spec),
    )
    if initial is not None:
        set_peft_model_state_dict(trainer.model, {name: torch.from_numpy(array) for name, array in initial.items()})
    _schedule(trainer, spec, len(steps) * spec.epochs)
    trainer.train()
    trainer.save_model(str(directory))
    seconds = time.perf_counter() - began - trainer.tokenizing_seconds
    _require_same_tokens(trainer.train_dataset, rows, paired)
    state = get_peft_model_state_dict(trainer.model)
    weights = {name: np.array(tensor.detach().numpy()) for name, tensor in state.items()}
    return Trained([loss.item() for loss in trainer.losses], weights, seconds)


def steps_of(rows: Sequence[SnapshotRow], spec: RoundSpec) -> Steps:
    """The rows of each step of our first epoch, in our order."""
    ordered = sorted(rows, key=lambda row: row.pair_id)
    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    writer = ExamplesWriter(Path(spec.storage))
    for row in ordered:
        writer.add(render(row, tokenizer, EOS))
    examples = writer.close()
    plan = make_plan(
        Sizes(examples.lengths, examples.prompts),
        "shared",
        per_step=spec.pairs_per_step,
        token_budget=spec.tokens_per_micro_batch,
        seed=spec.seed,
    )
    # Thumbs in the order that the mismatched answers follow; the order of pairs within a step changes nothing.
    return [[ordered[i] for i in step.mismatched or step.members] for step in plan]


def by_length(steps: Steps) -> Steps:
    """The same rows with like lengths in one step, so that TRL pads least; the size of steps stays."""
    rows = sorted((row for step in steps for row in step), key=lambda row: len(_token_ids(row)))
    size = max(len(step) for step in steps)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class _Watched:
    """Keeps each step's loss, unrounded, and the seconds that went into tokenizing; sends nothing anywhere."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.losses: list[Tensor] = []
        self.tokenizing_seconds = 0.0
        super().__init__(*arguments, **named)

    def compute_loss(self, *arguments: Any, **named: Any) -> Tensor:
        loss: Tensor = super().compute_loss(*arguments, **named)  # pyright: ignore[reportAttributeAccessIssue]
        self.losses.append(loss.detach())
        return loss

    def _prepare_dataset(self, *arguments: Any, **named: Any) -> Dataset:
        began = time.perf_counter()
        prepared = super()._prepare_dataset(*arguments, **named)  # pyright: ignore[reportAttributeAccessIssue]
        self.tokenizing_seconds = time.perf_counter() - began
        return prepared

    def _send_telemetry(self) -> None:
        """TRL's own reports each run to its authors."""


class _Dpo(_Watched, DPOTrainer):
    pass


class _Kto(_Watched, KTOTrainer):
    pass


def _config(spec: RoundSpec, directory: Path, paired: bool, settings: dict[str, Any]) -> DPOConfig | KTOConfig:
    loss = _LOSS_TYPES.get(spec.objective, spec.objective)
    common: dict[str, Any] = {
        "output_dir": str(directory),
        "beta": spec.beta,
        "per_device_train_batch_size": spec.pairs_per_step,
        "num_train_epochs": spec.epochs,
        "max_grad_norm": spec.max_gradient_norm,
        "seed": spec.seed,
        "max_length": None,
        "train_sampling_strategy": "sequential",
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **settings,
    }
    if paired:
        return DPOConfig(loss_type=[loss], label_smoothing=spec.label_smoothing, **common)
    weights = {"desirable_weight": spec.desirable_weight, "undesirable_weight": spec.undesirable_weight}
    return KTOConfig(loss_type=loss, **weights, **common)


def _lora(spec: RoundSpec) -> LoraConfig:
    return LoraConfig(
        r=spec.lora.rank,
        lora_alpha=spec.lora.alpha,
        target_modules=spec.lora.target_modules,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def _schedule(trainer: Any, spec: RoundSpec, steps: int) -> None:
    """Our optimizer and learning rates instead of those the Trainer would make."""
    trainable = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    trainer.optimizer = torch.optim.AdamW(trainable, lr=spec.learning_rate, weight_decay=0.0)
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer, lambda done: learning_rate(min(done + 1, steps), steps, 1.0, spec.warmup_ratio)
    )


def _one_word_a_token(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer that reads `<5><6>` as the token ids 5 and 6."""
    tokenizer = Tokenizer(models.WordLevel({_text([i]): i for i in range(vocabulary)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\d+>"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_text([PAD]), eos_token=_text([EOS]))


def _text(token_ids: Sequence[int]) -> str:
    return "".join(f"<{token_id}>" for token_id in token_ids)


def _token_ids(row: SnapshotRow) -> list[int]:
    return [*(row.prompt_token_ids or ()), *(row.chosen_token_ids or ()), *(row.rejected_token_ids or ())]


def _pair(row: SnapshotRow) -> dict[str, Any]:
    assert row.prompt_token_ids and row.chosen_token_ids and row.rejected_token_ids
    return {
        "prompt": _text(row.prompt_token_ids),
        "chosen": _text(row.chosen_token_ids),
        "rejected": _text(row.rejected_token_ids),
    }


def _thumb(row: SnapshotRow) -> dict[str, Any]:
    answer = row.chosen_token_ids or row.rejected_token_ids
    assert row.prompt_token_ids and answer
    return {"prompt": _text(row.prompt_token_ids), "completion": _text(answer), "label": bool(row.chosen_token_ids)}


def _require_same_tokens(prepared: Dataset, rows: Sequence[SnapshotRow], paired: bool) -> None:
    names = ("prompt_ids", "chosen_ids", "rejected_ids") if paired else ("prompt_ids", "completion_ids")
    columns = [prepared[name] for name in names]
    for row, *parts in zip(rows, *columns, strict=True):
        assert list(chain(*parts)) == _token_ids(row), f"TRL trained on other tokens than those of {row.pair_id}"
