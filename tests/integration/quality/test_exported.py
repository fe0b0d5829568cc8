"""Suites that the installed Great Expectations itself has written: exported, and stored in a project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_etl_provider.config.files import read_pipeline
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.operators.validate import QualityValidationOperator
from airflow_etl_provider.quality.suite import Severity, find_suite, load_suite
from tests.integration.quality.test_gallery_on_postgres import JUDGED, REFUSED

# Great Expectations imports modules that Python 3.11 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_")

SEVERITIES = [severity.value for severity in Severity]
KWARGS: Mapping[str, Mapping[str, Any]] = {
    **{kind: holding for kind, (holding, _) in JUDGED.items()},
    **{kind: kwargs for kind, (kwargs, _) in REFUSED.items()},
}


def every_type(name: str) -> Any:
    """A suite of Great Expectations' own objects: each type, severities in turn, with all that may hang on
    one.
    """
    import great_expectations as gx
    from great_expectations.expectations.registry import get_expectation_impl
    from great_expectations.expectations.row_conditions import Column

    suite = gx.ExpectationSuite(name=name, meta={"owner": "data"}, notes="all of them")
    for number, (kind, kwargs) in enumerate(KWARGS.items()):
        implementation = get_expectation_impl(kind)
        more: dict[str, Any] = {}
        if "row_condition" in implementation.__fields__:
            more["row_condition"] = (Column("bit") == 1) & Column("empty").is_null()
        suite.add_expectation(
            implementation(
                **kwargs,
                **more,
                severity=SEVERITIES[number % 3],
                meta={"ticket": number},
                notes=["first line", "second"],
                description=f"number {number}",
            )
        )
    return suite


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose ``gx/`` holds three suites."""
    import great_expectations as gx

    root = tmp_path_factory.mktemp("project")
    context = gx.get_context(mode="file", project_root_dir=root)
    for name in ("flights", "nightly.flights", "odd name"):
        context.suites.add(every_type(name))
    (root / "dags" / "pipelines").mkdir(parents=True)
    return root


def check(suite: Any) -> None:
    """Everything that decides about a verdict has arrived."""
    assert [expectation.type for expectation in suite.expectations] == list(KWARGS)
    for number, (expectation, kwargs) in enumerate(
        zip(suite.expectations, KWARGS.values(), strict=True)
    ):
        given = {key: expectation.kwargs[key] for key in kwargs}
        assert given == json.loads(json.dumps(kwargs)), expectation.type
        assert expectation.severity == SEVERITIES[number % 3]
        assert expectation.meta == {"ticket": number}
        assert expectation.description == f"number {number}"
        if "row_condition" in expectation.kwargs:
            assert {"bit", "empty"} <= set(expectation.columns())
    conditions = [e for e in suite.expectations if "row_condition" in e.kwargs]
    assert len(conditions) > 40


@pytest.mark.usefixtures("project")  # Great Expectations makes suites in a project only
def test_an_export_of_every_type_is_read(tmp_path: Path) -> None:
    """``suite.to_json_dict()`` in a file: nothing has to be edited by hand."""
    exported = tmp_path / "all.json"
    exported.write_text(json.dumps(every_type("all").to_json_dict()))
    suite = load_suite(exported)
    assert suite.name == "all"
    check(suite)


@pytest.mark.parametrize("name", ["flights", "nightly.flights", "odd name"])
def test_a_suite_of_a_project_is_found_by_its_name(project: Path, name: str) -> None:
    """From the folder of a DAG below it, wherever the working directory is."""
    suite = find_suite(f"gx:{name}", project / "dags")
    assert suite.name == name
    check(suite)


def test_the_stored_file_is_a_suite_as_it_is(project: Path) -> None:
    """So is an absolute path."""
    check(find_suite("../gx/expectations/flights.json", project / "dags"))
    check(find_suite(project / "gx/expectations/nightly/flights.json", project / "dags"))


def test_an_operator_reads_it_beside_its_dag(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the DAG is parsed; what is misspelt is an import error with the nearest name."""
    from airflow.sdk import DAG

    with DAG("by_hand", schedule=None) as dag:
        dag.fileloc = str(project / "dags" / "by_hand.py")
        task = QualityValidationOperator(
            task_id="validate", conn_id="dwh", table="a.b", suite="gx:flights"
        )
        with pytest.raises(
            ConfigurationError, match=r"no suite 'flight'; did you mean 'flights'\?"
        ):
            QualityValidationOperator(
                task_id="wrong", conn_id="dwh", table="a.b", suite="gx:flight"
            )
    assert task.expectations is not None
    check(task.expectations)


PIPELINE = """\
pipeline: flights
stream: flights
kind: snapshots
source: {conn_id: s, table: public.flights}
target: {conn_id: t, table: a.flights}
quality: """


@pytest.mark.parametrize("quality", ["gx:nightly.flights", "{suite: gx:nightly.flights}"])
def test_a_pipeline_names_it(project: Path, quality: str) -> None:
    """With ``quality:`` alone, or as its suite."""
    path = project / "dags" / "pipelines" / "flights.yaml"
    path.write_text(PIPELINE + quality + "\n")
    (stream,) = read_pipeline(path).pipeline.streams
    assert [expectation["type"] for expectation in stream.quality.expectations] == list(KWARGS)
