"""The Variable store keeps the promises of a watermark store, on a real Airflow API and database."""

from __future__ import annotations

from tests import airflow_environment  # isort: skip  (before anything imports Airflow)

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psutil
import pytest
from airflow.models.variable import Variable
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import supervisor
from airflow.sdk.execution_time.comms import (
    ErrorResponse,
    GetVariable,
    GetVariableKeys,
    MaskSecret,
    PutVariable,
)
from airflow.utils.session import create_session
from sqlalchemy import delete, select

from airflow_etl_provider.core.errors import ConfigurationError, StateError, TransientError
from airflow_etl_provider.core.load import StreamPosition
from airflow_etl_provider.core.watermark import Watermark, follow
from airflow_etl_provider.stores.variable import VariableWatermarkStore

NOON = datetime(2013, 2, 1, 12, 0, 0, 123456, tzinfo=UTC)
Answer = Callable[[Any], Any]


@dataclass
class Channel:
    """A task's line to the API server, with faults put in by the request they meet."""

    comms: Any
    before: dict[type, Callable[[Any], None]] = field(default_factory=dict)
    after: dict[type, Callable[[Any], None]] = field(default_factory=dict)
    sent: list[type] = field(default_factory=list)
    _one_at_a_time: threading.RLock = field(default_factory=threading.RLock)

    def send(self, msg: Any) -> Any:
        with self._one_at_a_time:
            self.sent.append(type(msg))
            if (fault := self.before.get(type(msg))) is not None:
                fault(msg)
            answer = self.comms.send(msg)
            # Where a worker's client raises, the one in this process answers.
            if isinstance(answer, ErrorResponse):
                raise AirflowRuntimeError(answer)
            if (fault := self.after.get(type(msg))) is not None:
                fault(msg)
            return answer


def unavailable(_: Any) -> None:
    """The API server answers 503, and the client has given up."""
    raise AirflowRuntimeError(
        ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": 503})
    )


@pytest.fixture(scope="module")
def _metadata() -> None:
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture
def channel(_metadata: None) -> Iterator[Channel]:
    """What a task has around it."""
    running = supervisor.InProcessTestSupervisor(
        id=uuid4(),
        pid=1,
        process=psutil.Process(),
        process_log=supervisor.log,
        client=supervisor.InProcessTestSupervisor._api_client(),
    )
    running.comms = supervisor.InProcessSupervisorComms(supervisor=running)
    line = Channel(running.comms)
    with supervisor.set_supervisor_comms(line):
        yield line


@pytest.fixture
def stream() -> str:
    return f"orders_{uuid4().hex[:8]}"


@pytest.fixture
def store(channel: Channel) -> VariableWatermarkStore:
    return VariableWatermarkStore()


def watermark(stream: str, fence: int = 1, **changes: Any) -> Watermark:
    made = Watermark(
        stream=stream,
        value="2013-02-01 00:00:00.123456+00",
        type="timestamp with time zone",
        fence=fence,
        load_id=str(uuid4()),
        dag_id="dag",
        run_id="scheduled__2013-02-01",
        advanced_at=NOON,
        rows=31,
        previous=None,
    )
    return replace(made, **changes)


def stored(key: str) -> str | None:
    with create_session() as session:
        row = session.scalar(select(Variable).where(Variable.key == key))
        return None if row is None else row.get_val()


def put(key: str, text: str) -> None:
    """Write past every interface, as somebody else's request would."""
    with create_session() as session:
        session.execute(delete(Variable).where(Variable.key == key))
        session.add(Variable(key=key, val=text))


