"""A table of cases: what stands in the target after each run, by interval, watermark and full windows.

Cursor values are small numbers: hours of 2013-01-01 for intervals, the numbers themselves for watermarks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_etl_provider.core.errors import DataError
from airflow_etl_provider.core.load import Kind
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.core.settle import CursorOrigin, SettleOptions
from tests.builders import Pipeline

SETTLED = SettleOptions(
    origin=CursorOrigin.APPLICATION, delay=timedelta(0), margin=timedelta(0), timeout=timedelta(0)
)
DAY = datetime(2013, 1, 1, tzinfo=UTC)
ANYTHING = None
#: A run that is refused: rows without a cursor value would be lost.
REFUSED = "refused"
MODES = ("interval", "watermark", "full")


@dataclass(frozen=True)
class Step:
    """What is written to the source, the interval of the run, and the ids in the target after it.

    ``rows``: cursor values by id; ``None`` has none. The ids may differ by mode.
    """

    rows: dict[int, int | None]
    window: tuple[int, int]
    ids: Any
    gone: tuple[int, ...] = ()
    backfill: bool = False

    def expected(self, mode: str) -> Any:
        return self.ids[MODES.index(mode)] if isinstance(self.ids, tuple) else self.ids


@dataclass(frozen=True)
class Case:
    name: str
    steps: list[Step]
    lookback: int = 0
    modes: tuple[str, ...] = field(default=MODES)


CASES = [
    Case(
        "rows arrive in order",
        [Step({1: 1, 2: 2}, (0, 3), {1, 2}), Step({3: 3, 4: 5}, (3, 6), {1, 2, 3, 4})],
    ),
    Case(
        "ties at the boundary lie on one side of it",
        [
            Step({1: 1, 2: 2, 3: 2}, (0, 2), ({1}, {1, 2, 3}, {1, 2, 3})),
            Step({4: 3}, (2, 4), {1, 2, 3, 4}),
        ],
    ),
    Case(
        "a late row beyond the lookback waits for its window to be loaded again",
        [
            Step({1: 1, 2: 5}, (0, 6), {1, 2}),
            Step({3: 2, 4: 7}, (6, 9), ({1, 2, 4}, {1, 2, 4}, {1, 2, 3, 4})),
            Step({}, (0, 6), {1, 2, 3, 4}, backfill=True),
        ],
    ),
    Case(
        "a late row within the lookback arrives with the next run",
        [Step({1: 1, 2: 5}, (0, 6), {1, 2}), Step({3: 4, 4: 7}, (6, 9), {1, 2, 3, 4})],
        lookback=3,
        modes=("watermark",),
    ),
    Case(
        "an empty window is covered, and the next one goes on behind it",
        [
            Step({1: 1}, (0, 3), {1}),
            Step({}, (3, 6), {1}),
            Step({2: 7}, (6, 9), {1, 2}),
        ],
    ),
    Case(
        "an empty source is no mistake",
        [Step({}, (0, 3), set()), Step({1: 4}, (3, 6), {1})],
    ),
    Case(
        "a row deleted in the source goes where its window is read again",
        [
            Step({1: 1, 2: 2}, (0, 3), {1, 2}),
            Step({}, (3, 6), ({1, 2}, {1, 2}, {1}), gone=(2,)),
        ],
    ),
    Case(
        "an old window that is replayed changes nothing that is right",
        [
            Step({1: 1, 2: 2}, (0, 3), {1, 2}),
            Step({3: 4}, (3, 6), {1, 2, 3}),
            Step({}, (0, 3), {1, 2, 3}),
            Step({}, (0, 3), {1, 2, 3}, backfill=True),
        ],
    ),
    Case(
        "a cursor that goes backwards is not followed",
        [
            Step({1: 8, 2: 9}, (6, 10), {1, 2}),
            Step({3: 1}, (10, 12), ({1, 2}, {1, 2}, {1, 2, 3})),
            Step({4: 12}, (12, 14), ({1, 2, 4}, {1, 2, 4}, {1, 2, 3, 4})),
        ],
    ),
    Case(
        "rows without a value are refused before anything is lost",
        [
            Step({1: 1}, (0, 3), {1}),
            Step({2: None, 3: 4}, (3, 6), (REFUSED, REFUSED, {1, 2, 3})),
            Step({}, (3, 6), ({1, 3}, {1, 3}, {1, 3}), gone=(2,)),
        ],
    ),
    Case(
        "a row whose cursor rises is there once",
        [
            Step({1: 1, 2: 2}, (0, 3), {1, 2}),
            Step({1: 4}, (3, 6), {1, 2}),
        ],
    ),
]


def _value(mode: str, number: int | None) -> Any:
    if number is None:
        return None
    return number if mode == "watermark" else DAY + timedelta(hours=number)


@pytest.mark.parametrize(
    ("case", "mode"),
    [pytest.param(case, mode, id=f"{case.name} ({mode})") for case in CASES for mode in case.modes],
)
def test_the_target_after_each_run(source18: Any, warehouse18: Any, case: Case, mode: str) -> None:
    column = "bigint" if mode == "watermark" else "timestamptz"
    source18.run(f"CREATE TABLE t (id int PRIMARY KEY, c {column})")
    warehouse18.run(f"CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, c {column})")
    pipe = Pipeline(
        source18,
        warehouse18,
        kind=Kind.SNAPSHOTS if mode == "full" else Kind.ENTITIES,
        cursor=None if mode == "full" else "c",
        keys=("id",),
        partition=None,
        settle=SETTLED,
        mode=WindowMode.WATERMARK if mode == "watermark" else None,
        lookback=case.lookback or None,
    )
    for step in case.steps:
        for id_, number in step.rows.items():
            source18.run(
                "INSERT INTO t VALUES (%(id)s, %(c)s) ON CONFLICT (id) DO UPDATE SET c = excluded.c",
                {"id": id_, "c": _value(mode, number)},
            )
        source18.run("DELETE FROM t WHERE id = ANY (%s)", (list(step.gone),))
        before = (
            pipe.picture() if pipe.warehouse.value("SELECT to_regclass('etl.coverage')") else None
        )
        if step.expected(mode) == REFUSED:
            with pytest.raises(DataError, match="have no value in the cursor"):
                _run(pipe, mode, step)
            assert pipe.picture() == before
            continue
        _run(pipe, mode, step)
        assert _ids(warehouse18) == step.expected(mode), step
        assert warehouse18.value("SELECT count(*) FROM a.t") == len(step.expected(mode))


def _run(pipe: Pipeline, mode: str, step: Step) -> None:
    window: tuple[datetime, ...] = ()
    if mode == "interval" or (mode == "watermark" and step.backfill):
        window = (DAY + timedelta(hours=step.window[0]), DAY + timedelta(hours=step.window[1]))
    if mode == "watermark" and step.backfill:
        # A counter has no interval: what lies behind is read again by going back.
        pipe.lookback, window = 1000, ()
    manifest = pipe.extract(
        *window, run_type="backfill" if step.backfill and window else "scheduled"
    )
    if not manifest.nothing:
        pipe.publish(pipe.waive(manifest), max_shrink=1.0)


def _ids(warehouse: Any) -> set[int]:
    return {row[0] for row in warehouse.run("SELECT id FROM a.t")}


@pytest.mark.parametrize(
    ("zone", "hours", "rows"),
    [
        # 02:00 to 03:00 does not exist on that day in New York; 01:00 to 02:00 is lived twice in autumn.
        ("America/New_York", ("2013-03-10T06:00+00:00", "2013-03-10T08:00+00:00"), 120),
        ("America/New_York", ("2013-11-03T04:00+00:00", "2013-11-03T07:00+00:00"), 120),
        ("Asia/Kathmandu", ("2013-06-01T00:15+00:00", "2013-06-01T01:15+00:00"), 60),
        ("UTC", ("2013-12-31T23:00+00:00", "2014-01-01T00:00+00:00"), 60),
    ],
)
def test_the_wall_clock_of_a_zone(
    source18: Any, warehouse18: Any, zone: str, hours: tuple[str, str], rows: int
) -> None:
    """A cursor without time zone shows some wall clock: each minute of it is in exactly one window."""
    low, high = (datetime.fromisoformat(hour) for hour in hours)
    source18.run("CREATE TABLE t (id int PRIMARY KEY, c timestamp)")
    source18.run(
        "INSERT INTO t SELECT row_number() OVER (ORDER BY c), c FROM (SELECT DISTINCT at AT TIME ZONE %s AS c"
        " FROM generate_series(%s::timestamptz - interval '3 h', %s::timestamptz + interval '3 h', '1 min') AS at) m",
        (zone, low, high),
    )
    warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, c timestamp)")
    pipe = Pipeline(
        source18,
        warehouse18,
        kind=Kind.ENTITIES,
        cursor="c",
        keys=("id",),
        partition=None,
        timezone=zone,
        settle=SETTLED,
    )
    pipe.load(low, high)
    assert warehouse18.value("SELECT count(*) FROM a.t") == rows
    for before, after in ((low - timedelta(hours=3), low), (high, high + timedelta(hours=3))):
        pipe.load(before, after)
    # The last minute is the end of the last window, which does not belong to it.
    assert warehouse18.value("SELECT count(*) FROM a.t") == source18.value(
        "SELECT count(*) - 1 FROM t"
    )


def test_microseconds_decide(source18: Any, warehouse18: Any) -> None:
    """One microsecond before the boundary and the boundary itself lie in different windows."""
    source18.run("CREATE TABLE t (id int PRIMARY KEY, c timestamptz)")
    source18.run(
        "INSERT INTO t VALUES (1, '2013-01-01 00:59:59.999999+00'), (2, '2013-01-01 01:00:00+00'),"
        " (3, '2013-01-01 01:00:00.000001+00')"
    )
    warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, c timestamptz)")
    pipe = Pipeline(
        source18,
        warehouse18,
        kind=Kind.ENTITIES,
        cursor="c",
        keys=("id",),
        partition=None,
        settle=SETTLED,
    )
    hour = timedelta(hours=1)
    pipe.load(DAY, DAY + hour)
    assert _ids(warehouse18) == {1}
    pipe.load(DAY + hour, DAY + 2 * hour)
    assert pipe.rows() == pipe.source_rows()
