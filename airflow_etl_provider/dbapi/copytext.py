"""Python values as PostgreSQL's COPY text, column by column.

A value is taken by its Python type and by the PostgreSQL type that the column was said to have. What
that type would round, cut or shift in silence is refused with row and column, never with the value;
what it refuses by itself (a number out of range) is left to the server, which names both too.

A batch is turned column-wise: the types that occur are looked at once, and each has a function that
handles a whole column in C; rows are put together by two joins.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import product, repeat
from typing import Any
from uuid import UUID

from airflow_etl_provider.core.errors import DataError

NULL = "\\N"
Encode = Callable[[Sequence[Any]], Sequence[str]]
"""Values of one Python type, none of them None, as COPY text."""

_TYPE = re.compile(
    r"(?P<base>[^(]+?)\s*(?:\((?P<args>[\d,\s]+)\))?(?P<rest>\s+with(?:out)? time zone)?"
)
_DATE = re.compile(r"(?!0000)\d{4}-\d\d-\d\d")
_CLOCK = r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,6}0*)?)?"
_TIME = re.compile(_CLOCK)
_NAIVE = re.compile(rf"(?!0000)\d{{4}}-\d\d-\d\d([ T]{_CLOCK})?")
_AWARE = re.compile(rf"(?!0000)\d{{4}}-\d\d-\d\d[ T]{_CLOCK}\s?(Z|[+-]\d\d(:?\d\d)?)")
_WIDEST_OFFSET = timedelta(hours=15, minutes=59)
_DAY = timedelta(days=1)
_MIDNIGHT = datetime(1970, 1, 1, tzinfo=UTC)


class _UnfitError(ValueError):
    """A value that its column cannot hold; the text says why, without the value."""


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """Rows of some columns as COPY text.

    :param columns: name and PostgreSQL type of each column; further values of a row are left out.
    """

    columns: tuple[tuple[str, str], ...]
    rules: tuple[Mapping[type, Encode], ...]

    @classmethod
    def of(cls, columns: Sequence[tuple[str, str]]) -> RowEncoder:
        return cls(tuple(columns), tuple(_rules(type_) for _, type_ in columns))

    def encode(self, rows: Sequence[Sequence[Any]], first: int) -> bytes:
        """*rows* as COPY text, each ended by a line feed.

        :param first: the number of the first row, for errors.
        :raises DataError: a value that cannot be stored exactly; names row and column.
        """
        try:
            texts = [
                _column(values, rules)
                for values, rules in zip(zip(*rows, strict=True), self.rules, strict=False)
            ]
            return ("\n".join(map("\t".join, zip(*texts, strict=True))) + "\n").encode()
        except (ValueError, OverflowError, TypeError, ArithmeticError, RecursionError) as error:
            raise self._place(rows, first) or error from None

    def _place(self, rows: Sequence[Sequence[Any]], first: int) -> DataError | None:
        """The first value that cannot be encoded."""
        for number, row in enumerate(rows, first):
            for (name, type_), rules, value in zip(self.columns, self.rules, row, strict=False):
                try:
                    "".join(_column([value], rules)).encode()
                except _UnfitError as error:
                    reason = str(error)
                except UnicodeEncodeError:
                    reason = "text that is no valid Unicode"
                except (ValueError, OverflowError, TypeError, ArithmeticError, RecursionError):
                    reason = f"a {type(value).__name__} that {type_} cannot hold"
                else:
                    continue
                return DataError(
                    f"row {number} of the source, column {name}: {reason}",
                    remedy="mend the value in the source, leave the column out with columns=[...], or declare "
                    "another type for it (types={'column': 'text'})",
                )
        return None


def base_of(type_: str) -> tuple[str, tuple[int, ...]]:
    """A PostgreSQL type without its modifiers, and these."""
    match = _TYPE.fullmatch(type_.strip())
    if match is None:
        return type_, ()
    args = tuple(int(part) for part in match["args"].split(",")) if match["args"] else ()
    return match["base"] + (match["rest"] or ""), args


def escaped(texts: Sequence[str]) -> Sequence[str]:
    """Text with COPY's escapes; untouched where there is nothing to escape."""
    whole = "\0".join(texts)
    if whole.count("\0") != len(texts) - 1:
        raise _UnfitError("text with a NUL character, which PostgreSQL cannot hold")
    if "\\" in whole or "\t" in whole or "\n" in whole or "\r" in whole:
        whole = whole.replace("\\", "\\\\").replace("\t", "\\t")
        return whole.replace("\n", "\\n").replace("\r", "\\r").split("\0")
    return texts


