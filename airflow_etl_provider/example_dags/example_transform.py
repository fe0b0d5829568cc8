"""Departures and the age of planes: transforms between staging and audit, by SQL and by Python.

Needs the connections ``etl_source`` (with ``public.flights`` and ``public.planes`` of the demo) and ``etl_warehouse``
(with ``analytics.airlines``), and there::

    CREATE TABLE analytics.departures (
        time_hour timestamptz NOT NULL, carrier text NOT NULL, airline text, flight int NOT NULL, delay int,
        PRIMARY KEY (time_hour, carrier, flight)
    ) PARTITION BY RANGE (time_hour);
    CREATE TABLE analytics.plane_ages (
        tailnum text PRIMARY KEY, manufacturer text, age int
    );
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from airflow.sdk import DAG, CronDataIntervalTimetable, TaskGroup

from airflow_etl_provider.operators.extract import IncrementalExtractOperator
from airflow_etl_provider.operators.publish import PartitionSwapOperator
from airflow_etl_provider.operators.transform import TransformOperator
from airflow_etl_provider.operators.validate import QualityValidationOperator

if TYPE_CHECKING:
    import pyarrow

ZONE = "America/New_York"

#: The batch is the relation ``batch``; airlines is a table of the warehouse.
DEPARTURES = """
    SELECT b.time_hour, b.carrier, a.name AS airline, b.flight, round(b.dep_delay)::int AS delay
    FROM batch AS b
    LEFT JOIN analytics.airlines AS a USING (carrier)
    WHERE b.dep_time IS NOT NULL AND b.origin = :origin
"""


def with_age(batch: pyarrow.RecordBatch, year: int) -> pyarrow.RecordBatch:
    """What SQL could say as well: it shows the shape of a callable."""
    import pyarrow
    import pyarrow.compute as compute

    built = batch.column("year")
    return pyarrow.record_batch(
        {
            "tailnum": batch.column("tailnum"),
            "manufacturer": compute.utf8_capitalize(batch.column("manufacturer")),
            "age": compute.subtract(year, built).cast(pyarrow.int32()),
        }
    )


with DAG(
    "example_transform",
    schedule=CronDataIntervalTimetable("@monthly", timezone=ZONE),
    start_date=datetime(2013, 1, 1, tzinfo=ZoneInfo(ZONE)),
    end_date=datetime(2013, 12, 1, tzinfo=ZoneInfo(ZONE)),
    catchup=False,
    is_paused_upon_creation=True,
    default_args={"retries": 3, "retry_exponential_backoff": 2.0},
    tags=["etl", "example"],
):
    with TaskGroup("departures"):
        extract = IncrementalExtractOperator(
            task_id="extract",
            stream="departures",
            kind="events",
            source_conn_id="etl_source",
            source="public.flights",
            target_conn_id="etl_warehouse",
            target="analytics.departures",
            cursor="time_hour",
            partition={"column": "time_hour", "every": "month", "timezone": ZONE},
            timezone=ZONE,
            stage_as="source",  # the SELECT reads columns that the target has not
        )
        transform = TransformOperator(
            task_id="transform",
            batch=extract.output,
            sql=DEPARTURES,
            parameters={"origin": "JFK"},
        )
        validate = QualityValidationOperator(
            task_id="validate",
            batch=transform.output,
            expectations=[
                {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "airline"}}
            ],
        )
        publish = PartitionSwapOperator(task_id="publish", batch=validate.output)
        extract >> transform >> validate >> publish

    with TaskGroup("planes"):
        planes = IncrementalExtractOperator(
            task_id="extract",
            stream="plane_ages",
            kind="snapshots",
            source_conn_id="etl_source",
            source="public.planes",
            target_conn_id="etl_warehouse",
            target="analytics.plane_ages",
            window="full",
            keys=["tailnum"],
            stage_as="source",
        )
        ages = TransformOperator(
            task_id="transform",
            batch=planes.output,
            python_callable=with_age,
            parameters={"year": 2013},
            on_error="set_aside_row",
            max_dead_share=0.01,
        )
        seen = QualityValidationOperator(
            task_id="validate",
            batch=ages.output,
            expectations=[
                {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "tailnum"}}
            ],
        )
        done = PartitionSwapOperator(task_id="publish", batch=seen.output)
        planes >> ages >> seen >> done
