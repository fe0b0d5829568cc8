"""A swap taken back: readers see the version before it, the ledger says so, and the window is open again."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import pytest
from uuid6 import uuid7

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ContractError,
    LockBudgetExceeded,
    StateError,
    Stopped,
    TransientError,
)
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.postgres import rollback as rollback_module
from airflow_etl_provider.postgres.clean import CleanOptions, clean
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
    login,
    reader,
    simple,
    wait_until,
)
from tests.integration.postgres.test_twin import RICH, SOURCE, description

JAN, FEB, MAR, APR = (f"2013-0{month}-01 00:00:00+00" for month in (1, 2, 3, 4))
SHORT = {"lock_budget": timedelta(milliseconds=100), "lock_deadline": timedelta(milliseconds=300)}


def rolled_back(pipe, load, *, reason="wrong rates", actor="ada", stop=None, log=None, **options):
    with connect(pipe.warehouse.endpoint()) as connection:
        return rollback(
            connection,
            getattr(load, "load_id", load),
            reason,
            actor,
            options=RollbackOptions(**options),
            stop=stop or threading.Event(),
            log=log or RecordedEvents(),
        )


def cleaned(pipe, **options):
    with connect(pipe.warehouse.endpoint()) as connection:
        return clean(
            connection, CleanOptions(**options), stop=threading.Event(), log=RecordedEvents()
        )


def everything(pipe):
    """All that a rollback may change, the ledger included."""
    return pipe.picture(), [
        pipe.warehouse.run(f"SELECT t::text FROM etl.{table} AS t ORDER BY 1")
        for table in ("streams", "coverage", "watermark_moves", "loads", "load_partitions")
    ]


def twice(pipe, low=JANUARY, high=FEBRUARY, **options):
    """A window loaded, changed at the source and loaded again: the first rows, and the second load."""
    pipe.load(low, high)
    before = pipe.rows()
    pipe.source.run("UPDATE t SET v = v || ' wrong'")
    load = pipe.load(low, high, options=options)
    assert pipe.rows() != before
    return before, load


@pytest.fixture
def pipe(source18, warehouse18):
    made = simple(source18, warehouse18)
    fill(source18, JANUARY, APRIL, 90)
    return made


def attached(pipe):
    return pipe.warehouse.run(
        "SELECT relid::regclass::text FROM pg_partition_tree('a.t') WHERE isleaf ORDER BY 1"
    )


def test_the_version_before_is_back(source, warehouse):
    """Rows, ledger and coverage change together; the version taken back is kept; a reload publishes anew."""
    pipe = simple(source, warehouse)
    fill(source, JANUARY, MARCH, 60)
    pipe.load(FEBRUARY, MARCH)
    before, load = twice(pipe)
    catalog = attached(pipe)
    done = rolled_back(pipe, load)
    assert pipe.rows() == before
    assert attached(pipe) == catalog
    assert pipe.state(load.load_id) == "rolled_back"
    assert [(low, high) for low, high, _ in pipe.coverage()] == [(FEB, MAR)]
    assert warehouse.value("SELECT error FROM etl.loads WHERE load_id = %s", (load.load_id,)) == (
        "rolled back by ada: wrong rates"
    )
    assert list(done.kept) == ["a.t_2013_01"]
    assert (done.already, done.moved, done.position.position) == (False, False, MAR)
    assert pipe.left_in_staging() == {done.kept["a.t_2013_01"].removeprefix("etl_staging.")}
    assert 0 < done.lock_ms < 300
    again = pipe.load(JANUARY, FEBRUARY)
    assert not again.already
    pipe.load(FEBRUARY, MARCH)
    assert pipe.rows() == pipe.source_rows()


def test_once_is_enough(pipe):
    """A second rollback of the same load says so and changes nothing."""
    _, load = twice(pipe)
    first = rolled_back(pipe, load)
    before = everything(pipe)
    log = RecordedEvents()
    second = rolled_back(pipe, load, log=log)
    assert (second.already, second.kept) == (True, first.kept)
    assert everything(pipe) == before
    assert log.events == []


def test_two_at_once(pipe):
    """One does it, the other finds it done."""
    before, load = twice(pipe)
    with (
        in_background(lambda: rolled_back(pipe, load)) as one,
        in_background(lambda: rolled_back(pipe, load)) as two,
    ):
        pass
    assert {one.result().already, two.result().already} == {False, True}
    assert pipe.rows() == before


def test_one_that_finds_the_other_done_while_it_looks(pipe, monkeypatch):
    """The version that came back is gone from where it was kept; that is no error."""
    before, load = twice(pipe)
    look, others = rollback_module._Rollback._return, []

    def later(self, *args):
        if not others:
            others.append(None)
            others.append(rolled_back(pipe, load))
        return look(self, *args)

    monkeypatch.setattr(rollback_module._Rollback, "_return", later)
    assert rolled_back(pipe, load).already
    assert not others[1].already
    assert pipe.rows() == before


def test_several_partitions_come_back_together(pipe):
    before, load = twice(pipe, JANUARY, MARCH)
    done = rolled_back(pipe, load)
    assert len(done.kept) == 2
    assert pipe.rows() == before


def test_a_partition_that_was_renamed(pipe, source18):
    """Found by its bound, as publish finds it; the next load under that name is seen, too."""
    before, load = twice(pipe, keep_versions=9)
    middle = pipe.rows()
    pipe.warehouse.run("ALTER TABLE a.t_2013_01 RENAME TO jan")
    source18.run("UPDATE t SET v = v || ' again'")
    later = pipe.load(JANUARY, FEBRUARY, options={"keep_versions": 9})
    pipe.warehouse.run("ALTER TABLE a.jan RENAME TO january")
    with pytest.raises(StateError, match=later.load_id):
        rolled_back(pipe, load)
    assert list(rolled_back(pipe, later).kept) == ["a.january"]
    assert pipe.rows() == middle
    done = rolled_back(pipe, load)
    assert list(done.kept) == ["a.january"]
    assert pipe.rows() == before
    assert attached(pipe) == [("a.january",)]
    assert rolled_back(pipe, load).kept == done.kept


def test_one_after_the_other(pipe, source18):
    """The last load first; then the one before it, if its version was kept."""
    first, second = twice(pipe, keep_versions=9)
    middle = pipe.rows()
    source18.run("UPDATE t SET v = v || ' again'")
    third = pipe.load(JANUARY, FEBRUARY, options={"keep_versions": 9})
    with pytest.raises(StateError, match=third.load_id):
        rolled_back(pipe, second)
    rolled_back(pipe, third)
    assert pipe.rows() == middle
    rolled_back(pipe, second)
    assert pipe.rows() == first


class TestTheWatermark:
    def test_it_moves_back_when_told(self, pipe):
        """To where the window begins, recorded, and the store follows with the next run."""
        _, load = twice(pipe)
        done = rolled_back(pipe, load, move_watermark=True)
        assert (done.moved, done.position.position, done.position.fence) == (True, JAN, 2)
        assert pipe.warehouse.run(
            "SELECT position_from, position_to, fence, reason, actor FROM etl.watermark_moves"
            " ORDER BY fence DESC LIMIT 1"
        ) == [(FEB, JAN, 2, f"load {load.load_id} was rolled back: wrong rates", "ada")]
        pipe.load(JANUARY, FEBRUARY)
        assert (pipe.position(), pipe.store.read("t").value) == (FEB, FEB)

    def test_what_is_published_above_is_not_loaded_again(self, pipe):
        _, load = twice(pipe)
        pipe.load(FEBRUARY, MARCH)
        rolled_back(pipe, load, move_watermark=True)
        assert pipe.position() == JAN
        pipe.load(JANUARY, FEBRUARY)
        assert pipe.position() == MAR

    def test_it_never_moves_forward(self, pipe):
        """A load ahead of the position leaves it where it is."""
        pipe.load(JANUARY, FEBRUARY)
        _, load = twice(pipe, MARCH, APRIL)
        done = rolled_back(pipe, load, move_watermark=True)
        assert (done.moved, done.position.position, done.position.fence) == (False, FEB, 1)


class TestRefusals:
    def refused(self, pipe, load, error=StateError, **given):
        before = everything(pipe)
        with pytest.raises(error) as raised:
            rolled_back(pipe, load, **given)
        assert raised.value.remedy
        assert everything(pipe) == before
        return str(raised.value)

    def test_a_load_that_is_not_there(self, pipe):
        pipe.load(JANUARY, FEBRUARY)
        assert "knows no load" in self.refused(pipe, str(uuid7()))
        assert "not the id of a load" in self.refused(pipe, "7", ConfigurationError)

    def test_no_reason(self, pipe):
        _, load = twice(pipe)
        assert "needs a reason" in self.refused(pipe, load, ConfigurationError, reason=" ")

    def test_a_load_that_is_not_published(self, pipe):
        assert "is validated" in self.refused(pipe, pipe.staged(JANUARY, FEBRUARY))

    def test_a_load_that_was_no_swap(self, pipe):
        load = pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.DELETE_INSERT})
        assert "delete_insert" in self.refused(pipe, load)

    def test_a_partition_that_was_new(self, pipe):
        assert "replaced nothing" in self.refused(pipe, pipe.load(JANUARY, FEBRUARY))

    def test_a_version_that_is_gone(self, pipe):
        _, load = twice(pipe)
        cleaned(pipe, keep_versions=0)
        assert "is gone" in self.refused(pipe, load)

    def test_a_partition_that_is_gone(self, pipe):
        _, load = twice(pipe)
        pipe.warehouse.run("ALTER TABLE a.t DETACH PARTITION a.t_2013_01")
        assert "no longer a partition" in self.refused(pipe, load)

    def test_rows_that_were_changed_in_place_since(self, pipe):
        """They would be lost; a window beside the partition is not in the way."""
        before, load = twice(pipe)
        pipe.load(FEBRUARY, MARCH, options={"strategy": Strategy.DELETE_INSERT})
        later = pipe.load(JANUARY, JANUARY + timedelta(days=3))
        assert later.strategy == "delete_insert"
        assert later.load_id in self.refused(pipe, load)
        pipe.warehouse.run(
            "UPDATE etl.loads SET state = 'superseded' WHERE load_id = %s", (later.load_id,)
        )
        assert "3 were written since" in self.refused(pipe, load)
        rolled_back(pipe, load, discard_changes=True)
        assert [row for row in pipe.rows() if row in before] == before

    def test_rows_of_a_stream_that_goes_by_another_column(self, pipe):
        """Its window says nothing of where its rows lie; whoever knows better may go on."""
        before, load = twice(pipe)
        pipe.source.run(
            "CREATE TABLE u (id bigint PRIMARY KEY, ts timestamptz NOT NULL, v text, at timestamptz NOT NULL);"
            "INSERT INTO u VALUES (1001, '2013-01-05Z', 'of u', '2013-03-02Z')"
        )
        pipe.warehouse.run("ALTER TABLE a.t ADD at timestamptz")
        other = replace(
            pipe,
            stream="u",
            table=TableName("public", "u"),
            cursor="at",
            partition=None,
            store=MemoryWatermarkStore(),
        )
        later = other.load(MARCH, APRIL, options={"strategy": Strategy.APPEND})
        assert later.load_id in self.refused(pipe, load)
        rolled_back(pipe, load, discard_changes=True)
        assert pipe.warehouse.value("SELECT count(*) FROM a.t") == len(before)

    def test_a_merge_that_changed_rows_of_another_partition(self, source18, warehouse18):
        """It is not in the way; one that changed this one is named, with the way on."""
        pipe = simple(source18, warehouse18, kind=Kind.ENTITIES, keys=("id",))
        warehouse18.run("CREATE INDEX ON a.t (id)")
        fill(source18, JANUARY, APRIL, 90)
        pipe.load(JANUARY, FEBRUARY)
        before = pipe.rows()
        source18.run("UPDATE t SET v = v || ' wrong'")
        load = pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.SWAP_MERGE})
        pipe.load(MARCH, APRIL, options={"strategy": Strategy.MERGE})
        rolled_back(pipe, load)
        assert [row for row in pipe.rows() if row in before] == before
        assert len(pipe.rows()) > len(before)
        load = pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.SWAP_MERGE})
        source18.run("UPDATE t SET v = 'new', ts = '2013-01-20Z' WHERE id = 20")
        later = pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.MERGE})
        told = self.refused(pipe, load)
        assert f"of which 1 were written since load {load.load_id} published 31" in told
        assert f"load {later.load_id} of stream t, merge, or somebody else" in told

    @pytest.mark.parametrize(
        ("statement", "told"),
        [
            (
                "INSERT INTO a.t VALUES (5000, '2013-01-07Z', 'by an application')",
                "holds 32 rows, of which 1 were",
            ),
            ("UPDATE a.t SET v = 'mended' WHERE id = 1", "holds 31 rows, of which 1 were"),
            ("DELETE FROM a.t WHERE id = 1", "holds 30 rows, of which 0 were"),
            ("TRUNCATE a.t_2013_01", "holds 0 rows"),
        ],
        ids=["insert", "update", "delete", "truncate"],
    )
    def test_what_others_have_changed(self, pipe, statement, told):
        """By hand, or by an application: with figures; whoever wants it may go on, and it is kept aside."""
        before, load = twice(pipe)
        pipe.warehouse.run(statement)
        changed = pipe.rows()
        assert told in self.refused(pipe, load)
        done = rolled_back(pipe, load, discard_changes=True)
        assert pipe.rows() == before
        kept = done.kept["a.t_2013_01"]
        assert pipe.warehouse.run(f"SELECT t::text FROM {kept} AS t ORDER BY 1") == changed
        assert pipe.warehouse.value(
            "SELECT error FROM etl.loads WHERE load_id = %s", (load.load_id,)
        ) == ("rolled back by ada, with what was changed since: wrong rates")

    def test_a_view_on_the_partition(self, pipe):
        _, load = twice(pipe)
        pipe.warehouse.run("CREATE VIEW a.w AS SELECT * FROM a.t_2013_01")
        assert "a.w" in self.refused(pipe, load, CatalogError)


class TestTheWindowIsOpenAgain:
    """Whichever load covers it: one that came after and changed nothing is not needed for it any more."""

    def test_a_merge_that_changed_nothing(self, source18, warehouse18):
        pipe = simple(source18, warehouse18, kind=Kind.ENTITIES, keys=("id",))
        fill(source18, JANUARY, MARCH, 60)
        pipe.load(JANUARY, MARCH)
        source18.run("UPDATE t SET v = v || ' new'")
        load = pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.SWAP_MERGE})
        later = pipe.load(JANUARY, FEBRUARY)
        assert (later.strategy, later.rows_unchanged) == ("merge", 32)
        rolled_back(pipe, load)
        assert [(low, high) for low, high, _ in pipe.coverage()] == [(FEB, MAR)]
        pipe.load(JANUARY, FEBRUARY)
        assert pipe.warehouse.value("SELECT count(*) FROM a.t WHERE v LIKE '% new'") == 32

    def test_loads_that_reach_beyond_it(self, pipe):
        """What they cover outside of the window stays theirs."""
        pipe.load(JANUARY, FEBRUARY)
        pipe.source.run("DELETE FROM t")
        load = pipe.load(JANUARY, FEBRUARY, options={"max_shrink": 1.0})
        later = pipe.load(JANUARY, MARCH)
        assert (later.rows_deleted, later.partitions) == (0, ())
        rolled_back(pipe, load)
        assert pipe.coverage() == [(FEB, MAR, later.load_id)]


def test_publish_alone_afterwards_is_refused(pipe):
    """With who did it and why, which the attempt does not wipe out; extract and downstream load anew."""
    pipe.load(JANUARY, FEBRUARY)
    pipe.source.run("UPDATE t SET v = 'wrong'")
    manifest = pipe.staged(JANUARY, FEBRUARY)
    load = pipe.publish(manifest)
    rolled_back(pipe, load)
    with pytest.raises(StateError) as raised:
        pipe.publish(manifest)
    assert "rolled_back (rolled back by ada: wrong rates)" in raised.value.what
    assert "clear extract and downstream" in raised.value.remedy
    assert "wrong rates" in pipe.warehouse.value(
        "SELECT error FROM etl.loads WHERE load_id = %s", (load.load_id,)
    )


class TestWhatHappenedMeanwhile:
    def test_a_column_that_was_added(self, source, warehouse):
        pipe = simple(source, warehouse)
        fill(source, JANUARY, FEBRUARY, 30)
        _, load = twice(pipe)
        warehouse.run(
            "ALTER TABLE a.t ADD w text COLLATE \"C\" NOT NULL DEFAULT 'x', ADD y int, ADD CHECK (y > 0)"
        )
        rolled_back(pipe, load)
        assert warehouse.run("SELECT DISTINCT w, y, v LIKE '%wrong' FROM a.t") == [
            ("x", None, False)
        ]

    def test_a_column_whose_values_would_have_to_be_written(self, pipe):
        """Readers with an older snapshot would find the table empty."""
        before, load = twice(pipe)
        pipe.warehouse.run("ALTER TABLE a.t ADD w bigint DEFAULT (random() * 9)::int")
        with pytest.raises(ContractError, match="written anew"):
            rolled_back(pipe, load)
        assert len(pipe.rows()) == len(before)

    def test_a_column_that_must_have_a_value(self, pipe):
        _, load = twice(pipe)
        pipe.warehouse.run(
            "ALTER TABLE a.t ADD w int; UPDATE a.t SET w = 1; ALTER TABLE a.t ALTER w SET NOT NULL"
        )
        with pytest.raises(ContractError, match="do not fit"):
            rolled_back(pipe, load)

    def test_a_column_that_was_dropped(self, pipe):
        _, load = twice(pipe)
        pipe.warehouse.run("ALTER TABLE a.t ADD w int, DROP v")
        rolled_back(pipe, load)
        assert pipe.warehouse.value("SELECT count(*) FROM a.t") == 31

    def test_columns_that_were_renamed(self, source, warehouse):
        """They come back under the names that the table has for them now, also where names were exchanged."""
        pipe = simple(source, warehouse)
        fill(source, JANUARY, FEBRUARY, 30)
        long = "ü" * 31
        warehouse.run(f"ALTER TABLE a.t ADD w text DEFAULT 'w', ADD {long} text DEFAULT 'long'")
        pipe.load(JANUARY, FEBRUARY)
        before = warehouse.run("SELECT id, ts, v FROM a.t ORDER BY id")
        source.run("UPDATE t SET v = v || ' wrong'")
        load = pipe.load(JANUARY, FEBRUARY)
        warehouse.run(f"ALTER TABLE a.t RENAME v TO x; ALTER TABLE a.t RENAME {long} TO v")
        warehouse.run(f'ALTER TABLE a.t RENAME x TO {long}; ALTER TABLE a.t RENAME w TO "W w"')
        log = RecordedEvents()
        rolled_back(pipe, load, log=log)
        assert {row["columns"]["v"] for _, row in log.events if "columns" in row} == {long}
        query = f'SELECT id, ts, {long}, "W w", v FROM a.t ORDER BY id'
        assert warehouse.run(query) == [(*row, "w", "long") for row in before]

    def test_a_column_that_was_dropped_and_made_anew(self, pipe):
        """What it held before does not come back under its name."""
        _, load = twice(pipe)
        pipe.warehouse.run("ALTER TABLE a.t DROP v; ALTER TABLE a.t ADD v text DEFAULT 'new'")
        rolled_back(pipe, load)
        assert pipe.warehouse.run("SELECT v, count(*) FROM a.t GROUP BY v") == [("new", 31)]
        columns = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
        assert [
            pipe.warehouse.run(columns + " AND NOT attisdropped ORDER BY 1", (table,))
            for table in ("a.t", "a.t_2013_01")
        ] == [[("id",), ("ts",), ("v",)]] * 2

    def test_columns_that_are_renamed_between_two_attempts(self, pipe):
        pipe.load(JANUARY, FEBRUARY)
        before = pipe.warehouse.run("SELECT id, ts, v FROM a.t ORDER BY id")
        pipe.source.run("UPDATE t SET v = v || ' wrong'")
        load = pipe.load(JANUARY, FEBRUARY)
        with reader(pipe.warehouse, "SELECT FROM a.t"), pytest.raises(LockBudgetExceeded):
            rolled_back(pipe, load, **SHORT)
        pipe.warehouse.run("ALTER TABLE a.t RENAME v TO w")
        with reader(pipe.warehouse, "SELECT FROM a.t"), pytest.raises(LockBudgetExceeded):
            rolled_back(pipe, load, **SHORT)
        pipe.warehouse.run("ALTER TABLE a.t RENAME w TO x")
        rolled_back(pipe, load)
        assert pipe.warehouse.run("SELECT id, ts, x FROM a.t ORDER BY id") == before

    def test_a_column_that_an_attempt_has_added_and_another_takes_its_name(self, pipe):
        before, load = twice(pipe)
        pipe.warehouse.run("ALTER TABLE a.t ADD n text; UPDATE a.t SET v = 'x' WHERE id = 1")
        with pytest.raises(StateError, match="1 were written since"):
            rolled_back(pipe, load)
        pipe.warehouse.run("ALTER TABLE a.t DROP n; ALTER TABLE a.t RENAME v TO n")
        rolled_back(pipe, load, discard_changes=True)
        assert pipe.rows() == before

    def test_options_of_an_index(self, pipe):
        """The index is the same, whatever it says of its filling, and is not made anew for that."""
        fillfactor = (
            "SELECT oid::bigint, reloptions FROM pg_class WHERE oid = 'a.t_2013_01_pkey'::regclass"
        )
        pipe.load(JANUARY, FEBRUARY)
        pipe.warehouse.run("ALTER INDEX a.t_2013_01_pkey SET (fillfactor = 60)")
        oid = pipe.warehouse.run(fillfactor)[0][0]
        load = pipe.load(JANUARY, FEBRUARY)
        pipe.warehouse.run(
            "ALTER INDEX a.t_2013_01_pkey SET (fillfactor = 70, deduplicate_items = off)"
        )
        pipe.warehouse.run("COMMENT ON INDEX a.t_2013_01_pkey IS 'mine'")
        log = RecordedEvents()
        rolled_back(pipe, load, log=log)
        assert pipe.warehouse.run(fillfactor) == [(oid, ["fillfactor=70", "deduplicate_items=off"])]
        assert (
            pipe.warehouse.value("SELECT obj_description('a.t_2013_01_pkey'::regclass)") == "mine"
        )
        assert "what the table no longer has goes" not in log.names()

    def test_a_column_that_may_have_been_renamed(self, pipe):
        """Of a version that was replaced before that was recorded: its values are not thrown away on a guess."""
        before, load = twice(pipe)
        pipe.warehouse.run("UPDATE etl.load_partitions SET rebuild = NULL")
        pipe.warehouse.run("ALTER TABLE a.t RENAME v TO w")
        with pytest.raises(ContractError, match="was it renamed") as refused:
            rolled_back(pipe, load)
        rename = (refused.value.remedy or "").partition(": ")[2].partition(";")[0]
        assert rename.endswith("RENAME COLUMN v TO w")
        pipe.warehouse.run(rename)
        rolled_back(pipe, load)
        pipe.warehouse.run("ALTER TABLE a.t RENAME w TO v")
        assert pipe.rows() == before

    def test_columns_of_which_one_was_generated_from_the_other(self, pipe):
        pipe.warehouse.run(
            "ALTER TABLE a.t ADD k int DEFAULT 1, ADD twice int GENERATED ALWAYS AS (k * 2) STORED"
        )
        _, load = twice(pipe)
        pipe.warehouse.run("ALTER TABLE a.t DROP twice, DROP k")
        rolled_back(pipe, load)
        assert pipe.warehouse.value("SELECT count(*) FROM a.t") == 31

    def test_a_column_of_another_type(self, pipe):
        _, load = twice(pipe)
        pipe.warehouse.run("ALTER TABLE a.t ALTER v TYPE varchar(90)")
        with pytest.raises(ContractError, match="character varying"):
            rolled_back(pipe, load)

    def test_an_index_that_was_added(self, source, warehouse):
        """Built aside; every index of the parent has one of the partition, under the usual names."""
        pipe = simple(source, warehouse)
        fill(source, JANUARY, FEBRUARY, 30)
        before, load = twice(pipe)
        warehouse.run("CREATE INDEX ON a.t (v); CREATE UNIQUE INDEX once ON a.t (ts, id, v)")
        query = (
            "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), inhparent::regclass::text"
            " FROM pg_index LEFT JOIN pg_inherits ON inhrelid = indexrelid"
            " WHERE indrelid = 'a.t_2013_01'::regclass ORDER BY 1"
        )
        expected = warehouse.run(query)
        rolled_back(pipe, load)
        assert warehouse.run(query) == expected
        assert pipe.rows() == before

    def test_a_check_of_the_target_that_rows_break(self, pipe):
        _, load = twice(pipe)
        pipe.warehouse.run("ALTER TABLE a.t ADD CONSTRAINT told CHECK (v LIKE '%wrong')")
        with pytest.raises(ContractError, match="told"):
            rolled_back(pipe, load)

    def test_a_foreign_key(self, source, warehouse):
        """Dropped from versions that are kept, given back and validated before the locks."""
        pipe = simple(source, warehouse)
        warehouse.run(
            "CREATE TABLE a.dim (v text PRIMARY KEY); INSERT INTO a.dim VALUES ('x'), ('y');"
            "ALTER TABLE a.t ADD CONSTRAINT dims FOREIGN KEY (v) REFERENCES a.dim"
        )
        fill(source, JANUARY, FEBRUARY, 10)
        source.run("UPDATE t SET v = 'x'")
        pipe.load(JANUARY, FEBRUARY)
        source.run("UPDATE t SET v = 'y'")
        load = pipe.load(JANUARY, FEBRUARY)
        kept = rolled_back(pipe, load).kept["a.t_2013_01"]
        keys = "SELECT count(*), bool_and(convalidated) FROM pg_constraint WHERE contype = 'f' AND conrelid = %s::regclass"
        assert warehouse.run(keys, ("a.t_2013_01",)) == [(1, True)]
        assert warehouse.run(keys, (kept,)) == [(0, None)]
        warehouse.run("DELETE FROM a.dim WHERE v = 'y'")
        assert warehouse.run("SELECT DISTINCT v FROM a.t") == [("x",)]

    def test_a_dimension_row_that_is_gone(self, pipe, warehouse18):
        """The version no longer fits: said, and nothing changed."""
        warehouse18.run("CREATE TABLE a.dim (v text PRIMARY KEY)")
        pipe.load(JANUARY, FEBRUARY)
        pipe.source.run("UPDATE t SET v = 'x'")
        load = pipe.load(JANUARY, FEBRUARY)
        warehouse18.run(
            "INSERT INTO a.dim VALUES ('x'); ALTER TABLE a.t ADD FOREIGN KEY (v) REFERENCES a.dim"
        )
        with pytest.raises(ContractError, match="foreign key"):
            rolled_back(pipe, load)
        assert pipe.state(load.load_id) == "published"

    def test_a_foreign_key_that_the_target_no_longer_has(self, pipe, warehouse18):
        warehouse18.run(
            "CREATE TABLE a.dim (v text PRIMARY KEY); INSERT INTO a.dim VALUES ('x');"
            "ALTER TABLE a.t ADD FOREIGN KEY (v) REFERENCES a.dim"
        )
        pipe.source.run("UPDATE t SET v = 'x'")
        pipe.load(JANUARY, FEBRUARY)
        load = pipe.load(JANUARY, FEBRUARY)
        warehouse18.run("ALTER TABLE a.t DROP CONSTRAINT t_v_fkey; DROP TABLE a.dim")
        log = RecordedEvents()
        rolled_back(pipe, load, log=log)
        assert "a foreign key that the target no longer has was not given back" in log.names()

    def test_a_default_partition(self, source, warehouse):
        pipe = simple(source, warehouse)
        warehouse.run(
            "CREATE TABLE a.rest PARTITION OF a.t DEFAULT; INSERT INTO a.rest VALUES (-1, '1999-01-01', 'old')"
        )
        fill(source, JANUARY, FEBRUARY, 30)
        before, load = twice(pipe)
        rolled_back(pipe, load)
        assert pipe.rows() == before


class TestLikeThePartitionThatItReplaces:
    """What the version had of its own when it was replaced is history: it is as its predecessor was a moment ago."""

    KNOWN = (
        "SELECT relacl::text, pg_get_userbyid(relowner), reloptions, relreplident::text, obj_description(oid),"
        " ARRAY(SELECT concat_ws(' ', tgname, tgenabled) FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal ORDER BY 1),"
        " ARRAY(SELECT conname::text FROM pg_constraint WHERE conrelid = c.oid AND contype = 'c' ORDER BY 1),"
        " ARRAY(SELECT concat_ws(' ', indexrelid::regclass, indisreplident) FROM pg_index WHERE indrelid = c.oid ORDER BY 1),"
        " ARRAY(SELECT pg_get_statisticsobjdef(oid) FROM pg_statistic_ext WHERE stxrelid = c.oid ORDER BY 1),"
        " ARRAY(SELECT pg_get_ruledef(oid) FROM pg_rewrite WHERE ev_class = c.oid ORDER BY 1),"
        " ARRAY(SELECT concat_ws(' ', attname, coalesce(attstattarget, -1), attstorage, attoptions, attacl,"
        "                        attnotnull, col_description(attrelid, attnum))"
        "       FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 ORDER BY 1)"
        " FROM pg_class AS c WHERE oid = 'a.t_2013_01'::regclass"
    )
    TRIGGERS = (
        "CREATE FUNCTION a.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER one BEFORE INSERT ON a.t_2013_01 FOR EACH ROW EXECUTE FUNCTION a.f()"
    )
    SET = (
        "ALTER TABLE a.t_2013_01 SET (fillfactor = 70), ALTER v SET STATISTICS 500, ALTER v SET STORAGE EXTERNAL,"
        " ALTER v SET (n_distinct = 5), ADD CONSTRAINT mine CHECK (id > 0)"
    )

    def restored(self, pipe, load):
        expected = pipe.warehouse.run(self.KNOWN)
        rolled_back(pipe, load)
        assert pipe.warehouse.run(self.KNOWN) == expected

    def test_rights(self, source, warehouse):
        """What was taken away stays away, what was given stays given; of columns, too."""
        pipe = simple(source, warehouse)
        fill(source, JANUARY, FEBRUARY, 30)
        pipe.load(JANUARY, FEBRUARY)
        with login(warehouse) as one, login(warehouse) as other:
            warehouse.run(
                f"GRANT SELECT ON a.t_2013_01 TO {one['user']} WITH GRANT OPTION;"
                f"GRANT UPDATE (v) ON a.t_2013_01 TO {one['user']}; GRANT INSERT ON a.t_2013_01 TO PUBLIC"
            )
            load = pipe.load(JANUARY, FEBRUARY)
            warehouse.run(
                f"REVOKE ALL ON a.t_2013_01 FROM {one['user']}, PUBLIC;"
                f"GRANT SELECT ON a.t_2013_01 TO {other['user']}; GRANT UPDATE (id) ON a.t_2013_01 TO {other['user']}"
            )
            self.restored(pipe, load)
            assert not warehouse.value(
                "SELECT has_table_privilege(%s, 'a.t_2013_01', 'SELECT')", (one["user"],)
            )
            warehouse.run(f"DROP OWNED BY {one['user']}, {other['user']}")

    def test_settings_that_came_since(self, source, warehouse):
        pipe = simple(source, warehouse)
        fill(source, JANUARY, FEBRUARY, 30)
        _, load = twice(pipe)
        warehouse.run(self.TRIGGERS)
        warehouse.run(self.SET)
        warehouse.run(
            "ALTER TABLE a.t_2013_01 REPLICA IDENTITY FULL, DISABLE TRIGGER one;"
            "COMMENT ON TABLE a.t_2013_01 IS 'new'; CREATE INDEX own ON a.t_2013_01 (lower(v));"
            "COMMENT ON COLUMN a.t_2013_01.v IS 'new'; CREATE STATISTICS a.both ON id, v FROM a.t_2013_01;"
            "CREATE RULE quiet AS ON DELETE TO a.t_2013_01 DO ALSO NOTHING; ALTER TABLE a.t_2013_01 ALTER v SET NOT NULL,"
            " SET (toast.autovacuum_vacuum_threshold = 77)"
        )
        self.restored(pipe, load)
        assert warehouse.value(
            "SELECT count(*) FROM pg_statistic_ext_data JOIN pg_statistic_ext ON oid = stxoid"
            " WHERE stxrelid = 'a.t_2013_01'::regclass"
        )

    def test_settings_that_went_since(self, source, warehouse):
        pipe = simple(source, warehouse)
        fill(source, JANUARY, FEBRUARY, 30)
        pipe.load(JANUARY, FEBRUARY)
        warehouse.run(self.TRIGGERS)
        warehouse.run(self.SET)
        warehouse.run(
            "ALTER TABLE a.t_2013_01 REPLICA IDENTITY FULL; CREATE STATISTICS a.both ON id, v FROM a.t_2013_01;"
            "CREATE RULE quiet AS ON DELETE TO a.t_2013_01 DO ALSO NOTHING"
        )
        load = pipe.load(JANUARY, FEBRUARY)
        warehouse.run(
            "DROP TRIGGER one ON a.t_2013_01; DROP STATISTICS a.both; DROP RULE quiet ON a.t_2013_01; ALTER TABLE a.t_2013_01 RESET (fillfactor), ALTER v SET STATISTICS -1,"
            " ALTER v SET STORAGE EXTENDED, ALTER v RESET (n_distinct), DROP CONSTRAINT mine;"
            "ALTER TABLE a.t_2013_01 REPLICA IDENTITY USING INDEX t_2013_01_pkey"
        )
        self.restored(pipe, load)

    def test_its_owner(self, pipe, warehouse18):
        _, load = twice(pipe)
        with login(warehouse18) as role:
            warehouse18.run(
                f"GRANT ALL ON SCHEMA a TO {role['user']}; ALTER TABLE a.t_2013_01 OWNER TO {role['user']}"
            )
            self.restored(pipe, load)
            warehouse18.run("DROP SCHEMA etl_staging CASCADE; DROP SCHEMA a CASCADE")
            warehouse18.run(f"DROP OWNED BY {role['user']}")


def test_nothing_is_scanned_under_the_lock(pipe, warehouse18):
    """The CHECK that was added aside says what ATTACH would look for."""
    _, load = twice(pipe)
    notices = []
    with connect(warehouse18.endpoint()) as connection:
        connection.execute("SET client_min_messages = debug1")
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        rollback(
            connection,
            load.load_id,
            "x",
            "ada",
            options=RollbackOptions(),
            stop=threading.Event(),
            log=RecordedEvents(),
        )
    assert any("implied by existing constraints" in notice for notice in notices)
    attaching = notices.index(next(n for n in notices if "implied by existing" in n))
    assert not any("verifying table" in notice for notice in notices[attaching:])


@pytest.mark.parametrize("name", ["a.t", "a.t_2013_01", "a.rest"])
def test_a_reader_in_the_way(pipe, warehouse18, name):
    """Named when the deadline passes, and nothing changed; once it ends, the rollback goes through."""
    warehouse18.run("CREATE TABLE a.rest PARTITION OF a.t DEFAULT")
    before, load = twice(pipe)
    was = everything(pipe)
    with reader(warehouse18, f"SELECT count(*) FROM {name}") as session:
        with pytest.raises(LockBudgetExceeded) as raised:
            rolled_back(pipe, load, **SHORT)
        assert f"pid {session.info.backend_pid}" in str(raised.value)
        assert everything(pipe) == was
    rolled_back(pipe, load, **SHORT)
    assert pipe.rows() == before


def test_a_reader_of_the_version_that_comes_back(pipe, warehouse18):
    before, load = twice(pipe)
    with (
        reader(warehouse18, f"SELECT count(*) FROM {load.partitions[0].previous}") as session,
        pytest.raises(LockBudgetExceeded, match=f"pid {session.info.backend_pid}"),
    ):
        rolled_back(pipe, load, **SHORT)
    rolled_back(pipe, load, **SHORT)
    assert pipe.rows() == before


def test_it_goes_on_until_the_reader_has_ended(pipe, warehouse18):
    """Other readers get through between its attempts."""
    before, load = twice(pipe)
    log = RecordedEvents()
    with ExitStack() as stack:
        stack.enter_context(reader(warehouse18, "SELECT count(*) FROM a.t"))
        blocking = stack.pop_all()
        with in_background(lambda: rolled_back(pipe, load, log=log)) as rolling, blocking:
            wait_until(lambda: "waiting for locks" in log.names(), "the reader is in the way")
            assert pipe.warehouse.value("SELECT count(*) FROM a.t") == 31
    rolling.result()
    assert pipe.rows() == before


def test_a_session_killed_at_the_exchange(pipe, warehouse18):
    """Nothing changed for readers or ledger, and the next rollback goes through."""
    before, load = twice(pipe)
    was = everything(pipe)
    warehouse18.run(
        "CREATE FUNCTION public.die() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF current_query() LIKE '%DETACH PARTITION%' THEN PERFORM pg_terminate_backend(pg_backend_pid());"
        " END IF; END $$;"
        "CREATE EVENT TRIGGER die ON ddl_command_end EXECUTE FUNCTION public.die()"
    )
    with pytest.raises(TransientError):
        rolled_back(pipe, load)
    warehouse18.run("DROP FUNCTION public.die CASCADE")
    assert everything(pipe) == was
    rolled_back(pipe, load)
    assert pipe.rows() == before


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE])
@pytest.mark.parametrize("savepoint", [True, False])
def test_a_transaction_that_is_older_than_the_load(pipe, warehouse18, strategy, savepoint):
    """What it writes once the load is published is somebody else's, whatever the number of the transaction."""
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run("CREATE TABLE a.log (x int)")
    for changes in (False, True):
        pipe.source.run("UPDATE t SET v = v || ' wrong'")
        with warehouse18.connect() as writer:
            writer.execute("BEGIN")
            if savepoint:
                writer.execute("SAVEPOINT s")
            writer.execute("INSERT INTO a.log VALUES (1)")
            load = pipe.load(JANUARY, FEBRUARY, options={"strategy": strategy})
            if changes:
                writer.execute("UPDATE a.t SET v = 'by an application' WHERE id = 3")
            writer.execute("COMMIT")
        if not changes:
            rolled_back(pipe, load)
    with pytest.raises(StateError, match="of which 1 were written since"):
        rolled_back(pipe, load)
    rolled_back(pipe, load, discard_changes=True)


