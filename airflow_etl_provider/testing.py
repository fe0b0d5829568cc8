"""Doubles of the ports, kept in memory: for tests of pipelines and of this package alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from airflow_etl_provider.core.names import check_stream
from airflow_etl_provider.core.watermark import Watermark


class MemoryWatermarkStore:
    """A watermark store that forgets with the process.

    It keeps text and writes blindly, as real stores do: what cannot be written or read there fails here
    too, and the last writer wins. ``texts`` may be looked at and edited by hand.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def where(self, stream: str) -> str:
        return f"memory of stream {check_stream(stream)}"

    def read(self, stream: str) -> Watermark | None:
        text = self.texts.get(check_stream(stream))
        if text is None:
            return None
        return Watermark.from_text(text, stream=stream, where=self.where(stream))

    def write(self, watermark: Watermark) -> None:
        self.texts[check_stream(watermark.stream)] = watermark.as_text()


@dataclass(slots=True)
class RecordedEvents:
    """An event log that can be asked what happened."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def names(self) -> list[str]:
        """The events in order, without their fields."""
        return [event for event, _ in self.events]


__all__ = ["MemoryWatermarkStore", "RecordedEvents"]
