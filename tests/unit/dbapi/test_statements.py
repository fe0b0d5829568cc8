"""Statements of other databases: names are quoted by their rules, values are never text."""

import pytest

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.window import FULL, Window
from airflow_etl_provider.dbapi.statements import (
    Dialect,
    Relation,
    Value,
    outside,
    parse_name,
    select,
    sql,
)

ANSI = Dialect()
WINDOW = Window("1", "9", "bigint")


@pytest.mark.parametrize(
    ("dialect", "parts", "text"),
    [
        (ANSI, ('a"b',), '"a""b"'),
        (Dialect(quotes="``"), ("s", "a`b"), "`s`.`a``b`"),
        (Dialect(quotes="[]"), ("a]b[",), "[a]]b[]"),
    ],
)
def test_names_are_quoted_by_the_databases_rules(dialect, parts, text):
    assert dialect.name(*parts).render("qmark") == (text, ())


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ConfigurationError, match="not a name"):
        ANSI.name(name)


@pytest.mark.parametrize(
    ("paramstyle", "text", "values"),
    [
        ("qmark", "a % ? b ?", (1, 2)),
        ("format", "a %% %s b %s", (1, 2)),
        ("pyformat", "a %% %s b %s", (1, 2)),
        ("numeric", "a % :1 b :2", (1, 2)),
        ("named", "a % :v1 b :v2", {"v1": 1, "v2": 2}),
    ],
)
def test_values_take_the_place_that_the_driver_reads(paramstyle, text, values):
    assert sql("a % ", Value(1), " b ", Value(2)).render(paramstyle) == (text, values)


def test_without_values_a_percent_sign_stays_single():
    """Drivers do not look for placeholders then."""
    assert sql("a % b").render("format") == ("a % b", ())


def test_an_unknown_parameter_style_is_refused():
    with pytest.raises(ConfigurationError, match="parameter style 'x'"):
        Dialect(paramstyle="x")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("t", ("t",)),
        ("s.T", ("s", "T")),
        ('d."a.b".`c``d`', ("d", "a.b", "c`d")),
        ("[a]].b].t", ("a].b", "t")),
        ('"a""b"', ('a"b',)),
        (" s . t ", ("s", "t")),
    ],
)
def test_a_table_is_named_as_its_users_write_it(text, parts):
    assert parse_name(text) == parts


@pytest.mark.parametrize("text", ["", "a..b", "a.b.c.d", '"a', "a.", "a]b"])
def test_what_is_no_table_name_is_refused(text):
    with pytest.raises(ConfigurationError, match="not a table name"):
        parse_name(text)


@pytest.mark.parametrize(
    ("window", "where", "values"),
    [
        (WINDOW, ' WHERE "c" >= ? AND "c" < ?', (1, 9)),
        (Window("1", "9", "text", "(]"), ' WHERE "c" > ? AND "c" <= ?', (1, 9)),
        (Window(None, "9", "bigint"), ' WHERE "c" < ?', (9,)),
        (Window("1", None, "bigint"), ' WHERE "c" >= ?', (1,)),
        (FULL, "", ()),
    ],
)
def test_a_window_is_a_condition_on_the_cursor_alone(window, where, values):
    rows = Relation(("t",)).source(ANSI)
    built = select(ANSI, rows, [ANSI.name("n")], cursor="c", window=window, low=1, high=9)
    assert built.render("qmark") == (f'SELECT "n" FROM "t"{where}', values)


def test_a_query_without_bounds_gets_the_window_around_it():
    """Also one that ends with a comment or a semicolon."""
    rows = Relation(query="SELECT * FROM t -- all; ").source(ANSI)
    built = select(ANSI, rows, [sql("*")], cursor="c", window=WINDOW, low=1, high=9)
    assert built.render("qmark") == (
        'SELECT * FROM (SELECT * FROM t -- all\n) etl_batch WHERE "c" >= ? AND "c" < ?',
        (1, 9),
    )


def test_bounds_are_found_outside_of_literals_names_and_comments_only():
    query = "SELECT ':low', \":high\", x::low, `:low` -- :low\n /* :high */ FROM t WHERE c >= :low AND c < :high"
    relation = Relation(query=query)
    assert relation.bounded(ANSI)
    text, values = relation.source(ANSI, 1, 9).render("qmark")
    assert values == (1, 9)
    assert text == f"({query[: query.index('c >= ')]}c >= ? AND c < ?\n) etl_batch"


def test_a_backslash_escapes_only_where_the_database_says_so():
    query = r"SELECT 'it\'s :low' FROM t"
    assert not Relation(query=query).bounded(Dialect(backslash=True))
    with pytest.raises(ConfigurationError, match="names :low only"):
        Relation(query=query).bounded(ANSI)


def test_null_cursors_are_counted_in_what_a_query_returns():
    rows = Relation(query="SELECT * FROM t WHERE c < :high OR c > :low").source(ANSI, 1, 9)
    text, values = outside(rows, sql('"c" IS NULL'), None).render("qmark")
    assert text.endswith('WHERE c < ? OR c > ?\n) etl_batch WHERE "c" IS NULL')
    assert values == (9, 1)
