"""MariaDB into PostgreSQL: every type, every driver, and what goes wrong on the way."""

import hashlib
import hmac
import threading
import tracemalloc
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from airflow_etl_provider.core.columns import Selected, Treatment
from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ConnectionLost,
    ContractError,
    DataError,
    Stopped,
)
from airflow_etl_provider.core.settle import CursorOrigin, SettleOptions
from airflow_etl_provider.core.window import FULL, Nulls, Window
from airflow_etl_provider.dbapi.worker import cancel_open_sessions
from tests.builders import in_background, wait_until
from tests.integration.dbapi.driving import into, staged
from tests.unit.dbapi.reading import Null, Sink, opened, sending, settled, text_of

SEQUENCE = "WITH RECURSIVE s AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM s WHERE n < {}) "

#: declaration in MariaDB, type in PostgreSQL, literals in MariaDB with what PostgreSQL then shows.
TYPES = {
    "tinyint": ("smallint", {"-128": "-128", "127": "127", "NULL": None}),
    "tinyint unsigned": ("smallint", {"0": "0", "255": "255"}),
    "tinyint(1)": ("boolean", {"0": "false", "1": "true", "NULL": None}),
    "smallint unsigned": ("integer", {"65535": "65535"}),
    "mediumint": ("integer", {"-8388608": "-8388608", "8388607": "8388607"}),
    "mediumint unsigned": ("integer", {"16777215": "16777215"}),
    "int": ("integer", {"-2147483648": "-2147483648", "2147483647": "2147483647"}),
    "int(8) unsigned zerofill": ("bigint", {"42": "42", "4294967295": "4294967295"}),
    "bigint": ("bigint", {"-9223372036854775808": "-9223372036854775808"}),
    "bigint unsigned": ("numeric(20,0)", {"18446744073709551615": "18446744073709551615"}),
    "decimal(65,30)": (
        "numeric(65,30)",
        {"-" + "9" * 35 + "." + "9" * 30: "-" + "9" * 35 + "." + "9" * 30},
    ),
    "decimal(10,2)": ("numeric(10,2)", {"1.10": "1.10", "-0.01": "-0.01"}),
    "float": ("real", {"0.1": "0.1", "16777217": "1.6777216e+07", "3.4028234e38": "3.4028235e+38"}),
    "double": (
        "double precision",
        {
            "0.1": "0.1",
            "1.7976931348623157e308": "1.7976931348623157e+308",
            "2.2250738585072014e-308": "2.2250738585072014e-308",
            "1e22/3": None,
        },
    ),
    "bit(1)": ("bit(1)", {"b'0'": "0", "b'1'": "1"}),
    "bit(64)": ("bit(64)", {"0xFFFFFFFFFFFFFFFF": "1" * 64, "b'1'": "0" * 63 + "1"}),
    "year": ("smallint", {"1901": "1901", "2155": "2155"}),
    "date": ("date", {"'1000-01-01'": "1000-01-01", "'9999-12-31'": "9999-12-31"}),
    "datetime": ("timestamp without time zone", {"'2024-02-29 23:59:59'": "2024-02-29 23:59:59"}),
    "datetime(6)": (
        "timestamp without time zone",
        {"'9999-12-31 23:59:59.999999'": "9999-12-31 23:59:59.999999"},
    ),
    "timestamp(6) NULL": (
        "timestamp with time zone",
        {"'2024-07-01 12:00:00.000001'": "2024-07-01 12:00:00.000001+00", "NULL": None},
    ),
    "time(6)": (
        "interval",
        {
            "'838:59:59.999999'": "838:59:59.999999",
            "'-838:59:59'": "-838:59:59",
            "'00:00:00.000001'": "00:00:00.000001",
        },
    ),
    "char(5)": ("character varying(5)", {"'ab  '": "ab", "''": ""}),
    "varchar(40)": (
        "character varying(40)",
        {
            "'tab\\tline\\nreturn\\rback\\\\slash'": "tab\tline\nreturn\rback\\slash",
            "'\\\\N'": "\\N",
            "'\\\\.'": "\\.",
            "'%s %% 😀'": "%s %% 😀",
            "''": "",
        },
    ),
    "varchar(20) CHARACTER SET latin1": ("character varying(20)", {"'Größe £'": "Größe £"}),
    "varchar(20) COLLATE utf8mb4_bin": ("character varying(20)", {"'Éa'": "Éa"}),
    "text": ("text", {"REPEAT('x\\t', 30000)": "x\t" * 30000}),
    "mediumtext": (
        "text",
        {"REPEAT('é\\\\', 300000)": "é\\" * 300000, "NULL": None, "'\\\\N'": "\\N"},
    ),
    "longtext CHARACTER SET latin1": ("text", {"'£\\n'": "£\n"}),
    "json": ("text", {'\'{"a": "\\\\\\\\t"}\'': '{"a": "\\\\t"}'}),
    "binary(3)": ("bytea", {"X'00FF5C'": "\\x00ff5c"}),
    "varbinary(20)": ("bytea", {"X''": "\\x", "X'5C78000A'": "\\x5c78000a", "NULL": None}),
    "blob": ("bytea", {"REPEAT(X'00FF', 30000)": "\\x" + "00ff" * 30000}),
    "longblob": (
        "bytea",
        {"REPEAT(X'09', 3000000)": "\\x" + "09" * 3000000, "NULL": None, "X''": "\\x"},
    ),
    "enum('a\\tb','c')": ("text", {"'a\\tb'": "a\tb", "'c'": "c"}),
    "set('x','y','z')": ("text", {"'x,z'": "x,z", "''": ""}),
    "uuid": (
        "uuid",
        {"'123e4567-e89b-12d3-a456-426655440000'": "123e4567-e89b-12d3-a456-426655440000"},
    ),
    "inet6": ("inet", {"'2001:db8::1'": "2001:db8::1/128"}),
}


