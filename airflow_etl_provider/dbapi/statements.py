"""Statements for databases that differ in quotes and placeholders; values always travel as parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

from airflow_etl_provider.core.bounds import has_bounds, split_bounds
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.window import Nulls, Window
from airflow_etl_provider.dbapi.copytext import base_of

_PART = re.compile(
    r'\s*(?:"((?:[^"]|"")+)"|`((?:[^`]|``)+)`|\[((?:[^\]]|\]\])+)\]|([^".`\[\]]+))\s*'
)
#: Literals, quoted names and comments are passed over; what is left may name a bound.
_BOUND = r"|`(?:[^`]|``)*`|--[^\n]*|/\*.*?\*/|(?<![:\w]):(?P<bound>low|high)\b"
_PLAIN = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\""
_BOUNDS = re.compile(_PLAIN + _BOUND, re.DOTALL)
_BOUNDS_BRACKET = re.compile(_PLAIN + r"|\[(?:[^\]]|\]\])*\]" + _BOUND, re.DOTALL)
#: MySQL: a backslash escapes in both kinds of quotes, and a number sign begins a comment.
_BOUNDS_BACKSLASH = re.compile(
    r"'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.|\"\")*\"|\#[^\n]*" + _BOUND, re.DOTALL
)


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

    A query may name the window's bounds as ``:low`` and ``:high``, which spares the database what lies
    outside; the window is put around it all the same.
    """

    table: tuple[str, ...] = ()
    query: str | None = None

    def bounded(self, dialect: Dialect) -> bool:
        """Whether it is a query that names the window's bounds.

        :raises ConfigurationError: it names one of the two only.
        """
        return self.query is not None and has_bounds(self.query, _pattern(dialect))

    def ends(self, dialect: Dialect, window: Window, type_: str | None) -> tuple[str, str] | None:
        """The text of both bounds that the query takes, ``None`` if it takes none.

        A window without a start begins at the lowest value of *type_*: no comparison with NULL holds.

        :raises ConfigurationError: the query takes bounds, and the window or its type has none to give.
        """
        if not self.bounded(dialect):
            return None
        if window.type is None or type_ is None or window.nulls is not Nulls.EXCLUDE:
            what = "a full read has none" if window.is_full else f"{window} lie outside of all"
            raise ConfigurationError(
                f"the query names the bounds :low and :high, and {what}",
                remedy="leave them out of the query: the window is then put around it",
            )
        low = lowest(type_) if window.low is None else window.low
        high = highest(type_) if window.high is None else window.high
        for name, bound in (("low", low), ("high", high)):
            if bound is None:
                raise ConfigurationError(
                    f"the query takes :{name} from a cursor of {type_}, of which no value is the {name}est",
                    remedy="leave :low and :high out of the query: the window is then put around it",
                )
        if window.bounds == "(]" and window.high is not None:
            # A query that ends below :high would leave out the end that belongs to the window.
            high = above(window.high, type_)
        return low or "", high or ""

    def source(self, dialect: Dialect, low: Any = None, high: Any = None) -> Sql:
        """What stands behind ``FROM``; the bounds are given as driver's values."""
        if self.query is None:
            return dialect.name(*self.table)
        bounds = {"low": Value(low), "high": Value(high)}
        parts = [
            part if isinstance(part, str) else bounds[part.name]
            for part in split_bounds(self.query, _pattern(dialect))
        ]
        # The line break ends a comment that the query may end with.
        return sql("(", *parts, "\n) etl_batch")


def lowest(type_: str) -> str | None:
    """The text below which no value of a cursor lies that PostgreSQL and Python can both hold."""
    base, args = base_of(type_)
    if base == "numeric":
        return None if not args else "-" + _nines(args)
    return _LOWEST.get(base)


def highest(type_: str) -> str | None:
    """The text above which no value of a cursor lies; ``None`` where none is known."""
    base, args = base_of(type_)
    if base == "numeric":
        return None if not args else _nines(args)
    return _HIGHEST.get(base)


