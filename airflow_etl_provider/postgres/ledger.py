"""The ledger: every load of every stream, in the database that it loads.

All functions work on the caller's connection; those that must commit together are called inside the
caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    StateError,
    Superseded,
)
from airflow_etl_provider.core.load import (
    Kind,
    Load,
    LoadState,
    Manifest,
    Published,
    PublishedPartition,
    RunInfo,
    Strategy,
    StreamPosition,
)
from airflow_etl_provider.core.names import TableName, quoted
from airflow_etl_provider.core.ports import Session
from airflow_etl_provider.core.window import Nulls, Window
from airflow_etl_provider.postgres import dead_letters
from airflow_etl_provider.postgres.catalog import range_of, scalar
from airflow_etl_provider.postgres.cursors import cursor_type_sql, lowest
from airflow_etl_provider.postgres.errors import sqlstate_of, translated_errors
from airflow_etl_provider.postgres.queries import queries, script
from airflow_etl_provider.postgres.renames import identities
from airflow_etl_provider.postgres.statements import STAGING_SCHEMA as STAGING_SCHEMA
from airflow_etl_provider.postgres.statements import fingerprint

LEDGER_VERSION = 5
#: What ``etl.loads.bounds`` says of a load that holds only rows without a cursor value.
NULLS_ONLY = "nulls"

#: States whose ``error`` says who or what ended the load.
_EXPLAINED = (LoadState.ABANDONED, LoadState.ROLLED_BACK)

#: Two-key advisory locks of this package: class id, then a hash of what is locked.
ADVISORY_CLASS = 0x45544C
_LOCK_LEDGER = 1
#: Of its own, since another session of the same publish may hold partitions, whose names may have the same hash.
_TARGET_CLASS = ADVISORY_CLASS + 1


class Replaced(StateError):
    """The run that the load belongs to was cleared, and has a newer one."""


def ensure_ledger(connection: psycopg.Connection[Any], *, label: str) -> None:
    """Create the ledger on first use, and bring one that an older release made up to date.

    :raises CatalogError: it is missing or old, and the role may not create or change it.
    :raises StateError: it was made by a newer release.
    """
    with translated_errors(f"reading the ledger on {label}"):
        version = _version(connection)
    if version is None or version < LEDGER_VERSION:
        version = _upgrade(connection, label)
    if version > LEDGER_VERSION:
        raise StateError(
            f"the ledger on {label} has version {version}; this release knows {LEDGER_VERSION}",
            remedy="upgrade airflow-etl-provider on this worker",
        )


def require_ledger(
    connection: psycopg.Connection[Any], *, label: str, current: bool = False
) -> None:
    """For those who look and tidy: there is a ledger that this release can read.

    :param current: an older one, which the next load brings up to date, will not do.
    :raises StateError: there is none, a newer one, or (with *current*) an older one.
    """
    with translated_errors(f"reading the ledger on {label}"):
        version = _version(connection)
    if version is None:
        raise StateError(
            f"there is no ledger (schema etl) on {label}",
            remedy="check that this is the warehouse, not a source; the first load makes the ledger",
        )
    if version > LEDGER_VERSION:
        raise StateError(
            f"the ledger on {label} has version {version}; this release knows {LEDGER_VERSION}",
            remedy="upgrade airflow-etl-provider on this machine",
        )
    if current and version < LEDGER_VERSION:
        raise StateError(
            f"the ledger on {label} has version {version}, older than {LEDGER_VERSION}",
            remedy="the next load brings it up to date",
        )


def _version(connection: psycopg.Connection[Any]) -> int | None:
    # A query of the catalog, not to_regclass, whose answer may come from a cache that is older than the
    # lock under which it is asked again.
    if not scalar(connection, queries("ledger")["ledger_exists"], {}):
        return None
    found: int = scalar(connection, "SELECT max(version) FROM etl.schema_version")
    return found


def _upgrade(connection: psycopg.Connection[Any], label: str) -> int:
    found: int | None = None
    try:
        with connection.transaction():
            # Parallel first loads: one creates, the others wait and find it.
            connection.execute(
                "SELECT pg_advisory_xact_lock(%s, %s)", (ADVISORY_CLASS, _LOCK_LEDGER)
            )
            # Behind a long publish nobody shall queue: the load is tried again.
            connection.execute("SET LOCAL lock_timeout = '5s'")
            found = _version(connection)
            for version in range((found or 0) + 1, LEDGER_VERSION + 1):
                # The files are part of this package.
                connection.execute(script(f"ledger_v{version}"))
            return max(found or 0, LEDGER_VERSION)
    except psycopg.Error as error:
        if sqlstate_of(error) != "42501":
            with translated_errors(f"creating the ledger on {label}"):
                raise
        user, database = connection.info.user, connection.info.dbname
        if found is not None:
            raise CatalogError(
                f"the ledger on {label} has version {found}, and role {user} may not bring it to {LEDGER_VERSION}",
                remedy=f"let the owner of schema etl run {_files(found)} of airflow_etl_provider/postgres/sql once, "
                "in this order",
            ) from None
        raise CatalogError(
            f"the ledger (schemas etl and etl_staging) is missing on {label} and role {user} may not create it",
            remedy=f"GRANT CREATE ON DATABASE {quoted(database)} TO {quoted(user)}; or let an owner run "
            f"{_files(0)} of airflow_etl_provider/postgres/sql once, in this order, and grant both schemas to the role",
        ) from None


def _files(found: int) -> str:
    """The files that a ledger of version *found* lacks."""
    return ", ".join(f"ledger_v{version}.sql" for version in range(found + 1, LEDGER_VERSION + 1))


def _position(row: Mapping[str, Any]) -> StreamPosition:
    return StreamPosition(
        stream=row["stream"],
        position=row["position"],
        position_type=row["position_type"],
        fence=row["fence"],
        load_id=None if row["load_id"] is None else str(row["load_id"]),
        updated_at=row["updated_at"],
    )


def bind_stream(
    connection: psycopg.Connection[Any], stream: str, target: TableName, kind: Kind, store: str
) -> StreamPosition:
    """Bind *stream* to *target* with its first load; later loads must name the same.

    As long as no load has got anywhere, a mistake in the first one binds nothing.

    :raises ConfigurationError: the stream is bound to another target or kind.
    """
    named = queries("ledger")
    connection.execute(
        named["bind_stream"],
        {"stream": stream, "target": str(target), "kind": kind.value, "store": store},
    )
    connection.execute(
        named["rebind_stream"], {"stream": stream, "target": str(target), "kind": kind.value}
    )
    row = _row(connection, named["stream"], {"stream": stream})
    if row["target"] != str(target):
        raise ConfigurationError(
            f"stream {stream!r} is bound to {row['target']} by its first load and cannot load {target}",
            remedy="give the new target a stream id of its own",
        )
    if row["kind"] != kind.value:
        raise ConfigurationError(
            f"stream {stream!r} holds {row['kind']}, not {kind.value}, since its first load",
            remedy="keep the kind, or start a new stream id",
        )
    return _position(row)


def position(connection: psycopg.Connection[Any], stream: str) -> StreamPosition | None:
    """Where *stream* stands; ``None`` if it never loaded."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(queries("ledger")["stream"], {"stream": stream}).fetchone()
    return None if row is None else _position(row)


