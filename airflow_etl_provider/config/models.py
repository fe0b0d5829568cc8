"""A pipeline as its user declares it: one value per key, checked when it is made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from airflow_etl_provider.config.findings import ContradictionError, Finding, named
from airflow_etl_provider.config.rules import contradictions_of_pipeline, contradictions_of_stream
from airflow_etl_provider.core.columns import Selection, Treatment
from airflow_etl_provider.core.dead_letters import OnConversionError
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.names import TableName, check_identifier, check_stream
from airflow_etl_provider.core.partition import Every
from airflow_etl_provider.core.publish import Deletes, OnLockDeadline, OnOldSnapshot
from airflow_etl_provider.core.request import (
    NullCursor,
    OnEmpty,
    OpenWindow,
    SchemaContract,
    WindowMode,
)
from airflow_etl_provider.core.settle import CursorOrigin
from airflow_etl_provider.core.suggest import nearest
from airflow_etl_provider.core.transform import OnError
from airflow_etl_provider.core.validate import Engine, ResultFormat

#: Names for the schedules that people mean most often.
PRESETS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@quarterly": "0 0 1 */3 *",
    "@yearly": "0 0 1 1 *",
}
#: What a run may read; rows without a cursor value are swept beside that.
_WINDOWS = [mode.value for mode in (WindowMode.INTERVAL, WindowMode.WATERMARK, WindowMode.FULL)]
_TREATMENTS = [each.value for each in (Treatment.HASH, Treatment.NULL, Treatment.DROP)]
_DAG_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_TAG_LENGTH = 100
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_PARAMETER = re.compile(r"[A-Za-z_]\w*")
_PARALLEL_RUNS = 4
_DURATION = TypeAdapter(timedelta)


def _refusal(what: str, remedy: str) -> ContradictionError:
    return ContradictionError([Finding((), what, remedy)])


def _pipeline_id(text: str) -> str:
    if _DAG_ID.fullmatch(text) is None:
        raise _refusal(
            f"{text!r} cannot be the id of a DAG",
            "use letters, digits, '_', '-' and '.', at most 200 of them, as in the file's name",
        )
    return text


def _schedule(text: str) -> str:
    if text.startswith("@"):
        if text not in PRESETS:
            raise _refusal(
                f"{text!r} has no data interval to load or is unknown{nearest(text, PRESETS)}",
                f"write one of {', '.join(PRESETS)}, a cron expression, or null for runs by hand",
            )
    elif len(text.split()) != 5:
        raise _refusal(
            f"{text!r} is no cron expression: it has {len(text.split())} fields instead of 5",
            'write minute, hour, day of month, month and day of week, such as "0 5 * * *"',
        )
    return text


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise _refusal(
            f"no time zone is called {text!r}{nearest(text, available_timezones())}",
            "use an IANA name such as UTC or America/New_York",
        ) from error
    return text


def _moment(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, date | str):
        raise _refusal(f"{named(value)} is no date", "write a date such as 2013-01-01")
    return value


def _duration(value: object) -> object:
    if isinstance(value, timedelta) or (
        isinstance(value, int | float) and not isinstance(value, bool)
    ):
        return value
    if isinstance(value, str) and value.startswith("P"):
        return value
    raise _refusal(
        f"{named(value)} is no duration",
        "write seconds as a number (30) or an ISO 8601 duration (PT30S, PT10M, PT6H)",
    )


def _lookback(value: object) -> timedelta | int:
    """A number is never taken for seconds here: it counts steps of a counter."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, timedelta) or (isinstance(value, str) and value.startswith("P")):
        try:
            duration = _DURATION.validate_python(value)
        except ValidationError:
            duration = timedelta(-1)
        if duration >= timedelta(0):
            return duration
    raise _refusal(
        f"{named(value)} is neither a duration nor a whole number",
        "write an ISO 8601 duration (PT1H, P1D) for a cursor of dates or times, or how many values "
        "to go back (1000) for a counter",
    )


