"""transform under a real Airflow: in a DAG by hand and of YAML, retried, cleared, and as lineage hears of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module, reload
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from airflow.sdk import DAG
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from airflow_etl_provider.core.errors import ConfigurationError, ErrorClass, TransientError
from airflow_etl_provider.factories import build_pipeline
from airflow_etl_provider.hooks.errors import airflow_errors, class_of
from airflow_etl_provider.hooks.retry import EtlRetryPolicy
from airflow_etl_provider.operators.extract import IncrementalExtractOperator
from airflow_etl_provider.operators.publish import PartitionSwapOperator
from airflow_etl_provider.operators.transform import TransformOperator
from airflow_etl_provider.operators.validate import QualityValidationOperator
from tests.airflow.runs import Airflow, Ran
from tests.airflow.shop import NOT_NULL, ROW_CONTENT, Shop, month

SELECT = "SELECT id, at, upper(note) AS note, amount FROM batch WHERE amount % :every = 0"


def transformed(
    shop: Shop, dag: DAG | None = None, *, extract: dict[str, Any] | None = None, **transform: Any
) -> DAG:
    """extract >> transform >> validate >> publish of the orders."""
    with dag or shop.dag() as made:
        first = shop.extract(**(extract or {}))
        second = TransformOperator(task_id="transform", batch=first.output, **transform)
        third = QualityValidationOperator(
            task_id="validate", batch=second.output, expectations=NOT_NULL
        )
        fourth = PartitionSwapOperator(task_id="publish", batch=third.output)
        first >> second >> third >> fourth
    return made


def even(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Raises for rows whose amount is odd, one by one."""
    for amount in batch["amount"].to_pylist():
        if amount % 20 == 1:
            raise ValueError(f"{ROW_CONTENT}{amount}")
    return batch


def text_of(ran: Ran) -> str:
    return json.dumps([ran.log, sorted(map(str, ran.xcoms().items())), str(ran.errors)])


