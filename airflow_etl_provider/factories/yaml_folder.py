"""DAGs from a folder of pipeline files, one per file, each broken or whole by itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, BaseOperator, Context, get_parsing_context
from airflow.sdk.exceptions import AirflowFailException

from airflow_etl_provider.config.files import (
    PipelineFileError,
    Problem,
    pipeline_paths,
    read_pipeline,
)
from airflow_etl_provider.core.errors import ConfigurationError, EtlError
from airflow_etl_provider.factories.dag import assemble, findings

_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_.-]+")


class InvalidPipelineOperator(BaseOperator):
    """Stands for a pipeline whose file is wrong; fails at once and says what is wrong.

    :param message: the mistakes, with file and line.
    """

    def __init__(self, *, message: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.message = message

    def execute(self, context: Context) -> None:
        raise AirflowFailException(self.message)


def load_pipelines(folder: str | Path, *, strict: bool = False) -> dict[str, DAG]:
    """The DAGs of the pipeline files in *folder*, by DAG id.

    A file that is wrong becomes a DAG of its own id with tag ``invalid``, no schedule, the mistakes as
    documentation and one task that fails with them; the other files are not affected. In a task's
    process only the file of its own DAG is opened.

    :param folder: relative to the calling file.
    :param strict: raise the mistakes of all files instead, for continuous integration.
    :raises ConfigurationError: there is no such folder.
    :raises PipelineFileError: with *strict*, if any file is wrong.
    """
    caller = Path(sys._getframe(1).f_code.co_filename).absolute()
    root = caller.parent / folder
    if not root.is_dir():
        raise ConfigurationError(
            f"there is no folder {root}",
            remedy="name it relative to the file that calls load_pipelines",
        )
    only = get_parsing_context().dag_id
    dags: dict[str, DAG] = {}
    problems: list[Problem] = []
    for dag_id, paths in _by_id(root).items():
        if only not in (None, dag_id):
            continue
        try:
            dag = _dag(paths, _shown(paths[0], caller.parent))
        except PipelineFileError as error:
            problems += error.problems
            dag = _placeholder(dag_id, paths[0].name, error.problems)
        dag.fileloc = str(caller)
        dags[dag_id] = dag
    if strict and problems:
        raise PipelineFileError(problems)
    return dags


def _by_id(root: Path) -> dict[str, list[Path]]:
    """The files of each DAG: one, unless names differ only in what an id cannot hold."""
    files: dict[str, list[Path]] = {}
    for path in pipeline_paths(root):
        files.setdefault(_NOT_IN_IDS.sub("_", path.stem)[:200], []).append(path)
    return files


def _dag(paths: Sequence[Path], name: str) -> DAG:
    if len(paths) > 1:
        both = " and ".join(path.name for path in paths)
        raise PipelineFileError(
            [Problem(name, 1, "", f"{both} are one DAG", "keep one of the files")]
        )
    file = read_pipeline(paths[0], shown_as=name)
    if found := findings(file.pipeline):
        raise file.refusal(found)
    try:
        return assemble(file.pipeline)
    except EtlError as error:
        problem = Problem(name, 1, "", error.what, error.remedy or "correct what it names")
        raise PipelineFileError([problem]) from error
    # Whatever else Airflow refuses, this file alone is to blame: the others must load.
    except Exception as error:
        what = f"no DAG can be built of it: {error}"
        problem = Problem(name, 1, "", what, "correct what it names")
        raise PipelineFileError([problem]) from error


def _placeholder(dag_id: str, file: str, problems: Sequence[Problem]) -> DAG:
    text = "\n".join(map(str, problems))
    listed = "\n".join(f"- `{problem}`" for problem in problems)
    with DAG(
        dag_id,
        description=f"{file} is invalid: {problems[0].what}"[:500],
        schedule=None,
        tags=["etl", "invalid"],
        doc_md=(
            f"# {file} is invalid\n\n{listed}\n\n"
            "This stands in for the pipeline until the file is mended; its history is kept. "
            "Runs that were in progress fail, unless the DAG bundle is versioned.\n"
        ),
        auto_register=False,
    ) as dag:
        InvalidPipelineOperator(task_id="invalid", message=text, retries=0)
    return dag


def _shown(path: Path, beside: Path) -> str:
    """Relative to the loader, so that checkouts in different places give the same DAG."""
    return str(path.relative_to(beside)) if path.is_relative_to(beside) else str(path)
