"""The use case *extract*: one window of a source becomes a staged batch, or nothing happens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from airflow_etl_provider.core.columns import Selected, missing_column
from airflow_etl_provider.core.conversion import Conversion
from airflow_etl_provider.core.errors import ConfigurationError, DataError, EtlError
from airflow_etl_provider.core.load import (
    Load,
    LoadState,
    Manifest,
    PartitionRange,
    StreamPosition,
)
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import (
    Cut,
    EventLog,
    Session,
    Snapshot,
    Source,
    SourceShape,
    Stop,
    WatermarkStore,
)
from airflow_etl_provider.core.request import (
    ExtractRequest,
    NullCursor,
    OnEmpty,
    OpenWindow,
    StageAs,
    WindowMode,
)
from airflow_etl_provider.core.settle import Settled, StillSettling
from airflow_etl_provider.core.watermark import follow
from airflow_etl_provider.core.window import FULL, Nulls, Window, bound_text, refuse_future


@dataclass(frozen=True, slots=True)
class StagingPlan:
    """How a batch will be staged: decided from both catalogs before anything is created.

    ``primary_key`` is the target's. ``logged`` is false where subscribers of the target's database would be
    sent the staged table; ``ddl`` is what the schema contract lets the target be changed by first. With a
    ``conversion`` rows that the target's types cannot hold are set aside. ``types`` are those of the staged
    columns where they are not the target's.
    """

    window: Window
    columns: tuple[Selected, ...]
    binary: bool
    direct: bool
    staging: TableName
    partition_column: str | None
    partitions: tuple[PartitionRange, ...]
    logged: bool = True
    ddl: tuple[str, ...] = ()
    conversion: Conversion | None = None
    primary_key: tuple[str, ...] = ()
    types: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """What an earlier try of the load left to go on from: its window, and how that was cut."""

    window: Window
    settled: Settled
    cut: Cut
    loaded: int
    rows: int


class StagingArea(Protocol):
    """The target database as extract sees it."""

    def plan(
        self,
        request: ExtractRequest,
        source: SourceShape,
        columns: Sequence[Selected],
        window: Window,
    ) -> StagingPlan:
        """Decide how to stage; every refusal that the catalogs can give is given here.

        :param source: as the target sees it: renamed and treated.
        """
        ...

    def evolve(
        self,
        request: ExtractRequest,
        source: SourceShape,
        columns: Sequence[Selected],
        *,
        stop: Stop,
        log: EventLog,
    ) -> None:
        """Change the target as the plan said, where no other load has done so meanwhile."""
        ...

    def bind(self, request: ExtractRequest) -> Load | None:
        """Make sure of the ledger, bind the stream to its target, and find what an earlier try did."""
        ...

    def begin(self, request: ExtractRequest, window: Window) -> Load:
        """Record the load in the ledger before anything is made for it."""
        ...

    def resume(self, request: ExtractRequest, plan: StagingPlan) -> Resumed | None:
        """What an earlier try has staged in slices; what cannot be gone on from is dropped."""
        ...

    def position(self, stream: str) -> StreamPosition: ...

    def window_from(
        self, request: ExtractRequest, position: StreamPosition, cursor_type: str, settled: Settled
    ) -> Window | None:
        """From the position, less the lookback, to the settled bound; ``None`` if that is behind it."""
        ...

    def clamped(self, window: Window, settled: Settled) -> Window | None:
        """*window* up to the settled bound; ``None`` if that is not above its start."""
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
        snapshot: Snapshot,
        settled: Settled,
        cut: Cut,
        *,
        resumed: bool,
        stop: Stop,
        log: EventLog,
    ) -> Manifest:
        """Create the staged table, fill it and record it: in one transaction, or slice by slice."""
        ...

    def cover_empty(self, manifest: Manifest) -> None:
        """Record a batch without rows as published: its window is covered, the target is not touched."""
        ...

    def discard(self, load_id: str, reason: str) -> None:
        """Abandon the load and drop what it staged."""
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

    A load that an earlier try has already staged is returned as it is, and one that it staged in part is
    gone on with. Nothing else that fails here leaves a table behind or touches target or watermark.

    :raises ConfigurationError, CatalogError, ContractError: before any row is read.
    :raises DataError: rows that cannot be carried, among them rows without a cursor value.
    :raises StateError: the stored watermark is unreadable, shadowed or edited by hand.
    :raises StillSettling: the wait for the settled bound goes on in another process.
    """
    open_ended = request.interval is not None and request.interval.end > now
    if request.interval is not None and request.open_window is OpenWindow.REFUSE:
        refuse_future(request.interval, now)
    offered = source.describe()
    columns = _columns(request, offered)
    shape = offered.selected(columns)
    plan = area.plan(request, shape, columns, _window(request, offered))
    load = area.bind(request)
    follow(store, request.stream, lambda: area.position(request.stream), log=log)
    if load is not None:
        source.end(area.end_earlier_tries(request.load_id))
    staged = _already_staged(load)
    if staged is not None and area.has(staged.staging):
        log("batch already staged by an earlier try", load_id=staged.load_id, rows=staged.rows)
        _look_at_emptiness(request, area, staged.extracted, log=log)
        return staged
    if staged is not None:
        log("the staged batch is gone and is read again", load_id=staged.load_id)
        area.restart(staged.load_id)
    try:
        if plan.ddl:
            # Before slices of an earlier try are looked at, which were staged as the target was then.
            area.evolve(request, shape, columns, stop=stop, log=log)
        resumed = None if load is None else area.resume(request, plan)
        if resumed is not None:
            settled = resumed.settled
            plan = area.plan(request, shape, columns, resumed.window)
            area.begin(request, plan.window)
            log(
                "going on behind the slices of an earlier try",
                load_id=request.load_id,
                slices=f"{resumed.loaded} of {len(resumed.cut.slices)}",
                rows=resumed.rows,
            )
        elif request.mode is WindowMode.WATERMARK or open_ended:
            settled = _settle(request, source, None, stop=stop, log=log)
            position = area.position(request.stream)
            if request.mode is WindowMode.WATERMARK:
                window = area.window_from(
                    request, position, _cursor_type(request, offered), settled
                )
            else:
                window = area.clamped(plan.window, settled)
            if window is None:
                return _nothing(request, plan, shape, position, settled, now, log=log)
            plan = area.plan(request, shape, columns, replace(window, nulls=request.nulls))
            area.begin(request, plan.window)
        else:
            area.begin(request, plan.window)
            settled = _settle(request, source, plan.window.high, stop=stop, log=log)
        with _open(request, source, plan) as snapshot:
            _look_at_rows(request, offered, snapshot, log=log)
            if resumed is not None:
                cut = resumed.cut
            else:
                # How many rows are set aside is judged over all of them at once.
                whole = plan.conversion is not None
                cut = snapshot.cut(
                    rows=request.slice_rows if request.resumable and not whole else None,
                    parts=1 if whole else request.shards,
                    by=[c.source for c in columns if c.name in request.keys],
                )
            if cut.slices:
                # Slices are committed one by one, so the table cannot be frozen and attached as it is.
                plan = replace(plan, direct=False)
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
                slices=f"{len(cut.slices) or 1} ({cut.why})",
            )
            manifest = area.stage(
                request,
                plan,
                shape,
                snapshot,
                settled,
                cut,
                resumed=resumed is not None,
                stop=stop,
                log=log,
            )
    except StillSettling:
        # Nothing failed: the next process goes on waiting.
        raise
    except EtlError as error:
        # The warehouse may be what was lost: the first error is the one to tell.
        with suppress(EtlError):
            area.fail(request.load_id, error.what, request.run.try_number)
        raise
    log(
        "batch staged",
        load_id=manifest.load_id,
        staging=str(manifest.staging),
        rows=manifest.rows,
        bytes=manifest.bytes,
        dead=manifest.rows_dead,
    )
    _look_at_emptiness(request, area, manifest, log=log)
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
    if request.mode in (WindowMode.FULL, WindowMode.NULLS) or request.cursor is None:
        return Settled(None, "[)", "one snapshot of everything")
    return source.settle(
        request.cursor, high, request.settle, earlier=request.wait, stop=stop, log=log
    )


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
    """The settled bound is not above the start of the window: a success without a load."""
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
        source=shape.name,
        source_datasets=shape.datasets,
        window=Window(position.position, position.position, position.position_type),
        cursor=request.target_cursor,
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
) -> AbstractContextManager[Snapshot]:
    return source.open(
        plan.window,
        cursor=None if request.mode is WindowMode.FULL else request.cursor,
        columns=plan.columns,
        binary=plan.binary,
        checksum=request.checksum,
        judged=() if plan.conversion is None else plan.conversion.as_text,
    )


