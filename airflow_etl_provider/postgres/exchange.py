"""The exchange: tables that were built aside take the place of partitions in one short transaction.

Under the locks only the catalog changes, which takes milliseconds at any size. One budget bounds waiting
and work of an attempt together, so that readers queue behind us no longer than that.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import Stopped
from airflow_etl_provider.core.load import Manifest, Published, PublishedPartition, Strategy
from airflow_etl_provider.core.names import TableName, short_id, shortened
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.publish import Counts, PublishOptions
from airflow_etl_provider.postgres import ledger, locking, statements
from airflow_etl_provider.postgres.catalog import Partition, Table, scalar
from airflow_etl_provider.postgres.ledger import STAGING_SCHEMA
from airflow_etl_provider.postgres.locking import PartitionMoved
from airflow_etl_provider.postgres.mending import bring_in_line, differences
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.twin import (
    Parent,
    Sibling,
    final_index_names,
    last_touches,
    move_statistics,
    own_indexes,
    parent_indexes,
    working_name,
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a partition hangs.

    :param name: what the partition is called once it hangs there.
    :param clause: what ATTACH says of its bound.
    :param bound: the same for a reader of the ledger.
    :param condition: which rows belong there, for a CHECK.
    """

    name: TableName
    parent: Parent
    clause: sql.Composable
    bound: str
    condition: sql.Composable


@dataclass(frozen=True, slots=True)
class Change:
    """One partition to be exchanged, or made, like its ``sibling``, where ``old`` is ``None``."""

    place: Place
    new: TableName
    old: Partition | None
    rows: int
    rows_before: int
    bytes: int
    sibling: Sibling | None = None
    steps: tuple[sql.Composable, ...] = ()


