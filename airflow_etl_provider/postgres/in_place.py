"""Strategies that change the target in place, in one transaction: ``delete_insert``, ``merge``, ``append``,
``replace``, ``scd2``.

Readers never wait for them: they see the rows as before until the commit, in any isolation level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import (
    CatalogError,
    EtlError,
    LockBudgetExceeded,
    Stopped,
)
from airflow_etl_provider.core.load import (
    Kind,
    Manifest,
    Published,
    Strategy,
    StreamPosition,
)
from airflow_etl_provider.core.names import TableName, quoted
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.publish import Counts, Deletes, PublishOptions, brake
from airflow_etl_provider.postgres import ledger, locking, statements
from airflow_etl_provider.postgres.append import append
from airflow_etl_provider.postgres.catalog import Table, missing_privileges, scalar
from airflow_etl_provider.postgres.errors import translate
from airflow_etl_provider.postgres.keyed import KeyedBatch, keys_of, same_key
from airflow_etl_provider.postgres.leaves import (
    for_the_homeless,
    partition_columns,
    read_leaves,
    rows_by_leaf,
)
from airflow_etl_provider.postgres.scd2 import History
from airflow_etl_provider.postgres.statements import ident, names, qualified
from airflow_etl_provider.postgres.upsert import Access, Upsert, Written

#: How often a publish is done over because others wrote the same keys meanwhile.
_ATTEMPTS = 3
_BY_KEY = (Strategy.MERGE, Strategy.SCD2)
_NO_PARTITION = "no partition of relation"
#: What of a session can reach the values that a trigger or a default makes.
_SEEN_BY_TRIGGERS = (
    "search_path",
    "TimeZone",
    "DateStyle",
    "IntervalStyle",
    "bytea_output",
    "lc_monetary",
    "xmloption",
)


class InPlace:
    """One publish in place; *connection* is in autocommit and belongs to the caller."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        manifest: Manifest,
        target: Table,
        options: PublishOptions,
        stop: Stop,
        log: EventLog,
    ) -> None:
        self._connection = connection
        self._manifest = manifest
        self._target = target
        self._options = options
        self._stop = stop
        self._log = log
        self._access: Access | None = None
        self._columns = [column.name for column in manifest.columns]
        # Tables that inherit from a plain target are tables of their own.
        self._table: sql.Composable = ident(target.name)
        if target.kind == "r":
            self._table = sql.SQL("ONLY {}").format(self._table)

    def run(self, strategy: Strategy) -> Published:
        """Apply the batch and record it.

        :raises CatalogError: the target does not suit the strategy, or a privilege is missing.
        :raises DataError: a key that is NULL, or stands twice in the batch and differs.
        :raises ShrinkBrake: more rows would go than allowed.
        :raises StateError: the stream was rewound since the load was planned.
        :raises LockBudgetExceeded: others held rows, or locks that stop writers, up to the deadline; the load stays
            validated.
        """
        apply = {
            Strategy.DELETE_INSERT: self._delete_insert,
            Strategy.MERGE: self._merge,
            Strategy.APPEND: self._append,
            Strategy.REPLACE: self._replace,
            Strategy.SCD2: self._scd2,
        }[strategy]
        self._inspect(strategy)
        for attempt in range(_ATTEMPTS):
            try:
                return self._transact(strategy, apply)
            except (
                psycopg.errors.UniqueViolation,
                psycopg.errors.SerializationFailure,
                psycopg.errors.DeadlockDetected,
            ):
                # Somebody else has inserted the key meanwhile: now it is there to be updated. A batch that
                # violates a key of the target by itself does so every time.
                if attempt == _ATTEMPTS - 1:
                    raise
            except psycopg.errors.LockNotAvailable:
                raise self._blocked() from None
            except psycopg.errors.CheckViolation as error:
                raise self._violation(error) from None
        raise AssertionError("unreachable")

    def _violation(self, error: psycopg.errors.CheckViolation) -> EtlError:
        """What to do where it is no constraint that a row breaks, but a partition that is missing for it."""
        told = translate(
            error, f"publishing load {self._manifest.load_id} into {self._target.name}"
        )
        diag = error.diag
        if told.function is None and _NO_PARTITION in (diag.message_primary or ""):
            lacking = TableName(diag.schema_name or "", diag.table_name or "")
            told.remedy = for_the_homeless(self._connection, self._manifest, self._target, lacking)
        return told

    def _blocked(self) -> LockBudgetExceeded:
        leaves = [leaf.partition.oid for leaf in read_leaves(self._connection, self._target)]
        writers = locking.blockers(self._connection, self._target, leaves, writers=True)
        return LockBudgetExceeded(
            f"publishing load {self._manifest.load_id} waited {self._options.lock_deadline} for rows of "
            f"{self._target.name} that others are writing, or for another load of its stream; writers: {writers}",
            remedy="the load stays validated: end the session that blocks (SELECT pg_terminate_backend(pid)), or raise "
            "lock_deadline, then retry",
        )

    def _transact(self, strategy: Strategy, apply: Callable[[], Counts]) -> Published:
        connection, manifest = self._connection, self._manifest
        with connection.transaction():
            locking.wait_at_most(connection, self._options.lock_deadline)
            position = ledger.enter_publish(connection, manifest, strategy)
            if isinstance(position, Published):
                return position
            if strategy in _BY_KEY:
                self._keyed.require_keys(every_version=strategy is Strategy.SCD2)
            else:
                manifest.require_rows(scalar(connection, statements.count(manifest.staging)))
            self._access = self._read_access(strategy)
            counts = apply()
            published = ledger.record_published(
                connection,
                self._published(strategy, counts, position),
                manifest,
                options=self._options.about_rows(),
                keys=self._keyed.keys if strategy in _BY_KEY else (),
            )
            if self._stop.is_set():
                raise Stopped(
                    f"publishing load {manifest.load_id} was stopped; nothing was changed"
                )
        return published

    @contextmanager
    def _as_for_everybody(self) -> Iterator[None]:
        """Triggers and defaults of the target work as in any other session of the role."""
        ours = self._connection.execute(
            "SELECT name, setting, set_config(name, reset_val, true) FROM pg_settings WHERE name = ANY (%s)",
            (list(_SEEN_BY_TRIGGERS),),
        ).fetchall()
        yield
        self._connection.execute(
            sql.SQL("SELECT {}").format(
                sql.SQL(", ").join(
                    sql.SQL("pg_catalog.set_config({}, {}, true)").format(
                        sql.Literal(name), sql.Literal(setting)
                    )
                    for name, setting, _ in ours
                )
            )
        )

    def _read_access(self, strategy: Strategy) -> Access | None:
        """How rows are found and written; ``None`` for a strategy that looks for itself."""
        if strategy is Strategy.SCD2:
            return None
        keys: Sequence[str] = ()
        if strategy in (Strategy.MERGE, Strategy.REPLACE):
            keys = keys_of(self._manifest, self._target, self._options)
        access = Access.read(self._connection, self._target, keys)
        if keys or not access.references:
            return access
        # Rows that stay must stay where others refer to them: they go by what those refer to.
        return Access.read(self._connection, self._target, self._referenced_key(access))

    def _referenced_key(self, access: Access) -> tuple[str, ...]:
        """The primary key, or unique columns that others refer to; empty where the batch does not have them."""
        named = [
            self._target.primary_key,
            *(one.columns for one in access.references if one.is_whole),
        ]
        return next((key for key in named if key and set(key) <= set(self._columns)), ())

    def _inspect(self, strategy: Strategy) -> None:
        target = self._target
        allowed = ("r",) if strategy is Strategy.REPLACE else ("r", "p")
        if target.kind not in allowed:
            if target.kind == "p":
                raise CatalogError(
                    f"strategy {strategy.value!r} cannot write into {target.name}, which is partitioned",
                    remedy="use strategy='delete_insert', which takes everything that was read into partitions",
                )
            raise CatalogError(
                f"strategy {strategy.value!r} cannot write into {target.name}, which is not a table",
                remedy="load the table itself",
            )
        missing = missing_privileges(self._connection, target, self._privileges(strategy))
        if missing:
            user = self._connection.info.user
            raise CatalogError(
                f"role {user} lacks {', '.join(missing)} on {target.name}",
                remedy=f"GRANT {', '.join(missing)} ON {target.name} TO {quoted(user)}",
            )

    def _privileges(self, strategy: Strategy) -> tuple[str, ...]:
        """What the strategy's own statements need; a foreign key that refers to the target may ask for more."""
        if strategy is Strategy.APPEND:
            again = self._options.load_id_column is not None
            return ("SELECT", "INSERT", "DELETE") if again else ("INSERT",)
        if strategy is Strategy.DELETE_INSERT:
            return ("SELECT", "INSERT", "DELETE")
        if strategy is Strategy.MERGE and (
            self._options.delete_flag is None or self._options.deletes is Deletes.SOFT
        ):
            return ("SELECT", "INSERT", "UPDATE")
        return ("SELECT", "INSERT", "UPDATE", "DELETE")

    @cached_property
    def _keyed(self) -> KeyedBatch:
        return KeyedBatch(self._connection, self._manifest, self._target, self._options)

    def _published(self, strategy: Strategy, counts: Counts, position: StreamPosition) -> Published:
        return Published(
            load_id=self._manifest.load_id,
            stream=self._manifest.stream,
            target=self._manifest.target,
            strategy=strategy,
            window=self._manifest.window,
            rows_inserted=counts.inserted,
            rows_updated=counts.updated,
            rows_deleted=counts.deleted,
            rows_unchanged=counts.unchanged,
            partitions=(),
            lock_ms=0.0,
            position=position,
            rows_stale=counts.stale,
        )

    # -- the strategies ---------------------------------------------------------------------------

    def _delete_insert(self) -> Counts:
        """Replace the rows of the window by the batch, but for what a later reading has brought.

        :raises CatalogError: whatever refers to a row would go with it, and nothing says which rows stay.
        """
        target, manifest = self._target.name, self._manifest
        where: sql.Composable = sql.SQL("true")
        if not manifest.window.is_full and manifest.cursor is not None:
            where = statements.in_window(manifest.cursor, manifest.window)
        outside: sql.Composable = sql.SQL("true")
        stale = 0
        if manifest.kind is not Kind.EVENTS or manifest.cursor is None:
            ledger.require_latest(self._connection, manifest)
        elif later := ledger.later_reads(self._connection, manifest):
            outside = statements.outside(manifest.cursor, later)
            stale = scalar(
                self._connection,
                sql.SQL("SELECT count(*) FROM {} WHERE NOT ({})").format(
                    ident(manifest.staging), outside
                ),
            )
        where = sql.SQL("{} AND {}").format(where, outside)
        self._brake_window(where, outside, stale)
        references = self._facts.references
        if references and self._facts.keys:
            self._require_unique()
            with self._as_for_everybody():
                return self._replace_by_key(where, outside, stale)
        if any(one.follows for one in references):
            raise self._takes_along("replacing the window")
        with self._as_for_everybody():
            deleted = self._delete_window(where)
            inserted = self._run(
                sql.SQL(
                    "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} WHERE {}"
                ).format(
                    ident(target),
                    names(self._columns),
                    names(self._columns),
                    ident(manifest.staging),
                    outside,
                )
            )
        self._tell_of_defaults(deleted)
        return Counts(inserted=inserted, deleted=deleted, stale=stale)

    def _replace_by_key(self, where: sql.Composable, outside: sql.Composable, stale: int) -> Counts:
        """Replace the rows of *where*; one that stays is not deleted, since others refer to it."""
        batch = sql.SQL("(SELECT * FROM {} WHERE {})").format(
            ident(self._manifest.staging), outside
        )
        deleted = self._run(
            sql.SQL(
                "DELETE FROM {} AS t WHERE {} AND NOT EXISTS (SELECT FROM {} AS s WHERE {})"
            ).format(self._table, where, batch, same_key(self._facts.keys))
        )
        staged = self._manifest.rows - stale
        done = self._upsert(None, sql.SQL("true")).write(batch, staged)
        return Counts(
            inserted=done.inserted,
            updated=done.updated,
            deleted=deleted,
            unchanged=self._unchanged(staged, done),
            stale=stale,
        )

    def _require_unique(self) -> None:
        """:raises DataError: two rows of the batch are the same to whoever refers to them."""
        told = replace(self._options, keys=self._facts.keys)
        KeyedBatch(
            self._connection, self._manifest, self._target, told, by_cursor=False
        ).require_keys()

    def _takes_along(self, what: str) -> CatalogError:
        referring = ", ".join(dict.fromkeys(one.name for one in self._facts.references))
        return CatalogError(
            f"{what} deletes rows of {self._target.name} and inserts them again, and {referring} refer to them by "
            "foreign key",
            remedy=f"load the columns that {referring} refer to, or use strategy='merge', which goes by key",
        )

    def _delete_window(self, where: sql.Composable) -> int:
        """Delete the rows of *where*; what others write there meanwhile stays.

        :raises CatalogError: the target has kept rows, which would stand there twice.
        """
        statement = sql.SQL("DELETE FROM {} WHERE {}").format(self._table, where)
        if self._facts.is_plain:
            return self._run(statement)
        seen = None
        if self._facts.returns:
            deleted, seen = self._connection.execute(
                sql.SQL(
                    "WITH gone AS ({} RETURNING 1) SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM {} WHERE {})"
                ).format(statement, self._table, where)
            ).fetchone() or (0, 0)
        else:
            deleted = self._run(statement)
        kept = 0 if deleted == seen else self._count_where(where)
        if kept:
            raise CatalogError(
                f"{kept:,} rows of {self._target.name} in window {self._manifest.window} are there after they were "
                "deleted: a trigger, a rule or row security keeps them",
                remedy=f"let role {self._connection.info.user} delete them, or use strategy='merge'",
            )
        return deleted

    def _tell_of_defaults(self, deleted: int) -> None:
        own = [
            c.name for c in self._target.columns if not c.generated and c.name not in self._columns
        ]
        if own and deleted:
            self._log(
                "columns that the batch does not have start from their defaults again in the rows that were replaced",
                table=str(self._target.name),
                columns=own,
            )

    def _brake_window(self, where: sql.Composable, outside: sql.Composable, stale: int) -> None:
        """Of each partition that holds rows of *where* enough must come back; events stay in theirs."""
        manifest, target = self._manifest, self._target
        what = f"{target.name} in window {manifest.window}"
        before = dict(
            self._connection.execute(
                sql.SQL("SELECT tableoid::bigint, count(*) FROM {} WHERE {} GROUP BY 1").format(
                    self._table, where
                )
            ).fetchall()
        )
        total = sum(before.values())
        lost = max(total - manifest.rows + stale, 0)
        brake(manifest, what, before=total, lost=lost, options=self._options)
        by_partition = len(before) > 1 and manifest.kind is Kind.EVENTS
        routed = partition_columns(self._connection, target) if by_partition else None
        if routed is None or not routed <= set(self._columns):
            return
        leaves = [
            leaf for leaf in read_leaves(self._connection, target) if leaf.partition.oid in before
        ]
        staged = rows_by_leaf(self._connection, manifest.staging, leaves, outside)
        for leaf in leaves:
            held = before[leaf.partition.oid]
            brake(
                manifest,
                f"{leaf.partition.table} in window {manifest.window}",
                before=held,
                lost=max(held - staged.get(leaf.partition.oid, 0), 0),
                options=self._options,
            )

    def _merge(self) -> Counts:
        """Update, insert and delete by key; a row of the target that is newer than the batch's stays."""
        keyed = self._keyed
        latest, fresh = keyed.latest(), keyed.not_older()
        hard = keyed.deleted is not None and self._options.deletes is Deletes.HARD
        lives = sql.SQL("NOT ({})").format(keyed.deleted) if hard else sql.SQL("true")
        staged = keyed.count_latest(lives if hard else None)
        upsert = self._upsert(fresh, lives)
        if (missing := upsert.missing_index()) is not None:
            self._log(
                "no index begins with a key column, so the whole target is read for every load",
                table=str(self._target.name),
                remedy=missing.as_string(None),
            )
        gone: dict[int, int] = {}
        stale = 0
        if keyed.deleted is not None and hard:
            with self._as_for_everybody():
                gone, stale = upsert.delete(latest, self._manifest.rows, keyed.deleted)
            self._brake_deletes(gone)
        with self._as_for_everybody():
            done = upsert.write(latest, staged)
        return Counts(
            inserted=done.inserted,
            updated=done.updated,
            deleted=sum(gone.values()),
            unchanged=self._unchanged(staged, done),
            stale=done.stale + stale,
        )

    def _unchanged(self, staged: int, done: Written) -> int:
        """How many of the *staged* rows were there already, all the same."""
        if done.overruled:
            self._log(
                "triggers or rules of the target changed what was written, or left it out",
                table=str(self._target.name),
                rows=done.overruled,
            )
        # Where two rows of the target have one key, more are updated than were staged.
        return max(staged - done.inserted - done.updated - done.stale - done.overruled, 0)

    def _brake_deletes(self, gone: dict[int, int]) -> None:
        """Of a partition of many rows only so many are counted as show that few are gone."""
        if not any(gone.values()):
            return
        target = self._target.name
        held = {
            leaf.partition.oid: leaf.partition.table
            for leaf in read_leaves(self._connection, self._target)
        }
        by_table: dict[TableName, int] = {}
        for oid, deleted in gone.items():
            table = held.get(oid, target)
            by_table[table] = by_table.get(table, 0) + deleted
        share = self._options.max_shrink
        for table, deleted in by_table.items():
            enough = math.ceil(deleted / share) if share else None
            left = scalar(
                self._connection,
                sql.SQL("SELECT count(*) FROM (SELECT FROM {} LIMIT {}) AS r").format(
                    self._table if table == target else ident(table), sql.Literal(enough)
                ),
            )
            brake(
                self._manifest,
                str(table),
                before=left + deleted,
                lost=deleted,
                options=self._options,
            )

    def _replace(self) -> Counts:
        """Make the target hold exactly the batch; rows that are the same are not written."""
        target, manifest = self._target.name, self._manifest
        ledger.require_latest(self._connection, manifest)
        keys = self._facts.keys
        if keys:
            self._require_unique()
        self._hold_writers_off()
        before = self._count_where(sql.SQL("true"))
        brake(
            manifest,
            str(target),
            before=before,
            lost=max(before - manifest.rows, 0),
            options=self._options,
        )
        with self._as_for_everybody():
            return self._replace_by_image() if not keys else self._replace_all(keys)

    def _replace_by_image(self) -> Counts:
        """:raises CatalogError: whatever refers to a row that changes would go with it."""
        target, manifest = self._target.name, self._manifest
        if any(one.follows for one in self._facts.references):
            raise self._takes_along("replacing the table")
        deleted = self._run(_delete_by_image(self._table, manifest.staging, self._columns))
        inserted = self._run(_insert_by_image(target, self._table, manifest.staging, self._columns))
        return Counts(inserted, 0, deleted, manifest.rows - inserted)

    def _replace_all(self, keys: Sequence[str]) -> Counts:
        manifest = self._manifest
        staged: sql.Composable = ident(manifest.staging)
        deleted = self._run(
            sql.SQL("DELETE FROM {} AS t WHERE NOT EXISTS (SELECT FROM {} AS s WHERE {})").format(
                self._table, staged, same_key(keys)
            )
        )
        if tuple(keys) != self._target.primary_key:
            deleted += self._run(_delete_surplus(self._table, keys))
        done = self._upsert(None, sql.SQL("true")).write(staged, manifest.rows)
        return Counts(done.inserted, done.updated, deleted, self._unchanged(manifest.rows, done))

    # -- their pieces -----------------------------------------------------------------------------

    def _run(self, statement: sql.Composed) -> int:
        return self._connection.execute(statement).rowcount

    def _count_where(self, where: sql.Composable) -> int:
        found: int = scalar(
            self._connection,
            sql.SQL("SELECT count(*) FROM {} WHERE {}").format(self._table, where),
        )
        return found

    def _hold_writers_off(self) -> None:
        """Writers that are not ours wait from here to the commit; readers do not."""
        self._connection.execute(statements.lock(self._target.name, "SHARE ROW EXCLUSIVE"))

    def _append(self) -> Counts:
        with self._as_for_everybody():
            return append(
                self._connection,
                self._manifest,
                self._target,
                self._options,
                self._facts.references,
            )

    def _scd2(self) -> Counts:
        self._hold_writers_off()
        with self._as_for_everybody():
            return History(
                self._connection, self._manifest, self._target, self._options, self._keyed
            ).apply()

    @property
    def _facts(self) -> Access:
        if self._access is None:
            raise AssertionError("unreachable")
        return self._access

    def _upsert(self, fresh: sql.Composable | None, lives: sql.Composable) -> Upsert:
        return Upsert(
            self._connection,
            self._target,
            self._table,
            self._facts,
            self._columns,
            fresh=fresh,
            lives=lives,
        )


