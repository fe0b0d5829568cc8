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
from airflow_etl_provider.config.models import PRESETS, Pipeline, Source, deep_merged
from airflow_etl_provider.core.columns import Treatment
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


INCREMENTAL = deep_merged(
    ENTITIES,
    {
        "source": {"cursor": "updated_at", "window": "watermark"},
        "target": {"strategy": "auto", "keys": []},
    },
)
ARRIVALS = deep_merged(EVENTS, {"catchup": False, "source": {"window": "watermark"}})
KEYED = deep_merged(INCREMENTAL, {"target": {"keys": ["tailnum"]}})
RENAMED = {
    "source": {"rename": {"time_hour": "at"}},
    "target": {"partition": {"column": "at", "every": "month"}},
}
CLOCK = {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "updated_at"}}
BOUNDED = "SELECT * FROM a WHERE c >= :low AND c < :high"
PARTITIONED = EVENTS | {"partitioned": True}


def query(text: str, **source: Any) -> dict[str, Any]:
    """A source that is a SELECT."""
    return {"source": {"table": None, "query": text, **source}}


def refused(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse_pipeline(data, folder=Path("nowhere"))
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("data", "change", "window"),
    [
        (EVENTS, {}, "interval"),
        (EVENTS, {"target": {"strategy": "swap"}}, "interval"),
        (EVENTS, {"target": {"strategy": "delete_insert", "partition": None}}, "interval"),
        (ARRIVALS, {}, "watermark"),
        (ARRIVALS, {"target": {"strategy": "delete_insert", "partition": None}}, "watermark"),
        (ARRIVALS, {"max_active_runs": 1, "source": {"lookback": "PT1H"}}, "watermark"),
        (ARRIVALS, {"source": {"lookback": 100}, "target": {"partition": None}}, "watermark"),
        (INCREMENTAL, {}, "watermark"),
        (INCREMENTAL, {"target": {"strategy": "merge", "keys": ["tailnum"]}}, "watermark"),
        (INCREMENTAL, {"target": {"partition": {"column": "built", "every": "year"}}}, "watermark"),
        (INCREMENTAL, {"source": {"window": "interval"}, "schedule": "@daily", "catchup": True,
                       "start_date": "2013-01-01", "max_active_runs": 8}, "interval"),
        (INCREMENTAL, {"source": {"window": "full"}}, "full"),
        (INCREMENTAL, {"source": {"window": "full", "cursor": None}}, "full"),
        (INCREMENTAL, {"source": {"columns": ["tailnum", "updated_at"]}}, "watermark"),
        (ENTITIES, {}, "full"),
        (ENTITIES, {"target": {"keys": []}}, "full"),
        (ENTITIES, {"target": {"strategy": "auto"}}, "full"),
        (ENTITIES, {"target": {"strategy": "merge", "partition": {"column": "built", "every": "year"}}}, "full"),
        (SNAPSHOT, {}, "full"),
        (SNAPSHOT, {"source": {"window": "full"}, "target": {"strategy": "replace"}}, "full"),
        (EVENTS, query(BOUNDED), "interval"),
        (EVENTS, query("SELECT * FROM flights"), "interval"),
        (EVENTS, query("-- all of them\n (WITH x AS (SELECT 1) SELECT * FROM x)"), "interval"),
        (EVENTS, query("{% if params.all %}SELECT 1{% else %}SELECT 2{% endif %}"), "interval"),
        (ARRIVALS, query(BOUNDED, lookback="PT1H"), "watermark"),
        (SNAPSHOT, query("SELECT ':low', \":high\" /* :low */ -- :high"), "full"),
        (SNAPSHOT, query("SELECT '\\' , :low"), "full"),  # which of the two it is, its database knows
        (SNAPSHOT, query("SELECT x::low"), "full"),
        (EVENTS, RENAMED, "interval"),
        (EVENTS, deep_merged(RENAMED, {"source": {"columns": ["time_hour", "carrier"]}}), "interval"),
        (EVENTS, {"source": {"personal": {"pilot": None, "phone": "drop"}}}, "interval"),
        (EVENTS, {"source": {"open_window": "clamp", "on_empty": "fail", "slice_rows": 1000, "shards": 2}}, "interval"),
        (EVENTS, {"source": {"slice_rows": 0, "row_security": "apply", "null_cursor": "fail"}}, "interval"),
        (KEYED, {"source": {"null_cursor": "include"}}, "watermark"),
        (KEYED, {"source": {"null_cursor": "sweep", "window": "interval"}}, "interval"),
        (KEYED, query("SELECT * FROM planes", null_cursor="sweep"), "watermark"),
        (KEYED, {"source": {"null_cursor": "sweep"}, "quality": [CLOCK | {"severity": "warning"}]}, "watermark"),
        (KEYED, {"source": {"null_cursor": "sweep"}, "quality": [CLOCK | {"kwargs": {"column": "updated_at", "mostly": 0.5}}]}, "watermark"),
        (KEYED, {"source": {"rename": {"tail": "tailnum"}, "personal": {"tail": "hash"}, "hash_conn_id": "k"}}, "watermark"),
        (KEYED, {"source": {"rename": {"tail": "tailnum", "tailnum": "old"}, "columns": ["tail", "tailnum", "updated_at"]}}, "watermark"),
        (KEYED, {"source": {"personal": {"updated_at": "drop"}}}, "watermark"),
        (KEYED, {"source": {"types": {"built": "date"}, "zero_dates": None}}, "watermark"),
        (PARTITIONED, {}, "interval"),
        (PARTITIONED, {"catchup": False, "start_date": None}, "interval"),
        # Facts about a source may be shared by streams that need not know them; nought is no lookback.
        (SNAPSHOT, {"source": {"settle_ignore": ["reporting"], "settle_delay": "P1D", "lookback": 0}}, "full"),
    ],
)  # fmt: skip
def test_each_kind_of_stream_has_shapes_that_work(
    data: dict[str, Any], change: dict[str, Any], window: str
) -> None:
    """Few words are enough for each kind, and every window and strategy that fits is taken."""
    pipeline = parse_pipeline(deep_merged(data, change), folder=Path("nowhere"))
    assert Pipeline.model_validate(pipeline.model_dump()) == pipeline
    assert Pipeline.model_validate(pipeline.model_dump(mode="json")) == pipeline
    assert pipeline.streams[0].window == window