def test_a_target_that_was_made_anew(pipe, warehouse18):
    """Around its partitions: what others wrote into one is still told from what the load did."""
    _, load = twice(pipe)
    warehouse18.run(
        "UPDATE a.t SET v = 'by an application' WHERE id = 3; ALTER TABLE a.t DETACH PARTITION a.t_2013_01;"
        "DROP TABLE a.t; CREATE TABLE a.t (LIKE a.t_2013_01 INCLUDING ALL) PARTITION BY RANGE (ts);"
        "ALTER TABLE a.t ATTACH PARTITION a.t_2013_01 FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
    )
    with pytest.raises(StateError, match="of which 1 were written since"):
        rolled_back(pipe, load)


def test_what_older_software_recorded(source18, warehouse18):
    """It did not say which transaction published: a merge that may have changed the partition is in the way."""
    pipe = simple(source18, warehouse18, kind=Kind.ENTITIES, keys=("id",))
    warehouse18.run("CREATE INDEX ON a.t (id)")
    fill(source18, JANUARY, APRIL, 90)
    pipe.load(JANUARY, FEBRUARY)
    load = pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.SWAP_MERGE})
    warehouse18.run("UPDATE etl.load_partitions SET rebuild = NULL")
    later = pipe.load(MARCH, APRIL, options={"strategy": Strategy.MERGE})
    with pytest.raises(StateError, match="in which partitions is not recorded") as told:
        rolled_back(pipe, load)
    assert later.load_id in str(told.value)
    rolled_back(pipe, load, discard_changes=True)


