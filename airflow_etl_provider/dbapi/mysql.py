"""MySQL and MariaDB, over mysqlclient, PyMySQL or mysql-connector-python.

The server itself writes each row as COPY text, in one expression, so a driver hands over one value per
row instead of one per column: two to three times faster than fetching columns, and nothing passes
through a driver's conversions, some of which make NULL of a zero date. Columns that can be larger than
the server allows a computed value to be travel as they are.

Types: integers as the smallest PostgreSQL integer that holds them (``bigint unsigned`` is
``numeric(20,0)``), ``tinyint(1)`` is ``boolean`` and a value beside 0 and 1 is refused, ``timestamp`` is an
instant, ``datetime`` has no zone, ``time`` is an ``interval`` since it counts to 838 hours, ``bit(n)`` is
``bit(n)``, ``enum`` and ``set`` are text, ``year`` is ``smallint``. ``types`` may declare ``smallint`` for
``tinyint(1)``, another integer type for an integer, ``time without time zone`` for ``time``, ``uuid`` for
``binary(16)``, and for text whatever reads exactly from text: ``uuid``, ``json``, ``jsonb``, ``inet`` and
others. The server of the target checks each value. Geometry is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ConnectionLost,
    DataError,
    EtlError,
    TransientError,
)
from airflow_etl_provider.core.ports import SourceColumn
from airflow_etl_provider.dbapi.copytext import base_of
from airflow_etl_provider.dbapi.driver import (
    Connection,
    Row,
    all_rows,
    error_kind,
    first_row,
    module_of,
    run,
)
from airflow_etl_provider.dbapi.errors import by_kind
from airflow_etl_provider.dbapi.flavour import (
    MOST_ROWS,
    Connect,
    Reading,
    Request,
    declared_type,
    no_such_table,
    refuse_unknown,
    text_of,
)
from airflow_etl_provider.dbapi.statements import (
    Dialect,
    Relation,
    Sql,
    Value,
    joined,
    no_rows,
    select,
    sql,
)

#: A fetch never holds more than this, whatever the rows are.
_MOST_BYTES = 64 * 1024 * 1024
_NULL = "X'5C4E'"
_TAB = "X'09'"
#: COPY's escapes, in hexadecimal because a backslash in a literal depends on sql_mode.
_ESCAPES = (("5C", "5C5C"), ("09", "5C74"), ("0A", "5C6E"), ("0D", "5C72"))
_SESSION = (
    "SET SESSION time_zone = '+00:00'",
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    # A target that is slow for a while must not look like a dead client.
    "SET SESSION net_write_timeout = 3600",
)
_INTEGERS = {
    "tinyint": ("smallint", "smallint"),
    "smallint": ("smallint", "integer"),
    "mediumint": ("integer", "integer"),
    "int": ("integer", "bigint"),
    "bigint": ("bigint", "numeric(20,0)"),
}
_READ_FROM_TEXT = (
    "text",
    "uuid",
    "json",
    "jsonb",
    "inet",
    "cidr",
    "macaddr",
    "xml",
    "citext",
    "ltree",
)
_GEOMETRY = (
    "geometry",
    "point",
    "linestring",
    "polygon",
    "multipoint",
    "multilinestring",
    "multipolygon",
    "geomcollection",
    "geometrycollection",
    "vector",
)
_FIELD_TYPES = {
    0: "decimal",
    1: "tinyint",
    2: "smallint",
    3: "int",
    4: "float",
    5: "double",
    7: "timestamp",
    8: "bigint",
    9: "mediumint",
    10: "date",
    11: "time",
    12: "datetime",
    13: "year",
    16: "bit",
    245: "json",
    246: "decimal",
    247: "enum",
    248: "set",
    255: "geometry",
}
_UNSIGNED = 32
_NOT_NULL = 1


@dataclass(frozen=True, slots=True)
class _Native:
    """A column as MySQL declares it; sizes are ``None`` where they are not known."""

    name: str
    kind: str
    declared: str
    not_null: bool
    size: int | None
    precision: int | None
    scale: int | None
    charset: str | None


@dataclass(frozen=True, slots=True)
class _Column:
    """A column as it is carried.

    :param form: the text in SQL, ``None`` if it cannot be carried.
    :param width: bytes of its COPY text at most.
    :param binary: bytes, which become hexadecimal.
    """

    source: SourceColumn
    form: Callable[[Sql], Sql] | None
    width: int
    kind: str
    binary: bool = False


@dataclass(frozen=True, slots=True)
class MySql:
    """MySQL 8.0 or newer, MariaDB 10.5 or newer.

    :param namespace: of the OpenLineage dataset, ``mysql://host:port``.
    :param zero_dates: ``fail`` refuses a date with a zero day or month by row and column; ``null`` stores
        NULL instead, by the user's explicit choice.
    """

    namespace: str
    zero_dates: str = "fail"

    def __post_init__(self) -> None:
        if self.zero_dates not in ("fail", "null"):
            raise ConfigurationError(f"zero_dates={self.zero_dates!r}: use 'fail' or 'null'")

    @property
    def dialect(self) -> Dialect:
        return Dialect(quotes="``", paramstyle="format", backslash=True)

    def describe(
        self, connection: Connection, request: Request
    ) -> tuple[tuple[SourceColumn, ...], tuple[str, str]]:
        _use_utf8(connection)
        columns, name = self._columns(connection, request)
        return tuple(column.source for column in columns), (self.namespace, name)

    def begin(self, connection: Connection) -> datetime:
        _use_utf8(connection)
        cursor = connection.cursor()
        for statement in _SESSION:
            cursor.execute(statement)
        cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        cursor.close()
        (now,) = first_row(connection, "SELECT CAST(UTC_TIMESTAMP(6) AS CHAR)")
        return datetime.fromisoformat(text_of(now)).replace(tzinfo=UTC)

    def read(self, connection: Connection, request: Request) -> Reading:
        found, _ = self._columns(connection, request)
        by_name = {column.source.name: column for column in found}
        columns = [by_name[name] for name in request.columns]
        for column in columns:
            if column.form is None:
                raise CatalogError(
                    f"column {column.source.name} of type {column.kind} cannot be carried to PostgreSQL",
                    remedy="leave it out with columns=[...], or read a query that makes text of it: "
                    "ST_AsText(...)",
                )
        (packet,) = first_row(connection, "SELECT @@max_allowed_packet")
        plan = _Plan.of(columns, int(packet) // 2)
        low, high = _bounds(request, by_name)
        nulls = self._null_cursors(connection, request, by_name, low, high)
        statement = _with_variables(
            connection,
            select(
                self.dialect,
                request.relation,
                plan.expressions(self.dialect, zero_dates=self.zero_dates),
                cursor=request.cursor,
                window=request.window,
                low=low,
                high=high,
            ),
        )
        cursor = _streaming(connection)
        run(cursor, statement)
        return Reading(
            close=lambda: _close(cursor),
            fetch=cursor.fetchmany,
            encode=plan.encode,
            null_cursors=nulls,
            most_rows=plan.most_rows,
        )

    def interrupter(self, connection: Connection, connect: Connect) -> Callable[[], None]:
        # Asked now: while a statement runs, a driver may refuse every other call.
        (number,) = first_row(connection, "SELECT CONNECTION_ID()")

        def kill() -> None:
            killer = connect()
            try:
                cursor = killer.cursor()
                # A number of the server's own; KILL takes no parameters everywhere.
                cursor.execute(f"KILL QUERY {int(number)}")
                cursor.close()
            finally:
                killer.close()

        return kill

    def translate(self, error: Exception, what: str) -> EtlError:
        return _translate(error, what)

    def _columns(self, connection: Connection, request: Request) -> tuple[list[_Column], str]:
        (database,) = first_row(connection, "SELECT DATABASE()")
        if request.relation.query is None:
            natives, name = _table_columns(connection, request.relation.table, database)
        else:
            natives = _query_columns(connection, self.dialect, request.relation)
            name = f"{text_of(database or '')}.query"
        refuse_unknown(request.types, [native.name for native in natives], name)
        return [_carried(native, request) for native in natives], name

    def _null_cursors(
        self,
        connection: Connection,
        request: Request,
        columns: dict[str, _Column],
        low: Any,
        high: Any,
    ) -> int:
        if request.cursor is None:
            return 0
        cursor = self.dialect.name(request.cursor)
        where = sql(cursor, " IS NULL")
        if columns[request.cursor].kind in ("date", "datetime", "timestamp"):
            # Zero dates sort before everything, so no window would hold them either.
            where = sql(where, " OR ", cursor, " < ", Value("0001-01-01"))
        query = sql(
            "SELECT count(*) FROM ",
            request.relation.source(self.dialect, low, high),
            " WHERE ",
            where,
        )
        (count,) = first_row(connection, _with_variables(connection, query))
        return int(count)


# -- the catalog --------------------------------------------------------------------------------------


def _table_columns(
    connection: Connection, table: Sequence[str], database: Any
) -> tuple[list[_Native], str]:
    if len(table) > 2 or (len(table) == 1 and database is None):
        raise ConfigurationError(
            f"{'.'.join(table)!r} is not a table of this server",
            remedy="write it as database.table, or name a database in the connection (schema field)",
        )
    schema = table[0] if len(table) == 2 else text_of(database)
    rows = all_rows(
        connection,
        "SELECT column_name, data_type, column_type, is_nullable, character_maximum_length,"
        " numeric_precision, numeric_scale, character_set_name, datetime_precision"
        " FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"
        " ORDER BY ordinal_position",
        (schema, table[-1]),
    )
    if not rows:
        known = all_rows(
            connection,
            "SELECT table_name FROM information_schema.tables WHERE table_schema = %s",
            (schema,),
        )
        raise no_such_table(
            table[-1], [text_of(name) for (name,) in known], f"MySQL database {schema}"
        )
    natives = [
        _Native(
            name=text_of(name),
            kind=text_of(kind).lower(),
            declared=text_of(declared).lower(),
            not_null=text_of(nullable) == "NO",
            size=None if size is None else int(size),
            precision=None if precision is None else int(precision),
            scale=None if scale is None else int(scale),
            charset=None if charset is None else text_of(charset),
        )
        for name, kind, declared, nullable, size, precision, scale, charset, _ in rows
    ]
    return natives, f"{schema}.{table[-1]}"


def _query_columns(connection: Connection, dialect: Dialect, relation: Relation) -> list[_Native]:
    """Columns of a query, from the description of its result; text is told from bytes by the server."""
    cursor = connection.cursor()
    run(cursor, _with_variables(connection, no_rows(dialect, relation)))
    found = [
        (text_of(column[0]), column, _flags(cursor, number))
        for number, column in enumerate(cursor.description or ())
    ]
    cursor.fetchall()
    cursor.close()
    names = [sql("charset(", dialect.name("etl_batch", name), ")") for name, _, _ in found]
    # The outer join gives one row of NULLs, which keep their character sets.
    query = sql(
        "SELECT ",
        joined(", ", names),
        " FROM (SELECT 1 AS one) etl_one LEFT JOIN ",
        relation.source(dialect),
        " ON 1 = 0",
    )
    charsets = first_row(connection, _with_variables(connection, query))
    natives = []
    for (name, column, flags), charset in zip(found, charsets, strict=True):
        kind = _FIELD_TYPES.get(column[1], "text")
        length, scale = column[3], column[5]
        signs = (0 if flags & _UNSIGNED else 1) + (1 if scale else 0)
        natives.append(
            _Native(
                name=name,
                kind="blob" if kind == "text" and text_of(charset) == "binary" else kind,
                declared=("tinyint(1)" if kind == "tinyint" and length == 1 else kind)
                + (" unsigned" if flags & _UNSIGNED else ""),
                not_null=bool(flags & _NOT_NULL),
                size=None,
                precision=None if not length else length - (signs if kind == "decimal" else 0),
                scale=scale,
                charset=text_of(charset),
            )
        )
    return natives


def _flags(cursor: Any, number: int) -> int:
    """The field's flags: each driver keeps them elsewhere."""
    if hasattr(cursor, "description_flags"):
        return int(cursor.description_flags[number])
    if len(cursor.description[number]) > 7:
        return int(cursor.description[number][7])
    return int(cursor._result.fields[number].flags)


