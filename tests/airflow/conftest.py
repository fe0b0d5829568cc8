"""A real Airflow in this process, and a source and a warehouse to work on."""

from __future__ import annotations

from tests import airflow_environment  # isort: skip  (before anything imports Airflow)

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from airflow_etl_provider.operators import metrics
from demo.embedded import EmbeddedPostgres
from tests.airflow.runs import Airflow, TaskLog
from tests.airflow.shop import Shop
from tests.conftest import Database, new_database

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Great Expectations imports modules that Python calls deprecated."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning"))


@pytest.fixture(scope="session")
def _task_log() -> TaskLog:
    return TaskLog()


@pytest.fixture(scope="session")
def _metadata(_task_log: TaskLog) -> None:
    """The metadata database, made once, and logs as a worker writes them."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.sdk.log import configure_logging
    from airflow.utils.db import initdb

    configure_logging(json_output=True, output=_task_log)  # type: ignore[arg-type]
    initdb()
    DagBundlesManager().sync_bundles_to_db()


@pytest.fixture
def airflow(_metadata: None, _task_log: TaskLog) -> Iterator[Airflow]:
    running = Airflow(_task_log)
    # A task's run leaves a handler behind that asks the task to stop and swallows the signal.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield running
    for number, handler in handlers.items():
        signal.signal(number, handler)
    running.delete_variables()


@pytest.fixture(scope="session")
def _databases(server: EmbeddedPostgres) -> tuple[Database, Database]:
    """Made once: emptying a database takes a small part of the time of making one."""
    return new_database(server, "source"), new_database(server, "warehouse")


@pytest.fixture
def shop(
    _databases: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch, airflow: Airflow
) -> Shop:
    """Three months of orders in a source, an empty partitioned table in a warehouse."""
    source, warehouse = _databases
    for database in (source, warehouse):
        empty(database)
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", source.airflow_uri())
    monkeypatch.setenv("AIRFLOW_CONN_DWH", warehouse.airflow_uri())
    return Shop(source, warehouse, airflow)


def empty(database: Database) -> None:
    """Drop every schema of *database*, and whoever a failed test left in the way."""
    database.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    schemas = database.run(
        "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
    )
    for (schema,) in schemas:
        database.run(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    database.run("CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC")


@pytest.fixture
def failing_writes(monkeypatch: pytest.MonkeyPatch, airflow: Airflow) -> list[int]:
    """As many writes of Variables as there are items in it end in an answer 503 of the API server."""
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse, PutVariable
    from airflow.sdk.execution_time.supervisor import InProcessSupervisorComms

    pending: list[int] = []
    send = InProcessSupervisorComms.send

    def answer(self: Any, msg: Any) -> Any:
        if isinstance(msg, PutVariable) and pending:
            pending.pop()
            # As the client in a worker does, after its own retries.
            raise AirflowRuntimeError(
                ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": 503})
            )
        return send(self, msg)

    monkeypatch.setattr(InProcessSupervisorComms, "send", answer)
    return pending


__all__ = ["airflow_environment"]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, dict[str, str]]]:
    """What was sent to Airflow's stats interface by us."""
    found: list[tuple[str, int, dict[str, str]]] = []

    def incr(name: str, count: int = 1, *, tags: dict[str, str]) -> None:
        found.append((name, count, tags))

    monkeypatch.setattr(metrics.stats, "incr", incr)
    return found