@pytest.mark.parametrize("declared", TYPES)
def test_every_type_arrives_as_it_was(maria, shop, warehouse18, declared, driver):
    """The catalog proves a type that holds all values, and boundary values come through unchanged."""
    type_, values = TYPES[declared]
    maria.run(f"CREATE TABLE t (n int PRIMARY KEY, v {declared})")
    for number, literal in enumerate(values):
        maria.run(f"INSERT INTO t VALUES ({number}, {literal})")
    source = shop(driver)
    assert [column.type for column in source.describe().columns] == ["integer", type_]
    pipe = into(warehouse18, source, f"n integer, v {type_}")
    found = [text for _, text in staged(pipe, "n, v::text")]
    for text, expected in zip(found, values.values(), strict=True):
        assert text == expected or expected is None


def test_a_double_keeps_every_digit(maria, shop, warehouse18, driver):
    """What is written out is the shortest text that reads back as the same number."""
    maria.run("CREATE TABLE t (n int PRIMARY KEY, v double, w float)")
    maria.run(f"INSERT INTO t {SEQUENCE.format(900)} SELECT n, EXP(n - 450) / 3, SQRT(n) FROM s")
    pipe = into(warehouse18, shop(driver), "n integer, v double precision, w real")
    wanted = maria.run("SELECT n, v, w + 0.0e0 FROM t ORDER BY n")
    assert staged(pipe, "n, v, w::double precision") == [
        (n, v, pytest.approx(w, rel=1e-7)) for n, v, w in wanted
    ]


def test_declared_types_are_checked_by_the_target(maria, shop, warehouse18):
    """A user's word beats the catalog where every value can be checked."""
    maria.run(
        "CREATE TABLE t (a tinyint(1), b bigint, c time, d binary(16), e char(36), f longtext)",
        "INSERT INTO t VALUES (7, 5, '10:00:00', X'123E4567E89B12D3A456426655440000',"
        " '123e4567-e89b-12d3-a456-426655440000', '[1]')",
    )
    types = {
        "a": "smallint", "b": "integer", "c": "time without time zone",
        "d": "uuid", "e": "uuid", "f": "jsonb",
    }  # fmt: skip
    columns = ", ".join(f"{name} {type_}" for name, type_ in types.items())
    uuid = "123e4567-e89b-12d3-a456-426655440000"
    pipe = into(warehouse18, shop(types=types), columns)
    assert staged(pipe, "a::text, b::text, c::text, d::text, e::text, f::text") == [
        ("7", "5", "10:00:00", uuid, uuid, "[1]")
    ]
    with pytest.raises(CatalogError, match="column b is bigint; it cannot be declared as date"):
        shop(types={"b": "date"}).describe()
    with pytest.raises(CatalogError, match="types names 'aa'"):
        shop(types={"aa": "date"}).describe()


