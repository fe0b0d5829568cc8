"""The demo's story: load a year of flights, load two months again, prove that nothing was lost."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import NoReturn
from zoneinfo import ZoneInfo

import httpx
import psycopg

from demo import flights, report
from demo.airflow_api import AirflowApi, AirflowRefused, DagRun, NotInTime, TaskInstance, until
from demo.airflow_process import AirflowDidNotStart, AirflowProcess, end_leftovers
from demo.embedded import EmbeddedPostgres, PostgresDidNotStart, free_port

DAG, STREAM = "flights", "flights"
REFERENCE_DAG = "reference"
NEW_YORK = ZoneInfo(flights.TIMEZONE)
MONTH_STARTS = [datetime(2013, month, 1, tzinfo=NEW_YORK) for month in range(1, 13)]
MONTHS = list(pairwise([*MONTH_STARTS, datetime(2014, 1, 1, tzinfo=NEW_YORK)]))
AGAIN = (MONTH_STARTS[5], MONTH_STARTS[6])  # June and July are loaded a second time
MAX_ACTIVE_RUNS = 4
PATIENCE = 600.0  # seconds that one stage of the story may take

_REMEDY = "run the same command again, it goes on from here"

Window = tuple[datetime, datetime]


class Died(RuntimeError):
    """Something the story needs was killed under it."""


class DemoInUse(RuntimeError):
    """Another process works in the same state directory."""


FAILURES = (
    AirflowDidNotStart,
    AirflowRefused,
    DemoInUse,
    Died,
    FileNotFoundError,
    NotInTime,
    PostgresDidNotStart,
    flights.DataNotFound,
    httpx.TransportError,
    psycopg.OperationalError,
)


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that runs: three databases on one server, and an Airflow."""

    home: Path
    source: str
    warehouse: str
    postgres: EmbeddedPostgres
    airflow: AirflowProcess

    def check(self) -> None:
        """Raise rather than wait for what cannot happen any more."""
        if not self.postgres.running:
            raise Died(f"PostgreSQL was killed; {_REMEDY}")
        if not self.airflow.running:
            raise Died(f"a process of Airflow was killed; {_REMEDY}\n{self.airflow.log_tail(5)}")


@dataclass(slots=True)
class Progress:
    """Prints what happens with the seconds since the start, and every finished run once."""

    started: float = field(default_factory=time.monotonic)
    seen: set[tuple[str, str, datetime | None]] = field(default_factory=set)

    def say(self, text: str) -> None:
        """One line."""
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)

    def pass_over(self, runs: Sequence[DagRun]) -> None:
        """Count *runs* that ended earlier as already told."""
        self.seen |= {_identity(run) for run in runs if run.finished}

    def tell(self, stage: Stage, runs: Sequence[DagRun]) -> None:
        """A line for each run that has finished since the last call."""
        for run in runs:
            if run.finished and _identity(run) not in self.seen:
                self.seen.add(_identity(run))
                self.say(_sentence(stage, run))


@contextmanager
def stage(
    home: Path, dags: Path, progress: Progress, *, port: int | None = None, triggerer: bool = False
) -> Iterator[Stage]:
    """Have everything running, from whatever an earlier, killed demo left; stop it at the end."""
    with _alone(home):
        end_leftovers(home / "airflow")
        with EmbeddedPostgres(home / "postgres") as postgres:
            for name in ("airflow", "source", "warehouse"):
                postgres.create_database(name)
            progress.say("PostgreSQL is up")
            rows = flights.load_source(postgres.conninfo("source"))
            flights.prepare_warehouse(postgres.conninfo("warehouse"))
            progress.say(f"the source holds {rows['flights']:,} flights, the warehouse is prepared")
            airflow = AirflowProcess(
                home / "airflow",
                metadata_url=postgres.url("airflow", scheme="postgresql+psycopg2"),
                dags=dags,
                connections={
                    "etl_source": postgres.airflow_uri("source"),
                    "etl_warehouse": postgres.airflow_uri("warehouse"),
                },
                lineage=home / "lineage.jsonl",
                port=port,
                triggerer=triggerer,
            )
            with airflow:
                progress.say("Airflow is up")
                running = Stage(
                    home,
                    postgres.conninfo("source"),
                    postgres.conninfo("warehouse"),
                    postgres,
                    airflow,
                )
                try:
                    yield running
                except (AirflowRefused, httpx.TransportError, psycopg.OperationalError):
                    running.check()  # whoever was killed is the reason, not what it answered
                    raise
                except NotInTime:
                    _print_failures(running)
                    raise
                progress.say("stopping")


def run(home: Path, dags: Path, port: int | None = None) -> int:
    """Tell the whole story; 0 when source and warehouse hold the same at its end."""
    progress = Progress()
    with stage(home, dags, progress, port=port) as running:
        good = _tell(running, progress)
    return 0 if good else 1


