"""Retries and clears: every task may run any number of times, the target ends as if once."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

from tests.airflow.runs import Ran
from tests.airflow.shop import NOT_NULL, Shop, month

Rejected = tuple[Shop, Ran, dict[str, Any]]


def tries(ran: Ran, task_id: str) -> list[str]:
    return [state for name, state in ran.tries if name == task_id]


def load_id(ran: Ran, task_id: str = "extract") -> str:
    found: str = ran.xcom(task_id)["load_id"]
    return found


class TestRejectedAudit:
    @pytest.fixture
    def rejected(self, shop: Shop) -> Rejected:
        """January is published; then it is loaded again, with five rows that break the suite."""
        shop.load(1, expectations=NOT_NULL)
        shop.source.run("UPDATE orders SET note = NULL WHERE id < 5")
        before = shop.picture()
        dag = shop.pipeline(expectations=NOT_NULL, dag=shop.dag(default_args={"retries": 3}))
        return shop, shop.airflow.run(dag, month(1)), before

    def test_it_fails_at_once(self, rejected: Rejected) -> None:
        """Three more tries would give the same verdict."""
        _, ran, _ = rejected
        assert ran.state == "failed"
        assert tries(ran, "validate") == ["failed"]
        assert isinstance(ran.errors["validate"], AirflowFailException)
        assert ran.task_states()["publish"] == "upstream_failed"

    def test_readers_keep_what_they_had(self, rejected: Rejected) -> None:
        """The same partition, the same rows, the same watermark."""
        shop, _, before = rejected
        after = shop.picture()
        staged = [table for table in after["tables"] if table not in before["tables"]]
        assert [schema for schema, _, _ in staged] == ["etl_staging"], (
            "the rows stay for inspection"
        )
        assert {**after, "tables": before["tables"]} == before

    def test_the_error_says_which_expectation_on_how_many_rows(self, rejected: Rejected) -> None:
        """And where the rows are, and what to do."""
        shop, ran, _ = rejected
        message = ran.error("validate")
        assert "expect_column_values_to_not_be_null(note): 5 of 1,000 rows (0.50 %)" in message
        assert "What to do: " in message
        assert ran.xcom("extract")["staging"] in message
        assert shop.loads() == ["published", "rejected"]
        assert (
            shop.warehouse.value("SELECT report ->> 'verdict' FROM etl.loads ORDER BY seq DESC")
            == "rejected"
        )

    def test_a_mended_suite_lets_the_same_batch_pass(self, rejected: Rejected) -> None:
        """Clear validate and publish: nothing is read from the source again."""
        shop, ran, _ = rejected
        lenient = [{**NOT_NULL[0], "kwargs": {"column": "note", "mostly": 0.9}}]
        shop.source.run("DROP TABLE orders")
        dag = shop.pipeline(expectations=lenient, dag=shop.dag(ran.dag_id))
        again = shop.airflow.clear(dag, ran, "validate", "publish")
        assert again.state == "success", again.errors
        assert load_id(again, "publish") == load_id(ran)
        assert shop.warehouse.value("SELECT count(*) FROM a.orders WHERE note IS NULL") == 5
        assert shop.loads() == ["published", "published"]
        assert shop.agreed() == ("2013-02-01 00:00:00+00", 1)

    def test_mended_rows_are_a_new_load(self, rejected: Rejected) -> None:
        """Clear the whole run after the source was mended: a rejected load is finished."""
        shop, ran, _ = rejected
        shop.source.run("UPDATE orders SET note = 'mended' WHERE note IS NULL")
        first = load_id(ran)
        dag = shop.pipeline(expectations=NOT_NULL, dag=shop.dag(ran.dag_id))
        again = shop.airflow.clear(dag, ran, "extract", "validate", "publish")
        assert again.state == "success", again.errors
        assert load_id(again) != first
        assert shop.loads() == ["published", "rejected", "published"]
        assert shop.warehouse.value("SELECT count(*) FROM a.orders WHERE note = 'mended'") == 5


class TestRetry:
    def test_of_publish_after_its_commit_does_nothing_twice(
        self, shop: Shop, failing_writes: list[int]
    ) -> None:
        """The Variable could not be written: the second try finds the load published and repairs it."""
        failing_writes.append(1)
        dag = shop.pipeline(publish={"retries": 1})
        ran = shop.airflow.run(dag, month(1))
        assert tries(ran, "publish") == ["up_for_retry", "success"]
        assert ran.xcom("publish")["already_published"]
        assert ran.xcom("publish")["rows_inserted"] == 1000
        assert ran.events().count("published") == 1
        assert shop.loads() == ["published"]
        assert shop.warehouse.value("SELECT count(*) FROM etl.load_partitions") == 1
        assert shop.agreed() == ("2013-02-01 00:00:00+00", 1)
        assert shop.rows() == 1000

    def test_the_variable_is_repaired_by_the_next_run(
        self, shop: Shop, failing_writes: list[int]
    ) -> None:
        """Without a retry the position stands in the ledger, and the next extract writes it."""
        failing_writes.append(1)
        ran = shop.airflow.run(shop.pipeline(), month(1))
        assert ran.state == "failed"
        assert not isinstance(ran.errors["publish"], AirflowFailException), "transient"
        assert shop.airflow.variable(shop.key()) is None
        with shop.dag() as dag:
            shop.extract()
        ran = shop.airflow.run(dag, month(2))
        assert shop.agreed() == ("2013-02-01 00:00:00+00", 1)
        assert "watermark repaired from the ledger" in ran.events()

    def test_of_extract_after_it_had_staged_returns_the_same_load(self, shop: Shop) -> None:
        """The try died between its commit and its success: the rows are not read again."""
        failed: list[bool] = []

        def die_once(*_: Any) -> None:
            if not failed:
                failed.append(True)
                raise ConnectionError("the worker went away")

        dag = shop.pipeline(extract={"retries": 1, "post_execute": die_once})
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "success", ran.errors
        assert tries(ran, "extract") == ["up_for_retry", "success"]
        assert ran.events().count("extract started") == 1
        assert "batch already staged by an earlier try" in ran.events()
        assert shop.loads() == ["published"]
        assert shop.rows() == 1000

    def test_of_an_extract_that_failed_goes_on_with_its_load(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The load id is minted once: the second try is the same load in the ledger."""
        monkeypatch.setenv(
            "AIRFLOW_CONN_SHOP", shop.source.airflow_uri() + "?options=-c%20lock_timeout%3D1"
        )
        blocker = psycopg.connect(shop.source.conninfo)
        blocker.execute("LOCK TABLE orders")
        seen: list[list[tuple[Any, ...]]] = []

        def release(_: Any) -> None:
            seen.append(shop.warehouse.run("SELECT load_id::text, state FROM etl.loads"))
            blocker.close()

        dag = shop.pipeline(extract={"retries": 1, "on_retry_callback": release})
        ran = shop.airflow.run(dag, month(1))
        blocker.close()
        assert ran.state == "success", ran.errors
        assert tries(ran, "extract") == ["up_for_retry", "success"]
        assert seen == [[(load_id(ran), "failed")]]
        assert shop.loads() == ["published"]
        assert shop.rows() == 1000


