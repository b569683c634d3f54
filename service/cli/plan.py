"""`plan`: what a load would ask for, before there is one. Asks no service."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.dry_run import duration
from service.cli.remote import Json
from service.planning import BUSY, Load, Plan, plan
from service.terminal import console, facts, stack
from serving.settings import Ingress

if TYPE_CHECKING:
    from rich.console import RenderableType

_LOAD = Load()
GB = 1e9


def plan_command(
    requests_per_second: Annotated[float, typer.Option(min=0.001, help="Chats.")] = _LOAD.requests_per_second,
    completions: Annotated[float, typer.Option(min=1, help="That the log keeps, such as 100e6.")] = 1e6,
    votes_share: Annotated[float, typer.Option(min=0, max=10, help="Votes for each answer.")] = _LOAD.votes_share,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of one request.")] = _LOAD.prompt_tokens,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Of one answer.")] = _LOAD.answer_tokens,
    answers_per_second: Annotated[
        float, typer.Option(min=0.001, help="That the engine of one replica gives.")
    ] = _LOAD.answers_per_second,
    ingress: Annotated[Ingress, typer.Option(help="What stands before the replicas: server.ingress.")] = _LOAD.ingress,
    rounds_a_day: Annotated[float, typer.Option(min=0)] = _LOAD.rounds_a_day,
    as_json: Json = False,
) -> None:
    """What a load asks for: replicas, proxies, PostgreSQL, disk, and where this design ends."""
    load = Load(
        requests_per_second, votes_share, prompt_tokens, answer_tokens, answers_per_second, ingress, rounds_a_day
    )
    planned = plan(load, completions)
    if as_json:
        typer.echo(json.dumps(asdict(planned) | {"limits": planned.limits}, indent=2))
    else:
        console().print(_shown(planned))


def _shown(plan: Plan) -> RenderableType:
    proxies = "of Ray's proxies, a core each" if plan.load.ingress == "python" else "cores for HAProxy"
    kept = plan.row_bytes, plan.index_bytes, plan.vote_bytes
    return stack(
        facts({
            "replicas": f"{plan.replicas:,}, of which the engines ask for {plan.replicas_for_engines:,}",
            "ingress": f"{plan.proxies:,.1f} {proxies}",
            "Conductor": f"{plan.conductor_cores:.1%} of its core, for matching votes",
            "PostgreSQL": f"{plan.postgres_cores:.1f} cores, {plan.connections:,} connections, "
            f"{plan.commits_a_second:,.0f} commits/s, {plan.wal_bytes_a_second / 1e6:,.1f} MB/s of changes to its log",
            "completions": f"{plan.bytes_kept / GB:,.0f} GB: rows {kept[0] / GB:,.0f}, indexes {kept[1] / GB:,.0f}, "
            f"votes {kept[2] / GB:,.1f}",
            "reached after": duration(plan.seconds_kept),
            "object store": f"{plan.objects_a_year:,.0f} objects a year; no completion is among them",
        }),
        f"Computed from what was measured on a small machine (k8s/README.md), each process at most {BUSY:.0%} busy.",
        *(f"- {limit}." for limit in plan.limits),
    )  # fmt: skip