def position_of(connection: psycopg.Connection[Any], stream: str) -> StreamPosition:
    """:raises StateError: the stream is not in the ledger."""
    found = position(connection, stream)
    if found is None:
        raise StateError(
            f"the ledger does not know stream {stream!r}", remedy="clear extract and downstream"
        )
    return found


def begin_load(
    connection: psycopg.Connection[Any],
    *,
    load_id: str,
    stream: str,
    target: TableName,
    kind: Kind,
    run: RunInfo,
    window: Window,
    moves_watermark: bool,
    origin: str | None,
    replays: str | None = None,
) -> Load:
    """Record the load before anything is created for it; a load that is already known is returned.

    The stream's origin (where contiguous coverage starts counting) is the lowest *origin* or window
    of any load that moves the watermark.

    :param replays: the load whose dead letters this one brings back.
    """
    named = queries("ledger")
    with connection.transaction():
        stream_row = _row(connection, named["lock_stream"], {"stream": stream})
        if moves_watermark and window.type is not None:
            _lower_origin(connection, stream, origin or bounded(window).low, window.type)
        connection.execute(
            named["begin_load"],
            {
                "load_id": load_id,
                "fence": stream_row["fence"],
                "stream": stream,
                "target": str(target),
                "kind": kind.value,
                "dag_id": run.dag_id,
                "task_id": run.task_id,
                "run_id": run.run_id,
                "run_type": run.run_type,
                "map_index": run.map_index,
                "try_number": run.try_number,
                "clear_number": run.clear_number,
                "window_low": window.low,
                "window_high": window.high,
                "window_type": window.type,
                "bounds": NULLS_ONLY if window.nulls is Nulls.ONLY else window.bounds,
                "moves_watermark": moves_watermark,
                "watermark_low": stream_row["position"],
                "replays": replays,
            },
        )
        found = load(connection, load_id)
    if found is None:
        raise StateError(f"load {load_id} vanished from the ledger while it was begun")
    return found


def _lower_origin(
    connection: psycopg.Connection[Any], stream: str, origin: str | None, cursor_type: str
) -> None:
    known = scalar(connection, queries("ledger")["origin"], {"stream": stream})
    if origin is None:
        return
    lowest = origin
    if known is not None:
        lowest = scalar(
            connection,
            sql.SQL("SELECT least(%(a)s::{t}, %(b)s::{t})::text").format(
                t=cursor_type_sql(cursor_type)
            ),
            {"a": known, "b": origin},
        )
    connection.execute(queries("ledger")["set_origin"], {"stream": stream, "origin": lowest})


def load(connection: psycopg.Connection[Any], load_id: str, *, lock: bool = False) -> Load | None:
    """A load as the ledger knows it; with *lock* its row stays locked to the end of the transaction."""
    statement = queries("ledger")["lock_load" if lock else "load"]
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(statement, {"load_id": load_id}).fetchone()
    if row is None:
        return None
    return Load(
        load_id=str(row["load_id"]),
        seq=row["seq"],
        fence=row["fence"],
        stream=row["stream"],
        target=TableName.parse(row["target"]),
        kind=Kind(row["kind"]),
        state=LoadState(row["state"]),
        clear_number=row["clear_number"],
        manifest=None if row["manifest"] is None else Manifest.from_json(row["manifest"]),
        report=row["report"],
        rows_staged=row["rows_staged"],
        published_at=row["published_at"],
        error=row["error"],
        staging=None if row["staging"] is None else TableName.parse(row["staging"]),
        window=_window(row),
        settled=row["settled"],
        fingerprint=row["fingerprint"],
    )


