"""Our errors as Airflow's: the class of an error decides whether Airflow retries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import psycopg2
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)

from airflow_etl_provider.core.errors import ErrorClass, EtlError, TerminalError, class_of_python
from airflow_etl_provider.postgres.errors import class_of_driver


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Terminal errors fail the task at once, whatever its retries; others are retried as configured.

    The message says what, where and what to do next; our own traceback adds nothing to that and is left
    out of the task log. Class and SQLSTATE go along as ``error_class`` and ``sqlstate``.
    """
    try:
        yield
    except EtlError as error:
        kind = AirflowFailException if isinstance(error, TerminalError) else AirflowException
        failure: Any = kind(str(error))
        failure.error_class, failure.sqlstate = error.error_class, error.sqlstate
        raise failure from None


def class_of(error: BaseException) -> ErrorClass | None:
    """What follows from *error*, whoever raised it; ``None`` where its type does not say.

    Ours say it themselves, those of database drivers by their SQLSTATE (SQLAlchemy's by the error they hold),
    Airflow's and Python's by their type.
    """
    told = getattr(error, "error_class", None)
    if isinstance(told, ErrorClass):
        return told
    if isinstance(error, AirflowFailException | AirflowSkipException):
        return ErrorClass.FATAL
    if isinstance(error, AirflowException):
        return ErrorClass.TRANSIENT
    if isinstance(error, psycopg.Error | psycopg2.Error):
        return class_of_driver(error)
    origin = getattr(error, "orig", None)
    if isinstance(origin, Exception):
        return class_of(origin)
    return class_of_python(error)
