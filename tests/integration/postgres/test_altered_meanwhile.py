"""A table that is altered between staging and publication, by another load that evolves it or by its owner."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_etl_provider.core.errors import ContractError
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.request import SchemaContract, WindowMode
from airflow_etl_provider.postgres.ledger import ADVISORY_CLASS
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import (
    FEBRUARY,
    JANUARY,
    MARCH,
    Pipeline,
    in_background,
    reader,
    wait_until,
)
from tests.integration.postgres.test_rollback import rolled_back
from tests.integration.postgres.test_scd2 import FILLED
from tests.integration.postgres.test_swap_merge import NOW, day

PLAIN = "CREATE SCHEMA a; CREATE TABLE a.t (id int NOT NULL, ts timestamptz NOT NULL, w varchar(5), n numeric(5,2)"
TABLE = PLAIN + ") PARTITION BY RANGE (ts)"
PARTITIONED = TABLE + (
    "; CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
)
ENTITIES: dict[str, Any] = {
    "kind": Kind.ENTITIES,
    "keys": ("id",),
    "mode": WindowMode.FULL,
    "partition": None,
    "settle": NOW,
}
WINDOW = (JANUARY, FEBRUARY)
#: A pipeline, its target, its window and how it is published.
CASES: dict[str, tuple[dict[str, Any], str, tuple[Any, ...], dict[str, Any]]] = {
    "swap": ({}, PARTITIONED, WINDOW, {"strategy": Strategy.SWAP}),
    "swap of several": ({}, PARTITIONED, (JANUARY, MARCH), {"strategy": Strategy.SWAP}),
    "swap of a new partition": ({}, TABLE, WINDOW, {"strategy": Strategy.SWAP}),
    "swap_merge": ({}, PARTITIONED, (day(2), day(20)), {"strategy": Strategy.SWAP_MERGE}),
    "delete_insert": ({}, PARTITIONED, (day(2), day(20)), {"strategy": Strategy.DELETE_INSERT}),
    "append": ({}, PARTITIONED, WINDOW, {"strategy": Strategy.APPEND}),
    "merge": (ENTITIES, PARTITIONED, (), {"strategy": Strategy.MERGE}),
    "replace": (
        {"kind": Kind.SNAPSHOTS, "cursor": None, "partition": None, "keys": ("id",)},
        PLAIN + ")",
        (),
        {"strategy": Strategy.REPLACE},
    ),
    "replace by image": (
        {"kind": Kind.SNAPSHOTS, "cursor": None, "partition": None},
        PLAIN + ")",
        (),
        {"strategy": Strategy.REPLACE},
    ),
    "scd2": (
        ENTITIES | {"options": {"filled_by_publish": FILLED}},
        PLAIN + ", valid_from timestamptz NOT NULL, valid_to timestamptz, is_current boolean)",
        (),
        {"strategy": Strategy.SCD2, "is_current": "is_current"},
    ),
}  # fmt: skip


@pytest.fixture
def pipe(request, source18, warehouse18):
    return made(source18, warehouse18, request.param)


def made(source, warehouse, case):
    fields, target, window, options = CASES[case]
    source.run(
        "CREATE TABLE t (id int, ts timestamptz NOT NULL, w varchar(5), n numeric(5,2));"
        "INSERT INTO t SELECT i, '2013-01-03Z'::timestamptz + i * interval '1 day', 'w' || i, i"
        " FROM generate_series(1, 9) AS i"
    )
    warehouse.run(target)
    pipe = Pipeline(source, warehouse, **fields)
    pipe.window, pipe.how = window, options
    return pipe


def staged(pipe):
    return pipe.staged(*pipe.window)


def stored(pipe):
    return pipe.warehouse.run("SELECT id, ts, w, n FROM a.t ORDER BY id")


def offered(pipe):
    return pipe.source.run("SELECT id, ts, w, n FROM t ORDER BY id")


every_strategy = pytest.mark.parametrize("pipe", CASES, indirect=True)


@every_strategy
def test_a_column_that_was_added_is_left_to_its_default(pipe):
    """The batch is what the source had when it was read; a retry in the night would read no more."""
    manifest = staged(pipe)
    pipe.warehouse.run("ALTER TABLE a.t ADD later int, ADD sort text NOT NULL DEFAULT 'x'")
    pipe.publish(manifest, **pipe.how)
    assert stored(pipe) == offered(pipe)
    assert pipe.warehouse.run("SELECT DISTINCT later, sort FROM a.t") == [(None, "x")]


@every_strategy
@pytest.mark.parametrize("to", ["varchar(9)", "text"])
def test_a_column_that_was_widened_is_no_difference(pipe, to):
    pipe.publish(staged(pipe), **pipe.how) if pipe.how.get(
        "strategy"
    ) is not Strategy.APPEND else None
    pipe.source.run("UPDATE t SET w = 'x' || id")
    manifest = staged(pipe)
    pipe.warehouse.run(f"ALTER TABLE a.t ALTER w TYPE {to}, ALTER n TYPE numeric")
    pipe.publish(manifest, **pipe.how)
    if pipe.how.get("strategy") is not Strategy.SCD2:
        assert stored(pipe) == offered(pipe)


@every_strategy
@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("ALTER TABLE a.t DROP w", "column w was dropped or renamed"),
        ("ALTER TABLE a.t RENAME w TO v", "column w was dropped or renamed"),
        ("ALTER TABLE a.t ALTER n TYPE int", "column n is now integer, not"),
        ("ALTER TABLE a.t ALTER w TYPE varchar(3)", r"column w is now character varying\(3\), not"),
        ("ALTER TABLE a.t ADD must int NOT NULL", "column must was added and must have a value"),
    ],
    ids=["dropped", "renamed", "retyped", "narrowed", "demanded"],
)
def test_what_no_longer_fits_is_refused_by_name(pipe, statement, named):
    manifest = staged(pipe)
    pipe.warehouse.run(statement)
    before = pipe.picture()
    with pytest.raises(ContractError, match=named) as raised:
        pipe.publish(manifest, **pipe.how)
    assert "clear extract and downstream" in raised.value.remedy
    assert pipe.picture() == before
    assert pipe.state(manifest.load_id) == "validated"


@pytest.mark.parametrize("case", ["swap", "swap of several", "swap of a new partition"])
def test_what_attach_asks_for_is_given_to_the_new_partition(source, warehouse, case):
    """NOT NULL, CHECKs, defaults and indexes that the table has got since, on every server."""
    pipe = made(source, warehouse, case)
    manifest = staged(pipe)
    warehouse.run(
        "ALTER TABLE a.t ALTER w SET NOT NULL, ADD CONSTRAINT told CHECK (n < 100), ADD later int,"
        " ALTER n SET DEFAULT 7; CREATE INDEX ON a.t (later, w)"
    )
    pipe.publish(manifest, **pipe.how)
    assert stored(pipe) == offered(pipe)
    assert warehouse.value(
        "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'a.t_2013_01'::regclass"
    ) == ("7")


def test_rows_that_break_a_check_of_the_target(source18, warehouse18):
    pipe = made(source18, warehouse18, "swap")
    manifest = staged(pipe)
    warehouse18.run("ALTER TABLE a.t ADD CONSTRAINT told CHECK (n < 5)")
    with pytest.raises(ContractError, match="told"):
        pipe.publish(manifest, **pipe.how)


@pytest.mark.parametrize("case", ["swap", "swap of a new partition", "swap_merge"])
def test_a_change_while_the_exchange_waits(source, warehouse, case):
    """The attempts go on with the table as it is then."""
    pipe = made(source, warehouse, case)
    warehouse.run("CREATE TABLE a.rest PARTITION OF a.t DEFAULT")
    pipe.publish(staged(pipe), **pipe.how)
    pipe.source.run("UPDATE t SET w = 'new'")
    manifest = staged(pipe)
    log = RecordedEvents()
    with reader(warehouse, "SELECT count(*) FROM a.rest") as report:
        with in_background(lambda: pipe.publish(manifest, log=log, **pipe.how)) as publishing:
            wait_until(lambda: "waiting for locks" in log.names(), "a reader is in the way")
            with warehouse.connect() as owner:
                owner.execute("SET lock_timeout = '10s'")
                report.rollback()
                owner.execute("ALTER TABLE a.t ADD later int, ALTER w TYPE text")
        publishing.result()
    assert stored(pipe) == offered(pipe)
    assert warehouse.run("SELECT DISTINCT later FROM a.t") == [(None,)]


def test_values_of_a_new_column_are_not_lost_in_a_rebuild(source, warehouse):
    """Another load has evolved the table and filled the column, after this one had looked at it."""
    pipe = made(source, warehouse, "swap_merge")
    pipe.publish(staged(pipe), **pipe.how)
    manifest = pipe.staged(day(2), day(6))
    with warehouse.connect() as other:
        with other.transaction():
            other.execute(
                "SELECT pg_advisory_xact_lock(%s, hashtext('a.t_2013_01'))", (ADVISORY_CLASS,)
            )
            publishing = in_background(lambda: pipe.publish(manifest, **pipe.how))
            work = publishing.__enter__()
            wait_until(
                lambda: warehouse.value(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                ),
                "the build waits for another",
            )
            warehouse.run("ALTER TABLE a.t ADD later int; UPDATE a.t SET later = id")
        publishing.__exit__(None, None, None)
    assert work.result().strategy is Strategy.SWAP_MERGE
    assert warehouse.run("SELECT count(*), count(later) FROM a.t") == [(9, 7)]


class TestARollback:
    """Over an evolution: the version that comes back has what its siblings have by then."""

    def evolved(self, source, warehouse, *statements):
        """A month that was loaded twice; the load of another month then evolves the table."""
        pipe = made(source, warehouse, "swap")
        pipe.publish(staged(pipe), **pipe.how)
        before = stored(pipe)
        source.run("UPDATE t SET w = 'wrong'")
        load = pipe.publish(staged(pipe), **pipe.how)
        for statement in statements:
            source.run(statement)
        pipe.load(FEBRUARY, MARCH, schema_contract=SchemaContract.EVOLVE)
        return pipe, before, load

    def test_that_widened_and_added(self, source, warehouse):
        pipe, before, load = self.evolved(
            source,
            warehouse,
            "ALTER TABLE t ALTER w TYPE text, ALTER n TYPE numeric(9,2), ADD later int[]",
        )
        rolled_back(pipe, load)
        assert stored(pipe) == before
        assert warehouse.run("SELECT DISTINCT later FROM a.t") == [(None,)]
        source.run("UPDATE t SET w = 'a longer text', n = 1234567.89, later = '{1}'")
        pipe.load(*WINDOW, schema_contract=SchemaContract.EVOLVE)
        assert stored(pipe) == offered(pipe)

    def test_after_which_columns_were_given_defaults_and_made_not_null(self, source, warehouse):
        pipe, before, load = self.evolved(source, warehouse, "ALTER TABLE t ADD later int")
        warehouse.run(
            "ALTER TABLE a.t ALTER w SET NOT NULL, ALTER n SET DEFAULT 7, ADD sort text NOT NULL DEFAULT 'x',"
            " ADD CONSTRAINT told CHECK (n < 1000)"
        )
        rolled_back(pipe, load)
        assert stored(pipe) == before
        assert warehouse.run("SELECT DISTINCT later, sort FROM a.t") == [(None, "x")]
        assert warehouse.value(
            "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef AS d JOIN pg_attribute AS a"
            " ON a.attrelid = d.adrelid AND a.attnum = d.adnum"
            " WHERE adrelid = 'a.t_2013_01'::regclass AND attname = 'n'"
        ) == ("7")

    def test_after_which_a_value_is_demanded_that_the_version_has_not(self, source18, warehouse18):
        pipe, _, load = self.evolved(source18, warehouse18, "ALTER TABLE t ADD later int DEFAULT 1")
        warehouse18.run("UPDATE a.t SET later = 1; ALTER TABLE a.t ALTER later SET NOT NULL")
        before = pipe.picture()
        with pytest.raises(ContractError, match="do not fit"):
            rolled_back(pipe, load)
        assert pipe.picture() == before

    def test_of_a_column_that_was_given_another_type(self, source18, warehouse18):
        pipe, _, load = self.evolved(source18, warehouse18)
        warehouse18.run("ALTER TABLE a.t ALTER n TYPE int")
        with pytest.raises(ContractError, match=r"column n of etl_staging\..* is numeric\(5,2\)"):
            rolled_back(pipe, load)
