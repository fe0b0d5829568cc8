"""Rows whose values decide whether the target can hold them: what travels as text and is converted there."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_etl_provider.core.dead_letters import DeadLimits


@dataclass(frozen=True, slots=True)
class Judged:
    """A column of the batch whose values are looked at in the target.

    :param type: of the target, with its modifiers.
    :param stored: what that is at last, if it is a domain; else the same.
    :param text: it travels as text and is converted there; else it has the target's type already.
    :param required: it must have a value.
    :param soft: the server can be asked whether it would take a text.
    """

    name: str
    type: str
    stored: str
    text: bool
    required: bool
    soft: bool = True


@dataclass(frozen=True, slots=True)
class Conversion:
    """How rows that cannot be converted are found.

    :param columns: all of the batch, in its order.
    :param remarks: each row ends with what the source itself has to say against it, or NULL.
    """

    columns: tuple[Judged, ...]
    remarks: bool
    limits: DeadLimits

    @property
    def as_text(self) -> frozenset[str]:
        """The columns that travel as text."""
        return frozenset(column.name for column in self.columns if column.text)
