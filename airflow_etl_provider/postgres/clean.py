"""The janitor: staged tables, replaced versions and retired partitions that nobody needs any more.

Only what the ledger registers is dropped, each table in a transaction of its own that first locks the
loads it belongs to, as whoever stages, publishes or rolls back does, and then looks again. What is in use
stays for the next time. Tables that the ledger does not know are named and left alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from airflow_etl_provider.core.errors import ConfigurationError, EtlError, Stopped
from airflow_etl_provider.core.load import LoadState
from airflow_etl_provider.core.names import TableName, quoted, shortened
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.window import humane
from airflow_etl_provider.postgres import ledger, statements
from airflow_etl_provider.postgres.catalog import scalar
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.ledger import STAGING_SCHEMA
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.releasing import release_retired, release_version
from airflow_etl_provider.postgres.staging import drop_views

Connection = psycopg.Connection[Any]

_PATIENCE = timedelta(milliseconds=200)
_EVERY_VERSION: dict[str, Any] = {"load_ids": None, "names": None, "target": None}
_FILL = re.compile(r"(.+)_p\d+")
_OVER = (LoadState.ABANDONED, LoadState.SUPERSEDED, LoadState.ROLLED_BACK, LoadState.PUBLISHED)
_KEPT_FOR_A_LOOK = (LoadState.REJECTED, LoadState.FAILED)
_UNFINISHED = (LoadState.STARTED, LoadState.STAGED, LoadState.VALIDATED)


@dataclass(frozen=True, slots=True)
class CleanOptions:
    """What stays.

    :param keep_failed: how long the staged tables of rejected and failed loads stay, to be looked at or
        gone on from.
    :param keep_unfinished: how long those of loads stay that lie still, without a session, before they are
        published: a retry goes on from there.
    :param keep_versions: replaced versions per partition that stay for a rollback; ``None``: as the last publish of
        their stream was told.
    :param keep_previous: how long they stay at most; ``None`` likewise.
    :param keep_bytes: what all of them may take on disk together, in bytes; the newest stay. ``None``: those of each
        stream, as its last publish was told.
    """

    keep_failed: timedelta = timedelta(days=7)
    keep_unfinished: timedelta = timedelta(days=30)
    keep_versions: int | None = None
    keep_previous: timedelta | None = None
    keep_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, length in (
            ("keep_failed", self.keep_failed),
            ("keep_unfinished", self.keep_unfinished),
            ("keep_previous", self.keep_previous),
        ):
            if length is not None and length < timedelta(0):
                raise ConfigurationError(f"{name} is a length of time, not {length}")
        for name, number in (
            ("keep_versions", self.keep_versions),
            ("keep_bytes", self.keep_bytes),
        ):
            if number is not None and number < 0:
                raise ConfigurationError(f"{name} is a number from 0 on, not {number}")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A registered table, why it may go, and after an attempt why it did not.

    ``load_ids`` know it; of a retired partition that is its retirement. ``bytes`` on disk, with indexes; ``None`` where somebody holds the table.
    """

    table: TableName
    load_ids: tuple[str, ...]
    why: str
    bytes: int | None
    stays: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "table": str(self.table),
            "load_ids": list(self.load_ids),
            "why": self.why,
            "bytes": self.bytes,
            "stays": self.stays,
        }


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was dropped (with ``dry_run``: what would be), what was in use, and what nobody registered."""

    dropped: tuple[Leftover, ...]
    busy: tuple[Leftover, ...]
    unregistered: tuple[TableName, ...]
    dry_run: bool

    @property
    def bytes(self) -> int:
        """Bytes on disk of what was dropped."""
        return sum(leftover.bytes or 0 for leftover in self.dropped)

    def as_json(self) -> dict[str, Any]:
        return {
            "dry_run": self.dry_run,
            "dropped": [leftover.as_json() for leftover in self.dropped],
            "bytes": self.bytes,
            "busy": [leftover.as_json() for leftover in self.busy],
            "unregistered": [str(table) for table in self.unregistered],
        }


@dataclass(frozen=True, slots=True)
class _Table:
    name: TableName
    oid: int
    bytes: int | None


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a load or a retirement says about a table; without ``why`` it still needs it.

    ``kept_of`` is the partition of which the table is a version, or that it was.
    """

    load_id: str
    why: str | None
    kept_of: str | None = None
    is_retired: bool = False


