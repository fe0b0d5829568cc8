"""Databases that check nothing: what their columns should not hold is set aside in the target."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from airflow_etl_provider.core.columns import Selection, Treatment
from airflow_etl_provider.core.dead_letters import DeadLimits, OnConversionError
from airflow_etl_provider.core.errors import DataError
from airflow_etl_provider.core.ports import SourceColumn
from airflow_etl_provider.dbapi.copytext import RowEncoder
from airflow_etl_provider.dbapi.generic import Generic
from airflow_etl_provider.dbapi.mysql_columns import Column
from airflow_etl_provider.dbapi.mysql_rows import RowPlan
from airflow_etl_provider.dbapi.source import DbApiSource
from airflow_etl_provider.dbapi.sqlite import Sqlite
from airflow_etl_provider.dbapi.statements import Dialect
from tests.integration.dbapi.driving import DbApiPipeline, into, staged

SET_ASIDE: dict[str, Any] = {
    "on_conversion_error": OnConversionError.QUARANTINE,
    "dead_limits": DeadLimits(max_share=1.0),
}


NUL = "text with a NUL character, which PostgreSQL cannot hold"


def lite(tmp_path, columns: str, rows: list[tuple[Any, ...]], **changes: Any) -> DbApiSource:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE t ({columns})")
        if rows:
            marks = ", ".join("?" for _ in rows[0])
            database.executemany(f"INSERT INTO t VALUES ({marks})", rows)
    return DbApiSource(
        lambda: sqlite3.connect(path, check_same_thread=False),
        changes.pop("flavour", Sqlite()),
        table="t",
        query=None,
        label="connection shop",
        **changes,
    )


def letters(pipe: DbApiPipeline, columns: str = "record, reason") -> list[tuple[Any, ...]]:
    return pipe.warehouse.run(f"SELECT {columns} FROM etl.dead_letters ORDER BY id")


CASES: dict[str, tuple[str, list[Any], list[Any]]] = {
    "INTEGER": ("bigint", [1, 2.0, -5], ["abc", 1.5, b"x", ""]),
    "DATE": ("date", ["2013-01-31"], ["0001-00-00", "0000-00-00", 20130131, "31.1.2013", "now"]),
    "DATETIME": (
        "timestamp without time zone",
        ["2013-01-31 12:00:00.5"],
        ["2013-01-31 12:00:00+00:00", "yesterday"],
    ),
    "TIMESTAMPTZ": (
        "timestamp with time zone",
        ["2013-01-31 12:00:00Z"],
        ["2013-01-31 12:00:00", 0],
    ),
    "DECIMAL(5,2)": ("numeric(5,2)", [1, 1.25, 2.5], [1.255, 1000, "x"]),
    "BOOLEAN": ("boolean", [0, 1], [2, "perhaps"]),
    "REAL": ("double precision", [1, 0.5, 1e300], ["x", b"1"]),
    "VARCHAR(3)": ("character varying(3)", ["abc", 12], ["abcd", b"a"]),
    "TEXT": ("text", ["a\tb\\n", "", 1, 1.5], ["a\0b", b"\x00\xff"]),
    "BLOB": ("bytea", [b"\x00\xff"], ["text", 5]),
    "UUID": ("uuid", ["7d444840-9dc0-11d1-b245-5ffdce74fad2"], ["7d44", 5]),
    "JSON": ("jsonb", ['{"a": 1}'], ["{a}", b"x"]),
}


@pytest.mark.parametrize("declared", CASES)
def test_values_of_another_kind_than_declared_are_set_aside(tmp_path, warehouse, declared):
    type_, good, bad = CASES[declared]
    values = [*good, None, *bad]
    reads = lite(tmp_path, f"n INTEGER, v {declared}", list(enumerate(values)))
    pipe = into(warehouse, reads, f"n int, v {type_}")
    found = staged(pipe, "n", **SET_ASIDE)
    assert found == [(number,) for number in range(len(good) + 1)]
    assert letters(pipe, "(record ->> 'n')::int") == [
        (number,) for number in range(len(good) + 1, len(values))
    ]


def test_what_cannot_stand_in_text_is_said(tmp_path, warehouse):
    """A NUL character and bytes among text are shown as well as they can be."""
    reads = lite(tmp_path, "v TEXT, w TEXT", [("a\0b", b"\x00\xff"), ("ok", "ok")])
    pipe = into(warehouse, reads, "v text, w text")
    assert staged(pipe, **SET_ASIDE) == [("ok", "ok")]
    assert letters(pipe) == [
        (
            {"v": "a\ufffdb", "w": "\\x00ff"},
            f"column v: {NUL}; column w: a bytes cannot be stored in its type without loss",
        )
    ]


def test_without_quarantine_the_first_such_value_fails_the_load(tmp_path, warehouse):
    pipe = into(warehouse, lite(tmp_path, "v INTEGER", [("abc",)]), "v bigint")
    with pytest.raises(DataError, match="row 1 of the source, column v"):
        pipe.extract()


def test_hashes_and_nulls_are_what_letters_hold(tmp_path, warehouse):
    reads = lite(
        tmp_path,
        "n INTEGER, mail TEXT, phone TEXT",
        [("x", "ann@x", "5"), (1, None, "6")],
        hash_key="k",
    )
    pipe = into(
        warehouse, reads, "n int, mail text, phone text",
        selection=Selection(personal={"mail": Treatment.HASH, "phone": Treatment.NULL}),
    )  # fmt: skip
    assert staged(pipe, **SET_ASIDE) == [(1, None, None)]
    ((record,),) = letters(pipe, "record")
    assert len(record["mail"]) == 64
    assert record["phone"] is None


def test_many_rows_of_which_few_are_bad(tmp_path, warehouse):
    """Over many fetches; whatever was learned of a column's values is not forgotten by a bad one."""
    rows = [(n, "2013-01-01" if n % 1000 else n) for n in range(5000)]
    pipe = into(warehouse, lite(tmp_path, "n INTEGER, d DATE", rows), "n int, d date")
    assert len(staged(pipe, **SET_ASIDE)) == 4995
    assert letters(pipe, "record ->> 'n'") == [(str(n),) for n in range(0, 5000, 1000)]


