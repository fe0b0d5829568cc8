"""Audits by Great Expectations itself, on PostgreSQL.

Great Expectations gets an engine of ours instead of a connection string: credentials never enter
its configuration, any libpq parameter works, and every session it opens is known, limited,
cancellable and closed at the end. The driver is psycopg2 because Great Expectations is tested
with it: under psycopg 3 SQLAlchemy casts text parameters to ``VARCHAR``, and a value set on a
date, uuid or enum column fails with "operator does not exist".
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_etl_provider.quality.report import ExpectationResult, Report
from airflow_etl_provider.quality.sessions import (
    LONGEST_REASON,
    TIMED_OUT,
    AuditSessions,
    reason_of,
    require_readable,
)
from airflow_etl_provider.quality.suite import Expectation, Suite

if TYPE_CHECKING:
    import sqlalchemy as sa

ENGINE = "great_expectations"

_SAMPLE = 3
_SECONDS_BETWEEN_CANCELS = 0.2

# Row counts cost nothing beside the suite: they join its first statement.
_ROWS = Expectation("expect_table_row_count_to_be_between", {"min_value": 0})


class GreatExpectationsAuditor:
    """Audits tables with Great Expectations; its sessions only read.

    :param conninfo: libpq parameters as ``psycopg2.connect`` takes them.
    :param application_name: how its sessions are called in ``pg_stat_activity``.
    :param statement_timeout: the longest a single statement may run; ``None`` is no limit.
    """

    def __init__(
        self,
        conninfo: Mapping[str, str],
        application_name: str,
        statement_timeout: timedelta | None = None,
    ) -> None:
        self._conninfo = {**conninfo, "application_name": application_name}
        self._statement_timeout = statement_timeout
        self._one_at_a_time = threading.Lock()
        self._stopping = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._sessions: AuditSessions | None = None

    def audit(
        self,
        table_schema: str,
        table_name: str,
        suite: Suite,
        *,
        load_id: str,
        where: str | None = None,
    ) -> Report:
        """Judge the rows of a table (those that meet *where*) by *suite*.

        An expectation that cannot be evaluated is reported as failed and stops no other. Raises
        ``CatalogError`` when the table is missing or not wholly readable, ``ConnectionLost`` when
        the server went away, ``Stopped`` after ``cancel``. Leaves no session behind. ``cancel``
        reaches an audit that runs in a worker thread.
        """
        with self._one_at_a_time:
            sessions = self._sessions = AuditSessions(
                self._conninfo, self._statement_timeout, self._stopping
            )
            self._idle.clear()
            try:
                return _audit(sessions, table_schema, table_name, suite, load_id, where)
            finally:
                self._idle.set()
                sessions.close()

    def cancel(self) -> None:
        """Stop the running audit and refuse later ones; returns at once, from any thread."""
        self._stopping.set()
        threading.Thread(target=self._keep_cancelling, name="cancel audit", daemon=True).start()

    def _keep_cancelling(self) -> None:
        # Once is not enough: a request that arrives between two statements has no effect.
        while not self._idle.is_set():
            if self._sessions is not None:
                self._sessions.cancel()
            self._idle.wait(_SECONDS_BETWEEN_CANCELS)


def _audit(
    sessions: AuditSessions,
    table_schema: str,
    table_name: str,
    suite: Suite,
    load_id: str,
    where: str | None,
) -> Report:
    started_at = datetime.now(UTC)
    sessions.require_unbroken()
    require_readable(sessions, table_schema, table_name)
    judge = _Judge(sessions.engine, _Selection(table_schema, table_name, where))
    rows, *results = _evaluate(judge, sessions, (_ROWS, *suite.expectations))
    return Report(
        load_id=load_id,
        engine=ENGINE,
        table=f"{table_schema}.{table_name}",
        rows=rows.observed_value,
        results=tuple(results),
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )


def _evaluate(
    judge: _Judge, sessions: AuditSessions, expectations: Sequence[Expectation]
) -> list[ExpectationResult]:
    """One pass for all; then those that raised once more, alone.

    Expectations share statements, so one that is broken can take others with it or lend them its
    reason; alone each speaks for itself.
    """
    results = judge.results(expectations)
    sessions.require_unbroken()
    for number, result in enumerate(results):
        if result.exception is not None and not result.exception.startswith(TIMED_OUT):
            results[number] = judge.results([expectations[number]])[0]
            sessions.require_unbroken()
    return results


class _Judge:
    """Great Expectations on one selection of rows."""

    def __init__(self, engine: sa.Engine, selection: _Selection) -> None:
        import_great_expectations()
        from great_expectations.execution_engine.sqlalchemy_execution_engine import (
            SqlAlchemyExecutionEngine,
        )

        self._selection = selection
        self._batch_text = selection.as_text(engine.dialect)
        self._execution_engine = SqlAlchemyExecutionEngine(engine=engine, create_temp_table=False)

    def results(self, expectations: Sequence[Expectation]) -> list[ExpectationResult]:
        """The outcome of each expectation, in order."""
        from great_expectations.exceptions.exceptions import GreatExpectationsError

        outcomes: dict[int, ExpectationResult] = {}
        configurations = []
        for number, expectation in enumerate(expectations):
            try:
                configurations.append(self._configuration(expectation, number))
            # The kwargs contradict each other, or a row condition cannot be read.
            except (ValueError, GreatExpectationsError) as error:
                reason = " ".join(str(error).split())[:LONGEST_REASON]
                outcomes[number] = _failed(expectation, reason)
        for outcome in self._validate(configurations):
            number = int(outcome.expectation_config.id)
            outcomes[number] = _result(expectations[number], outcome)
        return [outcomes[number] for number in range(len(expectations))]

    def _validate(self, configurations: list[Any]) -> list[Any]:
        from great_expectations.core.batch import Batch
        from great_expectations.validator.validator import Validator

        if not configurations:
            return []
        batch = Batch(data=self._selection.as_batch_data(self._execution_engine))
        validator = Validator(
            execution_engine=self._execution_engine, batches=[batch], data_context=_quiet_context()
        )
        outcomes: list[Any] = validator.graph_validate(
            configurations=configurations,
            runtime_configuration={
                "result_format": {"result_format": "BASIC", "partial_unexpected_count": _SAMPLE}
            },
        )
        return outcomes

    def _configuration(self, expectation: Expectation, number: int) -> Any:
        from great_expectations.expectations.expectation_configuration import (
            ExpectationConfiguration,
        )

        configuration = ExpectationConfiguration(
            type=expectation.type, kwargs=self._kwargs(expectation), id=str(number)
        )
        configuration.to_domain_obj()
        return configuration

    def _kwargs(self, expectation: Expectation) -> dict[str, Any]:
        """The kwargs; where Great Expectations would spoil the name of the batch, written out."""
        kwargs = dict(expectation.kwargs)
        query = kwargs.get("unexpected_rows_query")
        if isinstance(query, str) and re.search("[%:]", self._batch_text):
            alias = "" if re.search(r"\bJOIN\b", query, re.IGNORECASE) else " AS subselect"
            text = re.sub(r"([{}])", r"\1\1", self._batch_text).replace(":", "\\:")
            # The empty rest of the placeholder stays: without it a warning is printed.
            written_out = f"({text}){alias}{{batch:.0}}"
            kwargs["unexpected_rows_query"] = query.replace("{batch}", written_out)
        return kwargs


class _Selection:
    """The rows to judge; every identifier quoted, whatever it contains."""

    def __init__(self, schema: str, table: str, where: str | None) -> None:
        import sqlalchemy as sa

        self._schema = sa.sql.quoted_name(schema, True)
        self._table = sa.sql.quoted_name(table, True)
        self._select = sa.select(sa.text("*")).select_from(
            sa.table(self._table, schema=self._schema)
        )
        if where is not None:
            # A literal column, unlike text, reads no parameters into `:name`.
            condition: sa.ColumnElement[bool] = sa.literal_column(f"({where}\n)")
            self._select = self._select.where(condition)

    def as_batch_data(self, execution_engine: Any) -> Any:
        """The selection as Great Expectations takes it; columns and types are read by name."""
        from great_expectations.execution_engine.sqlalchemy_batch_data import SqlAlchemyBatchData

        return SqlAlchemyBatchData(
            execution_engine=execution_engine,
            selectable=self._select,
            create_temp_table=False,
            source_table_name=self._table,
            source_schema_name=self._schema,
        )

    def as_text(self, dialect: sa.Dialect) -> str:
        """The selection as SQL, percent signs single."""
        return str(self._select.compile(dialect=dialect)).replace("%%", "%")


def import_great_expectations() -> None:
    """Import it without telemetry and in silence.

    Its loggers announce each registered function at import and quote server errors with the
    values of rows later; the report carries the reasons without them.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    for name in ("great_expectations", "great_expectations._docs_decorators"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    import great_expectations  # noqa: F401


def _quiet_context() -> Any:
    """A context in memory, without files, telemetry or progress bars."""
    import great_expectations
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    return great_expectations.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(),
            progress_bars=ProgressBarsConfig(globally=False),
            analytics_enabled=False,
        ),
    )