class TestSql:
    def test_a_month_is_transformed_audited_and_published(self, shop: Shop) -> None:
        """The SELECT is a template, its parameters are values; what goes on is small JSON without rows."""
        dag = transformed(
            shop, sql="{# a comment #}" + SELECT, parameters={"every": 10, "nothing": "{{ 'x' }}"}
        )
        dag.task_dict["transform"].sql += " AND :nothing::text = '{{ 'x' }}'"
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "success", ran.errors
        assert shop.rows() == 100
        assert shop.warehouse.value("SELECT count(*) FROM a.orders WHERE note LIKE 'XYZZY%'") == 100
        result = ran.xcom("transform")
        assert (result["rows"], result["transformed"]["rows"]) == (100, 1000)
        assert len(json.dumps(result)) < 4000
        assert ROW_CONTENT not in text_of(ran).lower().replace("xyzzy%", "")
        assert shop.agreed() == ("2013-02-01 00:00:00+00", 1)
        assert [event for event in ran.events() if "transform" in event] == [
            "transform started",
            "batch transformed",
        ]

    def test_an_output_that_does_not_fit_fails_at_once(self, shop: Shop) -> None:
        """No retry says anything else; nothing was read, and the batch is still there."""
        dag = transformed(
            shop,
            shop.dag(default_args={"retries": 3, "retry_delay": timedelta(0)}),
            sql="SELECT id, at, note AS nota, amount::text AS amount FROM batch",
        )
        ran = shop.airflow.run(dag, month(1))
        assert [task for task, _ in ran.tries] == ["extract", "transform"]
        said = ran.error("transform")
        assert "it has 'nota', which a.orders has not; did you mean 'note'?" in said
        assert "amount: text does not fit integer" in said
        assert "write amount::integer AS amount" in said
        assert shop.loads() == ["staged"]

    def test_clearing_the_transform_begins_again_from_what_was_extracted(self, shop: Shop) -> None:
        """The SELECT was mended; nothing is read from the source again."""
        dag = transformed(
            shop, sql="SELECT id, at, NULL::text AS note, amount + 1 AS amount FROM batch"
        )
        ran = shop.airflow.run(dag, month(1))
        assert "rejected" in shop.loads()
        shop.source.run("TRUNCATE orders")
        dag.task_dict["transform"].sql = "SELECT id, at, note, amount + 1 AS amount FROM batch"
        again = shop.airflow.clear(dag, ran, "transform", "validate", "publish")
        assert again.state == "success", again.errors
        assert shop.warehouse.run(
            "SELECT count(*), min(amount - id), max(amount - id) FROM a.orders"
        ) == [(1000, 1, 1)]
        assert shop.loads() == ["published"]
        assert (
            shop.warehouse.value(
                "SELECT count(*) FROM pg_class WHERE relnamespace = 'etl_staging'::regnamespace"
            )
            == 0
        )

    def test_clearing_the_transform_alone_publishes_nothing_unaudited(self, shop: Shop) -> None:
        dag = transformed(shop, sql="SELECT * FROM batch")
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "success", ran.errors
        again = shop.airflow.clear(dag, ran, "transform")
        assert again.state == "success"
        assert any(event.startswith("already published") for event in again.events())
        assert shop.rows() == 1000

    def test_nothing_new_is_nothing_to_transform(self, shop: Shop) -> None:
        """A watermark window without anything new passes through."""
        shop.warehouse.run(
            "CREATE TABLE a.hits (id bigint PRIMARY KEY, at timestamptz, note text, amount int)"
        )
        given = {
            "kind": "entities", "cursor": "id", "window": "watermark", "keys": ["id"], "target": "a.hits", "partition": None,
            "settle_delay": timedelta(0),
        }  # fmt: skip
        dag = transformed(shop, extract=given, sql="SELECT * FROM batch")
        first = shop.airflow.run(dag)
        assert first.state == "success", first.errors
        ran = shop.airflow.run(dag)
        assert ran.state == "success", ran.errors
        assert ran.xcom("transform")["nothing"] is True
        assert ran.xcom("publish")["nothing_to_do"] is True

    def test_mapped_streams_keep_to_themselves(self, shop: Shop) -> None:
        """One transform for each batch, each handed on to its own audit."""
        shop.warehouse.run("CREATE TABLE a.copies (LIKE a.products INCLUDING ALL)")
        given = [
            {"stream": f"{shop.stream}_{number}", "target": target}
            for number, target in enumerate(("a.products", "a.copies"))
        ]
        with shop.dag() as dag:
            extract = IncrementalExtractOperator.partial(
                task_id="extract", kind="snapshots", source_conn_id="shop", source="public.products",
                target_conn_id="dwh", window="full", stage_as="source",
            ).expand_kwargs(given)  # fmt: skip
            transform = TransformOperator.partial(
                task_id="transform", sql="SELECT id, upper(name) AS name FROM batch"
            ).expand(batch=extract.output)
            validate = QualityValidationOperator.partial(task_id="validate").expand(
                batch=transform.output
            )
            PartitionSwapOperator.partial(task_id="publish").expand(batch=validate.output)
        ran = shop.airflow.run(dag)
        assert ran.state == "success", ran.errors
        for target in ("a.products", "a.copies"):
            query = f"SELECT count(*) FROM {target} WHERE name LIKE 'XYZZY%'"
            assert shop.warehouse.value(query) == 5

    def test_what_it_looked_up_is_its_lineage(self, shop: Shop) -> None:
        """The table of the warehouse is an input of transform and publish; computed columns have no origin."""
        shop.warehouse.run(
            "CREATE TABLE a.names AS SELECT i AS id, 'n' || i AS name FROM generate_series(0, 2999) i"
        )
        dag = transformed(
            shop,
            sql="SELECT b.id, b.at, n.name AS note, b.amount + 0 AS amount FROM batch AS b JOIN a.names AS n USING (id)",
        )
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "success", ran.errors
        names = f"{shop.warehouse.name}.a.names"
        assert [d["name"] for d in ran.lineage("transform", "COMPLETE")["inputs"]] == [names]
        event = ran.lineage("publish", "COMPLETE")
        assert [d["name"] for d in event["inputs"]] == [f"{shop.source.name}.public.orders", names]
        (output,) = event["outputs"]
        assert sorted(output["facets"]["columnLineage"]["fields"]) == ["at", "id"]
        assert [f["name"] for f in output["facets"]["schema"]["fields"]] == [
            "id",
            "at",
            "note",
            "amount",
        ]
        (source, _) = event["inputs"]
        assert [f["name"] for f in source["facets"]["schema"]["fields"]] == [
            "id",
            "at",
            "note",
            "amount",
        ]


