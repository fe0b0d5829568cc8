"""What ``auto`` goes by: how much of the target a batch changes, and what hangs on the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import CatalogError
from airflow_etl_provider.core.load import Kind, Manifest, PartitionRange, Strategy
from airflow_etl_provider.core.publish import REBUILD_ROWS, Facts, PublishOptions
from airflow_etl_provider.postgres import ledger, statements
from airflow_etl_provider.postgres.catalog import Partition, Table, read_partitions, scalar
from airflow_etl_provider.postgres.keyed import keys_of
from airflow_etl_provider.postgres.leaves import (
    count_of,
    partition_columns,
    read_leaves,
    rows_by_leaf,
)
from airflow_etl_provider.postgres.partitions import (
    no_single_table,
    obstacles,
    overlapping,
    what_hinders,
    what_hinders_new,
)
from airflow_etl_provider.postgres.planning import why_no_swap
from airflow_etl_provider.postgres.queries import queries


def survey(
    connection: psycopg.Connection[Any],
    manifest: Manifest,
    target: Table,
    options: PublishOptions,
) -> Facts:
    """Measure; a batch of few rows is not looked at closely, since it is quick in place."""
    partitioned = target.partition_strategy is not None
    if options.strategy is Strategy.SWAP:
        cut = _no_single_table(connection, manifest, target) if partitioned else None
        return Facts(partitioned, unswappable=cut or why_no_swap(connection, manifest, target))
    if not partitioned:
        return Facts()
    hindrances = _hindrances(connection, target, options)
    cut = _no_single_table(connection, manifest, target) if manifest.partitions else None
    hindrances += [] if cut is None else [cut.what]
    if manifest.partitions:
        if ledger.later_reads(connection, manifest):
            hindrances.append("a load that was read later has published a part of the window")
        missing = {part.name: part for part in manifest.partitions}
        for partition in read_partitions(connection, target):
            if missing.pop(partition.table.name, None) is not None:
                hindrances += what_hinders(connection, partition)
        hindrances += what_hinders_new(connection, target, list(missing.values()))
        return Facts(partitioned=True, obstacles=tuple(hindrances))
    if manifest.rows < REBUILD_ROWS:
        return Facts(partitioned=True, touched=manifest.rows, obstacles=tuple(hindrances))
    hindrances += _lacking(connection, manifest, target, options)
    if hindrances:
        return Facts(True, manifest.rows, manifest.rows, tuple(hindrances))
    leaves = read_leaves(connection, target)
    staged = rows_by_leaf(connection, manifest.staging, leaves)
    replaced = _replaced(connection, manifest, target)
    touched = [
        leaf for leaf in leaves if leaf.partition.oid in staged or leaf.partition.oid in replaced
    ]
    for leaf in touched:
        hindrances += what_hinders(connection, leaf.partition)
    return Facts(
        partitioned=True,
        touched=sum(
            max(staged.get(leaf.partition.oid, 0), replaced.get(leaf.partition.oid, 0))
            for leaf in touched
        ),
        present=sum(count_of(connection, leaf) for leaf in touched),
        obstacles=tuple(hindrances),
    )


def _hindrances(
    connection: psycopg.Connection[Any], target: Table, options: PublishOptions
) -> list[str]:
    found = [obstacle.what for obstacle in obstacles(connection, target)]
    if options.readers_on_standby:
        standbys = scalar(connection, queries("leaves")["standbys"])
        found.append(
            f"readers_on_standby is set, and {'a standby replays' if standbys else 'standbys may replay'} its locks, "
            "which no lock budget bounds there"
        )
    return found


def _no_single_table(
    connection: psycopg.Connection[Any], manifest: Manifest, target: Table
) -> CatalogError | None:
    """Why a missing partition cannot be one table, where one would be swapped in."""
    if target.partition_strategy != "r" or len(target.partition_columns) != 1:
        return None
    existing = read_partitions(connection, target)
    if manifest.partitions:
        named = {partition.table.name for partition in existing}
        missing = any(part.name not in named for part in manifest.partitions)
    else:
        missing = _is_new(connection, manifest, target, existing)
    return no_single_table(connection, target) if missing else None


def _is_new(
    connection: psycopg.Connection[Any],
    manifest: Manifest,
    target: Table,
    existing: Sequence[Partition],
) -> bool:
    """Whether no partition is there for any row of the window."""
    window, (column,) = manifest.window, target.partition_columns
    if window.low is None or window.high is None or manifest.cursor != column:
        return False
    whole = PartitionRange("", window.low, window.high)
    column_type = target.column(column, use="the partition column").type
    return not overlapping(connection, existing, whole, column_type)


def _lacking(
    connection: psycopg.Connection[Any], manifest: Manifest, target: Table, options: PublishOptions
) -> list[str]:
    """Why whole rows cannot be written out of the batch."""
    columns = {column.name for column in manifest.columns}
    routed = partition_columns(connection, target)
    if routed is None or not routed <= columns:
        return ["the batch does not say which partition a row belongs to"]
    if manifest.kind is Kind.EVENTS:
        return []
    if not keys_of(manifest, target, options):
        return ["nothing says what identifies a row"]
    missing = [c.name for c in target.columns if not c.generated and c.name not in columns]
    return [f"the batch has no {', '.join(missing)}"] if missing else []


def _replaced(
    connection: psycopg.Connection[Any], manifest: Manifest, target: Table
) -> dict[int, int]:
    """Rows of a stream of events that lie in the window now, by leaf."""
    if manifest.kind is not Kind.EVENTS or manifest.window.is_full or manifest.cursor is None:
        return {}
    rows = connection.execute(
        sql.SQL("SELECT tableoid::bigint, count(*) FROM {} WHERE {} GROUP BY 1").format(
            statements.ident(target.name), statements.in_window(manifest.cursor, manifest.window)
        )
    ).fetchall()
    return dict(rows)
