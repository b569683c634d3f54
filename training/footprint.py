"""What a round of LoRA-DPO takes of each GPU: memory by what it is for, operations by what they are for. Pure.

Computed from shapes alone, for the path that a GPU takes: base in bfloat16, adapter in float32, FlexAttention, prompts
shared within a pair. What `memory.py` measures at the start of a round decides there; this says beforehand which GPUs to
ask for. The tests hold it to what the trainer counts and keeps on tiny models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.cost import LOGITS_PER_CHUNK, forward_operations, round_operations
from training.model_shape import ModelShape

FLOAT32 = 4  # bytes
_ADAPTER_COPIES = 5  # in float32: itself, AdamW's two moments, a step's gradient and a micro-batch's
_GATHERED_LAYERS = 3  # of a sharded base: the one at hand, the next one, and the buffer it arrives in
_GRADIENTS_IN_PASSING = 4  # as long as the MLP is wide: of gate, up, their product and its activation
_ATTENTION_BACKWARD = 2.5  # times the forward pass: five matrix products for two (arXiv:2205.14135, appendix B)
_UPDATE_BACKWARD = 2.5  # the same for the adapter: five thin products for two, half a one more or less by its shape


@dataclass(frozen=True)
class Work:
    """A round, and how it is spread. Every pair has a prompt of its own; lengths are in tokens."""

    pairs: int = 1000
    prompt: int = 512
    chosen: int = 256
    rejected: int = 256
    epochs: int = 3
    rank: int = 16
    pairs_per_step: int = 16
    tokens_per_micro_batch: int = 4096
    gpus: int = 1
    sharded: bool = False  # the base's layers over the GPUs: `training.shard_base`
    checkpointing: bool = False  # activations are computed twice instead of kept
    parameter_bytes: int = 2  # of the base

    @property
    def answers(self) -> int:
        """Tokens of a pair that the head looks at."""
        return self.chosen + self.rejected

    @property
    def tokens(self) -> int:
        """Of a pair: its prompt is computed once for both answers."""
        return self.prompt + self.answers

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return math.ceil(self.pairs / self.pairs_per_step)

    @property
    def micro_batches(self) -> int:
        """Of each GPU in each step: `plan.micro_batches`."""
        return math.ceil(self.pairs_per_step * self.tokens / (self.tokens_per_micro_batch * self.gpus))

    @property
    def pairs_at_once(self) -> int:
        """In the largest micro-batch."""
        return math.ceil(self.pairs_per_step / (self.micro_batches * self.gpus))

    @property
    def busiest_share(self) -> float:
        """Of all pairs, those that one GPU computes; where there are more GPUs than pairs in a step, some have none."""
        return self.steps * self.micro_batches * self.pairs_at_once / self.pairs


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU at the worst moment of a step."""

    weights: float  # the frozen base, and of a sharded one what is gathered
    adapter: float  # with its gradients and AdamW's moments
    activations: float  # that the backward pass needs, and gradients in passing
    logits: float  # of one chunk, and what the head keeps

    @property
    def total(self) -> float:
        return self.weights + self.adapter + self.activations + self.logits


@dataclass(frozen=True)
class Operations:
    """Floating point operations of a whole round, over all GPUs."""

    passes: float  # through the base's matrices: `cost.round_operations`, which no trainer can do without
    attention: float
    update: float  # the adapter's thin products
    again: float  # activations that are computed twice

    @property
    def total(self) -> float:
        return self.passes + self.attention + self.update + self.again


def memory(shape: ModelShape, work: Work) -> Memory:
    tokens, answers = work.pairs_at_once * work.tokens, work.pairs_at_once * work.answers
    return Memory(
        weights=weight_bytes(shape, work),
        adapter=float(FLOAT32 * _ADAPTER_COPIES * shape.adapter(work.rank)),
        activations=activation_bytes(shape, work, tokens, answers)
        + _GRADIENTS_IN_PASSING * shape.intermediate * work.parameter_bytes * tokens,
        logits=logits_bytes(shape, work, answers),
    )


