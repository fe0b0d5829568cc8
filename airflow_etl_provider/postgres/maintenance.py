"""The use case *maintain*: a partitioned table is kept in order, at any time beside loads.

Partitions to come are made, partitions that are too old are retired, and the planner's statistics of the
whole table are renewed, which autovacuum never does.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from airflow_etl_provider.core.errors import LockBudgetExceeded, Stopped
from airflow_etl_provider.core.maintenance import Left, Maintained, MaintenanceOptions, Retired
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.partition import PartitionSpec
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.postgres import ledger, locking, statements
from airflow_etl_provider.postgres.ahead import Ahead, make_ahead
from airflow_etl_provider.postgres.catalog import Table, read_table, scalar
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.locking import Deadline
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.retention import due, refuse_unretirable
from airflow_etl_provider.postgres.retiring import Retention
from airflow_etl_provider.postgres.tree import Branch, range_column, read_tree

Connection = psycopg.Connection[Any]

#: From here on ANALYZE can leave the partitions alone, which autovacuum looks after.
_ANALYZE_ONLY = 180000


def maintain(
    connection: Connection,
    name: TableName,
    options: MaintenanceOptions,
    actor: str,
    *,
    stop: Stop,
    log: EventLog,
    dry_run: bool = False,
) -> Maintained:
    """Keep the partitioned table *name* in order.

    In this order: partitions ahead are made, old ones retired (each in a transaction of its own, under one
    lock budget per attempt), and the table is analyzed if that is worthwhile. What is in use, or what an
    unfinished load may write into, is left for the next run and named; a watermark never moves.

    :param connection: in autocommit; its ``lock_timeout`` is set.
    :param actor: who does it, for the ledger.
    :param dry_run: change nothing, and say what would be done.
    :raises CatalogError: no such table, it is not partitioned, other tables reference it, or the role does not
        own it.
    :raises ConfigurationError: options that do not fit the table.
    :raises StateError: partitions are to be retired, and there is no ledger that this release can write.
    :raises Stopped: it was told to stop; what was done until then stays.
    """
    label = f"database {connection.info.dbname}"
    target = read_table(connection, name, label=label)
    what = f"maintaining {name}"
    with translated_errors(what):
        tree = read_tree(connection, target)
        spec = options.partition
        column = range_column(tree, None if spec is None else spec.column)
        locking.require_budget(connection, options.lock_budget)
        connection.execute(
            "SELECT set_config('lock_timeout', %s, false)",
            (str(round(options.lock_budget.total_seconds() * 1000)),),
        )
        now = ledger.server_time(connection)
    deadline = Deadline(options.lock_deadline)
    made: tuple[TableName, ...] = ()
    left: list[Left] = []
    coming: set[int] = set()
    if spec is not None and options.ahead:
        with translated_errors(what):
            ahead = make_ahead(
                connection, target, tree, spec, options, now,
                deadline=deadline, stop=stop, log=log, dry_run=dry_run,
            )  # fmt: skip
            # What is made counts as one of the newest.
            if dry_run:
                coming = _coming(tree, spec, ahead, now)
            else:
                tree = read_tree(connection, target)
        made, left = ahead.made, list(ahead.left)
    retired: list[Retired] = []
    if options.retires:
        for one in _retired(
            connection,
            target,
            tree,
            column,
            options,
            now,
            coming,
            actor,
            deadline,
            stop,
            log,
            dry_run,
        ):
            if isinstance(one, Left):
                left.append(one)
            else:
                retired.append(one)
    with translated_errors(f"analyzing {name}"):
        share, analyzed, held = _analyze(
            connection, target, options, deadline, stop, log, dry_run=dry_run
        )
    left += [] if held is None else [held]
    for one in left:
        log("left for the next run" if one.busy else "left undone", what=one.what, why=one.why)
    return Maintained(name, made, tuple(retired), tuple(left), analyzed, share, dry_run)


def _coming(tree: Branch, spec: PartitionSpec, ahead: Ahead, now: datetime) -> set[int]:
    """The tables that would have a partition of the current period."""
    label = spec.period_holding(now).label
    without = {one.what for one in ahead.left}
    return {
        place.oid for place in tree.ranges_of(spec.column) if f"{place.name} {label}" not in without
    }


def _retired(
    connection: Connection,
    target: Table,
    tree: Branch,
    column: str,
    options: MaintenanceOptions,
    now: datetime,
    coming: set[int],
    actor: str,
    deadline: Deadline,
    stop: Stop,
    log: EventLog,
    dry_run: bool,
) -> list[Retired | Left]:
    label = f"database {connection.info.dbname}"
    ledger.require_ledger(connection, label=label)
    if not dry_run:
        # An older release's has no place for what is retired.
        ledger.ensure_ledger(connection, label=label)
    with translated_errors(f"looking for old partitions of {target.name}"):
        refuse_unretirable(connection, target)
        going = due(connection, target, tree, column, options, now, coming)
    retention = Retention(
        connection, target, column, options, actor, deadline=deadline, stop=stop, log=log
    )
    found: list[Retired | Left] = []
    for one in going:
        if stop.is_set():
            raise Stopped(
                f"maintenance of {target.name} was stopped; {len(found)} of {len(going)} old partitions were looked at"
            )
        outcome = retention.retire(one, dry_run=dry_run)
        found += [] if outcome is None else [outcome]
    return found


def _analyze(
    connection: Connection,
    target: Table,
    options: MaintenanceOptions,
    deadline: Deadline,
    stop: Stop,
    log: EventLog,
    *,
    dry_run: bool,
) -> tuple[float | None, bool, Left | None]:
    """The share of rows that changed since the table was analyzed as a whole, whether it was now, and why not."""
    if options.analyze_share is None:
        return None, False, None
    known = {"target": str(target.name), "oid": target.oid}
    has_ledger = scalar(connection, queries("retention")["has_analyzed"])
    row = (
        connection.execute(queries("retention")["counters"], known).fetchone()
        if has_ledger
        else None
    )
    share: float | None = scalar(
        connection,
        queries("retention")["changed_share"],
        {"oid": target.oid, "counters": None if row is None else Jsonb(row[0])},
    )
    if share is None or share < options.analyze_share:
        return share, False, None
    if dry_run:
        return share, True, None
    # The partitions have autovacuum; before version 18 they are taken along all the same.
    only = sql.SQL("ONLY " if connection.info.server_version >= _ANALYZE_ONLY else "")
    statement = sql.SQL("ANALYZE {}{}").format(only, statements.ident(target.name))
    try:
        # Outside of a transaction, so that a table's lock is let go once that table is done.
        locking.in_attempts(
            lambda _: connection.execute(statement),
            lambda: locking.blockers(connection, target, []),
            what=f"analyzing {target.name}",
            table=target.name,
            deadline=deadline.left(),
            remedy="the next run tries again",
            stop=stop,
            log=log,
        )
    except LockBudgetExceeded as blocked:
        return share, False, Left(str(target.name), blocked.what, busy=True)
    if has_ledger:
        with connection.transaction():
            connection.execute(queries("retention")["set_analyzed"], known)
    log("table analyzed as a whole", table=str(target.name), changed_share=round(share, 3))
    return share, True, None
