"""What a server's answers mean, and what each finding advises."""

from __future__ import annotations

import pytest

from airflow_etl_provider.cli.doctor import pooler, settings

GOOD = {
    "check_interval": "1s",
    "deadlock_timeout_ms": 1000,
    "standbys": 0,
    "publications": [],
    "reads_all_stats": True,
    "role": "etl",
    "database": "dwh",
}


def levels(**changes):
    return {check.name: check for check in settings({**GOOD, **changes})}


def test_a_server_that_suits():
    assert {check.level for check in settings(GOOD)} == {"ok"}


@pytest.mark.parametrize(
    ("changes", "name", "level", "said"),
    [
        ({"check_interval": "0"}, "lost clients", "finding", "Linux"),
        ({"deadlock_timeout_ms": 300}, "deadlock_timeout", "finding", "deadlock_timeout = '1s'"),
        ({"deadlock_timeout_ms": 10}, "deadlock_timeout", "finding", "lock_budget"),
        ({"standbys": 2}, "standbys", "note", "delete_insert"),
        ({"publications": ["everything"]}, "publications", "note", "by name"),
        ({"reads_all_stats": False}, "pg_read_all_stats", "note", "GRANT pg_read_all_stats TO etl"),
    ],
)
def test_what_does_not_suit_comes_with_what_to_do(changes, name, level, said):
    """Only what wants a change is a finding; what concerns some is a note."""
    checks = levels(**changes)
    assert checks[name].level == level
    assert said in (checks[name].remedy or "")
    assert {check.level for other, check in checks.items() if other != name} == {"ok"}


def test_one_server_process_is_a_direct_connection():
    assert pooler(False).level == "ok"


def test_several_server_processes_are_a_pooler():
    found = pooler(True)
    assert found.level == "finding"
    assert "directly" in (found.remedy or "")
