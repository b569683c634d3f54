"""What an attempt is told: a round, its frozen pairs and the settings become one `RoundSpec`. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.depot import Depot
from service.settings import Settings
from service.store.rounds import RoundWork
from service.tuning import LEARNING
from training.contracts import Fingerprints, LoraSpec, ParentAdapter, RoundSpec


@dataclass(frozen=True)
class Specs:
    """Writes the specs of one service; all but the round itself stays the same."""

    settings: Settings
    model: Path
    fingerprints: Fingerprints
    use_gpu: bool

    def write(self, work: RoundWork, parent: ParentAdapter | None) -> RoundSpec:
        """`parent` is None where the base was deployed. Every path is absolute: Ray Train changes directories."""
        folder = Depot.of(self.settings).round(work.round.n)
        round, training = work.round, self.settings.training
        assert work.snapshot is not None, "the round has not collected yet"
        assert work.adapter_ordinal is not None and round.pair_digest is not None
        tuned = self.settings.round_defaults | round.settings
        out = f"{folder}/attempt-{round.attempt}"
        return RoundSpec(
            round=round.n,
            attempt=round.attempt,
            snapshot=work.snapshot,
            pair_digest=round.pair_digest,
            model=str(self.model),
            fingerprints=self.fingerprints,
            parent=parent,
            adapter_ordinal=work.adapter_ordinal,
            out=out,
            storage=f"{out}/ray",
            checkpoints=f"{folder}/checkpoints",
            candidate=None if round.candidate is None else round.candidate.directory,
            **{name: tuned[name] for name in LEARNING},
            pairs_per_step=training.pairs_per_step,
            tokens_per_micro_batch=training.tokens_per_micro_batch,
            seed=training.seed,
            dtype=training.dtype or ("bfloat16" if self.use_gpu else "float32"),
            gradient_checkpointing=training.gradient_checkpointing,
            lora=LoraSpec(rank=training.lora_rank, alpha=training.lora_alpha),
            workers=training.workers,
            use_gpu=self.use_gpu,
            node_resource=training.node_resource,
            shard_base=training.shard_base,
            seconds_between_checkpoints=training.seconds_between_checkpoints,
            restarts=training.restarts,
            trackers=training.trackers,
        )
