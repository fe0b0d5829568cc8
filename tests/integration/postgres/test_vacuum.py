"""VACUUM at work on the partition that is to be replaced: the server's own gives way, somebody's is named (rule 18)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from airflow_etl_provider.core.errors import LockBudgetExceeded
from airflow_etl_provider.core.load import Strategy
from tests.builders import FEBRUARY, JANUARY, Pipeline, fill, in_background, simple, wait_until


def bulky(source: Any, warehouse: Any) -> Pipeline:
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 310)
    source.run("UPDATE t SET v = repeat('x', 3000) || id; ALTER TABLE t ALTER v SET STORAGE PLAIN")
    warehouse.run("ALTER TABLE a.t ALTER v SET STORAGE PLAIN")
    pipe.load(JANUARY, FEBRUARY)
    return pipe


@pytest.fixture
def restless(warehouse18: Any) -> Iterator[None]:
    """A server whose autovacuum looks at every database each second."""
    warehouse18.run("ALTER SYSTEM SET autovacuum_naptime = '1s'")
    warehouse18.run("SELECT pg_reload_conf()")
    yield
    warehouse18.run("ALTER SYSTEM RESET autovacuum_naptime")
    warehouse18.run("SELECT pg_reload_conf()")


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE])
def test_autovacuum_gives_way(source18, warehouse18, restless, strategy):
    """It would outlast the deadline many times over, and yields to nobody who waits as briefly as we do."""
    pipe = bulky(source18, warehouse18)
    window = (JANUARY, FEBRUARY if strategy is Strategy.SWAP else JANUARY.replace(day=20))
    manifest = pipe.staged(*window)
    warehouse18.run(
        "ALTER TABLE a.t_2013_01 SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,"
        " autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)"
    )
    warehouse18.run("UPDATE a.t SET v = v || 'x'")
    wait_until(
        lambda: warehouse18.value(
            "SELECT count(*) FROM pg_locks WHERE relation = 'a.t_2013_01'::regclass"
            " AND mode = 'ShareUpdateExclusiveLock' AND granted"
        ),
        "autovacuum works on the partition",
    )
    done = pipe.publish(manifest, strategy=strategy, lock_deadline=timedelta(seconds=5))
    assert done.strategy is strategy


def test_a_vacuum_of_somebody_is_named(source18, warehouse18):
    """It is not ended; what writes in place does not wait for it."""
    pipe = bulky(source18, warehouse18)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    short: dict[str, Any] = {"lock_deadline": timedelta(milliseconds=400)}

    def vacuum() -> None:
        with warehouse18.connect(application_name="vacuum by hand") as connection:
            connection.execute("SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1")
            connection.execute("VACUUM (FREEZE) a.t_2013_01")

    with in_background(vacuum) as vacuuming:
        wait_until(
            lambda: warehouse18.value("SELECT count(*) FROM pg_stat_progress_vacuum"),
            "VACUUM works",
        )
        with pytest.raises(LockBudgetExceeded, match="vacuum by hand"):
            pipe.publish(manifest, strategy=Strategy.SWAP, **short)
        assert pipe.state(manifest.load_id) == "validated"
        assert pipe.publish(manifest, strategy=Strategy.DELETE_INSERT, **short).rows_inserted == 310
        warehouse18.run("SELECT pg_cancel_backend(pid) FROM pg_stat_progress_vacuum")
    assert isinstance(vacuuming.exception(), psycopg.errors.QueryCanceled)
