"""Bad input ends in one clear error that names the thing and the next step; nothing moves or changes."""

from __future__ import annotations

import re
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    ConnectionLost,
    ContractError,
    DataError,
    EtlError,
    StateError,
    TerminalError,
)
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.names import TableName, quoted
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import (
    APRIL,
    FEBRUARY,
    JANUARY,
    MARCH,
    Pipeline,
    fill,
    group_and_member,
    login,
    reader,
    simple,
)


def refused(pipe, *words, kind=TerminalError, low=JANUARY, high=FEBRUARY, **request):
    """Extract is refused with *words*, before anything is staged; answers the error."""
    with pytest.raises(kind) as raised:
        pipe.extract(low, high, **request)
    text = str(raised.value)
    for word in words:
        assert word in text, text
    assert pipe.left_in_staging() == set()
    return raised.value


def test_a_missing_source_table_is_named_with_its_neighbour(source18, warehouse18):
    pipe = simple(source18, warehouse18, table=TableName("public", "T"))
    error = refused(pipe, 'public."T"', "there is public.t", kind=CatalogError)
    assert error.remedy


def test_a_missing_target_is_named(source18, warehouse18):
    pipe = simple(source18, warehouse18, target=TableName("b", "t"))
    refused(pipe, "b.t", "a.t", kind=CatalogError)


@pytest.mark.parametrize(
    "change", [{"cursor": "tss"}, {"keys": ("idd",)}, {"columns": ("id", "ts", "vv")}]
)
def test_a_missing_column_is_named_with_its_neighbour(source18, warehouse18, change):
    pipe = simple(source18, warehouse18)
    for name, value in change.items():
        setattr(pipe, name, value)
    pipe.kind = Kind.ENTITIES
    refused(pipe, "did you mean", kind=CatalogError)


