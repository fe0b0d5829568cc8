"""Suites are checked before anything heavy is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_etl_provider.core.errors import CatalogError, ConfigurationError
from airflow_etl_provider.quality.gallery import OWN_TYPES, ExpectationType, read_gallery
from airflow_etl_provider.quality.suite import (
    Expectation,
    Severity,
    Suite,
    check_columns,
    load_suite,
    parse_suite,
    suite_from_json,
)

NOT_NULL = {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "carrier"}}
EXPORT = {
    "name": "flights",
    "id": "26e1c25f-b0d6-44f2-9c5b-63f14ca15496",
    "expectations": [
        {
            "type": "expect_column_max_to_be_between",
            "kwargs": {
                "column": "a",
                "row_condition": {
                    "type": "and",
                    "conditions": [
                        {
                            "type": "comparison",
                            "column": {"name": "x"},
                            "operator": ">",
                            "parameter": 5,
                        },
                        {"type": "nullity", "column": {"name": "y"}, "is_null": False},
                    ],
                },
                "min_value": 1.0,
            },
            "meta": {"owner": "data"},
            "notes": "kept by nobody",
            "id": "799125f0-a575-4c4c-8ff6-f8199be52175",
            "severity": "warning",
        }
    ],
    "meta": {"great_expectations_version": "1.24.1"},
    "notes": None,
}


def test_inline_form_is_understood() -> None:
    """Without a severity an expectation is critical."""
    suite = parse_suite([NOT_NULL, NOT_NULL | {"severity": "info"}])
    assert [expectation.severity for expectation in suite.expectations] == [
        Severity.CRITICAL,
        Severity.INFO,
    ]
    assert suite.expectations[0].kwargs == {"column": "carrier"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (NOT_NULL | {"type": "expect_column_values_to_not_be_nul"}, "did you mean 'expect_column"),
        (NOT_NULL | {"kwargs": {"colum": "carrier"}}, "did you mean 'column'"),
        (NOT_NULL | {"kwargs": {}}, "needs column"),
        (NOT_NULL | {"kwargs": {"column": 1}}, "not the name of one column"),
        (NOT_NULL | {"kwargs": {"column": ["a"]}}, "not the name of one column"),
        (NOT_NULL | {"kwargs": {"column": "a", "mostly": 1.5}}, "not a share between 0 and 1"),
        (NOT_NULL | {"kwargs": {"column": "a", "mostly": True}}, "not a share between 0 and 1"),
        (NOT_NULL | {"kwargs": {"column": "a", "mostly": float("nan")}}, "JSON cannot hold"),
        (NOT_NULL | {"kwargs": {"column": "a", 1: 2}}, "key 1 is not a text"),
        (
            NOT_NULL | {"kwargs": {"column": {"$PARAMETER": "c"}}},
            "nothing in a suite is a template",
        ),
        (NOT_NULL | {"kwargs": ["carrier"]}, "not a mapping"),
        (NOT_NULL | {"severity": "warn"}, "unknown severity 'warn'; did you mean 'warning'"),
        (NOT_NULL | {"severty": "info"}, "unknown key 'severty'; did you mean 'severity'"),
        (NOT_NULL | {"windows": [{"offset": 1}]}, "nothing in a suite is a template"),
        ({"kwargs": {"column": "carrier"}}, "has no key 'type'"),
        ("expect_column_to_exist", "not a mapping"),
        (
            {
                "type": "expect_compound_columns_to_be_unique",
                "kwargs": {"column_list": "carrier"},
            },
            "not a list of column names",
        ),
    ],
)
def test_what_cannot_run_is_refused(entry: Any, message: str) -> None:
    """The second entry is named, with what is wrong and what would be right."""
    with pytest.raises(ConfigurationError, match="suite 'inline', expectation 2") as refused:
        parse_suite([NOT_NULL, entry])
    assert message in str(refused.value)


def test_allowed_kwargs_are_listed() -> None:
    """Whoever misspells a keyword reads which ones there are."""
    with pytest.raises(ConfigurationError) as refused:
        parse_suite([NOT_NULL | {"kwargs": {"columns": "a"}}])
    assert "allowed are column, condition_parser, mostly, row_condition" in str(refused.value)


@pytest.mark.parametrize("expectations", ["abc", {"type": "x"}, None])
def test_expectations_must_be_a_list(expectations: Any) -> None:
    """A mapping or a text in place of the list is named as what it is."""
    with pytest.raises(ConfigurationError, match="not a list"):
        parse_suite(expectations)


def test_empty_suite_is_refused() -> None:
    """No expectation would mean that every batch passes."""
    with pytest.raises(ConfigurationError, match="would pass any batch"):
        parse_suite([])


def test_text_that_looks_like_a_template_is_kept() -> None:
    """Braces belong to regular expressions and formats; nothing renders them."""
    kwargs = {"column": "a", "regex": "^{{2}}$ %Y{%m {# x #}"}
    suite = parse_suite([{"type": "expect_column_values_to_match_regex", "kwargs": kwargs}])
    assert suite.expectations[0].kwargs == kwargs


def test_dates_become_iso_text() -> None:
    """YAML reads dates by itself; a suite holds what JSON can hold."""
    kwargs = {"column": "a", "value_set": (date(2013, 1, 1),)}
    suite = parse_suite([{"type": "expect_column_values_to_be_in_set", "kwargs": kwargs}])
    assert suite.expectations[0].kwargs["value_set"] == ["2013-01-01"]


@pytest.mark.parametrize("ending", [".json", ".yaml", ".yml"])
def test_export_is_read_from_a_file(ending: str, tmp_path: Path) -> None:
    """What Great Expectations exports is a suite as it is; JSON is YAML as well."""
    path = tmp_path / f"any{ending}"
    path.write_text(json.dumps(EXPORT))
    suite = load_suite(path)
    (expectation,) = suite.expectations
    assert (suite.name, expectation.severity) == ("flights", Severity.WARNING)
    assert (expectation.meta, expectation.id) == (
        {"owner": "data"},
        "799125f0-a575-4c4c-8ff6-f8199be52175",
    )
    assert suite.columns() == ("a", "x", "y")


def test_bare_list_is_named_like_its_file(tmp_path: Path) -> None:
    """The inline form works in a file too."""
    path = tmp_path / "flights.yaml"
    path.write_text("- type: expect_column_to_exist\n  kwargs: {column: a}\n")
    assert load_suite(path).name == "flights"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("suite.txt", "[]", "none of .json, .yaml, .yml"),
        ("suite.json", "[", "line 1 column 2"),
        ("suite.yaml", "a: [\n", "line 2, column 1"),
        ("suite.json", '{"name": "x"}', "has no key 'expectations'"),
        ("suite.json", '{"name": 1, "expectations": []}', "its name is not a text"),
        ("suite.json", '{"expectation": []}', "did you mean 'expectations'"),
        ("suite.json", '{"expectations": [], "suite_parameters": {"a": 1}}', "template"),
        ("suite.yaml", "- {type: expect_nothing}\n", "unknown expectation type 'expect_nothing'"),
    ],
)
def test_broken_file_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    """The error carries the file and the place in it."""
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigurationError) as refused:
        load_suite(path)
    assert str(path) in str(refused.value)
    assert message in str(refused.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A path that leads nowhere is a mistake of the pipeline."""
    with pytest.raises(ConfigurationError, match=r"nowhere\.json cannot be read: No such file"):
        load_suite(tmp_path / "nowhere.json")


