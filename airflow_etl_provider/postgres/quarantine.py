"""Rows that break an expectation leave the staged batch and become dead letters, both in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.dead_letters import Fault
from airflow_etl_provider.core.errors import ContractError, Superseded
from airflow_etl_provider.core.load import Load, LoadState, Manifest
from airflow_etl_provider.core.names import TableName, shortened
from airflow_etl_provider.postgres import ledger
from airflow_etl_provider.postgres.dead_letters import key_text, printed, written
from airflow_etl_provider.postgres.ledger import STAGING_SCHEMA
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.statements import ident
from airflow_etl_provider.postgres.swap_merge import filled_tables

Connection = psycopg.Connection[Any]

_BAD = sql.Identifier("pg_temp", "etl_bad")
#: Worst first.
_SEVERITIES = ("critical", "warning", "info")


def condition_of(fault: Fault) -> sql.Composable:
    """Which rows ``t`` of the staged table have the fault; never NULL."""
    if not isinstance(fault.condition, sql.Composable):
        raise TypeError(f"{fault.reason}: its condition is no SQL")
    return fault.condition


def count_failing(
    connection: Connection, staging: TableName, faults: Sequence[Fault]
) -> tuple[int, dict[str, int]]:
    """How many rows have any of *faults*, and how many each; a row may have several."""
    with connection.transaction():
        connection.execute(queries("checks")["own_search_path"])
        row = connection.execute(
            sql.SQL("SELECT count(*), {} FROM (SELECT {} FROM {} AS t) AS judged WHERE {}").format(
                sql.SQL(", ").join(
                    sql.SQL("count(*) FILTER (WHERE {})").format(_flag(number))
                    for number in range(len(faults))
                ),
                _flags(faults),
                ident(staging),
                _any(faults),
            )
        ).fetchone()
    total, *each = row or (0, *(0 for _ in faults))
    reasons: Counter[str] = Counter()
    for fault, rows in zip(faults, each, strict=True):
        # Two expectations of one type may be about the same column.
        reasons[fault.reason] += rows
    return total, dict(reasons)


@contextmanager
def remaining(
    connection: Connection, staging: TableName, faults: Sequence[Fault]
) -> Iterator[TableName]:
    """A view of the rows that have none of *faults*, which other sessions can read; it goes with the block.

    One that a killed task leaves behind goes with its table.
    """
    pid = connection.info.backend_pid
    view = TableName(STAGING_SCHEMA, f"{shortened(staging.name, room=16)}_rest_{pid}")
    with connection.transaction():
        connection.execute(queries("checks")["own_search_path"])
        connection.execute(
            sql.SQL("CREATE OR REPLACE VIEW {} AS SELECT * FROM {} AS t WHERE NOT ({})").format(
                ident(view),
                ident(staging),
                sql.SQL(" OR ").join(condition_of(fault) for fault in faults),
            )
        )
    try:
        yield view
    finally:
        # What is wrong with the connection shows in what comes next.
        with suppress(psycopg.Error):
            connection.execute(sql.SQL("DROP VIEW IF EXISTS {}").format(ident(view)))


def require_same_batch(connection: Connection, manifest: Manifest) -> Load:
    """The load, locked to the end of the transaction.

    :raises Superseded: another try has set rows aside since *manifest* was read.
    """
    load = ledger.load(connection, manifest.load_id, lock=True)
    now = None if load is None else load.manifest
    if (
        load is None
        or now is None
        or load.state not in (LoadState.STAGED, LoadState.VALIDATED, LoadState.REJECTED)
        or (now.staging, now.rows) != (manifest.staging, manifest.rows)
    ):
        raise Superseded(
            f"the batch of load {manifest.load_id} was changed by another try of its audit",
            remedy="nothing to do: Airflow retries, and audits what is there now",
        )
    return load


def set_aside(
    connection: Connection, manifest: Manifest, faults: Sequence[Fault], keys: Sequence[str]
) -> Manifest:
    """Turn the rows that have any of *faults* into held letters, and return what is left of the batch.

    In the caller's transaction, which holds the load's row. A table that was to become a partition as it is
    does so no longer: an older snapshot would still see the rows that left it. Publish fills another from it.

    :param keys: columns of the batch that a letter is known by.
    :raises ContractError: not as many letters were written as rows have left.
    """
    connection.execute(queries("checks")["own_search_path"])
    connection.execute("DROP TABLE IF EXISTS pg_temp.etl_bad")
    connection.execute(
        sql.SQL(
            "CREATE TEMP TABLE etl_bad ON COMMIT DROP AS SELECT place, {}, {}, {}"
            " FROM (SELECT t.ctid AS place, {} FROM {} AS t) AS judged WHERE {}"
        ).format(
            _said("reason", "; ", faults, [fault.reason for fault in faults]),
            _said("expectation", ", ", faults, [fault.expectation for fault in faults]),
            _severity(faults),
            _flags(faults),
            ident(manifest.staging),
            _any(faults),
        )
    )
    # Names of objects (regclass) are written with their schema, so that they are found again.
    connection.execute("SELECT set_config('search_path', 'pg_catalog', true)")
    columns = [column.name for column in manifest.columns]
    cursor = manifest.cursor
    letters = connection.execute(
        written(
            manifest.stream,
            manifest.load_id,
            columns={name: printed(sql.Identifier("t", name)) for name in columns},
            key=key_text([printed(sql.Identifier("t", key)) for key in keys]),
            position=sql.SQL("NULL::text")
            if cursor not in columns
            else printed(sql.Identifier("t", cursor)),
            rows=sql.SQL("{} AS t JOIN {} AS b ON t.ctid = b.place").format(
                ident(manifest.staging), _BAD
            ),
            place=sql.SQL("b.place"),
            why={name: sql.Identifier("b", name) for name in ("reason", "expectation", "severity")},
        )
    ).rowcount
    gone = connection.execute(
        sql.SQL("DELETE FROM {} AS t USING {} AS b WHERE t.ctid = b.place").format(
            ident(manifest.staging), _BAD
        )
    ).rowcount
    if letters != gone:
        raise ContractError(
            f"{gone:,} rows left {manifest.staging}, and {letters:,} letters were written",
            remedy="nothing was changed: look for triggers or rules on etl.dead_letters, then clear the task",
        )
    # What an earlier publish filled from the batch holds them still.
    for table in filled_tables(connection, manifest):
        connection.execute(sql.SQL("DROP TABLE {}").format(ident(table)))
    left = replace(
        manifest,
        rows=manifest.rows - gone,
        rows_dead=manifest.rows_dead + gone,
        direct=False,
        checksum=None,
    )
    ledger.reduce_batch(connection, left)
    return left


def _flag(number: int) -> sql.Identifier:
    return sql.Identifier("judged", f"etl_fault_{number}")


def _flags(faults: Sequence[Fault]) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} AS {}").format(condition_of(fault), sql.Identifier(f"etl_fault_{number}"))
        for number, fault in enumerate(faults)
    )


def _any(faults: Sequence[Fault]) -> sql.Composed:
    return sql.SQL(" OR ").join(_flag(number) for number in range(len(faults)))


def _said(
    name: str, between: str, faults: Sequence[Fault], texts: Sequence[str | None]
) -> sql.Composed:
    """The texts of all faults of a row."""
    each = [
        sql.SQL("CASE WHEN {} THEN {} END").format(_flag(number), sql.Literal(text))
        for number, text in enumerate(texts)
    ]
    return sql.SQL("array_to_string(ARRAY[{}]::text[], {}) AS {}").format(
        sql.SQL(", ").join(each), sql.Literal(between), sql.Identifier(name)
    )


def _severity(faults: Sequence[Fault]) -> sql.Composed:
    """The worst of a row's faults."""
    whens = [
        sql.SQL("WHEN {} THEN {}").format(_flag(number), sql.Literal(severity))
        for severity in _SEVERITIES
        for number, fault in enumerate(faults)
        if fault.severity == severity
    ]
    return sql.SQL("CASE {} END AS severity").format(sql.SQL(" ").join(whens))
