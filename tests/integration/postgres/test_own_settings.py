"""What a partition has of its own stays when the partition is exchanged, or the exchange is refused by its name."""

from __future__ import annotations

import re
import threading

import pytest

from airflow_etl_provider.core.errors import CatalogError
from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.postgres import swap_merge
from airflow_etl_provider.postgres.rollback import RollbackOptions, rollback
from airflow_etl_provider.postgres.session import connect
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import FEBRUARY, JANUARY, MARCH, Pipeline, fill, login, simple
from tests.integration.postgres.test_swap_merge import Interrupted, day, entities, put

STATISTICS = """
    SELECT stxnamespace::regnamespace::text, stxname::text, pg_get_statisticsobjdef(oid), stxstattarget::int,
           obj_description(oid, 'pg_statistic_ext'),
           EXISTS (SELECT FROM pg_statistic_ext_data AS d WHERE d.stxoid = e.oid)
    FROM pg_statistic_ext AS e WHERE stxrelid = 'a.t_2013_01'::regclass ORDER BY 2
"""


@pytest.fixture
def loaded(source18, warehouse18):
    """One partition with rows."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 30)
    pipe.load(JANUARY, FEBRUARY)
    return pipe


@pytest.mark.parametrize("existing", [False, True], ids=["made", "replaced"])
def test_statistics_of_a_stream_with_a_long_name(source, warehouse, existing):
    """Names that are cut to what an identifier can hold do not meet, however often a partition is exchanged."""
    pipe = simple(source, warehouse, stream="analytics.customer_order_line_items")
    warehouse.run(
        "CREATE STATISTICS a.s1 ON id, v FROM a.t; CREATE STATISTICS a.s2 ON v, ts FROM a.t"
    )
    if existing:
        warehouse.run(
            "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
            f"CREATE STATISTICS a.{'x' * 60}_1 ON id, v FROM a.t_2013_01;"
            f"CREATE STATISTICS a.{'x' * 60}_2 ON v, ts FROM a.t_2013_01"
        )
    fill(source, JANUARY, FEBRUARY, 50)
    pipe.load(JANUARY, FEBRUARY)
    before = warehouse.run(STATISTICS)
    assert len(before) == (2 if existing else 0)
    for _ in range(3):
        pipe.load(JANUARY, FEBRUARY)
        assert warehouse.run(STATISTICS) == before


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE])
def test_statistics_of_a_partition_are_kept_and_filled(loaded, strategy):
    """Also those that differ from the parent's by an expression alone."""
    loaded.warehouse.run(
        "CREATE STATISTICS a.parents ON lower(v), id FROM a.t; CREATE STATISTICS a.own ON upper(v), id FROM a.t_2013_01;"
        'CREATE STATISTICS a."Both %s {}" (mcv) ON id, v FROM a.t_2013_01;'
        "ALTER STATISTICS a.own SET STATISTICS 2000; COMMENT ON STATISTICS a.own IS 'mine'; ANALYZE a.t_2013_01"
    )
    before = loaded.warehouse.run(STATISTICS)
    for _ in range(2):
        loaded.load(JANUARY, FEBRUARY, options={"strategy": strategy})
        assert loaded.warehouse.run(STATISTICS) == before


def test_leaves_of_one_name_in_several_schemas(source18, warehouse18):
    pipe = entities(
        source18,
        warehouse18,
        "CREATE SCHEMA a; CREATE SCHEMA b; CREATE SCHEMA c; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL,"
        " changed timestamptz NOT NULL, v text) PARTITION BY RANGE (ts);"
        "CREATE TABLE b.p PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
        "CREATE TABLE c.p PARTITION OF a.t FOR VALUES FROM ('2013-02-01Z') TO ('2013-03-01Z');"
        "CREATE STATISTICS b.s ON id, v FROM b.p; CREATE STATISTICS c.s ON id, v FROM c.p",
    )
    put(source18, (1, day(3), day(1), "x"), (2, day(3, 2), day(1), "y"))
    for _ in range(2):
        done = pipe.load(options={"strategy": Strategy.SWAP_MERGE})
        assert len({part.previous for part in done.partitions}) == 2
        assert pipe.rows() == pipe.source_rows()


ACL = "SELECT relacl::text, relowner::regrole::text FROM pg_class WHERE oid = %s::regclass"
COLUMN_ACL = "SELECT attacl::text FROM pg_attribute WHERE attrelid = 'a.t_2013_01'::regclass AND attname = 'v'"