def test_a_row_that_was_written_before_a_later_load_was_taken_back(pipe, warehouse18):
    """It came back with the version that the later load had replaced, and would be lost with it."""
    pipe.load(JANUARY, FEBRUARY)
    pipe.source.run("UPDATE t SET v = v || ' wrong'")
    first = pipe.load(JANUARY, FEBRUARY, options={"keep_versions": 2})
    warehouse18.run("UPDATE a.t SET v = 'by an application' WHERE id = 3")
    pipe.source.run("UPDATE t SET v = v || ' again'")
    second = pipe.load(JANUARY, FEBRUARY, options={"keep_versions": 2})
    rolled_back(pipe, second)
    with pytest.raises(StateError, match="of which 1 were written since"):
        rolled_back(pipe, first)


def test_a_writer_at_the_partition(pipe, warehouse18):
    """Waited for, and its row is seen then."""
    _, load = twice(pipe)
    log = RecordedEvents()
    with warehouse18.connect() as writer, ExitStack() as stack:
        writer.execute("BEGIN")
        writer.execute("INSERT INTO a.t VALUES (5000, '2013-01-07Z', 'by an application')")
        rolling = stack.enter_context(in_background(lambda: rolled_back(pipe, load, log=log)))
        wait_until(lambda: "waiting for locks" in log.names(), "the rollback waits")
        writer.execute("COMMIT")
    assert isinstance(rolling.exception(), StateError)
    assert "1 were written since" in str(rolling.exception())


