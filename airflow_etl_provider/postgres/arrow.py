"""Rows between PostgreSQL's COPY and Arrow record batches, by CSV, which both read and write exactly.

A column has the Arrow type that holds the values of its PostgreSQL type: integers, floats, ``decimal128``
(``numeric`` with at most 38 digits), dates, times and timestamps to the microsecond, ``bool``, ``binary``
(``bytea``); of every other type its text. NULL and the empty string are told apart by quotes. Values that
PostgreSQL has and Arrow has not (infinity, years before 1 and after 9999, NaN of a ``numeric``, 24:00) are refused by the
name of the column, never changed; a column that holds them is given as text where the user says so.

pyarrow is imported when rows move, not before.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from airflow_etl_provider.core.errors import ConfigurationError, DataError, TransformFailed
from airflow_etl_provider.core.suggest import nearest

if TYPE_CHECKING:
    import pyarrow as pa

_TYPE = re.compile(
    r"(?P<base>[^(]+?)(?:\((?P<args>-?\d+(?:,-?\d+)*)\))?(?P<rest> with(?:out)? time zone)?"
)
_MOST_DIGITS = 38
_MICROSECONDS = 6
_COLUMN = re.compile(r"In CSV column #(\d+)")
#: A date, and a time of day, as PostgreSQL writes them.
_DATE, _CLOCK = r"\d{4,}-\d\d-\d\d", r"\d\d:\d\d(:\d\d(\.\d+)?)?"
#: Text that a type reads without leaving a part of it out in silence.
_EXACT = {
    "date": rf"(-?infinity|{_DATE}( BC)?)",
    "timestamp without time zone": rf"(-?infinity|{_DATE}[ T]{_CLOCK}( BC)?)",
    "timestamp with time zone": rf"(-?infinity|{_DATE}[ T]{_CLOCK}(Z|[+-]\d\d(:?\d\d){{0,2}})( BC)?)",
    "time without time zone": _CLOCK,
    "numeric": r"[ ]*([+-]?(\d+\.?\d*|\.\d+)|NaN|[+-]?Infinity)[ ]*",
}


@dataclass(frozen=True, slots=True)
class ArrowColumn:
    """A column by its PostgreSQL type; *as_text* gives and takes it in PostgreSQL's text form."""

    name: str
    type: str
    as_text: bool = False

    @property
    def base(self) -> str:
        return _parts(self.type)[0]

    @property
    def fraction(self) -> int | None:
        """Digits behind the point that the type keeps; ``None`` where it keeps all that are written."""
        base, args = _parts(self.type)
        if base == "numeric" and args:
            return max(([*args, 0])[1], 0)
        if base.startswith(("timestamp", "time ", "interval")):
            return args[0] if args else _MICROSECONDS
        return None

    def arrow(self) -> pa.DataType:
        """The Arrow type of its values."""
        import pyarrow as pa

        if self.as_text:
            return pa.string()
        base, args = _parts(self.type)
        if base == "numeric" and args:
            precision, scale = args[0], ([*args, 0])[1]
            fits = precision <= _MOST_DIGITS and 0 <= scale <= precision
            return pa.decimal128(precision, scale) if fits else pa.string()
        made: Callable[[], pa.DataType] = _arrow_types().get(base, pa.string)
        return made()


def _parts(type_: str) -> tuple[str, list[int]]:
    match = _TYPE.fullmatch(type_)
    if match is None:
        return type_, []
    args = [int(part) for part in match["args"].split(",")] if match["args"] else []
    return match["base"] + (match["rest"] or ""), args


def _arrow_types() -> Mapping[str, Callable[[], pa.DataType]]:
    import pyarrow as pa

    return {
        "boolean": pa.bool_,
        "smallint": pa.int16,
        "integer": pa.int32,
        "bigint": pa.int64,
        "real": pa.float32,
        "double precision": pa.float64,
        "date": pa.date32,
        "time without time zone": lambda: pa.time64("us"),
        "timestamp without time zone": lambda: pa.timestamp("us"),
        "timestamp with time zone": lambda: pa.timestamp("us", "UTC"),
        "bytea": pa.binary,
    }


