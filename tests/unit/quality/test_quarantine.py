"""Which expectations a few rows can be held to, and what messages of a server may say."""

from __future__ import annotations

import pytest

from airflow_etl_provider.quality.quarantine import for_single_rows
from airflow_etl_provider.quality.sessions import reason_of
from airflow_etl_provider.quality.suite import parse_suite


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("expect_column_values_to_be_increasing", {}),
        ("expect_column_values_to_be_decreasing", {}),
        (
            "expect_column_value_z_scores_to_be_less_than",
            {"threshold": 3, "double_sided": True},
        ),
        ("expect_column_values_to_not_be_outliers", {"method": "iqr", "multiplier": 1.5}),
    ],
)
def test_what_compares_a_row_with_its_batch_is_not_asked_of_a_few(kind, kwargs):
    """Two letters say nothing of the spread that a month has."""
    suite = parse_suite([{"type": kind, "kwargs": {"column": "v", **kwargs}}])
    assert for_single_rows(suite) == ()


@pytest.mark.parametrize(
    "message",
    [
        '(psycopg2.errors.InvalidTextRepresentation) invalid input syntax for type integer: "xyzzy"',
        "(psycopg2.errors.InvalidTextRepresentation) ungültige Eingabesyntax für Typ integer: »xyzzy«",
        "(psycopg2.errors.NumericValueOutOfRange) « xyzzy » est en dehors des limites du type integer",
        '(psycopg2.errors.UniqueViolation) duplicate key value violates unique constraint "xyzzy"',
        "(psycopg2.errors.RaiseException) xyzzy",
    ],
)
def test_no_value_is_told_in_any_language(message):
    assert "xyzzy" not in reason_of(f"{message}\nDETAIL: xyzzy")


def test_a_pattern_that_is_none_is_explained():
    """It is the suite's own."""
    message = "(psycopg2.errors.InvalidRegularExpression) invalid regular expression: brackets [] not balanced"
    assert reason_of(message) == (
        "InvalidRegularExpression: invalid regular expression: brackets [] not balanced"
    )
