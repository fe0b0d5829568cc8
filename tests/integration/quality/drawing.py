"""Tables and expectations drawn by Hypothesis: typed columns, NULLs, values at the edges, kwargs that fit and do not."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from hypothesis import strategies as st
from psycopg import sql

from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.quality.suite import Expectation

NUMBERS = (0, 1, 2, -1, 3, 9007199254740993, 0.1, 1.0, 1.5, -0.0, 1e300, 2147483647)
WORDS = ("a", "A", "b", "ab", "", " a", "a ", "1", "1.0", "0", "true", "x%y", "a_b", "back\\slash")
ODD_WORDS = ("line\nbreak", "quote'quote", 'quo"te', "ä", "%s", "%(x)s", ":x", "{}", "\\x61", "NaN")
DAYS = ("2013-01-01", "2013-01-02", "0001-01-01", "9999-12-31", "2012-02-29")
MOMENTS = (
    "2013-01-01 00:00:00",
    "2013-01-01T00:00:00",
    "2013-01-01T12:30:45.000001",
    "2013-01-01 00:00:00+00:00",
    "2013-01-01T01:00:00+01:00",
    "2013-01-01T00:00:00Z",
    "2013-01-02 23:59",
)
REGEXES = (
    "a",
    "^a$",
    "^[A-Z]",
    r"\d",
    r"^\s",
    "(?i)A",
    "a|1",
    "%",
    r"\\",
    "^$",
    "",
    "\n",
    "(",
    "a{1,2}",
    "'",
)
PATTERNS = ("a%", "_", "%", "", "a", "%\\%%", "a\\_b", "%y", "A", "x!%y", "\\", "%'%", "%\n%")

#: Types as Great Expectations calls them.
TYPES = (
    "INTEGER",
    "TEXT",
    "VARCHAR(12)",
    "NUMERIC(10, 2)",
    "DATE",
    "TIMESTAMP WITH TIME ZONE",
    "JSONB",
    "nothing",
)

#: Type, and values of it as text.
KINDS: Mapping[str, Sequence[str]] = {
    "smallint": ("0", "1", "2", "-1", "32767", "-32768"),
    "integer": ("0", "1", "2", "-1", "3", "2147483647"),
    "bigint": ("0", "1", "2", "9007199254740993", "9007199254740992", "-9223372036854775808"),
    "numeric": ("0", "1.0", "1.00", "0.1", "1.5", "NaN", "Infinity", "-Infinity", "1e40"),
    "numeric(10,2)": ("0", "1.00", "0.10", "1.50", "-1"),
    "real": ("0", "-0", "1", "0.1", "1.5", "NaN", "Infinity"),
    "double precision": ("0", "-0", "1", "0.1", "1.5", "NaN", "-Infinity", "1e300"),
    "text": (*WORDS, *ODD_WORDS),
    "character varying(12)": (*WORDS, *ODD_WORDS),
    "character(3)": ("a", "A", "b", "ab", "", "1", "1  ", "abc"),
    "boolean": ("t", "f"),
    "date": (*DAYS, "infinity", "-infinity"),
    "timestamp without time zone": (
        "2013-01-01",
        "2013-01-01 12:30:45.000001",
        "0001-01-01",
        "infinity",
    ),
    "timestamp(3) with time zone": (
        "2013-01-01 00:00+00",
        "2013-01-01 01:00+01",
        "2013-01-02 23:59+00",
        "-infinity",
    ),
    "timestamp with time zone": (
        "2013-01-01 00:00+00",
        "2013-01-01 01:00+01",
        "2013-01-02 23:59+00",
        "infinity",
    ),
    "uuid": ("00000000-0000-0000-0000-000000000001", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
    "jsonb": ('{"a": 1}', "1", '"a"', "null"),
    "json": ('{"a": 1}', "1", '"a"', "null"),
    "integer[]": ("{1,2}", "{}", "{NULL}"),
    "bytea": ("\\x61", "\\x", "\\x00ff"),
    "interval": ("1 day", "24 hours", "1 mon", "0"),
    "time without time zone": ("00:00", "12:30:45.000001"),
}
#: Names that an unquoted or formatted statement would trip over.
NAMES = (
    "id", "Mixed", "with space", 'quo"te', "per%cent", "%s", "%(x)s", "co:lon", ":x", "select", "apo'strophe",
    "pa(ren)", "brace{0}", "b" * 63, "ümlaut", "back\\slash", "dot.ted", "_num_rows", "unexpected_values", "t",
    "condition", "column", "table", "count", "v", "n", "row_number", "--", "semi;colon", "question?", "new\nline",
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A table and what is expected of it."""

    columns: Mapping[str, str]
    not_null: Collection[str]
    unique: Sequence[str]
    rows: Sequence[Sequence[str | None]]
    expectations: Sequence[Expectation]

    def create(self, connection: psycopg.Connection[Any], table: TableName) -> None:
        name = sql.Identifier(table.schema, table.name)
        columns = sql.SQL(", ").join(
            sql.SQL("{} {} {}").format(
                sql.Identifier(column),
                sql.SQL(kind),
                sql.SQL("NOT NULL" if column in self.not_null else ""),
            )
            for column, kind in self.columns.items()
        )
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(name))
        connection.execute(sql.SQL("CREATE TABLE {} ({})").format(name, columns))
        for row in self.rows:
            values = sql.SQL(", ").join(map(sql.Literal, row))
            connection.execute(sql.SQL("INSERT INTO {} VALUES ({})").format(name, values))
        with suppress(
            psycopg.Error
        ):  # the rows are not unique, or values of that type have no order
            unique = sql.SQL(", ").join(map(sql.Identifier, self.unique))
            connection.execute(sql.SQL("CREATE UNIQUE INDEX ON {} ({})").format(name, unique))