@pytest.mark.parametrize(
    ("data", "change", "expected"),
    [
        (EVENTS, {"source": {"cursor": None}}, "source.cursor: is missing, so nothing tells"),
        (EVENTS, {"source": {"window": "full"}}, "source.window: full does not fit events"),
        (EVENTS, {"source": {"cursor": "a"}}, "target.partition.column: is 'time_hour', and the cursor is 'a'"),
        (EVENTS, {"source": {"query": "SELECT 1"}}, "source.table: stands beside a query; write exactly one"),
        (EVENTS, {"source": {"table": None}}, "source: names nothing to read; write exactly one of table"),
        (EVENTS, query("SELECT x WHERE c >= :low"),
         "source.query: uses :low and not :high, and a window has two ends; use both, or neither: the window is then"),
        (EVENTS, query("flights"), "source.query: begins with neither SELECT nor WITH; write a SELECT, or name the table"),
        (EVENTS, query("SELECT 1", cursor_origin="transaction"),
         "source.cursor_origin: transaction cannot hold for a query, which may put together what was committed at diff"),
        (EVENTS, query("DELETE FROM t"), "source.query: begins with neither SELECT nor WITH"),
        (EVENTS, {"source": {"query_file": "x.sql"}}, "source.query_file: x.sql cannot be read"),
        (EVENTS, {"source": {"columns": ["carrier"]}}, "source.columns: lacks 'time_hour', which target.partition"),
        (EVENTS, {"source": {"columns": []}}, "source.columns: is an empty list; list columns"),
        (EVENTS, {"source": {"columns": ["time_hour", "a", "a"]}}, "source.columns: names 'a' twice"),
        (EVENTS, {"target": {"strategy": "replace"}}, "target.strategy: replace would leave only the last window"),
        (EVENTS, {"target": {"strategy": "merge"}}, "target.strategy: merge goes by key, so an event that was taken"),
        (EVENTS, {"source": {"columns": ["a"]}, "target": {"partition": None}},
         "source.columns: lacks 'time_hour', which source.cursor needs"),
        (EVENTS, {"source": {"lookback": "PT1H"}},
         "source.lookback: goes back from a watermark, and window interval does not begin at one; leave it out, or "),
        (EVENTS, {"source": {"settle_timeout": "PT6H"}}, "source.settle_timeout: 6:00:00 is not shorter than execut"),
        (EVENTS, {"source": {"settle_delay": "P1D"}}, "source.settle_delay: 1 day, 0:00:00 is not shorter than exe"),
        (ARRIVALS, {"source": {"cursor": None}}, "source.cursor: is missing, so nothing tells which rows belong"),
        (ARRIVALS, {"source": {"cursor": "a"}}, "target.partition.column: is 'time_hour', and the cursor is 'a'"),
        (ARRIVALS, {"target": {"strategy": "swap"}},
         "target.strategy: swap exchanges whole partitions, and a watermark window may end inside of one; write auto"),
        (ARRIVALS, {"target": {"strategy": "replace"}}, "target.strategy: replace would leave only the last window"),
        (ARRIVALS, {"target": {"strategy": "merge"}}, "target.strategy: merge goes by key"),
        (ARRIVALS, {"catchup": True},
         "catchup: has nothing to catch up: the first run reads from the watermark to the present, and the runs of "),
        (ARRIVALS, {"max_active_runs": 2},
         "max_active_runs: 2 runs at once would read the same rows: the watermark window begins where the run before"),
        (ARRIVALS, {"source": {"lookback": 3600}},
         "source.lookback: 3600 counts values, and 'time_hour' holds dates or times; write a duration, such as PT1H"),
        (ARRIVALS, query("SELECT x WHERE c < :high"), "source.query: uses :high and not :low"),
        (ARRIVALS, {"source": {"settle_timeout": "PT6H"}}, "source.settle_timeout: 6:00:00 is not shorter than exe"),
        (EVENTS, {"target": {"strategy": "swap", "partition": None}}, "target.partition: is missing, so swap"),
        (EVENTS, {"target": {"lock_deadline": "PT7H"}}, "target.lock_deadline: 7:00:00 is not shorter than "),
        (EVENTS, {"target": {"lock_budget": 9, "lock_deadline": 8}}, "target.lock_deadline: 0:00:08 is shorter"),
        (EVENTS, {"target": {"audit": "none"}, "quality": [{"type": "x"}]}, "target.audit: none would publish rows"),
        (EVENTS, {"schedule": None}, "catchup: has no schedule to follow; add a schedule"),
        (EVENTS, {"start_date": None}, "catchup: has no date to begin with; add start_date"),
        (EVENTS, {"quality": {"suite": "a", "expectations": []}}, "quality.suite: stands beside expectations"),
        (SNAPSHOT, {"source": {"cursor": "x"}}, "source.cursor: has no use for snapshots, whose table is read whole"),
        (SNAPSHOT, {"source": {"window": "interval"}}, "source.window: interval does not fit snapshots"),
        (SNAPSHOT, {"source": {"window": "watermark", "cursor": "x"}},
         "source.window: watermark does not fit snapshots, which are read whole"),
        (SNAPSHOT, {"source": {"lookback": 1}}, "source.lookback: goes back from a watermark, and window full"),
        (SNAPSHOT, {"target": {"strategy": "merge"}}, "target.strategy: merge would keep rows that the source no"),
        (SNAPSHOT, {"target": {"strategy": "delete_insert"}}, "target.strategy: delete_insert replaces the rows of"),
        (SNAPSHOT, {"target": {"partition": {"column": "a", "every": "day"}}}, "target.partition: has no use for"),
        (SNAPSHOT, {"target": {"strategy": "swap"}}, "target.strategy: swap exchanges partitions, which snapshots"),
        (SNAPSHOT, {"schedule": "@daily", "catchup": True, "start_date": "2013-01-01"},
         "catchup: would read the whole source once per past interval"),
        (SNAPSHOT, {"source": {"table": None, "query": "SELECT :low"}}, "source.query: uses :low, which a full"),
        (SNAPSHOT, {"source": {"table": 'a."b'}}, "source.table: not a table name"),
        (SNAPSHOT, {"target": {"keys": ["x" * 64]}}, "target.keys[0]: identifier of 64 bytes is longer"),
        (SNAPSHOT, {"tags": ["x" * 101]}, "tags[0]: a tag of 101 characters; use 1 to 100"),
        (ENTITIES, {"source": {"window": "interval", "cursor": "x"}},
         "target.strategy: replace would delete every row that the window does not hold; write auto or merge, or set"),
        (ENTITIES, {"source": {"window": "watermark", "cursor": "x"}}, "target.strategy: replace would delete every"),
        (ENTITIES, {"source": {"cursor": "x"}}, "source.cursor: has no use for strategy replace, which compares the"),
        (ENTITIES, {"target": {"partition": {"column": "a", "every": "day"}}},
         "target.partition: does not fit strategy replace, which takes a table without partitions"),
        (ENTITIES, {"target": {"strategy": "swap"}}, "target.strategy: swap exchanges whole partitions, and entities"),
        (ENTITIES, {"target": {"strategy": "delete_insert"}}, "target.strategy: delete_insert goes by window, and an"),
        (ENTITIES, {"source": {"cursor": "x"}, "target": {"strategy": "auto"}},
         "source.window: is missing: the cursor 'x' would not decide which rows are read; write watermark (what has"),
        (INCREMENTAL, {"source": {"cursor": None}},
         "source.cursor: is missing, so nothing tells which rows belong to a run; name the column that every change"),
        (INCREMENTAL, {"source": {"cursor": None, "window": "interval"}}, "source.cursor: is missing, so nothing"),
        (INCREMENTAL, {"source": {"columns": ["tailnum"]}}, "source.columns: lacks 'updated_at', which source.cursor"),
        (INCREMENTAL, {"source": {"columns": ["updated_at"]}, "target": {"keys": ["tailnum"]}},
         "source.columns: lacks 'tailnum', which target.keys needs"),
        (INCREMENTAL, {"target": {"partition": {"column": "updated_at", "every": "day"}}, "source": {"lookback": 60}},
         "source.lookback: 60 counts values, and 'updated_at' holds dates or times"),
        (EVENTS, {"source": {"rename": {"time_hour": "at"}}},
         "target.partition.column: is 'time_hour', and the cursor is 'at' (renamed from 'time_hour'): the rows of"),
        (ARRIVALS, deep_merged(RENAMED, {"source": {"lookback": 60}}), "source.lookback: 60 counts values, and 'time_hour' h"),
        (EVENTS, deep_merged(RENAMED, {"source": {"columns": ["at"]}}),
         "source.columns: lacks 'time_hour', which target.partition needs; add it"),
        (EVENTS, {"target": {"strategy": "swap", "partition": None}, "source": {"rename": {"time_hour": "at"}}},
         "target.partition: is missing, so swap does not know which partitions to make and exchange; write {column: at,"),
        (KEYED, {"source": {"rename": {"tailnum": "plane"}}},
         "target.keys[0]: is 'tailnum', which rename calls 'plane' in the target; write 'plane'"),
        (KEYED, {"source": {"rename": {"built": "year"}}, "target": {"partition": {"column": "built", "every": "year"}}},
         "target.partition.column: is 'built', which rename calls 'year' in the target; write 'year'"),
        (KEYED, {"source": {"columns": ["tailnum", "updated_at"], "rename": {"seats": "n"}}},
         "source.rename.seats: is not read: columns does not list it; add it to columns, or take it out here"),
        (KEYED, {"source": {"columns": ["tailnum", "updated_at"], "personal": {"seats": "null"}}},
         "source.personal.seats: is not read: columns does not list it; add it to columns, or take it out here"),
        (KEYED, {"source": {"rename": {"a": "x", "b": "x"}}},
         "source.rename.b: calls it 'x', as 'a' is called already; give every column a name of its own, or leave one ou"),
        (KEYED, {"source": {"rename": {"changed": "updated_at"}}}, "source.rename.changed: calls it 'updated_at', as 'upd"),
        (KEYED, {"source": {"columns": ["a", "tailnum", "updated_at"], "rename": {"a": "tailnum"}}},
         "source.rename.a: calls it 'tailnum', as 'tailnum' is called already"),
        (KEYED, {"source": {"personal": {"updated_at": None}}},
         "source.personal.updated_at: is the cursor, by whose values windows are compared; choose another cursor, or wri"),
        (KEYED, {"source": {"personal": {"updated_at": "hash"}, "hash_conn_id": "k"}}, "source.personal.updated_at: is the c"),
        (EVENTS, {"source": {"personal": {"time_hour": "drop"}}},
         "source.personal.time_hour: is the target's partition column, which needs its values as they are; take it out, "),
        (EVENTS, {"source": {"personal": {"time_hour": "drop"}}, "target": {"partition": None}},
         "source.personal.time_hour: is the cursor of events, by which the target's rows of a window are found; take it "),
        (KEYED, {"source": {"personal": {"tailnum": None}}},
         "source.personal.tailnum: is a key, and null would tell no rows apart; write hash, which keeps equal values equ"),
        (KEYED, {"source": {"personal": {"tail": "drop"}, "rename": {"tail": "tailnum"}}},
         "source.personal.tail: is a key, and drop would tell no rows apart"),
        (KEYED, {"source": {"personal": {"built": "null"}}, "target": {"partition": {"column": "built", "every": "year"}}},
         "source.personal.built: is the target's partition column"),
        (KEYED, {"source": {"personal": {"pilot": "hash", "phone": "drop"}}},
         "source.personal.pilot: is hashed, and nothing names the key; add hash_conn_id, a connection whose password is"),
        (KEYED, {"source": {"personal": {"pilot": "drop"}, "hash_conn_id": "k"}},
         "source.hash_conn_id: holds the key of hashed columns, and no column is hashed; leave it out, or write hash for"),
        (EVENTS, {"source": {"null_cursor": "include"}},
         "source.null_cursor: include does not fit events: rows without a cursor value can only be merged by key; leave"),
        (SNAPSHOT, {"source": {"null_cursor": "sweep"}}, "source.null_cursor: sweep does not fit snapshots"),
        (INCREMENTAL, {"source": {"null_cursor": "sweep"}},
         "target.keys: is missing, and null_cursor sweep merges rows by key, again with every load; list the columns"),
        (KEYED, {"source": {"null_cursor": "include", "window": "full"}},
         "source.null_cursor: include has no use for window full, which reads rows without a cursor value like any other"),
        (KEYED, query(BOUNDED, null_cursor="sweep"),
         "source.query: uses :low and :high, between which no row without a cursor value lies, and null_cursor is sweep"),
        (KEYED, query(BOUNDED, null_cursor="include"), "source.query: uses :low and :high, between which no row without"),
        (KEYED, {"source": {"null_cursor": "sweep"}, "target": {"keys": ["tailnum", "updated_at"]}},
         "target.keys[1]: is the cursor, and with null_cursor sweep rows come without a value in it; name columns that "),
        (KEYED, {"source": {"null_cursor": "sweep"}, "quality": [CLOCK]},
         "quality[0]: refuses the rows without a cursor value that null_cursor sweep loads; take it out, or give it sev"),
        (PARTITIONED, {"schedule": None, "catchup": False}, "partitioned: has no schedule to follow; add a schedule, or le"),
        (PARTITIONED, {"target": {"partition": None}},
         "target.partition: is missing, and partitioned gives every run one partition to load; write {column: time_hour,"),
        (ARRIVALS, {"partitioned": True},
         "partitioned: gives every run one partition to load, and window watermark does not begin and end with one; set"),
        (SNAPSHOT, {"partitioned": True, "schedule": "@daily"},
         "partitioned: gives every run one partition to load, and window full does not begin and end with one"),
        (EVENTS, {"transform": {}}, "transform: says nothing to do; write exactly one of sql, sql_file and python"),
        (EVENTS, {"transform": {"sql": "SELECT 1", "python": "a.b:c"}}, "transform.python: stands beside SQL"),
        (EVENTS, {"transform": {"sql": "batch"}}, "transform.sql: begins with neither SELECT nor WITH"),
        (EVENTS, {"transform": {"sql_file": "x.sql"}}, "transform.sql_file: x.sql cannot be read"),
        (EVENTS, {"transform": {"python": "a.b"}}, "transform.python: 'a.b' names no function; write it as package.mod"),
        (EVENTS, {"transform": {"sql": "SELECT 1", "on_error": "fail"}}, "transform.on_error: is for python"),
        (EVENTS, {"transform": {"sql": "SELECT 1", "as_text": ["x"]}}, "transform.as_text: is for python"),
        (EVENTS, {"transform": {"sql": "SELECT :rat", "parameters": {"rate": 1}}},
         "transform.sql: uses :rat, which is not among its parameters; did you mean 'rate'"),
        (EVENTS, {"transform": {"sql": "SELECT ':rate', x::int, \":rate\" -- :rate", "parameters": {"rate": 1}}},
         "transform.parameters.rate: is not used in the SQL"),
        (EVENTS, {"transform": {"sql": "SELECT 1", "parameters": {"a b": 1}}}, "transform.parameters"),
        (EVENTS, {"transform": {"python": "a:b", "max_dead_share": 2}}, "transform.max_dead_share"),
        (EVENTS, {"transform": {"python": "a:b", "on_error": "skip"}}, "transform.on_error"),
        (EVENTS, {"transform": {"sql": "SELECT 1"}, "source": {"schema_contract": "evolve"}},
         "source.schema_contract: has no use beside a transform"),
        (EVENTS, {"transform": {"sql": "SELECT 1"}, "source": {"columns": ["a"]}},
         "source.columns: lacks 'time_hour', which source.cursor needs"),
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


def test_a_stream_that_must_run_alone_is_named() -> None:
    """One watermark window among several streams holds the whole pipeline to one run at a time."""
    streams = [
        {key: value for key, value in data.items() if key in ("stream", "kind", "source", "target")}
        for data in (EVENTS, INCREMENTAL)
    ]
    shared = {"pipeline": "all", "schedule": "@monthly", "start_date": "2013-01-01"}
    assert Pipeline.model_validate(shared | {"streams": streams}).active_runs == 1
    catchup, runs = refused(shared | {"streams": streams, "catchup": True, "max_active_runs": 3})
    assert catchup.startswith(
        "catchup: has nothing to catch up: the first run of 'planes' (streams[1]) reads"
    )
    assert runs.startswith(
        "max_active_runs: 3 runs at once would read the same rows: the watermark window of 'planes'"
    )


def test_one_mistake_is_one_message() -> None:
    """A window that a kind does not have is not also blamed for what it lacks."""
    assert len(refused(deep_merged(SNAPSHOT, {"source": {"window": "watermark"}}))) == 1
    assert (
        len(refused(deep_merged(ENTITIES, {"source": {"window": "watermark", "cursor": "x"}}))) == 1
    )
    assert len(refused(deep_merged(ARRIVALS, {"source": {"columns": ["a"]}}))) == 1
    for data, change in (
        (EVENTS, {"source": {"rename": {"time_hour": "at"}}}),
        (EVENTS, {"source": {"personal": {"time_hour": None}}}),
        (EVENTS, {"source": {"personal": {"time_hour": "drop"}}}),
        (EVENTS, {"source": {"null_cursor": "sweep"}}),
        (SNAPSHOT, {"partitioned": True, "schedule": "@daily"}),
        (KEYED, {"source": {"rename": {"tailnum": "plane"}, "columns": ["tailnum", "updated_at"]}}),
        (KEYED, {"source": {"personal": {"a": "hash", "b": "hash"}}}),
        (KEYED, {"source": {"rename": {"updated_at": "at"}, "columns": ["tailnum"]}}),
        (KEYED, query("SELECT :low", null_cursor="sweep")),
        (KEYED, query(BOUNDED, window="full", null_cursor="sweep", cursor=None)),
    ):
        found = refused(deep_merged(data, change))
        assert (
            len(found) == (2 if change["source"].get("window") == "full" else 1)
            if "source" in change
            else 1
        ), found


@pytest.mark.parametrize(
    "change",
    [
        {"transform": {"sql": "{% if x %}SELECT :a{% endif %}"}},
        {"transform": {"sql": "SELECT a[1:n] FROM batch WHERE b = :b", "parameters": {"b": [1, None]}}},
        {"transform": {"python": "a.b:c", "parameters": {"day": "2013-01-01"}, "max_dead_rows": 0}},
        {"transform": {"sql": "WITH x AS (SELECT 1) SELECT 1"}, "target": {"keys": ["made", "by_it"]},
         "source": {"columns": ["time_hour", "a"]}},
    ],
)  # fmt: skip
def test_a_transform_may_make_what_the_source_has_not(change: dict[str, Any]) -> None:
    """Keys need not be read, and what a template comes to be is not known yet."""
    pipeline = parse_pipeline(deep_merged(EVENTS, change), folder=Path("nowhere"))
    assert Pipeline.model_validate(pipeline.model_dump(mode="json")) == pipeline
    assert pipeline.streams[0].transform is not None


def test_what_is_not_declared_is_left_to_the_operator() -> None:
    """A default that stood in two places would one day differ."""
    source = Pipeline.model_validate(ARRIVALS).streams[0].source
    assert (source.lookback, source.cursor_origin, source.settle_delay) == (None, None, None)
    assert (source.settle_timeout, source.settle_ignore) == (None, None)
    assert (source.rename, source.personal, source.hash_conn_id) == (None, None, None)
    assert (source.null_cursor, source.open_window, source.on_empty) == (None, None, None)
    assert (source.slice_rows, source.shards, source.row_security) == (None, None, None)
    # A bare null is the word null, so what is not written must be the word that it means.
    assert (source.types, source.zero_dates) == (None, "fail")


def test_a_bare_null_is_the_word_null() -> None:
    """YAML reads it as nothing; beside hash and drop it is a treatment, and it is one of a date."""
    change = {"personal": {"a": None, "b": "null", "c": "hash", "d": "drop"}, "hash_conn_id": "k"}
    change |= {"zero_dates": None}
    source = Pipeline.model_validate(deep_merged(KEYED, {"source": change})).streams[0].source
    assert source.personal == {
        "a": Treatment.NULL,
        "b": Treatment.NULL,
        "c": Treatment.HASH,
        "d": Treatment.DROP,
    }
    assert source.zero_dates == "null"


def test_a_key_of_hashes_may_be_shared() -> None:
    """Of several streams one needs it; the others only stand below the same default."""
    streams = [
        {"stream": name, "target": {"table": f"a.{name}"}, "source": {"personal": personal}}
        for name, personal in (("a", {"pilot": "hash"}), ("b", None))
    ]
    shared = {key: value for key, value in KEYED.items() if key != "stream"}
    shared = deep_merged(shared, {"source": {"hash_conn_id": "k"}})
    assert parse_pipeline(shared | {"streams": streams}, folder=Path("nowhere"))
    streams[1]["source"] = {"hash_conn_id": "other"}
    (found,) = refused(shared | {"streams": streams})
    assert found.startswith("streams[1].source.hash_conn_id: holds the key of hashed columns")


def test_a_stream_that_has_no_partitions_to_load_is_named() -> None:
    """Each of several streams must fit the runs."""
    own = ("stream", "kind", "source", "target")
    streams = [{key: data[key] for key in own} for data in (EVENTS, SNAPSHOT)]
    shared = {"pipeline": "all", "schedule": "@monthly", "partitioned": True}
    (found,) = refused(shared | {"streams": streams})
    assert found.startswith(
        "partitioned: gives every run one partition to load, and window full of 'planes' (streams[1]) does not"
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (0, 0),
        (1000, 1000),
        ("PT1H", timedelta(hours=1)),
        ("P2D", timedelta(days=2)),
        (timedelta(minutes=5), timedelta(minutes=5)),
    ],
)
def test_a_lookback_is_a_duration_or_a_count(written: object, meant: object) -> None:
    """A number counts values of the cursor; it is never seconds."""
    pipeline = Pipeline.model_validate(deep_merged(INCREMENTAL, {"source": {"lookback": written}}))
    (stream,) = pipeline.streams
    assert (stream.source.lookback, type(stream.source.lookback)) == (meant, type(meant))


@pytest.mark.parametrize(
    "written", [True, 1.5, -1, "1000", "1 hour", "P", "-PT1H", timedelta(-1), [1], {}]
)
def test_other_lookbacks_are_refused(written: object) -> None:
    """With one message that says both forms."""
    (found,) = refused(deep_merged(INCREMENTAL, {"source": {"lookback": written}}))
    assert found.startswith("source.lookback: ")
    assert "neither a duration nor a whole number; write an ISO 8601 duration (PT1H, P1D)" in found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"window": "watermarks"}, "source.window: 'watermarks' is not known; did you mean 'watermark'?; write one of"),
        ({"cursor_origin": "server"}, "source.cursor_origin: 'server' is not known; write one of auto, transaction, a"),
        ({"settle_delay": "5 minutes"}, "source.settle_delay: a text ('5 minutes') is no duration; write seconds as"),
        ({"settle_delay": -1}, "source.settle_delay: a number (-1) is out of range; write how late an application"),
        ({"settle_timeout": "PT"}, "source.settle_timeout: a text ('PT'): "),
        ({"settle_ignore": "reporting"}, "source.settle_ignore: a list is expected, not a text ('reporting'); write ["),
        ({"settle_ignore": [1]}, "source.settle_ignore[0]: a text is expected, not a number (1); put it in quotes"),
        ({"window": "nulls"}, "source.window: nulls is no window of a stream; write null_cursor: sweep beside window: water"),
        ({"window": 3}, "source.window: a number (3) is not known; write one of interval, watermark, full"),
        ({"personal": {"a": "hsah"}}, "source.personal.a: 'hsah' is not known; did you mean 'hash'?; write hash, null or drop"),
        ({"personal": {"a": "keep"}}, "source.personal.a: 'keep' is not known; write hash, null or drop"),
        ({"personal": {"a": ["hash"]}}, "source.personal.a: a list is not known; write hash, null or drop"),
        ({"personal": {"a": True}}, "source.personal.a: true or false (True) is not known; write hash, null or drop"),
        ({"personal": ["a"]}, "source.personal: a mapping is expected, not a list; write what becomes of personal data"),
        ({"personal": "a"}, "source.personal: a mapping is expected, not a text ('a')"),
        ({"rename": ["a"]}, "source.rename: a mapping is expected, not a list; write the columns' names in the target"),
        ({"rename": {"a": None}}, "source.rename.a: a text is expected, and nothing is there; write a value or leave"),
        ({"rename": {"a": 1}}, "source.rename.a: a text is expected, not a number (1); put it in quotes"),
        ({"rename": {"a": "x" * 64}}, "source.rename.a: identifier of 64 bytes is longer"),
        ({"rename": {"x" * 64: "a"}}, "source.rename." + "x" * 64 + ": identifier of 64 bytes is longer"),
        ({"hash_conn_id": 1}, "source.hash_conn_id: a text is expected, not a number (1)"),
        ({"null_cursor": "skip"}, "source.null_cursor: 'skip' is not known; write one of fail, include, sweep"),
        ({"open_window": "clip"}, "source.open_window: 'clip' is not known; did you mean 'clamp'?; write one of refuse, c"),
        ({"on_empty": "stop"}, "source.on_empty: 'stop' is not known; write one of publish, skip, fail"),
        ({"slice_rows": -1}, "source.slice_rows: a number (-1) is not at least 0; write "),
        ({"slice_rows": "many"}, "source.slice_rows: a number is expected, not a text ('many')"),
        ({"shards": 0}, "source.shards: a number (0) is not at least 1; write how many slices"),
        ({"row_security": "on"}, "source.row_security: 'on' is not known; write one of refuse, apply"),
        ({"types": {"a": 1}}, "source.types.a: a text is expected, not a number (1)"),
        ({"types": "date"}, "source.types: a mapping is expected, not a text ('date')"),
        ({"zero_dates": "zero"}, "source.zero_dates: 'zero' is not known; write one of fail, null"),
    ],
)  # fmt: skip
def test_values_that_the_source_cannot_have_are_refused(
    change: dict[str, Any], expected: str
) -> None:
    """Each with what to write instead."""
    (found,) = refused(deep_merged(INCREMENTAL, {"source": change}))
    assert found.startswith(expected)


def test_nothing_late_and_no_waiting_can_be_said() -> None:
    """Zero is a delay, though it is no deadline."""
    change = {"settle_delay": 0, "settle_timeout": 0, "settle_ignore": []}
    source = Pipeline.model_validate(deep_merged(INCREMENTAL, {"source": change})).streams[0].source
    assert (source.settle_delay, source.settle_timeout) == (timedelta(0), timedelta(0))
    assert source.settle_ignore == ()


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


@given(
    st.sampled_from([EVENTS, KEYED, SNAPSHOT]),
    st.dictionaries(
        st.sampled_from(sorted(Source.model_fields)),
        json_values | st.dictionaries(st.sampled_from(["time_hour", "tailnum", "a"]), json_values),
        max_size=3,
    ),
)
def test_no_value_of_a_source_escapes_explanation(
    data: dict[str, Any], source: dict[str, Any]
) -> None:
    """The same for what stands below source, in whatever combination."""
    text = ""
    try:
        parse_pipeline(deep_merged(data, {"source": source}), folder=Path("nowhere"))
    except ConfigurationError as error:
        text = str(error)
    assert not text or "\n  - source" in text or "\n  - target" in text
