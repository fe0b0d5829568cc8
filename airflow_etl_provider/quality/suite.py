"""Suites of expectations in the words of Great Expectations, checked without importing it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from airflow_etl_provider.core.errors import CatalogError, ConfigurationError
from airflow_etl_provider.core.gx_project import is_stored, stored_suite
from airflow_etl_provider.quality.gallery import OWN_TYPES, ExpectationType, Kwarg, read_gallery
from airflow_etl_provider.quality.own import check_own_kwargs

# Written by a Great Expectations export; kept out of the suite because nothing depends on them.
_DESCRIPTIVE = frozenset({"notes", "rendered_content", "success_on_last_run", "windows"})
_EXPECTATION_KEYS = frozenset(
    {"type", "kwargs", "severity", "meta", "id", "description", "on_fail"}
)
_SUITE_KEYS = frozenset({"name", "expectations", "id", "meta", "notes", "suite_parameters"})

# These judge which columns exist, so a column that is missing is their verdict and no mistake.
_JUDGE_THE_SCHEMA = frozenset(
    {
        "expect_column_to_exist",
        "expect_table_columns_to_match_ordered_list",
        "expect_table_columns_to_match_set",
    }
)

_READERS: Mapping[str, Callable[[str], Any]] = {
    ".json": json.loads,
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
}


class Severity(StrEnum):
    """What a failure means: ``critical`` blocks the publish, the others are reported."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


class OnFail(StrEnum):
    """What becomes of a batch with failing rows: ``block`` goes by the severity, ``quarantine`` sets the rows
    aside and publishes the rest."""

    BLOCK = "block"
    QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class Expectation:
    """One expectation: its type is in the gallery and its kwargs fit that type."""

    type: str
    kwargs: Mapping[str, Any]
    severity: Severity = Severity.CRITICAL
    meta: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    description: str | None = None
    on_fail: OnFail = OnFail.BLOCK

    def __post_init__(self) -> None:
        _check_kwargs(_type_named(self.type), self.kwargs)

    @property
    def name(self) -> str:
        """Type and columns: ``expect_column_values_to_not_be_null(carrier)``."""
        columns = ", ".join(self.columns())
        return f"{self.type}({columns})" if columns else self.type

    def columns(self) -> tuple[str, ...]:
        """The columns it names, each once, in the order it names them."""
        named = [
            column
            for name, kwarg in read_gallery()[self.type].kwargs.items()
            if kwarg.names_columns
            for column in _as_list(self.kwargs.get(name))
        ]
        named.extend(_columns_of_condition(self.kwargs.get("row_condition")))
        return tuple(dict.fromkeys(named))

    def as_json(self) -> dict[str, Any]:
        """The form Great Expectations exports; reads back as an equal expectation."""
        optional = {
            "id": self.id,
            "description": self.description,
            "on_fail": None if self.on_fail is OnFail.BLOCK else self.on_fail.value,
        }
        return {
            "type": self.type,
            "kwargs": dict(self.kwargs),
            "severity": self.severity.value,
            "meta": dict(self.meta),
            **{key: value for key, value in optional.items() if value is not None},
        }


@dataclass(frozen=True, slots=True)
class Suite:
    """A named list of expectations; never empty, because an empty audit passes anything."""

    name: str
    expectations: tuple[Expectation, ...]

    def __post_init__(self) -> None:
        if not self.expectations:
            raise ConfigurationError(
                f"suite {self.name!r} holds no expectation, so it would pass any batch",
                remedy="add an expectation, or publish with audit='none', which is recorded.",
            )

    def columns(self) -> tuple[str, ...]:
        """The columns its expectations read, each once; not those whose existence they judge."""
        read = [
            column
            for expectation in self.expectations
            if expectation.type not in _JUDGE_THE_SCHEMA
            for column in expectation.columns()
        ]
        return tuple(dict.fromkeys(read))

    def as_json(self) -> dict[str, Any]:
        """The form Great Expectations exports; ``suite_from_json`` reads it back as an equal."""
        return {
            "name": self.name,
            "expectations": [expectation.as_json() for expectation in self.expectations],
        }


