"""Pipeline files: what loads, and how every kind of mistake is reported."""

from __future__ import annotations

import pickle
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_etl_provider.config.files import (
    PipelineFileError,
    parse_pipeline,
    pipeline_paths,
    read_pipeline,
)
from airflow_etl_provider.config.findings import Finding
from airflow_etl_provider.config.models import Pipeline
from airflow_etl_provider.core.errors import ConfigurationError

FLIGHTS = """\
pipeline: flights
stream: flights
kind: events
schedule: "@monthly"
timezone: America/New_York
start_date: 2013-01-01
end_date: 2013-12-01
catchup: true
source: {conn_id: etl_source, table: public.flights, cursor: time_hour}
target:
  conn_id: etl_warehouse
  table: analytics.flights
  partition: {column: time_hour, every: month}
quality:
  - {type: expect_column_values_to_not_be_null, kwargs: {column: carrier}}
"""

REFERENCE = """\
pipeline: reference
kind: snapshots
source: {conn_id: etl_source}
target: {conn_id: etl_warehouse}
streams:
  - stream: airlines
    source: {table: public.airlines}
    target: {table: analytics.airlines, keys: [carrier]}
  - stream: airports
    source: {table: public.airports, conn_id: other}
    target: {table: analytics.airports, keys: [faa]}
"""


def written(folder: Path, text: str, name: str = "flights.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(path: Path) -> list[str]:
    with pytest.raises(PipelineFileError) as caught:
        read_pipeline(path, shown_as=path.name)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(problem) for problem in caught.value.problems]


def test_a_file_becomes_a_pipeline(tmp_path: Path) -> None:
    """Every value arrives, dates in the pipeline's own zone."""
    pipeline = read_pipeline(written(tmp_path, FLIGHTS)).pipeline
    (stream,) = pipeline.streams
    new_york = ZoneInfo("America/New_York")
    assert pipeline.starts_at == datetime(2013, 1, 1, tzinfo=new_york)
    assert pipeline.ends_at == datetime(2013, 12, 1, tzinfo=new_york)
    assert (pipeline.cron, pipeline.active_runs) == ("0 0 1 * *", 4)
    assert (stream.window, stream.source_text) == ("interval", "public.flights")
    assert stream.target.lock_budget == timedelta(milliseconds=300)
    assert stream.quality.expectations[0]["kwargs"] == {"column": "carrier"}


def test_the_top_level_gives_defaults_for_streams(tmp_path: Path) -> None:
    """Mappings are merged key by key; what a stream says itself wins."""
    pipeline = read_pipeline(written(tmp_path, REFERENCE, "reference.yaml")).pipeline
    assert [stream.source.conn_id for stream in pipeline.streams] == ["etl_source", "other"]
    assert [stream.window for stream in pipeline.streams] == ["full", "full"]
    assert pipeline.active_runs == 1


def test_defaults_beside_the_file_are_merged_under_it(tmp_path: Path) -> None:
    """``defaults.yaml`` is no pipeline, and the file's own values win."""
    written(
        tmp_path,
        "retries: 7\nowner: data\nsource: {conn_id: etl_source, checksum: true}\n",
        "defaults.yaml",
    )
    path = written(tmp_path, FLIGHTS.replace("conn_id: etl_source, ", "") + "owner: me\n")
    pipeline = read_pipeline(path).pipeline
    assert (pipeline.retries, pipeline.owner) == (7, "me")
    assert pipeline.streams[0].source.conn_id == "etl_source"
    assert pipeline.streams[0].source.checksum is True
    assert pipeline_paths(tmp_path) == [path]


