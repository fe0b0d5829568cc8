"""A hot standby as the source: it shows only its own sessions, so its clock is all that settles a window."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.load import Kind
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.core.settle import CursorOrigin, SettleOptions
from demo.embedded import EmbeddedPostgres
from tests.builders import Pipeline, wait_until
from tests.conftest import Database
from tests.scratch import scratch


@pytest.fixture(scope="module")
def replicated() -> Iterator[tuple[Database, Database]]:
    """The same database on a primary and on its standby."""
    folder = scratch("replicated")
    quick = {"fsync": "off", "log_min_messages": "fatal"}
    with EmbeddedPostgres(folder / "primary", settings=quick) as primary:
        primary.create_database("shop")
        copy = _base_backup(primary, folder / "standby")
        with EmbeddedPostgres(copy, settings=quick) as standby:
            yield Database(primary, "shop"), Database(standby, "shop")


def _base_backup(primary: EmbeddedPostgres, data: Path) -> Path:
    made = data.with_name("copy")
    command = [str(primary.bin_dir / "pg_basebackup"), "-D", str(made / "data"), "-R"]
    command += ["-X", "stream", "--checkpoint=fast", "--no-sync"]
    command += ["-d", make_conninfo(primary.conninfo(), dbname="")]
    made.mkdir()
    made.chmod(0o777)
    subprocess.run(primary._as_account(command), check=True, capture_output=True, cwd=made)
    made.chmod(0o755)
    return made / "data"


def caught_up(primary: Database, standby: Database) -> None:
    at = primary.value("SELECT pg_current_wal_insert_lsn()::text")
    wait_until(
        lambda: standby.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (at,)),
        "the standby follows",
    )


def test_a_standby_is_settled_by_the_clock(
    replicated: tuple[Database, Database], warehouse18: Any
) -> None:
    """What its primary's open transactions hold cannot be seen there: ``transaction`` is refused."""
    primary, standby = replicated
    primary.run(
        "CREATE TABLE t (id int PRIMARY KEY, ts timestamptz NOT NULL DEFAULT now(), v text)"
    )
    primary.run(
        "INSERT INTO t SELECT i, now() - interval '1 h', 'v' FROM generate_series(1, 4000) i"
    )
    primary.run("CREATE INDEX ON t (ts, id); ANALYZE t")
    caught_up(primary, standby)
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, ts timestamptz, v text)"
    )
    pipe = Pipeline(
        standby,
        warehouse18,
        kind=Kind.ENTITIES,
        keys=("id",),
        partition=None,
        mode=WindowMode.WATERMARK,
        settle=SettleOptions(delay=timedelta(minutes=5)),
    )
    with psycopg.connect(primary.conninfo) as late:
        late.execute("INSERT INTO t (id, v) VALUES (5001, 'open on the primary')")
        manifest = pipe.extract(shards=2)
        assert "the server is a standby" in (manifest.settled or "")
        high = datetime.fromisoformat(manifest.window.high or "")
        assert timedelta(minutes=4) < datetime.now(UTC) - high < timedelta(minutes=6)
        late.commit()
    pipe.publish(pipe.waive(manifest))
    caught_up(primary, standby)
    pipe.settle = SettleOptions(delay=timedelta(0))
    pipe.load()
    assert pipe.rows() == pipe.source_rows()
    pipe.settle = SettleOptions(origin=CursorOrigin.TRANSACTION)
    with pytest.raises(ConfigurationError, match="the server is a standby"):
        pipe.extract()
