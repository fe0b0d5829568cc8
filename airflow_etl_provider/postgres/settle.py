"""The settled bound of a PostgreSQL source, read from its own transactions.

A row that an open transaction will commit carries a value that the transaction drew. Values drawn inside a
transaction that begins after a moment lie above that moment; so once the clock has passed a bound, and every
transaction that was open at that time has ended, nothing can be added below it. Where the role may see when
other sessions' transactions began, those that began above the bound need not be waited for, and an open
window can end below the oldest one instead of waiting at all.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ConnectionLost,
    NotSettled,
    Stopped,
)
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.settle import (
    CursorOrigin,
    Settled,
    SettleOptions,
    StillSettling,
    Wait,
)
from airflow_etl_provider.core.window import Window, humane
from airflow_etl_provider.postgres import statements
from airflow_etl_provider.postgres.catalog import QUERY, Table, scalar
from airflow_etl_provider.postgres.cursors import CursorKind, cursor_kind, cursor_type_sql
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.relation import Relation

_STEP = 0.2
_REPORT_EVERY = 30.0
#: How far the clock of the source may be behind the worker's.
_SKEW = timedelta(minutes=5)
#: Defaults that draw their value on the server, inside the writing transaction.
_DRAWN_BY_SERVER = re.compile(
    r"\(?(now|transaction_timestamp|statement_timestamp|clock_timestamp|uuidv7)\(\)\)?(::[\w ]+)?"
    r"|CURRENT_TIMESTAMP(\(\d\))?|CURRENT_DATE|LOCALTIMESTAMP(\(\d\))?|\(?now\(\) AT TIME ZONE '[^']+'(::text)?\)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Transaction:
    """An open transaction; ``started`` is unknown where the role may not see it."""

    number: str
    pid: int | None
    user: str | None
    application: str | None
    state: str | None
    started: datetime | None
    age_s: float | None
    prepared: str | None

    def __str__(self) -> str:
        age = "" if self.age_s is None else f", open for {humane(timedelta(seconds=self.age_s))}"
        if self.prepared is not None:
            return f"prepared transaction {self.prepared!r} (user {self.user}{age})"
        return f"pid {self.pid} (user {self.user}, application {self.application or 'unnamed'}, {self.state}{age})"


class Settling:
    """Finds the settled bound of one cursor; *connection* is in autocommit, so that what it sees is fresh."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        relation: Relation,
        table: Table,
        cursor: str,
        options: SettleOptions,
        *,
        timezone: str,
        earlier: Wait | None,
        stop: Stop,
        log: EventLog,
    ) -> None:
        self._connection = connection
        self._relation = relation
        self._table = table
        self._cursor = cursor
        self._type = table.column(cursor, use="the cursor").type
        self._kind = cursor_kind(self._type)
        self._options = options
        self._timezone = timezone
        self._earlier = earlier
        self._since: datetime | None = None
        self._give_up = (
            None
            if options.patience is None
            else time.monotonic() + options.patience.total_seconds()
        )
        self._stop = stop
        self._log = log

    def run(self, high: str | None) -> Settled:
        """Settle *high*, or find the highest bound that is settled.

        :raises StillSettling: it takes longer than this process may wait.
        :raises NotSettled: transactions stayed open too long; the error names them.
        :raises ConfigurationError: *high* lies in the future, or the origin does not fit the cursor.
        """
        origin, why = self._origin()
        if high is not None:
            return self._settle(high, origin, why)
        if self._kind is CursorKind.TIME:
            return self._latest_moment(origin, why)
        return self._latest_value(origin, why)

    # -- where values come from -------------------------------------------------------------------

    def _origin(self) -> tuple[CursorOrigin, str]:
        """Whether looking at transactions is sound for this cursor, and why."""
        declared = self._options.origin
        if declared is CursorOrigin.APPLICATION:
            return declared, "declared"
        problem = self._disproof()
        if problem is None:
            return CursorOrigin.TRANSACTION, "the catalog shows that the server draws it"
        if declared is CursorOrigin.TRANSACTION:
            if problem.startswith("its default"):
                return declared, "declared"
            raise ConfigurationError(
                f"cursor_origin='transaction' cannot hold for {self._cursor!r} of {self._table.name}: {problem}",
                remedy="use cursor_origin='application' with a settle_delay longer than the longest delay",
            )
        return CursorOrigin.APPLICATION, problem

    def _disproof(self) -> str | None:
        if self._table.kind == QUERY:
            return "a query may put together what was committed at different times"
        with self._connection.cursor(row_factory=dict_row) as run:
            facts = run.execute(
                queries("settle")["column_facts"],
                {"oid": self._table.oid, "column": self._cursor, "relations": self._relations()},
            ).fetchone()
        if facts is None:
            raise CatalogError(f"{self._table.name} has no column {self._cursor!r}")
        if facts["standby"]:
            return "the server is a standby, which does not show its primary's transactions"
        if not facts["is_table"]:
            return f"{self._table.name} is not a table"
        if self._is_loaded_by_us():
            return (
                f"{self._table.name} is loaded by a stream, whose rows are older than their publish"
            )
        if facts["replicated"]:
            return f"{self._table.name} is written by a subscription, late and with its publisher's values"
        expression = facts["default_expression"] or ""
        if facts["identity"]:
            return None if facts["sequence_in_order"] else "its sequence caches or counts down"
        if expression.startswith("nextval("):
            in_order = self._connection.execute(
                queries("settle")["sequence_of_default"],
                {"oid": self._table.oid, "column": self._cursor},
            ).fetchone()
            return None if in_order == (True,) else "its sequence caches or counts down"
        if _DRAWN_BY_SERVER.fullmatch(expression):
            return None
        return "its default does not draw it on the server"

    def _relations(self) -> list[int]:
        """The table with its partitions and children."""
        found: list[int] = scalar(
            self._connection, queries("settle")["relations_of"], {"oid": self._table.oid}
        )
        return found

    def _is_loaded_by_us(self) -> bool:
        """A table that a stream publishes into shows rows whose defaults were drawn when they were staged."""
        known = scalar(self._connection, queries("ledger")["ledger_exists"], {})
        return known and bool(
            scalar(
                self._connection,
                "SELECT has_table_privilege('etl.streams', 'SELECT')"
                " AND EXISTS (SELECT FROM etl.streams WHERE target = %(target)s)",
                {"target": str(self._table.name)},
            )
        )

    # -- a given bound ----------------------------------------------------------------------------

    def _settle(self, high: str, origin: CursorOrigin, why: str) -> Settled:
        if self._kind is not CursorKind.TIME:
            raise ConfigurationError(
                f"cursor {self._cursor!r} is of type {self._type}: no clock settles a window of it",
                remedy="use window='watermark' or 'full'",
            )
        slack = self._options.margin if origin is CursorOrigin.TRANSACTION else self._options.delay
        self._wait_for_clock(high, slack)
        if origin is CursorOrigin.APPLICATION:
            return Settled(high, "[)", f"clock less {humane(slack)} ({why})")
        waited = self._wait_out(self._open(), above=high)
        return Settled(high, "[)", f"no transaction from before the bound is open ({why})", waited)

    def _wait_for_clock(self, high: str, slack: timedelta) -> None:
        # A little is the difference of two clocks; a wall clock may show an hour twice.
        zoned = self._type.endswith("with time zone")
        if not self._reached(high, -(_SKEW if zoned else _SKEW + timedelta(hours=1))):
            raise ConfigurationError(
                f"the window ends at {high}, which the clock of the source has not reached: rows are still to come",
                remedy="end the window at or before the present",
            )
        if self._reached(high, slack):
            return
        self._log("waiting until the window is settled", high=high, delay_s=slack.total_seconds())
        while not self._reached(high, slack):
            self._pause(
                Wait(since=datetime.now(UTC)), f"the clock to pass {high} by {humane(slack)}"
            )

    def _reached(self, high: str, slack: timedelta) -> bool:
        found: bool = scalar(
            self._connection,
            sql.SQL("SELECT %(high)s::{t} <= {now}").format(
                t=cursor_type_sql(self._type), now=self._moment()
            ),
            {"high": high, "slack": slack, "zone": self._timezone, "moment": None},
        )
        return found

    def _moment(self) -> sql.Composed:
        """The clock less ``slack`` (or ``moment``, if given) as a value of the cursor's type.

        A clock on the wall is set back in autumn: values drawn later can then be lower, so the lowest
        reading of the next hours counts.
        """
        instant = sql.SQL(
            "coalesce(%(moment)s::timestamptz, clock_timestamp() - %(slack)s::interval)"
        )
        if self._type.endswith("with time zone"):
            return sql.SQL("({})").format(instant)
        wall = sql.SQL(
            "(SELECT min(i AT TIME ZONE %(zone)s) FROM (SELECT {instant} AS i UNION ALL"
            " SELECT generate_series(date_bin('15 min', {instant}, timestamptz '2000-01-01 00:00+00')"
            " + interval '15 min', {instant} + interval '3 hours', interval '15 min')) AS ahead)"
        ).format(instant=instant)
        return sql.SQL("({}::{})").format(wall, cursor_type_sql(self._type))

    # -- the highest bound ------------------------------------------------------------------------

    def _latest_moment(self, origin: CursorOrigin, why: str) -> Settled:
        if origin is CursorOrigin.APPLICATION:
            bound = self._bound(self._options.delay, None)
            return Settled(bound, "[)", f"clock less {humane(self._options.delay)} ({why})")
        margin = self._options.margin
        if not scalar(self._connection, queries("settle")["sees_others"]):
            bound = self._noted_bound() or self._bound(margin, None)
            waited = self._wait_out(self._open(), above=None, high=bound)
            return Settled(bound, "[)", "waited for the transactions that were open", waited)
        while True:
            # The clock is read before the transactions are looked at: one that begins in between is above.
            clock: datetime = scalar(self._connection, "SELECT clock_timestamp()")
            found = self._open()
            prepared = [t for t in found if t.prepared is not None]
            if not prepared:
                break
            # When they began is not known, so no clamp holds below them; others may be prepared meanwhile.
            self._wait_out(prepared, above=None)
        holders = [t for t in found if t.started is not None and t.started < clock]
        oldest = min(holders, key=lambda t: t.started or clock, default=None)
        moment = clock if oldest is None or oldest.started is None else oldest.started
        bound = self._bound(timedelta(0), moment - margin)
        return Settled(
            bound,
            "[)",
            "no transaction is open below it" if oldest is None else "the oldest open transaction",
            None if oldest is None else str(oldest),
        )

    def _bound(self, slack: timedelta, moment: datetime | None) -> str:
        found: str = scalar(
            self._connection,
            sql.SQL("SELECT {}::text").format(self._moment()),
            {"slack": slack, "zone": self._timezone, "moment": moment},
        )
        return found

    def _latest_value(self, origin: CursorOrigin, why: str) -> Settled:
        """The largest value now, once the transactions that may still add smaller ones have ended."""
        bounds = "[)" if self._kind is CursorKind.INTEGER else "(]"
        if self._kind is CursorKind.UUID:
            return self._latest_uuid(origin, why)
        value = self._noted_bound() or self._largest()
        if value is None:
            return Settled(None, bounds, "the source has no row with a value")
        if origin is CursorOrigin.TRANSACTION:
            waited = self._wait_out(self._open(), above=None, high=value)
            return Settled(
                value, bounds, f"waited for the transactions that were open ({why})", waited
            )
        since = datetime.now(UTC) if self._earlier is None else self._earlier.since
        self._log("waiting for late rows", delay_s=self._options.delay.total_seconds(), why=why)
        while datetime.now(UTC) < since + self._options.delay:
            self._pause(Wait(since=since, high=value), "rows that are committed late")
        return Settled(value, bounds, f"seen {humane(self._options.delay)} ago ({why})")

    def _latest_uuid(self, origin: CursorOrigin, why: str) -> Settled:
        """Version 7 begins with the millisecond it was drawn in, so the clock bounds it."""
        value = self._largest()
        if value is None:
            return Settled(None, "[)", "the source has no row with a value")
        if value[14] != "7":
            raise ConfigurationError(
                f"cursor {self._cursor!r} of {self._table.name} holds UUIDs of version {value[14]}, which have no order",
                remedy="use a cursor of UUIDs of version 7, or another column",
            )
        slack = self._options.margin if origin is CursorOrigin.TRANSACTION else self._options.delay
        bound: str = self._noted_bound() or scalar(
            self._connection,
            "SELECT (lpad(to_hex((extract(epoch FROM clock_timestamp() - %(slack)s::interval) * 1000)::bigint), 12, '0')"
            " || '70008000000000000000')::uuid::text",
            {"slack": slack},
        )
        waited = None
        if origin is CursorOrigin.TRANSACTION:
            waited = self._wait_out(self._open(), above=None, high=bound)
        return Settled(bound, "[)", f"clock less {humane(slack)} ({why})", waited)

    def _largest(self) -> str | None:
        everything = self._relation.rows(
            Window(type=self._type) if self._relation.is_bounded else Window()
        )
        row = self._connection.execute(
            statements.largest(everything, self._cursor, self._type)
        ).fetchone()
        return None if row is None else row[0]

    def _noted_bound(self) -> str | None:
        """The bound that the process before this one noted, and has waited for since."""
        return None if self._earlier is None else self._earlier.high

    # -- open transactions ------------------------------------------------------------------------

    def _open(self) -> list[_Transaction]:
        relations = None
        if self._table.kind in ("r", "p"):
            relations = self._relations()
        with self._connection.cursor(row_factory=dict_row) as run:
            rows = run.execute(
                queries("settle")["open_transactions"],
                {"ignore": list(self._options.ignore), "relations": relations},
            ).fetchall()
        return [
            _Transaction(
                number=row["number"],
                pid=row["pid"],
                user=row["user"],
                application=row["application"],
                state=row["state"],
                started=row["xact_start"],
                age_s=row["age_s"],
                prepared=row["prepared"],
            )
            for row in rows
        ]

    def _wait_out(
        self, noted: list[_Transaction], *, above: str | None, high: str | None = None
    ) -> str | None:
        """Wait until all of *noted* have ended; returns who was waited for.

        What an earlier process has noted is waited for instead, unless the server was restarted since.

        :param above: transactions known to have begun at or above this bound are left alone.
        :param high: the bound that they were noted for.
        """
        started: str = scalar(self._connection, queries("settle")["started"])
        # From the first wait for transactions on, whatever was waited for the clock before.
        since = self._since = self._since or datetime.now(UTC)
        if above is not None:
            noted = [t for t in noted if not self._began_above(t, above)]
        numbers = {transaction.number for transaction in noted}
        earlier = self._earlier
        if earlier is not None and earlier.transactions and earlier.server_started == started:
            numbers, since = set(earlier.transactions), earlier.since
            noted = [t for t in self._open() if t.number in numbers]
        if not noted:
            return None
        held_by = _named(noted)
        self._log("waiting for open transactions of the source", held_by=held_by)
        wait = Wait(
            since=since, high=high, transactions=tuple(sorted(numbers)), server_started=started
        )
        reported = time.monotonic()
        while left := [
            transaction for transaction in self._open() if transaction.number in numbers
        ]:
            held_by = _named(left)
            if datetime.now(UTC) >= since + self._options.timeout:
                raise NotSettled(
                    f"{self._name} is not settled: rows below the end of the window may still be committed by "
                    f"{held_by}",
                    remedy="end that transaction (SELECT pg_terminate_backend(pid), COMMIT PREPARED or ROLLBACK "
                    "PREPARED), declare its role in settle_ignore if it never writes, or raise settle_timeout",
                )
            if time.monotonic() - reported >= _REPORT_EVERY:
                reported = time.monotonic()
                self._log("still waiting for open transactions of the source", held_by=held_by)
            self._pause(wait, held_by)
        if scalar(self._connection, queries("settle")["started"]) != started:
            raise ConnectionLost(
                f"the source of {self._name} was restarted while its transactions were waited for",
                remedy="a retry waits anew",
            )
        return held_by

    def _began_above(self, transaction: _Transaction, bound: str) -> bool:
        if transaction.started is None:
            return False
        found: bool = scalar(
            self._connection,
            sql.SQL("SELECT %(high)s::{t} <= {began}").format(
                t=cursor_type_sql(self._type), began=self._moment()
            ),
            {
                "high": bound,
                "slack": timedelta(0),
                "zone": self._timezone,
                "moment": transaction.started - self._options.margin,
            },
        )
        return found

    def _pause(self, wait: Wait, held_by: str) -> None:
        """A short step of a wait that another process could go on with."""
        if self._stop.is_set():
            raise Stopped(f"waiting for {self._name} to settle was stopped")
        if self._give_up is not None and time.monotonic() >= self._give_up:
            raise StillSettling(
                f"{self._name} is not settled yet: waiting for {held_by}",
                wait,
                remedy="nothing to do: the wait goes on",
            )
        time.sleep(_STEP)

    @property
    def _name(self) -> str:
        return str(self._relation)


def _named(transactions: list[_Transaction]) -> str:
    return "; ".join(str(transaction) for transaction in transactions[:3])
