"""Upsert by key, in place: rows that changed are updated, rows that are missing inserted, the rest is not touched.

Not even locked, which is why no INSERT .. ON CONFLICT does it: that writes to every row it meets.

Where a batch is small beside its target, each key is looked up in an index. The planner finds that by itself for
a plain table. For a partitioned one it does not know that a lookup goes to one partition only, and reads all of
them for a batch of one row in a thousand: there it is told. Not where triggers, rules or row security are at work,
whose statements would be planned so too, nor where one row may be in the way of another: there a batch is written
as anybody would, by UPDATE and INSERT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from airflow_etl_provider.core.errors import DataError
from airflow_etl_provider.postgres.catalog import Table, scalar
from airflow_etl_provider.postgres.keyed import same_key
from airflow_etl_provider.postgres.leaves import partition_columns
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.statements import ident, names, qualified

#: From here on MERGE tells which rows it has inserted (RETURNING merge_action()).
_MERGE_TELLS = 170000
#: Looking a key up takes as long as reading some ten rows one after the other, all in memory.
_LOOKUP_ROWS = 10
#: A target of fewer rows is read in no time.
_SMALL = 100_000
_REST = sql.Identifier("pg_temp", "etl_rest")
_MISSING = sql.Identifier("pg_temp", "etl_missing")
_REWRITTEN = sql.Identifier("pg_temp", "etl_rewritten")


@dataclass(frozen=True, slots=True)
class Written:
    """Rows of the target, and of the batch: those that were older than the target's, and those that the target's own
    triggers or rules changed or left out."""

    inserted: int = 0
    updated: int = 0
    stale: int = 0
    overruled: int = 0


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key that refers to a target.

    :param name: of the table that refers to it.
    :param columns: of the target.
    :param is_whole: it refers to the target itself, and not to a partition of it.
    :param follows: whatever refers to a row that is deleted is deleted or changed too.
    """

    name: str
    columns: tuple[str, ...]
    is_whole: bool
    follows: bool


@dataclass(frozen=True, slots=True)
class Access:
    """How rows of a target are found and written.

    :param keys: the columns by which rows are found.
    :param is_plain: nothing of the target's own runs when a row is written, and no row is in another's way.
    :param has_policies: row security says which rows are written.
    :param returns: a statement may tell what it wrote.
    :param always: identity columns that no UPDATE may write.
    :param rows: of the target, as far as the server has counted.
    :param routed: columns that say which partition a row belongs to; ``None`` if it is not partitioned, or by an
        expression.
    :param indexes: the columns of each index by which a row is found.
    """

    keys: tuple[str, ...]
    is_plain: bool
    has_policies: bool
    returns: bool
    always: tuple[str, ...]
    rows: int
    routed: frozenset[str] | None
    indexes: tuple[tuple[str | None, ...], ...]
    references: tuple[Reference, ...]

    @classmethod
    def read(
        cls, connection: psycopg.Connection[Any], target: Table, keys: Sequence[str]
    ) -> Access:
        """Read the catalog; while nobody's schema but ``pg_catalog`` is in the search path."""
        with connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(
                queries("upsert")["target"], {"oid": target.oid, "keys": list(keys)}
            ).fetchone()
            references = cursor.execute(
                queries("upsert")["references"], {"oid": target.oid}
            ).fetchall()
        if row is None:
            raise AssertionError("unreachable")
        indexes = connection.execute(queries("upsert")["indexes"], {"oid": target.oid}).fetchall()
        routed = None
        if target.partition_strategy is not None:
            routed = partition_columns(connection, target)
        return cls(
            keys=tuple(keys),
            is_plain=row["is_plain"],
            has_policies=row["has_policies"],
            returns=row["returns"],
            always=tuple(row["always"]),
            rows=row["rows"],
            routed=None if routed is None else frozenset(routed),
            indexes=tuple(tuple(columns) for (columns,) in indexes),
            references=tuple(
                Reference(**{**found, "columns": tuple(found["columns"])}) for found in references
            ),
        )

    def is_indexed(self, columns: set[str]) -> bool:
        """Whether an index begins with *columns*, in any order."""
        return any(set(found[: len(columns)]) == columns for found in self.indexes)


def expect_random_reads(connection: psycopg.Connection[Any]) -> None:
    """Let the planner look keys up in an index where that is less work, up to the end of the transaction.

    Where nobody has set what a random read costs, the planner takes every disk for a spinning one.
    """
    connection.execute(
        "SELECT pg_catalog.set_config(name, '1.1', true) FROM pg_catalog.pg_settings"
        " WHERE name = 'random_page_cost' AND source = 'default'"
    )


