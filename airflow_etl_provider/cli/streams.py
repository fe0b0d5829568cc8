"""Commands that look: ``status``, ``coverage``, ``loads``, ``watermark show``."""

from __future__ import annotations

import argparse
from typing import Any

from airflow_etl_provider.cli.answer import FINDING, OK, Answer, facts, span, table, window_text
from airflow_etl_provider.cli.warehouse import (
    coverage_of,
    endpoint_of,
    gaps_in,
    ledger_of,
    stream_of,
)
from airflow_etl_provider.postgres.rewind import rows


def status(arguments: argparse.Namespace) -> Answer:
    """Every stream of the warehouse, one line each."""
    streams: list[dict[str, Any]] = []
    with ledger_of(endpoint_of(arguments)) as connection:
        for stream in rows(connection, "overview", {"stream": None}):
            gaps = gaps_in(stream, coverage_of(connection, stream))
            streams.append({**stream, "gaps": len(gaps)})
    if not streams:
        return Answer([], "no streams yet: the first load of each makes its entry")
    text = table(
        ("STREAM", "TARGET", "KIND", "POSITION", "LAG", "LAST LOAD", "AT", "GAPS", "DEAD"),
        [
            (
                stream["stream"],
                stream["target"],
                stream["kind"],
                stream["position"],
                span(stream["lag_seconds"]),
                stream["last_state"],
                stream["last_at"],
                stream["gaps"],
                stream["dead_pending"],
            )
            for stream in streams
        ],
    )
    return Answer(streams, text)


def show(arguments: argparse.Namespace) -> Answer:
    """Where a stream stands and how it came there."""
    with ledger_of(endpoint_of(arguments)) as connection:
        stream = stream_of(connection, arguments.stream)
        moves = rows(connection, "moves", {"stream": arguments.stream, "limit": arguments.limit})
    text = facts(
        {
            "stream": stream["stream"],
            "target": stream["target"],
            "position": stream["position"],
            "type": stream["type"],
            "lag": span(stream["lag_seconds"]),
            "fence": stream["fence"],
            "store": stream["store"],
            "updated": stream["updated_at"],
        }
    )
    if moves:
        text += "\n\n" + table(
            ("FENCE", "FROM", "TO", "AT", "REASON", "BY"),
            [
                (m["fence"], m["from"], m["to"], m["moved_at"], m["reason"], m["actor"])
                for m in moves
            ],
        )
    return Answer({**stream, "moves": moves}, text)


def coverage(arguments: argparse.Namespace) -> Answer:
    """Published windows of a stream, merged, what is missing between them, and what is no longer kept."""
    with ledger_of(endpoint_of(arguments)) as connection:
        stream = stream_of(connection, arguments.stream)
        covered = coverage_of(connection, stream)
    gaps = gaps_in(stream, covered)
    data = {
        "stream": stream["stream"],
        "type": stream["type"],
        "origin": stream["origin"],
        "position": stream["position"],
        "covered": [
            {name: window[name] for name in ("low", "high", "bounds", "windows")}
            for window in covered
            if not window["retired"]
        ],
        "retired": [
            {"low": window["low"], "high": window["high"]}
            for window in covered
            if window["retired"]
        ],
        "gaps": [{"low": low, "high": high} for low, high in gaps],
    }
    if not covered:
        return Answer(data, f"nothing is published of {stream['stream']} by window")
    # A gap begins where the window before it ends, so a stream's windows and gaps are of one kind.
    bounds = covered[0]["bounds"]
    lines = [
        (
            "retired" if window["retired"] else "covered",
            window_text(window["low"], window["high"], bounds),
            None if window["retired"] else window["windows"],
        )
        for window in covered
    ]
    lines += [("missing", window_text(low, high, bounds), None) for low, high in gaps]
    return Answer(data, table(("", "WINDOW", "LOADS"), lines), FINDING if gaps else OK)


def loads(arguments: argparse.Namespace) -> Answer:
    """The last loads of a stream, newest first."""
    with ledger_of(endpoint_of(arguments)) as connection:
        stream_of(connection, arguments.stream)
        found = rows(connection, "loads", {"stream": arguments.stream, "limit": arguments.limit})
    text = table(
        ("LOAD", "STATE", "WINDOW", "STAGED", "NEW", "CHANGED", "GONE", "STARTED", "ERROR"),
        [
            (
                load["load_id"],
                load["state"],
                "everything"
                if load["window_type"] is None
                else window_text(load["window_low"], load["window_high"], load["bounds"]),
                load["rows_staged"],
                load["rows_inserted"],
                load["rows_updated"],
                load["rows_deleted"],
                load["started_at"],
                (load["error"] or "").partition("\n")[0],
            )
            for load in found
        ],
    )
    return Answer(found, text)
