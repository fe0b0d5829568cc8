"""Partitions for the periods to come, made before anybody needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import CatalogError, EtlError, LockBudgetExceeded
from airflow_etl_provider.core.load import PartitionRange
from airflow_etl_provider.core.maintenance import Left, MaintenanceOptions
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.partition import PartitionSpec, Period
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.postgres import locking, statements
from airflow_etl_provider.postgres.catalog import Table
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.locking import Deadline
from airflow_etl_provider.postgres.partitions import (
    attach_empty,
    create_like,
    exclude_from_default,
    holding,
    let_into_default,
    naming,
    range_for,
    refuse_default_rows,
    same_range,
    sibling_of,
)
from airflow_etl_provider.postgres.tree import Branch

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Ahead:
    """What was made, in order, and what could not be."""

    made: tuple[TableName, ...]
    left: tuple[Left, ...]


def make_ahead(
    connection: Connection,
    target: Table,
    tree: Branch,
    spec: PartitionSpec,
    options: MaintenanceOptions,
    now: datetime,
    *,
    deadline: Deadline,
    stop: Stop,
    log: EventLog,
    dry_run: bool,
) -> Ahead:
    """Make the partitions of the period that holds *now* and of so many after it, where they are missing.

    Each is made aside, as its siblings are partitioned, and attached in a transaction of its own; those that
    exist are left as they are, and so is a period that is cut otherwise. Rows of DEFAULT that belong there
    are in the way, as they are for a publish.

    :raises CatalogError: the column has partitions at two levels, so that it is not clear at which to make them.
    :raises Stopped: it was told to stop; what was made until then stays.
    """
    places = list(tree.ranges_of(spec.column))
    for place in places:
        if any(below is not place for below in place.ranges_of(spec.column)):
            raise CatalogError(
                f"{target.name} is partitioned by {spec.column} at more than one level: where a partition of one "
                f"{spec.every} belongs is not clear",
                remedy="make its partitions by hand, and leave ahead out",
            )
    column_type = target.column(spec.column, use="the partition column").type
    made: list[TableName] = []
    left: list[Left] = []
    for place in places:
        for period in _periods(spec, now, options.ahead):
            work = _Making(
                connection, place, spec, options, column_type, deadline=deadline, stop=stop, log=log
            )
            try:
                name = work.make(period, dry_run=dry_run)
            except LockBudgetExceeded as blocked:
                left.append(Left(f"{place.name} {period.label}", blocked.what, busy=True))
            except CatalogError as error:
                left.append(Left(f"{place.name} {period.label}", str(error)))
            else:
                made += [] if name is None else [name]
    return Ahead(tuple(made), tuple(left))


def _periods(spec: PartitionSpec, now: datetime, ahead: int) -> list[Period]:
    periods = [spec.period_holding(now)]
    for _ in range(ahead):
        periods.append(spec.period_holding(periods[-1].end))
    return periods


class _Making:
    """Making one partition of *place*."""

    def __init__(
        self,
        connection: Connection,
        place: Branch,
        spec: PartitionSpec,
        options: MaintenanceOptions,
        column_type: str,
        *,
        deadline: Deadline,
        stop: Stop,
        log: EventLog,
    ) -> None:
        self._connection = connection
        self._place = place
        self._spec = spec
        self._options = options
        self._column_type = column_type
        self._deadline = deadline
        self._stop = stop
        self._log = log

    def make(self, period: Period, *, dry_run: bool) -> TableName | None:
        """The partition that was made; ``None`` where there is one.

        :raises CatalogError: the period is cut otherwise, its rows are in DEFAULT, or its name is taken, or one of
            what hangs on it.
        :raises LockBudgetExceeded: readers held the table up to the deadline.
        """
        connection, place, spec = self._connection, self._place, self._spec
        existing = [branch.partition for branch in place.below]
        habit = naming(connection, place, spec, existing, self._column_type)
        part = range_for(habit, spec, period, self._column_type)
        if self._is_there(part):
            return None
        name = TableName(place.name.schema, part.name)
        refuse_default_rows(connection, place, spec.column, [part])
        sibling = sibling_of(connection, place, self._column_type)
        create = create_like(connection, name, place, sibling)
        if dry_run:
            return name
        made = False
        with translated_errors(f"making partition {name} of {place.name}"):
            try:
                made = locking.in_attempts(
                    lambda _: self._attach(name, part, create),
                    lambda: locking.blockers(connection, place, []),
                    what=f"making partition {name}",
                    table=place.name,
                    deadline=self._deadline.left(),
                    remedy="nothing was changed; the next run tries again",
                    stop=self._stop,
                    log=self._log,
                )
                if not made:
                    # Whoever was first may have cut it otherwise.
                    self._is_there(part)
            except (EtlError, psycopg.Error):
                # Without the partition its rows shall go to DEFAULT as before.
                let_into_default(connection, place, statements.excluding_name(part), log=self._log)
                raise
        if made:
            self._log("partition made", table=str(place.name), partition=str(name))
        return name if made else None

    def _is_there(self, part: PartitionRange) -> bool:
        """:raises CatalogError: the range is cut otherwise, or something else has the name of its partition."""
        found = holding(self._connection, self._place, part, self._column_type)
        if found and not (
            len(found) == 1 and same_range(self._connection, found[0], part, self._column_type)
        ):
            bounds = "; ".join(f"{one.table} {one.bound}" for one in found)
            raise CatalogError(
                f"{part.low} to {part.high} is cut otherwise: {bounds}",
                remedy="let partition.every and partition.timezone say how the table is really partitioned",
            )
        return bool(found)

    def _attach(
        self, name: TableName, part: PartitionRange, create: Sequence[sql.Composed]
    ) -> bool:
        budget = self._options.lock_budget
        locking.ask_autovacuum_to_leave(self._connection, self._place, [])
        exclude_from_default(
            self._connection,
            self._place,
            self._spec.column,
            [part],
            lock_timeout_ms=round(budget.total_seconds() * 1000),
        )
        return attach_empty(
            self._connection,
            self._place,
            name,
            part,
            create,
            self._column_type,
            lock_budget=budget,
        )
