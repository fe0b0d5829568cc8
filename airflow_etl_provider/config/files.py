"""Pipeline files: YAML beside its defaults, suites and SQL, read into a pipeline or refused whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from airflow_etl_provider.config.findings import (
    Finding,
    KeyPath,
    as_written,
    dotted,
    findings_of,
    named,
    value_at,
)
from airflow_etl_provider.config.models import Pipeline, deep_merged
from airflow_etl_provider.config.yaml_text import Document, Place, read_yaml
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.gx_project import is_stored, stored_suite

DEFAULTS = "defaults.yaml"
ENDINGS = (".yaml", ".yml")
_OWN_KEYS = ("pipeline", "stream", "streams")
_LARGEST = 1_000_000


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a file: ``file:line: path.to.key: what; what to do``."""

    file: str
    line: int
    path: str
    what: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.file else ""
        key = f"{self.path}: " if self.path else ""
        return f"{where}{key}{self.what}; {self.remedy}"


class PipelineFileError(ConfigurationError):
    """A pipeline file is wrong: every mistake in it, one per line.

    :param problems: the mistakes, in the order of the file.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class PipelineFile:
    """A pipeline with the file it came from."""

    name: str
    pipeline: Pipeline
    data: Mapping[str, Any]
    places: Mapping[KeyPath, Place]

    def refusal(self, findings: Sequence[Finding]) -> PipelineFileError:
        """*findings* about the pipeline as an error that names the lines they are about."""
        return PipelineFileError(_in_order(_located(self.name, self.data, self.places, findings)))


def pipeline_paths(folder: Path) -> list[Path]:
    """The pipeline files in *folder* itself, sorted; suites and SQL belong into folders below it."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in ENDINGS
        and path.name != DEFAULTS
        and not path.name.startswith(".")
        and path.is_file()
    )


def read_pipeline(path: Path, *, shown_as: str | None = None) -> PipelineFile:
    """Read a pipeline file, the ``defaults.yaml`` beside it, and the suites and SQL it names.

    :param shown_as: how messages call the file; by default its path.
    :raises PipelineFileError: with every mistake that can be found, each with file and line.
    """
    name = shown_as or str(path)
    document = _opened(path, name)
    defaults = _defaults(path, name)
    found = [*defaults.findings, *document.findings]
    if not isinstance(document.data, dict) or not isinstance(defaults.data, dict):
        raise PipelineFileError(_in_order([_problem(place, finding) for place, finding in found]))
    data = deep_merged(defaults.data, document.data)
    places = _merged_places(defaults, document)
    files = _Files(path.parent, name, places)
    data = files.read_into(data)
    problems = [_problem(place, finding) for place, finding in found]
    problems += [*_located(name, data, places, _wrong_name(path, data)), *files.problems]
    problems, pipeline = _validated(name, data, places, problems)
    if pipeline is None:
        raise PipelineFileError(_in_order(problems))
    return PipelineFile(name, pipeline, data, places)


def parse_pipeline(data: Mapping[str, Any], *, folder: Path) -> Pipeline:
    """A pipeline from a mapping with the keys of a pipeline file.

    :param folder: where the suites and SQL files that it names are looked up.
    :raises ConfigurationError: with every mistake that can be found, each with its key.
    """
    files = _Files(folder, "", {})
    read = files.read_into(dict(data))
    problems, pipeline = _validated("", read, {}, files.problems)
    if pipeline is None:
        title = data.get("pipeline", "without a name")
        raise ConfigurationError(f"pipeline {title}:" + "".join(f"\n  - {p}" for p in problems))
    return pipeline


def _validated(
    name: str, data: dict[str, Any], places: Mapping[KeyPath, Place], problems: list[Problem]
) -> tuple[list[Problem], Pipeline | None]:
    """The pipeline, or everything that is wrong, *problems* found before included."""
    known = {(problem.path, problem.line) for problem in problems}
    try:
        pipeline = Pipeline.model_validate(data)
    except ValidationError as error:
        found = _located(name, data, places, findings_of(error, Pipeline, data))
        # A key that could not be read is reported once, with the reason, and not as missing too.
        return problems + [
            problem for problem in found if (problem.path, problem.line) not in known
        ], None
    return problems, None if problems else pipeline


