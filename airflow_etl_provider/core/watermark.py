"""The watermark as other tools read it, and how it is brought in line with the ledger."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from airflow_etl_provider.core.errors import StateError
from airflow_etl_provider.core.load import RunInfo, StreamPosition

if TYPE_CHECKING:
    from airflow_etl_provider.core.ports import EventLog, WatermarkStore

WATERMARK_VERSION = 1


@dataclass(frozen=True, slots=True)
class Watermark:
    """The position up to which a stream is published, with where it came from.

    ``value`` is PostgreSQL's own text of ``type`` (microseconds and offset kept); ``fence`` tells which
    of two watermarks is newer.
    """

    stream: str
    value: str | None
    type: str | None
    fence: int
    load_id: str | None
    dag_id: str | None
    run_id: str | None
    advanced_at: datetime
    rows: int | None
    previous: str | None

    def as_text(self) -> str:
        """The JSON that a store keeps."""
        return json.dumps(
            {
                "version": WATERMARK_VERSION,
                "stream": self.stream,
                "value": self.value,
                "type": self.type,
                "fence": self.fence,
                "load_id": self.load_id,
                "dag_id": self.dag_id,
                "run_id": self.run_id,
                "advanced_at": self.advanced_at.isoformat(),
                "rows": self.rows,
                "previous": self.previous,
            }
        )

    @classmethod
    def from_text(cls, text: str, *, stream: str, where: str) -> Self:
        """Read what :meth:`as_text` wrote.

        :param where: names the place for the error, such as ``Variable etl.watermark.flights``.
        :raises StateError: not JSON, not a watermark, of a newer version, or of another stream.
        """
        remedy = (
            "the ledger (etl.streams in the target database) holds the true position: delete the "
            "damaged value and the next run writes it anew from there"
        )
        try:
            data: Any = json.loads(text)
        except ValueError as error:
            raise StateError(
                f"{where} does not hold JSON, so the watermark cannot be read", remedy=remedy
            ) from error
        if not isinstance(data, dict) or data.get("version") != WATERMARK_VERSION:
            raise StateError(
                f"{where} does not hold a watermark of version {WATERMARK_VERSION}", remedy=remedy
            )
        if data.get("stream") != stream:
            raise StateError(
                f"{where} holds the watermark of another stream ({data.get('stream')!r})",
                remedy=remedy,
            )
        fence, value = data.get("fence"), data.get("value")
        if (
            not isinstance(fence, int)
            or isinstance(fence, bool)
            or not (value is None or isinstance(value, str))
        ):
            raise StateError(
                f"{where} has no whole watermark in it (fence {fence!r})", remedy=remedy
            )
        try:
            advanced_at = datetime.fromisoformat(data["advanced_at"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{where} has no readable advanced_at", remedy=remedy) from error
        return cls(
            stream=stream,
            value=value,
            type=data.get("type"),
            fence=fence,
            load_id=data.get("load_id"),
            dag_id=data.get("dag_id"),
            run_id=data.get("run_id"),
            advanced_at=advanced_at,
            rows=data.get("rows"),
            previous=data.get("previous"),
        )


class Repair(StrEnum):
    """What to do with a stored watermark, given the ledger's position."""

    NOTHING = "nothing"
    WRITE = "write"


def reconcile(stored: Watermark | None, ledger: StreamPosition, *, where: str) -> Repair:
    """Decide whether the store must be rewritten from the ledger, which is the truth.

    :raises StateError: the store has the ledger's fence but another value, so somebody edited it by
        hand; or a newer fence than the ledger, so it belongs to another warehouse.
    """
    if stored is None:
        return Repair.NOTHING if ledger.position is None else Repair.WRITE
    if stored.fence < ledger.fence:
        return Repair.WRITE
    if stored.fence > ledger.fence:
        raise StateError(
            f"{where} is at fence {stored.fence}, ahead of the ledger's {ledger.fence}: it was written for "
            "another warehouse, or the ledger was restored from an older backup",
            remedy="check the target connection; if the ledger is right, delete the stored value and the next "
            "run writes it anew",
        )
    if stored.value != ledger.position:
        raise StateError(
            f"{where} was edited by hand: it says {stored.value}, the ledger says {ledger.position}, both at "
            f"fence {ledger.fence}",
            remedy=f"to go where it says: airflow-etl watermark rewind {stored.stream} --to '{stored.value}' "
            f"--reason '…'; to keep the ledger's position: airflow-etl watermark repair {stored.stream}",
        )
    return Repair.NOTHING


def follow(
    store: WatermarkStore,
    stream: str,
    position: Callable[[], StreamPosition],
    *,
    log: EventLog,
    run: RunInfo | None = None,
    load_id: str | None = None,
    rows: int | None = None,
) -> None:
    """Bring the stored watermark in line with the ledger.

    The ledger is read after the store, so that it is never the older of the two, and once more after
    writing: a parallel load may have moved on, and the last one to write must not leave an older value.

    :param run: the run that has published *load_id* with *rows*; what it moved is said to be its own.
    :raises StateError: the stored watermark is unreadable, shadowed or edited by hand.
    """
    where = store.where(stream)
    while True:
        stored = store.read(stream)
        ledger = position()
        if reconcile(stored, ledger, where=where) is Repair.NOTHING:
            return
        own = run if ledger.load_id is not None and ledger.load_id == load_id else None
        store.write(
            Watermark(
                stream=stream,
                value=ledger.position,
                type=ledger.position_type,
                fence=ledger.fence,
                load_id=ledger.load_id,
                dag_id=None if own is None else own.dag_id,
                run_id=None if own is None else own.run_id,
                advanced_at=ledger.updated_at,
                rows=None if own is None else rows,
                previous=None if stored is None else stored.value,
            )
        )
        log(
            "watermark repaired from the ledger" if own is None else "watermark advanced",
            where=where,
            value=ledger.position,
            fence=ledger.fence,
        )