def _window(value: object) -> object:
    if value == WindowMode.NULLS:
        raise _refusal(
            "nulls is no window of a stream",
            "write null_cursor: sweep beside window: watermark or interval",
        )
    if value not in _WINDOWS:
        raise _refusal(_unknown(value, _WINDOWS), f"write one of {', '.join(_WINDOWS)}")
    return value


def _treatment(value: object) -> object:
    """YAML reads a bare null as nothing."""
    if value is None:
        return Treatment.NULL
    if value not in _TREATMENTS:
        raise _refusal(_unknown(value, _TREATMENTS), "write hash, null or drop")
    return value


def _unknown(value: object, known: Sequence[str]) -> str:
    if isinstance(value, str):
        return f"{value!r} is not known{nearest(value, known)}"
    return f"{named(value)} is not known"


def _zero_dates(value: object) -> object:
    return "null" if value is None else value


def _table(text: str) -> str:
    try:
        TableName.parse(text)
    except ConfigurationError as error:
        raise _refusal(error.what, error.remedy or "write it as schema.table") from error
    return text


def _column(text: str) -> str:
    try:
        return check_identifier(text)
    except ConfigurationError as error:
        raise _refusal(
            error.what, error.remedy or "write the column's name as the server shows it"
        ) from error


def _stream_id(text: str) -> str:
    try:
        return check_stream(text)
    except ConfigurationError as error:
        raise _refusal(error.what, error.remedy or "choose a short lower-case name") from error


def _function(text: str) -> str:
    if _FUNCTION.fullmatch(text) is None:
        raise _refusal(f"{text!r} names no function", "write it as package.module:function")
    return text


def _parameter(text: str) -> str:
    if _PARAMETER.fullmatch(text) is None:
        raise _refusal(
            f"{text!r} cannot be the name of a parameter",
            "use letters, digits and '_', as in tax_rate",
        )
    return text


def _tag(text: str) -> str:
    if not 0 < len(text) <= _TAG_LENGTH:
        raise _refusal(f"a tag of {len(text)} characters", f"use 1 to {_TAG_LENGTH} characters")
    return text


Zone = Annotated[str, AfterValidator(_zone)]
Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}]}
    ),
]
Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "format": "duration"},
            ]
        }
    ),
]
Wait = Annotated[
    timedelta,
    BeforeValidator(_duration),
    Field(ge=timedelta(0)),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "format": "duration"}]}
    ),
]
Lookback = Annotated[
    timedelta | int,
    BeforeValidator(_lookback),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "format": "duration"}]}
    ),
]
Window = Annotated[
    WindowMode,
    BeforeValidator(_window),
    WithJsonSchema({"type": "string", "enum": _WINDOWS}),
]
Personal = Annotated[
    Treatment,
    BeforeValidator(_treatment),
    WithJsonSchema({"enum": [*_TREATMENTS, None]}),
]
ZeroDates = Annotated[
    Literal["fail", "null"],
    BeforeValidator(_zero_dates),
    WithJsonSchema({"enum": ["fail", "null", None]}),
]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0)]
Name = Annotated[str, Field(min_length=1)]
Column = Annotated[str, AfterValidator(_column)]
Parameter = Annotated[str, AfterValidator(_parameter)]
Scalar = str | bool | int | float | date | datetime | None
Table = Annotated[str, AfterValidator(_table)]
Expectation = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "required": ["type"],
            "additionalProperties": False,
            "properties": {
                "type": {
                    "type": "string",
                    "pattern": "^(expect_|unexpected_rows_expectation$)",
                    "description": "an expectation of Great Expectations, or one of this provider",
                },
                "kwargs": {"type": "object", "description": "its arguments, such as column"},
                "severity": {"enum": ["critical", "warning", "info"], "default": "critical"},
                "on_fail": {
                    "enum": ["block", "quarantine"],
                    "default": "block",
                    "description": "quarantine sets failing rows aside and publishes the rest",
                },
                "meta": {"type": "object"},
                "id": {"type": "string"},
                "description": {"type": "string"},
            },
        }
    ),
]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)