def test_a_database_that_is_known_only_by_its_driver(tmp_path, warehouse):
    flavour = Generic(Dialect(quotes='""', paramstyle="qmark"), "test://x")
    reads = lite(tmp_path, "n INTEGER, v TEXT", [(1, "2"), (2, "x"), (3, None)], flavour=flavour)
    pipe = into(warehouse, reads, "n int, v int NOT NULL")
    assert staged(pipe, **SET_ASIDE) == [(1, 2)]
    assert [reason for _, reason in letters(pipe)] == [
        "column v cannot be converted to integer",
        "column v has no value, and must have one",
    ]


def test_a_row_without_remarks_ends_with_null():
    encoder = RowEncoder([("a", "integer"), ("b", "text")], remarks=True)
    assert encoder.encode([(1, "x"), (None, None)], 1) == b"1\tx\t\\N\n\\N\t\\N\t\\N\n"
    assert encoder.encode([("1", "x\0")], 3) == (
        b"1\tx\xef\xbf\xbd\tcolumn b: text with a NUL character, which PostgreSQL cannot hold\n"
    )


def test_rows_of_mysql_are_sent_with_their_zero_dates():
    """The target judges them; a NUL character is said, since no text can hold it."""
    columns = [
        Column(SourceColumn(name, "text", not_null=False, portable=False), None, 10, kind)
        for name, kind in (("d", "date"), ("v", "text"))
    ]
    plan = RowPlan.of([(column, Treatment.KEEP) for column in columns], 1000)
    rows = [(b"0000-00-00\tx",), (b"2013-01-01\ta\0b",)]
    assert plan.encode_all(rows, 1) == (
        b"0000-00-00\tx\t\\N\n2013-01-01\ta\xef\xbf\xbdb\tcolumn v: text with a NUL character, which PostgreSQL"
        b" cannot hold\n"
    )
    with pytest.raises(DataError, match="zero"):
        plan.encode(rows[:1], 1)
