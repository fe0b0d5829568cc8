"""Rows that the target's types cannot hold are set aside with their text and a reason; the rest is staged."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from psycopg import sql

from airflow_etl_provider.core.columns import Selection, Treatment
from airflow_etl_provider.core.dead_letters import DeadLimits, OnConversionError
from airflow_etl_provider.core.errors import ContractError, DataError, EtlError, Stopped
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.request import OnEmpty, WindowMode
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import FEBRUARY, JANUARY, MARCH, Pipeline

ALL = DeadLimits(max_share=1.0)
SET_ASIDE: dict[str, Any] = {
    "on_conversion_error": OnConversionError.QUARANTINE,
    "dead_limits": ALL,
}


def typed(
    source, warehouse, given: str, wanted: str, *, rows: str = "", before: str = "", **changes: Any
) -> Pipeline:
    """A table of *given* columns into one of *wanted* columns, read whole."""
    source.run(f"CREATE TABLE t ({given}); {rows}")
    warehouse.run(f"CREATE SCHEMA a; {before}; CREATE TABLE a.t ({wanted})")
    told: dict[str, Any] = {"kind": Kind.SNAPSHOTS, "cursor": None, "partition": None}
    return Pipeline(
        source, warehouse, **told | {"mode": WindowMode.FULL, "options": SET_ASIDE} | changes
    )


def texts(pipe: Pipeline, values: list[str | None], type_: str = "text") -> None:
    for number, value in enumerate(values):
        pipe.source.run(
            sql.SQL("INSERT INTO t VALUES (%s, %s::{})").format(sql.SQL(type_)), (number, value)
        )


def staged(pipe: Pipeline, manifest: Any, columns: str = "*") -> list[tuple[Any, ...]]:
    table = manifest.staging
    return pipe.warehouse.run(
        sql.SQL("SELECT {} FROM {} AS s ORDER BY 1").format(
            sql.SQL(columns), sql.Identifier(table.schema, table.name)
        )
    )


def letters(pipe: Pipeline, columns: str = "record, reason, status") -> list[tuple[Any, ...]]:
    return pipe.warehouse.run(
        f"SELECT {columns} FROM etl.dead_letters ORDER BY record::text, ordinal"
    )


GOOD_AND_BAD: dict[str, tuple[list[str], list[str]]] = {
    "integer": (
        ["1", " -7 ", "2147483647"],
        ["", "abc", "2147483648", "1.5", "NaN", "1e3", "infinity"],
    ),
    "numeric(5,2)": (["1", "999.99", "1.500", "NaN"], ["1000", "1.005", "x", "Infinity", "0.001"]),
    "double precision": (["0.1", "1e300", "NaN", "-Infinity", "9007199254740992"], ["9007199254740993", "1e999", "", "0,5"]),
    "real": (["0.1", "16777216"], ["16777217", "1e99", "0.123456789"]),
    "date": (
        ["2013-01-31", "0001-01-01", "0044-03-15 BC", "infinity"],
        ["0001-00-00", "2013-02-30", "today", "now", "01/02/03", "2013-01-31 12:00", "0000-01-01", "20130101", ""],
    ),
    "timestamp with time zone": (
        ["2013-01-31 12:00:00+00", "2013-01-31T12:00:00Z", "2013-01-31 12:00:00.123456-05:30", "-infinity"],
        ["2013-01-31 12:00:00", "2013-01-31", "now", "2013-01-31 12:00:60+00", "2013-01-31 24:00:00+00", "2013-13-01 00:00+00"],
    ),
    "timestamp(0) without time zone": (
        ["2013-01-31 12:00:00", "2013-01-31", "2013-01-31 12:00:00.000"],
        ["2013-01-31 12:00:00+00", "2013-01-31 12:00:00.5", "2013-01-31 25:00"],
    ),
    "time without time zone": (["12:00", "24:00:00"], ["2013-01-31 12:00", "24:00:01", "now", "12:00+02"]),
    "interval(0)": (["1 day", "1:02:03"], ["1.5 sec", "often"]),
    "uuid": (["7d444840-9dc0-11d1-b245-5ffdce74fad2"], ["7d444840", ""]),
    "jsonb": (['{"a": [1]}', "null", '"x"'], ["{a}", "", '"\\u0000"']),
    "boolean": (["t", "no", "1"], ["2", "maybe", ""]),
    "character varying(3)": (["abc", ""], ["abcd", "äöüß"]),
    "character(3)": (["abc", "a"], ["abcd"]),
    "bit(3)": (["101"], ["10", "1010", "abc"]),
    "integer[]": (["{1,NULL}", "{}"], ["1", "{a}", "{1,2"]),
    "numeric(3,1)[]": (["{1.5}"], ["{1.55}", "{100}"]),
    "bytea": (["\\xdeadbeef", "abc"], ["\\xabc", "\\9"]),
    "inet": (["10.0.0.1/8"], ["300.0.0.1"]),
    "tstzrange": (["[2013-01-01 00:00+00,)"], ["[2013-02-01 00:00+00,2013-01-01 00:00+00)", "[,"]),
    '"A"."Odd Type"': (["it's", "b"], ["c", "B", ""]),
    'a.small': (["7", "0"], ["8", "-1", "x"]),
    "a.cents": (["1.25"], ["1.255", "1000"]),
    "a.someday": (["2013-01-01"], ["today", "1999-12-31"]),
    "a.pair": (["(1,b)", "(,)"], ["(x,b)", "1"]),
}  # fmt: skip
TYPES = """
    CREATE SCHEMA "A"; CREATE TYPE "A"."Odd Type" AS ENUM ('it''s', 'b');
    CREATE DOMAIN a.small AS int CHECK (VALUE BETWEEN 0 AND 7);
    CREATE DOMAIN a.cents AS numeric(5,2);
    CREATE DOMAIN a.someday AS date CHECK (VALUE >= '2000-01-01');
    CREATE TYPE a.pair AS (n int, s text)
