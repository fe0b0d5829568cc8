"""The Great Expectations auditor on a real server: names, limits, failures and traces."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from airflow_etl_provider.core.errors import CatalogError, ConnectionLost, EtlError, Stopped
from airflow_etl_provider.quality.gx import GreatExpectationsAuditor
from airflow_etl_provider.quality.report import Report, Verdict
from airflow_etl_provider.quality.suite import Suite, parse_suite

# Great Expectations imports modules that Python 3.11 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_")

APPLICATION = "etl:test-audit"
SLEEPING = {
    "type": "unexpected_rows_expectation",
    "kwargs": {"unexpected_rows_query": "SELECT pg_sleep(600) FROM {batch}"},
}
HOSTILE_NAMES = [
    "Fl Odd",
    'qu"ote',
    "'quoted'",
    '"in quotes"',
    "per%cent %(x)s %s",
    "col:on :x ::int",
    "bra{ce} {batch}",
    "new\nline",
    "emoji 😀",
    "select",
    "a.b",
    "x" * 63,
]
# Its filter of NULLs is a text of its own, `col("...")`, which cannot hold these.
GX_CANNOT_CALL_UNIQUE = ['qu"ote', '"in quotes"', "new\nline"]


@pytest.fixture(scope="module", autouse=True)
def flights(pg: psycopg.Connection) -> None:
    """200 rows, 2 of them without a carrier."""
    pg.execute(
        "CREATE TABLE etl_staging.flights AS SELECT i AS id,"
        " CASE WHEN i % 100 = 0 THEN NULL ELSE 'UA' END AS carrier, 'secret ' || i AS note"
        " FROM generate_series(1, 200) AS i"
    )


@pytest.fixture
def role(pg: psycopg.Connection) -> Iterator[str]:
    """A role with a password that may read nothing."""
    pg.execute("CREATE ROLE reader LOGIN PASSWORD 'swordfish'")
    yield "reader"
    pg.execute("DROP OWNED BY reader")
    pg.execute("DROP ROLE reader")


def not_null(column: str, **more: Any) -> dict[str, Any]:
    kwargs = {"column": column, **more}
    return {"type": "expect_column_values_to_not_be_null", "kwargs": kwargs}


def regex(column: str, pattern: str) -> dict[str, Any]:
    kwargs = {"column": column, "regex": pattern}
    return {"type": "expect_column_values_to_match_regex", "kwargs": kwargs}


def unique(column: str) -> dict[str, Any]:
    return {"type": "expect_column_values_to_be_unique", "kwargs": {"column": column}}


def rows_of(query: str) -> dict[str, Any]:
    return {"type": "unexpected_rows_expectation", "kwargs": {"unexpected_rows_query": query}}


def audit(auditor: GreatExpectationsAuditor, *expectations: Mapping[str, Any]) -> Report:
    suite = parse_suite(expectations)
    return auditor.audit("etl_staging", "flights", suite, load_id="load-1")


def test_report_tells_what_was_found(auditor: GreatExpectationsAuditor) -> None:
    """Counts, shares, samples and the severity of our suite arrive in the order of the suite."""
    report = audit(auditor, regex("carrier", "^UA$"), not_null("carrier") | {"severity": "warning"})
    held, failed = report.results
    assert (report.rows, report.engine, report.table, report.load_id) == (
        200,
        "great_expectations",
        "etl_staging.flights",
        "load-1",
    )
    assert (held.success, held.missing_count, held.unexpected_count) == (True, 2, 0)
    assert (failed.success, failed.unexpected_count, failed.element_count) == (False, 2, 200)
    assert failed.unexpected_percent == pytest.approx(1.0)
    assert report.verdict is Verdict.WARNED


def test_sample_is_small(auditor: GreatExpectationsAuditor) -> None:
    """Of 200 unexpected values three are kept; a query keeps its count alone."""
    report = audit(auditor, regex("note", "^x"), rows_of("SELECT * FROM {batch}"))
    by_map, by_query = report.results
    assert (by_map.unexpected_count, len(by_map.partial_unexpected_list)) == (200, 3)
    assert (by_query.unexpected_count, by_query.partial_unexpected_list) == (200, ())


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("place", ["schema", "table", "column"])
def test_any_name_can_be_audited(
    place: str, name: str, pg: psycopg.Connection, auditor: GreatExpectationsAuditor
) -> None:
    """Names PostgreSQL allows are audited like any other, by every way GX reads a table."""
    names = {"schema": "plain", "table": "plain", "column": "plain"} | {place: name}
    schema, table, column = names.values()
    pg.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    try:
        pg.execute(
            sql.SQL("CREATE TABLE {} AS SELECT 1 AS {}, 'x'::text AS other").format(
                sql.Identifier(schema, table), sql.Identifier(column)
            )
        )
        suite = parse_suite(
            [
                not_null(column),
                {"type": "expect_column_to_exist", "kwargs": {"column": column}},
                *([] if column in GX_CANNOT_CALL_UNIQUE else [unique(column)]),
                {
                    "type": "expect_column_values_to_be_of_type",
                    "kwargs": {"column": column, "type_": "INTEGER"},
                },
                {
                    "type": "expect_compound_columns_to_be_unique",
                    "kwargs": {"column_list": [column, "other"]},
                },
                {
                    "type": "expect_column_pair_values_to_be_in_set",
                    "kwargs": {
                        "column_A": column,
                        "column_B": "other",
                        "value_pairs_set": [[1, "x"]],
                    },
                },
                rows_of("SELECT * FROM {batch} WHERE other <> 'x'"),
                rows_of("SELECT b.* FROM {batch} AS b JOIN {batch} AS c USING (other) WHERE false"),
            ]
        )
        report = auditor.audit(schema, table, suite, load_id="1")
        failing = rows_of("SELECT * FROM {batch}")
        caught = auditor.audit(schema, table, parse_suite([failing]), load_id="1")
    finally:
        pg.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    assert report.failures() == ()
    assert (caught.rows, caught.results[0].unexpected_count) == (1, 1)


@pytest.mark.parametrize("column", GX_CANNOT_CALL_UNIQUE)
def test_column_name_gx_cannot_parse_fails_its_expectation(
    column: str, pg: psycopg.Connection, auditor: GreatExpectationsAuditor
) -> None:
    """Where Great Expectations itself trips over a name, the batch does not pass unseen."""
    table = sql.Identifier("etl_staging", "odd_column")
    pg.execute(sql.SQL("CREATE TABLE {} AS SELECT 1 AS {}").format(table, sql.Identifier(column)))
    try:
        suite = parse_suite([unique(column)])
        report = auditor.audit("etl_staging", "odd_column", suite, load_id="1")
    finally:
        pg.execute(sql.SQL("DROP TABLE {}").format(table))
    assert report.verdict is Verdict.REJECTED
    assert "unable to parse condition" in str(report.results[0].exception)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("id <= 100", 100),
        ("id::text LIKE '1%'", 111),
        ("note <> ':x' AND id < 11 -- a comment", 10),
    ],
)
def test_condition_limits_the_rows(
    where: str, rows: int, auditor: GreatExpectationsAuditor
) -> None:
    """Casts, wildcards, colons and comments in the condition mean what they mean in SQL."""
    suite = parse_suite([rows_of("SELECT * FROM {batch}"), not_null("id")])
    report = auditor.audit("etl_staging", "flights", suite, load_id="1", where=where)
    assert (report.rows, report.results[0].unexpected_count) == (rows, rows)


def test_broken_expectation_stops_no_other(auditor: GreatExpectationsAuditor) -> None:
    """Each expectation that cannot be evaluated has its own reason; the others their verdict."""
    report = audit(
        auditor,
        not_null("id"),
        regex("carrier", "("),
        regex("id", "1"),
        not_null("nowhere"),
        {
            "type": "expect_column_max_to_be_between",
            "kwargs": {"column": "id", "min_value": [5]},
        },
        rows_of("SELEC"),
        not_null("carrier"),
    )
    exceptions = [result.exception for result in report.results]
    assert exceptions[0] is None
    assert exceptions[1] == (
        "InvalidRegularExpression: invalid regular expression: parentheses () not balanced"
    )
    assert exceptions[2] == "UndefinedFunction: operator does not exist: integer ~ unknown"
    assert exceptions[3] == 'Error: The column "nowhere" in BatchData does not exist.'
    assert exceptions[4] is not None
    assert "min_value" in exceptions[4]
    assert exceptions[5] is not None
    assert exceptions[5].startswith("SyntaxError: ")
    assert (report.results[6].exception, report.results[6].unexpected_count) == (None, 2)
    assert [result.success for result in report.results] == [True] + [False] * 6


@pytest.mark.parametrize(
    "query",
    [
        "SELECT note::int FROM {batch}",
        "SELECT etl_staging.shout(note) FROM {batch}",
    ],
)
def test_server_messages_keep_rows_to_themselves(
    query: str,
    pg: psycopg.Connection,
    auditor: GreatExpectationsAuditor,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What a server quotes from a row reaches neither the report's reason nor the log."""
    pg.execute(
        "CREATE OR REPLACE FUNCTION etl_staging.shout(text) RETURNS text LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'bad row %', $1 USING DETAIL = $1; END $$"
    )
    with caplog.at_level(logging.DEBUG):
        report = audit(auditor, rows_of(query))
    assert report.results[0].exception is not None
    written = "".join(capfd.readouterr())
    for text in (str(report.as_ledger()), report.as_table(), caplog.text, written):
        assert "secret" not in text


