"""Swap: one window becomes one partition, exactly."""

from tests.builders import FEBRUARY, JANUARY, fill, simple


def test_a_month_arrives_row_by_row(source, warehouse):
    """What readers see afterwards is exactly what the source held, no more and no less."""
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 1000)
    done = pipe.load(JANUARY, FEBRUARY)
    assert (done.rows_inserted, done.already) == (1000, False)
    assert pipe.rows() == pipe.source_rows()
