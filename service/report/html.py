"""HTML and SVG elements as text, escaped where they are made: what is not `Html` already cannot become markup."""

from __future__ import annotations

from html import escape

VOID = frozenset({"br", "hr", "line", "meta", "rect"})  # elements without content


class Html(str):
    """Text that is markup. Everything else is a plain string, and is escaped."""


def tag(element: str, *content: str, **attributes: str | float | None) -> Html:
    """One element. In names of attributes `_` stands for `-`, and one at the end for nothing: `class_`."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_value(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if element in VOID and not content:
        return Html(f"<{element}{given}/>")
    return Html(f"<{element}{given}>{join(*content)}</{element}>")


def join(*parts: str) -> Html:
    """One behind the other."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def _value(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
