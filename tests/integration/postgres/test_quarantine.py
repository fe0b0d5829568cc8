"""on_fail: quarantine: rows that break an expectation leave the batch, and nothing of them is lost or doubled."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from airflow_etl_provider.core.dead_letters import DeadLimits, OnConversionError
from airflow_etl_provider.core.errors import (
    ConfigurationError,
    EtlError,
    LockBudgetExceeded,
    QualityGateFailed,
    StateError,
    Superseded,
)
from airflow_etl_provider.core.load import Kind, Manifest, Strategy
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.postgres.audit import PostgresAuditArea
from airflow_etl_provider.postgres.clean import CleanOptions, clean
from airflow_etl_provider.postgres.rewind import rewind
from airflow_etl_provider.postgres.rollback import RollbackOptions, rollback
from airflow_etl_provider.postgres.session import connect
from airflow_etl_provider.quality.suite import parse_suite
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import FEBRUARY, JANUARY, MARCH, Pipeline, fill, reader, simple

NOT_NULL = "expect_column_values_to_not_be_null"
PRESENT: dict[str, Any] = {"type": NOT_NULL, "kwargs": {"column": "v"}}
V_PRESENT = {**PRESENT, "on_fail": "quarantine"}
SMALL_ID = {
    "type": "expect_column_values_to_be_between",
    "kwargs": {"column": "id", "max_value": 50},
    "on_fail": "quarantine",
    "severity": "warning",
}
UNIQUE_V = {
    "type": "expect_column_values_to_be_unique",
    "kwargs": {"column": "v"},
    "on_fail": "quarantine",
}


SHORT = {"lock_budget": timedelta(seconds=0.1), "lock_deadline": timedelta(seconds=0.3)}


def rows_between(low: int, high: int) -> dict[str, Any]:
    return {
        "type": "expect_table_row_count_to_be_between",
        "kwargs": {"min_value": low, "max_value": high},
    }


def flawed(source, warehouse, **changes: Any) -> Pipeline:
    """Sixty events over two months; the third and the fortieth have no v."""
    pipe = simple(source, warehouse, **changes)
    fill(source, JANUARY, MARCH, 60)
    source.run("UPDATE t SET v = NULL WHERE id IN (3, 40)")
    return pipe


def staged(pipe: Pipeline, manifest: Manifest) -> int:
    found: int = pipe.warehouse.value(
        sql.SQL("SELECT count(*) FROM {}").format(
            sql.Identifier(manifest.staging.schema, manifest.staging.name)
        )
    )
    return found


def report(pipe: Pipeline, load_id: str) -> Any:
    return pipe.warehouse.value("SELECT report FROM etl.loads WHERE load_id = %s", (load_id,))


def test_failing_rows_become_letters_and_the_rest_is_validated(source, warehouse):
    pipe = flawed(source, warehouse)
    extracted = pipe.extract(JANUARY, FEBRUARY)
    assert extracted.direct
    manifest = pipe.audit(extracted, [V_PRESENT])
    assert (manifest.rows, manifest.rows_dead) == (extracted.rows - 1, 1)
    assert not manifest.direct
    assert staged(pipe, manifest) == manifest.rows
    assert pipe.letters(
        "record ->> 'id', record ->> 'v', reason, expectation, severity, error_class, status, stream"
    ) == [("3", None, f"{NOT_NULL}(v)", NOT_NULL, "critical", "data", "held", "t")]
    ((at, key),) = pipe.letters("position, record_key")
    assert (at,) == pipe.letters("record ->> 'ts'")[0]
    assert key == f'["3", "{at}"]'
    row = warehouse.run(
        "SELECT state, rows_dead, rows_staged, (manifest ->> 'rows')::int FROM etl.loads"
    )
    assert row == [("validated", 1, extracted.rows, manifest.rows)]
    found = report(pipe, manifest.load_id)
    assert found["verdict"] == "warned"
    assert found["rows"] == manifest.rows
    assert found["results"][0]["set_aside"] is True
    assert found["results"][0]["result"]["unexpected_count"] == 1


STRATEGIES: dict[str, tuple[Strategy, dict[str, Any], dict[str, Any]]] = {
    "swap": (Strategy.SWAP, {}, {}),
    "swap_merge": (Strategy.SWAP_MERGE, {}, {}),
    "delete_insert": (Strategy.DELETE_INSERT, {}, {}),
    "merge": (Strategy.MERGE, {"kind": Kind.ENTITIES, "keys": ("id", "ts"), "partition": None}, {}),
    "append": (Strategy.APPEND, {}, {}),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_publishes_what_is_left(source, warehouse, name):
    strategy, changes, options = STRATEGIES[name]
    pipe = flawed(source, warehouse, **changes)
    if changes:
        warehouse.run("CREATE TABLE a.rest PARTITION OF a.t DEFAULT")
    manifest = pipe.audit(pipe.extract(JANUARY, MARCH), [V_PRESENT])
    assert manifest.rows == 58
    published = pipe.publish(manifest, strategy=strategy, **options)
    assert published.rows_inserted == 58
    assert warehouse.value("SELECT count(*) FROM a.t WHERE v IS NULL") == 0
    assert warehouse.value("SELECT count(*) FROM a.t") == 58
    assert pipe.letters("status") == [("pending",), ("pending",)]
    assert pipe.publish(manifest, strategy=strategy).already
    assert len(pipe.letters()) == 2


@pytest.mark.parametrize("strategy", [Strategy.REPLACE, Strategy.SCD2])
def test_whole_tables_and_histories_too(source, warehouse, strategy):
    source.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, ts timestamptz NOT NULL, v text);"
        "INSERT INTO t VALUES (1, '2013-01-01Z', 'a'), (2, '2013-01-02Z', NULL)"
    )
    more = ", valid_from timestamptz, valid_to timestamptz" if strategy is Strategy.SCD2 else ""
    warehouse.run(f"CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz, v text{more})")
    pipe = Pipeline(
        source, warehouse, kind=Kind.SNAPSHOTS, cursor=None, keys=("id",), partition=None,
        mode=WindowMode.FULL,
    )  # fmt: skip
    manifest = pipe.audit(pipe.extract(filled_by_publish=("valid_from", "valid_to")), [V_PRESENT])
    pipe.publish(manifest, strategy=strategy)
    assert warehouse.run("SELECT id, v FROM a.t") == [(1, "a")]
    assert pipe.letters("record_key, status") == [("2", "pending")]


def test_older_snapshots_see_the_audited_rows_and_no_other(source, warehouse):
    """The staged table was to become the partition as it is: deleted rows in it would be seen again."""
    pipe = flawed(source, warehouse)
    with warehouse.connect() as old:
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1")
        manifest = pipe.audit(pipe.extract(JANUARY, FEBRUARY), [V_PRESENT])
        pipe.publish(manifest, strategy=Strategy.SWAP)
        assert old.execute("SELECT count(*), count(v) FROM a.t").fetchone() == (
            manifest.rows,
            manifest.rows,
        )


def test_a_row_that_breaks_several_expectations_is_one_letter(source, warehouse):
    pipe = flawed(source, warehouse)
    source.run("UPDATE t SET v = NULL WHERE id = 55")
    manifest = pipe.audit(pipe.extract(JANUARY, MARCH), [SMALL_ID, V_PRESENT])
    assert manifest.rows_dead == 12
    both = "expect_column_values_to_be_between(id)", f"{NOT_NULL}(v)"
    said = {
        row[0]: row[1:] for row in pipe.letters("record ->> 'id', reason, expectation, severity")
    }
    assert said["55"] == (
        "; ".join(both),
        f"expect_column_values_to_be_between, {NOT_NULL}",
        "critical",
    )
    assert said["51"] == (both[0], "expect_column_values_to_be_between", "warning")
    assert pipe.warehouse.run(
        "SELECT reason, count(*) FROM etl.dead_letters GROUP BY 1 ORDER BY 2, 1"
    ) == [("; ".join(both), 1), (both[1], 2), (both[0], 9)]


def test_what_says_something_of_all_rows_is_judged_of_what_remains(source, warehouse):
    pipe = flawed(source, warehouse)
    extracted = pipe.extract(JANUARY, MARCH)
    # Sixty rows are too many, fifty-eight are not.
    manifest = pipe.audit(extracted, [rows_between(1, 58), V_PRESENT])
    assert manifest.rows == 58
    other = pipe.extract(JANUARY, MARCH)
    with pytest.raises(QualityGateFailed, match="1 of 2 expectations"):
        pipe.audit(other, [rows_between(59, 60), V_PRESENT])


def test_a_batch_that_is_rejected_stays_whole(source, warehouse):
    """So that a mended suite judges all of its rows."""
    pipe = flawed(source, warehouse)
    extracted = pipe.extract(JANUARY, MARCH)
    with pytest.raises(QualityGateFailed):
        pipe.audit(extracted, [V_PRESENT, rows_between(100, 200)])
    assert pipe.state(extracted.load_id) == "rejected"
    assert staged(pipe, extracted) == 60
    assert pipe.letters() == []
    assert pipe.left_in_staging() == {extracted.staging.name}
    assert pipe.audit(extracted, [V_PRESENT]).rows == 58


def test_another_expectation_that_blocks_is_judged_without_the_rows_that_left(source, warehouse):
    pipe = flawed(source, warehouse)
    extracted = pipe.extract(JANUARY, MARCH)
    manifest = pipe.audit(extracted, [PRESENT, V_PRESENT])
    assert manifest.rows == 58
    assert report(pipe, manifest.load_id)["results"][0]["success"] is True


def test_all_rows_of_a_duplicate_are_set_aside(source, warehouse):
    pipe = flawed(source, warehouse)
    source.run(
        "UPDATE t SET v = 'twin' WHERE id IN (7, 8); UPDATE t SET v = 'x' WHERE v IS NULL AND id = 3"
    )
    manifest = pipe.audit(pipe.extract(JANUARY, MARCH), [UNIQUE_V])
    assert manifest.rows_dead == 2
    assert {record["id"] for (record,) in pipe.letters("record")} == {"7", "8"}


def test_what_holds_by_its_share_sets_nothing_aside(source, warehouse):
    pipe = flawed(source, warehouse)
    mostly = {**V_PRESENT, "kwargs": {"column": "v", "mostly": 0.9}}
    manifest = pipe.audit(pipe.extract(JANUARY, MARCH), [mostly])
    assert (manifest.rows, manifest.rows_dead) == (60, 0)
    assert pipe.letters() == []


@pytest.mark.parametrize(
    "limits", [DeadLimits(max_share=0.03), DeadLimits(max_share=1.0, max_rows=1)]
)
def test_more_than_may_be_set_aside_rejects_the_batch_as_a_whole(source, warehouse, limits):
    pipe = flawed(source, warehouse)
    extracted = pipe.extract(JANUARY, MARCH)
    with pytest.raises(QualityGateFailed, match="2 of 60 rows would be set aside") as raised:
        pipe.audit(extracted, [{**V_PRESENT, "severity": "warning"}], limits)
    assert raised.value.failures == (f"{NOT_NULL}(v): 2 rows",)
    assert pipe.state(extracted.load_id) == "rejected"
    assert report(pipe, extracted.load_id)["verdict"] == "rejected"
    assert staged(pipe, extracted) == 60
    assert pipe.letters() == []
    with pytest.raises(StateError, match="rejected"):
        pipe.publish(extracted)


def test_two_expectations_of_one_name_count_together(source18, warehouse18):
    """Of one type about one column, for different rows: no count stands for the other's."""
    pipe = flawed(source18, warehouse18)
    early, late = (
        {**V_PRESENT, "kwargs": {"column": "v", "row_condition": f'col("id") {which} 20'}}
        for which in ("<", ">")
    )
    early["kwargs"]["condition_parser"] = late["kwargs"]["condition_parser"] = "great_expectations"
    pipe.audit(pipe.extract(JANUARY, MARCH), [early, late])
    ((_, told),) = [event for event in pipe.log.events if event[0] == "rows set aside"]
    assert sum(told["reasons"].values()) == 2


