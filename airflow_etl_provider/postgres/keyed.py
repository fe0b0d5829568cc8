"""A batch whose rows go by key: which row of each key counts, and whether it may take the target's place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import ConfigurationError, ContractError, DataError
from airflow_etl_provider.core.load import Kind, Manifest
from airflow_etl_provider.core.publish import Deletes, PublishOptions
from airflow_etl_provider.core.suggest import nearest
from airflow_etl_provider.postgres import ledger
from airflow_etl_provider.postgres.catalog import Table, scalar
from airflow_etl_provider.postgres.cursors import cursor_type_sql
from airflow_etl_provider.postgres.statements import ident, names


def keys_of(manifest: Manifest, target: Table, options: PublishOptions) -> tuple[str, ...]:
    """The columns that identify a row: as told at publish, at extract, or the primary key.

    :raises ContractError: the batch has no such column.
    """
    keys = options.keys or manifest.keys or target.primary_key
    columns = [column.name for column in manifest.columns]
    for key in keys:
        if key not in columns:
            raise ContractError(
                f"key {key!r} of {target.name} is not among the batch's columns",
                remedy=f"the batch has: {', '.join(columns)}",
            )
    return tuple(keys)


class KeyedBatch:
    """The staged batch as ``s`` beside the target as ``t``.

    :param by_cursor: of several rows of one key the last in cursor order counts; else there must be one.
    :raises ContractError: nothing says what identifies a row.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        manifest: Manifest,
        target: Table,
        options: PublishOptions,
        *,
        by_cursor: bool = True,
    ) -> None:
        self._connection = connection
        self._manifest = manifest
        self._columns = [column.name for column in manifest.columns]
        self.keys = keys_of(manifest, target, options)
        if not self.keys:
            raise ContractError(
                f"nothing says what identifies a row of {target.name}",
                remedy="name the columns with keys=[...], or give the table a primary key",
            )
        if not (options.keys or manifest.keys) and manifest.kind is Kind.ENTITIES:
            self._require_said(target)
        cursor = manifest.cursor
        #: The column that says which version of a row is newer.
        orders = by_cursor and cursor in self._columns and cursor not in self.keys
        self.order = cursor if orders else None
        self._repeats = self.order is not None
        #: Whether ``s`` is a row that was deleted; ``None`` where nothing says so.
        self.deleted = deleted_flag(manifest, options)

    def _require_said(self, target: Table) -> None:
        """The primary key of a partitioned table does not tell what identifies a row: it must hold the partition column."""
        moving = [key for key in self.keys if key in target.partition_columns]
        if moving and len(moving) < len(self.keys):
            rest = [key for key in self.keys if key not in moving]
            raise ContractError(
                f"nothing says whether a row of {target.name} keeps its {', '.join(moving)}: its primary key "
                f"({', '.join(self.keys)}) must hold what it is partitioned by, and a row that moves would stand there twice",
                remedy=f"say keys={rest!r} if a row is the same whatever its {', '.join(moving)}, else keys={list(self.keys)!r}",
            )

    def require_keys(self, *, every_version: bool = False) -> None:
        """Look at the keys of the batch, once.

        :param every_version: older rows of a key count, too, not only the last in cursor order.
        :raises ContractError: the staged table no longer holds what was audited.
        :raises DataError: a key that is NULL, or stands twice in the batch and differs.
        """
        staging = self._manifest.staging
        nulls = sql.SQL(" OR ").join(
            sql.SQL("{} IS NULL").format(sql.Identifier(key)) for key in self.keys
        )
        row = self._connection.execute(
            sql.SQL("SELECT count(*), count(*) FILTER (WHERE {}) FROM {}").format(
                nulls, ident(staging)
            )
        ).fetchone()
        staged, empty = row or (0, 0)
        self._manifest.require_rows(staged)
        if empty:
            raise DataError(
                f"{empty:,} rows of the batch {staging} have no value in a key column ({', '.join(self.keys)})",
                remedy="mend the source, or name other keys",
            )
        repeated = scalar(
            self._connection,
            sql.SQL("SELECT EXISTS (SELECT FROM {} GROUP BY {} HAVING count(*) > 1)").format(
                ident(staging), names(self.keys)
            ),
        )
        self._repeats = repeated
        if repeated:
            self._require_one_meaning(every_version=every_version)

    def _require_one_meaning(self, *, every_version: bool) -> None:
        """Of the rows of one key the cursor must tell which is the last."""
        staging = self._manifest.staging
        group = [*self.keys, self.order] if self.order is not None else list(self.keys)
        differs = (
            sql.SQL("count(*) > 1")
            if self.order is None
            else sql.SQL("count(*) > 1 AND count(DISTINCT ROW({})::text) > 1").format(
                names(self._columns)
            )
        )
        counts: sql.Composable = sql.SQL("true")
        if self.order is not None and not every_version:
            counts = sql.SQL(
                "NOT EXISTS (SELECT FROM {s} AS s WHERE {same} AND (s.{c}::{t} > t.{c}::{t} OR t.{c} IS NULL AND s.{c} IS NOT"
                " NULL))"
            ).format(
                s=ident(staging),
                same=same_key(self.keys),
                c=sql.Identifier(self.order),
                t=self.order_type(),
            )
        twice = scalar(
            self._connection,
            sql.SQL(
                "SELECT count(*) FROM (SELECT {g} FROM {s} GROUP BY {g} HAVING {d}) AS t WHERE {c}"
            ).format(g=names(group), s=ident(staging), d=differs, c=counts),
        )
        if twice:
            raise DataError(
                f"{twice:,} keys ({', '.join(self.keys)}) stand more than once in the batch {staging}"
                + ("" if self.order is None else f", with different rows at the same {self.order}"),
                remedy="mend the source, or name keys that are unique",
            )

    def latest(self) -> sql.Composable:
        """The batch with one row for each key: the one that is last in cursor order."""
        if self.order is None or not self._repeats:
            return ident(self._manifest.staging)
        return sql.SQL(
            "(SELECT DISTINCT ON ({k}) * FROM {s} ORDER BY {k}, {c}::{t} DESC NULLS LAST)"
        ).format(
            k=names(self.keys),
            s=ident(self._manifest.staging),
            c=sql.Identifier(self.order),
            t=self.order_type(),
        )

    def count_latest(self, where: sql.Composable | None) -> int:
        """How many rows :meth:`latest` has, of those *where* is true for."""
        batch = self.latest()
        if where is None and not self._repeats:
            return self._manifest.rows
        found: int = scalar(
            self._connection,
            sql.SQL("SELECT count(*) FROM {} AS s WHERE {}").format(
                batch, where or sql.SQL("true")
            ),
        )
        return found

    def is_after(self, latest: str | None) -> bool:
        """Whether every row of the batch is later than *latest* in cursor order, so that none can be stale."""
        if self.order is None or latest is None:
            return False
        found: bool = scalar(
            self._connection,
            sql.SQL(
                "SELECT coalesce(min({c})::{t} > {l}::{t}, false) AND count(*) = count({c}) FROM {s}"
            ).format(
                c=sql.Identifier(self.order),
                t=self.order_type(),
                l=sql.Literal(latest),
                s=ident(self._manifest.staging),
            ),
        )
        return found

    def order_type(self) -> sql.Composable:
        """What cursors are compared as: text in the order of its bytes, as everywhere."""
        (cursor_type,) = (c.type for c in self._manifest.columns if c.name == self.order)
        return cursor_type_sql(cursor_type)

    def not_older(self) -> sql.Composable | None:
        """Whether the batch's row may take the place of the target's; ``None`` where it always may.

        The later cursor wins. Where that does not tell, because both are equal or one has no value, the
        batch wins unless a load that read the source later has published such rows.

        :raises StateError: the batch has no cursor, and a load of another window has read the source later.
        """
        newer, overlapping, newer_nulls = ledger.newer_snapshots(self._connection, self._manifest)
        if self.order is None:
            # Nothing in the rows tells: a load that read later knows better.
            if newer and not overlapping and self._manifest.cursor not in self._columns:
                ledger.require_latest(self._connection, self._manifest)
            return sql.SQL("false") if overlapping else None
        return sql.SQL(
            "CASE WHEN s.{c} IS NULL THEN {batch_without} WHEN t.{c} IS NULL THEN {target_without}"
            " ELSE s.{c}::{t} {later} t.{c}::{t} END"
        ).format(
            c=sql.Identifier(self.order),
            t=self.order_type(),
            later=sql.SQL(">" if overlapping else ">="),
            batch_without=sql.SQL("false" if newer else "true"),
            target_without=sql.SQL("false" if newer_nulls else "true"),
        )