class Source(_Model):
    """Where the rows come from and which of them one run reads."""

    # None leaves a value to the operator, which has the defaults.
    conn_id: Name = Field(description="the id of the Airflow connection", examples=["etl_source"])
    table: Table | None = Field(
        default=None, description="the table as schema.table", examples=["public.flights"]
    )
    query: Name | None = Field(
        default=None,
        description="a SELECT instead of a table (templated); :low and :high in it stand for the window's bounds, "
        "and without them the window is put around it",
        examples=['"SELECT * FROM flights WHERE time_hour >= :low AND time_hour < :high"'],
    )
    query_file: Name | None = Field(
        default=None,
        description="the name of a file with the SELECT, relative to the pipeline's file",
    )
    cursor: Column | None = Field(
        default=None,
        description="the column that orders the rows: when they happened (events) or were last "
        "changed (entities)",
        examples=["time_hour"],
    )
    window: Window | None = Field(
        default=None,
        description="interval (the run's data interval; default for events), watermark (what has "
        "come since the last run) or full (everything; default for entities and snapshots)",
        examples=["watermark"],
    )
    lookback: Lookback | None = Field(
        default=None,
        description="how far below the watermark a run begins, for rows that arrive late: an "
        "ISO 8601 duration for dates and times, a whole number for a counter; default nothing",
        examples=["PT1H"],
    )
    cursor_origin: CursorOrigin | None = Field(
        default=None,
        description="who writes the cursor's values: transaction (the source's server, inside the "
        "writing transaction, as DEFAULT now() does), application (anybody else) or auto (the "
        "default: transaction where the source's catalog proves it)",
        examples=["application"],
    )
    settle_delay: Wait | None = Field(
        default=None,
        description="how late an application may commit a row after the time that it stamps on it; "
        "younger rows wait for a later run: seconds or ISO 8601",
        examples=["PT5M"],
    )
    settle_timeout: Wait | None = Field(
        default=None,
        description="how long extract waits for open transactions of the source before it fails and "
        "names them: seconds or ISO 8601",
        examples=["PT10M"],
    )
    settle_ignore: tuple[Name, ...] | None = Field(
        default=None,
        description="a list of the source's roles that never write into the table, so that nobody "
        "waits for their transactions",
        examples=["[reporting]"],
    )
    open_window: OpenWindow | None = Field(
        default=None,
        description="what becomes of an interval that has not ended: refuse it (the default), or clamp "
        "it, which loads it up to where no more rows can be added and counts no more as loaded",
        examples=["clamp"],
    )
    schema_contract: SchemaContract | None = Field(
        default=None,
        description="what becomes of a column that the target lacks: freeze (the default: the load is refused, with the "
        "statement to approve), evolve (it is added, and columns are widened where that rewrites no table) or "
        "discard_column (it is left out)",
        examples=["evolve"],
    )
    on_empty: OnEmpty | None = Field(
        default=None,
        description="what becomes of a window without a row: publish it like any other (the default), "
        "skip what follows (the window counts as loaded) or fail",
        examples=["skip"],
    )
    null_cursor: NullCursor | None = Field(
        default=None,
        description="what becomes of rows without a cursor value, which no window holds: fail (the "
        "default: any such row fails the load), include (entities: they come with every window, merged "
        "by key) or sweep (entities: after each publish a load of their own merges them by key)",
        examples=["sweep"],
    )
    columns: tuple[Column, ...] | None = Field(
        default=None, description="a list of the columns to read; default all"
    )
    rename: dict[Column, Column] | None = Field(
        default=None,
        description="the columns' names in the target by their names in the source",
        examples=["{tail_number: tailnum}"],
    )
    personal: dict[Column, Personal] | None = Field(
        default=None,
        description="what becomes of personal data before it leaves the source, by its column there: "
        "hash (a keyed hash of its text), null or drop (it is not read)",
        examples=["{email: hash, phone: null, notes: drop}"],
    )
    hash_conn_id: Name | None = Field(
        default=None,
        description="the id of the Airflow connection whose password is the key of hashed columns",
        examples=["etl_hash_key"],
    )
    types: dict[Column, Name] | None = Field(
        default=None,
        description="PostgreSQL types of columns by their names in the source, for sources other than "
        "PostgreSQL that tell them less well",
        examples=["{price: 'numeric(12,2)'}"],
    )
    zero_dates: ZeroDates = Field(
        default="fail",
        description="what becomes of MySQL's 0000-00-00: fail or null",
        examples=["null"],
    )
    on_conversion_error: OnConversionError | None = Field(
        default=None,
        description="what becomes of a row that the target's types cannot hold exactly: fail (the default: the load "
        "fails) or quarantine (the row becomes a dead letter)",
        examples=["quarantine"],
    )
    row_security: Literal["refuse", "apply"] | None = Field(
        default=None,
        description="refuse a PostgreSQL source whose row security may hide rows from the role (the "
        "default), or apply it: the rows that the role sees are the ones that are meant",
        examples=["apply"],
    )
    slice_rows: Count | None = Field(
        default=None,
        description="how many rows a window may have before it is staged in slices of about so many, "
        "so that a retry goes on behind the last one; 0 stages every window in one piece",
        examples=["1000000"],
    )
    shards: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        default=None,
        description="how many slices are read at once, by sessions that share one snapshot; default 1",
        examples=["4"],
    )
    timezone: Zone | None = Field(
        default=None,
        description="the IANA zone whose wall clock a cursor without time zone shows; "
        "default the pipeline's",
    )
    checksum: Flag = Field(default=False, description="true to compare a checksum of both sides")


