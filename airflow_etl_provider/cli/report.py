"""``report``: what the audit of a load found, values of failing rows included."""

from __future__ import annotations

import argparse
import os
import stat
from pathlib import Path
from typing import Any
from uuid import UUID

from airflow_etl_provider.cli.answer import FINDING, OK, Answer, UsageError, facts
from airflow_etl_provider.cli.warehouse import endpoint_of, ledger_of
from airflow_etl_provider.core.errors import StateError
from airflow_etl_provider.core.load import Load
from airflow_etl_provider.postgres import ledger
from airflow_etl_provider.quality.data_docs import render
from airflow_etl_provider.quality.report import ExpectationResult, Report, Verdict, printable

_OWNER_ONLY = 0o600


def report(arguments: argparse.Namespace) -> Answer:
    """What the audit of a load found, with up to three values of each failed expectation.

    They come from the ledger and are shown nowhere else: no task log, XCom or lineage has them.
    """
    load_id = _load_id(arguments.load_id)
    endpoint = endpoint_of(arguments)
    with ledger_of(endpoint) as connection:
        load = ledger.load(connection, load_id)
    if load is None:
        raise StateError(
            f"the ledger on {endpoint.label} knows no load {load_id}",
            remedy="airflow-etl loads STREAM lists the loads of a stream",
        )
    if load.report is None:
        raise StateError(
            f"load {load_id} of stream {load.stream} is {load.state} and has no report",
            remedy="the task validate makes it",
        )
    about = _about(load)
    if "results" not in load.report:
        # Nobody audited it: because the task said so, or because there was no row.
        told = {name: str(value) for name, value in load.report.items() if name != "load_id"}
        return Answer(load.report, facts(about | told))
    found = Report.from_ledger(load.report)
    code = OK if found.verdict is Verdict.PASSED else FINDING
    if arguments.html is None:
        return Answer(load.report, f"{facts(about)}\n\n{_as_text(found)}", code)
    path = _written(arguments.html, f"{load_id}.html", render(found, about | _audited(found)))
    return Answer(
        {"load_id": load_id, "verdict": found.verdict.value, "html": str(path)},
        f"wrote {path}",
        code,
    )


def _load_id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise UsageError(
            f"{text!r} is no load id: it looks like 01a1fb68-0490-73ab-80d6-f50624ed5825"
        ) from None


def _about(load: Load) -> dict[str, str]:
    told = {
        "load": load.load_id,
        "stream": load.stream,
        "target": str(load.target),
        "window": str(load.window),
        "state": load.state.value,
        "error": load.error,
        "staged in": None if load.staging is None else str(load.staging),
    }
    return {name: printable(value) for name, value in told.items() if value is not None}


def _audited(found: Report) -> dict[str, str]:
    seconds = (found.finished_at - found.started_at).total_seconds()
    held = sum(result.success for result in found.results)
    return {
        "rows": "uncounted" if found.rows is None else f"{found.rows:,}",
        "audited": f"{found.started_at.isoformat(sep=' ', timespec='seconds')}, in {seconds:.1f} s by {found.engine}",
        "expectations": f"{held} of {len(found.results)} hold",
    }


def _as_text(found: Report) -> str:
    lines = [found.as_table()]
    for result in found.results:
        samples = _samples(result)
        if samples:
            lines.append(f"{printable(result.name)}: for example {samples}")
    return "\n".join(lines)


def _samples(result: ExpectationResult) -> str:
    """Values of rows that failed, or what was observed instead of what was expected."""
    if result.success:
        return ""
    values: list[Any] = [value for value in result.partial_unexpected_list if value is not None]
    if not values and result.observed_value is not None:
        values = [result.observed_value]
    return ", ".join(printable(str(value)) for value in values)


def _written(given: str, name: str, text: str) -> Path:
    """Write a page that only its owner may read, since it shows values of rows.

    :raises UsageError: it cannot be written there.
    """
    path = Path(given)
    if path.is_dir():
        path /= name
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _OWNER_ONLY)
        with os.fdopen(descriptor, "w", encoding="utf-8") as page:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                # The page that it replaces may have been open to others.
                os.fchmod(descriptor, _OWNER_ONLY)
            page.write(text)
    except OSError as error:
        raise UsageError(f"--html: {path} cannot be written: {error.strerror}") from None
    return path
