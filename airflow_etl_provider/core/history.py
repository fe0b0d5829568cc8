"""What a stream's own history says of a new batch, by statistics that a few bad loads do not move.

The centre is the median, the spread the median absolute deviation from it (MAD) times 1.4826, which for
normally distributed values is their standard deviation (F. R. Hampel, "The influence curve and its role in
robust estimation", JASA 69, 1974; P. J. Rousseeuw and C. Croux, "Alternatives to the median absolute
deviation", JASA 88, 1993). 3.5 such deviations is where B. Iglewicz and D. C. Hoaglin call a value an
outlier ("How to Detect and Handle Outliers", ASQC Quality Press, 1993).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

MAD_SCALE = 1.4826
DEVIATIONS = 3.5


class Season(StrEnum):
    """Which windows are alike: those of the same hour of the day, day of the week, or both."""

    HOUR = "hour"
    WEEKDAY = "weekday"
    HOUR_OF_WEEK = "hour_of_week"


@dataclass(frozen=True, slots=True)
class EarlierLoad:
    """A published load of the same stream, as far as it can be compared.

    ``rows`` are scaled to the length of the window that is looked at; ``lag`` (seconds) and ``newest`` are
    what its own audit for freshness found, if it had one.
    """

    load_id: str
    rows: float
    newest: str | None = None
    lag: float | None = None


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest row: when it happened (text of an instant) and how many seconds ago that was.

    ``own`` is false where the batch has no row and an earlier load is asked; without either both are
    ``None``.
    """

    own: bool
    newest: str | None
    lag: float | None


@dataclass(frozen=True, slots=True)
class Usual:
    """Centre and spread of a figure."""

    median: float
    deviation: float

    def lowest(self, deviations: float) -> float:
        """The least value within so many deviations; figures here are never below zero."""
        return max(0.0, self.median - deviations * self.deviation)

    def highest(self, deviations: float) -> float:
        """The greatest value within so many deviations."""
        return self.median + deviations * self.deviation


def usual(values: Sequence[float], floor: Callable[[float], float]) -> Usual:
    """Median and scaled MAD of *values*, of which there is at least one.

    :param floor: the least spread for a median. Where most values are the same the MAD is 0, and any other
        value would be infinitely far away.
    """
    centre = median(values)
    spread = MAD_SCALE * median(abs(value - centre) for value in values)
    return Usual(centre, max(spread, floor(centre)))


def least_spread_of_rows(centre: float) -> float:
    """How much a number of rows scatters by chance alone: the square root (Poisson), and at least one row."""
    return max(1.0, math.sqrt(centre))


def least_spread_of_lag(centre: float) -> float:
    """A tenth of the usual lag, and at least a minute."""
    return max(60.0, abs(centre) / 10)
