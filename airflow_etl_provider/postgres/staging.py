"""From the source's snapshot to a staged table in the target database."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import structlog
from psycopg import sql

from airflow_etl_provider.core.errors import ConfigurationError, ContractError, Superseded
from airflow_etl_provider.core.extract import ExtractRequest, StagingPlan, WindowMode
from airflow_etl_provider.core.load import (
    Column,
    Kind,
    Load,
    LoadState,
    Manifest,
    PartitionRange,
    StreamPosition,
)
from airflow_etl_provider.core.names import TableName, staging_name
from airflow_etl_provider.core.ports import EventLog, Sender, Session, SourceShape, Stop
from airflow_etl_provider.core.settle import Settled
from airflow_etl_provider.core.window import Window, bound_text, humane
from airflow_etl_provider.postgres import catalog, ledger, statements
from airflow_etl_provider.postgres.catalog import Table
from airflow_etl_provider.postgres.cursors import CursorKind, cursor_kind, cursor_type_sql
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.partitions import (
    expected_partitions,
    refuse_default_rows,
    refuse_unswappable,
)
from airflow_etl_provider.postgres.session import (
    Endpoint,
    connect,
    connect_for_copy,
    end_sessions,
    session_of,
)
from airflow_etl_provider.postgres.transfer import relay
from airflow_etl_provider.postgres.types import agreement

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PostgresStaging:
    """The target database over *endpoint*, as extract sees it."""

    endpoint: Endpoint

    def plan(self, request: ExtractRequest, source: SourceShape, window: Window) -> StagingPlan:
        with connect(self.endpoint) as connection:
            target = catalog.read_table(connection, request.target, label=self.endpoint.label)
            columns = _matching_columns(request, source, target)
            with translated_errors(f"planning the load of {request.target}"):
                partitions = _partitions(connection, request, target, window)
            return StagingPlan(
                window=window,
                columns=tuple(columns),
                binary=agreement(
                    [
                        column
                        for name in columns
                        for column in source.columns
                        if column.name == name
                    ],
                    [target.column(name, use="a column of the batch") for name in columns],
                    where=f"stream {request.stream}",
                ),
                direct=_becomes_partition(request, source, target, partitions),
                staging=TableName(
                    ledger.STAGING_SCHEMA,
                    staging_name(request.stream, request.load_id, request.run.try_number),
                ),
                partition_column=target.partition_columns[0] if partitions else None,
                partitions=partitions,
            )

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
                moves_watermark=_moves_watermark(request),
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
            return watermark_window(
                connection, position, cursor_type, settled, lookback=request.lookback
            )

    def position(self, stream: str) -> StreamPosition:
        return read_position(self.endpoint, stream)

    def end_earlier_tries(self, load_id: str) -> list[Session]:
        with connect(self.endpoint) as connection, translated_errors("ending an earlier try"):
            known = ledger.sessions(connection, load_id)
            ended = end_sessions(connection, [s for s in known if s.side == "target"])
            if ended:
                log.warning("sessions of an earlier try were still at work", pids=ended)
            ledger.forget_sessions(connection, load_id)
            return [session for session in known if session.side == "source"]

    def restart(self, load_id: str) -> None:
        with connect(self.endpoint) as connection, translated_errors(f"restarting load {load_id}"):
            ledger.restart(connection, load_id)

    def has(self, staging: TableName) -> bool:
        with connect(self.endpoint) as connection:
            return exists(connection, staging)

    def stage(
        self,
        request: ExtractRequest,
        plan: StagingPlan,
        source: SourceShape,
        sender: Sender,
        settled: Settled,
        *,
        stop: Stop,
        log: EventLog,
    ) -> Manifest:
        what = f"staging {source.name} into {plan.staging}"
        create = (
            statements.create_twin(plan.staging, request.target)
            if plan.direct
            else statements.create_staging(plan.staging, request.target, plan.columns)
        )
        comment = (
            f"stream {request.stream}, load {request.load_id}, try {request.run.try_number}, "
            f"window {plan.window}, for {request.target}"
        )
        with ExitStack() as stack:
            watching = stack.enter_context(connect(self.endpoint))
            connection = stack.enter_context(connect_for_copy(self.endpoint, read_only=False))
            with translated_errors(what), connection.cursor() as cursor:
                own = session_of(connection, "target")
                for session in (own, sender.session):
                    if session is not None:
                        ledger.add_session(watching, request.load_id, session)
                cursor.execute(create.as_string(None))
                cursor.execute(statements.comment(plan.staging, comment).as_string(None))
            moved = relay(
                sender,
                connection,
                statements.copy_in(
                    plan.staging, plan.columns, binary=plan.binary, freeze=True
                ).as_string(None),
                stop=stop,
                progress=_Progress(watching, request.load_id, own.pid, sender.estimated_rows, log),
                what=what,
            )
            manifest = _manifest(request, plan, source, sender, settled, moved.rows, moved.bytes)
            with translated_errors(what), connection.cursor() as cursor:
                statement, params = ledger.staged_statement(manifest)
                cursor.execute(statement.as_string(None), params)
                if cursor.rowcount != 1:
                    raise Superseded(
                        f"load {request.load_id} was taken over by another try while this one was copying",
                        remedy="nothing to do: this try kept nothing",
                    )
                connection.commit()
            with translated_errors(what):
                ledger.forget_sessions(watching, request.load_id)
        return manifest

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
                if found.manifest is not None:
                    drop_staging(connection, found.manifest.staging)
            log.info("load abandoned", load_id=load_id, reason=reason)

    def state(self, load_id: str) -> LoadState | None:
        """Where a load stands, ``None`` if the ledger does not know it."""
        with connect(self.endpoint) as connection, translated_errors(f"reading load {load_id}"):
            if catalog.scalar(connection, "SELECT to_regclass('etl.loads')::text") is None:
                return None
            found = ledger.load(connection, load_id)
            return None if found is None else found.state


@dataclass(frozen=True, slots=True)
class _Progress:
    """Tells every few seconds how far a COPY is; rows come from the server that stores them."""

    connection: psycopg.Connection[Any]
    load_id: str
    pid: int
    expected: int | None
    log: EventLog

    def __call__(self, size: int, seconds: float) -> None:
        row = self.connection.execute(
            "SELECT tuples_processed FROM pg_stat_progress_copy WHERE pid = %s", (self.pid,)
        ).fetchone()
        rows = 0 if row is None else row[0]
        fields: dict[str, Any] = {
            "load_id": self.load_id,
            "rows": rows,
            "mb": round(size / 1e6),
            "rows_per_s": round(rows / seconds),
            "mb_per_s": round(size / 1e6 / seconds, 1),
        }
        if rows and self.expected:
            share = min(rows / self.expected, 0.99)
            fields["share"] = f"{share:.0%}"
            fields["remaining"] = humane(timedelta(seconds=seconds / share - seconds))
        self.log("copying", **fields)


def read_position(endpoint: Endpoint, stream: str) -> StreamPosition:
    """Where *stream* stands now."""
    with connect(endpoint) as connection, translated_errors(f"reading the position of {stream}"):
        return ledger.position_of(connection, stream)


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
        connection.execute(sql.SQL("DROP TABLE {}").format(statements.ident(table)))


def _moves_watermark(request: ExtractRequest) -> bool:
    if request.mode is WindowMode.WATERMARK:
        return True
    return request.interval is not None and request.interval.moves_watermark


def watermark_window(
    connection: psycopg.Connection[Any],
    position: StreamPosition,
    cursor_type: str,
    settled: Settled,
    *,
    lookback: timedelta | int | None,
) -> Window | None:
    """From *position*, less *lookback*, to the settled bound; ``None`` if there is nothing between.

    An integer's bound is exclusive, so it is one more than the largest settled value.
    """
    cast = cursor_type_sql(cursor_type)
    kind = cursor_kind(cursor_type)
    if lookback and (kind is CursorKind.TIME) != isinstance(lookback, timedelta):
        raise ConfigurationError(
            f"lookback={lookback!r} does not fit a cursor of type {cursor_type}",
            remedy="give a timedelta for times, a whole number for counters, and none for other types",
        )
    back = sql.SQL("")
    if lookback:
        back = (
            sql.SQL(" - %(lookback)s::interval")
            if kind is CursorKind.TIME
            else sql.SQL(" - %(lookback)s::bigint")
        )
    high = sql.SQL("%(high)s::{t}{more}").format(
        t=cast, more=sql.SQL(" + 1" if kind is CursorKind.INTEGER else "")
    )
    row = connection.execute(
        sql.SQL(
            "SELECT (({low}{back})::{t})::text, ({high})::text, coalesce({high} > {low}, true)"
        ).format(low=sql.SQL("%(low)s::{}").format(cast), back=back, t=cast, high=high),
        {"low": position.position, "high": settled.high, "lookback": lookback},
    ).fetchone()
    if row is None or not row[2]:
        return None
    return Window(low=row[0], high=row[1], type=cursor_type, bounds=settled.bounds)


def _matching_columns(request: ExtractRequest, source: SourceShape, target: Table) -> list[str]:
    """The batch's columns: the source's (or the chosen ones), each present in the target."""
    chosen = list(request.columns or source.names())
    unknown = [name for name in chosen if not target.has_column(name)]
    if unknown:
        raise ContractError(
            f"{source.name} has columns that {target.name} has not: {', '.join(unknown)}",
            remedy=f"add them to {target.name}, or name the columns to load with columns=[...]",
        )
    generated = [name for name in chosen if target.column(name, use="a column").generated]
    if request.columns is None:
        chosen = [name for name in chosen if name not in generated]
    elif generated:
        raise ContractError(
            f"{target.name} computes {', '.join(generated)} itself (GENERATED ALWAYS), so they cannot be loaded",
            remedy="leave them out of columns=[...]",
        )
    starved = [
        column.name
        for column in target.columns
        if column.not_null
        and not (column.has_default or column.generated or column.identity)
        and column.name not in chosen
    ]
    if starved:
        raise ContractError(
            f"{target.name} demands values (NOT NULL, no default) that {source.name} does not give: "
            f"{', '.join(starved)}",
            remedy="add the columns to the source or give the target's columns a default",
        )
    for key in request.keys:
        target.column(key, use="a key")
    return chosen


def _partitions(
    connection: psycopg.Connection[Any], request: ExtractRequest, target: Table, window: Window
) -> tuple[PartitionRange, ...]:
    """The partitions that the window covers whole; none where partitions do not matter."""
    if request.partition is not None:
        catalog.require_range_partitioned(target, request.partition.column)
    if request.kind is not Kind.EVENTS or request.interval is None or request.cursor is None:
        return ()
    if target.partition_strategy != "r" or target.partition_columns != (request.cursor,):
        return ()
    found = expected_partitions(
        connection,
        target,
        spec=request.partition,
        interval=request.interval,
        timezone=request.timezone,
    )
    if found:
        refuse_unswappable(connection, target)
    refuse_default_rows(connection, target, request.cursor, found)
    return found


def _becomes_partition(
    request: ExtractRequest,
    source: SourceShape,
    target: Table,
    partitions: Sequence[PartitionRange],
) -> bool:
    """Whether the staged table can be made as the future partition: one partition, read whole."""
    if len(partitions) != 1:
        return False
    types = {column.name: column.type for column in source.columns}
    column = target.partition_columns[0]
    if types[column] != target.column(column, use="the partition column").type:
        return False
    return not any(column.identity for column in target.columns)


def _manifest(
    request: ExtractRequest,
    plan: StagingPlan,
    source: SourceShape,
    sender: Sender,
    settled: Settled,
    rows: int,
    size: int,
) -> Manifest:
    types = {column.name: column.type for column in source.columns}
    return Manifest(
        load_id=request.load_id,
        stream=request.stream,
        kind=request.kind,
        target_conn_id=request.target_conn_id,
        target=request.target,
        staging=plan.staging,
        source_conn_id=request.source_conn_id,
        source=request.source,
        source_dataset=source.dataset,
        window=plan.window,
        cursor=request.cursor,
        columns=tuple(Column(name, types[name]) for name in plan.columns),
        keys=request.keys,
        partition_column=plan.partition_column,
        partition=request.partition,
        partitions=plan.partitions,
        direct=plan.direct,
        moves_watermark=_moves_watermark(request),
        rows=rows,
        bytes=size,
        snapshot_at=sender.snapshot_at,
        transport="binary" if plan.binary else "text",
        checksum=sender.checksum,
        settled=settled.evidence,
    )
