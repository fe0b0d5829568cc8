"""Expectations that judge a load by its stream, in runs of Airflow: history, freshness, source and target."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from airflow_etl_provider.cli.main import main
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.factories import build_pipeline
from airflow_etl_provider.operators.validate import QualityValidationOperator
from tests.airflow.runs import Ran
from tests.airflow.shop import ROW_CONTENT, Shop, month

ROW_COUNT = "expect_batch_row_count_to_match_history"
FRESH = "expect_batch_to_be_fresh"
SOURCE = "expect_batch_to_match_source"
TARGET = "expect_table_to_match_target"


def expected(kind: str, severity: str = "critical", **kwargs: Any) -> dict[str, Any]:
    return {"type": kind, "kwargs": kwargs, "severity": severity}


def staged(shop: Shop, number: int, **extract: Any) -> dict[str, Any]:
    """A month that was extracted and waits for its audit."""
    with shop.dag() as dag:
        shop.extract(**extract)
    ran = shop.airflow.run(dag, month(number))
    assert ran.state == "success", ran.errors
    batch: dict[str, Any] = ran.xcom("extract")
    return batch


def validated(
    shop: Shop, batch: Mapping[str, Any], expectations: Sequence[Mapping[str, Any]], **given: Any
) -> Ran:
    """The audit of a batch, later."""
    with shop.dag() as dag:
        QualityValidationOperator(
            task_id="validate", batch=dict(batch), expectations=list(expectations), **given
        )
    return shop.airflow.run(dag, None)


def results(shop: Shop) -> list[dict[str, Any]]:
    """Those of the last load's report."""
    found: list[dict[str, Any]] = shop.warehouse.value(
        "SELECT report -> 'results' FROM etl.loads ORDER BY seq DESC LIMIT 1"
    )
    return found


def note(shop: Shop, place: int = 0) -> str:
    found: str = results(shop)[place]["meta"]["note"]
    return found


def table_of(ran: Ran) -> list[str]:
    """The lines of the audit's table in the task log."""
    lines = [line["event"] for line in ran.log if "QualityValidationOperator" in line["logger"]]
    start = next(n for n, line in enumerate(lines) if line.startswith("audit of "))
    return lines[start:]


class TestHistory:
    def test_a_batch_of_an_unusual_size_is_rejected(self, shop: Shop) -> None:
        """Two cold starts say so, the third month is usual, and one that lost most of its rows is not."""
        suite = [expected(ROW_COUNT, min_loads=2)]
        for number in (1, 2):
            shop.load(number, expectations=suite)
            assert note(shop) == (
                f"cold start: 1,000 rows, and {number - 1} of 2 loads to compare with"
            )
        shop.source.run("DELETE FROM orders WHERE id >= 2100")
        before = shop.picture() | {"tables": None}  # the batch stays for inspection
        ran = shop.airflow.run(shop.pipeline(expectations=suite), month(3))
        assert ran.task_states() == {
            "extract": "success",
            "validate": "failed",
            "publish": "upstream_failed",
        }
        assert shop.picture() | {"tables": None} == before
        assert "100 rows, usually 776 to 1,332 (median 1,054 of 2 loads)" in ran.error("validate")
        shop.source.run(
            "INSERT INTO orders SELECT i, timestamptz '2013-03-02 00:00+00', 'back', 1"
            " FROM generate_series(2100, 2999) AS i"
        )
        shop.load(3, expectations=suite)
        assert shop.rows() == 3000

    def test_rejected_loads_are_no_history(self, shop: Shop) -> None:
        """However often a bad batch is tried, it does not become usual."""
        suite = [expected(ROW_COUNT, min_loads=2)]
        shop.load(1, expectations=suite)
        shop.load(2, expectations=suite)
        shop.source.run("DELETE FROM orders WHERE id >= 2100")
        for _ in range(3):
            ran = shop.airflow.run(shop.pipeline(expectations=suite), month(3))
            assert ran.state == "failed"
            assert "of 2 loads)" in ran.error("validate")
        assert shop.loads() == ["published"] * 2 + ["rejected"] * 3

    def test_freshness_is_held_against_the_streams_own(self, shop: Shop) -> None:
        """Each report in the ledger keeps the lag that the next ones are compared with."""
        suite = [expected(FRESH, min_loads=2)]
        for number in (1, 2):
            shop.load(number, expectations=suite)
            assert note(shop).startswith("cold start: the newest row is ")
        shop.source.run("UPDATE orders SET at = '2013-03-31 20:00+00' WHERE id = 2999")
        ran = shop.load(3, expectations=suite)
        assert ran.xcom("validate")["report"]["verdict"] == "passed"
        assert note(shop) == (
            "the newest row is 4 h 0 min old, usually up to 39 days (median 29 days of 2 loads)"
        )
        observed = results(shop)[0]["result"]["observed_value"]
        assert (observed["column"], observed["lag_seconds"]) == ("at", 4 * 3600)

    def test_an_empty_batch_is_as_old_as_the_last_row_before_it(self, shop: Shop) -> None:
        """A source that went silent is noticed, though each of its batches is in order by itself."""
        suite = [expected(FRESH, max_age="P40D")]
        shop.load(3, expectations=suite)
        ran = shop.airflow.run(shop.pipeline(expectations=suite), month(4))
        assert ran.state == "failed"
        assert "no row in this batch, and the newest row is 60 days old, allowed are 40 days" in (
            ran.error("validate")
        )


