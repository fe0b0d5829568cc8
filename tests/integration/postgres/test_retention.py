"""Partitions that are too old go: detached in an instant, kept aside for a while, and dropped; nothing else goes."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from uuid6 import uuid7

from airflow_etl_provider.cli.warehouse import coverage_of, gaps_in, stream_of
from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ContractError,
    StateError,
    Stopped,
    TransientError,
)
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.maintenance import MaintenanceOptions
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.postgres.clean import CleanOptions, clean
from airflow_etl_provider.postgres.ledger import (
    ensure_ledger,
    restore_coverage,
    retire_coverage,
)
from airflow_etl_provider.postgres.maintenance import maintain
from airflow_etl_provider.postgres.restore import restore
from airflow_etl_provider.postgres.rollback import RollbackOptions, rollback
from airflow_etl_provider.postgres.session import connect
from airflow_etl_provider.testing import MemoryWatermarkStore, RecordedEvents
from tests.builders import (
    APRIL,
    FEBRUARY,
    JANUARY,
    MARCH,
    Pipeline,
    fill,
    in_background,
    reader,
    simple,
    wait_until,
)
from tests.integration.postgres.test_altered_meanwhile import NOW, day

MAY = datetime(2013, 5, 1, tzinfo=UTC)
JAN, FEB, MAR, APR, MAY_ = (f"2013-0{month}-01 00:00:00+00" for month in (1, 2, 3, 4, 5))
SHORT = {"lock_budget": timedelta(milliseconds=100), "lock_deadline": timedelta(milliseconds=300)}


def back_to(moment):
    """As ``keep``: what ends before *moment*, or then, is too old."""
    return datetime.now(UTC) - moment


def maintained(database, *, table="a.t", stop=None, log=None, dry_run=False, **options):
    given = {"analyze_share": None} | options
    with connect(database.endpoint()) as connection:
        return maintain(
            connection,
            TableName.parse(table),
            MaintenanceOptions(**given),
            "ada",
            stop=stop or threading.Event(),
            log=log or RecordedEvents(),
            dry_run=dry_run,
        )


def restored(database, partition, *, log=None, **options):
    with connect(database.endpoint()) as connection:
        return restore(
            connection,
            TableName.parse(partition),
            MaintenanceOptions(**options),
            stop=threading.Event(),
            log=log or RecordedEvents(),
        )


def cleaned(database, **options):
    with connect(database.endpoint()) as connection:
        return clean(
            connection, CleanOptions(**options), stop=threading.Event(), log=RecordedEvents()
        )


def names(done):
    return [str(one.partition) for one in done.retired]


def attached(database, table="a.t"):
    return [
        name
        for (name,) in database.run(
            "SELECT relid::regclass::text FROM pg_partition_tree(%s::regclass) WHERE isleaf ORDER BY 1",
            (table,),
        )
    ]


def seen(pipe):
    """What a stream's coverage looks like from outside: windows, what is retired, and gaps."""
    with connect(pipe.warehouse.endpoint()) as connection:
        stream = stream_of(connection, pipe.stream)
        covered = coverage_of(connection, stream)
    spans = [
        ("retired" if one["retired"] else "covered", one["low"], one["high"]) for one in covered
    ]
    return spans, gaps_in(stream, covered)


def died(database, manifest, *, days):
    """Let a load have begun *days* ago, and nothing have been heard of it since."""
    database.run(
        "UPDATE etl.loads SET state = 'started', staged_at = NULL, validated_at = NULL,"
        " started_at = clock_timestamp() - make_interval(days => %s) WHERE load_id = %s",
        (days, manifest.load_id),
    )


def over(database):
    """Let the time that retired partitions are kept be over."""
    database.run("UPDATE etl.retired_partitions SET drop_after = clock_timestamp()")


@pytest.fixture
def pipe(source18, warehouse18):
    """Three months of one stream, loaded one by one."""
    made = simple(source18, warehouse18)
    fill(source18, JANUARY, APRIL, 90)
    for low, high in ((JANUARY, FEBRUARY), (FEBRUARY, MARCH), (MARCH, APRIL)):
        made.load(low, high)
    return made


def test_what_is_too_old_goes_and_stays_aside_for_a_while(source, warehouse):
    """Rows, ledger and coverage; the janitor drops it when its time is over, and the watermark stays."""
    pipe = simple(source, warehouse)
    fill(source, JANUARY, APRIL, 90)
    for low, high in ((JANUARY, FEBRUARY), (FEBRUARY, MARCH), (MARCH, APRIL)):
        pipe.load(low, high)
    rows = warehouse.run("SELECT * FROM a.t_2013_01 ORDER BY 1")
    done = maintained(warehouse, keep=back_to(FEBRUARY))
    assert names(done) == ["a.t_2013_01"]
    (gone,) = done.retired
    assert warehouse.run(f"SELECT * FROM {gone.kept} ORDER BY 1") == rows
    assert (gone.rows, gone.bytes > 0) == (31, True)
    assert attached(warehouse) == ["a.t_2013_02", "a.t_2013_03"]
    assert seen(pipe) == ([("retired", JAN, FEB), ("covered", FEB, APR)], [])
    assert pipe.position() == APR
    assert pipe.store.read("t").value == APR
    assert warehouse.run("SELECT target, partition, kept, actor, dropped_at FROM etl.retired_partitions") == [
        ("a.t", "a.t_2013_01", str(gone.kept), "ada", None)
    ]  # fmt: skip

    assert cleaned(warehouse).dropped == ()
    assert cleaned(warehouse).unregistered == ()
    over(warehouse)
    (dropped,) = cleaned(warehouse).dropped
    assert str(dropped.table) == str(gone.kept)
    assert "a.t_2013_01" in dropped.why
    assert warehouse.value("SELECT dropped_at IS NOT NULL FROM etl.retired_partitions")
    assert maintained(warehouse, keep=back_to(FEBRUARY)).as_json() == {
        "target": "a.t", "dry_run": False, "made": [], "made_count": 0, "retired": [], "retired_count": 0,
        "retired_bytes": 0, "analyzed": False, "changed_share": None, "left": [], "left_count": 0,
    }  # fmt: skip


