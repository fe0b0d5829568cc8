"""COPY from one connection to another, whole blocks, off the main thread.

psycopg2 writes each message of ``COPY … TO STDOUT`` into a pipe and reads ``COPY … FROM STDIN`` from
it in large pieces, so that the client costs about what ``psql | psql`` costs. The calling thread only
waits, in short steps, so that signals, timeouts and stops are served at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import psycopg2

from airflow_etl_provider.core.errors import ContractError, Stopped
from airflow_etl_provider.core.ports import Sender, Stop
from airflow_etl_provider.postgres.errors import translate

_BLOCK = 256 * 1024
# Larger reads make glibc keep ever more memory between them (its mmap threshold moves), smaller ones cost
# calls; at this size memory is flat and the speed the same.
_READ = 16 * 1024
_PIPE = 1024 * 1024
_STEP = 0.1
PROGRESS_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class Transferred:
    """Rows as the source sent and the target stored them (always equal), and bytes on the wire."""

    rows: int
    bytes: int


class _Counting:
    """The reading end of the pipe; psycopg2 asks it for large blocks, so counting costs nothing."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.bytes = 0

    def read(self, size: int = -1, /) -> bytes:
        block = self._raw.read(size)
        self.bytes += len(block)
        return block

    def readline(self, size: int = -1, /) -> bytes:
        """Part of the driver's file interface; COPY reads blocks only."""
        return self._raw.readline(size)


class _Half(threading.Thread):
    """One side of the transfer; keeps its error for the caller.

    ``done`` says when it is over: a signal's exception inside ``join`` leaves a thread that still runs marked
    as ended (Python 3.11 and 3.12), and its statement would not be cancelled.
    """

    def __init__(self, work: Callable[[], int], close: Callable[[], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._close = close
        self.rows = -1
        self.error: Exception | None = None
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self.rows = self._work()
        except Exception as error:  # noqa: BLE001  (a thread hands every error to its caller)
            self.error = error
        finally:
            # A broken peer makes closing fail again; the first error is the one that counts.
            with contextlib.suppress(OSError):
                self._close()
            self.done.set()


def relay(
    sender: Sender,
    target: psycopg2.extensions.connection,
    copy_in: str,
    *,
    stop: Stop,
    progress: Callable[[int, float], None] | None = None,
    what: str = "copying",
) -> Transferred:
    """Store what *sender* sends by *copy_in* on *target*; commits nothing.

    :param progress: called about every ten seconds with bytes so far and seconds.
    :raises Stopped: *stop* was set; both statements were cancelled.
    :raises ContractError: the two servers counted different numbers of rows.
    """
    read_end, write_end = os.pipe()
    # Fewer switches between the two threads; where the system's limit is lower the default serves.
    with contextlib.suppress(OSError):
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE)
    writer = os.fdopen(write_end, "wb", buffering=_BLOCK)
    reader = os.fdopen(read_end, "rb", buffering=0)
    counting = _Counting(reader)

    def send() -> int:
        rows = sender.send(writer)
        writer.flush()
        return rows

    def store() -> int:
        with target.cursor() as cursor:
            cursor.copy_expert(copy_in, counting, size=_READ)
            return cursor.rowcount

    sending = _Half(send, writer.close, "etl-copy-out")
    storing = _Half(store, reader.close, "etl-copy-in")
    started = reported = time.monotonic()
    sending.start()
    storing.start()
    try:
        for half, other in ((storing, sending), (sending, storing)):
            while not half.done.wait(_STEP):
                if stop.is_set() or half.error is not None or other.error is not None:
                    break
                # While rows are still being sent, the target has nothing to say unless it gave up.
                if sending.rows < 0 and not storing.done.is_set() and _has_answered(target):
                    break
                now = time.monotonic()
                if progress is not None and now - reported >= PROGRESS_EVERY:
                    reported = now
                    progress(counting.bytes, now - started)
    finally:
        # Also when a signal's exception passes through: no statement outlives this call.
        _end(sending, sender.cancel)
        _end(storing, target.cancel)
    if stop.is_set():
        raise Stopped(f"{what}: stopped on request; nothing was stored")
    _raise_first(sending, storing, what)
    if sending.rows != storing.rows:
        raise ContractError(
            f"{what}: the source sent {sending.rows:,} rows, the target stored {storing.rows:,}",
            remedy="nothing was kept; look for triggers or rules on the target, then clear the task",
        )
    return Transferred(storing.rows, counting.bytes)


def _has_answered(connection: psycopg2.extensions.connection) -> bool:
    """Whether the server said something during ``COPY … FROM STDIN``, which it does only to end it."""
    try:
        return bool(select.select([connection.fileno()], [], [], 0)[0])
    except (psycopg2.Error, ValueError):
        return True


def _end(half: _Half, cancel: Callable[[], None]) -> None:
    while not half.done.is_set():
        with contextlib.suppress(psycopg2.Error):
            cancel()
        half.done.wait(_STEP)


def _raise_first(sending: _Half, storing: _Half, what: str) -> None:
    """Raise the error that came first by cause: a broken pipe is only the echo of the other side's."""
    errors = [half.error for half in (sending, storing) if half.error is not None]
    if not errors:
        return
    for error in errors:
        if not isinstance(error, psycopg2.Error | OSError | Stopped):
            raise error
    for error in errors:
        if isinstance(error, psycopg2.Error) and error.pgcode not in (None, "57014"):
            raise translate(error, what) from None
    for error in errors:
        if isinstance(error, psycopg2.Error) and error.pgcode is None:
            raise translate(error, what) from None
    for error in errors:
        if isinstance(error, Stopped):
            # The sender was told to end because the target had: by now that is known not to be the cause.
            raise error
    raise translate(errors[0], what) from None
