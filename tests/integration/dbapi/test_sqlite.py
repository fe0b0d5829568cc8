"""SQLite into PostgreSQL: declared types are wishes, every value is looked at."""

import sqlite3
import threading
import tracemalloc
from datetime import UTC, datetime, timedelta

import pytest

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ConnectionLost,
    DataError,
    NotSettled,
    Stopped,
    TransientError,
)
from airflow_etl_provider.core.request import StageAs
from airflow_etl_provider.core.settle import CursorOrigin, SettleOptions
from airflow_etl_provider.core.window import FULL, Window
from airflow_etl_provider.dbapi.source import DbApiSource
from airflow_etl_provider.dbapi.sqlite import Sqlite
from airflow_etl_provider.dbapi.worker import cancel_open_sessions
from tests.builders import in_background
from tests.integration.dbapi.driving import into, staged
from tests.unit.dbapi.reading import Null, sending, settled

JANUARY = {"low": datetime(2024, 1, 1, tzinfo=UTC), "high": datetime(2024, 2, 1, tzinfo=UTC)}


class Shop:
    """A database file, and sources that read it."""

    def __init__(self, path):
        self.path = path

    def run(self, *statements, values=()):
        connection = sqlite3.connect(self.path)
        for statement in statements:
            connection.execute(statement, values)
        connection.commit()
        connection.close()

    def source(self, table="t", query=None, **more):
        return DbApiSource(
            lambda: sqlite3.connect(self.path),
            Sqlite(),
            None if query else table,
            query,
            label="connection shop",
            **more,
        )


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path / "shop.db")


TYPES = {
    "INTEGER": ("bigint", [-(2**63), 2**63 - 1, None]),
    "UNSIGNED BIG INT": ("bigint", [7]),
    "REAL": ("double precision", [0.1, -1.5, 1e308, 5e-324, float("inf")]),
    "TEXT": ("text", ["", "\\N", "tab\tline\nback\\slash\r", "%s ? 💣", None]),
    "VARCHAR(20)": ("character varying(20)", ["Größe"]),
    "BLOB": ("bytea", [b"", b"\\x00\t\n", bytes(range(256)), None]),
    "DECIMAL(10,2)": ("numeric(10,2)", [1.1, 5, 12345678.25]),
    "NUMERIC": ("numeric", [1.5, 2]),
    "BOOLEAN": ("boolean", [True, False, None]),
    "DATE": ("date", ["2024-02-29", None]),
    "DATETIME": ("timestamp without time zone", ["2024-01-01 10:00:00.123456", "2024-01-01T10:00:00"]),
    "TIMESTAMPTZ": ("timestamp with time zone", ["2024-01-01 10:00:00.5+05:30", "2024-01-01T10:00:00Z"]),
    "TIME": ("time without time zone", ["10:00:00.000001"]),
    "JSON": ("json", ['{"a":  "\\t"}']),
    "UUID": ("uuid", ["123e4567-e89b-12d3-a456-426655440000"]),
    "STRING": ("text", ["x", 1, 1.5]),
    "": ("text", ["x", 1, None]),
}  # fmt: skip