class TestHowOld:
    def test_only_what_lies_back_as_a_whole(self, pipe, warehouse18):
        assert names(maintained(warehouse18, keep=back_to(datetime(2013, 2, 27, tzinfo=UTC)))) == [
            "a.t_2013_01"
        ]

    def test_several_go_oldest_first_and_one_always_stays(self, pipe, warehouse18):
        done = maintained(warehouse18, keep=timedelta(days=1))
        assert names(done) == ["a.t_2013_01", "a.t_2013_02"]
        assert attached(warehouse18) == ["a.t_2013_03"]

    def test_the_newest_stay_whatever_their_age(self, pipe, warehouse18):
        assert names(maintained(warehouse18, keep=timedelta(days=1), keep_partitions=2)) == [
            "a.t_2013_01"
        ]

    def test_or_what_is_beyond_them_goes(self, pipe, warehouse18):
        assert names(maintained(warehouse18, keep_partitions=2)) == ["a.t_2013_01"]

    def test_what_lies_ahead_does_not_count(self, pipe, warehouse18):
        """Partitions that wait for their time push none out."""
        warehouse18.run(
            "CREATE TABLE a.later PARTITION OF a.t FOR VALUES FROM ('2999-01-01Z') TO ('2999-02-01Z');"
            "CREATE TABLE a.last PARTITION OF a.t FOR VALUES FROM ('2999-02-01Z') TO (MAXVALUE)"
        )
        assert maintained(warehouse18, keep_partitions=3).retired == ()
        assert names(maintained(warehouse18, keep_partitions=2)) == ["a.t_2013_01"]

    @pytest.mark.parametrize("dry_run", [False, True])
    def test_what_the_same_run_makes_counts(self, pipe, warehouse18, dry_run):
        """The next run finds nothing to do, and looking says what doing does."""
        options = {"partition": PartitionSpec("ts", Every.MONTH), "ahead": 2, "keep_partitions": 2}
        looked = maintained(warehouse18, dry_run=True, **options)
        assert names(looked) == ["a.t_2013_01", "a.t_2013_02"]
        if not dry_run:
            assert names(maintained(warehouse18, **options)) == names(looked)
            assert maintained(warehouse18, **options).retired == ()

    def test_a_partition_without_a_start_is_as_old_as_its_end(self, pipe, warehouse18):
        warehouse18.run(
            "CREATE TABLE a.history PARTITION OF a.t FOR VALUES FROM (MINVALUE) TO ('2013-01-01Z')"
        )
        assert names(maintained(warehouse18, keep=back_to(FEBRUARY))) == [
            "a.history",
            "a.t_2013_01",
        ]

    @pytest.mark.parametrize("column_type", ["timestamp", "date"])
    def test_a_column_without_a_zone_goes_by_the_named_clock(self, warehouse18, column_type):
        """Midnight of the first of February in Kiritimati is fourteen hours earlier in UTC."""
        warehouse18.run(
            f"CREATE SCHEMA a; CREATE TABLE a.t (ts {column_type}) PARTITION BY RANGE (ts);"
            "CREATE TABLE a.jan PARTITION OF a.t FOR VALUES FROM ('2013-01-01') TO ('2013-02-01');"
            "CREATE TABLE a.mar PARTITION OF a.t FOR VALUES FROM ('2013-03-01') TO ('2013-04-01')"
        )
        begin_ledger(warehouse18)
        keep = back_to(datetime(2013, 1, 31, 20, tzinfo=UTC))
        assert maintained(warehouse18, keep=keep).retired == ()
        assert names(maintained(warehouse18, keep=keep, timezone="Pacific/Kiritimati")) == ["a.jan"]

    def test_a_column_that_is_no_time(self, warehouse18):
        """Goes by number alone; empty partitions at the newer end do not count."""
        warehouse18.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id int) PARTITION BY RANGE (id);"
            + ";".join(
                f"CREATE TABLE a.p{n} PARTITION OF a.t FOR VALUES FROM ({n}00) TO ({n + 1}00)"
                for n in range(5)
            )
            + "; INSERT INTO a.t VALUES (5), (150), (250)"
        )
        begin_ledger(warehouse18)
        with pytest.raises(ConfigurationError, match="keep_partitions"):
            maintained(warehouse18, keep=timedelta(days=1))
        assert names(maintained(warehouse18, keep_partitions=2)) == ["a.p0"]
        assert len(attached(warehouse18)) == 4

    @pytest.mark.parametrize(
        "options",
        [
            {"keep": timedelta(0)},
            {"keep_partitions": 0},
            {"keep_detached": timedelta(-1)},
            {"ahead": 1},
            {"ahead": -1},
            {"analyze_share": 2.0},
            {"lock_budget": timedelta(0)},
        ],
        ids=str,
    )
    def test_what_cannot_be_meant_is_refused(self, options):
        with pytest.raises(ConfigurationError):
            MaintenanceOptions(**options)


def begin_ledger(database):
    with connect(database.endpoint()) as connection:
        ensure_ledger(connection, label="here")


class TestCoverage:
    """What is no longer kept is neither covered nor missing."""

    def test_a_hole_in_it_is_no_gap_any_more(self, source18, warehouse18):
        pipe = simple(source18, warehouse18, origin=JANUARY)
        fill(source18, JANUARY, APRIL, 90)
        pipe.load(JANUARY, day(10))
        pipe.load(day(20), FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        assert seen(pipe)[1] == [("2013-01-10 00:00:00+00", "2013-01-20 00:00:00+00")]
        assert pipe.position() == "2013-01-10 00:00:00+00"
        maintained(warehouse18, keep=back_to(FEBRUARY))
        assert seen(pipe) == ([("retired", JAN, FEB), ("covered", FEB, MAR)], [])
        assert pipe.position() == "2013-01-10 00:00:00+00"
        pipe.load(MARCH, APRIL)
        assert pipe.position() == APR

    def test_nor_is_a_month_below_that_never_had_a_partition(self, source18, warehouse18):
        """Nobody would load what is older than what is kept; what lies above is missing as before."""
        pipe = simple(source18, warehouse18, origin=JANUARY)
        fill(source18, JANUARY, MAY, 120)
        pipe.load(FEBRUARY, MARCH)
        pipe.load(APRIL, MAY)
        assert seen(pipe)[1] == [("2013-01-01 00:00:00+00", FEB), (MAR, APR)]
        maintained(warehouse18, keep=back_to(MARCH))
        spans, gaps = seen(pipe)
        assert spans[0] == ("retired", JAN, MAR)
        assert gaps == [(MAR, APR)]

    def test_a_partition_that_is_left_keeps_its_coverage(self, pipe, warehouse18):
        warehouse18.run("CREATE VIEW a.w AS SELECT * FROM a.t_2013_01")
        maintained(warehouse18, keep=back_to(MARCH))
        assert seen(pipe) == (
            [("covered", JAN, FEB), ("retired", FEB, MAR), ("covered", MAR, APR)],
            [],
        )

    def test_a_window_over_the_edge_is_cut(self, source18, warehouse18):
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, APRIL, 90)
        pipe.load(JANUARY, APRIL)
        maintained(warehouse18, keep=back_to(FEBRUARY))
        maintained(warehouse18, keep=back_to(MARCH))
        assert seen(pipe) == ([("retired", JAN, MAR), ("covered", MAR, APR)], [])

    def test_what_is_loaded_again_is_covered_again(self, pipe, warehouse18):
        maintained(warehouse18, keep=back_to(MARCH))
        pipe.load(JANUARY, FEBRUARY)
        assert seen(pipe)[0][0] == ("covered", JAN, FEB)
        assert names(maintained(warehouse18, keep=back_to(MARCH))) == ["a.t_2013_01"]
        assert seen(pipe)[0] == [("retired", JAN, MAR), ("covered", MAR, APR)]

    def test_a_stream_that_goes_by_another_column_stays_covered(self, source18, warehouse18):
        """Its windows are times of change: whatever changed in them was loaded."""
        source18.run(
            "CREATE TABLE t (id bigint, ts timestamptz NOT NULL, changed timestamptz, v text)"
        )
        warehouse18.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, changed timestamptz, v text)"
            " PARTITION BY RANGE (ts);"
            "CREATE TABLE a.jan PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
            "CREATE TABLE a.feb PARTITION OF a.t FOR VALUES FROM ('2013-02-01Z') TO ('2013-03-01Z')"
        )
        pipe = Pipeline(
            source18, warehouse18, kind=Kind.ENTITIES, keys=("id",), cursor="changed", partition=None,
            settle=NOW,
        )  # fmt: skip
        source18.run("INSERT INTO t VALUES (1, '2013-01-05Z', '2013-03-02Z', 'x')")
        pipe.load(MARCH, APRIL)
        assert names(maintained(warehouse18, keep=back_to(FEBRUARY))) == ["a.jan"]
        assert seen(pipe) == ([("covered", MAR, APR)], [])

    def test_of_a_stream_that_began_later_nothing_is_said(self, source18, warehouse18):
        pipe = simple(source18, warehouse18)
        warehouse18.run(
            "CREATE TABLE a.old PARTITION OF a.t FOR VALUES FROM ('2012-01-01Z') TO ('2012-02-01Z')"
        )
        fill(source18, JANUARY, MARCH, 60)
        pipe.load(JANUARY, FEBRUARY)
        maintained(warehouse18, keep=back_to(JANUARY))
        assert seen(pipe) == ([("covered", JAN, FEB)], [])


BRANCHES = {
    "h0": ("01", "02", "03", "04"),
    "h1": ("01", "02", "03", "04"),
    # By quarter.
    "h2": ("01", "04"),
}


def branched(source, warehouse, *branches, **changes):
    """By hash of the key, and below that by time: a range of time is in several partitions."""
    source.run("CREATE TABLE t (id bigint PRIMARY KEY, ts timestamptz NOT NULL, v text)")
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v text) PARTITION BY HASH (id)"
    )
    for number, branch in enumerate(branches):
        warehouse.run(
            f"CREATE TABLE a.{branch} PARTITION OF a.t FOR VALUES WITH (MODULUS {len(branches)}, REMAINDER {number})"
            " PARTITION BY RANGE (ts)"
        )
        months = BRANCHES[branch]
        for month, following in zip(months, [*months[1:], "05"], strict=True):
            warehouse.run(
                f"CREATE TABLE a.{branch}_{month} PARTITION OF a.{branch}"
                f" FOR VALUES FROM ('2013-{month}-01Z') TO ('2013-{following}-01Z')"
            )
    fill(source, JANUARY, MAY, 120)
    pipe = Pipeline(source, warehouse, partition=None, origin=JANUARY, **changes)
    for low, high in ((JANUARY, FEBRUARY), (FEBRUARY, MARCH), (MARCH, APRIL), (APRIL, MAY)):
        pipe.load(low, high)
    return pipe


