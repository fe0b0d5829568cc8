"""A table or query of any DB-API database as a source."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import BinaryIO, NoReturn

from airflow_etl_provider.core.columns import Selected, Treatment
from airflow_etl_provider.core.errors import CatalogError, ConfigurationError, NotSettled, Stopped
from airflow_etl_provider.core.ports import (
    Cut,
    EventLog,
    Session,
    Slice,
    SourceColumn,
    SourceShape,
    Stop,
)
from airflow_etl_provider.core.settle import Settled, SettleOptions, Wait
from airflow_etl_provider.core.suggest import nearest
from airflow_etl_provider.core.window import Window, humane
from airflow_etl_provider.dbapi import settle, statements
from airflow_etl_provider.dbapi.copytext import base_of
from airflow_etl_provider.dbapi.driver import Connection, first_row
from airflow_etl_provider.dbapi.flavour import BLOCK, Connect, Flavour, Reading, Request
from airflow_etl_provider.dbapi.statements import Relation
from airflow_etl_provider.dbapi.worker import Worker, worker

_FIRST_ROWS = 64
_STEP = 0.2


@dataclass(slots=True)
class DbApiSender:
    """One snapshot of the source, sent as COPY text in blocks of about one MiB.

    It names no server process and guesses no number of rows: nothing that all drivers could tell.
    """

    work: Worker
    reading: Reading
    label: str
    checksum: str | None = None
    estimated_rows: int | None = None
    session: Session | None = None
    finished: bool = False

    def send(self, sink: BinaryIO) -> int:
        """Write the rows in COPY text format, return how many.

        :raises DataError: a value that its column cannot hold; names row and column.
        :raises Stopped: :meth:`cancel` was called.
        :raises ConnectionLost: the source went away.
        """
        rows = self.work.run(lambda _: self._send(sink), f"reading {self.label}")
        self.finished = True
        return rows

    def cancel(self) -> None:
        """End :meth:`send` from another thread; harmless when it is over."""
        self.work.cancel()

    def _send(self, sink: BinaryIO) -> int:
        count = 0
        most = min(_FIRST_ROWS, self.reading.most_rows)
        blocks: list[bytes] = []
        size = 0
        while not self.work.stopped:
            rows = self.reading.fetch(most)
            if rows:
                block = self.reading.encode(rows, count + 1)
                count += len(rows)
                blocks.append(block)
                size += len(block)
            if size >= BLOCK or not rows:
                sink.write(b"".join(blocks))
                blocks.clear()
                size = 0
            if not rows:
                return count
            # As many rows as make a block; at most four times the last, since rows may grow.
            most = min(
                self.reading.most_rows, 4 * most, max(1, BLOCK * len(rows) // (len(block) or 1))
            )
        raise Stopped(f"reading {self.label}: stopped on request")


@dataclass(frozen=True, slots=True)
class DbApiSnapshot:
    """One transaction of the source, which is sent in one piece: its session cannot be shared."""

    whole: DbApiSender
    snapshot_at: datetime
    null_cursors: int
    unreachable: int | None = None

    def cut(self, *, rows: int | None, parts: int, by: Sequence[str]) -> Cut:
        """One piece.

        :raises ConfigurationError: more than one was asked for.
        """
        if parts > 1:
            raise ConfigurationError(
                f"shards={parts} is not possible: {self.whole.label} is read in one session",
                remedy="use shards=1",
            )
        return Cut((), "one session reads it")

    def sender(self, part: Slice | None) -> DbApiSender:
        return self.whole

    def share(self) -> NoReturn:
        raise ConfigurationError(f"{self.whole.label} is read in one session")


@dataclass(frozen=True, slots=True)
class DbApiSource:
    """A table or query of a database that is reached through DB-API 2.0.

    Its rows always travel as COPY text, checked or written by what the database's flavour knows.

    :param connect: opens a connection of its own at each call, from any thread.
    :param flavour: what kind of database it is.
    :param table: ``table``, ``schema.table`` or ``database.schema.table``; odd parts quoted.
    :param query: instead of a table; with ``:low`` and ``:high`` its own condition is the window,
        otherwise the window is put around it. NULL cursors are counted in what it returns.
    :param label: how logs and errors call the database, such as ``connection shop``.
    :param types: PostgreSQL types of columns, where better known than from the catalog; what may be
        declared depends on the flavour, and every value is checked.
    :param timezone: wall clock that a cursor without time zone shows.
    :param pause: waits so many seconds; another one for tests.
    """

    connect: Connect = field(repr=False)
    flavour: Flavour
    table: str | None
    query: str | None
    label: str
    types: Mapping[str, str] = field(default_factory=dict)
    timezone: str = "UTC"
    pause: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        if (self.table is None) == (self.query is None):
            raise ConfigurationError(
                f"{self.label}: a source is either a table or a query",
                remedy="give one of the two",
            )

    @property
    def name(self) -> str:
        """How logs call what is read."""
        return self.table if self.table is not None else f"a query of {self.label}"

    def describe(self) -> SourceShape:
        """:raises CatalogError: no such table or column, or not readable by the connection's role."""
        with worker(self.connect, self.flavour, self.label) as opened:
            return opened.run(self._shape, f"describing {self.name} of {self.label}")

    def end(self, sessions: Sequence[Session]) -> None:
        """Nothing: a sender here names no session, so there is none to end."""

    @contextmanager
    def open(
        self,
        window: Window,
        *,
        cursor: str | None,
        columns: Sequence[Selected],
        binary: bool,
        checksum: bool,
    ) -> Iterator[DbApiSnapshot]:
        """Take one snapshot and make the rows of *window* ready to send.

        :raises ConfigurationError: a checksum or binary rows, which only PostgreSQL can give, or personal
            data to be treated.
        """
        if any(column.treatment is not Treatment.KEEP for column in columns):
            raise ConfigurationError(
                f"{self.label} is no PostgreSQL source: it cannot hash or null columns",
                remedy="leave them out with columns=[...] or personal='drop', or treat them in a view there",
            )
        names = [column.source for column in columns]
        if checksum or binary:
            raise ConfigurationError(
                f"{self.label} is no PostgreSQL source: it has no "
                + ("checksum" if checksum else "binary form"),
                remedy="leave checksum out: row counts are compared for every load",
            )
        request = Request(self._relation, tuple(names), cursor, window, self.types)
        if request.relation.bounded(self.flavour.dialect) and cursor is None and not window.is_full:
            raise ConfigurationError(f"{self.name} has bounds but no cursor")
        what = f"reading {self.name} of {self.label}"

        def start(connection: Connection) -> tuple[datetime, Reading]:
            snapshot_at = self.flavour.begin(connection)
            known = [column.name for column in self._columns(connection)]
            for column in names if cursor is None else (*names, cursor):
                if column not in known:
                    raise CatalogError(
                        f"{self.name} has no column {column!r}{nearest(column, known)}",
                        remedy=f"its columns are: {', '.join(known)}",
                    )
            return snapshot_at, self.flavour.read(connection, request)

        with worker(self.connect, self.flavour, self.label) as opened:
            snapshot_at, reading = opened.run(start, what)
            opened.before_close(reading.close)
            sender = DbApiSender(
                work=opened,
                reading=reading,
                label=f"{self.name} of {self.label}",
            )
            try:
                yield DbApiSnapshot(sender, snapshot_at, reading.null_cursors)
            finally:
                if not sender.finished:
                    # A driver would read what is left before it closes; nobody wants it any more.
                    opened.cancel()

    def settle(
        self,
        cursor: str,
        high: str | None,
        options: SettleOptions,
        *,
        earlier: Wait | None,
        stop: Stop,
        log: EventLog,
    ) -> Settled:
        """The source's clock less ``options.delay``; with a wanted *high*, wait until that has passed it.

        An integer says nothing of time, so its bound is what is the greatest now plus one, and the delay
        is waited out before anything is read: what was drawn below it is committed by then.

        :raises NotSettled: it would take, or took, longer than ``options.timeout``.
        :raises ConfigurationError: *high* lies in the future, the cursor cannot be settled, or
            ``options.origin`` is ``transaction``.
        :raises Stopped: *stop* was set while waiting.
        """
        settle.refuse_origin(options, self.label)
        with worker(self.connect, self.flavour, self.label) as opened:
            what = f"settling {self.name} of {self.label}"
            clock = opened.run(self.flavour.begin, what)
            started = time.monotonic()
            columns = opened.run(self._columns, what)
            type_ = _type_of(cursor, columns, self.name)
            base = base_of(type_)[0]
            if base in settle.INTEGERS:
                most = opened.run(lambda connection: self._highest(connection, cursor), what)
        if base in settle.INTEGERS:
            return self._settle_integer(cursor, high, most, options, stop=stop, log=log)
        if base not in settle.TIMES:
            raise ConfigurationError(
                f"a cursor of type {type_} has no settled bound on {self.label}",
                remedy="name a date, time or integer column as the cursor, or use window='full'",
            )

        def now() -> datetime:
            return clock + timedelta(seconds=time.monotonic() - started)

        return self._settle_time(type_, high, options, now=now, stop=stop, log=log)

    def _settle_time(
        self,
        type_: str,
        high: str | None,
        options: SettleOptions,
        *,
        now: Callable[[], datetime],
        stop: Stop,
        log: EventLog,
    ) -> Settled:
        evidence = settle.evidence(options.delay)
        held = f"the settle delay of {humane(options.delay)}"
        if high is None:
            bound = settle.settled_moment(now(), options.delay, type_, self.timezone)
            return Settled(settle.as_text(bound, type_), "[)", evidence, held)
        wanted = settle.parsed(high)

        def short(delay: timedelta) -> bool:
            return settle.settled_moment(now(), delay, type_, self.timezone) < wanted

        if settle.shown(now(), type_, self.timezone) < wanted:
            raise ConfigurationError(
                f"the window ends at {high}, which the clock of {self.label} has not reached: rows are still "
                "to come",
                remedy="end the window at or before the present, or check the source's clock and the timezone "
                "of the cursor",
            )
        if short(options.delay - options.timeout):
            raise self._not_settled(high, options)
        self._wait(
            lambda: not short(options.delay), f"until {high} has settled", options, stop, log
        )
        return Settled(high, "[)", evidence)

    def _settle_integer(
        self,
        cursor: str,
        high: str | None,
        most: int | None,
        options: SettleOptions,
        *,
        stop: Stop,
        log: EventLog,
    ) -> Settled:
        if high is not None and (most is None or int(high) > most + 1):
            raise ConfigurationError(
                f"the window ends at {high}, above all values of {cursor}: rows are still to come",
                remedy="end the window at or below the greatest value plus one",
            )
        if most is None:
            return Settled(None, "[)", f"{self.name} has no value of {cursor}")
        bound = high if high is not None else str(most + 1)
        if options.delay > options.timeout:
            raise self._not_settled(bound, options)
        ready = time.monotonic() + options.delay.total_seconds()
        self._wait(
            lambda: time.monotonic() >= ready, f"until {bound} has settled", options, stop, log
        )
        return Settled(
            bound,
            "[)",
            f"the greatest value seen, and the settle delay of {humane(options.delay)} after it",
        )

    def _wait(
        self,
        ready: Callable[[], bool],
        what: str,
        options: SettleOptions,
        stop: Stop,
        log: EventLog,
    ) -> None:
        if ready():
            return
        log("waiting for the settle delay", what=what, delay=humane(options.delay))
        give_up = time.monotonic() + options.timeout.total_seconds()
        while not ready():
            if stop.is_set():
                raise Stopped(f"waiting {what}: stopped on request")
            if time.monotonic() >= give_up:
                raise self._not_settled(what, options)
            self.pause(_STEP)

    def _not_settled(self, bound: str, options: SettleOptions) -> NotSettled:
        return NotSettled(
            f"{bound} of {self.name} on {self.label} is not settled: the settle delay of "
            f"{humane(options.delay)} has not passed, and settle_timeout is {humane(options.timeout)}",
            remedy="wait for the next try, raise settle_timeout, or lower settle_delay if rows are committed "
            "sooner than that",
        )

    @property
    def _relation(self) -> Relation:
        if self.table is None:
            return Relation(query=self.query)
        return Relation(table=statements.parse_name(self.table))

    def _shape(self, connection: Connection) -> SourceShape:
        columns, dataset = self.flavour.describe(
            connection, Request(self._relation, types=self.types)
        )
        return SourceShape(
            name=self.name,
            columns=columns,
            datasets=(dataset,),
            is_query=self.query is not None,
        )

    def _columns(self, connection: Connection) -> tuple[SourceColumn, ...]:
        return self._shape(connection).columns

    def _highest(self, connection: Connection, cursor: str) -> int | None:
        dialect = self.flavour.dialect
        if self._relation.bounded(dialect):
            raise ConfigurationError(
                f"{self.name} names :low and :high, so its greatest {cursor} cannot be asked for",
                remedy="leave the two out of the query: the window is then put around it",
            )
        statement, values = statements.highest(dialect, self._relation, cursor).render(
            dialect.paramstyle
        )
        (value,) = first_row(connection, statement, values)
        return None if value is None else int(value)


def _type_of(cursor: str, columns: Sequence[SourceColumn], where: str) -> str:
    for column in columns:
        if column.name == cursor:
            return column.type
    known = [column.name for column in columns]
    raise CatalogError(
        f"{where} has no column {cursor!r}, named as the cursor{nearest(cursor, known)}",
        remedy=f"its columns are: {', '.join(known)}",
    )
