"""Pipelines become DAGs: what users see, what Airflow finds, and what a broken file does."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import DagRunInfo
from airflow.utils.file import might_contain_dag
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunTriggeredByType, DagRunType

from airflow_etl_provider import factories
from airflow_etl_provider.config.files import PipelineFileError, read_pipeline
from airflow_etl_provider.config.models import deep_merged
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.load import RunInfo
from airflow_etl_provider.factories import build_pipeline
from airflow_etl_provider.factories.yaml_folder import InvalidPipelineOperator
from airflow_etl_provider.operators.extract import IncrementalExtractOperator
from airflow_etl_provider.operators.run import partition_interval, partition_spec
from tests.airflow.runs import Airflow, Ran
from tests.airflow.shop import ROW_CONTENT, Shop

DAGS = Path(__file__).parents[2] / "dags"
LOADER = (DAGS / "load_pipelines.py").read_text()
NEW_YORK = "America/New_York"

EVENTS: dict[str, Any] = {
    "pipeline": "flights",
    "stream": "flights",
    "kind": "events",
    "schedule": "@monthly",
    "timezone": NEW_YORK,
    "start_date": "2013-01-01",
    "end_date": "2013-12-01",
    "catchup": True,
    "source": {"conn_id": "s", "table": "public.flights", "cursor": "time_hour"},
    "target": {
        "conn_id": "t",
        "table": "analytics.flights",
        "partition": {"column": "time_hour", "every": "month"},
    },
    "quality": [{"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "carrier"}}],
}
ENTITIES: dict[str, Any] = {
    "pipeline": "planes",
    "stream": "planes",
    "kind": "entities",
    "schedule": "@hourly",
    "start_date": "2013-01-01",
    "source": {
        "conn_id": "s",
        "table": "public.planes",
        "cursor": "updated_at",
        "window": "watermark",
    },
    "target": {"conn_id": "t", "table": "analytics.planes"},
}
SETTLED: dict[str, Any] = {
    "lookback": "PT1H",
    "cursor_origin": "application",
    "settle_delay": 90,
    "settle_timeout": "PT20M",
    "settle_ignore": ["reporting", "backup"],
}
SWEPT = deep_merged(ENTITIES, {"source": {"null_cursor": "sweep"}, "target": {"keys": ["tailnum"]}})
SELECTED: dict[str, Any] = {
    "rename": {"tail": "tailnum"},
    "personal": {"pilot": "hash", "phone": None, "notes": "drop"},
    "hash_conn_id": "hash_key",
    "null_cursor": "include",
    "open_window": "clamp",
    "on_empty": "skip",
    "schema_contract": "evolve",
    "slice_rows": 5000,
    "shards": 2,
    "row_security": "apply",
    "types": {"built": "date"},
    "zero_dates": None,
}
DAILY = deep_merged(
    EVENTS,
    {
        "schedule": "@daily",
        "start_date": "2013-03-08",
        "end_date": "2013-03-11",
        "partitioned": True,
        "target": {"partition": {"every": "day"}},
    },
)
SNAPSHOTS: dict[str, Any] = {
    "pipeline": "reference",
    "kind": "snapshots",
    "source": {"conn_id": "s"},
    "target": {"conn_id": "t"},
    "streams": [
        {
            "stream": name,
            "source": {"table": f"public.{table}"},
            "target": {"table": f"analytics.{table}"},
        }
        for name, table in (("airlines", "airlines"), ("small.planes", "planes"))
    ],
}
RUN = RunInfo(
    dag_id="flights",
    task_id="extract",
    run_id="r",
    run_type="scheduled",
    map_index=-1,
    try_number=1,
    clear_number=0,
)
SWEEP = ("extract_nulls", "validate_nulls", "publish_nulls")

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A DAG folder with the documented loader and no pipelines yet."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "load_pipelines.py").write_text(LOADER)
    return tmp_path


def add(folder: Path, name: str, data: dict[str, Any] | str) -> None:
    text = data if isinstance(data, str) else json.dumps(data)
    (folder / "pipelines" / name).write_text(text)


def loaded(folder: Path) -> dict[str, DAG]:
    """What the loader gives, run as Airflow runs a DAG file."""
    path = folder / "load_pipelines.py"
    module = ModuleType("loader")
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)  # noqa: S102
    dags: dict[str, DAG] = module.__dict__["dags"]
    assert {key: value for key, value in vars(module).items() if isinstance(value, DAG)} == dags
    return dags


def stored(dag: DAG) -> SerializedDAG:
    """As the scheduler has it."""
    return DagSerialization.from_dict(DagSerialization.to_dict(dag))


def scheduled(dag: DAG) -> list[DagRunInfo]:
    """Every run of the schedule, as the scheduler finds one after the other."""
    found: list[DagRunInfo] = []
    while True:
        last = found[-1] if found else None
        info = stored(dag).next_dagrun_info(last_automated_run_info=last)
        if info is None:
            return found
        found.append(info)


def run_of(airflow: Airflow, dag: DAG, info: DagRunInfo) -> Ran:
    """The run that the scheduler makes of *info*, to its end."""
    airflow.sync(dag)
    run_id = f"scheduled__{info.partition_key}"
    with create_session() as session:
        stored(dag).create_dagrun(
            run_id=run_id,
            run_after=info.run_after,
            partition_key=info.partition_key,
            partition_date=info.partition_date,
            run_type=DagRunType.SCHEDULED,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.RUNNING,
            session=session,
        )
    return airflow.resume(dag, run_id)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Stands for a task's process, which names its DAG in the environment."""
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "two")
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_TASK_ID", "extract")
    return monkeypatch


