"""What one extract task was asked to do, checked before anything is opened."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from airflow_etl_provider.core.columns import Selection, Treatment
from airflow_etl_provider.core.dead_letters import DeadLimits, OnConversionError
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.load import Kind, RunInfo
from airflow_etl_provider.core.names import TableName, check_stream
from airflow_etl_provider.core.partition import PartitionSpec
from airflow_etl_provider.core.settle import SettleOptions, Wait
from airflow_etl_provider.core.window import Interval, Nulls

#: Windows of more rows than this are read in slices, where the source allows it.
SLICE_ROWS = 10_000_000


class WindowMode(StrEnum):
    """What decides which rows a load reads.

    ``nulls`` reads the rows that have no cursor value, for ``null_cursor="sweep"``.
    """

    INTERVAL = "interval"
    WATERMARK = "watermark"
    FULL = "full"
    NULLS = "nulls"


class NullCursor(StrEnum):
    """What becomes of rows without a cursor value, which no range holds.

    ``fail``: any such row fails the load; ``include``: they travel with every window outside backfills;
    ``sweep``: a load of their own (``window="nulls"``) compares them all.
    """

    FAIL = "fail"
    INCLUDE = "include"
    SWEEP = "sweep"


class OpenWindow(StrEnum):
    """What becomes of an interval that has not ended: ``clamp`` loads it up to the settled bound."""

    REFUSE = "refuse"
    CLAMP = "clamp"


class OnEmpty(StrEnum):
    """What becomes of a window without a row: ``skip`` records it as covered and skips what follows."""

    PUBLISH = "publish"
    SKIP = "skip"
    FAIL = "fail"


class SchemaContract(StrEnum):
    """What becomes of a source column that the target lacks, or that is wider there.

    ``freeze`` refuses it; ``evolve`` adds it, or widens the target's; ``discard_column`` leaves it out.
    """

    FREEZE = "freeze"
    EVOLVE = "evolve"
    DISCARD_COLUMN = "discard_column"


class StageAs(StrEnum):
    """How the staged batch is typed: as the ``target``, or as the ``source``, for a transform that follows.

    A transform reads columns that the target need not have; what it makes of them is held against the target.
    """

    TARGET = "target"
    SOURCE = "source"


@dataclass(frozen=True, slots=True)
class ExtractRequest:
    """What one extract task was asked to do.

    :param source: the table as it is written, or what logs call the query.
    :param cursor: a column of the source; the target may call it otherwise.
    :param keys: columns of the target.
    :param interval: the run's interval, with ``mode`` ``interval``.
    :param lookback: how far below the watermark a ``watermark`` window begins.
    :param timezone: wall clock that a cursor without time zone shows.
    :param origin: where the stream starts, if that is known before its first load.
    :param slice_rows: windows of more rows are read in slices of about so many, each kept when it is
        there, so that a retry goes on behind it; ``None`` reads every window in one piece.
    :param shards: how many slices are read at once, in one snapshot.
    :param wait: a wait for the settled bound that an earlier process began.
    :param audited_columns: columns that the audit will read, so that one that the batch will not have is
        refused before a row is read.
    :param filled_by_publish: columns of the target that publish fills (load id, validity), so that the
        source need not give them.
    :param dead_limits: how many rows may be set aside with ``on_conversion_error="quarantine"``.
    :param reads_as: whatever else decides what the source sends, such as a check of the key of hashes.
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
    mode: WindowMode
    interval: Interval | None
    partition: PartitionSpec | None
    timezone: str
    origin: datetime | None
    checksum: bool
    store: str
    selection: Selection = field(default_factory=Selection)
    settle: SettleOptions = field(default_factory=SettleOptions)
    lookback: timedelta | int | None = None
    null_cursor: NullCursor = NullCursor.FAIL
    open_window: OpenWindow = OpenWindow.REFUSE
    on_empty: OnEmpty = OnEmpty.PUBLISH
    slice_rows: int | None = SLICE_ROWS
    shards: int = 1
    wait: Wait | None = None
    reads_as: str = ""
    filled_by_publish: tuple[str, ...] = ()
    schema_contract: SchemaContract = SchemaContract.FREEZE
    on_conversion_error: OnConversionError = OnConversionError.FAIL
    dead_limits: DeadLimits = field(default_factory=DeadLimits)
    stage_as: StageAs = StageAs.TARGET
    audited_columns: tuple[str, ...] = ()

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
            and self.target_cursor != self.partition.column
        ):
            raise ConfigurationError(
                f"stream {self.stream!r} holds events, so its cursor must be the partition column; "
                f"it is {self.cursor!r}, the partitions are by {self.partition.column!r}",
                remedy="use the same column for both, or declare kind='entities'",
            )
        self._check_nulls()
        self._check_personal()
        if self.stage_as is StageAs.SOURCE and self.schema_contract is not SchemaContract.FREEZE:
            raise ConfigurationError(
                f"schema_contract={self.schema_contract.value!r} has no use with stage_as='source': the transform decides "
                "which columns the target gets",
                remedy="leave it out; what the transform gives is held against the target",
            )
        if self.shards < 1 or (self.slice_rows is not None and self.slice_rows < 1):
            raise ConfigurationError(
                f"shards={self.shards} and slice_rows={self.slice_rows} count from 1",
                remedy="use shards=1 and slice_rows=None to read every window in one piece",
            )

    @property
    def target_cursor(self) -> str | None:
        """How the target calls the cursor."""
        return None if self.cursor is None else self.selection.name_of(self.cursor)

    @property
    def nulls(self) -> Nulls:
        """Which rows without a cursor value the window holds."""
        if self.mode is WindowMode.NULLS:
            return Nulls.ONLY
        include = self.null_cursor is NullCursor.INCLUDE and not self.run.is_backfill
        return Nulls.INCLUDE if include else Nulls.EXCLUDE

    @property
    def moves_watermark(self) -> bool:
        if self.mode is WindowMode.WATERMARK:
            return True
        return self.interval is not None and self.interval.moves_watermark

    @property
    def resumable(self) -> bool:
        """Whether slices of two snapshots make one batch.

        Below the settled bound events do not change, and of an entity the batch then holds a newer
        version beside the older one; a table that is read whole has no such bound.
        """
        return self.mode in (WindowMode.INTERVAL, WindowMode.WATERMARK) and (
            self.kind is Kind.EVENTS or self.target_cursor in self.keys or self._sends_cursor
        )

    @property
    def _sends_cursor(self) -> bool:
        """Whether the batch tells which of two versions of a row is the later one."""
        columns = self.selection.columns
        dropped = self.selection.personal.get(self.cursor or "") is Treatment.DROP
        return not dropped and (columns is None or self.cursor in columns)

    @property
    def fingerprint(self) -> str:
        """Equal for two tries that read the same columns in the same way, so that their slices belong together."""
        said: list[object] = [
            self.source,
            self.source_conn_id,
            self.cursor,
            self.timezone,
            self.selection.columns,
            sorted(self.selection.rename.items()),
            sorted(self.selection.personal.items()),
            self.nulls,
            self.reads_as,
        ]
        if self.on_conversion_error is OnConversionError.QUARANTINE:
            said.append("quarantine")
        if self.stage_as is StageAs.SOURCE:
            said.append(self.stage_as)
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    def _check_nulls(self) -> None:
        asked = self.mode is WindowMode.NULLS or self.null_cursor is not NullCursor.FAIL
        if not asked:
            return
        what = (
            "window='nulls'"
            if self.mode is WindowMode.NULLS
            else f"null_cursor={self.null_cursor.value!r}"
        )
        if self.kind is not Kind.ENTITIES:
            raise ConfigurationError(
                f"{what} is not possible for stream {self.stream!r} of {self.kind}: rows without a cursor value "
                "can only be merged by key",
                remedy="use null_cursor='fail', or declare kind='entities' with keys=[...]",
            )
        if not self.keys:
            raise ConfigurationError(
                f"{what} needs keys: rows of stream {self.stream!r} without a cursor value come again with every load "
                "and are merged by key",
                remedy="name the columns that identify a row with keys=[...]",
            )

    def _check_personal(self) -> None:
        changed = (Treatment.HASH, Treatment.NULL)
        if self.cursor is not None and self.selection.personal.get(self.cursor) in changed:
            raise ConfigurationError(
                f"the cursor {self.cursor!r} cannot be personal: windows are compared by its values",
                remedy="use another cursor, or 'drop' it, which keeps it in the source",
            )
        for source, treatment in self.selection.personal.items():
            if treatment is Treatment.NULL and self.selection.name_of(source) in self.keys:
                raise ConfigurationError(
                    f"key {source!r} cannot be personal='null': nothing would tell rows apart",
                    remedy="use 'hash', which keeps equal values equal",
                )
