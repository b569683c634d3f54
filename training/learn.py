"""The round itself, as a plain function of one worker: pairs and the deployed policy in, a new adapter directory out.

`training/worker.py` runs it inside Ray Train; called directly it trains in this process. Measures, and takes no
decision on whether the adapter is any good.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from training import reporting
from training.adapter import serialise
from training.checkpoint import Checkpoints
from training.contracts import Progress, RoundReport, RoundSpec, StepMetrics
from training.examples import Examples
from training.folder import open_folder
from training.lanes import Lanes, open_lanes
from training.memory import activation_bytes_per_token, needs_checkpointing
from training.plan import Plan
from training.policy import Policy
from training.probe import probe
from training.reference import identity, kept
from training.reporting import Measured
from training.score import score
from training.speed import matrix_product_rate
from training.start import EXAMPLES_TO_MEASURE, Phases, Report, load_start, plan_for
from training.steps import Descent
from training.trackers import by_name, open_trackers
from training.world import ALONE, World

_PROBED_ONE_IN = 16  # of the trained examples: looking three times must cost little beside training


def learn(spec: RoundSpec, report: Report, world: World = ALONE) -> RoundReport:
    """One attempt of a round. On several workers each calls it with its own `world` and gets the same answer.

    Raises a `TrainingError` that names the cause; nothing is then left at `<spec.out>/adapter`.
    """
    with open_lanes(world.device, sharded=spec.shard_base) as lanes:
        return _learn(spec, report, world, lanes)


def _learn(spec: RoundSpec, report: Report, world: World, lanes: Lanes) -> RoundReport:
    phase = Phases(report)
    with phase("load"):
        start = load_start(spec, world)
        policy, examples = start.policy, start.examples
        before = policy.weights()
    with phase("reference"):
        plan = plan_for(spec, examples.train, start.choice, world, shuffle=True, lanes=lanes.count)
        held_out_plan = plan_for(spec, examples.held_out, start.choice, world, shuffle=False, lanes=lanes.count)

        def of_held_out() -> Tensor:
            return score(policy, examples.held_out, held_out_plan, world, spec.ld_alpha, lanes)

        checkpointing = _checkpoint_gradients(spec, policy, examples.train, plan, lanes)
        names = _identity(spec, plan, before, policy, world)
        folder = open_folder(spec.checkpoints)
        reference = kept(
            folder, names,
            lambda: score(policy, examples.train, plan, world, spec.ld_alpha, lanes), world,
        )  # fmt: skip
        current = of_held_out()
        looks = probe(
            examples.held_out or examples.train, plan.layout, at_most=max(2, len(examples.train) // _PROBED_ONE_IN)
        )
        previous = looks.look(policy)
        base = previous if spec.parent is None else looks.look_at_base(policy)
        peak_rate = world.from_first(matrix_product_rate(policy.device, policy.dtype))
    descent = Descent(spec, policy, examples.train, reference, plan, world, peak_rate=peak_rate, lanes=lanes)
    checkpoints = Checkpoints(folder, names)
    resumed = checkpoints.restore(policy, descent, world)
    with phase("train"):
        _train(spec, policy, descent, checkpoints, report, world)
    with phase("evaluate"):
        candidate = of_held_out()
        states = looks.look(policy)
        drift = looks.drift(states, previous, base, policy)
        samples = looks.samples(states, policy)
    measured = Measured(
        before=before, after=policy.weights(), examples=examples, current=current, candidate=candidate,
        drift=drift, samples=samples, choice=start.choice, position=descent.position,
        dtype=policy.dtype, dtype_error=start.dtype_error, gradient_checkpointing=checkpointing, resumed_from=resumed,
    )  # fmt: skip
    with phase("write"):
        if world.is_first:
            reporting.write(spec, policy, measured)
            checkpoints.remove()
    return reporting.report(spec, measured, phase.seconds)


def _checkpoint_gradients(spec: RoundSpec, policy: Policy, examples: Examples, plan: Plan, lanes: Lanes) -> bool:
    """Decide it, do it, and say which."""
    wanted = spec.gradient_checkpointing == "on"
    if spec.gradient_checkpointing == "auto":
        per_token = activation_bytes_per_token(policy, examples[:EXAMPLES_TO_MEASURE], plan.layout)
        wanted = needs_checkpointing(per_token, plan, policy.device, lanes.count)
    if wanted:
        policy.checkpoint_gradients()
    return wanted


def _identity(spec: RoundSpec, plan: Plan, before: reporting.Weights, policy: Policy, world: World) -> str:
    """Stands for everything that the reference and the steps depend on."""
    settings = spec.model_dump(mode="json", exclude=set(reporting.NOT_LEARNED_FROM))
    return identity(
        settings
        | {
            "adapter": hashlib.sha256(serialise(before)).hexdigest(),
            "plan": plan.digest,
            "dtype": str(policy.dtype),
            "device": world.device.type,
            "threads": torch.get_num_threads(),
            "versions": reporting.versions(),
        }
    )


def _train(
    spec: RoundSpec, policy: Policy, descent: Descent, checkpoints: Checkpoints, report: Report, world: World
) -> None:
    """All steps that are still to be made, each reported, and a checkpoint every so often."""
    names = spec.trackers if world.is_first else ()
    settings = spec.model_dump(mode="json")
    saved_at_seconds = descent.position.seconds

    def after_step() -> None:
        nonlocal saved_at_seconds
        position = descent.position
        due = position.seconds - saved_at_seconds >= spec.seconds_between_checkpoints
        if due and position.done < descent.steps and world.is_first:
            checkpoints.save(policy, descent)
            saved_at_seconds = position.seconds

    with closing(open_trackers(names, Path(spec.out) / "metrics", f"round-{spec.round}", settings)) as tracker:

        def passed_on(step: StepMetrics) -> None:
            report(Progress(kind="step", step=step))
            tracker.log(by_name(step), step.step)

        descent.run(passed_on, after_step)
