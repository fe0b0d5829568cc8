"""One repeatable-read view of a PostgreSQL source, sent by ``COPY … TO STDOUT``, whole or in slices."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, BinaryIO

import psycopg2
from psycopg import sql

from airflow_etl_provider.core.columns import Selected, Treatment
from airflow_etl_provider.core.ports import Cut, Session, Slice
from airflow_etl_provider.core.window import Nulls, Window
from airflow_etl_provider.postgres import statements
from airflow_etl_provider.postgres.catalog import Table
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.relation import Relation
from airflow_etl_provider.postgres.session import (
    Endpoint,
    connect_for_copy,
    run_patiently,
    session_of,
)

#: Rows looked at for each slice, and for all: pages are sampled, and the rows of one page are alike.
_SAMPLED, _MOST_SAMPLED, _MOST_PAGES = 10_000, 300_000, 20_000
_MOST_SLICES = 1000
#: What all slices may cost the server beside one read of the whole, in the planner's own measure.
_DEARER = 3.0


@dataclass(slots=True)
class PostgresSender:
    """Rows of a snapshot, as one ``COPY … TO STDOUT``."""

    connection: psycopg2.extensions.connection = field(repr=False)
    statement: str
    checksum: str | None = None
    estimated_rows: int | None = None
    session: Session | None = None

    def send(self, sink: BinaryIO) -> int:
        with self.connection.cursor() as cursor:
            cursor.copy_expert(self.statement, sink)
            return cursor.rowcount

    def cancel(self) -> None:
        with suppress(psycopg2.Error):
            self.connection.cancel()


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read: the rows of *window* as *columns*, over *endpoint*."""

    endpoint: Endpoint
    relation: Relation
    table: Table
    window: Window
    cursor: str | None
    columns: Sequence[Selected]
    binary: bool
    checksum: bool
    as_text: Collection[str] = ()

    @property
    def what(self) -> str:
        return f"reading {self.relation} on {self.endpoint.label}"

    def query(self, part: Slice | None) -> sql.Composed:
        return statements.selection(
            self.relation.rows(self.window),
            self.columns,
            self.cursor,
            self.window,
            part,
            self.as_text,
        )


