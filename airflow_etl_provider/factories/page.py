"""The page of a pipeline's DAG in the UI: what it loads, how, and what to do when it fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from airflow_etl_provider.config.models import Pipeline, Stream
from airflow_etl_provider.core.columns import Treatment
from airflow_etl_provider.core.dead_letters import MAX_DEAD_SHARE, OnConversionError
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.publish import REBUILD_ROWS, REBUILD_SHARE, Deletes
from airflow_etl_provider.core.request import (
    NullCursor,
    OnEmpty,
    OpenWindow,
    SchemaContract,
    WindowMode,
)
from airflow_etl_provider.core.settle import CursorOrigin
from airflow_etl_provider.core.transform import OnError
from airflow_etl_provider.core.window import humane

_KINDS = {
    Kind.EVENTS: "rows that never change; a run replaces the rows of its window",
    Kind.ENTITIES: "rows that change, told apart by a key",
    Kind.SNAPSHOTS: "a small table, read and replaced whole by each run",
}
_STRATEGIES = {
    Strategy.SWAP: "whole partitions are built aside and exchanged",
    Strategy.SWAP_MERGE: "touched partitions are built anew from what stays of them and the batch, and exchanged",
    Strategy.DELETE_INSERT: "the rows of the window are replaced in place",
    Strategy.MERGE: "rows are updated and inserted by key; a row that is gone from the source stays",
    Strategy.APPEND: "rows are added, once for each load",
    Strategy.SCD2: "every version of a row is kept, with the time from which and up to which it was true",
    Strategy.REPLACE: "the whole table is compared, and only the difference is written",
}
_ORIGINS = {
    CursorOrigin.AUTO: "the source's server where its catalog proves it, else an application",
    CursorOrigin.TRANSACTION: "the source's server, inside the transaction that writes the row",
    CursorOrigin.APPLICATION: "an application, which may commit a row later than it stamps it",
}
_NULL_CURSORS = {
    NullCursor.FAIL: "fails the load: no window would ever hold it",
    NullCursor.INCLUDE: "comes with every window outside backfills, merged by key",
    NullCursor.SWEEP: "is left to a load of its own, which follows each publish and merges by key",
}
_OPEN_WINDOWS = {
    OpenWindow.REFUSE: "refused",
    OpenWindow.CLAMP: "loaded up to where no more rows can be added, and counted as loaded no further",
}
_EMPTY_WINDOWS = {
    OnEmpty.PUBLISH: "checked and published like any other",
    OnEmpty.SKIP: "counted as loaded; validate and publish are skipped",
    OnEmpty.FAIL: "fails extract",
}
_NEW_COLUMNS = {
    SchemaContract.FREEZE: "refused, with the statement to approve",
    SchemaContract.EVOLVE: "added to the target, and wider ones widened there",
    SchemaContract.DISCARD_COLUMN: "left out, which the log says",
}
_TREATMENTS = {
    Treatment.HASH: "hashed, with the password of connection `{key}` as the key",
    Treatment.NULL: "NULL",
    Treatment.DROP: "not read",
}
_ON_ERROR = {
    OnError.FAIL: "an exception fails the load",
    OnError.SET_ASIDE_BATCH: "where it raises, the rows of that call are set aside",
    OnError.SET_ASIDE_ROW: "rows that it raises for are set aside",
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
    lines += [*_schedule(pipeline, origin), "", *_by_hand(pipeline), "", *_failures(pipeline)]
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
    yield f"| window | {_window(stream, partitioned=pipeline.partitioned)} |"
    yield from _edges(stream)
    yield from _settling(stream)
    yield from _columns(stream)
    yield from _transform(stream)
    if target.partition is not None:
        zone = target.partition.timezone or pipeline.timezone
        yield (
            f"| partitions | one per {target.partition.every} of `{target.partition.column}`, {zone}; "
            "missing ones are made |"
        )
    if target.keys:
        yield f"| key | {_codes(target.keys)} |"
    elif stream.kind is Kind.ENTITIES:
        yield "| key | the primary key of the target, which must have one |"
    yield f"| strategy | {_strategy(stream)} |"
    if target.delete_flag is not None:
        effect = "taken out" if target.deletes is Deletes.HARD else "kept, with the flag"
        yield f"| deleted rows | told by `{target.delete_flag}`; they are {effect} |"
    if not {Strategy.MERGE, Strategy.APPEND} & set(_strategies(stream)):
        yield f"| stopped when | a publish would lose more than {target.max_shrink:.0%} of the rows it replaces |"
    if {Strategy.SWAP, Strategy.SWAP_MERGE} & set(_strategies(stream)):
        at_most = "" if target.keep_bytes is None else f", of {target.keep_bytes:,} bytes together"
        yield (
            f"| kept for a rollback | {target.keep_versions} replaced version(s) of each exchanged partition, for at most "
            f"{_length(target.keep_previous)}{at_most} |"
        )
    yield ""
    if source.query is not None:
        yield "```sql"
        yield source.query
        yield "```"
        yield ""
    if stream.transform is not None and stream.transform.sql is not None:
        yield "Made of the batch before it is checked:"
        yield ""
        yield "```sql"
        yield stream.transform.sql
        yield "```"
        yield ""
    yield from _checks(stream)


def _window(stream: Stream, *, partitioned: bool) -> str:
    source = stream.source
    match stream.window:
        case WindowMode.INTERVAL if partitioned:
            return f"the partition that the run's key names, on `{source.cursor}`"
        case WindowMode.INTERVAL:
            return f"the run's data interval, on `{source.cursor}`"
        case WindowMode.WATERMARK:
            back = f", less {_length(source.lookback)} for late rows," if source.lookback else ""
            return (
                f"what has come since the last run: on `{source.cursor}`, from the watermark{back} up to "
                "where no more rows can be added"
            )
        case WindowMode.FULL:
            return "everything"
        case WindowMode.NULLS:
            return f"the rows without a value in `{source.cursor}`"


def _edges(stream: Stream) -> Iterator[str]:
    """What becomes of rows and windows that a reader might wonder about."""
    source = stream.source
    if stream.window is not WindowMode.FULL:
        yield f"| no `{source.cursor}` | a row without a value {_NULL_CURSORS[stream.null_cursor]} |"
    empty, still_open = source.on_empty or OnEmpty.PUBLISH, source.open_window or OpenWindow.REFUSE
    yield f"| empty window | {_EMPTY_WINDOWS[empty]} |"
    if stream.window is not WindowMode.FULL:
        yield f"| interval that has not ended | {_OPEN_WINDOWS[still_open]} |"
    contract = source.schema_contract or SchemaContract.FREEZE
    yield f"| columns that are new in the source | {_NEW_COLUMNS[contract]} |"
    if source.slice_rows:
        yield f"| slices | a window of more than {source.slice_rows:,} rows is staged in slices |"
    elif source.slice_rows == 0:
        yield "| slices | none: every window is staged in one piece |"
    if source.shards is not None and source.shards > 1:
        yield f"| read at once | {source.shards} slices, in one snapshot |"
    if source.row_security == "apply":
        yield "| row security | of the source is applied: the rows that its role sees are the ones that are meant |"


def _columns(stream: Stream) -> Iterator[str]:
    """Which columns are read, what they are called, and what is done to them before they leave the source."""
    source, selection = stream.source, stream.selection
    if source.columns is not None:
        yield f"| columns | {_codes(source.columns)} |"
    if selection.rename:
        renamed = (f"`{old}` is `{new}` in the target" for old, new in selection.rename.items())
        yield f"| renamed | {', '.join(renamed)} |"
    for treatment, what in _TREATMENTS.items():
        named = tuple(name for name, given in selection.personal.items() if given is treatment)
        if named:
            yield f"| personal data | {_codes(named)}: {what.format(key=source.hash_conn_id)} |"
    if source.types:
        types = (f"`{name}` is `{type_}`" for name, type_ in source.types.items())
        yield f"| types | {', '.join(types)} |"
    if source.zero_dates == "null":
        yield "| zero dates | NULL |"
    yield from _set_aside(stream)


def _set_aside(stream: Stream) -> Iterator[str]:
    """Which rows do not stop the others."""
    converted = stream.source.on_conversion_error is OnConversionError.QUARANTINE
    audited = any(_quarantines(expectation) for expectation in stream.quality.expectations)
    rows = [
        *(["that the target cannot hold"] if converted else []),
        *(["that fail an expectation marked below"] if audited else []),
    ]
    if rows:
        share, most = _limits(stream.max_dead_share, stream.max_dead_rows)
        yield f"| set aside | rows {' and '.join(rows)}; more than {share:.1%}{most} fail the load |"


def _limits(share: float | None, rows: int | None) -> tuple[float, str]:
    """The share that may be set aside, and the number of rows as the end of a sentence."""
    return MAX_DEAD_SHARE if share is None else share, "" if rows is None else f" or {rows:,} rows"


def _quarantines(expectation: Mapping[str, Any]) -> bool:
    meta = expectation.get("meta")
    told = meta.get("on_fail") if isinstance(meta, Mapping) else None
    return bool(expectation.get("on_fail", told) == "quarantine")


def _transform(stream: Stream) -> Iterator[str]:
    transform = stream.transform
    if transform is None:
        return
    if transform.python is None:
        yield "| transform | a SELECT over the batch (below) |"
        return
    on_error = transform.on_error or OnError.FAIL
    told = f"`{transform.python}`; {_ON_ERROR[on_error]}"
    if on_error is not OnError.FAIL:
        share, rows = _limits(
            stream.max_dead_share if transform.max_dead_share is None else transform.max_dead_share,
            stream.max_dead_rows if transform.max_dead_rows is None else transform.max_dead_rows,
        )
        told += f", and more than {share:.1%}{rows} fail the load"
    yield f"| transform | {told} |"


def _settling(stream: Stream) -> Iterator[str]:
    """What is declared about rows that are committed late; whole reads wait for nothing."""
    source = stream.source
    if stream.window is WindowMode.FULL:
        return
    if source.cursor_origin is not None:
        yield f"| written by | `{source.cursor}`: {_ORIGINS[source.cursor_origin]} |"
    if source.settle_delay is not None:
        yield f"| late rows | an application may commit a row up to {_length(source.settle_delay)} late |"
    if source.settle_timeout is not None:
        yield (
            f"| open transactions | waited for up to {_length(source.settle_timeout)}, "
            "then extract fails and names them |"
        )
    if source.settle_ignore:
        yield f"| not waited for | transactions of {_codes(source.settle_ignore)}, which never write there |"


def _strategies(stream: Stream) -> tuple[Strategy, ...]:
    """What may become of the strategy; ``auto`` decides by the batch and the target's catalog."""
    if stream.target.strategy is not Strategy.AUTO:
        return (stream.target.strategy,)
    if stream.kind is Kind.ENTITIES:
        return (Strategy.MERGE,)
    if stream.kind is Kind.SNAPSHOTS:
        return (Strategy.REPLACE,)
    if stream.window is WindowMode.INTERVAL:
        return (Strategy.SWAP, Strategy.DELETE_INSERT)
    return (Strategy.DELETE_INSERT,)


