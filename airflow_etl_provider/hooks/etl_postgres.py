"""An Airflow PostgreSQL connection as the endpoint that :mod:`airflow_etl_provider.postgres` works with."""

from __future__ import annotations

from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_etl_provider.core.errors import ConfigurationError, TransientError
from airflow_etl_provider.postgres.session import Endpoint

_POSTGRES_TYPES = ("postgres", "postgresql")


class EtlPostgresHook(PostgresHook):
    """The ``postgres`` provider's hook, with the libpq parameters of its connection made available.

    :param postgres_conn_id: the Airflow connection; every libpq keyword in its extra is honoured, and
        tokens (``iam``) are fetched as the base hook does.
    """

    def endpoint(self, application_name: str) -> Endpoint:
        """Where the connection leads.

        :param application_name: what ``pg_stat_activity`` shows, cut to 63 bytes.
        :raises ConfigurationError: the connection is not PostgreSQL.
        :raises TransientError: there is no such connection, or Airflow did not give it.
        """
        conn_id = self.get_conn_id()
        try:
            connection = self.get_connection(conn_id)
        except AirflowNotFoundException:
            # Airflow gives the same answer when its API fails, and has no list of connections to ask.
            raise TransientError(
                f"Airflow has no connection {conn_id!r}, or did not give it",
                remedy=f"create it: airflow connections add {conn_id} --conn-uri postgres://…, or set "
                f"AIRFLOW_CONN_{conn_id.upper()}; a passing fault of Airflow is retried",
            ) from None
        if connection.conn_type not in _POSTGRES_TYPES:
            raise ConfigurationError(
                f"connection {conn_id!r} is of type {connection.conn_type!r}, not postgres",
                remedy="name a PostgreSQL connection",
            )
        extra = connection.extra_dejson
        login, password, port = connection.login, connection.password, connection.port
        if extra.get("iam", False):
            login, password, port = self.get_iam_token(connection)
        conninfo = {
            "host": connection.host,
            "user": login,
            "password": password,
            "dbname": self.database or connection.schema,
            "port": port,
            **{key: value for key, value in extra.items() if key not in self.ignored_extra_options},
        }
        return Endpoint(
            conninfo=conninfo,
            label=f"connection {conn_id}",
            application_name=application_name.encode()[:63].decode(errors="ignore"),
        )
