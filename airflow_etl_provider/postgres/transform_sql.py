"""A transform by a SELECT: read in a transaction that can write nothing, copied into a new staged table."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from psycopg import sql

from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.transform import BySql
from airflow_etl_provider.postgres import statements
from airflow_etl_provider.postgres.catalog import CatalogColumn
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.fitting import refuse, types_that_do_not_fit
from airflow_etl_provider.postgres.rebatch import Rebatch, run
from airflow_etl_provider.postgres.select import describe, over_batch, reading_only
from airflow_etl_provider.postgres.session import connect_for_copy, session_of
from airflow_etl_provider.postgres.snapshot import PostgresSender
from airflow_etl_provider.postgres.transfer import relay
from airflow_etl_provider.postgres.types import is_text


def by_sql(rebatch: Rebatch, how: BySql) -> Manifest:
    """What the SELECT makes of the batch, in one snapshot and one transaction.

    :raises ConfigurationError: it is no single SELECT, or it writes.
    :raises CatalogError: something that it reads is missing.
    :raises ContractError: its output does not fit the target; before a row is read.
    """
    batch = rebatch.batch
    relation = over_batch(how, batch.staging, [column.name for column in batch.columns])
    found = describe(rebatch.watching, relation, batch.staging)
    names = [column.name for column in found.columns]
    unfit = list(types_that_do_not_fit(found.columns, rebatch.typed))
    refuse(
        rebatch.current.target,
        [*rebatch.problems(names), *(problem for problem, _ in unfit)],
        [cast for _, cast in unfit],
    )
    rebatch.log(
        "transform started",
        load_id=batch.load_id,
        by="sql",
        rows=batch.rows,
        columns=len(names),
        staging=str(rebatch.table),
        reads=[name for _, name in found.reads],
    )
    query = sql.SQL("SELECT {} FROM {}").format(_typed(found.columns, rebatch), relation)
    # A policy that hides rows of a table that is looked up is an error, not a shorter batch.
    reader = replace(rebatch.endpoint, settings={"row_security": "off"})
    with ExitStack() as stack:
        reading = stack.enter_context(connect_for_copy(reader, read_only=True))
        writing = stack.enter_context(connect_for_copy(rebatch.endpoint, read_only=False))
        with translated_errors(rebatch.what), reading.cursor() as cursor:
            run(cursor, statements.count(batch.staging))
            batch.require_rows((cursor.fetchone() or (0,))[0])
        with translated_errors(rebatch.what), writing.cursor() as cursor:
            for connection in (reading, writing):
                rebatch.name_session(session_of(connection, "target"))
            rebatch.create(cursor, names)
        with reading_only(rebatch.what):
            moved = relay(
                PostgresSender(
                    connection=reading,
                    statement=statements.copy_out(query, binary=True).as_string(None),
                ),
                writing,
                statements.copy_in(rebatch.table, names, binary=True, freeze=True).as_string(None),
                stop=rebatch.stop,
                progress=lambda size, seconds: rebatch.log(
                    "transforming",
                    load_id=batch.load_id,
                    mb=round(size / 1e6),
                    seconds=round(seconds),
                ),
                what=rebatch.what,
            )
        with translated_errors(rebatch.what), writing.cursor() as cursor:
            made = rebatch.finish(
                cursor,
                names,
                rows=moved.rows,
                size=moved.bytes,
                origins=found.origins,
                reads=found.reads,
            )
            writing.commit()
    return made


def _typed(columns: Sequence[CatalogColumn], rebatch: Rebatch) -> sql.Composed:
    """The output's columns with the types of the target.

    Text is left as it is: a cast would cut what is too long for its column, which is to be an error.
    """
    typed: list[sql.Composable] = []
    for column in columns:
        name, type_ = sql.Identifier(column.name), rebatch.typed[column.name].type
        if column.type == type_ or (is_text(column.type) and is_text(type_)):
            typed.append(name)
        else:
            # The type is the server's own rendering.
            typed.append(sql.SQL("{}::{} AS {}").format(name, sql.SQL(type_), name))
    return sql.SQL(", ").join(typed)
