"""Publishing a staged batch: ledger, tables and coverage in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
import structlog

from airflow_etl_provider.core.errors import ContractError, EtlError
from airflow_etl_provider.core.load import (
    LoadState,
    Manifest,
    Published,
    Strategy,
    StreamPosition,
)
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.publish import PublishOptions
from airflow_etl_provider.postgres import catalog, ledger
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.in_place import InPlace
from airflow_etl_provider.postgres.partitions import make_missing_partitions
from airflow_etl_provider.postgres.session import Endpoint, connect
from airflow_etl_provider.postgres.staging import drop_staging, exists, read_position
from airflow_etl_provider.postgres.swap import Swap

log = structlog.get_logger(__name__)


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
                position, current = ledger.lock_for_publish(connection, manifest)
                if current.state is LoadState.PUBLISHED:
                    return ledger.published_before(connection, manifest, position)
                newer = ledger.overtaken_by(connection, current, manifest.window)
                if newer is not None:
                    return _overtaken(connection, manifest, position, strategy, newer, log)
            _require_batch(connection, manifest)
            target = catalog.read_table(connection, manifest.target, label=self.endpoint.label)
            if strategy is Strategy.SWAP:
                return Swap(self.endpoint, connection, manifest, target, options, stop, log).run()
            made = make_missing_partitions(
                connection,
                manifest,
                target,
                lock_timeout_ms=round(options.lock_budget.total_seconds() * 1000),
            )
            if made:
                log("partitions made", partitions=[str(name) for name in made])
            return InPlace(connection, manifest, target, options, stop).run(strategy)

    def tidy(self, published: Published, manifest: Manifest, options: PublishOptions) -> None:
        with connect(self.endpoint) as connection:
            try:
                with translated_errors("dropping replaced versions"):
                    for partition in published.partitions:
                        for old in ledger.old_versions(
                            connection, partition.name, keep=options.keep_versions
                        ):
                            drop_staging(connection, old)
                    drop_staging(connection, manifest.staging)
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


def _overtaken(
    connection: psycopg.Connection[Any],
    manifest: Manifest,
    position: StreamPosition,
    strategy: Strategy,
    newer: str,
    log: EventLog,
) -> Published:
    """A newer load shows this window already: an older batch must not replace it."""
    ledger.abandon(
        connection, manifest.load_id, f"load {newer} began later and published this window"
    )
    log(
        "a newer load has published this window; nothing to do",
        load_id=manifest.load_id,
        newer=newer,
    )
    return Published(
        load_id=manifest.load_id,
        stream=manifest.stream,
        target=manifest.target,
        strategy=strategy,
        window=manifest.window,
        rows_inserted=0,
        rows_updated=0,
        rows_deleted=0,
        rows_unchanged=0,
        partitions=(),
        lock_ms=0.0,
        position=position,
        already=True,
    )
