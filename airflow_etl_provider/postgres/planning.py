"""Which rows, columns and partitions a load means, decided from the catalogs before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.columns import Selected, missing_column
from airflow_etl_provider.core.conversion import Conversion
from airflow_etl_provider.core.dead_letters import OnConversionError
from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ContractError,
    EtlError,
)
from airflow_etl_provider.core.load import Kind, Manifest, PartitionRange, StreamPosition
from airflow_etl_provider.core.names import TableName, quoted
from airflow_etl_provider.core.ports import SourceColumn, SourceShape
from airflow_etl_provider.core.request import ExtractRequest
from airflow_etl_provider.core.settle import Settled
from airflow_etl_provider.core.window import Interval, Window, bound_text
from airflow_etl_provider.postgres import catalog, statements
from airflow_etl_provider.postgres.catalog import CatalogColumn, Table, scalar
from airflow_etl_provider.postgres.cursors import CursorKind, cursor_kind, cursor_type_sql
from airflow_etl_provider.postgres.partitions import (
    expected_partitions,
    obstacles,
    overlapping,
    refuse_default_rows,
    same_range,
)
from airflow_etl_provider.postgres.tree import read_tree
from airflow_etl_provider.postgres.types import judged


def watermark_window(
    connection: psycopg.Connection[Any],
    position: StreamPosition,
    cursor_type: str,
    settled: Settled,
    *,
    lookback: timedelta | int | None,
) -> Window | None:
    """From *position*, less *lookback*, to the settled bound; ``None`` if there is nothing between.

    An integer's bound is exclusive, so it is one more than the largest settled value. With a lookback, a
    bound that is where the watermark is still leaves what lies behind to be read again.
    """
    cast = cursor_type_sql(cursor_type)
    kind = cursor_kind(cursor_type)
    counts = kind is CursorKind.INTEGER or cursor_type.split("(")[0] == "numeric"
    if lookback and not (kind is CursorKind.TIME if isinstance(lookback, timedelta) else counts):
        raise ConfigurationError(
            f"lookback={lookback!r} does not fit a cursor of type {cursor_type}",
            remedy="give a timedelta for times, a whole number for counters, and none for other types",
        )
    back = sql.SQL("")
    if lookback:
        back = (
            sql.SQL(" - %(lookback)s::interval")
            if kind is CursorKind.TIME
            else sql.SQL(" - %(lookback)s::bigint")
        )
    high = sql.SQL("%(high)s::{t}{more}").format(
        t=cast, more=sql.SQL(" + 1" if kind is CursorKind.INTEGER else "")
    )
    row = connection.execute(
        sql.SQL(
            "SELECT (({low}{back})::{t})::text, ({high})::text,"
            " coalesce({high} > {low}{back} AND {high} >= {low}, true)"
        ).format(low=sql.SQL("%(low)s::{}").format(cast), back=back, t=cast, high=high),
        {"low": position.position, "high": settled.high, "lookback": lookback},
    ).fetchone()
    if row is None or not row[2]:
        return None
    return Window(low=row[0], high=row[1], type=cursor_type, bounds=settled.bounds)


def went_backwards(
    connection: psycopg.Connection[Any],
    position: StreamPosition,
    cursor_type: str,
    settled: Settled,
) -> bool:
    """Whether the source's largest value lies below what was already loaded of it."""
    kind = cursor_kind(cursor_type)
    if kind not in (CursorKind.INTEGER, CursorKind.ORDER) or position.position is None:
        return False
    more = sql.SQL(" + 1" if kind is CursorKind.INTEGER else "")
    found: bool = scalar(
        connection,
        sql.SQL("SELECT %(high)s::{t}{more} < %(position)s::{t}").format(
            t=cursor_type_sql(cursor_type), more=more
        ),
        {"high": settled.high, "position": position.position},
    )
    return found


