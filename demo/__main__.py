"""``python -m demo``: the demonstration, its user interface, and the steps they are made of."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from demo import compose_env, flights, scenario

REPOSITORY = Path(__file__).resolve().parent.parent


def parser() -> argparse.ArgumentParser:
    """Every command with its options; ``command`` in the result is the function to call."""
    top = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    commands = top.add_subparsers(required=True)

    def command(
        name: str, function: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(command=function)
        return made

    for made in (
        command("run", _run, "load a year of flights, then prove that nothing was lost"),
        command("ui", _ui, "the same, and leave everything running until Ctrl-C"),
    ):
        made.add_argument("--home", type=Path, default=REPOSITORY / ".demo", help="state directory")
        made.add_argument("--dags", type=Path, default=REPOSITORY / "dags", help="DAG files")
        made.add_argument("--port", type=int, default=None, help="port of Airflow's UI and API")
    for made in (
        command("load-source", _load_source, "load the flights of 2013 into a source database"),
        command("prepare-warehouse", _prepare_warehouse, "make the warehouse's empty tables"),
    ):
        made.add_argument("--dsn", required=True, help="libpq connection string or URL")
    made = command("compose-env", _compose_env, "draw the secrets that docker compose needs")
    made.add_argument("--file", type=Path, default=REPOSITORY / ".env", help="kept if it exists")
    return top


def _run(options: argparse.Namespace) -> int:
    return _told(lambda: scenario.run(options.home, options.dags, options.port))


def _ui(options: argparse.Namespace) -> int:
    return _told(lambda: scenario.serve(options.home, options.dags, options.port))


def _load_source(options: argparse.Namespace) -> int:
    for table, rows in flights.load_source(options.dsn).items():
        print(f"{table}: {rows:,} rows")
    return 0


def _prepare_warehouse(options: argparse.Namespace) -> int:
    flights.prepare_warehouse(options.dsn)
    print(f"schema {flights.WAREHOUSE_SCHEMA} is ready")
    return 0


def _compose_env(options: argparse.Namespace) -> int:
    written = compose_env.write(options.file)
    print(f"{options.file} {'written' if written else 'kept'}")
    return 0


def _told(story: Callable[[], int]) -> int:
    """Run *story*; what it cannot do is one sentence for the reader, not a stack trace."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        return story()
    except scenario.FAILURES as error:
        print(f"the demo could not go on: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _leave(number: int, _frame: FrameType | None) -> None:
    """End by an exception, so that everything started is stopped on the way out."""
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and answer its exit code."""
    options = parser().parse_args(arguments)
    code: int = options.command(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
