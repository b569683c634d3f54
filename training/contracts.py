"""What a round of training is asked and what it answers; imports neither torch nor Ray.

`service/rounds.py` writes a `RoundSpec`, `training/round.py` reads it and answers with a `RoundReport`.
The pairs themselves travel as a Parquet file (the snapshot), whose columns are `SNAPSHOT_COLUMNS`.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from training.objective import parse

TRAIN = "train"
HELD_OUT = "held_out"

NEW = "new"
REPLAY = "replay"

# A row is a pair, or a single thumb: that has a chosen answer (thumb up) or a rejected one (thumb down), not both.
# With token ids of the prompt each answer has token ids or a text (a user's own words); with messages both are texts.
SNAPSHOT_COLUMNS = (
    "pair_id",  # str: sha256 hex over the content; unique in a snapshot, whose rows are in its order
    "split",  # str: TRAIN or HELD_OUT; all rows of one prompt are in the same split
    "prompt_token_ids",  # list<int32>, or null when the row was imported as text
    "chosen_token_ids",  # list<int32> exactly as sampled (EOS only where the engine stopped on it), or null
    "rejected_token_ids",  # list<int32>, or null
    "messages",  # str: JSON list of {role, content} of an imported row, or null when token ids are given
    "chosen_text",  # str that nobody sampled, trained on with the end of a turn after it, or null
    "rejected_text",  # str, or null
    "origin",  # str: NEW, or REPLAY for a pair that an earlier round has learned already
    "voter",  # str: a digest that stands for the person whose vote it is, or null
    "weight",  # double above 0 and at most 1: how much the row counts in the mean loss of its step
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
    checkpoints: str  # directory of the round's resume files: all its attempts share it
    candidate: str | None = None  # an adapter directory to measure as if the round had trained it; nothing is trained
    objective: str = "dpo"  # a sum of losses, such as `dpo+0.2*nll`: objective.py
    beta: float = Field(default=0.1, gt=0, le=10)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="share of votes taken to be wrong")
    ld_alpha: float = Field(default=1.0, ge=0, le=1, description="weight of the longer answer's tail (LD-DPO)")
    desirable_weight: float = Field(default=1.0, gt=0, description="KTO's weight of thumbs up")
    undesirable_weight: float = Field(default=1.0, gt=0, description="KTO's weight of thumbs down")
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    epochs: int = Field(default=1, ge=1, le=100)
    pairs_per_step: int = Field(default=16, ge=1)
    tokens_per_micro_batch: int = Field(default=4096, ge=1)  # tokens of padded rows in one forward
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"  # of the frozen base; the adapter is in float32
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    lora: LoraSpec = LoraSpec()
    workers: int = Field(default=1, ge=1)
    use_gpu: bool = False
    node_resource: str | None = None  # a Ray resource of the nodes that train; None: any node may
    shard_base: bool = False  # FSDP2 over the workers: for a base model that does not fit into one device
    seconds_between_checkpoints: float = Field(default=30.0, ge=0)
    restarts: int = Field(default=3, ge=0)  # of this attempt's workers, when one of them is killed
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)

    @field_validator("objective")
    @classmethod
    def _known(cls, objective: str) -> str:
        parse(objective)  # raises ValueError naming what it does not know
        return objective

    @model_validator(mode="after")
    def _effective(self) -> RoundSpec:
        """A setting that nothing would listen to is refused: TRL's `label_smoothing` has had no effect for months."""
        objective = parse(self.objective)
        paired = {term.loss for term in objective.paired}
        if self.label_smoothing and not paired & {"cdpo", "robust"}:
            raise ValueError(f"label_smoothing has no effect on {self.objective!r}: it is for cdpo and robust")
        if self.ld_alpha < 1 and not paired - {"nll", "nll_tokens"}:
            raise ValueError(f"ld_alpha has no effect on {self.objective!r}: it is for losses of pairs")
        return self


def trl_name(field: str) -> str:
    """`rewards_chosen` -> `rewards/chosen`: what TRL and its dashboards call the metric."""
    group, _, rest = field.partition("_")
    return f"{group}/{rest}" if group in ("rewards", "logps", "logratio", "nll", "length") else field


