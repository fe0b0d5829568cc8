"""The audit: ten ordinary checks by our SQL, by hand, by Great Expectations and by Airflow's check operators."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict

from airflow_etl_provider.core.load import Kind, Manifest
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.validate import Engine
from airflow_etl_provider.core.window import FULL
from airflow_etl_provider.postgres.audit import PostgresAuditArea
from airflow_etl_provider.postgres.session import Endpoint
from airflow_etl_provider.quality.engine import audit
from airflow_etl_provider.quality.report import Report
from airflow_etl_provider.quality.suite import Suite, parse_suite
from benchmarks.lineitem import make_source
from demo.embedded import EmbeddedPostgres

STAGED = TableName("etl_staging", "lineitem_1")
_PREPARE: LiteralString = """
    CREATE SCHEMA etl_staging;
    ALTER TABLE lineitem SET SCHEMA etl_staging;
    ALTER TABLE etl_staging.lineitem RENAME TO lineitem_1;
    ALTER TABLE etl_staging.lineitem_1 ALTER quantity DROP NOT NULL, ALTER shipdate DROP NOT NULL,
        ALTER extendedprice DROP NOT NULL;
    CREATE TABLE parts AS SELECT i::bigint AS partkey FROM generate_series(0, 199999) AS i;
    ALTER TABLE parts ADD PRIMARY KEY (partkey);
    VACUUM (FREEZE, ANALYZE);
    CHECKPOINT
