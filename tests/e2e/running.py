"""An Airflow that runs, as the end-to-end tests see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from demo.airflow_api import AirflowApi
from demo.airflow_process import AirflowProcess
from tests.conftest import Database


@dataclass(frozen=True)
class RunningAirflow:
    """An Airflow, its DAG folder, and the database behind each of its connections."""

    process: AirflowProcess
    dags: Path
    databases: Mapping[str, Database]

    @property
    def api(self) -> AirflowApi:
        return self.process.api
