"""`preferences`: the funnel from votes to pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.data_report import report
from service.cli.remote import Json, connect
from service.terminal import dim, moment, stack, table

if TYPE_CHECKING:
    from rich.console import RenderableType

REASONS = {  # LeftOut in plain words
    "already_learned": "it is in a pair of an earlier round",
    "no_partner": "no opposite vote on another answer to the same prompt",
    "contradicted": "as many or more votes say the opposite",
    "not_stored": "the request said that nothing is to be stored",
    "redacted": "the text was redacted, so its tokens were not kept",
    "truncated": "the answer ran into its token limit",
    "failed": "the answer broke off",
    "unfinished": "its client went away, or its time was up, before the whole answer was there",
    "empty": "the answer has no text",
    "unchanged": "both answers are the same",
    "tie": "it says that neither answer is better",
    "counted_once": "another vote of the same user on the same completion counts already",
    "personal": "a conversation: its opposite comes from a user who saw another one",
    "quarantined": "held back until you decide: `heliotrope quarantine list`",
    "dropped": "dropped from quarantine by an operator",
    "duplicate": "another pair has the same prompt and answers",
    "near_duplicate": "another pair says nearly the same words",
    "dictated": "the prompt itself holds the answer that was chosen",
    "too_old": "older than preferences.max_age_days",
    "stale_adapter": "more adapters were promoted since than preferences.max_adapters_behind",
    "user_cap": "its user has preferences.max_pairs_per_user pairs already",
    "user_day_cap": "its user has preferences.max_pairs_per_user_per_day pairs of that day already",
    "app_cap": "its app has preferences.max_share_per_app of the pairs already",
    "prompt_cap": "its prompt has preferences.max_pairs_per_prompt pairs already",
    "frozen": "a suite of the gate asks the same question (gate.suites)",
    "length_balance": "enough pairs prefer the longer answer already (preferences.max_longer_share)",
}

app = typer.Typer(help="The funnel from votes to new pairs; and the report on what a round would learn from.")
app.command("report")(report)


@app.callback(invoke_without_command=True)
def preferences(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="List the votes that are 'paired', 'thumb' or 'left_out'.")] = None,
    reason: Annotated[str | None, typer.Option(help="List the votes left out for this reason.")] = None,
    objective: Annotated[str | None, typer.Option(help="As a round of this objective would see them.")] = None,
    of_app: Annotated[str | None, typer.Option("--app", help="List the votes of this app.")] = None,
    user: Annotated[str | None, typer.Option(help="List the votes of this user.")] = None,
    tag: Annotated[str | None, typer.Option(help="List the votes with this tag.")] = None,
    source: Annotated[
        str | None, typer.Option(help="List the votes in pairs of this source, such as 'side_by_side'.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=1000, help="List so many votes, the newest first.")] = None,
    after: Annotated[int | None, typer.Option(min=0, help="List what follows this vote.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until every vote cast so far is in it.")] = False,
    as_json: Json = False,
) -> None:
    """From votes to new pairs, with the reason for every vote left out."""
    if context.invoked_subcommand is not None:
        return
    remote = connect(context, as_json)
    page = {"limit": None if limit is None else str(limit), "after": None if after is None else str(after)}
    filters = {"status": status, "reason": reason, "app": of_app, "user": user, "tag": tag, "source": source}
    waiting = "true" if wait else None
    answer = remote.client.get("/ops/preferences", objective=objective, **filters, **page, wait=waiting)
    listed = any(value is not None for value in (*filters.values(), *page.values()))
    remote.show(answer, lambda data: stack(_sums(data), _votes(data) if listed else None))


def _sums(data: dict[str, Any]) -> RenderableType:
    behind = None if data["up_to_date"] else dim("votes of the last moments are not in it yet; --wait waits for them")
    return stack(funnel(data["funnel"]), behind)


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


def _votes(data: dict[str, Any]) -> RenderableType:
    headers = (
        *("seq", "voted", "app", "user", "kind", "says", "completion_id", "choice_index", "adapter", "status"),
        *("reason", "source"),
    )
    rows = (
        {**vote, "voted": moment(vote["created_at"]), "user": vote["user"] or None, "says": _says(vote)}
        for vote in data["votes"]
    )
    made = table(headers, ([row[name] for name in headers] for row in rows))
    following = None if data["next"] is None else dim(f"more: --after {data['next']}")
    return stack(made, following)


def _says(vote: dict[str, Any]) -> str:
    """A rating, what the choice is preferred to, or that there is a correction."""
    if vote["kind"] == "comparison":
        relation = "as good as" if vote["tie"] else "rather than"
        return f"{relation} {vote['rival_completion_id']}/{vote['rival_choice_index']}"
    return vote["rating"] or vote["kind"]