def test_a_column_the_target_lacks_or_demands_is_named(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    source18.run("ALTER TABLE t ADD extra int")
    refused(pipe, "extra", kind=ContractError)
    source18.run("ALTER TABLE t DROP extra")
    warehouse18.run("ALTER TABLE a.t ADD needed int NOT NULL")
    refused(pipe, "needed", kind=ContractError)


def test_types_that_do_not_fit_are_named_before_data_moves(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    source18.run("ALTER TABLE t ALTER v TYPE integer USING 1, ADD n numeric")
    warehouse18.run(
        "ALTER TABLE a.t ADD n numeric(10,2); ALTER TABLE a.t ALTER v TYPE smallint USING 1"
    )
    refused(
        pipe,
        "v: integer does not fit smallint",
        "n: numeric does not fit numeric(10,2)",
        kind=ContractError,
    )


@pytest.mark.parametrize(
    ("was", "now", "more"),
    [
        ("int", "bigint", ""),
        ("int", "text", ""),
        ("bool", "int", ""),
        ("timestamp", "timestamptz", ""),
        ("int", "bigint", "CREATE VIEW a.shown AS SELECT v FROM a.t"),
        ("int", "bigint", "ALTER TABLE a.t ADD g int GENERATED ALWAYS AS (v * 2) STORED"),
    ],
)
def test_what_is_proposed_for_a_type_can_be_run(source18, warehouse18, was, now, more):
    """As it stands, or with what it says must be dropped before; then the load goes through."""
    pipe = simple(source18, warehouse18)
    source18.run(
        f"ALTER TABLE t DROP v, ADD v {now}; INSERT INTO t (id, ts) VALUES (1, '2013-01-02Z')"
    )
    warehouse18.run(f"ALTER TABLE a.t DROP v, ADD v {was}; {more}")
    told = str(refused(pipe, "v: ", kind=ContractError))
    step = re.search(r"approve it with (ALTER TABLE [^;,]+)", told)
    assert step, told
    if "SELECT" in more:
        assert "must be dropped before and made again after: view a.shown shows it" in told
        warehouse18.run("DROP VIEW a.shown")
    elif more:
        assert "made again after: generated column g of table a.t depends on it" in told
        warehouse18.run("ALTER TABLE a.t DROP g")
    warehouse18.run(step[1])
    pipe.load(JANUARY, FEBRUARY)
    assert pipe.rows() == pipe.source_rows()


def test_the_column_that_a_table_is_partitioned_by_keeps_its_type(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        "DROP TABLE a.t; CREATE TABLE a.t (id bigint, ts date NOT NULL, v text) PARTITION BY RANGE (ts)"
    )
    source18.run("ALTER TABLE t ALTER ts TYPE timestamp")
    told = str(
        refused(pipe, "ts: timestamp without time zone does not fit date", kind=ContractError)
    )
    assert "keeps its type for good: load the stream into a new table" in told
    assert "leave" not in told


def test_text_goes_into_a_limited_column_as_long_as_it_fits(source18, warehouse18):
    """Nothing is cut: the server refuses what is too long."""
    pipe = simple(source18, warehouse18)
    warehouse18.run("ALTER TABLE a.t ALTER v TYPE varchar(5)")
    source18.run("INSERT INTO t VALUES (1, '2013-01-02Z', 'five5')")
    pipe.load(JANUARY, FEBRUARY)
    assert pipe.rows() == pipe.source_rows()
    source18.run("UPDATE t SET v = 'longer'")
    with pytest.raises(DataError, match="cannot be stored in row 1 of the batch, column v"):
        pipe.load(JANUARY, FEBRUARY)
    assert pipe.warehouse.value("SELECT v FROM a.t") == "five5"


@pytest.mark.parametrize("cursor_type", ["text", "integer", "time", "interval", "jsonb"])
def test_a_cursor_that_no_interval_can_bound_is_refused(source18, warehouse18, cursor_type):
    pipe = simple(source18, warehouse18, partition=None, kind=Kind.ENTITIES, cursor="c")
    source18.run(f"ALTER TABLE t ADD c {cursor_type}")
    refused(pipe, cursor_type, kind=ConfigurationError)


def test_a_window_in_the_future_is_refused(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    refused(pipe, "still to come", kind=ConfigurationError, high=tomorrow)


@pytest.mark.parametrize("hours", [(0, 12), (12, 24), (-24, 24)])
def test_a_window_of_part_of_a_partition_is_refused(source18, warehouse18, hours):
    """A swap of half a month would drop the other half: refused, and never what ``auto`` takes."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY - timedelta(days=2), FEBRUARY, 66)
    pipe.load(JANUARY, FEBRUARY)
    low, high = (JANUARY + timedelta(hours=number) for number in hours)
    source18.run("UPDATE t SET v = 'newer'")
    manifest = pipe.staged(low, high)
    before = pipe.picture()
    with pytest.raises(ConfigurationError, match="whole"):
        pipe.publish(manifest, strategy=Strategy.SWAP)
    assert pipe.picture() == before
    pipe.publish(manifest)
    assert (
        warehouse18.value(
            "SELECT count(*) FROM a.t WHERE ts >= %s AND ts < %s", (JANUARY, FEBRUARY)
        )
        == 62
    )
    assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'newer'") == source18.value(
        "SELECT count(*) FROM t WHERE ts >= %s AND ts < %s", (low, high)
    )


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ("", "not partitioned"),
        ("PARTITION BY LIST (ts)", "LIST"),
        ("PARTITION BY HASH (ts)", "HASH"),
        ("PARTITION BY RANGE (id)", "RANGE (id)"),
        ("PARTITION BY RANGE (ts, id)", "ts, id"),
        ("PARTITION BY RANGE (date_trunc('day', ts, 'UTC'))", "an expression"),
    ],
)
def test_a_target_that_is_partitioned_otherwise_is_refused(
    source18, warehouse18, definition, words
):
    source18.run("CREATE TABLE t (id bigint, ts timestamptz, v text)")
    warehouse18.run(
        f"CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz, v text) {definition}"
    )
    refused(Pipeline(source18, warehouse18), "a.t", words, kind=CatalogError)


@pytest.mark.parametrize(
    "bounds",
    [
        ("2013-01-01 05:00Z", "2013-02-01 05:00Z"),
        ("2013-01-01Z", "2014-01-01Z"),
        ("2013-01-10Z", "2013-01-11Z"),
        ("-infinity", "infinity"),
        (None, None),
    ],
)
def test_a_target_that_is_cut_differently_is_refused(source18, warehouse18, bounds):
    """Months of another zone, years, days, everything: the existing partition and its bound are named."""
    pipe = simple(source18, warehouse18)
    low, high = ("MINVALUE" if b is None else f"'{b}'" for b in bounds)
    high = "MAXVALUE" if bounds[1] is None else high
    warehouse18.run(f"CREATE TABLE a.odd PARTITION OF a.t FOR VALUES FROM ({low}) TO ({high})")
    refused(pipe, "a.odd", "cut differently", kind=CatalogError)


def test_a_partition_that_is_partitioned_itself_is_written_in_place(source18, warehouse18):
    """No one table could be exchanged for it: asked for, swap is refused; left to us, rows are replaced."""
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z') PARTITION BY RANGE (ts)"
    )
    warehouse18.run("CREATE TABLE a.all_of_it PARTITION OF a.t_2013_01 DEFAULT")
    fill(source18, JANUARY, FEBRUARY, 3)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    with pytest.raises(ConfigurationError, match="swap"):
        pipe.publish(manifest, strategy=Strategy.SWAP)
    assert pipe.publish(manifest).strategy is Strategy.DELETE_INSERT
    assert pipe.rows() == pipe.source_rows()


NO_SWAP = {
    "partitioned itself": (
        (
            "CREATE TABLE a.j {month} PARTITION BY HASH (id);"
            "CREATE TABLE a.j0 PARTITION OF a.j FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
        ),
        r"partition a\.j is partitioned itself",
    ),
    "another schema": (
        'CREATE SCHEMA "B 1"; CREATE TABLE "B 1".t_2013_01 {month}',
        r'partition "B 1"\.t_2013_01 lies in another schema',
    ),
    "full": ("CREATE TABLE a.t_2013_01 {month}", "everything was read"),
    "a part": ("CREATE TABLE a.t_2013_01 {month}", "did not read partitions of a.t whole"),
    "two months": (
        (
            "CREATE TABLE a.t_2013_01 {month};"
            "CREATE TABLE a.t_2013_02 PARTITION OF a.t FOR VALUES FROM ('2013-02-01Z') TO ('2013-03-01Z')"
        ),
        "covers 2 partitions, and nothing says how long one is",
    ),
}


@pytest.mark.parametrize("what", NO_SWAP)
def test_why_a_batch_cannot_be_swapped(source18, warehouse18, what):
    """The reason is true, and the ways that are named are open."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 20)
    made, why = NO_SWAP[what]
    warehouse18.run(
        made.format(month="PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')")
    )
    window = (JANUARY, FEBRUARY)
    if what == "full":
        window = ()
        pipe.mode = WindowMode.FULL
    elif what == "a part":
        window = (JANUARY, datetime(2013, 1, 20, tzinfo=UTC))
    elif what == "two months":
        window = (JANUARY, MARCH)
        pipe.partition = None
    manifest = pipe.staged(*window)
    with pytest.raises(ConfigurationError, match=why) as refused:
        pipe.publish(manifest, strategy=Strategy.SWAP)
    remedy = refused.value.remedy or ""
    assert remedy.endswith("use strategy='swap_merge' or 'delete_insert'")
    for way in (Strategy.SWAP_MERGE, Strategy.DELETE_INSERT):
        assert pipe.load(*window, options={"strategy": way}).strategy is way
    if what == "another schema":
        warehouse18.run(remedy.partition(" and clear")[0])
        assert pipe.load(*window, options={"strategy": Strategy.SWAP}).strategy is Strategy.SWAP


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("PARTITION BY RANGE (id)", "of type bigint, and only of times"),
        ("PARTITION BY LIST (id)", r"partitioned by LIST \(id\), not by RANGE \(id\)"),
        ("", "is not partitioned"),
    ],
)
def test_why_a_watermark_window_of_numbers_cannot_be_swapped(source18, warehouse18, how, why):
    columns = "id bigint, ts timestamptz NOT NULL, v text"
    source18.run(f"CREATE TABLE t ({columns})".replace("id bigint", "id bigserial"))
    warehouse18.run(f"CREATE SCHEMA a; CREATE TABLE a.t ({columns}) {how}")
    if how:
        warehouse18.run("CREATE TABLE a.p PARTITION OF a.t DEFAULT")
    source18.run("INSERT INTO t (ts, v) SELECT '2013-01-02Z', 'x' FROM generate_series(1, 5)")
    pipe = Pipeline(source18, warehouse18, cursor="id", mode=WindowMode.WATERMARK, partition=None)
    manifest = pipe.staged()
    with pytest.raises(ConfigurationError, match=why) as refused:
        pipe.publish(manifest, strategy=Strategy.SWAP)
    assert "'delete_insert'" in (refused.value.remedy or "")
    assert ("swap_merge" in (refused.value.remedy or "")) is bool(how)
    pipe.publish(manifest, strategy=Strategy.DELETE_INSERT)
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize(
    ("kind", "way"),
    [(Kind.ENTITIES, Strategy.MERGE), (Kind.SNAPSHOTS, Strategy.DELETE_INSERT)],
)
def test_what_is_no_event_cannot_be_swapped(source18, warehouse18, kind, way):
    pipe = simple(source18, warehouse18, kind=kind, keys=("id",), mode=WindowMode.FULL)
    fill(source18, JANUARY, FEBRUARY, 20)
    manifest = pipe.staged()
    with pytest.raises(ConfigurationError, match=f"the rows of stream 't' are {kind}") as refused:
        pipe.publish(manifest, strategy=Strategy.SWAP)
    assert repr(way.value) in (refused.value.remedy or "")
    assert pipe.publish(manifest, strategy=way).strategy is way


def test_a_swap_that_something_hindered_when_the_batch_was_staged(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 20)
    warehouse18.run("CREATE PUBLICATION p FOR TABLE a.t")
    manifest = pipe.staged(JANUARY, FEBRUARY)
    warehouse18.run("DROP PUBLICATION p")
    with pytest.raises(ConfigurationError, match="when the batch was staged") as refused:
        pipe.publish(manifest, strategy=Strategy.SWAP)
    assert "clear extract and downstream" in (refused.value.remedy or "")
    assert (
        pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.SWAP}).strategy is Strategy.SWAP
    )


