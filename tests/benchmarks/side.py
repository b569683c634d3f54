"""One side of a benchmark, in a process of its own so that its peak of memory is its own.

    python -m tests.benchmarks.side SIDE FOLDER

reads `FOLDER/shape.json`, computes with the threads that `processes.py` asks for, and writes `FOLDER/SIDE.json`.
`prepare` comes first: it leaves the model, the snapshot and the `RoundSpec` there, so that no side has made what it
measures.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.benchmarks.shapes import Llama, Shape
from tests.tiny_models import BOS, EOS, PAD, build
from training.contracts import RoundSpec
from training.fingerprints import fingerprints
from training.learn import learn
from training.snapshot import write_snapshot

CONTEXT_TOKENS = 2048

Measured = dict[str, Any]


def main(side: str, folder: Path) -> None:
    shape = Shape.read(folder)
    if side in PEERS:
        import_module("tests.trl_peer")
    before_bytes = psutil.Process().memory_info().rss
    measured = SIDES[side](shape, folder)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    measured |= {"before_bytes": before_bytes, "peak_bytes": peak_bytes}  # before: what the libraries alone take
    (folder / f"{side}.json").write_text(json.dumps(measured))


def prepare(shape: Shape, folder: Path) -> Measured:
    """The model and the snapshot; answers with the operations that the round cannot avoid."""
    model, snapshot = folder / "model", folder / "pairs.parquet"
    build("llama", model)  # for its tokenizer
    torch.manual_seed(0)
    LlamaForCausalLM(_config(shape.llama)).save_pretrained(model)
    spec = RoundSpec(
        round=1,
        attempt=1,
        snapshot=str(snapshot),
        pair_digest=write_snapshot(snapshot, shape.rows()),
        model=str(model),
        fingerprints=fingerprints(model),
        parent=None,
        adapter_ordinal=1,
        out=str(folder / "out"),
        storage=str(folder / "storage"),
        checkpoints=str(folder / "checkpoints"),
        epochs=shape.epochs,
        pairs_per_step=shape.batch,
    )
    (folder / "spec.json").write_text(spec.model_dump_json())
    return {"floor": shape.floor()}


def ours(shape: Shape, folder: Path) -> Measured:
    """A whole round: the model's loading, checks, reference, training, the adapter on disk."""
    spec = _spec(folder)
    began = time.perf_counter()
    report = learn(spec, lambda progress: None)
    seconds = time.perf_counter() - began
    assert report.pairs_trained == shape.pairs
    return {"seconds": seconds, "phases": report.seconds}


def trl_default(shape: Shape, folder: Path) -> Measured:
    """TRL as it comes."""
    from tests import trl_peer

    spec = _spec(folder)
    return {"seconds": trl_peer.train(spec, trl_peer.steps_of(shape.rows(), spec), folder / "trl_default").seconds}


def trl_best(shape: Shape, folder: Path) -> Measured:
    """TRL as fast as it goes: no gradient checkpointing, the reference computed once, like lengths together."""
    from tests import trl_peer

    spec = _spec(folder)
    steps = trl_peer.by_length(trl_peer.steps_of(shape.rows(), spec))
    return {"seconds": trl_peer.train(spec, steps, folder / "trl_best", **trl_peer.BEST).seconds}


def matrix_rate(shape: Shape, folder: Path) -> Measured:
    """Floating point operations a second of large fp32 matrix products, the best of many."""
    best = 0.0
    for size in (1024, 2048):
        a, b, product = (torch.randn(size, size) for _ in range(3))
        for _ in range(15):
            began = time.perf_counter()
            torch.mm(a, b, out=product)
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return {"rate": best}


def _spec(folder: Path) -> RoundSpec:
    return RoundSpec.model_validate_json((folder / "spec.json").read_text())


def _config(llama: Llama) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=llama.vocabulary,
        hidden_size=llama.hidden,
        intermediate_size=llama.intermediate,
        num_hidden_layers=llama.layers,
        num_attention_heads=llama.hidden // llama.head_dim,
        num_key_value_heads=llama.hidden // llama.head_dim,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


PEERS = {side.__name__: side for side in (trl_default, trl_best)}
SIDES: dict[str, Callable[[Shape, Path], Measured]] = {
    **{side.__name__: side for side in (prepare, ours, matrix_rate)},
    **PEERS,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