def test_suites_and_sql_become_part_of_the_pipeline(tmp_path: Path) -> None:
    """Files are read when the pipeline is, so that a DAG version has its suite and its SQL."""
    written(
        tmp_path,
        '{"name": "s", "expectations": [{"type": "expect_table_row_count_to_equal",\n'
        '"kwargs": {"value": 3}}]}',
        "suites/flights.json",
    )
    written(tmp_path, "SELECT 1 WHERE cursor >= :low AND cursor < :high\n", "sql/flights.sql")
    written(tmp_path, "SELECT * FROM batch\n", "sql/made.sql")
    text = FLIGHTS.split("quality:")[0].replace(
        "table: public.flights", "query_file: sql/flights.sql"
    )
    text += "transform: {sql_file: sql/made.sql}\n"
    pipeline = read_pipeline(
        written(tmp_path, text + "quality: {suite: suites/flights.json}\n")
    ).pipeline
    assert pipeline.streams[0].transform.sql == "SELECT * FROM batch"
    assert pipeline.streams[0].source_text == "SELECT 1 WHERE cursor >= :low AND cursor < :high"
    assert pipeline.streams[0].quality.expectations[0]["type"] == "expect_table_row_count_to_equal"
    alone = read_pipeline(written(tmp_path, text + "quality: suites/flights.json\n")).pipeline
    assert alone == pipeline


def replaced(old: str, new: str) -> str:
    assert old in FLIGHTS
    return FLIGHTS.replace(old, new)


