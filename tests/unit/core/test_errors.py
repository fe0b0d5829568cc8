"""Errors travel between processes whole, and their type says whether a retry helps."""

from __future__ import annotations

import copy
import http.client
import inspect
import pickle

import httpx
import pytest

from airflow_etl_provider.core import errors
from airflow_etl_provider.core.errors import (
    DataError,
    ErrorClass,
    EtlError,
    QualityGateFailed,
    TerminalError,
    TransientError,
    class_of_python,
)

KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EtlError)
]


def pickled(error):
    return pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [pickled, copy.copy, copy.deepcopy])
def test_an_error_survives_pickling(kind, copied):
    """Multiprocessing executors pickle errors: type, text, remedy and facts stay."""
    error = kind("what\nhappened", remedy="do this")
    again = copied(error)
    assert type(again) is kind
    assert (str(again), again.what, again.remedy, again.args) == (
        str(error),
        "what\nhappened",
        "do this",
        ("what\nhappened",),
    )


def test_the_failures_of_an_audit_survive_pickling():
    error = QualityGateFailed("rejected", failures=["a: 1 row", "b: 2 rows"], remedy="look")
    again = pickled(error)
    assert again.failures == ("a: 1 row", "b: 2 rows")
    assert str(again) == "rejected\n  - a: 1 row\n  - b: 2 rows\nWhat to do: look"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_transient_or_terminal_never_both(kind):
    if kind is not EtlError:
        assert issubclass(kind, TransientError) != issubclass(kind, TerminalError)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_the_class_that_its_type_says(kind):
    """Transient is what another try may mend; of what it may not, data is what rows are at fault for."""
    error = pickled(kind("x"))
    assert (error.error_class is ErrorClass.TRANSIENT) == issubclass(kind, TransientError)
    assert (error.error_class is ErrorClass.DATA) == issubclass(kind, DataError | QualityGateFailed)
    assert class_of_python(error) is error.error_class


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (ConnectionResetError(), ErrorClass.TRANSIENT),
        (TimeoutError(), ErrorClass.TRANSIENT),
        (OSError(28, "No space left on device"), ErrorClass.TRANSIENT),
        (MemoryError(), ErrorClass.TRANSIENT),
        (FileNotFoundError(), ErrorClass.FATAL),
        (PermissionError(), ErrorClass.FATAL),
        (ModuleNotFoundError(), ErrorClass.FATAL),
        (NameError(), ErrorClass.FATAL),
        (UnboundLocalError(), ErrorClass.FATAL),
        (NotImplementedError(), ErrorClass.FATAL),
        (RecursionError(), ErrorClass.FATAL),
        (ValueError(), ErrorClass.DATA),
        (UnicodeDecodeError("utf-8", b"", 0, 0, ""), ErrorClass.DATA),
        (ZeroDivisionError(), ErrorClass.DATA),
        (KeyError(), ErrorClass.DATA),
        (AttributeError(), ErrorClass.DATA),
        (RuntimeError(), None),
        (Exception(), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_errors_of_python_are_classed_by_their_type(error, found):
    assert class_of_python(error) is found


def raised(error: BaseException, behind: BaseException, *, how: str) -> BaseException:
    """*error* as it is caught when it was raised because of *behind*, or while that was handled."""
    try:
        try:
            raise behind
        except type(behind):
            if how == "because":
                raise error from behind
            if how == "instead":
                raise error from None
            raise error  # noqa: B904  (Python notes by itself what was being handled)
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ReadTimeout", ErrorClass.TRANSIENT),
        ("ServerTimeoutError", ErrorClass.TRANSIENT),
        ("EndpointConnectionError", ErrorClass.TRANSIENT),
        ("ClientConnectorError", None),
        ("OperationalError", ErrorClass.TRANSIENT),
        ("InterfaceError", ErrorClass.TRANSIENT),
        ("IntegrityError", None),
    ],
)
def test_errors_of_libraries_are_classed_by_what_they_are_called(name, found):
    """Their own, and those that are derived from them."""
    library = type(name, (Exception,), {})
    assert class_of_python(library()) is found
    assert class_of_python(type("Ours", (library,), {})()) is found


@pytest.mark.parametrize(
    ("status", "found"), [(503, ErrorClass.TRANSIENT), (429, ErrorClass.TRANSIENT), (404, None)]
)
def test_what_a_server_answers_decides(status, found):
    request = httpx.Request("GET", "http://rates")
    response = httpx.Response(status, request=request)
    error = httpx.HTTPStatusError("x", request=request, response=response)
    assert class_of_python(error) is found


@pytest.mark.parametrize(
    "error", [http.client.IncompleteRead(b"12"), http.client.BadStatusLine("xyzzy")]
)
def test_an_answer_that_breaks_off_is_an_outage(error):
    """By itself, and where a callable could not read what had come of it."""
    assert class_of_python(error) is ErrorClass.TRANSIENT
    assert class_of_python(raised(ValueError(), error, how="meanwhile")) is ErrorClass.TRANSIENT


def test_a_group_with_an_outage_is_one():
    outage = ExceptionGroup("x", [ValueError(), ExceptionGroup("y", [TimeoutError()])])
    assert class_of_python(outage) is ErrorClass.TRANSIENT
    assert class_of_python(ExceptionGroup("x", [ValueError()])) is None


@pytest.mark.parametrize("how", ["because", "meanwhile", "instead"])
@pytest.mark.parametrize(
    ("error", "alone"), [(ValueError(), ErrorClass.DATA), (RuntimeError(), None)]
)
def test_what_an_outage_leads_to_is_an_outage(error, alone, how):
    """Unless who raises says that the one is not because of the other."""
    found = class_of_python(raised(error, ConnectionResetError(), how=how))
    assert found is (alone if how == "instead" else ErrorClass.TRANSIENT)


def test_what_says_what_it_is_wins():
    error = raised(errors.DataError("x"), TimeoutError(), how="because")
    assert class_of_python(error) is ErrorClass.DATA
    assert class_of_python(raised(ImportError(), TimeoutError(), how="because")) is ErrorClass.FATAL


def test_a_circle_of_causes_ends():
    first, second = ValueError(), RuntimeError()
    first.__cause__, second.__cause__ = second, first
    assert class_of_python(first) is ErrorClass.DATA


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = {
        line.strip("│├└─ ").split()[0]
        for line in (errors.__doc__ or "").splitlines()
        if "──" in line
    }
    assert drawn == {kind.__name__ for kind in KINDS} - {"EtlError"}
