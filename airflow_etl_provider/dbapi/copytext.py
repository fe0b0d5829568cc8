"""Python values as PostgreSQL's COPY text, column by column.

A value is taken by its Python type and by the PostgreSQL type that the column was said to have. What
that type would round, cut or shift in silence is refused with row and column, never with the value;
what it refuses by itself (a number out of range) is left to the server, which names both too.

A batch is turned column-wise: each Python type has a function that handles a whole column in C, and rows
are put together by two joins. What a column held last is tried first, without a look at every value's type,
where the function itself refuses other types. Where equal values have equal text, the texts of up to a
thousand values are kept, since the columns of facts repeat few.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import product
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


#: What encoding a value that its column cannot hold raises.
_REFUSALS = (ValueError, OverflowError, TypeError, ArithmeticError, RecursionError)


class RowEncoder:
    """Rows of some columns as COPY text; for one thread, since it learns from what it has seen.

    :param columns: name and PostgreSQL type of each column; further values of a row are left out.
    :param remarks: send what a column cannot hold as its text all the same, for the target to judge, and end
        each row with a remark where its text does not stand for the value, else with NULL.
    """

    def __init__(self, columns: Sequence[tuple[str, str]], *, remarks: bool = False) -> None:
        self._columns = tuple((name, type_, _Column(type_)) for name, type_ in columns)
        self._remarks = remarks

    def encode(self, rows: Sequence[Sequence[Any]], first: int) -> bytes:
        """*rows* as COPY text, each ended by a line feed.

        :param first: the number of the first row, for errors.
        :raises DataError: a value that cannot be stored exactly; names row and column. Not with remarks.
        """
        if self._remarks:
            return self._encode_all(rows)
        try:
            texts = [
                column.texts(values)
                for values, (_, _, column) in zip(
                    zip(*rows, strict=True), self._columns, strict=False
                )
            ]
            lines = ["\t".join(line) for line in zip(*texts, strict=True)]
            return ("\n".join(lines) + "\n").encode()
        except _REFUSALS as error:
            raise self._place(rows, first) or error from None

    def _encode_all(self, rows: Sequence[Sequence[Any]]) -> bytes:
        remarks: dict[int, list[str]] = {}
        texts = [
            _lenient(values, column, name, type_, remarks)
            for values, (name, type_, column) in zip(
                zip(*rows, strict=True), self._columns, strict=False
            )
        ]
        said = [
            escaped(["; ".join(remarks[number])])[0] if number in remarks else NULL
            for number in range(len(rows))
        ]
        lines = ["\t".join(line) for line in zip(*texts, said, strict=True)]
        return ("\n".join(lines) + "\n").encode()

    def _place(self, rows: Sequence[Sequence[Any]], first: int) -> DataError | None:
        """The first value that cannot be encoded."""
        for number, row in enumerate(rows, first):
            for (name, type_, column), value in zip(self._columns, row, strict=False):
                try:
                    "".join(column.anew([value])).encode()
                except _UnfitError as error:
                    reason = str(error)
                except UnicodeEncodeError:
                    reason = "text that is no valid Unicode"
                except _REFUSALS:
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


def _lenient(
    values: Sequence[Any],
    column: _Column,
    name: str,
    type_: str,
    remarks: dict[int, list[str]],
) -> Sequence[str]:
    """The texts of a column; of those that it refuses, whatever stands for them, with a remark if that lies."""
    try:
        texts = column.texts(values)
        "".join(texts).encode()
    except _REFUSALS:
        pass
    else:
        return texts
    found = []
    for number, value in enumerate(values):
        text, remark = _shown(value, column, type_)
        found.append(text)
        if remark is not None:
            remarks.setdefault(number, []).append(f"column {name}: {remark}")
    return found


def _shown(value: Any, column: _Column, type_: str) -> tuple[str, str | None]:
    """The text of one value, and why it does not stand for it."""
    try:
        (text,) = column.anew([value])
        text.encode()
    except _UnfitError as error:
        reason = str(error)
    except UnicodeEncodeError:
        reason = "text that is no valid Unicode"
    except _REFUSALS:
        reason = f"a {type(value).__name__} that {type_} cannot hold"
    else:
        return text, None
    if isinstance(value, bytes | bytearray | memoryview):
        return _binary([value])[0], reason
    # Every text is some bytes, so none of them shows that it was no bytes before.
    judged = base_of(type_)[0] != "bytea"
    try:
        (text,) = _rule(type(value), _TEXT)([value])
        text.encode()
    except _REFUSALS:
        plain = str(value).replace("\0", "\ufffd").encode(errors="replace").decode()
        return escaped([plain])[0], reason
    return text, None if judged else reason


class _Column:
    """One column's values as COPY text."""

    def __init__(self, type_: str) -> None:
        self._rules = _rules(type_)
        self._usual: Encode | None = None
        base, args = base_of(type_)
        repeats = base in _REPEATING or (base == "numeric" and bool(args))
        self._known: dict[Any, str] | None = {} if repeats else None

    def texts(self, values: Sequence[Any]) -> Sequence[str]:
        """:raises _UnfitError, TypeError, ValueError, ArithmeticError: a value that the type cannot hold."""
        if self._known is not None:
            try:
                return list(map(self._known.__getitem__, values))
            except KeyError:
                return self._learned(values, self._known)
            except TypeError:
                # Not everything can be looked up; what it is, the rules know.
                self._known = None
        if self._usual is not None:
            try:
                return self._usual(values)
            except TypeError:
                self._usual = None
        return self.anew(values)

    def anew(self, values: Sequence[Any]) -> Sequence[str]:
        """The same, by the type of every value."""
        kinds = set(map(type, values))
        empty = type(None) in kinds
        kinds.discard(type(None))
        if not kinds:
            return [NULL] * len(values)
        rules = {kind: _rule(kind, self._rules) for kind in kinds}
        encode = next(iter(rules.values()))
        if all(rule is encode for rule in rules.values()):
            if not empty:
                self._usual = encode if encode in _TYPED else None
                return encode(values)
            texts = iter(encode([value for value in values if value is not None]))
            return [NULL if value is None else next(texts) for value in values]
        # Each type at once, then put back in the order of the rows.
        found = {
            kind: iter(rule([value for value in values if type(value) is kind]))
            for kind, rule in rules.items()
        }
        return [NULL if value is None else next(found[type(value)]) for value in values]

    def _learned(self, values: Sequence[Any], known: dict[Any, str]) -> Sequence[str]:
        new = list(set(values).difference(known))
        if len(known) + len(new) > _MOST_KNOWN:
            self._known = None
            return self.texts(values)
        known.update(zip(new, self.anew(new), strict=True))
        return list(map(known.__getitem__, values))


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
        whole = ("\n".join(values) + "\n").encode("ascii", "replace")
        seen = whole.translate(_AS_ZEROS)
        shape, _, _ = seen.partition(b"\n")
        same = shape in shapes and seen == (shape + b"\n") * len(values)
        # PostgreSQL would take these for the next day or minute.
        if same and not (shape[10:] and (shape[10:11] + b"24:" in whole or b":60" in whole)):
            return values
        if not all(map(pattern.fullmatch, values)):
            raise _UnfitError(reason)
        return values

    return encode


