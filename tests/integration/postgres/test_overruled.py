"""Targets that do something else than they are told: what was not written is never told as written."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ContractError,
    DataError,
    ShrinkBrake,
    StateError,
)
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.testing import RecordedEvents
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

ENTITIES: dict[str, Any] = {
    "kind": Kind.ENTITIES, "keys": ("id",), "cursor": None, "mode": WindowMode.FULL, "partition": None,
}  # fmt: skip
NEVER = (
    "CREATE FUNCTION a.never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
    "CREATE TRIGGER never BEFORE {} ON a.t FOR EACH ROW EXECUTE FUNCTION a.never()"
)


def events(source, warehouse) -> Pipeline:
    source.run("CREATE TABLE t (id bigint, ts timestamptz NOT NULL, v text)")
    warehouse.run("CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v text)")
    pipe = Pipeline(source, warehouse, partition=None)
    fill(source, JANUARY, FEBRUARY, 3)
    return pipe


def entities(source, warehouse, columns: str = "id int PRIMARY KEY, v text") -> Pipeline:
    source.run(f"CREATE TABLE t ({columns})")
    warehouse.run(f"CREATE SCHEMA a; CREATE TABLE a.t ({columns})")
    pipe = Pipeline(source, warehouse, **ENTITIES)
    source.run("INSERT INTO t (id, v) SELECT i, 'a' FROM generate_series(1, 3) AS i")
    return pipe


def test_a_trigger_that_keeps_rows_from_being_deleted(source18, warehouse18):
    pipe = events(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run(NEVER.format("DELETE"))
    with pytest.raises(CatalogError, match=r"3 rows of a\.t in window"):
        pipe.load(JANUARY, FEBRUARY)
    assert pipe.rows() == pipe.source_rows()


def test_what_others_write_meanwhile_stays(source18, warehouse18):
    """Beside a trigger that keeps nothing, as on any other table."""
    pipe = events(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run(
        "CREATE FUNCTION a.see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN old; END $$;"
        "CREATE TRIGGER see BEFORE DELETE ON a.t FOR EACH ROW EXECUTE FUNCTION a.see()"
    )
    manifest = pipe.staged(JANUARY, FEBRUARY)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%DELETE FROM%'"
    with reader(warehouse18, "SELECT FROM a.t WHERE id = 1 FOR UPDATE") as other:
        with in_background(
            lambda: pipe.publish(manifest, strategy=Strategy.DELETE_INSERT)
        ) as publishing:
            wait_until(lambda: warehouse18.value(waits), "the publish waits")
            warehouse18.run("INSERT INTO a.t VALUES (77, '2013-01-05Z', 'theirs')")
            other.commit()
        assert publishing.result().rows_deleted == 3
    assert warehouse18.run("SELECT id FROM a.t ORDER BY 1") == [(1,), (2,), (3,), (77,)]


def test_a_trigger_that_leaves_rows_out(source18, warehouse18):
    pipe = entities(source18, warehouse18)
    warehouse18.run(NEVER.format("INSERT"))
    pipe.log = RecordedEvents()
    done = pipe.load()
    assert (done.rows_inserted, done.rows_unchanged) == (0, 0)
    assert any("changed what was written, or left it out" in event for event, _ in pipe.log.events)


def test_a_window_whose_rows_a_trigger_leads_elsewhere_is_appended_once(source18, warehouse18):
    pipe = events(source18, warehouse18)
    warehouse18.run(
        "CREATE TABLE a.elsewhere (LIKE a.t);"
        "CREATE FUNCTION a.lead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO a.elsewhere VALUES (NEW.*); RETURN NULL; END $$;"
        "CREATE TRIGGER lead BEFORE INSERT ON a.t FOR EACH ROW EXECUTE FUNCTION a.lead()"
    )
    pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.APPEND})
    with pytest.raises(ContractError, match="would stand there twice"):
        pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.APPEND})
    assert warehouse18.value("SELECT count(*) FROM a.elsewhere") == 3


class TestRowSecurity:
    """The role may read and add, and change nothing that is there; its own grants say that it may."""

    POLICIES = (
        "ALTER TABLE a.t ENABLE ROW LEVEL SECURITY; CREATE POLICY r ON a.t FOR SELECT USING (true);"
        "CREATE POLICY w ON a.t FOR INSERT WITH CHECK (true)"
    )

    def role(self, warehouse):
        return login(
            warehouse,
            "GRANT USAGE ON SCHEMA a TO {role}",
            "GRANT ALL ON a.t TO {role}",
            "GRANT CREATE ON SCHEMA etl, etl_staging TO {role}",
            "GRANT USAGE ON SCHEMA etl, etl_staging TO {role}",
            "GRANT ALL ON ALL TABLES IN SCHEMA etl, etl_staging TO {role}",
            "GRANT ALL ON ALL SEQUENCES IN SCHEMA etl TO {role}",
        )

    def test_a_window_is_not_doubled(self, source18, warehouse18):
        pipe = events(source18, warehouse18)
        pipe.load(JANUARY, FEBRUARY)
        warehouse18.run(self.POLICIES)
        manifest = pipe.staged(JANUARY, FEBRUARY)
        with self.role(warehouse18) as role:
            pipe.warehouse_role = role
            with pytest.raises(CatalogError, match=r"3 rows of a\.t in window"):
                pipe.publish(manifest, strategy=Strategy.DELETE_INSERT)
        assert warehouse18.value("SELECT count(*) FROM a.t") == 3

    def test_a_change_that_is_not_written_is_not_told_as_unchanged(self, source18, warehouse18):
        pipe = entities(source18, warehouse18)
        pipe.load()
        warehouse18.run(self.POLICIES)
        source18.run("UPDATE t SET v = 'b' WHERE id = 2")
        manifest = pipe.staged()
        with self.role(warehouse18) as role:
            pipe.warehouse_role = role
            with pytest.raises(DataError, match="let 1 rows of the batch not be written"):
                pipe.publish(manifest, strategy=Strategy.MERGE)


def test_triggers_see_the_settings_of_everybody(source18, warehouse18):
    """A trigger that makes a day of a time makes the day of the database's zone, as for any other session."""
    pipe = entities(source18, warehouse18, "id int PRIMARY KEY, v text, at timestamptz")
    warehouse18.run(
        f"ALTER DATABASE \"{warehouse18.name}\" SET timezone = 'America/New_York';"
        "ALTER TABLE a.t ADD day date, ADD seen text DEFAULT current_setting('TimeZone');"
        "CREATE FUNCTION a.day() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.day := NEW.at::date; RETURN NEW; END $$;"
        "CREATE TRIGGER day BEFORE INSERT OR UPDATE ON a.t FOR EACH ROW EXECUTE FUNCTION a.day()"
    )
    source18.run("UPDATE t SET at = '2013-01-02 02:00Z'")
    pipe.load()
    assert set(warehouse18.run("SELECT day::text, seen FROM a.t")) == {
        ("2013-01-01", "America/New_York")
    }
    # The ledger stays in our own.
    assert warehouse18.value("SELECT count(*) FROM etl.loads WHERE state = 'published'") == 1


