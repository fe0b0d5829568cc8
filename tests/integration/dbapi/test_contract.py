"""The schema contract is the same for a source that is no PostgreSQL."""

from __future__ import annotations

import pytest

from airflow_etl_provider.core.errors import ContractError
from airflow_etl_provider.core.request import SchemaContract
from tests.integration.dbapi.driving import into
from tests.integration.dbapi.test_sqlite import Shop

EVOLVE = {"schema_contract": SchemaContract.EVOLVE}
DISCARD = {"schema_contract": SchemaContract.DISCARD_COLUMN}


@pytest.fixture
def shop(tmp_path):
    found = Shop(tmp_path / "shop.db")
    found.run(
        "CREATE TABLE t (n INTEGER PRIMARY KEY, v VARCHAR(5))", "INSERT INTO t VALUES (1, 'x')"
    )
    return found


@pytest.fixture
def pipe(shop, warehouse18):
    made = into(warehouse18, shop.source(), "n bigint, v varchar(5)")
    made.load()
    return made


def test_frozen_it_says_which_statement_helps(shop, pipe):
    shop.run('ALTER TABLE t ADD "Odd one" DECIMAL(8,2)')
    with pytest.raises(ContractError, match=r'ADD COLUMN IF NOT EXISTS "Odd one" numeric\(8,2\)'):
        pipe.extract()
    assert pipe.load(**DISCARD).rows_unchanged == 1


def test_columns_are_added_and_widened(shop, pipe):
    shop.run(
        "ALTER TABLE t ADD price DECIMAL(8,2)",
        "ALTER TABLE t ADD at TIMESTAMPTZ",
        "ALTER TABLE t ADD raw BLOB",
        "ALTER TABLE t RENAME v TO old",
        "ALTER TABLE t ADD v VARCHAR(9)",
        "UPDATE t SET price = 1.5, at = '2024-01-01T10:00:00Z', raw = x'00', v = 'longer'",
        "ALTER TABLE t DROP old",
    )
    pipe.load(**EVOLVE)
    assert pipe.warehouse.run(
        "SELECT v, price::text, extract(year FROM at)::int, raw FROM a.t"
    ) == [("longer", "1.50", 2024, b"\x00")]
    assert pipe.warehouse.value(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'a.t'::regclass AND attname = 'v'"
    ) == ("character varying(9)")


def test_a_name_that_postgresql_cannot_hold(shop, pipe):
    """It would be cut in silence, and the cut name be missing in the source for ever."""
    long = "a" * 64
    shop.run(f"ALTER TABLE t ADD {long} TEXT")
    for contract in (EVOLVE, {}):
        with pytest.raises(ContractError, match="64 bytes") as raised:
            pipe.extract(**contract)
        assert f"rename={{'{long}': ...}}" in raised.value.remedy
    assert pipe.load(**DISCARD).rows_unchanged == 1


@pytest.mark.parametrize("declared", ["DECIMAL(2000,5)", "VARCHAR(99999999)"])
def test_a_type_that_postgresql_cannot_have(shop, pipe, declared):
    shop.run(f"ALTER TABLE t ADD odd {declared}")
    with pytest.raises(ContractError, match="odd"):
        pipe.extract(**EVOLVE)
    assert pipe.load(**DISCARD).rows_unchanged == 1


def test_a_type_is_never_taken_for_a_statement(shop, warehouse18):
    shop.run("ALTER TABLE t ADD odd TEXT")
    source = shop.source(types={"odd": "text; DROP TABLE a.t"})
    pipe = into(warehouse18, source, "n bigint, v varchar(5)")
    with pytest.raises(ContractError, match="does not know"):
        pipe.extract(**EVOLVE)
    assert warehouse18.value("SELECT to_regclass('a.t') IS NOT NULL")


def test_camel_case_is_no_new_column(shop, pipe):
    shop.run("ALTER TABLE t RENAME v TO V")
    pipe.warehouse.run("UPDATE etl.loads SET manifest = manifest #- '{columns}'")
    with pytest.raises(ContractError, match=r"rename=\{'V': 'v'\}"):
        pipe.extract(**EVOLVE)


def test_a_column_that_is_gone(shop, pipe):
    shop.run("ALTER TABLE t DROP v")
    with pytest.raises(ContractError, match='DROP COLUMN "v"'):
        pipe.extract(**EVOLVE)
