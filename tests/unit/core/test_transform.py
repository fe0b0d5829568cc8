"""Which rows a failing call takes along, and how many may go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_etl_provider.core.errors import (
    ConfigurationError,
    DataError,
    EtlError,
    TransformFailed,
    TransientError,
    class_of_python,
)
from airflow_etl_provider.core.transform import (
    OnError,
    Passed,
    SetAside,
    reason_of,
    sift,
)


def sifted(rows, bad, on_error, error=ValueError):
    """What comes of rows of which some make the call raise."""
    calls = []

    def call(start, stop):
        calls.append((start, stop))
        if any(start <= each < stop for each in bad):
            raise error("xyzzy")
        return list(range(start, stop))

    return list(sift(rows, call, on_error, class_of_python, "work")), calls


@given(st.integers(1, 200), st.sets(st.integers(0, 199), max_size=20))
def test_exactly_the_rows_that_raise_are_set_aside(rows, bad):
    """Whatever the halves: every other row passes once, in order, and none is lost."""
    bad = {each for each in bad if each < rows}
    found, _ = sifted(rows, bad, OnError.SET_ASIDE_ROW)
    aside = [part for part in found if isinstance(part, SetAside)]
    assert {(part.start, part.stop) for part in aside} == {(each, each + 1) for each in bad}
    passed = [row for part in found if isinstance(part, Passed) for row in part.made]
    assert passed == [row for row in range(rows) if row not in bad]
    starts = [part.start for part in found]
    assert starts == sorted(starts)


def test_a_single_bad_row_costs_few_calls():
    """Halving: about twice the logarithm of the rows."""
    _, calls = sifted(50_000, {31_337}, OnError.SET_ASIDE_ROW)
    assert len(calls) <= 34


def test_the_batch_goes_as_a_whole():
    found, calls = sifted(10, {3}, OnError.SET_ASIDE_BATCH)
    assert [(part.start, part.stop) for part in found] == [(0, 10)]
    assert calls == [(0, 10)]


@pytest.mark.parametrize(
    ("on_error", "error", "kind"),
    [
        (OnError.FAIL, ValueError, DataError),
        (OnError.FAIL, Exception, DataError),
        (OnError.SET_ASIDE_ROW, ConnectionError, TransientError),
        (OnError.SET_ASIDE_BATCH, NameError, TransformFailed),
        (OnError.SET_ASIDE_ROW, ConfigurationError, TransformFailed),
    ],
)
def test_the_class_decides_and_no_text_is_told(on_error, error, kind):
    with pytest.raises(kind) as raised:
        sifted(10, {3}, on_error, error)
    if not issubclass(error, EtlError):
        assert "xyzzy" not in str(raised.value)
        assert raised.value.remedy


def test_what_ends_the_process_is_not_held():
    with pytest.raises(KeyboardInterrupt):
        sifted(10, {3}, OnError.SET_ASIDE_ROW, KeyboardInterrupt)


def test_a_reason_names_class_and_place():
    class Odd(Exception):
        pass

    try:
        raise Odd("xyzzy")
    except Odd as error:
        reason = reason_of(error)
    assert reason.endswith(" in test_a_reason_names_class_and_place)")
    assert "Odd (test_transform.py:" in reason
    assert reason_of(KeyError("xyzzy")) == "KeyError"