class Transform(_Model):
    """What is made of the batch before it is checked."""

    # None leaves a value to the operator, which has the defaults.
    sql: Name | None = Field(
        default=None,
        description="a SELECT over the relation batch, run in the target's database, whose output is the new batch "
        "(templated)",
        examples=['"SELECT * FROM batch WHERE amount > 0"'],
    )
    sql_file: Name | None = Field(
        default=None,
        description="the name of a file with the SELECT, relative to the pipeline's file (templated)",
    )
    python: Annotated[str, AfterValidator(_function)] | None = Field(
        default=None,
        description="a function over pyarrow record batches, as package.module:function",
        examples=["shop.prices:to_euro"],
    )
    parameters: dict[Parameter, Scalar | list[Scalar]] | None = Field(
        default=None,
        description="values by name: :name in the SELECT stands for one, a function gets them as keyword arguments "
        "(templated)",
        examples=["{rate: 1.19}"],
    )
    on_error: OnError | None = Field(
        default=None,
        description="what an exception of the function about its rows does: fail (the default), set_aside_batch (all "
        "rows of that call go to the dead letters) or set_aside_row (those that raise by themselves)",
        examples=["set_aside_row"],
    )
    max_dead_share: Annotated[float, Field(strict=True, ge=0, le=1)] | None = Field(
        default=None,
        description="the share of the batch, 0 to 1, that may be set aside before the load fails; default 0.1",
        examples=["0.01"],
    )
    max_dead_rows: Count | None = Field(
        default=None,
        description="how many rows may be set aside, beside the share",
        examples=["1000"],
    )
    batch_rows: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        default=None,
        description="how many rows the function gets at once; default 50000",
        examples=["10000"],
    )
    as_text: tuple[Column, ...] | None = Field(
        default=None,
        description="a list of columns that the function gets and gives as PostgreSQL's text, for values that Arrow "
        "cannot hold, such as infinity",
        examples=["[valid_to]"],
    )


class Partition(_Model):
    """How the target is partitioned."""

    column: Column = Field(description="the column of the partition key", examples=["time_hour"])
    every: Every = Field(description="the time that one partition holds", examples=["month"])
    timezone: Zone | None = Field(
        default=None,
        description="the IANA zone whose midnight divides partitions; default the pipeline's",
    )