def _window(row: Mapping[str, Any]) -> Window:
    """The range that was recorded; whether rows without a value go with it is the request's to say."""
    if row["bounds"] == NULLS_ONLY:
        return Window(type=row["window_type"], nulls=Nulls.ONLY)
    return Window(row["window_low"], row["window_high"], row["window_type"], row["bounds"])


def state_of(connection: psycopg.Connection[Any], load_id: str) -> LoadState | None:
    """Where a load stands, whichever release has written it; ``None`` if it is not known."""
    row = connection.execute(queries("ledger")["load_state"], {"load_id": load_id}).fetchone()
    return None if row is None else LoadState(row[0])


def require_load(connection: psycopg.Connection[Any], load_id: str, *, label: str) -> Load:
    """:raises StateError: the ledger does not know the load, or it never staged a batch."""
    with translated_errors(f"reading the ledger on {label}"):
        found = load(connection, load_id)
    if found is None or found.manifest is None:
        raise StateError(
            f"the ledger on {label} knows no staged batch of load {load_id}",
            remedy="check that the connection is the one the batch was staged with, then clear the extract task",
        )
    return found


def abandon(connection: psycopg.Connection[Any], load_id: str, reason: str) -> None:
    """End an unfinished load that a newer one replaces, and its dead letters with it."""
    done = connection.execute(queries("ledger")["abandon"], {"load_id": load_id, "reason": reason})
    if done.rowcount:
        dead_letters.end(connection, [load_id], reason)


def restart(connection: psycopg.Connection[Any], load_id: str) -> None:
    """Take back a load whose staged table is gone, so that it can be staged again."""
    dead_letters.forget(connection, load_id)
    connection.execute(queries("ledger")["forget_slices"], {"load_id": load_id})
    connection.execute(queries("ledger")["restart_load"], {"load_id": load_id})


def sessions(connection: psycopg.Connection[Any], load_id: str) -> list[Session]:
    """The server processes that tries of this load have named."""
    rows = connection.execute(queries("ledger")["sessions"], {"load_id": load_id}).fetchall()
    return [Session(side, pid, started) for side, pid, started in rows]


def add_session(connection: psycopg.Connection[Any], load_id: str, session: Session) -> None:
    """Name a server process that works for the load, before it begins."""
    connection.execute(
        queries("ledger")["add_session"],
        {
            "load_id": load_id,
            "side": session.side,
            "pid": session.pid,
            "backend_start": session.backend_start,
        },
    )


def forget_sessions(connection: psycopg.Connection[Any], load_id: str) -> None:
    connection.execute(queries("ledger")["forget_sessions"], {"load_id": load_id})


def newer_snapshots(
    connection: psycopg.Connection[Any], manifest: Manifest
) -> tuple[bool, bool, bool]:
    """Whether published loads read the source later than this batch was read.

    Any of the stream; one that overlaps its window; one that held rows without a cursor value.
    """
    params = {
        "stream": manifest.stream,
        "load_id": manifest.load_id,
        "snapshot_at": manifest.snapshot_at,
        "low": manifest.window.low,
        "high": manifest.window.high,
    }
    row = _row(connection, queries("ledger")["newer_snapshots"], params)
    if not row["newer"] or not manifest.window.is_range:
        return row["newer"], row["newer"], row["newer_nulls"]
    overlapping = scalar(
        connection,
        sql.SQL(
            "SELECT EXISTS (SELECT FROM etl.loads WHERE stream = %(stream)s AND state = 'published'"
            " AND load_id <> %(load_id)s AND coalesce(read_until, snapshot_at) > %(snapshot_at)s AND bounds <> 'nulls'"
            " AND replays IS NULL"
            " AND (window_type IS NULL OR coalesce(window_low::{t} <= %(high)s::{t}, true)"
            "      AND coalesce(window_high::{t} >= %(low)s::{t}, true)))"
        ).format(t=cursor_type_sql(manifest.window.type or "")),
        params,
    )
    return row["newer"], overlapping, row["newer_nulls"]


