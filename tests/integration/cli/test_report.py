"""``airflow-etl report``: the ledger's report for people, programs and browsers."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_etl_provider.cli.main import main
from airflow_etl_provider.core.dead_letters import DeadLimits
from airflow_etl_provider.core.errors import QualityGateFailed
from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.quality.report import ExpectationResult, Report
from airflow_etl_provider.quality.suite import Severity
from tests.builders import FEBRUARY, JANUARY, Pipeline, fill, simple
from tests.conftest import Database

# Great Expectations imports modules that Python 3.11 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_")

SECRET = "xyzzy4711"
Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def ask(warehouse18: Database, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run ``report`` on the warehouse; its exit code, and its answer for people or for programs."""

    def command(*argv: str, people: bool = False) -> tuple[int, Any]:
        given = ["report", *argv, "--dsn", warehouse18.conninfo]
        code = main(given if people else [*given, "--json"])
        shown = capsys.readouterr()
        return code, shown.out + shown.err if people else json.loads(shown.out)

    return command


@pytest.fixture
def batch(source18: Database, warehouse18: Database) -> tuple[Pipeline, Manifest]:
    """Staged, and not audited yet."""
    pipeline = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 30)
    return pipeline, pipeline.extract(JANUARY, FEBRUARY)


def audited(pipeline: Pipeline, batch: Manifest, *, success: bool) -> None:
    """With one expectation that holds and one that does, or does not."""
    started = datetime(2013, 2, 1, 12, tzinfo=UTC)
    results = (
        ExpectationResult(
            "expect_table_row_count_to_equal",
            {"value": 30},
            Severity.CRITICAL,
            True,
            observed_value=30,
        ),
        ExpectationResult(
            "expect_column_values_to_be_in_set",
            {"column": "v", "value_set": ["a"]},
            Severity.CRITICAL,
            success,
            column="v",
            element_count=30,
            unexpected_count=0 if success else 2,
            unexpected_percent=0.0 if success else 6.67,
            missing_count=0,
            partial_unexpected_list=() if success else (SECRET, f"{SECRET}\n<b>"),
        ),
    )
    report = Report(
        batch.load_id,
        "sql",
        str(batch.staging),
        30,
        results,
        started,
        started + timedelta(seconds=2),
    )
    error = None if success else "rejected"
    pipeline.audits().record_audit(batch, report, error=error)


def test_a_rejected_load_is_explained(ask: Ask, batch: tuple[Pipeline, Manifest]) -> None:
    """Where it stands, what was found, and the values that no log shows; the exit code is a finding's."""
    audited(*batch, success=False)
    load_id = batch[1].load_id
    code, text = ask(load_id, people=True)
    assert code == 1
    assert text.splitlines()[0].split() == ["load", load_id]
    assert "state      rejected" in text
    assert "FAILED  critical  expect_column_values_to_be_in_set" in text
    assert text.splitlines()[-1] == (
        f"expect_column_values_to_be_in_set(v): for example {SECRET}, {SECRET}\\n<b>"
    )
    code, data = ask(load_id)
    assert (code, data["verdict"], data["statistics"]["evaluated_expectations"]) == (
        1,
        "rejected",
        2,
    )
    assert data["results"][1]["result"]["partial_unexpected_list"][0] == SECRET


def test_a_passed_load_is_no_finding(ask: Ask, batch: tuple[Pipeline, Manifest]) -> None:
    """So that a script may ask."""
    audited(*batch, success=True)
    code, text = ask(batch[1].load_id, people=True)
    assert code == 0
    assert "validated" in text
    assert "for example" not in text


