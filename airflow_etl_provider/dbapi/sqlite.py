"""SQLite, over Python's own ``sqlite3``.

SQLite stores any value in any column; a declared type is only a wish. A column is therefore said to be
what its declaration means in PostgreSQL, and every value is checked against that: one that does not fit
is refused by row and column. Columns of a ``STRICT`` table and honest ones pass at full speed.

Declarations: ``INT…`` is ``bigint``, ``REAL``/``FLOAT``/``DOUBLE`` are ``double precision``, ``TEXT`` and
``CLOB`` are ``text``, ``VARCHAR(n)`` and ``CHAR(n)`` are ``character varying(n)``, ``BLOB`` is ``bytea``,
``DECIMAL(p,s)`` is ``numeric(p,s)``, ``BOOLEAN`` (0 and 1), ``DATE``, ``TIME``, ``DATETIME`` and ``TIMESTAMP`` (ISO
8601 text without offset), ``TIMESTAMPTZ`` (with one), ``JSON`` and ``UUID`` are what they say; anything else
is ``text``, which takes numbers and dates too, but no bytes. ``types`` may declare any type for a column.

Personal columns are hashed by a function that the connection is given, so the key stands in no statement.

A window compares text as text, so a cursor of dates or times must have one form in all rows; that is
looked at in the same snapshot, and a mixture is refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

from airflow_etl_provider.core.columns import Selected, Treatment
from airflow_etl_provider.core.errors import (
    CatalogError,
    ConnectionLost,
    DataError,
    EtlError,
    TransientError,
)
from airflow_etl_provider.core.ports import Figure, SourceColumn
from airflow_etl_provider.dbapi.copytext import RowEncoder, base_of
from airflow_etl_provider.dbapi.driver import Connection, Row, all_rows, first_row, run
from airflow_etl_provider.dbapi.errors import by_kind
from airflow_etl_provider.dbapi.fetching import SizedFetch
from airflow_etl_provider.dbapi.figures import expressions
from airflow_etl_provider.dbapi.flavour import (
    MOST_ROWS,
    Connect,
    Reading,
    Request,
    declared_type,
    no_such_table,
    refuse_unknown,
)
from airflow_etl_provider.dbapi.hashing import hasher
from airflow_etl_provider.dbapi.statements import Dialect, Relation, Sql, Value, joined, select, sql

_DIALECT = Dialect(quotes='""', paramstyle="qmark")
_VIEW = "etl_query"
_LAST = itemgetter(-1)
_HASH = "etl_hash"
_VARIABLE = ("text", "character varying", "bytea", "json", "jsonb")
_EXACT = {
    "BOOLEAN": "boolean",
    "BOOL": "boolean",
    "DATE": "date",
    "TIME": "time without time zone",
    "DATETIME": "timestamp without time zone",
    "TIMESTAMP": "timestamp without time zone",
    "TIMESTAMP WITHOUT TIME ZONE": "timestamp without time zone",
    "TIMESTAMPTZ": "timestamp with time zone",
    "TIMESTAMP WITH TIME ZONE": "timestamp with time zone",
    "UUID": "uuid",
    "JSON": "json",
    "NUMERIC": "numeric",
    "DECIMAL": "numeric",
}
_INTEGERS = ("smallint", "integer", "bigint")
#: The forms of a cursor as GLOB patterns; each orders as its values do. What is no digit further inside lies
#: in the order of its year all the same, so a window reads it, and it is refused there.
_DAY = "[0-9][0-9][0-9][0-9]-??-??"
_CLOCK = "??:??:??*"
_FORMS = {
    "date": {"": _DAY},
    "timestamp without time zone": {" ": f"{_DAY} {_CLOCK}", "T": f"{_DAY}T{_CLOCK}"},
    "timestamp with time zone": {" ": f"{_DAY} {_CLOCK}+00:00", "T": f"{_DAY}T{_CLOCK}+00:00"},
}
_SECOND = 2**32
#: What SQLite calls the values of other cursors.
_STORED = {
    **dict.fromkeys(_INTEGERS, ("integer",)),
    "numeric": ("integer", "real"),
    "double precision": ("integer", "real"),
}


@dataclass(frozen=True, slots=True)
class Sqlite:
    """SQLite 3.31 or newer.

    A reader in a database without write-ahead log keeps writers waiting while it reads; with
    ``PRAGMA journal_mode=WAL`` it does not.
    """

    @property
    def dialect(self) -> Dialect:
        return _DIALECT

    def describe(
        self, connection: Connection, request: Request
    ) -> tuple[tuple[SourceColumn, ...], tuple[str, str]]:
        rows = all_rows(connection, "PRAGMA database_list")
        path = next((row[2] for row in rows if row[1] == "main"), "") or ":memory:"
        name = ".".join(request.relation.table) or "query"
        return _columns(connection, request), (f"sqlite://{path}", name)

    def begin(self, connection: Connection) -> datetime:
        # Transactions are begun here and not by the driver's rules.
        connection.isolation_level = None  # type: ignore[attr-defined]
        cursor = connection.cursor()
        cursor.execute("PRAGMA query_only = ON")
        cursor.execute("BEGIN")
        # A deferred transaction has its snapshot from its first read on.
        cursor.execute("SELECT count(*) FROM sqlite_master")
        (now,) = cursor.execute("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')").fetchone()
        cursor.close()
        return datetime.fromisoformat(now).replace(tzinfo=UTC)

    def read(self, connection: Connection, request: Request) -> Reading:
        offered = {column.name: column for column in _columns(connection, request)}
        types = {name: column.type for name, column in offered.items()}
        cursor_type = None if request.cursor is None else types[request.cursor]
        ends = request.ends(_DIALECT, cursor_type)
        low, high, nulls, unreachable = None, None, 0, None
        if request.looks_outside:
            nulls, unreachable, form = _inspect_cursor(connection, request, cursor_type or "", ends)
            low, high = form(ends[0]), form(ends[1])
        if request.hash_key is not None:
            connection.create_function(  # type: ignore[attr-defined]
                _HASH, 1, hasher(request.hash_key), deterministic=True
            )
        variable = [
            _length(offered[column.source])
            for column in request.columns
            if column.treatment is Treatment.KEEP and base_of(types[column.source])[0] in _VARIABLE
        ]
        width = joined(" + ", variable) if variable else sql("0")
        statement, values = select(
            _DIALECT,
            request.relation.source(_DIALECT, low, high),
            [*map(_expression, request.columns), width],
            cursor=request.cursor,
            window=request.window,
            low=low,
            high=high,
        ).render(_DIALECT.paramstyle)
        cursor = connection.cursor()
        run(cursor, statement, values)
        return Reading(
            close=cursor.close,
            fetch=SizedFetch(cursor.fetchmany, _widths) if variable else cursor.fetchmany,
            encode=RowEncoder(
                [
                    (
                        column.source,
                        "text" if column.treatment is Treatment.HASH else types[column.source],
                    )
                    for column in request.columns
                ],
                remarks=request.remarks,
            ).encode,
            null_cursors=nulls,
            unreachable=unreachable,
            most_rows=MOST_ROWS,
        )

    def measure(
        self, connection: Connection, request: Request, figures: Sequence[Figure]
    ) -> Sequence[Any]:
        types = {column.name: column.type for column in _columns(connection, request)}
        cursor_type = None if request.cursor is None else types[request.cursor]
        ends = request.ends(_DIALECT, cursor_type)
        low, high = None, None
        if request.looks_outside:
            _, _, form = _inspect_cursor(connection, request, cursor_type or "", ends)
            low, high = form(ends[0]), form(ends[1])
        statement, values = select(
            _DIALECT,
            request.relation.source(_DIALECT, low, high),
            expressions(_DIALECT, figures),
            cursor=request.cursor,
            window=request.window,
            low=low,
            high=high,
        ).render(_DIALECT.paramstyle)
        row: Sequence[Any] = first_row(connection, statement, values)
        return row

    def bound(self, text: str, type_: str) -> Any:
        return _bound(text, base_of(type_)[0], " ")

    def interrupter(self, connection: Connection, connect: Connect) -> Callable[[], None]:
        interrupt: Callable[[], None] = connection.interrupt  # type: ignore[attr-defined]
        return interrupt

    def translate(self, error: Exception, what: str) -> EtlError:
        return _translate(error, what)


def _expression(column: Selected) -> Sql:
    name = _DIALECT.name(column.source)
    match column.treatment:
        case Treatment.NULL:
            return sql("NULL")
        case Treatment.HASH:
            return sql(f"{_HASH}(", name, ")")
    return name


def _length(column: SourceColumn) -> Sql:
    length = sql("length(", _DIALECT.name(column.name), ")")
    return length if column.not_null else sql("coalesce(", length, ", 0)")


def _widths(rows: Sequence[Row]) -> Iterable[int]:
    """The widths of rows, which stand last in each."""
    return map(_LAST, rows)


def _columns(connection: Connection, request: Request) -> tuple[SourceColumn, ...]:
    if request.relation.query is None:
        rows = _table_info(connection, request.relation.table)
    else:
        rows = _query_info(connection, request.relation)
    where = ".".join(request.relation.table) or "the query"
    refuse_unknown(request.types, [row[1] for row in rows], where)
    return tuple(
        SourceColumn(
            name=name,
            type=declared_type(name, request.types, postgres_type(declared or "")),
            # An INTEGER PRIMARY KEY is the row's number, which is never NULL.
            not_null=bool(not_null) or (bool(key) and (declared or "").upper() == "INTEGER"),
            portable=False,
        )
        for _, name, declared, not_null, _, key, hidden in rows
        if hidden != 1
    )


def _table_info(connection: Connection, table: Sequence[str]) -> list[Any]:
    schema = table[0] if len(table) > 1 else "main"
    rows = all_rows(
        connection,
        "SELECT * FROM pragma_table_xinfo(?, ?)",
        (table[-1], schema),
    )
    if not rows:
        known = all_rows(
            connection, "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
        )
        raise no_such_table(table[-1], [name for (name,) in known], "the SQLite database")
    return [row[:7] for row in rows]


def _query_info(connection: Connection, relation: Relation) -> list[Any]:
    """Columns of a query keep the declarations of what they come from: a view shows them."""
    query = relation.source(_DIALECT)
    body = sql(*("NULL" if isinstance(part, Value) else part for part in query.parts))
    cursor = connection.cursor()
    cursor.execute("PRAGMA query_only = OFF")
    try:
        view, _ = sql("CREATE TEMP VIEW ", _DIALECT.name(_VIEW), " AS SELECT * FROM ", body).render(
            "qmark"
        )
        cursor.execute(view)
        rows = all_rows(connection, "SELECT * FROM pragma_table_xinfo(?, 'temp')", (_VIEW,))
        cursor.execute(f'DROP VIEW temp."{_VIEW}"')
    finally:
        cursor.execute("PRAGMA query_only = ON")
        cursor.close()
    return [row[:7] for row in rows]


def postgres_type(declared: str) -> str:
    """The PostgreSQL type that a declaration of SQLite means."""
    kind = " ".join(declared.upper().split())
    base, _, rest = kind.partition("(")
    base, args = base.strip(), rest.partition(")")[0].replace(" ", "")
    if base in ("NUMERIC", "DECIMAL") and args.replace(",", "").isdigit():
        return f"numeric({args})"
    if base in _EXACT:
        return _EXACT[base]
    if "INT" in base:
        return "bigint"
    if "CHAR" in base:
        return f"character varying({args})" if args.isdigit() and int(args) else "text"
    if "BLOB" in base:
        return "bytea"
    if any(word in base for word in ("REAL", "FLOA", "DOUB")):
        return "double precision"
    return "text"


def _inspect_cursor(
    connection: Connection,
    request: Request,
    type_: str,
    ends: tuple[str | None, str | None],
) -> tuple[int, int | None, Callable[[str | None], Any]]:
    """How many rows have no cursor value, how many lie ahead of the clock, and how a bound must look to
    compare with the others.
    """
    base = base_of(type_)[0]
    name = _DIALECT.name(request.cursor or "")
    forms = _FORMS.get(base, {})
    ahead: list[Sql] = []
    if not forms:
        stored = joined(", ", [sql(Value(kind)) for kind in _STORED.get(base, ("text",))])
        fits = sql("typeof(", name, ") IN (", stored, ")")
    else:
        # One look at each row: rows of the second form count in the upper half of the sum.
        weighed = [
            sql(" WHEN ", name, " GLOB ", Value(pattern), f" THEN {weight}")
            for pattern, weight in zip(forms.values(), (1, _SECOND), strict=False)
        ]
        fits = sql("CASE", *weighed, " END")
        if request.clock is not None:
            ahead = [sql(name, " > ", Value(_bound(request.clock, base, gap))) for gap in forms]
    counts = joined(", ", [_count(condition) for condition in (fits, *ahead)])
    low, high = (_bound(text, base, " ") for text in ends)
    statement, values = sql(
        "SELECT count(*) - count(", name, "), count(", name, "), ", counts, " FROM ",
        request.relation.source(_DIALECT, low, high),
    ).render("qmark")  # fmt: skip
    nulls, present, fit, *later = first_row(connection, statement, values)
    fitting = [fit % _SECOND, fit // _SECOND][: max(1, len(forms))]
    if present not in fitting and present:
        raise DataError(
            f"the cursor {request.cursor} does not have one form of {type_} in all rows, so its order is not "
            f"that of its values ({present:,} rows, of which {', '.join(f'{n:,}' for n in fitting)} have a known "
            "form)",
            remedy="store dates as YYYY-MM-DD, times as YYYY-MM-DD HH:MM:SS[.ffffff] (in UTC with +00:00 if they "
            "have an offset), integers as integers; or read with window='full'",
        )
    place = fitting.index(present) if present else 0
    separator = list(forms)[place] if forms else " "
    unreachable = later[place] if later else None
    return nulls, unreachable, lambda text: _bound(text, base, separator)


def _count(condition: Sql) -> Sql:
    return sql("coalesce(sum(", condition, "), 0)")


def _bound(text: str | None, base: str, separator: str) -> Any:
    if text is None:
        return None
    if base in _INTEGERS:
        return int(text)
    if base.startswith("timestamp"):
        # Without zeros at the end, a fraction orders as text like all ways to write it.
        moment = datetime.fromisoformat(text)
        offset = "" if moment.tzinfo is None else "+00:00"
        if moment.tzinfo is not None:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
        shown = moment.isoformat(separator)
        return (shown.rstrip("0") if moment.microsecond else shown) + offset
    if base in ("numeric", "double precision"):
        return float(text)
    return text


def _translate(error: Exception, what: str) -> EtlError:
    code = getattr(error, "sqlite_errorcode", None)
    message = str(error)
    if code is None:
        if "decode" in message:
            return DataError(
                f"{what}: text that is no valid UTF-8",
                remedy="mend it in the source, or read a query that casts the column to BLOB",
            )
        return by_kind(error, what)
    primary = code & 0xFF
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return TransientError(f"{what}: the database is locked by a writer")
    if primary == sqlite3.SQLITE_INTERRUPT:
        return TransientError(f"{what}: interrupted")
    if primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM):
        return ConnectionLost(
            f"{what}: the database file cannot be read ({getattr(error, 'sqlite_errorname', code)})",
            remedy="check that the file exists on this worker and that its account may read it",
        )
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return CatalogError(f"{what}: the file is damaged or is no SQLite database")
    if message.startswith("user-defined function"):
        return DataError(
            f"{what}: text that is no valid UTF-8 cannot be hashed",
            remedy="mend it in the source, or read a query that casts the column to BLOB",
        )
    if message.startswith(("no such table", "no such column")):
        return CatalogError(f"{what}: {message}", remedy="check the names")
    if primary == sqlite3.SQLITE_ERROR:
        return CatalogError(f"{what}: SQLite refused the statement")
    return EtlError(f"{what}: SQLite failed ({getattr(error, 'sqlite_errorname', code)})")
