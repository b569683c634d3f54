"""The data report as one page. Pure.

Tags and names of apps are what strangers sent: `html.py` escapes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.report.document import document, numbers, section, table
from service.report.html import Html, tag
from service.report.plots import Column, bar, columns, interval
from service.report.records import Agreement, Bin, DataReport, Finding, Share, Slice


def page(report: DataReport) -> str:
    """The whole document, to be sent or kept as one file."""
    parts = (_findings, _funnel, _days, _voters, _agreement, _biases, _likeness, _slices, _power)
    return document("data report", _header(report), *(part(report) for part in parts))


def _header(report: DataReport) -> Html:
    counts, made = report.counts, report.made_at
    counted = {
        "pairs": counts.pairs,
        "to train on": counts.training,
        "held out": counts.held_out,
        "single thumbs": counts.thumbs,
        "people voted": report.voters.people,
        "votes count": report.funnel.votes,
    }
    said = f"Made {made:%Y-%m-%d %H:%M} UTC for a round of {report.objective} with at least {report.min_pairs} pairs."
    return tag(
        "header",
        tag("h1", "Data report"),
        tag("p", said, class_="dim"),
        numbers((name, str(value)) for name, value in counted.items()),
    )


def _findings(report: DataReport) -> Html:
    def line(finding: Finding) -> Html:
        return tag("li", tag("span", finding.severity.value, class_=finding.severity.value), tag("span", finding.says))

    return section("Findings", tag("ul", *map(line, report.findings), class_="findings"))


def _funnel(report: DataReport) -> Html:
    funnel = report.funnel
    fates = {"in pairs": funnel.votes_in_pairs, "single thumbs": funnel.votes_in_thumbs, **funnel.left_out}
    rows = [(name, str(votes), bar(votes / funnel.votes if funnel.votes else 0.0)) for name, votes in fates.items()]
    sources = ", ".join(f"{pairs} {_words(source)}" for source, pairs in report.counts.sources.items())
    guards = ", ".join(f"{pairs} {_words(reason)}" for reason, pairs in report.counts.left_out.items())
    return section(
        "From votes to pairs",
        table(("what became of the votes", "votes", ""), [(_words(name), *rest) for name, *rest in rows]),
        tag("p", f"Pairs by source: {sources or 'none'}. Left out by guards: {guards or 'none'}.", class_="dim"),
    )


def _days(report: DataReport) -> Html:
    series = ("up", "down", "comparisons", "corrections")
    data = [Column(f"{d.day:%d %b}", (d.up, d.down, d.comparisons, d.corrections)) for d in report.days]
    ages, days = report.ages, _bin_columns(report.ages.days, " d")
    young = tag(
        "p", f"Median age of a pair: {_number(ages.median_days)} days, the oldest has {_number(ages.oldest_days)}."
    )
    return section(
        "When", columns("Effective votes by day (UTC)", series, data), young, columns("Pairs by age", ("pairs",), days)
    )


def _voters(report: DataReport) -> Html:
    voters = report.voters
    rows = [
        ("votes by the keenest voter", *_shared(voters.top_of_votes)),
        ("votes without a user", *_shared(voters.unnamed)),
        ("pairs by the keenest voter", *_shared(voters.top_of_pairs)),
    ]
    ginis = f"Gini of votes {_number(voters.gini_of_votes)}, of pairs {_number(voters.gini_of_pairs)}"
    said = f"{voters.people} people voted, {voters.people_in_pairs} are in pairs. {ginis} (0: all give the same)."
    top = [Column(str(place), (pairs,)) for place, pairs in enumerate(voters.pairs_of_top, start=1)]
    return section("Who", tag("p", said), _shares(rows), columns("Pairs by voter, the keenest first", ("pairs",), top))


def _agreement(report: DataReport) -> Html:
    def row(name: str, of: Agreement) -> tuple[str, ...]:
        return name, str(of.things), str(of.votes), _number(of.raw), _number(of.alpha)

    kinds = [row("ratings", report.ratings), row("comparisons", report.comparisons)]
    constancy = [
        ("repeated votes that changed", *_shared(report.constancy.changed)),
        ("votes taken back", *_shared(report.constancy.retracted)),
        ("votes outvoted by others", *_shared(report.likeness.contradicted)),
    ]
    headers = ("of different people on the same", "things", "votes", "agree", "Krippendorff's alpha")
    return section("Agreement", table(headers, kinds), _shares(constancy))


def _biases(report: DataReport) -> Html:
    length = report.length
    rows = [
        ("the longer answer is chosen", *_shared(length.chosen_longer)),
        ("of answers shown together the first is chosen", *_shared(report.position.first_chosen)),
    ]
    said = (
        f"The chosen answer has {_number(length.mean_ratio)} times the characters of the rejected one (geometric mean);"
        f" length and being chosen correlate with {_number(length.correlation)}."
    )
    ratios = _bin_columns(length.ratios, "×")
    plot = columns("Pairs by length of the chosen to the rejected answer", ("pairs",), ratios)
    return section("Length and position", _shares(rows), tag("p", said), plot)


def _likeness(report: DataReport) -> Html:
    likeness, leakage = report.likeness, report.leakage
    rows = [
        ("left out as duplicates", *_shared(likeness.duplicates)),
        ("left out as near duplicates", *_shared(likeness.near_duplicates)),
        (f"kept pairs much like another one (likeness from {likeness.bound:g})", *_shared(likeness.look_alikes)),
        ("held-out pairs whose prompt is trained on", *_shared(leakage.prompts)),
        ("held-out pairs with a look-alike in training", *_shared(leakage.look_alikes)),
        ("held-out pairs whose prompt an earlier round learned", *_shared(leakage.learned_before)),
    ]
    return section("Copies and leakage", _shares(rows))


def _slices(report: DataReport) -> Html:
    headers = ("kind", "name", "pairs", "share", "votes", "thumbs up", "length ratio")
    rows = [_slice(part) for part in report.slices]
    hidden = ", ".join(f"{count} more of kind {kind}" for kind, count in report.slices_left_out.items())
    return section("Slices", table(headers, rows), tag("p", hidden, class_="dim") if hidden else "")


def _slice(part: Slice) -> tuple[str, ...]:
    votes = "-" if part.votes is None else str(part.votes)
    liked = interval(part.liked)
    ratio = _number(part.mean_length_ratio)
    return part.kind, tag("bdi", part.name), str(part.pairs), _number(part.share), votes, liked, ratio


def _power(report: DataReport) -> Html:
    power = report.power
    sees = "nothing" if power.win_rate is None else f"win rates from {power.win_rate:.1%} on"
    said = f"With {power.held_out_pairs} held-out pairs it sees {sees} (one-sided at 5 %, in 80 of 100 cases)."
    rows = [(f"{need.win_rate:.0%}", str(need.pairs)) for need in power.needed]
    return section("What a gate can see", tag("p", said), table(("win rate", "held-out pairs that show it"), rows))


def _shares(rows: Iterable[Sequence[str]]) -> Html:
    return table(("", "share", "of", "95 % interval"), rows)


def _shared(share: Share) -> tuple[str, str, Html]:
    return ("-" if share.share is None else f"{share.share:.1%}"), f"{share.count} of {share.total}", interval(share)


def _bin_columns(bins: Sequence[Bin], unit: str) -> list[Column]:
    """Each bin under its lower edge; the lowest under its upper one."""
    return [Column(f"<{b.high:.2g}{unit}" if b.low is None else f"≥{b.low:.2g}{unit}", (b.pairs,)) for b in bins]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
