"""The compilers of expectations: kwargs in, check out.

An expectation has a check only where SQL can say exactly what Great Expectations says on PostgreSQL, down to
NULLs, empty tables and the types of its literals. Whatever has none is left to Great Expectations itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from airflow_etl_provider.quality.gallery import read_gallery
from airflow_etl_provider.quality.kwargs import Compile, NotExact
from airflow_etl_provider.quality.measures import MEASURES
from airflow_etl_provider.quality.plan import Check
from airflow_etl_provider.quality.rows import ROWS
from airflow_etl_provider.quality.structure import STRUCTURE
from airflow_etl_provider.quality.suite import Expectation

_COMPILERS: Mapping[str, Compile] = {**ROWS, **MEASURES, **STRUCTURE}


def check_of(expectation: Expectation, columns: Mapping[str, str]) -> Check | None:
    """The check that says exactly what the expectation says; ``None`` leaves it to Great Expectations.

    :param columns: of the table, in order, each with its type as ``format_type`` prints it.
    """
    compiler = _COMPILERS.get(expectation.type)
    kwargs = {key: value for key, value in expectation.kwargs.items() if value is not None}
    required = read_gallery()[expectation.type].kwargs.items()
    if compiler is None or any(kwarg.required and name not in kwargs for name, kwarg in required):
        return None
    with suppress(NotExact):
        return compiler(kwargs, columns)
    return None


def compiles(kind: str) -> bool:
    """Whether expectations of the type *kind* have a check, as long as columns and kwargs allow it."""
    return kind in _COMPILERS


def tells_rows(kind: str) -> bool:
    """Whether expectations of the type *kind* have a check that tells which rows fail it."""
    return kind in ROWS