@pytest.mark.parametrize(
    "what", ["TABLE a.t_2013_01 ()", "VIEW a.t_2013_01 AS SELECT 1", "SEQUENCE a.t_2013_01"]
)
def test_a_partition_name_that_is_taken_is_refused(source18, warehouse18, what):
    pipe = simple(source18, warehouse18)
    warehouse18.run(f"CREATE {what}")
    refused(pipe, "a.t_2013_01", "exists", kind=CatalogError)


def test_a_partition_of_another_name_is_used_as_it_is(source, warehouse):
    """What counts is the bound: a partition named by somebody else keeps its name."""
    pipe = simple(source, warehouse)
    warehouse.run(
        "CREATE TABLE a.\"Jan's\" PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
    )
    fill(source, JANUARY, FEBRUARY, 5)
    assert [p.name for p in pipe.load(JANUARY, FEBRUARY).partitions] == ['a."Jan\'s"']
    assert pipe.rows() == pipe.source_rows()


def test_rows_in_the_default_partition_are_refused_before_data_moves(source, warehouse):
    """Rows of the range in DEFAULT would keep the partition from being attached; others do no harm."""
    pipe = simple(source, warehouse)
    warehouse.run(
        "CREATE TABLE a.rest PARTITION OF a.t DEFAULT; INSERT INTO a.t VALUES (1, '2013-01-05', 'x')"
    )
    refused(pipe, "a.rest", "1 rows", kind=CatalogError)
    fill(source, FEBRUARY, MARCH, 5)
    pipe.load(FEBRUARY, MARCH)
    assert len(pipe.rows()) == 6


def test_rows_that_come_into_default_later_are_refused_at_publish(source18, warehouse18):
    """The same between extract and publish: refused, the load stays validated, a retry succeeds."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 5)
    warehouse18.run("CREATE TABLE a.rest PARTITION OF a.t DEFAULT")
    manifest = pipe.staged(JANUARY, FEBRUARY)
    warehouse18.run("INSERT INTO a.t VALUES (1, '2013-01-05', 'x')")
    before = pipe.picture()
    with pytest.raises(CatalogError, match=r"a\.rest"):
        pipe.publish(manifest)
    assert pipe.picture() == before
    assert pipe.state(manifest.load_id) == "validated"
    warehouse18.run("DELETE FROM a.rest")
    pipe.publish(manifest)
    assert pipe.rows() == pipe.source_rows()


def test_a_partition_made_by_somebody_else_meanwhile(source18, warehouse18):
    """Between extract and publish somebody made the partition and filled it: it is replaced, not doubled."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 5)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    warehouse18.run(
        "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
        "INSERT INTO a.t VALUES (77, '2013-01-05', 'theirs')"
    )
    pipe.publish(manifest)
    assert pipe.rows() == pipe.source_rows()


