"""Partitions for the periods to come are there before their rows; and the planner knows the whole table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from uuid6 import uuid7

from airflow_etl_provider.core.errors import CatalogError
from airflow_etl_provider.core.names import short_id
from airflow_etl_provider.core.partition import Every, PartitionSpec, plus_months
from airflow_etl_provider.postgres import ahead as module
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import (
    FEBRUARY,
    JANUARY,
    MARCH,
    fill,
    in_background,
    reader,
    simple,
    wait_until,
)
from tests.integration.postgres.test_altered_meanwhile import NOW
from tests.integration.postgres.test_retention import SHORT, attached, begin_ledger, maintained

MONTHLY = PartitionSpec("ts", Every.MONTH)
TABLE = "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v text) PARTITION BY RANGE (ts)"


def months(number, before=0):
    """The first of this month, and so on, as the database has them."""
    this = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    return [plus_months(this, n) for n in range(-before, number)]


def labels(number, pattern="t_%Y_%m"):
    return [f"{month:{pattern}}" for month in months(number)]


def made(done):
    return [name.name for name in done.made]


def ahead(database, number=3, **options):
    return maintained(database, **{"partition": MONTHLY, "ahead": number} | options)


class TestMaking:
    def test_this_period_and_those_after_it(self, source, warehouse):
        """Once; rows find their way, and the partitions are the table's own in every respect."""
        warehouse.run(
            "CREATE SCHEMA a; CREATE TABLE a.dim (v text PRIMARY KEY); INSERT INTO a.dim VALUES ('x');"
            "CREATE TABLE a.t (id bigint GENERATED ALWAYS AS IDENTITY, ts timestamptz NOT NULL, v text DEFAULT 'x'"
            " REFERENCES a.dim, CHECK (v <> 'y'), PRIMARY KEY (id, ts)) PARTITION BY RANGE (ts);"
            "CREATE INDEX ON a.t (v)"
        )
        done = ahead(warehouse, 2)
        assert made(done) == labels(3)
        warehouse.run(
            "INSERT INTO a.t (ts) VALUES (clock_timestamp()), (clock_timestamp() + interval '1 month')"
        )
        assert warehouse.value("SELECT count(DISTINCT tableoid) FROM a.t") == 2
        assert warehouse.value(
            "SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass", (f"a.{labels(1)[0]}",)
        ) == (2)
        assert ahead(warehouse, 2).as_json()["made"] == []

    def test_they_are_called_as_the_table_calls_its_own(self, warehouse18):
        before, this, after = months(2, before=1)
        warehouse18.run(
            f"{TABLE}; CREATE TABLE a.t_p{before:%Y%m} PARTITION OF a.t FOR VALUES FROM ('{before}Z') TO ('{this}Z')"
        )
        assert made(ahead(warehouse18, 1)) == [f"t_p{this:%Y%m}", f"t_p{after:%Y%m}"]

    def test_a_load_keeps_the_habit_too(self, source18, warehouse18):
        pipe = simple(source18, warehouse18)
        warehouse18.run(
            "CREATE TABLE a.y2013m01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
        )
        fill(source18, JANUARY, MARCH, 60)
        load = pipe.load(FEBRUARY, MARCH)
        assert load.partitions[0].name == "a.y2013m02"
        assert pipe.warehouse.value("SELECT count(*) FROM a.y2013m02") == 28

    @pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
    @pytest.mark.parametrize("every", list(Every))
    def test_of_every_length_on_every_clock(self, warehouse18, every, zone):
        """Nothing lies between two of them."""
        warehouse18.run(TABLE)
        spec = PartitionSpec("ts", every, zone)
        done = ahead(warehouse18, 4, partition=spec)
        assert len(done.made) == 5
        assert warehouse18.value(
            "SELECT count(*) FROM (SELECT split_part(b, '''', 4) = lead(split_part(b, '''', 2)) OVER (ORDER BY b) AS meets"
            "  FROM (SELECT pg_get_expr(relpartbound, oid) AS b FROM pg_class WHERE relispartition AND relkind = 'r') AS p) AS m"
            " WHERE NOT meets"
        ) == (0)
        assert ahead(warehouse18, 4, partition=spec).made == ()

    def test_a_part_of_them_is_there(self, warehouse18):
        _, following, then = months(3)
        warehouse18.run(
            f"{TABLE}; CREATE TABLE a.next PARTITION OF a.t FOR VALUES FROM ('{following}Z') TO ('{then}Z')"
        )
        assert len(ahead(warehouse18, 2).made) == 2

    def test_looking_changes_nothing(self, warehouse18):
        warehouse18.run(TABLE)
        assert made(ahead(warehouse18, 1, dry_run=True)) == labels(2)
        assert attached(warehouse18) == []

    def test_the_owner_is_the_tables(self, warehouse18):
        role = f"owner_{short_id(str(uuid7()))}"
        warehouse18.run(f"{TABLE}; CREATE ROLE {role}; ALTER TABLE a.t OWNER TO {role}")
        try:
            warehouse18.run(f"GRANT CREATE, USAGE ON SCHEMA a TO {role}")
            ahead(warehouse18, 1)
            assert warehouse18.run(
                "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relispartition"
            ) == [(role,)]
        finally:
            warehouse18.run(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


class TestLevels:
    def test_siblings_that_are_partitioned_themselves(self, source, warehouse):
        """The new one is partitioned as the newest is, all the way down."""
        before, this = months(1, before=1)
        warehouse.run(
            f"{TABLE}; CREATE TABLE a.t_{before:%Y_%m} PARTITION OF a.t FOR VALUES FROM ('{before}Z') TO ('{this}Z')"
            f" PARTITION BY LIST (v);"
            f"CREATE TABLE a.t_{before:%Y_%m}_x PARTITION OF a.t_{before:%Y_%m} FOR VALUES IN ('x', 'it''s')"
            f" PARTITION BY HASH (id);"
            f"CREATE TABLE a.h PARTITION OF a.t_{before:%Y_%m}_x FOR VALUES WITH (MODULUS 1, REMAINDER 0);"
            f"CREATE TABLE a.t_{before:%Y_%m}_rest PARTITION OF a.t_{before:%Y_%m} DEFAULT"
        )
        done = ahead(warehouse, 1)
        assert made(done) == labels(2)
        warehouse.run(
            "INSERT INTO a.t VALUES (1, clock_timestamp(), 'it''s'), (2, clock_timestamp(), 'q')"
        )
        assert warehouse.run("SELECT tableoid::regclass::text FROM a.t ORDER BY 1") == [
            (f"a.t_{this:%Y_%m}_rest",),
            (f"a.t_{this:%Y_%m}_x_0",),
        ]

    def test_each_list_has_its_own(self, warehouse18):
        warehouse18.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (region text, ts timestamptz) PARTITION BY LIST (region);"
            "CREATE TABLE a.eu PARTITION OF a.t FOR VALUES IN ('eu') PARTITION BY RANGE (ts);"
            "CREATE TABLE a.us PARTITION OF a.t FOR VALUES IN ('us') PARTITION BY RANGE (ts)"
        )
        assert made(ahead(warehouse18, 1)) == [
            f"{region}{label.removeprefix('t')}" for region in ("eu", "us") for label in labels(2)
        ]

    def test_two_levels_of_the_same_column_are_not_guessed_at(self, warehouse18):
        warehouse18.run(
            f"{TABLE}; CREATE TABLE a.y PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2014-01-01Z')"
            " PARTITION BY RANGE (ts)"
        )
        with pytest.raises(CatalogError, match="more than one level"):
            ahead(warehouse18)


