"""Each operator alone, dropped into a DAG of somebody else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException

from airflow_etl_provider.operators.publish import PartitionSwapOperator
from airflow_etl_provider.operators.validate import QualityValidationOperator
from tests.airflow.runs import Ran
from tests.airflow.shop import MONTHLY, NOT_NULL, ROW_CONTENT, Shop, month


def validation(shop: Shop, expectations: Sequence[Mapping[str, Any]], **given: Any) -> Ran:
    with shop.dag() as dag:
        QualityValidationOperator(
            task_id="check",
            expectations=expectations,
            **{"conn_id": "shop", "table": "public.orders", **given},
        )
    return shop.airflow.run(dag, month(1))


class TestValidate:
    def test_any_table_may_be_checked(self, shop: Shop) -> None:
        """No stream, no ledger, no staging: a table and a suite."""
        ran = validation(shop, NOT_NULL)
        assert ran.state == "success", ran.errors
        report = ran.xcom("check")["report"]
        assert (report["verdict"], report["rows"], report["evaluated"]) == ("passed", 3000, 1)
        assert shop.source.value("SELECT to_regclass('etl.loads')") is None

    def test_a_failure_names_expectation_column_count_and_share(self, shop: Shop) -> None:
        """The person at night reads what failed on how many rows, and no value of them."""
        shop.source.run("UPDATE orders SET note = NULL WHERE id < 30")
        ran = validation(shop, NOT_NULL)
        assert isinstance(ran.errors["check"], AirflowFailException)
        assert "expect_column_values_to_not_be_null(note): 30 of 3,000 rows (1.00 %)" in ran.error(
            "check"
        )
        assert "public.orders" in ran.error("check")
        assert ROW_CONTENT not in json.dumps(ran.log)

    def test_warnings_do_not_fail_the_task(self, shop: Shop) -> None:
        """Only what is critical stops a pipeline."""
        shop.source.run("UPDATE orders SET note = NULL WHERE id < 30")
        ran = validation(shop, [{**NOT_NULL[0], "severity": "warning"}])
        assert ran.state == "success", ran.errors
        assert ran.xcom("check")["report"]["verdict"] == "warned"

    def test_failing_values_stay_out_of_log_and_xcom(self, shop: Shop) -> None:
        """A suite about the content of rows says how many, never which values."""
        ran = validation(
            shop,
            [
                {
                    "type": "expect_column_values_to_match_regex",
                    "kwargs": {"column": "note", "regex": "^[0-9]+$"},
                    "severity": severity,
                }
                for severity in ("warning", "critical")
            ]
            + [
                {
                    "type": "expect_column_max_to_be_between",
                    "kwargs": {"column": "note", "max_value": "b"},
                    "severity": "warning",
                }
            ],
        )
        assert ran.state == "failed"
        assert ROW_CONTENT not in json.dumps([ran.log, str(ran.xcoms())])

    def test_a_suite_may_stand_in_a_file(self, shop: Shop, tmp_path: Path) -> None:
        """As Great Expectations exports it; read when the DAG is parsed."""
        path = tmp_path / "suite.json"
        path.write_text(json.dumps({"name": "orders", "expectations": NOT_NULL}))
        ran = validation(shop, None, suite=path)  # type: ignore[arg-type]
        path.unlink()
        assert ran.state == "success", ran.errors

    def test_nothing_to_validate_is_said(self, shop: Shop) -> None:
        """Neither batch nor table."""
        ran = validation(shop, NOT_NULL, conn_id=None)
        assert "nothing to validate" in ran.error("check")


def stage(shop: Shop, number: int = 1) -> None:
    """What some other tool staged: a month of orders in a schema of its own."""
    low, high = month(number)
    shop.warehouse.run("CREATE SCHEMA IF NOT EXISTS stage; DROP TABLE IF EXISTS stage.orders")
    shop.warehouse.run(
        "CREATE TABLE stage.orders AS SELECT i::bigint AS id, %(low)s::timestamptz + make_interval(mins => i) AS at,"
        f" '{ROW_CONTENT}' || i AS note, i AS amount FROM generate_series(0, 499) AS i",
        {"low": low, "high": high},
    )


def publish(**given: Any) -> PartitionSwapOperator:
    return PartitionSwapOperator(
        **{
            "task_id": "publish",
            "staged_table": "stage.orders",
            "target": "a.orders",
            "target_conn_id": "dwh",
            "partition": MONTHLY,
            **given,
        }
    )


def checked_publish(shop: Shop, dag: DAG | None = None, **given: Any) -> DAG:
    with dag or shop.dag() as made:
        check = QualityValidationOperator(
            task_id="check", conn_id="dwh", table="stage.orders", expectations=NOT_NULL
        )
        done = publish(stream=shop.stream, report=check.output, **given)
        check >> done
    return made


class TestPublish:
    def test_any_staged_table_is_published_after_its_audit(self, shop: Shop) -> None:
        """Registered as a load of its own, with the report that was made of it."""
        stage(shop)
        ran = shop.airflow.run(checked_publish(shop), month(1))
        assert ran.state == "success", ran.errors
        assert shop.rows() == 500
        assert shop.loads() == ["published"]
        assert shop.warehouse.value("SELECT report ->> 'verdict' FROM etl.loads") == "passed"
        assert shop.agreed()[0] == "2013-02-01 00:00:00+00"
        assert shop.rows("stage.orders") == 500, "a table of somebody else is not ours to drop"

    def test_without_an_audit_it_must_be_said_and_is_recorded(self, shop: Shop) -> None:
        """audit='none' stands in the ledger, with who said it."""
        stage(shop)
        with shop.dag() as dag:
            publish(stream=shop.stream, audit="none")
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "success", ran.errors
        (report,) = shop.warehouse.run("SELECT report FROM etl.loads")[0]
        assert report["verdict"] == "none"
        assert ran.dag_id in report["actor"]

    def test_without_an_audit_it_is_refused(self, shop: Shop) -> None:
        """Nothing reaches readers unaudited by omission."""
        stage(shop)
        before = shop.picture()
        with shop.dag() as dag:
            publish(stream=shop.stream)
        ran = shop.airflow.run(dag, month(1))
        assert "no audit of stage.orders" in ran.error("publish")
        assert "audit='none'" in ran.error("publish")
        assert shop.picture() == before

    def test_the_audit_of_another_table_does_not_count(self, shop: Shop) -> None:
        """Neither another table nor the same name on another connection."""
        stage(shop)
        shop.source.run("CREATE SCHEMA stage; CREATE TABLE stage.orders AS SELECT * FROM orders")
        before = shop.picture()
        for other in ({"table": "public.orders"}, {"table": "stage.orders"}):
            with shop.dag() as dag:
                check = QualityValidationOperator(
                    task_id="check", conn_id="shop", expectations=NOT_NULL, **other
                )
                publish(stream=shop.stream, report=check.output)
            ran = shop.airflow.run(dag, month(1))
            assert "no audit of stage.orders" in ran.error("publish")
        assert shop.picture() == before

    def test_rows_that_came_after_the_audit_are_not_published(self, shop: Shop) -> None:
        """The audit was of 500 rows; a table that has 501 now was never audited."""
        stage(shop)
        before = shop.picture()
        with shop.dag() as dag:
            check = QualityValidationOperator(
                task_id="check", conn_id="dwh", table="stage.orders", expectations=NOT_NULL
            )

            @task
            def spoil() -> None:
                shop.warehouse.run("INSERT INTO stage.orders VALUES (501, '2013-01-05', NULL, 1)")

            check >> spoil() >> publish(stream=shop.stream, report=check.output)
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "failed"
        assert "500" in ran.error("publish")
        assert "501" in ran.error("publish")
        assert shop.picture() == before

    def test_a_rejected_table_is_not_published(self, shop: Shop) -> None:
        """The failed check stops the DAG; a verdict smuggled past it is read as well."""
        stage(shop)
        shop.warehouse.run("UPDATE stage.orders SET note = NULL")
        ran = shop.airflow.run(checked_publish(shop), month(1))
        assert ran.task_states()["publish"] == "upstream_failed"
        before = shop.picture()
        report = {"conn_id": "dwh", "table": "stage.orders", "report": {"verdict": "rejected"}}
        with shop.dag() as dag:
            publish(stream=shop.stream, report=report)
        assert shop.airflow.run(dag, month(1)).state == "failed"
        assert shop.picture() == before

    def test_a_whole_small_table_may_be_replaced(self, shop: Shop) -> None:
        """kind='snapshots' needs no window."""
        shop.warehouse.run(
            "CREATE SCHEMA stage; CREATE TABLE stage.p AS SELECT 1 AS id, 'x' AS name"
        )
        with shop.dag() as dag:
            publish(
                stream="p",
                kind="snapshots",
                staged_table="stage.p",
                target="a.products",
                partition=None,
                audit="none",
            )
        ran = shop.airflow.run(dag, None)
        assert ran.state == "success", ran.errors
        assert shop.warehouse.run("SELECT * FROM a.products") == [(1, "x")]

    def test_a_retry_after_the_commit_does_nothing_twice(
        self, shop: Shop, failing_writes: list[int]
    ) -> None:
        """The first try published and could not write the Variable: one load, one swap."""
        stage(shop)
        failing_writes.append(1)
        ran = shop.airflow.run(checked_publish(shop, retries=1), month(1))
        assert ran.state == "success", ran.errors
        assert [state for name, state in ran.tries if name == "publish"] == [
            "up_for_retry",
            "success",
        ]
        assert shop.loads() == ["published"]
        assert ran.xcom("publish")["already_published"]
        assert shop.agreed()[0] == "2013-02-01 00:00:00+00"

    def test_a_table_staged_anew_is_published_by_the_next_run(self, shop: Shop) -> None:
        """The same task in another run is another load."""
        stage(shop, 1)
        dag = checked_publish(shop)
        shop.airflow.run(dag, month(1))
        stage(shop, 2)
        ran = shop.airflow.run(dag, month(2))
        assert ran.state == "success", ran.errors
        assert shop.rows() == 1000
        assert shop.agreed()[0] == "2013-03-01 00:00:00+00"

    def test_a_watermark_that_cannot_be_kept_is_known_before(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Shadowed or unreadable: refused before readers see new rows, not after the commit."""
        stage(shop)
        before = shop.picture()
        with shop.dag() as dag:
            publish(stream=shop.stream, audit="none")
        with monkeypatch.context() as shadowed:
            shadowed.setenv(f"AIRFLOW_VAR_{shop.key().upper()}", "{}")
            ran = shop.airflow.run(dag, month(1))
        assert "shadows" in ran.error("publish")
        assert shop.picture() == before
        shop.airflow.set_variable(shop.key(), "2013-02-01")
        before = shop.picture()
        ran = shop.airflow.run(dag, month(2))
        assert "does not hold JSON" in ran.error("publish")
        assert shop.picture() == before

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"staged_table": None}, "nothing to publish"),
            ({"stream": None}, "nothing to publish"),
            ({"strategy": "scd3"}, "strategy='scd3' is unknown"),
            ({"kind": "facts"}, "facts"),
            ({"audit": "maybe"}, "audit='maybe' is unknown"),
            ({"max_shrink": 50}, "max_shrink"),
            ({"staged_table": "stage.nothing"}, "no table stage.nothing"),
            ({"target": "a.nothing"}, "no table a.nothing"),
            ({"target": "a.products"}, "has columns that a.products has not: at, note, amount"),
            ({"report": "yes"}, "no audit"),
            ({"stream": "Orders"}, "does not match"),
            ({"stream": "token_orders"}, "takes for a secret's name"),
            ({"partition": None}, "has no partition for"),
            ({"partition": {**MONTHLY, "timezone": "Mars/Olympus"}}, "Mars/Olympus"),
            ({"partition": {"column": "at", "every": "moon"}}, "moon"),
        ],
    )
    def test_wrong_arguments_are_named(self, shop: Shop, wrong: dict[str, Any], says: str) -> None:
        """Each in our words, with the next step, and nothing has changed."""
        stage(shop)
        before = shop.picture()
        audited = {"audit": "none"} if "report" not in wrong else {}
        with shop.dag() as dag:
            publish(**{"stream": shop.stream, **audited, **wrong})
        ran = shop.airflow.run(dag, month(1))
        assert says in ran.error("publish")
        assert isinstance(ran.errors["publish"], AirflowFailException)
        assert shop.picture() == before


