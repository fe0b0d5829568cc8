"""What a store promises, whichever one it is, and what moving a stream between them keeps.

The Variable and the asset state store answer through Airflow's own API and database, in this process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import uuid4

import psutil
import pytest
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.models.asset import AssetActive, AssetModel
from airflow.sdk import DAG, Asset, AssetAlias, BaseOperator
from airflow.sdk.api.client import ServerResponseError
from airflow.sdk.definitions.asset import AssetNameRef, AssetUriRef
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import supervisor
from airflow.sdk.execution_time.comms import (
    DeleteAssetStateStoreByName,
    DeleteVariable,
    ErrorResponse,
    GetAssetStateStoreByName,
    GetVariable,
    PutVariable,
    SetAssetStateStoreByName,
)
from airflow.sdk.execution_time.context import AssetStateStoreAccessors
from airflow.utils.session import create_session

from airflow_etl_provider.core.errors import ConfigurationError, StateError, TransientError
from airflow_etl_provider.core.load import StreamPosition
from airflow_etl_provider.core.watermark import follow
from airflow_etl_provider.stores.asset_state import AssetStateWatermarkStore, chosen_asset
from airflow_etl_provider.stores.select import StoreName, store_name, task_store
from airflow_etl_provider.testing import MemoryWatermarkStore, RecordedEvents
from tests.airflow.runs import Airflow, TaskLog

NOON = datetime(2013, 2, 1, 12, 0, 0, 123456, tzinfo=UTC)
TARGET = "a.flights"
STORES = ("memory", *StoreName)
COPIES = ("memory", StoreName.VARIABLE, StoreName.ASSET_STATE)
REQUESTS = {
    StoreName.VARIABLE: (GetVariable, PutVariable, DeleteVariable),
    StoreName.ASSET_STATE: (
        GetAssetStateStoreByName,
        SetAssetStateStoreByName,
        DeleteAssetStateStoreByName,
    ),
}


@dataclass
class Line:
    """A task's line to the API server; what *faults* names is answered by it instead."""

    comms: Any
    faults: dict[type, Callable[[Any], Any]] = field(default_factory=dict)

    def send(self, msg: Any) -> Any:
        fault = self.faults.get(type(msg))
        try:
            answer = self.comms.send(msg) if fault is None else fault(msg)
        except ServerResponseError as error:
            # So does a worker's supervisor answer it.
            unavailable(error)
        # Where a worker's client raises, the one in this process answers.
        if isinstance(answer, ErrorResponse) and type(msg) is not GetAssetStateStoreByName:
            raise AirflowRuntimeError(answer)
        return answer


def unavailable(_: Any) -> Any:
    """The API server answers 503, and the client has given up."""
    raise AirflowRuntimeError(
        ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": 503})
    )


@pytest.fixture(scope="module")
def _metadata() -> None:
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture
def line(_metadata: None) -> Iterator[Line]:
    """What a task has around it."""
    running = supervisor.InProcessTestSupervisor(
        id=uuid4(),
        pid=1,
        process=psutil.Process(),
        process_log=supervisor.log,
        client=supervisor.InProcessTestSupervisor._api_client(),
    )
    running.comms = supervisor.InProcessSupervisorComms(supervisor=running)
    line = Line(running.comms)
    with supervisor.set_supervisor_comms(line):
        yield line


class Ledger:
    """The streams of a warehouse, kept in memory; the binding that stores are chosen by."""

    def __init__(self) -> None:
        self.positions: dict[str, StreamPosition] = {}
        self.stores: dict[str, str] = {}

    def move(self, stream: str, to: str | None, by: int = 1) -> StreamPosition:
        """A publish or a rewind, as far as stores see it."""
        before = self.positions.get(stream)
        at = StreamPosition(
            stream=stream,
            position=to,
            position_type=None if to is None else "timestamp with time zone",
            fence=by if before is None else before.fence + by,
            load_id=None if to is None else str(uuid4()),
            updated_at=NOON + timedelta(seconds=0 if before is None else before.fence),
        )
        self.positions[stream] = at
        return at

    def position(self, stream: str) -> StreamPosition | None:
        return self.positions.get(stream)

    def bound_store(self, stream: str) -> str | None:
        return self.stores.get(stream)

    def bind_store(self, stream: str, store: str) -> None:
        self.stores[stream] = store


