"""Figures of other databases, held against those of the batch that was read from them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_etl_provider.core.columns import Selected
from airflow_etl_provider.core.errors import CatalogError, ConfigurationError
from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.ports import Figure, Measured, Statistic
from airflow_etl_provider.core.request import NullCursor, WindowMode
from airflow_etl_provider.core.window import FULL, Window
from airflow_etl_provider.dbapi.generic import Generic
from airflow_etl_provider.dbapi.source import DbApiSource
from airflow_etl_provider.dbapi.sqlite import Sqlite
from airflow_etl_provider.dbapi.statements import Dialect
from airflow_etl_provider.postgres.stream_checks import StreamFacts
from tests.conftest import Database
from tests.integration.dbapi.driving import NOW, DbApiPipeline, into

FIGURES = (
    Figure(Statistic.SUM, "id"),
    Figure(Statistic.SUM, "price"),
    Figure(Statistic.MIN, "at"),
    Figure(Statistic.MAX, "at"),
    Figure(Statistic.MAX, "day"),
)
JANUARY = {"low": datetime(2024, 1, 1, tzinfo=UTC), "high": datetime(2024, 2, 1, tzinfo=UTC)}
TARGET = "id bigint PRIMARY KEY, at timestamp, day date, price numeric(10,2)"
ROWS = [
    (1, "2024-01-01 00:00:00.5", "2024-01-01", "0.10"),
    (2, "2024-01-31 23:59:59", "2024-01-31", "0.20"),
    (3, "2024-02-01 00:00:00", "2024-02-01", "100"),
    (4, None, None, None),
]


def both(pipe: DbApiPipeline, batch: Manifest) -> tuple[Measured, Measured]:
    assert pipe.reads is not None
    facts = StreamFacts(pipe.warehouse.endpoint(), batch)
    source = pipe.reads.measure(
        batch.window,
        cursor=None if batch.window.is_full else pipe.cursor,
        columns=[Selected(name, name) for name in ("id", "at", "day", "price")],
        figures=FIGURES,
        checksum=(),
    )
    return facts.measured(FIGURES, ()), facts.as_batch(FIGURES, source)


@pytest.fixture
def shelf(tmp_path: Path) -> Callable[[], sqlite3.Connection]:
    """A SQLite database with :data:`ROWS`."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(tmp_path / "shop.db")

    connection = connect()
    connection.execute("CREATE TABLE t (id INTEGER, at DATETIME, day DATE, price DECIMAL(10,2))")
    connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", ROWS)
    connection.commit()
    connection.close()
    return connect


def sqlite(connect: Callable[[], sqlite3.Connection], **more: Any) -> DbApiSource:
    given = {"table": "t", "query": None, **more}
    return DbApiSource(connect, Sqlite(), label="connection shop", **given)


def test_sqlite_says_what_the_batch_says(
    warehouse18: Database, shelf: Callable[[], sqlite3.Connection]
) -> None:
    """Of the rows of the window; its decimals are floating point, and it says so."""
    pipe = into(
        warehouse18, sqlite(shelf), TARGET, cursor="at", mode=WindowMode.INTERVAL, settle=NOW,
        keys=("id",), options={"null_cursor": NullCursor.INCLUDE},
    )  # fmt: skip
    batch = pipe.extract(JANUARY["low"], JANUARY["high"], run_type="backfill")
    ours, theirs = both(pipe, batch)
    assert (ours.rows, theirs.rows) == (2, 2)
    assert ours.figures[0] == theirs.figures[0] == "3"
    assert ours.figures[2:] == theirs.figures[2:]
    assert ours.figures[1] == "0.30"
    assert theirs.inexact == {1}
    assert float(theirs.figures[1] or 0) == pytest.approx(0.3)


def test_cursors_with_a_t_between_date_and_time_are_found(
    warehouse18: Database, shelf: Callable[[], sqlite3.Connection]
) -> None:
    """Text is compared as text: the bounds have the form of the rows."""
    connection = shelf()
    connection.execute("UPDATE t SET at = replace(at, ' ', 'T')")
    connection.commit()
    connection.close()
    window = Window("2024-01-01 00:00:00", "2024-02-01 00:00:00", "timestamp without time zone")
    found = sqlite(shelf).measure(
        window, cursor="at", columns=[Selected("at", "at")], figures=FIGURES[2:4], checksum=()
    )
    assert found == Measured(2, ("2024-01-01T00:00:00.5", "2024-01-31T23:59:59"))


def test_a_query_is_measured_with_its_bounds(shelf: Callable[[], sqlite3.Connection]) -> None:
    """As it was read: the exact window around it."""
    query = "SELECT id, at FROM t WHERE at >= :low AND at <= :high AND id > 1 -- late"
    window = Window("2024-01-01 00:00:00", "2024-02-01 00:00:00", "timestamp without time zone")
    found = sqlite(shelf, table=None, query=query).measure(
        window,
        cursor="at",
        columns=[Selected("number", "id")],
        figures=[Figure(Statistic.SUM, "number")],
        checksum=(),
    )
    assert found == Measured(1, ("2",))


def test_any_other_database_is_asked_in_plain_sql(shelf: Callable[[], sqlite3.Connection]) -> None:
    """Through a driver that is known for nothing but DB-API."""
    source = DbApiSource(
        shelf, Generic(Dialect(), "other://host"), "t", None, label="connection other"
    )
    found = source.measure(
        Window("1", "3", "bigint"),
        cursor="id",
        columns=[Selected("id", "id"), Selected("price", "price")],
        figures=FIGURES[:2],
        checksum=(),
    )
    assert (found.rows, found.figures[0]) == (2, "3")
    everything = source.measure(FULL, cursor=None, columns=(), figures=(), checksum=())
    assert everything == Measured(4)


def test_what_it_cannot_say_is_refused(shelf: Callable[[], sqlite3.Connection]) -> None:
    """A checksum, and a column that is not there."""
    source = sqlite(shelf)
    with pytest.raises(ConfigurationError, match="connection shop is no PostgreSQL source"):
        source.measure(FULL, cursor=None, columns=(), figures=(), checksum=["id"])
    with pytest.raises(CatalogError, match=r"t has no column 'idd'.*did you mean 'id'"):
        source.measure(
            FULL,
            cursor=None,
            columns=[Selected("id", "idd")],
            figures=[Figure(Statistic.SUM, "id")],
            checksum=(),
        )


def test_mariadb_says_what_the_batch_says(
    warehouse18: Database, maria: Any, shop: Callable[..., DbApiSource]
) -> None:
    """Instants in UTC, decimals exact, and a zero date in no window."""
    maria.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, at timestamp(6) NULL, day date, price decimal(10,2))",
        "INSERT INTO t VALUES (1, '2024-01-01 00:00:00.5', '2024-01-01', 0.10),"
        " (2, '2024-01-31 23:59:59', '2024-01-31', 0.20), (3, '2024-02-01 00:00:00', NULL, 100)",
    )
    pipe = into(
        warehouse18,
        shop(),
        "id bigint PRIMARY KEY, at timestamptz, day date, price numeric(10,2)",
        cursor="at",
        mode=WindowMode.INTERVAL,
        settle=NOW,
    )
    batch = pipe.extract(JANUARY["low"], JANUARY["high"])
    ours, theirs = both(pipe, batch)
    assert ours == theirs
    assert (ours.rows, ours.figures[1]) == (2, "0.30")
