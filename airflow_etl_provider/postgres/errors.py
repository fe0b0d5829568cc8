"""Server and driver errors, translated once.

Only what cannot hold a row's content is kept: the primary message of errors about structure, and for
errors about data the SQLSTATE, the row number and the column. DETAIL and CONTEXT never pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
import psycopg2

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ConnectionLost,
    DataError,
    ErrorClass,
    EtlError,
    LockBudgetExceeded,
    TerminalError,
    TransientError,
)

_TRANSIENT = {
    "25P03": "the server ended an idle transaction",
    "25P04": "the server ended a transaction that took too long",
    "40001": "a concurrent transaction got in the way (serialization failure)",
    "40P01": "the server resolved a deadlock at our expense",
    "53100": "the server's disk is full",
    "53200": "the server is out of memory",
    "53300": "the server has no connection left",
    "55006": "an object is in use",
    "57014": "the statement was cancelled or timed out",
}
_REMEDIES = {
    "28": "check login and password of the Airflow connection",
    "3D": "check the database name (schema field) of the Airflow connection",
    "23503": "load the rows that are referred to first; where rows would go that others refer to, publish with a "
    "strategy that updates them, or let the foreign key say what follows (ON DELETE ...)",
    "23505": "let the keys of the stream be the columns of that constraint, or mend the rows that stand double in the "
    "source",
    "23514": "mend the rows in the source, set them aside with an expectation (on_fail: quarantine), or alter the "
    "constraint",
    "42501": "grant the missing privilege to the connection's role, or use a role that has it",
    "53100": "free disk space on that server; Airflow retries by itself, and a clear does it at once",
    "53300": "raise max_connections or lower the number of parallel runs",
}
#: Where one code has several causes: for a message with these words.
_REMEDIES_BY_WORDS = {
    "0A000": (
        "foreign table",
        "that partition takes no rows from here: leave them out of the window, or make it a table of this database",
    ),
    "23514": (
        "no partition of relation",
        "make a partition for those rows or a DEFAULT partition, or let publish make them by the pipeline's partition:",
    ),
    "55000": (
        "replica identity",
        "give it a primary key, or say what tells its rows apart: ALTER TABLE ... REPLICA IDENTITY USING INDEX ...",
    ),
}
_IN_FUNCTION = (
    "look into that function, which a trigger, a default, a check or the SQL at hand calls: mend it, or what it objects "
    "to, then clear the task"
)
_LEFT_TO_AUTHORS = (CatalogError, DataError, TerminalError)
#: In the server: RAISE of PL/pgSQL, and plpy.error of PL/Python.
_RAISING = ("exec_stmt_raise", "PLy_elog_impl")
#: From here on a context shows values, of a line of COPY or of parameters, which may look like anything.
_VALUES = re.compile(r"^(?:COPY |(?:unnamed )?portal )", re.MULTILINE)
#: The languages' names are not translated; the statement that a function was at may hold values.
_FUNCTION = re.compile(
    r'^(?:\w+ )?PL/\w+.*? ([\w$."]+)\(|^(?:PL/\w+|SQL) function "([\w$.]+)"', re.MULTILINE
)
#: Only a column of an ordinary name is told, since one with quotes could let the value after it through.
_COPY_CONTEXT = re.compile(r', line (\d+)(?:, column ([A-Za-z_][A-Za-z0-9_$]*)(?=: "|: null|$))?')
#: Classes of SQLSTATE whose messages speak of structure, never of rows.
_STRUCTURAL = ("08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58")
#: What servers say when they refuse a connection for good; neither driver gives a SQLSTATE for it.
_REFUSED_LOGIN = re.compile(
    r"password authentication failed|no password supplied|role \".*\" does not exist"
    r"|no pg_hba\.conf entry|permission denied for database|authentication failed"
    r"|is not permitted to log in"
)
_NO_DATABASE = re.compile(r"database \".*\" does not exist")


def translate(error: Exception, what: str) -> EtlError:
    """Our error for a driver's *error* that happened while doing *what* (a phrase such as
    ``creating the staging table etl_staging.x``)."""
    function = function_of(error)
    found = _translated(error, what if function is None else f"{what}, in function {function}")
    found.sqlstate, found.function = sqlstate_of(error), function
    if function is not None and type(found) in _LEFT_TO_AUTHORS and found.sqlstate != "42501":
        found.remedy = _IN_FUNCTION
    return found


def _translated(error: Exception, what: str) -> EtlError:
    sqlstate, primary, context = _diagnosis(error)
    if sqlstate is None:
        reason = _first_line(str(error))
        if "FATAL:" in reason and _REFUSED_LOGIN.search(reason):
            return ConfigurationError(f"{what}: {reason}", remedy=_REMEDIES["28"])
        if "FATAL:" in reason and _NO_DATABASE.search(reason):
            return ConfigurationError(f"{what}: {reason}", remedy=_REMEDIES["3D"])
        return ConnectionLost(
            f"{what}: {reason or 'the connection broke'}",
            remedy="check that the server is up and reachable; Airflow retries by itself",
        )
    remedy = _remedy(sqlstate, primary)
    if sqlstate == "55P03":
        return LockBudgetExceeded(f"{what}: a lock was not granted in time", remedy=remedy)
    if sqlstate in _TRANSIENT:
        happened = f"{_TRANSIENT[sqlstate]} ({sqlstate}){_server_of(error)}"
        return TransientError(f"{what}: {happened}", remedy=remedy)
    if sqlstate[:2] == "08" or sqlstate[:3] == "57P":
        return ConnectionLost(f"{what}: {primary} ({sqlstate})", remedy=remedy)
    if sqlstate[:2] in ("22", "23"):
        return DataError(f"{what}: {_without_values(sqlstate, primary, context)}", remedy=remedy)
    if sqlstate[:2] in ("28", "3D"):
        return ConfigurationError(f"{what}: {primary} ({sqlstate})", remedy=remedy)
    if sqlstate[:2] in ("42", "3F", "0A", "55"):
        return CatalogError(f"{what}: {primary} ({sqlstate})", remedy=remedy)
    if sqlstate == "25006":
        return ConfigurationError(
            f"{what}: {primary} ({sqlstate})",
            remedy="if that server is a standby, name a connection to its primary; else its role or database is set to "
            "read only: ALTER ROLE ... SET default_transaction_read_only = off (or ALTER DATABASE ...)",
        )
    if sqlstate[:2] in _STRUCTURAL:
        return TerminalError(f"{what}: {primary} ({sqlstate})", remedy=remedy)
    return TerminalError(
        f"{what}: the server answered {_condition(sqlstate)} ({sqlstate})", remedy=remedy
    )


def _remedy(sqlstate: str, primary: str) -> str | None:
    words, remedy = _REMEDIES_BY_WORDS.get(sqlstate, ("", None))
    if remedy is not None and words in primary:
        return remedy
    return _REMEDIES.get(sqlstate) or _REMEDIES.get(sqlstate[:2])


@contextmanager
def translated_errors(what: str) -> Iterator[None]:
    """Turn driver errors inside the block into ours.

    The driver's error is not chained: its text may hold row content that must not reach a log.
    """
    try:
        yield
    except (psycopg.Error, psycopg2.Error) as error:
        if _is_misuse(error):
            raise
        raise translate(error, what) from None


def class_of_driver(error: psycopg.Error | psycopg2.Error) -> ErrorClass:
    """What follows from a driver's error, by its SQLSTATE."""
    if _is_misuse(error):
        return ErrorClass.FATAL
    return translate(error, "").error_class


