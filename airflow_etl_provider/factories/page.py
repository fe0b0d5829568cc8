"""The page of a pipeline's DAG in the UI: what it loads, how, and what to do when it fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from airflow_etl_provider.config.models import Pipeline, Stream
from airflow_etl_provider.core.load import Kind

_KINDS = {
    Kind.EVENTS: "rows that never change; each run replaces whole partitions",
    Kind.ENTITIES: "rows that change, told apart by a key; each run compares the whole table",
    Kind.SNAPSHOTS: "a small table, read and replaced whole by each run",
}
_HOW = (
    "Each stream is **extracted** into a private staging table, **validated** there and "
    "**published** in one short transaction: readers see the old rows or the new ones, nothing between."
)


def page(pipeline: Pipeline, origin: str | None) -> str:
    """Markdown for the DAG's documentation; the same pipeline always gives the same text."""
    lines = [f"# {pipeline.pipeline}", ""]
    if pipeline.description:
        lines += [pipeline.description, ""]
    lines += [_HOW, ""]
    for stream in pipeline.streams:
        lines += [*_stream(pipeline, stream), ""]
    lines += [*_schedule(pipeline, origin), "", *_by_hand(pipeline), "", *_failures()]
    return "\n".join(lines) + "\n"


def _stream(pipeline: Pipeline, stream: Stream) -> Iterator[str]:
    source, target = stream.source, stream.target
    yield f"## Stream `{stream.stream}`"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| kind | {stream.kind}: {_KINDS[stream.kind]} |"
    origin = f"`{source.table}`" if source.table is not None else "a query (below)"
    yield f"| from | {origin} of connection `{source.conn_id}` |"
    yield f"| to | `{target.table}` of connection `{target.conn_id}` |"
    if stream.window == "interval":
        yield f"| window | the run's data interval, on `{source.cursor}` |"
    else:
        yield "| window | everything |"
    if source.columns is not None:
        yield f"| columns | {_codes(source.columns)} |"
    if target.partition is not None:
        zone = target.partition.timezone or pipeline.timezone
        yield f"| partitions | one per {target.partition.every} of `{target.partition.column}`, {zone} |"
    if target.keys:
        yield f"| key | {_codes(target.keys)} |"
    yield f"| strategy | {target.strategy} |"
    yield f"| stopped when | a publish would lose more than {target.max_shrink:.0%} of the rows it replaces |"
    if stream.kind is Kind.EVENTS:
        yield f"| kept for a rollback | {target.keep_versions} replaced version(s) of each partition |"
    yield ""
    if source.query is not None:
        yield "```sql"
        yield source.query
        yield "```"
        yield ""
    yield from _checks(stream)


def _checks(stream: Stream) -> Iterator[str]:
    if not stream.quality.expectations:
        yield "No expectations are declared: the audit compares the row count of the batch and passes."
        return
    suite = f" (from `{stream.quality.suite}`)" if stream.quality.suite is not None else ""
    yield f"Checked before anybody sees the rows{suite}:"
    yield ""
    for expectation in stream.quality.expectations:
        yield f"- **{expectation.get('severity', 'critical')}**: `{expectation['type']}`{_arguments(expectation)}"


def _arguments(expectation: Mapping[str, Any]) -> str:
    kwargs = expectation.get("kwargs") or {}
    return "".join(f", {name} `{value}`" for name, value in kwargs.items())


def _schedule(pipeline: Pipeline, origin: str | None) -> Iterator[str]:
    yield "## When it runs"
    yield ""
    if pipeline.schedule is None:
        yield "By hand only: it has no schedule."
        return
    many = (
        "one run at a time"
        if pipeline.active_runs == 1
        else f"up to {pipeline.active_runs} runs at once"
    )
    yield f"`{pipeline.schedule}` in {pipeline.timezone}, {many}."
    if not _has_intervals(pipeline):
        yield "Every run reads everything, so a run that was missed needs no repair."
    elif origin is not None:
        yield f"A run loads the interval that has just ended; it catches up from {origin}."
    else:
        yield (
            "A run loads the interval that has just ended. Intervals before the DAG was switched on are not "
            "loaded by themselves; a backfill loads them."
        )
    if pipeline.ends_at is not None:
        yield f"The last interval begins at {pipeline.ends_at.isoformat()}."


def _by_hand(pipeline: Pipeline) -> Iterator[str]:
    yield "## How to load a range by hand"
    yield ""
    if not _has_intervals(pipeline):
        yield "Trigger the DAG: every run reads everything."
        return
    yield (
        "- One window: *Trigger*, and fill in both `window_low` and `window_high` (with an offset, such as "
        "`2013-01-01T00:00:00-05:00`). They win over every date of the run. The window must be made of whole "
        "partitions; the watermark stays where it is."
    )
    if pipeline.schedule is not None:
        yield (
            "- Many intervals: *Trigger*, *Backfill*, or `airflow backfill create --dag-id "
            f"{pipeline.pipeline} --from-date ... --to-date ... --reprocess-behavior completed`. "
            "The DAG must not be paused."
        )


def _failures() -> Iterator[str]:
    yield "## When it fails"
    yield ""
    yield "The last lines of the task's log say what, where and what to do. Readers were not disturbed."
    yield ""
    yield "- **extract**: clear it *with its downstream tasks* once the cause is mended."
    yield (
        "- **validate**: the batch broke a critical expectation and was not published. Mend the source and "
        "clear extract with downstream, or correct the suite and clear validate with downstream."
    )
    yield (
        "- **publish**: the batch stays staged and audited; clear publish alone and nothing is read again. "
        "If a session blocks it, the log names that session."
    )


def _has_intervals(pipeline: Pipeline) -> bool:
    return any(stream.window == "interval" for stream in pipeline.streams)


def _codes(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