def later_reads(connection: psycopg.Connection[Any], manifest: Manifest) -> tuple[Window, ...]:
    """The parts of the batch's window that published loads have read later than this batch was read.

    Of immutable rows nothing but the time of reading tells which version is newer, so there the target is right.
    """
    types = {column.name: column.type for column in manifest.columns}
    cursor_type = manifest.window.type or types.get(manifest.cursor or "")
    if cursor_type is None:
        return ()
    cast = cursor_type_sql(cursor_type)
    window = manifest.window
    rows = connection.execute(
        sql.SQL(
            "SELECT c.low, c.high, c.bounds FROM etl.coverage AS c JOIN etl.loads AS l USING (load_id)"
            " WHERE c.stream = %(stream)s AND c.load_id <> %(load_id)s AND l.state = 'published'"
            " AND coalesce(l.read_until, l.snapshot_at) > %(snapshot_at)s"
            " AND coalesce(c.low::{t} < %(high)s::{t}, true) AND coalesce(c.high::{t} > %(low)s::{t}, true)"
            " ORDER BY c.low::{t}"
        ).format(t=cast),
        {
            "stream": manifest.stream,
            "load_id": manifest.load_id,
            "snapshot_at": manifest.snapshot_at,
            "low": window.low,
            "high": window.high,
        },
    ).fetchall()
    found = [
        Window(None if low == lowest(cursor_type) else low, high, cursor_type, bounds)
        for low, high, bounds in (rows if window.is_full or window.is_range else ())
    ]
    if window.is_full or window.nulls is not Nulls.EXCLUDE:
        _, _, newer_nulls = newer_snapshots(connection, manifest)
        if newer_nulls:
            found.append(Window(type=cursor_type, nulls=Nulls.ONLY))
    return tuple(found)


def require_latest(connection: psycopg.Connection[Any], manifest: Manifest) -> None:
    """:raises StateError: a published load has read the source later, and this batch would undo it."""
    newer, _, _ = newer_snapshots(connection, manifest)
    if newer:
        raise StateError(
            f"load {manifest.load_id} of stream {manifest.stream} was read at {manifest.snapshot_at.isoformat()}, and a "
            f"load that was read later is published: the older rows would take the place of newer ones in {manifest.target}",
            remedy="clear extract and downstream: the window is read anew",
        )


def cover_empty(connection: psycopg.Connection[Any], manifest: Manifest) -> None:
    """Record a batch without rows as published without touching the target, in one transaction."""
    with connection.transaction():
        at = _position(
            _row(connection, queries("ledger")["lock_stream"], {"stream": manifest.stream})
        )
        waived = {"verdict": "none", "reason": "the window is empty (on_empty='skip')"}
        connection.execute(
            queries("ledger")["waive_empty"],
            {"load_id": manifest.load_id, "report": Jsonb(waived)},
        )
        record_published(
            connection,
            Published(
                load_id=manifest.load_id,
                stream=manifest.stream,
                target=manifest.target,
                strategy=Strategy.AUTO,
                window=manifest.window,
                rows_inserted=0,
                rows_updated=0,
                rows_deleted=0,
                rows_unchanged=0,
                partitions=(),
                lock_ms=0.0,
                position=at,
            ),
            manifest,
        )


def staged_statement(manifest: Manifest) -> tuple[sql.SQL, dict[str, Any]]:
    """The statement that records a staged batch; its parameters suit psycopg and psycopg2 alike."""
    return queries("ledger")["mark_staged"], {
        "load_id": manifest.load_id,
        "staging": str(manifest.staging),
        "manifest": json.dumps(manifest.as_json()),
        "snapshot_at": manifest.snapshot_at,
        "read_until": manifest.read_until or manifest.snapshot_at,
        "rows": manifest.rows,
        "rows_dead": manifest.rows_dead,
        "bytes": manifest.bytes,
        "checksum": manifest.checksum,
    }


def reduce_batch(connection: psycopg.Connection[Any], manifest: Manifest) -> None:
    """Record what is left of a batch after rows were set aside."""
    connection.execute(
        queries("ledger")["reduce_batch"],
        {
            "load_id": manifest.load_id,
            "manifest": Jsonb(manifest.as_json()),
            "rows_dead": manifest.rows_dead,
        },
    )


def mark_audited(
    connection: psycopg.Connection[Any],
    load_id: str,
    *,
    rejected: bool,
    report: Mapping[str, Any],
    error: str | None,
    audited: str | None = None,
    staging: TableName | None = None,
) -> None:
    """Record the audit; the dead letters of a load that is rejected end with it.

    :param audited: the fingerprint of the rows that were audited; ``None`` where nobody has.
    :param staging: the table that was audited; a transform may have made another one meanwhile.
    :raises Superseded: the load is no longer waiting for one.
    """
    done = connection.execute(
        queries("ledger")["mark_audited"],
        {
            "load_id": load_id,
            "state": (LoadState.REJECTED if rejected else LoadState.VALIDATED).value,
            "report": Jsonb(dict(report)),
            "error": error,
            "audited": audited,
            "staging": None if staging is None else str(staging),
        },
    )
    if done.rowcount != 1:
        raise Superseded(
            f"load {load_id} is no longer waiting for an audit: another task has moved it on",
            remedy="look at its row in etl.loads; clear extract and downstream to load the window anew",
        )
    if rejected:
        dead_letters.end(connection, [load_id], f"load {load_id} was rejected by its audit")
    else:
        dead_letters.hold_again(connection, load_id)


def mark_failed(
    connection: psycopg.Connection[Any], load_id: str, error: str, *, try_number: int | None = None
) -> None:
    """Record why a try ended; what it had staged or audited stays as it is.

    :param try_number: the try of extract that ended: one that was taken over says nothing about the load
        that its successor is working on.
    """
    connection.execute(
        queries("ledger")["mark_failed"],
        {"load_id": load_id, "error": error, "try_number": try_number},
    )


