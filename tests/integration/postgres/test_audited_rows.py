"""What is published is what was audited: rows that were changed since, in whatever way, are not."""

from __future__ import annotations

from datetime import timedelta

import pytest
from uuid6 import uuid7

from airflow_etl_provider.core.errors import (
    ContractError,
    LockBudgetExceeded,
    QualityGateFailed,
    Superseded,
)
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.window import Interval
from airflow_etl_provider.postgres.audit import PostgresAuditArea
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import FEBRUARY, JANUARY, MARCH, MONTHLY, fill, reader, run_info, simple

BRIEFLY = {
    "lock_budget": timedelta(milliseconds=100),
    "lock_deadline": timedelta(milliseconds=300),
}
NO_BAD = [
    {
        "type": "expect_column_values_to_not_be_in_set",
        "kwargs": {"column": "v", "value_set": ["bad"]},
    }
]
PRESENT = [{"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "v"}}]
CHANGES = {
    "a value": "UPDATE {} SET v = NULL WHERE id = 3",
    "one row for another": "DELETE FROM {0} WHERE id = 3; INSERT INTO {0} VALUES (99, '2013-01-03Z', 'x')",
    "all anew": "CREATE TEMP TABLE c AS SELECT * FROM {0}; TRUNCATE {0}; INSERT INTO {0} SELECT * FROM c",
}


def pipeline(source, warehouse, **changes):
    pipe = simple(source, warehouse, **changes)
    fill(source, JANUARY, MARCH, 60)
    return pipe


def fills(pipe, manifest):
    """The tables that were filled from the batch, by oid."""
    return pipe.warehouse.run(
        "SELECT oid::bigint FROM pg_class WHERE relnamespace = 'etl_staging'::regnamespace"
        " AND relkind = 'r' AND relname ~ '_p[0-9]+$' ORDER BY 1"
    )


def blocked(pipe, manifest):
    with reader(pipe.warehouse, "SELECT count(*) FROM a.t"), pytest.raises(LockBudgetExceeded):
        pipe.publish(manifest, **BRIEFLY)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    ("strategy", "kind", "end"),
    [
        (Strategy.SWAP, Kind.EVENTS, FEBRUARY),
        (Strategy.SWAP, Kind.EVENTS, MARCH),
        (Strategy.DELETE_INSERT, Kind.EVENTS, FEBRUARY),
        (Strategy.SWAP_MERGE, Kind.EVENTS, FEBRUARY),
        (Strategy.MERGE, Kind.ENTITIES, FEBRUARY),
        (Strategy.APPEND, Kind.EVENTS, FEBRUARY),
    ],
)
def test_a_batch_that_was_changed_since_its_audit(
    source18, warehouse18, strategy, kind, end, change
):
    """As many rows are there as before; readers see none of them."""
    keys = ("id", "ts") if kind is Kind.ENTITIES else ()
    pipe = pipeline(source18, warehouse18, kind=kind, keys=keys)
    manifest = pipe.audit(pipe.extract(JANUARY, end), PRESENT)
    warehouse18.run(change.format(manifest.staging))
    with pytest.raises(ContractError, match="were changed, added or deleted") as caught:
        pipe.publish(manifest, strategy=strategy)
    assert "clear validate and publish" in str(caught.value)
    assert (pipe.rows(), pipe.coverage()) == ([], [])
    # Audited as it is now, it may be published.
    again = pipe.audit(manifest, NO_BAD)
    assert pipe.publish(again, strategy=strategy).rows_inserted == manifest.rows


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.DELETE_INSERT, Strategy.SWAP_MERGE])
def test_what_we_and_the_server_do_to_a_batch_is_no_change(source, warehouse, strategy):
    pipe = pipeline(source, warehouse)
    manifest = pipe.audit(pipe.extract(JANUARY, FEBRUARY), PRESENT)
    warehouse.run("ALTER TABLE a.t ADD w int DEFAULT 7")
    with warehouse.connect() as connection:
        connection.execute(f"VACUUM (FREEZE, ANALYZE) {manifest.staging}")
    assert pipe.publish(manifest, strategy=strategy).rows_inserted == manifest.rows
    assert warehouse.value("SELECT count(*) FROM a.t WHERE v IS NOT NULL") == manifest.rows


def test_a_batch_that_nobody_audited_is_published_as_it_is(source18, warehouse18):
    """With ``audit="none"`` there is nothing to compare it with."""
    pipe = pipeline(source18, warehouse18)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    warehouse18.run(f"UPDATE {manifest.staging} SET v = 'by hand'")
    pipe.publish(manifest)
    assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'by hand'") == manifest.rows


@pytest.mark.parametrize("quarantine", [True, False])
def test_rows_that_change_under_the_eyes_of_the_audit(source18, warehouse18, quarantine):
    """What it judged may not be what is there when it ends."""
    pipe = pipeline(source18, warehouse18)
    manifest = pipe.extract(JANUARY, FEBRUARY)
    warehouse18.run(f"UPDATE {manifest.staging} SET v = NULL WHERE id = 1")

    class Meddled(PostgresAuditArea):
        def require_rows(self, *args):
            warehouse18.run(f"UPDATE {manifest.staging} SET v = 'unseen' WHERE id = 2")
            return super().require_rows(*args)

    area = Meddled(warehouse18.endpoint("etl:test"))
    if quarantine:
        suite = [PRESENT[0] | {"on_fail": "quarantine"}]
        with pytest.raises(ContractError, match="were changed, added or deleted"):
            pipe.audit(manifest, suite, area=area)
        assert pipe.letters() == []
        return
    audited = pipe.audit(manifest, NO_BAD, area=area)
    with pytest.raises(ContractError, match="were changed, added or deleted"):
        pipe.publish(audited)


