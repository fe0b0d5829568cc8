"""Every core expectation once on PostgreSQL: it holds, it fails, or GX says why it cannot run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
import pytest

from airflow_etl_provider.quality.gallery import OWN_TYPES, read_gallery
from airflow_etl_provider.quality.gx import GreatExpectationsAuditor
from airflow_etl_provider.quality.report import ExpectationResult
from airflow_etl_provider.quality.suite import parse_suite
from tests.integration.quality.gallery import JUDGED, REFUSED, TABLE

# Great Expectations imports modules that Python 3.11 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_")


@pytest.fixture(scope="module")
def outcomes(
    pg: psycopg.Connection, pg_conninfo: dict[str, str]
) -> Mapping[tuple[str, str], ExpectationResult]:
    """One audit of all of them together, by type and by what is expected of it."""
    # Two modules ask for it on one server.
    for name in ("every_type", "every_type_twin", "every_type_half"):
        pg.execute(f"DROP TABLE IF EXISTS etl_staging.{name}")
    pg.execute(TABLE)
    pg.execute("CREATE TABLE etl_staging.every_type_twin AS TABLE etl_staging.every_type")
    pg.execute("CREATE TABLE etl_staging.every_type_half AS SELECT 1 AS id")
    wanted: list[tuple[str, str, Mapping[str, Any]]] = []
    for kind, (holding, failing) in JUDGED.items():
        wanted += [(kind, "holds", holding), (kind, "fails", failing)]
    wanted += [(kind, "refused", kwargs) for kind, (kwargs, _) in REFUSED.items()]
    suite = parse_suite([{"type": kind, "kwargs": kwargs} for kind, _, kwargs in wanted])
    auditor = GreatExpectationsAuditor(pg_conninfo, "etl:gallery")
    report = auditor.audit("etl_staging", "every_type", suite, load_id="1")
    return {
        (kind, outcome): result
        for (kind, outcome, _), result in zip(wanted, report.results, strict=True)
    }


def test_every_type_of_the_gallery_has_a_case() -> None:
    """A type that Great Expectations adds is tried here before anyone may rely on it."""
    assert {*JUDGED, *REFUSED} == set(read_gallery()) - set(OWN_TYPES)


@pytest.mark.parametrize("kind", JUDGED)
def test_type_is_judged(kind: str, outcomes: Mapping[tuple[str, str], ExpectationResult]) -> None:
    """It holds on rows that fit, and fails, without raising, on rows that do not."""
    held, failed = outcomes[kind, "holds"], outcomes[kind, "fails"]
    assert (held.success, held.exception) == (True, None)
    assert (failed.success, failed.exception) == (False, None)


@pytest.mark.parametrize("kind", REFUSED)
def test_type_is_refused_with_its_reason(
    kind: str, outcomes: Mapping[tuple[str, str], ExpectationResult]
) -> None:
    """What Great Expectations cannot run on PostgreSQL fails with the reason it gives."""
    refused = outcomes[kind, "refused"]
    assert not refused.success
    assert refused.exception is not None
    assert REFUSED[kind][1] in refused.exception
