"""What every DB-API 2.0 driver offers (PEP 249), as far as it is used here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

from airflow_etl_provider.core.errors import EtlError

Row = Sequence[Any]

#: PEP 249's exceptions, the most telling first.
_KINDS = (
    "OperationalError",
    "ProgrammingError",
    "DataError",
    "IntegrityError",
    "InternalError",
    "NotSupportedError",
    "DatabaseError",
    "InterfaceError",
    "Error",
)


class Cursor(Protocol):
    """A statement and its rows."""

    @property
    def description(self) -> Sequence[Sequence[Any]] | None: ...

    def execute(self, statement: str, parameters: Any = ..., /) -> Any: ...

    def fetchone(self) -> Any: ...

    def fetchmany(self, size: int = ..., /) -> Sequence[Any]: ...

    def close(self) -> Any: ...


class Connection(Protocol):
    """A session of a database."""

    def cursor(self) -> Any: ...

    def close(self) -> Any: ...


def module_of(thing: object) -> Any:
    """The driver's module: the innermost package of *thing*'s class that has a ``paramstyle``."""
    name = type(thing).__module__
    while name:
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "paramstyle"):
            return module
        name = name.rpartition(".")[0]
    return None


def error_kind(error: BaseException) -> str | None:
    """Which of PEP 249's exceptions *error* is, ``None`` if it comes from no driver.

    Drivers share no base class, only these names below a class called ``Error``.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, EtlError) or "Error" not in names:
        return None
    return next(kind for kind in _KINDS if kind in names)


def first_row(connection: Connection, statement: str, parameters: Any = None) -> Any:
    """The first row of a statement, ``None`` if it has none."""
    rows = all_rows(connection, statement, parameters)
    return rows[0] if rows else None


def all_rows(connection: Connection, statement: str, parameters: Any = None) -> list[Any]:
    """Every row of a statement that has few."""
    cursor = connection.cursor()
    try:
        run(cursor, statement, parameters)
        return list(cursor.fetchall())
    finally:
        cursor.close()


def run(cursor: Cursor, statement: str, parameters: Any = None) -> None:
    """Execute; without parameters none are given, so that drivers leave percent signs alone."""
    if parameters:
        cursor.execute(statement, parameters)
    else:
        cursor.execute(statement)