def test_rows_set_aside_are_no_change(source18, warehouse18):
    pipe = pipeline(source18, warehouse18)
    pipe.source.run("UPDATE t SET v = NULL WHERE id = 3")
    manifest = pipe.audit(pipe.extract(JANUARY, MARCH), [PRESENT[0] | {"on_fail": "quarantine"}])
    assert (manifest.rows, manifest.direct) == (59, False)
    assert pipe.publish(manifest).rows_inserted == 59


def test_a_retry_after_a_blocked_publish_fills_nothing_again(source18, warehouse18):
    pipe = pipeline(source18, warehouse18)
    pipe.load(JANUARY, MARCH)
    for manifest in (
        pipe.staged(JANUARY, MARCH),
        pipe.audit(pipe.extract(JANUARY, MARCH), PRESENT),
    ):
        blocked(pipe, manifest)
        filled = fills(pipe, manifest)
        assert len(filled) == 2
        blocked(pipe, manifest)
        assert fills(pipe, manifest) == filled
        # So does one after an audit that found the batch as it was.
        blocked(pipe, pipe.audit(manifest, PRESENT))
        if manifest.audited is not None:
            assert fills(pipe, manifest) == filled
        pipe.publish(pipe.audit(manifest, PRESENT))
        assert fills(pipe, manifest) == []


def test_what_a_blocked_publish_had_filled_is_not_what_is_audited_later(source18, warehouse18):
    """A stricter suite rejects the batch, it is mended by hand, and passes: the mended rows go live."""
    pipe = pipeline(source18, warehouse18)
    pipe.load(JANUARY, MARCH)
    pipe.source.run("UPDATE t SET v = 'bad'")
    manifest = pipe.audit(pipe.extract(JANUARY, MARCH), PRESENT)
    blocked(pipe, manifest)
    with pytest.raises(QualityGateFailed):
        pipe.audit(manifest, NO_BAD)
    warehouse18.run(f"UPDATE {manifest.staging} SET v = 'good'")
    pipe.publish(pipe.audit(manifest, NO_BAD))
    assert warehouse18.run("SELECT v, count(*) FROM a.t GROUP BY 1") == [("good", 60)]


def test_nor_is_what_another_strategy_had_built(source18, warehouse18):
    pipe = pipeline(source18, warehouse18)
    pipe.load(JANUARY, MARCH)
    pipe.source.run("UPDATE t SET v = 'new'")
    manifest = pipe.audit(pipe.extract(JANUARY, MARCH), PRESENT)
    with reader(warehouse18, "SELECT count(*) FROM a.t"), pytest.raises(LockBudgetExceeded):
        pipe.publish(manifest, strategy=Strategy.SWAP_MERGE, **BRIEFLY)
    built = fills(pipe, manifest)
    blocked(pipe, manifest)
    assert not {*fills(pipe, manifest)} & {*built}
    pipe.publish(manifest)
    assert warehouse18.run("SELECT v, count(*) FROM a.t GROUP BY 1") == [("new", 60)]


def test_an_audit_of_changed_rows_while_the_batch_is_published(source18, warehouse18):
    """What was built from the rows before is not published as what was audited now."""
    pipe = pipeline(source18, warehouse18)
    pipe.load(JANUARY, MARCH)
    manifest = pipe.audit(pipe.extract(JANUARY, MARCH), PRESENT)

    class Meanwhile(RecordedEvents):
        def __call__(self, event, **fields):
            super().__call__(event, **fields)
            if event == "waiting for locks":
                warehouse18.run(f"UPDATE {manifest.staging} SET v = 'other'")
                pipe.audit(manifest, PRESENT)
                session.rollback()

    with (
        reader(warehouse18, "SELECT count(*) FROM a.t") as session,
        pytest.raises(Superseded, match="audited again"),
    ):
        pipe.publish(manifest, log=Meanwhile())
    assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'other'") == 0


def test_a_table_staged_by_others_stays_as_it_was_accepted(source18, warehouse18):
    """A retry does not take the report of an audit for what stands in the table by now."""
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        "CREATE SCHEMA work; CREATE TABLE work.batch (id bigint, ts timestamptz, v text);"
        "INSERT INTO work.batch VALUES (1, '2013-01-01Z', 'a')"
    )
    load_id, area = str(uuid7()), pipe.audits()

    def registered():
        return area.register(
            load_id=load_id,
            run=run_info(load_id),
            stream=pipe.stream,
            kind=Kind.EVENTS,
            staged=TableName("work", "batch"),
            target=pipe.target,
            target_conn_id="warehouse",
            interval=Interval(JANUARY, FEBRUARY, "data interval", moves_watermark=True),
            partition=MONTHLY,
            keys=(),
            timezone="UTC",
            store="memory",
            audited_rows=1,
        )

    report = {"verdict": "passed", "rows": 1, "load_id": "by hand"}
    assert area.accept(registered(), report).audited is not None
    warehouse18.run("UPDATE work.batch SET v = 'b'")
    with pytest.raises(ContractError, match="were changed, added or deleted"):
        pipe.publish(area.accept(registered(), report))
    # Audited anew, it is accepted as it is.
    assert pipe.publish(area.accept(registered(), report | {"load_id": "again"})).rows_inserted == 1
    assert warehouse18.value("SELECT v FROM a.t") == "b"
