"""What people do with dead letters: look at them, and discard what nobody will mend."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import dict_row

from airflow_etl_provider.core.dead_letters import LetterStatus
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.postgres import ledger
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.rewind import unknown_stream

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Discarded:
    """Letters that were discarded now, and by their status those that were not pending."""

    ids: tuple[int, ...]
    others: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"discarded": list(self.ids), "others": dict(self.others)}


def listed(
    connection: Connection,
    *,
    stream: str | None,
    load_id: str | None,
    statuses: Collection[LetterStatus],
    limit: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Letters without their rows, oldest first, and how many there are by stream, status and reason.

    :raises ConfigurationError: the ledger knows no such stream.
    """
    params = {
        "stream": stream,
        "load_id": load_id,
        "statuses": sorted(statuses),
        "limit": limit,
    }
    with translated_errors("reading dead letters"):
        if stream is not None and ledger.position(connection, stream) is None:
            raise unknown_stream(connection, stream)
        with connection.cursor(row_factory=dict_row) as cursor:
            letters = cursor.execute(queries("dead_letters")["listed"], params).fetchall()
            counts = cursor.execute(queries("dead_letters")["counted"], params).fetchall()
    return letters, counts


def shown(connection: Connection, letter: int) -> dict[str, Any]:
    """All of one letter, its row included.

    :raises ConfigurationError: there is no such letter.
    """
    with (
        translated_errors("reading dead letters"),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        row = cursor.execute(queries("dead_letters")["shown"], {"id": letter}).fetchone()
    if row is None:
        raise ConfigurationError(
            f"dead letter {letter} does not exist", remedy="airflow-etl dead-letters list"
        )
    return row


def pending_ids(connection: Connection, stream: str, load_id: str | None) -> list[int]:
    """The pending letters of a stream, or of one load of it.

    :raises ConfigurationError: the ledger knows no such stream.
    """
    with translated_errors("reading dead letters"):
        if ledger.position(connection, stream) is None:
            raise unknown_stream(connection, stream)
        rows = connection.execute(
            queries("dead_letters")["pending_ids"], {"stream": stream, "load_id": load_id}
        ).fetchall()
    return [letter for (letter,) in rows]


def discard(connection: Connection, ids: Sequence[int], reason: str, actor: str) -> Discarded:
    """Give pending letters up, for *reason*; others are left as they are.

    :raises ConfigurationError: no reason, or a letter that does not exist.
    """
    for name, text in (("reason", reason), ("actor", actor)):
        if not text.strip():
            raise ConfigurationError(
                f"discarding rows needs a {name}",
                remedy="say why and who, for those who wonder later where they are",
            )
    with translated_errors("discarding dead letters"), connection.transaction():
        known = {
            letter: status
            for letter, _, status in connection.execute(
                queries("dead_letters")["others_asked_for"], {"ids": list(ids)}
            )
        }
        missing = sorted(set(ids).difference(known))
        if missing:
            raise ConfigurationError(
                f"dead letter {missing[0]} does not exist", remedy="airflow-etl dead-letters list"
            )
        rows = connection.execute(
            queries("dead_letters")["discard"],
            {
                "ids": list(ids),
                "why": f"discarded by {actor.strip()}: {reason.strip()}",
            },
        ).fetchall()
    gone = {letter for (letter,) in rows}
    others: dict[str, int] = {}
    for letter, status in known.items():
        if letter not in gone:
            others[status] = others.get(status, 0) + 1
    return Discarded(tuple(sorted(gone)), others)
