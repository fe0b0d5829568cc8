"""Columns that were renamed while a table was kept aside.

The target's columns may be renamed, dropped and made anew while a replaced version or a retired partition is
kept. By their names alone its values would come back under other columns; the numbers that columns have in the
catalog tell which is which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from airflow_etl_provider.core.errors import ContractError
from airflow_etl_provider.core.names import TableName, quoted, shortened
from airflow_etl_provider.core.ports import EventLog
from airflow_etl_provider.postgres import statements
from airflow_etl_provider.postgres.catalog import scalar
from airflow_etl_provider.postgres.queries import queries

Connection = psycopg.Connection[Any]

#: A column of the table itself in the server's rendering of a foreign key, and its lists of them.
_COLUMN = re.compile(r'(?P<period>PERIOD )?(?P<name>"(?:[^"]|"")+"|[^\s",()]+)')
_COLUMNS = re.compile(
    r"(?P<before>^FOREIGN KEY \(|ON DELETE SET (?:NULL|DEFAULT) \()"
    r'(?P<columns>(?:"(?:[^"]|"")+"|[^"()])+)\)'
)
Identity = Mapping[str, Any]


def identities(
    connection: Connection, tables: Sequence[TableName], target: TableName
) -> dict[str, Identity]:
    """By the names of *tables*, which of their columns is which of *target*; for the ledger."""
    params = {"tables": [str(table) for table in tables], "target": str(target)}
    return dict(connection.execute(queries("renames")["identities"], params).fetchall())


def is_known(
    connection: Connection, table: TableName, target: TableName, identity: Identity | None
) -> bool:
    """Whether *identity* was recorded of these very tables."""
    if identity is None:
        return False
    params = {"table": str(table), "target": str(target), "identity": Jsonb(identity)}
    found: bool = scalar(connection, queries("renames")["is_known"], params)
    return found


def follow_renames(
    connection: Connection,
    table: TableName,
    target: TableName,
    identity: Identity | None,
    *,
    log: EventLog,
) -> None:
    """Call the columns of a kept *table* what *target* calls them by now, as a rename of the target would have.

    A column that the target has dropped makes way where there is a new one of that name.

    :param identity: what :func:`identities` said when the table was set aside.
    :raises ContractError: nothing was recorded, and the table has a column that the target has not and lacks one of
        the same type: nobody can tell whether it was renamed.
    """
    if not is_known(connection, table, target, identity):
        _refuse_ambiguous(connection, table, target)
        return
    with connection.transaction():
        with connection.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(
                queries("renames")["meanwhile"], {"identity": Jsonb(identity)}
            ).fetchall()
        # By way of names that nothing else has: columns may have exchanged theirs.
        aside = {
            row["number"]: f"{shortened(row['was'], room=16)}_dropped_{row['number']}"
            for row in found
        }
        for row in found:
            connection.execute(_rename(table, row["was"], aside[row["number"]]))
        for row in found:
            if row["is"] is not None:
                connection.execute(_rename(table, aside[row["number"]], row["is"]))
    renamed = {row["was"]: row["is"] for row in found if row["is"] is not None}
    if renamed:
        log(
            "columns are called what the table calls them by now",
            table=str(target),
            partition=str(table),
            columns=renamed,
        )


def keys_by_now(
    connection: Connection,
    table: TableName,
    target: TableName,
    identity: Identity | None,
    keys: Mapping[str, str],
    *,
    log: EventLog,
) -> dict[str, str]:
    """Foreign *keys* that a kept *table* had (definitions by name), over its columns as they are called by now.

    One over a column that *target* has dropped is logged and left out: another column may have its name by now.
    """
    if not keys or identity is None or not is_known(connection, table, target, identity):
        return dict(keys)
    params = {"identity": Jsonb(identity)}
    now = dict(connection.execute(queries("renames")["names_by_now"], params).fetchall())

    def column(match: re.Match[str]) -> str:
        was = match["name"]
        plain = was[1:-1].replace('""', '"') if was.startswith('"') else was
        return f"{match['period'] or ''}{now[plain]}"

    def columns(match: re.Match[str]) -> str:
        return f"{match['before']}{_COLUMN.sub(column, match['columns'])})"

    found = {}
    for name, definition in keys.items():
        try:
            found[name] = _COLUMNS.sub(columns, definition)
        except KeyError:
            log(
                "a foreign key that the target no longer has was not given back",
                table=str(table),
                name=name,
            )
    return found


def _rename(table: TableName, old: str, new: str) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} RENAME COLUMN {} TO {}").format(
        statements.ident(table), sql.Identifier(old), sql.Identifier(new)
    )


def _refuse_ambiguous(connection: Connection, table: TableName, target: TableName) -> None:
    params = {"table": str(table), "target": str(target)}
    pair = connection.execute(queries("renames")["ambiguous"], params).fetchone()
    if pair is None:
        return
    old, new = quoted(pair[0]), quoted(pair[1])
    raise ContractError(
        f"{target} no longer has column {old}, which {table} has, and has {new} of the same type: was it renamed, "
        "or dropped and another one added?",
        remedy=f"if it was renamed: ALTER TABLE {table} RENAME COLUMN {old} TO {new}; if its values are to go: ALTER "
        f"TABLE {table} DROP COLUMN {old}; then try again",
    )