def test_a_partition_made_meanwhile_under_another_name(source18, warehouse18):
    """The same under a name of their own: replaced or refused clearly, never a raw error."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 5)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    warehouse18.run(
        "CREATE TABLE a.theirs PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
    )
    before = pipe.picture()
    try:
        pipe.publish(manifest)
    except EtlError as error:
        assert "theirs" in str(error)  # noqa: PT017
        assert pipe.picture() == before
    else:
        assert pipe.rows() == pipe.source_rows()


def test_a_source_that_may_not_be_read_is_named(source, warehouse):
    pipe = simple(source, warehouse)
    with login(source, "GRANT USAGE ON SCHEMA public TO {role}") as role:
        pipe.source_role = role
        refused(pipe, role["user"], "public.t", "GRANT SELECT", kind=CatalogError)


def test_a_source_schema_that_may_not_be_used_is_named(source18, warehouse18):
    pipe = simple(source18, warehouse18, table=TableName("closed", "t"))
    source18.run("CREATE SCHEMA closed; CREATE TABLE closed.t (LIKE t)")
    with login(source18, "GRANT SELECT ON closed.t TO {role}") as role:
        pipe.source_role = role
        error = refused(pipe, "closed", kind=CatalogError)
        assert error.remedy


def test_a_ledger_that_may_not_be_created_is_named(source, warehouse):
    pipe = simple(source, warehouse)
    with login(
        warehouse, "GRANT ALL ON SCHEMA a TO {role}", "ALTER TABLE a.t OWNER TO {role}"
    ) as role:
        pipe.warehouse_role = role
        refused(pipe, "ledger", role["user"], "GRANT CREATE ON DATABASE", kind=CatalogError)
        warehouse.run("ALTER TABLE a.t OWNER TO postgres")


def test_a_ledger_that_may_not_be_used_is_named(source18, warehouse18):
    """Somebody else's ledger: the privilege that is missing is said, with a remedy."""
    pipe = simple(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    before = pipe.picture()
    with login(
        warehouse18, "GRANT ALL ON SCHEMA a TO {role}", "ALTER TABLE a.t OWNER TO {role}"
    ) as role:
        pipe.warehouse_role = role
        with pytest.raises(CatalogError) as raised:
            pipe.extract(FEBRUARY, MARCH)
        warehouse18.run("ALTER TABLE a.t OWNER TO postgres")
        assert raised.value.remedy
        assert "etl" in str(raised.value)
    assert pipe.picture() == before


def test_a_target_that_may_not_be_swapped_is_written_in_place(source18, warehouse18):
    """Only an owner attaches: auto says so and replaces rows; swap, asked for, names what would help."""
    pipe = simple(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run(
        "CREATE TABLE a.feb PARTITION OF a.t FOR VALUES FROM ('2013-02-01Z') TO ('2013-03-01Z')"
    )
    fill(source18, FEBRUARY, MARCH, 3)
    with login(
        warehouse18,
        "GRANT ALL ON SCHEMA a, etl, etl_staging TO {role}",
        "GRANT ALL ON ALL TABLES IN SCHEMA a, etl TO {role}",
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA etl TO {role}",
    ) as role:
        pipe.warehouse_role = role
        manifest = pipe.staged(FEBRUARY, MARCH)
        with pytest.raises(CatalogError, match=f"{role['user']} does not own a.t"):
            pipe.publish(manifest, strategy=Strategy.SWAP)
        log = RecordedEvents()
        assert pipe.publish(manifest, log=log).strategy is Strategy.DELETE_INSERT
        assert "does not own" in str(log.events)
    assert pipe.rows() == pipe.source_rows()


def test_a_member_of_the_owner_may_load(source18, warehouse18):
    """A login role that belongs to the owning group role loads; the partition is owned by the group."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, MARCH, 20)
    with group_and_member(warehouse18) as (group, role):
        warehouse18.run(f"GRANT ALL ON SCHEMA a TO {group}; ALTER TABLE a.t OWNER TO {group}")
        pipe.warehouse_role = role
        for _ in range(2):
            pipe.load(JANUARY, FEBRUARY)
        assert warehouse18.value("SELECT count(*) FROM a.t") == 11
        owner = warehouse18.value(
            "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'a.t_2013_01'::regclass"
        )
        pipe.warehouse_role = {}
        assert owner == group


def test_a_publisher_without_create_on_the_schema_changes_nothing(source18, warehouse18):
    """The owner of the table who may not create in its schema: named, nothing changed, validated."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 5)
    with login(
        warehouse18,
        "GRANT CREATE ON DATABASE " + warehouse18.name + " TO {role}",
        "GRANT USAGE ON SCHEMA a TO {role}",
    ) as role:
        warehouse18.run(
            "GRANT " + role["user"] + " TO postgres; ALTER TABLE a.t OWNER TO " + role["user"]
        )
        pipe.warehouse_role = role
        with pytest.raises(CatalogError, match="schema a"):
            pipe.load(JANUARY, FEBRUARY)
        assert warehouse18.run("SELECT * FROM a.t") == []
        warehouse18.run("ALTER TABLE a.t OWNER TO postgres")


@pytest.mark.parametrize("side", ["source", "warehouse"])
@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ({"password": "wrong-and-secret"}, ConfigurationError),
        ({"dbname": "no_such_database"}, ConfigurationError),
        ({"port": "1"}, ConnectionLost),
        ({"user": "nobody_there"}, ConfigurationError),
    ],
)
def test_a_connection_that_fails_is_named_without_its_password(
    source18, warehouse18, side, override, kind
):
    pipe = simple(source18, warehouse18)
    setattr(pipe, f"{side}_role", override)
    database = source18 if side == "source" else warehouse18
    with pytest.raises(EtlError) as raised:
        pipe.extract(JANUARY, FEBRUARY)
    assert isinstance(raised.value, kind)
    assert f"database {database.name}" in str(raised.value)
    assert "wrong-and-secret" not in str(raised.value)
    assert raised.value.remedy


