"""What a set of rows amounts to, in one statement that reads the same on source and target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.ports import Figure, Measured


def measuring(
    rows: sql.Composable, figures: Sequence[Figure], checksum: Sequence[str]
) -> sql.Composed:
    """Number of rows, *figures* and the checksum of the columns *checksum* (NULL without any) of *rows*.

    :param rows: what stands behind ``FROM``.
    """
    wanted: list[sql.Composable] = [sql.SQL("pg_catalog.count(*)")]
    wanted += [
        sql.SQL("pg_catalog.{}({})::text").format(
            sql.Identifier(figure.statistic.value), sql.Identifier("batch", figure.column)
        )
        for figure in figures
    ]
    digest: sql.Composable = sql.SQL("NULL")
    if checksum:
        # As extract computes it, so that the two can be compared.
        digest = sql.SQL(
            "coalesce(pg_catalog.sum(pg_catalog.hashtextextended(ROW({})::text, 0)::numeric), 0)::text"
        ).format(sql.SQL(", ").join(sql.Identifier("batch", column) for column in checksum))
    return sql.SQL("SELECT {} FROM {} AS batch").format(sql.SQL(", ").join([*wanted, digest]), rows)


def measure(connection: psycopg.Connection[Any], statement: sql.Composed) -> Measured:
    """Run a statement of :func:`measuring`, in a transaction that only reads."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        rows, *figures, checksum = connection.execute(statement).fetchone() or (0, None)
    return Measured(rows, tuple(figures), checksum)
