"""`preferences` and `import`: the funnel from votes to pairs, and pairs from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from service import terminal
from service.cli.remote import Json, connect
from service.client import Refused
from service.terminal import stack, table

if TYPE_CHECKING:
    from rich.console import RenderableType

REASONS = {  # LeftOut in plain words
    "already_learned": "its answer is in a pair of an earlier round",
    "no_partner": "no opposite vote on another answer to the same prompt",
    "contradicted": "as many or more votes say the opposite of the very same answer",
    "not_stored": "the request said that nothing is to be stored",
    "truncated": "the answer ran into its token limit",
    "empty": "the answer has no text",
}


def preferences(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="List the votes that are 'paired', 'thumb' or 'left_out'.")] = None,
    reason: Annotated[str | None, typer.Option(help="List the votes left out for this reason.")] = None,
    objective: Annotated[str | None, typer.Option(help="As a round of this objective would see them.")] = None,
    as_json: Json = False,
) -> None:
    """From votes to new pairs, with the reason for every vote left out."""
    remote = connect(context, as_json)
    answer = remote.client.get("/ops/preferences", status=status, reason=reason, objective=objective)
    listed = status is not None or reason is not None
    remote.show(answer, lambda data: stack(funnel(data["funnel"]), _votes(data["votes"]) if listed else None))


def import_pairs(
    context: typer.Context,
    file: Annotated[typer.FileBinaryRead, typer.Argument(help="Lines of {prompt, chosen, rejected}; '-' reads stdin.")],
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Import the good lines when some are not.")] = False,
    as_json: Json = False,
) -> None:
    """Import preference pairs: TRL's JSON lines, with strings or lists of messages."""
    remote = connect(context, as_json)
    query = "true" if skip_bad else None
    try:
        answer = remote.client.upload("/ops/preferences/import", file.read(), skip_bad=query)
    except Refused as refusal:
        if not as_json and refusal.answer.get("faults"):
            terminal.console(stderr=True).print(_faults(refusal.answer["faults"]))
        raise
    remote.show(answer, _imported)


def funnel(data: dict[str, Any]) -> RenderableType:
    """Every vote is in it once: votes = those in pairs + those left out."""
    thumbs = data["votes_in_thumbs"]
    rows = [
        (data["votes"], "effective", "a changed or retracted vote does not count"),
        (data["votes_in_pairs"], "in pairs", ""),
        *([(data["votes_in_thumbs"], "single thumbs", "no partner, and the objective needs none")] if thumbs else []),
        *((count, reason, REASONS.get(reason, "")) for reason, count in sorted(data["left_out"].items())),
    ]
    made = table(("votes", "are", "because"), rows, wrap=("because",))
    return stack(made, f"new pairs: {new_pairs(data)}")


def new_pairs(data: dict[str, Any]) -> str:
    """What a round started now would learn from."""
    voted, imported = data["pairs_from_votes"], data["pairs_imported"]
    thumbs = f", and {data['thumbs']} single thumbs" if data["thumbs"] else ""
    replayed = f", and {data['pairs_replayed']} replayed" if data["pairs_replayed"] else ""
    return f"{voted + imported} ({voted} from votes, {imported} imported){thumbs}{replayed}"


def _votes(votes: list[dict[str, Any]]) -> RenderableType:
    headers = ("completion_id", "choice_index", "rating", "app", "adapter", "status", "reason")
    return table(headers, ([vote[name] for name in headers] for vote in votes))


def _imported(data: dict[str, Any]) -> RenderableType:
    said = f"{data['added']} pairs added, {data['known']} were known already"
    faults = data["faults"]
    return stack(said, _faults(faults)) if faults else said


def _faults(faults: list[dict[str, Any]]) -> RenderableType:
    rows = ((fault["line"], fault["field"], fault["reason"]) for fault in faults)
    return table(("line", "field", "reason"), rows, wrap=("reason",))
