"""A real Airflow, all of its processes, for the demo and the end-to-end tests."""

from __future__ import annotations

import atexit
import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from demo.airflow_api import AirflowApi
from demo.embedded import HOST, free_port

MIGRATE = ("db", "migrate")
COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "api-server": ("api-server",),
    "scheduler": ("scheduler",),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer",),
}
# What the demo asks of any Airflow it runs in, here or in docker-compose.yaml.
SETTINGS: Mapping[str, str] = {
    "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
    "AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD": "True",
    "AIRFLOW__OPENLINEAGE__NAMESPACE": "airflow-etl-demo",
    # How soon the tasks of a killed worker, and the queue of a killed scheduler, are run again.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "30",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    "GX_ANALYTICS_ENABLED": "false",
}


class AirflowDidNotStart(RuntimeError):
    """A component ended or stayed unhealthy; the message carries the end of the logs."""


@dataclass(frozen=True, slots=True)
class Component:
    """A started process: the leader of a session that all of its descendants stay in."""

    name: str
    pid: int
    started: float

    def members(self) -> list[psutil.Process]:
        """Who of the session is alive, none once the number belongs to somebody else.

        Airflow's tasks leave the process group but not the session, and the kernel does not
        hand out a session's number again while a member lives. A leader with another start
        time is therefore a stranger with a recycled number, and so is its session.
        """
        with suppress(psutil.NoSuchProcess):
            if abs(psutil.Process(self.pid).create_time() - self.started) > 1:
                return []
        found = []
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
                ours = os.getsid(process.pid) == self.pid
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


