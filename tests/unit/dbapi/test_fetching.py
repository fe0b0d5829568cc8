"""How many rows are fetched at once depends on their size."""

import pytest

from airflow_etl_provider.dbapi.fetching import STEP, SizedFetch, widths_in
from airflow_etl_provider.dbapi.flavour import BLOCK

MIB = 1024 * 1024


class Driver:
    """Gives rows and notes how many were asked for, and how much text they were."""

    def __init__(self, rows):
        self.rows = iter(rows)
        self.asked = []
        self.sizes = []

    def fetchmany(self, size):
        self.asked.append(size)
        found = [row for _, row in zip(range(size), self.rows, strict=False)]
        self.sizes.append(sum(len(row[1]) for row in found if isinstance(row[1], str)))
        return found


def read(rows, wide=(1,), most=512):
    driver = Driver(rows)
    fetch = SizedFetch(driver.fetchmany, widths_in(wide))
    batches = []
    while batch := fetch(most):
        batches.append(batch)
    assert [row for batch in batches for row in batch] == rows
    assert all(len(batch) <= most for batch in batches)
    return driver, batches


def test_narrow_rows_are_fetched_in_steps_that_grow():
    driver, batches = read([(n, "x", None) for n in range(1000)])
    assert driver.asked[:6] == [1, 2, 4, 8, 16, 32]
    assert max(driver.asked) == STEP
    assert list(map(len, batches)) == [512, 488]


@pytest.mark.parametrize("narrow", [0, 1, 31, 63, 511, 700])
def test_wide_rows_after_narrow_ones_make_one_large_step_at_most(narrow):
    """And whatever a step brought, no batch is larger than a block and a row."""
    rows = [(n, "x") for n in range(narrow)] + [(n, "x" * MIB) for n in range(100)]
    driver, batches = read(rows)
    assert all(sum(len(text) for _, text in batch) <= BLOCK + MIB for batch in batches)
    assert max(driver.sizes) <= STEP * MIB
    assert sum(size > 8 * MIB for size in driver.sizes) <= 1


def test_values_of_all_kinds_have_a_size():
    rows = [(1, None, b"x" * MIB), (2, 7, {"a": 1}), (3, "y" * MIB, bytearray(MIB)), (4, "", [])]
    _, batches = read(rows, wide=(1, 2))
    assert len(batches) > 1
