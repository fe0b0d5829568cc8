"""Rows that share a key which the target lets each have alone, found while indexes are built for its partition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import DataError
from airflow_etl_provider.core.load import Kind, Manifest
from airflow_etl_provider.core.names import TableName, quoted
from airflow_etl_provider.postgres import statements
from airflow_etl_provider.postgres.catalog import scalar
from airflow_etl_provider.postgres.twin import Index, working_name


@contextmanager
def shared_keys(
    connection: psycopg.Connection[Any],
    table: TableName,
    indexes: Sequence[Index],
    manifest: Manifest,
    parent: TableName,
    final: TableName,
) -> Iterator[None]:
    """Name the key as the target does: the server knows the name only under which it is built for *table*.

    :param parent: what the partition hangs on.
    :param final: what *table* will be called.
    :raises DataError: rows share a key.
    """
    try:
        yield
    except (psycopg.errors.UniqueViolation, psycopg.errors.ExclusionViolation) as error:
        named = {working_name(table, index): index for index in indexes}
        index = named.get(error.diag.constraint_name or "")
        if index is None:
            raise
        owner = parent if index.of_parent else final
        found = _explained(connection, index, manifest, owner, final, error.sqlstate or "")
        found.sqlstate = error.sqlstate
        raise found from None


def _explained(
    connection: psycopg.Connection[Any],
    index: Index,
    manifest: Manifest,
    owner: TableName,
    final: TableName,
    sqlstate: str,
) -> DataError:
    kind = "unique index" if index.constraint_type is None else "constraint"
    within = _within_batch(connection, index, manifest)
    how = {
        True: f": they stand double in the batch {manifest.staging}",
        False: f": they do not stand double in the batch {manifest.staging}, but meet rows of the target that stay",
        None: "",
    }[within]
    columns = "[...]" if None in index.columns else repr(list(index.columns))
    by_key = f"declare keys={columns}"
    if manifest.kind is not Kind.ENTITIES:
        by_key += " and kind='entities'"
    remedy = f"mend the rows in the source, or {by_key} if they are versions of one row"
    if within is False:
        remedy += "; or take the rows that stay out of the target"
    return DataError(
        f"rows for partition {final} of {manifest.target} share a key of {kind} {quoted(index.name)} of {owner}, "
        f"{index.constraint_definition or index.definition} ({sqlstate}){how}",
        remedy=remedy,
    )


def _within_batch(
    connection: psycopg.Connection[Any], index: Index, manifest: Manifest
) -> bool | None:
    """Whether rows of the batch share that key among themselves; ``None`` where its columns alone do not tell."""
    columns = [column for column in index.columns if column is not None]
    staged = {column.name for column in manifest.columns}
    told = len(columns) == len(index.columns) and staged.issuperset(columns)
    if not told or index.excludes or index.predicate is not None:
        return None
    found: bool = scalar(
        connection,
        sql.SQL(
            "SELECT EXISTS (SELECT FROM {t} WHERE num_nulls({k}) = 0 OR {nulls} GROUP BY {k} HAVING count(*) > 1)"
        ).format(
            t=statements.ident(manifest.staging),
            k=statements.names(columns),
            nulls=sql.Literal("NULLS NOT DISTINCT" in index.definition),
        ),
    )
    return found
