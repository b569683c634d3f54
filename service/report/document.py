"""What our pages are made of: one document without network and script, light and dark, and fit for paper. Pure.

Whoever makes a page hands in sections; what is not `Html` already is escaped by `html.py`, and the page forbids itself
all but its style.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.report.html import Html, tag

POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # for the page, as header and in itself

HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "cache-control": "no-store"}

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
.pass { color: var(--ok); } .fail { color: var(--act); } .abstain { color: var(--look); }
polyline { fill: none; stroke-width: 1.6; } .l0 { stroke: var(--s0); } .l1 { stroke: var(--s1); }
.l2 { stroke: var(--s2); } .l3 { stroke: var(--s3); } .plots { display: grid; gap: 0 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); }
.said { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
td.answer { width: 34%; vertical-align: top; } .key { margin-right: 1.2rem; } .key i { display: inline-block; width: .7rem; height: .7rem; margin-right: .4rem; }
""")


def document(title: str, *content: str) -> str:
    """The whole document, to be sent or kept as one file."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width"),
        tag("title", f"Heliotrope: {title}"),
        tag("style", STYLE),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *content), lang='en')}\n"


def section(title: str, *content: str) -> Html:
    return tag("section", tag("h2", title), *content)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """Columns of numbers stand to the right. Without any header there is no row of them."""
    body = list(rows)
    sides = ["n" if body and all(_is_number(row[i]) for row in body) else None for i in range(len(headers))]
    head = [tag("th", header, class_=side) for header, side in zip(headers, sides, strict=True)]
    lines = [[tag("td", cell, class_=side) for cell, side in zip(row, sides, strict=True)] for row in body]
    named = [tag("tr", *head)] if any(headers) else []
    return tag("table", *named, *(tag("tr", *line) for line in lines))


def numbers(named: Iterable[tuple[str, str]]) -> Html:
    """What a reader should see first: large, each with its name."""
    return tag("div", *(tag("div", tag("b", value), tag("span", name)) for name, value in named), class_="numbers")


def _is_number(cell: str) -> bool:
    return not isinstance(cell, Html) and (cell == "-" or cell[:1].isdigit())
