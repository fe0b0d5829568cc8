"""Names: tables, streams, partitions and staging tables."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from airflow_etl_provider.core.errors import ConfigurationError

MAX_IDENTIFIER_BYTES = 63
_STREAM = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*")
#: Words that no column and no role is called without quotes, up to PostgreSQL 18.
_RESERVED = re.compile(
    r"all|analyse|analyze|and|any|array|as|asc|asymmetric|authorization|binary|both|case|"
    r"cast|check|collate|collation|column|concurrently|constraint|create|cross|current_catalog|"
    r"current_date|current_role|current_schema|current_time|current_timestamp|current_user|default|"
    r"deferrable|desc|distinct|do|else|end|except|false|fetch|for|foreign|freeze|from|full|"
    r"grant|group|having|ilike|in|initially|inner|intersect|into|is|isnull|join|lateral|"
    r"leading|left|like|limit|localtime|localtimestamp|natural|not|notnull|null|offset|on|"
    r"only|or|order|outer|overlaps|placing|primary|references|returning|right|select|"
    r"session_user|similar|some|symmetric|system_user|table|tablesample|then|to|trailing|true|"
    r"union|unique|user|using|variadic|verbose|when|where|window|with"
)
_PART = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^".\s][^".]*))\s*')


def check_identifier(name: str) -> str:
    """Return *name* if PostgreSQL can hold it unchanged.

    :raises ConfigurationError: empty, with a NUL byte, or longer than 63 bytes of UTF-8, which the
        server would cut in silence.
    """
    if not name or "\x00" in name:
        raise ConfigurationError(f"not a PostgreSQL identifier: {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ConfigurationError(f"not a PostgreSQL identifier: {name!r}") from None
    if size > MAX_IDENTIFIER_BYTES:
        raise ConfigurationError(
            f"identifier of {size} bytes is longer than PostgreSQL's {MAX_IDENTIFIER_BYTES}: {name!r}",
            remedy="use the name as the server shows it (it cuts longer names when they are created)",
        )
    return name


def quoted(name: str) -> str:
    """*name* as a person would write it in SQL: quoted only where it must be."""
    return f'"{name}"' if _RESERVED.fullmatch(name) else _spelled(name)


def _spelled(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """A table of one database, schema always known."""

    schema: str
    name: str

    def __post_init__(self) -> None:
        check_identifier(self.schema)
        check_identifier(self.name)

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Read ``schema.table``; parts with dots, capitals or spaces are double-quoted as in SQL.

        Unquoted parts are taken as they are written, never folded, since users copy names from
        where they see them. A table without a schema is in ``public``.

        :raises ConfigurationError: not one or two parts, or a part PostgreSQL cannot hold.
        """
        parts: list[str] = []
        position = 0
        while True:
            match = _PART.match(text, position)
            if match is None:
                raise ConfigurationError(
                    f"not a table name: {text!r}",
                    remedy='write it as schema.table, with double quotes around odd parts: "My Schema"."a.b"',
                )
            parts.append(match[1].replace('""', '"') if match[1] is not None else match[2].strip())
            position = match.end()
            if position == len(text):
                break
            if text[position] != ".":
                raise ConfigurationError(
                    f"not a table name: {text!r}", remedy="write it as schema.table"
                )
            position += 1
        if len(parts) > 2:
            raise ConfigurationError(
                f"{text!r} has {len(parts)} parts; a table is named schema.table",
                remedy="the database is chosen by the connection",
            )
        return cls(parts[0] if len(parts) == 2 else "public", parts[-1])

    def __str__(self) -> str:
        # The ledger knows tables by this; after a dot any word may stand.
        return f"{_spelled(self.schema)}.{_spelled(self.name)}"


def check_stream(stream: str) -> str:
    """Return the stream id if it can name a stream everywhere: Variable keys, URLs, staging tables.

    :raises ConfigurationError: with the rule that it breaks.
    """
    if not isinstance(stream, str) or _STREAM.fullmatch(stream) is None:
        raise ConfigurationError(
            f"stream id {stream!r} does not match [a-z0-9][a-z0-9_.-]{{0,99}}",
            remedy="choose a short lower-case name that will never change, such as 'flights'",
        )
    return stream


def shortened(name: str, *, room: int = 0) -> str:
    """*name* cut to what an identifier can hold less *room* bytes, told apart by a hash where cut."""
    limit = MAX_IDENTIFIER_BYTES - room
    raw = name.encode()
    if len(raw) <= limit:
        return name
    digest = hashlib.blake2s(raw, digest_size=4).hexdigest()
    return raw[: limit - 9].decode(errors="ignore") + "_" + digest


def staging_name(stream: str, load_id: str, try_number: int, *, made_by: str = "") -> str:
    """``<slug of the stream>_<12 hex of the load id>_<try>``: unique per try, never needs quotes.

    The last digits of the UUIDv7 are used: its first twelve are only its millisecond.

    :param made_by: a letter before the try, for the tables of another task than extract.
    """
    slug = re.sub(r"[^a-z0-9]+", "_", stream.lower()).strip("_")[:40] or "s"
    if slug[0].isdigit():
        slug = f"s_{slug}"
    return f"{slug}_{short_id(load_id)}_{made_by}{try_number}"


def short_id(load_id: str) -> str:
    """The twelve hexadecimal digits that stand for a load in names."""
    return load_id.replace("-", "")[-12:].lower()