class TestSource:
    def test_what_changed_between_extract_and_audit_is_found(self, shop: Shop) -> None:
        """Rows, sums and checksums; the log names columns, the ledger has the values."""
        suite = [
            expected(SOURCE),
            expected(SOURCE, "warning", sum=["amount"], max=["at"]),
            expected(SOURCE, "info", checksum=["id", "note"]),
            expected(SOURCE, tolerance=0.01, sum=["amount"]),
        ]
        batch = staged(shop, 1)
        shop.source.run(
            "DELETE FROM orders WHERE id < 3; UPDATE orders SET note = 'x' WHERE id = 5"
        )
        ran = validated(shop, batch, suite)
        assert ran.state == "failed"
        assert [result["success"] for result in results(shop)] == [False, False, False, True]
        gone = "the source has 997 rows, the batch 1,000"
        assert note(shop, 0) == gone
        assert note(shop, 1) == f"{gone}; different: sum of amount"
        assert note(shop, 2) == f"{gone}; different: the checksum of id, note"
        found = results(shop)[1]["result"]
        assert (found["unexpected_count"], found["element_count"]) == (3, 997)
        assert found["observed_value"]["batch"]["sum of amount"] == "499500"
        assert "499500" not in json.dumps([ran.log, str(ran.errors)])

    def test_a_source_that_is_away_is_no_verdict(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The task is tried again; the batch is neither passed nor rejected."""
        batch = staged(shop, 1)
        uri = shop.source.airflow_uri()
        monkeypatch.setenv("AIRFLOW_CONN_SHOP", uri.replace(str(shop.source.server.port), "1"))
        ran = validated(shop, batch, [expected(SOURCE)], retries=1, retry_delay=timedelta(0))
        assert [state for task, state in ran.tries if task == "validate"] == [
            "up_for_retry",
            "failed",
        ]
        assert "connecting to connection shop" in ran.error("validate")
        assert shop.loads() == ["staged"]
        monkeypatch.setenv("AIRFLOW_CONN_SHOP", uri)
        assert validated(shop, batch, [expected(SOURCE)]).state == "success"
        assert shop.loads() == ["validated"]

    def test_a_query_has_to_be_given_again(self, shop: Shop) -> None:
        """What it says is not in the batch: without it the expectation fails, and says what to write."""
        query = "SELECT id, at, note, amount FROM orders WHERE id % 2 = 0"
        batch = staged(shop, 1, source=query)
        ran = validated(shop, batch, [expected(SOURCE, sum=["amount"])])
        assert "the batch does not carry the query; give it to validate once more: source=..." in (
            ran.error("validate")
        )
        ran = validated(shop, batch, [expected(SOURCE, sum=["amount"])], source=query)
        assert ran.state == "success", ran.errors
        assert note(shop) == "the source has 500 rows, the batch 500"

    def test_columns_are_compared_under_the_names_of_the_target(self, shop: Shop) -> None:
        """Renamed ones as the source calls them, the cursor too; personal ones are not compared."""
        shop.source.run(
            "ALTER TABLE orders RENAME amount TO price; ALTER TABLE orders RENAME at TO made"
        )
        batch = staged(
            shop,
            1,
            cursor="made",
            rename={"price": "amount", "made": "at"},
            personal={"note": "null"},
        )
        suite = [
            expected(SOURCE, sum=["amount"], max=["at"]),
            expected(SOURCE, "info", checksum=["note"]),
        ]
        ran = validated(shop, batch, suite)
        assert ran.state == "success", ran.errors
        assert note(shop) == "the source has 1,000 rows, the batch 1,000"
        assert "note is personal (null)" in results(shop)[1]["exception_info"]["exception_message"]

    def test_another_database_is_asked_too(
        self, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Through its Airflow hook; a checksum only PostgreSQL has."""
        path = tmp_path / "shop.db"
        with sqlite3.connect(path) as connection:
            connection.execute(
                "CREATE TABLE orders (id INTEGER, at TIMESTAMPTZ, note TEXT, amount INTEGER)"
            )
            connection.executemany(
                "INSERT INTO orders VALUES (?, ?, 'x', ?)",
                [(i, f"2013-01-{i:02} 00:00:00+00:00", i) for i in range(1, 11)],
            )
        monkeypatch.setenv(
            "AIRFLOW_CONN_SHELF", json.dumps({"conn_type": "sqlite", "host": str(path)})
        )
        batch = staged(
            shop, 1, source_conn_id="shelf", source="orders", types={"amount": "integer"}
        )
        suite = [
            expected(SOURCE, sum=["amount"], min=["at"], max=["at"]),
            expected(SOURCE, "info", checksum=["id"]),
        ]
        ran = validated(shop, batch, suite)
        assert ran.state == "success", ran.errors
        assert note(shop) == "the source has 10 rows, the batch 10"
        assert "it has no checksum" in results(shop)[1]["exception_info"]["exception_message"]
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE orders SET amount = 99 WHERE id = 1")
        assert validated(shop, batch, suite).state == "failed"
        assert note(shop).endswith("different: sum of amount")


class TestTarget:
    def test_a_target_that_changed_under_the_batch(self, shop: Shop) -> None:
        """The audit says it before the publish would."""
        batch = staged(shop, 1)
        shop.warehouse.run("ALTER TABLE a.orders ALTER amount TYPE bigint")
        ran = validated(shop, batch, [expected(TARGET)])
        assert "1 columns do not fit: amount: the batch has integer, the target bigint" in (
            ran.error("validate")
        )
        shop.warehouse.run("ALTER TABLE a.orders ALTER amount TYPE int")
        assert validated(shop, batch, [expected(TARGET)]).state == "success"


class TestBesideQuarantine:
    """What is judged by stream, source and target is the rest of a batch of which rows are set aside."""

    MANY: ClassVar = {"max_dead_share": 0.9}

    def suite(self, *more: dict[str, Any]) -> list[dict[str, Any]]:
        positive = expected("expect_column_values_to_be_between", column="amount", min_value=0)
        present = expected("expect_column_values_to_not_be_null", column="amount")
        return [{**each, "on_fail": "quarantine"} for each in (positive, present)] + [*more]

    def test_the_target_takes_what_remains(self, shop: Shop) -> None:
        shop.source.run("UPDATE orders SET amount = NULL WHERE id < 3")
        batch = staged(shop, 1)
        shop.warehouse.run("ALTER TABLE a.orders ALTER COLUMN amount SET NOT NULL")
        ran = validated(shop, batch, self.suite(expected(TARGET)))
        assert ran.state == "success", ran.errors
        assert ran.xcom("validate")["report"]["verdict"] == "warned"

    def test_sums_are_those_of_the_whole_batch(self, shop: Shop) -> None:
        """And once rows have gone, the audit that is made again says what it no longer compares."""
        shop.source.run("UPDATE orders SET amount = -1 WHERE id < 3")
        suite = self.suite(expected(SOURCE, sum=["amount"]))
        batch = staged(shop, 1)
        for said in ("the source has 1,000 rows, the batch 1,000", "; 3 of them were set aside"):
            ran = validated(shop, batch, suite)
            assert ran.state == "success", ran.errors
            assert said in note(shop, 2)
        shop.source.run("DELETE FROM orders WHERE id = 500")
        assert validated(shop, batch, suite).state == "failed"

    def test_row_counts_are_compared_with_what_went_on(self, shop: Shop) -> None:
        """Half of each month is set aside: half a month is usual, and a whole one is not."""
        shop.source.run("UPDATE orders SET amount = -1 WHERE id % 2 = 0 AND id < 2000")
        suite = self.suite(expected(ROW_COUNT, min_loads=2))
        for number in (1, 2):
            shop.load(number, expectations=suite, validate=self.MANY)
            assert note(shop, 2).startswith("cold start: 500 rows")
        ran = shop.airflow.run(shop.pipeline(expectations=suite), month(3))
        assert "1,000 rows, usually " in ran.error("validate")
        shop.source.run("DELETE FROM orders WHERE id >= 2500")
        shop.load(3, expectations=suite)
        assert note(shop, 2).startswith("500 rows, usually ")

    def test_freshness_is_that_of_the_rest(self, shop: Shop) -> None:
        """A row that is set aside makes nothing fresh."""
        shop.source.run("UPDATE orders SET at = '2013-01-31 23:59+00', amount = -1 WHERE id = 5")
        suite = self.suite(expected(FRESH, max_age="PT1H"))
        ran = shop.airflow.run(shop.pipeline(expectations=suite), month(1))
        assert ran.task_states()["validate"] == "failed"
        assert "days" in ran.error("validate")


def test_a_table_alone_is_refused_while_the_dag_is_parsed(shop: Shop) -> None:
    """It has no stream, no window and no source."""
    with shop.dag(), pytest.raises(ConfigurationError) as refused:
        QualityValidationOperator(
            task_id="check", conn_id="shop", table="public.orders", expectations=[expected(FRESH)]
        )
    assert "expect_batch_to_be_fresh judges a load" in str(refused.value)
    assert "give batch=extract.output" in str(refused.value)


def test_columns_are_checked_like_any_others(shop: Shop) -> None:
    """Before anything is asked of ledger or source."""
    ran = validated(shop, staged(shop, 1), [expected(SOURCE, sum=["amout"])])
    assert "reads column 'amout', which the table does not have; did you mean 'amount'?" in (
        ran.error("validate")
    )


def test_both_kinds_stand_in_one_report_in_the_order_of_the_suite(shop: Shop) -> None:
    """Those of the load beside those of its rows, all judged by SQL."""
    suite = [
        expected(ROW_COUNT),
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "note"}},
        expected(FRESH, "warning", max_age="PT1H"),
        {"type": "expect_table_row_count_to_equal", "kwargs": {"value": 1000}},
    ]
    ran = shop.load(1, expectations=suite)
    assert [r["expectation_config"]["type"] for r in results(shop)] == [e["type"] for e in suite]
    assert ran.xcom("validate")["report"]["engine"] == "sql"
    assert ran.xcom("validate")["report"]["failures"] == [
        {
            "type": FRESH,
            "column": "at",
            "severity": "warning",
            "note": "the newest row is 30 days old, allowed are 1 h 0 min",
        }
    ]
    title, heading, _, *rows = table_of(ran)
    assert title.endswith(": warned")
    assert heading.split() == ["result", "severity", "expectation", "column", "found"]
    assert [row.split()[:3] for row in rows[:4]] == [
        ["ok", "critical", ROW_COUNT],
        ["ok", "critical", "expect_column_values_to_not_be_null"],
        ["FAILED", "warning", FRESH],
        ["ok", "critical", "expect_table_row_count_to_equal"],
    ]
    warned = [line["event"] for line in ran.log if line["level"] == "warning"]
    assert warned == [f"{FRESH}(at): the newest row is 30 days old, allowed are 1 h 0 min"]


