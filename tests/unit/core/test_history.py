"""Robust statistics: what is usual is not moved by what is not."""

from __future__ import annotations

import math
from statistics import NormalDist, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_etl_provider.core.history import (
    MAD_SCALE,
    Usual,
    least_spread_of_lag,
    least_spread_of_rows,
    usual,
)

COUNTS = st.lists(st.floats(0, 1e12), min_size=1, max_size=50)


def test_the_scale_makes_the_mad_a_standard_deviation() -> None:
    """Half of all normally distributed values lie within the MAD of the median."""
    assert pytest.approx(1 / NormalDist().inv_cdf(0.75), abs=1e-4) == MAD_SCALE


def test_a_third_of_bad_loads_moves_nothing_much() -> None:
    """Where mean and standard deviation would call everything usual."""
    good = [1000.0, 1010, 990, 1005, 995, 1002]
    found = usual([*good, 0.0, 0.0, 1_000_000.0], least_spread_of_rows)
    assert 990 <= found.median <= 1010
    assert found.highest(3.5) < 1200
    assert found.lowest(3.5) > 800


def test_equal_loads_leave_room_for_chance() -> None:
    """The MAD is 0 where most values are the same: then the floor counts, and says how much."""
    found = usual([10_000.0] * 9, least_spread_of_rows)
    assert found == Usual(10_000.0, 100.0)
    assert (found.lowest(3.5), found.highest(3.5)) == (9_650.0, 10_350.0)
    assert usual([0.0] * 9, least_spread_of_rows) == Usual(0.0, 1.0)
    assert usual([3600.0] * 9, least_spread_of_lag) == Usual(3600.0, 360.0)
    assert usual([-5.0] * 9, least_spread_of_lag) == Usual(-5.0, 60.0)


def test_nothing_is_below_zero() -> None:
    """A number of rows that scatters widely may be none at all, and never less."""
    assert Usual(10.0, 100.0).lowest(3.5) == 0.0


@given(COUNTS)
def test_the_median_is_always_usual(values: list[float]) -> None:
    """Whatever the history, what lies in its middle is not an outlier."""
    found = usual(values, least_spread_of_rows)
    assert found.lowest(3.5) <= median(values) <= found.highest(3.5)
    assert found.deviation >= math.sqrt(found.median)


@given(COUNTS, st.floats(0.01, 1000))
def test_it_scales_with_what_is_counted(values: list[float], factor: float) -> None:
    """Without the floor, twice the rows have twice the spread."""
    one = usual(values, lambda _: 0.0)
    other = usual([factor * value for value in values], lambda _: 0.0)
    assert other.median == pytest.approx(factor * one.median, rel=1e-6)
    assert other.deviation == pytest.approx(factor * one.deviation, rel=1e-6, abs=1e-3)
