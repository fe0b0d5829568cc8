"""What a table is, read from PostgreSQL's catalogs in one session with an empty search path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from psycopg import sql
from psycopg.pq.abc import PGresult
from psycopg.rows import dict_row

from airflow_etl_provider.core.columns import missing_column
from airflow_etl_provider.core.errors import CatalogError, ConfigurationError
from airflow_etl_provider.core.load import Column
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.suggest import nearest
from airflow_etl_provider.postgres import statements
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.queries import queries

#: The kind of a query, beside the letters of ``pg_class.relkind``.
QUERY = "q"
_LITERAL = r"(?:'(?:[^']|'')*'|[^',()]+)"
_RANGE = re.compile(rf"FOR VALUES FROM \(({_LITERAL})\) TO \(({_LITERAL})\)")


class Relation(Protocol):
    """A table as the server knows it."""

    @property
    def name(self) -> TableName: ...

    @property
    def oid(self) -> int: ...


@dataclass(frozen=True, slots=True)
class CatalogColumn:
    """A column with what decides how it can be carried.

    ``builtin``: the type is PostgreSQL's own, so its binary form means the same on every server.
    ``definition``: what its domains and composites stand for, all the way down; empty without any.
    ``restricted``: values of a type of this name may be fewer here than elsewhere (enums, domains).
    ``soft_input``: whether the server (16 and newer) can tell a bad text without an error.
    ``stored``: what a domain stands for at last, with its modifiers; ``never_null``: it is NOT NULL.
    """

    name: str
    type: str
    builtin: bool
    refers_by_oid: bool
    not_null: bool
    has_default: bool
    generated: bool
    identity: bool
    definition: str
    restricted: bool = False
    soft_input: bool = True
    stored: str = ""
    never_null: bool = False

    @property
    def column(self) -> Column:
        return Column(self.name, self.type)


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition as attached; ``low`` and ``high`` are ``None`` for DEFAULT and unbounded ends."""

    table: TableName
    oid: int
    bound: str
    low: str | None
    high: str | None
    is_default: bool
    is_leaf: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A table, view or foreign table, or a query; ``reads`` are the tables whose columns a query returns."""

    name: TableName
    oid: int
    kind: str
    persistence: str
    columns: tuple[CatalogColumn, ...]
    primary_key: tuple[str, ...]
    partition_strategy: str | None
    partition_columns: tuple[str, ...]
    database: str
    reads: tuple[TableName, ...] = ()

    def column(self, name: str, *, use: str) -> CatalogColumn:
        """:raises CatalogError: there is no such column; the nearest one is named."""
        for column in self.columns:
            if column.name == name:
                return column
        raise missing_column(str(self.name), name, f"as {use}", [c.name for c in self.columns])

    def has_column(self, name: str) -> bool:
        return any(column.name == name for column in self.columns)


def stored_otherwise(
    connection: psycopg.Connection[Any], table: Relation, among: Sequence[str]
) -> list[str]:
    """Those columns whose values *table*, or a partition of it, stores otherwise than their types say."""
    rows = connection.execute(queries("catalog")["stored_otherwise"], {"oid": table.oid}).fetchall()
    return [name for (name,) in rows if name in among]


def read_table(connection: psycopg.Connection[Any], table: TableName, *, label: str) -> Table:
    """Read *table*, with every column that its role may see.

    :param label: names the connection in errors.
    :raises CatalogError: there is no such table, or the role may not use its schema.
    """
    with (
        translated_errors(f"reading the catalog for {table} on {label}"),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        found = cursor.execute(
            queries("catalog")["table"], {"schema": table.schema, "name": table.name}
        ).fetchone()
        if found is None:
            others = [
                row["name"]
                for row in cursor.execute(queries("catalog")["tables_like"], {"name": table.name})
            ]
            hint = f"; there is {' and '.join(others)}" if others else ""
            if not others:
                names = cursor.execute(
                    queries("catalog")["tables_of_schema"], {"schema": table.schema}
                )
                hint = nearest(str(table), [row["name"] for row in names])
            raise CatalogError(
                f"{label} (database {_database(connection)}) has no table {table}{hint}",
                remedy="check the name and the connection's database; the name is case-sensitive",
            )
        rows = cursor.execute(queries("catalog")["columns"], {"oid": found["oid"]}).fetchall()
        types = _types(connection, [(row["type_oid"], row["type_modifier"]) for row in rows])
        columns = [
            CatalogColumn(
                name=row["name"],
                not_null=row["not_null"],
                has_default=row["has_default"],
                generated=row["generated"],
                identity=row["identity"],
                **facts,
            )
            for row, facts in zip(rows, types, strict=True)
        ]
        return Table(
            name=table,
            oid=found["oid"],
            kind=found["kind"],
            persistence=found["persistence"],
            columns=tuple(columns),
            primary_key=tuple(found["primary_key"] or ()),
            partition_strategy=found["partition_strategy"],
            partition_columns=tuple(found["partition_columns"] or ()),
            database=_database(connection),
        )


def read_query(connection: psycopg.Connection[Any], query: sql.Composable, *, label: str) -> Table:
    """The columns of a query (what stands behind ``FROM``), as if it were a table; nothing is read.

    :raises CatalogError, ConfigurationError: the server does not take the query; with its message.
    """
    with translated_errors(f"reading what the query on {label} returns"):
        result = connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(query)).pgresult
        if result is None:
            raise ConfigurationError(f"the query on {label} returns nothing")
        columns = columns_of_result(connection, result, f"the query on {label}")
        origins = sorted({result.ftable(place) for place in range(len(columns))} - {0})
        read = connection.execute(queries("catalog")["tables_by_oid"], {"oids": origins}).fetchall()
    return Table(
        name=TableName("query", "query"),
        oid=0,
        kind=QUERY,
        persistence="p",
        columns=columns,
        primary_key=(),
        partition_strategy=None,
        partition_columns=(),
        database=_database(connection),
        reads=tuple(TableName(schema, name) for schema, name in read),
    )


def columns_of_result(
    connection: psycopg.Connection[Any], result: PGresult, what: str
) -> tuple[CatalogColumn, ...]:
    """The columns of a statement's result; of a domain the server tells the type below it.

    :raises ConfigurationError: two columns have one name.
    """
    names = [(result.fname(place) or b"").decode() for place in range(result.nfields)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(
            f"{what} returns more than one column called {', '.join(twice)}",
            remedy="give each column a name of its own with AS",
        )
    facts = _types(
        connection, [(result.ftype(place), result.fmod(place)) for place in range(len(names))]
    )
    return tuple(
        CatalogColumn(
            name=name,
            not_null=False,
            has_default=False,
            generated=False,
            identity=False,
            **fact,
        )
        for name, fact in zip(names, facts, strict=True)
    )


def _types(
    connection: psycopg.Connection[Any], types: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """``type``, ``builtin``, ``refers_by_oid`` and ``definition`` of each (oid, modifier)."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            queries("catalog")["types"],
            {"oids": [oid for oid, _ in types], "modifiers": [modifier for _, modifier in types]},
        ).fetchall()