"""
_ORPHANS: LiteralString = "NOT EXISTS (SELECT FROM public.parts AS o WHERE o.partkey = t.partkey) AND t.partkey IS NOT NULL"


def _expect(kind: str, **kwargs: Any) -> dict[str, Any]:
    return {"type": f"expect_{kind}", "kwargs": kwargs}


COMMON = [
    _expect("column_values_to_not_be_null", column="quantity"),
    _expect("column_values_to_not_be_null", column="shipdate"),
    _expect("column_values_to_not_be_null", column="extendedprice"),
    _expect("column_values_to_be_in_set", column="returnflag", value_set=["A", "N", "R"]),
    _expect("column_values_to_be_between", column="discount", min_value=0, max_value=0.1),
    _expect("column_values_to_be_between", column="quantity", min_value=1, max_value=50),
    _expect("column_values_to_match_regex", column="shipinstruct", regex="^[A-Z ]+$"),
    _expect("table_row_count_to_be_between", min_value=1),
    _expect("compound_columns_to_be_unique", column_list=["orderkey", "linenumber"]),
]
TEN = [
    *COMMON,
    _expect(
        "column_values_to_be_in_table",
        column="partkey",
        other_table="public.parts",
        other_column="partkey",
    ),
]
#: Great Expectations has no foreign keys.
TEN_FOR_GX = [
    *COMMON,
    {
        "type": "unexpected_rows_expectation",
        "kwargs": {
            "unexpected_rows_query": "SELECT 1 FROM {batch} WHERE partkey IS NOT NULL"
            " AND partkey NOT IN (SELECT partkey FROM public.parts)"
        },
    },
]

_NUMBERS = (
    "orderkey",
    "linenumber",
    "partkey",
    "suppkey",
    "quantity",
    "extendedprice",
    "discount",
    "tax",
)
_TEXTS = ("returnflag", "linestatus", "shipinstruct", "comment")
_DAYS = ("shipdate", "commitdate", "receiptdate")
FIFTY = [
    *[_expect("column_values_to_not_be_null", column=c) for c in (*_NUMBERS, *_TEXTS, *_DAYS, "updated_at")],
    *[_expect("column_values_to_be_between", column=c, min_value=0, max_value=10**9) for c in _NUMBERS],
    *[_expect("column_max_to_be_between", column=c, max_value=10**9) for c in _NUMBERS],
    *[_expect("column_values_to_match_regex", column=c, regex="^[A-Za-z]") for c in _TEXTS],
    *[_expect("column_value_lengths_to_be_between", column=c, min_value=1, max_value=100) for c in _TEXTS],
    *[_expect("column_values_to_be_between", column=c, min_value="2024-01-01", max_value="2025-01-01") for c in _DAYS],
    *[_expect("column_min_to_be_between", column=c, min_value=0) for c in _NUMBERS[:6]],
    _expect("table_row_count_to_be_between", min_value=1),
]  # fmt: skip


def once(conninfo: str, engine: str, which: str) -> dict[str, Any]:
    """One audit in this process: seconds, verdict, and the memory it took."""
    warnings.simplefilter("ignore")
    suite = parse_suite({"ten": TEN, "gx": TEN_FOR_GX, "fifty": FIFTY}[which])
    area = PostgresAuditArea(Endpoint(conninfo_to_dict(conninfo), "warehouse", "etl:bench"))
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    columns = area.columns(STAGED)
    rows = area.count(STAGED)
    started = time.perf_counter()
    if engine == "gx":
        from airflow_etl_provider.quality.gx import import_great_expectations

        import_great_expectations()
    imported = time.perf_counter()
    report = audit(
        suite,
        Engine(engine),
        load_id="benchmark",
        table=str(STAGED),
        by_sql=lambda some: area.judge(STAGED, some, columns, manifest=_manifest(rows)),
        by_gx=lambda rest: _by_gx(area, rest),
    )
    return {
        "verdict": report.verdict,
        "engine": report.engine,
        "import_s": imported - started,
        "seconds": time.perf_counter() - imported,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "idle_mib": idle,
    }


def _by_gx(area: PostgresAuditArea, rest: Suite) -> Report:
    from airflow_etl_provider.quality.gx import GreatExpectationsAuditor

    auditor = GreatExpectationsAuditor(area.endpoint.parameters(), "etl:bench")
    return auditor.audit(STAGED.schema, STAGED.name, rest, load_id="benchmark")


def _manifest(rows: int) -> Manifest:
    """A staged batch that is not a partition yet, as far as an audit looks at it."""
    return Manifest(
        load_id="benchmark", stream="lineitem", kind=Kind.ENTITIES, target_conn_id="target",
        target=TableName("public", "lineitem"), staging=STAGED, source_conn_id=None, source=None, source_datasets=(),
        window=FULL, cursor=None, columns=(), keys=("orderkey", "linenumber"), partition_column=None, partition=None,
        partitions=(), direct=False, moves_watermark=False, rows=rows, bytes=0, snapshot_at=datetime.now(UTC),
    )  # fmt: skip


def by_hand(conninfo: str) -> float:
    """What limits.md calls the best: eight aggregates in one scan, an anti-join, and the index."""
    scan: LiteralString = (
        "SELECT count(*), count(quantity), count(shipdate), count(extendedprice),"
        " count(*) FILTER (WHERE returnflag NOT IN ('A', 'N', 'R')),"
        " count(*) FILTER (WHERE NOT (discount >= 0 AND discount <= 0.1)),"
        " count(*) FILTER (WHERE NOT (quantity >= 1 AND quantity <= 50)),"
        " count(*) FILTER (WHERE shipinstruct !~ '^[A-Z ]+$') FROM etl_staging.lineitem_1"
    )
    statements: list[LiteralString] = [
        scan,
        "SELECT count(*) FROM etl_staging.lineitem_1 AS t WHERE " + _ORPHANS,
        "CREATE UNIQUE INDEX by_hand ON etl_staging.lineitem_1 (orderkey, linenumber)",
    ]
    started = time.perf_counter()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
    return time.perf_counter() - started


def by_airflow(conninfo: str) -> dict[str, Any]:
    """The same ten as ``SQLColumnCheckOperator`` and ``SQLTableCheckOperator``."""
    parameters = conninfo_to_dict(conninfo)
    os.environ["AIRFLOW_CONN_BENCH"] = json.dumps(
        {
            "conn_type": "postgres",
            "host": parameters["host"],
            "port": int(str(parameters["port"])),
            "login": parameters["user"],
            "password": parameters.get("password") or "",
            "schema": parameters["dbname"],
        }
    )
    from airflow.providers.common.sql.operators.sql import (
        SQLColumnCheckOperator,
        SQLTableCheckOperator,
    )

    null, table = {"null_check": {"equal_to": 0}}, f"{STAGED} AS t"
    columns = SQLColumnCheckOperator(
        task_id="columns",
        conn_id="bench",
        table=str(STAGED),
        column_mapping={
            "quantity": {**null, "min": {"geq_to": 1}, "max": {"leq_to": 50}},
            "shipdate": null,
            "extendedprice": null,
            "discount": {"min": {"geq_to": 0}, "max": {"leq_to": 0.1}},
        },
    )
    rows = SQLTableCheckOperator(
        task_id="rows",
        conn_id="bench",
        table=table,
        checks={
            "flags": {"check_statement": "count(CASE WHEN returnflag NOT IN ('A', 'N', 'R') THEN 1 END) = 0"},
            "shape": {"check_statement": "count(CASE WHEN shipinstruct !~ '^[A-Z ]+$' THEN 1 END) = 0"},
            "count": {"check_statement": "count(*) >= 1"},
            "key": {"check_statement": "count(*) = count(DISTINCT (orderkey, linenumber))"},
            "parts": {"check_statement": f"count(CASE WHEN {_ORPHANS} THEN 1 END) = 0"},
        },
    )  # fmt: skip
    started = time.perf_counter()
    columns.execute({})
    rows.execute({})
    return {"seconds": time.perf_counter() - started}


class Bench:
    def __init__(self, server: EmbeddedPostgres) -> None:
        server.create_database("audit")
        self.conninfo = server.conninfo("audit")

    def prepare(self, rows: int) -> None:
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS etl_staging CASCADE")
            connection.execute("DROP TABLE IF EXISTS parts")
            make_source(connection, rows)
            for statement in _PREPARE.split(";"):
                connection.execute(statement)

    def reset(self) -> None:
        """Without what an audit before has built."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            for (name,) in connection.execute(
                "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'etl_staging.lineitem_1'::regclass"
                " AND indisunique"
            ).fetchall():
                connection.execute(f"DROP INDEX {name}")

    def fresh(self, *arguments: str) -> dict[str, Any]:
        """One audit in a fresh process."""
        self.reset()
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.audit",
            "--once",
            self.conninfo,
        ]
        answer = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
        result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
        return result

    def hand(self) -> dict[str, Any]:
        self.reset()
        return {"seconds": by_hand(self.conninfo)}


