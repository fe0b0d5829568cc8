"""The warehouse that a command works on, and what its ledger says."""

from __future__ import annotations

import argparse
import getpass
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from airflow_etl_provider.cli.answer import UsageError
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.postgres import ledger
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.rewind import (
    Connection,
    endpoint_of_dsn,
    rows,
    unknown_stream,
)
from airflow_etl_provider.postgres.session import Endpoint, connect

_APPLICATION = "airflow-etl"


def endpoint_of(arguments: argparse.Namespace) -> Endpoint:
    """The database that ``--dsn``, ``--service`` or ``--conn-id`` names.

    :raises UsageError: a connection string that libpq cannot read.
    :raises ConfigurationError: Airflow has no such connection.
    """
    if arguments.conn_id is not None:
        # Airflow takes seconds to import, and only this option needs it.
        try:
            from airflow_etl_provider.hooks.etl_postgres import EtlPostgresHook
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--conn-id needs Airflow with its postgres provider on this machine ({error.name} is missing): "
                "name the warehouse with --service or --dsn"
            ) from None

        return EtlPostgresHook(postgres_conn_id=arguments.conn_id).endpoint(_APPLICATION)
    if arguments.service is not None:
        return Endpoint(
            {"service": arguments.service}, f"service {arguments.service}", _APPLICATION
        )
    try:
        return endpoint_of_dsn(arguments.dsn, _APPLICATION)
    except ConfigurationError as error:
        raise UsageError(f"--dsn: {error.what}; {error.remedy}") from None


@contextmanager
def ledger_of(endpoint: Endpoint, *, current: bool = False) -> Iterator[Connection]:
    """A connection to a warehouse whose ledger this release can read.

    :param current: an older one, which the next load brings up to date, will not do.
    :raises StateError: there is no ledger, or a newer one.
    """
    with (
        connect(endpoint) as connection,
        translated_errors(f"reading the ledger on {endpoint.label}"),
    ):
        ledger.require_ledger(connection, label=endpoint.label, current=current)
        yield connection


def stream_of(connection: Connection, stream: str) -> dict[str, Any]:
    """What the ledger says about one stream.

    :raises ConfigurationError: it knows no such stream.
    """
    found = rows(connection, "overview", {"stream": stream})
    if not found:
        raise unknown_stream(connection, stream)
    return found[0]


def coverage_of(connection: Connection, stream: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The published windows of a stream, those that touch each other merged, in order.

    Ranges that retention no longer keeps stand between them as ``retired``.
    """
    if stream["type"] is None:
        return []
    return rows(
        connection,
        "covered",
        {"stream": stream["stream"], "start": stream["origin"]},
        cast=stream["type"],
    )


def gaps_in(stream: Mapping[str, Any], covered: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What lies between the published windows, and between the stream's start and the first of them."""
    gaps = [
        (before["high"], after["low"]) for before, after in pairwise(covered) if after["after_gap"]
    ]
    if covered and covered[0]["after_start"]:
        gaps.insert(0, (stream["origin"], covered[0]["low"]))
    return gaps


def actor() -> str:
    """Who is at the keyboard, for the record of a move."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "somebody"
    return f"{user}@{socket.gethostname()} by airflow-etl"


def confirm(arguments: argparse.Namespace, what: str, question: str) -> None:
    """Ask, unless ``--yes`` was given.

    :raises UsageError: nobody is there to ask, or the answer was no.
    """
    if arguments.yes:
        return
    if arguments.json or not sys.stdin.isatty():
        raise UsageError(f"{what}: add --yes where nobody can be asked")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was changed")
