"""What the warehouse knows of a staged batch beside its rows: its stream's loads, its lag, its target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.history import EarlierLoad, Newest, Season
from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.ports import Difference, Figure, Measured, Statistic
from airflow_etl_provider.core.window import TIME_TYPES, Nulls
from airflow_etl_provider.postgres import catalog
from airflow_etl_provider.postgres.catalog import Table
from airflow_etl_provider.postgres.cursors import cursor_type_sql, plain_type
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.figures import measure, measuring
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.session import Endpoint, connect
from airflow_etl_provider.postgres.statements import ident

_FLOATS = ("real", "double precision")
_NUMBERS = ("smallint", "integer", "bigint", "numeric", *_FLOATS)
#: Where the report of a load says what it found of its newest row.
_TOLD = (
    '$.results[*] ? (@.expectation_config.type == "expect_batch_to_be_fresh")'
    ".result.observed_value ? (@.column == $column)"
)


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """Facts about the batch of *manifest*, read over *endpoint*."""

    endpoint: Endpoint
    manifest: Manifest

    def earlier(
        self, loads: int, season: Season | None, column: str | None = None
    ) -> list[EarlierLoad]:
        """At most so many published loads that this one can be compared with.

        Of windows of time those of half to twice its length, the nearest first (a backfill is compared
        with what lies around it); else the last ones, full reads with full reads. A load that was
        rejected, rolled back or loaded again is none of them, nor is one of this very window.

        :param column: whose lag is wanted.
        """
        window = self.manifest.window
        if self._is_timed and window.low is None:
            return []
        zoned = window.is_full or (window.type or "").endswith("with time zone")
        params: Mapping[str, Any] = {
            "stream": self.manifest.stream,
            "load_id": self.manifest.load_id,
            "low": window.low,
            "high": window.high,
            "full": window.is_full,
            "nulls": window.nulls is Nulls.ONLY,
            "snapshot_at": self.manifest.snapshot_at,
            "by_hour": season in (Season.HOUR, Season.HOUR_OF_WEEK),
            "by_weekday": season in (Season.WEEKDAY, Season.HOUR_OF_WEEK),
            "zone": self._zone if zoned else "UTC",
            "loads": loads,
            "told": _TOLD,
            "column": column,
        }
        name = "by_time" if self._is_timed else "by_load"
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"reading the history of stream {self.manifest.stream}"),
            connection.cursor(row_factory=class_row(EarlierLoad)) as cursor,
        ):
            return cursor.execute(queries("stream_checks")[name], params).fetchall()

    def newest(self, column: str, known: Sequence[str]) -> Newest:
        """How far the newest row of *column* lies behind the end of the window.

        Where the window is none of time, behind the moment at which the source was read. A date lasts to
        the end of its day; infinite values do not count. A batch without a value is as old as the newest
        row that earlier loads had.

        :param known: the newest rows of earlier loads.
        :raises CatalogError: no such column.
        :raises ConfigurationError: it holds no times.
        """
        with connect(self.endpoint) as connection:
            staged = catalog.read_table(
                connection, self.manifest.staging, label=self.endpoint.label
            ).column(column, use="what freshness is told by")
            if plain_type(staged.type) not in TIME_TYPES:
                raise ConfigurationError(
                    f"{column} is of type {staged.type}, which tells no age",
                    remedy="name a column of dates or timestamps with column",
                )
            name = sql.Identifier(column)
            statement = sql.SQL(
                "SELECT batch.newest IS NOT NULL AS own, coalesce(batch.newest, known.newest)::text AS newest,"
                " extract(epoch FROM {moment} - coalesce(batch.newest, known.newest))::float8 AS lag"
                " FROM (SELECT {newest} AS newest FROM {table}) AS batch,"
                " (SELECT max(k) AS newest FROM unnest(%(known)s::timestamptz[]) AS k WHERE k <= {moment}) AS known"
            ).format(
                moment=self._moment(),
                newest=self._instant(
                    sql.SQL("max({c}) FILTER (WHERE isfinite({c}))").format(c=name),
                    staged.type,
                    day_ends=True,
                ),
                table=ident(self.manifest.staging),
            )
            with (
                translated_errors(f"looking for the newest {column} of {self.manifest.staging}"),
                connection.cursor(row_factory=class_row(Newest)) as cursor,
            ):
                found = cursor.execute(statement, {"known": list(known)}).fetchone()
        return found or Newest(False, None, None)

    def differences(self, filled_by_publish: Sequence[str]) -> tuple[int, list[Difference]]:
        """How many columns the batch has, and in which it does not fit the target as it is now."""
        manifest = self.manifest
        with connect(self.endpoint) as connection:
            batch, target = (
                catalog.read_table(connection, name, label=self.endpoint.label)
                for name in (manifest.staging, manifest.target)
            )
            names = [column.name for column in manifest.columns]
            found = [
                difference
                for name in names
                if (difference := _difference(name, batch, target)) is not None
            ]
            found += [
                Difference(column.name, "no such column", f"{column.type} NOT NULL")
                for column in target.columns
                if column.not_null
                and not (column.has_default or column.generated or column.identity)
                and column.name not in (*names, *filled_by_publish)
            ]
            differ = {difference.column for difference in found}
            strict = [
                name
                for name in names
                if name not in differ
                and target.column(name, use="a column").not_null
                and not batch.column(name, use="a column").not_null
            ]
            for name, nulls in zip(strict, self._nulls(connection, strict), strict=True):
                if nulls:
                    found.append(Difference(name, f"{nulls:,} rows without a value", "NOT NULL"))
        return len(names), found

    def measured(self, figures: Sequence[Figure], checksum: Sequence[str]) -> Measured:
        """Rows, figures and checksum of the batch.

        :raises CatalogError: no such column.
        :raises ConfigurationError: a figure that another server could compute in another way.
        """
        staging = self.manifest.staging
        inexact = set()
        with connect(self.endpoint) as connection:
            batch = catalog.read_table(connection, staging, label=self.endpoint.label)
            for place, figure in enumerate(figures):
                type_ = batch.column(figure.column, use=f"for its {figure.statistic}").type
                _require_comparable(figure, type_)
                if type_ in _FLOATS:
                    inexact.add(place)
            with translated_errors(f"measuring {staging}"):
                found = measure(connection, measuring(ident(staging), figures, checksum))
        return replace(found, inexact=frozenset(inexact))

    def as_batch(self, figures: Sequence[Figure], source: Measured) -> Measured:
        """*source* with its least and greatest values written as the batch's own server writes them.

        :raises DataError: a text that is none of the column's type.
        """
        texts: list[str | None] = []
        with connect(self.endpoint) as connection:
            batch = catalog.read_table(connection, self.manifest.staging, label=self.endpoint.label)
            for figure, text in zip(figures, source.figures, strict=True):
                if text is not None and figure.statistic is not Statistic.SUM:
                    type_ = batch.column(figure.column, use="a column").type
                    with translated_errors(f"reading the {figure} as the source has it"):
                        # The type's name is the server's own rendering.
                        read = sql.SQL("SELECT (%(text)s::{})::text").format(sql.SQL(type_))
                        text = catalog.scalar(connection, read, {"text": text})
                texts.append(text)
        return replace(source, figures=tuple(texts))

    @property
    def _is_timed(self) -> bool:
        window = self.manifest.window
        return window.is_range and plain_type(window.type or "") in TIME_TYPES

    @property
    def _zone(self) -> str:
        """Whose clock columns without time zone show, as far as the batch tells."""
        partition = self.manifest.partition
        return "UTC" if partition is None else partition.timezone

    def _moment(self) -> sql.Composable:
        window = self.manifest.window
        if not self._is_timed or window.high is None:
            return sql.SQL("{}::timestamptz").format(
                sql.Literal(self.manifest.snapshot_at.isoformat())
            )
        # The names of types are this package's.
        bound = sql.SQL("{}::{}").format(
            sql.Literal(window.high), cursor_type_sql(window.type or "")
        )
        return self._instant(bound, window.type or "", day_ends=False)

    def _instant(self, value: sql.Composable, type_: str, *, day_ends: bool) -> sql.Composable:
        """*value* as an instant; a date is the beginning or the end of its day."""
        plain = plain_type(type_)
        if plain == "timestamp with time zone":
            return value
        if plain == "date":
            value = sql.SQL("({} + {})::timestamp").format(value, sql.Literal(int(day_ends)))
        return sql.SQL("(({}) AT TIME ZONE {})").format(value, sql.Literal(self._zone))

    def _nulls(self, connection: psycopg.Connection[Any], columns: Sequence[str]) -> Sequence[int]:
        if not columns:
            return ()
        counts = sql.SQL(", ").join(
            sql.SQL("count(*) FILTER (WHERE {} IS NULL)").format(sql.Identifier(column))
            for column in columns
        )
        statement = sql.SQL("SELECT {} FROM {}").format(counts, ident(self.manifest.staging))
        with translated_errors(f"counting missing values of {self.manifest.staging}"):
            row = connection.execute(statement).fetchone()
        return row or ()


def _difference(name: str, batch: Table, target: Table) -> Difference | None:
    if not target.has_column(name):
        return Difference(name, "it", "no such column")
    wanted = target.column(name, use="a column")
    if not batch.has_column(name):
        return Difference(name, "no such column", wanted.type)
    given = batch.column(name, use="a column")
    if given.type != wanted.type:
        return Difference(name, given.type, wanted.type)
    if given.definition != wanted.definition:
        return Difference(name, f"another {given.type}", wanted.type)
    return None


def _require_comparable(figure: Figure, type_: str) -> None:
    """Sums of numbers, and ends of numbers and times: what every server computes alike."""
    plain = plain_type(type_)
    fits = _NUMBERS if figure.statistic is Statistic.SUM else (*_NUMBERS, *TIME_TYPES)
    if plain not in fits:
        raise ConfigurationError(
            f"the {figure} cannot be compared with the source: it is of type {type_}",
            remedy=f"name a column of type {', '.join(fits)}",
        )