def matching_columns(
    request: ExtractRequest, source: SourceShape, columns: Sequence[Selected], target: Table
) -> tuple[Selected, ...]:
    """The batch's columns, which the target has; those that it computes itself are left out.

    :raises ContractError: the target computes one that was asked for, or demands another.
    :raises CatalogError: the audit reads one that is not among them.
    """
    chosen = [column.name for column in columns]
    generated = [name for name in chosen if target.column(name, use="a column").generated]
    if request.selection.columns is None:
        chosen = [name for name in chosen if name not in generated]
    elif generated:
        raise ContractError(
            f"{target.name} computes {', '.join(generated)} itself (GENERATED ALWAYS), so they cannot be loaded",
            remedy="leave them out of columns=[...]",
        )
    starved = [
        column.name
        for column in target.columns
        if column.not_null
        and not (column.has_default or column.generated or column.identity)
        and column.name not in chosen
        and column.name not in request.filled_by_publish
    ]
    if starved:
        raise ContractError(
            f"{target.name} demands values (NOT NULL, no default) that {source.name} does not give: "
            f"{', '.join(starved)}",
            remedy="add the columns to the source or give the target's columns a default",
        )
    for key in request.keys:
        target.column(key, use="a key")
    computed = [column.name for column in target.columns if column.generated]
    for name in request.audited_columns:
        if name not in (*chosen, *computed):
            raise missing_column(f"the batch from {source.name}", name, "in an expectation", chosen)
    return tuple(column for column in columns if column.name in chosen)


def conversion_of(
    request: ExtractRequest,
    source: SourceShape,
    ours: Sequence[SourceColumn],
    theirs: Sequence[CatalogColumn],
    target: Table,
) -> Conversion | None:
    """How rows that the target cannot hold are found and set aside; ``None`` if they fail the load, or cannot be."""
    if request.on_conversion_error is OnConversionError.FAIL:
        return None
    # By these windows and partitions are cut, before a single value is looked at.
    strict = {
        *target.partition_columns,
        *([request.target_cursor] if request.target_cursor else []),
    }
    columns = judged(ours, theirs, proven=source.proven, strict=strict)
    if columns is None:
        return None
    return Conversion(columns, remarks=not source.proven, limits=request.dead_limits)


def conversion_sent(
    conversion: Conversion, ours: Sequence[SourceColumn], theirs: Sequence[CatalogColumn]
) -> tuple[list[SourceColumn], list[CatalogColumn]]:
    """The columns of both sides as they travel: what is judged in the target is text on the way."""
    sent = conversion.as_text
    return (
        [
            # Of what a driver gives there is no binary form.
            replace(column, type="text", portable=not conversion.remarks, definition="")
            if column.name in sent
            else column
            for column in ours
        ],
        [
            replace(column, type="text", builtin=True, refers_by_oid=False, definition="")
            if column.name in sent
            else column
            for column in theirs
        ],
    )


def staged_like_source(
    connection: psycopg.Connection[Any],
    source: SourceShape,
    columns: Sequence[Selected],
    label: str,
) -> Table:
    """The columns of a batch that a transform reads, with the types that they have in the source.

    A type that the target's database does not have, or has by another definition, is staged as text; domains,
    too, and names of objects (``regclass``), which may not be there.
    """
    offered = {column.name: column for column in source.columns}
    known = dict(
        connection.execute(
            "SELECT t, to_regtype(t) IS NOT NULL FROM unnest(%(types)s::text[]) AS t",
            {"types": sorted({column.type for column in source.columns})},
        ).fetchall()
    )
    described = catalog.read_query(
        connection,
        sql.SQL("(SELECT {}) AS batch").format(
            sql.SQL(", ").join(
                sql.SQL("NULL::{} AS {}").format(
                    # The server knows it as the name of a type, so it is nothing else.
                    sql.SQL(
                        offered[column.name].type if known[offered[column.name].type] else "text"
                    ),
                    sql.Identifier(column.name),
                )
                for column in columns
            )
        ),
        label=label,
    )

    def staged(column: CatalogColumn) -> CatalogColumn:
        theirs = offered[column.name]
        same = column.type == theirs.type and column.definition == theirs.definition
        if same and not column.refers_by_oid:
            return column
        return replace(column, type="text", builtin=True, refers_by_oid=False, definition="")

    return replace(described, columns=tuple(staged(column) for column in described.columns))


