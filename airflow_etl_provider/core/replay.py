"""The use case *replay*: dead letters come back through the conversion, audit and publish of their load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from airflow_etl_provider.core.dead_letters import Fault
from airflow_etl_provider.core.errors import (
    ConfigurationError,
    DataError,
    EtlError,
    Stopped,
    Superseded,
    TerminalError,
    TransientError,
)
from airflow_etl_provider.core.load import Kind, Manifest, Published, RunInfo, Strategy
from airflow_etl_provider.core.ports import AuditReport, EventLog, Stop
from airflow_etl_provider.core.publish import PublishOptions

Values = Mapping[str, str | None]
"""Texts by column of the batch; ``None`` is NULL."""


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """Which letters are to come back, and how they are mended.

    :param ids: letters of *stream*; ``None`` takes all that are pending.
    :param values: what columns are to hold in every row.
    :param corrections: the same for single rows, by the letter's id; these win.
    """

    stream: str
    run: RunInfo
    ids: tuple[int, ...] | None = None
    values: Values = field(default_factory=dict)
    corrections: Mapping[int, Values] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for values in (self.values, *self.corrections.values()):
            for column, text in values.items():
                if text is not None and not isinstance(text, str):
                    raise ConfigurationError(
                        f"the correction of column {column!r} is a {type(text).__name__}, not a text",
                        remedy="write values as the server prints them, or null",
                    )
        unasked = sorted(set(self.corrections).difference(self.ids or self.corrections))
        if unasked:
            raise ConfigurationError(
                f"letter {unasked[0]} has a correction and is not among those that are replayed",
                remedy="name it too, or leave the correction out",
            )


@dataclass(frozen=True, slots=True)
class Staged:
    """What became of the letters of one load on their way into a batch.

    :param manifest: the batch of those that go on; ``None`` if none does.
    """

    manifest: Manifest | None
    strategy: Strategy
    options: PublishOptions
    failed: int = 0
    superseded: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Findings:
    """What the audit says of a replay: faults of single rows, and reasons that hold for the batch as a whole."""

    report: AuditReport
    faults: Sequence[Fault]
    of_all: Sequence[str]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of letters.

    :param superseded: the target has a newer version of the row, or a later load has read it again.
    :param failed: not good yet: still pending, with the new reason and one more retry.
    :param waiting: not replayed now: the window is to be loaded again, or a transform has to make the row anew.
    :param others: by their status, letters that were asked for and are not pending.
    :param refused: still pending as they were, because nothing of their load can be replayed now.
    :param errors: why, one for each such load.
    """

    stream: str
    replayed: int = 0
    superseded: int = 0
    failed: int = 0
    waiting: int = 0
    others: Mapping[str, int] = field(default_factory=dict)
    load_ids: tuple[str, ...] = ()
    refused: int = 0
    errors: tuple[TerminalError, ...] = ()

    def raise_refused(self) -> None:
        """:raises TerminalError: what stood in the way of the letters of a load, the first if there are several."""
        if self.errors:
            raise self.errors[0]

    def counts(self) -> dict[str, int]:
        return {
            "replayed": self.replayed,
            "superseded": self.superseded,
            "failed": self.failed,
            "waiting": self.waiting,
            "refused": self.refused,
        }

    def as_json(self) -> dict[str, Any]:
        """Numbers and ids of loads; nothing of any row."""
        return {
            "stream": self.stream,
            **self.counts(),
            "others": dict(self.others),
            "load_ids": list(self.load_ids),
        }


class ReplayArea(Protocol):
    """The target database as replay sees it."""

    def pending(
        self, stream: str, ids: Sequence[int] | None
    ) -> tuple[Sequence[tuple[str, Sequence[int]]], Mapping[str, int]]:
        """Pending letters by the load that set them aside, in the order of loads; others that were asked for.

        :raises ConfigurationError: a letter does not exist, or is another stream's.
        """
        ...

    def stage(
        self, request: ReplayRequest, origin: str, ids: Sequence[int], load_id: str
    ) -> Staged:
        """Make a batch of letters of the load *origin*, and take them from any replay that did not end.

        Those that cannot be converted fail again, those that were overtaken are superseded, in the same
        transaction.

        :raises ConfigurationError: a correction of a column that the batch has not, or of personal data.
        """
        ...

    def settle(self, manifest: Manifest, found: Findings) -> tuple[Manifest | None, int]:
        """Take the rows with faults out of the batch, whose letters fail again; what is left is validated.

        Returns the batch, ``None`` if nothing is left, and how many letters failed.
        """
        ...

    def publish(
        self, manifest: Manifest, staged: Staged, *, stop: Stop, log: EventLog
    ) -> Published: ...

    def give_up(self, manifest: Manifest, reason: str) -> Sequence[int] | None:
        """Abandon a replay and drop its batch; returns the letters that it had taken, pending again.

        ``None`` if it had ended already: another replay took its letters, or a load has settled them.
        """
        ...

    def fail(self, stream: str, ids: Sequence[int], reason: str) -> None:
        """Letters fail again."""
        ...


