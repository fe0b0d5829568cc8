"""A partition that is new is like its siblings, also in what they have of their own, and kept where they are kept."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from psycopg import sql

from airflow_etl_provider.core.dead_letters import DeadLimits, OnConversionError
from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.core.maintenance import MaintenanceOptions
from airflow_etl_provider.core.request import StageAs
from airflow_etl_provider.postgres.ahead import make_ahead
from airflow_etl_provider.postgres.catalog import read_table
from airflow_etl_provider.postgres.locking import Deadline
from airflow_etl_provider.postgres.session import connect
from airflow_etl_provider.postgres.tree import read_tree
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import (
    APRIL,
    FEBRUARY,
    JANUARY,
    MARCH,
    MONTHLY,
    Pipeline,
    fill,
    login,
    simple,
)

ONE = "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
SETTINGS = """
    SELECT attstattarget, attstorage::text, attcompression::text, attoptions FROM pg_attribute
    WHERE attrelid = 'a.t_2013_01'::regclass AND attname = 'v'
"""


def by_load(pipe):
    pipe.load(FEBRUARY, MARCH)


def by_a_load_of_several(pipe):
    pipe.load(FEBRUARY, APRIL)


def in_place(pipe):
    pipe.load(FEBRUARY, MARCH, options={"strategy": Strategy.DELETE_INSERT})


def before_anybody_needs_it(pipe):
    with connect(pipe.warehouse.endpoint()) as connection:
        target = read_table(connection, pipe.target, label="warehouse")
        done = make_ahead(
            connection,
            target,
            read_tree(connection, target),
            MONTHLY,
            MaintenanceOptions(partition=MONTHLY),
            datetime(2013, 2, 3, tzinfo=UTC),
            deadline=Deadline(timedelta(seconds=5)),
            stop=threading.Event(),
            log=RecordedEvents(),
            dry_run=False,
        )
    assert [name.name for name in done.made] == ["t_2013_02"]


MADE = [by_load, by_a_load_of_several, in_place, before_anybody_needs_it]


def own(warehouse, name, role):
    """What the table has beside its parent, without its own name."""
    grants, *rest = warehouse.run(
        "SELECT relacl::text, reloptions, relreplident::text,"
        " (SELECT array_agg(conname::text || pg_get_constraintdef(oid)) FROM pg_constraint"
        "  WHERE conrelid = c.oid AND contype = 'c'),"
        " ARRAY(SELECT indisunique || substring(pg_get_indexdef(indexrelid) FROM ' USING .*') FROM pg_index"
        "  WHERE indrelid = c.oid ORDER BY 1),"
        " (SELECT array_agg(row(attstattarget, attstorage, attcompression, attoptions)::text) FROM pg_attribute"
        "  WHERE attrelid = c.oid AND attname = 'v'),"
        " (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = c.oid)"
        " FROM pg_class AS c WHERE c.oid = %s::regclass",
        (name,),
    )[0]
    return sorted(grant for grant in grants.strip("{}").split(",") if role in grant), *rest


@pytest.mark.parametrize("made", MADE)
def test_a_new_partition_has_what_its_sibling_has_of_its_own(source, warehouse, made):
    pipe = simple(source, warehouse)
    with login(warehouse) as role:
        warehouse.run(
            ONE + " WITH (fillfactor = 70);"
            f"GRANT SELECT ON a.t, a.t_2013_01 TO {role['user']}; GRANT UPDATE (v) ON a.t_2013_01 TO {role['user']};"
            "CREATE INDEX t_2013_01_own ON a.t_2013_01 (v); CREATE UNIQUE INDEX strange ON a.t_2013_01 (lower(v), id);"
            "ALTER TABLE a.t_2013_01 REPLICA IDENTITY FULL, ADD CONSTRAINT positive CHECK (id > 0),"
            " ALTER v SET DEFAULT 'none', ALTER v SET STATISTICS 50, ALTER v SET STORAGE EXTERNAL, ALTER v SET (n_distinct = 5)"
        )
        fill(source, FEBRUARY, APRIL, 20)
        made(pipe)
        assert own(warehouse, "a.t_2013_02", role["user"]) == own(
            warehouse, "a.t_2013_01", role["user"]
        )
        assert warehouse.run(
            "SELECT c.relname::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = 'a.t_2013_02'::regclass ORDER BY 1"
        ) == [("t_2013_02_own",), ("t_2013_02_pkey",), ("t_2013_02_strange",)]
        # And so has what takes its place.
        pipe.load(FEBRUARY, MARCH)
        assert own(warehouse, "a.t_2013_02", role["user"]) == own(
            warehouse, "a.t_2013_01", role["user"]
        )


@pytest.mark.parametrize("made", MADE)
def test_what_is_said_of_one_sibling_alone_is_not_said_of_another(source18, warehouse18, made):
    """Rows of February break a CHECK about January, in whatever column it is told."""
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        ONE
        + ";CREATE TABLE a.t_2012_12 PARTITION OF a.t FOR VALUES FROM ('2012-12-01Z') TO ('2013-01-01Z');"
        "ALTER TABLE a.t_2013_01 ADD CONSTRAINT bound CHECK (ts >= '2013-01-01Z' AND ts < '2013-02-01Z'),"
        " ADD CONSTRAINT names CHECK (id < 2), ADD CONSTRAINT all_of_them CHECK (id > 0);"
        "ALTER TABLE a.t_2012_12 ADD CONSTRAINT other_name CHECK (id > 0);"
        "CREATE UNIQUE INDEX alone ON a.t_2013_01 (v); CREATE INDEX seen ON a.t_2013_01 (lower(v));"
        "CREATE UNIQUE INDEX ON a.t_2013_01 (v, id); CREATE UNIQUE INDEX ON a.t_2012_12 (v, id)"
    )
    fill(source18, FEBRUARY, APRIL, 20)
    made(pipe)
    checks = "SELECT conname::text FROM pg_constraint WHERE conrelid = 'a.t_2013_02'::regclass AND contype = 'c'"
    assert warehouse18.run(checks) == [("all_of_them",)]
    indexes = (
        "SELECT substring(pg_get_indexdef(indexrelid) FROM '[(].*') FROM pg_index"
        " WHERE indrelid = 'a.t_2013_02'::regclass ORDER BY 1"
    )
    assert warehouse18.run(indexes) == [("(id, ts)",), ("(lower(v))",), ("(v, id)",)]


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE])
def test_settings_of_the_columns_stay(source, warehouse, strategy):
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 30)
    pipe.load(JANUARY, FEBRUARY)
    before = warehouse.run(SETTINGS)
    warehouse.run(
        "ALTER TABLE a.t_2013_01 ALTER v SET STATISTICS 500, ALTER v SET STORAGE EXTERNAL,"
        " ALTER v SET COMPRESSION pglz, ALTER v SET (n_distinct = 5, n_distinct_inherited = -0.5)"
    )
    told = warehouse.run(SETTINGS)
    assert told != before
    for _ in range(2):
        pipe.load(JANUARY, FEBRUARY, options={"strategy": strategy})
        assert warehouse.run(SETTINGS) == told


@pytest.fixture
def tablespaces(warehouse18):
    """Two tablespaces, gone afterwards with all that is in them."""
    with warehouse18.connect() as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        for name in ("fast", "slow"):
            connection.execute(f"CREATE TABLESPACE {name} LOCATION ''")
    yield
    warehouse18.run(
        "DROP SCHEMA a CASCADE; DROP SCHEMA IF EXISTS etl_staging CASCADE; DROP SCHEMA IF EXISTS etl CASCADE"
    )
    for name in ("fast", "slow"):
        warehouse18.run(f"DROP TABLESPACE {name}")


def kept_in(warehouse, name):
    return warehouse.value(
        "SELECT t.spcname::text FROM pg_class AS c LEFT JOIN pg_tablespace AS t ON t.oid = c.reltablespace"
        " WHERE c.oid = %s::regclass",
        (name,),
    )


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("told_by", ["parent", "sibling", "both"])
def test_a_new_partition_is_kept_where_its_siblings_are(
    source18, warehouse18, tablespaces, made, told_by
):
    pipe = simple(source18, warehouse18)
    if told_by != "sibling":
        warehouse18.run("ALTER TABLE a.t SET TABLESPACE fast")
    warehouse18.run(f"{ONE} TABLESPACE {'slow' if told_by == 'both' else 'fast'}")
    fill(source18, FEBRUARY, APRIL, 20)
    made(pipe)
    # What the parent says is where new ones go, whatever has become of older ones.
    assert kept_in(warehouse18, "a.t_2013_02") == "fast"


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE])
def test_what_takes_a_partitions_place_is_kept_where_that_was(
    source18, warehouse18, tablespaces, strategy
):
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        f"ALTER TABLE a.t SET TABLESPACE fast; {ONE} TABLESPACE slow;"
        "CREATE TABLE a.t_2013_02 PARTITION OF a.t FOR VALUES FROM ('2013-02-01Z') TO ('2013-03-01Z') TABLESPACE pg_default"
    )
    fill(source18, JANUARY, MARCH, 20)
    for _ in range(2):
        pipe.load(JANUARY, FEBRUARY, options={"strategy": strategy})
        pipe.load(JANUARY, MARCH, options={"strategy": strategy})
        assert kept_in(warehouse18, "a.t_2013_01") == "slow"
        assert kept_in(warehouse18, "a.t_2013_02") is None


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE])
def test_indexes_are_kept_where_they_were(source18, warehouse18, tablespaces, strategy):
    """Those of the parent, a key and one of the partition's own, whatever the role's default is; so is their filling."""
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        f"{ONE}; CREATE INDEX v ON a.t (v) WITH (fillfactor = 80) TABLESPACE fast;"
        "CREATE INDEX own ON a.t_2013_01 (v) TABLESPACE fast WHERE v <> ' WHERE ';"
        "ALTER INDEX a.t_2013_01_pkey SET TABLESPACE slow; ALTER INDEX a.t_2013_01_v_idx SET TABLESPACE pg_default;"
        "ALTER INDEX a.t_2013_01_v_idx SET (fillfactor = 60)"
    )
    warehouse18.run(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_tablespace = slow', current_database()); END $$"
    )
    fill(source18, JANUARY, MARCH, 20)
    indexes = ("a.t_2013_01_pkey", "a.own", "a.t_2013_01_v_idx")
    for _ in range(2):
        pipe.load(JANUARY, FEBRUARY, options={"strategy": strategy})
        assert [kept_in(warehouse18, name) for name in indexes] == ["slow", "fast", None]
        assert kept_in(warehouse18, "a.t_2013_01") is None
        query = "SELECT reloptions FROM pg_class WHERE oid = 'a.t_2013_01_v_idx'::regclass"
        assert warehouse18.value(query) == ["fillfactor=60"]
        source18.run("UPDATE t SET v = v || 'x'")


def test_an_index_is_filled_as_it_says(source18, warehouse18):
    """Built with the options of the one that it replaces, which need not be those of the table's."""
    pipe = simple(source18, warehouse18)
    warehouse18.run(f"{ONE}; CREATE INDEX t_v_idx ON a.t (v)")
    fill(source18, JANUARY, FEBRUARY, 20_000)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run("ALTER INDEX a.t_2013_01_v_idx SET (fillfactor = 50)")
    size = "SELECT pg_relation_size('a.t_2013_01_v_idx')"
    before = warehouse18.value(size)
    pipe.load(JANUARY, FEBRUARY)
    assert warehouse18.value(size) > 1.5 * before