def serve(home: Path, dags: Path, port: int | None = None) -> NoReturn:
    """Tell the story, then keep everything running and print where to look, until Ctrl-C."""
    progress = Progress()
    port = free_port(8080) if port is None else port
    with stage(home, dags, progress, port=port, triggerer=True) as running:
        progress.say(f"Airflow is at {running.airflow.url}, to watch while it works")
        _tell(running, progress)
        progress.say(f"open {running.airflow.url}  (Ctrl-C stops everything)")
        while True:
            running.check()
            time.sleep(1)


def _tell(running: Stage, progress: Progress) -> bool:
    """Catch up, load the reference tables, load two months again, and compare."""
    api = running.airflow.api
    api.wait_for_dags([DAG, REFERENCE_DAG])
    progress.pass_over([*api.dag_runs(DAG), *api.dag_runs(REFERENCE_DAG)])
    api.unpause(DAG)
    api.unpause(REFERENCE_DAG)
    _wait_for_catchup(running, progress)
    _load_reference(running, progress)
    _load_missing(running, progress)
    proof = _load_again(running, progress)
    progress.say("comparing source and warehouse")
    return _print_report(running, proof)


def _load_reference(running: Stage, progress: Progress) -> None:
    """Have the reference tables loaded: by the run that unpausing made, or else by hand."""
    api = running.airflow.api
    lines = report.compare_reference(running.source, running.warehouse)
    if all(line.load for line in lines):
        return
    progress.say("loading the reference tables by hand")
    made = api.trigger(REFERENCE_DAG)

    def ended() -> bool:
        running.check()
        return api.dag_run(REFERENCE_DAG, made.run_id).finished

    until(ended, PATIENCE, "the run of the reference tables", interval=1)
    progress.tell(running, [api.dag_run(REFERENCE_DAG, made.run_id)])


def _wait_for_catchup(running: Stage, progress: Progress) -> None:
    """Airflow's own catchup makes a run per month; return when all of them have ended."""
    api = running.airflow.api
    begun = _monthly_runs(api)
    unfinished = [run for run in begun if not run.finished]
    if len(begun) < len(MONTHS):
        progress.say(f"catching up: {len(MONTHS)} months, {MAX_ACTIVE_RUNS} at a time")
    elif unfinished:
        progress.say(f"{len(unfinished)} monthly runs were left unfinished; they go on")
    else:
        progress.say(f"all {len(MONTHS)} monthly runs have ended in an earlier demo")

    def ended() -> bool:
        running.check()
        monthly, reference = _monthly_runs(api), api.dag_runs(REFERENCE_DAG)
        progress.tell(running, [*monthly, *reference])
        return len(monthly) == len(MONTHS) and all(run.finished for run in [*monthly, *reference])

    until(ended, PATIENCE, "the monthly and the reference runs", interval=1)


def _load_missing(running: Stage, progress: Progress) -> None:
    """Backfill the months that the ledger does not know to be published."""
    missing = report.uncovered(running.warehouse, STREAM, MONTHS)
    if not missing:
        progress.say("every month is loaded")
    for first, last in _ranges(missing):
        progress.say(f"not loaded yet: {first:%B} to {last:%B}; backfilling")
        _backfill(running, progress, first, last)


def _load_again(running: Stage, progress: Progress) -> dict[str, report.Watermark]:
    """Backfill June and July once per state directory; the watermark before and after."""
    path = running.home / "watermark-proof.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    proof = {moment: report.Watermark(**value) for moment, value in kept.items()}
    if "after" in proof:
        progress.say(f"an earlier demo has loaded {_span(*AGAIN)} a second time")
        return proof
    if "before" not in proof:
        proof["before"] = _watermark(running)
        _write_proof(path, proof)
    if not _loaded_again(running.airflow.api):
        progress.say(f"loading {_span(*AGAIN)} again by a backfill")
        _backfill(running, progress, *AGAIN)
    proof["after"] = _watermark(running)
    _write_proof(path, proof)
    return proof


def _loaded_again(api: AirflowApi) -> bool:
    """Whether an earlier demo made the backfill of June and July, and its runs too."""
    made = any((backfill.from_date, backfill.to_date) == AGAIN for backfill in api.backfills(DAG))
    runs = [run for run in _monthly_runs(api) if run.logical_date in AGAIN]
    return made and all(run.run_type == "backfill" for run in runs)


