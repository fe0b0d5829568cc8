"""``replace``: the difference between a snapshot and the table, applied in place in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import CatalogError, ContractError, DataError, Stopped
from airflow_etl_provider.core.load import LoadState, Manifest, Published, Strategy
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import Stop
from airflow_etl_provider.core.publish import PublishOptions, brake
from airflow_etl_provider.postgres import ledger, statements
from airflow_etl_provider.postgres.catalog import Table, missing_privileges, scalar
from airflow_etl_provider.postgres.statements import ident, names, qualified


def replace_rows(
    connection: psycopg.Connection[Any],
    manifest: Manifest,
    target: Table,
    options: PublishOptions,
    stop: Stop,
) -> Published:
    """Make *target* hold exactly the rows of the batch; rows that are the same are not written.

    Readers never wait; other writers wait until the transaction ends. Rows are the same if their images
    are (``*<>``), so that 1.0 and 1.00 differ.

    :raises CatalogError: the target is partitioned or no plain table, or a privilege is missing.
    :raises DataError: a key that is NULL or stands twice in the batch.
    :raises ShrinkBrake: more rows would go than allowed.
    """
    if target.kind != "r":
        raise CatalogError(
            f"strategy 'replace' applies a difference to a plain table; {target.name} is "
            f"{'partitioned' if target.kind == 'p' else 'not a table'}",
            remedy="use strategy='swap' for a partitioned table",
        )
    missing = missing_privileges(connection, target, ("SELECT", "INSERT", "UPDATE", "DELETE"))
    if missing:
        raise CatalogError(
            f"role {connection.info.user} lacks {', '.join(missing)} on {target.name}",
            remedy=f"GRANT {', '.join(missing)} ON {target.name} TO {connection.info.user}",
        )
    keys = options.keys or manifest.keys or target.primary_key
    columns = [column.name for column in manifest.columns]
    for key in keys:
        if key not in columns:
            raise ContractError(
                f"key {key!r} of {target.name} is not among the batch's columns",
                remedy=f"the batch has: {', '.join(columns)}",
            )
    with connection.transaction():
        position, current = ledger.lock_for_publish(connection, manifest)
        if current.state is LoadState.PUBLISHED:
            return ledger.published_before(connection, manifest, position)
        # Waiting here blocks no reader; a writer in the way ends within its own transaction.
        _set_lock_timeout(connection, options)
        connection.execute(statements.lock(target.name, "SHARE ROW EXCLUSIVE"))
        staged = scalar(connection, statements.count(manifest.staging))
        require_same_rows(manifest, staged)
        if keys:
            _require_unique(connection, manifest, keys)
        before = scalar(connection, statements.count(target.name))
        deleted = connection.execute(
            _delete_by_key(target.name, manifest.staging, keys)
            if keys
            else _delete_by_image(target.name, manifest.staging, columns)
        ).rowcount
        brake(
            manifest, str(target.name), before=before, lost=max(before - staged, 0), options=options
        )
        updated = 0
        # An identity column that is GENERATED ALWAYS refuses UPDATE; as a key it never changes.
        writable = [
            column.name
            for column in target.columns
            if column.name in columns and not column.identity
        ]
        if keys and writable:
            updated = connection.execute(
                _update(target.name, manifest.staging, keys, writable)
            ).rowcount
        inserted = connection.execute(
            _insert_by_key(target.name, manifest.staging, keys, columns)
            if keys
            else _insert_by_image(target.name, manifest.staging, columns)
        ).rowcount
        published = ledger.record_published(
            connection,
            Published(
                load_id=manifest.load_id,
                stream=manifest.stream,
                target=manifest.target,
                strategy=Strategy.REPLACE,
                window=manifest.window,
                rows_inserted=inserted,
                rows_updated=updated,
                rows_deleted=deleted,
                rows_unchanged=staged - inserted - updated,
                partitions=(),
                lock_ms=0.0,
                position=position,
            ),
            manifest,
        )
        if stop.is_set():
            raise Stopped(f"publishing load {manifest.load_id} was stopped; nothing was changed")
    return published


def require_same_rows(manifest: Manifest, staged: int) -> None:
    """:raises ContractError: the staged table no longer holds what was audited."""
    if staged != manifest.rows:
        raise ContractError(
            f"{manifest.staging} holds {staged:,} rows, {manifest.rows:,} were staged and audited",
            remedy="clear extract and downstream: the window is read and audited anew",
        )


def _set_lock_timeout(connection: psycopg.Connection[Any], options: PublishOptions) -> None:
    milliseconds = round(options.lock_deadline.total_seconds() * 1000)
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (str(milliseconds),))


def _require_unique(
    connection: psycopg.Connection[Any], manifest: Manifest, keys: Sequence[str]
) -> None:
    nulls = sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(sql.Identifier(key)) for key in keys)
    empty = scalar(
        connection,
        sql.SQL("SELECT count(*) FROM {} WHERE {}").format(ident(manifest.staging), nulls),
    )
    if empty:
        raise DataError(
            f"{empty:,} rows of the batch {manifest.staging} have no value in a key column ({', '.join(keys)})",
            remedy="mend the source, or name other keys",
        )
    twice = scalar(
        connection,
        sql.SQL(
            "SELECT count(*) FROM (SELECT FROM {} GROUP BY {} HAVING count(*) > 1) AS d"
        ).format(ident(manifest.staging), names(keys)),
    )
    if twice:
        raise DataError(
            f"{twice:,} keys ({', '.join(keys)}) stand more than once in the batch {manifest.staging}",
            remedy="mend the source, or name keys that are unique",
        )


def _same_key(keys: Sequence[str]) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("t.{k} = s.{k}").format(k=sql.Identifier(key)) for key in keys
    )


def _delete_by_key(target: TableName, staging: TableName, keys: Sequence[str]) -> sql.Composed:
    return sql.SQL("DELETE FROM {} AS t WHERE NOT EXISTS (SELECT FROM {} AS s WHERE {})").format(
        ident(target), ident(staging), _same_key(keys)
    )


def _update(
    target: TableName, staging: TableName, keys: Sequence[str], columns: Sequence[str]
) -> sql.Composed:
    return sql.SQL("UPDATE {} AS t SET {} FROM {} AS s WHERE {} AND ROW({}) *<> ROW({})").format(
        ident(target),
        sql.SQL(", ").join(
            sql.SQL("{c} = s.{c}").format(c=sql.Identifier(name)) for name in columns
        ),
        ident(staging),
        _same_key(keys),
        qualified("t", columns),
        qualified("s", columns),
    )


def _insert_by_key(
    target: TableName, staging: TableName, keys: Sequence[str], columns: Sequence[str]
) -> sql.Composed:
    return sql.SQL(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS s"
        " WHERE NOT EXISTS (SELECT FROM {} AS t WHERE {})"
    ).format(
        ident(target),
        names(columns),
        qualified("s", columns),
        ident(staging),
        ident(target),
        _same_key(keys),
    )


def _delete_by_image(target: TableName, staging: TableName, columns: Sequence[str]) -> sql.Composed:
    """Delete as many copies of each row as the table has more of than the batch."""
    return sql.SQL(
        "DELETE FROM {t} WHERE ctid = ANY (ARRAY("
        " SELECT r.place FROM (SELECT ctid AS place, ROW({cols})::text AS image,"
        "   row_number() OVER (PARTITION BY ROW({cols})::text) AS copy FROM {t}) AS r"
        " LEFT JOIN (SELECT ROW({cols})::text AS image, count(*) AS copies FROM {s} GROUP BY 1) AS b"
        " USING (image) WHERE r.copy > coalesce(b.copies, 0)))"
    ).format(t=ident(target), s=ident(staging), cols=names(columns))


def _insert_by_image(target: TableName, staging: TableName, columns: Sequence[str]) -> sql.Composed:
    """Insert as many copies of each row as the batch has more of than the table."""
    return sql.SQL(
        "INSERT INTO {t} ({cols}) OVERRIDING SYSTEM VALUE SELECT {picked} FROM"
        " (SELECT *, ROW({cols})::text AS etl_image,"
        "   row_number() OVER (PARTITION BY ROW({cols})::text) AS etl_copy FROM {s}) AS r"
        " LEFT JOIN (SELECT ROW({cols})::text AS etl_image, count(*) AS copies FROM {t} GROUP BY 1) AS b"
        " USING (etl_image) WHERE r.etl_copy > coalesce(b.copies, 0)"
    ).format(t=ident(target), s=ident(staging), cols=names(columns), picked=qualified("r", columns))