class Target(_Model):
    """Where the rows go and how they become visible."""

    conn_id: Name = Field(
        description="the id of the Airflow connection", examples=["etl_warehouse"]
    )
    table: Table = Field(description="the table as schema.table", examples=["analytics.flights"])
    partition: Partition | None = Field(
        default=None,
        description="how the table is partitioned, so that missing partitions can be made",
        examples=["{column: time_hour, every: month}"],
    )
    strategy: Strategy = Field(
        default=Strategy.AUTO,
        description="how rows become visible: auto (chosen by kind and window), swap (events: whole "
        "partitions are exchanged), swap_merge (partitions are built anew from what stays and the batch, and "
        "exchanged), delete_insert (events: the window's rows are replaced in place), "
        "merge (entities: updated, inserted and deleted by key), append (events or snapshots: rows are added, "
        "once), scd2 (every version of a row is kept) or replace (the whole table is compared, and the "
        "difference written)",
    )
    keys: tuple[Column, ...] = Field(
        default=(),
        description="a list of the columns that identify a row; default the table's primary key",
    )
    delete_flag: Column | None = Field(
        default=None,
        description="the column that says that a row was deleted: true, a date or time that is not NULL, or one of "
        "delete_values; for entities",
        examples=["deleted_at"],
    )
    deletes: Deletes = Field(
        default=Deletes.HARD,
        description="hard takes such rows out of the target (scd2 ends their last version), soft writes them with "
        "their flag",
    )
    delete_values: tuple[str, ...] = Field(
        default=(),
        description="a list of the flag's values that mean deleted, as text",
        examples=["[D]"],
    )
    load_id_column: Column | None = Field(
        default=None,
        description="the target's column (uuid or text) that append fills with the load's id, so that a window can be "
        "loaded again",
        examples=["load_id"],
    )
    valid_from: Column = Field(
        default="valid_from",
        description="the target's column from which on a version is true, for scd2",
    )
    valid_to: Column = Field(
        default="valid_to",
        description="the target's column up to which a version is true, NULL while it still is, for scd2",
    )
    is_current: Column | None = Field(
        default=None,
        description="the target's boolean column that marks the versions that are true now, for scd2",
    )
    max_shrink: Annotated[float, Field(strict=True, ge=0, le=1)] = Field(
        default=0.5,
        description="the share of its rows, 0 to 1, that a publish may lose before it is stopped",
    )
    keep_versions: Count = Field(
        default=1,
        description="how many replaced versions of a swapped partition are kept for a rollback",
    )
    keep_previous: Wait = Field(
        default=timedelta(days=7),
        description="how long they are kept at most: seconds or ISO 8601",
        examples=["P7D"],
    )
    keep_bytes: Count | None = Field(
        default=None,
        description="how many bytes those of all partitions of the table may take on disk together; the newest are kept",
    )
    lock_budget: Annotated[Duration, Field(gt=timedelta(0), le=timedelta(seconds=10))] = Field(
        default=timedelta(milliseconds=300),
        description="how long readers may wait for one try of a publish: seconds, at most 10",
        examples=["0.3"],
    )
    lock_deadline: Annotated[Duration, Field(gt=timedelta(0))] = Field(
        default=timedelta(minutes=30),
        description="how long a publish tries again before its task fails: seconds or ISO 8601",
        examples=["PT30M"],
    )
    on_lock_deadline: OnLockDeadline = Field(
        default=OnLockDeadline.FAIL,
        description="what follows then: fail, or merge to write in place, which waits for no reader",
    )
    old_snapshot_deadline: Wait = Field(
        default=timedelta(minutes=30),
        description="how long swap_merge waits for transactions that began before it built the partitions, and "
        "would find them empty: seconds or ISO 8601",
        examples=["PT30M"],
    )
    on_old_snapshot: OnOldSnapshot = Field(
        default=OnOldSnapshot.FAIL,
        description="what follows then: fail, or publish all the same",
    )
    readers_on_standby: Flag = Field(
        default=False,
        description="true where streaming standbys have readers, whom the replay of a swap stops or cancels: "
        "auto then writes in place",
    )
    audit: Literal["required", "none"] = Field(
        default="required", description="required, or none to publish unaudited, which is recorded"
    )

    @property
    def filled_by_publish(self) -> tuple[str, ...]:
        """Columns that the source need not give."""
        if self.strategy is Strategy.SCD2:
            own = (self.valid_from, self.valid_to, self.is_current)
            return tuple(column for column in own if column is not None)
        return () if self.load_id_column is None else (self.load_id_column,)


