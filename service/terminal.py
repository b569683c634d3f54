"""How things look in a terminal: a quiet console, calm tables, times and numbers. Knows no command and no HTTP.

rich is imported where it is used, because `--json` and most refusals need none of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

NOTHING = "-"
PIPE_COLUMNS = 1000  # in a pipe a row is one line, however long
STYLES = {
    "promoted": "green", "rejected": "yellow", "failed": "red", "cancelled": "yellow",
    "pass": "green", "fail": "red", "abstain": "yellow",
    "ok": "green", "warn": "yellow", "missing": "red", "look": "yellow", "act": "red",
    "paired": "green", "left_out": "yellow",
}  # fmt: skip

_CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


def console(*, stderr: bool = False) -> Console:
    """Prints what it is given: nothing in a text is markup, and nothing is coloured by guess."""
    from rich.console import Console

    quiet: dict[str, Any] = {"stderr": stderr, "highlight": False, "markup": False, "emoji": False}
    made = Console(**quiet)
    return made if made.is_terminal else Console(**quiet, width=PIPE_COLUMNS)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], *, wrap: Sequence[str] = ()) -> Table:
    """Columns without lines. Only those named in `wrap` may break a value to fit the terminal."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for header in headers:
        made.add_column(header, no_wrap=header not in wrap, overflow="fold")
    for row in rows:
        made.add_row(*(cell(value) for value in row))
    return made


def facts(values: dict[str, Any]) -> Table:
    """One thing: a name and a value a line. A value may be any renderable; None is shown as nothing."""
    from rich.table import Table

    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in values.items():
        made.add_row(name, cell(value))
    return made


def stack(*parts: RenderableType | None) -> RenderableType:
    """One under the other with an empty line between; parts that are None are left out."""
    from rich.console import Group

    spaced = [line for part in parts if part is not None for line in ("", part)]
    return Group(*spaced[1:])


def cell(value: Any) -> RenderableType:
    """A value for a table: words that say how something stands get their colour."""
    from rich.text import Text

    if value is None:
        return Text(NOTHING, style="dim")
    if isinstance(value, float):
        return Text(number(value))
    if isinstance(value, str | int):
        return Text(clean(str(value)), style=STYLES.get(str(value), ""))
    return value


def dim(text: str) -> Text:
    from rich.text import Text

    return Text(clean(text), style="dim")


def clean(text: str) -> str:
    """Without control characters: what a model or a caller wrote must not steer the terminal."""
    return text.translate(_CONTROL)


def number(value: float | None, form: str = ".4g") -> str:
    """A dash for what there is no number of, such as the accuracy of single thumbs."""
    return "-" if value is None else format(value, form)


def moment(iso: str) -> str:
    """A time of the service in the time zone of the reader."""
    return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M:%S")