def partitions_of(
    connection: psycopg.Connection[Any], request: ExtractRequest, target: Table, window: Window
) -> tuple[PartitionRange, ...]:
    """The partitions that the window covers whole; none where partitions do not matter.

    None either where they cannot be exchanged: publish then writes in place, or says why it does not swap.

    :raises CatalogError: the target is not partitioned as was said, or its DEFAULT partition is in the way.
    """
    if request.partition is not None:
        _require_ranges(connection, target, request.partition.column)
    if request.kind is not Kind.EVENTS or request.target_cursor is None or window.is_full:
        return ()
    if target.partition_strategy != "r" or target.partition_columns != (request.target_cursor,):
        return ()
    interval = instants(connection, window, target, request)
    if interval is None:
        return ()
    found = expected_partitions(
        connection, target, spec=request.partition, interval=interval, timezone=request.timezone
    )
    if obstacles(connection, target):
        return ()
    refuse_default_rows(connection, target, request.target_cursor, found)
    return found


def _require_ranges(connection: psycopg.Connection[Any], target: Table, column: str) -> None:
    """:raises CatalogError: no level of *target* is partitioned by RANGE of exactly *column*."""
    if target.partition_strategy is None or not any(
        read_tree(connection, target).first_ranges_of(column)
    ):
        catalog.require_range_partitioned(target, column)


def why_no_swap(connection: psycopg.Connection[Any], manifest: Manifest, target: Table) -> EtlError:
    """Why there are no partitions that the batch could be swapped for, as things are now, and which way is open."""
    partitioned = target.partition_strategy is not None
    hindering = obstacles(connection, target) if partitioned else []
    in_place = {
        Kind.EVENTS: "delete_insert",
        Kind.ENTITIES: "merge",
        Kind.SNAPSHOTS: "delete_insert" if partitioned else "replace",
    }[manifest.kind]
    ways = f"use strategy={in_place!r}"
    if partitioned and not hindering and manifest.kind is not Kind.SNAPSHOTS:
        ways = f"use strategy='swap_merge' or {in_place!r}"
    found = _why_not_whole(connection, manifest, target)
    if found is None and hindering:
        return hindering[0]
    why, helps = found or (
        (
            "none were planned when the batch was staged, for what hindered it then, or because a window by watermark goes by "
            "partitions with a lookback alone"
        ),
        "clear extract and downstream, which plans the window anew",
    )
    return ConfigurationError(
        f"strategy 'swap' exchanges partitions that a window of events covers whole, and for load {manifest.load_id} there "
        f"are none: {why}",
        remedy=ways if helps is None else f"{helps}, or {ways}",
    )


def _why_not_whole(
    connection: psycopg.Connection[Any], manifest: Manifest, target: Table
) -> tuple[str, str | None] | None:
    """Why the batch's window is not made of whole partitions that can be exchanged, and what would change that."""
    window, spec = manifest.window, manifest.partition
    if manifest.kind is not Kind.EVENTS:
        return f"the rows of stream {manifest.stream!r} are {manifest.kind}", None
    if window.is_full or manifest.cursor is None:
        return "everything was read, without a window", "extract with window='interval'"
    try:
        catalog.require_range_partitioned(target, manifest.cursor)
    except CatalogError as error:
        return error.what, None
    column_type = target.column(manifest.cursor, use="the partition column").type
    if cursor_kind(column_type) is not CursorKind.TIME:
        return (
            (
                f"{target.name} is partitioned by {manifest.cursor} of type {column_type}, and only of times is known where "
                "partitions begin and end"
            ),
            None,
        )
    if window.low is None or window.high is None:
        return f"window {window} has no beginning or no end", None
    wanted = PartitionRange("", window.low, window.high)
    covered = overlapping(
        connection, catalog.read_partitions(connection, target), wanted, column_type
    )
    for one in covered:
        if not one.is_leaf:
            return (
                f"partition {one.table} is partitioned itself, so no one table can take its place",
                None,
            )
        if one.table.schema != target.name.schema:
            return (
                f"partition {one.table} lies in another schema than {target.name}",
                f"ALTER TABLE {one.table} SET SCHEMA {quoted(target.name.schema)} and clear extract and downstream",
            )
    if spec is None and len(covered) > 1:
        return (
            f"window {window} covers {len(covered)} partitions, and nothing says how long one is",
            "say partition={'column': ..., 'every': 'month', 'timezone': ...}",
        )
    if spec is None:
        whole = all(same_range(connection, one, wanted, column_type) for one in covered)
        length = "a partition"
    else:
        low, high = (
            moment_of(connection, text, column_type, spec.timezone)
            for text in (window.low, window.high)
        )
        whole = low is not None and high is not None and spec.covers_whole(low, high)
        length = f"one {spec.every}"
    if whole:
        return None
    return (
        f"window {window} did not read partitions of {target.name} whole, and the rest of their rows would be lost",
        f"load windows as long as {length}, from its beginning on",
    )


