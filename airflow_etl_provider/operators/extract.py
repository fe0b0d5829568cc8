"""Extraction: one window of a source table into a staged batch."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from airflow_etl_provider.core.columns import Selection, Treatment
from airflow_etl_provider.core.dead_letters import MAX_DEAD_SHARE, DeadLimits, OnConversionError
from airflow_etl_provider.core.errors import ConfigurationError, EtlError
from airflow_etl_provider.core.extract import extract
from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import Source
from airflow_etl_provider.core.request import (
    SLICE_ROWS,
    ExtractRequest,
    NullCursor,
    OnEmpty,
    OpenWindow,
    SchemaContract,
    StageAs,
    WindowMode,
)
from airflow_etl_provider.core.settle import CursorOrigin, SettleOptions, StillSettling
from airflow_etl_provider.core.window import parse_moment
from airflow_etl_provider.hooks.dbapi import dbapi_source, hash_key, is_postgres
from airflow_etl_provider.hooks.errors import airflow_errors
from airflow_etl_provider.hooks.etl_postgres import EtlPostgresHook
from airflow_etl_provider.lineage.datasets import extract_lineage, source_lineage
from airflow_etl_provider.operators.metrics import count_dead_letters
from airflow_etl_provider.operators.run import (
    Stopper,
    application_name,
    choice,
    die_with_supervisor,
    earlier_wait,
    event_log,
    explicit_window,
    load_id_for,
    operator_lineage,
    partition_spec,
    run_info,
    run_interval,
    settle_patience,
    stream_kind,
    wait_outside,
)
from airflow_etl_provider.postgres.relation import Relation, RowSecurity, is_query
from airflow_etl_provider.postgres.rewind import PostgresStoreBinding
from airflow_etl_provider.postgres.source import PostgresSource
from airflow_etl_provider.postgres.staging import PostgresStaging
from airflow_etl_provider.stores.select import store_name, task_store
from airflow_etl_provider.stores.variable import VariableWatermarkStore

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context


class IncrementalExtractOperator(BaseOperator):
    """Stream one window of a table or query into a private staged table, at the speed of COPY.

    Nothing is visible to readers: the staged batch waits for
    :class:`~airflow_etl_provider.operators.validate.QualityValidationOperator` and
    :class:`~airflow_etl_provider.operators.publish.PartitionSwapOperator`. Table, rows and the ledger's
    entry commit together, so a try that dies leaves nothing; a retry that finds its batch already
    staged returns it. Returns the manifest of the batch (small JSON, no rows).

    :param stream: id of the stream, ``[a-z0-9][a-z0-9_.-]{0,99}``; bound to its target by the first
        load, independent of dag and task ids. (templated)
    :param kind: ``events`` (immutable, cursor = partition column), ``entities`` or ``snapshots``.
    :param source_conn_id: connection to read from: PostgreSQL, read by COPY, or any database whose
        Airflow hook is a ``DbApiHook`` (MySQL, MariaDB, SQLite, …), read through its Python driver.
    :param source: a table as ``schema.table``, or a ``SELECT`` (or ``WITH``), in which ``:low`` and
        ``:high`` stand for the bounds of the window. Write ``cursor >= :low AND cursor < :high``: the exact
        window is put around it once more. A query is run twice, once to count rows without a cursor value.
        (templated)
    :param target_conn_id: PostgreSQL connection of the warehouse, which also holds the ledger.
    :param target: ``schema.table`` that the batch is for. (templated)
    :param cursor: column that orders the rows; ``date`` or ``timestamp`` for ``window="interval"``.
    :param window: ``interval`` reads the run's data interval (or the params ``window_low`` and
        ``window_high``, which win); ``watermark`` reads from the stream's watermark to the settled
        bound, and in a backfill the run's interval; ``full`` reads everything; ``nulls`` reads the rows
        without a cursor value, beside a stream with ``null_cursor="sweep"``. A run with a
        ``partition_key`` reads the range of that partition.
    :param keys: columns of the target that identify a row.
    :param columns: columns of the source to load; all of them by default.
    :param rename: names in the target by names in the source.
    :param personal: what becomes of personal data, by column of the source, before it leaves it:
        ``hash`` (HMAC-SHA-256 of its text, in hexadecimal), ``null`` or ``drop``.
    :param hash_conn_id: connection whose password is the key of ``hash``.
    :param partition: ``{"column", "every", "timezone"}``: how the target is partitioned, so that
        missing partitions can be made.
    :param timezone: wall clock that a cursor without time zone shows (IANA name).
    :param origin: where the stream starts (ISO 8601), so that the watermark waits for the first
        window even when a later one is published earlier.
    :param lookback: how far below the watermark a ``watermark`` window begins, for rows that arrive
        late: a timedelta, or a whole number for a counter. Of events, whole partitions are read again.
    :param open_window: ``refuse`` an interval that has not ended, or ``clamp`` it: load it up to the
        settled bound and record no more than that as covered.
    :param schema_contract: what becomes of a column that the target lacks: ``freeze`` refuses it with the
        statement to approve, ``evolve`` adds it (and widens columns where that rewrites no table),
        ``discard_column`` leaves it out. A column that is gone from the source is refused in any case.
    :param stage_as: ``source`` where a transform follows: the batch has the columns and types of the source, which
        the target need not have (types that the warehouse does not know are text); ``target`` else.
    :param on_empty: what becomes of a window without a row: ``publish`` it like any other, ``skip`` what
        follows (the window is recorded as covered), or ``fail``.
    :param cursor_origin: who draws the cursor's values. ``transaction``: the server, inside the writing
        transaction, so that a window is settled once older transactions have ended; ``application``:
        somebody else, so that only the clock less *settle_delay* counts; ``auto``: what the catalog
        proves.
    :param settle_delay: how late an application may commit what it has stamped.
    :param settle_timeout: how long to wait for open transactions of the source before the task fails
        as transient, naming them. A wait of more than a minute leaves the worker slot and comes back.
    :param settle_ignore: roles that never write into the source, whose transactions do not count.
    :param null_cursor: what becomes of rows without a cursor value: ``fail`` the load; ``include`` them in
        every window outside backfills, merged by key; ``sweep``: leave them to a task of their own with
        ``window="nulls"``. Their number is reported in any case.
    :param checksum: compare an order-independent checksum of the rows on both sides; costs about one
        more scan of the window in the source, and one of the batch where the types are the same.
    :param slice_rows: windows of more rows are staged in slices of about so many, so that a retry goes on
        behind the last one; ``None`` stages every window in one piece.
    :param filled_by_publish: columns of the target that publish fills itself (the load's id of ``append``,
        the validity of ``scd2``), so that the source need not give them.
    :param shards: how many slices are read at once, by sessions that share one snapshot.
    :param row_security: ``refuse`` a source whose row security may hide rows from the role, or ``apply``
        it: the rows that the role sees are the ones that are meant.
    :param types: PostgreSQL types of columns, for sources other than PostgreSQL.
    :param on_conversion_error: what becomes of a row that the target's types cannot hold exactly (a text that is no
        number, one that is too long, NULL where a value must be): ``fail`` the load, or ``quarantine`` the row as
        a dead letter. Columns whose types do not agree are then converted value by value, but for the cursor and
        the partition's; the window is read in one piece.
    :param max_dead_share: largest share of the rows (0 to 1) that may be set aside so; with more the load fails.
    :param max_dead_rows: how many rows may be set aside at most.
    :param zero_dates: ``fail`` or ``null``: what becomes of MySQL's ``0000-00-00``.
    :param store: where others read the watermark: ``variable``, ``asset_state`` (Airflow's asset state
        store; the task needs the target's asset as inlet) or ``ledger`` (nowhere else). A stream whose
        store changes is moved, with its position.
    """

    template_fields: Sequence[str] = ("stream", "source", "target", "cursor")
    ui_color = "#d5e8f7"

    def __init__(
        self,
        *,
        stream: str,
        kind: str,
        source_conn_id: str,
        source: str,
        target_conn_id: str,
        target: str,
        cursor: str | None = None,
        window: str = "interval",
        keys: Sequence[str] = (),
        columns: Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        personal: Mapping[str, str] | None = None,
        hash_conn_id: str | None = None,
        partition: Mapping[str, Any] | None = None,
        timezone: str = "UTC",
        origin: str | None = None,
        lookback: timedelta | int = timedelta(0),
        open_window: str = "refuse",
        on_empty: str = "publish",
        schema_contract: str = "freeze",
        stage_as: str = "target",
        cursor_origin: str = "auto",
        settle_delay: timedelta = timedelta(minutes=5),
        settle_timeout: timedelta = timedelta(minutes=10),
        settle_ignore: Sequence[str] = (),
        null_cursor: str = "fail",
        checksum: bool = False,
        slice_rows: int | None = SLICE_ROWS,
        shards: int = 1,
        filled_by_publish: Sequence[str] = (),
        row_security: str = "refuse",
        types: Mapping[str, str] | None = None,
        zero_dates: str = "fail",
        on_conversion_error: str = "fail",
        max_dead_share: float = MAX_DEAD_SHARE,
        max_dead_rows: int | None = None,
        store: str = "variable",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stream = stream
        self.kind = kind
        self.source_conn_id = source_conn_id
        self.source = source
        self.target_conn_id = target_conn_id
        self.target = target
        self.cursor = cursor
        self.window = window
        self.keys = keys
        self.columns = columns
        self.rename = rename
        self.personal = personal
        self.hash_conn_id = hash_conn_id
        self.partition = partition
        self.timezone = timezone
        self.origin = origin
        self.lookback = lookback
        self.open_window = open_window
        self.on_empty = on_empty
        self.schema_contract = schema_contract
        self.stage_as = stage_as
        self.cursor_origin = cursor_origin
        self.settle_delay = settle_delay
        self.settle_timeout = settle_timeout
        self.settle_ignore = settle_ignore
        self.null_cursor = null_cursor
        self.checksum = checksum
        self.slice_rows = slice_rows
        self.shards = shards
        self.filled_by_publish = filled_by_publish
        self.row_security = row_security
        self.types = types
        self.zero_dates = zero_dates
        self.on_conversion_error = on_conversion_error
        self.max_dead_share = max_dead_share
        self.max_dead_rows = max_dead_rows
        self.store = store
        #: Set by the task that audits the batch, so that what its suite misspells is refused before a row moves.
        self.audited_columns: tuple[str, ...] = ()
        self._stopper = Stopper()
        self._source: Source | None = None
        self._manifest: Manifest | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        die_with_supervisor()
        with airflow_errors():
            run = run_info(context)
            # A stream that no store could keep is refused before anything is made for it.
            VariableWatermarkStore().key(self.stream)
            staging = self._staging(application_name("extract", None, run))
            store = task_store(
                self.store,
                context=context,
                stream=self.stream,
                target=self.target,
                binding=PostgresStoreBinding(staging.endpoint),
                log=event_log(__name__),
            )
            load_id = load_id_for(context, run, staging)
            name = application_name("extract", load_id, run)
            request = self._request(context, load_id)
            self._source = self._open_source(name, request.selection)
            try:
                self._manifest = extract(
                    request,
                    source=self._source,
                    area=self._staging(name),
                    store=store,
                    now=datetime.now(UTC),
                    stop=self._stopper,
                    log=event_log(__name__),
                )
            except StillSettling as settling:
                wait_outside(context, load_id, settling)
        if self._manifest.rows_dead:
            count_dead_letters(self.stream, self._staging(name).reasons(load_id))
        if self._manifest.was_empty and request.on_empty is OnEmpty.SKIP:
            raise AirflowSkipException(f"window {self._manifest.window} of {self.source} is empty")
        return self._manifest.as_json()

    def on_kill(self) -> None:
        self._stopper.stop()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """The source table as input, with its schema and what was read of it."""
        return operator_lineage(extract_lineage(self._manifest))

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """The source table, if it could be looked at."""
        if self._source is None:
            return operator_lineage(source_lineage(None))
        with suppress(EtlError):
            return operator_lineage(source_lineage(self._source.describe()))
        return operator_lineage(source_lineage(None))

    def _open_source(self, application: str, selection: Selection) -> Source:
        """PostgreSQL is read by COPY, every other database through its Airflow hook."""
        query = self.source if is_query(self.source) else None
        key = hash_key(self.hash_conn_id) if selection.hashes else None
        if not is_postgres(self.source_conn_id):
            return dbapi_source(
                self.source_conn_id,
                table=None if query else self.source,
                query=query,
                types=self.types,
                timezone=self.timezone,
                zero_dates=self.zero_dates,
                hash_key=key,
            )
        if self.types:
            raise ConfigurationError(
                f"types={dict(self.types)!r} is not possible: {self.source_conn_id} leads to PostgreSQL, which "
                "knows its types",
                remedy="leave it out",
            )
        hook = EtlPostgresHook(postgres_conn_id=self.source_conn_id)
        relation = Relation(query=query) if query else Relation(table=TableName.parse(self.source))
        return PostgresSource(
            hook.endpoint(application),
            relation,
            timezone=self.timezone,
            hash_key=key,
            row_security=choice(RowSecurity, self.row_security, "row_security")
            is RowSecurity.APPLY,
        )

    def _reads_as(self) -> str:
        """A check of what decides about the rows beside the selection; the key itself cannot be found from it."""
        key = hash_key(self.hash_conn_id) or ""
        check = hmac.new(key.encode(), b"etl key check", hashlib.sha256).hexdigest()
        types = sorted((self.types or {}).items())
        return json.dumps([check, self.row_security, types, self.zero_dates])

    def _staging(self, application: str) -> PostgresStaging:
        hook = EtlPostgresHook(postgres_conn_id=self.target_conn_id)
        return PostgresStaging(hook.endpoint(application))

    def _request(self, context: Context, load_id: str) -> ExtractRequest:
        mode = choice(WindowMode, self.window, "window")
        if self.lookback and mode is not WindowMode.WATERMARK:
            raise ConfigurationError(
                f"lookback={self.lookback} is not possible with window={self.window!r}",
                remedy="leave it out: such a window is read as it is",
            )
        run = run_info(context)
        if mode is WindowMode.WATERMARK and (run.is_backfill or explicit_window(context)):
            # An old interval is read again as it was; the live watermark is left alone.
            mode = WindowMode.INTERVAL
        partition = partition_spec(self.partition)
        personal = {
            name: choice(Treatment, "null" if treatment is None else treatment, f"personal {name}")
            for name, treatment in (self.personal or {}).items()
        }
        return ExtractRequest(
            load_id=load_id,
            run=run,
            stream=self.stream,
            kind=stream_kind(self.kind),
            source=self.source,
            source_conn_id=self.source_conn_id,
            target=TableName.parse(self.target),
            target_conn_id=self.target_conn_id,
            cursor=self.cursor,
            keys=tuple(self.keys),
            selection=Selection(
                columns=None if self.columns is None else tuple(self.columns),
                rename=dict(self.rename or {}),
                personal=personal,
            ),
            mode=mode,
            interval=run_interval(context, run, partition) if mode is WindowMode.INTERVAL else None,
            settle=SettleOptions(
                origin=choice(CursorOrigin, self.cursor_origin, "cursor_origin"),
                delay=self.settle_delay,
                timeout=self.settle_timeout,
                ignore=tuple(self.settle_ignore),
                patience=settle_patience(context),
            ),
            wait=earlier_wait(context, load_id),
            lookback=self.lookback or None,
            null_cursor=choice(NullCursor, self.null_cursor, "null_cursor"),
            open_window=choice(OpenWindow, self.open_window, "open_window"),
            on_empty=choice(OnEmpty, self.on_empty, "on_empty"),
            schema_contract=choice(SchemaContract, self.schema_contract, "schema_contract"),
            on_conversion_error=choice(
                OnConversionError, self.on_conversion_error, "on_conversion_error"
            ),
            dead_limits=DeadLimits(self.max_dead_share, self.max_dead_rows),
            stage_as=choice(StageAs, self.stage_as, "stage_as"),
            audited_columns=self.audited_columns,
            slice_rows=self.slice_rows,
            shards=self.shards,
            filled_by_publish=tuple(self.filled_by_publish),
            reads_as=self._reads_as(),
            partition=partition,
            timezone=self.timezone,
            origin=None if self.origin is None else parse_moment(self.origin, "origin"),
            checksum=self.checksum,
            store=store_name(self.store).value,
        )
