"""A Python callable between staging and audit: what it gets and gives, and what becomes of rows that it raises for."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import UTC, date, datetime, time
from decimal import Decimal

import httpx
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pymysql
import pytest

from airflow_etl_provider.core.dead_letters import DeadLimits
from airflow_etl_provider.core.errors import (
    ConfigurationError,
    ContractError,
    DataError,
    EtlError,
    Stopped,
    TransformFailed,
    TransientError,
)
from airflow_etl_provider.core.load import Kind
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.request import StageAs, WindowMode
from airflow_etl_provider.core.transform import OnError
from airflow_etl_provider.postgres import session
from tests.builders import (
    FEBRUARY,
    JANUARY,
    MARCH,
    Pipeline,
    fill,
    in_background,
    simple,
    wait_until,
)

ROW, BATCH = OnError.SET_ASIDE_ROW, OnError.SET_ASIDE_BATCH


def same(batch):
    return batch


def publish(pipe, manifest, **options):
    return pipe.publish(pipe.waive(manifest), **options)


def whole(source, warehouse, columns, values, target_columns=None, **changes):
    """A table that is read whole, staged as the source has it."""
    source.run(f"CREATE TABLE t ({columns})")
    if values:
        source.run(f"INSERT INTO t VALUES {values}")
    warehouse.run(f"CREATE SCHEMA a; CREATE TABLE a.t ({target_columns or columns})")
    given = {
        "kind": Kind.SNAPSHOTS,
        "cursor": None,
        "mode": WindowMode.FULL,
        "partition": None,
        "options": {"stage_as": StageAs.SOURCE},
    }
    return Pipeline(source, warehouse, **{**given, **changes})


def letters(pipe):
    return pipe.warehouse.run(
        "SELECT record, reason, error_class, status, ordinal, record_key FROM etl.dead_letters ORDER BY id"
    )


@pytest.fixture
def staged(source18, warehouse18):
    """A hundred events, staged."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 100)
    return pipe, pipe.extract(JANUARY, FEBRUARY)