class TestBuiltDag:
    def test_it_extracts_validates_and_publishes(self) -> None:
        """Each task carries what the pipeline says, with the pipeline's zone where none is named."""
        dag = build_pipeline(EVENTS)
        assert list(dag.task_dict) == ["extract", "validate", "publish"]
        extract, validate, publish = dag.tasks
        assert extract.downstream_task_ids == {"validate"}
        assert validate.downstream_task_ids == {"publish"}
        assert (extract.stream, extract.kind, extract.window) == ("flights", "events", "interval")
        assert (extract.source, extract.target) == ("public.flights", "analytics.flights")
        assert extract.partition == {"column": "time_hour", "every": "month", "timezone": NEW_YORK}
        assert extract.timezone == NEW_YORK
        assert validate.expectations.expectations[0].kwargs == {"column": "carrier"}
        assert (publish.strategy, publish.max_shrink) == ("auto", 0.5)

    def test_it_runs_by_intervals(self) -> None:
        """A run of the schedule has an interval that holds time, in the pipeline's zone."""
        dag = build_pipeline(EVENTS)
        assert type(dag.timetable).__name__ == "CronDataIntervalTimetable"
        assert dag.start_date == datetime(2013, 1, 1, 5, tzinfo=UTC)
        assert dag.end_date == datetime(2013, 12, 1, 5, tzinfo=UTC)
        assert (dag.catchup, dag.max_active_runs) == (True, 4)

    def test_watermark_windows_run_one_after_the_other(self) -> None:
        """Each begins where the one before was published, and the past has none."""
        dag = build_pipeline(ENTITIES)
        assert (dag.max_active_runs, dag.catchup) == (1, False)
        extract, _, publish = dag.tasks
        assert (extract.window, extract.cursor, extract.origin) == ("watermark", "updated_at", None)
        assert (extract.keys, publish.keys, publish.strategy) == ([], [], "auto")

    def test_what_a_source_says_of_late_rows_reaches_extract(self) -> None:
        """Every word of it, in the operator's own types."""
        extract = build_pipeline(deep_merged(ENTITIES, {"source": SETTLED})).get_task("extract")
        assert {name: getattr(extract, name) for name in SETTLED} == {
            "lookback": timedelta(hours=1),
            "cursor_origin": "application",
            "settle_delay": timedelta(seconds=90),
            "settle_timeout": timedelta(minutes=20),
            "settle_ignore": ["reporting", "backup"],
        }
        counted = deep_merged(ENTITIES, {"source": {"lookback": 500}})
        assert build_pipeline(counted).get_task("extract").lookback == 500

    def test_what_a_source_says_of_its_columns_and_rows_reaches_extract(self) -> None:
        """In words that Airflow can store, whatever the YAML looked like."""
        data = deep_merged(ENTITIES, {"source": SELECTED, "target": {"keys": ["tailnum"]}})
        extract = build_pipeline(data).get_task("extract")
        personal = {"pilot": "hash", "phone": "null", "notes": "drop"}
        assert {name: getattr(extract, name) for name in SELECTED} == SELECTED | {
            "personal": personal,
            "zero_dates": "null",
        }
        assert {type(value) for value in extract.personal.values()} == {str}
        assert {
            type(getattr(extract, name)) for name in ("null_cursor", "on_empty", "schema_contract")
        } == {str}
        whole = deep_merged(EVENTS, {"source": {"slice_rows": 0}})
        assert build_pipeline(whole).get_task("extract").slice_rows is None

    @pytest.mark.parametrize("data", [EVENTS, ENTITIES], ids=["events", "entities"])
    def test_what_a_source_does_not_say_is_the_operators(self, data: dict[str, Any]) -> None:
        """Its defaults are written in one place."""
        extract = build_pipeline(data).get_task("extract")
        known = inspect.signature(IncrementalExtractOperator.__init__).parameters
        names = {*SETTLED, *SELECTED, "columns"}
        assert names <= set(known)
        assert {name: getattr(extract, name) for name in names} == {
            name: known[name].default for name in names
        }

    def test_a_query_is_extracted(self, folder: Path) -> None:
        """From the file or the key, and it stays a query when its name ends like a file's."""
        text = "SELECT * FROM public.planes WHERE updated_at >= :low AND updated_at < :high"
        query = {"table": None, "query": text}
        extract = build_pipeline(deep_merged(ENTITIES, {"source": query})).get_task("extract")
        assert extract.source == text
        query = {"table": None, "query_file": "planes.sql"}
        add(folder, "planes.yaml", deep_merged(ENTITIES, {"source": query}))
        add(folder, "planes.sql", f"-- by change\n{text}\n")
        extract = loaded(folder)["planes"].get_task("extract")
        assert extract.source == f"-- by change\n{text}"
        assert not extract.template_ext

    def test_an_audit_against_the_source_knows_its_query(self) -> None:
        """A batch does not carry it; of a table it carries the name."""
        quality = {"quality": [{"type": "expect_batch_to_match_source"}]}
        text = "SELECT * FROM public.planes"
        query = {"source": {"table": None, "query": text}}
        for change, source in ((query, None), (quality, None), (deep_merged(query, quality), text)):
            validate = build_pipeline(deep_merged(ENTITIES, change)).get_task("validate")
            assert validate.source == source

    def test_rows_without_a_cursor_value_are_swept_after_publish(self) -> None:
        """By three tasks of their own, which never race with the stream's others."""
        quality = [
            {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "tailnum"}},
            {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 10}},
            {"type": "expect_batch_row_count_to_match_history"},
            {"type": "expect_batch_to_be_fresh"},
        ]
        source = {"lookback": "PT1H", "on_empty": "fail", "rename": {"built": "year"}}
        dag = build_pipeline(deep_merged(SWEPT, {"quality": quality, "source": source}))
        names = ["extract", "validate", "publish"]
        assert list(dag.task_dict) == [*names, *(f"{name}_nulls" for name in names)]
        chain = [dag.get_task(name) for name in dag.task_dict]
        for before, after in itertools.pairwise(chain):
            assert before.downstream_task_ids == {after.task_id}
        extract, validate, publish, sweep, its_audit, its_publish = chain
        for name in ("stream", "kind", "source", "target", "cursor", "keys", "rename", "timezone"):
            assert getattr(sweep, name) == getattr(extract, name), name
        assert (extract.window, extract.null_cursor, extract.on_empty) == (
            "watermark",
            "sweep",
            "fail",
        )
        assert (sweep.window, sweep.null_cursor, sweep.on_empty) == ("nulls", "sweep", "skip")
        assert (extract.lookback, sweep.lookback) == (timedelta(hours=1), timedelta(0))
        assert (publish.strategy, its_publish.strategy) == ("auto", "merge")
        assert (extract.trigger_rule, sweep.trigger_rule) == ("all_success", "none_failed")
        assert [e.type for e in validate.expectations.expectations] == [e["type"] for e in quality]
        assert [e.type for e in its_audit.expectations.expectations] == [quality[0]["type"]]

    def test_a_sweep_stands_in_the_group_of_its_stream(self) -> None:
        """Of several streams only one may have such rows."""
        own = ("stream", "kind", "source", "target")
        streams = [{key: data[key] for key in own} for data in (EVENTS, SWEPT)]
        dag = build_pipeline({"pipeline": "all", "streams": streams})
        assert len(dag.tasks) == 9
        assert dag.get_task("planes.publish").downstream_task_ids == {"planes.extract_nulls"}
        assert dag.get_task("planes.publish_nulls").downstream_task_ids == set()

    @pytest.mark.parametrize(
        ("change", "strategy"),
        [
            ({"target": {"strategy": "merge", "keys": ["tailnum"]}}, "merge"),
            ({"source": {"window": "interval"}, "target": {"strategy": "merge"}}, "merge"),
            (
                {"source": {"window": "full", "cursor": None}, "target": {"strategy": "replace"}},
                "replace",
            ),
            ({"kind": "events", "target": {"strategy": "delete_insert"}}, "delete_insert"),
        ],
    )
    def test_every_strategy_reaches_publish(self, change: dict[str, Any], strategy: str) -> None:
        """As the pipeline names it."""
        publish = build_pipeline(deep_merged(ENTITIES, change)).get_task("publish")
        assert (publish.strategy, type(publish.strategy)) == (strategy, str)

    def test_partitions_of_entities_can_be_made(self) -> None:
        """By another column than the cursor, whatever the schedule: missing ones are made."""
        change = {"target": {"partition": {"column": "built", "every": "year"}}}
        extract = build_pipeline(deep_merged(ENTITIES, change)).get_task("extract")
        assert extract.partition == {"column": "built", "every": "year", "timezone": "UTC"}

    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"target": {"strategy": "delete_insert"}},
            {"catchup": False, "source": {"window": "watermark"}},
        ],
        ids=["auto", "delete_insert", "watermark"],
    )
    def test_a_window_may_be_part_of_a_partition(self, change: dict[str, Any]) -> None:
        """A day into month partitions: its rows are replaced in place."""
        dag = build_pipeline(deep_merged(EVENTS, {"schedule": "@daily"} | change))
        assert dag.get_task("extract").partition["every"] == "month"

    def test_every_task_retries_with_backoff_and_ends(self) -> None:
        """A plain True would mean no backoff; a task without timeout may hang for ever."""
        for task in build_pipeline(EVENTS | {"retries": 5, "owner": "data"}).tasks:
            assert (task.retries, task.retry_delay) == (5, timedelta(seconds=30))
            assert task.retry_exponential_backoff == 2.0
            assert task.max_retry_delay == timedelta(minutes=10)
            assert task.execution_timeout == timedelta(hours=6)
            assert task.owner == "data"

    @pytest.mark.parametrize(
        ("change", "origin"),
        [
            ({}, "2013-01-01T00:00:00-05:00"),
            ({"start_date": "2013-01-15"}, "2013-02-01T00:00:00-05:00"),
            ({"catchup": False}, None),
            ({"schedule": None, "catchup": False}, None),
        ],
    )
    def test_the_stream_starts_with_the_first_interval(
        self, change: dict[str, Any], origin: str | None
    ) -> None:
        """Only a catchup loads everything since start_date, so only then is the start known."""
        assert build_pipeline(EVENTS | change).get_task("extract").origin == origin

    def test_several_streams_are_task_groups(self) -> None:
        """Streams do not wait for each other; a dot cannot stand in the id of a group."""
        dag = build_pipeline(SNAPSHOTS)
        assert list(dag.task_dict) == [
            f"{group}.{task}"
            for group in ("airlines", "small_planes")
            for task in ("extract", "validate", "publish")
        ]
        assert dag.get_task("small_planes.extract").stream == "small.planes"
        assert dag.get_task("airlines.publish").downstream_task_ids == set()
        assert dag.max_active_runs == 1

    def test_a_window_by_hand_may_be_left_empty(self) -> None:
        """A scheduled DAG needs params that are valid as they are; given ones must be date-times."""
        params = build_pipeline(EVENTS).params
        assert dict(params) == {"max_shrink": None, "window_low": None, "window_high": None}
        params["window_low"] = "2013-01-01T00:00:00-05:00"
        with pytest.raises(ParamValidationError):
            params["window_high"] = 3
        with pytest.raises(ParamValidationError):
            params["max_shrink"] = 2
        assert dict(build_pipeline(SNAPSHOTS).params) == {"max_shrink": None}
        assert set(build_pipeline(ENTITIES).params) == {"max_shrink", "window_low", "window_high"}

    def test_its_page_tells_the_story(self) -> None:
        """What it loads, from where to where, what is checked and what to do at night."""
        page = build_pipeline(EVENTS | {"description": "All flights"}).doc_md or ""
        for part in (
            "All flights",
            "`public.flights` of connection `s`",
            "`analytics.flights` of connection `t`",
            "one per month of `time_hour`, America/New_York",
            "- **critical**: `expect_column_values_to_not_be_null`, column `carrier`",
            "`window_low`",
            "## When it fails",
            "it catches up from 2013-01-01T",
            "| strategy | auto: where the window is made of whole partitions, whole partitions are built aside",
            "lose more than 50% of the rows",
            "1 replaced version(s)",
        ):
            assert part in page
        for part in (
            "watermark window",
            "late rows",
            "must be made of whole",
            "leave the window empty",
        ):
            assert part not in page

    def test_its_page_tells_of_late_rows_and_keys(self) -> None:
        """What is declared, in words that need no manual; and nothing that is not so."""
        page = build_pipeline(deep_merged(ENTITIES, {"source": SETTLED})).doc_md or ""
        for part in (
            "on `updated_at`, from the watermark, less 1 h for late rows, up to where no more rows can be added |",
            "| written by | `updated_at`: an application, which may commit a row later than it stamps it |",
            "| late rows | an application may commit a row up to 1 min 30 s late |",
            "| open transactions | waited for up to 20 min, then extract fails and names them |",
            "| not waited for | transactions of `reporting`, `backup`, which never write there |",
            "| key | the primary key of the target, which must have one |",
            "| strategy | auto: rows are updated and inserted by key; a row that is gone from the source stays; ",
            "; one whose `updated_at` is newer in the target is not overwritten |",
            "one run at a time",
            "The first run reads everything there is.",
            "- What is new: *Trigger*, and leave the window empty.",
            "The cursor must hold dates or times.",
            "Each run reads its own interval again, and the watermark stays where it is.",
        ):
            assert part in page
        for part in ("would lose more than", "replaced version(s)", "None", "WindowMode"):
            assert part not in page
        counted = build_pipeline(deep_merged(ENTITIES, {"source": {"lookback": 5000}})).doc_md or ""
        assert "less 5,000 for late rows," in counted
        assert "written by" not in counted
        whole = deep_merged(ENTITIES, {"source": {"window": "full", "cursor": None}})
        assert "newer in the target" not in (build_pipeline(whole).doc_md or "")

    def test_its_page_tells_what_becomes_of_columns_and_odd_rows(self) -> None:
        """Renamed, treated, left out; without a cursor value, in no row, in a window that is open."""
        data = deep_merged(ENTITIES, {"source": SELECTED, "target": {"keys": ["tailnum"]}})
        page = build_pipeline(data).doc_md or ""
        for part in (
            "| renamed | `tail` is `tailnum` in the target |",
            "| personal data | `pilot`: hashed, with the password of connection `hash_key` as the key |",
            "| personal data | `phone`: NULL |",
            "| personal data | `notes`: not read |",
            "| no `updated_at` | a row without a value comes with every window outside backfills, merged by key |",
            "| empty window | counted as loaded; validate and publish are skipped |",
            "| columns that are new in the source | added to the target, and wider ones widened there |",
            "| interval that has not ended | loaded up to where no more rows can be added, and counted as loaded no f",
            "| slices | a window of more than 5,000 rows is staged in slices |",
            "| read at once | 2 slices, in one snapshot |",
            "| row security | of the source is applied",
            "| types | `built` is `date` |",
            "| zero dates | NULL |",
        ):
            assert part in page
        assert "extract_nulls" not in page
        plain = build_pipeline(EVENTS).doc_md or ""
        for part in (
            "| no `time_hour` | a row without a value fails the load: no window would ever hold it |",
            "| empty window | checked and published like any other |",
            "| columns that are new in the source | refused, with the statement to approve |",
            "| interval that has not ended | refused |",
        ):
            assert part in plain
        for part in ("renamed", "personal data", "slices", "row security", "types |", "zero dates"):
            assert part not in plain
        swept = deep_merged(SWEPT, {"source": {"rename": {"updated_at": "at"}, "slice_rows": 0}})
        page = build_pipeline(swept).doc_md or ""
        for part in (
            "a row without a value is left to a load of its own, which follows each publish and merges by key |",
            "one whose `at` is newer in the target is not overwritten",
            "| slices | none: every window is staged in one piece |",
            "- **extract_nulls**, **validate_nulls** and **publish_nulls** do the same with the rows without a",
        ):
            assert part in page
        dropped = deep_merged(ENTITIES, {"source": {"personal": {"updated_at": "drop"}}})
        assert "newer in the target" not in (build_pipeline(dropped).doc_md or "")
        whole = build_pipeline(SNAPSHOTS).doc_md or ""
        assert "| empty window |" in whole
        assert "not ended" not in whole

    def test_its_page_tells_of_partition_keys(self) -> None:
        """Which one a run has, and how to load another."""
        page = build_pipeline(DAILY).doc_md or ""
        for part in (
            "| window | the partition that the run's key names, on `time_hour` |",
            "A run has the key of the partition that has just ended, which is its start on the clock of",
            "America/New_York, and loads it; it catches up from 2013-03-08T00:00:00-05:00.",
            "The last partition begins at 2013-03-11T00:00:00-04:00.",
            "- One partition: *Trigger* with its partition key, such as `2013-01-01T00:00:00`.",
            "- Many partitions: *Trigger*, *Backfill*, or",
            "End with one that is over.",
        ):
            assert part in page
        assert "data interval" not in page
        later = build_pipeline(DAILY | {"catchup": False}).doc_md or ""
        assert "partitions before the DAG was switched on are not loaded by themselves" in later

    def test_its_page_tells_windows_apart(self) -> None:
        """Streams of one pipeline may be read each in its own way."""
        own = ("stream", "kind", "source", "target")
        streams = [{key: data[key] for key in own} for data in (EVENTS, ENTITIES)]
        streams.append(
            {"kind": "snapshots", "source": {"conn_id": "s"}, "target": {"conn_id": "t"}}
        )
        streams[-1] = deep_merged(streams[-1], SNAPSHOTS["streams"][0])
        page = build_pipeline(
            {"pipeline": "all", "schedule": "@monthly", "streams": streams}
        ).doc_md
        for part in (
            "Streams with window `full`: Every run reads everything",
            "Streams with window `interval`: A run loads the interval that has just ended.",
            "Streams with window `watermark`: A run loads what has come since",
        ):
            assert part in (page or "")

    def test_its_page_says_what_a_swap_asks_for(self) -> None:
        """Only then must a window by hand be made of whole partitions."""
        page = build_pipeline(deep_merged(EVENTS, {"target": {"strategy": "swap"}})).doc_md or ""
        assert "| strategy | swap: whole partitions are built aside and exchanged |" in page
        assert "The window must be made of whole partitions." in page

    def test_it_is_found_by_tags(self) -> None:
        """The user's tags, the kind, the target's schema, the window, and a strategy that was chosen."""
        tags = build_pipeline(EVENTS | {"tags": ["gold"]}).tags
        assert tags == {"etl", "gold", "events", "analytics", "window:interval"}
        tags = build_pipeline(deep_merged(ENTITIES, {"target": {"strategy": "merge"}})).tags
        assert tags == {"etl", "entities", "analytics", "window:watermark", "strategy:merge"}

    def test_it_stands_in_the_file_that_calls(self) -> None:
        """Airflow resolves relative paths and shows source by this file, not by the package's."""
        assert build_pipeline(EVENTS).fileloc == __file__

    def test_files_of_a_mapping_are_found_beside_the_caller(self) -> None:
        """A name that is not there is reported with the folder it was looked up in."""
        with pytest.raises(
            ConfigurationError, match=r"quality\.suite: no\.json .* folder airflow/"
        ):
            build_pipeline(EVENTS | {"quality": {"suite": "no.json"}})

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"schedule": "61 * * * *"}, "schedule: '61 * * * *' is no cron expression: "),
            ({"schedule": "0 0 31 2 *"}, "schedule: '0 0 31 2 *' is no cron expression: "),
            (
                {"schedule": "@daily", "target": {"strategy": "swap"}},
                "target.partition.every: schedule '@daily' in America/New_York loads ",
            ),
            (
                {"timezone": "UTC", "target": {"strategy": "swap", "partition": {"timezone": "Europe/London"}}},
                "target.partition.every: schedule '@monthly' in UTC loads 2013-05-01T01:00:00+01:00 to ",
            ),
            ({"stream": "tokens"}, "stream: 'tokens' holds a word that Airflow masks"),
            (
                {"quality": [{"type": "expect_nothing"}, {"type": "expect_table_row_count_to_equal"}]},
                "quality[0]: unknown expectation type 'expect_nothing'",
            ),
            (
                {"quality": [EVENTS["quality"][0], {"type": "expect_table_row_count_to_equal"}]},
                "quality[1]: expect_table_row_count_to_equal needs value",
            ),
            (
                {
                    "kind": "snapshots", "schedule": None, "catchup": False, "source": {"cursor": None}, "target": {"partition": None},
                    "quality": [{"type": "expect_batch_to_be_fresh"}],
                },
                "quality[0]: expect_batch_to_be_fresh has no column, and the stream no cursor to take instead; ",
            ),
            (
                {"quality": [{"type": "expect_batch_to_be_fresh", "kwargs": {"max_age": 3600}}]},
                "quality[0]: max_age is 3600, not a duration",
            ),
            (
                {"partitioned": True, "schedule": "@daily"},
                "target.partition.every: schedule '@daily' in America/New_York loads 2013-01-01T00:00:00-05:00 to ",
            ),
            (
                {"partitioned": True, "schedule": "@yearly"},
                "target.partition.every: schedule '@yearly' in America/New_York loads ",
            ),
            (
                {"partitioned": True, "schedule": "0 0 * * 1-5", "target": {"partition": {"every": "day"}}},
                "target.partition.every: schedule '0 0 * * 1-5' in America/New_York loads 2013-01-04T00:00:00-05:00 to ",
            ),
            (
                {"partitioned": True, "schedule": "0 * * * 1-5", "target": {"partition": {"every": "hour"}}},
                "target.partition.every: schedule '0 * * * 1-5' in America/New_York loads 2013-01-04T23:00:00-05:00 to ",
            ),
            (
                {"partitioned": True, "schedule": "0 5 1 * *"},
                "target.partition.every: schedule '0 5 1 * *' in America/New_York loads 2013-01-01T05:00:00-05:00 to ",
            ),
            (
                {"partitioned": True, "target": {"partition": {"timezone": "UTC"}}},
                "target.partition.every: schedule '@monthly' in America/New_York loads ",
            ),
            (
                {"partitioned": True, "schedule": "0 0 31 2 *"},
                "schedule: '0 0 31 2 *' is no cron expression: ",
            ),
        ],
    )  # fmt: skip
    def test_what_cannot_run_is_refused_when_it_is_built(
        self, change: dict[str, Any], expected: str
    ) -> None:
        """Schedule, partitions and expectations are checked together, long before data moves."""
        with pytest.raises(ConfigurationError) as caught:
            build_pipeline(deep_merged(EVENTS, change))
        assert f"\n  - {expected}" in str(caught.value)

    @pytest.mark.parametrize(
        ("schedule", "every"),
        [
            ("@hourly", "hour"),
            ("@daily", "day"),
            ("0 0 * * 1", "week"),
            ("@monthly", "month"),
            ("@quarterly", "quarter"),
            ("@yearly", "year"),
        ],
    )
    def test_every_length_of_partitions_has_a_schedule(self, schedule: str, every: str) -> None:
        """Also where the clock is set back and forth."""
        data = {"partitioned": True, "schedule": schedule, "end_date": None}
        build_pipeline(deep_merged(EVENTS, data | {"target": {"partition": {"every": every}}}))

    def test_a_run_has_one_partition_and_no_more(self) -> None:
        """Twelve of them, which a swap could exchange at once, are more than a key can name."""
        year = {"partitioned": True, "schedule": "@yearly", "target": {"strategy": "swap"}}
        with pytest.raises(ConfigurationError, match="which is not one partition of one month in"):
            build_pipeline(deep_merged(EVENTS, year))

    def test_intervals_after_the_end_do_not_matter(self) -> None:
        """London and UTC part in summer; a pipeline that ends before never sees it."""
        target = {"strategy": "swap", "partition": {"timezone": "Europe/London"}}
        winter = {"timezone": "UTC", "target": target}
        build_pipeline(deep_merged(EVENTS, winter | {"end_date": "2013-02-01"}))

    def test_a_whole_number_of_partitions_may_be_loaded_at_once(self) -> None:
        """A yearly run of monthly partitions swaps twelve."""
        swap = {"schedule": "@yearly", "target": {"strategy": "swap"}}
        assert build_pipeline(deep_merged(EVENTS, swap)).get_task("publish").strategy == "swap"


