"""A DAG from one pipeline: extract, transform, validate and publish for each of its streams."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import redact
from airflow.sdk import DAG, Param, TaskGroup, TriggerRule

from airflow_etl_provider.config.files import parse_pipeline
from airflow_etl_provider.config.findings import Finding, as_written
from airflow_etl_provider.config.models import Pipeline, Source, Stream, Transform
from airflow_etl_provider.config.rules import group_id
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.request import NullCursor, OnEmpty, StageAs, WindowMode
from airflow_etl_provider.factories import schedule
from airflow_etl_provider.factories.page import page
from airflow_etl_provider.operators.extract import IncrementalExtractOperator
from airflow_etl_provider.operators.publish import PartitionSwapOperator
from airflow_etl_provider.operators.transform import TransformOperator
from airflow_etl_provider.operators.validate import QualityValidationOperator
from airflow_etl_provider.quality.own import FRESH, ROW_COUNT, SOURCE
from airflow_etl_provider.quality.quarantine import require_rows
from airflow_etl_provider.quality.suite import parse_suite

_MAX_RETRY_DELAY = timedelta(minutes=10)
#: Expectations of a number of rows, or of cursor values, that say nothing of rows without one.
_OF_WINDOWS = ("expect_table_row_count_", ROW_COUNT, FRESH)
_NUMBER_OF_ONE = re.compile(r"^suite .+?, expectation 1(?: \([^)]*\))?(?: (?=is|has)|: )")


def build_pipeline(config: Pipeline | Mapping[str, Any]) -> DAG:
    """The DAG of a pipeline, given as a model or as a mapping with the keys of a pipeline file.

    Suites and SQL files that a mapping names are looked up beside the calling file. Building reads no
    database, and the same pipeline always gives the same DAG.

    :raises ConfigurationError: with everything that is wrong, key by key.
    """
    caller = Path(sys._getframe(1).f_code.co_filename).absolute()
    if not isinstance(config, Pipeline):
        config = parse_pipeline(config, folder=caller.parent)
    if found := findings(config):
        written = {"streams": True} if len(config.streams) > 1 else {}
        lines = [str(Finding(as_written(f.path, written), f.what, f.remedy)) for f in found]
        raise ConfigurationError(
            f"pipeline {config.pipeline}:" + "".join(f"\n  - {line}" for line in lines)
        )
    dag = assemble(config)
    dag.fileloc = str(caller)
    return dag


def findings(pipeline: Pipeline) -> list[Finding]:
    """What is wrong with a pipeline beyond its model: schedule, expectations, masked stream ids."""
    return [
        *schedule.findings(pipeline),
        *_expectations(pipeline),
        *_masked(pipeline),
    ]


def assemble(pipeline: Pipeline) -> DAG:
    """The DAG of a pipeline without :func:`findings`."""
    origin = schedule.origin(pipeline)
    start_date, end_date = schedule.dates(pipeline)
    with DAG(
        pipeline.pipeline,
        description=pipeline.description or _described(pipeline),
        schedule=schedule.timetable(pipeline),
        start_date=start_date,
        end_date=end_date,
        catchup=pipeline.catchup,
        max_active_runs=pipeline.active_runs,
        tags=_tags(pipeline),
        params=_params(pipeline),
        doc_md=page(pipeline, None if origin is None else origin.isoformat()),
        default_args={
            "owner": pipeline.owner,
            "retries": pipeline.retries,
            "retry_delay": pipeline.retry_delay,
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": max(_MAX_RETRY_DELAY, pipeline.retry_delay),
            "execution_timeout": pipeline.execution_timeout,
        },
        auto_register=False,  # a loader decides which DAGs its file has
    ) as dag:
        for stream in pipeline.streams:
            several = len(pipeline.streams) > 1
            with TaskGroup(group_id(stream.stream)) if several else nullcontext():
                _tasks(pipeline, stream, origin)
    return dag


def _tasks(pipeline: Pipeline, stream: Stream, origin: datetime | None) -> None:
    interval = stream.window is WindowMode.INTERVAL
    window = _declared(stream.source) | {
        "window": stream.window.value,
        "origin": None if origin is None or not interval else origin.isoformat(),
    }
    _, publish = _load(
        pipeline, stream, window, suite=_suite(stream), strategy=stream.target.strategy
    )
    if stream.null_cursor is not NullCursor.SWEEP:
        return
    # No lookback, which such rows do not have, and mostly there are none. A window that was skipped
    # because it was empty must not have them skipped too.
    nulls = {name: value for name, value in window.items() if name != "lookback"} | {
        "window": WindowMode.NULLS.value,
        "origin": None,
        "on_empty": OnEmpty.SKIP.value,
        "trigger_rule": TriggerRule.NONE_FAILED,
    }
    # How many rows a window has says nothing of how many have no cursor value.
    suite = [each for each in _suite(stream) if not each["type"].startswith(_OF_WINDOWS)]
    sweep, _ = _load(pipeline, stream, nulls, suite=suite, strategy=Strategy.MERGE, suffix="_nulls")
    publish >> sweep


def _load(
    pipeline: Pipeline,
    stream: Stream,
    window: Mapping[str, Any],
    *,
    suite: list[dict[str, Any]],
    strategy: Strategy,
    suffix: str = "",
) -> tuple[IncrementalExtractOperator, PartitionSwapOperator]:
    """extract >> transform (if any) >> validate >> publish of what *window* says; returns the first and the last."""
    source, target = stream.source, stream.target
    partition = None
    if target.partition is not None:
        partition = {
            "column": target.partition.column,
            "every": target.partition.every.value,
            "timezone": target.partition.timezone or pipeline.timezone,
        }
    limits = _given(max_dead_share=stream.max_dead_share, max_dead_rows=stream.max_dead_rows)
    extract = IncrementalExtractOperator(
        task_id=f"extract{suffix}",
        stream=stream.stream,
        kind=stream.kind.value,
        source_conn_id=source.conn_id,
        source=stream.source_text,
        target_conn_id=target.conn_id,
        target=target.table,
        cursor=source.cursor,
        keys=list(target.keys),
        partition=partition,
        timezone=source.timezone or pipeline.timezone,
        checksum=source.checksum,
        zero_dates=source.zero_dates,
        filled_by_publish=list(target.filled_by_publish),
        stage_as=(StageAs.TARGET if stream.transform is None else StageAs.SOURCE).value,
        **window,
        **limits,
    )
    staged: IncrementalExtractOperator | TransformOperator = extract
    if stream.transform is not None:
        staged = TransformOperator(
            task_id=f"transform{suffix}",
            batch=extract.output,
            filled_by_publish=list(target.filled_by_publish),
            **{**limits, **_transform(stream.transform)},
        )
        extract >> staged
    validate = QualityValidationOperator(
        task_id=f"validate{suffix}",
        batch=staged.output,
        expectations=suite,
        **_given(engine=stream.quality.engine, result_format=stream.quality.result_format),
        **limits,
        # The batch knows the name of a table, but carries no query.
        source=source.query if any(each["type"] == SOURCE for each in suite) else None,
    )
    publish = PartitionSwapOperator(
        task_id=f"publish{suffix}",
        batch=validate.output,
        strategy=strategy.value,
        keys=list(target.keys),
        delete_flag=target.delete_flag,
        deletes=target.deletes.value,
        delete_values=list(target.delete_values),
        load_id_column=target.load_id_column,
        valid_from=target.valid_from,
        valid_to=target.valid_to,
        is_current=target.is_current,
        max_shrink=target.max_shrink,
        keep_versions=target.keep_versions,
        keep_previous=target.keep_previous,
        keep_bytes=target.keep_bytes,
        lock_budget=target.lock_budget,
        lock_deadline=target.lock_deadline,
        on_lock_deadline=target.on_lock_deadline.value,
        old_snapshot_deadline=target.old_snapshot_deadline,
        on_old_snapshot=target.on_old_snapshot.value,
        readers_on_standby=target.readers_on_standby,
        audit=target.audit,
    )
    staged >> validate >> publish
    return extract, publish


def _transform(transform: Transform) -> dict[str, Any]:
    """What the pipeline says of these arguments of the transform, whose defaults are the operator's."""
    given = {
        "sql": transform.sql,
        "python_callable": transform.python,
        "parameters": transform.parameters,
        "on_error": None if transform.on_error is None else transform.on_error.value,
        "max_dead_share": transform.max_dead_share,
        "max_dead_rows": transform.max_dead_rows,
        "batch_rows": transform.batch_rows,
        "as_text": None if transform.as_text is None else list(transform.as_text),
    }
    return {name: value for name, value in given.items() if value is not None}