def test_rows_that_could_not_be_converted_count_too(source, warehouse):
    source.run(
        "CREATE TABLE t (id bigint, ts timestamptz, v text);"
        "INSERT INTO t SELECT i, '2013-01-05Z', CASE WHEN i = 1 THEN 'x' WHEN i > 2 THEN '5' END FROM generate_series(1, 10) AS i"
    )
    warehouse.run("CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz, v int)")
    pipe = Pipeline(
        source, warehouse, partition=None,
        options={"on_conversion_error": OnConversionError.QUARANTINE},
    )  # fmt: skip
    extracted = pipe.extract(JANUARY, FEBRUARY)
    assert extracted.rows_dead == 1
    with pytest.raises(QualityGateFailed, match="beside 1 that were before"):
        pipe.audit(extracted, [V_PRESENT], DeadLimits(max_share=0.1))
    # Its letters end with it, and come back if it passes after all.
    assert pipe.letters("status, resolved_at IS NULL") == [("superseded", False)]
    manifest = pipe.audit(extracted, [V_PRESENT], DeadLimits(max_share=0.2))
    assert manifest.rows_dead == 2
    assert pipe.letters("status, resolved_at IS NULL") == [("held", True), ("held", True)]
    assert warehouse.value("SELECT rows_dead FROM etl.loads") == 2


