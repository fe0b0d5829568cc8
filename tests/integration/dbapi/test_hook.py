"""Airflow connections as sources."""

import hmac
import sqlite3

import pytest

from airflow_etl_provider.core.columns import Selected, Treatment
from airflow_etl_provider.core.errors import ConfigurationError, TransientError
from airflow_etl_provider.dbapi.sqlite import Sqlite
from tests.unit.dbapi.reading import text_of

pytest.importorskip("airflow.providers.sqlite.hooks.sqlite")


@pytest.fixture
def connection(monkeypatch):
    """Gives Airflow a connection and returns its id."""

    def give(uri, conn_id="shop"):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", uri)
        return conn_id

    return give


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "shop.db"
    opened = sqlite3.connect(path)
    opened.execute("CREATE TABLE t (n INTEGER)")
    opened.execute("INSERT INTO t VALUES (1), (2)")
    opened.commit()
    opened.close()
    return path


def quoted(path):
    return str(path).replace("/", "%2F")


def test_sqlite_by_its_hook(connection, database):
    from airflow_etl_provider.hooks.dbapi import dbapi_source, is_postgres

    source = dbapi_source(connection(f"sqlite://{quoted(database)}"), table="t")
    assert isinstance(source.flavour, Sqlite)
    assert source.label == "connection shop"
    assert source.describe().datasets == ((f"sqlite://{database}", "t"),)
    assert not is_postgres("shop")
    assert text_of(source, ["n"]) == "1\n2\n"


def test_a_hash_key_reaches_the_source_and_no_log(connection, database):
    from airflow_etl_provider.hooks.dbapi import dbapi_source

    source = dbapi_source(
        connection(f"sqlite://{quoted(database)}"), table="t", hash_key="a long random text"
    )
    assert "random" not in repr(source)
    hashes = text_of(source, [Selected("n", "n", Treatment.HASH)]).split()
    assert hashes == [
        hmac.new(b"a long random text", digit, "sha256").hexdigest() for digit in (b"1", b"2")
    ]


def test_a_file_that_is_not_there_is_not_made(connection, tmp_path):
    from airflow_etl_provider.hooks.dbapi import dbapi_source

    with pytest.raises(ConfigurationError, match="names no file that is on this worker"):
        dbapi_source(connection(f"sqlite://{quoted(tmp_path / 'typo.db')}"), table="t")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_provider_is_named(connection):
    from airflow_etl_provider.hooks.dbapi import dbapi_source

    with pytest.raises(ConfigurationError, match="no hook for that is installed") as caught:
        dbapi_source(connection("mssql://u:p@h/d"), table="t")
    assert "pip install apache-airflow-providers-microsoft-mssql" in str(caught.value)


def test_postgresql_is_read_by_copy(connection):
    from airflow_etl_provider.hooks.dbapi import dbapi_source, is_postgres

    with pytest.raises(ConfigurationError, match="read by COPY"):
        dbapi_source(connection("postgres://u:p@h/d"), table="t")
    assert is_postgres("shop")


def test_a_connection_that_does_not_exist_is_named():
    from airflow_etl_provider.hooks.dbapi import dbapi_source

    with pytest.raises(TransientError, match="no connection 'nowhere_at_all'"):
        dbapi_source("nowhere_at_all", table="t")


def test_mysql_by_its_hook(connection):
    pytest.importorskip("airflow.providers.mysql.hooks.mysql")
    from airflow_etl_provider.dbapi.mysql import MySql
    from airflow_etl_provider.hooks.dbapi import dbapi_source

    source = dbapi_source(connection("mysql://u:p@h:3307/d"), table="t", zero_dates="null")
    assert source.flavour == MySql("mysql://h:3307", "null")
