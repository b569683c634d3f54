"""The report of a round as one page: what became of it and why, with its curves, its funnel and its answers. Pure.

Prompts and answers are what strangers and models wrote; `html.py` escapes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from service.contracts import Check, Round
from service.evidence.records import RoundEvidence, Sample
from service.report.document import document, numbers, section, table
from service.report.html import Html, tag
from service.report.plots import Point, bar, lines
from service.tracing import Step

PANELS = {  # title -> metric of a step -> its name in the legend
    "Loss": {"loss": "loss"},
    "Rewards, nats": {"rewards/margins": "margin", "rewards/chosen": "chosen", "rewards/rejected": "rejected"},
    "Share of pairs with a margin above 0": {"rewards/accuracies": "accuracy"},
    "Log-probs of answers, nats": {"logps/chosen": "chosen", "logps/rejected": "rejected"},
    "Gradient norm before clipping": {"grad_norm": "gradient norm"},
    "Learning rate": {"learning_rate": "learning rate"},
}
# Of the manifest's training report, what is no setting.
MEASURED = frozenset(
    ("last_step", "drift", "held_out", "pairs_trained", "thumbs_trained", "pairs_held_out", "pairs_skipped")
)
SHAPE = {"promoted": "pass", "rejected": "fail", "failed": "fail", "cancelled": "abstain"}


def page(evidence: RoundEvidence) -> str:
    """The whole document, to be sent or kept as one file."""
    parts = (_verdict, _samples, _behaviour, _curves, _held_out, _funnel, _rollout, _timeline, _lineage, _stood_on)
    shown = (part(evidence) for part in parts)
    return document(f"round {evidence.round.n}", _header(evidence), *(part for part in shown if part))


def _header(evidence: RoundEvidence) -> Html:
    round, report = evidence.round, evidence.round.report or {}
    answers = evidence.adapter is not None and evidence.adapter.name == evidence.stable
    state = tag("b", round.state.value, class_=SHAPE.get(round.state.value, "look"))
    asked = f"Asked for by {round.requested_by} at {round.created_at:%Y-%m-%d %H:%M} UTC."
    now = "Its adapter answers now." if answers else f"{evidence.stable} answers now."
    counted = {
        "pairs trained on": report.get("pairs_trained"),
        "pairs held out": report.get("pairs_held_out"),
        "single thumbs": report.get("thumbs_trained") or None,
        "votes": _total(evidence.lineage.comes_from, "vote") or None,
        "answers by its adapter": _total(evidence.lineage.leads_to, "completion") or None,
    }
    return tag(
        "header",
        tag("h1", f"Round {round.n}: ", state),
        tag("p", round.reason or "", class_="said", dir="auto"),
        tag("p", f"{asked} {now} This page was made at {evidence.made_at:%Y-%m-%d %H:%M} UTC.", class_="dim"),
        tag("p", round.note, class_="said", dir="auto") if round.note else "",
        numbers((name, str(count)) for name, count in counted.items() if count is not None),
    )


def _verdict(evidence: RoundEvidence) -> Html | None:
    verdict = evidence.round.verdict
    if verdict is None:
        return None
    rows = [row for check in verdict.checks for row in _check(check)]
    said = "The gate let it pass." if verdict.promote else "The gate keeps the old adapter."
    return section("The gate", tag("p", said), table(("check", "outcome", "value", "bound", "", "why"), rows))


def _check(check: Check) -> Iterator[tuple[str, ...]]:
    """The check, and below it its slices."""
    must = "needed" if check.needed else ""
    yield check.name, _outcome(check.outcome), _number(check.value), _number(check.bound), must, check.why
    for part in check.slices:
        of = f"{part.count} of this slice"
        yield f"· {part.name}", _outcome(part.outcome), _number(part.value), _number(part.bound), "", of


def _outcome(outcome: str) -> Html:
    return tag("span", outcome, class_=outcome)


def _samples(evidence: RoundEvidence) -> Html | None:
    if not evidence.samples:
        return None

    def cell(text: str) -> Html:
        return tag("td", tag("p", text, class_="said", dir="auto"), class_="answer")

    def row(sample: Sample) -> Html:
        return tag("tr", *(cell(text) for text in (sample.prompt, sample.before, sample.after)))

    names = ("asked", f"{evidence.round.parent} answered", f"{_name(evidence)} answers")
    heads = tag("tr", *(tag("th", name) for name in names))
    return section("Answers before and after", tag("table", heads, *map(row, evidence.samples)))


def _behaviour(evidence: RoundEvidence) -> Html | None:
    measured = {name: value for name, value in (evidence.round.behaviour or {}).items() if name != "samples"}
    compared = before_and_after(measured)
    rest = {name: value for name, value in measured.items() if not compared or name not in SIDES}
    if not measured:
        return None
    rows = [(name, _number(before), _number(after)) for name, before, after in compared]
    sides = table(("on fixed prompts", "before", "after"), rows) if rows else ""
    return section("Behaviour", sides, _facts(rest))


SIDES = ("current", "candidate")  # of what was measured of both policies


def before_and_after(measured: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """What was measured of both, by name."""
    before, after = (measured.get(side) for side in SIDES)
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return []
    both = ((name, before[name], after[name]) for name in before if name in after)
    return [(name, b, a) for name, b, a in both if isinstance(b, int | float) and isinstance(a, int | float)]


def _curves(evidence: RoundEvidence) -> Html | None:
    steps: list[dict[str, Any]] = (evidence.round.report or {}).get("steps") or []
    if not steps:
        return None

    def points(metric: str) -> list[Point]:
        return [(step["step"], step[metric]) for step in steps if step.get(metric) is not None]

    panels = {title: {name: points(metric) for metric, name in of.items()} for title, of in PANELS.items()}
    drawn = [lines(title, series) for title, series in panels.items() if any(series.values())]
    return section("Training, step by step", tag("div", *drawn, class_="plots"))


def _held_out(evidence: RoundEvidence) -> Html | None:
    report = evidence.round.report or {}
    current, candidate, drift = report.get("current"), report.get("candidate"), report.get("drift")
    if not current or not candidate:
        return None
    rows = [(_words(name), _number(current[name]), _number(candidate[name])) for name in current if name != "pairs"]
    gained, lost = report["candidate_correct_current_wrong"], report["current_correct_candidate_wrong"]
    said = f"On {candidate['pairs']} pairs that were not trained on; {gained} it has gained and {lost} it has lost."
    if drift:
        said += (
            f" It moved {_number(drift['kl_previous'])} nats a token from the adapter before and "
            f"{_number(drift['kl_base'])} from the base."
        )
    return section("Held-out pairs", tag("p", said), table(("", "before", "after"), rows))


def _funnel(evidence: RoundEvidence) -> Html | None:
    funnel = evidence.round.funnel
    if not funnel:
        return None
    votes = funnel["votes"]
    fates = {"in pairs": funnel["votes_in_pairs"], "single thumbs": funnel.get("votes_in_thumbs", 0)}
    rows = [(_words(n), str(v), bar(v / votes if votes else 0.0)) for n, v in {**fates, **funnel["left_out"]}.items()]
    pairs = (
        f"{funnel['pairs_from_votes']} pairs from votes, {funnel['pairs_imported']} imported, "
        f"{funnel.get('pairs_replayed', 0)} of earlier rounds."
    )
    return section("From votes to pairs", table(("what became of the votes", "votes", ""), rows), tag("p", pairs))


def _rollout(evidence: RoundEvidence) -> Html | None:
    found = {"canary": evidence.round.canary, "watch": evidence.round.watch, "approved by": evidence.round.approved_by}
    known = {name: value for name, value in found.items() if value}
    return section("Rollout", _facts(known)) if known else None


def _timeline(evidence: RoundEvidence) -> Html:
    happened = [
        (f"{event.at:%Y-%m-%d %H:%M:%S}", event.kind, _inline(_without_none(event.data))) for event in evidence.timeline
    ]
    decided = [
        (f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.action,
         f"by {entry.who}; {_inline(_without_none(entry.detail))}; digest {entry.digest[:12]}")
        for entry in evidence.audit
    ]  # fmt: skip
    headers = ("at (UTC)", "", "")
    audited = [tag("p", "Audited:"), table(headers, _texts(decided))] if decided else []
    return section("What happened", table(headers, _texts(happened)), *audited)


def _lineage(evidence: RoundEvidence) -> Html:
    def of(steps: Iterable[Step]) -> str:
        return ", ".join(f"{step.total} {step.kind}{'' if step.total == 1 else 's'}" for step in steps)

    trace = evidence.lineage
    rows = [("comes from", of(trace.comes_from)), ("leads to", of(trace.leads_to))]
    tainted = [str(thing["id"]) for step in trace.leads_to if step.kind == "adapter" for thing in step.shown]
    rows.append(("adapters that have learned it", ", ".join(tainted) or "none"))
    return section("Lineage", table(("", ""), rows))


def _stood_on(evidence: RoundEvidence) -> Html:
    round, report = evidence.round, evidence.round.report or {}
    known = {
        "reference": round.parent,
        "adapter": _name(evidence),
        "adapter digest": report.get("adapter_digest"),
        "pair digest": round.pair_digest,
        "rows of the snapshot": round.pairs,
        "pairs are": round.pairs_fate,
        "settings": _settings(round, evidence.recipe),
        "seconds": report.get("seconds"),
        "memory at most, bytes": report.get("peak_bytes"),
        "parity": None if round.parity is None else round.parity.model_dump(mode="json"),
        "findings in the data": report.get("findings") or None,
        "environment": round.environment,
    }
    return section("What it stood on", _facts({name: value for name, value in known.items() if value is not None}))


def _settings(round: Round, recipe: Mapping[str, Any] | None) -> dict[str, Any]:
    """As the round was asked for, and as the adapter's manifest says that it was trained."""
    return {**round.settings, **{name: value for name, value in (recipe or {}).items() if name not in MEASURED}}


def _name(evidence: RoundEvidence) -> str:
    """Published, or as training would have called it."""
    return evidence.round.adapter or (evidence.round.report or {}).get("adapter_name") or "no adapter"


def _total(steps: Iterable[Step], kind: str) -> int:
    return sum(step.total for step in steps if step.kind == kind)


# --- values whose names are not known here --------------------------------------------------------------


def _facts(values: Mapping[str, Any]) -> Html:
    """Names and values; what is nested stands under the name it belongs to."""
    return table(("", ""), _texts(_flat(values))) if values else Html("")


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        full = f"{above}{_words(name)}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{full} · ")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield from _flat({str(place): item for place, item in enumerate(value, start=1)}, f"{full} · ")
        else:
            yield full, _inline(value)


def _inline(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(name)} {_inline(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(_inline(item) for item in value) or "-"
    return str(value)


def _texts(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Values to the left: they are of all kinds."""
    return [(*row[:-1], tag("bdi", row[-1])) for row in rows]


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
