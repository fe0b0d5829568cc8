"""Answers are short and aligned for people, and whole for programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from airflow_etl_provider.cli.answer import Answer, facts, span, table, window_text

NOON = datetime(2013, 2, 1, 12, 0, 0, 5, tzinfo=UTC)


def test_columns_are_aligned_and_numbers_stand_to_the_right():
    assert table(("NAME", "ROWS"), [("flights", 1234567), ("a", None), ("ä", 5)]).splitlines() == [
        "NAME          ROWS",
        "flights  1,234,567",
        "a                -",
        "ä                5",
    ]


def test_a_table_without_rows_has_its_titles():
    assert table(("NAME", "ROWS"), []) == "NAME  ROWS"


def test_facts_one_a_line():
    assert facts({"a": None, "fence": 1000, "at": NOON}) == (
        "a      -\nfence  1,000\nat     2013-02-01 12:00:00+00:00"
    )


def test_json_keeps_what_text_shortens():
    answer = Answer({"at": NOON, "rows": 1234}, "1,234 rows")
    assert answer.shown(as_json=False) == "1,234 rows"
    assert json.loads(answer.shown(as_json=True)) == {"at": NOON.isoformat(), "rows": 1234}


def test_json_refuses_what_it_would_have_to_guess():
    with pytest.raises(TypeError):
        Answer({"rows": {1}}, "").shown(as_json=True)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, None), (0.0, "0.0 s"), (90.0, "1 min 30 s"), (100_000.0, "27 h 46 min"), (1e6, "11 days")],
)  # fmt: skip
def test_spans(seconds, shown):
    assert span(seconds) == shown


@pytest.mark.parametrize(
    ("low", "high", "bounds", "shown"),
    [("1", "2", "[)", "[1, 2)"), (None, "2", "(]", "(start, 2]"), ("-infinity", None, "[)", "[start, end)")],
)  # fmt: skip
def test_windows(low, high, bounds, shown):
    assert window_text(low, high, bounds) == shown
