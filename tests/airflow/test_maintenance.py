"""Maintenance of a warehouse as tasks of a DAG."""

from __future__ import annotations

from airflow_etl_provider.operators.maintenance import WarehouseCleanOperator
from tests.airflow.shop import Shop


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
