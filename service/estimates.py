"""How long a round would take and how much memory, by the rounds before it; before the first, by a guess that says so. Pure.

    seconds = outside + fixed + tokens * (reference + train + evaluate seconds per token)

`outside` is what a round does beside training, `fixed` is loading and writing: medians over the last rounds, so that one
odd round counts little. What training does per token is its sum over all of them, so that long rounds count more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict

from training.cost import forward_operations, round_operations

PER_TOKEN = ("reference", "train", "evaluate")  # phases of training that grow with what is learned
OUTSIDE = ("queued", "collecting", "training", "judging")  # states whose time is a round's own; of `training` the rest

# What is said before there is any round to go by; each may be wrong by several times.
GUESSED_TOKENS_PER_EXAMPLE = 400  # a prompt and two answers
GUESSED_OUTSIDE_SECONDS = 20.0
GUESSED_FLOPS = {"cpu": 1e10, "gpu": 1e14}  # a second, per core and per GPU
GUESSED_RUNTIME_BYTES = {"cpu": 3 << 29, "gpu": 1 << 30}  # of the libraries, and of activations of small models


@dataclass(frozen=True)
class Past:
    """What an earlier round took."""

    tokens: int  # that went through the model, padding aside
    examples: int  # trained on, times epochs
    phases: Mapping[str, float]  # of training -> seconds
    states: Mapping[str, float]  # state -> seconds that the round was in it
    memory_bytes: int | None  # at most, of the worker; None: not recorded


@dataclass(frozen=True)
class Base:
    """What a guess goes by."""

    parameters: int
    bytes_per_parameter: int  # while it trains
    device: Literal["cpu", "gpu"]
    cores: int


class Estimate(BaseModel):
    """`estimate` of a dry run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    basis: Literal["rounds", "guess"]
    rounds: int  # that it goes by
    tokens: int  # that would go through the model
    seconds: float  # from the start of the round to its verdict; a canary comes on top
    seconds_low: float | None  # by how far the last rounds were off; None: fewer than two
    seconds_high: float | None
    training_seconds: float  # of those
    memory_bytes: int | None  # of the worker at most; on a GPU the GPU's


def estimate(examples: int, past: Sequence[Past], base: Base) -> Estimate:
    """Of a round that trains on so many, times epochs: by the last rounds, if there are any that trained."""
    known = [round for round in past if round.tokens and round.examples]
    return _by_rounds(examples, known) if known else _guess(examples, base)


def _by_rounds(examples: int, past: Sequence[Past]) -> Estimate:
    tokens = round(examples * sum(p.tokens for p in past) / sum(p.examples for p in past))
    training = _training_seconds(past, tokens)
    seconds = median(_outside(p) for p in past) + training
    ratios = [_whole(p) / (median(_outside(q) for q in past) + _training_seconds(past, p.tokens)) for p in past]
    spread = (min(ratios), max(ratios)) if len(past) > 1 else None
    memory = [p.memory_bytes for p in past if p.memory_bytes is not None]
    return Estimate(
        basis="rounds",
        rounds=len(past),
        tokens=tokens,
        seconds=seconds,
        seconds_low=seconds * min(spread[0], 1.0) if spread else None,
        seconds_high=seconds * max(spread[1], 1.0) if spread else None,
        training_seconds=training,
        memory_bytes=max(memory) if memory else None,
    )


def _training_seconds(past: Sequence[Past], tokens: int) -> float:
    fixed = median(sum(s for phase, s in p.phases.items() if phase not in PER_TOKEN) for p in past)
    per_token = sum(p.phases.get(phase, 0.0) for p in past for phase in PER_TOKEN) / sum(p.tokens for p in past)
    return fixed + tokens * per_token


def _outside(past: Past) -> float:
    """What the round took beside the phases of training: starting processes, judging."""
    return max(0.0, _whole(past) - sum(past.phases.values()))


def _whole(past: Past) -> float:
    """From the start to the verdict. Of a round whose times are not known at least the time of its phases."""
    return max(sum(past.states.get(state, 0.0) for state in OUTSIDE), sum(past.phases.values()))


def _guess(examples: int, base: Base) -> Estimate:
    tokens = examples * GUESSED_TOKENS_PER_EXAMPLE
    rate = GUESSED_FLOPS[base.device] * (base.cores if base.device == "cpu" else 1)
    training = round_operations(forward_operations(base.parameters, 0, tokens, 0), epochs=1) / rate
    return Estimate(
        basis="guess",
        rounds=0,
        tokens=tokens,
        seconds=GUESSED_OUTSIDE_SECONDS + training,
        seconds_low=None,
        seconds_high=None,
        training_seconds=training,
        memory_bytes=base.parameters * base.bytes_per_parameter + GUESSED_RUNTIME_BYTES[base.device],
    )