def test_nobody_may_do_more_than_before(source18, warehouse18):
    """Whatever tables are open to by default, where it was taken away from the partition."""
    pipe = simple(source18, warehouse18)
    with login(warehouse18) as role:
        user = role["user"]
        for schema in ("", "IN SCHEMA a"):
            warehouse18.run(
                f"ALTER DEFAULT PRIVILEGES {schema} GRANT SELECT, UPDATE ON TABLES TO {user}, PUBLIC"
            )
        warehouse18.run(
            "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
            f"REVOKE ALL ON a.t, a.t_2013_01 FROM {user}, PUBLIC; GRANT INSERT ON a.t_2013_01 TO {user} WITH GRANT OPTION;"
            "REVOKE UPDATE, TRIGGER ON a.t_2013_01 FROM CURRENT_USER"
        )
        before = warehouse18.run(ACL, ("a.t_2013_01",))
        fill(source18, JANUARY, MARCH, 5)
        for end in (FEBRUARY, MARCH):
            pipe.load(JANUARY, end)
            assert warehouse18.run(ACL, ("a.t_2013_01",)) == before
        assert warehouse18.run(ACL, ("a.t_2013_02",)) == before
        pipe.load(day(5), FEBRUARY, options={"strategy": Strategy.SWAP_MERGE})
        assert warehouse18.run(ACL, ("a.t_2013_01",)) == before


def test_grants_of_columns_may_be_handed_on_as_before(loaded):
    with login(loaded.warehouse) as role:
        loaded.warehouse.run(f"GRANT SELECT (v) ON a.t_2013_01 TO {role['user']} WITH GRANT OPTION")
        before = loaded.warehouse.value(COLUMN_ACL)
        loaded.load(JANUARY, FEBRUARY)
        assert loaded.warehouse.value(COLUMN_ACL) == before