def enter_publish(
    connection: psycopg.Connection[Any], manifest: Manifest, strategy: Strategy
) -> StreamPosition | Published:
    """Lock the stream, then the load: the first statements of every publish transaction.

    Returns where the stream stands, or the outcome if there is nothing left to do: this load is
    published already, or one that began or read later has published its whole window, in which case this one is
    abandoned.

    :raises StateError: the load is not ``validated``, or the stream was rewound below its window since it was
        planned.
    :raises ConfigurationError: it would replace what another stream has loaded into the same target.
    :raises Replaced: a newer load of the same run took its place.
    :raises Superseded: the batch was audited again meanwhile, and is not the one that was to be published.
    """
    named = queries("ledger")
    at = _position(_row(connection, named["lock_stream"], {"stream": manifest.stream}))
    current = load(connection, manifest.load_id, lock=True)
    if current is not None and current.state is LoadState.PUBLISHED:
        return published_before(connection, manifest, at)
    if current is None or current.state is not LoadState.VALIDATED:
        state = "unknown" if current is None else current.state.value
        if current is not None and current.error and current.state in _EXPLAINED:
            state = f"{state} ({current.error})"
        raise StateError(
            f"load {manifest.load_id} of stream {manifest.stream} is {state}, not validated, so it is not published",
            remedy=_state_remedy(None if current is None else current.state),
        )
    _require_same_batch(current, manifest)
    if manifest.replays is not None:
        # Its letters say whether there is anything left to bring back.
        return at
    newer = connection.execute(named["newer_load_of_run"], {"load_id": manifest.load_id}).fetchone()
    if newer is not None:
        raise Replaced(
            f"load {manifest.load_id} was replaced by load {newer[0]} of the same run",
            remedy="clear validate and publish together with extract, so that they take the newer batch",
        )
    overtaken_by = _newer_publish(connection, current, manifest.window)
    if overtaken_by is not None:
        reason = f"load {overtaken_by} began or read later and published this window"
        abandon(connection, manifest.load_id, reason)
        return _overtaken(manifest, strategy, at, overtaken_by)
    connection.execute(
        named["hold_target"],
        {"stream": manifest.stream, "target": str(manifest.target), "class": _TARGET_CLASS},
    )
    if _replaces_others(manifest, strategy):
        _refuse_other_streams(connection, manifest, strategy)
    return at


def _replaces_others(manifest: Manifest, strategy: Strategy) -> bool:
    """Whether rows go because the batch does not hold them, whoever has loaded them."""
    if strategy is Strategy.SWAP_MERGE:
        return manifest.kind is Kind.EVENTS
    if strategy is Strategy.SCD2:
        return manifest.kind is Kind.SNAPSHOTS
    return strategy in (Strategy.SWAP, Strategy.DELETE_INSERT, Strategy.REPLACE)


def _refuse_other_streams(
    connection: psycopg.Connection[Any], manifest: Manifest, strategy: Strategy
) -> None:
    """:raises ConfigurationError: another stream has published into the target what this load would replace."""
    window = manifest.window
    row = connection.execute(
        queries("ledger")["stream_in_the_way"].format(t=cursor_type_sql(window.type or "text")),
        {
            "stream": manifest.stream,
            "target": str(manifest.target),
            "type": window.type,
            "cursor": manifest.cursor,
            "bounds": window.bounds,
            "low": window.low,
            "high": window.high,
        },
    ).fetchone()
    if row is None:
        return
    other = row[0]
    raise ConfigurationError(
        f"load {manifest.load_id} of stream {manifest.stream!r} would take rows of stream {other!r} out of "
        f"{manifest.target}: strategy {strategy.value!r} replaces all rows of its window ({window}), and both streams "
        "load into that table",
        remedy="give each stream a target of its own, or declare both kind='entities' and publish them by key "
        f"(strategy='merge'); if {other!r} is what this stream was called before, or its rows may go: airflow-etl "
        f"watermark reset {other} --reason …",
    )


def _require_same_batch(current: Load, manifest: Manifest) -> None:
    """:raises Superseded: the batch was audited again since *manifest* was read, and is not the same any more."""
    now = current.manifest
    if now is not None and (now.staging, now.rows, now.audited) != (
        manifest.staging,
        manifest.rows,
        manifest.audited,
    ):
        raise Superseded(
            f"the batch of load {manifest.load_id} was audited again while it was being published",
            remedy="nothing to do: Airflow retries, and publishes the batch as it is now",
        )


def _overtaken(
    manifest: Manifest, strategy: Strategy, position: StreamPosition, newer: str
) -> Published:
    return Published(
        load_id=manifest.load_id,
        stream=manifest.stream,
        target=manifest.target,
        strategy=strategy,
        window=manifest.window,
        rows_inserted=0,
        rows_updated=0,
        rows_deleted=0,
        rows_unchanged=0,
        partitions=(),
        lock_ms=0.0,
        position=position,
        overtaken_by=newer,
    )


