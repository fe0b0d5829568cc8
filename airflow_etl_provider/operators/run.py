"""What the operators share: the run they are in, how it is stopped, and how it is logged."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import structlog
import uuid6
from airflow.sdk.exceptions import AirflowRescheduleException
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.context import NEVER_EXPIRE

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.load import Kind, LoadState, RunInfo
from airflow_etl_provider.core.names import short_id
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.core.settle import StillSettling, Wait
from airflow_etl_provider.core.window import Interval, choose_interval, parse_moment
from airflow_etl_provider.dbapi import worker
from airflow_etl_provider.postgres.session import cancel_open_sessions
from airflow_etl_provider.postgres.staging import PostgresStaging

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from airflow_etl_provider.lineage.datasets import Lineage

LOAD_KEY = "etl_load"
WAIT_KEY = "etl_wait"
#: How long a wait holds the worker's slot, and how long it then stays away.
_PATIENCE, _AGAIN = timedelta(minutes=1), timedelta(seconds=30)
_STEP = 0.2
_PR_SET_PDEATHSIG = 1

Result = TypeVar("Result")
Choice = TypeVar("Choice", bound=StrEnum)


def die_with_supervisor() -> None:
    """Have the kernel end this task process when its supervisor is killed.

    Otherwise an orphaned task would go on beside the retry that Airflow starts. Only where Airflow runs
    the task in a process of its own, and only on Linux.
    """
    if not sys.platform.startswith("linux"):
        return
    comms = getattr(task_runner, "SUPERVISOR_COMMS", None)
    if type(comms).__name__ != "CommsDecoder":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Stopper:
    """Set by ``on_kill``: long work ends at its next step, running statements are cancelled now."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def is_set(self) -> bool:
        return self._event.is_set()

    def stop(self) -> None:
        self._event.set()
        cancel_open_sessions()
        worker.cancel_open_sessions()

    def __deepcopy__(self, memo: dict[int, object]) -> Stopper:
        """Airflow copies operators; each copy is stopped on its own."""
        return Stopper()


def in_worker(work: Callable[[], Result], cancel: Callable[[], None]) -> Result:
    """Run *work* in a thread and wait in short steps.

    Signals, and with them ``on_kill`` and timeouts, are served only between steps of the main thread,
    which a driver's blocking call would hold for as long as a statement runs. Whatever ends the waiting
    early cancels the work first.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="etl-worker") as pool:
        future = pool.submit(work)
        try:
            while not future.done():
                wait([future], timeout=_STEP)
        finally:
            if not future.done():
                cancel()
        return future.result()


def event_log(logger_name: str) -> Any:
    """A logger whose events and fields stay JSON fields in Airflow's task log."""
    return structlog.get_logger(logger_name).info


def run_info(context: Context) -> RunInfo:
    """The Airflow run of *context*."""
    dag_run, ti = context["dag_run"], context["ti"]
    run_type = dag_run.run_type
    return RunInfo(
        dag_id=ti.dag_id,
        task_id=ti.task_id,
        run_id=ti.run_id,
        # Airflow has two enums of this name whose members differ; their values agree.
        run_type=str(getattr(run_type, "value", run_type)),
        map_index=-1 if ti.map_index is None else ti.map_index,
        try_number=ti.try_number,
        clear_number=getattr(dag_run, "clear_number", None) or 0,
    )


def run_interval(
    context: Context, run: RunInfo, partition: PartitionSpec | None = None
) -> Interval:
    """The interval of this run: explicit params first, then the range of its partition, then its interval.

    :raises ConfigurationError: none of them, only half of one, or a zero-length one; a partition key that
        names no partition.
    """
    params = context.get("params") or {}
    dag_run = context["dag_run"]
    key = getattr(dag_run, "partition_key", None)
    date = getattr(dag_run, "partition_date", None)
    return choose_interval(
        param_low=_moment(params.get("window_low"), "window_low"),
        param_high=_moment(params.get("window_high"), "window_high"),
        partition=None if key is None else partition_interval(key, date, partition, run),
        interval_start=getattr(dag_run, "data_interval_start", None),
        interval_end=getattr(dag_run, "data_interval_end", None),
        backfill=run.is_backfill,
    )


def run_share(context: Context, name: str, declared: float) -> float:
    """The share that the run's param *name* says, else *declared*.

    :raises ConfigurationError: it is no number.
    """
    told = (context.get("params") or {}).get(name)
    if told is None or told == "":
        return declared
    try:
        share = float(told)
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"param {name} is {told!r}, not a share from 0 to 1", remedy="write 0.9, for instance"
        ) from None
    event_log(__name__)("this run was told otherwise", param=name, value=share, declared=declared)
    return share


def partition_interval(
    key: str, date: datetime | None, partition: PartitionSpec | None, run: RunInfo
) -> Interval:
    """The range of the target's partition that holds *date*, or without one what *key* names.

    :raises ConfigurationError: the partitioning was not declared, or *key* names no point in time.
    """
    if partition is None:
        raise ConfigurationError(
            f"the run has the partition key {key!r}, but nothing says how the target is partitioned",
            remedy="declare it: partition={'column': ..., 'every': 'day', 'timezone': ...}",
        )
    period = partition.period_of_key(key) if date is None else partition.period_holding(date)
    return Interval(
        period.start, period.end, f"partition {key!r}", moves_watermark=not run.is_backfill
    )