class Exchange:
    """Exchanges partitions for one load; *connection* is in autocommit and belongs to the caller."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        manifest: Manifest,
        target: Table,
        options: PublishOptions,
        stop: Stop,
        log: EventLog,
    ) -> None:
        self._connection = connection
        self._manifest = manifest
        self._target = target
        self._options = options
        self._stop = stop
        self._log = log

    def run(
        self, attempt: Callable[[int], Published], looked_at: Callable[[], list[int]]
    ) -> Published:
        """What *attempt* returns, once it gets its locks.

        :param looked_at: the oids of the partitions that are in the way.
        :raises LockBudgetExceeded: readers held their locks up to the deadline; the load stays validated.
        """

        def polite(number: int) -> Published:
            locking.ask_autovacuum_to_leave(self._connection, self._target, looked_at())
            return attempt(number)

        return locking.in_attempts(
            polite,
            lambda: locking.blockers(self._connection, self._target, looked_at()),
            what=f"publishing load {self._manifest.load_id}",
            table=self._target.name,
            deadline=self._options.lock_deadline,
            remedy="the load stays validated: a retry publishes it without reading again; end the session "
            "that blocks (SELECT pg_terminate_backend(pid)), raise lock_deadline, or say on_lock_deadline='merge', "
            "which writes in place and waits for no reader",
            stop=self._stop,
            log=self._log,
        )

    def prepared(self, change: Change) -> Change:
        """*change* with the statements that make it, which are written before any lock is taken.

        :raises ContractError: the table was altered since the new partition was made, and that cannot follow.
        """
        bring_in_line(
            self._connection,
            change.new,
            change.place.parent,
            change.place.parent.oid if change.old is None else change.old.oid,
        )
        return replace(change, steps=tuple(self._steps(change)))

    def probe(self, changes: Sequence[Change], *, dimensions_first: bool) -> None:
        """Meet a reader in the way before anything long is done that the exchange needs its locks for."""
        locks = self._locks(changes, dimensions_first=dimensions_first)
        locking.probe(self._connection, locks, self._options.lock_budget)

    def apply(
        self,
        strategy: Strategy,
        changes: Sequence[Change],
        counts: Counts,
        *,
        verify: Callable[[], None],
        dimensions_first: bool,
        keys: Sequence[str] = (),
    ) -> Published:
        """Exchange *changes* and record them, in one transaction.

        :param verify: looks, in the transaction and before the locks that stop readers, whether what was
            built is still right.
        :param keys: columns that identify a row, where the publish goes by key.
        :raises PartitionMoved: a partition is not the one that was looked at.
        """
        connection, manifest = self._connection, self._manifest
        published = Published(
            load_id=manifest.load_id,
            stream=manifest.stream,
            target=manifest.target,
            strategy=strategy,
            window=manifest.window,
            rows_inserted=counts.inserted,
            rows_updated=counts.updated,
            rows_deleted=counts.deleted,
            rows_unchanged=counts.unchanged,
            rows_stale=counts.stale,
            partitions=tuple(
                PublishedPartition(
                    name=str(change.place.name),
                    bound=change.place.bound,
                    rows=change.rows,
                    bytes=change.bytes,
                    rows_before=change.rows_before,
                    previous=None if change.old is None else str(self._kept(change)),
                    lock_ms=0.0,
                )
                for change in changes
            ),
            lock_ms=0.0,
            position=ledger.position_of(connection, manifest.stream),
        )
        steps = statements.script([step for change in changes for step in change.steps])
        locks = self._locks(changes, dimensions_first=dimensions_first)
        with self._noticing_changes(changes), connection.transaction():
            locking.wait_at_most(connection, self._options.lock_deadline)
            position = ledger.enter_publish(connection, manifest, strategy)
            if isinstance(position, Published):
                return position
            # The stream's row is locked now: none of its other loads can add rows any more.
            verify()
            # The ledger is written before the table locks are taken, so that they are held for the
            # catalog changes alone.
            published = ledger.record_published(
                connection,
                replace(published, position=position),
                manifest,
                options=self._options.about_rows() | self._options.about_versions(),
                keys=keys,
                filled={str(c.place.name): c.new for c in changes if c.old is not None},
            )
            until = time.monotonic() + self._options.lock_budget.total_seconds()
            locked = locking.take(connection, locks, until)
            self._require_unmoved(changes)
            locking.limit(connection, until)
            with locking.own_work():
                connection.execute(steps)
            if self._stop.is_set():
                raise Stopped(
                    f"publishing load {manifest.load_id} was stopped; nothing was changed"
                )
        lock_ms = 0.0 if locked is None else (time.monotonic() - locked) * 1000
        ledger.record_lock_time(connection, manifest.load_id, lock_ms)
        return replace(
            published,
            lock_ms=lock_ms,
            partitions=tuple(replace(part, lock_ms=lock_ms) for part in published.partitions),
        )

    @contextmanager
    def _noticing_changes(self, changes: Sequence[Change]) -> Iterator[None]:
        """:raises PartitionMoved: a table was altered between the look at it and the locks."""
        try:
            yield
        except psycopg.errors.DatatypeMismatch:
            for change in changes:
                if differences(self._connection, change.new, change.place.parent):
                    raise PartitionMoved(
                        f"{change.place.parent.name} was altered meanwhile"
                    ) from None
            raise

    def _locks(
        self, changes: Sequence[Change], *, dimensions_first: bool
    ) -> list[tuple[TableName, str]]:
        """All locks in their order; where nothing is replaced, ATTACH alone needs a weaker one of the parent."""
        if not changes:
            return []
        parents = {change.place.parent.oid: change.place.parent for change in changes}
        modes = {
            oid: "ACCESS EXCLUSIVE"
            if any(c.old is not None for c in changes if c.place.parent.oid == oid)
            else "SHARE UPDATE EXCLUSIVE"
            for oid in parents
        }
        return locking.in_order(
            self._connection,
            [(parents[oid], modes[oid]) for oid in parents],
            replaced=[change.old.table for change in changes if change.old is not None],
            new=[change.new for change in changes],
            dimensions_first=dimensions_first,
        )

    def _require_unmoved(self, changes: Sequence[Change]) -> None:
        """Under the locks: the partitions are those that were looked at."""
        rows = self._connection.execute(
            queries("catalog")["attached"],
            {
                "parents": sorted({change.place.parent.oid for change in changes}),
                "names": [change.place.name.name for change in changes],
            },
        ).fetchall()
        now = {
            (parent, TableName(schema, name)): (oid, bound)
            for parent, schema, name, oid, bound in rows
        }
        for change in changes:
            expected = None if change.old is None else (change.old.oid, change.old.bound)
            if now.get((change.place.parent.oid, change.place.name)) != expected:
                raise PartitionMoved(
                    f"partition {change.place.name} was replaced by somebody else, or given other bounds, meanwhile"
                )

    def _steps(self, change: Change) -> list[sql.Composable]:
        """The catalog changes for one partition, in order."""
        connection, place, old = self._connection, change.place, change.old
        parent, final, sibling = place.parent, place.name, change.sibling
        own = own_indexes(connection, old) if sibling is None else sibling.indexes
        indexes = [*parent_indexes(connection, parent), *own]
        index_names = final_index_names(connection, indexes, old, parent.name, final, sibling)
        steps: list[sql.Composable] = []
        if old is not None:
            kept = self._kept(change)
            owned = connection.execute(
                queries("catalog")["child_index_names"], {"oid": old.oid}
            ).fetchall()
            steps.append(statements.detach(parent.name, old.table))
            steps += [
                statements.rename_index(
                    final.schema, name, f"{shortened(kept.name, room=5)}_i{number}"
                )
                for number, (_, name) in enumerate(owned)
            ]
            steps += statements.move(old.table, kept)
        steps.append(statements.attach_as(parent.name, change.new, place.clause))
        steps.append(
            sql.SQL(
                "ALTER TABLE {} DROP CONSTRAINT {}, RESET (autovacuum_enabled, toast.autovacuum_enabled)"
            ).format(statements.ident(change.new), sql.Identifier(statements.BOUND_CHECK))
        )
        steps += statements.move(change.new, final)
        steps += move_statistics(connection, change.new, final, old, sibling, self._aside)
        steps += [
            statements.rename_index(final.schema, working_name(change.new, index), name)
            for index, name in zip(indexes, index_names, strict=True)
        ]
        steps += last_touches(connection, old, parent, change.new, final, sibling)
        return steps

    def _kept(self, change: Change) -> TableName:
        """Where the replaced partition stays."""
        return self._aside(change.place.name)

    def _aside(self, name: TableName) -> TableName:
        """What that which is replaced is called from then on: named after the load that replaced it."""
        own = name.name
        if name.schema != self._target.name.schema:
            # Leaves of one table may lie in several schemas, and be called the same there.
            own += "_" + hashlib.blake2s(name.schema.encode(), digest_size=4).hexdigest()
        return TableName(
            STAGING_SCHEMA, f"{shortened(own, room=17)}_{short_id(self._manifest.load_id)}"
        )


def size_of(connection: psycopg.Connection[Any], table: TableName) -> int:
    """Bytes of *table* with its indexes and TOAST."""
    size: int = scalar(
        connection,
        sql.SQL("SELECT pg_total_relation_size({}::regclass)").format(
            sql.Literal(statements.ident(table).as_string(connection))
        ),
    )
    return size
