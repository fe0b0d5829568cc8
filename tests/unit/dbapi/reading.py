"""Opens DB-API sources as extract does."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from airflow_etl_provider.core.columns import Selected
from airflow_etl_provider.core.settle import Settled, SettleOptions, Wait
from airflow_etl_provider.core.window import FULL, Window
from airflow_etl_provider.dbapi.source import DbApiSender, DbApiSnapshot, DbApiSource


class Sink:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


class Null:
    """Forgets what is written."""

    def write(self, data: bytes) -> int:
        return len(data)


@contextmanager
def opened(
    source: DbApiSource,
    columns: Sequence[str | Selected],
    window: Window = FULL,
    cursor: str | None = None,
) -> Iterator[DbApiSnapshot]:
    """A snapshot of *columns*; names stand for columns that are kept as they are."""
    selected = [
        column if isinstance(column, Selected) else Selected(column, column) for column in columns
    ]
    with source.open(
        window, cursor=cursor, columns=selected, binary=False, checksum=False
    ) as snapshot:
        yield snapshot


@contextmanager
def sending(*args: Any, **more: Any) -> Iterator[DbApiSender]:
    """The sender of the whole window of :func:`opened`."""
    with opened(*args, **more) as snapshot:
        yield snapshot.sender(None)


def text_of(*args: Any, **more: Any) -> str:
    """The COPY text of everything that :func:`opened` reads."""
    sink = Sink()
    with sending(*args, **more) as sender:
        sender.send(sink)
    return sink.data.decode()


def settled(
    source: DbApiSource,
    cursor: str,
    high: str | None = None,
    options: SettleOptions | None = None,
    *,
    earlier: Wait | None = None,
    stop: threading.Event | None = None,
) -> Settled:
    """What the source settles *cursor* at."""
    return source.settle(
        cursor,
        high,
        options or SettleOptions(),
        earlier=earlier,
        stop=stop or threading.Event(),
        log=lambda *_, **__: None,
    )
