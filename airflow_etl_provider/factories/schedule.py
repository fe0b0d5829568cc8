"""When a pipeline runs: its timetable, and what can be known about its intervals without running."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from airflow.sdk import CronDataIntervalTimetable, timezone
from airflow.timetables.base import DataInterval, TimeRestriction
from airflow.timetables.interval import CronDataIntervalTimetable as Calendar

from airflow_etl_provider.config.findings import Finding
from airflow_etl_provider.config.models import Pipeline
from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.core.partition import PartitionSpec

_ANY_DAY = datetime(2024, 1, 1, tzinfo=UTC)
# One interval per season shows a schedule and partitions that differ only in summer time.
_SEASONS = tuple(timedelta(days=days) for days in (0, 91, 182, 273))


def timetable(pipeline: Pipeline) -> CronDataIntervalTimetable | None:
    """The timetable whose runs each load the interval before them, or ``None`` for runs by hand.

    A cron string given to Airflow 3 as it is would make intervals that hold no time.
    """
    if pipeline.cron is None:
        return None
    return CronDataIntervalTimetable(pipeline.cron, timezone=pipeline.timezone)


def origin(pipeline: Pipeline) -> datetime | None:
    """Start of the first interval in the pipeline's zone, if a catchup loads everything since."""
    if pipeline.cron is None or pipeline.starts_at is None or not pipeline.catchup:
        return None
    calendar = Calendar(pipeline.cron, timezone=pipeline.timezone)
    start = _first_interval(calendar, pipeline.starts_at).start
    return start.astimezone(ZoneInfo(pipeline.timezone))


def findings(pipeline: Pipeline) -> Iterator[Finding]:
    """What is wrong with the schedule, in itself and against the partitions that a swap is asked for."""
    if pipeline.cron is None:
        return
    since = pipeline.starts_at or _ANY_DAY
    calendar = Calendar(pipeline.cron, timezone=pipeline.timezone)
    try:
        intervals = [_first_interval(calendar, since + season) for season in _SEASONS]
    except ValueError as error:  # what croniter raises
        yield Finding(
            ("schedule",),
            f"{pipeline.schedule!r} is no cron expression: {error}",
            'write minute, hour, day of month, month and day of week, such as "0 5 * * *"',
        )
        return
    if pipeline.ends_at is not None:
        intervals = [interval for interval in intervals if interval.start <= pipeline.ends_at]
    for number, stream in enumerate(pipeline.streams):
        partition = stream.target.partition
        # Only a swap is asked for whole partitions; auto replaces the rows of other windows in place.
        if partition is None or stream.target.strategy is not Strategy.SWAP:
            continue
        spec = PartitionSpec(
            partition.column, partition.every, partition.timezone or pipeline.timezone
        )
        for interval in intervals:
            if not spec.covers_whole(interval.start, interval.end):
                yield Finding(
                    ("streams", number, "target", "partition", "every"),
                    f"schedule {pipeline.schedule!r} in {pipeline.timezone} loads {_shown(interval.start, spec)} to "
                    f"{_shown(interval.end, spec)}, which is not made of whole partitions of one {spec.every} "
                    f"in {spec.timezone}",
                    f"schedule the pipeline by the {spec.every} in {spec.timezone}, make partitions shorter, "
                    "or write strategy: auto, which replaces the rows of such a window in place",
                )
                break


def _first_interval(calendar: Calendar, since: datetime) -> DataInterval:
    info = calendar.next_dagrun_info(
        last_automated_data_interval=None,
        restriction=TimeRestriction(
            earliest=timezone.coerce_datetime(since), latest=None, catchup=True
        ),
    )
    if info is None or info.data_interval is None:
        raise ValueError(f"no interval begins after {since.isoformat()}")
    return info.data_interval


def _shown(moment: datetime, spec: PartitionSpec) -> str:
    return moment.astimezone(ZoneInfo(spec.timezone)).isoformat()
