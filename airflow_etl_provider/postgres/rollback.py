"""Taking a swap back: the versions that a load replaced become what readers see again.

The way back is the way in. What a version lacks after its time aside (columns, keys, indexes, the CHECK
that lets ATTACH skip its scan) is given to it before the locks; under them only the catalog changes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from airflow_etl_provider.core.errors import (
    ConfigurationError,
    ContractError,
    EtlError,
    StateError,
    Stopped,
    TerminalError,
)
from airflow_etl_provider.core.load import (
    Load,
    LoadState,
    Strategy,
    StreamPosition,
)
from airflow_etl_provider.core.names import TableName, short_id, shortened
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.postgres import dead_letters, ledger, locking, statements
from airflow_etl_provider.postgres.catalog import (
    Partition,
    Table,
    read_table,
    scalar,
)
from airflow_etl_provider.postgres.cursors import cursor_kind, cursor_type_sql, plain_type
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.exchange import Place
from airflow_etl_provider.postgres.leaves import Leaf, read_leaves
from airflow_etl_provider.postgres.ledger import STAGING_SCHEMA
from airflow_etl_provider.postgres.mending import (
    RELOAD,
    drop_what_is_gone,
    mend,
    mend_foreign_keys,
    unpaired,
    validate,
)
from airflow_etl_provider.postgres.partitions import (
    keep_out_of_default,
    refuse_dependents,
    refuse_unswappable,
)
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.releasing import foreign_keys_in, release_version
from airflow_etl_provider.postgres.renames import (
    Identity,
    follow_renames,
)
from airflow_etl_provider.postgres.rewind import lock_stream, move_position
from airflow_etl_provider.postgres.twin import (
    Index,
    Storage,
    build_index,
    final_index_names,
    index_settings,
    index_storage,
    last_touches,
    make_statistics,
    own_indexes,
    paired_indexes,
    parent_indexes,
    restore_options,
    statistics_of,
)

Connection = psycopg.Connection[Any]

#: What somebody else at the same tables does to us: looked at again, it is done or said what is wrong.
_RACES = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedObject,
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateColumn,
    psycopg.errors.DuplicateObject,
    psycopg.errors.DatatypeMismatch,
    psycopg.errors.InternalError_,
)
_ROUNDS = 5
_DISCARD = "roll back with discard_changes=True (--discard-changes); the version taken back is kept"


@dataclass(frozen=True, slots=True)
class RollbackOptions:
    """How a rollback may behave.

    :param move_watermark: also set the stream's position back to where the load's window begins, if it is
        above that.
    :param discard_changes: take the load back even if others have written into its partitions since, or a later load
        in place that is not known to have; of one that is known to, never.
    :param lock_budget: longest time one attempt may spend waiting for and holding table locks.
    :param lock_deadline: how long attempts go on.
    """

    move_watermark: bool = False
    discard_changes: bool = False
    lock_budget: timedelta = timedelta(milliseconds=300)
    lock_deadline: timedelta = timedelta(minutes=30)

    def __post_init__(self) -> None:
        if self.lock_budget <= timedelta(0) or self.lock_deadline < self.lock_budget:
            raise ConfigurationError(
                f"lock_budget ({self.lock_budget}) must be positive and at most lock_deadline ({self.lock_deadline})"
            )


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The outcome of a rollback.

    ``kept`` says by partition where the version that was taken back stays, detached. ``already`` says that
    an earlier call had done it: nothing was done now.
    """

    load_id: str
    stream: str
    target: TableName
    kept: Mapping[str, str | None]
    position: StreamPosition
    moved: bool = False
    already: bool = False
    lock_ms: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "load_id": self.load_id,
            "stream": self.stream,
            "target": str(self.target),
            "kept": dict(self.kept),
            "position": self.position.position,
            "fence": self.position.fence,
            "watermark_moved": self.moved,
            "already_rolled_back": self.already,
            "lock_ms": round(self.lock_ms, 2),
        }


@dataclass(frozen=True, slots=True)
class _Return:
    """One partition: what is attached now, and what comes back; ``rows`` were published as ``recorded``."""

    recorded: str
    current: Partition
    place: Place
    previous: TableName
    oid: int
    kept: TableName
    rows: int
    rebuild: Mapping[str, Any]

    @property
    def columns(self) -> Identity | None:
        """Which columns of the version were which of the target when it was replaced."""
        identity: Identity | None = self.rebuild.get("columns")
        return identity

    @property
    def version(self) -> Partition:
        """What comes back, in the place of the partition that it replaces."""
        return replace(self.current, table=self.previous, oid=self.oid)


