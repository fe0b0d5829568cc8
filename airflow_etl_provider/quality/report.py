"""What an audit found, in the shapes the ledger, XCom and a task log need."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time
from enum import StrEnum
from typing import Any, Self

from airflow_etl_provider.core.errors import QualityGateFailed, StateError
from airflow_etl_provider.quality.suite import OnFail, Severity

# A report is a small document: samples of long texts and long lists are cut.
LONGEST_TEXT = 1_000
LONGEST_LIST = 20

# What these observe is a number or a share of rows, columns or values, and no value itself.
_COUNTING = frozenset(
    {
        "expect_column_proportion_of_non_null_values_to_be_between",
        "expect_column_proportion_of_unique_values_to_be_between",
        "expect_column_unique_value_count_to_be_between",
        "expect_table_column_count_to_be_between",
        "expect_table_column_count_to_equal",
        "expect_table_row_count_to_be_between",
        "expect_table_row_count_to_equal",
    }
)


class Verdict(StrEnum):
    """``passed``: all held. ``warned``: only warnings or infos failed. ``rejected``: a critical
    one failed or could not be evaluated."""

    PASSED = "passed"
    WARNED = "warned"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class ExpectationResult:
    """The outcome of one expectation.

    ``exception`` is set when it could not be evaluated, which counts as failed. ``set_aside`` says that the
    rows that failed have left the batch, as ``on_fail`` asked, so that they block nothing. ``observed_value``,
    ``partial_unexpected_list`` and ``unexpected_index_list`` (the keys of a few unexpected rows) hold values
    of rows and go to the ledger only; ``note`` is what an expectation of ours found, in one line without any
    value of a row.
    """

    type: str
    kwargs: Mapping[str, Any]
    severity: Severity
    success: bool
    column: str | None = None
    element_count: int | None = None
    unexpected_count: int | None = None
    unexpected_percent: float | None = None
    missing_count: int | None = None
    observed_value: Any = None
    partial_unexpected_list: tuple[Any, ...] = ()
    unexpected_index_list: tuple[Mapping[str, Any], ...] = ()
    exception: str | None = None
    note: str | None = None
    engine: str | None = None
    set_aside: bool = False
    on_fail: OnFail = OnFail.BLOCK

    def __post_init__(self) -> None:
        if self.success and self.exception is not None:
            raise ValueError(f"{self.type} cannot both hold and raise")

    @property
    def name(self) -> str:
        """Type and columns: ``expect_column_values_to_not_be_null(carrier)``."""
        return f"{self.type}({self.column})" if self.column else self.type

    @property
    def count(self) -> int | float | None:
        """What it observed, where that is a number or a share and no value of a row."""
        observed = self.observed_value
        if self.type not in _COUNTING or not isinstance(observed, int | float):
            return None
        return observed if isinstance(observed, int) else round(observed, 4)

    @property
    def finding(self) -> str:
        """What was found, in one line without any value of a row."""
        if self.exception is not None:
            return f"could not be evaluated: {self.exception}"
        if self.note is not None:
            return self.note
        if self.count is not None:
            return f"found {self.count:,}{'' if self.success else self._limits()}"
        if self.success and not self.unexpected_count:
            return "holds"
        if self.unexpected_count is not None and self.element_count:
            return self._share_found() + (", set aside" if self.set_aside else "")
        if self.unexpected_count is not None:
            return f"{self.unexpected_count:,} unexpected"
        return f"does not hold{self._limits()}"

    def as_ledger(self) -> dict[str, Any]:
        """The result as Great Expectations writes it, with values; ``meta`` has what it knows nothing of."""
        meta = {"column": self.column, "engine": self.engine, "note": self.note}
        return {
            "success": self.success,
            "expectation_config": {
                "type": self.type,
                "kwargs": json_safe(self.kwargs, cut=False),
                "severity": self.severity.value,
                **({} if self.on_fail is OnFail.BLOCK else {"on_fail": self.on_fail.value}),
            },
            "result": {
                "element_count": self.element_count,
                "unexpected_count": self.unexpected_count,
                "unexpected_percent": json_safe(self.unexpected_percent),
                "missing_count": self.missing_count,
                "observed_value": json_safe(self.observed_value),
                "partial_unexpected_list": json_safe(self.partial_unexpected_list),
                "unexpected_index_list": json_safe(self.unexpected_index_list),
            },
            "exception_info": {
                "raised_exception": self.exception is not None,
                "exception_message": json_safe(self.exception),
            },
            "meta": {key: json_safe(value) for key, value in meta.items() if value is not None},
            **({"set_aside": True} if self.set_aside else {}),
        }

    @classmethod
    def from_ledger(cls, data: Mapping[str, Any]) -> Self:
        """The result that :meth:`as_ledger` wrote, also by an older release.

        :raises KeyError, TypeError, ValueError: *data* is none.
        """
        config, found, meta = data["expectation_config"], data["result"], data.get("meta") or {}
        raised = data["exception_info"]
        return cls(
            type=config["type"],
            kwargs=config["kwargs"],
            severity=Severity(config["severity"]),
            success=data["success"],
            column=meta.get("column"),
            element_count=found["element_count"],
            unexpected_count=found["unexpected_count"],
            unexpected_percent=found["unexpected_percent"],
            missing_count=found["missing_count"],
            observed_value=found["observed_value"],
            partial_unexpected_list=tuple(found["partial_unexpected_list"]),
            exception=raised["exception_message"] if raised["raised_exception"] else None,
            note=meta.get("note"),
            engine=meta.get("engine"),
            set_aside=bool(data.get("set_aside")),
        )

    def as_xcom(self) -> dict[str, Any]:
        """Names, counts and the reason; no value of a row."""
        facts = {
            "type": self.type,
            "column": json_safe(self.column),
            "severity": self.severity.value,
            "unexpected_count": self.unexpected_count,
            "unexpected_percent": json_safe(self.unexpected_percent),
            "exception": json_safe(self.exception),
            "note": json_safe(self.note),
            "set_aside": self.set_aside or None,
        }
        return {key: value for key, value in facts.items() if value is not None}

    def _share_found(self) -> str:
        missing = self.missing_count or 0
        judged = (self.element_count or 0) - missing
        rows = "non-null rows" if missing else "rows"
        share = "" if self.unexpected_percent is None else f" ({_share(self.unexpected_percent)})"
        return f"{self.unexpected_count:,} of {judged:,} {rows}{share}"

    def _limits(self) -> str:
        limits = [
            f"{key}={value!r}"
            for key, value in self.kwargs.items()
            if isinstance(value, int | float | str) and not key.startswith(("column", "condition"))
        ]
        return f" ({', '.join(limits)})" if limits else ""


@dataclass(frozen=True, slots=True)
class Judged:
    """What one engine found of each expectation, by its number; what it cannot judge is *left*, with the reason."""

    rows: int | None
    results: Mapping[int, ExpectationResult]
    left: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of the audit of one load; results stand in the order of the suite.

    ``rows`` is ``None`` when even counting them failed, for instance by a statement timeout; ``refused`` says
    that the batch was rejected whatever its expectations say, because too many rows would have been set aside.
    """

    load_id: str
    engine: str
    table: str
    rows: int | None
    results: tuple[ExpectationResult, ...]
    started_at: datetime
    finished_at: datetime
    refused: bool = False

    def __post_init__(self) -> None:
        if self.started_at.tzinfo is None or self.finished_at.tzinfo is None:
            raise ValueError("a report needs times with a time zone")

    @property
    def verdict(self) -> Verdict:
        """Whether the batch may be published."""
        failed = [result for result in self.results if not result.success]
        if self.refused or any(
            each.severity is Severity.CRITICAL and not each.set_aside for each in failed
        ):
            return Verdict.REJECTED
        return Verdict.WARNED if failed else Verdict.PASSED

    def failures(self, severity: Severity = Severity.CRITICAL) -> tuple[str, ...]:
        """One line per failed expectation of *severity*, without any value of a row."""
        return tuple(
            f"{printable(result.name)}: {printable(result.finding)}"
            for result in self.results
            if not result.success and result.severity is severity and not result.set_aside
        )

    def as_ledger(self) -> dict[str, Any]:
        """The whole report with values, in the shape of a Great Expectations result."""
        held = sum(result.success for result in self.results)
        evaluated = len(self.results)
        return {
            "success": held == evaluated,
            "verdict": self.verdict.value,
            "load_id": self.load_id,
            "engine": self.engine,
            "table": json_safe(self.table),
            "rows": self.rows,
            "started_at": self.started_at.isoformat(),
            "finished_at": self.finished_at.isoformat(),
            "statistics": {
                "evaluated_expectations": evaluated,
                "successful_expectations": held,
                "unsuccessful_expectations": evaluated - held,
                "success_percent": 100 * held / evaluated if evaluated else None,
            },
            "results": [result.as_ledger() for result in self.results],
        }

    @classmethod
    def from_ledger(cls, data: Mapping[str, Any]) -> Self:
        """The report that :meth:`as_ledger` wrote, also by an older release.

        :raises StateError: *data* is none.
        """
        try:
            found = cls(
                load_id=data["load_id"],
                engine=data["engine"],
                table=data["table"],
                rows=data["rows"],
                results=tuple(map(ExpectationResult.from_ledger, data["results"])),
                started_at=datetime.fromisoformat(data["started_at"]),
                finished_at=datetime.fromisoformat(data["finished_at"]),
            )
            told = Verdict(data["verdict"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(
                f"the ledger holds no report that this release can read ({type(error).__name__}: {error})",
                remedy="look at it with: SELECT report FROM etl.loads WHERE load_id = …",
            ) from None
        return replace(
            found, refused=told is Verdict.REJECTED and found.verdict is not Verdict.REJECTED
        )

    def as_xcom(self) -> dict[str, Any]:
        """A small summary: verdict, counts and the failed expectations; no value of a row."""
        failed = [result for result in self.results if not result.success]
        by_severity = Counter(result.severity for result in failed)
        return {
            "load_id": self.load_id,
            "engine": self.engine,
            "table": json_safe(self.table),
            "rows": self.rows,
            "verdict": self.verdict.value,
            "evaluated": len(self.results),
            "failed": {severity.value: by_severity[severity] for severity in Severity},
            "failures": [result.as_xcom() for result in failed[:LONGEST_LIST]],
        }

    def as_table(self) -> str:
        """A table for a person who reads the task log; no value of a row."""
        rows = "uncounted" if self.rows is None else f"{self.rows:,}"
        seconds = (self.finished_at - self.started_at).total_seconds()
        title = (
            f"audit of {printable(self.table)} ({rows} rows) by {self.engine} in {seconds:.1f} s: "
            f"{self.verdict.value}"
        )
        if not self.results:
            return title
        heading = ["result", "severity", "expectation", "column", "found"]
        cells = [_row(result) for result in self.results]
        if len({result.engine for result in self.results}) > 1:
            heading.insert(2, "engine")
            for row, result in zip(cells, self.results, strict=True):
                row.insert(2, result.engine or "-")
        lines = _aligned([heading, *cells])
        ruler = "-" * len(lines[0])
        return "\n".join([title, lines[0], ruler, *lines[1:]])


def raise_if_rejected(report: Report, *, staging: str | None) -> None:
    """Raise ``QualityGateFailed`` when the batch may not be published.

    :param staging: where the rows of the load are kept; ``None`` for a table that belongs to no load.
    """
    if report.verdict is not Verdict.REJECTED:
        return
    failures = report.failures(Severity.CRITICAL)
    failed = (
        f"{len(failures)} of {len(report.results)} expectations on {printable(report.table)} failed "
        "critically"
    )
    if staging is None:
        raise QualityGateFailed(
            failed,
            failures=failures,
            remedy="mend the rows or the suite, then clear this task",
        )
    raise QualityGateFailed(
        f"load {report.load_id} was rejected by its audit: {failed}; nothing was published",
        failures=failures,
        remedy=f"airflow-etl report {report.load_id} shows samples of what failed, and the rows are kept in "
        f"{printable(staging)}; mend the source and clear extract and downstream, or mend the suite and clear "
        "validate and downstream",
    )


def json_safe(value: Any, *, cut: bool = True) -> Any:
    """*value* as JSON and PostgreSQL's jsonb can hold it, long texts and lists cut."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _non_finite(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _text("\\x" + bytes(value).hex(), cut)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {_text(str(key), cut): json_safe(item, cut=cut) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items: Iterable[Any] = list(value)[:LONGEST_LIST] if cut else value
        return [json_safe(item, cut=cut) for item in items]
    if hasattr(value, "tolist"):  # a numpy scalar or array
        return json_safe(value.tolist(), cut=cut)
    return _text(str(value), cut)


def printable(text: str) -> str:
    """*text* on one line, control characters escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def _text(text: str, cut: bool) -> str:
    storable = text.replace("\x00", "\ufffd").encode(errors="replace").decode()
    return f"{storable[:LONGEST_TEXT]}…" if cut and len(storable) > LONGEST_TEXT else storable


def _non_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _share(percent: float) -> str:
    if 0 < percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.2f} %"


def _row(result: ExpectationResult) -> list[str]:
    failed = "set aside" if result.set_aside else "FAILED"
    outcome = "ok" if result.success else failed if result.exception is None else "ERROR"
    return [
        outcome,
        result.severity.value,
        printable(result.type),
        printable(result.column or "-"),
        printable(result.finding),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
