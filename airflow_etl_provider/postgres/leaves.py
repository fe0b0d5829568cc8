"""The leaves of a partitioned table, however it is partitioned, and which of them a batch touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.names import TableName, shortened
from airflow_etl_provider.postgres.catalog import Partition, Table, range_of, scalar
from airflow_etl_provider.postgres.exchange import Place
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.statements import ident
from airflow_etl_provider.postgres.tree import Branch, read_tree
from airflow_etl_provider.postgres.twin import Parent

#: So many conditions are tried on a row at once; a table of more leaves is asked in several passes.
_PER_PASS = 200
_LOOKS = 20
_EVERY_ROW = sql.SQL("true")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A partition that holds rows itself. ``rows`` is the server's estimate, -1 where it has none."""

    place: Place
    partition: Partition
    rows: int


def read_leaves(connection: psycopg.Connection[Any], target: Table) -> list[Leaf]:
    """The leaves of *target*, over all levels, in order of their names; foreign tables are left out.

    Bounds and conditions are the server's own rendering, so RANGE, LIST and HASH are all the same here.
    """
    for _ in range(_LOOKS):
        rows = _rows(connection, target)
        if all(row["condition"] is not None or row["bound"] == "DEFAULT" for row in rows):
            break
        # It is rendered as it is now: the partition was detached since the statement began.
    found = []
    for row in rows:
        low, high = range_of(row["bound"]) if row["parent_oid"] == target.oid else (None, None)
        found.append(
            Leaf(
                place=Place(
                    name=TableName(row["schema"], row["name"]),
                    parent=Parent(
                        TableName(row["parent_schema"], row["parent_name"]), row["parent_oid"]
                    ),
                    clause=sql.SQL(row["bound"]),
                    bound=row["bound"].removeprefix("FOR VALUES "),
                    # A DEFAULT partition beside no other one takes every row.
                    condition=sql.SQL(row["condition"] or "true"),
                ),
                partition=Partition(
                    table=TableName(row["schema"], row["name"]),
                    oid=row["oid"],
                    bound=row["bound"],
                    low=low,
                    high=high,
                    is_default=row["bound"] == "DEFAULT",
                    is_leaf=True,
                ),
                rows=row["rows"],
            )
        )
    return found


def _rows(connection: psycopg.Connection[Any], target: Table) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(queries("leaves")["leaves"], {"oid": target.oid}).fetchall()


def rows_by_leaf(
    connection: psycopg.Connection[Any],
    staging: TableName,
    leaves: Sequence[Leaf],
    where: sql.Composable = _EVERY_ROW,
) -> dict[int, int]:
    """How many rows ``s`` of *staging* for which *where* is true belong into each leaf (by oid); leaves without any
    are left out."""
    found: dict[int, int] = {}
    for start in range(0, len(leaves), _PER_PASS):
        some = leaves[start : start + _PER_PASS]
        cases = sql.SQL(" ").join(
            sql.SQL("WHEN {} THEN {}").format(leaf.place.condition, sql.Literal(number))
            for number, leaf in enumerate(some)
        )
        rows = connection.execute(
            sql.SQL(
                "SELECT leaf, count(*) FROM (SELECT CASE {} END AS leaf FROM {} AS s WHERE {}) AS r"
                " WHERE leaf IS NOT NULL GROUP BY leaf"
            ).format(cases, ident(staging), where)
        ).fetchall()
        found |= {some[number].partition.oid: count for number, count in rows}
    return found


def leaves_with(
    connection: psycopg.Connection[Any], leaves: Sequence[Leaf], where: sql.Composable
) -> set[int]:
    """Those of *leaves* (by oid) that hold a row ``t`` for which *where* is true."""
    found: set[int] = set()
    for start in range(0, len(leaves), _PER_PASS):
        some = leaves[start : start + _PER_PASS]
        rows = connection.execute(
            sql.SQL(" UNION ALL ").join(
                sql.SQL(
                    "SELECT {}::bigint WHERE EXISTS (SELECT FROM ONLY {} AS t WHERE {})"
                ).format(sql.Literal(leaf.partition.oid), ident(leaf.partition.table), where)
                for leaf in some
            )
        ).fetchall()
        found |= {oid for (oid,) in rows}
    return found


