"""Commands that move: ``watermark rewind``, ``watermark reset`` and ``watermark repair``."""

from __future__ import annotations

import argparse
from typing import Any

from airflow_etl_provider.cli.answer import FINDING, OK, Answer
from airflow_etl_provider.cli.variables import HostVariables, RestVariables
from airflow_etl_provider.cli.warehouse import actor, confirm, endpoint_of, ledger_of, stream_of
from airflow_etl_provider.core.errors import EtlError
from airflow_etl_provider.core.load import StreamPosition
from airflow_etl_provider.core.watermark import follow
from airflow_etl_provider.postgres import ledger
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.rewind import rewind
from airflow_etl_provider.postgres.session import Endpoint, connect

_BY_RUN = "its next run brings it in line"


def move(arguments: argparse.Namespace) -> Answer:
    """Rewind a stream to a value, or reset it as if it had never loaded."""
    endpoint, variables = endpoint_of(arguments), _variables(arguments)
    with ledger_of(endpoint) as connection:
        stream = stream_of(connection, arguments.stream)
        _confirm(arguments, stream)
        moved = rewind(
            connection,
            arguments.stream,
            arguments.to,
            arguments.reason,
            actor(),
            allow_forward=arguments.allow_forward,
        )
    in_line, note = True, "the ledger, which needs nothing more"
    if stream["store"] != "ledger":
        in_line, note = _followed(endpoint, stream, variables)
    data = {
        "stream": moved.stream,
        "position_from": stream["position"],
        "position": moved.position,
        "fence": moved.fence,
        "store": stream["store"],
        "store_in_line": in_line,
        "store_note": note,
    }
    text = (
        f"{moved.stream}: {stream['position'] or 'no position'} -> {moved.position or 'no position'}, "
        f"fence {moved.fence}\nstore: {note}\n"
        "next: a stream with window='watermark' loads the range with its next run; with window='interval' clear "
        "or backfill the runs of that range"
    )
    return Answer(data, text)


def repair(arguments: argparse.Namespace) -> Answer:
    """Write the Variable anew from the ledger, whatever it holds: an edit by hand is discarded."""
    endpoint, variables = endpoint_of(arguments), _variables(arguments)
    with ledger_of(endpoint) as connection:
        stream = stream_of(connection, arguments.stream)
    name, store = stream["stream"], stream["store"]
    if store == "ledger":
        done, note = True, "the ledger alone shows this stream: there is nothing to repair"
    elif store != "variable":
        done = False
        note = f"only tasks of its DAG can write the store {store}: {_BY_RUN}"
    elif variables is None:
        done = False
        note = (
            f"nothing here can write Variable etl.watermark.{name}: name --api-url, or --conn-id on an Airflow "
            f"host. Of a copy that is older or missing, {_BY_RUN}; one that was edited by hand is deleted in "
            "Airflow first"
        )
    else:
        variables.remove(name)
        follow(variables, name, lambda: _position(endpoint, name), log=_silent)
        done, note = (
            True,
            f"{variables.where(name)} says what the ledger says: {stream['position']}",
        )
    data = {"stream": name, "store": store, "repaired": done, "note": note}
    return Answer(data, f"{name}: {note}", OK if done else FINDING)


def _variables(arguments: argparse.Namespace) -> RestVariables | HostVariables | None:
    """What can write Variables from here, if anything can."""
    if arguments.api_url is not None:
        return RestVariables.from_environment(arguments.api_url)
    # Whoever can resolve a connection of Airflow has Airflow here.
    return None if arguments.conn_id is None else HostVariables()


def _followed(
    endpoint: Endpoint, stream: dict[str, Any], variables: RestVariables | HostVariables | None
) -> tuple[bool, str]:
    """Bring the copy in line after a move that is already committed: what fails here is no failure."""
    name = stream["stream"]
    if variables is None or stream["store"] != "variable":
        return False, f"{stream['store']}; {_BY_RUN}"
    try:
        follow(variables, name, lambda: _position(endpoint, name), log=_silent)
    except EtlError as error:
        return False, f"{variables.where(name)} was not written ({error.what}); {_BY_RUN}"
    return True, f"{variables.where(name)}, in line"


def _position(endpoint: Endpoint, stream: str) -> StreamPosition:
    with connect(endpoint) as connection, translated_errors(f"reading stream {stream}"):
        return ledger.position_of(connection, stream)


def _silent(event: str, **fields: object) -> None:
    """The answer says what was done."""


def _confirm(arguments: argparse.Namespace, stream: dict[str, Any]) -> None:
    goal = "no position (everything is loaded again)" if arguments.to is None else arguments.to
    confirm(
        arguments,
        "this moves a watermark",
        f"{stream['stream']} -> {stream['target']}: from {stream['position']} to {goal}?",
    )
