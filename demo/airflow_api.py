"""The few calls of Airflow's REST API that the demo and the end-to-end tests make."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Self
from urllib.parse import quote

import httpx

FINISHED = frozenset({"success", "failed"})
Reprocess = Literal["none", "failed", "completed"]


class AirflowRefused(RuntimeError):
    """The API answered with an error; ``status`` is its HTTP code."""

    def __init__(self, method: str, path: str, status: int, detail: str) -> None:
        super().__init__(method, path, status, detail)
        self.method, self.path, self.status, self.detail = method, path, status, detail

    def __str__(self) -> str:
        return f"{self.method} {self.path} -> {self.status}: {self.detail}"


class NotInTime(TimeoutError):
    """Something waited for did not happen before its deadline."""


@dataclass(frozen=True, slots=True)
class DagRun:
    """One run of a DAG as the API shows it."""

    dag_id: str
    run_id: str
    run_type: str
    state: str
    logical_date: datetime | None
    interval_start: datetime | None
    interval_end: datetime | None
    started: datetime | None
    ended: datetime | None

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen without somebody clearing it."""
        return self.state in FINISHED

    @property
    def seconds(self) -> float | None:
        """How long it ran."""
        return (self.ended - self.started).total_seconds() if self.started and self.ended else None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Read the API's form."""
        return cls(
            dag_id=body["dag_id"],
            run_id=body["dag_run_id"],
            run_type=body["run_type"],
            state=body["state"],
            logical_date=_moment(body["logical_date"]),
            interval_start=_moment(body["data_interval_start"]),
            interval_end=_moment(body["data_interval_end"]),
            started=_moment(body["start_date"]),
            ended=_moment(body["end_date"]),
        )


@dataclass(frozen=True, slots=True)
class TaskInstance:
    """One task of one run; ``state`` is None until the scheduler has looked at it."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    max_tries: int
    started: datetime | None
    ended: datetime | None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Read the API's form."""
        return cls(
            task_id=body["task_id"],
            map_index=body["map_index"],
            state=body["state"],
            try_number=body["try_number"],
            max_tries=body["max_tries"],
            started=_moment(body["start_date"]),
            ended=_moment(body["end_date"]),
        )


@dataclass(frozen=True, slots=True)
class Backfill:
    """One backfill; ``completed`` is None while Airflow holds it open."""

    id: int
    dag_id: str
    from_date: datetime
    to_date: datetime
    completed: datetime | None
    paused: bool

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Read the API's form."""
        return cls(
            id=body["id"],
            dag_id=body["dag_id"],
            from_date=datetime.fromisoformat(body["from_date"]),
            to_date=datetime.fromisoformat(body["to_date"]),
            completed=_moment(body["completed_at"]),
            paused=body["is_paused"],
        )