"""


@pytest.mark.parametrize("type_", GOOD_AND_BAD)
def test_what_a_type_can_hold_exactly_is_staged_and_everything_else_set_aside(
    source, warehouse, type_
):
    """What is lost on the way counts as bad; NULL is a value like any other."""
    good, bad = GOOD_AND_BAD[type_]
    pipe = typed(source, warehouse, "n int, v text", f"n int, v {type_}", before=TYPES)
    texts(pipe, [*good, None, *bad])
    manifest = pipe.extract()
    assert (manifest.rows, manifest.rows_dead) == (len(good) + 1, len(bad))
    assert staged(pipe, manifest, "n") == [(number,) for number in range(len(good) + 1)]
    expected = {
        (number, value, f"column v cannot be converted to {type_}", "held")
        for number, value in enumerate(bad, len(good) + 1)
    }
    found = letters(pipe, "(record ->> 'n')::int, record ->> 'v', reason, status")
    assert set(found) == expected
    assert warehouse.value("SELECT rows_dead FROM etl.loads") == len(bad)
    # What was staged is what the type itself makes of the text.
    wrong = warehouse.run(
        sql.SQL(
            "SELECT n FROM {} AS s JOIN unnest(%s::text[]) WITH ORDINALITY AS g (v, place) ON n = place - 1"
            " WHERE s.v::text IS DISTINCT FROM g.v::{}::text"
        ).format(sql.Identifier(manifest.staging.schema, manifest.staging.name), sql.SQL(type_)),
        (good,),
    )
    assert wrong == []


NUMBERS = {
    ("double precision", "integer"): (["1", "-0"], ["1.5", "NaN", "Infinity", "3000000000"]),
    ("numeric", "numeric(4,1)"): (["99.9", "1.50"], ["1.55", "10000"]),
    ("bigint", "smallint"): (["32767"], ["32768"]),
    ("numeric", "double precision"): (["0.1"], ["0.12345678901234567890"]),
    ("character varying(20)", "character varying(3)"): (["abc"], ["abcd"]),
    ("timestamp without time zone", "timestamp(0) without time zone"): (
        ["2013-01-01", "0044-03-15 BC", "infinity"],
        ["2013-01-01 00:00:00.5"],
    ),
    ("json", "jsonb"): (['{"a":1}'], ['"\\u0000"']),
}


@pytest.mark.parametrize("pair", NUMBERS, ids=" to ".join)
def test_a_narrower_type_takes_what_it_can_hold(source, warehouse, pair):
    good, bad = NUMBERS[pair]
    pipe = typed(source, warehouse, f"n int, v {pair[0]}", f"n int, v {pair[1]}")
    texts(pipe, [*good, *bad], pair[0])
    manifest = pipe.extract()
    assert staged(pipe, manifest, "n") == [(number,) for number in range(len(good))]
    assert manifest.rows_dead == len(bad)


@pytest.mark.parametrize(
    "pair",
    [
        ("timestamp without time zone", "timestamp with time zone"),
        ("timestamp with time zone", "date"),
        ("boolean", "integer"),
        ("uuid", "integer"),
    ],
    ids=" to ".join,
)
def test_pairs_that_no_value_settles_are_refused_as_ever(source18, warehouse18, pair):
    pipe = typed(source18, warehouse18, f"v {pair[0]}", f"v {pair[1]}")
    with pytest.raises(ContractError, match=f"{pair[0]} does not fit {pair[1]}"):
        pipe.extract()


def test_without_quarantine_nothing_is_converted(source18, warehouse18):
    pipe = typed(source18, warehouse18, "v text", "v int", options={})
    with pytest.raises(ContractError, match="text does not fit integer"):
        pipe.extract()


def test_a_row_without_a_value_that_it_must_have_is_set_aside(source, warehouse):
    """Also where the types agree, so that nothing has to travel as text."""
    pipe = typed(
        source, warehouse, "n int, v int", "n int, v int NOT NULL",
        rows="INSERT INTO t VALUES (1, 1), (2, NULL)",
    )  # fmt: skip
    manifest = pipe.extract()
    assert manifest.transport == "binary"
    assert staged(pipe, manifest) == [(1, 1)]
    assert letters(pipe) == [
        ({"n": "2", "v": None}, "column v has no value, and must have one", "held")
    ]


def test_a_label_that_the_targets_enum_lacks_is_set_aside(source, warehouse):
    kind = "CREATE TYPE public.mood AS ENUM ('fine'{});"
    source.run(kind.format(", 'new'"))
    pipe = typed(
        source, warehouse, "n int, v public.mood", "n int, v public.mood",
        rows="INSERT INTO t VALUES (1, 'fine'), (2, 'new')", before=kind.format(""),
    )  # fmt: skip
    manifest = pipe.extract()
    assert staged(pipe, manifest) == [(1, "fine")]
    assert letters(pipe, "record ->> 'v'") == [("new",)]


ALL_THAT_IS_WRONG = (
    "column id has no value, and must have one",
    'column "Odd ""name" cannot be converted to numeric(5,2)',
    "column d cannot be converted to date",
)


def test_all_that_is_wrong_with_a_row_is_said_in_one_letter(source, warehouse):
    pipe = typed(
        source, warehouse, 'id text, "Odd ""name" text, d text, raw bytea, tags text[], doc json',
        'id int NOT NULL, "Odd ""name" numeric(5,2), d date, raw bytea, tags text[], doc json',
        rows="INSERT INTO t VALUES ('1', '1.5', '2013-01-01', '\\x00ff', '{a,NULL,\"x y\"}', '{\"a\":  1}'),"
        " (NULL, 'x', '2013-02-30', '\\x00ff', '{a,NULL,\"x y\"}', '{\"a\":  1}')",
    )  # fmt: skip
    manifest = pipe.extract()
    assert manifest.rows == 1
    assert letters(pipe) == [
        (
            {
                "id": None,
                'Odd "name': "x",
                "d": "2013-02-30",
                "raw": "\\x00ff",
                "tags": '{a,NULL,"x y"}',
                "doc": '{"a":  1}',
            },
            "; ".join(ALL_THAT_IS_WRONG),
            "held",
        )
    ]


def test_identical_rows_are_as_many_letters(source, warehouse):
    pipe = typed(
        source, warehouse, "v text", "v int", rows="INSERT INTO t VALUES ('x'), ('x'), ('x'), ('y')"
    )
    pipe.extract()
    assert letters(pipe, "record ->> 'v', ordinal") == [("x", 1), ("x", 2), ("x", 3), ("y", 1)]
    assert warehouse.value("SELECT count(DISTINCT row_hash) FROM etl.dead_letters") == 2


def test_key_and_position_are_those_that_the_target_would_show(source, warehouse):
    """So that a later load of the row is known for one of the same key."""
    pipe = typed(
        source, warehouse, "id text, k text, at timestamptz, v text",
        "id int, k numeric(5,1), at timestamptz, v int, PRIMARY KEY (id, k)",
        rows="INSERT INTO t VALUES ('007', '1', '2013-01-01 12:00+01', 'x'), ('seven', '1', NULL, '1')",
        cursor="at", kind=Kind.ENTITIES,
    )  # fmt: skip
    pipe.extract()
    assert letters(pipe, "record_key, position") == [
        ('["seven", "1.0"]', None),
        ('["7", "1.0"]', "2013-01-01 11:00:00+00"),
    ]


def test_personal_data_is_treated_before_it_can_be_set_aside(source, warehouse):
    pipe = typed(
        source, warehouse, "id text, email text, phone text, birthday text",
        "id int, email text, phone text", rows="INSERT INTO t VALUES ('x', 'ann@example.com', '555-1234', '1990-01-01')",
        selection=Selection(
            personal={"email": Treatment.HASH, "phone": Treatment.NULL, "birthday": Treatment.DROP}
        ),
        hash_key="secret",
    )  # fmt: skip
    pipe.extract()
    ((record,),) = letters(pipe, "record")
    assert record["phone"] is None
    assert len(record["email"]) == 64
    assert "birthday" not in record
    said = warehouse.value("SELECT d::text FROM etl.dead_letters AS d")
    assert not any(value in said for value in ("ann@", "555", "1990"))


def test_more_than_may_be_set_aside_fails_the_load_and_sets_nothing_aside(source, warehouse):
    pipe = typed(
        source, warehouse, "v text", "v int",
        rows="INSERT INTO t SELECT CASE WHEN i < 3 THEN 'x' ELSE i::text END FROM generate_series(1, 20) AS i",
    )  # fmt: skip
    for limits, said in (
        (DeadLimits(max_share=0.05), "at most 5.00% may be"),
        (DeadLimits(max_share=1.0, max_rows=1), "at most 1 may be"),
    ):
        with pytest.raises(DataError, match=said) as raised:
            pipe.extract(dead_limits=limits)
        assert "2 of 20 rows" in raised.value.what
        assert "column v cannot be converted to integer (2 rows)" in raised.value.what
    assert letters(pipe) == []
    assert pipe.left_in_staging() == set()
    assert pipe.extract(dead_limits=DeadLimits(max_share=0.10)).rows == 18


def test_an_empty_batch_and_one_of_bad_rows_alone(source, warehouse):
    pipe = typed(source, warehouse, "v text", "v int")
    assert pipe.extract().rows == 0
    source.run("INSERT INTO t VALUES ('x')")
    manifest = pipe.extract(on_empty=OnEmpty.FAIL)
    assert (manifest.rows, manifest.rows_dead) == (0, 1)
    pipe.publish(pipe.waive(manifest), strategy=Strategy.REPLACE)
    assert letters(pipe, "status") == [("pending",)]


def monthly(source, warehouse, **changes: Any) -> Pipeline:
    """Events with a text that is a number in the target, partitioned by month."""
    source.run(
        "CREATE TABLE t (id bigint, ts timestamptz, v text);"
        "INSERT INTO t SELECT i, timestamptz '2013-01-01Z' + i * interval '1 day',"
        "  CASE WHEN i IN (3, 40) THEN 'x' ELSE i::text END FROM generate_series(0, 57) AS i"
    )
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v int, PRIMARY KEY (id, ts))"
        " PARTITION BY RANGE (ts)"
    )
    return Pipeline(source, warehouse, options=SET_ASIDE, **changes)


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE, Strategy.DELETE_INSERT])
def test_what_is_left_is_published_and_its_letters_can_be_replayed(source, warehouse, strategy):
    pipe = monthly(source, warehouse)
    manifest = pipe.staged(JANUARY, MARCH)
    assert not manifest.direct
    assert letters(pipe, "status") == [("held",), ("held",)]
    published = pipe.publish(manifest, strategy=strategy)
    assert published.rows_inserted == 56
    assert warehouse.value("SELECT count(*) FROM a.t") == 56
    assert letters(pipe, "status") == [("pending",), ("pending",)]
    assert pipe.position() == "2013-03-01 00:00:00+00"


def test_a_snapshot_from_before_the_load_sees_the_rows_that_were_published_and_no_other(
    source, warehouse
):
    pipe = monthly(source, warehouse)
    with warehouse.connect() as old:
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1")
        pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.SWAP})
        assert old.execute("SELECT count(*) FROM a.t").fetchone() == (30,)


def test_the_cursor_itself_is_never_converted(source18, warehouse18):
    """Windows are cut by its values before any of them is looked at."""
    source18.run("CREATE TABLE t (id bigint, ts text, v text)")
    warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz, v text)")
    pipe = Pipeline(
        source18, warehouse18, options=SET_ASIDE, partition=None, mode=WindowMode.WATERMARK
    )
    with pytest.raises(ContractError, match="ts: text does not fit"):
        pipe.extract()


def test_a_checksum_is_compared_before_rows_leave_the_batch(source18, warehouse18):
    pipe = monthly(source18, warehouse18)
    manifest = pipe.extract(JANUARY, FEBRUARY, checksum=True)
    assert (manifest.rows, manifest.rows_dead) == (30, 1)
    assert manifest.checksum is not None


class _StopsAt:
    """Tells to stop when asked for the *n*-th time."""

    def __init__(self, number: int) -> None:
        self.left = number

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_stopped_between_any_two_steps_nothing_is_kept(source18, warehouse18):
    pipe = monthly(source18, warehouse18)
    stopped = 0
    for number in range(1, 40):
        try:
            pipe.extract(JANUARY, FEBRUARY, stop=_StopsAt(number))
        except Stopped:
            stopped += 1
            assert letters(pipe) == []
            assert pipe.left_in_staging() == set()
        else:
            break
    assert stopped > 4
    assert letters(pipe, "status") == [("held",)]


def test_reasons_are_told_and_no_value_is(source18, warehouse18):
    events = RecordedEvents()
    pipe = monthly(source18, warehouse18, log=events)
    source18.run("UPDATE t SET v = 'very private' WHERE v = 'x'")
    pipe.extract(JANUARY, FEBRUARY)
    (fields,) = [f for event, f in events.events if event == "rows set aside"]
    assert fields["rows"] == 1
    assert fields["reasons"] == {"column v cannot be converted to integer": 1}
    assert "very private" not in str(events.events)
    with pytest.raises(DataError) as raised:
        pipe.extract(JANUARY, FEBRUARY, dead_limits=DeadLimits(max_rows=0))
    assert "very private" not in str(raised.value)


def test_a_second_try_meets_the_batch_of_the_first(source18, warehouse18):
    pipe = monthly(source18, warehouse18)
    manifest = pipe.extract(JANUARY, FEBRUARY)
    again = pipe.extract(JANUARY, FEBRUARY, load_id=manifest.load_id, try_number=2)
    assert again == manifest
    assert len(letters(pipe)) == 1


def test_a_batch_that_is_gone_is_read_again_with_its_letters(source18, warehouse18):
    pipe = monthly(source18, warehouse18)
    manifest = pipe.extract(JANUARY, FEBRUARY)
    warehouse18.run(
        sql.SQL("DROP TABLE {}").format(
            sql.Identifier(manifest.staging.schema, manifest.staging.name)
        )
    )
    source18.run("UPDATE t SET v = 'y' WHERE v = 'x'")
    again = pipe.extract(JANUARY, FEBRUARY, load_id=manifest.load_id, try_number=2)
    assert (again.rows, again.rows_dead) == (30, 1)
    assert letters(pipe, "record ->> 'v'") == [("y",)]


def test_two_tries_at_once_leave_one_batch(source18, warehouse18):
    pipe = monthly(source18, warehouse18)
    load_id = pipe.extract(JANUARY, FEBRUARY).load_id
    warehouse18.run("UPDATE etl.loads SET state = 'started', manifest = NULL, staging = NULL")
    warehouse18.run("DELETE FROM etl.dead_letters")
    failed = []

    def attempt(number: int) -> None:
        try:
            pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=number)
        except EtlError as error:
            failed.append(error)

    tries = [threading.Thread(target=attempt, args=(number,)) for number in (2, 3)]
    for each in tries:
        each.start()
    for each in tries:
        each.join()
    assert len(failed) < 2
    assert warehouse18.value("SELECT state FROM etl.loads") == "staged"
    assert letters(pipe, "status") == [("held",)]


def test_wide_rows_of_odd_names_are_judged(source18, warehouse18):
    """More columns than a function takes arguments; names as long as they may be."""
    columns = [f'"{"é" * 28}{number:03d}"' for number in range(220)]
    pipe = typed(
        source18,
        warehouse18,
        ", ".join(f"{name} text" for name in columns),
        ", ".join(f"{name} int" for name in columns),
        rows=f"INSERT INTO t VALUES ({', '.join(['1'] * 220)}), ({', '.join(['1'] * 219)}, 'x')",
    )
    manifest = pipe.extract()
    assert (manifest.rows, manifest.rows_dead) == (1, 1)
    assert len(letters(pipe, "record")[0][0]) == 220