def weight_bytes(shape: ModelShape, work: Work) -> float:
    """Of the base on one GPU. Sharded, a part of each layer lies there, with what is no layer and the layers at hand."""
    if not work.sharded:
        return float(work.parameter_bytes * shape.parameters)
    layers = shape.layer_parameters * (shape.layers / work.gpus + _GATHERED_LAYERS)
    return work.parameter_bytes * (layers + shape.outside)


def activation_bytes(shape: ModelShape, work: Work, tokens: int, answers: int) -> float:
    """What the backward pass finds of a micro-batch: of each layer the tensors below, or its input alone.

    Norms keep their input in float32; matrices theirs in the base's format (q, k and v share one, gate and up another);
    attention keeps q, k, v and its output; the MLP the gate, its activation, up and their product. The last layer's
    output projection and MLP see answers' tokens only (`last_layer.py`).
    """
    before, after = _kept_of_a_token(shape, work.parameter_bytes)
    norm = FLOAT32 * shape.hidden
    head = work.parameter_bytes * shape.hidden * answers  # its gradient, built in the forward pass
    last = tokens * (before + norm) + answers * (after - norm) + tokens * norm + head
    if not work.checkpointing:
        return tokens * (shape.layers - 1) * (before + after) + last
    inputs = shape.layers * work.parameter_bytes * shape.hidden
    return tokens * inputs + tokens * (before + after + norm) + head


def _kept_of_a_token(shape: ModelShape, parameter_bytes: int) -> tuple[int, int]:
    """Bytes of one layer: until attention is computed, and from its output on."""
    norms = shape.hidden_norms // 2 * FLOAT32 * shape.hidden
    of_heads = FLOAT32 * (shape.queries + shape.keys) if shape.head_norms else 0
    attention = parameter_bytes * (shape.hidden + 2 * shape.queries + 2 * shape.keys) + FLOAT32 * shape.heads
    mlp = parameter_bytes * (shape.queries + shape.hidden + 4 * shape.intermediate)
    return norms + of_heads + attention, norms + mlp


def logits_bytes(shape: ModelShape, work: Work, answers: int) -> float:
    """One chunk of the head's float32 logits with its copies in the base's format, and the states it looks at."""
    rounded = 2 * work.parameter_bytes if work.parameter_bytes < FLOAT32 else 0
    chunk = min(LOGITS_PER_CHUNK, answers * shape.vocabulary)
    return float(chunk * (FLOAT32 + rounded) + answers * shape.hidden * work.parameter_bytes)


def operations(shape: ModelShape, work: Work) -> Operations:
    """Of reference, forward and backward passes over all pairs. The reference is taken once and not in each epoch."""
    tokens, answers = work.pairs * work.tokens, work.pairs * work.answers
    attention, update = work.pairs * attention_operations(shape, work), 2.0 * shape.adapter(work.rank) * tokens
    again = forward_operations(shape.body, 0, tokens, 0) + attention + update
    return Operations(
        passes=round_operations(forward_operations(shape.body, shape.head, tokens, answers), work.epochs),
        attention=(work.epochs * (1 + _ATTENTION_BACKWARD) + 1) * attention,
        update=(work.epochs * (1 + _UPDATE_BACKWARD) + 1) * update,
        again=work.epochs * again if work.checkpointing else 0.0,
    )


def attention_operations(shape: ModelShape, work: Work) -> float:
    """Of one pair's forward pass: 4 d for each head, query of size d, and key that it may see."""
    seen = work.prompt**2 / 2
    seen += sum(answer * (work.prompt + answer / 2) for answer in (work.chosen, work.rejected))
    return 4.0 * shape.layers * shape.queries * seen


def gathered_bytes(shape: ModelShape, work: Work) -> float:
    """What one GPU of a sharded base receives in a whole round: every layer twice for each micro-batch of a step, once
    for each of the reference."""
    if not work.sharded:
        return 0.0
    layers = work.parameter_bytes * shape.layers * shape.layer_parameters * (1 - 1 / work.gpus)
    return layers * work.steps * work.micro_batches * (2 * work.epochs + 1)
