"""A load on its way from source to target: its identity, its states and what travels with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from airflow_etl_provider.core.errors import ConfigurationError, ContractError, StateError
from airflow_etl_provider.core.names import TableName, check_stream
from airflow_etl_provider.core.partition import PartitionSpec
from airflow_etl_provider.core.window import Window

MANIFEST_VERSION = 2


class Kind(StrEnum):
    """What the rows of a stream are; it decides which strategies are safe."""

    EVENTS = "events"
    ENTITIES = "entities"
    SNAPSHOTS = "snapshots"


class Strategy(StrEnum):
    """How a batch becomes visible."""

    AUTO = "auto"
    SWAP = "swap"
    SWAP_MERGE = "swap_merge"
    DELETE_INSERT = "delete_insert"
    MERGE = "merge"
    APPEND = "append"
    REPLACE = "replace"
    SCD2 = "scd2"


class LoadState(StrEnum):
    STARTED = "started"
    STAGED = "staged"
    VALIDATED = "validated"
    PUBLISHED = "published"
    REJECTED = "rejected"
    FAILED = "failed"
    ABANDONED = "abandoned"
    SUPERSEDED = "superseded"
    ROLLED_BACK = "rolled_back"

    @property
    def is_finished(self) -> bool:
        """A finished load is never resumed; a new one is minted."""
        return self in _FINISHED


_FINISHED = frozenset(
    {
        LoadState.PUBLISHED,
        LoadState.REJECTED,
        LoadState.SUPERSEDED,
        LoadState.ROLLED_BACK,
        LoadState.ABANDONED,
    }
)


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The Airflow run a load belongs to: recorded, never identity."""

    dag_id: str
    task_id: str
    run_id: str
    run_type: str
    map_index: int
    try_number: int
    clear_number: int

    @property
    def is_backfill(self) -> bool:
        return self.run_type == "backfill"


@dataclass(frozen=True, slots=True)
class Column:
    """A column by name and PostgreSQL type (``format_type`` with its modifiers).

    ``source`` is the column that it is made of, if that is known; ``personal`` how it was treated.
    """

    name: str
    type: str
    source: str | None = None
    personal: str | None = None

    def as_json(self) -> dict[str, str]:
        known = {"source": self.source, "personal": self.personal}
        return {
            "name": self.name,
            "type": self.type,
            **{name: value for name, value in known.items() if value is not None},
        }


