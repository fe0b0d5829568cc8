"""swap_merge: touched partitions are built from what stays of the old ones and the batch, and exchanged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ContractError,
    DataError,
    LockBudgetExceeded,
    ShrinkBrake,
)
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.publish import OnLockDeadline, OnOldSnapshot
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.core.settle import CursorOrigin, SettleOptions
from airflow_etl_provider.postgres import swap_merge
from airflow_etl_provider.testing import RecordedEvents
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
from tests.integration.postgres.test_rollback import rolled_back

SWAP_MERGE = Strategy.SWAP_MERGE
NOW = SettleOptions(origin=CursorOrigin.APPLICATION, delay=timedelta(0), margin=timedelta(0))
MONTHS = """
    CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');
    CREATE TABLE a.t_2013_02 PARTITION OF a.t FOR VALUES FROM ('2013-02-01Z') TO ('2013-03-01Z')
"""


def day(number: int, month: int = 1) -> datetime:
    return datetime(2013, month, number, tzinfo=UTC)


def oids(database) -> dict[str, int]:
    return dict(
        database.run(
            "SELECT relid::text, relid::oid::bigint FROM pg_partition_tree('a.t') WHERE isleaf"
        )
    )


def entities(source, warehouse, target: str | None = None, **changes: Any) -> Pipeline:
    """Rows with an id, a month they belong to and a time of their last change."""
    source.run(
        "CREATE TABLE t (id bigint, ts timestamptz NOT NULL, changed timestamptz NOT NULL, v text)"
    )
    warehouse.run(
        target
        or "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, changed timestamptz NOT NULL,"
        " v text, PRIMARY KEY (id, ts)) PARTITION BY RANGE (ts);"
        + MONTHS
    )
    fields: dict[str, Any] = {
        "kind": Kind.ENTITIES,
        "keys": ("id",),
        "cursor": "changed",
        "mode": WindowMode.FULL,
        "partition": None,
        "settle": NOW,
    }
    return Pipeline(source, warehouse, **fields | changes)


def put(database, *rows, table="t") -> None:
    with database.connect() as connection:
        connection.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s, %s, %s)", rows)


class TestEvents:
    def test_a_part_of_a_partition(self, source, warehouse):
        """Rows outside the window stay, rows in it are what the source has now."""
        pipe = simple(source, warehouse)
        fill(source, JANUARY, FEBRUARY, 50)
        pipe.load(JANUARY, FEBRUARY)
        before = oids(warehouse)
        source.run("DELETE FROM t WHERE ts >= '2013-01-10Z' AND ts < '2013-01-12Z' AND id % 2 = 0")
        source.run("UPDATE t SET v = 'late' WHERE ts >= '2013-01-10Z' AND ts < '2013-01-12Z'")
        done = pipe.load(day(10), day(12), options={"strategy": SWAP_MERGE})
        assert done.strategy is SWAP_MERGE
        assert pipe.rows() == pipe.source_rows()
        assert oids(warehouse) != before
        assert (done.rows_inserted, done.rows_deleted, done.rows_unchanged) == (1, 3, 47)
        assert [part.name for part in done.partitions] == ["a.t_2013_01"]
        assert done.partitions[0].previous is not None

    def test_over_two_partitions_and_one_to_be_made(self, source, warehouse):
        pipe = simple(source, warehouse)
        fill(source, JANUARY, APRIL, 90)
        pipe.load(JANUARY, FEBRUARY)
        done = pipe.load(day(20), day(10, 3), options={"strategy": SWAP_MERGE})
        rows = [r for (r,) in source.run("SELECT t::text FROM t WHERE ts < '2013-03-10Z'")]
        assert sorted(r for (r,) in pipe.rows()) == sorted(rows)
        assert len(done.partitions) == 3

    def test_an_empty_window_takes_rows_away_within_the_brake(self, source18, warehouse18):
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, FEBRUARY, 31)
        pipe.load(JANUARY, FEBRUARY)
        source18.run("DELETE FROM t WHERE ts >= '2013-01-05Z'")
        with pytest.raises(ShrinkBrake, match=r"a\.t_2013_01"):
            pipe.load(day(5), FEBRUARY, options={"strategy": SWAP_MERGE})
        pipe.load(day(5), FEBRUARY, options={"strategy": SWAP_MERGE, "max_shrink": 1.0})
        assert pipe.rows() == pipe.source_rows()

    def test_no_partition_for_a_row_is_said(self, source18, warehouse18):
        pipe = simple(source18, warehouse18, partition=None)
        warehouse18.run(MONTHS)
        fill(source18, FEBRUARY, APRIL, 10)
        manifest = pipe.staged(day(10, 2), day(10, 3))
        with pytest.raises(DataError, match=r"belong into no partition of a\.t"):
            pipe.publish(manifest, strategy=SWAP_MERGE)


class TestEntities:
    @pytest.mark.parametrize("rows", [0, 1])
    def test_a_table_without_partitions(self, source18, warehouse18, rows):
        pipe = entities(
            source18,
            warehouse18,
            "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, changed timestamptz NOT NULL,"
            " v text) PARTITION BY RANGE (ts)",
        )
        put(source18, *[(n, day(3), day(1), "x") for n in range(rows)])
        manifest = pipe.staged()
        if rows:
            with pytest.raises(DataError, match=r"belong into no partition of a\.t"):
                pipe.publish(manifest, strategy=SWAP_MERGE)
        else:
            assert pipe.publish(manifest, strategy=SWAP_MERGE).partitions == ()

    @pytest.mark.parametrize("gone", [True, False])
    def test_a_row_that_takes_another_away_needs_no_partition(self, source18, warehouse18, gone):
        columns = "id bigint, ts timestamptz, changed timestamptz NOT NULL, v text, gone boolean"
        source18.run(f"CREATE TABLE t ({columns})")
        warehouse18.run(
            f"CREATE SCHEMA a; CREATE TABLE a.t ({columns}) PARTITION BY RANGE (ts);" + MONTHS
        )
        pipe = Pipeline(
            source18,
            warehouse18,
            kind=Kind.ENTITIES,
            keys=("id",),
            cursor="changed",
            mode=WindowMode.FULL,
            partition=None,
            settle=NOW,
        )
        source18.run(
            "INSERT INTO t SELECT i, '2013-01-02Z', '2013-01-02Z', 'x', false FROM generate_series(1, 5) AS i"
        )
        told: dict[str, Any] = {"strategy": SWAP_MERGE, "delete_flag": "gone"}
        pipe.load(options=told)
        source18.run(
            "UPDATE t SET ts = NULL, gone = %s, changed = '2013-01-05Z' WHERE id = 1", (gone,)
        )
        if not gone:
            with pytest.raises(DataError, match=r"1 rows of the batch .* belong into no partition"):
                pipe.load(options=told)
            return
        assert pipe.load(options=told).rows_deleted == 1
        assert warehouse18.value("SELECT array_agg(id ORDER BY id) FROM a.t") == [2, 3, 4, 5]

    def test_changed_moved_and_new_rows(self, source, warehouse):
        """Rule 16: a row whose partition column changed leaves its old partition."""
        pipe = entities(source, warehouse)
        put(source, *[(n, day(n), day(1), "first") for n in range(1, 20)])
        pipe.load(options={"strategy": SWAP_MERGE})
        assert pipe.rows() == pipe.source_rows()
        source.run("UPDATE t SET v = 'changed', changed = changed + interval '1 h' WHERE id = 3")
        source.run(
            "UPDATE t SET ts = ts + interval '1 month', changed = changed + interval '1 h' WHERE id = 5"
        )
        put(source, (100, day(3, 2), day(2), "new"))
        done = pipe.load(options={"strategy": SWAP_MERGE})
        assert pipe.rows() == pipe.source_rows()
        assert len(done.partitions) == 2
        assert (done.rows_inserted, done.rows_updated, done.rows_deleted) == (1, 19, 0)

    def test_a_newer_row_of_the_target_stays_and_is_counted(self, source, warehouse):
        """Rule A4, also where the newer version stands in another partition."""
        pipe = entities(source, warehouse)
        put(
            source, (1, day(3), day(1), "old"), (2, day(4), day(1), "old"), (3, day(5), day(1), "x")
        )
        pipe.load()
        put(warehouse, (7, day(6), day(1), "kept"), table="a.t")
        warehouse.run(
            "UPDATE a.t SET v = 'newer', changed = changed + interval '1 day' WHERE id = 1"
        )
        warehouse.run(
            "UPDATE a.t SET v = 'newer', changed = changed + interval '1 day', ts = ts + interval '1 month' WHERE id = 2"
        )
        done = pipe.load(options={"strategy": SWAP_MERGE})
        assert done.rows_stale == 2
        found = dict(warehouse.run("SELECT id, v FROM a.t"))
        assert found == {1: "newer", 2: "newer", 3: "x", 7: "kept"}

    def test_the_last_of_several_versions_counts(self, source18, warehouse18):
        pipe = entities(source18, warehouse18)
        put(source18, (1, day(3), day(1), "first"), (1, day(4), day(2), "last"))
        pipe.load(options={"strategy": SWAP_MERGE})
        assert warehouse18.run("SELECT id, v FROM a.t") == [(1, "last")]

    def test_keys_that_are_null_or_ambiguous_are_refused(self, source18, warehouse18):
        pipe = entities(source18, warehouse18, keys=("v",))
        put(source18, (1, day(3), day(1), None))
        with pytest.raises(DataError, match="no value in a key column"):
            pipe.load(options={"strategy": SWAP_MERGE})
        source18.run("UPDATE t SET v = 'a'")
        put(source18, (2, day(3), day(1), "a"))
        with pytest.raises(DataError, match="more than once"):
            pipe.load(options={"strategy": SWAP_MERGE})

    def test_columns_that_the_batch_lacks_are_not_emptied(self, source18, warehouse18):
        pipe = entities(source18, warehouse18)
        warehouse18.run("ALTER TABLE a.t ADD COLUMN note text")
        put(source18, (1, day(3), day(1), "x"))
        with pytest.raises(ContractError, match="note"):
            pipe.load(options={"strategy": SWAP_MERGE})
        assert pipe.load().strategy is Strategy.MERGE

    def test_a_second_unique_key_that_the_batch_violates_is_a_verdict(self, source18, warehouse18):
        pipe = entities(source18, warehouse18)
        put(source18, (1, day(3), day(1), "same"))
        pipe.load()
        warehouse18.run("CREATE UNIQUE INDEX ON a.t (v, ts)")
        source18.run("INSERT INTO t SELECT 2, ts, changed, v FROM t")
        before = pipe.picture()
        with pytest.raises(DataError):
            pipe.load(options={"strategy": SWAP_MERGE})
        assert pipe.picture() == before


PARTITIONINGS = {
    "integers": "PARTITION BY RANGE (id)|CREATE TABLE a.p1 PARTITION OF a.t FOR VALUES FROM (MINVALUE) TO (10);"
    "CREATE TABLE a.p2 PARTITION OF a.t FOR VALUES FROM (10) TO (MAXVALUE)",
    "list": "PARTITION BY LIST (v)|CREATE TABLE a.p1 PARTITION OF a.t FOR VALUES IN ('a', 'b''%', NULL);"
    "CREATE TABLE a.p2 PARTITION OF a.t DEFAULT",
    "hash": "PARTITION BY HASH (id)|CREATE TABLE a.p1 PARTITION OF a.t FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
    "CREATE TABLE a.p2 PARTITION OF a.t FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    "two levels": "PARTITION BY RANGE (ts)|CREATE TABLE a.jan PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z')"
    " TO ('2013-02-01Z') PARTITION BY LIST (v);"
    "CREATE TABLE a.p1 PARTITION OF a.jan FOR VALUES IN ('a', 'b''%'); CREATE TABLE a.p2 PARTITION OF a.jan DEFAULT;"
    "CREATE TABLE a.p3 PARTITION OF a.t DEFAULT",
    "two columns": "PARTITION BY RANGE (id, ts)|CREATE TABLE a.p1 PARTITION OF a.t FOR VALUES FROM (0, MINVALUE)"
    " TO (7, '2013-01-05Z'); CREATE TABLE a.p2 PARTITION OF a.t DEFAULT",
}


@pytest.mark.parametrize("how", PARTITIONINGS)
def test_however_the_table_is_partitioned(source, warehouse, how):
    """The server's own words for a partition's bound are all that is gone by."""
    by, partitions = PARTITIONINGS[how].split("|")
    pipe = entities(
        source,
        warehouse,
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, changed timestamptz NOT NULL, v text) "
        + by,
    )
    warehouse.run(partitions)
    warehouse.run("CREATE INDEX ON a.t (id)")
    values = ["a", "b'%", None, "other"]
    put(source, *[(n, day(n), day(1), values[n % 4]) for n in range(1, 20)])
    pipe.load(options={"strategy": SWAP_MERGE})
    assert pipe.rows() == pipe.source_rows()
    first = pipe.rows()
    described = warehouse.run(
        "SELECT relid::text, parentrelid::text FROM pg_partition_tree('a.t') ORDER BY 1"
    )
    source.run("UPDATE t SET v = 'moved', changed = changed + interval '1 s' WHERE id < 6")
    put(source, (40, day(3, 2), day(2), "a"))
    done = pipe.load(options={"strategy": SWAP_MERGE})
    assert pipe.rows() == pipe.source_rows()
    assert done.strategy is SWAP_MERGE
    again = warehouse.run(
        "SELECT relid::text, parentrelid::text FROM pg_partition_tree('a.t') ORDER BY 1"
    )
    assert again == described
    assert warehouse.value(
        "SELECT count(*) FROM pg_index AS i JOIN pg_inherits AS h ON h.inhrelid = i.indexrelid"
        " JOIN pg_class AS c ON c.oid = i.indrelid WHERE c.relkind = 'r' AND c.relispartition"
    ) == len([r for r in again if r[0].startswith("a.p")])
    rolled_back(pipe, done)
    assert pipe.rows() == first
    pipe.load(options={"strategy": SWAP_MERGE})
    assert pipe.rows() == pipe.source_rows()


@dataclass
class Interrupted:
    """Runs something once, between the building of partitions and their exchange."""

    do: Any
    done: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if not self.done:
            self.done = True
            self.do()


class TestOthersAtTheSameTime:
    @pytest.mark.parametrize(
        "statement",
        [
            "INSERT INTO a.t VALUES (77, '2013-01-20Z', 'foreign')",
            "UPDATE a.t SET v = 'foreign' WHERE id = 2",
            "DELETE FROM a.t WHERE id = 2",
            "DELETE FROM a.t WHERE id = 2; INSERT INTO a.t VALUES (2, '2013-01-02Z', 'again')",
        ],
    )
    def test_rows_that_others_write_meanwhile_are_not_lost(
        self, source, warehouse, monkeypatch, statement
    ):
        pipe = simple(source, warehouse)
        fill(source, JANUARY, FEBRUARY, 50)
        pipe.load(JANUARY, FEBRUARY)
        wrote = Interrupted(lambda: warehouse.run(statement))
        monkeypatch.setattr(swap_merge, "wait_out", wrote)
        warehouse.run("CREATE TABLE expected AS SELECT * FROM a.t")
        warehouse.run(statement.replace("a.t", "expected"))
        log = RecordedEvents()
        manifest = pipe.staged(day(25), FEBRUARY)
        done = pipe.publish(manifest, strategy=SWAP_MERGE, log=log)
        assert wrote.done
        assert done.strategy is SWAP_MERGE
        assert (
            "rows were written or the table was altered meanwhile: the partitions are built anew"
            in log.names()
        )
        assert pipe.rows() == warehouse.run(
            'SELECT t::text COLLATE "C" FROM expected AS t ORDER BY 1'
        )

    def test_another_load_of_the_partition_is_not_lost(self, source18, warehouse18, monkeypatch):
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, FEBRUARY, 50)
        pipe.load(JANUARY, FEBRUARY)
        source18.run("UPDATE t SET v = 'late'")
        other = pipe.staged(day(5), day(9))
        done = Interrupted(lambda: pipe.publish(other, strategy=Strategy.DELETE_INSERT))
        monkeypatch.setattr(swap_merge, "wait_out", done)
        pipe.load(day(20), day(25), options={"strategy": SWAP_MERGE})
        assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'late'") == warehouse18.value(
            "SELECT count(*) FROM a.t WHERE ts >= '2013-01-05Z' AND ts < '2013-01-09Z'"
            " OR ts >= '2013-01-20Z' AND ts < '2013-01-25Z'"
        )
        assert warehouse18.value("SELECT count(*) FROM a.t") == 50

    def test_eight_loads_of_one_partition_at_once(self, source, warehouse):
        """Each keeps what the others have published."""
        pipe = simple(source, warehouse)
        fill(source, JANUARY, FEBRUARY, 400)
        pipe.load(JANUARY, FEBRUARY)
        source.run("UPDATE t SET v = v || ' again'")
        batches = [pipe.staged(day(1 + 3 * n), day(4 + 3 * n)) for n in range(8)]
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda m: pipe.publish(m, strategy=SWAP_MERGE), batches))
        assert [d.strategy for d in done] == [SWAP_MERGE] * 8
        assert warehouse.value("SELECT count(*) FROM a.t") == 400
        assert warehouse.value(
            "SELECT count(*) FROM a.t WHERE v LIKE '% again' AND ts < '2013-01-25Z'"
        ) == warehouse.value("SELECT count(*) FROM a.t WHERE ts < '2013-01-25Z'")

    @pytest.mark.parametrize(
        ("statement", "words"),
        [
            ("CREATE VIEW a.january AS SELECT * FROM a.t_2013_01", "a.january shows partition"),
            ("ALTER TABLE a.t_2013_01 ENABLE ROW LEVEL SECURITY", "row security of its own"),
            ("CREATE PUBLICATION published FOR TABLE a.t", "is in publication published"),
            (
                "CREATE TABLE a.other (id bigint, ts timestamptz, FOREIGN KEY (id, ts) REFERENCES a.t)",
                "a.other reference a.t by foreign key",
            ),
        ],
    )
    def test_what_hinders_an_exchange_and_was_made_meanwhile(
        self, source18, warehouse18, monkeypatch, statement, words
    ):
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, FEBRUARY, 50)
        pipe.load(JANUARY, FEBRUARY)
        made = Interrupted(lambda: warehouse18.run(statement))
        monkeypatch.setattr(swap_merge, "wait_out", made)
        before = oids(warehouse18)
        with pytest.raises(CatalogError, match=words):
            pipe.load(day(20), FEBRUARY, options={"strategy": SWAP_MERGE})
        assert oids(warehouse18) == before

    def test_a_partition_that_was_given_other_bounds_meanwhile(
        self, source18, warehouse18, monkeypatch
    ):
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, FEBRUARY, 50)
        pipe.load(JANUARY, FEBRUARY)
        moved = Interrupted(
            lambda: warehouse18.run(
                "ALTER TABLE a.t DETACH PARTITION a.t_2013_01; ALTER TABLE a.t ATTACH PARTITION a.t_2013_01"
                " FOR VALUES FROM ('2013-01-01Z') TO ('2013-03-01Z')"
            )
        )
        monkeypatch.setattr(swap_merge, "wait_out", moved)
        done = pipe.load(day(20), FEBRUARY, options={"strategy": SWAP_MERGE})
        assert "2013-03-01" in done.partitions[0].bound
        assert pipe.rows() == pipe.source_rows()

    def test_writers_are_not_held_off_again_while_a_reader_is_in_the_way(
        self, source18, warehouse18, monkeypatch
    ):
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, FEBRUARY, 50)
        pipe.load(JANUARY, FEBRUARY)
        manifest = pipe.staged(day(20), day(25))
        looks = []
        verify = swap_merge.SwapMerge._verify
        monkeypatch.setattr(
            swap_merge.SwapMerge, "_verify", lambda *given: looks.append(1) or verify(*given)
        )
        told: dict[str, Any] = {
            "strategy": SWAP_MERGE,
            "lock_budget": timedelta(seconds=0.05),
            "lock_deadline": timedelta(seconds=1),
        }
        with (
            reader(warehouse18, "SELECT * FROM a.t"),
            pytest.raises(LockBudgetExceeded, match="slow report") as e,
        ):
            pipe.publish(manifest, **told)
        assert "in 1 attempts" not in str(e.value)
        assert len(looks) == 1
        pipe.publish(manifest, **told)
        assert len(looks) == 2
        assert pipe.rows() == pipe.source_rows()

    def test_a_retry_builds_anew(self, source18, warehouse18, monkeypatch):
        """What a killed try has built may be older than the partition is by now."""
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, FEBRUARY, 50)
        pipe.load(JANUARY, FEBRUARY)
        manifest = pipe.staged(day(20), day(25))

        def killed(*args, **kwargs):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(swap_merge, "wait_out", killed)
            with pytest.raises(KeyboardInterrupt):
                pipe.publish(manifest, strategy=SWAP_MERGE)
        assert any(name.endswith("_p0") for name in pipe.left_in_staging())
        warehouse18.run("UPDATE a.t SET v = 'since' WHERE id = 1")
        pipe.publish(manifest, strategy=SWAP_MERGE)
        assert warehouse18.value("SELECT v FROM a.t WHERE id = 1") == "since"
        assert not any(name.endswith("_p0") for name in pipe.left_in_staging())


class TestSnapshots:
    def older(self, database):
        """A report whose snapshot is older than the build, and which touches the table after the swap."""
        connection = psycopg.connect(database.conninfo, application_name="old report")
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT 1")
        return connection

    def test_older_snapshots_are_waited_out(self, source, warehouse):
        pipe = simple(source, warehouse)
        fill(source, JANUARY, FEBRUARY, 50)
        pipe.load(JANUARY, FEBRUARY)
        manifest = pipe.staged(day(20), day(25))
        log = RecordedEvents()
        with self.older(warehouse) as report:
            with in_background(
                lambda: pipe.publish(manifest, strategy=SWAP_MERGE, log=log)
            ) as publishing:
                wait_until(lambda: "waiting for older snapshots" in log.names(), "the wait")
                assert report.execute("SELECT count(*) FROM a.t").fetchone() == (50,)
                report.commit()
            assert publishing.result().strategy is SWAP_MERGE
        (waited,) = [fields for name, fields in log.events if name == "waiting for older snapshots"]
        assert "old report" in waited["held_by"]

    def test_at_the_deadline_it_fails_or_publishes_as_told(self, source18, warehouse18):
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, FEBRUARY, 50)
        pipe.load(JANUARY, FEBRUARY)
        manifest = pipe.staged(day(20), day(25))
        told: dict[str, Any] = {
            "strategy": SWAP_MERGE,
            "old_snapshot_deadline": timedelta(seconds=0.3),
        }
        with self.older(warehouse18):
            with pytest.raises(LockBudgetExceeded, match="old report"):
                pipe.publish(manifest, **told)
            assert pipe.state(manifest.load_id) == "validated"
            done = pipe.publish(manifest, **told, on_old_snapshot=OnOldSnapshot.PUBLISH)
        assert done.strategy is SWAP_MERGE

    def test_an_idle_session_without_a_snapshot_is_not_waited_for(self, source18, warehouse18):
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, FEBRUARY, 50)
        pipe.load(JANUARY, FEBRUARY)
        with reader(warehouse18, "SELECT 1"):
            done = pipe.load(
                day(20),
                day(25),
                options={"strategy": SWAP_MERGE, "old_snapshot_deadline": timedelta(0)},
            )
        assert done.strategy is SWAP_MERGE


class TestChoice:
    def pipe(self, source, warehouse, monkeypatch) -> Pipeline:
        monkeypatch.setattr("airflow_etl_provider.core.publish.REBUILD_ROWS", 10)
        monkeypatch.setattr("airflow_etl_provider.postgres.survey.REBUILD_ROWS", 10)
        pipe = simple(source, warehouse)
        fill(source, JANUARY, FEBRUARY, 310)
        pipe.load(JANUARY, FEBRUARY)
        warehouse.run("ANALYZE a.t")
        return pipe

    def test_by_the_measured_share(self, source, warehouse, monkeypatch):
        pipe = self.pipe(source, warehouse, monkeypatch)
        log = RecordedEvents()
        few = pipe.publish(pipe.staged(day(1), day(3)), log=log)
        assert few.strategy is Strategy.DELETE_INSERT
        assert "20 of 310 rows (6%)" in str(log.events)
        many = pipe.publish(pipe.staged(day(1), day(20)), log=log)
        assert many.strategy is SWAP_MERGE
        assert "190 of 310 rows (61%)" in str(log.events)
        assert pipe.rows() == pipe.source_rows()

    @pytest.mark.parametrize(
        ("what", "word"),
        [
            ("CREATE VIEW a.v AS SELECT * FROM a.t_2013_01", "a.v"),
            ("CREATE PUBLICATION pub FOR TABLE a.t", "pub"),
            (
                "CREATE TABLE a.c (id bigint, ts timestamptz, FOREIGN KEY (id, ts) REFERENCES a.t)",
                "a.c",
            ),
        ],
    )
    def test_what_hangs_on_the_table_is_written_under(
        self, source18, warehouse18, monkeypatch, what, word
    ):
        pipe = self.pipe(source18, warehouse18, monkeypatch)
        warehouse18.run(what)
        for window in ((day(1), day(20)), (JANUARY, FEBRUARY)):
            log = RecordedEvents()
            done = pipe.publish(pipe.staged(*window), log=log)
            assert done.strategy is Strategy.DELETE_INSERT
            assert word in str(log.events[0])
        with pytest.raises(CatalogError, match=word):
            pipe.load(day(1), day(20), options={"strategy": SWAP_MERGE})

    def test_readers_on_a_standby(self, source18, warehouse18, monkeypatch):
        pipe = self.pipe(source18, warehouse18, monkeypatch)
        done = pipe.load(day(1), day(20), options={"readers_on_standby": True})
        assert done.strategy is Strategy.DELETE_INSERT
        told = pipe.load(
            JANUARY, FEBRUARY, options={"readers_on_standby": True, "strategy": Strategy.SWAP}
        )
        assert told.strategy is Strategy.SWAP

    def test_what_cannot_be_right_is_refused(self, source18, warehouse18):
        pipe = simple(source18, warehouse18, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
        warehouse18.run(MONTHS)
        fill(source18, JANUARY, FEBRUARY, 3)
        with pytest.raises(ConfigurationError, match="gone from the snapshot"):
            pipe.load(options={"strategy": SWAP_MERGE})

    def test_a_plain_table_has_no_partitions(self, source18, warehouse18):
        source18.run("CREATE TABLE t (id bigint, ts timestamptz, v text)")
        warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz, v text)")
        pipe = Pipeline(source18, warehouse18, partition=None)
        with pytest.raises(CatalogError, match="not partitioned"):
            pipe.load(JANUARY, FEBRUARY, options={"strategy": SWAP_MERGE})


class TestLockDeadline:
    @pytest.mark.parametrize("strategy", [Strategy.SWAP, SWAP_MERGE])
    def test_in_place_as_told(self, source18, warehouse18, strategy):
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, FEBRUARY, 50)
        pipe.load(JANUARY, FEBRUARY)
        source18.run("UPDATE t SET v = 'late'")
        manifest = (
            pipe.staged(JANUARY, FEBRUARY)
            if strategy is Strategy.SWAP
            else pipe.staged(day(1), day(20))
        )
        told: dict[str, Any] = {"strategy": strategy, "lock_deadline": timedelta(seconds=0.4)}
        log = RecordedEvents()
        with reader(warehouse18, "SELECT count(*) FROM a.t"):
            with pytest.raises(LockBudgetExceeded, match="slow report"):
                pipe.publish(manifest, **told)
            done = pipe.publish(manifest, **told, on_lock_deadline=OnLockDeadline.MERGE, log=log)
        assert done.strategy is Strategy.DELETE_INSERT
        assert "slow report" in str(log.events)
        expected = 50 if strategy is Strategy.SWAP else 31
        assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'late'") == expected
        assert not any("_p" in name[-4:] for name in pipe.left_in_staging())


ROWS = st.dictionaries(
    st.integers(1, 12),
    st.tuples(st.integers(1, 59), st.integers(0, 3), st.sampled_from(["x", "y", None])),
    max_size=12,
)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(ROWS, min_size=1, max_size=4))
def test_like_a_merge(source18, warehouse18, steps):
    """Whatever comes in whatever order: the same rows as by ``merge``, which is tried at length elsewhere."""
    for database in (source18, warehouse18):
        database.run(
            "DROP SCHEMA IF EXISTS a CASCADE; DROP SCHEMA IF EXISTS b CASCADE; DROP TABLE IF EXISTS t;"
            "DROP SCHEMA IF EXISTS etl CASCADE; DROP SCHEMA IF EXISTS etl_staging CASCADE"
        )
    pipe = entities(source18, warehouse18)
    warehouse18.run(
        "CREATE SCHEMA b; CREATE TABLE b.t (LIKE a.t INCLUDING ALL) PARTITION BY RANGE (ts);"
        + MONTHS.replace("a.t", "b.t")
    )
    other = Pipeline(**{**pipe.__dict__, "stream": "u", "target": type(pipe.target)("b", "t")})
    for rows in steps:
        source18.run("DELETE FROM t")
        put(
            source18,
            *[
                (key, JANUARY + timedelta(days=d - 1), MARCH + timedelta(days=c), v)
                for key, (d, c, v) in rows.items()
            ],
        )
        pipe.load(options={"strategy": SWAP_MERGE})
        other.load(options={"strategy": Strategy.MERGE})
        assert pipe.rows() == other.rows()
