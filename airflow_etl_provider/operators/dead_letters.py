"""Rows that were set aside come back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uuid6
from airflow.sdk import BaseOperator

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.replay import ReplayRequest, Values
from airflow_etl_provider.hooks.errors import airflow_errors
from airflow_etl_provider.hooks.etl_postgres import EtlPostgresHook
from airflow_etl_provider.operators.metrics import count_replayed
from airflow_etl_provider.operators.run import (
    Stopper,
    application_name,
    die_with_supervisor,
    event_log,
    in_worker,
    run_info,
)
from airflow_etl_provider.postgres.replay import replay_letters
from airflow_etl_provider.quality.gx import GreatExpectationsAuditor
from airflow_etl_provider.quality.report import Report
from airflow_etl_provider.quality.suite import Suite, load_suite, parse_suite

if TYPE_CHECKING:
    from airflow.sdk import Context


class DeadLetterReplayOperator(BaseOperator):
    """Bring pending dead letters of a stream back: converted, audited and published like their load.

    Each letter once, however often: it is marked in the transaction that publishes its row. A row that the
    target has in a newer version, or that a later load has read again, is not brought back but marked
    ``superseded``. One that fails again stays pending with the new reason and one more retry, and holds up no
    other; nor does a load of which nothing can be replayed, with whose error the task ends then. Returns how
    many were replayed, superseded, failed and are waiting (small JSON, no rows).

    A run's params ``ids``, ``values`` and ``corrections`` win over the arguments; none of them is templated,
    so that no value of a row shows among the rendered fields.

    :param target_conn_id: PostgreSQL connection of the warehouse. (templated)
    :param stream: the stream whose letters are replayed. (templated)
    :param ids: letters, as ``airflow-etl dead-letters list`` shows them; by default those with corrections,
        or all that are pending.
    :param values: what columns are to hold in every row: texts as the server prints them, or ``None`` for NULL.
    :param corrections: the same for single rows, by the letter's id.
    :param expectations: inline suite that every row must satisfy (see
        :class:`~airflow_etl_provider.operators.validate.QualityValidationOperator`); by default what the newest
        audit of the stream has judged. Only what is said of single rows counts.
    :param suite: file with a suite, relative to the DAG's file.
    """

    template_fields: Sequence[str] = ("target_conn_id", "stream")
    ui_color = "#f7d9d9"

    def __init__(
        self,
        *,
        target_conn_id: str,
        stream: str,
        ids: Sequence[int] | None = None,
        values: Mapping[str, str | None] | None = None,
        corrections: Mapping[int, Mapping[str, str | None]] | None = None,
        expectations: Sequence[Mapping[str, Any]] | None = None,
        suite: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.target_conn_id = target_conn_id
        self.stream = stream
        self.ids = ids
        self.values = values
        self.corrections = corrections
        self.expectations: Suite | None = self._read_suite(expectations, suite)
        self._stopper = Stopper()
        self._auditor: GreatExpectationsAuditor | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        die_with_supervisor()
        with airflow_errors():
            run = run_info(context)
            params = context.get("params") or {}
            corrections = _first_given(params.get("corrections"), self.corrections, {})
            # None at all is an answer too: whoever computes them may find none.
            ids = _first_given(params.get("ids"), self.ids, list(corrections) or None)
            request = ReplayRequest(
                stream=self.stream,
                run=run,
                ids=None if ids is None else tuple(int(letter) for letter in ids),
                values=_values(_first_given(params.get("values"), self.values, {})),
                corrections={
                    int(letter): _values(values) for letter, values in corrections.items()
                },
            )
            hook = EtlPostgresHook(postgres_conn_id=self.target_conn_id)
            endpoint = hook.endpoint(application_name("replay", None, run))
            done = replay_letters(
                endpoint,
                request,
                self.expectations,
                by_gx=partial(self._judge, endpoint.parameters(), endpoint.application_name),
                new_id=lambda: str(uuid6.uuid7()),
                stop=self._stopper,
                log=event_log(__name__),
            )
            count_replayed(self.stream, done.counts())
            done.raise_refused()
        return done.as_json()

    def on_kill(self) -> None:
        self._stopper.stop()
        if self._auditor is not None:
            self._auditor.cancel()

    def _judge(
        self,
        conninfo: Mapping[str, str],
        application: str,
        table: TableName,
        suite: Suite,
        load_id: str,
    ) -> Report:
        self._auditor = GreatExpectationsAuditor(conninfo, application)
        judge = partial(self._auditor.audit, table.schema, table.name, suite, load_id=load_id)
        return in_worker(judge, self._auditor.cancel)

    def _read_suite(
        self, expectations: Sequence[Mapping[str, Any]] | None, suite: str | Path | None
    ) -> Suite | None:
        if expectations is not None and suite is not None:
            raise ConfigurationError(
                f"task {self.task_id} names both expectations and suite", remedy="give one of them"
            )
        if suite is None:
            return parse_suite(expectations, name=self.task_id) if expectations else None
        path = Path(suite)
        if not path.is_absolute() and self.has_dag():  # type: ignore[no-untyped-call]
            path = Path(self.dag.fileloc).parent / path
        return load_suite(path)


def _first_given(*answers: Any) -> Any:
    return next((answer for answer in answers if answer is not None), None)


def _values(given: object) -> Values:
    """Values by column, as a mapping or, from a form, as its JSON text.

    :raises ConfigurationError: neither.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            given = None
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            "corrected values are no mapping of columns to texts",
            remedy='write {"column": "value"}, with null for NULL',
        )
    return {str(column): value for column, value in given.items()}
