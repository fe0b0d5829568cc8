"""Retention: which partitions are too old, and whether a table can spare any."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import CatalogError, ConfigurationError
from airflow_etl_provider.core.maintenance import MaintenanceOptions
from airflow_etl_provider.core.names import quoted
from airflow_etl_provider.postgres import statements
from airflow_etl_provider.postgres.catalog import Table, scalar
from airflow_etl_provider.postgres.cursors import CursorKind, cursor_kind, cursor_type_sql
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.tree import Branch

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Due:
    """A partition that is to go, with the table it hangs on, and why."""

    place: Branch
    branch: Branch
    why: str

    @property
    def oids(self) -> list[int]:
        return [one.oid for one in self.branch.whole()]


def due(
    connection: Connection,
    target: Table,
    tree: Branch,
    column: str,
    options: MaintenanceOptions,
    now: datetime,
    coming: Collection[int] = (),
) -> list[Due]:
    """The partitions that are too old, oldest first at each level; what hangs on one goes with it.

    :param coming: tables, by oid, that are about to have a partition of the current time: it counts already.
    :raises ConfigurationError: ``keep`` for a column that is no time.
    """
    column_type = target.column(column, use="the partition column").type
    is_time = cursor_kind(column_type) is CursorKind.TIME
    if options.keep is not None and not is_time:
        raise ConfigurationError(
            f"keep={options.keep} goes by time, and {target.name} is partitioned by {column}, which is {column_type}",
            remedy="say how many partitions stay with keep_partitions",
        )
    found: list[Due] = []
    for place in tree.ranges_of(column):
        if not any(place.oid in one.oids for one in found):
            found += _due_of(connection, place, column_type, options, now, place.oid in coming)
    return found


def _due_of(
    connection: Connection,
    place: Branch,
    column_type: str,
    options: MaintenanceOptions,
    now: datetime,
    has_current: bool,
) -> Iterator[Due]:
    branches = {one.oid: one for one in place.below if not one.partition.is_default}
    zoned = column_type.endswith("with time zone")
    instant = sql.SQL("::timestamptz" if zoned else "::timestamp AT TIME ZONE %(zone)s")
    is_time = cursor_kind(column_type) is CursorKind.TIME
    rows = connection.execute(
        sql.SQL("SELECT oid, {old}, {begun}, {holds_now} FROM unnest(%(oids)s::bigint[], %(lows)s::text[], %(highs)s::text[])"
                " AS p (oid, low, high) ORDER BY high::{t} DESC NULLS FIRST").format(
            t=cursor_type_sql(column_type),
            old=sql.SQL("coalesce(high{} <= %(now)s::timestamptz - %(keep)s::interval, false)").format(instant)
            if is_time else sql.SQL("false"),
            begun=sql.SQL("coalesce(low{} <= %(now)s, true)").format(instant) if is_time else sql.SQL("NULL"),
            holds_now=sql.SQL("coalesce(low{0} <= %(now)s, true) AND coalesce(high{0} > %(now)s, true)").format(instant)
            if is_time else sql.SQL("NULL"),
        ),
        {
            "oids": list(branches),
            "lows": [one.partition.low for one in branches.values()],
            "highs": [one.partition.high for one in branches.values()],
            "keep": options.keep,
            "now": now,
            "zone": options.clock,
        },
    ).fetchall()  # fmt: skip
    is_missing = has_current and not any(holds_now for *_, holds_now in rows)
    newest, stays, going = int(is_missing), options.keep_partitions or 1, []
    for oid, old, begun, _ in rows:
        # What lies ahead, and of what goes by no clock what is empty at the newer end, is not counted.
        counts = begun if is_time else bool(newest) or _has_rows(connection, branches[oid])
        newest += 1 if counts else 0
        if not counts or newest <= stays or (options.keep is not None and not old):
            continue
        why = (
            f"its range lies more than {options.keep} back"
            if options.keep is not None
            else f"it is beyond the newest {stays} partitions of {place.name}"
        )
        going.append(Due(place, branches[oid], why))
    yield from reversed(going)


def _has_rows(connection: Connection, branch: Branch) -> bool:
    found: bool = scalar(
        connection,
        sql.SQL("SELECT EXISTS (SELECT FROM {})").format(statements.ident(branch.name)),
    )
    return found


def refuse_unretirable(connection: Connection, target: Table) -> None:
    """:raises CatalogError: no partition of *target* can be taken out by this role, or at all."""
    referencing = connection.execute(
        queries("catalog")["referencing_foreign_keys"], {"oid": target.oid}
    ).fetchall()
    if referencing:
        names = ", ".join(name for name, _ in referencing)
        raise CatalogError(
            f"{names} reference {target.name} by foreign key: a partition could go only after a look through all of "
            "them under a lock, and not with rows that are referenced",
            remedy=f"drop those foreign keys, or let {names} be partitioned and retired alike",
        )
    if not scalar(connection, queries("catalog")["may_own"], {"oid": target.oid}):
        user = connection.info.user
        raise CatalogError(
            f"role {user} does not own {target.name}, and only its owner may detach partitions",
            remedy=f"ALTER TABLE {target.name} OWNER TO {quoted(user)}, or GRANT the owner's role TO {quoted(user)}",
        )
