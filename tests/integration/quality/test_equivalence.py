"""SQL says what Great Expectations says: the same verdict and result on the same rows, or it leaves the expectation.

Where the common cases are concerned, it must not leave them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.postgres.session import Endpoint
from airflow_etl_provider.quality.compiler import compiles
from airflow_etl_provider.quality.gallery import read_gallery
from airflow_etl_provider.quality.own import COMPOUND_REFERENCE, REFERENCE
from airflow_etl_provider.quality.suite import parse_suite
from demo.embedded import EmbeddedPostgres
from tests.integration.quality.differential import Outcome, differences, left, run
from tests.integration.quality.drawing import OTHERS, Drawn, drawn
from tests.integration.quality.gallery import JUDGED, TABLE

# Great Expectations imports modules that Python 3.11 deprecates, and SQLAlchemy warns of types it does not know.
pytestmark = [
    pytest.mark.filterwarnings("ignore:module 'sre_"),
    pytest.mark.filterwarnings("ignore:Did not recognize type"),
    pytest.mark.filterwarnings("ignore:.* parameter is deprecated as of GX"),
    pytest.mark.filterwarnings("ignore:Passing a string to the row_condition"),
]

#: ``make crash`` draws more.
EXAMPLES = int(os.environ.get("ETL_EXAMPLES", "8"))

Case = tuple[str, Mapping[str, Any]]


class Site:
    """A database of its own, for tables to audit."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        name = f"audited_{uuid4().hex[:10]}"
        server.create_database(name)
        self.endpoint = Endpoint(conninfo_to_dict(server.conninfo(name)), name, "etl:test")
        self.connection = psycopg.connect(server.conninfo(name), autocommit=True)
        self.connection.execute("CREATE SCHEMA w")

    def outcomes(self, table: str, statements: str, cases: Sequence[Case]) -> list[Outcome]:
        """Make *table* by *statements*, audit it by both, and find no difference."""
        self.connection.execute(statements)  # type: ignore[arg-type]
        suite = parse_suite([{"type": kind, "kwargs": kwargs} for kind, kwargs in cases])
        found = run(self.endpoint, TableName("w", table), suite.expectations)
        assert differences(found) == []
        return found

    def judged(self, table: str, statements: str, cases: Sequence[Case]) -> list[Outcome]:
        """As *outcomes*; SQL leaves nothing."""
        found = self.outcomes(table, statements, cases)
        assert left(found) == []
        return found


@pytest.fixture(scope="module")
def site(server: EmbeddedPostgres) -> Iterator[Site]:
    """On PostgreSQL 18."""
    made = Site(server)
    yield made
    made.connection.close()


@pytest.fixture
def any_site(any_server: EmbeddedPostgres) -> Iterator[Site]:
    """On each supported PostgreSQL in turn."""
    made = Site(any_server)
    yield made
    made.connection.close()


def of(column: str, *cases: Case) -> list[Case]:
    """*cases* of one column."""
    return [(kind, {"column": column, **kwargs}) for kind, kwargs in cases]


def between(low: Any = None, high: Any = None, **others: Any) -> Case:
    ends = {"min_value": low, "max_value": high}
    given = {key: value for key, value in ends.items() if value is not None}
    return "expect_column_values_to_be_between", {**given, **others}


def in_set(*values: Any, **others: Any) -> Case:
    return "expect_column_values_to_be_in_set", {"value_set": list(values), **others}


def regex(pattern: str, **others: Any) -> Case:
    return "expect_column_values_to_match_regex", {"regex": pattern, **others}


def like(pattern: str, **others: Any) -> Case:
    return "expect_column_values_to_match_like_pattern", {"like_pattern": pattern, **others}


def compared(column: str, operator: str, parameter: Any) -> dict[str, Any]:
    return {
        "type": "comparison",
        "column": {"name": column},
        "operator": operator,
        "parameter": parameter,
    }


def null(column: str, *, is_null: bool) -> dict[str, Any]:
    return {"type": "nullity", "column": {"name": column}, "is_null": is_null}


def unexpected(outcomes: Sequence[Outcome]) -> list[int | None]:
    return [None if one.by_sql is None else one.by_sql.unexpected_count for one in outcomes]


def verdicts(outcomes: Sequence[Outcome]) -> list[bool | None]:
    return [None if one.by_sql is None else one.by_sql.success for one in outcomes]


# -- every type -----------------------------------------------------------------------------------

#: What Great Expectations can judge on PostgreSQL and SQL cannot, or not for less.
UNCOMPILED = {"expect_column_kl_divergence_to_be_less_than"}


