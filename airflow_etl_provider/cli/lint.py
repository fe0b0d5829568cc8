"""``lint``: pipeline files read as the DAG factory reads them."""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import asdict
from pathlib import Path

from airflow_etl_provider.cli.answer import FINDING, OK, Answer, UsageError
from airflow_etl_provider.config.files import (
    PipelineFile,
    PipelineFileError,
    Problem,
    pipeline_paths,
    read_pipeline,
)


def lint(arguments: argparse.Namespace) -> Answer:
    """Every mistake in a folder of pipelines, with file and line."""
    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    paths = pipeline_paths(folder)
    with_airflow = importlib.util.find_spec("airflow") is not None
    problems = _twice(paths)
    for path in paths:
        try:
            read = read_pipeline(path)
            if with_airflow:
                _refuse_findings(read)
        except PipelineFileError as error:
            problems += error.problems
    note = (
        "" if with_airflow else " (schedules and expectations unchecked: Airflow is not installed)"
    )
    files = f"{len(paths)} pipeline{'' if len(paths) == 1 else 's'}"
    data = {
        "pipelines": [path.stem for path in paths],
        "complete": with_airflow,
        "problems": [asdict(problem) for problem in problems],
    }
    if problems:
        count = f"{len(problems)} mistake{'' if len(problems) == 1 else 's'} in {files}{note}"
        return Answer(data, "\n".join([*map(str, problems), count]), FINDING)
    return Answer(data, f"{files} in order{note}", OK)


def _refuse_findings(read: PipelineFile) -> None:
    """:raises PipelineFileError: what only Airflow's part of the factory can see."""
    from airflow_etl_provider.factories.dag import findings

    found = findings(read.pipeline)
    if found:
        raise read.refusal(found)


def _twice(paths: list[Path]) -> list[Problem]:
    """Files that would be one DAG: same name, other ending."""
    first: dict[str, Path] = {}
    problems = []
    for path in paths:
        other = first.setdefault(path.stem, path)
        if other is not path:
            problems.append(
                Problem(str(path), 1, "", f"stands beside {other.name}", "keep one of the two")
            )
    return problems
