"""Keeping a warehouse in order: what loads leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_etl_provider.hooks.errors import airflow_errors
from airflow_etl_provider.hooks.etl_postgres import EtlPostgresHook
from airflow_etl_provider.operators.run import (
    Stopper,
    application_name,
    die_with_supervisor,
    event_log,
    run_info,
)
from airflow_etl_provider.postgres.clean import CleanOptions, clean
from airflow_etl_provider.postgres.session import connect

if TYPE_CHECKING:
    from airflow.sdk import Context


class WarehouseCleanOperator(BaseOperator):
    """Drop staged tables and replaced partitions that no load of a warehouse needs any more.

    Safe beside loads: only tables that the ledger registers, each looked at again under its lock; what is
    in use stays for the next run, and what nobody registered is named in the log. Returns what was dropped,
    what stays and what is unknown (small JSON).

    :param target_conn_id: PostgreSQL connection of the warehouse. (templated)
    :param keep_failed: how long staged tables of rejected and failed loads stay.
    :param keep_versions: replaced versions per partition that stay for a rollback.
    :param keep_previous: how long those stay at most.
    :param keep_bytes: what all of them may take on disk together, in bytes; the newest stay.
    :param dry_run: drop nothing, and say what would go.
    """

    template_fields: Sequence[str] = ("target_conn_id",)

    def __init__(
        self,
        *,
        target_conn_id: str,
        keep_failed: timedelta = timedelta(days=7),
        keep_versions: int = 1,
        keep_previous: timedelta = timedelta(days=7),
        keep_bytes: int | None = None,
        dry_run: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.target_conn_id = target_conn_id
        self.keep_failed = keep_failed
        self.keep_versions = keep_versions
        self.keep_previous = keep_previous
        self.keep_bytes = keep_bytes
        self.only_look = dry_run
        self._stopper = Stopper()

    def execute(self, context: Context) -> dict[str, Any]:
        die_with_supervisor()
        with airflow_errors():
            options = CleanOptions(
                keep_failed=self.keep_failed,
                keep_versions=self.keep_versions,
                keep_previous=self.keep_previous,
                keep_bytes=self.keep_bytes,
            )
            name = application_name("clean", None, run_info(context))
            endpoint = EtlPostgresHook(postgres_conn_id=self.target_conn_id).endpoint(name)
            with connect(endpoint) as connection:
                cleaned = clean(
                    connection,
                    options,
                    stop=self._stopper,
                    log=event_log(__name__),
                    dry_run=self.only_look,
                )
        return cleaned.as_json()

    def on_kill(self) -> None:
        self._stopper.stop()
