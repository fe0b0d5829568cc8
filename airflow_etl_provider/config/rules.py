"""Which values contradict each other, and what to write instead: pure decisions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow_etl_provider.config.findings import Finding, KeyPath
from airflow_etl_provider.core.columns import Treatment
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.request import NullCursor, WindowMode
from airflow_etl_provider.core.settle import CursorOrigin
from airflow_etl_provider.core.suggest import nearest

if TYPE_CHECKING:
    from airflow_etl_provider.config.models import Pipeline, Stream

# Literals, quoted names, comments and casts are passed over; what is left may name a bound.
_BOUNDS = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | /\*.*?\*/ | (?<![:\w]):(?P<bound>low|high)\b""",
    re.VERBOSE | re.DOTALL,
)
# A template may come to be a SELECT.
_SELECT = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*(?:(?:select|with)\s|\{[{%#])", re.IGNORECASE | re.DOTALL
)

# The same for the parameters of a transform.
_PARAMETERS = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | /\*.*?\*/ | (?<![:\w]):(?P<name>[A-Za-z_]\w*)""",
    re.VERBOSE | re.DOTALL,
)

#: How to get the cursor that a window needs.
_CURSORS = {
    Kind.EVENTS: "name the column that tells when an event happened, or set kind: snapshots",
    Kind.ENTITIES: "name the column that every change of a row sets anew, such as updated_at, or "
    "set window: full",
}

#: What a strategy would do to rows of a kind that it is not for, and what to write instead.
_MISFITS = {
    (Kind.EVENTS, Strategy.MERGE): (
        "merge goes by key, so an event that was taken back in the source would stay",
        "write auto or delete_insert, or set kind: entities if rows change",
    ),
    (Kind.EVENTS, Strategy.REPLACE): (
        "replace would leave only the last window in the table",
        "write auto, swap or delete_insert, or set kind: snapshots",
    ),
    (Kind.ENTITIES, Strategy.SWAP): (
        "swap exchanges whole partitions, and entities that did not change are not read again",
        "write auto or merge",
    ),
    (Kind.ENTITIES, Strategy.DELETE_INSERT): (
        "delete_insert goes by window, and an entity leaves its window when it changes",
        "write auto or merge",
    ),
    (Kind.EVENTS, Strategy.SCD2): (
        "scd2 keeps the versions of rows that change, and events do not",
        "write auto or append, or set kind: entities",
    ),
    (Kind.ENTITIES, Strategy.APPEND): (
        "append would add every version of a row",
        "write scd2 to keep the versions of a row, or merge to keep the last",
    ),
    (Kind.SNAPSHOTS, Strategy.SWAP): (
        "swap exchanges partitions, which snapshots do not have",
        "write auto or replace",
    ),
    (Kind.SNAPSHOTS, Strategy.SWAP_MERGE): (
        "swap_merge would keep rows that the source no longer has",
        "write auto or replace, or set kind: entities",
    ),
    (Kind.SNAPSHOTS, Strategy.DELETE_INSERT): (
        "delete_insert replaces the rows of a window, which snapshots do not have",
        "write auto or replace",
    ),
    (Kind.SNAPSHOTS, Strategy.MERGE): (
        "merge would keep rows that the source no longer has",
        "write auto or replace, or set kind: entities",
    ),
}


def contradictions_of_stream(stream: Stream) -> list[Finding]:
    """What cannot work in one stream, with paths that start at the stream."""
    by_kind = {Kind.EVENTS: _events, Kind.ENTITIES: _entities, Kind.SNAPSHOTS: _snapshots}
    return [
        *_source(stream),
        *_window(stream),
        *_nulls(stream),
        *by_kind[stream.kind](stream),
        *_strategy(stream),
        *_strategy_columns(stream),
        *_columns(stream),
        *_names(stream),
        *_personal(stream),
        *_transform(stream),
        *_audit(stream),
    ]


def contradictions_of_pipeline(pipeline: Pipeline) -> list[Finding]:
    """What cannot work in a pipeline whose streams are each consistent."""
    return [
        *_dates(pipeline),
        *_catchup(pipeline),
        *_partitioned(pipeline),
        *_one_at_a_time(pipeline),
        *_timeouts(pipeline),
        *_distinct(pipeline),
        *_hash_keys(pipeline),
    ]


def _source(stream: Stream) -> Iterator[Finding]:
    source = stream.source
    if source.query_file is not None and source.query is None:
        yield Finding(
            ("source", "query_file"),
            "was not read",
            "pass the mapping to build_pipeline, which reads it, or put the SELECT into query",
        )
        return
    if (source.table is None) == (source.query is None):
        both = source.table is not None
        yield Finding(
            ("source", "table") if both else ("source",),
            "stands beside a query" if both else "names nothing to read",
            "write exactly one of table, query and query_file",
        )
    if source.query is not None:
        yield from _query(stream, source.query)


def _query(stream: Stream, query: str) -> Iterator[Finding]:
    key = _query_key(stream)
    if _SELECT.match(query) is None:
        yield Finding(
            key,
            "begins with neither SELECT nor WITH",
            "write a SELECT, or name the table with table",
        )
        return
    used = _bounds(query)
    if stream.window is WindowMode.FULL:
        if used:
            yield Finding(
                key,
                f"uses :{min(used)}, which a full window does not have",
                "take the condition out, or set window: interval or watermark",
            )
    elif len(used) == 1:
        (one,) = used
        yield Finding(
            key,
            f"uses :{one} and not :{'low' if one == 'high' else 'high'}, and a window has two ends",
            "use both, or neither: the window is then put around the query",
        )
    elif used and stream.kind is Kind.ENTITIES and stream.null_cursor is not NullCursor.FAIL:
        yield Finding(
            key,
            "uses :low and :high, between which no row without a cursor value lies, and null_cursor is "
            f"{stream.null_cursor}",
            "leave both out: the window is then put around the query",
        )
    whole = stream.window is WindowMode.FULL
    if stream.source.cursor_origin is CursorOrigin.TRANSACTION and not whole:
        yield Finding(
            ("source", "cursor_origin"),
            "transaction cannot hold for a query, which may put together what was committed at different "
            "times",
            "leave it out, and set settle_delay to the longest time between a row's cursor value and its commit",
        )


def _query_key(stream: Stream) -> KeyPath:
    return ("source", "query" if stream.source.query_file is None else "query_file")


def _bounds(query: str) -> set[str]:
    """Which bounds a query names; none where only its database knows what a backslash means."""
    if "\\" in query:
        return set()
    return {match["bound"] for match in _BOUNDS.finditer(query)} - {None}


def _window(stream: Stream) -> Iterator[Finding]:
    source, window = stream.source, stream.window
    if window is not WindowMode.FULL and source.cursor is None and stream.kind in _CURSORS:
        yield Finding(
            ("source", "cursor"),
            "is missing, so nothing tells which rows belong to a run",
            _CURSORS[stream.kind],
        )
    if not source.lookback:
        return
    if window is not WindowMode.WATERMARK:
        yield Finding(
            ("source", "lookback"),
            f"goes back from a watermark, and window {window} does not begin at one",
            "leave it out, or set window: watermark",
        )
    elif isinstance(source.lookback, int) and _is_time(stream):
        yield Finding(
            ("source", "lookback"),
            f"{source.lookback} counts values, and {source.cursor!r} holds dates or times",
            "write a duration, such as PT1H",
        )


def _is_time(stream: Stream) -> bool:
    """Whether the cursor is known to be of dates or times: partitions are divided by nothing else."""
    partition = stream.target.partition
    return partition is not None and partition.column == stream.target_cursor


def _nulls(stream: Stream) -> Iterator[Finding]:
    """Rows without a cursor value can only be found again by key."""
    asked, keys = stream.null_cursor, stream.target.keys
    key = ("source", "null_cursor")
    if asked is NullCursor.FAIL:
        return
    if stream.kind is not Kind.ENTITIES:
        yield Finding(
            key,
            f"{asked} does not fit {stream.kind}: rows without a cursor value can only be merged by key",
            "leave it out, or set kind: entities and name target.keys",
        )
        return
    if stream.window is WindowMode.FULL:
        yield Finding(
            key,
            f"{asked} has no use for window full, which reads rows without a cursor value like any other",
            "leave it out, or set window: watermark or interval",
        )
        return
    if not keys:
        yield Finding(
            ("target", "keys"),
            f"is missing, and null_cursor {asked} merges rows by key, again with every load",
            "list the columns that identify a row",
        )
    elif stream.target_cursor in keys:
        yield Finding(
            ("target", "keys", keys.index(stream.target_cursor)),
            f"is the cursor, and with null_cursor {asked} rows come without a value in it",
            "name columns that every row has, or set null_cursor: fail",
        )
    for number, expectation in enumerate(stream.quality.expectations):
        if _refuses_nulls(expectation, stream.target_cursor):
            yield Finding(
                ("quality", "expectations", number),
                f"refuses the rows without a cursor value that null_cursor {asked} loads",
                "take it out, or give it severity: warning",
            )


def _refuses_nulls(expectation: Mapping[str, Any], column: str | None) -> bool:
    """Whether a single row without a value in *column* breaks a critical expectation."""
    kwargs = expectation.get("kwargs")
    return (
        expectation.get("type") == "expect_column_values_to_not_be_null"
        and expectation.get("severity", "critical") == "critical"
        and isinstance(kwargs, Mapping)
        and kwargs.get("column") == column
        and "mostly" not in kwargs
    )


def _events(stream: Stream) -> Iterator[Finding]:
    source, partition = stream.source, stream.target.partition
    if stream.window is WindowMode.FULL:
        yield Finding(
            ("source", "window"),
            "full does not fit events, of which a run loads its own window",
            "leave window out, or set kind: snapshots to replace the whole table each time",
        )
    cursor = stream.target_cursor
    if cursor is not None and partition is not None and partition.column != cursor:
        renamed = "" if cursor == source.cursor else f" (renamed from {source.cursor!r})"
        yield Finding(
            ("target", "partition", "column"),
            f"is {partition.column!r}, and the cursor is {cursor!r}{renamed}: the rows of a window "
            "would lie in any partition",
            "use one column for both, or set kind: entities",
        )


def _entities(stream: Stream) -> Iterator[Finding]:
    source, target = stream.source, stream.target
    if target.strategy is Strategy.REPLACE:
        if source.cursor is not None and stream.window is WindowMode.FULL:
            yield Finding(
                ("source", "cursor"),
                "has no use for strategy replace, which compares the whole table",
                "leave cursor out, or write strategy: merge",
            )
        if target.partition is not None:
            yield Finding(
                ("target", "partition"),
                "does not fit strategy replace, which takes a table without partitions",
                "leave partition out, or write strategy: merge",
            )
    elif source.cursor is not None and source.window is None:
        yield Finding(
            ("source", "window"),
            f"is missing: the cursor {source.cursor!r} would not decide which rows are read",
            "write watermark (what has changed since the last run), interval (what changed in the "
            "run's interval) or full (everything)",
        )


def _snapshots(stream: Stream) -> Iterator[Finding]:
    if stream.window is not WindowMode.FULL:
        yield Finding(
            ("source", "window"),
            f"{stream.window} does not fit snapshots, which are read whole",
            "leave window out, or set kind: events (rows never change) or entities (they do)",
        )
    elif stream.source.cursor is not None:
        yield Finding(
            ("source", "cursor"),
            "has no use for snapshots, whose table is read whole",
            "leave cursor out, or set kind: events or entities",
        )
    if stream.target.partition is not None:
        yield Finding(
            ("target", "partition"),
            "has no use for snapshots, whose table is replaced whole",
            "leave partition out, or set kind: events or entities",
        )


def _strategy(stream: Stream) -> Iterator[Finding]:
    kind, strategy, window = stream.kind, stream.target.strategy, stream.window
    key = ("target", "strategy")
    if (misfit := _MISFITS.get((kind, strategy))) is not None:
        yield Finding(key, *misfit)
    elif strategy is Strategy.REPLACE and window is not WindowMode.FULL:
        # Snapshots with another window are refused for that, and events for the strategy.
        if kind is Kind.ENTITIES:
            yield Finding(
                key,
                "replace would delete every row that the window does not hold",
                "write auto or merge, or set window: full",
            )
    elif strategy is Strategy.SWAP and window is WindowMode.WATERMARK:
        yield Finding(
            key,
            "swap exchanges whole partitions, and a watermark window may end inside of one",
            "write auto or delete_insert, or set window: interval",
        )
    elif strategy is Strategy.SWAP and stream.target.partition is None:
        yield Finding(
            ("target", "partition"),
            "is missing, so swap does not know which partitions to make and exchange",
            f"write {{column: {stream.target_cursor or 'the cursor'}, every: month}}",
        )


def _strategy_columns(stream: Stream) -> Iterator[Finding]:
    """Columns that mean something to some strategies only."""
    target = stream.target
    if target.load_id_column is not None and target.strategy is not Strategy.APPEND:
        yield Finding(
            ("target", "load_id_column"),
            f"is filled by strategy append, not by {target.strategy}",
            "leave it out, or write strategy: append",
        )
    if target.is_current is not None and target.strategy is not Strategy.SCD2:
        yield Finding(
            ("target", "is_current"),
            f"is filled by strategy scd2, not by {target.strategy}",
            "leave it out, or write strategy: scd2",
        )
    if target.delete_flag is not None and stream.kind is Kind.EVENTS:
        yield Finding(
            ("target", "delete_flag"),
            "goes by key, which events do not have",
            "leave it out, or set kind: entities",
        )
    elif target.delete_flag is not None and target.strategy is Strategy.REPLACE:
        yield Finding(
            ("target", "delete_flag"),
            "has no use for replace: rows that the source no longer has are deleted",
            "leave it out, or write strategy: merge",
        )
    elif target.delete_flag is None and target.delete_values:
        yield Finding(
            ("target", "delete_values"),
            "are values of delete_flag, which is missing",
            "name the column with delete_flag, or leave them out",
        )


def _columns(stream: Stream) -> Iterator[Finding]:
    columns = stream.source.columns
    if columns is None:
        return
    if not columns:
        yield Finding(
            ("source", "columns"), "is an empty list", "list columns, or leave it out to read all"
        )
        return
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        yield Finding(("source", "columns"), f"names {twice!r} twice", "name every column once")
    lacking = {name: use for name, use in _wanted(stream) if name not in columns}
    for name, needed_by in lacking.items():
        yield Finding(
            ("source", "columns"),
            f"lacks {name!r}, which {needed_by} needs",
            "add it, or leave columns out to read all",
        )
    for key, named in (
        ("rename", stream.selection.rename),
        ("personal", stream.selection.personal),
    ):
        for name in named:
            if name not in columns and name not in lacking:
                yield Finding(
                    ("source", key, name),
                    "is not read: columns does not list it",
                    "add it to columns, or take it out here",
                )


def _wanted(stream: Stream) -> Iterator[tuple[str, str]]:
    """The columns of the source that must be read, and what needs them."""
    partition, cursor = stream.target.partition, stream.source.cursor
    if stream.transform is not None:
        # Keys and the partition column may be made of others.
        if cursor is not None:
            yield cursor, "source.cursor"
        return
    for name in stream.target.keys:
        if (source := _source_of(stream, name)) is not None:
            yield source, "target.keys"
    partitioned_by = None if partition is None else _source_of(stream, partition.column)
    if partitioned_by is not None:
        yield partitioned_by, "target.partition"
    if cursor is not None and cursor != partitioned_by:
        # Without it, what a window replaces is not found again, nor what is newer told from older.
        yield cursor, "source.cursor"


def _source_of(stream: Stream, name: str) -> str | None:
    """What the source calls the target's column *name*; ``None`` if rename leaves no such column."""
    rename = stream.selection.rename
    for source, target in rename.items():
        if target == name:
            return source
    return None if name in rename else name


def _names(stream: Stream) -> Iterator[Finding]:
    """Names of the source where those of the target belong, and names that two columns would have."""
    rename, target = stream.selection.rename, stream.target
    used: list[tuple[KeyPath, str]] = [
        (("target", "keys", number), name) for number, name in enumerate(target.keys)
    ]
    # Of events, the partition column is held against the cursor.
    if target.partition is not None and stream.kind is not Kind.EVENTS:
        used.append((("target", "partition", "column"), target.partition.column))
    if stream.transform is not None:
        used = []
    for key, name in used:
        if _source_of(stream, name) is None:
            yield Finding(
                key,
                f"is {name!r}, which rename calls {rename[name]!r} in the target",
                f"write {rename[name]!r}",
            )
    read: dict[str, str] = {}
    for source in _known_columns(stream):
        name = stream.selection.name_of(source)
        other = read.setdefault(name, source)
        if other != source:
            renamed, there = (source, other) if source in rename else (other, source)
            yield Finding(
                ("source", "rename", renamed),
                f"calls it {name!r}, as {there!r} is called already",
                "give every column a name of its own, or leave one out",
            )


def _known_columns(stream: Stream) -> list[str]:
    """The columns that a batch is known to have, by their names in the source."""
    columns, rename, personal = (
        stream.source.columns,
        stream.selection.rename,
        stream.selection.personal,
    )
    if columns is None:
        cursor = [] if stream.source.cursor is None else [stream.source.cursor]
        columns = (*cursor, *rename, *personal)
    return [name for name in columns if personal.get(name) is not Treatment.DROP]


def _personal(stream: Stream) -> Iterator[Finding]:
    """Treatments that take away what a load goes by."""
    source, target = stream.source, stream.target
    partition = None if target.partition is None else target.partition.column
    for column, treatment in stream.selection.personal.items():
        key = ("source", "personal", column)
        name = stream.selection.name_of(column)
        dropped = treatment is Treatment.DROP
        if column == source.cursor and not dropped:
            yield Finding(
                key,
                "is the cursor, by whose values windows are compared",
                "choose another cursor, or write drop, which keeps it in the source",
            )
        elif name in target.keys and treatment is not Treatment.HASH:
            yield Finding(
                key,
                f"is a key, and {treatment} would tell no rows apart",
                "write hash, which keeps equal values equal, or choose other keys",
            )
        elif name == partition:
            yield Finding(
                key,
                "is the target's partition column, which needs its values as they are",
                "take it out, or partition the target by another column",
            )
        elif column == source.cursor and stream.kind is Kind.EVENTS:
            yield Finding(
                key,
                "is the cursor of events, by which the target's rows of a window are found",
                "take it out, or choose another cursor",
            )
    hashed = [
        column
        for column, treatment in stream.selection.personal.items()
        if treatment is Treatment.HASH and column != source.cursor
    ]
    if hashed and source.hash_conn_id is None:
        yield Finding(
            ("source", "personal", hashed[0]),
            "is hashed, and nothing names the key",
            "add hash_conn_id, a connection whose password is the key",
        )


def _transform(stream: Stream) -> Iterator[Finding]:
    transform = stream.transform
    if transform is None:
        return
    if stream.source.schema_contract is not None:
        yield Finding(
            ("source", "schema_contract"),
            "has no use beside a transform, which says what the target gets",
            "leave it out: what the transform gives is held against the target",
        )
    if transform.sql_file is not None and transform.sql is None:
        yield Finding(
            ("transform", "sql_file"),
            "was not read",
            "pass the mapping to build_pipeline, which reads it, or put the SELECT into sql",
        )
        return
    if (transform.sql is None) == (transform.python is None):
        both = transform.sql is not None
        yield Finding(
            ("transform", "python") if both else ("transform",),
            "stands beside SQL" if both else "says nothing to do",
            "write exactly one of sql, sql_file and python",
        )
    elif transform.sql is not None:
        yield from _transform_sql(stream, transform.sql)


def _transform_sql(stream: Stream, text: str) -> Iterator[Finding]:
    transform = stream.transform
    if transform is None:
        return
    key = ("transform", "sql" if transform.sql_file is None else "sql_file")
    if _SELECT.match(text) is None:
        yield Finding(
            key, "begins with neither SELECT nor WITH", "write one SELECT over the relation batch"
        )
    for name in ("on_error", "max_dead_share", "max_dead_rows", "batch_rows", "as_text"):
        if getattr(transform, name) is not None:
            yield Finding(
                ("transform", name),
                "is for python: a SELECT ends at its first error",
                "leave it out, and write the SELECT so that it gives null for what it cannot convert",
            )
    if "{" in text or "\\" in text:
        # A template may name others, and only the database knows what a backslash means.
        return
    given = transform.parameters or {}
    used = {match["name"] for match in _PARAMETERS.finditer(text)} - {None}
    for name in sorted(used - set(given)):
        yield Finding(
            key,
            f"uses :{name}, which is not among its parameters{nearest(name, given)}",
            "give its value below transform.parameters",
        )
    for name in given:
        if name not in used:
            yield Finding(
                ("transform", "parameters", name),
                f"is not used in the SQL{nearest(name, used)}",
                f"write :{name} where its value belongs, or leave it out",
            )


def _audit(stream: Stream) -> Iterator[Finding]:
    quality = stream.quality
    if quality.suite is not None and not quality.expectations:
        yield Finding(
            ("quality", "suite"),
            "was not read or holds no expectation",
            "name a file with a list of expectations",
        )
    if stream.target.audit == "none" and quality.expectations:
        yield Finding(
            ("target", "audit"),
            "none would publish rows that the expectations refuse",
            "leave audit out, or give the expectations severity: warning",
        )


def _dates(pipeline: Pipeline) -> Iterator[Finding]:
    start, end = pipeline.starts_at, pipeline.ends_at
    if start is not None and end is not None and end < start:
        yield Finding(
            ("end_date",),
            f"{end.date()} lies before start_date {start.date()}",
            "write the start of the last interval that is to be loaded",
        )


def _catchup(pipeline: Pipeline) -> Iterator[Finding]:
    if not pipeline.catchup:
        return
    if pipeline.schedule is None:
        yield Finding(
            ("catchup",), "has no schedule to follow", "add a schedule, or set catchup: false"
        )
    if pipeline.start_date is None:
        yield Finding(
            ("catchup",), "has no date to begin with", "add start_date, or set catchup: false"
        )
    for number, stream in enumerate(pipeline.streams):
        several = len(pipeline.streams) > 1
        if stream.window is WindowMode.FULL:
            yield Finding(
                ("catchup",),
                f"would read the whole of {stream.stream!r} (streams[{number}]) once per past interval, "
                "for the same result"
                if several
                else "would read the whole source once per past interval, for the same result",
                "set catchup: false, or move streams with full windows to a pipeline of their own",
            )
        elif stream.window is WindowMode.WATERMARK:
            of = f" of {stream.stream!r} (streams[{number}])" if several else ""
            yield Finding(
                ("catchup",),
                f"has nothing to catch up: the first run{of} reads from the watermark to the present, "
                "and the runs of the other past intervals would find nothing left",
                "set catchup: false, or window: interval to load each past interval by itself",
            )


def _partitioned(pipeline: Pipeline) -> Iterator[Finding]:
    """Each run of a partitioned schedule has one partition to load, and nothing else."""
    if not pipeline.partitioned:
        return
    if pipeline.schedule is None:
        yield Finding(
            ("partitioned",), "has no schedule to follow", "add a schedule, or leave it out"
        )
    for number, stream in enumerate(pipeline.streams):
        if stream.window is not WindowMode.INTERVAL:
            of = f" of {stream.stream!r} (streams[{number}])" if len(pipeline.streams) > 1 else ""
            yield Finding(
                ("partitioned",),
                f"gives every run one partition to load, and window {stream.window}{of} does not begin and "
                "end with one",
                "set window: interval, or leave partitioned out",
            )
        elif stream.target.partition is None:
            yield Finding(
                ("streams", number, "target", "partition"),
                "is missing, and partitioned gives every run one partition to load",
                f"write {{column: {stream.target_cursor}, every: month}}",
            )


def _hash_keys(pipeline: Pipeline) -> Iterator[Finding]:
    """A key may stand as a default for many streams, but some column must need it."""
    used = {s.source.hash_conn_id for s in pipeline.streams if s.selection.hashes}
    for number, stream in enumerate(pipeline.streams):
        if stream.source.hash_conn_id not in {None, *used}:
            yield Finding(
                ("streams", number, "source", "hash_conn_id"),
                "holds the key of hashed columns, and no column is hashed",
                "leave it out, or write hash for a column below personal",
            )


def _one_at_a_time(pipeline: Pipeline) -> Iterator[Finding]:
    """A watermark window begins where the one before it was published."""
    if pipeline.active_runs == 1:
        return
    for number, stream in enumerate(pipeline.streams):
        if stream.window is WindowMode.WATERMARK:
            of = f" of {stream.stream!r} (streams[{number}])" if len(pipeline.streams) > 1 else ""
            yield Finding(
                ("max_active_runs",),
                f"{pipeline.active_runs} runs at once would read the same rows: the watermark window{of} "
                "begins where the run before it has published",
                "leave it out or write 1, or set window: interval, whose runs may work side by side",
            )


def _timeouts(pipeline: Pipeline) -> Iterator[Finding]:
    for number, stream in enumerate(pipeline.streams):
        if stream.target.lock_deadline < stream.target.lock_budget:
            yield Finding(
                ("streams", number, "target", "lock_deadline"),
                f"{stream.target.lock_deadline} is shorter than lock_budget {stream.target.lock_budget}",
                "give it time for several tries, such as PT30M",
            )
        if stream.target.lock_deadline >= pipeline.execution_timeout:
            yield Finding(
                ("streams", number, "target", "lock_deadline"),
                f"{stream.target.lock_deadline} is not shorter than execution_timeout "
                f"{pipeline.execution_timeout}, which would end the task first",
                "shorten lock_deadline, or lengthen execution_timeout",
            )
        yield from _waits(pipeline, number, stream)


def _waits(pipeline: Pipeline, number: int, stream: Stream) -> Iterator[Finding]:
    """Waiting for the source that would outlast the task."""
    waits = {}
    if stream.window is not WindowMode.FULL:
        waits["settle_timeout"] = stream.source.settle_timeout
    if stream.window is WindowMode.INTERVAL:  # its end is waited for; a watermark window ends below
        waits["settle_delay"] = stream.source.settle_delay
    for key, wait in waits.items():
        if wait is not None and wait >= pipeline.execution_timeout:
            yield Finding(
                ("streams", number, "source", key),
                f"{wait} is not shorter than execution_timeout {pipeline.execution_timeout}, which "
                "would end the task first",
                f"shorten {key}, or lengthen execution_timeout",
            )


def _distinct(pipeline: Pipeline) -> Iterator[Finding]:
    if not pipeline.streams:
        yield Finding(
            ("streams",), "is an empty list", "list at least one {stream, kind, source, target}"
        )
    streams: dict[str, int] = {}
    groups: dict[str, str] = {}
    targets: dict[tuple[str, TableName], str] = {}
    for number, stream in enumerate(pipeline.streams):
        place = ("streams", number)
        target = (stream.target.conn_id, TableName.parse(stream.target.table))
        if stream.stream in streams:
            yield Finding(
                (*place, "stream"),
                f"{stream.stream!r} is also the id of streams[{streams[stream.stream]}]",
                "give every stream its own id",
            )
        elif (other := groups.get(group_id(stream.stream))) is not None:
            yield Finding(
                (*place, "stream"),
                f"{stream.stream!r} and {other!r} would both be task group {group_id(other)!r}",
                "use ids that differ in more than '.' and '_'",
            )
        if target in targets:
            yield Finding(
                (*place, "target", "table"),
                f"{target[1]} is also the target of stream {targets[target]!r}: "
                "each would replace what the other loaded",
                "give every stream its own table",
            )
        streams.setdefault(stream.stream, number)
        groups.setdefault(group_id(stream.stream), stream.stream)
        targets.setdefault(target, stream.stream)


def group_id(stream: str) -> str:
    """The task group of a stream: Airflow's group ids have no dots."""
    return stream.replace(".", "_")
