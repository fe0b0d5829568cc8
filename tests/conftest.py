"""Real servers for the tests: PostgreSQL 18 and 16 from PyPI, 15 where it is installed."""

from __future__ import annotations

from tests import airflow_environment  # isort: skip  # noqa: F401  (before anything imports Airflow)

import gc
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from uuid import uuid4
from zlib import crc32

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from airflow_etl_provider.postgres.session import Endpoint
from demo.embedded import EmbeddedPostgres, bin_directory
from tests.crash import REPORT, SEED
from tests.scratch import scratch

VERSIONS = (18, 16, 15)
#: Of the tests on these servers one in so many is run, unless ``ETL_EVERY_SERVER`` asks for all.
ONE_IN = {16: 2, 15: 4}


def _end_in_order(signum: int, frame: FrameType | None) -> NoReturn:
    """A run that is told to stop still stops the servers that it started."""
    raise KeyboardInterrupt


signal.signal(signal.SIGTERM, _end_in_order)
_NOT_RUN: list[str] = []


_READS: dict[str, list[float]] = {}


def reads_beside(what: str, waits: list[float]) -> None:
    """Have the summary say how long readers waited beside publishes by *what*; seconds of each read."""
    _READS.setdefault(what, []).extend(waits)


def not_run(what: str) -> None:
    """Have the summary say that something is not installed here."""
    _NOT_RUN.append(what)


def programs(version: int) -> Path | None:
    """The ``bin`` directory of a PostgreSQL, or ``None`` where it is not installed."""
    try:
        return bin_directory(version)
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class Database:
    """One empty database of its own on a real server."""

    server: EmbeddedPostgres
    name: str

    @property
    def conninfo(self) -> str:
        return self.server.conninfo(self.name)

    def connect(self, **kwargs: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.conninfo, autocommit=True, **kwargs)

    def endpoint(self, application: str = "etl:test", **overrides: str) -> Endpoint:
        conninfo = conninfo_to_dict(make_conninfo(self.conninfo, **overrides))
        return Endpoint(conninfo, f"database {self.name}", application)

    def airflow_uri(self) -> str:
        return self.server.airflow_uri(self.name)

    def run(self, statement: Any, params: Any = None) -> list[tuple[Any, ...]]:
        """Execute and return the rows, if there are any."""
        with self.connect() as connection:
            cursor = connection.execute(statement, params)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: Any, params: Any = None) -> Any:
        return self.run(statement, params)[0][0]


@pytest.fixture(scope="session")
def _servers() -> Iterator[dict[int, EmbeddedPostgres]]:
    started: dict[int, EmbeddedPostgres] = {}
    yield started
    for server in started.values():
        server.stop("immediate")


def _server(version: int, started: dict[int, EmbeddedPostgres]) -> EmbeddedPostgres:
    if version not in started:
        found = programs(version)
        if found is None:
            not_run(f"PostgreSQL {version}")
            pytest.skip(f"PostgreSQL {version} is not installed")
        server = EmbeddedPostgres(
            scratch(f"postgres{version}") / "data",
            bin_dir=found,
            settings={"fsync": "off", "synchronous_commit": "off", "log_min_messages": "fatal"},
        )
        started[version] = server.start()
        if version >= 16:
            _log_in_quickly(server)
    return started[version]


def _log_in_quickly(server: EmbeddedPostgres) -> None:
    """A test logs in dozens of times, and 4,096 rounds of a hash are half of what that costs."""
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute("SET scram_iterations = 1")
        connection.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                sql.Identifier(connection.info.user), sql.Literal(server.password)
            )
        )


@pytest.fixture(params=VERSIONS, ids=lambda version: f"pg{version}")
def any_server(
    request: pytest.FixtureRequest,
    _servers: dict[int, EmbeddedPostgres],
) -> EmbeddedPostgres:
    """Each supported PostgreSQL in turn."""
    return _server(request.param, _servers)


@pytest.fixture(scope="session")
def server(
    _servers: dict[int, EmbeddedPostgres],
) -> EmbeddedPostgres:
    """PostgreSQL 18."""
    return _server(18, _servers)


def new_database(server: EmbeddedPostgres, prefix: str) -> Database:
    name = f"{prefix}_{uuid4().hex[:10]}"
    server.create_database(name)
    return Database(server, name)


def drop(database: Database) -> None:
    with psycopg.connect(database.server.conninfo(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database.name))
        )


@pytest.fixture
def source(any_server: EmbeddedPostgres) -> Iterator[Database]:
    database = new_database(any_server, "source")
    yield database
    drop(database)


@pytest.fixture
def warehouse(any_server: EmbeddedPostgres) -> Iterator[Database]:
    database = new_database(any_server, "warehouse")
    yield database
    drop(database)


@pytest.fixture
def source18(server: EmbeddedPostgres) -> Iterator[Database]:
    database = new_database(server, "source")
    yield database
    drop(database)


@pytest.fixture
def warehouse18(server: EmbeddedPostgres) -> Iterator[Database]:
    database = new_database(server, "warehouse")
    yield database
    drop(database)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("ETL_EVERY_SERVER"):
        return
    for version, share in ONE_IN.items():
        # By their names, so that several processes choose the same.
        left = {
            item
            for item in items
            if f"[pg{version}" in item.nodeid and crc32(item.nodeid.encode()) % share
        }
        if left and programs(version) is not None:
            config.hook.pytest_deselected(items=list(left))
            items[:] = [item for item in items if item not in left]
            not_run(
                f"PostgreSQL {version} for {len(left)} tests (ETL_EVERY_SERVER=1 runs them; so does make crash)"
            )


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes hands on what the summary names."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["not_run"], output["crash_report"] = list(_NOT_RUN), dict(REPORT)
        output["reads"] = dict(_READS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})
    _NOT_RUN.extend(output.get("not_run", []))
    REPORT.update(output.get("crash_report", {}))
    for what, waits in output.get("reads", {}).items():
        reads_beside(what, waits)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if REPORT:
        tried, points, missed = (sum(column) for column in zip(*REPORT.values(), strict=True))
        terminalreporter.write_line(
            f"crash matrix: {tried} of {points} points tried in {len(REPORT)} tests, {missed} not reached "
            f"(ETL_CRASH_SEED={SEED}; make crash tries all)"
        )
        if os.environ.get("ETL_CRASH"):
            for name, (case_tried, _, case_missed) in REPORT.items():
                terminalreporter.write_line(f"  {name}: {case_tried}, {case_missed} not reached")
    for what, waits in _READS.items():
        ordered = sorted(waits)
        terminalreporter.write_line(
            f"readers beside {what}: {len(ordered)} reads, longest {ordered[-1] * 1000:.0f} ms, "
            f"99 of 100 within {ordered[len(ordered) * 99 // 100] * 1000:.0f} ms"
        )
    if _NOT_RUN:
        terminalreporter.write_line(f"not run here: {', '.join(sorted(set(_NOT_RUN)))}")
