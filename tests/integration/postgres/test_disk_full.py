"""A server that runs out of disk or restarts in the middle of COPY: transient, and the retry converges."""

from __future__ import annotations

import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from uuid6 import uuid7

from airflow_etl_provider.core.errors import ConnectionLost, TransientError
from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.core.names import TableName
from demo.embedded import ACCOUNT, EmbeddedPostgres
from tests.builders import (
    FEBRUARY,
    JANUARY,
    MARCH,
    Pipeline,
    fill,
    in_background,
    simple,
    wait_until,
)

#: A database of PostgreSQL's own takes about 8 MB of it.
SMALL, LARGE = "24m", "256m"


@dataclass(frozen=True)
class Disk:
    """A file system of its own, in memory."""

    path: Path

    def resize(self, size: str) -> None:
        _mount("-o", f"remount,size={size}", str(self.path))

    def used(self) -> int:
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Skipped where nothing may be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        owner = pwd.getpwnam(ACCOUNT).pw_uid  # a server that root may have mounted something for
        _mount("-t", "tmpfs", "-o", f"size={SMALL},mode=0700,uid={owner}", "tmpfs", str(path))
    except (OSError, KeyError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here: {getattr(error, 'stderr', error)}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path / "data", settings={"fsync": "off"}) as server:
        yield server


def test_the_disk_of_the_warehouse_is_full(
    disk: Disk, own_server: EmbeddedPostgres, source18
) -> None:
    """The error names server and remedy, the space comes back at once, and the retry needs no cleaning."""
    warehouse = replace(source18, server=own_server, name="warehouse")
    postgres = replace(warehouse, name="postgres")
    postgres.run(f"CREATE TABLESPACE small LOCATION '{disk.path}'")
    postgres.run("CREATE DATABASE warehouse TABLESPACE small")
    pipe = simple(source18, warehouse)
    fill(source18, JANUARY, FEBRUARY, 40_000)
    source18.run("UPDATE t SET v = v || repeat('x', 1000)")
    load_id = str(uuid7())
    pipe.staging().bind(pipe.request(JANUARY, FEBRUARY, load_id=load_id))
    empty = disk.used()
    with pytest.raises(TransientError) as caught:
        pipe.extract(JANUARY, FEBRUARY, load_id=load_id)
    assert caught.value.sqlstate == "53100"
    assert "disk is full" in caught.value.what
    assert f"database warehouse on 127.0.0.1:{own_server.port}" in caught.value.what
    assert "free disk space" in (caught.value.remedy or "")
    assert pipe.left_in_staging() == set()
    assert pipe.rows() == []
    assert pipe.state(load_id) == "failed"
    wait_until(lambda: disk.used() < empty + 1_000_000, "the space is free again")

    disk.resize(LARGE)
    manifest = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize("strategy", [Strategy.SWAP_MERGE, Strategy.SWAP])
def test_the_disk_is_full_while_partitions_are_built(
    disk: Disk, own_server: EmbeddedPostgres, source18, strategy: Strategy
) -> None:
    """Readers keep what they had, and the retry publishes."""
    warehouse = replace(source18, server=own_server, name="warehouse")
    postgres = replace(warehouse, name="postgres")
    disk.resize(LARGE)
    postgres.run(f"CREATE TABLESPACE small LOCATION '{disk.path}'")
    postgres.run("CREATE DATABASE warehouse TABLESPACE small")
    pipe = simple(source18, warehouse)
    fill(source18, JANUARY, MARCH, 12_000)
    source18.run("UPDATE t SET v = repeat(v, 100)")
    pipe.load(JANUARY, FEBRUARY)
    pipe.load(FEBRUARY, MARCH)
    source18.run("UPDATE t SET v = 'newer' WHERE id % 3000 = 0 OR id = 1")
    # A window that is made of two partitions is filled from its batch; one of a part of a partition is built.
    window = (
        (JANUARY, MARCH) if strategy is Strategy.SWAP else (JANUARY, JANUARY + timedelta(days=2))
    )
    manifest = pipe.staged(*window)
    postgres.run("CHECKPOINT")
    disk.resize(f"{(disk.used() >> 20) + 3}m")
    before = pipe.picture()
    with pytest.raises(TransientError) as caught:
        pipe.publish(manifest, strategy=strategy)
    assert caught.value.sqlstate == "53100"
    assert "free disk space" in (caught.value.remedy or "")
    assert pipe.picture() == before
    assert pipe.state(manifest.load_id) == "validated"

    disk.resize(LARGE)
    pipe.publish(manifest, strategy=strategy)
    assert warehouse.value("SELECT count(*) FROM a.t") == 12_000
    assert warehouse.value("SELECT count(*) FROM a.t WHERE v = 'newer'") == source18.value(
        "SELECT count(*) FROM t WHERE v = 'newer' AND ts < %s", (window[1],)
    )


