"""Publishing a staged batch: ledger, tables and coverage in one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Self

import psycopg
import structlog

from airflow_etl_provider.core.errors import (
    CatalogError,
    ContractError,
    EtlError,
    LockBudgetExceeded,
    Stopped,
    Superseded,
    TerminalError,
)
from airflow_etl_provider.core.load import (
    Manifest,
    Published,
    Strategy,
    StreamPosition,
)
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.publish import Facts, PublishOptions
from airflow_etl_provider.postgres import catalog, ledger, locking
from airflow_etl_provider.postgres.clean import clean_versions
from airflow_etl_provider.postgres.errors import (
    function_of,
    sqlstate_of,
    translate,
    translated_errors,
)
from airflow_etl_provider.postgres.in_place import InPlace
from airflow_etl_provider.postgres.mending import fit_batch
from airflow_etl_provider.postgres.partitions import make_missing_partitions
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.releasing import release_version
from airflow_etl_provider.postgres.session import Endpoint, KeptSession
from airflow_etl_provider.postgres.staging import drop_staging, exists
from airflow_etl_provider.postgres.survey import survey
from airflow_etl_provider.postgres.swap import Swap, staged_tables
from airflow_etl_provider.postgres.swap_merge import SwapMerge, filled_tables

log = structlog.get_logger(__name__)

#: Undefined table, duplicate table, duplicate object, internal error (of the catalog): what two tries of one
#: load do to each other.
_RACES = ("42P01", "42P07", "42710", "XX000")

#: Undefined column, other type: the target was altered since the batch was staged.
_ALTERED = ("42703", "42804")


class PostgresPublisher:
    """The target database over *endpoint*, as publish sees it; one session, which the end of a block closes."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._session = KeptSession(endpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._session.close()

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
        with (
            self._session.use() as connection,
            translated_errors(what),
            self._waiting(connection, manifest.target, options, what),
        ):
            try:
                entered = _enter(connection, manifest, strategy, options)
                if isinstance(entered, Published):
                    return entered
                _require_batch(connection, manifest)
                target = catalog.read_table(connection, manifest.target, label=self.endpoint.label)
                fit_batch(connection, manifest, target, options)
                return self._apply(connection, manifest, target, strategy, options, stop, log)
            except ledger.Replaced as replaced:
                # Nobody comes back to it: what it has staged may go.
                with connection.transaction():
                    ledger.abandon(connection, manifest.load_id, replaced.what)
                raise
            except (psycopg.Error, EtlError) as error:
                sqlstate = _own_state(error)
                if sqlstate in _ALTERED:
                    raise _does_not_fit(manifest, error) from None
                raced = sqlstate in _RACES
                if isinstance(error, Stopped) or not (raced or isinstance(error, TerminalError)):
                    raise
                # Another try of this load, at work at the same time, may have been first with something.
                entered = _enter(connection, manifest, strategy, options)
                if isinstance(entered, Published):
                    return entered
                if not raced:
                    raise
                raise self._raced(connection, manifest, what, error) from None

    @contextmanager
    def _waiting(
        self,
        connection: psycopg.Connection[Any],
        table: TableName,
        options: PublishOptions,
        what: str,
    ) -> Iterator[None]:
        """For statements outside of a transaction that sets a narrower limit: most of them only look at *table*.

        :raises LockBudgetExceeded: another session has it locked against everybody up to the deadline.
        """
        _limit_waiting(connection, options.lock_deadline)
        try:
            yield
        except (psycopg.errors.LockNotAvailable, LockBudgetExceeded) as error:
            if isinstance(error, LockBudgetExceeded) and error.remedy is not None:
                raise
            target = catalog.read_table(connection, table, label=self.endpoint.label)
            found = connection.execute(queries("catalog")["tree"], {"oid": target.oid}).fetchall()
            holders = locking.blockers(connection, target, [oid for (oid,) in found])
            raise LockBudgetExceeded(
                f"{what} waited {options.lock_deadline} for a lock on it, or on what belongs to it; held by {holders}",
                remedy="the load stays validated: end the session that blocks, then retry",
            ) from None

    def _raced(
        self,
        connection: psycopg.Connection[Any],
        manifest: Manifest,
        what: str,
        error: psycopg.Error | EtlError,
    ) -> Superseded:
        """:raises CatalogError: it is the target that is gone."""
        catalog.read_table(connection, manifest.target, label=self.endpoint.label)
        told = error if isinstance(error, EtlError) else translate(error, what)
        return Superseded(
            f"{told.what}: another try of the same load, or somebody else, is at work on its tables",
            remedy="nothing to do: Airflow retries, and finds it published or free; if this comes again while nobody "
            "else is at work, what the server says is the reason",
        )

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
        made = make_missing_partitions(connection, manifest, target, options, stop=stop, log=log)
        if made:
            log("partitions made", partitions=[str(name) for name in made])
        if strategy is Strategy.SWAP_MERGE:
            return SwapMerge(self.endpoint, connection, manifest, target, options, stop, log).run()
        return InPlace(connection, manifest, target, options, stop, log).run(strategy)

    def facts(self, manifest: Manifest, options: PublishOptions) -> Facts:
        what = f"looking at {manifest.target} for load {manifest.load_id}"
        with (
            self._session.use() as connection,
            translated_errors(what),
            self._waiting(connection, manifest.target, options, what),
        ):
            if not exists(connection, manifest.staging):
                # Published before, or gone: publish says which.
                return Facts()
            target = catalog.read_table(connection, manifest.target, label=self.endpoint.label)
            return survey(connection, manifest, target, options)

    def tidy(self, published: Published, manifest: Manifest, options: PublishOptions) -> None:
        with self._session.use() as connection:
            try:
                with translated_errors("dropping replaced versions"):
                    # A reader of an old version is not waited for: it is dropped after a later publish.
                    _limit_waiting(connection, options.lock_budget)
                    for partition in published.partitions:
                        if partition.previous is not None:
                            # Again, should an earlier try have died before it came to this.
                            release_version(
                                connection,
                                TableName.parse(partition.previous),
                                published.load_id,
                                partition.name,
                                budget=options.lock_budget,
                            )
                    if published.partitions:
                        clean_versions(connection, published.target, log=log.info)
                    for table in [
                        *filled_tables(connection, manifest),
                        *staged_tables(manifest),
                        *manifest.earlier_tables,
                    ]:
                        drop_staging(connection, table)
                    connection.execute("RESET lock_timeout")
            except EtlError as error:
                # The load is published; what could not be dropped now is dropped after the next one.
                log.warning("replaced versions stay until the next publish", reason=error.what)

    def position(self, stream: str) -> StreamPosition:
        with (
            self._session.use() as connection,
            translated_errors(f"reading the position of {stream}"),
        ):
            return ledger.position_of(connection, stream)

    def fail(self, load_id: str, error: str) -> None:
        with (
            self._session.use() as connection,
            translated_errors(f"recording the failure of {load_id}"),
        ):
            ledger.mark_failed(connection, load_id, error)


