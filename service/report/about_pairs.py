"""What the data report finds of the pairs: what would a model learn that nobody meant, and is it judged apart? Pure."""

from __future__ import annotations

from collections.abc import Callable
from unicodedata import category

from service.report.bounds import FEW, finding, of_share, percent, rest
from service.report.records import DataReport, Finding, Severity, Share

ONE_LENGTH = (0.6, 0.75)  # of the pairs prefer the longer, or the shorter, answer
ONE_POSITION = (0.55, 0.7)  # of the pairs prefer the first, or the second, choice
COPIES = (0.2, 0.5)  # of the pairs
LEAKED = (0.02, 0.1)  # of the held-out pairs
OLD_DAYS = (60.0, 365.0)  # median
TAG_DISTANCE = (0.2, 1.01)  # of a tag's share of thumbs up from that of all


def _length(report: DataReport) -> Finding | None:
    longer = report.length.chosen_longer
    word, share = ("longer", longer) if 2 * longer.count >= longer.total else ("shorter", rest(longer))
    remedy = "lower preferences.max_longer_share" if word == "longer" else "look at the slices"
    return of_share(
        "length", share, ONE_LENGTH,
        fine=f"The {word} answer is the chosen one in {percent(share)} of the pairs.",
        wrong=f"The {word} answer is the chosen one in {percent(share)} of the pairs; the policy would learn the "
        f"length: {remedy}, or start the round with ld_alpha below 1.",
        sure=True,
    )  # fmt: skip


def _position(report: DataReport) -> Finding | None:
    first = report.position.first_chosen
    word, share = ("first", first) if 2 * first.count >= first.total else ("later", rest(first))
    return of_share(
        "position", share, ONE_POSITION,
        fine=f"Of answers shown together the {word} one is chosen in {percent(share)} of the pairs.",
        wrong=f"Of answers shown together the {word} one is chosen in {percent(share)} of the pairs: show them in "
        "random order, or people choose a place and no answer.",
        sure=True,
    )  # fmt: skip


def _copies(report: DataReport) -> Finding | None:
    likeness = report.likeness
    out = likeness.duplicates.count + likeness.near_duplicates.count
    share = Share.of(out, likeness.duplicates.total)
    return of_share(
        "duplicates", share, COPIES,
        fine=f"{percent(share)} of the pairs were left out as copies of others.",
        wrong=f"{percent(share)} of the pairs were left out as copies of others: a program may be voting, or a test.",
    )  # fmt: skip


def _look_alikes(report: DataReport) -> Finding | None:
    share = report.likeness.look_alikes
    return of_share(
        "look_alikes", share, COPIES,
        fine=f"{percent(share)} of the kept pairs are much like another one.",
        wrong=f"{percent(share)} of the kept pairs are much like another one, so there is less to learn than their "
        "number says: lower preferences.near_duplicate.",
    )  # fmt: skip


# --- is what judges the policy apart from what it learned? ---------------------------------------------


def _leaked_prompts(report: DataReport) -> Finding | None:
    share = report.leakage.prompts
    if share.total == 0:
        return None
    if share.count == 0:
        return finding("leaked_prompts", Severity.OK, "No held-out prompt is trained on.", 0, 0)
    says = f"{share.count} held-out pairs have a prompt that is trained on too: the gate would judge what was learned."
    return finding("leaked_prompts", Severity.ACT, says, share.share, 0)


def _leaked_copies(report: DataReport) -> Finding | None:
    share = report.leakage.look_alikes
    return of_share(
        "leaked_copies", share, LEAKED,
        fine=f"{percent(share)} of the held-out pairs have a training pair much like them.",
        wrong=f"{percent(share)} of the held-out pairs have a training pair much like them, so the gate sees less "
        "than it seems: lower preferences.near_duplicate.",
    )  # fmt: skip


def _learned_before(report: DataReport) -> Finding | None:
    share = report.leakage.learned_before
    return of_share(
        "learned_before", share, LEAKED,
        fine=f"{percent(share)} of the held-out pairs have a prompt that an earlier round trained on.",
        wrong=f"{percent(share)} of the held-out pairs have a prompt that an earlier round trained on: the deployed "
        "policy is judged on what it learned. Gather votes on other prompts.",
    )  # fmt: skip


# --- does it speak of today, and of all? ---------------------------------------------------------------


def _age(report: DataReport) -> Finding | None:
    days = report.ages.median_days
    if days is None:
        return None
    look, act = OLD_DAYS
    if days < look:
        return finding("age", Severity.OK, f"Half of the pairs are younger than {max(days, 1):.0f} days.", days, look)
    says = f"Half of the pairs are older than {days:.0f} days: set preferences.max_age_days, or gather new votes."
    severity, bound = (Severity.ACT, act) if days >= act else (Severity.LOOK, look)
    return finding("age", severity, says, days, bound)


def _tag(report: DataReport) -> Finding | None:
    """The tag whose answers are liked least or most, where that is no chance."""
    apps = [part.liked for part in report.slices if part.kind == "app"]
    overall = Share.of(sum(liked.count for liked in apps), sum(liked.total for liked in apps)).share
    if overall is None:
        return None
    tags = [part for part in report.slices if part.kind == "tag" and part.liked.total >= FEW]
    apart = [(abs((part.liked.share or 0.0) - overall), part) for part in tags if _outside(part.liked, overall)]
    if not apart:
        return None
    distance, part = max(apart, key=lambda one: (one[0], one[1].name))
    if distance < TAG_DISTANCE[0]:
        return None
    says = (
        f"Answers with the tag '{_visible(part.name)}' are liked in {percent(part.liked)} of {part.liked.total} thumbs, all "
        f"answers in {overall:.0%}: read some of them before a round learns from them."
    )
    return finding("tag", Severity.LOOK, says, distance, TAG_DISTANCE[0])


RULES: tuple[Callable[[DataReport], Finding | None], ...] = (
    _length, _position, _copies, _look_alikes, _leaked_prompts, _leaked_copies, _learned_before, _age, _tag,
)  # fmt: skip


def _outside(share: Share, value: float) -> bool:
    return share.low is not None and share.high is not None and not share.low <= value <= share.high


def _visible(text: str) -> str:
    """What an app sent, without the characters that steer terminals and the direction of writing."""
    return "".join(letter for letter in text if not category(letter).startswith("C"))
