"""The settled bound of a source that proves nothing: its clock, less the declared delay.

A number says nothing of time, so its bound is what is the greatest now, and the delay is waited out before
anything is read: what was drawn below it is committed by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from airflow_etl_provider.core.errors import ConfigurationError, NotSettled, Stopped
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.settle import (
    CursorOrigin,
    Settled,
    SettleOptions,
    StillSettling,
    Wait,
)
from airflow_etl_provider.core.window import humane
from airflow_etl_provider.dbapi.copytext import base_of

TIMES = ("timestamp with time zone", "timestamp without time zone", "date")
NUMBERS = ("smallint", "integer", "bigint", "numeric")
_STEP = 0.2


@dataclass(frozen=True, slots=True)
class Settling:
    """Finds the settled bound of one cursor.

    :param name: what is read, and *label* where, for errors.
    :param now: the source's clock.
    :param greatest: the greatest value that was there at *now*, of a number that no *earlier* one noted.
    :param earlier: the wait of a process before this one, which goes on.
    :param pause: waits so many seconds; another one for tests.
    """

    name: str
    label: str
    cursor: str
    type: str
    timezone: str
    options: SettleOptions
    now: Callable[[], datetime]
    greatest: Any
    earlier: Wait | None
    stop: Stop
    log: EventLog
    pause: Callable[[float], None]
    started: float = field(default_factory=time.monotonic)

    def run(self, high: str | None) -> Settled:
        """Settle *high*, or find the highest bound that is settled.

        :raises StillSettling: it takes longer than this process may wait.
        :raises NotSettled: it would take, or took, longer than ``options.timeout``.
        :raises ConfigurationError: *high* lies in the future, or the cursor cannot be settled.
        :raises Stopped: *stop* was set while waiting.
        """
        if self.options.origin is CursorOrigin.TRANSACTION:
            raise ConfigurationError(
                f"{self.label} cannot show which of its transactions are open, so cursor_origin='transaction' "
                "proves nothing there",
                remedy="leave cursor_origin out and declare with settle_delay how late a row may be committed",
            )
        base = base_of(self.type)[0]
        if base in NUMBERS:
            return self._number(high)
        if base in TIMES:
            return self._moment() if high is None else self._given(high)
        raise ConfigurationError(
            f"a cursor of type {self.type} has no settled bound on {self.label}: nothing says how it orders there",
            remedy="name a date, time, integer or decimal column as the cursor, or use window='full'",
        )

    def _moment(self) -> Settled:
        delay = self.options.delay
        bound = settled_moment(self.now(), delay, self.type, self.timezone)
        return Settled(
            as_text(bound, self.type),
            "[)",
            self._evidence,
            f"the settle delay of {humane(delay)}",
        )

    def _given(self, high: str) -> Settled:
        wanted = parsed(high)

        def short(delay: timedelta) -> bool:
            return settled_moment(self.now(), delay, self.type, self.timezone) < wanted

        if shown(self.now(), self.type, self.timezone) < wanted:
            raise ConfigurationError(
                f"the window ends at {high}, which the clock of {self.label} has not reached: rows are still "
                "to come",
                remedy="end the window at or before the present, or check the source's clock and the timezone "
                "of the cursor",
            )
        wait = Wait(since=self._since)
        if short(self.options.delay - self._left(wait)):
            raise self._not_settled(high)
        self._wait(lambda: not short(self.options.delay), wait, high)
        return Settled(high, "[)", self._evidence)

    def _number(self, high: str | None) -> Settled:
        args = base_of(self.type)[1]
        # Between two fractions there is always another one, so the bound is the greatest value itself.
        whole = base_of(self.type)[0] != "numeric" or (bool(args) and not ([*args, 0])[1])
        bounds = "[)" if whole else "(]"
        bound = None if self.earlier is None else self.earlier.high
        if bound is None or high is not None:
            most = _finite(self.greatest, self.cursor)
            if most is not None and whole:
                most = Decimal(int(most) + 1)
            if high is not None and (most is None or Decimal(high) > most):
                raise ConfigurationError(
                    f"the window ends at {high}, above all values of {self.cursor}: rows are still to come",
                    remedy="end the window at or below the greatest value"
                    + (" plus one" if whole else ""),
                )
            if most is None:
                return Settled(None, bounds, f"{self.name} has no value of {self.cursor}")
            bound = f"{most:f}" if high is None else high
        if high is not None:
            bounds = "[)"
        delay = self.options.delay
        if delay > self.options.timeout:
            raise self._not_settled(bound)
        wait = Wait(since=self._since, high=bound, bounds=bounds)
        self._wait(lambda: self.now() >= wait.since + delay, wait, bound)
        return Settled(
            bound,
            bounds,
            f"the greatest value seen, and the settle delay of {humane(delay)} after it",
        )

    def _wait(self, ready: Callable[[], bool], wait: Wait, bound: str) -> None:
        """Short steps of a wait that another process could go on with."""
        if ready():
            return
        what = f"until {bound} has settled"
        self.log("waiting for the settle delay", what=what, delay=humane(self.options.delay))
        patience = self.options.patience
        while not ready():
            if self.stop.is_set():
                raise Stopped(f"waiting {what}: stopped on request")
            if self._left(wait) <= timedelta(0):
                raise self._not_settled(bound)
            if patience is not None and time.monotonic() - self.started >= patience.total_seconds():
                raise StillSettling(
                    f"{self.name} on {self.label} is not settled yet: waiting {what}",
                    wait,
                    remedy="nothing to do: the wait goes on",
                )
            self.pause(_STEP)

    @property
    def _since(self) -> datetime:
        """When the wait began by the source's clock, which all workers share."""
        return self.now() if self.earlier is None else self.earlier.since

    def _left(self, wait: Wait) -> timedelta:
        """How long the whole wait may still take."""
        return wait.since + self.options.timeout - self.now()

    def _not_settled(self, bound: str) -> NotSettled:
        return NotSettled(
            f"{bound} of {self.name} on {self.label} is not settled: the settle delay of "
            f"{humane(self.options.delay)} has not passed, and settle_timeout is {humane(self.options.timeout)}",
            remedy="wait for the next try, raise settle_timeout, or lower settle_delay if rows are committed "
            "sooner than that",
        )

    @property
    def _evidence(self) -> str:
        return f"the source's clock less the settle delay of {humane(self.options.delay)}"


