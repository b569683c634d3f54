"""Release notes of an adapter: what changed in how it answers, as Markdown, for those who live with it. Pure.

What models and people wrote stands in code blocks that it cannot end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from service.contracts import Check
from service.evidence.page import before_and_after
from service.evidence.records import RoundEvidence, Sample

SAMPLES = 5  # answers that are shown


def notes(evidence: RoundEvidence) -> str:
    """Of the adapter that the round made, or would have made."""
    parts = (_title, _learned, _measured, _doubts, _samples, _origin)
    return "\n".join(line for part in parts for line in part(evidence)) + "\n"


def _title(evidence: RoundEvidence) -> Iterator[str]:
    round = evidence.round
    name = round.adapter or (round.report or {}).get("adapter_name") or f"round {round.n}"
    yield f"# {name}"
    yield ""
    now = "It answers now." if name == evidence.stable else f"{evidence.stable} answers now."
    yield f"Round {round.n} was {round.state.value}. It continues {round.parent or 'nothing yet'}. {now}"
    if round.note:
        yield from ("", *_block(round.note))


def _learned(evidence: RoundEvidence) -> Iterator[str]:
    report = evidence.round.report
    if report is None:
        return
    yield from ("", "## What it learned from", "")
    if evidence.round.candidate is not None:
        yield f"- It was trained elsewhere and brought by {_line(evidence.round.requested_by)}."
    thumbs = f" and {report['thumbs_trained']} single thumbs" if report.get("thumbs_trained") else ""
    yield f"- {report['pairs_trained']} pairs{thumbs}; {report['pairs_held_out']} pairs were held out to judge it by."
    votes = next((step.total for step in evidence.lineage.comes_from if step.kind == "vote"), 0)
    if votes:
        yield f"- They come from {votes} votes."
    replayed = (evidence.round.funnel or {}).get("pairs_replayed")
    if replayed:
        yield f"- {replayed} pairs of earlier rounds were learned again beside them."


def _measured(evidence: RoundEvidence) -> Iterator[str]:
    report = evidence.round.report or {}
    current, candidate, drift = report.get("current"), report.get("candidate"), report.get("drift")
    rows = before_and_after(evidence.round.behaviour or {})
    if current and candidate:
        rows = [("held-out pairs ranked right", current["accuracy"], candidate["accuracy"]), *rows]
    if not rows:
        return
    yield from ("", "## What changed", "", "| | before | after |", "|---|---:|---:|")
    for name, before, after in rows:
        yield f"| {name.replace('_', ' ')} | {before:.4g} | {after:.4g} |"
    wins = (evidence.round.behaviour or {}).get("win_rate")
    if wins:
        rate = wins["win_rate"]
        yield ""
        yield (
            f"A judge likes its answers better in {rate['mean']:.0%} of {wins['prompts']} prompts, at equal lengths (95 % "
            f"between {rate['low']:.0%} and {rate['high']:.0%})."
        )
    if drift:
        yield ""
        yield (
            f"It moved {drift['kl_previous']:.3g} nats a token from the adapter before, and {drift['kl_base']:.3g} from "
            "the base."
        )


def _doubts(evidence: RoundEvidence) -> Iterator[str]:
    """What the gate did not pass, and where it could not say."""
    verdict = evidence.round.verdict
    if verdict is None:
        return
    passed = sum(check.outcome == "pass" for check in verdict.checks)
    yield from ("", "## What the gate says", "", f"{passed} of {len(verdict.checks)} checks passed.")
    rest = [check for check in verdict.checks if check.outcome != "pass"]
    if rest:
        yield ""
        yield from map(_doubt, rest)


def _doubt(check: Check) -> str:
    return f"- {check.name} {'failed' if check.outcome == 'fail' else 'could not say'}: {_line(check.why)}"


def _samples(evidence: RoundEvidence) -> Iterator[str]:
    changed = [sample for sample in evidence.samples if sample.before != sample.after]
    if not evidence.samples:
        return
    yield from ("", "## Answers", "", f"{len(changed)} of {len(evidence.samples)} sample answers changed.")
    for sample in changed[:SAMPLES]:
        yield from _sample(sample)


def _sample(sample: Sample) -> Iterator[str]:
    yield from ("", *_block(sample.prompt), "", "before:", "", *_block(sample.before), "", "after:", "")
    yield from _block(sample.after)


def _origin(evidence: RoundEvidence) -> Iterator[str]:
    round, report = evidence.round, evidence.round.report or {}
    yield from ("", "## Where it comes from", "")
    yield f"- weights {report.get('adapter_digest', 'none')}"
    yield f"- pairs {round.pair_digest or 'none'}"
    code = round.environment or {}
    yield f"- code {code.get('commit') or code.get('version') or 'not recorded'}"


def _line(text: str) -> str:
    """As one line in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def _block(text: str) -> list[str]:
    """As a code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, *text.splitlines(), fence]
