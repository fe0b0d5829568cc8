"""Two databases per server, emptied before each test: making a new one costs more than most tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from psycopg import sql


@pytest.fixture(scope="session")
def _databases() -> dict[tuple[int, str], Any]:
    """Database by port of its server and role in the tests."""
    return {}


def _empty(server: Any, role: str, known: dict[tuple[int, str], Any], kind: type) -> Any:
    key = (server.port, role)
    if key not in known:
        server.create_database(f"{role}_db")
        known[key] = kind(server, f"{role}_db")
    database = known[key]
    with database.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        for statement in (
            "SELECT format('DROP EVENT TRIGGER %I', evtname) FROM pg_event_trigger",
            "SELECT format('DROP PUBLICATION %I', pubname) FROM pg_publication",
            (
                "SELECT format('DROP SCHEMA %I CASCADE', nspname) FROM pg_namespace"
                " WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
            ),
        ):
            for (drop,) in connection.execute(statement).fetchall():
                connection.execute(drop)
        connection.execute(
            sql.SQL("ALTER DATABASE {} RESET ALL").format(sql.Identifier(database.name))
        )
        # Roles take theirs along when they go; what everybody may do by default stays.
        connection.execute("ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM PUBLIC")
        connection.execute("CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC")
    return replace(database)


def _kind(request: pytest.FixtureRequest) -> type:
    # The class is the conftest's above; importing it here would load that module twice.
    found: type = request.config.pluginmanager.get_plugin(
        str(request.config.rootpath / "tests" / "conftest.py")
    ).Database
    return found


@pytest.fixture
def source(request: pytest.FixtureRequest, any_server: Any, _databases: dict[Any, Any]) -> Any:
    return _empty(any_server, "source", _databases, _kind(request))


@pytest.fixture
def warehouse(request: pytest.FixtureRequest, any_server: Any, _databases: dict[Any, Any]) -> Any:
    return _empty(any_server, "warehouse", _databases, _kind(request))


@pytest.fixture
def source18(request: pytest.FixtureRequest, server: Any, _databases: dict[Any, Any]) -> Any:
    return _empty(server, "source", _databases, _kind(request))


@pytest.fixture
def warehouse18(request: pytest.FixtureRequest, server: Any, _databases: dict[Any, Any]) -> Any:
    return _empty(server, "warehouse", _databases, _kind(request))
