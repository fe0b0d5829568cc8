"""Publication of an audited batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.load import Kind, LoadState, Manifest, Published, Strategy
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.publish import (
    Deletes,
    OnLockDeadline,
    OnOldSnapshot,
    PublishOptions,
    publish,
)
from airflow_etl_provider.core.watermark import follow
from airflow_etl_provider.hooks.errors import airflow_errors
from airflow_etl_provider.hooks.etl_postgres import EtlPostgresHook
from airflow_etl_provider.lineage.datasets import publish_lineage
from airflow_etl_provider.operators.run import (
    Stopper,
    application_name,
    choice,
    die_with_supervisor,
    event_log,
    load_id_for,
    operator_lineage,
    partition_spec,
    run_info,
    run_interval,
    run_share,
    stream_kind,
)
from airflow_etl_provider.postgres.audit import PostgresAuditArea
from airflow_etl_provider.postgres.publish import PostgresPublisher
from airflow_etl_provider.postgres.rewind import PostgresStoreBinding
from airflow_etl_provider.postgres.staging import PostgresStaging
from airflow_etl_provider.stores.select import task_store
from airflow_etl_provider.stores.variable import VariableWatermarkStore

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

AUDITS = ("required", "none")
_PASSED = ("passed", "warned")


class PartitionSwapOperator(BaseOperator):
    """Make an audited batch what readers see, in one short transaction.

    ``swap`` builds whole partitions aside and exchanges them; ``swap_merge`` does so with what stays of
    the old partitions and the batch; ``delete_insert`` replaces the rows of a
    window in place; ``merge`` updates, inserts and deletes by key; ``append`` adds rows, once; ``scd2`` keeps
    every version of a row; ``replace`` applies the difference between a
    snapshot and a small table. Data, ledger and coverage commit together, and the
    watermark Variable follows; a retry of what is already published does nothing. Returns what was
    done (small JSON).

    Used alone, it publishes any table: *staged_table*, *target*, *target_conn_id*, *stream*, and for a
    swap the window that the table holds completely (*window_low*, *window_high*, or the run's interval).

    :param batch: what validate (or, with ``audit="none"``, extract) returned. (templated)
    :param report: what validate returned for *staged_table*, where publish is used alone. (templated)
    :param strategy: ``auto``, ``swap``, ``swap_merge``, ``delete_insert``, ``merge``, ``append``, ``replace`` or
        ``scd2``; ``auto`` says in the log what it chose and why: by kind and window, by the share of the touched partitions
        that changes, and by what hangs on the table.
    :param keys: columns that identify a row, for ``replace``; default: the batch's keys, then the
        target's primary key, then whole rows.
    :param delete_flag: column of the batch that says that a row was deleted: true, a date or time that is not
        NULL, or one of *delete_values*. For ``merge``, ``swap_merge`` and ``scd2``.
    :param deletes: ``hard`` takes such rows out of the target (``scd2`` ends their last version), ``soft``
        writes them with their flag.
    :param delete_values: values of *delete_flag* that mean deleted, as text.
    :param load_id_column: column of the target (uuid or text) that ``append`` fills with the load's id, so
        that a window can be loaded again.
    :param valid_from: column of the target from which on a version is true, for ``scd2``.
    :param valid_to: column up to which it is; NULL is an open end.
    :param is_current: boolean column that marks the versions that are true now, if there is one.
    :param max_shrink: largest share of rows (0 to 1) that a publish may take away; the param ``max_shrink`` of a
        run says otherwise for that run.
    :param keep_versions: replaced versions of a partition that stay for a rollback, detached, in schema
        ``etl_staging``.
    :param keep_previous: how long they stay at most.
    :param keep_bytes: what those of all partitions of the target may take on disk together, in bytes.
    :param lock_budget: longest time one attempt may wait for and hold its locks, below the server's
        ``deadlock_timeout``.
    :param lock_deadline: how long attempts go on; then the task fails as transient, and the load stays
        ``validated``.
    :param on_lock_deadline: ``fail``, or ``merge`` to write in place after all, which waits for no reader.
    :param old_snapshot_deadline: how long ``swap_merge`` waits for transactions whose snapshot is older
        than the partitions that it has built, and which would find them empty.
    :param on_old_snapshot: what follows then: ``fail``, or ``publish`` all the same.
    :param readers_on_standby: streaming standbys have readers, whom the replay of a swap stops or cancels:
        ``auto`` then writes in place.
    :param audit: ``required``, or ``none`` to publish without one, which is recorded.
    :param staged_table: ``schema.table`` to publish where there is no batch, in any schema but ``etl_staging``. It stays
        as it is. (templated)
    :param target: ``schema.table`` to publish into, with *staged_table*. (templated)
    :param target_conn_id: PostgreSQL connection of both, with *staged_table*.
    :param stream: stream id, with *staged_table*. (templated)
    :param kind: kind of stream, with *staged_table*.
    :param partition: ``{"column", "every", "timezone"}``, with *staged_table*, so that missing
        partitions can be made.
    :param timezone: wall clock of a partition column without time zone, with *staged_table*.
    """

    template_fields: Sequence[str] = ("batch", "report", "staged_table", "target", "stream")
    ui_color = "#d8efd3"

    def __init__(
        self,
        *,
        batch: Any = None,
        report: Any = None,
        strategy: str = "auto",
        keys: Sequence[str] = (),
        delete_flag: str | None = None,
        deletes: str = "hard",
        delete_values: Sequence[str] = (),
        load_id_column: str | None = None,
        valid_from: str = "valid_from",
        valid_to: str = "valid_to",
        is_current: str | None = None,
        max_shrink: float = 0.5,
        keep_versions: int = 1,
        keep_previous: timedelta = timedelta(days=7),
        keep_bytes: int | None = None,
        lock_budget: timedelta = timedelta(milliseconds=300),
        lock_deadline: timedelta = timedelta(minutes=30),
        on_lock_deadline: str = "fail",
        old_snapshot_deadline: timedelta = timedelta(minutes=30),
        on_old_snapshot: str = "fail",
        readers_on_standby: bool = False,
        audit: str = "required",
        staged_table: str | None = None,
        target: str | None = None,
        target_conn_id: str | None = None,
        stream: str | None = None,
        kind: str = "events",
        partition: Mapping[str, Any] | None = None,
        timezone: str = "UTC",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch = batch
        self.report = report
        self.strategy = strategy
        self.keys = keys
        self.delete_flag = delete_flag
        self.deletes = deletes
        self.delete_values = delete_values
        self.load_id_column = load_id_column
        self.valid_from = valid_from
        self.valid_to = valid_to
        self.is_current = is_current
        self.max_shrink = max_shrink
        self.keep_versions = keep_versions
        self.keep_previous = keep_previous
        self.keep_bytes = keep_bytes
        self.lock_budget = lock_budget
        self.lock_deadline = lock_deadline
        self.on_lock_deadline = on_lock_deadline
        self.old_snapshot_deadline = old_snapshot_deadline
        self.on_old_snapshot = on_old_snapshot
        self.readers_on_standby = readers_on_standby
        self.audit = audit
        self.staged_table = staged_table
        self.target = target
        self.target_conn_id = target_conn_id
        self.stream = stream
        self.kind = kind
        self.partition = partition
        self.timezone = timezone
        self._stopper = Stopper()
        self._manifest: Manifest | None = None
        self._published: Published | None = None
        self._dataset: tuple[str, str] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        die_with_supervisor()
        with airflow_errors():
            options = self._options(context)
            if self.batch is not None and Manifest.from_json(self.batch).nothing:
                self.log.info("nothing was loaded, so there is nothing to publish")
                return {"nothing_to_do": True, "stream": Manifest.from_json(self.batch).stream}
            manifest = self._staged(context) if self.batch is None else self._batch(context)
            name = application_name("publish", manifest.load_id, run_info(context))
            endpoint = EtlPostgresHook(postgres_conn_id=manifest.target_conn_id).endpoint(name)
            self._manifest = manifest
            self._dataset = PostgresAuditArea(endpoint).dataset(manifest.target)
            with PostgresPublisher(endpoint) as publisher:
                self._published = publish(
                    manifest,
                    options,
                    run=run_info(context),
                    publisher=publisher,
                    store=task_store(
                        None,
                        context=context,
                        stream=manifest.stream,
                        target=str(manifest.target),
                        binding=PostgresStoreBinding(endpoint),
                        log=event_log(__name__),
                    ),
                    stop=self._stopper,
                    log=event_log(__name__),
                )
        return self._published.as_json()

    def on_kill(self) -> None:
        self._stopper.stop()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """The target as output, with rows, schema, columns' origins and partitions, once published."""
        return operator_lineage(publish_lineage(self._manifest, self._published, self._dataset))

    def _options(self, context: Context) -> PublishOptions:
        strategy = choice(Strategy, self.strategy, "strategy")
        if self.audit not in AUDITS:
            raise ConfigurationError(
                f"audit={self.audit!r} is unknown", remedy=f"use one of {', '.join(AUDITS)}"
            )
        return PublishOptions(
            strategy=strategy,
            keys=tuple(self.keys),
            delete_flag=self.delete_flag,
            deletes=choice(Deletes, self.deletes, "deletes"),
            delete_values=tuple(str(value) for value in self.delete_values),
            load_id_column=self.load_id_column,
            valid_from=self.valid_from,
            valid_to=self.valid_to,
            is_current=self.is_current,
            max_shrink=run_share(context, "max_shrink", self.max_shrink),
            lock_budget=self.lock_budget,
            lock_deadline=self.lock_deadline,
            on_lock_deadline=choice(OnLockDeadline, self.on_lock_deadline, "on_lock_deadline"),
            old_snapshot_deadline=self.old_snapshot_deadline,
            on_old_snapshot=choice(OnOldSnapshot, self.on_old_snapshot, "on_old_snapshot"),
            readers_on_standby=self.readers_on_standby,
            keep_versions=self.keep_versions,
            keep_previous=self.keep_previous,
            keep_bytes=self.keep_bytes,
        )

    def _batch(self, context: Context) -> Manifest:
        """The batch as the ledger knows it: what came by XCom names it, and nothing more."""
        given = Manifest.from_json(self.batch)
        run = run_info(context)
        hook = EtlPostgresHook(postgres_conn_id=given.target_conn_id)
        area = PostgresAuditArea(hook.endpoint(application_name("publish", given.load_id, run)))
        load = area.load(given.load_id)
        if self.report is not None and self.report.get("load_id") != given.load_id:
            raise ConfigurationError(
                f"the report is of load {self.report.get('load_id')}, the batch of load {given.load_id}",
                remedy="pass batch=validate.output alone",
            )
        if load.state is LoadState.STAGED and self.audit == "none":
            area.waive(given.load_id, f"{run.dag_id} {run.run_id}")
        return load.manifest or given

    def _staged(self, context: Context) -> Manifest:
        """Register *staged_table* as a load of its own."""
        if not (self.staged_table and self.target and self.target_conn_id and self.stream):
            raise ConfigurationError(
                f"task {self.task_id} has nothing to publish",
                remedy="give batch=validate.output, or staged_table, target, target_conn_id and stream",
            )
        run = run_info(context)
        staged = TableName.parse(self.staged_table)
        endpoint = EtlPostgresHook(postgres_conn_id=self.target_conn_id).endpoint(
            application_name("publish", None, run)
        )
        area = PostgresAuditArea(endpoint)
        staging = PostgresStaging(endpoint)
        store = VariableWatermarkStore()
        store.key(self.stream)
        report = None if self.audit == "none" else self._require_report(staged)
        kind = stream_kind(self.kind)
        whole = self.strategy == Strategy.REPLACE or kind is Kind.SNAPSHOTS
        manifest = area.register(
            load_id=load_id_for(context, run, staging, publishes=True),
            run=run,
            stream=self.stream,
            kind=kind,
            staged=staged,
            target=TableName.parse(self.target),
            target_conn_id=self.target_conn_id,
            interval=None if whole else run_interval(context, run),
            partition=partition_spec(self.partition),
            keys=tuple(self.keys),
            timezone=self.timezone,
            store="variable",
            audited_rows=None if report is None else report.get("rows"),
        )
        # What keeps the watermark from being stored is better known before the data is live.
        log = event_log(__name__)
        follow(store, self.stream, lambda: staging.position(manifest.stream), log=log)
        if staging.state(manifest.load_id) is not LoadState.PUBLISHED:
            if report is None:
                area.waive(manifest.load_id, f"{run.dag_id} {run.run_id}")
            else:
                manifest = area.accept(manifest, report)
        return manifest

    def _require_report(self, staged: TableName) -> Mapping[str, Any]:
        """The report of the audit of *staged*, which must have passed."""
        given = self.report if isinstance(self.report, Mapping) else {}
        if given.get("table") != str(staged) or given.get("conn_id") != self.target_conn_id:
            raise ConfigurationError(
                f"no audit of {staged} on {self.target_conn_id} was given",
                remedy="validate it first (QualityValidationOperator with conn_id and table) and pass "
                "report=validate.output, or say audit='none', which is recorded",
            )
        report = given.get("report")
        if not isinstance(report, Mapping) or report.get("verdict") not in _PASSED:
            raise ConfigurationError(
                f"the audit of {staged} did not pass, so it is not published",
                remedy="mend the rows or the suite, and clear validate and publish",
            )
        return report
