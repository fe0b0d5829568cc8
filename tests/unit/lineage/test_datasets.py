"""Lineage of each task, from values alone."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.serde import Serde

from airflow_etl_provider.core.load import (
    Column,
    Kind,
    Manifest,
    PartitionRange,
    Published,
    PublishedPartition,
    Strategy,
    StreamPosition,
)
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.window import FULL, Window
from airflow_etl_provider.lineage.datasets import (
    Lineage,
    extract_lineage,
    publish_lineage,
    validate_lineage,
)
from airflow_etl_provider.quality.report import ExpectationResult, Report
from airflow_etl_provider.quality.suite import Severity
from tests.unit.lineage.facets import check_facet

NOON = datetime(2013, 2, 1, 12, tzinfo=UTC)
SOURCE = ("postgres://source:5432", "shop.public.orders")
TARGET = ("postgres://warehouse:5432", "dwh.a.orders")
MANIFEST = Manifest(
    load_id="01a1fb68-0490-73ab-80d6-f50624ed5825",
    stream="orders",
    kind=Kind.EVENTS,
    target_conn_id="dwh",
    target=TableName("a", "orders"),
    staging=TableName("etl_staging", "orders_f50624ed5825_1"),
    source_conn_id="shop",
    source="public.orders",
    source_datasets=(SOURCE,),
    window=Window("2013-01-01", "2013-02-01", "date"),
    cursor="day",
    columns=(Column("id", "bigint", source="id"), Column("day", "date", source="day")),
    keys=(),
    partition_column="day",
    partition=None,
    partitions=(PartitionRange("orders_2013_01", "2013-01-01", "2013-02-01"),),
    direct=True,
    moves_watermark=True,
    rows=31,
    bytes=620,
    snapshot_at=NOON,
)
PUBLISHED = Published(
    load_id=MANIFEST.load_id,
    stream="orders",
    target=MANIFEST.target,
    strategy=Strategy.SWAP,
    window=MANIFEST.window,
    rows_inserted=31,
    rows_updated=0,
    rows_deleted=30,
    rows_unchanged=0,
    partitions=(
        PublishedPartition(
            name="a.orders_2013_01",
            bound="FROM ('2013-01-01') TO ('2013-02-01')",
            rows=31,
            bytes=8192,
            rows_before=30,
            previous=None,
            lock_ms=3.0,
        ),
    ),
    lock_ms=3.0,
    position=StreamPosition("orders", "2013-02-01", "date", 1, MANIFEST.load_id, NOON),
)


def report(*results: ExpectationResult, rows: int | None = 31) -> Report:
    return Report(
        load_id=MANIFEST.load_id,
        engine="great_expectations",
        table="etl_staging.orders_f50624ed5825_1",
        rows=rows,
        results=results,
        started_at=NOON,
        finished_at=NOON,
    )


def result(severity: Severity, success: bool = True, **given: Any) -> ExpectationResult:
    return ExpectationResult(
        type="expect_column_values_to_be_unique",
        kwargs={"column": "id"},
        severity=severity,
        success=success,
        **given,
    )


def facets(dataset: InputDataset | OutputDataset) -> dict[str, Any]:
    """All facets as they stand in an event."""
    written = Serde.to_dict(dataset)
    return {
        name: facet
        for group in ("facets", "inputFacets", "outputFacets")
        for name, facet in (written.get(group) or {}).items()
    }


def everything() -> list[Lineage]:
    failed = result(Severity.WARNING, False, column="id", unexpected_count=3)
    return [
        extract_lineage(MANIFEST),
        validate_lineage(MANIFEST.columns, report(failed, result(Severity.INFO)), TARGET),
        publish_lineage(MANIFEST, PUBLISHED, TARGET),
    ]


@pytest.mark.parametrize("lineage", everything(), ids=["extract", "validate", "publish"])
def test_every_facet_fits_openlineages_own_class(lineage: Lineage) -> None:
    """Consumers drop, or choke on, what their schema does not know."""
    found = [facets(dataset) for dataset in (*lineage.inputs, *lineage.outputs)]
    assert found
    for dataset in found:
        for name, facet in dataset.items():
            check_facet(name, facet)


def test_before_anything_is_known_nothing_is_said() -> None:
    """A task that failed early has no manifest, no report, no dataset."""
    assert extract_lineage(None) == Lineage()
    assert validate_lineage((), None, None) == Lineage()
    assert validate_lineage(MANIFEST.columns, None, TARGET) == Lineage()
    assert publish_lineage(None, None, None) == Lineage()
    assert publish_lineage(MANIFEST, PUBLISHED, None) == Lineage()


def test_staging_is_never_a_dataset() -> None:
    """It is private and gone after publish; a lineage graph would fill with dead tables."""
    for lineage in everything():
        for dataset in (*lineage.inputs, *lineage.outputs):
            assert "etl_staging" not in Serde.to_json(dataset)


def test_a_whole_source_has_no_subset() -> None:
    """A full read states no condition."""
    whole = dataclasses.replace(MANIFEST, window=FULL, cursor=None)
    (source,) = extract_lineage(whole).inputs
    assert "subset" not in facets(source)
    assert facets(source)["inputStatistics"]["rowCount"] == 31


def test_a_window_without_a_low_end_is_valid() -> None:
    """The first load by watermark reads from the start: no comparison with nothing."""
    first = dataclasses.replace(MANIFEST, window=Window(None, "2013-02-01", "date"))
    (source,) = extract_lineage(first).inputs
    for name, facet in facets(source).items():
        check_facet(name, facet)
    assert "None" not in Serde.to_json(source)
    condition = facets(source)["subset"]["inputCondition"]
    assert condition.get("comparison") == "LESS_THAN", "only the end that there is"


def test_a_window_that_includes_its_end_says_so() -> None:
    """Types without a successor have windows (low, high]."""
    first = dataclasses.replace(MANIFEST, window=Window("1.5", "2.5", "numeric", "(]"))
    (source,) = extract_lineage(first).inputs
    condition = facets(source)["subset"]["inputCondition"]
    assert [condition[side]["comparison"] for side in ("left", "right")] == [
        "GREATER_THAN",
        "LESS_EQUAL_THAN",
    ]


def test_nothing_loaded_reads_nothing() -> None:
    """A watermark window that was empty before it began has no rows and no condition to show."""
    nothing = dataclasses.replace(
        MANIFEST,
        window=Window("2013-01-01", "2013-01-01", "date"),
        columns=(),
        rows=0,
        nothing=True,
    )
    for dataset in extract_lineage(nothing).inputs:
        for name, facet in facets(dataset).items():
            check_facet(name, facet)
    assert publish_lineage(nothing, None, TARGET).outputs == []


@pytest.mark.parametrize(
    ("severity", "shown"),
    [(Severity.CRITICAL, "error"), (Severity.WARNING, "warn"), (Severity.INFO, "warn")],
)
def test_severities_are_openlineages(severity: Severity, shown: str) -> None:
    """It knows two: what fails a run, and what warns."""
    (guarded,) = validate_lineage(MANIFEST.columns, report(result(severity)), TARGET).inputs
    (assertion,) = facets(guarded)["dataQualityAssertions"]["assertions"]
    assert (assertion["severity"], assertion["success"]) == (shown, True)


def test_an_assertion_says_what_was_expected_and_what_was_found() -> None:
    """With counts and shares; a set of thousands of values is cut."""
    failed = ExpectationResult(
        type="expect_column_values_to_be_in_set",
        kwargs={"column": "id", "value_set": list(range(5000)), "mostly": 0.9},
        severity=Severity.CRITICAL,
        success=False,
        column="id",
        element_count=31,
        unexpected_count=3,
        unexpected_percent=9.6774,
    )
    several = result(Severity.INFO, column="id, day")
    (guarded,) = validate_lineage(MANIFEST.columns, report(failed, several), TARGET).inputs
    one, other = facets(guarded)["dataQualityAssertions"]["assertions"]
    assert (one["name"], one["column"]) == ("expect_column_values_to_be_in_set(id)", "id")
    assert one["actual"] == "3 of 31 rows (9.68 %)"
    assert one["expected"].startswith('{"value_set": [0, 1, 2, ')
    assert len(one["expected"]) == 501
    assert other.get("column") is None, "no column of the schema has that name"
    assert other["name"] == "expect_column_values_to_be_unique(id, day)"
    assert (other["actual"], other.get("expected")) == ("holds", None)


def test_values_of_rows_are_not_told() -> None:
    """The report holds samples of failing rows; lineage does not."""
    failed = result(
        Severity.CRITICAL,
        False,
        observed_value="xyzzy1",
        partial_unexpected_list=("xyzzy2",),
        exception=None,
    )
    (guarded,) = validate_lineage(MANIFEST.columns, report(failed), TARGET).inputs
    assert "xyzzy" not in Serde.to_json(guarded)


def test_an_uncounted_table_is_told_without_rows() -> None:
    """Counting may have failed by a timeout: the assertions are told all the same."""
    (guarded,) = validate_lineage(
        MANIFEST.columns, report(result(Severity.INFO), rows=None), TARGET
    ).inputs
    assert facets(guarded)["dataQualityMetrics"].get("rowCount") is None
    assert len(facets(guarded)["dataQualityAssertions"]["assertions"]) == 1


def test_a_table_staged_by_others_has_no_source() -> None:
    """Output without inputs and without made-up origins of columns."""
    alone = dataclasses.replace(MANIFEST, source=None, source_datasets=(), source_conn_id=None)
    lineage = publish_lineage(alone, PUBLISHED, TARGET)
    assert lineage.inputs == []
    (target,) = lineage.outputs
    assert "columnLineage" not in facets(target)
    assert facets(target)["version"]["datasetVersion"] == MANIFEST.load_id


def test_personal_data_is_shown_as_masked() -> None:
    """A renamed column points to its source, a hashed one says that its values were masked."""
    columns = (
        Column("number", "bigint", source="id"),
        Column("email", "text", source="mail", personal="hash"),
    )
    (target,) = publish_lineage(
        dataclasses.replace(MANIFEST, columns=columns), PUBLISHED, TARGET
    ).outputs
    fields = facets(target)["columnLineage"]["fields"]
    assert fields["number"]["inputFields"][0]["field"] == "id"
    assert "masking" not in fields["number"]["inputFields"][0]["transformations"][0]
    (masked,) = fields["email"]["inputFields"][0]["transformations"]
    assert (masked["masking"], masked["description"]) == (True, "hash")


def test_a_query_over_several_tables_has_several_inputs() -> None:
    """Nobody knows which column is made of which, and nobody says so."""
    query = dataclasses.replace(
        MANIFEST,
        source_datasets=(SOURCE, ("postgres://source:5432", "shop.public.customers")),
        columns=(Column("id", "bigint"), Column("day", "date")),
    )
    assert [d.name for d in extract_lineage(query).inputs] == [
        "shop.public.orders",
        "shop.public.customers",
    ]
    (target,) = publish_lineage(query, PUBLISHED, TARGET).outputs
    assert "columnLineage" not in facets(target)


def test_an_unpublished_batch_has_no_output() -> None:
    """It was read, so the input stands; nothing was written."""
    lineage = publish_lineage(MANIFEST, None, TARGET)
    assert [dataset.name for dataset in lineage.inputs] == ["shop.public.orders"]
    assert lineage.outputs == []


@pytest.mark.parametrize("strategy", [s for s in Strategy if s is not Strategy.AUTO])
def test_only_a_swap_overwrites(strategy: Strategy) -> None:
    """Everything else alters the table in place."""
    done = dataclasses.replace(PUBLISHED, strategy=strategy)
    (target,) = publish_lineage(MANIFEST, done, TARGET).outputs
    shown = facets(target)["lifecycleStateChange"]["lifecycleStateChange"]
    assert shown == ("OVERWRITE" if strategy is Strategy.SWAP else "ALTER")


def test_the_client_is_one_whose_classes_can_judge() -> None:
    """The judge itself: a wrong field, a missing one and a wrong type are found."""
    (source,) = extract_lineage(MANIFEST).inputs
    right = facets(source)["inputStatistics"]
    for wrong in ({**right, "rows": 1}, {**right, "rowCount": "many"}):
        with pytest.raises(AssertionError):
            check_facet("inputStatistics", wrong)
    schema = facets(source)["schema"]
    with pytest.raises(AssertionError):
        check_facet("schema", {**schema, "fields": [{"type": "text"}]})
    assert attrs.has(InputDataset)
