"""The use case *publish*: an audited batch becomes what readers see, all of it or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Protocol

from airflow_etl_provider.core.errors import (
    ConfigurationError,
    EtlError,
    LockBudgetExceeded,
    ShrinkBrake,
)
from airflow_etl_provider.core.load import (
    Kind,
    Manifest,
    Published,
    RunInfo,
    Strategy,
    StreamPosition,
)
from airflow_etl_provider.core.ports import EventLog, Stop, WatermarkStore
from airflow_etl_provider.core.watermark import follow

#: Where a load changes at least this share of the rows of the partitions that it touches, building them
#: anew is quicker than writing in place, and leaves no dead rows behind (measured: ``make bench``).
REBUILD_SHARE = 0.25
#: Below so many rows in place is quick enough, whatever the share.
REBUILD_ROWS = 50_000


#: Strategies that take rows out by a flag.
_BY_FLAG = (Strategy.MERGE, Strategy.SWAP_MERGE, Strategy.SCD2)
_EXCHANGES = (Strategy.SWAP, Strategy.SWAP_MERGE)


class OnLockDeadline(StrEnum):
    """What follows when readers hold their locks up to the deadline: ``merge`` writes in place."""

    FAIL = "fail"
    MERGE = "merge"


class OnOldSnapshot(StrEnum):
    """What follows when snapshots older than a new partition outlast their deadline."""

    FAIL = "fail"
    PUBLISH = "publish"


class Deletes(StrEnum):
    """What becomes of a row that its flag calls deleted: ``soft`` keeps it, with the flag."""

    HARD = "hard"
    SOFT = "soft"


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """How a publish may behave.

    :param keys: unique columns for ``replace``; empty takes the batch's keys, then the primary key.
    :param delete_flag: column that says that a row was deleted: true, a time, or one of *delete_values*.
    :param load_id_column: column of the target that ``append`` fills with the load's id.
    :param valid_from, valid_to: columns of the target that ``scd2`` fills; NULL is an open end.
    :param is_current: boolean column of the target that ``scd2`` fills, if there is one.
    :param max_shrink: largest share of the rows it replaces that a publish may lose, 0 to 1.
    :param lock_budget: longest time one attempt may spend waiting for and holding table locks.
    :param lock_deadline: how long attempts go on.
    :param on_lock_deadline: what follows then: fail, or write in place, which waits for no reader.
    :param old_snapshot_deadline: how long transactions are waited for that would find a new partition empty.
    :param on_old_snapshot: what follows then: fail, or publish all the same.
    :param readers_on_standby: streaming standbys have readers, whom the replay of a swap stops or cancels:
        ``auto`` does not swap.
    :param keep_versions: replaced versions of a partition that stay, detached, for a rollback.
    :param keep_previous: how long they stay at most; looked at by the janitor, and after every publish that exchanges
        partitions of the table: one that writes in place makes no version, and leaves those there are to the janitor.
        Versions of other streams go by what the last of those was told.
    :param keep_bytes: what those of all partitions may take on disk together, in bytes; the newest stay.
    """

    strategy: Strategy = Strategy.AUTO
    keys: tuple[str, ...] = ()
    delete_flag: str | None = None
    deletes: Deletes = Deletes.HARD
    delete_values: tuple[str, ...] = ()
    load_id_column: str | None = None
    valid_from: str = "valid_from"
    valid_to: str = "valid_to"
    is_current: str | None = None
    max_shrink: float = 0.5
    lock_budget: timedelta = timedelta(milliseconds=300)
    lock_deadline: timedelta = timedelta(minutes=30)
    on_lock_deadline: OnLockDeadline = OnLockDeadline.FAIL
    old_snapshot_deadline: timedelta = timedelta(minutes=30)
    on_old_snapshot: OnOldSnapshot = OnOldSnapshot.FAIL
    readers_on_standby: bool = False
    keep_versions: int = 1
    keep_previous: timedelta = timedelta(days=7)
    keep_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_shrink <= 1:
            raise ConfigurationError(f"max_shrink is a share from 0 to 1, not {self.max_shrink}")
        if self.lock_budget <= timedelta(0) or self.lock_deadline < self.lock_budget:
            raise ConfigurationError(
                f"lock_budget ({self.lock_budget}) must be positive and at most lock_deadline ({self.lock_deadline})"
            )
        if self.old_snapshot_deadline < timedelta(0):
            raise ConfigurationError(
                f"old_snapshot_deadline ({self.old_snapshot_deadline}) must not be negative"
            )
        if self.keep_versions < 0:
            raise ConfigurationError(
                f"keep_versions counts versions, {self.keep_versions} is not a count"
            )
        if self.keep_previous < timedelta(0):
            raise ConfigurationError(f"keep_previous is a length of time, not {self.keep_previous}")
        if self.keep_bytes is not None and self.keep_bytes < 0:
            raise ConfigurationError(f"keep_bytes is a number from 0 on, not {self.keep_bytes}")

    def about_rows(self) -> dict[str, Any]:
        """What decides where a row goes, for the ledger: a replay of rows that were set aside does the same."""
        return {
            "keys": list(self.keys),
            "delete_flag": self.delete_flag,
            "deletes": self.deletes.value,
            "delete_values": list(self.delete_values),
            "load_id_column": self.load_id_column,
            "valid_from": self.valid_from,
            "valid_to": self.valid_to,
            "is_current": self.is_current,
        }

    def about_versions(self) -> dict[str, Any]:
        """What decides how long replaced versions stay, for the ledger: others who clean keep to it."""
        return {
            "keep_versions": self.keep_versions,
            "keep_previous": self.keep_previous.total_seconds(),
            "keep_bytes": self.keep_bytes,
        }

    @classmethod
    def of_rows(cls, data: Mapping[str, Any]) -> PublishOptions:
        """Options that treat rows as :meth:`about_rows` says; everything else is the default."""
        return cls(
            keys=tuple(data["keys"]),
            delete_flag=data["delete_flag"],
            deletes=Deletes(data["deletes"]),
            delete_values=tuple(data["delete_values"]),
            load_id_column=data["load_id_column"],
            valid_from=data["valid_from"],
            valid_to=data["valid_to"],
            is_current=data["is_current"],
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """What a publish does to the rows of the target."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    unchanged: int = 0
    stale: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What ``auto`` goes by.

    :param partitioned: whether the target is.
    :param touched: rows of the target that the batch adds, changes or replaces, about.
    :param present: rows of the partitions that it touches, about.
    :param obstacles: why their partitions cannot be exchanged, or should not be.
    :param unswappable: what to say of a batch without partitions that is to be swapped.
    """

    partitioned: bool = False
    touched: int = 0
    present: int = 0
    obstacles: tuple[str, ...] = ()
    unswappable: EtlError | None = None

    @property
    def share(self) -> float:
        return self.touched / max(self.present, self.touched, 1)


class Publisher(Protocol):
    """The target database as publish sees it."""

    def facts(self, manifest: Manifest, options: PublishOptions) -> Facts:
        """What decides how the batch is published best, measured."""
        ...

    def publish(
        self,
        manifest: Manifest,
        strategy: Strategy,
        options: PublishOptions,
        *,
        stop: Stop,
        log: EventLog,
    ) -> Published:
        """Make the batch visible and record it, in one transaction."""
        ...

    def tidy(self, published: Published, manifest: Manifest, options: PublishOptions) -> None:
        """Drop what nobody needs any more: replaced versions beyond the kept ones."""
        ...

    def position(self, stream: str) -> StreamPosition: ...

    def fail(self, load_id: str, error: str) -> None: ...


def choose_strategy(
    asked: Strategy, manifest: Manifest, facts: Facts | None = None
) -> tuple[Strategy, str]:
    """The strategy for a batch, and why.

    :param facts: what ``auto`` goes by; without any, by kind and window alone.
    :raises ConfigurationError: the strategy asked for would lose or double rows, or none fits.
    """
    _refuse(asked, manifest, facts or Facts())
    if asked is not Strategy.AUTO:
        return asked, "asked for"
    facts = facts or Facts()
    if manifest.partitions:
        if facts.obstacles:
            return Strategy.DELETE_INSERT, f"no partition is exchanged: {facts.obstacles[0]}"
        return Strategy.SWAP, "the window is made of whole partitions, read anew"
    windowed = not manifest.window.is_full
    if manifest.kind is Kind.EVENTS and windowed:
        return _by_share(
            Strategy.DELETE_INSERT, "events of a window that is not made of whole partitions", facts
        )
    if manifest.kind is Kind.ENTITIES:
        return _by_share(Strategy.MERGE, "entities go by key", facts)
    if windowed:
        raise ConfigurationError(
            f"stream {manifest.stream!r} holds snapshots, but only {manifest.window} was read: nothing says which other "
            f"rows of {manifest.target} are still true",
            remedy="extract with window='full', or declare kind='events' or 'entities'",
        )
    if facts.partitioned:
        return Strategy.DELETE_INSERT, "everything was read, for a partitioned table"
    return Strategy.REPLACE, "everything was read"


def _by_share(in_place: Strategy, why: str, facts: Facts) -> tuple[Strategy, str]:
    """In place, unless so much of the touched partitions changes that building them anew is quicker."""
    if not facts.partitioned:
        return in_place, why
    if facts.obstacles:
        return in_place, f"{why}; no partition is exchanged: {facts.obstacles[0]}"
    if facts.touched < REBUILD_ROWS:
        return in_place, why
    measured = f"about {facts.touched:,} of {max(facts.present, facts.touched):,} rows ({facts.share:.0%}) of the touched partitions change"
    if facts.share < REBUILD_SHARE:
        return in_place, f"{why}; {measured}"
    return Strategy.SWAP_MERGE, measured


def _refuse(asked: Strategy, manifest: Manifest, facts: Facts) -> None:
    windowed = not manifest.window.is_full
    if asked is Strategy.SWAP and not manifest.partitions and facts.unswappable is not None:
        raise facts.unswappable
    if asked is Strategy.SWAP and not manifest.partitions:
        raise ConfigurationError(
            f"strategy 'swap' would replace partitions of {manifest.target} that stream {manifest.stream!r} did not "
            "read whole, and lose the rest of their rows",
            remedy="swap takes events whose window is made of whole partitions: kind='events', the partition column "
            "as cursor, and a schedule as long as a partition; use 'swap_merge' or 'delete_insert' for a part of a "
            "partition",
        )
    if asked in (Strategy.SWAP_MERGE, Strategy.MERGE) and manifest.kind is Kind.SNAPSHOTS:
        raise ConfigurationError(
            f"strategy {asked.value!r} would keep rows of {manifest.target} that are gone from the snapshot of stream "
            f"{manifest.stream!r}",
            remedy="use strategy='delete_insert' for a partitioned table, 'replace' for any other, or declare "
            "kind='entities' or 'events'",
        )
    if asked is Strategy.APPEND and manifest.kind is Kind.ENTITIES:
        raise ConfigurationError(
            f"strategy 'append' would add every version of a row to {manifest.target}: the rows of stream "
            f"{manifest.stream!r} are {manifest.kind}",
            remedy="use strategy='scd2' to keep the versions of a row, or 'merge' to keep the last",
        )
    if asked is Strategy.SCD2 and manifest.kind is Kind.EVENTS:
        raise ConfigurationError(
            f"strategy 'scd2' keeps versions of rows that change, and those of stream {manifest.stream!r} are events",
            remedy="declare kind='entities' (or 'snapshots'), or use strategy='append'",
        )
    if asked is Strategy.REPLACE and windowed:
        raise ConfigurationError(
            f"strategy 'replace' would delete every row of {manifest.target} outside {manifest.window}",
            remedy="extract with window='full', or use strategy='swap', 'delete_insert' or 'merge'",
        )
    if asked is Strategy.DELETE_INSERT and windowed and manifest.kind is not Kind.EVENTS:
        raise ConfigurationError(
            f"strategy 'delete_insert' would drop rows of {manifest.target} that changed after {manifest.window}: "
            f"the rows of stream {manifest.stream!r} are {manifest.kind}, not events",
            remedy="use strategy='merge', which goes by key",
        )


def brake(
    manifest: Manifest, what: str, *, before: int, lost: int, options: PublishOptions
) -> None:
    """:raises ShrinkBrake: the publish would lose more than the allowed share of *before* rows."""
    if before and lost / before > options.max_shrink:
        raise ShrinkBrake(
            f"publishing load {manifest.load_id} would take {lost:,} of {before:,} rows ({lost / before:.0%}) from "
            f"{what}; at most {options.max_shrink:.0%} may go",
            remedy=f"look at the batch in {manifest.staging} and at the source; if that really shrank, trigger a run for "
            "the same window (window_low, window_high) with the param max_shrink, which then counts for that run alone",
        )


def publish(
    manifest: Manifest,
    options: PublishOptions,
    *,
    run: RunInfo,
    publisher: Publisher,
    store: WatermarkStore,
    stop: Stop,
    log: EventLog,
) -> Published:
    """Publish *manifest* exactly once: a load that is already published is returned as it was.

    The stored watermark follows after the commit; if that fails, the next load of the stream repairs it.
    """
    asked = options.strategy
    measured = asked is Strategy.AUTO or (asked is Strategy.SWAP and not manifest.partitions)
    facts = publisher.facts(manifest, options) if measured else None
    strategy, why = choose_strategy(asked, manifest, facts)
    by_flag = strategy in _BY_FLAG and not (
        # Events go by window, not by key.
        strategy is Strategy.SWAP_MERGE and manifest.kind is Kind.EVENTS
    )
    if options.delete_flag is not None and not by_flag:
        raise ConfigurationError(
            f"strategy {strategy.value!r} would write rows of {manifest.target} that {options.delete_flag!r} calls deleted",
            remedy="declare kind='entities' and use strategy='merge', 'swap_merge' or 'scd2', or leave delete_flag out and such "
            "rows in the source",
        )
    log(
        "publish started",
        load_id=manifest.load_id,
        table=str(manifest.target),
        strategy=strategy.value,
        why=why,
    )
    try:
        try:
            published = publisher.publish(manifest, strategy, options, stop=stop, log=log)
        except LockBudgetExceeded as blocked:
            if strategy not in _EXCHANGES or options.on_lock_deadline is OnLockDeadline.FAIL:
                raise
            strategy = Strategy.DELETE_INSERT if manifest.kind is Kind.EVENTS else Strategy.MERGE
            log(
                "no partition could be exchanged up to the deadline: written in place, as told",
                strategy=strategy.value,
                why=blocked.what,
            )
            published = publisher.publish(manifest, strategy, options, stop=stop, log=log)
    except EtlError as error:
        # The warehouse may be what was lost: the first error is the one to tell.
        with suppress(EtlError):
            publisher.fail(manifest.load_id, error.what)
        raise
    if published.overtaken_by is not None:
        log(
            "a load that is newer has published this window; nothing to do",
            load_id=published.load_id,
            newer=published.overtaken_by,
        )
        publisher.tidy(published, manifest, options)
        return published
    log(
        "already published" if published.already else "published",
        load_id=published.load_id,
        table=str(published.target),
        strategy=published.strategy.value,
        inserted=published.rows_inserted,
        updated=published.rows_updated,
        deleted=published.rows_deleted,
        unchanged=published.rows_unchanged,
        stale=published.rows_stale,
        partitions=[partition.name for partition in published.partitions],
        lock_ms=round(published.lock_ms, 1),
        watermark=published.position.position,
    )
    if published.rows_stale:
        log(
            "rows of the target were newer than the batch's and stay as they are: if the source was restored, or "
            "its cursor goes backwards, load the window anew after a rewind",
            table=str(published.target),
            rows=published.rows_stale,
        )
    if manifest.window.is_range:
        follow(
            store,
            manifest.stream,
            lambda: publisher.position(manifest.stream),
            log=log,
            run=run,
            load_id=published.load_id,
            rows=published.rows_inserted + published.rows_updated,
        )
    publisher.tidy(published, manifest, options)
    return published