#: What a literal of a suite may be, whatever the column is.
ANYTHING = st.sampled_from([*NUMBERS, *WORDS, *ODD_WORDS, *DAYS, *MOMENTS, True, False])
MOSTLY = st.sampled_from([None, None, 0, 0.1, 1 / 3, 0.5, 0.6, 2 / 3, 0.75, 0.9, 1, 1.0])
IGNORE_PAIR = st.sampled_from(
    [None, "both_values_are_missing", "either_value_is_missing", "neither"]
)
IGNORE_MANY = st.sampled_from([None, "all_values_are_missing", "any_value_is_missing", "never"])


_FAMILIES_OF_NUMBERS = ("smallint", "integer", "bigint", "numeric", "real", "double")


def fitting(kind: str) -> st.SearchStrategy[Any]:
    """A literal that somebody would write for a column of type *kind*; at times a wrong one."""
    family = kind.partition("(")[0].split()[0]
    if family in _FAMILIES_OF_NUMBERS:
        likely = st.sampled_from([*NUMBERS, "1", "0.1"])
    elif family == "boolean":
        likely = st.sampled_from([True, False, "t", "false", 1])
    elif family == "date":
        likely = st.sampled_from([*DAYS, *MOMENTS])
    elif family == "timestamp":
        likely = st.sampled_from([*MOMENTS, *DAYS])
    else:
        likely = st.sampled_from(KINDS[kind])
    return st.one_of(*[likely] * 12, ANYTHING)


