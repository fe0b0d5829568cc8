"""Predicates of an audit as conditions on a row, which is called ``t``.

Literals stand in them as they would if Great Expectations had written them: without a type of their own, so that
each takes the type of what it is compared with. A parameter of the protocol would bring one.
"""

from __future__ import annotations

from psycopg import sql

from airflow_etl_provider.postgres.statements import ident, qualified
from airflow_etl_provider.quality.plan import (
    Always,
    Comparison,
    Constant,
    Deviation,
    Either,
    Every,
    Field,
    Length,
    Like,
    Membership,
    Missing,
    Not,
    Predicate,
    ReferenceCheck,
    RowCheck,
    Term,
    Total,
    UniqueCheck,
    Value,
    every,
    present,
)


def column_of(name: str) -> sql.Identifier:
    return sql.Identifier("t", name)


def literal(value: Value) -> sql.Literal:
    return sql.Literal(value)


def _term(term: Term) -> sql.Composable:
    match term:
        case Field(column):
            return column_of(column)
        case Length(column):
            return sql.SQL("length({})").format(column_of(column))
        case Total(columns):
            added = sql.SQL(" + ").join(column_of(column) for column in columns)
            return sql.SQL("(0 + {})").format(added)
        case Deviation(column, center, spread, absolute):
            return _deviation(column, center, spread, absolute)
        case Constant(value):
            return literal(value)


def _deviation(column: str, center: float, spread: float | None, absolute: bool) -> sql.Composed:
    far = sql.SQL("({} - {})").format(column_of(column), literal(center))
    if spread is not None:
        far = sql.SQL("({} / CAST({} AS double precision))").format(far, literal(spread))
    return sql.SQL("abs{}").format(far) if absolute else far


def condition(predicate: Predicate) -> sql.Composable:
    match predicate:
        case Comparison(left, operator, right):
            return sql.SQL("({} {} {})").format(_term(left), sql.SQL(operator), _term(right))
        case Membership(column, values):
            inner = sql.SQL(", ").join(map(literal, values))
            return sql.SQL("({} IN ({}))").format(column_of(column), inner)
        case Like(column, pattern, escape):
            like = sql.SQL("{} LIKE {}").format(column_of(column), literal(pattern))
            if escape is not None:
                like += sql.SQL(" ESCAPE {}").format(literal(escape))
            return sql.SQL("({})").format(like)
        case Missing(column):
            return sql.SQL("({} IS NULL)").format(column_of(column))
        case Not(of):
            return sql.SQL("(NOT {})").format(condition(of))
        case Every(of):
            return sql.SQL("({})").format(sql.SQL(" AND ").join(map(condition, of)))
        case Either(of):
            return sql.SQL("({})").format(sql.SQL(" OR ").join(map(condition, of)))
        case Always(truth):
            return sql.SQL("true" if truth else "false")


def where(predicate: Predicate | None) -> sql.Composable:
    return sql.SQL("true") if predicate is None else condition(predicate)


def duplicates(check: UniqueCheck, table: sql.Composable) -> sql.Composed:
    """How many rows share their columns with another, as a query."""
    return sql.SQL("SELECT coalesce(sum(n), 0)::bigint FROM ({}) AS twice").format(
        _grouped(sql.SQL("count(*) AS n"), check, table)
    )


def _grouped(what: sql.Composable, check: UniqueCheck, table: sql.Composable) -> sql.Composed:
    """*what* of each group of rows that share their columns."""
    return sql.SQL("SELECT {} FROM {} AS t WHERE {} GROUP BY {} HAVING count(*) > 1").format(
        what,
        table,
        where(every(check.within, check.judged, present(*check.columns))),
        qualified("t", check.columns),
    )


def unexpected(
    check: RowCheck | UniqueCheck | ReferenceCheck, table: sql.Composable
) -> sql.Composable:
    """Whether a row ``t`` of *table* is unexpected."""
    if isinstance(check, RowCheck):
        return where(every(check.within, check.unexpected))
    considered = where(every(check.within, check.judged, present(*check.columns)))
    if isinstance(check, UniqueCheck):
        key = qualified("t", check.columns)
        return sql.SQL("{} AND ({}) IN ({})").format(considered, key, _grouped(key, check, table))
    return sql.SQL("{} AND NOT EXISTS (SELECT FROM {} AS o WHERE {})").format(
        considered,
        ident(check.table),
        sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier("o", other), column_of(own))
            for own, other in zip(check.columns, check.other_columns, strict=True)
        ),
    )
