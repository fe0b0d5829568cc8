"""``airflow-etl``: arguments in, an answer and an exit code out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from datetime import timedelta
from uuid import UUID

from airflow_etl_provider.cli import (
    dead_letters,
    doctor,
    lint,
    maintenance,
    report,
    streams,
    watermark,
)
from airflow_etl_provider.cli.answer import FINDING, USAGE, Answer, UsageError
from airflow_etl_provider.core.dead_letters import LetterStatus
from airflow_etl_provider.core.errors import EtlError
from airflow_etl_provider.core.partition import Every

Command = Callable[[argparse.Namespace], Answer]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0 all is well, 1 there is a finding or an error, 2 it was not written correctly.

    Standard output carries the answer and nothing else, with ``--json`` one JSON document; whatever
    libraries print goes to standard error.
    """
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    try:
        with redirect_stdout(sys.stderr):
            answer = command(arguments)
    except UsageError as error:
        return _failed(arguments, str(error), None, USAGE)
    except EtlError as error:
        return _failed(arguments, error.what, error.remedy, FINDING)
    except KeyboardInterrupt:
        return _failed(
            arguments, "interrupted", "airflow-etl status shows where things stand", FINDING
        )
    print(answer.shown(as_json=arguments.json))
    return answer.code


def _failed(arguments: argparse.Namespace, what: str, remedy: str | None, code: int) -> int:
    if arguments.json:
        print(json.dumps({"error": what, "remedy": remedy}))
    else:
        print(f"airflow-etl: {what}", file=sys.stderr)
        if remedy is not None:
            print(f"what to do: {remedy}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="airflow-etl",
        description="Streams of airflow-etl-provider: where they stand, and how to move them.",
        epilog="exit codes: 0 all is well, 1 a finding or an error, 2 wrong usage",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    database = _database()
    _add(commands, "status", streams.status, "every stream, one line each", database)
    shown = _add(commands, "coverage", streams.coverage, "published windows and gaps", database)
    _stream(shown)
    shown = _add(commands, "loads", streams.loads, "the last loads of a stream", database)
    _stream(shown)
    _limit(shown, 20)
    audit = _add(commands, "report", report.report, "what the audit of a load found", database)
    audit.add_argument("load_id", metavar="LOAD_ID")
    audit.add_argument(
        "--html",
        metavar="FILE|DIR",
        help="write it as a page of Great Expectations' Data Docs, into a file or, named like the load, a folder",
    )
    _add(
        commands, "doctor", doctor.doctor, "whether the server suits, and what to change", database
    )
    checked = _add(commands, "lint", lint.lint, "mistakes in pipeline files, with file and line")
    checked.add_argument("folder", metavar="FOLDER")
    cleaned = _add(
        commands, "clean", maintenance.clean, "drop staged tables and old versions", database
    )
    cleaned.add_argument("--dry-run", action="store_true", help="only say what would go")
    cleaned.add_argument(
        "--keep-failed",
        type=_days,
        default=timedelta(days=7),
        metavar="DAYS",
        help="staged tables of rejected and failed loads (7)",
    )
    cleaned.add_argument(
        "--keep-unfinished",
        type=_days,
        default=timedelta(days=30),
        metavar="DAYS",
        help="staged tables of loads that nobody goes on with (30)",
    )
    cleaned.add_argument(
        "--keep-versions",
        type=_number,
        metavar="N",
        help="versions per partition (as the last publish was told)",
    )
    cleaned.add_argument(
        "--keep-previous",
        type=_days,
        metavar="DAYS",
        help="how long versions stay at most (as the last publish was told)",
    )
    cleaned.add_argument(
        "--keep-bytes", type=_number, metavar="BYTES", help="what all versions may take on disk"
    )
    kept = _add(
        commands, "maintain", maintenance.maintain, "partitions ahead, old ones, ANALYZE", database
    )
    kept.add_argument("table", metavar="TABLE")
    kept.add_argument("--column", metavar="COLUMN", help="the partition column, with --every")
    kept.add_argument(
        "--every", type=Every, choices=list(Every), help="how long a partition is, for --ahead"
    )
    kept.add_argument("--timezone", default="UTC", metavar="ZONE", help="in which it begins (UTC)")
    kept.add_argument(
        "--ahead", type=_number, default=0, metavar="N", help="partitions to come (0)"
    )
    kept.add_argument("--keep", type=_days, metavar="DAYS", help="retire what lies further back")
    kept.add_argument(
        "--keep-partitions", type=_count, metavar="N", help="so many of the newest stay"
    )
    kept.add_argument(
        "--keep-detached",
        type=_days,
        default=timedelta(days=7),
        metavar="DAYS",
        help="how long retired ones can be restored (7)",
    )
    kept.add_argument("--dry-run", action="store_true", help="only say what would be done")
    back = _add(commands, "restore", maintenance.restore, "a retired partition", database)
    back.add_argument("partition", metavar="PARTITION")
    back.add_argument("--yes", action="store_true", help="do not ask")
    back = _add(commands, "rollback", maintenance.rollback, "take a published swap back", database)
    back.add_argument("load_id", metavar="LOAD_ID")
    back.add_argument(
        "--move-watermark",
        action="store_true",
        help="also set the position back to where the load's window begins",
    )
    back.add_argument(
        "--discard-changes",
        action="store_true",
        help="even if others have written into its partitions since",
    )
    _asked(back)
    _dead_letters(commands, database)
    group = commands.add_parser("watermark", help="show, rewind, reset or repair a watermark")
    moves = group.add_subparsers(title="commands", required=True, metavar="COMMAND")
    shown = _add(moves, "show", streams.show, "position, fence, and the last moves", database)
    _stream(shown)
    _limit(shown, 10)
    back = _add(moves, "rewind", watermark.move, "load again from a value on", database)
    _stream(back)
    back.add_argument(
        "--to",
        required=True,
        metavar="VALUE",
        help="the new position, of the cursor's type: rows from it on are loaded again",
    )
    back.add_argument(
        "--allow-forward", action="store_true", help="also skip rows: VALUE may lie ahead"
    )
    _reasoned(back)
    reset = _add(moves, "reset", watermark.move, "as if the stream had never loaded", database)
    _stream(reset)
    _reasoned(reset)
    reset.set_defaults(to=None, allow_forward=False)
    repaired = _add(
        moves, "repair", watermark.repair, "write the Variable anew from the ledger", database
    )
    _stream(repaired)
    _api(repaired)
    return parser


def _dead_letters(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    database: argparse.ArgumentParser,
) -> None:
    group = commands.add_parser("dead-letters", help="list, show, replay or discard set-aside rows")
    letters = group.add_subparsers(title="commands", required=True, metavar="COMMAND")
    found = _add(letters, "list", dead_letters.list_letters, "which rows wait, and why", database)
    found.add_argument("stream", metavar="STREAM", nargs="?", help="one stream; all by default")
    found.add_argument("--load", type=_load, metavar="LOAD_ID", help="only those of one load")
    found.add_argument(
        "--status",
        action="append",
        choices=[status.value for status in LetterStatus],
        help="pending by default; may be given several times",
    )
    _limit(found, 50)
    shown = _add(letters, "show", dead_letters.show, "one letter, with its row", database)
    shown.add_argument("id", metavar="ID", type=_count)
    back = _add(letters, "replay", dead_letters.replay, "bring rows back, mended", database)
    _stream(back)
    _ids(back)
    back.add_argument("--all", action="store_true", help="all that are pending")
    back.add_argument(
        "--set",
        action="append",
        type=_assignment,
        metavar="COLUMN=VALUE",
        help="what a column is to hold, in every row",
    )
    back.add_argument(
        "--set-null", action="append", metavar="COLUMN", help="a column that is to be NULL"
    )
    back.add_argument(
        "--corrections",
        metavar="FILE",
        help='JSON: {"7": {"column": "value"}}, or what `show --json` prints, edited',
    )
    back.add_argument(
        "--suite",
        metavar="FILE",
        help="what rows must satisfy; default: what the stream's newest audit has judged",
    )
    back.add_argument("--yes", action="store_true", help="do not ask")
    gone = _add(letters, "discard", dead_letters.discard, "give rows up, with a reason", database)
    _ids(gone)
    gone.add_argument("--stream", metavar="STREAM", help="with --load or --all instead of --id")
    gone.add_argument("--load", type=_load, metavar="LOAD_ID", help="those of one load")
    gone.add_argument("--all", action="store_true", help="all that are pending")
    _asked(gone)


def _database() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = options.add_argument_group("warehouse")
    one = group.add_mutually_exclusive_group(required=True)
    one.add_argument(
        "--dsn",
        help="libpq connection string; leave the password to PGPASSWORD or ~/.pgpass, since others see "
        "the command line",
    )
    one.add_argument("--service", metavar="NAME", help="entry of pg_service.conf")
    one.add_argument(
        "--conn-id", metavar="ID", help="Airflow connection, on a machine with Airflow"
    )
    return options


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Command,
    text: str,
    *parents: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=command.__doc__, parents=parents, allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="answer as JSON")
    parser.set_defaults(command=command)
    return parser


