"""What is crashed: a load by each strategy, into a target that an earlier load has filled."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from airflow_etl_provider.core.dead_letters import DeadLimits, OnConversionError
from airflow_etl_provider.core.load import Kind, Manifest, Strategy
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.core.settle import CursorOrigin, SettleOptions
from airflow_etl_provider.core.transform import OnError
from airflow_etl_provider.operators.validate import QualityValidationOperator
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
#: The source as the next load finds it, should that come first.
CHANGE_SINCE = "UPDATE t SET v = 'since', changed = '2024-03-01Z' WHERE id % 5 = 0"
_COLUMNS = "id int, ts timestamptz NOT NULL, changed timestamptz, v text, gone boolean"
PARTITIONED = (
    f"CREATE SCHEMA a; CREATE TABLE a.t ({_COLUMNS}, PRIMARY KEY (id, ts)) PARTITION BY RANGE (ts)"
)
MONTHS = (
    PARTITIONED
    + "; CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
    "CREATE TABLE a.t_2013_02 PARTITION OF a.t FOR VALUES FROM ('2013-02-01Z') TO ('2013-03-01Z')"
)
#: With a dimension, a DEFAULT partition that holds rows, and an index beside the key.
STAR = (
    PARTITIONED
    + "; CREATE TABLE a.dim (v text PRIMARY KEY); INSERT INTO a.dim VALUES ('first'), ('changed'), ('new'), ('since'),"
    " ('theirs'); ALTER TABLE a.t ADD FOREIGN KEY (v) REFERENCES a.dim; CREATE INDEX ON a.t (v);"
    "CREATE TABLE a.other PARTITION OF a.t DEFAULT; INSERT INTO a.t VALUES (800, '2020-01-01Z', NULL, 'first', false)"
)
#: So many rows, counted, that the keys of a batch are looked up one by one.
FULL = (
    MONTHS
    + "; CREATE TABLE a.t_2013_03 PARTITION OF a.t FOR VALUES FROM ('2013-03-01Z') TO ('2013-04-01Z');"
    "INSERT INTO a.t SELECT i, '2013-03-01Z', NULL, 'first', false FROM generate_series(1001, 2000) AS i; ANALYZE a.t"
)
PLAIN = f"CREATE SCHEMA a; CREATE TABLE a.t ({_COLUMNS}, load_id uuid)"
HISTORY = (
    f"CREATE SCHEMA a; CREATE TABLE a.t ({_COLUMNS}, valid_from timestamptz, valid_to timestamptz)"
)

_ENTITIES: dict[str, Any] = {
    "kind": Kind.ENTITIES, "keys": ("id",), "cursor": "changed", "mode": WindowMode.FULL, "partition": None,
}  # fmt: skip
_OTHER_KEYS = (
    "INSERT INTO a.t (id, ts, changed, v) VALUES (900, '2013-01-25Z', '2024-01-01Z', 'theirs');"
    "UPDATE a.t SET v = 'theirs', changed = '2030-01-01Z' WHERE id = 9"
)
#: The run that every try belongs to, and the load that begins when it is cleared.
RUN = "scheduled__2013"
EXPECTATIONS = [
    {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "ts"}},
    {"type": "expect_column_values_to_be_between", "kwargs": {"column": "id", "min_value": 0}},
]


@dataclass(frozen=True)
class Case:
    """A target, a kind of stream, a window, and how it is published.

    :param others: what somebody else writes meanwhile, which the load must neither lose nor undo.
    :param spared: rows of the target that the load does not write.
    :param suite: what is expected beside what every batch must satisfy.
    :param replay: the values with which rows that were set aside are brought back.
    """

    strategy: Strategy
    target: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    window: tuple[datetime, datetime] | tuple[()] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    others: str | None = None
    spared: str = "false"
    transform: str | Callable[[Any], Any] | None = None
    suite: Sequence[Mapping[str, Any]] = ()
    replay: Mapping[str, str] | None = None

    @property
    def steps(self) -> tuple[str, ...]:
        """The tasks of a load, in order."""
        transform = () if self.transform is None else ("transform",)
        replay = () if self.replay is None else ("replay",)
        return ("extract", *transform, "validate", "publish", *replay)


def without_fives(batch: Any) -> Any:
    """Raises for some rows, which are then set aside."""
    if any(number % 5 == 0 for number in batch["id"].to_pylist()):
        raise ValueError
    return batch


def _writes(update: int, delete: int, insert: str) -> str:
    return (
        f"UPDATE a.t SET v = 'theirs' WHERE id = {update}; DELETE FROM a.t WHERE id = {delete};"
        f"INSERT INTO a.t (id, ts, v) VALUES (900, '{insert}', 'theirs')"
    )


CASES = {
    "swap of one partition": Case(
        Strategy.SWAP, STAR, window=(JANUARY, FEBRUARY),
        others=_writes(45, 46, "2013-02-15Z"), spared="ts >= '2013-02-01Z'",
    ),
    "swap of two partitions": Case(Strategy.SWAP, PARTITIONED, window=(JANUARY, MARCH)),
    "swap_merge of events": Case(
        Strategy.SWAP_MERGE, STAR, window=(datetime(2013, 1, 10, tzinfo=UTC), datetime(2013, 2, 5, tzinfo=UTC)),
        others=_writes(2, 45, "2013-01-05Z"), spared="ts < '2013-01-10Z' OR ts >= '2013-02-05Z'",
    ),
    "swap_merge of entities": Case(
        Strategy.SWAP_MERGE, MONTHS, _ENTITIES, options={"delete_flag": "gone"}, others=_OTHER_KEYS
    ),
    "delete_insert": Case(
        Strategy.DELETE_INSERT, PARTITIONED, window=(JANUARY, datetime(2013, 1, 20, tzinfo=UTC)),
        others=_writes(25, 26, "2013-01-27Z"), spared="ts >= '2013-01-20Z'",
    ),
    "merge": Case(
        Strategy.MERGE, MONTHS, _ENTITIES, options={"delete_flag": "gone"}, others=_OTHER_KEYS, spared="id = 20"
    ),
    "merge into much": Case(
        Strategy.MERGE, FULL, _ENTITIES, options={"delete_flag": "gone"}, others=_OTHER_KEYS, spared="id = 20 OR id > 1000"
    ),
    "append": Case(
        Strategy.APPEND, PLAIN, {"partition": None}, (JANUARY, MARCH), {"load_id_column": "load_id"},
        others="INSERT INTO a.t (id, ts, v) VALUES (900, '2013-01-05Z', 'theirs')",
    ),
    "replace": Case(
        Strategy.REPLACE, PLAIN, {"kind": Kind.SNAPSHOTS, "cursor": None, "partition": None, "keys": ("id",)},
        spared="id = 20",
    ),
    "scd2": Case(
        Strategy.SCD2, HISTORY, _ENTITIES, options={"delete_flag": "gone"}, spared="id = 20",
        others="INSERT INTO a.t (id, ts, v, valid_from) VALUES (900, '2013-01-05Z', 'theirs', '2013-01-05Z')",
    ),
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


def audit_in_advance() -> None:
    """Import what an audit needs, so that the processes that are forked have it."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations  # noqa: F401


