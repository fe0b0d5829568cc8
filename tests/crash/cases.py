"""What is crashed: a load by each strategy, into a target that an earlier load has filled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from airflow_etl_provider.core.dead_letters import OnConversionError
from airflow_etl_provider.core.load import Kind, Manifest, Strategy
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.core.settle import CursorOrigin, SettleOptions
from airflow_etl_provider.core.transform import DeadLimit, OnError
from airflow_etl_provider.postgres.session import Endpoint
from airflow_etl_provider.testing import MemoryWatermarkStore
from tests.builders import EVERY_ROW, FEBRUARY, JANUARY, MARCH, Pipeline

NOW = SettleOptions(origin=CursorOrigin.APPLICATION, delay=timedelta(0), margin=timedelta(0))
SOURCE = """
    CREATE TABLE t (id int PRIMARY KEY, ts timestamptz NOT NULL, changed timestamptz NOT NULL, v text, gone boolean);
    INSERT INTO t SELECT i, timestamptz '2013-01-01Z' + i * interval '1 day', '2024-01-01Z', 'first', false
    FROM generate_series(0, 57) AS i
"""
#: The source as the load that is crashed finds it.
CHANGE = """
    UPDATE t SET v = 'changed', changed = '2024-02-01Z' WHERE id % 3 = 0;
    UPDATE t SET gone = true, changed = '2024-02-01Z' WHERE id IN (4, 40);
    INSERT INTO t VALUES (100, '2013-01-20Z', '2024-02-01Z', 'new', false)
"""
_COLUMNS = "id int, ts timestamptz NOT NULL, changed timestamptz, v text, gone boolean"
PARTITIONED = (
    f"CREATE SCHEMA a; CREATE TABLE a.t ({_COLUMNS}, PRIMARY KEY (id, ts)) PARTITION BY RANGE (ts)"
)
MONTHS = (
    PARTITIONED
    + "; CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
    "CREATE TABLE a.t_2013_02 PARTITION OF a.t FOR VALUES FROM ('2013-02-01Z') TO ('2013-03-01Z')"
)
PLAIN = f"CREATE SCHEMA a; CREATE TABLE a.t ({_COLUMNS}, load_id uuid)"
HISTORY = (
    f"CREATE SCHEMA a; CREATE TABLE a.t ({_COLUMNS}, valid_from timestamptz, valid_to timestamptz)"
)

_ENTITIES: dict[str, Any] = {
    "kind": Kind.ENTITIES, "keys": ("id",), "cursor": "changed", "mode": WindowMode.FULL, "partition": None,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A target, a kind of stream, a window, and how it is published."""

    strategy: Strategy
    target: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    window: tuple[datetime, datetime] | tuple[()] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    transform: str | Callable[[Any], Any] | None = None
    suite: Sequence[dict[str, Any]] = ()
    replay: Mapping[str, str] | None = None


def without_fives(batch: Any) -> Any:
    """Raises for some rows, which are then set aside."""
    if any(number % 5 == 0 for number in batch["id"].to_pylist()):
        raise ValueError
    return batch


CASES = {
    "swap of one partition": Case(Strategy.SWAP, PARTITIONED, window=(JANUARY, FEBRUARY)),
    "swap of two partitions": Case(Strategy.SWAP, PARTITIONED, window=(JANUARY, MARCH)),
    "swap_merge of events": Case(
        Strategy.SWAP_MERGE, PARTITIONED, window=(datetime(2013, 1, 10, tzinfo=UTC), datetime(2013, 2, 5, tzinfo=UTC))
    ),
    "swap_merge of entities": Case(Strategy.SWAP_MERGE, MONTHS, _ENTITIES, options={"delete_flag": "gone"}),
    "delete_insert": Case(Strategy.DELETE_INSERT, PARTITIONED, window=(JANUARY, datetime(2013, 1, 20, tzinfo=UTC))),
    "merge": Case(Strategy.MERGE, MONTHS, _ENTITIES, options={"delete_flag": "gone"}),
    "append": Case(
        Strategy.APPEND, PLAIN, {"partition": None}, (JANUARY, MARCH), {"load_id_column": "load_id"}
    ),
    "replace": Case(Strategy.REPLACE, PLAIN, {"kind": Kind.SNAPSHOTS, "cursor": None, "partition": None, "keys": ("id",)}),
    "scd2": Case(Strategy.SCD2, HISTORY, _ENTITIES, options={"delete_flag": "gone"}),
    "transform by SQL": Case(
        Strategy.SWAP, PARTITIONED, window=(JANUARY, FEBRUARY),
        transform="SELECT id, ts, changed, upper(v) AS v, gone FROM batch WHERE id % 5 > 0",
    ),
    "transform by a callable": Case(Strategy.SWAP, PARTITIONED, window=(JANUARY, MARCH), transform=without_fives),
    "rows set aside and replayed": Case(
        Strategy.SWAP, PARTITIONED.replace("v text", "v varchar(5)"),
        {"options": {"on_conversion_error": OnConversionError.QUARANTINE, "dead_limits": EVERY_ROW}},
        (JANUARY, MARCH),
        suite=[{"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "gone", "value_set": [False]},
                "on_fail": "quarantine"}],
        replay={"v": "fit", "gone": "f"},
    ),
}  # fmt: skip


class FileStore(MemoryWatermarkStore):
    """A watermark store that outlives the process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if path.exists():
            self.texts = json.loads(path.read_text())

    def write(self, watermark: Any) -> None:
        super().write(watermark)
        aside = self._path.with_suffix(".new")
        aside.write_text(json.dumps(self.texts))
        aside.replace(self._path)


@dataclass(frozen=True)
class Remote:
    """A database as a pipeline needs it."""

    conninfo: str

    def endpoint(self, application: str, **_: str) -> Endpoint:
        return Endpoint(conninfo_to_dict(self.conninfo), "database", application)


def pipeline(name: str, source: str, target: str, store: Path) -> Pipeline:
    case = CASES[name]
    fields: dict[str, Any] = {
        "settle": NOW,
        "partition": PartitionSpec("ts", Every.MONTH, "UTC"),
        "store": FileStore(store),
        "options": {"filled_by_publish": ("load_id", "valid_from", "valid_to")},
    }
    return Pipeline(Remote(source), Remote(target), **fields | dict(case.fields))  # type: ignore[arg-type]


def run_step(
    step: str, name: str, load_id: str, pipe: Pipeline, manifest: Any, try_number: int
) -> Any:
    """One task, as a try of it does it; returns what it hands on."""
    case = CASES[name]
    if step == "extract":
        return pipe.extract(*case.window, load_id=load_id).as_json()
    batch = Manifest.from_json(manifest)
    if step == "transform":
        if case.transform is None:
            return manifest
        given = (
            {}
            if isinstance(case.transform, str)
            else {"on_error": OnError.SET_ASIDE_ROW, "limit": DeadLimit(0.5), "batch_rows": 20}
        )
        return pipe.transform(batch, case.transform, try_number=try_number, **given).as_json()
    if step == "validate" and case.suite:
        return pipe.audit(batch, case.suite).as_json()
    if step == "validate":
        return pipe.waive(batch).as_json()
    if step == "replay":
        if case.replay is not None:
            pipe.replay(values=dict(case.replay))
        return manifest
    options = {"strategy": case.strategy, "max_shrink": 1.0, **case.options}
    pipe.publish(batch, **options)
    return manifest
