"""The use case *extract*: one window of a source becomes a staged batch, or nothing happens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from airflow_etl_provider.core.errors import CatalogError, ConfigurationError, DataError, EtlError
from airflow_etl_provider.core.load import (
    Kind,
    Load,
    LoadState,
    Manifest,
    PartitionRange,
    RunInfo,
    StreamPosition,
)
from airflow_etl_provider.core.names import TableName, check_stream
from airflow_etl_provider.core.partition import PartitionSpec
from airflow_etl_provider.core.ports import (
    EventLog,
    Sender,
    Source,
    SourceShape,
    Stop,
    WatermarkStore,
)
from airflow_etl_provider.core.suggest import nearest
from airflow_etl_provider.core.watermark import follow
from airflow_etl_provider.core.window import FULL, Interval, Window, bound_text, refuse_future

WINDOWS = ("interval", "full")


@dataclass(frozen=True, slots=True)
class ExtractRequest:
    """What one extract task was asked to do.

    :param interval: ``None`` reads everything (``window="full"``).
    :param columns: ``None`` takes every column of the source.
    :param timezone: wall clock that a cursor without time zone shows.
    :param origin: where the stream starts, if that is known before its first load.
    """

    load_id: str
    run: RunInfo
    stream: str
    kind: Kind
    source: str
    source_conn_id: str
    target: TableName
    target_conn_id: str
    cursor: str | None
    keys: tuple[str, ...]
    columns: tuple[str, ...] | None
    interval: Interval | None
    partition: PartitionSpec | None
    timezone: str
    origin: datetime | None
    checksum: bool
    store: str

    def __post_init__(self) -> None:
        check_stream(self.stream)
        if self.interval is not None and self.cursor is None:
            raise ConfigurationError(
                f"stream {self.stream!r} has window='interval' but no cursor",
                remedy="name the column that orders changes with cursor=..., or use window='full'",
            )
        if (
            self.kind is Kind.EVENTS
            and self.partition is not None
            and self.cursor != self.partition.column
        ):
            raise ConfigurationError(
                f"stream {self.stream!r} holds events, so its cursor must be the partition column; "
                f"it is {self.cursor!r}, the partitions are by {self.partition.column!r}",
                remedy="use the same column for both, or declare kind='entities'",
            )


@dataclass(frozen=True, slots=True)
class StagingPlan:
    """How a batch will be staged: decided from both catalogs before anything is created."""

    window: Window
    columns: tuple[str, ...]
    binary: bool
    direct: bool
    staging: TableName
    partition_column: str | None
    partitions: tuple[PartitionRange, ...]


class StagingArea(Protocol):
    """The target database as extract sees it."""

    def plan(self, request: ExtractRequest, source: SourceShape, window: Window) -> StagingPlan:
        """Decide how to stage; every refusal that the catalogs can give is given here."""
        ...

    def begin(self, request: ExtractRequest, window: Window) -> Load:
        """Record the load in the ledger, or find it there."""
        ...

    def position(self, stream: str) -> StreamPosition: ...

    def has(self, staging: TableName) -> bool: ...

    def stage(
        self,
        request: ExtractRequest,
        plan: StagingPlan,
        source: SourceShape,
        sender: Sender,
        *,
        stop: Stop,
        log: EventLog,
    ) -> Manifest:
        """Create the staged table, fill it and record it, in one transaction."""
        ...

    def fail(self, load_id: str, error: str) -> None: ...


def extract(
    request: ExtractRequest,
    *,
    source: Source,
    area: StagingArea,
    store: WatermarkStore,
    now: datetime,
    stop: Stop,
    log: EventLog,
) -> Manifest:
    """Stage the rows of the request's window and return what was staged.

    A load that an earlier try has already staged is returned as it is. Nothing that fails here leaves a
    table behind or touches target or watermark.

    :raises ConfigurationError, CatalogError, ContractError: before any row is read.
    :raises DataError: rows that cannot be carried, among them rows without a cursor value.
    :raises StateError: the stored watermark is unreadable, shadowed or edited by hand.
    """
    if request.interval is not None:
        refuse_future(request.interval, now)
    shape = source.describe()
    columns = _columns(request, shape)
    window = _window(request, shape)
    plan = area.plan(request, shape, window)
    load = area.begin(request, window)
    follow(store, request.stream, lambda: area.position(request.stream), log=log)
    waiting = load.state in (LoadState.STAGED, LoadState.VALIDATED)
    if waiting and load.manifest is not None and area.has(load.manifest.staging):
        log("batch already staged by an earlier try", load_id=load.load_id, rows=load.rows_staged)
        return load.manifest
    log(
        "extract started",
        load_id=request.load_id,
        stream=request.stream,
        source=shape.name,
        window=str(window),
        columns=len(columns),
        transport="binary" if plan.binary else "text",
        staging=str(plan.staging),
        becomes_partition=plan.direct,
    )
    try:
        with _open(request, source, plan) as sender:
            _refuse_nulls(request, shape, sender)
            manifest = area.stage(request, plan, shape, sender, stop=stop, log=log)
    except EtlError as error:
        area.fail(request.load_id, error.what)
        raise
    log(
        "batch staged",
        load_id=manifest.load_id,
        staging=str(manifest.staging),
        rows=manifest.rows,
        bytes=manifest.bytes,
    )
    return manifest


def _open(
    request: ExtractRequest, source: Source, plan: StagingPlan
) -> AbstractContextManager[Sender]:
    return source.open(
        plan.window,
        cursor=request.cursor if request.interval is not None else None,
        columns=plan.columns,
        binary=plan.binary,
        checksum=request.checksum,
    )


def _columns(request: ExtractRequest, shape: SourceShape) -> Sequence[str]:
    wanted = request.columns or tuple(shape.names())
    uses = [(name, "one of columns") for name in wanted] + [
        (name, "a key") for name in request.keys
    ]
    if request.cursor is not None:
        uses.append((request.cursor, "the cursor"))
    for name, use in uses:
        if name not in shape.names():
            raise CatalogError(
                f"{shape.name} has no column {name!r}, named as {use}{nearest(name, shape.names())}",
                remedy=f"its columns are: {', '.join(shape.names())}",
            )
    return wanted


def _window(request: ExtractRequest, shape: SourceShape) -> Window:
    if request.interval is None or request.cursor is None:
        return FULL
    (cursor_type,) = (column.type for column in shape.columns if column.name == request.cursor)
    return Window(
        low=bound_text(request.interval.start, cursor_type, request.timezone),
        high=bound_text(request.interval.end, cursor_type, request.timezone),
        type=cursor_type,
    )


def _refuse_nulls(request: ExtractRequest, shape: SourceShape, sender: Sender) -> None:
    if sender.null_cursors:
        raise DataError(
            f"{sender.null_cursors:,} rows of {shape.name} have no value in the cursor {request.cursor!r}, so no "
            "window would ever hold them",
            remedy="mend them in the source, choose another cursor, or read the table with window='full'",
        )