def sqlstate_of(error: Exception) -> str | None:
    """The SQLSTATE of a driver's error; ``None`` where the server sent none.

    A key that stands twice in a system catalog counts as a table that exists already.
    """
    return _diagnosis(error)[0]


def function_of(error: Exception) -> str | None:
    """The function of the database in whose body the server raised *error*; ``None`` where it was in none."""
    found = _FUNCTION.search(_VALUES.split(_diagnosis(error)[2])[0])
    return None if found is None else found[1] or found[2]


def _is_misuse(error: Exception) -> bool:
    """A driver called wrongly: a defect of this package, which must show where it is."""
    return sqlstate_of(error) is None and not isinstance(
        error,
        psycopg.OperationalError
        | psycopg.InterfaceError
        | psycopg2.OperationalError
        | psycopg2.InterfaceError
        | psycopg2.DatabaseError,
    )


def _diagnosis(error: Exception) -> tuple[str | None, str, str]:
    if isinstance(error, psycopg.Error):
        sqlstate = error.sqlstate
    elif isinstance(error, psycopg2.Error):
        sqlstate = error.pgcode
    else:
        return None, "", ""
    if sqlstate == "23505" and error.diag.schema_name == "pg_catalog":
        # Two sessions have made an object of one name at the same moment: the same as one after the other.
        sqlstate = "42P07"
    primary = error.diag.message_primary or ""
    if sqlstate is not None and error.diag.source_function in _RAISING:
        # The words are the author's own, and may hold values.
        primary = _condition(sqlstate)
    return sqlstate, primary, error.diag.context or ""


def _server_of(error: Exception) -> str:
    """Which server it was, where the driver still knows: a COPY has two."""
    with suppress(psycopg2.Error):
        connection = getattr(getattr(error, "cursor", None), "connection", None)
        if isinstance(connection, psycopg2.extensions.connection):
            info = connection.info
            return f", database {info.dbname} on {info.host}:{info.port}"
    return ""


def _without_values(sqlstate: str, primary: str, context: str) -> str:
    """Where the bad value is, without the value."""
    place = _COPY_CONTEXT.search(context)
    at = ""
    if place is not None:
        at = f" in row {place[1]} of the batch" + (
            f", column {place[2].strip()}" if place[2] else ""
        )
    if sqlstate[:2] == "23":
        return f"{primary}{at} ({sqlstate})"
    return f"a value cannot be stored{at}: {_condition(sqlstate)} ({sqlstate})"


def _condition(sqlstate: str) -> str:
    """The name of a SQLSTATE's condition, in words."""
    try:
        name = psycopg.errors.lookup(sqlstate).__name__
    except KeyError:
        name = "an error"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.rstrip("_")).lower()


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""