def test_a_stream_keeps_its_first_target_and_kind(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run("CREATE TABLE a.u (LIKE a.t) PARTITION BY RANGE (ts)")
    pipe.target = TableName("a", "u")
    before = pipe.picture()
    with pytest.raises(ConfigurationError, match=r"bound to a\.t"):
        pipe.extract(FEBRUARY, MARCH)
    pipe.target, pipe.kind = TableName("a", "t"), Kind.ENTITIES
    with pytest.raises(ConfigurationError, match="holds events"):
        pipe.extract(FEBRUARY, MARCH)
    assert pipe.picture() == ([], *before[1:])


@pytest.mark.parametrize(
    ("text", "words"),
    [("not json", "JSON"), ('{"version": 99}', "version"), ("{}", "version"), ('"x"', "version")],
)
def test_an_unreadable_watermark_changes_nothing(source18, warehouse18, text, words):
    """Target, ledger and watermark stay as they were: no load is recorded, none staged."""
    pipe = simple(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    before, loads = pipe.picture(), warehouse18.run("SELECT * FROM etl.loads")
    pipe.store.texts["t"] = text
    refused(pipe, words, kind=StateError, low=FEBRUARY, high=MARCH)
    assert pipe.store.texts["t"] == text
    assert pipe.picture() == before
    assert warehouse18.run("SELECT * FROM etl.loads") == loads


def test_a_watermark_edited_by_hand_is_asked_about(source18, warehouse18):
    """Both values are named; nothing is undone in silence."""
    pipe = simple(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    edited = pipe.store.texts["t"].replace("2013-02-01", "2013-01-15")
    pipe.store.texts["t"] = edited
    refused(pipe, "2013-01-15", "2013-02-01", kind=StateError, low=FEBRUARY, high=MARCH)
    assert pipe.store.texts["t"] == edited


def test_a_deleted_watermark_is_written_again(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    before = pipe.store.read("t")
    pipe.store.texts.clear()
    pipe.extract(FEBRUARY, MARCH)
    again = pipe.store.read("t")
    assert (again.value, again.fence, again.load_id) == (before.value, before.fence, before.load_id)


def test_a_table_that_others_reference_is_written_in_place(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        "CREATE TABLE a.child (id bigint, ts timestamptz, FOREIGN KEY (id, ts) REFERENCES a.t)"
    )
    fill(source18, JANUARY, FEBRUARY, 3)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    with pytest.raises(CatalogError, match=r"a\.child reference a\.t"):
        pipe.publish(manifest, strategy=Strategy.SWAP)
    assert pipe.publish(manifest).strategy is Strategy.DELETE_INSERT
    assert pipe.rows() == pipe.source_rows()


OBSTACLES = {
    "foreign keys": 'CREATE TABLE a."O" (i bigint, ts timestamptz, CONSTRAINT "Fk 1" FOREIGN KEY (i, ts) REFERENCES a.t,'
    " FOREIGN KEY (i, ts) REFERENCES a.t)",
    "foreign key to the partition": "CREATE TABLE a.o (i bigint, ts timestamptz,"
    ' CONSTRAINT "Fk 1" FOREIGN KEY (i, ts) REFERENCES a.t_2013_01)',
    "publication of the table": 'CREATE PUBLICATION "P 1" FOR TABLE a.t',
    "publication of the schema": 'CREATE PUBLICATION "P 1" FOR TABLES IN SCHEMA a',
    "publications of the partition": "CREATE PUBLICATION p FOR TABLE a.t_2013_01; CREATE PUBLICATION q FOR TABLE a.t",
    "row security": "ALTER TABLE a.t_2013_01 ENABLE ROW LEVEL SECURITY",
    "policies": 'CREATE POLICY "P 1" ON a.t_2013_01; CREATE POLICY q ON a.t_2013_01',
    "exclusion": "ALTER TABLE a.t ADD CONSTRAINT odd EXCLUDE (id WITH =, ts WITH =)",
    "not valid": 'ALTER TABLE a.t_2013_01 ADD CONSTRAINT "C 1" CHECK (id <> 0) NOT VALID',
    "several": 'ALTER TABLE a.t_2013_01 ADD CONSTRAINT "C 1" CHECK (id <> 0) NOT VALID, ENABLE ROW LEVEL SECURITY',
}


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE])
@pytest.mark.parametrize("what", OBSTACLES)
def test_an_obstacle_is_told_with_the_statements_that_remove_it(
    source18, warehouse18, what, strategy
):
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 3)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run(OBSTACLES[what])
    with pytest.raises(CatalogError) as refused:
        pipe.load(JANUARY, FEBRUARY, options={"strategy": strategy})
    told, _, _ = (refused.value.remedy or "").partition(", or ")
    statements = re.findall(r"(?:ALTER|DROP) [^;]*", told)
    assert statements
    for statement in statements:
        warehouse18.run(statement)
    assert pipe.load(JANUARY, FEBRUARY, options={"strategy": strategy}).strategy is strategy


def test_a_generated_column_of_the_partition_is_made_like_its_tables(source18, warehouse18):
    source18.run(
        "CREATE TABLE t (id bigint, ts timestamptz); INSERT INTO t VALUES (1, '2013-01-02Z')"
    )
    columns = (
        'id bigint, ts timestamptz NOT NULL, "G 1" bigint GENERATED ALWAYS AS (id * {}) STORED'
    )
    warehouse18.run(
        f"CREATE SCHEMA a; CREATE TABLE a.t ({columns.format(2)}) PARTITION BY RANGE (ts);"
        f"CREATE TABLE a.t_2013_01 ({columns.format(3)});"
        "ALTER TABLE a.t ATTACH PARTITION a.t_2013_01 FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
    )
    pipe = Pipeline(source18, warehouse18)
    with pytest.raises(CatalogError, match="generated otherwise") as refused:
        pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.SWAP})
    warehouse18.run((refused.value.remedy or "").partition(", or ")[0])
    pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.SWAP})
    assert warehouse18.run('SELECT id, "G 1" FROM a.t') == [(1, 2)]


