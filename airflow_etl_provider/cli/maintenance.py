"""Commands that keep a warehouse in order: ``clean`` and ``rollback``."""

from __future__ import annotations

import argparse
import threading

import structlog

from airflow_etl_provider.cli.answer import OK, Answer, facts, table
from airflow_etl_provider.cli.warehouse import actor, confirm, endpoint_of, ledger_of
from airflow_etl_provider.postgres.clean import CleanOptions
from airflow_etl_provider.postgres.clean import clean as drop_leftovers
from airflow_etl_provider.postgres.rollback import RollbackOptions
from airflow_etl_provider.postgres.rollback import rollback as take_back

_log = structlog.get_logger(__name__)


def clean(arguments: argparse.Namespace) -> Answer:
    """Drop staged tables and replaced versions that no load needs any more; name those nobody registered."""
    options = _options(arguments)
    with ledger_of(endpoint_of(arguments)) as connection:
        cleaned = drop_leftovers(
            connection,
            options,
            stop=threading.Event(),
            log=_log.info,
            dry_run=arguments.dry_run,
        )
    done = "would go" if cleaned.dry_run else "dropped"
    lines = [(done, str(item.table), item.bytes, item.why) for item in cleaned.dropped]
    lines += [("stays", str(item.table), item.bytes, item.stays or "") for item in cleaned.busy]
    lines += [
        ("unknown", str(name), None, "no load registered it") for name in cleaned.unregistered
    ]
    text = table(("", "TABLE", "BYTES", "WHY"), lines) if lines else "nothing to clean"
    return Answer(cleaned.as_json(), text, OK)


def rollback(arguments: argparse.Namespace) -> Answer:
    """Put back the partitions that a published swap replaced, and open its window for another load."""
    with ledger_of(endpoint_of(arguments)) as connection:
        confirm(arguments, "this changes what readers see", f"take back load {arguments.load_id}?")
        done = take_back(
            connection,
            arguments.load_id,
            arguments.reason,
            actor(),
            options=RollbackOptions(move_watermark=arguments.move_watermark),
            stop=threading.Event(),
            log=_log.info,
        )
    text = facts(
        {
            "load": f"{done.load_id}, {'was rolled back before' if done.already else 'rolled back'}",
            "stream": done.stream,
            "partitions": ", ".join(sorted(done.kept)),
            "kept": ", ".join(sorted(name for name in done.kept.values() if name is not None)),
            "position": f"{done.position.position}, {'moved' if done.moved else 'as before'}",
        }
    )
    next_step = "next: mend the source, then clear extract and downstream of its run: the window is not covered"
    return Answer(done.as_json(), text if done.already else f"{text}\n{next_step}", OK)


def _options(arguments: argparse.Namespace) -> CleanOptions:
    return CleanOptions(
        keep_failed=arguments.keep_failed,
        keep_versions=arguments.keep_versions,
        keep_previous=arguments.keep_previous,
        keep_bytes=arguments.keep_bytes,
    )
