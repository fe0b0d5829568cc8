"""A SELECT between staging and audit: what it may be, what it must give, and what is kept of it."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from psycopg import sql

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ContractError,
    DataError,
    EtlError,
    StateError,
    Stopped,
    Superseded,
    TransientError,
)
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.request import StageAs, WindowMode
from airflow_etl_provider.postgres.clean import CleanOptions, clean
from airflow_etl_provider.quality.report import Report
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import (
    FEBRUARY,
    JANUARY,
    MARCH,
    Pipeline,
    fill,
    in_background,
    simple,
    table_rows,
    wait_until,
)

SAME = "SELECT * FROM batch"


def raw(source, warehouse, source_table, target_table, **changes):
    """A pipeline whose batch is typed like the source."""
    source.run(source_table)
    warehouse.run(target_table)
    options = {"stage_as": StageAs.SOURCE, **changes.pop("options", {})}
    return Pipeline(source, warehouse, options=options, **changes)


def snapshots(source, warehouse, source_table, target_table, **changes):
    """The same for a table that is read whole, so that nothing but columns matters."""
    given = {"kind": Kind.SNAPSHOTS, "cursor": None, "mode": WindowMode.FULL, "partition": None}
    return raw(source, warehouse, source_table, target_table, **{**given, **changes})


def publish(pipe, manifest, **options):
    return pipe.publish(pipe.waive(manifest), **options)


class TestWhatItGives:
    def test_a_month_is_filtered_joined_and_swapped_in(self, source, warehouse):
        """The plain case: fewer rows than came in, one column from a table of the warehouse."""
        pipe = simple(source, warehouse)
        fill(source, JANUARY, FEBRUARY, 1000)
        warehouse.run(
            "CREATE TABLE a.names AS SELECT i AS id, 'name ' || i AS name FROM generate_series(1, 2000) i"
        )
        batch = pipe.extract(JANUARY, FEBRUARY)
        assert batch.direct
        made = pipe.transform(
            batch,
            "SELECT b.id, b.ts, n.name AS v FROM batch AS b JOIN a.names AS n USING (id) WHERE b.id % 4 = 0",
        )
        assert (made.rows, made.transformed.rows, made.direct) == (250, 1000, False)
        done = publish(pipe, made)
        assert (done.strategy, done.rows_inserted) == (Strategy.SWAP, 250)
        assert warehouse.run("SELECT min(v), count(*) FROM a.t") == [("name 100", 250)]
        assert pipe.position() == "2013-02-01 00:00:00+00"
        assert pipe.left_in_staging() == set()

    def test_columns_that_only_the_source_has(self, source, warehouse):
        """Staged as the source has it, the batch holds what the target never will."""
        pipe = raw(
            source,
            warehouse,
            "CREATE TABLE t (id int, ts timestamptz, net numeric(12,2), rate text, tags text[], j jsonb);"
            "INSERT INTO t VALUES (1, '2013-01-05Z', 10.50, '0.19', '{a,b}', '{\"a\": 1}'), (2, '2013-01-06Z', 2, '0.07', NULL, NULL)",
            "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, gross numeric(12,2), tag text)"
            " PARTITION BY RANGE (ts)",
        )
        batch = pipe.extract(JANUARY, FEBRUARY)
        assert not batch.direct
        assert batch.transport == "binary"
        made = pipe.transform(
            batch,
            "SELECT id, ts, round(net * (1 + rate::numeric), 2)::numeric(12,2) AS gross, tags[1] AS tag FROM batch",
        )
        publish(pipe, made)
        assert pipe.rows() == [
            ('(1,"2013-01-05 00:00:00+00",12.50,a)',),
            ('(2,"2013-01-06 00:00:00+00",2.14,)',),
        ]

    def test_types_that_the_warehouse_does_not_know_are_text(self, source, warehouse):
        """An enum, a domain and a regclass of the source, of which the target's database has none."""
        pipe = snapshots(
            source,
            warehouse,
            "CREATE TYPE mood AS ENUM ('sad', 'fine'); CREATE DOMAIN posint AS int CHECK (value > 0);"
            "CREATE TABLE t (m mood, p posint, r regclass); INSERT INTO t VALUES ('fine', 7, 'public.t')",
            "CREATE SCHEMA a; CREATE TABLE a.t (m text, p int, r text)",
        )
        made = pipe.transform(pipe.extract(), "SELECT m, p::int AS p, r FROM batch")
        publish(pipe, made)
        assert pipe.rows() == [("(fine,7,public.t)",)]

    def test_every_value_arrives_as_it_was(self, source, warehouse):
        """NULL and the empty string, quotes, backslashes, line ends, infinity, year 0001 and BC, NaN."""
        columns = (
            "i int, t text, n numeric, f float8, d date, ts timestamp, tz timestamptz, b bytea, j json, a text[], u uuid,"
            " c char(3), iv interval, ti time"
        )
        values = r"""
            (1, '', 'NaN', 'NaN', 'infinity', '-infinity', '0001-01-01 00:00:00+00', '\x00ff', '{"a" :1}', '{}',
             '00000000-0000-0000-0000-000000000001', 'a', '1 mon -2 days', '24:00'),
            (2, NULL, 1e-20, '-0', '4713-01-01 BC', '294276-12-31 23:59:59.999999', 'infinity', '', 'null', '{NULL,"",NULL}',
             NULL, '', NULL, '00:00:00.000001'),
            (3, E'q"\\ \t\n\r\\.\n', 123456789012345678901234567890.5, 5e-324, '9999-12-31', NULL, NULL, NULL, NULL, NULL,
             NULL, NULL, NULL, NULL)
        """
        pipe = snapshots(
            source,
            warehouse,
            f"CREATE TABLE t ({columns}); INSERT INTO t VALUES {values}",
            f"CREATE SCHEMA a; CREATE TABLE a.t ({columns})",
        )
        publish(pipe, pipe.transform(pipe.extract(), SAME))
        assert pipe.rows() == pipe.source_rows()

    def test_odd_names(self, source, warehouse):
        """Quotes, spaces, capitals, keywords, per cent and 63 bytes, in columns and tables."""
        names = ['Weird "Col', "per%cent", "select", "ü" * 31 + "x", "a.b", "%s"]
        listed = ", ".join('"' + name.replace('"', '""') + '" text' for name in names)
        pipe = snapshots(
            source,
            warehouse,
            f"CREATE TABLE \"T %\" ({listed}); INSERT INTO \"T %\" VALUES ('1', '2', '3', '4', '5', '6')",
            f'CREATE SCHEMA "a%"; CREATE TABLE "a%"."T ""%" ({listed})',
            table=TableName("public", "T %"),
            target=TableName("a%", 'T "%'),
        )
        made = pipe.transform(pipe.extract(), "SELECT * FROM batch WHERE \"per%cent\" LIKE '%2%'")
        assert [column.name for column in made.columns] == names
        publish(pipe, made)
        assert pipe.rows() == [("(1,2,3,4,5,6)",)]

    def test_narrow_types_widen_and_text_that_is_too_long_is_an_error(self, source18, warehouse18):
        """int into bigint, date into timestamp; varchar is never cut."""
        pipe = snapshots(
            source18,
            warehouse18,
            "CREATE TABLE t (i int, d date, v text); INSERT INTO t VALUES (1, '2013-01-01', 'abc')",
            "CREATE SCHEMA a; CREATE TABLE a.t (i numeric, d timestamp, v varchar(3))",
        )
        publish(pipe, pipe.transform(pipe.extract(), SAME))
        assert pipe.rows() == [('(1,"2013-01-01 00:00:00",abc)',)]
        source18.run("UPDATE t SET v = 'abcd'")
        with pytest.raises(DataError, match="22001"):
            pipe.transform(pipe.extract(), SAME)

    def test_a_domain_of_the_target_keeps_its_word(self, source18, warehouse18):
        """The server tells the type below it; its CHECK is held all the same."""
        pipe = snapshots(
            source18,
            warehouse18,
            "CREATE TABLE t (i int); INSERT INTO t VALUES (1)",
            "CREATE SCHEMA a; CREATE DOMAIN a.posint AS int CHECK (value > 0); CREATE TABLE a.t (i a.posint)",
        )
        publish(pipe, pipe.transform(pipe.extract(), SAME))
        assert pipe.rows() == [("(1)",)]
        with pytest.raises(DataError, match="posint"):
            pipe.transform(pipe.extract(), "SELECT -i AS i FROM batch")

    def test_an_empty_batch_and_one_of_which_nothing_is_left(self, source, warehouse):
        """Both are recorded, covered and published as such."""
        pipe = simple(source, warehouse)
        made = pipe.transform(pipe.extract(JANUARY, FEBRUARY), SAME)
        assert (made.rows, publish(pipe, made).rows_inserted) == (0, 0)
        fill(source, FEBRUARY, MARCH, 10)
        made = pipe.transform(pipe.extract(FEBRUARY, MARCH), "SELECT * FROM batch WHERE false")
        assert (made.transformed.rows, made.rows) == (10, 0)
        assert publish(pipe, made).rows_inserted == 0
        assert pipe.position() == "2013-03-01 00:00:00+00"
        assert pipe.rows() == []

    def test_two_months_become_two_partitions(self, source18, warehouse18):
        """What is made of a batch is staged in one table; publish builds the partitions."""
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, MARCH, 100)
        made = pipe.transform(
            pipe.extract(JANUARY, MARCH), "SELECT id, ts, upper(v) AS v FROM batch"
        )
        done = publish(pipe, made)
        assert [part.rows for part in done.partitions] == [53, 47]
        assert warehouse18.value("SELECT count(*) FROM a.t WHERE v LIKE 'ROW %'") == 100
        assert pipe.left_in_staging() == set()

    def test_entities_are_merged_by_key(self, source, warehouse):
        """A key that the transform makes itself, and duplicates that it leaves, settled by the cursor."""
        pipe = raw(
            source,
            warehouse,
            "CREATE TABLE t (first text, last text, changed timestamptz, v int)",
            "CREATE SCHEMA a; CREATE TABLE a.t (name text PRIMARY KEY, changed timestamptz, v int);"
            "INSERT INTO a.t VALUES ('x y', '2012-01-01Z', 0), ('stays', '2012-01-01Z', 0)",
            kind=Kind.ENTITIES, cursor="changed", keys=("name",), partition=None, mode=WindowMode.FULL,
        )  # fmt: skip
        source.run(
            "INSERT INTO t VALUES ('x', 'y', '2013-01-01Z', 1), ('X', 'y', '2013-01-02Z', 2), ('a', 'b', '2013-01-01Z', 3)"
        )
        select = "SELECT lower(first || ' ' || last) AS name, changed, v FROM batch"
        done = publish(pipe, pipe.transform(pipe.extract(), select))
        assert (done.strategy, done.rows_inserted, done.rows_updated) == ("merge", 1, 1)
        assert [row[0] for row in pipe.rows()] == [
            '("a b","2013-01-01 00:00:00+00",3)',
            '("x y","2013-01-02 00:00:00+00",2)',
            '(stays,"2012-01-01 00:00:00+00",0)',
        ]

    def test_duplicates_that_nothing_settles_are_refused_at_publish(self, source18, warehouse18):
        """A join that doubles a snapshot's rows: readers keep what they had."""
        pipe = snapshots(
            source18,
            warehouse18,
            "CREATE TABLE t (id int, v text); INSERT INTO t VALUES (1, 'a')",
            "CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, v text)",
        )
        made = pipe.transform(pipe.extract(), "SELECT b.* FROM batch AS b, generate_series(1, 2)")
        assert made.rows == 2
        with pytest.raises(DataError, match="more than once"):
            publish(pipe, made)
        assert pipe.rows() == []

    def test_columns_that_publish_fills_need_not_be_given(self, source18, warehouse18):
        """The load's id of append is NOT NULL and no column of the output."""
        pipe = raw(
            source18,
            warehouse18,
            "CREATE TABLE t (id int, ts timestamptz); INSERT INTO t VALUES (1, '2013-01-05Z')",
            "CREATE SCHEMA a; CREATE TABLE a.t (id int, ts timestamptz, load_id uuid NOT NULL)",
            partition=None,
        )
        batch = pipe.extract(JANUARY, FEBRUARY)
        with pytest.raises(ContractError, match="it lacks 'load_id', NOT NULL without a default"):
            pipe.transform(batch, SAME)
        made = pipe.transform(batch, SAME, filled_by_publish=("load_id",))
        assert (
            publish(pipe, made, strategy=Strategy.APPEND, load_id_column="load_id").rows_inserted
            == 1
        )


