"""What the rows of a window amount to, as every SQL database can say it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from airflow_etl_provider.core.ports import Figure, Measured
from airflow_etl_provider.dbapi.flavour import text_of
from airflow_etl_provider.dbapi.statements import Dialect, Sql, sql


def expressions(dialect: Dialect, figures: Sequence[Figure]) -> list[Sql]:
    """The number of rows, and *figures*."""
    return [
        sql("count(*)"),
        *(
            sql(f"{figure.statistic.value}(", dialect.name(figure.column), ")")
            for figure in figures
        ),
    ]


def measured(row: Sequence[Any]) -> Measured:
    """What a statement with :func:`expressions` answered."""
    rows, *figures = row
    inexact = frozenset(place for place, value in enumerate(figures) if isinstance(value, float))
    return Measured(int(rows), tuple(map(_as_text, figures)), inexact=inexact)


def _as_text(value: Any) -> str | None:
    """A driver's value in a form that PostgreSQL reads as the same."""
    if value is None:
        return None
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, date):  # and a datetime
        return value.isoformat()
    return text_of(value)
