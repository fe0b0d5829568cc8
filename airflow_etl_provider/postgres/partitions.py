"""Which partitions of a target a window means, held against those that exist."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import CatalogError, ConfigurationError
from airflow_etl_provider.core.load import Manifest, PartitionRange
from airflow_etl_provider.core.names import TableName, quoted
from airflow_etl_provider.core.partition import PartitionSpec, Period
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.publish import PublishOptions
from airflow_etl_provider.core.window import Interval, bound_text
from airflow_etl_provider.postgres import locking, statements
from airflow_etl_provider.postgres.catalog import (
    Partition,
    Table,
    missing_privileges,
    read_partitions,
    scalar,
)
from airflow_etl_provider.postgres.cursors import CursorKind, cursor_kind, cursor_type_sql
from airflow_etl_provider.postgres.errors import sqlstate_of
from airflow_etl_provider.postgres.locking import Relation
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.twin import problems

#: Releases before 14.14, 15.9, 16.5 and 17.1 could lose the triggers of foreign keys with DETACH.
_LOSES_FOREIGN_KEYS = frozenset(
    major * 10000 + minor
    for major, mended in ((14, 14), (15, 9), (16, 5), (17, 1))
    for minor in range(mended)
)

#: Duplicate table, duplicate object (its type), and a partition that would overlap another.
_MADE_MEANWHILE = ("42P07", "42710", "42P17")


def expected_partitions(
    connection: psycopg.Connection[Any],
    target: Table,
    *,
    spec: PartitionSpec | None,
    interval: Interval,
    timezone: str,
) -> tuple[PartitionRange, ...]:
    """The partitions that *interval* covers, existing or still to be made; none unless it covers them whole,
    and each is one table.

    :raises ConfigurationError: a partition is missing and *spec* does not say how long one is.
    :raises CatalogError: existing partitions are cut differently from *spec*.
    """
    column = target.column(target.partition_columns[0], use="the partition column")
    existing = read_partitions(connection, target)
    if spec is not None:
        if not spec.covers_whole(interval.start, interval.end):
            return ()
        siblings = _siblings(connection, spec, existing, column.type)
        wanted = [
            _range(target, spec, period, column.type, siblings)
            for period in spec.periods(interval.start, interval.end)
        ]
    else:
        whole = PartitionRange(
            "",
            bound_text(interval.start, column.type, timezone),
            bound_text(interval.end, column.type, timezone),
        )
        overlapping = _overlapping(connection, existing, whole, column.type)
        if overlapping and not _same(connection, overlapping[0], whole, column.type):
            return ()
        wanted = [whole]
    found = []
    for part in wanted:
        name = _existing_name(connection, target, part, existing, column.type)
        if name is None:
            return ()
        found.append(PartitionRange(name, part.low, part.high))
    return tuple(found)


def make_missing_partitions(
    connection: psycopg.Connection[Any],
    manifest: Manifest,
    target: Table,
    options: PublishOptions,
    *,
    stop: Stop,
    log: EventLog,
) -> list[TableName]:
    """Attach an empty partition for every staged row that has none; returns those made.

    An empty twin is attached, never ``PARTITION OF``, which would lock out every reader of the parent.
    A parallel load that makes the same partition first is no failure.

    :raises CatalogError: the DEFAULT partition holds rows of one, or its name is taken.
    :raises LockBudgetExceeded: readers of the DEFAULT partition, or of what foreign keys refer to, held it up to
        the deadline.
    """
    spec = manifest.partition
    if (
        spec is None
        or target.partition_strategy != "r"
        or target.partition_columns != (spec.column,)
    ):
        return []
    column_type = target.column(spec.column, use="the partition column").type
    zoned = column_type.endswith("with time zone")
    starts = connection.execute(
        sql.SQL(
            "SELECT DISTINCT date_trunc({every}, {column}{zone}){back} FROM {staging} WHERE isfinite({column})"
        ).format(
            every=sql.Literal(spec.every.value),
            column=sql.Identifier(spec.column),
            zone=sql.SQL(", {}").format(sql.Literal(spec.timezone))
            if zoned
            else sql.SQL("::timestamp"),
            back=sql.SQL("")
            if zoned
            else sql.SQL(" AT TIME ZONE {}").format(sql.Literal(spec.timezone)),
            staging=statements.ident(manifest.staging),
        )
    ).fetchall()
    made = []
    existing = read_partitions(connection, target)
    siblings = _siblings(connection, spec, existing, column_type)
    for (start,) in sorted(starts):
        (period,) = spec.periods(start, start + timedelta(microseconds=1))
        part = _range(target, spec, period, column_type, siblings)
        if _overlapping(connection, existing, part, column_type):
            continue
        name = TableName(target.name.schema, part.name)
        in_attempts = locking.patiently(
            connection, target, options, what=f"making partition {name}", stop=stop, log=log
        )
        refuse_default_rows(connection, target, spec.column, [part])
        exclude_from_default(
            connection,
            target,
            spec.column,
            [part],
            lock_timeout_ms=round(options.lock_budget.total_seconds() * 1000),
            in_attempts=in_attempts,
        )
        _refuse_taken(connection, name, target)

        def make(_: int, name: TableName = name, part: PartitionRange = part) -> None:
            with connection.transaction():
                locking.limit(connection, time.monotonic() + options.lock_budget.total_seconds())
                connection.execute(statements.create_partition(name, target.name))
                owner = scalar(connection, queries("catalog")["owner"], {"oid": target.oid})
                if owner is not None:
                    connection.execute(statements.give(name, owner))
                connection.execute(statements.attach(target.name, name, part))

        try:
            in_attempts(make)
        except psycopg.Error as error:
            if sqlstate_of(error) not in _MADE_MEANWHILE:
                raise
            continue
        made.append(name)
    return made


def _siblings(
    connection: psycopg.Connection[Any],
    spec: PartitionSpec,
    existing: Sequence[Partition],
    column_type: str,
) -> list[tuple[str, datetime]]:
    """Name and start of the last partitions that *spec* would have made; how the table names them is seen there."""
    if cursor_kind(column_type) is not CursorKind.TIME:
        return []
    zoned = column_type.endswith("with time zone")
    rows = connection.execute(
        sql.SQL(
            "SELECT name, low FROM (SELECT name, {} AS low FROM unnest(%(names)s::text[], %(lows)s::text[])"
            " AS p (name, low)) AS p WHERE isfinite(low) AND low BETWEEN '0001-01-02' AND '9999-12-30'"
            " ORDER BY low DESC LIMIT 3"
        ).format(
            sql.SQL("low::timestamptz")
            if zoned
            else sql.SQL("low::timestamp AT TIME ZONE {}").format(sql.Literal(spec.timezone))
        ),
        {
            "names": [partition.table.name for partition in existing],
            "lows": [partition.low for partition in existing],
        },
    ).fetchall()
    return [(name, low) for name, low in rows if spec.period_holding(low).start == low]


def _range(
    target: Table,
    spec: PartitionSpec,
    period: Period,
    column_type: str,
    siblings: Sequence[tuple[str, datetime]],
) -> PartitionRange:
    return PartitionRange(
        spec.partition_name(target.name.name, period, siblings),
        bound_text(period.start, column_type, spec.timezone),
        bound_text(period.end, column_type, spec.timezone),
    )


def _overlapping(
    connection: psycopg.Connection[Any],
    existing: Sequence[Partition],
    wanted: PartitionRange,
    column_type: str,
) -> list[Partition]:
    return [
        partition
        for partition in existing
        if not partition.is_default and _overlaps(connection, partition, wanted, column_type)
    ]


def _existing_name(
    connection: psycopg.Connection[Any],
    target: Table,
    wanted: PartitionRange,
    existing: Sequence[Partition],
    column_type: str,
) -> str | None:
    """The name of the partition with exactly the wanted bounds, or the name to make it under.

    ``None`` where it is no table that could be exchanged: partitioned itself, or in another schema.
    """
    overlapping = _overlapping(connection, existing, wanted, column_type)
    if not overlapping:
        if not wanted.name:
            raise ConfigurationError(
                f"{target.name} has no partition for {wanted.low} to {wanted.high}",
                remedy="say how long a partition is, so that missing ones can be made: "
                "partition={'column': ..., 'every': 'month', 'timezone': ...}",
            )
        _refuse_taken(connection, TableName(target.name.schema, wanted.name), target)
        return wanted.name
    (first, *rest) = overlapping
    if rest or not _same(connection, first, wanted, column_type):
        bounds = "; ".join(f"{p.table} {p.bound}" for p in overlapping)
        raise CatalogError(
            f"{target.name} is cut differently from the wanted partition {wanted.low} to {wanted.high}: {bounds}",
            remedy="let partition.every and partition.timezone say how the table is really partitioned",
        )
    if not first.is_leaf or first.table.schema != target.name.schema:
        return None
    return first.table.name


def _overlaps(
    connection: psycopg.Connection[Any],
    partition: Partition,
    wanted: PartitionRange,
    column_type: str,
) -> bool:
    found: bool = scalar(
        connection,
        sql.SQL(
            "SELECT coalesce(%(low)s::{t} < %(wanted_high)s::{t}, true)"
            " AND coalesce(%(high)s::{t} > %(wanted_low)s::{t}, true)"
        ).format(t=cursor_type_sql(column_type)),
        _bounds(partition, wanted),
    )
    return found


def _same(
    connection: psycopg.Connection[Any],
    partition: Partition,
    wanted: PartitionRange,
    column_type: str,
) -> bool:
    found: bool = scalar(
        connection,
        sql.SQL(
            "SELECT %(low)s::{t} IS NOT DISTINCT FROM %(wanted_low)s::{t}"
            " AND %(high)s::{t} IS NOT DISTINCT FROM %(wanted_high)s::{t}"
        ).format(t=cursor_type_sql(column_type)),
        _bounds(partition, wanted),
    )
    return found


def _bounds(partition: Partition, wanted: PartitionRange) -> dict[str, str | None]:
    return {
        "low": partition.low,
        "high": partition.high,
        "wanted_low": wanted.low,
        "wanted_high": wanted.high,
    }


def _refuse_taken(connection: psycopg.Connection[Any], name: TableName, target: Table) -> None:
    """:raises CatalogError: something else is called so; a partition of the target by now is not, since a parallel
    load may have made it."""
    taken = scalar(
        connection,
        "SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %(schema)s AND c.relname = %(name)s"
        " AND NOT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid AND i.inhparent = %(parent)s))",
        {"schema": name.schema, "name": name.name, "parent": target.oid},
    )
    if taken:
        raise CatalogError(
            f"the partition to be made for {target.name} would be called {name}, which exists and is not "
            "that partition",
            remedy=f"rename or attach {name}, then clear the task",
        )


def partition_of(
    connection: psycopg.Connection[Any],
    target: Table,
    part: PartitionRange,
    existing: Sequence[Partition],
) -> Partition | None:
    """The partition with the bounds of *part*, whatever it is called by now; ``None`` where none has rows of it.

    :raises CatalogError: the table is cut differently by now, or the name for a new partition is taken.
    """
    column = target.column(target.partition_columns[0], use="the partition column")
    name = _existing_name(connection, target, part, existing, column.type)
    found = [p for p in existing if p.table == TableName(target.name.schema, name or "")]
    if name is None:
        (other,) = _overlapping(connection, existing, part, column.type)
        raise CatalogError(
            f"partition {other.table} of {target.name} is partitioned itself, or lies in another schema, since the "
            "batch was staged",
            remedy="publish with strategy='auto', which then writes in place",
        )
    return found[0] if found else None


def refuse_default_rows(
    connection: psycopg.Connection[Any],
    target: Table,
    column: str,
    wanted: Sequence[PartitionRange],
) -> None:
    """:raises CatalogError: a DEFAULT partition holds rows that belong into one of *wanted*."""
    for partition in read_partitions(connection, target):
        if not partition.is_default:
            continue
        for part in wanted:
            rows = scalar(
                connection,
                sql.SQL("SELECT count(*) FROM {} WHERE {}").format(
                    statements.ident(partition.table),
                    statements.in_range(column, part.low, part.high),
                ),
            )
            if rows:
                where = statements.in_range(column, part.low, part.high).as_string(connection)
                raise CatalogError(
                    f"the DEFAULT partition {partition.table} of {target.name} holds {rows:,} rows of "
                    f"{part.low} to {part.high}, so a partition for that range cannot be attached",
                    remedy=f"move them out of {partition.table}, then clear the task; they are the rows where {where}",
                )


def refuse_dependents(connection: psycopg.Connection[Any], partitions: Sequence[Partition]) -> None:
    """:raises CatalogError: something hangs on a partition itself and would not follow a swap."""
    for partition in partitions:
        found = problems(connection, partition)
        if found:
            raise CatalogError(
                f"partition {partition.table} cannot be swapped: {'; '.join(found)}",
                remedy="let it refer to the parent table, or load this table with another strategy",
            )


def exclude_from_default(
    connection: psycopg.Connection[Any],
    target: Table,
    column: str,
    wanted: Sequence[PartitionRange],
    *,
    lock_timeout_ms: int,
    in_attempts: locking.Attempts = locking.once,
) -> None:
    """Let the DEFAULT partition's constraints say that it holds no row of *wanted*."""
    keep_out_of_default(
        connection,
        target,
        [(statements.excluding_name(part), statements.holds(column, part)) for part in wanted],
        lock_timeout_ms=lock_timeout_ms,
        in_attempts=in_attempts,
    )