def test_all_rows_bad_and_no_rows_at_all(source, warehouse):
    pipe = simple(source, warehouse)
    assert pipe.audit(pipe.extract(JANUARY, FEBRUARY), [V_PRESENT]).rows == 0
    fill(source, JANUARY, FEBRUARY, 20)
    source.run("UPDATE t SET v = NULL")
    manifest = pipe.audit(pipe.extract(JANUARY, FEBRUARY), [V_PRESENT])
    assert (manifest.rows, manifest.rows_dead) == (0, 20)
    pipe.publish(manifest)
    assert pipe.coverage()
    assert {status for (status,) in pipe.letters("status")} == {"pending"}


def test_rows_are_told_whatever_they_hold(source, warehouse):
    """Names that need quotes, arrays, bytes, documents, a row twice over, and no key at all."""
    columns = '"Odd ""v" text, tags text[], raw bytea, doc json, at timestamptz, r int4range'
    source.run(f"CREATE TABLE t ({columns})")
    source.run(
        "INSERT INTO t SELECT CASE WHEN i > 2 THEN 'ok' END, '{a,NULL,\"b c\"}', '\\x00ff', '{\"a\":  [1]}', 'infinity', '[1,3)'"
        " FROM generate_series(1, 4) AS i"
    )
    warehouse.run(f"CREATE SCHEMA a; CREATE TABLE a.t ({columns})")
    pipe = Pipeline(
        source, warehouse, kind=Kind.SNAPSHOTS, cursor=None, partition=None, mode=WindowMode.FULL
    )
    expectation = {**V_PRESENT, "kwargs": {"column": 'Odd "v'}}
    manifest = pipe.audit(pipe.extract(), [expectation])
    assert manifest.rows == 2
    record = {
        'Odd "v': None,
        "tags": '{a,NULL,"b c"}',
        "raw": "\\x00ff",
        "doc": '{"a":  [1]}',
        "at": "infinity",
        "r": "[1,3)",
    }
    assert pipe.letters("record, ordinal, record_key, position") == [
        (record, 1, None, None),
        (record, 2, None, None),
    ]


