"""What ledger, staged batch and target say about a new batch, on real servers."""

from __future__ import annotations

import dataclasses
import json
import threading
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from airflow_etl_provider.core.columns import Selected
from airflow_etl_provider.core.errors import CatalogError, ConfigurationError, DataError
from airflow_etl_provider.core.history import Season
from airflow_etl_provider.core.load import Kind, Manifest
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.core.ports import Difference, Figure, Measured, Statistic
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.core.settle import SettleOptions
from airflow_etl_provider.core.window import Window
from airflow_etl_provider.postgres.rollback import RollbackOptions, rollback
from airflow_etl_provider.postgres.session import connect
from airflow_etl_provider.postgres.stream_checks import StreamFacts
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import FEBRUARY, JANUARY, MARCH, Pipeline, fill, simple
from tests.conftest import Database

NOW = SettleOptions(delay=timedelta(0), margin=timedelta(0))
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def facts(pipeline: Pipeline, manifest: Manifest) -> StreamFacts:
    return StreamFacts(pipeline.warehouse.endpoint(), manifest)


def days(pipeline: Pipeline, first: datetime, counts: list[int]) -> list[str]:
    """Publish so many rows for each of the days from *first* on; returns the loads."""
    loads = []
    for number, rows in enumerate(counts):
        low = first + number * DAY
        fill(pipeline.source, low, low + DAY, rows, first=int(low.timestamp()))
        loads.append(pipeline.load(low, low + DAY).load_id)
    return loads


@pytest.fixture
def daily(source: Database, warehouse: Database) -> Pipeline:
    """Events by day, in partitions by month."""
    return simple(source, warehouse)


