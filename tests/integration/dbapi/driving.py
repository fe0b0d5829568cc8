"""Drives extract from a DB-API source into a real PostgreSQL."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_etl_provider.core.extract import extract
from airflow_etl_provider.core.load import Kind, Manifest
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import Stop
from airflow_etl_provider.core.settle import SettleOptions
from airflow_etl_provider.dbapi.source import DbApiSource
from tests.builders import Pipeline
from tests.conftest import Database

NOW = SettleOptions(delay=timedelta(0))


@dataclass
class DbApiPipeline(Pipeline):
    """As :class:`Pipeline`, with a source that is no PostgreSQL."""

    reads: DbApiSource | None = None

    def extract(
        self,
        low: datetime | None = None,
        high: datetime | None = None,
        *,
        stop: Stop | None = None,
        **request: Any,
    ) -> Manifest:
        assert self.reads is not None
        return extract(
            self.request(low, high, **request),
            source=self.reads,
            area=self.staging(),
            store=self.store,
            now=datetime.now(UTC),
            stop=stop or threading.Event(),
            log=self.log,
        )


def into(
    warehouse: Database, reads: DbApiSource, columns: str, *, cursor: str | None = None, **more: Any
) -> DbApiPipeline:
    """A pipeline into the new table ``a.t`` with *columns*."""
    warehouse.run("CREATE SCHEMA a")
    warehouse.run(f"CREATE TABLE a.t ({columns})")
    return DbApiPipeline(
        warehouse,
        warehouse,
        kind=Kind.SNAPSHOTS if cursor is None else Kind.ENTITIES,
        target=TableName("a", "t"),
        cursor=cursor,
        partition=None,
        reads=reads,
        **more,
    )


def staged(pipe: DbApiPipeline, select: str = "*", order: str = "1", **request: Any) -> list[Any]:
    """Extract, and what then stands in the staged table."""
    manifest = pipe.extract(**request)
    table = manifest.staging
    rows = pipe.warehouse.run(
        f'SELECT {select} FROM {table.schema}."{table.name}" ORDER BY {order}'
    )
    assert len(rows) == manifest.rows
    return rows
