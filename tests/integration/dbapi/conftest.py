"""MariaDB where it is installed; SQLite is everywhere."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_etl_provider.dbapi.mysql import MySql
from airflow_etl_provider.dbapi.source import DbApiSource

DRIVERS = {"pymysql": "pymysql", "mysqlclient": "MySQLdb", "connector": "mysql.connector"}


@pytest.fixture(scope="session")
def _mariadb() -> Iterator[Any]:
    pytest.importorskip("pymysql", reason="PyMySQL is not installed")
    from benchmarks.dbapi_mariadb import MariaDb, server_program

    if server_program() is None:
        pytest.skip("MariaDB is not installed: apt-get install mariadb-server-core")
    # Not below pytest's own folder, which other accounts may not enter.
    with tempfile.TemporaryDirectory(prefix="etl-mariadb") as folder:
        server = MariaDb(Path(folder))
        try:
            yield server.start()
        finally:
            server.stop()


@pytest.fixture
def maria(_mariadb: Any) -> Iterator[Any]:
    """An empty database of its own."""
    database = _mariadb.new_database()
    yield database
    database.drop()


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """Each driver that the MySQL hook can use."""
    found: str = request.param
    package = DRIVERS[found].split(".")[0]
    if importlib.util.find_spec(package) is None or (
        found == "connector" and importlib.util.find_spec(DRIVERS[found]) is None
    ):
        pytest.skip(f"{DRIVERS[found]} is not installed")
    return found


@pytest.fixture
def shop(maria: Any) -> Callable[..., DbApiSource]:
    """Makes a source that reads ``t`` of the database."""

    def make(driver: str = "pymysql", **changes: Any) -> DbApiSource:
        flavour = MySql(f"mysql://127.0.0.1:{maria.server.port}", changes.pop("zero_dates", "fail"))
        given = {"table": "t", "query": None, **changes}
        return DbApiSource(maria.connect_by(driver), flavour, label="connection shop", **given)

    return make
