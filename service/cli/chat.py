"""`chat`: a conversation in the terminal, through the same endpoint and key as every application."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from service.cli.remote import connect


def chat(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="policy, policy@previous, base, or an adapter's name.")] = "policy",
) -> None:
    """Talk to the policy and vote: a line with + or - rates the last answer. /help shows the rest."""
    from service.talk import Talk, typed_lines

    interactive = sys.stdin.isatty()
    talk = Talk(connect(context, role="app").client, model, interactive=interactive)
    talk.run(typed_lines() if interactive else sys.stdin)