class TestPython:
    def test_rows_that_raise_are_set_aside(
        self, shop: Shop, counted: list[tuple[str, int, dict[str, str]]]
    ) -> None:
        """50 of 1,000: in the dead letters with the row, in logs and XCom only their number."""
        dag = transformed(shop, python_callable=even, on_error="set_aside_row", batch_rows=128)
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "success", ran.errors
        assert shop.rows() == 950
        assert ran.xcom("transform")["transformed"]["set_aside"] == 50
        ((count, reason),) = shop.warehouse.run(
            "SELECT count(*), min(reason) FROM etl.dead_letters WHERE record ->> 'note' LIKE 'xyzzy%'"
        )
        assert count == 50
        assert reason.startswith("transform: ValueError (test_transform.py:")
        assert counted == [("etl.dead_letters", 50, {"stream": shop.stream, "reason": reason})]
        assert ROW_CONTENT not in text_of(ran)
        (done,) = [line for line in ran.log if line["event"] == "batch transformed"]
        assert (done["rows_in"], done["rows_out"], done["rows_set_aside"]) == (1000, 950, 50)

    def test_too_many_fail_the_load_at_once(self, shop: Shop) -> None:
        dag = transformed(
            shop,
            shop.dag(default_args={"retries": 3, "retry_delay": timedelta(0)}),
            python_callable=even, on_error="set_aside_row", max_dead_share=0.01,
        )  # fmt: skip
        ran = shop.airflow.run(dag, month(1))
        assert [state for task, state in ran.tries if task == "transform"] == ["failed"]
        assert "of 1,000 rows, and at most 1.00% may be (max_dead_share)" in ran.error("transform")
        assert ROW_CONTENT not in text_of(ran)

    def test_a_transient_error_is_retried(self, shop: Shop) -> None:
        """The service was not there the first time."""
        tries: list[int] = []

        def flaky(batch: pa.RecordBatch) -> pa.RecordBatch:
            tries.append(len(batch))
            if len(tries) == 1:
                raise ConnectionResetError
            return batch

        dag = transformed(
            shop,
            shop.dag(default_args={"retries": 1, "retry_delay": timedelta(0)}),
            python_callable=flaky, on_error="set_aside_row",
        )  # fmt: skip
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "success", ran.errors
        assert [state for task, state in ran.tries if task == "transform"] == [
            "up_for_retry",
            "success",
        ]
        assert shop.rows() == 1000

    def test_it_is_named_and_gets_parameters(self, shop: Shop, module: str) -> None:
        """``package.module:function`` is imported by the task, not when the DAG is parsed."""
        assert module not in sys.modules
        dag = transformed(shop, python_callable=f"{module}:add", parameters={"more": 5})
        assert module not in sys.modules
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "success", ran.errors
        assert shop.warehouse.run("SELECT min(amount - id), max(amount - id) FROM a.orders") == [
            (5, 5)
        ]
        assert ran.xcom("transform")["transformed"]["how"] == f"{module}:add"

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"python_callable": "nowhere.at_all:f"}, "'nowhere.at_all' cannot be imported"),
            ({"python_callable": "json:dumpz"}, "no function 'dumpz'; did you mean 'dump"),
            ({"python_callable": "json"}, "names no function"),
            ({}, "names neither sql nor python_callable"),
            ({"sql": "SELECT 1", "python_callable": even}, "names both"),
            ({"sql": "SELECT 1", "on_error": "set_aside_row"}, "are for python_callable"),
            ({"python_callable": even, "on_error": "skip"}, "on_error='skip' is unknown"),
            ({"python_callable": even, "max_dead_share": 10}, "a share from 0 to 1"),
            ({"python_callable": even, "batch_rows": 0}, "counts from 1"),
        ],
    )  # fmt: skip
    def test_what_is_said_wrongly_is_named(
        self, shop: Shop, given: dict[str, Any], says: str
    ) -> None:
        ran = shop.airflow.run(transformed(shop, **given), month(1))
        assert says in ran.error("transform")
        assert isinstance(ran.errors["transform"], AirflowFailException)

    def test_without_pyarrow_it_says_what_to_install(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow.csv", None)
        ran = shop.airflow.run(transformed(shop, python_callable=even), month(1))
        assert "pip install 'airflow-etl-provider[arrow]'" in ran.error("transform")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's, on the path of the worker."""
    (tmp_path / "shop_prices.py").write_text(
        "import pyarrow.compute as pc\n"
        "def add(batch, more):\n"
        "    return batch.set_column(3, 'amount', pc.add(batch['amount'], more).cast('int32'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "shop_prices"
    sys.modules.pop("shop_prices", None)


class TestFiles:
    def test_a_file_is_read_when_the_dag_is_parsed(self, shop: Shop, tmp_path: Path) -> None:
        """Relative to the DAG's file; what is changed afterwards is for the next parse."""
        dag = shop.dag()
        dag.fileloc = str(tmp_path / "dag.py")
        (tmp_path / "orders.sql").write_text(SELECT)
        transformed(shop, dag, sql_file="orders.sql", parameters={"every": 100})
        (tmp_path / "orders.sql").write_text("SELECT nothing")
        assert dag.task_dict["transform"].sql == SELECT
        dag.fileloc = __file__
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "success", ran.errors
        assert shop.rows() == 10

    def test_a_missing_file_is_an_import_error(self, shop: Shop) -> None:
        with pytest.raises(ConfigurationError, match=r"nope\.sql cannot be read"):
            transformed(shop, sql_file="nope.sql")
        with pytest.raises(ConfigurationError, match="names both sql and sql_file"):
            transformed(shop, sql="SELECT 1", sql_file="nope.sql")


def pipeline(shop: Shop, **given: Any) -> dict[str, Any]:
    return {
        "pipeline": f"orders_{shop.stream}",
        "stream": shop.stream,
        "kind": "events",
        "schedule": "@monthly",
        "start_date": "2013-01-01",
        "retries": 0,
        "source": {"conn_id": "shop", "table": "public.orders", "cursor": "at"},
        "target": {
            "conn_id": "dwh",
            "table": "a.sums",
            "partition": {"column": "at", "every": "month"},
        },
        "quality": [{"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "sum"}}],
        **given,
    }


class TestYaml:
    @pytest.fixture
    def sums(self, shop: Shop) -> Shop:
        """A target that has one row for each of 20 pieces of a month, which the source has not."""
        shop.warehouse.run(
            "CREATE TABLE a.sums (at timestamptz NOT NULL, orders bigint NOT NULL, sum bigint) PARTITION BY RANGE (at)"
        )
        return shop

    SQL = (
        "SELECT date_bin('50 min', at, timestamptz '2013-01-01Z') AS at, count(*) AS orders, sum(amount * :rate)::bigint AS sum\n"
        "FROM batch GROUP BY 1\n"
    )

    def test_a_month_of_sums_by_dag_test(self, sums: Shop) -> None:
        """The documented way to try a DAG; filtered and aggregated rows are reported and swapped in."""
        dag = build_pipeline(pipeline(sums, transform={"sql": self.SQL, "parameters": {"rate": 2}}))
        assert list(dag.task_dict) == ["extract", "transform", "validate", "publish"]
        assert dag.get_task("extract").stage_as == "source"
        sums.airflow.sync(dag)
        ran = sums.airflow.observed(
            dag.dag_id, lambda: dag.test(logical_date=datetime(2013, 2, 1, tzinfo=UTC))
        )
        assert ran.state == "success", ran.errors
        assert ran.xcom("publish")["strategy"] == "swap"
        assert sums.warehouse.run("SELECT count(*), sum(orders), sum(sum) FROM a.sums") == [
            (20, 1000, 2 * sum(range(1000)))
        ]
        assert sums.agreed()[0] == "2013-02-01 00:00:00+00"

    def test_a_file_of_the_pipeline_and_a_function(
        self, sums: Shop, tmp_path: Path, module: str
    ) -> None:
        """Both reach the operator; what they are not told is the operator's."""
        from airflow_etl_provider.config.files import parse_pipeline

        (tmp_path / "sums.sql").write_text("-- by piece\n" + self.SQL)
        given = pipeline(sums, transform={"sql_file": "sums.sql", "parameters": {"rate": 1}})
        task = build_pipeline(parse_pipeline(given, folder=tmp_path)).get_task("transform")
        assert (task.sql, task.parameters) == (("-- by piece\n" + self.SQL).strip(), {"rate": 1})
        python = {
            "python": f"{module}:add", "parameters": {"more": 1}, "on_error": "set_aside_row", "max_dead_rows": 5,
            "max_dead_share": 0.5, "batch_rows": 10, "as_text": ["at"],
        }  # fmt: skip
        task = build_pipeline(pipeline(sums, transform=python)).get_task("transform")
        assert (task.python_callable, task.sql) == (f"{module}:add", None)
        assert (task.on_error, task.max_dead_rows, task.max_dead_share) == ("set_aside_row", 5, 0.5)
        assert (task.batch_rows, task.as_text) == (10, ["at"])
        assert module not in sys.modules
        # What the stream says of all of its steps holds for the transform too, unless it says otherwise itself.
        of_stream = pipeline(
            sums, transform={"python": f"{module}:add"}, max_dead_share=0.25, max_dead_rows=7
        )
        task = build_pipeline(of_stream).get_task("transform")
        assert (task.max_dead_rows, task.max_dead_share) == (7, 0.25)

    def test_rows_without_a_cursor_are_transformed_when_they_are_swept(self, shop: Shop) -> None:
        """The sweep is a load of its own, and what is made of a row does not depend on its way."""
        given = pipeline(
            shop,
            kind="entities",
            source={
                "conn_id": "shop", "table": "public.orders", "cursor": "at", "window": "watermark",
                "null_cursor": "sweep", "settle_delay": 0,
            },
            target={"conn_id": "dwh", "table": "a.notes", "keys": ["key"]},
            transform={"sql": "SELECT 'k' || id AS key, at, upper(note) AS note FROM batch"},
            quality=[],
        )  # fmt: skip
        given.pop("start_date")
        shop.source.run(
            "ALTER TABLE orders ALTER at DROP NOT NULL; INSERT INTO orders VALUES (9999, NULL, 'swept', 1)"
        )
        shop.warehouse.run("CREATE TABLE a.notes (key text PRIMARY KEY, at timestamptz, note text)")
        dag = build_pipeline(given)
        ran = shop.airflow.run(dag)
        assert ran.state == "success", ran.errors
        assert shop.warehouse.run(
            "SELECT count(*), count(*) FILTER (WHERE note = 'SWEPT') FROM a.notes"
        ) == [(3001, 1)]


class TestExample:
    @pytest.fixture
    def demo(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
        """The tables that the example names, with a few rows."""
        monkeypatch.setenv("AIRFLOW_CONN_ETL_SOURCE", shop.source.airflow_uri())
        monkeypatch.setenv("AIRFLOW_CONN_ETL_WAREHOUSE", shop.warehouse.airflow_uri())
        shop.source.run("""
            CREATE TABLE flights (time_hour timestamptz, carrier text, flight int, origin text, dep_time int, dep_delay float8);
            INSERT INTO flights SELECT timestamptz '2013-01-01 05:00Z' + i * interval '1 hour', 'AA', i,
                CASE WHEN i % 2 = 0 THEN 'JFK' ELSE 'LGA' END, nullif(i % 10, 0), i / 4.0 FROM generate_series(1, 100) AS i;
            CREATE TABLE planes (tailnum text, year int, manufacturer text, engines int);
            INSERT INTO planes VALUES ('N1', 1999, 'BOEING', 2), ('N2', NULL, NULL, 1)
        """)
        shop.warehouse.run("""
            CREATE SCHEMA analytics;
            CREATE TABLE analytics.airlines (carrier text, name text);
            INSERT INTO analytics.airlines VALUES ('AA', 'American Airlines Inc.')
        """)
        return shop

    def test_it_runs(self, demo: Shop, airflow: Airflow) -> None:
        """As its own text says how, and under ``dag.test()``."""
        example = reload(import_module("airflow_etl_provider.example_dags.example_transform"))
        tables = example.__doc__.split("::", 1)[1]
        demo.warehouse.run(tables)
        dag = example.extract.dag
        airflow.sync(dag)
        ran = airflow.observed(
            dag.dag_id, lambda: dag.test(logical_date=datetime(2013, 2, 1, 5, tzinfo=UTC))
        )
        assert ran.state == "success", ran.errors
        assert demo.warehouse.run(
            "SELECT count(*), min(airline), min(delay), max(delay) FROM analytics.departures"
        ) == [(40, "American Airlines Inc.", 0, 24)]
        assert demo.warehouse.run("SELECT * FROM analytics.plane_ages ORDER BY 1") == [
            ("N1", "Boeing", 14),
            ("N2", None, None),
        ]


class TestRetryPolicy:
    @pytest.mark.parametrize(
        ("error", "action"),
        [
            (psycopg.errors.SerializationFailure(), RetryAction.RETRY),
            (psycopg.errors.LockNotAvailable(), RetryAction.RETRY),
            (psycopg.errors.AdminShutdown(), RetryAction.RETRY),
            (psycopg.OperationalError("connection refused"), RetryAction.RETRY),
            (psycopg.errors.UndefinedTable(), RetryAction.FAIL),
            (psycopg.errors.UniqueViolation(), RetryAction.FAIL),
            (psycopg.errors.InvalidPassword(), RetryAction.FAIL),
            (psycopg.ProgrammingError("placeholders"), RetryAction.FAIL),
            (TransientError("x"), RetryAction.RETRY),
            (ConfigurationError("x"), RetryAction.FAIL),
            (ConnectionResetError(), RetryAction.RETRY),
            (KeyError("x"), RetryAction.FAIL),
            (AirflowException("x"), RetryAction.RETRY),
            (RuntimeError("x"), RetryAction.DEFAULT),
        ],
        ids=lambda each: type(each).__name__ if isinstance(each, Exception) else "",
    )
    def test_the_class_decides(self, error: Exception, action: RetryAction) -> None:
        """By SQLSTATE where there is one, by type else; what nobody knows is Airflow's."""
        assert EtlRetryPolicy().evaluate(error, 1, 3).action is action

    def test_sqlalchemys_errors_are_those_of_the_driver(self) -> None:
        from sqlalchemy.exc import DBAPIError

        wrapped = DBAPIError("SELECT 1", {}, psycopg.errors.DeadlockDetected())
        assert class_of(wrapped) is ErrorClass.TRANSIENT

    def test_an_error_that_was_made_airflows_keeps_its_class(self) -> None:
        for error in (TransientError("x"), ConfigurationError("x")):
            with pytest.raises(AirflowException) as raised, airflow_errors():
                raise error
            assert class_of(raised.value) is error.error_class
        assert class_of(AirflowSkipException()) is ErrorClass.FATAL

    def test_it_survives_being_stored(self) -> None:
        policy = EtlRetryPolicy()
        assert isinstance(EtlRetryPolicy.deserialize(policy.serialize()), EtlRetryPolicy)

    def test_airflow_asks_it(self, shop: Shop) -> None:
        """A task beside ours: its data error is not tried again, though it has retries."""
        from airflow.sdk import task

        with shop.dag(
            default_args={
                "retries": 2,
                "retry_delay": timedelta(0),
                "retry_policy": EtlRetryPolicy(),
            }
        ) as dag:

            @task
            def beside() -> None:
                raise ValueError("no number")

            @task
            def flaky() -> None:
                raise ConnectionResetError

            beside()
            flaky()
        ran = shop.airflow.run(dag)
        assert [state for name, state in ran.tries if name == "beside"] == ["failed"]
        assert [state for name, state in ran.tries if name == "flaky"] == [
            "up_for_retry",
            "up_for_retry",
            "failed",
        ]


def test_what_is_templated_is_said(shop: Shop) -> None:
    """SQL, its parameters and the batch; no value is taken for a file by its ending."""
    assert tuple(TransformOperator.template_fields) == ("batch", "sql", "parameters")
    assert tuple(TransformOperator.template_ext) == ()
    ran = shop.airflow.run(
        transformed(
            shop, sql="SELECT id, at, '{% raw %}{{1,2}}{% endraw %}' AS note, amount FROM batch"
        ),
        month(1),
    )
    assert ran.state == "success", ran.errors
    assert shop.warehouse.value("SELECT DISTINCT note FROM a.orders") == "{{1,2}}"


def test_a_stopped_callable_keeps_nothing(shop: Shop) -> None:
    """on_kill: the call that runs is its last, the statements are cancelled."""
    dag = transformed(shop, python_callable=even)

    def stopping(batch: pa.RecordBatch) -> pa.RecordBatch:
        dag.task_dict["transform"].on_kill()
        return batch.set_column(2, "note", pc.utf8_upper(batch["note"]))

    dag.task_dict["transform"].python_callable = stopping
    dag.task_dict["transform"].batch_rows = 10
    ran = shop.airflow.run(dag, month(1))
    assert ran.state == "failed"
    assert shop.loads() == ["staged"]
    tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'etl_staging'::regnamespace AND relkind = 'r'"
    assert shop.warehouse.value(tables) == 1
