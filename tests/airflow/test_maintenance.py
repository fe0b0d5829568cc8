"""Maintenance of a warehouse as tasks of a DAG."""

from __future__ import annotations

from datetime import timedelta

from airflow_etl_provider.operators.maintenance import (
    PartitionMaintenanceOperator,
    PartitionRollbackOperator,
    WarehouseCleanOperator,
)
from tests.airflow.shop import Shop, month


def test_a_task_that_cleans(shop: Shop) -> None:
    """It drops what the limits say, and returns it as small JSON; a second run finds nothing."""
    shop.load(1)
    shop.load(1)
    with shop.dag() as dag:
        WarehouseCleanOperator(task_id="clean", target_conn_id="dwh", keep_versions=0)
    ran = shop.airflow.run(dag, None)
    assert ran.state == "success", ran.errors
    (gone,) = ran.xcom("clean")["dropped"]
    assert gone["table"].startswith("etl_staging.orders_2013_01_")
    again = shop.airflow.run(dag, None)
    assert again.xcom("clean")["dropped"] == []
    assert shop.rows() == 1000


def test_a_load_is_taken_back_and_its_window_loaded_anew(shop: Shop) -> None:
    """Publish alone is refused afterwards, with the way on; extract and downstream load the window."""
    shop.load(1)
    dag = shop.pipeline()
    shop.source.run("UPDATE orders SET amount = -1")
    wrong = shop.airflow.run(dag, month(1))
    load_id = wrong.xcom("publish")["load_id"]
    with shop.dag() as back:
        PartitionRollbackOperator(
            task_id="back",
            target_conn_id="dwh",
            load_id=f"{{{{ '{load_id}' }}}}",
            reason="wrong amounts in {{ dag.dag_id }}",
        )
    ran = shop.airflow.run(back, None)
    assert ran.state == "success", ran.errors
    assert list(ran.xcom("back")["kept"]) == ["a.orders_2013_01"]
    negative = "SELECT count(*) FROM a.orders WHERE amount < 0"
    assert shop.warehouse.value(negative) == 0
    error = shop.warehouse.value("SELECT error FROM etl.loads WHERE state = 'rolled_back'")
    assert error == (f"rolled back by {ran.dag_id} {ran.run_id}: wrong amounts in {ran.dag_id}")

    alone = shop.airflow.clear(dag, wrong, "publish")
    assert alone.state == "failed"
    assert "clear extract and downstream" in str(alone.errors["publish"])
    shop.source.run("UPDATE orders SET amount = 1")
    anew = shop.airflow.clear(dag, wrong, "extract", "validate", "publish")
    assert anew.state == "success", anew.errors
    assert anew.xcom("publish")["load_id"] != load_id
    assert shop.warehouse.value("SELECT count(*) FROM a.orders WHERE amount = 1") == 1000


def test_a_task_that_keeps_partitions_in_order(shop: Shop) -> None:
    """Partitions ahead are made, old ones are retired and can be restored; a dry run only says so."""
    shop.load(1)
    shop.load(2)
    told = {"target_conn_id": "dwh", "target": "a.orders", "keep": timedelta(days=365)}
    monthly = {"column": "at", "every": "month", "timezone": "UTC"}
    with shop.dag() as dag:
        look = PartitionMaintenanceOperator(
            task_id="look", dry_run=True, partition=monthly, ahead=2, **told
        )
        keep = PartitionMaintenanceOperator(
            task_id="keep", partition=monthly, ahead=2, keep_partitions=2, **told
        )
        look >> keep
    before = shop.rows()
    ran = shop.airflow.run(dag, None)
    assert ran.state == "success", ran.errors
    assert ran.xcom("look")["made_count"] == 3
    assert ran.xcom("keep")["made_count"] == 3
    (retired,) = ran.xcom("keep")["retired"]
    assert retired["partition"] == "a.orders_2013_01"
    assert shop.rows() == before - 1000
    assert shop.warehouse.value("SELECT actor FROM etl.retired_partitions") == (
        f"{ran.dag_id} {ran.run_id}"
    )
    again = shop.airflow.run(dag, None)
    assert (again.xcom("keep")["made_count"], again.xcom("keep")["retired_count"]) == (0, 0)
