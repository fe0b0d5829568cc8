"""Somebody has locked the target against everybody: no publish waits beyond its deadline, and who it was is named."""

from __future__ import annotations

from datetime import timedelta

import pytest

from airflow_etl_provider.core.errors import LockBudgetExceeded
from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.postgres import survey
from tests.builders import FEBRUARY, JANUARY, fill, in_background, reader, simple

SHORT = {"lock_budget": timedelta(milliseconds=100), "lock_deadline": timedelta(milliseconds=400)}
#: Many times as long as anything here may wait.
PATIENCE = 20


@pytest.mark.parametrize("table", ["a.t", "a.t_2013_01", "a.rest"])
@pytest.mark.parametrize(
    "strategy",
    [Strategy.AUTO, Strategy.DELETE_INSERT, Strategy.SWAP_MERGE, Strategy.APPEND],
)
def test_the_one_who_has_locked_it_is_named(source18, warehouse18, monkeypatch, strategy, table):
    """While the target is looked at as while it is written; the load stays validated."""
    monkeypatch.setattr(survey, "REBUILD_ROWS", 1)
    pipe = simple(source18, warehouse18)
    warehouse18.run("CREATE TABLE a.rest PARTITION OF a.t DEFAULT")
    fill(source18, JANUARY, FEBRUARY, 31)
    first = JANUARY + timedelta(days=10)
    pipe.load(JANUARY, first)
    source18.run("INSERT INTO t VALUES (99, '2013-02-01Z', 'needs a partition')")
    manifest = pipe.staged(first, FEBRUARY + timedelta(days=1), run_type="backfill")
    with (
        reader(warehouse18, f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE", "by hand") as holder,
        in_background(lambda: pipe.publish(manifest, strategy=strategy, **SHORT)) as publishing,
    ):
        pid = holder.info.backend_pid
        try:
            error = publishing.exception(PATIENCE)
        finally:
            holder.rollback()
    assert isinstance(error, LockBudgetExceeded)
    assert f"pid {pid}" in str(error)
    assert "by hand" in str(error)
    assert "stays validated" in (error.remedy or "")
    assert pipe.state(manifest.load_id) == "validated"
    pipe.publish(manifest, strategy=strategy, **SHORT)