def test_every_type_that_can_be_judged_is_judged_by_sql(any_site: Site) -> None:
    """The gallery's own cases, one that holds and one that fails, on every server."""
    cases = [
        (kind, kwargs) for kind, both in JUDGED.items() for kwargs in both if kind not in UNCOMPILED
    ]
    table = TABLE.replace("etl_staging.", "w.")
    twins = (
        "; CREATE TABLE w.every_type_twin AS TABLE w.every_type"
        "; CREATE TABLE w.every_type_half AS SELECT 1 AS id"
    )
    found = any_site.judged("every_type", table + twins, cases)
    assert verdicts(found) == [True, False] * (len(cases) // 2)


def test_compiled_are_the_types_that_have_cases() -> None:
    """A type that compiles without a case here has proven nothing."""
    compiled = {kind for kind in read_gallery() if compiles(kind)}
    assert compiled == (set(JUDGED) - UNCOMPILED) | {REFERENCE, COMPOUND_REFERENCE}


# -- rows one by one ------------------------------------------------------------------------------

TEN = "CREATE TABLE w.{} AS SELECT i, CASE WHEN i > 4 THEN i END AS some FROM generate_series(1, 10) i"


def test_shares_hold_to_the_last_bit(site: Site) -> None:
    """Ties such as 0.9 of 10 rows, 0, 1, floats, and shares of the values that are there."""
    shares = [0, 0.1, 1 / 3, 0.3, 0.7, 0.8, 0.9, 0.9000000000000001, 0.95, 1, 1.0]
    cases = [
        (kind, {"column": column, "mostly": share, **kwargs})
        for share in shares
        for column in ("i", "some")
        for kind, kwargs in (between(2), in_set(1, 2, 3), ("expect_column_values_to_be_null", {}))
    ]
    cases += [
        (kind, {"column_list": ["i", "some"], "mostly": share})
        for share in shares
        for kind in (
            "expect_multicolumn_values_to_be_equal",
            "expect_compound_columns_to_be_unique",
        )
    ]
    found = site.judged("ten", TEN.format("ten"), cases)
    assert {True, False} <= set(verdicts(found))


WORDS = r"""
CREATE TABLE w.words (id int, v text, fixed char(4), short varchar(8), note text);
INSERT INTO w.words VALUES
 (1, 'a', 'a', 'a', NULL), (2, 'A', 'A', 'A', 'x'), (3, 'ab', 'ab', 'ab', NULL), (4, '', '', '', 'y'),
 (5, E'two\nlines', 'abcd', 'x%y', 'z'), (6, 'back\slash', 'a b', 'a_b', NULL), (7, 'per%cent', '%', '%', 'x'),
 (8, 'quote''s', '''', '"', 'x'), (9, NULL, NULL, NULL, NULL), (10, 'ä', 'ä', 'ä', 'x'), (11, '1', '1', '1.0', 'x')
"""


def test_patterns_mean_the_same(site: Site) -> None:
    """Anchors, classes, flags, backslashes, percent signs, line breaks, escapes; fixed and varying lengths."""
    patterns = [
        *map(
            regex, ["a", "^a$", "^$", "", "^[A-Z]", r"\d", r"\\", "%", "(?i)^A", r"\s", ".", "^.$"]
        ),
        *map(regex, ["(?n)^lines$", "a|1", "a{2}", r"\mlines\M", "''", "'", "[[:upper:]]", "ä"]),
        *map(like, ["a", "a%", "_", "%", "", r"%\%%", "%\\\\%", "%'%", "%\n%", "ä", "A_"]),
        like("x!%y", escape="!"),
        like("%!%", escape="!"),
        ("expect_column_values_to_not_match_regex", {"regex": "[a-z]"}),
        ("expect_column_values_to_match_regex_list", {"regex_list": ["^a", "b$"]}),
        (
            "expect_column_values_to_match_regex_list",
            {"regex_list": ["^a", "b$"], "match_on": "all"},
        ),
        ("expect_column_values_to_not_match_regex_list", {"regex_list": ["^a", "b$"]}),
        ("expect_column_values_to_not_match_like_pattern", {"like_pattern": "a%"}),
        ("expect_column_values_to_match_like_pattern_list", {"like_pattern_list": ["a%", "_"]}),
        (
            "expect_column_values_to_match_like_pattern_list",
            {"like_pattern_list": ["a%", "_"], "match_on": "all"},
        ),
        ("expect_column_values_to_not_match_like_pattern_list", {"like_pattern_list": ["a%", "_"]}),
        ("expect_column_value_lengths_to_equal", {"value": 1}),
        ("expect_column_value_lengths_to_be_between", {"min_value": 1, "max_value": 2}),
        (
            "expect_column_value_lengths_to_be_between",
            {"min_value": 1, "max_value": 4, "strict_min": True, "strict_max": True},
        ),
    ]
    site.judged(
        "words",
        WORDS,
        [case for column in ("v", "fixed", "short") for case in of(column, *patterns)],
    )


def test_a_broken_pattern_is_left_even_where_no_row_is_matched(site: Site) -> None:
    """Great Expectations says that it is broken, on a table without rows too."""
    cases = of(
        "v",
        regex("("),
        regex("[", row_condition=null("v", is_null=True)),
        ("expect_column_values_to_match_regex_list", {"regex_list": ["a", "a{2,1}"]}),
        like("a\\"),
        like("a", escape="!!"),
        regex("a"),
    )
    for rows in ("", "; INSERT INTO w.broken VALUES (NULL)", "; INSERT INTO w.broken VALUES ('a')"):
        found = site.outcomes(
            "broken", f"DROP TABLE IF EXISTS w.broken; CREATE TABLE w.broken (v text){rows}", cases
        )
        assert [one.left is not None for one in found[:3]] == [True] * 3
        assert [one.left for one in found[5:]] == [None]


def test_sets_of_any_types_mean_the_same(site: Site) -> None:
    """Numbers in texts, texts in numbers, truth values, None inside, nothing, huge numbers, case."""
    table = """
        CREATE TABLE w.sets (i int, t text, b bool, n numeric, f float8, c char(4), u uuid, d date);
        INSERT INTO w.sets VALUES
          (1, '1', true, 1.0, 0.1, 'a', '00000000-0000-0000-0000-000000000001', '2013-01-01'),
          (2, 'a', false, 1.00, 1, 'ab', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '2013-01-02'),
          (3, 'A', NULL, 0.1, '-0', NULL, NULL, NULL), (NULL, NULL, true, 'NaN', 'NaN', 'A', NULL, 'infinity')
    """
    literals: Mapping[str, Sequence[Any]] = {
        "i": [1, 2, 3.0, "1", "2", 9007199254740993, 1.5, 10**30],
        "t": ["1", "a", "", "a ", "A"],
        "b": [True, False],
        "n": [1, 1.0, "1.00", 0.1, "NaN", 1e300],
        "f": [0.1, 1, 0, -0.0, "NaN", "0.1", 1e-300],
        "c": ["a", "a   ", "ab", "A"],
        "u": ["00000000-0000-0000-0000-000000000001", "FFFFFFFF-ffff-ffff-ffff-ffffffffffff"],
        "d": ["2013-01-01", "2013-01-02 00:00:00", "infinity", "epoch"],
    }
    sets = ("be_in_set", "not_be_in_set")
    cases: list[Case] = []
    for column, values in literals.items():
        for chosen in (values[:1], values[:2], values, [*values[1:], None], []):
            cases += [
                (f"expect_column_values_to_{kind}", {"column": column, "value_set": list(chosen)})
                for kind in sets
            ]
    # Six of one kind of number each in a set of texts are refused by the server; so are those below.
    found = site.outcomes("sets", table, cases)
    assert [one.expectation.kwargs for one in found if one.left is not None] == []
    refused = [
        in_set("a", 1),
        in_set(True, 1),
        in_set(True, "false"),
        in_set(["a"]),
        in_set({"a": 1}),
        in_set("\x00"),
        in_set("\ud800"),
        in_set(None),
        in_set(True),
        in_set("not a uuid"),
    ]
    for column in ("i", "u"):
        outcomes = site.outcomes("sets", "SELECT", of(column, *refused))
        assert all(one.left is not None for one in outcomes)


def test_sets_on_types_without_equality_are_left(site: Site) -> None:
    """json has no equality; jsonb and arrays have no hash in Python."""
    table = """
        CREATE TABLE w.documents (j json, b jsonb, a int[], y bytea);
        INSERT INTO w.documents VALUES ('{"a": 1}', '{"a": 1}', '{1,2}', '\\x00'), (NULL, NULL, NULL, NULL)
    """
    kinds = [
        "expect_column_values_to_be_in_set",
        "expect_column_distinct_values_to_be_in_set",
        "expect_column_distinct_values_to_contain_set",
        "expect_column_distinct_values_to_equal_set",
    ]
    values = {"j": ['{"a": 1}'], "b": ['{"a": 1}'], "a": ["{1,2}"], "y": ["\\x00"]}
    found = site.outcomes(
        "documents",
        table,
        [
            (kind, {"column": column, "value_set": given})
            for column, given in values.items()
            for kind in kinds
        ],
    )
    assert [one.left is None for one in found] == [
        *[False] * 4,
        *[True, True, False, False] * 2,
        *[True] * 4,
    ]
    site.judged(
        "documents",
        "SELECT",
        [
            (kind, {"column": column})
            for column in values
            for kind in ("expect_column_values_to_be_null", "expect_column_values_to_not_be_null")
        ],
    )


NUMBERS = """
CREATE TABLE w.numbers (s smallint, i int, b bigint, n numeric, m numeric(12,2), r real, f float8);
INSERT INTO w.numbers VALUES
  (1, 1, 9007199254740993, 1.0, 1.00, 0.1, 0.1), (-32768, 2147483647, 9007199254740992, 1.00, -1.5, '-0', '-0'),
  (NULL, NULL, NULL, NULL, NULL, NULL, NULL), (0, -5, '-9223372036854775808', 'NaN', 0.10, 'NaN', 'NaN'),
  (32767, 2, 9223372036854775807, 'Infinity', 2.50, '-Infinity', 'Infinity'), (1, 1, 0, 1e-40, 0, 1e-40, 1e-300)
"""
NUMBER_COLUMNS = ("s", "i", "b", "n", "m", "r", "f")


def test_bounds_of_numbers_mean_the_same(site: Site) -> None:
    """One-sided, strict, floats, beyond what a float holds, NaN, infinity and negative zero."""
    bounds = [
        between(1),
        between(high=1),
        between(1, 2),
        between(0, 1, strict_min=True),
        between(0, 1, strict_max=True),
        between(0.1, 0.1),
        between(-0.0, strict_min=True),
        between(0, strict_min=True),
        between(high=9007199254740992),
        between(9007199254740993),
        between(-1e300, 1e300),
        between(2**63),
        between(1, mostly=0.5, strict_min=False, strict_max=True),
    ]
    site.judged(
        "numbers", NUMBERS, [case for column in NUMBER_COLUMNS for case in of(column, *bounds)]
    )


def test_what_bounds_cannot_mean_is_left(site: Site) -> None:
    """Texts as numbers, dates for numbers, the greater end first, no end, ends that no float holds."""
    odd = [
        between("1"),
        between("2013-01-01"),
        between(2, 1),
        between(1, "2013-01-01"),
        between(10**400),
        between(True),
        between([1]),
        between(strict_min=True),
    ]
    table = "CREATE TABLE w.odd AS SELECT 1 AS i, 'a'::text AS v, now() AS at, true AS b"
    found = site.outcomes("odd", table, of("i", *odd))
    assert all(one.left is not None for one in found)
    for column in ("v", "b", "at"):
        found = site.outcomes("odd", "SELECT", of(column, between(1), between(0, 1)))
        assert all(one.left is not None for one in found)


def test_dates_and_moments_mean_the_same(site: Site) -> None:
    """Dates and moments as texts, with and without zone, on columns with and without, at the ends of time."""
    table = """
        CREATE TABLE w.moments (d date, ts timestamp, tz timestamptz, ms timestamptz(3));
        INSERT INTO w.moments VALUES
          ('2013-01-01', '2013-01-01', '2013-01-01 00:00+00', '2013-01-01 00:00:00.001+00'),
          ('2013-01-02', '2013-01-01 00:00:00.000001', '2013-01-01 01:00+01', '2013-01-02 00:00+00'),
          ('0001-01-01', '0001-01-01', '0001-01-01 00:00+00', '0001-01-01 00:00+00'),
          ('9999-12-31', '9999-12-31 23:59:59.999999', '9999-12-31 23:59+00', '9999-12-31 23:59+00'),
          ('infinity', '-infinity', 'infinity', '-infinity'), (NULL, NULL, NULL, NULL)
    """
    bounds = [
        between("2013-01-01"),
        between("2013-01-01", "2013-01-02", strict_min=True),
        between(high="2013-01-01", strict_max=True),
        between("0001-01-01", "9999-12-31"),
        between("2013-01-01T00:00:00"),
        between("2013-01-01 00:00:00", strict_min=True),
        between("2013-01-01T00:00:00.000001", "2013-01-02T12:30:00"),
        between("2013-01-01 00:00:00+00:00", strict_min=True),
        between("2013-01-01T01:00:00+01:00", "2013-01-02T00:00:00+00:00"),
        between("2013-01-01T00:00:00Z"),
        between("2013-01-01 00:00"),
        in_set("2013-01-01"),
        in_set("2013-01-01 00:00:00", "2013-01-02T00:00:00Z"),
    ]
    columns = ("d", "ts", "tz", "ms")
    site.judged("moments", table, [case for column in columns for case in of(column, *bounds)])
    mixed = [
        between("2013-01-01", "2013-01-02T00:00:00"),
        between("2013-13-01"),
        between("2013-01"),
    ]
    for outcome in site.outcomes("moments", "SELECT", of("tz", *mixed)):
        assert outcome.left is not None


def test_values_that_python_has_not_are_judged_all_the_same(site: Site) -> None:
    """Great Expectations cannot read such a value to show it, and gives up; the counts are the server's."""
    table = """
        CREATE TABLE w.beyond (d date, ts timestamp);
        INSERT INTO w.beyond VALUES ('4713-01-01 BC', '4713-01-01 BC'), ('5874897-12-31', '294276-12-31'),
          ('2013-01-01', '2013-01-01'), (NULL, NULL)
    """
    cases = of("d", between("2013-01-01", "2013-12-31"), in_set("2013-01-01")) + of(
        "ts", between("2013-01-01", "2013-12-31"), in_set("2013-01-01")
    )
    found = site.judged("beyond", table, cases)
    assert unexpected(found) == [2] * 4
    for outcome in found:
        assert outcome.by_sql is not None
        assert {str(value)[:4] for value in outcome.by_sql.partial_unexpected_list} <= {
            "4713",
            "5874",
            "2942",
        }


def test_nullness_and_uniqueness_mean_the_same_on_any_type(site: Site) -> None:
    """Equality is the type's own: 1.0 and 1.00, NaN, -0, 1 day and 24 hours; and the padding of char(n)."""
    columns = {
        "n": ("numeric", ["1.0", "1.00", "NaN", "NaN", None, None]),
        "f": ("float8", ["0", "-0", "NaN", "NaN", None, "1"]),
        "c": ("char(4)", ["a", "a ", "A", "b", None, ""]),
        "v": ("interval", ["1 day", "24 hours", "1 mon", "30 days", None, "0"]),
        "j": ("jsonb", ["1", "1.0", "null", '{"a":1,"b":2}', None, '{"b":2,"a":1}']),
        "a": ("int[]", ["{1}", "{1}", "{}", "{NULL}", None, "{NULL}"]),
        "y": ("bytea", ["\\x00", "\\x00", "\\x", "\\x61", None, "a"]),
        "m": ("w.mood", ["sad", "sad", "ok", "ok", None, "sad"]),
        "o": ("w.positive", ["1", "1", "2", "3", None, None]),
        "u": ("uuid", ["0" * 32, "0" * 32, "f" * 32, "F" * 32, None, "1" * 32]),
        "i": ("inet", ["10.0.0.1", "10.0.0.1/32", "::1", "10.0.0.0/8", None, "::2"]),
        "t": ("timestamptz", ["2013-01-01 00:00+00", "2013-01-01 01:00+01", "infinity", "infinity", None, None]),
        "x": ("text", ["a", "A", "a", "", None, " a"]),
    }  # fmt: skip
    names = ", ".join(f"{name} {kind}" for name, (kind, _) in columns.items())
    site.connection.execute(
        "CREATE TYPE w.mood AS ENUM ('sad', 'ok'); CREATE DOMAIN w.positive AS int CHECK (VALUE > 0);"
        f"CREATE TABLE w.alike ({names}, twice int GENERATED ALWAYS AS (o * 2) STORED)"
    )
    for row in zip(*(values for _, values in columns.values()), strict=True):
        values = sql.SQL(", ").join(map(sql.Literal, row))
        site.connection.execute(sql.SQL("INSERT INTO w.alike VALUES ({})").format(values))
    kinds = (
        "expect_column_values_to_be_unique",
        "expect_column_values_to_be_null",
        "expect_column_values_to_not_be_null",
    )
    cases: list[Case] = [
        (kind, {"column": column, "mostly": mostly})
        for column in (*columns, "twice")
        for kind in kinds
        for mostly in (1, 0.5)
    ]
    ignored = ("all_values_are_missing", "any_value_is_missing", "never")
    cases += [
        ("expect_compound_columns_to_be_unique", {"column_list": [a, b], "ignore_row_if": how})
        for a, b in (("n", "f"), ("c", "x"), ("o", "t"), ("twice", "m"), ("u", "y"))
        for how in ignored
    ]
    found = site.judged("alike", "SELECT", cases)
    by_column = {
        one.expectation.kwargs.get("column"): one.by_sql.unexpected_count
        for one in found
        if one.by_sql is not None and one.expectation.type.endswith("_be_unique")
    }
    assert by_column["n"] == 4
    assert by_column["v"] == 4
    assert by_column["x"] == 2


def test_pairs_and_several_columns_mean_the_same(site: Site) -> None:
    """NULLs on either side, in every way to ignore them; sums with NULLs, floats and numerics."""
    table = """
        CREATE TABLE w.several (a int, b int, c bigint, n numeric, f float8, t text, u text);
        INSERT INTO w.several VALUES
          (1, 1, 1, 0.1, 0.1, 'x', 'x'), (1, 2, 1, 0.2, 0.2, 'x', 'X'), (2, 1, NULL, NULL, 0.3, NULL, 'x'),
          (NULL, 1, 1, 1, 1, 'y', NULL), (NULL, NULL, NULL, NULL, NULL, NULL, NULL), (1, NULL, 2, 'NaN', 'NaN', '', '')
    """
    cases: list[Case] = []
    for ignored in (None, "both_values_are_missing", "either_value_is_missing", "neither"):
        how = {} if ignored is None else {"ignore_row_if": ignored}
        for a, b in (("a", "b"), ("a", "c"), ("n", "f"), ("t", "u"), ("a", "a")):
            pair = {"column_A": a, "column_B": b, **how}
            cases += [
                ("expect_column_pair_values_to_be_equal", pair),
                ("expect_column_pair_values_a_to_be_greater_than_b", pair),
                ("expect_column_pair_values_a_to_be_greater_than_b", {**pair, "or_equal": True}),
            ]
        for pairs in ([[1, 1]], [[1, 1], [2, 1]], [[None, 1]], [[1, None], [None, None]]):
            cases.append(
                (
                    "expect_column_pair_values_to_be_in_set",
                    {"column_A": "a", "column_B": "b", "value_pairs_set": pairs, **how},
                )
            )
    for ignored in (None, "all_values_are_missing", "any_value_is_missing", "never"):
        how = {} if ignored is None else {"ignore_row_if": ignored}
        for columns in (["a", "b"], ["a", "b", "c"], ["n", "f"], ["c", "n", "f"]):
            cases += [
                (kind, {"column_list": columns, **how, **more})
                for kind, more in (
                    ("expect_multicolumn_sum_to_equal", {"sum_total": 2}),
                    ("expect_multicolumn_sum_to_equal", {"sum_total": 0.30000000000000004}),
                    ("expect_multicolumn_values_to_be_equal", {}),
                    ("expect_select_column_values_to_be_unique_within_record", {}),
                    ("expect_compound_columns_to_be_unique", {"mostly": 0.5}),
                )
            ]
    site.judged("several", table, cases)


# -- row conditions -------------------------------------------------------------------------------


def test_row_conditions_mean_the_same(site: Site) -> None:
    """Every operator, sets, nullity, and, or, and the one line of older suites; also where no row is left."""
    table = """
        CREATE TABLE w.conditions (i int, t text, d date, at timestamptz, n numeric, b bool);
        INSERT INTO w.conditions SELECT i, chr(96 + i), date '2013-01-01' + i, '2013-01-01'::timestamptz + i * '1 day'::interval,
          i / 2.0, i % 2 = 0 FROM generate_series(1, 6) AS i;
        INSERT INTO w.conditions VALUES (NULL, NULL, NULL, NULL, NULL, NULL), (1, 'it''s', NULL, NULL, 'NaN', NULL)
    """
    operators = ("==", "!=", "<", "<=", ">", ">=")
    parameters = [
        ("i", 2),
        ("i", 2.5),
        ("i", "2"),
        ("t", "b"),
        ("t", "it's"),
        ("d", "2013-01-03"),
        ("at", "2013-01-03T00:00:00Z"),
        ("n", 1.5),
        ("b", True),
    ]
    conditions: list[Any] = [
        compared(column, operator, parameter)
        for column, parameter in parameters
        for operator in operators
    ]
    conditions += [
        compared("i", "IN", [1, 2.0]),
        compared("i", "NOT_IN", [1]),
        compared("t", "IN", ["a", "b"]),
        compared("t", "NOT_IN", ["a"]),
        null("t", is_null=True),
        null("t", is_null=False),
        {"type": "and", "conditions": [compared("i", ">", 1), compared("t", "<", "e")]},
        {
            "type": "and",
            "conditions": [
                compared("i", ">", 1),
                {"type": "and", "conditions": [null("t", is_null=False), compared("i", "<", 5)]},
            ],
        },
        {"type": "or", "conditions": [compared("i", "==", 1), null("i", is_null=True)]},
        compared("i", ">", 100),
    ]
    written = [
        'col("i")==2',
        'col("i") > 2',
        'col("i")!=2',
        'col("t")=="b"',
        "col(\"t\")<='b'",
        'col("t").notnull()',
        'col("d")=="2013-01-03"',
    ]
    whole = [
        *({"row_condition": condition} for condition in conditions),
        *(
            {"row_condition": line, "condition_parser": parser}
            for line in written
            for parser in ("great_expectations", "great_expectations__experimental__")
        ),
    ]
    expected: list[Case] = [
        ("expect_column_values_to_be_between", {"column": "i", "min_value": 2}),
        ("expect_column_values_to_be_unique", {"column": "i"}),
        ("expect_column_mean_to_be_between", {"column": "n", "min_value": 1}),
        ("expect_column_unique_value_count_to_be_between", {"column": "t", "min_value": 1}),
        ("expect_table_row_count_to_be_between", {"max_value": 3}),
    ]
    cases = [(kind, {**kwargs, **where}) for where in whole for kind, kwargs in expected]
    site.judged("conditions", table, cases)


def test_row_conditions_that_only_great_expectations_reads_are_left(site: Site) -> None:
    """Other parsers, blanks and dates inside, groups within groups, sets of mixed types, what has no column."""
    table = "CREATE TABLE w.unread AS SELECT 1 AS i, 'a b'::text AS t"
    conditions: list[dict[str, Any]] = [
        {"row_condition": 'col("t")=="a b"', "condition_parser": "great_expectations"},
        {"row_condition": 'col("i")==date("2013-01-01")', "condition_parser": "great_expectations"},
        {"row_condition": "i == 1", "condition_parser": "great_expectations"},
        {"row_condition": "i == 1", "condition_parser": "pandas"},
        {"row_condition": 'col("i")==1'},
        {"row_condition": {"type": "or", "conditions": [{"type": "or", "conditions": []}]}},
        {"row_condition": compared("i", "IN", [1, "a"])},
        {"row_condition": compared("i", "IN", [])},
        {"row_condition": compared("i", "==", None)},
        {"row_condition": {"type": "pass_through", "pass_through_filter": "i == 1"}},
        {"row_condition": {"type": "nothing"}},
    ]
    found = site.outcomes(
        "unread",
        table,
        [("expect_column_values_to_not_be_null", {"column": "i", **where}) for where in conditions],
    )
    assert all(one.left is not None for one in found)


# -- all rows together ----------------------------------------------------------------------------


def test_measures_of_numbers_mean_the_same(site: Site) -> None:
    """Least, greatest, mean, sum, deviation, median and quantiles on every type of number, to the last bit."""
    ends = [
        {"min_value": 0},
        {"max_value": 1, "strict_max": True},
        {"min_value": -1e300, "max_value": 1e300},
    ]
    measures = ("min", "max", "mean", "sum", "stdev", "median", "unique_value_count")
    ranges = [[0, 2], [None, 1], [1, None]]
    cases: list[Case] = []
    for column in NUMBER_COLUMNS:
        for where in ({}, {"row_condition": compared("i", ">", 0)}):
            cases += [
                (f"expect_column_{measure}_to_be_between", {"column": column, **end, **where})
                for measure in measures
                for end in ends
            ]
            cases += [
                ("expect_column_proportion_of_unique_values_to_be_between", {"column": column, "min_value": 0.8, **where}),
                ("expect_column_proportion_of_non_null_values_to_be_between", {"column": column, "min_value": 5 / 6, **where}),
                ("expect_column_value_z_scores_to_be_less_than", {"column": column, "threshold": 1, "double_sided": True, **where}),
                ("expect_column_value_z_scores_to_be_less_than", {"column": column, "threshold": 1.2, "double_sided": False, "mostly": 0.5, **where}),
                ("expect_column_values_to_not_be_outliers", {"column": column, **where}),
                ("expect_column_values_to_not_be_outliers", {"column": column, "method": "std", "multiplier": 1, **where}),
                ("expect_column_quantile_values_to_be_between", {"column": column, "quantile_ranges": {"quantiles": [0.25, 0.5, 1], "value_ranges": ranges}, **where}),
            ]  # fmt: skip
    # As if each column were a table of its own: one that overflows must not be blamed on the others.
    table = NUMBERS.replace("w.numbers", "w.measured")
    found = site.outcomes("measured", table, cases)
    names = {one.expectation.kwargs["column"] for one in found if one.left is not None}
    assert names <= {"r", "f", "b", "n"}
    calm = "DELETE FROM w.measured WHERE n = 'NaN' OR n = 'Infinity' OR f = 'Infinity'"
    site.judged("measured", calm, cases)


def test_sums_that_overflow_are_left(site: Site) -> None:
    """The server's error is no number; the other expectations are judged."""
    table = "CREATE TABLE w.large AS SELECT 1e308::float8 AS f, 1 AS i UNION ALL SELECT 1e308, 2"
    found = site.outcomes(
        "large",
        table,
        [
            ("expect_column_sum_to_be_between", {"column": "f", "min_value": 0}),
            ("expect_column_sum_to_be_between", {"column": "i", "min_value": 3}),
        ],
    )
    assert [one.left is None for one in found] == [False, True]


def test_least_and_greatest_moments_mean_the_same(site: Site) -> None:
    """Moments against moments and dates; what has a zone is not compared with what has none."""
    table = """
        CREATE TABLE w.latest AS SELECT date '2013-01-01' + i AS d, timestamp '2013-01-01' + i * interval '1 h' AS ts,
          timestamptz '2013-01-01 00:00+00' + i * interval '1 h' AS tz, i FROM generate_series(1, 30) AS i
    """
    ends = (
        "2013-01-02",
        "2013-01-02T03:00:00",
        "2013-01-02T03:00:00+00:00",
        "2013-01-02T04:00:00+01:00",
    )
    cases: list[Case] = [
        (f"expect_column_{least}_to_be_between", {"column": column, side: end, "strict_min": True})
        for least in ("min", "max")
        for column in ("d", "ts", "tz")
        for side in ("min_value", "max_value")
        for end in ends
    ]
    found = site.outcomes("latest", table, cases)
    assert sum(one.left is None for one in found) == 4 * (2 + 2 + 3)
    none = [(kind, {**kwargs, "row_condition": compared("i", "<", 0)}) for kind, kwargs in cases]
    site.judged("latest", "SELECT", none)


def test_sets_of_distinct_values_mean_the_same(site: Site) -> None:
    """What is missing, what is more, dates as texts, values given twice."""
    table = """
        CREATE TABLE w.distinct (i int, t text, d date, b bool, n numeric, z text);
        INSERT INTO w.distinct SELECT i % 3, chr(97 + i % 3), date '2013-01-01' + i % 3, i % 2 = 0, i % 3, NULL
          FROM generate_series(1, 7) AS i
    """
    sets: Mapping[str, Sequence[Sequence[Any]]] = {
        "i": [[0, 1, 2], [0], [0, 1, 2, 3], [7], ["0", "1", "2"]],
        "t": [["a", "b", "c"], ["a"], ["A", "b"]],
        "d": [["2013-01-01", "2013-01-02", "2013-01-03"], ["2013-01-01"]],
        "b": [[True, False], [True]],
        "n": [[0, 1.0, 2], [0.5]],
        "z": [["a"]],
    }
    kinds = ("be_in_set", "contain_set", "equal_set")
    cases: list[Case] = [
        (f"expect_column_distinct_values_to_{kind}", {"column": column, "value_set": list(given)})
        for column, all_given in sets.items()
        for given in all_given
        for kind in kinds
    ]
    cases += [
        (
            "expect_column_most_common_value_to_be_in_set",
            {"column": column, "value_set": given, "ties_okay": ties},
        )
        for column, given in (
            ("i", [1]),
            ("i", [1, 1.0, True]),
            ("t", ["b", 1]),
            ("t", ["a"]),
            ("z", ["a"]),
        )
        for ties in (True, False)
    ]
    site.judged("distinct", table, cases)
    odd = of(
        "i",
        ("expect_column_distinct_values_to_be_in_set", {"value_set": []}),
        ("expect_column_distinct_values_to_be_in_set", {"value_set": [None]}),
        ("expect_column_distinct_values_to_contain_set", {"value_set": [1, 1]}),
        ("expect_column_distinct_values_to_equal_set", {"value_set": ["a"]}),
    )
    for outcome in site.outcomes("distinct", "SELECT", odd):
        assert outcome.left is not None


def test_ties_of_many_values_are_left_only_where_they_matter(site: Site) -> None:
    """Whether one of very many common values is in a set is not asked of SQL; that there are several is."""
    table = "CREATE TABLE w.ties AS SELECT i FROM generate_series(1, 1500) AS i"
    found = site.outcomes(
        "ties",
        table,
        of(
            "i",
            ("expect_column_most_common_value_to_be_in_set", {"value_set": [1], "ties_okay": True}),
            ("expect_column_most_common_value_to_be_in_set", {"value_set": [1]}),
        ),
    )
    assert [one.left is None for one in found] == [False, True]


@pytest.mark.parametrize(
    "rows", ["", "; INSERT INTO w.nothing VALUES (NULL, NULL, NULL), (NULL, NULL, NULL)"]
)
def test_nothing_to_judge_means_the_same(rows: str, site: Site) -> None:
    """No rows at all, and nothing but NULLs."""
    table = f"DROP TABLE IF EXISTS w.nothing; CREATE TABLE w.nothing (id int, carrier text, day date){rows}"
    translated = {"bit": "id", "dep": "id", "arr": "id", "twin": "id", "ratio": "id", "real": "id"}
    cases: list[Case] = []
    for kind, both in JUDGED.items():
        if kind in UNCOMPILED or "table" in kind or kind == "unexpected_rows_expectation":
            continue
        for kwargs in both:
            named = {key: translated.get(str(value), value) for key, value in kwargs.items()}
            if named.get("column") in ("id", "carrier", "day"):
                cases.append((kind, named))
    cases += [
        ("expect_table_row_count_to_equal", {"value": 0}),
        ("expect_table_row_count_to_be_between", {"min_value": 1}),
        ("expect_compound_columns_to_be_unique", {"column_list": ["id", "day"]}),
        ("expect_multicolumn_sum_to_equal", {"column_list": ["id", "id"], "sum_total": 1}),
        ("expect_column_pair_values_to_be_equal", {"column_A": "id", "column_B": "id"}),
    ]
    found = site.outcomes("nothing", table, cases)
    assert [one.expectation.type for one in found if one.left is not None] == [
        "expect_multicolumn_sum_to_equal"  # the same column twice
    ]


# -- columns, tables and queries ------------------------------------------------------------------


def test_types_are_called_the_same(any_site: Site) -> None:
    """By what PostgreSQL's types are called in Great Expectations, with their modifiers, in any case."""
    kinds = [
        "smallint", "integer", "bigint", "numeric", "numeric(10,2)", "numeric(5)", "real", "double precision",
        "text", "varchar", "varchar(7)", "char", "char(3)", "boolean", "date", "timestamp", "timestamp(3)",
        "timestamptz", "timestamptz(0)", "time", "time(2)", "timetz", "interval", "uuid", "json", "jsonb", "bytea",
        "inet", "cidr", "macaddr", "money", "oid", "integer[]", "text[]", "numeric(3,1)[]", "varchar(3)[]",
    ]  # fmt: skip
    columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(kinds))
    named = [
        "INTEGER",
        "text",
        "VARCHAR",
        "VARCHAR(7)",
        "NUMERIC(10, 2)",
        "NUMERIC(10,2)",
        "TIMESTAMP",
        "nothing",
    ]
    cases: list[Case] = []
    for number, kind in enumerate(kinds):
        column = {"column": f"c{number}"}
        cases += [
            ("expect_column_values_to_be_of_type", {**column, "type_": kind}),
            ("expect_column_type_to_be", {**column, "type_": kind.upper()}),
            ("expect_column_values_to_be_in_type_list", {**column, "type_list": [*named, kind]}),
        ]
    found = any_site.judged("types", f"CREATE TABLE w.types ({columns})", cases)
    assert sum(map(bool, verdicts(found))) > len(kinds)


