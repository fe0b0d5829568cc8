"""Commands that keep a warehouse in order: ``clean``, ``maintain``, ``restore`` and ``rollback``."""

from __future__ import annotations

import argparse
import threading

import structlog

from airflow_etl_provider.cli.answer import OK, Answer, facts, table
from airflow_etl_provider.cli.warehouse import actor, confirm, endpoint_of, ledger_of
from airflow_etl_provider.core.maintenance import MaintenanceOptions
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.partition import PartitionSpec
from airflow_etl_provider.postgres.clean import CleanOptions
from airflow_etl_provider.postgres.clean import clean as drop_leftovers
from airflow_etl_provider.postgres.maintenance import maintain as keep_in_order
from airflow_etl_provider.postgres.restore import restore as bring_back
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


def maintain(arguments: argparse.Namespace) -> Answer:
    """Make the partitions to come of a table, retire old ones, and renew the statistics of the whole."""
    options = MaintenanceOptions(
        partition=None
        if arguments.every is None
        else PartitionSpec(arguments.column or "", arguments.every, arguments.timezone),
        ahead=arguments.ahead,
        keep=arguments.keep,
        keep_partitions=arguments.keep_partitions,
        keep_detached=arguments.keep_detached,
        timezone=arguments.timezone,
    )
    with ledger_of(endpoint_of(arguments)) as connection:
        done = keep_in_order(
            connection,
            TableName.parse(arguments.table),
            options,
            actor(),
            stop=threading.Event(),
            log=_log.info,
            dry_run=arguments.dry_run,
        )
    made, retired = ("would be made", "would go") if done.dry_run else ("made", "retired")
    lines = [(made, str(name), "") for name in done.made]
    lines += [(retired, str(one.partition), f"kept as {one.kept}") for one in done.retired]
    lines += [("left", left.what, left.why) for left in done.left]
    lines += [("analyzed", str(done.target), "")] if done.analyzed else []
    text = table(("", "WHAT", "WHY"), lines) if lines else "nothing to do"
    return Answer(done.as_json(), text, OK)


def restore(arguments: argparse.Namespace) -> Answer:
    """Attach a retired partition again, under its old name; its range is covered as before."""
    with ledger_of(endpoint_of(arguments)) as connection:
        confirm(arguments, "this changes what readers see", f"attach {arguments.partition}?")
        done = bring_back(
            connection,
            TableName.parse(arguments.partition),
            MaintenanceOptions(),
            stop=threading.Event(),
            log=_log.info,
        )
    return Answer(done.as_json(), f"{done.partition} is a partition of {done.target} again", OK)


def rollback(arguments: argparse.Namespace) -> Answer:
    """Put back the partitions that a published swap replaced, and open its window for another load."""
    with ledger_of(endpoint_of(arguments)) as connection:
        confirm(arguments, "this changes what readers see", f"take back load {arguments.load_id}?")
        done = take_back(
            connection,
            arguments.load_id,
            arguments.reason,
            actor(),
            options=RollbackOptions(
                move_watermark=arguments.move_watermark,
                discard_changes=arguments.discard_changes,
            ),
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
        keep_unfinished=arguments.keep_unfinished,
        keep_versions=arguments.keep_versions,
        keep_previous=arguments.keep_previous,
        keep_bytes=arguments.keep_bytes,
    )