def _carried(native: _Native, request: Request) -> _Column:
    type_, form, width, allowed, binary = _mapping(native)
    return _Column(
        source=SourceColumn(
            name=native.name,
            type=declared_type(native.name, request.types, type_, allowed),
            not_null=native.not_null,
            portable=False,
        ),
        form=_hexadecimal
        if native.kind == "binary" and (request.types or {}).get(native.name) == "uuid"
        else form,
        width=width,
        kind=native.kind,
        binary=binary,
    )


_Mapping = tuple[str, Callable[[Sql], Sql] | None, int, tuple[str, ...], bool]


def _mapping(native: _Native) -> _Mapping:
    """PostgreSQL type, text in SQL, greatest width, types that may be declared, whether bytes."""
    kind, size = native.kind, native.size
    if kind in _INTEGERS:
        integers = ("smallint", "integer", "bigint", "numeric")
        if native.declared == "tinyint(1)":
            return "boolean", _plain, 4, integers, False
        return (
            _INTEGERS[kind]["unsigned" in native.declared],
            _plain,
            21,
            (*integers, "boolean"),
            False,
        )
    if kind == "decimal":
        exact = f"numeric({native.precision},{native.scale})"
        known = native.precision is not None and native.scale is not None
        return exact if known else "numeric", _plain, 70, ("numeric",), False
    if kind == "bit":
        bits = native.precision or 64
        return f"bit({bits})", _bit_form(bits), bits, (), False
    if kind in ("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob"):
        uuid = ("uuid",) if native.declared == "binary(16)" else ()
        return "bytea", _bytes, 3 + 2 * (_UNBOUNDED if size is None else size), uuid, True
    if kind in _SIMPLE:
        return (*_SIMPLE[kind], False)
    if kind in _GEOMETRY:
        return kind, None, 0, (), False
    length = f"({size})"
    varying = kind in ("char", "varchar") and size
    return (
        f"character varying{length}" if varying else "json" if kind == "json" else "text",
        _text,
        # A character is up to four bytes, each may be escaped.
        8 * (_UNBOUNDED if size is None else size),
        _READ_FROM_TEXT,
        False,
    )


