"""What stands in for training: attempts that follow a script, and reports that pass the gate but for what a test changes.

It is as strict as the real one: it learns only from the pairs that were frozen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.adapters import WEIGHTS, sha256_of
from tests.adapter_files import change_manifest, replace_weights, write_adapter
from tests.fakes import logprob
from training.contracts import HELD_OUT, AttemptStatus, Evaluation, Progress, RoundReport, RoundSpec, StepMetrics
from training.places import at_hand, hand_back
from training.samples import ScoredAnswer, write_samples
from training.snapshot import iterate, pair_digest


@dataclass(frozen=True)
class Done:
    """The attempt ends with an adapter; `report` is what differs from a report that passes the gate.

    `samples` are how many answers it leaves with the candidate's log-probs; None: no file of them.
    """

    report: dict[str, Any] = field(default_factory=dict)
    samples: int | None = None


Answer = AttemptStatus | Done

RUNNING = AttemptStatus(state="running")
DIED = AttemptStatus(state="absent")  # nobody runs under that name any more


def failed(why: str, *, retryable: bool) -> AttemptStatus:
    return AttemptStatus(state="failed", failure=why, retryable=retryable)


def progress(*entries: Progress) -> AttemptStatus:
    """The attempt runs on, and this has happened since the poll before."""
    return AttemptStatus(state="running", progress=entries)


class FakeTrainer:
    """`service.attempts.Trainer`: each attempt follows a script, one answer a poll, the last one for ever.

    It outlives whoever started an attempt, as the cluster does. Attempts without a script succeed at once.
    """

    def __init__(self, *scripts: Sequence[Answer]) -> None:
        self._scripts = [list(script) for script in scripts]
        self._running: dict[str, list[Answer]] = {}  # the attempt's `out` -> the rest of its script
        self._told: dict[str, list[Progress]] = {}
        self.started: list[RoundSpec] = []
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}  # start | poll -> what happens just then

    @property
    def running(self) -> set[str]:
        return set(self._running)

    async def start(self, spec: RoundSpec) -> None:
        await self._happen("start")
        if spec.out not in self._running:
            self.started.append(spec)
            self._running[spec.out] = self._scripts.pop(0) if self._scripts else [Done()]

    async def poll(self, spec: RoundSpec, since: int) -> AttemptStatus:
        script = self._running.get(spec.out)
        answer = DIED if script is None else script.pop(0) if len(script) > 1 else script[0]
        if answer == DIED:
            self._running.pop(spec.out, None)
        if isinstance(answer, Done):
            answer = AttemptStatus(state="done", report=_run(spec, answer))
        told = self._told.setdefault(spec.out, [])
        told.extend(answer.progress)
        await self._happen("poll")
        return answer.model_copy(update={"progress": tuple(told[since:])})

    async def stop(self, spec: RoundSpec) -> None:
        self._running.pop(spec.out, None)

    async def _happen(self, call: str) -> None:
        if call in self.before:
            await self.before.pop(call)()


def _run(spec: RoundSpec, done: Done) -> RoundReport:
    """Where the files of rounds lie in an object store, it works on copies, as the real one does."""
    with at_hand(spec) as here:
        scored = {} if done.samples is None else {"samples": leave_samples(here, done.samples)}
        return hand_back(learn(here, **(scored | done.report)), here, spec, upload=True)


def learn(spec: RoundSpec, **changes: Any) -> RoundReport:
    """What an attempt leaves behind: an adapter of its own in `<out>/adapter`, and a report on it.

    A candidate from outside is taken as it is and only measured, if there is something to measure it by.
    """
    rows = list(iterate(Path(spec.snapshot)))
    assert pair_digest(rows) == spec.pair_digest, "these are not the frozen pairs"
    directory = Path(spec.out) / "adapter"
    parent = spec.parent.name if spec.parent else None
    if not directory.exists():
        write_adapter(directory, spec.adapter_ordinal, parent=parent, round=spec.round, pair_digest=spec.pair_digest)
        if spec.candidate is not None:
            weights = Path(spec.candidate) / WEIGHTS
            replace_weights(directory, weights.read_bytes())
            change_manifest(directory, name=f"policy-{spec.adapter_ordinal:04d}-{sha256_of(weights)[:8]}")
    digest = sha256_of(directory / WEIGHTS)
    learned: dict[str, Any] = {
        "adapter_name": f"policy-{spec.adapter_ordinal:04d}-{digest[:8]}",
        "adapter_directory": str(directory),
        "adapter_digest": digest,
        "pair_digest": spec.pair_digest,
    }
    if spec.candidate is not None:
        assert all(row.split == HELD_OUT for row in rows), "a candidate learns nothing here"
        learned |= {"steps": (), "pairs_trained": 0, "pairs_held_out": len(rows)}
        learned |= {} if rows else {"current": None, "candidate": None}
    return report(**(learned | changes))


def leave_samples(spec: RoundSpec, count: int) -> str:
    """A file of answers, with the log-probs that the fake engine gives them too."""
    tokens = tuple(range(10, 15))
    answers = [ScoredAnswer((1, n), tokens, tuple(logprob(token) for token in tokens)) for n in range(count)]
    path = Path(spec.out) / "samples.json"
    write_samples(path, answers)
    return str(path)


def step(number: int, **changes: Any) -> StepMetrics:
    """One optimiser step of a round that goes well."""
    metrics = {
        "step": number,
        "steps": 8,
        "loss": 0.5,
        "rewards_chosen": 0.2,
        "rewards_rejected": -0.2,
        "rewards_margins": 0.4,
        "rewards_accuracies": 1.0,
        "logps_chosen": -10.0,
        "logps_rejected": -12.0,
        "grad_norm": 1.0,
        "learning_rate": 1e-4,
        "seconds": float(number),
    }
    return StepMetrics.model_validate(metrics | changes)


def report(**changes: Any) -> RoundReport:
    """A report that passes the gate, but for what is changed."""
    fields = {
        "adapter_name": "policy-0001-00000000",
        "adapter_directory": "/nowhere",
        "adapter_digest": "0" * 64,
        "pair_digest": "d" * 64,
        "pairs_trained": 30,
        "pairs_held_out": 6,
        "pairs_skipped": {},
        "step0_loss": 0.6931471805599453,
        "step0_max_abs_logratio": 0.0,
        "nonfinite_steps": 0,
        "weights_changed": True,
        "steps": tuple(step(number) for number in range(1, 9)),
        "current": evaluation(accuracy=0.5),
        "candidate": evaluation(accuracy=0.8),
        "candidate_correct_current_wrong": 3,
        "current_correct_candidate_wrong": 0,
        "seconds": {"train": 1.0},
    }
    return RoundReport.model_validate(fields | changes)


def evaluation(*, pairs: int = 6, accuracy: float = 0.8, logp_chosen: float = -2.0) -> Evaluation:
    return Evaluation(pairs=pairs, accuracy=accuracy, mean_margin=0.1, mean_logp_chosen=logp_chosen)
