"""Audit of a staged batch, or of any table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import BaseOperator

from airflow_etl_provider.core.dead_letters import MAX_DEAD_SHARE, DeadLimits, Fault
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.load import Column, Manifest
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import AuditReport
from airflow_etl_provider.core.validate import Engine, Quarantine, ResultFormat, validate
from airflow_etl_provider.hooks.errors import airflow_errors
from airflow_etl_provider.hooks.etl_postgres import EtlPostgresHook
from airflow_etl_provider.lineage.datasets import validate_lineage
from airflow_etl_provider.operators.extract import IncrementalExtractOperator
from airflow_etl_provider.operators.metrics import count_dead_letters
from airflow_etl_provider.operators.run import (
    Stopper,
    application_name,
    choice,
    die_with_supervisor,
    event_log,
    in_worker,
    operator_lineage,
    run_info,
)
from airflow_etl_provider.operators.stream_checks import (
    of_rows,
    refers_to_load,
    refuse_without_load,
    stream_results,
    with_stream_results,
)
from airflow_etl_provider.postgres.audit import PostgresAuditArea
from airflow_etl_provider.quality.engine import audit, require_sql
from airflow_etl_provider.quality.gx import GreatExpectationsAuditor
from airflow_etl_provider.quality.quarantine import combined, failed, quarantined, require_rows
from airflow_etl_provider.quality.report import Report, raise_if_rejected
from airflow_etl_provider.quality.suite import (
    Expectation,
    Severity,
    Suite,
    check_columns,
    find_suite,
    parse_suite,
)

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context


class QualityValidationOperator(BaseOperator):
    """Check a staged batch, in the words of Great Expectations, before anybody can read it.

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
        vocabulary; severity is ``critical`` (default), ``warning`` or ``info``. Never templated. With
        ``"on_fail": "quarantine"`` the rows that fail an expectation become dead letters, and the rest of the
        batch goes on: everything else is judged of what remains. Where an expectation holds by its ``mostly``
        nothing is set aside; of duplicates all are.
    :param suite: file with a suite (JSON or YAML, as Great Expectations exports it), relative to the
        DAG's file, or ``gx:NAME``: a suite of the Great Expectations project beside it or above; read when the
        DAG is parsed.
    :param source: the SELECT that extract read, for ``expect_batch_to_match_source``; of a table the batch
        knows the name. (templated)
    :param engine: ``auto``: SQL as far as it says exactly what Great Expectations says, all of it in one scan,
        and Great Expectations for the rest; ``sql`` refuses a suite with such a rest; ``gx``: Great Expectations.
    :param result_format: ``BASIC``: counts, and up to three values of failing rows in the ledger's report;
        ``BOOLEAN_ONLY``: success alone.
    :param max_dead_share: largest share of the rows that were read (0 to 1) that may be set aside, those of extract
        included; with more the batch is rejected as a whole.
    :param max_dead_rows: how many rows may be set aside at most.
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
        result_format: str = "BASIC",
        max_dead_share: float = MAX_DEAD_SHARE,
        max_dead_rows: int | None = None,
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
        self.result_format = result_format
        self.max_dead_share = max_dead_share
        self.max_dead_rows = max_dead_rows
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
            engine = choice(Engine, self.engine, "engine")
            choice(ResultFormat, self.result_format, "result_format")
            rows_only = None if self.expectations is None else of_rows(self.expectations)
            if engine is Engine.SQL and rows_only is not None:
                require_sql(rows_only)
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
        audited = validate(
            batch.load_id,
            area=area,
            audit=lambda table, load_id: self._audit(area, table, load_id),
            reject=self._reject,
            log=event_log(__name__),
            quarantine=self._quarantine(area),
        )
        count_dead_letters(batch.stream, audited.set_aside)
        verdict = None if audited.report is None else audited.report.as_xcom()
        return {**audited.manifest.as_json(), "report": verdict}

    def _quarantine(self, area: PostgresAuditArea) -> Quarantine | None:
        """How failing rows are set aside; ``None`` where the suite asks for no such thing."""
        suite = self.expectations
        numbers = [] if suite is None else quarantined(suite)
        if suite is None or not numbers:
            return None

        def faults(report: AuditReport, table: TableName) -> list[Fault]:
            bad = failed(cast(Report, report), numbers)
            return area.faults(table, [suite.expectations[number] for number in bad], self._columns)

        def together(first: AuditReport, rest: AuditReport) -> Report:
            bad = failed(cast(Report, first), numbers)
            self._report = combined(cast(Report, first), cast(Report, rest), bad)
            self._show(self._report, "what was set aside, and the rest")
            return self._report

        return Quarantine(faults, together, DeadLimits(self.max_dead_share, self.max_dead_rows))

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
        if self.expectations is not None and quarantined(self.expectations):
            raise ConfigurationError(
                f"on_fail='quarantine' is not possible for {table}, which is no staged batch: its rows stay where they are",
                remedy="write on_fail: block, or give batch=extract.output",
            )
        report = self._audit(area, table, f"{context['ti'].run_id}/{self.task_id}")
        self._reject(report, table)
        return {"conn_id": self.conn_id, "table": str(table), "report": report.as_xcom()}

    def _audit(self, area: PostgresAuditArea, table: TableName, load_id: str) -> Report:
        started, before = datetime.now(UTC), self._report
        columns = self._columns = area.columns(table)
        self._dataset = area.dataset(table if self._manifest is None else self._manifest.target)
        suite = self.expectations
        if suite is not None:
            check_columns(suite, [column.name for column in columns])
            # What cannot be set aside is refused before anything is judged.
            area.faults(table, self._set_aside, columns)
        rows_only = None if suite is None else of_rows(suite)
        if rows_only is not None:
            samples = 0 if self.result_format == ResultFormat.BOOLEAN_ONLY else 3
            self._report = audit(
                rows_only,
                Engine(self.engine),
                load_id=load_id,
                table=str(table),
                by_sql=lambda some: area.judge(
                    table, some, columns, manifest=self._manifest, samples=samples
                ),
                by_gx=lambda rest: self._audit_by_gx(area, table, rest, load_id),
                result_format=ResultFormat(self.result_format),
            )
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
        if suite is not None and manifest is not None and refers_to_load(suite):
            whole = None
            if table != manifest.staging:
                rows = area.count(table) if self._report.rows is None else self._report.rows
                dead = manifest.rows_dead + manifest.rows - rows
                manifest = replace(manifest, staging=table, rows=rows, rows_dead=dead)
                whole = before
            judged = stream_results(suite, manifest, area.endpoint, source=self.source, whole=whole)
            self._report = with_stream_results(self._report, suite, judged)
        self._show(self._report)
        for failure in self._report.failures(Severity.WARNING):
            self.log.warning("%s", failure)
        return self._report

    def _show(self, report: Report, title: str | None = None) -> None:
        for line in [*([] if title is None else [title]), *report.as_table().splitlines()]:
            self.log.info("%s", line)

    def _audit_by_gx(
        self, area: PostgresAuditArea, table: TableName, suite: Suite, load_id: str
    ) -> Report:
        endpoint = area.endpoint
        self._auditor = GreatExpectationsAuditor(endpoint.parameters(), endpoint.application_name)
        judge = partial(self._auditor.audit, table.schema, table.name, suite, load_id=load_id)
        return in_worker(judge, self._auditor.cancel)

    @property
    def _set_aside(self) -> list[Expectation]:
        suite = self.expectations
        return [] if suite is None else [suite.expectations[n] for n in quarantined(suite)]

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
        found = None
        if suite is not None:
            beside = Path(self.dag.fileloc).parent if self.has_dag() else Path()  # type: ignore[no-untyped-call]
            found = find_suite(suite, beside)
        elif expectations:
            found = parse_suite(expectations, name=self.task_id)
        if found is not None:
            require_rows(found)
        return found


def _tell_extract(batch: Any, suite: Suite) -> None:
    """Have the extract task that *batch* comes from refuse a column that the suite misspells."""
    extract = getattr(batch, "operator", None)
    if isinstance(extract, IncrementalExtractOperator):
        extract.audited_columns = tuple(dict.fromkeys([*extract.audited_columns, *suite.columns()]))