class TestWhatItGetsAndGives:
    def test_every_type_has_the_type_that_holds_it(self, source, warehouse):
        """There and back unchanged; NULL, the empty string, quotes, line ends and a line that would end COPY."""
        columns = (
            "i2 smallint, i4 int, i8 bigint, f4 real, f8 float8, n numeric(10,2), big numeric, t text, v varchar(9), c char(3),"
            " b bool, d date, ts timestamp, tz timestamptz, ti time, y bytea, u uuid, j json, jb jsonb, a text[], iv interval,"
            " m money, k inet"
        )
        pipe = whole(
            source,
            warehouse,
            columns,
            r"""(1, 2, 9223372036854775807, 1.1, 5e-324, 1.50, 123456789012345678901234567890.5, '', '\.', 'a', true,
                 '0001-01-01', '9999-12-31 23:59:59.999999', '2013-01-01 00:00:00.000001Z', '23:59:59.999999', '\x00ff',
                 '00000000-0000-0000-0000-000000000001', '{"a" :1}', '{"a": 1}', '{NULL,"","a b"}', '1 mon -2 days', '1.5', '::1'),
                (NULL, NULL, NULL, 'NaN', '-Infinity', NULL, 'NaN', E'a"b\\ \t\n\r\\.\n\\N', NULL, NULL, NULL, NULL, NULL, NULL,
                 NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
                (-32768, 0, -1, '-0', 1.7976931348623157e308, -99999999.99, 1e-20, E'\n\\.\n', '', '', false, NULL, NULL, NULL,
                 '00:00', '', NULL, NULL, 'null', '{}', '00:00', NULL, NULL)""",
        )
        seen = []

        def look(batch):
            seen.append(batch)
            return batch

        made = pipe.transform(pipe.extract(), look)
        publish(pipe, made)
        assert pipe.rows() == pipe.source_rows()
        (batch,) = seen
        row = batch.to_pylist()[0]
        assert row["n"] == Decimal("1.50")
        assert row["tz"] == datetime(2013, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
        assert (row["d"], row["ti"]) == (date(1, 1, 1), time(23, 59, 59, 999999))
        assert (row["b"], row["y"], row["t"], row["i8"]) == (True, b"\x00\xff", "", 2**63 - 1)
        assert batch.to_pylist()[1]["v"] is None
        kinds = {field.name: str(field.type) for field in batch.schema}
        assert kinds["n"] == "decimal128(10, 2)"
        assert kinds["tz"] == "timestamp[us, tz=UTC]"
        assert {kinds[name] for name in ("big", "u", "j", "a", "iv", "m", "k", "c")} == {"string"}

    def test_one_column_of_nothing(self, source, warehouse):
        """Rows of one empty column are empty lines, and rows all the same."""
        pipe = whole(
            source, warehouse, "v text", r"(NULL), (''), ('\.'), (NULL), ('x'), (E'\n'), (NULL)"
        )
        made = pipe.transform(pipe.extract(), same)
        assert made.rows == 7
        publish(pipe, made)
        assert pipe.rows() == pipe.source_rows()

    def test_odd_names(self, source18, warehouse18):
        names = ['Weird "Col', "per%cent", "select", "ü" * 31 + "x", "a,b", "line\nend"]
        listed = ", ".join('"' + name.replace('"', '""') + '" text' for name in names)
        pipe = whole(source18, warehouse18, listed, "('1', '2', '3', '4', '5', '6')")
        made = pipe.transform(pipe.extract(), same)
        assert [column.name for column in made.columns] == names
        publish(pipe, made)
        assert pipe.rows() == pipe.source_rows()

    def test_values_that_arrow_has_not_are_refused_by_column(self, source18, warehouse18):
        """Never changed, never lost, and not in the error; as text they pass."""
        pipe = whole(
            source18,
            warehouse18,
            "d date, ts timestamp, tz timestamptz, n numeric(5,2), ti time",
            "('infinity', '0044-03-15 BC', '294276-01-01Z', 'NaN', '24:00')",
        )
        batch = pipe.extract()
        given = []
        for column in ("d", "ts", "tz", "n", "ti"):
            with pytest.raises(DataError) as refused:
                pipe.transform(batch, same, as_text=tuple(given))
            assert f"column {column} of the batch" in refused.value.what
            assert f"as_text=['{column}']" in refused.value.remedy
            assert "0044" not in str(refused.value)
            assert "294276" not in str(refused.value)
            given.append(column)
        made = pipe.transform(batch, same, as_text=tuple(given))
        publish(pipe, made)
        assert pipe.rows() == pipe.source_rows()

    def test_fewer_more_and_other_columns(self, source, warehouse):
        """A generator gives as many batches as it likes, of any size, in any order of columns."""
        pipe = whole(
            source,
            warehouse,
            "id int, words text",
            "(1, 'a b c'), (2, NULL), (3, 'd')",
            "word text, id bigint",
        )

        def split(batch):
            for row in batch.to_pylist():
                words = (row["words"] or "").split()
                yield pa.record_batch(
                    {"id": pa.array([row["id"]] * len(words), pa.int64()), "word": words}
                )

        made = pipe.transform(pipe.extract(), split, batch_rows=2)
        assert (made.rows, made.transformed.rows) == (4, 3)
        publish(pipe, made)
        assert pipe.rows() == [("(a,1)",), ("(b,1)",), ("(c,1)",), ("(d,3)",)]

    def test_blocks_are_as_large_as_told(self, staged):
        pipe, batch = staged
        sizes = []

        def look(rows):
            sizes.append(rows.num_rows)
            return rows

        assert pipe.transform(batch, look, batch_rows=30).rows == 100
        assert sizes == [30, 30, 30, 10]

    def test_an_empty_batch_and_one_of_which_nothing_is_left(self, source, warehouse):
        """The callable is not called for nothing; what gives nothing is published as nothing."""
        pipe = simple(source, warehouse)
        made = pipe.transform(pipe.extract(JANUARY, FEBRUARY), lambda _: pytest.fail("called"))
        assert (made.rows, publish(pipe, made).rows_inserted) == (0, 0)
        fill(source, FEBRUARY, MARCH, 10)
        made = pipe.transform(pipe.extract(FEBRUARY, MARCH), lambda _: [])
        assert (made.rows, publish(pipe, made).rows_inserted) == (0, 0)
        made = pipe.transform(
            pipe.extract(FEBRUARY, MARCH), lambda batch: batch.slice(0, 0).select(["id", "ts"])
        )
        assert [column.name for column in made.columns] == ["id", "ts"]
        assert pipe.position() == "2013-03-01 00:00:00+00"

    def test_it_is_published_by_swap_and_by_merge(self, source, warehouse):
        pipe = simple(source, warehouse)
        fill(source, JANUARY, FEBRUARY, 100)

        def louder(batch):
            return batch.set_column(2, "v", pc.utf8_upper(batch["v"]))

        made = pipe.transform(pipe.extract(JANUARY, FEBRUARY), louder)
        assert publish(pipe, made).strategy == "swap"
        assert warehouse.run("SELECT count(*), min(v) FROM a.t") == [(100, "ROW 0")]
        other = Pipeline(
            source, warehouse, stream="e", kind=Kind.ENTITIES, keys=("id",), cursor="ts", partition=None,
            target=TableName("a", "e"), mode=WindowMode.FULL,
        )  # fmt: skip
        warehouse.run(
            "CREATE TABLE a.e (id bigint PRIMARY KEY, ts timestamptz, v text); INSERT INTO a.e VALUES (1, '2012-01-01Z', '')"
        )
        done = publish(other, other.transform(other.extract(), louder))
        assert (done.strategy, done.rows_inserted, done.rows_updated) == ("merge", 99, 1)
        assert pipe.left_in_staging() == set()

    def test_a_row_larger_than_a_block(self, source18, warehouse18):
        """A row of many megabytes travels like any other, in a batch of its own."""
        pipe = whole(source18, warehouse18, "id int, v text", "")
        source18.run(
            "INSERT INTO t SELECT i, repeat(i::text, 20000000) FROM generate_series(1, 4) AS i"
        )
        sizes = []

        def look(batch):
            sizes.append(batch.num_rows)
            return batch

        publish(pipe, pipe.transform(pipe.extract(), look))
        assert sizes == [2, 2]
        assert warehouse18.run(
            "SELECT md5(string_agg(md5(v), '' ORDER BY id)) FROM a.t"
        ) == source18.run("SELECT md5(string_agg(md5(v), '' ORDER BY id)) FROM t")


class TestRefusedOutput:
    @pytest.mark.parametrize(
        ("give", "error", "says"),
        [
            (lambda b: None, TransformFailed, "gave a NoneType"),
            (lambda b: [None], TransformFailed, "gave a NoneType"),
            (lambda b: pa.Table.from_batches([b]), TransformFailed, "to_batches"),
            (lambda b: {"id": [1]}, TransformFailed, "gave a dict"),
            (lambda b: b.append_column("w", b["v"]), ContractError, "it has 'w', which a.t has not"),
            (lambda b: b.select(["id", "v"]), ContractError, "it lacks 'ts', the cursor"),
            (lambda b: b.set_column(0, "id", b["v"]), ContractError, "id: string does not fit bigint"),
            (lambda b: b.set_column(0, "id", b["id"].cast(pa.float64())), ContractError, "id: double does not fit bigint"),
            (
                lambda b: b.set_column(1, "ts", b["ts"].cast(pa.timestamp("us"))),
                ContractError,
                r"ts: timestamp\[us\] does not fit timestamp with time zone",
            ),
            (lambda b: b.set_column(2, "v", b["id"]), ContractError, "v: int64 does not fit text"),
            (
                lambda b: pa.RecordBatch.from_arrays([b["id"], b["ts"], b["ts"]], ["id", "ts", "ts"]),
                TransformFailed,
                "more than one column called ts",
            ),
            (lambda b: [b, b.select(["id", "ts"])], TransformFailed, "gave the columns id, ts, and before that id, ts, v"),
            (lambda b: b.set_column(2, "v", pa.array(["a\0b"] * len(b))), DataError, "column v"),
            (lambda b: b.set_column(1, "ts", pa.array([None] * len(b))), DataError, "outside of the window"),
        ],
    )  # fmt: skip
    def test_what_the_target_cannot_take(self, staged, give, error, says):
        """Whatever on_error says, errors of the code end the load; nothing is left of it."""
        pipe, batch = staged
        with pytest.raises(error, match=says):
            pipe.transform(batch, give)
        assert pipe.left_in_staging() == {batch.staging.name}
        assert letters(pipe) == []

    @pytest.mark.parametrize(
        ("target", "values"),
        [
            ("smallint", pa.array([40000])),
            ("numeric(5,2)", pa.array([Decimal("1.234")])),
            ("numeric(5,2)", pa.array(["1.234"])),
            ("timestamp(0)", pa.array([datetime(2013, 1, 1, 0, 0, 0, 1)])),
            ("time(3)", pa.array([time(0, 0, 0, 1)])),
            ("date", pa.array([4_000_000], pa.date32())),
            ("double precision", pa.array([2**60 + 1])),
            ("timestamp", pa.array([1], pa.timestamp("ns"))),
        ],
    )  # fmt: skip
    def test_what_would_be_rounded_or_cut(self, source18, warehouse18, target, values):
        """The server would take most of them, and change them in silence."""
        pipe = whole(source18, warehouse18, "id int", "(1)", f"v {target}")
        with pytest.raises(DataError, match=r"column v of the callable's output"):
            pipe.transform(pipe.extract(), lambda _: pa.record_batch([values], ["v"]))

    def test_a_value_that_the_server_refuses(self, source18, warehouse18):
        """Too long for its column: with the column's name, without the value."""
        pipe = whole(source18, warehouse18, "id int", "(1)", "v varchar(3)")
        with pytest.raises(DataError, match=r"column v.*22001") as refused:
            pipe.transform(pipe.extract(), lambda _: pa.record_batch({"v": ["xyzzy"]}))
        assert "xyzzy" not in str(refused.value)

    def test_as_text_of_a_column_that_is_not_there(self, staged):
        pipe, batch = staged
        with pytest.raises(ConfigurationError, match=r"as_text names 'tss', .*did you mean 'ts'"):
            pipe.transform(batch, same, as_text=("tss",))


def picky(batch):
    """Raises for every third row, as code does that handles rows one by one."""
    for number in batch["id"].to_pylist():
        if number % 3 == 0:
            raise ValueError(f"xyzzy {number}")
    return batch


def chained(error, behind):
    error.__cause__ = behind
    return error


def test_a_callable_that_takes_long_is_not_taken_for_a_host_that_fell_silent(staged, monkeypatch):
    """More than the network holds is waiting to be read meanwhile."""
    pipe, _ = staged
    pipe.source.run("UPDATE t SET v = repeat('x', 200000)")
    batch = pipe.extract()
    monkeypatch.setitem(session._SETTINGS, "tcp_user_timeout", "500")
    slept = []

    def slow(rows):
        if not slept:
            slept.append(threading.Event().wait(4))
        return rows

    assert pipe.transform(batch, slow, batch_rows=1).rows == 100


class TestErrors:
    def test_fail_names_class_and_place_and_no_value(self, staged):
        pipe, batch = staged
        with pytest.raises(DataError) as refused:
            pipe.transform(batch, picky)
        assert "picky raised ValueError (test_transform_python.py:" in refused.value.what
        assert "in picky" in refused.value.what
        assert "xyzzy" not in str(refused.value)
        assert letters(pipe) == []
        assert pipe.state(batch.load_id) == "staged"

    def test_rows_that_raise_are_set_aside_and_the_rest_passes(self, staged):
        """33 of 100: found by halving, recorded with the text of the row, published without them."""
        pipe, batch = staged
        made = pipe.transform(batch, picky, on_error=ROW, limits=DeadLimits(0.5), batch_rows=40)
        assert (made.rows, made.transformed.set_aside) == (67, 33)
        found = letters(pipe)
        assert len(found) == 33
        record, reason, error_class, status, ordinal, _ = found[0]
        assert record == {"id": "3", "ts": "2013-01-01 14:52:48+00", "v": "row 2"}
        assert reason.startswith("transform: ValueError (test_transform_python.py:")
        assert (error_class, status, ordinal) == ("data", "held", 0)
        assert "xyzzy" not in str(found)
        assert pipe.warehouse.value("SELECT rows_dead FROM etl.loads") == 33
        publish(pipe, made)
        assert pipe.warehouse.value("SELECT count(*) FROM a.t WHERE id % 3 = 0") == 0
        assert pipe.warehouse.value("SELECT count(*) FROM a.t") == 67

    def test_the_order_of_rows_stays(self, source18, warehouse18):
        """Halves are handed on in the order of their rows."""
        pipe = whole(source18, warehouse18, "id int", "")
        source18.run("INSERT INTO t SELECT i FROM generate_series(1, 50) AS i")
        made = pipe.transform(pipe.extract(), picky, on_error=ROW, limits=DeadLimits(1))
        rows = warehouse18.run(f"SELECT id FROM {made.staging} ORDER BY ctid")
        assert [row[0] for row in rows] == [i for i in range(1, 51) if i % 3]

    def test_a_whole_batch_is_set_aside(self, staged):
        """All rows of the call that raised, and only those."""
        pipe, batch = staged

        def raises_once(rows):
            if 15 in rows["id"].to_pylist():
                raise KeyError("xyzzy")
            return rows

        made = pipe.transform(batch, raises_once, on_error=BATCH, batch_rows=10)
        assert (made.rows, made.transformed.set_aside) == (90, 10)
        assert [record["id"] for record, *_ in letters(pipe)] == [str(i) for i in range(11, 21)]

    @pytest.mark.parametrize(
        ("limit", "most"), [(DeadLimits(), 10), (DeadLimits(1, 5), 5), (DeadLimits(0.32), 32), (DeadLimits(1, 0), 0)]
    )  # fmt: skip
    def test_more_than_may_be_fails_the_load(self, staged, limit, most):
        """The figures and reasons are told; nothing is set aside, and nothing is lost."""
        pipe, batch = staged
        with pytest.raises(
            DataError, match=rf"{most + 1} or more of 100 rows.*ValueError .* \({most + 1} rows\)"
        ):
            pipe.transform(batch, picky, on_error=ROW, limits=limit)
        assert letters(pipe) == []
        assert pipe.left_in_staging() == {batch.staging.name}

    def test_what_extract_has_set_aside_counts_too(self, staged):
        """The limit is the load's, not the step's."""
        pipe, batch = staged
        pipe.warehouse.run(
            "UPDATE etl.loads SET rows_dead = 20, manifest = jsonb_set(manifest, '{rows_dead}', '20')"
        )
        with pytest.raises(
            DataError, match="of 120 rows, beside 20 that were before, and at most 40"
        ):
            pipe.transform(batch, picky, on_error=ROW, limits=DeadLimits(0.4))
        assert pipe.transform(batch, picky, on_error=ROW, limits=DeadLimits(0.45)).rows == 67

    def test_as_many_as_may_be_pass(self, staged):
        pipe, batch = staged
        assert pipe.transform(batch, picky, on_error=ROW, limits=DeadLimits(0.33)).rows == 67

    def test_a_broken_callable_is_not_tried_on_every_row(self, staged):
        """Where everything raises, it ends as soon as there are too many."""
        pipe, batch = staged
        calls = []

        def broken(rows):
            calls.append(rows.num_rows)
            raise AttributeError("xyzzy")

        with pytest.raises(DataError, match=r"of 100 rows, and at most 10\.00% may be"):
            pipe.transform(batch, broken, on_error=ROW)
        assert len(calls) < 50

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (ConnectionResetError("xyzzy"), TransientError),
            (TimeoutError(), TransientError),
            (TransientError("the rates were not there"), TransientError),
            (NameError("xyzzy"), TransformFailed),
            (ImportError("xyzzy"), TransformFailed),
            (FileNotFoundError("xyzzy"), TransformFailed),
            (pa.ArrowNotImplementedError("xyzzy"), TransformFailed),
            (ConfigurationError("xyzzy has no rate"), TransformFailed),
            (chained(RuntimeError("xyzzy"), httpx.ConnectError("xyzzy")), TransientError),
            (chained(ValueError("xyzzy"), httpx.ReadTimeout("xyzzy")), TransientError),
            (pymysql.err.OperationalError(2013, "xyzzy"), TransientError),
        ],
        ids=lambda each: type(each).__name__ if isinstance(each, Exception) else "",
    )
    def test_only_errors_about_data_set_rows_aside(self, staged, error, kind):
        """A lost connection is retried, a mistake in the code ends it: no row is at fault."""
        pipe, batch = staged

        def raises(rows):
            raise error

        with pytest.raises(kind) as refused:
            pipe.transform(batch, raises, on_error=ROW, limits=DeadLimits(1))
        assert "xyzzy" not in str(refused.value)
        assert letters(pipe) == []

    def test_errors_of_ours_about_data_and_unknown_ones_set_rows_aside(self, staged):
        class Odd(Exception):
            pass

        def raises(rows):
            for number in rows["id"].to_pylist():
                if number == 1:
                    raise DataError("xyzzy")
                if number == 2:
                    raise Odd("xyzzy")
            return rows

        pipe, batch = staged
        assert pipe.transform(batch, raises, on_error=ROW).rows == 98
        assert [reason.split(" (")[0].rsplit(".", 1)[1] for _, reason, *_ in letters(pipe)] == [
            "DataError",
            "Odd",
        ]
        assert "xyzzy" not in str(letters(pipe))

    def test_values_that_do_not_fit_are_found_by_row_too(self, source18, warehouse18):
        """What the callable gives is looked at before it is written, so the row that it came from is known."""
        pipe = whole(
            source18,
            warehouse18,
            "id int, n numeric",
            "(1, 1.5), (2, 1.555), (3, NULL)",
            "id int, n numeric(5,2)",
        )
        made = pipe.transform(pipe.extract(), same, on_error=ROW, limits=DeadLimits(0.5))
        assert made.rows == 2
        ((record, reason, *_),) = letters(pipe)
        assert record == {"id": "2", "n": "1.555"}
        assert (
            reason
            == "transform: column n of the callable's output: a value does not fit numeric(5,2), or not exactly"
        )

    def test_a_generator_that_raises_late_gives_nothing_twice(self, staged):
        """What it had given of the batch before is not kept when the batch is tried in halves."""
        pipe, batch = staged

        def late(rows):
            for place in range(rows.num_rows):
                row = rows.slice(place, 1)
                if row["id"].to_pylist() == [77]:
                    raise ValueError
                yield row

        made = pipe.transform(batch, late, on_error=ROW)
        publish(pipe, made)
        assert pipe.warehouse.run("SELECT count(*), count(DISTINCT id) FROM a.t") == [(99, 99)]

    def test_equal_rows_are_as_many_letters(self, source18, warehouse18):
        pipe = whole(
            source18, warehouse18, "id int, v text", "(3, 'x'), (3, 'x'), (1, 'y')", keys=("id",)
        )
        pipe.transform(pipe.extract(), picky, on_error=ROW, limits=DeadLimits(1))
        assert [(record, ordinal, key) for record, _, _, _, ordinal, key in letters(pipe)] == [
            ({"id": "3", "v": "x"}, 0, "3"),
            ({"id": "3", "v": "x"}, 1, "3"),
        ]

    def test_a_clear_sets_aside_anew(self, staged):
        """The callable was mended: letters of before are gone with what they were letters of."""
        pipe, batch = staged
        pipe.transform(batch, picky, on_error=ROW, limits=DeadLimits(1))
        pipe.warehouse.run(
            "INSERT INTO etl.dead_letters (stream, load_id, record, row_hash, ordinal, reason, error_class, status, expectation)"
            " SELECT stream, load_id, '{}', 'audit', 0, 'x', 'data', 'held', 'expect_x' FROM etl.dead_letters LIMIT 1;"
            "INSERT INTO etl.dead_letters (stream, load_id, record, row_hash, ordinal, reason, error_class, status)"
            " SELECT stream, load_id, '{}', 'conversion', 0, 'not a date', 'data', 'held' FROM etl.dead_letters LIMIT 1"
        )
        made = pipe.transform(batch, same, on_error=ROW, try_number=2, clear_number=1)
        assert (made.rows, made.transformed.set_aside) == (100, 0)
        assert [reason for _, reason, *_ in letters(pipe)] == ["not a date"]
        assert pipe.warehouse.value("SELECT rows_dead FROM etl.loads") == 1


