"""MySQL's columns: what the catalog says of them, what they are in PostgreSQL, and their COPY text in SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.ports import SourceColumn
from airflow_etl_provider.dbapi.driver import Connection, all_rows, first_row, run
from airflow_etl_provider.dbapi.flavour import (
    Request,
    declared_type,
    no_such_table,
    refuse_unknown,
    text_of,
)
from airflow_etl_provider.dbapi.mysql_session import with_variables
from airflow_etl_provider.dbapi.statements import Dialect, Relation, Sql, joined, no_rows, sql

#: COPY's escapes, in hexadecimal because a backslash in a literal depends on sql_mode.
_ESCAPES = (("5C", "5C5C"), ("09", "5C74"), ("0A", "5C6E"), ("0D", "5C72"))
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
class Column:
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

    def shown(self, column: Sql) -> Sql:
        """The text without COPY's escapes, which is what is hashed."""
        if self.form is _text:
            return column
        if self.form is _bytes:
            return sql("CONCAT(X'5C78', LOWER(HEX(", column, ")))")
        return (self.form or plain)(column)


def columns_of(
    connection: Connection, dialect: Dialect, request: Request
) -> tuple[list[Column], str]:
    """The columns of what is read, and its name as a dataset.

    :raises CatalogError: no such table, or a type declared for a column that does not exist.
    """
    (database,) = first_row(connection, "SELECT DATABASE()")
    if request.relation.query is None:
        natives, name = _table_columns(connection, request.relation.table, database)
    else:
        natives = _query_columns(connection, dialect, request.relation)
        name = f"{text_of(database or '')}.query"
    refuse_unknown(request.types, [native.name for native in natives], name)
    return [_carried(native, request) for native in natives], name


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
    run(cursor, with_variables(connection, no_rows(dialect, relation)))
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
    charsets = first_row(connection, with_variables(connection, query))
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


def _carried(native: _Native, request: Request) -> Column:
    type_, form, width, allowed, binary = _mapping(native)
    return Column(
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
            return "boolean", plain, 4, integers, False
        return (
            _INTEGERS[kind]["unsigned" in native.declared],
            plain,
            21,
            (*integers, "boolean"),
            False,
        )
    if kind == "decimal":
        exact = f"numeric({native.precision},{native.scale})"
        known = native.precision is not None and native.scale is not None
        return exact if known else "numeric", plain, 70, ("numeric",), False
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


def plain(column: Sql) -> Sql:
    """The text that the server itself gives a value."""
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
    "double": ("double precision", plain, 30, ()),
    "date": ("date", plain, 10, ()),
    "datetime": ("timestamp without time zone", plain, 26, ()),
    "timestamp": ("timestamp with time zone", _instant, 32, ()),
    "time": ("interval", plain, 17, ("time without time zone",)),
    "year": ("smallint", plain, 4, ("integer", "bigint")),
    "uuid": ("uuid", plain, 36, ()),
    "inet4": ("inet", plain, 15, ()),
    "inet6": ("inet", plain, 39, ()),
}
DATES = ("date", "datetime", "timestamp")
