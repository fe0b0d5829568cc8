"""Giving a table what the target has got since it was made: kept versions that come back, and staged batches.

Columns that were added (with their defaults), columns that were widened, NOT NULL and CHECKs. All of it
without writing a row: readers with an older snapshot would find a table that was written anew empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
import structlog
from psycopg import sql
from psycopg.rows import dict_row

from airflow_etl_provider.core.errors import ContractError
from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.names import TableName, quoted
from airflow_etl_provider.core.ports import EventLog
from airflow_etl_provider.core.publish import PublishOptions
from airflow_etl_provider.postgres import statements
from airflow_etl_provider.postgres.catalog import Relation, Table, scalar
from airflow_etl_provider.postgres.ledger import STAGING_SCHEMA
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.twin import Index, add_constraint, is_enforced
from airflow_etl_provider.postgres.types import widens_in_place

log = structlog.get_logger(__name__)

Connection = psycopg.Connection[Any]

RELOAD = "clear extract and downstream to load the window anew"


def mend(connection: Connection, table: TableName, parent: Relation, like: int) -> None:
    """Make *table* fit *parent*; what fits already is left as it is.

    :param like: oid of the table whose defaults it takes: a sibling, or the parent.
    :raises ContractError: a column is another one now, or rows would have to be written or do not fit.
    """
    try:
        with connection.transaction():
            _mend_columns(connection, table, parent, like)
        for check in _ask(connection, "checks_to_add", table, parent, like):
            add_validated(connection, table, check["name"], check["definition"])
    except psycopg.errors.IntegrityError as error:
        raise ContractError(
            f"rows of {table} do not fit {parent.name} as it is now: {error.diag.message_primary}",
            remedy=f"mend the table's rows, or {RELOAD}",
        ) from None


def drop_what_is_gone(
    connection: Connection,
    table: TableName,
    parent: Relation,
    like: int,
    indexes: Sequence[Index],
    *,
    log: EventLog,
) -> None:
    """Take from a kept *table* the constraints and *indexes* that *parent* no longer has, and log which.

    A partition that had them alone would keep rows out that fit everywhere else; and those that were replaced stand
    in the way of their successors.

    :param like: oid of a sibling, whose own constraints stay, or of the parent.
    :param indexes: those of its indexes that it shall not have.
    """
    with connection.transaction():
        for index in indexes:
            connection.execute(
                sql.SQL("DROP INDEX {}").format(sql.Identifier(table.schema, index.name))
                if index.constraint_type is None
                else statements.drop_constraint(table, index.name)
            )
        gone = _ask(connection, "gone", table, parent, like)
        for one in gone:
            # The server's own rendering.
            connection.execute(sql.SQL(one["statement"]))
    if indexes or gone:
        log(
            "what the table no longer has goes",
            table=str(parent.name),
            partition=str(table),
            gone=[
                *(f"index {quoted(index.name)}" for index in indexes),
                *(one["what"] for one in gone),
            ],
        )


def unpaired(has: Sequence[Index], pairs: Sequence[tuple[Index, Index | None]]) -> list[Index]:
    """Those of the indexes which a table *has* that are the same as none it must have."""
    stay = {own.oid for _, own in pairs if own is not None}
    return [index for index in has if index.oid not in stay]


def differences(connection: Connection, table: TableName, parent: Relation) -> list[str]:
    """Why *table* could not be attached to *parent*, by column and constraint."""
    rows = _ask(connection, "differences", table, parent, parent.oid)
    return [text for row in rows for text in row.values()]


def bring_in_line(connection: Connection, table: TableName, parent: Relation, like: int) -> None:
    """Mend a staged *table* where *parent* was altered since it was made.

    :raises ContractError: it still could not be attached; the differences are named.
    """
    found = differences(connection, table, parent)
    if not found:
        return
    mend(connection, table, parent, like)
    log.warning(
        "the target was altered since the batch was staged: what it got is left to its defaults",
        table=str(parent.name),
        differences=found,
    )
    rest = differences(connection, table, parent)
    if rest:
        raise ContractError(
            f"{parent.name} was altered since {table} was staged: {'; '.join(rest)}",
            remedy=f"{RELOAD}: the batch is staged as the table is now",
        )


def fit_batch(
    connection: Connection, manifest: Manifest, target: Table, options: PublishOptions
) -> None:
    """See to it that the columns of a staged batch are still those of the target, and of its types.

    Our own staged table follows where its target was widened; one that somebody else staged is theirs.

    :raises ContractError: a column that the target no longer has, that is another one there now, or that it has
        come to demand.
    """
    problems = [
        f"column {column.name} was dropped or renamed"
        for column in manifest.columns
        if not target.has_column(column.name)
    ]
    steps: list[str] = []
    if manifest.staging.schema == STAGING_SCHEMA:
        problems += _demanded(manifest, target, options)
        for column in _ask(connection, "columns_that_differ", manifest.staging, target, target.oid):
            if column["only_type"] and widens_in_place(column["was"], column["is"]):
                steps.append(column["statement"])
            else:
                problems.append(
                    f"column {column['name']} is now {column['is']}, not {column['was']}, or made otherwise"
                )
    if problems:
        raise ContractError(
            f"{target.name} was altered since load {manifest.load_id} was staged: {'; '.join(problems)}",
            remedy=f"{RELOAD}: the batch is staged as the table is now",
        )
    with connection.transaction():
        for step in steps:
            # The server's own rendering.
            connection.execute(sql.SQL(step))


def _demanded(manifest: Manifest, target: Table, options: PublishOptions) -> list[str]:
    given = {column.name for column in manifest.columns}
    given |= {
        name
        for name in (
            options.load_id_column,
            options.valid_from,
            options.valid_to,
            options.is_current,
        )
        if name is not None
    }
    return [
        f"column {column.name} was added and must have a value"
        for column in target.columns
        if column.not_null
        and column.name not in given
        and not (column.has_default or column.generated or column.identity)
    ]


def add_validated(connection: Connection, table: TableName, name: str, definition: str) -> None:
    """Give *table* a constraint, without a scan under a lock that stops readers."""
    known = {"schema": table.schema, "name": table.name, "constraint": name}
    if not is_enforced(definition):
        with connection.transaction():
            connection.execute(add_constraint(table, name, definition))
        return
    if not scalar(connection, queries("catalog")["has_constraint"], known):
        with connection.transaction():
            connection.execute(
                add_constraint(table, name, definition.removesuffix(" NOT VALID"))
                + sql.SQL(" NOT VALID")
            )
    validate(connection, table, name)


def mend_foreign_keys(
    connection: Connection,
    table: TableName,
    parent: int,
    recorded: Mapping[str, str],
    *,
    add: Callable[[Connection, TableName, str, str], None] = add_validated,
    log: EventLog,
) -> None:
    """Give *table* the foreign keys of *parent* or of a sibling (oid), and those *recorded* that were its own.

    One of its own that no longer holds, or refers to what is gone, is logged and left out.

    :param add: gives it one, validated.
    :raises psycopg.errors.IntegrityError: rows refer to what is gone, by a key of the parent.
    """
    known = {
        definition.removesuffix(" NOT VALID"): name
        for name, definition in connection.execute(
            queries("catalog")["foreign_keys_of"], {"schema": table.schema, "name": table.name}
        )
    }
    wanted = dict(connection.execute(queries("twin")["foreign_keys"], {"oid": parent}).fetchall())
    for name, definition in wanted.items():
        if definition in known:
            if is_enforced(definition):
                validate(connection, table, known[definition])
        else:
            add(connection, table, name, definition)
    for name, definition in recorded.items():
        if definition in known or definition in wanted.values():
            continue
        try:
            add(connection, table, name, definition)
        except (
            psycopg.errors.IntegrityError,
            psycopg.errors.UndefinedTable,
            psycopg.errors.UndefinedColumn,
            psycopg.errors.InvalidForeignKey,
        ):
            with connection.transaction():
                connection.execute(
                    sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(
                        statements.ident(table), sql.Identifier(name)
                    )
                )
            log(
                "a foreign key that the target no longer has was not given back",
                table=str(table),
                name=name,
            )


def validate(connection: Connection, table: TableName, name: str) -> None:
    with connection.transaction():
        connection.execute(statements.validate_constraint(table, name))


def _mend_columns(connection: Connection, table: TableName, parent: Relation, like: int) -> None:
    before = _file(connection, table)
    for column in _ask(connection, "columns_that_differ", table, parent, like):
        if not (column["only_type"] and widens_in_place(column["was"], column["is"])):
            raise ContractError(
                f"column {column['name']} of {table} is {column['was']}, of {parent.name} {column['is']}, or made "
                "otherwise: it no longer fits",
                remedy=f"change the column of {table}, or {RELOAD}",
            )
        # The server's own rendering, here and below.
        connection.execute(sql.SQL(column["statement"]))
    for column in _ask(connection, "columns_to_add", table, parent, like):
        connection.execute(sql.SQL(column["statement"]))
        if _file(connection, table) != before:
            raise ContractError(
                f"{parent.name} has got column {column['name']}, for which {table} would have to be written anew",
                remedy=RELOAD.capitalize(),
            )
    for name in ("defaults_that_differ", "columns_to_require"):
        for column in _ask(connection, name, table, parent, like):
            connection.execute(sql.SQL(column["statement"]))


def _file(connection: Connection, table: TableName) -> tuple[int, int] | None:
    found: tuple[int, int] | None = connection.execute(
        queries("mending")["file"], {"schema": table.schema, "name": table.name}
    ).fetchone()
    return found


def _ask(
    connection: Connection, name: str, table: TableName, parent: Relation, like: int
) -> list[dict[str, Any]]:
    found = _file(connection, table)
    params = {
        "parent": parent.oid,
        "oid": None if found is None else found[0],
        "table": str(table),
        "like": like,
    }
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(queries("mending")[name], params).fetchall()
