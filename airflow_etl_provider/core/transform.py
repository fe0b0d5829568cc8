"""The use case *transform*: a staged batch is made into another one, typed like the target, before its audit."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from airflow_etl_provider.core.dead_letters import DeadLimits, listed
from airflow_etl_provider.core.errors import (
    ConfigurationError,
    DataError,
    ErrorClass,
    EtlError,
    StateError,
    Superseded,
    TransformFailed,
    TransientError,
    class_of_python,
)
from airflow_etl_provider.core.load import Load, LoadState, Manifest, RunInfo
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import EventLog, Stop

#: Rows of one Arrow record batch.
BATCH_ROWS = 50_000

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"

Made = TypeVar("Made")
Judge = Callable[[BaseException], ErrorClass | None]
"""Gives the class of any error; ``None`` of one that it does not know."""


class OnError(StrEnum):
    """What an exception that is about data does: ends the load, or sets rows aside.

    ``set_aside_batch`` takes all rows of the call that raised, ``set_aside_row`` halves them until those are
    found that raise by themselves.
    """

    FAIL = "fail"
    SET_ASIDE_BATCH = "set_aside_batch"
    SET_ASIDE_ROW = "set_aside_row"


@dataclass(frozen=True, slots=True)
class BySql:
    """A SELECT over the relation ``batch``.

    :param parameters: values by their names, which stand in the text as ``:name``.
    """

    text: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "sql"


@dataclass(frozen=True, slots=True)
class ByCallable:
    """A callable over Arrow record batches.

    :param function: takes a ``pyarrow.RecordBatch`` and gives one, or an iterable of them.
    :param name: how logs, errors and the ledger call it.
    :param as_text: columns that it takes and gives in PostgreSQL's text form.
    :param limits: how many rows may be set aside, those of extract included.
    :param judge: the classes of errors that it may raise.
    """

    function: Callable[[Any], Any]
    name: str
    on_error: OnError = OnError.FAIL
    batch_rows: int = BATCH_ROWS
    limits: DeadLimits = field(default_factory=DeadLimits)
    as_text: tuple[str, ...] = ()
    judge: Judge = class_of_python

    def __post_init__(self) -> None:
        if self.batch_rows < 1:
            raise ConfigurationError(f"batch_rows={self.batch_rows} counts from 1")


@dataclass(frozen=True, slots=True)
class TransformRequest:
    """What one transform task was asked to do.

    :param filled_by_publish: columns of the target that publish fills, so that the output need not have them.
    """

    load_id: str
    run: RunInfo
    how: BySql | ByCallable
    filled_by_publish: tuple[str, ...] = ()


class TransformArea(Protocol):
    """The target database as transform sees it."""

    def load(self, load_id: str) -> Load:
        """The load with its manifest, from the ledger.

        :raises StateError: the ledger does not know it.
        """
        ...

    def has(self, staging: TableName) -> bool: ...

    def transform(
        self, request: TransformRequest, current: Manifest, *, stop: Stop, log: EventLog
    ) -> Manifest:
        """Make a new staged table of the one that extract staged, and record it, in one transaction.

        :param current: the batch as the ledger has it; if that changes meanwhile, nothing is kept.
        """
        ...

    def fail(self, load_id: str, error: str) -> None: ...


def transform(
    request: TransformRequest, *, area: TransformArea, stop: Stop, log: EventLog
) -> Manifest:
    """Make the batch of a load anew from what extract staged, and return what there is now.

    A retry of a try that had got to its end returns what that made; a clear begins again, from the batch
    as extract staged it, whatever earlier transforms made of it. A load that is already published is left
    alone.

    :raises ConfigurationError, CatalogError, ContractError: before a row is read, the SQL or its output does
        not fit.
    :raises DataError: more rows would be set aside than allowed, or a value cannot be stored.
    :raises Superseded: another task moved the load on meanwhile; nothing of this one is kept.
    """
    load = area.load(request.load_id)
    current = load.manifest
    if current is None:
        raise StateError(
            f"load {request.load_id} has staged nothing", remedy="clear the extract task"
        )
    if load.state is LoadState.PUBLISHED:
        log(
            "already published; clear extract and downstream to load the window anew",
            load_id=load.load_id,
        )
        return current
    if load.state not in (LoadState.STAGED, LoadState.VALIDATED, LoadState.REJECTED):
        raise StateError(
            f"load {request.load_id} is {load.state}, so there is no batch to transform",
            remedy="clear extract and downstream to load the window anew",
        )
    if _is_done(request, load.state, current) and area.has(current.staging):
        log("batch already transformed by an earlier try", load_id=load.load_id, rows=current.rows)
        return current
    try:
        made = area.transform(request, current, stop=stop, log=log)
    except Superseded:
        # What the load is now is somebody else's.
        raise
    except EtlError as error:
        # The warehouse may be what was lost: the first error is the one to tell.
        with suppress(EtlError):
            area.fail(request.load_id, error.what)
        raise
    log(
        "batch transformed",
        load_id=made.load_id,
        staging=str(made.staging),
        rows_in=made.extracted.rows,
        rows_out=made.rows,
        rows_set_aside=0 if made.transformed is None else made.transformed.set_aside,
    )
    return made


def _is_done(request: TransformRequest, state: LoadState, current: Manifest) -> bool:
    """Whether an earlier try of this task got to its end.

    :raises ConfigurationError: another task has transformed the batch.
    """
    made = current.transformed
    if made is None:
        return False
    if made.task_id != request.run.task_id:
        raise ConfigurationError(
            f"load {request.load_id} was transformed by task {made.task_id!r}: a transform reads what extract staged, so "
            "a second one would undo the first",
            remedy="put both into one SELECT or one callable; if the task was renamed, clear extract and downstream",
        )
    return state is LoadState.STAGED and made.clear_number == request.run.clear_number


@dataclass(frozen=True, slots=True)
class Passed(Generic[Made]):
    """What a call made of the rows from *start* up to *stop*."""

    start: int
    stop: int
    made: Made


@dataclass(frozen=True, slots=True)
class SetAside:
    """Rows that a call raised for, and why; without any of their values."""

    start: int
    stop: int
    reason: str


def sift(
    rows: int, call: Callable[[int, int], Made], on_error: OnError, judge: Judge, name: str
) -> Iterator[Passed[Made] | SetAside]:
    """Call *call* for *rows* rows, and again for parts of them where it raised and *on_error* says so.

    In the order of the rows. An error that is not about data is never an excuse to set rows aside.

    :param call: what makes something of the rows from a start up to a stop.
    :param name: of what is called, for errors.
    """
    pending = [(0, rows)]
    while pending:
        start, stop = pending.pop()
        try:
            made = call(start, stop)
        except Exception as error:  # noqa: BLE001  (a callable may raise anything; its class decides)
            found = judge(error) or ErrorClass.DATA
            if found is not ErrorClass.DATA or on_error is OnError.FAIL:
                raise as_ours(error, found, name) from None
            if on_error is OnError.SET_ASIDE_ROW and stop - start > 1:
                middle = (start + stop) // 2
                # The last is the next.
                pending += [(middle, stop), (start, middle)]
                continue
            yield SetAside(start, stop, reason_of(error))
        else:
            yield Passed(start, stop, made)


def as_ours(error: Exception, found: ErrorClass, name: str) -> EtlError:
    """An error of a callable as one of ours; the text of what the callable raised may hold values of rows, and is
    left out.
    """
    if isinstance(error, EtlError) and not _foreign_frames(error):
        return error
    what = f"{name} raised {reason_of(error)}"
    if found is ErrorClass.TRANSIENT:
        return TransientError(what, remedy="Airflow retries by itself")
    if found is ErrorClass.DATA:
        return DataError(
            what,
            remedy="try the callable on rows of the staged table; mend it or the rows, or say on_error='set_aside_row', "
            "which keeps the rows that raise as dead letters",
        )
    return TransformFailed(what, remedy="mend the callable, then clear the task with downstream")


def reason_of(error: BaseException) -> str:
    """The class of an error and where the callable raised it; never its text, which may quote a row."""
    kind = type(error)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    frames = _foreign_frames(error)
    if not frames:
        # Raised by this package, whose words hold no values.
        return error.what if isinstance(error, EtlError) else name
    return f"{name} ({Path(frames[0].filename).name}:{frames[0].lineno} in {frames[0].name})"


def _foreign_frames(error: BaseException) -> list[traceback.FrameSummary]:
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_PACKAGE)
    ]


def too_many(
    name: str, reasons: Mapping[str, int], before: int, rows: int, broken: str
) -> DataError:
    """The error for more rows set aside than allowed.

    :param reasons: how many rows by reason, as far as they were counted.
    :param before: how many rows extract had set aside.
    :param rows: of the batch, those included.
    :param broken: which limit, as part of a sentence.
    """
    earlier = f", beside {before:,} that were before" if before else ""
    return DataError(
        f"{name} would set aside {sum(reasons.values()):,} or more of {rows:,} rows{earlier}, and {broken}; up to there "
        f"{listed(reasons)}",
        remedy="mend the callable or the rows, or allow more with max_dead_share and max_dead_rows; nothing was set "
        "aside",
    )