class TestDefault:
    CHECKS = "SELECT count(*) FROM pg_constraint WHERE conname LIKE 'etl_not_%%'"

    @pytest.fixture
    def filled(self, warehouse18):
        warehouse18.run(
            f"{TABLE}; CREATE TABLE a.rest PARTITION OF a.t DEFAULT; INSERT INTO a.t VALUES (1, '1999-01-01Z', 'x')"
        )
        return warehouse18

    def test_it_is_not_looked_through_under_the_lock(self, filled):
        assert len(ahead(filled, 1).made) == 2
        assert filled.value(self.CHECKS + " AND convalidated") == 2

    def test_rows_of_the_period_are_in_the_way(self, filled):
        """Left and named with the rows; the other periods are made."""
        filled.run("INSERT INTO a.t VALUES (2, clock_timestamp(), 'x')")
        done = ahead(filled, 1)
        assert made(done) == labels(2)[1:]
        (left,) = done.left
        assert not left.busy
        assert "DEFAULT partition a.rest" in left.why
        assert "move them out" in left.why
        filled.run("INSERT INTO a.t VALUES (3, clock_timestamp(), 'x')")

    def test_a_reader_of_it_is_let_through(self, filled):
        """What cannot be attached keeps no rows out."""
        with reader(filled, "SELECT count(*) FROM a.rest") as session:
            done = ahead(filled, 1, **SHORT)
            assert (done.made, len(done.left)) == ((), 2)
            assert f"pid {session.info.backend_pid}" in done.left[0].why
            assert done.left[0].busy
        filled.run("INSERT INTO a.t VALUES (2, clock_timestamp() + interval '1 month', 'x')")
        assert filled.value(self.CHECKS) == 0
        filled.run("DELETE FROM a.rest WHERE id = 2")
        assert len(ahead(filled, 1).made) == 2

    def test_rows_that_come_between_the_look_and_the_constraint(self, filled):
        """No constraint stays that would keep out more of them."""
        log = RecordedEvents()
        with filled.connect() as writer:
            writer.execute("BEGIN")
            writer.execute("INSERT INTO a.t VALUES (2, clock_timestamp(), 'x')")
            with in_background(lambda: ahead(filled, 1, log=log)) as work:
                wait_until(lambda: "waiting for locks" in log.names(), "the writer is in the way")
                writer.execute("COMMIT")
        done = work.result()
        assert made(done) == labels(2)[1:]
        assert "holds rows" in done.left[0].why
        filled.run("INSERT INTO a.t VALUES (3, clock_timestamp(), 'x')")