def _columns(request: ExtractRequest, offered: SourceShape) -> tuple[Selected, ...]:
    """The batch's columns; cursor and keys are there."""
    chosen = request.selection.of(offered.names(), offered.name)
    if request.cursor is not None and request.cursor not in offered.names():
        raise missing_column(offered.name, request.cursor, "as the cursor", offered.names())
    known = [column.name for column in chosen]
    # A transform may yet make the keys.
    for key in request.keys if request.stage_as is StageAs.TARGET else ():
        if key not in known:
            raise missing_column(f"the batch from {offered.name}", key, "as a key", known)
    return chosen


def _cursor_type(request: ExtractRequest, offered: SourceShape) -> str:
    (found,) = (column.type for column in offered.columns if column.name == request.cursor)
    return found


def _window(request: ExtractRequest, offered: SourceShape) -> Window:
    """The window as far as it is known before the ledger is asked."""
    if request.mode is WindowMode.FULL:
        return FULL
    cursor_type = _cursor_type(request, offered)
    if request.interval is None:
        return Window(type=cursor_type, nulls=request.nulls)
    low = bound_text(request.interval.start, cursor_type, request.timezone)
    high = bound_text(request.interval.end, cursor_type, request.timezone)
    if low >= high and not cursor_type.endswith("with time zone"):
        raise ConfigurationError(
            f"on the wall clock of {request.timezone} the window runs from {low} to {high}: the clock is set back in it",
            remedy="use longer intervals, or a cursor with time zone",
        )
    return Window(low=low, high=high, type=cursor_type, nulls=request.nulls)