def test_a_boolean_that_is_none_is_refused(maria, shop, warehouse18):
    """tinyint(1) may hold 2; it never becomes true in silence."""
    maria.run("CREATE TABLE t (v tinyint(1))", "INSERT INTO t VALUES (1), (2)")
    pipe = into(warehouse18, shop(), "v boolean")
    with pytest.raises(DataError, match=r"row 2 .*column v"):
        pipe.extract()


@pytest.mark.parametrize(
    ("kind", "zero"),
    [
        ("timestamp", "0000-00-00"),
        *product(["date", "datetime(6)"], ["0000-00-00", "2024-00-10", "2024-01-00"]),
    ],
)
def test_zero_dates_are_never_null_in_silence(maria, shop, warehouse18, driver, kind, zero):
    """Drivers make NULL of them; here they are refused by row and column, or NULL by choice."""
    maria.run(f"CREATE TABLE t (n int, `d d` {kind} NULL)")
    maria.run(f"INSERT INTO t VALUES (1, '2024-01-01'), (2, '{zero}'), (3, NULL)")
    target = "timestamptz" if kind == "timestamp" else "date" if kind == "date" else "timestamp"
    pipe = into(warehouse18, shop(driver), f'n integer, "d d" {target}')
    with pytest.raises(
        DataError, match="row 2 of the source, column d d: a date with a zero"
    ) as caught:
        pipe.extract()
    assert zero not in str(caught.value)
    pipe.reads = shop(driver, zero_dates="null")
    assert staged(pipe, '"d d" IS NULL', order="n") == [(False,), (True,), (True,)]


def test_text_that_looks_like_a_zero_date_is_text(maria, shop, warehouse18):
    maria.run(
        "CREATE TABLE t (d date, v text)", "INSERT INTO t VALUES ('2024-01-01', '0000-00-00')"
    )
    pipe = into(warehouse18, shop(), "d date, v text")
    assert staged(pipe, "d::text, v") == [("2024-01-01", "0000-00-00")]


@pytest.mark.parametrize("kind", ["varchar(20)", "longtext"])
def test_a_nul_character_is_refused_by_row_and_column(maria, shop, warehouse18, kind):
    maria.run(
        f"CREATE TABLE t (n int, v {kind})", "INSERT INTO t VALUES (1, 'a'), (2, 'se\\0cret')"
    )
    pipe = into(warehouse18, shop(), "n integer, v text")
    with pytest.raises(DataError, match="row 2 of the source, column v: text with a NUL") as caught:
        pipe.extract()
    assert "cret" not in str(caught.value)


def test_geometry_is_refused_by_name_only_if_it_is_wanted(maria, shop, warehouse18):
    maria.run("CREATE TABLE t (n int, p point)", "INSERT INTO t VALUES (1, POINT(1, 2))")
    pipe = into(warehouse18, shop(), "n integer, p text")
    with pytest.raises(CatalogError, match="column p of type point cannot be carried"):
        pipe.extract()
    pipe.columns = ("n",)
    assert staged(pipe, "n") == [(1,)]


def test_hostile_names(maria, shop, warehouse18, driver):
    """Quotes of all kinds, placeholders, percent signs and emoji are names like others."""
    names = [
        "a`b",
        'c"d',
        "e'f",
        "100%",
        "%s",
        "%(x)s",
        "?",
        ":low",
        "{}",
        "ünï",
        "select",
        "a.b",
        "a\\b",
    ]
    columns = ", ".join("`" + name.replace("`", "``") + "` int" for name in names)
    values = ", ".join(map(str, range(len(names))))
    maria.run(
        f"CREATE TABLE `we``ird %s` ({columns}, ts datetime)",
        f"INSERT INTO `we``ird %s` VALUES ({values}, '2024-01-01')",
    )
    target = ", ".join('"' + name.replace('"', '""') + '" integer' for name in names)
    reads = shop(driver, table="`we``ird %s`")
    pipe = into(warehouse18, reads, f"{target}, ts timestamp", cursor="ts")
    pipe.columns = (*names, "ts")
    found = staged(
        pipe, low=datetime(2024, 1, 1, tzinfo=UTC), high=datetime(2024, 1, 2, tzinfo=UTC)
    )
    assert [row[: len(names)] for row in found] == [tuple(range(len(names)))]