def test_a_stop_while_waiting(pipe, warehouse18):
    _, load = twice(pipe)
    stop = threading.Event()
    with (
        reader(warehouse18, "SELECT count(*) FROM a.t"),
        pytest.raises(Stopped, match="nothing was changed"),
    ):
        rolled_back(pipe, load, stop=stop, log=lambda event, **_: stop.set())


def test_what_was_taken_back_is_kept_and_cleaned(pipe):
    """For keep_previous from the rollback on, then it goes like any other version."""
    before, load = twice(pipe)
    pipe.warehouse.run(
        "UPDATE etl.load_partitions SET published_at = published_at - interval '30 days'"
    )
    kept = rolled_back(pipe, load).kept["a.t_2013_01"].removeprefix("etl_staging.")
    done = cleaned(pipe)
    assert (done.dropped, done.unregistered) == ((), ())
    assert pipe.left_in_staging() == {kept}
    assert [item.table.name for item in cleaned(pipe, keep_versions=0).dropped] == [kept]
    assert pipe.rows() == before


def test_what_was_taken_back_goes_after_the_next_publish(pipe):
    """keep_versions counts it."""
    _, load = twice(pipe)
    rolled_back(pipe, load)
    again = pipe.load(JANUARY, FEBRUARY)
    assert pipe.left_in_staging() == {again.partitions[0].previous.removeprefix("etl_staging.")}
    rolled_back(pipe, again)