class TestNamesThatAreTaken:
    """Of what hangs on the partition: said, and DEFAULT goes on to take its rows."""

    CHECKS = TestDefault.CHECKS

    @pytest.fixture
    def listed(self, source, warehouse):
        before, this = months(1, before=1)
        name = f"a.t_{before:%Y_%m}"
        warehouse.run(
            f"{TABLE}; CREATE TABLE {name} PARTITION OF a.t FOR VALUES FROM ('{before}Z') TO ('{this}Z')"
            f" PARTITION BY LIST (v); CREATE TABLE {name}_x PARTITION OF {name} FOR VALUES IN ('x');"
            "CREATE TABLE a.rest PARTITION OF a.t DEFAULT; INSERT INTO a.t VALUES (1, '1999-01-01Z', 'x')"
        )
        return warehouse

    @pytest.mark.parametrize("what", ["TABLE {} (x int)", "TYPE {} AS ENUM ('x')"])
    def test_it_is_left_and_named(self, listed, what):
        """A table of that name that is nobody's partition, or a type."""
        taken = f"{labels(1)[0]}_x"
        listed.run("CREATE " + what.format(f"a.{taken}"))
        done = ahead(listed, 1)
        assert made(done) == labels(2)[1:]
        (left,) = done.left
        assert not left.busy
        assert f'"{taken}" already exists' in left.why
        assert f"a.{labels(1)[0]} of a.t" in left.why
        assert "rename or drop" in left.why
        assert listed.value(self.CHECKS) == 1
        listed.run("INSERT INTO a.t VALUES (2, clock_timestamp(), 'x')")

    def test_while_it_is_being_made(self, listed):
        """By a session that attaches it nowhere: what the server says is about its own catalog then."""
        taken = f"a.{labels(1)[0]}_x"
        with listed.connect() as other:
            other.execute("BEGIN")
            other.execute(f"CREATE TABLE {taken} (x int)")
            with in_background(lambda: ahead(listed, 1)) as work:
                wait_until(
                    lambda: listed.value(
                        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'"
                    ),
                    "it waits for the other",
                )
                other.execute("COMMIT")
        done = work.result()
        assert made(done) == labels(2)[1:]
        assert not done.left[0].busy
        assert listed.value(self.CHECKS) == 1


