"""Large windows in slices: each is kept when it is there, and a retry goes on behind the last one."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
from uuid6 import uuid7

from airflow_etl_provider.core.columns import Selection, Treatment
from airflow_etl_provider.core.errors import DataError, EtlError, Stopped, Superseded
from airflow_etl_provider.core.load import Kind
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.postgres.clean import CleanOptions, clean
from airflow_etl_provider.postgres.rewind import rewind
from airflow_etl_provider.postgres.session import connect
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

ROWS = 20_000


def analyzed(source, warehouse, *, index=True, **more):
    """January in ``t``, indexed and known to the planner, to be cut into slices of 5,000 rows."""
    pipe = simple(source, warehouse, options={"slice_rows": 5_000}, **more)
    fill(source, JANUARY, FEBRUARY, ROWS)
    if index:
        source.run("CREATE INDEX ON t (ts)")
    source.run("VACUUM ANALYZE t")
    return pipe


class Watching:
    """Notes the planned slices while they are there: they go when the load is staged."""

    def __init__(self, pipe):
        self._pipe, self._log, self.slices = pipe, pipe.log, []
        pipe.log = self

    @property
    def events(self):
        return self._log.events

    def __call__(self, event, **fields):
        self._log(event, **fields)
        if event == "slice staged":
            self.slices = self._pipe.warehouse.run(
                "SELECT slice, by, low, high, rows FROM etl.load_slices ORDER BY slice"
            )


class StopAfter:
    """Stops a load once so many of its slices are staged."""

    def __init__(self, pipe, count):
        self.pipe, self.count = pipe, count

    def is_set(self):
        return sum(event == "slice staged" for event, _ in self.pipe.log.events) >= self.count


def test_a_large_window_is_cut_and_nothing_is_lost(source, warehouse):
    """Slices are alike in size, cover the window, and the batch is published as any other."""
    pipe = analyzed(source, warehouse)
    watching = Watching(pipe)
    published = pipe.load(JANUARY, FEBRUARY)
    found = watching.slices
    assert len(found) == 4
    assert sum(row[4] for row in found) == ROWS
    assert all(2_500 < row[4] < 8_000 for row in found)
    assert (found[0][2], found[-1][3]) == (None, None)
    assert all(one[3] == other[2] for one, other in pairwise(found))
    assert published.strategy.value == "swap"
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_retry_goes_on_behind_the_last_slice(source18, warehouse18, done):
    """Only what was not staged is read again; the log says so, and every row is there once."""
    pipe = analyzed(source18, warehouse18)
    load_id = str(uuid7())
    with pytest.raises(Stopped):
        pipe.extract(JANUARY, FEBRUARY, load_id=load_id, stop=StopAfter(pipe, done))
    assert pipe.state(load_id) == "failed"
    pipe.log.events.clear()
    manifest = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
    said = dict(pipe.log.events)
    assert said["going on behind the slices of an earlier try"]["slices"] == f"{done} of 4"
    assert sum(event == "slice staged" for event, _ in pipe.log.events) == 4 - done
    assert manifest.rows == ROWS
    assert manifest.staging.name.endswith("_2")
    assert pipe.left_in_staging() == {manifest.staging.name}
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()


def test_slices_that_were_cleaned_away_are_read_again(source18, warehouse18):
    """A load that died between two slices, and is taken up again when the janitor has been there."""
    pipe = analyzed(source18, warehouse18)
    load_id = str(uuid7())
    with pytest.raises(Stopped):
        pipe.extract(JANUARY, FEBRUARY, load_id=load_id, stop=StopAfter(pipe, 2))
    warehouse18.run(
        "UPDATE etl.loads SET state = 'started', started_at = started_at - interval '31 days';"
        "UPDATE etl.load_slices SET loaded_at = loaded_at - interval '31 days'"
    )
    with connect(warehouse18.endpoint()) as connection:
        done = clean(connection, CleanOptions(), stop=threading.Event(), log=pipe.log)
    assert len(done.dropped) == 1
    manifest = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
    assert manifest.rows == ROWS
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()


def test_a_killed_session_costs_one_slice(source18, warehouse18):
    """The server ends the target's session in the middle: what was committed stays, the retry ends it."""
    pipe = analyzed(source18, warehouse18)
    load_id = str(uuid7())
    log = pipe.log
    killed = []

    def killing(event, **fields):
        log(event, **fields)
        if event == "slice staged" and not killed:
            killed.append(
                warehouse18.run(
                    "SELECT pg_terminate_backend(pid) FROM etl.sessions WHERE side = 'target'"
                )
            )

    pipe.log = killing
    with pytest.raises(EtlError, match=r"terminat|closed|connection"):
        pipe.extract(JANUARY, FEBRUARY, load_id=load_id)
    pipe.log = log
    manifest = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
    assert manifest.rows == ROWS
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()


