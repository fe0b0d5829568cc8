"""The kwargs of our own expectations are checked when a suite is read, as those of Great Expectations are."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from airflow_etl_provider.core.errors import CatalogError, ConfigurationError
from airflow_etl_provider.core.history import Season
from airflow_etl_provider.quality.gallery import OWN_TYPES, read_gallery
from airflow_etl_provider.quality.own import (
    FRESH,
    NEED_A_LOAD,
    ROW_COUNT,
    SOURCE,
    TARGET,
    FreshnessOptions,
    HistoryOptions,
    SourceOptions,
)
from airflow_etl_provider.quality.suite import check_columns, parse_suite, suite_from_json

EVERY = [
    {"type": ROW_COUNT},
    {
        "type": ROW_COUNT,
        "kwargs": {"deviations": 5, "loads": 60, "min_loads": 10, "season": "weekday"},
        "severity": "warning",
    },
    {"type": FRESH},
    {"type": FRESH, "kwargs": {"column": "at", "max_age": "PT6H"}, "severity": "info"},
    {"type": FRESH, "kwargs": {"deviations": 2.5, "season": None}},
    {"type": SOURCE},
    {
        "type": SOURCE,
        "kwargs": {"sum": ["amount"], "min": ["at"], "max": ["at"], "tolerance": 0.01},
    },
    {"type": SOURCE, "kwargs": {"checksum": ["id", "amount"]}},
    {"type": TARGET},
    {"type": TARGET, "kwargs": {"filled_by_publish": ["load_id"]}},
]


def test_they_stand_in_the_gallery_beside_the_others() -> None:
    """A suite does not tell whose an expectation is."""
    assert set(OWN_TYPES) < set(read_gallery())
    assert set(NEED_A_LOAD) <= set(OWN_TYPES)


def test_a_suite_of_them_survives_json() -> None:
    """Written, stored and read like any other suite."""
    suite = parse_suite(EVERY, "own")
    assert suite_from_json(json.loads(json.dumps(suite.as_json()))) == suite
    assert suite.columns() == ("at", "amount", "id")


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("expect_batch_row_count_to_match_histori", {}, f"did you mean '{ROW_COUNT}'"),
        (ROW_COUNT, {"deviation": 3}, "did you mean 'deviations'"),
        (ROW_COUNT, {"deviations": 0}, "deviations is 0, not a number above 0"),
        (ROW_COUNT, {"deviations": "3"}, "deviations is '3', not a number above 0"),
        (ROW_COUNT, {"deviations": True}, "deviations is True, not a number above 0"),
        (ROW_COUNT, {"loads": 0}, "loads is 0, not a whole number from 1 on"),
        (ROW_COUNT, {"loads": 2.5}, "loads is 2.5, not a whole number"),
        (ROW_COUNT, {"min_loads": True}, "min_loads is True, not a whole number"),
        (ROW_COUNT, {"loads": 5, "min_loads": 6}, "min_loads is 6, more than the 5 loads"),
        (ROW_COUNT, {"season": "weekdya"}, "did you mean 'weekday'"),
        (ROW_COUNT, {"mostly": 0.9}, "unknown key 'mostly'"),
        (FRESH, {"max_age": 3600}, "write it as ISO 8601 does: PT30M"),
        (FRESH, {"max_age": "3600"}, "max_age is '3600', not a duration"),
        (FRESH, {"max_age": "PT"}, "max_age is 'PT', not a duration"),
        (FRESH, {"max_age": "PT0S"}, "max_age is 'PT0S', not a duration"),
        (FRESH, {"max_age": "PT1H", "loads": 9}, "max_age stands beside loads"),
        (FRESH, {"column": ["at"]}, "not the name of one column"),
        (SOURCE, {"sum": "amount"}, "sum is 'amount', not a list of column names"),
        (SOURCE, {"min": [1]}, "not a list of column names"),
        (SOURCE, {"tolerance": 1}, "tolerance is 1, not a share from 0 to below 1"),
        (SOURCE, {"tolerance": -0.1}, "not a share from 0 to below 1"),
        (SOURCE, {"tolerance": 0.1, "checksum": ["id"]}, "equal or not and never close"),
        (TARGET, {"filled_by_publish": "load_id"}, "not a list of column names"),
    ],
)
def test_what_cannot_run_is_refused(kind: str, kwargs: Any, message: str) -> None:
    """While the DAG is parsed, with the expectation's place in the suite and what would be right."""
    with pytest.raises(ConfigurationError, match="suite 'own', expectation 1") as refused:
        parse_suite([{"type": kind, "kwargs": kwargs}], "own")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "kwargs"), [(FRESH, {"column": "att"}), (SOURCE, {"sum": ["amount", "att"]})]
)
def test_a_column_that_the_batch_has_not_is_named(kind: str, kwargs: Any) -> None:
    """Columns of lists are looked for one by one."""
    with pytest.raises(CatalogError, match=r"reads column 'att'.*did you mean 'at'"):
        check_columns(parse_suite([{"type": kind, "kwargs": kwargs}]), ["at", "amount"])


def test_options_have_defaults() -> None:
    """Nothing needs to be known about statistics to use them."""
    assert HistoryOptions.of({}) == HistoryOptions(3.5, 30, 7, None)
    assert HistoryOptions.of({"loads": 4, "season": "hour"}) == HistoryOptions(
        3.5, 4, 4, Season.HOUR
    )
    assert FreshnessOptions.of({"max_age": "P1DT2H"}).max_age == timedelta(days=1, hours=2)
    assert SourceOptions.of({}) == SourceOptions((), (), (), (), 0.0)
