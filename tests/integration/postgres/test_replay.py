"""Dead letters come back through conversion, audit and publish: each once, and never over a newer row."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from uuid6 import uuid7

from airflow_etl_provider.core.columns import Selection, Treatment
from airflow_etl_provider.core.dead_letters import OnConversionError
from airflow_etl_provider.core.errors import (
    ConfigurationError,
    ContractError,
    EtlError,
    StateError,
    Stopped,
    Superseded,
)
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.maintenance import MaintenanceOptions
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.replay import Findings, ReplayRequest
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.core.settle import SettleOptions
from airflow_etl_provider.postgres.maintenance import maintain
from airflow_etl_provider.postgres.replay import PostgresReplay
from airflow_etl_provider.postgres.restore import restore
from airflow_etl_provider.postgres.rewind import rewind
from airflow_etl_provider.postgres.session import connect
from airflow_etl_provider.postgres.stream_checks import StreamFacts
from airflow_etl_provider.quality.report import ExpectationResult, Report
from airflow_etl_provider.quality.suite import Suite
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import (
    EVERY_ROW,
    FEBRUARY,
    JANUARY,
    MARCH,
    Pipeline,
    fill,
    in_background,
    run_info,
    simple,
    wait_until,
)
from tests.integration.postgres.test_quarantine import (
    NOT_NULL,
    UNIQUE_V,
    V_PRESENT,
    entities,
    flawed,
)

SET_ASIDE: dict[str, Any] = {
    "on_conversion_error": OnConversionError.QUARANTINE,
    "dead_limits": EVERY_ROW,
}


def published(pipe: Pipeline, *window: datetime, **options: Any) -> str:
    """A published load whose rows without v are dead letters; its id."""
    manifest = pipe.audit(pipe.extract(*window), [V_PRESENT])
    pipe.publish(manifest, **options)
    return manifest.load_id


def without_v(pipe: Pipeline) -> int:
    found: int = pipe.warehouse.value("SELECT count(*) FROM a.t WHERE v IS NULL")
    return found


STRATEGIES = {
    "swap": (Strategy.SWAP, {}),
    "swap_merge": (Strategy.SWAP_MERGE, {}),
    "delete_insert": (Strategy.DELETE_INSERT, {}),
    "append": (Strategy.APPEND, {}),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_mended_row_joins_what_its_load_has_published(source, warehouse, name):
    """And nothing else of the window changes, whatever the load had replaced."""
    strategy, changes = STRATEGIES[name]
    pipe = flawed(source, warehouse, **changes)
    origin = published(pipe, JANUARY, MARCH, strategy=strategy)
    before = pipe.rows()
    position, coverage, store = pipe.position(), pipe.coverage(), pipe.store.read("t")
    done = pipe.replay(values={"v": "mended"})
    assert done.counts() == {
        "replayed": 2,
        "superseded": 0,
        "failed": 0,
        "waiting": 0,
        "refused": 0,
    }
    assert len(pipe.rows()) == 60
    assert set(before) < set(pipe.rows())
    assert without_v(pipe) == 0
    assert warehouse.value("SELECT count(*) FROM a.t WHERE v = 'mended'") == 2
    assert pipe.letters("status, retries") == [("replayed", 0)] * 2
    (load_id,) = done.load_ids
    assert pipe.letters("replay::text, resolution")[0] == (load_id, f"published by load {load_id}")
    # A replay covers nothing, and moves nothing.
    assert (pipe.position(), pipe.coverage(), pipe.store.read("t")) == (position, coverage, store)
    assert warehouse.run(
        "SELECT state, replays::text, rows_inserted FROM etl.loads WHERE load_id = %s", (load_id,)
    ) == [("published", origin, 2)]
    assert not any(load_id.replace("-", "")[-12:] in table for table in pipe.left_in_staging())


def test_run_twice_is_once(source, warehouse):
    pipe = flawed(source, warehouse)
    published(pipe, JANUARY, MARCH)
    ids = [letter for (letter,) in pipe.letters("id")]
    assert pipe.replay(ids, values={"v": "mended"}).replayed == 2
    rows = pipe.rows()
    again = pipe.replay(ids, values={"v": "other"})
    assert (again.replayed, dict(again.others)) == (0, {"replayed": 2})
    assert pipe.replay(values={"v": "other"}).replayed == 0
    assert pipe.rows() == rows


def test_a_row_that_is_not_mended_fails_again_and_holds_up_no_other(source, warehouse):
    pipe = flawed(source, warehouse)
    published(pipe, JANUARY, MARCH)
    (third,), (fortieth,) = pipe.letters("id")
    done = pipe.replay(corrections={fortieth: {"v": "mended"}})
    assert (done.replayed, done.failed) == (1, 1)
    assert pipe.letters("id, status, retries, reason") == [
        (third, "pending", 1, f"{NOT_NULL}(v)"),
        (fortieth, "replayed", 0, f"{NOT_NULL}(v)"),
    ]
    assert pipe.replay().failed == 1
    assert pipe.letters("retries")[0] == (2,)
    # Its record is what the source had, whatever was tried.
    assert pipe.letters("record ->> 'v'")[0] == (None,)


def test_conversion_is_the_same_as_ever(source, warehouse):
    source.run(
        "CREATE TABLE t (id bigint, ts timestamptz, v text, w text);"
        "INSERT INTO t VALUES (1, '2013-01-05Z', 'x', '2013-02-30'), (2, '2013-01-06Z', '7', NULL), (3, '2013-01-07Z', 'y', NULL)"
    )
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz, v smallint, w date)"
    )
    pipe = Pipeline(source, warehouse, partition=None, options=SET_ASIDE)
    pipe.load(JANUARY, FEBRUARY)
    (first,), (last,) = pipe.letters("id")
    mended = {first: {"v": "70000", "w": "2013-02-28"}, last: {"v": "9", "w": None}}
    done = pipe.replay(corrections=mended)
    assert (done.replayed, done.failed) == (1, 1)
    assert pipe.letters("id, status, reason") == [
        (first, "pending", "column v cannot be converted to smallint"),
        (last, "replayed", "column v cannot be converted to smallint"),
    ]
    assert pipe.replay([first], values={"v": "8", "w": "2013-02-28"}).replayed == 1
    assert warehouse.run("SELECT id, v, w::text FROM a.t ORDER BY id") == [
        (1, 8, "2013-02-28"),
        (2, 7, None),
        (3, 9, None),
    ]


def test_values_of_every_kind_come_back_as_they_were(source, warehouse):
    columns = (
        'id int PRIMARY KEY, "Odd ""v" text, tags text[], raw bytea, doc json, j jsonb, at timestamptz, d date, r tstzrange,'
        " n numeric(12,3), f float8, i interval, b boolean, c char(5), bits bit(3), u uuid, m money"
    )
    source.run(f"CREATE TABLE t ({columns})")
    source.run(
        "INSERT INTO t VALUES (1, NULL, '{a,NULL,\"b c\"}', '\\x00ff', '{\"a\":  [1]}', '{\"b\": null}', '-infinity',"
        " '0044-03-15 BC', '[2013-01-01 00:00+00,)', 1.500, 'NaN', '1 mon -2 days 00:00:01.5', true, 'ab', '101',"
        " '7d444840-9dc0-11d1-b245-5ffdce74fad2', '1.25')"
    )
    warehouse.run(f"CREATE SCHEMA a; CREATE TABLE a.t ({columns})")
    pipe = Pipeline(
        source, warehouse, kind=Kind.SNAPSHOTS, cursor=None, keys=("id",), partition=None, mode=WindowMode.FULL
    )  # fmt: skip
    manifest = pipe.audit(pipe.extract(), [{**V_PRESENT, "kwargs": {"column": 'Odd "v'}}])
    pipe.publish(manifest)
    assert pipe.rows() == []
    assert pipe.replay(values={'Odd "v': 'it\'s\n"mended" \\ ünï'}).replayed == 1
    source.run('UPDATE t SET "Odd ""v" = E\'it\'\'s\\n"mended" \\\\ ünï\'')
    assert pipe.rows() == pipe.source_rows()


# -- overtaken ----------------------------------------------------------------------------------------


def test_a_row_that_has_a_newer_version_in_the_target_is_not_brought_back(source, warehouse):
    pipe = entities(source, warehouse)
    published(pipe, JANUARY, FEBRUARY)
    # Somebody else has put a newer version there.
    warehouse.run("INSERT INTO a.t VALUES (2, '2013-01-20Z', 'newer'), (3, '2013-01-02Z', 'older')")
    done = pipe.replay(values={"v": "mended"})
    assert (done.replayed, done.superseded) == (1, 1)
    assert warehouse.run("SELECT id, v FROM a.t ORDER BY id") == [
        (1, "a"),
        (2, "newer"),
        (3, "mended"),
    ]
    assert pipe.letters("record_key, status") == [("2", "superseded"), ("3", "replayed")]
    assert pipe.letters("resolution")[0][0] == (
        "overtaken: the target has a newer version of the row"
    )


def test_an_event_that_is_there_already_is_not_doubled(source, warehouse):
    pipe = flawed(source, warehouse)
    published(pipe, JANUARY, MARCH)
    warehouse.run(
        "INSERT INTO a.t SELECT (record ->> 'id')::bigint, (record ->> 'ts')::timestamptz, 'by hand'"
        " FROM etl.dead_letters WHERE record ->> 'id' = '3'"
    )
    done = pipe.replay(values={"v": "mended"})
    assert (done.replayed, done.superseded) == (1, 1)
    assert warehouse.value("SELECT v FROM a.t WHERE id = 3") == "by hand"
    assert pipe.letters("resolution")[0] == ("overtaken: the target has the row already",)
    assert warehouse.value("SELECT count(*) FROM a.t") == 60


def keyless(source, warehouse) -> Pipeline:
    source.run("CREATE TABLE t (id bigint, ts timestamptz, v text)")
    warehouse.run("CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz, v text)")
    fill(source, JANUARY, MARCH, 60)
    source.run("UPDATE t SET v = NULL WHERE id IN (3, 40)")
    return Pipeline(source, warehouse, partition=None)


def test_events_without_a_key_come_back_as_long_as_their_load_covers_their_place(source, warehouse):
    pipe = keyless(source, warehouse)
    published(pipe, JANUARY, MARCH)
    # January is to be loaded again, so what belongs there waits for that.
    with connect(warehouse.endpoint("etl:test")) as connection:
        rewind(connection, "t", "2013-02-01 00:00:00+00", "wrong", "me")
        connection.execute(
            "UPDATE etl.coverage SET low = '2013-01-15', high = '2013-03-01' WHERE stream = 't'"
        )
    done = pipe.replay(values={"v": "mended"})
    assert (done.replayed, done.waiting) == (1, 1)
    assert pipe.letters("record ->> 'id', status") == [("3", "pending"), ("40", "replayed")]
    assert warehouse.value("SELECT count(*) FROM a.t") == 59
    # Loaded again, it settles its letters: the replayed row is not there twice.
    source.run("UPDATE t SET v = 'mended at home' WHERE v IS NULL")
    pipe.load(JANUARY, MARCH)
    assert warehouse.value("SELECT count(*) FROM a.t") == 60
    assert pipe.letters("record ->> 'id', status") == [("3", "superseded"), ("40", "replayed")]
    assert pipe.replay(values={"v": "mended"}).replayed == 0


def test_an_event_that_a_correction_moves_out_of_its_window_fails_again(source, warehouse):
    """Another load has that place, and would take the row away again."""
    pipe = keyless(source, warehouse)
    published(pipe, JANUARY, FEBRUARY)
    published(pipe, FEBRUARY, MARCH)
    (third,) = pipe.letters("id")[0]
    done = pipe.replay([third], values={"v": "x", "ts": "2013-02-05 00:00:00+00"})
    assert done.failed == 1
    assert pipe.letters("status, reason")[0] == (
        "pending",
        "column ts lies outside of the window of its load",
    )
    assert pipe.replay([third], values={"v": "x", "ts": "2013-01-31 23:59:59+00"}).replayed == 1


def test_what_another_load_covers_by_now_is_not_brought_back(source, warehouse):
    pipe = keyless(source, warehouse)
    published(pipe, JANUARY, MARCH)
    warehouse.run("UPDATE etl.coverage SET load_id = %s", (str(uuid7()),))
    done = pipe.replay(values={"v": "mended"})
    assert (done.replayed, done.superseded) == (0, 2)
    assert warehouse.value("SELECT count(*) FROM a.t") == 58
    assert set(pipe.letters("resolution")) == {
        ("overtaken: another load covers the place of the row by now",)
    }


def test_where_two_ranges_meet_the_bound_belongs_to_both(source, warehouse):
    """A row on the upper end of its load's range is its load's, though the next range begins there."""
    pipe = keyless(source, warehouse)
    source.run("UPDATE t SET v = NULL, ts = '2013-02-01Z' WHERE id = 35")
    published(pipe, JANUARY, MARCH)
    warehouse.run("UPDATE etl.coverage SET low = '2012-12-31', high = '2013-02-01', bounds = '(]'")
    warehouse.run(
        "INSERT INTO etl.coverage (stream, low, high, bounds, load_id)"
        " VALUES ('t', '2013-02-01', '2013-03-01', '[)', %s)",
        (str(uuid7()),),
    )
    done = pipe.replay(values={"v": "mended"})
    assert (done.replayed, done.superseded) == (2, 1)
    assert sorted(pipe.letters("record ->> 'id', status")) == [
        ("3", "replayed"),
        ("35", "replayed"),
        ("40", "superseded"),
    ]


def test_letters_that_cannot_be_replayed_hold_up_no_other(source, warehouse):
    """An old load had columns that are gone, and lacks those that the suite reads by now."""
    pipe = flawed(source, warehouse)
    published(pipe, JANUARY, FEBRUARY)
    source.run("ALTER TABLE t ADD COLUMN w text")
    warehouse.run("ALTER TABLE a.t ADD COLUMN w text")
    published(pipe, FEBRUARY, MARCH)
    (early,), _ = pipe.letters("id")
    both = [
        V_PRESENT,
        {"type": "expect_column_values_to_be_null", "kwargs": {"column": "w"}},
    ]
    with pytest.raises(ContractError, match=r"cannot be audited.*'w'") as error:
        pipe.replay(values={"v": "mended"}, suite=both)
    assert "--suite" in (error.value.remedy or "")
    assert pipe.letters("status") == [("pending",), ("replayed",)]
    assert "letters cannot be replayed" in pipe.log.names()
    assert pipe.replay([early], values={"v": "mended"}, suite=[V_PRESENT]).replayed == 1


def test_events_of_a_retired_partition_wait_until_it_is_restored(source18, warehouse18):
    pipe = keyless(source18, warehouse18)
    warehouse18.run(
        "DROP TABLE a.t; CREATE TABLE a.t (id bigint, ts timestamptz, v text) PARTITION BY RANGE (ts);"
        "CREATE TABLE a.january PARTITION OF a.t FOR VALUES FROM ('2013-01-01 00:00+00') TO ('2013-02-01 00:00+00');"
        "CREATE TABLE a.february PARTITION OF a.t FOR VALUES FROM ('2013-02-01 00:00+00') TO ('2013-03-01 00:00+00')"
    )
    published(pipe, JANUARY, FEBRUARY)
    published(pipe, FEBRUARY, MARCH)
    options = MaintenanceOptions(keep_partitions=1)
    silent: dict[str, Any] = {"stop": threading.Event(), "log": RecordedEvents()}
    with connect(warehouse18.endpoint("etl:test")) as connection:
        maintain(connection, TableName("a", "t"), options, "me", **silent)
    assert warehouse18.value("SELECT to_regclass('a.january') IS NULL")
    done = pipe.replay(values={"v": "mended"})
    assert (done.replayed, done.waiting) == (1, 1)
    with connect(warehouse18.endpoint("etl:test")) as connection:
        restore(connection, TableName("a", "january"), options, **silent)
    assert pipe.replay(values={"v": "mended"}).replayed == 1
    assert warehouse18.value("SELECT count(*) FROM a.t") == 60


def test_a_reload_of_an_appended_window_takes_replayed_rows_with_it(source, warehouse):
    source.run("CREATE TABLE t (id bigint, ts timestamptz, v text)")
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz, v text, load_id uuid)"
    )
    fill(source, JANUARY, FEBRUARY, 20)
    source.run("UPDATE t SET v = NULL WHERE id = 3")
    pipe = Pipeline(source, warehouse, partition=None, options={"filled_by_publish": ("load_id",)})
    told = {"strategy": Strategy.APPEND, "load_id_column": "load_id"}
    origin = published(pipe, JANUARY, FEBRUARY, **told)
    pipe.replay(values={"v": "mended"})
    assert warehouse.run("SELECT DISTINCT load_id::text, count(*) FROM a.t GROUP BY 1") == [
        (origin, 20)
    ]
    source.run("UPDATE t SET v = 'home' WHERE id = 3")
    pipe.load(JANUARY, FEBRUARY, options=told)
    assert warehouse.value("SELECT count(*) FROM a.t") == 20


def test_a_history_takes_an_older_version_in(source, warehouse):
    source.run("CREATE TABLE t (id bigint PRIMARY KEY, ts timestamptz NOT NULL, v text)")
    source.run("INSERT INTO t VALUES (1, '2013-01-05Z', NULL)")
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz, v text, since timestamptz, valid_to timestamptz, now boolean)"
    )
    pipe = Pipeline(
        source, warehouse, kind=Kind.ENTITIES, keys=("id",), partition=None,
        options={"filled_by_publish": ("since", "valid_to", "now")},
    )  # fmt: skip
    told = {"strategy": Strategy.SCD2, "valid_from": "since", "is_current": "now"}
    published(pipe, JANUARY, FEBRUARY, **told)
    pipe.replay(values={"v": "first"})
    source.run("UPDATE t SET ts = '2013-02-05Z', v = 'second'")
    published(pipe, FEBRUARY, MARCH, **told)
    assert warehouse.run(
        "SELECT v, since::date::text, valid_to::date::text, now FROM a.t ORDER BY since"
    ) == [
        ("first", "2013-01-05", "2013-02-05", False),
        ("second", "2013-02-05", None, True),
    ]


def test_deleted_rows_are_deleted(source, warehouse):
    source.run("CREATE TABLE t (id bigint PRIMARY KEY, ts timestamptz, v text, gone boolean)")
    source.run(
        "INSERT INTO t VALUES (1, '2013-01-05Z', NULL, true), (2, '2013-01-05Z', 'b', false)"
    )
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint PRIMARY KEY, ts timestamptz, v text, gone boolean);"
        "INSERT INTO a.t SELECT i, '2013-01-01Z', 'x', false FROM generate_series(1, 9) AS i"
    )
    pipe = Pipeline(source, warehouse, kind=Kind.ENTITIES, keys=("id",), partition=None)
    published(pipe, JANUARY, FEBRUARY, delete_flag="gone")
    assert pipe.replay(values={"v": ""}).replayed == 1
    assert warehouse.value("SELECT array_agg(id ORDER BY id) FROM a.t") == list(range(2, 10))


# -- the audit ----------------------------------------------------------------------------------------


def test_rows_must_satisfy_the_newest_suite_of_the_stream_or_the_one_that_is_given(
    source, warehouse
):
    pipe = flawed(source, warehouse)
    published(pipe, JANUARY, MARCH)
    (third,), (fortieth,) = pipe.letters("id")
    short = {
        "type": "expect_column_value_lengths_to_be_between",
        "kwargs": {"column": "v", "max_value": 3},
        "severity": "warning",
        "on_fail": "quarantine",
    }
    # A later load is judged by a suite that asks for more.
    fill(source, MARCH, datetime(2013, 4, 1, tzinfo=UTC), 10, first=100)
    late = pipe.audit(pipe.extract(MARCH, datetime(2013, 4, 1, tzinfo=UTC)), [short])
    pipe.publish(late)
    assert late.rows_dead == 10
    assert pipe.replay([third], values={"v": "too long"}).failed == 1
    assert pipe.letters("reason")[0] == ("expect_column_value_lengths_to_be_between(v)",)
    assert pipe.replay([third], values={"v": "fit"}).replayed == 1
    assert pipe.replay([fortieth], suite=[V_PRESENT], values={"v": "too long"}).replayed == 1


def test_what_a_share_of_rows_may_break_no_replayed_row_may(source, warehouse):
    pipe = flawed(source, warehouse)
    published(pipe, JANUARY, MARCH)
    mostly = {"type": NOT_NULL, "kwargs": {"column": "v", "mostly": 0.1}}
    (third,) = pipe.letters("id")[0]
    done = pipe.replay(suite=[mostly], corrections={third: {"v": "mended"}})
    assert (done.replayed, done.failed) == (1, 1)


def test_duplicates_among_the_letters_fail_again(source, warehouse):
    pipe = flawed(source, warehouse)
    source.run("UPDATE t SET v = 'twin' WHERE id IN (7, 8, 9)")
    pipe.publish(pipe.audit(pipe.extract(JANUARY, MARCH), [UNIQUE_V]))
    assert pipe.replay().failed == 3
    one, *_ = [letter for (letter,) in pipe.letters("id")]
    assert pipe.replay([one]).replayed == 1


#: What SQL does not judge.
PARSEABLE: dict[str, Any] = {
    "type": "expect_column_values_to_be_json_parseable",
    "kwargs": {"column": "v"},
}


def by_gx(table: Any, suite: Suite, load_id: str, *, success: bool = True) -> Report:
    """What Great Expectations would say."""
    now = datetime.now(UTC)
    results = tuple(
        ExpectationResult(e.type, e.kwargs, e.severity, success, column="v")
        for e in suite.expectations
    )
    return Report(load_id, "great_expectations", str(table), 2, results, now, now)


def test_what_only_great_expectations_can_say_holds_for_all_rows_or_none(source18, warehouse18):
    pipe = flawed(source18, warehouse18)
    published(pipe, JANUARY, MARCH)
    asked: dict[str, Any] = {"values": {"v": "mended"}, "suite": [PARSEABLE, V_PRESENT]}
    done = pipe.replay(**asked, by_gx=partial(by_gx, success=False))
    assert done.failed == 2
    assert {reason for (reason,) in pipe.letters("reason")} == {
        "expect_column_values_to_be_json_parseable(v)"
    }
    assert pipe.replay(**asked, by_gx=by_gx).replayed == 2


def test_a_row_that_the_target_refuses_fails_alone(source, warehouse):
    """Halves of the batch tell which one it is."""
    source.run("CREATE TABLE t (id bigint, ts timestamptz, v text)")
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz, v text, CHECK (v <> 'bad'), PRIMARY KEY (id))"
    )
    source.run("INSERT INTO t SELECT i, '2013-01-05Z', NULL FROM generate_series(1, 9) AS i")
    pipe = Pipeline(source, warehouse, partition=None)
    pipe.publish(pipe.audit(pipe.extract(JANUARY, FEBRUARY), [V_PRESENT]))
    ids = [letter for (letter,) in pipe.letters("id")]
    done = pipe.replay(values={"v": "good"}, corrections={ids[4]: {"v": "bad"}})
    assert (done.replayed, done.failed) == (8, 1)
    assert warehouse.value("SELECT count(*) FROM a.t") == 8
    status, retries, reason = pipe.letters("status, retries, reason")[4]
    assert (status, retries) == ("pending", 1)
    assert "check constraint" in reason
    assert "bad" not in reason
    assert pipe.left_in_staging() == set()


# -- what is refused ----------------------------------------------------------------------------------


def test_corrections_must_fit(source18, warehouse18):
    pipe = flawed(source18, warehouse18)
    published(pipe, JANUARY, MARCH)
    with pytest.raises(ConfigurationError, match="no column 'w'"):
        pipe.replay(values={"w": "1"})
    with pytest.raises(ConfigurationError, match="is not among those"):
        pipe.replay([1], corrections={2: {"v": "1"}})
    with pytest.raises(ConfigurationError, match="a int, not a text"):
        pipe.replay(values={"v": 1})  # type: ignore[dict-item]
    with pytest.raises(ConfigurationError, match="999 does not exist"):
        pipe.replay([999])
    with pytest.raises(StateError, match="does not know stream"):
        Pipeline(source18, warehouse18, stream="unknown").replay()
    assert {status for (status,) in pipe.letters("status")} == {"pending"}
    assert pipe.letters("retries") == [(0,), (0,)]


def test_personal_data_is_not_mended_by_hand(source18, warehouse18):
    """A hash can only be made where the key is."""
    source18.run("CREATE TABLE t (id bigint, ts timestamptz, v text, mail text)")
    source18.run("INSERT INTO t VALUES (1, '2013-01-05Z', NULL, 'ann@example.com')")
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz, v text, mail text)"
    )
    pipe = Pipeline(
        source18, warehouse18, partition=None, hash_key="k",
        selection=Selection(personal={"mail": Treatment.HASH}),
    )  # fmt: skip
    manifest = pipe.audit(pipe.extract(JANUARY, FEBRUARY), [V_PRESENT], EVERY_ROW)
    pipe.publish(manifest)
    with pytest.raises(ConfigurationError, match="personal"):
        pipe.replay(values={"mail": "bob@example.com", "v": "x"})
    pipe.replay(values={"v": "x"})
    ((mail,),) = warehouse18.run("SELECT mail FROM a.t")
    assert len(mail) == 64


def test_letters_of_a_load_that_is_not_published_are_not_there_yet(source, warehouse):
    pipe = flawed(source, warehouse)
    manifest = pipe.audit(pipe.extract(JANUARY, MARCH), [V_PRESENT])
    ids = [letter for (letter,) in pipe.letters("id")]
    done = pipe.replay(ids, values={"v": "mended"})
    assert (done.replayed, dict(done.others)) == (0, {"held": 2})
    pipe.publish(manifest)
    assert pipe.replay(ids, values={"v": "mended"}).replayed == 2


# -- crashes, tries and races -------------------------------------------------------------------------


def test_killed_at_any_statement_the_next_try_ends_as_if_nothing_had_happened(
    source18, warehouse18, monkeypatch
):
    pipe = flawed(source18, warehouse18)
    published(pipe, JANUARY, MARCH)
    execute = psycopg.Connection.execute
    left = [0]

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            psycopg.Connection.close(self)
        return execute(self, *args, **kwargs)

    monkeypatch.setattr(psycopg.Connection, "execute", counted)
    failed = 0
    for number in range(1, 400):
        left[0] = number
        try:
            done = pipe.replay(values={"v": "mended"})
        except EtlError:
            failed += 1
            left[0] = -1
            rows = warehouse18.value("SELECT count(*) FROM a.t")
            statuses = {status for (status,) in pipe.letters("status")}
            assert (rows, statuses) in [(58, {"pending"}), (60, {"replayed"})], (
                f"statement {number}"
            )
            assert pipe.letters("retries") == [(0,), (0,)]
            if rows == 60:
                # Begun again, so that the statements after the commit are reached too.
                warehouse18.run(
                    "DELETE FROM a.t WHERE v = 'mended'; UPDATE etl.dead_letters SET status = 'pending', replay = NULL"
                )
        else:
            assert done.replayed == 2
            break
    left[0] = -1
    assert failed > 40
    assert warehouse18.value("SELECT count(*) FROM a.t") == 60
    states = dict(
        warehouse18.run(
            "SELECT state, count(*) FROM etl.loads WHERE replays IS NOT NULL GROUP BY 1"
        )
    )
    assert set(states) <= {"published", "abandoned"}
    assert len(pipe.left_in_staging()) <= states.get("published", 0)


def test_two_replays_at_once_bring_each_row_back_once(source18, warehouse18):
    pipe = flawed(source18, warehouse18)
    published(pipe, JANUARY, MARCH)
    reached, go_on = threading.Event(), threading.Event()
    outcome: list[Any] = []

    def slowly(*args: Any) -> Report:
        reached.set()
        assert go_on.wait(30)
        return by_gx(*args)

    def late() -> None:
        try:
            outcome.append(pipe.replay(values={"v": "late"}, suite=[PARSEABLE], by_gx=slowly))
        except EtlError as error:
            outcome.append(error)

    thread = threading.Thread(target=late)
    thread.start()
    assert reached.wait(30)
    assert pipe.replay(values={"v": "quick"}).replayed == 2
    go_on.set()
    thread.join()
    assert isinstance(outcome[0], Superseded)
    assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'quick'") == 2
    assert warehouse18.value("SELECT count(*) FROM a.t") == 60
    assert pipe.letters("status") == [("replayed",)] * 2
    assert pipe.replay(values={"v": "late"}).replayed == 0


@pytest.mark.parametrize("step", ["settle", "give_up", "fail"])
def test_every_step_takes_the_streams_row_first(source18, warehouse18, step):
    """So that none of them waits for another that waits for it."""
    pipe = flawed(source18, warehouse18)
    published(pipe, JANUARY, MARCH)
    area = PostgresReplay(warehouse18.endpoint("etl:test"))
    ((origin, ids),), _ = area.pending("t", None)
    request = ReplayRequest("t", run_info("replay", "manual", task_id="replay"))
    manifest = area.stage(request, origin, ids, str(uuid7())).manifest
    assert manifest is not None
    now = datetime.now(UTC)
    empty = Report(manifest.load_id, "none", str(manifest.staging), 2, (), now, now)
    do = {
        "settle": lambda: area.settle(manifest, Findings(empty, (), ())),
        "give_up": lambda: area.give_up(manifest, "told to"),
        "fail": lambda: area.fail("t", ids, "told to"),
    }[step]
    waiting = "SELECT pid FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
    with warehouse18.connect() as other:
        other.execute("BEGIN")
        other.execute("SELECT FROM etl.streams FOR UPDATE")
        with in_background(do) as running:
            wait_until(lambda: running.done() or warehouse18.run(waiting), "a wait for the stream")
            other.execute("SELECT FROM etl.loads FOR UPDATE NOWAIT")
            other.execute("SELECT FROM etl.dead_letters FOR UPDATE NOWAIT")
            assert not running.done()
            other.execute("COMMIT")
    running.result()


def test_a_load_that_is_published_meanwhile_wins(source18, warehouse18):
    """It has read the rows again, so the replay brings nothing back, and says so."""
    pipe = flawed(source18, warehouse18)
    published(pipe, JANUARY, MARCH)
    newer = pipe.audit(pipe.extract(JANUARY, MARCH), [V_PRESENT])

    def meanwhile(*args: Any) -> Report:
        pipe.publish(newer)
        return by_gx(*args)

    with pytest.raises(Superseded, match="settled otherwise"):
        pipe.replay(values={"v": "mended"}, suite=[PARSEABLE], by_gx=meanwhile)
    assert without_v(pipe) == 0
    assert warehouse18.value("SELECT count(*) FROM a.t") == 58
    assert [status for (status,) in pipe.letters("status")] == ["superseded"] * 2 + ["pending"] * 2
    assert pipe.replay(values={"v": "mended"}).replayed == 2
    assert warehouse18.value("SELECT count(*) FROM a.t") == 60


def test_told_to_stop_nothing_more_is_replayed(source18, warehouse18):
    pipe = flawed(source18, warehouse18)
    published(pipe, JANUARY, FEBRUARY)
    published(pipe, FEBRUARY, MARCH)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        pipe.replay(values={"v": "mended"}, stop=stop)
    assert {status for (status,) in pipe.letters("status")} == {"pending"}
    done = pipe.replay(values={"v": "mended"})
    assert (done.replayed, len(done.load_ids)) == (2, 2)


def test_letters_that_a_transform_made_are_not_replayed_past_it(source18, warehouse18):
    """What only the transform can make of a row is read again with the window."""
    pipe = flawed(source18, warehouse18)
    published(pipe, JANUARY, MARCH)
    warehouse18.run(
        "UPDATE etl.loads SET manifest = jsonb_set(manifest, '{transformed}', jsonb_build_object("
        " 'task_id', 'transform', 'clear_number', 0, 'how', 'sql', 'staging', manifest ->> 'staging', 'columns', '[]'::jsonb,"
        " 'rows', 60, 'bytes', 0, 'direct', false, 'transport', null, 'checksum', null, 'reads', '[]'::jsonb, 'replaced', '[]'::jsonb))"
    )
    warehouse18.run("UPDATE etl.dead_letters SET expectation = NULL WHERE record ->> 'id' = '3'")
    done = pipe.replay(values={"v": "mended"})
    assert (done.replayed, done.waiting) == (1, 1)


def test_nothing_of_a_row_is_logged(source18, warehouse18):
    events = RecordedEvents()
    pipe = flawed(source18, warehouse18, log=events)
    published(pipe, JANUARY, MARCH)
    done = pipe.replay(values={"v": "very private"})
    assert "very private" not in str(events.events)
    assert "very private" not in str(done.as_json())
    assert events.events[-1] == ("dead letters replayed", done.as_json())


def test_a_request_is_checked_before_anything_is_opened():
    with pytest.raises(ConfigurationError, match="is not among those"):
        ReplayRequest("t", run_info("x"), (1,), {}, {2: {"a": "b"}})


def test_no_letters_at_all(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    assert pipe.replay().counts() == {
        "replayed": 0,
        "superseded": 0,
        "failed": 0,
        "waiting": 0,
        "refused": 0,
    }


def test_a_replay_is_no_load_like_others(source18, warehouse18):
    """Neither the history of the stream nor the contract of its columns goes by the few rows that came back."""
    pipe = flawed(source18, warehouse18)
    published(pipe, JANUARY, FEBRUARY)
    source18.run("ALTER TABLE t ADD w text")
    warehouse18.run("ALTER TABLE a.t ADD w text")
    march = pipe.audit(pipe.extract(FEBRUARY, MARCH), [V_PRESENT])
    pipe.publish(march)
    first = pipe.letters("id")[0][0]
    assert pipe.replay([first], values={"v": "mended"}).replayed == 1
    facts = StreamFacts(warehouse18.endpoint("etl:test"), march)
    (earlier,) = facts.earlier(10, None)
    assert earlier.rows > 20
    source18.run("ALTER TABLE t DROP w")
    # The newest load had it, whatever columns a letter has.
    with pytest.raises(ContractError, match="no longer has w"):
        pipe.extract(FEBRUARY, MARCH)


def test_letters_of_a_load_that_gives_way_give_way_too(source, warehouse):
    """A slow load of events that publishes after one which read later writes around its rows."""
    pipe = keyless(source, warehouse)
    slow = pipe.audit(pipe.extract(JANUARY, MARCH, run_type="backfill"), [V_PRESENT])
    live = published(pipe, JANUARY, FEBRUARY)
    pipe.publish(slow)
    assert pipe.letters("record ->> 'id', load_id::text, status") == [
        ("3", slow.load_id, "superseded"),
        ("40", slow.load_id, "pending"),
        ("3", live, "pending"),
    ]
    assert pipe.replay(values={"v": "mended"}).replayed == 2
    assert warehouse.value("SELECT count(*) FROM a.t") == 60


@pytest.mark.parametrize("kind", [Kind.ENTITIES, Kind.EVENTS])
def test_hostile_names_are_only_names(source18, warehouse18, kind):
    """Of keys, cursors and others; letters of such tables are overtaken and come back like all."""
    define = 'CREATE TABLE {}t ("%s" text PRIMARY KEY, "100%" text COLLATE "C" NOT NULL, "%(x)s {{}}" int)'
    source18.run(define.format("").replace("int)", "text)"))
    warehouse18.run("CREATE SCHEMA a; " + define.format("a."))
    source18.run(
        "INSERT INTO t VALUES ('1%s', '5%', '1'), ('2%s', '6%(low)s', 'x'), ('3', '7', 'y')"
    )
    pipe = Pipeline(
        source18,
        warehouse18,
        kind=kind,
        cursor="100%",
        keys=("%s",),
        partition=None,
        mode=WindowMode.WATERMARK,
        options=SET_ASIDE,
        settle=SettleOptions(delay=timedelta(0)),
    )
    pipe.load(None, None)
    assert pipe.letters("status") == [("pending",)] * 2
    _, (third,) = pipe.letters("id")
    assert pipe.replay([third], values={"%(x)s {}": "3"}).replayed == 1
    source18.run("""UPDATE t SET "100%" = '8%s%', "%(x)s {}" = '2' WHERE "%s" = '2%s'""")
    pipe.load(None, None)
    if kind is Kind.ENTITIES:
        assert pipe.letters("status") == [("superseded",), ("replayed",)]
    assert warehouse18.value("SELECT count(*) FROM a.t") == 3
    pipe.replay(values={"%(x)s {}": "4"})
    assert warehouse18.value("SELECT count(*) FROM a.t") == 3
