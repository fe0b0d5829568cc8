"""One tree of errors; the type says whether another try can help, and its class what is to be done.

::

    EtlError
    ├── TransientError              another try may succeed: Airflow retries
    │   ├── ConnectionLost
    │   ├── LockBudgetExceeded      the swap could not get its locks before its deadline
    │   ├── NotSettled              an open source transaction may still add rows to the window
    │   ├── FenceConflict           another load moved the stream since this one was planned
    │   └── Superseded              the same load is being worked on by another try
    └── TerminalError               another try gives the same answer: fail at once
        ├── ConfigurationError      the pipeline, a parameter or a window is wrong
        ├── CatalogError            a table, column, type or privilege is missing or does not fit
        ├── ContractError           source, batch and target do not agree with each other
        ├── StateError              ledger or watermark are unreadable or contradict each other
        ├── DataError               the rows themselves cannot be carried or stored
        ├── TransformFailed         the code of a transform is wrong
        ├── QualityGateFailed       the audit rejected the batch
        ├── ShrinkBrake             the publish would lose more rows than allowed
        └── Stopped                 the task was told to stop
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import ClassVar


class ErrorClass(StrEnum):
    """What follows from an error: another try, setting rows aside where that was asked for, or the end."""

    TRANSIENT = "transient"
    DATA = "data"
    FATAL = "fatal"


class EtlError(Exception):
    """What went wrong, where, and what to do next.

    :param what: one sentence that names the thing; never a row's content, never a secret.
    :param remedy: the next step for the person who reads this at night.
    """

    error_class: ClassVar[ErrorClass] = ErrorClass.FATAL
    #: The server's code, where a server's error was translated.
    sqlstate: str | None = None
    #: The function of the database in whose body that happened, such as a trigger's.
    function: str | None = None

    def __init__(self, what: str, *, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return self.what if self.remedy is None else f"{self.what}\nWhat to do: {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(kind: type[EtlError], state: dict[str, object]) -> EtlError:
    error = kind.__new__(kind)
    error.__dict__.update(state)
    error.args = (state["what"],)
    return error


class TransientError(EtlError):
    """Another try may succeed."""

    error_class = ErrorClass.TRANSIENT


class ConnectionLost(TransientError):
    """A server ended the connection, restarted, or could not be reached."""


class LockBudgetExceeded(TransientError):
    """The locks of a publish were not granted before the deadline; the load stays ``validated``."""


class NotSettled(TransientError):
    """An open source transaction may still add rows below the end of the window."""


class FenceConflict(TransientError):
    """The stream moved since this load was planned; the next try plans anew."""


class Superseded(TransientError):
    """Another try of the same load is at work or has taken over."""


class TerminalError(EtlError):
    """Another try gives the same answer."""


class ConfigurationError(TerminalError):
    """A pipeline, a parameter or a window is wrong."""


class CatalogError(TerminalError):
    """A table, column, type or privilege is missing or does not fit."""


class ContractError(TerminalError):
    """Source, staged batch and target do not agree."""


class StateError(TerminalError):
    """Ledger or watermark are unreadable or contradict each other."""


class DataError(TerminalError):
    """The rows themselves cannot be carried or stored."""

    error_class = ErrorClass.DATA


class TransformFailed(TerminalError):
    """The code of a transform is wrong, whatever the rows."""


class ShrinkBrake(TerminalError):
    """The publish would lose more rows than allowed."""


class Stopped(TerminalError):
    """The task was told to stop; nothing was committed after that."""


class QualityGateFailed(TerminalError):
    """The audit rejected the batch.

    :param failures: one line per failed critical expectation: name, column, count and share.
    """

    error_class = ErrorClass.DATA

    def __init__(
        self, what: str, *, failures: Sequence[str] = (), remedy: str | None = None
    ) -> None:
        super().__init__(what, remedy=remedy)
        self.failures = tuple(failures)

    def __str__(self) -> str:
        lines = [self.what, *(f"  - {failure}" for failure in self.failures)]
        if self.remedy is not None:
            lines.append(f"What to do: {self.remedy}")
        return "\n".join(lines)


#: Of the operating system, but not of the moment.
_MISSING = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_OF_THE_MOMENT = (OSError, MemoryError)
_OF_THE_CODE = (ImportError, NameError, SyntaxError, NotImplementedError, RecursionError)
_OF_THE_ROWS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    LookupError,
    TypeError,
    ValueError,
)


#: How libraries call it when somebody they talk to is away or slow; the database API of Python (PEP 249) has the
#: last two for what is not the caller's fault.
_OUTAGES = re.compile(
    "(Timeout|TimeoutError|TimeoutException|ConnectionError|ConnectError|NetworkError|TransportError|ProtocolError"
    "|IncompleteRead|BadStatusLine|MaxRetryError|ServiceUnavailable|ServiceUnavailableError|TooManyRequests"
    "|OperationalError|InterfaceError)$"
)

#: What a server of HTTP answers, beside its own faults, to those who should come again.
_TRY_AGAIN = (408, 425, 429)


def class_of_python(error: BaseException) -> ErrorClass | None:
    """The class of an error of Python's own, or of a library; ``None`` of one that says nothing by its type.

    What depends on the machine or the network is transient, what the code cannot do at all is fatal, and
    what an operation says of its operands is about the data, unless it was raised because of an outage:
    whose rows those are is not known then.
    """
    told = _told(error)
    if isinstance(getattr(error, "error_class", None), ErrorClass) or told is ErrorClass.FATAL:
        return told
    if any(_told(each) is ErrorClass.TRANSIENT for each in _behind(error)):
        return ErrorClass.TRANSIENT
    return told


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The errors because of which, or while handling which, *error* was raised, or of which it is a group."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield each
            yield from _behind(each)
    seen = {id(error)}
    current: BaseException | None = error
    while current is not None:
        context = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or context
        if current is None or id(current) in seen:
            return
        seen.add(id(current))
        yield current


def _told(error: BaseException) -> ErrorClass | None:
    """The class that the type of *error* tells."""
    told = getattr(error, "error_class", None)
    if isinstance(told, ErrorClass):
        return told
    if isinstance(error, (*_MISSING, *_OF_THE_CODE)):
        return ErrorClass.FATAL
    if isinstance(error, _OF_THE_MOMENT) or any(
        _OUTAGES.search(kind.__name__) for kind in type(error).__mro__
    ):
        return ErrorClass.TRANSIENT
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int) and (status >= 500 or status in _TRY_AGAIN):
        return ErrorClass.TRANSIENT
    return ErrorClass.DATA if isinstance(error, _OF_THE_ROWS) else None
