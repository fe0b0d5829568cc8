"""Commands that keep a warehouse in order: ``clean``."""

from __future__ import annotations

import argparse
import threading

import structlog

from airflow_etl_provider.cli.answer import OK, Answer, table
from airflow_etl_provider.cli.warehouse import endpoint_of, ledger_of
from airflow_etl_provider.postgres.clean import CleanOptions
from airflow_etl_provider.postgres.clean import clean as drop_leftovers

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


def _options(arguments: argparse.Namespace) -> CleanOptions:
    return CleanOptions(
        keep_failed=arguments.keep_failed,
        keep_versions=arguments.keep_versions,
        keep_previous=arguments.keep_previous,
        keep_bytes=arguments.keep_bytes,
    )