def test_a_page_is_written_for_its_owner(
    ask: Ask, batch: tuple[Pipeline, Manifest], tmp_path: Path
) -> None:
    """Into a file, or into a folder under the load's name; nobody else may read values of rows."""
    audited(*batch, success=False)
    load_id = batch[1].load_id
    code, data = ask(load_id, "--html", str(tmp_path))
    assert (code, data) == (
        1,
        {"load_id": load_id, "verdict": "rejected", "html": str(tmp_path / f"{load_id}.html")},
    )
    page = tmp_path / f"{load_id}.html"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    written = page.read_text(encoding="utf-8")
    assert SECRET in written
    assert "1 of 2 hold" in written
    assert "[2013-01-01 00:00:00+00, 2013-02-01 00:00:00+00)" in written
    assert ask(load_id, "--html", str(tmp_path / "x.html"), people=True) == (
        1,
        f"wrote {tmp_path / 'x.html'}\n",
    )
    # Nothing of when it was rendered: the same report gives the same page.
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == written


def test_a_page_that_cannot_be_written(
    ask: Ask, batch: tuple[Pipeline, Manifest], tmp_path: Path
) -> None:
    """A mistake of the command, not of the load."""
    audited(*batch, success=True)
    code, data = ask(batch[1].load_id, "--html", str(tmp_path / "no" / "x.html"))
    assert code == 2
    assert (
        data["error"]
        == f"--html: {tmp_path}/no/x.html cannot be written: No such file or directory"
    )


def test_a_page_that_was_open_to_others_is_so_no_longer(
    ask: Ask, batch: tuple[Pipeline, Manifest], tmp_path: Path
) -> None:
    """Whoever wrote the file that is replaced."""
    audited(*batch, success=False)
    page = tmp_path / "x.html"
    page.write_text("longer than nothing")
    page.chmod(0o644)
    assert ask(batch[1].load_id, "--html", str(page))[0] == 1
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert SECRET in page.read_text(encoding="utf-8")


def test_a_load_that_lost_too_many_rows_was_rejected_whatever_its_expectations_say(
    ask: Ask, batch: tuple[Pipeline, Manifest]
) -> None:
    """Its report is one of warnings, and its verdict is not."""
    pipeline, manifest = batch
    present = {
        "type": "expect_column_values_to_be_null",
        "kwargs": {"column": "v"},
        "severity": "warning",
        "on_fail": "quarantine",
    }
    with pytest.raises(QualityGateFailed):
        pipeline.audit(manifest, [present], DeadLimits(0.5))
    code, text = ask(manifest.load_id, people=True)
    assert code == 1
    assert "30 of 30 rows would be set aside" in text
    assert "rejected" in next(line for line in text.splitlines() if line.startswith("audit of"))
    assert ask(manifest.load_id)[1]["verdict"] == "rejected"


def test_an_audit_that_was_waived_says_by_whom(ask: Ask, batch: tuple[Pipeline, Manifest]) -> None:
    """There is nothing to show, and that is on record."""
    pipeline, manifest = batch
    pipeline.waive(manifest)
    code, text = ask(manifest.load_id, people=True)
    assert code == 0
    assert "audit='none'" in text
    assert ask(manifest.load_id)[1]["verdict"] == "none"


def test_a_load_without_a_report(ask: Ask, batch: tuple[Pipeline, Manifest]) -> None:
    """It stands before its audit."""
    code, data = ask(batch[1].load_id)
    assert (code, data["remedy"]) == (1, "the task validate makes it")
    assert data["error"].endswith("of stream t is staged and has no report")


@pytest.mark.parametrize(
    ("load_id", "code", "message"),
    [
        ("7", 2, "'7' is no load id"),
        ("01a1fb68-0490-73ab-80d6-f50624ed5825", 1, "knows no load 01a1fb68"),
    ],
)
def test_a_load_that_is_not_there(
    ask: Ask, batch: tuple[Pipeline, Manifest], load_id: str, code: int, message: str
) -> None:
    """Misspelt, or of another warehouse."""
    found = ask(load_id)
    assert found[0] == code
    assert message in found[1]["error"]


def test_what_somebody_wrote_by_hand(
    ask: Ask, batch: tuple[Pipeline, Manifest], warehouse18: Database
) -> None:
    """No traceback."""
    warehouse18.run("""UPDATE etl.loads SET report = '{"results": [1]}'""")
    code, data = ask(batch[1].load_id)
    assert code == 1
    assert "no report that this release can read" in data["error"]
