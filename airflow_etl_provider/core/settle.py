"""The settled bound: the highest cursor value below which no open source transaction can add rows.

Only values that the server draws inside the writing transaction can be settled by looking at
transactions (``transaction``); for every other origin the clock less a declared delay must do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from airflow_etl_provider.core.errors import ConfigurationError


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
    """

    origin: CursorOrigin = CursorOrigin.AUTO
    delay: timedelta = timedelta(minutes=5)
    margin: timedelta = timedelta(seconds=1)
    timeout: timedelta = timedelta(minutes=10)
    ignore: tuple[str, ...] = ()

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
