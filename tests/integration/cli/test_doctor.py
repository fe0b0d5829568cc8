"""``doctor`` on real servers."""

from __future__ import annotations

import json

import pytest
from psycopg.conninfo import make_conninfo

from airflow_etl_provider.cli.main import main
from airflow_etl_provider.postgres import ledger
from airflow_etl_provider.postgres.session import connect


@pytest.fixture
def examine(capsys):
    """Exit code, and the checks by name."""

    def doctor(dsn):
        code = main(["doctor", "--json", "--dsn", dsn])
        return code, {check["name"]: check for check in json.loads(capsys.readouterr().out)}

    return doctor


def make_ledger(database):
    with connect(database.endpoint()) as connection:
        ledger.ensure_ledger(connection, label="warehouse")


def test_a_warehouse_in_order(warehouse, examine):
    """Direct connection, lost clients noticed, rights complete: no finding on any supported server."""
    make_ledger(warehouse)
    code, checks = examine(warehouse.conninfo)
    assert code == 0
    assert {check["level"] for check in checks.values()} == {"ok"}
    assert {"connection", "pooler", "ledger", "lost clients", "deadlock_timeout"} <= set(checks)


def test_for_people(warehouse18, capsys):
    make_ledger(warehouse18)
    assert main(["doctor", "--dsn", warehouse18.conninfo]) == 0
    assert all(line.startswith("ok ") for line in capsys.readouterr().out.splitlines())


def test_no_ledger_yet(warehouse18, examine):
    code, checks = examine(warehouse18.conninfo)
    assert code == 1
    assert checks["ledger"]["level"] == "finding"
    assert "first load makes it" in checks["ledger"]["remedy"]


@pytest.fixture
def role(warehouse18):
    """A role that may connect, and nothing else; its connection string."""
    name = f"role_{warehouse18.name}"
    warehouse18.run(f"CREATE ROLE {name} LOGIN PASSWORD 'hunter2'")
    yield name, make_conninfo(warehouse18.conninfo, user=name, password="hunter2")
    warehouse18.run(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_role_that_cannot_make_the_ledger(role, examine):
    _, dsn = role
    code, checks = examine(dsn)
    assert code == 1
    assert "GRANT CREATE ON DATABASE" in checks["ledger"]["remedy"]
    assert checks["pg_read_all_stats"]["level"] == "note"


def test_rights_that_are_missing_are_named(role, warehouse18, examine):
    """The advice, followed, settles it."""
    name, dsn = role
    make_ledger(warehouse18)
    code, checks = examine(dsn)
    assert (code, checks["ledger rights"]["level"]) == (1, "finding")
    assert "USAGE on etl" in checks["ledger rights"]["what"]
    warehouse18.run(
        f"GRANT USAGE ON SCHEMA etl, etl_staging TO {name}; GRANT CREATE ON SCHEMA etl_staging TO {name}"
    )
    warehouse18.run(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA etl TO {name}")
    code, checks = examine(dsn)
    assert code == 1
    assert "DELETE on loads" in checks["ledger rights"]["what"]
    assert "schema_version" not in checks["ledger rights"]["what"]
    warehouse18.run(checks["ledger rights"]["remedy"])
    code, checks = examine(dsn)
    assert code == 0
    assert checks["ledger"]["level"] == "ok"


def test_settings_and_catalogs_are_read(warehouse18, examine):
    make_ledger(warehouse18)
    # wal_level decides only what subscribers get.
    warehouse18.run("SET client_min_messages = error; CREATE PUBLICATION everything FOR ALL TABLES")
    dsn = make_conninfo(warehouse18.conninfo, options="-c deadlock_timeout=200ms")
    code, checks = examine(dsn)
    assert code == 1
    assert checks["deadlock_timeout"]["level"] == "finding"
    assert checks["publications"]["level"] == "note"
    assert "everything" in checks["publications"]["what"]
