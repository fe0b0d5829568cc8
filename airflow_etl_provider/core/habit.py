"""How a table names its partitions, found out from those that it has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Self
from zoneinfo import ZoneInfo

from airflow_etl_provider.core.names import shortened
from airflow_etl_provider.core.partition import Every, PartitionSpec, Period, plus_months

_DIGITS = re.compile(r"(\d+)")
#: What a group of digits may say of a start, in the words of ``strftime``; ``%q`` is the quarter, and ``-`` leaves
#: out leading zeros. The first that fits all examples, and tells periods apart, is taken.
_READINGS = (
    *("%Y", "%G", "%y", "%q", "%m", "%d", "%H", "%V", "%j", "%-m", "%-d"),
    *("%Y%m", "%Y%m%d", "%Y%m%d%H", "%G%V", "%Y%q", "%Y%j", "%y%m", "%y%m%d"),
)
_NEWEST = 12


@dataclass(frozen=True, slots=True)
class Example:
    """The name of a partition that exists, and the instant at which it starts."""

    name: str
    start: datetime


@dataclass(frozen=True, slots=True)
class Habit:
    """Names new partitions by the table's own habit where one is seen, else after table and period.

    ``pieces`` are the words of the names, between which stand the digits that ``readings`` say.
    """

    spec: PartitionSpec
    table: str
    pieces: tuple[str, ...] = ()
    readings: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: PartitionSpec, table: str, examples: Sequence[Example]) -> Self:
        """What the names of the newest *examples* have in common."""
        newest = sorted(examples, key=lambda one: one.start)[-_NEWEST:]
        # Digits in the table's own name say nothing about time.
        fixed = table if all(one.name.startswith(table) for one in newest) else ""
        split = [_DIGITS.split(one.name[len(fixed) :]) for one in newest]
        if len({tuple(parts[::2]) for parts in split}) != 1:
            return cls(spec, table)
        first, *rest = split[0][::2]
        starts = [_wall(spec, one.start) for one in newest]
        groups = zip(*(parts[1::2] for parts in split), strict=True)
        names_to_come = [*starts, *_later(spec.every, starts[-1])]
        for readings in product(*(_fitting(group, starts) for group in groups)):
            habit = cls(spec, table, (fixed + first, *rest), readings)
            if readings and len({habit._at(wall) for wall in names_to_come}) == len(names_to_come):
                return habit
        return cls(spec, table)

    def name(self, period: Period) -> str:
        """What the partition of *period* is to be called."""
        if not self.readings:
            return self.spec.partition_name(self.table, period)
        return shortened(self._at(_wall(self.spec, period.start)))

    def _at(self, wall: datetime) -> str:
        first, *rest = self.pieces
        return first + "".join(
            _read(reading, wall) + piece for reading, piece in zip(self.readings, rest, strict=True)
        )


def _fitting(digits: Sequence[str], starts: Sequence[datetime]) -> list[str]:
    """What a group of digits may mean: always the same, or a part of the start."""
    same = [digits[0]] if len(set(digits)) == 1 else []
    return same + [
        reading
        for reading in _READINGS
        if all(_read(reading, start) == own for own, start in zip(digits, starts, strict=True))
    ]


def _read(reading: str, wall: datetime) -> str:
    # Not every platform pads a year or leaves out zeros.
    for word, text in (
        ("%Y", f"{wall.year:04d}"),
        ("%q", str((wall.month - 1) // 3 + 1)),
        ("%-m", str(wall.month)),
        ("%-d", str(wall.day)),
    ):
        reading = reading.replace(word, text)
    return wall.strftime(reading)


def _later(every: Every, wall: datetime) -> Iterator[datetime]:
    """Starts of periods to come, for as long as their names must differ: some years, but not every hour of them."""
    with suppress(OverflowError, ValueError):
        match every:
            case Every.HOUR:
                yield from (wall + timedelta(hours=n) for n in range(1, 48))
                yield from (wall + timedelta(days=n) for n in range(2, 800))
            case Every.DAY:
                yield from (wall + timedelta(days=n) for n in range(1, 800))
            case Every.WEEK:
                yield from (wall + timedelta(weeks=n) for n in range(1, 320))
            case Every.MONTH:
                yield from (plus_months(wall, n) for n in range(1, 40))
            case Every.QUARTER:
                yield from (plus_months(wall, 3 * n) for n in range(1, 16))
            case Every.YEAR:
                yield from (plus_months(wall, 12 * n) for n in range(1, 12))


def _wall(spec: PartitionSpec, start: datetime) -> datetime:
    """The clock that names go by; hours are counted in UTC."""
    zone = UTC if spec.every is Every.HOUR else ZoneInfo(spec.timezone)
    return start.astimezone(zone).replace(tzinfo=None)