def test_a_suite_of_ours_alone_loads_no_great_expectations(shop: Shop) -> None:
    """Its import takes seconds of every task."""
    ran = shop.load(1, expectations=[expected(ROW_COUNT), expected(FRESH), expected(TARGET)])
    assert ran.xcom("validate")["report"]["engine"] == "sql"
    assert ran.xcom("validate")["report"]["rows"] == 1000


def test_the_story_of_a_rejected_load(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names expectation, column, count, share and report; values are in the ledger's report only."""
    shop.source.run(f"UPDATE orders SET note = '{ROW_CONTENT} is bad' WHERE id < 25")
    suite = [
        {
            "type": "expect_column_values_to_match_regex",
            "kwargs": {"column": "note", "regex": "^[a-z]{5}[0-9]+$"},
        }
    ]
    ran = shop.airflow.run(shop.pipeline(expectations=suite), month(1))
    load_id = ran.xcom("extract")["load_id"]
    assert ran.error("validate").splitlines()[:2] == [
        (
            f"load {load_id} was rejected by its audit: 1 of 1 expectations on {ran.xcom('extract')['staging']} "
            "failed critically; nothing was published"
        ),
        "  - expect_column_values_to_match_regex(note): 25 of 1,000 rows (2.50 %)",
    ]
    assert f"airflow-etl report {load_id} shows samples of what failed" in ran.error("validate")
    assert "is bad" not in json.dumps([ran.log, str(ran.xcoms())])
    assert len(results(shop)[0]["result"]["partial_unexpected_list"]) == 3
    capsys.readouterr()
    assert main(["report", load_id, "--dsn", shop.warehouse.conninfo]) == 1
    assert f"{ROW_CONTENT} is bad" in capsys.readouterr().out


def test_a_pipeline_declares_them_like_any_other(shop: Shop) -> None:
    """With a query, which its audit then knows."""
    dag = build_pipeline(
        {
            "pipeline": f"pipeline_{shop.stream}",
            "stream": shop.stream,
            "kind": "events",
            "source": {
                "conn_id": "shop",
                "query": "SELECT * FROM orders WHERE at >= :low AND at < :high",
                "cursor": "at",
            },
            "target": {
                "conn_id": "dwh",
                "table": "a.orders",
                "partition": {"column": "at", "every": "month"},
            },
            "quality": [
                expected(ROW_COUNT, season="weekday"),
                expected(FRESH, max_age="P31D"),
                expected(SOURCE, sum=["amount"], checksum=["id", "at", "note", "amount"]),
                expected(TARGET),
            ],
        }
    )
    ran = shop.airflow.run(dag, month(2))
    assert ran.state == "success", ran.errors
    assert [result["success"] for result in results(shop)] == [True] * 4
    assert note(shop, 2) == "the source has 1,000 rows, the batch 1,000"
