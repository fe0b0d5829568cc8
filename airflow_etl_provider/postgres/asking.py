"""Questions to one table: aggregates that share a scan, and statements of their own; each asked once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.postgres.statements import ident

COUNT = sql.SQL("count(*)")
#: What the server says of a statement that cannot be evaluated on these rows: bad values, types that do not
#: compare, columns and tables that are not there, what a function raises. Great Expectations then says so in its
#: own words. A statement that was cancelled or a connection that broke says nothing of the rows.
UNANSWERABLE = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.InternalError,
    psycopg.NotSupportedError,
    psycopg.ProgrammingError,
)
#: Limits of the program: an expression that is nested too deeply, a list that is too long.
_TOO_MUCH = "54"
#: More aggregates than these go into a further scan; the server takes 1,664 columns.
_AT_ONCE = 1_000


class Unanswerable(Exception):
    """A statement cannot be evaluated on the rows; the transaction goes on without it."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What a check asks: aggregates of the table, which share a scan, and statements of their own."""

    aggregates: Sequence[sql.Composable] = ()
    statements: Sequence[sql.Composed] = ()


@dataclass(frozen=True, slots=True)
class Asking:
    """Questions to *table* in one transaction, and what they were answered, by their text."""

    connection: psycopg.Connection[Any]
    table: TableName
    _answers: dict[str, Any] = field(default_factory=dict)

    def answer(self, asked: sql.Composable) -> Any:
        return self._answers[asked.as_string(None)]

    def number(self, asked: sql.Composable | None) -> int:
        """A count that was asked for; ``None`` was none, since it is known to be 0."""
        return 0 if asked is None else int(self.answer(asked))

    def ask(self, asked: Mapping[int, Questions], left: dict[int, str]) -> None:
        """Ask everything; what cannot be answered is *left*, with its reason."""
        try:
            with self.attempt():
                self._scan([q for questions in asked.values() for q in questions.aggregates])
        except Unanswerable:
            self._scan([])
            self._one_by_one(asked, left)
        for number, questions in asked.items():
            if number in left:
                continue
            try:
                for statement in questions.statements:
                    with self.attempt():
                        self._answers[statement.as_string(None)] = self._alone(statement)
            except Unanswerable as error:
                left[number] = str(error)

    def _alone(self, statement: sql.Composed) -> Any:
        # An answer in binary comes by the extended protocol, which takes one statement and no more, whatever a
        # query of the suite holds.
        row = self.connection.execute(statement, binary=True).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """A savepoint, to which a statement that cannot be evaluated leads back.

        :raises Unanswerable: the reason, without the server's words, which may hold values.
        """
        try:
            with self.connection.transaction():
                yield
        except psycopg.Error as error:
            state = error.sqlstate or ""
            of_rows = isinstance(error, UNANSWERABLE) or state.startswith(_TOO_MUCH)
            if not of_rows or self.connection.closed:
                raise
            suffix = f" (SQLSTATE {state})" if state else ""
            raise Unanswerable(f"{type(error).__name__}{suffix}") from None

    def _one_by_one(self, asked: Mapping[int, Questions], left: dict[int, str]) -> None:
        """Find what spoils the scan: first without rows, where most shows, then with all of them."""
        good: list[int] = []
        for number, questions in asked.items():
            try:
                with self.attempt():
                    self._scan(questions.aggregates, dry=True)
                good.append(number)
            except Unanswerable as error:
                left[number] = str(error)
        try:
            with self.attempt():
                self._scan([q for number in good for q in asked[number].aggregates])
        except Unanswerable:
            for number in good:
                try:
                    with self.attempt():
                        self._scan(asked[number].aggregates)
                except Unanswerable as error:
                    left[number] = str(error)

    def _scan(self, aggregates: Sequence[sql.Composable], *, dry: bool = False) -> None:
        """Ask all *aggregates* at once; *dry* has them parsed, and run over no rows."""
        different = {aggregate.as_string(None): aggregate for aggregate in (COUNT, *aggregates)}
        asked = list(different.values())
        for start in range(0, len(asked), _AT_ONCE):
            some = asked[start : start + _AT_ONCE]
            statement = sql.SQL("SELECT {} FROM {} AS t WHERE {}").format(
                sql.SQL(", ").join(some), ident(self.table), sql.SQL("false" if dry else "true")
            )
            found = self.connection.execute(statement).fetchone() or ()
            if not dry:
                self._answers.update(
                    {one.as_string(None): answer for one, answer in zip(some, found, strict=True)}
                )
