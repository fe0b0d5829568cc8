"""A report as a page of its own, rendered by Great Expectations' Data Docs renderers.

Data Docs load styles and scripts from a dozen hosts, and write some values of rows into the page as they are.
This page carries its style with it, runs no script and loads nothing: values are escaped before a renderer
sees them, of what it makes only harmless tags are kept, and a Content-Security-Policy forbids the rest.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from importlib.resources import files
from string import Template
from typing import Any

from airflow_etl_provider.quality.gallery import OWN_TYPES
from airflow_etl_provider.quality.gx import import_great_expectations
from airflow_etl_provider.quality.report import ExpectationResult, Report, json_safe

_PAGE, _STYLE = "report.html", "report.css"
_WHOLE_TABLE = "Table"
_GRAPH = '"content_block_type": "graph"'
_TAGS = frozenset(
    {
        "b",
        "br",
        "code",
        "div",
        "em",
        "h5",
        "h6",
        "hr",
        "li",
        "ol",
        "p",
        "pre",
        "span",
        "strong",
        "table",
        "tbody",
    }
    | {"td", "th", "thead", "tr", "ul"}
)
_ATTRIBUTES = ("class", "hidden")
_HEADINGS = ["Status", "Severity", "Expectation", "Observed value", "Found"]


def render(report: Report, about: Mapping[str, str]) -> str:
    """The page, a whole HTML document.

    :param about: what else is known of the load, by name.
    """
    import_great_expectations()
    sections = [_section(title, results) for title, results in _by_column(report).items()]
    return Template(_file(_PAGE)).substitute(
        style=_file(_STYLE),
        title=html.escape(f"Audit of {report.table}"),
        verdict=report.verdict.value,
        facts="\n".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
            for name, value in about.items()
        ),
        sections="\n".join(sections),
    )


def _file(name: str) -> str:
    return files("airflow_etl_provider.quality").joinpath(name).read_text(encoding="utf-8")


def _by_column(report: Report) -> dict[str, list[ExpectationResult]]:
    """Results as Data Docs group them: those of no single column first, then column by column."""
    groups: dict[str, list[ExpectationResult]] = {_WHOLE_TABLE: []}
    for result in report.results:
        column = result.kwargs.get("column")
        groups.setdefault(column if isinstance(column, str) else _WHOLE_TABLE, []).append(result)
    return {title: results for title, results in groups.items() if results}


def _section(title: str, results: Sequence[ExpectationResult]) -> str:
    from great_expectations.render.view.view import DefaultJinjaComponentView

    block = {
        "content_block_type": "table",
        "header_row": _HEADINGS,
        "table": [_row(result) for result in results],
        "styling": {"body": {"classes": ["table"]}},
    }
    view: Any = DefaultJinjaComponentView()
    rendered = _harmless(view.render({"content_block": block}))
    return f"<section><h2>{html.escape(title)}</h2>{rendered}</section>"


def _row(result: ExpectationResult) -> list[Any]:
    status = "ok" if result.success else "failed" if result.exception is None else "error"
    told = None if result.type in OWN_TYPES else _as_data_docs(result)
    expectation, observed = told or (_as_written(result), _observed(result.observed_value))
    return [
        f'<span class="status {status}">{status}</span>',
        result.severity.value,
        expectation,
        observed,
        html.escape(result.finding),
    ]


def _as_data_docs(result: ExpectationResult) -> tuple[Any, Any] | None:
    """What Great Expectations writes of an expectation and of what was observed; ``None`` where it cannot."""
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult
    from great_expectations.exceptions.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.render.renderer.content_block.validation_results_table_content_block import (
        ValidationResultsTableContentBlockRenderer,
    )

    try:
        configuration = ExpectationConfiguration(type=result.type, kwargs=dict(result.kwargs))
        block = ValidationResultsTableContentBlockRenderer.render(
            [
                ExpectationValidationResult(
                    success=result.success,
                    expectation_config=configuration,
                    result=_escaped(_without_blanks(result)),
                    exception_info={"raised_exception": False},
                )
            ],
            include_column_name=False,
        )
    except (GreatExpectationsError, LookupError, TypeError, ValueError):
        return None
    if block is None:
        return None
    rows: Any = block.to_json_dict()["table"]
    if _GRAPH in json.dumps(rows, default=str):
        return None  # drawn by a script
    ((_, expectation, observed, *_),) = rows
    return expectation, observed


def _without_blanks(result: ExpectationResult) -> dict[str, Any]:
    """The result without samples where all of them are missing values, which would be a table of nothing."""
    found: dict[str, Any] = result.as_ledger()["result"]
    if all(value is None for value in found["partial_unexpected_list"]):
        found["partial_unexpected_list"] = []
    return found


def _as_written(result: ExpectationResult) -> str:
    """Type and kwargs as they stand in the suite."""
    kwargs = ", ".join(f"{name}={json_safe(value)!r}" for name, value in result.kwargs.items())
    return html.escape(f"{result.type}({kwargs})")


def _observed(value: Any, name: str = "") -> str:
    """What was observed, a line for each fact."""
    if isinstance(value, Mapping):
        return "<br>".join(_observed(item, f"{name} {key}".strip()) for key, item in value.items())
    if isinstance(value, list):
        return "<br>".join(_observed(item, name) for item in value)
    text = "--" if value is None else f"{value:,.1f}" if isinstance(value, float) else str(value)
    return html.escape(f"{name}: {text}" if name else text)


class _Harmless(HTMLParser):
    """Writes HTML again with the tags and attributes that are known to do nothing; the rest becomes text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.written: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _TAGS:
            self.handle_data(self.get_starttag_text() or "")
            return
        kept = "".join(
            f' {name}="{html.escape(value or "")}"' for name, value in attrs if name in _ATTRIBUTES
        )
        self.written.append(f"<{tag}{kept}>")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        self.written.append(f"</{tag}>" if tag in _TAGS else html.escape(f"</{tag}>"))

    def handle_data(self, data: str) -> None:
        self.written.append(html.escape(data))

    def handle_entityref(self, name: str) -> None:
        self.written.append(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self.written.append(f"&#{name};")

    def handle_comment(self, data: str) -> None:
        self.handle_data(f"<!--{data}-->")


def _harmless(text: str) -> str:
    parser = _Harmless()
    parser.feed(text)
    parser.close()
    return "".join(parser.written)


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, Mapping):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list) else value
