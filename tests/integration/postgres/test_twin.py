"""The new partition is its siblings' twin: nobody can tell from the catalog that it was swapped in."""

from __future__ import annotations

import threading

import pytest
from psycopg import sql

from airflow_etl_provider.core.errors import CatalogError, EtlError, ShrinkBrake
from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.postgres.clean import CleanOptions, clean
from airflow_etl_provider.postgres.publish import PostgresPublisher
from airflow_etl_provider.postgres.rollback import RollbackOptions, rollback
from airflow_etl_provider.postgres.session import connect
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import APRIL, FEBRUARY, JANUARY, MARCH, Pipeline, fill, simple

#: What can be said about a table apart from its own name and bounds.
CATALOG = {
    "columns": """
        SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text,
               a.attgenerated::text, pg_get_expr(d.adbin, d.adrelid), a.attstorage::text, a.attcompression::text,
               a.attcollation::regcollation::text, coalesce(a.attstattarget, -1), a.attislocal, a.attinhcount::int
        FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = %(table)s::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum""",
    "constraints": """
        SELECT replace(conname::text, %(name)s, '*'), contype::text, pg_get_constraintdef(oid), convalidated,
               conislocal, coninhcount::int, conparentid <> 0, condeferrable, condeferred
        FROM pg_constraint WHERE conrelid = %(table)s::regclass ORDER BY 1, 2, 3""",
    "indexes": """
        SELECT replace(c.relname::text, %(name)s, '*'), replace(replace(pg_get_indexdef(i.indexrelid), c.relname::text, '#'),
               %(name)s, '*'), i.indisprimary, i.indisunique, i.indisvalid, i.indisreplident, i.indisclustered,
               EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhrelid = i.indexrelid), c.relnamespace::regnamespace::text,
               c.reloptions
        FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        WHERE i.indrelid = %(table)s::regclass ORDER BY 1""",
    "table": """
        SELECT relkind::text, relpersistence::text, relreplident::text, reloptions, relam, reltablespace, relowner,
               relrowsecurity, relispartition, relacl
        FROM pg_class WHERE oid = %(table)s::regclass""",
    "comment": "SELECT obj_description(%(table)s::regclass)",
    "triggers": """
        SELECT tgname::text, tgenabled::text, tgparentid <> 0 FROM pg_trigger
        WHERE tgrelid = %(table)s::regclass AND NOT tgisinternal ORDER BY 1""",
    "statistics": """
        SELECT stxnamespace::regnamespace::text, stxkind::text, stxkeys::text FROM pg_statistic_ext
        WHERE stxrelid = %(table)s::regclass ORDER BY 1, 2, 3""",
}

RICH = """
    CREATE SCHEMA a;
    CREATE TABLE a.dim (code text PRIMARY KEY);
    INSERT INTO a.dim VALUES ('x'), ('y');
    CREATE SEQUENCE a.numbers;
    CREATE TABLE a.t (
        id bigint NOT NULL,
        ts timestamptz NOT NULL DEFAULT '2013-01-01',
        code text REFERENCES a.dim ON DELETE RESTRICT DEFERRABLE INITIALLY DEFERRED,
        n integer NOT NULL DEFAULT nextval('a.numbers') CONSTRAINT n_is_positive CHECK (n > 0),
        v text COLLATE "C" CHECK (length(v) < 1000),
        twice bigint GENERATED ALWAYS AS (id * 2) STORED,
        CONSTRAINT the_key PRIMARY KEY (ts, id),
        CONSTRAINT once UNIQUE NULLS NOT DISTINCT (ts, code, n) INCLUDE (v) DEFERRABLE,
        CHECK (n < 1000000 AND id IS NOT NULL)
    ) PARTITION BY RANGE (ts);
    COMMENT ON COLUMN a.t.v IS 'what it says';
    CREATE INDEX t_v_idx ON a.t (v COLLATE "POSIX" text_pattern_ops DESC NULLS LAST) WITH (fillfactor = 70) WHERE v <> '';
    CREATE INDEX ON a.t USING brin (ts) WITH (pages_per_range = 4);
    CREATE INDEX lower_v ON a.t (lower(v), (n % 10)) INCLUDE (id);
    CREATE INDEX ON a.t USING gin (to_tsvector('simple', v));
    ALTER TABLE a.t ALTER n SET STATISTICS 500, ALTER v SET STORAGE EXTERNAL;
    CREATE STATISTICS a.t_stats (dependencies, ndistinct) ON n, code FROM a.t;
    CREATE FUNCTION a.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER always AFTER UPDATE ON a.t FOR EACH ROW EXECUTE FUNCTION a.nothing();
    CREATE TABLE a.t_2012_12 PARTITION OF a.t FOR VALUES FROM ('2012-12-01Z') TO ('2013-01-01Z');
"""
SOURCE = "CREATE TABLE t (id bigint, ts timestamptz, code text, n int, v text)"


