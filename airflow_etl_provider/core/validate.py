"""The use case *validate*: a staged batch is audited before anybody can read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from airflow_etl_provider.core.dead_letters import DeadLimits, Fault
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
        """:raises ContractError: the staged table is gone."""
        ...

    def fingerprint(self, manifest: Manifest) -> str | None:
        """What tells the staged rows, as they are now, from any others that may take their place.

        ``None`` for what holds no rows of its own, such as a view.
        """
        ...

    def require_rows(self, manifest: Manifest, rows: int | None) -> None:
        """What an audit has seen are the staged rows.

        :param rows: how many it saw; ``None`` if it could not count them.
        :raises ContractError: the staged table no longer holds the staged rows.
        :raises Superseded: another try has set some of them aside.
        """
        ...

    def record_audit(self, manifest: Manifest, report: AuditReport, *, error: str | None) -> None:
        """Record the verdict on the batch.

        :raises Superseded: the batch of the load is another one by now.
        """
        ...

    def count_failing(
        self, manifest: Manifest, faults: Sequence[Fault]
    ) -> tuple[int, Mapping[str, int]]:
        """How many rows of the batch have any of *faults*, and how many each, by its reason."""
        ...

    def remaining(
        self, manifest: Manifest, faults: Sequence[Fault]
    ) -> AbstractContextManager[TableName]:
        """The rows of the batch that have none of *faults*, as a table that can be audited."""
        ...

    def set_aside(
        self, manifest: Manifest, faults: Sequence[Fault], report: AuditReport
    ) -> Manifest:
        """Turn the rows with *faults* into dead letters and record the audit of the rest, in one transaction.

        :raises ContractError: rows of the batch were changed while it was audited.
        :raises Superseded: another try has changed the batch.
        """
        ...

    def fail(self, load_id: str, error: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Quarantine:
    """How rows that fail an expectation leave the batch instead of blocking it.

    :param faults: what is wrong with rows, according to a report; none where nothing is to be set aside.
    :param combined: the report of a batch from which rows were set aside, of the one before and the one of
        what remains.
    """

    faults: Callable[[AuditReport, TableName], Sequence[Fault]]
    combined: Callable[[AuditReport, AuditReport], AuditReport]
    limits: DeadLimits = DeadLimits()  # noqa: RUF009 - a frozen value


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit left: the batch, the report (none of what is published already), and why rows were set aside."""

    manifest: Manifest
    report: AuditReport | None
    set_aside: Mapping[str, int] = field(default_factory=dict)


def validate(
    load_id: str,
    *,
    area: AuditArea,
    audit: Audit,
    reject: Callable[[AuditReport, TableName], None],
    log: EventLog,
    quarantine: Quarantine | None = None,
) -> Audited:
    """Audit the staged batch of a load and record the verdict; what is true stands in the ledger.

    A load that was rejected is audited again, so that a corrected suite can let it pass; one that is
    already published is left alone, with no report. Rows are set aside only from a batch that is then
    published: everything else is judged of what remains of it, and one that is rejected stays whole.

    :param reject: raises :class:`QualityGateFailed` for a rejected report.
    :raises QualityGateFailed: the verdict is ``rejected``, or more rows would be set aside than may be; readers
        saw nothing, the batch stays.
    """
    load = area.load(load_id)
    manifest = load.manifest
    if manifest is None:
        raise StateError(f"load {load_id} has staged nothing", remedy="clear the extract task")
    if load.state is LoadState.PUBLISHED:
        log("already published; the audit is not repeated", load_id=load_id)
        return Audited(manifest, None)
    if load.state not in (LoadState.STAGED, LoadState.VALIDATED, LoadState.REJECTED):
        raise StateError(
            f"load {load_id} is {load.state}, so there is no batch to audit",
            remedy="clear extract and downstream to load the window anew",
        )
    reasons: Mapping[str, int] = {}
    refusal: QualityGateFailed | None = None
    try:
        area.require_batch(manifest)
        # Before the audit: what is changed under its eyes is not what is published.
        manifest = replace(manifest, audited=area.fingerprint(manifest))
        report = audit(manifest.staging, load_id)
        area.require_rows(manifest, report.rows)
        faults = [] if quarantine is None else quarantine.faults(report, manifest.staging)
        if quarantine is not None and faults:
            dead, reasons = area.count_failing(manifest, faults)
            refusal = _too_many(manifest, dead, reasons, quarantine.limits)
            if refusal is None:
                with area.remaining(manifest, faults) as rest:
                    report = quarantine.combined(report, audit(rest, load_id))
    except EtlError as error:
        # The warehouse may be what was lost: the first error is the one to tell.
        with suppress(EtlError):
            area.fail(load_id, error.what)
        raise
    try:
        if refusal is not None:
            raise refusal
        reject(report, manifest.staging)
    except QualityGateFailed as failure:
        area.record_audit(manifest, report, error=failure.what)
        log(
            "batch rejected",
            load_id=load_id,
            staging=str(manifest.staging),
            failures=list(failure.failures),
        )
        raise
    if faults:
        manifest = area.set_aside(manifest, faults, report)
        log("rows set aside", load_id=load_id, rows=manifest.rows_dead, reasons=dict(reasons))
    else:
        area.record_audit(manifest, report, error=None)
    log(
        "batch validated",
        load_id=load_id,
        verdict=report.verdict,
        rows=manifest.rows,
        dead=manifest.rows_dead,
    )
    return Audited(manifest, report, reasons)


def _too_many(
    manifest: Manifest, dead: int, reasons: Mapping[str, int], limits: DeadLimits
) -> QualityGateFailed | None:
    """The refusal of a batch of which more rows would be set aside than may be, those of its extract included."""
    before = manifest.rows_dead
    broken = limits.exceeded(before + dead, before + manifest.rows)
    if broken is None:
        return None
    earlier = f", beside {before:,} that were before" if before else ""
    return QualityGateFailed(
        f"load {manifest.load_id}: {dead:,} of {before + manifest.rows:,} rows would be set aside{earlier}, and "
        f"{broken}; nothing was set aside, and nothing was published",
        failures=[f"{reason}: {rows:,} rows" for reason, rows in reasons.items()],
        remedy=f"look at the rows, which are kept in {manifest.staging}; mend the data or the suite, or allow more "
        "with max_dead_share and max_dead_rows, then clear the task `validate`.",
    )
