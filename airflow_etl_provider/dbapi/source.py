"""A table or query of any DB-API database as a source."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, BinaryIO, NoReturn

from airflow_etl_provider.core.columns import Selected, Treatment, missing_column
from airflow_etl_provider.core.errors import ConfigurationError, Stopped
from airflow_etl_provider.core.ports import (
    Cut,
    EventLog,
    Figure,
    Measured,
    Session,
    Slice,
    SourceColumn,
    SourceShape,
    Stop,
)
from airflow_etl_provider.core.settle import Settled, SettleOptions, Wait
from airflow_etl_provider.core.window import Window
from airflow_etl_provider.dbapi import statements
from airflow_etl_provider.dbapi.copytext import base_of
from airflow_etl_provider.dbapi.driver import Connection, first_row
from airflow_etl_provider.dbapi.figures import measured
from airflow_etl_provider.dbapi.flavour import BLOCK, Connect, Flavour, Reading, Request
from airflow_etl_provider.dbapi.settle import NUMBERS, TIMES, Settling, as_text, shown
from airflow_etl_provider.dbapi.statements import Relation
from airflow_etl_provider.dbapi.worker import Worker, worker

_FIRST_ROWS = 64
#: Text of one write: more than the pipe behind it holds, so that its other end reads for a while without
#: waiting for this thread's turn to end.
_WRITE = 2 * BLOCK


@dataclass(slots=True)
class DbApiSender:
    """One snapshot of the source, sent as COPY text in writes of about two MiB.

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
            if size >= _WRITE or not rows:
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
    unreachable: int | None

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
    :param query: instead of a table; the window is put around it, and ``:low`` and ``:high`` in it stand
        for the window's bounds. NULL cursors are counted in what it returns.
    :param label: how logs and errors call the database, such as ``connection shop``.
    :param types: PostgreSQL types of columns, where better known than from the catalog; what may be
        declared depends on the flavour, and every value is checked.
    :param timezone: wall clock that a cursor without time zone shows.
    :param hash_key: the key of columns that are hashed; equal keys give equal hashes everywhere.
    :param pause: waits so many seconds; another one for tests.
    """

    connect: Connect = field(repr=False)
    flavour: Flavour
    table: str | None
    query: str | None
    label: str
    types: Mapping[str, str] = field(default_factory=dict)
    timezone: str = "UTC"
    hash_key: str | None = field(default=None, repr=False)
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
        judged: Collection[str] = (),
    ) -> Iterator[DbApiSnapshot]:
        """Take one snapshot and make the rows of *window* ready to send.

        :param judged: if there are any, all columns are sent as text anyway, each row with a remark.
        :raises ConfigurationError: a checksum or binary rows, which only PostgreSQL can give, a column to
            be hashed without a key or in a database that cannot, or bounds in the query that the window
            has not.
        :raises CatalogError: no such column.
        """
        if checksum or binary:
            raise ConfigurationError(
                f"{self.label} is no PostgreSQL source: it has no "
                + ("checksum" if checksum else "binary form"),
                remedy="leave checksum out: row counts are compared for every load",
            )
        request = Request(
            self._relation,
            columns,
            cursor,
            window,
            self.types,
            hash_key=self._key_for(columns),
            remarks=bool(judged),
        )
        what = f"reading {self.name} of {self.label}"

        def start(connection: Connection) -> tuple[datetime, Reading]:
            snapshot_at = self.flavour.begin(connection)
            offered = self._columns(connection)
            known = [column.name for column in offered]
            for column in columns:
                if column.source not in known:
                    raise missing_column(self.name, column.source, "in columns", known)
            clock = None
            if cursor is not None:
                type_ = _type_of(cursor, offered, self.name)
                if base_of(type_)[0] in TIMES:
                    clock = as_text(shown(snapshot_at, type_, self.timezone), type_)
            return snapshot_at, self.flavour.read(connection, replace(request, clock=clock))

        with worker(self.connect, self.flavour, self.label) as opened:
            snapshot_at, reading = opened.run(start, what)
            opened.before_close(reading.close)
            sender = DbApiSender(
                work=opened,
                reading=reading,
                label=f"{self.name} of {self.label}",
            )
            try:
                yield DbApiSnapshot(sender, snapshot_at, reading.null_cursors, reading.unreachable)
            finally:
                if not sender.finished:
                    # A driver would read what is left before it closes; nobody wants it any more.
                    opened.cancel()

    def measure(
        self,
        window: Window,
        *,
        cursor: str | None,
        columns: Sequence[Selected],
        figures: Sequence[Figure],
        checksum: Sequence[str],
    ) -> Measured:
        if checksum:
            raise ConfigurationError(
                f"{self.label} is no PostgreSQL source: it has no checksum",
                remedy="leave checksum out, and compare sums",
            )
        of_source = {column.name: column.source for column in columns}
        wanted = [replace(figure, column=of_source[figure.column]) for figure in figures]
        types = dict(self.types)
        if cursor is not None and window.type is not None:
            # The bounds are written in the type that the load knew the cursor by.
            types[cursor] = window.type
        request = Request(self._relation, cursor=cursor, window=window, types=types)

        def run(connection: Connection) -> Measured:
            self.flavour.begin(connection)
            known = [column.name for column in self._columns(connection)]
            for name in (*of_source.values(), *([] if cursor is None else [cursor])):
                if name not in known:
                    raise missing_column(self.name, name, "to be measured", known)
            return measured(self.flavour.measure(connection, request, wanted))

        with worker(self.connect, self.flavour, self.label) as opened:
            return opened.run(run, f"measuring {self.name} of {self.label}")

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

        Of numbers it is what is the greatest now, once the delay has passed after it was seen: plus one for
        integers, itself (bounds ``(]``) for numbers with a fraction.

        :raises StillSettling: it takes longer than ``options.patience``.
        :raises NotSettled: it would take, or took, longer than ``options.timeout``.
        :raises ConfigurationError: *high* lies in the future, the cursor cannot be settled, or
            ``options.origin`` is ``transaction``.
        :raises Stopped: *stop* was set while waiting.
        """
        what = f"settling {self.name} of {self.label}"
        with worker(self.connect, self.flavour, self.label) as opened:
            clock = opened.run(self.flavour.begin, what)
            started = time.monotonic()
            type_ = _type_of(cursor, opened.run(self._columns, what), self.name)
            greatest = None
            if base_of(type_)[0] in NUMBERS and (high or earlier is None or earlier.high is None):
                greatest = opened.run(
                    lambda connection: self._greatest(connection, cursor, type_), what
                )
        # No snapshot is held while time passes.
        return Settling(
            name=self.name,
            label=self.label,
            cursor=cursor,
            type=type_,
            timezone=self.timezone,
            options=options,
            now=lambda: clock + timedelta(seconds=time.monotonic() - started),
            greatest=greatest,
            earlier=earlier,
            stop=stop,
            log=log,
            pause=self.pause,
        ).run(high)

    def _key_for(self, columns: Sequence[Selected]) -> str | None:
        """The key, where a column is to be hashed.

        :raises ConfigurationError: there is none.
        """
        hashed = [column.source for column in columns if column.treatment is Treatment.HASH]
        if hashed and not self.hash_key:
            raise ConfigurationError(
                f"{', '.join(hashed)} of {self.name} are to be hashed, but there is no key",
                remedy="name a connection whose password is the key with hash_conn_id=...; without a key anybody "
                "could find the values again by trying",
            )
        return self.hash_key if hashed else None

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
            proven=False,
        )

    def _columns(self, connection: Connection) -> tuple[SourceColumn, ...]:
        return self._shape(connection).columns

    def _greatest(self, connection: Connection, cursor: str, type_: str) -> Any:
        dialect = self.flavour.dialect
        ends = Request(self._relation, window=Window(type=type_)).ends(dialect, type_)
        low, high = (None if text is None else self.flavour.bound(text, type_) for text in ends)
        statement, values = statements.greatest(
            dialect, self._relation.source(dialect, low, high), cursor
        ).render(dialect.paramstyle)
        (value,) = first_row(connection, statement, values)
        return value


def _type_of(cursor: str, columns: Sequence[SourceColumn], where: str) -> str:
    for column in columns:
        if column.name == cursor:
            return column.type
    raise missing_column(where, cursor, "as the cursor", [column.name for column in columns])