def test_missing_column_is_named_with_the_nearest() -> None:
    """The person who misspelt a column reads which one they meant."""
    suite = parse_suite([NOT_NULL], "flights")
    with pytest.raises(CatalogError) as missing:
        check_columns(suite, ["id", "carier"])
    assert str(missing.value).startswith(
        "expect_column_values_to_not_be_null of suite 'flights' reads column 'carrier', "
        "which the table does not have; did you mean 'carier'?"
    )


def test_present_columns_are_accepted() -> None:
    """Every kind of column keyword is understood."""
    suite = parse_suite(
        [
            NOT_NULL,
            {
                "type": "expect_column_pair_values_to_be_equal",
                "kwargs": {"column_A": "a", "column_B": "b"},
            },
            {
                "type": "expect_compound_columns_to_be_unique",
                "kwargs": {"column_list": ["c", "carrier"]},
            },
        ]
    )
    assert suite.columns() == ("carrier", "a", "b", "c")
    check_columns(suite, {"carrier", "a", "b", "c"})


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("expect_column_to_exist", {"column": "nowhere"}),
        ("expect_table_columns_to_match_set", {"column_set": ["nowhere"]}),
    ],
)
def test_expectations_on_the_schema_keep_their_verdict(
    kind: str, kwargs: Mapping[str, Any]
) -> None:
    """Whether a column exists is what they judge, so a missing one is no mistake of the suite."""
    suite = parse_suite([{"type": kind, "kwargs": kwargs}])
    assert suite.columns() == ()
    check_columns(suite, ["id"])


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False).filter(lambda number: abs(number) != float("inf")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text().filter(lambda key: key != "$PARAMETER"), inner, max_size=3)
    ),
    max_leaves=5,
)
NAME = st.text(min_size=1)


def _value(kind: ExpectationType, name: str) -> st.SearchStrategy[Any]:
    if kind.kwargs[name].names_columns:
        return st.lists(NAME) if kind.kwargs[name].many else NAME
    return st.floats(0, 1) if name == "mostly" else PLAIN


@st.composite
def expectations(draw: st.DrawFn) -> Expectation:
    """Any expectation of Great Expectations that the gallery allows."""
    kind = read_gallery()[draw(st.sampled_from(sorted(set(read_gallery()) - set(OWN_TYPES))))]
    given_kwargs = [
        name for name, kwarg in kind.kwargs.items() if kwarg.required or draw(st.booleans())
    ]
    return Expectation(
        type=kind.name,
        kwargs={name: draw(_value(kind, name)) for name in given_kwargs},
        severity=draw(st.sampled_from(Severity)),
        meta=draw(st.dictionaries(st.text(), PLAIN, max_size=2)),
        id=draw(st.none() | NAME),
        description=draw(st.none() | NAME),
    )


@given(name=NAME, parts=st.lists(expectations(), min_size=1, max_size=3))
def test_suite_survives_json(name: str, parts: list[Expectation]) -> None:
    """What is written to a ledger or a file reads back as the same suite."""
    suite = Suite(name, tuple(parts))
    assert suite_from_json(json.loads(json.dumps(suite.as_json()))) == suite


def test_importing_the_package_loads_no_engine() -> None:
    """A DAG file may import suites and the auditor: parsing stays cheap."""
    program = (
        "import sys; import airflow_etl_provider.quality.gx, airflow_etl_provider.quality.report;"
        "from airflow_etl_provider.quality.suite import parse_suite;"
        f"parse_suite([{NOT_NULL!r}]);"
        "heavy = {'great_expectations', 'pandas', 'numpy', 'sqlalchemy', 'psycopg2', 'airflow'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
