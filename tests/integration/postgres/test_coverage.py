"""Coverage and position: what is published, without gap, and never back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uuid6 import uuid7

from airflow_etl_provider.core.load import Kind, Published, Strategy, StreamPosition
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.publish import PublishOptions
from airflow_etl_provider.core.window import Window
from airflow_etl_provider.postgres import ledger
from airflow_etl_provider.postgres.session import connect
from tests.builders import APRIL, FEBRUARY, JANUARY, MARCH, fill, simple

FEB, MAR, APR = ("2013-02-01 00:00:00+00", "2013-03-01 00:00:00+00", "2013-04-01 00:00:00+00")


def test_february_before_january_waits_for_it(source, warehouse):
    """The position stops at a gap, and jumps over what was covered behind it when the gap is closed."""
    pipe = simple(source, warehouse, origin=JANUARY)
    pipe.load(FEBRUARY, MARCH)
    assert pipe.position() is None
    assert pipe.store.read("t") is None
    pipe.load(MARCH, APRIL)
    assert pipe.position() is None
    pipe.load(JANUARY, FEBRUARY)
    assert pipe.position() == APR
    assert pipe.store.read("t").value == APR


def test_january_and_february_begun_in_any_order(source18, warehouse18):
    """Without a stated origin it is the lowest window that was begun, not the first published."""
    pipe = simple(source18, warehouse18)
    february, january = pipe.staged(FEBRUARY, MARCH), pipe.staged(JANUARY, FEBRUARY)
    pipe.publish(february)
    assert pipe.position() is None
    pipe.publish(january)
    assert pipe.position() == MAR


def test_a_backfill_covers_but_does_not_move(source, warehouse):
    """A backfill leaves position, fence and store alone; the next publish outside counts what it covered."""
    pipe = simple(source, warehouse)
    pipe.load(JANUARY, FEBRUARY)
    stored = pipe.store.read("t")
    pipe.load(FEBRUARY, MARCH, run_type="backfill")
    pipe.load(JANUARY, FEBRUARY, run_type="backfill")
    assert (pipe.position(), pipe.store.read("t")) == (FEB, stored)
    assert len(pipe.coverage()) == 2
    pipe.load(MARCH, APRIL)
    assert pipe.position() == APR


def test_a_backfill_of_an_older_time_does_not_set_the_origin(source18, warehouse18):
    """Only loads that move the watermark say where the stream starts."""
    pipe = simple(source18, warehouse18)
    pipe.load(JANUARY.replace(year=2012), FEBRUARY.replace(year=2012), run_type="backfill")
    pipe.load(JANUARY, FEBRUARY)
    assert pipe.position() == FEB


def test_the_position_never_moves_back(source18, warehouse18):
    """Loading older windows again, or older ones for the first time, leaves the position."""
    pipe = simple(source18, warehouse18)
    pipe.load(FEBRUARY, MARCH)
    pipe.load(JANUARY, FEBRUARY)
    pipe.load(FEBRUARY, MARCH)
    assert pipe.position() == MAR
    assert warehouse18.run(
        "SELECT position_from, position_to, fence::int FROM etl.watermark_moves"
    ) == [(None, MAR, 1)]


def test_a_longer_window_is_split_by_a_later_one(source18, warehouse18):
    """Coverage never overlaps: the newest load of each instant is named, the rest keeps its load."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, APRIL, 90)
    quarter = pipe.load(JANUARY, APRIL).load_id
    february = pipe.load(FEBRUARY, MARCH).load_id
    assert pipe.coverage() == [
        ("2013-01-01 00:00:00+00", FEB, quarter),
        (FEB, MAR, february),
        (MAR, APR, quarter),
    ]
    assert pipe.rows() == pipe.source_rows()


def test_every_move_is_recorded_with_its_actor(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY, run_id="r1")
    pipe.load(FEBRUARY, MARCH, run_id="r2")
    assert warehouse18.run(
        "SELECT position_from, position_to, fence::int, reason, actor FROM etl.watermark_moves ORDER BY fence"
    ) == [(None, FEB, 1, "published", "dag r1"), (FEB, MAR, 2, "published", "dag r2")]
    stored = pipe.store.read("t")
    assert (stored.value, stored.fence, stored.previous) == (MAR, 2, FEB)