def description(database, name):
    """The catalog's view of a partition, its own name replaced by a star."""
    table = sql.Identifier("a", name).as_string(None)
    return {
        what: database.run(query, {"table": table, "name": name}) for what, query in CATALOG.items()
    }


def without_names(found):
    """The server draws names for PARTITION OF by rules of its own; what is named so is what counts."""
    return {
        what: sorted((row[1:] for row in rows), key=repr)
        if what in ("constraints", "indexes")
        else rows
        for what, rows in found.items()
    }


def assert_statistics_moved_along(new, sibling):
    """PARTITION OF copies none; a copy does no harm if it stands where its table stands (rule 15)."""
    assert {row[0] for row in new.pop("statistics")} <= {"a"}
    sibling.pop("statistics")


def rich(source, warehouse, extra=""):
    source.run(SOURCE)
    source.run(
        "INSERT INTO t VALUES (1, '2013-01-02', 'x', 1, 'a'), (2, '2013-01-02', 'y', 2, ''), (3, '2013-02-01', NULL, 3, 'b')"
    )
    warehouse.run(RICH + extra)
    return Pipeline(source, warehouse)


@pytest.mark.parametrize("existing", [False, True], ids=["made", "replaced"])
def test_a_partition_is_like_its_siblings(source, warehouse, existing):
    """Columns, keys, checks, foreign keys, indexes, statistics, triggers, comments: as PARTITION OF makes them."""
    pipe = rich(source, warehouse)
    if existing:
        warehouse.run(
            "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
        )
    pipe.load(JANUARY, FEBRUARY)
    assert warehouse.value("SELECT count(*) FROM a.t_2013_01") == 2
    new, sibling = description(warehouse, "t_2013_01"), description(warehouse, "t_2012_12")
    if not existing:
        new, sibling = without_names(new), without_names(sibling)
    assert_statistics_moved_along(new, sibling)
    for what in sibling:
        assert new[what] == sibling[what], what


def test_a_partition_filled_from_staging_is_like_its_siblings(source18, warehouse18):
    """The same for several partitions of one load, which are filled from one batch."""
    pipe = rich(source18, warehouse18)
    pipe.load(JANUARY, MARCH)
    for name in ("t_2013_01", "t_2013_02"):
        new = without_names(description(warehouse18, name))
        sibling = without_names(description(warehouse18, "t_2012_12"))
        assert_statistics_moved_along(new, sibling)
        for what in sibling:
            assert new[what] == sibling[what], what


def test_twice_swapped_is_still_like_its_siblings(source, warehouse):
    """Names do not drift: after three swaps everything is called as it was."""
    pipe = rich(source, warehouse)
    pipe.load(JANUARY, FEBRUARY)
    first = description(warehouse, "t_2013_01")
    for _ in range(2):
        pipe.load(JANUARY, FEBRUARY)
    assert description(warehouse, "t_2013_01") == first


