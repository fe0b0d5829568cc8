"""What every watermark store promises, held against the double and the Airflow Variable."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from airflow_etl_provider.core.errors import ConfigurationError, StateError, TransientError
from airflow_etl_provider.core.watermark import Watermark
from airflow_etl_provider.testing import MemoryWatermarkStore

WATERMARK = Watermark(
    stream="flights",
    value="2013-02-01 00:00:00.123456+00",
    type="timestamp with time zone",
    fence=7,
    load_id="01a1fb67-8db0-7a4c-be59-c2ad2c43738b",
    dag_id="dag",
    run_id="scheduled__2013-01-01T00:00:00+00:00",
    advanced_at=datetime(2013, 2, 1, 0, 0, 0, 5, tzinfo=UTC),
    rows=3,
    previous=None,
)


class Supervisor:
    """Answers the requests a task sends about Variables; can lie as the real one does."""

    def __init__(self):
        self.variables: dict[str, str] = {}
        self.shadows: dict[str, str] = {}
        self.down = False

    def send(self, message):
        from airflow.sdk.exceptions import ErrorType
        from airflow.sdk.execution_time import comms

        kind = type(message).__name__
        if kind == "MaskSecret":
            return None
        if kind == "GetVariable":
            value = self.shadows.get(message.key, self.variables.get(message.key))
            # A request that failed is answered as a missing Variable is (airflow-3.3.md section 0).
            if self.down or value is None:
                return comms.ErrorResponse(
                    error=ErrorType.VARIABLE_NOT_FOUND, detail={"key": message.key}
                )
            return comms.VariableResult(key=message.key, value=value)
        if kind == "PutVariable":
            if not self.down:
                self.variables[message.key] = message.value
            return comms.OKResponse(ok=not self.down)
        if kind == "GetVariableKeys":
            keys = sorted(key for key in self.variables if key.startswith(message.prefix or ""))
            return comms.VariableKeysResult(keys=keys, total_entries=len(keys))
        raise AssertionError(f"unexpected request {kind}")


@pytest.fixture
def memory():
    store = MemoryWatermarkStore()
    return store, store.texts, "flights"


@pytest.fixture
def variable(monkeypatch):
    from airflow.sdk.execution_time import task_runner

    from airflow_etl_provider.stores.variable import VariableWatermarkStore

    supervisor = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    store = VariableWatermarkStore()
    return store, supervisor.variables, store.key("flights")


@pytest.fixture(params=["memory", "variable"])
def kept(request):
    """A store, the texts it keeps, and the key of stream ``flights``."""
    return request.getfixturevalue(request.param)


def test_absence_is_none(kept):
    store, _, _ = kept
    assert store.read("flights") is None


def test_what_is_written_is_read(kept):
    """Microseconds, offset, fence and provenance survive."""
    store, _, _ = kept
    store.write(WATERMARK)
    assert store.read("flights") == WATERMARK
    newer = replace(WATERMARK, value=None, type=None, fence=8, rows=None, previous="x")
    store.write(newer)
    assert store.read("flights") == newer


def test_streams_do_not_see_each_other(kept):
    """A stream whose id begins like another's is another stream."""
    store, _, _ = kept
    store.write(replace(WATERMARK, stream="flights.more"))
    assert store.read("flights") is None
    store.write(WATERMARK)
    assert store.read("flights.more").stream == "flights.more"


@pytest.mark.parametrize(
    "text",
    ["", "x", "null", "[]", "{}", '{"version": 2}', json.dumps({"version": 1, "stream": "other"})],
)
def test_what_cannot_be_read_is_an_error_that_names_the_place(kept, text):
    """Never taken for absence: the stream would start over."""
    store, texts, key = kept
    texts[key] = text
    with pytest.raises(StateError) as raised:
        store.read("flights")
    assert store.where("flights") in str(raised.value)
    assert texts[key] == text


@pytest.mark.parametrize("field", ["fence", "value", "advanced_at", "stream"])
@pytest.mark.parametrize("bad", [True, [], {}, "x\x00" * 3])
def test_a_damaged_field_is_an_error(kept, field, bad):
    store, texts, key = kept
    data = json.loads(WATERMARK.as_text())
    if field == "value" and isinstance(bad, str):
        pytest.skip("any text may be a value")
    texts[key] = json.dumps({**data, field: bad})
    with pytest.raises(StateError):
        store.read("flights")


@pytest.mark.parametrize("stream", ["", "Flights", "a b", "a/b", "ä", "a" * 101, None, ".a"])
def test_a_stream_that_is_none_is_refused(kept, stream):
    store, _, _ = kept
    for work in (store.where, store.read):
        with pytest.raises(ConfigurationError):
            work(stream)


def test_a_variable_that_is_shadowed_by_a_backend_is_an_error(variable):
    """A secrets backend answers before the database: what is written would never be read."""
    store, _, key = variable
    from airflow.sdk.execution_time import task_runner

    supervisor = task_runner.SUPERVISOR_COMMS
    supervisor.shadows[key] = WATERMARK.as_text()
    with pytest.raises(StateError, match="shadowed"):
        store.read("flights")
    with pytest.raises(StateError, match="shadowed"):
        store.write(replace(WATERMARK, fence=8, value="2014-01-01 00:00:00+00"))


def test_a_variable_that_is_shadowed_by_the_environment_is_an_error(variable, monkeypatch):
    store, texts, key = variable
    monkeypatch.setenv(f"AIRFLOW_VAR_{key.upper()}", WATERMARK.as_text())
    for work in (lambda: store.read("flights"), lambda: store.write(WATERMARK)):
        with pytest.raises(StateError, match="AIRFLOW_VAR_"):
            work()
    assert texts == {}


def test_a_failed_request_is_not_absence(variable):
    """Airflow answers a failed request as it answers a missing Variable; the list of keys tells them apart."""
    store, _, _ = variable
    from airflow.sdk.execution_time import task_runner

    store.write(WATERMARK)
    task_runner.SUPERVISOR_COMMS.down = True
    with pytest.raises(TransientError):
        store.read("flights")
    with pytest.raises(TransientError):
        store.write(replace(WATERMARK, fence=8))


@pytest.mark.parametrize("stream", ["api-token", "my.secret", "password.events", "dsn"])
def test_a_name_that_airflow_would_mask_is_refused(variable, stream):
    store, _, _ = variable
    with pytest.raises(ConfigurationError, match="secret"):
        store.read(stream)
