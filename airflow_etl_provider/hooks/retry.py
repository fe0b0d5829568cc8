"""A retry policy by the class of an error, for any task: what another try cannot mend is not tried again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy

from airflow_etl_provider.core.errors import ErrorClass
from airflow_etl_provider.hooks.errors import class_of

if TYPE_CHECKING:
    from airflow.sdk import Context


class EtlRetryPolicy(RetryPolicy):
    """Retry what is transient, with the task's own delay and backoff, and fail at once on everything else known.

    Transient are, by SQLSTATE, lost connections (08, 57P), deadlocks and serialization failures (40001, 40P01), lock
    timeouts (55P03), cancelled statements (57014), and a lack of disk, memory or connections (53100, 53200, 53300);
    and errors of the network. Data (22, 23), structure (42), logins, and Python's errors of values and code fail at once. Of
    anything else the task's own settings decide.

    The operators of this package need no policy: they fail at once by themselves. It is for tasks beside them::

        DAG(..., default_args={"retries": 3, "retry_policy": EtlRetryPolicy()})
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,
        context: Context | None = None,
    ) -> RetryDecision:
        found = class_of(exception)
        if found is None:
            return RetryDecision.default()
        sqlstate = getattr(exception, "sqlstate", None) or getattr(exception, "pgcode", None)
        told = f"{type(exception).__name__}{f' ({sqlstate})' if sqlstate else ''} is {found}"
        if found is ErrorClass.TRANSIENT:
            return RetryDecision.retry(reason=told)
        return RetryDecision.fail(reason=told)

    def serialize(self) -> dict[str, Any]:
        return {"__type": type(self).__name__}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Self:
        return cls()