class TestCoverageOfSeveralPartitions:
    """A range stays covered as long as a partition of it is attached, and is so again with the first that returns."""

    SPEC = PartitionSpec("ts", Every.MONTH)

    def retire(self, database, moment, **options):
        return maintained(database, keep=back_to(moment), partition=self.SPEC, **options)

    @pytest.mark.parametrize("order", [("h0", "h1"), ("h1", "h0")])
    def test_both_go_and_both_return(self, source, warehouse, order):
        pipe = branched(source, warehouse, "h0", "h1")
        rows, coverage = pipe.rows(), pipe.coverage()
        assert names(self.retire(warehouse, MARCH)) == ["a.h0_01", "a.h0_02", "a.h1_01", "a.h1_02"]
        assert seen(pipe) == ([("retired", JAN, MAR), ("covered", MAR, MAY_)], [])
        for month, spans in (
            ("02", [("retired", JAN, FEB), ("covered", FEB, MAY_)]),
            ("01", [("covered", JAN, MAY_)]),
        ):
            for branch in order:
                restored(warehouse, f"a.{branch}_{month}")
                assert seen(pipe) == (spans, [])
        assert pipe.rows() == rows
        assert pipe.coverage() == coverage
        assert pipe.position() == MAY_

    def test_one_that_stays_keeps_it(self, source18, warehouse18):
        """Its rows are there, and the ledger goes on to know which load has read them."""
        pipe = branched(source18, warehouse18, "h0", "h1")
        coverage = pipe.coverage()
        warehouse18.run("CREATE VIEW a.w AS SELECT * FROM a.h1_01")
        assert names(self.retire(warehouse18, FEBRUARY)) == ["a.h0_01"]
        assert pipe.coverage() == coverage
        warehouse18.run("DROP VIEW a.w")
        assert names(self.retire(warehouse18, FEBRUARY)) == ["a.h1_01"]
        assert seen(pipe) == ([("retired", JAN, FEB), ("covered", FEB, MAY_)], [])

    def test_one_that_returns_and_goes_again(self, source18, warehouse18):
        pipe = branched(source18, warehouse18, "h0", "h1")
        coverage = pipe.coverage()
        self.retire(warehouse18, FEBRUARY)
        restored(warehouse18, "a.h0_01")
        assert pipe.coverage() == coverage
        assert names(self.retire(warehouse18, FEBRUARY)) == ["a.h0_01"]
        assert seen(pipe)[0][0] == ("retired", JAN, FEB)
        restored(warehouse18, "a.h1_01")
        assert pipe.coverage() == coverage

    def test_one_that_is_dropped_for_good(self, source18, warehouse18):
        """What was loaded is known all the same when the other one returns."""
        pipe = branched(source18, warehouse18, "h0", "h1")
        coverage = pipe.coverage()
        self.retire(warehouse18, FEBRUARY)
        warehouse18.run(
            "UPDATE etl.retired_partitions SET drop_after = clock_timestamp() WHERE partition = 'a.h1_01'"
        )
        assert len(cleaned(warehouse18).dropped) == 1
        restored(warehouse18, "a.h0_01")
        assert pipe.coverage() == coverage

    def test_months_beside_quarters(self, source18, warehouse18):
        """What the wider one alone still holds stays covered; it takes the range along, and brings back all of it."""
        pipe = branched(source18, warehouse18, "h0", "h2")
        coverage = pipe.coverage()
        assert names(self.retire(warehouse18, MARCH)) == ["a.h0_01", "a.h0_02"]
        assert pipe.coverage() == coverage
        warehouse18.run("CREATE VIEW a.w AS SELECT * FROM a.h0_03")
        assert names(self.retire(warehouse18, APRIL)) == ["a.h2_01"]
        assert seen(pipe) == ([("retired", JAN, MAR), ("covered", MAR, MAY_)], [])
        restored(warehouse18, "a.h0_02")
        assert seen(pipe) == (
            [("retired", JAN, FEB), ("covered", FEB, MAY_)],
            [],
        )
        restored(warehouse18, "a.h2_01")
        assert pipe.coverage() == coverage
        restored(warehouse18, "a.h0_01")
        assert pipe.coverage() == coverage

    def test_a_table_of_no_range_holds_everything_and_default_nothing(self, source18, warehouse18):
        """Rows of any time may be in the one; in the other nothing belongs."""
        pipe = branched(source18, warehouse18, "h0", "h1")
        coverage = pipe.coverage()
        warehouse18.run(
            "CREATE TABLE a.rest PARTITION OF a.h0 DEFAULT; ALTER TABLE a.t DETACH PARTITION a.h1; DROP TABLE a.h1;"
            "CREATE TABLE a.h1 PARTITION OF a.t FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
        )
        assert names(self.retire(warehouse18, FEBRUARY)) == ["a.h0_01"]
        assert pipe.coverage() == coverage
        warehouse18.run("DROP TABLE a.h1")
        assert names(self.retire(warehouse18, MARCH)) == ["a.h0_02"]
        assert seen(pipe)[0] == [("retired", JAN, MAR), ("covered", MAR, MAY_)]

    @pytest.mark.parametrize(
        ("cursor_type", "low", "middle", "high"),
        [
            ("timestamp with time zone", JAN, FEB, MAR),
            ("timestamp without time zone", "2013-01-01 00:00:00", "2013-02-01 00:00:00", "2013-03-01 00:00:00"),
            ("date", "2013-01-01", "2013-02-01", "2013-03-01"),
            ("integer", "9", "10", "11"),
            ("numeric", "9.5", "10.25", "11"),
            ("text", "B", "a", "b"),
            ("uuid", *(f"0000000{n}-0000-0000-0000-000000000000" for n in (1, 2, 3))),
        ],
    )  # fmt: skip
    def test_ranges_of_any_type(self, warehouse, cursor_type, low, middle, high):
        """What a wider partition still holds of them stays."""
        begin_ledger(warehouse)
        load, gone = str(uuid7()), str(uuid7())
        warehouse.run(
            "INSERT INTO etl.streams (stream, target, kind) VALUES ('s', 'a.t', 'events')"
        )
        warehouse.run(
            "INSERT INTO etl.coverage (stream, low, high, bounds, load_id) VALUES ('s', %s, %s, '[)', %s)",
            (low, high, load),
        )
        rows = "SELECT low, high, load_id::text, retired_at IS NULL FROM etl.coverage ORDER BY retired_at"
        with connect(warehouse.endpoint()) as connection:
            known = {"low": None, "high": high, "held": [(middle, None)], "retirement_id": gone}
            pieces = retire_coverage(connection, "s", cursor_type, **known)
            assert warehouse.run(rows) == [(low, middle, gone, False), (middle, high, load, True)]
            connection.execute(
                "INSERT INTO etl.retired_partitions (retirement_id, target, parent, partition, bound, kept, names,"
                " coverage, rows, bytes, why, actor, drop_after)"
                " VALUES (%s, 'a.t', 'a.t', 'a.p', %s, 'x.y', '[]', '[]', 0, 0, '', '', now())",
                (gone, f"FOR VALUES FROM (MINVALUE) TO ('{middle}')"),
            )
            restore_coverage(connection, "s", cursor_type, gone, pieces)
        assert sorted(warehouse.run(rows)) == sorted(
            [(low, middle, load, True), (middle, high, load, True)]
        )

    def test_a_hole_below_goes_with_the_last(self, source18, warehouse18):
        """What no load covers under the range is missing until then."""
        pipe = branched(source18, warehouse18, "h0", "h1")
        for branch in ("h0", "h1"):
            warehouse18.run(f"DROP TABLE a.{branch}_01")
        warehouse18.run("DELETE FROM etl.coverage WHERE low = %s", (JAN,))
        warehouse18.run("CREATE VIEW a.w AS SELECT * FROM a.h1_02")
        assert names(self.retire(warehouse18, MARCH)) == ["a.h0_02"]
        assert seen(pipe) == ([("covered", FEB, MAY_)], [(JAN, FEB)])
        warehouse18.run("DROP VIEW a.w")
        self.retire(warehouse18, MARCH)
        assert seen(pipe) == ([("retired", JAN, MAR), ("covered", MAR, MAY_)], [])
        restored(warehouse18, "a.h0_02")
        assert seen(pipe) == ([("retired", JAN, FEB), ("covered", FEB, MAY_)], [])

    def test_what_was_loaded_since_stays_with_its_load(self, source18, warehouse18):
        pipe = branched(source18, warehouse18, "h0", "h1")
        self.retire(warehouse18, FEBRUARY)
        for branch in ("h0", "h1"):
            warehouse18.run(
                f"CREATE TABLE a.{branch}_new PARTITION OF a.{branch} FOR VALUES FROM ('2013-01-01Z') TO ('2013-01-05Z')"
            )
        other = replace(pipe, store=MemoryWatermarkStore())
        again = other.load(JANUARY, day(5))
        for branch in ("h0", "h1"):
            warehouse18.run(f"DROP TABLE a.{branch}_new")
        restored(warehouse18, "a.h0_01")
        assert seen(pipe) == ([("covered", JAN, MAY_)], [])
        assert pipe.coverage()[0][2] == again.load_id