def _limit_waiting(connection: psycopg.Connection[Any], length: timedelta) -> None:
    """No lock that the session asks for is waited for any longer, where its transaction sets no other limit."""
    connection.execute(
        "SELECT set_config('lock_timeout', %s, false)",
        (str(round(length.total_seconds() * 1000)),),
    )


def _enter(
    connection: psycopg.Connection[Any],
    manifest: Manifest,
    strategy: Strategy,
    options: PublishOptions,
) -> StreamPosition | Published:
    """A look at the ledger before the work.

    :raises LockBudgetExceeded: another session holds the stream's row up to the deadline.
    """
    try:
        with connection.transaction():
            locking.wait_at_most(connection, options.lock_deadline)
            return ledger.enter_publish(connection, manifest, strategy)
    except psycopg.errors.LockNotAvailable:
        streams = catalog.read_table(connection, TableName("etl", "streams"), label="the ledger")
        holders = locking.blockers(connection, streams, [], writers=True)
        raise LockBudgetExceeded(
            f"publishing load {manifest.load_id} waited {options.lock_deadline} for another publish or rewind of stream "
            f"{manifest.stream}, held by {holders}",
            remedy="the load stays validated: look at what the other session waits for, then retry",
        ) from None


def _own_state(error: psycopg.Error | EtlError) -> str | None:
    """The SQLSTATE of a statement of ours; what a function of the target (a trigger's) does wrong is not ours."""
    if isinstance(error, EtlError):
        return error.sqlstate if error.function is None else None
    return sqlstate_of(error) if function_of(error) is None else None


def _does_not_fit(manifest: Manifest, error: psycopg.Error | EtlError) -> ContractError:
    # Both sorts of error speak of columns and types, never of rows.
    reason = error.what if isinstance(error, EtlError) else error.diag.message_primary
    return ContractError(
        f"the batch of load {manifest.load_id} does not fit {manifest.target} as it is now: {reason}",
        remedy="clear extract and downstream: the batch is staged anew, as the table is now",
    )


def _require_batch(connection: psycopg.Connection[Any], manifest: Manifest) -> None:
    if not exists(connection, manifest.staging):
        raise ContractError(
            f"the staged table {manifest.staging} of load {manifest.load_id} is gone",
            remedy="clear extract and downstream: the window is read anew",
        )