def test_types_that_are_called_otherwise_are_left(site: Site) -> None:
    """Domains, enums, collations, intervals with fields: their names depend on more than the type."""
    table = """
        CREATE DOMAIN w.d AS int; CREATE TYPE w.e AS ENUM ('a');
        CREATE TABLE w.strange (d w.d, e w.e, c text COLLATE "C", i interval day to second, p interval(3), r int4range)
    """
    found = site.outcomes(
        "strange",
        table,
        [("expect_column_type_to_be", {"column": c, "type_": "TEXT"}) for c in "decipr"],
    )
    assert all(one.left is not None for one in found)


def test_the_columns_themselves_mean_the_same(site: Site) -> None:
    """Existence, place, number, order and sets; names are compared without case."""
    table = 'CREATE TABLE w.columns (id int, "Mixed" int, "with space" int)'
    names = ["id", "Mixed", "with space"]
    cases: list[Case] = [
        *(
            ("expect_column_to_exist", {"column": name})
            for name in ["id", "ID", "mixed", "nowhere", "with space"]
        ),
        *(
            ("expect_column_to_exist", {"column": "Mixed", "column_index": at})
            for at in [0, 1, 2, 7]
        ),
        *(("expect_table_column_count_to_equal", {"value": number}) for number in [2, 3]),
        ("expect_table_column_count_to_be_between", {"min_value": 3, "max_value": 3}),
        ("expect_table_column_count_to_be_between", {"max_value": 2}),
        *(
            ("expect_table_columns_to_match_ordered_list", {"column_list": given})
            for given in [names, names[::-1], ["ID", "mixed", "With Space"], names[:2]]
        ),
        *(
            ("expect_table_columns_to_match_set", {"column_set": given, **exact})
            for given in [
                names,
                names[::-1],
                ["ID", "mixed", "WITH SPACE"],
                names[:2],
                [*names, "x"],
            ]
            for exact in ({}, {"exact_match": False}, {"exact_match": True})
        ),
    ]
    site.judged("columns", table, cases)
    odd: list[Case] = [
        ("expect_column_to_exist", {"column": '"id"'}),
        ("expect_column_to_exist", {"column": "id", "column_index": -3}),
        ("expect_table_columns_to_match_set", {"column_set": ["id", "ID", "Mixed"]}),
        ("expect_table_columns_to_match_set", {"column_set": ['"id"', "Mixed"]}),
    ]
    site.outcomes("columns", "SELECT", odd)