def test_the_first_partition_is_open_to_whom_tables_of_the_schema_are(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    with login(warehouse18) as role:
        warehouse18.run(
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA a GRANT SELECT ON TABLES TO {role['user']}"
        )
        warehouse18.run("CREATE TABLE a.born_there ()")
        fill(source18, JANUARY, FEBRUARY, 5)
        pipe.load(JANUARY, FEBRUARY)
        born, made = (warehouse18.run(ACL, (name,)) for name in ("a.born_there", "a.t_2013_01"))
        assert made == born


#: What somebody may have set on one partition, beside what test_twin has.
SETTINGS = """
    CREATE FUNCTION a.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TABLE a.log (i bigint);
    ALTER TABLE a.t ADD n int, ALTER v SET DEFAULT 'p', ADD CONSTRAINT pc CHECK (id < 100000);
    COMMENT ON CONSTRAINT pc ON a.t IS 'of the parent'; COMMENT ON COLUMN a.t.n IS 'of the parent';
    CREATE TRIGGER off AFTER INSERT ON a.t FOR EACH ROW EXECUTE FUNCTION a.f();
    CREATE TRIGGER always AFTER INSERT ON a.t FOR EACH ROW EXECUTE FUNCTION a.f();
    CREATE TRIGGER "on" AFTER INSERT ON a.t FOR EACH ROW EXECUTE FUNCTION a.f();
    ALTER TABLE a.t DISABLE TRIGGER "on";
    ALTER TABLE a.t_2013_01 DISABLE TRIGGER off, ENABLE ALWAYS TRIGGER always, ENABLE TRIGGER "on",
        SET (autovacuum_enabled = off, toast.autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_scale_factor = 0.1),
        ALTER v DROP DEFAULT, ALTER v SET NOT NULL, ADD CONSTRAINT own CHECK (id > 0),
        REPLICA IDENTITY USING INDEX t_2013_01_pkey, CLUSTER ON t_2013_01_pkey;
    CREATE RULE r AS ON DELETE TO a.t_2013_01 DO ALSO INSERT INTO a.log VALUES (OLD.id);
    CREATE RULE sleeps AS ON DELETE TO a.t_2013_01 DO ALSO INSERT INTO a.log VALUES (-OLD.id);
    ALTER TABLE a.t_2013_01 DISABLE RULE sleeps;
    CREATE TRIGGER own AFTER INSERT ON a.t_2013_01 FOR EACH ROW EXECUTE FUNCTION a.f();
    CREATE INDEX own_index ON a.t_2013_01 (lower(v));
    ALTER INDEX a.own_index ALTER COLUMN 1 SET STATISTICS 999;
    COMMENT ON COLUMN a.t_2013_01.v IS 'mine ''%s'; COMMENT ON INDEX a.t_2013_01_pkey IS 'mine %s';
    COMMENT ON CONSTRAINT t_2013_01_pkey ON a.t_2013_01 IS 'mine'; COMMENT ON CONSTRAINT own ON a.t_2013_01 IS 'mine';
    COMMENT ON TRIGGER own ON a.t_2013_01 IS 'mine'; COMMENT ON TRIGGER off ON a.t_2013_01 IS 'mine';
    COMMENT ON RULE r ON a.t_2013_01 IS 'mine'
"""
ALL_OF_IT = (
    (
        "SELECT tgname::text, tgenabled::text, obj_description(oid, 'pg_trigger') FROM pg_trigger"
        " WHERE tgrelid = 'a.t_2013_01'::regclass AND NOT tgisinternal ORDER BY 1"
    ),
    (
        "SELECT pg_get_ruledef(oid), ev_enabled::text, obj_description(oid, 'pg_rewrite') FROM pg_rewrite"
        " WHERE ev_class = 'a.t_2013_01'::regclass ORDER BY 1"
    ),
    (
        "SELECT ARRAY(SELECT unnest(c.reloptions) ORDER BY 1), ARRAY(SELECT unnest(t.reloptions) ORDER BY 1), c.relreplident::text"
        " FROM pg_class AS c JOIN pg_class AS t ON t.oid = c.reltoastrelid WHERE c.oid = 'a.t_2013_01'::regclass"
    ),
    (
        "SELECT attname::text, attnotnull, atthasdef, col_description(attrelid, attnum) FROM pg_attribute"
        " WHERE attrelid = 'a.t_2013_01'::regclass AND attnum > 0 ORDER BY attnum"
    ),
    (
        "SELECT conname::text, contype::text, pg_get_constraintdef(oid), convalidated, obj_description(oid, 'pg_constraint')"
        " FROM pg_constraint WHERE conrelid = 'a.t_2013_01'::regclass ORDER BY 1"
    ),
    (
        "SELECT c.relname::text, i.indisclustered, i.indisreplident, obj_description(c.oid, 'pg_class'),"
        " ARRAY(SELECT coalesce(attstattarget, -1)::int FROM pg_attribute AS a WHERE a.attrelid = c.oid ORDER BY attnum)"
        " FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid WHERE i.indrelid = 'a.t_2013_01'::regclass ORDER BY 1"
    ),
)


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE])
def test_what_was_set_on_a_partition_stays(source, warehouse, strategy):
    pipe = simple(source, warehouse)
    source.run("ALTER TABLE t ADD n int")
    fill(source, JANUARY, FEBRUARY, 30)
    warehouse.run(
        "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
    )
    warehouse.run(SETTINGS)
    before = [warehouse.run(query) for query in ALL_OF_IT]
    for _ in range(2):
        pipe.load(JANUARY, FEBRUARY, options={"strategy": strategy})
        for query, found in zip(ALL_OF_IT, before, strict=True):
            assert warehouse.run(query) == found
    warehouse.run("DELETE FROM a.t_2013_01 WHERE id = 1")
    assert warehouse.run("SELECT i FROM a.log") == [(1,)]


DIMENSION = "CREATE TABLE a.dim (id bigint PRIMARY KEY);"


@pytest.mark.parametrize("of", ["a.t", "a.t_2013_01"])
@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE])
def test_what_is_not_enforced_is_not_checked(loaded, strategy, of):
    """PostgreSQL 18: such a key is a note for readers, and no row need fulfil it."""
    loaded.warehouse.run(
        DIMENSION
        + f"ALTER TABLE {of} ADD CONSTRAINT fk FOREIGN KEY (id) REFERENCES a.dim NOT ENFORCED"
    )
    before = loaded.warehouse.run(ALL_OF_IT[4])
    for _ in range(2):
        loaded.load(JANUARY, FEBRUARY, options={"strategy": strategy})
        assert loaded.warehouse.run(ALL_OF_IT[4]) == before
    loaded.load(JANUARY, MARCH)


