"""Runs of DAGs in this process, on a real metadata database: scheduled, by hand, as backfill, cleared.

``dag.test()`` makes manual runs only and starts each one from nothing. This does what it does, step by
step with Airflow's own parts, so that a run can also be a backfill, keep its state, and be cleared.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance, clear_task_instances
from airflow.models.variable import Variable
from airflow.models.xcom import XComModel
from airflow.sdk import DAG
from airflow.sdk.definitions import dag as sdk_dag
from airflow.sdk.execution_time import supervisor
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from sqlalchemy import select

from tests.airflow_environment import LINEAGE

Interval = tuple[datetime, datetime]
_BUNDLE = "dags-folder"


class TaskLog(io.RawIOBase):
    """Where this process logs to: one JSON object a line, as in Airflow's task log files."""

    def __init__(self) -> None:
        self._text = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._text += bytes(data)
        return len(data)

    def taken(self) -> list[dict[str, Any]]:
        """The lines since the last call."""
        text, self._text = self._text, b""
        return [json.loads(line) for line in text.decode().splitlines() if line.startswith("{")]


@dataclass
class Ran:
    """What a run of a DAG left behind."""

    dag_id: str
    run_id: str
    state: str
    log: list[dict[str, Any]]
    errors: dict[str, BaseException] = field(default_factory=dict)
    tries: list[tuple[str, str]] = field(default_factory=list)

    def xcom(self, task_id: str, map_index: int = -1) -> Any:
        """What the task returned; ``None`` if nothing."""
        return self.xcoms().get((task_id, map_index))

    def xcoms(self) -> dict[tuple[str, int], Any]:
        """The return value of every task instance."""
        with create_session() as session:
            rows = session.execute(
                select(XComModel.task_id, XComModel.map_index, XComModel.value).where(
                    XComModel.dag_id == self.dag_id,
                    XComModel.run_id == self.run_id,
                    XComModel.key == "return_value",
                )
            ).all()
        return {
            (task, index): XComModel.deserialize_value(_Row(value)) for task, index, value in rows
        }

    def task_states(self) -> dict[str, str]:
        """State by task id (of the last map index)."""
        with create_session() as session:
            rows = session.execute(
                select(TaskInstance.task_id, TaskInstance.state).where(
                    TaskInstance.dag_id == self.dag_id, TaskInstance.run_id == self.run_id
                )
            ).all()
        return {task: str(getattr(state, "value", state)) for task, state in rows}

    def error(self, task_id: str) -> str:
        """The message that the task failed with."""
        return str(self.errors[task_id])

    def events(self, logger: str = "airflow_etl_provider") -> list[str]:
        """What our own loggers said, in order."""
        return [line["event"] for line in self.log if logger in line.get("logger", "")]

    def lineage(self, task_id: str, kind: str) -> dict[str, Any]:
        """The last OpenLineage event of that type from a task."""
        return [e for e in lineage_events(self.dag_id, task_id) if e["eventType"] == kind][-1]


@dataclass
class _Row:
    value: Any


def lineage_events(dag_id: str, task_id: str | None = None) -> list[dict[str, Any]]:
    """The OpenLineage events of a DAG's tasks, oldest first."""
    lines = LINEAGE.read_text().splitlines() if LINEAGE.exists() else []
    events = [json.loads(line) for line in lines]
    return [
        event
        for event in events
        if event["job"]["name"].startswith(f"{dag_id}.")
        and (task_id is None or event["job"]["name"] == f"{dag_id}.{task_id}")
    ]


