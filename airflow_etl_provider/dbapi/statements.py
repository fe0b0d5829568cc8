"""Statements for databases that differ in quotes and placeholders; values always travel as parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.window import Window

_PART = re.compile(
    r'\s*(?:"((?:[^"]|"")+)"|`((?:[^`]|``)+)`|\[((?:[^\]]|\]\])+)\]|([^".`\[\]]+))\s*'
)
#: Literals, quoted names and comments are passed over; what is left may name a bound.
_BOUND = r"|`(?:[^`]|``)*`|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/|(?<![:\w]):(low|high)\b"
_BOUNDS = re.compile(r"'(?:[^']|'')*'" + _BOUND, re.DOTALL)
_BOUNDS_BACKSLASH = re.compile(r"'(?:[^'\\]|\\.|'')*'" + _BOUND, re.DOTALL)


@dataclass(frozen=True, slots=True)
class Value:
    """A value's place in a statement."""

    value: Any


@dataclass(frozen=True, slots=True)
class Sql:
    """A statement in pieces: text of this package or of the user, and places of values."""

    parts: tuple[str | Value, ...]

    def render(self, paramstyle: str) -> tuple[str, Any]:
        """Text and parameters for a driver; percent signs are doubled only where it reads them.

        :param paramstyle: as PEP 249 names it.
        """
        values = [part.value for part in self.parts if isinstance(part, Value)]
        percent = bool(values) and paramstyle in ("format", "pyformat")
        text: list[str] = []
        count = 0
        for part in self.parts:
            if isinstance(part, Value):
                count += 1
                text.append(_PLACES[paramstyle].replace("#", str(count)))
            else:
                text.append(part.replace("%", "%%") if percent else part)
        if paramstyle == "named":
            return "".join(text), {f"v{number}": value for number, value in enumerate(values, 1)}
        return "".join(text), tuple(values)


_PLACES = {"qmark": "?", "format": "%s", "pyformat": "%s", "numeric": ":#", "named": ":v#"}


def sql(*parts: str | Value | Sql) -> Sql:
    """A statement from its pieces."""
    flat: list[str | Value] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Sql) else [part])
    return Sql(tuple(flat))


def joined(separator: str, parts: Sequence[Sql]) -> Sql:
    """*parts* with *separator* between them."""
    flat: list[str | Value | Sql] = []
    for number, part in enumerate(parts):
        flat.extend([separator, part] if number else [part])
    return sql(*flat)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a database writes names and values.

    :param quotes: the opening and the closing quote of a name; the closing one is doubled inside.
    :param paramstyle: as PEP 249 names it.
    :param backslash: whether a backslash escapes inside a string literal.
    """

    quotes: str = '""'
    paramstyle: str = "qmark"
    backslash: bool = False

    def __post_init__(self) -> None:
        if self.paramstyle not in _PLACES:
            raise ConfigurationError(f"parameter style {self.paramstyle!r} is unknown")

    def name(self, *parts: str) -> Sql:
        """A quoted name of one or more parts."""
        opening, closing = self.quotes[0], self.quotes[1]
        for part in parts:
            if not part or "\x00" in part:
                raise ConfigurationError(f"not a name: {part!r}")
        return sql(
            ".".join(opening + part.replace(closing, closing * 2) + closing for part in parts)
        )


@dataclass(frozen=True, slots=True)
class Relation:
    """What is read: a table by the parts of its name, or a query.

    A query may name ``:low`` and ``:high``; then its own condition is the window. Otherwise the window
    is put around it.
    """

    table: tuple[str, ...] = ()
    query: str | None = None

    def bounded(self, dialect: Dialect) -> bool:
        """Whether the query says by itself where the window is."""
        if self.query is None:
            return False
        found = {match[1] for match in _pattern(dialect).finditer(self.query)} - {None}
        if len(found) == 1:
            raise ConfigurationError(
                f"the query names :{found.pop()} only; a window has two ends",
                remedy="use both :low and :high, or neither: then the window is put around the query",
            )
        return bool(found)

    def source(self, dialect: Dialect, low: Any = None, high: Any = None) -> Sql:
        """What stands behind ``FROM``."""
        if self.query is None:
            return dialect.name(*self.table)
        bounds = {"low": Value(low), "high": Value(high)}
        parts: list[str | Value] = ["("]
        position = 0
        for match in _pattern(dialect).finditer(self.query):
            if match[1] is not None:
                parts += [self.query[position : match.start()], bounds[match[1]]]
                position = match.end()
        # The line break ends a comment that the query may end with.
        return sql(*parts, self.query[position:].rstrip().rstrip(";"), "\n) etl_batch")


def parse_name(text: str) -> tuple[str, ...]:
    """The parts of a table's name; odd parts are quoted with double quotes, backticks or brackets.

    :raises ConfigurationError: not a name of one to three parts.
    """
    parts: list[str] = []
    position = 0
    while True:
        match = _PART.match(text, position)
        if match is None:
            break
        double, backtick, bracket, plain = match.groups()
        if double is not None:
            parts.append(double.replace('""', '"'))
        elif backtick is not None:
            parts.append(backtick.replace("``", "`"))
        elif bracket is not None:
            parts.append(bracket.replace("]]", "]"))
        else:
            parts.append(plain.strip())
        position = match.end()
        if position == len(text) and all(parts) and len(parts) <= 3:
            return tuple(parts)
        if text[position : position + 1] != ".":
            break
        position += 1
    raise ConfigurationError(
        f"not a table name: {text!r}",
        remedy='write it as table, schema.table or database.schema.table, odd parts quoted: "a.b"',
    )


def in_window(column: Sql, window: Window, low: Any, high: Any) -> Sql:
    """The condition that holds for the rows of *window*, whose bounds are given as driver's values."""
    parts = []
    if window.low is not None:
        parts.append(sql(column, " >= " if window.bounds[0] == "[" else " > ", Value(low)))
    if window.high is not None:
        parts.append(sql(column, " < " if window.bounds[1] == ")" else " <= ", Value(high)))
    return joined(" AND ", parts)


def select(
    dialect: Dialect,
    relation: Relation,
    expressions: Sequence[Sql],
    *,
    cursor: str | None,
    window: Window,
    low: Any,
    high: Any,
) -> Sql:
    """The rows of *window*, as *expressions*."""
    query = sql("SELECT ", joined(", ", expressions), " FROM ", relation.source(dialect, low, high))
    if cursor is None or window.is_full or relation.bounded(dialect):
        return query
    return sql(query, " WHERE ", in_window(dialect.name(cursor), window, low, high))


def null_cursors(dialect: Dialect, relation: Relation, cursor: str, low: Any, high: Any) -> Sql:
    """How many rows no window would ever hold."""
    return sql(
        "SELECT count(*) FROM ",
        relation.source(dialect, low, high),
        " WHERE ",
        dialect.name(cursor),
        " IS NULL",
    )


def highest(dialect: Dialect, relation: Relation, cursor: str) -> Sql:
    """The largest cursor value there is."""
    return sql("SELECT max(", dialect.name(cursor), ") FROM ", relation.source(dialect))


def no_rows(dialect: Dialect, relation: Relation) -> Sql:
    """All columns and no row: asks a driver what the columns are."""
    return sql("SELECT * FROM ", relation.source(dialect), " WHERE 1 = 0")


def _pattern(dialect: Dialect) -> re.Pattern[str]:
    return _BOUNDS_BACKSLASH if dialect.backslash else _BOUNDS