@pytest.mark.parametrize(
    ("kind", "type_"),
    [("datetime(6)", "timestamp"), ("timestamp(6) NULL", "timestamptz")],
)
def test_a_window_is_half_open_to_the_microsecond(maria, shop, warehouse18, driver, kind, type_):
    maria.run(f"CREATE TABLE t (n int, ts {kind})")
    connection = maria.server.connect(maria.name)
    cursor = connection.cursor()
    cursor.execute("SET time_zone = '+00:00'")
    cursor.execute(
        "INSERT INTO t VALUES (1, '2023-12-31 23:59:59.999999'), (2, '2024-01-01 00:00:00'),"
        " (3, '2024-01-31 23:59:59.999999'), (4, '2024-02-01 00:00:00')"
    )
    connection.close()
    pipe = into(warehouse18, shop(driver), f"n integer, ts {type_}", cursor="ts")
    january = {"low": datetime(2024, 1, 1, tzinfo=UTC), "high": datetime(2024, 2, 1, tzinfo=UTC)}
    assert staged(pipe, "n", **january) == [(2,), (3,)]
    empty = {"low": datetime(2022, 1, 1, tzinfo=UTC), "high": datetime(2022, 2, 1, tzinfo=UTC)}
    assert staged(pipe, "n", **empty) == []


@pytest.mark.parametrize("bad", ["NULL", "'0000-00-00'"])
def test_rows_that_no_window_holds_are_counted(maria, shop, warehouse18, bad):
    """NULL and zero dates alike would never be read, so they fail the load."""
    maria.run(
        "CREATE TABLE t (n int, ts datetime)", f"INSERT INTO t VALUES (1, {bad}), (2, '2024-01-01')"
    )
    pipe = into(warehouse18, shop(), "n integer, ts timestamp", cursor="ts")
    with pytest.raises(DataError, match=r"1 rows .* have no value in the cursor"):
        pipe.extract(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC))


def test_one_snapshot_for_all_that_is_read(maria, shop, driver):
    """A row that comes after the source was opened is not part of the batch."""
    maria.run("CREATE TABLE t (n int) ENGINE=InnoDB", "INSERT INTO t VALUES (1)")
    sink = Sink()
    with sending(shop(driver), ["n"]) as sender:
        maria.run("INSERT INTO t VALUES (2)")
        assert sender.send(sink) == 1
    assert sink.data == b"1\n"


def test_a_query_keeps_the_types_of_what_it_selects(maria, shop, warehouse18, driver):
    maria.run(
        "CREATE TABLE t (n bigint unsigned, d decimal(12,3), b varbinary(4), v varchar(9), ts datetime)",
        "INSERT INTO t VALUES (18446744073709551615, 1.5, X'00', 'it''s', '2024-01-05')",
    )
    query = "SELECT n, b, v, '100%; :low' AS k, ts FROM t WHERE ts >= :low AND ts < :high -- all"
    reads = shop(driver, table=None, query=query)
    assert [column.type for column in reads.describe().columns] == [
        "numeric(20,0)", "bytea", "text", "text", "timestamp without time zone",
    ]  # fmt: skip
    target = "n numeric(20,0), b bytea, v text, k text, ts timestamp"
    pipe = into(warehouse18, reads, target, cursor="ts")
    january = {"low": datetime(2024, 1, 1, tzinfo=UTC), "high": datetime(2024, 2, 1, tzinfo=UTC)}
    assert staged(pipe, "n::text, b::text, v, k", **january) == [
        ("18446744073709551615", "\\x00", "it's", "100%; :low")
    ]


def test_a_source_type_that_does_not_fit_is_refused_by_name(maria, shop, warehouse18):
    maria.run("CREATE TABLE t (n bigint)")
    with pytest.raises(ContractError, match="n: bigint does not fit integer"):
        into(warehouse18, shop(), "n integer").extract()


def test_what_is_missing_is_named_with_its_nearest(maria, shop):
    maria.run("CREATE TABLE orders (n int)")
    with pytest.raises(CatalogError, match=r"no table 'order'.*did you mean 'orders'"):
        shop(table="order").describe()
    with pytest.raises(CatalogError, match="1146"):
        shop(table=None, query="SELECT * FROM nowhere").describe()
    with (
        pytest.raises(CatalogError, match="no column 'm'"),
        sending(shop(table="orders"), ["m"]),
    ):
        pass


def test_a_checksum_is_refused(maria, shop):
    maria.run("CREATE TABLE t (n int)")
    with (
        pytest.raises(ConfigurationError, match="no checksum"),
        shop().open(FULL, cursor=None, columns=[], binary=False, checksum=True),
    ):
        pass


