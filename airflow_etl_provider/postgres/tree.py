"""A partitioned table with all its levels: where it is partitioned by RANGE of one column, and what hangs there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from airflow_etl_provider.core.errors import CatalogError, ConfigurationError
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.postgres.catalog import Partition, Table, range_of
from airflow_etl_provider.postgres.queries import queries


@dataclass(frozen=True, slots=True)
class Branch:
    """One table of a partitioned table; *below* are its partitions, themselves perhaps partitioned.

    ``column`` is what it is partitioned by, where that is one column.
    """

    name: TableName
    oid: int
    bound: str | None
    strategy: str | None
    column: str | None
    below: tuple[Branch, ...]

    def whole(self) -> Iterator[Branch]:
        """It and everything below, parents first."""
        yield self
        for branch in self.below:
            yield from branch.whole()

    @property
    def partition(self) -> Partition:
        bound = self.bound or ""
        low, high = range_of(bound)
        return Partition(
            self.name, self.oid, bound, low, high, bound == "DEFAULT", self.strategy is None
        )

    def ranges_of(self, column: str) -> Iterator[Branch]:
        """The tables, from here down, that are partitioned by RANGE of *column*."""
        for branch in self.whole():
            if branch.strategy == "r" and branch.column == column:
                yield branch

    def first_ranges_of(self, column: str) -> Iterator[Branch]:
        """Those of them that are below no other one: where a period of *column* has its partition."""
        if self.strategy == "r" and self.column == column:
            yield self
            return
        for branch in self.below:
            yield from branch.first_ranges_of(column)

    def ranges_held(self, column: str, *, without: int) -> set[tuple[str | None, str | None]]:
        """The ranges of *column* that tables with rows, from here down, are attached for; ``None`` is no end.

        Of a table that goes by no range of it that is everything. DEFAULT partitions, which nothing belongs
        in, hold nothing.

        :param without: leave out this table, and what is below it.
        """
        return set(self._ranges_held(column, without, None, None))

    def _ranges_held(
        self, column: str, without: int, low: str | None, high: str | None
    ) -> Iterator[tuple[str | None, str | None]]:
        if self.strategy is None:
            yield low, high
        by_range = self.strategy == "r" and self.column == column
        for below in self.below:
            part = below.partition
            if below.oid == without:
                continue
            if not by_range:
                is_rest = part.is_default and (low, high) == (None, None)
                if not (is_rest and not any(below.ranges_of(column))):
                    yield from below._ranges_held(column, without, low, high)
            elif not part.is_default:
                yield from below._ranges_held(
                    column,
                    without,
                    low if part.low is None else part.low,
                    high if part.high is None else part.high,
                )


def read_tree(connection: psycopg.Connection[Any], target: Table) -> Branch:
    """All of *target*.

    :raises CatalogError: it is not partitioned, or gone.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(queries("retention")["tree"], {"oid": target.oid}).fetchall()
    if not rows or rows[0]["strategy"] is None:
        raise CatalogError(
            f"{target.name} is not partitioned, so there are no partitions to keep in order",
            remedy="name the partitioned table; the catalog knows it by PARTITION BY",
        )
    return _branch(rows[0], rows)


def _branch(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Branch:
    return Branch(
        name=TableName(row["schema"], row["name"]),
        oid=row["oid"],
        bound=row["bound"],
        strategy=row["strategy"],
        column=row["column"],
        below=tuple(_branch(one, rows) for one in rows if one["parent"] == row["oid"]),
    )


def range_column(tree: Branch, named: str | None) -> str:
    """The column by whose ranges partitions are made and retired.

    :raises CatalogError: no level is partitioned by RANGE of it.
    :raises ConfigurationError: none was named, and the first level is not partitioned by RANGE of one.
    """
    if named is None:
        if tree.strategy == "r" and tree.column is not None:
            return tree.column
        raise ConfigurationError(
            f"{tree.name} is not partitioned by RANGE of one column at its first level, so it is not clear which "
            "column says how old a partition is",
            remedy="say it with partition={'column': ..., 'every': ..., 'timezone': ...}",
        )
    if not any(tree.ranges_of(named)):
        raise CatalogError(
            f"no level of {tree.name} is partitioned by RANGE ({named})",
            remedy="name the column that it is partitioned by",
        )
    return named
