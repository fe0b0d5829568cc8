"""Taking a partition out: detached in an instant, kept aside for a while, and dropped.

Each goes in one short transaction of its own with what the ledger says of it: once no other partition holds its
range, that is neither covered nor missing; the watermark stays where it is. Detached it stays in the staging
schema, registered, so that it can be restored until the janitor drops it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import uuid6
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from airflow_etl_provider.core.errors import LockBudgetExceeded, Stopped
from airflow_etl_provider.core.load import LoadState
from airflow_etl_provider.core.maintenance import Left, MaintenanceOptions, Retired
from airflow_etl_provider.core.names import TableName, short_id, shortened
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.postgres import ledger, locking, statements
from airflow_etl_provider.postgres.catalog import Partition, Table, scalar
from airflow_etl_provider.postgres.cursors import cursor_type_sql, plain_type
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.ledger import STAGING_SCHEMA
from airflow_etl_provider.postgres.locking import Deadline, PartitionMoved
from airflow_etl_provider.postgres.partitions import let_in_again
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.releasing import release_retired
from airflow_etl_provider.postgres.renames import identities
from airflow_etl_provider.postgres.retention import Due
from airflow_etl_provider.postgres.tree import Branch, read_tree

Connection = psycopg.Connection[Any]

#: A load that was begun and not heard of for so long counts no more, unless a session works for it: it has as
#: long to be tried again as the janitor by itself leaves to one that failed.
DEAD_AFTER = timedelta(days=7)
#: What somebody else at the same partition does to us: it is looked at again.
_RACES = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedObject,
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateObject,
    psycopg.errors.InternalError_,
)


@dataclass(frozen=True, slots=True)
class Moved:
    """A table that goes aside: what it was called, what it is called there, and its indexes, old names by new."""

    was: TableName
    kept: TableName
    indexes: Mapping[str, str]

    @classmethod
    def of(cls, was: TableName, indexes: Sequence[str], retirement_id: str, number: int) -> Moved:
        suffix = f"_{short_id(retirement_id)}" + (f"_{number}" if number else "")
        kept = f"{shortened(was.name, room=len(suffix))}{suffix}"
        return cls(
            was,
            TableName(STAGING_SCHEMA, kept),
            {f"{shortened(kept, room=5)}_i{place}": name for place, name in enumerate(indexes)},
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Moved:
        return cls(TableName.parse(data["was"]), TableName.parse(data["kept"]), data["indexes"])

    def as_json(self) -> dict[str, Any]:
        return {"was": str(self.was), "kept": str(self.kept), "indexes": dict(self.indexes)}

    def aside(self) -> list[sql.Composable]:
        """The statements that move it, with its indexes out of the way of whatever gets their names."""
        return [
            *(
                statements.rename_index(self.was.schema, old, new)
                for new, old in self.indexes.items()
            ),
            *statements.move(self.was, self.kept),
        ]


class Retention:
    """Takes partitions of one table out; *connection* is in autocommit and belongs to the caller."""

    def __init__(
        self,
        connection: Connection,
        target: Table,
        column: str,
        options: MaintenanceOptions,
        actor: str,
        *,
        deadline: Deadline,
        stop: Stop,
        log: EventLog,
    ) -> None:
        self._connection = connection
        self._target = target
        self._column = column
        self._type = target.column(column, use="the partition column").type
        self._options = options
        self._actor = actor
        self._deadline = deadline
        self._stop = stop
        self._log = log
        #: Unfinished loads that were seen to leave the partition alone, as they were then.
        self._harmless: list[tuple[str, str]] = []
        self._dead: set[str] = set()

    def retire(self, one: Due, *, dry_run: bool) -> Retired | Left | None:
        """Take one partition out; ``None`` if somebody else did.

        :raises Stopped: it was told to stop; this partition stays.
        """
        name = one.branch.name
        with translated_errors(f"retiring {name}"):
            reason = self._hindrance(one)
            if reason is not None:
                return reason
            if dry_run:
                rows, size = self._size(one)
                return Retired(name, _shown(one.branch.partition), None, rows, size)
            return self._in_attempts(one)

    # -- what is in the way -----------------------------------------------------------------------

    def _hindrance(self, one: Due) -> Left | None:
        """Why a partition cannot go now, if anything."""
        name = str(one.branch.name)
        dependents = [
            text
            for (text,) in self._connection.execute(
                queries("retention")["dependents"], {"oids": one.oids}
            )
        ]
        if dependents:
            return Left(
                name,
                f"{'; '.join(dependents)}: let it refer to {self._target.name}, or drop it, and the partition goes with "
                "the next run",
            )
        harmless: list[tuple[str, str]] = []
        for load in self._unfinished():
            if self._touches(load, one.branch.partition):
                return _held(name, load)
            harmless.append((load["load_id"], load["state"]))
        self._harmless = harmless
        return None

    def _unfinished(self) -> list[dict[str, Any]]:
        """The loads that may still write into the table; of the dead ones only the log tells."""
        with self._connection.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(
                queries("retention")["unfinished"],
                {"target": str(self._target.name), "patience": DEAD_AFTER},
            ).fetchall()
        for load in found:
            if load["is_dead"] and load["load_id"] not in self._dead:
                self._dead.add(load["load_id"])
                self._log(
                    "dead load passed over",
                    load_id=load["load_id"],
                    stream=load["stream"],
                    started_at=load["started_at"].isoformat(timespec="seconds"),
                )
        return [load for load in found if not load["is_dead"]]

    def _touches(self, load: Mapping[str, Any], partition: Partition) -> bool:
        """By its window where that is a range of the partition column, by its rows where those are staged."""
        by_window = (
            load["cursor"] == self._column
            and load["window_type"] is not None
            and load["bounds"] != ledger.NULLS_ONLY
            and plain_type(load["window_type"]) == plain_type(self._type)
        )
        if by_window:
            overlaps: bool = scalar(
                self._connection,
                queries("retention")["overlaps"].format(t=cursor_type_sql(self._type)),
                {
                    "window_low": load["window_low"],
                    "window_high": load["window_high"],
                    "low": partition.low,
                    "high": partition.high,
                },
            )
            return overlaps
        if load["state"] in (LoadState.STARTED, LoadState.FAILED) or not load["is_staged"]:
            return True
        staging = TableName.parse(load["staging"])
        known = {"table": str(staging), "column": self._column}
        if not scalar(self._connection, queries("retention")["has_column"], known):
            return True
        rows: bool = scalar(
            self._connection,
            sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {})").format(
                statements.ident(staging),
                statements.in_range(self._column, partition.low, partition.high),
            ),
        )
        return rows

    # -- taking it out ----------------------------------------------------------------------------

    def _in_attempts(self, first: Due) -> Retired | Left | None:
        known = [first]

        def attempt(number: int) -> Retired | Left | None:
            if number > 1:
                now = self._again(first)
                if now is None:
                    return None
                known[0] = now
            try:
                locking.ask_autovacuum_to_leave(self._connection, first.place, known[0].oids)
                return self._detach(known[0])
            except _RACES:
                raise PartitionMoved(
                    f"{first.branch.name} was changed by somebody else meanwhile"
                ) from None

        try:
            return locking.in_attempts(
                attempt,
                lambda: locking.blockers(self._connection, first.place, known[0].oids),
                what=f"retiring {first.branch.name}",
                table=first.place.name,
                deadline=self._deadline.left(),
                remedy="nothing was changed; the next run tries again",
                stop=self._stop,
                log=self._log,
            )
        except LockBudgetExceeded as blocked:
            return Left(str(first.branch.name), blocked.what, busy=True)

    def _again(self, one: Due) -> Due | None:
        """The partition as it is now: a load may have exchanged it, or somebody else taken it out."""
        for place in read_tree(self._connection, self._target).ranges_of(self._column):
            for branch in place.below if place.oid == one.place.oid else ():
                if branch.bound == one.branch.bound:
                    return Due(place, branch, one.why)
        return None

    def _detach(self, one: Due) -> Retired | Left | None:
        connection, branch = self._connection, one.branch
        partition = branch.partition
        retirement_id = str(uuid6.uuid7())
        moved = self._moved(branch, retirement_id)
        kept = moved[0].kept
        rows, size = self._size(one)
        steps = statements.script(
            [
                statements.detach(one.place.name, branch.name),
                *let_in_again(connection, one.place, partition),
                *(step for table in moved for step in table.aside()),
            ]
        )
        tables = [
            *(table.name for table in branch.whole()),
            *self._default(one.place),
        ]
        with connection.transaction():
            until = time.monotonic() + self._options.lock_budget.total_seconds()
            locking.limit(connection, until)
            # As publish and rollback do: streams first, so that none of their loads can publish meanwhile.
            connection.execute(
                queries("rollback")["hold_streams"], {"target": str(self._target.name)}
            )
            for load in self._unfinished():
                if (load["load_id"], load["state"]) not in self._harmless:
                    # It has begun, or gone on, since it was looked at.
                    return _held(str(branch.name), load)
            self._record(one, retirement_id, moved, rows, size)
            locking.take(
                connection,
                [(one.place.name, "ACCESS EXCLUSIVE")]
                + [(table, "ACCESS EXCLUSIVE") for table in tables],
                until,
            )
            self._require_unmoved(one)
            locking.limit(connection, until)
            connection.execute(steps)
            if self._stop.is_set():
                raise Stopped(f"retiring {branch.name} was stopped; nothing was changed")
        self._log(
            "partition retired",
            table=str(self._target.name),
            partition=str(branch.name),
            bound=_shown(partition),
            kept=str(kept),
            why=one.why,
        )
        # What a reader of it, or of what it refers to, still holds up is done by the janitor.
        with suppress(
            psycopg.errors.LockNotAvailable,
            psycopg.errors.QueryCanceled,
            psycopg.errors.DeadlockDetected,
        ):
            release_retired(connection, kept, retirement_id, budget=self._options.lock_budget)
            if not self._options.keep_detached:
                drop_retired(connection, retirement_id, kept)
                return Retired(branch.name, _shown(partition), None, rows, size)
        return Retired(branch.name, _shown(partition), kept, rows, size)

    def _size(self, one: Due) -> tuple[int, int]:
        """Rows, as the server estimates, and bytes."""
        row = self._connection.execute(queries("retention")["size"], {"oids": one.oids}).fetchone()
        size, rows = row or (0, 0)
        return rows, size

    def _default(self, place: Branch) -> list[TableName]:
        return [one.name for one in place.below if one.partition.is_default]

    def _moved(self, branch: Branch, retirement_id: str) -> list[Moved]:
        """The partition, and what hangs on it, with their names aside."""
        tables = list(branch.whole())
        indexes: dict[int, list[str]] = {}
        for oid, name in self._connection.execute(
            queries("retention")["index_names"], {"oids": [one.oid for one in tables]}
        ):
            indexes.setdefault(oid, []).append(name)
        return [
            Moved.of(one.name, indexes.get(one.oid, ()), retirement_id, number)
            for number, one in enumerate(tables)
        ]

    def _record(
        self, one: Due, retirement_id: str, moved: Sequence[Moved], rows: int, size: int
    ) -> None:
        """Write the ledger, before the table locks."""
        connection, partition = self._connection, one.branch.partition
        covered: list[dict[str, Any]] = []
        streams = connection.execute(
            queries("retention")["covering_streams"],
            {"target": str(self._target.name), "column": self._column},
        ).fetchall()
        # As it is under the lock of the streams: others may have retired the same range elsewhere meanwhile.
        held = (
            read_tree(connection, self._target).ranges_held(self._column, without=one.branch.oid)
            if streams
            else ()
        )
        for stream, cursor_type in streams:
            pieces = ledger.retire_coverage(
                connection,
                stream,
                cursor_type,
                low=partition.low,
                high=partition.high or "",
                held=list(held),
                retirement_id=retirement_id,
            )
            covered.append({"stream": stream, "type": cursor_type, "pieces": pieces})
        columns = identities(connection, [one.branch.name], self._target.name)
        connection.execute(
            queries("retention")["retire"],
            {
                "retirement_id": retirement_id,
                "target": str(self._target.name),
                "parent": str(one.place.name),
                "partition": str(one.branch.name),
                "bound": partition.bound,
                "kept": str(moved[0].kept),
                "names": Jsonb([table.as_json() for table in moved]),
                "rebuild": Jsonb({"columns": columns.get(str(one.branch.name))}),
                "coverage": Jsonb(covered),
                "rows": rows,
                "bytes": size,
                "why": one.why,
                "actor": self._actor,
                "keep": self._options.keep_detached,
            },
        )

    def _require_unmoved(self, one: Due) -> None:
        """Under the locks: the partition is the one that was looked at, with what hangs on it."""
        rows = self._connection.execute(
            queries("retention")["tree"], {"oid": one.branch.oid}
        ).fetchall()
        attached = scalar(
            self._connection,
            "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = %(oid)s AND inhparent = %(parent)s)",
            {"oid": one.branch.oid, "parent": one.place.oid},
        )
        below = {row[0] for row in rows} | {one.branch.oid}
        if not attached or below != set(one.oids):
            raise PartitionMoved(f"{one.branch.name} was changed by somebody else meanwhile")


def drop_retired(connection: Connection, retirement_id: str, kept: TableName) -> None:
    """Drop a retired partition for good, in one transaction with its mark in the ledger."""
    ids = {"ids": [retirement_id]}
    with connection.transaction():
        connection.execute(queries("retention")["hold_retired"], ids)
        connection.execute(sql.SQL("DROP TABLE {}").format(statements.ident(kept)))
        connection.execute(queries("retention")["mark_dropped"], ids)


def _held(name: str, load: Mapping[str, Any]) -> Left:
    why = f"load {load['load_id']} of stream {load['stream']} is {load['state']}, not finished, and may write into it"
    if load["state"] == LoadState.STARTED:
        why += f"; if nobody works on it any more, it no longer counts once it has lain still for {DEAD_AFTER.days} days"
    return Left(name, why, busy=True)


def _shown(partition: Partition) -> str:
    return partition.bound.removeprefix("FOR VALUES ")
