"""The watermark beside an asset, in Airflow's asset state store."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, Self

from airflow.sdk import Asset
from airflow.sdk.definitions.asset import AssetNameRef, AssetUriRef
from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_etl_provider.core.errors import ConfigurationError, StateError, TransientError
from airflow_etl_provider.core.names import check_stream
from airflow_etl_provider.core.watermark import Watermark

if TYPE_CHECKING:
    from airflow.sdk import Context

PREFIX = "etl.watermark."
ConcreteAsset = Asset | AssetNameRef | AssetUriRef


class AssetState(Protocol):
    """What Airflow gives a task for one of its assets."""

    def get(self, key: str, default: Any = None) -> Any: ...

    def set(self, key: str, value: Any) -> None: ...

    def delete(self, key: str) -> None: ...


class AssetStateWatermarkStore:
    """Keeps the watermark of stream ``s`` under the key ``etl.watermark.s`` of one asset, as an object.

    Other tasks that have the asset as inlet or outlet read it with
    ``context["asset_state_store"][ASSET].get("etl.watermark.s")["value"]``. Unlike a Variable it is not
    encrypted and cannot be shadowed, and a failed read is an error, never a missing value.

    :param state: the asset's state, ``context["asset_state_store"][ASSET]``.
    :param asset: how errors and logs call the asset.
    """

    def __init__(self, state: AssetState, asset: str) -> None:
        self._state = state
        self._asset = asset

    @classmethod
    def of_task(cls, context: Context, *, stream: str, target: str) -> Self:
        """The store at the asset of this task; of several, the one named like *target* or *stream*.

        :raises ConfigurationError: the task has no such inlet or outlet.
        """
        task = context["task"]
        asset = chosen_asset([*task.inlets, *task.outlets], stream=stream, target=target)
        if asset is None:
            raise ConfigurationError(
                f"store='asset_state' keeps the watermark of stream {stream!r} with an asset, and task "
                f"{task.task_id} has none named {target!r} or {stream!r} among its inlets and outlets",
                remedy=f'add inlets=[Asset("{target}")] to extract and outlets=[Asset("{target}")] to publish (an '
                "inlet gives access too and emits no event)",
            )
        return cls(context["asset_state_store"][asset], _name(asset))

    def where(self, stream: str) -> str:
        return f"state {self.key(stream)} of asset {self._asset}"

    def key(self, stream: str) -> str:
        """The key under which the asset keeps it."""
        return PREFIX + check_stream(stream)

    def read(self, stream: str) -> Watermark | None:
        found = self._get(stream)
        if found is None:
            return None
        return Watermark.from_text(json.dumps(found), stream=stream, where=self.where(stream))

    def write(self, watermark: Watermark) -> None:
        stream = watermark.stream
        written = json.loads(watermark.as_text())
        try:
            self._state.set(self.key(stream), written)
        except AirflowRuntimeError as error:
            raise TransientError(
                f"Airflow did not store the {self.where(stream)}: {error}"
            ) from None
        stored = self._get(stream)
        if stored == written:
            return
        # A parallel load of the stream may have written a newer one in between.
        other = None if stored is None else self.read(stream)
        if other is None or other.fence <= watermark.fence:
            raise StateError(
                f"what is written to the {self.where(stream)} is never read back",
                remedy="look at [workers] state_store_backend: all workers must use the same",
            )

    def remove(self, stream: str) -> None:
        """Forget the stream; nothing to forget is no error."""
        try:
            self._state.delete(self.key(stream))
        except AirflowRuntimeError as error:
            raise TransientError(
                f"Airflow did not remove the {self.where(stream)}: {error}"
            ) from None

    def _get(self, stream: str) -> Any:
        try:
            return self._state.get(self.key(stream))
        except AirflowRuntimeError as error:
            raise TransientError(
                f"Airflow did not give the {self.where(stream)}: {error}"
            ) from None


def chosen_asset(assets: Iterable[object], *, stream: str, target: str) -> ConcreteAsset | None:
    """The asset that keeps a stream's watermark: the only one, or the one named for target or stream."""
    concrete = {_name(asset): asset for asset in assets if isinstance(asset, ConcreteAsset)}
    if len(concrete) == 1:
        return next(iter(concrete.values()))
    return concrete.get(target) or concrete.get(stream)


def _name(asset: ConcreteAsset) -> str:
    return asset.uri if isinstance(asset, AssetUriRef) else asset.name