def clean(
    connection: Connection,
    options: CleanOptions,
    *,
    stop: Stop,
    log: EventLog,
    dry_run: bool = False,
) -> Cleaned:
    """Drop what nobody needs any more.

    Staged tables of loads that are published, abandoned, superseded or rolled back go at once, those of
    rejected and failed ones after ``keep_failed``, those of loads that nobody has gone on with after
    ``keep_unfinished``; replaced versions beyond any of the limits; retired
    partitions once the time is over that retention gave them. Never an
    attached partition, a table of a load that is at work, or one outside the staging schema. Versions and
    partitions that are kept let go of the rows that they refer to, where somebody was in the way of that before.
    No table is waited for longer than an instant.

    :param connection: in autocommit; its ``lock_timeout`` is set.
    :param dry_run: drop nothing, and say what would go.
    :raises StateError: there is no ledger here, or not of this release.
    :raises Stopped: it was told to stop; what was dropped until then is gone.
    """
    label = f"database {connection.info.dbname}"
    ledger.require_ledger(connection, label=label, current=True)
    with translated_errors(f"looking for leftovers on {label}"):
        connection.execute(
            "SELECT set_config('lock_timeout', %s, false)",
            (str(round(_PATIENCE.total_seconds() * 1000)),),
        )
        tables, claims = _looked_at(connection, options)
    dropped, busy = [], []
    for table in tables.values():
        mine = claims.get(table.name.name, [])
        why = _verdict(mine)
        leftover = Leftover(
            table.name, tuple(sorted({c.load_id for c in mine})), why or "", table.bytes
        )
        if dry_run:
            dropped += [] if why is None else [leftover]
            continue
        if stop.is_set():
            raise Stopped(
                f"cleaning was stopped on request; {len(dropped)} tables are gone, the rest stays"
            )
        _release(connection, table, mine, log=log)
        if why is None:
            continue
        with translated_errors(f"dropping {table.name}"):
            gone, stays = _drop(connection, table, leftover, options)
        if gone:
            dropped.append(leftover)
            log("leftover dropped", table=str(table.name), why=why, bytes=table.bytes)
        elif stays is not None:
            busy.append(replace(leftover, stays=stays))
            log("leftover stays", table=str(table.name), reason=stays)
    unknown = tuple(table.name for name, table in tables.items() if name not in claims)
    if unknown:
        log("tables that no load registered", tables=[str(table) for table in unknown])
    return Cleaned(tuple(dropped), tuple(busy), unknown, dry_run)


def clean_versions(connection: Connection, target: TableName, *, log: EventLog) -> None:
    """Drop replaced versions of the partitions of *target* beyond what the last publish of their stream was told.

    What is in use stays until the next time.

    :param connection: in autocommit, with a ``lock_timeout``.
    """
    options = CleanOptions()
    found = {
        row[0]: _Table(TableName(STAGING_SCHEMA, row[0]), row[1], None)
        for row in connection.execute(queries("clean")["tables"], {"schema": STAGING_SCHEMA})
    }
    wanted = {"names": [str(table.name) for table in found.values()], "target": str(target)}
    with connection.cursor(row_factory=dict_row) as cursor:
        versions = cursor.execute(queries("clean")["versions"], _EVERY_VERSION | wanted).fetchall()
    names = [TableName.parse(row["previous"]).name for row in versions]
    sizes = dict.fromkeys(names, 0)
    if any(row["keep_bytes"] is not None for row in versions):
        sizes = {name: _size(connection, found[name].oid) or 0 for name in names}
    for name, claim in _version_claims(versions, sizes, options):
        _release(connection, found[name], [claim], log=log)
        if claim.why is None:
            continue
        leftover = Leftover(found[name].name, (claim.load_id,), claim.why, None)
        gone, stays = _drop(connection, found[name], leftover, options)
        if gone:
            log("replaced version dropped", table=str(leftover.table), why=leftover.why)
        elif stays is not None:
            log("replaced version stays", table=str(leftover.table), reason=stays)


def _verdict(claims: Sequence[_Claim]) -> str | None:
    """Why a table may go; ``None`` where any load needs it, or none knows it."""
    reasons = [claim.why for claim in claims]
    return None if not reasons or None in reasons else reasons[0]