@dataclass
class Task:
    """As much of a task as an asset store looks at."""

    task_id: str = "extract"
    inlets: list[Any] = field(default_factory=list)
    outlets: list[Any] = field(default_factory=list)

    def context(self) -> Any:
        return {
            "task": self,
            "asset_state_store": AssetStateStoreAccessors(self.inlets, self.outlets),
        }


@dataclass
class World:
    """One stream with its ledger, its task and whatever store it is given."""

    line: Line
    ledger: Ledger = field(default_factory=Ledger)
    log: RecordedEvents = field(default_factory=RecordedEvents)
    memory: MemoryWatermarkStore = field(default_factory=MemoryWatermarkStore)
    stream: str = field(default_factory=lambda: f"flights_{uuid4().hex[:8]}")
    asset: Asset = field(default_factory=lambda: Asset(f"flights_{uuid4().hex[:8]}"))
    task: Task = field(default_factory=Task)

    def __post_init__(self) -> None:
        self.task.outlets = [self.asset]
        with create_session() as session:
            session.add(AssetModel(name=self.asset.name, uri=self.asset.uri, group="asset"))
            session.flush()
            session.add(AssetActive(name=self.asset.name, uri=self.asset.uri))

    def store(self, name: str | None, stream: str | None = None) -> Any:
        if name == "memory":
            return self.memory
        return task_store(
            name,
            context=self.task.context(),
            stream=stream or self.stream,
            target=TARGET,
            binding=self.ledger,
            log=self.log,
        )

    def follow(self, store: Any, stream: str | None = None) -> None:
        name = stream or self.stream
        follow(store, name, lambda: self.ledger.positions[name], log=self.log)

    def put(self, store: str, value: Any) -> None:
        """Write past every interface, as somebody in the UI would; *value* is what JSON says."""
        key = f"etl.watermark.{self.stream}"
        if store == "memory":
            self.memory.texts[self.stream] = json.dumps(value)
        elif store == StoreName.VARIABLE:
            self.line.comms.send(PutVariable(key=key, value=json.dumps(value), description=None))
        else:
            self.line.comms.send(
                SetAssetStateStoreByName(name=self.asset.name, key=key, value=value)
            )

    def agrees(self, store: Any, stream: str | None = None) -> bool:
        """Whether the store shows what the ledger says."""
        at = self.ledger.positions[stream or self.stream]
        found = store.read(stream or self.stream)
        return found is not None and (found.value, found.type, found.fence, found.load_id) == (
            at.position,
            at.position_type,
            at.fence,
            at.load_id,
        )


@pytest.fixture
def world(line: Line) -> World:
    return World(line)


