"""Partitions that rows need and nobody has made: named as their siblings, and made without anybody waiting long."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from airflow_etl_provider.core.errors import CatalogError, DataError, LockBudgetExceeded
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.core.publish import Deletes
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.postgres import partitions as module
from tests.builders import (
    FEBRUARY,
    JANUARY,
    MARCH,
    MONTHLY,
    Pipeline,
    fill,
    group_and_member,
    reader,
    simple,
)

DELETE_INSERT, SWAP, SWAP_MERGE = Strategy.DELETE_INSERT, Strategy.SWAP, Strategy.SWAP_MERGE


def partitions(database) -> list[str]:
    return [
        name
        for (name,) in database.run(
            "SELECT relid::regclass::text FROM pg_partition_tree('a.t') WHERE isleaf ORDER BY 1"
        )
    ]


@pytest.mark.parametrize("strategy", [SWAP, SWAP_MERGE, DELETE_INSERT])
def test_they_are_called_as_the_table_calls_its_partitions(source18, warehouse18, strategy):
    """Whether a window becomes a whole partition or rows come into one."""
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        "CREATE TABLE a.t_p201212 PARTITION OF a.t FOR VALUES FROM ('2012-12-01Z') TO ('2013-01-01Z')"
    )
    fill(source18, JANUARY, MARCH, 59)
    end = FEBRUARY if strategy is SWAP else FEBRUARY + timedelta(days=3)
    pipe.load(JANUARY, end, options={"strategy": strategy})
    made = ["a.t_p201212", "a.t_p201301", "a.t_p201302"]
    assert partitions(warehouse18) == made[: 2 if strategy is SWAP else 3]


@pytest.mark.parametrize("column_type", ["date", "timestamp", "timestamptz"])
def test_by_whatever_time_the_table_is_partitioned(source18, warehouse18, column_type):
    """A date, a wall clock, an instant: the partitions of New York's months, by every strategy that makes them."""
    zone = ZoneInfo("America/New_York")
    for database, key in (
        (source18, ""),
        (warehouse18, ", PRIMARY KEY (id, ts)) PARTITION BY RANGE (ts"),
    ):
        database.run("CREATE SCHEMA IF NOT EXISTS a")
        name = "t" if database is source18 else "a.t"
        database.run(f"CREATE TABLE {name} (id int, ts {column_type} NOT NULL, v text{key})")
    pipe = Pipeline(
        source18,
        warehouse18,
        partition=PartitionSpec("ts", Every.MONTH, str(zone)),
        timezone=str(zone),
    )
    source18.run(
        f"INSERT INTO t SELECT i, (timestamp '2013-01-01 12:00' + i * interval '1 day')::timestamp::{column_type}, 'a'"
        " FROM generate_series(0, 89) AS i"
    )
    january, february, march, april = (
        datetime(2013, month, 1, tzinfo=zone) for month in range(1, 5)
    )
    pipe.load(january, february)
    pipe.load(
        february + timedelta(days=2), march + timedelta(days=3), options={"strategy": SWAP_MERGE}
    )
    pipe.load(february, february + timedelta(days=2), options={"strategy": DELETE_INSERT})
    pipe.load(march, april)
    assert pipe.rows() == pipe.source_rows()
    assert partitions(warehouse18) == ["a.t_2013_01", "a.t_2013_02", "a.t_2013_03"]
    assert len(warehouse18.run("SELECT DISTINCT tableoid FROM a.t")) == 3


def with_default(source, warehouse, **changes: Any) -> Pipeline:
    pipe = simple(source, warehouse, **changes)
    warehouse.run(
        "CREATE TABLE a.other PARTITION OF a.t DEFAULT; INSERT INTO a.t VALUES (1, '2020-01-01', '')"
    )
    fill(source, JANUARY, FEBRUARY, 31)
    return pipe


