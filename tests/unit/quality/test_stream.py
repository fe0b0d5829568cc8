"""Verdicts about a load from facts, and who may read which of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_etl_provider.core.history import EarlierLoad, Newest
from airflow_etl_provider.core.ports import Difference, Figure, Measured, Statistic
from airflow_etl_provider.quality.own import FRESH, ROW_COUNT, SOURCE, TARGET
from airflow_etl_provider.quality.report import ExpectationResult, Report
from airflow_etl_provider.quality.stream import (
    judge_freshness,
    judge_row_count,
    judge_source,
    judge_target,
    not_evaluated,
)
from airflow_etl_provider.quality.suite import Expectation, Severity

HOUR, DAY = 3600.0, 86_400.0


def counted(rows: int, earlier: Sequence[float], **kwargs: Any) -> ExpectationResult:
    history = [EarlierLoad(str(number), value) for number, value in enumerate(earlier)]
    return judge_row_count(Expectation(ROW_COUNT, kwargs), rows, history)


def aged(
    lag: float | None, earlier: Sequence[float | None], *, own: bool = True, **kwargs: Any
) -> ExpectationResult:
    history = [EarlierLoad(str(number), 1, lag=value) for number, value in enumerate(earlier)]
    newest = None if lag is None else "2013-01-01 22:00:00+00"
    return judge_freshness(Expectation(FRESH, kwargs), "at", Newest(own, newest, lag), history)


def compared(batch: Measured, source: Measured, **kwargs: Any) -> ExpectationResult:
    figures = [
        Figure(Statistic(name), column)
        for name in ("sum", "min", "max")
        for column in kwargs.get(name, ())
    ]
    return judge_source(Expectation(SOURCE, kwargs), figures, batch, source)


class TestRowCount:
    def test_what_is_usual_holds(self) -> None:
        """And the line in the log says what usual is."""
        result = counted(1010, [990, 1000, 1010, 1005, 995, 1000, 1000])
        assert result.success
        assert result.finding == "1,010 rows, usually 889 to 1,111 (median 1,000 of 7 loads)"

    @pytest.mark.parametrize("rows", [0, 500, 2000])
    def test_what_is_not_fails(self, rows: int) -> None:
        """Too few and too many alike; the numbers stand in the ledger too."""
        result = counted(rows, [990, 1000, 1010, 1005, 995, 1000, 1000])
        assert not result.success
        assert result.observed_value["median"] == 1000
        assert result.observed_value["loads"] == 7

    def test_deviations_decide_how_far_is_too_far(self) -> None:
        """Wider limits let the same batch through."""
        assert not counted(1300, [1000] * 7).success
        assert counted(1300, [1000] * 7, deviations=10).success

    def test_a_cold_start_holds_and_says_so(self) -> None:
        """With fewer loads than asked for there is nothing to judge by; nobody is blocked by that."""
        result = counted(5, [1_000_000] * 6)
        assert result.success
        assert result.finding == "cold start: 5 rows, and 6 of 7 loads to compare with"
        assert result.observed_value == {"rows": 5, "loads": 6, "cold_start": True}
        assert not counted(5, [1_000_000] * 6, min_loads=6).success


class TestFreshness:
    def test_max_age_is_a_limit(self) -> None:
        """Reached is not exceeded."""
        assert aged(6 * HOUR, [], max_age="PT6H").success
        late = aged(6 * HOUR + 1, [], max_age="PT6H")
        assert not late.success
        assert late.finding == "the newest row is 6 h 0 min old, allowed are 6 h 0 min"
        assert late.column == "at"

    def test_without_a_limit_the_history_is_one(self) -> None:
        """Only older than usual is bad."""
        usual = [HOUR, HOUR, HOUR + 60, HOUR - 60, HOUR, HOUR, HOUR]
        assert aged(HOUR, usual).success
        assert aged(0, usual).success
        assert aged(-HOUR, usual).success
        late = aged(2 * DAY, usual)
        assert not late.success
        assert late.finding == (
            "the newest row is 2 days old, usually up to 1 h 21 min (median 1 h 0 min of 7 loads)"
        )

    def test_loads_that_were_not_asked_do_not_count(self) -> None:
        """An expectation that is new to its suite begins cold."""
        result = aged(10 * DAY, [HOUR] * 6 + [None] * 20)
        assert result.success
        assert result.finding == (
            "cold start: the newest row is 10 days old, and 6 of 7 loads to compare with"
        )

    def test_an_empty_batch_is_as_old_as_the_rows_before_it(self) -> None:
        """And it says that none is its own."""
        result = aged(2 * HOUR, [], own=False, max_age="PT1H")
        assert not result.success
        assert result.finding == (
            "no row in this batch, and the newest row is 2 h 0 min old, allowed are 1 h 0 min"
        )

    def test_where_no_row_was_ever_seen_a_limit_is_not_kept(self) -> None:
        """Without a limit and without a history it is a cold start."""
        assert not aged(None, [], max_age="PT1H").success
        assert not aged(None, [HOUR] * 7).success
        cold = aged(None, [])
        assert cold.success
        assert cold.finding == "cold start: no row tells an age"

    def test_the_ledger_keeps_what_the_next_load_needs(self) -> None:
        """The column, the newest row and its lag: also of a load that failed."""
        for result in (aged(HOUR, []), aged(9 * HOUR, [], max_age="PT1H"), aged(HOUR, [HOUR] * 7)):
            kept = result.as_ledger()["result"]["observed_value"]
            assert (kept["column"], kept["newest"]) == ("at", "2013-01-01 22:00:00+00")
            assert kept["lag_seconds"] in (HOUR, 9 * HOUR)


class TestSource:
    def test_equal_is_equal(self) -> None:
        """As numbers, not as text."""
        ours, theirs = Measured(10, ("1.50", "2013-01-01")), Measured(10, ("1.5", "2013-01-01"))
        result = compared(ours, theirs, sum=["amount"], max=["day"])
        assert result.success
        assert result.finding == "the source has 10 rows, the batch 10"

    def test_rows_that_are_missing_are_counted(self) -> None:
        """With their share of what the source has."""
        result = compared(Measured(997), Measured(1000))
        assert not result.success
        assert (result.unexpected_count, result.element_count) == (3, 1000)
        assert result.unexpected_percent == pytest.approx(0.3)
        assert result.finding == "the source has 1,000 rows, the batch 997"

    def test_a_tolerance_is_a_share_of_the_source(self) -> None:
        """Of rows and sums; ends are equal or not."""
        tolerant: dict[str, Any] = {"sum": ["amount"], "tolerance": 0.01}
        assert compared(Measured(990, ("99",)), Measured(1000, ("100",)), **tolerant).success
        assert not compared(Measured(989, ("99",)), Measured(1000, ("100",)), **tolerant).success
        assert not compared(Measured(990, ("98",)), Measured(1000, ("100",)), **tolerant).success
        ends: dict[str, Any] = {"max": ["amount"], "tolerance": 0.5}
        assert not compared(Measured(10, ("99",)), Measured(10, ("100",)), **ends).success

    def test_sums_of_floating_point_may_differ_by_their_noise(self) -> None:
        """Where either side says that it computed so."""
        ours, theirs = ("0.30000000000000004",), ("0.3",)
        assert not compared(Measured(2, ours), Measured(2, theirs), sum=["x"]).success
        noisy = Measured(2, theirs, inexact=frozenset({0}))
        assert compared(Measured(2, ours), noisy, sum=["x"]).success
        assert not compared(Measured(2, ("0.31",)), noisy, sum=["x"]).success

    @pytest.mark.parametrize(
        ("ours", "theirs", "success"),
        [
            (None, None, True),
            (None, "0", False),
            ("0", None, False),
            ("NaN", "NaN", True),
            ("Infinity", "Infinity", True),
            ("Infinity", "1", False),
            ("NaN", "1", False),
            ("0", "-0.00", True),
        ],
    )
    def test_odd_numbers_are_compared(
        self, ours: str | None, theirs: str | None, success: bool
    ) -> None:
        """Nothing is only equal to nothing."""
        found = compared(Measured(1, (ours,)), Measured(1, (theirs,)), sum=["x"])
        assert found.success is success

    def test_what_differs_is_named_and_its_values_stay_in_the_ledger(self) -> None:
        """A log says which column; what it holds is for those who may read the warehouse."""
        ours = Measured(5, ("4711", "2013-01-01"), checksum="1234567")
        theirs = Measured(5, ("4712", "2013-01-01"), checksum="7654321")
        result = compared(ours, theirs, sum=["amount"], min=["day"], checksum=["id", "note"])
        assert result.finding == (
            "the source has 5 rows, the batch 5; different: sum of amount; the checksum of id, note"
        )
        assert "4711" in json.dumps(result.as_ledger())
        now = datetime(2013, 1, 1, tzinfo=UTC)
        report = Report("1", "sql", "a.b", 5, (result,), now, now)
        for text in (json.dumps(report.as_xcom()), report.as_table(), *report.failures()):
            assert "471" not in text
            assert "1234567" not in text

    def test_many_differences_stay_one_line(self) -> None:
        """The first five stand for the rest."""
        names = [f"c{number}" for number in range(9)]
        result = compared(Measured(1, tuple("1" * 9)), Measured(1, tuple("2" * 9)), sum=names)
        assert result.finding.endswith("sum of c4 and 4 more")


class TestTarget:
    def test_a_fit_is_told_with_the_number_of_columns(self) -> None:
        """So that nobody wonders whether anything was compared."""
        result = judge_target(Expectation(TARGET, {}), 19, [])
        assert (result.success, result.finding) == (True, "19 columns fit")

    def test_every_difference_is_named(self) -> None:
        """What the batch has, and what the target wants."""
        differences = [Difference("v", "text", "integer"), Difference("w", "2 rows", "NOT NULL")]
        result = judge_target(Expectation(TARGET, {}, Severity.WARNING), 19, differences)
        assert (result.unexpected_count, result.element_count) == (2, 19)
        assert result.finding == (
            "2 columns do not fit: v: the batch has text, the target integer; w: the batch has 2 rows, the "
            "target NOT NULL"
        )


def test_what_cannot_be_evaluated_has_failed() -> None:
    """With the reason, as an expectation of Great Expectations would."""
    result = not_evaluated(Expectation(FRESH, {"column": "id"}), "id tells no age")
    assert not result.success
    assert (result.column, result.engine) == ("id", "sql")
    assert result.finding == "could not be evaluated: id tells no age"