class TestUnfinishedLoads:
    """Never a partition that one of them touches."""

    @pytest.mark.parametrize("state", ["started", "staged", "validated", "failed", "rejected"])
    def test_of_its_window(self, pipe, warehouse18, state):
        manifest = pipe.staged(JANUARY, day(5))
        warehouse18.run(
            "UPDATE etl.loads SET state = %s WHERE load_id = %s", (state, manifest.load_id)
        )
        done = maintained(warehouse18, keep=back_to(MARCH))
        assert names(done) == ["a.t_2013_02"]
        (left,) = done.left
        assert (left.what, left.busy) == ("a.t_2013_01", True)
        assert manifest.load_id in left.why

    @pytest.mark.parametrize("state", ["failed", "rejected"])
    def test_but_one_that_has_left_nothing_behind(self, pipe, warehouse18, state):
        """It would begin anew."""
        manifest = pipe.staged(JANUARY, day(5))
        warehouse18.run(
            "UPDATE etl.loads SET state = %s WHERE load_id = %s", (state, manifest.load_id)
        )
        warehouse18.run(f"DROP TABLE {manifest.staging}")
        assert names(maintained(warehouse18, keep=back_to(FEBRUARY))) == ["a.t_2013_01"]

    def test_another_window_is_not_in_the_way(self, pipe, warehouse18):
        pipe.staged(MARCH, APRIL)
        assert names(maintained(warehouse18, keep=back_to(FEBRUARY))) == ["a.t_2013_01"]

    def test_of_another_order_by_the_rows_that_it_has_staged(self, source18, warehouse18):
        """Before it has staged them it may bring any."""
        source18.run("CREATE TABLE t (id bigint, ts timestamptz NOT NULL, v text)")
        warehouse18.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v text) PARTITION BY RANGE (ts);"
            "CREATE TABLE a.jan PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
            "CREATE TABLE a.feb PARTITION OF a.t FOR VALUES FROM ('2013-02-01Z') TO ('2013-03-01Z');"
            "CREATE TABLE a.mar PARTITION OF a.t FOR VALUES FROM ('2013-03-01Z') TO ('2013-04-01Z')"
        )
        source18.run("INSERT INTO t VALUES (1, '2013-02-05Z', 'x')")
        pipe = Pipeline(
            source18, warehouse18, kind=Kind.ENTITIES, keys=("id",), mode=WindowMode.FULL, partition=None,
            settle=NOW,
        )  # fmt: skip
        manifest = pipe.staged()
        warehouse18.run("UPDATE etl.loads SET state = 'started'")
        assert len(maintained(warehouse18, keep=back_to(MARCH)).left) == 2
        warehouse18.run("UPDATE etl.loads SET state = 'validated'")
        done = maintained(warehouse18, keep=back_to(MARCH))
        assert (names(done), [left.what for left in done.left]) == (["a.jan"], ["a.feb"])
        pipe.publish(manifest)
        assert warehouse18.value("SELECT count(*) FROM a.feb") == 1

    def test_but_one_that_died_long_ago(self, pipe, warehouse18):
        """Its task was killed and never tried again: it shall not hold retention up for ever."""
        manifest = pipe.staged(JANUARY, day(5))
        died(warehouse18, manifest, days=6)
        (left,) = maintained(warehouse18, keep=back_to(FEBRUARY)).left
        assert left.busy
        assert "once it has lain still for 7 days" in left.why
        died(warehouse18, manifest, days=8)
        log = RecordedEvents()
        assert names(maintained(warehouse18, log=log, keep=back_to(FEBRUARY))) == ["a.t_2013_01"]
        passed = [fields for event, fields in log.events if event == "dead load passed over"]
        assert [(one["load_id"], one["stream"]) for one in passed] == [(manifest.load_id, "t")]

    @pytest.mark.parametrize("is_alive", [True, False])
    def test_a_long_one_whose_session_is_at_work(self, pipe, warehouse18, is_alive):
        """The session, not another that has got its process id since."""
        manifest = pipe.staged(JANUARY, day(5))
        died(warehouse18, manifest, days=8)
        with warehouse18.connect() as other:
            other.execute(
                "INSERT INTO etl.sessions (load_id, side, pid, backend_start)"
                " SELECT %s, 'target', pid, backend_start - make_interval(hours => %s)"
                " FROM pg_stat_activity WHERE pid = pg_backend_pid()",
                (manifest.load_id, 0 if is_alive else 1),
            )
            done = maintained(warehouse18, keep=back_to(FEBRUARY))
        assert names(done) == ([] if is_alive else ["a.t_2013_01"])
        assert [left.busy for left in done.left] == ([True] if is_alive else [])

    def test_one_that_is_tried_again_is_young_again(self, pipe, warehouse18):
        manifest = pipe.staged(JANUARY, day(5))
        died(warehouse18, manifest, days=8)
        warehouse18.run("DROP TABLE " + str(manifest.staging))
        pipe.extract(JANUARY, day(5), load_id=manifest.load_id, try_number=2)
        warehouse18.run(
            "UPDATE etl.loads SET state = 'started' WHERE load_id = %s", (manifest.load_id,)
        )
        (left,) = maintained(warehouse18, keep=back_to(FEBRUARY)).left
        assert manifest.load_id in left.why

    def test_one_that_begins_meanwhile(self, pipe, warehouse18):
        """Streams are held while a partition goes, and loads looked at once more."""
        with ExitStack() as stack:
            other = stack.enter_context(warehouse18.connect())
            other.execute("BEGIN")
            other.execute("SELECT FROM etl.streams FOR UPDATE")
            log = RecordedEvents()
            work = stack.enter_context(
                in_background(lambda: maintained(warehouse18, log=log, keep=back_to(FEBRUARY)))
            )
            wait_until(lambda: "waiting for locks" in log.names(), "retention waits for the stream")
            other.execute(
                "UPDATE etl.loads SET state = 'validated', published_at = NULL WHERE window_low = %s",
                (JAN,),
            )
            other.execute("COMMIT")
        assert work.result().retired == ()
        assert attached(warehouse18)[0] == "a.t_2013_01"


class TestDefault:
    def test_it_never_goes_and_takes_late_rows_again(self, source, warehouse):
        """The constraint that kept rows of the range out of it goes with the range."""
        pipe = simple(source, warehouse)
        warehouse.run(
            "CREATE TABLE a.rest PARTITION OF a.t DEFAULT; INSERT INTO a.t VALUES (-1, '1999-01-01Z', 'odd')"
        )
        fill(source, JANUARY, MARCH, 60)
        for _ in range(2):
            # By swap, and by swap_merge: they name the constraint by turns.
            pipe.load(JANUARY, FEBRUARY)
            pipe.load(day(3), day(20), options={"strategy": Strategy.SWAP_MERGE})
        pipe.load(FEBRUARY, MARCH)
        checks = "SELECT count(*) FROM pg_constraint WHERE conrelid = 'a.rest'::regclass AND conname LIKE 'etl_not_%%'"
        before = warehouse.value(checks)
        assert before >= 2
        assert names(maintained(warehouse, keep=timedelta(days=1))) == ["a.t_2013_01"]
        assert warehouse.value(checks) < before
        warehouse.run("INSERT INTO a.t VALUES (-2, '2013-01-05Z', 'late')")
        assert warehouse.value("SELECT count(*) FROM a.rest") == 2
        assert attached(warehouse) == ["a.rest", "a.t_2013_02"]


