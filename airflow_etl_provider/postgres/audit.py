"""The target database as validate sees it, and the registration of tables staged by others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from airflow_etl_provider.core.dead_letters import Fault
from airflow_etl_provider.core.errors import ConfigurationError, ContractError
from airflow_etl_provider.core.load import (
    Column,
    Kind,
    Load,
    LoadState,
    Manifest,
    PartitionRange,
    RunInfo,
)
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.partition import PartitionSpec
from airflow_etl_provider.core.ports import AuditReport
from airflow_etl_provider.core.window import FULL, Interval, Window, bound_text
from airflow_etl_provider.postgres import catalog, ledger, statements
from airflow_etl_provider.postgres.checks import INDEX_ROWS, failing_rows, judge
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.partitions import expected_partitions
from airflow_etl_provider.postgres.proven import named_privilege, refuse_hidden_rows
from airflow_etl_provider.postgres.quarantine import (
    count_failing,
    remaining,
    require_same_batch,
    set_aside,
)
from airflow_etl_provider.postgres.session import Endpoint, connect, dataset_of
from airflow_etl_provider.postgres.source import as_offered
from airflow_etl_provider.postgres.staging import exists
from airflow_etl_provider.postgres.twin import batch_index, partition_index
from airflow_etl_provider.postgres.types import agreement
from airflow_etl_provider.quality.report import Judged
from airflow_etl_provider.quality.suite import Expectation


@dataclass(frozen=True, slots=True)
class PostgresAuditArea:
    """Reads and records audits over *endpoint*."""

    endpoint: Endpoint

    def load(self, load_id: str) -> Load:
        with connect(self.endpoint) as connection:
            ledger.ensure_ledger(connection, label=self.endpoint.label)
            return ledger.require_load(connection, load_id, label=self.endpoint.label)

    def require_batch(self, manifest: Manifest) -> None:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"looking at {manifest.staging}"),
        ):
            if not exists(connection, manifest.staging):
                raise ContractError(
                    f"the staged table {manifest.staging} of load {manifest.load_id} is gone",
                    remedy="clear extract and downstream: the window is read anew",
                )

    def fingerprint(self, manifest: Manifest) -> str | None:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"looking at {manifest.staging}"),
        ):
            return catalog.fingerprint(connection, manifest.staging)

    def require_rows(self, manifest: Manifest, rows: int | None) -> None:
        if rows == manifest.rows:
            return
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"looking at {manifest.staging}"),
        ):
            with connection.transaction():
                # Another try may have set rows aside since the manifest was read.
                require_same_batch(connection, manifest)
            if rows is None:
                rows = catalog.scalar(connection, statements.count(manifest.staging))
        manifest.require_rows(rows)

    def faults(
        self, table: TableName, expectations: Sequence[Expectation], columns: Sequence[Column]
    ) -> list[Fault]:
        """What tells the rows of *table* that break each of *expectations*, in their order.

        :raises ConfigurationError: nothing tells them, so they cannot be set aside.
        """
        types = {column.name: column.type for column in columns}
        found = []
        for expectation in expectations:
            condition = failing_rows(expectation, types, table)
            if condition is None:
                raise ConfigurationError(
                    f"{expectation.name} has on_fail='quarantine', and SQL cannot tell exactly which rows of {table} "
                    "break it",
                    remedy="write on_fail: block, or say the same with another expectation about single rows",
                )
            severity = expectation.severity.value
            found.append(Fault(expectation.name, condition, expectation.type, severity))
        return found

    def count_failing(
        self, manifest: Manifest, faults: Sequence[Fault]
    ) -> tuple[int, dict[str, int]]:
        with self._looking_at(manifest) as connection:
            return count_failing(connection, manifest.staging, faults)

    @contextmanager
    def remaining(self, manifest: Manifest, faults: Sequence[Fault]) -> Iterator[TableName]:
        with (
            self._looking_at(manifest) as connection,
            remaining(connection, manifest.staging, faults) as view,
        ):
            yield view

    def set_aside(
        self, manifest: Manifest, faults: Sequence[Fault], report: AuditReport
    ) -> Manifest:
        with (
            self._looking_at(manifest) as connection,
            translated_errors(f"setting rows of load {manifest.load_id} aside"),
        ):
            target = catalog.read_table(connection, manifest.target, label=self.endpoint.label)
            batch = {column.name for column in manifest.columns}
            keys = manifest.keys or target.primary_key
            with connection.transaction():
                require_same_batch(connection, manifest)
                connection.execute(statements.lock(manifest.staging, "SHARE ROW EXCLUSIVE"))
                look = statements.fingerprint(manifest.staging)
                manifest.require_audited(catalog.scalar(connection, look))
                left = set_aside(
                    connection, manifest, faults, keys if batch.issuperset(keys) else ()
                )
                left = replace(left, audited=catalog.scalar(connection, look))
                ledger.mark_audited(
                    connection,
                    manifest.load_id,
                    rejected=False,
                    report=report.as_ledger(),
                    error=None,
                    audited=left.audited,
                )
        return left

    @contextmanager
    def _looking_at(self, manifest: Manifest) -> Iterator[psycopg.Connection[Any]]:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"looking for failing rows of {manifest.staging}"),
        ):
            yield connection

    def record_audit(self, manifest: Manifest, report: AuditReport, *, error: str | None) -> None:
        found = report.as_ledger()
        if error is not None:
            found["verdict"] = "rejected"
        self._record(
            manifest.load_id,
            found,
            rejected=error is not None,
            error=error,
            audited=manifest.audited,
            staging=manifest.staging,
        )

    def _record(
        self,
        load_id: str,
        report: Mapping[str, Any],
        *,
        rejected: bool,
        error: str | None,
        audited: str | None = None,
        staging: TableName | None = None,
    ) -> None:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"recording the audit of load {load_id}"),
            connection.transaction(),
        ):
            ledger.mark_audited(
                connection,
                load_id,
                rejected=rejected,
                report=report,
                error=error,
                audited=audited,
                staging=staging,
            )

    def waive(self, load_id: str, actor: str) -> None:
        """Record that nobody audited the load because the task said ``audit="none"``."""
        report = {"verdict": "none", "reason": "audit='none'", "actor": actor}
        self._record(load_id, report, rejected=False, error=None)

    def accept(self, manifest: Manifest, report: Mapping[str, Any]) -> Manifest:
        """Record a report that an earlier task made of the same table, whose rows are not to change from here on."""
        known = self.load(manifest.load_id)
        if known.state is LoadState.VALIDATED and known.report == report:
            # A retry: what was accepted before is not accepted anew, as it may be another one now.
            return known.manifest or manifest
        accepted = replace(manifest, audited=self.fingerprint(manifest))
        self._record(manifest.load_id, report, rejected=False, error=None, audited=accepted.audited)
        return accepted

    def fail(self, load_id: str, error: str) -> None:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"recording the failure of {load_id}"),
        ):
            ledger.mark_failed(connection, load_id, error)

    def columns(self, table: TableName) -> tuple[Column, ...]:
        """The columns of any table.

        :raises CatalogError: it does not exist.
        """
        with connect(self.endpoint) as connection:
            found = catalog.read_table(connection, table, label=self.endpoint.label)
            return tuple(column.column for column in found.columns)

    def judge(
        self,
        table: TableName,
        expectations: Sequence[Expectation],
        columns: Sequence[Column],
        *,
        manifest: Manifest | None = None,
        samples: int = 3,
    ) -> Judged:
        """Judge the rows of *table* by SQL; what only Great Expectations can judge is left.

        :param manifest: the batch that *table* holds: its large tables may get the unique index that proves
            its keys, and its keys tell which rows failed.
        :raises CatalogError: it is missing, or the role may not read it or does not see all of it.
        """
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"auditing {table}"),
            named_privilege(connection, table),
        ):
            refuse_hidden_rows(connection, table)
            return judge(
                connection,
                table,
                expectations,
                {column.name: column.type for column in columns},
                keys=() if manifest is None else manifest.keys,
                samples=samples,
                make_unique=None
                if manifest is None or table != manifest.staging
                else lambda unique: self._make_unique(connection, manifest, unique),
            )

    def _make_unique(
        self, connection: psycopg.Connection[Any], manifest: Manifest, columns: tuple[str, ...]
    ) -> bool:
        """Give a large batch a unique index on (some of) *columns*, which costs less than to count duplicates.

        A batch that becomes a partition gets the very one that the partition needs.
        """
        if manifest.rows < INDEX_ROWS:
            return False
        if manifest.direct:
            made = self._partition_index(connection, manifest, columns)
            if made is not None:
                return made
        return batch_index(connection, manifest.staging, columns)

    def _partition_index(
        self, connection: psycopg.Connection[Any], manifest: Manifest, columns: tuple[str, ...]
    ) -> bool | None:
        target = catalog.read_table(connection, manifest.target, label=self.endpoint.label)
        named = {part.name for part in manifest.partitions}
        old = [p for p in catalog.read_partitions(connection, target) if p.table.name in named]
        return partition_index(
            connection, manifest.staging, target, old[0] if old else None, columns
        )

    def register(
        self,
        *,
        load_id: str,
        run: RunInfo,
        stream: str,
        kind: Kind,
        staged: TableName,
        target: TableName,
        target_conn_id: str,
        interval: Interval | None,
        partition: PartitionSpec | None,
        keys: tuple[str, ...],
        timezone: str,
        store: str,
        audited_rows: int | None,
    ) -> Manifest:
        """Take a table that somebody else staged as the batch of a new load.

        :param audited_rows: rows that the audit saw; the table must still hold as many.
        :raises ContractError: the staged table has columns that the target has not, or other rows than
            were audited.
        :raises ConfigurationError: a window that does not fit the target's partitions, or a table among those that
            are dropped once they are published.
        """
        if staged.schema == statements.STAGING_SCHEMA:
            raise ConfigurationError(
                f"{staged} is in the schema of staged batches, which are dropped once they are published: a table of "
                "yours is not published from there",
                remedy=f"move it (ALTER TABLE {staged} SET SCHEMA ...) and audit it there, or pass batch=... if a load "
                "has staged it",
            )
        with connect(self.endpoint) as connection:
            batch = catalog.read_table(connection, staged, label=self.endpoint.label)
            goal = catalog.read_table(connection, target, label=self.endpoint.label)
            unknown = [c.name for c in batch.columns if not goal.has_column(c.name)]
            if unknown:
                raise ContractError(
                    f"{staged} has columns that {target} has not: {', '.join(unknown)}",
                    remedy=f"stage only columns of {target}",
                )
            offered = [column for column in batch.columns if not column.generated]
            binary = agreement(
                [as_offered(column) for column in offered],
                [goal.column(column.name, use="a column") for column in offered],
                where=f"{staged} for stream {stream}",
            )
            ledger.ensure_ledger(connection, label=self.endpoint.label)
            with translated_errors(f"registering {staged} as a load of {target}"):
                window, column = FULL, None
                partitions: tuple[PartitionRange, ...] = ()
                if interval is not None:
                    if goal.partition_strategy != "r" or len(goal.partition_columns) != 1:
                        raise ConfigurationError(
                            f"{target} is not partitioned by RANGE on one column, so a window of it cannot be swapped",
                            remedy="leave the window out and publish the whole table with strategy='replace'",
                        )
                    column = goal.partition_columns[0]
                    column_type = goal.column(column, use="the partition column").type
                    window = Window(
                        bound_text(interval.start, column_type, timezone),
                        bound_text(interval.end, column_type, timezone),
                        column_type,
                    )
                    partitions = expected_partitions(
                        connection, goal, spec=partition, interval=interval, timezone=timezone
                    )
                ledger.bind_stream(connection, stream, target, kind, store)
                known = ledger.load(connection, load_id)
                if known is not None and known.manifest is not None:
                    return known.manifest
                rows = catalog.scalar(connection, statements.count(staged))
                if audited_rows is not None and rows != audited_rows:
                    raise ContractError(
                        f"{staged} holds {rows:,} rows, its audit saw {audited_rows:,}",
                        remedy="clear validate and publish, so that what is published was audited",
                    )
                manifest = Manifest(
                    load_id=load_id,
                    stream=stream,
                    kind=kind,
                    target_conn_id=target_conn_id,
                    target=target,
                    staging=staged,
                    source_conn_id=None,
                    source=None,
                    source_datasets=(),
                    window=window,
                    cursor=column,
                    columns=tuple(c.column for c in batch.columns if not c.generated),
                    keys=keys,
                    partition_column=column,
                    partition=partition,
                    partitions=partitions,
                    direct=False,
                    moves_watermark=interval is not None and interval.moves_watermark,
                    rows=rows,
                    bytes=0,
                    snapshot_at=ledger.server_time(connection),
                    transport="binary" if binary else "text",
                )
                with connection.transaction():
                    ledger.begin_load(
                        connection,
                        load_id=load_id,
                        stream=stream,
                        target=target,
                        kind=kind,
                        run=run,
                        window=window,
                        moves_watermark=manifest.moves_watermark,
                        origin=None,
                    )
                    statement, params = ledger.staged_statement(manifest)
                    connection.execute(statement, params)
            return manifest

    def count(self, table: TableName) -> int:
        with connect(self.endpoint) as connection, translated_errors(f"counting {table}"):
            rows: int = catalog.scalar(connection, statements.count(table))
            return rows

    def dataset(self, table: TableName) -> tuple[str, str]:
        """The OpenLineage namespace and name of *table*."""
        with connect(self.endpoint) as connection:
            return dataset_of(connection, table)
