"""A SELECT as the source: its bounds, its columns, and what must not go wrong with either."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import pytest

from airflow_etl_provider.core.columns import Selection, Treatment
from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ContractError,
    DataError,
)
from airflow_etl_provider.core.load import Kind
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.core.settle import SettleOptions
from airflow_etl_provider.postgres.source import hash_settings
from tests.builders import FEBRUARY, JANUARY, MARCH, Pipeline, fill, simple

NOW = SettleOptions(delay=timedelta(0), margin=timedelta(0))
BOUNDED = "SELECT id, ts, v FROM t WHERE ts >= :low AND ts < :high"


def reading(source, warehouse, query, **more):
    """The plain case, read by a query; rows of January and February are there."""
    pipe = simple(source, warehouse, query=query, settle=NOW, **more)
    fill(source, JANUARY, MARCH, 200)
    return pipe


@pytest.mark.parametrize(
    "query",
    [
        BOUNDED,
        "SELECT * FROM t",
        "select id, ts, v from t where ts between :low and :high",
        "WITH later AS (SELECT * FROM t WHERE ts >= :low) SELECT * FROM later WHERE ts < :high ;  ",
        "SELECT id, ts, v FROM t -- not :high, nor :low\n WHERE v <> ':low' AND v <> $$:high$$",
        "/* a comment */ SELECT id, ts, v FROM t WHERE ts::timestamptz >= :low::timestamptz AND ts < :high",
        "SELECT id, ts, v FROM t WHERE ts >= :low - interval '1 day' AND ts < :high + interval '1 day'",
        "SELECT id, ts, v AS \"v\" FROM t WHERE v <> E'it\\'s :low' AND (ARRAY[1,2])[1:2] IS NOT NULL -- end",
        "SELECT id, ts, v FROM t WHERE v NOT LIKE '100%' AND v <> '{}'",
    ],
)
def test_exactly_the_rows_of_the_window_arrive(source18, warehouse18, query):
    """Whatever a query does with the bounds, the window is put around it once more."""
    pipe = reading(source18, warehouse18, query)
    for low, high in ((JANUARY, FEBRUARY), (FEBRUARY, MARCH), (JANUARY, FEBRUARY)):
        pipe.load(low, high)
    assert pipe.rows() == pipe.source_rows()


def test_every_version_reads_a_query(source, warehouse):
    pipe = reading(source, warehouse, BOUNDED)
    pipe.load(JANUARY, FEBRUARY)
    pipe.load(FEBRUARY, MARCH)
    assert pipe.rows() == pipe.source_rows()


def test_a_watermark_window_of_a_query(source18, warehouse18):
    """The first load has no start: :low is then the lowest value there is."""
    pipe = reading(source18, warehouse18, BOUNDED, mode=WindowMode.WATERMARK, keys=("id",))
    pipe.kind = Kind.ENTITIES
    assert pipe.load().rows_inserted == 200
    source18.run("INSERT INTO t VALUES (1001, now(), 'late')")
    assert pipe.load().rows_inserted == 1
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize(
    "column_type", ["bigint", "integer", "numeric", "uuid", "date", "timestamp"]
)
def test_bounds_of_every_type(source18, warehouse18, column_type):
    """The bounds are typed like the cursor, so that arithmetic with them works."""
    value = {"uuid": "'01890000-0000-7000-8000-000000000001'", "date": "'2020-01-01'"}.get(
        column_type, "'2020-01-01 00:00'" if column_type == "timestamp" else "7"
    )
    source18.run(f"CREATE TABLE t (c {column_type}, v text)")
    source18.run(f"INSERT INTO t VALUES ({value}, 'x')")
    warehouse18.run(f"CREATE SCHEMA a; CREATE TABLE a.t (c {column_type}, v text)")
    pipe = Pipeline(
        source18,
        warehouse18,
        cursor="c",
        partition=None,
        mode=WindowMode.WATERMARK,
        settle=NOW,
        query="SELECT * FROM t WHERE c >= :low AND c <= :high",
    )
    pipe.load()
    assert pipe.rows() == pipe.source_rows() != []
    assert pipe.extract().rows == 0


def test_what_a_query_returns_is_typed_by_the_server(source18, warehouse18):
    """Arrays, numerics with a scale, expressions: the same rules as for tables."""
    source18.run("CREATE TABLE o (id int, at timestamptz, price numeric(10,2), tags text[])")
    source18.run(
        "INSERT INTO o VALUES (1, '2013-01-05', 1.50, '{a,\"b c\"}'), (2, '2013-01-06', 2, NULL)"
    )
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int, ts timestamptz, total numeric(12,2), tags text[], n bigint)"
    )
    pipe = Pipeline(
        source18,
        warehouse18,
        partition=None,
        settle=NOW,
        query="SELECT id, at AS ts, price::numeric(12,2) AS total, tags, count(*) OVER () AS n FROM o"
        " WHERE at >= :low AND at < :high",
    )
    pipe.load(JANUARY, FEBRUARY)
    assert warehouse18.run("SELECT id, total::text, tags, n FROM a.t ORDER BY id") == [
        (1, "1.50", ["a", "b c"], 2),
        (2, "2.00", None, 2),
    ]


@pytest.mark.parametrize(
    ("query", "error", "says"),
    [
        ("SELECT id, ts, v FROM t WHERE ts >= :low", ConfigurationError, ":low only"),
        ("SELECT id, ts FROM tt", CatalogError, 'relation "tt" does not exist'),
        ("SELECT id, id, ts FROM t", ConfigurationError, "more than one column called id"),
        ("SELECT id FRM t", CatalogError, "syntax error"),
        ("SELECT id, v FROM t", CatalogError, "no column 'ts', named as the cursor"),
        ("SELECT ts, v FROM t; DROP TABLE t", CatalogError, "syntax error"),
        (
            "WITH gone AS (DELETE FROM t RETURNING *) SELECT * FROM gone",
            CatalogError,
            "must be at the top level",
        ),
    ],
)
def test_a_query_that_cannot_be_read_is_refused_with_the_servers_words(
    source18, warehouse18, query, error, says
):
    pipe = reading(source18, warehouse18, query)
    with pytest.raises(error, match=says):
        pipe.extract(JANUARY, FEBRUARY)
    assert source18.value("SELECT count(*) FROM t") == 200


def test_bounds_in_a_full_window_are_refused(source18, warehouse18):
    source18.run("CREATE TABLE t (id int)")
    warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id int)")
    pipe = Pipeline(
        source18,
        warehouse18,
        kind=Kind.SNAPSHOTS,
        cursor=None,
        partition=None,
        query="SELECT id FROM t WHERE id > :low AND id < :high",
    )
    with pytest.raises(ConfigurationError, match="a full read has none"):
        pipe.extract()


def test_rows_without_a_cursor_value_are_noticed_in_a_query(source18, warehouse18):
    """An outer join makes the cursor NULL: such rows would be lost without a word."""
    pipe = reading(
        source18,
        warehouse18,
        "SELECT t.id, late.ts, t.v FROM t LEFT JOIN t AS late ON late.id = t.id AND t.id <> 7",
    )
    with pytest.raises(DataError, match=r"1 rows .* have no value in the cursor"):
        pipe.extract(JANUARY, FEBRUARY)


def test_a_query_waits_for_its_declared_delay(source18, warehouse18):
    """What a query puts together may be committed at different times: only the clock settles it."""
    pipe = reading(source18, warehouse18, BOUNDED)
    manifest = pipe.extract(JANUARY, FEBRUARY)
    assert "put together what was committed at different times" in (manifest.settled or "")


def test_columns_are_chosen_renamed_and_treated_in_the_source(source, warehouse):
    """What must not leave the source does not: the statement that is sent has only the treated values."""
    source.run(
        "CREATE TABLE people (id int PRIMARY KEY, at timestamptz NOT NULL, email text, phone text, ssn text,"
        " born date)"
    )
    source.run(
        "INSERT INTO people VALUES (1, '2013-01-02', 'ann@example.org', '1', 's1', '1990-01-02'),"
        " (2, '2013-01-03', 'böb@example.org', '2', 's2', NULL), (3, '2013-01-04', NULL, '3', 's3', '1990-01-02')"
    )
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (person int, ts timestamptz, mail text, phone text, born varchar(64))"
    )
    pipe = Pipeline(
        source,
        warehouse,
        table=TableName("public", "people"),
        cursor="at",
        partition=None,
        hash_key="k" * 100,
        settle=NOW,
        selection=Selection(
            rename={"id": "person", "at": "ts", "email": "mail"},
            personal={
                "email": Treatment.HASH,
                "born": Treatment.HASH,
                "phone": Treatment.NULL,
                "ssn": Treatment.DROP,
            },
        ),
    )

    def digest(text):
        return hmac.new(b"k" * 100, text.encode(), hashlib.sha256).hexdigest()

    pipe.load(JANUARY, FEBRUARY)
    assert warehouse.run("SELECT person, mail, phone, born FROM a.t ORDER BY 1") == [
        (1, digest("ann@example.org"), None, digest("1990-01-02")),
        (2, digest("böb@example.org"), None, None),
        (3, None, None, digest("1990-01-02")),
    ]
    manifest = warehouse.value("SELECT manifest FROM etl.loads")
    assert manifest["cursor"] == "ts"
    assert {
        "name": "mail",
        "type": "character varying(64)",
        "source": "email",
        "personal": "hash",
    } in manifest["columns"]
    assert "kkkk" not in str(manifest)


def test_a_hash_without_a_key_is_refused(source18, warehouse18):
    pipe = simple(source18, warehouse18, selection=Selection(personal={"v": Treatment.HASH}))
    with pytest.raises(ConfigurationError, match="there is no key"):
        pipe.extract(JANUARY, FEBRUARY)


def test_the_key_of_a_hash_is_in_no_statement(source18, warehouse18):
    """It travels as a setting of the session: neither pg_stat_activity nor a log shows it."""
    pipe = simple(
        source18,
        warehouse18,
        selection=Selection(personal={"v": Treatment.HASH}),
        hash_key="a very secret key",
    )
    fill(source18, JANUARY, FEBRUARY, 10)
    seen = []
    log = pipe.log

    def watch(event, **fields):
        if event == "extract started":
            seen.extend(source18.run("SELECT query FROM pg_stat_activity WHERE query <> ''"))
        log(event, **fields)

    pipe.log = watch
    pipe.extract(JANUARY, FEBRUARY)
    assert seen
    for pad in ("a very secret key", *hash_settings("a very secret key").values()):
        assert pad not in str(seen)


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        (Selection(personal={"ts": Treatment.HASH}), "cursor 'ts' cannot be personal"),
        (Selection(rename={"w": "x"}), "no column 'w', named in rename"),
        (Selection(personal={"vv": Treatment.DROP}), "no column 'vv', named in personal"),
        (Selection(rename={"v": "id"}), "two columns of public.t would be called id"),
        (
            Selection(columns=("id",), personal={"id": Treatment.DROP}),
            "no column of public.t is left",
        ),
        (Selection(rename={"v": "value"}), "columns that a.t has not: value"),
    ],
)
def test_a_selection_that_does_not_fit_is_refused_by_name(source18, warehouse18, selection, says):
    with pytest.raises((ConfigurationError, CatalogError, ContractError), match=says):
        simple(source18, warehouse18, selection=selection).extract(JANUARY, FEBRUARY)


def test_row_security_never_hides_rows_in_silence(source18, warehouse18):
    """A role that a policy shows only some rows is refused; told that these are meant, it reads them."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 10)
    source18.run("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    source18.run("CREATE POLICY few ON t USING (id <= 3)")
    source18.run(
        "DROP ROLE IF EXISTS tenant; CREATE ROLE tenant LOGIN PASSWORD 'tenant'; GRANT SELECT ON t TO tenant"
    )
    pipe.source_role = {"user": "tenant", "password": "tenant"}
    with pytest.raises(
        CatalogError, match=r"row security on public\.t may hide rows from role tenant"
    ):
        pipe.extract(JANUARY, FEBRUARY)
    pipe.query = "SELECT * FROM t"
    with pytest.raises(CatalogError, match="row-level security"):
        pipe.extract(JANUARY, FEBRUARY)
    pipe.row_security = True
    assert pipe.extract(JANUARY, FEBRUARY).rows == 3
    source18.run("DROP OWNED BY tenant; DROP ROLE tenant")


def test_a_bound_at_the_end_of_the_calendar(source18, warehouse18):
    """Year 0001 and infinity: rows before any calendar arrive with the first load, infinite ones are counted."""
    pipe = reading(source18, warehouse18, None, mode=WindowMode.WATERMARK, keys=("id",))
    pipe.kind, pipe.partition = Kind.ENTITIES, None
    source18.run("CREATE INDEX ON t (ts)")
    warehouse18.run(
        "DROP TABLE a.t; CREATE TABLE a.t (id bigint PRIMARY KEY, ts timestamptz, v text)"
    )
    source18.run(
        "INSERT INTO t VALUES (-1, '0001-01-01 00:00+00', 'old'), (-2, '4713-01-01 BC', 'older'),"
        " (-3, '-infinity', 'oldest'), (-4, 'infinity', 'never'), (-5, '2999-01-01', 'later')"
    )
    pipe.load()
    found = warehouse18.run("SELECT id FROM a.t WHERE id < 0 ORDER BY 1")
    assert found == [(-3,), (-2,), (-1,)]
    unreachable = [
        fields["rows"] for event, fields in pipe.log.events if event.startswith("rows lie ahead")
    ]
    assert unreachable == [2]
    assert datetime.fromisoformat(pipe.position() or "").astimezone(UTC) <= datetime.now(UTC)
