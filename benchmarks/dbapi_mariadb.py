"""A real MariaDB for benchmarks and tests, from Debian's ``mariadb-server-core``, under an account without
privileges.
"""

from __future__ import annotations

import grp
import importlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pymysql

from demo.embedded import HOST, free_port

_ACCOUNT = "nobody"
#: Where the server's package keeps the SQL that makes its own tables.
_SHARE = Path("/usr/share/mysql")
_SYSTEM_TABLES = (
    "mysql_system_tables.sql",
    "mysql_performance_tables.sql",
    "mysql_system_tables_data.sql",
)
_PATIENCE = 30


def server_program() -> str | None:
    """The server, if it is installed: it stands in ``/usr/sbin``, which is on few accounts' path."""
    if not all((_SHARE / name).is_file() for name in _SYSTEM_TABLES):
        return None
    return shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@dataclass
class MariaDb:
    """A server that lives in one directory and ends with its process group."""

    folder: Path
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_hex(8))
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> MariaDb:
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            account = pwd.getpwnam(_ACCOUNT)
            for folder in (self.folder, data):
                folder.chmod(0o755)
                os.chown(folder, account.pw_uid, account.pw_gid)
        program = server_program()
        if program is None:
            raise FileNotFoundError("MariaDB is not installed: apt-get install mariadb-server-core")
        script = ["CREATE DATABASE mysql;", "USE mysql;", "SET @auth_root_socket = NULL;"]
        script += [(_SHARE / name).read_text() for name in _SYSTEM_TABLES]
        subprocess.run(
            [program, "--no-defaults", "--bootstrap", f"--datadir={data}"],
            input="\n".join(script).encode(),
            check=True,
            capture_output=True,
            **self._account(),
        )
        log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen(
            [
                program,
                "--no-defaults",
                f"--datadir={data}",
                f"--socket={self.folder / 's'}",
                f"--pid-file={self.folder / 'pid'}",
                f"--port={self.port}",
                f"--bind-address={HOST}",
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-buffer-pool-size=64M",
                "--sql-mode=",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **self._account(),
        )
        log.close()
        give_up = time.monotonic() + _PATIENCE
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > give_up:
                self.stop()
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.05)
        self.run(f"SET PASSWORD FOR root@localhost = PASSWORD('{self.password}')", password="")
        return self

    def stop(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def connect(self, database: str | None = None, password: str | None = None) -> Any:
        return pymysql.connect(
            host=HOST,
            port=self.port,
            user="root",
            password=self.password if password is None else password,
            database=database,
            autocommit=True,
            charset="utf8mb4",
        )

    def run(
        self,
        *statements: str,
        database: str | None = None,
        password: str | None = None,
        values: Any = None,
    ) -> list[Any]:
        connection = self.connect(database, password)
        try:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement, values)
            return list(cursor.fetchall())
        finally:
            connection.close()

    def new_database(self) -> MariaDatabase:
        name = f"shop_{uuid4().hex[:10]}"
        self.run(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return MariaDatabase(self, name)

    def _answers(self) -> bool:
        try:
            self.connect(password="").close()
        except pymysql.err.OperationalError:
            return False
        return True

    def _account(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        account = pwd.getpwnam(_ACCOUNT)
        group = grp.getgrgid(account.pw_gid).gr_name
        return {"user": _ACCOUNT, "group": group, "extra_groups": [], "cwd": "/"}


@dataclass
class MariaDatabase:
    server: MariaDb
    name: str

    def run(self, *statements: str, values: Any = None) -> list[Any]:
        return self.server.run(*statements, database=self.name, values=values)

    def drop(self) -> None:
        self.server.run(f"DROP DATABASE {self.name}")

    def connect_by(self, driver: str) -> Callable[[], Any]:
        """How a hook with this driver would connect."""
        address: dict[str, Any] = {"host": HOST, "port": self.server.port, "user": "root"}
        password = self.server.password
        if driver == "pymysql":
            return lambda: pymysql.connect(password=password, database=self.name, **address)
        if driver == "mysqlclient":
            mysqlclient = importlib.import_module("MySQLdb")
            return lambda: mysqlclient.connect(passwd=password, db=self.name, **address)
        connector = importlib.import_module("mysql.connector")
        return lambda: connector.connect(password=password, database=self.name, **address)