def test_the_default_partition_is_not_scanned_under_the_lock(server, source18, warehouse18):
    """Rule 23, also for a partition that is attached empty: DEFAULT gets its CHECK before."""
    pipe = with_default(
        source18, warehouse18, warehouse_role={"options": "-c log_min_messages=debug1"}
    )
    manifest = pipe.staged(JANUARY, JANUARY + timedelta(days=5))
    before = len(server.log.read_text(errors="replace"))
    pipe.publish(manifest, strategy=DELETE_INSERT)
    log = server.log.read_text(errors="replace")[before:]
    assert (
        'updated partition constraint for default partition "other" is implied by existing' in log
    )
    # Once, for the CHECK itself.
    assert log.count('verifying table "other"') == 1


@pytest.mark.parametrize("strategy", [SWAP_MERGE, DELETE_INSERT])
def test_a_reader_of_default_is_waited_for_up_to_the_deadline(source18, warehouse18, strategy):
    """Not longer than the budget at once; named when it does not end, and when it does it is published."""
    pipe = with_default(source18, warehouse18)
    manifest = pipe.staged(JANUARY, JANUARY + timedelta(days=5))
    short = {
        "lock_budget": timedelta(milliseconds=50),
        "lock_deadline": timedelta(milliseconds=300),
    }
    with reader(warehouse18, "SELECT count(*) FROM a.other") as session:
        with pytest.raises(LockBudgetExceeded, match=f"pid {session.info.backend_pid}"):
            pipe.publish(manifest, strategy=strategy, **short)
        assert partitions(warehouse18) == ["a.other"]

        def log(event: str, **fields: Any) -> None:
            if event == "waiting for locks":
                session.rollback()

        pipe.publish(manifest, strategy=strategy, log=log)
    assert warehouse18.value("SELECT count(*) FROM a.t_2013_01") == 5


KEPT_OUT = "SELECT count(*) FROM pg_constraint WHERE conname LIKE 'etl_not_%%'"


def test_default_takes_rows_again_where_a_writer_of_a_dimension_outlasts_the_deadline(
    source18, warehouse18
):
    """What could not be attached keeps no row out of DEFAULT."""
    pipe = with_default(source18, warehouse18)
    warehouse18.run(
        "CREATE TABLE a.dim (v text PRIMARY KEY); INSERT INTO a.dim SELECT DISTINCT v FROM a.t;"
        "ALTER TABLE a.t ADD FOREIGN KEY (v) REFERENCES a.dim"
    )
    source18.run("UPDATE t SET v = ''")
    manifest = pipe.staged(JANUARY, JANUARY + timedelta(days=5))
    short = {
        "lock_budget": timedelta(milliseconds=50),
        "lock_deadline": timedelta(milliseconds=300),
    }
    with (
        reader(warehouse18, "UPDATE a.dim SET v = v"),
        pytest.raises(LockBudgetExceeded, match=r"a\.t_2013_01"),
    ):
        pipe.publish(manifest, strategy=DELETE_INSERT, **short)
    assert warehouse18.value(KEPT_OUT) == 0
    pipe.publish(manifest, strategy=DELETE_INSERT)
    assert warehouse18.value(KEPT_OUT) == 1


def test_a_name_that_comes_meanwhile_is_not_taken_for_the_partition(
    source18, warehouse18, monkeypatch
):
    """A table of its name that nobody attaches: said, and DEFAULT goes on to take the rows."""
    pipe = with_default(source18, warehouse18)
    manifest = pipe.staged(JANUARY, JANUARY + timedelta(days=5))
    attach = module.attach_empty

    def first(*args, **kwargs):
        warehouse18.run("CREATE TABLE a.t_2013_01 (x int)")
        return attach(*args, **kwargs)

    monkeypatch.setattr(module, "attach_empty", first)
    with pytest.raises(CatalogError, match=r"a\.t_2013_01, which exists"):
        pipe.publish(manifest, strategy=DELETE_INSERT)
    assert warehouse18.value(KEPT_OUT) == 0