def explicit_window(context: Context) -> bool:
    """Whether the run's params name a window."""
    params = context.get("params") or {}
    return bool(params.get("window_low") or params.get("window_high"))


def _moment(value: object, name: str) -> datetime | None:
    return None if value is None or value == "" else parse_moment(value, f"param {name}")


def partition_spec(given: Mapping[str, Any] | PartitionSpec | None) -> PartitionSpec | None:
    """The ``partition=`` argument of an operator.

    :raises ConfigurationError: unknown keys or an unknown length.
    """
    if given is None or isinstance(given, PartitionSpec):
        return given
    unknown = set(given) - {"column", "every", "timezone"}
    if unknown or not {"column", "every"} <= set(given):
        raise ConfigurationError(
            f"partition={dict(given)!r} is not a partitioning",
            remedy="write {'column': 'time_hour', 'every': 'month', 'timezone': 'America/New_York'}",
        )
    try:
        every = Every(given["every"])
    except ValueError:
        raise ConfigurationError(
            f"partitions of one {given['every']!r} are unknown",
            remedy=f"use one of {', '.join(Every)}",
        ) from None
    return PartitionSpec(given["column"], every, given.get("timezone", "UTC"))


def load_id_for(
    context: Context, run: RunInfo, staging: PostgresStaging, *, publishes: bool = False
) -> str:
    """The load this task instance works on: minted by its first try and kept in the task state store.

    A retry meets its own load again, and so does a clear of what had not finished. A clear of what was
    staged but not published mints a new load and abandons the old one.

    :param publishes: this task publishes the load itself, so that a retry must meet it even if its
        first try had got that far.
    """
    store = context.get("task_state_store")
    kept = None if store is None else store.get(LOAD_KEY)
    if isinstance(kept, dict) and "load_id" in kept:
        load_id = str(kept["load_id"])
        state = staging.state(load_id)
        unfinished = state in (None, LoadState.STARTED, LoadState.FAILED)
        waiting = state in (LoadState.STAGED, LoadState.VALIDATED)
        same_run = kept.get("clear_number") == run.clear_number
        done = publishes and state is LoadState.PUBLISHED
        if unfinished or ((waiting or done) and same_run):
            return load_id
        if waiting:
            staging.discard(load_id, "the task was cleared: its window is loaded anew")
    load_id = str(uuid6.uuid7())
    if store is not None:
        store.set(
            LOAD_KEY,
            {"load_id": load_id, "clear_number": run.clear_number},
            retention=NEVER_EXPIRE,
        )
    return load_id


def application_name(stage: str, load_id: str | None, run: RunInfo) -> str:
    """``etl:<load> <stage> <dag>.<task>``: the load comes first, since the server cuts at 63 bytes."""
    load = "" if load_id is None else short_id(load_id)
    return f"etl:{load} {stage} {run.dag_id}.{run.task_id}"


def operator_lineage(lineage: Lineage) -> OperatorLineage[Any, Any]:
    """*lineage* as Airflow's OpenLineage provider takes it."""
    from airflow.providers.openlineage.extractors import OperatorLineage

    return OperatorLineage(inputs=lineage.inputs, outputs=lineage.outputs)


def stream_kind(kind: str) -> Kind:
    """:raises ConfigurationError: not a kind of stream."""
    return choice(Kind, kind, "kind")


def choice(among: type[Choice], value: str, name: str) -> Choice:
    """The member of *among* that an argument called *name* says.

    :raises ConfigurationError: none of them.
    """
    try:
        return among(value)
    except ValueError:
        raise ConfigurationError(
            f"{name}={value!r} is unknown", remedy=f"use one of {', '.join(among)}"
        ) from None


def settle_patience(context: Context) -> timedelta | None:
    """How long a wait may hold the worker's slot; without a place to keep it, to its end."""
    return None if context.get("task_state_store") is None else _PATIENCE


def earlier_wait(context: Context, load_id: str) -> Wait | None:
    """The wait for the settled bound that an earlier process of this try began for the load."""
    store = context.get("task_state_store")
    kept = None if store is None else store.get(WAIT_KEY)
    if not isinstance(kept, dict) or kept.get("load_id") != load_id:
        return None
    wait = kept.get("wait")
    # A retry begins its wait anew.
    same_try = kept.get("try_number") == context["ti"].try_number
    return Wait.from_json(wait) if same_try and isinstance(wait, dict) else None


def wait_outside(context: Context, load_id: str, settling: StillSettling) -> NoReturn:
    """Give the worker's slot back and come again in half a minute; the try goes on then.

    :raises AirflowRescheduleException: always.
    """
    context["task_state_store"].set(
        WAIT_KEY,
        {
            "load_id": load_id,
            "try_number": context["ti"].try_number,
            "wait": settling.wait.as_json(),
        },
    )
    event_log(__name__)(
        "the wait goes on without a worker slot",
        reason=settling.what,
        again_s=_AGAIN.total_seconds(),
    )
    raise AirflowRescheduleException(datetime.now(UTC) + _AGAIN)  # type: ignore[no-untyped-call]