class _Files:
    """Reads the suites and SQL files that a pipeline names into the pipeline itself.

    :param places: gains the lines of every suite that is read.
    """

    def __init__(self, folder: Path, name: str, places: dict[KeyPath, Place]) -> None:
        self._folder = folder
        self._name = name
        self._places = places
        self.problems: list[Problem] = []

    def read_into(self, data: dict[str, Any]) -> dict[str, Any]:
        """*data* with the text of its SQL files as queries and its suites as expectations."""
        data = self._stream(data, ())
        streams = data.get("streams")
        if isinstance(streams, list):
            data["streams"] = [
                self._stream(stream, ("streams", number)) if isinstance(stream, dict) else stream
                for number, stream in enumerate(streams)
            ]
        return data

    def _stream(self, data: dict[str, Any], path: KeyPath) -> dict[str, Any]:
        data = dict(data)
        source, transform, quality = (data.get(key) for key in ("source", "transform", "quality"))
        if isinstance(source, dict) and isinstance(source.get("query_file"), str):
            data["source"] = self._query(source, (*path, "source"))
        if isinstance(transform, dict) and isinstance(transform.get("sql_file"), str):
            data["transform"] = self._sql(transform, (*path, "transform"))
        if isinstance(quality, str):
            data["quality"] = self._suite({"suite": quality}, (*path, "quality"), ())
        if isinstance(quality, dict) and isinstance(quality.get("suite"), str):
            data["quality"] = self._suite(quality, (*path, "quality"), ("suite",))
        return data

    def _query(self, source: dict[str, Any], path: KeyPath) -> dict[str, Any]:
        key = (*path, "query_file")
        if source.get("query") is not None:
            self._refuse(
                key, "stands beside query", "write exactly one of table, query and query_file"
            )
            return source
        text = self._text(source["query_file"], key)
        if text is None:
            return source
        if not text.strip():
            self._refuse(key, f"{source['query_file']} is empty", "write a SELECT into it")
            return source
        return source | {"query": text.strip()}

    def _sql(self, transform: dict[str, Any], path: KeyPath) -> dict[str, Any]:
        key = (*path, "sql_file")
        if transform.get("sql") is not None:
            self._refuse(key, "stands beside sql", "write exactly one of sql, sql_file and python")
            return transform
        text = self._text(transform["sql_file"], key)
        if text is None:
            return transform
        if not text.strip():
            self._refuse(key, f"{transform['sql_file']} is empty", "write a SELECT into it")
            return transform
        return transform | {"sql": text.strip()}

    def _suite(self, quality: dict[str, Any], path: KeyPath, named_at: KeyPath) -> dict[str, Any]:
        """:param named_at: where below *path* the suite is named; nowhere if it is all that is written."""
        key = (*path, *named_at)
        if quality.get("expectations") is not None:
            self._refuse(key, "stands beside expectations", "write exactly one of the two")
            return quality
        file = self._suite_file(quality["suite"], key)
        text = None if file is None else self._text(file, key)
        if file is None or text is None:
            return quality
        document = _suite_document(text, self._beside(file))
        if document.findings:
            self.problems += [_problem(place, finding) for place, finding in document.findings]
            self._refuse(key, f"{quality['suite']} cannot be read", "see there")
            return quality
        inside: KeyPath = ()
        expectations = document.data
        if isinstance(expectations, dict):
            inside, expectations = ("expectations",), expectations.get("expectations")
        if not isinstance(expectations, list):
            self._refuse(
                key,
                f"{quality['suite']} holds {named(document.data)}",
                "write a list of {type, kwargs, severity}, or {name: ..., expectations: [...]}",
            )
            return quality
        for inner, place in document.places.items():
            if inner[: len(inside)] == inside and len(inner) > len(inside):
                self._places[(*path, "expectations", *inner[len(inside) :])] = place
        return quality | {"expectations": expectations}

    def _suite_file(self, reference: str, key: KeyPath) -> str | None:
        """The file of a suite, relative to the folder; a suite of a Great Expectations project is looked up."""
        if not is_stored(reference):
            return reference
        try:
            found = stored_suite(reference, self._folder, yaml.safe_load, yaml.YAMLError)
        except ConfigurationError as error:
            self._refuse(key, error.what, error.remedy or "name the suite's file")
            return None
        return os.path.relpath(found, self._folder)

    def _text(self, file: str, key: KeyPath) -> str | None:
        try:
            return _text_of(self._folder / file)
        except OSError as error:
            what = f"{file} cannot be read: {error.strerror or error}"
        except ValueError as error:
            what = f"{file} cannot be read: {error}"
        self._refuse(
            key, what, f"names are relative to the folder {self._folder.name}/ of this pipeline"
        )
        return None

    def _beside(self, file: str) -> str:
        """How messages call a file that the pipeline names: as they call the pipeline's own."""
        return str(Path(self._name).parent / file) if self._name else file

    def _refuse(self, key: KeyPath, what: str, remedy: str) -> None:
        place = _place_of(key, self._places, self._name)
        self.problems.append(_problem(place, Finding(key, what, remedy)))