@pytest.mark.parametrize("declared", TYPES)
def test_every_declaration_has_a_type_that_holds_its_values(shop, warehouse18, declared):
    type_, values = TYPES[declared]
    shop.run(f"CREATE TABLE t (n INTEGER PRIMARY KEY, v {declared})")
    for number, value in enumerate(values):
        shop.run("INSERT INTO t VALUES (?, ?)", values=(number, value))
    source = shop.source()
    n, v = source.describe().columns
    assert (n.type, n.not_null, v.type) == ("bigint", True, type_)
    pipe = into(warehouse18, source, f"n bigint, v {type_}")
    warehouse18.run(f"CREATE TABLE expected (n bigint, v {type_})")
    for number, value in enumerate(values):
        if declared in ("STRING", "") and value is not None:
            value = str(value)
        warehouse18.run(f"INSERT INTO expected VALUES (%s, %s::{type_})", (number, value))
    assert staged(pipe, "n, v::text") == warehouse18.run(
        "SELECT n, v::text FROM expected ORDER BY n"
    )


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("INTEGER", "secret"),
        ("BOOLEAN", 2),
        ("DATE", 20240101),
        ("TEXT", b"secret"),
        ("REAL", "secret"),
        ("DECIMAL(4,1)", 1.25),
    ],
)
def test_a_value_that_its_declaration_does_not_mean_is_refused(shop, warehouse18, declared, value):
    shop.run(
        f"CREATE TABLE t (n INTEGER PRIMARY KEY, v {declared})", "INSERT INTO t VALUES (1, NULL)"
    )
    shop.run("INSERT INTO t VALUES (2, ?)", values=(value,))
    source = shop.source()
    type_ = source.describe().columns[1].type
    pipe = into(warehouse18, source, f"n bigint, v {type_}")
    with pytest.raises(DataError, match="row 2 of the source, column v") as caught:
        pipe.extract()
    assert "secret" not in str(caught.value)
    assert pipe.left_in_staging() == set()


def test_a_target_that_refuses_a_row_ends_a_source_without_end(shop, warehouse18):
    """The error is the target's, not that the source was stopped for it."""
    shop.run("CREATE TABLE t (n)")
    endless = "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s) SELECT n FROM s"
    pipe = into(warehouse18, shop.source(query=endless, types={"n": "smallint"}), "n smallint")
    with pytest.raises(DataError, match=r"row 32768 of the batch, column n"):
        pipe.extract()
    assert pipe.left_in_staging() == set()


def test_a_users_word_beats_the_declaration(shop, warehouse18):
    shop.run("CREATE TABLE t (n INTEGER, v)", "INSERT INTO t VALUES (1, '2024-01-01')")
    reads = shop.source(types={"n": "integer", "v": "date"})
    assert staged(into(warehouse18, reads, "n integer, v date"), "n, v::text") == [
        (1, "2024-01-01")
    ]
    with pytest.raises(CatalogError, match="types names 'w'"):
        shop.source(types={"w": "date"}).describe()


def test_hostile_names(shop, warehouse18):
    names = ['a"b', "100%", "%s", "?", ":low", "a.b", "sel ect", "ünï 💣", "x;--", "`", "[a]", "\\"]
    columns = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
    values = ", ".join(map(str, range(len(names))))
    shop.run(
        f'CREATE TABLE "we""ird ?" ({columns.replace(",", " INTEGER,")} INTEGER, ts DATETIME)',
        f'INSERT INTO "we""ird ?" VALUES ({values}, \'2024-01-05 00:00:00\')',
    )
    target = ", ".join('"' + name.replace('"', '""') + '" bigint' for name in names)
    pipe = into(warehouse18, shop.source('"we""ird ?"'), f"{target}, ts timestamp", cursor="ts")
    (row,) = staged(pipe, **JANUARY)
    assert row[:-1] == tuple(range(len(names)))


@pytest.mark.parametrize("gap", [" ", "T"])
def test_a_window_is_half_open_whichever_form_the_times_have(shop, warehouse18, gap):
    shop.run("CREATE TABLE t (n INTEGER, ts DATETIME)")
    times = [
        "2023-12-31 23:59:59.999999",
        "2024-01-01 00:00:00",
        "2024-01-01 00:00:00.000",
        "2024-01-31 23:59:59.9",
        "2024-02-01 00:00:00",
    ]
    for number, moment in enumerate(times):
        shop.run("INSERT INTO t VALUES (?, ?)", values=(number, moment.replace(" ", gap)))
    pipe = into(warehouse18, shop.source(), "n bigint, ts timestamp", cursor="ts")
    assert staged(pipe, "n", **JANUARY) == [(1,), (2,), (3,)]
    empty = {"low": datetime(2022, 1, 1, tzinfo=UTC), "high": datetime(2022, 2, 1, tzinfo=UTC)}
    assert staged(pipe, "n", **empty) == []