@pytest.mark.parametrize("strategy", [Strategy.SWAP_MERGE, Strategy.DELETE_INSERT])
def test_the_disk_of_the_log_is_full(
    disk: Disk, own_server: EmbeddedPostgres, source18, strategy: Strategy
) -> None:
    """The server panics: the publish is transient, and when there is space again its retry publishes."""
    own_server.create_database("warehouse")
    warehouse = replace(source18, server=own_server, name="warehouse")
    pipe = simple(source18, warehouse)
    fill(source18, JANUARY, FEBRUARY, 20_000)
    source18.run(
        "UPDATE t SET v = (SELECT string_agg(md5(id::text || i), '') FROM generate_series(1, 40) AS i)"
    )
    pipe.load(JANUARY, FEBRUARY)
    source18.run("UPDATE t SET v = v || 'newer'")
    manifest = pipe.staged(JANUARY, JANUARY + timedelta(days=25))
    warehouse.run("CHECKPOINT")
    segment = warehouse.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
    own_server.stop("fast")
    log = own_server.data / "pg_wal"
    disk.resize(LARGE)
    for file in log.glob("0*"):
        # Those to come are spare.
        if file.name <= segment:
            subprocess.run(["cp", "-a", str(file), str(disk.path)], check=True)
    subprocess.run(["cp", "-a", str(log / "archive_status"), str(disk.path)], check=True)
    shutil.rmtree(log)
    log.symlink_to(disk.path)
    own_server.start()
    disk.resize(f"{(disk.used() >> 20) + 1}m")
    with pytest.raises(TransientError):
        pipe.publish(manifest, strategy=strategy)
    disk.resize(LARGE)
    own_server.stop("immediate")
    own_server.start()
    assert pipe.state(manifest.load_id) == "validated"
    assert warehouse.value("SELECT count(*) FROM a.t WHERE v LIKE '%newer'") == 0
    pipe.publish(manifest, strategy=strategy)
    assert warehouse.value("SELECT count(*) FROM a.t WHERE v LIKE '%newer'") == manifest.rows
    assert warehouse.value("SELECT count(*) FROM a.t") == 20_000


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_the_warehouse_restarts_in_the_middle_of_copy(
    own_server: EmbeddedPostgres, source18, mode: str
) -> None:
    """The source's statement ends with it; the restarted server has nothing of the first try."""
    own_server.create_database("warehouse")
    warehouse = replace(source18, server=own_server, name="warehouse")
    _restart_in_copy(simple(source18, warehouse), lambda: own_server.stop(mode), own_server)


def test_the_source_restarts_in_the_middle_of_copy(
    own_server: EmbeddedPostgres, warehouse18
) -> None:
    """An orderly restart; tests of killed tries have the crash."""
    own_server.create_database("source")
    source = replace(warehouse18, server=own_server, name="source")
    _restart_in_copy(simple(source, warehouse18), lambda: own_server.stop("fast"), own_server)


def _restart_in_copy(pipe: Pipeline, stop: Callable[[], None], server: EmbeddedPostgres) -> None:
    fill(pipe.source, JANUARY, FEBRUARY, 20_000)
    pipe.source.run(
        "CREATE VIEW slow AS SELECT id, ts, CASE WHEN pg_sleep(0.01) IS NOT NULL THEN v END AS v FROM t"
    )
    pipe.table = TableName("public", "slow")
    load_id = str(uuid7())
    with in_background(lambda: pipe.extract(JANUARY, FEBRUARY, load_id=load_id)) as extracting:
        for database in (pipe.source, pipe.warehouse):
            wait_until(lambda database=database: _copies(database), f"COPY on {database.name}")
        stop()
        wait_until(extracting.done, "the end of one server ends the load")
    assert isinstance(extracting.exception(), ConnectionLost), extracting.exception()
    server.start()
    for database in (pipe.source, pipe.warehouse):
        wait_until(lambda database=database: not _copies(database), f"no COPY on {database.name}")
    assert pipe.left_in_staging() == set()
    assert pipe.rows() == []
    pipe.table = TableName("public", "t")
    manifest = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()


def _copies(database) -> bool:
    return database.value(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'etl:test' AND query LIKE 'COPY%'"
        " AND datname = current_database()"
    )