class Airflow:
    """Runs DAGs of this process."""

    def __init__(self, log: TaskLog) -> None:
        self._log = log

    def run(
        self,
        dag: DAG,
        interval: Interval | None = None,
        *,
        run_type: DagRunType = DagRunType.SCHEDULED,
        conf: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        partition_key: str | None = None,
    ) -> Ran:
        """A new run of *dag* to its end; retries do not wait."""
        self.sync(dag)
        now = datetime.now(UTC)
        run_id = run_id or f"{run_type.value}__{uuid4().hex}"
        with create_session() as session:
            _serialized(dag).create_dagrun(
                run_id=run_id,
                logical_date=None if interval is None else interval[0],
                data_interval=interval,
                run_after=now,
                run_type=run_type,
                triggered_by=DagRunTriggeredByType.TEST,
                state=DagRunState.RUNNING,
                conf=None if conf is None else dict(conf),
                partition_key=partition_key,
                session=session,
            )
        return self.resume(dag, run_id)

    def clear(self, dag: DAG, ran: Ran, *task_ids: str) -> Ran:
        """Clear tasks as the UI does (which raises the run's clear number) and run what is to run."""
        self.sync(dag)
        with create_session() as session:
            instances = [
                ti
                for ti in _run(session, dag.dag_id, ran.run_id).get_task_instances(session=session)
                if ti.task_id in task_ids
            ]
            for instance in instances:
                instance.task = _serialized(dag).get_task(instance.task_id)
            clear_task_instances(instances, session, DagRunState.RUNNING)
        return self.resume(dag, ran.run_id)

    def resume(self, dag: DAG, run_id: str) -> Ran:
        """Work off a run, as ``dag.test()`` does."""
        self._log.taken()
        errors: dict[str, BaseException] = {}
        tries: list[tuple[str, str]] = []
        with create_session() as session, _observed(errors, tries):
            run = _run(session, dag.dag_id, run_id)
            run.dag = _serialized(dag)
            idle = 0
            while run.state == DagRunState.RUNNING:
                session.expire_all()
                ready, _ = run.update_state(session=session)
                for instance in ready:
                    if instance.state != TaskInstanceState.UP_FOR_RESCHEDULE:
                        instance.try_number += 1
                    instance.state = TaskInstanceState.SCHEDULED
                    instance.scheduled_dttm = datetime.now(UTC)
                session.commit()
                scheduled = [
                    instance
                    for instance in run.get_task_instances(session=session)
                    if instance.state == TaskInstanceState.SCHEDULED
                ]
                # A pass may only carry a failure one task downstream.
                idle = 0 if scheduled else idle + 1
                assert idle <= len(dag.tasks), f"{run_id} is stuck"
                for instance in scheduled:
                    sdk_dag._run_task(ti=instance, task=dag.task_dict[instance.task_id])
            state = str(getattr(run.state, "value", run.state))
        return Ran(dag.dag_id, run_id, state, self._log.taken(), errors, tries)

    def observed(self, dag_id: str, work: Callable[[], DagRun]) -> Ran:
        """The same for what runs by itself, such as ``dag.test()``."""
        self._log.taken()
        errors: dict[str, BaseException] = {}
        tries: list[tuple[str, str]] = []
        with _observed(errors, tries):
            run = work()
        return Ran(
            dag_id,
            run.run_id,
            str(getattr(run.state, "value", run.state)),
            self._log.taken(),
            errors,
            tries,
        )

    def set_run(self, ran: Ran, **columns: Any) -> None:
        """Change the run's row in the metadata database."""
        with create_session() as session:
            run = _run(session, ran.dag_id, ran.run_id)
            for name, value in columns.items():
                setattr(run, name, value)

    def delete(self, ran: Ran) -> None:
        """Delete a run, as the UI does."""
        with create_session() as session:
            session.delete(_run(session, ran.dag_id, ran.run_id))

    def variable(self, key: str) -> str | None:
        """The Variable as the metadata database holds it."""
        with create_session() as session:
            row = session.scalar(select(Variable).where(Variable.key == key))
            return None if row is None else row.get_val()

    def set_variable(self, key: str, value: str) -> None:
        with create_session() as session:
            Variable.set(key, value, session=session)

    def delete_variables(self) -> None:
        with create_session() as session:
            for row in session.scalars(select(Variable)).all():
                session.delete(row)

    def sync(self, dag: DAG) -> None:
        with create_session() as session:
            SerializedDAG.bulk_write_to_db(_BUNDLE, None, [dag], session=session)
            SerializedDagModel.write_dag(
                LazyDeserializedDAG.from_dag(dag), bundle_name=_BUNDLE, session=session
            )


def _serialized(dag: DAG) -> SerializedDAG:
    return DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))


def _run(session: Any, dag_id: str, run_id: str) -> DagRun:
    run = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    assert run is not None
    return run


@contextmanager
def _observed(errors: dict[str, BaseException], tries: list[tuple[str, str]]) -> Iterator[None]:
    """Note what every try of every task ended with."""
    real = supervisor.run_task_in_process

    def noted(ti: Any, task: Any, client: Any = None) -> Any:
        result = real(ti, task, client)
        tries.append((ti.task_id, result.ti.state.value))
        if result.error is not None:
            errors[ti.task_id] = result.error
        return result

    with patch.object(supervisor, "run_task_in_process", noted):
        yield