def test_snapshots_have_no_position(source18, warehouse18):
    source18.run("CREATE TABLE t (id int PRIMARY KEY)")
    warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY)")
    from tests.builders import Pipeline

    pipe = Pipeline(source18, warehouse18, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
    pipe.load()
    assert (pipe.position(), pipe.coverage(), pipe.store.read("t")) == (None, [], None)


_NUMBERS = count()
_loads = st.lists(
    st.tuples(st.integers(0, 11), st.integers(1, 4), st.booleans()), min_size=1, max_size=8
)


@pytest.fixture
def ledger_session(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    manifest = pipe.extract(FEBRUARY, MARCH)
    with connect(warehouse18.endpoint()) as connection:
        yield connection, manifest


class Model:
    """One cell per day; the simplest thing that is right."""

    def __init__(self):
        self.cells: dict[int, str] = {}
        self.origin: int | None = None
        self.position: int | None = None

    def begin(self, low: int, moves: bool) -> None:
        if moves:
            self.origin = low if self.origin is None else min(self.origin, low)

    def publish(self, low: int, high: int, moves: bool, load_id: str) -> None:
        for cell in range(low, high):
            self.cells[cell] = load_id
        if moves:
            reached = self.origin if self.position is None else self.position
            while reached in self.cells:
                reached += 1
            if (self.position is None and reached > self.origin) or self.position is not None:
                self.position = reached


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(loads=_loads, cursor_type=st.sampled_from(["timestamptz", "timestamp", "date"]))
def test_coverage_and_position_are_those_of_a_simple_model(ledger_session, loads, cursor_type):
    """Whatever is loaded in whatever order: coverage is a partition of what was loaded, the position its
    contiguous end, and it never moves back."""
    connection, template = ledger_session
    full_type = {
        "timestamptz": "timestamp with time zone",
        "timestamp": "timestamp without time zone",
        "date": "date",
    }[cursor_type]

    def text(day):
        found = datetime(2013, 1, 1) + timedelta(days=day)
        return {
            "timestamptz": f"{found}+00",
            "timestamp": f"{found}",
            "date": f"{found.date()}",
        }[cursor_type]

    stream = f"m{next(_NUMBERS)}"
    target = TableName("a", stream)
    ledger.bind_stream(connection, stream, target, Kind.EVENTS, "memory")
    model, known = Model(), None
    for low, length, moves in loads:
        window = Window(text(low), text(low + length), full_type)
        manifest = replace(
            template,
            load_id=str(uuid7()),
            stream=stream,
            target=target,
            window=window,
            moves_watermark=moves,
            partitions=(),
        )
        from tests.builders import run_info

        ledger.begin_load(
            connection,
            load_id=manifest.load_id,
            stream=stream,
            target=manifest.target,
            kind=Kind.EVENTS,
            run=run_info(manifest.load_id),
            window=window,
            moves_watermark=moves,
            origin=None,
        )
        statement, params = ledger.staged_statement(manifest)
        connection.execute(statement, params)
        ledger.mark_audited(connection, manifest.load_id, rejected=False, report={}, error=None)
        model.begin(low, moves)
        with connection.transaction():
            position = ledger.enter_publish(connection, manifest, Strategy.SWAP)
            assert isinstance(position, StreamPosition)
            ledger.record_published(
                connection,
                Published(
                    load_id=manifest.load_id,
                    stream=stream,
                    target=manifest.target,
                    strategy=Strategy.SWAP,
                    window=window,
                    rows_inserted=0,
                    rows_updated=0,
                    rows_deleted=0,
                    rows_unchanged=0,
                    partitions=(),
                    lock_ms=0.0,
                    position=position,
                ),
                manifest,
            )
        model.publish(low, low + length, moves, manifest.load_id)
        found = ledger.position_of(connection, stream)
        expected = None if model.position is None else text(model.position)
        assert found.position == expected
        assert known is None or model.position >= known
        known = model.position
        rows = connection.execute(
            f"SELECT low::{cursor_type}, high::{cursor_type}, load_id::text FROM etl.coverage WHERE stream = %s ORDER BY 1",
            (stream,),
        ).fetchall()
        cells = {}
        for start, end, load_id in rows:
            first, last = (_day(moment) for moment in (start, end))
            assert first < last
            for cell in range(first, last):
                assert cell not in cells, "coverage overlaps"
                cells[cell] = load_id
        assert cells == model.cells


def _day(moment):
    if isinstance(moment, datetime):
        return (moment.replace(tzinfo=UTC) - JANUARY).days
    return (moment - JANUARY.date()).days


def test_options_refuse_nonsense():
    """Options that cannot be meant are refused where they are made."""
    from airflow_etl_provider.core.errors import ConfigurationError

    for bad in (
        {"max_shrink": -0.1},
        {"max_shrink": 1.1},
        {"max_shrink": float("nan")},
        {"lock_budget": timedelta(0)},
        {"lock_deadline": timedelta(milliseconds=1)},
        {"keep_versions": -1},
    ):
        with pytest.raises(ConfigurationError):
            PublishOptions(**bad)