def _declared(source: Source) -> dict[str, Any]:
    """What the pipeline says of these arguments of extract, whose defaults are the operator's."""
    given = {
        "columns": None if source.columns is None else list(source.columns),
        "rename": source.rename,
        "personal": None
        if source.personal is None
        else {name: treatment.value for name, treatment in source.personal.items()},
        "hash_conn_id": source.hash_conn_id,
        "lookback": source.lookback,
        "open_window": source.open_window,
        "on_empty": source.on_empty,
        "schema_contract": source.schema_contract,
        "cursor_origin": source.cursor_origin,
        "settle_delay": source.settle_delay,
        "settle_timeout": source.settle_timeout,
        "settle_ignore": None if source.settle_ignore is None else list(source.settle_ignore),
        "null_cursor": source.null_cursor,
        "slice_rows": source.slice_rows,
        "shards": source.shards,
        "row_security": source.row_security,
        "types": source.types,
        "on_conversion_error": source.on_conversion_error,
    }
    declared = _given(**given)
    if source.slice_rows == 0:  # every window in one piece
        declared["slice_rows"] = None
    return declared


def _given(**arguments: Any) -> dict[str, Any]:
    """Those of *arguments* that the pipeline names, as an operator takes them."""
    return {
        name: value.value if isinstance(value, Enum) else value
        for name, value in arguments.items()
        if value is not None
    }


