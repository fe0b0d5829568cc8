"""Commands for rows that were set aside: ``dead-letters list``, ``show``, ``replay`` and ``discard``."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
import uuid6

from airflow_etl_provider.cli.answer import (
    FINDING,
    OK,
    Answer,
    UsageError,
    facts,
    table,
    window_text,
)
from airflow_etl_provider.cli.warehouse import actor, confirm, endpoint_of, ledger_of
from airflow_etl_provider.core.dead_letters import LetterStatus
from airflow_etl_provider.core.load import RunInfo
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.replay import ReplayRequest, Values
from airflow_etl_provider.postgres import letters
from airflow_etl_provider.postgres.replay import replay_letters
from airflow_etl_provider.postgres.rewind import Connection
from airflow_etl_provider.postgres.session import Endpoint
from airflow_etl_provider.quality.gx import GreatExpectationsAuditor
from airflow_etl_provider.quality.report import Report
from airflow_etl_provider.quality.suite import Suite, load_suite

_log = structlog.get_logger(__name__)


def list_letters(arguments: argparse.Namespace) -> Answer:
    """Rows that were set aside and wait to be mended; with --status others too."""
    statuses = [LetterStatus(name) for name in arguments.status or [LetterStatus.PENDING]]
    with ledger_of(endpoint_of(arguments), current=True) as connection:
        found, counts = letters.listed(
            connection,
            stream=arguments.stream,
            load_id=arguments.load,
            statuses=statuses,
            limit=arguments.limit,
        )
    total = sum(count["letters"] for count in counts)
    data = {"letters": found, "counts": counts, "total": total}
    if not found:
        return Answer(data, "no dead letters")
    text = table(
        ("LETTERS", "STREAM", "STATUS", "REASON"),
        [(c["letters"], c["stream"], c["status"], c["reason"]) for c in counts],
    )
    text += "\n\n" + table(
        ("ID", "STREAM", "STATUS", "KEY", "RETRIES", "SET ASIDE", "REASON"),
        [
            (
                str(letter["id"]),
                letter["stream"],
                letter["status"],
                letter["record_key"],
                letter["retries"],
                letter["occurred_at"],
                letter["reason"],
            )
            for letter in found
        ],
    )
    if total > len(found):
        text += f"\n{total - len(found):,} more: --limit"
    pending = any(count["status"] == LetterStatus.PENDING for count in counts)
    return Answer(data, text, FINDING if pending else OK)


def show(arguments: argparse.Namespace) -> Answer:
    """One dead letter with its row, as the source had it."""
    with ledger_of(endpoint_of(arguments), current=True) as connection:
        letter = letters.shown(connection, arguments.id)
    window = "everything"
    if letter["window_type"] is not None:
        window = window_text(letter["window_low"], letter["window_high"], letter["bounds"])
    text = facts(
        {
            "letter": f"{letter['id']}, {letter['status']}",
            "stream": f"{letter['stream']} -> {letter['target']}",
            "reason": letter["reason"],
            "severity": letter["severity"],
            "load": f"{letter['load_id']}, {letter['dag_id']} {letter['run_id']}",
            "window": window,
            "key": letter["record_key"],
            "set aside": letter["occurred_at"],
            "retries": letter["retries"],
            "resolved": letter["resolved_at"],
            "resolution": letter["resolution"],
        }
    )
    row = {name: "NULL" if text is None else text for name, text in letter["record"].items()}
    return Answer(letter, f"{text}\n\n{facts(row)}")


def replay(arguments: argparse.Namespace) -> Answer:
    """Bring rows back through conversion, audit and publish; what fails again stays pending."""
    endpoint = endpoint_of(arguments)
    with ledger_of(endpoint, current=True) as connection:
        corrections = _corrections(connection, arguments.corrections)
        ids = None if arguments.all else arguments.id or sorted(corrections) or None
        if ids is None and not arguments.all:
            raise UsageError("name letters with --id or --corrections, or take --all")
        confirm(
            arguments,
            "this changes what readers see",
            f"replay {'all pending letters' if ids is None else f'{len(ids)} letters'} of {arguments.stream}?",
        )
    request = ReplayRequest(
        stream=arguments.stream,
        run=_run(),
        ids=None if ids is None else tuple(ids),
        values={**dict(arguments.set or []), **dict.fromkeys(arguments.set_null or [], None)},
        corrections=corrections,
    )
    done = replay_letters(
        endpoint,
        request,
        None if arguments.suite is None else load_suite(arguments.suite),
        by_gx=_by_gx(endpoint),
        new_id=lambda: str(uuid6.uuid7()),
        stop=threading.Event(),
        log=_log.info,
    )
    if not (done.replayed or done.superseded or done.failed or done.waiting):
        done.raise_refused()
    others = ", ".join(f"{number:,} {status}" for status, number in done.others.items())
    text = facts(
        {
            "replayed": done.replayed,
            "superseded": done.superseded,
            "failed again": done.failed,
            "waiting": done.waiting,
            "refused": done.refused or None,
            "left alone": others,
        }
    )
    if done.failed:
        text += f"\nnext: airflow-etl dead-letters list {done.stream} says why"
    if done.waiting:
        text += "\nnext: clear extract and downstream of the runs whose windows are not covered, or that transform rows"
    for error in done.errors:
        text += f"\nrefused: {error}"
    unfinished = done.failed or done.waiting or done.refused
    return Answer(done.as_json(), text, FINDING if unfinished else OK)


def discard(arguments: argparse.Namespace) -> Answer:
    """Give rows up that nobody will mend; they stay in the ledger, with the reason."""
    with ledger_of(endpoint_of(arguments), current=True) as connection:
        ids = arguments.id
        if not ids:
            if arguments.stream is None or not (arguments.all or arguments.load):
                raise UsageError("name letters with --id, or a --stream with --load or --all")
            ids = letters.pending_ids(connection, arguments.stream, arguments.load)
        confirm(arguments, "this gives rows up", f"discard {len(ids):,} letters?")
        done = letters.discard(connection, ids, arguments.reason, actor())
    others = "".join(f", {number:,} {status} before" for status, number in done.others.items())
    return Answer(
        done.as_json(),
        f"{len(done.ids):,} discarded{others}",
        OK if done.ids or not ids else FINDING,
    )


def _run() -> RunInfo:
    """Who replays, for the ledger."""
    return RunInfo(
        dag_id="airflow-etl",
        task_id="dead-letters",
        run_id=f"{actor()} {uuid6.uuid7()}",
        run_type="manual",
        map_index=-1,
        try_number=1,
        clear_number=0,
    )


def _by_gx(endpoint: Endpoint) -> Any:
    def judge(table: TableName, suite: Suite, load_id: str) -> Report:
        auditor = GreatExpectationsAuditor(endpoint.parameters(), endpoint.application_name)
        return auditor.audit(table.schema, table.name, suite, load_id=load_id)

    return judge


def _corrections(connection: Connection, path: str | None) -> dict[int, Values]:
    """Corrections of single letters: values by id, or letters as ``show --json`` prints them, edited.

    :raises UsageError: the file cannot be read, or is neither.
    """
    if path is None:
        return {}
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(document, Mapping) and "record" not in document:
            return {int(letter): dict(values) for letter, values in document.items()}
        edited = document if isinstance(document, list) else [document]
        return {
            int(letter["id"]): _differences(connection, letter["id"], letter["record"])
            for letter in edited
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f'--corrections {path}: {type(error).__name__}; write {{"7": {{"column": "value"}}}}, or edit what '
            "`dead-letters show --json` prints"
        ) from None


def _differences(connection: Connection, letter: int, record: Mapping[str, Any]) -> Values:
    before = letters.shown(connection, letter)["record"]
    return {
        name: text for name, text in record.items() if name not in before or before[name] != text
    }
