"""What may be said of a round's learning: the same numbers, with the same bounds, in settings and in requests. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, BaseModel, Field

from service.errors import BadRequest
from training import objective
from training.contracts import RoundSpec


def _known(text: str) -> str:
    objective.parse(text)  # raises ValueError naming what it does not know, and what there is
    return text


Objective = Annotated[str, Field(max_length=200), AfterValidator(_known)]
Beta = Annotated[float, Field(gt=0, le=10)]
LabelSmoothing = Annotated[float, Field(ge=0, lt=0.5)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(gt=0, le=1000)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Epochs = Annotated[int, Field(ge=1, le=100)]
Replay = Annotated[float, Field(ge=0, le=0.5)]
MinPairs = Annotated[int, Field(ge=2)]


class Tuning(BaseModel):
    """What `POST /ops/rounds` may override in the section [training]; None: as the settings say."""

    objective: Objective | None = None
    beta: Beta | None = None
    label_smoothing: LabelSmoothing | None = None
    ld_alpha: Share | None = None
    desirable_weight: Weight | None = None
    undesirable_weight: Weight | None = None
    learning_rate: LearningRate | None = None
    epochs: Epochs | None = None
    replay: Replay | None = None
    min_pairs: MinPairs | None = None


TUNABLE = tuple(Tuning.model_fields)
LEARNING = tuple(name for name in TUNABLE if name in RoundSpec.model_fields)  # the rest is for collecting alone

# What a spec says beside: nothing of it matters to whether the numbers go together.
_ANY_ATTEMPT = {
    "round": 1, "attempt": 1, "snapshot": "", "pair_digest": "", "model": "", "parent": None, "adapter_ordinal": 1,
    "fingerprints": {"base_model": "", "tokenizer": ""}, "out": "", "storage": "", "checkpoints": "",
}  # fmt: skip


def chosen(asked: Tuning, defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings of one round: what was asked for, and the defaults for the rest.

    Raises `BadRequest` when one of them would have no effect on the objective.
    """
    tuned = defaults | {name: value for name in TUNABLE if (value := getattr(asked, name)) is not None}
    try:
        require_effective(tuned)
    except ValueError as error:
        name = str(error).split()[0]
        raise BadRequest(f"{error}.", param=name if name in TUNABLE else None, code="invalid_value") from error
    return tuned


def require_effective(tuned: Mapping[str, Any]) -> None:
    """Raises `ValueError` where training would: a setting that nothing listens to is refused, not ignored."""
    try:
        RoundSpec.model_validate(_ANY_ATTEMPT | {name: tuned[name] for name in LEARNING})
    except pydantic.ValidationError as error:
        raise ValueError(error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")) from error
