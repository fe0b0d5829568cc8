"""What MySQL's drivers have in common only by name: sessions, cursors and errors."""

from __future__ import annotations

import sys
from typing import Any

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ConnectionLost,
    DataError,
    EtlError,
    TransientError,
)
from airflow_etl_provider.dbapi.driver import Connection, error_kind, module_of
from airflow_etl_provider.dbapi.errors import by_kind
from airflow_etl_provider.dbapi.statements import Sql, Value


def with_variables(connection: Connection, query: Sql) -> str:
    """The text of *query* with its values in variables of the session.

    Without parameters no driver looks for placeholders, which a name or a user's query may resemble and
    which the drivers escape in different ways.
    """
    parts: list[str] = []
    for number, part in enumerate(query.parts):
        if isinstance(part, Value):
            cursor = connection.cursor()
            cursor.execute(f"SET @etl_{number:d} = %s", (part.value,))
            cursor.close()
            parts.append(f"@etl_{number:d}")
        else:
            parts.append(part)
    return "".join(parts)


def use_utf8(connection: Any) -> None:
    """Have server and driver agree on UTF-8; each driver has its own name for that."""
    for method in ("set_charset_collation", "set_character_set", "set_charset"):
        if hasattr(connection, method):
            getattr(connection, method)("utf8mb4")
            return


def streaming(connection: Any) -> Any:
    """A cursor whose rows stay on the server until they are fetched."""
    driver = module_of(connection)
    cursors = sys.modules.get(f"{driver.__name__}.cursors")
    if cursors is not None and hasattr(cursors, "SSCursor"):
        return connection.cursor(cursors.SSCursor)
    return connection.cursor(buffered=False)


def close(cursor: Any) -> None:
    """Close a cursor, also on a connection that is lost.

    PyMySQL would go on to look for the rest of the rows whenever the cursor is forgotten.
    """
    try:
        cursor.close()
    finally:
        result: Any = getattr(cursor, "_result", None)
        if result is not None and hasattr(result, "unbuffered_active"):
            result.unbuffered_active = False


_LOST = frozenset(
    {1040, 1042, 1043, 1053, 1077, 1079, 1080, 1081, 1152, 1153, 1158, 1159, 1160, 1161, 1184}
    | {1927, 2000, 2002, 2003, 2005, 2006, 2012, 2013, 2014, 2026, 2055}
)
_PASSING = frozenset({1021, 1037, 1041, 1203, 1205, 1206, 1213, 1226, 1317, 1412, 1969, 3024, 3101})
_ACCESS = frozenset({1044, 1045, 1049, 1251, 1698})
_STRUCTURE = frozenset({1046, 1051, 1054, 1109, 1142, 1143, 1146, 1227, 1356})


def translate(error: Exception, what: str) -> EtlError:
    """Our error by the server's code; only messages about names pass."""
    code = getattr(error, "errno", None) or (error.args[0] if error.args else None)
    if not isinstance(code, int):
        return by_kind(error, what)
    if code in _LOST:
        return ConnectionLost(
            f"{what}: the connection to MySQL failed ({code})",
            remedy="check that the server is up and reachable; Airflow retries by itself",
        )
    if code in _PASSING:
        return TransientError(f"{what}: the server ended the statement ({code})")
    if code in _ACCESS:
        return ConfigurationError(
            f"{what}: MySQL refused login or database ({code})",
            remedy="check login, password and database (schema field) of the Airflow connection",
        )
    if code in _STRUCTURE:
        message = getattr(error, "msg", None) or (error.args[1] if len(error.args) > 1 else "")
        return CatalogError(
            f"{what}: {message} ({code})",
            remedy="check the names and the privileges of the connection's role",
        )
    if code == 1064:
        return CatalogError(f"{what}: MySQL cannot read the query ({code})")
    if error_kind(error) == "DataError":
        return DataError(f"{what}: MySQL refused a value ({code})")
    return EtlError(f"{what}: MySQL failed ({code})")