# -- every store ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STORES)
class TestEveryStore:
    def test_an_unknown_stream_is_absent(self, world: World, name: str) -> None:
        assert world.store(name).read(world.stream) is None

    def test_it_shows_what_the_ledger_says(self, world: World, name: str) -> None:
        """Published, published again, rewound, reset: the store follows each."""
        store = world.store(name)
        for to in (
            "2013-02-01 00:00:00.123456+00",
            "2013-03-01 00:00:00+00",
            "2013-01-01 00:00:00+00",
            None,
            "0044-03-15 00:00:00+00 BC",
        ):
            world.ledger.move(world.stream, to)
            world.follow(store)
            assert world.agrees(store)

    def test_values_are_kept_to_the_letter(self, world: World, name: str) -> None:
        """Text cursors hold anything that PostgreSQL holds."""
        store = world.store(name)
        for to in ("", " x ", "ü{{ ds }}'\"\\%s\n\t𝄞", "null", "0" * 2000):
            world.ledger.move(world.stream, to)
            world.follow(store)
            assert store.read(world.stream).value == to

    def test_what_is_in_line_is_left_alone(self, world: World, name: str) -> None:
        store = world.store(name)
        world.ledger.move(world.stream, "2013-02-01 00:00:00+00")
        world.follow(store)
        world.log.events.clear()
        world.follow(store)
        assert world.log.names() == []

    def test_a_stream_without_a_position_shows_none(self, world: World, name: str) -> None:
        store = world.store(name)
        world.ledger.move(world.stream, None, by=0)
        world.follow(store)
        found = store.read(world.stream)
        assert found is None or found.value is None

    def test_a_publish_beside_it_is_caught_up_with(self, world: World, name: str) -> None:
        """The ledger moves between the reads of a run: the store ends at the last position."""
        store = world.store(name)
        world.ledger.move(world.stream, "2013-02-01 00:00:00+00")
        moves = iter(["2013-03-01 00:00:00+00", "2013-04-01 00:00:00+00"])

        def position() -> StreamPosition:
            to = next(moves, None)
            if to is not None:
                world.ledger.move(world.stream, to)
            return world.ledger.positions[world.stream]

        follow(store, world.stream, position, log=world.log)
        assert world.agrees(store)
        assert store.read(world.stream).value == "2013-04-01 00:00:00+00"

    def test_streams_do_not_see_each_other(self, world: World, name: str) -> None:
        """An id that begins like another's is another stream."""
        store, other = world.store(name), f"{world.stream}.more"
        world.ledger.move(other, "2013-02-01 00:00:00+00")
        world.follow(store, other)
        assert store.read(world.stream) is None
        assert world.agrees(store, other)

    @pytest.mark.parametrize("stream", ["", "Flights", "a b", "a/b", "ä", "a" * 101, ".a", "a?b"])
    def test_what_is_no_stream_is_refused(self, world: World, name: str, stream: str) -> None:
        store = world.store(name)
        world.ledger.move(world.stream, "2013-02-01 00:00:00+00")
        world.follow(store)
        watermark = replace(store.read(world.stream), stream=stream)
        for work in (
            lambda: store.where(stream),
            lambda: store.read(stream),
            lambda: store.write(watermark),
        ):
            with pytest.raises(ConfigurationError):
                work()

    def test_it_names_the_place(self, world: World, name: str) -> None:
        assert world.stream in world.store(name).where(world.stream)


# -- stores that keep a copy ----------------------------------------------------------------------


@pytest.mark.parametrize("name", COPIES)
class TestEveryCopy:
    def written(self, world: World, name: str) -> Any:
        store = world.store(name)
        world.ledger.move(world.stream, "2013-02-01 00:00:00+00", by=3)
        world.follow(store)
        return store

    def test_what_is_written_is_read(self, world: World, name: str) -> None:
        """With its provenance."""
        store = self.written(world, name)
        written = replace(
            store.read(world.stream), dag_id="dag", run_id="run", rows=7, fence=9, previous="x"
        )
        store.write(written)
        assert store.read(world.stream) == written

    def test_an_edit_by_hand_is_asked_about(self, world: World, name: str) -> None:
        """Both values are named, and nothing is written."""
        store = self.written(world, name)
        edited = json.loads(store.read(world.stream).as_text()) | {
            "value": "1999-01-01 00:00:00+00"
        }
        world.put(name, edited)
        with pytest.raises(StateError) as raised:
            world.follow(store)
        for said in ("1999-01-01", "2013-02-01", store.where(world.stream)):
            assert said in str(raised.value)
        assert store.read(world.stream).value == "1999-01-01 00:00:00+00"

    def test_a_copy_ahead_of_the_ledger_is_of_another_warehouse(
        self, world: World, name: str
    ) -> None:
        store = self.written(world, name)
        store.write(replace(store.read(world.stream), fence=99))
        with pytest.raises(StateError, match="ahead of the ledger"):
            world.follow(store)

    @pytest.mark.parametrize(
        "value", ["", "x", [], {}, 7, {"version": 2}, {"version": 1, "stream": "other"}]
    )
    def test_what_is_no_watermark_is_an_error(self, world: World, name: str, value: Any) -> None:
        """Never taken for absence, and left as it is."""
        store = self.written(world, name)
        world.put(name, value)
        for _ in range(2):
            with pytest.raises(StateError) as raised:
                store.read(world.stream)
            assert store.where(world.stream) in str(raised.value)

    def test_an_older_copy_is_repaired(self, world: World, name: str) -> None:
        store = self.written(world, name)
        store.write(replace(store.read(world.stream), fence=1, value="2020-01-01 00:00:00+00"))
        world.follow(store)
        assert world.agrees(store)
        assert world.log.names()[-1] == "watermark repaired from the ledger"


