"""The schema contract of a stream: what happens when source and target no longer have the same columns.

What it allows is decided by looking, before anything is changed (:func:`keep_contract`); the target is
changed when the load is about to read (:func:`evolve`), under the table's lock and after another look.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import psycopg
import structlog
from psycopg import sql

from airflow_etl_provider.core.columns import Selected, Treatment
from airflow_etl_provider.core.errors import CatalogError, ConfigurationError, ContractError
from airflow_etl_provider.core.names import TableName, check_identifier
from airflow_etl_provider.core.ports import EventLog, SourceShape, Stop
from airflow_etl_provider.core.request import ExtractRequest, SchemaContract
from airflow_etl_provider.postgres import catalog, locking
from airflow_etl_provider.postgres.catalog import CatalogColumn, Table, scalar
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.statements import ident
from airflow_etl_provider.postgres.types import fits, widens_in_place

log = structlog.get_logger(__name__)

Connection = psycopg.Connection[Any]

#: How long readers may have to wait for us, how long the change of the catalog may then take, and how long
#: attempts go on.
_BUDGET, _WORK, _DEADLINE = timedelta(milliseconds=300), timedelta(seconds=2), timedelta(minutes=5)
_NOT_PRIVILEGED = "42501"


@dataclass(frozen=True, slots=True)
class Evolution:
    """What the contract says: which columns are loaded, and what is done to the target first.

    ``target`` is the table as it is after ``steps``.
    """

    columns: Sequence[Selected]
    target: Table
    steps: tuple[sql.Composed, ...] = ()

    @property
    def ddl(self) -> tuple[str, ...]:
        return tuple(step.as_string(None) for step in self.steps)


def keep_contract(
    connection: Connection,
    request: ExtractRequest,
    source: SourceShape,
    columns: Sequence[Selected],
    target: Table,
) -> Evolution:
    """Compare source and target; nothing is changed.

    ``freeze`` changes nothing; ``discard_column`` leaves out what the target lacks; ``evolve`` adds it, and
    widens columns where PostgreSQL does so without rewriting a table or building an index. Where it cannot, text
    goes on being loaded as long as it fits, and any other type is refused. A column that earlier loads carried
    and the source has no more stops every contract.

    :raises ContractError: a difference that the contract does not allow, with the statement that would.
    """
    _refuse_lost(connection, request, source, target)
    new = [column for column in columns if not target.has_column(column.name)]
    _refuse_misnamed(source, columns, new, target)
    types = {column.name: column.type for column in source.columns}
    steps = [_add(target.name, column.name, types[column.name]) for column in new]
    if new and request.schema_contract is SchemaContract.DISCARD_COLUMN:
        _refuse_needed(request, new, target, steps)
        log.warning(
            "columns that the target lacks are left out, as the contract says",
            table=str(target.name),
            columns=[column.name for column in new],
        )
        return Evolution([column for column in columns if column not in new], target)
    known = {column.name: catalog.read_type(connection, types[column.name]) for column in new}
    unknown = [name for name, found in known.items() if found is None]
    if new and request.schema_contract is not SchemaContract.EVOLVE:
        raise ContractError(
            f"{source.name} has columns that {target.name} has not: {', '.join(c.name for c in new)}"
            + _unknown_types(types, unknown),
            remedy=f"approve them with {_shown(steps)}; or say schema_contract='evolve' or "
            "'discard_column', name the columns to load with columns=[...], or call them as the target does "
            "with rename={...}",
        )
    if request.schema_contract is not SchemaContract.EVOLVE:
        return Evolution(columns, target)
    if unknown:
        raise ContractError(
            f"{source.name} has columns of which the database of {target.name} knows nothing yet"
            + _unknown_types(types, unknown),
            remedy=f"create the types there, then {_shown(steps)}; or leave the columns out with columns=[...]",
        )
    given = {column.name for column in columns}
    wider = {
        column.name: step
        for column in target.columns
        if column.name in given and widens_in_place(column.type, types[column.name])
        for step in [_widen(connection, target, column, types[column.name])]
        if step is not None
    }
    steps += wider.values()
    if steps:
        _refuse_subscribers(connection, target, steps)
    after = [
        replace(column, type=types[column.name]) if column.name in wider else column
        for column in target.columns
    ] + [
        CatalogColumn(
            name=name,
            not_null=False,
            has_default=False,
            generated=False,
            identity=False,
            **(found or {}) | {"type": types[name]},
        )
        for name, found in known.items()
    ]
    return Evolution(columns, replace(target, columns=tuple(after)), tuple(steps))


def evolve(
    connection: Connection,
    request: ExtractRequest,
    source: SourceShape,
    columns: Sequence[Selected],
    *,
    label: str,
    stop: Stop,
    log: EventLog,
) -> Evolution:
    """Change the target as the contract allows; returns what is left to do, which is nothing.

    Readers queue behind us for no longer than a lock budget at a time. What another load has changed
    meanwhile is looked at again under the lock.

    :raises ContractError: another load has changed the target so that the batch no longer fits, or the
        change takes long under its lock.
    :raises CatalogError: the role does not own the table.
    :raises LockBudgetExceeded: readers or writers held the table for minutes.
    :raises Stopped: it was told to stop; nothing was changed.
    """
    target = catalog.read_table(connection, request.target, label=label)
    what = f"evolving {target.name}"
    done: list[str] = []

    def attempt(_: int) -> None:
        with connection.transaction():
            locking.limit(connection, time.monotonic() + _BUDGET.total_seconds())
            # With its partitions.
            connection.execute(
                sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(ident(target.name))
            )
            now = catalog.read_table(connection, target.name, label=label)
            found = keep_contract(connection, request, source, columns, now)
            done[:] = found.ddl
            locking.limit(connection, time.monotonic() + _WORK.total_seconds())
            try:
                for step in found.steps:
                    connection.execute(step)
            except psycopg.errors.QueryCanceled:
                if stop.is_set():
                    raise
                raise ContractError(
                    f"{what} takes more than {_WORK.total_seconds():g} s under a lock that stops its readers, so it "
                    "was not done",
                    remedy=f"at a quiet hour run {_shown(found.steps)}",
                ) from None

    try:
        with translated_errors(what):
            locking.in_attempts(
                attempt,
                lambda: locking.blockers(connection, target, []),
                what=what,
                table=target.name,
                deadline=_DEADLINE,
                remedy="nothing was changed: end the session that holds the table, then retry",
                stop=stop,
                log=log,
            )
    except CatalogError as error:
        if error.sqlstate != _NOT_PRIVILEGED:
            raise
        steps = keep_contract(connection, request, source, columns, target).steps
        raise CatalogError(
            error.what, remedy=f"let the table's owner run {_shown(steps)}"
        ) from None
    log("target evolved", table=str(target.name), ddl="; ".join(done))
    return keep_contract(
        connection,
        request,
        source,
        columns,
        catalog.read_table(connection, target.name, label=label),
    )


# -- what stops a load ----------------------------------------------------------------------------


def _refuse_lost(
    connection: Connection, request: ExtractRequest, source: SourceShape, target: Table
) -> None:
    """:raises ContractError: a column was dropped or renamed in the source since the last load."""
    selection = request.selection
    if selection.columns is not None or not scalar(
        connection, queries("ledger")["ledger_exists"], {}
    ):
        return
    row = connection.execute(
        queries("ledger")["last_columns"], {"stream": request.stream, "target": str(target.name)}
    ).fetchone()
    offered = {column.name: column.type for column in source.columns}
    carried = {column["name"]: column for column in (row[0] if row and row[0] else [])}
    # What the pipeline itself no longer loads, or calls otherwise, is still there.
    decided = {name for name, how in selection.personal.items() if how is Treatment.DROP}
    decided |= set(selection.rename)
    lost = {
        name: column["type"]
        for name, column in carried.items()
        if name not in offered
        and target.has_column(name)
        and (column.get("source") or name) not in decided
    }
    if not lost:
        return
    renamed = {
        new: old
        for old, old_type in lost.items()
        for new, new_type in offered.items()
        if new_type == old_type and not target.has_column(new)
    }
    hint = f"if it was renamed there, say rename={renamed}; " if renamed else ""
    drops = [
        sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(ident(target.name), sql.Identifier(name))
        for name in lost
    ]
    raise ContractError(
        f"{source.name} no longer has {', '.join(lost)}, which earlier loads of stream {request.stream!r} carried to "
        f"{target.name}",
        remedy=f"{hint}if it is gone for good, name the columns to load with columns=[...], or drop it here too: "
        f"{_shown(drops)}",
    )


def _refuse_misnamed(
    source: SourceShape, columns: Sequence[Selected], new: Sequence[Selected], target: Table
) -> None:
    """:raises ContractError: a new column is called like one of the target, but for case, or cannot be called so."""
    given = {column.name for column in columns}
    meant = {
        column.source: theirs.name
        for column in new
        for theirs in target.columns
        if theirs.name.lower() == column.name.lower() and theirs.name not in given
    }
    if meant:
        raise ContractError(
            f"{source.name} writes {', '.join(meant)} otherwise than {target.name} does: {', '.join(meant.values())}",
            remedy=f"say rename={meant}; or name the columns to load with columns=[...]",
        )
    for column in new:
        try:
            check_identifier(column.name)
        except ConfigurationError as error:
            raise ContractError(
                f"{source.name} has a column whose name no table of PostgreSQL can have: {error.what}",
                remedy=f"call it otherwise with rename={{{column.source!r}: ...}}, or leave it out with columns=[...]",
            ) from None


def _refuse_needed(
    request: ExtractRequest, new: Sequence[Selected], target: Table, steps: Sequence[sql.Composed]
) -> None:
    """:raises ContractError: a column that would be left out says which rows are the same, or newer."""
    uses = dict.fromkeys(request.keys, "a key") | {request.target_cursor: "the cursor"}
    needed = [column.name for column in new if column.name in uses]
    if needed:
        raise ContractError(
            f"{target.name} lacks {', '.join(f'{name} ({uses[name]})' for name in needed)} of stream "
            f"{request.stream!r}, without which its rows cannot be told apart or put in order",
            remedy=f"approve it with {_shown([s for s, c in zip(steps, new, strict=True) if c.name in needed])}; or "
            "say for a cursor that is not to be stored personal={...: 'drop'}",
        )


def _refuse_subscribers(
    connection: Connection, target: Table, steps: Sequence[sql.Composed]
) -> None:
    """:raises ContractError: the table is published: subscribers must have the column before it has values."""
    published = connection.execute(
        queries("catalog")["publications"], {"oid": target.oid}
    ).fetchall()
    if published:
        raise ContractError(
            f"{target.name} is in publication {', '.join(name for (name,) in published)}: its subscribers would stop at "
            "the first row that their table cannot take",
            remedy=f"first there, then here: {_shown(steps)}",
        )


def _unknown_types(types: dict[str, str], unknown: Sequence[str]) -> str:
    if not unknown:
        return ""
    return (
        f" (its database does not know the types {', '.join(sorted({types[n] for n in unknown}))})"
    )


# -- what changes the target ----------------------------------------------------------------------


def _add(table: TableName, column: str, type_name: str) -> sql.Composed:
    """*type_name* is the server's own rendering; a parallel load may have been first."""
    return sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}").format(
        ident(table), sql.Identifier(column), sql.SQL(type_name)
    )