@pytest.mark.parametrize(
    "expectation",
    [
        {**rows_between(1, 2), "on_fail": "quarantine"},
        {"type": "expect_column_median_to_be_between", "kwargs": {"column": "id"}, "on_fail": "quarantine"},
    ],
    ids=["of all rows", "only by Great Expectations"],
)  # fmt: skip
def test_what_tells_no_rows_cannot_set_any_aside(source18, warehouse18, expectation):
    pipe = flawed(source18, warehouse18)
    manifest = pipe.extract(JANUARY, FEBRUARY)
    area = pipe.audits()
    with pytest.raises(ConfigurationError, match="on_fail='quarantine'"):
        area.faults(
            manifest.staging,
            parse_suite([expectation]).expectations,
            area.columns(manifest.staging),
        )


# -- crashes, tries and races -------------------------------------------------------------------------


def test_killed_anywhere_in_the_transaction_nothing_has_happened(
    source18, warehouse18, monkeypatch
):
    """Each statement in turn ends the connection; the next try finds the batch whole, and ends like a first."""
    pipe = flawed(source18, warehouse18)
    extracted = pipe.extract(JANUARY, MARCH)
    whole = pipe.warehouse.run("SELECT state, rows_dead, manifest FROM etl.loads")
    # The connection's own method is replaced: whatever statement comes, it is counted.
    execute = psycopg.Connection.execute
    left = [0]

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            psycopg.Connection.close(self)
        return execute(self, *args, **kwargs)

    reached = 0
    monkeypatch.setattr(psycopg.Connection, "execute", counted)
    for number in range(1, 200):
        left[0] = number
        try:
            pipe.audit(extracted, [V_PRESENT])
        except EtlError:
            reached += 1
            left[0] = -1
            state = pipe.warehouse.run("SELECT state, rows_dead, manifest FROM etl.loads")
            letters = len(pipe.letters())
            assert (state == whole) == (letters == 0), f"statement {number}: half a change"
            if letters:
                break
        else:
            break
    left[0] = -1
    assert reached > 15
    manifest = pipe.audit(extracted, [V_PRESENT]) if len(pipe.letters()) == 0 else None
    assert manifest is None or manifest.rows == 58
    assert len(pipe.letters()) == 2