class TestClear:
    def test_publish_alone_of_a_published_load_does_nothing(self, shop: Shop) -> None:
        """A success that says so; the table is not touched."""
        ran = shop.load(1)
        dag = shop.pipeline(dag=shop.dag(ran.dag_id))
        before = shop.picture()
        again = shop.airflow.clear(dag, ran, "publish")
        assert again.state == "success", again.errors
        assert again.xcom("publish")["already_published"]
        assert "already published" in again.events()
        assert shop.picture() == before

    def test_validate_and_publish_of_a_published_load_do_nothing(self, shop: Shop) -> None:
        """The staged table has become the partition, so there is nothing left to audit."""
        ran = shop.load(1, expectations=NOT_NULL)
        dag = shop.pipeline(expectations=NOT_NULL, dag=shop.dag(ran.dag_id))
        before = shop.picture()
        again = shop.airflow.clear(dag, ran, "validate", "publish")
        assert again.state == "success", again.errors
        assert shop.picture() == before

    def test_a_whole_run_loads_its_window_anew(self, shop: Shop) -> None:
        """A finished load stays finished; the run gets a new one."""
        ran = shop.load(1)
        first = load_id(ran)
        shop.source.run("DELETE FROM orders WHERE id = 3")
        dag = shop.pipeline(dag=shop.dag(ran.dag_id))
        again = shop.airflow.clear(dag, ran, "extract", "validate", "publish")
        assert again.state == "success", again.errors
        assert load_id(again) != first
        assert (shop.rows(), shop.loads()) == (999, ["published", "published"])
        assert shop.agreed() == ("2013-02-01 00:00:00+00", 1)

    def test_extract_of_a_staged_load_abandons_it(self, shop: Shop) -> None:
        """A clear means: read again. The old batch is dropped and said to be abandoned."""
        with shop.dag() as dag:
            shop.extract()
        ran = shop.airflow.run(dag, month(1))
        first, staged = load_id(ran), ran.xcom("extract")["staging"]
        again = shop.airflow.clear(dag, ran, "extract")
        assert again.state == "success", again.errors
        assert load_id(again) != first
        assert shop.loads() == ["abandoned", "staged"]
        assert shop.warehouse.value("SELECT to_regclass(%s)", [staged]) is None

    def test_an_abandoned_batch_is_not_published(self, shop: Shop) -> None:
        """Clear of extract alone after its publish had failed: the manifest in XCom is the new one."""
        ran = shop.load(1)
        again = shop.airflow.clear(shop.pipeline(dag=shop.dag(ran.dag_id)), ran, "extract")
        published = shop.warehouse.run(
            "SELECT load_id::text FROM etl.loads WHERE state = 'published'"
        )
        assert [(load_id(again),)] != published
        assert shop.loads() == ["published", "staged"]

    def test_a_clear_of_an_unfinished_load_goes_on_with_it(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The on-call's normal repair keeps what there is: the same load id."""
        right = shop.source.airflow_uri()
        monkeypatch.setenv("AIRFLOW_CONN_SHOP", right + "?options=-c%20lock_timeout%3D1")
        dag = shop.pipeline()
        with psycopg.connect(shop.source.conninfo) as blocker:
            blocker.execute("LOCK TABLE orders")
            ran = shop.airflow.run(dag, month(1))
        assert ran.state == "failed"
        failed = shop.warehouse.value("SELECT load_id::text FROM etl.loads")
        again = shop.airflow.clear(dag, ran, "extract", "validate", "publish")
        assert again.state == "success", again.errors
        assert load_id(again) == failed
        assert shop.loads() == ["published"]

    def test_another_tasks_clear_does_not_lose_the_batch(
        self, shop: Shop, failing_writes: list[int]
    ) -> None:
        """The clear number belongs to the run: clearing publish must not abandon what was staged."""
        ran = shop.airflow.run(shop.pipeline(publish={"strategy": "replace"}), month(1))
        assert ran.state == "failed"
        first = load_id(ran)
        dag = shop.pipeline(dag=shop.dag(ran.dag_id))
        again = shop.airflow.clear(dag, ran, "publish")
        assert again.state == "success", again.errors
        assert load_id(again, "publish") == first


def test_a_run_deleted_and_made_again_is_a_new_load(shop: Shop) -> None:
    """The same dag, run id and clear number as before: the identity of a load is none of these."""
    dag = shop.pipeline()
    first = shop.airflow.run(dag, month(1), run_id="scheduled__same")
    shop.airflow.delete(first)
    shop.source.run("DELETE FROM orders WHERE id = 3")
    second = shop.airflow.run(dag, month(1), run_id="scheduled__same")
    assert second.state == "success", second.errors
    assert (shop.rows(), shop.loads()) == (999, ["published", "published"])