def _column(values: Sequence[Any], rules: Mapping[type, Encode]) -> Sequence[str]:
    kinds = list(map(type, values))
    distinct = set(kinds)
    if len(distinct) == 1 and kinds[0] is not type(None):
        return _rule(kinds[0], rules)(values)
    # Each type at once, then put back in the order of the rows.
    texts: dict[type, Iterator[str]] = {
        kind: repeat(NULL)
        if kind is type(None)
        else iter(_rule(kind, rules)([value for value in values if type(value) is kind]))
        for kind in distinct
    }
    return [next(texts[kind]) for kind in kinds]


def _rule(kind: type, rules: Mapping[type, Encode]) -> Encode:
    for parent in kind.__mro__:
        if parent in rules:
            return rules[parent]
    raise _UnfitError(f"a {kind.__name__} cannot be stored in its type without loss")


# -- one function per Python type ---------------------------------------------------------------------


def _integers(values: Sequence[Any]) -> Sequence[str]:
    return list(map(int.__repr__, values))


def _floats(values: Sequence[Any]) -> Sequence[str]:
    return list(map(float.__repr__, values))


def _decimals(values: Sequence[Any]) -> Sequence[str]:
    texts = list(map(Decimal.__str__, values))
    if any("N" in text for text in texts):
        return [
            "NaN" if value.is_nan() else text for value, text in zip(values, texts, strict=True)
        ]
    return texts


def _booleans(values: Sequence[Any]) -> Sequence[str]:
    return ["t" if value else "f" for value in values]


def _binary(values: Sequence[Any]) -> Sequence[str]:
    return ["\\\\x" + value.hex() for value in values]


def _iso(values: Sequence[Any]) -> Sequence[str]:
    return [value.isoformat() for value in values]


def _uuids(values: Sequence[Any]) -> Sequence[str]:
    return list(map(str, values))


def _json(values: Sequence[Any]) -> Sequence[str]:
    return escaped(
        [
            json.dumps(value, ensure_ascii=False, allow_nan=False, default=_in_json)
            for value in values
        ]
    )


def _in_json(value: object) -> str:
    if isinstance(value, date | time | UUID):
        return str(value)
    raise _UnfitError(f"a {type(value).__name__} inside JSON")


def _naive(values: Sequence[Any]) -> Sequence[str]:
    if any(value.tzinfo is not None for value in values):
        raise _UnfitError("a time with an offset in a type without time zone")
    return _iso(values)


def _aware(values: Sequence[Any]) -> Sequence[str]:
    if any(value.utcoffset() is None for value in values):
        raise _UnfitError("a time without offset in a type with time zone")
    return [_instant(value) for value in values]


def _instant(value: Any) -> str:
    offset = value.utcoffset()
    if isinstance(value, datetime) and (offset.microseconds or abs(offset) > _WIDEST_OFFSET):
        value = value.astimezone(UTC)
    text: str = value.isoformat()
    return text


def _midnights(values: Sequence[Any]) -> Sequence[str]:
    if any(value.tzinfo is not None or value.time() != time.min for value in values):
        raise _UnfitError("a time of day in a date")
    return [value.date().isoformat() for value in values]


def _intervals(values: Sequence[Any]) -> Sequence[str]:
    return [
        f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds"
        for value in values
    ]


def _time_of_day(values: Sequence[Any]) -> Sequence[str]:
    if any(not timedelta(0) <= value < _DAY for value in values):
        raise _UnfitError("a duration that is no time of day")
    return [(_MIDNIGHT + value).time().isoformat() for value in values]


def _whole(values: Sequence[Any]) -> Sequence[str]:
    if any(value != int(value) for value in values):
        raise _UnfitError("a fraction in an integer type")
    return [int.__repr__(int(value)) for value in values]


def _exact_floats(values: Sequence[Any]) -> Sequence[str]:
    if any(float(value) != value for value in values):
        raise _UnfitError("an integer that double precision cannot hold exactly")
    return [float.__repr__(float(value)) for value in values]


def _singles(values: Sequence[Any]) -> Sequence[str]:
    narrow = array("f", values)
    if any(one != other and other == other for one, other in zip(narrow, values, strict=True)):
        raise _UnfitError("a number that real cannot hold exactly")
    return [float.__repr__(float(value)) for value in values]


def _bits(values: Sequence[Any]) -> Sequence[str]:
    if not set(values) <= {0, 1}:
        raise _UnfitError("a number other than 0 and 1 in a boolean")
    return _booleans(values)


def _matching(
    pattern: re.Pattern[str], reason: str, shapes: frozenset[bytes] = frozenset()
) -> Encode:
    """Text that *pattern* matches; the usual *shapes*, digits as zeros, are known without it."""

    def encode(values: Sequence[Any]) -> Sequence[str]:
        whole = "\n".join(values).encode("ascii", "replace")
        seen = whole.translate(_AS_ZEROS).split(b"\n")
        usual = len(seen) == len(values) and shapes.issuperset(seen)
        if usual and not any(part in whole for part in _OVERFLOWS):
            return values
        if not all(map(pattern.fullmatch, values)):
            raise _UnfitError(reason)
        return values

    return encode


