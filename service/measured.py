"""What a round measured, as people read it: training's report and how serving agreed. Knows no HTTP; `--json` has all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.terminal import clean, facts, number, stack, table

if TYPE_CHECKING:
    from rich.console import RenderableType

EVALUATION = ("eval_loss", "eval_rewards/margins", "eval_rewards/accuracies")  # the first to look at, of TRL's names


def measured(report: dict[str, Any], parity: dict[str, Any] | None) -> RenderableType:
    """The report in short, and below it what the checks of the data found."""
    last = report["steps"][-1] if report["steps"] else None
    known = {
        "trained on": _counts(report),
        "how": _how(report),
        "loss": f"{report['step0_loss']:.4f} at first, {last['loss']:.4f} at last" if last else None,
        "margin": last["rewards/margins"] if last else None,
        "held-out accuracy": _accuracy(report["candidate"], report["current"]),
        "evaluation": _evaluation(report["evaluation"]),
        "drift": _drift(report["drift"]),
        "parity": _parity(parity),
        "curves": report["curves"],
        "seconds": "  ".join(f"{phase}={seconds:.1f}" for phase, seconds in report["seconds"].items()),
    }
    return stack(
        facts({name: value for name, value in known.items() if value is not None}), _findings(report["findings"])
    )


def _counts(report: dict[str, Any]) -> str:
    thumbs = report["thumbs_trained"] + report["thumbs_held_out"]
    said = f"{report['pairs_trained']} pairs, {report['pairs_held_out']} held out"
    if thumbs:
        said += f"; {report['thumbs_trained']} thumbs, {report['thumbs_held_out']} held out"
    return said + "".join(f", {count} {reason}" for reason, count in report["pairs_skipped"].items())


def _how(report: dict[str, Any]) -> str:
    why = f" ({clean(report['layout_reason'])})" if report["layout_reason"] else ""
    checkpointing = ", gradient checkpointing" if report["gradient_checkpointing"] else ""
    resumed = f", resumed from step {report['resumed_from']}" if report["resumed_from"] is not None else ""
    off = f" (within {number(report['dtype_error'])} nats a token)" if report["dtype_error"] is not None else ""
    return f"{report['objective']}, {report['layout']} prompts{why}, {report['dtype']}{off}{checkpointing}{resumed}"


def _accuracy(candidate: dict[str, Any] | None, current: dict[str, Any] | None) -> str | None:
    if candidate is None or current is None:
        return None
    return f"{candidate['accuracy']:.1%}, the deployed adapter {current['accuracy']:.1%}"


def _evaluation(evaluation: dict[str, float]) -> str | None:
    return "  ".join(f"{name}={number(evaluation[name])}" for name in EVALUATION if name in evaluation) or None


def _drift(drift: dict[str, Any] | None) -> str | None:
    if drift is None:
        return None
    return (
        f"KL {number(drift['kl_previous'])} to the deployed adapter, {number(drift['kl_base'])} to the base, "
        f"nats a token over {drift['tokens']} tokens"
    )


def _parity(parity: dict[str, Any] | None) -> str | None:
    if parity is None:
        return None
    return (
        f"serving is {number(parity['mean_abs'])} from training in the mean, {number(parity['max_abs'])} at most, nats a "
        f"token over {parity['tokens']} tokens of {parity['samples']} answers "
        f"({parity['training_dtype']}, {parity['serving_dtype']})"
    )


def _findings(findings: list[dict[str, Any]]) -> RenderableType | None:
    if not findings:
        return None
    return table(
        ("check of the data", "action", "rows", "first", "why"),
        (
            (f["check"], f["action"], f["count"], ", ".join(map(str, f["rows"])) or None, clean(f["why"]))
            for f in findings
        ),
        wrap=("first", "why"),
    )
