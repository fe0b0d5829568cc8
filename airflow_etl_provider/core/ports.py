"""What the use cases need from the outside, each a small role."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, BinaryIO, Protocol

from airflow_etl_provider.core.columns import Selected, Treatment
from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.settle import Settled, SettleOptions, Wait
from airflow_etl_provider.core.watermark import Watermark
from airflow_etl_provider.core.window import Window

EventLog = Callable[..., None]
"""Receives one event per state change and its fields as keywords; never row content."""


class Stop(Protocol):
    """Tells long work that it must end; may be set from a signal handler, any number of times."""

    def is_set(self) -> bool: ...


class WatermarkStore(Protocol):
    """Keeps one watermark per stream where people and other tools can read it."""

    def where(self, stream: str) -> str:
        """Name the place, for errors and logs."""
        ...

    def read(self, stream: str) -> Watermark | None:
        """The stored watermark; ``None`` only if its absence was confirmed.

        :raises StateError: unreadable, or shadowed by something that cannot be written.
        :raises TransientError: the store did not answer.
        """
        ...

    def write(self, watermark: Watermark) -> None:
        """Store it and read it back.

        :raises StateError: what is read back is not what was written.
        :raises TransientError: the store did not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """A column as the source offers it.

    ``portable`` says that its binary form means the same on every server of the same type;
    ``definition`` is what a type made by users stands for, so that two of one name can be compared.
    """

    name: str
    type: str
    not_null: bool
    portable: bool
    definition: str = ""


@dataclass(frozen=True, slots=True)
class SourceShape:
    """What a source offers: its columns, and the OpenLineage datasets that it reads.

    Of a query nobody knows which column is made of which. ``proven`` says that every value is of its
    column's type; a driver only tells what a column is declared to be.
    """

    name: str
    columns: tuple[SourceColumn, ...]
    datasets: tuple[tuple[str, str], ...]
    is_query: bool = False
    proven: bool = True

    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def selected(self, columns: Sequence[Selected]) -> SourceShape:
        """As it looks to the target: renamed, and treated where the data is personal."""
        by_name = {column.name: column for column in self.columns}
        return replace(
            self, columns=tuple(_as_sent(by_name[column.source], column) for column in columns)
        )


def _as_sent(offered: SourceColumn, selected: Selected) -> SourceColumn:
    match selected.treatment:
        case Treatment.HASH:
            # SHA-256 in hexadecimal.
            return SourceColumn(
                selected.name, "character varying(64)", offered.not_null, portable=True
            )
        case Treatment.NULL:
            return replace(offered, name=selected.name, not_null=False)
        case _:
            return replace(offered, name=selected.name)