def parse_suite(expectations: Sequence[Mapping[str, Any]], name: str = "inline") -> Suite:
    """A suite from expectations written in a DAG or a pipeline file; refuses what cannot run."""
    if isinstance(expectations, str) or not isinstance(expectations, Sequence):
        raise ConfigurationError(
            f"suite {name!r}: expectations are a {type(expectations).__name__}, not a list",
            remedy="write a list of {type, kwargs, severity}.",
        )
    parsed = [
        _parse_expectation(entry, f"suite {name!r}, expectation {number}")
        for number, entry in enumerate(expectations, start=1)
    ]
    return Suite(name, tuple(parsed))


def suite_from_json(document: Any, name: str = "inline") -> Suite:
    """A suite from an exported document or a bare list; *name* is used where it has none."""
    if not isinstance(document, Mapping):
        return parse_suite(document, name)
    _refuse_unknown(document, _SUITE_KEYS, f"suite {name!r}")
    if document.get("suite_parameters"):
        raise ConfigurationError(
            f"suite {name!r} has suite_parameters: nothing in a suite is a template",
            remedy="write the values themselves into the kwargs.",
        )
    given = document.get("name", name)
    if not isinstance(given, str) or not given:
        raise ConfigurationError(f"suite {name!r}: its name is not a text")
    if "expectations" not in document:
        raise ConfigurationError(f"suite {given!r} has no key 'expectations'")
    return parse_suite(document["expectations"], given)


def find_suite(reference: str | Path, folder: Path) -> Suite:
    """The suite that *reference* names: a file, or ``gx:NAME`` of a Great Expectations project.

    :param folder: where files are relative to, and where a project is looked for, and above it.
    """
    if isinstance(reference, str) and is_stored(reference):
        return load_suite(stored_suite(reference, folder, yaml.safe_load, yaml.YAMLError))
    return load_suite(folder / reference)


def load_suite(path: str | Path) -> Suite:
    """A suite from a JSON or YAML file; named like the file where the file gives no name."""
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError(
            f"suite file {path}: its ending is none of {', '.join(_READERS)}",
            remedy="save the suite as JSON or YAML.",
        )
    try:
        document = reader(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"suite file {path} cannot be read: {error.strerror}",
            remedy="name a file that exists; in YAML it is relative to the pipeline's file.",
        ) from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"suite file {path} is not valid: {error}") from error
    try:
        return suite_from_json(document, path.stem)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error.what}", remedy=error.remedy) from error


def check_columns(suite: Suite, columns: Collection[str]) -> None:
    """Refuse a suite that reads a column which is not among *columns*."""
    for expectation in suite.expectations:
        if expectation.type in _JUDGE_THE_SCHEMA:
            continue
        for column in expectation.columns():
            if column not in columns:
                raise CatalogError(
                    f"{expectation.type} of suite {suite.name!r} reads column {column!r}, "
                    f"which the table does not have{_nearest(column, columns)}",
                    remedy=f"name one of its columns: {', '.join(sorted(columns))}.",
                )


def _parse_expectation(entry: Any, where: str) -> Expectation:
    if not isinstance(entry, Mapping):
        raise ConfigurationError(
            f"{where} is a {type(entry).__name__}, not a mapping",
            remedy="write {type: ..., kwargs: {...}, severity: critical | warning | info}.",
        )
    _refuse_unknown(entry, _EXPECTATION_KEYS, where, accepted=_DESCRIPTIVE)
    if "type" not in entry:
        raise ConfigurationError(f"{where} has no key 'type'")
    where = f"{where} ({entry['type']})"
    if entry.get("windows"):
        raise ConfigurationError(
            f"{where} has windows: nothing in a suite is a template",
            remedy="write the values themselves into the kwargs.",
        )
    try:
        return Expectation(
            type=entry["type"],
            kwargs=_plain_mapping(entry.get("kwargs"), "kwargs"),
            severity=_severity(entry.get("severity", Severity.CRITICAL)),
            meta=_plain_mapping(entry.get("meta"), "meta"),
            id=_text_or_none(entry.get("id"), "id"),
            description=_text_or_none(entry.get("description"), "description"),
            on_fail=_on_fail(entry),
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error.what}", remedy=error.remedy) from error


def _type_named(name: Any) -> ExpectationType:
    gallery = read_gallery()
    if not isinstance(name, str) or name not in gallery:
        raise ConfigurationError(
            f"unknown expectation type {name!r}{_nearest(name, gallery)}",
            remedy="use a core expectation of Great Expectations "
            f"(https://greatexpectations.io/expectations), or one of our own: {', '.join(OWN_TYPES)}",
        )
    return gallery[name]