class Gate(Sink):
    """Stops the sender after its first block until it is opened."""

    def __init__(self):
        super().__init__()
        self.reached, self.open = threading.Event(), threading.Event()

    def write(self, data):
        self.reached.set()
        assert self.open.wait(30)
        return super().write(data)


def many_rows(maria, rows=200_000):
    maria.run("CREATE TABLE t (n int, v varchar(100)) ENGINE=InnoDB")
    maria.run(f"INSERT INTO t SELECT seq, REPEAT('x', 100) FROM seq_1_to_{rows}")


def sessions(maria):
    """Server sessions in the database, but ours."""
    return maria.server.run(
        "SELECT id FROM information_schema.processlist WHERE db = %s AND id <> CONNECTION_ID()",
        values=(maria.name,),
    )


def running(maria):
    return maria.server.run(
        "SELECT id FROM information_schema.processlist WHERE db = %s AND info LIKE 'SELECT CONCAT%%'",
        values=(maria.name,),
    )


def test_cancel_ends_a_statement_that_gives_no_rows(maria, shop, driver):
    """Also while the server is still sorting: it is told, and no session is left."""
    maria.run("CREATE TABLE t (n int)", "INSERT INTO t VALUES (1), (2)")
    reads = shop(driver, table=None, query="SELECT n FROM t WHERE SLEEP(300) = 0")
    with opened_in_background(reads) as opening:
        wait_until(lambda: running(maria), "the statement runs")
        cancel_open_sessions()
        with pytest.raises(Stopped):
            opening.result(30)
    wait_until(lambda: not sessions(maria), "the session is gone")


def opened_in_background(reads):
    def work():
        with sending(reads, ["n"]) as sender:
            return sender.send(Sink())

    return in_background(work)


def test_cancel_while_rows_flow(maria, shop, driver):
    many_rows(maria)
    gate = Gate()
    with (
        sending(shop(driver), ["n", "v"]) as sender,
        in_background(lambda: sender.send(gate)) as flow,
    ):
        assert gate.reached.wait(30)
        sender.cancel()
        gate.open.set()
        with pytest.raises(Stopped):
            flow.result(30)
    wait_until(lambda: not sessions(maria), "the session is gone")


def test_a_source_that_is_left_early_drains_nothing(maria, shop, driver):
    """Closing without sending ends the statement instead of reading what is left."""
    many_rows(maria)
    with sending(shop(driver), ["n"]):
        pass
    wait_until(lambda: not sessions(maria), "the session is gone")


def test_a_stop_leaves_nothing_behind(maria, shop, warehouse18, driver):
    many_rows(maria, 5000)
    stop = threading.Event()
    stop.set()
    pipe = into(warehouse18, shop(driver), "n integer, v text")
    with pytest.raises(Stopped):
        pipe.extract(stop=stop)
    assert pipe.left_in_staging() == set()


def test_a_killed_session_is_a_lost_connection(maria, shop, driver):
    many_rows(maria)
    gate = Gate()
    with (
        sending(shop(driver), ["n", "v"]) as sender,
        in_background(lambda: sender.send(gate)) as flow,
    ):
        assert gate.reached.wait(30)
        for (number,) in sessions(maria):
            maria.server.run(f"KILL CONNECTION {number}")
        gate.open.set()
        with pytest.raises(ConnectionLost):
            flow.result(30)


def test_a_session_killed_during_the_copy_leaves_nothing(maria, shop, warehouse18, driver):
    maria.run("CREATE TABLE t (n int)", "INSERT INTO t SELECT seq FROM seq_1_to_100000")
    reads = shop(driver, table=None, query="SELECT n FROM t WHERE SLEEP(0.01) = 0")
    pipe = into(warehouse18, reads, "n integer")
    with in_background(pipe.extract) as extracting:
        for (number,) in wait_until(lambda: running(maria), "rows flow"):
            maria.server.run(f"KILL CONNECTION {number}")
        with pytest.raises(ConnectionLost):
            extracting.result(30)
    assert pipe.left_in_staging() == set()


def test_a_server_that_is_not_there_is_a_lost_connection(maria, shop):
    port, maria.server.port = maria.server.port, 1
    try:
        with pytest.raises(ConnectionLost, match="connecting to connection shop"):
            shop().describe()
    finally:
        maria.server.port = port


