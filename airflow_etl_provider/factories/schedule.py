"""When a pipeline runs: its timetable, and what can be known about its intervals without running."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from airflow.sdk import CronDataIntervalTimetable, CronPartitionTimetable, timezone
from airflow.timetables.base import DataInterval, TimeRestriction
from airflow.timetables.interval import CronDataIntervalTimetable as Calendar

from airflow_etl_provider.config.findings import Finding
from airflow_etl_provider.config.models import Pipeline
from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.core.partition import PartitionSpec

_ANY_DAY = datetime(2024, 1, 1, tzinfo=UTC)
# One interval per season shows a schedule and partitions that differ only in summer time.
_SEASONS = tuple(timedelta(days=days) for days in (0, 91, 182, 273))
# A gap of the schedule is an interval that is too long, whatever moment after it is asked.
_STEPS = (
    *(timedelta(hours=hours) for hours in range(1, 25)),
    *(timedelta(days=days) for days in range(2, 32)),
    *(timedelta(days=days) for days in range(62, 373, 31)),
)


def timetable(pipeline: Pipeline) -> CronDataIntervalTimetable | CronPartitionTimetable | None:
    """The timetable whose runs each load the interval before them, or ``None`` for runs by hand.

    A cron string given to Airflow 3 as it is would make intervals that hold no time, and a partitioned
    run without an offset would name the partition that begins when it starts.
    """
    if pipeline.cron is None:
        return None
    if pipeline.partitioned:
        return CronPartitionTimetable(pipeline.cron, timezone=pipeline.timezone, run_offset=-1)
    return CronDataIntervalTimetable(pipeline.cron, timezone=pipeline.timezone)


def dates(pipeline: Pipeline) -> tuple[datetime | None, datetime | None]:
    """What Airflow calls the DAG's start and end, so that the pipeline's are those of intervals.

    Airflow holds a data interval's start against them, of a partitioned run the time at which it is due,
    and that is the end of the interval.
    """
    start, end = pipeline.starts_at, pipeline.ends_at
    if pipeline.cron is None or not pipeline.partitioned:
        return start, end
    calendar = Calendar(pipeline.cron, timezone=pipeline.timezone)
    if start is not None:
        start = _first_interval(calendar, start).end
    if end is not None:
        last = calendar.infer_manual_data_interval(run_after=timezone.coerce_datetime(end)).end
        end = _first_interval(calendar, last).end
    return start, end


def origin(pipeline: Pipeline) -> datetime | None:
    """Start of the first interval in the pipeline's zone, if a catchup loads everything since."""
    if pipeline.cron is None or pipeline.starts_at is None or not pipeline.catchup:
        return None
    calendar = Calendar(pipeline.cron, timezone=pipeline.timezone)
    start = _first_interval(calendar, pipeline.starts_at).start
    return start.astimezone(ZoneInfo(pipeline.timezone))


def findings(pipeline: Pipeline) -> Iterator[Finding]:
    """What is wrong with the schedule, in itself and against the partitions that runs are to load."""
    if pipeline.cron is None:
        return
    since = pipeline.starts_at or _ANY_DAY
    calendar = Calendar(pipeline.cron, timezone=pipeline.timezone)
    try:
        intervals = _samples(calendar, since, every_gap=pipeline.partitioned)
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
        # A swap is asked for whole partitions; auto replaces the rows of other windows in place.
        swap = stream.target.strategy is Strategy.SWAP
        if partition is None or not (swap or pipeline.partitioned):
            continue
        spec = PartitionSpec(
            partition.column, partition.every, partition.timezone or pipeline.timezone
        )
        path = ("streams", number, "target", "partition", "every")
        for interval in intervals:
            if (finding := _misfit(pipeline, interval, spec)) is not None:
                yield Finding(path, *finding)
                break


def _samples(calendar: Calendar, since: datetime, *, every_gap: bool) -> list[DataInterval]:
    """Intervals of the schedule that show what is peculiar about it.

    :param every_gap: look also for hours, days and months that the schedule leaves out.
    """
    found = [_first_interval(calendar, since + season) for season in _SEASONS]
    if every_gap:
        moments = (timezone.coerce_datetime(since + step) for step in _STEPS)
        found += [calendar.infer_manual_data_interval(run_after=moment) for moment in moments]
    return [each for each in dict.fromkeys(found) if each.start >= found[0].start]


def _misfit(
    pipeline: Pipeline, interval: DataInterval, spec: PartitionSpec
) -> tuple[str, str] | None:
    """Why the partitions are not those of the schedule's interval, and what to do about it."""
    whole = spec.covers_whole(interval.start, interval.end)
    if whole and not pipeline.partitioned:
        return None
    if whole and len(spec.periods(interval.start, interval.end)) == 1:
        return None
    what = (
        f"schedule {pipeline.schedule!r} in {pipeline.timezone} loads {_shown(interval.start, spec)} to "
        f"{_shown(interval.end, spec)}, which is not "
    )
    by = f"schedule the pipeline by the {spec.every} in {spec.timezone}"
    if pipeline.partitioned:
        return (
            f"{what}one partition of one {spec.every} in {spec.timezone}",
            f"{by}, make partitions as long as the intervals, or leave partitioned out",
        )
    in_place = "write strategy: auto, which replaces the rows of such a window in place"
    return (
        f"{what}made of whole partitions of one {spec.every} in {spec.timezone}",
        f"{by}, make partitions shorter, or {in_place}",
    )


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