@pytest.mark.parametrize("columns", [900, 1590])
def test_a_table_of_many_columns(source, warehouse, columns):
    """A row of batch and target together has more columns than the server lets one have."""
    more = "".join(f", c{n} bool" for n in range(columns))
    pipe = entities(source, warehouse, f"id int PRIMARY KEY, v text, at int{more}")
    pipe.cursor, pipe.mode = "at", WindowMode.FULL
    source.run("UPDATE t SET at = 1")
    assert pipe.load().rows_inserted == 3
    source.run("UPDATE t SET v = 'b', at = 2 WHERE id = 2")
    done = pipe.load()
    assert (done.rows_updated, done.rows_unchanged) == (1, 2)


@pytest.mark.parametrize("strategy", [Strategy.DELETE_INSERT, Strategy.SWAP_MERGE])
def test_a_flag_is_not_overlooked(source18, warehouse18, strategy):
    """Events go by window: whichever way they are written, rows that are called deleted would be there."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 3)
    with pytest.raises(ConfigurationError, match="'v' calls deleted"):
        pipe.load(
            JANUARY,
            FEBRUARY,
            options={"strategy": strategy, "delete_flag": "v", "delete_values": ("row 1",)},
        )


class TestBrake:
    def test_a_partition_of_a_window(self, source18, warehouse18):
        """All of February is gone from the source; January and March make up for it."""
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, APRIL, 90)
        pipe.load(JANUARY, APRIL)
        source18.run("DELETE FROM t WHERE ts >= %s AND ts < %s", (FEBRUARY, MARCH))
        before = pipe.picture()
        with pytest.raises(ShrinkBrake, match=r"28 of 28 rows \(100%\) from a\.t_2013_02"):
            pipe.load(JANUARY, APRIL, options={"strategy": Strategy.DELETE_INSERT})
        assert pipe.picture() == before

    def test_a_later_version_is_not_deleted_and_counted(self, source18, warehouse18):
        columns = "id int PRIMARY KEY, v text, at int, gone bool"
        pipe = entities(source18, warehouse18, columns)
        pipe.cursor = "at"
        source18.run("UPDATE t SET at = 5")
        pipe.load()
        source18.run("UPDATE t SET at = 3, gone = true WHERE id = 1; DELETE FROM t WHERE id > 1")
        done = pipe.load(options={"strategy": Strategy.MERGE, "delete_flag": "gone"})
        assert (done.rows_deleted, done.rows_stale, done.rows_unchanged) == (0, 1, 0)
        assert warehouse18.value("SELECT count(*) FROM a.t") == 3


class TestWhichVersionCounts:
    def test_without_a_cursor_in_the_batch_no_older_one_is_written(self, source18, warehouse18):
        source18.run("CREATE TABLE t (id int, v text, changed timestamptz)")
        warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, v text)")
        pipe = Pipeline(
            source18, warehouse18, kind=Kind.ENTITIES, keys=("id",), cursor="changed",
            columns=("id", "v"), partition=None,
        )  # fmt: skip
        source18.run("INSERT INTO t VALUES (1, 'old', '2013-01-10Z')")
        older = pipe.staged(JANUARY, FEBRUARY)
        source18.run("UPDATE t SET v = 'new', changed = '2013-03-10Z'")
        pipe.publish(pipe.staged(MARCH, APRIL))
        with pytest.raises(StateError, match="a load that was read later is published"):
            pipe.publish(older)
        assert warehouse18.run("SELECT v FROM a.t") == [("new",)]

    def test_text_is_compared_by_its_bytes(self, source, warehouse):
        try:
            warehouse.run("CREATE COLLATION public.en (provider = icu, locale = 'en')")
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("this server is built without ICU")
        source.run("CREATE TABLE t (id int, v text, at text)")
        warehouse.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, v text, at text COLLATE public.en)"
        )
        pipe = Pipeline(source, warehouse, **{**ENTITIES, "cursor": "at"})
        source.run("INSERT INTO t VALUES (1, 'later', 'a'), (1, 'earlier', 'B')")
        pipe.load()
        assert warehouse.run("SELECT v FROM a.t") == [("later",)]

    def test_a_primary_key_with_the_partition_column_says_too_little(self, source18, warehouse18):
        source18.run("CREATE TABLE t (id int PRIMARY KEY, ts date, v text)")
        warehouse18.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id int, ts date, v text, PRIMARY KEY (id, ts)) PARTITION BY RANGE (ts);"
            "CREATE TABLE a.rest PARTITION OF a.t DEFAULT"
        )
        pipe = Pipeline(source18, warehouse18, **{**ENTITIES, "keys": ()})
        source18.run("INSERT INTO t VALUES (1, '2013-01-01', 'a')")
        with pytest.raises(ContractError, match="would stand there twice") as refused:
            pipe.load()
        assert "keys=['id']" in str(refused.value)


@pytest.mark.parametrize(
    ("options", "granted"),
    [
        ({"strategy": Strategy.APPEND}, "INSERT"),
        ({"strategy": Strategy.DELETE_INSERT}, "SELECT, INSERT, DELETE"),
        ({"strategy": Strategy.MERGE}, "SELECT, INSERT, UPDATE"),
    ],
)
def test_no_more_is_asked_for_than_is_needed(source18, warehouse18, options, granted):
    merges = options["strategy"] is Strategy.MERGE
    pipe = (entities if merges else events)(source18, warehouse18)
    with login(
        warehouse18,
        f'GRANT CREATE ON DATABASE "{warehouse18.name}" TO {{role}}',
        "GRANT USAGE ON SCHEMA a TO {role}",
        f"GRANT {granted} ON a.t TO {{role}}",
    ) as role:
        pipe.warehouse_role = role
        done = pipe.load(*(() if merges else (JANUARY, FEBRUARY)), options=options)
        assert done.rows_inserted == 3
    assert warehouse18.value("SELECT count(*) FROM a.t") == 3