class TestExtract:
    def test_alone_it_stages_and_nobody_sees_it(self, shop: Shop) -> None:
        """The target, the coverage and the watermark are as before."""
        before = shop.picture()
        with shop.dag() as dag:
            shop.extract()
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "success", ran.errors
        staging = ran.xcom("extract")["staging"]
        assert shop.rows(staging) == 1000
        after = shop.picture()
        assert after["orders"] == before["orders"]
        assert (after["coverage"], after["published"], after["variable"]) == ([], [], None)
        assert shop.loads() == ["staged"]

    def test_its_batch_may_be_published_unaudited_by_name(self, shop: Shop) -> None:
        """extract >> publish(audit='none'), which the ledger records."""
        with shop.dag() as dag:
            batch = shop.extract().output
            PartitionSwapOperator(task_id="publish", batch=batch, audit="none")
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "success", ran.errors
        assert shop.rows() == 1000
        assert shop.warehouse.value("SELECT report ->> 'verdict' FROM etl.loads") == "none"

    def test_its_batch_is_not_published_unaudited(self, shop: Shop) -> None:
        """Without audit='none' a staged batch waits for its audit."""
        before = shop.picture()
        with shop.dag() as dag:
            PartitionSwapOperator(task_id="publish", batch=shop.extract().output)
        ran = shop.airflow.run(dag, month(1))
        assert "is staged, not validated" in ran.error("publish")
        assert "audit='none'" in ran.error("publish")
        after = shop.picture()
        assert (after["orders"], after["published"], after["variable"]) == (
            before["orders"],
            [],
            None,
        )
        assert shop.loads() == ["staged"]

    def test_a_batch_that_was_tampered_with_is_looked_up(self, shop: Shop) -> None:
        """XCom can be edited: target, table and verdict come from the ledger."""
        with shop.dag() as dag:
            first = shop.extract()

            @task
            def tamper(batch: dict[str, Any]) -> dict[str, Any]:
                return {**batch, "target": "a.products", "staging": "a.products", "rows": 1}

            tampered = tamper(first.output)
            PartitionSwapOperator(task_id="publish", batch=tampered, audit="none")
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "success", ran.errors
        assert (shop.rows(), shop.rows("a.products")) == (1000, 0)
