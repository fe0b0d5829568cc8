"""What the encoder remembers never changes what it says."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from airflow_etl_provider.core.errors import DataError
from airflow_etl_provider.dbapi.copytext import RowEncoder

NAN = float("nan")


@pytest.mark.parametrize(
    ("type_", "blocks"),
    [
        ("bigint", [[1, 2, None], [True, 1.0, Decimal(2), 3], [None]]),
        ("numeric(6,2)", [[1, 1.5, None, NAN], [Decimal("1.50"), NAN, True, -0.0, 0]]),
        ("date", [["2024-01-01", None], ["2024-01-01", "2024-01-02"]]),
        (
            "timestamp with time zone",
            [["2024-01-01 00:00:00Z"], [datetime(2024, 1, 1, tzinfo=UTC)]],
        ),
        ("double precision", [[0.0, 1.5], [-0.0, None, NAN, 2]]),
        ("text", [["a", "b\t"], [1, 1.0, True, None, "1"], ["\\"]]),
        ("boolean", [[True, False], [1, 0, None]]),
    ],
)
def test_a_value_has_the_same_text_whatever_came_before(type_, blocks):
    """Equal values of other types only share a text where they are stored alike."""
    learned = RowEncoder([("v", type_)])
    for values in blocks * 2:
        for number, line in enumerate(learned.encode([(v,) for v in values], 1).splitlines()):
            alone = RowEncoder([("v", type_)]).encode([(values[number],)], 1).rstrip(b"\n")
            assert stored(line, type_) == stored(alone, type_)


def stored(line, type_):
    """What PostgreSQL makes of a text: a numeric has no sign of zero, and no zeros but its scale's."""
    if type_.startswith("numeric") and line not in (b"\\N", b"NaN", b"nan"):
        return Decimal(line.decode())
    return line.replace(b"+00:00", b"Z").replace(b"T", b" ")


@pytest.mark.parametrize(
    ("type_", "values", "bad"),
    [
        ("bigint", [*range(5000)], "5000"),
        ("numeric(6,2)", [n / 100 for n in range(5000)], 1.005),
        ("date", ["2024-01-01"] * 9, "2024-13-1"),
        ("text", ["a"] * 9, b"a"),
    ],
)
def test_more_values_than_are_remembered_are_checked_all_the_same(type_, values, bad):
    encoder = RowEncoder([("v", type_)])
    text = b""
    for start in range(0, len(values), 512):
        text += encoder.encode([(value,) for value in values[start : start + 512]], start + 1)
    assert text.decode().split() == list(map(str, values))
    with pytest.raises(DataError, match="row 7 of the source, column v"):
        encoder.encode([(values[0],), (bad,)], 6)
    assert encoder.encode([(values[0],)], 8).decode() == f"{values[0]}\n"