class TestWhatIsInTheWay:
    def test_tables_that_refer_to_it(self, pipe, warehouse18):
        """Refused for the whole table, with what helps."""
        warehouse18.run(
            "CREATE TABLE a.child (id bigint, ts timestamptz, FOREIGN KEY (id, ts) REFERENCES a.t (id, ts))"
        )
        with pytest.raises(CatalogError, match=r"a\.child") as raised:
            maintained(warehouse18, keep=back_to(FEBRUARY))
        assert "drop those foreign keys" in raised.value.remedy
        assert len(attached(warehouse18)) == 3

    def test_a_view_on_the_partition(self, pipe, warehouse18):
        """Left and named; the others go."""
        warehouse18.run("CREATE VIEW a.w AS SELECT * FROM a.t_2013_01")
        done = maintained(warehouse18, keep=back_to(MARCH))
        assert names(done) == ["a.t_2013_02"]
        assert [(left.what, left.busy) for left in done.left] == [("a.t_2013_01", False)]
        assert "view a.w" in done.left[0].why

    @pytest.mark.parametrize("read", ["a.t", "a.t_2013_01"])
    def test_a_reader(self, pipe, warehouse18, read):
        """Named when the deadline passes; other readers are let through, and the next run does it."""
        with reader(warehouse18, f"SELECT count(*) FROM {read}") as session:
            done = maintained(warehouse18, keep=back_to(FEBRUARY), **SHORT)
            assert f"pid {session.info.backend_pid}" in done.left[0].why
            assert (done.retired, done.left[0].busy) == ((), True)
            assert seen(pipe) == ([("covered", JAN, APR)], [])
        assert names(maintained(warehouse18, keep=back_to(FEBRUARY))) == ["a.t_2013_01"]

    def test_a_reader_of_one_partition_does_not_keep_the_others(self, pipe, warehouse18):
        with reader(warehouse18, "SELECT count(*) FROM a.t_2013_01"):
            done = maintained(warehouse18, keep=back_to(MARCH), **SHORT)
        assert (names(done), len(done.left)) == (["a.t_2013_02"], 1)

    def test_it_goes_on_until_the_reader_has_ended(self, pipe, warehouse18):
        log = RecordedEvents()
        with ExitStack() as stack:
            stack.enter_context(reader(warehouse18, "SELECT count(*) FROM a.t"))
            blocking = stack.pop_all()
            with (
                in_background(
                    lambda: maintained(warehouse18, log=log, keep=back_to(FEBRUARY))
                ) as work,
                blocking,
            ):
                wait_until(lambda: "waiting for locks" in log.names(), "the reader is in the way")
                assert warehouse18.value("SELECT count(*) FROM a.t") == 90
        assert names(work.result()) == ["a.t_2013_01"]

    def test_a_table_that_is_not_partitioned(self, warehouse18):
        warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (ts date)")
        with pytest.raises(CatalogError, match="not partitioned"):
            maintained(warehouse18, keep=timedelta(days=1))

    def test_a_database_without_a_ledger(self, warehouse18):
        warehouse18.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (ts date) PARTITION BY RANGE (ts);"
            "CREATE TABLE a.p PARTITION OF a.t FOR VALUES FROM ('2013-01-01') TO ('2013-02-01')"
        )
        with pytest.raises(StateError, match="no ledger"):
            maintained(warehouse18, keep=timedelta(days=1))

    def test_an_option_that_names_no_level(self, pipe, warehouse18):
        with pytest.raises(CatalogError, match=r"RANGE \(v\)"):
            maintained(
                warehouse18, keep=timedelta(days=1), partition=PartitionSpec("v", Every.MONTH)
            )


class TestLevels:
    def test_what_hangs_on_a_partition_goes_with_it(self, source, warehouse):
        pipe = simple(source, warehouse)
        warehouse.run(
            "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
            " PARTITION BY HASH (id);"
            "CREATE TABLE a.h0 PARTITION OF a.t_2013_01 FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
            "CREATE TABLE a.h1 PARTITION OF a.t_2013_01 FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
        )
        fill(source, JANUARY, MARCH, 60)
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        done = maintained(warehouse, keep=timedelta(days=1))
        assert names(done) == ["a.t_2013_01"]
        assert done.retired[0].bytes > 0
        assert attached(warehouse) == ["a.t_2013_02_0", "a.t_2013_02_1"]
        assert warehouse.value("SELECT count(*) FROM pg_class WHERE relnamespace = 'a'::regnamespace"
                               " AND relname IN ('h0', 'h1', 't_2013_01')") == 0  # fmt: skip
        assert cleaned(warehouse).unregistered == ()
        over(warehouse)
        assert cleaned(warehouse).dropped[0].bytes > 0
        assert pipe.left_in_staging() == set()

    def test_a_lower_level_has_ages_of_its_own(self, warehouse18):
        """LIST by region, then RANGE by time; RANGE by year, then by month."""
        warehouse18.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (region text, ts date) PARTITION BY LIST (region);"
            + ";".join(
                f"CREATE TABLE a.{r} PARTITION OF a.t FOR VALUES IN ('{r}') PARTITION BY RANGE (ts);"
                f"CREATE TABLE a.{r}_jan PARTITION OF a.{r} FOR VALUES FROM ('2013-01-01') TO ('2013-02-01');"
                f"CREATE TABLE a.{r}_feb PARTITION OF a.{r} FOR VALUES FROM ('2013-02-01') TO ('2013-03-01')"
                for r in ("eu", "us")
            )
        )
        begin_ledger(warehouse18)
        with pytest.raises(ConfigurationError, match="first level"):
            maintained(warehouse18, keep=back_to(FEBRUARY))
        spec = PartitionSpec("ts", Every.MONTH)
        assert names(maintained(warehouse18, keep=back_to(FEBRUARY), partition=spec)) == [
            "a.eu_jan",
            "a.us_jan",
        ]

    def test_a_year_goes_as_a_whole_and_the_last_one_by_months(self, warehouse18):
        warehouse18.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (ts date) PARTITION BY RANGE (ts);"
            + ";".join(
                f"CREATE TABLE a.y{y} PARTITION OF a.t FOR VALUES FROM ('{y}-01-01') TO ('{y + 1}-01-01')"
                " PARTITION BY RANGE (ts);"
                f"CREATE TABLE a.y{y}_1 PARTITION OF a.y{y} FOR VALUES FROM ('{y}-01-01') TO ('{y}-02-01');"
                f"CREATE TABLE a.y{y}_2 PARTITION OF a.y{y} FOR VALUES FROM ('{y}-02-01') TO ('{y}-03-01')"
                for y in (2012, 2013)
            )
        )
        begin_ledger(warehouse18)
        assert names(maintained(warehouse18, keep=back_to(FEBRUARY))) == ["a.y2012", "a.y2013_1"]