def _newer_publish(connection: psycopg.Connection[Any], load: Load, window: Window) -> str | None:
    """A load that began or read later and has already published the whole window, if there is one."""
    params = {"stream": load.stream, "seq": load.seq, "load_id": load.load_id}
    if not window.is_range:
        name = "newer_full_load" if window.is_full else "newer_nulls_load"
        found = connection.execute(queries("ledger")[name], params).fetchone()
    else:
        found = connection.execute(
            sql.SQL(
                "SELECT load_id FROM etl.loads"
                " WHERE stream = %(stream)s AND state = 'published' AND replays IS NULL"
                " AND (seq > %(seq)s OR coalesce(read_until, snapshot_at) >"
                "      (SELECT snapshot_at FROM etl.loads WHERE load_id = %(load_id)s))"
                " AND bounds <> 'nulls' AND (window_type IS NULL"
                "      OR coalesce(window_low::{t} <= %(low)s::{t}, window_low IS NULL)"
                "         AND window_high::{t} >= %(high)s::{t})"
                " ORDER BY seq DESC LIMIT 1"
            ).format(t=cursor_type_sql(window.type or "")),
            {**params, "low": window.low, "high": window.high},
        ).fetchone()
    return None if found is None else str(found[0])


def _state_remedy(state: LoadState | None) -> str:
    match state:
        case LoadState.STAGED:
            return "run the validate task first, or publish with audit='none', which is recorded"
        case LoadState.REJECTED:
            return "mend the rows or the suite, then clear validate and publish"
        case _:
            return "clear extract and downstream to load the window anew"


def record_published(
    connection: psycopg.Connection[Any],
    published: Published,
    manifest: Manifest,
    *,
    options: Mapping[str, Any] | None = None,
    keys: Sequence[str] = (),
    filled: Mapping[str, TableName] | None = None,
) -> Published:
    """Write everything a publish leaves in the ledger; called inside the publish transaction.

    Coverage grows by the window; the position moves to the end of contiguous coverage if this load
    may move it, and never back. A replay covers nothing.

    :param options: what publish was told about the rows, for replays of what was set aside, and about the versions
        that it replaced.
    :param keys: columns that identify a row, where the publish went by key.
    :param filled: by the names of partitions that are replaced, the tables that take their places.
    :raises ContractError: the staged rows are no longer those that were audited.
    """
    named = queries("ledger")
    if manifest.audited is not None:
        # After they were read: if they are the audited ones now, they were all the time.
        manifest.require_audited(scalar(connection, fingerprint(manifest.staging)))
    moved = published.position
    if manifest.window.is_range and manifest.replays is None:
        _cover(connection, manifest)
        if manifest.moves_watermark:
            moved = _advance(connection, manifest, published.position)
    done = connection.execute(
        named["mark_published"],
        {
            "load_id": manifest.load_id,
            "strategy": published.strategy.value,
            "rows_inserted": published.rows_inserted,
            "rows_updated": published.rows_updated,
            "rows_deleted": published.rows_deleted,
            "rows_unchanged": published.rows_unchanged,
            "rows_stale": published.rows_stale,
            "watermark_high": moved.position,
            "options": None if options is None else Jsonb(dict(options)),
        },
    )
    if done.rowcount != 1:
        raise StateError(
            f"load {manifest.load_id} left the state 'validated' while it was being published"
        )
    rebuild = _for_rollback(connection, published, filled or {})
    for partition in published.partitions:
        connection.execute(
            named["add_partition"],
            {
                "load_id": manifest.load_id,
                "partition": partition.name,
                "bound": partition.bound,
                "rows": partition.rows,
                "rows_before": partition.rows_before,
                "bytes": partition.bytes,
                "previous": partition.previous,
                "rebuild": Jsonb(rebuild[partition.name]) if partition.name in rebuild else None,
            },
        )
    later = later_reads(connection, manifest) if manifest.kind is Kind.EVENTS else ()
    dead_letters.follow_publish(connection, manifest, keys, later)
    return replace(published, position=moved)


def _for_rollback(
    connection: psycopg.Connection[Any], published: Published, filled: Mapping[str, TableName]
) -> dict[str, dict[str, Any]]:
    """By replaced partition what a rollback goes by: its columns, and whose rows are those of the load.

    A transaction that began before the publish may write into the partition after it, and so may a savepoint of it,
    whose number nothing tells. Of the rows that could be theirs by their number, those that are there now are not.
    """
    if not filled:
        return {}
    named = queries("ledger")
    known = identities(connection, [TableName.parse(name) for name in filled], published.target)
    with connection.cursor(row_factory=dict_row) as cursor:
        publisher = cursor.execute(named["publisher"]).fetchone() or {}
    found = {}
    for name, table in filled.items():
        own = None
        if publisher["oldest"] is not None:
            query = named["filled_by"].format(table=sql.Identifier(table.schema, table.name))
            own = scalar(connection, query, {"oldest": publisher["oldest"]})
        found[name] = {**publisher, "filled_by": own, "columns": known.get(name)}
    return found


def record_lock_time(connection: psycopg.Connection[Any], load_id: str, lock_ms: float) -> None:
    """Record how long the publish held its table locks, measured up to the answer of COMMIT."""
    connection.execute(queries("ledger")["set_lock_ms"], {"load_id": load_id, "lock_ms": lock_ms})


def record_rebuild(
    connection: psycopg.Connection[Any],
    load_id: str,
    partition: str,
    foreign_keys: Mapping[str, str],
) -> None:
    """Record what a rollback must give back to a replaced version of *partition*."""
    connection.execute(
        queries("ledger")["set_rebuild"],
        {
            "load_id": load_id,
            "partition": partition,
            "rebuild": json.dumps({"foreign_keys": dict(foreign_keys)}),
        },
    )


