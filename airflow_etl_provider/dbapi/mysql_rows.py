"""MySQL's rows: put together by the server as far as it may, checked where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from airflow_etl_provider.core.columns import Treatment
from airflow_etl_provider.core.errors import DataError
from airflow_etl_provider.dbapi.copytext import escaped
from airflow_etl_provider.dbapi.driver import Row
from airflow_etl_provider.dbapi.flavour import MOST_ROWS
from airflow_etl_provider.dbapi.mysql_columns import DATES, Column, plain
from airflow_etl_provider.dbapi.statements import Dialect, Sql, joined, sql

#: What a fetch may hold without a look at the sizes of its rows.
_MOST_BYTES = 8 * 1024 * 1024
#: Variables of the session with the two pads of a hash's key.
HASH_INNER, HASH_OUTER = "@etl_hash_inner", "@etl_hash_outer"
_HASH_WIDTH = 64
_NULL = "X'5C4E'"
_TAB = "X'09'"
_NUL = "text with a NUL character, which PostgreSQL cannot hold"

Treated = tuple[Column, Treatment]


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Columns in runs: a run is one value that the server puts together, or one wide column as it is.

    :param wide: rows can be so large that their size decides how many are fetched at once.
    """

    runs: tuple[tuple[Treated, ...], ...]
    raw: tuple[bool, ...]
    wide: bool

    @classmethod
    def of(cls, columns: Sequence[Treated], widest: int) -> RowPlan:
        """:param widest: bytes that the server may put together."""
        runs: list[list[Treated]] = []
        raw: list[bool] = []
        room = 0
        for treated in columns:
            width = _width(*treated) + 1
            if width > widest:
                runs.append([treated])
                raw.append(True)
                room = 0
            elif width <= room:
                runs[-1].append(treated)
                room -= width
            else:
                runs.append([treated])
                raw.append(False)
                room = widest - width
        widths = sum(_width(*treated) + 1 for treated in columns)
        return cls(tuple(map(tuple, runs)), tuple(raw), widths * MOST_ROWS > _MOST_BYTES)

    def expressions(self, dialect: Dialect, *, zero_dates: str) -> list[Sql]:
        found = []
        for columns, raw in zip(self.runs, self.raw, strict=True):
            if raw:
                found.append(dialect.name(columns[0][0].source.name))
                continue
            texts = [_nullable(dialect, *treated, zero_dates) for treated in columns]
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

    def encode_all(self, rows: Sequence[Row], first: int) -> bytes:
        """The rows as COPY text, zero dates and all, each ended by a remark where its text was changed, or NULL."""
        columns = [column.source.name for column, _ in chain.from_iterable(self.runs)]
        lines = []
        for number, row in enumerate(rows, first):
            line = self._line(row, number)
            remark = b"\\N"
            if b"\0" in line:
                fields = zip(line.split(b"\t"), columns, strict=True)
                said = [f"column {name}: {_NUL}" for field, name in fields if b"\0" in field]
                remark = escaped(["; ".join(said)])[0].encode()
                line = line.replace(b"\0", "\ufffd".encode())
            lines.append(line + b"\t" + remark)
        return b"\n".join(lines) + b"\n"

    def _line(self, row: Row, number: int) -> bytes:
        parts = []
        for value, raw, columns in zip(row, self.raw, self.runs, strict=True):
            if not raw and value is None:
                raise self._too_large(number)
            parts.append(_raw_text(value, binary=columns[0][0].binary) if raw else value)
        return b"\t".join(parts)

    def _too_large(self, number: int) -> DataError:
        return DataError(
            f"row {number} of the source is larger than the server may put together",
            remedy="raise max_allowed_packet on the source's server",
        )

    def _check(self, lines: Sequence[bytes], first: int) -> None:
        treated = list(chain.from_iterable(self.runs))
        columns = [column for column, _ in treated]
        dates = [
            number
            for number, (column, treatment) in enumerate(treated)
            if column.kind in DATES and treatment is Treatment.KEEP
        ]
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
                        f"row {number} of the source, column {column.source.name}: {_NUL}",
                        remedy="mend it in the source, or read a query that removes it",
                    )


def _width(column: Column, treatment: Treatment) -> int:
    """Bytes of the text that is sent, at most."""
    return column.width if treatment is Treatment.KEEP else _HASH_WIDTH


def _nullable(dialect: Dialect, column: Column, treatment: Treatment, zero_dates: str) -> Sql:
    if treatment is Treatment.NULL:
        return sql(_NULL)
    name = dialect.name(column.source.name)
    empty = sql(name, " IS NULL")
    if zero_dates == "null" and column.kind in DATES:
        for part in ("YEAR", "MONTH", "DAYOFMONTH"):
            empty = sql(empty, f" OR {part}(", name, ") = 0")
    if treatment is Treatment.HASH:
        # Text that is too large to be put together gives NULL, which is refused and never sent.
        return sql("IF(", empty, f", {_NULL}, ", _hashed(column.shown(name)), ")")
    text = (column.form or plain)(name)
    if zero_dates == "null" and column.kind in DATES:
        return sql("IF(", empty, f", {_NULL}, ", text, ")")
    return sql("IFNULL(", text, f", {_NULL})")


def _hashed(shown: Sql) -> Sql:
    """The HMAC-SHA-256 (RFC 2104) of a text."""
    text = sql("CAST(CONVERT(", shown, " USING utf8mb4) AS BINARY)")
    inner = sql(f"UNHEX(SHA2(CONCAT({HASH_INNER}, ", text, "), 256))")
    return sql(f"SHA2(CONCAT({HASH_OUTER}, ", inner, "), 256)")


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
