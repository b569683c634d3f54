"""Does the candidate say the same where it is served as where it was trained? Log-probs in, distances out. Pure.

Two implementations of one model never agree to the last digit: in float32 they are less than 1e-4 nats a token apart, in
bfloat16 some hundredths. An adapter that arrived wrong, scaled wrong or not at all is further off than either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from serving.contracts import Scores
from training.samples import ScoredAnswer


class Parity(BaseModel):
    """How far serving's log-probs of the same answers are from training's, in nats per token."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    samples: int
    tokens: int  # that both have scored
    mean_abs: float | None  # None: no token was scored, or a log-prob is not finite
    max_abs: float | None
    training_dtype: str
    serving_dtype: str


def compare(ours: Sequence[ScoredAnswer], theirs: Scores, training_dtype: str) -> Parity:
    """`theirs` may end early, where an answer did not fit the engine's context."""
    assert len(ours) == len(theirs.logprobs), "the engine answered for every sample"
    apart = [
        abs(at_training - at_serving)
        for answer, served in zip(ours, theirs.logprobs, strict=True)
        for at_training, at_serving in zip(answer.logprobs, served, strict=False)
    ]
    known = bool(apart) and all(math.isfinite(distance) for distance in apart)
    return Parity(
        samples=len(ours),
        tokens=len(apart),
        mean_abs=math.fsum(apart) / len(apart) if known else None,
        max_abs=max(apart) if known else None,
        training_dtype=training_dtype,
        serving_dtype=theirs.dtype,
    )