def test_the_window_of_a_resumed_load_is_its_own(source18, warehouse18):
    """A watermark window that went on would otherwise end later than its first slices were cut for."""
    pipe = analyzed(source18, warehouse18, mode=WindowMode.WATERMARK)
    load_id = str(uuid7())
    with pytest.raises(Stopped):
        pipe.extract(load_id=load_id, stop=StopAfter(pipe, 2))
    source18.run("INSERT INTO t VALUES (1000001, now() - interval '1 h', 'meanwhile')")
    (high,) = warehouse18.run("SELECT window_high FROM etl.loads")[0]
    manifest = pipe.extract(load_id=load_id, try_number=2)
    assert manifest.window.high == high
    assert manifest.rows == ROWS + 1


def test_an_entity_that_changes_between_two_tries_arrives_in_its_last_version(
    source18, warehouse18
):
    """Slices of two snapshots: the row stands in both, and the later version wins."""
    source18.run(
        "CREATE TABLE t (id int PRIMARY KEY, ts timestamptz NOT NULL DEFAULT now(), v text)"
    )
    source18.run(
        "INSERT INTO t SELECT i, timestamptz '2013-01-01' + i * interval '1 s', 'old' FROM generate_series(1, 20000) i"
    )
    source18.run("CREATE INDEX ON t (ts)")
    source18.run("VACUUM ANALYZE t")
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, ts timestamptz, v text)"
    )
    pipe = Pipeline(
        source18,
        warehouse18,
        kind=Kind.ENTITIES,
        keys=("id",),
        partition=None,
        options={"slice_rows": 5_000},
    )
    load_id = str(uuid7())
    with pytest.raises(Stopped):
        pipe.extract(JANUARY, MARCH, load_id=load_id, stop=StopAfter(pipe, 2))
    source18.run("UPDATE t SET v = 'new', ts = '2013-02-20' WHERE id IN (1, 2, 19999)")
    manifest = pipe.extract(JANUARY, MARCH, load_id=load_id, try_number=2)
    assert manifest.rows == ROWS + 2
    assert manifest.read_until is not None
    assert manifest.snapshot_at < manifest.read_until
    assert warehouse18.value("SELECT count(*) FROM etl.load_slices") == 0
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()


def test_columns_that_changed_between_two_tries_start_over(source18, warehouse18):
    """Half of the rows without the new column would be worse than reading again."""
    pipe = analyzed(source18, warehouse18)
    load_id = str(uuid7())
    with pytest.raises(Stopped):
        pipe.extract(JANUARY, FEBRUARY, load_id=load_id, stop=StopAfter(pipe, 2))
    source18.run("ALTER TABLE t ADD w int DEFAULT 7")
    warehouse18.run("ALTER TABLE a.t ADD w int")
    manifest = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
    assert manifest.rows == ROWS
    assert pipe.left_in_staging() == {manifest.staging.name}
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()


def test_another_treatment_between_two_tries_starts_over(source18, warehouse18):
    """Half of the rows hashed and half of them plain is what nobody asked for."""
    pipe = analyzed(source18, warehouse18, hash_key="k")
    load_id = str(uuid7())
    with pytest.raises(Stopped):
        pipe.extract(JANUARY, FEBRUARY, load_id=load_id, stop=StopAfter(pipe, 2))
    pipe.selection = Selection(personal={"v": Treatment.HASH})
    manifest = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
    table = manifest.staging
    plain = f'SELECT count(*) FROM {table.schema}."{table.name}" WHERE length(v) <> 64'
    assert (manifest.rows, warehouse18.value(plain)) == (ROWS, 0)


def test_a_zombie_adds_nothing_to_the_slices_of_its_successor(source18, warehouse18):
    """A try that was taken over finds its load in other hands, and its slice is not kept."""
    pipe = analyzed(source18, warehouse18)
    load_id = str(uuid7())
    held = threading.Event()
    reached = threading.Event()
    log = pipe.log

    def waiting(event, **fields):
        log(event, **fields)
        if event == "slice staged" and not reached.is_set():
            reached.set()
            held.wait(30)

    zombie = Pipeline(source18, warehouse18, log=waiting, options=pipe.options, store=pipe.store)
    with in_background(lambda: zombie.extract(JANUARY, FEBRUARY, load_id=load_id)) as first:
        wait_until(reached.is_set, "the first slice")
        try:
            manifest = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
        finally:
            held.set()
    assert isinstance(first.exception(), EtlError | Superseded)
    assert pipe.state(load_id) == "staged"
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_read_one_snapshot(source, warehouse, shards):
    """Several sessions, one view: what commits while they read is in none of them."""
    pipe = analyzed(source, warehouse)
    log = pipe.log

    def writing(event, **fields):
        log(event, **fields)
        if event == "slice staged":
            source.run("DELETE FROM t WHERE id % 2 = 0")

    before = pipe.source_rows()
    pipe.log = writing
    pipe.load(JANUARY, FEBRUARY, shards=shards)
    assert pipe.rows() == before


