"""What a round begins with: the deployed policy, its examples, their layout and plan. Shared by learning and assessing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from training.contracts import Progress, RoundSpec
from training.errors import TrainingError
from training.examples import Examples, RoundExamples, load_examples
from training.fingerprints import require_same
from training.layout import Choice, choose_layout
from training.memory import has_room_for_merged
from training.objective import parse
from training.pairs import Tokenizer
from training.plan import Plan, Sizes, make_plan
from training.policy import Policy, load_policy
from training.precision import bfloat16_is_faster, choose_dtype, to_bfloat16
from training.world import World

Report = Callable[[Progress], None]

EXAMPLES_TO_MEASURE = 2  # of different lengths, so that padding is measured too


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


@dataclass(frozen=True)
class Start:
    """The deployed policy, and what it is to be trained or measured on."""

    policy: Policy
    examples: RoundExamples
    choice: Choice
    dtype_error: float | None  # of bfloat16 that was chosen for its speed


def load_start(spec: RoundSpec, world: World) -> Start:
    """Raises a `TrainingError` that names what of the spec, the model, the parent or the snapshot is not as it should."""
    require_same(spec)
    policy = load_policy(spec, world, choose_dtype(spec, world.device))
    examples = load_examples(
        Path(spec.snapshot), spec.pair_digest, Path(spec.storage), _tokenizer(spec.model),
        policy.stop_ids, vocabulary=policy.config.vocab_size, context=policy.config.max_position_embeddings,
        objective=None if spec.candidate else parse(spec.objective),
    )  # fmt: skip
    some = (examples.train or examples.held_out)[:EXAMPLES_TO_MEASURE]
    choice = choose_layout(policy, some) if some else Choice("dense", "there is nothing to lay out")
    error = None
    if some and spec.dtype == "auto" and not spec.shard_base and bfloat16_is_faster(world.device):
        error = to_bfloat16(policy, some)
    if not spec.shard_base and has_room_for_merged(policy):
        policy.keep_merged()
    return Start(policy, examples, choice, error)


def _tokenizer(model: str) -> Tokenizer:
    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise TrainingError(f"the tokenizer in {model} cannot be loaded: {error}") from error


def plan_for(
    spec: RoundSpec, examples: Examples, choice: Choice, world: World, *, shuffle: bool, lanes: int = 1
) -> Plan:
    """Steps over these examples; held-out ones need not be shuffled."""
    return make_plan(
        Sizes(examples.lengths, examples.prompts),
        choice.layout,
        per_step=spec.pairs_per_step,
        token_budget=spec.tokens_per_micro_batch,
        seed=spec.seed if shuffle else None,
        workers=world.size * lanes,
        mismatched=any(term.loss == "kto" for term in parse(spec.objective).unpaired),
    )