def published_before(
    connection: psycopg.Connection[Any], manifest: Manifest, at: StreamPosition
) -> Published:
    """What an earlier try published, read back."""
    named = queries("ledger")
    row = _row(connection, named["published_load"], {"load_id": manifest.load_id})
    with connection.cursor(row_factory=dict_row) as cursor:
        partitions = cursor.execute(
            named["partitions_of_load"], {"load_id": manifest.load_id}
        ).fetchall()
    found = tuple(
        PublishedPartition(
            name=partition["partition"],
            bound=partition["bound"],
            rows=partition["rows"],
            bytes=partition["bytes"],
            rows_before=partition["rows_before"],
            previous=partition["previous"],
            lock_ms=partition["lock_ms"] or 0.0,
        )
        for partition in partitions
    )
    return Published(
        load_id=manifest.load_id,
        stream=manifest.stream,
        target=manifest.target,
        strategy=Strategy(row["strategy"]),
        window=manifest.window,
        rows_inserted=row["rows_inserted"],
        rows_updated=row["rows_updated"],
        rows_deleted=row["rows_deleted"],
        rows_unchanged=row["rows_unchanged"],
        rows_stale=row["rows_stale"] or 0,
        partitions=found,
        lock_ms=max((partition.lock_ms for partition in found), default=0.0),
        position=at,
        already=True,
    )


def bounded(window: Window) -> Window:
    """*window* with the lowest value of its type where it has no start."""
    if window.low is not None or window.type is None:
        return window
    return replace(window, low=lowest(window.type))


def _cover(connection: psycopg.Connection[Any], manifest: Manifest) -> None:
    """Add the window to the coverage; what loads that read earlier covered of it is now this load's."""
    window = bounded(manifest.window)
    cast = cursor_type_sql(window.type or "")
    params = {
        "stream": manifest.stream,
        "low": window.low,
        "high": window.high,
        "snapshot_at": manifest.snapshot_at,
    }
    with connection.cursor(row_factory=dict_row) as cursor:
        overlapped = cursor.execute(
            sql.SQL(
                "DELETE FROM etl.coverage AS c WHERE stream = %(stream)s"
                " AND low::{t} < %(high)s::{t} AND high::{t} > %(low)s::{t}"
                " AND NOT EXISTS (SELECT FROM etl.loads AS l WHERE l.load_id = c.load_id AND l.state = 'published'"
                "                 AND coalesce(l.read_until, l.snapshot_at) > %(snapshot_at)s)"
                " RETURNING low, high, bounds, load_id, retired_at,"
                " low::{t} < %(low)s::{t} AS before, high::{t} > %(high)s::{t} AS after"
            ).format(t=cast),
            params,
        ).fetchall()
    # What is left there was read later, and stays: between that is what this load covers.
    free = connection.execute(
        sql.SQL(
            "SELECT low::text, high::text FROM ("
            "  SELECT greatest(%(low)s::{t}, lag(high) OVER (ORDER BY low)) AS low, least(low, %(high)s::{t}) AS high"
            "  FROM (SELECT low::{t} AS low, high::{t} AS high FROM etl.coverage WHERE stream = %(stream)s"
            "        AND low::{t} < %(high)s::{t} AND high::{t} > %(low)s::{t}"
            "        UNION ALL SELECT %(high)s::{t}, NULL) AS taken) AS free"
            " WHERE low < high"
        ).format(t=cast),
        params,
    ).fetchall()
    pieces = [(low, high, window.bounds, manifest.load_id, False) for low, high in free]
    for row in overlapped:
        if row["before"]:
            pieces.append(
                (
                    row["low"],
                    window.low,
                    row["bounds"],
                    row["load_id"],
                    row["retired_at"] is not None,
                )
            )
        if row["after"]:
            pieces.append(
                (
                    window.high,
                    row["high"],
                    row["bounds"],
                    row["load_id"],
                    row["retired_at"] is not None,
                )
            )
    for low, high, bounds, load_id, retired in pieces:
        connection.execute(
            queries("ledger")["add_coverage"],
            {
                "stream": manifest.stream,
                "low": low,
                "high": high,
                "bounds": bounds,
                "load_id": load_id,
                "retired": retired,
            },
        )


def _place(
    connection: psycopg.Connection[Any],
    stream: str,
    window: Window,
    load_id: str,
    *,
    retired: bool = False,
) -> list[dict[str, Any]]:
    """Let *window* be one entry of the coverage; returns what was there, cut to it."""
    with connection.cursor(row_factory=dict_row) as cursor:
        overlapped = cursor.execute(
            sql.SQL(
                "DELETE FROM etl.coverage WHERE stream = %(stream)s"
                " AND low::{t} < %(high)s::{t} AND high::{t} > %(low)s::{t}"
                " RETURNING low, high, bounds, load_id::text AS load_id, retired_at,"
                " low::{t} < %(low)s::{t} AS before, high::{t} > %(high)s::{t} AS after"
            ).format(t=cursor_type_sql(window.type or "")),
            {"stream": stream, "low": window.low, "high": window.high},
        ).fetchall()
    pieces: list[dict[str, Any]] = [
        {"low": window.low, "high": window.high, "bounds": window.bounds, "load_id": load_id}
    ]
    for row in overlapped:
        if row["before"]:
            pieces.append(row | {"high": window.low})
        if row["after"]:
            pieces.append(row | {"low": window.high})
    for number, piece in enumerate(pieces):
        is_retired = retired if number == 0 else piece["retired_at"] is not None
        connection.execute(
            queries("ledger")["add_coverage"], piece | {"stream": stream, "retired": is_retired}
        )
    return [
        {
            "stream": stream,
            "low": window.low if row["before"] else row["low"],
            "high": window.high if row["after"] else row["high"],
            "bounds": row["bounds"],
            "load_id": row["load_id"],
        }
        for row in overlapped
        if row["retired_at"] is None
    ]