class Quality(_Model):
    """What the batch must satisfy before anybody sees it."""

    expectations: tuple[Expectation, ...] = Field(
        default=(),
        description="a list of {type, kwargs, severity}, as Great Expectations writes them",
    )
    suite: Name | None = Field(
        default=None,
        description="the name of a suite's JSON or YAML file, relative to the pipeline's file, or gx:NAME, a suite of "
        "the Great Expectations project (gx/) beside the pipeline's file or in a folder above it",
        examples=["suites/flights.json"],
    )
    engine: Engine | None = Field(
        default=None,
        description="auto (the default: SQL, and Great Expectations for what SQL cannot say), sql or gx",
        examples=["sql"],
    )
    result_format: ResultFormat | None = Field(
        default=None,
        description="BASIC (the default: counts, and a few values of failing rows in the ledger) or BOOLEAN_ONLY",
        examples=["BOOLEAN_ONLY"],
    )


class Stream(_Model):
    """One source that feeds one target."""

    stream: Annotated[str, AfterValidator(_stream_id)] = Field(
        description="a short lower-case id that never changes", examples=["flights"]
    )
    kind: Kind = Field(
        description="events (rows never change), entities (rows change, told apart by a key) or "
        "snapshots (small, whole table each time)",
        examples=["events"],
    )
    source: Source = Field(
        description="a mapping with conn_id and table",
        examples=["{conn_id: etl_source, table: public.flights}"],
    )
    target: Target = Field(
        description="a mapping with conn_id and table",
        examples=["{conn_id: etl_warehouse, table: analytics.flights}"],
    )
    transform: Transform | None = Field(
        default=None,
        description="a mapping with sql, sql_file or python: the batch is staged as the source has it, and the "
        "transform makes of it what the target gets",
        examples=['{sql: "SELECT id, at, lower(email) AS email FROM batch"}'],
    )
    quality: Quality = Field(
        default=Quality(),
        description="a list of expectations, or where a suite of them is: a file, or gx:NAME",
        examples=["suites/flights.json"],
    )
    max_dead_share: Annotated[float, Field(strict=True, ge=0, le=1)] | None = Field(
        default=None,
        description="the share of a load's rows, 0 to 1, that may be set aside before the load fails; default 0.1",
        examples=["0.01"],
    )
    max_dead_rows: Count | None = Field(
        default=None,
        description="how many of a load's rows may be set aside at most; default any number within max_dead_share",
        examples=["1000"],
    )

    @property
    def window(self) -> WindowMode:
        """Which part of the source one run reads."""
        default = WindowMode.INTERVAL if self.kind is Kind.EVENTS else WindowMode.FULL
        return self.source.window or default

    @property
    def source_text(self) -> str:
        """The table or the SELECT."""
        return self.source.table or self.source.query or ""

    @property
    def selection(self) -> Selection:
        """The columns that are read, with their names in the target and what becomes of them."""
        source = self.source
        return Selection(source.columns, source.rename or {}, source.personal or {})

    @property
    def target_cursor(self) -> str | None:
        """How the target calls the cursor."""
        return None if self.source.cursor is None else self.selection.name_of(self.source.cursor)

    @property
    def null_cursor(self) -> NullCursor:
        """What becomes of rows without a cursor value."""
        return self.source.null_cursor or NullCursor.FAIL

    @field_validator("quality", mode="before")
    @classmethod
    def _bare_list(cls, quality: object) -> object:
        if quality is None:
            return Quality()
        if isinstance(quality, str):
            return {"suite": quality}
        return {"expectations": quality} if isinstance(quality, list | tuple) else quality

    @model_validator(mode="after")
    def _consistent(self) -> Stream:
        if found := contradictions_of_stream(self):
            raise ContradictionError(found)
        return self