class TestParameters:
    def test_values_are_values(self, source, warehouse):
        """Whatever stands in a value, it is one; names in literals and comments are text."""
        pipe = snapshots(
            source,
            warehouse,
            "CREATE TABLE t (i int); INSERT INTO t VALUES (1)",
            "CREATE SCHEMA a; CREATE TABLE a.t (i int, v text, n numeric, d date, b bool, x text, l int[])",
        )
        evil = "'; DROP TABLE a.t; -- \\ :n %s {}"
        made = pipe.transform(
            pipe.extract(),
            "SELECT i, :v AS v, :n::numeric AS n, :d::date AS d, :b AS b, ':v' || /* :v */ $$:v$$ AS x, -- :v\n"
            " (ARRAY[1,2,3])[2 : 3] AS l FROM batch WHERE i = ANY (:ids) AND :nothing::int IS NULL;",
            parameters={
                "v": evil, "n": Decimal("-1.50"), "d": date(2013, 1, 1), "b": True, "ids": [1, 2], "nothing": None,
            },
        )  # fmt: skip
        publish(pipe, made)
        assert warehouse.run("SELECT v, n::text, d, b, x, l FROM a.t") == [
            (evil, "-1.50", date(2013, 1, 1), True, ":v:v", [2, 3])
        ]

    @pytest.mark.parametrize(
        ("text", "parameters", "says"),
        [
            ("SELECT :rat FROM batch", {"rate": 1}, "names :rat, .*did you mean 'rate'"),
            ("SELECT 1 FROM batch", {"rate": 1}, "does not use its parameter 'rate'"),
            ("SELECT :x FROM batch", {"x": {"a": 1}}, "is a dict"),
            ("SELECT :x FROM batch", {"x": [object()]}, "is a object"),
        ],
    )
    def test_what_does_not_fit_is_named(self, source18, warehouse18, text, parameters, says):
        pipe = simple(source18, warehouse18)
        with pytest.raises(ConfigurationError, match=says):
            pipe.transform(pipe.extract(JANUARY, FEBRUARY), text, parameters=parameters)