@pytest.mark.parametrize("what", ["TABLE a.t", "TABLES IN SCHEMA a", "ALL TABLES"])
def test_a_published_table_is_never_swapped(source18, warehouse18, what):
    """Rule 10: subscribers would not see a swap. Refused, or published in a way that they see."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 3)
    warehouse18.run(f"CREATE PUBLICATION pub FOR {what}")
    manifest = pipe.staged(JANUARY, FEBRUARY)
    logged = "u" if what == "ALL TABLES" else "p"
    found = warehouse18.value(
        "SELECT relpersistence::text FROM pg_class WHERE relname = %s", (manifest.staging.name,)
    )
    assert found == logged, "a logged staged table would stop the apply worker of every subscriber"
    with pytest.raises(CatalogError, match="pub") as refused:
        pipe.publish(manifest, strategy=Strategy.SWAP)
    assert what == "ALL TABLES" or f"ALTER PUBLICATION pub DROP {what}" in (
        refused.value.remedy or ""
    )
    assert pipe.publish(manifest).strategy is Strategy.DELETE_INSERT
    assert pipe.rows() == pipe.source_rows()


def test_a_lock_budget_that_shoots_readers_is_refused(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 2)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    with pytest.raises(ConfigurationError, match="deadlock_timeout"):
        pipe.publish(manifest, lock_budget=timedelta(seconds=1), lock_deadline=timedelta(seconds=9))


def test_a_spec_of_another_column_is_refused(source18, warehouse18):
    pipe = simple(
        source18, warehouse18, kind=Kind.ENTITIES, partition=PartitionSpec("id", Every.DAY)
    )
    refused(pipe, "RANGE (ts)", kind=CatalogError)


def test_a_missing_partition_without_a_spec_is_refused(source18, warehouse18):
    """How long a partition is, is not guessed; one that exists with that bound is used."""
    pipe = simple(source18, warehouse18, partition=None)
    refused(pipe, "partition=", kind=ConfigurationError)
    warehouse18.run(
        "CREATE TABLE a.january PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
    )
    fill(source18, JANUARY, FEBRUARY, 5)
    pipe.load(JANUARY, FEBRUARY)
    assert pipe.rows() == pipe.source_rows()


def test_a_window_of_ten_thousand_partitions_is_refused(source18, warehouse18):
    pipe = simple(source18, warehouse18, partition=PartitionSpec("ts", Every.HOUR))
    refused(pipe, "10000", kind=ConfigurationError, high=APRIL.replace(year=2015))


def test_row_content_never_appears_in_an_error(source18, warehouse18):
    """A target's column name with a quote must not let the server's CONTEXT through."""
    for database, prefix, size in (
        (source18, "", "varchar(90)"),
        (warehouse18, "a.", "varchar(3)"),
    ):
        database.run("CREATE SCHEMA IF NOT EXISTS a")
        database.run(f'CREATE TABLE {prefix}t (id int, "a""b" {size})')
    pipe = Pipeline(source18, warehouse18, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
    for value in ("sec\nret", 'top": secret', "sec: ret", 'x" secret'):
        source18.run("DELETE FROM t")
        source18.run("INSERT INTO t VALUES (1, %s)", (value,))
        assert_says_nothing_of(pipe, "sec", "ret", "top")


def assert_says_nothing_of(pipe, *secrets, low=None, high=None):
    import traceback

    with pytest.raises(EtlError) as raised:
        pipe.load(low, high)
    told = "".join(traceback.format_exception(raised.value)) + repr(raised.value)
    # Source lines of this test's own call are part of a traceback; values are not.
    for secret in secrets:
        assert secret not in str(raised.value)
        assert secret not in "\n".join(
            line
            for line in told.splitlines()
            if "Error" in line or "DETAIL" in line or "CONTEXT" in line
        )
    recorded = pipe.warehouse.run("SELECT error FROM etl.loads WHERE error IS NOT NULL")
    for secret in secrets:
        assert not any(secret in row[0] for row in recorded)
    return raised.value


def test_what_a_view_raises_is_not_repeated(source18, warehouse18):
    """A function's RAISE EXCEPTION may hold a row: its text stays on the server."""
    source18.run(
        "CREATE FUNCTION f(x text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'bad customer %', x; END $$;"
        "CREATE VIEW t AS SELECT 1 AS id, '2013-01-05'::timestamptz AS ts, f('topsecret') AS v"
    )
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int, ts timestamptz, v text) PARTITION BY RANGE (ts)"
    )
    pipe = Pipeline(source18, warehouse18)
    assert_says_nothing_of(pipe, "topsecret", low=JANUARY, high=FEBRUARY)


