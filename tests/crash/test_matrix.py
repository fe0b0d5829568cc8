"""End the process, the server or the connections at any statement: the retry ends as if nothing had happened.

``ETL_CRASH=all`` tries every point (``make crash``), else a sample, by ``ETL_CRASH_SEED``; ``ETL_CRASH=10`` one ten
times as large.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from uuid6 import uuid7

from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.postgres.clean import CleanOptions, clean
from airflow_etl_provider.postgres.session import connect
from airflow_etl_provider.testing import RecordedEvents
from demo.embedded import EmbeddedPostgres
from tests.builders import MARCH
from tests.crash import REPORT, SEED
from tests.crash.cases import CASES, CHANGE, SOURCE, Remote, pipeline
from tests.crash.proxy import Proxy

STEPS = ("extract", "transform", "validate", "publish", "replay")
EVERYTHING = os.environ.get("ETL_CRASH") == "all"
#: How many times the sample.
TIMES = 1 if EVERYTHING else int(os.environ.get("ETL_CRASH", "1"))
#: Points of a sample, for each case.
SAMPLE = {"kill": 6, "cut": 6, "stop": 2}


@dataclass
class Launcher:
    """Runs steps in processes of their own, one after the other."""

    folder: Path
    pid: int | None = None
    started: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.crash.launcher"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, order: dict[str, Any]) -> dict[str, Any] | None:
        """What the step answered; ``None`` if it was killed."""
        out = self.folder / "out.json"
        out.unlink(missing_ok=True)
        self.started.clear()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**order, "out": str(out)}) + "\n")
        self._process.stdin.flush()
        self.pid = int(self._process.stdout.readline())
        self.started.set()
        ended = self._process.stdout.readline().strip()
        answer: dict[str, Any] | None = json.loads(out.read_text()) if out.exists() else None
        assert answer is None or answer.get("known", True), f"not one of our errors: {answer}"
        return answer or (None if ended == "9" else {"error": f"ended with status {ended!r}"})

    def kill(self) -> None:
        """End the step that is at work."""
        self.started.wait(10)
        with suppress(ProcessLookupError):
            os.kill(self.pid or 0, signal.SIGKILL)

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class Lab:
    """A server behind a proxy, and each case's databases as its load finds them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        settings = {"fsync": "off", "log_min_messages": "fatal", "max_connections": 60}
        self.server = EmbeddedPostgres(folder / "data", settings=settings).start()
        self.proxy = Proxy(self.server.port)
        self.launcher = Launcher(folder)
        self._prepared: set[str] = set()

    def close(self) -> None:
        self.launcher.close()
        self.proxy.close()
        self.server.stop("immediate")

    def sql(self, database: str, statement: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.server.conninfo(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def prepare(self, name: str) -> str:
        """Make the databases of a case once; returns the stem of their names."""
        stem = f"c{list(CASES).index(name)}"
        if name not in self._prepared:
            self._prepared.add(name)
            for database in (f"{stem}_source", f"{stem}_before"):
                self.server.create_database(database)
            self.sql(f"{stem}_source", SOURCE)
            self.sql(f"{stem}_before", CASES[name].target)
            source, target = (
                self.server.conninfo(f"{stem}_{which}") for which in ("source", "before")
            )
            pipe = pipeline(name, source, target, self.folder / f"{stem}.json")
            case = CASES[name]
            whole = () if not case.window else (case.window[0].replace(day=1), MARCH)
            # Of events the first load is of whole months, whatever the window that follows.
            by = (
                {}
                if case.window and case.strategy is not Strategy.APPEND
                else {"strategy": case.strategy}
            )
            pipe.load(*whole, options={**by, **case.options})
            self.sql(f"{stem}_source", CHANGE)
        return stem

    def fresh(self, stem: str) -> None:
        """The target as it was before the load."""
        target = sql.Identifier(f"{stem}_target")
        self.sql("postgres", sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(target))
        self.sql(
            "postgres",
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                target, sql.Identifier(f"{stem}_before")
            ),
        )
        # A stream of snapshots has no watermark.
        kept = self.folder / f"{stem}.json"
        (self.folder / "store.json").write_text(kept.read_text() if kept.exists() else "{}")

    def through_proxy(self, database: str) -> str:
        return (
            self.server.conninfo(database)
            + f" port={self.proxy.port} sslmode=disable gssencmode=disable"
        )

    def attempt(self, name: str, mode: str | None, point: int) -> tuple[Any, str | None]:
        """A load with a fault at *point*, and its retries; what is there at last, and what happened."""
        stem = self.prepare(name)
        self.fresh(stem)
        self.proxy.arm(point, self._fault(mode) if mode else None)
        order = {
            "case": name,
            "source": self.through_proxy(f"{stem}_source"),
            "target": self.through_proxy(f"{stem}_target"),
            "load_id": str(uuid7()),
            "manifest": None,
            "store": str(self.folder / "store.json"),
        }
        for step in STEPS:
            for number in range(1, 4):
                answer = self.launcher.run({**order, "step": step, "try": number})
                self.proxy.wait()
                if answer is not None and "manifest" in answer:
                    order["manifest"] = answer["manifest"]
                    break
                assert self.proxy.happened, f"{step} failed without a fault: {answer}"
            else:
                raise AssertionError(f"{step} does not succeed by retries: {answer}")
        return self.picture(stem), self.proxy.happened

    def _fault(self, mode: str) -> Callable[[], None]:
        def stop() -> None:
            self.server.stop("immediate")
            self.server.start()

        return {"kill": self.launcher.kill, "cut": lambda: None, "stop": stop}[mode]

    def picture(self, stem: str) -> dict[str, Any]:
        """Rows, ledger, watermark and staging, without what differs from load to load."""
        target = f"{stem}_target"
        with connect(Remote(self.server.conninfo(target)).endpoint("etl:test")) as connection:
            clean(
                connection,
                CleanOptions(keep_failed=timedelta(0)),
                stop=threading.Event(),
                log=RecordedEvents(),
            )
        store = json.loads(json.loads((self.folder / "store.json").read_text()).get("t", "{}"))
        kept = self.sql(
            target,
            "SELECT split_part(previous, '.', 2) FROM etl.load_partitions WHERE previous IS NOT NULL",
        )
        staging = self.sql(
            target,
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'etl_staging'::regnamespace AND relkind = 'r'",
        )
        return {
            "rows": self.sql(
                target, "SELECT (to_jsonb(t) - 'load_id')::text FROM a.t AS t ORDER BY 1"
            ),
            "loads": self.sql(
                target,
                # A replay that was killed is abandoned by the next, which is a load of its own.
                "SELECT state, count(*) FROM etl.loads WHERE replays IS NULL OR state <> 'abandoned' GROUP BY 1 ORDER BY 1",
            ),
            "coverage": self.sql(target, "SELECT low, high FROM etl.coverage ORDER BY 1"),
            "streams": self.sql(target, "SELECT stream, position, fence FROM etl.streams"),
            "watermark": (store.get("value"), store.get("fence")),
            "left behind": sorted(name for (name,) in staging if (name,) not in kept),
            "dead letters": self.sql(
                target,
                "SELECT record ->> 'id', ordinal, status, retries FROM etl.dead_letters ORDER BY 1, 2",
            ),
            "invalid": self.sql(
                target,
                "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
                " UNION ALL SELECT conname::text FROM pg_constraint WHERE conname = 'etl_partition_bound'"
                " AND connamespace = 'a'::regnamespace",
            ),
        }


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("crash"))
    yield made
    made.close()


