"""The bounds ``:low`` and ``:high`` in a SELECT that a user wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from airflow_etl_provider.core.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Bound:
    """The place of ``:low`` or ``:high``."""

    name: str


def split_bounds(query: str, pattern: re.Pattern[str]) -> tuple[str | Bound, ...]:
    """*query* in pieces of text and places of bounds.

    :param pattern: finds a bound as its group ``bound``, and whatever a bound cannot stand in: literals,
        quoted names and comments.
    :raises ConfigurationError: only one of the two bounds is named.
    """
    parts = tuple(_pieces(query, pattern))
    found = {part.name for part in parts if isinstance(part, Bound)}
    if len(found) == 1:
        raise ConfigurationError(
            f"the query names :{found.pop()} only; a window has two ends",
            remedy="use both :low and :high, or neither: then the window is put around the query",
        )
    return parts


def has_bounds(query: str, pattern: re.Pattern[str]) -> bool:
    """Whether the query says by itself where the window is."""
    return any(isinstance(part, Bound) for part in split_bounds(query, pattern))


def _pieces(query: str, pattern: re.Pattern[str]) -> Iterator[str | Bound]:
    # A semicolon at the end would stand in the middle once the query is read from.
    text = query.rstrip().rstrip(";")
    position = 0
    for match in pattern.finditer(text):
        if match["bound"] is not None:
            yield text[position : match.start()]
            yield Bound(match["bound"])
            position = match.end()
    yield text[position:]
