"""Which columns of a source a batch has, under which names, and what becomes of personal data in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from airflow_etl_provider.core.errors import CatalogError, ConfigurationError
from airflow_etl_provider.core.suggest import nearest


class Treatment(StrEnum):
    """What the source sends of a column: ``hash`` and ``null`` are applied there, ``drop`` sends nothing."""

    KEEP = "keep"
    HASH = "hash"
    NULL = "null"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Selected:
    """One column of a batch: its name in the target, and the column of the source it is made of."""

    name: str
    source: str
    treatment: Treatment = Treatment.KEEP


@dataclass(frozen=True, slots=True)
class Selection:
    """The columns that are asked for.

    :param columns: of the source; ``None`` takes all.
    :param rename: names in the target by names in the source.
    :param personal: treatments by names in the source.
    """

    columns: tuple[str, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    personal: Mapping[str, Treatment] = field(default_factory=dict)

    @property
    def hashes(self) -> bool:
        return Treatment.HASH in self.personal.values()

    def name_of(self, source: str) -> str:
        """How the target calls a column of the source."""
        return self.rename.get(source, source)

    def of(self, offered: Sequence[str], where: str) -> tuple[Selected, ...]:
        """The columns of a batch from a source that offers *offered*.

        :raises CatalogError: a named column is not offered; the nearest one is named.
        :raises ConfigurationError: two columns would have one name, or none is left.
        """
        uses = [(name, "in columns") for name in self.columns or ()]
        uses += [(name, "in rename") for name in self.rename]
        uses += [(name, "in personal") for name in self.personal]
        for name, use in uses:
            if name not in offered:
                raise missing_column(where, name, use, offered)
        chosen = tuple(
            Selected(self.name_of(name), name, self.personal.get(name, Treatment.KEEP))
            for name in (offered if self.columns is None else self.columns)
            if self.personal.get(name) is not Treatment.DROP
        )
        if not chosen:
            raise ConfigurationError(
                f"no column of {where} is left to load", remedy="name some with columns=[...]"
            )
        names = [column.name for column in chosen]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigurationError(
                f"two columns of {where} would be called {', '.join(twice)} in the target",
                remedy="give each a name of its own with rename={...}, or leave one out with columns=[...]",
            )
        return chosen


def missing_column(where: str, name: str, use: str, known: Sequence[str]) -> CatalogError:
    """The error for a column that is not there, with the nearest that is."""
    return CatalogError(
        f"{where} has no column {name!r}, named {use}{nearest(name, known)}",
        remedy=f"its columns are: {', '.join(known)}",
    )