class StepMetrics(_Contract):
    """One optimiser step, over all workers; in JSON under TRL's names. Rewards are beta * log-ratio to the reference.

    None where the step has nothing to say: no thumbs, or none of one kind.
    """

    model_config = ConfigDict(
        alias_generator=trl_name, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )

    step: int
    steps: int  # how many the round will make
    epoch: float = 0.0
    loss: float
    rewards_chosen: float | None  # of pairs; of thumbs up where there are no pairs
    rewards_rejected: float | None
    rewards_margins: float | None
    rewards_accuracies: float | None  # share of pairs with margin > 0
    logps_chosen: float | None
    logps_rejected: float | None
    logratio_chosen: float | None = None  # nats
    logratio_rejected: float | None = None
    chosen_logp_drop_rate: float | None = None  # share of chosen answers that became less likely
    tie_rate: float | None = None  # share of pairs with margin = 0
    nll_chosen: float | None = None  # nats per token
    length_chosen: float | None = None  # tokens
    length_rejected: float | None = None
    length_margin: float | None = None
    kl: float | None = None  # KTO's z0, nats
    grad_norm: float
    learning_rate: float
    num_tokens: int = 0  # that went through the model since the round began, padding aside
    tokens_per_second: float | None = None
    mfu: float | None = None  # share of the measured matrix-product rate that the unavoidable operations take
    padding_fraction: float = 0.0  # share of the step's tokens that are padding
    shared_prefix_saving: float = 0.0  # share of tokens that a trainer which repeats each prompt would add
    seconds: float  # since the first step began


class Evaluation(_Contract):
    """A policy on the held-out pairs. Numbers only; the verdict is the gate's, `service/gate`."""

    pairs: int
    accuracy: float  # share of pairs with log p(chosen) > log p(rejected)
    mean_margin: float  # mean of log p(chosen) - log p(rejected), nats
    mean_logp_chosen: float  # mean over pairs of the chosen answer's log-prob per token, nats


class Drift(_Contract):
    """How far the candidate's next-token distributions have moved: mean KL(candidate || other) over `tokens`, nats."""

    tokens: int
    kl_previous: float  # to the deployed policy that the round began with
    kl_base: float  # to the base model: what all rounds together have done


class Finding(_Contract):
    """Something a check of the data has seen. `rows` are the first few of `count`, numbered from 1."""

    check: str  # its name, such as `missing_eos`
    action: Literal["refused", "left_out", "noted"]
    count: int
    rows: tuple[int, ...] = ()
    why: str


class RoundReport(_Contract):
    """What training measured. Everything the gate needs and the operator may want to see."""

    adapter_name: str
    adapter_directory: str
    adapter_digest: str  # sha256 hex of adapter_model.safetensors
    pair_digest: str
    pairs_trained: int
    pairs_held_out: int
    pairs_skipped: dict[str, int]  # reason -> how many, such as {"too_long": 2}
    thumbs_trained: int = 0
    thumbs_held_out: int = 0
    findings: tuple[Finding, ...] = ()
    objective: str = "dpo"
    layout: str = "shared"
    layout_reason: str | None = None  # why prompts are not shared
    dtype: str = "float32"
    dtype_error: float | None = None  # of bfloat16 chosen for its speed: largest change of a log-prob, nats per token
    gradient_checkpointing: bool = False
    resumed_from: int | None = None  # the step whose checkpoint this attempt went on from
    step0_loss: float
    step0_expected_loss: float = math.log(2)  # the objective's when policy and reference are the same
    step0_max_abs_logratio: float  # 0 when the reference is right
    nonfinite_steps: int
    weights_changed: bool
    steps: tuple[StepMetrics, ...]  # all of a short round, at most a few hundred evenly spaced ones of a long one
    evaluation: dict[str, float] = {}  # TRL's `eval_...` names, over the held-out pairs
    drift: Drift | None = None
    samples: str | None = None  # file of answers with the candidate's log-prob of each token: samples.py
    held_out: str | None = None  # file of how both policies stand on each held-out pair: outcomes.py
    curves: str | None = None  # SVG file
    current: Evaluation | None  # the deployed policy on the held-out pairs; None: there were no held-out pairs
    candidate: Evaluation | None
    candidate_correct_current_wrong: int  # discordant held-out pairs, for the paired test
    current_correct_candidate_wrong: int
    seconds: dict[str, float]  # phase -> seconds
    peak_bytes: int | None = None  # of memory, at most, in this worker: the GPU's, or on a CPU all of the process


class Progress(_Contract):
    """Something that happened in a running attempt: a line of the round's event stream."""

    kind: Literal["phase", "step"]
    phase: str | None = None  # for kind "phase": load, reference, train, evaluate, write; restart: workers had died
    step: StepMetrics | None = None  # for kind "step"


class AttemptStatus(_Contract):
    """What a poll of an attempt answers."""

    state: Literal["absent", "running", "done", "failed"]  # absent: nobody runs under that name
    progress: tuple[Progress, ...] = ()  # those after the asked-for position, in order
    report: RoundReport | None = None  # for state "done"
    failure: str | None = None  # for state "failed": one line that names the cause
    retryable: bool = False  # for state "failed": a process died; a TrainingError would only happen again