def _scaled(scale: int) -> Encode:
    """Numbers with at most *scale* places behind the point, zeros at the end aside."""
    too_long = b"." + b"0" * (scale + 1)

    def encode(values: Sequence[Any]) -> Sequence[str]:
        texts = list(map(str, values))
        seen = " ".join(texts).encode().translate(_AS_SIGNS)
        if too_long not in seen and b"e" not in seen and b"n" not in seen:
            return texts
        decimals = [_decimal(value) for value in values]
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


def _decimal(value: Any) -> Decimal:
    """A number as it is written: the shortest text of a float is what was meant."""
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


_AS_ZEROS = bytes(48 if chr(code).isdigit() and code < 58 else code for code in range(256))
_AS_SIGNS = _AS_ZEROS.translate(bytes.maketrans(b"EN", b"en"))
_CLOCKS = [b"00:00", b"00:00:00", *(b"00:00:00." + b"0" * places for places in range(1, 7))]
_DAYS = frozenset([b"0000-00-00"])
_MOMENTS = frozenset(b"0000-00-00" + gap + clock for gap, clock in product((b" ", b"T"), _CLOCKS))
_INSTANTS = frozenset(
    moment + offset for moment, offset in product(_MOMENTS, (b"Z", b"+00", b"+00:00", b"-00:00"))
)

#: What refuses values of other types by itself.
_TYPED = frozenset([_integers, _floats, escaped])
#: Types of which equal Python values are stored alike.
_REPEATING = (
    "smallint",
    "integer",
    "bigint",
    "date",
    "timestamp without time zone",
    "timestamp with time zone",
)
_MOST_KNOWN = 1024

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
        encode = _scaled(scale)
        return {Decimal: encode, int: encode, float: encode, bool: _integers}
    # Other types are read from text by their own input function, which is exact or refuses.
    return _RULES.get(base, {str: escaped})
