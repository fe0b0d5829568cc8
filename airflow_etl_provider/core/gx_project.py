"""Suites that a Great Expectations project keeps on disk, found without loading Great Expectations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.suggest import nearest

#: What stands before the name of a suite that is looked up in a project: ``gx:flights``.
PREFIX = "gx:"
PROJECT_FILE = "great_expectations.yml"
_FOLDER = "gx"
_ON_DISK = "TupleFilesystemStoreBackend"


def is_stored(reference: str) -> bool:
    """Whether *reference* names a suite of a project and not a file."""
    return reference.startswith(PREFIX)


def stored_suite(
    reference: str, beside: Path, read_yaml: Callable[[str], Any], unreadable: type[Exception]
) -> Path:
    """The JSON file of the suite that *reference* (``gx:NAME``) names.

    :param beside: the folder to look in for a project (``gx/`` or the project itself), then those above it,
        as Great Expectations does from the working directory.
    :param read_yaml: reads the project's file; raises *unreadable* where it is no YAML.
    :raises ConfigurationError: no project, one that keeps its suites elsewhere, or no such suite; the
        nearest name is named.
    """
    name = reference.removeprefix(PREFIX)
    project = _project(beside)
    folder = project / _suites_of(project, read_yaml, unreadable)
    # Dots in a name are folders there.
    known = {
        ".".join(file.relative_to(folder).with_suffix("").parts): file
        for file in sorted(folder.rglob("*.json"))
    }
    if name not in known:
        raise ConfigurationError(
            f"the Great Expectations project {project} has no suite {name!r}{nearest(name, known)}",
            remedy=f"its suites are: {', '.join(known) or 'none'}",
        )
    return known[name]


def _project(beside: Path) -> Path:
    for folder in (beside, *beside.absolute().parents):
        for project in (folder / _FOLDER, folder):
            if (project / PROJECT_FILE).is_file():
                return project
    raise ConfigurationError(
        f"no Great Expectations project ({_FOLDER}/{PROJECT_FILE}) stands in {beside} or a folder above it",
        remedy="put the project beside the DAG's file or above it, or name the suite's JSON file itself",
    )


def _suites_of(project: Path, read_yaml: Callable[[str], Any], unreadable: type[Exception]) -> str:
    """The folder of the project's suites, as its file says."""
    file = project / PROJECT_FILE
    try:
        config = read_yaml(file.read_text(encoding="utf-8"))
        backend = config["stores"][config["expectations_store_name"]]["store_backend"]
        kind, folder = backend["class_name"], backend.get("base_directory", "expectations/")
    except (unreadable, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{file} does not say where its suites are ({type(error).__name__})",
            remedy="name the suite's JSON file itself",
        ) from None
    if kind != _ON_DISK or not isinstance(folder, str):
        raise ConfigurationError(
            f"{file} keeps its suites in a {kind}, which is not read here",
            remedy="export the suite into a JSON file (json.dump(suite.to_json_dict(), file)) and name that",
        )
    return folder
