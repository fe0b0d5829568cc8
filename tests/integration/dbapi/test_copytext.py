"""Python values through a real COPY: what PostgreSQL stores is what was given."""

import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from io import BytesIO
from uuid import UUID

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_etl_provider.core.errors import DataError
from airflow_etl_provider.dbapi.copytext import RowEncoder

_CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
_SPECIAL = st.sampled_from(["\\", "\t", "\n", "\r", "\\N", "\\."])
_TEXT = st.lists(_CHARACTERS | _SPECIAL, max_size=20).map("".join)
_OFFSETS = st.timedeltas(timedelta(hours=-15, minutes=-59), timedelta(hours=15, minutes=59)).map(
    lambda offset: timezone(timedelta(seconds=int(offset.total_seconds())))
)
_DECIMALS = st.decimals(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity"), Decimal("1E+40"), Decimal("1E-40")]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)

COLUMNS = {
    "i": ("bigint", st.integers(-(2**63), 2**63 - 1)),
    "n": ("numeric", _DECIMALS.filter(lambda value: not value.is_finite() or abs(value.adjusted()) < 1000)),
    "n2": ("numeric(20,4)", st.decimals("-1e12", "1e12", places=4) | st.integers(-(10**12), 10**12)),
    "f": ("double precision", st.floats()),
    "r": ("real", st.floats(width=32)),
    "b": ("boolean", st.booleans() | st.sampled_from([0, 1])),
    "t": ("text", _TEXT),
    "x": ("bytea", st.binary(max_size=20)),
    "d": ("date", st.dates()),
    "s": ("timestamp without time zone", st.datetimes()),
    "z": ("timestamp with time zone", st.datetimes(timezones=_OFFSETS).filter(lambda value: 1 < value.year < 9999)),
    "c": ("time without time zone", st.times()),
    "v": ("interval", st.timedeltas(timedelta(days=-99_999_999), timedelta(days=99_999_999))),
    "u": ("uuid", st.uuids()),
    "j": ("jsonb", st.dictionaries(_TEXT, _JSON, max_size=3) | st.lists(_JSON, max_size=3)),
}  # fmt: skip
_ROWS = st.lists(
    st.tuples(*(st.none() | values for _, values in COLUMNS.values())), min_size=1, max_size=5
)


@pytest.fixture
def table(warehouse18):
    columns = ", ".join(f"{name} {type_}" for name, (type_, _) in COLUMNS.items())
    warehouse18.run(f"CREATE TABLE t (row_number int GENERATED ALWAYS AS IDENTITY, {columns})")
    with warehouse18.connect() as reading, psycopg2.connect(warehouse18.conninfo) as writing:
        yield reading, writing
    writing.close()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=_ROWS)
def test_any_row_comes_back_as_it_was_given(table, rows):
    """One path in, another out: psycopg reads what COPY stored."""
    reading, writing = table
    names = ", ".join(COLUMNS)
    encoder = RowEncoder([(name, type_) for name, (type_, _) in COLUMNS.items()])
    with writing.cursor() as cursor:
        cursor.execute("SET TimeZone = 'UTC'; TRUNCATE t")
        cursor.copy_expert(f"COPY t ({names}) FROM STDIN", BytesIO(encoder.encode(rows, 1)))
        assert cursor.rowcount == len(rows)
    writing.commit()
    reading.execute("SET TimeZone = 'UTC'")
    shown = {"v": "extract(epoch FROM v)::numeric * 1000000", "r": "r::double precision"}
    listed = ", ".join(shown.get(name, name) for name in COLUMNS)
    stored = reading.execute(f"SELECT {listed} FROM t ORDER BY row_number").fetchall()
    for row, back in zip(rows, stored, strict=True):
        for (name, _), value, found in zip(COLUMNS.items(), row, back, strict=True):
            if name == "v" and value is not None:
                value = value // timedelta(microseconds=1)
            if isinstance(value, float | Decimal) and math.isnan(value):
                assert math.isnan(found)
            else:
                assert found == value, name
            if isinstance(value, float) and value == 0:
                assert math.copysign(1, found) == math.copysign(1, value)