def rollback(
    connection: Connection,
    load_id: str,
    reason: str,
    actor: str,
    *,
    options: RollbackOptions,
    stop: Stop,
    log: EventLog,
) -> RolledBack:
    """Put back the partitions that a published swap replaced, all of them or none.

    In one transaction with the swap of the partitions: the load becomes ``rolled_back`` with *reason* and
    *actor*, its window is no longer covered, and the versions that it had published are kept in the place
    of those that came back. What comes back is like what it replaces in all but its rows: rights, owner, triggers,
    constraints, settings. A second rollback of the same load does nothing.

    :param connection: in autocommit; its ``lock_timeout`` is set.
    :raises ConfigurationError: no reason, no load id, or the window has no start to move the watermark to.
    :raises StateError: the load is not published, was no swap, has nothing to go back to, or a later load
        or somebody else has changed one of its partitions since.
    :raises ContractError: a version no longer fits the target as it is now.
    :raises CatalogError: the target cannot be swapped.
    :raises LockBudgetExceeded: readers held their locks up to the deadline; nothing was changed.
    """
    for name, text in (("reason", reason), ("actor", actor)):
        if not text.strip():
            raise ConfigurationError(
                f"a rollback needs a {name}",
                remedy="say why and who, for those who wonder later what happened",
            )
    try:
        load_id = str(UUID(load_id))
    except ValueError:
        raise ConfigurationError(
            f"{load_id!r} is not the id of a load", remedy="airflow-etl loads STREAM lists them"
        ) from None
    label = f"database {connection.info.dbname}"
    ledger.require_ledger(connection, label=label, current=True)
    discarding = ", with what was changed since" if options.discard_changes else ""
    why = f"rolled back by {actor.strip()}{discarding}: {reason.strip()}"
    with translated_errors(f"rolling back load {load_id}"):
        load = _require(connection, load_id, options)
        if load.state is LoadState.ROLLED_BACK:
            return _already(connection, load)
        target = read_table(connection, load.target, label=label)
        work = _Rollback(connection, load, target, why, reason, actor, options, stop, log)
        done = work.run()
    if not done.already:
        log(
            "load rolled back",
            load_id=load_id,
            table=str(done.target),
            partitions=sorted(done.kept),
            lock_ms=round(done.lock_ms, 1),
            watermark=done.position.position,
        )
        _release(connection, done, options, log)
    return done


def _require(
    connection: Connection, load_id: str, options: RollbackOptions, *, lock: bool = False
) -> Load:
    """The load, published by a swap or rolled back already.

    :raises StateError: anything else.
    """
    load = ledger.load(connection, load_id, lock=lock)
    if load is None:
        raise StateError(
            f"the ledger knows no load {load_id}", remedy="airflow-etl loads STREAM lists them"
        )
    if load.state is LoadState.ROLLED_BACK:
        return load
    if load.state is not LoadState.PUBLISHED:
        raise StateError(
            f"load {load_id} of stream {load.stream} is {load.state}, not published: there is nothing to roll back",
            remedy="a load that is not published has changed nothing that readers see",
        )
    strategy = scalar(connection, queries("rollback")["strategy"], {"load_id": load_id})
    if strategy not in (Strategy.SWAP, Strategy.SWAP_MERGE):
        raise StateError(
            f"load {load_id} was published by {strategy}, which keeps no older version",
            remedy=f"mend the source, then {RELOAD}",
        )
    if options.move_watermark and load.window.low is None:
        raise ConfigurationError(
            f"the window of load {load_id} has no start to move the watermark of {load.stream} to",
            remedy=f"airflow-etl watermark reset {load.stream} lets it load everything again",
        )
    return load


def _already(connection: Connection, load: Load) -> RolledBack:
    rows = connection.execute(
        queries("rollback")["partitions"], {"load_id": load.load_id}
    ).fetchall()
    return RolledBack(
        load.load_id,
        load.stream,
        load.target,
        {name: previous for name, _, previous, *_ in rows},
        ledger.position_of(connection, load.stream),
        already=True,
    )