def _backfill(running: Stage, progress: Progress, first: datetime, last: datetime) -> None:
    """Run the months from *first* to *last* again, whatever became of them before."""
    api = running.airflow.api
    until(  # Airflow allows one at a time and notices the end of one every 30 s
        lambda: all(backfill.completed for backfill in api.backfills(DAG)),
        PATIENCE,
        f"Airflow to close the unfinished backfill of {DAG} (is it paused?)",
        interval=1,
    )
    api.create_backfill(DAG, first, last, reprocess="completed", max_active_runs=MAX_ACTIVE_RUNS)

    def ended() -> bool:
        running.check()
        runs = [run for run in _monthly_runs(api) if first <= (run.logical_date or last) <= last]
        progress.tell(running, runs)
        return all(run.finished for run in runs)

    until(ended, PATIENCE, f"the backfill of {_span(first, last)}", interval=1)


def _print_report(running: Stage, proof: dict[str, report.Watermark]) -> bool:
    months = report.compare_months(running.source, running.warehouse)
    reference = report.compare_reference(running.source, running.warehouse)
    lines = [*months, *reference]
    print()
    print(report.render(report.HEADINGS, [line.cells for line in lines]))
    now, before, after = _watermark(running), proof["before"], proof["after"]
    unmoved = before == after and before.ledger is not None
    print()
    print(f"watermark  Variable etl.watermark.{STREAM}: {now.variable}")
    print(f"           ledger etl.streams.position:  {now.ledger}")
    print(f"           before the backfill of {_span(*AGAIN)}: {before.ledger}")
    print(f"           after it: {after.ledger}  ({'unmoved' if unmoved else 'IT MOVED'})")
    lineage = running.home / "lineage.jsonl"
    events = lineage.read_bytes().count(b"\n") if lineage.exists() else 0
    print(f"lineage    {events:,} OpenLineage events in {lineage}")
    unequal = [line.name for line in lines if not line.equal]
    complete = len(months) == len(MONTHS)
    print()
    if unequal or not complete:
        print(f"source and warehouse DIFFER: {', '.join(unequal) or 'months are missing'}")
        _print_failures(running)
    else:
        print(
            f"source and warehouse are equal: {sum(line.target.rows for line in months):,} flights"
        )
    return complete and not unequal and unmoved


def _print_failures(running: Stage) -> None:
    """The end of the log of every failed task."""
    api = running.airflow.api
    for dag_id in (DAG, REFERENCE_DAG):
        for run in api.dag_runs(dag_id):
            for task in _failed_tasks(api, run):
                log = api.task_log(dag_id, run.run_id, task.task_id, task.try_number)
                tail = "\n".join(log.splitlines()[-5:])
                print(f"--- {dag_id} {run.run_id} {task.task_id}\n{tail}")


def _failed_tasks(api: AirflowApi, run: DagRun) -> list[TaskInstance]:
    if run.state != "failed":
        return []
    return [task for task in api.task_instances(run.dag_id, run.run_id) if task.state == "failed"]


def _watermark(running: Stage) -> report.Watermark:
    variable = running.airflow.api.variable(f"etl.watermark.{STREAM}")
    return report.Watermark.read(running.warehouse, STREAM, variable)


def _write_proof(path: Path, proof: dict[str, report.Watermark]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({moment: asdict(value) for moment, value in proof.items()}))
    fresh.rename(path)


def _monthly_runs(api: AirflowApi) -> list[DagRun]:
    """The runs of the story's months, and not those a visitor of the UI has started."""
    return [run for run in api.dag_runs(DAG) if run.logical_date in MONTH_STARTS]


def _ranges(missing: Sequence[Window]) -> list[Window]:
    """First and last month start of each unbroken row of months."""
    ranges: list[Window] = []
    previous_end: datetime | None = None
    for low, high in missing:
        if low == previous_end:
            ranges[-1] = (ranges[-1][0], low)
        else:
            ranges.append((low, low))
        previous_end = high
    return ranges


def _span(first: datetime, last: datetime) -> str:
    return f"{first:%B}" if first == last else f"{first:%B} to {last:%B}"


def _identity(run: DagRun) -> tuple[str, str, datetime | None]:
    """A run that was cleared and ran again is told again."""
    return run.dag_id, run.run_id, run.ended


def _sentence(running: Stage, run: DagRun) -> str:
    rows = report.published_rows(running.warehouse, run.dag_id, run.run_id)
    name = ""
    if run.dag_id == DAG and run.logical_date is not None:
        name = f"{run.logical_date.astimezone(NEW_YORK):%B %Y} "
    done = "nothing published" if rows is None else f"{rows:,} rows"
    seconds = "" if run.seconds is None else f" in {run.seconds:.1f} s"
    return f"{run.dag_id}: {name}{run.state} ({run.run_type}), {done}{seconds}"


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the state directory; the kernel lets go of it however this process ends."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoInUse(f"another demo is at work in {home}; stop it first") from None
        yield