def _strategy(stream: Stream) -> str:
    first, *others = _strategies(stream)
    what = _STRATEGIES[first]
    if others:
        what = (
            f"where the window is made of whole partitions, {what}; else {_STRATEGIES[others[0]]}"
        )
    dropped = stream.selection.personal.get(stream.source.cursor or "") is Treatment.DROP
    if first is Strategy.MERGE and stream.window is not WindowMode.FULL and not dropped:
        what += f"; one whose `{stream.target_cursor}` is newer in the target is not overwritten"
    if stream.target.strategy is Strategy.AUTO and stream.target.partition is not None:
        what += (
            f"; where at least {REBUILD_SHARE:.0%} of the rows of the touched partitions change (and "
            f"{REBUILD_ROWS:,}), these are built anew and exchanged"
        )
    return f"{stream.target.strategy}: {what}"


def _length(given: timedelta | int) -> str:
    if isinstance(given, int):
        return f"{given:,}"
    return humane(given).removesuffix(" 0 s").removesuffix(" 0 min")


def _checks(stream: Stream) -> Iterator[str]:
    if not stream.quality.expectations:
        yield "No expectations are declared: the audit compares the row count of the batch and passes."
        return
    suite = f" (from `{stream.quality.suite}`)" if stream.quality.suite is not None else ""
    yield f"Checked before anybody sees the rows{suite}:"
    yield ""
    for expectation in stream.quality.expectations:
        aside = ", sets rows aside" if _quarantines(expectation) else ""
        severity = expectation.get("severity", "critical")
        yield f"- **{severity}**{aside}: `{expectation['type']}`{_arguments(expectation)}"


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
    windows = sorted({stream.window for stream in pipeline.streams})
    for window in windows:
        of = f"Streams with window `{window}`: " if len(windows) > 1 else ""
        yield of + (_keyed(pipeline, origin) if pipeline.partitioned else _rhythm(window, origin))
    if pipeline.ends_at is not None:
        last = "partition" if pipeline.partitioned else "interval"
        yield f"The last {last} begins at {pipeline.ends_at.isoformat()}."


