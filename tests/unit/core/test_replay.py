"""Replay, without a database: halves of what the target refuses, and how rows join what their load published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from airflow_etl_provider.core.dead_letters import DeadLimits, listed
from airflow_etl_provider.core.errors import ConfigurationError, DataError
from airflow_etl_provider.core.load import Kind, Manifest, RunInfo, Strategy
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.publish import PublishOptions
from airflow_etl_provider.core.replay import ReplayRequest, Staged, replay, way_back
from airflow_etl_provider.core.window import FULL
from airflow_etl_provider.testing import RecordedEvents

RUN = RunInfo("dag", "replay", "run", "manual", -1, 1, 0)
MANIFEST = Manifest(
    load_id="", stream="t", kind=Kind.ENTITIES, target_conn_id="w", target=TableName("a", "t"),
    staging=TableName("etl_staging", "t"), source_conn_id=None, source=None, source_datasets=(), window=FULL,
    cursor=None, columns=(), keys=(), partition_column=None, partition=None, partitions=(), direct=False,
    moves_watermark=False, rows=0, bytes=0, snapshot_at=datetime(2013, 1, 1, tzinfo=UTC),
)  # fmt: skip


class Area:
    """Letters of one load in memory; the target refuses those that are *refused*."""

    def __init__(self, letters: int, refused: set[int]) -> None:
        self.letters = range(letters)
        self.refused = refused
        self.staged: dict[str, Sequence[int]] = {}
        self.published: list[int] = []
        self.failed: dict[int, str] = {}
        self.publishes = 0

    def pending(self, stream: str, ids: Any) -> Any:
        return [("origin", self.letters)], {}

    def stage(self, request: Any, origin: str, ids: Sequence[int], load_id: str) -> Staged:
        self.staged[load_id] = list(ids)
        manifest = replace(MANIFEST, load_id=load_id, rows=len(ids))
        return Staged(manifest, Strategy.MERGE, PublishOptions())

    def settle(self, manifest: Manifest, found: Any) -> Any:
        return manifest, 0

    def publish(self, manifest: Manifest, staged: Staged, *, stop: Any, log: Any) -> Any:
        self.publishes += 1
        if self.refused.intersection(self.staged[manifest.load_id]):
            raise DataError(f"publishing load {manifest.load_id} into a.t: refused")
        self.published += self.staged[manifest.load_id]
        return type("Published", (), {"strategy": Strategy.MERGE, "rows_stale": 0})

    def give_up(self, manifest: Manifest, reason: str) -> Sequence[int] | None:
        return self.staged.pop(manifest.load_id, None)

    def fail(self, stream: str, ids: Sequence[int], reason: str) -> None:
        self.failed |= dict.fromkeys(ids, reason)


def replayed(area: Area) -> Any:
    numbers = count()
    return replay(
        ReplayRequest("t", RUN),
        area=area,
        audit=lambda manifest: None,  # type: ignore[arg-type,return-value]
        new_id=lambda: str(next(numbers)),
        stop=type("Never", (), {"is_set": lambda self: False})(),
        log=RecordedEvents(),
    )


def test_halves_find_the_row_that_the_target_refuses():
    area = Area(100, {17})
    assert replayed(area).counts() == {
        "replayed": 99,
        "superseded": 0,
        "failed": 1,
        "waiting": 0,
        "refused": 0,
    }
    assert area.failed == {17: "refused"}
    assert sorted(area.published) == [n for n in range(100) if n != 17]
    assert area.publishes < 20


def test_what_refuses_every_row_is_not_asked_for_each():
    """Ten thousand letters for which there is no partition cost a few hundred publishes, not twenty thousand."""
    area = Area(10_000, set(range(10_000)))
    assert replayed(area).failed == 10_000
    assert len(area.failed) == 10_000
    assert area.publishes < 256


@pytest.mark.parametrize(
    ("strategy", "kind", "keys", "expected"),
    [
        (Strategy.SWAP, Kind.EVENTS, (), (Strategy.APPEND, Kind.EVENTS)),
        (Strategy.SWAP, Kind.EVENTS, ("id",), (Strategy.MERGE, Kind.ENTITIES)),
        (Strategy.DELETE_INSERT, Kind.EVENTS, ("id",), (Strategy.MERGE, Kind.ENTITIES)),
        (Strategy.APPEND, Kind.EVENTS, ("id",), (Strategy.APPEND, Kind.EVENTS)),
        (Strategy.REPLACE, Kind.SNAPSHOTS, ("id",), (Strategy.MERGE, Kind.ENTITIES)),
        (Strategy.SCD2, Kind.SNAPSHOTS, ("id",), (Strategy.SCD2, Kind.ENTITIES)),
        (Strategy.SWAP_MERGE, Kind.ENTITIES, ("id",), (Strategy.MERGE, Kind.ENTITIES)),
    ],
)
def test_rows_join_what_their_load_published(strategy, kind, keys, expected):
    """A snapshot of a few rows must not take all others for deleted."""
    assert way_back(strategy, kind, keys) == expected


def test_limits_say_which_of_them_is_broken():
    limits = DeadLimits(0.1, 5)
    assert limits.exceeded(0, 0) is None
    assert limits.exceeded(5, 50) is None
    assert "max_dead_share" in (limits.exceeded(5, 49) or "")
    assert "max_dead_rows" in (limits.exceeded(6, 600) or "")
    assert DeadLimits(1.0).exceeded(7, 7) is None
    assert DeadLimits(0).exceeded(1, 10**9) is not None


@pytest.mark.parametrize(
    "limits", [(1.5, None), (-0.1, None), (True, None), (0.1, -1), (0.1, True)]
)
def test_limits_that_are_none_are_refused(limits):
    with pytest.raises(ConfigurationError, match="max_dead"):
        DeadLimits(*limits)


def test_the_most_frequent_reasons_are_named():
    reasons = {f"column c{n} cannot be converted to date": n for n in range(1, 8)}
    assert listed(reasons).startswith("column c7 cannot be converted to date (7 rows); column c6")
    assert listed(reasons).endswith("; 2 more reasons")