class TestReadAndWrite:
    def test_absence_is_confirmed(
        self, store: VariableWatermarkStore, channel: Channel, stream: str
    ) -> None:
        """None only after the list of keys said so: never a default."""
        assert store.read(stream) is None
        assert channel.sent == [GetVariable, GetVariableKeys]

    def test_what_is_written_is_read(self, store: VariableWatermarkStore, stream: str) -> None:
        """Every field, microseconds and offset included."""
        written = watermark(stream)
        store.write(written)
        assert store.read(stream) == written

    def test_a_stream_without_a_position_is_not_absent(
        self, store: VariableWatermarkStore, stream: str
    ) -> None:
        """A rewind to the start is a value of its own."""
        written = watermark(stream, value=None, type=None)
        store.write(written)
        assert store.read(stream) == written

    def test_odd_text_survives(self, store: VariableWatermarkStore, stream: str) -> None:
        """Run ids and cursor values hold anything."""
        odd = "a'b\"c\\d\n{{ e }} é 漢 \u2028 %s"
        written = watermark(stream, value=odd, run_id=odd, previous=odd)
        store.write(written)
        assert store.read(stream) == written

    def test_other_tools_can_read_it(self, store: VariableWatermarkStore, stream: str) -> None:
        """Documented JSON under a documented key, with a description against edits."""
        store.write(watermark(stream))
        data = json.loads(stored(f"etl.watermark.{stream}") or "")
        assert set(data) == {
            "version", "stream", "value", "type", "fence", "load_id", "dag_id", "run_id",
            "advanced_at", "rows", "previous",
        }  # fmt: skip
        assert data["value"] == "2013-02-01 00:00:00.123456+00"
        with create_session() as session:
            row = session.scalar(select(Variable).where(Variable.key == f"etl.watermark.{stream}"))
            assert row is not None
            assert "do not edit" in (row.description or "")

    def test_neighbours_are_not_mixed_up(self, store: VariableWatermarkStore, stream: str) -> None:
        """A key that is the beginning of another does not make it present."""
        store.write(watermark(f"{stream}.eu"))
        assert store.read(stream) is None
        store.write(watermark(stream, fence=3))
        assert [found.fence for found in map(store.read, (stream, f"{stream}.eu")) if found] == [
            3,
            1,
        ]

    def test_it_is_written_and_read_back(
        self, store: VariableWatermarkStore, channel: Channel, stream: str
    ) -> None:
        """A write that an API server swallowed would otherwise be a silent freeze."""
        store.write(watermark(stream))
        assert [kind for kind in channel.sent if kind is not MaskSecret] == [
            PutVariable,
            GetVariable,
        ]


class TestKeys:
    @pytest.mark.parametrize(
        "stream",
        ["", "A", "a b", "a/b", "a?b", "a#b", "a%2Fb", "../up", "a:b", "é", "-a", ".a", "_a", "a\n", "x" * 101],
    )  # fmt: skip
    def test_what_collides_or_cannot_be_kept_is_refused(
        self, store: VariableWatermarkStore, channel: Channel, stream: str
    ) -> None:
        """Airflow's client puts keys into URLs as they are; nothing is asked or written."""
        with pytest.raises(ConfigurationError):
            store.read(stream)
        with pytest.raises(ConfigurationError):
            store.write(watermark(stream))
        assert channel.sent == []

    @pytest.mark.parametrize(
        "word", ["token", "secret", "password", "passwd", "api_key", "authorization", "private_key"]
    )
    def test_what_airflow_would_mask_is_refused(
        self, store: VariableWatermarkStore, word: str
    ) -> None:
        """The watermark would show as *** in every log of the task."""
        with pytest.raises(ConfigurationError, match="takes for a secret's name"):
            store.read(f"orders.{word}.eu")

    @pytest.mark.parametrize("stream", ["keys", "a", "0", "a.b-c_d", "x" * 100])
    def test_every_other_id_is_kept(self, store: VariableWatermarkStore, stream: str) -> None:
        """Also the ones that look like a route of the API, and the longest."""
        store.write(watermark(stream))
        assert store.read(stream) is not None

    def test_the_place_is_named(self, store: VariableWatermarkStore) -> None:
        """As people find it under Admin -> Variables."""
        assert store.where("orders") == "Variable etl.watermark.orders"


