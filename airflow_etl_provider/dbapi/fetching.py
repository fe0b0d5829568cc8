"""Rows by their size: how many are fetched at once depends on the widest seen so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from airflow_etl_provider.dbapi.driver import Row
from airflow_etl_provider.dbapi.flavour import BLOCK

#: Rows of one fetch before their width is looked at; what comes in one such step may be wider than all before.
STEP = 32
#: What one step may hold if no row is wider than those before.
_STEP_BYTES = 8 * 1024 * 1024
#: A value of a fixed size, or one whose length says nothing.
_SMALL = 64


class SizedFetch:
    """Rows that make about one block of text, however wide they are.

    It begins with one row and doubles up to 32; a row that is wider than all before costs memory for 32 of
    its kind once, then fewer are fetched. What lies beyond a block is kept for the next call.

    :param fetch: the driver's own, for so many rows.
    :param widths: about how much text the rows have.
    """

    def __init__(
        self,
        fetch: Callable[[int], Sequence[Row]],
        widths: Callable[[Sequence[Row]], Iterable[int]],
    ) -> None:
        self._fetch = fetch
        self._widths = widths
        self._widest = 1
        self._step = 1
        self._kept: deque[tuple[Row, int]] = deque()

    def __call__(self, most: int) -> Sequence[Row]:
        rows: list[Row] = []
        size = 0
        while len(rows) < most and size < BLOCK:
            if self._kept:
                row, width = self._kept.popleft()
                rows.append(row)
                size += width
                continue
            found = self._fetch(min(self._step, most - len(rows)))
            if not found:
                break
            whole = sum(self._widths(found))
            if size + whole < BLOCK:
                rows.extend(found)
                size += whole
                self._widest = max(self._widest, whole // len(found))
            else:
                widths = list(self._widths(found))
                self._widest = max(self._widest, *widths)
                self._kept.extend(zip(found, widths, strict=True))
            self._step = max(1, min(2 * self._step, STEP, _STEP_BYTES // self._widest))
        return rows


def widths_in(places: Sequence[int]) -> Callable[[Sequence[Row]], Iterable[int]]:
    """The widths of rows whose columns at *places* may be of any size."""
    return lambda rows: [_size([row[place] for place in places]) for row in rows]


def _size(values: Sequence[Any]) -> int:
    """Characters or bytes of *values*, which is about what they take."""
    try:
        return sum(map(len, filter(None, values)))
    except TypeError:
        return sum(
            len(value) if isinstance(value, str | bytes | bytearray) else _SMALL for value in values
        )
