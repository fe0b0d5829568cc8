"""``doctor``: whether a server lets the provider keep its promises, and what to change where not."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from airflow_etl_provider.cli.answer import FINDING, OK, Answer
from airflow_etl_provider.cli.warehouse import endpoint_of
from airflow_etl_provider.core.names import quoted
from airflow_etl_provider.postgres.catalog import scalar
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.ledger import LEDGER_VERSION
from airflow_etl_provider.postgres.pooler import BACKEND, pools_transactions
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.rewind import Connection, rows
from airflow_etl_provider.postgres.session import connect

LOCK_BUDGET_MS = 300


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. ``finding`` wants a change, ``note`` is for whom it concerns, ``ok`` is fine."""

    name: str
    level: str
    what: str
    remedy: str | None = None


def doctor(arguments: argparse.Namespace) -> Answer:
    """Look at the server and its ledger; the exit code is 1 if anything wants a change."""
    endpoint = endpoint_of(arguments)
    with (
        connect(endpoint, pooled=True) as connection,
        translated_errors(f"examining {endpoint.label}"),
    ):
        (server,) = rows(connection, "server", {})
        checks = [
            Check(
                "connection", "ok", f"PostgreSQL {server['version']}, database {server['database']}"
            ),
            pooler(pools_transactions(lambda: str(scalar(connection, BACKEND)), endpoint.dsn())),
            *_ledger(connection, server),
            *settings(server),
        ]
    findings = [check for check in checks if check.level == "finding"]
    lines = []
    for check in checks:
        lines.append(f"{check.level:<7}  {check.name:<20}  {check.what}")
        if check.remedy is not None:
            lines.append(f"{'':<7}  {'':<20}  -> {check.remedy}")
    return Answer(
        [asdict(check) for check in checks], "\n".join(lines), FINDING if findings else OK
    )


def settings(server: dict[str, Any]) -> Iterator[Check]:
    """What the server's settings and catalogs say."""
    if server["check_interval"] in ("0", "0ms"):
        yield Check(
            "lost clients",
            "finding",
            "the server does not watch for lost clients (client_connection_check_interval)",
            "run the server on Linux, version 14 or newer; until then end statements of killed tasks by hand",
        )
    else:
        yield Check("lost clients", "ok", f"noticed within {server['check_interval']}")
    if server["deadlock_timeout_ms"] <= LOCK_BUDGET_MS:
        yield Check(
            "deadlock_timeout",
            "finding",
            f"{server['deadlock_timeout_ms']} ms is not above the lock budget of {LOCK_BUDGET_MS} ms, so autovacuum "
            "and deadlock checks get in the way of publishes",
            "set deadlock_timeout = '1s' on the server, or a lower lock_budget on publish",
        )
    else:
        yield Check("deadlock_timeout", "ok", f"{server['deadlock_timeout_ms']} ms")
    if server["standbys"]:
        yield Check(
            "standbys",
            "note",
            f"{server['standbys']} standby servers replay the lock of a swap, and readers there can be cancelled",
            "if people read there, publish with strategy='delete_insert' or 'merge'",
        )
    else:
        yield Check("standbys", "ok", "none")
    if server["publications"]:
        yield Check(
            "publications",
            "note",
            f"FOR ALL TABLES: {', '.join(server['publications'])}; subscribers do not see swaps, and staging tables "
            "that they lack stop their apply workers",
            "publish tables by name, or use strategy='delete_insert', 'merge' or 'replace'",
        )
    else:
        yield Check("publications", "ok", "none FOR ALL TABLES")
    if server["reads_all_stats"]:
        yield Check("pg_read_all_stats", "ok", f"held by role {server['role']}")
    else:
        yield Check(
            "pg_read_all_stats",
            "note",
            f"role {server['role']} does not see other sessions' transactions; as a source, extracts wait open "
            "transactions out instead of reading up to them",
            f"GRANT pg_read_all_stats TO {server['role']}",
        )


def pooler(pools: bool) -> Check:
    """Whether one connection meets several server processes."""
    if not pools:
        return Check("pooler", "ok", "none in between: one server process per connection")
    return Check(
        "pooler",
        "finding",
        "a transaction pooler is in between: transactions of one connection met different server processes",
        "connect extract and publish to the server directly, or pool by session",
    )


def _ledger(connection: Connection, server: dict[str, Any]) -> Iterator[Check]:
    """The ledger's version, and what the role may not do with it."""
    if not scalar(connection, queries("ledger")["ledger_exists"], {}):
        yield Check(
            "ledger",
            "finding",
            "there is none (schema etl)",
            "the first load makes it"
            if server["may_create"]
            else f"GRANT CREATE ON DATABASE {quoted(server['database'])} TO {quoted(server['role'])}, or let an owner run "
            "the files ledger_v*.sql in airflow_etl_provider/postgres/sql in their order",
        )
        return
    missing = rows(connection, "missing_schema_rights", {})
    if not missing:
        missing = rows(connection, "missing_rights", {})
    if missing:
        lacks = "; ".join(f"{row['privileges']} on {row['name']}" for row in missing)
        yield Check(
            "ledger rights",
            "finding",
            f"role {server['role']} lacks {lacks}",
            f"GRANT USAGE, CREATE ON SCHEMA etl, etl_staging TO {quoted(server['role'])}; GRANT SELECT, INSERT, UPDATE, "
            f"DELETE ON ALL TABLES IN SCHEMA etl TO {quoted(server['role'])}",
        )
        return
    version = scalar(connection, queries("rewind")["version"])
    if version > LEDGER_VERSION:
        yield Check(
            "ledger",
            "finding",
            f"version {version} is newer than {LEDGER_VERSION}, which this release knows",
            "upgrade airflow-etl-provider on this machine and on the workers",
        )
    elif version < LEDGER_VERSION:
        yield Check(
            "ledger",
            "finding",
            f"version {version} is older than {LEDGER_VERSION}",
            "the next load brings it up to date, if the role owns it; else let its owner run the files "
            f"ledger_v{version + 1}.sql and later in airflow_etl_provider/postgres/sql",
        )
    else:
        yield Check("ledger", "ok", f"version {version}, rights complete")
