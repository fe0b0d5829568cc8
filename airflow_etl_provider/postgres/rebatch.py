"""A new staged table for a load, made of the one that extract staged, and its entry in the ledger."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import psycopg2
from psycopg import sql

from airflow_etl_provider.core.errors import DataError, ErrorClass, Stopped, Superseded
from airflow_etl_provider.core.load import Column, Kind, Manifest, Transformed
from airflow_etl_provider.core.names import TableName, staging_name
from airflow_etl_provider.core.ports import EventLog, Session, Stop
from airflow_etl_provider.core.transform import TransformRequest
from airflow_etl_provider.postgres import catalog, ledger, statements
from airflow_etl_provider.postgres.catalog import CatalogColumn, Table
from airflow_etl_provider.postgres.fitting import (
    carried_before,
    cursor_that_does_not_fit,
    names_that_do_not_fit,
)
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.session import Endpoint, text_of

Cursor = psycopg.Cursor[Any] | psycopg2.extensions.cursor

#: What the reason of a letter begins with; the rest is the error's class and place.
LETTER = "transform: "


@dataclass(frozen=True, slots=True)
class Letter:
    """A row that is set aside: PostgreSQL's text of its values, as extract staged them, and why."""

    record: Mapping[str, str | None]
    reason: str


@dataclass(frozen=True, slots=True)
class Rebatch:
    """What is made of the batch *current* of a load; *watching* is in autocommit.

    :param target: the target; *typed* are its columns by name with the types below its domains.
    :param carried: columns that earlier loads of the stream brought.
    """

    endpoint: Endpoint
    watching: psycopg.Connection[Any] = field(repr=False)
    request: TransformRequest
    current: Manifest
    target: Table
    typed: Mapping[str, CatalogColumn]
    carried: Sequence[str]
    logged: bool
    stop: Stop
    log: EventLog

    @classmethod
    def planned(
        cls,
        endpoint: Endpoint,
        watching: psycopg.Connection[Any],
        request: TransformRequest,
        current: Manifest,
        *,
        stop: Stop,
        log: EventLog,
    ) -> Rebatch:
        """:raises CatalogError: the target is gone, or the role may not read it."""
        target = catalog.read_table(watching, current.target, label=endpoint.label)
        described = catalog.read_query(
            watching, statements.ident(target.name), label=endpoint.label
        )
        return cls(
            endpoint=endpoint,
            watching=watching,
            request=request,
            current=current,
            target=target,
            typed={column.name: column for column in described.columns},
            carried=carried_before(watching, current),
            logged=not catalog.scalar(
                watching,
                queries("catalog")["publishes_schema"],
                {"schema": ledger.STAGING_SCHEMA},
            ),
            stop=stop,
            log=log,
        )

    @property
    def batch(self) -> Manifest:
        """The batch that is read: as extract staged it."""
        return self.current.extracted

    @property
    def table(self) -> TableName:
        """The staged table that is made."""
        name = staging_name(
            self.current.stream,
            self.current.load_id,
            self.request.run.try_number,
            made_by="t",
        )
        return TableName(ledger.STAGING_SCHEMA, name)

    @property
    def what(self) -> str:
        return f"transforming {self.batch.staging} into {self.table}"

    def problems(self, names: Sequence[str]) -> list[str]:
        """What is wrong with the names of the output's columns, and with the target's cursor."""
        return [
            *names_that_do_not_fit(
                names,
                self.current,
                self.target,
                self.request.filled_by_publish,
                self.carried,
            ),
            *cursor_that_does_not_fit(self.current, self.target),
        ]

    def loadable(self) -> list[str]:
        """The columns of the target that a batch may have."""
        return [
            column.name
            for column in self.target.columns
            if not column.generated and column.name not in self.request.filled_by_publish
        ]

    def name_session(self, session: Session) -> None:
        """Name a server process, so that a retry can end it."""
        ledger.add_session(self.watching, self.current.load_id, session)

    def create(self, cursor: Cursor, columns: Sequence[str]) -> None:
        """Create the table, typed like the target."""
        request = self.request
        comment = (
            f"stream {self.current.stream}, load {self.current.load_id}, transformed by {request.run.task_id}, "
            f"try {request.run.try_number}, for {self.current.target}"
        )
        otherwise = catalog.stored_otherwise(self.watching, self.target, columns)
        for step in (
            statements.create_staging(self.table, self.current.target, columns, logged=self.logged),
            *statements.uncompressed(self.table, otherwise),
            statements.comment(self.table, comment),
        ):
            run(cursor, step)

    def finish(
        self,
        cursor: Cursor,
        columns: Sequence[str],
        *,
        rows: int,
        size: int,
        origins: Mapping[str, str] | None = None,
        reads: tuple[tuple[str, str], ...] = (),
        letters: Iterable[Letter] = (),
    ) -> Manifest:
        """Look at what was written and record it; the caller commits.

        :param origins: columns that are columns of the batch as they are.
        :raises DataError: rows lie outside of the window, which publish replaces.
        :raises Superseded: another task moved the load on meanwhile.
        """
        self._require_window(cursor)
        load_id = self.current.load_id
        run(
            cursor,
            queries("ledger")["forget_letters"],
            {"load_id": load_id, "again": self.current.transformed is not None},
        )
        dead = set_aside(cursor, self.current.stream, load_id, letters, keys=self.current.keys)
        made = self._manifest(columns, rows, size, origins or {}, reads, dead)
        run(
            cursor,
            queries("ledger")["mark_transformed"],
            {
                "load_id": load_id,
                "staging": str(made.staging),
                "manifest": json.dumps(made.as_json()),
                "rows": rows,
                "bytes": size,
                "before": str(self.current.staging),
            },
        )
        if cursor.fetchone() is None:
            raise Superseded(
                f"load {load_id} was moved on by another task while this one transformed its batch",
                remedy="nothing to do: this try kept nothing",
            )
        if self.stop.is_set():
            raise Stopped(f"{self.what}: stopped on request; nothing was kept")
        return made

    def _require_window(self, cursor: Cursor) -> None:
        manifest = self.current
        if manifest.kind is not Kind.EVENTS or manifest.window.is_full or manifest.cursor is None:
            return
        inside = statements.in_window(manifest.cursor, manifest.window)
        run(
            cursor,
            sql.SQL("SELECT count(*) FROM {} WHERE ({}) IS NOT TRUE").format(
                statements.ident(self.table), inside
            ),
        )
        (outside,) = cursor.fetchone() or (0,)
        if outside:
            raise DataError(
                f"{outside:,} rows of the transform's output lie outside of the window {manifest.window} by "
                f"{manifest.cursor!r}: publish replaces the rows of that window, so they would be there twice one day",
                remedy=f"let {manifest.cursor!r} be what it is in the batch, or a point in time within the window; "
                "aggregates need windows of whole groups",
            )

    def _manifest(
        self,
        columns: Sequence[str],
        rows: int,
        size: int,
        origins: Mapping[str, str],
        reads: tuple[tuple[str, str], ...],
        dead: int,
    ) -> Manifest:
        batch, current = self.batch, self.current
        staged = {column.name: column for column in batch.columns}
        before = current.transformed
        replaced = () if before is None else (*before.replaced, current.staging)
        return replace(
            current,
            staging=self.table,
            columns=tuple(
                _made_column(self.target.column(name, use="a column").column, staged, origins)
                for name in columns
            ),
            rows=rows,
            bytes=size,
            direct=False,
            # Its columns have the types of the target.
            transport="binary",
            checksum=None,
            report=None,
            audited=None,
            rows_dead=batch.rows_dead + dead,
            transformed=Transformed(
                task_id=self.request.run.task_id,
                clear_number=self.request.run.clear_number,
                how=self.request.how.name,
                staging=batch.staging,
                columns=batch.columns,
                rows=batch.rows,
                bytes=batch.bytes,
                direct=batch.direct,
                transport=batch.transport,
                checksum=batch.checksum,
                set_aside=dead,
                rows_dead=batch.rows_dead,
                reads=reads,
                replaced=replaced,
            ),
        )