def test_columns_that_differ_in_case_only_are_left(site: Site) -> None:
    """Great Expectations at times takes one for the other."""
    table = """CREATE TABLE w.folded AS SELECT 1 AS a, 'x'::text AS "A", 2 AS b"""
    found = site.outcomes(
        "folded",
        table,
        of("a", between(1), in_set(1)) + of("A", in_set("x")) + of("b", between(1), in_set(2)),
    )
    assert [one.left is None for one in found] == [False] * 3 + [True] * 2


def test_other_tables_are_counted_the_same(site: Site) -> None:
    """In the same schema, whatever they are called; one that is not there is left."""
    tables = """
        CREATE TABLE w.counted AS SELECT 1 AS i UNION ALL SELECT 2;
        CREATE TABLE w."Odd ""name"" %" AS TABLE w.counted; CREATE TABLE w.empty (i int)
    """
    kind = "expect_table_row_count_to_equal_other_table"
    cases: list[Case] = [
        (kind, {"other_table_name": name, **where})
        for name in ("counted", 'Odd "name" %', "empty")
        for where in ({}, {"row_condition": compared("i", ">", 1)})
    ]
    assert verdicts(site.judged("counted", tables, cases)) == [
        True,
        False,
        True,
        False,
        False,
        False,
    ]
    for name in ("nowhere", "w.counted"):
        (outcome,) = site.outcomes("counted", "SELECT", [(kind, {"other_table_name": name})])
        assert outcome.left is not None