def _looked_at(
    connection: Connection, options: CleanOptions
) -> tuple[dict[str, _Table], dict[str, list[_Claim]]]:
    """The tables of the staging schema and what loads say about them, in one snapshot; sizes come after."""
    named = queries("clean")
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        with connection.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(named["tables"], {"schema": STAGING_SCHEMA}).fetchall()
            loads = cursor.execute(named["staged"], {"load_ids": None}).fetchall()
            versions = cursor.execute(named["versions"], _EVERY_VERSION).fetchall()
            retired = cursor.execute(queries("retention")["retired"], {"ids": None}).fetchall()
    names = {row["name"] for row in found}
    kept = [row for row in versions if _in_staging(row["previous"]) in names]
    registered = {_in_staging(row["previous"]) for row in kept}
    registered |= {_in_staging(row["kept"]) for row in retired}
    claims: dict[str, list[_Claim]] = {}
    for name, claim in _staged_claims(loads, names, options):
        claims.setdefault(name, []).append(claim)
    tables = {
        row["name"]: _Table(
            TableName(STAGING_SCHEMA, row["name"]),
            row["oid"],
            _size(connection, row["oid"])
            if row["name"] in claims or row["name"] in registered
            else None,
        )
        for row in found
    }
    sizes = {name: table.bytes or 0 for name, table in tables.items()}
    for name, claim in _version_claims(kept, sizes, options):
        claims.setdefault(name, []).append(claim)
    for name, claim in _retired_claims(retired):
        claims.setdefault(name, []).append(claim)
    return tables, claims


def _in_staging(text: str) -> str | None:
    table = TableName.parse(text)
    return table.name if table.schema == STAGING_SCHEMA else None


def _staged_claims(
    loads: Sequence[Mapping[str, Any]], names: set[str], options: CleanOptions
) -> Iterator[tuple[str, _Claim]]:
    """What each load says about its staged tables, and about those that were filled from them."""
    fills: dict[str, list[str]] = {}
    for name in names:
        match = _FILL.fullmatch(name)
        if match is not None:
            fills.setdefault(match[1], []).append(name)
    for load in loads:
        claim = _Claim(load["load_id"], _over(load, options))
        for table in (load["staging"], *load["earlier"]):
            staged = _in_staging(table)
            if staged is None:
                continue
            for name in (staged, *fills.get(shortened(staged, room=6), ())):
                if name in names:
                    yield name, claim


def _over(load: Mapping[str, Any], options: CleanOptions) -> str | None:
    """Why a load needs its staged table no longer."""
    state = LoadState(load["state"])
    if state in _OVER:
        return f"staged by a load that is {state}"
    if state in _KEPT_FOR_A_LOOK and load["age_s"] >= options.keep_failed.total_seconds():
        return f"staged by a load that is {state} since more than {humane(options.keep_failed)}"
    if (
        state in _UNFINISHED
        and not load["is_at_work"]
        and load["age_s"] >= options.keep_unfinished.total_seconds()
    ):
        return f"staged by a load that lies still, {state}, since more than {humane(options.keep_unfinished)}"
    return None


def _version_claims(
    versions: Sequence[Mapping[str, Any]], sizes: Mapping[str, int], options: CleanOptions
) -> Iterator[tuple[str, _Claim]]:
    """What the limits say about each replaced version that is there, newest first."""
    kept: Counter[str] = Counter()
    together: Counter[str | None] = Counter()
    full: set[str | None] = set()
    for row in versions:
        name, partition = TableName.parse(row["previous"]).name, row["partition"]
        newest, longest, most = row["keep_versions"], row["keep_previous_s"], row["keep_bytes"]
        group = row["stream"]
        if options.keep_versions is not None:
            newest = options.keep_versions
        if options.keep_previous is not None:
            longest = options.keep_previous.total_seconds()
        if options.keep_bytes is not None:
            most, group = options.keep_bytes, None
        why = None
        if kept[partition] >= newest:
            why = f"a version of {partition} beyond the newest {newest}"
        elif row["age_s"] >= longest:
            why = f"a version of {partition} that was replaced more than {humane(timedelta(seconds=longest))} ago"
        elif most is not None and (group in full or together[group] + sizes[name] > most):
            # However small those before it are: the newest stay.
            full.add(group)
            why = f"a version of {partition} beyond {most:,} bytes of all versions"
        else:
            together[group] += sizes[name]
        kept[partition] += 1
        yield name, _Claim(row["load_id"], why, partition)