class TestOthersAtWork:
    def test_two_at_once(self, warehouse18):
        """Each partition is made once, and neither fails."""
        warehouse18.run(TABLE)
        with (
            in_background(lambda: ahead(warehouse18, 5)) as one,
            in_background(lambda: ahead(warehouse18, 5)) as two,
        ):
            pass
        assert one.result().left == two.result().left == ()
        assert sorted(made(one.result()) + made(two.result())) == labels(6)

    def test_readers_of_the_table_are_not_waited_for(self, warehouse18):
        warehouse18.run(
            TABLE
            + "; CREATE TABLE a.old PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
        )
        with reader(warehouse18, "SELECT count(*) FROM a.t"):
            assert len(ahead(warehouse18, 1, **SHORT).made) == 2

    def test_a_load_of_the_same_month(self, source18, warehouse18):
        """Whoever is first makes it."""
        pipe = simple(source18, warehouse18, settle=NOW)
        (this,) = months(1)
        source18.run("INSERT INTO t VALUES (1, %s, 'x')", (this.replace(tzinfo=UTC),))
        manifest = pipe.staged(this.replace(tzinfo=UTC), datetime.now(UTC) - timedelta(seconds=5))
        with (
            in_background(lambda: pipe.publish(manifest)) as publishing,
            in_background(lambda: ahead(warehouse18, 2)) as making,
        ):
            pass
        assert publishing.result().rows_inserted == 1
        assert making.result().left == ()
        assert attached(warehouse18) == [f"a.{label}" for label in labels(3)]

    def test_another_cut_that_comes_meanwhile(self, warehouse18, monkeypatch):
        """It is left and named as one that was there before, and keeps nothing out of DEFAULT."""
        this, following = months(2)
        warehouse18.run(
            f"{TABLE}; CREATE TABLE a.rest PARTITION OF a.t DEFAULT; INSERT INTO a.t VALUES (1, '1999-01-01Z', 'x')"
        )
        attach = module.attach_empty

        def first(*args, **kwargs):
            warehouse18.run(
                f"CREATE TABLE IF NOT EXISTS a.half PARTITION OF a.t FOR VALUES FROM ('{this}Z') TO ('{this.replace(day=15)}Z')"
            )
            return attach(*args, **kwargs)

        monkeypatch.setattr(module, "attach_empty", first)
        done = ahead(warehouse18, 1)
        assert made(done) == [f"t_{following:%Y_%m}"]
        assert "a.half" in done.left[0].why
        assert warehouse18.value(TestDefault.CHECKS) == 1

    def test_another_cut_is_left_and_named(self, warehouse18):
        this, following = months(2)
        middle = this.replace(day=15)
        warehouse18.run(
            f"{TABLE}; CREATE TABLE a.half PARTITION OF a.t FOR VALUES FROM ('{this}Z') TO ('{middle}Z')"
        )
        done = ahead(warehouse18, 1)
        assert made(done) == [f"t_{following:%Y_%m}"]
        assert "a.half" in done.left[0].why

    def test_a_name_that_is_taken_is_left_and_named(self, warehouse18):
        warehouse18.run(f"{TABLE}; CREATE TABLE a.{labels(1)[0]} (x int)")
        done = ahead(warehouse18, 1)
        assert made(done) == labels(2)[1:]
        assert f"a.{labels(1)[0]}, which exists" in done.left[0].why