MISTAKES = {
    "a cron string without quotes": (
        replaced('"@monthly"', "* * * * *"),
        ["flights.yaml:4: not readable as YAML: a value that starts with '*' has a meaning of its own in YAML",
         'put it in quotes: "* * * * *"'],
    ),
    "a preset without quotes": (
        replaced('"@monthly"', "@monthly"),
        ["flights.yaml:4: not readable as YAML: a value that starts with '@'", 'put it in quotes: "@monthly"'],
    ),
    "a tab": (
        replaced("  conn_id: etl_warehouse", "\tconn_id: etl_warehouse"),
        ["flights.yaml:11: not readable as YAML: the line is indented with a tab; indent YAML with spaces"],
    ),
    "two documents": (FLIGHTS + "---\na: 1\n", ["flights.yaml:16: not readable as YAML: found another document"]),
    "a bracket that is not closed": (FLIGHTS + "tags: [a\n", ["flights.yaml:", "not readable as YAML"]),
    "nothing": ("", ["flights.yaml:1: is empty; write keys and values"]),
    "a list": ("- 1\n", ["flights.yaml:1: holds a list, not a mapping; write keys"]),
    "a key twice": (
        FLIGHTS + "kind: snapshots\n",
        ["flights.yaml:16: kind: stands twice; the first is in line 3; keep one of the two"],
    ),
    "a key twice inside": (
        replaced("cursor: time_hour}", "cursor: time_hour, cursor: b}"),
        ["flights.yaml:9: source.cursor: stands twice; the first is in line 9"],
    ),
    "a key that YAML takes for true": (
        FLIGHTS + "on: 1\n",
        ["flights.yaml:16: the key 'on' is no text, which YAML reads as true; put the key in quotes"],
    ),
    "an unknown tag": (
        FLIGHTS + "owner: !!python/name:os.system\n",
        ["flights.yaml:16: owner: the tag 'tag:yaml.org,2002:python/name:os.system' is not allowed"],
    ),
    "an alias of itself": (FLIGHTS + "tags: &a [*a]\n", ["flights.yaml:16: tags[0]: holds itself"]),
    "an unknown key": (
        replaced("catchup: true", "cachup: true"),
        ["flights.yaml:8: cachup: unknown key; did you mean 'catchup'?; known here: pipeline, "],
    ),
    "an unknown key of the source": (
        replaced("cursor: time_hour", "cursr: time_hour"),
        ["flights.yaml:9: source.cursr: unknown key; did you mean 'cursor'?; known here: conn_id, table, "],
    ),
    "an unknown key of the partition": (
        replaced("every: month", "evry: month"),
        ["flights.yaml:13: target.partition.evry: unknown key; did you mean 'every'?; known here: column"],
    ),
    "an impossible date": (
        replaced("2013-12-01", "2013-13-01"),
        ["flights.yaml:7: end_date: '2013-13-01' is no valid value (month must be in 1..12)"],
    ),
    "a year for a date": (
        replaced("start_date: 2013-01-01", "start_date: 2013"),
        ["flights.yaml:6: start_date: a number (2013) is no date; write a date such as 2013-01-01"],
    ),
    "dates in the wrong order": (
        replaced("2013-12-01", "2012-12-01"),
        ["flights.yaml:7: end_date: 2012-12-01 lies before start_date 2013-01-01; write the start of the last"],
    ),
    "an unknown kind": (
        replaced("kind: events", "kind: event"),
        ["flights.yaml:3: kind: 'event' is not known; did you mean 'events'?; write one of events, entities, "],
    ),
    "an unknown length of partitions": (
        replaced("every: month", "every: monthly"),
        ["flights.yaml:13: target.partition.every: 'monthly' is not known; did you mean 'month'?; write one of"],
    ),
    "an unknown preset": (
        replaced("@monthly", "@montly"),
        ["flights.yaml:4: schedule: '@montly' has no data interval to load or is unknown; did you mean '@monthly'?"],
    ),
    "a preset without intervals": (
        replaced("@monthly", "@once"),
        ["flights.yaml:4: schedule: '@once' has no data interval to load"],
    ),
    "half a cron expression": (
        replaced("@monthly", "0 5 * *"),
        ["flights.yaml:4: schedule: '0 5 * *' is no cron expression: it has 4 fields instead of 5; write minute"],
    ),
    "an unknown time zone": (
        replaced("America/New_York", "America/NewYork"),
        ["flights.yaml:5: timezone: no time zone is called 'America/NewYork'; did you mean 'America/New_York'?"],
    ),
    "a number for a text": (
        replaced("conn_id: etl_source", "conn_id: 12"),
        ["flights.yaml:9: source.conn_id: a text is expected, not a number (12); put it in quotes"],
    ),
    "yes for a text": (
        FLIGHTS + "owner: no\n",
        ["flights.yaml:16: owner: a text is expected, and YAML reads this as false; put it in quotes"],
    ),
    "nothing for a text": (
        FLIGHTS + "owner:\n",
        ["flights.yaml:16: owner: a text is expected, and nothing is there; write a value or leave the key out"],
    ),
    "a template without quotes": (
        replaced("conn_id: etl_warehouse", "conn_id: {{ params.conn }}"),
        ["flights.yaml:11: target.conn_id: a list or mapping stands where a key is expected; put the whole value in "],
    ),
    "a text for a number": (
        FLIGHTS + 'retries: "3"\n',
        ["flights.yaml:16: retries: a number is expected, not a text ('3'); write the number without quotes"],
    ),
    "a negative number": (FLIGHTS + "retries: -1\n", ["flights.yaml:16: retries: a number (-1) is not at least 0; write how often"]),
    "a number for true": (
        replaced("catchup: true", "catchup: 1"),
        ["flights.yaml:8: catchup: 1 is neither true nor false; write true or false without quotes"],
    ),
    "a text for a list": (
        FLIGHTS + "tags: a\n",
        ["flights.yaml:16: tags: a list is expected, not a text ('a'); write [a]"],
    ),
    "a list for a mapping": (
        replaced("{column: time_hour, every: month}", "[time_hour]"),
        ["flights.yaml:13: target.partition: a mapping is expected, not a list; write how the table is partitioned"],
    ),
    "a duration in words": (
        FLIGHTS + "retry_delay: 5 minutes\n",
        ["flights.yaml:16: retry_delay: a text ('5 minutes') is no duration; write seconds as a number (30) or an"],
    ),
    "milliseconds for seconds": (
        replaced("  table: analytics.flights", "  table: analytics.flights\n  lock_budget: 300"),
        ["flights.yaml:13: target.lock_budget: a number (300) is out of range; write how long"],
    ),
    "a share above one": (
        replaced("  table: analytics.flights", "  table: analytics.flights\n  max_shrink: 50"),
        ["flights.yaml:13: target.max_shrink: a number (50) is not at most 1; write the share of"],
    ),
    "a missing key": (
        replaced("  table: analytics.flights\n", ""),
        ["flights.yaml:10: target.table: is missing; write the table as schema.table, for example analytics.flights"],
    ),
    "a missing mapping": (
        FLIGHTS.split("target:", maxsplit=1)[0],
        ["flights.yaml:1: target: is missing; write a mapping with conn_id and table, for example {conn_id: "],
    ),
    "a table of three parts": (
        replaced("public.flights", "db.public.flights"),
        ["flights.yaml:9: source.table: 'db.public.flights' has 3 parts; a table is named schema.table; the database"],
    ),
    "a stream id with a capital": (
        replaced("stream: flights", "stream: Flights"),
        ["flights.yaml:2: stream: stream id 'Flights' does not match [a-z0-9]"],
    ),
    "a DAG id with a space": (
        replaced("pipeline: flights", "pipeline: my flights"),
        ["flights.yaml:1: pipeline: 'my flights' is not the name of its file, flights.yaml; write pipeline: flights"],
    ),
    "another name than the file's": (
        replaced("pipeline: flights", "pipeline: fligths"),
        ["flights.yaml:1: pipeline: 'fligths' is not the name of its file, flights.yaml; write pipeline: flights, or ",
         "rename the file to fligths.yaml"],
    ),
    "a stream beside streams": (
        FLIGHTS + "streams: []\n",
        ["flights.yaml:2: stream: stands beside streams; give every item of streams its own stream id"],
    ),
    "no streams": (
        "pipeline: flights\nstreams: []\n",
        ["flights.yaml:2: streams: is an empty list; list at least one"],
    ),
    "a suite that is not there": (
        FLIGHTS.split("quality:")[0] + "quality: {suite: suites/no.json}\n",
        ["flights.yaml:14: quality.suite: suites/no.json cannot be read: No such file or directory; names are "],
    ),
    "a suite alone that is not there": (
        FLIGHTS.split("quality:")[0] + "quality: suites/no.json\n",
        ["flights.yaml:14: quality: suites/no.json cannot be read: No such file or directory; names are "],
    ),
    "a suite of no project": (
        FLIGHTS.split("quality:")[0] + "quality: gx:flights\n",
        ["flights.yaml:14: quality: no Great Expectations project (gx/great_expectations.yml) stands in "],
    ),
    "a query file that is not there": (
        replaced("table: public.flights", "query_file: sql/no.sql"),
        ["flights.yaml:9: source.query_file: sql/no.sql cannot be read: No such file or directory"],
    ),
    "a transform's file that is not there": (
        FLIGHTS + "transform: {sql_file: sql/no.sql}\n",
        ["flights.yaml:16: transform.sql_file: sql/no.sql cannot be read: No such file or directory"],
    ),
    "a lookback in words": (
        replaced("cursor: time_hour}", "cursor: time_hour,\n  window: watermark, lookback: 1 hour}"),
        ["flights.yaml:10: source.lookback: a text ('1 hour') is neither a duration nor a whole number; write an ISO"],
    ),
    "a lookback of an interval": (
        replaced("cursor: time_hour}", "cursor: time_hour,\n  lookback: PT1H}"),
        ["flights.yaml:10: source.lookback: goes back from a watermark, and window interval does not begin at one"],
    ),
    "a catchup of a watermark": (
        replaced("cursor: time_hour}", "cursor: time_hour, window: watermark}"),
        ["flights.yaml:8: catchup: has nothing to catch up: the first run reads from the watermark to the present"],
    ),
    "watermark windows side by side": (
        replaced("catchup: true", "max_active_runs: 4").replace("time_hour}", "time_hour, window: watermark}"),
        ["flights.yaml:8: max_active_runs: 4 runs at once would read the same rows"],
    ),
    "a strategy for another kind": (
        replaced("every: month}", "every: month}\n  strategy: merge"),
        ["flights.yaml:14: target.strategy: merge goes by key, so an event that was taken back in the source would"],
    ),
    "a role for a list of roles": (
        replaced("cursor: time_hour}", "cursor: time_hour,\n  settle_ignore: reporting}"),
        ["flights.yaml:10: source.settle_ignore: a list is expected, not a text ('reporting'); write [reporting]"],
    ),
    "a window that is none": (
        replaced("cursor: time_hour}", "cursor: time_hour,\n  window: nulls}"),
        ["flights.yaml:10: source.window: nulls is no window of a stream; write null_cursor: sweep"],
    ),
    "an unknown treatment": (
        replaced("cursor: time_hour}", "cursor: time_hour,\n  personal: {\n    a: null,\n    b: hashed}}"),
        ["flights.yaml:12: source.personal.b: 'hashed' is not known; did you mean 'hash'?; write hash, null or drop"],
    ),
    "a treatment of the cursor": (
        replaced("cursor: time_hour}", "cursor: time_hour,\n  personal: {\n    a: null,\n    time_hour: null}}"),
        ["flights.yaml:12: source.personal.time_hour: is the cursor, by whose values windows are compared"],
    ),
    "a hash without a key": (
        replaced("cursor: time_hour}", "cursor: time_hour,\n  personal: {carrier: hash}}"),
        ["flights.yaml:10: source.personal.carrier: is hashed, and nothing names the key; add hash_conn_id"],
    ),
    "a key without a hash": (
        replaced("cursor: time_hour}", "cursor: time_hour,\n  hash_conn_id: k}"),
        ["flights.yaml:10: source.hash_conn_id: holds the key of hashed columns, and no column is hashed"],
    ),
    "a name of the source for one of the target": (
        replaced("cursor: time_hour}", "cursor: time_hour,\n  rename: {time_hour: at}}"),
        ["flights.yaml:14: target.partition.column: is 'time_hour', and the cursor is 'at' (renamed from 'time_hour')"],
    ),
    "a new name for a column that is not read": (
        replaced("cursor: time_hour}", "cursor: time_hour,\n  columns: [time_hour],\n  rename: {carrier: airline}}"),
        ["flights.yaml:11: source.rename.carrier: is not read: columns does not list it"],
    ),
    "a sweep of events": (
        replaced("cursor: time_hour}", "cursor: time_hour,\n  null_cursor: sweep}"),
        ["flights.yaml:10: source.null_cursor: sweep does not fit events"],
    ),
    "half a query": (
        replaced("table: public.flights, ", "query: SELECT * FROM f WHERE t < :high, "),
        ["flights.yaml:9: source.query: uses :high and not :low, and a window has two ends"],
    ),
    "partitions without partitions": (
        replaced("  partition: {column: time_hour, every: month}\n", "") + "partitioned: true\n",
        ["flights.yaml:10: target.partition: is missing, and partitioned gives every run one partition to load"],
    ),
    "an expectation that is a text": (
        replaced("{type: expect_column_values_to_not_be_null, kwargs: {column: carrier}}", "not null"),
        ["flights.yaml:15: quality[0]: a mapping is expected, not a text ('not null')"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_file_line_and_remedy(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    """``file:line: path.to.key: what; what to do``, and one mistake gives one message."""
    found = mistakes(written(tmp_path, text))
    for part in expected:
        assert any(part in line for line in found), found
    assert found[0].startswith(expected[0]), found
    assert all("; " in line for line in found)


def test_all_mistakes_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    """Whoever mends a file should have to run it once."""
    text = FLIGHTS.replace("kind: events", "kind: event").replace("2013-12-01", "2013-13-01")
    text = text.replace("catchup: true", "catchup: 1") + "kind: events\nretries: x\nquery: 1\n"
    found = mistakes(written(tmp_path, text))
    assert [line.split(":")[1] for line in found] == ["3", "7", "8", "16", "17", "18"]


def test_each_stream_reports_its_own_mistakes(tmp_path: Path) -> None:
    """Paths name the item; a value that came from the top level is reported where it stands."""
    text = REFERENCE.replace("kind: snapshots", "kind: snapshot").replace(
        "keys: [faa]", "keys: faa"
    )
    assert [line[:45] for line in mistakes(written(tmp_path, text, "reference.yaml"))] == [
        "reference.yaml:2: streams[0].kind: 'snapshot'",
        "reference.yaml:2: streams[1].kind: 'snapshot'",
        "reference.yaml:11: streams[1].target.keys: a ",
    ]


def test_mistakes_in_defaults_are_reported_in_defaults(tmp_path: Path) -> None:
    """The line is that of the file in which the value stands."""
    written(tmp_path, "# ours\nretries: many\nstream: x\nsource: {conn: a}\n", "defaults.yaml")
    assert [line[:40] for line in mistakes(written(tmp_path, FLIGHTS))] == [
        "defaults.yaml:2: retries: a number is ex",
        "defaults.yaml:3: stream: is no default; ",
        "defaults.yaml:4: source.conn: unknown ke",
    ]


def test_a_default_that_a_file_replaces_is_not_blamed(tmp_path: Path) -> None:
    """A list of the file's own replaces the list of the defaults, lines included."""
    written(tmp_path, "tags:\n  - a\n  - b\n", "defaults.yaml")
    assert mistakes(written(tmp_path, FLIGHTS + "tags:\n  - 1\n  - c\n"))[0].startswith(
        "flights.yaml:17: tags[0]: "
    )


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        ("{", "suites/s.json:1: not readable as JSON: "),
        ('{"a": 1}', "flights.yaml:14: quality.suite: suites/s.json holds a mapping; write a list"),
        ("[]", "flights.yaml:14: quality.suite: was not read or holds no expectation; "),
        ('[\n\t{"type": "a"},\n\t3]', "suites/s.json:3: quality.expectations[1]: a mapping is "),
    ],
)
def test_mistakes_in_a_suite_are_reported_in_the_suite(
    tmp_path: Path, suite: str, expected: str
) -> None:
    """A suite's lines are its own."""
    written(tmp_path, suite, "suites/s.json")
    text = FLIGHTS.split("quality:")[0] + "quality: {suite: suites/s.json}\n"
    found = mistakes(written(tmp_path, text))
    assert any(line.startswith(expected) for line in found), found


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Bytes of another encoding are a mistake of the file, not a crash."""
    path = tmp_path / "flights.yaml"
    path.write_bytes(b"owner: \xff\xfe")
    (found,) = mistakes(path)
    assert found.startswith("flights.yaml:1: cannot be read: 'utf-8' codec can't decode byte 0xff")
    assert mistakes(tmp_path / "absent.yaml") == [
        "absent.yaml:1: cannot be read: No such file or directory; check that it exists"
    ]


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    """Nobody writes a megabyte of pipeline; a parse must not take minutes."""
    assert "larger than" in mistakes(written(tmp_path, "#" * 1_000_001))[0]


def test_a_later_refusal_names_the_lines(tmp_path: Path) -> None:
    """What is found when the DAG is built is reported like what is found when the file is read."""
    file = read_pipeline(written(tmp_path, FLIGHTS), shown_as="pipelines/flights.yaml")
    path = ("streams", 0, "quality", "expectations", 0)
    error = file.refusal([Finding(path, "is unknown", "name another")])
    assert str(error) == "pipelines/flights.yaml:15: quality[0]: is unknown; name another"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301


def test_a_mapping_reports_paths(tmp_path: Path) -> None:
    """Python users get the same messages without a file."""
    with pytest.raises(ConfigurationError) as caught:
        parse_pipeline({"pipeline": "p", "stream": "s", "kind": "eventz"}, folder=tmp_path)
    assert str(caught.value).startswith(
        "pipeline p:\n  - kind: 'eventz' is not known; did you mean 'events'?; write one of events, "
    )


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_edit_of_a_file_escapes(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever stands in a file: a pipeline, or mistakes whose lines are lines of the file."""
    start = data.draw(st.integers(0, len(FLIGHTS)))
    end = data.draw(st.integers(start, min(start + 20, len(FLIGHTS))))
    middle = data.draw(
        st.text(max_size=8)
        | st.sampled_from(["\n", ": ", "- ", "*a", "&a ", "<<: ", "{", "!!set ", "'"])
    )
    text = FLIGHTS[:start] + middle + FLIGHTS[end:]
    path = tmp_path / "flights.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        problems = None
        assert isinstance(read_pipeline(path).pipeline, Pipeline)
    except PipelineFileError as error:
        problems = error.problems
    lines = len(text.splitlines()) + 1
    assert problems is None or len(problems) > 0
    assert all(1 <= problem.line <= lines and problem.what for problem in problems or ())