def require_pyarrow() -> None:
    """:raises ConfigurationError: it is not installed on this worker."""
    try:
        import pyarrow.csv  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "a transform by a Python callable needs pyarrow, which is not installed on this worker",
            remedy="pip install 'airflow-etl-provider[arrow]'",
        ) from None


# -- from the server ------------------------------------------------------------------------------


class RowDecoder:
    """Lines of ``COPY … TO STDOUT (FORMAT csv)``, each a whole row, as record batches."""

    def __init__(self, columns: Sequence[ArrowColumn]) -> None:
        import pyarrow as pa

        self._columns = columns
        # bytea comes as text in hexadecimal.
        self._types = {
            column.name: pa.string() if pa.types.is_binary(column.arrow()) else column.arrow()
            for column in columns
        }

    def batch(self, lines: Sequence[bytes]) -> pa.RecordBatch:
        """:raises DataError: a value that Arrow's type cannot hold; names the column, not the value."""
        import pyarrow as pa

        try:
            read = self._read(lines, self._types)
        except pa.ArrowInvalid as error:
            raise self._unfit(str(error)) from None
        return pa.record_batch(
            [
                _from_hex(array) if pa.types.is_binary(column.arrow()) else array
                for column, array in zip(self._columns, read, strict=True)
            ],
            names=[column.name for column in self._columns],
        )

    def texts(self, lines: Sequence[bytes]) -> list[dict[str, str | None]]:
        """The rows as PostgreSQL's own text of each value."""
        import pyarrow as pa

        read = self._read(lines, {column.name: pa.string() for column in self._columns})
        return pa.record_batch(read, names=[c.name for c in self._columns]).to_pylist()  # type: ignore[no-any-return]

    def _read(self, lines: Sequence[bytes], types: Mapping[str, pa.DataType]) -> list[pa.Array]:
        import pyarrow as pa
        from pyarrow import csv

        data = b"".join(lines)
        table = csv.read_csv(
            io.BytesIO(data),
            # One block: a row never straddles two.
            csv.ReadOptions(column_names=list(types), use_threads=False, block_size=len(data) + 1),
            csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            csv.ConvertOptions(
                column_types=types,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                true_values=["t"],
                false_values=["f"],
            ),
        )
        if table.num_rows != len(lines):
            raise TransformFailed(
                f"{len(lines):,} rows of the batch were read as {table.num_rows:,}",
                remedy="nothing was kept; report it with the types of the batch's columns",
            )
        return [
            column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
            for column in table.columns
        ]

    def _unfit(self, message: str) -> DataError:
        place = _COLUMN.search(message)
        if place is None:
            return DataError(
                "the batch cannot be read as Arrow", remedy="say as_text=[...] of its columns"
            )
        column = self._columns[int(place[1])]
        return DataError(
            f"column {column.name} of the batch ({column.type}) holds a value that Arrow's {column.arrow()} cannot hold, "
            "such as infinity, a year before 1 or after 9999, or NaN",
            remedy=f"say as_text=[{column.name!r}]: the callable then gets it as PostgreSQL's text, and may give it back "
            "as such",
        )


