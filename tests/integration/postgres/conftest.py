"""The databases of these tests, known by their names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict


def _named(database: Any) -> Any:
    # A server answers the connection string of a database that it made.
    if "=" not in database.name:
        return database
    return replace(database, name=str(conninfo_to_dict(database.name)["dbname"]))


@pytest.fixture
def source(source: Any) -> Any:
    return _named(source)


@pytest.fixture
def warehouse(warehouse: Any) -> Any:
    return _named(warehouse)


@pytest.fixture
def source18(source18: Any) -> Any:
    return _named(source18)


@pytest.fixture
def warehouse18(warehouse18: Any) -> Any:
    return _named(warehouse18)