def _suite(stream: Stream) -> list[dict[str, Any]]:
    if not stream.quality.expectations:
        return []
    suite = parse_suite(stream.quality.expectations, stream.stream)
    return [expectation.as_json() for expectation in suite.expectations]


def _expectations(pipeline: Pipeline) -> Iterator[Finding]:
    for number, stream in enumerate(pipeline.streams):
        for place, expectation in enumerate(stream.quality.expectations):
            try:
                require_rows(parse_suite([expectation], stream.stream))
            except ConfigurationError as error:
                yield Finding(
                    ("streams", number, "quality", "expectations", place),
                    _NUMBER_OF_ONE.sub("", error.what),
                    error.remedy or "see https://greatexpectations.io/expectations",
                )
                continue
            if stream.target_cursor is None and _asks_the_cursor(expectation):
                yield Finding(
                    ("streams", number, "quality", "expectations", place),
                    f"{FRESH} has no column, and the stream no cursor to take instead",
                    "name a column of dates or timestamps: kwargs: {column: ...}",
                )


def _asks_the_cursor(expectation: Mapping[str, Any]) -> bool:
    return expectation["type"] == FRESH and not (expectation.get("kwargs") or {}).get("column")


def _masked(pipeline: Pipeline) -> Iterator[Finding]:
    """Streams whose watermark Airflow would show as ``***`` in the log of every task."""
    for number, stream in enumerate(pipeline.streams):
        if redact("watermark", f"etl.watermark.{stream.stream}") != "watermark":
            yield Finding(
                ("streams", number, "stream"),
                f"{stream.stream!r} holds a word that Airflow masks, so its watermark would show as *** in logs",
                "choose an id without words such as token, secret, password or proxy",
            )


def _params(pipeline: Pipeline) -> dict[str, Param]:
    """What a run by hand may say; null by default, since a schedule needs params that are valid as they are."""
    brake = {
        "max_shrink": Param(
            None,
            type=["null", "number"],
            minimum=0,
            maximum=1,
            title="Rows that may go",
            description="The largest share (0 to 1) of the rows it replaces that this run may take away, where "
            "the source really shrank.",
        )
    }
    if all(stream.window is WindowMode.FULL for stream in pipeline.streams):
        return brake
    return brake | {
        "window_low": Param(
            None,
            type=["null", "string"],
            format="date-time",
            title="Window from (inclusive)",
            description="Load this window instead of the one that the run would load; give both ends, with "
            "an offset. The watermark stays where it is.",
        ),
        "window_high": Param(
            None,
            type=["null", "string"],
            format="date-time",
            title="Window to (exclusive)",
            description="The end of the window, not part of it.",
        ),
    }


def _tags(pipeline: Pipeline) -> list[str]:
    found = {"etl", *pipeline.tags}
    for stream in pipeline.streams:
        found |= {stream.kind.value, TableName.parse(stream.target.table).schema}
        found.add(f"window:{stream.window}")
        if stream.target.strategy is not Strategy.AUTO:
            found.add(f"strategy:{stream.target.strategy}")
    return sorted(found)


def _described(pipeline: Pipeline) -> str:
    if len(pipeline.streams) > 1:
        return f"Loads {', '.join(stream.target.table for stream in pipeline.streams)}"
    (stream,) = pipeline.streams
    return f"Loads {stream.target.table} from {stream.source.table or 'a query'}"
