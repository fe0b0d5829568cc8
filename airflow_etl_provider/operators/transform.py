"""A transform between staging and audit: a SELECT over the batch, or a Python callable over Arrow record batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_etl_provider.core.dead_letters import MAX_DEAD_SHARE, DeadLimits
from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.load import Manifest
from airflow_etl_provider.core.suggest import nearest
from airflow_etl_provider.core.transform import (
    BATCH_ROWS,
    ByCallable,
    BySql,
    OnError,
    TransformRequest,
    transform,
)
from airflow_etl_provider.hooks.errors import airflow_errors, class_of
from airflow_etl_provider.hooks.etl_postgres import EtlPostgresHook
from airflow_etl_provider.lineage.datasets import transform_lineage
from airflow_etl_provider.operators.metrics import count_dead_letters
from airflow_etl_provider.operators.run import (
    Stopper,
    application_name,
    choice,
    die_with_supervisor,
    event_log,
    in_worker,
    operator_lineage,
    run_info,
)
from airflow_etl_provider.postgres.transform import PostgresTransforms

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context


class TransformOperator(BaseOperator):
    """Make another batch of a staged one, typed and checked against the target, before it is audited.

    Either by *sql*: one SELECT (or ``WITH … SELECT``) over the relation ``batch``, run in the warehouse in a
    transaction that can write nothing. What it returns is described by the server and held against the target
    before a row is read: names, types, NOT NULL columns, keys, cursor and partition column. Or by *python_callable*,
    for what SQL cannot say: it gets one ``pyarrow.RecordBatch`` after the other and gives one, or an iterable of them.

    The output is a staged table of its own; it, the ledger's entry and the rows that are set aside commit
    together. The batch that extract staged stays until the load is published, so that clearing this task
    alone transforms it again; clear validate and publish with it. A load has one transform. Returns the
    manifest of the new batch (small JSON), with the rows that came in, went out and were set aside.

    :param batch: what extract returned, with ``stage_as="source"`` where the SELECT needs columns that the
        target has not; the batch itself is looked up in the ledger. (templated)
    :param sql: the SELECT; other tables by their names as the connection's role sees them. Times are shown in
        UTC. Braces that Jinja would take belong between ``{% raw %}`` and ``{% endraw %}``. (templated)
    :param sql_file: a file with it instead, relative to the DAG's file; read when the DAG is parsed. (templated,
        as *sql* is)
    :param parameters: values by name: ``:name`` in the SELECT stands for one, as a value and never as text of the
        statement. A callable gets them as keyword arguments. (templated)
    :param python_callable: a callable, or its name as ``package.module:function``, imported when the task runs.
        It must not keep anything from one call to the next, since rows may be handed to it again. An error
        class of this package that it raises decides as it does everywhere.
    :param on_error: what an exception of the callable does that is about data: ``fail`` the load; ``set_aside_batch``
        puts the rows of that call to the dead letters; ``set_aside_row`` only those that raise by themselves,
        found by halving. Transient errors are retried, errors of the code stop the load, whatever this says.
    :param max_dead_share: largest share of the rows that were read (0 to 1) that may be set aside, those of extract
        included; with more the load fails.
    :param max_dead_rows: how many rows may be set aside at most.
    :param batch_rows: rows of one record batch; the last ones, and batches of wide rows, are smaller.
    :param as_text: columns that the callable gets and gives as PostgreSQL's text, for values that Arrow cannot
        hold, such as infinity.
    :param filled_by_publish: columns of the target that publish fills itself, as for extract.
    """

    template_fields: Sequence[str] = ("batch", "sql", "parameters")
    template_fields_renderers = {"sql": "sql", "parameters": "json"}  # noqa: RUF012  (as Airflow declares it)
    ui_color = "#e6dcf2"

    def __init__(
        self,
        *,
        batch: Any,
        sql: str | None = None,
        sql_file: str | Path | None = None,
        parameters: Mapping[str, Any] | None = None,
        python_callable: Callable[..., Any] | str | None = None,
        on_error: str = "fail",
        max_dead_share: float = MAX_DEAD_SHARE,
        max_dead_rows: int | None = None,
        batch_rows: int = BATCH_ROWS,
        as_text: Sequence[str] = (),
        filled_by_publish: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch = batch
        self.sql_file = sql_file
        # Read while the DAG is parsed, so that a version of the DAG keeps the statement it had.
        self.sql = sql if sql_file is None else self._read(sql, sql_file)
        self.parameters = parameters
        self.python_callable = python_callable
        self.on_error = on_error
        self.max_dead_share = max_dead_share
        self.max_dead_rows = max_dead_rows
        self.batch_rows = batch_rows
        self.as_text = as_text
        self.filled_by_publish = filled_by_publish
        self._stopper = Stopper()
        self._manifest: Manifest | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        die_with_supervisor()
        with airflow_errors():
            batch = Manifest.from_json(self.batch)
            how = self._how()
            if batch.nothing:
                self.log.info("nothing was loaded, so there is nothing to transform")
                return batch.as_json()
            run = run_info(context)
            hook = EtlPostgresHook(postgres_conn_id=batch.target_conn_id)
            area = PostgresTransforms(
                hook.endpoint(application_name("transform", batch.load_id, run))
            )
            request = TransformRequest(batch.load_id, run, how, tuple(self.filled_by_publish))
            # The callable is the user's: whatever it does, signals are served.
            self._manifest = in_worker(
                partial(transform, request, area=area, stop=self._stopper, log=event_log(__name__)),
                self._stopper.stop,
            )
            made = self._manifest.transformed
            if made is not None and made.set_aside:
                count_dead_letters(batch.stream, area.reasons(batch.load_id))
        return self._manifest.as_json()

    def on_kill(self) -> None:
        self._stopper.stop()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """The tables of the warehouse that were looked up; the batch itself is private."""
        return operator_lineage(transform_lineage(self._manifest))

    def _how(self) -> BySql | ByCallable:
        """:raises ConfigurationError: neither or both of SQL and callable, or options of the other one."""
        if (self.sql is None) == (self.python_callable is None):
            named = "neither sql nor" if self.sql is None else "both sql and"
            raise ConfigurationError(
                f"task {self.task_id} names {named} python_callable",
                remedy="give one of sql, sql_file and python_callable",
            )
        on_error = choice(OnError, self.on_error, "on_error")
        limits = DeadLimits(self.max_dead_share, self.max_dead_rows)
        if self.python_callable is None:
            if on_error is not OnError.FAIL or self.as_text:
                raise ConfigurationError(
                    "on_error and as_text are for python_callable: a SELECT ends at its first error",
                    remedy="leave them out; write the SELECT so that it gives NULL for what it cannot convert",
                )
            return BySql(self.sql or "", dict(self.parameters or {}))
        function = _imported(self.python_callable)
        return ByCallable(
            function=partial(function, **dict(self.parameters or {})),
            name=_name_of(self.python_callable),
            on_error=on_error,
            batch_rows=self.batch_rows,
            limits=limits,
            as_text=tuple(self.as_text),
            judge=class_of,
        )

    def _read(self, sql: str | None, sql_file: str | Path) -> str:
        if sql is not None:
            raise ConfigurationError(
                f"task {self.task_id} names both sql and sql_file", remedy="give one of them"
            )
        path = Path(sql_file)
        if not path.is_absolute() and self.has_dag():  # type: ignore[no-untyped-call]
            path = Path(self.dag.fileloc).parent / path
        try:
            return path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"sql_file {path} cannot be read: {getattr(error, 'strerror', None) or error}",
                remedy="name it relative to the file of the DAG",
            ) from None


def _name_of(function: Callable[..., Any] | str) -> str:
    if isinstance(function, str):
        return function
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or '?'}:{name}"


def _imported(function: Callable[..., Any] | str) -> Callable[..., Any]:
    """:raises ConfigurationError: there is no such module or function."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    if not module or not name:
        raise ConfigurationError(
            f"{function!r} names no function", remedy="write it as package.module:function"
        )
    try:
        found: Any = import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"{module!r} cannot be imported: {error}",
            remedy="put it on the worker's path: beside the DAGs, in plugins/, or installed",
        ) from None
    made = getattr(found, name, None)
    if not callable(made):
        known = [each for each, value in vars(found).items() if callable(value)]
        raise ConfigurationError(
            f"module {module!r} has no function {name!r}{nearest(name, known)}",
            remedy="write it as package.module:function",
        )
    return made  # type: ignore[no-any-return]
