"""Pipelines become DAGs: what users see, what Airflow finds, and what a broken file does."""

from __future__ import annotations

import inspect
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
from airflow.serialization.serialized_objects import DagSerialization
from airflow.utils.file import might_contain_dag

from airflow_etl_provider import factories
from airflow_etl_provider.config.files import PipelineFileError, read_pipeline
from airflow_etl_provider.config.models import deep_merged
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.factories import build_pipeline
from airflow_etl_provider.factories.yaml_folder import InvalidPipelineOperator
from airflow_etl_provider.operators.extract import IncrementalExtractOperator

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

    @pytest.mark.parametrize("data", [EVENTS, ENTITIES], ids=["events", "entities"])
    def test_what_a_source_does_not_say_is_the_operators(self, data: dict[str, Any]) -> None:
        """Its defaults are written in one place."""
        extract = build_pipeline(data).get_task("extract")
        known = inspect.signature(IncrementalExtractOperator.__init__).parameters
        assert set(SETTLED) <= set(known)
        assert {name: getattr(extract, name) for name in SETTLED} == {
            name: known[name].default for name in SETTLED
        }

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
        assert dict(params) == {"window_low": None, "window_high": None}
        params["window_low"] = "2013-01-01T00:00:00-05:00"
        with pytest.raises(ParamValidationError):
            params["window_high"] = 3
        assert not dict(build_pipeline(SNAPSHOTS).params)
        assert dict(build_pipeline(ENTITIES).params) == {"window_low": None, "window_high": None}

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
                {"source": {"table": None, "query": "SELECT :low, :high"}},
                "source.query: is not read by this release",
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

    def test_intervals_after_the_end_do_not_matter(self) -> None:
        """London and UTC part in summer; a pipeline that ends before never sees it."""
        target = {"strategy": "swap", "partition": {"timezone": "Europe/London"}}
        winter = {"timezone": "UTC", "target": target}
        build_pipeline(deep_merged(EVENTS, winter | {"end_date": "2013-02-01"}))

    def test_a_whole_number_of_partitions_may_be_loaded_at_once(self) -> None:
        """A yearly run of monthly partitions swaps twelve."""
        swap = {"schedule": "@yearly", "target": {"strategy": "swap"}}
        assert build_pipeline(deep_merged(EVENTS, swap)).get_task("publish").strategy == "swap"


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
        assert set(bag.dags) == {"flights", "reference", "flights_by_hand"}
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
        add(folder, "planes.yaml", deep_merged(ENTITIES, {"source": SETTLED}))
        add(folder, "bad.yaml", "")
        assert len(loaded(folder)) == 3
        for dag in loaded(folder).values():
            stored = DagSerialization.to_dict(dag)
            assert DagSerialization.from_dict(stored).dag_id == dag.dag_id

    def test_two_parses_store_the_same(self, folder: Path) -> None:
        """Otherwise each parse would be a new version of the DAG; sets differ by process."""
        add(folder, "flights.yaml", EVENTS | {"tags": ["z", "b", "a", "gold", "core"]})
        add(folder, "reference.yaml", SNAPSHOTS)
        add(folder, "planes.yaml", deep_merged(ENTITIES, {"source": SETTLED}))
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
        assert len(set(first)) == 4
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
