"""Reads a table of wide rows in a process of its own; prints how many rows, and MiB before and at the peak."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

from airflow_etl_provider.dbapi.generic import Generic
from airflow_etl_provider.dbapi.mysql import MySql
from airflow_etl_provider.dbapi.source import DbApiSource
from airflow_etl_provider.dbapi.sqlite import Sqlite
from airflow_etl_provider.dbapi.statements import Dialect
from tests.unit.dbapi.reading import Null, sending


def peak_mib() -> float:
    """The most memory that this program held; what its parent held before is not in it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("the system does not tell a process's peak memory")


def source_of(kind: str, where: dict[str, Any]) -> DbApiSource:
    if kind == "mysql":
        import pymysql

        flavour: Any = MySql("mysql://here")
        return DbApiSource(lambda: pymysql.connect(**where), flavour, "t", None, "shop")
    flavour = Sqlite() if kind == "sqlite" else Generic(Dialect(), "other://here")
    return DbApiSource(lambda: sqlite3.connect(where["path"]), flavour, "t", None, "shop")


def main() -> None:
    source = source_of(sys.argv[1], json.loads(sys.argv[2]))
    source.describe()
    idle = peak_mib()
    with sending(source, ["n", "v"]) as sender:
        rows = sender.send(Null())
    print(json.dumps({"rows": rows, "idle": idle, "peak": peak_mib()}))


if __name__ == "__main__":
    main()
