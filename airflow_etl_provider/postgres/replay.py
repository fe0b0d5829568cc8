"""Dead letters as rows again: staged out of the ledger, judged like any batch, published beside their load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from airflow_etl_provider.core.columns import missing_column
from airflow_etl_provider.core.conversion import Conversion, Judged
from airflow_etl_provider.core.dead_letters import DeadLimits, Fault
from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ContractError,
    StateError,
)
from airflow_etl_provider.core.load import Kind, LoadState, Manifest, Published, Strategy
from airflow_etl_provider.core.names import TableName, quoted, staging_name
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.publish import PublishOptions
from airflow_etl_provider.core.replay import (
    Findings,
    Replayed,
    ReplayRequest,
    Staged,
    replay,
    way_back,
)
from airflow_etl_provider.core.validate import Engine
from airflow_etl_provider.postgres import catalog, ledger, statements
from airflow_etl_provider.postgres.audit import PostgresAuditArea
from airflow_etl_provider.postgres.catalog import Table, scalar
from airflow_etl_provider.postgres.checks import failing_rows
from airflow_etl_provider.postgres.conversion import BAD, RAW, Texts
from airflow_etl_provider.postgres.cursors import cursor_type_sql
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.keyed import KeyedBatch, same_key
from airflow_etl_provider.postgres.publish import PostgresPublisher
from airflow_etl_provider.postgres.quarantine import condition_of, require_same_batch
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.session import Endpoint, connect
from airflow_etl_provider.postgres.staging import drop_staging
from airflow_etl_provider.postgres.statements import ident
from airflow_etl_provider.quality.engine import audit
from airflow_etl_provider.quality.quarantine import for_single_rows, suite_of_results
from airflow_etl_provider.quality.report import Report
from airflow_etl_provider.quality.suite import Expectation, Suite, check_columns

Connection = psycopg.Connection[Any]

_LETTER = "etl_letter"
#: Reason, expectation and severity by the letter's id.
_Failures = dict[int, tuple[str, str | None, str | None]]


@dataclass(frozen=True, slots=True)
class _Origin:
    """The load that set letters aside, as the ledger has it."""

    manifest: Manifest
    strategy: Strategy
    options: PublishOptions


@dataclass(frozen=True, slots=True)
class PostgresReplay:
    """The target database over *endpoint*, as replay sees it."""

    endpoint: Endpoint

    def pending(
        self, stream: str, ids: Sequence[int] | None
    ) -> tuple[list[tuple[str, Sequence[int]]], dict[str, int]]:
        with connect(self.endpoint) as connection, translated_errors("looking for dead letters"):
            ledger.ensure_ledger(connection, label=self.endpoint.label)
            ledger.position_of(connection, stream)
            others = {} if ids is None else _others(connection, stream, ids)
            rows = connection.execute(
                queries("dead_letters")["pending_by_load"],
                {"stream": stream, "ids": None if ids is None else list(ids)},
            ).fetchall()
        return [(load_id, found) for load_id, found in rows], others

    def stage(
        self, request: ReplayRequest, origin: str, ids: Sequence[int], load_id: str
    ) -> Staged:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"staging dead letters of load {origin}"),
        ):
            source = _origin(connection, origin)
            target = catalog.read_table(
                connection, source.manifest.target, label=self.endpoint.label
            )
            _check_corrections(request, source.manifest)
            with connection.transaction():
                _in_turn(connection, source.manifest.stream)
                return _Staging(connection, request, source, target, load_id).run(ids)

    def settle(self, manifest: Manifest, found: Findings) -> tuple[Manifest | None, int]:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"recording the audit of load {manifest.load_id}"),
            connection.transaction(),
        ):
            _in_turn(connection, manifest.stream)
            require_same_batch(connection, manifest)
            failed = _failing(connection, manifest, found)
            _fail(connection, failed)
            if failed:
                connection.execute(
                    sql.SQL("DELETE FROM {} WHERE {} = ANY (%(ids)s::bigint[])").format(
                        ident(manifest.staging), sql.Identifier(_letter(manifest))
                    ),
                    {"ids": list(failed)},
                )
            left = replace(manifest, rows=manifest.rows - len(failed))
            ledger.reduce_batch(connection, left)
            if not left.rows:
                ledger.abandon(connection, manifest.load_id, "none of its letters passed the audit")
                drop_staging(connection, manifest.staging)
                return None, len(failed)
            look = statements.fingerprint(manifest.staging)
            left = replace(left, audited=catalog.scalar(connection, look))
            ledger.mark_audited(
                connection,
                manifest.load_id,
                rejected=False,
                report=found.report.as_ledger(),
                error=None,
                audited=left.audited,
            )
        return left, len(failed)

    def publish(
        self, manifest: Manifest, staged: Staged, *, stop: Stop, log: EventLog
    ) -> Published:
        with PostgresPublisher(self.endpoint) as publisher:
            published = publisher.publish(
                manifest, staged.strategy, staged.options, stop=stop, log=log
            )
            publisher.tidy(published, manifest, staged.options)
        return published

    def give_up(self, manifest: Manifest, reason: str) -> list[int] | None:
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"giving up load {manifest.load_id}"),
            connection.transaction(),
        ):
            _in_turn(connection, manifest.stream)
            load = ledger.load(connection, manifest.load_id, lock=True)
            if load is None or load.state.is_finished:
                return None
            return _give_up(connection, manifest.load_id, load.staging, reason)

    def fail(self, stream: str, ids: Sequence[int], reason: str) -> None:
        with (
            connect(self.endpoint) as connection,
            translated_errors("recording that letters failed again"),
            connection.transaction(),
        ):
            _in_turn(connection, stream)
            _fail(connection, dict.fromkeys(ids, (reason, None, None)))


def replay_letters(
    endpoint: Endpoint,
    request: ReplayRequest,
    suite: Suite | None,
    *,
    by_gx: Callable[[TableName, Suite, str], Report],
    new_id: Callable[[], str],
    stop: Stop,
    log: EventLog,
) -> Replayed:
    """Replay letters of a stream over *endpoint*; see :func:`~airflow_etl_provider.core.replay.replay`.

    :param suite: what rows must satisfy; ``None`` takes what the newest audit of the stream has judged.
    :param by_gx: judges what SQL cannot say.
    """
    area, audits = PostgresReplay(endpoint), PostgresAuditArea(endpoint)
    if suite is None:
        suite = _last_suite(endpoint, request.stream)
    asked = () if suite is None else for_single_rows(suite)

    def judge(manifest: Manifest) -> Findings:
        return _judged(audits, manifest, asked, by_gx)

    return replay(request, area=area, audit=judge, new_id=new_id, stop=stop, log=log)


def _in_turn(connection: Connection, stream: str) -> None:
    """Lock the stream's row, as every publish does first: letters, loads and what overtakes them keep one order."""
    connection.execute(queries("ledger")["lock_stream"], {"stream": stream})