def _result(expectation: Expectation, outcome: Any) -> ExpectationResult:
    reason = _raised(outcome.exception_info)
    if reason is not None:
        return _failed(expectation, reason)
    found = outcome.result
    by_query = "unexpected_rows_query" in expectation.kwargs
    count = found.get("observed_value" if by_query else "unexpected_count")
    return ExpectationResult(
        type=expectation.type,
        kwargs=expectation.kwargs,
        severity=expectation.severity,
        success=bool(outcome.success),
        column=_column(expectation),
        element_count=_whole(found.get("element_count")),
        unexpected_count=_whole(count),
        unexpected_percent=_share(found.get("unexpected_percent")),
        missing_count=_whole(found.get("missing_count")),
        observed_value=found.get("observed_value"),
        partial_unexpected_list=tuple(found.get("partial_unexpected_list") or ())[:_SAMPLE],
        engine=ENGINE,
    )


def _failed(expectation: Expectation, reason: str) -> ExpectationResult:
    return ExpectationResult(
        type=expectation.type,
        kwargs=expectation.kwargs,
        severity=expectation.severity,
        success=False,
        column=_column(expectation),
        exception=reason,
        engine=ENGINE,
    )


def _column(expectation: Expectation) -> str | None:
    return ", ".join(expectation.columns()) or None


def _raised(exception_info: Mapping[str, Any]) -> str | None:
    """Why it could not be evaluated; Great Expectations keys the facts by metric, or not at all."""
    facts: Collection[Any] = (
        [exception_info] if "raised_exception" in exception_info else exception_info.values()
    )
    messages = [str(fact.get("exception_message")) for fact in facts if fact["raised_exception"]]
    return reason_of(messages[0]) if messages else None


def _whole(number: Any) -> int | None:
    return None if number is None else int(number)


def _share(percent: Any) -> float | None:
    return None if percent is None else float(percent)