def test_settle_by_the_servers_clock(maria, shop):
    maria.run(
        "CREATE TABLE t (n int, ts timestamp NULL, d datetime, day date)",
        "INSERT INTO t (n) VALUES (41)",
    )
    source = shop()
    hour = SettleOptions(delay=timedelta(hours=1))
    before = datetime.now(UTC) - timedelta(hours=1, seconds=5)
    found = settled(source, "ts", None, hour)
    assert before < datetime.fromisoformat(found.high) < before + timedelta(minutes=5)
    assert found.high.endswith("+00")
    assert "settle delay of 1 h" in found.evidence
    number = settled(source, "n", None, SettleOptions(delay=timedelta(0)))
    assert (number.high, number.bounds) == ("42", "[)")
    with pytest.raises(ConfigurationError, match="proves nothing"):
        settled(source, "ts", None, SettleOptions(origin=CursorOrigin.TRANSACTION))


def test_memory_does_not_grow_with_the_rows(maria, shop):
    """Four times the rows, the same peak; wide rows are fetched fewer at a time."""
    maria.run("CREATE TABLE t (n int, v longtext)")
    maria.run("INSERT INTO t SELECT seq, REPEAT('x', 200000) FROM seq_1_to_400")

    def peak(rows):
        tracemalloc.start()
        window = Window("0", str(rows + 1), "integer")
        with sending(shop(), ["n", "v"], window, "n") as sender:
            assert sender.send(Null()) == rows
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    small, large = peak(100), peak(400)
    assert large < small + 4 * 1024 * 1024
    assert large < 16 * 1024 * 1024


# -- windows and personal data ------------------------------------------------------------------------


def windowed(maria):
    maria.run(
        "CREATE TABLE t (n bigint unsigned, d decimal(65,2), ts datetime, z timestamp NULL, v text)",
        "INSERT INTO t VALUES (1, 1.25, '2024-01-01', '2024-01-01', 'one'),"
        f" (2, {'9' * 30}.50, '2024-01-02', '2024-01-02', 'two'),"
        f" (3, {'9' * 30}.51, '2999-01-01', '2037-01-01', 'three'), (NULL, NULL, NULL, NULL, NULL)",
    )


CURSORS = {
    "n": ("numeric(20,0)", "1", "3"),
    "d": ("numeric(65,2)", "1.25", "9" * 30 + ".51"),
    "ts": ("timestamp without time zone", "2024-01-01 00:00:00", "2024-01-03 00:00:00"),
    "z": ("timestamp with time zone", "2024-01-01 00:00:00+00", "2024-01-03 00:00:00+00"),
}


def rows_in(source, window, cursor):
    return sorted(text_of(source, ["n"], window, cursor).split())


@pytest.mark.parametrize("cursor", CURSORS)
def test_a_window_is_exact_whatever_the_query_says(maria, shop, driver, cursor):
    """Also without a start, which no comparison with NULL would find, and for thirty digits."""
    windowed(maria)
    type_, low, high = CURSORS[cursor]
    for query in (
        None,
        f"SELECT * FROM t WHERE {cursor} BETWEEN :low AND :high # not :low",
        f"SELECT * FROM t WHERE {cursor} >= :low AND {cursor} < :high",
    ):
        source = shop(driver, query=query, table=None if query else "t")
        assert rows_in(source, Window(low, high, type_), cursor) == ["1", "2"]
        assert rows_in(source, Window(None, high, type_), cursor) == ["1", "2"]
        if type_.startswith("numeric"):
            assert rows_in(source, Window(low, high, type_, "(]"), cursor) == ["2", "3"]


def test_rows_outside_of_all_windows_are_counted_and_sent_if_asked(maria, shop):
    """A zero date is no value, whether it is asked for or not."""
    windowed(maria)
    maria.run("INSERT INTO t VALUES (7, 0, '0000-00-00', '0000-00-00', 'zero')")
    type_, low, high = CURSORS["ts"]
    with opened(shop(), ["n"], Window(low, high, type_), "ts") as snapshot:
        assert (snapshot.null_cursors, snapshot.unreachable) == (2, 1)
    with opened(shop(), ["n"], Window("1", "3", "numeric(20,0)"), "n") as snapshot:
        assert (snapshot.null_cursors, snapshot.unreachable) == (1, None)
    assert rows_in(shop(), Window(None, high, type_), "ts") == ["1", "2"]
    assert rows_in(shop(), Window(type=type_), "ts") == ["1", "2", "3"]
    included = Window(low, high, type_, nulls=Nulls.INCLUDE)
    assert rows_in(shop(), included, "ts") == ["1", "2", "7", "\\N"]
    assert rows_in(shop(), Window(type=type_, nulls=Nulls.ONLY), "ts") == ["7", "\\N"]


