"""A SELECT that a user wrote over the staged batch: what it returns and reads, before any row is read.

The batch stands in it as the relation ``batch``, a common table expression around the user's text, which is
never put together with the staged table's name. The server is asked in a transaction that can write nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.pq.abc import PGresult

from airflow_etl_provider.core.errors import CatalogError, ConfigurationError, EtlError
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.suggest import nearest
from airflow_etl_provider.core.transform import BySql
from airflow_etl_provider.postgres.catalog import CatalogColumn, columns_of_result, scalar
from airflow_etl_provider.postgres.errors import sqlstate_of, translated_errors
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.relation import is_query
from airflow_etl_provider.postgres.session import dataset_of
from airflow_etl_provider.postgres.statements import ident, names

#: Literals of every kind, quoted names, comments and casts are passed over.
_PLACES = re.compile(
    r"""
      (?<!\w)[eE]'(?:[^'\\]|\\.|'')*'
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | --[^\n]*
    | /\*.*?\*/
    | \$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?\$(?P=tag)\$
    | ::
    | (?P<end>;)
    | (?<![\w:]):(?P<name>[A-Za-z_]\w*)
    """,
    re.VERBOSE | re.DOTALL,
)
_VALUES = (str, bool, int, float, Decimal, date, datetime, time, timedelta, UUID, type(None))
#: A write, and a wish to be let write after all.
_READ_ONLY = ("25006", "25001")
_READS_ONLY = (
    "write one SELECT (or WITH … SELECT) that only reads; what it returns becomes the batch"
)


@dataclass(frozen=True, slots=True)
class Described:
    """What a SELECT returns, and what it reads.

    ``origins`` are the columns of the staged batch that columns of the result are, by name; ``reads`` the
    OpenLineage datasets of all other tables.
    """

    columns: tuple[CatalogColumn, ...]
    origins: Mapping[str, str]
    reads: tuple[tuple[str, str], ...]


def over_batch(how: BySql, staging: TableName, columns: Sequence[str]) -> sql.Composed:
    """What stands behind ``FROM`` for what the SELECT makes of *columns* of *staging*.

    :raises ConfigurationError: it is no SELECT or more than one statement, or its parameters are not those
        that were given.
    """
    batch = sql.SQL("SELECT {} FROM {}").format(names(columns), ident(staging))
    # The line breaks end a comment that the text may end with.
    return sql.SQL(
        "(WITH batch AS NOT MATERIALIZED ({}) SELECT * FROM (\n{}\n) AS etl_made) AS etl_transform"
    ).format(batch, _filled(how))


def _filled(how: BySql) -> sql.Composed:
    """The text with its parameters in their places, as literals of the server."""
    if not is_query(how.text):
        raise ConfigurationError(
            "the SQL of the transform begins with neither SELECT nor WITH", remedy=_READS_ONLY
        )
    found = list(_pieces(how.text))
    used = {piece.name for piece in found if isinstance(piece, _Parameter)}
    for name in sorted(used - set(how.parameters)):
        raise ConfigurationError(
            f"the SQL of the transform names :{name}, which is not among its parameters{nearest(name, how.parameters)}",
            remedy=f"give it with parameters={{'{name}': ...}}; a slice of an array is written [1 : n]",
        )
    for name in sorted(set(how.parameters) - used):
        raise ConfigurationError(
            f"the SQL of the transform does not use its parameter {name!r}{nearest(name, used)}",
            remedy=f"write :{name} where its value belongs, or leave it out",
        )
    return sql.Composed(
        # The user's own statement, as they wrote it.
        [sql.SQL(piece) if isinstance(piece, str) else _literal(how, piece.name) for piece in found]
    )


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str


def _pieces(text: str) -> Iterator[str | _Parameter]:
    text = text.rstrip().rstrip(";")
    position = 0
    for match in _PLACES.finditer(text):
        if match["end"] is not None:
            raise ConfigurationError(
                "the SQL of the transform holds more than one statement", remedy=_READS_ONLY
            )
        if match["name"] is not None:
            yield text[position : match.start()]
            yield _Parameter(match["name"])
            position = match.end()
    yield text[position:]


def _literal(how: BySql, name: str) -> sql.Literal:
    value = how.parameters[name]
    items = value if isinstance(value, list | tuple) else [value]
    strange = [item for item in items if not isinstance(item, _VALUES)]
    if strange:
        raise ConfigurationError(
            f"parameter {name!r} is a {type(strange[0]).__name__}, which is no value of SQL",
            remedy="give a text, a number, a date or time, a boolean, null, or a list of such",
        )
    return sql.Literal(list(value) if isinstance(value, tuple) else value)


def describe(
    connection: psycopg.Connection[Any], relation: sql.Composable, staging: TableName
) -> Described:
    """Ask the server what *relation* returns and reads; no row is read, and nothing can be written.

    :param connection: in autocommit, with an empty search path, which it has again afterwards.
    :raises ConfigurationError: the text is no single SELECT, or it writes.
    :raises CatalogError: a table, column, function or privilege that it needs is missing.
    """
    with reading_only("describing the SQL of the transform"), connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # Names are looked up as in any session of the role.
        connection.execute(
            "SELECT set_config('search_path', reset_val, true) FROM pg_settings"
            " WHERE name = 'search_path'"
        )
        with _with_remedy(), translated_errors("the SQL of the transform"):
            # In binary it goes by a protocol that takes one statement at a time.
            result = connection.execute(
                sql.SQL("SELECT * FROM {} LIMIT 0").format(relation), binary=True
            ).pgresult
            plan = connection.execute(
                sql.SQL("EXPLAIN (VERBOSE, FORMAT JSON) SELECT * FROM {}").format(relation),
                binary=True,
            ).fetchone()
        connection.execute("SET LOCAL search_path = pg_catalog")
        if result is None or plan is None:
            raise ConfigurationError("the SQL of the transform returns nothing", remedy=_READS_ONLY)
        columns = columns_of_result(connection, result, "the SQL of the transform")
        origins = _origins(connection, result, columns, staging)
        return Described(columns, origins, _reads(connection, plan[0], staging))


@contextmanager
def reading_only(what: str) -> Iterator[None]:
    """Say of the SQL that it writes, where the server refuses that in a transaction that only reads."""
    try:
        yield
    except EtlError as error:
        if error.sqlstate in _READ_ONLY:
            raise ConfigurationError(
                f"{what}: it changes data, and a transform only reads ({error.what})",
                remedy=_READS_ONLY,
            ) from None
        raise


@contextmanager
def _with_remedy() -> Iterator[None]:
    """Say what to do, by the server's own hint where it names what it knows: that holds no values."""
    try:
        yield
    except CatalogError as error:
        hint = _hint_of(error.__context__)
        raise CatalogError(
            error.what, remedy=hint or error.remedy or f"mend the SQL: {_READS_ONLY}"
        ) from None


