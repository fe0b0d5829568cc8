"""Stopping a task stops its SQL, whoever stops it, and the next try loads what this one did not.

Every task here is stopped in the middle of a COPY that does not end by itself.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import psutil
import pytest

from demo.airflow_api import TaskInstance, until
from tests.builders import in_background
from tests.conftest import Database
from tests.e2e.running import RunningAirflow

ROWS = 2000
#: Half of the rows come at once; the rest waits until a sequence, which no snapshot hides, says go on.
SOURCE = f"""
    CREATE TABLE t (id bigint PRIMARY KEY, ts timestamptz NOT NULL, v text);
    INSERT INTO t SELECT i, timestamptz '2013-01-01 00:00+00' + i * interval '1 minute', 'row ' || i
        FROM generate_series(1, {ROWS}) AS i;
    CREATE SEQUENCE pace;
    CREATE FUNCTION waited(id bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$ BEGIN
        WHILE id = {ROWS // 2} AND (SELECT last_value FROM public.pace) = 1 LOOP
            PERFORM pg_sleep(0.05);
        END LOOP;
        RETURN true;
    END $$;
    CREATE VIEW slow AS SELECT id, ts, CASE WHEN waited(id) THEN v END AS v FROM t;
"""
TARGET = "CREATE TABLE a.{} (id bigint, ts timestamptz NOT NULL, v text) PARTITION BY RANGE (ts)"
STREAMS = ("task", "supervisor", "worker", "failed", "cleared", "timeout")
TIMEOUT = 10
DAGS = f"""
from datetime import timedelta
from airflow.sdk import DAG
from airflow_etl_provider.operators.extract import IncrementalExtractOperator
from airflow_etl_provider.operators.publish import PartitionSwapOperator

for name in {STREAMS}:
    with DAG(
        "stop_" + name,
        schedule=None,
        is_paused_upon_creation=False,
        params={{"window_low": "2013-01-01T00:00:00Z", "window_high": "2013-02-01T00:00:00Z"}},
        default_args={{"retries": 1, "retry_delay": timedelta(seconds=1)}},
    ):
        extract = IncrementalExtractOperator(
            task_id="extract",
            stream=name,
            kind="events",
            source_conn_id="slow",
            source="public.slow",
            target_conn_id="slow_warehouse",
            target="a." + name,
            cursor="ts",
            partition={{"column": "ts", "every": "month"}},
            execution_timeout=timedelta(seconds={TIMEOUT}) if name == "timeout" else None,
        )
        PartitionSwapOperator(task_id="publish", batch=extract.output, audit="none")
"""
BACKENDS = (
    "SELECT pid, backend_start, client_port FROM pg_stat_activity"
    " WHERE datname = current_database() AND query LIKE 'COPY%%' AND state = 'active'"
    " AND application_name LIKE 'etl:%%stop_' || %s || '.%%'"
)
#: The promise is two seconds. The assertion leaves room for a busy machine; the time is printed.
PROMISED, ALLOWED = 2.0, 10.0
DONE_IN = 120.0

Backend = tuple[int, datetime]


@dataclass(frozen=True)
class Copying:
    """A run whose extract is in the middle of its COPY: its process, and its backends on both servers."""

    airflow: RunningAirflow
    stream: str
    run_id: str
    process: psutil.Process
    backends: dict[str, set[Backend]]

    @property
    def dag_id(self) -> str:
        return f"stop_{self.stream}"

    @property
    def supervisor(self) -> psutil.Process:
        parent = self.process.parent()
        assert parent is not None
        return parent

    def extract(self) -> TaskInstance:
        tasks = self.airflow.api.task_instances(self.dag_id, self.run_id)
        return next(task for task in tasks if task.task_id == "extract")

    def alive(self) -> dict[str, set[Backend]]:
        """Those of its backends that are still there."""
        found = {}
        for name, known in self.backends.items():
            rows = self.airflow.databases[name].run(
                "SELECT pid, backend_start FROM pg_stat_activity WHERE datname = current_database()"
            )
            if still := known & set(rows):
                found[name] = still
        return found

    def is_stopped_by(self, stop: Callable[[], object], dies_in: float = ALLOWED) -> None:
        """*stop* it: its process ends, no statement survives that by more than promised, nothing is kept.

        The next try, which would end what it finds, does not start before that is seen.
        """
        self.airflow.api.pause(self.dag_id)
        began = time.monotonic()
        with in_background(stop) as stopping:
            until(lambda: not _lives(self.process), dies_in, "the end of the task's process", 0.02)
            died = time.monotonic()
            until(lambda: not self.alive(), ALLOWED, f"the end of backends {self.backends}", 0.02)
            gone = time.monotonic()
        stopping.result()
        print(
            f"{self.stream}: process gone {died - began:.1f} s after the stop, "
            f"its statements {gone - died:.1f} s after the process (promised {PROMISED:g})"
        )
        warehouse = self.airflow.databases["slow_warehouse"]
        assert staged(warehouse, self.stream) == []
        assert warehouse.value(f"SELECT count(*) FROM a.{self.stream}") == 0
        self.airflow.api.unpause(self.dag_id)

    def converges(self) -> None:
        """Once the source is quick, the run ends with exactly the rows of the source."""
        source, warehouse = (self.airflow.databases[name] for name in ("slow", "slow_warehouse"))
        source.run("SELECT setval('pace', 2)")
        run = self.airflow.api.wait_for_run(self.dag_id, self.run_id, DONE_IN)
        assert run.state == "success", self.log()
        rows = "SELECT count(*), sum(id), min(v), max(v) FROM {}"
        assert warehouse.run(rows.format(f"a.{self.stream}")) == source.run(rows.format("t"))
        assert staged(warehouse, self.stream) == []
        assert warehouse.run(
            "SELECT state, count(*) FROM etl.loads WHERE stream = %s GROUP BY 1", (self.stream,)
        ) == [("published", 1)]

    def log(self, try_number: int | None = None) -> str:
        number = try_number or self.extract().try_number
        return self.airflow.api.task_log(self.dag_id, self.run_id, "extract", number)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def staged(warehouse: Database, stream: str) -> list[tuple[str]]:
    """Tables of a stream in the staging schema that others can see: those that were committed."""
    return warehouse.run(
        "SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace('etl_staging')"
        " AND relkind IN ('r', 'p') AND relname LIKE %s || '%%'",
        (stream,),
    )


@pytest.fixture(scope="module")
def prepared(airflow: RunningAirflow) -> RunningAirflow:
    airflow.databases["slow"].run(SOURCE)
    airflow.databases["slow_warehouse"].run("CREATE SCHEMA a")
    for stream in STREAMS:
        airflow.databases["slow_warehouse"].run(TARGET.format(stream))
    (airflow.dags / "stopping.py").write_text(DAGS)
    airflow.api.wait_for_dags([f"stop_{stream}" for stream in STREAMS])
    return airflow


@pytest.fixture
def copying(prepared: RunningAirflow, request: pytest.FixtureRequest) -> Iterator[Copying]:
    """A run of the test's own DAG, in the middle of its COPY on both servers."""
    stream = request.param
    source, warehouse = (prepared.databases[name] for name in ("slow", "slow_warehouse"))
    source.run("SELECT setval('pace', 1)")
    run = prepared.api.trigger(f"stop_{stream}")
    found: dict[str, list[tuple[int, datetime, int]]] = {}

    def both_copy() -> bool:
        found["slow"] = source.run(BACKENDS, (stream,))
        found["slow_warehouse"] = warehouse.run(BACKENDS, (stream,))
        return all(found.values())

    try:
        until(both_copy, DONE_IN, f"COPY of {stream} on both servers", 0.05)
        ports = {port for rows in found.values() for _, _, port in rows}
        owners = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.laddr and connection.laddr.port in ports
        }
        (owner,) = (pid for pid in owners if pid is not None)
        yield Copying(
            prepared,
            stream,
            run.run_id,
            psutil.Process(owner),
            {name: {(pid, start) for pid, start, _ in rows} for name, rows in found.items()},
        )
    finally:
        source.run("SELECT setval('pace', 2)")


def kill(process: psutil.Process) -> Callable[[], None]:
    return lambda: process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("copying", ["task"], indirect=True)
def test_the_task_process_is_killed(copying: Copying) -> None:
    """Both servers notice that their client is gone; the retry loads the window."""
    copying.is_stopped_by(kill(copying.process))
    copying.converges()
    assert copying.extract().try_number == 2


@pytest.mark.parametrize("copying", ["supervisor"], indirect=True)
def test_the_supervisor_is_killed(copying: Copying) -> None:
    """The kernel ends the task with it, so that no orphan works beside the retry."""
    supervisor = copying.supervisor
    assert "LocalExecutor" in " ".join(supervisor.cmdline())
    copying.is_stopped_by(kill(supervisor), dies_in=5)
    copying.converges()
    assert copying.extract().try_number == 2


@pytest.mark.parametrize("copying", ["failed"], indirect=True)
def test_a_user_marks_the_running_task_failed(copying: Copying) -> None:
    """The statements are cancelled, the task ends; a clear loads the window."""
    api = copying.airflow.api
    copying.is_stopped_by(
        lambda: api.set_task_state(copying.dag_id, copying.run_id, "extract", "failed")
    )
    until(lambda: api.dag_run(copying.dag_id, copying.run_id).finished, DONE_IN, "a failed run")
    assert "stopped on request" in copying.log()
    api.clear_run(copying.dag_id, copying.run_id)
    copying.converges()


@pytest.mark.parametrize("copying", ["cleared"], indirect=True)
def test_a_user_clears_the_running_task(copying: Copying) -> None:
    """The first try ends before the second one can get in its way."""
    api = copying.airflow.api
    copying.is_stopped_by(lambda: api.clear_run(copying.dag_id, copying.run_id))
    copying.converges()
    assert copying.extract().try_number == 2


@pytest.mark.parametrize("copying", ["timeout"], indirect=True)
def test_the_execution_timeout_passes(copying: Copying) -> None:
    """It is served in the middle of a COPY, and the retry loads the window."""
    copying.is_stopped_by(lambda: None, dies_in=TIMEOUT + ALLOWED)
    copying.converges()
    assert "AirflowTaskTimeout" in copying.log(1)


@pytest.mark.parametrize("copying", ["worker"], indirect=True)
def test_the_whole_machine_of_the_task_is_lost(copying: Copying) -> None:
    """Scheduler, worker and task are killed at once; the next scheduler runs the task again."""
    process = copying.airflow.process
    copying.is_stopped_by(lambda: process.kill_component("scheduler"))
    process.start_component("scheduler")
    copying.converges()