def _from_hex(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    return pa.array(
        [None if text is None else bytes.fromhex(text[2:]) for text in array.to_pylist()],
        pa.binary(),
    )


# -- to the server --------------------------------------------------------------------------------


def as_batches(made: Any, name: str) -> Iterator[pa.RecordBatch]:
    """What a callable gave, one record batch after the other.

    :raises TransformFailed: it gave something else.
    """
    import pyarrow as pa

    if isinstance(made, pa.RecordBatch):
        yield made
        return
    if isinstance(made, pa.Table):
        raise TransformFailed(
            f"{name} gave a pyarrow.Table",
            remedy="give its record batches: return table.to_batches()",
        )
    if made is None or isinstance(made, str | bytes | Mapping) or not hasattr(made, "__iter__"):
        raise _no_batch(made, name)
    for each in made:
        if not isinstance(each, pa.RecordBatch):
            raise _no_batch(each, name)
        yield each


def _no_batch(made: Any, name: str) -> TransformFailed:
    return TransformFailed(
        f"{name} gave a {type(made).__name__}, not a pyarrow.RecordBatch",
        remedy="return the record batch that the rows become, or an iterable of such; an empty list for none",
    )


def problems_of(schema: pa.Schema, columns: Mapping[str, ArrowColumn]) -> Iterator[tuple[str, str]]:
    """What is wrong and what to write instead, of each column whose Arrow type its target cannot take."""
    for field in schema:
        column = columns.get(field.name)
        if column is None or _takes(column, field.type):
            continue
        natural = column.arrow()
        yield (
            f"{field.name}: {field.type} does not fit {column.type}",
            f"cast {field.name!r} to {natural} in the callable",
        )


class RowEncoder:
    """Record batches as lines for ``COPY … FROM STDIN (FORMAT csv)``.

    :param columns: in the order of the COPY.
    """

    def __init__(self, columns: Sequence[ArrowColumn]) -> None:
        self._columns = columns

    def write(self, batch: pa.RecordBatch, sink: IO[bytes]) -> int:
        """Write the rows of *batch*, whose columns are these in any order; returns how many.

        :raises DataError: a value that its column cannot hold exactly; names the column, not the value.
        """
        import pyarrow as pa
        from pyarrow import csv

        arrays = [self._exact(batch.column(column.name), column) for column in self._columns]
        rows = pa.record_batch(arrays, names=[column.name for column in self._columns])
        # Quotes tell the empty string from NULL, and keep a line that ends COPY from being taken for it.
        csv.write_csv(rows, sink, csv.WriteOptions(include_header=False, quoting_style="all_valid"))
        return rows.num_rows  # type: ignore[no-any-return]

    def _exact(self, array: pa.Array, column: ArrowColumn) -> pa.Array:
        import pyarrow as pa

        try:
            return _as_written(array, column)
        except pa.ArrowInvalid:
            raise _inexact(column) from None


def _inexact(column: ArrowColumn) -> DataError:
    return DataError(
        f"column {column.name} of the callable's output: a value does not fit {column.type}, or not exactly",
        remedy="round, cut or convert it in the callable",
    )


def _as_written(array: pa.Array, column: ArrowColumn) -> pa.Array:
    """The values in a form that is written as the server reads it.

    :raises pa.ArrowInvalid, DataError: a value would change.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_null(array.type):
        return array.cast(pa.string())
    natural = column.arrow()
    if column.base == "numeric":
        return _numeric(array, column)
    if pa.types.is_binary(natural):
        return _hex(array)
    array = array.cast(natural)
    if pa.types.is_string(natural):
        _require_exact_text(array, column)
    elif pa.types.is_temporal(natural):
        _require_calendar(array, column)
        _require_fraction(array, column)
    return array


def _numeric(array: pa.Array, column: ArrowColumn) -> pa.Array:
    import pyarrow as pa

    scale = column.fraction
    if pa.types.is_decimal(array.type) and scale is not None and array.type.scale > scale:
        # Digits behind the target's scale must be zeros.
        wide = pa.decimal256(76, scale) if array.type.bit_width > 128 else pa.decimal128(38, scale)
        array = array.cast(wide)
    given = array.cast(pa.string())
    if scale is not None and not pa.types.is_decimal(array.type):
        _require_exact_text(given, column)
    return given


def _hex(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    return pa.array(
        [None if value is None else "\\x" + value.hex() for value in array.to_pylist()],
        pa.string(),
    )


def _require_exact_text(array: pa.Array, column: ArrowColumn) -> None:
    """Text is read by the server, which must leave nothing of it out."""
    from pyarrow import compute

    if _any(compute.match_substring(array, "\0")):
        raise _inexact(column)
    pattern = _EXACT.get(column.base)
    if pattern is not None and not _all(compute.match_substring_regex(array, f"^(?:{pattern})$")):
        raise _inexact(column)
    if column.fraction is not None and _any(
        compute.match_substring_regex(array, rf"\.\d{{{column.fraction}}}\d*[1-9]")
    ):
        raise _inexact(column)


def _require_calendar(array: pa.Array, column: ArrowColumn) -> None:
    """Only years from 1 to 9999 are written as the server reads them."""
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_time(array.type) or array.null_count == len(array):
        return
    if pa.types.is_timestamp(array.type):
        days = array.cast(pa.int64())
        first, last = -62_135_596_800_000_000, 253_402_300_799_999_999
    else:
        days = array.cast(pa.int32())
        first, last = -719_162, 2_932_896
    ends = compute.min_max(days)
    if ends["min"].as_py() < first or ends["max"].as_py() > last:
        raise DataError(
            f"column {column.name} of the callable's output holds a year before 1 or after 9999",
            remedy=f"say as_text=[{column.name!r}] and give it as PostgreSQL's text",
        )


def _require_fraction(array: pa.Array, column: ArrowColumn) -> None:
    """A type that keeps fewer digits than microseconds would round."""
    import pyarrow as pa
    from pyarrow import compute

    fraction = column.fraction
    if fraction is None or fraction >= _MICROSECONDS:
        return
    step = pa.scalar(10 ** (_MICROSECONDS - fraction), pa.int64())
    ticks = array.cast(pa.int64())
    if not _all(compute.equal(compute.multiply(compute.divide(ticks, step), step), ticks)):
        raise _inexact(column)


def _all(flags: pa.Array) -> bool:
    from pyarrow import compute

    return bool(compute.all(flags).as_py() is not False)


def _any(flags: pa.Array) -> bool:
    from pyarrow import compute

    return bool(compute.any(flags).as_py())


def _takes(column: ArrowColumn, given: pa.DataType) -> bool:
    """Whether values of the Arrow type *given* may be exact in the column; then each is looked at."""
    import pyarrow as pa
    from pyarrow import types as is_

    if is_.is_dictionary(given):
        given = given.value_type
    if is_.is_null(given):
        return True
    text: bool = is_.is_string(given) or is_.is_large_string(given) or is_.is_string_view(given)
    if column.as_text:
        return text
    if column.base == "numeric":
        return bool(text or is_.is_decimal(given) or is_.is_integer(given))
    natural = column.arrow()
    if is_.is_timestamp(natural):
        if natural.tz is None and is_.is_date(given):
            return True
        return bool(is_.is_timestamp(given)) and (given.tz is None) == (natural.tz is None)
    rules: list[tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType], bool]]] = [
        (is_.is_boolean, is_.is_boolean),
        (is_.is_integer, is_.is_integer),
        (is_.is_float32, lambda each: is_.is_float16(each) or is_.is_float32(each)),
        (is_.is_float64, lambda each: is_.is_floating(each) or is_.is_integer(each)),
        (is_.is_date, is_.is_date),
        (is_.is_time, is_.is_time),
        (
            is_.is_binary,
            lambda each: (
                is_.is_binary(each) or is_.is_large_binary(each) or is_.is_fixed_size_binary(each)
            ),
        ),
    ]
    for of_target, of_given in rules:
        if of_target(natural):
            return of_given(given)
    return text and bool(natural == pa.string())


def chosen(as_text: Sequence[str], *known: Sequence[str]) -> None:
    """:raises ConfigurationError: *as_text* names a column that is in none of *known*."""
    names = [name for each in known for name in each]
    for name in as_text:
        if name not in names:
            raise ConfigurationError(
                f"as_text names {name!r}, which neither the batch nor the target has{nearest(name, names)}",
                remedy=f"their columns are: {', '.join(dict.fromkeys(names))}",
            )