def _widen(
    connection: Connection, target: Table, column: CatalogColumn, type_name: str
) -> sql.Composed | None:
    """The statement; ``None`` where it cannot be run beside readers, and values that fit are loaded all the same.

    :raises ContractError: it cannot be run beside readers, and values would not be stored as they are.
    """
    params = {"oid": target.oid, "column": column.name}
    collation = scalar(connection, queries("contract")["collation"], params)
    step = sql.SQL("ALTER TABLE {} ALTER COLUMN {} TYPE {}{}").format(
        ident(target.name),
        sql.Identifier(column.name),
        sql.SQL(type_name),
        # Without it the column would lose its own; the server's own rendering.
        sql.SQL("" if collation is None else f" COLLATE {collation}"),
    )
    found = connection.execute(queries("contract")["widening_obstacles"], params).fetchall()
    if not found:
        return step
    what = (
        f"column {column.name} of {target.name} is {column.type}, in the source {type_name} now, and cannot be widened "
        f"while readers are at work: {'; '.join(name for name, _ in found)}"
    )
    remedy = f"at a quiet hour run {_shown([step])}, with what forbids it dropped before and made again after"
    if any(for_good for _, for_good in found):
        remedy = "a partition column keeps its type for good: load the stream into a new table, under a new stream id"
    if not fits(type_name, column.type):
        raise ContractError(what, remedy=remedy)
    log.warning("a column stays narrower than the source's", reason=what, remedy=remedy)
    return None


def _shown(steps: Sequence[sql.Composed]) -> str:
    return "; ".join(step.as_string(None) for step in steps)
