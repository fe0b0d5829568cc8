"""Writers, runs, crashes and retries in any order: in the end the target is what the source is.

Hypothesis draws the order (stateful testing). Writers are real transactions that draw their cursor on the
server; a crash ends the load's own session, at a step of its work; a zombie publishes what it had staged.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from uuid6 import uuid7

from airflow_etl_provider.core.errors import StateError, TransientError
from airflow_etl_provider.core.load import Kind, Manifest
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.core.settle import SettleOptions, StillSettling
from tests.builders import Pipeline

#: ``make crash`` draws more.
EXAMPLES = int(os.environ.get("ETL_EXAMPLES", "4"))
QUICK = SettleOptions(delay=timedelta(0), margin=timedelta(0), patience=timedelta(0))
WRITERS = st.integers(0, 2)
CRASHES = st.sampled_from([None, None, "extract", "staged"])

TABLES = {
    # An entity's time of change is drawn by the server; each writer has rows of its own.
    "entities": "CREATE TABLE t (id int PRIMARY KEY, v text, ts timestamptz NOT NULL DEFAULT now())",
    "events": "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text)",
}


class Kills:
    """A stop that is never set; asked for the *when*-th time, it ends the load's sessions on a server."""

    def __init__(self, database: Any, when: int) -> None:
        self._database = database
        self._left = when

    def is_set(self) -> bool:
        self._left -= 1
        if self._left == 0:
            self._database.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'etl:test' AND datname = current_database()"
            )
        return False


class Interleaving(RuleBasedStateMachine):
    """One source, one target, three writers and a stream with one window mode."""

    source: Any
    warehouse: Any
    shape: str
    mode: WindowMode

    def __init__(self) -> None:
        super().__init__()
        for database in (self.source, self.warehouse):
            database.run(
                "DROP SCHEMA IF EXISTS public, a, etl, etl_staging CASCADE; CREATE SCHEMA public"
            )
        self.source.run(TABLES[self.shape])
        self.warehouse.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id bigint PRIMARY KEY, v text"
            + (", ts timestamptz NOT NULL)" if self.shape == "entities" else ")")
        )
        self.pipe = Pipeline(
            self.source,
            self.warehouse,
            kind=Kind.ENTITIES if self.shape == "entities" else Kind.EVENTS,
            cursor="ts" if self.shape == "entities" else "id",
            keys=("id",) if self.shape == "entities" else (),
            partition=None,
            mode=self.mode,
            settle=QUICK,
        )
        if self.mode is WindowMode.FULL:
            self.pipe.kind, self.pipe.cursor, self.pipe.keys = Kind.SNAPSHOTS, None, ()
        self.writers: dict[int, psycopg.Connection[Any]] = {}
        self.written = 0
        self.pending: dict[str, Any] | None = None
        self.tries = 0
        self.staged: list[Manifest] = []
        self.reached = datetime.now(UTC) - timedelta(seconds=1)
        self.positions: list[Any] = []

    # -- writers ----------------------------------------------------------------------------------

    @rule(writer=WRITERS, row=st.integers(0, 2))
    def write(self, writer: int, row: int) -> None:
        """In the writer's transaction, which begins with its first write."""
        if writer not in self.writers:
            self.writers[writer] = psycopg.connect(self.source.conninfo)
        self._write(self.writers[writer], writer * 10 + row)

    @rule(row=st.integers(30, 33))
    def write_at_once(self, row: int) -> None:
        with self.source.connect() as connection:
            self._write(connection, row)

    def _write(self, connection: psycopg.Connection[Any], row: int) -> None:
        self.written += 1
        if self.shape == "events":
            connection.execute("INSERT INTO t (v) VALUES (%s)", (f"v{self.written}",))
            return
        connection.execute(
            "INSERT INTO t (id, v) VALUES (%s, %s)"
            " ON CONFLICT (id) DO UPDATE SET v = excluded.v, ts = now()",
            (row, f"v{self.written}"),
        )

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), ending=st.sampled_from(["commit", "commit", "rollback", "close"]))
    def end(self, data: Any, ending: str) -> None:
        writer = data.draw(st.sampled_from(sorted(self.writers)))
        connection = self.writers.pop(writer)
        if ending != "close":
            getattr(connection, ending)()
        connection.close()

    # -- loads ------------------------------------------------------------------------------------

    @rule(crash=CRASHES, when=st.integers(1, 4), side=st.sampled_from(["source", "warehouse"]))
    def extract(self, crash: str | None, when: int, side: str) -> None:
        """A run, or the retry of one that was killed or had to wait."""
        if self.pending is None:
            self.pending = {"load_id": str(uuid7())}
            self.tries = 0
            if self.mode is WindowMode.INTERVAL:
                self.pending["window"] = (self.reached, datetime.now(UTC))
        given = dict(self.pending)
        window = given.pop("window", ())
        self.tries += 1
        stop = Kills(getattr(self, side), when) if crash == "extract" else threading.Event()
        try:
            manifest = self.pipe.extract(*window, try_number=self.tries, stop=stop, **given)
        except StillSettling as waiting:
            self.pending["wait"] = waiting.wait
            return
        except TransientError:
            self.pending.pop("wait", None)
            return
        if crash == "staged":
            # Killed after its commit: the retry finds the batch.
            return
        self.pending = None
        if window:
            self.reached = window[1]
        if not manifest.nothing:
            self.staged.append(self.pipe.waive(manifest))

    @precondition(lambda self: self.staged)
    @rule(data=st.data(), when=st.sampled_from([None, None, 1]))
    def publish(self, data: Any, when: int | None) -> None:
        """Any batch that was ever staged, in any order and any number of times."""
        manifest = data.draw(st.sampled_from(self.staged))
        stop = threading.Event() if when is None else Kills(self.warehouse, when)
        with suppress(TransientError, StateError):
            self.pipe.publish(manifest, stop=stop, max_shrink=1.0)
        self._check()

    def _check(self) -> None:
        """The position never goes back, and the watermark never runs ahead of it."""
        if self.mode is WindowMode.FULL:
            return
        position = self.pipe.position()
        if position is not None:
            value = int(position) if self.shape == "events" else datetime.fromisoformat(position)
            assert not self.positions or value >= self.positions[-1]
            self.positions.append(value)
        stored = self.pipe.store.read("t")
        assert stored is None or stored.value is None or position is not None

    def teardown(self) -> None:
        for connection in self.writers.values():
            connection.commit()
            connection.close()
        for manifest in self.staged:
            with suppress(StateError):
                self.pipe.publish(manifest, max_shrink=1.0)
        # What waits goes on, and one more run takes the rest.
        done = self.pending is None
        for _ in range(9):
            before = len(self.staged)
            Interleaving.extract.__wrapped__(self, None, 1, "source")
            for manifest in self.staged[before:]:
                self.pipe.publish(manifest, max_shrink=1.0)
            if self.pending is None and done:
                break
            done = self.pending is None
        assert self.pending is None, "the load never ended"
        assert self.pipe.rows() == self.pipe.source_rows()


@pytest.mark.parametrize(
    ("shape", "mode"),
    [
        ("entities", WindowMode.WATERMARK),
        ("entities", WindowMode.INTERVAL),
        ("entities", WindowMode.FULL),
        ("events", WindowMode.WATERMARK),
    ],
)
def test_every_committed_row_arrives_whatever_happens(
    source18: Any, warehouse18: Any, shape: str, mode: WindowMode
) -> None:
    machine = type(
        "Drawn",
        (Interleaving,),
        {"source": source18, "warehouse": warehouse18, "shape": shape, "mode": mode},
    )
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=EXAMPLES <= 4,
        ),
    )