def _made_column(
    column: Column, staged: Mapping[str, Column], origins: Mapping[str, str]
) -> Column:
    """A column of the output; what it is made of is known where it is a column of the batch as it is."""
    origin = staged.get(origins.get(column.name, ""))
    if origin is None:
        return column
    return replace(column, source=origin.source, personal=origin.personal)


def set_aside(
    cursor: Cursor,
    stream: str,
    load_id: str,
    letters: Iterable[Letter],
    *,
    keys: Sequence[str] = (),
) -> int:
    """Put rows to the dead letters, ``held`` until their load is published; returns how many.

    Called in the transaction in which they leave the batch.
    """
    seen: Counter[str] = Counter()
    count = 0
    for count, letter in enumerate(letters, 1):  # noqa: B007  (the last number is wanted)
        record = json.dumps(letter.record, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(record.encode()).hexdigest()
        known = [letter.record[key] for key in keys if key in letter.record]
        run(
            cursor,
            queries("ledger")["set_aside"],
            {
                "stream": stream,
                "load_id": load_id,
                "record": record,
                "record_key": _key_text(known) if len(known) == len(keys) else None,
                "row_hash": digest,
                # Tells rows apart that are the same.
                "ordinal": seen[digest],
                "reason": LETTER + letter.reason,
                "error_class": ErrorClass.DATA.value,
            },
        )
        seen[digest] += 1
    return count


def _key_text(values: Sequence[Any]) -> str | None:
    """What a letter is known by, in the form that all letters have."""
    if len(values) < 2:
        return None if not values or values[0] is None else str(values[0])
    return json.dumps(values, ensure_ascii=False)


def run(cursor: Cursor, statement: sql.Composable, params: Mapping[str, Any] | None = None) -> None:
    """Execute on either driver's cursor."""
    cursor.execute(text_of(statement, params), params)
