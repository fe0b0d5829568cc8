"""Pages of reports, rendered by the installed Great Expectations from what the ledger holds."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from airflow_etl_provider.quality.data_docs import render
from airflow_etl_provider.quality.gallery import OWN_TYPES
from airflow_etl_provider.quality.report import ExpectationResult, Report
from airflow_etl_provider.quality.suite import Severity
from tests.integration.quality.test_gallery_on_postgres import JUDGED, REFUSED, outcomes

# Great Expectations imports modules that Python 3.11 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_")

NOON = datetime(2013, 1, 1, 12, tzinfo=UTC)
ATTACK = "<img src=x onerror=alert(1)></td><script>alert(2)</script>&\"'"
_ = outcomes  # a fixture that the gallery's tests share


def report(*results: ExpectationResult, table: str = "etl_staging.flights_1") -> Report:
    found = Report(
        "load-1", "great_expectations", table, 3, results, NOON, NOON + timedelta(seconds=2)
    )
    # As a person asks for it later: from the ledger.
    return Report.from_ledger(json.loads(json.dumps(found.as_ledger())))


class Page(HTMLParser):
    """What a browser makes of a page: its tags, its text, its cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._depth = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._depth += 1
        if self._depth == 1 and tag == "tr":
            self.rows.append([])
        if self._depth == 1 and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._depth -= 1

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._depth and self.rows and self.rows[-1]:
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())


def result(kind: str, kwargs: Mapping[str, Any], **found: Any) -> ExpectationResult:
    given = {"severity": Severity.CRITICAL, "success": False, **found}
    return ExpectationResult(type=kind, kwargs=kwargs, **given)


NULLS = result(
    "expect_column_values_to_be_between",
    {"column": "dep", "min_value": 0},
    column="dep",
    element_count=27_004,
    unexpected_count=12,
    unexpected_percent=0.0444,
    missing_count=4,
    partial_unexpected_list=(-1, -2, -3),
)


def test_a_person_reads_what_was_expected_and_what_was_found() -> None:
    """In Data Docs' words, with severity, counts and samples."""
    page = Page(render(report(NULLS), {"load": "load-1", "stream": "flights"}))
    assert page.rows == [
        ["Status", "Severity", "Expectation", "Observed value", "Found"],
        [
            "failed",
            "critical",
            "values must be greater than or equal to 0 . Sampled Unexpected Values -1 -2 -3",
            "0.0444% unexpected",
            "12 of 27,000 non-null rows (0.04 %)",
        ],
    ]
    assert "Audit of etl_staging.flights_1" in page.text
    assert "flights" in page.text
    assert ("h2", {}) in page.tags


def test_the_page_stands_alone() -> None:
    """No script, nothing from elsewhere, and a policy that forbids both."""
    html = render(report(NULLS), {})
    page = Page(html)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert "http" not in html.replace("http-equiv", "")
    assert not re.search(r"url\(|@import", html)
    policy = dict(page.tags)["meta"]
    assert (policy["http-equiv"], policy["content"]) == (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'",
    )


def test_values_of_rows_are_text_and_nothing_else() -> None:
    """Whatever stands in a row, a name or a suite: the page shows it and does not run it."""
    everywhere = [
        result(kind, kwargs, success=success, severity=Severity.INFO, **found)
        for kind, kwargs in (
            ("expect_column_values_to_be_in_set", {"column": ATTACK, "value_set": [ATTACK]}),
            ("expect_column_max_to_be_between", {"column": ATTACK, "max_value": ATTACK}),
            ("expect_column_values_to_match_regex", {"column": "a", "regex": ATTACK}),
            ("expect_column_distinct_values_to_equal_set", {"column": "a", "value_set": [ATTACK]}),
            ("expect_compound_columns_to_be_unique", {"column_list": [ATTACK, "b"]}),
            ("expect_table_columns_to_match_set", {"column_set": [ATTACK]}),
            (
                "unexpected_rows_expectation",
                {"unexpected_rows_query": ATTACK, "description": ATTACK},
            ),
            ("expect_batch_to_be_fresh", {"column": ATTACK, "max_age": "PT1H"}),
        )
        for success, found in (
            (True, {"observed_value": ATTACK}),
            (
                False,
                {
                    "column": ATTACK,
                    "element_count": 3,
                    "unexpected_count": 3,
                    "unexpected_percent": 100.0,
                    "missing_count": 0,
                    "observed_value": [ATTACK],
                    "partial_unexpected_list": (ATTACK, {ATTACK: ATTACK}, [ATTACK]),
                },
            ),
            (False, {"exception": ATTACK}),
        )
    ]
    noted = replace(everywhere[0], note=ATTACK)
    page = Page(render(report(*everywhere, noted, table=ATTACK), {ATTACK: ATTACK}))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert "alert(2)" in page.text


@pytest.mark.parametrize("outcome", ["holds", "fails"])
def test_every_type_of_the_gallery_has_its_row(
    outcome: str,
    outcomes: Mapping[tuple[str, str], ExpectationResult],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As Great Expectations found it on PostgreSQL, and no renderer complains."""
    results = [outcomes[kind, outcome] for kind in JUDGED]
    results += [outcomes[kind, "refused"] for kind in REFUSED]
    with caplog.at_level(logging.ERROR):
        page = Page(render(report(*results), {}))
    assert [record.message for record in caplog.records] == []
    rows = [row for row in page.rows if row[0] != "Status"]
    assert len(rows) == len(results)
    # Of some, Great Expectations itself has no words and writes type(**{kwargs}); one it draws by a script.
    unworded = [row[2] for row in rows if row[2].startswith(("expect_", "unexpected_"))]
    ours = [text.partition("(")[0] for text in unworded if "**{" not in text]
    assert ours == ["expect_column_kl_divergence_to_be_less_than"]
    assert [cell for row in rows for cell in row if "<" in cell] == [], "markup shows as text"
    expected = {"ok"} if outcome == "holds" else {"failed"}
    assert {row[0] for row in rows} == expected | {"error"}


def test_our_own_are_told_with_all_that_was_observed() -> None:
    """Great Expectations knows nothing of them, so the page says what the suite says."""
    results = [
        result(
            kind, {}, success=True, note=f"note of {kind}", observed_value={"rows": 3, "at": 1.5}
        )
        for kind in OWN_TYPES
    ]
    page = Page(render(report(*results), {}))
    assert page.rows[1:] == [
        ["ok", "critical", f"{kind}()", "rows: 3 at: 1.5", f"note of {kind}"] for kind in OWN_TYPES
    ]


def test_a_type_that_a_later_release_knows_is_told_all_the_same() -> None:
    """A report outlives the release that wrote it."""
    page = Page(
        render(report(result("expect_the_unexpected", {"column": "a"}, exception="no")), {})
    )
    assert page.rows[1] == [
        "error",
        "critical",
        "expect_the_unexpected(column='a')",
        "--",
        "could not be evaluated: no",
    ]