def _delete_surplus(table: sql.Composable, keys: Sequence[str]) -> sql.Composed:
    """Keep one row of each key."""
    return sql.SQL(
        "DELETE FROM {t} WHERE ctid = ANY (ARRAY(SELECT place FROM (SELECT ctid AS place,"
        " row_number() OVER (PARTITION BY {k}) AS copy FROM {t}) AS r WHERE copy > 1))"
    ).format(t=table, k=names(keys))


def _delete_by_image(
    table: sql.Composable, staging: TableName, columns: Sequence[str]
) -> sql.Composed:
    """Delete as many copies of each row as the table has more of than the batch."""
    return sql.SQL(
        "DELETE FROM {t} WHERE ctid = ANY (ARRAY("
        " SELECT r.place FROM (SELECT ctid AS place, ROW({cols})::text AS image,"
        "   row_number() OVER (PARTITION BY ROW({cols})::text) AS copy FROM {t}) AS r"
        " LEFT JOIN (SELECT ROW({cols})::text AS image, count(*) AS copies FROM {s} GROUP BY 1) AS b"
        " USING (image) WHERE r.copy > coalesce(b.copies, 0)))"
    ).format(t=table, s=ident(staging), cols=names(columns))


def _insert_by_image(
    target: TableName, table: sql.Composable, staging: TableName, columns: Sequence[str]
) -> sql.Composed:
    """Insert as many copies of each row as the batch has more of than the table."""
    image, copy = _unused("image", columns), _unused("copy", columns)
    return sql.SQL(
        "INSERT INTO {target} ({cols}) OVERRIDING SYSTEM VALUE SELECT {picked} FROM"
        " (SELECT *, ROW({cols})::text AS {image},"
        "   row_number() OVER (PARTITION BY ROW({cols})::text) AS {copy} FROM {s}) AS r"
        " LEFT JOIN (SELECT ROW({cols})::text AS {image}, count(*) AS copies FROM {t} GROUP BY 1) AS b"
        " USING ({image}) WHERE r.{copy} > coalesce(b.copies, 0)"
    ).format(
        target=ident(target),
        t=table,
        s=ident(staging),
        cols=names(columns),
        picked=qualified("r", columns),
        image=sql.Identifier(image),
        copy=sql.Identifier(copy),
    )


def _unused(name: str, columns: Sequence[str]) -> str:
    """A column name that none of *columns* bears."""
    while name in columns:
        name += "_"
    return name
