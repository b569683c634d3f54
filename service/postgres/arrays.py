"""Many values as one parameter: a statement stays the same, and as short, however many there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import ARRAY, BigInteger, BindParameter, Integer, Text, column, func, literal
from sqlalchemy.sql.selectable import TableValuedAlias


def texts(values: Iterable[str | None]) -> BindParameter[Any]:
    return literal(list(values), ARRAY(Text))


def seqs(values: Iterable[int]) -> BindParameter[Any]:
    return literal(list(values), ARRAY(BigInteger))


def integers(values: Iterable[int]) -> BindParameter[Any]:
    return literal(list(values), ARRAY(Integer))


def as_table(name: str, **arrays: BindParameter[Any]) -> TableValuedAlias:
    """Arrays of one length as the columns of a table to join with."""
    columns = [column(label, cast("ARRAY[Any]", array.type).item_type) for label, array in arrays.items()]
    return func.unnest(*arrays.values()).table_valued(*columns, name=name).render_derived(name=name)
