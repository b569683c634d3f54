"""A round that learns nothing: an adapter that was made elsewhere is measured as if this round had trained it.

The gate reads the same report and applies the same checks, save those of the training itself. The adapter's own
directory stays as it is; a copy of its weights is written under this round's name.
"""

from __future__ import annotations

from pathlib import Path

from training import reporting
from training.adapter import read_candidate
from training.contracts import ParentAdapter, RoundReport, RoundSpec
from training.errors import AdapterInvalid
from training.probe import probe
from training.reporting import Measured
from training.score import score
from training.start import Phases, Report, load_start, plan_for
from training.steps import Position
from training.world import ALONE, World


def assess(spec: RoundSpec, report: Report, world: World = ALONE) -> RoundReport:
    """Measure `spec.candidate` beside the deployed policy on the held-out examples.

    Raises a `TrainingError` that names the cause; nothing is then left at `<spec.out>/adapter`.
    """
    assert spec.candidate is not None, "a round without a candidate is for learn.py"
    phase = Phases(report)
    with phase("load"):
        start = load_start(spec, world)
        policy, held_out = start.policy, start.examples.held_out
        manifest, weights = read_candidate(Path(spec.candidate), spec.lora, spec.fingerprints)
        # It continues what its own manifest says, and not what happens to be deployed.
        parent = manifest.parent and ParentAdapter(name=manifest.parent, directory=spec.candidate)
        before = policy.weights()
        plan = plan_for(spec, held_out, start.choice, world, shuffle=False)
        looks = probe(held_out, start.choice.layout)
    with phase("evaluate"):
        current = score(policy, held_out, plan, world)
        previous, base = looks.look(policy), looks.look_at_base(policy)
        try:
            policy.load(weights)
        except AdapterInvalid as error:
            raise AdapterInvalid(f"{spec.candidate}: {error}") from error
        candidate = score(policy, held_out, plan, world)
        states = looks.look(policy)
    measured = Measured(
        before=before, after=policy.weights(), examples=start.examples, current=current, candidate=candidate,
        drift=looks.drift(states, previous, base, policy), samples=looks.samples(states, policy), choice=start.choice,
        position=Position(step0_loss=0.0, step0_expected_loss=0.0, step0_max_abs_logratio=0.0), dtype=policy.dtype,
        dtype_error=start.dtype_error, gradient_checkpointing=False, resumed_from=None,
    )  # fmt: skip
    with phase("write"):
        if world.is_first:
            reporting.write(spec.model_copy(update={"parent": parent or None}), policy, measured)
    return reporting.report(spec, measured, phase.seconds)