class TestOthersAtWork:
    def test_two_at_once(self, pipe, warehouse18):
        """Each partition goes once, and neither fails."""
        with (
            in_background(lambda: maintained(warehouse18, keep=back_to(MARCH))) as one,
            in_background(lambda: maintained(warehouse18, keep=back_to(MARCH))) as two,
        ):
            pass
        assert sorted(names(one.result()) + names(two.result())) == ["a.t_2013_01", "a.t_2013_02"]
        assert warehouse18.value("SELECT count(*) FROM etl.retired_partitions") == 2

    def test_a_swap_that_exchanges_the_partition_meanwhile(self, pipe, warehouse18):
        """What goes is what is attached then."""
        with ExitStack() as stack:
            report = stack.enter_context(reader(warehouse18, "SELECT count(*) FROM a.t_2013_01"))
            log = RecordedEvents()
            work = stack.enter_context(
                in_background(lambda: maintained(warehouse18, log=log, keep=back_to(FEBRUARY)))
            )
            wait_until(lambda: "waiting for locks" in log.names(), "retention waits")
            with warehouse18.connect() as swap, swap.transaction():
                swap.execute("SET LOCAL lock_timeout = '10s'")
                report.rollback()
                swap.execute(
                    "CREATE TABLE a.other (LIKE a.t INCLUDING ALL);"
                    "ALTER TABLE a.t DETACH PARTITION a.t_2013_01; ALTER TABLE a.t_2013_01 RENAME TO gone;"
                    "ALTER TABLE a.other RENAME TO t_2013_01;"
                    "ALTER TABLE a.t ATTACH PARTITION a.t_2013_01 FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
                )
        if work.result().retired:
            kept = work.result().retired[0].kept
            assert warehouse18.value(f"SELECT count(*) FROM {kept}") in (0, 31)
        assert "a.t_2013_01" not in attached(warehouse18)

    def test_beside_a_publish_of_the_same_partition(self, pipe, warehouse18):
        """Whoever is first: the partition goes with the new rows, or stays for them."""
        pipe.source.run("UPDATE t SET v = 'new'")
        with (
            in_background(lambda: pipe.load(JANUARY, FEBRUARY)) as loading,
            in_background(lambda: maintained(warehouse18, keep=back_to(FEBRUARY))) as retiring,
        ):
            wait_until(lambda: loading.done() and retiring.done(), "both end")
        assert loading.exception() is None
        assert retiring.exception() is None
        spans, gaps = seen(pipe)
        assert gaps == []
        kept = retiring.result().retired
        is_there = "a.t_2013_01" in attached(warehouse18)
        assert is_there == (spans[0] != ("retired", JAN, FEB))
        if not is_there:
            assert warehouse18.value(f"SELECT count(*) FROM {kept[0].kept}") == 31

    def test_a_session_killed_at_the_detach(self, pipe, warehouse18):
        """Nothing changed for readers or ledger, and the next run does it."""
        before = pipe.picture(), seen(pipe)
        warehouse18.run(
            "CREATE FUNCTION public.die() RETURNS event_trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF current_query() LIKE '%DETACH PARTITION%' THEN PERFORM pg_terminate_backend(pg_backend_pid());"
            " END IF; END $$;"
            "CREATE EVENT TRIGGER die ON ddl_command_end EXECUTE FUNCTION public.die()"
        )
        with pytest.raises(TransientError):
            maintained(warehouse18, keep=back_to(FEBRUARY))
        warehouse18.run("DROP FUNCTION public.die CASCADE")
        assert (pipe.picture(), seen(pipe)) == before
        assert warehouse18.value("SELECT count(*) FROM etl.retired_partitions") == 0
        assert names(maintained(warehouse18, keep=back_to(FEBRUARY))) == ["a.t_2013_01"]

    def test_a_stop_between_two_partitions(self, pipe, warehouse18):
        stop = threading.Event()

        def log(event, **fields):
            if event == "partition retired":
                stop.set()

        with pytest.raises(Stopped):
            maintained(warehouse18, keep=back_to(MARCH), stop=stop, log=log)
        assert attached(warehouse18) == ["a.t_2013_02", "a.t_2013_03"]

    def test_looking_changes_nothing(self, pipe, warehouse18):
        before = pipe.picture(), seen(pipe), pipe.left_in_staging()
        done = maintained(warehouse18, keep=back_to(MARCH), dry_run=True)
        assert names(done) == ["a.t_2013_01", "a.t_2013_02"]
        assert done.as_json()["dry_run"] is True
        assert (pipe.picture(), seen(pipe), pipe.left_in_staging()) == before


class TestAside:
    def test_without_a_time_to_come_back_it_is_dropped_at_once(self, pipe, warehouse18):
        done = maintained(warehouse18, keep=back_to(FEBRUARY), keep_detached=timedelta(0))
        assert done.retired[0].kept is None
        assert pipe.left_in_staging() == set()
        assert warehouse18.value("SELECT dropped_at IS NOT NULL FROM etl.retired_partitions")
        with pytest.raises(StateError, match="no retired partition"):
            restored(warehouse18, "a.t_2013_01")

    def test_it_holds_no_rows_that_it_refers_to(self, source18, warehouse18):
        pipe = simple(source18, warehouse18)
        warehouse18.run(
            "CREATE TABLE a.dim (v text PRIMARY KEY); INSERT INTO a.dim VALUES ('x'), ('y');"
            "ALTER TABLE a.t ADD FOREIGN KEY (v) REFERENCES a.dim"
        )
        fill(source18, JANUARY, MARCH, 60)
        source18.run("UPDATE t SET v = CASE WHEN ts < '2013-02-01Z' THEN 'x' ELSE 'y' END")
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        maintained(warehouse18, keep=timedelta(days=1))
        warehouse18.run("DELETE FROM a.dim WHERE v = 'x'")
        with pytest.raises(ContractError, match="foreign key"):
            restored(warehouse18, "a.t_2013_01")
        warehouse18.run("INSERT INTO a.dim VALUES ('x')")
        restored(warehouse18, "a.t_2013_01")
        assert pipe.rows() == pipe.source_rows()

    def test_its_name_may_come_again(self, pipe, warehouse18):
        """Loaded again and retired again, with names of 63 bytes and quotes: nothing is in the way of anything."""
        for _ in range(2):
            maintained(warehouse18, keep=back_to(FEBRUARY))
            pipe.load(JANUARY, FEBRUARY)
        assert len(names(maintained(warehouse18, keep=back_to(FEBRUARY)))) == 1
        assert len(pipe.left_in_staging()) == 3

    def test_odd_names(self, warehouse18):
        odd = 'a "quoted"  %s table' + "ä" * 21
        assert len(odd.encode()) == 62
        table, one, two = (
            TableName("A b", odd),
            TableName("A b", odd + "1"),
            TableName("A b", odd + "2"),
        )
        warehouse18.run(
            f'CREATE SCHEMA "A b"; CREATE TABLE {table} ("T s" date, PRIMARY KEY ("T s")) PARTITION BY RANGE ("T s");'
            f"CREATE TABLE {one} PARTITION OF {table} FOR VALUES FROM ('2013-01-01') TO ('2013-02-01');"
            f"CREATE TABLE {two} PARTITION OF {table} FOR VALUES FROM ('2013-02-01') TO ('2013-03-01');"
            f'CREATE TABLE "A b".rest PARTITION OF {table} DEFAULT;'
            f"INSERT INTO {table} VALUES ('2013-01-05'), ('2020-01-01')"
        )
        begin_ledger(warehouse18)
        done = maintained(warehouse18, table=str(table), keep=timedelta(days=1))
        assert [one.partition for one in done.retired] == [one]
        restored(warehouse18, str(one))
        assert warehouse18.value(f"SELECT count(*) FROM {one}") == 1

    def test_a_janitor_beside_a_restoration(self, pipe, warehouse18):
        """It is back or gone, never both."""
        maintained(warehouse18, keep=back_to(FEBRUARY))
        over(warehouse18)
        with (
            in_background(lambda: cleaned(warehouse18)) as cleaning,
            in_background(lambda: restored(warehouse18, "a.t_2013_01")) as restoring,
        ):
            wait_until(lambda: cleaning.done() and restoring.done(), "both end")
        assert cleaning.exception() is None
        is_back = "a.t_2013_01" in attached(warehouse18)
        assert is_back == (restoring.exception() is None)
        assert is_back == (cleaning.result().dropped == ())