def test_queries_find_the_same_rows(site: Site) -> None:
    """With the rows in their place, once and twice, in joins, with percent signs, braces, semicolons, comments."""
    table = (
        """CREATE TABLE w."queried %" AS SELECT i, i % 2 AS odd FROM generate_series(1, 6) AS i"""
    )
    queries = [
        "SELECT * FROM {batch} WHERE i > 4",
        "SELECT * FROM {batch} WHERE i > 6",
        "SELECT odd, count(*) FROM {batch} GROUP BY odd HAVING count(*) > 2;\n ",
        "SELECT a.i, b.i FROM {batch} a JOIN {batch} b ON a.i = b.i + 1",
        "SELECT * FROM {batch} WHERE i % 2 = 0 AND '%s' = '%s' /* all */",
        "SELECT NULL FROM {batch}",
        "SELECT NULL, NULL FROM {batch} WHERE '{{}}'::text <> ''",
        "WITH b AS (SELECT * FROM {batch}) SELECT * FROM b ORDER BY i DESC LIMIT 2",
        "VALUES (1), (2)",
        "SELECT now()::date, 'a:b' FROM {batch}",
    ]
    kind = "unexpected_rows_expectation"
    cases: list[Case] = [(kind, {"unexpected_rows_query": query}) for query in queries]
    found = site.judged("queried %", table, cases)
    assert unexpected(found) == [2, 0, 2, 5, 3, 6, 6, 2, 2, 6]