class TestInterrupted:
    def test_killed_in_the_middle_it_leaves_nothing(self, staged):
        """The writing session dies between two blocks: no table, no letter, and the retry makes all of it."""
        pipe, batch = staged

        def dies(rows):
            if 55 in rows["id"].to_pylist():
                pipe.warehouse.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'etl:test' AND query LIKE 'COPY%FROM STDIN%'"
                )
            return picky(rows)

        with pytest.raises(TransientError):
            pipe.transform(batch, dies, on_error=ROW, limits=DeadLimits(1), batch_rows=10)
        assert pipe.left_in_staging() == {batch.staging.name}
        assert letters(pipe) == []
        made = pipe.transform(batch, picky, on_error=ROW, limits=DeadLimits(1), try_number=2)
        assert (made.rows, len(letters(pipe))) == (67, 33)

    def test_a_stop_ends_it_between_two_calls(self, staged):
        pipe, batch = staged
        stop = threading.Event()

        def stops(rows):
            stop.set()
            return rows

        with pytest.raises(Stopped):
            pipe.transform(batch, stops, batch_rows=10, stop=stop)
        assert pipe.left_in_staging() == {batch.staging.name}
        assert (
            pipe.warehouse.value(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'etl:test' AND datname = current_database()"
            )
            == 0
        )

    def test_a_retry_ends_the_try_before_it(self, staged):
        """A lost worker's sessions are ended, not waited for."""
        pipe, batch = staged
        begun, go_on = threading.Event(), threading.Event()

        def waits(rows):
            begun.set()
            go_on.wait(15)
            return rows

        with in_background(lambda: pipe.transform(batch, waits, batch_rows=50)) as zombie:
            wait_until(begun.is_set, "the first try at work")
            made = pipe.transform(batch, same, try_number=2)
            go_on.set()
        assert isinstance(zombie.exception(), EtlError), zombie.exception()
        assert pipe.left_in_staging() == {batch.staging.name, made.staging.name}

    def test_a_callable_may_use_the_warehouse_itself(self, staged):
        """Its own connection fails: by SQLSTATE the error is transient."""
        from airflow_etl_provider.hooks.errors import class_of

        pipe, batch = staged

        def locks(rows):
            with pipe.warehouse.connect() as connection:
                connection.execute("SET lock_timeout = '1ms'; LOCK TABLE a.t NOWAIT")
            return rows

        with pipe.warehouse.connect() as holder, holder.transaction():
            holder.execute("LOCK TABLE a.t IN ACCESS SHARE MODE")
            with pytest.raises(TransientError, match="LockNotAvailable"):
                pipe.transform(batch, locks, on_error=ROW, judge=class_of)
        assert class_of(psycopg.errors.UniqueViolation()) == "data"