class Upsert:
    """How a batch ``s`` of one row per key is written into *target*, known as ``t``, in the caller's transaction.

    :param table: the target, as a statement names it that reads or changes its rows.
    :param access: what :meth:`Access.read` found, before the search path became the user's; of its keys no two rows
        have the same.
    :param columns: those that the batch has.
    :param fresh: whether ``s`` may take the place of ``t``; ``None`` where it always may.
    :param lives: whether ``s`` is a row of the target; one that is not is neither inserted nor counted.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        target: Table,
        table: sql.Composable,
        access: Access,
        columns: Sequence[str],
        *,
        fresh: sql.Composable | None,
        lives: sql.Composable,
    ) -> None:
        self._connection = connection
        self._target = target
        self._table = table
        self._access = access
        self._columns = columns
        self._keys = access.keys
        self._fresh = fresh or sql.SQL("true")
        self._is_ordered = fresh is not None
        self._lives = lives
        own = [column.name for column in target.columns if column.name in columns]
        self._always = [name for name in own if name in access.always and name not in access.keys]
        self._writable = [name for name in own if name not in access.always]

    def missing_index(self) -> sql.Composed | None:
        """The statement for an index by which keys are found; ``None`` where one may do, or the target is small."""
        indexed = any(self._access.is_indexed({key}) for key in self._keys)
        if indexed or self._access.rows < _SMALL:
            return None
        return sql.SQL("CREATE INDEX ON {} ({})").format(
            ident(self._target.name), names(self._keys)
        )

    def delete(
        self, batch: sql.Composable, rows: int, deleted: sql.Composable
    ) -> tuple[dict[int, int], int]:
        """Delete the rows whose ``s`` is *deleted*, unless the target's version is newer.

        :param batch: the table or sub-query that is ``s``, of *rows* altogether.
        :return: how many went, by the oid of the table that held them (the target's own where that is not told), and
            how many stayed because the target's version is newer.
        """
        statement = sql.SQL("DELETE FROM {} AS t USING {} AS s WHERE {} AND {} AND {}").format(
            self._table, batch, same_key(self._keys), deleted, self._fresh
        )
        expect_random_reads(self._connection)
        looked_up = self._place(rows) == set(self._keys)
        with self._looked_up() if looked_up else nullcontext():
            if self._access.returns:
                counted = sql.SQL(
                    "WITH gone AS ({} RETURNING t.tableoid) SELECT tableoid::bigint, count(*) FROM gone GROUP BY 1"
                ).format(statement)
                gone = dict(self._connection.execute(counted).fetchall())
            else:
                gone = {self._target.oid: self._run(statement)}
            stale = 0
            if self._is_ordered:
                stale = scalar(
                    self._connection,
                    sql.SQL(
                        "SELECT count(*) FROM {} AS t JOIN {} AS s ON {} WHERE {} AND NOT coalesce({}, false)"
                    ).format(self._table, batch, same_key(self._keys), deleted, self._fresh),
                )
        return gone, stale

    def write(self, batch: sql.Composable, rows: int) -> Written:
        """Update what changed and insert what is missing.

        :param batch: the table or sub-query that is ``s``, of *rows* that live.
        :raises DataError: changed rows must be deleted and inserted, and a foreign key hangs on them.
        :raises psycopg.errors.SerializationFailure: others wrote the same keys meanwhile; nothing but the whole
            transaction done over finds them.
        """
        expect_random_reads(self._connection)
        place = self._place(rows)
        if place is None:
            return self._write(batch, rows)
        if place == set(self._keys):
            with self._looked_up():
                return self._write(batch, rows)
        try:
            with self._connection.transaction() as savepoint:
                found = self._write_by_place(
                    batch, rows, [*self._keys, *sorted(place - set(self._keys))]
                )
                if found is None:
                    raise psycopg.Rollback(savepoint)
                return found
        except (psycopg.errors.UniqueViolation, psycopg.errors.InsufficientPrivilege):
            # Others insert the same keys; or the role may make no temporary table.
            pass
        return self._write(batch, rows)

    # -- where the rows are found -------------------------------------------------------------------

    def _place(self, rows: int) -> set[str] | None:
        """The columns by which a row is looked up in the one partition it belongs to; ``None`` if it is not."""
        access = self._access
        if not access.is_plain or self._always or not self._writable:
            return None
        if access.routed is None or not access.routed <= set(self._columns):
            return None
        place = access.routed | set(self._keys)
        if not (access.is_indexed(set(self._keys)) or access.is_indexed(set(place))):
            return None
        return set(place) if rows * _LOOKUP_ROWS <= access.rows else None

    @contextmanager
    def _looked_up(self) -> Iterator[None]:
        """Statements of the block look every key up; nothing is compiled for the work that the planner expects."""
        settings = {
            "enable_hashjoin": "off",
            "enable_mergejoin": "off",
            "enable_partition_pruning": "on",
            "jit": "off",
        }
        for name, value in settings.items():
            self._connection.execute(
                sql.SQL("SET LOCAL {} = {}").format(sql.Identifier(name), sql.SQL(value))
            )
        yield
        for name in settings:
            self._connection.execute(
                sql.SQL("SET LOCAL {} TO DEFAULT").format(sql.Identifier(name))
            )

    def _write_by_place(
        self, batch: sql.Composable, rows: int, place: Sequence[str]
    ) -> Written | None:
        """Rows that are where they were are looked up there; only for the rest every partition is asked.

        Each statement sees what others have committed by then. So the batch is compared with the target in the
        end, at its places: ``None`` if a row of it slipped through, because others moved it in between.
        """
        with self._looked_up():
            updated = self._run(self._update(batch, place))
            rows_elsewhere = sql.SQL(
                "SELECT * FROM {} AS s WHERE {} AND NOT EXISTS (SELECT FROM {} AS t WHERE {})"
            ).format(batch, self._lives, self._table, same_key(place))
            elsewhere = 0
            # Mostly there is none, and no table is made for it.
            if scalar(self._connection, sql.SQL("SELECT EXISTS ({})").format(rows_elsewhere)):
                elsewhere = self._run(
                    sql.SQL("CREATE TEMP TABLE etl_rest ON COMMIT DROP AS {}").format(
                        rows_elsewhere
                    )
                )
        rest = Written()
        if elsewhere:
            self._connection.execute(sql.SQL("ANALYZE {}").format(_REST))
            rest = self._write(_REST, elsewhere)
            self._connection.execute(sql.SQL("DROP TABLE {}").format(_REST))
        if rows == updated + rest.updated + rest.inserted:
            return Written(rest.inserted, updated + rest.updated)
        with self._looked_up():
            stale, left, missing = self._compared(batch, place)
        if left or missing != rest.stale:
            return None
        return Written(rest.inserted, updated + rest.updated, stale + rest.stale)

    # -- how they are written -----------------------------------------------------------------------

    def _write(self, batch: sql.Composable, rows: int) -> Written:
        """By key, wherever in the target."""
        at_once = (
            self._access.is_plain
            and not self._always
            and bool(self._writable)
            and self._connection.info.server_version >= _MERGE_TELLS
        )
        if at_once:
            try:
                with self._connection.transaction():
                    updated, inserted = self._merge(batch)
            except psycopg.errors.UniqueViolation:
                # Somebody else has inserted the same keys meanwhile.
                at_once = False
        if not at_once:
            updated, inserted = self._update_and_insert(batch)
        stale = overruled = 0
        if rows > updated + inserted and (self._is_ordered or not at_once):
            # What the batch brought is equal to it by now, so what still differs is newer. What is not was
            # written by others between UPDATE and INSERT, unless the target has changed it itself.
            stale, left, missing = self._compared(batch, self._keys)
            if (left or missing) and self._access.is_plain and not at_once:
                raise psycopg.errors.SerializationFailure(
                    "others wrote rows of the same keys meanwhile"
                )
            if not self._access.is_plain:
                overruled = left + missing
            if overruled and self._access.has_policies:
                raise DataError(
                    f"row security of {self._target.name} let {overruled:,} rows of the batch not be written",
                    remedy=f"give role {self._connection.info.user} a policy FOR ALL, BYPASSRLS, or the table",
                )
        return Written(inserted, updated, stale, overruled)

    def _merge(self, batch: sql.Composable) -> tuple[int, int]:
        """In one pass; returns how many rows were updated and inserted."""
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

    def _update_and_insert(self, batch: sql.Composable) -> tuple[int, int]:
        """Returns how many rows were updated and inserted.

        Where UPDATE cannot do it, rows are deleted and inserted again: an identity column that is GENERATED ALWAYS
        has another value, or rows swap the values of a second unique column.

        :raises psycopg.errors.SerializationFailure: others inserted a key in between.
        """
        noted = self._note_missing(batch)
        updated = self._rewrite(batch, self._another_identity()) if self._always else 0
        if self._writable:
            try:
                with self._connection.transaction():
                    updated += self._run(self._update(batch, self._keys))
            except (psycopg.errors.UniqueViolation, psycopg.errors.ExclusionViolation):
                updated += self._rewrite(batch, sql.SQL("true"))
        inserted = self._insert_noted(batch) if noted else self._run(self._insert_missing(batch))
        return updated, inserted

    def _rewrite(self, batch: sql.Composable, which: sql.Composable) -> int:
        """Delete changed rows of *which* and insert them again, with what only the target has; returns how many.

        :raises DataError: a foreign key hangs on them.
        """
        rows = sql.SQL("{} AS s JOIN {} AS t ON {} WHERE {} AND {}").format(
            batch, self._table, same_key(self._keys), self._changed(), which
        )
        if not scalar(self._connection, sql.SQL("SELECT EXISTS (SELECT FROM {})").format(rows)):
            return 0
        if self._access.references:
            referencing = ", ".join(dict.fromkeys(one.name for one in self._access.references))
            raise DataError(
                f"rows of {self._target.name} swap values of a unique column, or change an identity column, and "
                f"{referencing} reference them",
                remedy="make the unique constraint DEFERRABLE, or the identity column GENERATED BY DEFAULT",
            )
        kept = [
            c.name for c in self._target.columns if c.name not in self._columns and not c.generated
        ]
        self._run(
            sql.SQL("CREATE TEMP TABLE etl_rewritten ON COMMIT DROP AS SELECT {} FROM {}").format(
                sql.SQL(", ").join(
                    [sql.Identifier("s", name) for name in self._columns]
                    + [sql.Identifier("t", name) for name in kept]
                ),
                rows,
            )
        )
        rewritten = self._run(
            sql.SQL("DELETE FROM {} AS t USING {} AS s WHERE {}").format(
                self._table, _REWRITTEN, same_key(self._keys)
            )
        )
        own = names([*self._columns, *kept])
        self._run(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
                ident(self._target.name), own, own, _REWRITTEN
            )
        )
        self._run(sql.SQL("DROP TABLE {}").format(_REWRITTEN))
        return rewritten

    def _note_missing(self, batch: sql.Composable) -> bool:
        """Note the keys that the target lacks before it is updated; returns whether any were.

        Only where a comparison in the end does not show which rows slipped through, since the target's own code
        may have changed what was written.
        """
        if self._access.is_plain or not self._access.returns:
            return False
        missing = sql.SQL(
            "SELECT {} FROM {} AS s WHERE {} AND NOT EXISTS (SELECT FROM {} AS t WHERE {})"
        ).format(qualified("s", self._keys), batch, self._lives, self._table, same_key(self._keys))
        if not scalar(self._connection, sql.SQL("SELECT EXISTS ({})").format(missing)):
            return False
        try:
            with self._connection.transaction():
                self._run(
                    sql.SQL("CREATE TEMP TABLE etl_missing ON COMMIT DROP AS {}").format(missing)
                )
        except psycopg.errors.InsufficientPrivilege:
            return False
        return True

    def _insert_noted(self, batch: sql.Composable) -> int:
        """Insert what is missing; what was before and is not any more, others have inserted meanwhile."""
        row = self._connection.execute(
            sql.SQL(
                "WITH inserted AS ({} RETURNING 1) SELECT (SELECT count(*) FROM inserted),"
                " EXISTS (SELECT FROM {} AS s JOIN {} AS t ON {})"
            ).format(self._insert_missing(batch), _MISSING, self._table, same_key(self._keys))
        ).fetchone()
        inserted, slipped = row or (0, True)
        self._run(sql.SQL("DROP TABLE {}").format(_MISSING))
        if slipped:
            raise psycopg.errors.SerializationFailure(
                "others wrote rows of the same keys meanwhile"
            )
        return inserted

    def _update(self, batch: sql.Composable, by: Sequence[str]) -> sql.Composed:
        """Write rows whose image differs; a row may move to another partition."""
        return sql.SQL("UPDATE {} AS t SET {} FROM {} AS s WHERE {} AND {}").format(
            self._table, self._assignments(), batch, same_key(by), self._changed()
        )

    def _insert_missing(self, batch: sql.Composable) -> sql.Composed:
        return sql.SQL(
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

    def _compared(self, batch: sql.Composable, by: Sequence[str]) -> tuple[int, int, int]:
        """Living rows of the batch that are older than the target's, that should be there, and that are not."""
        row = self._connection.execute(
            sql.SQL(
                "SELECT count(*) FILTER (WHERE is_there AND differs AND NOT is_fresh),"
                " count(*) FILTER (WHERE is_there AND differs AND is_fresh), count(*) FILTER (WHERE NOT is_there)"
                " FROM (SELECT t.tableoid IS NOT NULL AS is_there, {} AS differs, ({}) IS TRUE AS is_fresh"
                # OFFSET 0: not joined first and counted then, a row of both tables may have too many columns.
                "   FROM {} AS s LEFT JOIN {} AS t ON {} WHERE {} OFFSET 0) AS r"
            ).format(
                self._another_image(), self._fresh, batch, self._table, same_key(by), self._lives
            )
        ).fetchone()
        stale, left, missing = row or (0, 0, 0)
        return stale, left, missing

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

    def _another_identity(self) -> sql.Composed:
        return sql.SQL("ROW({}) IS DISTINCT FROM ROW({})").format(
            qualified("t", self._always), qualified("s", self._always)
        )

    def _changed(self) -> sql.Composed:
        return sql.SQL("{} AND ({}) AND {}").format(self._another_image(), self._fresh, self._lives)

    def _run(self, statement: sql.Composed) -> int:
        return self._connection.execute(statement).rowcount