def test_a_retry_of_what_was_set_aside_sets_nothing_aside_again(source, warehouse):
    pipe = flawed(source, warehouse)
    first = pipe.audit(pipe.extract(JANUARY, MARCH), [V_PRESENT])
    again = pipe.audit(first, [V_PRESENT])
    assert (again.rows, again.rows_dead, len(pipe.letters())) == (58, 2, 2)
    # A stricter suite takes more of them, and knows how many are gone already.
    with pytest.raises(QualityGateFailed, match="10 of 60 rows would be set aside, beside 2"):
        pipe.audit(again, [V_PRESENT, SMALL_ID], DeadLimits(max_share=0.19))
    strict = pipe.audit(again, [V_PRESENT, SMALL_ID], DeadLimits(max_share=0.2))
    assert (strict.rows, strict.rows_dead, len(pipe.letters())) == (48, 12, 12)


class _Slow(PostgresAuditArea):
    """An area whose audit waits between the verdict and the setting aside."""

    def __init__(self, endpoint: Any, reached: threading.Event, go_on: threading.Event) -> None:
        object.__setattr__(self, "endpoint", endpoint)
        object.__setattr__(self, "_events", (reached, go_on))

    def set_aside(self, *args: Any) -> Any:
        reached, go_on = self._events
        reached.set()
        assert go_on.wait(30)
        return super().set_aside(*args)


def test_two_tries_at_once_set_each_row_aside_once(source18, warehouse18):
    pipe = flawed(source18, warehouse18)
    extracted = pipe.extract(JANUARY, MARCH)
    reached, go_on = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def late() -> None:
        try:
            area = _Slow(warehouse18.endpoint("etl:test"), reached, go_on)
            pipe.audit(extracted, [V_PRESENT], area=area)
        except EtlError as error:
            failures.append(error)

    thread = threading.Thread(target=late)
    thread.start()
    assert reached.wait(30)
    manifest = pipe.audit(extracted, [V_PRESENT])
    go_on.set()
    thread.join()
    assert [type(error) for error in failures] == [Superseded]
    assert staged(pipe, manifest) == 58
    assert len(pipe.letters()) == 2
    assert not pipe.warehouse.run(
        "SELECT 1 FROM pg_class WHERE relkind = 'v' AND relnamespace = 'etl_staging'::regnamespace"
    )


