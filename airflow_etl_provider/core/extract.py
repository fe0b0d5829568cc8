"""The use case *extract*: one window of a source becomes a staged batch, or nothing happens."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
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
    Session,
    Source,
    SourceShape,
    Stop,
    WatermarkStore,
)
from airflow_etl_provider.core.settle import Settled, SettleOptions
from airflow_etl_provider.core.suggest import nearest
from airflow_etl_provider.core.watermark import follow
from airflow_etl_provider.core.window import FULL, Interval, Window, bound_text, refuse_future


class WindowMode(StrEnum):
    """What decides which rows a load reads."""

    INTERVAL = "interval"
    WATERMARK = "watermark"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class ExtractRequest:
    """What one extract task was asked to do.

    :param interval: the run's interval, with ``mode`` ``interval``.
    :param lookback: how far below the watermark a ``watermark`` window begins.
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
    mode: WindowMode
    interval: Interval | None
    partition: PartitionSpec | None
    timezone: str
    origin: datetime | None
    checksum: bool
    store: str
    settle: SettleOptions = field(default_factory=SettleOptions)
    lookback: timedelta | int | None = None

    def __post_init__(self) -> None:
        check_stream(self.stream)
        if self.mode is not WindowMode.FULL and self.cursor is None:
            raise ConfigurationError(
                f"stream {self.stream!r} has window={self.mode.value!r} but no cursor",
                remedy="name the column that orders changes with cursor=..., or use window='full'",
            )
        if self.kind is Kind.SNAPSHOTS and self.mode is not WindowMode.FULL:
            raise ConfigurationError(
                f"stream {self.stream!r} holds snapshots, which are read whole, not by window={self.mode.value!r}",
                remedy="use window='full', or declare kind='events' or 'entities'",
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

    def bind(self, request: ExtractRequest) -> Load | None:
        """Make sure of the ledger, bind the stream to its target, and find what an earlier try did."""
        ...

    def begin(self, request: ExtractRequest, window: Window) -> Load:
        """Record the load in the ledger before anything is made for it."""
        ...

    def position(self, stream: str) -> StreamPosition: ...

    def window_from(
        self, request: ExtractRequest, position: StreamPosition, cursor_type: str, settled: Settled
    ) -> Window | None:
        """From the position, less the lookback, to the settled bound; ``None`` if that is behind it."""
        ...

    def end_earlier_tries(self, load_id: str) -> list[Session]:
        """End what earlier tries left running in the target; returns what they left in the source."""
        ...

    def has(self, staging: TableName) -> bool: ...

    def restart(self, load_id: str) -> None:
        """Take back a load whose staged table is gone."""
        ...

    def stage(
        self,
        request: ExtractRequest,
        plan: StagingPlan,
        source: SourceShape,
        sender: Sender,
        settled: Settled,
        *,
        stop: Stop,
        log: EventLog,
    ) -> Manifest:
        """Create the staged table, fill it and record it, in one transaction."""
        ...

    def fail(self, load_id: str, error: str, try_number: int) -> None: ...


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
    _require_columns(request, shape)
    plan = area.plan(request, shape, _window(request, shape))
    load = area.bind(request)
    follow(store, request.stream, lambda: area.position(request.stream), log=log)
    if load is not None:
        source.end(area.end_earlier_tries(request.load_id))
    staged = _already_staged(load)
    if staged is not None and area.has(staged.staging):
        log("batch already staged by an earlier try", load_id=staged.load_id, rows=staged.rows)
        return staged
    if staged is not None:
        log("the staged batch is gone and is read again", load_id=staged.load_id)
        area.restart(staged.load_id)
    try:
        if request.mode is WindowMode.WATERMARK:
            settled = _settle(request, source, None, stop=stop, log=log)
            position = area.position(request.stream)
            window = area.window_from(request, position, _cursor_type(request, shape), settled)
            if window is None:
                return _nothing(request, plan, shape, position, settled, now, log=log)
            plan = replace(plan, window=window)
            area.begin(request, plan.window)
        else:
            area.begin(request, plan.window)
            settled = _settle(request, source, plan.window.high, stop=stop, log=log)
        log(
            "extract started",
            load_id=request.load_id,
            stream=request.stream,
            source=shape.name,
            window=str(plan.window),
            settled=settled.evidence,
            columns=len(plan.columns),
            transport="binary" if plan.binary else "text",
            staging=str(plan.staging),
            becomes_partition=plan.direct,
        )
        with _open(request, source, plan) as sender:
            _refuse_nulls(request, shape, sender)
            manifest = area.stage(request, plan, shape, sender, settled, stop=stop, log=log)
    except EtlError as error:
        area.fail(request.load_id, error.what, request.run.try_number)
        raise
    log(
        "batch staged",
        load_id=manifest.load_id,
        staging=str(manifest.staging),
        rows=manifest.rows,
        bytes=manifest.bytes,
    )
    return manifest


def _already_staged(load: Load | None) -> Manifest | None:
    """The batch of a load that waits for its audit or publish."""
    if load is None or load.state not in (LoadState.STAGED, LoadState.VALIDATED):
        return None
    return load.manifest


def _settle(
    request: ExtractRequest, source: Source, high: str | None, *, stop: Stop, log: EventLog
) -> Settled:
    """Wait until nothing can be added below the window's end; without one, find how high it may reach."""
    if request.mode is WindowMode.FULL or request.cursor is None:
        return Settled(None, "[)", "one snapshot of everything")
    return source.settle(request.cursor, high, request.settle, stop=stop, log=log)


def _nothing(
    request: ExtractRequest,
    plan: StagingPlan,
    shape: SourceShape,
    position: StreamPosition,
    settled: Settled,
    now: datetime,
    *,
    log: EventLog,
) -> Manifest:
    """The settled bound is not above the watermark: a success without a load."""
    log(
        "nothing to load: the settled bound is not above the watermark",
        stream=request.stream,
        watermark=position.position,
        settled_bound=settled.high,
        evidence=settled.evidence,
        held_by=settled.held_by,
    )
    return Manifest(
        load_id=request.load_id,
        stream=request.stream,
        kind=request.kind,
        target_conn_id=request.target_conn_id,
        target=request.target,
        staging=plan.staging,
        source_conn_id=request.source_conn_id,
        source=request.source,
        source_dataset=shape.dataset,
        window=Window(position.position, position.position, position.position_type),
        cursor=request.cursor,
        columns=(),
        keys=request.keys,
        partition_column=None,
        partition=request.partition,
        partitions=(),
        direct=False,
        moves_watermark=False,
        rows=0,
        bytes=0,
        snapshot_at=now,
        settled=settled.evidence,
        nothing=True,
    )


def _open(
    request: ExtractRequest, source: Source, plan: StagingPlan
) -> AbstractContextManager[Sender]:
    return source.open(
        plan.window,
        cursor=None if request.mode is WindowMode.FULL else request.cursor,
        columns=plan.columns,
        binary=plan.binary,
        checksum=request.checksum,
    )


def _require_columns(request: ExtractRequest, shape: SourceShape) -> None:
    uses = [(name, "one of columns") for name in request.columns or ()]
    uses += [(name, "a key") for name in request.keys]
    if request.cursor is not None:
        uses.append((request.cursor, "the cursor"))
    for name, use in uses:
        if name not in shape.names():
            raise CatalogError(
                f"{shape.name} has no column {name!r}, named as {use}{nearest(name, shape.names())}",
                remedy=f"its columns are: {', '.join(shape.names())}",
            )


def _cursor_type(request: ExtractRequest, shape: SourceShape) -> str:
    (found,) = (column.type for column in shape.columns if column.name == request.cursor)
    return found


def _window(request: ExtractRequest, shape: SourceShape) -> Window:
    """The window as far as it is known before the ledger is asked."""
    if request.mode is WindowMode.FULL:
        return FULL
    cursor_type = _cursor_type(request, shape)
    if request.interval is None:
        return Window(type=cursor_type)
    low = bound_text(request.interval.start, cursor_type, request.timezone)
    high = bound_text(request.interval.end, cursor_type, request.timezone)
    if low >= high and not cursor_type.endswith("with time zone"):
        raise ConfigurationError(
            f"on the wall clock of {request.timezone} the window runs from {low} to {high}: the clock is set back in it",
            remedy="use longer intervals, or a cursor with time zone",
        )
    return Window(low=low, high=high, type=cursor_type)


def _refuse_nulls(request: ExtractRequest, shape: SourceShape, sender: Sender) -> None:
    if sender.null_cursors:
        raise DataError(
            f"{sender.null_cursors:,} rows of {shape.name} have no value in the cursor {request.cursor!r}, so no "
            "window would ever hold them",
            remedy="mend them in the source, choose another cursor, or read the table with window='full'",
        )
