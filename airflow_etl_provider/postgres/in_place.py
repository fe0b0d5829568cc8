"""Strategies that change the target in place, in one transaction: ``delete_insert``, ``merge``, ``replace``.

Readers never wait for them: they see the rows as before until the commit, in any isolation level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import (
    CatalogError,
    ContractError,
    DataError,
    Stopped,
)
from airflow_etl_provider.core.load import (
    Manifest,
    Published,
    Strategy,
    StreamPosition,
)
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import Stop
from airflow_etl_provider.core.publish import PublishOptions, brake
from airflow_etl_provider.postgres import ledger, statements
from airflow_etl_provider.postgres.catalog import Table, missing_privileges, scalar
from airflow_etl_provider.postgres.cursors import cursor_type_sql
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.statements import ident, names, qualified


@dataclass(frozen=True, slots=True)
class _Counts:
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    unchanged: int = 0
    stale: int = 0


class InPlace:
    """One publish in place; *connection* is in autocommit and belongs to the caller."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        manifest: Manifest,
        target: Table,
        options: PublishOptions,
        stop: Stop,
    ) -> None:
        self._connection = connection
        self._manifest = manifest
        self._target = target
        self._options = options
        self._stop = stop
        self._columns = [column.name for column in manifest.columns]
        self._order: str | None = None
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
        """
        apply = {
            Strategy.DELETE_INSERT: self._delete_insert,
            Strategy.MERGE: self._merge,
            Strategy.REPLACE: self._replace,
        }[strategy]
        self._inspect(strategy)
        keys = self._keys(strategy)
        self._order = self._order_column(keys) if strategy is Strategy.MERGE else None
        connection, manifest = self._connection, self._manifest
        with connection.transaction():
            position = ledger.enter_publish(connection, manifest, strategy)
            if isinstance(position, Published):
                return position
            # Triggers and defaults of the target work as they do for everybody else.
            connection.execute(
                "SELECT set_config('search_path', reset_val, true) FROM pg_settings"
                " WHERE name = 'search_path'"
            )
            require_same_rows(manifest, scalar(connection, statements.count(manifest.staging)))
            if keys:
                self._require_keys(keys)
            counts = apply(keys)
            published = ledger.record_published(
                connection, self._published(strategy, counts, position), manifest
            )
            if self._stop.is_set():
                raise Stopped(
                    f"publishing load {manifest.load_id} was stopped; nothing was changed"
                )
        return published

    def _inspect(self, strategy: Strategy) -> None:
        target = self._target
        allowed = ("r",) if strategy is Strategy.REPLACE else ("r", "p")
        if target.kind not in allowed:
            kind = "partitioned" if target.kind == "p" else "not a table"
            raise CatalogError(
                f"strategy {strategy.value!r} cannot write into {target.name}, which is {kind}",
                remedy="use strategy='swap' for whole partitions, or load a plain table",
            )
        missing = missing_privileges(
            self._connection, target, ("SELECT", "INSERT", "UPDATE", "DELETE")
        )
        if missing:
            user = self._connection.info.user
            raise CatalogError(
                f"role {user} lacks {', '.join(missing)} on {target.name}",
                remedy=f"GRANT {', '.join(missing)} ON {target.name} TO {user}",
            )

    def _keys(self, strategy: Strategy) -> Sequence[str]:
        if strategy is Strategy.DELETE_INSERT:
            return ()
        keys = self._options.keys or self._manifest.keys or self._target.primary_key
        for key in keys:
            if key not in self._columns:
                raise ContractError(
                    f"key {key!r} of {self._target.name} is not among the batch's columns",
                    remedy=f"the batch has: {', '.join(self._columns)}",
                )
        if strategy is Strategy.MERGE and not keys:
            raise ContractError(
                f"strategy 'merge' needs to know what identifies a row of {self._target.name}",
                remedy="name the columns with keys=[...], or give the table a primary key",
            )
        return keys

    def _published(
        self, strategy: Strategy, counts: _Counts, position: StreamPosition
    ) -> Published:
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

    def _delete_insert(self, keys: Sequence[str]) -> _Counts:
        """Replace the rows of the window by the batch."""
        target, manifest = self._target.name, self._manifest
        where: sql.Composable = sql.SQL("true")
        if not manifest.window.is_full and manifest.cursor is not None:
            where = statements.in_window(manifest.cursor, manifest.window)
        before = self._count_where(where)
        brake(
            manifest,
            f"{target} in window {manifest.window}",
            before=before,
            lost=max(before - manifest.rows, 0),
            options=self._options,
        )
        deleted = self._run(sql.SQL("DELETE FROM {} WHERE {}").format(self._table, where))
        inserted = self._run(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
                ident(target), names(self._columns), names(self._columns), ident(manifest.staging)
            )
        )
        return _Counts(inserted=inserted, deleted=deleted)

    def _merge(self, keys: Sequence[str]) -> _Counts:
        """Update and insert by key; a row of the target that is newer than the batch's stays."""
        latest = self._latest(keys)
        staged = scalar(self._connection, sql.SQL("SELECT count(*) FROM {} AS s").format(latest))
        fresh = self._not_older()
        stale = 0
        if fresh is not None:
            stale = scalar(
                self._connection,
                sql.SQL("SELECT count(*) FROM {} AS s JOIN {} AS t ON {} WHERE NOT ({})").format(
                    latest, self._table, _same_key(keys), fresh
                ),
            )
        updated, inserted = self._write(latest, keys, fresh)
        return _Counts(
            inserted=inserted,
            updated=updated,
            unchanged=staged - inserted - updated - stale,
            stale=stale,
        )

    def _replace(self, keys: Sequence[str]) -> _Counts:
        """Make the target hold exactly the batch; rows that are the same are not written."""
        target, manifest = self._target.name, self._manifest
        # Writers that are not ours wait from here to the commit; readers do not.
        milliseconds = round(self._options.lock_deadline.total_seconds() * 1000)
        self._connection.execute(
            "SELECT set_config('lock_timeout', %s, true)", (str(milliseconds),)
        )
        self._connection.execute(statements.lock(target, "SHARE ROW EXCLUSIVE"))
        before = self._count_where(sql.SQL("true"))
        brake(
            manifest,
            str(target),
            before=before,
            lost=max(before - manifest.rows, 0),
            options=self._options,
        )
        if not keys:
            deleted = self._run(_delete_by_image(self._table, manifest.staging, self._columns))
            inserted = self._run(
                _insert_by_image(target, self._table, manifest.staging, self._columns)
            )
            return _Counts(inserted, 0, deleted, manifest.rows - inserted)
        staged: sql.Composable = ident(manifest.staging)
        deleted = self._run(
            sql.SQL("DELETE FROM {} AS t WHERE NOT EXISTS (SELECT FROM {} AS s WHERE {})").format(
                self._table, staged, _same_key(keys)
            )
        )
        if tuple(keys) != self._target.primary_key:
            deleted += self._run(_delete_surplus(self._table, keys))
        updated, inserted = self._write(staged, keys, None)
        return _Counts(inserted, updated, deleted, manifest.rows - inserted - updated)

    # -- their pieces -----------------------------------------------------------------------------

    def _run(self, statement: sql.Composed) -> int:
        return self._connection.execute(statement).rowcount

    def _count_where(self, where: sql.Composable) -> int:
        found: int = scalar(
            self._connection,
            sql.SQL("SELECT count(*) FROM {} WHERE {}").format(self._table, where),
        )
        return found

    def _require_keys(self, keys: Sequence[str]) -> None:
        staging = self._manifest.staging
        nulls = sql.SQL(" OR ").join(
            sql.SQL("{} IS NULL").format(sql.Identifier(key)) for key in keys
        )
        empty = scalar(
            self._connection,
            sql.SQL("SELECT count(*) FROM {} WHERE {}").format(ident(staging), nulls),
        )
        if empty:
            raise DataError(
                f"{empty:,} rows of the batch {staging} have no value in a key column ({', '.join(keys)})",
                remedy="mend the source, or name other keys",
            )
        order = self._order
        group = [*keys, order] if order is not None else list(keys)
        twice = scalar(
            self._connection,
            sql.SQL(
                "SELECT count(*) FROM (SELECT FROM {} GROUP BY {} HAVING count(DISTINCT ROW({})::text) > 1) AS d"
            ).format(ident(staging), names(group), names(self._columns))
            if order is not None
            else sql.SQL(
                "SELECT count(*) FROM (SELECT FROM {} GROUP BY {} HAVING count(*) > 1) AS d"
            ).format(ident(staging), names(group)),
        )
        if twice:
            raise DataError(
                f"{twice:,} keys ({', '.join(keys)}) stand more than once in the batch {staging}"
                + ("" if order is None else f", with different rows at the same {order}"),
                remedy="mend the source, or name keys that are unique",
            )

    def _order_column(self, keys: Sequence[str]) -> str | None:
        """The column that says which version of a row is newer."""
        cursor = self._manifest.cursor
        return cursor if cursor in self._columns and cursor not in keys else None

    def _latest(self, keys: Sequence[str]) -> sql.Composable:
        """The batch with one row for each key: the one that is last in cursor order."""
        order = self._order
        if order is None:
            return ident(self._manifest.staging)
        return sql.SQL(
            "(SELECT DISTINCT ON ({k}) * FROM {s} ORDER BY {k}, {c} DESC NULLS LAST)"
        ).format(k=names(keys), s=ident(self._manifest.staging), c=sql.Identifier(order))

    def _not_older(self) -> sql.Composable | None:
        """Whether the batch's row may take the place of the target's.

        The later cursor wins. Where that does not tell, because both are equal or one has no value, the
        batch wins unless a load that read the source later has published such rows.
        """
        newer, overlapping, newer_nulls = ledger.newer_snapshots(self._connection, self._manifest)
        if self._order is None:
            # Nothing in the rows tells: a load that read later knows better.
            return sql.SQL("false") if overlapping else None
        (cursor_type,) = (c.type for c in self._manifest.columns if c.name == self._order)
        return sql.SQL(
            "CASE WHEN s.{c} IS NULL THEN {batch_without} WHEN t.{c} IS NULL THEN {target_without}"
            " ELSE s.{c}::{t} {later} t.{c}::{t} END"
        ).format(
            c=sql.Identifier(self._order),
            t=cursor_type_sql(cursor_type),
            later=sql.SQL(">" if overlapping else ">="),
            batch_without=sql.SQL("false" if newer else "true"),
            target_without=sql.SQL("false" if newer_nulls else "true"),
        )

    def _write(
        self, batch: sql.Composable, keys: Sequence[str], fresh: sql.Composable | None
    ) -> tuple[int, int]:
        """Update what changed and insert what is missing; returns how many of each."""
        updated, taken_out = self._update(batch, keys, fresh)
        inserted = self._insert_missing(batch, keys)
        return updated + taken_out, inserted - taken_out

    def _update(
        self, batch: sql.Composable, keys: Sequence[str], fresh: sql.Composable | None
    ) -> tuple[int, int]:
        """Write rows whose image differs, so that 1.0 and 1.00 do; a row may move to another partition.

        Where UPDATE cannot do it, changed rows are deleted and inserted: an identity column that is
        GENERATED ALWAYS, or rows that swap the values of a second unique column. Returns how many were
        updated, and how many taken out for that.
        """
        columns = [column for column in self._target.columns if column.name in self._columns]
        always = [column.name for column in columns if column.identity and column.name not in keys]
        writable = [column.name for column in columns if not column.identity]
        if always:
            return 0, self._rewrite(batch, keys, fresh)
        if not writable:
            return 0, 0
        statement = sql.SQL("UPDATE {} AS t SET {} FROM {} AS s WHERE {}").format(
            self._table,
            sql.SQL(", ").join(
                sql.SQL("{c} = s.{c}").format(c=sql.Identifier(name)) for name in writable
            ),
            batch,
            self._changed(keys, fresh),
        )
        try:
            with self._connection.transaction():
                return self._run(statement), 0
        except psycopg.errors.UniqueViolation:
            return 0, self._rewrite(batch, keys, fresh)

    def _rewrite(
        self, batch: sql.Composable, keys: Sequence[str], fresh: sql.Composable | None
    ) -> int:
        """Delete changed rows, so that they are inserted as missing; refused where a foreign key hangs on them."""
        referencing = [
            row[0]
            for row in self._connection.execute(
                queries("catalog")["referencing_foreign_keys"], {"oid": self._target.oid}
            )
        ]
        if referencing:
            raise DataError(
                f"rows of {self._target.name} swap values of a unique column, or change an identity column, and "
                f"{', '.join(referencing)} reference them",
                remedy="make the unique constraint DEFERRABLE, or the identity column GENERATED BY DEFAULT",
            )
        return self._run(
            sql.SQL("DELETE FROM {} AS t USING {} AS s WHERE {}").format(
                self._table, batch, self._changed(keys, fresh)
            )
        )

    def _changed(self, keys: Sequence[str], fresh: sql.Composable | None) -> sql.Composed:
        return sql.SQL(
            "{} AND ROW({})::record OPERATOR(pg_catalog.*<>) ROW({})::record AND ({})"
        ).format(
            _same_key(keys),
            qualified("t", self._columns),
            qualified("s", self._columns),
            fresh or sql.SQL("true"),
        )

    def _insert_missing(self, batch: sql.Composable, keys: Sequence[str]) -> int:
        return self._run(
            sql.SQL(
                "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS s"
                " WHERE NOT EXISTS (SELECT FROM {} AS t WHERE {})"
            ).format(
                ident(self._target.name),
                names(self._columns),
                qualified("s", self._columns),
                batch,
                self._table,
                _same_key(keys),
            )
        )


def require_same_rows(manifest: Manifest, staged: int) -> None:
    """:raises ContractError: the staged table no longer holds what was audited."""
    if staged != manifest.rows:
        raise ContractError(
            f"{manifest.staging} holds {staged:,} rows, {manifest.rows:,} were staged and audited",
            remedy="clear extract and downstream: the window is read and audited anew",
        )


def _same_key(keys: Sequence[str]) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("t.{k} = s.{k}").format(k=sql.Identifier(key)) for key in keys
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