def same_key(keys: Sequence[str]) -> sql.Composed:
    """Whether ``s`` and ``t`` are of one key."""
    return sql.SQL(" AND ").join(
        sql.SQL("t.{k} = s.{k}").format(k=sql.Identifier(key)) for key in keys
    )


def lives(manifest: Manifest, options: PublishOptions) -> sql.Composable:
    """Whether ``s`` becomes a row of the target; one that only takes a row away does not."""
    gone = deleted_flag(manifest, options)
    if gone is None or options.deletes is Deletes.SOFT:
        return sql.SQL("true")
    return sql.SQL("NOT ({})").format(gone)


def deleted_flag(manifest: Manifest, options: PublishOptions) -> sql.Composable | None:
    """Whether ``s`` says of itself that it was deleted; ``None`` where no flag was named.

    :raises ContractError: the batch has no such column.
    :raises ConfigurationError: its type does not tell, and no values were named.
    """
    if options.delete_flag is None:
        return None
    types = {column.name: column.type for column in manifest.columns}
    if options.delete_flag not in types:
        raise ContractError(
            f"delete_flag {options.delete_flag!r} is not among the batch's columns"
            f"{nearest(options.delete_flag, list(types))}",
            remedy=f"load it with the other columns (the target must have it); the batch has: {', '.join(types)}",
        )
    flag = sql.Identifier("s", options.delete_flag)
    if options.delete_values:
        values = sql.SQL(", ").join(sql.Literal(value) for value in options.delete_values)
        return sql.SQL("({}::text IN ({})) IS TRUE").format(flag, values)
    kind = types[options.delete_flag]
    if kind == "boolean":
        return sql.SQL("{} IS TRUE").format(flag)
    if kind == "date" or kind.startswith("timestamp"):
        return sql.SQL("{} IS NOT NULL").format(flag)
    raise ConfigurationError(
        f"delete_flag {options.delete_flag!r} is {kind}: which of its values mean deleted is not said",
        remedy="name them with delete_values=[...]",
    )
