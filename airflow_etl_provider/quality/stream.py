"""Verdicts of our own expectations from facts about the load; pure functions.

``expect_batch_row_count_to_match_history``: the rows of the batch against the median of the stream's own
published windows. ``expect_batch_to_be_fresh``: the age of the newest row against ``max_age``, or against
the usual one. ``expect_batch_to_match_source``: rows, sums, ends and checksums against the source as it is
now. ``expect_table_to_match_target``: columns, types and NOT NULL against the target as it is now.

Numbers of rows, ages and names of columns may be told anywhere; what a batch holds stands in
``observed_value`` only, which goes to the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from airflow_etl_provider.core.history import (
    EarlierLoad,
    Newest,
    least_spread_of_lag,
    least_spread_of_rows,
    usual,
)
from airflow_etl_provider.core.ports import Difference, Figure, Measured, Statistic
from airflow_etl_provider.core.window import humane
from airflow_etl_provider.quality.own import FreshnessOptions, HistoryOptions, SourceOptions
from airflow_etl_provider.quality.report import ExpectationResult
from airflow_etl_provider.quality.suite import Expectation

ENGINE = "sql"
COLD_START = "cold start"

#: Sums of floating point depend on the order of the rows.
_FLOAT_NOISE, _EXACT = Decimal("1e-6"), Decimal(0)
_MOST_NAMED = 5


def judge_row_count(
    expectation: Expectation, rows: int, earlier: Sequence[EarlierLoad]
) -> ExpectationResult:
    """Whether *rows* lie within so many deviations of the median of earlier windows, scaled to this one's
    length; with too few of them it holds and says so.
    """
    options = HistoryOptions.of(expectation.kwargs)
    observed: dict[str, Any] = {"rows": rows, "loads": len(earlier)}
    if len(earlier) < options.min_loads:
        return _cold_start(expectation, f"{rows:,} rows", earlier, options, observed)
    normal = usual([load.rows for load in earlier], least_spread_of_rows)
    low, high = normal.lowest(options.deviations), normal.highest(options.deviations)
    observed |= {
        "median": normal.median,
        "deviation": normal.deviation,
        "lowest": low,
        "highest": high,
    }
    return _result(
        expectation,
        success=low <= rows <= high,
        note=f"{rows:,} rows, usually {low:,.0f} to {high:,.0f} (median {normal.median:,.0f} of "
        f"{len(earlier)} loads)",
        observed_value=observed,
    )


def judge_freshness(
    expectation: Expectation, column: str, found: Newest, earlier: Sequence[EarlierLoad]
) -> ExpectationResult:
    """Whether the newest row is no older than ``max_age``, or without it than usual.

    Where neither the batch nor an earlier load has a row, nothing is known to be fresh.
    """
    options = FreshnessOptions.of(expectation.kwargs)
    lags = [load.lag for load in earlier if load.lag is not None]
    observed: dict[str, Any] = {
        "column": column,
        "newest": found.newest,
        "lag_seconds": found.lag,
        "loads": len(lags),
    }
    if found.lag is None:
        cold = options.max_age is None and len(lags) < options.history.min_loads
        note = f"{COLD_START}: " if cold else ""
        return _result(
            expectation,
            success=cold,
            note=f"{note}no row tells an age",
            observed_value=observed,
            column=column,
        )
    age = f"the newest row is {_age(found.lag)} old"
    if not found.own:
        age = f"no row in this batch, and {age}"
    if options.max_age is not None:
        limit = options.max_age.total_seconds()
        note = f"{age}, allowed are {_age(limit)}"
    elif len(lags) < options.history.min_loads:
        return _cold_start(expectation, age, lags, options.history, observed, column)
    else:
        normal = usual(lags, least_spread_of_lag)
        limit = normal.highest(options.history.deviations)
        observed |= {"median": normal.median, "deviation": normal.deviation}
        note = f"{age}, usually up to {_age(limit)} (median {_age(normal.median)} of {len(lags)} loads)"
    return _result(
        expectation,
        success=found.lag <= limit,
        note=note,
        observed_value=observed | {"highest": limit},
        column=column,
    )


def judge_source(
    expectation: Expectation,
    figures: Sequence[Figure],
    batch: Measured,
    source: Measured,
    *,
    set_aside: int = 0,
) -> ExpectationResult:
    """Whether batch and source agree, rows and sums within ``tolerance`` of what the source has.

    :param set_aside: how many of the batch's rows are dead letters; what they hold cannot be measured, so
        nothing but rows is compared then, and the note says so.
    """
    options = SourceOptions.of(expectation.kwargs)
    tolerance = Decimal(repr(options.tolerance))
    inexact = batch.inexact | source.inexact
    differing = [
        str(figure)
        for place, figure in enumerate(figures)
        if not _agree(
            batch.figures[place],
            source.figures[place],
            tolerance if figure.statistic is Statistic.SUM else _EXACT,
            _FLOAT_NOISE if place in inexact else _EXACT,
        )
    ]
    if batch.checksum != source.checksum:
        differing.append(f"the checksum of {', '.join(options.checksum)}")
    gap = abs(source.rows - batch.rows)
    rows_agree = gap <= tolerance * source.rows
    note = f"the source has {source.rows:,} rows, the batch {batch.rows:,}"
    if differing:
        note += f"; different: {_named(differing)}"
    if set_aside and (options.sums or options.least or options.greatest or options.checksum):
        note += f"; {set_aside:,} of them were set aside, so nothing else is compared"
    return _result(
        expectation,
        success=rows_agree and not differing,
        note=note,
        element_count=source.rows,
        unexpected_count=gap,
        unexpected_percent=100 * gap / source.rows if source.rows else None,
        observed_value={
            "batch": _facts(figures, batch),
            "source": _facts(figures, source),
        },
    )


def judge_target(
    expectation: Expectation, columns: int, differences: Sequence[Difference]
) -> ExpectationResult:
    """Whether every column of the batch fits the target, and the target needs no other."""
    note = f"{columns} columns fit"
    if differences:
        note = (
            f"{len(differences)} columns do not fit: {_named([str(each) for each in differences])}"
        )
    return _result(
        expectation,
        success=not differences,
        note=note,
        element_count=columns,
        unexpected_count=len(differences),
        observed_value=[str(each) for each in differences],
    )


def not_evaluated(expectation: Expectation, reason: str) -> ExpectationResult:
    """An expectation that nothing could be found out for; it counts as failed."""
    return ExpectationResult(
        type=expectation.type,
        kwargs=expectation.kwargs,
        severity=expectation.severity,
        success=False,
        column=", ".join(expectation.columns()) or None,
        exception=reason,
        engine=ENGINE,
    )


def _cold_start(
    expectation: Expectation,
    what: str,
    earlier: Sequence[Any],
    options: HistoryOptions,
    observed: Mapping[str, Any],
    column: str | None = None,
) -> ExpectationResult:
    return _result(
        expectation,
        success=True,
        note=f"{COLD_START}: {what}, and {len(earlier)} of {options.min_loads} loads to compare with",
        observed_value={**observed, "cold_start": True},
        column=column,
    )


def _result(
    expectation: Expectation, *, column: str | None = None, **found: Any
) -> ExpectationResult:
    return ExpectationResult(
        type=expectation.type,
        kwargs=expectation.kwargs,
        severity=expectation.severity,
        column=column or ", ".join(expectation.columns()) or None,
        engine=ENGINE,
        **found,
    )


def _agree(ours: str | None, theirs: str | None, tolerance: Decimal, noise: Decimal) -> bool:
    if ours == theirs:
        return True
    if ours is None or theirs is None:
        return False
    try:
        one, other = Decimal(ours), Decimal(theirs)
        return abs(one - other) <= tolerance * abs(other) + noise * max(abs(one), abs(other))
    except InvalidOperation:  # a time, or a number that is infinite or none
        return False


def _facts(figures: Sequence[Figure], found: Measured) -> dict[str, Any]:
    named = {str(figure): text for figure, text in zip(figures, found.figures, strict=True)}
    checksum = {} if found.checksum is None else {"checksum": found.checksum}
    return {"rows": found.rows, **named, **checksum}


def _named(each: Sequence[str]) -> str:
    """The first few, since a table may have hundreds of columns."""
    more = len(each) - _MOST_NAMED
    return "; ".join(each[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _age(seconds: float) -> str:
    """An age as a person reads it; ages of years come from mistakes and from history alike."""
    days = round(seconds / 86_400)
    if abs(days) > 2:
        return f"{days:,} days"
    return (
        f"-{humane(timedelta(seconds=-seconds))}"
        if seconds < 0
        else humane(timedelta(seconds=seconds))
    )
