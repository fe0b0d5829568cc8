"""Filling the staged table of one load, in one transaction or slice by slice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
import psycopg2
from psycopg import sql

from airflow_etl_provider.core.columns import Treatment
from airflow_etl_provider.core.dead_letters import listed
from airflow_etl_provider.core.errors import ContractError, DataError, Stopped
from airflow_etl_provider.core.extract import StagingPlan
from airflow_etl_provider.core.load import Column, Manifest
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import (
    Cut,
    EventLog,
    Session,
    Snapshot,
    SourceShape,
    Stop,
)
from airflow_etl_provider.core.request import ExtractRequest
from airflow_etl_provider.core.settle import Settled
from airflow_etl_provider.core.window import humane
from airflow_etl_provider.postgres import ledger, statements
from airflow_etl_provider.postgres.catalog import (
    Table,
    read_partitions,
    read_table,
    stored_otherwise,
)
from airflow_etl_provider.postgres.conversion import RAW_TABLE, Texts
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.partitions import youngest
from airflow_etl_provider.postgres.session import (
    Endpoint,
    connect_for_copy,
    execute_patiently,
    run_patiently,
    session_of,
    text_of,
)
from airflow_etl_provider.postgres.slices import (
    PlannedSlice,
    SliceWriter,
    forget_slices,
    plan_slices,
    slices,
    take_slices,
    taken_over,
)
from airflow_etl_provider.postgres.transfer import relay
from airflow_etl_provider.postgres.twin import twin_to_fill


@dataclass(frozen=True, slots=True)
class _Totals:
    """What was staged, over all slices."""

    rows: int
    bytes: int
    checksum: str | None
    snapshot_at: datetime
    read_until: datetime
    dead: int = 0


class Filling:
    """One fill of one staged table; *watching* is in autocommit, beside the sessions that copy."""

    def __init__(
        self,
        endpoint: Endpoint,
        watching: psycopg.Connection[Any],
        request: ExtractRequest,
        plan: StagingPlan,
        source: SourceShape,
        *,
        stop: Stop,
        log: EventLog,
    ) -> None:
        self._endpoint = endpoint
        self._watching = watching
        self._request = request
        self._plan = plan
        self._source = source
        self._stop = stop
        self._log = log
        self.what = f"staging {source.name} into {plan.staging}"

    def run(self, snapshot: Snapshot, settled: Settled, cut: Cut, *, resumed: bool) -> Manifest:
        """Create, fill and record the table.

        :param resumed: the table is there, with some of the slices.

        :raises Superseded: another try has taken the load over; what this one did is not kept.
        :raises ContractError: both sides count different rows, or another checksum.
        """
        if cut.slices:
            return self._in_slices(snapshot, settled, cut, resumed=resumed)
        return self._in_one_piece(snapshot, settled, cut)

    def _in_one_piece(self, snapshot: Snapshot, settled: Settled, cut: Cut) -> Manifest:
        """Everything in one transaction: COPY FREEZE needs the one that creates the table."""
        sender, conversion = snapshot.sender(None), self._plan.conversion
        with connect_for_copy(self._endpoint, read_only=False) as connection:
            texts = None
            if conversion is not None:
                texts = Texts.of(conversion, self._plan.staging, connection.server_version)
            with translated_errors(self.what), connection.cursor() as cursor:
                own = session_of(connection, "target")
                for session in (own, sender.session):
                    if session is not None:
                        ledger.add_session(self._watching, self._request.load_id, session)
                for step in self._create(texts):
                    cursor.execute(step.as_string(None))
            moved = relay(
                sender,
                connection,
                self._copy_in(freeze=True) if texts is None else self._copy_raw(texts),
                stop=self._stop,
                progress=lambda size, seconds: self._progress(
                    own, size, seconds, sender.estimated_rows
                ),
                what=self.what,
            )
            read_at = snapshot.snapshot_at
            totals = _Totals(moved.rows, moved.bytes, sender.checksum, read_at, read_at)
            received = RAW_TABLE if texts is not None else self._plan.staging
            with translated_errors(self.what), connection.cursor() as cursor:
                self._compare_checksums(cursor, sender.checksum, received)
            if texts is not None:
                totals = self._convert(connection, texts, totals)
            manifest = self._manifest(snapshot, settled, cut, totals)
            with translated_errors(self.what), connection.cursor() as cursor:
                statement, params = ledger.staged_statement(manifest)
                cursor.execute(text_of(statement, params), params)
                if cursor.rowcount != 1:
                    raise taken_over(self._request.load_id)
                connection.commit()
        return manifest

    def _convert(
        self, connection: psycopg2.extensions.connection, texts: Texts, totals: _Totals
    ) -> _Totals:
        """Turn what was received into the staged rows; what cannot be is set aside, in the same transaction.

        :raises DataError: more rows than may be; then none is.
        """
        request = self._request

        def run(statement: sql.Composable) -> int:
            if self._stop.is_set():
                raise Stopped(f"{self.what}: stopped on request; nothing was stored")
            return execute_patiently(connection, statement)

        with translated_errors(f"converting the rows of {self._plan.staging}"):
            run(texts.judge())
            reasons = {
                reason: int(rows) for reason, rows in run_patiently(connection, texts.count())
            }
            dead = sum(reasons.values())
            broken = request.dead_limits.exceeded(dead, totals.rows)
            if broken is not None:
                raise DataError(
                    f"{dead:,} of {totals.rows:,} rows of {self._source.name} cannot be stored in {request.target}, and "
                    f"{broken}: {listed(reasons)}",
                    remedy="nothing was set aside: mend the source or the types of the target, or allow more with "
                    "max_dead_share and max_dead_rows",
                )
            if dead:
                run(
                    texts.set_aside(
                        request.stream, request.load_id, self._keys(), request.target_cursor
                    )
                )
                run(texts.drop_bad())
                self._log("rows set aside", load_id=request.load_id, rows=dead, reasons=reasons)
            stored = run(texts.convert())
        if stored + dead != totals.rows:
            raise ContractError(
                f"{self.what}: {totals.rows:,} rows were received, {stored:,} stored and {dead:,} set aside",
                remedy="nothing was kept; look for triggers or rules on the target, then clear the task",
            )
        return replace(totals, rows=stored, dead=dead)

    def _keys(self) -> tuple[str, ...]:
        """What a letter is known by."""
        batch = {column.name for column in self._plan.columns}
        keys = self._request.keys or self._plan.primary_key
        return keys if batch.issuperset(keys) else ()

    def _in_slices(
        self, snapshot: Snapshot, settled: Settled, cut: Cut, *, resumed: bool
    ) -> Manifest:
        """The table is there first, then slice by slice what it holds."""
        request, watching = self._request, self._watching
        with translated_errors(self.what), watching.transaction():
            planned = slices(watching, request.load_id)
            if not resumed:
                # What another try has planned meanwhile is not in this one's table.
                forget_slices(watching, request.load_id)
                for step in self._create():
                    watching.execute(step)
                plan_slices(watching, request.load_id, cut.slices)
                planned = [PlannedSlice(part, None, None, None, None) for part in cut.slices]
            take_slices(
                watching,
                request.load_id,
                staging=self._plan.staging,
                settled=settled.evidence,
                fingerprint=request.fingerprint,
                try_number=request.run.try_number,
            )
        writer = SliceWriter(
            endpoint=self._endpoint,
            load_id=request.load_id,
            try_number=request.run.try_number,
            copy_in=self._copy_in(freeze=False),
            what=self.what,
            name_session=self._name_session,
            progress=lambda part, size, seconds, own: self._progress(
                own, size, seconds, None, slice=f"{part.number + 1} of {len(planned)}"
            ),
            stop=self._stop,
            log=self._log,
        )
        done = writer.write(snapshot, planned, shards=request.shards)
        totals = _Totals(
            rows=sum(part.rows or 0 for part in done),
            bytes=sum(part.bytes or 0 for part in done),
            checksum=str(sum(int(part.checksum or 0) for part in done))
            if request.checksum
            else None,
            # The oldest: of a row that changed since, a load that read later knows better.
            snapshot_at=min(part.snapshot_at or snapshot.snapshot_at for part in done),
            read_until=max(part.snapshot_at or snapshot.snapshot_at for part in done),
        )
        manifest = self._manifest(snapshot, settled, cut, totals)
        with translated_errors(self.what), watching.transaction(), watching.cursor() as cursor:
            self._compare_checksums(cursor, totals.checksum, self._plan.staging)
            statement, params = ledger.staged_statement(manifest)
            cursor.execute(statement, params)
            if cursor.rowcount != 1:
                raise taken_over(request.load_id)
            # Their bounds are values of rows, and nobody needs them any more.
            forget_slices(watching, request.load_id)
        return manifest

    def _create(self, texts: Texts | None = None) -> list[sql.Composed]:
        plan, request = self._plan, self._request
        names = [column.name for column in plan.columns]
        target = read_table(self._watching, request.target, label=self._endpoint.label)
        types = {column.name: column.type for column in target.columns}
        alike = [
            name
            for name, type_ in zip(names, plan.types or map(types.get, names), strict=True)
            if types.get(name) == type_
        ]
        otherwise = stored_otherwise(self._watching, target, alike)
        if plan.types is not None:
            create = [
                statements.create_typed(
                    plan.staging, list(zip(names, plan.types, strict=True)), logged=plan.logged
                )
            ]
        elif plan.direct:
            create = self._twin(target)
        else:
            create = [
                statements.create_staging(plan.staging, request.target, names, logged=plan.logged)
            ]
        comment = (
            f"stream {request.stream}, load {request.load_id}, try {request.run.try_number}, "
            f"window {plan.window}, for {request.target}"
        )
        if not plan.direct:
            create += statements.uncompressed(plan.staging, otherwise)
        if texts is not None:
            create += texts.create(otherwise)
        return [*create, statements.comment(plan.staging, comment)]

    def _twin(self, target: Table) -> list[sql.Composed]:
        """Make the table stored as the one partition is that it becomes, or as a sibling of that."""
        (part,) = self._plan.partitions
        name = TableName(target.name.schema, part.name)
        existing = [one for one in read_partitions(self._watching, target) if one.is_leaf]
        old = next((one for one in existing if one.table == name), None)
        column = target.column(target.partition_columns[0], use="the partition column")
        sibling = youngest(self._watching, existing, column.type)
        return twin_to_fill(self._watching, self._plan.staging, target, old, sibling)

    def _copy_in(self, *, freeze: bool) -> str:
        columns = [column.name for column in self._plan.columns]
        return statements.copy_in(
            self._plan.staging, columns, binary=self._plan.binary, freeze=freeze
        ).as_string(None)

    def _copy_raw(self, texts: Texts) -> str:
        return statements.copy_in(
            RAW_TABLE, texts.received, binary=self._plan.binary, freeze=False
        ).as_string(None)

    def _compare_checksums(
        self,
        cursor: psycopg.Cursor[Any] | psycopg2.extensions.cursor,
        sent: str | None,
        received: TableName,
    ) -> None:
        """Where both sides have the same types, what was received has the checksum of what was sent."""
        if sent is None or not self._plan.binary:
            return
        columns = [column.name for column in self._plan.columns]
        statement = statements.checksum(statements.ident(received), columns)
        cursor.execute(statement.as_string(None))
        (found,) = cursor.fetchone() or (None,)
        if found != sent:
            raise ContractError(
                f"{self.what}: the checksum of what was sent ({sent}) is not that of what is staged ({found})",
                remedy="nothing was kept; look for triggers or rules on the target, then clear the task",
            )

    def _name_session(self, session: Session) -> None:
        ledger.add_session(self._watching, self._request.load_id, session)

    def _progress(
        self, own: Session, size: int, seconds: float, expected: int | None, **fields: Any
    ) -> None:
        """Say how far a COPY is; rows come from the server that stores them."""
        row = self._watching.execute(
            "SELECT tuples_processed FROM pg_stat_progress_copy WHERE pid = %s", (own.pid,)
        ).fetchone()
        rows = 0 if row is None else row[0]
        fields |= {
            "load_id": self._request.load_id,
            "rows": rows,
            "mb": round(size / 1e6),
            "rows_per_s": round(rows / seconds),
            "mb_per_s": round(size / 1e6 / seconds, 1),
        }
        if rows and expected:
            share = min(rows / expected, 0.99)
            fields["share"] = f"{share:.0%}"
            fields["remaining"] = humane(timedelta(seconds=seconds / share - seconds))
        self._log("copying", **fields)

    def _manifest(
        self, snapshot: Snapshot, settled: Settled, cut: Cut, totals: _Totals
    ) -> Manifest:
        request, plan, source = self._request, self._plan, self._source
        types = {column.name: column.type for column in source.columns}
        if plan.conversion is not None:
            types |= {c.name: c.type for c in plan.conversion.columns if c.text}
        return Manifest(
            load_id=request.load_id,
            stream=request.stream,
            kind=request.kind,
            target_conn_id=request.target_conn_id,
            target=request.target,
            staging=plan.staging,
            source_conn_id=request.source_conn_id,
            source=source.name,
            source_datasets=source.datasets,
            window=plan.window,
            cursor=request.target_cursor,
            columns=tuple(
                Column(
                    column.name,
                    types[column.name],
                    source=None if source.is_query else column.source,
                    personal=None if column.treatment is Treatment.KEEP else column.treatment.value,
                )
                for column in plan.columns
            ),
            keys=request.keys,
            partition_column=plan.partition_column,
            partition=request.partition,
            partitions=plan.partitions,
            direct=plan.direct,
            moves_watermark=request.moves_watermark,
            rows=totals.rows,
            bytes=totals.bytes,
            snapshot_at=totals.snapshot_at,
            read_until=totals.read_until,
            transport="binary" if plan.binary else "text",
            checksum=totals.checksum,
            settled=settled.evidence,
            null_rows=snapshot.null_cursors,
            slices=max(len(cut.slices), 1),
            rows_dead=totals.dead,
        )