def test_a_twin_again(source, warehouse):
    """Statistics, triggers, comments and names of a partition of many parts are as before the load."""
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 30)
    pipe.load(JANUARY, FEBRUARY)
    warehouse.run(
        "CREATE STATISTICS a.both (dependencies) ON id, v FROM a.t_2013_01;"
        "CREATE STATISTICS a.all_of_them (ndistinct) ON id, v FROM a.t;"
        "CREATE INDEX own ON a.t_2013_01 (lower(v)); COMMENT ON TABLE a.t_2013_01 IS 'mine'"
    )
    queries = (
        "SELECT stxnamespace::regnamespace::text, stxname::text FROM pg_statistic_ext WHERE stxrelid = 'a.t_2013_01'::regclass ORDER BY 2",
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'a.t_2013_01'::regclass ORDER BY 1",
        "SELECT obj_description('a.t_2013_01'::regclass)",
        "SELECT conname::text, contype::text FROM pg_constraint WHERE conrelid = 'a.t_2013_01'::regclass ORDER BY 1",
    )
    before = [warehouse.run(query) for query in queries]
    for _ in range(2):
        source.run("UPDATE t SET v = v || '.'")
        rolled_back(pipe, pipe.load(JANUARY, FEBRUARY))
        assert [warehouse.run(query) for query in queries] == before
    assert pipe.load(JANUARY, FEBRUARY).rows_inserted == 30