def _rhythm(window: WindowMode, origin: str | None) -> str:
    match window:
        case WindowMode.FULL | WindowMode.NULLS:
            return "Every run reads everything, so a run that was missed needs no repair."
        case WindowMode.WATERMARK:
            return (
                "A run loads what has come since the last one was published, so a run that was missed needs "
                "no repair: the next one loads its rows, too. The first run reads everything there is."
            )
        case WindowMode.INTERVAL if origin is not None:
            return f"A run loads the interval that has just ended; it catches up from {origin}."
        case WindowMode.INTERVAL:
            return (
                "A run loads the interval that has just ended. Intervals before the DAG was switched on are "
                "not loaded by themselves; a backfill loads them."
            )


def _keyed(pipeline: Pipeline, origin: str | None) -> str:
    runs = (
        "A run has the key of the partition that has just ended, which is its start on the clock of "
        f"{pipeline.timezone}, and loads it; "
    )
    if origin is not None:
        return f"{runs}it catches up from {origin}."
    return (
        f"{runs}partitions before the DAG was switched on are not loaded by themselves; a backfill loads "
        "them."
    )


def _by_hand(pipeline: Pipeline) -> Iterator[str]:
    windows = {stream.window for stream in pipeline.streams}
    yield "## How to load a range by hand"
    yield ""
    if windows == {WindowMode.FULL}:
        yield "Trigger the DAG: every run reads everything."
        return
    watermark = WindowMode.WATERMARK in windows
    if watermark:
        yield "- What is new: *Trigger*, and leave the window empty."
    if pipeline.partitioned:
        yield "- One partition: *Trigger* with its partition key, such as `2013-01-01T00:00:00`."
    whole = any(stream.target.strategy is Strategy.SWAP for stream in pipeline.streams)
    yield (
        "- One window: *Trigger*, and fill in both `window_low` and `window_high` (with an offset, such as "
        "`2013-01-01T00:00:00-05:00`). They win over every date of the run, and the watermark stays where "
        "it is."
        + (" The window must be made of whole partitions." if whole else "")
        + (" The cursor must hold dates or times." if watermark else "")
    )
    if pipeline.schedule is not None:
        many = "partitions" if pipeline.partitioned else "intervals"
        yield (
            f"- Many {many}: *Trigger*, *Backfill*, or `airflow backfill create --dag-id "
            f"{pipeline.pipeline} --from-date ... --to-date ... --reprocess-behavior completed`. "
            "The DAG must not be paused."
            + (" End with one that is over." if pipeline.partitioned else "")
            + (
                " Each run reads its own interval again, and the watermark stays where it is."
                if watermark
                else ""
            )
        )