@pytest.mark.parametrize(
    ("type_", "value", "reason"),
    [
        ("bigint", 1.5, "a fraction"),
        ("bigint", "12", "str"),
        ("bigint", float("nan"), "cannot hold"),
        ("double precision", 2**53 + 1, "exactly"),
        ("double precision", 10**400, "cannot hold"),
        ("real", 0.1, "exactly"),
        ("numeric(6,2)", Decimal("1.005"), "2 places"),
        ("numeric(6,2)", 1.005, "2 places"),
        ("boolean", 2, "other than 0 and 1"),
        ("date", datetime(2024, 1, 1, 1), "time of day"),
        ("date", "2024-1-1", "YYYY-MM-DD"),
        ("timestamp without time zone", datetime(2024, 1, 1, tzinfo=UTC), "offset"),
        ("timestamp without time zone", "2024-01-01 10:00:00Z", "no time of the form"),
        ("timestamp without time zone", "2024-01-01 24:00:00", "no time of the form"),
        ("timestamp without time zone", "2024-01-01 10:00:60", "no time of the form"),
        ("timestamp without time zone", "2024-01-01 10:00:00.1234567", "no time of the form"),
        ("timestamp without time zone", "2024-01-01\n2024-01-01", "no time of the form"),
        ("timestamp without time zone", 1704067200, "int"),
        ("timestamp with time zone", datetime(2024, 1, 1), "without offset"),
        ("timestamp with time zone", "2024-01-01 10:00:00", "no time of the form"),
        ("time without time zone", timedelta(days=1), "no time of day"),
        ("text", "se\0cret", "NUL"),
        ("text", "\ud800secret", "Unicode"),
        ("text", b"secret", "bytes"),
        ("bytea", "secret", "str"),
        ("json", {"a": float("nan")}, "cannot hold"),
        ("jsonb", {"a": Decimal(1)}, "Decimal inside JSON"),
        ("text", object(), "object"),
    ],
)
def test_what_a_type_would_change_in_silence_is_refused_by_row_and_column(type_, value, reason):
    """The place is named, the value never is."""
    encoder = RowEncoder([("id", "bigint"), ("v v", type_)])
    with pytest.raises(DataError, match=f"row 12 of the source, column v v: .*{reason}") as caught:
        encoder.encode([(1, None), (2, None), (3, value), (4, value)], 10)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("type_", "value", "text"),
    [
        ("numeric(6,2)", Decimal("1.100"), "1.100"),
        ("numeric(6,2)", 1.5, "1.5"),
        ("numeric(6,2)", float("nan"), "NaN"),
        ("bigint", True, "1"),
        ("bigint", 3.0, "3"),
        ("bigint", Decimal("1E+3"), "1000"),
        ("text", 1.5, "1.5"),
        ("text", date(2024, 1, 1), "2024-01-01"),
        ("text", True, "t"),
        ("inet", "::1", "::1"),
        ("time without time zone", timedelta(hours=1), "01:00:00"),
        ("time with time zone", time(1, tzinfo=UTC), "01:00:00+00:00"),
        ("date", datetime(2024, 1, 1), "2024-01-01"),
        ("timestamp without time zone", date(2024, 1, 1), "2024-01-01"),
        ("timestamp with time zone", "2024-01-01T10:00:00.5Z", "2024-01-01T10:00:00.5Z"),
        ("uuid", UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("text", "\\.", "\\\\."),
        ("bytea", memoryview(b"\\"), "\\\\x5c"),
    ],
)
def test_what_fits_exactly_is_taken(type_, value, text):
    encoder = RowEncoder([("v", type_)])
    assert (
        encoder.encode([(value, 0), (None, 0), (value, "beyond")], 1).decode()
        == f"{text}\n\\N\n{text}\n"
    )


def test_an_offset_that_postgresql_cannot_read_becomes_utc():
    """Nineteen hours, or a fraction of a second."""
    odd = datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=19, microseconds=1)))
    encoder = RowEncoder([("v", "timestamp with time zone")])
    assert encoder.encode([(odd,)], 1) == b"2023-12-31T04:59:59.999999+00:00\n"
