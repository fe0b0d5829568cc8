"""``scd2``: a row for each version of a key, with the time from which and up to which it was true.

A slowly changing dimension of type 2 (R. Kimball, The Data Warehouse Toolkit). For every key of the batch
the timeline is made anew from the versions that are there and those that come, and only the difference is
written: so a load that comes again changes nothing, and the order in which loads arrive does not matter, as far
as the target's rows tell what has been seen:

* A version was seen from ``valid_from`` to the value of its cursor column, which a later row that is the same
  otherwise moves on. What comes late between the two splits it, so the current version is that of the row with
  the latest cursor. How often it was seen between the two is not kept: what splits a version lasts up to that
  latest value.
* A deletion (``deletes='hard'``) is kept where it ended a version. One of a key that was not there leaves nothing
  behind, so an older row that comes later is taken for current. Flags that are kept (``deletes='soft'``) are
  versions like all others.
* Snapshots, and rows without their cursor column, only tell when they were read: a batch of them is not published
  after one that was read later.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import ContractError, DataError
from airflow_etl_provider.core.load import Kind, Manifest
from airflow_etl_provider.core.publish import Counts, Deletes, PublishOptions, brake
from airflow_etl_provider.postgres import ledger
from airflow_etl_provider.postgres.catalog import Table, scalar
from airflow_etl_provider.postgres.keyed import KeyedBatch, same_key
from airflow_etl_provider.postgres.statements import ident, names, qualified
from airflow_etl_provider.postgres.upsert import expect_random_reads

_TIMELINE = sql.Identifier("pg_temp", "etl_timeline")


class History:
    """One publish by scd2, in the caller's transaction, which holds other writers off.

    A version is true from the cursor's value of its row on, without a cursor from the moment that the source
    was read. It ends where the next one begins, or where the row was deleted. A row that only got another
    cursor value, and is the same otherwise, begins no version; the version takes the later value.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        manifest: Manifest,
        target: Table,
        options: PublishOptions,
        batch: KeyedBatch,
    ) -> None:
        self._connection = connection
        self._manifest = manifest
        self._target = target
        self._options = options
        self._batch = batch
        # Tables that inherit from a plain target are tables of their own.
        self._table: sql.Composable = ident(target.name)
        if target.kind == "r":
            self._table = sql.SQL("ONLY {}").format(self._table)
        self._columns = [column.name for column in manifest.columns]
        self._values = [c for c in self._columns if c not in batch.keys]
        #: Whether a row of the batch ends its key's last version and begins none.
        self._gone = batch.deleted if options.deletes is Deletes.HARD else None
        flag = None if self._gone is None else options.delete_flag
        #: The column that keeps when a version was last seen.
        self._seen = manifest.cursor if manifest.cursor in self._values else None
        self._compared = [c for c in self._values if c not in (manifest.cursor, flag)]
        self._from, self._to = options.valid_from, options.valid_to
        #: Names of what the timeline is made with; the batch may have columns of any name.
        prefix = _prefix([*self._columns, self._from, self._to])
        self._own = {
            name: sql.Identifier(prefix + name)
            for name in ("at", "gone", "rank", "begins", "ends", "next")
        }
        self._require_columns()

    def apply(self) -> Counts:
        """Write what differs.

        :raises ContractError: the target lacks a column, or the cursor is no time that ``valid_from`` holds.
        :raises DataError: the target holds two versions of a key that are true at once, or one whose open end is
            no NULL; the batch has rows without a cursor value.
        :raises ShrinkBrake: more current rows end without a successor than may go.
        :raises StateError: nothing but the time of reading tells what is newer, and a later reading is published.
        """
        _, overtaken, _ = ledger.newer_snapshots(self._connection, self._manifest)
        if overtaken and self._cursor is None and self._manifest.replays is None:
            ledger.require_latest(self._connection, self._manifest)
        expect_random_reads(self._connection)
        self._refuse_nulls()
        self._refuse_infinity()
        self._refuse_two_truths()
        self._connection.execute("DROP TABLE IF EXISTS pg_temp.etl_timeline")
        self._connection.execute(self._timeline(overtaken))
        self._connection.execute(sql.SQL("ANALYZE {}").format(_TIMELINE))
        self._brake()
        unchanged = self._count_known()
        deleted = self._run(
            sql.SQL(
                "DELETE FROM {} AS t WHERE EXISTS (SELECT FROM {} AS s WHERE {})"
                " AND NOT EXISTS (SELECT FROM {} AS n WHERE {} AND n.{f} = t.{f})"
            ).format(
                self._table,
                ident(self._manifest.staging),
                same_key(self._batch.keys),
                _TIMELINE,
                self._same("n"),
                f=sql.Identifier(self._from),
            )
        )
        updated = self._run(self._update())
        inserted = self._run(self._insert())
        self._connection.execute("DROP TABLE pg_temp.etl_timeline")
        return Counts(inserted, updated, deleted, unchanged)

    # -- what must hold ---------------------------------------------------------------------------

    def _require_columns(self) -> None:
        target, options = self._target, self._options
        found = target.column(self._from, use="valid_from")
        ends = target.column(self._to, use="valid_to")
        if options.is_current is not None:
            target.column(options.is_current, use="is_current")
        own = (self._from, self._to, options.is_current)
        if both := [column for column in self._columns if column in own]:
            raise ContractError(
                f"the batch brings {', '.join(both)}, which strategy 'scd2' fills itself in {target.name}",
                remedy="leave the column out with columns=[...], or name others with valid_from and valid_to",
            )
        if ends.type != found.type or ends.not_null:
            raise ContractError(
                f"{self._to} of {target.name} must be {found.type} like {self._from}, and may be NULL, which is an open end",
                remedy=f"ALTER TABLE {target.name} ALTER COLUMN {self._to} TYPE {found.type}, ALTER COLUMN {self._to} DROP NOT NULL",
            )
        types = {column.name: column.type for column in self._manifest.columns}
        cursor = self._cursor
        begins = "timestamp with time zone" if cursor is None else types[cursor]
        if begins != found.type:
            raise ContractError(
                f"{self._from} of {target.name} is {found.type}, and versions begin at {cursor or 'the time of reading'}, "
                f"which is {begins}",
                remedy=f"let {self._from} and {self._to} be {begins}",
            )

    @property
    def _cursor(self) -> str | None:
        """The column that says since when a row is as it is; of snapshots, the time of reading does."""
        cursor = self._manifest.cursor
        return cursor if cursor in self._columns else None

    def _refuse_nulls(self) -> None:
        if self._cursor is None:
            return
        empty = scalar(
            self._connection,
            sql.SQL("SELECT count(*) FROM {} WHERE {} IS NULL").format(
                ident(self._manifest.staging), sql.Identifier(self._cursor)
            ),
        )
        if empty:
            raise DataError(
                f"{empty:,} rows of the batch {self._manifest.staging} have no {self._cursor}, so nothing says since when "
                "they are as they are",
                remedy="mend the source, or use strategy='merge'",
            )

    def _refuse_infinity(self) -> None:
        """Another way to write an open end would make a version that has ended of every current one."""
        kind = self._target.column(self._to, use="valid_to").type
        if kind != "date" and not kind.startswith("timestamp"):
            return
        endless = scalar(
            self._connection,
            sql.SQL(
                "SELECT count(*) FROM {t} AS t WHERE t.{e} = 'infinity' AND {touched}"
                " AND NOT EXISTS (SELECT FROM {t} AS n WHERE {same} AND n.{f} = t.{e})"
            ).format(
                t=self._table,
                touched=self._touched(),
                same=self._same("n"),
                e=sql.Identifier(self._to),
                f=sql.Identifier(self._from),
            ),
        )
        if endless:
            raise DataError(
                f"{endless:,} versions of {self._target.name} that the batch meets end at 'infinity', where an open end is NULL",
                remedy=sql.SQL(
                    "run UPDATE {t} SET {e} = NULL WHERE {e} = 'infinity', and let queries look for {e} IS NULL"
                )
                .format(t=ident(self._target.name), e=sql.Identifier(self._to))
                .as_string(None),
            )

    def _refuse_two_truths(self) -> None:
        twice = scalar(
            self._connection,
            sql.SQL(
                "SELECT count(*) FROM (SELECT FROM {t} AS t WHERE EXISTS (SELECT FROM {s} AS s WHERE {k})"
                " GROUP BY {g} HAVING count(*) FILTER (WHERE t.{e} IS NULL) > 1"
                " OR count(*) > count(DISTINCT t.{f})) AS d"
            ).format(
                t=self._table,
                s=ident(self._manifest.staging),
                k=same_key(self._batch.keys),
                g=qualified("t", self._batch.keys),
                e=sql.Identifier(self._to),
                f=sql.Identifier(self._from),
            ),
        )
        if twice:
            raise DataError(
                f"{twice:,} keys ({', '.join(self._batch.keys)}) of {self._target.name} have two versions that are true at "
                "the same time",
                remedy=f"mend the table; a unique index on ({', '.join(self._batch.keys)}, {self._from}) keeps it so",
            )

    def _brake(self) -> None:
        if self._gone is None and self._manifest.kind is not Kind.SNAPSHOTS:
            return
        ends = sql.SQL("SELECT count(*) FROM {t} AS t WHERE t.{e} IS NULL").format(
            t=self._table, e=sql.Identifier(self._to)
        )
        gone = scalar(
            self._connection,
            ends
            + sql.SQL(
                " AND {} AND NOT EXISTS (SELECT FROM {} AS n WHERE {} AND n.{} IS NULL)"
            ).format(self._touched(), _TIMELINE, self._same("n"), sql.Identifier(self._to)),
        )
        if gone:
            brake(
                self._manifest,
                f"the current rows of {self._target.name}",
                before=scalar(self._connection, ends),
                lost=gone,
                options=self._options,
            )

    # -- the timeline -----------------------------------------------------------------------------

    def _timeline(self, overtaken: bool) -> sql.Composed:
        """Every version of the touched keys as it should be, as it was last seen.

        Of two events at the same instant the batch's counts, unless a load that read the source later has
        been published (rule: the later reading knows better).
        """
        batch_rank = sql.Literal(0 if overtaken else 3)
        read_at = sql.Literal(self._manifest.snapshot_at.isoformat())
        columns = [*self._batch.keys, *self._values]
        pieces = [
            sql.SQL(
                "SELECT {}, t.{} AS {at}, false AS {gone}, 2 AS {rank} FROM etl_there AS t"
            ).format(self._as_first_seen(), sql.Identifier(self._from), **self._own),
            sql.SQL("SELECT {}, {}, false, 2 FROM etl_there AS t WHERE {}").format(
                qualified("t", columns), self._last_seen(), self._seen_again()
            ),
            # Where a version ended and no other began, the row was deleted.
            sql.SQL("SELECT {}, t.{e}, true, 1 FROM etl_there AS t WHERE t.{e} IS NOT NULL").format(
                qualified("t", columns), e=sql.Identifier(self._to)
            ),
            sql.SQL("SELECT {}, {}, {}, {} FROM {} AS s").format(
                qualified("s", columns),
                self._begins(),
                self._gone or sql.SQL("false"),
                batch_rank,
                ident(self._manifest.staging),
            ),
        ]
        if self._manifest.kind is Kind.SNAPSHOTS:
            # What is gone from the snapshot was deleted by the time it was read.
            pieces.append(
                sql.SQL(
                    "SELECT {}, {}::timestamptz, true, {} FROM etl_there AS t WHERE t.{} IS NULL AND NOT {}"
                ).format(
                    qualified("t", columns),
                    read_at,
                    batch_rank,
                    sql.Identifier(self._to),
                    self._in_batch(),
                )
            )
        return sql.SQL(
            "CREATE TEMP TABLE etl_timeline ON COMMIT DROP AS"
            " WITH etl_there AS MATERIALIZED (SELECT * FROM {target} AS t WHERE {touched}),"
            " etl_events AS (SELECT DISTINCT ON ({keys}, {at}) * FROM ({pieces}) AS e"
            "   ORDER BY {keys}, {at}, {rank} DESC),"
            " etl_marked AS (SELECT *, CASE WHEN {gone} THEN NOT lag({gone}, 1, true) OVER w"
            "   ELSE lag({gone}, 1, true) OVER w OR lag({image}) OVER w IS DISTINCT FROM {image} END AS {begins}"
            "   FROM etl_events WINDOW w AS (PARTITION BY {keys} ORDER BY {at})),"
            " etl_bounded AS (SELECT *, lead({at}) OVER w AS {next}, lead({begins}, 1, true) OVER w AS {ends}"
            "   FROM etl_marked WINDOW w AS (PARTITION BY {keys} ORDER BY {at})),"
            " etl_versions AS (SELECT *, CASE WHEN {begins} THEN {at} ELSE lag({at}) OVER w END AS {valid_from}"
            "   FROM etl_bounded WHERE {begins} OR {ends} WINDOW w AS (PARTITION BY {keys} ORDER BY {at}))"
            " SELECT {columns}, {valid_from}, {next} AS {valid_to} FROM etl_versions WHERE {ends} AND NOT {gone}"
        ).format(
            target=self._table,
            touched=self._touched(),
            keys=names(self._batch.keys),
            columns=names(columns),
            pieces=sql.SQL(" UNION ALL ").join(pieces),
            image=sql.SQL("ROW({})::text").format(names(self._compared)),
            valid_from=sql.Identifier(self._from),
            valid_to=sql.Identifier(self._to),
            **self._own,
        )

    def _begins(self) -> sql.Composable:
        """From when on the batch's row ``s`` is true."""
        if self._cursor is not None:
            return sql.Identifier("s", self._cursor)
        return sql.SQL("{}::timestamptz").format(
            sql.Literal(self._manifest.snapshot_at.isoformat())
        )

    def _last_seen(self) -> sql.Identifier:
        return sql.Identifier("t", self._seen or self._from)

    def _seen_again(self) -> sql.Composed:
        """Whether the version ``t`` was seen after it began; not where its cursor says something else."""
        return sql.SQL("{seen} > t.{f} AND (t.{e} IS NULL OR {seen} < t.{e})").format(
            seen=self._last_seen(), f=sql.Identifier(self._from), e=sql.Identifier(self._to)
        )

    def _as_first_seen(self) -> sql.Composed:
        """The version ``t`` when it began: a later sight may belong to another, if what comes splits it."""
        return sql.SQL(", ").join(
            sql.SQL("CASE WHEN {} THEN t.{} ELSE t.{c} END AS {c}").format(
                self._seen_again(), sql.Identifier(self._from), c=sql.Identifier(column)
            )
            if column == self._seen
            else sql.Identifier("t", column)
            for column in [*self._batch.keys, *self._values]
        )

    def _count_known(self) -> int:
        """Rows of the batch that say nothing new: the target holds their version as they are, or as seen later."""
        known: int = scalar(
            self._connection,
            sql.SQL(
                "SELECT count(*) FROM {s} AS s LEFT JOIN {t} AS t ON {k} AND t.{f} <= {at} AND (t.{e} IS NULL OR t.{e} > {at})"
                " WHERE CASE WHEN {gone} THEN t.{f} IS NULL ELSE {same} OR ({seen} > {at} AND {again} AND {alike}) END"
            ).format(
                s=ident(self._manifest.staging),
                t=self._table,
                k=same_key(self._batch.keys),
                f=sql.Identifier(self._from),
                e=sql.Identifier(self._to),
                at=self._begins(),
                gone=self._gone or sql.SQL("false"),
                same=_same_image(self._values),
                seen=self._last_seen(),
                again=self._seen_again(),
                alike=_same_image(self._compared),
            ),
        )
        # Where versions of the target overlap, a row meets two.
        return min(known, self._manifest.rows)

    def _in_batch(self) -> sql.Composed:
        """Whether the batch has the key of ``t``."""
        return sql.SQL("EXISTS (SELECT FROM {} AS s WHERE {})").format(
            ident(self._manifest.staging), same_key(self._batch.keys)
        )

    def _touched(self) -> sql.Composable:
        """Whether the batch says something about the key of ``t``: a snapshot does about every key."""
        return sql.SQL("true") if self._manifest.kind is Kind.SNAPSHOTS else self._in_batch()

    def _same(self, alias: str) -> sql.Composed:
        return sql.SQL(" AND ").join(
            sql.SQL("t.{k} = {a}.{k}").format(k=sql.Identifier(key), a=sql.SQL(alias))
            for key in self._batch.keys
        )

    def _written(self) -> list[str]:
        return [*self._values, self._from, self._to]

    def _update(self) -> sql.Composed:
        sets = [
            sql.SQL("{c} = n.{c}").format(c=sql.Identifier(c)) for c in [*self._values, self._to]
        ]
        if self._options.is_current is not None:
            sets.append(
                sql.SQL("{} = n.{} IS NULL").format(
                    sql.Identifier(self._options.is_current), sql.Identifier(self._to)
                )
            )
        compared = [*self._values, self._to]
        return sql.SQL(
            "UPDATE {} AS t SET {} FROM {} AS n WHERE {} AND n.{f} = t.{f}"
            " AND ROW({})::record OPERATOR(pg_catalog.*<>) ROW({})::record"
        ).format(
            self._table,
            sql.SQL(", ").join(sets),
            _TIMELINE,
            self._same("n"),
            qualified("t", compared),
            qualified("n", compared),
            f=sql.Identifier(self._from),
        )

    def _insert(self) -> sql.Composed:
        columns = [*self._batch.keys, *self._written()]
        into, chosen = names(columns), qualified("n", columns)
        if self._options.is_current is not None:
            into = into + sql.SQL(", {}").format(sql.Identifier(self._options.is_current))
            chosen = chosen + sql.SQL(", n.{} IS NULL").format(sql.Identifier(self._to))
        return sql.SQL(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS n WHERE NOT EXISTS"
            " (SELECT FROM {} AS t WHERE {} AND n.{f} = t.{f})"
        ).format(
            ident(self._target.name),
            into,
            chosen,
            _TIMELINE,
            self._table,
            self._same("n"),
            f=sql.Identifier(self._from),
        )

    def _run(self, statement: sql.Composed) -> int:
        return self._connection.execute(statement).rowcount


def _same_image(columns: Sequence[str]) -> sql.Composed:
    """Whether ``s`` and ``t`` look the same in *columns*."""
    return sql.SQL("ROW({})::text = ROW({})::text").format(
        qualified("s", columns), qualified("t", columns)
    )


def _prefix(columns: Sequence[str]) -> str:
    """What none of *columns* begins with."""
    tried = (f"etl{number}_" for number in count())
    return next(
        prefix for prefix in tried if not any(column.startswith(prefix) for column in columns)
    )