class TestPartitionedRuns:
    def test_the_run_of_a_day_loads_the_day_before(self) -> None:
        """From start_date to end_date, both partitions included, as with data intervals."""
        dag = build_pipeline(DAILY)
        extract = dag.get_task("extract")
        assert extract.origin == "2013-03-08T00:00:00-05:00"
        days = []
        for info in scheduled(dag):
            spec = partition_spec(extract.partition)
            found = partition_interval(info.partition_key or "", info.partition_date, spec, RUN)
            assert found.end == info.run_after
            # The key alone, which a run by hand may have been given, means the same.
            assert partition_interval(info.partition_key or "", None, spec, RUN) == found
            days.append((found.start.isoformat(), info.partition_key))
        assert days == [
            ("2013-03-08T05:00:00+00:00", "2013-03-08T00:00:00"),
            ("2013-03-09T05:00:00+00:00", "2013-03-09T00:00:00"),
            ("2013-03-10T05:00:00+00:00", "2013-03-10T00:00:00"),  # 23 hours
            ("2013-03-11T04:00:00+00:00", "2013-03-11T00:00:00"),
        ]

    @pytest.mark.parametrize(
        ("start", "end", "days"),
        [
            ("2013-03-08T12:00:00", "2013-03-10T12:00:00", ["09", "10"]),
            ("2013-03-08T12:00:00", "2013-03-08T18:00:00", []),
            ("2013-03-08", "2013-03-08", ["08"]),
        ],
    )
    def test_dates_within_a_day_are_those_of_intervals(
        self, start: str, end: str, days: list[str]
    ) -> None:
        """The first partition begins at start_date or later, the last one at end_date or before."""
        dates = {"start_date": start, "end_date": end}
        keys = [f"2013-03-{day}T00:00:00" for day in days]
        assert [info.partition_key for info in scheduled(build_pipeline(DAILY | dates))] == keys
        plain = build_pipeline(DAILY | dates | {"partitioned": False})
        assert [
            info.data_interval.start.in_timezone(NEW_YORK).strftime("%Y-%m-%dT%H:%M:%S")
            for info in scheduled(plain)
            if info.data_interval is not None
        ] == keys

    def test_without_a_catchup_the_partition_that_has_just_ended_is_first(self) -> None:
        """Not the one that begins now, which a run without an offset would name."""
        dag = build_pipeline(DAILY | {"catchup": False, "end_date": None})
        info = stored(dag).next_dagrun_info(last_automated_run_info=None)
        assert info is not None
        assert info.partition_date is not None
        now = datetime.now(UTC)
        assert info.partition_date < info.run_after <= now < info.run_after + timedelta(hours=26)

    def test_it_may_be_without_dates(self) -> None:
        """Then nothing is known of where the stream starts."""
        dag = build_pipeline(DAILY | {"catchup": False, "start_date": None, "end_date": None})
        assert (dag.start_date, dag.end_date) == (None, None)
        assert dag.get_task("extract").origin is None

    def test_a_partition_is_loaded_and_no_other(self, shop: Shop, airflow: Airflow) -> None:
        """Through Airflow's own runs: the first of the schedule loads January, on the first of February."""
        dag = build_pipeline(
            {
                "pipeline": shop.stream,
                "stream": shop.stream,
                "kind": "events",
                "schedule": "@monthly",
                "partitioned": True,
                "start_date": "2013-01-01",
                "end_date": "2013-03-01",
                "catchup": True,
                "retries": 0,
                "source": {"conn_id": "shop", "table": "public.orders", "cursor": "at"},
                "target": {
                    "conn_id": "dwh",
                    "table": "a.orders",
                    "partition": {"column": "at", "every": "month"},
                },
            }
        )
        january, february, march = scheduled(dag)
        assert january.run_after == datetime(2013, 2, 1, tzinfo=UTC)
        months = "SELECT DISTINCT extract(month FROM at)::int, count(*) FROM a.orders GROUP BY 1 ORDER BY 1"
        for info in (february, january):
            ran = run_of(airflow, dag, info)
            assert ran.state == "success", ran.errors
            window = ran.xcom("extract")["window"]
            assert window["low"].startswith(str(info.partition_date)[:10])
        assert shop.warehouse.run(months) == [(1, 1000), (2, 1000)]
        assert (shop.agreed()[0] or "").startswith("2013-03-01")
        assert march.partition_key == "2013-03-01T00:00:00"


