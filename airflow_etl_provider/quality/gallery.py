"""Which expectations exist and what they take, known without importing Great Expectations.

``gallery.json`` is generated from the installed Great Expectations; write it anew after an
upgrade with ``python -m airflow_etl_provider.quality.gallery``. ``OWN_TYPES`` are this package's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from airflow_etl_provider.quality.own import (
    COMPOUND_REFERENCE,
    FRESH,
    REFERENCE,
    ROW_COUNT,
    SOURCE,
    TARGET,
)

FILE = "gallery.json"

# Fields every expectation has; they describe or steer it and are no part of its kwargs.
_COMMON_FIELDS = frozenset(
    {
        "batch_id",
        "catch_exceptions",
        "description",
        "id",
        "library_metadata",
        "meta",
        "notes",
        "rendered_content",
        "result_format",
        "severity",
        "windows",
    }
)
_LISTS = frozenset({"column_list", "column_set"})
_COLUMN_KWARGS = frozenset({"column", "column_A", "column_B"}) | _LISTS


@dataclass(frozen=True, slots=True)
class Kwarg:
    """One keyword of an expectation: must it be given, does it name columns of the table, and a list of them."""

    required: bool
    names_columns: bool
    many: bool = False


@dataclass(frozen=True, slots=True)
class ExpectationType:
    """One kind of expectation and everything it takes."""

    name: str
    kwargs: Mapping[str, Kwarg]


_CONDITION = ("mostly", "row_condition", "condition_parser")


def _own(
    name: str,
    *plain: str,
    column: str | None = None,
    lists: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
) -> ExpectationType:
    kwargs = {key: Kwarg(required=False, names_columns=False) for key in plain}
    if column is not None:
        kwargs[column] = Kwarg(required=False, names_columns=True)
    kwargs |= {key: Kwarg(required=False, names_columns=True, many=True) for key in lists}
    for key in required:
        kwargs[key] = replace(kwargs[key], required=True)
    return ExpectationType(name, MappingProxyType(kwargs))


#: Types that Great Expectations does not have, by name; what their keywords mean: :mod:`quality.own`.
OWN_TYPES: Mapping[str, ExpectationType] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            _own(ROW_COUNT, "deviations", "loads", "min_loads", "season"),
            _own(FRESH, "max_age", "deviations", "loads", "min_loads", "season", column="column"),
            _own(SOURCE, "tolerance", lists=("sum", "min", "max", "checksum")),
            _own(TARGET, "filled_by_publish"),
            _own(
                REFERENCE,
                "other_table",
                "other_column",
                *_CONDITION,
                column="column",
                required=("column", "other_table"),
            ),
            _own(
                COMPOUND_REFERENCE,
                "other_table",
                "other_columns",
                *_CONDITION,
                lists=("column_list",),
                required=("column_list", "other_table"),
            ),
        )
    }
)


@cache
def read_gallery() -> Mapping[str, ExpectationType]:
    """The expectation types a suite may use, by name: those of Great Expectations and our own."""
    text = files("airflow_etl_provider.quality").joinpath(FILE).read_text(encoding="utf-8")
    theirs = {
        name: ExpectationType(
            name,
            MappingProxyType(
                {key: Kwarg(**facts, many=key in _LISTS) for key, facts in kwargs.items()}
            ),
        )
        for name, kwargs in json.loads(text)["expectations"].items()
    }
    return MappingProxyType({**theirs, **OWN_TYPES})


def generate_gallery() -> dict[str, Any]:
    """The content of ``gallery.json`` as the installed Great Expectations has it."""
    import great_expectations
    from great_expectations.expectations import registry

    types = {}
    for name in sorted(registry.list_registered_expectation_implementations()):
        implementation = registry.get_expectation_impl(name)
        if implementation.__module__.startswith("great_expectations.expectations.core."):
            types[name] = _kwargs_of(implementation)
    return {"great_expectations": great_expectations.__version__, "expectations": types}


def _kwargs_of(implementation: Any) -> dict[str, dict[str, bool]]:
    return {
        name: {"required": bool(field.required), "names_columns": name in _COLUMN_KWARGS}
        for name, field in sorted(implementation.__fields__.items())
        if name not in _COMMON_FIELDS
    }


def write_gallery(path: Path) -> None:
    """Write ``gallery.json`` to *path*."""
    path.write_text(json.dumps(generate_gallery(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_gallery(Path(__file__).with_name(FILE))
