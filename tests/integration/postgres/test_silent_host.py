"""A host that falls silent, without a word of goodbye: nobody waits for it longer than thirty seconds.

Client and server are hosts of their own, each a network namespace, with a router between them that can
be told to drop what it should forward. A killed process is another matter: its kernel says goodbye.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from uuid6 import uuid7

from airflow_etl_provider.core.errors import ConnectionLost
from airflow_etl_provider.core.names import TableName
from demo.airflow_api import until
from demo.embedded import HOST, EmbeddedPostgres
from tests.builders import FEBRUARY, JANUARY, fill, in_background, simple, wait_until
from tests.conftest import Database
from tests.scratch import scratch

CLIENT = "10.203.1.2"
#: Who falls silent: addresses of source and target, and those of them that are cut off. A client's silence
#: is that of both to it, and its own to both.
CASES = {
    "client": ("10.203.2.11", "10.203.2.12", ("10.203.2.11", "10.203.2.12")),
    "source": ("10.203.2.21", "10.203.2.22", ("10.203.2.21",)),
    "target": ("10.203.2.31", "10.203.2.32", ("10.203.2.32",)),
}
ADDRESSES = tuple(address for source, target, _ in CASES.values() for address in (source, target))
#: The promise is thirty seconds. The assertion leaves room for a busy machine; the time is printed.
PROMISED, ALLOWED = 30.0, 60.0
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_libc = ctypes.CDLL(None, use_errno=True)


def _own_network() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _checked(answer: int) -> None:
    if answer != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Sockets and processes that this thread opens in the block belong to *namespace*."""
    own = _own_network()
    try:
        _checked(_libc.setns(namespace, _NEW_NETWORK))
        yield
    finally:
        _checked(_libc.setns(own, _NEW_NETWORK))
        os.close(own)


@contextmanager
def new_namespace() -> Iterator[int]:
    """A network without a way out; it ends with the block and the processes in it."""
    own = _own_network()
    try:
        _checked(_libc.unshare(_NEW_NETWORK))
        made = _own_network()
        _checked(_libc.setns(own, _NEW_NETWORK))
    finally:
        os.close(own)
    try:
        with inside(made):
            ip("link set lo up")
        yield made
    finally:
        os.close(made)


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@dataclass(frozen=True)
class Network:
    """Client, router and server; :meth:`silence` makes the router drop what concerns one address."""

    client: int
    router: int
    server: int

    def silence(self, address: str) -> None:
        self._rules("add", address)

    def restore(self, address: str) -> None:
        self._rules("del", address)

    def _rules(self, change: str, address: str) -> None:
        with inside(self.router):
            ip(f"rule {change} to {address} blackhole")
            ip(f"rule {change} from {address} blackhole")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """Skipped where namespaces may not be made."""
    with ExitStack() as stack:
        try:
            made = Network(*(stack.enter_context(new_namespace()) for _ in range(3)))
            _connect(made)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield made


def _connect(network: Network) -> None:
    def at(namespace: int) -> str:
        return f"/proc/{os.getpid()}/fd/{namespace}"

    with inside(network.router):
        ip(f"link add client type veth peer name way netns {at(network.client)}")
        ip(f"link add server type veth peer name way netns {at(network.server)}")
        for link, net in (("client", 1), ("server", 2)):
            ip(f"addr add 10.203.{net}.1/24 dev {link}")
            ip(f"link set {link} up")
        # /proc/sys shows the network of the thread that reads it.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for namespace, net, addresses in (
        (network.client, 1, (CLIENT,)),
        (network.server, 2, ADDRESSES),
    ):
        with inside(namespace):
            for address in addresses:
                ip(f"addr add {address}/24 dev way")
            ip("link set way up")
            ip(f"route add default via 10.203.{net}.1")