def _scaled(scale: int, convert: Callable[[Any], Decimal]) -> Encode:
    """Numbers with at most *scale* places behind the point, zeros at the end aside."""
    too_long = re.compile(rf"\.\d{{{scale + 1}}}|[eEnN]")

    def encode(values: Sequence[Any]) -> Sequence[str]:
        texts = list(map(str, values))
        if too_long.search(" ".join(texts)) is None:
            return texts
        decimals = [convert(value) for value in values]
        if any(value.is_finite() and _places(value) > scale for value in decimals):
            raise _UnfitError(f"more than {scale} places behind the point")
        return _decimals(decimals)

    return encode


def _places(value: Decimal) -> int:
    _, digits, exponent = value.as_tuple()
    places = -int(exponent)
    for digit in reversed(digits):
        if places <= 0 or digit:
            break
        places -= 1
    return places


def _from_float(value: float) -> Decimal:
    return Decimal(repr(value)) if math.isfinite(value) else Decimal(value)


#: What PostgreSQL would take for the next day or minute.
_OVERFLOWS = (b" 24:", b"T24:", b":60")
_AS_ZEROS = bytes(48 if chr(code).isdigit() and code < 58 else code for code in range(256))
_CLOCKS = [b"00:00", b"00:00:00", *(b"00:00:00." + b"0" * places for places in range(1, 7))]
_DAYS = frozenset([b"0000-00-00"])
_MOMENTS = frozenset(b"0000-00-00" + gap + clock for gap, clock in product((b" ", b"T"), _CLOCKS))
_INSTANTS = frozenset(
    moment + offset for moment, offset in product(_MOMENTS, (b"Z", b"+00", b"+00:00", b"-00:00"))
)

# -- one table per PostgreSQL type --------------------------------------------------------------------

_TEXT: Mapping[type, Encode] = {
    str: escaped,
    int: _integers,
    float: _floats,
    Decimal: _decimals,
    bool: _booleans,
    datetime: _iso,
    date: _iso,
    time: _iso,
    UUID: _uuids,
    dict: _json,
    list: _json,
}
_JSON: Mapping[type, Encode] = {
    str: escaped,
    dict: _json,
    list: _json,
    int: _json,
    float: _json,
    bool: _json,
}
_INTEGER: Mapping[type, Encode] = {int: _integers, float: _whole, Decimal: _whole}
_RULES: Mapping[str, Mapping[type, Encode]] = {
    "smallint": _INTEGER,
    "integer": _INTEGER,
    "bigint": _INTEGER,
    "double precision": {float: _floats, int: _exact_floats},
    "real": {float: _singles, int: _singles},
    "boolean": {bool: _booleans, int: _bits},
    "bytea": {bytes: _binary, bytearray: _binary, memoryview: _binary},
    "date": {
        datetime: _midnights,
        date: _iso,
        str: _matching(_DATE, "text that is no date of the form YYYY-MM-DD", _DAYS),
    },
    "timestamp without time zone": {
        datetime: _naive,
        date: _iso,
        str: _matching(
            _NAIVE,
            "text that is no time of the form YYYY-MM-DD HH:MM:SS[.ffffff]",
            _MOMENTS | _DAYS,
        ),
    },
    "timestamp with time zone": {
        datetime: _aware,
        str: _matching(
            _AWARE, "text that is no time of the form YYYY-MM-DD HH:MM:SS[.ffffff]+HH:MM", _INSTANTS
        ),
    },
    "time without time zone": {
        time: _naive,
        timedelta: _time_of_day,
        str: _matching(_TIME, "text that is no time of the form HH:MM:SS[.ffffff]"),
    },
    "time with time zone": {time: _aware},
    "interval": {timedelta: _intervals},
    "uuid": {UUID: _uuids, str: escaped},
    "json": _JSON,
    "jsonb": _JSON,
    "text": _TEXT,
    "character varying": _TEXT,
    "character": _TEXT,
}


def _rules(type_: str) -> Mapping[type, Encode]:
    base, args = base_of(type_)
    if base == "numeric":
        if not args:
            return {Decimal: _decimals, int: _integers, float: _floats}
        scale = ([*args, 0])[1]
        return {
            Decimal: _scaled(scale, lambda value: value),
            int: _integers,
            float: _scaled(scale, _from_float),
        }
    # Other types are read from text by their own input function, which is exact or refuses.
    return _RULES.get(base, {str: escaped})
