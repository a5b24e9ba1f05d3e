"""Columns of values as PostgreSQL writes arrays: many rows travel as a few values, whatever their number.

A statement over `unnest(CAST(?1 AS BIGINT[]), CAST(?2 AS TEXT[]))` has one text for any number of rows, so it is prepared once.
"""

from collections.abc import Sequence
from typing import Any

from fourplane.state.contracts import SqlValue

KINDS: dict[type, str] = {int: "BIGINT", str: "TEXT", bytes: "BYTEA", float: "DOUBLE PRECISION"}


def kind_of(column: Sequence[SqlValue]) -> type | None:
    """The kind all values of a column have; None where they have several or none."""
    kinds = {*map(type, column)} - {type(None)}
    return kinds.pop() if len(kinds) == 1 and kinds <= KINDS.keys() else None


def array(column: Sequence[SqlValue], kind: type) -> str:
    """A column of this kind, NULL where a value is missing."""
    if None not in column:
        return _full(column, kind)
    if kind is str:
        quoted = ["NULL" if one is None else _quoted(str(one)) for one in column]
    elif kind is bytes:
        quoted = [f'"\\\\x{one.hex()}"' if isinstance(one, bytes) else "NULL" for one in column]
    else:
        quoted = ["NULL" if one is None else repr(one) for one in column]
    return "{" + ",".join(quoted) + "}"


def _full(column: Sequence[Any], kind: type) -> str:
    """The same where no value is missing: joined at once, values are looked at one by one only where one needs it."""
    if kind is str:
        joined = '","'.join(column)
        if "\\" in joined or joined.count('"') != 2 * max(0, len(column) - 1):
            joined = '","'.join([_quoted(one)[1:-1] for one in column])
        return '{"' + joined + '"}' if column else "{}"
    if kind is bytes:
        return '{"\\\\x' + '","\\\\x'.join([one.hex() for one in column]) + '"}' if column else "{}"
    return "{" + ",".join(map(repr, column)) + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
