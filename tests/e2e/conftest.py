"""One real Airflow for all end-to-end tests; each module brings its own tables and DAG files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.airflow_process import AirflowProcess
from demo.embedded import EmbeddedPostgres
from tests.conftest import drop, new_database
from tests.e2e.running import RunningAirflow

#: Databases by Airflow connection; those of one module are its own.
CONNECTIONS = ("shop", "warehouse", "slow", "slow_warehouse")
#: A new DAG file and a killed task are noticed in seconds.
SETTINGS = {
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
}


@pytest.fixture(scope="session")
def airflow(
    server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningAirflow]:
    home = tmp_path_factory.mktemp("airflow")
    dags = home / "dags"
    dags.mkdir()
    databases = {name: new_database(server, name) for name in CONNECTIONS}
    metadata = new_database(server, "airflow")
    process = AirflowProcess(
        home / "home",
        metadata_url=server.url(metadata.name, "postgresql+psycopg2"),
        dags=dags,
        connections={name: database.airflow_uri() for name, database in databases.items()},
        lineage=home / "lineage.jsonl",
        environment=SETTINGS,
    )
    with process:
        yield RunningAirflow(process, dags, databases)
    for database in (*databases.values(), metadata):
        drop(database)
