"""What the data report finds of the votes: are there enough, from whom, and do people agree? Pure."""

from __future__ import annotations

from collections.abc import Callable

from service.pairs import LeftOut
from service.report.bounds import FEW, finding, of_share, percent
from service.report.formulas import pairs_needed
from service.report.records import DataReport, Finding, Severity, Share
from training.objective import parse

ONE_VOTER = (0.2, 0.4)  # of the pairs
UNNAMED = (0.5, 1.01)  # of the votes; never a reason to wait
AGREEMENT = (0.4, 0.0)  # alpha; below 0.4 agreement is no more than "fair" (Landis and Koch, 1977), at 0 it is chance
CHANGED = (0.2, 0.4)  # of repeated votes
CONTRADICTED = (0.1, 0.3)  # of the votes; 10 % more noise can cost 30 % of the wins (arXiv 2404.09824)
ONE_SIDED = (0.95, 1.01)  # of the thumbs say the same
WEAK_GATE = 0.65  # a gate that sees only larger win rates lets small losses pass


def _amount(report: DataReport) -> Finding:
    """Thumbs count where the objective learns from nothing else."""
    thumbs = 0 if parse(report.objective).paired else report.funnel.thumbs
    found, needed = report.funnel.pairs + thumbs, report.min_pairs
    kind = "pairs and thumbs" if thumbs else "pairs"
    if found >= needed:
        return finding("amount", Severity.OK, f"{found} new {kind}; a round needs {needed}.", found, needed)
    why = _largest_reason(report)
    says = f"{found} new {kind} are fewer than the {needed} that a round needs (min_pairs).{why}"
    return finding("amount", Severity.ACT, says, found, needed)


def _largest_reason(report: DataReport) -> str:
    left_out = {reason: votes for reason, votes in report.funnel.left_out.items() if reason != LeftOut.ALREADY_LEARNED}
    if not left_out:
        return " Wait for more votes, or import pairs."
    reason, votes = min(left_out.items(), key=lambda item: (-item[1], item[0]))
    remedy = {
        LeftOut.NO_PARTNER: "ask for two answers (n=2) and send which one was preferred, or send corrections",
        LeftOut.PERSONAL: "ask for two answers (n=2) and send which one was preferred, or send corrections",
        LeftOut.QUARANTINED: "release or drop what is in quarantine",
        LeftOut.TRUNCATED: "give answers more tokens",
    }.get(LeftOut(reason), f"see them with `heliotrope preferences --reason {reason}`")
    return f" Most votes are left out as {reason} ({votes}): {remedy}."


def _gate(report: DataReport) -> Finding:
    held_out, needed, rate = report.power.held_out_pairs, report.min_held_out_pairs, report.power.win_rate
    if held_out < needed or rate is None:
        says = f"{held_out} held-out pairs cannot decide (gate.min_held_out_pairs = {needed}): gather more pairs."
        return finding("gate", Severity.ACT, says, held_out, needed)
    sees = f"With {held_out} held-out pairs a gate can tell win rates from {rate:.0%} on from a coin"
    if rate <= WEAK_GATE:
        return finding("gate", Severity.OK, f"{sees}.", rate, WEAK_GATE)
    more = pairs_needed(WEAK_GATE)
    says = f"{sees}, smaller ones look like chance. {more} would show {WEAK_GATE:.0%}: gather more pairs."
    return finding("gate", Severity.LOOK, says, rate, WEAK_GATE)


def _one_voter(report: DataReport) -> Finding | None:
    voters = report.voters
    return of_share(
        "one_voter", voters.top_of_pairs, ONE_VOTER,
        fine=f"No voter gives more than {percent(voters.top_of_pairs)} of the pairs from votes.",
        wrong=f"One voter ({(voters.top_voter or '')[:8]}) gives {percent(voters.top_of_pairs)} of the pairs from "
        "votes: lower preferences.max_pairs_per_user, or wait for more people.",
    )  # fmt: skip


def _unnamed(report: DataReport) -> Finding | None:
    unnamed = report.voters.unnamed
    return of_share(
        "unnamed", unnamed, UNNAMED,
        fine=f"{percent(unnamed)} of the votes name no user.",
        wrong=f"{percent(unnamed)} of the votes name no user: caps and quarantine take them for one person. "
        "Send `user` with each vote; a pseudonym is enough.",
    )  # fmt: skip


def _quarantine(report: DataReport) -> Finding | None:
    held = report.funnel.left_out.get(LeftOut.QUARANTINED, 0)
    if held == 0:
        return None
    says = f"{held} votes are in quarantine and count in no pair: see `heliotrope quarantine list`, and release or drop them."
    return finding("quarantine", Severity.LOOK, says, held, 0)


# --- do people agree? ----------------------------------------------------------------------------------


def _agreement(report: DataReport) -> Finding | None:
    """Of the two kinds of votes, the one on which people agree least."""
    kinds = {"answers": report.ratings, "comparisons": report.comparisons}
    told = [(kind, of.alpha, of.things) for kind, of in kinds.items() if of.alpha is not None and of.things >= FEW]
    if not told:
        return None
    kind, alpha, things = min(told, key=lambda one: one[1])
    look, act = AGREEMENT
    where = f"On {things} {kind} that several people judged they agree with alpha = {alpha:.2f}"
    if alpha > look:
        return finding("agreement", Severity.OK, f"{where}.", alpha, look)
    says = f"{where} (1 is perfect, 0 is chance): look at what they judge by, or set label_smoothing for the round."
    severity = Severity.ACT if alpha <= act else Severity.LOOK
    return finding("agreement", severity, says, alpha, act if alpha <= act else look)


def _changed(report: DataReport) -> Finding | None:
    changed = report.constancy.changed
    return of_share(
        "changed_minds", changed, CHANGED,
        fine=f"Of repeated votes {percent(changed)} say something else than before.",
        wrong=f"Of repeated votes {percent(changed)} say something else than before: are the buttons clear, and does "
        "the app show a vote that was given?",
    )  # fmt: skip


def _contradicted(report: DataReport) -> Finding | None:
    share = report.likeness.contradicted
    return of_share(
        "contradicted", share, CONTRADICTED,
        fine=f"{percent(share)} of the votes are outvoted by others on the same answer.",
        wrong=f"{percent(share)} of the votes are outvoted by others on the same answer; as many wrong ones may be in "
        "the pairs: set label_smoothing for the round.",
    )  # fmt: skip


def _one_sided(report: DataReport) -> Finding | None:
    up = sum(part.liked.count for part in report.slices if part.kind == "app")
    total = sum(part.liked.total for part in report.slices if part.kind == "app")
    most, word = max((up, "up"), (total - up, "down"))
    share = Share.of(most, total)
    return of_share(
        "one_sided", share, ONE_SIDED,
        fine=f"{percent(share)} of the thumbs point {word}.",
        wrong=f"{percent(share)} of the thumbs point {word}, and pairs need both: ask for two answers (n=2) and send "
        "which one was preferred, or send corrections.",
    )  # fmt: skip


RULES: tuple[Callable[[DataReport], Finding | None], ...] = (
    _amount, _gate, _one_voter, _unnamed, _quarantine, _agreement, _changed, _contradicted, _one_sided,
)  # fmt: skip
