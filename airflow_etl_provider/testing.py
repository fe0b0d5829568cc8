"""Doubles of the ports, kept in memory: for tests of pipelines and of this package alike."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from airflow_etl_provider.core.errors import StateError
from airflow_etl_provider.core.names import check_stream
from airflow_etl_provider.core.watermark import Watermark


class MemoryWatermarkStore:
    """A watermark store that forgets with the process.

    It keeps text, as real stores do, so what cannot be written or read there fails here too.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._lock = threading.Lock()

    def where(self, stream: str) -> str:
        return f"memory of stream {check_stream(stream)}"

    def read(self, stream: str) -> Watermark | None:
        text = self.texts.get(check_stream(stream))
        if text is None:
            return None
        return Watermark.from_text(text, stream=stream, where=self.where(stream))

    def write(self, watermark: Watermark) -> None:
        """Store it unless a newer one is there already; at the same fence only the same value fits.

        :raises StateError: another value with the same fence is there.
        """
        where = self.where(watermark.stream)
        with self._lock:
            stored = self.texts.get(watermark.stream)
            if stored is not None:
                other = self._fence_of(stored, watermark.stream)
                if other is not None and other.fence > watermark.fence:
                    return
                if (
                    other is not None
                    and other.fence == watermark.fence
                    and other.value != watermark.value
                ):
                    raise StateError(f"{where} holds another value at fence {other.fence}")
            self.texts[watermark.stream] = watermark.as_text()

    def _fence_of(self, text: str, stream: str) -> Watermark | None:
        try:
            return Watermark.from_text(text, stream=stream, where=self.where(stream))
        except StateError:
            return None


@dataclass(slots=True)
class RecordedEvents:
    """An event log that can be asked what happened."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def names(self) -> list[str]:
        return [event for event, _ in self.events]


__all__ = ["MemoryWatermarkStore", "RecordedEvents"]