_UNBOUNDED = 2**32


def _plain(column: Sql) -> Sql:
    return column


def _single(column: Sql) -> Sql:
    """A FLOAT shows six digits; as DOUBLE it shows all, which ``real`` rounds back exactly."""
    return sql(column, " + 0.0e0")


def _instant(column: Sql) -> Sql:
    return sql("CONCAT(", column, ", '+00')")


def _bytes(column: Sql) -> Sql:
    return sql("CONCAT(X'5C5C78', LOWER(HEX(", column, ")))")


def _hexadecimal(column: Sql) -> Sql:
    return sql("LOWER(HEX(", column, "))")


def _bit_form(bits: int) -> Callable[[Sql], Sql]:
    return lambda column: sql("LPAD(BIN(", column, f" + 0), {bits}, '0')")


def _text(column: Sql) -> Sql:
    escaped = sql("CAST(CONVERT(", column, " USING utf8mb4) AS BINARY)")
    for plain, escape in _ESCAPES:
        escaped = sql("REPLACE(", escaped, f", X'{plain}', X'{escape}')")
    return escaped


_SIMPLE: dict[str, tuple[str, Callable[[Sql], Sql], int, tuple[str, ...]]] = {
    "float": ("real", _single, 30, ("double precision",)),
    "double": ("double precision", _plain, 30, ()),
    "date": ("date", _plain, 10, ()),
    "datetime": ("timestamp without time zone", _plain, 26, ()),
    "timestamp": ("timestamp with time zone", _instant, 32, ()),
    "time": ("interval", _plain, 17, ("time without time zone",)),
    "year": ("smallint", _plain, 4, ("integer", "bigint")),
    "uuid": ("uuid", _plain, 36, ()),
    "inet4": ("inet", _plain, 15, ()),
    "inet6": ("inet", _plain, 39, ()),
}
_DATES = ("date", "datetime", "timestamp")


