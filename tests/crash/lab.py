"""A server behind a proxy, and each case's databases as every step of its load finds them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from os import kill, killpg
from pathlib import Path
from shutil import copyfile
from signal import SIGKILL
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from uuid6 import uuid7

from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.postgres.clean import CleanOptions, clean
from airflow_etl_provider.postgres.session import connect
from airflow_etl_provider.testing import RecordedEvents
from demo.embedded import EmbeddedPostgres
from tests.builders import MARCH
from tests.crash.cases import CASES, CHANGE, CHANGE_SINCE, SOURCE, Remote, pipeline
from tests.crash.proxy import Proxy

TRIES = 3
#: What the target must be like in the end, apart from what differs from load to load.
STRUCTURE = (
    (
        "SELECT relid::regclass::text, pg_get_expr(c.relpartbound, c.oid), c.reloptions::text"
        " FROM pg_partition_tree('a.t') JOIN pg_class AS c ON c.oid = relid"
    ),
    "SELECT tablename::text, indexname::text, indexdef FROM pg_indexes WHERE schemaname = 'a'",
    # NOT NULL is a constraint of its own from PostgreSQL 18 on.
    (
        "SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid), convalidated FROM pg_constraint"
        " WHERE connamespace = 'a'::regnamespace AND contype <> 'n'"
    ),
)


@dataclass
class Launcher:
    """Runs steps in processes of their own, one after the other."""

    folder: Path
    name: str
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
        out = self.folder / f"{self.name}.json"
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
            kill(self.pid or 0, SIGKILL)

    def close(self) -> None:
        killpg(self._process.pid, SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@dataclass
class Prepared:
    """A case whose load has been done without a fault, with the database as each step found it.

    ``events`` are what passes between a step and the servers, in order; ``manifests`` what it was given.
    """

    stem: str
    load_id: str
    events: dict[str, list[str]] = field(default_factory=dict)
    manifests: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """Number *at* of the events of a step."""

    step: str
    at: int


class Lab:
    """One server, the proxy before it, and launchers for two tries at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        settings = {"fsync": "off", "log_min_messages": "fatal", "max_connections": 60}
        self.server = EmbeddedPostgres(folder / "data", settings=settings).start()
        self.proxy = Proxy(self.server.port)
        self.launcher = Launcher(folder, "first")
        self.other = Launcher(folder, "other")
        self._prepared: dict[str, Prepared] = {}

    def close(self) -> None:
        self.launcher.close()
        self.other.close()
        self.proxy.close()
        self.server.stop("immediate")

    def sql(self, database: str, *statements: Any) -> list[tuple[Any, ...]]:
        """Execute; the rows of the last statement."""
        rows: list[tuple[Any, ...]] = []
        with psycopg.connect(self.server.conninfo(database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
        return rows

    # -- a case, done once without a fault --------------------------------------------------------

    def prepare(self, name: str) -> Prepared:
        if name not in self._prepared:
            self._prepared[name] = self._prepare(name)
        return self._prepared[name]

    def _prepare(self, name: str) -> Prepared:
        case = CASES[name]
        found = Prepared(f"c{list(CASES).index(name)}", str(uuid7()))
        first = f"{found.stem}_extract"
        for database in (f"{found.stem}_source", first):
            self.server.create_database(database)
        self.sql(f"{found.stem}_source", SOURCE)
        self.sql(first, case.target)
        source, target = (
            self.server.conninfo(database) for database in (f"{found.stem}_source", first)
        )
        pipe = pipeline(name, source, target, self.folder / f"{first}.json")
        whole = () if not case.window else (case.window[0].replace(day=1), MARCH)
        # Of events the first load is of whole months, whatever the window that follows.
        own = not case.window or case.strategy is Strategy.APPEND
        pipe.load(
            *whole, options={"strategy": case.strategy, **case.options} if own else case.options
        )
        self.sql(f"{found.stem}_source", CHANGE)
        self._copy(f"{found.stem}_source", f"{found.stem}_since")
        self.sql(f"{found.stem}_since", CHANGE_SINCE)
        for step in case.steps:
            self.fresh(found, step)
            if step == case.steps[0]:
                found.before = self.picture(found.stem)
            self.proxy.arm()
            answer = self.launcher.run(self.order(name, found, step, "source"))
            assert answer is not None, f"{name}: {step} was killed"
            assert "manifest" in answer, f"{name}: {step} fails without a fault: {answer}"
            found.events[step] = list(self.proxy.events)
            following = dict(pairwise(case.steps)).get(step)
            if following is not None:
                found.manifests[following] = answer["manifest"]
                self._copy(f"{found.stem}_target", f"{found.stem}_{following}")
                self._keep_store(f"{found.stem}_{following}")
        found.expected = self.picture(found.stem)
        return found

    def _copy(self, database: str, to: str) -> None:
        self.sql(
            "postgres",
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(to)),
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(to), sql.Identifier(database)
            ),
            # Sequences of a copied database give the same numbers again if the server crashes before its next
            # checkpoint: how far they had been logged ahead is copied with them, but not what was logged.
            "CHECKPOINT",
        )

    def _keep_store(self, name: str) -> None:
        copyfile(self.folder / "store.json", self.folder / f"{name}.json")

    def fresh(self, prepared: Prepared, step: str) -> None:
        """The target as *step* of the load finds it."""
        self._copy(f"{prepared.stem}_{step}", f"{prepared.stem}_target")
        # A stream of snapshots has no watermark.
        kept = self.folder / f"{prepared.stem}_{step}.json"
        (self.folder / "store.json").write_text(kept.read_text() if kept.exists() else "{}")

    def order(
        self, name: str, prepared: Prepared, step: str, source: str, *, proxied: bool = True
    ) -> dict[str, Any]:
        """What a launcher is to do."""
        ends = {
            "source": self.server.conninfo(f"{prepared.stem}_{source}"),
            "target": self.server.conninfo(f"{prepared.stem}_target"),
        }
        if proxied:
            ends = {
                end: make_conninfo(
                    conninfo, port=self.proxy.port, sslmode="disable", gssencmode="disable"
                )
                for end, conninfo in ends.items()
            }
        return {
            "case": name,
            **ends,
            "step": step,
            "try": 1,
            "load_id": prepared.load_id,
            "manifest": prepared.manifests.get(step),
            "store": str(self.folder / "store.json"),
        }

    # -- the same once more, with something happening at a point ----------------------------------

    def attempt(
        self,
        name: str,
        point: Point,
        fault: Callable[[], None],
        *,
        passes: bool = False,
        afterwards: Callable[[], None] = lambda: None,
    ) -> tuple[dict[str, Any], str | None]:
        """The load from the point's step on, with *fault* at the point, and retries of what it failed.

        :param passes: the load goes on after *fault*; else its connections end.
        :param afterwards: runs when the try at which it happened has ended.
        :return: what is there at last, and what happened.
        """
        prepared = self.prepare(name)
        self.fresh(prepared, point.step)
        self.proxy.arm(point.at, fault, passes=passes)
        manifest = prepared.manifests.get(point.step)
        steps = CASES[name].steps
        for step in steps[steps.index(point.step) :]:
            order = {**self.order(name, prepared, step, "source"), "manifest": manifest}
            for number in range(1, TRIES + 1):
                answer = self.launcher.run({**order, "try": 2 * number - 1})
                self.proxy.wait()
                if self.proxy.happened:
                    afterwards()
                if answer is not None and "manifest" in answer:
                    manifest = answer["manifest"]
                    break
                assert self.proxy.happened, f"{step} failed without a fault: {answer}"
            else:
                raise AssertionError(f"{step} does not succeed by retries: {answer}")
        return self.picture(prepared.stem), self.proxy.happened

    def picture(self, stem: str) -> dict[str, Any]:
        """Rows, structure, ledger, watermark and staging, without what differs from load to load."""
        target = f"{stem}_target"
        with connect(Remote(self.server.conninfo(target)).endpoint("etl:test")) as connection:
            clean(
                connection,
                CleanOptions(keep_failed=timedelta(0)),
                stop=threading.Event(),
                log=RecordedEvents(),
            )
        store = json.loads(json.loads((self.folder / "store.json").read_text()).get("t", "{}"))
        with psycopg.connect(self.server.conninfo(target), autocommit=True) as connection:

            def found(statement: str) -> list[tuple[Any, ...]]:
                return sorted(connection.execute(statement).fetchall(), key=repr)

            return {
                "rows": found(
                    "SELECT (to_jsonb(t) - '{load_id,note}'::text[])::text FROM a.t AS t"
                ),
                # A replay that was killed is abandoned by the next, which is a load of its own.
                "loads": found(
                    "SELECT state, count(*) FROM etl.loads WHERE replays IS NULL OR state <> 'abandoned' GROUP BY 1"
                ),
                "dead letters": found(
                    "SELECT record ->> 'id', ordinal, status, retries FROM etl.dead_letters"
                ),
                "coverage": found("SELECT low, high FROM etl.coverage"),
                "streams": found("SELECT stream, position, fence FROM etl.streams"),
                "watermark": (store.get("value"), store.get("fence")),
                "left behind": found(
                    "SELECT relname::text FROM pg_class WHERE relnamespace = 'etl_staging'::regnamespace"
                    " AND relkind = 'r' AND relname::text NOT IN (SELECT split_part(previous, '.', 2)"
                    " FROM etl.load_partitions WHERE previous IS NOT NULL)"
                ),
                "structure": [found(statement) for statement in STRUCTURE],
                "invalid": found(
                    "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
                    " UNION ALL SELECT conname::text FROM pg_constraint WHERE conname = 'etl_partition_bound'"
                    " AND connamespace = 'a'::regnamespace"
                ),
            }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """What is not as it should be, short enough to read; empty if all is."""
    differs = {
        key: (value, expected.get(key))
        for key, value in found.items()
        if value != expected.get(key) and key not in ("rows", "structure")
    }
    for key in ("rows", "structure"):
        there, wanted = (str(picture.get(key, ())) for picture in (found, expected))
        if there != wanted:
            ours, theirs = (
                {repr(row) for row in _flat(picture.get(key, ()))} for picture in (found, expected)
            )
            differs[key] = {"more": sorted(ours - theirs)[:4], "less": sorted(theirs - ours)[:4]}
    return differs


def _flat(rows: Any) -> list[Any]:
    return [row for part in rows for row in (part if isinstance(part, list) else [part])]
