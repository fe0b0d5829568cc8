"""No copy at all: the ledger alone says where a stream stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from airflow_etl_provider.core.load import StreamPosition
from airflow_etl_provider.core.names import check_stream
from airflow_etl_provider.core.watermark import Watermark


@dataclass(frozen=True, slots=True)
class LedgerWatermarkStore:
    """Shows what ``etl.streams`` holds and keeps nothing beside it.

    There is nothing that could lag, be shadowed or be edited by hand, and nothing to repair; readers ask
    the warehouse (``SELECT position FROM etl.streams WHERE stream = …`` or ``airflow-etl status``).

    :param position: reads the ledger; ``None`` for a stream that never loaded.
    """

    position: Callable[[str], StreamPosition | None]

    def where(self, stream: str) -> str:
        return f"ledger row of stream {check_stream(stream)}"

    def read(self, stream: str) -> Watermark | None:
        """The ledger's row as a watermark; what only a copy could tell (run, rows) is left out."""
        found = self.position(check_stream(stream))
        if found is None:
            return None
        return Watermark(
            stream=stream,
            value=found.position,
            type=found.position_type,
            fence=found.fence,
            load_id=found.load_id,
            dag_id=None,
            run_id=None,
            advanced_at=found.updated_at,
            rows=None,
            previous=None,
        )

    def write(self, watermark: Watermark) -> None:
        """Nothing: the ledger moved when the load was published."""
        check_stream(watermark.stream)

    def remove(self, stream: str) -> None:
        """Nothing: the ledger keeps the position whatever store shows it."""
        check_stream(stream)
