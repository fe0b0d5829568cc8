"""The stored watermark follows the ledger, and an edit by hand is asked about."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_etl_provider.core.errors import StateError
from airflow_etl_provider.core.load import StreamPosition
from airflow_etl_provider.core.watermark import Repair, Watermark, follow, reconcile
from airflow_etl_provider.testing import MemoryWatermarkStore, RecordedEvents

NOW = datetime(2013, 1, 1, tzinfo=UTC)
texts = st.none() | st.text(max_size=20)
watermarks = st.builds(
    Watermark,
    stream=st.just("s"),
    value=texts,
    type=texts,
    fence=st.integers(0, 2**62),
    load_id=texts,
    dag_id=texts,
    run_id=texts,
    advanced_at=st.datetimes(timezones=st.just(UTC)),
    rows=st.none() | st.integers(0, 2**62),
    previous=texts,
)


def mark(value, fence):
    return Watermark("s", value, "date", fence, None, None, None, NOW, None, None)


def position(value, fence):
    return StreamPosition("s", value, "date", fence, None, NOW)


@given(watermarks)
def test_a_watermark_reads_as_it_was_written(watermark):
    assert Watermark.from_text(watermark.as_text(), stream="s", where="here") == watermark


@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    ).map(json.dumps)
)
def test_any_other_text_is_a_clear_error(text):
    with pytest.raises(StateError, match="here"):
        Watermark.from_text(text, stream="s", where="here")


@given(
    watermarks,
    st.sampled_from(["version", "stream", "value", "fence", "advanced_at"]),
    st.none() | st.integers() | st.lists(st.none()) | st.just("2013"),
)
def test_a_damaged_field_is_a_clear_error_or_harmless(watermark, field, damage):
    data = json.loads(watermark.as_text())
    data[field] = damage
    try:
        found = Watermark.from_text(json.dumps(data), stream="s", where="here")
    except StateError:
        return
    assert found.advanced_at.tzinfo is not None
    assert isinstance(found.fence, int)


@pytest.mark.parametrize(
    ("stored", "ledger", "expected"),
    [
        (None, (None, 0), Repair.NOTHING),
        (None, ("b", 3), Repair.WRITE),
        (("b", 3), ("b", 3), Repair.NOTHING),
        (("a", 2), ("b", 3), Repair.WRITE),
        (("z", 2), ("b", 3), Repair.WRITE),
        (("b", 2), ("b", 3), Repair.WRITE),
        (("a", 3), ("b", 3), StateError),
        (("c", 3), ("b", 3), StateError),
        ((None, 3), ("b", 3), StateError),
        (("b", 4), ("b", 3), StateError),
        (("a", 1), (None, 0), StateError),
        (("b", 1), (None, 2), Repair.WRITE),
    ],
)
def test_what_is_done_about_a_difference(stored, ledger, expected):
    """Older fence: rewritten; same fence, other value: edited by hand; newer fence: another warehouse."""
    arguments = (None if stored is None else mark(*stored), position(*ledger))
    if expected is StateError:
        with pytest.raises(StateError) as raised:
            reconcile(*arguments, where="Variable x")
        assert "Variable x" in str(raised.value)
        assert raised.value.remedy
    else:
        assert reconcile(*arguments, where="Variable x") is expected


def test_following_writes_until_nothing_moves():
    """A parallel load that moves on between reading and writing does not leave an older value behind."""
    store, log = MemoryWatermarkStore(), RecordedEvents()
    moves = iter([("a", 1), ("b", 2), ("b", 2)])
    latest = ("b", 2)

    def ledger():
        nonlocal latest
        latest = next(moves, latest)
        return position(*latest)

    follow(store, "s", ledger, log=log)
    found = store.read("s")
    assert (found.value, found.fence, found.previous) == ("b", 2, "a")


def test_following_touches_nothing_that_is_in_line():
    store, log = MemoryWatermarkStore(), RecordedEvents()
    store.write(mark("a", 1))
    before = dict(store.texts)
    follow(store, "s", lambda: position("a", 1), log=log)
    assert (store.texts, log.events) == (before, [])


def test_a_hand_edit_survives_following():
    store, log = MemoryWatermarkStore(), RecordedEvents()
    store.write(replace(mark("edited", 1)))
    with pytest.raises(StateError, match="edited"):
        follow(store, "s", lambda: position("a", 1), log=log)
    assert store.read("s").value == "edited"