@pytest.mark.parametrize("mode", SAMPLE)
@pytest.mark.parametrize("name", CASES)
def test_any_point(lab, name, mode):
    """What stands there in the end is what a load without a fault leaves."""
    expected, _ = lab.attempt(name, None, 0)
    assert expected["loads"] == [("published", 2 if CASES[name].replay is None else 3)]
    assert expected["left behind"] == []
    points = lab.proxy.seen
    chosen = range(1, points + 1)
    if not EVERYTHING:
        chosen = random.Random(f"{SEED} {name} {mode}").sample(
            chosen, min(points, SAMPLE[mode] * TIMES)
        )
    tried, missed, wrong = 0, 0, []
    for point in chosen:
        try:
            found, happened = lab.attempt(name, mode, point)
        except AssertionError as error:
            found, happened = {"error": str(error)}, lab.proxy.happened
        tried += 1
        missed += happened is None
        if found != expected:
            differs = {
                key: (value, expected.get(key))
                for key, value in found.items()
                if value != expected.get(key) and key != "rows"
            }
            if set(found.get("rows", ())) != set(expected["rows"]):
                differs["rows"] = sorted(set(found.get("rows", ())) ^ set(expected["rows"]))[:4]
            wrong.append(f"{mode} at point {point} of {points}, {happened}: {differs}")
    REPORT[f"{name}, {mode}"] = [tried, points, missed]
    assert not wrong, f"{len(wrong)} of {tried} (ETL_CRASH_SEED={SEED}):\n" + "\n".join(wrong[:20])
    assert missed * 10 <= max(tried, 10), f"{missed} of {tried} points were not reached"