def test_instants_have_one_offset(shop, warehouse18):
    shop.run("CREATE TABLE t (n INTEGER, ts TIMESTAMPTZ)")
    for number, moment in enumerate(
        ["2024-01-01 00:00:00+00:00", "2024-01-31 23:59:59.5+00:00", "2024-02-01 00:00:00+00:00"]
    ):
        shop.run("INSERT INTO t VALUES (?, ?)", values=(number, moment))
    pipe = into(warehouse18, shop.source(), "n bigint, ts timestamptz", cursor="ts")
    assert staged(pipe, "n", **JANUARY) == [(0,), (1,)]
    shop.run("INSERT INTO t VALUES (9, '2024-01-05 00:00:00+02:00')")
    with pytest.raises(DataError, match="one form"):
        pipe.extract(*JANUARY.values())


@pytest.mark.parametrize("odd", ["2024-01-05", 1704412800, "2024-01-05T00:00:00"])
def test_a_cursor_of_mixed_forms_is_refused(shop, warehouse18, odd):
    """Text orders as text, so a row of another form would be in no window or in a wrong one."""
    shop.run(
        "CREATE TABLE t (n INTEGER, ts DATETIME)", "INSERT INTO t VALUES (1, '2024-01-02 00:00:00')"
    )
    shop.run("INSERT INTO t VALUES (2, ?)", values=(odd,))
    pipe = into(warehouse18, shop.source(), "n bigint, ts timestamp", cursor="ts")
    with pytest.raises(DataError, match="does not have one form"):
        pipe.extract(*JANUARY.values())


def test_null_cursors_are_counted(shop, warehouse18):
    shop.run("CREATE TABLE t (n INTEGER, ts DATETIME)", "INSERT INTO t VALUES (1, NULL), (2, NULL)")
    pipe = into(warehouse18, shop.source(), "n bigint, ts timestamp", cursor="ts")
    with pytest.raises(DataError, match=r"2 rows .* have no value in the cursor"):
        pipe.extract(*JANUARY.values())


@pytest.mark.parametrize(
    "query",
    [
        "SELECT n, ts, '?; :low' AS k FROM t -- all of it",
        "SELECT n, ts, '?; :low' AS k FROM t WHERE ts >= :low AND ts < :high;",
    ],
)
def test_a_query_keeps_the_declarations_of_what_it_selects(shop, warehouse18, query):
    shop.run(
        "CREATE TABLE t (n INTEGER, ts DATETIME)",
        "INSERT INTO t VALUES (1, '2024-01-02 00:00:00'), (2, '2024-02-02 00:00:00')",
    )
    reads = shop.source(query=query)
    assert [column.type for column in reads.describe().columns] == [
        "bigint",
        "timestamp without time zone",
        "text",
    ]
    pipe = into(warehouse18, reads, "n bigint, ts timestamp, k text", cursor="ts")
    assert staged(pipe, "n, k", **JANUARY) == [(1, "?; :low")]


def test_integers_make_windows_and_settle(shop):
    shop.run("CREATE TABLE t (n INTEGER)", "INSERT INTO t VALUES (1), (2), (3)")
    source = shop.source()
    now = SettleOptions(delay=timedelta(0))
    assert settled(source, "n", None, now).high == "4"
    assert settled(source, "n", "3", now).high == "3"
    with pytest.raises(ConfigurationError, match="rows are still to come"):
        settled(source, "n", "5", now)
    with sending(source, ["n"], Window("1", "3", "bigint"), "n") as sender:
        assert sender.send(Null()) == 2
    with sending(source, ["n"], Window("1", "3", "bigint", "(]"), "n") as sender:
        assert sender.send(Null()) == 2


def test_an_integer_bound_waits_for_the_delay_after_it_was_seen(shop):
    """What was drawn below the greatest value may still be uncommitted when that is seen."""
    shop.run("CREATE TABLE t (n INTEGER)", "INSERT INTO t VALUES (1)")
    stop, pauses = threading.Event(), []

    def pause(seconds):
        pauses.append(seconds)
        stop.set()

    source = shop.source(pause=pause)
    with pytest.raises(Stopped):
        settled(source, "n", None, SettleOptions(delay=timedelta(minutes=5)), stop=stop)
    assert pauses == [0.2]
    with pytest.raises(NotSettled, match="settle delay of 10 min"):
        settled(
            source, "n", None,
            SettleOptions(delay=timedelta(minutes=10), timeout=timedelta(minutes=9)), stop=stop,
        )  # fmt: skip


