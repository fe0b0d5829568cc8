"""Extraction: one window of a source table into a staged batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_etl_provider.core.errors import ConfigurationError, EtlError
from airflow_etl_provider.core.extract import ExtractRequest, WindowMode, extract
from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import Source
from airflow_etl_provider.core.settle import CursorOrigin, SettleOptions
from airflow_etl_provider.core.window import parse_moment
from airflow_etl_provider.hooks.dbapi import dbapi_source, is_postgres
from airflow_etl_provider.hooks.errors import airflow_errors
from airflow_etl_provider.hooks.etl_postgres import EtlPostgresHook
from airflow_etl_provider.lineage.datasets import extract_lineage, source_lineage
from airflow_etl_provider.operators.run import (
    Stopper,
    application_name,
    die_with_supervisor,
    event_log,
    explicit_window,
    load_id_for,
    operator_lineage,
    partition_spec,
    run_info,
    run_interval,
    stream_kind,
)
from airflow_etl_provider.postgres.rewind import PostgresStoreBinding
from airflow_etl_provider.postgres.source import PostgresSource
from airflow_etl_provider.postgres.staging import PostgresStaging
from airflow_etl_provider.stores.select import store_name, task_store
from airflow_etl_provider.stores.variable import VariableWatermarkStore

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context


class IncrementalExtractOperator(BaseOperator):
    """Stream one window of a PostgreSQL table into a private staged table, at the speed of COPY.

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
    :param source: ``schema.table``. (templated)
    :param target_conn_id: PostgreSQL connection of the warehouse, which also holds the ledger.
    :param target: ``schema.table`` that the batch is for. (templated)
    :param cursor: column that orders the rows; ``date`` or ``timestamp`` for ``window="interval"``.
    :param window: ``interval`` reads the run's data interval (or the params ``window_low`` and
        ``window_high``, which win); ``watermark`` reads from the stream's watermark to the settled
        bound, and in a backfill the run's interval; ``full`` reads everything.
    :param keys: columns that identify a row.
    :param columns: columns to load; all columns of the source by default.
    :param partition: ``{"column", "every", "timezone"}``: how the target is partitioned, so that
        missing partitions can be made.
    :param timezone: wall clock that a cursor without time zone shows (IANA name).
    :param origin: where the stream starts (ISO 8601), so that the watermark waits for the first
        window even when a later one is published earlier.
    :param lookback: how far below the watermark a ``watermark`` window begins, for rows that arrive
        late: a timedelta, or a whole number for a counter.
    :param cursor_origin: who draws the cursor's values. ``transaction``: the server, inside the writing
        transaction, so that a window is settled once older transactions have ended; ``application``:
        somebody else, so that only the clock less *settle_delay* counts; ``auto``: what the catalog
        proves.
    :param settle_delay: how late an application may commit what it has stamped.
    :param settle_timeout: how long to wait for open transactions of the source before the task fails
        as transient, naming them.
    :param settle_ignore: roles that never write into the source, whose transactions do not count.
    :param null_cursor: ``fail``: rows without a cursor value fail the load.
    :param checksum: also take an order-independent checksum of the rows in the same snapshot; costs
        about one more scan of the window.
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
        partition: Mapping[str, Any] | None = None,
        timezone: str = "UTC",
        origin: str | None = None,
        lookback: timedelta | int = timedelta(0),
        cursor_origin: str = "auto",
        settle_delay: timedelta = timedelta(minutes=5),
        settle_timeout: timedelta = timedelta(minutes=10),
        settle_ignore: Sequence[str] = (),
        null_cursor: str = "fail",
        checksum: bool = False,
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
        self.partition = partition
        self.timezone = timezone
        self.origin = origin
        self.lookback = lookback
        self.cursor_origin = cursor_origin
        self.settle_delay = settle_delay
        self.settle_timeout = settle_timeout
        self.settle_ignore = settle_ignore
        self.null_cursor = null_cursor
        self.checksum = checksum
        self.store = store
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
            self._source = self._open_source(name)
            self._manifest = extract(
                self._request(context, load_id),
                source=self._source,
                area=self._staging(name),
                store=store,
                now=datetime.now(UTC),
                stop=self._stopper,
                log=event_log(__name__),
            )
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

    def _open_source(self, application: str) -> Source:
        """PostgreSQL is read by COPY, every other database through its Airflow hook."""
        if not is_postgres(self.source_conn_id):
            return dbapi_source(self.source_conn_id, table=self.source, timezone=self.timezone)
        hook = EtlPostgresHook(postgres_conn_id=self.source_conn_id)
        return PostgresSource(
            hook.endpoint(application), TableName.parse(self.source), timezone=self.timezone
        )

    def _staging(self, application: str) -> PostgresStaging:
        hook = EtlPostgresHook(postgres_conn_id=self.target_conn_id)
        return PostgresStaging(hook.endpoint(application))

    def _request(self, context: Context, load_id: str) -> ExtractRequest:
        try:
            mode = WindowMode(self.window)
        except ValueError:
            raise ConfigurationError(
                f"window={self.window!r} is unknown", remedy=f"use one of {', '.join(WindowMode)}"
            ) from None
        if self.null_cursor != "fail":
            raise ConfigurationError(
                f"null_cursor={self.null_cursor!r} is unknown",
                remedy="use 'fail': rows without a cursor value fail the load",
            )
        if self.lookback and mode is not WindowMode.WATERMARK:
            raise ConfigurationError(
                f"lookback={self.lookback} is not possible with window={self.window!r}",
                remedy="leave it out: such a window is read as it is",
            )
        run = run_info(context)
        if mode is WindowMode.WATERMARK and (run.is_backfill or explicit_window(context)):
            # An old interval is read again as it was; the live watermark is left alone.
            mode = WindowMode.INTERVAL
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
            columns=None if self.columns is None else tuple(self.columns),
            mode=mode,
            interval=run_interval(context, run) if mode is WindowMode.INTERVAL else None,
            settle=SettleOptions(
                origin=_origin(self.cursor_origin),
                delay=self.settle_delay,
                timeout=self.settle_timeout,
                ignore=tuple(self.settle_ignore),
            ),
            lookback=self.lookback or None,
            partition=partition_spec(self.partition),
            timezone=self.timezone,
            origin=None if self.origin is None else parse_moment(self.origin, "origin"),
            checksum=self.checksum,
            store=store_name(self.store).value,
        )


def _origin(origin: str) -> CursorOrigin:
    try:
        return CursorOrigin(origin)
    except ValueError:
        raise ConfigurationError(
            f"cursor_origin={origin!r} is unknown", remedy=f"use one of {', '.join(CursorOrigin)}"
        ) from None