def test_a_batch_that_shrinks_while_it_is_published_is_not_published_as_it_was(
    source18, warehouse18
):
    pipe = flawed(source18, warehouse18)
    before = pipe.staged(JANUARY, MARCH)
    after = pipe.audit(before, [V_PRESENT])
    with pytest.raises(Superseded, match="audited again"):
        pipe.publish(before, strategy=Strategy.SWAP)
    assert pipe.publish(after, strategy=Strategy.SWAP).rows_inserted == 58


def test_what_an_earlier_publish_had_filled_goes_with_the_rows(source18, warehouse18):
    """It holds rows that are set aside now."""
    pipe = flawed(source18, warehouse18)
    pipe.load(JANUARY, MARCH, options={"strategy": Strategy.SWAP})
    before = pipe.staged(JANUARY, MARCH)
    with reader(warehouse18, "SELECT 1 FROM a.t"), pytest.raises(LockBudgetExceeded):
        pipe.publish(before, strategy=Strategy.SWAP, **SHORT)
    assert len(pipe.left_in_staging()) > 2
    after = pipe.audit(before, [V_PRESENT])
    assert pipe.publish(after, strategy=Strategy.SWAP).rows_inserted == 58
    assert warehouse18.value("SELECT count(*) FROM a.t WHERE v IS NULL") == 0


def test_a_view_that_a_killed_audit_left_goes_with_its_table(source18, warehouse18):
    pipe = flawed(source18, warehouse18)
    manifest = pipe.extract(JANUARY, FEBRUARY)
    view = sql.SQL("CREATE VIEW etl_staging.left_behind AS SELECT * FROM {}")
    table = sql.Identifier(manifest.staging.schema, manifest.staging.name)
    warehouse18.run(view.format(table))
    pipe.staging().discard(manifest.load_id, "test")
    assert pipe.left_in_staging() == set()
    other = pipe.extract(JANUARY, FEBRUARY)
    warehouse18.run(view.format(sql.Identifier(other.staging.schema, other.staging.name)))
    warehouse18.run("UPDATE etl.loads SET state = 'abandoned'")
    with connect(warehouse18.endpoint("etl:test")) as connection:
        cleaned = clean(connection, CleanOptions(), stop=threading.Event(), log=RecordedEvents())
    assert [str(gone.table) for gone in cleaned.dropped] == [str(other.staging)]


# -- what becomes of letters with their load ----------------------------------------------------------


def audited(pipe: Pipeline) -> Manifest:
    return pipe.audit(pipe.extract(JANUARY, FEBRUARY), [V_PRESENT])


def test_letters_end_with_a_load_that_is_abandoned(source, warehouse):
    pipe = flawed(source, warehouse)
    manifest = audited(pipe)
    pipe.staging().discard(manifest.load_id, "the task was cleared")
    assert pipe.letters("status, resolution") == [("superseded", "the task was cleared")]


def test_letters_end_with_a_load_that_a_rewind_abandons(source, warehouse):
    pipe = flawed(source, warehouse)
    pipe.load(JANUARY, FEBRUARY)
    manifest = pipe.audit(pipe.extract(FEBRUARY, MARCH), [V_PRESENT])
    with connect(warehouse.endpoint("etl:test")) as connection:
        rewind(connection, "t", "2013-01-15 00:00:00+00", "wrong", "me")
    assert pipe.state(manifest.load_id) == "abandoned"
    assert pipe.letters("status") == [("superseded",)]


