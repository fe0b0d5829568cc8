"""Rows that are set aside: why, how many at most, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from airflow_etl_provider.core.errors import ConfigurationError

#: The largest share of a load's rows that may be set aside, unless told otherwise.
MAX_DEAD_SHARE = 0.10
#: Reasons that an error or a log names; the rest is counted.
_NAMED = 5


class LetterStatus(StrEnum):
    """Where a dead letter stands.

    ``held`` until the load that set it aside is published, ``pending`` from then on; ``superseded`` where the
    row needs no replay any more: its load came to nothing, or a later one read the row again.
    """

    HELD = "held"
    PENDING = "pending"
    REPLAYED = "replayed"
    DISCARDED = "discarded"
    SUPERSEDED = "superseded"


class OnConversionError(StrEnum):
    """What becomes of a row that the target's types cannot hold: it fails the load, or is set aside."""

    FAIL = "fail"
    QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class DeadLimits:
    """How many rows of one load may be set aside before the load fails instead.

    :param max_share: of the rows that were read, 0 to 1.
    :param max_rows: an absolute number beside that, or ``None``.
    """

    max_share: float = MAX_DEAD_SHARE
    max_rows: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_share, bool) or not 0 <= self.max_share <= 1:
            raise ConfigurationError(
                f"max_dead_share is a share from 0 to 1, not {self.max_share}",
                remedy="write 0.1 for ten percent",
            )
        if self.max_rows is not None and (isinstance(self.max_rows, bool) or self.max_rows < 0):
            raise ConfigurationError(
                f"max_dead_rows counts rows, {self.max_rows} is not a count",
                remedy="write a whole number, or leave it out",
            )

    def exceeded(self, dead: int, rows: int) -> str | None:
        """Which limit *dead* of *rows* rows would break, as part of a sentence; ``None`` if none."""
        if self.max_rows is not None and dead > self.max_rows:
            return f"at most {self.max_rows:,} may be (max_dead_rows)"
        if rows and dead / rows > self.max_share:
            return f"at most {self.max_share:.2%} may be (max_dead_share)"
        return None


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason to set rows aside.

    :param reason: names expectation and columns, never a value of a row.
    :param condition: what tells the rows, as the warehouse that holds them understands it.
    :param expectation: the type of the expectation that they break.
    """

    reason: str
    condition: object
    expectation: str | None = None
    severity: str | None = None


def listed(reasons: Mapping[str, int]) -> str:
    """Reasons with their numbers of rows, most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{reason} ({rows:,} rows)" for reason, rows in ordered[:_NAMED]]
    if len(ordered) > _NAMED:
        named.append(f"{len(ordered) - _NAMED} more reasons")
    return "; ".join(named)
