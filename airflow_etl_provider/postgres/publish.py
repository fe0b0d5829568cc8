"""Publishing a staged batch: ledger, tables and coverage in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
import structlog

from airflow_etl_provider.core.errors import CatalogError, ContractError, EtlError, Superseded
from airflow_etl_provider.core.load import (
    Manifest,
    Published,
    Strategy,
    StreamPosition,
)
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.publish import Facts, PublishOptions
from airflow_etl_provider.postgres import catalog, ledger
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.in_place import InPlace
from airflow_etl_provider.postgres.mending import fit_batch
from airflow_etl_provider.postgres.partitions import make_missing_partitions
from airflow_etl_provider.postgres.session import Endpoint, connect
from airflow_etl_provider.postgres.staging import drop_staging, exists, read_position
from airflow_etl_provider.postgres.survey import survey
from airflow_etl_provider.postgres.swap import Swap, release, staged_tables
from airflow_etl_provider.postgres.swap_merge import SwapMerge, filled_tables

log = structlog.get_logger(__name__)

#: Undefined table, duplicate table, duplicate object: what two tries of one load do to each other.
_RACES = ("42P01", "42P07", "42710")


@dataclass(frozen=True, slots=True)
class PostgresPublisher:
    """The target database over *endpoint*, as publish sees it."""

    endpoint: Endpoint

    def publish(
        self,
        manifest: Manifest,
        strategy: Strategy,
        options: PublishOptions,
        *,
        stop: Stop,
        log: EventLog,
    ) -> Published:
        what = f"publishing load {manifest.load_id} into {manifest.target}"
        with connect(self.endpoint) as connection, translated_errors(what):
            with connection.transaction():
                entered = ledger.enter_publish(connection, manifest, strategy)
            if isinstance(entered, Published):
                return entered
            _require_batch(connection, manifest)
            target = catalog.read_table(connection, manifest.target, label=self.endpoint.label)
            fit_batch(connection, manifest, target, options)
            try:
                return self._apply(connection, manifest, target, strategy, options, stop, log)
            except (
                psycopg.errors.UndefinedTable,
                psycopg.errors.DuplicateTable,
                psycopg.errors.DuplicateObject,
                psycopg.errors.InternalError_,
                CatalogError,
            ) as error:
                if isinstance(error, CatalogError) and error.sqlstate not in _RACES:
                    raise
                # Another try of this load, at work at the same time, was first with something.
                with connection.transaction():
                    entered = ledger.enter_publish(connection, manifest, strategy)
                if isinstance(entered, Published):
                    return entered
                raise Superseded(
                    f"{what}: another try of the same load is at work",
                    remedy="nothing to do: Airflow retries, and finds it published or free",
                ) from None

    def _apply(
        self,
        connection: psycopg.Connection[Any],
        manifest: Manifest,
        target: catalog.Table,
        strategy: Strategy,
        options: PublishOptions,
        stop: Stop,
        log: EventLog,
    ) -> Published:
        if strategy is Strategy.SWAP:
            return Swap(self.endpoint, connection, manifest, target, options, stop, log).run()
        if strategy is Strategy.SWAP_MERGE and target.partition_strategy is None:
            raise CatalogError(
                f"{target.name} is not partitioned, so no partition of it can be swapped",
                remedy="use strategy='merge' (entities) or 'delete_insert' (events)",
            )
        made = make_missing_partitions(
            connection,
            manifest,
            target,
            lock_budget=options.lock_budget,
        )
        if made:
            log("partitions made", partitions=[str(name) for name in made])
        if strategy is Strategy.SWAP_MERGE:
            return SwapMerge(self.endpoint, connection, manifest, target, options, stop, log).run()
        return InPlace(connection, manifest, target, options, stop).run(strategy)

    def facts(self, manifest: Manifest, options: PublishOptions) -> Facts:
        what = f"looking at {manifest.target} for load {manifest.load_id}"
        with connect(self.endpoint) as connection, translated_errors(what):
            if not exists(connection, manifest.staging):
                # Published before, or gone: publish says which.
                return Facts()
            target = catalog.read_table(connection, manifest.target, label=self.endpoint.label)
            return survey(connection, manifest, target, options)

    def tidy(self, published: Published, manifest: Manifest, options: PublishOptions) -> None:
        with connect(self.endpoint) as connection:
            try:
                with translated_errors("dropping replaced versions"):
                    # A reader of an old version is not waited for: it is dropped after a later publish.
                    connection.execute(
                        "SELECT set_config('lock_timeout', %s, false)",
                        (str(round(options.lock_budget.total_seconds() * 1000)),),
                    )
                    for partition in published.partitions:
                        if partition.previous is not None and not published.already:
                            release(connection, published.load_id, partition)
                        for old in ledger.old_versions(
                            connection, partition.name, keep=options.keep_versions
                        ):
                            drop_staging(connection, old)
                    for table in [*filled_tables(connection, manifest), *staged_tables(manifest)]:
                        drop_staging(connection, table)
            except EtlError as error:
                # The load is published; what could not be dropped now is dropped after the next one.
                log.warning("replaced versions stay until the next publish", reason=error.what)

    def position(self, stream: str) -> StreamPosition:
        return read_position(self.endpoint, stream)

    def fail(self, load_id: str, error: str) -> None:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"recording the failure of {load_id}"),
        ):
            ledger.mark_failed(connection, load_id, error)


def _require_batch(connection: psycopg.Connection[Any], manifest: Manifest) -> None:
    if not exists(connection, manifest.staging):
        raise ContractError(
            f"the staged table {manifest.staging} of load {manifest.load_id} is gone",
            remedy="clear extract and downstream: the window is read anew",
        )