def partition_columns(connection: psycopg.Connection[Any], target: Table) -> set[str] | None:
    """The columns that decide where a row goes, over all levels; ``None`` if an expression does."""
    row = connection.execute(queries("leaves")["columns"], {"oid": target.oid}).fetchone()
    return None if row is None or row[1] else set(row[0])


def count_of(connection: psycopg.Connection[Any], leaf: Leaf) -> int:
    """Rows of a leaf: the server's estimate, or a count where it has none."""
    if leaf.rows >= 0:
        return leaf.rows
    found: int = scalar(
        connection, sql.SQL("SELECT count(*) FROM {}").format(ident(leaf.partition.table))
    )
    return found


def condition_of(connection: psycopg.Connection[Any], branch: Branch) -> sql.SQL:
    """Which rows belong into it, or below it."""
    return _conditions(connection, [branch])[branch.oid]


def _conditions(
    connection: psycopg.Connection[Any], branches: Sequence[Branch]
) -> dict[int, sql.SQL]:
    oids = [branch.oid for branch in branches]
    rows = connection.execute(queries("leaves")["conditions"], {"oids": oids}).fetchall()
    return {oid: sql.SQL(condition) for oid, condition in rows}


def gap(
    connection: psycopg.Connection[Any],
    target: Table,
    staging: TableName,
    where: sql.Composable = _EVERY_ROW,
) -> TableName | None:
    """The first table of *target* that has no partition for a row ``s`` of *staging* for which *where* is true."""
    tree = read_tree(connection, target)
    conditions = _conditions(connection, list(tree.whole()))
    for branch in tree.whole():
        if branch.strategy is None:
            continue
        taken = [sql.SQL("{} IS NOT TRUE").format(conditions[below.oid]) for below in branch.below]
        found = scalar(
            connection,
            sql.SQL("SELECT EXISTS (SELECT FROM {} AS s WHERE {})").format(
                ident(staging), sql.SQL(" AND ").join([where, conditions[branch.oid], *taken])
            ),
        )
        if found:
            return branch.name
    return None


def for_the_homeless(
    connection: psycopg.Connection[Any], manifest: Manifest, target: Table, lacking: TableName
) -> str:
    """What to do where *lacking*, the target or a partition of it, has no partition for rows of the batch."""
    tree = read_tree(connection, target)
    branch = next((one for one in tree.whole() if one.name == lacking), tree)
    if branch.strategy == "h":
        return f"{branch.name} is partitioned by HASH: make its partitions of all remainders"
    key: sql.Composable = sql.SQL("*")
    if branch.column is not None:
        key = sql.SQL("DISTINCT {}").format(sql.Identifier(branch.column))
    rest = TableName(branch.name.schema, shortened(f"{branch.name.name}_rest"))
    make = sql.SQL("CREATE TABLE {} PARTITION OF {} DEFAULT").format(
        ident(rest), ident(branch.name)
    )
    show = sql.SQL("SELECT {} FROM {} WHERE {}").format(
        key, ident(manifest.staging), condition_of(connection, branch)
    )
    by_hand = (
        f"make a DEFAULT partition for them ({make.as_string(connection)}), or a partition of {branch.name} for their "
        f"values, which are among those of {show.as_string(connection)}"
    )
    column = branch.column
    if manifest.partition is None and column and branch in tree.first_ranges_of(column):
        return (
            f"say how long a partition of {branch.name} is, so that publish makes them: "
            f"partition={{'column': {column!r}, 'every': ..., 'timezone': ...}}; or {by_hand}"
        )
    return by_hand
