"""scd2: the history of a key is the same whatever the order in which its versions arrive."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ContractError,
    DataError,
    ShrinkBrake,
    StateError,
)
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.publish import Deletes
from airflow_etl_provider.core.request import WindowMode
from tests.builders import Pipeline

SCD2 = Strategy.SCD2
DAY = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(40)]
FILLED = ("valid_from", "valid_to", "is_current")
TARGET = """
    CREATE TABLE a.t (id int NOT NULL, changed timestamptz, v text, gone boolean,
                      valid_from timestamptz NOT NULL, valid_to timestamptz, is_current boolean NOT NULL,
                      PRIMARY KEY (id, valid_from))
"""


def history(source, warehouse, target: str = TARGET, **changes: Any) -> Pipeline:
    source.run("CREATE TABLE t (id int, changed timestamptz, v text, gone boolean)")
    warehouse.run("CREATE SCHEMA a;" + target)
    fields: dict[str, Any] = {
        "kind": Kind.ENTITIES,
        "keys": ("id",),
        "cursor": "changed",
        "mode": WindowMode.FULL,
        "partition": None,
        "options": {"filled_by_publish": FILLED},
    }
    return Pipeline(source, warehouse, **fields | changes)


def load(pipe, *rows, **options):
    """The source holds *rows* (id, day, value[, gone]) and is loaded."""
    pipe.source.run("TRUNCATE t")
    for key, day, value, *gone in rows:
        pipe.source.run(
            "INSERT INTO t VALUES (%s, %s, %s, %s)", (key, DAY[day], value, bool(gone) and gone[0])
        )
    told = {"strategy": SCD2, "is_current": "is_current", "delete_flag": "gone", "max_shrink": 1.0}
    return pipe.load(options=told | options)


def versions(pipe) -> list[tuple[Any, ...]]:
    """(id, value, first day, day after the last or None), and that the rest of the row agrees."""
    rows = pipe.warehouse.run(
        "SELECT id, v, valid_from, valid_to, is_current FROM a.t ORDER BY id, valid_from"
    )
    number = {day: n for n, day in enumerate(DAY)}
    assert all(current == (end is None) for *_, end, current in rows)
    return [(key, v, number.get(start), number.get(end)) for key, v, start, end, _ in rows]


def seen(pipe) -> list[int | None]:
    """The day at which each version was last seen, in the order of :func:`versions`."""
    number = {day: n for n, day in enumerate(DAY)}
    return [
        number.get(at)
        for (at,) in pipe.warehouse.run("SELECT changed FROM a.t ORDER BY id, valid_from")
    ]


def test_keys_are_looked_up_at_the_cost_of_memory(source18, warehouse18):
    """As in a merge: not the whole history is read for a few keys, unless somebody has set what a read costs."""
    pipe = history(source18, warehouse18)
    warehouse18.run("ALTER TABLE a.t ADD cost text DEFAULT current_setting('random_page_cost')")
    load(pipe, (1, 1, "a"))
    assert warehouse18.value("SELECT cost FROM a.t") == "1.1"


def test_versions_open_and_close(source, warehouse):
    pipe = history(source, warehouse)
    load(pipe, (1, 1, "a"), (2, 1, "b"))
    done = load(pipe, (1, 3, "A"), (3, 3, "c"))
    assert (done.rows_inserted, done.rows_updated, done.rows_deleted) == (2, 1, 0)
    assert versions(pipe) == [
        (1, "a", 1, 3),
        (1, "A", 3, None),
        (2, "b", 1, None),
        (3, "c", 3, None),
    ]


def test_a_row_that_was_only_touched_begins_no_version(source, warehouse):
    """The version keeps when it was last seen; what is the same altogether is not written."""
    pipe = history(source, warehouse)
    load(pipe, (1, 1, "a"), (2, 1, "b"))
    done = load(pipe, (1, 5, "a"), (2, 1, "b"))
    assert (done.rows_inserted, done.rows_updated, done.rows_unchanged) == (0, 1, 1)
    assert versions(pipe) == [(1, "a", 1, None), (2, "b", 1, None)]
    assert seen(pipe) == [5, 1]
    before = warehouse.run("SELECT ctid::text, xmin::text FROM a.t")
    for again in ((1, 5, "a"), (1, 1, "a"), (1, 3, "a")):
        done = load(pipe, again)
        assert (done.changed, done.rows_unchanged) == (False, 1)
    assert warehouse.run("SELECT ctid::text, xmin::text FROM a.t") == before


def test_what_comes_late_splits_a_version_that_was_seen_later(source, warehouse):
    pipe = history(source, warehouse)
    load(pipe, (1, 1, "a"))
    load(pipe, (1, 5, "a"))
    load(pipe, (1, 3, "b"))
    assert versions(pipe) == [(1, "a", 1, 3), (1, "b", 3, 5), (1, "a", 5, None)]
    assert seen(pipe) == [1, 3, 5]
    load(pipe, (1, 4, "a", True))
    assert versions(pipe) == [(1, "a", 1, 3), (1, "b", 3, 4), (1, "a", 5, None)]


def test_a_cursor_that_lies_outside_its_version_says_nothing(source18, warehouse18):
    """Others have written the history, and the time of their load into the column, or nothing."""
    pipe = history(source18, warehouse18)
    warehouse18.run(
        "INSERT INTO a.t VALUES (1, '2024-01-20Z', 'a', NULL, '2024-01-02Z', '2024-01-06Z', false),"
        " (1, NULL, 'b', NULL, '2024-01-06Z', NULL, true)"
    )
    load(pipe, (1, 3, "c"))
    assert versions(pipe) == [(1, "a", 1, 3), (1, "c", 3, 5), (1, "b", 5, None)]
    assert seen(pipe) == [19, 3, None]


def test_counts_are_of_staged_rows(source18, warehouse18):
    pipe = history(source18, warehouse18)
    load(pipe, *((1, day, str(day)) for day in range(1, 10)))
    done = load(pipe, (1, 15, "new"))
    assert (done.rows_inserted, done.rows_updated, done.rows_unchanged) == (1, 1, 0)
    done = load(pipe, (1, 15, "new"), (1, 3, "3"), (1, 20, "newer"), (2, 1, "x", True))
    assert (done.rows_inserted, done.rows_updated, done.rows_unchanged) == (1, 1, 3)
    done = load(pipe, (1, 18, "new", True), (1, 2, "other"))
    assert (done.rows_inserted, done.rows_updated, done.rows_unchanged) == (0, 2, 0)


def test_an_older_reading_of_the_same_instant_counts_for_nothing(source18, warehouse18):
    """It was read before a load of a part of its window that is published: the row has changed in between."""
    pipe = history(source18, warehouse18, mode=WindowMode.INTERVAL)
    told = {"strategy": SCD2, "is_current": "is_current", "delete_flag": "gone"}
    source18.run("INSERT INTO t SELECT id, %s, 'a' FROM generate_series(1, 2) AS id", (DAY[1],))
    pipe.load(DAY[0], DAY[3], options=told)
    source18.run("UPDATE t SET changed = %s, v = 'older'", (DAY[5],))
    older = pipe.staged(DAY[3], DAY[9])
    source18.run("UPDATE t SET v = 'newer' WHERE id = 1; UPDATE t SET gone = true WHERE id = 2")
    pipe.load(DAY[4], DAY[12], options=told)
    expected = [(1, "a", 1, 5), (1, "newer", 5, None), (2, "a", 1, 5)]
    assert versions(pipe) == expected
    assert not pipe.publish(older, **told).changed
    assert versions(pipe) == expected


def test_what_only_tells_when_it_was_read_is_published_in_that_order(source18, warehouse18):
    pipe = history(source18, warehouse18, mode=WindowMode.INTERVAL, columns=("id", "v"))
    told = {"strategy": SCD2, "is_current": "is_current"}
    source18.run("INSERT INTO t VALUES (1, %s, 'a')", (DAY[5],))
    pipe.load(DAY[4], DAY[12], options=told)
    source18.run("UPDATE t SET v = 'between'")
    older = pipe.staged(DAY[3], DAY[9])
    source18.run("UPDATE t SET v = 'a'")
    pipe.load(DAY[4], DAY[12], options=told)
    before = pipe.picture()
    with pytest.raises(StateError, match="read later"):
        pipe.publish(older, **told)
    assert pipe.picture() == before


def test_several_versions_of_a_batch_and_a_late_one(source, warehouse):
    pipe = history(source, warehouse)
    load(pipe, (1, 4, "d"), (1, 2, "b"), (1, 8, "h"))
    load(pipe, (1, 6, "f"), (1, 1, "a"))
    assert versions(pipe) == [
        (1, "a", 1, 2), (1, "b", 2, 4), (1, "d", 4, 6), (1, "f", 6, 8), (1, "h", 8, None),
    ]  # fmt: skip


def test_a_deleted_row_ends_and_may_come_again(source, warehouse):
    pipe = history(source, warehouse)
    load(pipe, (1, 1, "a"))
    load(pipe, (1, 3, "a", True))
    assert versions(pipe) == [(1, "a", 1, 3)]
    load(pipe, (1, 3, "a", True))
    load(pipe, (1, 5, "a"))
    assert versions(pipe) == [(1, "a", 1, 3), (1, "a", 5, None)]
    load(pipe, (1, 1, "a", True))
    assert versions(pipe) == [(1, "a", 5, None)]


def test_rows_that_end_by_their_flag_are_braked(source18, warehouse18):
    """As those that are gone from a snapshot are; what was deleted before and what begins again do not count."""
    pipe = history(source18, warehouse18)
    load(pipe, *((key, 1, "a") for key in range(10)))
    ended = [(key, 3, "a", True) for key in range(6)]
    with pytest.raises(ShrinkBrake, match="6 of 10"):
        load(pipe, *ended, max_shrink=0.5)
    assert all(end is None for *_, end in versions(pipe))
    load(pipe, *ended, max_shrink=0.6)
    load(pipe, *ended, (0, 4, "b"), (7, 4, "b"), max_shrink=0.0)
    load(pipe, (8, 5, "a", True), (8, 6, "c"), max_shrink=0.0)
    assert [key for key, _, _, end in versions(pipe) if end is None] == [0, 6, 7, 8, 9]


def test_softly_deleted_is_a_version(source18, warehouse18):
    pipe = history(source18, warehouse18)
    load(pipe, (1, 1, "a"))
    load(pipe, (1, 3, "a", True), deletes=Deletes.SOFT)
    assert versions(pipe) == [(1, "a", 1, 3), (1, "a", 3, None)]


def test_what_is_gone_from_a_snapshot_ends(source, warehouse):
    pipe = history(source, warehouse, kind=Kind.SNAPSHOTS, cursor=None)
    load(pipe, (1, 1, "a"), (2, 1, "b"), (3, 1, "c"), delete_flag=None)
    with pytest.raises(ShrinkBrake, match="current rows"):
        load(pipe, (1, 1, "a"), delete_flag=None, max_shrink=0.5)
    load(pipe, (1, 1, "a"), (2, 1, "B"), delete_flag=None)
    rows = warehouse.run("SELECT id, v, valid_to IS NULL FROM a.t ORDER BY id, valid_from")
    assert rows == [(1, "a", True), (2, "b", False), (2, "B", True), (3, "c", False)]
    before = pipe.rows()
    assert not load(pipe, (1, 1, "a"), (2, 1, "B"), delete_flag=None).changed
    assert pipe.rows() == before


def test_a_partitioned_history(source, warehouse):
    pipe = history(
        source,
        warehouse,
        TARGET.rstrip().rstrip(";") + " PARTITION BY RANGE (valid_from);"
        "CREATE TABLE a.jan PARTITION OF a.t FOR VALUES FROM ('2024-01-01Z') TO ('2024-01-05Z');"
        "CREATE TABLE a.later PARTITION OF a.t DEFAULT",
    )
    load(pipe, (1, 1, "a"))
    load(pipe, (1, 9, "b"))
    assert versions(pipe) == [(1, "a", 1, 9), (1, "b", 9, None)]


def test_a_membership_has_nothing_but_its_keys(source, warehouse):
    source.run("CREATE TABLE t (u int, g int); INSERT INTO t VALUES (1, 1), (1, 2)")
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (u int, g int, valid_from timestamptz, valid_to timestamptz,"
        " PRIMARY KEY (u, g, valid_from))"
    )
    pipe = Pipeline(
        source,
        warehouse,
        kind=Kind.SNAPSHOTS,
        keys=("u", "g"),
        cursor=None,
        partition=None,
        options={"filled_by_publish": ("valid_from", "valid_to")},
    )
    pipe.load(options={"strategy": SCD2})
    source.run("UPDATE t SET g = 3 WHERE g = 2")
    pipe.load(options={"strategy": SCD2})
    assert warehouse.run("SELECT u, g, valid_to IS NULL FROM a.t ORDER BY g") == [
        (1, 1, True),
        (1, 2, False),
        (1, 3, True),
    ]


def test_columns_may_have_any_name(source18, warehouse18):
    more = ("etl_at", "etl_gone", "etl_rank", "etl_before", "etl0_at", "etl0_since", "t", "s", "n")
    pipe = history(source18, warehouse18)
    for name in more:
        source18.run(f"ALTER TABLE t ADD {name} int DEFAULT 1")
        warehouse18.run(f"ALTER TABLE a.t ADD {name} int")
    load(pipe, (1, 1, "a"))
    source18.run("ALTER TABLE t ALTER etl_at SET DEFAULT 2")
    load(pipe, (1, 5, "a"))
    assert versions(pipe) == [(1, "a", 1, 5), (1, "a", 5, None)]


def test_a_history_may_be_as_wide_as_a_table_can_be(source18, warehouse18):
    wide = ", ".join(f"c{number} int" for number in range(1597))
    source18.run(f"CREATE TABLE t (id int, {wide}); INSERT INTO t (id) VALUES (1)")
    warehouse18.run(
        f"CREATE SCHEMA a; CREATE TABLE a.t (id int, {wide}, valid_from timestamptz, valid_to timestamptz)"
    )
    pipe = Pipeline(
        source18,
        warehouse18,
        kind=Kind.SNAPSHOTS,
        keys=("id",),
        cursor=None,
        partition=None,
        options={"filled_by_publish": ("valid_from", "valid_to")},
    )
    pipe.load(options={"strategy": SCD2})
    source18.run("UPDATE t SET c9 = 9")
    pipe.load(options={"strategy": SCD2})
    assert warehouse18.run("SELECT c9, valid_to IS NULL FROM a.t ORDER BY valid_from") == [
        (None, False),
        (9, True),
    ]


def test_a_snapshot_meets_every_key(source18, warehouse18):
    """Or a row that is gone from it would stay, where an open end is written otherwise."""
    pipe = history(source18, warehouse18, kind=Kind.SNAPSHOTS, cursor=None)
    warehouse18.run("INSERT INTO a.t VALUES (2, NULL, 'x', NULL, '2023-01-01Z', 'infinity', true)")
    with pytest.raises(DataError, match="1 versions of") as told:
        load(pipe, (1, 1, "a"), delete_flag=None)
    remedy = re.search(r"run (UPDATE .+ = 'infinity'),", str(told.value))
    assert remedy, told.value
    warehouse18.run(remedy[1])
    load(pipe, (1, 1, "a"), delete_flag=None)
    assert warehouse18.run("SELECT id, valid_to IS NULL FROM a.t ORDER BY id") == [
        (1, True),
        (2, False),
    ]


def test_a_table_that_inherits_has_a_history_of_its_own(source18, warehouse18):
    pipe = history(source18, warehouse18)
    warehouse18.run(
        "CREATE TABLE a.archive () INHERITS (a.t);"
        "INSERT INTO a.archive VALUES (1, '2023-01-01Z', 'old', false, '2023-01-01Z', NULL, true)"
    )
    before = warehouse18.run("SELECT ctid::text, xmin::text, t.* FROM a.archive AS t")
    load(pipe, (1, 1, "a"))
    load(pipe, (1, 5, "b"))
    assert warehouse18.run("SELECT ctid::text, xmin::text, t.* FROM a.archive AS t") == before
    assert warehouse18.run("SELECT v, valid_to IS NULL FROM ONLY a.t ORDER BY valid_from") == [
        ("a", False),
        ("b", True),
    ]


def test_what_begins_at_infinity_ends_what_is_before(source18, warehouse18):
    """Sources hold such rows; they are no reason to refuse what was written because of them."""
    pipe = history(source18, warehouse18)
    load(pipe, (1, 1, "a"))
    source18.run("UPDATE t SET changed = 'infinity', v = 'b'")
    told = {"strategy": SCD2, "is_current": "is_current", "delete_flag": "gone"}
    pipe.load(options=told)
    assert not pipe.load(options=told).changed
    assert warehouse18.run("SELECT v, valid_to::text FROM a.t ORDER BY valid_from") == [
        ("a", "infinity"),
        ("b", None),
    ]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("ALTER TABLE a.t RENAME valid_to TO until", CatalogError, "valid_to"),
        ("ALTER TABLE a.t ALTER valid_to TYPE date", ContractError, "must be timestamp"),
        (
            "ALTER TABLE a.t ALTER valid_to TYPE date, ALTER valid_from TYPE date",
            ContractError,
            "versions begin at changed",
        ),
        (
            "INSERT INTO a.t VALUES (1, now(), 'x', NULL, '2023-01-01Z', 'infinity', true), (2, now(), 'x', NULL, '2023-01-01Z', 'infinity', true)",
            DataError,
            r"1 versions of a\.t .* end at 'infinity'",
        ),
        (
            "ALTER TABLE a.t DROP CONSTRAINT t_pkey; INSERT INTO a.t VALUES (1, now(), 'x', NULL, '2023-01-01Z', NULL, true), (1, now(), 'y', NULL, '2023-02-01Z', NULL, true)",
            DataError,
            "true at the same time",
        ),
    ],
)
def test_a_target_that_is_no_history_is_refused(source18, warehouse18, change, error, words):
    pipe = history(source18, warehouse18)
    warehouse18.run(change)
    before = pipe.rows()
    with pytest.raises(error, match=words):
        load(pipe, (1, 1, "a"))
    assert pipe.rows() == before


def test_events_are_refused(source18, warehouse18):
    pipe = history(source18, warehouse18, kind=Kind.EVENTS, keys=())
    with pytest.raises(ConfigurationError, match="events"):
        load(pipe, (1, 1, "a"))


EVENTS = st.lists(
    st.tuples(
        st.integers(1, 2),
        st.integers(0, 12),
        st.sampled_from("abc"),
        st.sampled_from([False, False, True]),
    ),
    max_size=12,
    unique_by=lambda event: event[:2],
)


def told(events) -> list[tuple[Any, ...]]:
    """The history as one would write it down by hand."""
    found = []
    for key in sorted({event[0] for event in events}):
        mine = sorted(event[1:] for event in events if event[0] == key)
        kept = []
        for day, value, gone in mine:
            before = kept[-1] if kept else (None, None, True)
            if (gone, None if gone else value) != (before[2], None if before[2] else before[1]):
                kept.append((day, value, gone))
        for (day, value, gone), after in pairwise([*kept, (None, None, None)]):
            if not gone:
                found.append((key, value, day, after[0]))
    return found


def emptied(source, warehouse) -> Pipeline:
    """A pipeline beside which an earlier example has left nothing."""
    for database in (source, warehouse):
        database.run(
            "DROP TABLE IF EXISTS t; DROP SCHEMA IF EXISTS a CASCADE; DROP SCHEMA IF EXISTS etl CASCADE;"
            "DROP SCHEMA IF EXISTS etl_staging CASCADE"
        )
    return history(source, warehouse)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=EVENTS, data=st.data())
def test_the_history_is_right_and_a_load_that_comes_again_changes_nothing(
    source18, warehouse18, events, data
):
    """Loads in the order of time, each of any number of versions."""
    pipe = emptied(source18, warehouse18)
    events = sorted(events, key=lambda event: event[1])
    while events:
        size = data.draw(st.integers(1, len(events)))
        load(pipe, *events[:size])
        before = versions(pipe)
        assert not load(pipe, *events[:size]).changed
        assert versions(pipe) == before
        events = events[size:]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=EVENTS, cut=st.integers(0, 12))
def test_the_history_is_what_one_would_write_down(source18, warehouse18, events, cut):
    """In two loads, by time."""
    pipe = emptied(source18, warehouse18)
    early = [event for event in events if event[1] < cut]
    late = [event for event in events if event[1] >= cut]
    for batch in (early, late):
        load(pipe, *batch)
    assert versions(pipe) == told(events)


def in_loads(data, pipe, events) -> Iterator[list[tuple[Any, ...]]]:
    """In any order, in loads of any size, some of which come again."""
    left = data.draw(st.permutations(events))
    while left:
        size = data.draw(st.integers(1, len(left)))
        load(pipe, *left[:size], deletes=Deletes.SOFT)
        if data.draw(st.booleans()):
            assert not load(pipe, *left[:size], deletes=Deletes.SOFT).changed
        yield left[:size]
        left = left[size:]


#: No value comes more than twice, so that every time at which it was seen begins a version or ends its sight.
TWICE = st.permutations("aabbccdd").map(
    lambda values: [(1, 1 + 2 * n, value) for n, value in enumerate(values)]
)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=TWICE, data=st.data())
def test_the_history_is_the_same_whatever_the_order(source18, warehouse18, events, data):
    pipe = emptied(source18, warehouse18)
    for _ in in_loads(data, pipe, events):
        pass
    assert versions(pipe) == told([(*event, False) for event in events])


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=EVENTS, data=st.data())
def test_the_current_version_is_that_of_the_newest_row(source18, warehouse18, events, data):
    """However often it was seen; rows that are deleted softly are rows like all others."""
    pipe = emptied(source18, warehouse18)
    newest: dict[int, tuple[Any, ...]] = {}
    for batch in in_loads(data, pipe, events):
        for event in batch:
            newest[event[0]] = max(newest.get(event[0], event), event)
        current = warehouse18.run("SELECT id, changed, v, gone FROM a.t WHERE is_current")
        assert {(key, DAY.index(at), v, gone) for key, at, v, gone in current} == set(
            newest.values()
        )
        # No gap and no overlap.
        for version, after in pairwise(versions(pipe)):
            assert version[3] == (after[2] if after[0] == version[0] else None)