def test_queries_that_are_not_one_that_reads_are_left(site: Site) -> None:
    """What cannot be evaluated, what SQLAlchemy would read otherwise, and what would do more than read."""
    site.connection.execute("CREATE TABLE w.safe AS SELECT 1 AS i; CREATE SEQUENCE w.counter")
    queries = [
        "SELECT 1 / (i - 1) FROM {batch}",
        "SELECT nothing FROM {batch}",
        "SELECT :x FROM {batch}",
        "SELECT {i} FROM {batch}",
        "SELECT {batch",
        "SELECT * FROM {batch} -- all",
        "SELECT * FROM {batch} WHERE 'a JOIN b' <> ''",
        "SELECT 1; SELECT 1",
        "SELECT 1) AS x; COMMIT; DROP TABLE w.safe; SELECT count(*) FROM (SELECT 1",
        "DELETE FROM w.safe RETURNING *",
        "WITH gone AS (DELETE FROM w.safe RETURNING *) SELECT * FROM gone",
        "SELECT nextval('w.counter') FROM {batch}",
        "SELECT * FROM {batch} FOR UPDATE",
        "SELECT set_config('transaction_read_only', 'off', false), pg_sleep(0) FROM {batch}",
    ]
    cases: list[Case] = [
        ("unexpected_rows_expectation", {"unexpected_rows_query": query}) for query in queries
    ]
    found = site.outcomes("safe", "SELECT", cases)
    assert [query for query, one in zip(queries, found, strict=True) if one.left is None] == []
    row = site.connection.execute("SELECT count(*), (SELECT is_called FROM w.counter) FROM w.safe")
    assert row.fetchone() == (1, False)


