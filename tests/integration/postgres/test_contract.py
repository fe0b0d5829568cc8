"""The schema contract: columns that come, widen and go at the source, before any row moves."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace

import pytest
import structlog
from psycopg import sql
from structlog.testing import LogCapture
from uuid6 import uuid7

from airflow_etl_provider.core.columns import Selection, Treatment
from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ContractError,
    DataError,
    Stopped,
)
from airflow_etl_provider.core.load import Kind
from airflow_etl_provider.core.names import TableName, short_id
from airflow_etl_provider.core.request import SchemaContract
from airflow_etl_provider.postgres import contract
from airflow_etl_provider.testing import MemoryWatermarkStore, RecordedEvents
from tests.builders import (
    FEBRUARY,
    JANUARY,
    MARCH,
    SOURCE_TABLE,
    TARGET_TABLE,
    Pipeline,
    fill,
    in_background,
    reader,
    simple,
    wait_until,
)
from tests.integration.postgres.test_rollback import rolled_back

EVOLVE = {"schema_contract": SchemaContract.EVOLVE}
DISCARD = {"schema_contract": SchemaContract.DISCARD_COLUMN}


@pytest.fixture
def pipe(source18, warehouse18):
    made = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 20)
    made.load(JANUARY, FEBRUARY)
    return made


def files(database):
    return database.run(
        "SELECT relid::text, pg_relation_filenode(relid) FROM pg_partition_tree('a.t') WHERE isleaf ORDER BY 1"
    )


def test_frozen_a_new_column_is_refused_with_the_statement(pipe):
    pipe.source.run('ALTER TABLE t ADD "Odd one" numeric(8,2)')
    with pytest.raises(ContractError) as raised:
        pipe.extract(JANUARY, FEBRUARY)
    statement = 'ALTER TABLE "a"."t" ADD COLUMN IF NOT EXISTS "Odd one" numeric(8,2)'
    assert statement in str(raised.value)
    assert not any("t_" in name for name in pipe.left_in_staging() if name.endswith("_1"))
    pipe.warehouse.run(statement)
    pipe.load(JANUARY, FEBRUARY)
    assert pipe.rows() == pipe.source_rows()


def test_a_new_column_is_added_without_a_rewrite(source, warehouse):
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 20)
    pipe.load(JANUARY, FEBRUARY)
    before = files(warehouse)
    source.run("ALTER TABLE t ADD note text DEFAULT 'x', ADD tags int[]")
    manifest = pipe.extract(JANUARY, FEBRUARY, **EVOLVE)
    assert files(warehouse) == before
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize(
    ("was", "is_now"),
    [
        ("varchar(5)", "varchar(9)"),
        ("varchar(5)", "text"),
        ("numeric(5,2)", "numeric(9,2)"),
        ("numeric(5,2)", "numeric"),
        ("varbit(3)", "varbit(8)"),
        ("timestamp(3)", "timestamp(6)"),
        ("timestamptz(0)", "timestamptz"),
        ("time(0)", "time(3)"),
        ("interval(3)", "interval"),
        ("cidr", "inet"),
    ],
)
def test_a_column_widens_without_a_rewrite(source, warehouse, was, is_now):
    pipe = simple(source, warehouse)
    source.run(f"ALTER TABLE t ADD w {was}")
    warehouse.run(f"ALTER TABLE a.t ADD w {was}")
    source.run("INSERT INTO t (id, ts) VALUES (1, '2013-01-05Z')")
    pipe.load(JANUARY, FEBRUARY)
    before = files(warehouse)
    source.run(f"ALTER TABLE t ALTER w TYPE {is_now}")
    pipe.extract(JANUARY, FEBRUARY, **EVOLVE)
    assert files(warehouse) == before
    assert warehouse.value(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'a.t'::regclass AND attname = 'w'"
    ) == source.value(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'w'"
    )


def test_a_change_of_type_stops_with_the_statement(pipe):
    pipe.source.run("ALTER TABLE t ALTER id TYPE numeric")
    with pytest.raises(ContractError, match=r"ALTER TABLE a\.t ALTER COLUMN id TYPE numeric"):
        pipe.extract(JANUARY, FEBRUARY, **EVOLVE)


@pytest.mark.parametrize("contract", list(SchemaContract))
def test_a_column_that_is_gone_stops_until_it_is_accepted(pipe, contract):
    pipe.source.run("ALTER TABLE t DROP v")
    with pytest.raises(ContractError, match=r'DROP COLUMN "v"'):
        pipe.extract(JANUARY, FEBRUARY, schema_contract=contract)
    pipe.warehouse.run('ALTER TABLE "a"."t" DROP COLUMN "v"')
    pipe.load(JANUARY, FEBRUARY, schema_contract=contract)
    assert pipe.rows() == pipe.source_rows()


def test_a_renamed_column_is_guessed(pipe):
    pipe.source.run("ALTER TABLE t RENAME v TO value")
    with pytest.raises(ContractError, match=r"rename=\{'value': 'v'\}"):
        pipe.extract(JANUARY, FEBRUARY, **EVOLVE)


@pytest.fixture
def said(monkeypatch):
    """What the task log would show, whoever has set logging up before."""
    told = LogCapture()
    monkeypatch.setattr(contract, "log", structlog.wrap_logger(None, processors=[told]))
    return told.entries


def test_new_columns_are_left_out_and_said(pipe, said):
    pipe.source.run("ALTER TABLE t ADD extra int")
    pipe.load(JANUARY, FEBRUARY, **DISCARD)
    assert pipe.warehouse.value("SELECT count(*) FROM a.t") == 20
    assert "extra" in str(said)


def test_a_rollback_over_an_evolution(pipe):
    before = pipe.warehouse.run("SELECT id, v FROM a.t ORDER BY 1")
    pipe.source.run("ALTER TABLE t ADD note text; UPDATE t SET v = 'wrong', note = 'n'")
    load = pipe.load(JANUARY, FEBRUARY, **EVOLVE)
    rolled_back(pipe, load)
    assert pipe.warehouse.run("SELECT id, v FROM a.t WHERE note IS NULL ORDER BY 1") == before


def test_readers_are_waited_for_without_a_queue_behind_us(pipe):
    pipe.source.run("ALTER TABLE t ADD extra int")
    with reader(pipe.warehouse, "SELECT count(*) FROM a.t") as report:
        with in_background(lambda: pipe.extract(JANUARY, FEBRUARY, **EVOLVE)) as work:
            wait_until(
                lambda: pipe.warehouse.value(
                    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LOCK TABLE%%'"
                ),
                "the change waits",
            )
            assert pipe.warehouse.value("SELECT count(*) FROM a.t") == 20
            report.rollback()
        assert work.result().rows == 20


def columns(database, table="a.t"):
    return database.run(
        "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attname",
        (table,),
    )


def indexes(database):
    return database.run(
        "SELECT c.relname::text, pg_relation_filenode(c.oid) FROM pg_class AS c"
        " WHERE c.relnamespace = 'a'::regnamespace AND c.relkind = 'i' ORDER BY 1"
    )


class TestARefusal:
    """It comes before anything is changed, and says which statement would help."""

    def refused(self, pipe, error=ContractError, **request):
        before = columns(pipe.warehouse)
        with pytest.raises(error) as raised:
            pipe.extract(JANUARY, FEBRUARY, **(EVOLVE | request))
        assert raised.value.remedy
        assert columns(pipe.warehouse) == before
        return str(raised.value)

    def test_of_one_column_keeps_the_others_from_being_added(self, pipe):
        pipe.source.run("ALTER TABLE t ADD extra int, ALTER id TYPE numeric")
        assert "ALTER TABLE a.t ALTER COLUMN id TYPE numeric" in self.refused(pipe)

    def test_of_a_wider_integer_which_would_write_the_table_anew(self, source, warehouse):
        pipe = simple(source, warehouse)
        source.run("ALTER TABLE t ADD n int")
        warehouse.run("ALTER TABLE a.t ADD n int")
        pipe.load(JANUARY, FEBRUARY)
        source.run("ALTER TABLE t ALTER n TYPE bigint")
        assert "ALTER TABLE a.t ALTER COLUMN n TYPE bigint" in self.refused(pipe)

    def test_of_a_stream_that_belongs_to_another_table(self, pipe):
        """Its own target is the wrong one: nothing is added there."""
        pipe.warehouse.run("CREATE TABLE a.u (LIKE a.t) PARTITION BY RANGE (ts)")
        pipe.source.run("ALTER TABLE t ADD extra int")
        with pytest.raises(ConfigurationError, match=r"bound to a\.t"):
            pipe.extract(JANUARY, FEBRUARY, target=TableName("a", "u"), **EVOLVE)
        assert len(columns(pipe.warehouse, "a.u")) == 3

    @pytest.mark.parametrize(
        ("statement", "named"),
        [
            ("CREATE VIEW a.seen AS SELECT w FROM a.t", "view a.seen"),
            ("CREATE MATERIALIZED VIEW a.seen AS SELECT w FROM a.t_2013_01", "view a.seen"),
            ("ALTER TABLE a.t_2013_01 ADD CONSTRAINT told CHECK (w > 0)", "told"),
            ("CREATE INDEX told ON a.t (w)", "index a.t_2013_01_w_idx"),
            ("CREATE UNIQUE INDEX told ON a.t (id, ts) INCLUDE (w)", "index a.t_2013_01_id_ts_w_idx"),
            ("CREATE INDEX told ON a.t_2013_01 (abs(w))", "index a.told"),
            ("CREATE INDEX told ON a.t_2013_01 (id) WHERE w > 0", "index a.told"),
            ("ALTER TABLE a.t ADD told int GENERATED ALWAYS AS (w::int) STORED", "told"),
            ("CREATE POLICY told ON a.t USING (w > 0)", "policy told"),
            ("CREATE FUNCTION a.told() RETURNS bigint BEGIN ATOMIC SELECT count(w) FROM a.t; END", "function a.told()"),
        ],
    )  # fmt: skip
    def test_of_a_widening_that_readers_would_wait_for(self, source, warehouse, statement, named):
        """Indexes of partitions and checks are looked through under the lock; a view forbids it."""
        pipe = simple(source, warehouse)
        source.run("ALTER TABLE t ADD w numeric(5,2)")
        warehouse.run("ALTER TABLE a.t ADD w numeric(5,2)")
        source.run("INSERT INTO t (id, ts, w) VALUES (1, '2013-01-05Z', 1)")
        pipe.load(JANUARY, FEBRUARY)
        warehouse.run(statement)
        before = files(warehouse), indexes(warehouse)
        source.run("ALTER TABLE t ALTER w TYPE numeric(9,2)")
        text = self.refused(pipe)
        assert named in text
        assert 'ALTER TABLE "a"."t" ALTER COLUMN "w" TYPE numeric(9,2)' in text
        assert (files(warehouse), indexes(warehouse)) == before

    def test_of_a_partition_column(self, source18, warehouse18):
        source18.run("CREATE TABLE t (id int, ts timestamptz(3) NOT NULL, PRIMARY KEY (id, ts))")
        warehouse18.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id int, ts timestamptz(3) NOT NULL) PARTITION BY RANGE (ts)"
        )
        pipe = Pipeline(source18, warehouse18)
        source18.run("ALTER TABLE t ALTER ts TYPE timestamptz")
        text = self.refused(pipe)
        assert "a.t is partitioned by it" in text
        assert "new table" in text

    @pytest.mark.parametrize("contract", [SchemaContract.EVOLVE, SchemaContract.FREEZE])
    @pytest.mark.parametrize("type_name", ["mood", "mood[]", "money_d", "pair", "public.mood"])
    def test_of_a_type_that_the_target_does_not_know(self, pipe, type_name, contract):
        pipe.source.run(
            "CREATE TYPE mood AS ENUM ('a'); CREATE DOMAIN money_d AS numeric(8,2); CREATE TYPE pair AS (a int, b int)"
        )
        pipe.source.run(f"ALTER TABLE t ADD odd {type_name}")
        text = self.refused(pipe, schema_contract=contract)
        assert "does not know" in text
        assert f'ADD COLUMN IF NOT EXISTS "odd" public.{type_name.removeprefix("public.")}' in text

    def test_of_a_type_that_means_something_else_there(self, pipe):
        pipe.source.run("CREATE DOMAIN money_d AS numeric(8,2); ALTER TABLE t ADD odd money_d")
        pipe.warehouse.run("CREATE DOMAIN money_d AS numeric(6,2)")
        assert "another definition" in self.refused(pipe)

    @pytest.mark.parametrize("contract", list(SchemaContract))
    def test_of_a_name_that_differs_in_case(self, pipe, contract):
        """Nobody wants "V" beside v, or v left empty from now on."""
        pipe.source.run('ALTER TABLE t RENAME v TO "V"')
        pipe.warehouse.run("UPDATE etl.loads SET manifest = manifest #- '{columns}'")
        assert "rename={'V': 'v'}" in self.refused(pipe, schema_contract=contract)

    @pytest.mark.parametrize(
        ("column", "request_"),
        [("code", {"keys": ("code",)}), ("changed", {"cursor": "changed", "keys": ("id",)})],
        ids=["key", "cursor"],
    )
    def test_of_leaving_out_what_the_load_goes_by(self, source18, warehouse18, column, request_):
        pipe = simple(source18, warehouse18, kind=Kind.ENTITIES)
        source18.run("ALTER TABLE t ADD code text, ADD changed timestamptz")
        text = self.refused(pipe, **request_, **DISCARD)
        assert f'ADD COLUMN IF NOT EXISTS "{column}"' in text

    def test_of_a_table_that_has_subscribers(self, pipe):
        """They would stop at the first row of a column that they lack."""
        pipe.warehouse.run("CREATE PUBLICATION told FOR TABLE a.t")
        pipe.source.run("ALTER TABLE t ADD extra int")
        assert "told" in self.refused(pipe)

    def test_to_a_role_that_does_not_own_the_table(self, pipe):
        role = f"loader_{short_id(str(uuid7()))}"
        pipe.warehouse.run(
            f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA a, etl TO {role};"
            f"GRANT ALL ON ALL TABLES IN SCHEMA a, etl TO {role}; GRANT ALL ON SCHEMA etl_staging TO {role}"
        )
        pipe.source.run("ALTER TABLE t ADD extra int")
        pipe.warehouse_role = {"user": role, "password": "x"}
        try:
            text = self.refused(pipe, CatalogError)
        finally:
            pipe.warehouse.run(f"DROP OWNED BY {role}; DROP ROLE {role}")
        assert "owner" in text
        assert 'ALTER TABLE "a"."t" ADD COLUMN IF NOT EXISTS "extra" integer' in text


def test_text_that_fits_is_loaded_where_its_column_cannot_be_widened(pipe, said):
    """It is said with the statement that helps, and only a value that is too long fails the load."""
    pipe.source.run("ALTER TABLE t ADD w varchar(5) DEFAULT 'short'")
    pipe.warehouse.run("ALTER TABLE a.t ADD w varchar(5); CREATE INDEX told ON a.t (w)")
    pipe.load(JANUARY, FEBRUARY)
    before = files(pipe.warehouse), indexes(pipe.warehouse)
    pipe.source.run("ALTER TABLE t ALTER w TYPE varchar(9)")
    pipe.extract(JANUARY, FEBRUARY, **EVOLVE)
    assert (files(pipe.warehouse), indexes(pipe.warehouse)) == before
    told = str(said)
    assert "index a.t_2013_01_w_idx" in told
    assert 'ALTER COLUMN "w" TYPE character varying(9)' in told
    pipe.source.run("UPDATE t SET w = 'too long!'")
    with pytest.raises(DataError, match="column w"):
        pipe.extract(JANUARY, FEBRUARY, **EVOLVE)


def test_a_widened_column_keeps_its_collation_and_its_index(source, warehouse):
    """Of a plain table: nothing is written, nothing is built."""
    source.run('CREATE TABLE t (id int PRIMARY KEY, w varchar(5) COLLATE "C", d varchar(5))')
    warehouse.run(
        'CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, w varchar(5) COLLATE "C", d varchar(5));'
        "CREATE INDEX ON a.t (w); CREATE INDEX ON a.t (d)"
    )
    source.run("INSERT INTO t VALUES (1, 'x', 'y')")
    pipe = Pipeline(source, warehouse, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
    pipe.load()
    before = indexes(warehouse), warehouse.value("SELECT pg_relation_filenode('a.t'::regclass)")
    source.run("ALTER TABLE t ALTER w TYPE varchar(9), ALTER d TYPE text, ADD e int")
    pipe.load(**EVOLVE)
    assert (
        indexes(warehouse),
        warehouse.value("SELECT pg_relation_filenode('a.t'::regclass)"),
    ) == before
    assert warehouse.value(
        "SELECT attcollation::regcollation::text FROM pg_attribute WHERE attrelid = 'a.t'::regclass AND attname = 'w'"
    ) == ('"C"')
    assert pipe.rows() == [("(1,x,y,)",)]


def test_sub_partitions_evolve_with_their_parents(source, warehouse):
    source.run(SOURCE_TABLE)
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v text) PARTITION BY RANGE (ts);"
        "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z') PARTITION BY HASH (id);"
        "CREATE TABLE a.h0 PARTITION OF a.t_2013_01 FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE a.h1 PARTITION OF a.t_2013_01 FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
    )
    fill(source, JANUARY, FEBRUARY, 20)
    pipe = Pipeline(source, warehouse)
    pipe.load(JANUARY, FEBRUARY)
    before = files(warehouse)
    source.run("ALTER TABLE t ADD n numeric(5,2); UPDATE t SET n = 1")
    pipe.load(JANUARY, FEBRUARY, **EVOLVE)
    assert files(warehouse) == before
    source.run("ALTER TABLE t ALTER n TYPE numeric(7,2); UPDATE t SET n = 12345")
    pipe.load(JANUARY, FEBRUARY, **EVOLVE)
    assert pipe.rows() == pipe.source_rows()


def test_names_with_quotes_of_63_bytes(source, warehouse):
    pipe = simple(source, warehouse)
    odd = '"; DROP TABLE a.t; -- %s ' + "ä" * 19
    assert len(odd.encode()) == 63
    fill(source, JANUARY, FEBRUARY, 5)
    pipe.load(JANUARY, FEBRUARY)
    source.run(
        sql.SQL("ALTER TABLE t ADD {c} varchar(5); UPDATE t SET {c} = 'x'").format(
            c=sql.Identifier(odd)
        )
    )
    pipe.load(JANUARY, FEBRUARY, **EVOLVE)
    source.run(sql.SQL("ALTER TABLE t ALTER {} TYPE varchar(9)").format(sql.Identifier(odd)))
    pipe.load(JANUARY, FEBRUARY, **EVOLVE)
    assert pipe.rows() == pipe.source_rows()
    assert (odd, "character varying(9)") in columns(warehouse)


def test_the_order_of_columns_does_not_matter(source, warehouse):
    """Source, target and partition each have their own, after years of changes."""
    source.run(
        "CREATE TABLE t (v text, gone int, ts timestamptz NOT NULL, id bigint); ALTER TABLE t DROP gone"
    )
    warehouse.run(TARGET_TABLE)
    pipe = Pipeline(source, warehouse)
    source.run("INSERT INTO t (id, ts, v) VALUES (1, '2013-01-05Z', 'x')")
    pipe.load(JANUARY, FEBRUARY)
    warehouse.run(
        "ALTER TABLE a.t DETACH PARTITION a.t_2013_01; DROP TABLE a.t_2013_01;"
        "CREATE TABLE a.t_2013_01 (old int, v text, ts timestamptz NOT NULL, id bigint NOT NULL);"
        "ALTER TABLE a.t_2013_01 DROP old;"
        "ALTER TABLE a.t ATTACH PARTITION a.t_2013_01 FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
    )
    source.run("ALTER TABLE t ADD extra int; UPDATE t SET extra = 7")
    pipe.load(JANUARY, FEBRUARY, **EVOLVE)
    assert warehouse.run("SELECT id, v, extra FROM a.t") == [(1, "x", 7)]


def test_a_column_that_was_dropped_and_came_back(pipe):
    """With its type it is the same column; with another it is a change of type."""
    pipe.source.run("ALTER TABLE t DROP v; ALTER TABLE t ADD v text; UPDATE t SET v = 'new'")
    pipe.load(JANUARY, FEBRUARY, **EVOLVE)
    assert pipe.rows() == pipe.source_rows()
    pipe.source.run("ALTER TABLE t DROP v; ALTER TABLE t ADD v int")
    pipe.load(JANUARY, FEBRUARY, **EVOLVE)  # text holds every integer
    pipe.warehouse.run("ALTER TABLE a.t DROP v; ALTER TABLE a.t ADD v date")
    with pytest.raises(ContractError, match="ALTER COLUMN v TYPE integer"):
        pipe.extract(JANUARY, FEBRUARY, **EVOLVE)


def test_columns_that_the_target_makes_itself(source, warehouse):
    """Generated and identity columns are no difference, whether the source has them or not."""
    source.run(SOURCE_TABLE)
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v text,"
        " size int GENERATED ALWAYS AS (length(v)) STORED, n bigint GENERATED BY DEFAULT AS IDENTITY)"
        " PARTITION BY RANGE (ts)"
    )
    fill(source, JANUARY, FEBRUARY, 5)
    pipe = Pipeline(source, warehouse)
    pipe.load(JANUARY, FEBRUARY)
    source.run("ALTER TABLE t ADD size int, ADD extra int; UPDATE t SET extra = 1, size = 99")
    pipe.load(JANUARY, FEBRUARY, **EVOLVE)
    assert warehouse.run("SELECT DISTINCT size, extra, n IS NOT NULL FROM a.t ORDER BY 1") == [
        (5, 1, True)
    ]


class TestWhatTheUserDecided:
    """A column that is no longer loaded because the pipeline says so is not lost."""

    def test_to_drop_personal_data(self, pipe):
        pipe.selection = Selection(personal={"v": Treatment.DROP})
        pipe.load(JANUARY, FEBRUARY)
        assert pipe.warehouse.run("SELECT DISTINCT v FROM a.t") == [(None,)]

    def test_to_call_it_otherwise(self, pipe):
        pipe.selection = Selection(rename={"v": "value"})
        with pytest.raises(ContractError, match='ADD COLUMN IF NOT EXISTS "value"'):
            pipe.extract(JANUARY, FEBRUARY)
        pipe.load(JANUARY, FEBRUARY, **EVOLVE)
        assert pipe.warehouse.value("SELECT count(value) FROM a.t") == 20

    def test_to_name_the_columns(self, pipe):
        pipe.source.run("ALTER TABLE t DROP v, ADD extra int")
        pipe.selection = Selection(columns=("id", "ts"))
        pipe.load(JANUARY, FEBRUARY)
        assert columns(pipe.warehouse) == [
            ("id", "bigint"),
            ("ts", "timestamp with time zone"),
            ("v", "text"),
        ]


class TestTwoAtOnce:
    def both(self, one, other):
        with in_background(one) as first, in_background(other) as second:
            pass
        return first, second

    @pytest.fixture
    def other(self, pipe):
        """Another stream into the same table, out of a table of its own."""
        pipe.source.run("CREATE TABLE u (LIKE t INCLUDING ALL)")
        return replace(
            pipe, stream="u", table=TableName("public", "u"), store=MemoryWatermarkStore()
        )

    def test_add_the_same_column_once(self, pipe, other):
        pipe.source.run("ALTER TABLE t ADD extra int; ALTER TABLE u ADD extra int")
        for work in self.both(
            lambda: pipe.extract(JANUARY, FEBRUARY, **EVOLVE),
            lambda: other.extract(FEBRUARY, MARCH, **EVOLVE),
        ):
            assert work.exception() is None

    def test_add_a_column_of_two_types(self, pipe, other):
        """One is refused, with the statement; neither stages what does not fit."""
        pipe.source.run("ALTER TABLE t ADD extra int; ALTER TABLE u ADD extra date")
        results = self.both(
            lambda: pipe.extract(JANUARY, FEBRUARY, **EVOLVE),
            lambda: other.extract(FEBRUARY, MARCH, **EVOLVE),
        )
        errors = [work.exception() for work in results if work.exception() is not None]
        assert [type(error) for error in errors] == [ContractError]
        assert "ALTER COLUMN extra TYPE" in str(errors[0])

    def test_widen_a_column_to_the_widest(self, pipe, other):
        """Whoever looked first but came last does not make it narrower again."""
        pipe.source.run("ALTER TABLE t ADD w varchar(3); ALTER TABLE u ADD w varchar(3)")
        pipe.warehouse.run("ALTER TABLE a.t ADD w varchar(3)")
        pipe.source.run(
            "ALTER TABLE t ALTER w TYPE varchar(20); ALTER TABLE u ALTER w TYPE varchar(5)"
        )
        with ExitStack() as stack:
            # Both have looked and wait for the table; the wider one is let through first.
            report = stack.enter_context(reader(pipe.warehouse, "SELECT FROM a.t"))
            wide = stack.enter_context(
                in_background(lambda: pipe.extract(JANUARY, FEBRUARY, **EVOLVE))
            )
            narrow = stack.enter_context(
                in_background(lambda: other.extract(FEBRUARY, MARCH, **EVOLVE))
            )
            for log in (pipe.log, other.log):
                wait_until(lambda log=log: "waiting for locks" in log.names(), "it waits")
            report.rollback()
        assert wide.result().rows == 20
        assert narrow.result().rows == 0
        assert ("w", "character varying(20)") in columns(pipe.warehouse)


def test_a_stop_ends_the_wait_for_the_table(pipe):
    """Nothing was changed."""
    pipe.source.run("ALTER TABLE t ADD extra int")
    stop = threading.Event()
    log = RecordedEvents()

    def stopping(event, **fields):
        log(event, **fields)
        if event == "waiting for locks":
            stop.set()

    pipe.log = stopping
    with reader(pipe.warehouse, "SELECT count(*) FROM a.t"), pytest.raises(Stopped):
        pipe.extract(JANUARY, FEBRUARY, stop=stop, **EVOLVE)
    assert len(columns(pipe.warehouse)) == 3


def test_a_retry_of_a_staged_batch_leaves_the_target_alone(pipe):
    """What was staged does not have the column: adding it now would only get in its way."""
    manifest = pipe.extract(JANUARY, FEBRUARY, **EVOLVE)
    pipe.source.run("ALTER TABLE t ADD extra int")
    again = pipe.extract(JANUARY, FEBRUARY, load_id=manifest.load_id, try_number=2, **EVOLVE)
    assert again.staging == manifest.staging
    assert len(columns(pipe.warehouse)) == 3
    pipe.publish(pipe.waive(again))


def test_slices_of_a_narrower_column_are_read_again(source18, warehouse18):
    """A load that failed because a value was too long goes on once the column is wide enough."""
    pipe = simple(source18, warehouse18, options={"slice_rows": 2_000})
    source18.run("ALTER TABLE t ADD w varchar(9); CREATE INDEX ON t (ts)")
    warehouse18.run("ALTER TABLE a.t ADD w varchar(2)")
    fill_rows = (
        "INSERT INTO t SELECT i, '2013-01-01Z'::timestamptz + i * interval '1 minute', 'v',"
        " CASE WHEN i > 9000 THEN 'too long' ELSE 'x' END FROM generate_series(1, 10000) AS i"
    )
    source18.run(fill_rows)
    source18.run("VACUUM ANALYZE t")
    load_id = str(uuid7())
    with pytest.raises(DataError):
        pipe.extract(JANUARY, FEBRUARY, load_id=load_id)
    assert warehouse18.value("SELECT count(*) FROM etl.load_slices WHERE loaded_at IS NOT NULL")
    manifest = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2, **EVOLVE)
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()
