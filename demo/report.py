"""What the demo proves: source and warehouse hold the same rows, and the watermark stood still."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from demo.flights import FLIGHTS, REFERENCE, TIMEZONE, WAREHOUSE_SCHEMA, Table

# A row's text form depends on these, so both sides are read under the same.
_SESSION = (
    "-c TimeZone=UTC -c DateStyle=ISO -c IntervalStyle=postgres -c extra_float_digits=1 "
    "-c default_transaction_read_only=on"
)
_ALL = "all"


@dataclass(frozen=True, slots=True)
class Contents:
    """How many rows a part of a table holds, and a checksum that ignores their order."""

    rows: int = 0
    checksum: int | None = None


@dataclass(frozen=True, slots=True)
class LastLoad:
    """The load that published what readers see now."""

    load_id: str
    run_type: str
    verdict: str
    lock_ms: float | None


@dataclass(frozen=True, slots=True)
class Line:
    """One partition or one table: what the source holds, what the warehouse holds, and why."""

    name: str
    source: Contents
    target: Contents
    load: LastLoad | None

    @property
    def equal(self) -> bool:
        """Whether both sides hold the same rows, and hold any."""
        return self.source == self.target and self.source.rows > 0

    @property
    def cells(self) -> tuple[str, ...]:
        """The line as the table shows it."""
        same = "yes" if self.source.checksum == self.target.checksum else "NO"
        rows = (f"{self.source.rows:,}", f"{self.target.rows:,}", same)
        if self.load is None:
            return (self.name, *rows, "-", "-", "-", "-")
        lock = "-" if self.load.lock_ms is None else f"{self.load.lock_ms:.1f}"
        return (
            self.name,
            *rows,
            self.load.verdict,
            lock,
            self.load.run_type,
            self.load.load_id,
        )


HEADINGS = ("", "source", "target", "equal", "verdict", "lock ms", "run", "load")


@dataclass(frozen=True, slots=True)
class Watermark:
    """A stream's position where it is kept twice: the ledger decides, the Variable follows."""

    ledger: str | None
    variable: str | None

    @classmethod
    def read(cls, warehouse: str, stream: str, variable: str | None) -> Watermark:
        """The position in the ledger of *warehouse*, beside the text of the Airflow Variable."""
        value = None if variable is None else json.loads(variable)["value"]
        with _connect(warehouse) as connection:
            if not _has_ledger(connection):
                return cls(None, value)
            query = "SELECT position FROM etl.streams WHERE stream = %s"
            row = connection.execute(query, [stream]).fetchone()
        return cls(None if row is None else row[0], value)


def compare_months(source: str, warehouse: str) -> list[Line]:
    """Every New York month that either side has, in order."""
    month = sql.SQL("to_char({} AT TIME ZONE {}, 'YYYY-MM')").format(
        sql.Identifier("time_hour"), sql.Literal(TIMEZONE)
    )
    ours = _contents(source, sql.Identifier("public", FLIGHTS.name), FLIGHTS, month)
    theirs = _contents(warehouse, _target(FLIGHTS), FLIGHTS, month)
    loads = _loads_by_month(warehouse)
    return [
        Line(name, ours.get(name, Contents()), theirs.get(name, Contents()), loads.get(name))
        for name in sorted(ours.keys() | theirs.keys())
    ]


def compare_reference(source: str, warehouse: str) -> list[Line]:
    """Every reference table."""
    part = sql.Literal(_ALL)
    lines = []
    for table in REFERENCE:
        ours = _contents(source, sql.Identifier("public", table.name), table, part)
        theirs = _contents(warehouse, _target(table), table, part)
        lines.append(
            Line(
                table.name,
                ours.get(_ALL, Contents()),
                theirs.get(_ALL, Contents()),
                _load_of_table(warehouse, table),
            )
        )
    return lines


