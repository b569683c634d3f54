"""A round's training against the textbook's way, on the same pairs, model, LoRA, order and threads.

The peer runs chosen and rejected answers as rows of their own, padded, with the logits of every position in memory,
as most trainers do. Both count the reference pass and one epoch. The limit is the matrix-product rate of this
machine, measured in the same run, over the work that cannot be avoided:

    4N(P+C+R) + 4HV(C+R) floating point operations a pair to train, and half of that for its reference

with N body parameters, H hidden size, V vocabulary, P, C, R tokens of prompt, chosen and rejected answer.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.tiny_models import build
from training.contracts import TRAIN, RoundSpec
from training.fingerprints import fingerprints
from training.learn import learn
from training.snapshot import SnapshotRow, write_snapshot

PAIRS, PROMPT, ANSWER = 48, 96, 48  # pairs, tokens, tokens
BATCH = 8  # pairs a step
HIDDEN, LAYERS, VOCABULARY = 256, 4, 8192
BETA, RATE = 0.1, 1e-4


def main() -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    with tempfile.TemporaryDirectory() as folder:
        model = _model(Path(folder) / "model")
        rows = _pairs()
        ours = _ours(Path(folder), model, rows)
        peers = _peers(model, rows)
    rate = _matrix_rate()
    share = _floor() * PAIRS / ours / rate
    print(f"DPO with LoRA, {PAIRS} pairs of {PROMPT}+{ANSWER}+{ANSWER} tokens, Llama {HIDDEN}x{LAYERS}, fp32,")
    print(f"{torch.get_num_threads()} thread(s), reference pass and one epoch:")
    print(
        f"  ours                 {PAIRS / ours:6.2f} pairs/s   {share:.0%} of the {rate / 1e9:.0f} GFLOP/s measured here"
    )
    print(f"  padded, full logits  {PAIRS / peers:6.2f} pairs/s   ours is {peers / ours:.2f} times as fast")


def _model(directory: Path) -> Path:
    """A random Llama with the tests' tokenizer."""
    build("llama", directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def _pairs() -> list[SnapshotRow]:
    draw = random.Random(0)

    def tokens(length: int) -> list[int]:
        return [draw.randrange(6, VOCABULARY) for _ in range(length)]

    return [SnapshotRow(f"{i:04d}", TRAIN, tokens(PROMPT), tokens(ANSWER), tokens(ANSWER)) for i in range(PAIRS)]


def _ours(folder: Path, model: Path, rows: Sequence[SnapshotRow]) -> float:
    """Seconds of a whole round's reference pass and training."""
    snapshot = folder / "pairs.parquet"
    spec = RoundSpec(
        round=1,
        attempt=1,
        snapshot=str(snapshot),
        pair_digest=write_snapshot(snapshot, rows),
        model=str(model),
        fingerprints=fingerprints(model),
        parent=None,
        adapter_ordinal=1,
        out=str(folder / "out"),
        storage=str(folder / "storage"),
        checkpoints=str(folder / "checkpoints"),
        beta=BETA,
        learning_rate=RATE,
        epochs=1,
        pairs_per_step=BATCH,
    )
    report = learn(spec, lambda progress: None)
    return report.seconds["reference"] + report.seconds["train"]


def _peers(directory: Path, rows: Sequence[SnapshotRow]) -> float:
    """Seconds of the same, padded and with all logits."""
    base = AutoModelForCausalLM.from_pretrained(directory)
    policy = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimiser = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    began = time.perf_counter()
    with torch.no_grad():
        reference = [_logprobs(policy, batch) for batch in batches]
    for batch, frozen in zip(batches, reference, strict=True):
        margin = _logprobs(policy, batch) - frozen
        loss = -torch.nn.functional.logsigmoid(BETA * (margin[:BATCH] - margin[BATCH:])).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return time.perf_counter() - began


def _logprobs(policy: torch.nn.Module, batch: Sequence[SnapshotRow]) -> Tensor:
    """Log-probs of the answers, [chosen..., rejected...]."""
    ids = torch.tensor(
        [[*(r.prompt_token_ids or ()), *(r.chosen_token_ids or ())] for r in batch]
        + [[*(r.prompt_token_ids or ()), *(r.rejected_token_ids or ())] for r in batch]
    )
    logits = policy(input_ids=ids, use_cache=False).logits[:, :-1].float()
    taken = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return taken[:, PROMPT - 1 :].sum(-1)


def _floor() -> float:
    """Floating point operations a pair cannot do without, reference included."""
    body = LAYERS * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * 4 * HIDDEN)
    return 1.5 * (4 * body * (PROMPT + 2 * ANSWER) + 4 * HIDDEN * VOCABULARY * 2 * ANSWER)


def _matrix_rate() -> float:
    """Operations a second of large fp32 matrix products on as many threads; the best of a few."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = 0.0
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * 1024**3 / (time.perf_counter() - began))
    return best