def test_audit_is_silent(
    auditor: GreatExpectationsAuditor,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """No progress bars, no announcements: the log belongs to the task."""
    with caplog.at_level(logging.INFO):
        audit(auditor, not_null("carrier"), regex("carrier", "("))
    assert [record for record in caplog.records if record.name.startswith("great_exp")] == []
    assert capfd.readouterr() == ("", "")


def test_sessions_are_named_limited_and_read_only(auditor: GreatExpectationsAuditor) -> None:
    """Every statement runs under our name, timeout and connection check, and may not write."""
    query = (
        "SELECT * FROM {batch} WHERE current_setting('application_name') <> 'etl:test-audit'"
        " OR current_setting('statement_timeout') <> '0'"
        " OR current_setting('client_connection_check_interval') <> '1s'"
        " OR current_setting('transaction_read_only') <> 'on'"
    )
    assert audit(auditor, rows_of(query)).verdict is Verdict.PASSED


def test_audit_cannot_write(pg: psycopg.Connection, auditor: GreatExpectationsAuditor) -> None:
    """A query of a suite that writes is refused by the server."""
    pg.execute("CREATE SEQUENCE IF NOT EXISTS etl_staging.counter")
    report = audit(auditor, rows_of("SELECT nextval('etl_staging.counter') FROM {batch}"))
    assert report.results[0].exception is not None
    assert report.results[0].exception.startswith("ReadOnlySqlTransaction: ")


def test_statement_timeout_is_a_failure_of_its_expectation(pg_conninfo: dict[str, str]) -> None:
    """A statement that takes too long fails alone."""
    limit = timedelta(milliseconds=500)
    report = audit(
        GreatExpectationsAuditor(pg_conninfo, APPLICATION, limit), not_null("id"), SLEEPING
    )
    held, slow = report.results
    assert held.success
    assert slow.exception == "QueryCanceled: canceling statement due to statement timeout"


@pytest.mark.parametrize("outcome", ["passes", "fails", "raises"])
def test_no_session_remains(
    outcome: str, auditor: GreatExpectationsAuditor, eventually: Callable[[str], None]
) -> None:
    """Sessions end with the audit, however it ends."""
    if outcome == "raises":
        with pytest.raises(CatalogError):
            auditor.audit("etl_staging", "nowhere", parse_suite([not_null("id")]), load_id="1")
    else:
        audit(auditor, not_null("id" if outcome == "passes" else "carrier"))
    eventually(
        "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'etl:test-audit')"
    )


class _Background(threading.Thread):
    """An audit in a worker thread, and what it raised."""

    def __init__(self, auditor: GreatExpectationsAuditor, suite: Suite) -> None:
        super().__init__(daemon=True)
        self._auditor, self._suite = auditor, suite
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._auditor.audit("etl_staging", "flights", self._suite, load_id="1")
        except EtlError as error:
            self.error = error


RUNNING = (
    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'etl:test-audit'"
    " AND state = 'active' AND wait_event = 'PgSleep')"
)


def test_cancel_stops_the_statement(
    auditor: GreatExpectationsAuditor, eventually: Callable[[str], None]
) -> None:
    """The running statement ends on the server, the audit says it was stopped, and stays so."""
    worker = _Background(auditor, parse_suite([SLEEPING, not_null("id")]))
    worker.start()
    eventually(RUNNING)
    auditor.cancel()
    worker.join(timeout=60)
    assert isinstance(worker.error, Stopped)
    eventually(
        "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'etl:test-audit')"
    )
    with pytest.raises(Stopped):
        audit(auditor, not_null("id"))


def test_lost_session_is_no_verdict(
    pg: psycopg.Connection,
    auditor: GreatExpectationsAuditor,
    eventually: Callable[[str], None],
) -> None:
    """A server that ends the session rejects no batch: another try may succeed."""
    worker = _Background(auditor, parse_suite([SLEEPING, not_null("id")]))
    worker.start()
    eventually(RUNNING)
    pg.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'etl:test-audit'"
    )
    worker.join(timeout=60)
    assert isinstance(worker.error, ConnectionLost)


