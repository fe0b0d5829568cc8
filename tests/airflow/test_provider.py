"""What Airflow knows of this provider, and what importing it costs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path
from zipfile import ZipFile

import pytest
from airflow import __file__ as airflow_file
from jsonschema import Draft7Validator

from airflow_etl_provider.get_provider_info import get_provider_info

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )


def test_the_provider_info_is_valid() -> None:
    """Against Airflow's own schema, which the providers manager refuses unknown shapes by."""
    schema = json.loads((Path(airflow_file).parent / "provider_info.schema.json").read_text())
    errors = [error.message for error in Draft7Validator(schema).iter_errors(get_provider_info())]
    assert errors == []
    assert set(get_provider_info()) <= set(schema["properties"])
    assert get_provider_info()["package-name"] == PROJECT["project"]["name"]


def test_airflow_finds_it_by_its_entry_point() -> None:
    """Installed, it announces itself once."""
    (found,) = [
        point
        for point in entry_points(group="apache_airflow_provider")
        if point.value.startswith("airflow_etl_provider")
    ]
    assert found.load()() == get_provider_info()


def test_the_command_line_shows_it() -> None:
    """As the documentation tells users to check their installation."""
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "providers", "get", "airflow-etl-provider", "-o", "json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout[done.stdout.index("[") :]
    assert json.loads(shown)[0]["Provider"] == "airflow-etl-provider"
    assert json.loads(shown)[0]["Version"] == version("airflow-etl-provider")


def test_every_module_it_names_exists() -> None:
    """A name that cannot be imported would break the registry's pages and the hook's list."""
    info = get_provider_info()
    named = [
        module
        for group in ("operators", "hooks", "sensors", "triggers", "bundles")
        for entry in info.get(group, [])
        for module in entry["python-modules"]
    ]
    assert named
    for module in named:
        importlib.import_module(module)
    operators = {path.stem for path in (REPOSITORY / "airflow_etl_provider/operators").glob("*.py")}
    declared = {module.rsplit(".", 1)[1] for module in named if ".operators." in module}
    assert operators - declared == {"__init__", "metrics", "run", "stream_checks"}
    names = {entry["integration-name"] for entry in info["integrations"]}
    for group in ("operators", "hooks"):
        assert {entry["integration-name"] for entry in info[group]} <= names


@pytest.mark.parametrize(
    "code",
    [
        "from airflow_etl_provider.operators import extract, publish, transform, validate",
        "from airflow_etl_provider.stores import variable",
        "from airflow_etl_provider.factories import build_pipeline, load_pipelines",
    ],
)
def test_parsing_imports_nothing_heavy(code: str) -> None:
    """Each DAG file is parsed in a process of its own, every thirty seconds."""
    heavy = (
        "great_expectations",
        "pandas",
        "numpy",
        "scipy",
        "pyarrow",
        "openlineage.client.facet_v2",
    )
    done = python(f"import sys\n{code}\nprint([m for m in {heavy!r} if m in sys.modules])")
    assert done.stdout.splitlines()[-1] == "[]"


def test_making_operators_imports_nothing_heavy_and_opens_nothing() -> None:
    """A suite is read and checked while the DAG is parsed, without Great Expectations or a socket."""
    code = """
import socket, sys
def refuse(*_, **__): raise AssertionError("a connection was opened")
socket.socket.connect = refuse
from airflow.sdk import DAG
from airflow_etl_provider.operators.extract import IncrementalExtractOperator
from airflow_etl_provider.operators.validate import QualityValidationOperator
from airflow_etl_provider.operators.publish import PartitionSwapOperator
with DAG("d", schedule=None):
    e = IncrementalExtractOperator(task_id="e", stream="s", kind="events", source_conn_id="a", source="t",
        target_conn_id="b", target="t", cursor="c")
    v = QualityValidationOperator(task_id="v", batch=e.output,
        expectations=[{"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "c"}}])
    PartitionSwapOperator(task_id="p", batch=v.output)
print([m for m in ("great_expectations", "pandas", "numpy") if m in sys.modules])
"""
    assert python(code).stdout.splitlines()[-1] == "[]"


def test_operators_need_no_openlineage_to_be_imported() -> None:
    """A worker whose OpenLineage provider is broken still loads data."""
    code = """
import sys
sys.modules["airflow.providers.openlineage.extractors"] = None
sys.modules["openlineage.client.event_v2"] = None
from airflow_etl_provider.operators import extract, publish, transform, validate
print("imported")
"""
    assert python(code).stdout.splitlines()[-1] == "imported"


def test_templates_are_the_documented_ones() -> None:
    """Suites hold regular expressions and formats that Jinja would choke on."""
    from airflow_etl_provider.operators.extract import IncrementalExtractOperator
    from airflow_etl_provider.operators.publish import PartitionSwapOperator
    from airflow_etl_provider.operators.transform import TransformOperator
    from airflow_etl_provider.operators.validate import QualityValidationOperator

    for operator in (
        IncrementalExtractOperator,
        TransformOperator,
        QualityValidationOperator,
        PartitionSwapOperator,
    ):
        assert tuple(operator.template_ext) == ()
        assert not {"expectations", "suite"} & set(operator.template_fields)


def test_the_wheel_carries_types_and_sql(tmp_path: Path) -> None:
    """py.typed and every data file that the package reads at run time."""
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    (wheel,) = builders.WheelBuilder(str(REPOSITORY)).build(
        directory=str(tmp_path), versions=["standard"]
    )
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = REPOSITORY / "airflow_etl_provider"
    data = {
        str(path.relative_to(REPOSITORY))
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert "airflow_etl_provider/py.typed" in data
    assert data <= names


def test_the_wheel_is_told_to_carry_everything() -> None:
    """The build's own configuration: the whole package, with nothing left out."""
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["airflow_etl_provider"]}
    assert (REPOSITORY / "airflow_etl_provider" / "py.typed").read_text() == ""