class AirflowApi:
    """A client of one Airflow whose auth manager lets every caller in as admin."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._client = _client(self.url)
        self._token: str | None = None

    def close(self) -> None:
        """Drop the connections; a later call opens new ones."""
        self._client.close()
        self._client = _client(self.url)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        accept: str = "application/json",
    ) -> httpx.Response:
        """One call below ``/api/v2``; raises :class:`AirflowRefused` for an error answer."""
        if self._token is None:
            answer = self._client.get("/auth/token")
            answer.raise_for_status()
            self._token = answer.json()["access_token"]
        answer = self._client.request(
            method,
            f"/api/v2{path}",
            params=params,
            json=json,
            headers={"Authorization": f"Bearer {self._token}", "Accept": accept},
        )
        if answer.is_error:
            raise AirflowRefused(method, path, answer.status_code, answer.text)
        return answer

    def health(self) -> dict[str, Any]:
        """State and last heartbeat of every component."""
        answer = self._client.get("/api/v2/monitor/health", timeout=5)
        answer.raise_for_status()
        body: dict[str, Any] = answer.json()
        return body

    def dag_ids(self) -> set[str]:
        """Every DAG that the DAG processor has stored and not lost since."""
        return {dag["dag_id"] for dag in self._pages("/dags", "dags")}

    def import_errors(self) -> dict[str, str]:
        """Stack trace by file, for files that could not be parsed."""
        errors = self._pages("/importErrors", "import_errors")
        return {error["filename"]: error["stack_trace"] for error in errors}

    def wait_for_dags(self, dag_ids: Sequence[str], timeout: float = 120) -> None:
        """Return when all of *dag_ids* are known; name the import errors if they never are."""
        try:
            until(lambda: set(dag_ids) <= self.dag_ids(), timeout, f"DAGs {', '.join(dag_ids)}")
        except NotInTime as late:
            raise NotInTime(f"{late}; import errors: {self.import_errors() or 'none'}") from late

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler make runs of it."""
        self.request("PATCH", f"/dags/{dag_id}", json={"is_paused": False})

    def pause(self, dag_id: str) -> None:
        """Have no new runs made."""
        self.request("PATCH", f"/dags/{dag_id}", json={"is_paused": True})

    def trigger(
        self,
        dag_id: str,
        logical_date: datetime | None = None,
        conf: Mapping[str, Any] | None = None,
    ) -> DagRun:
        """Start a manual run."""
        when = None if logical_date is None else logical_date.isoformat()
        body = {"logical_date": when, "conf": dict(conf or {})}
        return DagRun.from_json(self.request("POST", f"/dags/{dag_id}/dagRuns", json=body).json())

    def dag_runs(self, dag_id: str) -> list[DagRun]:
        """All runs, the earliest logical date first."""
        runs = self._pages(f"/dags/{dag_id}/dagRuns", "dag_runs", order_by="logical_date")
        return [DagRun.from_json(run) for run in runs]

    def dag_run(self, dag_id: str, run_id: str) -> DagRun:
        """One run."""
        return DagRun.from_json(self.request("GET", _run_path(dag_id, run_id)).json())

    def wait_for_run(self, dag_id: str, run_id: str, timeout: float = 300) -> DagRun:
        """The run once it has finished, well or not."""
        until(lambda: self.dag_run(dag_id, run_id).finished, timeout, f"the end of {run_id}")
        return self.dag_run(dag_id, run_id)

    def clear_run(self, dag_id: str, run_id: str, *, only_failed: bool = False) -> None:
        """Have the tasks of a run done again."""
        body = {"dry_run": False, "only_failed": only_failed}
        self.request("POST", f"{_run_path(dag_id, run_id)}/clear", json=body)

    def clear_tasks(self, dag_id: str, run_id: str, task_ids: Sequence[str]) -> None:
        """Have some tasks of a run done again, and nothing downstream of them."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": list(task_ids),
            "only_failed": False,
        }
        self.request("POST", f"/dags/{dag_id}/clearTaskInstances", json=body)

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark a task ``success`` or ``failed``, as a user does in the UI."""
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{task_id}"
        self.request("PATCH", path, json={"new_state": state})

    def delete_run(self, dag_id: str, run_id: str) -> None:
        """Forget a run and its tasks."""
        self.request("DELETE", _run_path(dag_id, run_id))

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """All tasks of a run, by task id and map index."""
        path = f"{_run_path(dag_id, run_id)}/taskInstances"
        found = [TaskInstance.from_json(task) for task in self._pages(path, "task_instances")]
        return sorted(found, key=lambda task: (task.task_id, task.map_index))

    def task_log(
        self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1
    ) -> str:
        """The log of one try, one JSON object per line."""
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{task_id}/logs/{try_number}"
        params = {"map_index": map_index, "full_content": True}
        return self.request("GET", path, params=params, accept="application/x-ndjson").text

    def xcom(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        key: str = "return_value",
        map_index: int = -1,
    ) -> Any:
        """What a task left under *key*; None when it left nothing."""
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{task_id}/xcomEntries/{key}"
        answer = self._unless_missing(path, {"map_index": map_index, "deserialize": True})
        return None if answer is None else answer["value"]

    def variable(self, key: str) -> str | None:
        """The value of an Airflow Variable, None when there is none."""
        answer = self._unless_missing(f"/variables/{quote(key, safe='')}", {})
        return None if answer is None else answer["value"]

    def set_variable(self, key: str, value: str) -> None:
        """Write a Variable by hand."""
        body = {"key": key, "value": value}
        if self.variable(key) is None:
            self.request("POST", "/variables", json=body)
        else:
            self.request("PATCH", f"/variables/{quote(key, safe='')}", json=body)

    def create_backfill(
        self,
        dag_id: str,
        from_date: datetime,
        to_date: datetime,
        *,
        reprocess: Reprocess = "none",
        max_active_runs: int = 4,
    ) -> Backfill:
        """Run the intervals whose logical dates lie in ``[from_date, to_date]``."""
        body = {
            "dag_id": dag_id,
            "from_date": from_date.isoformat(),
            "to_date": to_date.isoformat(),
            "reprocess_behavior": reprocess,
            "max_active_runs": max_active_runs,
        }
        return Backfill.from_json(self.request("POST", "/backfills", json=body).json())

    def backfills(self, dag_id: str) -> list[Backfill]:
        """All backfills of a DAG, the first made first."""
        found = self._pages("/backfills", "backfills", dag_id=dag_id, order_by="id")
        return [Backfill.from_json(backfill) for backfill in found]

    def _unless_missing(self, path: str, params: Mapping[str, Any]) -> Any:
        try:
            return self.request("GET", path, params=params).json()
        except AirflowRefused as refused:
            if refused.status == httpx.codes.NOT_FOUND:
                return None
            raise

    def _pages(self, path: str, member: str, **params: Any) -> list[dict[str, Any]]:
        """Every item of a listing, page after page."""
        items: list[dict[str, Any]] = []
        while True:
            page = {**params, "limit": 100, "offset": len(items)}
            body = self.request("GET", path, params=page).json()
            items += body[member]
            if len(items) >= body["total_entries"] or not body[member]:
                return items


def until(condition: Callable[[], bool], timeout: float, what: str, interval: float = 0.5) -> None:
    """Return once *condition* holds; :class:`NotInTime` names *what* otherwise."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise NotInTime(f"waited {timeout:g} s in vain for {what}")
        time.sleep(interval)


def _client(url: str) -> httpx.Client:
    """No proxy of the user's stands between us and our own machine."""
    return httpx.Client(
        base_url=url, timeout=30, trust_env=False, transport=httpx.HTTPTransport(retries=2)
    )


def _run_path(dag_id: str, run_id: str) -> str:
    return f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
