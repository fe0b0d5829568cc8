"""What a window is, whichever database is read: real SQLite, as itself and as if nothing were known of it."""

import hashlib
import hmac
import sqlite3
from datetime import datetime
from decimal import Decimal

import pytest

from airflow_etl_provider.core.columns import Selected, Treatment
from airflow_etl_provider.core.errors import ConfigurationError, DataError
from airflow_etl_provider.core.window import FULL, Nulls, Window
from airflow_etl_provider.dbapi.generic import Generic
from airflow_etl_provider.dbapi.source import DbApiSource
from airflow_etl_provider.dbapi.sqlite import Sqlite
from airflow_etl_provider.dbapi.statements import Dialect, above, highest, lowest
from tests.unit.dbapi.reading import opened, sending, text_of

KEY = "a long random text"
FLAVOURS = {"sqlite": Sqlite(), "generic": Generic(Dialect(), "other://host", "shop")}
TYPES = {"n": "bigint", "d": "numeric(6,2)", "ts": "timestamp without time zone", "v": "text"}
SLOPPY = "SELECT * FROM t WHERE n BETWEEN :low AND :high"

# What drivers of other databases bind by themselves.
sqlite3.register_adapter(Decimal, float)
sqlite3.register_adapter(datetime, lambda moment: moment.isoformat(" "))


@pytest.fixture
def connect(tmp_path):
    path = tmp_path / "shop.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (n BIGINT, d DECIMAL(6,2), ts TIMESTAMP, v TEXT)")
    connection.executemany(
        "INSERT INTO t VALUES (?, ?, ?, ?)",
        [
            (1, 1.25, "2024-01-01 00:00:00", "one"),
            (2, 2.5, "2024-01-02 00:00:00", "zwei"),
            (3, 3.75, "2999-01-01 00:00:00", "drei"),
            (None, None, None, None),
        ],
    )
    connection.commit()
    connection.close()
    return lambda: sqlite3.connect(path)


@pytest.fixture(params=FLAVOURS)
def shop(request, connect):
    def make(query=None, **more):
        return DbApiSource(
            connect, FLAVOURS[request.param], None if query else "t", query, "shop", TYPES, **more
        )

    return make


def numbers(source, window, cursor="n"):
    """The values of *n* in the window; a row without one is ``\\N``."""
    return text_of(source, ["n"], window, cursor).split()


@pytest.mark.parametrize("query", [None, SLOPPY, "SELECT * FROM t"])
def test_a_window_is_exact_whatever_the_query_says(shop, query):
    """BETWEEN takes both ends; the window around it takes its own."""
    assert numbers(shop(query), Window("1", "3", "bigint")) == ["1", "2"]
    assert numbers(shop(query), Window("1", "3", "bigint", "(]")) == ["2", "3"]


def test_a_query_that_ends_below_its_high_keeps_the_end_of_a_closed_window(shop):
    query = "SELECT * FROM t WHERE d >= :low AND d < :high"
    assert numbers(shop(query), Window("1.25", "3.75", "numeric", "(]"), "d") == ["2", "3"]


def test_a_window_without_a_start_begins_at_the_lowest_value(shop):
    """A comparison with NULL would hold for no row, in silence."""
    for cursor, high in (("n", "3"), ("d", "3.75"), ("ts", "2024-02-01 00:00:00")):
        query = f"SELECT * FROM t WHERE {cursor} >= :low AND {cursor} < :high"
        window = Window(None, high, TYPES[cursor])
        assert numbers(shop(query), window, cursor) == ["1", "2"]
        assert numbers(shop(), window, cursor) == ["1", "2"]


def test_a_bound_that_cannot_be_given_is_refused(shop):
    query = "SELECT * FROM t WHERE v >= :low AND v < :high"
    with pytest.raises(ConfigurationError, match="takes :low from a cursor of text"):
        numbers(shop(query), Window(None, "x", "text"), "v")
    query = "SELECT * FROM t WHERE ts >= :low AND ts < :high"
    with pytest.raises(ConfigurationError, match="takes :high from a cursor of timestamp"):
        numbers(shop(query), Window("2024-01-01 00:00:00", None, "timestamp"), "ts")


@pytest.mark.parametrize(
    ("window", "cursor", "reason"),
    [
        (FULL, None, "a full read has none"),
        (Window("1", "3", "bigint", nulls=Nulls.INCLUDE), "n", "lie outside of all"),
        (Window(type="bigint", nulls=Nulls.ONLY), "n", "rows without a cursor value lie outside"),
    ],
)
def test_a_query_with_bounds_reads_ranges_only(shop, window, cursor, reason):
    with pytest.raises(ConfigurationError, match=f"names the bounds :low and :high, .*{reason}"):
        text_of(shop(SLOPPY), ["n"], window, cursor)