class TestRestore:
    def test_everything_is_as_before(self, source, warehouse):
        """Rows, indexes, keys, coverage; and what the table has got since."""
        pipe = simple(source, warehouse)
        warehouse.run(
            "CREATE INDEX ON a.t (v); CREATE TABLE a.rest PARTITION OF a.t DEFAULT;"
            "INSERT INTO a.t VALUES (-1, '1999-01-01Z', 'odd')"
        )
        fill(source, JANUARY, APRIL, 90)
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, APRIL)
        rows, catalog, coverage = pipe.rows(), indexes(warehouse), pipe.coverage()
        maintained(warehouse, keep=back_to(FEBRUARY))
        done = restored(warehouse, "a.t_2013_01")
        assert (str(done.partition), str(done.target)) == ("a.t_2013_01", "a.t")
        assert pipe.rows() == rows
        assert indexes(warehouse) == catalog
        assert pipe.coverage() == coverage
        assert pipe.left_in_staging() == set()
        with pytest.raises(StateError, match="no retired partition"):
            restored(warehouse, "a.t_2013_01")

        maintained(warehouse, keep=back_to(FEBRUARY))
        warehouse.run("ALTER TABLE a.t ADD later int DEFAULT 3; CREATE INDEX ON a.t (later)")
        restored(warehouse, "a.t_2013_01")
        assert warehouse.run("SELECT DISTINCT later FROM a.t") == [(3,)]
        assert names(maintained(warehouse, keep=back_to(FEBRUARY))) == ["a.t_2013_01"]

    def test_a_column_that_was_dropped_meanwhile(self, source, warehouse):
        """It goes from the partition, too, with the indexes and keys over it; the others have their old names."""
        pipe = simple(source, warehouse)
        warehouse.run(
            "CREATE TABLE a.dim (w int PRIMARY KEY); INSERT INTO a.dim VALUES (1);"
            "ALTER TABLE a.t ADD w int DEFAULT 1 REFERENCES a.dim; CREATE INDEX ON a.t (w); CREATE INDEX ON a.t (v)"
        )
        fill(source, JANUARY, MARCH, 60)
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        maintained(warehouse, keep=timedelta(days=1))
        warehouse.run("ALTER TABLE a.t DROP w; DROP TABLE a.dim")
        log = RecordedEvents()
        restored(warehouse, "a.t_2013_01", log=log)
        assert pipe.rows() == pipe.source_rows()
        assert [name for name, *_ in indexes(warehouse)] == [
            "a.t_2013_01_pkey",
            "a.t_2013_01_v_idx",
        ]
        told = {"table": "a.t", "partition": "a.t_2013_01", "columns": ["w"]}
        assert ("columns that the table no longer has go", told) in log.events

    def test_columns_that_were_renamed_meanwhile(self, source18, warehouse18):
        """They come back under the names that the table has for them now; what was made anew is new."""
        pipe = simple(source18, warehouse18)
        warehouse18.run("ALTER TABLE a.t ADD w text DEFAULT 'w', ADD k text DEFAULT 'k'")
        fill(source18, JANUARY, MARCH, 60)
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        before = warehouse18.run("SELECT id, ts, v FROM a.t ORDER BY id")
        maintained(warehouse18, keep=timedelta(days=1))
        warehouse18.run("ALTER TABLE a.t RENAME v TO x; ALTER TABLE a.t RENAME w TO v")
        warehouse18.run("ALTER TABLE a.t RENAME x TO w; ALTER TABLE a.t DROP k, ADD k int")
        restored(warehouse18, "a.t_2013_01")
        query = "SELECT id, ts, w, v, k FROM a.t ORDER BY id"
        assert warehouse18.run(query) == [(*row, "w", None) for row in before]

    @pytest.mark.parametrize(
        ("renames", "now"),
        [
            (("p TO x", "q TO p", "x TO q"), "q"),
            (("p TO r",), "r"),
            (('p TO "a, ""b) REFERENCES"',), '"a, ""b) REFERENCES"'),
        ],
        ids=["exchanged", "renamed", "quoted"],
    )
    def test_a_foreign_key_over_a_column_that_was_renamed(
        self, source18, warehouse18, renames, now
    ):
        pipe = simple(source18, warehouse18)
        warehouse18.run("ALTER TABLE a.t ADD p int DEFAULT 1, ADD q int DEFAULT 1")
        warehouse18.run("CREATE TABLE a.dim (k int PRIMARY KEY); INSERT INTO a.dim VALUES (1)")
        fill(source18, JANUARY, MARCH, 60)
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        warehouse18.run(
            "ALTER TABLE a.t_2013_01 ADD CONSTRAINT mine FOREIGN KEY (p) REFERENCES a.dim ON DELETE SET NULL (p)"
        )
        maintained(warehouse18, keep=timedelta(days=1))
        for rename in renames:
            warehouse18.run(f"ALTER TABLE a.t RENAME {rename}")
        restored(warehouse18, "a.t_2013_01")
        assert warehouse18.run(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'mine' AND convalidated"
        ) == [(f"FOREIGN KEY ({now}) REFERENCES a.dim(k) ON DELETE SET NULL ({now})",)]

    def test_a_foreign_key_over_a_column_that_was_dropped(self, source18, warehouse18):
        """It does not come back over another column, which has got that name."""
        pipe = simple(source18, warehouse18)
        warehouse18.run("ALTER TABLE a.t ADD p int DEFAULT 1, ADD q int DEFAULT 1")
        warehouse18.run("CREATE TABLE a.dim (k int PRIMARY KEY); INSERT INTO a.dim VALUES (1)")
        fill(source18, JANUARY, MARCH, 60)
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        warehouse18.run(
            "ALTER TABLE a.t_2013_01 ADD CONSTRAINT mine FOREIGN KEY (p) REFERENCES a.dim"
        )
        maintained(warehouse18, keep=timedelta(days=1))
        warehouse18.run("ALTER TABLE a.t DROP p; ALTER TABLE a.t RENAME q TO p")
        log = RecordedEvents()
        restored(warehouse18, "a.t_2013_01", log=log)
        assert warehouse18.value("SELECT count(*) FROM pg_constraint WHERE conname = 'mine'") == 0
        assert "a foreign key that the target no longer has was not given back" in log.names()
        assert warehouse18.value("SELECT count(p) FROM a.t") == 60

    def test_an_index_that_is_stored_in_its_own_way(self, source18, warehouse18):
        """It is the table's all the same, and not made a second time."""
        pipe = simple(source18, warehouse18)
        warehouse18.run("CREATE INDEX t_v_idx ON a.t (v)")
        fill(source18, JANUARY, MARCH, 60)
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        warehouse18.run("ALTER INDEX a.t_2013_01_v_idx SET (fillfactor = 60)")
        before = indexes(warehouse18)
        maintained(warehouse18, keep=timedelta(days=1))
        restored(warehouse18, "a.t_2013_01")
        assert indexes(warehouse18) == before

    def test_an_index_that_a_partitioned_one_gets(self, warehouse):
        warehouse.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id int, ts date, w int) PARTITION BY RANGE (ts);"
            + ";".join(
                f"CREATE TABLE a.m{m} PARTITION OF a.t FOR VALUES FROM ('2013-0{m}-01') TO ('2013-0{m + 1}-01')"
                f" PARTITION BY HASH (id); CREATE TABLE a.m{m}_0 PARTITION OF a.m{m} FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
                for m in (1, 2)
            )
            + "; INSERT INTO a.t VALUES (1, '2013-01-05', 1), (2, '2013-02-05', 2)"
        )
        begin_ledger(warehouse)
        assert names(maintained(warehouse, keep=timedelta(days=1))) == ["a.m1"]
        warehouse.run("CREATE INDEX ON a.t (w)")
        restored(warehouse, "a.m1")
        assert warehouse.value("SELECT count(*) FROM pg_indexes WHERE tablename = 'm1_0'") == 1

    def test_a_column_that_may_have_been_renamed_meanwhile(self, source18, warehouse18):
        """Of a partition that was taken out before that was recorded: nothing is thrown away on a guess."""
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, MARCH, 60)
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        maintained(warehouse18, keep=timedelta(days=1))
        warehouse18.run("UPDATE etl.retired_partitions SET rebuild = NULL")
        warehouse18.run("ALTER TABLE a.t RENAME v TO w")
        with pytest.raises(ContractError, match="was it renamed") as refused:
            restored(warehouse18, "a.t_2013_01")
        warehouse18.run((refused.value.remedy or "").partition(": ")[2].partition(";")[0])
        restored(warehouse18, "a.t_2013_01")
        warehouse18.run("ALTER TABLE a.t RENAME w TO v")
        assert pipe.rows() == pipe.source_rows()

    def test_a_column_that_was_dropped_from_what_hangs_on_it(self, warehouse):
        warehouse.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id int, ts date, w int) PARTITION BY RANGE (ts);"
            + ";".join(
                f"CREATE TABLE a.m{m} PARTITION OF a.t FOR VALUES FROM ('2013-0{m}-01') TO ('2013-0{m + 1}-01')"
                f" PARTITION BY HASH (id); CREATE TABLE a.m{m}_0 PARTITION OF a.m{m} FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
                for m in (1, 2)
            )
            + "; INSERT INTO a.t VALUES (1, '2013-01-05', 1), (2, '2013-02-05', 2)"
        )
        begin_ledger(warehouse)
        assert names(maintained(warehouse, keep=timedelta(days=1))) == ["a.m1"]
        warehouse.run("ALTER TABLE a.t DROP w")
        restored(warehouse, "a.m1")
        assert warehouse.run("SELECT * FROM a.m1_0") == [(1, date(2013, 1, 5))]

    def test_a_foreign_key_of_its_own(self, source, warehouse):
        """Given back as it was; one whose rows are gone by now is said to be missing, and the partition is back."""
        pipe = simple(source, warehouse)
        fill(source, JANUARY, MARCH, 60)
        source.run("UPDATE t SET v = 'x'")
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        warehouse.run(
            "CREATE TABLE a.dim (v text PRIMARY KEY); INSERT INTO a.dim VALUES ('x');"
            "ALTER TABLE a.t_2013_01 ADD CONSTRAINT mine FOREIGN KEY (v) REFERENCES a.dim"
        )
        keys = "SELECT conname::text, convalidated FROM pg_constraint WHERE contype = 'f' AND conrelid = 'a.t_2013_01'::regclass"
        for _ in range(2):
            maintained(warehouse, keep=timedelta(days=1))
            restored(warehouse, "a.t_2013_01")
            assert warehouse.run(keys) == [("mine", True)]
        maintained(warehouse, keep=timedelta(days=1))
        warehouse.run("DELETE FROM a.dim")
        log = RecordedEvents()
        restored(warehouse, "a.t_2013_01", log=log)
        assert warehouse.run(keys) == []
        assert "a foreign key that the target no longer has was not given back" in log.names()

    def test_a_foreign_key_that_it_was_not_let_go_of(self, source, warehouse):
        """A reader was in the way when it went: it has its key once, not twice."""
        pipe = simple(source, warehouse)
        warehouse.run(
            "CREATE TABLE a.dim (v text PRIMARY KEY); INSERT INTO a.dim VALUES ('x');"
            "ALTER TABLE a.t ADD CONSTRAINT dims FOREIGN KEY (v) REFERENCES a.dim"
        )
        fill(source, JANUARY, MARCH, 60)
        source.run("UPDATE t SET v = 'x'")
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        maintained(warehouse, keep=timedelta(days=1))
        (kept,) = pipe.left_in_staging()
        warehouse.run(
            f"ALTER TABLE etl_staging.{kept} ADD CONSTRAINT otherwise FOREIGN KEY (v) REFERENCES a.dim"
        )
        restored(warehouse, "a.t_2013_01")
        assert (
            warehouse.value(
                "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conrelid = 'a.t_2013_01'::regclass"
            )
            == 1
        )

    def test_columns_of_which_one_was_generated_from_the_other(self, source, warehouse):
        """Both are gone, with the index and the foreign key that went by them."""
        pipe = simple(source, warehouse)
        warehouse.run(
            "CREATE TABLE a.dim (k int PRIMARY KEY); INSERT INTO a.dim VALUES (1);"
            "ALTER TABLE a.t ADD k int DEFAULT 1 REFERENCES a.dim,"
            " ADD twice int GENERATED ALWAYS AS (k * 2) STORED; CREATE INDEX ON a.t (k)"
        )
        fill(source, JANUARY, MARCH, 60)
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        maintained(warehouse, keep=timedelta(days=1))
        warehouse.run("ALTER TABLE a.t DROP twice, DROP k")
        restored(warehouse, "a.t_2013_01")
        assert pipe.rows() == pipe.source_rows()
        assert [name for name, *_ in indexes(warehouse)] == ["a.t_2013_01_pkey"]

    def test_several_with_what_hangs_on_them(self, warehouse):
        warehouse.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id int, ts date, PRIMARY KEY (id, ts)) PARTITION BY RANGE (ts);"
            + ";".join(
                f"CREATE TABLE a.m{m} PARTITION OF a.t FOR VALUES FROM ('2013-0{m}-01') TO ('2013-0{m + 1}-01')"
                f" PARTITION BY HASH (id); CREATE TABLE a.m{m}_0 PARTITION OF a.m{m} FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
                for m in (1, 2, 3)
            )
            + "; INSERT INTO a.t VALUES (1, '2013-01-05'), (2, '2013-02-05'), (3, '2013-03-05')"
        )
        begin_ledger(warehouse)
        assert names(maintained(warehouse, keep=timedelta(days=1))) == ["a.m1", "a.m2"]
        for name in ("a.m2", "a.m1"):
            restored(warehouse, name)
        assert warehouse.value("SELECT count(*) FROM a.t") == 3
        assert attached(warehouse) == ["a.m1_0", "a.m2_0", "a.m3_0"]
        assert warehouse.value(
            "SELECT count(*) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
            " WHERE c.relname IN ('m1_pkey', 'm1_0_pkey', 'm2_pkey', 'm2_0_pkey')"
        ) == 4  # fmt: skip

    def test_of_a_range_that_has_a_partition_again(self, pipe, warehouse18):
        maintained(warehouse18, keep=back_to(FEBRUARY))
        pipe.load(JANUARY, FEBRUARY)
        before = pipe.picture()
        with pytest.raises(StateError, match=r"again: a\.t_2013_01"):
            restored(warehouse18, "a.t_2013_01")
        assert pipe.picture() == before

    def test_of_a_range_whose_late_rows_are_in_default(self, source18, warehouse18):
        pipe = simple(source18, warehouse18)
        warehouse18.run("CREATE TABLE a.rest PARTITION OF a.t DEFAULT")
        fill(source18, JANUARY, MARCH, 60)
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        maintained(warehouse18, keep=timedelta(days=1))
        warehouse18.run("INSERT INTO a.t VALUES (-2, '2013-01-05Z', 'late')")
        with pytest.raises(CatalogError, match=r"DEFAULT partition a\.rest"):
            restored(warehouse18, "a.t_2013_01")
        warehouse18.run("INSERT INTO a.t VALUES (-3, '2013-01-06Z', 'later')")
        warehouse18.run("DELETE FROM a.rest")
        restored(warehouse18, "a.t_2013_01")
        assert pipe.rows() == pipe.source_rows()

    def test_a_name_that_is_near(self, pipe, warehouse18):
        maintained(warehouse18, keep=back_to(FEBRUARY))
        with pytest.raises(StateError, match=r"did you mean 'a\.t_2013_01'"):
            restored(warehouse18, "a.t_2013_10")

    def test_what_was_loaded_since_stays_covered_by_its_load(self, pipe, warehouse18):
        maintained(warehouse18, keep=back_to(MARCH))
        other = replace(pipe, store=MemoryWatermarkStore())
        again = other.load(JANUARY, FEBRUARY)
        restored(warehouse18, "a.t_2013_02")
        assert seen(pipe) == ([("covered", JAN, APR)], [])
        assert pipe.coverage()[0][2] == again.load_id

    def test_what_was_rolled_back_meanwhile_is_not_covered(self, source18, warehouse18):
        pipe = simple(source18, warehouse18)
        warehouse18.run(
            "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
        )
        fill(source18, FEBRUARY, MARCH, 30)
        pipe.load(FEBRUARY, MARCH)
        load = pipe.load(JANUARY, MARCH)
        assert names(maintained(warehouse18, keep=timedelta(days=1))) == ["a.t_2013_01"]
        with connect(warehouse18.endpoint()) as connection:
            rollback(
                connection,
                load.load_id,
                "wrong rates",
                "ada",
                options=RollbackOptions(),
                stop=threading.Event(),
                log=RecordedEvents(),
            )
        restored(warehouse18, "a.t_2013_01")
        assert pipe.coverage() == []


def indexes(database):
    return database.run(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), EXISTS (SELECT FROM pg_inherits WHERE inhrelid = indexrelid)"
        " FROM pg_index WHERE indrelid = 'a.t_2013_01'::regclass ORDER BY 1"
    )