@pytest.mark.parametrize(
    ("source_table", "target_table"),
    [
        (SOURCE, RICH),
        (
            "CREATE TABLE t (id bigint, ts timestamptz, code text)",
            """CREATE SCHEMA a; CREATE TABLE a.t (
                id bigint GENERATED BY DEFAULT AS IDENTITY, ts timestamptz NOT NULL, code text DEFAULT 'x'
            ) PARTITION BY RANGE (ts)""",
        ),
    ],
    ids=["rich", "identity"],
)
def test_nobody_can_tell_from_the_catalog(source, warehouse, source_table, target_table):
    """Keys, checks, deferrable foreign keys, generated columns, expression indexes: as before the load."""
    source.run(source_table)
    source.run(
        "INSERT INTO t (id, ts, code) SELECT i, '2013-01-01Z'::timestamptz + i * interval '1 hour', 'x'"
        " FROM generate_series(1, 100) AS i"
    )
    if source_table == SOURCE:
        source.run("UPDATE t SET n = id, v = 'v' || id")
    warehouse.run(target_table)
    pipe = Pipeline(source, warehouse)
    pipe.load(JANUARY, FEBRUARY)
    before, rows = description(warehouse, "t_2013_01"), pipe.rows()
    for code in ("y", "x"):
        source.run("UPDATE t SET code = %s", (code,))
        rolled_back(pipe, pipe.load(JANUARY, FEBRUARY))
        assert description(warehouse, "t_2013_01") == before
        assert pipe.rows() == rows
    pipe.load(JANUARY, FEBRUARY)
    assert description(warehouse, "t_2013_01") == before


