"""PgBouncer between us and the server: by session all works, by transaction it is refused with the way out."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from airflow_etl_provider.cli.main import main
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.postgres.session import connect, connect_for_copy
from demo.embedded import ACCOUNT, EmbeddedPostgres, free_port
from tests.builders import FEBRUARY, JANUARY, fill, simple, wait_until
from tests.conftest import Database, not_run


@dataclass(frozen=True)
class Pooled(Database):
    """A database by way of PgBouncer on *port*."""

    port: int = 0

    @property
    def conninfo(self) -> str:
        return make_conninfo(super().conninfo, port=self.port, sslmode="disable")


@pytest.fixture
def through(server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Any]:
    """``through(database, mode)`` is that database behind a PgBouncer that pools by session or by transaction."""
    program = shutil.which("pgbouncer")
    if program is None:
        not_run("PgBouncer")
        pytest.skip("PgBouncer is not installed")
    started: list[subprocess.Popen[bytes]] = []

    def start(database: Database, mode: str, **settings: Any) -> Pooled:
        port = free_port()
        listing = "".join(f"{name} = {value}\n" for name, value in settings.items())
        server_side = make_conninfo(
            "", host="127.0.0.1", port=server.port, user="postgres", password=server.password
        )
        config = tmp_path / f"{port}.ini"
        config.write_text(
            f"[databases]\n{database.name} = {server_side}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {mode}\n{listing}"
        )
        config.chmod(0o644)
        for folder in (tmp_path, *tmp_path.parents[:3]):
            folder.chmod(folder.stat().st_mode | 0o011)
        # It refuses to be root.
        started.append(
            subprocess.Popen(
                [program, "--quiet", f"--user={ACCOUNT}", str(config)], stderr=subprocess.DEVNULL
            )
        )
        pooled = Pooled(server, database.name, port=port)
        wait_until(lambda: _answers(pooled), "PgBouncer answers")
        return pooled

    yield start
    for process in started:
        process.kill()
        process.wait()


def _answers(pooled: Pooled) -> bool:
    try:
        return bool(pooled.value("SELECT true"))
    except psycopg.OperationalError:
        return False


def of_strangers(pooled: Pooled) -> list[tuple[Any, ...]]:
    """What somebody else's sessions find set, on every process that the pooler has."""
    found = []
    sessions = [pooled.connect() for _ in range(4)]
    for session in sessions:
        session.execute("BEGIN")
        found += session.execute(
            "SELECT current_setting('search_path'), current_setting('statement_timeout'),"
            " current_setting('client_connection_check_interval'), current_setting('IntervalStyle')"
        ).fetchall()
    for session in sessions:
        session.close()
    return sorted(set(found))


def test_by_transaction_neither_end_is_used(source18, warehouse18, through, capsys):
    """extract and publish ask for a direct connection, and leave nothing of theirs to strangers."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 20)
    strangers = of_strangers(Pooled(source18.server, source18.name, port=source18.server.port))
    pooled = {
        "source": through(source18, "transaction"),
        "warehouse": through(warehouse18, "transaction"),
    }
    for end, direct in (("source", source18), ("warehouse", warehouse18)):
        setattr(pipe, end, pooled[end])
        with pytest.raises(ConfigurationError, match="pooler in transaction mode") as caught:
            pipe.extract(JANUARY, FEBRUARY)
        assert "connect to the server itself" in (caught.value.remedy or "")
        setattr(pipe, end, direct)
    assert pipe.left_in_staging() == set()
    manifest = pipe.staged(JANUARY, FEBRUARY)
    pipe.warehouse = pooled["warehouse"]
    with pytest.raises(ConfigurationError, match="pooler in transaction mode"):
        pipe.publish(manifest)
    assert [of_strangers(end) for end in pooled.values()] == [strangers, strangers]
    pipe.warehouse = warehouse18
    assert pipe.state(manifest.load_id) == "validated"
    assert pipe.publish(manifest).rows_inserted == 20
    assert main(["doctor", "--dsn", pooled["warehouse"].conninfo]) == 1
    assert "transaction pooler is in between" in capsys.readouterr().out


@pytest.mark.parametrize("settings", [{"default_pool_size": 1}, {"server_round_robin": 1}])
def test_it_is_recognized_whatever_process_it_hands_out(warehouse18, through, settings):
    """One process for all, or another one every time."""
    pooled = through(warehouse18, "transaction", **settings)
    with pytest.raises(ConfigurationError, match="pooler"), connect(pooled.endpoint()):
        pass
    with (
        pytest.raises(ConfigurationError, match="pooler"),
        connect_for_copy(pooled.endpoint(), read_only=True),
    ):
        pass


def test_by_session_all_works(source18, warehouse18, through, capsys):
    """A session keeps its process: loads, and the ends of what a retry has to end."""
    pipe = simple(source18, warehouse18)
    pipe.source, pipe.warehouse = (through(end, "session") for end in (source18, warehouse18))
    fill(source18, JANUARY, FEBRUARY, 20)
    pipe.load(JANUARY, FEBRUARY)
    source18.run("UPDATE t SET v = 'newer'")
    pipe.load(JANUARY, JANUARY.replace(day=20), options={"strategy": Strategy.SWAP_MERGE})
    assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'newer'") > 0
    assert main(["doctor", "--dsn", pipe.warehouse.conninfo]) == 0
    assert "one server process per connection" in capsys.readouterr().out


def test_a_pool_by_session_that_is_used_up_is_no_pooler_by_transaction(warehouse18, through):
    """With one process for one session there is none to look at it with: it works as it is."""
    pooled = through(warehouse18, "session", default_pool_size=1)
    with connect(pooled.endpoint()) as connection:
        assert connection.execute("SHOW search_path").fetchone() == ("pg_catalog",)