@dataclass(frozen=True, slots=True)
class PartitionRange:
    """One partition of the target that a load replaces or creates: name and bounds as text."""

    name: str
    low: str
    high: str

    def as_json(self) -> dict[str, str]:
        return {"name": self.name, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Transformed:
    """What a transform made a batch of: the batch as extract staged it, which stays until it is published.

    ``task_id`` and ``clear_number`` are those of the transform, ``how`` is ``sql`` or the name of the callable.
    ``staging``, ``columns``, ``rows`` and so on are extract's. ``set_aside`` counts rows that went to the dead
    letters instead, ``rows_dead`` those that extract had set aside; ``reads`` are the datasets that were looked up
    beside the batch; ``replaced`` are staged tables of earlier transforms of the load.
    """

    task_id: str
    clear_number: int
    how: str
    staging: TableName
    columns: tuple[Column, ...]
    rows: int
    bytes: int
    direct: bool
    transport: str | None
    checksum: str | None
    set_aside: int = 0
    rows_dead: int = 0
    reads: tuple[tuple[str, str], ...] = ()
    replaced: tuple[TableName, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "task_id": self.task_id,
            "clear_number": self.clear_number,
            "how": self.how,
            "staging": str(self.staging),
            "columns": [column.as_json() for column in self.columns],
            "rows": self.rows,
            "bytes": self.bytes,
            "direct": self.direct,
            "transport": self.transport,
            "checksum": self.checksum,
            "set_aside": self.set_aside,
            "rows_dead": self.rows_dead,
            "reads": [list(dataset) for dataset in self.reads],
            "replaced": [str(table) for table in self.replaced],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            **{
                **data,
                "staging": TableName.parse(data["staging"]),
                "columns": tuple(Column(**column) for column in data["columns"]),
                "reads": tuple((space, name) for space, name in data["reads"]),
                "replaced": tuple(TableName.parse(table) for table in data["replaced"]),
            }
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a staged batch is. This, not the rows, travels through XCom.

    ``partition`` says how the target is cut, ``partitions`` are those that the window covers whole;
    ``direct`` says that the staged table was made to become the partition itself.
    ``moves_watermark`` is false for backfills, windows by hand and snapshots; ``settled`` says how it is
    known that nothing can be added below the window's end; ``nothing`` marks a watermark window without
    anything new, for which there is no load. ``null_rows`` counts the source's rows without a cursor value,
    in this batch or not. ``rows_dead`` of the rows that were read were set aside, and are not among ``rows``.
    ``replays`` is the load whose dead letters this one brings back.
    ``transformed`` says what a transform made the batch of. ``audited`` tells whether the staged rows are still those
    that were audited; ``None`` where nobody has.
    """

    load_id: str
    stream: str
    kind: Kind
    target_conn_id: str
    target: TableName
    staging: TableName
    source_conn_id: str | None
    source: str | None
    source_datasets: tuple[tuple[str, str], ...]
    window: Window
    cursor: str | None
    columns: tuple[Column, ...]
    keys: tuple[str, ...]
    partition_column: str | None
    partition: PartitionSpec | None
    partitions: tuple[PartitionRange, ...]
    direct: bool
    moves_watermark: bool
    rows: int
    bytes: int
    snapshot_at: datetime
    transport: str | None = None
    checksum: str | None = None
    settled: str | None = None
    nothing: bool = False
    null_rows: int = 0
    slices: int = 1
    read_until: datetime | None = None
    rows_dead: int = 0
    replays: str | None = None
    report: Mapping[str, Any] | None = field(default=None)
    transformed: Transformed | None = None
    audited: str | None = None

    @property
    def extracted(self) -> Manifest:
        """The batch as extract staged it, whatever has been made of it since."""
        made = self.transformed
        if made is None:
            return self
        return replace(
            self,
            staging=made.staging,
            columns=made.columns,
            rows=made.rows,
            bytes=made.bytes,
            direct=made.direct,
            transport=made.transport,
            checksum=made.checksum,
            rows_dead=made.rows_dead,
            transformed=None,
            audited=None,
        )

    @property
    def earlier_tables(self) -> tuple[TableName, ...]:
        """Staged tables of the load beside its own: what a transform read, and what earlier ones wrote."""
        made = self.transformed
        return () if made is None else (made.staging, *made.replaced)

    @property
    def was_empty(self) -> bool:
        """Whether the window held no row, not even one that was set aside."""
        return not self.rows and not self.rows_dead

    def require_rows(self, staged: int) -> None:
        """:raises ContractError: the staged table no longer holds what was audited."""
        if staged != self.rows:
            raise ContractError(
                f"{self.staging} holds {staged:,} rows, {self.rows:,} were staged and audited",
                remedy="clear extract and downstream: the window is read and audited anew",
            )

    def require_audited(self, staged: str) -> None:
        """:raises ContractError: the rows of the staged table are others than were audited."""
        if self.audited is not None and staged != self.audited:
            raise ContractError(
                f"rows of {self.staging} were changed, added or deleted since load {self.load_id} was audited",
                remedy="clear validate and publish, if the change is meant: the batch is audited as it is now; otherwise "
                "clear extract and downstream: the window is read and audited anew",
            )

    def as_json(self) -> dict[str, Any]:
        """Small JSON: names, counts and bounds; no row content and no secret."""
        return {
            "version": MANIFEST_VERSION,
            "load_id": self.load_id,
            "stream": self.stream,
            "kind": self.kind.value,
            "target_conn_id": self.target_conn_id,
            "target": str(self.target),
            "staging": str(self.staging),
            "source_conn_id": self.source_conn_id,
            "source": self.source,
            "source_datasets": [list(dataset) for dataset in self.source_datasets],
            "window": {
                "low": self.window.low,
                "high": self.window.high,
                "type": self.window.type,
                "bounds": self.window.bounds,
                "nulls": self.window.nulls.value,
            },
            "cursor": self.cursor,
            "columns": [column.as_json() for column in self.columns],
            "keys": list(self.keys),
            "partition_column": self.partition_column,
            "partition": None if self.partition is None else self.partition.as_json(),
            "partitions": [partition.as_json() for partition in self.partitions],
            "direct": self.direct,
            "moves_watermark": self.moves_watermark,
            "rows": self.rows,
            "bytes": self.bytes,
            "snapshot_at": self.snapshot_at.isoformat(),
            "transport": self.transport,
            "checksum": self.checksum,
            "settled": self.settled,
            "nothing": self.nothing,
            "null_rows": self.null_rows,
            "slices": self.slices,
            "read_until": None if self.read_until is None else self.read_until.isoformat(),
            "rows_dead": self.rows_dead,
            "replays": self.replays,
            "report": None if self.report is None else dict(self.report),
            "transformed": None if self.transformed is None else self.transformed.as_json(),
            "audited": self.audited,
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read what :meth:`as_json` wrote.

        :raises ConfigurationError: *data* is no manifest.
        :raises StateError: it was written by a newer version.
        """
        if not isinstance(data, Mapping) or "load_id" not in data:
            raise ConfigurationError(
                f"a staged batch was expected, not {type(data).__name__}",
                remedy="pass batch=extract.output (or validate.output)",
            )
        if data.get("version") == 1:
            data = _from_version_1(data)
        if data.get("version") != MANIFEST_VERSION:
            raise StateError(
                f"the batch of load {data['load_id']} has manifest version {data.get('version')}, "
                f"this release reads {MANIFEST_VERSION}",
                remedy="clear the extract task, so that the batch is made again",
            )
        try:
            return cls(
                load_id=data["load_id"],
                stream=check_stream(data["stream"]),
                kind=Kind(data["kind"]),
                target_conn_id=data["target_conn_id"],
                target=TableName.parse(data["target"]),
                staging=TableName.parse(data["staging"]),
                source_conn_id=data["source_conn_id"],
                source=data["source"],
                source_datasets=tuple((space, name) for space, name in data["source_datasets"]),
                window=Window(**data["window"]),
                cursor=data["cursor"],
                columns=tuple(Column(**column) for column in data["columns"]),
                keys=tuple(data["keys"]),
                partition_column=data["partition_column"],
                partition=None
                if data["partition"] is None
                else PartitionSpec.from_json(data["partition"]),
                partitions=tuple(PartitionRange(**partition) for partition in data["partitions"]),
                direct=data["direct"],
                moves_watermark=data["moves_watermark"],
                rows=data["rows"],
                bytes=data["bytes"],
                snapshot_at=datetime.fromisoformat(data["snapshot_at"]),
                transport=data["transport"],
                checksum=data["checksum"],
                settled=data["settled"],
                nothing=data["nothing"],
                null_rows=data["null_rows"],
                slices=data["slices"],
                read_until=None
                if data["read_until"] is None
                else datetime.fromisoformat(data["read_until"]),
                # Of loads that were staged before anything could be set aside.
                rows_dead=data.get("rows_dead", 0),
                replays=data.get("replays"),
                report=data["report"],
                # Manifests of loads without a transform may be older than transforms are.
                transformed=None
                if data.get("transformed") is None
                else Transformed.from_json(data["transformed"]),
                audited=data.get("audited"),
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"the batch of load {data['load_id']} is not a whole manifest ({error})",
                remedy="pass batch=extract.output (or validate.output) unchanged",
            ) from error


def _from_version_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest as the first release wrote it: one source table, one piece, read at one moment."""
    dataset = data.get("source_dataset")
    return {
        **data,
        "version": MANIFEST_VERSION,
        "source_datasets": [] if dataset is None else [dataset],
        "null_rows": 0,
        "slices": 1,
        "read_until": None,
    }


@dataclass(frozen=True, slots=True)
class Load:
    """A load as the ledger knows it."""

    load_id: str
    seq: int
    fence: int
    stream: str
    target: TableName
    kind: Kind
    state: LoadState
    clear_number: int
    manifest: Manifest | None
    report: Mapping[str, Any] | None
    rows_staged: int | None
    published_at: datetime | None
    error: str | None = None
    staging: TableName | None = None
    window: Window = Window()  # noqa: RUF009 - a frozen value
    settled: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """Where a stream stands according to the ledger; ``fence`` rises whenever the position moves."""

    stream: str
    position: str | None
    position_type: str | None
    fence: int
    load_id: str | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class PublishedPartition:
    """What a publish did to one partition. ``lock_ms`` is how long readers could have had to wait."""

    name: str
    bound: str
    rows: int
    bytes: int
    rows_before: int
    previous: str | None
    lock_ms: float

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bound": self.bound,
            "rows": self.rows,
            "bytes": self.bytes,
            "rows_before": self.rows_before,
            "previous": self.previous,
            "lock_ms": round(self.lock_ms, 2),
        }


@dataclass(frozen=True, slots=True)
class Published:
    """The outcome of a publish, as it stands in the ledger.

    ``rows_stale`` were left as they are because the target already held a newer version.
    ``already`` says that an earlier try had published this load: nothing was done now. ``overtaken_by``
    is the load that began or read later and published the whole window first; this one was abandoned.
    """

    load_id: str
    stream: str
    target: TableName
    strategy: Strategy
    window: Window
    rows_inserted: int
    rows_updated: int
    rows_deleted: int
    rows_unchanged: int
    partitions: tuple[PublishedPartition, ...]
    lock_ms: float
    position: StreamPosition
    rows_stale: int = 0
    already: bool = False
    overtaken_by: str | None = None

    @property
    def changed(self) -> bool:
        """Whether readers see anything else than before."""
        return bool(self.rows_inserted or self.rows_updated or self.rows_deleted)

    def as_json(self) -> dict[str, Any]:
        return {
            "load_id": self.load_id,
            "stream": self.stream,
            "target": str(self.target),
            "strategy": self.strategy.value,
            "window": str(self.window),
            "rows_inserted": self.rows_inserted,
            "rows_updated": self.rows_updated,
            "rows_deleted": self.rows_deleted,
            "rows_unchanged": self.rows_unchanged,
            "rows_stale": self.rows_stale,
            "partitions": [partition.as_json() for partition in self.partitions],
            "lock_ms": round(self.lock_ms, 2),
            "watermark": self.position.position,
            "fence": self.position.fence,
            "already_published": self.already,
            "overtaken_by": self.overtaken_by,
        }