def test_what_a_trigger_raises_is_not_repeated(source18, warehouse18):
    source18.run("CREATE TABLE t (id int); INSERT INTO t VALUES (4711471)")
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int);"
        "CREATE FUNCTION a.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'bad row %', NEW; END $$;"
        "CREATE TRIGGER f BEFORE INSERT ON a.t FOR EACH ROW EXECUTE FUNCTION a.f()"
    )
    pipe = Pipeline(source18, warehouse18, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
    assert_says_nothing_of(pipe, "4711471")


def test_a_duplicate_key_is_named_by_its_constraint(source18, warehouse18):
    """The batch breaks the target's primary key: which key it is stays in the table."""
    source18.run("CREATE TABLE t (id bigint, ts timestamptz, v text)")
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz, v text, PRIMARY KEY (ts, id)) PARTITION BY RANGE (ts)"
    )
    source18.run("INSERT INTO t SELECT 4711471, '2013-01-05', 'a' FROM generate_series(1, 2)")
    pipe = Pipeline(source18, warehouse18)
    error = assert_says_nothing_of(pipe, "4711471", low=JANUARY, high=FEBRUARY)
    assert "share a key of constraint t_pkey of a.t" in str(error)
    assert pipe.rows() == []


def test_a_check_of_the_target_is_named(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    warehouse18.run("ALTER TABLE a.t ADD CONSTRAINT polite CHECK (v <> 'topsecret')")
    source18.run("INSERT INTO t VALUES (1, '2013-01-05', 'topsecret')")
    assert "polite" in str(assert_says_nothing_of(pipe, "topsecret", low=JANUARY, high=FEBRUARY))


def test_a_foreign_key_of_the_target_is_named(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        "CREATE TABLE a.dim (v text PRIMARY KEY); ALTER TABLE a.t ADD CONSTRAINT known FOREIGN KEY (v) REFERENCES a.dim"
    )
    source18.run("INSERT INTO t VALUES (1, '2013-01-05', 'topsecret')")
    assert "known" in str(assert_says_nothing_of(pipe, "topsecret", low=JANUARY, high=FEBRUARY))
    assert pipe.rows() == []


@contextmanager
def owner(source, warehouse, *setup):
    """A login that owns ``a.t``; *setup* runs with its name for ``{me}``."""
    source.run("CREATE TABLE t (id bigint PRIMARY KEY, ts timestamptz NOT NULL, v text)")
    warehouse.run("CREATE SCHEMA a")
    create = "GRANT CREATE ON DATABASE " + warehouse.name + " TO {role}"
    with login(warehouse, create, "GRANT ALL ON SCHEMA a TO {role}") as me:
        for step in setup:
            warehouse.run(step.replace("{me}", me["user"]))
        fill(source, JANUARY, FEBRUARY, 5)
        yield Pipeline(source, warehouse, warehouse_role=me)


def test_a_partition_of_another_owner_is_written_in_place(source18, warehouse18):
    """Partitions of another role stand in the way of a swap only where they are to be exchanged."""
    with owner(
        source18,
        warehouse18,
        "CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v text, PRIMARY KEY (id, ts)) PARTITION BY RANGE (ts);"
        "ALTER TABLE a.t OWNER TO {me};"
        "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')",
    ) as pipe:
        with pytest.raises(CatalogError, match=r"does not own a\.t_2013_01") as e:
            pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.SWAP})
        assert "OWNER TO" in (e.value.remedy or "")
        assert pipe.load(JANUARY, FEBRUARY).strategy is Strategy.DELETE_INSERT
        fill(source18, FEBRUARY, MARCH, 5, first=100)
        assert pipe.load(FEBRUARY, MARCH).strategy is Strategy.SWAP


def test_without_references_on_what_a_foreign_key_refers_to(source18, warehouse18):
    with owner(
        source18,
        warehouse18,
        "CREATE TABLE a.dim (id bigint PRIMARY KEY); INSERT INTO a.dim SELECT generate_series(1, 100);"
        "GRANT SELECT ON a.dim TO {me};"
        "CREATE TABLE a.t (id bigint REFERENCES a.dim, ts timestamptz NOT NULL, v text, PRIMARY KEY (id, ts))"
        " PARTITION BY RANGE (ts); ALTER TABLE a.t OWNER TO {me};"
        "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
        "ALTER TABLE a.t_2013_01 OWNER TO {me}",
    ) as pipe:
        assert pipe.load(JANUARY, FEBRUARY).strategy is Strategy.DELETE_INSERT
        manifest = pipe.staged(JANUARY, FEBRUARY)
        with pytest.raises(CatalogError, match=r"REFERENCES") as e:
            pipe.publish(manifest, strategy=Strategy.SWAP_MERGE)
        assert "GRANT REFERENCES, UPDATE ON a.dim TO" in (e.value.remedy or "")
        me = pipe.warehouse_role["user"]
        warehouse18.run(f"GRANT REFERENCES (id), UPDATE ON a.dim TO {me}")
        assert pipe.load(JANUARY, FEBRUARY).strategy is Strategy.SWAP