class AirflowProcess:
    """An Airflow with LocalExecutor whose processes belong to this one.

    Everything is configured through the environment, so no file of a user's own Airflow is
    read. The API listens on the loopback interface only. Everything started is stopped at the
    latest when this process exits, and ``start`` first ends what a killed owner of the same
    home left behind.

    :param home: ``AIRFLOW_HOME``; logs, keys and the list of started processes live there.
    :param metadata_url: SQLAlchemy URL of the metadata database.
    :param dags: folder of the DAG files.
    :param connections: connection URI by connection id.
    :param lineage: file to which OpenLineage events are appended; None switches them off.
    :param port: port of API and UI; default a free one.
    :param triggerer: whether deferred tasks can be resumed.
    :param environment: further variables, over everything else.
    """

    def __init__(
        self,
        home: Path,
        *,
        metadata_url: str,
        dags: Path,
        connections: Mapping[str, str] | None = None,
        lineage: Path | None = None,
        port: int | None = None,
        parallelism: int = 8,
        triggerer: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home.absolute()
        self.dags = dags.absolute()
        self.lineage = None if lineage is None else lineage.absolute()
        self.port = free_port() if port is None else port
        self.url = f"http://{HOST}:{self.port}"
        self.api = AirflowApi(self.url)
        self._metadata_url = metadata_url
        self._connections = dict(connections or {})
        self._parallelism = parallelism
        self._environment = dict(environment or {})
        self._names = [name for name in COMPONENTS if triggerer or name != "triggerer"]
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._started = datetime.now(UTC)
        self._owner = os.getpid()

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment of every process; what a test needs to run ``airflow`` itself."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AIRFLOW_", "OPENLINEAGE_", "PG"))
        }
        return {
            **inherited,
            "NO_PROXY": f"{HOST},localhost",
            "no_proxy": f"{HOST},localhost",
            **SETTINGS,
            **self._secrets(),
            **self._lineage_settings(),
            **{f"AIRFLOW_CONN_{key.upper()}": uri for key, uri in self._connections.items()},
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": HOST,
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__PARALLELISM": str(self._parallelism),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self._metadata_url,
            **self._environment,
        }

    @property
    def running(self) -> bool:
        """Whether every component is alive."""
        alive = [child.poll() is None for child in self._children.values()]
        return bool(alive) and all(alive)

    def start(self, timeout: float = 180) -> Self:
        """Migrate the metadata and return once every component has reported itself healthy."""
        if self.running:
            return self
        self.home.mkdir(parents=True, exist_ok=True)
        end_leftovers(self.home)
        deadline = time.monotonic() + timeout
        atexit.register(self._stop_at_exit)
        try:
            self._migrate(timeout)
            self._started = datetime.now(UTC)
            for name in self._names:
                self._launch(name, COMPONENTS[name])
            while not self._healthy():
                if time.monotonic() > deadline:
                    raise AirflowDidNotStart(f"not healthy in {timeout:g} s\n{self.log_tail()}")
                time.sleep(0.5)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self, timeout: float = 15) -> None:
        """Ask every process to end, then end those that did not."""
        for process in self._members():
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(self._members(), timeout=timeout)
        self.kill()

    def kill(self) -> None:
        """SIGKILL every process at once, as a crash of the machine would."""
        end_leftovers(self.home)
        for child in self._children.values():
            child.wait()
        self._children.clear()
        self.api.close()
        atexit.unregister(self._stop_at_exit)

    def kill_component(self, name: str) -> None:
        """SIGKILL one component and its descendants; ``start_component`` brings it back."""
        _kill([component for component in _noted(self.home) if component.name == name])
        self._children.pop(name).wait()

    def start_component(self, name: str) -> None:
        """Launch one component again, without waiting for its health."""
        self._launch(name, COMPONENTS[name])

    def log_tail(self, lines: int = 25) -> str:
        """The end of every component's log, for error messages."""
        parts = []
        for path in sorted(self.home.glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"--- {path.name}", *tail]))
        return "\n".join(parts)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _migrate(self, timeout: float) -> None:
        child = self._launch("db-migrate", MIGRATE)
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AirflowDidNotStart(f"db migrate: {timeout:g} s\n{self.log_tail()}") from None
        if code != 0:
            raise AirflowDidNotStart(f"db migrate ended with {code}\n{self.log_tail()}")
        del self._children["db-migrate"]

    def _launch(self, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.home / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "airflow", *arguments],
                cwd=self.home,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[name] = child
        started = psutil.Process(child.pid).create_time()
        known = [component for component in _noted(self.home) if component.name != name]
        self._note([*known, Component(name, child.pid, started)])
        return child

    def _healthy(self) -> bool:
        """Whether every component has sent a heartbeat since we launched it."""
        for name, child in self._children.items():
            if child.poll() is not None:
                raise AirflowDidNotStart(f"{name} ended with {child.returncode}\n{self.log_tail()}")
        try:
            health = self.api.health()
        except httpx.HTTPError:
            return False
        return all(self._fresh(health, name) for name in self._names if name != "api-server")

    def _fresh(self, health: Mapping[str, Any], name: str) -> bool:
        part = name.replace("-", "_")
        report = health.get(part) or {}
        beat = report.get(f"latest_{part}_heartbeat")
        return (
            report.get("status") == "healthy"
            and beat is not None
            and datetime.fromisoformat(beat) > self._started
        )

    def _secrets(self) -> dict[str, str]:
        """Keys of this home, drawn once: tokens and encrypted rows outlive a restart."""
        path = self.home / "secrets.json"
        if not path.exists():
            drawn = {
                "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(48),
                "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(48),
                "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
            }
            self.home.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            fresh.touch(mode=0o600)
            fresh.write_text(json.dumps(drawn))
            fresh.rename(path)
        kept: dict[str, str] = json.loads(path.read_text())
        return kept

    def _lineage_settings(self) -> dict[str, str]:
        if self.lineage is None:
            return {"AIRFLOW__OPENLINEAGE__DISABLED": "True"}
        transport = {"type": "file", "log_file_path": str(self.lineage), "append": True}
        return {"AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport)}

    def _note(self, components: Sequence[Component]) -> None:
        fresh = _record(self.home).with_suffix(".new")
        fresh.write_text(json.dumps([asdict(component) for component in components]))
        fresh.rename(_record(self.home))

    def _members(self) -> list[psutil.Process]:
        return [member for component in _noted(self.home) for member in component.members()]

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._owner:
            self.stop()


def end_leftovers(home: Path) -> None:
    """End what an owner of *home* started and, being killed itself, could not stop."""
    _kill(_noted(home))
    _record(home).unlink(missing_ok=True)


def _record(home: Path) -> Path:
    return home / "processes.json"


def _noted(home: Path) -> list[Component]:
    """The components that some owner of *home* started, alive or not."""
    try:
        noted = json.loads(_record(home).read_text())
    except FileNotFoundError:
        return []
    return [Component(**component) for component in noted]


def _kill(components: Sequence[Component], timeout: float = 15) -> None:
    """SIGKILL whole sessions until nobody is left in them: a fork may slip past one sweep."""
    deadline = time.monotonic() + timeout
    while members := [member for part in components for member in part.members()]:
        for process in members:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(members, timeout=1)
        if time.monotonic() > deadline:
            raise RuntimeError(f"cannot kill {members}")