def _last_suite(endpoint: Endpoint, stream: str) -> Suite | None:
    with connect(endpoint) as connection, translated_errors(f"reading the audits of {stream}"):
        ledger.ensure_ledger(connection, label=endpoint.label)
        row = connection.execute(
            queries("dead_letters")["last_report"], {"stream": stream}
        ).fetchone()
    return None if row is None else suite_of_results(row[0], stream)


def _judged(
    area: PostgresAuditArea,
    manifest: Manifest,
    expectations: Sequence[Expectation],
    by_gx: Callable[[TableName, Suite, str], Report],
) -> Findings:
    """What *expectations* say of a batch of letters, row by row as far as they tell rows."""
    staging, load_id = manifest.staging, manifest.load_id
    if not expectations:
        now = datetime.now(UTC)
        return Findings(Report(load_id, "none", str(staging), manifest.rows, (), now, now), (), ())
    letter = _letter(manifest)
    columns = [column for column in area.columns(staging) if column.name != letter]
    types = {column.name: column.type for column in columns}
    suite = Suite(manifest.stream, tuple(expectations))
    _check_suite(suite, manifest, list(types))
    report = audit(
        suite,
        Engine.AUTO,
        load_id=load_id,
        table=str(staging),
        by_sql=lambda some: area.judge(staging, some, columns, samples=0),
        by_gx=lambda rest: by_gx(staging, rest, load_id),
    )
    faults, of_all, results = [], [], []
    for expectation, result in zip(expectations, report.results, strict=True):
        condition = None if result.success else failing_rows(expectation, types, staging)
        if condition is not None:
            severity = expectation.severity.value
            faults.append(Fault(expectation.name, condition, expectation.type, severity))
        elif not result.success:
            of_all.append(expectation.name)
        results.append(replace(result, set_aside=condition is not None))
    return Findings(replace(report, results=tuple(results)), faults, of_all)


