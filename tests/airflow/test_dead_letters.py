"""Rows that are set aside and come back, as tasks of real DAGs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk import Param

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.factories import build_pipeline
from airflow_etl_provider.operators.dead_letters import DeadLetterReplayOperator
from airflow_etl_provider.operators.validate import QualityValidationOperator
from tests.airflow.runs import Ran
from tests.airflow.shop import NOT_NULL, ROW_CONTENT, Shop, month

QUARANTINE: list[dict[str, Any]] = [{**NOT_NULL[0], "on_fail": "quarantine"}]
REASON = "expect_column_values_to_not_be_null(note)"


def said(ran: Ran) -> str:
    return json.dumps([ran.log, sorted(map(str, ran.xcoms().items()))])


def flawed(shop: Shop) -> None:
    shop.source.run("UPDATE orders SET note = NULL WHERE id IN (3, 7)")


def test_bad_rows_are_set_aside_and_the_rest_is_published(shop: Shop, counted: Any) -> None:
    """The manifest, the log and the metrics say how many and why; no value of a row is in any of them."""
    flawed(shop)
    ran = shop.load(1, expectations=QUARANTINE)
    assert shop.rows() == 998
    manifest = ran.xcom("validate")
    assert (manifest["rows"], manifest["rows_dead"], manifest["direct"]) == (998, 2, False)
    assert manifest["report"]["verdict"] == "warned"
    assert manifest["report"]["failures"][0]["set_aside"] is True
    assert counted == [("etl.dead_letters", 2, {"stream": shop.stream, "reason": REASON})]
    assert "rows set aside" in ran.events()
    assert any("set aside" in line["event"] and "note" in line["event"] for line in ran.log)
    assert ROW_CONTENT not in said(ran)
    assert shop.warehouse.run("SELECT status, count(*) FROM etl.dead_letters GROUP BY 1") == [
        ("pending", 2)
    ]


def test_great_expectations_judges_what_remains_as_well(shop: Shop) -> None:
    """It reads the view of the rest like any table."""
    flawed(shop)
    with shop.dag() as dag:
        extract = shop.extract()
        validate = QualityValidationOperator(
            task_id="validate",
            batch=extract.output,
            engine="gx",
            expectations=[
                *QUARANTINE,
                {"type": "expect_table_row_count_to_equal", "kwargs": {"value": 998}},
            ],
        )
        extract >> validate
    ran = shop.airflow.run(dag, month(1))
    assert ran.state == "success", ran.errors
    assert ran.xcom("validate")["rows"] == 998
    assert ran.xcom("validate")["report"]["verdict"] == "warned"
    assert shop.warehouse.value("SELECT count(*) FROM etl.dead_letters") == 2


def test_too_many_bad_rows_reject_the_load_and_are_not_retried(shop: Shop) -> None:
    flawed(shop)
    with shop.dag(default_args={"retries": 3}) as dag:
        extract = shop.extract()
        validate = QualityValidationOperator(
            task_id="validate", batch=extract.output, expectations=QUARANTINE, max_dead_rows=1
        )
        extract >> validate
    ran = shop.airflow.run(dag, month(1))
    assert ran.state == "failed"
    assert [task for task, _ in ran.tries] == ["extract", "validate"]
    assert "max_dead_rows" in ran.error("validate")
    assert shop.loads() == ["rejected"]
    assert shop.warehouse.value("SELECT count(*) FROM etl.dead_letters") == 0


def test_rows_that_cannot_be_converted_are_counted_by_extract(shop: Shop, counted: Any) -> None:
    shop.warehouse.run("ALTER TABLE a.orders ALTER note TYPE varchar(7)")
    ran = shop.load(1, extract={"on_conversion_error": "quarantine", "max_dead_share": 1.0})
    assert ran.xcom("extract")["rows_dead"] == 1000 - ran.xcom("extract")["rows"]
    assert counted == [
        (
            "etl.dead_letters",
            ran.xcom("extract")["rows_dead"],
            {
                "stream": shop.stream,
                "reason": "column note cannot be converted to character varying(7)",
            },
        )
    ]
    assert ROW_CONTENT not in said(ran)


def test_mended_rows_come_back_by_a_task(shop: Shop, counted: Any) -> None:
    """By arguments; the rendered fields, the log and XCom show no value."""
    flawed(shop)
    shop.load(1, expectations=QUARANTINE)
    counted.clear()
    with shop.dag() as dag:
        DeadLetterReplayOperator(
            task_id="replay",
            target_conn_id="dwh",
            stream="{{ '" + shop.stream + "' }}",
            values={"note": "mended value"},
        )
    ran = shop.airflow.run(dag, None)
    assert ran.state == "success", ran.errors
    assert ran.xcom("replay")["replayed"] == 2
    assert shop.warehouse.value("SELECT count(*) FROM a.orders WHERE note = 'mended value'") == 2
    assert shop.rows() == 1000
    assert counted == [("etl.dead_letters.replayed", 2, {"stream": shop.stream})]
    assert "mended value" not in said(ran)
    again = shop.airflow.clear(dag, ran, "replay")
    assert again.xcom("replay")["replayed"] == 0
    assert shop.rows() == 1000


def test_a_runs_params_say_which_rows_and_how(shop: Shop) -> None:
    flawed(shop)
    shop.load(1, expectations=QUARANTINE)
    ((first,), (second,)) = shop.warehouse.run("SELECT id FROM etl.dead_letters ORDER BY id")

    def run(**conf: Any) -> Ran:
        params = {name: Param(None) for name in ("ids", "values", "corrections")}
        with shop.dag(params=params) as dag:
            DeadLetterReplayOperator(task_id="replay", target_conn_id="dwh", stream=shop.stream)
        return shop.airflow.run(dag, None, conf=conf)

    # Whoever computes which letters may find none.
    assert run(ids=[], values={"note": "of none"}).xcom("replay")["replayed"] == 0
    ran = run(ids=[first], values={"note": "by param"})
    assert ran.state == "success", ran.errors
    assert ran.xcom("replay") | {"load_ids": []} == {
        "stream": shop.stream,
        "replayed": 1,
        "superseded": 0,
        "failed": 0,
        "waiting": 0,
        "refused": 0,
        "others": {},
        "load_ids": [],
    }
    ran = run(corrections={str(second): {"note": "by id"}})
    assert ran.xcom("replay")["replayed"] == 1
    assert shop.warehouse.value("SELECT note FROM a.orders WHERE id = 7") == "by id"
    wrong = run(values="note=x")
    assert wrong.state == "failed"
    assert "no mapping of columns" in wrong.error("replay")


def test_what_the_pipeline_says_of_bad_rows_reaches_its_tasks() -> None:
    """At the top level for all streams, and for one by itself."""
    stream = {
        "kind": "events",
        "source": {"conn_id": "s", "table": "public.t", "cursor": "at", "on_conversion_error": "quarantine"},
        "target": {"conn_id": "t", "table": "a.t", "partition": {"column": "at", "every": "month"}},
        "quality": QUARANTINE,
    }  # fmt: skip
    pipeline = {
        "pipeline": "p", "schedule": "@monthly", "start_date": "2013-01-01", "max_dead_share": 0.02,
        "streams": [
            {"stream": "one", **stream},
            {"stream": "two", **stream, "target": {**stream["target"], "table": "a.u"}, "max_dead_rows": 5},
        ],
    }  # fmt: skip
    dag = build_pipeline(pipeline)
    for part in (
        "| set aside | rows that the target cannot hold and that fail an expectation marked below; more than 2.0% fail the load |",
        "more than 2.0% or 5 rows fail the load |",
        "- **critical**, sets rows aside: `expect_column_values_to_not_be_null`",
    ):
        assert part in (dag.doc_md or "")
    for name, rows in (("one", None), ("two", 5)):
        for task in ("extract", "validate"):
            found = dag.get_task(f"{name}.{task}")
            assert (found.max_dead_share, found.max_dead_rows) == (0.02, rows)
        assert dag.get_task(f"{name}.extract").on_conversion_error == "quarantine"
        suite = dag.get_task(f"{name}.validate").expectations
        assert [expectation.on_fail for expectation in suite.expectations] == ["quarantine"]
    assert (
        build_pipeline({"pipeline": "q", "stream": "x", **stream})
        .get_task("extract")
        .max_dead_share
        == 0.1
    )


@pytest.mark.parametrize(
    "change",
    [{"max_dead_share": 1.5}, {"max_dead_rows": -1}, {"quality": [{"type": "expect_table_row_count_to_equal", "kwargs": {"value": 1}, "on_fail": "quarantine"}]}],
    ids=["share", "rows", "of all rows"],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_the_pipeline_is_built(change: dict[str, Any]) -> None:
    pipeline = {
        "pipeline": "p", "stream": "x", "kind": "snapshots",
        "source": {"conn_id": "s", "table": "public.t"}, "target": {"conn_id": "t", "table": "a.t"},
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"max_dead|on_fail quarantine"):
        build_pipeline({**pipeline, **change})


def test_a_table_that_is_no_batch_loses_no_rows(shop: Shop) -> None:
    with shop.dag() as dag:
        QualityValidationOperator(
            task_id="validate", conn_id="shop", table="public.orders", expectations=QUARANTINE
        )
    ran = shop.airflow.run(dag, None)
    assert "no staged batch" in ran.error("validate")