def test_rows_without_a_value_are_in_the_window_if_it_says_so(shop):
    assert numbers(shop(), Window("1", "3", "bigint")) == ["1", "2"]
    included = Window("1", "3", "bigint", nulls=Nulls.INCLUDE)
    assert sorted(numbers(shop(), included)) == ["1", "2", "\\N"]
    assert numbers(shop(), Window("1", "3", "bigint", nulls=Nulls.ONLY)) == ["\\N"]
    assert numbers(shop(), Window(type="bigint")) == ["1", "2", "3"]
    assert len(numbers(shop(), Window(type="bigint", nulls=Nulls.INCLUDE))) == 4


def test_rows_ahead_of_the_clock_are_counted_with_those_without_a_value(shop):
    window = Window("2024-01-01 00:00:00", "2024-02-01 00:00:00", "timestamp without time zone")
    with opened(shop(), ["n"], window, "ts") as snapshot:
        assert (snapshot.null_cursors, snapshot.unreachable) == (1, 1)
    with opened(shop(), ["n"], Window("1", "2", "bigint"), "n") as snapshot:
        assert (snapshot.null_cursors, snapshot.unreachable) == (1, None)
    only = Window(type="timestamp without time zone", nulls=Nulls.ONLY)
    with opened(shop(), ["n"], only, "ts") as snapshot:
        assert (snapshot.null_cursors, snapshot.unreachable) == (0, None)


def test_a_snapshot_is_one_piece(shop):
    with opened(shop(), ["n"]) as snapshot:
        assert snapshot.cut(rows=1, parts=1, by=()).slices == ()
        with pytest.raises(ConfigurationError, match="shards=2 is not possible"):
            snapshot.cut(rows=None, parts=2, by=())


@pytest.mark.parametrize("type_", ["smallint", "bigint", "numeric(6,2)", "numeric(30,0)"])
def test_lowest_and_highest_are_values_of_the_type(type_):
    assert float(lowest(type_)) < 0 < float(highest(type_))


@pytest.mark.parametrize(
    ("text", "type_", "next_"),
    [
        ("7", "bigint", "8"),
        ("1.25", "numeric(6,2)", "2.25"),
        ("1.25", "numeric", "2.25"),
        ("9" * 60, "numeric(65,0)", "1" + "0" * 60),
    ],
)
def test_a_value_above_another_keeps_every_digit(text, type_, next_):
    assert above(text, type_) == next_


def test_what_has_no_next_value_is_refused():
    with pytest.raises(ConfigurationError, match="of which no value is the next"):
        above("1", "text")


# -- personal data ------------------------------------------------------------------------------------


def test_columns_are_renamed_by_their_place(shop):
    columns = [Selected("word", "v"), Selected("number", "n")]
    assert text_of(shop(), columns, Window("1", "2", "bigint"), "n") == "one\t1\n"


def test_nulled_values_never_leave_the_source(shop):
    columns = ["n", Selected("v", "v", Treatment.NULL)]
    assert text_of(shop(), columns, Window("1", "3", "bigint"), "n") == "1\t\\N\n2\t\\N\n"


def test_a_generic_database_cannot_hash(connect):
    source = DbApiSource(connect, FLAVOURS["generic"], "t", None, "shop", TYPES, hash_key=KEY)
    with (
        pytest.raises(ConfigurationError, match=r"column v is to be hashed.*\n.*make a view"),
        sending(source, [Selected("v", "v", Treatment.HASH)]),
    ):
        pass


def test_a_hash_needs_a_key(shop):
    with (
        pytest.raises(ConfigurationError, match="v of t are to be hashed, but there is no key"),
        sending(shop(), [Selected("v", "v", Treatment.HASH)]),
    ):
        pass
    assert KEY not in repr(shop(hash_key=KEY))


@pytest.mark.parametrize("key", ["k", "ü" * 40, "k" * 64, "k" * 65])
def test_sqlite_hashes_the_text_of_values(connect, key):
    values = ["", "tab\tback\\slash", "Größe 💣", 42, b"\x00\xff", None]
    connection = connect()
    connection.execute("CREATE TABLE p (v)")
    connection.executemany("INSERT INTO p VALUES (?)", [(value,) for value in values])
    connection.commit()
    connection.close()
    source = DbApiSource(connect, Sqlite(), "p", None, "shop", hash_key=key)
    shown = [*values[:3], "42", "\\x00ff"]
    expected = [hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest() for text in shown]
    assert text_of(source, [Selected("v", "v", Treatment.HASH)]).split() == [*expected, "\\N"]


def test_text_that_cannot_be_hashed_is_refused_without_showing_it(connect):
    connection = connect()
    connection.execute("CREATE TABLE p (v TEXT)")
    connection.execute("INSERT INTO p VALUES (CAST(X'FF736563726574' AS TEXT))")
    connection.commit()
    connection.close()
    source = DbApiSource(connect, Sqlite(), "p", None, "shop", hash_key=KEY)
    with pytest.raises(DataError, match="no valid UTF-8") as caught:
        text_of(source, [Selected("v", "v", Treatment.HASH)])
    assert "secret" not in str(caught.value)
