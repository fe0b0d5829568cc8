"""Our errors as Airflow's: the class of an error decides whether Airflow retries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_etl_provider.core.errors import EtlError, TerminalError


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Terminal errors fail the task at once, whatever its retries; others are retried as configured.

    The message says what, where and what to do next; our own traceback adds nothing to that and is left
    out of the task log.
    """
    try:
        yield
    except TerminalError as error:
        raise AirflowFailException(str(error)) from None
    except EtlError as error:
        raise AirflowException(str(error)) from None
