"""A database that is known only by what its driver says."""

import sqlite3
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import SimpleNamespace
from uuid import UUID

import pytest

from airflow_etl_provider.core.errors import CatalogError, ConnectionLost, DataError, TransientError
from airflow_etl_provider.core.settle import SettleOptions
from airflow_etl_provider.core.window import Window
from airflow_etl_provider.dbapi.errors import by_kind
from airflow_etl_provider.dbapi.flavour import Request
from airflow_etl_provider.dbapi.generic import Generic, described_type
from airflow_etl_provider.dbapi.source import DbApiSource
from airflow_etl_provider.dbapi.statements import Dialect, Relation
from tests.unit.dbapi.reading import Null, Sink, opened, sending, settled, text_of

DRIVER = SimpleNamespace(STRING="s", BINARY="b", NUMBER="n", DATETIME="d")


@pytest.mark.parametrize(
    ("code", "type_"),
    [
        (bool, "boolean"),
        (int, "bigint"),
        (float, "double precision"),
        (str, "text"),
        (bytearray, "bytea"),
        (datetime, "timestamp without time zone"),
        (date, "date"),
        (time, "time without time zone"),
        (timedelta, "interval"),
        (UUID, "uuid"),
        (object, "text"),
        ("UBIGINT", "numeric(20,0)"),
        ("DECIMAL(18, 3)", "numeric(18,3)"),
        ("s", "text"),
        ("b", "bytea"),
        ("n", "numeric"),
        ("d", "timestamp without time zone"),
        (17, "text"),
        (None, "text"),
    ],
)
def test_type_codes_of_all_kinds_have_a_type(code, type_):
    assert described_type(("c", code, None, None, None, None, None), DRIVER) == type_


@pytest.mark.parametrize(
    ("precision", "scale", "type_"),
    [(10, 2, "numeric(10,2)"), (0, 0, "numeric"), (None, None, "numeric"), (3, 5, "numeric")],
)
def test_a_decimal_has_the_precision_that_is_known(precision, scale, type_):
    assert described_type(("c", Decimal, None, None, precision, scale, True), DRIVER) == type_


@pytest.fixture
def source(tmp_path):
    """SQLite as if nothing were known of it."""
    path = tmp_path / "shop.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (n INTEGER, v TEXT)")
    connection.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (NULL, 'c'), (4, NULL)")
    connection.commit()
    connection.close()

    def make(**more):
        flavour = Generic(Dialect(), "other://host:1", "shop")
        given = {"table": "t", "query": None, "types": {"n": "bigint"}, **more}
        return DbApiSource(lambda: sqlite3.connect(path), flavour, label="connection shop", **given)

    return make


def test_rows_of_a_window_are_sent_and_null_cursors_counted(source):
    shape = source().describe()
    assert [(column.name, column.type) for column in shape.columns] == [
        ("n", "bigint"),
        ("v", "text"),
    ]
    assert shape.datasets == (("other://host:1", "shop.t"),)
    window = Window("2", "5", "bigint")
    sink = Sink()
    with opened(source(), ["v", "n"], window, "n") as snapshot:
        assert (snapshot.null_cursors, snapshot.unreachable) == (1, None)
        assert snapshot.sender(None).send(sink) == 2
    assert sink.data == b"b\t2\n\\N\t4\n"


def test_a_query_has_the_window_put_around_it(source):
    reads = source(table=None, query="SELECT n, 'x?' AS v FROM t;")
    assert text_of(reads, ["n", "v"], Window("1", "2", "bigint"), "n") == "1\tx?\n"


def test_an_integer_cursor_is_settled_by_what_is_there(source):
    assert settled(source(), "n", None, SettleOptions(delay=timedelta(0))).high == "5"


class Joined:
    """A connection whose driver tells of two columns of one name, as a join gives them."""

    description = (("id", int), ("id", int))
    cursor = execute = close = lambda self, *_: self


def test_two_columns_of_one_name_are_refused():
    flavour = Generic(Dialect(), "other://host:1")
    with pytest.raises(CatalogError, match="two columns of one name"):
        flavour.describe(Joined(), Request(Relation(query="SELECT * FROM a JOIN b USING (k)")))


def test_a_value_against_its_declared_type_is_refused(source):
    with (
        sending(source(types={"n": "bigint", "v": "bigint"}), ["n", "v"]) as sender,
        pytest.raises(DataError, match="row 1 of the source, column v"),
    ):
        sender.send(Null())


def test_a_broken_sink_is_not_the_sources_fault(source):
    class Broken:
        def write(self, data):
            raise BrokenPipeError

    with (
        sending(source(), ["n"]) as sender,
        pytest.raises(BrokenPipeError),
    ):
        sender.send(Broken())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (sqlite3.OperationalError("secret"), ConnectionLost),
        (sqlite3.InterfaceError("secret"), ConnectionLost),
        (sqlite3.ProgrammingError("secret"), CatalogError),
        (sqlite3.DataError("secret"), DataError),
        (sqlite3.IntegrityError("secret"), DataError),
        (sqlite3.InternalError("secret"), TransientError),
    ],
)
def test_errors_are_told_by_class_and_without_their_text(error, kind):
    found = by_kind(error, "reading t")
    assert type(found) is kind
    assert "secret" not in str(found)
    assert str(found).startswith("reading t: ")