def _check_kwargs(kind: ExpectationType, kwargs: Mapping[str, Any]) -> None:
    _refuse_unknown(kwargs, kind.kwargs, "kwargs")
    missing = [name for name, kwarg in kind.kwargs.items() if kwarg.required and name not in kwargs]
    if missing:
        raise ConfigurationError(f"{kind.name} needs {', '.join(missing)}")
    for name, value in kwargs.items():
        if isinstance(value, Mapping) and "$PARAMETER" in value:
            raise ConfigurationError(
                f"{name} is a suite parameter: nothing in a suite is a template",
                remedy="write the value itself.",
            )
        if kind.kwargs[name].names_columns:
            _check_column_names(name, kind.kwargs[name], value)
    _check_mostly(kwargs.get("mostly", 1))
    check_own_kwargs(kind.name, kwargs)


def _check_column_names(name: str, kwarg: Kwarg, value: Any) -> None:
    if kwarg.many != isinstance(value, list) or not all(
        isinstance(column, str) and column for column in _as_list(value)
    ):
        wanted = "a list of column names" if kwarg.many else "the name of one column"
        raise ConfigurationError(f"{name} is {value!r}, not {wanted}")


def _check_mostly(mostly: Any) -> None:
    number = isinstance(mostly, int | float) and not isinstance(mostly, bool)
    if not number or not 0 <= mostly <= 1:
        raise ConfigurationError(f"mostly is {mostly!r}, not a share between 0 and 1")


def _severity(name: Any) -> Severity:
    try:
        return Severity(name)
    except ValueError as error:
        raise ConfigurationError(
            f"unknown severity {name!r}{_nearest(name, [severity.value for severity in Severity])}",
            remedy=f"use one of {', '.join(Severity)}.",
        ) from error


def _on_fail(entry: Mapping[str, Any]) -> OnFail:
    """From the key of its own, or from ``meta``, which Great Expectations keeps when it exports a suite."""
    meta = entry.get("meta")
    name = entry.get("on_fail", meta.get("on_fail") if isinstance(meta, Mapping) else None)
    if name is None:
        return OnFail.BLOCK
    try:
        return OnFail(name)
    except ValueError as error:
        raise ConfigurationError(
            f"unknown on_fail {name!r}{_nearest(name, [choice.value for choice in OnFail])}",
            remedy=f"use one of {', '.join(OnFail)}.",
        ) from error


def _text_or_none(value: Any, what: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(f"{what} is {value!r}, not a text")
    return value


def _plain_mapping(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{what} is {value!r}, not a mapping")
    return {_key(key, what): _plain(item, f"{what}.{key}") for key, item in value.items()}


def _key(key: Any, what: str) -> str:
    if not isinstance(key, str):
        raise ConfigurationError(f"{what}: the key {key!r} is not a text")
    return key


def _plain(value: Any, what: str) -> Any:
    """*value* as JSON has it; dates, which YAML reads by itself, become their ISO text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return _plain_mapping(value, what)
    if isinstance(value, list | tuple):
        return [_plain(item, what) for item in value]
    raise ConfigurationError(
        f"{what} is {value!r} ({type(value).__name__}), which JSON cannot hold",
        remedy="write a text, a finite number, true, false, null, a list or a mapping.",
    )


def _columns_of_condition(condition: Any) -> Iterator[str]:
    """Columns named in the JSON form of a row condition (its text form is not parsed)."""
    if isinstance(condition, Mapping):
        column = condition.get("column")
        if isinstance(column, Mapping) and isinstance(column.get("name"), str):
            yield column["name"]
        for part in _as_list(condition.get("conditions")):
            yield from _columns_of_condition(part)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _refuse_unknown(
    given: Mapping[str, Any],
    allowed: Collection[str],
    where: str,
    accepted: Collection[str] = frozenset(),
) -> None:
    for key in given:
        if key not in allowed and key not in accepted:
            raise ConfigurationError(
                f"{where}: unknown key {key!r}{_nearest(key, allowed)}",
                remedy=f"allowed are {', '.join(sorted(allowed)) or 'none'}.",
            )


def _nearest(name: Any, known: Collection[str]) -> str:
    nearest = get_close_matches(str(name), known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