def test_they_belong_to_the_owner_of_the_table(source18, warehouse18):
    """Whoever of the owner's group publishes: the owner may vacuum and drop them."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, MARCH, 20)
    with group_and_member(warehouse18) as (group, role):
        warehouse18.run(f"GRANT ALL ON SCHEMA a TO {group}; ALTER TABLE a.t OWNER TO {group}")
        pipe.warehouse_role = role
        pipe.load(JANUARY, JANUARY + timedelta(days=5), options={"strategy": DELETE_INSERT})
        pipe.warehouse_role = {}
        assert (
            warehouse18.value(
                "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'a.t_2013_01'::regclass"
            )
            == group
        )


def test_what_is_below_them_belongs_to_the_owner_too(source18, warehouse18):
    pipe = of_regions(source18, warehouse18)
    with group_and_member(warehouse18) as (group, role):
        warehouse18.run(f"GRANT ALL ON SCHEMA a TO {group}")
        for table in ("t", "t_2012_12", "t_2012_12_eu", "t_2012_12_rest"):
            warehouse18.run(f"ALTER TABLE a.{table} OWNER TO {group}")
        pipe.warehouse_role = role
        pipe.load(JANUARY, JANUARY + timedelta(days=5), options={"strategy": DELETE_INSERT})
        pipe.warehouse_role = {}
        assert warehouse18.run(
            "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname LIKE 't_2013_01%'"
        ) == [(group,)]


def test_entities_whose_month_is_new(source18, warehouse18):
    """The same where rows go by key."""
    source18.run("CREATE TABLE t (id int, ts date NOT NULL, v text, changed timestamptz)")
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int, ts date NOT NULL, v text, changed timestamptz)"
        " PARTITION BY RANGE (ts); CREATE TABLE a.y2012m12 PARTITION OF a.t FOR VALUES FROM ('2012-12-01') TO ('2013-01-01')"
    )
    pipe = Pipeline(
        source18,
        warehouse18,
        kind=Kind.ENTITIES,
        keys=("id",),
        cursor="changed",
        mode=WindowMode.FULL,
    )
    source18.run(
        "INSERT INTO t SELECT i, date '2012-12-20' + i, 'a', now() FROM generate_series(1, 60) AS i"
    )
    pipe.load()
    assert pipe.rows() == pipe.source_rows()
    assert partitions(warehouse18) == ["a.y2012m12", "a.y2013m01", "a.y2013m02"]


class TestBeyondTheCalendar:
    """Sentinels for "never" and "always" have no partition of their own: DEFAULT takes them."""

    COLUMNS = "id int, ts {} NOT NULL, changed timestamptz, v text"

    def pipe(self, source, warehouse, column_type: str, rest: str, **changes: Any) -> Pipeline:
        columns = self.COLUMNS.format(column_type)
        source.run(f"CREATE TABLE t ({columns})")
        warehouse.run(
            f"CREATE SCHEMA a; CREATE TABLE a.t ({columns}) PARTITION BY RANGE (ts){rest}"
        )
        entities: dict[str, Any] = {
            "kind": Kind.ENTITIES,
            "keys": ("id",),
            "cursor": "changed",
            "mode": WindowMode.FULL,
        }
        return Pipeline(source, warehouse, **entities | changes)

    @pytest.mark.parametrize("every", [Every.MONTH, Every.YEAR])
    @pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
    @pytest.mark.parametrize("column_type", ["date", "timestamp", "timestamptz"])
    def test_default_takes_them(self, source18, warehouse18, column_type, zone, every):
        pipe = self.pipe(
            source18,
            warehouse18,
            column_type,
            "; CREATE TABLE a.rest PARTITION OF a.t DEFAULT",
            partition=PartitionSpec("ts", every, zone),
        )
        beyond = ("0044-03-15 BC", "0001-01-01", "9999-12-31", "20000-01-01", "infinity")
        within = ("0002-01-02", "2013-01-15", "9996-12-31")
        for number, moment in enumerate((*beyond, *within)):
            source18.run("INSERT INTO t VALUES (%s, %s, '2013-01-02Z', 'v')", (number, f"{moment}"))
        pipe.load()
        assert pipe.rows() == pipe.source_rows()
        assert warehouse18.value("SELECT count(*) FROM a.rest") == len(beyond)
        assert len(partitions(warehouse18)) == len(within) + 1

    @pytest.mark.parametrize("moment", ["0044-03-15 BC", "9999-12-31", "20000-01-01"])
    def test_without_default_the_server_s_refusal_says_what_to_do(
        self, source18, warehouse18, moment
    ):
        pipe = self.pipe(source18, warehouse18, "timestamp", "")
        source18.run("INSERT INTO t VALUES (1, %s, '2013-01-02Z', 'v')", (moment,))
        with pytest.raises(DataError, match='no partition of relation "t"') as caught:
            pipe.load()
        assert "DEFAULT partition" in (caught.value.remedy or "")
        assert moment[:5] not in str(caught.value)


def with_a_flag(source, warehouse) -> Pipeline:
    """A row of 1999 that the source calls deleted; the target has DEFAULT alone."""
    columns = "id int, ts timestamptz NOT NULL, changed timestamptz, gone boolean"
    source.run(f"CREATE TABLE t ({columns})")
    source.run("INSERT INTO t VALUES (2, '1999-03-01Z', '2013-01-05Z', true)")
    warehouse.run(
        f"CREATE SCHEMA a; CREATE TABLE a.t ({columns}) PARTITION BY RANGE (ts);"
        "CREATE TABLE a.other PARTITION OF a.t DEFAULT"
    )
    return Pipeline(
        source,
        warehouse,
        kind=Kind.ENTITIES,
        keys=("id",),
        cursor="changed",
        mode=WindowMode.FULL,
    )


BY_FLAG = [Strategy.MERGE, SWAP_MERGE]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("strategy", BY_FLAG)
def test_a_row_that_only_takes_one_away_makes_none(source18, warehouse18, strategy, there):
    """Whether DEFAULT holds that row or nobody has seen it; a row that lives gets its own all the same."""
    pipe = with_a_flag(source18, warehouse18)
    if there:
        warehouse18.run("INSERT INTO a.t VALUES (2, '1999-03-01Z', '2013-01-01Z', false)")
    source18.run("INSERT INTO t VALUES (3, '2013-01-03Z', '2013-01-05Z', false)")
    done = pipe.load(options={"strategy": strategy, "delete_flag": "gone", "max_shrink": 1.0})
    assert (done.rows_inserted, done.rows_deleted) == (1, int(there))
    assert partitions(warehouse18) == ["a.other", "a.t_2013_01"]


@pytest.mark.parametrize("strategy", BY_FLAG)
def test_a_row_that_is_deleted_softly_has_a_place(source18, warehouse18, strategy):
    """It is written, with its flag."""
    pipe = with_a_flag(source18, warehouse18)
    pipe.load(options={"strategy": strategy, "delete_flag": "gone", "deletes": Deletes.SOFT})
    assert warehouse18.value("SELECT tableoid::regclass::text FROM a.t") == "a.t_1999_03"


DECEMBER = (
    "CREATE TABLE a.t_2012_12 PARTITION OF a.t FOR VALUES FROM ('2012-12-01Z') TO ('2013-01-01Z')"
)
#: December is partitioned itself; one of its partitions has settings and an index of its own.
BY_LIST = f"""
    {DECEMBER} PARTITION BY LIST (v);
    CREATE TABLE a.t_2012_12_eu PARTITION OF a.t_2012_12 FOR VALUES IN ('eu') WITH (fillfactor = 70);
    CREATE TABLE a.t_2012_12_rest PARTITION OF a.t_2012_12 DEFAULT;
    CREATE INDEX t_2012_12_eu_own ON a.t_2012_12_eu (id)
