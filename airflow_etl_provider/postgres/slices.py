"""A window staged in slices, each committed with its own row of the ledger, so that a retry goes on behind them.

Slices of one try are read in one snapshot, several at once if asked. Those of an earlier try were read in
an older one: the caller decides whether that makes one batch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from airflow_etl_provider.core.errors import Stopped, Superseded
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import EventLog, Session, Slice, Snapshot, Stop
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.session import Endpoint, connect_for_copy, session_of, text_of
from airflow_etl_provider.postgres.transfer import relay

_STEP = 0.2


@dataclass(frozen=True, slots=True)
class PlannedSlice:
    """A slice of a load, and what was staged of it; ``rows`` is ``None`` while it is not."""

    slice: Slice
    rows: int | None
    bytes: int | None
    checksum: str | None
    snapshot_at: datetime | None


def plan_slices(connection: psycopg.Connection[Any], load_id: str, slices: Sequence[Slice]) -> None:
    """Record the slices of a load before any is staged."""
    for part in slices:
        connection.execute(
            queries("ledger")["plan_slice"],
            {
                "load_id": load_id,
                "slice": part.number,
                "by": list(part.by),
                "low": None if part.low is None else list(part.low),
                "high": None if part.high is None else list(part.high),
            },
        )


def take_slices(
    connection: psycopg.Connection[Any],
    load_id: str,
    *,
    staging: TableName,
    settled: str,
    fingerprint: str,
    try_number: int,
) -> None:
    """Have the slices of a load staged in *staging* by this try.

    :raises Superseded: another try has taken the load over.
    """
    done = connection.execute(
        queries("ledger")["begin_slices"],
        {
            "load_id": load_id,
            "staging": str(staging),
            "settled": settled,
            "fingerprint": fingerprint,
            "try_number": try_number,
        },
    )
    if done.rowcount != 1:
        raise taken_over(load_id)


def move_staging(connection: psycopg.Connection[Any], load_id: str, staging: TableName) -> None:
    """Say that the slices of a load are now in *staging*."""
    connection.execute(
        queries("ledger")["move_staging"], {"load_id": load_id, "staging": str(staging)}
    )


def slices(connection: psycopg.Connection[Any], load_id: str) -> list[PlannedSlice]:
    """The slices of a load in their order; none if it is read in one piece."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(queries("ledger")["slices"], {"load_id": load_id}).fetchall()
    return [
        PlannedSlice(
            slice=Slice(
                row["slice"],
                tuple(row["by"]),
                None if row["low"] is None else tuple(row["low"]),
                None if row["high"] is None else tuple(row["high"]),
            ),
            rows=row["rows"],
            bytes=row["bytes"],
            checksum=row["checksum"],
            snapshot_at=row["snapshot_at"],
        )
        for row in rows
    ]


def forget_slices(connection: psycopg.Connection[Any], load_id: str) -> None:
    connection.execute(queries("ledger")["forget_slices"], {"load_id": load_id})


def slice_statement(
    load_id: str, done: PlannedSlice, *, try_number: int
) -> tuple[sql.SQL, dict[str, Any]]:
    """The statement that records a staged slice; its parameters suit psycopg and psycopg2 alike.

    It changes one row, or none if another try has taken the load over.
    """
    return queries("ledger")["slice_loaded"], {
        "load_id": load_id,
        "slice": done.slice.number,
        "rows": done.rows,
        "bytes": done.bytes,
        "checksum": done.checksum,
        "snapshot_at": done.snapshot_at,
        "try_number": try_number,
    }


def taken_over(load_id: str) -> Superseded:
    """The error of a try whose load another one is working on."""
    return Superseded(
        f"load {load_id} was taken over by another try while this one was copying",
        remedy="nothing to do: this try kept nothing",
    )


class _Any:
    """Set when any of its flags is."""

    def __init__(self, *flags: Stop) -> None:
        self._flags = flags

    def is_set(self) -> bool:
        return any(flag.is_set() for flag in self._flags)


