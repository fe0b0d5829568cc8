"""What is counted of a batch is counted in one scan, however many expectations there are."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.quality.report import Judged
from airflow_etl_provider.quality.suite import parse_suite
from tests.builders import FEBRUARY, JANUARY, Pipeline, fill, simple, wait_until


def expect(kind: str, **kwargs: Any) -> dict[str, Any]:
    return {"type": f"expect_{kind}", "kwargs": kwargs}


COUNTED = [
    expect("table_row_count_to_be_between", min_value=1),
    expect("column_values_to_not_be_null", column="id"),
    expect("column_values_to_not_be_null", column="v", mostly=0.5),
    expect("column_values_to_be_between", column="id", min_value=0, max_value=10**6),
    expect("column_values_to_match_regex", column="v", regex="^v"),
    expect("column_value_lengths_to_be_between", column="v", min_value=1),
    expect("column_values_to_not_be_in_set", column="v", value_set=["none", "null"]),
    expect(
        "column_pair_values_a_to_be_greater_than_b", column_A="id", column_B="id", or_equal=True
    ),
    expect("column_max_to_be_between", column="id", max_value=10**6),
    expect("column_min_to_be_between", column="id", min_value=0),
    expect("column_sum_to_be_between", column="id", min_value=0),
    expect("column_mean_to_be_between", column="id", min_value=0),
]
REFERENCE = expect(
    "column_values_to_be_in_table", column="id", other_table="a.t", other_column="id"
)


@pytest.fixture
def staged(source, warehouse):
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 200)
    source.run("UPDATE t SET v = 'v' || id")
    pipe.load(JANUARY, FEBRUARY)
    return pipe, pipe.extract(JANUARY, FEBRUARY)


def scans(pipe: Pipeline, batch: Manifest) -> int:
    """Sequential scans of the batch that sessions which have ended have begun."""
    found: int = pipe.warehouse.value(
        "SELECT seq_scan FROM pg_stat_all_tables WHERE relid = %s::regclass", (str(batch.staging),)
    )
    return found


def judged(pipe: Pipeline, batch: Manifest, suite: list[dict[str, Any]]) -> tuple[Judged, int]:
    """What SQL says of the batch, and how many scans that took."""
    area = pipe.audits()
    columns = area.columns(batch.staging)
    ended = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = %s"
    wait_until(lambda: pipe.warehouse.value(ended, (area.endpoint.application_name,)), "an end")
    before = scans(pipe, batch)
    found = area.judge(batch.staging, parse_suite(suite).expectations, columns, manifest=batch)
    wait_until(lambda: pipe.warehouse.value(ended, (area.endpoint.application_name,)), "an end")
    return found, scans(pipe, batch) - before


def test_a_suite_that_holds_is_one_scan(staged):
    found, number = judged(*staged, COUNTED)
    assert all(found.results[n].success for n in range(len(COUNTED)))
    assert number == 1


def test_each_reference_and_each_key_is_one_more(staged):
    keys = [
        expect("compound_columns_to_be_unique", column_list=["ts", "id"]),
        expect("column_values_to_be_unique", column="v"),
    ]
    found, number = judged(*staged, [*COUNTED, REFERENCE, *keys])
    assert [n for n, result in found.results.items() if not result.success] == []
    assert number <= 4


def test_what_cannot_be_asked_is_found_alone(staged):
    """Of a suite in which several cannot be evaluated each of the others keeps its verdict."""
    broken = [
        expect("column_values_to_match_regex", column="v", regex="("),
        expect("column_values_to_match_regex", column="v", regex="[a"),
        expect("column_sum_to_be_between", column="v", min_value=0),
        expect("column_values_to_be_between", column="ts", min_value="yesterday-ish"),
    ]
    alone, _ = judged(*staged, COUNTED)
    mixed = [each for pair in zip(COUNTED, broken, strict=False) for each in pair]
    mixed += COUNTED[len(broken) :]
    found, _ = judged(*staged, mixed)
    assert set(found.left) == {1, 3, 5, 7}
    kept = [found.results[n] for n in range(len(mixed)) if n not in found.left]
    assert [(r.type, r.success, r.observed_value) for r in kept] == [
        (r.type, r.success, r.observed_value) for r in alone.results.values()
    ]
