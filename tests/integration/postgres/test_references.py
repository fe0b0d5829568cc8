"""Values that another table of the warehouse must have: one anti-join, judged by SQL alone."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.validate import Engine
from airflow_etl_provider.postgres.audit import PostgresAuditArea
from airflow_etl_provider.quality.engine import audit
from airflow_etl_provider.quality.report import ExpectationResult
from airflow_etl_provider.quality.suite import parse_suite

STAGED = TableName("s", "batch")
ONE, TWO = "expect_column_values_to_be_in_table", "expect_compound_columns_to_be_in_table"


@pytest.fixture
def batch(warehouse: Any) -> Any:
    warehouse.run(
        'CREATE SCHEMA s; CREATE SCHEMA "O d"; CREATE TABLE "O d"."pla""nes" ("tail num" text, year int)'
        " PARTITION BY LIST (year); "
        'CREATE TABLE s.p1 PARTITION OF "O d"."pla""nes" DEFAULT;'
        """INSERT INTO "O d"."pla""nes" VALUES ('N1', 2000), ('N2', 2001), (NULL, 2002);"""
        "CREATE TABLE s.batch (id int, tailnum text, year int);"
        "INSERT INTO s.batch VALUES (1, 'N1', 2000), (2, 'N2', 2000), (3, 'N9', 2001), (4, NULL, 2000)"
    )
    return warehouse


def judged(batch: Any, kind: str, engine: Engine = Engine.AUTO, **kwargs: Any) -> ExpectationResult:
    area = PostgresAuditArea(batch.endpoint())
    columns = area.columns(STAGED)
    report = audit(
        parse_suite([{"type": kind, "kwargs": kwargs}]),
        engine,
        load_id="1",
        table=str(STAGED),
        by_sql=lambda some: area.judge(STAGED, some, columns),
        by_gx=lambda rest: pytest.fail(f"{rest} reached Great Expectations"),
    )
    return report.results[0]


PLANES = {"other_table": '"O d"."pla""nes"', "other_column": "tail num"}


@pytest.mark.parametrize("engine", Engine)
def test_what_is_not_there_is_unexpected_and_null_is_not_judged(batch, engine):
    found = judged(batch, ONE, engine, column="tailnum", **PLANES)
    assert (found.success, found.unexpected_count, found.missing_count) == (False, 1, 1)
    assert found.partial_unexpected_list == ("N9",)
    assert judged(batch, ONE, engine, column="tailnum", mostly=0.6, **PLANES).success


def test_only_rows_of_a_condition_are_judged(batch):
    condition = {
        "type": "comparison", "column": {"name": "id"}, "operator": "<", "parameter": 3,
    }  # fmt: skip
    found = judged(batch, ONE, column="tailnum", row_condition=condition, **PLANES)
    assert (found.success, found.element_count) == (True, 2)


def test_several_columns_go_together(batch):
    found = judged(
        batch,
        TWO,
        column_list=["tailnum", "year"],
        other_table=PLANES["other_table"],
        other_columns=["tail num", "year"],
    )
    assert (found.success, found.unexpected_count) == (False, 2)


@pytest.mark.parametrize(
    "other",
    [{"other_table": "s.nowhere"}, {"other_table": "s.p1", "other_column": "nothing"}],
)
def test_what_cannot_be_looked_up_fails_and_is_nobody_elses(batch, other):
    found = judged(batch, ONE, column="tailnum", **other)
    assert not found.success
    assert "42" in (found.exception or "")


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        (ONE, {"column": "a", "other_table": "x.y.z"}),
        (ONE, {"column": "a", "other_table": ["x"]}),
        (ONE, {"column": "a", "other_table": "x.y", "other_column": ""}),
        (TWO, {"column_list": ["a", "b"], "other_table": "x.y", "other_columns": ["a"]}),
    ],
)
def test_a_name_that_is_none_is_refused_when_the_suite_is_read(kind, kwargs):
    with pytest.raises(ConfigurationError):
        parse_suite([{"type": kind, "kwargs": kwargs}])
