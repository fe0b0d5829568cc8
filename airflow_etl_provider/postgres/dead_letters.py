"""Dead letters in the ledger: rows become letters, and letters follow what becomes of their load.

All functions work on the caller's connection, inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import Superseded
from airflow_etl_provider.core.load import Kind, Manifest
from airflow_etl_provider.core.window import Nulls, Window
from airflow_etl_provider.postgres.catalog import scalar
from airflow_etl_provider.postgres.cursors import cursor_type_sql
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.statements import ident

Connection = psycopg.Connection[Any]


def printed(value: sql.Composable) -> sql.Composed:
    """*value* as the server prints it, whatever its type; NULL stays NULL."""
    return sql.SQL("CASE WHEN num_nulls({v}) = 0 THEN concat({v}) END").format(v=value)


def key_text(keys: Sequence[sql.Composable]) -> sql.Composable:
    """The texts of a key in one: that of a single column as it is, those of several as a JSON array."""
    if not keys:
        return sql.SQL("NULL::text")
    if len(keys) == 1:
        return keys[0]
    return sql.SQL("to_jsonb(ARRAY[{}]::text[])::text").format(sql.SQL(", ").join(keys))


def written(
    stream: str,
    load_id: str,
    *,
    columns: Mapping[str, sql.Composable],
    key: sql.Composable,
    position: sql.Composable,
    rows: sql.Composable,
    place: sql.Composable,
    why: Mapping[str, sql.Composable],
) -> sql.Composed:
    """The statement that writes a held letter for each of *rows*.

    :param columns: the text of each column by its name.
    :param rows: what stands behind FROM.
    :param place: orders the letters as the rows are.
    :param why: ``reason``, and whatever else a letter says beside its row, by the letter's column.
    """
    said = sql.SQL(", ").join(map(sql.Identifier, why))
    return sql.SQL(
        "INSERT INTO etl.dead_letters (stream, load_id, record, record_key, position, row_hash, ordinal, {said},"
        "   error_class, status)"
        " SELECT {stream}, {load_id}, etl_record, etl_key, etl_position, etl_hash,"
        # Identical rows are told apart, also from those that an earlier audit set aside.
        "   row_number() OVER (PARTITION BY etl_hash ORDER BY etl_place)"
        "     + coalesce((SELECT max(e.ordinal) FROM etl.dead_letters AS e"
        "       WHERE e.load_id = {load_id} AND e.row_hash = etl_hash), 0), {said}, 'data', 'held'"
        " FROM (SELECT *, encode(sha256(convert_to(etl_record::text, 'UTF8')), 'hex') AS etl_hash"
        "   FROM (SELECT jsonb_object(ARRAY[{names}]::text[], ARRAY[{texts}]::text[]) AS etl_record,"
        "     {key} AS etl_key, {position} AS etl_position, {place} AS etl_place, {why} FROM {rows}) AS etl_read"
        "   ) AS etl_hashed ORDER BY etl_place"
    ).format(
        stream=sql.Literal(stream),
        load_id=sql.SQL("{}::uuid").format(sql.Literal(load_id)),
        said=said,
        names=sql.SQL(", ").join(sql.Literal(name) for name in columns),
        texts=sql.SQL(", ").join(columns.values()),
        key=key,
        position=position,
        place=place,
        why=sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(made, sql.Identifier(name)) for name, made in why.items()
        ),
        rows=rows,
    )


def end(connection: Connection, load_ids: Sequence[str], why: str) -> None:
    """Loads have come to nothing, or were taken back: their letters need no replay."""
    connection.execute(queries("dead_letters")["end"], {"load_ids": list(load_ids), "why": why})


def hold_again(connection: Connection, load_id: str) -> None:
    """A load that was rejected has passed after all."""
    connection.execute(queries("dead_letters")["hold_again"], {"load_id": load_id})


def forget(connection: Connection, load_id: str) -> None:
    """Drop the letters of a batch that is read anew, before anybody could act on them."""
    connection.execute(queries("dead_letters")["forget"], {"load_id": load_id})


def reasons(connection: Connection, load_id: str) -> dict[str, int]:
    """Why rows of a load were set aside, with their numbers."""
    found = connection.execute(queries("dead_letters")["reasons"], {"load_id": load_id})
    return dict(found.fetchall())


def follow_publish(
    connection: Connection, manifest: Manifest, keys: Sequence[str], later: Sequence[Window]
) -> None:
    """In the publish transaction: the load's letters can be replayed, and older ones that it settles cannot.

    :param keys: columns that identify a row, where the publish went by key.
    :param later: parts of a window of events that a load which read later has published.
    :raises Superseded: letters that this load brings back were settled otherwise meanwhile.
    """
    if manifest.replays is not None:
        _mark_replayed(connection, manifest)
        return
    connection.execute(queries("dead_letters")["release"], {"load_id": manifest.load_id})
    if later:
        connection.execute(
            queries("dead_letters")["give_way"].format(
                reached=sql.SQL(" OR ").join(map(_lies_within, later))
            ),
            {
                "load_id": manifest.load_id,
                "why": "a load that read the row later is published",
            },
        )
    params = {"stream": manifest.stream, "load_id": manifest.load_id}
    if not scalar(connection, queries("dead_letters")["others_pending"], params):
        return
    connection.execute(
        queries("dead_letters")["overtake"].format(reached=_reached(manifest, keys)),
        {
            **params,
            "why": f"load {manifest.load_id} has read the row again",
            "snapshot_at": manifest.snapshot_at,
            "cursor": manifest.cursor,
            "type": manifest.window.type,
            "low": manifest.window.low,
            "high": manifest.window.high,
        },
    )


def _mark_replayed(connection: Connection, manifest: Manifest) -> None:
    marked = connection.execute(
        queries("dead_letters")["mark_replayed"],
        {"load_id": manifest.load_id, "why": f"published by load {manifest.load_id}"},
    ).rowcount
    if marked != manifest.rows:
        raise Superseded(
            f"{manifest.rows - marked:,} of the letters that load {manifest.load_id} brings back were settled "
            "otherwise meanwhile",
            remedy="nothing was changed: replay again, which takes what is still pending",
        )


def _reached(manifest: Manifest, keys: Sequence[str]) -> sql.Composable:
    """Which older letters (``d``, of load ``l``) a published load settles: those in its window, and of its keys."""
    window = manifest.window
    if window.is_full:
        return sql.SQL("true")
    reached = _in_window(window)
    if not keys or manifest.kind is Kind.EVENTS:
        return reached
    staged = key_text([printed(sql.Identifier("s", key)) for key in keys])
    return sql.SQL("({} OR d.record_key IN (SELECT {} FROM {} AS s))").format(
        reached, staged, ident(manifest.staging)
    )


def _lies_within(window: Window) -> sql.Composed:
    """Whether the cursor value of a letter lies in a range; of one without a value nothing is said."""
    if not window.is_range:
        return sql.Composed([sql.SQL("false")])
    cast = cursor_type_sql(window.type or "")
    bounds = (
        (">=" if window.bounds[0] == "[" else ">", window.low),
        ("<=" if window.bounds[1] == "]" else "<", window.high),
    )
    parts = [
        sql.SQL("d.position::{t} {operator} {bound}::{t}").format(
            t=cast, operator=sql.SQL(operator), bound=sql.Literal(bound)
        )
        for operator, bound in bounds
        if bound is not None
    ]
    return sql.SQL("({})").format(
        sql.SQL(" AND ").join([sql.SQL("d.position IS NOT NULL"), *parts])
    )


def _in_window(window: Window) -> sql.Composed:
    """By the cursor value of a letter; where it has no valid one, by the window of its load."""
    nulls = sql.SQL("false" if window.nulls is Nulls.EXCLUDE else "true")
    lies: sql.Composable = sql.SQL("false")
    within: sql.Composable = sql.SQL("false")
    if window.is_range:
        cast = cursor_type_sql(window.type or "")
        lies = _lies_within(window)
        within = sql.SQL(
            "coalesce(l.window_low::{t} >= %(low)s::{t}, %(low)s::text IS NULL)"
            " AND coalesce(l.window_high::{t} <= %(high)s::{t}, %(high)s::text IS NULL)"
        ).format(t=cast)
    return sql.SQL(
        "CASE WHEN jsonb_exists(d.record, %(cursor)s::text) AND d.record ->> %(cursor)s::text IS NULL THEN {nulls}"
        " WHEN l.window_type IS DISTINCT FROM %(type)s::text OR l.bounds = 'nulls' THEN false"
        " WHEN d.position IS NOT NULL THEN {lies} ELSE {within} END"
    ).format(nulls=nulls, lies=lies, within=within)
