"""The default store: one Airflow Variable per stream."""

from __future__ import annotations

import os

from airflow.sdk import Variable
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.log import redact  # type: ignore[attr-defined]

from airflow_etl_provider.core.errors import ConfigurationError, StateError, TransientError
from airflow_etl_provider.core.names import check_stream
from airflow_etl_provider.core.watermark import Watermark

PREFIX = "etl.watermark."
_WRITES = 3
_PROBE = "an ordinary value"
_RETRIED = "a passing fault is retried; if it stays, look at the API server's log"


class VariableWatermarkStore:
    """Keeps the watermark of stream ``s`` in the Variable ``etl.watermark.s``, as JSON.

    The ledger in the target database is the truth; the Variable is written after it, read back, and
    repaired from it. A read never falls back to a default: Airflow answers a failed request for a
    Variable as it answers a missing one, so absence is confirmed by the list of keys.
    """

    def where(self, stream: str) -> str:
        return f"Variable {self.key(stream)}"

    def key(self, stream: str) -> str:
        """The Variable's key.

        :raises ConfigurationError: not a stream id, or a name that Airflow would mask in every log.
        """
        key = PREFIX + check_stream(stream)
        if redact(_PROBE, key) != _PROBE:
            raise ConfigurationError(
                f"stream id {stream!r} contains a word that Airflow takes for a secret's name, so the watermark "
                "would show as *** in every log",
                remedy="choose another id, without words such as token, secret, password or dsn "
                "(see [core] sensitive_var_conn_names)",
            )
        return key

    def read(self, stream: str) -> Watermark | None:
        key = self.key(stream)
        self._refuse_environment(key)
        try:
            text = Variable.get(key)
        except AirflowRuntimeError as error:
            if error.error.error is not ErrorType.VARIABLE_NOT_FOUND:
                raise TransientError(
                    f"Airflow did not give Variable {key}: {error}", remedy=_RETRIED
                ) from None
            if self._exists(key):
                raise TransientError(
                    f"Variable {key} exists but Airflow did not give its value",
                    remedy="a passing fault is retried; if it stays, the value cannot be decrypted (was the fernet "
                    "key changed?): delete the Variable and the next run writes it anew from the ledger",
                ) from None
            return None
        if not self._exists(key):
            raise self._shadowed(key)
        return Watermark.from_text(text, stream=stream, where=f"Variable {key}")

    def write(self, watermark: Watermark) -> None:
        key = self.key(watermark.stream)
        self._refuse_environment(key)
        text = watermark.as_text()
        for _ in range(_WRITES):
            stored = self._set(key, text, watermark.stream)
            if stored == text:
                return
            # A parallel load of the stream, or a delayed request, may have written in between; a newer
            # watermark may stay, an older one is written over. What shadows answers the same each time.
            other = Watermark.from_text(stored, stream=watermark.stream, where=f"Variable {key}")
            if other.fence > watermark.fence or (
                other.fence == watermark.fence and other.value == watermark.value
            ):
                return
        raise self._shadowed(key)

    def _set(self, key: str, text: str, stream: str) -> str:
        """Write, and answer what is read back."""
        try:
            Variable.set(
                key,
                text,
                description=f"Watermark of stream {stream}; a copy of etl.streams, do not edit",
            )
            stored: str = Variable.get(key)
        except AirflowRuntimeError as error:
            raise TransientError(
                f"Airflow did not store Variable {key}: {error}", remedy=_RETRIED
            ) from None
        return stored

    def _exists(self, key: str) -> bool:
        try:
            return key in list(Variable.keys(prefix=key))
        except AirflowRuntimeError as error:
            raise TransientError(
                f"Airflow did not list the Variables: {error}", remedy=_RETRIED
            ) from None

    def _refuse_environment(self, key: str) -> None:
        name = f"AIRFLOW_VAR_{key.upper()}"
        if name in os.environ:
            raise StateError(
                f"the environment variable {name} shadows Variable {key}: the watermark would never move",
                remedy=f"remove {name} from the workers' environment",
            )

    def _shadowed(self, key: str) -> StateError:
        return StateError(
            f"Variable {key} is shadowed by a secrets backend or by the API server's environment: what is written "
            "to it is never read back",
            remedy="remove the key there; the store keeps it in Airflow's metadata database",
        )