# -- names, collations, constraints ---------------------------------------------------------------

ODD_NAMES = (
    "select", "Mixed", "with space", 'quo"te', "per%cent", "%(x)s", "%s", "co:lon", ":x", "apo'strophe", "pa(ren)",
    "brace{0}", "b" * 63, "ümlaut", "back\\slash", "dot.ted", "unexpected_values", "t", "o", "n", "v", "found",
    "twice", "d", "condition", "column", "--", "semi;colon", "?",
)  # fmt: skip


def test_any_name_of_a_column_means_the_column(site: Site) -> None:
    """Reserved, quoted, formatted, as long as a name can be, and as our own statements call things."""
    columns = sql.SQL(", ").join(
        sql.SQL("{} AS {}").format(sql.SQL("i % 3"), sql.Identifier(name)) for name in ODD_NAMES
    )
    site.connection.execute(
        sql.SQL("CREATE TABLE w.{} AS SELECT {} FROM generate_series(1, 7) AS i").format(
            sql.Identifier('odd "table" %s'), columns
        )
    )
    cases: list[Case] = []
    for number, name in enumerate(ODD_NAMES):
        other = ODD_NAMES[number - 1]
        cases += of(
            name,
            between(1),
            in_set(0, 1, row_condition=compared(other, ">", 0)),
            ("expect_column_values_to_be_unique", {}),
            ("expect_column_distinct_values_to_be_in_set", {"value_set": [0]}),
            ("expect_column_max_to_be_between", {"max_value": 1}),
            ("expect_column_most_common_value_to_be_in_set", {"value_set": [1]}),
        )
        cases += [
            ("expect_compound_columns_to_be_unique", {"column_list": [name, other]}),
            ("expect_column_pair_values_to_be_equal", {"column_A": name, "column_B": other}),
        ]
    site.judged('odd "table" %s', "SELECT", cases)