def _retired_claims(retired: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, _Claim]]:
    """What retention says about each partition that it took out."""
    for row in retired:
        why = f"partition {row['partition']}, retired: {row['why']}" if row["is_over"] else None
        claim = _Claim(row["retirement_id"], why, row["partition"], is_retired=True)
        yield TableName.parse(row["kept"]).name, claim


def _release(
    connection: Connection, table: _Table, claims: Sequence[_Claim], *, log: EventLog
) -> None:
    """Let go of the rows that a kept table refers to; also before it goes, since DROP locks all that at once.

    Not of a table that a load has staged: it may go on with it.
    """
    if any(claim.kept_of is None for claim in claims):
        return
    for claim in claims:
        try:
            with translated_errors(f"dropping foreign keys of {table.name}"):
                if claim.is_retired:
                    count = release_retired(connection, table.name, claim.load_id, budget=_PATIENCE)
                else:
                    count = release_version(
                        connection,
                        table.name,
                        claim.load_id,
                        claim.kept_of or "",
                        budget=_PATIENCE,
                    )
        except EtlError as error:
            log("foreign keys of a kept table stay", table=str(table.name), reason=error.what)
        else:
            if count:
                log("foreign keys of a kept table dropped", table=str(table.name), keys=count)


def _size(connection: Connection, oid: int) -> int | None:
    try:
        size: int | None = scalar(connection, queries("clean")["size"], {"oid": oid})
    except psycopg.errors.LockNotAvailable:
        return None
    return size


def _drop(
    connection: Connection, table: _Table, leftover: Leftover, options: CleanOptions
) -> tuple[bool, str | None]:
    """Whether the table was dropped, and if not why it stays; neither if others were first."""
    name = {"schema": table.name.schema, "name": table.name.name, "oid": table.oid}
    is_held = False
    try:
        with connection.transaction():
            ids = list(leftover.load_ids)
            connection.execute(queries("clean")["hold_loads"], {"load_ids": ids})
            connection.execute(queries("retention")["hold_retired"], {"ids": ids})
            if not _still_over(connection, table, leftover, options):
                return False, "a load has taken it up meanwhile"
            is_held = True
            connection.execute(statements.lock(table.name, "ACCESS EXCLUSIVE"))
            if connection.execute(queries("clean")["may_go"], name).fetchone() != (True,):
                return False, None
            drop_views(connection, table.name)
            connection.execute(sql.SQL("DROP TABLE {}").format(statements.ident(table.name)))
            connection.execute(queries("retention")["mark_dropped"], {"ids": ids})
    except psycopg.errors.UndefinedTable:
        return False, None
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        return False, "it is in use"
    except psycopg.errors.DependentObjectsStillExist:
        return False, "a view or another object depends on it"
    except psycopg.errors.InsufficientPrivilege as error:
        user = connection.info.user
        if is_held:
            return False, f"role {user} does not own it"
        return False, (
            f"role {user} may not write the ledger ({error.diag.message_primary}): let its owner GRANT SELECT, UPDATE "
            f"ON ALL TABLES IN SCHEMA etl TO {quoted(user)}"
        )
    return True, None


def _still_over(
    connection: Connection, table: _Table, leftover: Leftover, options: CleanOptions
) -> bool:
    """Under the locks of those who know it: none of them needs the table, and one still names it."""
    ids = {"load_ids": list(leftover.load_ids)}
    with connection.cursor(row_factory=dict_row) as cursor:
        loads = cursor.execute(queries("clean")["staged"], ids).fetchall()
        versions = cursor.execute(queries("clean")["versions"], _EVERY_VERSION | ids).fetchall()
        retired = cursor.execute(
            queries("retention")["retired"], {"ids": list(leftover.load_ids)}
        ).fetchall()
    said = [claim.why for _, claim in _staged_claims(loads, {table.name.name}, options)]
    said += [claim.why for name, claim in _retired_claims(retired) if name == table.name.name]
    is_version = any(TableName.parse(row["previous"]) == table.name for row in versions)
    return None not in said and (bool(said) or is_version)
