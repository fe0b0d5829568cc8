"""What others have set for a database or a role does not reach our sessions, or is named."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import psycopg
import pytest
from psycopg import sql

from airflow_etl_provider.core.errors import ConfigurationError, ContractError
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.postgres.session import connect, connect_for_copy
from tests.builders import FEBRUARY, JANUARY, Pipeline, fill, login, simple, wait_until

TABLE = "CREATE TABLE {}t (id bigint, ts timestamptz NOT NULL, v text)"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
SLOW = (
    "CREATE FUNCTION a.slow() RETURNS trigger LANGUAGE plpgsql AS"
    " $$BEGIN PERFORM pg_sleep(0.6); RETURN NULL; END$$;"
    "CREATE TRIGGER slow AFTER INSERT ON a.t FOR EACH STATEMENT EXECUTE FUNCTION a.slow()"
)


def set_for(database, setting: str, value: str) -> None:
    database.run(
        sql.SQL("ALTER DATABASE {} SET {} = {}").format(
            sql.Identifier(database.name), sql.Identifier(setting), sql.Literal(value)
        )
    )


def plain(source, warehouse, **changes) -> Pipeline:
    """``public.t`` into a plain ``a.t`` without any key."""
    source.run(TABLE.format(""))
    warehouse.run("CREATE SCHEMA a; " + TABLE.format("a."))
    return Pipeline(source, warehouse, **{"partition": None} | changes)


@pytest.mark.parametrize("strategy", [Strategy.DELETE_INSERT, Strategy.APPEND])
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_who_waited_for_another_publish_sees_what_it_wrote(source18, warehouse18, strategy, level):
    """Both wait for the stream's row: the second must not go by a snapshot from before the first's commit."""
    set_for(warehouse18, "default_transaction_isolation", level)
    pipe = plain(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 3)
    loads = [
        pipe.staged(low, FEBRUARY, run_type="backfill", run_id=run_id)
        for run_id, low in (("one", JANUARY), ("two", JANUARY - timedelta(days=1)))
    ]
    with (
        psycopg.connect(warehouse18.conninfo) as holder,
        ThreadPoolExecutor(len(loads)) as pool,
    ):
        holder.execute("SELECT 1 FROM etl.streams FOR UPDATE")
        published = [pool.submit(pipe.publish, load, strategy=strategy) for load in loads]
        wait_until(lambda: warehouse18.value(WAITING) == len(loads), "both wait for the stream")
        holder.rollback()
    for each in published:
        # What one append has written, the other one refuses to write again, unless it was overtaken.
        with suppress(ContractError):
            each.result()
    assert len(pipe.rows()) == 3


def test_a_snapshot_for_reading_stays_one(source18):
    """Sessions that read one snapshot ask for it themselves."""
    set_for(source18, "default_transaction_isolation", "serializable")
    endpoint = source18.endpoint("etl:test")
    with connect(endpoint) as connection:
        assert connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
    for read_only, level in ((True, "repeatable read"), (False, "read committed")):
        with connect_for_copy(endpoint, read_only=read_only) as copying, copying.cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            assert cursor.fetchone() == (level,)


@pytest.mark.parametrize("end", ["source", "warehouse"])
def test_names_are_quoted_as_always(source, warehouse, end):
    set_for(source if end == "source" else warehouse, "quote_all_identifiers", "on")
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 3)
    pipe.load(JANUARY, FEBRUARY)
    assert pipe.rows() == pipe.source_rows()


def test_a_publish_takes_as_long_as_it_takes(source18, warehouse18):
    set_for(warehouse18, "transaction_timeout", "300ms")
    pipe = plain(source18, warehouse18)
    warehouse18.run(SLOW)
    fill(source18, JANUARY, FEBRUARY, 3)
    pipe.load(JANUARY, FEBRUARY)
    assert len(pipe.rows()) == 3


def test_a_read_only_role_is_told_from_a_standby(source18, warehouse18):
    grants = ("GRANT CREATE ON DATABASE " + warehouse18.name + " TO {role}",)
    with login(warehouse18, *grants) as role:
        pipe = plain(
            source18,
            warehouse18,
            kind=Kind.SNAPSHOTS,
            cursor=None,
            mode=WindowMode.FULL,
            warehouse_role=role,
        )
        warehouse18.run("GRANT USAGE ON SCHEMA a TO PUBLIC; GRANT ALL ON a.t TO PUBLIC")
        warehouse18.run(f"ALTER ROLE {role['user']} SET default_transaction_read_only = on")
        with pytest.raises(ConfigurationError, match="read-only transaction") as caught:
            pipe.load()
    remedy = caught.value.remedy or ""
    assert "standby" in remedy
    assert "ALTER ROLE ... SET default_transaction_read_only = off" in remedy