def retire_coverage(
    connection: psycopg.Connection[Any],
    stream: str,
    cursor_type: str,
    *,
    low: str | None,
    high: str,
    held: Sequence[tuple[str | None, str | None]],
    retirement_id: str,
) -> list[dict[str, Any]]:
    """Let ``[low, high)`` be neither covered nor missing any more; returns what was covered there.

    But for what other partitions hold of it (*held*): that stays as it is until the last of them goes. What
    lies between it and the next partition below goes with it: nobody would load what is not kept. The position
    stays where it is. Inside the caller's transaction, under the lock of the stream's row.
    """
    cast = cursor_type_sql(cursor_type)
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            queries("retention")["ranges_to_retire"].format(t=cast),
            {
                "stream": stream,
                "low": low,
                "high": high,
                "lows": [begins for begins, _ in held],
                "highs": [ends for _, ends in held],
            },
        ).fetchall()
    covered: list[dict[str, Any]] = []
    for row in rows:
        window = Window(row["low"], row["high"], cursor_type, row["bounds"] or "[)")
        covered += _place(connection, stream, window, retirement_id, retired=True)
    return covered


def restore_coverage(
    connection: psycopg.Connection[Any],
    stream: str,
    cursor_type: str,
    retirement_id: str,
    pieces: Sequence[Mapping[str, Any]],
) -> None:
    """Take back what :func:`retire_coverage` did, but for what was loaded since.

    Also what another retirement did to the range of this one's partition: something of it is there again.

    :param pieces: what was covered.
    """
    cast = cursor_type_sql(cursor_type)
    named = queries("retention")
    low, high = range_of(scalar(connection, named["bound"], {"retirement_id": retirement_id}))
    params = {
        "stream": stream,
        "retirement_id": retirement_id,
        "pieces": Jsonb([dict(piece) for piece in pieces]),
        "low": low,
        "high": high,
    }
    for name in ("give_coverage_back", "keep_rest_retired", "forget_retired_coverage"):
        connection.execute(named[name].format(t=cast), params)


def _advance(
    connection: psycopg.Connection[Any], manifest: Manifest, at: StreamPosition
) -> StreamPosition:
    """Move the position to the end of what is covered without a gap, if that is ahead of it."""
    cast = cursor_type_sql(manifest.window.type or "")
    origin = scalar(connection, queries("ledger")["origin"], {"stream": manifest.stream})
    row = connection.execute(
        sql.SQL(
            "WITH spans AS ("
            "  SELECT low::{t} AS low, high::{t} AS high,"
            "         greatest(%(start)s::{t}, lag(high::{t}) OVER (ORDER BY low::{t})) AS reached"
            "  FROM etl.coverage WHERE stream = %(stream)s AND high::{t} > %(start)s::{t}"
            "), gap AS (SELECT low FROM spans WHERE low > reached ORDER BY low LIMIT 1)"
            " SELECT high::text FROM spans WHERE NOT EXISTS (SELECT FROM gap WHERE spans.low >= gap.low)"
            " ORDER BY low DESC LIMIT 1"
        ).format(t=cast),
        {"stream": manifest.stream, "start": at.position or origin},
    ).fetchone()
    reached = None if row is None else row[0]
    if reached is None:
        return at
    named = queries("ledger")
    moved = _position(
        _row(
            connection,
            named["move_position"],
            {
                "stream": manifest.stream,
                "position": reached,
                "type": manifest.window.type,
                "load_id": manifest.load_id,
            },
        )
    )
    connection.execute(
        named["record_move"],
        {
            "stream": manifest.stream,
            "from": at.position,
            "to": reached,
            "fence": moved.fence,
            "reason": "published",
            "actor": scalar(connection, named["actor"], {"load_id": manifest.load_id}),
        },
    )
    return moved


def server_time(connection: psycopg.Connection[Any]) -> datetime:
    """The target server's clock."""
    now: datetime = scalar(connection, "SELECT clock_timestamp()")
    return now


def _row(
    connection: psycopg.Connection[Any], statement: sql.SQL, params: Mapping[str, Any]
) -> dict[str, Any]:
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(statement, params).fetchone()
    if row is None:
        raise StateError(
            f"the ledger has no row for {', '.join(f'{k} {v}' for k, v in params.items() if k in ('stream', 'load_id'))}",
            remedy="was the schema etl dropped or restored? clear extract and downstream to begin again",
        )
    return row
