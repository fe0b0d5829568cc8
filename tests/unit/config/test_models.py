"""Models of a pipeline: values, defaults and rules between them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from airflow_etl_provider.config.files import parse_pipeline
from airflow_etl_provider.config.models import PRESETS, Pipeline, deep_merged
from airflow_etl_provider.core.errors import ConfigurationError

EVENTS: dict[str, Any] = {
    "pipeline": "flights",
    "stream": "flights",
    "kind": "events",
    "schedule": "@monthly",
    "start_date": "2013-01-01",
    "catchup": True,
    "source": {"conn_id": "s", "table": "public.flights", "cursor": "time_hour"},
    "target": {
        "conn_id": "t",
        "table": "analytics.flights",
        "partition": {"column": "time_hour", "every": "month"},
    },
}
SNAPSHOT: dict[str, Any] = {
    "pipeline": "planes",
    "stream": "planes",
    "kind": "snapshots",
    "source": {"conn_id": "s", "table": "public.planes"},
    "target": {"conn_id": "t", "table": "analytics.planes"},
}
ENTITIES = deep_merged(
    SNAPSHOT, {"kind": "entities", "target": {"keys": ["tailnum"], "strategy": "replace"}}
)


def refused(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse_pipeline(data, folder=Path("nowhere"))
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    "data", [EVENTS, SNAPSHOT, ENTITIES], ids=["events", "snapshots", "entities"]
)
def test_each_kind_of_stream_has_a_shape_that_works(data: dict[str, Any]) -> None:
    """Few words are enough for each kind."""
    pipeline = parse_pipeline(data, folder=Path("nowhere"))
    assert Pipeline.model_validate(pipeline.model_dump()) == pipeline


@pytest.mark.parametrize(
    ("data", "change", "expected"),
    [
        (EVENTS, {"source": {"cursor": None}}, "source.cursor: is missing, so nothing tells"),
        (EVENTS, {"source": {"window": "full"}}, "source.window: full does not fit events"),
        (EVENTS, {"source": {"cursor": "a"}}, "target.partition.column: is 'time_hour', and the cursor is 'a'"),
        (EVENTS, {"source": {"query": "SELECT 1"}}, "source.table: stands beside a query; write exactly one"),
        (EVENTS, {"source": {"table": None}}, "source: names nothing to read; write exactly one of table"),
        (EVENTS, {"source": {"table": None, "query": "SELECT x WHERE c >= :low"}},
         "source.query: does not use :high, so every run would read the same rows"),
        (EVENTS, {"source": {"table": None, "query": "SELECT x::low, y::high"}},
         "source.query: does not use :low and :high"),
        (EVENTS, {"source": {"query_file": "x.sql"}}, "source.query_file: x.sql cannot be read"),
        (EVENTS, {"source": {"columns": ["carrier"]}}, "source.columns: lacks 'time_hour', which target.partition"),
        (EVENTS, {"source": {"columns": []}}, "source.columns: is an empty list; list columns"),
        (EVENTS, {"source": {"columns": ["time_hour", "a", "a"]}}, "source.columns: names 'a' twice"),
        (EVENTS, {"target": {"strategy": "replace"}}, "target.strategy: replace would leave only the last interval"),
        (EVENTS, {"target": {"strategy": "swap", "partition": None}}, "target.partition: is missing, so swap"),
        (EVENTS, {"target": {"lock_deadline": "PT7H"}}, "target.lock_deadline: 7:00:00 is not shorter than "),
        (EVENTS, {"target": {"lock_budget": 9, "lock_deadline": 8}}, "target.lock_deadline: 0:00:08 is shorter"),
        (EVENTS, {"target": {"audit": "none"}, "quality": [{"type": "x"}]}, "target.audit: none would publish rows"),
        (EVENTS, {"schedule": None}, "catchup: has no schedule to follow; add a schedule"),
        (EVENTS, {"start_date": None}, "catchup: has no date to begin with; add start_date"),
        (EVENTS, {"quality": {"suite": "a", "expectations": []}}, "quality.suite: stands beside expectations"),
        (SNAPSHOT, {"source": {"cursor": "x"}}, "source.cursor: has no use for snapshots, whose table is read whole"),
        (SNAPSHOT, {"source": {"window": "interval"}}, "source.window: interval does not fit snapshots"),
        (SNAPSHOT, {"target": {"partition": {"column": "a", "every": "day"}}}, "target.partition: has no use for"),
        (SNAPSHOT, {"target": {"strategy": "swap"}}, "target.strategy: swap exchanges partitions, which snapshots"),
        (SNAPSHOT, {"schedule": "@daily", "catchup": True, "start_date": "2013-01-01"},
         "catchup: would read the whole source once per past interval"),
        (SNAPSHOT, {"source": {"table": None, "query": "SELECT :low"}}, "source.query: uses :low, which a full"),
        (SNAPSHOT, {"source": {"table": 'a."b'}}, "source.table: not a table name"),
        (SNAPSHOT, {"target": {"keys": ["x" * 64]}}, "target.keys[0]: identifier of 64 bytes is longer"),
        (SNAPSHOT, {"tags": ["x" * 101]}, "tags[0]: a tag of 101 characters; use 1 to 100"),
        (ENTITIES, {"target": {"keys": []}}, "target.keys: is missing: entities are told apart by a key"),
        (ENTITIES, {"target": {"strategy": "auto"}}, "target.strategy: auto never replaces a whole table"),
        (ENTITIES, {"source": {"window": "interval", "cursor": "x"}}, "source.window: interval would need rows"),
    ],
)  # fmt: skip
def test_values_that_contradict_each_other_are_refused(
    data: dict[str, Any], change: dict[str, Any], expected: str
) -> None:
    """The message names the key to change and what to write into it."""
    found = refused(deep_merged(data, change))
    assert any(line.startswith(expected) for line in found), found


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"stream": "a"}, {"stream": "a"}, "streams[1].stream: 'a' is also the id of streams[0]"),
        ({"stream": "a.b"}, {"stream": "a_b"}, "streams[1].stream: 'a_b' and 'a.b' would both be task group 'a_b'"),
        ({"stream": "a"}, {"stream": "b", "target": {"table": 'analytics."planes"'}},
         "streams[1].target.table: analytics.planes is also the target of stream 'a'"),
    ],
)  # fmt: skip
def test_streams_of_one_pipeline_do_not_collide(
    one: dict[str, Any], other: dict[str, Any], expected: str
) -> None:
    """Two streams that share an id, a task group or a target would overwrite each other."""
    shared = {key: value for key, value in SNAPSHOT.items() if key != "stream"}
    found = refused(shared | {"streams": [one, other]})
    assert any(line.startswith(expected) for line in found), found


def test_several_streams_may_have_their_own_kinds() -> None:
    """A pipeline of intervals and snapshots runs one at a time unless told otherwise."""
    shared = {"pipeline": "all", "schedule": "@monthly"}
    streams = [
        {key: value for key, value in data.items() if key in ("stream", "kind", "source", "target")}
        for data in (EVENTS, SNAPSHOT)
    ]
    assert Pipeline.model_validate(shared | {"streams": streams}).active_runs == 1
    assert (
        Pipeline.model_validate(shared | {"streams": streams, "max_active_runs": 9}).active_runs
        == 9
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (30, 30),
        (0.5, 0.5),
        ("PT30S", 30),
        ("PT10M", 600),
        ("P1D", 86_400),
        (timedelta(minutes=1), 60),
    ],
)
def test_durations_are_seconds_or_iso_8601(written: object, meant: float) -> None:
    """What looks like a clock or like words is refused rather than guessed at."""
    pipeline = Pipeline.model_validate(SNAPSHOT | {"retry_delay": written})
    assert pipeline.retry_delay == timedelta(seconds=meant)


@pytest.mark.parametrize("written", ["30", "10:00", "1 day", "PT", True, None, 0, -1, [1]])
def test_other_durations_are_refused(written: object) -> None:
    """Zero and less are no duration either."""
    with pytest.raises(ValidationError):
        Pipeline.model_validate(SNAPSHOT | {"retry_delay": written})


def test_a_time_of_day_in_a_date_is_kept() -> None:
    """An offset in the text wins over the pipeline's zone."""
    data = SNAPSHOT | {"timezone": "Europe/Paris", "start_date": "2013-01-01T06:00:00"}
    assert str(Pipeline.model_validate(data).starts_at) == "2013-01-01 06:00:00+01:00"
    data = SNAPSHOT | {"timezone": "Europe/Paris", "start_date": "2013-01-01T06:00:00Z"}
    assert str(Pipeline.model_validate(data).starts_at) == "2013-01-01 06:00:00+00:00"


def test_a_pipeline_is_a_value() -> None:
    """It cannot be changed after it was checked."""
    pipeline = Pipeline.model_validate(SNAPSHOT)
    with pytest.raises(ValidationError, match="frozen"):
        pipeline.pipeline = "other"


@given(
    st.sampled_from([*PRESETS, "5 4 * * *", "*/5 * * * 1-5"]),
    st.sampled_from(["UTC", "Asia/Tokyo"]),
)
def test_schedules_keep_their_meaning(schedule: str, zone: str) -> None:
    """A preset is its cron expression; a cron expression is itself."""
    pipeline = Pipeline.model_validate(SNAPSHOT | {"schedule": schedule, "timezone": zone})
    assert pipeline.cron == PRESETS.get(schedule, schedule)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.sampled_from(sorted({*Pipeline.model_fields, *EVENTS, "unknown"})), json_values)
def test_no_value_escapes_explanation(key: str, value: object) -> None:
    """Any value at any key gives a pipeline or a configuration error, never another exception."""
    text = ""
    try:
        parse_pipeline(EVENTS | {key: value}, folder=Path("nowhere"))
    except ConfigurationError as error:
        text = str(error)
    assert not text or "\n  - " in text
