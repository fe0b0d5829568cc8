"""Types that can order a stream, and how their values compare in SQL."""

from __future__ import annotations

from enum import Enum, auto

from psycopg import sql

from airflow_etl_provider.core.errors import ConfigurationError


class CursorKind(Enum):
    """What bounds a cursor's values: a clock, a counter, the time inside a UUID, or only their order."""

    TIME = auto()
    INTEGER = auto()
    UUID = auto()
    ORDER = auto()


_LEAST_INTEGER, _MOST_INTEGER = str(-(2**63)), str(2**63 - 1)
_LEAST_UUID, _MOST_UUID = (
    f"{'0' * 8}-0000-0000-0000-{'0' * 12}",
    f"{'f' * 8}-ffff-ffff-ffff-{'f' * 12}",
)

#: Kind, SQL name, the lowest value, which stands for an unbounded start in the coverage, and the highest,
#: if there is one. Casts use only these names, so that no type's text ever enters a statement.
_TYPES: dict[str, tuple[CursorKind, sql.SQL, str, str | None]] = {
    "timestamp with time zone": (CursorKind.TIME, sql.SQL("timestamptz"), "-infinity", "infinity"),
    "timestamp without time zone": (CursorKind.TIME, sql.SQL("timestamp"), "-infinity", "infinity"),
    "date": (CursorKind.TIME, sql.SQL("date"), "-infinity", "infinity"),
    "smallint": (CursorKind.INTEGER, sql.SQL("bigint"), _LEAST_INTEGER, _MOST_INTEGER),
    "integer": (CursorKind.INTEGER, sql.SQL("bigint"), _LEAST_INTEGER, _MOST_INTEGER),
    "bigint": (CursorKind.INTEGER, sql.SQL("bigint"), _LEAST_INTEGER, _MOST_INTEGER),
    "numeric": (CursorKind.ORDER, sql.SQL("numeric"), "-Infinity", "Infinity"),
    "text": (CursorKind.ORDER, sql.SQL('text COLLATE "C"'), "", None),
    "character varying": (CursorKind.ORDER, sql.SQL('text COLLATE "C"'), "", None),
    "uuid": (CursorKind.UUID, sql.SQL("uuid"), _LEAST_UUID, _MOST_UUID),
}


def plain_type(cursor_type: str) -> str:
    """*cursor_type* without its modifiers: ``timestamp(3) with time zone`` is the zoned timestamp."""
    if cursor_type.startswith("timestamp"):
        zone = "with" if cursor_type.endswith("with time zone") else "without"
        return f"timestamp {zone} time zone"
    return cursor_type.split("(")[0]


def _known(cursor_type: str) -> tuple[CursorKind, sql.SQL, str, str | None]:
    try:
        return _TYPES[plain_type(cursor_type)]
    except KeyError:
        raise ConfigurationError(
            f"a column of type {cursor_type} cannot order a stream",
            remedy=f"name a cursor of type {', '.join(_TYPES)}, or use window='full'",
        ) from None


def cursor_kind(cursor_type: str) -> CursorKind:
    """:raises ConfigurationError: not a type that orders a stream."""
    return _known(cursor_type)[0]


def cursor_type_sql(cursor_type: str) -> sql.SQL:
    """The name to cast to, so that values compare as the stream orders them.

    :raises ConfigurationError: not a type that orders a stream.
    """
    return _known(cursor_type)[1]


def lowest(cursor_type: str) -> str:
    """The text below which no value lies."""
    return _known(cursor_type)[2]


def highest(cursor_type: str) -> str | None:
    """The text above which no value lies; ``None`` for text, which has no such value."""
    return _known(cursor_type)[3]


def casts() -> list[sql.SQL]:
    """The names of all types that order a stream, each once."""
    return list({cast.as_string(None): cast for _, cast, _, _ in _TYPES.values()}.values())
