"""The target database as transform sees it: SQL and callables over a staged batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
import structlog

from airflow_etl_provider.core.errors import ContractError, EtlError
from airflow_etl_provider.core.load import Load, Manifest
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.transform import BySql, TransformRequest
from airflow_etl_provider.postgres import dead_letters, ledger
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.rebatch import LETTER, Rebatch
from airflow_etl_provider.postgres.session import Endpoint, connect, end_sessions
from airflow_etl_provider.postgres.staging import drop_staging, exists
from airflow_etl_provider.postgres.transform_python import by_callable
from airflow_etl_provider.postgres.transform_sql import by_sql

log = structlog.get_logger(__name__)

#: How long a reader of a table that is not needed any more may hold up its end.
_PATIENCE = "1s"


@dataclass(frozen=True, slots=True)
class PostgresTransforms:
    """Transforms batches over *endpoint*."""

    endpoint: Endpoint

    def load(self, load_id: str) -> Load:
        with connect(self.endpoint) as connection:
            ledger.ensure_ledger(connection, label=self.endpoint.label)
            return ledger.require_load(connection, load_id, label=self.endpoint.label)

    def has(self, staging: TableName) -> bool:
        with connect(self.endpoint) as connection, translated_errors(f"looking for {staging}"):
            return exists(connection, staging)

    def transform(
        self, request: TransformRequest, current: Manifest, *, stop: Stop, log: EventLog
    ) -> Manifest:
        batch = current.extracted
        with (
            connect(self.endpoint) as watching,
            translated_errors(f"transforming {batch.staging}"),
        ):
            _end_earlier_tries(watching, current.load_id)
            if not exists(watching, batch.staging):
                raise ContractError(
                    f"the staged table {batch.staging} of load {current.load_id} is gone",
                    remedy="clear extract and downstream: the window is read anew",
                )
            rebatch = Rebatch.planned(self.endpoint, watching, request, current, stop=stop, log=log)
            how = request.how
            made = by_sql(rebatch, how) if isinstance(how, BySql) else by_callable(rebatch, how)
            ledger.forget_sessions(watching, current.load_id)
            _drop_replaced(watching, made)
        return made

    def reasons(self, load_id: str) -> dict[str, int]:
        """Why rows were set aside by a transform, with their numbers."""
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"counting what load {load_id} set aside"),
        ):
            found = dead_letters.reasons(connection, load_id)
        return {reason: rows for reason, rows in found.items() if reason.startswith(LETTER)}

    def fail(self, load_id: str, error: str) -> None:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"recording the failure of {load_id}"),
        ):
            ledger.mark_failed(connection, load_id, error)


def _end_earlier_tries(connection: psycopg.Connection[Any], load_id: str) -> None:
    """End what earlier tries of this task have running; their tables go with their transactions."""
    known = ledger.sessions(connection, load_id)
    ended = end_sessions(connection, known)
    if ended:
        log.warning("sessions of an earlier try were still at work", pids=ended)


def _drop_replaced(connection: psycopg.Connection[Any], made: Manifest) -> None:
    """Drop what earlier transforms of the load made; somebody who looks at it is not waited for long.

    What stays is dropped with the load's other tables, when it is published or abandoned.
    """
    for table in () if made.transformed is None else made.transformed.replaced:
        try:
            with translated_errors(f"dropping {table}"), connection.transaction():
                connection.execute("SELECT set_config('lock_timeout', %s, true)", (_PATIENCE,))
                drop_staging(connection, table)
        except EtlError as error:
            log.warning(
                "a replaced staged table stays until the load is published", reason=error.what
            )
