"""Formats of preferences: the fields of a row as messages with answers, or the reason why they are none.

Pure: knows the names of fields; knows no file, no tokenizer and no torch. One file a family:

    trl.py            trl, trl_implicit, kto            also SageMaker, OpenRLHF, NeMo-RL's BinaryPreference
    openai.py         openai                            also Azure, Together, Fireworks
    nova.py           nova                              Amazon Nova on SageMaker and Bedrock
    ultrafeedback.py  ultrafeedback, ultrafeedback_raw  also axolotl's `ultra`
    hh.py             hh, nectar
    llama_factory.py  alpaca, sharegpt, kto_tag, llama_factory_v1
    axolotl.py        argilla, intel, icr, prompt_pairs, chat_template
    nemo_rl.py        nemo_rl

A file has one format, which its first rows tell. A row of the same family is taken as it is, so that pairs and thumbs
may stand together; any other is a fault. Every row gives one preference: of answers that are ranked, the best and one
of the worse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from training.formats import axolotl, hh, llama_factory, nemo_rl, nova, openai, trl, ultrafeedback
from training.formats.parts import (
    CHANGE_THE_PROMPT,
    CHANGED_PROMPT,
    Format,
    Message,
    Preference,
    Row,
    RowError,
    Shape,
    json_object,
)

__all__ = ["KNOWN_FIELDS", "SHAPES", "SHAPES_LISTED", "Format", "Message", "Preference", "Recognised", "RowError", "json_object",
           "preference", "recognise"]  # fmt: skip

# The first that fits is a row's format; so those with fields of their own come before those that share theirs.
_FORMATS: tuple[Shape, ...] = (
    *openai.FORMATS, *nova.FORMATS, *nemo_rl.FORMATS, *hh.FORMATS, *ultrafeedback.FORMATS, *llama_factory.FORMATS,
    *axolotl.FORMATS, *trl.FORMATS,
)  # fmt: skip
_BY_NAME = {shape.name: shape for shape in _FORMATS}
SHAPES: dict[Format, str] = {name: _BY_NAME[name].looks for name in get_args(Format)}
KNOWN_FIELDS = frozenset(name for shape in _FORMATS for name in shape.reads) | {*CHANGE_THE_PROMPT, "prompt"}

SHAPES_LISTED = "\n\n".join(("Formats:", *(f"{name}  {looks}" for name, looks in SHAPES.items())))  # for --help

assert len(_FORMATS) == len(_BY_NAME) == len(SHAPES), "each format has one name, and each name one format"


@dataclass(frozen=True, slots=True)
class Recognised:
    """The format of a file, and how many of its first rows say so."""

    format: Format | None  # None: no row is in a known one
    rows: int
    of: int
    forced: bool = False

    def __str__(self) -> str:
        if self.format is None:
            return f"none that is known ({self.of} first rows)"
        asked_for = "as asked for, " if self.forced else ""
        return f"{self.format} ({asked_for}{self.rows} of {self.of} first rows)"

    def preference(self, number: int, fields: Mapping[str, Any]) -> Preference:
        """What a row of the file says. Raises `RowError` naming the field that is at fault."""
        return preference(number, fields, self.format, family=not self.forced)


def recognise(rows: Sequence[Mapping[str, Any]], format: Format | None = None) -> Recognised:
    """The format that most of these rows are in; one that is given is not put in doubt."""
    found = [_shape(_given(fields)) for fields in rows]
    if format is not None:
        fitting = sum(_BY_NAME[format].fits(_given(fields)) for fields in rows)
        return Recognised(format, fitting, len(rows), forced=True)
    names: Counter[Format] = Counter(shape.name for shape in found if shape is not None)
    if not names:
        return Recognised(None, 0, len(rows))
    name, count = names.most_common(1)[0]  # of equally many the one that came first
    return Recognised(name, count, len(rows))


def preference(
    number: int, fields: Mapping[str, Any], format: Format | None = None, *, family: bool = False
) -> Preference:
    """What the fields of a row say: in any format, in this one, or in its whole family. Raises `RowError`.

    A field that is null counts as absent, because a table has all columns in all rows. Not so a prompt: without it the
    answers would be taken for whole conversations.
    """
    for name in CHANGE_THE_PROMPT:
        if fields.get(name) and fields[name] not in ("[]", "{}"):
            raise RowError(name, CHANGED_PROMPT)
    given = _given(fields)
    shape = _shape(given, format, family=family)
    if shape is None:
        raise RowError(None, _why_none(given, fields, format))
    messages, chosen, rejected = shape.said(given)
    # What a table has in other rows is not ignored in this one.
    said = {name for name, value in fields.items() if value is not None or name not in KNOWN_FIELDS}
    ignored = tuple(name for name in fields if name in said and name not in shape.reads)
    return Preference(number, shape.name, messages, chosen, rejected, ignored)


def _given(fields: Mapping[str, Any]) -> Row:
    return {name: value for name, value in fields.items() if value is not None or name == "prompt"}


def _shape(given: Row, format: Format | None = None, *, family: bool = False) -> Shape | None:
    if format is not None and not family:
        return _BY_NAME[format] if _BY_NAME[format].fits(given) else None
    found = next((shape for shape in _FORMATS if shape.fits(given)), None)
    if format is None or found is None or found.family == _BY_NAME[format].family:
        return found
    return None


def _why_none(given: Row, fields: Mapping[str, Any], format: Format | None) -> str:
    other = _shape(given)
    if other is not None:
        assert format is not None, "without a format any other would have done"
        return f"its format is {other.name}, not {format}: {SHAPES[format]}"
    names = ", ".join(name for name, value in fields.items() if value is not None)[:200]
    known = SHAPES[format] if format else f"{', '.join(SHAPES)}, such as {SHAPES['trl']}"
    return f"none of the known formats: it has {names or 'no field'}; give {known}"
