"""What most DAG tests load: orders by month, and a small table of products."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from airflow.sdk import DAG, Param

from airflow_etl_provider.operators.extract import IncrementalExtractOperator
from airflow_etl_provider.operators.publish import PartitionSwapOperator
from airflow_etl_provider.operators.validate import QualityValidationOperator
from tests.airflow.runs import Airflow, Interval, Ran
from tests.conftest import Database

MONTHLY = {"column": "at", "every": "month", "timezone": "UTC"}
#: Stands in every row, and must stand nowhere but in tables.
ROW_CONTENT = "xyzzy"
NOT_NULL = [{"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "note"}}]


def month(number: int) -> Interval:
    """A month of 2013."""
    return datetime(2013, number, 1, tzinfo=UTC), datetime(2013, number + 1, 1, tzinfo=UTC)


@dataclass
class Shop:
    """A source and a warehouse with their tables; 1,000 orders in each of three months."""

    source: Database
    warehouse: Database
    airflow: Airflow

    def __post_init__(self) -> None:
        self.stream = f"orders_{uuid4().hex[:8]}"
        self.source.run(f"""
            CREATE TABLE orders (id bigint PRIMARY KEY, at timestamptz NOT NULL, note text, amount int);
            INSERT INTO orders
            SELECT i, timestamptz '2013-01-01 00:00+00' + make_interval(months => i / 1000, mins => i % 1000),
                   '{ROW_CONTENT}' || i, i
            FROM generate_series(0, 2999) AS i;
            CREATE TABLE products (id int PRIMARY KEY, name text);
            INSERT INTO products SELECT i, '{ROW_CONTENT}' || i FROM generate_series(1, 5) AS i
        """)
        self.warehouse.run("""
            CREATE SCHEMA a;
            CREATE TABLE a.orders (id bigint, at timestamptz NOT NULL, note text, amount int, PRIMARY KEY (id, at))
            PARTITION BY RANGE (at);
            CREATE TABLE a.products (id int PRIMARY KEY, name text)
        """)

    def extract(self, **changes: Any) -> IncrementalExtractOperator:
        given: dict[str, Any] = {
            "task_id": "extract",
            "stream": self.stream,
            "kind": "events",
            "source_conn_id": "shop",
            "source": "public.orders",
            "target_conn_id": "dwh",
            "target": "a.orders",
            "cursor": "at",
            "partition": MONTHLY,
        }
        return IncrementalExtractOperator(**{**given, **changes})

    def dag(self, dag_id: str | None = None, **settings: Any) -> DAG:
        """An empty DAG with the window params of the factory."""
        given: dict[str, Any] = {
            "schedule": None,
            "start_date": datetime(2013, 1, 1, tzinfo=UTC),
            "default_args": {"retries": 0, "retry_delay": timedelta(0)},
            "params": {
                name: Param(None, type=["null", "string"], format="date-time")
                for name in ("window_low", "window_high")
            },
        }
        return DAG(dag_id or f"dag_{uuid4().hex[:10]}", **{**given, **settings})

    def pipeline(
        self,
        *,
        expectations: Sequence[Mapping[str, Any]] = (),
        extract: Mapping[str, Any] | None = None,
        validate: Mapping[str, Any] | None = None,
        publish: Mapping[str, Any] | None = None,
        dag: DAG | None = None,
    ) -> DAG:
        """extract >> validate >> publish of the orders."""
        with dag or self.dag() as made:
            first = self.extract(**(extract or {}))
            second = QualityValidationOperator(
                task_id="validate",
                batch=first.output,
                expectations=list(expectations),
                **(validate or {}),
            )
            third = PartitionSwapOperator(
                **{"task_id": "publish", "batch": second.output, **(publish or {})}
            )
            first >> second >> third
        return made

    def load(self, number: int, **given: Any) -> Ran:
        """Load one month by a pipeline of its own."""
        ran = self.airflow.run(self.pipeline(**given), month(number))
        assert ran.state == "success", ran.errors
        return ran

    def snapshots(self, stream: str, **publish: Any) -> DAG:
        """extract >> validate >> publish of the products, whole."""
        return self.pipeline(
            extract={
                "stream": stream,
                "kind": "snapshots",
                "source": "public.products",
                "target": "a.products",
                "cursor": None,
                "window": "full",
                "partition": None,
            },
            publish=publish,
        )

    # -- what is there now ------------------------------------------------------------------------

    def rows(self, table: str = "a.orders") -> int:
        found: int = self.warehouse.value(f"SELECT count(*) FROM {table}")
        return found

    def picture(self) -> dict[str, Any]:
        """Everything that a refused run must leave as it was."""
        exists = self.warehouse.value("SELECT to_regclass('etl.loads') IS NOT NULL")
        return {
            "orders": self.warehouse.run("SELECT * FROM a.orders ORDER BY id"),
            "products": self.warehouse.run("SELECT * FROM a.products ORDER BY id"),
            "tables": self.warehouse.run(
                "SELECT relnamespace::regnamespace::text, relname, oid::bigint FROM pg_class"
                " WHERE relkind IN ('r', 'p') AND relnamespace IN"
                " (SELECT oid FROM pg_namespace WHERE nspname IN ('a', 'etl_staging')) ORDER BY 1, 2"
            ),
            # A stream that never published is only a name there, beside its failed load.
            "positions": {k: v for k, v in self.positions().items() if v != (None, 0)}
            if exists
            else {},
            "coverage": self.warehouse.run("SELECT * FROM etl.coverage ORDER BY stream, low")
            if exists
            else [],
            "published": self.warehouse.run(
                "SELECT load_id, published_at FROM etl.loads WHERE state = 'published' ORDER BY seq"
            )
            if exists
            else [],
            "variable": self.airflow.variable(self.key()),
        }

    def positions(self) -> dict[str, tuple[str | None, int]]:
        return {
            stream: (position, fence)
            for stream, position, fence in self.warehouse.run(
                "SELECT stream, position, fence FROM etl.streams"
            )
        }

    def loads(self) -> list[str]:
        """States of all loads, in order."""
        return [row[0] for row in self.warehouse.run("SELECT state FROM etl.loads ORDER BY seq")]

    def key(self, stream: str | None = None) -> str:
        return f"etl.watermark.{stream or self.stream}"

    def watermark(self, stream: str | None = None) -> dict[str, Any]:
        """The Variable's JSON."""
        text = self.airflow.variable(self.key(stream))
        assert text is not None, f"there is no Variable {self.key(stream)}"
        found: dict[str, Any] = json.loads(text)
        return found

    def agreed(self) -> tuple[str | None, int]:
        """Position and fence, which Variable and ledger must agree on."""
        stored = self.watermark()
        assert (stored["value"], stored["fence"]) == self.positions()[self.stream]
        return self.positions()[self.stream]
