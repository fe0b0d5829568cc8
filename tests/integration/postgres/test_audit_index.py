"""The unique index that proves the keys of a batch is the one that the partition needs anyway."""

from __future__ import annotations

import pytest

from airflow_etl_provider.postgres import audit
from airflow_etl_provider.quality.report import Judged
from airflow_etl_provider.quality.suite import parse_suite
from tests.builders import FEBRUARY, JANUARY, MARCH, fill, simple

UNIQUE = parse_suite(
    [{"type": "expect_compound_columns_to_be_unique", "kwargs": {"column_list": ["ts", "id"]}}]
)


@pytest.fixture(autouse=True)
def every_batch_is_large(monkeypatch):
    monkeypatch.setattr(audit, "INDEX_ROWS", 1)


def judged(pipe, manifest) -> Judged:
    area = pipe.audits()
    return area.judge(
        manifest.staging, UNIQUE.expectations, area.columns(manifest.staging), manifest=manifest
    )


def indexes(warehouse, table):
    return warehouse.run(
        "SELECT c.oid::bigint FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE i.indrelid = %s::regclass AND i.indisunique",
        (str(table),),
    )


def test_the_index_that_proved_the_keys_becomes_the_partitions(source, warehouse):
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 50)
    manifest = pipe.extract(JANUARY, FEBRUARY)
    assert manifest.direct
    assert judged(pipe, manifest).results[0].success
    built = indexes(warehouse, manifest.staging)
    assert len(built) == 1
    pipe.publish(pipe.waive(manifest))
    assert indexes(warehouse, "a.t_2013_01") == built
    assert pipe.rows() == pipe.source_rows()


def test_it_is_built_anew_where_the_table_was_given_another_key_meanwhile(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 50)
    manifest = pipe.extract(JANUARY, FEBRUARY)
    judged(pipe, manifest)
    warehouse18.run("ALTER TABLE a.t DROP CONSTRAINT t_pkey, ADD CONSTRAINT t_key UNIQUE (ts, v)")
    pipe.publish(pipe.waive(manifest))
    assert (
        warehouse18.value(
            "SELECT string_agg(pg_get_constraintdef(oid), ';') FROM pg_constraint"
            " WHERE conrelid = 'a.t_2013_01'::regclass AND contype IN ('p', 'u')"
        )
        == "UNIQUE (ts, v)"
    )
    assert pipe.rows() == pipe.source_rows()


def test_an_index_that_only_the_audit_needs_does_not_reach_the_partition(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 50)
    manifest = pipe.extract(JANUARY, FEBRUARY)
    area = pipe.audits()
    by_id = parse_suite([{"type": "expect_column_values_to_be_unique", "kwargs": {"column": "id"}}])
    columns = area.columns(manifest.staging)
    found = area.judge(manifest.staging, by_id.expectations, columns, manifest=manifest)
    assert found.results[0].success
    assert len(indexes(warehouse18, manifest.staging)) == 1
    pipe.publish(pipe.waive(manifest))
    assert warehouse18.value(
        "SELECT string_agg(pg_get_indexdef(indexrelid), ';') FROM pg_index WHERE indrelid = 'a.t_2013_01'::regclass"
    ).endswith("(id, ts)")


def test_duplicates_are_counted_and_leave_no_index(source18, warehouse18):
    pipe = simple(source18, warehouse18, columns=("id", "ts", "v"))
    source18.run("ALTER TABLE t DROP CONSTRAINT t_pkey")
    fill(source18, JANUARY, FEBRUARY, 50)
    source18.run("INSERT INTO t SELECT * FROM t WHERE id < 4")
    manifest = pipe.extract(JANUARY, FEBRUARY)
    found = judged(pipe, manifest).results[0]
    assert (found.success, found.unexpected_count, found.element_count) == (False, 6, 53)
    assert indexes(warehouse18, manifest.staging) == []


def test_a_batch_of_several_partitions_is_proven_too(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, MARCH, 80)
    manifest = pipe.extract(JANUARY, MARCH)
    assert not manifest.direct
    assert judged(pipe, manifest).results[0].success
    assert len(indexes(warehouse18, manifest.staging)) == 1
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()