def _hint_of(error: BaseException | None) -> str | None:
    if not isinstance(error, psycopg.Error) or sqlstate_of(error) not in ("42703", "42883"):
        return None
    return error.diag.message_hint


def _origins(
    connection: psycopg.Connection[Any],
    result: PGresult,
    columns: Sequence[CatalogColumn],
    staging: TableName,
) -> dict[str, str]:
    """Columns of the result that are columns of the staged table as they are, as the server knows it."""
    oid = scalar(connection, "SELECT to_regclass(%(name)s)::oid::bigint", {"name": str(staging)})
    rows = connection.execute(
        "SELECT attnum, attname::text FROM pg_attribute WHERE attrelid = %(oid)s AND attnum > 0",
        {"oid": oid},
    ).fetchall()
    staged = dict(rows)
    return {
        column.name: staged[result.ftablecol(place)]
        for place, column in enumerate(columns)
        if result.ftable(place) == oid and result.ftablecol(place) in staged
    }


def _reads(
    connection: psycopg.Connection[Any], plan: list[dict[str, Any]], staging: TableName
) -> tuple[tuple[str, str], ...]:
    """The tables that the plan reads beside *staging*, partitions as the table that they belong to."""
    scanned = sorted(set(_scanned(plan[0]["Plan"])) - {staging})
    found = connection.execute(
        queries("catalog")["roots"],
        {
            "schemas": [table.schema for table in scanned],
            "names": [table.name for table in scanned],
        },
    ).fetchall()
    return tuple(dataset_of(connection, TableName(schema, name)) for schema, name in found)


def _scanned(node: Mapping[str, Any]) -> Iterator[TableName]:
    if "Relation Name" in node and "Schema" in node:
        yield TableName(node["Schema"], node["Relation Name"])
    for child in node.get("Plans", ()):
        yield from _scanned(child)
