"""``swap``: partitions built aside and exchanged in one short transaction.

Everything long happens before the locks: filling, indexes, keys, foreign keys, the CHECK that lets
ATTACH skip its scan, ANALYZE. Under the locks only the catalog changes, which takes milliseconds at any
size. One budget bounds waiting and work of an attempt together, so that readers queue behind us no longer
than that; attempts go on, with pauses, until the deadline.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import ContractError, Stopped
from airflow_etl_provider.core.load import (
    Manifest,
    PartitionRange,
    Published,
    PublishedPartition,
    Strategy,
)
from airflow_etl_provider.core.names import TableName, short_id, shortened
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.publish import PublishOptions, brake
from airflow_etl_provider.postgres import ledger, locking, statements
from airflow_etl_provider.postgres.catalog import (
    Partition,
    Table,
    read_partitions,
    require_range_partitioned,
    scalar,
)
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.in_place import require_same_rows
from airflow_etl_provider.postgres.ledger import STAGING_SCHEMA
from airflow_etl_provider.postgres.partitions import (
    exclude_from_default,
    refuse_default_rows,
    refuse_dependents,
    refuse_unswappable,
)
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.session import Endpoint, connect_for_copy
from airflow_etl_provider.postgres.snapshot import PostgresSender
from airflow_etl_provider.postgres.transfer import relay
from airflow_etl_provider.postgres.twin import (
    final_index_names,
    finish,
    last_touches,
    move_statistics,
    own_indexes,
    parent_indexes,
    working_name,
)


@dataclass(frozen=True, slots=True)
class _Change:
    """One partition to be exchanged, or made where ``old`` is ``None``."""

    range: PartitionRange
    new: TableName
    old: Partition | None
    rows: int
    rows_before: int
    bytes: int
    steps: tuple[sql.Composable, ...] = ()

    def final(self, parent: TableName) -> TableName:
        return TableName(parent.schema, self.range.name)


def staged_tables(manifest: Manifest) -> list[TableName]:
    """The staged table, and those that are filled from it where it holds several partitions."""
    if manifest.direct:
        return [manifest.staging]
    name = shortened(manifest.staging.name, room=6)
    filled = [
        TableName(STAGING_SCHEMA, f"{name}_p{number}") for number in range(len(manifest.partitions))
    ]
    return [manifest.staging, *filled]


def release(
    connection: psycopg.Connection[Any], load_id: str, partition: PublishedPartition
) -> None:
    """Drop the foreign keys of a replaced version, which would still hold the rows they refer to.

    What they were is recorded with the load, for a rollback.
    """
    previous = TableName.parse(partition.previous or "")
    with connection.transaction():
        keys = connection.execute(
            queries("catalog")["foreign_keys_of"],
            {"schema": previous.schema, "name": previous.name},
        ).fetchall()
        for name, _ in keys:
            connection.execute(
                sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                    statements.ident(previous), sql.Identifier(name)
                )
            )
        if keys:
            ledger.record_rebuild(connection, load_id, partition.name, dict(keys))


class Swap:
    """One publish by swap; *connection* is in autocommit and belongs to the caller."""

    def __init__(
        self,
        endpoint: Endpoint,
        connection: psycopg.Connection[Any],
        manifest: Manifest,
        target: Table,
        options: PublishOptions,
        stop: Stop,
        log: EventLog,
    ) -> None:
        self._endpoint = endpoint
        self._connection = connection
        self._manifest = manifest
        self._target = target
        self._options = options
        self._stop = stop
        self._log = log

    def run(self) -> Published:
        """Build, then exchange.

        :raises CatalogError: the target cannot be swapped: other tables reference it, it is published,
            cut differently, or a privilege is missing.
        :raises ContractError: the batch changed since its audit, or holds rows outside its partitions.
        :raises ShrinkBrake: a partition would lose more rows than allowed.
        :raises LockBudgetExceeded: readers held their locks up to the deadline; the load stays validated.
        """
        self._inspect()
        tables = self._fill()
        existing = self._existing()
        shared = parent_indexes(self._connection, self._target)
        for part, table in zip(self._manifest.partitions, tables, strict=True):
            old = existing.get(part.name)
            with translated_errors(f"preparing {table} for partition {part.name}"):
                indexes = [*shared, *own_indexes(self._connection, old)]
                finish(self._connection, table, part, self._target, old, indexes)
        changes: list[_Change] = []

        def attempt(number: int) -> Published:
            changes[:] = self._changes(tables)
            return self._exchange(changes, dimensions_first=number % 2 == 1)

        return locking.in_attempts(
            attempt,
            lambda: locking.blockers(
                self._connection,
                self._target,
                [change.old.oid for change in changes if change.old is not None],
            ),
            what=f"publishing load {self._manifest.load_id}",
            table=self._target.name,
            deadline=self._options.lock_deadline,
            remedy="the load stays validated: a retry publishes it without reading again; end the session "
            "that blocks (SELECT pg_terminate_backend(pid)) or raise lock_deadline",
            stop=self._stop,
            log=self._log,
        )

    # -- before the locks -------------------------------------------------------------------------

    def _inspect(self) -> None:
        require_range_partitioned(self._target, self._manifest.partition_column or "")
        refuse_unswappable(self._connection, self._target)
        locking.require_budget(self._connection, self._options.lock_budget)

    def _existing(self) -> dict[str, Partition]:
        return {
            partition.table.name: partition
            for partition in read_partitions(self._connection, self._target)
        }

    def _fill(self) -> list[TableName]:
        """The tables that become partitions: the staged one itself, or one filled from it for each."""
        manifest = self._manifest
        if manifest.direct:
            return [manifest.staging]
        tables = staged_tables(manifest)[1:]
        return [
            self._fill_one(part, table)
            for part, table in zip(manifest.partitions, tables, strict=True)
        ]

    def _fill_one(self, part: PartitionRange, table: TableName) -> TableName:
        """Copy the partition's rows out of the staged table, frozen in the transaction that creates it.

        Frozen, because a reader whose snapshot is older than this fill must not find an empty partition.
        """
        if scalar(self._connection, "SELECT to_regclass(%(name)s)::text", {"name": str(table)}):
            return table
        columns = [column.name for column in self._manifest.columns]
        column = self._manifest.partition_column or ""
        # A table staged by others may have other types, which only text carries.
        binary = self._manifest.transport == "binary"
        query = sql.SQL("SELECT {} FROM {} WHERE {}").format(
            statements.names(columns),
            statements.ident(self._manifest.staging),
            statements.in_range(column, part.low, part.high),
        )
        what = f"filling {table} for partition {part.name}"
        with ExitStack() as stack:
            reading = stack.enter_context(connect_for_copy(self._endpoint, read_only=True))
            writing = stack.enter_context(connect_for_copy(self._endpoint, read_only=False))
            with translated_errors(what), writing.cursor() as cursor:
                cursor.execute(statements.create_twin(table, self._target.name).as_string(None))
            sender = PostgresSender(
                connection=reading,
                statement=statements.copy_out(query, binary=binary).as_string(None),
            )
            relay(
                sender,
                writing,
                statements.copy_in(table, columns, binary=binary, freeze=True).as_string(None),
                stop=self._stop,
                what=what,
            )
            with translated_errors(what):
                writing.commit()
        return table

    def _changes(self, tables: Sequence[TableName]) -> list[_Change]:
        """What to exchange, with counts; partitions that are and stay empty are left alone."""
        manifest = self._manifest
        column = manifest.partition_column or ""
        refuse_default_rows(self._connection, self._target, column, manifest.partitions)
        exclude_from_default(
            self._connection,
            self._target,
            column,
            manifest.partitions,
            lock_timeout_ms=round(self._options.lock_budget.total_seconds() * 1000),
        )
        existing = self._existing()
        changes = []
        for part, table in zip(manifest.partitions, tables, strict=True):
            old = existing.get(part.name)
            refuse_dependents(self._connection, [] if old is None else [old])
            self._require_logged(table)
            rows = scalar(self._connection, statements.count(table))
            before = 0 if old is None else scalar(self._connection, statements.count(old.table))
            if old is not None:
                self._require_nothing_above(old, part)
            brake(
                manifest,
                f"partition {part.name}",
                before=before,
                lost=max(before - rows, 0),
                options=self._options,
            )
            if rows or before:
                size = scalar(
                    self._connection,
                    sql.SQL("SELECT pg_total_relation_size({}::regclass)").format(
                        sql.Literal(statements.ident(table).as_string(self._connection))
                    ),
                )
                change = _Change(part, table, old, rows, before, size)
                changes.append(replace(change, steps=tuple(self._steps(change))))
        require_same_rows(manifest, sum(change.rows for change in changes))
        return changes

    def _require_nothing_above(self, old: Partition, part: PartitionRange) -> None:
        """A window may end within its last partition only as long as that holds nothing further."""
        column, window = self._manifest.partition_column or "", self._manifest.window
        if window.high is None or window.high == part.high:
            return
        rows = scalar(
            self._connection,
            sql.SQL("SELECT count(*) FROM {} WHERE {}").format(
                statements.ident(old.table), statements.in_range(column, window.high, None)
            ),
        )
        if rows:
            raise ContractError(
                f"partition {part.name} of {self._target.name} holds {rows:,} rows above {window.high}, where the batch "
                "ends: a swap would lose them",
                remedy="clear extract and downstream: the window is planned anew",
            )

    def _require_logged(self, table: TableName) -> None:
        """An unlogged partition would be empty after a crash, and unreadable on a standby."""
        found = self._connection.execute(
            queries("catalog")["persistence"], {"schema": table.schema, "name": table.name}
        ).fetchone()
        if found is not None and found != ("p",):
            raise ContractError(
                f"{table} is an unlogged table, which a crash would empty, so it cannot become a partition",
                remedy="clear extract and downstream: the window is staged anew, logged",
            )

    # -- under the locks --------------------------------------------------------------------------

    def _exchange(self, changes: Sequence[_Change], *, dimensions_first: bool) -> Published:
        connection, manifest = self._connection, self._manifest
        published = Published(
            load_id=manifest.load_id,
            stream=manifest.stream,
            target=manifest.target,
            strategy=Strategy.SWAP,
            window=manifest.window,
            rows_inserted=sum(change.rows for change in changes),
            rows_updated=0,
            rows_deleted=sum(change.rows_before for change in changes),
            rows_unchanged=0,
            partitions=tuple(
                PublishedPartition(
                    name=str(change.final(manifest.target)),
                    bound=f"FROM ('{change.range.low}') TO ('{change.range.high}')",
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
        locked = None
        with connection.transaction():
            position = ledger.enter_publish(connection, manifest, Strategy.SWAP)
            if isinstance(position, Published):
                return position
            # The stream's row is locked now: none of its other loads can add rows any more.
            for change in changes:
                if change.old is not None:
                    self._require_nothing_above(change.old, change.range)
            # The ledger is written before the table locks are taken, so that they are held for the
            # catalog changes alone.
            published = ledger.record_published(
                connection, replace(published, position=position), manifest
            )
            until = time.monotonic() + self._options.lock_budget.total_seconds()
            for table, mode in self._locks(changes, dimensions_first=dimensions_first):
                locking.limit(connection, until)
                connection.execute(statements.lock(table, mode))
                locked = locked or time.monotonic()
            self._require_unmoved(changes)
            locking.limit(connection, until)
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

    def _locks(
        self, changes: Sequence[_Change], *, dimensions_first: bool
    ) -> list[tuple[TableName, str]]:
        """All locks in their order; where nothing is replaced, ATTACH alone needs a weaker one of the parent."""
        if not changes:
            return []
        replaced = [
            change.old.table
            for change in sorted(changes, key=lambda change: change.range.low)
            if change.old is not None
        ]
        return locking.in_order(
            self._connection,
            self._target,
            parent_mode="ACCESS EXCLUSIVE" if replaced else "SHARE UPDATE EXCLUSIVE",
            replaced=replaced,
            new=[change.new for change in changes],
            dimensions_first=dimensions_first,
        )

    def _require_unmoved(self, changes: Sequence[_Change]) -> None:
        """Under the locks: the partitions are those that were looked at."""
        now = {
            partition.table.name: partition.oid
            for partition in read_partitions(self._connection, self._target)
        }
        for change in changes:
            expected = None if change.old is None else change.old.oid
            if now.get(change.range.name) != expected:
                raise ContractError(
                    f"partition {change.range.name} of {self._target.name} was replaced by somebody else while "
                    f"load {self._manifest.load_id} was being published",
                    remedy="clear publish: it looks at the table anew",
                )

    def _steps(self, change: _Change) -> list[sql.Composable]:
        """The catalog changes for one partition, in order; written before any lock is taken."""
        parent, connection = self._target.name, self._connection
        final, old = change.final(parent), change.old
        indexes = [*parent_indexes(connection, self._target), *own_indexes(connection, old)]
        index_names = final_index_names(connection, indexes, old, parent, final)
        steps: list[sql.Composable] = []
        if old is not None:
            kept = self._kept(change)
            owned = connection.execute(
                queries("catalog")["child_index_names"], {"oid": old.oid}
            ).fetchall()
            steps.append(statements.detach(parent, old.table))
            steps += [
                statements.rename_index(
                    final.schema, name, f"{shortened(kept.name, room=5)}_i{number}"
                )
                for number, (_, name) in enumerate(owned)
            ]
            steps += statements.move(old.table, kept)
        steps.append(statements.attach(parent, change.new, change.range))
        steps.append(
            sql.SQL(
                "ALTER TABLE {} DROP CONSTRAINT {}, RESET (autovacuum_enabled, toast.autovacuum_enabled)"
            ).format(statements.ident(change.new), sql.Identifier(statements.BOUND_CHECK))
        )
        steps += statements.move(change.new, final)
        steps += move_statistics(connection, change.new, final, old)
        steps += [
            statements.rename_index(final.schema, working_name(change.new, number), name)
            for number, name in enumerate(index_names)
        ]
        steps += last_touches(
            connection, old, self._target, final, short_id(self._manifest.load_id)
        )
        return steps

    def _kept(self, change: _Change) -> TableName:
        """Where the replaced partition stays, named after the load that replaced it."""
        return TableName(
            STAGING_SCHEMA,
            f"{shortened(change.range.name, room=17)}_{short_id(self._manifest.load_id)}",
        )
