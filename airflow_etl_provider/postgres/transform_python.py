"""A transform by a Python callable: blocks of rows as Arrow record batches, there and back by COPY.

One block after the other is read, handed to the callable and written, so that no more than one is in the
process, with what was made of it. What the callable makes of a block is written only when the call is over.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from tempfile import SpooledTemporaryFile, TemporaryFile
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import ContractError, Stopped, TransformFailed
from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.ports import Session
from airflow_etl_provider.core.transform import ByCallable, SetAside, sift, too_many
from airflow_etl_provider.postgres import arrow, catalog, statements
from airflow_etl_provider.postgres.arrow import ArrowColumn, RowDecoder, RowEncoder
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.fitting import refuse
from airflow_etl_provider.postgres.rebatch import Letter, Rebatch
from airflow_etl_provider.postgres.session import Endpoint, connect

#: A block ends with so many bytes, however few its rows.
_BLOCK = 32 * 1024 * 1024
#: What is made of a block is kept in memory up to so many bytes, then in a file.
_SPOOL = 64 * 1024 * 1024
_PIECE = 256 * 1024


def by_callable(rebatch: Rebatch, how: ByCallable) -> Manifest:
    """What the callable makes of the batch, in one snapshot and one transaction.

    The callable is not called for a batch without rows.

    :raises ConfigurationError: pyarrow is missing, or *as_text* names a column that is not there.
    :raises ContractError: the output's columns do not fit the target; before a row is written.
    :raises DataError: the callable raised for rows that may not be set aside, or for too many.
    :raises TransformFailed: it gave no record batches, or raised an error of the code.
    """
    arrow.require_pyarrow()
    batch = rebatch.batch
    staged = catalog.read_query(
        rebatch.watching, _rows(batch), label=rebatch.endpoint.label
    ).columns
    arrow.chosen(how.as_text, [column.name for column in staged], list(rebatch.typed))
    rebatch.log(
        "transform started",
        load_id=batch.load_id,
        by=how.name,
        rows=batch.rows,
        batch_rows=how.batch_rows,
        on_error=how.on_error.value,
        staging=str(rebatch.table),
    )
    columns = [ArrowColumn(c.name, c.type, c.name in how.as_text) for c in staged]
    with ExitStack() as stack:
        stack.enter_context(translated_errors(rebatch.what))
        # However long a callable takes for one block: the server must not take that for a host that fell silent.
        settings = {**rebatch.endpoint.settings, "tcp_user_timeout": "0"}
        patient = replace(rebatch.endpoint, settings=settings)
        reading = stack.enter_context(_transaction(patient, read_only=True))
        writing = stack.enter_context(_transaction(rebatch.endpoint, read_only=False))
        for connection in (reading, writing):
            rebatch.name_session(_session(connection))
        letters = stack.enter_context(Letters(rebatch, how))
        # Closed before its transaction is, also where it is not read to its end.
        blocks = stack.enter_context(closing(_blocks(reading, _rows(batch), how.batch_rows)))
        output = _Output(rebatch, how, writing)
        with output:
            rows = 0
            for lines in blocks:
                rows += len(lines)
                _one_block(rebatch, how, RowDecoder(columns), lines, output, letters)
        batch.require_rows(rows)
        with writing.cursor() as cursor:
            names = output.require_table(cursor)
            # The transaction ends with the block, so nothing that can fail follows.
            return rebatch.finish(
                cursor, names, rows=output.rows, size=output.bytes, letters=letters
            )


def _rows(batch: Manifest) -> sql.Composed:
    """What stands behind ``FROM`` for the columns of the batch."""
    return sql.SQL("(SELECT {} FROM {}) AS batch").format(
        statements.names([column.name for column in batch.columns]),
        statements.ident(batch.staging),
    )


@contextmanager
def _transaction(endpoint: Endpoint, *, read_only: bool) -> Iterator[psycopg.Connection[Any]]:
    with connect(endpoint) as connection, connection.transaction():
        if read_only:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield connection


def _session(connection: psycopg.Connection[Any]) -> Session:
    ((pid, started),) = connection.execute(
        "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    )
    return Session("target", pid, started)


def _blocks(
    connection: psycopg.Connection[Any], rows: sql.Composable, most: int
) -> Generator[list[bytes], None, None]:
    """The rows as lines of CSV; the server sends one at a time, whatever stands in it."""
    statement = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT (FORMAT csv)").format(rows)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        block: list[bytes] = []
        size = 0
        for line in copy:
            block.append(bytes(line))
            size += len(line)
            if len(block) >= most or size >= _BLOCK:
                yield block
                block, size = [], 0
        if block:
            yield block


def _one_block(
    rebatch: Rebatch,
    how: ByCallable,
    decoder: RowDecoder,
    lines: Sequence[bytes],
    output: _Output,
    letters: Letters,
) -> None:
    rows = decoder.batch(lines)

    def call(start: int, stop: int) -> _Spool:
        if rebatch.stop.is_set():
            raise Stopped(f"{rebatch.what}: stopped on request; nothing was kept")
        return output.encoded(how.function(rows.slice(start, stop - start)))

    for part in sift(rows.num_rows, call, how.on_error, how.judge, how.name):
        if isinstance(part, SetAside):
            letters.add(decoder.texts(lines[part.start : part.stop]), part.reason)
            continue
        with part.made as spool:
            output.write(spool)


class _Spool:
    """What was made of one call, as lines for COPY."""

    def __init__(self) -> None:
        self.file = SpooledTemporaryFile(max_size=_SPOOL)  # noqa: SIM115  (closed by write)
        self.rows = 0

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


class _Output:
    """The staged table that is written, which is made when its columns are known: with the first record batch."""

    def __init__(
        self, rebatch: Rebatch, how: ByCallable, connection: psycopg.Connection[Any]
    ) -> None:
        self._rebatch = rebatch
        self._how = how
        self._connection = connection
        self._stack = ExitStack()
        self._copy: psycopg.Copy | None = None
        self._cursor: psycopg.Cursor[Any] | None = None
        self._columns: list[ArrowColumn] = []
        self._checked: Any = None
        self._sent = 0
        self.bytes = 0

    def __enter__(self) -> None:
        self._stack.__enter__()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._stack.__exit__(kind, error, traceback)
        if error is None and self.rows != self._sent:
            raise ContractError(
                f"{self._rebatch.what}: {self._sent:,} rows were sent, the server stored {self.rows:,}",
                remedy="nothing was kept; report it with the types of the target's columns",
            )

    @property
    def rows(self) -> int:
        """Rows that the server stored."""
        return 0 if self._cursor is None else self._cursor.rowcount

    def encoded(self, made: Any) -> _Spool:
        """What the callable gave as lines for COPY.

        :raises ContractError: its columns do not fit the target.
        :raises DataError: a value does not fit its column exactly.
        """
        with ExitStack() as unless_whole:
            spool = unless_whole.enter_context(_Spool())
            for each in arrow.as_batches(made, self._how.name):
                self._require_fit(each.schema)
                spool.rows += RowEncoder(self._columns).write(each, spool.file)
            unless_whole.pop_all()
        return spool

    def write(self, spool: _Spool) -> None:
        if not spool.rows:
            return
        copy = self._copy or self._begin()
        spool.file.seek(0)
        while piece := spool.file.read(_PIECE):
            copy.write(piece)
            self.bytes += len(piece)
        self._sent += spool.rows

    def require_table(self, cursor: psycopg.Cursor[Any]) -> list[str]:
        """The columns of the table, which is made now if no row was written."""
        names = [column.name for column in self._columns] or self._rebatch.loadable()
        if self._copy is None:
            self._rebatch.create(cursor, names)
        return names

    def _begin(self) -> psycopg.Copy:
        names = [column.name for column in self._columns]
        with self._connection.cursor() as cursor:
            self._rebatch.create(cursor, names)
        # Left open, since a closed cursor forgets how many rows there were.
        self._cursor = self._connection.cursor()
        statement = statements.copy_in_csv(self._rebatch.table, names)
        self._copy = self._stack.enter_context(self._cursor.copy(statement))
        return self._copy

    def _require_fit(self, schema: Any) -> None:
        if self._checked is not None and schema.equals(self._checked):
            return
        rebatch, typed = self._rebatch, self._rebatch.typed
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise TransformFailed(
                f"{self._how.name} gave more than one column called {', '.join(twice)}",
                remedy="give each column a name of its own",
            )
        known = {
            name: ArrowColumn(name, column.type, name in self._how.as_text)
            for name, column in typed.items()
        }
        unfit = list(arrow.problems_of(schema, known))
        refuse(
            rebatch.current.target,
            [*rebatch.problems(schema.names), *(problem for problem, _ in unfit)],
            [cast for _, cast in unfit],
        )
        names = [column.name for column in self._columns]
        if names and set(names) != set(schema.names):
            raise TransformFailed(
                f"{self._how.name} gave the columns {', '.join(schema.names)}, and before that {', '.join(names)}",
                remedy="give every record batch the same columns",
            )
        self._columns = self._columns or [known[name] for name in schema.names]
        self._checked = schema


class Letters:
    """Rows that are set aside, in a file until the transaction that records them."""

    def __init__(self, rebatch: Rebatch, how: ByCallable) -> None:
        self._rebatch = rebatch
        self._name = how.name
        self._limits = how.limits
        self._reasons: Counter[str] = Counter()
        self._file = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (closed by __exit__)

    def __enter__(self) -> Letters:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, records: Iterable[dict[str, str | None]], reason: str) -> None:
        """:raises DataError: now there are more than may be."""
        for record in records:
            self._file.write(json.dumps([record, reason]) + "\n")
            self._reasons[reason] += 1
        before = self._rebatch.batch.rows_dead
        rows = before + self._rebatch.batch.rows
        broken = self._limits.exceeded(before + self._reasons.total(), rows)
        if broken is not None:
            raise too_many(self._name, self._reasons, before, rows, broken)

    def __iter__(self) -> Iterator[Letter]:
        self._file.seek(0)
        for line in self._file:
            record, reason = json.loads(line)
            yield Letter(record, reason)
