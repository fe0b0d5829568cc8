"""The schema contract of a stream: what happens when source and target no longer have the same columns.

What it allows is decided by looking, before anything is changed (:func:`keep_contract`); the target is
changed when the load is about to read (:func:`evolve`), under the table's lock and after another look.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import psycopg
import structlog
from psycopg import sql

from airflow_etl_provider.core.columns import Selected, Treatment
from airflow_etl_provider.core.errors import CatalogError, ConfigurationError, ContractError
from airflow_etl_provider.core.names import TableName, check_identifier, quoted
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
_FOR_GOOD = "a partition column keeps its type for good: load the stream into a new table, under a new stream id"


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
    _refuse_another_case(source, columns, new, target)
    types = {column.name: column.type for column in source.columns}
    added = [_add(target.name, column.name, types[column.name]) for column in new]
    if request.schema_contract is SchemaContract.DISCARD_COLUMN:
        if new:
            _refuse_needed(request, new, target, added)
            log.warning(
                "columns that the target lacks are left out, as the contract says",
                table=str(target.name),
                columns=[column.name for column in new],
            )
        return Evolution([column for column in columns if column not in new], target)
    _refuse_names(source, new)
    facts = {column.name: catalog.read_type(connection, types[column.name]) for column in new}
    _refuse_new(request, source, target, types, facts, added)
    if request.schema_contract is SchemaContract.FREEZE:
        return Evolution(columns, target)
    given = {column.name for column in columns}
    wider = {
        column.name: step
        for column in target.columns
        if column.name in given and widens_in_place(column.type, types[column.name])
        for step in [_widen(connection, target, column, types[column.name])]
        if step is not None
    }
    if added or wider:
        _refuse_subscribers(connection, target, [*added, *wider.values()])
    now = [
        replace(column, type=types[column.name]) if column.name in wider else column
        for column in target.columns
    ]
    now += [_nullable(name, types[name], found or {}) for name, found in facts.items()]
    return Evolution(columns, replace(target, columns=tuple(now)), (*added, *wider.values()))


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


def _refuse_another_case(
    source: SourceShape, columns: Sequence[Selected], new: Sequence[Selected], target: Table
) -> None:
    """:raises ContractError: a new column is called like one of the target, but for case."""
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


def _refuse_names(source: SourceShape, new: Sequence[Selected]) -> None:
    """:raises ContractError: the server would cut the name of a new column in silence."""
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


def _refuse_new(
    request: ExtractRequest,
    source: SourceShape,
    target: Table,
    types: Mapping[str, str],
    facts: Mapping[str, Mapping[str, Any] | None],
    added: Sequence[sql.Composed],
) -> None:
    """:raises ContractError: columns that the target lacks, and may not be given or cannot have as it is."""
    unknown = sorted({types[name] for name, found in facts.items() if found is None})
    frozen = request.schema_contract is SchemaContract.FREEZE
    if not unknown and not (facts and frozen):
        return
    what = f"{source.name} has columns that {target.name} has not: {', '.join(facts)}"
    remedy = f"approve them with {_shown(added)}"
    if unknown:
        what += f" (its database does not know the types {', '.join(unknown)})"
        remedy = f"create the types there, then {remedy}"
    if frozen:
        remedy += "; or say schema_contract='evolve' or 'discard_column'"
    raise ContractError(
        what,
        remedy=f"{remedy}; or name the columns to load with columns=[...], or call them as the target does with "
        "rename={...}",
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
            f"{target.name} is in publication {', '.join(name for name, _ in published)}: its subscribers would stop at "
            "the first row that their table cannot take",
            remedy=f"first there, then here: {_shown(steps)}",
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
        f"while readers are at work: {'; '.join(name for name, *_ in found)}"
    )
    remedy = f"at a quiet hour run {_shown([step])}, with what forbids it dropped before and made again after"
    if any(for_good for _, for_good, _ in found):
        remedy = _FOR_GOOD
    if not fits(type_name, column.type):
        raise ContractError(what, remedy=remedy)
    log.warning("a column stays narrower than the source's", reason=what, remedy=remedy)
    return None


def approval(connection: Connection, target: Table, column: str, type_name: str) -> str:
    """What lets *column* of *target* hold what is of *type_name* in the source, as a remedy."""
    params = {"oid": target.oid, "column": column, "type": type_name}
    found = connection.execute(queries("contract")["widening_obstacles"], params).fetchall()
    if any(for_good for _, for_good, _ in found):
        return _FOR_GOOD
    row = connection.execute(queries("contract")["conversion"], params).fetchone()
    using = row[0] if row is not None else None
    step = f"ALTER TABLE {target.name} ALTER COLUMN {quoted(column)} TYPE {type_name}"
    if using is not None:
        step += f" USING {using}"
    forbids = [what for what, _, forbids in found if forbids]
    if forbids:
        return (
            f"approve it with {step}, for which these must be dropped before and made again after: "
            f"{'; '.join(forbids)}"
        )
    return f"approve it with {step}"


def _nullable(name: str, type_name: str, facts: Mapping[str, Any]) -> CatalogColumn:
    """The column as it is once it was added."""
    known = {**facts, "type": type_name}
    return CatalogColumn(
        name=name, not_null=False, has_default=False, generated=False, identity=False, **known
    )


def _shown(steps: Sequence[sql.Composed]) -> str:
    return "; ".join(step.as_string(None) for step in steps)
