"""Upsert by key, in place: rows that changed are updated, rows that are missing inserted, the rest is not touched.

Not even locked, which is why no INSERT .. ON CONFLICT does it: that writes to every row it meets.

Where a batch is small beside its target, each key is looked up in an index. The planner finds that by itself for
a plain table. For a partitioned one it does not know that a lookup goes to one partition only, and reads all of
them for a batch of one row in a thousand: there it is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import DataError
from airflow_etl_provider.core.names import TableName, shortened
from airflow_etl_provider.postgres.catalog import Table, scalar
from airflow_etl_provider.postgres.keyed import same_key
from airflow_etl_provider.postgres.leaves import partition_columns
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.statements import ident, names, qualified

#: From here on MERGE tells which rows it has inserted (RETURNING merge_action()).
_MERGE_TELLS = 170000
#: Looking a key up takes as long as reading some ten rows in a row (measured: ``make bench``).
_LOOKUP_ROWS = 10
#: A target of fewer rows is read in no time.
_SMALL = 100_000


@dataclass(frozen=True, slots=True)
class Written:
    """Rows of the target, and those of the batch that were older than the target's."""

    inserted: int = 0
    updated: int = 0
    stale: int = 0

    def __add__(self, other: Written) -> Written:
        return Written(
            self.inserted + other.inserted,
            self.updated + other.updated,
            self.stale + other.stale,
        )


def expect_random_reads(connection: psycopg.Connection[Any]) -> None:
    """Let the planner look keys up in an index where that is less work, up to the end of the transaction.

    Where nobody has set what a random read costs, the planner takes every disk for a spinning one.
    """
    connection.execute(
        "SELECT set_config(name, '1.1', true) FROM pg_settings"
        " WHERE name = 'random_page_cost' AND source = 'default'"
    )