def _opened(path: Path, name: str) -> Document:
    try:
        document = read_yaml(_text_of(path), name)
    except OSError as error:
        document = Document(name)
        document.findings.append(
            (
                Place(name, 1),
                Finding((), f"cannot be read: {error.strerror or error}", "check that it exists"),
            )
        )
        return document
    except ValueError as error:
        document = Document(name)
        document.findings.append(
            (Place(name, 1), Finding((), f"cannot be read: {error}", "save it as UTF-8"))
        )
        return document
    if not isinstance(document.data, dict) and not document.findings:
        what = (
            "is empty" if document.data is None else f"holds {named(document.data)}, not a mapping"
        )
        document.findings.append(
            (
                Place(name, 1),
                Finding((), what, "write keys and values, beginning with 'pipeline: ...'"),
            )
        )
    return document


def _defaults(path: Path, name: str) -> Document:
    """The top-level defaults beside *path*; an empty document where there are none."""
    file = path.parent / DEFAULTS
    shown = str(Path(name).parent / DEFAULTS)
    if not file.is_file():
        return Document(shown, data={})
    document = _opened(file, shown)
    if isinstance(document.data, dict):
        for key in _OWN_KEYS:
            if key in document.data:
                finding = Finding(
                    (key,),
                    "is no default",
                    f"write it into the file of each pipeline, not {DEFAULTS}",
                )
                document.findings.append((document.places[(key,)], finding))
                del document.data[key]
    return document


def _text_of(path: Path) -> str:
    if path.is_file() and path.stat().st_size > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST} bytes")
    return path.read_text(encoding="utf-8-sig")


def _suite_document(text: str, file: str) -> Document:
    """A suite from JSON or YAML; JSON is read as JSON, and as YAML only for its lines."""
    if not file.endswith(".json"):
        return read_yaml(text, file)
    document = Document(file)
    try:
        document.data = json.loads(text)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        document.findings.append(
            (
                Place(file, line),
                Finding((), f"not readable as JSON: {error}", "correct the JSON in this line"),
            )
        )
        return document
    document.places = read_yaml(text.replace("\t", " "), file).places
    return document


def _wrong_name(path: Path, data: Mapping[str, Any]) -> list[Finding]:
    given = data.get("pipeline")
    if not isinstance(given, str) or given == path.stem:
        return []
    return [
        Finding(
            ("pipeline",),
            f"{given!r} is not the name of its file, {path.name}",
            f"write pipeline: {path.stem}, or rename the file to {given}{path.suffix}; "
            "a task opens only the file of its own DAG",
        )
    ]


def _merged_places(defaults: Document, own: Document) -> dict[KeyPath, Place]:
    """Places of the merged data: defaults keep theirs unless the file's own value replaced them."""
    replaced = {
        path for path in own.places if path and not isinstance(value_at(own.data, path), Mapping)
    }
    kept = {
        path: place
        for path, place in defaults.places.items()
        if path and not any(path[:depth] in replaced for depth in range(1, len(path) + 1))
    }
    return kept | own.places


def _located(
    name: str, data: Mapping[str, Any], places: Mapping[KeyPath, Place], findings: Sequence[Finding]
) -> list[Problem]:
    return [
        _problem(_place_of(finding.path, places, name), finding)
        for finding in (Finding(as_written(f.path, data), f.what, f.remedy) for f in findings)
    ]


def _place_of(path: KeyPath, places: Mapping[KeyPath, Place], name: str) -> Place:
    """The line of *path*: its own, that of the default it came from, or that of what holds it."""
    shared = path[2:] if path[:1] == ("streams",) else path
    for exact in (path, shared):
        if exact and exact in places:
            return places[exact]
    for depth in range(len(path) - 1, 0, -1):
        if path[:depth] in places:
            return places[path[:depth]]
    return Place(name, 1)


def _problem(place: Place, finding: Finding) -> Problem:
    return Problem(place.file, place.line, dotted(finding.path), finding.what, finding.remedy)


def _in_order(problems: Sequence[Problem]) -> list[Problem]:
    """By line, each once; those of the pipeline's own file keep their order within a line."""
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.file, problem.line))