def read_type(connection: psycopg.Connection[Any], name: str) -> dict[str, Any] | None:
    """The facts of :class:`CatalogColumn` about a type as its name is written; ``None``: the server has none such."""
    try:
        with connection.transaction():
            oid = scalar(connection, "SELECT to_regtype(%(name)s)::oid::bigint", {"name": name})
    except (psycopg.errors.SyntaxError, psycopg.errors.DataError):
        # What is no name at all, or has modifiers that the type cannot have.
        return None
    return None if oid is None else _types(connection, [(oid, -1)])[0]


def _database(connection: psycopg.Connection[Any]) -> str:
    return connection.info.dbname


def fingerprint(connection: psycopg.Connection[Any], table: TableName) -> str | None:
    """What tells the rows of *table*, as they are now, from any others; ``None`` where it has none of its own, as a view."""
    has_rows = scalar(
        connection,
        "SELECT NOT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass(%(name)s) AND relkind NOT IN ('r', 'p', 'm'))",
        {"name": str(table)},
    )
    found: str | None = scalar(connection, statements.fingerprint(table)) if has_rows else None
    return found


def missing_privileges(
    connection: psycopg.Connection[Any], table: Table, privileges: tuple[str, ...]
) -> list[str]:
    """Those of *privileges* (``SELECT``, ``INSERT``, …) that the session's role lacks on *table*."""
    return [
        privilege
        for privilege in privileges
        if not scalar(
            connection,
            queries("catalog")["has_privilege"],
            {"oid": table.oid, "privilege": privilege},
        )
    ]


def read_partitions(connection: psycopg.Connection[Any], parent: Relation) -> list[Partition]:
    """The partitions of a table that is partitioned by RANGE on one column, in order of their names."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(queries("catalog")["partitions"], {"oid": parent.oid}).fetchall()
    return [_partition(row) for row in rows]


def _partition(row: dict[str, Any]) -> Partition:
    low, high = range_of(row["bound"])
    return Partition(
        table=TableName(row["schema"], row["name"]),
        oid=row["oid"],
        bound=row["bound"],
        low=low,
        high=high,
        is_default=row["bound"] == "DEFAULT",
        is_leaf=row["is_leaf"],
    )


def range_of(bound: str) -> tuple[str | None, str | None]:
    """Both ends of a bound by RANGE on one column; ``None`` for unbounded ends, and for any other bound."""
    match = _RANGE.fullmatch(bound)
    return (None, None) if match is None else (_value(match[1]), _value(match[2]))


def _value(literal: str) -> str | None:
    if literal in ("MINVALUE", "MAXVALUE"):
        return None
    return literal[1:-1].replace("''", "'") if literal.startswith("'") else literal


def require_range_partitioned(table: Table, column: str) -> None:
    """:raises CatalogError: *table* is not partitioned by RANGE on exactly *column*."""
    if table.partition_strategy is None:
        raise CatalogError(
            f"{table.name} is not partitioned, so no partition of it can be swapped",
            remedy=f"create it with PARTITION BY RANGE ({column}), or use strategy 'replace' for a small snapshot",
        )
    if table.partition_strategy != "r" or table.partition_columns != (column,):
        how = {"r": "RANGE", "l": "LIST", "h": "HASH"}[table.partition_strategy]
        keys = ", ".join(table.partition_columns) or "an expression"
        raise CatalogError(
            f"{table.name} is partitioned by {how} ({keys}), not by RANGE ({column})",
            remedy="name the column it is partitioned by; it must be a single column of a RANGE",
        )


def scalar(
    connection: psycopg.Connection[Any], query: Any, params: dict[str, Any] | None = None
) -> Any:
    """The first column of the first row."""
    row = connection.execute(query, params).fetchone()
    if row is None:
        raise ConfigurationError("the query gave no row")
    return row[0]
