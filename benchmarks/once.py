"""One extraction and, if asked, its publish, in a fresh process; prints seconds and peak memory as JSON."""

from __future__ import annotations

import argparse
import json
import resource
import threading
import time
from datetime import UTC, datetime

import uuid6
from psycopg.conninfo import conninfo_to_dict

from airflow_etl_provider.core.extract import extract
from airflow_etl_provider.core.load import Kind, RunInfo
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.core.publish import PublishOptions, publish
from airflow_etl_provider.core.request import ExtractRequest, WindowMode
from airflow_etl_provider.core.window import Interval
from airflow_etl_provider.postgres.audit import PostgresAuditArea
from airflow_etl_provider.postgres.publish import PostgresPublisher
from airflow_etl_provider.postgres.relation import Relation
from airflow_etl_provider.postgres.session import Endpoint
from airflow_etl_provider.postgres.source import PostgresSource
from airflow_etl_provider.postgres.staging import PostgresStaging
from airflow_etl_provider.testing import MemoryWatermarkStore


def peak_mib() -> float:
    """The most memory this process ever held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--low", type=datetime.fromisoformat, required=True)
    parser.add_argument("--high", type=datetime.fromisoformat, required=True)
    parser.add_argument("--every", type=Every, default=Every.YEAR)
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    source = Endpoint(conninfo_to_dict(options.source), "source", "etl:bench")
    target = Endpoint(conninfo_to_dict(options.target), "target", "etl:bench")
    load_id = str(uuid6.uuid7())
    request = ExtractRequest(
        load_id=load_id,
        run=RunInfo("bench", "extract", load_id, "manual", -1, 1, 0),
        stream="lineitem",
        kind=Kind.EVENTS,
        source="public.lineitem",
        source_conn_id="source",
        target=TableName("public", "lineitem"),
        target_conn_id="target",
        cursor="updated_at",
        keys=(),
        mode=WindowMode.INTERVAL,
        interval=Interval(options.low, options.high, "benchmark", moves_watermark=True),
        partition=PartitionSpec("updated_at", options.every),
        timezone="UTC",
        origin=None,
        checksum=False,
        store="variable",
    )
    store, stop = MemoryWatermarkStore(), threading.Event()
    idle = peak_mib()
    started = time.perf_counter()
    manifest = extract(
        request,
        source=PostgresSource(source, Relation(TableName("public", "lineitem"))),
        area=PostgresStaging(target),
        store=store,
        now=datetime.now(UTC),
        stop=stop,
        log=lambda *_, **__: None,
    )
    staged = time.perf_counter()
    result = {"extract_s": staged - started, "rows": manifest.rows, "bytes": manifest.bytes}
    if options.publish:
        PostgresAuditArea(target).waive(load_id, "benchmark")
        with PostgresPublisher(target) as publisher:
            published = publish(
                manifest,
                PublishOptions(),
                run=request.run,
                publisher=publisher,
                store=store,
                stop=stop,
                log=lambda *_, **__: None,
            )
        result["publish_s"] = time.perf_counter() - staged
        result["lock_ms"] = published.lock_ms
    result["idle_mib"] = idle
    result["peak_mib"] = peak_mib()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
