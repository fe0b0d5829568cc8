"""Rows that were set aside come back: trigger it with a stream, and with what is to be mended.

``airflow-etl dead-letters list`` shows the letters and why they were set aside.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from airflow_etl_provider.operators.dead_letters import DeadLetterReplayOperator

with DAG(
    "replay_dead_letters",
    schedule=None,
    is_paused_upon_creation=True,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=30)},
    tags=["etl", "example"],
    params={
        "stream": Param("flights", type="string", description="Whose dead letters come back."),
        "ids": Param(
            None,
            type=["null", "array"],
            items={"type": "integer"},
            description="Letters, as airflow-etl dead-letters list shows them; all that are pending by default.",
        ),
        "values": Param(
            None,
            type=["null", "object"],
            description='What columns are to hold in every row: {"carrier": "UA"}; null is NULL.',
        ),
        "corrections": Param(
            None,
            type=["null", "object"],
            description='The same for single rows, by the letter\'s id: {"7": {"carrier": "UA"}}.',
        ),
    },
):
    DeadLetterReplayOperator(
        task_id="replay", target_conn_id="etl_warehouse", stream="{{ params.stream }}"
    )