def test_identity_columns_are_like_their_siblings(source, warehouse):
    """A parent with an identity column can be swapped on every version."""
    source.run("CREATE TABLE t (id bigint, ts timestamptz)")
    source.run("INSERT INTO t VALUES (7, '2013-01-02')")
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint GENERATED BY DEFAULT AS IDENTITY, ts timestamptz NOT NULL)"
        " PARTITION BY RANGE (ts);"
        "CREATE TABLE a.t_2012_12 PARTITION OF a.t FOR VALUES FROM ('2012-12-01Z') TO ('2013-01-01Z')"
    )
    pipe = Pipeline(source, warehouse)
    for _ in range(2):
        pipe.load(JANUARY, FEBRUARY)
    new, sibling = description(warehouse, "t_2013_01"), description(warehouse, "t_2012_12")
    for what in sibling:
        assert new[what] == sibling[what], what
    assert pipe.rows() == pipe.source_rows()


def test_indexes_whose_names_become_the_same_for_a_partition(source18, warehouse18):
    """'t_x' and 'x' of the parent both want to be '<partition>_x': neither may fail the publish."""
    pipe = simple(source18, warehouse18)
    warehouse18.run("CREATE INDEX t_x ON a.t (v); CREATE INDEX x ON a.t (ts)")
    fill(source18, JANUARY, FEBRUARY, 3)
    pipe.load(JANUARY, FEBRUARY)
    assert pipe.rows() == pipe.source_rows()


def test_an_index_name_that_is_taken_in_the_schema(source18, warehouse18):
    """A relation that bears the wanted name of an index does not fail the publish."""
    pipe = simple(source18, warehouse18)
    warehouse18.run("CREATE TABLE a.t_2013_01_pkey ()")
    fill(source18, JANUARY, FEBRUARY, 3)
    pipe.load(JANUARY, FEBRUARY)
    assert pipe.rows() == pipe.source_rows()


#: Things that a partition may have of its own, and that a swap must keep or refuse, never lose in silence.
OWN = {
    "index": "CREATE INDEX own_index ON a.t_2013_01 (v, id)",
    "check": "ALTER TABLE a.t_2013_01 ADD CONSTRAINT own_check CHECK (id < 1000)",
    "trigger": "CREATE FUNCTION a.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
    "CREATE TRIGGER own_trigger BEFORE INSERT ON a.t_2013_01 FOR EACH ROW EXECUTE FUNCTION a.f()",
    "grant": "CREATE ROLE {role}; GRANT SELECT ON a.t_2013_01 TO {role}",
    "storage": "ALTER TABLE a.t_2013_01 SET (fillfactor = 60)",
    "statistics": "CREATE STATISTICS a.own_stats ON id, v FROM a.t_2013_01",
    "comment": "COMMENT ON TABLE a.t_2013_01 IS 'January, checked by accounting'",
    "default": "ALTER TABLE a.t_2013_01 ALTER v SET DEFAULT 'own'",
    "replica identity": "ALTER TABLE a.t_2013_01 REPLICA IDENTITY FULL",
    "row security": "ALTER TABLE a.t_2013_01 ENABLE ROW LEVEL SECURITY",
}


@pytest.mark.parametrize("thing", OWN)
def test_what_a_partition_has_of_its_own_is_kept_or_refused(source18, warehouse18, thing):
    """A swap never takes away in silence what somebody gave to one partition."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 3)
    pipe.load(JANUARY, FEBRUARY)
    role = f"own_{thing.replace(' ', '_')}_{warehouse18.name}"
    warehouse18.run(OWN[thing].format(role=role))
    before = description(warehouse18, "t_2013_01")
    try:
        pipe.load(JANUARY, FEBRUARY)
    except CatalogError as error:
        assert "t_2013_01" in str(error)  # noqa: PT017
    after = description(warehouse18, "t_2013_01")
    if thing != "comment":
        # What a staged table says about itself is another test's business.
        del before["comment"], after["comment"]
    assert after == before
    if thing == "grant":
        warehouse18.run(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW"])
def test_a_view_on_a_partition_shows_what_is_published(source18, warehouse18, kind):
    """It would go on showing replaced rows: a swap is refused by its name, auto replaces the rows in place."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 3)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run(f"CREATE {kind} a.watching AS SELECT * FROM a.t_2013_01")
    source18.run("UPDATE t SET v = 'changed'")
    before = pipe.picture()
    manifest = pipe.staged(JANUARY, FEBRUARY)
    with pytest.raises(CatalogError, match="watching"):
        pipe.publish(manifest, strategy=Strategy.SWAP)
    assert pipe.picture() == before
    assert pipe.publish(manifest).strategy is Strategy.DELETE_INSERT
    assert pipe.rows() == pipe.source_rows()
    if kind == "VIEW":
        assert warehouse18.value("SELECT min(v) FROM a.watching") == "changed"


