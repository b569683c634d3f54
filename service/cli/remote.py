"""What commands share: the global options, the client they lead to, and how answers and failures are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service import terminal
from service.client import Answer, Client, find_key, find_url, state_folder
from service.errors import HeliotropeError

if TYPE_CHECKING:
    from rich.console import RenderableType

Json = Annotated[bool, typer.Option("--json", help="Print the service's own JSON.")]


@dataclass
class Session:
    """The global options of this call."""

    url: str | None
    state: Path | None
    config: Path | None
    as_json: bool = False  # errors are written as JSON too; set by the command that has the option

    @property
    def folder(self) -> Path:
        return state_folder(self.state, self.config)


@dataclass(frozen=True)
class Remote:
    """The service that this call speaks with."""

    client: Client
    as_json: bool

    def show(self, answer: Answer, render: Callable[[Any], RenderableType]) -> None:
        """The answer's JSON exactly as it came, or what `render` makes of it for people."""
        if self.as_json:
            typer.echo(answer.text)
        else:
            terminal.console().print(render(answer.data))


def session(context: typer.Context) -> Session:
    assert isinstance(context.obj, Session), "the callback of the root command made it"
    return context.obj


def connect(context: typer.Context, as_json: bool = False, role: Literal["app", "operator"] = "operator") -> Remote:
    current = session(context)
    current.as_json = as_json
    folder = current.folder
    return Remote(Client(current.url or find_url(folder), find_key(folder, role)), as_json)


def report(error: HeliotropeError, *, as_json: bool) -> None:
    """One line, or the error object; to stderr, so that stdout holds nothing but answers."""
    if as_json:
        typer.echo(json.dumps(error.body(), ensure_ascii=False), err=True)
    else:
        typer.echo(f"error: {' '.join(terminal.clean(error.message).split())}", err=True)
