"""The use case *validate*: a staged batch is audited before anybody can read it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Protocol

from airflow_etl_provider.core.errors import EtlError, QualityGateFailed, StateError
from airflow_etl_provider.core.load import Load, LoadState, Manifest
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import AuditReport, EventLog


class Engine(StrEnum):
    """``auto``: SQL, and Great Expectations for what SQL cannot say; ``sql`` refuses that instead; ``gx``: all by
    Great Expectations, but for the expectations that it does not have."""

    AUTO = "auto"
    SQL = "sql"
    GX = "gx"


class ResultFormat(StrEnum):
    """How much a report holds of failing rows, in the words of Great Expectations: nothing, or a few values."""

    BOOLEAN_ONLY = "BOOLEAN_ONLY"
    BASIC = "BASIC"


Audit = Callable[[TableName, str], AuditReport]
"""Audits a table for a load id."""


class AuditArea(Protocol):
    """The target database as validate sees it."""

    def load(self, load_id: str) -> Load:
        """The load with its manifest, from the ledger.

        :raises StateError: the ledger does not know it.
        """
        ...

    def require_batch(self, manifest: Manifest) -> None:
        """:raises ContractError: the staged table is gone or no longer holds the staged rows."""
        ...

    def record_audit(
        self, load_id: str, report: AuditReport, *, error: str | None, staging: TableName | None
    ) -> None:
        """Record the verdict on *staging*.

        :raises Superseded: the batch of the load is another one by now.
        """
        ...

    def fail(self, load_id: str, error: str) -> None: ...


def validate(
    load_id: str,
    *,
    area: AuditArea,
    audit: Audit,
    reject: Callable[[AuditReport, TableName], None],
    log: EventLog,
) -> tuple[Manifest, AuditReport | None]:
    """Audit the staged batch of a load and record the verdict; what is true stands in the ledger.

    A load that was rejected is audited again, so that a corrected suite can let it pass; one that is
    already published is left alone, with no report.

    :param reject: raises :class:`QualityGateFailed` for a rejected report.
    :raises QualityGateFailed: the verdict is ``rejected``; readers saw nothing, the batch stays.
    """
    load = area.load(load_id)
    manifest = load.manifest
    if manifest is None:
        raise StateError(f"load {load_id} has staged nothing", remedy="clear the extract task")
    if load.state is LoadState.PUBLISHED:
        log("already published; the audit is not repeated", load_id=load_id)
        return manifest, None
    if load.state not in (LoadState.STAGED, LoadState.VALIDATED, LoadState.REJECTED):
        raise StateError(
            f"load {load_id} is {load.state}, so there is no batch to audit",
            remedy="clear extract and downstream to load the window anew",
        )
    try:
        area.require_batch(manifest)
        report = audit(manifest.staging, load_id)
    except EtlError as error:
        # The warehouse may be what was lost: the first error is the one to tell.
        with suppress(EtlError):
            area.fail(load_id, error.what)
        raise
    try:
        reject(report, manifest.staging)
    except QualityGateFailed as failure:
        area.record_audit(load_id, report, error=failure.what, staging=manifest.staging)
        log(
            "batch rejected",
            load_id=load_id,
            staging=str(manifest.staging),
            failures=list(failure.failures),
        )
        raise
    area.record_audit(load_id, report, error=None, staging=manifest.staging)
    log("batch validated", load_id=load_id, verdict=report.verdict, rows=manifest.rows)
    return manifest, report