def keep_out_of_default(
    connection: psycopg.Connection[Any],
    parent: Relation,
    conditions: Sequence[tuple[str, sql.Composable]],
    *,
    lock_timeout_ms: int,
    in_attempts: locking.Attempts = locking.once,
) -> None:
    """Let the DEFAULT partition's constraints, each with its name, say that no row of it fulfils *conditions*.

    ATTACH would otherwise scan it under its lock. The constraint is added without a scan, under a lock of
    an instant, and validated under one that stops nobody; it stays, since the partitions do. An empty
    DEFAULT needs none.

    :param in_attempts: runs what needs that lock, until it is granted.
    """
    found = connection.execute(
        queries("catalog")["default_partition"], {"oid": parent.oid}
    ).fetchall()
    for schema, table_name, oid in found:
        table = TableName(schema, table_name)
        is_leaf = scalar(
            connection, "SELECT relkind = 'r' FROM pg_class WHERE oid = %(oid)s", {"oid": oid}
        )
        filled = is_leaf and scalar(
            connection, sql.SQL("SELECT EXISTS (SELECT FROM {})").format(statements.ident(table))
        )
        for name, condition in conditions if filled else ():
            known = {"schema": schema, "name": table_name, "constraint": name}
            if not scalar(connection, queries("catalog")["has_constraint"], known):
                step = statements.excluding_check(table, name, condition)

                def add(_: int, step: sql.Composed = step) -> None:
                    with connection.transaction():
                        connection.execute(
                            "SELECT set_config('lock_timeout', %s, true)", (str(lock_timeout_ms),)
                        )
                        connection.execute(step)

                in_attempts(add)
            connection.execute(statements.validate_constraint(table, name))


