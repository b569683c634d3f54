"""What a round of training is asked and what it answers; imports neither torch nor Ray.

`service/rounds.py` writes a `RoundSpec`, `training/round.py` reads it and answers with a `RoundReport`.
The pairs themselves travel as a Parquet file (the snapshot), whose columns are `SNAPSHOT_COLUMNS`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

TRAIN = "train"
HELD_OUT = "held_out"

SNAPSHOT_COLUMNS = (
    "pair_id",  # str: sha256 hex over the pair's content; unique in a snapshot
    "split",  # str: TRAIN or HELD_OUT; all pairs of one prompt are in the same split
    "prompt_token_ids",  # list<int32>, or null when the pair was imported as text
    "chosen_token_ids",  # list<int32> exactly as sampled (EOS only where the engine stopped on it), or null
    "rejected_token_ids",  # list<int32>, or null
    "messages",  # str: JSON list of {role, content} of an imported pair, or null when token ids are given
    "chosen_text",  # str, or null when token ids are given
    "rejected_text",  # str, or null when token ids are given
)


class _Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LoraSpec(_Contract):
    """The shape of the trainable adapter; constant over all rounds of one base model."""

    rank: int = Field(default=8, ge=1, le=64)
    alpha: int = Field(default=16, ge=1, description="the update is scaled by alpha / rank")
    target_modules: Literal["all-linear"] = "all-linear"


class Fingerprints(_Contract):
    """Which base model and which rendering of messages an adapter belongs to (sha256 hex digests)."""

    base_model: str
    tokenizer: str  # tokenizer files and chat template together


class ParentAdapter(_Contract):
    """The deployed adapter that a round continues; its policy is the frozen reference."""

    name: str
    directory: str


class RoundSpec(_Contract):
    """One attempt of one round. Produced by the Conductor, consumed by the training attempt."""

    round: int = Field(ge=1)
    attempt: int = Field(ge=1)
    snapshot: str  # Parquet file
    pair_digest: str  # sha256 hex over the snapshot's pairs, checked again before the first step
    model: str  # directory of the base model
    fingerprints: Fingerprints  # the server's; training refuses to start when its own differ
    parent: ParentAdapter | None  # None: start from the base (B = 0), so the reference is the base
    adapter_ordinal: int = Field(ge=1)  # the n in `policy-<n>-<digest8>`
    out: str  # directory that receives `adapter/`, absent until it is complete
    storage: str  # where Ray Train keeps this attempt's own files
    objective: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0, le=10)
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    epochs: int = Field(default=1, ge=1, le=100)
    pairs_per_step: int = Field(default=16, ge=1)
    tokens_per_micro_batch: int = Field(default=4096, ge=1)  # tokens of padded rows in one forward
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraSpec = LoraSpec()
    workers: int = Field(default=1, ge=1)
    use_gpu: bool = False


class StepMetrics(_Contract):
    """One optimiser step, under TRL's names with `/` written as `_`. Rewards are beta * log-ratio to the reference."""

    step: int
    steps: int  # how many the round will make
    loss: float
    rewards_chosen: float
    rewards_rejected: float
    rewards_margins: float
    rewards_accuracies: float  # share of the step's pairs with margin > 0
    logps_chosen: float
    logps_rejected: float
    grad_norm: float
    learning_rate: float
    seconds: float  # since the first step began


class Evaluation(_Contract):
    """A policy on the held-out pairs. Numbers only; the verdict is `service/gate.py`'s."""

    pairs: int
    accuracy: float  # share of pairs with log p(chosen) > log p(rejected)
    mean_margin: float  # mean of log p(chosen) - log p(rejected), nats
    mean_logp_chosen: float  # mean over pairs of the chosen answer's log-prob per token, nats


class RoundReport(_Contract):
    """What training measured. Everything the gate needs and the operator may want to see."""

    adapter_name: str
    adapter_directory: str
    adapter_digest: str  # sha256 hex of adapter_model.safetensors
    pair_digest: str
    pairs_trained: int
    pairs_held_out: int
    pairs_skipped: dict[str, int]  # reason -> how many, such as {"too_long": 2}
    step0_loss: float  # ln 2 when the reference is right
    step0_max_abs_logratio: float  # 0 when the reference is right
    nonfinite_steps: int
    weights_changed: bool
    steps: tuple[StepMetrics, ...]
    current: Evaluation | None  # the deployed policy on the held-out pairs; None: there were no held-out pairs
    candidate: Evaluation | None
    candidate_correct_current_wrong: int  # discordant held-out pairs, for the paired test
    current_correct_candidate_wrong: int
    seconds: dict[str, float]  # phase -> seconds


class Progress(_Contract):
    """Something that happened in a running attempt: a line of the round's event stream."""

    kind: Literal["phase", "step"]
    phase: str | None = None  # for kind "phase": load, reference, train, evaluate, write
    step: StepMetrics | None = None  # for kind "step"


class AttemptStatus(_Contract):
    """What a poll of an attempt answers."""

    state: Literal["absent", "running", "done", "failed"]  # absent: nobody runs under that name
    progress: tuple[Progress, ...] = ()  # those after the asked-for position, in order
    report: RoundReport | None = None  # for state "done"
    failure: str | None = None  # for state "failed": one line that names the cause
    retryable: bool = False  # for state "failed": a process died; a TrainingError would only happen again
