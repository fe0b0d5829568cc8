"""Which values contradict each other, and what to write instead: pure decisions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from airflow_etl_provider.config.findings import Finding
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.names import TableName

if TYPE_CHECKING:
    from airflow_etl_provider.config.models import Pipeline, Stream

# A colon before the name would make it a cast, which is no parameter.
_PARAMETERS = re.compile(r"(?<![:\w]):(low|high)\b")


def contradictions_of_stream(stream: Stream) -> list[Finding]:
    """What cannot work in one stream, with paths that start at the stream."""
    by_kind = {Kind.EVENTS: _events, Kind.ENTITIES: _entities, Kind.SNAPSHOTS: _snapshots}
    return [
        *_source(stream),
        *by_kind[stream.kind](stream),
        *_strategy(stream),
        *_columns(stream),
        *_audit(stream),
    ]


def contradictions_of_pipeline(pipeline: Pipeline) -> list[Finding]:
    """What cannot work in a pipeline whose streams are each consistent."""
    return [*_dates(pipeline), *_catchup(pipeline), *_timeouts(pipeline), *_distinct(pipeline)]


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
        used = set(_PARAMETERS.findall(source.query))
        key = "query" if source.query_file is None else "query_file"
        if stream.window == "interval" and used != {"low", "high"}:
            lacking = " and ".join(f":{name}" for name in ("low", "high") if name not in used)
            yield Finding(
                ("source", key),
                f"does not use {lacking}, so every run would read the same rows",
                "bound the cursor in it: WHERE cursor >= :low AND cursor < :high, or set window: full",
            )
        if stream.window == "full" and used:
            yield Finding(
                ("source", key),
                f"uses :{min(used)}, which a full window does not have",
                "take the condition out, or set window: interval",
            )


def _events(stream: Stream) -> Iterator[Finding]:
    source, partition = stream.source, stream.target.partition
    if stream.window == "full":
        yield Finding(
            ("source", "window"),
            "full does not fit events, whose runs each load their own interval",
            "leave window out, or set kind: snapshots to replace the whole table each time",
        )
    if source.cursor is None:
        yield Finding(
            ("source", "cursor"),
            "is missing, so nothing tells which rows belong to a run",
            "name the date or timestamp column of the events, or set kind: snapshots",
        )
    elif partition is not None and partition.column != source.cursor:
        yield Finding(
            ("target", "partition", "column"),
            f"is {partition.column!r}, and the cursor is {source.cursor!r}: "
            "a window would not be made of whole partitions",
            "use one column for both",
        )


def _entities(stream: Stream) -> Iterator[Finding]:
    if stream.window == "interval":
        yield Finding(
            ("source", "window"),
            "interval would need rows to be merged by key, which no strategy here does",
            "set window: full, so that the whole table is compared and replaced",
        )
    if stream.target.strategy is Strategy.AUTO:
        yield Finding(
            ("target", "strategy"),
            "auto never replaces a whole table of entities by itself",
            "write strategy: replace, or set kind: snapshots",
        )
    if not stream.target.keys:
        yield Finding(
            ("target", "keys"),
            "is missing: entities are told apart by a key",
            "list the columns of the key, or set kind: snapshots",
        )
    yield from _whole_table(stream)


def _snapshots(stream: Stream) -> Iterator[Finding]:
    if stream.window == "interval":
        yield Finding(
            ("source", "window"),
            "interval does not fit snapshots, which are read whole",
            "leave window out, or set kind: events",
        )
    yield from _whole_table(stream)


def _whole_table(stream: Stream) -> Iterator[Finding]:
    if stream.source.cursor is not None and stream.window == "full":
        yield Finding(
            ("source", "cursor"),
            f"has no use for {stream.kind}, whose table is read whole",
            "leave cursor out, or set kind: events",
        )
    if stream.target.partition is not None:
        yield Finding(
            ("target", "partition"),
            f"has no use for {stream.kind}, whose table is replaced whole",
            "leave partition out, or set kind: events",
        )


def _strategy(stream: Stream) -> Iterator[Finding]:
    strategy = stream.target.strategy
    if strategy is Strategy.SWAP and stream.kind is not Kind.EVENTS:
        yield Finding(
            ("target", "strategy"),
            f"swap exchanges partitions, which {stream.kind} do not have",
            "write auto or replace",
        )
    elif strategy is Strategy.SWAP and stream.target.partition is None:
        yield Finding(
            ("target", "partition"),
            "is missing, so swap does not know which partitions to make and exchange",
            f"write {{column: {stream.source.cursor or 'the cursor'}, every: month}}",
        )
    if strategy is Strategy.REPLACE and stream.kind is Kind.EVENTS:
        yield Finding(
            ("target", "strategy"),
            "replace would leave only the last interval in the table",
            "write auto or swap, or set kind: snapshots",
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
    partition = stream.target.partition
    wanted = {"target.keys": stream.target.keys}
    if partition is not None:
        wanted["target.partition"] = (partition.column,)
    for needed_by, names in wanted.items():
        for name in names:
            if name not in columns:
                yield Finding(
                    ("source", "columns"),
                    f"lacks {name!r}, which {needed_by} needs",
                    "add it, or leave columns out to read all",
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
        if stream.window == "full":
            yield Finding(
                ("catchup",),
                f"would read the whole of {stream.stream!r} (streams[{number}]) once per past interval, "
                "for the same result"
                if len(pipeline.streams) > 1
                else "would read the whole source once per past interval, for the same result",
                "set catchup: false, or move streams with full windows to a pipeline of their own",
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
