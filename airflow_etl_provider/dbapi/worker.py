"""One connection in a thread of its own, so that whoever waits for it can be told to stop.

A driver's blocking call holds the thread that makes it: in the main thread no signal would be served
while a statement runs, and some drivers bind a connection to the thread that opened it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from threading import Event
from typing import TypeVar
from weakref import WeakSet

from airflow_etl_provider.core.errors import Stopped
from airflow_etl_provider.dbapi.driver import Connection
from airflow_etl_provider.dbapi.errors import translated
from airflow_etl_provider.dbapi.flavour import Connect, Flavour

Result = TypeVar("Result")

_STEP = 0.1
_open: WeakSet[Worker] = WeakSet()


class Worker:
    """A connection that one thread works on and any thread can interrupt.

    :param label: how errors call it.
    """

    def __init__(self, connect: Connect, flavour: Flavour, label: str) -> None:
        self._connect = connect
        self._flavour = flavour
        self._label = label
        self._stop = Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="etl-source")
        self._connection: Connection | None = None
        self._interrupter: Callable[[], None] | None = None
        self._closing: list[Callable[[], None]] = []

    @property
    def stopped(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._stop.is_set()

    def open(self) -> None:
        """:raises ConnectionLost: the database cannot be reached."""

        def connect() -> None:
            self._connection = self._connect()
            self._interrupter = self._flavour.interrupter(self._connection, self._connect)

        self.run(lambda _: connect(), f"connecting to {self._label}")

    def run(self, work: Callable[[Connection], Result], what: str) -> Result:
        """Do *work* in the session's thread and wait for it; a driver's errors become ours.

        :raises Stopped: :meth:`cancel` was called.
        """

        def done() -> Result:
            if self.stopped:
                raise Stopped(f"{what}: stopped on request")
            with translated(self._flavour.translate, what):
                # Opening is the only work that has no connection yet and does not look at it.
                return work(self._connection)  # type: ignore[arg-type]

        future = self._thread.submit(done)
        try:
            while not future.done() and not self.stopped:
                wait([future], timeout=_STEP)
        finally:
            # Also when a signal's exception passes through: nothing outlives this call.
            self._finish(future)
        error = future.exception()
        # A sink that broke has a reason of its own, which its other end knows.
        if self.stopped and error is not None and not isinstance(error, BrokenPipeError):
            raise Stopped(f"{what}: stopped on request")
        return future.result()

    def before_close(self, close: Callable[[], None]) -> None:
        """Have *close* called before the connection is closed, in its thread."""
        self._closing.append(close)

    def cancel(self) -> None:
        """End what runs and refuse what follows; any thread, any number of times, a signal handler too."""
        self._stop.set()

    def close(self, *, abandon: bool) -> None:
        """Close the connection in its thread.

        :param abandon: rows are still to come, so the statement is ended first.
        """
        self._thread.submit(self._close, abandon).result()
        self._thread.shutdown()

    def _finish(self, future: Future[Result]) -> None:
        while not future.done():
            self._interrupt()
            wait([future], timeout=_STEP)

    def _interrupt(self) -> None:
        if self._interrupter is None:
            return
        # Whatever fails here, a lost server above all, the next step tries again.
        with suppress(Exception):
            self._interrupter()

    def _close(self, abandon: bool) -> None:
        if self._connection is None:
            return
        if abandon:
            self._interrupt()
        for close in (*self._closing, self._connection.close):
            # What is broken already cannot be closed again.
            with suppress(Exception):
                close()


@contextmanager
def worker(connect: Connect, flavour: Flavour, label: str) -> Iterator[Worker]:
    """An open session that ends with the block."""
    opened = Worker(connect, flavour, label)
    _open.add(opened)
    abandon = True
    try:
        opened.open()
        yield opened
        abandon = opened.stopped
    finally:
        opened.close(abandon=abandon)


def cancel_open_sessions() -> None:
    """Have every open session stop; safe in a signal handler, any number of times."""
    for opened in tuple(_open):
        opened.cancel()
