"""One run of everything under a real scheduler: catchup, a rejected audit, a mended source, a lock in the way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from demo.airflow_api import AirflowApi, DagRun, until
from tests.conftest import Database
from tests.e2e.running import RunningAirflow

PIPELINE = """
pipeline: events
stream: events
kind: events
schedule: "@monthly"
start_date: 2024-01-01
end_date: 2024-03-01
catchup: true
retries: 2
retry_delay: 1
source: {conn_id: shop, table: public.events, cursor: at}
target:
  conn_id: warehouse
  table: analytics.events
  partition: {column: at, every: month}
  lock_deadline: 1
quality:
  - {type: expect_column_values_to_not_be_null, kwargs: {column: value}}
"""
LOADER = """\
from airflow_etl_provider.factories import load_pipelines
dags = load_pipelines("pipelines")        # relative to this file
globals().update(dags)
"""
FEBRUARY = datetime(2024, 2, 1, tzinfo=UTC)
PER_MONTH = "SELECT to_char(at, 'MM'), count(*), sum(value) FROM {} GROUP BY 1 ORDER BY 1"
DONE_IN = 180.0


@dataclass(frozen=True)
class Shop:
    """A shop's database, its warehouse, and an Airflow that loads one into the other."""

    api: AirflowApi
    source: Database
    warehouse: Database

    def same(self) -> bool:
        return self.source.run(PER_MONTH.format("events")) == self.warehouse.run(
            PER_MONTH.format("analytics.events")
        )

    def run_of(self, month: datetime) -> DagRun:
        (found,) = (run for run in self.api.dag_runs("events") if run.interval_start == month)
        return found

    def wait_for(self, month: datetime) -> DagRun:
        run = self.run_of(month)
        return self.api.wait_for_run("events", run.run_id, timeout=DONE_IN)

    def tries(self, run: DagRun) -> dict[str, int]:
        return {
            task.task_id: task.try_number for task in self.api.task_instances("events", run.run_id)
        }

    def again(self, month: datetime) -> None:
        """Backfill *month* once more, and wait until its run has begun to do so."""
        before = self.run_of(month).started
        self.api.create_backfill("events", month, month, reprocess="completed")
        until(
            lambda: self.run_of(month).started != before or self.run_of(month).state != "success",
            DONE_IN,
            "the backfill to begin",
        )


@pytest.fixture(scope="module")
def shop(airflow: RunningAirflow) -> Shop:
    source, warehouse = airflow.databases["shop"], airflow.databases["warehouse"]
    source.run("CREATE TABLE events (id bigint PRIMARY KEY, at timestamptz NOT NULL, value int)")
    source.run(
        "INSERT INTO events SELECT i, timestamptz '2024-01-01 00:00+00' + i * interval '1 hour', i"
        " FROM generate_series(0, 2183) AS i"
    )
    warehouse.run("CREATE SCHEMA analytics")
    warehouse.run(
        "CREATE TABLE analytics.events (id bigint, at timestamptz NOT NULL, value int,"
        " PRIMARY KEY (id, at)) PARTITION BY RANGE (at)"
    )
    (airflow.dags / "pipelines").mkdir()
    (airflow.dags / "pipelines" / "events.yaml").write_text(PIPELINE)
    (airflow.dags / "load_pipelines.py").write_text(LOADER)
    airflow.api.wait_for_dags(["events"])
    return Shop(airflow.api, source, warehouse)


def test_a_month_is_loaded_rejected_mended_and_locked_out(shop: Shop) -> None:
    """Promises 1, 2, 5 and 6, in the order in which a user would live through them."""
    api = shop.api
    api.unpause("events")
    until(lambda: len(api.dag_runs("events")) == 3, DONE_IN, "three runs of catchup")
    for month in (1, 2, 3):
        assert shop.wait_for(datetime(2024, month, 1, tzinfo=UTC)).state == "success"
    assert shop.same()
    watermark = shop.warehouse.value("SELECT position FROM etl.streams")
    assert watermark == "2024-04-01 00:00:00+00"
    assert json.loads(api.variable("etl.watermark.events") or "{}")["value"] == watermark

    # Rows go bad in the source: February is loaded again and rejected, at once and without a retry.
    before = shop.warehouse.run(PER_MONTH.format("analytics.events"))
    shop.source.run("UPDATE events SET value = NULL WHERE id BETWEEN 800 AND 811")
    shop.again(FEBRUARY)
    rejected = shop.wait_for(FEBRUARY)
    assert rejected.state == "failed"
    assert shop.warehouse.run(PER_MONTH.format("analytics.events")) == before
    tasks = {task.task_id: task for task in api.task_instances("events", rejected.run_id)}
    assert tasks["validate"].state == "failed"
    log = api.task_log("events", rejected.run_id, "validate", tasks["validate"].try_number)
    assert "expect_column_values_to_not_be_null(value): 12 of 696 rows" in log
    assert "Traceback" not in log
    assert (
        shop.warehouse.value(
            "SELECT count(*) FROM etl.loads WHERE state = 'rejected' AND run_type = 'backfill'"
        )
        == 1
    )

    # The source is mended, the run cleared: the month is read anew. The watermark has not moved.
    shop.source.run("UPDATE events SET value = id + 1 WHERE id BETWEEN 800 AND 811")
    api.clear_run("events", rejected.run_id)
    assert shop.wait_for(FEBRUARY).state == "success"
    assert shop.same()
    assert shop.warehouse.value("SELECT position FROM etl.streams") == watermark

    # A reader holds its lock until the first try of publish has given up; the second one publishes.
    shop.source.run("UPDATE events SET value = id WHERE id BETWEEN 800 AND 811")
    tried = shop.tries(shop.run_of(FEBRUARY))["publish"]
    with shop.warehouse.connect() as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM analytics.events")
        api.clear_run("events", rejected.run_id)
        until(
            lambda: shop.tries(shop.run_of(FEBRUARY))["publish"] > tried + 1,
            DONE_IN,
            "publish to try again",
        )
        reader.execute("COMMIT")
    assert shop.wait_for(FEBRUARY).state == "success"
    assert shop.same()
    log = api.task_log("events", rejected.run_id, "publish", tried + 1)
    assert "could not get its locks on analytics.events" in log
    assert "blocked by pid" in log
    assert (
        shop.warehouse.value(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'etl:%'"
        )
        == 0
    )
