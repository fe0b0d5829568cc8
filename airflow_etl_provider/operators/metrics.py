"""What operators count through Airflow's stats interface."""

from __future__ import annotations

from collections.abc import Mapping

from airflow.sdk.observability import stats


def count_dead_letters(stream: str, reasons: Mapping[str, int]) -> None:
    """Count rows that were set aside just now: ``etl.dead_letters``, tagged with stream and reason.

    A reason names expectation and columns, and no value of a row.
    """
    for reason, rows in reasons.items():
        stats.incr("etl.dead_letters", rows, tags={"stream": stream, "reason": reason})


def count_replayed(stream: str, outcomes: Mapping[str, int]) -> None:
    """Count what became of letters: ``etl.dead_letters.<outcome>``, tagged with the stream."""
    for outcome, letters in outcomes.items():
        if letters:
            stats.incr(f"etl.dead_letters.{outcome}", letters, tags={"stream": stream})
