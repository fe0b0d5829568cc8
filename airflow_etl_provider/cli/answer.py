"""What a command answers, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from airflow_etl_provider.core.window import humane

OK, FINDING, USAGE = 0, 1, 2


class UsageError(Exception):
    """The command cannot be run as it was written; the exit code is 2."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The same facts twice; *code* tells a script whether there is something to look at."""

    data: Any
    text: str
    code: int = OK

    def shown(self, *, as_json: bool) -> str:
        """What goes to standard output."""
        return json.dumps(self.data, indent=2, default=_plain) if as_json else self.text


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no place in an answer")


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """*rows* in columns; numbers to the right, absent values as ``-``."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(len(title), *(len(row[number]) for row in cells)) if cells else len(title)
        for number, title in enumerate(titles)
    ]
    right = [
        bool(rows) and all(isinstance(row[number], int | None) for row in rows)
        for number in range(len(titles))
    ]
    lines = [list(titles), *cells]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def facts(pairs: Mapping[str, object]) -> str:
    """One fact per line, names aligned."""
    width = max(map(len, pairs))
    return "\n".join(f"{name.ljust(width)}  {_cell(value)}" for name, value in pairs.items())


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def span(seconds: float | None) -> str | None:
    """``1 h 5 min``: seconds as a person reads them, from two days on without the hours."""
    if seconds is None:
        return None
    length = timedelta(seconds=seconds)
    return humane(timedelta(days=length.days) if length.days > 1 else length)


def window_text(low: str | None, high: str | None, bounds: str) -> str:
    """``[low, high)``, with ``start`` where there is no lower end."""
    if bounds == "nulls":
        return "rows without a cursor value"
    first = "start" if low in (None, "", "-infinity", "-Infinity") else low
    return f"{bounds[0]}{first}, {'end' if high is None else high}{bounds[1]}"