def bounds(draw: Any, literals: st.SearchStrategy[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    which = draw(st.sampled_from(["low", "high", "both", "both"]))
    ends = [draw(literals), draw(literals)]
    if type(ends[0]) is type(ends[1]) and draw(st.integers(0, 4)):
        ends.sort()
    if which != "high":
        found["min_value"] = ends[0]
    if which != "low":
        found["max_value"] = ends[1]
    for strict in ("strict_min", "strict_max"):
        given = draw(st.sampled_from([None, None, True, False]))
        if given is not None:
            found[strict] = given
    return found


@st.composite
def conditions(draw: Any, columns: Mapping[str, str], depth: int = 1) -> Any:
    """A row condition as JSON."""
    shape = draw(st.sampled_from(["comparison", "comparison", "in", "nullity", "and", "or"]))
    if shape in ("and", "or") and depth:
        parts = draw(st.lists(conditions(columns, depth - 1), min_size=1, max_size=3))
        return {"type": shape, "conditions": parts}
    name = draw(st.sampled_from(list(columns)))
    column = {"name": name}
    literal = fitting(columns[name])
    if shape == "nullity":
        return {"type": "nullity", "column": column, "is_null": draw(st.booleans())}
    if shape == "in":
        values = draw(st.lists(literal, min_size=1, max_size=3))
        operator = draw(st.sampled_from(["IN", "NOT_IN"]))
        return {"type": "comparison", "column": column, "operator": operator, "parameter": values}
    operator = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]))
    return {
        "type": "comparison",
        "column": column,
        "operator": operator,
        "parameter": draw(literal),
    }


