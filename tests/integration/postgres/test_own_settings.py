"""What a partition has of its own stays when the partition is exchanged, or the exchange is refused by its name."""

from __future__ import annotations

import pytest

from airflow_etl_provider.core.load import Strategy
from tests.builders import FEBRUARY, JANUARY, MARCH, fill, login, simple
from tests.integration.postgres.test_swap_merge import day, entities, put

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
