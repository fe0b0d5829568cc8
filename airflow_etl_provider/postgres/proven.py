"""What the catalog proves about the rows of a table, without reading them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from airflow_etl_provider.core.errors import CatalogError
from airflow_etl_provider.core.names import TableName, quoted
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.quality.plan import Check, UniqueCheck
from airflow_etl_provider.quality.structure import type_as_observed


def refuse_hidden_rows(connection: psycopg.Connection[Any], table: TableName) -> None:
    """:raises CatalogError: row security hides rows of *table* from the role."""
    found = connection.execute(
        queries("checks")["hides_rows"], {"schema": table.schema, "name": table.name}
    ).fetchone()
    if found is not None and found[0]:
        raise CatalogError(
            f"row security hides rows of {table} from role {found[1]}, so an audit would judge a part of it",
            remedy="audit with a role that owns the table or has BYPASSRLS",
        )


@contextmanager
def named_privilege(connection: psycopg.Connection[Any], table: TableName) -> Iterator[None]:
    """Say which GRANT lets the role read *table* where the server refuses it inside the block.

    Asked only then: who may read the columns that are judged need not be allowed to read all of them.
    """
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        found = connection.execute(
            queries("checks")["may_read"], {"schema": table.schema, "name": table.name}
        ).fetchone()
        if found is None or found[:2] == (True, True):
            raise
        role, schema = quoted(found[2]), quoted(table.schema)
        grants = [] if found[0] else [f"GRANT USAGE ON SCHEMA {schema} TO {role}"]
        grants += [] if found[1] else [f"GRANT SELECT ON {table} TO {role}"]
        raise CatalogError(
            f"role {found[2]} may not read {table}: {error.diag.message_primary}",
            remedy="; ".join(grants),
        ) from None


def never_null(connection: psycopg.Connection[Any], table: TableName) -> frozenset[str]:
    rows = connection.execute(
        queries("checks")["never_null"], {"schema": table.schema, "name": table.name}
    ).fetchall()
    return frozenset(name for (name,) in rows)


def column_types(connection: psycopg.Connection[Any], table: TableName) -> dict[str, str]:
    """The types of columns as Great Expectations calls them, where that is certain."""
    rows = connection.execute(
        queries("checks")["column_types"], {"schema": table.schema, "name": table.name}
    ).fetchall()
    found = {name: type_as_observed(kind) for name, kind in rows}
    return {name: kind for name, kind in found.items() if kind is not None}


def unique_columns(connection: psycopg.Connection[Any], table: TableName) -> list[frozenset[str]]:
    """The sets of columns that a unique index of *table* holds unique, by the equality that SQL compares with."""
    rows = connection.execute(
        queries("checks")["unique_columns"], {"schema": table.schema, "name": table.name}
    ).fetchall()
    return [frozenset(columns) for (columns,) in rows]


def proven_unique(
    connection: psycopg.Connection[Any],
    table: TableName,
    checks: Collection[Check],
    make_unique: Callable[[tuple[str, ...]], bool] | None,
) -> list[frozenset[str]]:
    with translated_errors(f"looking for unique indexes of {table}"):
        proven = unique_columns(connection, table)
        if make_unique is None:
            return proven
        for check in checks:
            if not isinstance(check, UniqueCheck):
                continue
            if not any(unique <= set(check.columns) for unique in proven) and make_unique(
                check.columns
            ):
                proven = unique_columns(connection, table)
    return proven