@st.composite
def written_conditions(draw: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    """A row condition in the one-line form of older suites."""
    name = draw(st.sampled_from(list(columns)))
    value = draw(
        st.sampled_from(
            [".notnull()", "==1", " > 0", '<="a"', "!='b'", '=="a b"', " == 'x'", ">-1", "<=0.5"]
        )
    )
    parser = draw(st.sampled_from(["great_expectations", "great_expectations__experimental__"]))
    return {"row_condition": f'col("{name}"){value}', "condition_parser": parser}


def _where(draw: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    form = draw(st.integers(0, 9))
    if form < 6:
        return {}
    if form < 9:
        return {"row_condition": draw(conditions(columns))}
    return draw(written_conditions(columns))


def _kwargs_of_column(draw: Any, kind: str, type_name: str) -> dict[str, Any]:
    """What an expectation of type *kind* on one column takes beside the column."""
    literal = fitting(type_name)
    sets = st.lists(st.one_of(literal, literal, literal, literal, st.none()), max_size=4)
    types = st.sampled_from([*TYPES, type_name, type_name.upper()])
    lengths = st.sampled_from([0, 1, 2, 3, 1.0])
    match kind:
        case "expect_column_value_lengths_to_equal":
            return {"value": draw(lengths)}
        case "expect_column_value_lengths_to_be_between":
            return bounds(draw, lengths)
        case "expect_column_value_z_scores_to_be_less_than":
            limits = st.sampled_from([0, 0.5, 1, 1.2, -1, 3])
            return {"threshold": draw(limits), "double_sided": draw(st.booleans())}
        case "expect_column_values_to_not_be_outliers":
            method = draw(st.sampled_from([None, "iqr", "std"]))
            return {"method": method, "multiplier": draw(st.sampled_from([None, 0, 0.5, 1, 1.5]))}
        case "expect_column_quantile_values_to_be_between":
            return {"quantile_ranges": draw(quantile_ranges())}
        case "expect_column_most_common_value_to_be_in_set":
            ties = draw(st.sampled_from([None, True, False]))
            return {"value_set": draw(sets), "ties_okay": ties}
        case "expect_column_values_to_be_in_type_list":
            return {"type_list": draw(st.lists(types, min_size=1, max_size=3))}
        case "expect_column_values_to_be_of_type" | "expect_column_type_to_be":
            return {"type_": draw(types)}
    if kind.endswith(("_null", "_be_unique")):
        return {}
    if "distinct_values" in kind or kind.endswith("_in_set"):
        return {"value_set": draw(sets)}
    if kind.endswith("_regex"):
        return {"regex": draw(st.sampled_from(REGEXES))}
    if kind.endswith("_regex_list"):
        return {"regex_list": draw(st.lists(st.sampled_from(REGEXES), min_size=1, max_size=3))}
    if kind.endswith("_like_pattern"):
        return {"like_pattern": draw(st.sampled_from(PATTERNS))}
    if kind.endswith("_like_pattern_list"):
        patterns = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3)
        return {"like_pattern_list": draw(patterns)}
    if "_count_" in kind:
        return bounds(draw, st.integers(0, 5))
    if "_proportion_" in kind:
        return bounds(draw, st.sampled_from([0, 0.5, 1, 2 / 3, 0.75]))
    if kind.endswith("_between"):
        return bounds(draw, literal)
    raise AssertionError(f"draw kwargs for {kind}")


@st.composite
def quantile_ranges(draw: Any) -> dict[str, Any]:
    end = st.one_of(st.none(), st.sampled_from([0, 0.99995, 1, 1.0001, 1.5, 2, -1, 1e300]))
    asked = draw(
        st.lists(st.sampled_from([0, 0.1, 0.25, 1 / 3, 0.5, 0.75, 1]), min_size=1, max_size=3)
    )
    ranges = []
    for _ in asked:
        low, high = draw(end), draw(end)
        ordered = None in (low, high) or low <= high
        ranges.append([low, high] if ordered else [high, low])
    return {"quantiles": asked, "value_ranges": ranges}


def _extras(draw: Any, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "_match_" in kind and "like_pattern" in kind:
        found["escape"] = draw(st.sampled_from([None, None, None, "!", "\\"]))
    if kind.endswith(("to_match_regex_list", "to_match_like_pattern_list")):
        found["match_on"] = draw(st.sampled_from([None, "any", "all"]))
    return found


#: What is expected of a column, and of which types of columns somebody would expect it.
OF_ANY = (
    "expect_column_distinct_values_to_be_in_set",
    "expect_column_distinct_values_to_contain_set",
    "expect_column_distinct_values_to_equal_set",
    "expect_column_most_common_value_to_be_in_set",
    "expect_column_proportion_of_non_null_values_to_be_between",
    "expect_column_proportion_of_unique_values_to_be_between",
    "expect_column_type_to_be",
    "expect_column_unique_value_count_to_be_between",
    "expect_column_values_to_be_in_set",
    "expect_column_values_to_be_in_type_list",
    "expect_column_values_to_be_null",
    "expect_column_values_to_be_of_type",
    "expect_column_values_to_be_unique",
    "expect_column_values_to_not_be_in_set",
    "expect_column_values_to_not_be_null",
)
OF_ORDERED = (
    "expect_column_max_to_be_between",
    "expect_column_min_to_be_between",
    "expect_column_values_to_be_between",
)
OF_NUMBERS = (
    "expect_column_mean_to_be_between",
    "expect_column_median_to_be_between",
    "expect_column_quantile_values_to_be_between",
    "expect_column_stdev_to_be_between",
    "expect_column_sum_to_be_between",
    "expect_column_value_z_scores_to_be_less_than",
    "expect_column_values_to_not_be_outliers",
)
OF_TEXTS = (
    "expect_column_value_lengths_to_be_between",
    "expect_column_value_lengths_to_equal",
    "expect_column_values_to_match_like_pattern",
    "expect_column_values_to_match_like_pattern_list",
    "expect_column_values_to_match_regex",
    "expect_column_values_to_match_regex_list",
    "expect_column_values_to_not_match_like_pattern",
    "expect_column_values_to_not_match_like_pattern_list",
    "expect_column_values_to_not_match_regex",
    "expect_column_values_to_not_match_regex_list",
)
#: Take no ``mostly``.
_TOGETHER = re.compile(
    "_(distinct|max|mean|median|min|most|proportion|quantile|stdev|sum|type|unique_value)_"
)
#: Take no row condition that says anything.
_OF_TYPES = ("expect_column_type_to_be",)
PAIR_TYPES = (
    "expect_column_pair_values_a_to_be_greater_than_b",
    "expect_column_pair_values_to_be_equal",
    "expect_column_pair_values_to_be_in_set",
)
MANY_TYPES = (
    "expect_compound_columns_to_be_unique",
    "expect_multicolumn_sum_to_equal",
    "expect_multicolumn_values_to_be_equal",
    "expect_select_column_values_to_be_unique_within_record",
)
TABLE_TYPES = (
    "expect_column_to_exist",
    "expect_table_column_count_to_be_between",
    "expect_table_column_count_to_equal",
    "expect_table_columns_to_match_ordered_list",
    "expect_table_columns_to_match_set",
    "expect_table_row_count_to_be_between",
    "expect_table_row_count_to_equal",
    "expect_table_row_count_to_equal_other_table",
    "unexpected_rows_expectation",
)
#: Tables beside the drawn one: name and number of rows.
OTHERS: Mapping[str, int] = {"none": 0, "Two rows": 2, "per%cent 5": 5}
QUERIES = (
    "SELECT * FROM {batch}",
    "SELECT * FROM {batch} WHERE false;",
    "SELECT 1 FROM {batch} WHERE random() < 2 LIMIT 2 ; ",
    "SELECT * FROM {batch} UNION ALL SELECT * FROM {batch}",
    "SELECT count(*) FROM {batch} HAVING count(*) > 3",
    "SELECT a.* FROM {batch} a JOIN {batch} b ON true",
    "SELECT a.* FROM {batch} AS a join {batch} AS b ON true WHERE '%' LIKE '%'",
    "SELECT * FROM {batch} WHERE '{{}}'::text = '%%' OR 'JOIN' = ''",
    "SELECT 1/0 FROM {batch}",
    "SELECT 'a'::int FROM {batch} WHERE false",
    "SELECT now()::date FROM {batch} -- all",
    "SELECT 1; SELECT 1",
    "SELECT nothing FROM {batch}",
    "SELECT NULL FROM {batch}",
    "SELECT ':x' FROM {batch}",
    "SELECT {batch!r}",
    "SELECT } FROM {batch}",
    "DELETE FROM {batch}",
    "VALUES (1), (2)",
    "TABLE pg_catalog.pg_type",
)


def _plain(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if value is not None}


@st.composite
def of_columns(draw: Any, columns: Mapping[str, str]) -> Expectation:
    column = draw(st.sampled_from(list(columns)))
    family = columns[column].partition("(")[0].split()[0]
    kinds = list(OF_ANY)
    if family in _FAMILIES_OF_NUMBERS:
        kinds += [*OF_ORDERED, *OF_NUMBERS]
    if family in ("date", "timestamp"):
        kinds += [*OF_ORDERED, *OF_ORDERED]
    if family in ("text", "character"):
        kinds += OF_TEXTS
    if draw(st.integers(0, 9)) == 0:
        kinds = [*OF_NUMBERS, *OF_ORDERED, *OF_TEXTS]
    kind = draw(st.sampled_from(kinds))
    kwargs = {
        "column": column,
        **_kwargs_of_column(draw, kind, columns[column]),
        **_extras(draw, kind),
        "mostly": None if _TOGETHER.search(kind) else draw(MOSTLY),
    }
    where = {} if kind in _OF_TYPES else _where(draw, columns)
    return Expectation(kind, {**_plain(kwargs), **where})


@st.composite
def of_pairs(draw: Any, columns: Mapping[str, str]) -> Expectation:
    kind = draw(st.sampled_from(PAIR_TYPES))
    a, b = (draw(st.sampled_from(list(columns))) for _ in "ab")
    kwargs: dict[str, Any] = {
        "column_A": a,
        "column_B": b,
        "ignore_row_if": draw(IGNORE_PAIR),
        "mostly": draw(MOSTLY),
    }
    if kind.endswith("_in_set"):
        pairs = st.tuples(
            st.one_of(st.none(), fitting(columns[a])), st.one_of(st.none(), fitting(columns[b]))
        )
        kwargs["value_pairs_set"] = [
            list(pair) for pair in draw(st.lists(pairs, min_size=1, max_size=3))
        ]
    if kind.endswith("_than_b"):
        kwargs["or_equal"] = draw(st.sampled_from([None, True, False]))
    return Expectation(kind, {**_plain(kwargs), **_where(draw, columns)})


@st.composite
def of_many(draw: Any, columns: Mapping[str, str]) -> Expectation:
    kind = draw(st.sampled_from(MANY_TYPES))
    size = min(3, len(columns))
    chosen = draw(st.lists(st.sampled_from(list(columns)), min_size=2, max_size=size, unique=True))
    kwargs: dict[str, Any] = {
        "column_list": chosen,
        "ignore_row_if": draw(IGNORE_MANY),
        "mostly": draw(MOSTLY),
    }
    if kind.endswith("_sum_to_equal"):
        kwargs["sum_total"] = draw(st.sampled_from([0, 1, 2, 3, 0.1, 1.0, 2.5]))
    return Expectation(kind, {**_plain(kwargs), **_where(draw, columns)})


@st.composite
def of_tables(draw: Any, columns: Mapping[str, str]) -> Expectation:
    kind = draw(st.sampled_from(TABLE_TYPES))
    names = list(columns)
    if kind == "expect_column_to_exist":
        name = draw(st.sampled_from([*names, names[0].upper(), names[0].lower(), "nowhere"]))
        index = draw(st.sampled_from([None, 0, 1, 2, 7, -1]))
        return Expectation(kind, _plain({"column": name, "column_index": index}))
    if kind.endswith("_ordered_list"):
        named = draw(
            st.sampled_from([names, names[:-1], names[::-1], [name.upper() for name in names]])
        )
        return Expectation(kind, {"column_list": named})
    if kind.endswith("_match_set"):
        found = draw(st.sampled_from([names, names[:-1], [*names, "nowhere"], [names[0].upper()]]))
        exact = draw(st.sampled_from([None, True, False]))
        return Expectation(kind, _plain({"column_set": found, "exact_match": exact}))
    where = _where(draw, columns) if "_row_" in kind else {}
    if kind.endswith("_other_table"):
        other = draw(st.sampled_from([*OTHERS, "nowhere"]))
        return Expectation(kind, {"other_table_name": other, **where})
    if kind == "unexpected_rows_expectation":
        return Expectation(kind, {"unexpected_rows_query": draw(st.sampled_from(QUERIES))})
    if kind.endswith("_to_equal"):
        return Expectation(kind, {"value": draw(st.integers(0, 6)), **where})
    between = bounds(draw, st.integers(0, 6))
    taken = {"min_value", "max_value"} | (
        {"strict_min", "strict_max"} if where or "_row_" in kind else set()
    )
    return Expectation(
        kind, {**{key: value for key, value in between.items() if key in taken}, **where}
    )


@st.composite
def drawn(draw: Any, expectations: int = 40) -> Drawn:
    """A table of two to five columns and up to eight rows, and many expectations of it."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=5, unique=True))
    columns = {name: draw(st.sampled_from(list(KINDS))) for name in names}
    if draw(st.booleans()):  # alike, so that columns can be compared
        columns = dict.fromkeys(names, next(iter(columns.values())))
    not_null = draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    unique = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    cells = [
        st.one_of(
            st.sampled_from(KINDS[kind]) if column in not_null else st.none(),
            *[st.sampled_from(KINDS[kind])] * 3,
        )
        for column, kind in columns.items()
    ]
    rows = draw(st.lists(st.tuples(*cells), max_size=8))
    of_all = st.one_of(
        of_columns(columns),
        of_columns(columns),
        of_columns(columns),
        of_pairs(columns),
        of_many(columns),
        of_tables(columns),
    )
    found = draw(st.lists(of_all, min_size=expectations, max_size=expectations))
    return Drawn(columns, not_null, unique, rows, found)