def test_nor_by_what_comes_back(loaded):
    loaded.warehouse.run(
        DIMENSION
        + "ALTER TABLE a.t ADD CONSTRAINT fk FOREIGN KEY (id) REFERENCES a.dim NOT ENFORCED,"
        " ADD CONSTRAINT odd CHECK (id < 0) NOT ENFORCED"
    )
    loaded.source.run("UPDATE t SET v = 'wrong'")
    load = loaded.load(JANUARY, FEBRUARY)
    loaded.warehouse.run(
        "ALTER TABLE a.t ADD CONSTRAINT later CHECK (id < 1) NOT ENFORCED,"
        " ADD CONSTRAINT and_this FOREIGN KEY (id) REFERENCES a.dim NOT ENFORCED"
    )
    with connect(loaded.warehouse.endpoint()) as connection:
        rollback(
            connection, load.load_id, "wrong", "ada",
            options=RollbackOptions(), stop=threading.Event(), log=RecordedEvents(),
        )  # fmt: skip
    assert loaded.warehouse.value("SELECT count(*) FROM a.t WHERE v = 'wrong'") == 0
    assert loaded.warehouse.run(
        "SELECT conname::text FROM pg_constraint WHERE conrelid = 'a.t_2013_01'::regclass AND NOT conenforced"
        " ORDER BY 1"
    ) == [("and_this",), ("fk",), ("later",), ("odd",)]


NOT_VALID = {
    "own check": "ALTER TABLE a.t_2013_01 ADD CONSTRAINT odd CHECK (id <> 1) NOT VALID",
    "check": "ALTER TABLE a.t ADD CONSTRAINT odd CHECK (id <> 1) NOT VALID",
    "not null": "UPDATE a.t SET v = NULL WHERE id = 1; ALTER TABLE a.t ADD CONSTRAINT odd NOT NULL v NOT VALID",
    "own foreign key": DIMENSION
    + "ALTER TABLE a.t_2013_01 ADD CONSTRAINT odd FOREIGN KEY (id) REFERENCES a.dim NOT VALID",
}


@pytest.mark.parametrize("what", NOT_VALID)
def test_rows_that_break_what_is_not_valid_are_left_where_they_are(loaded, what):
    """A partition that is built anew cannot hold them beside new rows that must not break it."""
    loaded.warehouse.run(NOT_VALID[what])
    manifest = loaded.staged(day(20), FEBRUARY)
    with pytest.raises(CatalogError, match="odd"):
        loaded.publish(manifest, strategy=Strategy.SWAP_MERGE)
    assert loaded.warehouse.value("SELECT count(*) FROM a.t WHERE id = 1") == 1


DEPENDENTS = {
    "function a.jan()": "CREATE FUNCTION a.jan() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM a.t_2013_01; END",
    "policy p on table a.other": "CREATE TABLE a.other (id bigint);"
    "CREATE POLICY p ON a.other USING (EXISTS (SELECT FROM a.t_2013_01 AS x WHERE x.v = 'x'))",
    "column r of table a.other": "CREATE TABLE a.other (r a.t_2013_01)",
    "column rs of table a.other": "CREATE TABLE a.other (rs a.t_2013_01[])",
    "function a.fn(a.t_2013_01)": "CREATE FUNCTION a.fn(r a.t_2013_01) RETURNS text LANGUAGE sql AS 'SELECT r.v'",
    "sequence a.sq": "CREATE SEQUENCE a.sq OWNED BY a.t_2013_01.id",
    "rule r on table a.other": "CREATE TABLE a.other (id bigint);"
    "CREATE RULE r AS ON INSERT TO a.other DO ALSO DELETE FROM a.t_2013_01",
}


@pytest.mark.parametrize("what", DEPENDENTS)
def test_what_goes_by_the_partition_itself_is_named(loaded, what):
    """A swap is refused by its name, auto writes in place."""
    loaded.warehouse.run(DEPENDENTS[what])
    manifest = loaded.staged(JANUARY, FEBRUARY)
    with pytest.raises(CatalogError, match=re.escape(what)):
        loaded.publish(manifest, strategy=Strategy.SWAP)
    assert loaded.publish(manifest).strategy is Strategy.DELETE_INSERT


def test_what_is_a_partitions_own_keeps_nobody_from_exchanging_it(loaded):
    """Whatever of its own goes by its rows as a whole."""
    loaded.warehouse.run(
        "CREATE FUNCTION a.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER whole AFTER UPDATE ON a.t_2013_01 FOR EACH ROW WHEN (OLD IS DISTINCT FROM NEW) EXECUTE FUNCTION a.f();"
        "CREATE RULE whole AS ON DELETE TO a.t_2013_01 DO ALSO SELECT OLD"
    )
    assert loaded.load(JANUARY, FEBRUARY).strategy is Strategy.SWAP


