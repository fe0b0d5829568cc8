"""The schema contract: columns that come, widen and go at the source, before any row moves."""

from __future__ import annotations

import pytest

from airflow_etl_provider.core.errors import ContractError
from airflow_etl_provider.core.request import SchemaContract
from tests.builders import FEBRUARY, JANUARY, MARCH, fill, in_background, reader, simple, wait_until
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


def test_new_columns_are_left_out_and_said(pipe, capsys):
    pipe.source.run("ALTER TABLE t ADD extra int")
    pipe.load(JANUARY, FEBRUARY, **DISCARD)
    assert pipe.warehouse.value("SELECT count(*) FROM a.t") == 20
    assert "extra" in capsys.readouterr().out


def test_a_batch_that_was_staged_before_is_not_published_as_it_was(pipe):
    """Another load has evolved the table since: the column is named."""
    fill(pipe.source, FEBRUARY, MARCH, 5, first=100)
    manifest = pipe.staged(FEBRUARY, MARCH)
    pipe.warehouse.run(
        "ALTER TABLE a.t ADD later int;"
        "CREATE TABLE a.t_2013_02 PARTITION OF a.t FOR VALUES FROM ('2013-02-01Z') TO ('2013-03-01Z')"
    )
    with pytest.raises(ContractError, match="column later was added"):
        pipe.publish(manifest)


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
                    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE%%'"
                ),
                "the change waits",
            )
            assert pipe.warehouse.value("SELECT count(*) FROM a.t") == 20
            report.rollback()
        assert work.result().rows == 20
