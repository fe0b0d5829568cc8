"""Expectations that judge a batch by its stream: put together from ledger, source and target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from airflow_etl_provider.core.columns import Selected
from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ContractError,
    DataError,
)
from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import Figure, MeasuredSource, Statistic
from airflow_etl_provider.hooks.dbapi import dbapi_source, is_postgres
from airflow_etl_provider.hooks.etl_postgres import EtlPostgresHook
from airflow_etl_provider.postgres.relation import Relation, is_query
from airflow_etl_provider.postgres.session import Endpoint
from airflow_etl_provider.postgres.source import PostgresSource
from airflow_etl_provider.postgres.stream_checks import StreamFacts
from airflow_etl_provider.quality.own import (
    FRESH,
    NEED_A_LOAD,
    ROW_COUNT,
    SOURCE,
    TARGET,
    FreshnessOptions,
    HistoryOptions,
    SourceOptions,
    TargetOptions,
)
from airflow_etl_provider.quality.report import ExpectationResult, Report
from airflow_etl_provider.quality.stream import (
    ENGINE,
    judge_freshness,
    judge_row_count,
    judge_source,
    judge_target,
    not_evaluated,
)
from airflow_etl_provider.quality.suite import Expectation, Suite

#: What makes one expectation impossible and says nothing of the others; everything else ends the audit.
_IMPOSSIBLE = (CatalogError, ConfigurationError, ContractError, DataError)


def of_rows(suite: Suite) -> Suite | None:
    """The expectations of *suite* that judge rows, whosever they are; ``None`` if there are none."""
    found = tuple(e for e in suite.expectations if e.type not in NEED_A_LOAD)
    return Suite(suite.name, found) if found else None


def refers_to_load(suite: Suite) -> bool:
    """Whether an expectation of *suite* judges the load."""
    return any(e.type in NEED_A_LOAD for e in suite.expectations)


def refuse_without_load(suite: Suite | None) -> None:
    """:raises ConfigurationError: *suite* judges a load, and a table alone is none."""
    found = [] if suite is None else [e.type for e in suite.expectations if e.type in NEED_A_LOAD]
    if found:
        raise ConfigurationError(
            f"{', '.join(dict.fromkeys(found))} judges a load: its stream, its window, its source; a table alone "
            "has none",
            remedy="give batch=extract.output instead of conn_id and table, or take it out of the suite",
        )


def stream_results(
    suite: Suite,
    manifest: Manifest,
    endpoint: Endpoint,
    *,
    source: str | None = None,
    whole: Report | None = None,
) -> list[ExpectationResult]:
    """The outcome of those expectations of *suite* that judge the load, in their order.

    :param manifest: the batch, or what remains of it once rows are set aside.
    :param endpoint: the warehouse.
    :param source: what was read, where that is a SELECT.
    :param whole: the report of the batch before rows were set aside: with its source the whole batch is
        compared, once.
    :raises TransientError: warehouse or source did not answer; another try may tell.
    """
    facts = StreamFacts(endpoint, manifest)
    judges: Mapping[str, Callable[[Expectation], ExpectationResult]] = {
        ROW_COUNT: lambda expectation: _row_count(expectation, facts),
        FRESH: lambda expectation: _freshness(expectation, facts),
        SOURCE: lambda expectation: _source(expectation, facts, source),
        TARGET: lambda expectation: _target(expectation, facts),
    }
    results = []
    for number, expectation in enumerate(suite.expectations):
        if expectation.type not in judges:
            continue
        if whole is not None and expectation.type == SOURCE:
            results.append(whole.results[number])
            continue
        try:
            results.append(judges[expectation.type](expectation))
        except _IMPOSSIBLE as error:
            remedy = "" if error.remedy is None else f"; {error.remedy}"
            results.append(not_evaluated(expectation, f"{error.what}{remedy}"))
    return results


def with_stream_results(
    report: Report, suite: Suite, judged: Sequence[ExpectationResult]
) -> Report:
    """*report* of the expectations of rows with those of the load put in, in the order of *suite*."""
    if not judged:
        return report
    rest, ours = iter(report.results), iter(judged)
    return replace(
        report,
        results=tuple(
            next(ours if expectation.type in NEED_A_LOAD else rest)
            for expectation in suite.expectations
        ),
        engine="+".join(dict.fromkeys([ENGINE, *report.engine.split("+")])).removesuffix("+none"),
        finished_at=datetime.now(UTC),
    )


def _row_count(expectation: Expectation, facts: StreamFacts) -> ExpectationResult:
    options = HistoryOptions.of(expectation.kwargs)
    earlier = facts.earlier(options.loads, options.season)
    return judge_row_count(expectation, facts.manifest.rows, earlier)


def _freshness(expectation: Expectation, facts: StreamFacts) -> ExpectationResult:
    options = FreshnessOptions.of(expectation.kwargs)
    column = options.column or facts.manifest.cursor
    if column is None:
        raise ConfigurationError(
            f"stream {facts.manifest.stream!r} has no cursor to tell the age of its rows",
            remedy="name a column of dates or timestamps with column",
        )
    earlier = facts.earlier(options.history.loads, options.history.season, column)
    known = [load.newest for load in earlier if load.newest is not None]
    return judge_freshness(expectation, column, facts.newest(column, known), earlier)


def _target(expectation: Expectation, facts: StreamFacts) -> ExpectationResult:
    options = TargetOptions.of(expectation.kwargs)
    return judge_target(expectation, *facts.differences(options.filled_by_publish))


def _source(expectation: Expectation, facts: StreamFacts, given: str | None) -> ExpectationResult:
    options = SourceOptions.of(expectation.kwargs)
    manifest = facts.manifest
    if manifest.rows_dead:
        # What they hold is the source's too, and the batch does not have it.
        options = replace(options, sums=(), least=(), greatest=(), checksum=())
    figures = [
        Figure(statistic, column)
        for statistic, columns in (
            (Statistic.SUM, options.sums),
            (Statistic.MIN, options.least),
            (Statistic.MAX, options.greatest),
        )
        for column in columns
    ]
    names = dict.fromkeys([*(figure.column for figure in figures), *options.checksum])
    columns = [_as_read(manifest, name) for name in names]
    source = _measured_source(manifest, given, facts.endpoint.application_name)
    batch = facts.measured(figures, options.checksum)
    batch = replace(batch, rows=batch.rows + manifest.rows_dead)
    found = source.measure(
        manifest.window,
        cursor=None if manifest.window.is_full else _cursor(manifest),
        columns=columns,
        figures=figures,
        checksum=options.checksum,
    )
    return judge_source(
        expectation, figures, batch, facts.as_batch(figures, found), set_aside=manifest.rows_dead
    )


def _as_read(manifest: Manifest, name: str) -> Selected:
    """The column of the source that *name* was made of.

    :raises ConfigurationError: its values are not those of the source.
    """
    column = next((column for column in manifest.columns if column.name == name), None)
    if column is None:
        return Selected(name, name)
    if column.personal is not None:
        raise ConfigurationError(
            f"{name} is personal ({column.personal}), so its values are not those of the source",
            remedy="compare another column",
        )
    return Selected(name, column.source or name)


def _cursor(manifest: Manifest) -> str | None:
    return next(
        (c.source for c in manifest.columns if c.name == manifest.cursor and c.source is not None),
        manifest.cursor,
    )


def _measured_source(manifest: Manifest, given: str | None, application: str) -> MeasuredSource:
    """The source that the batch was read from.

    :raises ConfigurationError: nobody says what was read.
    """
    if manifest.source_conn_id is None or manifest.source is None:
        raise ConfigurationError(
            f"load {manifest.load_id} was staged by others, so nothing says what its source is",
            remedy="take the expectation out",
        )
    of_table = any(column.source is not None for column in manifest.columns)
    if given is None and not of_table:
        raise ConfigurationError(
            f"{manifest.source} was read, and the batch does not carry the query",
            remedy="give it to validate once more: source=...",
        )
    text = manifest.source if given is None else given
    query = text if is_query(text) else None
    if is_postgres(manifest.source_conn_id):
        hook = EtlPostgresHook(postgres_conn_id=manifest.source_conn_id)
        relation = Relation(query=query) if query else Relation(table=TableName.parse(text))
        # What row security hides now it has hidden from the load too, or the difference is to be told.
        return PostgresSource(hook.endpoint(application), relation, row_security=True)
    return dbapi_source(manifest.source_conn_id, table=None if query else text, query=query)