# -- stores of Airflow ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [StoreName.VARIABLE, StoreName.ASSET_STATE])
class TestStoresOfAirflow:
    def test_a_server_that_fails_is_transient(self, world: World, name: StoreName) -> None:
        """Reads and writes alike; a failed read is never absence."""
        store = world.store(name)
        world.ledger.move(world.stream, "2013-02-01 00:00:00+00")
        world.follow(store)
        watermark = store.read(world.stream)
        read, write, remove = REQUESTS[name]
        for request, work in (
            (read, lambda: store.read(world.stream)),
            (write, lambda: store.write(watermark)),
            (read, lambda: store.write(watermark)),
            (remove, lambda: store.remove(world.stream)),
        ):
            world.line.faults = {request: unavailable}
            with pytest.raises(TransientError):
                work()
        world.line.faults = {}
        assert store.read(world.stream) == watermark

    def test_a_newer_write_in_between_is_no_error(self, world: World, name: StoreName) -> None:
        store = world.store(name)
        world.ledger.move(world.stream, "2013-02-01 00:00:00+00")
        world.follow(store)
        mine = replace(store.read(world.stream), fence=5)
        newer = json.loads(replace(mine, fence=6).as_text())
        self.overtaken(world, name, newer)
        store.write(mine)
        assert store.read(world.stream).fence == 6

    def test_what_is_never_read_back_is_an_error(self, world: World, name: StoreName) -> None:
        store = world.store(name)
        world.ledger.move(world.stream, "2013-02-01 00:00:00+00")
        world.follow(store)
        mine = store.read(world.stream)
        self.overtaken(world, name, json.loads(mine.as_text()))
        with pytest.raises(StateError, match="read back"):
            store.write(replace(mine, fence=5))

    def overtaken(self, world: World, name: StoreName, value: Any) -> None:
        """After the next write, *value* stands there."""

        def both(msg: Any) -> Any:
            answer = world.line.comms.send(msg)
            world.put(name, value)
            return answer

        world.line.faults = {REQUESTS[name][1]: both}

    def test_a_removed_copy_is_absent(self, world: World, name: StoreName) -> None:
        store = world.store(name)
        world.ledger.move(world.stream, "2013-02-01 00:00:00+00")
        world.follow(store)
        for _ in range(2):
            store.remove(world.stream)
            assert store.read(world.stream) is None


class TestAssetState:
    def test_people_read_fields_not_text(self, world: World) -> None:
        """Another task with the asset as inlet takes the value out of the object."""
        world.ledger.move(world.stream, "2013-02-01 00:00:00+00")
        world.follow(world.store("asset_state"))
        state = AssetStateStoreAccessors([world.asset])[world.asset]
        found: Any = state.get(f"etl.watermark.{world.stream}")
        assert found["value"] == "2013-02-01 00:00:00+00"

    @pytest.mark.parametrize("assets", [[], [AssetAlias("alias")]])
    def test_a_task_without_the_asset_is_told_the_line_to_add(
        self, world: World, assets: list[Any]
    ) -> None:
        world.task.outlets = []
        with pytest.raises(ConfigurationError) as raised:
            AssetStateWatermarkStore.of_task(
                Task(outlets=assets).context(),
                stream="flights",
                target=TARGET,
            )
        assert 'outlets=[Asset("a.flights")]' in str(raised.value)

    def test_an_asset_that_airflow_does_not_know_fails_when_written(self, world: World) -> None:
        """Airflow answers a read of it as it answers a missing key; nothing is lost by that."""
        world.task.outlets = [Asset("nobody_registered_it")]
        store = world.store("asset_state")
        assert store.read(world.stream) is None
        world.ledger.move(world.stream, "2013-02-01 00:00:00+00")
        with pytest.raises(TransientError):
            world.follow(store)

    @pytest.mark.parametrize(
        ("assets", "chosen"),
        [
            ([Asset("x")], "x"),
            ([Asset("x"), Asset("a.flights")], "a.flights"),
            ([Asset("x"), Asset("flights")], "flights"),
            ([Asset("flights"), Asset("a.flights")], "a.flights"),
            ([Asset("x"), Asset("x")], "x"),
            ([AssetAlias("flights"), AssetNameRef("y")], "y"),
            ([AssetUriRef("s3://bucket/z")], "s3://bucket/z"),
            ([Asset("x"), Asset("y")], None),
            ([], None),
        ],
    )
    def test_which_asset(self, assets: list[Any], chosen: str | None) -> None:
        """The only one, or the one that is called like the target or the stream."""
        found = chosen_asset(assets, stream="flights", target=TARGET)
        assert (None if found is None else getattr(found, "name", None) or found.uri) == chosen


