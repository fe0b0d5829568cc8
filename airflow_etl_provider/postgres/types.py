"""Whether a source column can be stored in a target column, and in which COPY format.

Binary is used only if every column has the same built-in type with the same modifiers on both sides, or
is text of whatever length; text carries what is the same by name or widens without loss. Whatever could round, cut or shift a value
in silence is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from airflow_etl_provider.core.conversion import Judged
from airflow_etl_provider.core.errors import ContractError
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
_TEXTS = ("text", "character varying", "character", "name")
_NUMBERS = ("smallint", "integer", "bigint", "numeric", "real", "double precision")
_SIZED_TEXT = ("character varying", "character", "bit", "bit varying")
_SCALED_TIME = ("timestamp", "time", "interval")
_GROWS = ("character varying", "bit varying", "numeric", *_SCALED_TIME)
_MOST_FRACTION = 6


def agreement(
    source: Sequence[SourceColumn],
    target: Sequence[CatalogColumn],
    *,
    where: str,
    approve: Callable[[str, str], str] | None = None,
    needed: Collection[str | None] = (),
) -> bool:
    """Whether the columns, pairwise, travel in binary; ``False`` is text.

    :param approve: says what lets a column, by its name in the target, have the type of the source.
    :param needed: columns that cannot be left out.
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
        misfits = [
            (theirs.name, ours.type)
            for ours, theirs in zip(source, target, strict=True)
            if not fits(ours.type, theirs.type)
        ]
        remedies = [approve(*misfit) for misfit in misfits] if approve else []
        remedies = list(dict.fromkeys(remedies)) or ["mend the types"]
        if not {name for name, _ in misfits} & set(needed):
            remedies.append("or leave the columns out with columns=[...]")
        raise ContractError(
            f"{where}: types of the source do not fit the target: " + "; ".join(problems),
            remedy="; ".join(remedies),
        )
    return all(
        ours.portable
        and theirs.builtin
        and not theirs.refers_by_oid
        and (ours.type == theirs.type or (is_text(ours.type) and is_text(theirs.type)))
        for ours, theirs in zip(source, target, strict=True)
    )


def judged(
    source: Sequence[SourceColumn],
    target: Sequence[CatalogColumn],
    *,
    proven: bool,
    strict: Collection[str],
) -> tuple[Judged, ...] | None:
    """Which columns travel as text because each value decides whether the target can hold it.

    ``None`` where no value can be refused. Pairs that no value settles stay as they are, for
    :func:`agreement` to refuse: a time with a zone and one without mean something else, whatever they say.

    :param proven: whether every value of the source is of its column's type.
    :param strict: columns that may not change their type, since windows or partitions go by them.
    """
    found = tuple(
        Judged(
            name=theirs.name,
            type=theirs.type,
            stored=theirs.stored or theirs.type,
            text=(ours.name not in strict or fits(ours.type, theirs.type))
            and _value_decides(ours, theirs, proven=proven),
            required=(theirs.not_null or theirs.never_null) and not (proven and ours.not_null),
            soft=theirs.soft_input,
        )
        for ours, theirs in zip(source, target, strict=True)
    )
    return found if any(column.text or column.required for column in found) else None


def _value_decides(ours: SourceColumn, theirs: CatalogColumn, *, proven: bool) -> bool:
    same_definition = ours.definition == theirs.definition or theirs.type == "text"
    if not same_definition:
        return ours.type == theirs.type or _base(ours.type) in _TEXTS
    if fits(ours.type, theirs.type):
        return not proven or theirs.restricted or _is_narrower(ours.type, theirs.type)
    one, other = _base(ours.type), _base(theirs.type)
    return (
        one in _TEXTS
        or (one in _NUMBERS and other in _NUMBERS)
        or one == other
        or (one, other) == ("json", "jsonb")
    )


def _is_narrower(source: str, target: str) -> bool:
    """Whether text of the one may be too long for the other."""
    if _base(target) not in _SIZED_TEXT or source == target:
        return False
    ours, theirs = _MODIFIER.match(source), _MODIFIER.match(target)
    if ours is None or theirs is None or theirs["args"] is None:
        return False
    return ours["args"] is None or int(ours["args"]) > int(theirs["args"])


def _base(name: str) -> str:
    """A type without its modifiers."""
    match = _MODIFIER.match(name)
    return name if match is None else match["base"] + (match["rest"] or "")


def widens_in_place(target: str, source: str) -> bool:
    """Whether a column of type *target* can hold all of *source* by a change that rewrites no table.

    PostgreSQL does that for a longer limit of ``varchar`` and ``varbit``, a larger precision of ``numeric``
    (with the same scale), more digits of a second, or no limit at all; and for ``inet`` instead of ``cidr``.
    """
    if (target, source) == ("cidr", "inet"):
        return True
    ours, theirs = _MODIFIER.match(source), _MODIFIER.match(target)
    if ours is None or theirs is None or theirs["args"] is None:
        return False
    base, args = theirs["base"], [int(part) for part in theirs["args"].split(",")]
    if base == "character varying" and source == "text":
        return True
    if (base, theirs["rest"]) != (ours["base"], ours["rest"]) or base not in _GROWS:
        return False
    if ours["args"] is None:
        return True
    wide = [int(part) for part in ours["args"].split(",")]
    return wide[0] > args[0] and wide[1:] == args[1:]


def is_text(name: str) -> bool:
    """Types whose binary form is the text itself; a limit is checked by the server that stores it."""
    return name == "text" or name.split("(")[0] == "character varying"


def fits(source: str, target: str) -> bool:
    """Whether a column of type *target* takes what one of type *source* holds, or fails: nothing is lost in silence."""
    if source == target or target == "text":
        return True
    if is_text(source) and is_text(target):
        # Text that is too long is an error of the server, never cut.
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
        return base in ("character varying", "bit varying") or ours == theirs
    if base in _SCALED_TIME:
        return theirs[0] >= _MOST_FRACTION or (bool(ours) and ours[0] <= theirs[0])
    return ours == theirs