# -- rows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """Columns in runs: a run is one value that the server puts together, or one wide column as it is."""

    runs: tuple[tuple[_Column, ...], ...]
    raw: tuple[bool, ...]
    most_rows: int

    @classmethod
    def of(cls, columns: Sequence[_Column], widest: int) -> _Plan:
        """:param widest: bytes that the server may put together."""
        runs: list[list[_Column]] = []
        raw: list[bool] = []
        room = 0
        for column in columns:
            width = column.width + 1
            if width > widest:
                runs.append([column])
                raw.append(True)
                room = 0
            elif width <= room:
                runs[-1].append(column)
                room -= width
            else:
                runs.append([column])
                raw.append(False)
                room = widest - width
        widths = sum(column.width + 1 for column in columns)
        return cls(
            tuple(map(tuple, runs)),
            tuple(raw),
            min(MOST_ROWS, max(1, _MOST_BYTES // widths)),
        )

    def expressions(self, dialect: Dialect, *, zero_dates: str) -> list[Sql]:
        found = []
        for columns, raw in zip(self.runs, self.raw, strict=True):
            if raw:
                found.append(dialect.name(columns[0].source.name))
                continue
            texts = [_nullable(dialect, column, zero_dates) for column in columns]
            found.append(sql("CONCAT(X'', ", joined(f", {_TAB}, ", texts), ")"))
        return found

    def encode(self, rows: Sequence[Row], first: int) -> bytes:
        """The rows as COPY text; what cannot be stored is refused by row and column."""
        if self.raw == (False,):
            lines: Sequence[Any] = list(chain.from_iterable(rows))
            if None in lines:
                raise self._too_large(first + list(lines).index(None))
        else:
            lines = [self._line(row, number) for number, row in enumerate(rows, first)]
        block = b"\n".join(lines) + b"\n"
        if b"\0" in block or b"-00" in block or b"0000-" in block:
            self._check(lines, first)
        return block

    def _line(self, row: Row, number: int) -> bytes:
        parts = []
        for value, raw, columns in zip(row, self.raw, self.runs, strict=True):
            if not raw and value is None:
                raise self._too_large(number)
            parts.append(_raw_text(value, binary=columns[0].binary) if raw else value)
        return b"\t".join(parts)

    def _too_large(self, number: int) -> DataError:
        return DataError(
            f"row {number} of the source is larger than the server may put together",
            remedy="raise max_allowed_packet on the source's server",
        )

    def _check(self, lines: Sequence[bytes], first: int) -> None:
        columns = list(chain.from_iterable(self.runs))
        dates = [number for number, column in enumerate(columns) if column.kind in _DATES]
        for number, line in enumerate(lines, first):
            fields = bytes(line).split(b"\t") if b"\0" in line or dates else []
            for place in dates:
                date = fields[place][:10]
                if date[:4] == b"0000" or date[5:7] == b"00" or date[8:] == b"00":
                    raise DataError(
                        f"row {number} of the source, column {columns[place].source.name}: a date with a zero "
                        "year, month or day",
                        remedy="mend it in the source, or choose zero_dates='null' to store NULL instead",
                    )
            for field, column in zip(fields, columns, strict=False):
                if b"\0" in field:
                    raise DataError(
                        f"row {number} of the source, column {column.source.name}: text with a NUL character, "
                        "which PostgreSQL cannot hold",
                        remedy="mend it in the source, or read a query that removes it",
                    )


def _nullable(dialect: Dialect, column: _Column, zero_dates: str) -> Sql:
    name = dialect.name(column.source.name)
    form = column.form or _plain
    if zero_dates == "null" and column.kind in _DATES:
        zero = sql("YEAR(", name, ") = 0 OR MONTH(", name, ") = 0 OR DAYOFMONTH(", name, ") = 0")
        return sql("IFNULL(IF(", zero, ", NULL, ", form(name), f"), {_NULL})")
    return sql("IFNULL(", form(name), f", {_NULL})")


def _raw_text(value: Any, *, binary: bool) -> bytes:
    if value is None:
        return b"\\N"
    if binary:
        return b"\\\\x" + bytes(value).hex().encode()
    text = value.encode() if isinstance(value, str) else bytes(value)
    return (
        text.replace(b"\\", b"\\\\")
        .replace(b"\t", b"\\t")
        .replace(b"\n", b"\\n")
        .replace(b"\r", b"\\r")
    )


def _bounds(request: Request, columns: dict[str, _Column]) -> tuple[Any, Any]:
    if request.cursor is None:
        return None, None
    type_ = columns[request.cursor].source.type
    return _bound(request.window.low, type_), _bound(request.window.high, type_)


def _bound(text: str | None, type_: str) -> Any:
    if text is None:
        return None
    if type_ == "timestamp with time zone":
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    if (
        base_of(type_)[0] in ("smallint", "integer", "bigint", "numeric")
        and text.lstrip("-").isdigit()
    ):
        return int(text)
    return text


def _with_variables(connection: Connection, query: Sql) -> str:
    """The text of *query* with its values in variables of the session.

    Without parameters no driver looks for placeholders, which a name or a user's query may resemble and
    which the drivers escape in different ways.
    """
    parts: list[str] = []
    for number, part in enumerate(query.parts):
        if isinstance(part, Value):
            cursor = connection.cursor()
            cursor.execute(f"SET @etl_{number:d} = %s", (part.value,))
            cursor.close()
            parts.append(f"@etl_{number:d}")
        else:
            parts.append(part)
    return "".join(parts)


# -- drivers ------------------------------------------------------------------------------------------


def _use_utf8(connection: Any) -> None:
    """Have server and driver agree on UTF-8; each driver has its own name for that."""
    for method in ("set_charset_collation", "set_character_set", "set_charset"):
        if hasattr(connection, method):
            getattr(connection, method)("utf8mb4")
            return


def _streaming(connection: Any) -> Any:
    """A cursor whose rows stay on the server until they are fetched."""
    driver = module_of(connection)
    cursors = sys.modules.get(f"{driver.__name__}.cursors")
    if cursors is not None and hasattr(cursors, "SSCursor"):
        return connection.cursor(cursors.SSCursor)
    return connection.cursor(buffered=False)


def _close(cursor: Any) -> None:
    """Close a cursor, also on a connection that is lost.

    PyMySQL would go on to look for the rest of the rows whenever the cursor is forgotten.
    """
    try:
        cursor.close()
    finally:
        result: Any = getattr(cursor, "_result", None)
        if result is not None and hasattr(result, "unbuffered_active"):
            result.unbuffered_active = False


_LOST = frozenset(
    {1040, 1042, 1043, 1053, 1077, 1079, 1080, 1081, 1152, 1153, 1158, 1159, 1160, 1161, 1184}
    | {1927, 2000, 2002, 2003, 2005, 2006, 2012, 2013, 2014, 2026, 2055}
)
_PASSING = frozenset({1021, 1037, 1041, 1203, 1205, 1206, 1213, 1226, 1317, 1412, 1969, 3024, 3101})
_ACCESS = frozenset({1044, 1045, 1049, 1251, 1698})
_STRUCTURE = frozenset({1046, 1051, 1054, 1109, 1142, 1143, 1146, 1227, 1356})


def _translate(error: Exception, what: str) -> EtlError:
    code = getattr(error, "errno", None) or (error.args[0] if error.args else None)
    if not isinstance(code, int):
        return by_kind(error, what)
    if code in _LOST:
        return ConnectionLost(
            f"{what}: the connection to MySQL failed ({code})",
            remedy="check that the server is up and reachable; Airflow retries by itself",
        )
    if code in _PASSING:
        return TransientError(f"{what}: the server ended the statement ({code})")
    if code in _ACCESS:
        return ConfigurationError(
            f"{what}: MySQL refused login or database ({code})",
            remedy="check login, password and database (schema field) of the Airflow connection",
        )
    if code in _STRUCTURE:
        message = getattr(error, "msg", None) or (error.args[1] if len(error.args) > 1 else "")
        return CatalogError(
            f"{what}: {message} ({code})",
            remedy="check the names and the privileges of the connection's role",
        )
    if code == 1064:
        return CatalogError(f"{what}: MySQL cannot read the query ({code})")
    if error_kind(error) == "DataError":
        return DataError(f"{what}: MySQL refused a value ({code})")
    return EtlError(f"{what}: MySQL failed ({code})")