def test_a_time_bound_is_the_clock_less_the_delay(shop):
    shop.run("CREATE TABLE t (n INTEGER, ts DATETIME, z TIMESTAMPTZ, d DATE, v TEXT)")
    source, stop = shop.source(), threading.Event()
    options = SettleOptions(delay=timedelta(minutes=5), timeout=timedelta(minutes=1))
    started = datetime.now(UTC)
    found = settled(source, "z", None, options, stop=stop)
    assert abs(datetime.fromisoformat(found.high) + options.delay - started) < timedelta(minutes=1)
    past = (started - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S")
    assert settled(source, "ts", past, options, stop=stop).high == past
    soon = (started - timedelta(minutes=1)).strftime("%Y-%m-%d %H:%M:%S")
    with pytest.raises(NotSettled, match="settle delay of 5 min"):
        settled(source, "ts", soon, options, stop=stop)
    with pytest.raises(ConfigurationError, match="has not reached"):
        settled(source, "ts", "2999-01-01 00:00:00", options, stop=stop)
    with pytest.raises(ConfigurationError, match="no settled bound"):
        settled(source, "v", None, options, stop=stop)
    with pytest.raises(CatalogError, match="no column 'tz'"):
        settled(source, "tz", None, options, stop=stop)
    with pytest.raises(ConfigurationError, match="proves nothing"):
        settled(source, "ts", None, SettleOptions(origin=CursorOrigin.TRANSACTION))


def test_one_snapshot_for_all_that_is_read(shop):
    shop.run("PRAGMA journal_mode = WAL", "CREATE TABLE t (n INTEGER)", "INSERT INTO t VALUES (1)")
    with sending(shop.source(), ["n"]) as sender:
        shop.run("INSERT INTO t VALUES (2)")
        assert sender.send(Null()) == 1


def test_cancel_ends_a_statement_that_gives_no_rows(shop):
    """Also while the source is still being opened."""
    shop.run("CREATE TABLE t (n)")
    busy = threading.Event()

    def connect():
        connection = sqlite3.connect(shop.path)
        connection.set_progress_handler(busy.set, 100_000)
        return connection

    endless = (
        "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s) SELECT max(n) AS n FROM s"
    )
    source = DbApiSource(connect, Sqlite(), None, endless, "shop")

    def work():
        with sending(source, ["n"]):
            pass

    with in_background(work) as opening:
        assert busy.wait(30)
        cancel_open_sessions()
        with pytest.raises(Stopped):
            opening.result(30)


def test_cancel_while_rows_flow(shop):
    shop.run("CREATE TABLE t (n)")
    endless = "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s) SELECT n FROM s"
    flowing = threading.Event()

    class Sink:
        def write(self, data):
            flowing.set()

    with (
        sending(shop.source(query=endless), ["n"]) as sender,
        in_background(lambda: sender.send(Sink())) as flow,
    ):
        assert flowing.wait(30)
        sender.cancel()
        with pytest.raises(Stopped):
            flow.result(30)


def test_every_open_session_can_be_told_at_once(shop):
    """Also one that is not sending yet."""
    shop.run("CREATE TABLE t (n)")
    with sending(shop.source(), ["n"]) as sender:
        cancel_open_sessions()
        cancel_open_sessions()
        with pytest.raises(Stopped):
            sender.send(Null())


def test_errors_are_named_without_values(shop, tmp_path):
    shop.run("CREATE TABLE orders (n INTEGER, v TEXT)")
    with pytest.raises(CatalogError, match=r"no table 'order'.*did you mean 'orders'"):
        shop.source("order").describe()
    with pytest.raises(CatalogError, match="no such table: nowhere"):
        shop.source(query="SELECT * FROM nowhere").describe()
    with (
        pytest.raises(CatalogError, match="no column 'nn', named in columns; did you mean 'n'"),
        sending(shop.source("orders"), ["nn"]),
    ):
        pass
    with (
        pytest.raises(ConfigurationError, match="no checksum"),
        shop.source("orders").open(FULL, cursor=None, columns=["n"], binary=False, checksum=True),
    ):
        pass
    with pytest.raises(ConfigurationError, match="either a table or a query"):
        DbApiSource(lambda: None, Sqlite(), None, None, "x")
    shop.path = tmp_path
    with pytest.raises(ConnectionLost, match="cannot be read"):
        shop.source("orders").describe()
    shop.path = tmp_path / "text"
    shop.path.write_text("no database" * 1000)
    with pytest.raises(CatalogError, match="no SQLite database"):
        shop.source("orders").describe()


def test_text_that_is_no_utf8_is_refused_without_showing_it(shop, warehouse18):
    shop.run("CREATE TABLE t (v TEXT)", "INSERT INTO t VALUES (CAST(X'FF736563726574' AS TEXT))")
    with pytest.raises(DataError, match="no valid UTF-8") as caught:
        into(warehouse18, shop.source(), "v text").extract()
    assert "secret" not in str(caught.value)


def test_a_database_that_a_writer_has_locked_is_transient(shop):
    shop.run("CREATE TABLE t (n)")
    writer = sqlite3.connect(shop.path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    source = DbApiSource(lambda: sqlite3.connect(shop.path, timeout=0), Sqlite(), "t", None, "shop")
    with pytest.raises(TransientError, match="locked"):
        source.describe()
    writer.close()


@pytest.mark.parametrize("width", [100, 500_000])
def test_memory_does_not_grow_with_the_rows(shop, width):
    """Twice the rows, the same peak; the width of a row does not matter."""
    rows = 40_000_000 // width // (1 if width > 1000 else 2)
    shop.run(
        "CREATE TABLE t (n INTEGER, v TEXT)",
        f"WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {rows})"
        f" INSERT INTO t SELECT n, printf('%.{width}c', 'x') FROM s",
    )

    def peak(most):
        tracemalloc.start()
        with sending(
            shop.source(), ["n", "v"], Window("0", str(most + 1), "bigint"), "n"
        ) as sender:
            assert sender.send(Null()) == most
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    small, large = peak(rows // 2), peak(rows)
    assert large < small + 2 * 1024 * 1024
    assert large < 16 * 1024 * 1024


def test_a_batch_for_a_transform_has_the_columns_of_the_source(shop, warehouse18):
    """Typed as SQLite declares them, and as the user knows better; the target has one of them."""
    shop.run("CREATE TABLE t (id INTEGER, price DECIMAL(10,2), note VARCHAR(9), odd TEXT)")
    shop.run("INSERT INTO t VALUES (1, 1.5, 'x', '2013-01-01'), (2, NULL, '', NULL)")
    reads = shop.source(types={"odd": "date"})
    pipe = into(warehouse18, reads, "name text, cents bigint", options={"stage_as": StageAs.SOURCE})
    batch = pipe.extract()
    assert [column.type for column in batch.columns] == [
        "bigint",
        "numeric(10,2)",
        "character varying(9)",
        "date",
    ]
    made = pipe.transform(
        batch,
        "SELECT note || id || coalesce(to_char(odd, 'YYYY'), '') AS name, (price * 100)::bigint AS cents FROM batch",
    )
    pipe.publish(pipe.waive(made))
    assert pipe.rows() == [("(2,)",), ("(x12013,150)",)]


def test_a_type_that_is_no_type_is_text(shop, warehouse18):
    """A word of the user's that the warehouse does not know never becomes part of a statement."""
    shop.run("CREATE TABLE t (id INTEGER)")
    reads = shop.source(types={"id": "public.nothing"})
    pipe = into(warehouse18, reads, "id text", options={"stage_as": StageAs.SOURCE})
    pipe.extract()
    (kind,) = warehouse18.run(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
        " WHERE c.relnamespace = 'etl_staging'::regnamespace AND a.attname = 'id'"
    )
    assert kind == ("text",)