def test_one_shard_that_fails_ends_the_others(source18, warehouse18):
    """A value that is too long in one slice: the error is that, and no session goes on."""
    pipe = analyzed(source18, warehouse18)
    source18.run("ALTER TABLE t ALTER v TYPE varchar(90)")
    source18.run("UPDATE t SET v = 'much too long for it' WHERE id = 17000")
    source18.run("VACUUM ANALYZE t")
    warehouse18.run("ALTER TABLE a.t ALTER v TYPE varchar(12)")
    with pytest.raises(DataError, match="22001"):
        pipe.extract(JANUARY, FEBRUARY, shards=2)
    for database in (source18, warehouse18):
        assert (
            database.run(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'etl:test'"
                " AND datname = current_database() AND state <> 'idle'"
            )
            == []
        )


def test_a_full_read_is_sharded_by_key_and_never_resumed(source18, warehouse18):
    """Nothing bounds what changes in a table that is read whole: a retry starts over."""
    source18.run("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source18.run("INSERT INTO t SELECT i, 'v' FROM generate_series(1, 20000) AS i")
    source18.run("VACUUM ANALYZE t")
    warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, v text)")
    pipe = Pipeline(
        source18,
        warehouse18,
        kind=Kind.SNAPSHOTS,
        cursor=None,
        partition=None,
        options={"shards": 2},
    )
    load_id = str(uuid7())
    with pytest.raises(Stopped):
        pipe.extract(load_id=load_id, stop=StopAfter(pipe, 1))
    watching = Watching(pipe)
    manifest = pipe.extract(load_id=load_id, try_number=2)
    assert [row[1] for row in watching.slices] == [["id"], ["id"]]
    assert not any("going on" in event for event, _ in pipe.log.events)
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()


def test_many_rows_of_one_value_are_cut_by_key(source18, warehouse18):
    """A bulk load stamped everything with one moment: the key tells the rows apart."""
    pipe = analyzed(source18, warehouse18, keys=("id",))
    source18.run("UPDATE t SET ts = '2013-01-15' WHERE id > 100")
    source18.run("VACUUM FULL ANALYZE t")
    source18.run("CREATE INDEX ON t (ts, id)")
    watching = Watching(pipe)
    pipe.load(JANUARY, FEBRUARY)
    found = watching.slices
    assert len(found) >= 3
    assert found[0][1] == ["ts", "id"]
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize("checksum", [True, False])
def test_the_checksum_of_slices_is_that_of_the_whole(source18, warehouse18, checksum):
    pipe = analyzed(source18, warehouse18)
    cut = pipe.extract(JANUARY, FEBRUARY, checksum=checksum)
    whole = pipe.extract(JANUARY, FEBRUARY, checksum=checksum, slice_rows=None)
    assert (cut.slices, whole.slices) == (4, 1)
    assert cut.checksum == whole.checksum
    assert (cut.checksum is not None) is checksum


def test_without_an_index_a_window_is_read_in_one_piece(source18, warehouse18):
    """Slices that each read the whole table would cost more than they save; the log says why."""
    pipe = analyzed(source18, warehouse18, index=False)
    assert pipe.extract(JANUARY, FEBRUARY).slices == 1
    said = dict(pipe.log.events)["extract started"]["slices"]
    assert "no index finds slices by ts" in said


def test_a_trigger_that_drops_rows_is_noticed_by_count(source18, warehouse18):
    """Rows are counted on both sides of every slice."""
    pipe = analyzed(source18, warehouse18)
    load_id = str(uuid7())
    with pytest.raises(Stopped):
        pipe.extract(JANUARY, FEBRUARY, load_id=load_id, stop=StopAfter(pipe, 1))
    name = warehouse18.value("SELECT staging FROM etl.loads")
    warehouse18.run(
        "CREATE FUNCTION eat() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.id % 1000 = 0 THEN RETURN NULL;"
        " END IF; RETURN NEW; END'"
    )
    warehouse18.run(
        f"CREATE TRIGGER eat BEFORE INSERT ON {name} FOR EACH ROW EXECUTE FUNCTION eat()"
    )
    with pytest.raises(EtlError, match="the source sent"):
        pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)


def test_a_rewound_stream_does_not_resume(source18, warehouse18):
    """The load of before the rewind is abandoned, and its slices with it."""
    pipe = analyzed(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    fill(source18, FEBRUARY, MARCH, ROWS, first=100_000)
    source18.run("VACUUM ANALYZE t")
    load_id = str(uuid7())
    with pytest.raises(Stopped):
        pipe.extract(FEBRUARY, MARCH, load_id=load_id, stop=StopAfter(pipe, 1))
    with warehouse18.connect() as connection:
        rewind(connection, "t", to="2013-01-15 00:00:00+00", reason="test", actor="test")
    assert pipe.state(load_id) == "abandoned"


def test_sliced_loads_keep_nothing_after_the_sessions_end(source18, warehouse18):
    pipe = analyzed(source18, warehouse18)
    pipe.extract(JANUARY, FEBRUARY, shards=2)
    assert warehouse18.value("SELECT count(*) FROM etl.sessions") == 0
    for database in (source18, warehouse18):
        assert (
            database.run(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'etl:test' AND datname = current_database()"
            )
            == []
        )