def obstacles(connection: psycopg.Connection[Any], target: Table) -> list[CatalogError]:
    """Why no partition of *target* can be exchanged by this role, or at all; with what would help."""
    found = []
    referencing = [
        row[0]
        for row in connection.execute(
            queries("catalog")["referencing_foreign_keys"], {"oid": target.oid}
        )
    ]
    if referencing:
        found.append(
            CatalogError(
                f"{', '.join(referencing)} reference {target.name} by foreign key: PostgreSQL lets no "
                "referenced partition be detached",
                remedy=f"drop those foreign keys, or load {target.name} by another way than swap",
            )
        )
    published = [
        row[0]
        for row in connection.execute(queries("catalog")["publications"], {"oid": target.oid})
    ]
    if published:
        found.append(
            CatalogError(
                f"{target.name} is in publication {', '.join(published)}: subscribers would not see a swap",
                remedy="take it out of the publication, or load it by another way than swap",
            )
        )
    if not scalar(connection, queries("catalog")["may_own"], {"oid": target.oid}):
        user = connection.info.user
        found.append(
            CatalogError(
                f"role {user} does not own {target.name}, and only its owner may attach partitions",
                remedy=f"ALTER TABLE {target.name} OWNER TO {quoted(user)}, or GRANT the owner's role TO {quoted(user)}",
            )
        )
    if missing_privileges(connection, target, ("SELECT",)):
        found.append(CatalogError(f"role {connection.info.user} may not read {target.name}"))
    minor = connection.info.server_version
    if minor in _LOSES_FOREIGN_KEYS and scalar(
        connection, queries("catalog")["refers_to_partitioned"], {"oid": target.oid}
    ):
        found.append(
            CatalogError(
                f"this release of the server ({minor // 10000}.{minor % 10000}) may leave a detached partition without "
                f"its foreign keys, and {target.name} refers to a partitioned table",
                remedy="upgrade the server to its latest minor release, or load by another way than swap",
            )
        )
    return found


def refuse_unswappable(connection: psycopg.Connection[Any], target: Table) -> None:
    """:raises CatalogError: no partition of *target* can be exchanged by this role, or at all."""
    for obstacle in obstacles(connection, target):
        raise obstacle
