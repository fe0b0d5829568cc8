"""What maintenance of a partitioned table is told, and what it has done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.partition import PartitionSpec

#: So many names of each kind go into the answer; their number always does.
_NAMED = 50


@dataclass(frozen=True, slots=True)
class MaintenanceOptions:
    """How a partitioned table is kept in order.

    :param partition: how it is partitioned; needed for *ahead*, and where it is not partitioned by RANGE at
        its first level.
    :param ahead: how many periods after the current one have partitions waiting for them.
    :param keep: partitions whose whole range lies further back than this are retired.
    :param keep_partitions: so many of the newest partitions stay, whatever their age; without *keep*, those
        beyond them are retired. One always stays.
    :param keep_detached: how long a retired partition stays in the staging schema, detached, to be restored.
    :param analyze_share: the planner's statistics of the whole table are renewed once so large a share of its
        rows has changed, 0 to 1; ``None`` never does.
    :param timezone: the clock of a partition column without time zone, where *partition* does not say it.
    :param lock_budget: longest time one attempt may spend waiting for and holding table locks.
    :param lock_deadline: how long attempts go on, for all partitions together.
    """

    partition: PartitionSpec | None = None
    ahead: int = 0
    keep: timedelta | None = None
    keep_partitions: int | None = None
    keep_detached: timedelta = timedelta(days=7)
    analyze_share: float | None = 0.1
    timezone: str = "UTC"
    lock_budget: timedelta = timedelta(milliseconds=300)
    lock_deadline: timedelta = timedelta(minutes=10)

    def __post_init__(self) -> None:
        if self.ahead < 0 or (self.ahead and self.partition is None):
            raise ConfigurationError(
                f"ahead={self.ahead} needs to know how long a partition is, and counts from 0",
                remedy="say partition={'column': ..., 'every': 'month', 'timezone': ...}",
            )
        if self.keep is not None and self.keep <= timedelta(0):
            raise ConfigurationError(f"keep is a length of time above zero, not {self.keep}")
        if self.keep_partitions is not None and self.keep_partitions < 1:
            raise ConfigurationError(
                f"keep_partitions={self.keep_partitions} would retire the whole table",
                remedy="keep at least one partition",
            )
        if self.keep_detached < timedelta(0):
            raise ConfigurationError(f"keep_detached is a length of time, not {self.keep_detached}")
        if self.analyze_share is not None and not 0 <= self.analyze_share <= 1:
            raise ConfigurationError(
                f"analyze_share is a share from 0 to 1, not {self.analyze_share}"
            )
        if self.lock_budget <= timedelta(0) or self.lock_deadline < self.lock_budget:
            raise ConfigurationError(
                f"lock_budget ({self.lock_budget}) must be positive and at most lock_deadline ({self.lock_deadline})"
            )

    @property
    def retires(self) -> bool:
        return self.keep is not None or self.keep_partitions is not None

    @property
    def clock(self) -> str:
        """The time zone of bounds without one."""
        return self.timezone if self.partition is None else self.partition.timezone


@dataclass(frozen=True, slots=True)
class Left:
    """What was not done, and why; ``busy`` says that the next run will do it by itself."""

    what: str
    why: str
    busy: bool = False

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "why": self.why, "busy": self.busy}


@dataclass(frozen=True, slots=True)
class Retired:
    """A partition that was taken out; ``kept`` is where it stays until ``drop_after`` is over (``None``: dropped).

    ``rows`` is the server's estimate, ``bytes`` on disk with indexes.
    """

    partition: TableName
    bound: str
    kept: TableName | None
    rows: int
    bytes: int

    def as_json(self) -> dict[str, Any]:
        return {
            "partition": str(self.partition),
            "bound": self.bound,
            "kept": None if self.kept is None else str(self.kept),
            "rows": self.rows,
            "bytes": self.bytes,
        }


@dataclass(frozen=True, slots=True)
class Maintained:
    """What was done to a table (with ``dry_run``: what would be), and what was left.

    ``changed_share`` of its rows is not in the planner's statistics of the whole, about (``None``: not looked at).
    """

    target: TableName
    made: tuple[TableName, ...] = ()
    retired: tuple[Retired, ...] = ()
    left: tuple[Left, ...] = ()
    analyzed: bool = False
    changed_share: float | None = None
    dry_run: bool = False

    def as_json(self) -> dict[str, Any]:
        """Small JSON, however many partitions there were."""
        return {
            "target": str(self.target),
            "dry_run": self.dry_run,
            "made": _some([str(name) for name in self.made]),
            "made_count": len(self.made),
            "retired": _some([one.as_json() for one in self.retired]),
            "retired_count": len(self.retired),
            "retired_bytes": sum(one.bytes for one in self.retired),
            "analyzed": self.analyzed,
            "changed_share": None if self.changed_share is None else round(self.changed_share, 3),
            "left": _some([one.as_json() for one in self.left]),
            "left_count": len(self.left),
        }


def _some(items: Sequence[Any]) -> list[Any]:
    return list(items[:_NAMED])
