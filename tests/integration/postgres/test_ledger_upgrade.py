"""A ledger that an older release made is brought up to date, and who could work with it still can."""

from __future__ import annotations

import pytest

from airflow_etl_provider.core.errors import CatalogError
from airflow_etl_provider.postgres.ledger import LEDGER_VERSION, ensure_ledger
from airflow_etl_provider.postgres.queries import script
from airflow_etl_provider.postgres.session import connect
from tests.builders import login

RIGHTS = (
    "SELECT c.relname::text, array_agg(p ORDER BY p) FILTER (WHERE has_table_privilege(%s, c.oid, p))"
    " FROM pg_class AS c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE',"
    " 'SELECT WITH GRANT OPTION']) AS p"
    " WHERE c.relnamespace = 'etl'::regnamespace AND c.relkind = 'r' GROUP BY 1 ORDER BY 1"
)


def older(database, version):
    for number in range(1, version + 1):
        database.run(script(f"ledger_v{number}"))


def up_to_date(database, **who):
    with connect(database.endpoint(**who)) as connection:
        ensure_ledger(connection, label="dwh")


@pytest.mark.parametrize("version", [1, 3, 4])
def test_new_tables_have_the_grants_of_the_old_ones(warehouse, version):
    older(warehouse, version)
    with (
        login(warehouse, "GRANT USAGE ON SCHEMA etl TO {role}") as loader,
        login(warehouse, "GRANT SELECT ON ALL TABLES IN SCHEMA etl TO {role} WITH GRANT OPTION") as boss,
    ):  # fmt: skip
        warehouse.run(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA etl TO {loader['user']}"
        )
        up_to_date(warehouse)
        rights = dict(warehouse.run(RIGHTS, (loader["user"],)))
        assert {"retired_partitions", "analyzed_tables", "loads"} <= set(rights)
        assert set(map(tuple, rights.values())) == {("DELETE", "INSERT", "SELECT", "UPDATE")}
        rights = dict(warehouse.run(RIGHTS, (boss["user"],)))
        assert set(map(tuple, rights.values())) == {("SELECT", "SELECT WITH GRANT OPTION")}
        up_to_date(warehouse, **loader)


def test_grants_to_everybody_and_odd_names(warehouse18):
    older(warehouse18, 3)
    warehouse18.run('DROP ROLE IF EXISTS "odd "" \'role"; CREATE ROLE "odd "" \'role"')
    warehouse18.run("GRANT SELECT ON ALL TABLES IN SCHEMA etl TO PUBLIC")
    warehouse18.run('GRANT UPDATE ON ALL TABLES IN SCHEMA etl TO "odd "" \'role"')
    try:
        up_to_date(warehouse18)
        rights = dict(warehouse18.run(RIGHTS, ("odd \" 'role",)))
    finally:
        warehouse18.run('DROP OWNED BY "odd "" \'role"; DROP ROLE "odd "" \'role"')
    assert set(map(tuple, rights.values())) == {("SELECT", "UPDATE")}


def test_they_belong_to_the_owner_of_the_ledger_whoever_runs_the_files(warehouse):
    """The next release has to change them, and a superuser may have helped with this one."""
    with login(warehouse, "GRANT CREATE ON DATABASE " + warehouse.name + " TO {role}") as owner:
        with warehouse.connect() as connection:
            connection.execute(f"SET ROLE {owner['user']}")
            for number in (1, 2, 3):
                connection.execute(script(f"ledger_v{number}"))
        up_to_date(warehouse)
        assert warehouse.run(
            "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'etl'::regnamespace"
        ) == [(owner["user"],)]
        up_to_date(warehouse, **owner)


@pytest.mark.parametrize("version", [3, LEDGER_VERSION - 1])
def test_who_may_not_change_it_is_told_every_file(warehouse18, version):
    older(warehouse18, version)
    grants = (
        "GRANT USAGE ON SCHEMA etl TO {role}",
        "GRANT ALL ON ALL TABLES IN SCHEMA etl TO {role}",
    )
    with login(warehouse18, *grants) as loader:
        with pytest.raises(CatalogError) as told:
            up_to_date(warehouse18, **loader)
        assert f"version {version}, and role {loader['user']} may not bring it" in told.value.what
        files = [f"ledger_v{n}.sql" for n in range(version + 1, LEDGER_VERSION + 1)]
        for file in files:
            assert file in str(told.value)
            warehouse18.run(script(file.removesuffix(".sql")))
        assert f"ledger_v{version}.sql" not in str(told.value)
        up_to_date(warehouse18, **loader)