class TestAnalyze:
    """Autovacuum never looks at a partitioned table as a whole."""

    ANALYZED = "SELECT last_analyze FROM pg_stat_all_tables WHERE relid = 'a.t'::regclass"

    @pytest.fixture
    def filled(self, source, warehouse):
        warehouse.run(
            f"{TABLE}; CREATE TABLE a.p1 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
            "CREATE TABLE a.p2 PARTITION OF a.t FOR VALUES FROM ('2013-02-01Z') TO ('2013-03-01Z');"
            "ALTER TABLE a.p1 SET (autovacuum_enabled = off); ALTER TABLE a.p2 SET (autovacuum_enabled = off);"
            "INSERT INTO a.t SELECT i, '2013-01-05Z', 'x' FROM generate_series(1, 500) AS i;"
            "INSERT INTO a.t SELECT i, '2013-02-05Z', 'y' FROM generate_series(1, 500) AS i"
        )
        begin_ledger(warehouse)
        return warehouse

    def share(self, database, **options):
        done = maintained(database, analyze_share=0.1, **options)
        return done.analyzed, done.changed_share

    def settled(self, database):
        """Counters reach the view when the session that changed them says so."""
        wait_until(lambda: database.value(self.ANALYZED), "the view shows it")

    def test_only_once_enough_has_changed(self, filled):
        assert self.share(filled) == (True, 1)
        self.settled(filled)
        assert (
            filled.value(
                "SELECT n_distinct FROM pg_stats WHERE schemaname = 'a' AND tablename = 't' AND attname = 'v'"
            )
            == 2
        )
        before = filled.value(self.ANALYZED)
        assert self.share(filled) == (False, 0)
        filled.run("UPDATE a.t SET v = 'z' WHERE id <= 30")
        analyzed, share = self.share(filled)
        assert (analyzed, round(share, 2)) == (False, 0.06)
        assert filled.value(self.ANALYZED) == before
        filled.run("UPDATE a.t SET v = 'z' WHERE id <= 300")
        analyzed, share = self.share(filled)
        assert analyzed
        assert share > 0.5
        assert self.share(filled)[0] is False

    def test_a_partition_that_is_new_counts_as_a_whole(self, filled):
        self.share(filled)
        filled.run(
            "CREATE TABLE a.p3 (LIKE a.t); INSERT INTO a.p3 SELECT i, '2013-03-05Z', 'q' FROM generate_series(1, 500) AS i;"
            "ANALYZE a.p3; ALTER TABLE a.t ATTACH PARTITION a.p3 FOR VALUES FROM ('2013-03-01Z') TO ('2013-04-01Z')"
        )
        wait_until(
            lambda: filled.value("SELECT last_analyze FROM pg_stat_all_tables WHERE relid = 'a.p3'::regclass"),
            "the view shows it",
        )  # fmt: skip
        analyzed, share = self.share(filled)
        assert analyzed
        assert 0.3 < share < 0.4

    def test_an_empty_table_is_left_alone(self, warehouse18):
        warehouse18.run(TABLE)
        done = maintained(warehouse18, analyze_share=0.0)
        assert (done.analyzed, done.changed_share) == (False, None)

    def test_looking_changes_nothing(self, filled):
        assert self.share(filled, dry_run=True) == (True, 1)
        assert filled.value(self.ANALYZED) is None

    def test_who_is_in_the_way_is_named_and_readers_are_not(self, filled):
        with reader(filled, "SELECT count(*) FROM a.t"):
            assert self.share(filled)[0] is True
        filled.run("UPDATE a.t SET v = 'z'")
        with reader(filled, "LOCK TABLE ONLY a.t IN SHARE UPDATE EXCLUSIVE MODE") as session:
            done = maintained(filled, analyze_share=0.1, **SHORT)
            assert (done.analyzed, done.left[0].busy) == (False, True)
            assert f"pid {session.info.backend_pid}" in done.left[0].why


def test_names_of_other_tables(warehouse18):
    """A table that is not there, or is named otherwise."""
    warehouse18.run(TABLE)
    with pytest.raises(CatalogError, match=r"did you mean 'a\.t'"):
        maintained(warehouse18, table="a.tt", partition=MONTHLY, ahead=1)