@dataclass(frozen=True, slots=True)
class SliceWriter:
    """Stages slices of one load in a table that exists.

    :param copy_in: stores what is sent, on any session of *endpoint*.
    :param name_session: is told of each server process before it begins.
    :param progress: is told slice, bytes, seconds and server process while a slice is copied.
    """

    endpoint: Endpoint
    load_id: str
    try_number: int
    copy_in: str
    what: str
    name_session: Callable[[Session], None]
    progress: Callable[[Slice, int, float, Session], None]
    stop: Stop
    log: EventLog

    def write(
        self, snapshot: Snapshot, planned: Sequence[PlannedSlice], *, shards: int
    ) -> list[PlannedSlice]:
        """Stage those that are not staged yet, up to *shards* at once; returns all as they are then.

        The first error ends the others; what was committed stays.
        """
        done = {part.slice.number: part for part in planned if part.rows is not None}
        left: queue.SimpleQueue[PlannedSlice] = queue.SimpleQueue()
        for part in planned:
            if part.rows is None:
                left.put(part)
        failed = threading.Event()
        workers = min(shards, left.qsize())
        if workers < 2:
            self._work(snapshot, left, done, len(planned), self.stop)
        else:
            stop = _Any(self.stop, failed)
            with ExitStack() as stack:
                # A snapshot is exported by its own session: all are opened before any is at work.
                views = [
                    snapshot,
                    *(stack.enter_context(snapshot.share()) for _ in range(workers - 1)),
                ]
                pool = stack.enter_context(ThreadPoolExecutor(workers, "etl-shard"))
                work = [
                    pool.submit(self._work, view, left, done, len(planned), stop) for view in views
                ]
                try:
                    # Short steps: signals are served between them.
                    while wait(work, _STEP, return_when=FIRST_EXCEPTION).not_done:
                        if any(future.done() and future.exception() for future in work):
                            break
                finally:
                    # Also when a signal's exception passes through: no slice goes on.
                    failed.set()
                _raise_first([future.exception() for future in work])
        return [done[part.slice.number] for part in planned]

    def _work(
        self,
        snapshot: Snapshot,
        left: queue.SimpleQueue[PlannedSlice],
        done: dict[int, PlannedSlice],
        total: int,
        stop: Stop,
    ) -> None:
        with connect_for_copy(self.endpoint, read_only=False) as connection:
            with translated_errors(self.what):
                own = session_of(connection, "target")
                self.name_session(own)
                connection.commit()
            while True:
                if stop.is_set():
                    raise Stopped(f"{self.what}: stopped on request; slices that are there stay")
                try:
                    part = left.get_nowait()
                except queue.Empty:
                    return
                sender = snapshot.sender(part.slice)
                if sender.session is not None:
                    self.name_session(sender.session)
                moved = relay(
                    sender,
                    connection,
                    self.copy_in,
                    stop=stop,
                    progress=lambda size, seconds, part=part: self.progress(  # type: ignore[misc]
                        part.slice, size, seconds, own
                    ),
                    what=self.what,
                )
                staged = replace(
                    part,
                    rows=moved.rows,
                    bytes=moved.bytes,
                    checksum=sender.checksum,
                    snapshot_at=snapshot.snapshot_at,
                )
                with translated_errors(self.what), connection.cursor() as cursor:
                    statement, params = slice_statement(
                        self.load_id, staged, try_number=self.try_number
                    )
                    cursor.execute(text_of(statement, params), params)
                    if cursor.rowcount != 1:
                        raise taken_over(self.load_id)
                    connection.commit()
                done[part.slice.number] = staged
                self.log(
                    "slice staged",
                    load_id=self.load_id,
                    slices=f"{len(done)} of {total}",
                    rows=moved.rows,
                    rows_so_far=sum(found.rows or 0 for found in list(done.values())),
                )


def _raise_first(errors: Sequence[BaseException | None]) -> None:
    """Raise what went wrong, not the stops that followed from it."""
    found = [error for error in errors if error is not None]
    found.sort(key=lambda error: isinstance(error, Stopped))
    if found:
        raise found[0]