def test_values_that_are_generated_otherwise_are_not_computed_anew(source18, warehouse18):
    source18.run("CREATE TABLE t (id bigint, ts timestamptz)")
    source18.run("INSERT INTO t VALUES (2, '2013-01-20Z')")
    columns = "id bigint, ts timestamptz NOT NULL, g bigint GENERATED ALWAYS AS (id * {}) STORED"
    warehouse18.run(
        f"CREATE SCHEMA a; CREATE TABLE a.t ({columns.format(2)}) PARTITION BY RANGE (ts);"
        f"CREATE TABLE a.t_2013_01 ({columns.format(3)});"
        "ALTER TABLE a.t ATTACH PARTITION a.t_2013_01 FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
        "INSERT INTO a.t VALUES (1, '2013-01-02Z'), (2, '2013-01-20Z')"
    )
    pipe = Pipeline(source18, warehouse18)
    manifest = pipe.staged(day(15), FEBRUARY)
    with pytest.raises(CatalogError, match="generated otherwise"):
        pipe.publish(manifest, strategy=Strategy.SWAP_MERGE)
    assert warehouse18.run("SELECT id, g FROM a.t ORDER BY 1") == [(1, 3), (2, 6)]


def test_a_key_whose_column_is_called_as_a_clause(source18, warehouse18):
    for database, schema, tail in (
        (source18, "public", ""),
        (warehouse18, "a", " PARTITION BY RANGE (ts)"),
    ):
        database.run(
            f"CREATE SCHEMA IF NOT EXISTS {schema};"
            f'CREATE TABLE {schema}.t ("is DEFERRABLE" bigint, ts timestamptz, PRIMARY KEY (ts, "is DEFERRABLE")){tail}'
        )
    source18.run("INSERT INTO t VALUES (1, '2013-01-02Z')")
    pipe = Pipeline(source18, warehouse18)
    for _ in range(2):
        pipe.load(JANUARY, FEBRUARY)
    assert warehouse18.run(
        "SELECT bool_or(condeferrable) FROM pg_constraint WHERE contype = 'p'"
    ) == [(False,)]


#: A key that PostgreSQL knows since 17, and one that it knows since 18.
EXCLUDING = [
    "EXCLUDE USING gist (id WITH =, during WITH &&)",
    "PRIMARY KEY (id, during WITHOUT OVERLAPS)",
]


def ranges(source, warehouse, key=""):
    source.run("CREATE TABLE t (id int4range, during daterange, changed timestamptz)")
    source.run("INSERT INTO t VALUES ('[1,2)', '[2013-01-01,2013-02-01)', '2013-01-02Z')")
    warehouse.run(
        f"CREATE SCHEMA a; CREATE TABLE a.t (id int4range, during daterange, changed timestamptz{key})"
        " PARTITION BY RANGE (id); CREATE TABLE a.t_2013_01 PARTITION OF a.t DEFAULT"
    )
    return Pipeline(source, warehouse, cursor="changed", partition=None)


@pytest.mark.parametrize("key", EXCLUDING)
def test_a_partitions_own_key_over_ranges(source18, warehouse18, key):
    pipe = ranges(source18, warehouse18)
    warehouse18.run(f"ALTER TABLE a.t_2013_01 ADD {key}")
    before = warehouse18.run(ALL_OF_IT[4])
    for _ in range(2):
        pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.SWAP_MERGE})
        assert warehouse18.run(ALL_OF_IT[4]) == before
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize("key", EXCLUDING)
def test_a_key_over_ranges_is_built_while_nobody_waits(source18, warehouse18, key):
    """ATTACH would build the parent's under its lock: such a partition is written in place."""
    pipe = ranges(source18, warehouse18, ", " + key)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    with pytest.raises(CatalogError, match="would be built while readers wait"):
        pipe.publish(manifest, strategy=Strategy.SWAP_MERGE)
    assert pipe.publish(manifest).strategy is Strategy.DELETE_INSERT
    assert pipe.rows() == pipe.source_rows()


def test_statistics_that_come_and_go_while_the_partition_is_built(loaded, monkeypatch):
    """The exchange goes by what the partition has then."""
    loaded.warehouse.run("CREATE STATISTICS a.goes ON id, v FROM a.t_2013_01")
    meanwhile = Interrupted(
        lambda: loaded.warehouse.run(
            "DROP STATISTICS a.goes; CREATE STATISTICS a.comes ON id, v FROM a.t_2013_01"
        )
    )
    monkeypatch.setattr(swap_merge, "wait_out", meanwhile)
    loaded.load(day(20), FEBRUARY, options={"strategy": Strategy.SWAP_MERGE})
    assert meanwhile.done
    assert [row[:2] for row in loaded.warehouse.run(STATISTICS)] == [("a", "comes")]
