"""What OpenLineage hears: every operator, at start, at the end and in failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from airflow.sdk.execution_time import task_runner

from airflow_etl_provider.operators.validate import QualityValidationOperator
from tests.airflow.runs import Ran, lineage_events
from tests.airflow.shop import NOT_NULL, ROW_CONTENT, Shop, month
from tests.airflow_environment import LINEAGE
from tests.unit.lineage.facets import check_facet

EXPECTATIONS = [
    *NOT_NULL,
    {
        "type": "expect_column_values_to_be_between",
        "kwargs": {"column": "amount", "min_value": 100_000},
        "severity": "warning",
    },
    {
        "type": "expect_table_row_count_to_equal",
        "kwargs": {"value": 7},
        "severity": "info",
    },
]


def only(datasets: list[dict[str, Any]]) -> dict[str, Any]:
    (dataset,) = datasets
    return dataset


def facets_of(event: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for dataset in [*event["inputs"], *event["outputs"]]:
        for group in ("facets", "inputFacets", "outputFacets"):
            yield from (dataset.get(group) or {}).items()


@pytest.fixture
def loaded(shop: Shop) -> tuple[Shop, Ran]:
    """A month that was published, with a warning."""
    return shop, shop.load(1, expectations=EXPECTATIONS)


class TestComplete:
    def test_extract_reads_a_window_of_the_source(self, loaded: tuple[Shop, Ran]) -> None:
        """Schema, rows and bytes, and the window as a subset; staging is no dataset."""
        shop, ran = loaded
        event = ran.lineage("extract", "COMPLETE")
        source = only(event["inputs"])
        assert event["outputs"] == []
        assert source["namespace"] == f"postgres://127.0.0.1:{shop.source.server.port}"
        assert source["name"] == f"{shop.source.name}.public.orders"
        assert [(f["name"], f["type"]) for f in source["facets"]["schema"]["fields"]] == [
            ("id", "bigint"),
            ("at", "timestamp with time zone"),
            ("note", "text"),
            ("amount", "integer"),
        ]
        assert source["inputFacets"]["inputStatistics"]["rowCount"] == 1000
        assert source["inputFacets"]["inputStatistics"]["size"] > 0
        condition = source["inputFacets"]["subset"]["inputCondition"]
        bounds = [
            (side["left"]["field"], side["comparison"], side["right"]["value"])
            for side in (condition["left"], condition["right"])
        ]
        assert bounds == [
            ("at", "GREATER_EQUAL_THAN", "2013-01-01 00:00:00+00"),
            ("at", "LESS_THAN", "2013-02-01 00:00:00+00"),
        ]

    def test_validate_states_every_expectation(self, loaded: tuple[Shop, Ran]) -> None:
        """On the table it guards, with column, severity and outcome."""
        shop, ran = loaded
        event = ran.lineage("validate", "COMPLETE")
        guarded = only(event["inputs"])
        assert event["outputs"] == []
        assert guarded["name"] == f"{shop.warehouse.name}.a.orders"
        found = guarded["inputFacets"]["dataQualityAssertions"]["assertions"]
        assert [(a["assertion"], a.get("column"), a["severity"], a["success"]) for a in found] == [
            ("expect_column_values_to_not_be_null", "note", "error", True),
            ("expect_column_values_to_be_between", "amount", "warn", False),
            ("expect_table_row_count_to_equal", None, "warn", False),
        ]
        assert guarded["inputFacets"]["dataQualityMetrics"]["rowCount"] == 1000

    def test_publish_writes_the_partition(self, loaded: tuple[Shop, Ran]) -> None:
        """Schema, origin of every column, rows, partition, change and version."""
        shop, ran = loaded
        event = ran.lineage("publish", "COMPLETE")
        source, target = only(event["inputs"]), only(event["outputs"])
        assert source["name"] == f"{shop.source.name}.public.orders"
        assert target["namespace"] == f"postgres://127.0.0.1:{shop.warehouse.server.port}"
        assert target["name"] == f"{shop.warehouse.name}.a.orders"
        origins = target["facets"]["columnLineage"]["fields"]
        assert sorted(origins) == ["amount", "at", "id", "note"]
        origin = only(origins["note"]["inputFields"])
        assert (origin["namespace"], origin["name"], origin["field"]) == (
            source["namespace"],
            source["name"],
            "note",
        )
        assert target["facets"]["version"]["datasetVersion"] == ran.xcom("publish")["load_id"]
        assert target["facets"]["lifecycleStateChange"]["lifecycleStateChange"] == "OVERWRITE"
        assert target["outputFacets"]["outputStatistics"]["rowCount"] == 1000
        partition = only(target["outputFacets"]["subset"]["outputCondition"]["partitions"])
        assert partition["identifier"] == "a.orders_2013_01"
        assert "2013-02-01" in partition["dimensions"]["bound"]

    def test_a_snapshot_alters_its_table(self, shop: Shop) -> None:
        """No window and no partition, and nothing is overwritten."""
        ran = shop.airflow.run(shop.snapshots("products"), None)
        source = only(ran.lineage("extract", "COMPLETE")["inputs"])
        assert "subset" not in source["inputFacets"]
        target = only(ran.lineage("publish", "COMPLETE")["outputs"])
        assert target["facets"]["lifecycleStateChange"]["lifecycleStateChange"] == "ALTER"
        assert "subset" not in target["outputFacets"]
        assert target["outputFacets"]["outputStatistics"]["rowCount"] == 5

    def test_a_table_checked_alone(self, shop: Shop) -> None:
        """The dataset is the table itself, with its schema."""
        with shop.dag() as dag:
            QualityValidationOperator(
                task_id="check", conn_id="shop", table="public.orders", expectations=NOT_NULL
            )
        ran = shop.airflow.run(dag, None)
        table = only(ran.lineage("check", "COMPLETE")["inputs"])
        assert table["name"] == f"{shop.source.name}.public.orders"
        assert [f["name"] for f in table["facets"]["schema"]["fields"]] == [
            "id",
            "at",
            "note",
            "amount",
        ]

    def test_a_clear_that_publishes_nothing_claims_nothing_new(self, shop: Shop) -> None:
        """Already published: the version named is the one that readers see."""
        ran = shop.load(1)
        dag = shop.pipeline(dag=shop.dag(ran.dag_id))
        first = ran.xcom("publish")["load_id"]
        shop.airflow.clear(dag, ran, "publish")
        target = only(ran.lineage("publish", "COMPLETE")["outputs"])
        assert target["facets"]["version"]["datasetVersion"] == first

    def test_a_load_that_was_overtaken_claims_no_output(self, shop: Shop) -> None:
        """A newer load shows the window: the older batch was abandoned, nothing was written."""
        with shop.dag() as dag:
            first = shop.extract()
        older = shop.airflow.run(dag, month(1))
        shop.load(1)
        from airflow_etl_provider.operators.publish import PartitionSwapOperator

        with shop.dag() as late:
            PartitionSwapOperator(task_id="publish", batch=older.xcom(first.task_id), audit="none")
        ran = shop.airflow.run(late, month(1))
        assert ran.state == "success", ran.errors
        assert shop.loads() == ["abandoned", "published"]
        assert ran.lineage("publish", "COMPLETE")["outputs"] == []


class TestStart:
    def test_every_task_is_announced(self, loaded: tuple[Shop, Ran]) -> None:
        """One START for each task, in the same run as its COMPLETE, without outputs."""
        _, ran = loaded
        for task in ("extract", "validate", "publish"):
            start, complete = ran.lineage(task, "START"), ran.lineage(task, "COMPLETE")
            assert start["run"]["runId"] == complete["run"]["runId"]
            assert start["outputs"] == []


class TestFail:
    def test_of_extract(self, shop: Shop) -> None:
        """What could not be read is named."""
        shop.source.run(
            "ALTER TABLE orders ALTER at DROP NOT NULL; UPDATE orders SET at = NULL WHERE id = 1"
        )
        ran = shop.airflow.run(shop.pipeline(), month(1))
        event = ran.lineage("extract", "FAIL")
        assert [dataset["name"] for dataset in event["inputs"]] == [
            f"{shop.source.name}.public.orders"
        ]
        assert event["outputs"] == []
        assert "no value in the cursor" in event["run"]["facets"]["errorMessage"]["message"]

    def test_of_validate(self, shop: Shop) -> None:
        """The verdict that stopped the load is what people look for."""
        shop.source.run("UPDATE orders SET note = NULL WHERE id < 5")
        ran = shop.airflow.run(shop.pipeline(expectations=EXPECTATIONS), month(1))
        event = ran.lineage("validate", "FAIL")
        found = only(event["inputs"])["inputFacets"]["dataQualityAssertions"]["assertions"]
        assert [a["success"] for a in found] == [False, False, False]
        assert event["outputs"] == []

    def test_of_publish(self, shop: Shop) -> None:
        """Nothing was written, so nothing is said to have been."""
        ran = shop.airflow.run(shop.pipeline(publish={"strategy": "replace"}), month(1))
        event = ran.lineage("publish", "FAIL")
        assert event["outputs"] == []
        assert only(event["inputs"])["name"] == f"{shop.source.name}.public.orders"

    def test_after_the_commit_the_retry_tells(self, shop: Shop, failing_writes: list[int]) -> None:
        """The try that died had published: the next one reports it, with its rows."""
        failing_writes.append(1)
        ran = shop.airflow.run(shop.pipeline(publish={"retries": 1}), month(1))
        target = only(ran.lineage("publish", "COMPLETE")["outputs"])
        assert target["outputFacets"]["outputStatistics"]["rowCount"] == 1000


def test_every_facet_is_one_that_openlineage_knows(loaded: tuple[Shop, Ran]) -> None:
    """Each facet can be read back into the client's class of its schema, no field left over."""
    _, ran = loaded
    checked = [
        check_facet(name, facet)
        for event in lineage_events(ran.dag_id)
        for name, facet in facets_of(event)
    ]
    assert len(checked) >= 12


def test_no_row_and_no_secret_is_told(shop: Shop) -> None:
    """Also not where an audit found values, and not in messages of errors."""
    regex = {
        "type": "expect_column_values_to_match_regex",
        "kwargs": {"column": "note", "regex": "^$"},
    }
    ran = shop.airflow.run(shop.pipeline(expectations=[regex]), month(1))
    assert ran.state == "failed"
    assert ROW_CONTENT not in LINEAGE.read_text()
    assert shop.warehouse.server.password not in json.dumps(lineage_events(ran.dag_id))


def test_operators_work_without_openlineage(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disabled or without a transport, the plugin registers no listener: the same work, and not a word."""
    nobody = SimpleNamespace(hook=MagicMock())
    monkeypatch.setattr(task_runner, "get_listener_manager", lambda: nobody)
    ran = shop.airflow.run(shop.pipeline(expectations=NOT_NULL), month(1))
    assert ran.state == "success", ran.errors
    assert nobody.hook.on_task_instance_success.call_count == 3
    assert lineage_events(ran.dag_id) == []
    assert shop.rows() == 1000