@pytest.mark.parametrize("schema", ["a", 'B "'])
def test_without_create_on_the_schema_of_a_partition(source18, warehouse18, schema):
    """A new partition could not get its name: what is there is written in place, swaps say the right that is missing."""
    named = TableName(schema, "t_2013_01")
    with owner(
        source18,
        warehouse18,
        "CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v text, PRIMARY KEY (id, ts)) PARTITION BY RANGE (ts);"
        "ALTER TABLE a.t OWNER TO {me}; CREATE SCHEMA IF NOT EXISTS "
        f"{quoted(schema)}; REVOKE CREATE ON SCHEMA {quoted(schema)} FROM {{me}};"
        f"GRANT USAGE ON SCHEMA {quoted(schema)} TO {{me}};"
        f"CREATE TABLE {named} PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
        f"ALTER TABLE {named} OWNER TO {{me}}",
    ) as pipe:
        me = pipe.warehouse_role["user"]
        assert pipe.load(JANUARY, FEBRUARY).strategy is Strategy.DELETE_INSERT
        built = pipe.left_in_staging()
        asked = {Strategy.SWAP_MERGE} if schema != "a" else {Strategy.SWAP, Strategy.SWAP_MERGE}
        for strategy in asked:
            manifest = pipe.staged(JANUARY, FEBRUARY)
            with pytest.raises(CatalogError, match=f"{me} may make no table in schema") as e:
                pipe.publish(manifest, strategy=strategy)
            assert pipe.left_in_staging() - built == {manifest.staging.name}
            built = pipe.left_in_staging()
        grant = e.value.remedy or ""
        assert grant == f"GRANT CREATE ON SCHEMA {quoted(schema)} TO {me}"
        warehouse18.run(grant)
        again = pipe.staged(JANUARY, FEBRUARY)
        assert pipe.publish(again, strategy=strategy).strategy is strategy
        assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize("strategy", [Strategy.AUTO, Strategy.SWAP, Strategy.SWAP_MERGE])
def test_without_create_on_the_schema_of_a_missing_partition(source18, warehouse18, strategy):
    with owner(
        source18,
        warehouse18,
        "CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v text) PARTITION BY RANGE (ts);"
        "ALTER TABLE a.t OWNER TO {me}; REVOKE CREATE ON SCHEMA a FROM {me}",
    ) as pipe:
        manifest = pipe.staged(JANUARY, FEBRUARY)
        with pytest.raises(CatalogError, match=r"is to be called a\.t_2013_01") as e:
            pipe.publish(manifest, strategy=strategy)
        warehouse18.run(e.value.remedy or "")
        pipe.publish(pipe.staged(JANUARY, FEBRUARY), strategy=strategy)
        assert pipe.rows() == pipe.source_rows()


def test_an_owner_without_create_on_the_schema_of_its_partition(source18, warehouse18):
    """A new partition is given to the owner of the old one, who must be allowed to own a table there."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 5)
    pipe.load(JANUARY, FEBRUARY)
    with group_and_member(warehouse18) as (group, role):
        warehouse18.run(
            f"GRANT ALL ON SCHEMA a TO {role['user']}; GRANT {group} TO {role['user']};"
            f"ALTER TABLE a.t OWNER TO {group}; ALTER TABLE a.t_2013_01 OWNER TO {group};"
            f"GRANT ALL ON ALL TABLES IN SCHEMA etl TO {role['user']};"
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA etl TO {role['user']};"
            f"GRANT ALL ON SCHEMA etl, etl_staging TO {role['user']}, {group}"
        )
        pipe.warehouse_role = role
        assert pipe.load(JANUARY, FEBRUARY).strategy is Strategy.DELETE_INSERT
        with pytest.raises(CatalogError, match=f"{group} may make no table in schema a") as e:
            pipe.load(JANUARY, FEBRUARY, options={"strategy": Strategy.SWAP})
        warehouse18.run(e.value.remedy or "")
        assert pipe.load(JANUARY, FEBRUARY).strategy is Strategy.SWAP


def test_a_partition_in_a_published_schema_is_never_exchanged(source18, warehouse18):
    """Its schema may be another one than the target's."""
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        "CREATE SCHEMA b; CREATE PUBLICATION everything FOR TABLES IN SCHEMA b;"
        "CREATE TABLE b.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
    )
    fill(source18, JANUARY, FEBRUARY, 5)
    manifest = pipe.staged(JANUARY, datetime(2013, 1, 15, tzinfo=UTC))
    with pytest.raises(CatalogError, match="is in publication everything"):
        pipe.publish(manifest, strategy=Strategy.SWAP_MERGE)


def test_a_partition_whose_detach_was_broken_off(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, MARCH, 10)
    pipe.load(JANUARY, FEBRUARY)
    pipe.load(FEBRUARY, MARCH)
    again = pipe.staged(JANUARY, FEBRUARY)
    with reader(warehouse18, "SELECT * FROM a.t"), warehouse18.connect() as session:
        session.execute("SET statement_timeout = '2s'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            session.execute("ALTER TABLE a.t DETACH PARTITION a.t_2013_01 CONCURRENTLY")
    finalize = "ALTER TABLE a.t DETACH PARTITION a.t_2013_01 FINALIZE"
    with pytest.raises(CatalogError, match=r"a\.t_2013_01 of a\.t is being detached") as e:
        pipe.publish(again, strategy=Strategy.SWAP)
    assert finalize in (e.value.remedy or "")
    with pytest.raises(CatalogError, match=r"a\.t_2013_01 of a\.t is being detached") as e:
        pipe.extract(JANUARY, FEBRUARY)
    assert finalize in (e.value.remedy or "")