class Pipeline(_Model):
    """One DAG: when it runs and which streams it loads.

    Either one stream stands at the top level (``stream``, ``kind``, ``source``, ``target``,
    ``transform``, ``quality``), or ``streams`` lists several, and what stands at the top level is their default.
    """

    pipeline: Annotated[str, AfterValidator(_pipeline_id)] = Field(
        description="the DAG's id, equal to the file's name without its ending",
        examples=["flights"],
    )
    description: Name | None = Field(default=None, description="one sentence for the list of DAGs")
    owner: Name = Field(default="airflow", description="who is asked when it fails")
    tags: tuple[Annotated[str, AfterValidator(_tag)], ...] = Field(
        default=(), description="a list of tags for the list of DAGs"
    )
    schedule: Annotated[str, AfterValidator(_schedule)] | None = Field(
        default=None,
        description="a cron expression, a preset or null for runs by hand only",
        examples=['"@daily"'],
    )
    partitioned: Flag = Field(
        default=False,
        description="true for runs with a partition key, each of which loads the partition that has "
        "just ended in every target (interval windows only)",
    )
    timezone: Zone = Field(
        default="UTC",
        description="an IANA zone for schedule, dates, partitions",
        examples=["America/New_York"],
    )
    start_date: Moment | None = Field(
        default=None, description="the start of the first interval", examples=["2013-01-01"]
    )
    end_date: Moment | None = Field(
        default=None, description="the start of the last interval", examples=["2013-12-01"]
    )
    catchup: Flag = Field(
        default=False,
        description="true to load every interval since start_date (interval windows only)",
    )
    max_active_runs: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        default=None,
        description=f"how many runs may be active at once; default {_PARALLEL_RUNS} for interval "
        "windows, and 1 otherwise; watermark windows allow no other value than 1",
    )
    retries: Count = Field(default=3, description="how often a failed task is tried again")
    retry_delay: Annotated[Duration, Field(gt=timedelta(0))] = Field(
        default=timedelta(seconds=30),
        description="the wait before the first retry, doubled each time: seconds or ISO 8601",
        examples=["PT30S"],
    )
    execution_timeout: Annotated[Duration, Field(gt=timedelta(0))] = Field(
        default=timedelta(hours=6),
        description="the longest time one task may take: seconds or ISO 8601",
        examples=["PT6H"],
    )
    streams: tuple[Stream, ...] = Field(
        description="a list of {stream, kind, source, target, transform, quality}"
    )

    @property
    def cron(self) -> str | None:
        """The schedule as a cron expression."""
        return None if self.schedule is None else PRESETS.get(self.schedule, self.schedule)

    @property
    def starts_at(self) -> datetime | None:
        """``start_date`` as an instant; a date without zone is of the pipeline's wall clock."""
        return self.instant(self.start_date)

    @property
    def ends_at(self) -> datetime | None:
        """``end_date`` as an instant."""
        return self.instant(self.end_date)

    @property
    def active_runs(self) -> int:
        """How many runs may be active at once: windows of their own run side by side."""
        if self.max_active_runs is not None:
            return self.max_active_runs
        side_by_side = all(stream.window is WindowMode.INTERVAL for stream in self.streams)
        return _PARALLEL_RUNS if side_by_side else 1

    def instant(self, moment: datetime | None) -> datetime | None:
        """*moment* in the pipeline's zone, where it names no zone itself."""
        if moment is None or moment.tzinfo is not None:
            return moment
        return moment.replace(tzinfo=ZoneInfo(self.timezone))

    @model_validator(mode="before")
    @classmethod
    def _gather_streams(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        shared = {key: value for key, value in data.items() if key in Stream.model_fields}
        rest = {key: value for key, value in data.items() if key not in shared}
        if "streams" not in data:
            return rest | {"streams": [shared]}
        if "stream" in shared:
            raise ContradictionError(
                [
                    Finding(
                        ("stream",),
                        "stands beside streams",
                        "give every item of streams its own stream id, or drop the list",
                    )
                ]
            )
        streams = data["streams"]
        if isinstance(streams, list | tuple):
            streams = [
                deep_merged(shared, stream) if isinstance(stream, Mapping) else stream
                for stream in streams
            ]
        return rest | {"streams": streams}

    @model_validator(mode="after")
    def _consistent(self) -> Pipeline:
        if found := contradictions_of_pipeline(self):
            raise ContradictionError(found)
        return self


def deep_merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """*own* over *defaults*, mapping by mapping; lists and values of *own* replace whole."""
    merged = dict(defaults)
    for key, value in own.items():
        default = merged.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            merged[key] = deep_merged(default, value)
        else:
            merged[key] = value
    return merged
