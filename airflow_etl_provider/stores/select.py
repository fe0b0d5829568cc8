"""Which store shows a stream: chosen by name, and changed without losing the position."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from airflow.sdk import Variable
from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_etl_provider.core.errors import ConfigurationError, StateError, TransientError
from airflow_etl_provider.core.load import StreamPosition
from airflow_etl_provider.core.ports import EventLog, WatermarkStore
from airflow_etl_provider.core.suggest import nearest
from airflow_etl_provider.core.watermark import follow, reconcile
from airflow_etl_provider.stores.asset_state import AssetStateWatermarkStore
from airflow_etl_provider.stores.ledger import LedgerWatermarkStore
from airflow_etl_provider.stores.variable import VariableWatermarkStore

if TYPE_CHECKING:
    from airflow.sdk import Context


class StoreName(StrEnum):
    """Where people and other tools read the watermark."""

    VARIABLE = "variable"
    ASSET_STATE = "asset_state"
    LEDGER = "ledger"


class Removable(WatermarkStore, Protocol):
    """A store that can forget a stream, so that no copy of its watermark grows old there."""

    def remove(self, stream: str) -> None: ...


class StoreBinding(Protocol):
    """What the ledger knows about a stream's store."""

    def bound_store(self, stream: str) -> str | None:
        """The name of the stream's store; ``None`` if it never loaded."""
        ...

    def bind_store(self, stream: str, store: str) -> None: ...

    def position(self, stream: str) -> StreamPosition | None: ...


def store_name(given: str) -> StoreName:
    """The store called *given*.

    :raises ConfigurationError: there is none of that name.
    """
    try:
        return StoreName(given)
    except ValueError:
        raise ConfigurationError(
            f"store={given!r} is unknown{nearest(str(given), StoreName)}",
            remedy=f"use one of {', '.join(StoreName)}",
        ) from None


def task_store(
    given: str | None,
    *,
    context: Context,
    stream: str,
    target: str,
    binding: StoreBinding,
    log: EventLog,
) -> WatermarkStore:
    """The store for a task that works on *stream*.

    :param given: the store that the DAG names. If the stream was shown by another one until now, it is
        moved, and the log says from where to where. ``None`` takes the one the ledger names.
    :raises ConfigurationError: an unknown name, or a task without the asset that the store needs.
    """
    bound = binding.bound_store(stream)
    name = store_name(given or bound or StoreName.VARIABLE)

    def opened(name: StoreName) -> Removable:
        return _opened(name, context, stream, target, binding)

    if bound is not None and bound != name:
        move(stream, bound, name, opened=opened, binding=binding, log=log)
    return opened(name)


def move(
    stream: str,
    bound: str,
    to: StoreName,
    *,
    opened: Callable[[StoreName], Removable],
    binding: StoreBinding,
    log: EventLog,
) -> None:
    """Show *stream* in another store from now on, at the same position and fence.

    The new store is written first and the ledger named last, so that a task that dies in between is
    finished by the next one. The old copy is removed: left behind it would stand still for ever and look
    like a watermark. Where this task cannot reach it (an asset that is no longer its own) it stays, and
    the log says where.

    :raises StateError: the old copy was edited by hand, which is asked about and not dropped in silence.
    """
    new = opened(to)
    old = _reachable(bound, opened)
    if old is not None:
        where = old.where(stream)
        reconcile(old.read(stream), _known(binding, stream), where=where)
    follow(new, stream, lambda: _known(binding, stream), log=log)
    if old is not None:
        old.remove(stream)
    binding.bind_store(stream, to)
    log(
        "watermark moved to another store",
        stream=stream,
        store_from=bound,
        store_to=to.value,
        where=new.where(stream),
        old_copy="removed"
        if old is not None
        else f"left in store {bound}, out of this task's reach",
    )


def _reachable(bound: str, opened: Callable[[StoreName], Removable]) -> Removable | None:
    try:
        return opened(store_name(bound))
    except ConfigurationError:
        return None


def _known(binding: StoreBinding, stream: str) -> StreamPosition:
    found = binding.position(stream)
    if found is None:
        raise StateError(
            f"the ledger lost stream {stream!r} while its watermark was being moved",
            remedy="was the schema etl dropped or restored? clear extract and downstream to begin again",
        )
    return found


def _opened(
    name: StoreName, context: Context, stream: str, target: str, binding: StoreBinding
) -> Removable:
    match name:
        case StoreName.VARIABLE:
            return _VariableStore()
        case StoreName.ASSET_STATE:
            return AssetStateWatermarkStore.of_task(context, stream=stream, target=target)
        case StoreName.LEDGER:
            return LedgerWatermarkStore(binding.position)


class _VariableStore(VariableWatermarkStore):
    """The default store, able to forget a stream."""

    def remove(self, stream: str) -> None:
        try:
            Variable.delete(self.key(stream))
        except AirflowRuntimeError as error:
            raise TransientError(
                f"Airflow did not remove the {self.where(stream)}: {error}"
            ) from None
