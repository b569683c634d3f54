"""`preferences report`: the data report in a terminal, findings first, or as a page in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.remote import Json, connect
from service.errors import BadRequest
from service.terminal import facts, moment, number, stack, table
from service.watch import sparkline

if TYPE_CHECKING:
    from rich.console import RenderableType

REPORT = "/ops/preferences/report"
BAR_COLUMNS = 20


def report(
    context: typer.Context,
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write it as a page into this file.", metavar="FILE")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="As a round of this objective would see the data.")] = None,
    as_json: Json = False,
) -> None:
    """What a round would learn from now: who voted, how far they agree, what is lopsided, and what to do about it."""
    remote = connect(context, as_json)
    if html is None:
        remote.show(remote.client.get(REPORT, objective=objective), shown)
        return
    page = remote.client.text(REPORT, objective=objective, **{"as": "html"})
    try:
        html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BadRequest(f"{html} cannot be written: {error.strerror}.", code="unwritable_file") from error
    typer.echo(f"the report is in {html}", err=True)


def shown(data: dict[str, Any]) -> RenderableType:
    """The whole report; what is wrong stands first."""
    return stack(findings(data), _amounts(data), _shares(data), _left_out(data), slices(data))


def findings(data: dict[str, Any]) -> RenderableType:
    """Each with how urgent it is; `data` is a report."""
    rows = ((finding["severity"], finding["says"]) for finding in data["findings"])
    return table(("finding", ""), rows, wrap=("",))


def _amounts(data: dict[str, Any]) -> RenderableType:
    counts, voters, power, ages = data["counts"], data["voters"], data["power"], data["ages"]
    days = [day["up"] + day["down"] + day["comparisons"] + day["corrections"] for day in data["days"]]
    sources = ", ".join(f"{pairs} {source}" for source, pairs in counts["sources"].items())
    sees = "no win rate" if power["win_rate"] is None else f"win rates from {power['win_rate']:.1%} on"
    return facts({
        "made": moment(data["made_at"]),
        "pairs": f"{counts['pairs']} ({sources})" if sources else counts["pairs"],
        "single thumbs": counts["thumbs"] or None,
        "to train on": counts["training"],
        "held out": f"{counts['held_out']}: a gate sees {sees}",
        "people": f"{voters['people']} voted, {voters['people_in_pairs']} are in pairs",
        "gini": f"{number(voters['gini_of_votes'], '.2f')} of votes, {number(voters['gini_of_pairs'], '.2f')} of pairs",
        "agreement": _agreement(data["ratings"], "ratings") + "; " + _agreement(data["comparisons"], "comparisons"),
        "length": f"chosen to rejected {number(data['length']['mean_ratio'], '.2f')}, "
        f"correlation {number(data['length']['correlation'], '.2f')}",
        "age": f"{number(ages['median_days'], '.1f')} days median, {number(ages['oldest_days'], '.1f')} the oldest",
        "votes a day": sparkline(days) if days else None,
    })  # fmt: skip


def _agreement(of: dict[str, Any], kind: str) -> str:
    alpha, raw = number(of["alpha"], ".2f"), number(of["raw"], ".2f")
    return f"alpha {alpha}, raw {raw} on {of['things']} {kind}"


def _shares(data: dict[str, Any]) -> RenderableType:
    likeness, leakage, voters = data["likeness"], data["leakage"], data["voters"]
    shares = {
        "pairs of the keenest voter": voters["top_of_pairs"],
        "votes without a user": voters["unnamed"],
        "repeated votes that changed": data["constancy"]["changed"],
        "votes outvoted by others": likeness["contradicted"],
        "the longer answer is chosen": data["length"]["chosen_longer"],
        "the first of two shown is chosen": data["position"]["first_chosen"],
        "left out as duplicates": likeness["duplicates"],
        "left out as near duplicates": likeness["near_duplicates"],
        "kept pairs much like another one": likeness["look_alikes"],
        "held-out pairs: prompt trained on": leakage["prompts"],
        "held-out pairs: look-alike trained on": leakage["look_alikes"],
        "held-out pairs: prompt learned before": leakage["learned_before"],
    }
    rows = [(name, *_share(share)) for name, share in shares.items() if share["share"] is not None]
    return table(("", "", "share", "of", "95 % interval"), rows)


def _share(share: dict[str, Any]) -> tuple[str, str, str, str]:
    between = f"{share['low']:.1%} to {share['high']:.1%}"
    return bar(share["share"]), f"{share['share']:.1%}", f"{share['count']} of {share['total']}", between


def bar(share: float) -> str:
    """A share as a bar of full and empty columns."""
    full = round(share * BAR_COLUMNS)
    return "█" * full + "░" * (BAR_COLUMNS - full)


def _left_out(data: dict[str, Any]) -> RenderableType | None:
    left_out = data["funnel"]["left_out"]
    if not left_out:
        return None
    votes = data["funnel"]["votes"]
    most_first = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    return table(("votes left out", "", "votes"), [(why, bar(count / votes), count) for why, count in most_first])


def slices(data: dict[str, Any]) -> RenderableType | None:
    """The parts of the data: by source, app, adapter and tag; `data` is a report."""
    if not data["slices"]:
        return None
    rows = [
        (
            *(part["kind"], part["name"], part["pairs"], number(part["share"], ".0%"), part["votes"]),
            *(number(part["liked"]["share"], ".0%"), number(part["mean_length_ratio"], ".2f")),
        )
        for part in data["slices"]
    ]
    return table(("slice", "name", "pairs", "share", "votes", "liked", "length ratio"), rows, wrap=("name",))
