"""What is read from a PostgreSQL server: a table, or a SELECT that the user wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from psycopg import sql

from airflow_etl_provider.core.bounds import has_bounds, split_bounds
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.window import Nulls, Window
from airflow_etl_provider.postgres.cursors import cursor_type_sql, highest, lowest

#: Literals of every kind, quoted names, comments and casts are passed over.
_BOUNDS = re.compile(
    r"""
      (?<!\w)[eE]'(?:[^'\\]|\\.|'')*'
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | --[^\n]*
    | /\*.*?\*/
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    | ::
    | (?<![\w:]):(?P<bound>low|high)\b
    """,
    re.VERBOSE | re.DOTALL,
)


_SELECT = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*(?:select|with)\s", re.IGNORECASE | re.DOTALL)


class RowSecurity(StrEnum):
    """What becomes of policies that may hide rows of the source from its reader."""

    REFUSE = "refuse"
    APPLY = "apply"


def is_query(text: str) -> bool:
    """Whether *text* is a SELECT and not the name of a table."""
    return _SELECT.match(text) is not None


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, or a query of which ``:low`` and ``:high`` are the window's bounds.

    The window is put around either; in a query the bounds spare the server what lies outside.
    """

    table: TableName | None = None
    query: str | None = None

    def __post_init__(self) -> None:
        if (self.table is None) == (self.query is None):
            raise ConfigurationError(
                "a source is either a table or a query", remedy="give one of the two"
            )

    def __str__(self) -> str:
        return "the query" if self.table is None else str(self.table)

    @property
    def is_bounded(self) -> bool:
        """Whether it is a query that names the window's bounds."""
        return self.query is not None and has_bounds(self.query, _BOUNDS)

    def rows(self, window: Window) -> sql.Composable:
        """What stands behind ``FROM`` for the rows of *window*.

        :raises ConfigurationError: the query names bounds, and the window has none.
        """
        if self.table is not None:
            return sql.Identifier(self.table.schema, self.table.name)
        if self.is_bounded and (window.type is None or window.nulls is not Nulls.EXCLUDE):
            what = "a full read has none" if window.is_full else f"{window} lie outside of all"
            raise ConfigurationError(
                f"the query names the bounds :low and :high, and {what}",
                remedy="leave them out of the query: the window is then put around it",
            )
        # Where the highest value belongs to the window, a query that says "< :high" would lose it.
        high = None if window.bounds[1] == "]" else window.high
        return self._filled(
            {
                "low": lambda: _bound(window.low, lowest(window.type or ""), window.type),
                "high": lambda: _bound(high, highest(window.type or ""), window.type),
            }
        )

    def without_rows(self, bounds: sql.Composable) -> sql.Composable:
        """The query with *bounds* in the place of both, to ask what columns it returns."""
        return self._filled({"low": lambda: bounds, "high": lambda: bounds})

    def _filled(self, bounds: Mapping[str, Callable[[], sql.Composable]]) -> sql.Composable:
        parts: list[sql.Composable] = [
            # The user's own statement, as they wrote it.
            sql.SQL(part) if isinstance(part, str) else bounds[part.name]()
            for part in split_bounds(self.query or "", _BOUNDS)
        ]
        # The line break ends a comment that the query may end with.
        return sql.Composed([sql.SQL("("), *parts, sql.SQL("\n) AS etl_source")])


def _bound(bound: str | None, unbounded: str | None, cursor_type: str | None) -> sql.Composed:
    text = unbounded if bound is None else bound
    if text is None:
        raise ConfigurationError(
            "the query takes :high from a cursor of text, of which no value is the highest",
            remedy="leave :low and :high out of the query: the window is then put around it",
        )
    return sql.SQL("({}::{})").format(sql.Literal(text), cursor_type_sql(cursor_type or ""))