def _check_suite(suite: Suite, manifest: Manifest, columns: Sequence[str]) -> None:
    """:raises ContractError: an expectation reads a column that the batch of the letters did not have yet."""
    try:
        check_columns(suite, columns)
    except CatalogError as error:
        raise ContractError(
            f"letters of load {manifest.replays} cannot be audited: {error.what}",
            remedy="give the expectations that hold for rows of that time, as expectations or --suite; or discard "
            "the letters, and load their window again",
        ) from error


def _others(connection: Connection, stream: str, ids: Sequence[int]) -> dict[str, int]:
    """Letters that were asked for and are not pending, by their status.

    :raises ConfigurationError: there is no such letter of the stream.
    """
    rows = connection.execute(
        queries("dead_letters")["others_asked_for"], {"ids": list(ids)}
    ).fetchall()
    known = {letter: (owner, status) for letter, owner, status in rows}
    for letter in ids:
        if letter not in known or known[letter][0] != stream:
            whose = (
                f" is one of stream {known[letter][0]}" if letter in known else " does not exist"
            )
            raise ConfigurationError(
                f"dead letter {letter}{whose}", remedy=f"airflow-etl dead-letters list {stream}"
            )
    return dict(Counter(status for _, status in known.values() if status != "pending"))


def _origin(connection: Connection, load_id: str) -> _Origin:
    """:raises StateError: the load is not published (any more), so nothing of it can be replayed."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(queries("dead_letters")["origin"], {"load_id": load_id}).fetchone()
    if row is None:
        raise StateError(
            f"load {load_id}, which set letters aside, is no longer published",
            remedy="replay again: its letters have ended with it",
        )
    options = row["options"]
    return _Origin(
        Manifest.from_json(row["manifest"]),
        Strategy(row["strategy"]),
        PublishOptions() if options is None else PublishOptions.of_rows(options),
    )


def _check_corrections(request: ReplayRequest, manifest: Manifest) -> None:
    """:raises ConfigurationError: a column that the batch has not, or that holds treated personal data."""
    known = {column.name: column for column in manifest.columns}
    for values in (request.values, *request.corrections.values()):
        for name in values:
            if name not in known:
                error = missing_column(
                    f"the batch of load {manifest.load_id}", name, "in a correction", list(known)
                )
                raise ConfigurationError(error.what, remedy=error.remedy)
            if known[name].personal is not None:
                raise ConfigurationError(
                    f"column {name!r} holds personal data, which is treated ({known[name].personal}) before it leaves "
                    "the source: it cannot be corrected by hand",
                    remedy="mend the source, and clear extract and downstream",
                )


def _give_up(
    connection: Connection, load_id: str, staging: TableName | None, reason: str
) -> list[int]:
    """In the caller's transaction, which holds the load's row."""
    ledger.abandon(connection, load_id, reason)
    if staging is not None:
        drop_staging(connection, staging)
    rows = connection.execute(queries("dead_letters")["let_go"], {"replay": load_id}).fetchall()
    return sorted(letter for (letter,) in rows)


def _fail(connection: Connection, failures: _Failures) -> None:
    """Letters fail again."""
    if not failures:
        return
    connection.execute(
        queries("dead_letters")["failed_again"],
        {
            "ids": list(failures),
            "reasons": [reason for reason, _, _ in failures.values()],
            "expectations": [expectation for _, expectation, _ in failures.values()],
            "severities": [severity for _, _, severity in failures.values()],
        },
    )


def _failing(connection: Connection, manifest: Manifest, found: Findings) -> _Failures:
    """The letters whose rows have faults, with all of their reasons."""
    connection.execute(queries("checks")["own_search_path"])
    failing: dict[int, list[Fault]] = {}
    letter = sql.Identifier("t", _letter(manifest))
    for fault in [*found.faults, *(Fault(reason, sql.SQL("true")) for reason in found.of_all)]:
        rows = connection.execute(
            sql.SQL("SELECT {} FROM {} AS t WHERE {}").format(
                letter, ident(manifest.staging), condition_of(fault)
            )
        ).fetchall()
        for (number,) in rows:
            failing.setdefault(number, []).append(fault)
    connection.execute("SELECT set_config('search_path', 'pg_catalog', true)")
    return {
        number: (
            "; ".join(fault.reason for fault in faults),
            ", ".join(fault.expectation for fault in faults if fault.expectation) or None,
            faults[0].severity,
        )
        for number, faults in sorted(failing.items())
    }


def _letter(manifest: Manifest) -> str:
    """The column of the staged table that says which letter a row is."""
    name = _LETTER
    while any(column.name == name for column in manifest.columns):
        name += "_"
    return name


class _Staging:
    """Letters of one load become a batch, in the caller's transaction, which holds the stream's row."""

    def __init__(
        self,
        connection: Connection,
        request: ReplayRequest,
        origin: _Origin,
        target: Table,
        load_id: str,
    ) -> None:
        self._connection = connection
        self._request = request
        self._origin = origin
        self._target = target
        columns = {column.name for column in origin.manifest.columns}
        keys = origin.options.keys or origin.manifest.keys or target.primary_key
        keys = keys if columns.issuperset(keys) else ()
        self._strategy, kind = way_back(origin.strategy, origin.manifest.kind, keys)
        self._manifest = replace(
            origin.manifest,
            load_id=load_id,
            kind=kind,
            staging=TableName(
                ledger.STAGING_SCHEMA,
                staging_name(origin.manifest.stream, load_id, request.run.try_number),
            ),
            keys=tuple(keys),
            partitions=(),
            direct=False,
            moves_watermark=False,
            rows=0,
            bytes=0,
            rows_dead=0,
            checksum=None,
            report=None,
            transformed=None,
            audited=None,
            replays=origin.manifest.load_id,
        )
        self._letter = _letter(self._manifest)

    def run(self, ids: Sequence[int]) -> Staged:
        chosen, waiting = self._chosen(ids)
        texts = self._texts()
        failures: _Failures = {}
        replaced: list[int] = []
        there: list[int] = []
        if chosen:
            self._create(texts)
            self._receive(chosen)
            failures = self._judge(texts)
            self._connection.execute(texts.convert())
            moved, uncovered, replaced = self._places()
            failures |= moved
            there = self._newer()
            gone = {*failures, *uncovered, *replaced, *there}
            self._take_out(gone)
            waiting += len(uncovered)
            chosen = [letter for letter in chosen if letter not in gone]
        _fail(self._connection, failures)
        self._supersede(replaced, "overtaken: another load covers the place of the row by now")
        self._supersede(there, f"overtaken: the target has {self._newer_what}")
        manifest = self._record(chosen) if chosen else None
        if manifest is None:
            drop_staging(self._connection, self._manifest.staging)
        return Staged(
            manifest,
            self._strategy,
            self._origin.options,
            failed=len(failures),
            superseded=len({*replaced, *there}),
            waiting=waiting,
        )

    def _chosen(self, ids: Sequence[int]) -> tuple[list[int], int]:
        """Letters that may come back, and how many may not."""
        with self._connection.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(
                queries("dead_letters")["lock_pending"],
                {"load_id": self._origin.manifest.load_id, "ids": list(ids)},
            ).fetchall()
        for earlier in sorted({row["replay"] for row in rows if row["replay"] is not None}):
            # Its task is gone, or will find that this one was quicker.
            load = ledger.load(self._connection, earlier, lock=True)
            if load is not None and load.state in (
                LoadState.STARTED,
                LoadState.STAGED,
                LoadState.VALIDATED,
            ):
                _give_up(self._connection, earlier, load.staging, "another replay took its letters")
        # What a transform made of a row, only the transform can make of it again.
        made_anew = self._origin.manifest.transformed is not None
        chosen = [row["id"] for row in rows if row["audited"] or not made_anew]
        return chosen, len(rows) - len(chosen)

    def _places(self) -> tuple[_Failures, list[int], list[int]]:
        """Events that their load no longer has a place for.

        Those that a correction has moved out of its window; those whose place is to be loaded again or no
        longer kept, which may be restored; and those whose place another load has by now.
        """
        manifest = self._origin.manifest
        window, cursor = manifest.window, manifest.cursor
        columns = {column.name for column in manifest.columns}
        if manifest.kind is not Kind.EVENTS or not window.is_range or cursor not in columns:
            return {}, [], []
        at = sql.SQL("s.{}::{}").format(sql.Identifier(cursor), cursor_type_sql(window.type or ""))
        rows = self._connection.execute(
            sql.SQL(
                "SELECT s.{letter}, ({inside}) IS TRUE, ARRAY(SELECT c.load_id::text FROM etl.coverage AS c"
                "   WHERE c.stream = %(stream)s AND c.retired_at IS NULL AND CASE WHEN left(c.bounds, 1) = '['"
                "     THEN c.low::{t} <= {at} AND c.high::{t} > {at} ELSE c.low::{t} < {at} AND c.high::{t} >= {at} END)"
                " FROM {staging} AS s"
            ).format(
                letter=sql.Identifier(self._letter),
                inside=statements.in_window(cursor, window),
                t=cursor_type_sql(window.type or ""),
                at=at,
                staging=ident(self._manifest.staging),
            ),
            {"stream": manifest.stream},
        ).fetchall()
        why = f"column {quoted(cursor)} lies outside of the window of its load"
        moved: _Failures = {letter: (why, None, None) for letter, inside, _ in rows if not inside}
        # Where two ranges meet, both may have the bound.
        placed = [(letter, loads) for letter, inside, loads in rows if inside]
        return (
            moved,
            [letter for letter, loads in placed if not loads],
            [letter for letter, loads in placed if loads and manifest.load_id not in loads],
        )

    def _take_out(self, ids: Collection[int]) -> None:
        if ids:
            self._connection.execute(
                sql.SQL("DELETE FROM {} WHERE {} = ANY (%(ids)s::bigint[])").format(
                    ident(self._manifest.staging), sql.Identifier(self._letter)
                ),
                {"ids": sorted(ids)},
            )

    def _texts(self) -> Texts:
        """:raises ContractError: the target no longer has a column of the batch."""
        judged = []
        for column in self._manifest.columns:
            if not self._target.has_column(column.name):
                raise ContractError(
                    f"{self._target.name} no longer has column {column.name!r}, which the letters of load "
                    f"{self._origin.manifest.load_id} have",
                    remedy="discard them, and load their window again",
                )
            theirs = self._target.column(column.name, use="a column of a letter")
            judged.append(
                Judged(
                    name=theirs.name,
                    type=theirs.type,
                    stored=theirs.stored or theirs.type,
                    text=True,
                    required=theirs.not_null or theirs.never_null,
                    soft=theirs.soft_input,
                )
            )
        conversion = Conversion(tuple(judged), remarks=False, limits=DeadLimits(1.0))
        version = self._connection.info.server_version
        return Texts.of(conversion, self._manifest.staging, version, tag=self._letter)

    def _create(self, texts: Texts) -> None:
        connection, manifest = self._connection, self._manifest
        columns = [column.name for column in manifest.columns]
        otherwise = catalog.stored_otherwise(connection, self._target, columns)
        logged = not scalar(
            connection, queries("catalog")["publishes_schema"], {"schema": ledger.STAGING_SCHEMA}
        )
        comment = f"stream {manifest.stream}, load {manifest.load_id}, replays letters of load {manifest.replays}"
        tag = sql.SQL("ALTER TABLE {} ADD COLUMN {} bigint").format(
            ident(manifest.staging), sql.Identifier(self._letter)
        )
        connection.execute("DROP TABLE IF EXISTS pg_temp.etl_raw, pg_temp.etl_bad")
        for step in (
            statements.create_staging(manifest.staging, self._target.name, columns, logged=logged),
            *statements.uncompressed(manifest.staging, otherwise),
            tag,
            statements.comment(manifest.staging, comment),
            *texts.create(otherwise),
        ):
            connection.execute(step)

    def _receive(self, ids: Sequence[int]) -> None:
        """The texts of the letters, with their corrections."""
        names = [column.name for column in self._manifest.columns]
        each = {str(number): dict(values) for number, values in self._request.corrections.items()}
        self._connection.execute(
            sql.SQL(
                "INSERT INTO {} ({}, {}) SELECT {}, id FROM ("
                "  SELECT id, record || %(values)s::jsonb || coalesce(%(each)s::jsonb -> id::text, '{{}}') AS record"
                "  FROM etl.dead_letters WHERE id = ANY (%(ids)s::bigint[])) AS mended ORDER BY id"
            ).format(
                RAW,
                statements.names(names),
                sql.Identifier(self._letter),
                sql.SQL(", ").join(sql.SQL("record ->> {}").format(sql.Literal(n)) for n in names),
            ),
            {
                "values": Jsonb(dict(self._request.values)),
                "each": Jsonb(each),
                "ids": list(ids),
            },
        )

    def _judge(self, texts: Texts) -> _Failures:
        """Letters that cannot be converted; their rows are gone then."""
        self._connection.execute(texts.judge())
        rows = self._connection.execute(
            sql.SQL("SELECT r.{}, b.reason FROM {} AS r JOIN {} AS b ON r.ctid = b.place").format(
                sql.Identifier(self._letter), RAW, BAD
            )
        ).fetchall()
        if rows:
            self._connection.execute(texts.drop_bad())
        return {number: (reason, None, None) for number, reason in rows}

    def _newer(self) -> list[int]:
        """Letters whose row the target has in a newer version, or, if it is an event, at all."""
        if self._strategy is not Strategy.MERGE:
            # A history takes older versions in, and without a key nothing can be found.
            return []
        keyed = KeyedBatch(self._connection, self._manifest, self._target, self._origin.options)
        newer: sql.Composable = sql.SQL("true")
        if self._origin.manifest.kind is not Kind.EVENTS:
            if keyed.order is None:
                return []
            (cursor_type,) = (c.type for c in self._manifest.columns if c.name == keyed.order)
            newer = sql.SQL("t.{c}::{t} > s.{c}::{t}").format(
                c=sql.Identifier(keyed.order), t=cursor_type_sql(cursor_type)
            )
        letter = sql.Identifier(self._letter)
        # Keys of extensions' types compare where the role finds their operators, as publish does.
        self._connection.execute(queries("checks")["own_search_path"])
        rows = self._connection.execute(
            sql.SQL(
                "SELECT s.{} FROM {} AS s WHERE EXISTS (SELECT FROM {} AS t WHERE {} AND {})"
            ).format(
                letter,
                ident(self._manifest.staging),
                ident(self._target.name),
                same_key(keyed.keys),
                newer,
            )
        ).fetchall()
        self._connection.execute("SELECT set_config('search_path', 'pg_catalog', true)")
        return [number for (number,) in rows]

    @property
    def _newer_what(self) -> str:
        if self._origin.manifest.kind is Kind.EVENTS:
            return "the row already"
        return "a newer version of the row"

    def _supersede(self, ids: Sequence[int], why: str) -> None:
        if ids:
            self._connection.execute(
                queries("dead_letters")["overtaken"], {"ids": list(ids), "why": why}
            )

    def _record(self, ids: Sequence[int]) -> Manifest:
        """Enter the batch into the ledger, and take its letters."""
        connection = self._connection
        manifest = replace(self._manifest, rows=len(ids))
        ledger.begin_load(
            connection,
            load_id=manifest.load_id,
            stream=manifest.stream,
            target=manifest.target,
            kind=self._origin.manifest.kind,
            run=self._request.run,
            window=manifest.window,
            moves_watermark=False,
            origin=None,
            replays=manifest.replays,
        )
        statement, params = ledger.staged_statement(manifest)
        connection.execute(statement, params)
        connection.execute(
            queries("dead_letters")["take"], {"replay": manifest.load_id, "ids": list(ids)}
        )
        return manifest