def above(text: str, type_: str) -> str:
    """The text of a value above another one; not the next one, since the window around is exact.

    :raises ConfigurationError: a type whose values cannot be counted up.
    """
    base, args = base_of(type_)
    if base not in _HIGHEST and base != "numeric":
        raise ConfigurationError(
            f"the query takes :high from a cursor of {type_}, of which no value is the next",
            remedy="leave :low and :high out of the query: the window is then put around it",
        )
    with localcontext(prec=sum(args) + len(text) + 1):
        return f"{Decimal(text) + 1:f}"


def _nines(args: Sequence[int]) -> str:
    precision, scale = [*args, 0][:2]
    whole = "9" * (precision - scale) or "0"
    return f"{whole}.{'9' * scale}" if scale else whole


_LOWEST = {
    "smallint": str(-(2**63)),
    "integer": str(-(2**63)),
    "bigint": str(-(2**63)),
    "date": "0001-01-01",
    "timestamp without time zone": "0001-01-01 00:00:00",
    "timestamp with time zone": "0001-01-01 00:00:00+00",
}
_HIGHEST = dict.fromkeys(("smallint", "integer", "bigint"), str(2**63 - 1))


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


def in_window(column: Sql, window: Window, low: Any, high: Any, missing: Sql | None = None) -> Sql:
    """The condition that holds for the rows of *window*, whose bounds are given as driver's values.

    :param missing: when a row counts as one without a value, where that is more than NULL.
    """
    empty = sql(column, " IS NULL") if missing is None else missing
    if window.nulls is Nulls.ONLY:
        return empty
    parts = []
    if window.low is not None:
        parts.append(sql(column, " >= " if window.bounds[0] == "[" else " > ", Value(low)))
    if window.high is not None:
        parts.append(sql(column, " < " if window.bounds[1] == ")" else " <= ", Value(high)))
    if window.low is None and (missing is not None or not parts):
        parts.append(sql("NOT (", empty, ")"))
    found = joined(" AND ", parts)
    return sql("(", found, " OR ", empty, ")") if window.nulls is Nulls.INCLUDE else found


def select(
    dialect: Dialect,
    rows: Sql,
    expressions: Sequence[Sql],
    *,
    cursor: str | None,
    window: Window,
    low: Any,
    high: Any,
    missing: Sql | None = None,
) -> Sql:
    """The rows of *window* among *rows*, as *expressions*."""
    query = sql("SELECT ", joined(", ", expressions), " FROM ", rows)
    if cursor is None or window.is_full:
        return query
    return sql(query, " WHERE ", in_window(dialect.name(cursor), window, low, high, missing))


def outside(rows: Sql, missing: Sql, ahead: Sql | None) -> Sql:
    """How many rows no window would ever hold, and how many lie *ahead* of the source's clock."""
    counts = sql("SELECT count(CASE WHEN ", missing, " THEN 1 END), ")
    if ahead is None:
        return sql(counts, "0 FROM ", rows, " WHERE ", missing)
    return sql(
        counts, "count(CASE WHEN ", ahead, " THEN 1 END) FROM ", rows,
        " WHERE ", missing, " OR ", ahead,
    )  # fmt: skip


def greatest(dialect: Dialect, rows: Sql, cursor: str) -> Sql:
    """The largest cursor value there is."""
    return sql("SELECT max(", dialect.name(cursor), ") FROM ", rows)


def no_rows(dialect: Dialect, relation: Relation) -> Sql:
    """All columns and no row: asks a driver what the columns are."""
    return sql("SELECT * FROM ", relation.source(dialect), " WHERE 1 = 0")


def _pattern(dialect: Dialect) -> re.Pattern[str]:
    if dialect.backslash:
        return _BOUNDS_BACKSLASH
    return _BOUNDS_BRACKET if dialect.quotes == "[]" else _BOUNDS