def _failures(pipeline: Pipeline) -> Iterator[str]:
    yield "## When it fails"
    yield ""
    yield "The last lines of the task's log say what, where and what to do. Readers were not disturbed."
    yield ""
    yield "- **extract**: clear it *with its downstream tasks* once the cause is mended."
    if any(stream.window is not WindowMode.FULL for stream in pipeline.streams):
        yield (
            "  If the window is not settled, the log names the transactions of the source that are still open: "
            "end them, or list their role in `settle_ignore` if it never writes there."
        )
    if any(stream.transform is not None for stream in pipeline.streams):
        yield (
            "- **transform**: mend the SELECT or the function and clear it *with its downstream tasks*: it begins again "
            "from what was extracted, and nothing is read again."
        )
    yield (
        "- **validate**: the batch broke a critical expectation and was not published. Mend the source and "
        "clear extract with downstream, or correct the suite and clear validate with downstream."
    )
    yield (
        "- **publish**: the batch stays staged and audited; clear publish alone and nothing is read again. "
        "If a session blocks it, the log names that session."
    )
    if any(stream.null_cursor is NullCursor.SWEEP for stream in pipeline.streams):
        yield (
            "- **extract_nulls**, **validate_nulls** and **publish_nulls** do the same with the rows without a "
            "cursor value, once publish is done. They are skipped where there are none, and expectations of a "
            "number of rows do not count for them."
        )


def _codes(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
