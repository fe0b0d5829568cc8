"""The watermark's Variable, written from outside a task: by Airflow's REST API or on an Airflow host."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlsplit

from airflow_etl_provider.cli.answer import UsageError
from airflow_etl_provider.core.errors import (
    ConfigurationError,
    StateError,
    TransientError,
)
from airflow_etl_provider.core.names import check_stream
from airflow_etl_provider.core.watermark import Watermark

TOKEN = "AIRFLOW_API_TOKEN"  # noqa: S105  (the name of an environment variable)
_PREFIX = "etl.watermark."
_TIMEOUT = 15
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def _key(stream: str) -> str:
    return _PREFIX + check_stream(stream)


def _description(stream: str) -> str:
    return f"Watermark of stream {stream}; a copy of etl.streams, do not edit"


class RestVariables:
    """Variables through ``/api/v2/variables`` of an Airflow API server.

    :param url: where Airflow answers, with or without ``/api/v2``.
    :param token: a JWT of somebody who may edit Variables; never printed.
    """

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("--api-url is no address: write https://airflow.example.org")
        self._scheme, self._port = parts.scheme, parts.port
        self._server = parts.hostname
        self._base = parts.path.rstrip("/").removesuffix("/api/v2") + "/api/v2/variables"
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    @classmethod
    def from_environment(cls, url: str) -> RestVariables:
        """:raises UsageError: the environment holds no token."""
        token = os.environ.get(TOKEN)
        if not token:
            raise UsageError(f"--api-url needs a token in the environment variable {TOKEN}")
        return cls(url, token)

    def where(self, stream: str) -> str:
        return f"Variable {_key(stream)} on {self._server}"

    def read(self, stream: str) -> Watermark | None:
        status, answer = self._send("GET", f"/{quote(_key(stream))}")
        if status == HTTPStatus.NOT_FOUND:
            return None
        return Watermark.from_text(answer["value"], stream=stream, where=self.where(stream))

    def write(self, watermark: Watermark) -> None:
        stream = watermark.stream
        body = {
            "key": _key(stream),
            "value": watermark.as_text(),
            "description": _description(stream),
        }
        status, _ = self._send("PATCH", f"/{quote(_key(stream))}", body)
        if status == HTTPStatus.NOT_FOUND:
            self._send("POST", "", body)
        _require_written(self.read(stream), watermark, self.where(stream))

    def remove(self, stream: str) -> None:
        self._send("DELETE", f"/{quote(_key(stream))}")

    def _send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status, one of success or *not found*, and what the server said."""
        what = f"the Airflow API server {self._server}"
        kind = HTTPSConnection if self._scheme == "https" else HTTPConnection
        connection = kind(self._server, self._port, timeout=_TIMEOUT)
        try:
            connection.request(
                method,
                self._base + path,
                None if body is None else json.dumps(body),
                self._headers,
            )
            response = connection.getresponse()
            text = response.read()
        except (OSError, HTTPException) as error:
            raise TransientError(f"{what} did not answer ({type(error).__name__})") from None
        finally:
            connection.close()
        if response.status in _REFUSED:
            raise ConfigurationError(
                f"{what} refused the token ({response.status})",
                remedy=f"put a fresh token of somebody who may edit Variables into {TOKEN}",
            )
        if response.status != HTTPStatus.NOT_FOUND and not 200 <= response.status < 300:
            raise TransientError(
                f"{what} answered {response.status} to {method} {self._base}{path}",
                remedy="check --api-url, which is the address that a browser opens",
            )
        try:
            return response.status, json.loads(text) if text else None
        except ValueError:
            raise ConfigurationError(
                f"{what} did not answer as Airflow's API does", remedy="check --api-url"
            ) from None


class HostVariables:
    """Variables in Airflow's metadata database, on a machine that has its credentials."""

    def where(self, stream: str) -> str:
        return f"Variable {_key(stream)}"

    def read(self, stream: str) -> Watermark | None:
        from airflow.models.variable import Variable

        with _metadata() as session:
            found = session.query(Variable).filter(Variable.key == _key(stream)).one_or_none()
            text = None if found is None else found.get_val()
        if found is None:
            return None
        return Watermark.from_text(text or "", stream=stream, where=self.where(stream))

    def write(self, watermark: Watermark) -> None:
        from airflow.models.variable import Variable

        stream = watermark.stream
        with _metadata() as session:
            Variable.set(
                _key(stream),
                watermark.as_text(),
                description=_description(stream),
                session=session,
            )
        _require_written(self.read(stream), watermark, self.where(stream))

    def remove(self, stream: str) -> None:
        from airflow.models.variable import Variable

        with _metadata() as session:
            Variable.delete(_key(stream), session=session)


@contextmanager
def _metadata() -> Iterator[Any]:
    """A session of Airflow's metadata database, committed at the end."""
    from airflow.utils.session import create_session

    try:
        with create_session() as session:
            yield session
    except Exception as error:  # noqa: BLE001
        # Whatever it is: its text may hold the statement with its values and the database's address.
        raise TransientError(
            f"Airflow's metadata database did not take the Variable ({type(error).__name__})",
            remedy="run this where Airflow's scheduler or API server runs, or name --api-url",
        ) from None


def _require_written(found: Watermark | None, written: Watermark, where: str) -> None:
    if found is None or (found != written and found.fence <= written.fence):
        raise StateError(f"{where} does not hold what was written to it")