@pytest.fixture(scope="module")
def remote(network: Network) -> Iterator[EmbeddedPostgres]:
    """A server on the server's host, reached by two addresses; the tests' thread is on that host too."""
    with (
        inside(network.server),
        EmbeddedPostgres(
            scratch("remote") / "data",
            settings={"fsync": "off", "listen_addresses": ",".join((HOST, *ADDRESSES))},
        ) as server,
    ):
        with (server.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {CLIENT}/32 scram-sha-256\n")
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")
        yield server


class Case:
    """A load between two hosts of its own, run on the client's host."""

    def __init__(self, name: str, network: Network, server: EmbeddedPostgres) -> None:
        self.name = name
        self.network = network
        self.load_id = str(uuid7())
        source, target, self.silent = CASES[name]
        databases = []
        for role in ("source", "warehouse"):
            server.create_database(f"{name}_{role}")
            databases.append(Database(server, f"{name}_{role}"))
        self.pipe = simple(*databases, table=TableName("public", "slow"))
        self.pipe.source_role["host"], self.pipe.warehouse_role["host"] = source, target
        fill(self.pipe.source, JANUARY, FEBRUARY, 20_000)
        self.pipe.source.run(
            "CREATE VIEW slow AS SELECT id, ts, CASE WHEN pg_sleep(0.01) IS NOT NULL THEN v END AS v FROM t"
        )
        self.gone: dict[str, float] = {}
        self.ended = 0.0

    def extract(self) -> None:
        with inside(self.network.client):
            try:
                self.pipe.extract(JANUARY, FEBRUARY, load_id=self.load_id)
            finally:
                self.ended = time.monotonic()

    def retry(self) -> None:
        """The same load once more, from a source that ends."""
        self.pipe.table = TableName("public", "t")
        with inside(self.network.client):
            manifest = self.pipe.extract(JANUARY, FEBRUARY, load_id=self.load_id, try_number=2)
            self.pipe.publish(self.pipe.waive(manifest))

    def sessions(self, *, copying: bool = False) -> dict[str, int]:
        """How many sessions the load has in each of its databases."""
        return {
            database.name: database.value(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'etl:test'"
                " AND datname = current_database() AND (NOT %s OR query LIKE 'COPY%%')",
                (copying,),
            )
            for database in (self.pipe.source, self.pipe.warehouse)
        }

    def watch(self, since: float) -> bool:
        """Note which of its databases are rid of it."""
        for name, number in self.sessions().items():
            if number == 0:
                self.gone.setdefault(name, time.monotonic() - since)
        return len(self.gone) == 2


def test_a_host_falls_silent_in_the_middle_of_copy(
    network: Network, remote: EmbeddedPostgres
) -> None:
    """Both ends give up: no backend and no task waits longer, nothing is kept, the retry converges."""
    cases = [Case(name, network, remote) for name in CASES]
    silent = [address for case in cases for address in case.silent]
    with ExitStack() as stack:
        running = [stack.enter_context(in_background(case.extract)) for case in cases]
        for case in cases:
            wait_until(lambda case=case: all(case.sessions(copying=True).values()), "COPY")
        began = time.monotonic()
        for address in silent:
            network.silence(address)
        until(
            lambda: all([case.watch(began) for case in cases] + [r.done() for r in running]),
            2 * ALLOWED,
            "the end of every backend and every client",
            0.2,
        )
    for case in cases:
        gone = ", ".join(f"{name} {after:.1f} s" for name, after in case.gone.items())
        print(f"{case.name} silent: statements gone {gone} (promised {PROMISED:g} s)", end="; ")
        print(f"task ended {case.ended - began:.1f} s")
    for case, extracting in zip(cases, running, strict=True):
        assert isinstance(extracting.exception(), ConnectionLost), extracting.exception()
        assert max(case.gone.values()) < ALLOWED, case.gone
        assert case.pipe.left_in_staging() == set()
        assert case.pipe.rows() == []
    for address in silent:
        network.restore(address)
    for case in cases:
        with in_background(case.retry) as retrying:
            pass
        retrying.result()
        assert case.pipe.rows() == case.pipe.source_rows()
