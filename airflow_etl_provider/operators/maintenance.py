"""Keeping a warehouse in order: partitions, what loads leave behind, and loads that should not have been published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_etl_provider.core.maintenance import MaintenanceOptions
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.hooks.errors import airflow_errors
from airflow_etl_provider.hooks.etl_postgres import EtlPostgresHook
from airflow_etl_provider.operators.run import (
    Stopper,
    application_name,
    die_with_supervisor,
    event_log,
    partition_spec,
    run_info,
)
from airflow_etl_provider.postgres.clean import CleanOptions, clean
from airflow_etl_provider.postgres.maintenance import maintain
from airflow_etl_provider.postgres.rollback import RollbackOptions, rollback
from airflow_etl_provider.postgres.session import connect

if TYPE_CHECKING:
    from airflow.sdk import Context


class WarehouseCleanOperator(BaseOperator):
    """Drop staged tables and replaced partitions that no load of a warehouse needs any more.

    Safe beside loads: only tables that the ledger registers, each looked at again under its lock; what is
    in use stays for the next run, and what nobody registered is named in the log. Returns what was dropped,
    what stays and what is unknown (small JSON).

    :param target_conn_id: PostgreSQL connection of the warehouse. (templated)
    :param keep_failed: how long staged tables of rejected and failed loads stay.
    :param keep_unfinished: how long those of loads stay that nobody goes on with.
    :param keep_versions: replaced versions per partition that stay for a rollback; without it, as the last publish of
        their stream was told.
    :param keep_previous: how long those stay at most; without it likewise.
    :param keep_bytes: what all of them may take on disk together, in bytes; the newest stay. Without it those of each
        stream, as its last publish was told.
    :param dry_run: drop nothing, and say what would go.
    """

    template_fields: Sequence[str] = ("target_conn_id",)

    def __init__(
        self,
        *,
        target_conn_id: str,
        keep_failed: timedelta = timedelta(days=7),
        keep_unfinished: timedelta = timedelta(days=30),
        keep_versions: int | None = None,
        keep_previous: timedelta | None = None,
        keep_bytes: int | None = None,
        dry_run: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.target_conn_id = target_conn_id
        self.keep_failed = keep_failed
        self.keep_unfinished = keep_unfinished
        self.keep_versions = keep_versions
        self.keep_previous = keep_previous
        self.keep_bytes = keep_bytes
        self.only_look = dry_run
        self._stopper = Stopper()

    def execute(self, context: Context) -> dict[str, Any]:
        die_with_supervisor()
        with airflow_errors():
            options = CleanOptions(
                keep_failed=self.keep_failed,
                keep_unfinished=self.keep_unfinished,
                keep_versions=self.keep_versions,
                keep_previous=self.keep_previous,
                keep_bytes=self.keep_bytes,
            )
            name = application_name("clean", None, run_info(context))
            endpoint = EtlPostgresHook(postgres_conn_id=self.target_conn_id).endpoint(name)
            with connect(endpoint) as connection:
                cleaned = clean(
                    connection,
                    options,
                    stop=self._stopper,
                    log=event_log(__name__),
                    dry_run=self.only_look,
                )
        return cleaned.as_json()

    def on_kill(self) -> None:
        self._stopper.stop()


class PartitionMaintenanceOperator(BaseOperator):
    """Keep a partitioned table in order: make partitions to come, retire old ones, renew the statistics of the whole.

    Safe beside loads, at any time: what is in use, or what an unfinished load may write into, is left for the
    next run and named; a load that was begun and then lay still for seven days, without a session, counts no
    more. A retired partition stays detached in ``etl_staging`` for *keep_detached*, can be restored
    (``airflow-etl restore``), and is then dropped by the janitor; its range, once no other partition holds it,
    is neither covered nor a gap, and the watermark does not move. Returns what was done and what was left
    (small JSON).

    :param target_conn_id: PostgreSQL connection of the warehouse. (templated)
    :param target: ``schema.table``, partitioned by RANGE. (templated)
    :param partition: ``{"column", "every", "timezone"}``; needed for *ahead*.
    :param ahead: how many periods after the current one have partitions waiting for them.
    :param keep: partitions whose whole range lies further back than this are retired.
    :param keep_partitions: so many of the newest stay, whatever their age; without *keep*, those beyond them
        are retired. One always stays.
    :param keep_detached: how long a retired partition can be restored.
    :param analyze_share: the planner's statistics of the whole table, which autovacuum never renews, are
        renewed once so large a share of its rows has changed, 0 to 1; ``None`` never does.
    :param timezone: the clock of a partition column without time zone, where *partition* does not say it.
    :param lock_budget: longest time one attempt may wait for and hold its locks, below the server's
        ``deadlock_timeout``.
    :param lock_deadline: how long attempts go on, for all partitions together.
    :param dry_run: change nothing, and say what would be done.
    """

    template_fields: Sequence[str] = ("target_conn_id", "target")

    def __init__(
        self,
        *,
        target_conn_id: str,
        target: str,
        partition: Mapping[str, Any] | None = None,
        ahead: int = 0,
        keep: timedelta | None = None,
        keep_partitions: int | None = None,
        keep_detached: timedelta = timedelta(days=7),
        analyze_share: float | None = 0.1,
        timezone: str = "UTC",
        lock_budget: timedelta = timedelta(milliseconds=300),
        lock_deadline: timedelta = timedelta(minutes=10),
        dry_run: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.target_conn_id = target_conn_id
        self.target = target
        self.partition = partition
        self.ahead = ahead
        self.keep = keep
        self.keep_partitions = keep_partitions
        self.keep_detached = keep_detached
        self.analyze_share = analyze_share
        self.timezone = timezone
        self.lock_budget = lock_budget
        self.lock_deadline = lock_deadline
        self.only_look = dry_run
        self._stopper = Stopper()

    def execute(self, context: Context) -> dict[str, Any]:
        die_with_supervisor()
        run = run_info(context)
        with airflow_errors():
            options = MaintenanceOptions(
                partition=partition_spec(self.partition),
                ahead=self.ahead,
                keep=self.keep,
                keep_partitions=self.keep_partitions,
                keep_detached=self.keep_detached,
                analyze_share=self.analyze_share,
                timezone=self.timezone,
                lock_budget=self.lock_budget,
                lock_deadline=self.lock_deadline,
            )
            name = application_name("maintain", None, run)
            endpoint = EtlPostgresHook(postgres_conn_id=self.target_conn_id).endpoint(name)
            with connect(endpoint) as connection:
                done = maintain(
                    connection,
                    TableName.parse(self.target),
                    options,
                    f"{run.dag_id} {run.run_id}",
                    stop=self._stopper,
                    log=event_log(__name__),
                    dry_run=self.only_look,
                )
        return done.as_json()

    def on_kill(self) -> None:
        self._stopper.stop()


class PartitionRollbackOperator(BaseOperator):
    """Put back the partitions that a published swap replaced, all of them or none, in one transaction.

    The load becomes ``rolled_back``, its window is no longer covered, and what it had published is kept
    aside until the janitor takes it. A retry of what is already rolled back does nothing. Refused where a
    version is gone, a later load has published the partition, or others have written into it. Returns what
    was done (small JSON).

    :param target_conn_id: PostgreSQL connection of the warehouse. (templated)
    :param load_id: the load to take back, as ``airflow-etl loads`` and publish show it. (templated)
    :param reason: why; recorded with the load. (templated)
    :param move_watermark: also set the stream's position back to where the load's window begins; the
        Variable follows with the stream's next run.
    :param discard_changes: take the load back even if others have written into its partitions since, or a later
        load in place that is not known to have; of one that is known to, never.
    :param lock_budget: longest time one attempt may wait for and hold its locks, below the server's
        ``deadlock_timeout``.
    :param lock_deadline: how long attempts go on; then the task fails as transient, and nothing is changed.
    """

    template_fields: Sequence[str] = ("target_conn_id", "load_id", "reason")

    def __init__(
        self,
        *,
        target_conn_id: str,
        load_id: str,
        reason: str,
        move_watermark: bool = False,
        discard_changes: bool = False,
        lock_budget: timedelta = timedelta(milliseconds=300),
        lock_deadline: timedelta = timedelta(minutes=30),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.target_conn_id = target_conn_id
        self.load_id = load_id
        self.reason = reason
        self.move_watermark = move_watermark
        self.discard_changes = discard_changes
        self.lock_budget = lock_budget
        self.lock_deadline = lock_deadline
        self._stopper = Stopper()

    def execute(self, context: Context) -> dict[str, Any]:
        die_with_supervisor()
        run = run_info(context)
        with airflow_errors():
            options = RollbackOptions(
                move_watermark=self.move_watermark,
                discard_changes=self.discard_changes,
                lock_budget=self.lock_budget,
                lock_deadline=self.lock_deadline,
            )
            name = application_name("rollback", self.load_id, run)
            endpoint = EtlPostgresHook(postgres_conn_id=self.target_conn_id).endpoint(name)
            with connect(endpoint) as connection:
                done = rollback(
                    connection,
                    self.load_id,
                    self.reason,
                    f"{run.dag_id} {run.run_id}",
                    options=options,
                    stop=self._stopper,
                    log=event_log(__name__),
                )
        return done.as_json()

    def on_kill(self) -> None:
        self._stopper.stop()