@pytest.mark.parametrize(
    ("schema", "table", "message"),
    [
        ("nowhere", "flights", "finds no schema nowhere"),
        ("etl_staging", "Flights", "finds no table etl_staging.Flights"),
    ],
)
def test_missing_table_is_named(
    schema: str, table: str, message: str, auditor: GreatExpectationsAuditor
) -> None:
    """A batch that is not there is no verdict but an error that names it."""
    with pytest.raises(CatalogError, match=message):
        auditor.audit(schema, table, parse_suite([not_null("id")]), load_id="1")


def test_long_name_is_not_cut(pg: psycopg.Connection, auditor: GreatExpectationsAuditor) -> None:
    """A name longer than PostgreSQL keeps does not find the table it would be cut to."""
    pg.execute(sql.SQL("CREATE TABLE {} (id int)").format(sql.Identifier("etl_staging", "y" * 63)))
    with pytest.raises(CatalogError, match="finds no table"):
        auditor.audit("etl_staging", "y" * 64, parse_suite([not_null("id")]), load_id="1")


def test_missing_privilege_is_named(role: str, pg_conninfo: dict[str, str]) -> None:
    """Role and table are named, with what would help."""
    auditor = GreatExpectationsAuditor(pg_conninfo | {"user": role}, APPLICATION)
    with pytest.raises(CatalogError, match=r"role reader may not read etl_staging\.flights") as got:
        audit(auditor, not_null("id"))
    assert "GRANT SELECT ON etl_staging.flights TO reader" in str(got.value)