def _finite(value: Any, cursor: str) -> Decimal | None:
    """:raises ConfigurationError: infinite, or no number."""
    if value is None:
        return None
    try:
        number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    except (ArithmeticError, TypeError, ValueError):
        number = Decimal("NaN")
    if not number.is_finite():
        raise ConfigurationError(
            f"the greatest value of {cursor} is no finite number, so nothing can lie above it",
            remedy="read a query that leaves such rows out",
        )
    return number


def shown(clock: datetime, type_: str, timezone: str) -> datetime:
    """What a cursor of *type_* shows at an instant; a date is its midnight."""
    if base_of(type_)[0] == "timestamp with time zone":
        return clock.astimezone(UTC)
    wall = clock.astimezone(ZoneInfo(timezone)).replace(tzinfo=None, fold=0)
    return _midnight(wall) if base_of(type_)[0] == "date" else wall


def settled_moment(clock: datetime, delay: timedelta, type_: str, timezone: str) -> datetime:
    """The moment below which, *delay* after it, all rows are there: as a cursor of *type_* shows it.

    A wall clock shows an hour twice when it is set back. While the first of the two runs, values of the
    second are still to come, so the bound stays below both.
    """
    instant = clock.astimezone(UTC) - delay
    if base_of(type_)[0] == "timestamp with time zone":
        return instant
    local = instant.astimezone(ZoneInfo(timezone))
    wall = local.replace(tzinfo=None, fold=0)
    first, second = local.utcoffset(), local.replace(fold=1).utcoffset()
    if local.fold == 0 and first is not None and second is not None and second < first:
        wall -= first - second
    return _midnight(wall) if base_of(type_)[0] == "date" else wall


def parsed(text: str) -> datetime:
    """A bound in PostgreSQL's text as a value that compares with :func:`settled_moment`."""
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo is not None else moment


def as_text(moment: datetime, type_: str) -> str:
    """PostgreSQL's text of a moment."""
    if base_of(type_)[0] == "date":
        return moment.date().isoformat()
    naive = moment.replace(tzinfo=None).isoformat(" ")
    return naive if moment.tzinfo is None else naive + "+00"


def _midnight(wall: datetime) -> datetime:
    return wall.replace(hour=0, minute=0, second=0, microsecond=0)
