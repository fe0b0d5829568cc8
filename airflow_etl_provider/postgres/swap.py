"""``swap``: partitions that were read whole are built aside and exchanged.

Everything long happens before the locks: filling, indexes, keys, foreign keys, the CHECK that lets
ATTACH skip its scan, ANALYZE. What follows is the exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import ContractError, FenceConflict, StateError
from airflow_etl_provider.core.load import (
    Manifest,
    PartitionRange,
    Published,
    Strategy,
)
from airflow_etl_provider.core.names import TableName, shortened
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.publish import Counts, PublishOptions, brake
from airflow_etl_provider.postgres import ledger, locking, statements
from airflow_etl_provider.postgres.catalog import (
    Partition,
    Table,
    fingerprint,
    read_partitions,
    require_range_partitioned,
    scalar,
)
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.exchange import Change, Exchange, Place, size_of
from airflow_etl_provider.postgres.ledger import STAGING_SCHEMA
from airflow_etl_provider.postgres.mending import bring_in_line
from airflow_etl_provider.postgres.partitions import (
    exclude_from_default,
    no_single_table,
    partition_of,
    refuse_default_rows,
    refuse_dependents,
    refuse_uncreatable,
    refuse_unswappable,
    youngest,
)
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.session import Endpoint, connect_for_copy
from airflow_etl_provider.postgres.shared_keys import shared_keys
from airflow_etl_provider.postgres.snapshot import PostgresSender
from airflow_etl_provider.postgres.transfer import relay
from airflow_etl_provider.postgres.twin import (
    Parent,
    Sibling,
    finish,
    identity_defaults,
    indexes_of_sibling,
    own_indexes,
    parent_indexes,
    twin_to_fill,
)


def staged_tables(manifest: Manifest) -> list[TableName]:
    """The staged table, and those that are filled from it where it holds several partitions."""
    if manifest.direct:
        return [manifest.staging]
    name = shortened(manifest.staging.name, room=6)
    filled = [
        TableName(STAGING_SCHEMA, f"{name}_p{number}") for number in range(len(manifest.partitions))
    ]
    return [manifest.staging, *filled]


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
        self._column = manifest.partition_column or ""
        self._sibling: Sibling | None = None
        self._counted: dict[tuple[TableName, int | None], int] = {}

    def run(self) -> Published:
        """Build, then exchange.

        :raises CatalogError: the target cannot be swapped: other tables reference it, it is published,
            cut differently (by now), or a privilege is missing.
        :raises ContractError: the batch changed since its audit, or holds rows outside its partitions.
        :raises ShrinkBrake: a partition would lose more rows than allowed.
        :raises StateError, FenceConflict: a part of the window was published by a load that was read later.
        :raises LockBudgetExceeded: readers held their locks up to the deadline; the load stays validated.
        """
        require_range_partitioned(self._target, self._column)
        refuse_unswappable(self._connection, self._target)
        locking.require_budget(self._connection, self._options.lock_budget)
        sibling = self._sibling = self._read_sibling()
        self._require_exchangeable()
        tables = self._fill()
        shared = parent_indexes(self._connection, self._target)
        for part, table, old in zip(
            self._manifest.partitions, tables, self._existing(), strict=True
        ):
            own = own_indexes(self._connection, old)
            if old is None and sibling is not None:
                own = list(sibling.indexes)
            indexes = [*shared, *own]
            final = TableName(self._target.name.schema, part.name) if old is None else old.table
            with (
                translated_errors(f"preparing {table} for partition {part.name}"),
                shared_keys(
                    self._connection, table, indexes, self._manifest, self._target.name, final
                ),
            ):
                bring_in_line(
                    self._connection,
                    table,
                    self._target,
                    self._target.oid if old is None else old.oid,
                )
                finish(
                    self._connection,
                    table,
                    statements.holds(self._column, part),
                    self._target,
                    old,
                    indexes,
                    in_attempts=self._patiently(f"adding a foreign key for partition {part.name}"),
                    sibling=sibling if old is None else None,
                )
        exchange = Exchange(
            self._connection, self._manifest, self._target, self._options, self._stop, self._log
        )
        changes: list[Change] = []

        def attempt(number: int) -> Published:
            refuse_unswappable(self._connection, self._target)
            changes[:] = [exchange.prepared(change) for change in self._changes(tables)]
            counts = Counts(
                inserted=sum(change.rows for change in changes),
                deleted=sum(change.rows_before for change in changes),
            )
            dimensions_first = number % 2 == 1
            if number > 1:
                # Every look at the staged rows would be for nothing if a reader is still there.
                exchange.probe(changes, dimensions_first=dimensions_first)
            return exchange.apply(
                Strategy.SWAP,
                changes,
                counts,
                verify=lambda: self._verify(tables, changes),
                dimensions_first=dimensions_first,
            )

        return exchange.run(
            attempt, lambda: [change.old.oid for change in changes if change.old is not None]
        )

    def _require_exchangeable(self) -> None:
        """:raises CatalogError: no table may take the place of one of the partitions, or get its name."""
        for part, old in zip(self._manifest.partitions, self._existing(), strict=True):
            if old is None:
                name = TableName(self._target.name.schema, part.name)
                refuse_uncreatable(self._connection, name, self._target.oid)
            else:
                refuse_dependents(self._connection, [old])

    def _patiently(self, what: str) -> locking.Attempts:
        return locking.patiently(
            self._connection,
            self._target,
            self._options,
            what=f"{what} (load {self._manifest.load_id})",
            stop=self._stop,
            log=self._log,
        )

    def _read_sibling(self) -> Sibling | None:
        """What partitions that are new are made like.

        :raises CatalogError: that is partitioned itself, by now.
        """
        if None in self._existing():
            refusal = no_single_table(self._connection, self._target)
            if refusal is not None:
                raise refusal
        column_type = self._target.column(self._column, use="the partition column").type
        leaves = [one for one in read_partitions(self._connection, self._target) if one.is_leaf]
        found = youngest(self._connection, leaves, column_type)
        if found is None:
            return None
        return Sibling(found, tuple(indexes_of_sibling(self._connection, found)))

    def _existing(self) -> list[Partition | None]:
        """What stands now where the batch's partitions belong."""
        found = read_partitions(self._connection, self._target)
        return [
            partition_of(self._connection, self._target, part, found)
            for part in self._manifest.partitions
        ]

    def _fill(self) -> list[TableName]:
        """The tables that become partitions: the staged one itself, or one filled from it for each."""
        manifest = self._manifest
        if manifest.direct:
            return [manifest.staging]
        tables = staged_tables(manifest)[1:]
        staged = manifest.audited or fingerprint(self._connection, manifest.staging)
        return [
            self._fill_one(part, table, old, staged)
            for part, table, old in zip(manifest.partitions, tables, self._existing(), strict=True)
        ]

    def _fill_one(
        self, part: PartitionRange, table: TableName, old: Partition | None, staged: str | None
    ) -> TableName:
        """Copy the partition's rows out of the staged table, frozen in the transaction that creates it.

        Frozen, because a reader whose snapshot is older than this fill must not find an empty partition.

        :param staged: the fingerprint of the staged rows, if they have any. A table that a try before this one has filled from the same
            ones is not filled again.
        """
        filled_from = scalar(
            self._connection,
            "SELECT obj_description(to_regclass(%(name)s), 'pg_class')",
            {"name": str(table)},
        )
        if staged is not None and filled_from == staged:
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
            draw, drawn = identity_defaults(self._connection, self._target, table, columns)
            sibling = None if self._sibling is None else self._sibling.partition
            create = [
                sql.SQL("DROP TABLE IF EXISTS {}").format(statements.ident(table)),
                *twin_to_fill(self._connection, table, self._target, old, sibling),
                *([] if staged is None else [statements.comment(table, staged)]),
                *draw,
            ]
            with translated_errors(what), writing.cursor() as cursor:
                cursor.execute(statements.script(create).as_string(None))
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
            with translated_errors(what), writing.cursor() as cursor:
                for step in drawn:
                    cursor.execute(step.as_string(None))
                writing.commit()
        return table

    def _changes(self, tables: Sequence[TableName]) -> list[Change]:
        """What to exchange, with counts; partitions that are and stay empty are left alone."""
        manifest = self._manifest
        self._require_exchangeable()
        refuse_default_rows(self._connection, self._target, self._column, manifest.partitions)
        exclude_from_default(
            self._connection,
            self._target,
            self._column,
            manifest.partitions,
            lock_timeout_ms=round(self._options.lock_budget.total_seconds() * 1000),
            in_attempts=self._patiently("keeping rows out of the DEFAULT partition"),
        )
        changes = []
        for part, table, old in zip(manifest.partitions, tables, self._existing(), strict=True):
            self._require_logged(table)
            rows = self._count_once(table)
            before = 0 if old is None else self._count_once(old.table, old.oid)
            brake(
                manifest,
                f"partition {part.name}",
                before=before,
                lost=max(before - rows, 0),
                options=self._options,
            )
            if rows or before:
                parent = self._target.name
                place = Place(
                    name=TableName(parent.schema, part.name) if old is None else old.table,
                    parent=Parent(parent, self._target.oid),
                    clause=statements.range_clause(part),
                    bound=f"FROM ('{part.low}') TO ('{part.high}')",
                    condition=statements.holds(self._column, part),
                )
                size = size_of(self._connection, table)
                sibling = self._sibling if old is None else None
                changes.append(Change(place, table, old, rows, before, size, sibling))
        manifest.require_rows(sum(change.rows for change in changes))
        return changes

    def _count_once(self, table: TableName, oid: int | None = None) -> int:
        """Rows of a table, for the brake and the report: counted once for all attempts."""
        known = (table, oid)
        if known not in self._counted:
            self._counted[known] = scalar(self._connection, statements.count(table))
        return self._counted[known]

    def _verify(self, tables: Sequence[TableName], changes: Sequence[Change]) -> None:
        """In the publish transaction: what becomes visible is what was audited, and loses nothing."""
        if ledger.later_reads(self._connection, self._manifest):
            self._refuse_older()
        for change in changes:
            if change.old is not None:
                self._require_nothing_above(change)
        for table in tables:
            # Nobody is to change it between the count and the exchange.
            self._connection.execute(statements.lock(table, "SHARE"))
        if self._manifest.direct and self._manifest.audited is not None:
            # The ledger looks at all of its rows before it records them as published.
            return
        rows = sum(scalar(self._connection, statements.count(table)) for table in tables)
        self._manifest.require_rows(rows)

    def _refuse_older(self) -> NoReturn:
        what = (
            f"a load of stream {self._manifest.stream} that was read later than load {self._manifest.load_id} has "
            f"published a part of {self._manifest.window}: whole partitions of the older batch would take its rows away"
        )
        if self._options.strategy is Strategy.AUTO:
            raise FenceConflict(what, remedy="nothing to do: the retry writes around those rows")
        raise StateError(
            what,
            remedy="clear extract and downstream, which reads the window anew; or publish with strategy='auto' or "
            "'delete_insert', which writes around those rows",
        )

    def _require_nothing_above(self, change: Change) -> None:
        """A window may end within its last partition only as long as that holds nothing further."""
        window = self._manifest.window
        ends = [part.high for part in self._manifest.partitions]
        if change.old is None or window.high is None or window.high in ends:
            return
        rows = scalar(
            self._connection,
            sql.SQL("SELECT count(*) FROM {} WHERE {}").format(
                statements.ident(change.old.table),
                statements.in_range(self._column, window.high, None),
            ),
        )
        if rows:
            raise ContractError(
                f"partition {change.place.name.name} of {self._target.name} holds {rows:,} rows above {window.high}, "
                "where the batch ends: a swap would lose them",
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
