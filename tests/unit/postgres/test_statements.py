"""Statements quote names and values; they compare without a server."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from airflow_etl_provider.core.columns import Selected, Treatment
from airflow_etl_provider.core.errors import CatalogError, ConnectionLost, DataError, TransientError
from airflow_etl_provider.core.load import PartitionRange
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import Slice
from airflow_etl_provider.core.window import FULL, Nulls, Window
from airflow_etl_provider.postgres import statements
from airflow_etl_provider.postgres.errors import translate, translated_errors
from airflow_etl_provider.postgres.queries import queries

ODD = TableName('s"', "t;--")


def shown(statement):
    return statement.as_string(None)


def selected(*columns, cursor="c%", window=FULL, part=None):
    chosen = [Selected(name, name) if isinstance(name, str) else name for name in columns]
    return shown(statements.selection(statements.ident(ODD), chosen, cursor, window, part))


def test_a_window_reads_its_rows_only():
    assert selected("a", 'b"', window=Window("l'", "h", "date")) == (
        'SELECT "a", "b""" FROM "s""" . "t;--"'.replace(" . ", ".")
        + " WHERE \"c%\" >= 'l''' AND \"c%\" < 'h'"
    )


def test_a_full_window_reads_everything():
    assert "WHERE" not in selected("a")


@pytest.mark.parametrize(
    ("nulls", "condition"),
    [
        (Nulls.EXCLUDE, "\"c\" >= '1' AND \"c\" < '2'"),
        (Nulls.INCLUDE, '("c" >= \'1\' AND "c" < \'2\' OR "c" IS NULL)'),
        (Nulls.ONLY, '"c" IS NULL'),
    ],
)
def test_rows_without_a_value_are_in_a_window_if_it_says_so(nulls, condition):
    window = Window("1", "2", "bigint", nulls=nulls)
    assert selected("a", cursor="c", window=window).endswith(f" WHERE {condition}")


@pytest.mark.parametrize(
    ("part", "condition"),
    [
        (Slice(0, ("c",), None, ("5",)), '(("c") < (\'5\') OR "c" IS NULL)'),
        (Slice(1, ("c",), ("5",), ("9",)), "(\"c\") >= ('5') AND (\"c\") < ('9')"),
        (Slice(2, ("c", "k"), ("9", "x'"), None), "(\"c\", \"k\") >= ('9', 'x''')"),
        (Slice(0, ("c",), None, None), "true"),
    ],
)
def test_slices_are_half_open_and_the_first_has_what_has_no_value(part, condition):
    assert selected("a", part=part).endswith(f" WHERE {condition}")


def test_personal_data_is_treated_in_the_statement_and_its_key_is_not_in_it():
    found = selected(
        Selected("n", "a"),
        Selected("b", "b", Treatment.NULL),
        Selected("m", "mail", Treatment.HASH),
    )
    assert found.startswith('SELECT "a" AS "n", CASE WHEN false THEN "b" END AS "b", ')
    assert "current_setting('etl.hash_inner')" in found
    assert '"mail"::text' in found


def test_a_bound_says_what_the_partition_says():
    part = PartitionRange("p", "1", "2")
    assert shown(statements.attach(ODD, ODD, part)).endswith("FOR VALUES FROM ('1') TO ('2')")
    assert "IS NOT NULL" in shown(statements.bound_check(ODD, statements.holds("c", part)))


def test_a_table_moves_only_as_far_as_it_must():
    assert statements.move(ODD, ODD) == []
    assert len(statements.move(ODD, TableName("x", "y"))) == 2


@pytest.mark.parametrize("file", ["catalog", "ledger"])
def test_statements_in_files_are_not_empty(file):
    assert all(shown(found).strip() for found in queries(file).values())


def server_error(kind, sqlstate=None):
    error = kind("message with top secret\nDETAIL: more")
    if sqlstate:
        error.sqlstate = sqlstate
    return error


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (psycopg.errors.AdminShutdown, ConnectionLost),
        (psycopg.errors.CrashShutdown, ConnectionLost),
        (psycopg.errors.CannotConnectNow, ConnectionLost),
        (psycopg.errors.ConnectionFailure, ConnectionLost),
        (psycopg.errors.DeadlockDetected, TransientError),
        (psycopg.errors.SerializationFailure, TransientError),
        (psycopg.errors.LockNotAvailable, TransientError),
        (psycopg.errors.TooManyConnections, TransientError),
        (psycopg.errors.DiskFull, TransientError),
        (psycopg.errors.OutOfMemory, TransientError),
        (psycopg.errors.IdleInTransactionSessionTimeout, TransientError),
        (psycopg.errors.UndefinedTable, CatalogError),
        (psycopg.errors.InsufficientPrivilege, CatalogError),
        (psycopg.errors.UniqueViolation, DataError),
        (psycopg.errors.InvalidTextRepresentation, DataError),
        (psycopg.errors.DivisionByZero, DataError),
        (psycopg.OperationalError, ConnectionLost),
        (psycopg.InterfaceError, ConnectionLost),
    ],
)
def test_each_error_has_its_kind(kind, expected):
    found = translate(server_error(kind), "doing it")
    assert isinstance(found, expected)
    assert str(found).startswith("doing it")
    assert "DETAIL" not in str(found)


@pytest.mark.parametrize(
    "kind",
    [
        psycopg.errors.RaiseException,
        psycopg.errors.InternalError_,
        psycopg.errors.ProgramLimitExceeded,
        psycopg.errors.ReadOnlySqlTransaction,
        psycopg.errors.FdwError,
    ],
)
def test_every_server_error_is_transient_or_terminal(kind):
    """The bare root of the tree says nothing about a retry."""
    from airflow_etl_provider.core.errors import TerminalError

    found = translate(server_error(kind), "doing it")
    assert isinstance(found, TransientError | TerminalError)


def test_the_drivers_error_is_not_shown_with_ours():
    import traceback

    with pytest.raises(DataError) as raised, translated_errors("doing it"):
        raise server_error(psycopg.errors.UniqueViolation)
    assert "top secret" not in "".join(traceback.format_exception(raised.value))


def test_a_driver_called_wrongly_is_not_hidden():
    with pytest.raises(psycopg.ProgrammingError), translated_errors("doing it"):
        raise psycopg.ProgrammingError("the query has 1 placeholder but 0 parameters were passed")


def test_names_are_not_placeholders():
    """A percent in a name stays a percent where no parameters are passed."""
    assert shown(sql.SQL("SELECT {}").format(sql.Identifier("100%s"))) == 'SELECT "100%s"'