class TestQueriesAndSweeps:
    def test_a_renamed_hashed_and_swept_stream(
        self, shop: Shop, airflow: Airflow, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A pipeline with nearly everything: what arrives, and what a run without such rows does."""
        monkeypatch.setenv("AIRFLOW_CONN_HASH_KEY", "generic://:a-long-random-key@")
        shop.source.run(
            "CREATE TABLE people (nr int PRIMARY KEY, name text, phone text, seen timestamptz)"
        )
        shop.source.run(
            f"INSERT INTO people VALUES (1, '{ROW_CONTENT}', '1', '2013-01-01'), (2, 'b', '2', '2013-01-02'),"
            " (3, 'c', '3', NULL)"
        )
        shop.warehouse.run(
            "CREATE TABLE a.people (id int PRIMARY KEY, name text, phone text, changed timestamptz)"
        )
        dag = build_pipeline(
            {
                "pipeline": shop.stream,
                "stream": shop.stream,
                "kind": "entities",
                "retries": 0,
                "source": {
                    "conn_id": "shop",
                    "query": "SELECT * FROM people WHERE nr < 10",
                    "cursor": "seen",
                    "window": "watermark",
                    "settle_delay": 0,
                    "null_cursor": "sweep",
                    "on_empty": "skip",
                    "rename": {"nr": "id", "seen": "changed"},
                    "personal": {"name": "hash", "phone": None},
                    "hash_conn_id": "hash_key",
                },
                "target": {"conn_id": "dwh", "table": "a.people", "keys": ["id"]},
                "quality": [
                    {"type": "expect_column_values_to_be_null", "kwargs": {"column": "phone"}},
                    {"type": "expect_table_row_count_to_equal", "kwargs": {"value": 2}},
                ],
            }
        )
        first = airflow.run(dag)
        assert first.state == "success", first.errors
        assert set(first.task_states().values()) == {"success"}
        rows = shop.warehouse.run(
            "SELECT id, length(name), phone, changed IS NULL FROM a.people ORDER BY 1"
        )
        assert rows == [(1, 64, None, False), (2, 64, None, False), (3, 64, None, True)]
        tasks = "SELECT task_id, state FROM etl.loads ORDER BY seq"
        assert shop.warehouse.run(tasks) == [
            ("extract", "published"),
            ("extract_nulls", "published"),
        ]
        fence = shop.agreed()[1]
        shop.source.run("DELETE FROM people WHERE seen IS NULL")
        second = airflow.run(dag)
        assert second.state == "success", second.errors
        assert set(second.task_states().values()) == {"skipped"}
        # The window is empty and is skipped, and the row without a value arrives all the same.
        shop.source.run("INSERT INTO people VALUES (4, 'd', '4', NULL), (11, 'e', '5', NULL)")
        third = airflow.run(dag)
        assert third.state == "success", third.errors
        states = third.task_states()
        assert {states.pop(name) for name in SWEEP} == {"success"}
        assert set(states.values()) == {"skipped"}
        assert shop.rows("a.people") == 4
        assert shop.agreed()[1] == fence + 2  # the two empty windows, and no sweep


class TestFolder:
    def test_each_file_is_a_dag(self, folder: Path) -> None:
        """The loader of the documentation, in three lines, with every DAG found."""
        add(folder, "flights.yaml", EVENTS)
        add(folder, "reference.yml", SNAPSHOTS)
        add(folder, "defaults.yaml", {"owner": "data"})
        dags = loaded(folder)
        assert sorted(dags) == ["flights", "reference"]
        assert dags["flights"].fileloc == str(folder / "load_pipelines.py")
        assert dags["flights"].get_task("extract").owner == "data"

    def test_a_broken_file_stands_beside_the_others(self, folder: Path) -> None:
        """Its placeholder says what is wrong on its page and fails with the same words."""
        add(folder, "flights.yaml", EVENTS)
        add(folder, "bad.yaml", "pipeline: bad\nschedule: * * * * *\n")
        misfit = {"pipeline": "late", "schedule": "@daily", "target": {"strategy": "swap"}}
        add(folder, "late.yaml", deep_merged(EVENTS, misfit))
        dags = loaded(folder)
        assert sorted(dags) == ["bad", "flights", "late"]
        assert list(dags["flights"].task_dict) == ["extract", "validate", "publish"]
        for name, said in (("bad", "pipelines/bad.yaml:2: "), ("late", "pipelines/late.yaml:1: ")):
            broken = dags[name]
            (task,) = broken.tasks
            assert isinstance(task, InvalidPipelineOperator)
            assert broken.tags == {"etl", "invalid"}
            assert not broken.timetable.can_be_scheduled
            assert said in (broken.doc_md or "")
            with pytest.raises(AirflowFailException, match=said):
                task.execute({})

    def test_a_file_that_no_dag_can_be_built_of_is_a_placeholder(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever Airflow refuses concerns one file."""

        def refuse(**_: Any) -> None:
            raise RuntimeError("no operators today")

        monkeypatch.setattr(f"{factories.__name__}.dag.PartitionSwapOperator", refuse)
        add(folder, "flights.yaml", EVENTS)
        assert "no operators today" in (loaded(folder)["flights"].doc_md or "")

    def test_names_that_differ_in_their_ending_only_are_one_dag(self, folder: Path) -> None:
        """Neither wins: which one was meant is not ours to guess."""
        add(folder, "flights.yaml", EVENTS)
        add(folder, "flights.yml", EVENTS)
        assert "flights.yaml and flights.yml are one DAG" in (
            loaded(folder)["flights"].doc_md or ""
        )

    def test_a_name_that_cannot_be_an_id_is_shown_all_the_same(self, folder: Path) -> None:
        """A broken name must not take the loader down."""
        add(folder, "my flights!.yaml", EVENTS)
        dags = loaded(folder)
        assert list(dags) == ["my_flights_"]
        assert "is not the name of its file" in (dags["my_flights_"].doc_md or "")

    def test_a_missing_folder_is_an_import_error(self, tmp_path: Path) -> None:
        """Nothing can stand in for a folder: the loader's own file is wrong."""
        (tmp_path / "load_pipelines.py").write_text(LOADER)
        with pytest.raises(ConfigurationError, match="there is no folder"):
            loaded(tmp_path)

    def test_strict_raises_every_mistake_of_every_file(self, folder: Path) -> None:
        """For continuous integration, which wants an exit code."""
        add(folder, "one.yaml", EVENTS)
        add(folder, "two.yaml", "a: [")
        path = folder / "load_pipelines.py"
        path.write_text(LOADER.replace('("pipelines")', '("pipelines", strict=True)'))
        with pytest.raises(PipelineFileError) as caught:
            loaded(folder)
        assert [problem.file for problem in caught.value.problems] == [
            "pipelines/one.yaml",
            "pipelines/two.yaml",
        ]

    def test_a_task_opens_the_file_of_its_own_dag_only(
        self, folder: Path, only: pytest.MonkeyPatch
    ) -> None:
        """A task's process parses the loader again; other files must not cost it time."""
        for name in ("one", "two", "three"):
            add(folder, f"{name}.yaml", EVENTS | {"pipeline": name})
        assert list(loaded(folder)) == ["two"]
        only.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "of_another_file")
        assert loaded(folder) == {}

    def test_a_change_of_any_read_file_changes_the_dag(self, folder: Path) -> None:
        """Suites are part of the DAG, so a version of the DAG has its suite."""
        add(folder, "flights.yaml", EVENTS | {"quality": {"suite": "suite.json"}})
        suite = folder / "pipelines" / "suite.json"
        suite.write_text(json.dumps(EVENTS["quality"]))
        before = loaded(folder)["flights"]
        suite.write_text(
            json.dumps([{"type": "expect_table_row_count_to_equal", "kwargs": {"value": 1}}])
        )
        after = loaded(folder)["flights"]
        assert before.doc_md != after.doc_md
        assert [e.type for e in after.get_task("validate").expectations.expectations] == [
            "expect_table_row_count_to_equal"
        ]

    def test_expectations_are_refused_at_their_line(self, folder: Path) -> None:
        """In the pipeline's own file, and in the suite's."""
        suite = [*EVENTS["quality"], {"type": "expect_nothing"}]
        add(folder, "flights.yaml", EVENTS | {"quality": {"suite": "suite.json"}})
        add(folder, "suite.json", json.dumps(suite, indent=1))
        page = loaded(folder)["flights"].doc_md or ""
        assert "pipelines/suite.json:8: quality.expectations[1]: unknown expectation type" in page


