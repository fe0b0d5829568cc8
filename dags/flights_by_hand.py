"""The pipeline of pipelines/flights.yaml assembled by hand, for DAGs that need tasks of their own.

It loads the same stream into the same table: both may exist, and a month that both load is there once.
"""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from airflow.sdk import DAG, CronDataIntervalTimetable

from airflow_etl_provider.operators.extract import IncrementalExtractOperator
from airflow_etl_provider.operators.publish import PartitionSwapOperator
from airflow_etl_provider.operators.validate import QualityValidationOperator

ZONE = "America/New_York"

with DAG(
    "flights_by_hand",
    # A cron string alone would give intervals that hold no time.
    schedule=CronDataIntervalTimetable("@monthly", timezone=ZONE),
    start_date=datetime(2013, 1, 1, tzinfo=ZoneInfo(ZONE)),
    end_date=datetime(2013, 12, 1, tzinfo=ZoneInfo(ZONE)),
    catchup=True,
    max_active_runs=4,
    is_paused_upon_creation=True,
    default_args={"retries": 3, "retry_exponential_backoff": 2.0},
    tags=["etl", "example"],
):
    extract = IncrementalExtractOperator(
        task_id="extract",
        stream="flights",
        kind="events",
        source_conn_id="etl_source",
        source="public.flights",
        target_conn_id="etl_warehouse",
        target="analytics.flights",
        cursor="time_hour",
        partition={"column": "time_hour", "every": "month", "timezone": ZONE},
        timezone=ZONE,
    )
    validate = QualityValidationOperator(
        task_id="validate",
        batch=extract.output,
        expectations=[
            {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "carrier"}}
        ],
    )
    publish = PartitionSwapOperator(task_id="publish", batch=validate.output)
    extract >> validate >> publish
