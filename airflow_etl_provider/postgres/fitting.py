"""Whether the output of a transform can stand in the target: decided before its rows are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg

from airflow_etl_provider.core.errors import ContractError
from airflow_etl_provider.core.load import Kind, Manifest
from airflow_etl_provider.core.names import TableName, quoted
from airflow_etl_provider.core.suggest import nearest
from airflow_etl_provider.postgres.catalog import CatalogColumn, Table
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.types import fits, is_text

_ZONED, _UNZONED = "timestamp with time zone", "timestamp without time zone"


def refuse(target: TableName, problems: Sequence[str], remedies: Sequence[str] = ()) -> None:
    """:raises ContractError: there are *problems*."""
    if problems:
        raise ContractError(
            f"the output of the transform does not fit {target}: {'; '.join(problems)}",
            remedy="; ".join(remedies) or "mend the transform, then clear it with downstream",
        )


def names_that_do_not_fit(
    names: Sequence[str],
    manifest: Manifest,
    target: Table,
    filled_by_publish: Sequence[str],
    carried: Sequence[str],
) -> Iterator[str]:
    """Columns that the target lacks, or that are missing from the output.

    :param carried: columns that earlier loads of the stream brought.
    """
    known = [column.name for column in target.columns]
    for name in names:
        if name not in known:
            yield f"it has {name!r}, which {target.name} has not{nearest(name, known)}"
        elif target.column(name, use="a column").generated:
            yield f"it has {name!r}, which {target.name} computes itself (GENERATED ALWAYS)"
    wanted: dict[str, str] = {}
    for name, why in _wanted(manifest, target):
        wanted.setdefault(name, why)
    for column in target.columns:
        given = column.has_default or column.generated or column.identity
        if column.not_null and not given and column.name not in filled_by_publish:
            wanted.setdefault(column.name, "NOT NULL without a default")
    for name in carried:
        if name in known:
            wanted.setdefault(name, "which earlier loads of the stream brought")
    for name, why in wanted.items():
        if name not in names:
            yield f"it lacks {name!r}, {why}{nearest(name, names)}"


def _wanted(manifest: Manifest, target: Table) -> Iterator[tuple[str, str]]:
    """What publish goes by."""
    if manifest.cursor is not None and not manifest.window.is_full:
        extracted = [column.name for column in manifest.extracted.columns]
        known = target.has_column(manifest.cursor) and manifest.cursor in extracted
        if manifest.kind is Kind.EVENTS or known:
            yield manifest.cursor, "the cursor"
    for key in manifest.keys:
        yield key, "a key"
    for column in target.partition_columns:
        yield column, f"the partition column of {target.name}"


def types_that_do_not_fit(
    output: Sequence[CatalogColumn], target: Mapping[str, CatalogColumn]
) -> Iterator[tuple[str, str]]:
    """What is wrong and the cast to write, of each column whose values the target's cannot all hold.

    :param target: the columns of the target by name, domains as the type below them.
    """
    for column in output:
        theirs = target.get(column.name)
        if theirs is None or passes(column.type, theirs.type):
            continue
        yield (
            f"{column.name}: {column.type} does not fit {theirs.type}",
            _cast(column, theirs),
        )


def passes(source: str, target: str) -> bool:
    """Whether values of type *source* may be written to a column of type *target*.

    Text that is too long for its column is an error of the server, never cut.
    """
    return fits(source, target) or (is_text(source) and is_text(target))


def _cast(column: CatalogColumn, theirs: CatalogColumn) -> str:
    name = quoted(column.name)
    zones = {_base(column.type), _base(theirs.type)}
    if zones == {_ZONED, _UNZONED}:
        return f"write {name} AT TIME ZONE 'UTC' AS {name} (or another zone)"
    cuts = " (which cuts what is longer)" if theirs.type.startswith(("character(", "bit(")) else ""
    return f"write {name}::{theirs.type} AS {name}{cuts}"


def _base(type_: str) -> str:
    """A time's type without its precision."""
    head, bracket, rest = type_.partition("(")
    return type_ if not bracket else head + rest.partition(")")[2]


def cursor_that_does_not_fit(manifest: Manifest, target: Table) -> Iterator[str]:
    """Whether the bounds of the window mean the same for the target's column: they are compared with it."""
    window = manifest.window
    if manifest.cursor is None or window.type is None or not target.has_column(manifest.cursor):
        return
    theirs = target.column(manifest.cursor, use="the cursor").type
    if manifest.kind is Kind.EVENTS and not fits(window.type, theirs):
        yield (
            f"its window is of {window.type}, and {manifest.cursor!r} of {target.name} is {theirs}, in which "
            "it would be another"
        )


def carried_before(connection: psycopg.Connection[Any], manifest: Manifest) -> list[str]:
    """The columns that the last published load of the stream with rows brought."""
    row = connection.execute(
        queries("ledger")["last_published_columns"],
        {"stream": manifest.stream, "target": str(manifest.target)},
    ).fetchone()
    return [] if row is None else [column["name"] for column in row[0]]
