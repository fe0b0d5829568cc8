"""append: rows are added once, and a window that is loaded again replaces what it had added."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_etl_provider.core.dead_letters import DeadLimits
from airflow_etl_provider.core.errors import CatalogError, ConfigurationError, ContractError
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.request import OnConversionError
from tests.builders import FEBRUARY, JANUARY, MARCH, Pipeline, fill

APPEND = Strategy.APPEND


def logs(source, warehouse, column: str = "", **changes: Any) -> Pipeline:
    source.run("CREATE TABLE t (id bigint, ts timestamptz NOT NULL, v text)")
    warehouse.run(
        f"CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v text {column})"
    )
    fill(source, JANUARY, MARCH, 60)
    return Pipeline(source, warehouse, partition=None, **changes)


def count(pipe) -> int:
    found: int = pipe.warehouse.value("SELECT count(*) FROM a.t")
    return found


def test_windows_add_up_and_a_retry_adds_nothing(source, warehouse):
    pipe = logs(source, warehouse)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    pipe.publish(manifest, strategy=APPEND)
    assert pipe.publish(manifest, strategy=APPEND).already
    pipe.load(FEBRUARY, MARCH, options={"strategy": APPEND})
    assert pipe.rows() == pipe.source_rows()


def test_a_window_that_was_appended_before_is_refused(source, warehouse):
    pipe = logs(source, warehouse)
    pipe.load(JANUARY, FEBRUARY, options={"strategy": APPEND})
    before = pipe.picture()
    with pytest.raises(ContractError, match="twice") as raised:
        pipe.load(JANUARY, FEBRUARY, options={"strategy": APPEND})
    assert "load_id_column" in str(raised.value)
    assert pipe.picture() == before


def test_more_rows_were_set_aside_than_appended(source18, warehouse18):
    """Whatever was added, a second load of the window would add it once more."""
    source18.run("CREATE TABLE t (id text, ts timestamptz NOT NULL)")
    source18.run(
        "INSERT INTO t SELECT CASE WHEN i > 2 THEN 'no number' ELSE i::text END, '2013-01-10Z'"
        " FROM generate_series(1, 6) AS i"
    )
    warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id int, ts timestamptz NOT NULL)")
    pipe = Pipeline(
        source18,
        warehouse18,
        partition=None,
        options={
            "on_conversion_error": OnConversionError.QUARANTINE,
            "dead_limits": DeadLimits(max_share=1.0),
        },
    )
    assert pipe.load(JANUARY, FEBRUARY, options={"strategy": APPEND}).rows_inserted == 2
    with pytest.raises(ContractError, match="twice"):
        pipe.load(JANUARY, FEBRUARY, options={"strategy": APPEND})
    assert count(pipe) == 2


@pytest.mark.parametrize("kind", ["uuid", "text NOT NULL"])
def test_with_the_load_id_a_window_is_replaced(source, warehouse, kind):
    pipe = logs(source, warehouse, f", load_id {kind}")
    options = {"strategy": APPEND, "load_id_column": "load_id"}
    told: dict[str, Any] = {"options": options, "filled_by_publish": ("load_id",)}
    pipe.load(JANUARY, FEBRUARY, **told)
    pipe.load(FEBRUARY, MARCH, **told)
    source.run("UPDATE t SET v = 'mended' WHERE ts < '2013-02-01Z'")
    done = pipe.load(JANUARY, FEBRUARY, **told)
    assert done.rows_deleted == done.rows_inserted
    assert count(pipe) == 60
    assert warehouse.value("SELECT count(DISTINCT load_id) FROM a.t") == 2
    assert warehouse.value("SELECT count(*) FROM a.t WHERE v = 'mended'") == done.rows_inserted
    assert (
        warehouse.value(
            "SELECT count(*) FROM a.t JOIN etl.loads AS l ON l.load_id::text = t.load_id::text AND l.state = 'published'"
        )
        == 60
    )


def test_a_wider_window_replaces_all_it_holds_and_a_narrower_one_is_refused(source18, warehouse18):
    pipe = logs(source18, warehouse18, ", load_id uuid")
    told: dict[str, Any] = {"options": {"strategy": APPEND, "load_id_column": "load_id"}}
    pipe.load(JANUARY, FEBRUARY, **told)
    pipe.load(JANUARY, MARCH, **told)
    assert count(pipe) == 60
    with pytest.raises(ContractError, match="reaches beyond it"):
        pipe.load(JANUARY, FEBRUARY, **told)
    assert count(pipe) == 60


def test_snapshots_add_a_copy_for_each_run_and_one_for_a_cleared_one(source18, warehouse18):
    pipe = logs(source18, warehouse18, ", load_id uuid", kind=Kind.SNAPSHOTS, cursor=None)
    told: dict[str, Any] = {"options": {"strategy": APPEND, "load_id_column": "load_id"}}
    pipe.load(**told)
    pipe.load(run_id="monday", **told)
    pipe.load(run_id="monday", **told)
    assert count(pipe) == 120
    without: dict[str, Any] = {"options": {"strategy": APPEND}}
    with pytest.raises(ContractError, match="twice"):
        pipe.load(run_id="monday", **without)


@pytest.mark.parametrize(
    ("column", "error", "word"),
    [("load_it", CatalogError, "load_id"), ("id", ContractError, "bigint")],
)
def test_a_column_that_holds_no_load_id_is_refused(source18, warehouse18, column, error, word):
    pipe = logs(source18, warehouse18, ", load_id uuid")
    with pytest.raises(error, match=word):
        pipe.load(JANUARY, FEBRUARY, options={"strategy": APPEND, "load_id_column": column})


def test_entities_are_refused(source18, warehouse18):
    pipe = logs(source18, warehouse18, kind=Kind.ENTITIES, keys=("id",))
    with pytest.raises(ConfigurationError, match="scd2"):
        pipe.load(JANUARY, FEBRUARY, options={"strategy": APPEND})
