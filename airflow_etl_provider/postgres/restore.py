"""Bringing back a partition that retention took out, as long as the janitor has not dropped it.

What it lacks after its time aside is given to it before the locks, as for a rollback; under them it is
attached, and the coverage of its range is what it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from airflow_etl_provider.core.errors import (
    CatalogError,
    ContractError,
    EtlError,
    StateError,
    Stopped,
)
from airflow_etl_provider.core.maintenance import MaintenanceOptions
from airflow_etl_provider.core.names import TableName, shortened
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.suggest import nearest
from airflow_etl_provider.postgres import ledger, locking, statements
from airflow_etl_provider.postgres.catalog import Partition, Table, range_of, read_table, scalar
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.locking import PartitionMoved
from airflow_etl_provider.postgres.mending import (
    add_validated,
    drop_what_is_gone,
    mend,
    mend_foreign_keys,
    unpaired,
    validate,
)
from airflow_etl_provider.postgres.partitions import (
    keep_out_of_default,
    let_into_default,
    refuse_taken,
)
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.releasing import foreign_keys_in
from airflow_etl_provider.postgres.renames import follow_renames, keys_by_now
from airflow_etl_provider.postgres.retiring import Moved
from airflow_etl_provider.postgres.tree import Branch, read_tree
from airflow_etl_provider.postgres.twin import (
    Index,
    Parent,
    Storage,
    add_constraint,
    build_index,
    index_storage,
    own_indexes,
    paired_indexes,
    parent_indexes,
)

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Restored:
    """A partition that is back; ``lock_ms`` is how long others could have had to wait."""

    partition: TableName
    target: TableName
    bound: str
    lock_ms: float

    def as_json(self) -> dict[str, Any]:
        return {
            "partition": str(self.partition),
            "target": str(self.target),
            "bound": self.bound,
            "lock_ms": round(self.lock_ms, 2),
        }


def restore(
    connection: Connection,
    partition: TableName,
    options: MaintenanceOptions,
    *,
    stop: Stop,
    log: EventLog,
) -> Restored:
    """Attach a retired partition again, under its old name.

    It gets what the table has got since, and loses what the table has dropped: columns with their values, CHECKs,
    keys, NOT NULL. A CHECK or a key that it had alone goes, too, since nothing tells it from those; which, is
    logged. A foreign key of its own is given back where it still holds.

    :param connection: in autocommit; its ``lock_timeout`` is set.
    :raises StateError: none is kept under that name, or its range has a partition again.
    :raises CatalogError: rows of its range are in DEFAULT by now, or its table is gone.
    :raises ContractError: its rows no longer fit the table as it is now.
    :raises LockBudgetExceeded: readers held their locks up to the deadline; nothing was changed.
    """
    label = f"database {connection.info.dbname}"
    ledger.require_ledger(connection, label=label, current=True)
    with translated_errors(f"restoring {partition}"):
        row = _kept(connection, partition)
        target = read_table(connection, TableName.parse(row["target"]), label=label)
        work = _Restore(connection, row, partition, target, options, stop, log)
        done = work.run()
    log(
        "partition restored",
        table=str(done.target),
        partition=str(done.partition),
        bound=done.bound,
        lock_ms=round(done.lock_ms, 1),
    )
    return done


def _kept(connection: Connection, partition: TableName) -> dict[str, Any]:
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(queries("retention")["retired"], {"ids": None}).fetchall()
    for row in rows:
        kept = TableName.parse(row["kept"])
        known = {"schema": kept.schema, "name": kept.name}
        if row["partition"] == str(partition) and (
            connection.execute(queries("mending")["file"], known).fetchone() is not None
        ):
            return row
    names = [row["partition"] for row in rows]
    raise StateError(
        f"no retired partition {partition} is kept{nearest(str(partition), names)}",
        remedy="what was dropped can only be loaded again: SELECT * FROM etl.retired_partitions tells what is kept",
    )


def _add_at_once(connection: Connection, table: TableName, name: str, definition: str) -> None:
    """As :func:`add_validated`, for a partitioned table, which takes no foreign key that is not valid."""
    known = {"schema": table.schema, "name": table.name, "constraint": name}
    if not scalar(connection, queries("catalog")["has_constraint"], known):
        with connection.transaction():
            connection.execute(add_constraint(table, name, definition.removesuffix(" NOT VALID")))


class _Restore:
    """One restoration; *connection* is in autocommit and belongs to the caller."""

    def __init__(
        self,
        connection: Connection,
        row: Mapping[str, Any],
        partition: TableName,
        target: Table,
        options: MaintenanceOptions,
        stop: Stop,
        log: EventLog,
    ) -> None:
        self._connection = connection
        self._row = row
        self._final = partition
        self._kept = TableName.parse(row["kept"])
        self._moved = [Moved.from_json(data) for data in row["names"]]
        self._target = target
        self._options = options
        self._stop = stop
        self._log = log
        self._budget_ms = round(options.lock_budget.total_seconds() * 1000)

    def run(self) -> Restored:
        locking.require_budget(self._connection, self._options.lock_budget)
        self._connection.execute(
            "SELECT set_config('lock_timeout', %s, false)", (str(self._budget_ms),)
        )
        place = self._place()
        try:
            return locking.in_attempts(
                lambda _: self._attempt(place),
                lambda: locking.blockers(self._connection, place, [self._oid()]),
                what=f"restoring {self._final}",
                table=self._target.name,
                deadline=self._options.lock_deadline,
                remedy="nothing was changed: end the session that blocks (SELECT pg_terminate_backend(pid)), then try "
                "again",
                stop=self._stop,
                log=self._log,
            )
        except (EtlError, psycopg.Error):
            # Without the partition late rows of its range shall go to DEFAULT as before.
            constraint = statements.excluding_name_of(self._row["bound"])
            let_into_default(self._connection, place, constraint, log=self._log)
            raise

    def _place(self) -> Branch:
        """The table that it hung on."""
        name = self._row["parent"]
        for branch in read_tree(self._connection, self._target).whole():
            if str(branch.name) == name and branch.column is not None:
                return branch
        raise CatalogError(
            f"{name}, on which {self._final} hung, is no longer part of {self._target.name}",
            remedy=f"attach {self._kept} by hand where it belongs",
        )

    def _attempt(self, place: Branch) -> Restored:
        again = [one.name for one in place.below if one.bound == self._row["bound"]]
        if again:
            raise self._taken(f"{again[0]}")
        refuse_taken(self._connection, self._final, place)
        follow_renames(
            self._connection,
            self._kept,
            self._target.name,
            (self._row["rebuild"] or {}).get("columns"),
            log=self._log,
        )
        column = place.column or ""
        condition = sql.SQL("{} IS NOT NULL AND {}").format(
            sql.Identifier(column), statements.in_range(column, *range_of(self._row["bound"]))
        )
        keep_out_of_default(
            self._connection,
            place,
            [(statements.excluding_name_of(self._row["bound"]), condition)],
            lock_timeout_ms=self._budget_ms,
        )
        self._mend(place, condition)
        return self._attach(place)

    def _taken(self, by: str) -> StateError:
        return StateError(
            f"{self._target.name} has a partition for {self._row['bound'].removeprefix('FOR VALUES ')} again: {by}",
            remedy=f"look at both, and move the rows that are missing from {self._kept} by hand",
        )

    def _mend(self, place: Branch, condition: sql.Composable) -> None:
        """What the table has got since; what an earlier attempt did is not done again."""
        connection = self._connection
        # An index that the table has not is its own, or was dropped since, which nobody can tell: one that keeps no
        # row out may stay.
        drop_what_is_gone(
            connection,
            self._kept,
            place,
            place.oid,
            [
                index
                for index in unpaired(self._has_indexes(), self._indexes(place))
                if index.is_unique or index.constraint_type is not None
            ],
            log=self._log,
        )
        mend(connection, self._kept, place, place.oid)
        try:
            mend_foreign_keys(
                connection,
                self._kept,
                place.oid,
                keys_by_now(
                    connection,
                    self._kept,
                    self._target.name,
                    (self._row["rebuild"] or {}).get("columns"),
                    foreign_keys_in(self._row["rebuild"]),
                    log=self._log,
                ),
                add=add_validated if self._is_leaf() else _add_at_once,
                log=self._log,
            )
            with connection.transaction():
                pairs = self._indexes(place)
                wanted = [index for index, _ in pairs]
                stored = index_storage(connection, wanted, None, leaf=self._is_leaf())
                for number, (index, own) in enumerate(pairs):
                    if own is None:
                        name = f"{shortened(self._kept.name, room=5)}_r{number}"
                        for step in self._build(name, index, stored.get(index.oid)):
                            connection.execute(step)
            if not self._has(statements.BOUND_CHECK):
                with connection.transaction():
                    connection.execute(
                        statements.bound_check(self._kept, condition) + sql.SQL(" NOT VALID")
                    )
            validate(connection, self._kept, statements.BOUND_CHECK)
        except psycopg.errors.IntegrityError as error:
            raise ContractError(
                f"rows of {self._kept} do not fit {self._target.name} as it is now: {error.diag.message_primary}",
                remedy="mend the table's rows, then restore it again",
            ) from None

    def _indexes(self, place: Branch) -> list[tuple[Index, Index | None]]:
        """The indexes that it must have, each with the one that it has."""
        return paired_indexes(self._has_indexes(), parent_indexes(self._connection, place))

    def _has_indexes(self) -> list[Index]:
        kept = Partition(self._kept, self._oid(), "", None, None, False, self._is_leaf())
        if kept.is_leaf:
            return own_indexes(self._connection, kept)
        return parent_indexes(self._connection, Parent(self._kept, kept.oid))

    def _build(self, name: str, index: Index, stored: Storage | None) -> list[sql.Composed]:
        if index.constraint_type is None or self._is_leaf():
            return build_index(self._kept, name, index, stored)
        # A partitioned table takes no constraint over an index that is there.
        return [add_constraint(self._kept, name, index.constraint_definition or "")]

    def _attach(self, place: Branch) -> Restored:
        connection, row = self._connection, self._row
        gone = self._columns_to_drop(place)
        steps = statements.script(self._steps(place, gone))
        default = [one.name for one in place.below if one.partition.is_default]
        with connection.transaction():
            until = time.monotonic() + self._options.lock_budget.total_seconds()
            locking.limit(connection, until)
            connection.execute(
                queries("rollback")["hold_streams"], {"target": str(self._target.name)}
            )
            ids = {"ids": [row["retirement_id"]]}
            connection.execute(queries("retention")["hold_retired"], ids)
            held = connection.execute(queries("retention")["retired"], ids).fetchone()
            if held is None:
                raise StateError(
                    f"{self._final} was restored or dropped by somebody else meanwhile",
                    remedy="SELECT * FROM etl.retired_partitions tells which",
                )
            for stream in row["coverage"]:
                ledger.restore_coverage(
                    connection,
                    stream["stream"],
                    stream["type"],
                    row["retirement_id"],
                    stream["pieces"],
                )
            connection.execute(
                queries("retention")["mark_restored"], {"retirement_id": row["retirement_id"]}
            )
            locked = locking.take(
                connection,
                [
                    (place.name, "SHARE UPDATE EXCLUSIVE"),
                    *((table, "ACCESS EXCLUSIVE") for table in default),
                    *((table.kept, "ACCESS EXCLUSIVE") for table in self._moved),
                ],
                until,
            )
            locking.limit(connection, until)
            try:
                connection.execute(steps)
            except psycopg.errors.InvalidObjectDefinition as error:
                raise self._taken(error.diag.message_primary or "one that overlaps") from None
            except psycopg.errors.DatatypeMismatch:
                raise PartitionMoved(f"{place.name} was altered meanwhile") from None
            if self._stop.is_set():
                raise Stopped(f"restoring {self._final} was stopped; nothing was changed")
        lock_ms = (time.monotonic() - (locked or until)) * 1000
        if gone:
            self._log(
                "columns that the table no longer has go",
                table=str(self._target.name),
                partition=str(self._final),
                columns=gone,
            )
        return Restored(
            self._final,
            self._target.name,
            row["bound"].removeprefix("FOR VALUES "),
            lock_ms,
        )

    def _steps(self, place: Branch, gone: Sequence[str]) -> list[sql.Composable]:
        """The catalog changes, in order; written before any lock is taken."""
        steps: list[sql.Composable] = [
            *(statements.drop_column(self._kept, name) for name in gone),
            # The server's own rendering.
            statements.attach_as(place.name, self._kept, sql.SQL(self._row["bound"])),
            statements.drop_constraint(self._kept, statements.BOUND_CHECK),
        ]
        for table in self._moved:
            steps += statements.move(table.kept, table.was)
        for table in self._moved:
            taken = {
                name
                for (name,) in self._connection.execute(
                    queries("retention")["taken"],
                    {"schema": table.was.schema, "names": list(table.indexes.values())},
                )
            }
            there = {
                name
                for (name,) in self._connection.execute(
                    queries("retention")["taken"],
                    {"schema": table.kept.schema, "names": list(table.indexes)},
                )
            }
            steps += [
                # One over a column that goes is gone by then.
                statements.rename_index(table.was.schema, new, old, if_there=bool(gone))
                for new, old in table.indexes.items()
                if new in there and old not in taken
            ]
        return steps

    def _columns_to_drop(self, place: Branch) -> list[str]:
        """What the table has dropped since; ATTACH takes no column more."""
        return [
            name
            for (name,) in self._connection.execute(
                queries("rollback")["columns_to_drop"], {"parent": place.oid, "oid": self._oid()}
            )
        ]

    def _oid(self) -> int:
        found: int = scalar(
            self._connection,
            "SELECT to_regclass(%(name)s)::oid::bigint",
            {"name": str(self._kept)},
        )
        return found

    def _is_leaf(self) -> bool:
        found: bool = scalar(
            self._connection,
            "SELECT relkind = 'r' FROM pg_class WHERE oid = %(oid)s",
            {"oid": self._oid()},
        )
        return found

    def _has(self, constraint: str) -> bool:
        known = {"schema": self._kept.schema, "name": self._kept.name, "constraint": constraint}
        found: bool = scalar(self._connection, queries("catalog")["has_constraint"], known)
        return found