def _stream(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stream", metavar="STREAM")


def _ids(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--id", action="append", type=_count, metavar="ID", help="may be given several times"
    )


def _load(text: str) -> str:
    """The id of a load."""
    try:
        return str(UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not the id of a load") from None


def _assignment(text: str) -> tuple[str, str]:
    """A column and its value."""
    column, equals, value = text.partition("=")
    if not column or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not COLUMN=VALUE")
    return column, value


def _limit(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument("--limit", type=_count, default=default, metavar="N", help="how many")


def _count(text: str) -> int:
    """A whole number above zero."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return int(text)


def _number(text: str) -> int:
    """A whole number from zero on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from zero on")
    return int(text)


def _days(text: str) -> timedelta:
    """So many days, or parts of one."""
    try:
        length = timedelta(days=float(text))
    except (ValueError, OverflowError):
        length = timedelta(-1)
    if length < timedelta(0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")
    return length


def _reasoned(parser: argparse.ArgumentParser) -> None:
    _asked(parser)
    _api(parser)


def _asked(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", required=True, help="recorded in the ledger")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _api(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--api-url",
        metavar="URL",
        help="Airflow's address, to write the Variable there; token from AIRFLOW_API_TOKEN",
    )


def run() -> None:
    """The console script."""
    sys.exit(main())