# -- choosing and moving --------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["Variable", "variables", "", "redis", None])
def test_a_store_is_named_exactly(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="variable, asset_state, ledger"):
        store_name(given)


@pytest.mark.parametrize("name", StoreName)
def test_a_new_stream_begins_in_the_store_it_names(world: World, name: StoreName) -> None:
    """There is nothing to move; the first load binds it."""
    world.store(name)
    assert (world.ledger.stores, world.log.names()) == ({}, [])


def test_without_a_name_the_ledgers_store_is_taken(world: World) -> None:
    """So publish follows extract; a stream that is bound to none is shown by its Variable."""
    assert "Variable" in world.store(None).where(world.stream)
    world.ledger.move(world.stream, "2013-02-01 00:00:00+00")
    world.ledger.bind_store(world.stream, "asset_state")
    assert world.asset.name in world.store(None).where(world.stream)
    assert world.log.names() == []


PAIRS = list(permutations(StoreName, 2))


def settled(world: World, name: StoreName) -> Any:
    """The stream is bound to a store that shows its position."""
    world.ledger.move(world.stream, "2013-02-01 00:00:00.5+00", by=4)
    world.ledger.bind_store(world.stream, name)
    store = world.store(name)
    world.follow(store)
    world.log.events.clear()
    return store


@pytest.mark.parametrize(("old", "new"), PAIRS)
class TestMoving:
    def test_position_and_fence_are_kept(
        self, world: World, old: StoreName, new: StoreName
    ) -> None:
        """The new store shows them, the ledger names it, no copy stays behind, and the log says so."""
        before = settled(world, old)
        at = world.ledger.positions[world.stream]
        after = world.store(new)
        assert world.agrees(after)
        assert world.ledger.positions[world.stream] == at
        assert world.ledger.stores[world.stream] == new
        if old is not StoreName.LEDGER:
            assert before.read(world.stream) is None
        (moved,) = [fields for event, fields in world.log.events if "moved" in event]
        assert (moved["store_from"], moved["store_to"]) == (old, new)
        assert moved["old_copy"] == "removed"

    def test_a_second_task_has_nothing_to_move(
        self, world: World, old: StoreName, new: StoreName
    ) -> None:
        settled(world, old)
        world.store(new)
        world.log.events.clear()
        world.store(new)
        assert world.log.names() == []

    def test_there_and_back(self, world: World, old: StoreName, new: StoreName) -> None:
        """What stood in the first store before cannot be mistaken for an edit by hand."""
        settled(world, old)
        world.follow(world.store(new))
        world.ledger.move(world.stream, "2013-03-01 00:00:00+00")
        world.follow(world.store(new))
        world.ledger.move(world.stream, "2013-01-01 00:00:00+00")
        assert world.agrees(world.store(old))


#: Where a move can break: the ledger keeps no copy that could be written or removed.
BREAKS = [
    (old, new, step)
    for old, new in PAIRS
    for step, side in (("bind", None), ("remove", old), ("write", new))
    if side is not StoreName.LEDGER
]


