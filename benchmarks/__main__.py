"""Extract and publish against ``psql COPY | psql COPY``, interleaved, as medians and ratios."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, LiteralString

import psycopg

from airflow_etl_provider.postgres.ledger import ensure_ledger
from benchmarks.lineitem import make_source, make_target
from demo.embedded import EmbeddedPostgres

YEAR = ("2024-01-01T00:00:00+00:00", "2025-01-01T00:00:00+00:00")
#: 36.6 of 366 days: a tenth of the rows, found by the index.
TENTH = ("2024-06-01T00:00:00+00:00", "2024-07-07T14:24:00+00:00")
_TENTH_ROWS: LiteralString = (
    "(SELECT * FROM lineitem WHERE updated_at >= '2024-06-01 00:00:00+00'"
    " AND updated_at < '2024-07-07 14:24:00+00')"
)


class Bench:
    """One source and one target database on one server, and what is measured between them."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        for name in ("bench_source", "bench_target"):
            server.create_database(name)
        self.source = server.conninfo("bench_source")
        self.target = server.conninfo("bench_target")

    def prepare(self, rows: int) -> None:
        with psycopg.connect(self.source, autocommit=True) as connection:
            make_source(connection, rows)
        self.reset()

    def reset(self) -> None:
        with psycopg.connect(self.target, autocommit=True) as connection:
            make_target(connection)
            # The first load of a warehouse makes the ledger; all others find it.
            ensure_ledger(connection, label="target")
            connection.execute("CHECKPOINT")

    def pipe(self, table: LiteralString, rows: LiteralString = "lineitem") -> float:
        """Seconds of ``psql COPY rows TO | psql COPY table FROM``, binary."""
        psql = shlex.quote(str(self._server.bin_dir / "psql"))
        copy_out = shlex.quote(f"COPY {rows} TO STDOUT (FORMAT binary)")
        command = (
            f"{psql} -X -q -d {shlex.quote(self.source)} -c {copy_out}"
            f" | {psql} -X -q -d {shlex.quote(self.target)} -c 'COPY {table} FROM STDIN (FORMAT binary)'"
        )
        started = time.perf_counter()
        subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True)
        return time.perf_counter() - started

    def ours(self, *, publish: bool, window: tuple[str, str] = YEAR) -> dict[str, Any]:
        """One load in a fresh process."""
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.once"]
        command += [
            "--source",
            self.source,
            "--target",
            self.target,
            "--low",
            window[0],
            "--high",
            window[1],
        ]
        if publish:
            command.append("--publish")
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
        return result


def median(values: list[float]) -> float:
    return statistics.median(values)


def speed(bench: Bench, rows: int, rounds: int) -> None:
    """Extraction against the pipe into a plain table; extraction and publish into an indexed one."""
    bench.prepare(rows)
    plain, indexed, extracts, wholes, locks = [], [], [], [], []
    for _ in range(rounds):
        bench.reset()
        plain.append(bench.pipe("piped"))
        bench.reset()
        extracts.append(bench.ours(publish=False)["extract_s"])
        bench.reset()
        indexed.append(bench.pipe("piped_indexed"))
        bench.reset()
        load = bench.ours(publish=True)
        wholes.append(load["extract_s"] + load["publish_s"])
        locks.append(load["lock_ms"])
    print(f"\n{rows:,} rows of 16 columns, medians of {rounds} interleaved rounds")
    print(f"  psql pipe into a plain table           {median(plain):7.2f} s   1.00")
    print(
        f"  extract into staging                   {median(extracts):7.2f} s   {median(extracts) / median(plain):.2f}"
    )
    print(f"  psql pipe into an indexed table        {median(indexed):7.2f} s   1.00")
    print(
        f"  extract + publish (indexes, swap)      {median(wholes):7.2f} s   {median(wholes) / median(indexed):.2f}"
    )
    print(
        f"  under lock                             {median(locks):7.1f} ms  (worst {max(locks):.1f})"
    )


def increment(bench: Bench, rounds: int) -> None:
    """A tenth of the rows, by index, against the pipe that selects the same."""
    piped, extracted = [], []
    rows = 0
    for _ in range(rounds):
        bench.reset()
        piped.append(bench.pipe("piped", _TENTH_ROWS))
        bench.reset()
        load = bench.ours(publish=False, window=TENTH)
        extracted.append(load["extract_s"])
        rows = load["rows"]
    print(f"\nan increment of {rows:,} rows by index, medians of {rounds} interleaved rounds")
    print(f"  psql pipe of the same SELECT           {median(piped):7.2f} s   1.00")
    print(
        f"  extract into staging                   {median(extracted):7.2f} s   {median(extracted) / median(piped):.2f}"
    )


def memory(bench: Bench, sizes: list[int]) -> None:
    """Peak memory of the process that extracts, at several sizes."""
    print("\npeak memory of the extracting process")
    for rows in sizes:
        bench.prepare(rows)
        load = bench.ours(publish=False)
        print(
            f"  {rows:>10,} rows   {load['peak_mib']:6.1f} MiB, {load['peak_mib'] - load['idle_mib']:.1f} over idle"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, default=6_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="*", default=[300_000, 3_000_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="etl-bench-") as folder:
        # The server runs under an account of its own, which must be able to enter the folder.
        Path(folder).chmod(0o755)
        settings = {"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}
        with EmbeddedPostgres(Path(folder) / "data", settings=settings) as server:
            bench = Bench(server)
            speed(bench, options.rows, options.rounds)
            increment(bench, options.rounds)
            memory(bench, options.memory)


if __name__ == "__main__":
    main()
