"""The data report as one page: no network, no script, light and dark, and fit for paper. Pure.

Tags and names of apps are what strangers sent: `html.py` escapes them, and the page forbids itself all but its style.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.report.html import Html, tag
from service.report.plots import Column, bar, columns, interval
from service.report.records import Agreement, Bin, DataReport, Finding, Share, Slice

POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # for the page, as header and in itself

STYLE = Html("""
:root { color-scheme: light dark; --ink: #1d2329; --paper: #fdfdfc; --dim: #66707a; --line: #d9dde1;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #cc79a7; --act: #b3261e; --look: #8a5a00; --ok: #1b6e3c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --paper: #14181c; --dim: #98a2ac; --line: #333a41;
  --s0: #56b4e9; --s1: #e69f00; --s2: #2fbf94; --s3: #dd9cc0; --act: #ff8a80; --look: #f2c14e; --ok: #74d69a; } }
@media print { :root { --ink: #000; --paper: #fff; --dim: #444; } section { break-inside: avoid; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.1rem; }
.dim, .none, figcaption, th { color: var(--dim); font-weight: normal; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .25rem .8rem .25rem 0; text-align: left;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.numbers { display: flex; flex-wrap: wrap; gap: .4rem 2.2rem; margin: 1rem 0; } .numbers b { font-size: 1.4rem; }
.numbers span { display: block; color: var(--dim); }
ul.findings { list-style: none; padding: 0; } ul.findings li { display: flex; gap: .8rem; margin: .35rem 0; }
.act, .look, .ok { flex: 0 0 3rem; font-weight: 600; text-align: right; }
.act { color: var(--act); } .look { color: var(--look); } .ok { color: var(--ok); }
figure { margin: 1rem 0; } svg { display: block; width: 100%; } svg text { fill: var(--dim); font-size: 11px; }
svg.interval { width: 10rem; height: .9rem; } svg.bar { width: 100%; min-width: 6rem; height: .7rem; }
.axis { stroke: var(--line); } .faint { opacity: .35; }
.s0 { fill: var(--s0); background: var(--s0); } .s1 { fill: var(--s1); background: var(--s1); }
.s2 { fill: var(--s2); background: var(--s2); } .s3 { fill: var(--s3); background: var(--s3); }
.key { margin-right: 1.2rem; } .key i { display: inline-block; width: .7rem; height: .7rem; margin-right: .4rem; }
""")


def page(report: DataReport) -> str:
    """The whole document, to be sent or kept as one file."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width"),
        tag("title", "Heliotrope: data report"),
        tag("style", STYLE),
    )
    sections = (_findings, _funnel, _days, _voters, _agreement, _biases, _likeness, _slices, _power)
    body = tag("body", _header(report), *(section(report) for section in sections))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _header(report: DataReport) -> Html:
    counts, made = report.counts, report.made_at
    numbers = {
        "pairs": counts.pairs,
        "to train on": counts.training,
        "held out": counts.held_out,
        "single thumbs": counts.thumbs,
        "people voted": report.voters.people,
        "votes count": report.funnel.votes,
    }
    shown = [tag("div", tag("b", str(value)), tag("span", name)) for name, value in numbers.items()]
    said = f"Made {made:%Y-%m-%d %H:%M} UTC for a round of {report.objective} with at least {report.min_pairs} pairs."
    return tag("header", tag("h1", "Data report"), tag("p", said, class_="dim"), tag("div", *shown, class_="numbers"))


def _findings(report: DataReport) -> Html:
    def line(finding: Finding) -> Html:
        return tag("li", tag("span", finding.severity.value, class_=finding.severity.value), tag("span", finding.says))

    return _section("Findings", tag("ul", *map(line, report.findings), class_="findings"))


def _funnel(report: DataReport) -> Html:
    funnel = report.funnel
    fates = {"in pairs": funnel.votes_in_pairs, "single thumbs": funnel.votes_in_thumbs, **funnel.left_out}
    rows = [(name, str(votes), bar(votes / funnel.votes if funnel.votes else 0.0)) for name, votes in fates.items()]
    sources = ", ".join(f"{pairs} {_words(source)}" for source, pairs in report.counts.sources.items())
    guards = ", ".join(f"{pairs} {_words(reason)}" for reason, pairs in report.counts.left_out.items())
    return _section(
        "From votes to pairs",
        _table(("what became of the votes", "votes", ""), [(_words(name), *rest) for name, *rest in rows]),
        tag("p", f"Pairs by source: {sources or 'none'}. Left out by guards: {guards or 'none'}.", class_="dim"),
    )


def _days(report: DataReport) -> Html:
    series = ("up", "down", "comparisons", "corrections")
    data = [Column(f"{d.day:%d %b}", (d.up, d.down, d.comparisons, d.corrections)) for d in report.days]
    ages, days = report.ages, _bin_columns(report.ages.days, " d")
    young = tag(
        "p", f"Median age of a pair: {_number(ages.median_days)} days, the oldest has {_number(ages.oldest_days)}."
    )
    return _section(
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
    return _section("Who", tag("p", said), _shares(rows), columns("Pairs by voter, the keenest first", ("pairs",), top))


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
    return _section("Agreement", _table(headers, kinds), _shares(constancy))


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
    return _section("Length and position", _shares(rows), tag("p", said), plot)


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
    return _section("Copies and leakage", _shares(rows))


def _slices(report: DataReport) -> Html:
    headers = ("kind", "name", "pairs", "share", "votes", "thumbs up", "length ratio")
    rows = [_slice(part) for part in report.slices]
    hidden = ", ".join(f"{count} more of kind {kind}" for kind, count in report.slices_left_out.items())
    return _section("Slices", _table(headers, rows), tag("p", hidden, class_="dim") if hidden else "")


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
    return _section("What a gate can see", tag("p", said), _table(("win rate", "held-out pairs that show it"), rows))


def _section(title: str, *content: str) -> Html:
    return tag("section", tag("h2", title), *content)


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """Columns of numbers stand to the right."""
    body = list(rows)
    numbers = ["n" if all(_is_number(row[i]) for row in body) else None for i in range(len(headers))]
    head = [tag("th", header, class_=side) for header, side in zip(headers, numbers, strict=True)]
    lines = [[tag("td", cell, class_=side) for cell, side in zip(row, numbers, strict=True)] for row in body]
    return tag("table", tag("tr", *head), *(tag("tr", *line) for line in lines))


def _is_number(cell: str) -> bool:
    return not isinstance(cell, Html) and (cell == "-" or cell[:1].isdigit())


def _shares(rows: Iterable[Sequence[str]]) -> Html:
    return _table(("", "share", "of", "95 % interval"), rows)


def _shared(share: Share) -> tuple[str, str, Html]:
    return ("-" if share.share is None else f"{share.share:.1%}"), f"{share.count} of {share.total}", interval(share)


def _bin_columns(bins: Sequence[Bin], unit: str) -> list[Column]:
    """Each bin under its lower edge; the lowest under its upper one."""
    return [Column(f"<{b.high:.2g}{unit}" if b.low is None else f"≥{b.low:.2g}{unit}", (b.pairs,)) for b in bins]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
