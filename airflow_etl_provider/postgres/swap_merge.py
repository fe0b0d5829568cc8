"""``swap_merge``: touched partitions are built anew, from what stays of the old ones and the batch, and exchanged.

The build reads the old partitions in one snapshot and takes no lock that anybody waits for. Before the
exchange, with writers held off but not readers, the old partitions are compared with that snapshot: rows
that somebody else has written meanwhile are never lost, the build starts over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import ContractError, DataError, LockBudgetExceeded
from airflow_etl_provider.core.load import Kind, Manifest, Published, Strategy
from airflow_etl_provider.core.names import TableName, shortened
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.publish import Counts, Deletes, PublishOptions, brake
from airflow_etl_provider.core.window import Window
from airflow_etl_provider.postgres import ledger, locking, statements
from airflow_etl_provider.postgres.catalog import Table, read_table, scalar
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.exchange import Change, Exchange, size_of
from airflow_etl_provider.postgres.keyed import KeyedBatch, same_key
from airflow_etl_provider.postgres.leaves import (
    Leaf,
    for_the_homeless,
    gap,
    leaves_with,
    partition_columns,
    read_leaves,
    rows_by_leaf,
)
from airflow_etl_provider.postgres.ledger import ADVISORY_CLASS, STAGING_SCHEMA
from airflow_etl_provider.postgres.locking import PartitionMoved
from airflow_etl_provider.postgres.mending import differences
from airflow_etl_provider.postgres.old_snapshots import wait_out
from airflow_etl_provider.postgres.partitions import (
    keep_out_of_default,
    refuse_dependents,
    refuse_unswappable,
)
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.session import Endpoint, connect
from airflow_etl_provider.postgres.shared_keys import shared_keys
from airflow_etl_provider.postgres.statements import FINGERPRINT, ident, names, qualified
from airflow_etl_provider.postgres.twin import (
    Parent,
    finish,
    own_indexes,
    parent_indexes,
    twin_to_fill,
)


@dataclass(frozen=True, slots=True)
class _Look:
    """A leaf as it was when it was read.

    ``stale`` rows of the batch are older than its own, ``deleted`` ones take a row of it away.
    """

    leaf: Leaf
    before: int
    stale: int
    deleted: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Built:
    """One leaf built anew, and what the old one was when it was read."""

    leaf: Leaf
    new: TableName
    rows: int
    before: int
    kept: int
    stale: int
    deleted: int
    fingerprint: str


class SwapMerge:
    """One publish by swap_merge; *connection* is in autocommit and belongs to the caller."""

    def __init__(
        self,
        endpoint: Endpoint,
        connection: psycopg.Connection[Any],
        manifest: Manifest,
        target: Table,
        options: PublishOptions,
        stop: Stop,
        log: EventLog,
    ) -> None:
        self._endpoint = endpoint
        self._connection = connection
        self._manifest = manifest
        self._target = target
        self._options = options
        self._stop = stop
        self._log = log
        self._columns = [column.name for column in manifest.columns]
        self._what = f"publishing load {manifest.load_id}"
        self._keyed = (
            KeyedBatch(connection, manifest, target, options)
            if manifest.kind is not Kind.EVENTS
            else None
        )
        #: Parts of a window of events that were read later than the batch: the target's rows stay there.
        self._later: tuple[Window, ...] = ()

    def run(self) -> Published:
        """Build, wait for older snapshots, exchange; over again where rows were written meanwhile, or the table
        was altered.

        :raises CatalogError: the target cannot be swapped.
        :raises ContractError: the batch changed since its audit, or lacks columns that old rows have.
        :raises DataError: a key that is NULL, or stands twice in the batch and differs; or a row that no
            partition takes.
        :raises ShrinkBrake: more rows would go than allowed.
        :raises LockBudgetExceeded: locks or older snapshots were held up to the deadline; the load stays
            validated.
        """
        self._inspect()
        exchange = Exchange(
            self._connection, self._manifest, self._target, self._options, self._stop, self._log
        )
        with self._claim() as claim:
            built = self._build(claim)
            fresh = True

            def attempt(number: int) -> Published:
                nonlocal built, fresh
                if not fresh:
                    self._log(
                        "rows were written or the table was altered meanwhile: the partitions are built anew"
                    )
                    built, fresh = self._build(claim), True
                try:
                    self._require_alike(built)
                    changes = [exchange.prepared(self._change(one)) for one in built]
                    dimensions_first = number % 2 == 1
                    if number > 1:
                        # Every look at the old rows holds off writers, for nothing if a reader is still there.
                        exchange.probe(changes, dimensions_first=dimensions_first)
                    return exchange.apply(
                        Strategy.SWAP_MERGE,
                        changes,
                        self._counts(built),
                        verify=lambda: self._verify(built),
                        dimensions_first=dimensions_first,
                        keys=() if self._keyed is None else self._keyed.keys,
                    )
                except PartitionMoved:
                    fresh = False
                    raise

            return exchange.run(attempt, lambda: [one.leaf.partition.oid for one in built])

    # -- before anything is built -----------------------------------------------------------------

    def _inspect(self) -> None:
        refuse_unswappable(self._connection, self._target)
        locking.require_budget(self._connection, self._options.lock_budget)
        self._require_whole_rows()

    def _require_whole_rows(self) -> None:
        """:raises ContractError: the batch lacks columns that its rows have in the target."""
        routed = partition_columns(self._connection, self._target)
        missing = [
            column.name
            for column in self._target.columns
            if not column.generated
            and column.name not in self._columns
            and (
                self._keyed is not None
                or column.identity
                or routed is None
                or column.name in routed
            )
        ]
        if missing:
            raise ContractError(
                f"strategy 'swap_merge' writes whole rows, and the batch has no {', '.join(missing)} for {self._target.name}",
                remedy="load all columns, or use strategy='merge' (entities) or 'delete_insert' (events), which "
                "leave other columns as they are",
            )

    @contextmanager
    def _claim(self) -> Iterator[psycopg.Connection[Any]]:
        """A session whose transaction holds what only one build at a time may work on."""
        with connect(self._endpoint) as claim, translated_errors(self._what), claim.transaction():
            locking.wait_at_most(claim, self._options.lock_deadline)
            claim.execute("SELECT set_config('idle_in_transaction_session_timeout', '0', true)")
            yield claim

    def _claim_leaves(self, claim: psycopg.Connection[Any], leaves: Sequence[Leaf]) -> None:
        """Wait for builds of the same partitions, in the order of their names, so that none waits in a circle."""
        for leaf in leaves:
            try:
                claim.execute(
                    "SELECT pg_advisory_xact_lock(%(class)s, hashtext(%(name)s))",
                    {"class": ADVISORY_CLASS, "name": str(leaf.place.name)},
                )
            except psycopg.errors.LockNotAvailable:
                raise LockBudgetExceeded(
                    f"{self._what} waited {self._options.lock_deadline} for another load that builds "
                    f"{leaf.place.name} anew",
                    remedy="the load stays validated: look at what the other load waits for, then retry",
                ) from None

    # -- building ---------------------------------------------------------------------------------

    def _build(self, claim: psycopg.Connection[Any]) -> list[_Built]:
        connection = self._connection
        self._drop_earlier()
        if self._keyed is not None:
            # A staged table keeps autovacuum away, so nobody has counted it for the planner yet.
            connection.execute(
                sql.SQL("ANALYZE {} ({})").format(
                    ident(self._manifest.staging), names(self._keyed.keys)
                )
            )
            self._keyed.require_keys()
        leaves: list[Leaf] | None = None
        while (now := read_leaves(connection, self._target)) != leaves:
            # Until nobody has exchanged one between the look and the claim; what is claimed stays so.
            leaves, touched = now, self._touched(now)
            self._claim_leaves(claim, touched)
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self._hold_columns()
            self._manifest.require_rows(
                scalar(connection, statements.count(self._manifest.staging))
            )
            # A column that the table has got since, and its values, belong to what stays.
            self._target = read_table(connection, self._target.name, label=self._endpoint.label)
            self._require_whole_rows()
            self._later = self._read_later()
            fresh = None if self._keyed is None else self._keyed.not_older()
            looks = [self._look(leaf, fresh) for leaf in touched]
            # Every leaf that holds a key of the batch was looked at; that it stays so is verified at last.
            newer = any(look.stale for look in looks)
            built = [
                self._fill(
                    look,
                    TableName(STAGING_SCHEMA, f"{self._prefix}{number}"),
                    fresh,
                    among_newer=newer,
                )
                for number, look in enumerate(looks)
            ]
        self._brake(built)
        for one in built:
            self._finish(one)
        wait_out(
            connection,
            self._target.name,
            [one.leaf.partition.oid for one in built],
            self._options,
            what=self._what,
            stop=self._stop,
            log=self._log,
        )
        self._log(
            "partitions built anew",
            partitions=[str(one.leaf.place.name) for one in built],
            rows=sum(one.rows for one in built),
            kept=sum(one.kept for one in built),
        )
        return built

    def _hold_columns(self) -> None:
        """From here to the end of the transaction the table has the columns that it has now: all are carried over."""
        connection = self._connection
        locking.wait_at_most(connection, self._options.lock_deadline)
        connection.execute(statements.lock(self._target.name, "ACCESS SHARE"))
        self._target = read_table(connection, self._target.name, label=self._endpoint.label)
        self._require_whole_rows()

    @property
    def _prefix(self) -> str:
        return f"{shortened(self._manifest.staging.name, room=6)}_p"

    def _drop_earlier(self) -> None:
        """What a try before this one has built may be older than the partitions are now."""
        for table in filled_tables(self._connection, self._manifest):
            self._connection.execute(sql.SQL("DROP TABLE {}").format(ident(table)))

    def _touched(self, leaves: Sequence[Leaf]) -> list[Leaf]:
        """Those of *leaves* that gain, lose or change a row, in order of their names."""
        staged = rows_by_leaf(self._connection, self._manifest.staging, leaves)
        homeless = self._manifest.rows - sum(staged.values())
        if homeless and self._takes_away:
            homeless = self._homeless(leaves)
        if homeless:
            staging, target = self._manifest.staging, self._target
            lacking = gap(self._connection, target, staging, self._lives()) or target.name
            raise DataError(
                f"{homeless:,} rows of the batch {staging} belong into no partition of {target.name}"
                + ("" if lacking == target.name else f", some of them into none of {lacking}"),
                remedy=for_the_homeless(self._connection, self._manifest, target, lacking),
            )
        touched = set(staged) | self._left([x for x in leaves if x.partition.oid not in staged])
        found = [leaf for leaf in leaves if leaf.partition.oid in touched]
        refuse_dependents(self._connection, [leaf.partition for leaf in found])
        return found

    @property
    def _takes_away(self) -> bool:
        """Whether rows of the batch may say no more than that a row is gone."""
        return (
            self._keyed is not None
            and self._keyed.deleted is not None
            and self._options.deletes is Deletes.HARD
        )

    def _homeless(self, leaves: Sequence[Leaf]) -> int:
        """Rows of the batch that belong into none of *leaves*; one that takes a row away needs no place."""
        staging, lives = self._manifest.staging, self._lives()
        living = scalar(
            self._connection,
            sql.SQL("SELECT count(*) FROM {} AS s WHERE {}").format(ident(staging), lives),
        )
        placed: int = sum(rows_by_leaf(self._connection, staging, leaves, lives).values())
        return int(living) - placed

    def _left(self, leaves: Sequence[Leaf]) -> set[int]:
        """Those of *leaves* (by oid) that hold rows now which the batch replaces."""
        if self._keyed is None:
            return leaves_with(self._connection, leaves, self._replaced())
        routed = partition_columns(self._connection, self._target)
        if routed is not None and routed <= set(self._keyed.keys):
            return set()
        return leaves_with(
            self._connection,
            leaves,
            sql.SQL("EXISTS (SELECT FROM {} AS s WHERE {})").format(
                ident(self._manifest.staging), same_key(self._keyed.keys)
            ),
        )

    def _replaced(self) -> sql.Composable:
        """Which old rows of a stream of events the batch replaces."""
        window, cursor = self._manifest.window, self._manifest.cursor
        if cursor is None:
            return sql.SQL("true")
        found = sql.SQL("true") if window.is_full else statements.in_window(cursor, window)
        return sql.SQL("{} AND {}").format(found, statements.outside(cursor, self._later))

    def _read_later(self) -> tuple[Window, ...]:
        if self._keyed is not None:
            return ()
        if self._manifest.cursor is None:
            ledger.require_latest(self._connection, self._manifest)
        return ledger.later_reads(self._connection, self._manifest)

    def _look(self, leaf: Leaf, fresh: sql.Composable | None) -> _Look:
        """Count a leaf as it is now, and its rows that are newer than the batch's."""
        old, keyed = ident(leaf.partition.table), self._keyed
        last: sql.Composable = sql.SQL("NULL, 0")
        if keyed is not None and keyed.order is not None:
            last = sql.SQL("max(t.{c}::{t})::text, count(*) - count(t.{c})").format(
                c=sql.Identifier(keyed.order), t=keyed.order_type()
            )
        row = self._connection.execute(
            sql.SQL("SELECT count(*), {}, {} FROM ONLY {} AS t").format(FINGERPRINT, last, old)
        ).fetchone()
        before, fingerprint, latest, without = row or (0, "", None, 0)
        stale = 0
        if (
            keyed is not None
            and fresh is not None
            and before
            and (without or not keyed.is_after(latest))
        ):
            stale = scalar(
                self._connection,
                sql.SQL(
                    "SELECT count(*) FROM ONLY {} AS t JOIN {} AS s ON {} WHERE ({}) IS NOT TRUE"
                ).format(old, keyed.latest(), same_key(keyed.keys), fresh),
            )
        deleted = 0
        if (
            keyed is not None
            and keyed.deleted is not None
            and self._options.deletes is Deletes.HARD
        ):
            deleted = scalar(
                self._connection,
                sql.SQL(
                    "SELECT count(*) FROM ONLY {} AS t JOIN {} AS s ON {} WHERE {} AND {}"
                ).format(
                    old,
                    keyed.latest(),
                    same_key(keyed.keys),
                    keyed.deleted,
                    fresh or sql.SQL("true"),
                ),
            )
        return _Look(leaf, before, stale, deleted, fingerprint)

    def _fill(
        self, look: _Look, new: TableName, fresh: sql.Composable | None, *, among_newer: bool
    ) -> _Built:
        """Create *new* with what stays of a leaf and what the batch brings; all in the caller's snapshot.

        :param among_newer: whether the target holds newer versions of any rows of the batch.
        """
        connection, leaf = self._connection, look.leaf
        for step in twin_to_fill(connection, new, leaf.place.parent, leaf.partition, None):
            connection.execute(step)
        stored = [column.name for column in self._target.columns if not column.generated]
        batch: sql.Composable = ident(self._manifest.staging)
        stays: sql.Composable = sql.SQL("({}) IS NOT TRUE").format(self._replaced())
        if self._keyed is not None:
            batch = self._keyed.latest()
            # Nothing but this is planned as an anti-join.
            stays = sql.SQL("NOT EXISTS (SELECT FROM {} AS s WHERE {} AND {})").format(
                batch, same_key(self._keyed.keys), fresh or sql.SQL("true")
            )
        kept = connection.execute(
            sql.SQL("INSERT INTO {} ({}) SELECT {} FROM ONLY {} AS t WHERE {}").format(
                ident(new),
                names(stored),
                qualified("t", stored),
                ident(leaf.partition.table),
                stays,
            )
        ).rowcount
        newest = self._lives()
        if self._later and self._manifest.cursor is not None:
            newest = statements.outside(self._manifest.cursor, self._later)
        if self._keyed is not None and among_newer:
            newest = (
                newest
                + sql.SQL(" AND ")
                + sql.SQL("NOT EXISTS (SELECT FROM {} AS t WHERE {} AND ({}) IS NOT TRUE)").format(
                    ident(self._target.name), same_key(self._keyed.keys), fresh or sql.SQL("true")
                )
            )
        added = connection.execute(
            sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} AS s WHERE ({}) AND {}").format(
                ident(new),
                names(self._columns),
                qualified("s", self._columns),
                batch,
                leaf.place.condition,
                newest,
            )
        ).rowcount
        return _Built(
            leaf, new, kept + added, look.before, kept, look.stale, look.deleted, look.fingerprint
        )

    def _lives(self) -> sql.Composed:
        """Whether a row of the batch becomes a row of the target."""
        gone = None if self._keyed is None else self._keyed.deleted
        if gone is None or self._options.deletes is Deletes.SOFT:
            return sql.Composed([sql.SQL("true")])
        return sql.SQL("NOT ({})").format(gone)

    def _brake(self, built: Sequence[_Built]) -> None:
        by_key = self._keyed is not None
        if by_key:
            # Where rows of one key stood twice they become one, in whichever partition.
            before, rows = sum(one.before for one in built), sum(one.rows for one in built)
            brake(
                self._manifest,
                f"{len(built)} partitions of {self._target.name}",
                before=before,
                lost=max(before - rows, 0),
                options=self._options,
            )
        for one in built:
            # By key a row may move to another partition, which loses nothing; one that is deleted is lost, however
            # many others the batch brings.
            brake(
                self._manifest,
                f"partition {one.leaf.place.name}",
                before=one.before,
                lost=one.deleted if by_key else max(one.before - one.rows, 0),
                options=self._options,
            )

    def _finish(self, one: _Built) -> None:
        connection, place, old = self._connection, one.leaf.place, one.leaf.partition
        indexes = [*parent_indexes(connection, place.parent), *own_indexes(connection, old)]
        with (
            translated_errors(f"preparing {one.new} for partition {place.name}"),
            shared_keys(
                connection, one.new, indexes, self._manifest, place.parent.name, place.name
            ),
        ):
            finish(
                connection,
                one.new,
                place.condition,
                place.parent,
                old,
                indexes,
                in_attempts=self._patiently(
                    place.parent, f"adding a foreign key for partition {place.name}"
                ),
            )
            if not old.is_default:
                keep_out_of_default(
                    connection,
                    place.parent,
                    [(statements.excluding_name_of(old.bound), place.condition)],
                    lock_timeout_ms=round(self._options.lock_budget.total_seconds() * 1000),
                    in_attempts=self._patiently(
                        place.parent, "keeping rows out of the DEFAULT partition"
                    ),
                )

    def _require_alike(self, built: Sequence[_Built]) -> None:
        """:raises PartitionMoved: the table was altered since the partitions were built."""
        for one in built:
            found = differences(self._connection, one.new, one.leaf.place.parent)
            if found:
                raise PartitionMoved(
                    f"{self._target.name} was altered meanwhile: {'; '.join(found)}"
                )

    def _patiently(self, parent: Parent, what: str) -> locking.Attempts:
        return locking.patiently(
            self._connection,
            parent,
            self._options,
            what=f"{what} (load {self._manifest.load_id})",
            stop=self._stop,
            log=self._log,
        )

    # -- the exchange -----------------------------------------------------------------------------

    def _change(self, one: _Built) -> Change:
        return Change(
            one.leaf.place,
            one.new,
            one.leaf.partition,
            one.rows,
            one.before,
            size_of(self._connection, one.new),
        )

    def _counts(self, built: Sequence[_Built]) -> Counts:
        """Of events all replaced rows count as deleted; of entities what is replaced is updated."""
        before, kept = sum(one.before for one in built), sum(one.kept for one in built)
        added = sum(one.rows for one in built) - kept
        stale = sum(one.stale for one in built)
        if self._keyed is None:
            return Counts(
                inserted=added,
                deleted=before - kept,
                unchanged=kept,
                stale=self._manifest.rows - added,
            )
        deleted = sum(one.deleted for one in built)
        updated = min(before - kept - deleted, added)
        return Counts(
            inserted=added - updated,
            updated=updated,
            deleted=before - kept - updated,
            unchanged=kept - stale,
            stale=stale,
        )

    def _verify(self, built: Sequence[_Built]) -> None:
        """With writers held off from here to the commit: the old partitions are as they were read."""
        connection = self._connection
        locking.wait_at_most(connection, self._options.lock_budget)
        # Parents first: a writer that comes by way of a parent then holds nothing that we wait for.
        for parent in sorted(
            {str(one.leaf.place.parent.name) for one in built} | {str(self._target.name)}
        ):
            connection.execute(statements.lock(TableName.parse(parent), "SHARE ROW EXCLUSIVE"))
        for one in built:
            connection.execute(statements.lock(one.leaf.partition.table, "SHARE ROW EXCLUSIVE"))
        # Looked at again: what hinders an exchange may have been made while the partitions were built.
        refuse_unswappable(connection, self._target)
        refuse_dependents(connection, [one.leaf.partition for one in built])
        for one in built:
            now = scalar(
                connection,
                sql.SQL("SELECT {} FROM ONLY {} AS t").format(
                    FINGERPRINT, ident(one.leaf.partition.table)
                ),
            )
            if now != one.fingerprint:
                raise PartitionMoved(f"rows were written into {one.leaf.place.name} meanwhile")
        if self._read_later() != self._later:
            raise PartitionMoved("a load that has read the source later was published meanwhile")
        mine = {one.leaf.partition.oid for one in built}
        others = [
            leaf for leaf in read_leaves(connection, self._target) if leaf.partition.oid not in mine
        ]
        if self._left(others):
            raise PartitionMoved(
                f"rows of the batch came into other partitions of {self._target.name}"
            )


def filled_tables(connection: psycopg.Connection[Any], manifest: Manifest) -> list[TableName]:
    """The tables that were filled out of a staged one, as far as they are there and not attached."""
    prefix = f"{shortened(manifest.staging.name, room=6)}_p"
    rows = connection.execute(
        queries("leaves")["filled_from_staging"], {"schema": STAGING_SCHEMA, "prefix": prefix}
    ).fetchall()
    return [TableName(STAGING_SCHEMA, name) for (name,) in rows]