@dataclass(frozen=True, slots=True)
class Session:
    """A server process that works for a load, so that a retry can end what its predecessor left running.

    Both must match: a pid alone may by then belong to somebody else.
    """

    side: str
    pid: int
    backend_start: datetime


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of a window: half-open in the order of the columns *by*, whose bounds are their text.

    A slice without *low* also holds the rows that have no value there.
    """

    number: int
    by: tuple[str, ...]
    low: tuple[str, ...] | None
    high: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Cut:
    """A window in slices, or in one piece (no slices), and why."""

    slices: tuple[Slice, ...]
    why: str


class Sender(Protocol):
    """Rows of one snapshot, ready to be sent once.

    ``session`` is ``None`` where the source has no server process to name; ``estimated_rows`` is the
    planner's guess, for progress only.
    """

    checksum: str | None
    estimated_rows: int | None
    session: Session | None

    def send(self, sink: BinaryIO) -> int:
        """Write the rows in COPY format, return how many; runs in a thread of its own."""
        ...

    def cancel(self) -> None:
        """End :meth:`send` from another thread; harmless when it is over."""
        ...


class Snapshot(Protocol):
    """One consistent view of the source.

    ``null_cursors`` counts the rows without a cursor value; ``unreachable`` those whose value no window
    can reach yet, because it lies ahead of the source's clock or is infinite (``None``: not known).
    """

    @property
    def snapshot_at(self) -> datetime: ...

    @property
    def null_cursors(self) -> int: ...

    @property
    def unreachable(self) -> int | None: ...

    def cut(self, *, rows: int | None, parts: int, by: Sequence[str]) -> Cut:
        """Where to cut the window into slices of about *rows*, and into at least *parts*.

        :param by: columns to cut by where the cursor does not tell the rows apart.
        """
        ...

    def sender(self, part: Slice | None) -> Sender:
        """The rows of *part*, or of the whole window; one at a time for each session."""
        ...

    def share(self) -> AbstractContextManager[Snapshot]:
        """The same view in another session.

        :raises ConfigurationError: the source cannot do that.
        """
        ...


class Source(Protocol):
    """Where rows come from."""

    def describe(self) -> SourceShape:
        """:raises CatalogError: missing, or not readable by the connection's role."""
        ...

    def end(self, sessions: Sequence[Session]) -> None:
        """End those of *sessions* that still run; those that are gone are passed over."""
        ...

    def settle(
        self,
        cursor: str,
        high: str | None,
        options: SettleOptions,
        *,
        earlier: Wait | None,
        stop: Stop,
        log: EventLog,
    ) -> Settled:
        """Wait until nothing can be added below *high*, or without one find the highest such bound.

        :param earlier: the wait of a process before this one, which goes on.
        :raises StillSettling: it takes longer than this process may wait.
        :raises NotSettled: it took longer than allowed; the error names what is still open.
        :raises ConfigurationError: *high* lies in the future.
        """
        ...

    def open(
        self,
        window: Window,
        *,
        cursor: str | None,
        columns: Sequence[Selected],
        binary: bool,
        checksum: bool,
        judged: Collection[str] = (),
    ) -> AbstractContextManager[Snapshot]:
        """Take one snapshot and make the rows of *window* ready to send.

        :param judged: columns of the batch whose values are sent as their text, whatever they are. A source
            whose types are not proven then ends each row with what it has to say against it, or NULL.
        :raises ConfigurationError: the source cannot give what is asked for (a checksum, a hash).
        """
        ...


class Statistic(StrEnum):
    """What is computed of a column's values."""

    SUM = "sum"
    MIN = "min"
    MAX = "max"


@dataclass(frozen=True, slots=True)
class Figure:
    """A statistic of one column of a batch."""

    statistic: Statistic
    column: str

    def __str__(self) -> str:
        return f"{self.statistic} of {self.column}"


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows, figures (as text, ``None`` where there is no value) and checksum of a set of rows.

    ``inexact`` are the places of figures that were computed in floating point.
    """

    rows: int
    figures: tuple[str | None, ...] = ()
    checksum: str | None = None
    inexact: frozenset[int] = frozenset()


class MeasuredSource(Protocol):
    """A source that can say what it holds without sending it."""

    def measure(
        self,
        window: Window,
        *,
        cursor: str | None,
        columns: Sequence[Selected],
        figures: Sequence[Figure],
        checksum: Sequence[str],
    ) -> Measured:
        """The rows of *window* as they are now, in one statement.

        :param cursor: as the source calls it.
        :param columns: those that *figures* and *checksum* name as the target calls them.
        :raises CatalogError: a column is missing, or has no such statistic.
        :raises ConfigurationError: the source has no checksum, or cannot bound the window.
        """
        ...


@dataclass(frozen=True, slots=True)
class Difference:
    """A column in which a batch does not fit its target: what each side has, in words."""

    column: str
    batch: str
    target: str

    def __str__(self) -> str:
        return f"{self.column}: the batch has {self.batch}, the target {self.target}"


class AuditReport(Protocol):
    """The outcome of an audit."""

    @property
    def verdict(self) -> str:
        """``passed``, ``warned`` or ``rejected``."""
        ...

    @property
    def rows(self) -> int | None:
        """How many rows were judged; ``None`` if they could not be counted."""
        ...

    def as_ledger(self) -> dict[str, Any]:
        """Everything, values of failing rows included: for the ledger only."""
        ...

    def as_xcom(self) -> dict[str, Any]:
        """Names and counts only."""
        ...


__all__ = [
    "AuditReport",
    "Cut",
    "Difference",
    "EventLog",
    "Figure",
    "Manifest",
    "Measured",
    "MeasuredSource",
    "Sender",
    "Session",
    "Slice",
    "Snapshot",
    "Source",
    "SourceColumn",
    "SourceShape",
    "Statistic",
    "Stop",
    "WatermarkStore",
]
