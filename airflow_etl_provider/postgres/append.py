"""``append``: the batch is added to the target, once; what an earlier load of the window added goes first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from airflow_etl_provider.core.errors import CatalogError, ContractError
from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.publish import Counts, PublishOptions, brake
from airflow_etl_provider.postgres import ledger
from airflow_etl_provider.postgres.catalog import Table
from airflow_etl_provider.postgres.cursors import cursor_type_sql
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.statements import ident, names
from airflow_etl_provider.postgres.upsert import Reference


def append(
    connection: psycopg.Connection[Any],
    manifest: Manifest,
    target: Table,
    options: PublishOptions,
    references: Sequence[Reference],
) -> Counts:
    """Insert the batch, in the caller's publish transaction, which makes that once per load.

    A window that was published before would double its rows: the load id in each row tells which those are,
    and they are deleted first. Without one, or where a load reaches beyond this window, it is refused.

    :param references: foreign keys that refer to the target.
    :raises CatalogError: whatever refers to rows that were added before would go with them.
    :raises ContractError: the window overlaps that of a published load, and nothing tells its rows.
    :raises StateError: a published load of the window has read the source later.
    :raises ShrinkBrake: much fewer rows come than an earlier load of the window had brought.
    """
    # Rows that were set aside come back beside those that were appended, and go with them.
    earlier = [] if manifest.replays is not None else _published(connection, manifest)
    column = options.load_id_column
    if column is None:
        if earlier:
            raise ContractError(
                f"load {earlier[0]['load_id']} of stream {manifest.stream} has already appended rows of "
                f"{manifest.window} to {target.name}: they would stand there twice",
                remedy="give the target a column for the load's id and name it with load_id_column, so that they are "
                "replaced; or use strategy='delete_insert'",
            )
        inserted = connection.execute(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
                ident(target.name),
                *[names([c.name for c in manifest.columns])] * 2,
                ident(manifest.staging),
            )
        ).rowcount
        return Counts(inserted=inserted)
    kind = _load_id_type(manifest, target, column)
    beyond = [load for load in earlier if not load["within"]]
    if beyond:
        raise ContractError(
            f"load {beyond[0]['load_id']} of stream {manifest.stream} has appended rows of {beyond[0]['span']} to "
            f"{target.name}, which overlaps {manifest.window} and reaches beyond it",
            remedy="load a window that holds all of it (params window_low and window_high), or use "
            "strategy='delete_insert'",
        )
    if any(load["read_later"] for load in earlier):
        ledger.require_latest(connection, manifest)
    ids = [load["load_id"] for load in earlier]
    deleted = 0
    following = list(dict.fromkeys(one.name for one in references if one.follows))
    if ids and following:
        raise CatalogError(
            f"rows that load {ids[0]} has added to {target.name} are deleted and added again, and what refers to them "
            f"in {', '.join(following)} would go with them",
            remedy="let that foreign key have no ON DELETE action, or use strategy='merge', which goes by key",
        )
    if ids:
        deleted = connection.execute(
            sql.SQL("DELETE FROM {} WHERE {} = ANY (%(ids)s::{})").format(
                ident(target.name), sql.Identifier(column), sql.SQL(kind + "[]")
            ),
            {"ids": ids},
        ).rowcount
        brake(
            manifest,
            f"{target.name} in window {manifest.window}",
            before=deleted,
            lost=max(deleted - manifest.rows, 0),
            options=options,
        )
    columns = [c.name for c in manifest.columns if c.name != column]
    inserted = connection.execute(
        sql.SQL("INSERT INTO {} ({}, {}) OVERRIDING SYSTEM VALUE SELECT {}, {}::{} FROM {}").format(
            ident(target.name),
            names(columns),
            sql.Identifier(column),
            names(columns),
            sql.Literal(manifest.replays or manifest.load_id),
            sql.SQL(kind),
            ident(manifest.staging),
        )
    ).rowcount
    return Counts(inserted=inserted, deleted=deleted)


def _load_id_type(manifest: Manifest, target: Table, column: str) -> str:
    """``uuid`` or ``text``.

    :raises CatalogError: the target has no such column.
    :raises ContractError: it cannot hold a load's id.
    """
    found = target.column(column, use="load_id_column")
    if found.type == "uuid":
        return "uuid"
    if found.type in ("text", "character varying"):
        return "text"
    raise ContractError(
        f"load_id_column {column!r} of {target.name} is {found.type}, which holds no load's id",
        remedy="make it uuid or text",
    )


def _published(connection: psycopg.Connection[Any], manifest: Manifest) -> list[dict[str, Any]]:
    """Published loads whose rows this one reads again; ``within`` says whether it reads all of them, and
    ``read_later`` whether they were read after it."""
    params = {
        "stream": manifest.stream,
        "load_id": manifest.load_id,
        "snapshot_at": manifest.snapshot_at,
        "low": manifest.window.low,
        "high": manifest.window.high,
    }
    with connection.cursor(row_factory=dict_row) as cursor:
        if not manifest.window.is_range:
            # Every run adds what is there at its time; the same run does so once.
            return cursor.execute(queries("ledger")["loads_of_run"], params).fetchall()
        return cursor.execute(
            sql.SQL(
                "SELECT load_id::text, coalesce(window_low, 'start') || ' to ' || window_high AS span,"
                " coalesce(window_low::{t} >= %(low)s::{t}, %(low)s::text IS NULL)"
                " AND window_high::{t} <= %(high)s::{t} AS within,"
                " coalesce(read_until, snapshot_at) > %(snapshot_at)s AS read_later"
                " FROM etl.loads WHERE stream = %(stream)s AND state = 'published' AND load_id <> %(load_id)s"
                " AND window_type IS NOT NULL AND bounds <> 'nulls' AND replays IS NULL"
                " AND coalesce((manifest ->> 'rows')::bigint, rows_staged) > 0"
                " AND coalesce(window_low::{t} < %(high)s::{t}, true) AND coalesce(window_high::{t} > %(low)s::{t}, true)"
                " ORDER BY seq"
            ).format(t=cursor_type_sql(manifest.window.type or "")),
            params,
        ).fetchall()