def pipeline(name: str, source: str, target: str, store: Path) -> Pipeline:
    case = CASES[name]
    fields: dict[str, Any] = {
        "settle": NOW,
        "partition": PartitionSpec("ts", Every.MONTH, "UTC"),
        "store": FileStore(store),
        "options": {"filled_by_publish": ("load_id", "valid_from", "valid_to")},
    }
    return Pipeline(Remote(source), Remote(target), **fields | dict(case.fields))  # type: ignore[arg-type]


def run_step(order: Mapping[str, Any], pipe: Pipeline) -> Any:
    """One task, as a try of it does it; returns what it hands on."""
    case = CASES[order["case"]]
    if order["step"] == "extract":
        return pipe.extract(
            *case.window, load_id=order["load_id"], run_id=RUN, try_number=order["try"]
        ).as_json()
    if order["step"] == "validate":
        return audited(order)
    if order["step"] == "transform":
        given = (
            {}
            if isinstance(case.transform, str)
            else {"on_error": OnError.SET_ASIDE_ROW, "limits": DeadLimits(0.5), "batch_rows": 20}
        )
        batch = Manifest.from_json(order["manifest"])
        return pipe.transform(batch, case.transform, try_number=order["try"], **given).as_json()  # type: ignore[arg-type]
    if order["step"] == "replay":
        pipe.replay(values=dict(case.replay or {}))
        return order["manifest"]
    options = {"strategy": case.strategy, "max_shrink": 1.0, **case.options}
    pipe.publish(Manifest.from_json(order["manifest"]), **options)
    return order["manifest"]


def audited(order: Mapping[str, Any]) -> Any:
    """The batch after Airflow's own task has audited it, whichever engine that takes."""
    ends = {**conninfo_to_dict(order["target"])}
    connection = {
        "conn_type": "postgres",
        "host": ends.pop("host"),
        "port": int(ends.pop("port")),
        "login": ends.pop("user"),
        "password": ends.pop("password"),
        "schema": ends.pop("dbname"),
        "extra": ends,
    }
    os.environ["AIRFLOW_CONN_WAREHOUSE"] = json.dumps(connection)
    task = QualityValidationOperator(
        task_id="validate",
        batch=order["manifest"],
        expectations=[*EXPECTATIONS, *CASES[order["case"]].suite],
        max_dead_share=1.0,
    )
    ti = SimpleNamespace(
        dag_id="dag", task_id="validate", run_id=RUN, map_index=-1, try_number=order["try"]
    )
    run = SimpleNamespace(run_type="scheduled", clear_number=0)
    return task.execute({"ti": ti, "dag_run": run})  # type: ignore[typeddict-item]
