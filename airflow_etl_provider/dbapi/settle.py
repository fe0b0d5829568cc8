"""The settled bound of a source that proves nothing: its clock, less the declared delay."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.settle import CursorOrigin, SettleOptions
from airflow_etl_provider.core.window import humane
from airflow_etl_provider.dbapi.copytext import base_of

TIMES = ("timestamp with time zone", "timestamp without time zone", "date")
INTEGERS = ("smallint", "integer", "bigint", "numeric")


def refuse_origin(options: SettleOptions, label: str) -> None:
    """:raises ConfigurationError: the values are declared to be drawn inside the writing transaction."""
    if options.origin is CursorOrigin.TRANSACTION:
        raise ConfigurationError(
            f"{label} cannot show which of its transactions are open, so cursor_origin='transaction' "
            "proves nothing there",
            remedy="leave cursor_origin out and declare with settle_delay how late a row may be committed",
        )


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


def evidence(delay: timedelta) -> str:
    """How the bound is known, for manifest and log."""
    return f"the source's clock less the settle delay of {humane(delay)}"


def _midnight(wall: datetime) -> datetime:
    return wall.replace(hour=0, minute=0, second=0, microsecond=0)