def instants(
    connection: psycopg.Connection[Any], window: Window, target: Table, request: ExtractRequest
) -> Interval | None:
    """The time that a window covers, up to the end of its last partition if that holds nothing further.

    A watermark window ends at the settled bound, in the middle of a partition. As long as the target has
    nothing above the bound, what was read of that partition is all of it. ``None`` where the window has no
    start, or none that a calendar shows.
    """
    if request.interval is not None and not window_is_clamped(request, window):
        return request.interval
    spec = request.partition
    if window.low is None or window.high is None or not request.lookback or spec is None:
        return None
    column = spec.column
    column_type = target.column(column, use="the partition column").type
    if cursor_kind(column_type) is not CursorKind.TIME:
        return None
    moments = [
        moment_of(connection, text, column_type, request.timezone)
        for text in (window.low, window.high)
    ]
    low, high = moments
    if low is None or high is None:
        return None
    last = spec.period_holding(high - timedelta(microseconds=1))
    if last.end > high and above(connection, target.name, column, window.high, None):
        return None
    return Interval(low, last.end, "window", moves_watermark=True)


def window_is_clamped(request: ExtractRequest, window: Window) -> bool:
    """Whether the window ends before the interval that it was made of."""
    if request.interval is None or window.type is None:
        return False
    return window.high != bound_text(request.interval.end, window.type, request.timezone)


def widened(
    connection: psycopg.Connection[Any], window: Window, target: Table, request: ExtractRequest
) -> Window:
    """*window* from the start of its first partition on, so that whole partitions are read anew."""
    spec = request.partition
    if window.low is None or window.type is None or spec is None:
        return window
    if target.partition_columns != (spec.column,) or spec.column != request.target_cursor:
        return window
    low = moment_of(connection, window.low, window.type, request.timezone)
    if low is None:
        return window
    first = spec.period_holding(low)
    return replace(window, low=bound_text(first.start, window.type, request.timezone))


def moment_of(
    connection: psycopg.Connection[Any], text: str, cursor_type: str, timezone: str
) -> datetime | None:
    """A bound of a cursor as an instant; ``None`` if no calendar shows it."""
    instant = sql.SQL(
        "%(text)s::timestamptz"
        if cursor_type.endswith("with time zone")
        else "%(text)s::timestamp AT TIME ZONE %(zone)s"
    )
    try:
        found: datetime | None = scalar(
            connection,
            sql.SQL(
                "SELECT CASE WHEN isfinite(m) AND m > '0001-01-02' AND m < '9999-12-30' THEN m END"
                " FROM (SELECT {} AS m) AS given"
            ).format(instant),
            {"text": text, "zone": timezone},
        )
    except psycopg.errors.DatetimeFieldOverflow:
        return None
    return found


def above(
    connection: psycopg.Connection[Any], table: TableName, column: str, low: str, high: str | None
) -> bool:
    """Whether *table* has a row from *low* on."""
    found: bool = scalar(
        connection,
        sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {})").format(
            statements.ident(table), statements.in_range(column, low, high)
        ),
    )
    return found


def becomes_partition(
    request: ExtractRequest,
    source: SourceShape,
    target: Table,
    partitions: Sequence[PartitionRange],
) -> bool:
    """Whether the staged table can be made as the future partition: one partition, read whole."""
    if len(partitions) != 1 or request.filled_by_publish:
        return False
    types = {column.name: column.type for column in source.columns}
    column = target.partition_columns[0]
    if types[column] != target.column(column, use="the partition column").type:
        return False
    return not any(column.identity for column in target.columns)
