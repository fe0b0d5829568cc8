"""A manifest survives XCom; states and strategies are what the design says."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_etl_provider.core.errors import ConfigurationError, EtlError, ShrinkBrake, StateError
from airflow_etl_provider.core.load import (
    Column,
    Kind,
    LoadState,
    Manifest,
    PartitionRange,
    Strategy,
    Transformed,
)
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.core.publish import Facts, PublishOptions, brake, choose_strategy
from airflow_etl_provider.core.window import FULL, Nulls, Window

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=30)
maybe = st.none() | text
identifier = text.filter(lambda t: 0 < len(t.encode()) <= 63)
tables = st.builds(TableName, identifier, identifier)
MONTH = Window("2013-01-01", "2013-02-01", "date")
columns = st.lists(st.builds(Column, text, text, maybe, maybe), max_size=4).map(tuple)
transforms = st.builds(
    Transformed,
    task_id=text,
    clear_number=st.integers(0, 9),
    how=text,
    staging=tables,
    columns=columns,
    rows=st.integers(0, 2**62),
    bytes=st.integers(0, 2**62),
    direct=st.booleans(),
    transport=maybe,
    checksum=maybe,
    set_aside=st.integers(0, 2**62),
    reads=st.lists(st.tuples(text, text), max_size=2).map(tuple),
    replaced=st.lists(tables, max_size=2).map(tuple),
)

manifests = st.builds(
    Manifest,
    load_id=text,
    stream=st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,99}", fullmatch=True),
    kind=st.sampled_from(Kind),
    target_conn_id=text,
    target=tables,
    staging=tables,
    source_conn_id=maybe,
    source=maybe,
    source_datasets=st.lists(st.tuples(text, text), max_size=2).map(tuple),
    window=st.just(FULL)
    | st.builds(Window, maybe, maybe, text, st.sampled_from(["[)", "(]"]), st.sampled_from(Nulls)),
    cursor=maybe,
    columns=columns,
    keys=st.lists(text, max_size=3).map(tuple),
    partition_column=maybe,
    partition=st.none()
    | st.builds(
        PartitionSpec, text, st.sampled_from(Every), st.sampled_from(["UTC", "Asia/Tokyo"])
    ),
    partitions=st.lists(st.builds(PartitionRange, text, text, text), max_size=3).map(tuple),
    direct=st.booleans(),
    moves_watermark=st.booleans(),
    rows=st.integers(0, 2**62),
    bytes=st.integers(0, 2**62),
    snapshot_at=st.datetimes(timezones=st.just(UTC)),
    transport=maybe,
    checksum=maybe,
    null_rows=st.integers(0, 2**62),
    slices=st.integers(1, 1000),
    report=st.none() | st.dictionaries(text, text, max_size=3),
    transformed=st.none() | transforms,
)


@few
@given(manifests)
def test_a_manifest_survives_json(manifest):
    assert Manifest.from_json(json.loads(json.dumps(manifest.as_json()))) == manifest


@few
@given(manifests)
def test_what_was_extracted_is_told_whatever_was_made_of_it(manifest):
    """The batch as extract staged it has its own table, columns and counts, and all tables of the load are known."""
    extracted, made = manifest.extracted, manifest.transformed
    assert extracted.extracted == extracted
    if made is None:
        assert (extracted, manifest.earlier_tables) == (manifest, ())
        return
    assert (extracted.staging, extracted.columns, extracted.rows) == (
        made.staging,
        made.columns,
        made.rows,
    )
    assert extracted.window == manifest.window
    assert manifest.earlier_tables == (made.staging, *made.replaced)


@few
@given(manifests, st.data())
def test_a_manifest_without_a_field_is_a_clear_error(manifest, data):
    whole = manifest.as_json()
    # Loads that were staged before there were transforms and dead letters say nothing of them.
    later = {"transformed", "rows_dead", "replays", "audited"}
    field = data.draw(st.sampled_from(sorted(set(whole) - later)))
    del whole[field]
    with pytest.raises((ConfigurationError, StateError)):
        Manifest.from_json(whole)


@few
@given(
    manifests,
    st.data(),
    st.integers() | st.lists(st.integers(), min_size=1, max_size=2) | st.just({"x": 1}),
)
def test_a_manifest_with_a_wrong_field_never_ends_in_a_raw_error(manifest, data, damage):
    """XComs can be edited: whatever stands there, the answer is ours."""
    whole = manifest.as_json()
    whole[data.draw(st.sampled_from(sorted(set(whole) - {"load_id"})))] = damage
    with suppress(EtlError):
        Manifest.from_json(whole)


@pytest.mark.parametrize(
    "data", [None, "x", [], 7, {}, {"load_id": "x", "version": 0}, {"load_id": "x", "version": 1}]
)
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises((ConfigurationError, StateError)):
        Manifest.from_json(data)


def test_finished_states_are_those_that_are_never_resumed():
    assert {state for state in LoadState if state.is_finished} == {
        LoadState.PUBLISHED,
        LoadState.REJECTED,
        LoadState.SUPERSEDED,
        LoadState.ROLLED_BACK,
        LoadState.ABANDONED,
    }


def batch(**changes):
    whole = Manifest(
        load_id="x",
        stream="s",
        kind=Kind.EVENTS,
        target_conn_id="c",
        target=TableName("a", "t"),
        staging=TableName("etl_staging", "s_1"),
        source_conn_id=None,
        source=None,
        source_datasets=(),
        window=MONTH,
        cursor="d",
        columns=(),
        keys=(),
        partition_column="d",
        partition=None,
        partitions=(PartitionRange("t_1", "2013-01-01", "2013-02-01"),),
        direct=True,
        moves_watermark=True,
        rows=1,
        bytes=1,
        snapshot_at=datetime(2013, 2, 1, tzinfo=UTC),
    )
    return replace(whole, **changes)


@pytest.mark.parametrize(
    ("asked", "changes", "expected"),
    [
        (Strategy.AUTO, {}, Strategy.SWAP),
        (Strategy.SWAP, {}, Strategy.SWAP),
        (Strategy.AUTO, {"partitions": ()}, Strategy.DELETE_INSERT),
        (Strategy.DELETE_INSERT, {"partitions": ()}, Strategy.DELETE_INSERT),
        (Strategy.DELETE_INSERT, {"kind": Kind.ENTITIES, "partitions": ()}, None),
        (Strategy.DELETE_INSERT, {"kind": Kind.SNAPSHOTS, "partitions": ()}, None),
        (Strategy.SWAP, {"partitions": ()}, None),
        (Strategy.REPLACE, {}, None),
        (Strategy.REPLACE, {"partitions": ()}, None),
        (
            Strategy.AUTO,
            {"kind": Kind.SNAPSHOTS, "window": FULL, "partitions": ()},
            Strategy.REPLACE,
        ),
        (
            Strategy.REPLACE,
            {"kind": Kind.SNAPSHOTS, "window": FULL, "partitions": ()},
            Strategy.REPLACE,
        ),
        (Strategy.SWAP, {"kind": Kind.SNAPSHOTS, "window": FULL, "partitions": ()}, None),
        (Strategy.AUTO, {"kind": Kind.EVENTS, "window": FULL, "partitions": ()}, Strategy.REPLACE),
        (Strategy.AUTO, {"kind": Kind.ENTITIES, "window": FULL, "partitions": ()}, Strategy.MERGE),
        (Strategy.AUTO, {"kind": Kind.ENTITIES, "partitions": ()}, Strategy.MERGE),
        (Strategy.AUTO, {"kind": Kind.SNAPSHOTS, "partitions": ()}, None),
        (Strategy.REPLACE, {"window": Window(None, "2013-02-01", "date"), "partitions": ()}, None),
        (Strategy.REPLACE, {"window": Window("2013-02-01", None, "date"), "partitions": ()}, None),
    ],
)
def test_a_strategy_never_drops_what_was_not_read(asked, changes, expected):
    """Promise 4: whole partitions are swapped, whole tables are replaced, the rest is refused with a remedy."""
    if expected is None:
        with pytest.raises(ConfigurationError) as raised:
            choose_strategy(asked, batch(**changes))
        assert raised.value.remedy
    else:
        assert choose_strategy(asked, batch(**changes))[0] is expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.EVENTS, Strategy.DELETE_INSERT),
        (Kind.SNAPSHOTS, Strategy.DELETE_INSERT),
        (Kind.ENTITIES, Strategy.MERGE),
    ],
)
def test_a_full_read_of_a_partitioned_table(kind, expected):
    """``replace`` takes plain tables only."""
    full = batch(kind=kind, window=FULL, partitions=())
    assert choose_strategy(Strategy.AUTO, full, Facts(partitioned=True))[0] is expected


@pytest.mark.parametrize(
    ("before", "lost", "share", "stops"),
    [
        (0, 0, 0.0, False),
        (10, 0, 0.0, False),
        (10, 1, 0.0, True),
        (10, 5, 0.5, False),
        (10, 6, 0.5, True),
        (10, 10, 1.0, False),
        (1, 1, 0.99, True),
    ],
)
def test_the_brake_stops_above_its_share(before, lost, share, stops):
    options = PublishOptions(max_shrink=share)
    if stops:
        with pytest.raises(ShrinkBrake, match=f"{lost} of {before}"):
            brake(batch(), "partition x", before=before, lost=lost, options=options)
    else:
        brake(batch(), "partition x", before=before, lost=lost, options=options)


@pytest.mark.parametrize(
    "damage",
    [
        {"source_datasets": ["one"]},
        {"source_datasets": "x"},
        {"window": {"low": 1}},
        {"window": None},
        {"columns": [{"name": "a"}]},
        {"partitions": ["p"]},
        {"target": 7},
        {"staging": ""},
        {"snapshot_at": "yesterday"},
        {"kind": "event"},
        {"transformed": {}},
        {"transformed": {"staging": "a.b", "columns": [], "reads": [], "replaced": []}},
        {"transformed": "sql"},
    ],
)
def test_a_damaged_manifest_is_refused_by_name(damage):
    """An XCom edited by hand ends in one clear error, not in an IndexError."""
    with pytest.raises(EtlError):
        Manifest.from_json({**batch().as_json(), **damage})