def test_a_cursor_that_is_never_null_is_not_counted(maria, shop):
    maria.run("CREATE TABLE t (n int NOT NULL)", "INSERT INTO t VALUES (1)")
    with opened(shop(), ["n"], Window("1", "2", "integer"), "n") as snapshot:
        assert (snapshot.null_cursors, snapshot.unreachable) == (0, None)


def test_a_fraction_is_settled_at_the_greatest(maria, shop):
    windowed(maria)
    at_once = SettleOptions(delay=timedelta(0))
    found = settled(shop(), "d", None, at_once)
    assert (found.high, found.bounds) == ("9" * 30 + ".51", "(]")
    bounded = shop(table=None, query="SELECT * FROM t WHERE n >= :low AND n < :high")
    assert settled(bounded, "n", None, at_once).high == "4"


KEY = "ü" * 40


def hashed(text):
    return hmac.new(KEY.encode(), text.encode(), hashlib.sha256).hexdigest()


def test_personal_columns_are_treated_by_the_server(maria, shop, driver):
    """A hash equals Python's; no statement that stays on shows its key."""
    maria.run(
        "CREATE TABLE t (n int, v varchar(40), w longtext CHARACTER SET latin1, b varbinary(9), d date,"
        " p point)",
        "INSERT INTO t VALUES (42, 'tab\\tback\\\\slash 💣', 'Größe', X'00FF', '2024-01-02', POINT(1, 2)),"
        " (NULL, NULL, NULL, NULL, NULL, NULL), (1, '', '', '', '2024-01-03', NULL)",
    )
    columns = [Selected(name, name, Treatment.HASH) for name in "nvwbd"]
    columns += [Selected("point", "p", Treatment.NULL), Selected("number", "n")]
    source = shop(driver, hash_key=KEY)
    rows = [line.split("\t") for line in text_of(source, columns).splitlines()]
    assert rows == [
        [
            *map(hashed, ["42", "tab\tback\\slash 💣", "Größe", "\\x00ff", "2024-01-02"]),
            "\\N",
            "42",
        ],
        ["\\N"] * 7,
        [*map(hashed, ["1", "", "", "\\x", "2024-01-03"]), "\\N", "1"],
    ]
    with sending(source, columns):
        for (text,) in maria.server.run("SELECT info FROM information_schema.processlist"):
            assert KEY not in str(text)
            assert KEY.encode().hex().upper() not in str(text).upper()


def test_a_text_that_is_too_large_to_be_hashed_is_refused(maria, shop):
    """The server gives NULL for it, which would be stored in silence."""
    maria.run("CREATE TABLE t (v longtext)", "INSERT INTO t VALUES (REPEAT('x', 3000000))")
    (packet,) = maria.run("SELECT @@global.max_allowed_packet")[0]
    maria.server.run("SET GLOBAL max_allowed_packet = 2097152")
    try:
        with pytest.raises(DataError, match="row 1 of the source is larger than the server"):
            text_of(shop(hash_key=KEY), [Selected("v", "v", Treatment.HASH)])
    finally:
        maria.server.run(f"SET GLOBAL max_allowed_packet = {packet}")


def test_a_hash_that_begins_like_a_zero_date_is_none(maria, shop):
    """Whatever its digits are, a hash is no date; a zero date beside it is still refused."""
    maria.run(
        "CREATE TABLE t (n int, d date)",
        f"INSERT INTO t {SEQUENCE.format(900)} SELECT n, DATE('2020-01-01') + INTERVAL n DAY FROM s",
    )
    columns = ["n", Selected("d", "d", Treatment.HASH)]
    lines = text_of(shop(hash_key=KEY), columns).splitlines()
    assert len({line.split("\t")[1] for line in lines}) == 900
    maria.run("INSERT INTO t VALUES (901, '0000-00-00')")
    with pytest.raises(DataError, match="column d: a date with a zero"):
        text_of(shop(hash_key=KEY), [*columns, "d"])
