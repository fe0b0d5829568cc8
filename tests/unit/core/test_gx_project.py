"""Projects of Great Expectations are looked up without it; what cannot be read says what to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.gx_project import is_stored, stored_suite

CONFIG = """
stores:
  suites:
    class_name: ExpectationsStore
    store_backend: {class_name: TupleFilesystemStoreBackend, base_directory: mine/}
expectations_store_name: suites
"""


def project(folder: Path, config: str = CONFIG) -> Path:
    """A project with the suites ``flights`` and ``nightly.planes``."""
    (folder / "mine" / "nightly").mkdir(parents=True)
    (folder / "great_expectations.yml").write_text(config)
    (folder / "mine" / "flights.json").write_text("{}")
    (folder / "mine" / "nightly" / "planes.json").write_text("{}")
    (folder / "mine" / ".ge_store_backend_id").write_text("")
    return folder


def found(reference: str, beside: Path) -> Path:
    return stored_suite(reference, beside, yaml.safe_load, yaml.YAMLError)


def test_only_the_prefix_makes_a_reference() -> None:
    """Everything else is a file's name."""
    assert is_stored("gx:flights")
    assert not is_stored("gx/flights.json")


def test_the_nearest_project_counts(tmp_path: Path) -> None:
    """Beside the file first, then above it; in a folder ``gx`` or as it is."""
    project(tmp_path / "gx")
    inner = tmp_path / "dags" / "inner"
    inner.mkdir(parents=True)
    assert found("gx:flights", inner) == tmp_path / "gx" / "mine" / "flights.json"
    project(tmp_path / "dags" / "gx")
    assert found("gx:nightly.planes", inner) == tmp_path / "dags/gx/mine/nightly/planes.json"
    project(inner)
    assert found("gx:flights", inner) == inner / "mine" / "flights.json"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("gx:flight", "has no suite 'flight'; did you mean 'flights'?"),
        ("gx:nightly/planes", "did you mean 'nightly.planes'?"),
        ("gx:", "has no suite ''"),
        ("gx:../great_expectations", "has no suite '../great_expectations'"),
    ],
)
def test_a_suite_that_is_not_there_is_named(tmp_path: Path, reference: str, message: str) -> None:
    """With the nearest one, and with all that there are."""
    with pytest.raises(ConfigurationError) as refused:
        found(reference, project(tmp_path / "gx"))
    assert message in str(refused.value)
    assert "its suites are: flights, nightly.planes" in str(refused.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[", "does not say where its suites are"),
        ("", "does not say where its suites are (TypeError)"),
        ("stores: {}", "does not say where its suites are (KeyError)"),
        (
            CONFIG.replace("TupleFilesystemStoreBackend", "TupleS3StoreBackend"),
            "keeps its suites in a TupleS3StoreBackend, which is not read here",
        ),
        (CONFIG.replace("mine/", "[a]"), "which is not read here"),
        (CONFIG.replace("mine/", "elsewhere/"), "its suites are: none"),
    ],
)
def test_a_project_that_cannot_be_read_is_told(tmp_path: Path, config: str, message: str) -> None:
    """With what to write instead; no traceback from a YAML reader."""
    with pytest.raises(ConfigurationError) as refused:
        found("gx:flights", project(tmp_path / "gx", config))
    assert message in str(refused.value)
    assert refused.value.remedy


def test_no_project_is_told(tmp_path: Path) -> None:
    """With where it was looked for."""
    with pytest.raises(ConfigurationError, match="no Great Expectations project") as refused:
        found("gx:flights", tmp_path)
    assert "name the suite's JSON file itself" in str(refused.value)