def test_hidden_rows_are_no_audit(
    role: str, pg: psycopg.Connection, pg_conninfo: dict[str, str]
) -> None:
    """A role that sees a part of the rows must not judge the whole."""
    pg.execute("CREATE TABLE etl_staging.guarded AS SELECT 1 AS id")
    pg.execute("ALTER TABLE etl_staging.guarded ENABLE ROW LEVEL SECURITY")
    pg.execute("GRANT USAGE ON SCHEMA etl_staging TO reader")
    pg.execute("GRANT SELECT ON etl_staging.guarded TO reader")
    auditor = GreatExpectationsAuditor(pg_conninfo | {"user": role}, APPLICATION)
    with pytest.raises(CatalogError, match="row security hides rows"):
        auditor.audit("etl_staging", "guarded", parse_suite([not_null("id")]), load_id="1")


def test_unreachable_server_is_transient_and_tells_no_secret(tmp_path: Path) -> None:
    """Nothing that was used to connect, beyond names, is in the error or the auditor's repr."""
    conninfo = {"host": str(tmp_path), "user": "reader", "password": "swordfish"}
    auditor = GreatExpectationsAuditor(conninfo, APPLICATION)
    with pytest.raises(ConnectionLost) as got:
        audit(auditor, not_null("id"))
    assert got.value.__cause__ is None
    assert "swordfish" not in f"{got.value!r} {got.value} {auditor!r}"


def test_any_libpq_parameter_works(
    pg_conninfo: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service file, startup options and an sslmode reach libpq untouched."""
    service = tmp_path / "pg_service.conf"
    service.write_text(
        "[warehouse]\n" + "".join(f"{key}={value}\n" for key, value in pg_conninfo.items())
    )
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    conninfo = {
        "service": "warehouse",
        "options": "-c search_path=etl_staging",
        "sslmode": "prefer",
        "application_name": "ours wins",
    }
    query = (
        "SELECT * FROM {batch} WHERE current_setting('search_path') <> 'etl_staging'"
        " OR current_setting('application_name') <> 'etl:test-audit'"
    )
    auditor = GreatExpectationsAuditor(conninfo, APPLICATION)
    assert audit(auditor, rows_of(query)).verdict is Verdict.PASSED