class TestAirflow:
    def test_the_shipped_dags_are_found_without_errors(self) -> None:
        """By Airflow's own search, with its safe mode on."""
        assert might_contain_dag(str(DAGS / "load_pipelines.py"), safe_mode=True)
        bag = DagBag(str(DAGS), safe_mode=True)
        assert bag.import_errors == {}
        assert set(bag.dags) == {"flights", "reference", "flights_by_hand", "replay_dead_letters"}
        assert not any("invalid" in dag.tags for dag in bag.dags.values())
        assert bag.dags["flights"].fileloc == str(DAGS / "load_pipelines.py")

    def test_the_pipeline_by_hand_is_the_pipeline_of_the_file(self) -> None:
        """Two ways to say the same thing must not drift apart."""
        bag = DagBag(str(DAGS), safe_mode=True)
        file, hand = (bag.dags[name].get_task("extract") for name in ("flights", "flights_by_hand"))
        for name in (
            "stream",
            "kind",
            "source",
            "target",
            "cursor",
            "window",
            "partition",
            "timezone",
        ):
            assert getattr(file, name) == getattr(hand, name), name
        assert bag.dags["flights_by_hand"].is_paused_upon_creation is True
        assert bag.dags["flights_by_hand"].end_date == bag.dags["flights"].end_date

    def test_a_placeholder_and_a_dag_survive_serialisation(self, folder: Path) -> None:
        """Airflow stores DAGs as JSON; what cannot be stored is an import error."""
        add(folder, "flights.yaml", EVENTS)
        add(folder, "planes.yaml", deep_merged(SWEPT, {"source": SETTLED}))
        add(folder, "daily.yaml", DAILY | {"pipeline": "daily"})
        selected = {"source": SELECTED, "target": {"keys": ["tailnum"]}, "pipeline": "selected"}
        add(folder, "selected.yaml", deep_merged(ENTITIES, selected))
        add(folder, "bad.yaml", "")
        assert len(loaded(folder)) == 5
        assert ["invalid" in dag.tags for dag in loaded(folder).values()].count(True) == 1
        for dag in loaded(folder).values():
            stored = DagSerialization.to_dict(dag)
            assert DagSerialization.from_dict(stored).dag_id == dag.dag_id

    def test_two_parses_store_the_same(self, folder: Path) -> None:
        """Otherwise each parse would be a new version of the DAG; sets differ by process."""
        add(folder, "flights.yaml", EVENTS | {"tags": ["z", "b", "a", "gold", "core"]})
        add(folder, "reference.yaml", SNAPSHOTS)
        add(folder, "planes.yaml", deep_merged(SWEPT, {"source": SETTLED}))
        add(folder, "daily.yaml", DAILY | {"pipeline": "daily"})
        add(folder, "bad.yaml", "kind: x\nsource: 1\n")
        program = (
            "import json, runpy, sys\n"
            "from airflow.serialization.serialized_objects import DagSerialization\n"
            "dags = runpy.run_path(sys.argv[1])['dags']\n"
            "from airflow.models.serialized_dag import SerializedDagModel\n"
            "stored = [DagSerialization.to_dict(dag) for dag in dags.values()]\n"
            "print(json.dumps([SerializedDagModel.hash(dag) for dag in stored]))\n"
        )
        first, second = (json.loads(run(program, folder, seed)) for seed in ("1", "2"))
        assert len(set(first)) == 5
        assert first == second

    def test_parsing_is_light_and_touches_no_database(self, folder: Path) -> None:
        """No Great Expectations, pandas or numpy, and no socket is opened."""
        add(folder, "flights.yaml", EVENTS)
        add(folder, "reference.yaml", SNAPSHOTS)
        program = (
            "import runpy, socket, sys\n"
            "def refuse(*_): raise AssertionError('parsing opened a connection')\n"
            "socket.socket.connect = refuse\n"
            "import psycopg\n"
            "psycopg.Connection.connect = refuse\n"
            "dags = runpy.run_path(sys.argv[1])['dags']\n"
            "assert not any('invalid' in dag.tags for dag in dags.values()), dags\n"
            "print([m for m in ('great_expectations', 'pandas', 'numpy') if m in sys.modules])\n"
        )
        assert run(program, folder, "0").strip() == "[]"

    def test_naming_the_factories_does_not_import_airflow(self) -> None:
        """The command line reads configuration without paying for Airflow."""
        program = "import sys, airflow_etl_provider.factories as f\nprint('airflow' in sys.modules, dir(f))"
        assert run(program, Path(), "0").strip() == "False ['build_pipeline', 'load_pipelines']"
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = factories.nothing


def run(program: str, folder: Path, seed: str) -> str:
    """*program* in a fresh interpreter, with the loader's path as its argument."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "load_pipelines.py")],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_shipped_pipelines_read_without_airflow() -> None:
    """The files are right by themselves, too."""
    for name in ("flights", "reference"):
        assert read_pipeline(DAGS / "pipelines" / f"{name}.yaml").pipeline.pipeline == name