def _look_at_rows(
    request: ExtractRequest, offered: SourceShape, snapshot: Snapshot, *, log: EventLog
) -> None:
    """Say which rows no window reaches, and refuse what was not told to leave them out.

    :raises DataError: rows without a cursor value, with ``null_cursor="fail"``.
    """
    if snapshot.unreachable:
        log(
            "rows lie ahead of the source's clock: no window reaches them before their time has come",
            source=offered.name,
            cursor=request.cursor,
            rows=snapshot.unreachable,
        )
    if not snapshot.null_cursors:
        return
    if request.null_cursor is NullCursor.FAIL and request.nulls is not Nulls.ONLY:
        raise DataError(
            f"{snapshot.null_cursors:,} rows of {offered.name} have no value in the cursor {request.cursor!r}, so no "
            "window would ever hold them",
            remedy="mend them in the source, choose another cursor, read the table with window='full', or let "
            "them travel by key with null_cursor='include' or 'sweep'",
        )
    log(
        "rows without a cursor value",
        source=offered.name,
        cursor=request.cursor,
        rows=snapshot.null_cursors,
        null_cursor=request.null_cursor.value,
        in_this_load=request.nulls is not Nulls.EXCLUDE,
    )


def _look_at_emptiness(
    request: ExtractRequest, area: StagingArea, manifest: Manifest, *, log: EventLog
) -> None:
    """:raises DataError: the window holds no row, with ``on_empty="fail"``."""
    if not manifest.was_empty or request.on_empty is OnEmpty.PUBLISH:
        return
    if request.on_empty is OnEmpty.FAIL:
        what = f"window {manifest.window} of {manifest.source} holds no row"
        area.discard(manifest.load_id, what)
        raise DataError(
            what,
            remedy="look at the source; an empty window that is right passes with on_empty='publish' or 'skip'",
        )
    area.cover_empty(manifest)
    log("the window is empty: it is recorded as covered", window=str(manifest.window))
