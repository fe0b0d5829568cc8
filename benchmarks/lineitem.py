"""The table that is moved: sixteen columns of the kinds that facts have, made by the server itself."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg

MONTHS = 12

COLUMNS: LiteralString = """
    orderkey bigint NOT NULL, linenumber integer NOT NULL, partkey bigint NOT NULL, suppkey bigint NOT NULL,
    quantity numeric(15,2) NOT NULL, extendedprice numeric(15,2) NOT NULL, discount numeric(15,2) NOT NULL,
    tax numeric(15,2) NOT NULL, returnflag text NOT NULL, linestatus text NOT NULL, shipdate date NOT NULL,
    commitdate date NOT NULL, receiptdate date NOT NULL, shipinstruct text NOT NULL, comment text,
    updated_at timestamptz NOT NULL
"""
_FILL: LiteralString = """
INSERT INTO lineitem
SELECT i / 4, i %% 4, i * 7919 %% 200000, i * 104729 %% 10000, i %% 50 + 1, (i %% 90000) + 1000.5, (i %% 11) / 100.0,
       (i %% 9) / 100.0, substr('ANR', (i %% 3)::int + 1, 1), substr('OF', (i %% 2)::int + 1, 1),
       date '2024-01-01' + (i %% 366)::int, date '2024-01-01' + (i %% 300)::int, date '2024-01-01' + (i %% 330)::int,
       (ARRAY['DELIVER IN PERSON', 'COLLECT COD', 'NONE', 'TAKE BACK RETURN'])[(i %% 4)::int + 1],
       'line comment ' || md5(i::text),
       timestamptz '2024-01-01 00:00+00' + i * (interval '366 days' / %(rows)s::float8)
FROM generate_series(0::bigint, %(rows)s - 1) AS i
"""


def make_source(connection: psycopg.Connection[Any], rows: int) -> None:
    """*rows* rows spread evenly over 2024, indexed by ``updated_at``."""
    connection.execute("DROP TABLE IF EXISTS lineitem")
    connection.execute(f"CREATE TABLE lineitem ({COLUMNS})")
    connection.execute(_FILL, {"rows": rows})
    connection.execute("CREATE INDEX ON lineitem (updated_at)")
    connection.execute("VACUUM (FREEZE, ANALYZE) lineitem")


def make_target(connection: psycopg.Connection[Any]) -> None:
    """A partitioned target with a primary key and an index, and a plain table alike for the pipe."""
    connection.execute("DROP SCHEMA IF EXISTS etl CASCADE")
    connection.execute("DROP SCHEMA IF EXISTS etl_staging CASCADE")
    connection.execute("DROP TABLE IF EXISTS lineitem, piped, piped_indexed")
    connection.execute(
        f"CREATE TABLE lineitem ({COLUMNS}, PRIMARY KEY (orderkey, linenumber, updated_at))"
        " PARTITION BY RANGE (updated_at)"
    )
    connection.execute("CREATE INDEX ON lineitem (updated_at)")
    connection.execute(f"CREATE TABLE piped ({COLUMNS})")
    connection.execute(
        f"CREATE TABLE piped_indexed ({COLUMNS}, PRIMARY KEY (orderkey, linenumber, updated_at))"
    )
    connection.execute("CREATE INDEX ON piped_indexed (updated_at)")