@dataclass(frozen=True, slots=True)
class PostgresSnapshot:
    """A transaction on the source; *exported* names its view for other sessions."""

    reading: Reading
    connection: psycopg2.extensions.connection = field(repr=False)
    session: Session
    snapshot_at: datetime
    null_cursors: int
    unreachable: int | None

    def sender(self, part: Slice | None) -> PostgresSender:
        reading = self.reading
        query = reading.query(part)
        with translated_errors(reading.what):
            digest = None
            if reading.checksum:
                rows = sql.SQL("({})").format(query)
                names = [column.name for column in reading.columns]
                (digest,) = self._row(statements.checksum(rows, names))
            return PostgresSender(
                connection=self.connection,
                statement=statements.copy_out(query, binary=reading.binary).as_string(None),
                checksum=digest,
                estimated_rows=self._plan(query)[0],
                session=self.session,
            )

    @contextmanager
    def share(self) -> Iterator[PostgresSnapshot]:
        reading = self.reading
        with translated_errors(reading.what):
            (name,) = self._row(sql.SQL("SELECT pg_catalog.pg_export_snapshot()"))
        with connect_for_copy(reading.endpoint, read_only=True) as connection:
            with translated_errors(reading.what):
                with connection.cursor() as cursor:
                    cursor.execute(
                        sql.SQL("SET TRANSACTION SNAPSHOT {}")
                        .format(sql.Literal(name))
                        .as_string(None)
                    )
                canonical_names(connection, reading.table)
                session = session_of(connection, "source")
            yield replace(self, connection=connection, session=session)

    def cut(self, *, rows: int | None, parts: int, by: Sequence[str]) -> Cut:
        """By the cursor, and by *by* too where many rows share one value of it; else by the key alone.

        Bounds are quantiles of a sample of the table's pages (TABLESAMPLE SYSTEM).
        """
        reading = self.reading
        with translated_errors(f"planning slices of {reading.relation}"):
            estimated, cost = self._plan(reading.query(None))
            wanted = max(parts, math.ceil(estimated / rows) if rows else 1)
            about = f"about {estimated:,} rows"
            if wanted < 2:
                return Cut((), about)
            if reading.window.nulls is Nulls.ONLY or reading.table.kind not in ("r", "p", "m"):
                return Cut((), f"{about}; only the rows of a table are cut")
            columns = self._columns_to_cut_by(by)
            if not columns:
                return Cut((), f"{about}; it has neither a cursor nor a key to cut by")
            count = min(wanted, _MOST_SLICES)
            bounds = self._bounds(columns[:1], count, estimated)
            if len(bounds) < count - 1 and len(columns) > 1:
                bounds = self._bounds(columns, count, estimated)
            if not bounds:
                return Cut((), f"{about}; they share one value of {columns[0]}")
            slices = _slices(columns[: len(bounds[0])], bounds)
            _, dearer = self._plan(reading.query(slices[len(slices) // 2]))
            if dearer * len(slices) > _DEARER * cost:
                if parts == 1:
                    return Cut((), f"{about}; no index finds slices by {columns[0]}")
                # Each slice reads everything: then no more of them than are read at once.
                bounds = self._bounds(list(slices[0].by), parts, estimated)
                slices = _slices(slices[0].by, bounds)
            return Cut(slices, f"{about}, by {', '.join(slices[0].by)}")

    def _columns_to_cut_by(self, by: Sequence[str]) -> list[str]:
        """The cursor, then what tells rows apart: columns that always have a value.

        Only what the source sends as it is, since bounds are kept until the load is staged; and only
        types whose order does not depend on the search path.
        """
        reading = self.reading
        sent = {c.source for c in reading.columns if c.treatment is Treatment.KEEP}
        fit = {c.name for c in reading.table.columns if c.not_null and c.builtin and c.name in sent}
        keys = [name for name in by or reading.table.primary_key if name in fit]
        if reading.cursor is None or reading.window.is_full:
            return keys
        return [reading.cursor, *(key for key in keys if key != reading.cursor)]

    def _bounds(self, columns: Sequence[str], count: int, rows: int) -> list[tuple[str, ...]]:
        wanted = min(_SAMPLED * count, _MOST_SAMPLED)
        (pages,) = self._row(queries("catalog")["pages"], {"oid": self.reading.table.oid})
        percent = min(100 * wanted / max(rows, 1), 100 * _MOST_PAGES / max(pages or 0, 1))
        sample: sql.Composable = sql.SQL("")
        # A window of few rows is found faster by its index.
        if rows > _MOST_SAMPLED and percent < 100:
            sample = sql.SQL(" TABLESAMPLE SYSTEM ({})").format(sql.Literal(round(percent, 6)))
        reading = self.reading
        inside: sql.Composable = sql.SQL("true")
        if reading.cursor is not None and not reading.window.is_full:
            inside = statements.in_window(reading.cursor, reading.window)
        statement = sql.SQL(
            "SELECT DISTINCT ON ({names}) {texts} FROM ("
            " SELECT {names}, row_number() OVER (ORDER BY {names}) AS etl_place, count(*) OVER () AS etl_total"
            " FROM {table}{sample} WHERE {inside} AND {first} IS NOT NULL) AS sampled"
            " WHERE etl_place < etl_total"
            "   AND div(etl_place * {count}, etl_total) > div((etl_place - 1) * {count}, etl_total)"
            " ORDER BY {names}"
        ).format(
            names=statements.names(columns),
            # Under another name: the order is that of the values, not of their text.
            texts=sql.SQL(", ").join(
                sql.SQL("{}::text AS {}").format(
                    sql.Identifier(name), sql.Identifier(f"etl_bound_{place}")
                )
                for place, name in enumerate(columns)
            ),
            table=reading.relation.rows(reading.window),
            sample=sample,
            inside=inside,
            first=sql.Identifier(columns[0]),
            count=sql.Literal(count),
        )
        return [tuple(row) for row in run_patiently(self.connection, statement)]

    def _plan(self, query: sql.Composable) -> tuple[int, float]:
        """Rows and cost as the server's planner expects them."""
        (plan,) = self._row(statements.explain(query))
        return round(plan[0]["Plan"]["Plan Rows"]), plan[0]["Plan"]["Total Cost"]

    def _row(
        self, statement: sql.Composable, params: Mapping[str, Any] | None = None
    ) -> tuple[Any, ...]:
        rows = run_patiently(self.connection, statement, params)
        return rows[0] if rows else (None,)


def canonical_names(connection: psycopg2.extensions.connection, table: Table) -> None:
    """Have names of objects (regclass) written with their schema.

    The functions of a view and the names in a query may rely on the role's own search path, so these keep
    it.
    """
    if table.kind in ("v", "q"):
        return
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL search_path = pg_catalog")


def _slices(columns: Sequence[str], bounds: Sequence[tuple[str, ...]]) -> tuple[Slice, ...]:
    lows = [None, *bounds]
    highs = [*bounds, None]
    return tuple(
        Slice(number, tuple(columns), low, high)
        for number, (low, high) in enumerate(zip(lows, highs, strict=True))
    )
