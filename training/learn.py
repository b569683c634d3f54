"""The round itself, as a plain function of one worker: pairs and the deployed policy in, a new adapter directory out.

`training/worker.py` runs it inside Ray Train; called directly it trains in this process. Measures, and takes no
decision on whether the adapter is any good.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer

from training.adapter import Lineage, Weights, adapter_name, changed, serialise, write_adapter
from training.contracts import Evaluation, Progress, RoundReport, RoundSpec, StepMetrics
from training.errors import SnapshotInvalid
from training.evaluate import discordant, evaluate
from training.fingerprints import require_same
from training.layout import choose_layout
from training.pairs import Pair, RoundPairs, sort_out
from training.plan import Plan, make_plan
from training.policy import Policy, load_policy, score
from training.reference import identity, kept
from training.snapshot import pair_digest, read_snapshot
from training.steps import Descent
from training.world import ALONE, World

Report = Callable[[Progress], None]

_PAIRS_TO_MEASURE = 4  # of different lengths, so that padding is measured too

REFERENCE_FILE = "reference.safetensors"  # in the attempt's storage


def learn(spec: RoundSpec, report: Report, world: World = ALONE) -> RoundReport:
    """One attempt of a round. On several workers each calls it with its own `world` and gets the same answer.

    Raises a `TrainingError` that names the cause; nothing is then left at `<spec.out>/adapter`.
    """
    phase = Phases(report)
    with phase("load"):
        require_same(spec)
        policy = load_policy(spec, world.device)
        pairs = load_pairs(spec, policy)
        before = policy.weights()
    with phase("reference"):
        plan = _plan(spec, policy, pairs)
        reference = _reference(spec, policy, pairs.train, plan, before, world)
        current = score(policy, pairs.held_out, plan.held_out, plan.layout, world)
    with phase("train"):
        descent = Descent(spec, policy, pairs.train, reference, plan.layout, world)
        history = descent.run(
            plan.schedule(spec.epochs, spec.seed), lambda step: report(Progress(kind="step", step=step))
        )
    with phase("evaluate"):
        candidate = score(policy, pairs.held_out, plan.held_out, plan.layout, world)
        comparison = compare(pairs.held_out, current, candidate)
    with phase("write"):
        after = policy.weights()
        if world.is_first:
            summary = _summary(spec, plan, history[-1], pairs, comparison)
            _write(spec, policy, after, summary)
    digest = hashlib.sha256(serialise(after)).hexdigest()
    return RoundReport(
        adapter_name=adapter_name(spec.adapter_ordinal, digest),
        adapter_directory=str(Path(spec.out) / "adapter"),
        adapter_digest=digest,
        pair_digest=spec.pair_digest,
        pairs_trained=len(pairs.train),
        pairs_held_out=len(pairs.held_out),
        pairs_skipped=pairs.skipped,
        step0_loss=descent.step0_loss,
        step0_max_abs_logratio=descent.step0_max_abs_logratio,
        nonfinite_steps=0,  # the first one ends the round
        weights_changed=changed(before, after),
        steps=tuple(history),
        seconds=phase.seconds,
        **comparison,
    )


class Phases:
    """Announces each phase as it begins and remembers how long it took."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._report(Progress(kind="phase", phase=name))
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


def load_pairs(spec: RoundSpec, policy: Policy) -> RoundPairs:
    """The snapshot's pairs as token ids. Raises `SnapshotInvalid` when they are not those the round was told of."""
    rows = read_snapshot(Path(spec.snapshot))
    found = pair_digest(rows)
    if found != spec.pair_digest:
        raise SnapshotInvalid(
            f"{spec.snapshot} holds other pairs than the round was told to learn from: "
            f"digest {found[:12]} instead of {spec.pair_digest[:12]}"
        )
    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    return sort_out(
        rows,
        tokenizer,
        policy.stop_ids,
        vocabulary=policy.config.vocab_size,
        context=policy.config.max_position_embeddings,
    )


def compare(held_out: Sequence[Pair], current: Tensor, candidate: Tensor) -> dict[str, Any]:
    """The report's fields about the held-out pairs, from both policies' log-probs [pairs, 2]."""
    evaluations: tuple[Evaluation | None, Evaluation | None] = (None, None)
    if held_out:
        evaluations = evaluate(current, held_out), evaluate(candidate, held_out)
    only_candidate, only_current = discordant(current, candidate)
    return {
        "current": evaluations[0],
        "candidate": evaluations[1],
        "candidate_correct_current_wrong": only_candidate,
        "current_correct_candidate_wrong": only_current,
    }


def _plan(spec: RoundSpec, policy: Policy, pairs: RoundPairs) -> Plan:
    layout = choose_layout(policy, pairs.train[:_PAIRS_TO_MEASURE])
    return make_plan(
        pairs.train,
        pairs.held_out,
        layout,
        pairs_per_step=spec.pairs_per_step,
        token_budget=spec.tokens_per_micro_batch,
        seed=spec.seed,
    )


def _reference(
    spec: RoundSpec, policy: Policy, train: Sequence[Pair], plan: Plan, before: Weights, world: World
) -> Tensor:
    depends_on = {
        "fingerprints": spec.fingerprints.model_dump(),
        "adapter": hashlib.sha256(serialise(before)).hexdigest(),
        "pairs": spec.pair_digest,
        "plan": plan,
        "dtype": spec.dtype,
        "device": world.device.type,
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }
    path = Path(spec.storage) / REFERENCE_FILE
    return kept(path, identity(depends_on), lambda: score(policy, train, plan.micro_batches, plan.layout, world), world)


def _write(spec: RoundSpec, policy: Policy, weights: Weights, summary: dict[str, Any]) -> None:
    lineage = Lineage(
        spec.adapter_ordinal, spec.parent, spec.round, spec.fingerprints, spec.pair_digest, training=summary
    )
    write_adapter(Path(spec.out), weights, spec.lora, policy.target_modules, spec.model, lineage)


def _summary(
    spec: RoundSpec, plan: Plan, last: StepMetrics, pairs: RoundPairs, comparison: dict[str, Any]
) -> dict[str, Any]:
    """The manifest's training report: how to make this adapter again, and what it measured. No clock in it."""
    settings = {
        name: getattr(spec, name)
        for name in ("objective", "beta", "learning_rate", "epochs", "pairs_per_step", "tokens_per_micro_batch",
                     "warmup_ratio", "max_gradient_norm", "seed", "dtype", "workers")
    }  # fmt: skip
    return settings | {
        "layout": plan.layout,
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "pairs_trained": len(pairs.train),
        "pairs_held_out": len(pairs.held_out),
        "pairs_skipped": pairs.skipped,
        "last_step": last.model_dump(exclude={"seconds"}),
        "held_out": {k: v.model_dump() if isinstance(v, Evaluation) else v for k, v in comparison.items()},
    }


def _versions() -> dict[str, str]:
    return {module.__name__: module.__version__ for module in (torch, transformers, peft)}