def test_letters_end_with_a_load_that_is_rolled_back(source, warehouse):
    pipe = flawed(source, warehouse)
    pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.SWAP})
    manifest = audited(pipe)
    pipe.publish(manifest, strategy=Strategy.SWAP)
    assert pipe.letters("status") == [("pending",)]
    with connect(warehouse.endpoint("etl:test")) as connection:
        rollback(
            connection, manifest.load_id, "wrong", "me",
            options=RollbackOptions(), stop=threading.Event(), log=RecordedEvents(),
        )  # fmt: skip
    assert pipe.letters("status") == [("superseded",)]


def test_letters_of_a_load_that_was_overtaken_end(source, warehouse):
    pipe = flawed(source, warehouse)
    slow = audited(pipe)
    pipe.load(JANUARY, FEBRUARY)
    assert pipe.publish(slow).overtaken_by is not None
    assert pipe.letters("status") == [("superseded",)]


def test_a_reload_of_the_window_settles_its_letters(source, warehouse):
    pipe = flawed(source, warehouse)
    first = pipe.audit(pipe.extract(JANUARY, MARCH), [V_PRESENT])
    pipe.publish(first)
    assert pipe.letters("status") == [("pending",), ("pending",)]
    again = audited(pipe)
    pipe.publish(again)
    # January's old letter is settled, and read again; February's stays.
    assert pipe.letters("load_id::text, status") == [
        (first.load_id, "superseded"),
        (first.load_id, "pending"),
        (again.load_id, "pending"),
    ]
    assert pipe.letters("resolution")[0] == (f"load {again.load_id} has read the row again",)


def entities(source, warehouse, **changes: Any) -> Pipeline:
    source.run("CREATE TABLE t (id bigint PRIMARY KEY, ts timestamptz NOT NULL, v text)")
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint PRIMARY KEY, ts timestamptz, v text)"
    )
    source.run(
        "INSERT INTO t VALUES (1, '2013-01-05Z', 'a'), (2, '2013-01-06Z', NULL), (3, '2013-01-07Z', NULL)"
    )
    return Pipeline(source, warehouse, kind=Kind.ENTITIES, keys=("id",), partition=None, **changes)


def test_a_newer_version_of_the_row_settles_its_letter(source, warehouse):
    """Whether it is good, or set aside itself, or deleted."""
    pipe = entities(source, warehouse)
    pipe.publish(pipe.audit(pipe.extract(JANUARY, FEBRUARY), [V_PRESENT]))
    assert pipe.letters("record_key, status") == [("2", "pending"), ("3", "pending")]
    source.run("UPDATE t SET ts = '2013-02-05Z', v = 'mended' WHERE id = 2")
    pipe.publish(pipe.audit(pipe.extract(FEBRUARY, MARCH), [V_PRESENT]))
    assert pipe.letters("record_key, status") == [("2", "superseded"), ("3", "pending")]


def test_an_older_reading_settles_nothing_of_rows_that_change(source, warehouse):
    """What it read may be what the letter's load read later, and better."""
    pipe = entities(source, warehouse)
    source.run("UPDATE t SET v = 'fine'")
    early = pipe.staged(JANUARY, FEBRUARY, run_type="backfill")
    source.run("UPDATE t SET v = NULL WHERE id = 2")
    pipe.publish(
        pipe.audit(
            pipe.extract(datetime(2013, 1, 6, tzinfo=UTC), datetime(2013, 1, 7, tzinfo=UTC)),
            [V_PRESENT],
        )
    )
    assert pipe.letters("record_key, status") == [("2", "pending")]
    pipe.publish(early)
    assert pipe.letters("record_key, status") == [("2", "pending")]


def test_a_full_reading_settles_all_that_was_set_aside_before(source, warehouse):
    pipe = entities(source, warehouse, mode=WindowMode.FULL)
    first = pipe.audit(pipe.extract(), [V_PRESENT])
    pipe.publish(first)
    source.run("DELETE FROM t WHERE id = 3")
    pipe.publish(pipe.audit(pipe.extract(), [V_PRESENT]))
    assert pipe.letters("record_key, status") == [
        ("2", "superseded"),
        ("3", "superseded"),
        ("2", "pending"),
    ]