@pytest.fixture
def staged(source18, warehouse18):
    """Ten events, staged."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 10)
    return pipe, pipe.extract(JANUARY, FEBRUARY)


class TestRefused:
    @pytest.mark.parametrize(
        "text",
        [
            "DELETE FROM a.t",
            "INSERT INTO a.log VALUES ('x') RETURNING 1",
            "COPY batch TO PROGRAM 'true'",
            "TRUNCATE a.log",
            "",
            "WITH gone AS (DELETE FROM a.log RETURNING *) SELECT * FROM batch",
            "SELECT * INTO a.copy FROM batch",
            "SELECT * FROM batch; DELETE FROM a.log",
            "SELECT 1) AS q) AS r; COMMIT; DROP TABLE a.log; SELECT * FROM (SELECT * FROM (SELECT 1",
            "SELECT b.* FROM batch AS b, a.log AS l FOR UPDATE OF l",
            "SELECT id, ts, a.writes() AS v FROM batch",
            "SELECT id, ts, nextval('a.s')::text AS v FROM batch",
            "SELECT id, ts, set_config('transaction_read_only', 'off', false) || a.writes() AS v FROM batch",
            "SELECT id, ts, CASE WHEN ts > now() THEN lo_create(0)::text ELSE lo_create(0)::text END AS v FROM batch",
        ],
    )
    def test_a_statement_that_changes_data(self, staged, text):
        """Whatever it is wrapped in; the table it was to change has all its rows, and nothing is left behind."""
        pipe, batch = staged
        warehouse = pipe.warehouse
        warehouse.run(
            "CREATE TABLE a.log (x text); INSERT INTO a.log VALUES ('there'); CREATE SEQUENCE a.s;"
            "CREATE FUNCTION a.writes() RETURNS text LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO a.log VALUES ('written'); RETURN 'x'; END $$"
        )
        with pytest.raises(EtlError) as refused:
            pipe.transform(batch, text)
        assert refused.value.remedy
        assert not isinstance(refused.value, TransientError)
        assert warehouse.run("SELECT x FROM a.log") == [("there",)]
        assert warehouse.value("SELECT is_called FROM a.s") is False
        assert warehouse.value("SELECT count(*) FROM pg_largeobject_metadata") == 0
        assert pipe.left_in_staging() == {batch.staging.name}
        assert pipe.state(batch.load_id) == "staged"

    @pytest.mark.parametrize(
        ("select", "says", "remedy"),
        [
            ("id, ts, 1 AS v", "v: integer does not fit|v", None),
            ("id::text, ts, v", "id: text does not fit bigint", "write id::bigint AS id"),
            (
                "id, ts::timestamp, v",
                "ts: timestamp without time zone does not fit",
                "AT TIME ZONE 'UTC' AS ts",
            ),
            ("id, ts, v, v AS w", "it has 'w', which a.t has not", None),
            ("id, ts, v AS V1", "it has 'v1', which a.t has not; did you mean 'v'", None),
            ("ts, v", "it lacks 'id', NOT NULL without a default", None),
            ("id, v", "it lacks 'ts', the cursor", None),
            ("id + 0.5 AS id, ts", "id: numeric does not fit bigint", "write id::bigint AS id"),
        ],
    )
    def test_an_output_that_does_not_fit(self, staged, select, says, remedy):
        """Before a row is read: the statement would divide by zero if it were run."""
        pipe, batch = staged
        if "|" in says:
            # Any type fits text.
            assert pipe.transform(batch, f"SELECT {select} FROM batch").rows == 10
            return
        with pytest.raises(ContractError, match=says) as refused:
            pipe.transform(batch, f"SELECT {select} FROM batch WHERE 1 / (id - id) = 1")
        if remedy:
            assert remedy in refused.value.remedy
        assert pipe.warehouse.value("SELECT error FROM etl.loads") == refused.value.what
        assert pipe.left_in_staging() == {batch.staging.name}

    def test_all_that_is_wrong_is_told_at_once(self, staged):
        pipe, batch = staged
        with pytest.raises(ContractError) as refused:
            pipe.transform(batch, "SELECT id::text, x.v AS w FROM batch AS x")
        for part in ("id: text does not fit bigint", "it has 'w'", "it lacks 'ts', the cursor"):
            assert part in refused.value.what

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("SELECT nope FROM batch", "nope"),
            ("SELECT batch.idd, ts FROM batch", 'reference the column "batch.id"'),
            ("SELECT * FROM a.nope", "a.nope"),
            ("SELECT a.nope(id) FROM batch", "a.nope"),
            ("SELECT * FROM batch WHERE", "syntax"),
            ("SELECT id, id, ts FROM batch", "more than one column called id"),
        ],
    )
    def test_a_statement_that_the_server_does_not_take(self, staged, text, says):
        pipe, batch = staged
        with pytest.raises((CatalogError, ConfigurationError)) as refused:
            pipe.transform(batch, text)
        assert says in str(refused.value)

    def test_rows_outside_of_the_window(self, staged):
        """Publish replaces the rows of the window: what lies outside would be there twice one day."""
        pipe, batch = staged
        for shifted in (
            "date_trunc('year', ts) - interval '1 day'",
            "ts + interval '1 month'",
            "NULL::timestamptz",
        ):
            with pytest.raises(DataError, match=r"10 rows .* outside of the window"):
                pipe.transform(batch, f"SELECT id, {shifted} AS ts, v FROM batch")
        assert pipe.left_in_staging() == {batch.staging.name}

    def test_a_window_that_means_something_else_in_the_target(self, source18, warehouse18):
        """The target holds days, the window hours: it would be another window there."""
        pipe = raw(
            source18,
            warehouse18,
            "CREATE TABLE t (id int, ts timestamptz)",
            "CREATE SCHEMA a; CREATE TABLE a.t (id int, ts date)",
            partition=None,
        )
        with pytest.raises(ContractError, match="window is of timestamp with time zone"):
            pipe.transform(pipe.extract(JANUARY, FEBRUARY), "SELECT id, ts::date AS ts FROM batch")

    def test_a_column_that_is_lost_on_the_way(self, staged):
        """Earlier loads brought it, the target has it: leaving it out is no accident that passes unseen."""
        pipe, batch = staged
        publish(pipe, pipe.transform(batch, SAME))
        with pytest.raises(ContractError, match="it lacks 'v', which earlier loads"):
            pipe.transform(pipe.extract(JANUARY, FEBRUARY), "SELECT id, ts FROM batch")

    def test_a_stream_with_a_transform_may_read_what_the_target_has_not(
        self, source18, warehouse18
    ):
        """The contract between source and target is about what extract carried, not about what was made of it."""
        pipe = simple(source18, warehouse18)
        warehouse18.run("ALTER TABLE a.t ADD made text")
        fill(source18, JANUARY, FEBRUARY, 10)
        select = "SELECT *, upper(v) AS made FROM batch"
        for _ in range(2):
            publish(pipe, pipe.transform(pipe.extract(JANUARY, FEBRUARY), select))
        assert warehouse18.value("SELECT count(made) FROM a.t") == 10

    def test_row_security_hides_nothing_in_silence(self, source18, warehouse18):
        """A table that is looked up has policies for the role: an error, not a shorter batch."""
        pipe = simple(source18, warehouse18)
        warehouse18.run(
            "DROP ROLE IF EXISTS tenant; CREATE ROLE tenant LOGIN PASSWORD 'x';"
            "GRANT CREATE ON DATABASE warehouse_db TO tenant; ALTER SCHEMA a OWNER TO tenant; ALTER TABLE a.t OWNER TO tenant;"
            "CREATE TABLE a.secret (id bigint); INSERT INTO a.secret VALUES (1); GRANT SELECT ON a.secret TO tenant;"
            "ALTER TABLE a.secret ENABLE ROW LEVEL SECURITY"
        )
        fill(source18, JANUARY, FEBRUARY, 10)
        pipe.warehouse_role = {"user": "tenant", "password": "x"}
        batch = pipe.extract(JANUARY, FEBRUARY)
        with pytest.raises(EtlError, match="row-level security"):
            pipe.transform(batch, "SELECT b.* FROM batch AS b JOIN a.secret USING (id)")
        warehouse18.run("DROP OWNED BY tenant CASCADE; DROP ROLE tenant")


class TestStates:
    def test_the_original_stays_until_publish(self, staged):
        """Both tables are registered; neither the janitor nor anybody else takes them before."""
        pipe, batch = staged
        made = pipe.transform(batch, SAME)
        assert made.staging != batch.staging
        assert made.staging.name.endswith("_t1")
        assert pipe.left_in_staging() == {batch.staging.name, made.staging.name}
        with pipe.warehouse.connect() as connection:
            options = CleanOptions()
            cleaned = clean(connection, options, stop=threading.Event(), log=RecordedEvents())
        assert (cleaned.dropped, cleaned.unregistered) == ((), ())
        publish(pipe, made)
        assert pipe.left_in_staging() == set()

    def test_the_janitor_takes_all_tables_of_a_load_that_is_over(self, staged):
        """The one that was read, those that were made, and one that a reader had kept from being dropped."""
        pipe, batch = staged
        first = pipe.transform(batch, SAME)
        with pipe.warehouse.connect() as looking, looking.transaction():
            looking.execute(f"SELECT * FROM {first.staging}")
            pipe.transform(batch, SAME, try_number=2, clear_number=1)
        assert len(pipe.left_in_staging()) == 3
        pipe.warehouse.run("UPDATE etl.loads SET state = 'abandoned'")
        with pipe.warehouse.connect() as connection:
            cleaned = clean(
                connection, CleanOptions(), stop=threading.Event(), log=RecordedEvents()
            )
        assert (len(cleaned.dropped), cleaned.unregistered) == (3, ())
        assert pipe.left_in_staging() == set()

    def test_the_ledger_says_what_was_made(self, staged):
        """State, table, rows and manifest change together."""
        pipe, batch = staged
        made = pipe.transform(pipe.waive(batch), "SELECT * FROM batch WHERE id > 3")
        row = pipe.warehouse.run(
            "SELECT state, staging, rows_staged, manifest ->> 'staging', manifest -> 'transformed' ->> 'rows', report"
            " FROM etl.loads"
        )
        assert row == [("staged", str(made.staging), 7, str(made.staging), "10", None)]

    def test_a_retry_of_what_was_done_returns_it(self, staged):
        """The try committed and died before it could say so."""
        pipe, batch = staged
        made = pipe.transform(batch, SAME)
        again = pipe.transform(batch, SAME, try_number=2)
        assert again == made

    def test_a_clear_begins_again_from_what_was_extracted(self, staged):
        """Twice the same transform is not applied twice; what the first made is dropped."""
        pipe, batch = staged
        select = "SELECT id + 100 AS id, ts, v FROM batch"
        pipe.transform(batch, select)
        made = pipe.transform(batch, select, try_number=2, clear_number=1)
        assert made.transformed.rows == 10
        assert pipe.left_in_staging() == {batch.staging.name, made.staging.name}
        publish(pipe, made)
        assert pipe.warehouse.run("SELECT min(id), max(id) FROM a.t") == [(101, 110)]

    def test_a_rejected_batch_is_transformed_again(self, staged):
        """The SELECT was mended after the audit had refused the batch."""
        pipe, batch = staged
        pipe.transform(batch, SAME)
        pipe.warehouse.run("UPDATE etl.loads SET state = 'rejected'")
        made = pipe.transform(batch, "SELECT * FROM batch WHERE id > 5", try_number=2)
        assert (pipe.state(batch.load_id), made.rows) == ("staged", 5)

    def test_a_validated_batch_must_be_audited_again(self, staged):
        """A clear of transform alone leaves nothing that publish would take."""
        pipe, batch = staged
        first = pipe.waive(pipe.transform(batch, SAME))
        pipe.transform(batch, SAME, try_number=2, clear_number=1)
        with pytest.raises(StateError, match="staged, not validated"):
            pipe.publish(first)

    def test_an_audit_of_the_batch_before_says_nothing_of_the_one_after(self, staged):
        """A zombie of validate ends while the batch is made anew: publish does not take what it has not seen."""
        pipe, batch = staged
        first = pipe.transform(batch, SAME)
        pipe.transform(
            batch, "SELECT id, ts, 'unseen' AS v FROM batch", try_number=2, clear_number=1
        )
        started = datetime.now(UTC)
        report = Report(batch.load_id, "none", str(first.staging), 10, (), started, started)
        with pytest.raises(Superseded, match="no longer waiting"):
            pipe.audits().record_audit(first, report, error=None)
        assert pipe.state(batch.load_id) == "staged"

    def test_a_published_load_is_left_alone(self, staged):
        pipe, batch = staged
        made = pipe.transform(batch, SAME)
        publish(pipe, made)
        again = pipe.transform(
            batch, "SELECT * FROM batch WHERE false", try_number=2, clear_number=1
        )
        assert again.rows == 10
        assert (
            "already published; clear extract and downstream to load the window anew"
            in pipe.log.names()
        )

    def test_a_second_transform_is_refused(self, staged):
        """It would read what extract staged, and undo the first."""
        pipe, batch = staged
        pipe.transform(batch, SAME)
        with pytest.raises(ConfigurationError, match="was transformed by task 'transform'"):
            pipe.transform(batch, SAME, task_id="other")

    def test_an_original_that_is_gone(self, staged):
        pipe, batch = staged
        pipe.warehouse.run(
            sql.SQL("DROP TABLE {}").format(sql.Identifier("etl_staging", batch.staging.name))
        )
        with pytest.raises(ContractError, match="is gone"):
            pipe.transform(batch, SAME)

    def test_an_original_that_somebody_changed(self, staged):
        """What is read is what was staged, or nothing."""
        pipe, batch = staged
        pipe.warehouse.run(
            sql.SQL("DELETE FROM {} WHERE id = 1").format(
                sql.Identifier("etl_staging", batch.staging.name)
            )
        )
        with pytest.raises(ContractError, match="holds 9 rows, 10 were staged"):
            pipe.transform(batch, SAME)

    def test_a_clear_of_extract_takes_all_tables_with_it(self, staged):
        pipe, batch = staged
        pipe.transform(batch, SAME)
        pipe.staging().discard(batch.load_id, "cleared")
        assert pipe.left_in_staging() == set()

    def test_a_transformed_batch_that_is_gone_is_read_anew_by_extract(self, staged):
        pipe, batch = staged
        made = pipe.transform(batch, SAME)
        pipe.warehouse.run(
            sql.SQL("DROP TABLE {}").format(sql.Identifier("etl_staging", made.staging.name))
        )
        again = pipe.extract(JANUARY, FEBRUARY, load_id=batch.load_id, try_number=2)
        assert again.transformed is None
        assert pipe.left_in_staging() == {again.staging.name}

    def test_a_reader_of_a_replaced_table_holds_nobody_up(self, staged):
        """Somebody looks at the rejected rows while the transform is cleared; the table goes with publish."""
        pipe, batch = staged
        first = pipe.transform(batch, SAME)
        with pipe.warehouse.connect() as looking, looking.transaction():
            looking.execute(
                sql.SQL("SELECT * FROM {}").format(
                    sql.Identifier("etl_staging", first.staging.name)
                )
            )
            made = pipe.transform(batch, SAME, try_number=2, clear_number=1)
            assert first.staging.name in pipe.left_in_staging()
        publish(pipe, made)
        assert pipe.left_in_staging() == set()


#: A SELECT that takes long enough to be interrupted: each row takes a moment.
SLOW = "SELECT id, ts, CASE WHEN pg_sleep(0.01) IS NOT NULL THEN v END AS v FROM batch"


def at_work(pipe, application="etl:test"):
    return pipe.warehouse.run(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND query LIKE 'COPY%%' AND state = 'active'",
        (application,),
    )


class TestInterrupted:
    @pytest.fixture
    def slow(self, source18, warehouse18):
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, FEBRUARY, 20_000)
        return pipe, pipe.extract(JANUARY, FEBRUARY)

    def test_killed_in_the_middle_it_leaves_nothing(self, slow):
        """The server process dies; the retry makes what the try would have made."""
        pipe, batch = slow
        with in_background(lambda: pipe.transform(batch, SLOW)) as working:
            wait_until(lambda: len(at_work(pipe)) == 2, "both ends at work")
            pipe.warehouse.run("SELECT pg_terminate_backend(%s)", at_work(pipe)[0])
        assert isinstance(working.exception(), TransientError)
        assert pipe.left_in_staging() == {batch.staging.name}
        assert pipe.state(batch.load_id) == "staged"
        made = pipe.transform(batch, "SELECT id, ts, v FROM batch", try_number=2)
        publish(pipe, made)
        assert pipe.rows() == pipe.source_rows()
        assert pipe.left_in_staging() == set()

    def test_a_stop_ends_both_statements(self, slow):
        pipe, batch = slow
        stop = threading.Event()
        with in_background(lambda: pipe.transform(batch, SLOW, stop=stop)) as working:
            wait_until(lambda: len(at_work(pipe)) == 2, "both ends at work")
            stop.set()
        assert isinstance(working.exception(), Stopped)
        wait_until(lambda: not at_work(pipe), "no statement left")
        assert pipe.left_in_staging() == {batch.staging.name}

    def test_a_retry_ends_the_try_before_it(self, slow):
        """A worker was lost, its server process not yet: the successor does not wait for it."""
        pipe, batch = slow
        with in_background(lambda: pipe.transform(batch, SLOW)) as zombie:
            wait_until(lambda: len(at_work(pipe)) == 2, "both ends at work")
            made = pipe.transform(batch, "SELECT id, ts, v FROM batch", try_number=2)
        assert isinstance(zombie.exception(), TransientError)
        assert pipe.left_in_staging() == {batch.staging.name, made.staging.name}
        assert pipe.state(batch.load_id) == "staged"

    def test_of_two_at_once_one_is_kept(self, slow):
        """Neither knows of the other: the second to commit finds the batch moved on, and keeps nothing."""
        pipe, batch = slow
        hold = "SELECT id, ts, v || substr(pg_advisory_lock_shared(7)::text, 1, 0) AS v FROM batch"
        with pipe.warehouse.connect() as holder:
            holder.execute("SELECT pg_advisory_lock(7)")
            with in_background(lambda: pipe.transform(batch, hold, application="etl:one")) as first:
                wait_until(lambda: at_work(pipe, "etl:one"), "the first at work")
                made = pipe.transform(
                    batch, "SELECT id, ts, v FROM batch", try_number=2, application="etl:two"
                )
                holder.execute("SELECT pg_advisory_unlock(7)")
        assert isinstance(first.exception(), Superseded), first.exception()
        assert pipe.left_in_staging() == {batch.staging.name, made.staging.name}
        assert pipe.warehouse.value("SELECT error FROM etl.loads") is None

    def test_a_load_that_was_cleared_meanwhile_keeps_nothing_of_it(self, staged):
        pipe, batch = staged
        pipe.warehouse.run("UPDATE etl.loads SET state = 'abandoned'")
        with pytest.raises(StateError, match="abandoned"):
            pipe.transform(batch, SAME)


def test_lineage_knows_what_is_a_column_of_the_source(source18, warehouse18):
    """Columns that pass as they are keep their origin; what is computed has none; tables looked up are inputs."""
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        "CREATE TABLE a.lookup (id bigint, name text) PARTITION BY LIST (id); CREATE TABLE a.lookup_d PARTITION OF a.lookup DEFAULT;"
        "CREATE TABLE a.seen (id bigint); CREATE VIEW a.names AS SELECT * FROM a.lookup"
    )
    fill(source18, JANUARY, FEBRUARY, 10)
    made = pipe.transform(
        pipe.extract(JANUARY, FEBRUARY),
        "WITH own AS (SELECT * FROM batch) SELECT o.id, o.ts, coalesce(n.name, o.v) AS v FROM own AS o"
        " LEFT JOIN a.names AS n USING (id) WHERE NOT EXISTS (SELECT FROM a.seen AS s WHERE s.id = o.id)",
    )
    assert {column.name: column.source for column in made.columns} == {
        "id": "id",
        "ts": "ts",
        "v": None,
    }
    assert [name.split(".", 1)[1] for _, name in made.transformed.reads] == ["a.lookup", "a.seen"]
    assert made.rows == 10


def test_the_log_tells_it_without_values(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 10)
    pipe.transform(
        pipe.extract(JANUARY, FEBRUARY),
        "SELECT * FROM batch WHERE v <> :secret AND id < 5",
        parameters={"secret": "xyzzy"},
    )
    told = [(event, fields) for event, fields in pipe.log.events if "transform" in event]
    assert [event for event, _ in told] == ["transform started", "batch transformed"]
    assert told[1][1]["rows_in"] == 10
    assert told[1][1]["rows_out"] == 4
    assert "xyzzy" not in str(pipe.log.events)
    assert "xyzzy" not in pipe.warehouse.value("SELECT manifest::text FROM etl.loads")


def test_names_are_looked_up_as_the_role_does(source18, warehouse18):
    """Unqualified tables and functions are found on the role's own search path, and batch is always the batch."""
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        "CREATE TABLE public.batch (id bigint); CREATE TABLE public.names (id bigint, name text);"
        "INSERT INTO names VALUES (1, 'one')"
    )
    fill(source18, JANUARY, FEBRUARY, 3)
    made = pipe.transform(
        pipe.extract(JANUARY, FEBRUARY),
        "SELECT batch.id, ts, name AS v FROM batch LEFT JOIN names USING (id)",
    )
    publish(pipe, made)
    assert warehouse18.run("SELECT id, v FROM a.t ORDER BY id") == [
        (1, "one"),
        (2, None),
        (3, None),
    ]


def test_a_long_select_is_transformed_in_utc(source18, warehouse18):
    """What a day is does not depend on the server's clock."""
    warehouse18.run("ALTER DATABASE warehouse_db SET timezone = 'Asia/Tokyo'")
    pipe = simple(source18, warehouse18)
    source18.run("INSERT INTO t VALUES (1, '2013-01-31 23:30Z', 'x')")
    made = pipe.transform(
        pipe.extract(datetime(2013, 1, 1, tzinfo=UTC), FEBRUARY),
        "SELECT id, date_trunc('day', ts) AS ts, v FROM batch",
    )
    publish(pipe, made)
    assert table_rows(warehouse18, pipe.target) == [('(1,"2013-01-31 09:00:00+09",x)',)]