Audit = Callable[[Manifest], Findings]

#: How often letters that the target refuses are halved, to find those that are to blame. What is left together
#: then fails together, and is halved again when it is replayed the next time.
_MOST_HALVINGS = 7


def way_back(strategy: Strategy, kind: Kind, keys: Sequence[str]) -> tuple[Strategy, Kind]:
    """How rows join those that their load has published with *strategy*, and as what they are treated.

    By key where there is one: of an entity, because the newer version stays; of an event, because a second
    one would be a duplicate. Nothing else of the target changes, whatever the load had replaced.
    """
    if strategy is Strategy.SCD2:
        return Strategy.SCD2, Kind.ENTITIES
    if strategy is Strategy.APPEND or not keys:
        return Strategy.APPEND, kind
    return Strategy.MERGE, Kind.ENTITIES


def replay(
    request: ReplayRequest,
    *,
    area: ReplayArea,
    audit: Audit,
    new_id: Callable[[], str],
    stop: Stop,
    log: EventLog,
) -> Replayed:
    """Bring pending letters back, those of each load in a load of its own; each letter once, however often.

    A letter is marked in the transaction that publishes its row. Letters that fail again stay pending with
    the new reason, and hold up no other; neither do loads of which nothing can be replayed.

    :raises ConfigurationError: an unknown letter.
    :raises TransientError: another try takes up what this one has left.
    """
    by_load, others = area.pending(request.stream, request.ids)
    done = Replayed(request.stream, others=others)
    for origin, ids in by_load:
        try:
            done = _replay(request, origin, ids, done, area, audit, new_id, stop, log)
        except Stopped:
            raise
        except TerminalError as error:
            log("letters cannot be replayed", origin=origin, letters=len(ids), error=error.what)
            done = replace(done, refused=done.refused + len(ids), errors=(*done.errors, error))
    log("dead letters replayed", **done.as_json())
    return done


def _replay(
    request: ReplayRequest,
    origin: str,
    ids: Sequence[int],
    done: Replayed,
    area: ReplayArea,
    audit: Audit,
    new_id: Callable[[], str],
    stop: Stop,
    log: EventLog,
    halvings: int = 0,
) -> Replayed:
    if stop.is_set():
        raise Stopped(f"replaying letters of {request.stream} was stopped; what is published stays")
    load_id = new_id()
    staged = area.stage(request, origin, ids, load_id)
    done = replace(
        done,
        failed=done.failed + staged.failed,
        superseded=done.superseded + staged.superseded,
        waiting=done.waiting + staged.waiting,
    )
    if staged.manifest is None:
        return done
    try:
        manifest, failed = area.settle(staged.manifest, audit(staged.manifest))
        done = replace(done, failed=done.failed + failed)
        if manifest is None:
            return done
        published = area.publish(manifest, staged, stop=stop, log=log)
    except DataError as error:
        taken = area.give_up(staged.manifest, error.what)
        if taken is None:
            raise _taken(load_id) from error
        if len(taken) < 2 or halvings == _MOST_HALVINGS:
            # What was being done says nothing of the row.
            area.fail(request.stream, taken, error.what.partition(": ")[2] or error.what)
            return replace(done, failed=done.failed + len(taken))
        # One row may spoil it for all the others: halves tell which.
        middle = len(taken) // 2
        for part in (taken[:middle], taken[middle:]):
            done = _replay(
                request, origin, part, done, area, audit, new_id, stop, log, halvings + 1
            )
        return done
    except TransientError:
        # The next try takes the letters from this one.
        raise
    except EtlError as error:
        try:
            taken = area.give_up(staged.manifest, error.what)
        except EtlError:
            # The warehouse may be what was lost: the first error is the one to tell.
            raise error from None
        if taken is None:
            raise _taken(load_id) from error
        raise
    log(
        "letters replayed",
        load_id=load_id,
        origin=origin,
        rows=manifest.rows,
        strategy=published.strategy.value,
        stale=published.rows_stale,
    )
    return replace(done, replayed=done.replayed + manifest.rows, load_ids=(*done.load_ids, load_id))


def _taken(load_id: str) -> Superseded:
    return Superseded(
        f"another replay took the letters of load {load_id}, or another load has settled them",
        remedy="nothing to do: the next try finds what is left of them",
    )