class TestHistory:
    def test_the_nearest_windows_come_first(self, daily: Pipeline) -> None:
        """A backfill is compared with what lies around it, not with what is newest."""
        days(daily, JANUARY, [10, 20, 30, 40, 50])
        batch = daily.extract(JANUARY - DAY, JANUARY)
        assert [load.rows for load in facts(daily, batch).earlier(3, None)] == [10, 20, 30]
        late = daily.extract(JANUARY + 5 * DAY, JANUARY + 6 * DAY)
        assert [load.rows for load in facts(daily, late).earlier(3, None)] == [50, 40, 30]

    def test_only_what_is_published_counts(self, daily: Pipeline) -> None:
        """Staged, failed, rejected and rolled back loads say nothing; neither does the load itself."""
        one, two, three = days(daily, JANUARY, [10, 20, 30])
        daily.extract(JANUARY + 3 * DAY, JANUARY + 4 * DAY)
        daily.warehouse.run(
            "UPDATE etl.loads SET state = 'rolled_back' WHERE load_id = %s;", (two,)
        )
        daily.warehouse.run("UPDATE etl.loads SET state = 'rejected' WHERE load_id = %s", (three,))
        batch = daily.extract(JANUARY + 4 * DAY, JANUARY + 5 * DAY)
        assert [load.load_id for load in facts(daily, batch).earlier(30, None)] == [one]

    def test_a_window_that_was_loaded_again_counts_once(self, daily: Pipeline) -> None:
        """As its last load found it; and a batch is not compared with earlier loads of its own window."""
        days(daily, JANUARY, [10, 20])
        fill(daily.source, JANUARY, JANUARY + DAY, 5, first=1)
        daily.load(JANUARY, JANUARY + DAY)
        batch = daily.extract(JANUARY + 2 * DAY, JANUARY + 3 * DAY)
        assert [load.rows for load in facts(daily, batch).earlier(30, None)] == [20, 15]
        again = daily.extract(JANUARY, JANUARY + DAY)
        assert [load.rows for load in facts(daily, again).earlier(30, None)] == [20]

    def test_rows_are_scaled_to_the_length_of_the_window(self, daily: Pipeline) -> None:
        """February is compared with January by rows per second; a single day is not compared with a month."""
        fill(daily.source, JANUARY, FEBRUARY, 3100)
        daily.load(JANUARY, FEBRUARY)
        daily.load(MARCH, MARCH + DAY, run_type="backfill")
        batch = daily.extract(FEBRUARY, MARCH)
        (load,) = facts(daily, batch).earlier(30, None)
        assert load.rows == pytest.approx(2800)

    def test_other_streams_do_not_count(self, daily: Pipeline) -> None:
        """Whatever the same source and windows say of another stream."""
        days(daily, JANUARY, [10])
        batch = daily.extract(JANUARY + DAY, JANUARY + 2 * DAY)
        other = dataclasses.replace(batch, stream="another")
        assert facts(daily, other).earlier(30, None) == []

    def test_a_season_keeps_to_windows_of_its_kind(self, daily: Pipeline) -> None:
        """Of the eight days before, two fall on the batch's weekday, and all begin at its hour."""
        days(daily, JANUARY, list(range(1, 9)))
        batch = daily.extract(JANUARY + 14 * DAY, JANUARY + 15 * DAY)
        for season, alike in (
            (Season.WEEKDAY, [1, 8]),
            (Season.HOUR_OF_WEEK, [1, 8]),
            (Season.HOUR, list(range(1, 9))),
        ):
            found = facts(daily, batch).earlier(30, season)
            assert sorted(load.rows for load in found) == alike, season

    def test_the_hour_is_that_of_the_partitions_zone(
        self, source: Database, warehouse: Database
    ) -> None:
        """Midnight in New York stays midnight when the clocks change, though not in UTC."""
        zone = "America/New_York"
        pipeline = simple(source, warehouse, partition=PartitionSpec("ts", Every.MONTH, zone))
        winter = datetime(2013, 3, 8, 5, tzinfo=UTC)  # midnight there
        fill(source, winter, winter + HOUR, 4)
        pipeline.load(winter, winter + HOUR)
        summer = datetime(2013, 3, 12, 4, tzinfo=UTC)  # midnight again
        batch = pipeline.extract(summer, summer + HOUR)
        assert [load.rows for load in facts(pipeline, batch).earlier(9, Season.HOUR)] == [4]
        noon = pipeline.extract(summer + HOUR, summer + 2 * HOUR)
        assert facts(pipeline, noon).earlier(9, Season.HOUR) == []

    def test_a_first_window_without_a_start_is_compared_with_nothing(self, daily: Pipeline) -> None:
        """Nobody knows how long it is."""
        days(daily, JANUARY, [10])
        batch = daily.extract(JANUARY + DAY, JANUARY + 2 * DAY)
        first = dataclasses.replace(batch, window=dataclasses.replace(batch.window, low=None))
        assert facts(daily, first).earlier(30, None) == []

    def test_windows_from_the_beginning_of_time_do_not_break_it(self, daily: Pipeline) -> None:
        """A stream that was rewound to -infinity, or whose cursor was a counter once, still has a history."""
        one, two, three = days(daily, JANUARY, [10, 20, 30])
        daily.warehouse.run(
            "UPDATE etl.loads SET window_low = '-infinity' WHERE load_id = %s", (one,)
        )
        daily.warehouse.run(
            "UPDATE etl.loads SET window_low = '1', window_high = '9', window_type = 'bigint'"
            " WHERE load_id = %s",
            (two,),
        )
        batch = daily.extract(JANUARY + 4 * DAY, JANUARY + 5 * DAY)
        assert [load.load_id for load in facts(daily, batch).earlier(30, None)] == [three]

    def test_full_reads_are_compared_with_full_reads(
        self, source: Database, warehouse: Database
    ) -> None:
        """One for each run: a run that was cleared has read everything twice."""
        pipeline = simple(source, warehouse, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
        warehouse.run(
            "DROP TABLE a.t; CREATE TABLE a.t (id bigint PRIMARY KEY, ts timestamptz, v text)"
        )
        for rows in (3, 2, 4):
            fill(source, JANUARY, FEBRUARY, rows, first=10 * rows)
            pipeline.load(run_id="one" if rows < 4 else "two")
        batch = pipeline.extract(run_id="three")
        assert [load.rows for load in facts(pipeline, batch).earlier(30, None)] == [9, 5]
        of_run_two = pipeline.extract(run_id="two")
        assert [load.rows for load in facts(pipeline, of_run_two).earlier(30, None)] == [5]

    def test_windows_of_a_counter_count_as_they_are(
        self, source: Database, warehouse: Database
    ) -> None:
        """The last first: a counter has no length in time."""
        pipeline = simple(
            source,
            warehouse,
            kind=Kind.ENTITIES,
            cursor="id",
            mode=WindowMode.WATERMARK,
            keys=("id", "ts"),
            settle=NOW,
        )
        for first, rows in ((1, 5), (6, 3)):
            fill(source, JANUARY, FEBRUARY, rows, first=first)
            pipeline.load()
        fill(source, JANUARY, FEBRUARY, 1, first=9)
        batch = pipeline.extract()
        assert batch.window == Window("9", "10", "bigint")
        assert [load.rows for load in facts(pipeline, batch).earlier(30, None)] == [3, 5]

    def test_what_a_rollback_took_back_is_forgotten(self, daily: Pipeline) -> None:
        """As the rollback itself records it."""
        fill(daily.source, JANUARY, FEBRUARY, 31)
        whole = daily.load(JANUARY, FEBRUARY).load_id
        batch = daily.extract(FEBRUARY, MARCH)
        assert [load.load_id for load in facts(daily, batch).earlier(30, None)] == [whole]
        fill(daily.source, JANUARY, FEBRUARY, 900, first=1000)
        again = daily.load(JANUARY, FEBRUARY).load_id
        with connect(daily.warehouse.endpoint()) as connection:
            rollback(
                connection,
                again,
                "wrong rates",
                "ada",
                options=RollbackOptions(),
                stop=threading.Event(),
                log=RecordedEvents(),
            )
        assert [load.load_id for load in facts(daily, batch).earlier(30, None)] == [whole]


class TestNewest:
    def test_it_is_held_against_the_end_of_the_window(self, daily: Pipeline) -> None:
        """Whenever the audit runs, and however old the window is."""
        fill(daily.source, JANUARY, JANUARY + DAY, 24)
        batch = daily.extract(JANUARY, JANUARY + DAY)
        found = facts(daily, batch).newest("ts", [])
        assert (found.own, found.newest, found.lag) == (True, "2013-01-01 23:00:00+00", 3600.0)

    def test_without_a_window_of_time_the_moment_of_reading_counts(
        self, source: Database, warehouse: Database
    ) -> None:
        """A snapshot is as old as its newest row was when it was read."""
        pipeline = simple(source, warehouse, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
        warehouse.run(
            "DROP TABLE a.t; CREATE TABLE a.t (id bigint PRIMARY KEY, ts timestamptz, v text)"
        )
        source.run("INSERT INTO t VALUES (1, now() - interval '2 hours', 'x')")
        batch = pipeline.extract()
        lag = facts(pipeline, batch).newest("ts", []).lag
        assert lag is not None
        assert 7200 <= lag < 7260

    def test_an_empty_batch_is_as_old_as_what_was_known_before(self, daily: Pipeline) -> None:
        """Of what earlier loads told the newest counts that does not lie ahead of the window."""
        batch = daily.extract(JANUARY, JANUARY + DAY)
        known = ["2013-01-01 12:00:00+00", "2012-12-31 22:00:00+00", "2013-01-03 00:00:00+00"]
        found = facts(daily, batch).newest("ts", known)
        assert (found.own, found.newest, found.lag) == (False, known[0], 12 * 3600.0)
        nothing = facts(daily, batch).newest("ts", [])
        assert (nothing.own, nothing.newest, nothing.lag) == (False, None, None)

    @pytest.mark.parametrize(
        ("type_", "value", "lag"),
        [
            ("date", "2013-01-01", 0.0),
            ("date", "2012-12-31", 86_400.0),
            ("timestamp", "2013-01-01 22:00", 7200.0),
            ("timestamp(0)", "2013-01-01 22:00:00.4", 7200.0),
            ("timestamptz", "2013-01-01 22:00-05", -10_800.0),
            ("timestamptz", "infinity", None),
            ("date", "-infinity", None),
            ("date", "0001-01-01", (date(2013, 1, 2) - date(1, 1, 2)).days * 86_400.0),
            ("timestamp", "0044-03-15 12:00 BC", 64874865600.0),
        ],
    )
    def test_every_type_of_time_has_an_age(
        self, daily: Pipeline, type_: str, value: str, lag: float | None
    ) -> None:
        """A date lasts to the end of its day; what is infinite tells nothing."""
        batch = daily.extract(JANUARY, JANUARY + DAY)
        staging = batch.staging
        daily.warehouse.run(f"ALTER TABLE {staging} ADD COLUMN seen {type_}")
        daily.warehouse.run(f"INSERT INTO {staging} VALUES (1, now(), 'x', '{value}')")
        assert facts(daily, batch).newest("seen", []).lag == lag

    def test_a_column_that_tells_no_age_is_refused(self, daily: Pipeline) -> None:
        """By type, and by name with the nearest one."""
        batch = daily.extract(JANUARY, JANUARY + DAY)
        with pytest.raises(ConfigurationError, match="id is of type bigint, which tells no age"):
            facts(daily, batch).newest("id", [])
        with pytest.raises(CatalogError, match=r"no column 'tss'.*did you mean 'ts'"):
            facts(daily, batch).newest("tss", [])

    def test_what_an_audit_found_is_the_history_of_the_next(self, daily: Pipeline) -> None:
        """From the reports in the ledger, those of the same column."""
        (load,) = days(daily, JANUARY, [10])

        def told(column: str, lag: float) -> dict[str, Any]:
            return {
                "expectation_config": {"type": "expect_batch_to_be_fresh"},
                "result": {
                    "observed_value": {
                        "column": column,
                        "newest": "2013-01-01 22:00:00+00",
                        "lag_seconds": lag,
                    }
                },
            }

        other = {
            "expectation_config": {"type": "expect_column_max_to_be_between"},
            "result": {"observed_value": 3},
        }
        report = {"results": [other, told("other", 9.0), told("ts", 7200.0)]}
        daily.warehouse.run(
            "UPDATE etl.loads SET report = %s WHERE load_id = %s", (json.dumps(report), load)
        )
        batch = daily.extract(JANUARY + DAY, JANUARY + 2 * DAY)
        (found,) = facts(daily, batch).earlier(30, None, "ts")
        assert (found.newest, found.lag) == ("2013-01-01 22:00:00+00", 7200.0)
        (unasked,) = facts(daily, batch).earlier(30, None)
        assert (unasked.newest, unasked.lag) == (None, None)


class TestTarget:
    def test_a_batch_fits_what_it_was_made_for(self, daily: Pipeline) -> None:
        """Staged typed like the target: no difference."""
        batch = daily.extract(JANUARY, JANUARY + DAY)
        assert facts(daily, batch).differences(()) == (3, [])

    def test_what_has_changed_in_the_target_since_is_found(self, daily: Pipeline) -> None:
        """Types, columns that are gone, and columns that are needed now."""
        batch = daily.extract(JANUARY, JANUARY + DAY)
        daily.warehouse.run(
            "ALTER TABLE a.t ALTER v TYPE varchar(5);"
            "ALTER TABLE a.t ADD COLUMN load_id uuid NOT NULL, ADD COLUMN made int NOT NULL DEFAULT 1,"
            ' ADD COLUMN "odd ""one" text NOT NULL'
        )
        count, found = facts(daily, batch).differences(["load_id"])
        assert count == 3
        assert found == [
            Difference("v", "text", "character varying(5)"),
            Difference('odd "one', "no such column", "text NOT NULL"),
        ]
        daily.warehouse.run("ALTER TABLE a.t DROP COLUMN v")
        assert facts(daily, batch).differences(["load_id", 'odd "one'])[1] == [
            Difference("v", "it", "no such column")
        ]

    def test_missing_values_that_the_target_refuses_are_counted(self, daily: Pipeline) -> None:
        """Before the publish would fail by the first of them."""
        fill(daily.source, JANUARY, JANUARY + DAY, 3)
        daily.source.run("UPDATE t SET v = NULL WHERE id < 3")
        batch = daily.extract(JANUARY, JANUARY + DAY)
        daily.warehouse.run("ALTER TABLE a.t ALTER v SET NOT NULL")
        assert facts(daily, batch).differences(())[1] == [
            Difference("v", "2 rows without a value", "NOT NULL")
        ]


class TestMeasure:
    FIGURES = (
        Figure(Statistic.SUM, "id"),
        Figure(Statistic.MIN, "ts"),
        Figure(Statistic.MAX, "ts"),
    )

    def both(
        self, pipeline: Pipeline, batch: Manifest, figures: Any = FIGURES, checksum: Any = ()
    ) -> tuple[Measured, Measured]:
        names = dict.fromkeys([*(figure.column for figure in figures), *checksum])
        measured = facts(pipeline, batch).measured(figures, checksum)
        source = pipeline.reader().measure(
            batch.window,
            cursor=None if batch.window.is_full else pipeline.cursor,
            columns=[Selected(name, name) for name in names],
            figures=figures,
            checksum=checksum,
        )
        return measured, facts(pipeline, batch).as_batch(figures, source)

    def test_source_and_batch_say_the_same(self, daily: Pipeline) -> None:
        """Of the rows of the window only, checksums included."""
        fill(daily.source, JANUARY - DAY, JANUARY + 2 * DAY, 30)
        batch = daily.extract(JANUARY, JANUARY + DAY)
        ours, theirs = self.both(daily, batch, checksum=("id", "ts", "v"))
        assert ours == theirs
        assert (ours.rows, ours.figures[0]) == (10, str(sum(range(11, 21))))
        assert ours.checksum not in (None, "0")

    def test_an_empty_window_has_no_figures(self, daily: Pipeline) -> None:
        """Nothing is equal to nothing."""
        batch = daily.extract(JANUARY, JANUARY + DAY)
        ours, theirs = self.both(daily, batch, checksum=("id",))
        assert ours == theirs == Measured(0, (None, None, None), "0")

    def test_what_changed_meanwhile_shows(self, daily: Pipeline) -> None:
        """A row more, another value, or the same numbers in other rows."""
        fill(daily.source, JANUARY, JANUARY + DAY, 10)
        batch = daily.extract(JANUARY, JANUARY + DAY)
        daily.source.run("UPDATE t SET v = 'other' WHERE id = 3")
        ours, theirs = self.both(daily, batch, checksum=("id", "v"))
        assert ours.figures == theirs.figures
        assert ours.checksum != theirs.checksum
        daily.source.run("UPDATE t SET id = 99 WHERE id = 3")
        ours, theirs = self.both(daily, batch)
        assert (ours.figures[0], theirs.figures[0]) == ("55", "151")
        daily.source.run("DELETE FROM t WHERE id = 99")
        ours, theirs = self.both(daily, batch)
        assert (ours.rows, theirs.rows) == (10, 9)

    def test_a_query_is_measured_as_it_was_read(
        self, source: Database, warehouse: Database
    ) -> None:
        """Its bounds are the window's, and names are looked up as its role would."""
        query = "SELECT id, ts, v FROM t WHERE ts >= :low AND ts < :high AND id % 2 = 0 -- even"
        pipeline = simple(source, warehouse, query=query)
        fill(source, JANUARY, JANUARY + 2 * DAY, 40)
        batch = pipeline.extract(JANUARY, JANUARY + DAY)
        ours, theirs = self.both(pipeline, batch)
        assert ours == theirs
        assert ours.rows == 10

    def test_a_view_whose_function_needs_the_search_path(
        self, source: Database, warehouse: Database
    ) -> None:
        """It is read with the path of its role, as extract does."""
        pipeline = simple(source, warehouse, table=TableName("public", "seen"))
        source.run(
            "CREATE FUNCTION twice(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 2 * count(*) * 0 + $1 FROM t';"
            "CREATE VIEW seen AS SELECT twice(id) AS id, ts, v FROM t"
        )
        fill(source, JANUARY, JANUARY + DAY, 5)
        batch = pipeline.extract(JANUARY, JANUARY + DAY)
        ours, theirs = self.both(pipeline, batch)
        assert ours == theirs
        assert ours.rows == 5

    def test_nothing_that_a_query_does_is_written(
        self, source: Database, warehouse: Database
    ) -> None:
        """Measuring only reads, whatever the query calls."""
        query = "SELECT id, ts, v FROM written()"
        pipeline = simple(source, warehouse, query=query)
        source.run(
            "CREATE FUNCTION written() RETURNS SETOF t LANGUAGE sql AS"
            " $$DELETE FROM t; SELECT * FROM t$$"
        )
        batch = dataclasses.replace(
            simple_manifest(pipeline),
            window=Window("2013-01-01", "2013-01-02", "timestamp with time zone"),
        )
        with pytest.raises(Exception, match="read-only transaction"):
            pipeline.reader().measure(
                batch.window, cursor="ts", columns=(), figures=(), checksum=()
            )

    def test_figures_that_servers_compute_in_their_own_ways_are_refused(
        self, daily: Pipeline
    ) -> None:
        """The least text depends on a collation, and text has no sum."""
        batch = daily.extract(JANUARY, JANUARY + DAY)
        for figure, message in (
            (Figure(Statistic.MIN, "v"), "the min of v cannot be compared.*of type text"),
            (Figure(Statistic.SUM, "ts"), "the sum of ts cannot be compared"),
        ):
            with pytest.raises(ConfigurationError, match=message):
                facts(daily, batch).measured([figure], ())
        with pytest.raises(CatalogError, match=r"no column 'idd'.*did you mean 'id'"):
            facts(daily, batch).measured([Figure(Statistic.SUM, "idd")], ())

    def test_floating_point_is_told(self, source: Database, warehouse: Database) -> None:
        """Its sums depend on the order of the rows."""
        source.run(
            "CREATE TABLE t (id bigint PRIMARY KEY, ts timestamptz NOT NULL, v real, w float8)"
        )
        warehouse.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v real, w float8)"
            " PARTITION BY RANGE (ts)"
        )
        pipeline = Pipeline(source, warehouse)
        batch = pipeline.extract(JANUARY, JANUARY + DAY)
        wanted = [Figure(Statistic.SUM, name) for name in ("id", "v", "w")]
        assert facts(pipeline, batch).measured(wanted, ()).inexact == {1, 2}

    def test_ends_of_a_source_are_read_as_the_columns_own_type(self, daily: Pipeline) -> None:
        """Another database writes the same instant in another way; what is none is told without its text."""
        batch = daily.extract(JANUARY, JANUARY + DAY)
        figures = (Figure(Statistic.MAX, "ts"),)
        found = facts(daily, batch).as_batch(
            figures, Measured(1, ("2013-01-01T22:00:00.500000-05:00",))
        )
        assert found.figures == ("2013-01-02 03:00:00.5+00",)
        with pytest.raises(DataError) as refused:
            facts(daily, batch).as_batch(figures, Measured(1, ("xyzzy",)))
        assert "xyzzy" not in str(refused.value)


def simple_manifest(pipeline: Pipeline) -> Manifest:
    fill(pipeline.source, JANUARY, JANUARY + DAY, 1)
    plain = dataclasses.replace(pipeline, query=None, stream="plain")
    return plain.extract(JANUARY, JANUARY + DAY)