def _release(
    connection: Connection, done: RolledBack, options: RollbackOptions, log: EventLog
) -> None:
    """Let go of the rows that the versions taken back refer to."""
    for name, kept in done.kept.items():
        if kept is None:
            continue
        try:
            with translated_errors(f"dropping foreign keys of {kept}"):
                release_version(
                    connection,
                    TableName.parse(kept),
                    done.load_id,
                    name,
                    budget=options.lock_budget,
                )
        except EtlError as error:
            # The load is rolled back; until the janitor comes, what the version refers to cannot be deleted.
            log("foreign keys of a kept version stay", table=kept, reason=error.what)


def _leaf(leaves: Sequence[Leaf], name: TableName, bound: str) -> Leaf | None:
    """The partition that was published under *name*; it may be called otherwise by now."""
    named = [leaf for leaf in leaves if leaf.place.name == name]
    alike = [leaf for leaf in leaves if leaf.place.bound == bound]
    if named and (named[0] in alike or len(alike) != 1):
        return named[0]
    return alike[0] if len(alike) == 1 else None


class _Rollback:
    """One rollback; *connection* is in autocommit and belongs to the caller."""

    def __init__(
        self,
        connection: Connection,
        load: Load,
        target: Table,
        why: str,
        reason: str,
        actor: str,
        options: RollbackOptions,
        stop: Stop,
        log: EventLog,
    ) -> None:
        self._connection = connection
        self._load = load
        self._target = target
        self._why = why
        self._reason = reason
        self._actor = actor
        self._options = options
        self._stop = stop
        self._log = log
        self._budget_ms = round(options.lock_budget.total_seconds() * 1000)

    def run(self) -> RolledBack:
        refuse_unswappable(self._connection, self._target)
        locking.require_budget(self._connection, self._options.lock_budget)
        self._connection.execute(
            "SELECT set_config('lock_timeout', %s, false)", (str(self._budget_ms),)
        )
        looked_at: list[_Return] = []

        def attempt(number: int) -> RolledBack:
            for _ in range(_ROUNDS - 1):
                try:
                    return self._attempt(looked_at, number)
                except _RACES:
                    continue
            return self._attempt(looked_at, number)

        return locking.in_attempts(
            attempt,
            lambda: locking.blockers(
                self._connection,
                self._target,
                [oid for found in looked_at for oid in (found.current.oid, found.oid)],
            ),
            what=f"rolling back load {self._load.load_id}",
            table=self._target.name,
            deadline=self._options.lock_deadline,
            remedy="nothing was changed: end the session that blocks (SELECT pg_terminate_backend(pid)), "
            "then roll back again",
            stop=self._stop,
            log=self._log,
        )

    def _attempt(self, looked_at: list[_Return], number: int) -> RolledBack:
        load = _require(self._connection, self._load.load_id, self._options)
        if load.state is LoadState.ROLLED_BACK:
            return _already(self._connection, load)
        try:
            looked_at[:] = self._returns()
            for found in looked_at:
                self._prepare(found)
        except TerminalError:
            # What was found may be what another rollback of the load left a moment ago.
            load = _require(self._connection, self._load.load_id, self._options)
            if load.state is LoadState.ROLLED_BACK:
                return _already(self._connection, load)
            raise
        locking.ask_autovacuum_to_leave(
            self._connection, self._target, [found.current.oid for found in looked_at]
        )
        return self._exchange(looked_at, number)

    # -- before the locks -------------------------------------------------------------------------

    def _returns(self) -> list[_Return]:
        """What comes back for what, in the order of the bounds.

        :raises StateError: a partition has no version to go back to, or was published since.
        """
        load_id = self._load.load_id
        rows = self._connection.execute(
            queries("rollback")["partitions"], {"load_id": load_id}
        ).fetchall()
        if not rows:
            raise StateError(
                f"load {load_id} replaced no partition: it held no rows",
                remedy=RELOAD.capitalize(),
            )
        leaves = read_leaves(self._connection, self._target)
        found = []
        for partition, bound, previous, rebuild, published in rows:
            current = _leaf(leaves, TableName.parse(partition), bound)
            if current is None:
                raise StateError(
                    f"{partition} is no longer a partition of {self._target.name}, so nothing can take its place",
                    remedy="attach it again, or load the window anew",
                )
            if previous is None:
                raise StateError(
                    f"load {load_id} made partition {partition}, which replaced nothing: there is no version to "
                    "go back to",
                    remedy=f"mend the source, then {RELOAD}",
                )
            found.append(self._return(current, partition, previous, rebuild, published))
        self._refuse_later(found)
        return sorted(found, key=lambda one: (one.current.low or "", str(one.place.name)))

    def _return(
        self,
        leaf: Leaf,
        recorded: str,
        previous: str,
        rebuild: Mapping[str, Any] | None,
        rows: int,
    ) -> _Return:
        table = TableName.parse(previous)
        row = self._table(table)
        current = leaf.partition
        if row is None or row["attached"]:
            raise StateError(
                f"the version of {current.table} that load {self._load.load_id} replaced ({previous}) is gone",
                remedy=f"mend the source, then {RELOAD}; publish and clean keep more with keep_versions",
            )
        name = current.table.name
        return _Return(
            recorded=recorded,
            current=current,
            place=leaf.place,
            previous=table,
            oid=row["oid"],
            kept=TableName(
                STAGING_SCHEMA, f"{shortened(name, room=20)}_{short_id(self._load.load_id)}_rb"
            ),
            rows=rows,
            rebuild=rebuild or {},
        )

    def _table(self, table: TableName) -> dict[str, Any] | None:
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(
                queries("rollback")["table"], {"schema": table.schema, "name": table.name}
            ).fetchone()

    def _refuse_later(self, found: Sequence[_Return]) -> None:
        """:raises StateError: a later load has published a partition, whose rows would be lost."""
        params = {"load_id": self._load.load_id}
        for one in found:
            now = str(one.current.table)
            later = self._connection.execute(
                queries("rollback")["swapped_since"],
                {
                    **params,
                    "recorded": one.recorded,
                    "now": now,
                    "target": str(self._target.name),
                    # Below several partitions the same bound can be there again and again.
                    "bound": one.place.bound if one.place.parent.oid == self._target.oid else None,
                },
            ).fetchone()
            if later is not None:
                raise self._later(later[0], now)
        for one in found:
            changed = self._changed_since(one)
            if changed is None:
                continue
            load = (
                f"load {changed['load_id']} of stream {changed['stream']} ({changed['strategy']})"
            )
            if changed["is_known"]:
                raise StateError(
                    f"{load} has changed rows of {one.current.table} since load {self._load.load_id} was published: they "
                    "would be lost",
                    remedy=f"mend the source, then {RELOAD}",
                )
            if not self._options.discard_changes and not self._is_recorded(one):
                # By older software: their rows are not told from the load's own.
                raise StateError(
                    f"{load} has changed rows of {self._target.name} since load {self._load.load_id} was published, and "
                    f"in which partitions is not recorded: those in {one.current.table} would be lost",
                    remedy=f"mend the source, then {RELOAD}; if it has changed none there, or they may go: {_DISCARD}",
                )

    def _is_recorded(self, one: _Return) -> bool:
        """Whether the ledger says which transaction published the partition."""
        known = {
            "cluster": one.rebuild.get("cluster"),
            "version": (one.columns or {}).get("table"),
            "oid": one.oid,
        }
        found: bool = scalar(self._connection, queries("rollback")["is_recorded"], known)
        return found

    def _changed_since(self, one: _Return) -> dict[str, Any] | None:
        """A load that has changed rows of the table in place since, and maybe (``is_known``: surely) of the partition."""
        column, column_type = self._partition_column()
        low, high = one.current.low, one.current.high
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(
                queries("rollback")["changed_since"].format(t=cursor_type_sql(column_type)),
                {
                    "load_id": self._load.load_id,
                    "column": None if low == high else column,
                    "low": low,
                    "high": high,
                    "type": column_type,
                },
            ).fetchone()

    def _partition_column(self) -> tuple[str | None, str]:
        """The column that windows can be held against, and its type; text where there is none."""
        if self._target.partition_strategy == "r" and len(self._target.partition_columns) == 1:
            name = self._target.partition_columns[0]
            column_type = self._target.column(name, use="the partition column").type
            with suppress(ConfigurationError):
                cursor_kind(column_type)
                return name, plain_type(column_type)
        return None, "text"

    def _later(self, load_id: str, partition: str) -> StateError:
        return StateError(
            f"load {load_id} has published {partition} since load {self._load.load_id} did: its rows would be lost",
            remedy=f"roll back load {load_id} first, or mend the source and load the window anew",
        )

    def _prepare(self, found: _Return) -> None:
        """Give a version what its siblings have got since; what an earlier attempt did is not done again.

        :raises ContractError: its rows do not fit what the target asks for now.
        """
        connection = self._connection
        refuse_dependents(connection, [found.current])
        place = found.place
        follow_renames(connection, found.previous, self._target.name, found.columns, log=self._log)
        if not found.current.is_default:
            keep_out_of_default(
                connection,
                place.parent,
                [(statements.excluding_name_of(found.current.bound), place.condition)],
                lock_timeout_ms=self._budget_ms,
            )
        self._become_like(found)
        drop_what_is_gone(
            connection,
            found.previous,
            place.parent,
            found.current.oid,
            unpaired(own_indexes(connection, found.version), self._indexes(found)),
            log=self._log,
        )
        mend(connection, found.previous, place.parent, found.current.oid)
        try:
            self._mend_foreign_keys(found)
            self._have_indexes(found)
            self._have_statistics(found)
            known = {
                "schema": found.previous.schema,
                "name": found.previous.name,
                "constraint": statements.BOUND_CHECK,
            }
            if not scalar(connection, queries("catalog")["has_constraint"], known):
                with connection.transaction():
                    connection.execute(
                        statements.bound_check(found.previous, place.condition)
                        + sql.SQL(" NOT VALID")
                    )
            validate(connection, found.previous, statements.BOUND_CHECK)
        except psycopg.errors.IntegrityError as error:
            raise ContractError(
                f"rows of {found.previous} do not fit {self._target.name} as it is now: {error.diag.message_primary}",
                remedy=f"mend the table's rows, or {RELOAD}",
            ) from None

    def _indexes(self, found: _Return) -> list[tuple[Index, Index | None]]:
        """The indexes that the partition must have, each with the one of the version that is the same."""
        wanted = [
            *parent_indexes(self._connection, found.place.parent),
            *own_indexes(self._connection, found.current),
        ]
        return paired_indexes(own_indexes(self._connection, found.version), wanted)

    def _become_like(self, found: _Return) -> None:
        """What the version has of its own gives way to what the partition has that it replaces."""
        params = {
            "current": found.current.oid,
            "previous": found.oid,
            "table": str(found.previous),
        }
        rows = self._connection.execute(queries("rollback")["become_like"], params).fetchall()
        with self._connection.transaction():
            for (step,) in rows:
                # The server's own rendering.
                self._connection.execute(sql.SQL(step))

    def _have_statistics(self, found: _Return) -> None:
        """Let the version have the statistics objects of the partition that it replaces, filled, and no others."""
        connection = self._connection
        wanted = {one.definition: one for one in statistics_of(connection, found.current.oid)}
        has = statistics_of(connection, found.oid)
        missing = wanted.keys() - {own.definition for own in has}
        with connection.transaction():
            for own in has:
                if own.definition not in wanted:
                    connection.execute(
                        sql.SQL("DROP STATISTICS {}").format(statements.ident(own.name))
                    )
            for number, definition in enumerate(sorted(missing)):
                name = f"{shortened(found.previous.name, room=5)}_s{number}"
                for step in make_statistics(
                    found.previous, TableName(STAGING_SCHEMA, name), wanted[definition]
                ):
                    connection.execute(step)
            if missing:
                connection.execute(sql.SQL("ANALYZE {}").format(statements.ident(found.previous)))

    def _have_indexes(self, found: _Return) -> None:
        """Let the version have the indexes of the partition that it replaces, and what is said of them.

        Those it has stay in their tablespaces, as it does itself.
        """
        connection, version = self._connection, found.previous
        pairs = self._indexes(found)
        named: dict[str, Index] = {}
        with connection.transaction():
            stored = index_storage(connection, [index for index, _ in pairs], found.current)
            for number, (index, own) in enumerate(pairs):
                like = stored.get(index.oid, Storage(None, index.options))
                if own is None:
                    name = f"{shortened(version.name, room=5)}_r{number}"
                    for step in build_index(version, name, index, like):
                        connection.execute(step)
                else:
                    name = own.name
                    for step in restore_options(version.schema, own, like):
                        connection.execute(step)
                named[name] = index
            for said in index_settings(connection, version, named, found.current):
                connection.execute(said)

    def _mend_foreign_keys(self, found: _Return) -> None:
        """The foreign keys of the partition that is replaced, and no others."""
        connection, version = self._connection, found.previous
        wanted = dict(
            connection.execute(
                queries("twin")["foreign_keys"], {"oid": found.current.oid}
            ).fetchall()
        ).values()
        known = {"schema": version.schema, "name": version.name}
        has = dict(connection.execute(queries("catalog")["foreign_keys_of"], known).fetchall())
        for name, definition in has.items():
            if definition.removesuffix(" NOT VALID") not in wanted:
                with connection.transaction():
                    connection.execute(statements.drop_constraint(version, name))
        for name, definition in {**foreign_keys_in(found.rebuild), **has}.items():
            if definition.removesuffix(" NOT VALID") not in wanted:
                self._log(
                    "a foreign key that the target no longer has was not given back",
                    table=str(version),
                    name=name,
                )
        mend_foreign_keys(connection, version, found.current.oid, {}, log=self._log)

    # -- under the locks --------------------------------------------------------------------------

    def _exchange(self, found: Sequence[_Return], number: int) -> RolledBack:
        connection, load_id = self._connection, self._load.load_id
        steps = statements.script([step for one in found for step in self._steps(one)])
        parents = {one.place.parent.oid: one.place.parent for one in found}
        locks = locking.in_order(
            connection,
            [(parent, "ACCESS EXCLUSIVE") for parent in parents.values()],
            replaced=[one.current.table for one in found],
            new=[one.previous for one in found],
            dimensions_first=number % 2 == 1,
        )
        if number > 1:
            # Counting the rows holds off writers, for nothing if a reader is still there.
            locking.probe(connection, locks, self._options.lock_budget)
        locked = time.monotonic()
        with connection.transaction():
            # Every publish locks its stream first: none comes between the look at later loads and the swap.
            connection.execute(
                queries("rollback")["hold_streams"], {"target": str(self._target.name)}
            )
            stream = lock_stream(connection, self._load.stream)
            load = _require(connection, load_id, self._options, lock=True)
            if load.state is LoadState.ROLLED_BACK:
                return _already(connection, load)
            self._refuse_later(found)
            if not self._options.discard_changes:
                self._refuse_written(found)
            moved = self._record(found, stream)
            until = time.monotonic() + self._options.lock_budget.total_seconds()
            locked = locking.take(connection, locks, until) or time.monotonic()
            self._require_unmoved(found)
            locking.limit(connection, until)
            with locking.own_work():
                connection.execute(steps)
            if self._stop.is_set():
                raise Stopped(f"rolling back load {load_id} was stopped; nothing was changed")
        return RolledBack(
            load_id,
            self._load.stream,
            self._target.name,
            {str(one.current.table): str(one.kept) for one in found},
            ledger.position_of(connection, self._load.stream),
            moved=moved,
            lock_ms=(time.monotonic() - locked) * 1000,
        )

    def _refuse_written(self, found: Sequence[_Return]) -> None:
        """Keep writers out to the end of the transaction, and see that there were none since the load.

        :raises StateError: a partition does not hold what the load has published: others' rows would be lost.
        """
        connection = self._connection
        parents = {one.place.parent.oid: one.place.parent.name for one in found}
        for table in [*parents.values(), *(one.current.table for one in found)]:
            connection.execute(statements.lock(table, "SHARE ROW EXCLUSIVE"))
        for one in found:
            table = one.current.table
            now, written = connection.execute(
                queries("rollback")["rows_now"].format(table=statements.ident(table)),
                {
                    "oid": one.current.oid,
                    "xid": None,
                    "oldest": None,
                    "filled_by": None,
                    **(one.rebuild if self._is_recorded(one) else {}),
                },
            ).fetchone() or (0, 0)
            if now != one.rows or written:
                changed = self._changed_since(one)
                whose = "what others have changed"
                if changed is not None:
                    whose += (
                        " (load {load_id} of stream {stream}, {strategy}, or somebody else)".format(
                            **changed
                        )
                    )
                raise StateError(
                    f"{table} holds {now:,} rows, of which {written:,} were written since load {self._load.load_id} "
                    f"published {one.rows:,} there: {whose} would be lost",
                    remedy=f"look at what was changed; if it may go: {_DISCARD}",
                )

    def _record(self, found: Sequence[_Return], stream: Mapping[str, Any]) -> bool:
        """Write the ledger, before the table locks; whether the watermark was moved."""
        connection, named = self._connection, queries("rollback")
        params = {"load_id": self._load.load_id, "stream": self._load.stream, "why": self._why}
        connection.execute(named["mark"], params)
        if self._load.window.is_range:
            window = ledger.bounded(self._load.window)
            connection.execute(
                named["uncover"].format(t=cursor_type_sql(window.type or "")),
                {**params, "low": window.low, "high": window.high},
            )
        dead_letters.end(connection, [self._load.load_id], self._why)
        for one in found:
            connection.execute(
                named["keep"],
                {
                    **params,
                    "recorded": one.recorded,
                    "partition": str(one.current.table),
                    "kept": str(one.kept),
                },
            )
        window = self._load.window
        if not self._options.move_watermark or stream["position"] is None:
            return False
        above = scalar(
            connection,
            named["is_above"].format(t=cursor_type_sql(window.type or "")),
            {"position": stream["position"], "low": window.low},
        )
        if above:
            reason = f"load {self._load.load_id} was rolled back: {self._reason.strip()}"
            move_position(connection, stream, window.low, reason, self._actor.strip())
        return bool(above)

    def _require_unmoved(self, found: Sequence[_Return]) -> None:
        """Under the locks: current and previous versions are those that were looked at."""
        rows = self._connection.execute(
            queries("catalog")["attached"],
            {
                "parents": sorted({one.place.parent.oid for one in found}),
                "names": [one.current.table.name for one in found],
            },
        )
        attached = {TableName(schema, name): oid for _, schema, name, oid, _ in rows}
        for one in found:
            row = self._table(one.previous)
            if (
                attached.get(one.current.table) != one.current.oid
                or row is None
                or row["oid"] != one.oid
            ):
                raise StateError(
                    f"partition {one.current.table} was replaced by somebody else while load {self._load.load_id} "
                    "was being rolled back",
                    remedy="roll back again: it looks at the table anew",
                )

    def _steps(self, found: _Return) -> list[sql.Composable]:
        """The catalog changes for one partition, in order; written before any lock is taken."""
        connection, parent, final = self._connection, found.place.parent.name, found.current.table
        owned = connection.execute(
            queries("catalog")["child_index_names"], {"oid": found.current.oid}
        ).fetchall()
        steps: list[sql.Composable] = [statements.detach(parent, final)]
        steps += [
            statements.rename_index(
                final.schema, name, f"{shortened(found.kept.name, room=5)}_i{n}"
            )
            for n, (_, name) in enumerate(owned)
        ]
        steps += statements.move(final, found.kept)
        steps += [
            statements.drop_column(found.previous, name)
            for (name,) in connection.execute(
                queries("rollback")["columns_to_drop"],
                {"parent": found.place.parent.oid, "oid": found.oid},
            )
        ]
        steps.append(statements.attach_as(parent, found.previous, found.place.clause))
        steps.append(
            sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                statements.ident(found.previous), sql.Identifier(statements.BOUND_CHECK)
            )
        )
        steps += statements.move(found.previous, final)
        pairs = self._indexes(found)
        names = final_index_names(
            connection, [index for index, _ in pairs], found.current, parent, final
        )
        steps += [
            statements.rename_index(final.schema, own.name, name)
            for (_, own), name in zip(pairs, names, strict=True)
            if own is not None and own.name != name
        ]
        has = {own.definition: own.name for own in statistics_of(connection, found.oid)}
        for own in statistics_of(connection, found.current.oid):
            aside = TableName(
                STAGING_SCHEMA,
                f"{shortened(own.name.name, room=20)}_{short_id(self._load.load_id)}_rb",
            )
            steps += statements.move(own.name, aside, kind="STATISTICS")
            same = has.pop(own.definition, None)
            if same is not None:
                steps += statements.move(same, own.name, kind="STATISTICS")
        steps += last_touches(connection, found.current, found.place.parent, found.previous, final)
        return steps