def test_a_role_that_may_not_create_in_a_tablespace(source18, warehouse18, tablespaces):
    """It goes on publishing, in its default, as it did before somebody else moved the index; others stay in theirs."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 30)
    warehouse18.run(
        f"{ONE}; CREATE INDEX t_v_idx ON a.t (v); ALTER INDEX a.t_2013_01_pkey SET TABLESPACE fast"
    )
    database = sql.Identifier(warehouse18.name).as_string()
    grants = (
        f"GRANT CREATE ON DATABASE {database} TO {{role}}",
        "ALTER SCHEMA a OWNER TO {role}",
        "ALTER TABLE a.t OWNER TO {role}",
        "ALTER TABLE a.t_2013_01 OWNER TO {role}",
    )
    with login(warehouse18, *grants) as role:
        user = sql.Identifier(role["user"]).as_string()
        warehouse18.run(
            f"GRANT CREATE ON TABLESPACE slow TO {user}; ALTER ROLE {user} SET default_tablespace = slow"
        )
        pipe.warehouse_role = role
        pipe.load(JANUARY, FEBRUARY)
        assert pipe.rows() == pipe.source_rows()
        assert kept_in(warehouse18, "a.t_2013_01_pkey") == "slow"
        assert [kept_in(warehouse18, f"a.t_2013_01{name}") for name in ("", "_v_idx")] == [None] * 2
        warehouse18.run(f"REASSIGN OWNED BY {user} TO current_user")


@pytest.mark.parametrize("made", MADE)
def test_a_tablespace_is_that_of_one_index_alone(source18, warehouse18, tablespaces, made):
    pipe = simple(source18, warehouse18)
    warehouse18.run(f"{ONE}; CREATE INDEX t_2013_01_own ON a.t_2013_01 (v) TABLESPACE fast")
    fill(source18, FEBRUARY, APRIL, 20)
    made(pipe)
    assert kept_in(warehouse18, "a.t_2013_02_own") == "fast"
    assert kept_in(warehouse18, "a.t_2013_02_pkey") is None
    assert kept_in(warehouse18, "a.t_2013_02") is None


def test_what_is_made_ahead_below_a_sibling_with_an_index_of_its_own(warehouse18, tablespaces):
    pipe = Pipeline(warehouse18, warehouse18)
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v text) PARTITION BY RANGE (ts);"
        f"CREATE INDEX ON a.t (ts); {ONE} PARTITION BY LIST (v);"
        "CREATE TABLE a.t_2013_01_x PARTITION OF a.t_2013_01 FOR VALUES IN ('x');"
        "CREATE TABLE a.t_2013_01_y PARTITION OF a.t_2013_01 FOR VALUES IN ('y');"
        "CREATE INDEX ON a.t_2013_01 (id); CREATE INDEX t_2013_01_x_v ON a.t_2013_01_x (v) TABLESPACE fast"
    )
    before_anybody_needs_it(pipe)
    assert kept_in(warehouse18, "a.t_2013_02_x_v") == "fast"
    assert [kept_in(warehouse18, f"a.t_2013_02_{leaf}") for leaf in "xy"] == [None, None]


@pytest.mark.parametrize("made", MADE)
def test_a_new_partitions_indexes_are_kept_where_the_table_says(
    source18, warehouse18, tablespaces, made
):
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        f"CREATE INDEX t_v_idx ON a.t (v) TABLESPACE fast; {ONE}; ALTER INDEX a.t_2013_01_v_idx SET TABLESPACE slow"
    )
    fill(source18, FEBRUARY, APRIL, 20)
    made(pipe)
    assert kept_in(warehouse18, "a.t_2013_02_v_idx") == "fast"
    assert kept_in(warehouse18, "a.t_2013_02_pkey") is None


def packed(warehouse, name):
    """Its pages now, and after it is written anew as it says."""
    size = f"SELECT pg_relation_size('{name}')"
    found = warehouse.value(size)
    warehouse.run(f"VACUUM FULL {name}")
    return found, warehouse.value(size)


FILLED = "SET (fillfactor = 20, toast_tuple_target = 256, toast.vacuum_truncate = off)"
OPTIONS = "SELECT reloptions FROM pg_class WHERE oid = %s::regclass"


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE])
@pytest.mark.parametrize("window", [(JANUARY, FEBRUARY), (JANUARY, MARCH)], ids=["one", "two"])
def test_rows_are_stored_as_the_replaced_partition_says(source, warehouse, strategy, window):
    pipe = simple(source, warehouse)
    fill(source, JANUARY, MARCH, 2_000)
    warehouse.run(f"{ONE}; ALTER TABLE a.t_2013_01 {FILLED}")
    for _ in range(2):
        pipe.load(*window, options={"strategy": strategy})
        found, told = packed(warehouse, "a.t_2013_01")
        assert found > 0.9 * told
        options = warehouse.value(OPTIONS, ("a.t_2013_01",))
        assert sorted(options) == ["fillfactor=20", "toast_tuple_target=256"]


@pytest.mark.parametrize("made", [by_load, by_a_load_of_several])
def test_rows_of_a_new_partition_are_stored_as_its_siblings(source18, warehouse18, made):
    pipe = simple(source18, warehouse18)
    warehouse18.run(f"{ONE}; ALTER TABLE a.t_2013_01 {FILLED}, ALTER v SET STORAGE EXTERNAL")
    fill(source18, FEBRUARY, APRIL, 2_000)
    source18.run("UPDATE t SET v = repeat('abc', 1500) WHERE id % 100 = 0")
    made(pipe)
    found, told = packed(warehouse18, "a.t_2013_02")
    assert found > 0.9 * told
    assert warehouse18.value("SELECT max(pg_column_compression(v)) FROM a.t_2013_02") is None


def test_a_staged_table_is_made_where_its_partition_is_kept(source18, warehouse18, tablespaces):
    """To move it when it is filled would copy it."""
    pipe = simple(source18, warehouse18)
    warehouse18.run(f"{ONE} TABLESPACE fast")
    fill(source18, JANUARY, MARCH, 20)
    for window in ((JANUARY, FEBRUARY), (FEBRUARY, MARCH)):
        manifest = pipe.extract(*window)
        assert kept_in(warehouse18, str(manifest.staging)) == "fast"


def test_what_is_said_of_storage_after_the_batch_was_staged(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        f"{ONE}; ALTER TABLE a.t_2013_01 SET (fillfactor = 50, toast_tuple_target = 256)"
    )
    fill(source18, JANUARY, FEBRUARY, 20)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    warehouse18.run("ALTER TABLE a.t_2013_01 SET (fillfactor = 60), ALTER v SET STORAGE EXTERNAL")
    warehouse18.run("ALTER TABLE a.t_2013_01 RESET (toast_tuple_target)")
    told = warehouse18.run(SETTINGS)
    pipe.publish(manifest)
    assert warehouse18.value(OPTIONS, ("a.t_2013_01",)) == ["fillfactor=60"]
    assert warehouse18.run(SETTINGS) == told


PART = datetime(2013, 1, 20, tzinfo=UTC)
COMPRESSED = "SELECT max(pg_column_compression(v)) FROM a.t"
LONG = "INSERT INTO t VALUES (1, '2013-01-02Z', repeat('abc', 1500))"


@pytest.mark.parametrize("strategy", [Strategy.SWAP_MERGE, Strategy.DELETE_INSERT, Strategy.MERGE])
@pytest.mark.parametrize("told_by", ["a.t", "a.t_2013_01"])
def test_values_are_stored_as_the_target_says(source, warehouse, strategy, told_by):
    """Compressed ones would be copied out of the staged table as they are."""
    pipe = simple(source, warehouse, keys=("id",))
    warehouse.run(f"{ONE}; ALTER TABLE {told_by} ALTER v SET STORAGE EXTERNAL")
    source.run(LONG)
    pipe.load(JANUARY, PART, options={"strategy": strategy})
    assert warehouse.value(COMPRESSED) is None
    told = "ALTER v SET STORAGE EXTENDED, ALTER v SET COMPRESSION pglz"
    warehouse.run(f"ALTER TABLE {told_by} {told}; TRUNCATE a.t")
    pipe.load(JANUARY, PART, options={"strategy": strategy})
    assert warehouse.value(COMPRESSED) == "pglz"


@pytest.mark.parametrize("way", ["transformed", "of the source's types", "converted", "in slices"])
def test_values_of_every_batch_are_stored_as_the_target_says(source18, warehouse18, way):
    changes = {"stage_as": StageAs.SOURCE} if way == "of the source's types" else {}
    if way == "converted":
        changes = {
            "on_conversion_error": OnConversionError.QUARANTINE,
            "dead_limits": DeadLimits(max_share=1.0),
        }
    if way == "in slices":
        changes = {"slice_rows": 1}
    pipe = simple(source18, warehouse18, options=changes)
    warehouse18.run(
        f"{ONE}; ALTER TABLE a.t ALTER v SET STORAGE EXTERNAL; ALTER TABLE a.t ADD n int"
    )
    warehouse18.run("ALTER TABLE a.t_2013_01 ALTER v SET STORAGE EXTERNAL")
    source18.run("ALTER TABLE t ADD n text")
    source18.run(LONG)
    if way in ("in slices", "transformed"):
        source18.run("ALTER TABLE t DROP n")
    manifest = pipe.extract(JANUARY, PART)
    if way in ("transformed", "of the source's types"):
        manifest = pipe.transform(manifest, "SELECT id, ts, v FROM batch")
    pipe.publish(pipe.waive(manifest), strategy=Strategy.DELETE_INSERT)
    assert warehouse18.value(COMPRESSED) is None


@pytest.mark.parametrize("made", MADE)
def test_indexes_of_a_new_partition_are_called_and_stored_as_its_siblings(source, warehouse, made):
    pipe = simple(source, warehouse)
    warehouse.run(
        "CREATE INDEX ti ON a.t (v); ALTER TABLE a.t ADD CONSTRAINT once UNIQUE (ts, v) DEFERRABLE;"
        f"CREATE INDEX ON a.t (lower(v)); {ONE};"
        "ALTER INDEX a.t_2013_01_pkey SET (fillfactor = 33); ALTER INDEX a.t_2013_01_v_idx SET (fillfactor = 44);"
        "ALTER INDEX a.t_2013_01_lower_idx ALTER COLUMN 1 SET STATISTICS 77;"
        "ALTER INDEX a.t_2013_01_ts_v_key RENAME TO t_2013_01_own_name"
    )
    fill(source, FEBRUARY, APRIL, 20)
    made(pipe)
    indexes = (
        "SELECT c.relname::text, c.reloptions, a.attstattarget,"
        " EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhrelid = c.oid),"
        " (SELECT con.contype::text || con.condeferrable FROM pg_constraint AS con"
        "  WHERE con.conindid = c.oid AND con.coninhcount > 0)"
        " FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
        " JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = 1"
        " WHERE i.indrelid = %s::regclass ORDER BY 1"
    )
    told = warehouse.run(indexes, ("a.t_2013_01",))
    assert len(told) == 4
    assert warehouse.run(indexes, ("a.t_2013_02",)) == [
        (name.replace("t_2013_01", "t_2013_02"), *rest) for name, *rest in told
    ]


def test_indexes_made_ahead_below_a_sibling_are_stored_as_there(warehouse18):
    pipe = Pipeline(warehouse18, warehouse18)
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz, v text, PRIMARY KEY (ts, v, id))"
        f" PARTITION BY RANGE (ts); {ONE} PARTITION BY LIST (v);"
        "CREATE TABLE a.t_2013_01_x PARTITION OF a.t_2013_01 FOR VALUES IN ('x');"
        "ALTER INDEX a.t_2013_01_x_pkey SET (fillfactor = 33)"
    )
    before_anybody_needs_it(pipe)
    assert warehouse18.value(OPTIONS, ("a.t_2013_02_x_pkey",)) == ["fillfactor=33"]
    valid = "SELECT bool_and(indisvalid) FROM pg_index WHERE indrelid::regclass::text LIKE 'a.t\\_2013\\_02%%'"
    assert warehouse18.value(valid, ())
