"""Drivers' errors, translated once; text that can hold a value never passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConnectionLost,
    DataError,
    EtlError,
    TransientError,
)
from airflow_etl_provider.dbapi.driver import error_kind

Translate = Callable[[Exception, str], EtlError]
"""Our error for a driver's error that happened while doing something (a phrase)."""


@contextmanager
def translated(translate: Translate, what: str) -> Iterator[None]:
    """Turn a driver's errors inside the block into ours; others pass.

    The driver's error is not chained: its text may hold row content that must not reach a log.
    """
    try:
        yield
    except Exception as error:
        if error_kind(error) is None:
            raise
        raise translate(error, what) from None


def by_kind(error: Exception, what: str) -> EtlError:
    """Our error by PEP 249's class alone, for databases whose codes are not known here."""
    kind = error_kind(error)
    name = f"{type(error).__module__.partition('.')[0]}.{type(error).__name__}"
    if kind in ("OperationalError", "InterfaceError"):
        return ConnectionLost(
            f"{what}: the database or the connection failed ({name})",
            remedy="check that the server is up and reachable; Airflow retries by itself",
        )
    if kind == "ProgrammingError":
        return CatalogError(
            f"{what}: the database refused the statement ({name})",
            remedy="check that the table or query exists and that the connection's role may read it",
        )
    if kind in ("DataError", "IntegrityError"):
        return DataError(f"{what}: the database refused a value ({name})")
    return TransientError(f"{what}: the driver failed ({name})")
