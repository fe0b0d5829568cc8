"""Whether a source column can be stored in a target column, and in which COPY format.

Binary is used only if every column has the same built-in type with the same modifiers on both sides, or
is text of whatever length; text carries what is the same by name or widens without loss. Whatever could round, cut or shift a value
in silence is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from airflow_etl_provider.core.errors import ContractError
from airflow_etl_provider.core.names import TableName, quoted
from airflow_etl_provider.core.ports import SourceColumn
from airflow_etl_provider.postgres.catalog import CatalogColumn

#: Each type with the types that hold all its values.
_WIDER = {
    "smallint": {"integer", "bigint", "numeric", "double precision", "real"},
    "integer": {"bigint", "numeric", "double precision"},
    "bigint": {"numeric"},
    "date": {"timestamp without time zone"},
    "inet": set(),
    "cidr": {"inet"},
    "name": {"text"},
}
_MODIFIER = re.compile(
    r"^(?P<base>[^(]+?)(?:\((?P<args>[\d,]+)\))?(?P<rest> with(?:out)? time zone)?$"
)
_SIZED_TEXT = ("character varying", "character", "bit", "bit varying")
_SCALED_TIME = ("timestamp", "time", "interval")
_MOST_FRACTION = 6


def agreement(
    source: Sequence[SourceColumn],
    target: Sequence[CatalogColumn],
    *,
    where: str,
    table: TableName | None = None,
) -> bool:
    """Whether the columns, pairwise, travel in binary; ``False`` is text.

    :raises ContractError: a pair that cannot be carried without loss, by name.
    """
    problems = [
        f"{ours.name}: {ours.type} does not fit {theirs.type}"
        for ours, theirs in zip(source, target, strict=True)
        if not fits(ours.type, theirs.type)
    ]
    problems += [
        f"{ours.name}: {ours.type} has another definition there ({ours.definition}) than here "
        f"({theirs.definition})"
        for ours, theirs in zip(source, target, strict=True)
        if theirs.type != "text" and ours.definition != theirs.definition
    ]
    if problems:
        approve = [
            f"ALTER TABLE {table} ALTER COLUMN {quoted(theirs.name)} TYPE {ours.type}"
            for ours, theirs in zip(source, target, strict=True)
            if not fits(ours.type, theirs.type)
        ]
        statement = (
            f"approve it with {'; '.join(approve)}" if approve and table else "mend the types"
        )
        raise ContractError(
            f"{where}: types of the source do not fit the target: " + "; ".join(problems),
            remedy=f"{statement}, or leave the columns out with columns=[...]",
        )
    return all(
        ours.portable
        and theirs.builtin
        and not theirs.refers_by_oid
        and (ours.type == theirs.type or (is_text(ours.type) and is_text(theirs.type)))
        for ours, theirs in zip(source, target, strict=True)
    )


def widens_in_place(target: str, source: str) -> bool:
    """Whether a column of type *target* can hold all of *source* by a change that rewrites no table.

    PostgreSQL does that for a longer limit of ``varchar`` and ``varbit`` and a larger precision of
    ``numeric`` (with the same scale), or none.
    """
    ours, theirs = _MODIFIER.match(source), _MODIFIER.match(target)
    if ours is None or theirs is None or theirs["args"] is None:
        return False
    base, args = theirs["base"], [int(part) for part in theirs["args"].split(",")]
    if base == "character varying" and source == "text":
        return True
    if base != ours["base"] or base not in ("character varying", "bit varying", "numeric"):
        return False
    if ours["args"] is None:
        return True
    wide = [int(part) for part in ours["args"].split(",")]
    return wide[0] > args[0] and wide[1:] == args[1:]


def is_text(name: str) -> bool:
    """Types whose binary form is the text itself; a limit is checked by the server that stores it."""
    return name == "text" or name.split("(")[0] == "character varying"


def fits(source: str, target: str) -> bool:
    """Whether a column of type *target* can hold every value of type *source* as it is."""
    if source == target or target == "text":
        return True
    if source.endswith("[]") and target.endswith("[]"):
        return fits(source[:-2], target[:-2])
    ours, theirs = _MODIFIER.match(source), _MODIFIER.match(target)
    if ours is None or theirs is None:
        return False
    base, wide = ours["base"] + (ours["rest"] or ""), theirs["base"] + (theirs["rest"] or "")
    if base == wide:
        return _modifier_fits(ours["base"], ours["args"], theirs["args"])
    return wide in _WIDER.get(base, set()) and theirs["args"] is None


def _modifier_fits(base: str, source: str | None, target: str | None) -> bool:
    if target is None:
        return True
    ours = [int(part) for part in source.split(",")] if source else []
    theirs = [int(part) for part in target.split(",")]
    if base == "numeric":
        if not ours:
            return False
        scale, wide_scale = ([*ours, 0])[1], ([*theirs, 0])[1]
        return scale <= wide_scale and ours[0] - scale <= theirs[0] - wide_scale
    if base in _SIZED_TEXT:
        # Text that is too long is an error of the server, never cut.
        return base in ("character varying", "bit varying") or ours == theirs
    if base in _SCALED_TIME:
        return theirs[0] >= _MOST_FRACTION or (bool(ours) and ours[0] <= theirs[0])
    return ours == theirs