def test_equality_of_a_collation_is_the_columns(any_site: Site) -> None:
    """Where a collation takes A for a, so do sets, duplicates and distinct values."""
    try:
        any_site.connection.execute(
            "CREATE COLLATION w.nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        )
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server is built without ICU")
    table = """
        CREATE TABLE w.collated (v text COLLATE w.nocase, plain text);
        INSERT INTO w.collated VALUES ('a', 'a'), ('A', 'A'), ('b', 'b'), (NULL, NULL), ('ä', 'ä')
    """
    found = any_site.judged(
        "collated",
        table,
        [
            case
            for column in ("v", "plain")
            for case in of(
                column,
                in_set("A", "B"),
                ("expect_column_values_to_not_be_in_set", {"value_set": ["A"]}),
                ("expect_column_values_to_be_unique", {}),
                ("expect_column_unique_value_count_to_be_between", {"max_value": 3}),
                ("expect_column_distinct_values_to_equal_set", {"value_set": ["A", "B", "ä"]}),
            )
        ],
    )
    assert unexpected(found)[:3] == [1, 2, 2]
    assert unexpected(found)[5:8] == [3, 1, 0]
    # Patterns on such a column are a matter of the server's version.
    any_site.outcomes("collated", "SELECT", of("v", regex("^a"), like("a%")))


def test_what_the_catalog_proves_changes_nothing(site: Site) -> None:
    """Columns that are never NULL and unique indexes spare work; NULLs in them, and inherited rows, are seen."""
    table = """
        CREATE TABLE w.kept (id int PRIMARY KEY, code text UNIQUE, pair int NOT NULL, other int, UNIQUE (pair, other));
        INSERT INTO w.kept VALUES (1, 'a', 1, NULL), (2, NULL, 1, NULL), (3, NULL, 2, 1)
    """
    cases: list[Case] = [
        *((f"expect_column_values_to_{kind}", {"column": column})
          for kind in ("be_unique", "be_null", "not_be_null") for column in ("id", "code", "pair", "other")),
        *(("expect_compound_columns_to_be_unique", {"column_list": columns, "ignore_row_if": how})
          for columns in (["id", "code"], ["pair", "other"], ["code", "other"])
          for how in ("all_values_are_missing", "any_value_is_missing", "never")),
        ("expect_column_pair_values_to_be_equal", {"column_A": "id", "column_B": "pair"}),
        ("expect_column_values_to_be_null", {"column": "id", "row_condition": null("id", is_null=True)}),
    ]  # fmt: skip
    site.judged("kept", table, cases)
    heir = "CREATE TABLE w.heir () INHERITS (w.kept); INSERT INTO w.heir VALUES (1, 'a', 1, 1)"
    found = site.judged("kept", heir, cases[:4])
    assert unexpected(found) == [2, 2, 3, 2]


def test_an_expectation_that_cannot_hold_for_its_column_is_left_whatever_else_decides(
    site: Site,
) -> None:
    """A column that is never NULL makes a condition false; its other half is nevertheless wrong."""
    table = "CREATE TABLE w.halves (id int NOT NULL, b bool NOT NULL)"
    wrong = {"type": "and", "conditions": [null("id", is_null=True), compared("b", "==", 7)]}
    found = site.outcomes(
        "halves",
        table,
        [
            ("expect_column_values_to_not_be_null", {"column": "id", "row_condition": wrong}),
            (
                "expect_column_pair_values_to_be_in_set",
                {"column_A": "id", "column_B": "b", "value_pairs_set": [[None, 7]]},
            ),
        ],
    )
    assert all(one.left is not None for one in found)


# -- drawn ----------------------------------------------------------------------------------------


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES <= 8,
    # To find a smaller example takes an audit for each step; the difference names the case as it is.
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_drawn_tables_and_suites_are_judged_alike(site: Site, data: st.DataObject) -> None:
    """Any types, values, NULLs, names and kwargs, forty expectations at a time."""
    example: Drawn = data.draw(drawn(40))
    for name, rows in OTHERS.items():
        site.connection.execute(
            sql.SQL(
                "DROP TABLE IF EXISTS {0}; CREATE TABLE {0} AS SELECT i FROM generate_series(1, {1}) i"
            ).format(sql.Identifier("w", name), rows)
        )
    example.create(site.connection, TableName("w", "drawn"))
    outcomes = run(site.endpoint, TableName("w", "drawn"), example.expectations)
    assert differences(outcomes) == [], (example.columns, example.not_null, example.rows)
    assert len(left(outcomes)) < 0.9 * len(outcomes)