def test_a_publish_of_another_stream_into_the_same_table(pipe):
    """It is waited for, and then seen: its rows are not lost."""
    _, load = twice(pipe)
    other = replace(pipe, stream="other", store=MemoryWatermarkStore())
    later = other.staged(JANUARY, JANUARY + timedelta(days=3))
    with pipe.warehouse.connect() as publish, ExitStack() as stack:
        publish.execute("BEGIN")
        publish.execute("SELECT FROM etl.streams WHERE stream = 'other' FOR UPDATE")
        log = RecordedEvents()
        rolling = stack.enter_context(in_background(lambda: rolled_back(pipe, load, log=log)))
        wait_until(lambda: "waiting for locks" in log.names(), "the rollback waits")
        publish.execute(
            "UPDATE etl.loads SET state = 'published', strategy = 'delete_insert', rows_inserted = 1,"
            " rows_updated = 0, rows_deleted = 0, published_at = clock_timestamp() WHERE load_id = %s",
            (later.load_id,),
        )
        publish.execute("COMMIT")
    assert isinstance(rolling.exception(), StateError)
    assert later.load_id in str(rolling.exception())


def test_beside_a_publish_of_the_same_window(pipe):
    """Whichever is first, no rows are lost in silence: the later load stands, or the older version does."""
    before, load = twice(pipe)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    with (
        in_background(lambda: pipe.publish(manifest)) as publishing,
        in_background(lambda: rolled_back(pipe, load)) as rolling,
    ):
        wait_until(lambda: publishing.done() and rolling.done(), "both end")
    if publishing.exception() is None:
        assert pipe.rows() != before
    else:
        assert rolling.exception() is None
        assert pipe.rows() == before