class Upsert:
    """How a batch ``s`` of one row per key is written into *target*, known as ``t``, in the caller's transaction.

    :param table: the target, as a statement names it that reads or changes its rows.
    :param staging: where the batch is staged.
    :param columns: those that the batch has.
    :param fresh: whether ``s`` may take the place of ``t``; ``None`` where it always may.
    :param lives: whether ``s`` may be inserted.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        target: Table,
        table: sql.Composable,
        staging: TableName,
        columns: Sequence[str],
        keys: Sequence[str],
        *,
        fresh: sql.Composable | None,
        lives: sql.Composable,
    ) -> None:
        self._connection = connection
        self._target = target
        self._table = table
        self._rest = TableName(staging.schema, f"{shortened(staging.name, room=6)}_rest")
        self._columns = columns
        self._keys = tuple(keys)
        self._fresh = fresh
        self._lives = lives
        own = [column for column in target.columns if column.name in columns]
        #: Identity columns that no UPDATE may write.
        self._always = any(column.identity and column.name not in keys for column in own)
        self._writable = [column.name for column in own if not column.identity]

    def missing_index(self) -> sql.Composed | None:
        """The statement for an index by which keys are found; ``None`` where there is one, or the target is small."""
        if self._is_indexed({self._keys[0]}) or self._present() < _SMALL:
            return None
        return sql.SQL("CREATE INDEX ON {} ({})").format(
            ident(self._target.name), names(self._keys)
        )

    def write(self, batch: sql.Composable, rows: int) -> Written:
        """Update what changed and insert what is missing.

        :param batch: the table or sub-query that is ``s``, of *rows* that live.
        :raises DataError: changed rows must be deleted and inserted, and a foreign key hangs on them.
        """
        expect_random_reads(self._connection)
        place = self._place(rows)
        if place is None:
            return self._write(batch, rows)
        if place == set(self._keys):
            with self._looked_up():
                return self._write(batch, rows)
        if self._writable and not self._always:
            try:
                with self._connection.transaction():
                    return self._write_by_place(
                        batch, rows, [*self._keys, *sorted(place - set(self._keys))]
                    )
            except psycopg.errors.UniqueViolation:
                # Rows swap values of a second unique column, or others insert the same keys.
                pass
        return self._write(batch, rows)

    def delete(self, batch: sql.Composable, deleted: sql.Composable) -> int:
        """Delete the rows whose ``s`` is *deleted*, unless the target's version is newer; returns how many."""
        expect_random_reads(self._connection)
        return self._run(
            sql.SQL("DELETE FROM {} AS t USING {} AS s WHERE {} AND {} AND {}").format(
                self._table, batch, same_key(self._keys), deleted, self._fresh or sql.SQL("true")
            )
        )

    # -- where the rows are found -------------------------------------------------------------------

    def _place(self, rows: int) -> set[str] | None:
        """The columns by which a row is looked up in the one partition it belongs to; ``None`` if it is not."""
        if self._target.partition_strategy is None:
            return None
        routed = partition_columns(self._connection, self._target)
        if routed is None or not routed <= set(self._columns):
            return None
        place = routed | set(self._keys)
        if not (self._is_indexed(set(self._keys)) or self._is_indexed(place)):
            return None
        return place if rows * _LOOKUP_ROWS <= self._present() else None

    def _is_indexed(self, columns: set[str]) -> bool:
        """Whether an index begins with *columns*, in any order."""
        return any(set(found[: len(columns)]) == columns for found in self._indexes)

    @cached_property
    def _indexes(self) -> list[list[str | None]]:
        rows = self._connection.execute(
            queries("catalog")["index_columns"], {"oid": self._target.oid}
        ).fetchall()
        return [columns for (columns,) in rows]

    def _present(self) -> int:
        """Rows of the target, as far as the server has counted."""
        found: int = scalar(
            self._connection, queries("catalog")["rows_estimated"], {"oid": self._target.oid}
        )
        return found

    @contextmanager
    def _looked_up(self) -> Iterator[None]:
        """Statements of the block look every key up; nothing is compiled for the work that the planner expects."""
        self._connection.execute(
            "SELECT set_config(name, 'off', true) FROM unnest(ARRAY['enable_hashjoin', 'enable_mergejoin', 'jit']) AS n (name)"
        )
        yield
        for name in ("enable_hashjoin", "enable_mergejoin", "jit"):
            self._connection.execute(
                sql.SQL("SET LOCAL {} TO DEFAULT").format(sql.Identifier(name))
            )

    def _write_by_place(self, batch: sql.Composable, rows: int, place: Sequence[str]) -> Written:
        """Rows that are where they were are looked up there; only for the rest every partition is asked."""
        with self._looked_up():
            updated = self._run(self._update(batch, place))
            rest = self._run(
                sql.SQL(
                    "CREATE UNLOGGED TABLE {} AS SELECT * FROM {} AS s"
                    " WHERE NOT EXISTS (SELECT FROM {} AS t WHERE {})"
                ).format(ident(self._rest), batch, self._table, same_key(place))
            )
            elsewhere = self._count_living(ident(self._rest)) if rest else 0
            found = Written(updated=updated)
            if rows > updated + elsewhere:
                found += Written(stale=self._count_stale(batch, place))
        if elsewhere:
            self._connection.execute(sql.SQL("ANALYZE {}").format(ident(self._rest)))
            found += self._write(ident(self._rest), elsewhere)
        self._connection.execute(sql.SQL("DROP TABLE {}").format(ident(self._rest)))
        return found

    # -- how they are written -----------------------------------------------------------------------

    def _write(self, batch: sql.Composable, rows: int) -> Written:
        """By key, wherever in the target."""
        updated, inserted = self._merge(batch)
        stale = 0
        if rows > updated + inserted:
            # What the batch brought is equal to it by now, so what still differs is newer.
            stale = self._count_stale(batch, self._keys)
        return Written(inserted, updated, stale)

    def _merge(self, batch: sql.Composable) -> tuple[int, int]:
        """Returns how many rows were updated and inserted."""
        tells = self._connection.info.server_version >= _MERGE_TELLS
        if tells and self._writable and not self._always:
            try:
                with self._connection.transaction():
                    return self._merge_at_once(batch)
            except (psycopg.errors.UniqueViolation, psycopg.errors.FeatureNotSupported):
                # Rows swap values of a second unique column, somebody else inserts the same keys, or the
                # target has rules.
                pass
        updated, taken_out = self._update_or_take_out(batch)
        inserted = self._insert_missing(batch)
        return updated + taken_out, inserted - taken_out

    def _merge_at_once(self, batch: sql.Composable) -> tuple[int, int]:
        row = self._connection.execute(
            sql.SQL(
                "WITH merged AS (MERGE INTO {} AS t USING {} AS s ON {} WHEN MATCHED AND {} THEN UPDATE SET {}"
                " WHEN NOT MATCHED AND {} THEN INSERT ({}) OVERRIDING SYSTEM VALUE VALUES ({})"
                " RETURNING merge_action() AS action)"
                " SELECT count(*) FILTER (WHERE action = 'UPDATE'), count(*) FILTER (WHERE action = 'INSERT') FROM merged"
            ).format(
                self._table,
                batch,
                same_key(self._keys),
                self._changed(),
                self._assignments(),
                self._lives,
                names(self._columns),
                qualified("s", self._columns),
            )
        ).fetchone()
        updated, inserted = row or (0, 0)
        return updated, inserted

    def _update_or_take_out(self, batch: sql.Composable) -> tuple[int, int]:
        """Where UPDATE cannot do it, changed rows are deleted, to be inserted as missing.

        An identity column is GENERATED ALWAYS, or rows swap the values of a second unique column. Returns how
        many were updated, and how many taken out for that.
        """
        if self._always:
            return 0, self._take_out(batch)
        if not self._writable:
            return 0, 0
        try:
            with self._connection.transaction():
                return self._run(self._update(batch, self._keys)), 0
        except psycopg.errors.UniqueViolation:
            return 0, self._take_out(batch)

    def _take_out(self, batch: sql.Composable) -> int:
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
            sql.SQL("DELETE FROM {} AS t USING {} AS s WHERE {} AND {}").format(
                self._table, batch, same_key(self._keys), self._changed()
            )
        )

    def _update(self, batch: sql.Composable, by: Sequence[str]) -> sql.Composed:
        """Write rows whose image differs; a row may move to another partition."""
        return sql.SQL("UPDATE {} AS t SET {} FROM {} AS s WHERE {} AND {}").format(
            self._table, self._assignments(), batch, same_key(by), self._changed()
        )

    def _insert_missing(self, batch: sql.Composable) -> int:
        return self._run(
            sql.SQL(
                "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS s"
                " WHERE {} AND NOT EXISTS (SELECT FROM {} AS t WHERE {})"
            ).format(
                ident(self._target.name),
                names(self._columns),
                qualified("s", self._columns),
                batch,
                self._lives,
                self._table,
                same_key(self._keys),
            )
        )

    def _count_living(self, batch: sql.Composable) -> int:
        found: int = scalar(
            self._connection,
            sql.SQL("SELECT count(*) FROM {} AS s WHERE {}").format(batch, self._lives),
        )
        return found

    def _count_stale(self, batch: sql.Composable, by: Sequence[str]) -> int:
        if self._fresh is None:
            return 0
        found: int = scalar(
            self._connection,
            sql.SQL(
                "SELECT count(*) FROM {} AS s JOIN {} AS t ON {} WHERE {} AND ({}) IS NOT TRUE AND {}"
            ).format(
                batch, self._table, same_key(by), self._lives, self._fresh, self._another_image()
            ),
        )
        return found

    # -- their pieces -------------------------------------------------------------------------------

    def _assignments(self) -> sql.Composed:
        return sql.SQL(", ").join(
            sql.SQL("{c} = s.{c}").format(c=sql.Identifier(name)) for name in self._writable
        )

    def _another_image(self) -> sql.Composed:
        """By image, so that 1.0 and 1.00 differ."""
        return sql.SQL("ROW({})::record OPERATOR(pg_catalog.*<>) ROW({})::record").format(
            qualified("t", self._columns), qualified("s", self._columns)
        )

    def _changed(self) -> sql.Composed:
        return sql.SQL("{} AND ({})").format(self._another_image(), self._fresh or sql.SQL("true"))

    def _run(self, statement: sql.Composed) -> int:
        return self._connection.execute(statement).rowcount
