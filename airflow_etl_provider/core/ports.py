"""What the use cases need from the outside, each a small role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Protocol

from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.settle import Settled, SettleOptions
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
    """What a source offers: its columns, and the OpenLineage dataset it is."""

    name: str
    columns: tuple[SourceColumn, ...]
    dataset: tuple[str, str]

    def names(self) -> list[str]:
        return [column.name for column in self.columns]


@dataclass(frozen=True, slots=True)
class Session:
    """A server process that works for a load, so that a retry can end what its predecessor left running.

    Both must match: a pid alone may by then belong to somebody else.
    """

    side: str
    pid: int
    backend_start: datetime


class Sender(Protocol):
    """One snapshot of the source, ready to be sent once.

    ``session`` is ``None`` where the source has no server process to name; ``estimated_rows`` is the
    planner's guess, for progress only.
    """

    snapshot_at: datetime
    null_cursors: int
    checksum: str | None
    estimated_rows: int | None
    session: Session | None

    def send(self, sink: BinaryIO) -> int:
        """Write the rows in COPY format, return how many; runs in a thread of its own."""
        ...

    def cancel(self) -> None:
        """End :meth:`send` from another thread; harmless when it is over."""
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
        self, cursor: str, high: str | None, options: SettleOptions, *, stop: Stop, log: EventLog
    ) -> Settled:
        """Wait until nothing can be added below *high*, or without one find the highest such bound.

        :raises NotSettled: it took longer than allowed; the error names what is still open.
        :raises ConfigurationError: *high* lies in the future.
        """
        ...

    def open(
        self,
        window: Window,
        *,
        cursor: str | None,
        columns: Sequence[str],
        binary: bool,
        checksum: bool,
    ) -> AbstractContextManager[Sender]:
        """Take one snapshot and make the rows of *window* ready to send."""
        ...


class AuditReport(Protocol):
    """The outcome of an audit."""

    @property
    def verdict(self) -> str:
        """``passed``, ``warned`` or ``rejected``."""
        ...

    def as_ledger(self) -> dict[str, Any]:
        """Everything, values of failing rows included: for the ledger only."""
        ...

    def as_xcom(self) -> dict[str, Any]:
        """Names and counts only."""
        ...


__all__ = [
    "AuditReport",
    "EventLog",
    "Manifest",
    "Sender",
    "Session",
    "Source",
    "SourceColumn",
    "SourceShape",
    "Stop",
    "WatermarkStore",
]
