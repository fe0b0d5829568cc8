"""Type and text fidelity: every PostgreSQL value arrives unchanged, or is refused with a name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from psycopg import sql

from airflow_etl_provider.core.errors import ContractError, DataError, EtlError
from airflow_etl_provider.core.load import Kind
from airflow_etl_provider.core.names import TableName
from tests.builders import FEBRUARY, JANUARY, NEW_YORK, Pipeline, simple

#: Values that formats, drivers or sessions like to change. One column each, text of the literal.
VALUES = {
    "boolean": ["true", "false"],
    "smallint": ["-32768", "32767"],
    "bigint": ["-9223372036854775808", "9223372036854775807"],
    "numeric": [
        "NaN",
        "Infinity",
        "-Infinity",
        "1.00",
        "1.0",
        "0.000000000000000000000000000001",
        "1e300",
    ],
    "numeric(10,2)": ["-99999999.99", "0.00"],
    "real": ["NaN", "-Infinity", "0.1", "-0", "1e-45", "3.4028235e+38"],
    "double precision": ["NaN", "Infinity", "0.1", "-0", "5e-324", "1.7976931348623157e+308"],
    "money": ["-92233720368547758.08", "12.34"],
    "text": [
        "",
        "\\N",
        "\\.",
        "a\tb\nc\rd\\e\x0bf",
        "'\"%s%(x)s{}:low",
        "Grüße 👩‍👩‍👧 \u202e",
        "x" * 100_000,
    ],
    "character varying(5)": ["äöü€𝄞", "     "],
    "character(5)": ["ab", ""],
    '"char"': ["x"],
    "name": ["x" * 63],
    "bytea": ["\\x", "\\x00ff5c0a0d09", "\\x" + "00" * 10_000],
    "date": ["4713-01-01 BC", "0001-01-01", "5874897-12-31", "infinity", "-infinity"],
    "timestamp without time zone": [
        "4713-01-01 00:00:00 BC",
        "0001-01-01 00:00:00",
        "294276-12-31 23:59:59.999999",
        "infinity",
        "-infinity",
        "2013-03-10 02:30:00.000001",
    ],
    "timestamp with time zone": [
        "4713-01-01 00:00:00+00 BC",
        "2013-11-03 01:30:00.999999-04",
        "2013-11-03 01:30:00.999999-05",
        "infinity",
        "-infinity",
    ],
    "time without time zone": ["24:00:00", "23:59:59.999999"],
    "time with time zone": ["00:00:00+15:59", "12:00:00.000001-07:30"],
    "interval": ["1 day", "24 hours", "-1 mon +30 days -00:00:00.000001", "178000000 years"],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "json": ['{"b": 1, "a": 2, "b": 3}', "  [ ]  "],
    "jsonb": ['{"k": [1.0, null, "\\u00e4"]}', "1.00", "null"],
    "inet": ["192.168.0.1/24", "::1"],
    "cidr": ["10.0.0.0/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "bit(3)": ["101"],
    "bit varying": ["", "1"],
    "point": ["(0.1,-0)"],
    "polygon": ["((0,0),(1,1),(2,0))"],
    "int4range": ["[1,5)", "empty", "(,)"],
    "tstzrange": ["[2013-01-01 00:00:00+00,infinity)"],
    "nummultirange": ["{[1.0,2.00),(3,)}"],
    "tsvector": ["'a':1A,2 'b c'"],
    "tsquery": ["'a' & !'b':*"],
    "jsonpath": ['$."a"[*]?(@ > 1)'],
    "pg_lsn": ["16/B374D848"],
    "integer[]": ["{}", "{{1,NULL},{3,4}}", "[0:1]={7,8}"],
    "text[]": ['{NULL,"NULL","",",","\\"","\\\\"}'],
    "timestamp with time zone[]": ["{infinity,NULL}"],
}


def _typed_pair(source, warehouse, types, *, target_types=None, setup=""):
    """A snapshot of one row per value; all columns but the key are nullable."""
    pipe = Pipeline(
        source, warehouse, kind=Kind.SNAPSHOTS, cursor=None, partition=None, keys=("id",)
    )
    for database, schema, name, chosen in (
        (source, "public", "t", types),
        (warehouse, "a", "t", target_types or types),
    ):
        columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(chosen))
        database.run(f"CREATE SCHEMA IF NOT EXISTS {schema}; {setup}")
        database.run(f"CREATE TABLE {schema}.{name} (id bigint PRIMARY KEY, {columns})")
    return pipe


def _insert(source, values):
    """*values*: one list per column."""
    number = 0
    for column, chosen in enumerate(values):
        for value in chosen:
            number += 1
            source.run(
                sql.SQL("INSERT INTO t (id, {}) VALUES ({}, {})").format(
                    sql.Identifier(f"c{column}"), sql.Literal(number), sql.Literal(value)
                )
            )


def _images(database, table):
    """Rows as their text and, for what text hides, their binary length and hash."""
    return database.run(
        sql.SQL("SELECT id, t::text, md5(record_send(t)) FROM {} AS t ORDER BY id").format(
            sql.Identifier(table.schema, table.name)
        )
    )


def _texts(database, table):
    return database.run(
        sql.SQL("SELECT id, t::text FROM {} AS t ORDER BY id").format(
            sql.Identifier(table.schema, table.name)
        )
    )


def test_every_builtin_type_round_trips_in_binary(source, warehouse):
    """Binary COPY, staged apart and applied by replace: no value changes on its way."""
    pipe = _typed_pair(source, warehouse, list(VALUES))
    _insert(source, list(VALUES.values()))
    manifest = pipe.staged(checksum=True)
    assert manifest.transport == "binary"
    pipe.publish(manifest)
    assert _images(warehouse, pipe.target) == _images(source, pipe.table)


def test_every_builtin_type_round_trips_as_text(source18, warehouse18):
    """One column that must travel as text takes all others with it; they arrive unchanged too."""
    mood = "CREATE TYPE public.mood AS ENUM ('sad', 'o''k', 'ha\"ppy, {}')"
    pipe = _typed_pair(source18, warehouse18, [*VALUES, "public.mood", "public.mood[]"], setup=mood)
    _insert(
        source18,
        [*VALUES.values(), ["sad", "o'k", 'ha"ppy, {}'], ['{sad,NULL,"ha\\"ppy, {}"}']],
    )
    manifest = pipe.staged()
    assert manifest.transport == "text"
    pipe.publish(manifest)
    assert _texts(warehouse18, pipe.target) == _texts(source18, pipe.table)


@pytest.mark.parametrize("side", ["source", "warehouse"])
def test_settings_of_a_database_do_not_change_values(source18, warehouse18, side):
    """Sessions of ours speak canonical text, whatever the database's defaults are."""
    database = source18 if side == "source" else warehouse18
    for setting in (
        "DateStyle = 'SQL, DMY'",
        "IntervalStyle = 'iso_8601'",
        "bytea_output = 'escape'",
        "extra_float_digits = -5",
        "TimeZone = 'America/New_York'",
        "standard_conforming_strings = on",
        "array_nulls = off",
        "search_path = 'nowhere'",
    ):
        database.run(f"ALTER DATABASE {database.name} SET {setting}")
    types = [
        "date",
        "timestamptz",
        "timestamp",
        "interval",
        "bytea",
        "double precision",
        "integer[]",
    ]
    pipe = _typed_pair(source18, warehouse18, [*types, "integer"], target_types=[*types, "bigint"])
    source18.run(
        "INSERT INTO public.t VALUES (1, '2013-02-01', '2013-11-03 01:30-05', '2013-01-02', '1 mon 2 days',"
        " '\\x00ff', 0.1::float8 + 0.2, ARRAY[1,NULL], 7)"
        if side == "warehouse"
        else "SET search_path = public; INSERT INTO public.t VALUES (1, '2013-02-01'::date,"
        " '2013-11-03 01:30-05', '2013-02-01', '1 mon 2 days', '\\x00ff', 0.1::float8 + 0.2, ARRAY[1,NULL], 7)"
    )
    manifest = pipe.staged()
    assert manifest.transport == "text"
    pipe.publish(manifest)
    query = (
        "SELECT c0 - '2000-01-01'::date, extract(epoch FROM c1), extract(epoch FROM c2),"
        " extract(epoch FROM c3), encode(c4, 'hex'), float8send(c5), array_length(c6, 1), c6[2] IS NULL, c7::text FROM {}"
    )
    assert warehouse18.run(query.format("a.t")) == source18.run(query.format("public.t"))


