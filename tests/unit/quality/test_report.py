"""Verdicts, and what each reader of a report gets to see."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_etl_provider.core.errors import QualityGateFailed, StateError
from airflow_etl_provider.quality.report import (
    LONGEST_LIST,
    LONGEST_TEXT,
    ExpectationResult,
    Report,
    Verdict,
    json_safe,
    raise_if_rejected,
)
from airflow_etl_provider.quality.suite import Severity

NOON = datetime(2013, 1, 1, 12, tzinfo=UTC)
SECRET = "row value 4711"
NULLS = ExpectationResult(
    type="expect_column_values_to_not_be_null",
    kwargs={"column": "carrier"},
    severity=Severity.CRITICAL,
    success=False,
    column="carrier",
    element_count=27_004,
    unexpected_count=12,
    unexpected_percent=0.0444,
    missing_count=0,
    partial_unexpected_list=(SECRET,),
)
MAXIMUM = ExpectationResult(
    type="expect_column_max_to_be_between",
    kwargs={"column": "note", "max_value": 5},
    severity=Severity.WARNING,
    success=False,
    column="note",
    observed_value=SECRET,
)
RAISED = ExpectationResult(
    type="expect_column_values_to_match_regex",
    kwargs={"column": "tail\nnum", "regex": "("},
    severity=Severity.INFO,
    success=False,
    column="tail\nnum",
    exception="InvalidRegularExpression: parentheses () not balanced",
)
HELD = ExpectationResult(
    type="expect_table_row_count_to_be_between",
    kwargs={"min_value": 1},
    severity=Severity.CRITICAL,
    success=True,
    observed_value=27_004,
)


def report(*results: ExpectationResult) -> Report:
    return Report(
        load_id="load-1",
        engine="great_expectations",
        table="etl_staging.flights_1",
        rows=27_004,
        results=results,
        started_at=NOON,
        finished_at=NOON + timedelta(seconds=3),
    )


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ((), Verdict.PASSED),
        ((HELD,), Verdict.PASSED),
        ((HELD, MAXIMUM), Verdict.WARNED),
        ((HELD, RAISED), Verdict.WARNED),
        ((MAXIMUM, NULLS), Verdict.REJECTED),
    ],
)
def test_verdict_follows_the_worst_failure(
    results: tuple[ExpectationResult, ...], verdict: Verdict
) -> None:
    """Only a critical failure rejects a batch."""
    assert report(*results).verdict is verdict


def test_critical_that_raised_rejects() -> None:
    """An expectation nobody could evaluate is no reason to publish."""
    raised = ExpectationResult("t", {}, Severity.CRITICAL, False, exception="SyntaxError: x")
    assert report(raised).verdict is Verdict.REJECTED


def test_result_cannot_hold_and_raise() -> None:
    """The two exclude each other."""
    with pytest.raises(ValueError, match="cannot both hold and raise"):
        ExpectationResult("t", {}, Severity.INFO, True, exception="x")


def test_report_needs_aware_times() -> None:
    """A ledger in many time zones needs instants."""
    with pytest.raises(ValueError, match="time zone"):
        Report("1", "e", "t", 0, (), NOON.replace(tzinfo=None), NOON)


def test_failures_are_one_line_each() -> None:
    """Name, column, count and share; line breaks in names do not break the line."""
    found = report(HELD, NULLS, MAXIMUM, RAISED)
    assert found.failures() == (
        "expect_column_values_to_not_be_null(carrier): 12 of 27,004 rows (0.04 %)",
    )
    assert found.failures(Severity.WARNING) == (
        "expect_column_max_to_be_between(note): does not hold (max_value=5)",
    )
    assert found.failures(Severity.INFO) == (
        (
            "expect_column_values_to_match_regex(tail\\nnum): could not be evaluated: "
            "InvalidRegularExpression: parentheses () not balanced"
        ),
    )


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"missing_count": 4}, "12 of 27,000 non-null rows (0.04 %)"),
        ({"unexpected_percent": 0.004}, "12 of 27,004 rows (< 0.01 %)"),
        ({"element_count": None}, "12 unexpected"),
        ({"unexpected_count": 0, "success": True}, "holds"),
        ({"success": True}, "12 of 27,004 rows (0.04 %)"),
    ],
)
def test_finding_says_what_was_counted(changes: dict[str, Any], finding: str) -> None:
    """Shares refer to the rows that were judged."""
    facts = {name: getattr(NULLS, name) for name in ExpectationResult.__slots__}
    assert ExpectationResult(**facts | changes).finding == finding


def test_values_reach_the_ledger_and_nothing_else() -> None:
    """XCom, log and error carry names and counts."""
    found = report(HELD, NULLS, MAXIMUM, RAISED)
    assert json.dumps(found.as_ledger()).count(SECRET) == 2
    with pytest.raises(QualityGateFailed) as rejected:
        raise_if_rejected(found, staging="etl_staging.flights_1")
    for text in (json.dumps(found.as_xcom()), found.as_table(), str(rejected.value)):
        assert SECRET not in text


def test_xcom_is_small() -> None:
    """Verdict and counts are whole; of the failures the first stand for the rest."""
    summary = report(*[NULLS] * 500, HELD).as_xcom()
    assert (summary["verdict"], summary["evaluated"], summary["rows"]) == ("rejected", 501, 27_004)
    assert summary["failed"] == {"critical": 500, "warning": 0, "info": 0}
    assert summary["failures"][0] == {
        "type": "expect_column_values_to_not_be_null",
        "column": "carrier",
        "severity": "critical",
        "unexpected_count": 12,
        "unexpected_percent": 0.0444,
    }
    assert len(json.dumps(summary)) < 5_000


def test_ledger_has_the_shape_of_great_expectations() -> None:
    """Tools that read validation results can read ours."""
    ledger = report(NULLS, HELD).as_ledger()
    assert (ledger["success"], ledger["verdict"]) == (False, "rejected")
    assert ledger["statistics"] == {
        "evaluated_expectations": 2,
        "successful_expectations": 1,
        "unsuccessful_expectations": 1,
        "success_percent": 50.0,
    }
    assert ledger["results"][0] == {
        "success": False,
        "expectation_config": {
            "type": "expect_column_values_to_not_be_null",
            "kwargs": {"column": "carrier"},
            "severity": "critical",
        },
        "result": {
            "element_count": 27_004,
            "unexpected_count": 12,
            "unexpected_percent": 0.0444,
            "missing_count": 0,
            "observed_value": None,
            "partial_unexpected_list": [SECRET],
            "unexpected_index_list": [],
        },
        "exception_info": {"raised_exception": False, "exception_message": None},
        "meta": {"column": "carrier"},
    }


def test_a_report_is_read_back_from_the_ledger() -> None:
    """What a person is shown later is what was found; nothing is lost but what JSON cannot hold."""
    noted = ExpectationResult(
        "expect_batch_to_be_fresh",
        {"max_age": "PT1H"},
        Severity.WARNING,
        False,
        column="at",
        observed_value={"lag_seconds": 7200.0},
        note="the newest row is 2 h 0 min old, allowed are 1 h 0 min",
        engine="sql",
    )
    found = report(HELD, NULLS, MAXIMUM, RAISED, noted)
    stored = json.loads(json.dumps(found.as_ledger()))
    assert Report.from_ledger(stored) == found
    older = {key: value for key, value in stored["results"][0].items() if key != "meta"}
    assert ExpectationResult.from_ledger(older) == HELD


@pytest.mark.parametrize(
    "stored",
    [{"verdict": "none"}, {"results": [{}]}, {**report(HELD).as_ledger(), "started_at": "never"}],
)
def test_what_is_no_report_is_told(stored: dict[str, Any]) -> None:
    """A ledger that somebody wrote into by hand gives no traceback."""
    with pytest.raises(StateError, match="the ledger holds no report that this release can read"):
        Report.from_ledger(stored)


def test_table_reads_like_a_table() -> None:
    """One line per expectation: what came out first, what was found last."""
    assert report(HELD, NULLS, RAISED).as_table().splitlines() == [
        "audit of etl_staging.flights_1 (27,004 rows) by great_expectations in 3.0 s: rejected",
        "result  severity  expectation                           column     found",
        "------------------------------------------------------------------------",
        "ok      critical  expect_table_row_count_to_be_between  -          found 27,004",
        "FAILED  critical  expect_column_values_to_not_be_null   carrier    12 of 27,004 rows (0.04 %)",
        (
            "ERROR   info      expect_column_values_to_match_regex   tail\\nnum  could not be evaluated: "
            "InvalidRegularExpression: parentheses () not balanced"
        ),
    ]


def test_the_table_tells_engines_apart_where_there_are_two() -> None:
    """Who judged what is of interest only then."""
    one, other = replace(HELD, engine="sql"), replace(NULLS, engine="great_expectations")
    assert "engine" not in report(one, one).as_table()
    heading, _, first, second = report(one, other).as_table().splitlines()[1:]
    assert heading.split()[:3] == ["result", "severity", "engine"]
    assert (first.split()[2], second.split()[2]) == ("sql", "great_expectations")


def test_nothing_expected_is_one_line() -> None:
    """The count of rows that is recorded where there is no suite."""
    assert report().as_table() == (
        "audit of etl_staging.flights_1 (27,004 rows) by great_expectations in 3.0 s: passed"
    )


def test_rejection_names_what_to_do() -> None:
    """Failures, the place of the rows and of the report, and the next step stand in the error."""
    with pytest.raises(QualityGateFailed) as rejected:
        raise_if_rejected(report(HELD, NULLS, MAXIMUM), staging="etl_staging.flights_1")
    assert rejected.value.failures == (
        "expect_column_values_to_not_be_null(carrier): 12 of 27,004 rows (0.04 %)",
    )
    text = str(rejected.value)
    assert text.startswith("load load-1 was rejected by its audit: 1 of 3 expectations")
    assert "kept in etl_staging.flights_1" in text
    assert "airflow-etl report load-1 shows samples" in text
    assert "clear validate and downstream" in text


def test_a_table_alone_has_no_load_to_clear() -> None:
    """And no report in a ledger."""
    with pytest.raises(QualityGateFailed) as rejected:
        raise_if_rejected(report(NULLS), staging=None)
    text = str(rejected.value)
    assert text.startswith("1 of 1 expectations on etl_staging.flights_1 failed critically")
    assert "then clear this task" in text
    assert "load-1" not in text


@pytest.mark.parametrize(
    ("observed", "success", "finding"),
    [
        (1000, False, "found 1,000 (min_value=5000)"),
        (1000, True, "found 1,000"),
        (0.66666, True, "found 0.6667"),
        (None, False, "does not hold (min_value=5000)"),
    ],
)
def test_numbers_of_rows_are_told(observed: Any, success: bool, finding: str) -> None:
    """They are no values of rows, and whoever is woken needs them."""
    result = ExpectationResult(
        "expect_table_row_count_to_be_between",
        {"min_value": 5000},
        Severity.CRITICAL,
        success,
        observed_value=observed,
    )
    assert result.finding == finding
    extreme = replace(result, type="expect_column_max_to_be_between", success=False)
    assert "1,000" not in extreme.finding


def test_warned_batch_is_let_through() -> None:
    """Warnings are reported, not raised."""
    raise_if_rejected(report(HELD, MAXIMUM, RAISED), staging="etl_staging.flights_1")


@pytest.mark.parametrize(
    ("value", "safe"),
    [
        (date(2013, 1, 1), "2013-01-01"),
        (NOON, "2013-01-01T12:00:00+00:00"),
        (time(1, 2), "01:02:00"),
        (Decimal("0.10"), "0.10"),
        (Decimal("NaN"), "NaN"),
        (float("nan"), "NaN"),
        (float("-inf"), "-Infinity"),
        (b"\x00\xff", "\\x00ff"),
        (memoryview(b"a"), "\\x61"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ({1: {2.5}}, {"1": [2.5]}),
        ("a\x00b", "a\ufffdb"),
        ("\ud800", "?"),
        (True, True),
        (None, None),
    ],
)
def test_any_value_fits_json(value: Any, safe: Any) -> None:
    """What Python drivers return is written so that jsonb takes it."""
    assert json_safe(value) == safe


def test_numpy_values_fit_json() -> None:
    """Great Expectations computes with numpy."""
    import numpy

    assert json_safe([numpy.int64(3), numpy.bool_(True), numpy.array([1.5])]) == [3, True, [1.5]]


def test_long_values_are_cut_and_kwargs_are_not() -> None:
    """A report stays small whatever the rows hold; the suite in it stays whole."""
    long = "x" * (LONGEST_TEXT + 1)
    many = list(range(LONGEST_LIST + 1))
    result = ExpectationResult(
        "t", {"value_set": many}, Severity.INFO, False, observed_value=[long, *many]
    ).as_ledger()
    assert result["expectation_config"]["kwargs"]["value_set"] == many
    observed = result["result"]["observed_value"]
    assert (len(observed), len(observed[0])) == (LONGEST_LIST, LONGEST_TEXT + 1)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.text(st.characters())
    | st.binary()
    | st.dates()
    | st.datetimes()
    | st.timedeltas()
    | st.uuids(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


@given(ANYTHING)
def test_everything_is_storable(value: Any) -> None:
    """Strict JSON, encodable, and without the one character jsonb refuses."""
    text = json.dumps(json_safe(value), allow_nan=False, ensure_ascii=False)
    assert "\x00" not in text.encode().decode()
    assert "\\u0000" not in text