_MEASURE = """
import json, resource, sys, threading
from psycopg.conninfo import conninfo_to_dict
import pyarrow as pa, pyarrow.compute as pc, pyarrow.csv
from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.load import RunInfo
from airflow_etl_provider.core.transform import ByCallable, OnError, TransformRequest, transform
from airflow_etl_provider.postgres.session import Endpoint
from airflow_etl_provider.postgres.transform import PostgresTransforms

def work(batch):
    return batch.set_column(2, "v", pc.utf8_upper(batch["v"]))

conninfo, load_id, rows = sys.argv[1:]
area = PostgresTransforms(Endpoint(conninfo_to_dict(conninfo), "warehouse", "etl:memory"))
run = RunInfo("dag", "transform", "run", "manual", -1, 1, 0)
how = ByCallable(work, "work", OnError.SET_ASIDE_ROW, batch_rows=int(rows))
made = transform(TransformRequest(load_id, run, how), area=area, stop=threading.Event(), log=lambda *a, **k: None)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"rows": made.rows, "peak_mb": peak / 1024, "arrow_mb": pa.default_memory_pool().max_memory() / 1e6}))
"""


def measured(pipe, batch, rows):
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, pipe.warehouse.conninfo, batch.load_id, str(rows)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_memory_is_flat(source18, warehouse18):
    """Ten times the rows, not more memory: a process of its own is looked at from outside."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 20_000)
    fill(source18, FEBRUARY, MARCH, 200_000, first=1_000_000)
    small = measured(pipe, pipe.extract(JANUARY, FEBRUARY), 5_000)
    large = measured(pipe, pipe.extract(FEBRUARY, MARCH), 5_000)
    assert (small["rows"], large["rows"]) == (20_000, 200_000)
    assert large["peak_mb"] < small["peak_mb"] + 15, (small, large)
    assert large["arrow_mb"] < 2 * small["arrow_mb"], (small, large)