"""


def of_regions(source, warehouse, cut: str = BY_LIST) -> Pipeline:
    columns = "id bigint, ts timestamptz NOT NULL, v text"
    source.run(f"CREATE TABLE t ({columns})")
    source.run("INSERT INTO t VALUES (1, '2013-01-03Z', 'eu'), (2, '2013-01-04Z', 'us')")
    warehouse.run(f"CREATE SCHEMA a; CREATE TABLE a.t ({columns}) PARTITION BY RANGE (ts); {cut}")
    return Pipeline(source, warehouse, keys=("id",))


@pytest.mark.parametrize(
    "strategy", [Strategy.AUTO, Strategy.MERGE, Strategy.APPEND, SWAP_MERGE, DELETE_INSERT]
)
def test_they_are_cut_as_the_newest_one_is(source, warehouse, strategy):
    """With all that is below it, also where the window is a whole partition; the next one is made like these."""
    pipe = of_regions(source, warehouse)
    done = pipe.load(JANUARY, FEBRUARY, options={"strategy": strategy})
    assert done.strategy is (DELETE_INSERT if strategy is Strategy.AUTO else strategy)
    assert warehouse.run("SELECT tableoid::regclass::text, id FROM a.t ORDER BY 2") == [
        ("a.t_2013_01_eu", 1),
        ("a.t_2013_01_rest", 2),
    ]
    assert warehouse.run(
        "SELECT reloptions FROM pg_class WHERE oid = 'a.t_2013_01_eu'::regclass"
    ) == [(["fillfactor=70"],)]
    assert warehouse.value("SELECT to_regclass('a.t_2013_01_eu_own')") is not None
    source.run("INSERT INTO t VALUES (3, '2013-02-03Z', 'eu')")
    pipe.load(FEBRUARY, MARCH, options={"strategy": strategy})
    assert warehouse.value("SELECT tableoid::regclass::text FROM a.t WHERE id = 3") == (
        "a.t_2013_02_eu"
    )


def test_no_single_table_is_swapped_in_beside_those_that_are_cut(source18, warehouse18):
    pipe = of_regions(source18, warehouse18)
    with pytest.raises(CatalogError, match=r"like a\.t_2012_12.* LIST \(v\)") as refused:
        pipe.load(JANUARY, FEBRUARY, options={"strategy": SWAP})
    assert "strategy='auto'" in (refused.value.remedy or "")
    assert partitions(warehouse18) == ["a.t_2012_12_eu", "a.t_2012_12_rest"]


def test_those_that_are_cut_since_the_batch_was_staged(source18, warehouse18):
    """What was to be swapped in is not, but written in place."""
    pipe = of_regions(source18, warehouse18, cut=DECEMBER)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    warehouse18.run(f"DROP TABLE a.t_2012_12; {BY_LIST}")
    with pytest.raises(CatalogError, match=r"like a\.t_2012_12.* LIST \(v\)"):
        pipe.publish(manifest, strategy=SWAP)
    assert pipe.publish(manifest).strategy is DELETE_INSERT
    assert pipe.rows() == pipe.source_rows()
    assert "a.t_2013_01_eu" in partitions(warehouse18)


@pytest.mark.parametrize("strategy", [Strategy.AUTO, SWAP_MERGE])
def test_siblings_that_are_cut_by_the_same_column_again(source18, warehouse18, strategy):
    """Their bounds hold for no other time: what to do is said, and can be done."""
    weeks = f"{DECEMBER} PARTITION BY RANGE (ts); CREATE TABLE a.w PARTITION OF a.t_2012_12 DEFAULT"
    pipe = of_regions(source18, warehouse18, cut=weeks)
    with pytest.raises(CatalogError, match=r"a\.t_2012_12.* RANGE \(ts\)") as refused:
        pipe.load(JANUARY, FEBRUARY, options={"strategy": strategy})
    assert partitions(warehouse18) == ["a.w"]
    _, _, statement = (refused.value.remedy or "").partition(": ")
    warehouse18.run(statement)
    warehouse18.run("CREATE TABLE a.v PARTITION OF a.t_2013_01 DEFAULT")
    pipe.load(JANUARY, FEBRUARY, options={"strategy": strategy})
    assert pipe.rows() == pipe.source_rows()


IN_PLACE_OR_ANEW = [Strategy.MERGE, SWAP_MERGE, DELETE_INSERT]


@pytest.mark.parametrize("strategy", IN_PLACE_OR_ANEW)
def test_months_below_a_list(source, warehouse, strategy):
    """The way on that is told where one is missing leads on: they are made, each below its own list."""
    columns = "id bigint, ts timestamptz NOT NULL, v text"
    source.run(f"CREATE TABLE t ({columns})")
    source.run("INSERT INTO t VALUES (1, '2013-01-03Z', 'eu'), (2, '2013-02-04Z', 'us')")
    warehouse.run(
        f"CREATE SCHEMA a; CREATE TABLE a.t ({columns}) PARTITION BY LIST (v);"
        "CREATE TABLE a.eu PARTITION OF a.t FOR VALUES IN ('eu') PARTITION BY RANGE (ts);"
        "CREATE TABLE a.us PARTITION OF a.t FOR VALUES IN ('us') PARTITION BY RANGE (ts);"
        "CREATE TABLE a.eu_2013_01 PARTITION OF a.eu FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
    )
    pipe = Pipeline(source, warehouse, keys=("id",), partition=None)
    window = (JANUARY, FEBRUARY + timedelta(days=9))
    with pytest.raises(DataError) as refused:
        pipe.load(*window, options={"strategy": strategy})
    assert "a partition of a.us is" in (refused.value.remedy or "")
    assert "partition={'column': 'ts'" in (refused.value.remedy or "")
    pipe.partition = MONTHLY
    pipe.load(*window, options={"strategy": strategy})
    assert pipe.rows() == pipe.source_rows()
    assert partitions(warehouse) == ["a.eu_2013_01", "a.us_2013_02"]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("strategy", IN_PLACE_OR_ANEW)
def test_a_value_without_a_partition_at_a_lower_level(source18, warehouse18, strategy, told):
    """The table that lacks one is named, with statements that run; the value, which is of a row, is not."""
    january = "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
    eu = "CREATE TABLE a.eu PARTITION OF a.t_2013_01 FOR VALUES IN ('eu')"
    pipe = of_regions(source18, warehouse18, cut=f"{january} PARTITION BY LIST (v); {eu}")
    pipe.partition = MONTHLY if told else None
    window = (JANUARY, JANUARY + timedelta(days=9))
    with pytest.raises(DataError) as refused:
        pipe.load(*window, options={"strategy": strategy})
    remedy = refused.value.remedy or ""
    assert "'us'" not in str(refused.value)
    make, show = remedy.split("(", 1)[1].split("), or a partition of a.t_2013_01 ")
    assert ("us",) in warehouse18.run(show.split("among those of ")[1])
    warehouse18.run(make)
    pipe.load(*window, options={"strategy": strategy})
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize("strategy", IN_PLACE_OR_ANEW)
def test_a_remainder_that_nobody_takes(source18, warehouse18, strategy):
    """There is no DEFAULT of a HASH, so none is advised."""
    one = "CREATE TABLE a.one PARTITION OF a.t_2013_01 FOR VALUES WITH (MODULUS 2, REMAINDER 0)"
    january = "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
    pipe = of_regions(source18, warehouse18, cut=f"{january} PARTITION BY HASH (id); {one}")
    source18.run("INSERT INTO t SELECT i, '2013-01-05Z', 'x' FROM generate_series(3, 9) AS i")
    with pytest.raises(DataError) as refused:
        pipe.load(JANUARY, JANUARY + timedelta(days=9), options={"strategy": strategy})
    assert "a.t_2013_01 is partitioned by HASH" in (refused.value.remedy or "")
    assert "DEFAULT" not in str(refused.value)