def uncovered(
    warehouse: str, stream: str, windows: Sequence[tuple[datetime, datetime]]
) -> list[tuple[datetime, datetime]]:
    """Those of *windows* that the ledger does not know to be published whole."""
    query = """
        SELECT coalesce(
            range_agg(tstzrange(low::timestamptz, high::timestamptz)) @> tstzrange(%s, %s), false)
        FROM etl.coverage WHERE stream = %s"""
    missing = []
    with _connect(warehouse) as connection:
        if not _has_ledger(connection):
            return list(windows)
        for low, high in windows:
            [answer] = connection.execute(query, [low, high, stream]).fetchall()
            if not answer[0]:
                missing.append((low, high))
    return missing


def published_rows(warehouse: str, dag_id: str, run_id: str) -> int | None:
    """Rows that the newest loads of a run have published; None when it has published nothing."""
    query = """
        SELECT sum(rows_staged) FROM (
            SELECT DISTINCT ON (stream) rows_staged FROM etl.loads
            WHERE dag_id = %s AND run_id = %s AND state = 'published'
            ORDER BY stream, seq DESC) AS newest"""
    with _connect(warehouse) as connection:
        if not _has_ledger(connection):
            return None
        [answer] = connection.execute(query, [dag_id, run_id]).fetchall()
    return None if answer[0] is None else int(answer[0])


def render(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain table; what looks like a number is set to the right."""
    lines = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if cell[:1].isdigit() and column in _NUMERIC else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


_NUMERIC = frozenset({1, 2, 5})


def _connect(conninfo: str) -> psycopg.Connection[TupleRow]:
    return psycopg.connect(conninfo, options=_SESSION)


def _has_ledger(connection: psycopg.Connection[TupleRow]) -> bool:
    """Whether the provider has been here: it makes its ledger on first use."""
    [answer] = connection.execute("SELECT to_regclass('etl.coverage') IS NOT NULL").fetchall()
    return bool(answer[0])


def _target(table: Table) -> sql.Identifier:
    return sql.Identifier(WAREHOUSE_SCHEMA, table.name)


def _contents(
    conninfo: str, relation: sql.Identifier, table: Table, part: sql.Composable
) -> dict[str, Contents]:
    query = sql.SQL(
        "SELECT {part}, count(*), sum(hashtextextended(ROW({columns})::text, 0)) "
        "FROM {relation} GROUP BY 1"
    ).format(
        part=part,
        columns=sql.SQL(", ").join(sql.Identifier(name) for name in table.column_names),
        relation=relation,
    )
    with _connect(conninfo) as connection:
        answers = connection.execute(query).fetchall()
    return {name: Contents(rows, int(checksum)) for name, rows, checksum in answers}


def _loads_by_month(warehouse: str) -> Mapping[str, LastLoad]:
    query = """
        SELECT DISTINCT ON (month)
               to_char(window_low::timestamptz AT TIME ZONE %s, 'YYYY-MM') AS month,
               load_id::text, run_type, coalesce(report ->> 'verdict', state), max(lock_ms)
        FROM etl.loads LEFT JOIN etl.load_partitions USING (load_id)
        WHERE target = %s AND state = 'published'
        GROUP BY load_id
        ORDER BY month, loads.published_at DESC"""
    target = f"{WAREHOUSE_SCHEMA}.{FLIGHTS.name}"
    return {
        row[0]: LastLoad(*row[1:]) for row in _ledger_rows(warehouse, query, [TIMEZONE, target])
    }


def _load_of_table(warehouse: str, table: Table) -> LastLoad | None:
    query = """
        SELECT load_id::text, run_type, coalesce(report ->> 'verdict', state), max(lock_ms)
        FROM etl.loads LEFT JOIN etl.load_partitions USING (load_id)
        WHERE target = %s AND state = 'published'
        GROUP BY load_id
        ORDER BY loads.published_at DESC
        LIMIT 1"""
    rows = _ledger_rows(warehouse, query, [f"{WAREHOUSE_SCHEMA}.{table.name}"])
    return LastLoad(*rows[0]) if rows else None


def _ledger_rows(warehouse: str, query: LiteralString, parameters: Sequence[str]) -> list[TupleRow]:
    with _connect(warehouse) as connection:
        return connection.execute(query, parameters).fetchall() if _has_ledger(connection) else []
