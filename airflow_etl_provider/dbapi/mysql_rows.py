"""MySQL's rows: put together by the server as far as it may, checked where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from airflow_etl_provider.core.errors import DataError
from airflow_etl_provider.dbapi.driver import Row
from airflow_etl_provider.dbapi.flavour import MOST_ROWS
from airflow_etl_provider.dbapi.mysql_columns import DATES, Column, plain
from airflow_etl_provider.dbapi.statements import Dialect, Sql, joined, sql

#: A fetch never holds more than this, whatever the rows are.
_MOST_BYTES = 64 * 1024 * 1024
_NULL = "X'5C4E'"
_TAB = "X'09'"


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Columns in runs: a run is one value that the server puts together, or one wide column as it is."""

    runs: tuple[tuple[Column, ...], ...]
    raw: tuple[bool, ...]
    most_rows: int

    @classmethod
    def of(cls, columns: Sequence[Column], widest: int) -> RowPlan:
        """:param widest: bytes that the server may put together."""
        runs: list[list[Column]] = []
        raw: list[bool] = []
        room = 0
        for column in columns:
            width = column.width + 1
            if width > widest:
                runs.append([column])
                raw.append(True)
                room = 0
            elif width <= room:
                runs[-1].append(column)
                room -= width
            else:
                runs.append([column])
                raw.append(False)
                room = widest - width
        widths = sum(column.width + 1 for column in columns)
        return cls(
            tuple(map(tuple, runs)),
            tuple(raw),
            min(MOST_ROWS, max(1, _MOST_BYTES // widths)),
        )

    def expressions(self, dialect: Dialect, *, zero_dates: str) -> list[Sql]:
        found = []
        for columns, raw in zip(self.runs, self.raw, strict=True):
            if raw:
                found.append(dialect.name(columns[0].source.name))
                continue
            texts = [_nullable(dialect, column, zero_dates) for column in columns]
            found.append(sql("CONCAT(X'', ", joined(f", {_TAB}, ", texts), ")"))
        return found

    def encode(self, rows: Sequence[Row], first: int) -> bytes:
        """The rows as COPY text; what cannot be stored is refused by row and column."""
        if self.raw == (False,):
            lines: Sequence[Any] = list(chain.from_iterable(rows))
            if None in lines:
                raise self._too_large(first + list(lines).index(None))
        else:
            lines = [self._line(row, number) for number, row in enumerate(rows, first)]
        block = b"\n".join(lines) + b"\n"
        if b"\0" in block or b"-00" in block or b"0000-" in block:
            self._check(lines, first)
        return block

    def _line(self, row: Row, number: int) -> bytes:
        parts = []
        for value, raw, columns in zip(row, self.raw, self.runs, strict=True):
            if not raw and value is None:
                raise self._too_large(number)
            parts.append(_raw_text(value, binary=columns[0].binary) if raw else value)
        return b"\t".join(parts)

    def _too_large(self, number: int) -> DataError:
        return DataError(
            f"row {number} of the source is larger than the server may put together",
            remedy="raise max_allowed_packet on the source's server",
        )

    def _check(self, lines: Sequence[bytes], first: int) -> None:
        columns = list(chain.from_iterable(self.runs))
        dates = [number for number, column in enumerate(columns) if column.kind in DATES]
        for number, line in enumerate(lines, first):
            fields = bytes(line).split(b"\t") if b"\0" in line or dates else []
            for place in dates:
                date = fields[place][:10]
                if date[:4] == b"0000" or date[5:7] == b"00" or date[8:] == b"00":
                    raise DataError(
                        f"row {number} of the source, column {columns[place].source.name}: a date with a zero "
                        "year, month or day",
                        remedy="mend it in the source, or choose zero_dates='null' to store NULL instead",
                    )
            for field, column in zip(fields, columns, strict=False):
                if b"\0" in field:
                    raise DataError(
                        f"row {number} of the source, column {column.source.name}: text with a NUL character, "
                        "which PostgreSQL cannot hold",
                        remedy="mend it in the source, or read a query that removes it",
                    )


def _nullable(dialect: Dialect, column: Column, zero_dates: str) -> Sql:
    name = dialect.name(column.source.name)
    form = column.form or plain
    if zero_dates == "null" and column.kind in DATES:
        zero = sql("YEAR(", name, ") = 0 OR MONTH(", name, ") = 0 OR DAYOFMONTH(", name, ") = 0")
        return sql("IFNULL(IF(", zero, ", NULL, ", form(name), f"), {_NULL})")
    return sql("IFNULL(", form(name), f", {_NULL})")


def _raw_text(value: Any, *, binary: bool) -> bytes:
    if value is None:
        return b"\\N"
    if binary:
        return b"\\\\x" + bytes(value).hex().encode()
    text = value.encode() if isinstance(value, str) else bytes(value)
    return (
        text.replace(b"\\", b"\\\\")
        .replace(b"\t", b"\\t")
        .replace(b"\n", b"\\n")
        .replace(b"\r", b"\\r")
    )