@pytest.mark.parametrize("encoding", ["LATIN1", "WIN1252", "EUC_JP"])
@pytest.mark.parametrize("side", ["source", "warehouse"])
@pytest.mark.parametrize("transport", ["binary", "text"])
def test_databases_of_different_encodings_exchange_text(
    server, source18, warehouse18, encoding, side, transport
):
    """Text is converted between server encodings; it never arrives as other characters."""
    name = f"enc_{encoding.lower()}_{side}_{transport}"
    from psycopg import connect

    with connect(server.conninfo(), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name}")
        admin.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    other = replace(source18, name=name)
    one, two = (other, warehouse18) if side == "source" else (source18, other)
    types = ["text", "integer"]
    pipe = _typed_pair(
        one, two, types, target_types=types if transport == "binary" else ["text", "bigint"]
    )
    word = "日本語" if encoding == "EUC_JP" else "Größe é"
    one.run("INSERT INTO t VALUES (1, %s, 1)", (word,))
    manifest = pipe.staged()
    assert manifest.transport == transport
    pipe.publish(manifest)
    assert two.run("SELECT c0 FROM a.t") == [(word,)]


def test_a_character_the_target_cannot_hold_is_refused_without_showing_it(
    server, source18, warehouse18
):
    """A Latin 1 warehouse has no emoji: the load ends, and no replacement character is stored."""
    from psycopg import connect

    with connect(server.conninfo(), autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS enc_small")
        admin.execute(
            "CREATE DATABASE enc_small ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    small = replace(warehouse18, name="enc_small")
    pipe = _typed_pair(source18, small, ["text"])
    source18.run("INSERT INTO t VALUES (1, 'a 👩 b')")
    with pytest.raises(DataError) as raised:
        pipe.staged()
    assert "👩" not in str(raised.value)
    assert pipe.left_in_staging() == set()


def test_enum_domain_and_composite_travel_by_name(source, warehouse):
    """User types of the same name and shape are carried as text, whatever their OIDs are."""
    setup = (
        "CREATE TYPE public.mood AS ENUM ('sad', 'happy');"
        "CREATE DOMAIN public.positive AS numeric CHECK (VALUE > 0);"
        'CREATE TYPE public."pair, ()" AS (a integer, "b""c" text)'
    )
    types = ["public.mood", "public.positive", 'public."pair, ()"', 'public."pair, ()"[]']
    pipe = _typed_pair(source, warehouse, types, setup=setup)
    _insert(
        source,
        [["happy"], ["1.50"], ['(1,"a,""b"")")'], ['{"(1,x)","(2,)"}']],
    )
    assert pipe.load().rows_inserted == 4
    assert _texts(warehouse, pipe.target) == _texts(source, pipe.table)


@pytest.mark.parametrize(
    ("ours", "theirs", "literal"),
    [
        ("AS numeric", "AS numeric(10,2)", "1.005"),
        ("AS timestamp", "AS timestamp(0)", "2013-01-01 00:00:00.6"),
        ("AS text", "AS character(3)", "a  "),
    ],
)
def test_a_domain_of_the_same_name_but_another_base_is_refused(
    source18, warehouse18, ours, theirs, literal
):
    """A domain that rounds on the target is no agreement: values must not change in silence."""
    source18.run(f"CREATE DOMAIN public.d {ours}")
    warehouse18.run(f"CREATE DOMAIN public.d {theirs}")
    pipe = _typed_pair(source18, warehouse18, ["public.d"])
    _insert(source18, [[literal]])
    with pytest.raises(ContractError, match="c0"):
        pipe.load()


def test_a_composite_of_the_same_name_but_another_shape_is_refused(source18, warehouse18):
    """Fields in another order would be swapped in silence."""
    source18.run("CREATE TYPE public.pair AS (low integer, high integer)")
    warehouse18.run("CREATE TYPE public.pair AS (high integer, low integer)")
    pipe = _typed_pair(source18, warehouse18, ["public.pair"])
    _insert(source18, [["(1,2)"]])
    with pytest.raises(ContractError, match="c0"):
        pipe.load()


def test_an_enum_label_the_target_lacks_is_named_by_place_not_by_value(source18, warehouse18):
    """The error says row and column; the label itself is row content."""
    source18.run("CREATE TYPE public.mood AS ENUM ('sad', 'topsecret')")
    warehouse18.run("CREATE TYPE public.mood AS ENUM ('sad')")
    pipe = _typed_pair(source18, warehouse18, ["public.mood"])
    _insert(source18, [["sad", "topsecret"]])
    with pytest.raises(EtlError) as raised:
        pipe.load()
    assert "topsecret" not in str(raised.value)
    assert "c0" in str(raised.value)
    assert pipe.left_in_staging() == set()


@pytest.mark.parametrize("side", ["source", "warehouse"])
def test_regclass_means_the_same_table_on_both_sides(source18, warehouse18, side):
    """reg* travel by qualified name: an OID or a search path must not decide which table is meant."""
    for database in (source18, warehouse18):
        database.run("CREATE SCHEMA app; CREATE TABLE app.x (); CREATE TABLE public.x ()")
    pipe = _typed_pair(source18, warehouse18, ["regclass"])
    source18.run("INSERT INTO t VALUES (1, 'app.x'), (2, 'public.x')")
    database = source18 if side == "source" else warehouse18
    database.run(f"ALTER DATABASE {database.name} SET search_path = app, public")
    pipe.load()
    assert warehouse18.run(
        "SELECT t.id, c.relnamespace::regnamespace::text FROM a.t AS t JOIN pg_class AS c ON c.oid = t.c0 ORDER BY 1"
    ) == [(1, "app"), (2, "public")]


def test_infinity_in_the_cursor_stays_outside_every_window(source18, warehouse18):
    """'infinity' is no moment: a month's window neither takes such rows nor breaks on them."""
    pipe = simple(source18, warehouse18)
    source18.run(
        "INSERT INTO t VALUES (1, 'infinity', 'a'), (2, '-infinity', 'b'), (3, '2013-01-05', 'c')"
    )
    pipe.load(JANUARY, FEBRUARY)
    assert warehouse18.run("SELECT id FROM a.t") == [(3,)]
    assert pipe.position() == "2013-02-01 00:00:00+00"


def test_boundaries_belong_to_one_side_only(source, warehouse):
    """Half-open: a row at low is in, a row at high is out, a microsecond decides."""
    pipe = simple(source, warehouse)
    source.run(
        "INSERT INTO t VALUES (1, '2012-12-31 23:59:59.999999Z', ''), (2, '2013-01-01 00:00:00Z', ''),"
        " (3, '2013-01-01 00:00:00Z', 'tie'), (4, '2013-01-31 23:59:59.999999Z', ''),"
        " (5, '2013-02-01 00:00:00Z', ''), (6, '2013-02-01 00:00:00.000001Z', '')"
    )
    pipe.load(JANUARY, FEBRUARY)
    assert warehouse.run("SELECT id FROM a.t ORDER BY 1") == [(2,), (3,), (4,)]


@pytest.mark.parametrize("cursor_type", ["timestamp", "date", "timestamp(3)", "timestamptz(0)"])
def test_a_cursor_of_every_time_type_bounds_its_month(source18, warehouse18, cursor_type):
    """Wall-clock cursors are read in the stream's zone; the partition has the bounds of that zone."""
    source18.run(f"CREATE TABLE t (id bigint PRIMARY KEY, ts {cursor_type} NOT NULL, v text)")
    warehouse18.run(
        f"CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts {cursor_type} NOT NULL, v text)"
        " PARTITION BY RANGE (ts)"
    )
    source18.run(
        "SET TimeZone = 'America/New_York';"
        "INSERT INTO t VALUES (1, '2013-02-28', ''), (2, '2013-03-01', ''), (3, '2013-03-31', ''), (4, '2013-04-01', '')"
    )
    spec = replace(Pipeline.__dataclass_fields__["partition"].default, timezone="America/New_York")
    pipe = Pipeline(source18, warehouse18, partition=spec, timezone="America/New_York")
    low = JANUARY.replace(month=3, tzinfo=NEW_YORK)
    pipe.load(low, low.replace(month=4))
    assert warehouse18.run("SELECT id FROM a.t ORDER BY 1") == [(2,), (3,)]


def test_a_null_cursor_is_counted_and_refused(source18, warehouse18):
    """A row without a cursor value would be in no window ever: it is not skipped in silence."""
    pipe = simple(source18, warehouse18)
    source18.run("ALTER TABLE t ALTER ts DROP NOT NULL")
    source18.run("INSERT INTO t VALUES (1, NULL, ''), (2, NULL, ''), (3, '2013-01-01', '')")
    with pytest.raises(DataError, match="2 rows"):
        pipe.load(JANUARY, FEBRUARY)
    assert pipe.left_in_staging() == set()


def test_a_widening_pair_travels_as_text_without_loss(source18, warehouse18):
    """Types that hold all values of the other are accepted, and the values are those of the source."""
    pairs = {
        "smallint": ("bigint", ["-32768"]),
        "bigint": ("numeric", ["9223372036854775807"]),
        "numeric(10,2)": ("numeric(12,4)", ["-12345678.99"]),
        "date": ("timestamp", ["0001-01-01", "infinity"]),
        "character varying(5)": ("text", ["ab  "]),
        "timestamp(3)": ("timestamp(6)", ["2013-01-01 00:00:00.123"]),
        "integer[]": ("bigint[]", ["{1,NULL}"]),
    }
    pipe = _typed_pair(
        source18, warehouse18, list(pairs), target_types=[target for target, _ in pairs.values()]
    )
    _insert(source18, [values for _, values in pairs.values()])
    assert pipe.staged().transport == "text"
    pipe.load()
    casts = ", ".join(
        f"(c{number}::{target})::text" for number, (target, _) in enumerate(pairs.values())
    )
    assert warehouse18.run(f"SELECT {casts} FROM a.t ORDER BY id") == source18.run(
        f"SELECT {casts} FROM t ORDER BY id"
    )


def test_the_name_of_a_table_does_not_matter_to_the_checksum(source18, warehouse18):
    """The checksum of the manifest can be computed again from the target, in any order."""
    pipe = simple(source18, warehouse18)
    source18.run(
        "INSERT INTO t SELECT i, '2013-01-01'::timestamptz + i * '1 s'::interval, 'v' || i FROM generate_series(1, 500) i"
    )
    manifest = pipe.staged(JANUARY, FEBRUARY, checksum=True)
    pipe.publish(manifest)
    assert manifest.checksum == warehouse18.value(
        "SELECT sum(hashtextextended(ROW(id, ts, v)::text, 0)::numeric)::text"
        " FROM (SELECT * FROM a.t ORDER BY random()) AS x"
    )
    assert TableName.parse(str(pipe.target)) == pipe.target


def test_the_types_of_an_extension_travel_as_text(source18, warehouse18):
    """Their binary form is the extension's own affair, and may change with its version."""
    for database, table in ((source18, "t"), (warehouse18, "a.t")):
        if not database.run("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"):
            pytest.skip("this build has no extension with a type")
        database.run("CREATE SCHEMA IF NOT EXISTS a; CREATE EXTENSION vector SCHEMA public")
        database.run(f"CREATE TABLE {table} (id int, v public.vector(3), many public.vector(2)[])")
    source18.run(
        "INSERT INTO t VALUES (1, '[1,2.5,-3e-7]', '{\"[1,2]\",\"[3,4]\"}'), (2, NULL, NULL)"
    )
    pipe = Pipeline(
        source18, warehouse18, kind=Kind.SNAPSHOTS, cursor=None, partition=None, keys=("id",)
    )
    manifest = pipe.extract()
    assert manifest.transport == "text"
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()
    warehouse18.run("ALTER TABLE a.t ALTER v TYPE public.vector(2) USING NULL")
    with pytest.raises((ContractError, DataError)):
        pipe.extract()