@pytest.mark.parametrize(("old", "new", "step"), BREAKS)
def test_a_task_that_dies_in_between_is_finished_by_the_next(
    world: World, old: StoreName, new: StoreName, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger names the new store last, so whatever was done before is done again."""
    settled(world, old)
    if step == "bind":
        monkeypatch.setattr(world.ledger, "bind_store", unavailable_binding)
    else:
        request = REQUESTS[old][2] if step == "remove" else REQUESTS[new][1]
        world.line.faults = {request: unavailable}
    with pytest.raises(TransientError):
        world.store(new)
    assert world.ledger.stores[world.stream] == old
    world.line.faults = {}
    monkeypatch.undo()
    assert world.agrees(world.store(new))
    assert world.ledger.stores[world.stream] == new


def unavailable_binding(stream: str, store: str) -> None:
    raise TransientError("the warehouse went away")


@pytest.mark.parametrize("old", [StoreName.VARIABLE, StoreName.ASSET_STATE])
def test_an_edit_by_hand_is_not_lost_by_moving_away(world: World, old: StoreName) -> None:
    """It is asked about, as by every other run; the stream stays where it is."""
    store = settled(world, old)
    edited = json.loads(store.read(world.stream).as_text()) | {"value": "1999-01-01 00:00:00+00"}
    world.put(old, edited)
    with pytest.raises(StateError, match="edited by hand"):
        world.store("ledger")
    assert world.ledger.stores[world.stream] == old
    assert store.read(world.stream).value == "1999-01-01 00:00:00+00"


def test_a_copy_out_of_reach_stays_and_the_log_says_where(world: World) -> None:
    """The asset is no longer this task's: moving goes on without it."""
    settled(world, StoreName.ASSET_STATE)
    world.task.outlets = []
    assert world.agrees(world.store("variable"))
    (moved,) = [fields for event, fields in world.log.events if "moved" in event]
    assert "left in store asset_state" in moved["old_copy"]
    assert world.ledger.stores[world.stream] == "variable"


def test_a_stream_without_a_position_moves_too(world: World) -> None:
    world.ledger.move(world.stream, None, by=0)
    world.ledger.bind_store(world.stream, "variable")
    store = world.store("asset_state")
    assert store.read(world.stream) is None
    assert world.ledger.stores[world.stream] == "asset_state"


@pytest.mark.usefixtures("_metadata")
class Following(BaseOperator):
    """A task that works with a stream's store, as extract does."""

    def __init__(self, *, work: Callable[[Any], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.work = work

    def execute(self, context: Any) -> None:
        self.work(context)


@pytest.mark.usefixtures("_metadata")
def test_in_a_task_of_a_dag() -> None:
    """Airflow's own context; the asset as inlet emits no event and gives access all the same."""
    ledger, log = Ledger(), RecordedEvents()
    ledger.move("flights", "2013-02-01 00:00:00+00")
    ledger.bind_store("flights", "variable")
    asset = Asset(f"a.flights_{uuid4().hex[:8]}")

    def following(name: str) -> Callable[[Any], None]:
        def work(context: Any) -> None:
            store = task_store(
                name, context=context, stream="flights", target=asset.name, binding=ledger, log=log
            )
            follow(store, "flights", lambda: ledger.positions["flights"], log=log)
            found = store.read("flights")
            assert found is not None
            log("seen", where=store.where("flights"), value=found.value)

        return work

    DagBundlesManager().sync_bundles_to_db()
    with DAG(f"dag_{uuid4().hex[:8]}", schedule=None) as dag:
        first = Following(task_id="first", inlets=[asset], work=following("asset_state"))
        second = Following(task_id="second", inlets=[asset], work=following("variable"))
        first >> second
    ran = Airflow(TaskLog()).run(dag)
    assert ran.state == "success", ran.errors
    seen = [fields for event, fields in log.events if event == "seen"]
    assert [fields["value"] for fields in seen] == ["2013-02-01 00:00:00+00"] * 2
    assert asset.name in seen[0]["where"]
    assert "Variable" in seen[1]["where"]
    assert log.names().count("watermark moved to another store") == 2
