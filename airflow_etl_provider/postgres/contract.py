"""The schema contract of a stream: what happens when source and target no longer have the same columns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psycopg
import structlog
from psycopg import sql

from airflow_etl_provider.core.columns import Selected
from airflow_etl_provider.core.errors import ContractError
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import SourceShape
from airflow_etl_provider.core.request import ExtractRequest, SchemaContract
from airflow_etl_provider.postgres import catalog, locking
from airflow_etl_provider.postgres.catalog import Table, scalar
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.statements import ident
from airflow_etl_provider.postgres.types import widens_in_place

log = structlog.get_logger(__name__)

_BUDGET_MS, _DEADLINE = 300, timedelta(minutes=5)


def keep_contract(
    connection: psycopg.Connection[Any],
    request: ExtractRequest,
    source: SourceShape,
    columns: Sequence[Selected],
    target: Table,
    *,
    label: str,
) -> tuple[Sequence[Selected], Table]:
    """The columns to load and the target as it is then, after what the contract allows was done.

    ``freeze`` changes nothing; ``discard_column`` leaves out what the target lacks; ``evolve`` adds it, and
    widens columns where PostgreSQL does so without rewriting the table. A column that earlier loads carried
    and the source has no more stops every one of them.

    :raises ContractError: a difference that the contract does not allow, with the statement that would.
    :raises LockBudgetExceeded: readers or writers held the table for minutes.
    """
    _refuse_lost(connection, request, source, target)
    new = [column for column in columns if not target.has_column(column.name)]
    if new and request.schema_contract is SchemaContract.DISCARD_COLUMN:
        log.warning(
            "columns that the target lacks are left out, as the contract says",
            table=str(target.name),
            columns=[column.name for column in new],
        )
        return [column for column in columns if column not in new], target
    types = {column.name: column.type for column in source.columns}
    steps = [_add(target.name, column.name, types[column.name]) for column in new]
    if request.schema_contract is not SchemaContract.EVOLVE:
        if new:
            raise ContractError(
                f"{source.name} has columns that {target.name} has not: {', '.join(c.name for c in new)}",
                remedy=f"approve them with {_shown(connection, steps)}; or say schema_contract='evolve' or "
                "'discard_column', name the columns to load with columns=[...], or call them as the target does "
                "with rename={...}",
            )
        return columns, target
    unknown = [column.name for column in new if not _is_known(connection, types[column.name])]
    if unknown:
        raise ContractError(
            f"{source.name} has columns of types that the database of {target.name} does not know: {', '.join(unknown)}",
            remedy=f"create the types there, then {_shown(connection, steps)}; or leave the columns out with columns=[...]",
        )
    steps += [
        _widen(target.name, column.name, types[column.name])
        for column in columns
        if target.has_column(column.name)
        and widens_in_place(target.column(column.name, use="a column").type, types[column.name])
    ]
    if not steps:
        return columns, target
    _alter(connection, target, steps)
    return columns, catalog.read_table(connection, target.name, label=label)


def _refuse_lost(
    connection: psycopg.Connection[Any],
    request: ExtractRequest,
    source: SourceShape,
    target: Table,
) -> None:
    """:raises ContractError: a column was dropped or renamed in the source since the last load."""
    if request.selection.columns is not None or not scalar(
        connection, queries("ledger")["ledger_exists"], {}
    ):
        return
    row = connection.execute(
        queries("ledger")["last_columns"], {"stream": request.stream, "target": str(target.name)}
    ).fetchone()
    offered = {column.name: column.type for column in source.columns}
    lost = {
        column["name"]: column["type"]
        for column in (row[0] if row else [])
        if column["name"] not in offered and target.has_column(column["name"])
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
    drops = sql.SQL("; ").join(
        sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(ident(target.name), sql.Identifier(name))
        for name in lost
    )
    raise ContractError(
        f"{source.name} no longer has {', '.join(lost)}, which earlier loads of stream {request.stream!r} carried to "
        f"{target.name}",
        remedy=f"{hint}if it is gone for good, name the columns to load with columns=[...], or drop it here too: "
        f"{drops.as_string(connection)}",
    )


def _alter(
    connection: psycopg.Connection[Any], target: Table, steps: Sequence[sql.Composed]
) -> None:
    def attempt(_: int) -> None:
        with connection.transaction():
            connection.execute("SELECT set_config('lock_timeout', %s, true)", (str(_BUDGET_MS),))
            for step in steps:
                connection.execute(step)

    what = f"evolving {target.name}"
    with translated_errors(what):
        locking.in_attempts(
            attempt,
            lambda: locking.blockers(connection, target, []),
            what=what,
            table=target.name,
            deadline=_DEADLINE,
            remedy="nothing was changed: end the session that holds the table, then retry",
            stop=_never,
            log=lambda event, **fields: log.info(event, **fields),
        )
    log.info("target evolved", table=str(target.name), ddl=_shown(connection, steps))


class _Never:
    def is_set(self) -> bool:
        return False


_never = _Never()


def _is_known(connection: psycopg.Connection[Any], type_name: str) -> bool:
    return bool(scalar(connection, "SELECT to_regtype(%(name)s) IS NOT NULL", {"name": type_name}))


def _add(table: TableName, column: str, type_name: str) -> sql.Composed:
    """*type_name* is the server's own rendering; a parallel load may have been first."""
    return sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}").format(
        ident(table), sql.Identifier(column), sql.SQL(type_name)
    )


def _widen(table: TableName, column: str, type_name: str) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} ALTER COLUMN {} TYPE {}").format(
        ident(table), sql.Identifier(column), sql.SQL(type_name)
    )


def _shown(connection: psycopg.Connection[Any], steps: Sequence[sql.Composed]) -> str:
    return "; ".join(step.as_string(connection) for step in steps)
