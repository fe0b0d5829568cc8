"""Compilers of what is expected of each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from airflow_etl_provider.quality.kwargs import (
    NUMBERS,
    TIMES,
    Columns,
    Compile,
    Kwargs,
    NotExact,
    base,
    bounds_of,
    flag,
    known,
    members,
    row_condition,
    scalar,
    text,
    texts,
)
from airflow_etl_provider.quality.own import ReferenceOptions
from airflow_etl_provider.quality.plan import (
    Always,
    Bounds,
    Check,
    Comparison,
    Constant,
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
    present,
)

# -- one column -----------------------------------------------------------------------------------


def _by_value(expected: Callable[[str, Kwargs, Columns], Predicate]) -> Compile:
    """Values of one column that are there must be as *expected*."""

    def compile_one(kwargs: Kwargs, columns: Columns) -> Check:
        column = known(kwargs["column"], columns)
        judged = present(column)
        return RowCheck(
            columns=(column,),
            within=row_condition(kwargs, columns),
            judged=judged,
            unexpected=Every((judged, Not(expected(column, kwargs, columns)))),
            mostly=kwargs.get("mostly", 1),
        )

    return compile_one


def _nullness(*, null: bool) -> Compile:
    def compile_one(kwargs: Kwargs, columns: Columns) -> Check:
        column = known(kwargs["column"], columns)
        unexpected: Predicate = present(column) if null else Missing(column)
        within = row_condition(kwargs, columns)
        return RowCheck((column,), within, None, unexpected, kwargs.get("mostly", 1))

    return compile_one


def _in_set(column: str, kwargs: Kwargs, _: Columns) -> Predicate:
    given = members(kwargs["value_set"])
    values = tuple(value for value in given if value is not None)
    if given and not values:
        raise NotExact
    return Membership(column, values) if values else Always(False)


def _not_in_set(column: str, kwargs: Kwargs, _: Columns) -> Predicate:
    values = members(kwargs["value_set"])
    return Not(Membership(column, values)) if values else Always(True)


def _between(column: str, kwargs: Kwargs, columns: Columns) -> Predicate:
    bounds = bounds_of(kwargs)
    numbers = all(value is None or isinstance(value, float) for value in (bounds.low, bounds.high))
    if base(columns[column]) not in (NUMBERS if numbers else TIMES):
        raise NotExact
    return _enclosed(Field(column), bounds)


def _enclosed(term: Term, bounds: Bounds) -> Predicate:
    parts: list[Predicate] = []
    if bounds.low is not None:
        parts.append(Comparison(term, ">" if bounds.above_low else ">=", Constant(bounds.low)))
    if bounds.high is not None:
        parts.append(Comparison(term, "<" if bounds.below_high else "<=", Constant(bounds.high)))
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def _lengths(column: str, kwargs: Kwargs, _: Columns) -> Predicate:
    bounds = bounds_of(kwargs)
    for value in (bounds.low, bounds.high):
        if value is not None and not (isinstance(value, float) and value.is_integer()):
            raise NotExact
    return _enclosed(Length(column), bounds)


def _length(column: str, kwargs: Kwargs, _: Columns) -> Predicate:
    value = kwargs["value"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotExact
    return Comparison(Length(column), "=", Constant(value))


def _matches(*, positive: bool) -> Callable[[str, Kwargs, Columns], Predicate]:
    def expected(column: str, kwargs: Kwargs, _: Columns) -> Predicate:
        pattern = Constant(text(kwargs["regex"]))
        return Comparison(Field(column), "~" if positive else "!~", pattern)

    return expected


def _matches_list(column: str, kwargs: Kwargs, _: Columns) -> Predicate:
    parts = tuple(
        Comparison(Field(column), "~", Constant(regex)) for regex in texts(kwargs["regex_list"])
    )
    return Every(parts) if _all_of(kwargs) else Either(parts)


def _matches_none(column: str, kwargs: Kwargs, _: Columns) -> Predicate:
    return Every(
        tuple(
            Comparison(Field(column), "!~", Constant(regex))
            for regex in texts(kwargs["regex_list"])
        )
    )


def _all_of(kwargs: Kwargs) -> bool:
    match_on = kwargs.get("match_on", "any")
    if match_on not in ("any", "all"):
        raise NotExact
    return bool(match_on == "all")


def _like(column: str, kwargs: Kwargs, _: Columns) -> Predicate:
    return Like(column, text(kwargs["like_pattern"]), _escape(kwargs))


def _unlike(column: str, kwargs: Kwargs, columns: Columns) -> Predicate:
    return Not(_like(column, kwargs, columns))


def _like_list(column: str, kwargs: Kwargs, _: Columns) -> Predicate:
    escape = _escape(kwargs)
    parts = tuple(Like(column, pattern, escape) for pattern in texts(kwargs["like_pattern_list"]))
    return Every(parts) if _all_of(kwargs) else Either(parts)


def _like_none(column: str, kwargs: Kwargs, _: Columns) -> Predicate:
    escape = _escape(kwargs)
    patterns = texts(kwargs["like_pattern_list"])
    return Every(tuple(Not(Like(column, pattern, escape)) for pattern in patterns))


def _escape(kwargs: Kwargs) -> str | None:
    escape = kwargs.get("escape")
    if escape is not None and (not isinstance(escape, str) or len(escape) != 1):
        raise NotExact
    return escape


# -- two and more columns of one row --------------------------------------------------------------


def _by_pair(
    expected: Callable[[str, str, Kwargs], Predicate], *, conditional: bool = True
) -> Compile:
    """:param conditional: whether Great Expectations keeps to the row condition."""

    def compile_one(kwargs: Kwargs, columns: Columns) -> Check:
        a, b = known(kwargs["column_A"], columns), known(kwargs["column_B"], columns)
        if "row_condition" in kwargs and not conditional:
            raise NotExact
        judged: Predicate | None
        match kwargs.get("ignore_row_if", "both_values_are_missing"):
            case "both_values_are_missing":
                judged = Not(Every((Missing(a), Missing(b))))
            case "either_value_is_missing":
                judged = Not(Either((Missing(a), Missing(b))))
            case "neither":
                judged = Always(True)
            case _:
                raise NotExact
        return RowCheck(
            columns=(a, b),
            within=row_condition(kwargs, columns),
            judged=judged,
            unexpected=Every((judged, Not(expected(a, b, kwargs)))),
            mostly=kwargs.get("mostly", 1),
        )

    return compile_one


def _equal(a: str, b: str, _: Kwargs) -> Predicate:
    return Every((Comparison(Field(a), "=", Field(b)), present(a, b)))


def _greater(a: str, b: str, kwargs: Kwargs) -> Predicate:
    if not flag(kwargs, "or_equal"):
        return Comparison(Field(a), ">", Field(b))
    return Either((Comparison(Field(a), ">=", Field(b)), Every((Missing(a), Missing(b)))))


def _pair_in_set(a: str, b: str, kwargs: Kwargs) -> Predicate:
    pairs = kwargs["value_pairs_set"]
    if not isinstance(pairs, list) or not pairs:
        raise NotExact
    found: list[Predicate] = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise NotExact
        found.append(Every((_is(a, scalar(pair[0])), _is(b, scalar(pair[1])))))
    return Either(tuple(found))


def _is(column: str, value: Value) -> Predicate:
    return Missing(column) if value is None else Comparison(Field(column), "=", Constant(value))


def _ignored(kwargs: Kwargs, chosen: tuple[str, ...]) -> Predicate:
    missing = tuple(Missing(column) for column in chosen)
    match kwargs.get("ignore_row_if", "all_values_are_missing"):
        case "all_values_are_missing":
            return Not(Every(missing))
        case "any_value_is_missing":
            return Not(Either(missing))
        case "never":
            return Always(True)
    raise NotExact


def _chosen(kwargs: Kwargs, columns: Columns) -> tuple[str, ...]:
    chosen = tuple(known(column, columns) for column in kwargs["column_list"])
    if len(chosen) < 2 or len(set(chosen)) != len(chosen):
        raise NotExact
    return chosen


def _by_columns(expected: Callable[[tuple[str, ...], Kwargs], Predicate]) -> Compile:
    def compile_one(kwargs: Kwargs, columns: Columns) -> Check:
        chosen = _chosen(kwargs, columns)
        judged = _ignored(kwargs, chosen)
        return RowCheck(
            columns=chosen,
            within=row_condition(kwargs, columns),
            judged=judged,
            unexpected=Every((judged, Not(expected(chosen, kwargs)))),
            mostly=kwargs.get("mostly", 1),
        )

    return compile_one


def _sums_to(chosen: tuple[str, ...], kwargs: Kwargs) -> Predicate:
    total = kwargs["sum_total"]
    if isinstance(total, bool) or not isinstance(total, int | float):
        raise NotExact
    return Comparison(Total(chosen), "=", Constant(total))


def _all_equal(chosen: tuple[str, ...], _: Kwargs) -> Predicate:
    first, *others = chosen
    return Every(
        tuple(
            Either((Every((Missing(first), Missing(other))), _equal(first, other, {})))
            for other in others
        )
    )


def _all_different(chosen: tuple[str, ...], _: Kwargs) -> Predicate:
    alike = [
        Either((Comparison(Field(a), "=", Field(b)), Every((Missing(a), Missing(b)))))
        for number, a in enumerate(chosen)
        for b in chosen[number + 1 :]
    ]
    return Not(Either(tuple(alike)))


# -- a row among the others ------------------------------------------------------------------------


def _unique(kwargs: Kwargs, columns: Columns) -> Check:
    column = known(kwargs["column"], columns)
    within = row_condition(kwargs, columns)
    return UniqueCheck((column,), within, present(column), kwargs.get("mostly", 1))


def _compound_unique(kwargs: Kwargs, columns: Columns) -> Check:
    chosen = _chosen(kwargs, columns)
    within = row_condition(kwargs, columns)
    return UniqueCheck(chosen, within, _ignored(kwargs, chosen), kwargs.get("mostly", 1))


def _reference(kwargs: Kwargs, columns: Columns) -> Check:
    return _referring((known(kwargs["column"], columns),), kwargs, columns)


def _compound_reference(kwargs: Kwargs, columns: Columns) -> Check:
    return _referring(_chosen(kwargs, columns), kwargs, columns)


def _referring(chosen: tuple[str, ...], kwargs: Kwargs, columns: Columns) -> Check:
    other = ReferenceOptions.of(kwargs)
    return ReferenceCheck(
        columns=chosen,
        within=row_condition(kwargs, columns),
        judged=present(*chosen),
        table=other.table,
        other_columns=other.columns,
        mostly=kwargs.get("mostly", 1),
    )


ROWS: Mapping[str, Compile] = {
    "expect_column_pair_values_a_to_be_greater_than_b": _by_pair(_greater),
    "expect_column_pair_values_to_be_equal": _by_pair(_equal),
    "expect_column_pair_values_to_be_in_set": _by_pair(_pair_in_set, conditional=False),
    "expect_column_value_lengths_to_be_between": _by_value(_lengths),
    "expect_column_value_lengths_to_equal": _by_value(_length),
    "expect_column_values_to_be_between": _by_value(_between),
    "expect_column_values_to_be_in_set": _by_value(_in_set),
    "expect_column_values_to_be_in_table": _reference,
    "expect_compound_columns_to_be_in_table": _compound_reference,
    "expect_column_values_to_be_null": _nullness(null=True),
    "expect_column_values_to_be_unique": _unique,
    "expect_column_values_to_match_like_pattern": _by_value(_like),
    "expect_column_values_to_match_like_pattern_list": _by_value(_like_list),
    "expect_column_values_to_match_regex": _by_value(_matches(positive=True)),
    "expect_column_values_to_match_regex_list": _by_value(_matches_list),
    "expect_column_values_to_not_be_in_set": _by_value(_not_in_set),
    "expect_column_values_to_not_be_null": _nullness(null=False),
    "expect_column_values_to_not_match_like_pattern": _by_value(_unlike),
    "expect_column_values_to_not_match_like_pattern_list": _by_value(_like_none),
    "expect_column_values_to_not_match_regex": _by_value(_matches(positive=False)),
    "expect_column_values_to_not_match_regex_list": _by_value(_matches_none),
    "expect_compound_columns_to_be_unique": _compound_unique,
    "expect_multicolumn_sum_to_equal": _by_columns(_sums_to),
    "expect_multicolumn_values_to_be_equal": _by_columns(_all_equal),
    "expect_select_column_values_to_be_unique_within_record": _by_columns(_all_different),
}