def speed(bench: Bench, rows: int, rounds: int) -> None:
    bench.prepare(rows)
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "by hand: one scan, an anti-join, the index": bench.hand,
        "engine=sql, ten checks": lambda: bench.fresh("sql", "ten"),
        "engine=sql, fifty checks of 16 columns": lambda: bench.fresh("sql", "fifty"),
        "Airflow's check operators": lambda: bench.fresh("airflow", "ten"),
        "Great Expectations, BASIC": lambda: bench.fresh("gx", "gx"),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    print(f"\n{rows:,} staged rows, medians of {rounds} interleaved rounds")
    base = _median(found["by hand: one scan, an anti-join, the index"])
    for name, results in found.items():
        print(
            f"  {name:<44} {_median(results):7.2f} s   {_median(results) / base:5.2f}x  {_said(results)}"
        )


def memory(bench: Bench, sizes: Sequence[int]) -> None:
    print("\npeak memory of the process that audits by SQL")
    for rows in sizes:
        bench.prepare(rows)
        result = bench.fresh("sql", "ten")
        over = result["peak_mib"] - result["idle_mib"]
        print(f"  {rows:>10,} rows   {result['peak_mib']:6.1f} MiB, {over:.1f} over idle")


def _median(results: list[dict[str, Any]]) -> float:
    return float(statistics.median(result["seconds"] for result in results))


def _said(results: list[dict[str, Any]]) -> str:
    imports = [result.get("import_s", 0.0) for result in results]
    said = f"verdict {results[0]['verdict']}" if "verdict" in results[0] else ""
    return said + (f", import {statistics.median(imports):.1f} s" if max(imports) > 0.1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--rows", type=int, default=6_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="*", default=[300_000, 6_000_000])
    parser.add_argument("--once", nargs=3, metavar=("CONNINFO", "ENGINE", "CHECKS"))
    options = parser.parse_args()
    if options.once:
        conninfo, engine, which = options.once
        found = by_airflow(conninfo) if engine == "airflow" else once(conninfo, engine, which)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(prefix="etl-bench-") as folder:
        Path(folder).chmod(0o755)
        settings = {"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}
        with EmbeddedPostgres(Path(folder) / "data", settings=settings) as server:
            bench = Bench(server)
            speed(bench, options.rows, options.rounds)
            memory(bench, options.memory)


if __name__ == "__main__":
    main()
