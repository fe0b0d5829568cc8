"""Audit of a staged batch, or of any table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.load import Column, Manifest
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import AuditReport
from airflow_etl_provider.core.validate import validate
from airflow_etl_provider.hooks.errors import airflow_errors
from airflow_etl_provider.hooks.etl_postgres import EtlPostgresHook
from airflow_etl_provider.lineage.datasets import validate_lineage
from airflow_etl_provider.operators.extract import IncrementalExtractOperator
from airflow_etl_provider.operators.run import (
    Stopper,
    application_name,
    die_with_supervisor,
    event_log,
    in_worker,
    operator_lineage,
    run_info,
)
from airflow_etl_provider.operators.stream_checks import (
    of_rows,
    refuse_without_load,
    stream_results,
    with_stream_results,
)
from airflow_etl_provider.postgres.audit import PostgresAuditArea
from airflow_etl_provider.quality.gx import GreatExpectationsAuditor
from airflow_etl_provider.quality.report import Report, raise_if_rejected
from airflow_etl_provider.quality.suite import (
    Severity,
    Suite,
    check_columns,
    find_suite,
    parse_suite,
)

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

ENGINES = ("auto", "gx")


class QualityValidationOperator(BaseOperator):
    """Check a staged batch with Great Expectations before anybody can read it.

    The verdict is recorded in the ledger; publish takes only batches that passed. A failed critical
    expectation rejects the batch: the task fails at once (a retry would say the same), readers keep
    what they had, and the staged rows stay for inspection. Clearing the task after the suite was mended
    audits the same batch again.

    Beside those of Great Expectations a suite may hold ``expect_batch_row_count_to_match_history``,
    ``expect_batch_to_be_fresh``, ``expect_batch_to_match_source`` and ``expect_table_to_match_target``, which
    judge a batch by its stream's published loads, its source and its target.

    Used alone, it checks any table of *conn_id* and fails if a critical expectation does.

    :param batch: what extract returned; the batch itself is looked up in the ledger. (templated)
    :param expectations: inline suite: ``{"type", "kwargs", "severity"}`` in Great Expectations'
        vocabulary; severity is ``critical`` (default), ``warning`` or ``info``. Never templated.
    :param suite: file with a suite (JSON or YAML, as Great Expectations exports it), relative to the
        DAG's file, or ``gx:NAME``: a suite of the Great Expectations project beside it or above; read when the
        DAG is parsed.
    :param source: the SELECT that extract read, for ``expect_batch_to_match_source``; of a table the batch
        knows the name. (templated)
    :param engine: ``auto`` or ``gx``.
    :param conn_id: PostgreSQL connection, with *table* instead of *batch*. (templated)
    :param table: ``schema.table`` to check, with *conn_id*. (templated)
    """

    template_fields: Sequence[str] = ("batch", "source", "conn_id", "table")
    ui_color = "#fdf0c8"

    def __init__(
        self,
        *,
        batch: Any = None,
        expectations: Sequence[Mapping[str, Any]] | None = None,
        suite: str | Path | None = None,
        source: str | None = None,
        engine: str = "auto",
        conn_id: str | None = None,
        table: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch = batch
        self.source = source
        self.conn_id = conn_id
        self.table = table
        self.engine = engine
        # Read while the DAG is parsed: a bad suite is an import error, long before data moves, and a
        # version of the DAG keeps the suite it had.
        self.expectations: Suite | None = self._read_suite(expectations, suite)
        if batch is None:
            refuse_without_load(self.expectations)
        elif self.expectations is not None:
            _tell_extract(batch, self.expectations)
        self._stopper = Stopper()
        self._auditor: GreatExpectationsAuditor | None = None
        self._manifest: Manifest | None = None
        self._report: Report | None = None
        self._dataset: tuple[str, str] | None = None
        self._columns: tuple[Column, ...] = ()

    def execute(self, context: Context) -> dict[str, Any]:
        die_with_supervisor()
        with airflow_errors():
            if self.engine not in ENGINES:
                raise ConfigurationError(
                    f"engine={self.engine!r} is unknown", remedy=f"use one of {', '.join(ENGINES)}"
                )
            if self.batch is None:
                return self._validate_table(context)
            return self._validate_batch(context, Manifest.from_json(self.batch))

    def on_kill(self) -> None:
        self._stopper.stop()
        if self._auditor is not None:
            self._auditor.cancel()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """The audited table as input, with one assertion for each expectation."""
        return operator_lineage(validate_lineage(self._columns, self._report, self._dataset))

    def _validate_batch(self, context: Context, batch: Manifest) -> dict[str, Any]:
        if batch.nothing:
            self.log.info("nothing was loaded, so there is nothing to audit")
            return batch.as_json()
        run = run_info(context)
        name = application_name("validate", batch.load_id, run)
        hook = EtlPostgresHook(postgres_conn_id=batch.target_conn_id)
        area = PostgresAuditArea(hook.endpoint(name))
        self._manifest = batch
        manifest, report = validate(
            batch.load_id,
            area=area,
            audit=lambda table, load_id: self._audit(area, table, load_id),
            reject=self._reject,
            log=event_log(__name__),
        )
        verdict = None if report is None else report.as_xcom()
        return {**manifest.as_json(), "report": verdict}

    def _validate_table(self, context: Context) -> dict[str, Any]:
        if self.conn_id is None or self.table is None:
            raise ConfigurationError(
                f"task {self.task_id} has nothing to validate",
                remedy="give batch=extract.output, or conn_id and table",
            )
        refuse_without_load(self.expectations)
        name = application_name("validate", None, run_info(context))
        area = PostgresAuditArea(EtlPostgresHook(postgres_conn_id=self.conn_id).endpoint(name))
        table = TableName.parse(self.table)
        report = self._audit(area, table, f"{context['ti'].run_id}/{self.task_id}")
        self._reject(report, table)
        return {"conn_id": self.conn_id, "table": str(table), "report": report.as_xcom()}

    def _audit(self, area: PostgresAuditArea, table: TableName, load_id: str) -> Report:
        started = datetime.now(UTC)
        columns = self._columns = area.columns(table)
        self._dataset = area.dataset(table if self._manifest is None else self._manifest.target)
        suite = self.expectations
        if suite is not None:
            check_columns(suite, [column.name for column in columns])
        rows_only = None if suite is None else of_rows(suite)
        if rows_only is not None:
            endpoint = area.endpoint
            self._auditor = GreatExpectationsAuditor(
                endpoint.parameters(), endpoint.application_name
            )
            audit = partial(self._auditor.audit, table.schema, table.name, rows_only)
            self._report = in_worker(partial(audit, load_id=load_id), self._auditor.cancel)
        else:
            self._report = Report(
                load_id=load_id,
                engine="none",
                table=str(table),
                rows=area.count(table),
                results=(),
                started_at=started,
                finished_at=datetime.now(UTC),
            )
        manifest = None if self._manifest is None else area.load(load_id).manifest
        if suite is not None and manifest is not None:
            judged = stream_results(suite, manifest, area.endpoint, source=self.source)
            self._report = with_stream_results(self._report, suite, judged)
        for line in self._report.as_table().splitlines():
            self.log.info("%s", line)
        for failure in self._report.failures(Severity.WARNING):
            self.log.warning("%s", failure)
        return self._report

    def _reject(self, report: AuditReport, table: TableName) -> None:
        if isinstance(report, Report):
            raise_if_rejected(report, staging=None if self._manifest is None else str(table))

    def _read_suite(
        self, expectations: Sequence[Mapping[str, Any]] | None, suite: str | Path | None
    ) -> Suite | None:
        """The suite, or ``None`` where nothing but the row count is to be recorded."""
        if expectations is not None and suite is not None:
            raise ConfigurationError(
                f"task {self.task_id} names both expectations and suite", remedy="give one of them"
            )
        if suite is None:
            return parse_suite(expectations, name=self.task_id) if expectations else None
        beside = Path(self.dag.fileloc).parent if self.has_dag() else Path()  # type: ignore[no-untyped-call]
        return find_suite(suite, beside)


def _tell_extract(batch: Any, suite: Suite) -> None:
    """Have the extract task that *batch* comes from refuse a column that the suite misspells."""
    extract = getattr(batch, "operator", None)
    if isinstance(extract, IncrementalExtractOperator):
        extract.audited_columns = tuple(dict.fromkeys([*extract.audited_columns, *suite.columns()]))
