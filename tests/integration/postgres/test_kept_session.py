"""One session for several pieces of work of a publish."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from airflow_etl_provider.core.errors import ConnectionLost, DataError
from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.postgres.session import KeptSession
from tests.builders import FEBRUARY, JANUARY, fill, simple


@pytest.fixture
def kept(warehouse18):
    warehouse18.run("CREATE TABLE t (id int)")
    session = KeptSession(warehouse18.endpoint("etl:kept"))
    yield session
    session.close()


def pid(kept: KeptSession) -> int:
    with kept.use() as connection:
        return connection.info.backend_pid


def sessions(database) -> int:
    return database.value(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'etl:kept'"
    )


def test_it_is_opened_when_it_is_needed_and_stays(warehouse18, kept):
    assert sessions(warehouse18) == 0
    assert pid(kept) == pid(kept)
    assert sessions(warehouse18) == 1


def work(kept: KeptSession, *statements: str, interrupted: bool = False) -> None:
    with kept.use() as connection:
        for statement in statements:
            connection.execute(statement)
        if interrupted:
            raise KeyboardInterrupt


def test_after_it_was_lost_there_is_another(kept):
    first = pid(kept)
    with pytest.raises(ConnectionLost):
        work(kept, "SELECT pg_terminate_backend(pg_backend_pid())", "SELECT 1")
    assert pid(kept) != first


def test_one_that_was_lost_between_two_works_is_replaced(warehouse18, kept):
    first = pid(kept)
    warehouse18.run("SELECT pg_terminate_backend(%s, 5000)", (first,))
    assert pid(kept) != first
    assert sessions(warehouse18) == 1


def test_nothing_is_left_of_work_that_failed(warehouse18, kept):
    """Not even where somebody began a transaction by hand."""
    first = pid(kept)
    begun = ("BEGIN", "INSERT INTO public.t VALUES (1)")
    with pytest.raises(DataError):
        work(kept, *begun, "SELECT 1 / 0")
    with pytest.raises(KeyboardInterrupt):
        work(kept, *begun, interrupted=True)
    assert pid(kept) != first
    assert warehouse18.value("SELECT count(*) FROM t") == 0


def test_after_an_error_that_leaves_nothing_it_stays(kept):
    first = pid(kept)
    with pytest.raises(DataError):
        work(kept, "SELECT 1 / 0")
    assert pid(kept) == first


def test_it_is_not_ended_for_lying_idle(warehouse18, kept):
    warehouse18.run(
        sql.SQL("ALTER DATABASE {} SET idle_session_timeout = '1s'").format(
            sql.Identifier(warehouse18.name)
        )
    )
    with kept.use() as connection:
        assert connection.execute("SHOW idle_session_timeout").fetchone() == ("0",)


@pytest.mark.parametrize("strategy", [Strategy.MERGE, Strategy.DELETE_INSERT, Strategy.SWAP])
def test_a_publish_opens_one(source18, warehouse18, monkeypatch, strategy):
    pipe = simple(source18, warehouse18, keys=("id",))
    fill(source18, JANUARY, FEBRUARY, 10)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    opened = []
    connect = psycopg.connect

    def counted(*args, **kwargs):
        opened.append(args)
        return connect(*args, **kwargs)

    monkeypatch.setattr(psycopg, "connect", counted)
    pipe.publish(manifest, strategy=strategy)
    assert len(opened) == 1


def test_closed_it_is_gone_and_may_be_used_again(warehouse18, kept):
    first = pid(kept)
    kept.close()
    assert sessions(warehouse18) == 0
    assert pid(kept) != first
