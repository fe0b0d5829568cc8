"""The settled bound: the highest cursor value below which no open source transaction can add rows.

Only values that the server draws inside the writing transaction can be settled by looking at
transactions (``transaction``); for every other origin the clock less a declared delay must do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

from airflow_etl_provider.core.errors import ConfigurationError, NotSettled


class CursorOrigin(StrEnum):
    """Who draws the cursor's values.

    ``auto`` is ``transaction`` where the source's catalog proves it, else ``application``.
    """

    AUTO = "auto"
    TRANSACTION = "transaction"
    APPLICATION = "application"


@dataclass(frozen=True, slots=True)
class SettleOptions:
    """How far a bound is trusted.

    :param delay: how late an application may commit what it has stamped (``application`` only).
    :param margin: covers small steps of clocks, and the instant between a transaction's start and its
        being visible to others.
    :param timeout: how long to wait for open transactions before failing as transient.
    :param ignore: roles that are declared never to write into the source.
    :param patience: how long one process may wait before it hands the wait on; ``None`` waits to the end.
    """

    origin: CursorOrigin = CursorOrigin.AUTO
    delay: timedelta = timedelta(minutes=5)
    margin: timedelta = timedelta(seconds=1)
    timeout: timedelta = timedelta(minutes=10)
    ignore: tuple[str, ...] = ()
    patience: timedelta | None = None

    def __post_init__(self) -> None:
        for name in ("delay", "margin", "timeout"):
            if getattr(self, name) < timedelta(0):
                raise ConfigurationError(f"settle_{name} cannot be negative: {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Settled:
    """A bound that no open transaction can undercut any more.

    :param high: the bound, in PostgreSQL's text of the cursor's type.
    :param bounds: ``[)`` if *high* is exclusive, ``(]`` if it is the largest settled value itself.
    :param evidence: how that is known, for manifest and log.
    :param held_by: what keeps the bound from being higher, if anything does.
    """

    high: str | None
    bounds: str
    evidence: str
    held_by: str | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait for a bound to settle that another process may go on with.

    :param since: when it began; the timeout counts from here.
    :param high: the bound that was noted, where the window has no end of its own.
    :param transactions: the source's transactions that were open when the bound was noted.
    :param server_started: when the source's server was started; after a restart their numbers mean nothing.
    """

    since: datetime
    high: str | None = None
    bounds: str = "[)"
    transactions: tuple[str, ...] = ()
    server_started: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "since": self.since.isoformat(),
            "high": self.high,
            "bounds": self.bounds,
            "transactions": list(self.transactions),
            "server_started": self.server_started,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            since=datetime.fromisoformat(data["since"]),
            high=data["high"],
            bounds=data["bounds"],
            transactions=tuple(data["transactions"]),
            server_started=data["server_started"],
        )


class StillSettling(NotSettled):
    """The wait is longer than one process may wait; another one can go on with *wait*."""

    def __init__(self, what: str, wait: Wait, *, remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.wait = wait
