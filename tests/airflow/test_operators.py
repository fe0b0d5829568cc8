"""extract, validate and publish together, on real databases and a real metadata database."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk import CronDataIntervalTimetable
from airflow.utils.types import DagRunType

from airflow_etl_provider.operators.extract import IncrementalExtractOperator
from airflow_etl_provider.operators.publish import PartitionSwapOperator
from airflow_etl_provider.operators.validate import QualityValidationOperator
from tests.airflow.runs import Ran
from tests.airflow.shop import MONTHLY, NOT_NULL, ROW_CONTENT, Shop, month


def text_of(ran: Ran) -> str:
    """Everything a run left in logs and XCom."""
    return json.dumps([ran.log, sorted(map(str, ran.xcoms().items()))])


class TestEvents:
    def test_a_month_arrives_whole_and_once(self, shop: Shop) -> None:
        """Source, target, ledger and Variable tell one story."""
        ran = shop.airflow.run(shop.pipeline(expectations=NOT_NULL), month(1))
        assert ran.state == "success", ran.errors
        query = "SELECT id, at, note, amount FROM {} WHERE at < '2013-02-01 00:00+00' ORDER BY id"
        assert shop.warehouse.run(query.format("a.orders")) == shop.source.run(
            query.format("orders")
        )
        assert shop.agreed() == ("2013-02-01 00:00:00+00", 1)
        assert shop.loads() == ["published"]
        stored = shop.watermark()
        assert (stored["dag_id"], stored["run_id"]) == (ran.dag_id, ran.run_id)
        assert (stored["rows"], stored["previous"]) == (1000, None)

    def test_xcom_is_small_and_holds_no_row(self, shop: Shop) -> None:
        """What travels between tasks are names and counts, whatever the number of rows."""
        ran = shop.load(1, expectations=NOT_NULL)
        results = ran.xcoms()
        assert sorted(task for task, _ in results) == ["extract", "publish", "validate"]
        for result in results.values():
            text = json.dumps(result)
            assert len(text) < 3000
            assert ROW_CONTENT not in text
        assert results["extract", -1]["rows"] == 1000
        assert results["validate", -1]["report"]["verdict"] == "passed"
        assert results["publish", -1]["rows_inserted"] == 1000

    def test_the_log_tells_the_story_without_rows_or_secrets(self, shop: Shop) -> None:
        """A person reads what happened in order; no value of a row and no password is in it."""
        ran = shop.load(1, expectations=NOT_NULL)
        events = ran.events()
        told = [
            "extract started",
            "batch staged",
            "batch validated",
            "publish started",
            "published",
            "watermark advanced",
        ]
        assert [event for event in events if event in told] == told
        assert ROW_CONTENT not in text_of(ran)
        assert shop.warehouse.server.password not in text_of(ran)
        assert [line for line in ran.log if line["level"] in ("warning", "error", "critical")] == []

    def test_months_in_a_row_move_the_watermark_along(self, shop: Shop) -> None:
        """Each published interval moves it to its end; a gap holds it."""
        shop.load(1)
        assert shop.agreed() == ("2013-02-01 00:00:00+00", 1)
        shop.load(3)
        assert shop.agreed() == ("2013-02-01 00:00:00+00", 1)
        shop.load(2)
        assert shop.agreed() == ("2013-04-01 00:00:00+00", 2)
        assert shop.rows() == 3000

    def test_an_empty_month_is_published_as_such(self, shop: Shop) -> None:
        """A window without rows is a success that is covered, not a hole for ever."""
        shop.load(3)
        ran = shop.load(4)
        assert ran.xcom("publish")["rows_inserted"] == 0
        assert shop.agreed()[0] == "2013-05-01 00:00:00+00"
        assert shop.rows() == 1000

    def test_a_month_loaded_again_replaces_itself(self, shop: Shop) -> None:
        """What the source corrected is there, nothing is there twice, and the watermark stays."""
        shop.load(1)
        shop.source.run("UPDATE orders SET note = 'corrected' WHERE id = 7")
        shop.source.run("DELETE FROM orders WHERE id = 8")
        shop.load(1)
        assert shop.rows() == 999
        assert shop.warehouse.value("SELECT note FROM a.orders WHERE id = 7") == "corrected"
        assert shop.agreed() == ("2013-02-01 00:00:00+00", 1)

    def test_dag_test_works_as_users_run_it(self, shop: Shop) -> None:
        """The documented way to try a DAG, with nothing of ours around it."""
        dag = shop.pipeline(
            dag=shop.dag(schedule=CronDataIntervalTimetable("@monthly", timezone="UTC"))
        )
        shop.airflow.sync(dag)
        ran = shop.airflow.observed(
            dag.dag_id, lambda: dag.test(logical_date=datetime(2013, 2, 1, tzinfo=UTC))
        )
        assert ran.state == "success", ran.errors
        assert shop.rows() == 1000
        assert shop.agreed()[0] == "2013-02-01 00:00:00+00"


class TestSnapshots:
    def test_a_small_table_is_kept_the_same(self, shop: Shop) -> None:
        """Inserted, updated, deleted and unchanged rows are told apart; nothing else is written."""
        dag = shop.snapshots("products")
        first = shop.airflow.run(dag, month(1))
        assert first.state == "success", first.errors
        shop.source.run(
            "UPDATE products SET name = 'new' WHERE id = 1; DELETE FROM products WHERE id = 2;"
            "INSERT INTO products VALUES (6, 'six')"
        )
        second = shop.airflow.run(dag, None)
        assert second.state == "success", second.errors
        done = second.xcom("publish")
        assert done["strategy"] == "replace"
        assert [
            done[f"rows_{what}"] for what in ("inserted", "updated", "deleted", "unchanged")
        ] == [
            1,
            1,
            1,
            3,
        ]
        query = "SELECT * FROM {} ORDER BY id"
        assert shop.warehouse.run(query.format("a.products")) == shop.source.run(
            query.format("products")
        )

    def test_a_snapshot_has_no_watermark(self, shop: Shop) -> None:
        """Nothing orders its rows, so no Variable is made that would mean nothing."""
        shop.airflow.run(shop.snapshots("products"), month(1))
        assert shop.airflow.variable("etl.watermark.products") is None
        assert shop.positions() == {"products": (None, 0)}


class TestMapped:
    def test_each_stream_is_published_from_its_own_batch(self, shop: Shop) -> None:
        """Mapped over three streams, every batch meets its own verdict: no cross product."""
        streams = []
        for number in (1, 2, 3):
            shop.source.run(
                f"CREATE TABLE s{number} AS SELECT * FROM orders WHERE id % 3 = {number - 1}"
            )
            shop.source.run(f"ALTER TABLE s{number} ALTER at SET NOT NULL")
            shop.warehouse.run(
                f"CREATE TABLE a.t{number} (id bigint, at timestamptz NOT NULL, note text, amount int)"
                " PARTITION BY RANGE (at)"
            )
            streams.append(
                {
                    "stream": f"{shop.stream}.{number}",
                    "source": f"public.s{number}",
                    "target": f"a.t{number}",
                }
            )
        with shop.dag() as dag:
            extract = IncrementalExtractOperator.partial(
                task_id="extract",
                kind="events",
                source_conn_id="shop",
                target_conn_id="dwh",
                cursor="at",
                partition=MONTHLY,
            ).expand_kwargs(streams)
            validate = QualityValidationOperator.partial(
                task_id="validate", expectations=NOT_NULL
            ).expand(batch=extract.output)
            PartitionSwapOperator.partial(task_id="publish").expand(batch=validate.output)
        ran = shop.airflow.run(dag, month(1))
        assert ran.state == "success", ran.errors
        published = {index: ran.xcom("publish", index)["stream"] for index in range(3)}
        assert published == {index: s["stream"] for index, s in enumerate(streams)}
        assert ran.xcom("publish", 3) is None
        for number in (1, 2, 3):
            assert shop.rows(f"a.t{number}") == shop.source.value(
                f"SELECT count(*) FROM s{number} WHERE at < '2013-02-01 00:00+00'"
            )
            assert shop.watermark(f"{shop.stream}.{number}")["value"] == "2013-02-01 00:00:00+00"


LOOSE = {"params": {"window_low": None, "window_high": None}}


def window(low: str | None, high: str | None) -> dict[str, Any]:
    return {"window_low": low, "window_high": high}


class TestWindows:
    def test_params_win_and_leave_the_watermark_alone(self, shop: Shop) -> None:
        """A user who fills in a window gets that window, not the month of the logical date."""
        shop.load(1)
        ran = shop.airflow.run(
            shop.pipeline(),
            month(3),
            run_type=DagRunType.MANUAL,
            conf=window("2013-02-01T00:00:00Z", "2013-02-28T19:00:00-05:00"),
        )
        assert ran.state == "success", ran.errors
        assert ran.xcom("extract")["window"]["high"] == "2013-03-01 00:00:00+00"
        assert shop.rows() == 2000
        assert shop.agreed() == ("2013-02-01 00:00:00+00", 1)

    def test_part_of_a_partition_leaves_the_rest_of_it(self, shop: Shop) -> None:
        """A day by hand in a table of months: its other days stay, nothing is there twice."""
        shop.load(1)
        shop.source.run("UPDATE orders SET note = 'corrected' WHERE id < 100")
        ran = shop.airflow.run(
            shop.pipeline(), month(1), conf=window("2013-01-01T00:10:00Z", "2013-01-01T00:20:00Z")
        )
        assert ran.state == "success", ran.errors
        assert shop.rows() == 1000
        assert shop.warehouse.value("SELECT count(*) FROM a.orders WHERE note = 'corrected'") == 10
        assert shop.agreed() == ("2013-02-01 00:00:00+00", 1)

    def test_params_need_no_interval(self, shop: Shop) -> None:
        """A run triggered without a logical date has params only."""
        ran = shop.airflow.run(
            shop.pipeline(),
            None,
            run_type=DagRunType.MANUAL,
            conf=window("2013-02-01T00:00:00Z", "2013-03-01T00:00:00Z"),
        )
        assert ran.state == "success", ran.errors
        assert shop.rows() == 1000
        assert shop.airflow.variable(shop.key()) is None

    @pytest.mark.parametrize(
        ("low", "high", "says"),
        [
            ("2013-02-01T00:00:00Z", None, "only window_low was given"),
            (None, "2013-02-01T00:00:00Z", "only window_high was given"),
            (
                "2013-02-01T00:00:00",
                "2013-03-01T00:00:00Z",
                "window_low is '2013-02-01T00:00:00', without",
            ),
            ("2013-02-01T00:00:00Z", "spring", "window_high is 'spring', not a date"),
            ("2013-03-01T00:00:00Z", "2013-02-01T00:00:00Z", "holds no time"),
            ("2013-03-01T00:00:00Z", "2913-04-01T00:00:00Z", "rows are still to come"),
        ],
    )
    def test_a_window_that_cannot_be_meant_is_refused(
        self, shop: Shop, low: str | None, high: str | None, says: str
    ) -> None:
        """Half a window, no offset, no date, backwards, in the future."""
        before = shop.picture()
        ran = shop.airflow.run(
            shop.pipeline(dag=shop.dag(**LOOSE)), month(1), conf=window(low, high)
        )
        assert says in ran.error("extract")
        assert "What to do: " in ran.error("extract")
        assert shop.picture() == before

    def test_a_backfill_never_moves_the_watermark(self, shop: Shop) -> None:
        """It writes coverage only; the next publish outside a backfill counts it."""
        shop.load(1)
        ran = shop.airflow.run(shop.pipeline(), month(2), run_type=DagRunType.BACKFILL_JOB)
        assert ran.state == "success", ran.errors
        assert shop.rows() == 2000
        assert shop.agreed() == ("2013-02-01 00:00:00+00", 1)
        shop.load(3)
        assert shop.agreed() == ("2013-04-01 00:00:00+00", 2)

    def test_a_first_backfill_makes_no_variable(self, shop: Shop) -> None:
        """A stream that was only backfilled has no watermark to show."""
        ran = shop.airflow.run(shop.pipeline(), month(2), run_type=DagRunType.BACKFILL_JOB)
        assert ran.state == "success", ran.errors
        assert shop.airflow.variable(shop.key()) is None
        assert shop.positions()[shop.stream] == (None, 0)

    def test_a_cron_string_gives_no_time_and_says_what_to_use(self, shop: Shop) -> None:
        """Airflow 3 gives zero-length intervals for it, which would load nothing for ever."""
        before = shop.picture()
        dag = shop.pipeline(dag=shop.dag(schedule="@monthly"))
        shop.airflow.sync(dag)
        ran = shop.airflow.observed(
            dag.dag_id, lambda: dag.test(logical_date=datetime(2013, 2, 1, tzinfo=UTC))
        )
        assert ran.state == "failed"
        assert "holds no time" in ran.error("extract")
        assert "CronDataIntervalTimetable" in ran.error("extract")
        assert shop.picture() == before

    def test_a_run_without_an_interval_is_refused(self, shop: Shop) -> None:
        """Triggered without a logical date and without params, there is nothing to load."""
        before = shop.picture()
        ran = shop.airflow.run(shop.pipeline(), None, run_type=DagRunType.MANUAL)
        assert "no data interval" in ran.error("extract")
        assert "window_low" in ran.error("extract")
        assert shop.picture() == before

    def test_an_interval_that_has_not_ended_is_refused(self, shop: Shop) -> None:
        """Rows are still to come, and the interval would not be read again."""
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        day = {"column": "at", "every": "day", "timezone": "UTC"}
        before = shop.picture()
        ran = shop.airflow.run(
            shop.pipeline(extract={"partition": day}), (today, today + timedelta(days=1))
        )
        assert "rows are still to come" in ran.error("extract")
        assert shop.picture() == before


class TestWatermarkWindow:
    def test_it_goes_from_the_watermark_to_what_is_settled(self, shop: Shop) -> None:
        """The first run loads everything, the next one what came since."""
        dag = shop.pipeline(
            extract={"window": "watermark", "kind": "entities", "keys": ["id", "at"]}
        )
        ran = shop.airflow.run(dag, None, run_type=DagRunType.MANUAL)
        assert ran.state == "success", ran.errors
        assert shop.rows() == 3000
        first, _ = shop.agreed()
        shop.source.run("INSERT INTO orders VALUES (5000, now() - interval '4 minutes', 'new', 1)")
        dag.get_task("extract").settle_delay = timedelta(seconds=1)
        ran = shop.airflow.run(dag, None, run_type=DagRunType.MANUAL)
        assert ran.state == "success", ran.errors
        assert shop.rows() == 3001
        assert ran.xcom("extract")["window"]["low"] == first

    def test_nothing_new_is_a_success(self, shop: Shop) -> None:
        """The bound is not above the watermark: no load, no move, and all three tasks say so."""
        dag = shop.pipeline(
            extract={"window": "watermark", "kind": "entities", "keys": ["id", "at"]}
        )
        shop.airflow.run(dag, None, run_type=DagRunType.MANUAL)
        before = shop.picture()
        dag.get_task("extract").settle_delay = timedelta(days=1)
        ran = shop.airflow.run(dag, None, run_type=DagRunType.MANUAL)
        assert ran.state == "success", ran.errors
        assert ran.xcom("publish") == {"nothing_to_do": True, "stream": shop.stream}
        assert shop.picture() == before
        assert any(event.startswith("nothing to load") for event in ran.events())

    def test_its_backfill_reads_the_interval(self, shop: Shop) -> None:
        """An old interval again, and the live watermark is left alone."""
        dag = shop.pipeline(
            extract={"window": "watermark", "kind": "entities", "keys": ["id", "at"]}
        )
        shop.airflow.run(dag, None, run_type=DagRunType.MANUAL)
        before = shop.agreed()
        shop.source.run("UPDATE orders SET note = 'corrected' WHERE id IN (1, 1001)")
        ran = shop.airflow.run(dag, month(1), run_type=DagRunType.BACKFILL_JOB)
        assert ran.state == "success", ran.errors
        assert shop.warehouse.run("SELECT id FROM a.orders WHERE note = 'corrected'") == [(1,)]
        assert shop.agreed() == before
