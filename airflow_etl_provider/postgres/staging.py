"""From the source's snapshot to a staged table in the target database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psycopg
import structlog
from psycopg import sql

from airflow_etl_provider.core.columns import Selected
from airflow_etl_provider.core.conversion import Conversion
from airflow_etl_provider.core.extract import Resumed, StagingPlan
from airflow_etl_provider.core.load import Kind, Load, LoadState, Manifest, StreamPosition
from airflow_etl_provider.core.names import TableName, staging_name
from airflow_etl_provider.core.ports import Cut, EventLog, Session, Snapshot, SourceShape, Stop
from airflow_etl_provider.core.request import ExtractRequest, StageAs
from airflow_etl_provider.core.settle import Settled
from airflow_etl_provider.core.window import Window, bound_text
from airflow_etl_provider.postgres import catalog, dead_letters, ledger, slices, statements
from airflow_etl_provider.postgres.contract import Evolution, approval, evolve, keep_contract
from airflow_etl_provider.postgres.cursors import cursor_type_sql
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.filling import Filling
from airflow_etl_provider.postgres.planning import (
    becomes_partition,
    conversion_of,
    conversion_sent,
    matching_columns,
    partitions_of,
    staged_like_source,
    watermark_window,
    went_backwards,
    widened,
)
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.session import Endpoint, connect, end_sessions
from airflow_etl_provider.postgres.types import agreement

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PostgresStaging:
    """The target database over *endpoint*, as extract sees it."""

    endpoint: Endpoint

    def plan(
        self,
        request: ExtractRequest,
        source: SourceShape,
        columns: Sequence[Selected],
        window: Window,
    ) -> StagingPlan:
        with connect(self.endpoint) as connection:
            target = catalog.read_table(connection, request.target, label=self.endpoint.label)
            as_source = request.stage_as is StageAs.SOURCE
            with translated_errors(f"comparing {source.name} with {request.target}"):
                if as_source:
                    evolution = Evolution(
                        columns,
                        staged_like_source(connection, source, columns, label=self.endpoint.label),
                    )
                else:
                    evolution = keep_contract(connection, request, source, columns, target)
            chosen, binary, conversion = _batch_of(connection, request, source, evolution)
            with translated_errors(f"planning the load of {request.target}"):
                partitions = partitions_of(connection, request, target, window)
            return StagingPlan(
                window=window,
                columns=chosen,
                binary=binary,
                types=tuple(column.type for column in evolution.target.columns)
                if as_source
                else None,
                # Rows that are written one by one are not frozen, so the table cannot be attached as it is.
                direct=not as_source
                and conversion is None
                and becomes_partition(request, source, target, partitions),
                staging=TableName(
                    ledger.STAGING_SCHEMA,
                    staging_name(request.stream, request.load_id, request.run.try_number),
                ),
                partition_column=target.partition_columns[0] if partitions else None,
                partitions=partitions,
                logged=not catalog.scalar(
                    connection,
                    queries("catalog")["publishes_schema"],
                    {"schema": ledger.STAGING_SCHEMA},
                ),
                ddl=evolution.ddl,
                conversion=conversion,
                primary_key=target.primary_key,
            )

    def evolve(
        self,
        request: ExtractRequest,
        source: SourceShape,
        columns: Sequence[Selected],
        *,
        stop: Stop,
        log: EventLog,
    ) -> None:
        with connect(self.endpoint) as connection:
            evolution = evolve(
                connection,
                request,
                source,
                columns,
                label=self.endpoint.label,
                stop=stop,
                log=log,
            )
            _batch_of(connection, request, source, evolution)

    def bind(self, request: ExtractRequest) -> Load | None:
        with connect(self.endpoint) as connection:
            ledger.ensure_ledger(connection, label=self.endpoint.label)
            with translated_errors(f"binding stream {request.stream} to {request.target}"):
                ledger.bind_stream(
                    connection, request.stream, request.target, request.kind, request.store
                )
                return ledger.load(connection, request.load_id)

    def begin(self, request: ExtractRequest, window: Window) -> Load:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"recording load {request.load_id} in the ledger"),
        ):
            return ledger.begin_load(
                connection,
                load_id=request.load_id,
                stream=request.stream,
                target=request.target,
                kind=request.kind,
                run=request.run,
                window=window,
                moves_watermark=request.moves_watermark,
                origin=None
                if request.origin is None or window.type is None
                else bound_text(request.origin, window.type, request.timezone),
            )

    def window_from(
        self, request: ExtractRequest, position: StreamPosition, cursor_type: str, settled: Settled
    ) -> Window | None:
        if settled.high is None:
            return None
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"planning the window of {request.stream}"),
        ):
            window = watermark_window(
                connection, position, cursor_type, settled, lookback=request.lookback
            )
            if window is None and went_backwards(connection, position, cursor_type, settled):
                log.warning(
                    "the source's largest cursor value is below the watermark: it was emptied, restored or "
                    "numbered anew, and its rows are not read; rewind the stream to read them",
                    stream=request.stream,
                    largest=settled.high,
                    watermark=position.position,
                )
            if window is None or not request.lookback or request.kind is not Kind.EVENTS:
                return window
            target = catalog.read_table(connection, request.target, label=self.endpoint.label)
            return widened(connection, window, target, request)

    def clamped(self, window: Window, settled: Settled) -> Window | None:
        if settled.high is None:
            return None
        with connect(self.endpoint) as connection, translated_errors("clamping the window"):
            row = connection.execute(
                sql.SQL(
                    "SELECT least(%(high)s::{t}, %(bound)s::{t})::text, %(bound)s::{t} > %(low)s::{t}"
                ).format(t=cursor_type_sql(window.type or "")),
                {"low": window.low, "high": window.high, "bound": settled.high},
            ).fetchone()
        return replace(window, high=row[0]) if row is not None and row[1] else None

    def position(self, stream: str) -> StreamPosition:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"reading the position of {stream}"),
        ):
            return ledger.position_of(connection, stream)

    def end_earlier_tries(self, load_id: str) -> list[Session]:
        with connect(self.endpoint) as connection, translated_errors("ending an earlier try"):
            known = ledger.sessions(connection, load_id)
            ended = end_sessions(connection, [s for s in known if s.side == "target"])
            if ended:
                log.warning("sessions of an earlier try were still at work", pids=ended)
            ledger.forget_sessions(connection, load_id)
            return [session for session in known if session.side == "source"]

    def restart(self, load_id: str) -> None:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"restarting load {load_id}"),
            connection.transaction(),
        ):
            found = ledger.load(connection, load_id)
            ledger.restart(connection, load_id)
            if found is not None and found.manifest is not None:
                # What a transform had read and made goes with what is read anew.
                for table in found.manifest.earlier_tables:
                    drop_staging(connection, table)

    def has(self, staging: TableName) -> bool:
        with connect(self.endpoint) as connection:
            return exists(connection, staging)

    def resume(self, request: ExtractRequest, plan: StagingPlan) -> Resumed | None:
        """Take over the slices that an earlier try staged, under this try's name.

        They are dropped where they cannot be gone on from: the load is read whole, its columns are others
        now, or nothing was staged yet.
        """
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"looking for slices of load {request.load_id}"),
            connection.transaction(),
        ):
            load = ledger.load(connection, request.load_id, lock=True)
            planned = slices.slices(connection, request.load_id)
            if load is None or not planned:
                return None
            loaded = [part for part in planned if part.rows is not None]
            if load.staging is not None and exists(connection, load.staging):
                found = catalog.read_table(connection, load.staging, label=self.endpoint.label)
                target = catalog.read_table(connection, request.target, label=self.endpoint.label)
                same = load.fingerprint == request.fingerprint and (
                    [c.column for c in found.columns]
                    == [target.column(c.name, use="a column").column for c in plan.columns]
                )
                resumable = request.resumable and plan.conversion is None
                if loaded and same and resumable and load.window.is_range:
                    for step in statements.move(load.staging, plan.staging):
                        connection.execute(step)
                    slices.move_staging(connection, request.load_id, plan.staging)
                    return Resumed(
                        window=replace(load.window, nulls=request.nulls),
                        settled=Settled(
                            load.window.high, load.window.bounds, load.settled or "an earlier try"
                        ),
                        cut=Cut(tuple(part.slice for part in planned), "as an earlier try cut it"),
                        loaded=len(loaded),
                        rows=sum(part.rows or 0 for part in loaded),
                    )
                drop_staging(connection, load.staging)
                log.info("slices of an earlier try are read again", load_id=request.load_id)
            slices.forget_slices(connection, request.load_id)
            return None

    def stage(
        self,
        request: ExtractRequest,
        plan: StagingPlan,
        source: SourceShape,
        snapshot: Snapshot,
        settled: Settled,
        cut: Cut,
        *,
        resumed: bool,
        stop: Stop,
        log: EventLog,
    ) -> Manifest:
        with connect(self.endpoint) as watching:
            filling = Filling(self.endpoint, watching, request, plan, source, stop=stop, log=log)
            manifest = filling.run(snapshot, settled, cut, resumed=resumed)
            with translated_errors(filling.what):
                ledger.forget_sessions(watching, request.load_id)
        return manifest

    def cover_empty(self, manifest: Manifest) -> None:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"recording the empty window of load {manifest.load_id}"),
        ):
            ledger.cover_empty(connection, manifest)
            drop_staging(connection, manifest.staging)

    def fail(self, load_id: str, error: str, try_number: int) -> None:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"recording the failure of {load_id}"),
        ):
            ledger.mark_failed(connection, load_id, error, try_number=try_number)

    def discard(self, load_id: str, reason: str) -> None:
        """Abandon an unfinished load and drop what it staged; a published one is left alone."""
        with connect(self.endpoint) as connection, translated_errors(f"abandoning load {load_id}"):
            with connection.transaction():
                found = ledger.load(connection, load_id, lock=True)
                if found is None or found.state.is_finished:
                    return
                ledger.abandon(connection, load_id, reason)
                earlier = () if found.manifest is None else found.manifest.earlier_tables
                for table in (found.staging, *earlier):
                    if table is not None:
                        drop_staging(connection, table)
            log.info("load abandoned", load_id=load_id, reason=reason)

    def reasons(self, load_id: str) -> dict[str, int]:
        """Why rows of a load were set aside, with their numbers."""
        with connect(self.endpoint) as connection, translated_errors(f"reading load {load_id}"):
            return dead_letters.reasons(connection, load_id)

    def state(self, load_id: str) -> LoadState | None:
        """Where a load stands, ``None`` if the ledger does not know it."""
        with connect(self.endpoint) as connection, translated_errors(f"reading load {load_id}"):
            if catalog.scalar(connection, "SELECT to_regclass('etl.loads')::text") is None:
                return None
            return ledger.state_of(connection, load_id)


def _batch_of(
    connection: psycopg.Connection[Any],
    request: ExtractRequest,
    source: SourceShape,
    evolution: Evolution,
) -> tuple[tuple[Selected, ...], bool, Conversion | None]:
    """The columns of the batch, whether they travel in binary, and how what the target cannot hold is set aside.

    A batch that a transform reads has the types of the source, and the transform answers for those of the target.

    :raises ContractError: a column that the target demands, computes itself, or cannot hold.
    """
    target, as_source = evolution.target, request.stage_as is StageAs.SOURCE
    chosen = (
        tuple(evolution.columns)
        if as_source
        else matching_columns(request, source, evolution.columns, target)
    )
    offered = {column.name: column for column in source.columns}
    ours = [offered[column.name] for column in chosen]
    theirs = [target.column(column.name, use="a column of the batch") for column in chosen]
    conversion = None if as_source else conversion_of(request, source, ours, theirs, target)
    if conversion is not None:
        ours, theirs = conversion_sent(conversion, ours, theirs)
    binary = agreement(
        ours,
        theirs,
        where=f"stream {request.stream}",
        approve=partial(approval, connection, target),
        needed=(*request.keys, request.target_cursor, *target.partition_columns),
    )
    return chosen, binary, conversion


def exists(connection: psycopg.Connection[Any], table: TableName) -> bool:
    found: bool = catalog.scalar(
        connection,
        "SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %(schema)s AND c.relname = %(name)s)",
        {"schema": table.schema, "name": table.name},
    )
    return found


def drop_staging(connection: psycopg.Connection[Any], table: TableName) -> None:
    """Drop a staged table, if it is one and not attached anywhere."""
    if table.schema != ledger.STAGING_SCHEMA:
        return
    attached = connection.execute(
        "SELECT c.relispartition FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %(schema)s AND c.relname = %(name)s",
        {"schema": table.schema, "name": table.name},
    ).fetchone()
    if attached == (False,):
        drop_views(connection, table)
        connection.execute(sql.SQL("DROP TABLE {}").format(statements.ident(table)))


def drop_views(connection: psycopg.Connection[Any], table: TableName) -> None:
    """Drop the views on a staged table that a killed audit left beside it."""
    found = connection.execute(
        queries("catalog")["views_in_schema_of"], {"schema": table.schema, "name": table.name}
    ).fetchall()
    for (name,) in found:
        connection.execute(
            sql.SQL("DROP VIEW IF EXISTS {}").format(sql.Identifier(table.schema, name))
        )
