"""Memory is bounded by the size of rows, not by their number."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="the system does not tell a process's peak memory",
)

ROOT = Path(__file__).parents[3]
#: Rows that teach a reader to fetch many, and then rows of a MiB.
NARROW, WIDE, MIB = 3000, 200, 1024 * 1024
ALLOWED_MIB = 64


def measured(kind, **where):
    answer = subprocess.run(
        [sys.executable, "-m", "tests.integration.dbapi.wide_rows", kind, json.dumps(where)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(answer.stdout)


def within(found):
    assert found["rows"] == NARROW + WIDE
    over = found["peak"] - found["idle"]
    print(f"{over:.1f} MiB over idle")
    assert over < ALLOWED_MIB


@pytest.mark.parametrize("kind", ["sqlite", "generic"])
def test_wide_rows_of_sqlite(tmp_path, kind):
    path = tmp_path / "shop.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (n INTEGER, v TEXT)")
    rows = [(n, "narrow") for n in range(NARROW)]
    connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    wide = "x" * (MIB - 1) + "\\"
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(n, wide) for n in range(WIDE)])
    connection.commit()
    connection.close()
    within(measured(kind, path=str(path)))


@pytest.mark.parametrize("type_", ["longtext", "mediumtext", "longblob"])
def test_wide_rows_of_mariadb(maria, type_):
    maria.run(
        f"CREATE TABLE t (n int, v {type_})",
        f"INSERT INTO t SELECT seq, 'narrow' FROM seq_1_to_{NARROW}",
        f"INSERT INTO t SELECT seq, REPEAT('x', {MIB}) FROM seq_1_to_{WIDE}",
    )
    server = maria.server
    address = {"host": "127.0.0.1", "port": server.port, "user": "root"}
    within(measured("mysql", **address, password=server.password, database=maria.name))