class TestFaults:
    @pytest.mark.parametrize("present", [True, False])
    @pytest.mark.parametrize("keys_answer", [True, False])
    def test_a_failed_read_is_never_an_absent_watermark(
        self,
        store: VariableWatermarkStore,
        channel: Channel,
        stream: str,
        present: bool,
        keys_answer: bool,
    ) -> None:
        """Airflow answers 5xx as it answers a missing Variable; the list of keys tells them apart."""
        if present:
            store.write(watermark(stream))
        channel.before[GetVariable] = unavailable
        if not keys_answer:
            channel.before[GetVariableKeys] = unavailable
        if not present and keys_answer:
            assert store.read(stream) is None
            return
        with pytest.raises(TransientError) as caught:
            store.read(stream)
        assert caught.value.remedy is not None

    def test_a_failed_list_of_keys_raises(
        self, store: VariableWatermarkStore, channel: Channel, stream: str
    ) -> None:
        """Nothing is concluded from no answer."""
        channel.before[GetVariableKeys] = unavailable
        with pytest.raises(TransientError):
            store.read(stream)

    @pytest.mark.parametrize("request_type", [PutVariable, GetVariable])
    def test_a_failed_write_is_transient(
        self, store: VariableWatermarkStore, channel: Channel, stream: str, request_type: type
    ) -> None:
        """Another try writes it; so does the next run, from the ledger."""
        channel.before[request_type] = unavailable
        with pytest.raises(TransientError, match=f"Variable etl.watermark.{stream}"):
            store.write(watermark(stream))

    def test_a_write_that_was_swallowed_is_noticed(
        self, store: VariableWatermarkStore, channel: Channel, stream: str
    ) -> None:
        """Some releases of Airflow report success for a write that never happened."""
        store.write(watermark(stream, fence=1))
        channel.after[PutVariable] = lambda _: put(
            store.key(stream), watermark(stream, fence=1).as_text()
        )
        with pytest.raises((StateError, TransientError)):
            store.write(watermark(stream, fence=2))

    @pytest.mark.parametrize(
        "text", ["", "null", "{", "2013-02-01", "[]", '"x"', "{}", '{"version": 1}']
    )
    def test_what_is_no_watermark_raises(
        self, store: VariableWatermarkStore, stream: str, text: str
    ) -> None:
        """Neither absent nor repaired in silence."""
        put(store.key(stream), text)
        with pytest.raises(StateError) as caught:
            store.read(stream)
        assert store.where(stream) in caught.value.what
        assert caught.value.remedy is not None

    def test_a_shadow_without_a_variable_is_noticed(
        self, store: VariableWatermarkStore, stream: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only the API server's own environment or a backend can give a value that has no key."""
        text = watermark(stream).as_text()

        class Backend:
            def get_variable(self, key: str, **_: Any) -> str:
                return text

        monkeypatch.setattr(supervisor, "ensure_secrets_backend_loaded", lambda: [Backend()])
        with pytest.raises(StateError, match="shadowed"):
            store.read(stream)

    def test_a_shadow_is_noticed_when_writing(
        self, store: VariableWatermarkStore, stream: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is read back is not what was written."""
        real = supervisor.ensure_secrets_backend_loaded()
        old = watermark(stream, fence=1).as_text()

        class Backend:
            def get_variable(self, key: str, **_: Any) -> str:
                return old

        monkeypatch.setattr(supervisor, "ensure_secrets_backend_loaded", lambda: [Backend(), *real])
        with pytest.raises(StateError, match="shadowed"):
            store.write(watermark(stream, fence=2))

    def test_the_environment_is_refused_before_anything(
        self,
        store: VariableWatermarkStore,
        channel: Channel,
        stream: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It wins over the database on every read, so a write would never be seen."""
        monkeypatch.setenv(f"AIRFLOW_VAR_{store.key(stream).upper()}", "{}")
        for attempt in (lambda: store.read(stream), lambda: store.write(watermark(stream))):
            with pytest.raises(StateError, match="shadows"):
                attempt()
        assert channel.sent == []


@dataclass
class Ledger:
    """The truth in these tests: a position that rises under a lock."""

    stream: str
    fence: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def advance(self) -> None:
        with self._lock:
            self.fence += 1

    def position(self) -> StreamPosition:
        with self._lock:
            return StreamPosition(
                stream=self.stream,
                position=None if self.fence == 0 else f"2013-02-01 00:00:{self.fence:02}+00",
                position_type="timestamp with time zone",
                fence=self.fence,
                load_id=None,
                updated_at=NOON,
            )

    def agrees(self, found: Watermark | None) -> bool:
        at = self.position()
        return found is not None and (found.value, found.fence) == (at.position, at.fence)


@dataclass
class OneRequestAtATime:
    """Threads share this process's one line to the API; between its calls they run as they like."""

    store: VariableWatermarkStore
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def where(self, stream: str) -> str:
        return self.store.where(stream)

    def read(self, stream: str) -> Watermark | None:
        with self._lock:
            return self.store.read(stream)

    def write(self, watermark: Watermark) -> None:
        with self._lock:
            self.store.write(watermark)


def quiet(*_: Any, **__: Any) -> None:
    """A log that nobody reads."""


class TestFollowing:
    def test_parallel_loads_leave_the_last_position(
        self, store: VariableWatermarkStore, stream: str
    ) -> None:
        """Six loads at once: whoever writes last, Variable and ledger agree, and nobody fails."""
        ledger = Ledger(stream)
        one_request = OneRequestAtATime(store)

        def load(_: int) -> None:
            for _ in range(3):
                ledger.advance()
                follow(one_request, stream, ledger.position, log=quiet)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(load, range(6)))
        assert ledger.fence == 18
        assert ledger.agrees(store.read(stream))

    def test_an_older_value_written_in_between_is_no_shadow(
        self, store: VariableWatermarkStore, channel: Channel, stream: str
    ) -> None:
        """A slow load, or a repeated request, puts an older watermark between write and read back:
        the newer one is written again."""
        ledger = Ledger(stream, fence=5)
        older = watermark(stream, fence=4, value="2013-02-01 00:00:04+00")
        interfere = [older]

        def slow_writer(_: Any) -> None:
            if interfere:
                put(store.key(stream), interfere.pop().as_text())

        channel.after[PutVariable] = slow_writer
        follow(store, stream, ledger.position, log=quiet)
        assert ledger.agrees(store.read(stream))

    def test_a_newer_value_written_in_between_stays(
        self, store: VariableWatermarkStore, channel: Channel, stream: str
    ) -> None:
        """A faster load moved on: its watermark is not replaced by ours."""
        ledger = Ledger(stream, fence=4)

        def faster(_: Any) -> None:
            if ledger.fence == 4:
                ledger.advance()
                put(
                    store.key(stream),
                    watermark(stream, 5, value="2013-02-01 00:00:05+00").as_text(),
                )

        channel.after[PutVariable] = faster
        follow(store, stream, ledger.position, log=quiet)
        assert ledger.agrees(store.read(stream))

    def test_after_any_crash_the_next_follow_repairs(
        self, store: VariableWatermarkStore, channel: Channel, stream: str
    ) -> None:
        """The write is lost, or the process dies after it: the next load brings it in line."""
        ledger = Ledger(stream)
        for request_type in (PutVariable, GetVariable, GetVariableKeys):
            ledger.advance()
            channel.before[request_type] = unavailable
            with pytest.raises(TransientError):
                follow(store, stream, ledger.position, log=quiet)
            channel.before.clear()
            follow(store, stream, ledger.position, log=quiet)
            assert ledger.agrees(store.read(stream))

    def test_in_line_it_writes_nothing(
        self, store: VariableWatermarkStore, channel: Channel, stream: str
    ) -> None:
        """No write where nothing changed: history in the audit log stays readable."""
        ledger = Ledger(stream, fence=2)
        follow(store, stream, ledger.position, log=quiet)
        channel.sent.clear()
        follow(store, stream, ledger.position, log=quiet)
        assert PutVariable not in channel.sent


__all__ = ["airflow_environment"]