def test_replaced_versions_stay_and_older_ones_go(source, warehouse):
    """keep_versions=1: after each swap exactly the version before stands detached in etl_staging."""
    pipe = simple(source, warehouse)
    versions = []
    for number in range(4):
        source.run("DELETE FROM t")
        fill(source, JANUARY, FEBRUARY, 10 + number)
        done = pipe.load(JANUARY, FEBRUARY)
        versions.append(done.partitions[0].previous)
        assert done.partitions[0].rows_before == (9 + number if number else 0)
        kept = {TableName.parse(versions[-1]).name} if versions[-1] else set()
        assert pipe.left_in_staging() == kept
    assert versions[0] is None
    assert warehouse.value(f"SELECT count(*) FROM {versions[-1]}") == 12
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize(("keep", "left"), [(0, 0), (2, 2)])
def test_as_many_versions_stay_as_asked_for(source18, warehouse18, keep, left):
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 10)
    for _ in range(4):
        pipe.load(JANUARY, FEBRUARY, options={"keep_versions": keep})
    assert len(pipe.left_in_staging()) == left


def test_a_kept_version_does_not_hold_its_dimension_rows(source18, warehouse18):
    """Rule 14: the detached version's foreign keys are gone, so a dimension row may be deleted."""
    pipe = rich(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    source18.run("UPDATE t SET code = 'x'")
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run("DELETE FROM a.dim WHERE code = 'y'")


def test_neither_does_one_whose_publish_died_before_it_had_tidied(
    source18, warehouse18, monkeypatch
):
    """The retry finds the load published, and does what was left to do."""
    pipe = rich(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    source18.run("UPDATE t SET code = 'x'")
    manifest = pipe.staged(JANUARY, FEBRUARY)

    def died(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PostgresPublisher, "tidy", died)
        with pytest.raises(KeyboardInterrupt):
            pipe.publish(manifest)
    assert pipe.publish(manifest).already
    warehouse18.run("DELETE FROM a.dim WHERE code = 'y'")


def test_an_empty_month_of_a_longer_window_leaves_nothing_behind(source18, warehouse18):
    """Partitions that are and stay empty are not made, and their tables do not linger."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 3)
    fill(source18, MARCH, APRIL, 3, first=100)
    done = pipe.load(JANUARY, APRIL)
    assert [p.name for p in done.partitions] == ["a.t_2013_01", "a.t_2013_03"]
    assert pipe.rows() == pipe.source_rows()
    assert pipe.left_in_staging() == set()
    assert pipe.coverage()[0][:2] == ("2013-01-01 00:00:00+00", "2013-04-01 00:00:00+00")


def test_an_empty_window_without_a_partition_is_recorded(source, warehouse):
    """No rows, no partition: a success that is covered, moves the watermark and leaves nothing."""
    pipe = simple(source, warehouse)
    done = pipe.load(JANUARY, FEBRUARY)
    assert (done.partitions, done.changed) == ((), False)
    assert pipe.position() == "2013-02-01 00:00:00+00"
    assert pipe.left_in_staging() == set()
    assert (
        warehouse.value("SELECT count(*) FROM pg_inherits WHERE inhparent = 'a.t'::regclass") == 0
    )


def test_an_empty_window_over_rows_is_braked(source, warehouse):
    """An emptied source does not empty a partition unless told so."""
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 10)
    pipe.load(JANUARY, FEBRUARY)
    source.run("DELETE FROM t")
    manifest = pipe.staged(JANUARY, FEBRUARY)
    before = pipe.picture()
    with pytest.raises(ShrinkBrake, match="10 of 10 rows"):
        pipe.publish(manifest)
    assert pipe.picture()[0] == before[0]
    assert pipe.state(manifest.load_id) == "validated"
    done = pipe.publish(manifest, max_shrink=1.0)
    assert (done.rows_deleted, done.changed, pipe.rows()) == (10, True, [])


@pytest.mark.parametrize(("left", "passes"), [(5, True), (4, False)])
def test_the_brake_counts_the_share(source18, warehouse18, left, passes):
    """Half may go by default, more may not."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 10)
    pipe.load(JANUARY, FEBRUARY)
    source18.run("DELETE FROM t WHERE id > %s", (left,))
    manifest = pipe.staged(JANUARY, FEBRUARY)
    if passes:
        pipe.publish(manifest)
    else:
        with pytest.raises(ShrinkBrake):
            pipe.publish(manifest)
    assert len(pipe.rows()) == (left if passes else 10)


@pytest.mark.parametrize("fresh", [True, False])
def test_attach_and_detach_scan_nothing_under_the_lock(server, source18, warehouse18, fresh):
    """The CHECK made aside implies the bound: no partition is verified while readers wait."""
    pipe = simple(source18, warehouse18, warehouse_role={"options": "-c log_min_messages=debug1"})
    fill(source18, JANUARY, FEBRUARY, 10)
    fill(source18, FEBRUARY, MARCH, 10, first=100)
    if not fresh:
        pipe.load(JANUARY, FEBRUARY)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    before = len(server.log.read_text(errors="replace"))
    pipe.publish(manifest)
    log = server.log.read_text(errors="replace")[before:]
    assert "is implied by existing constraints" in log
    # FOREIGN KEY and CHECK of our own are verified before the locks; ATTACH verifies nothing.
    attached = log[log.index("is implied by existing constraints") :]
    assert "verifying table" not in attached


def test_the_default_partition_is_not_scanned_under_the_lock(server, source18, warehouse18):
    """Rule 23: DEFAULT gets its CHECK before the lock, so a large one does not stop all readers."""
    pipe = simple(source18, warehouse18, warehouse_role={"options": "-c log_min_messages=debug1"})
    warehouse18.run(
        "CREATE TABLE a.other PARTITION OF a.t DEFAULT; INSERT INTO a.t VALUES (1, '2020-01-01', '')"
    )
    fill(source18, JANUARY, FEBRUARY, 10)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    before = len(server.log.read_text(errors="replace"))
    pipe.publish(manifest)
    log = server.log.read_text(errors="replace")[before:]
    attached = log[log.index("is implied by existing constraints") :]
    assert 'verifying table "other"' not in attached


def test_hostile_identifiers_everywhere(source, warehouse):
    """Quotes, percents, braces, newlines, emoji, reserved words and 63 bytes are only names."""
    one = TableName('sch%s "x"', "select")
    two = TableName("Grüße {}", 'o\'ne "t"\n%(x)s {0}👩' + "ü" * 18)
    ts, identity, value = 'the "ts" %s', "order", "{v}\n'👩'"
    for database, table, tail in (
        (source, one, sql.SQL("")),
        (warehouse, two, sql.SQL(" PARTITION BY RANGE ({})").format(sql.Identifier(ts))),
    ):
        database.run(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(table.schema)))
        database.run(
            sql.SQL(
                "CREATE TABLE {} ({} bigint NOT NULL, {} timestamptz NOT NULL, {} text){}"
            ).format(
                sql.Identifier(table.schema, table.name),
                *map(sql.Identifier, (identity, ts, value)),
                tail,
            )
        )
    target = sql.Identifier(two.schema, two.name)
    names = {
        "key": 'k"e%y',
        "index": "i {} %s\n",
        "check": "c'h\"e%(k)s",
        "long": "x" * 63,
        "fk": 'f"k',
    }
    warehouse.run(
        sql.SQL("CREATE TABLE {} (id bigint PRIMARY KEY)").format(
            sql.Identifier(two.schema, "group")
        )
    )
    warehouse.run(
        sql.SQL("INSERT INTO {} SELECT generate_series(0, 100)").format(
            sql.Identifier(two.schema, "group")
        )
    )
    for statement in (
        "ALTER TABLE {t} ADD CONSTRAINT {key} PRIMARY KEY ({id}, {ts})",
        "CREATE INDEX {index} ON {t} ((lower({v}))) WHERE {v} <> '%s{{}}'",
        "CREATE INDEX {long} ON {t} ({v})",
        "ALTER TABLE {t} ADD CONSTRAINT {check} CHECK ({v} <> '%s {{}} ''\"')",
        "ALTER TABLE {t} ADD CONSTRAINT {fk} FOREIGN KEY ({id}) REFERENCES {group}",
    ):
        warehouse.run(
            sql.SQL(statement).format(
                t=target,
                id=sql.Identifier(identity),
                ts=sql.Identifier(ts),
                v=sql.Identifier(value),
                group=sql.Identifier(two.schema, "group"),
                **{key: sql.Identifier(name) for key, name in names.items()},
            )
        )
    source.run(
        sql.SQL(
            "INSERT INTO {} SELECT i, '2013-01-01Z'::timestamptz + i * '1 day'::interval, '%s {{}}' || i"
            " FROM generate_series(0, 59) AS i"
        ).format(sql.Identifier(one.schema, one.name))
    )
    pipe = Pipeline(
        source,
        warehouse,
        table=one,
        target=two,
        cursor=ts,
        partition=PartitionSpec(ts, Every.MONTH),
    )
    for _ in range(2):
        pipe.load(JANUARY, FEBRUARY)
    pipe.load(JANUARY, APRIL)
    assert pipe.rows() == pipe.source_rows()
    load = pipe.load(JANUARY, MARCH)
    with connect(warehouse.endpoint()) as connection:
        warehouse.run(
            sql.SQL("ALTER TABLE {} ADD {} text COLLATE {} DEFAULT {}").format(
                target, sql.Identifier('n%s"{}'), sql.Identifier("C"), sql.Literal("'%s{}")
            )
        )
        stop, log = threading.Event(), RecordedEvents()
        options = RollbackOptions()
        done = rollback(connection, load.load_id, "%s", "{}", options=options, stop=stop, log=log)
        assert len(done.kept) == 2
        cleaned = clean(connection, CleanOptions(keep_versions=0), stop=stop, log=log)
    assert {str(item.table) for item in cleaned.dropped} >= set(done.kept.values())
    assert (cleaned.busy, cleaned.unregistered) == ((), ())
    assert len(pipe.rows()) == len(pipe.source_rows())
    assert warehouse.value("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0


def test_a_stream_whose_name_says_nothing_in_sql(source18, warehouse18):
    """The longest stream id of dots and dashes works; staging names stay plain."""
    stream = ("0-._" * 25)[:100]
    pipe = simple(source18, warehouse18, stream=stream)
    fill(source18, JANUARY, FEBRUARY, 3)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    assert str(manifest.staging) == f"etl_staging.{manifest.staging.name}"
    pipe.publish(manifest)
    assert pipe.rows() == pipe.source_rows()


def test_one_load_of_several_partitions_is_one_transaction(source18, warehouse18):
    """A month that cannot be attached keeps all others from being shown."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, APRIL, 90)
    manifest = pipe.staged(JANUARY, APRIL)
    warehouse18.run(
        "CREATE TABLE a.odd PARTITION OF a.t FOR VALUES FROM ('2013-03-10Z') TO ('2013-03-11Z')"
    )
    before = pipe.picture()
    with pytest.raises(EtlError):
        pipe.publish(manifest)
    assert pipe.picture() == before
