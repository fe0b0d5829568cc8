"""Upsert by key: what a batch makes of a target, by whichever way the rows are found."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from airflow_etl_provider.core.errors import DataError, TransientError
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.postgres import upsert
from airflow_etl_provider.postgres.catalog import read_table
from airflow_etl_provider.postgres.session import connect
from airflow_etl_provider.postgres.upsert import Access, Upsert, Written
from tests.builders import Pipeline, in_background, login, reader, wait_until
from tests.integration.postgres.test_swap_merge import day, entities, put

COLUMNS = ("id", "place", "changed", "v", "gone")
_DAYS = (
    "CREATE TABLE a.one PARTITION OF a.t FOR VALUES FROM ('2013-01-01') TO ('2013-01-02');"
    "CREATE TABLE a.two PARTITION OF a.t FOR VALUES FROM ('2013-01-02') TO ('2013-01-03');"
    "CREATE TABLE a.rest PARTITION OF a.t DEFAULT;"
)
#: How the target is partitioned, and what it is keyed by besides.
SHAPES = {
    "plain": ("", "", ("id",)),
    "a key that says the place": ("PARTITION BY RANGE (place)", _DAYS, ("id", "place")),
    "a key alone": ("PARTITION BY RANGE (place)", _DAYS, ("id",)),
    "list": (
        "PARTITION BY LIST (v)",
        ("CREATE TABLE a.one PARTITION OF a.t FOR VALUES IN ('a', NULL);"
        "CREATE TABLE a.two PARTITION OF a.t DEFAULT;"),
        ("id",),
    ),
    "hash": (
        "PARTITION BY HASH (id)",
        ("CREATE TABLE a.one PARTITION OF a.t FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE a.two PARTITION OF a.t FOR VALUES WITH (MODULUS 2, REMAINDER 1);"),
        ("id",),
    ),
    "an expression": (
        "PARTITION BY LIST ((id % 2))",
        (
            "CREATE TABLE a.one PARTITION OF a.t FOR VALUES IN (0);"
            "CREATE TABLE a.two PARTITION OF a.t FOR VALUES IN (1);"
        ),
        ("id",),
    ),
    "two levels": (
        "PARTITION BY RANGE (place)",
        ("CREATE TABLE a.one PARTITION OF a.t FOR VALUES FROM ('2013-01-01') TO ('2013-01-02') PARTITION BY LIST (v);"
        "CREATE TABLE a.one_a PARTITION OF a.one FOR VALUES IN ('a');"
        "CREATE TABLE a.one_rest PARTITION OF a.one DEFAULT;"
        "CREATE TABLE a.rest PARTITION OF a.t DEFAULT;"),
        ("id",),
    ),
}  # fmt: skip
SETTINGS = (
    "SELECT current_setting('enable_hashjoin'), current_setting('enable_mergejoin'),"
    " current_setting('enable_partition_pruning'), current_setting('jit')"
)
#: A trigger of the target's own.
SEEN = (
    "CREATE FUNCTION a.see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN new; END $$;"
    "CREATE TRIGGER see BEFORE INSERT OR UPDATE ON a.t FOR EACH ROW EXECUTE FUNCTION a.see()"
)
PLACES = [date(2013, 1, 1), date(2013, 1, 2), date(2013, 1, 3), None]


@dataclass(frozen=True)
class Row:
    """A row of the target or of the batch; of the latter it may say that it was deleted."""

    id: int
    place: date | None
    changed: int
    v: str | None
    gone: bool = False

    def key(self, keys: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(getattr(self, key) for key in keys)

    def values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, column) for column in COLUMNS)


def rows(keys: tuple[str, ...], gone: st.SearchStrategy[bool]) -> st.SearchStrategy[list[Row]]:
    places = st.sampled_from(PLACES[:3] if "place" in keys else PLACES)
    row = st.builds(
        Row, st.integers(1, 8), places, st.integers(0, 3), st.sampled_from(["a", "b", None]), gone
    )
    return st.lists(row, max_size=8, unique_by=lambda row: row.key(keys))


def expected(
    before: list[Row], batch: list[Row], keys: tuple[str, ...]
) -> tuple[set[Row], Written, int]:
    """What the rule says: deletes first, then the later one of two versions counts."""
    target = {row.key(keys): row for row in before}
    inserted = updated = stale = deleted = 0
    for row in batch:
        old = target.get(row.key(keys))
        if row.gone:
            if old is not None and row.changed >= old.changed:
                del target[row.key(keys)]
                deleted += 1
        elif old is None:
            inserted += 1
            target[row.key(keys)] = row
        elif old != row and row.changed >= old.changed:
            updated += 1
            target[row.key(keys)] = row
        elif old != row:
            stale += 1
    return set(target.values()), Written(inserted, updated, stale), deleted


def written(
    connection, batch: list[Row], keys: tuple[str, ...], *, deletes: bool = True
) -> tuple[Written, int]:
    """Write *batch*, staged as the table ``etl_staging.s``, into ``a.t``."""
    connection.execute("TRUNCATE etl_staging.s")
    connection.cursor().executemany(
        "INSERT INTO etl_staging.s VALUES (%s, %s, %s, %s, %s)", [row.values() for row in batch]
    )
    target = read_table(connection, TableName("a", "t"), label="test")
    table: sql.Composable = sql.Identifier("a", "t")
    way = Upsert(
        connection,
        target,
        sql.SQL("ONLY {}").format(table) if target.kind == "r" else table,
        Access.read(connection, target, keys),
        COLUMNS,
        fresh=sql.SQL("s.changed >= t.changed"),
        lives=sql.SQL("NOT (s.gone)"),
    )
    staged = sql.Identifier("etl_staging", "s")
    with connection.transaction():
        deleted = 0
        if deletes:
            gone, _ = way.delete(staged, len(batch), sql.SQL("s.gone"))
            deleted = sum(gone.values())
        done = way.write(staged, sum(not row.gone for row in batch))
    return done, deleted


def make(database, shape: str, extra: str = "") -> tuple[str, ...]:
    by, partitions, keys = SHAPES[shape]
    unique = f"CREATE UNIQUE INDEX ON a.t ({', '.join(keys)})" if shape in (
        "plain", "a key that says the place", "hash"
    ) else "CREATE INDEX ON a.t (id)"  # fmt: skip
    database.run(
        "CREATE SCHEMA a; CREATE SCHEMA etl_staging;"
        f"CREATE TABLE a.t (id int NOT NULL, place date, changed int NOT NULL, v text, gone boolean{extra}) {by};"
        f"{partitions} {unique}; CREATE TABLE etl_staging.s (LIKE a.t)"
    )
    return keys


def content(connection) -> set[Row]:
    found = connection.execute("SELECT id, place, changed, v, gone FROM a.t").fetchall()
    assert len(set(found)) == len(found)
    return {Row(*row) for row in found}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_of_any_rows(warehouse, monkeypatch, shape):
    """Whether keys are looked up one by one or the planner decides, the target and the counts are the same."""
    keys = make(warehouse, shape)
    with connect(warehouse.endpoint()) as connection:

        @settings(
            max_examples=40, deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture],
        )  # fmt: skip
        @given(rows(keys, st.just(False)), rows(keys, st.booleans()), st.booleans())
        def check(before: list[Row], batch: list[Row], looked_up: bool) -> None:
            monkeypatch.setattr(upsert, "_LOOKUP_ROWS", 0 if looked_up else 10**9)
            connection.execute("TRUNCATE a.t")
            connection.cursor().executemany(
                "INSERT INTO a.t VALUES (%s, %s, %s, %s, %s)", [row.values() for row in before]
            )
            after, done, deleted = expected(before, batch, keys)
            assert written(connection, batch, keys) == (done, deleted)
            assert content(connection) == after

        check()
        assert connection.execute("SELECT to_regclass('pg_temp.etl_rest')").fetchone() == (None,)


def big(database, shape: str) -> tuple[str, ...]:
    """A target of 30,000 rows, counted by the server."""
    keys = make(database, shape)
    database.run(
        "INSERT INTO a.t SELECT i, date '2013-01-01' + i % 3, 1, 'a', false FROM generate_series(1, 30000) AS i;"
    )
    database.run("ANALYZE a.t")
    return keys


def reads(connection) -> tuple[int, set[str]]:
    """How many rows were read by going through whole partitions, and the partitions that were asked by index."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT 1")
    found = connection.execute(
        "SELECT relname, seq_tup_read, idx_scan FROM pg_stat_user_tables WHERE schemaname = 'a'"
    ).fetchall()
    return sum(read for _, read, _ in found), {name for name, _, asked in found if asked}


@pytest.mark.parametrize(
    ("shape", "asked"),
    [
        ("plain", {"t"}),
        ("a key that says the place", {"two", "rest"}),
        ("a key alone", {"two", "rest"}),
        ("hash", {"one", "two"}),
    ],
)
def test_a_small_batch_does_not_read_the_whole_target(warehouse, shape, asked):
    """Only the partitions are asked that its rows belong to, as far as they are there; however the planner is set."""
    warehouse.run(
        sql.SQL("ALTER DATABASE {} SET enable_partition_pruning = off").format(
            sql.Identifier(warehouse.name)
        )
    )
    keys = big(warehouse, shape)
    with connect(warehouse.endpoint()) as connection:
        before, _ = reads(connection)
        batch = [Row(n, PLACES[n % 3], 2, "b") for n in range(1, 60) if n % 3]
        assert written(connection, batch, keys, deletes=False) == (Written(updated=40), 0)
        assert reads(connection) == (before, asked)


@pytest.mark.parametrize("shape", ["a key that says the place", "a key alone"])
def test_the_planner_is_left_alone_afterwards(warehouse, shape):
    """Whoever comes later in the transaction, such as a trigger that is deferred, plans as ever."""
    keys = big(warehouse, shape)
    with connect(warehouse.endpoint()) as connection, connection.transaction():
        settings = connection.execute(SETTINGS).fetchone()
        written(connection, [Row(1, PLACES[1], 2, "b"), Row(50000, PLACES[0], 2, "b")], keys)
        assert connection.execute(SETTINGS).fetchone() == settings


@pytest.mark.parametrize(("configured", "found"), [(None, "1.1"), ("3", "3")])
def test_the_cost_of_a_random_read_is_what_was_configured(warehouse, configured, found):
    keys = make(warehouse, "plain", ", cost text DEFAULT current_setting('random_page_cost')")
    if configured is not None:
        warehouse.run(
            sql.SQL("ALTER DATABASE {} SET random_page_cost = {}").format(
                sql.Identifier(warehouse.name), sql.Literal(configured)
            )
        )
    with connect(warehouse.endpoint()) as connection:
        connection.execute("ALTER TABLE etl_staging.s DROP cost")
        written(connection, [Row(1, None, 1, "a")], keys)
        assert connection.execute("SELECT cost FROM a.t").fetchall() == [(found,)]
        assert connection.execute("SHOW random_page_cost").fetchone() == (configured or "4",)


class TestTargetsWithCodeOfTheirOwn:
    """They are written by UPDATE and INSERT, as anybody would, with the planner as it is."""

    @pytest.mark.parametrize("shape", ["plain", "a key that says the place", "a key alone"])
    def test_a_trigger_is_planned_as_ever(self, warehouse, monkeypatch, shape):
        monkeypatch.setattr(upsert, "_LOOKUP_ROWS", 0)
        keys = make(warehouse, shape)
        warehouse.run(
            "CREATE TABLE a.seen (hash text);"
            "CREATE FUNCTION a.see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO a.seen SELECT current_setting('enable_hashjoin'); RETURN NULL; END $$;"
            "CREATE TRIGGER see AFTER UPDATE ON a.t FOR EACH STATEMENT EXECUTE FUNCTION a.see();"
            "INSERT INTO a.t VALUES (1, '2013-01-01', 1, 'a', false)"
        )
        with connect(warehouse.endpoint()) as connection:
            assert written(connection, [Row(1, PLACES[0], 2, "b")], keys) == (Written(updated=1), 0)
            assert set(connection.execute("SELECT hash FROM a.seen").fetchall()) == {("on",)}

    def test_a_trigger_may_change_other_rows(self, warehouse):
        keys = make(warehouse, "plain")
        warehouse.run(
            "CREATE FUNCTION a.only_one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " UPDATE a.t SET gone = true WHERE v = new.v AND id <> new.id; RETURN new; END $$;"
            "CREATE TRIGGER only_one BEFORE INSERT ON a.t FOR EACH ROW EXECUTE FUNCTION a.only_one();"
            "INSERT INTO a.t VALUES (1, NULL, 1, 'a', false)"
        )
        batch = [Row(2, None, 2, "b"), Row(1, None, 2, "b")]
        with connect(warehouse.endpoint()) as connection:
            assert written(connection, batch, keys) == (Written(inserted=1, updated=1), 0)
            assert content(connection) == {batch[0], Row(1, None, 2, "b", gone=True)}

    def test_a_trigger_may_keep_a_row_as_it_was(self, warehouse):
        keys = make(warehouse, "plain")
        warehouse.run(
            "CREATE FUNCTION a.never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
            "CREATE TRIGGER never BEFORE UPDATE ON a.t FOR EACH ROW EXECUTE FUNCTION a.never();"
            "INSERT INTO a.t VALUES (1, NULL, 1, 'a', false)"
        )
        with connect(warehouse.endpoint()) as connection:
            batch = [Row(1, None, 2, "b")]
            assert written(connection, batch, keys) == (Written(overruled=1), 0)

    def test_rows_that_exclude_each_other(self, warehouse):
        """The place of the first is taken by the new one, which comes before it in the batch."""
        keys = make(warehouse, "plain")
        warehouse.run(
            "ALTER TABLE a.t ADD EXCLUDE USING gist (int4range(changed, changed + 3) WITH &&);"
            "INSERT INTO a.t VALUES (1, NULL, 1, 'a', false)"
        )
        batch = [Row(3, None, 2, "b"), Row(1, None, 10, "a")]
        with connect(warehouse.endpoint()) as connection:
            assert written(connection, batch, keys) == (Written(inserted=1, updated=1), 0)
            assert content(connection) == set(batch)

    def test_no_function_of_a_stranger_is_called(self, source18, warehouse18):
        """Whatever is in the user's search path: the catalog is read before it is in ours."""
        pipe = entities(source18, warehouse18)
        put(source18, *[(n, day(n), day(1), "a") for n in range(1, 9)])
        pipe.load(options={"strategy": Strategy.MERGE})
        warehouse18.run("ANALYZE a.t")
        for types in ("text[]", "int2[]", "oid[]"):
            warehouse18.run(
                f"CREATE FUNCTION public.unnest({types}) RETURNS SETOF text LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE 'a stranger was called'; END $$"
            )
        source18.run("UPDATE t SET v = 'b', changed = changed + interval '1 h'")
        assert pipe.load(options={"strategy": Strategy.MERGE}).rows_updated == 8


class TestWhatMergeCannotDo:
    @pytest.mark.parametrize("shape", ["plain", "a key alone"])
    def test_rows_that_swap_the_values_of_a_second_unique_column(
        self, warehouse, monkeypatch, shape
    ):
        monkeypatch.setattr(upsert, "_LOOKUP_ROWS", 0)
        keys = make(warehouse, shape)
        warehouse.run(
            f"CREATE UNIQUE INDEX ON a.t (v{'' if shape == 'plain' else ', place'});"
            "INSERT INTO a.t VALUES (1, '2013-01-01', 1, 'a', false), (2, '2013-01-01', 1, 'b', false)"
        )
        batch = [Row(1, PLACES[0], 2, "b"), Row(2, PLACES[0], 2, "a"), Row(3, PLACES[0], 2, "c")]
        with connect(warehouse.endpoint()) as connection:
            assert written(connection, batch, keys) == (Written(inserted=1, updated=2), 0)
            assert content(connection) == set(batch)

    def test_but_not_where_they_are_referenced(self, warehouse):
        keys = make(warehouse, "plain")
        warehouse.run(
            "CREATE UNIQUE INDEX ON a.t (v); ALTER TABLE a.t ADD PRIMARY KEY (id);"
            "INSERT INTO a.t VALUES (1, NULL, 1, 'a', false), (2, NULL, 1, 'b', false);"
            "CREATE TABLE a.other (id int REFERENCES a.t)"
        )
        with connect(warehouse.endpoint()) as connection:
            with pytest.raises(DataError, match=r"swap values of a unique column.*a\.other"):
                written(connection, [Row(1, None, 2, "b"), Row(2, None, 2, "a")], keys)
            assert {row.changed for row in content(connection)} == {1}

    def test_a_target_with_rules(self, warehouse):
        keys = make(warehouse, "plain")
        warehouse.run(
            "CREATE TABLE a.log (id int);"
            "CREATE RULE seen AS ON DELETE TO a.t DO ALSO INSERT INTO a.log VALUES (old.id);"
            "INSERT INTO a.t VALUES (1, NULL, 1, 'a', false)"
        )
        batch = [Row(1, None, 2, "b"), Row(2, None, 2, "a")]
        with connect(warehouse.endpoint()) as connection:
            assert written(connection, batch, keys) == (Written(inserted=1, updated=1), 0)
            assert content(connection) == set(batch)

    @pytest.mark.parametrize("shape", ["plain", "a key alone"])
    def test_an_identity_column_that_is_always_generated(self, warehouse, monkeypatch, shape):
        monkeypatch.setattr(upsert, "_LOOKUP_ROWS", 0)
        keys = make(warehouse, shape)
        warehouse.run(
            "ALTER TABLE a.t ALTER changed ADD GENERATED ALWAYS AS IDENTITY;"
            "INSERT INTO a.t OVERRIDING SYSTEM VALUE VALUES (1, '2013-01-01', 1, 'a', false)"
        )
        batch = [Row(1, PLACES[0], 2, "b"), Row(2, PLACES[0], 2, "a")]
        with connect(warehouse.endpoint()) as connection:
            assert written(connection, batch, keys) == (Written(inserted=1, updated=1), 0)
            assert content(connection) == set(batch)


def test_others_insert_the_same_keys_meanwhile(warehouse18):
    """MERGE finds a key missing that another transaction is inserting: once it waited for it, it updates."""
    keys = make(warehouse18, "plain")
    batch = [Row(1, None, 2, "ours"), Row(2, None, 2, "ours")]

    def work() -> Any:
        with connect(warehouse18.endpoint("etl:waits")) as connection:
            return written(connection, batch, keys)

    with reader(warehouse18, "INSERT INTO a.t VALUES (1, NULL, 1, 'theirs', false)") as other:
        with in_background(work) as writing:
            wait_until(lambda: writing.done() or waiting(warehouse18), "the upsert waits")
            other.commit()
        assert writing.result() == (Written(inserted=1, updated=1), 0)
    assert warehouse18.run("SELECT id, v FROM a.t ORDER BY id") == [(1, "ours"), (2, "ours")]


def waiting(database) -> Any:
    return database.value(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'etl:waits' AND wait_event_type = 'Lock'"
    )


@pytest.mark.parametrize(
    ("shape", "code", "theirs"),
    [
        ("a key alone", "", "UPDATE a.t SET place = '2013-01-02' WHERE id = 2"),
        ("a key alone", "", "INSERT INTO a.t VALUES (4, '2013-01-02', 1, 'theirs', false)"),
        ("a key alone", "", "DELETE FROM a.t WHERE id = 3"),
        ("a key alone", "", "UPDATE a.t SET place = '2013-01-02' WHERE id = 3"),
        # What others do in one statement to a row that stays as it is comes after it.
        ("plain", "", "UPDATE a.t SET place = '2013-01-02' WHERE id = 2"),
        ("plain", "", "INSERT INTO a.t VALUES (4, '2013-01-02', 1, 'theirs', false)"),
        ("a key alone", SEEN, "UPDATE a.t SET place = '2013-01-02' WHERE id = 2"),
        ("a key alone", SEEN, "INSERT INTO a.t VALUES (4, '2013-01-02', 1, 'theirs', false)"),
        ("a key alone", SEEN, "DELETE FROM a.t WHERE id = 3"),
        ("plain", SEEN, "UPDATE a.t SET place = '2013-01-02' WHERE id = 2"),
        ("plain", SEEN, "INSERT INTO a.t VALUES (4, '2013-01-02', 1, 'theirs', false)"),
    ],
)
def test_others_write_between_two_statements(warehouse, monkeypatch, shape, code, theirs):
    """A row comes to where it was not looked for any more: it does not slip through."""
    monkeypatch.setattr(upsert, "_LOOKUP_ROWS", 0)
    keys = make(warehouse, shape)
    warehouse.run(
        f"{code};INSERT INTO a.t SELECT i, '2013-01-01', 1, 'a', false FROM generate_series(1, 3) AS i"
    )
    batch = [
        Row(1, PLACES[0], 2, "ours"), Row(2, PLACES[1], 2, "ours"), Row(3, PLACES[0], 1, "a"),
        Row(4, PLACES[1], 2, "ours"),
    ]  # fmt: skip

    def work() -> Any:
        with connect(warehouse.endpoint("etl:waits")) as connection:
            return written(connection, batch, keys)

    with reader(warehouse, "SELECT FROM a.t WHERE id = 1 FOR UPDATE") as other:
        with in_background(work) as writing:
            wait_until(lambda: writing.done() or waiting(warehouse), "the upsert waits")
            warehouse.run(theirs)
            other.commit()
        try:
            writing.result()
        except TransientError:
            # The publish does the whole transaction over.
            work()
    with connect(warehouse.endpoint()) as connection:
        assert content(connection) == set(batch)


def test_a_role_that_may_make_no_temporary_table(warehouse18, monkeypatch):
    monkeypatch.setattr(upsert, "_LOOKUP_ROWS", 0)
    keys = make(warehouse18, "a key alone")
    warehouse18.run(
        "INSERT INTO a.t VALUES (1, '2013-01-01', 1, 'a', false);"
        f'REVOKE TEMPORARY ON DATABASE "{warehouse18.name}" FROM PUBLIC'
    )
    batch = [Row(1, PLACES[0], 2, "b"), Row(2, PLACES[0], 2, "b")]
    try:
        with (
            login(
                warehouse18,
                "GRANT USAGE ON SCHEMA a, etl_staging TO {role}",
                "GRANT ALL ON ALL TABLES IN SCHEMA a, etl_staging TO {role}",
            ) as role,
            connect(warehouse18.endpoint(**role)) as connection,
        ):
            assert written(connection, batch, keys) == (Written(inserted=1, updated=1), 0)
    finally:
        warehouse18.run(f'GRANT TEMPORARY ON DATABASE "{warehouse18.name}" TO PUBLIC')


def test_a_batch_without_the_partition_column(warehouse, monkeypatch):
    monkeypatch.setattr(upsert, "_LOOKUP_ROWS", 0)
    keys = make(warehouse, "a key alone")
    warehouse.run(
        "INSERT INTO a.t VALUES (1, '2013-01-01', 1, 'a', false);"
        "INSERT INTO etl_staging.s VALUES (1, NULL, 2, 'b', NULL), (2, NULL, 2, 'b', NULL)"
    )
    columns = ("id", "changed", "v")
    with connect(warehouse.endpoint()) as connection, connection.transaction():
        target = read_table(connection, TableName("a", "t"), label="test")
        way = Upsert(
            connection, target, sql.Identifier("a", "t"), Access.read(connection, target, keys),
            columns, fresh=None, lives=sql.SQL("true"),
        )  # fmt: skip
        staged = sql.SQL("(SELECT id, changed, v FROM etl_staging.s)")
        assert way.write(staged, 2) == Written(inserted=1, updated=1)
        assert set(connection.execute("SELECT id, place, v FROM a.t").fetchall()) == {
            (1, PLACES[0], "b"),
            (2, None, "b"),
        }


@pytest.mark.parametrize(
    ("index", "found"),
    [
        ("(k)", True),
        ("(k, p)", True),
        ("(p, k)", False),
        ('(k COLLATE "C")', False),
        ("(k text_pattern_ops)", False),
        ("(lower(k))", False),
        ("(k) WHERE p > '2013-01-01'", False),
        ("USING hash (k)", True),
        ("USING brin (k)", False),
        ("(p) INCLUDE (k)", False),
    ],
)
def test_an_index_that_finds_a_row_by_its_key(warehouse, index, found):
    """By the equality of the column itself: another collation's is no use to the lookup."""
    warehouse.run(
        f"CREATE SCHEMA a; CREATE TABLE a.t (k text, p date) PARTITION BY RANGE (p); CREATE INDEX ON a.t {index}"
    )
    with connect(warehouse.endpoint()) as connection:
        target = read_table(connection, TableName("a", "t"), label="test")
        assert Access.read(connection, target, ("k",)).is_indexed({"k"}) is found


def test_an_identity_column_by_default_is_updated(warehouse):
    keys = make(warehouse, "plain")
    warehouse.run(
        "ALTER TABLE a.t ALTER changed ADD GENERATED BY DEFAULT AS IDENTITY; ALTER TABLE a.t ADD PRIMARY KEY (id);"
        "INSERT INTO a.t VALUES (1, NULL, 1, 'a', false); CREATE TABLE a.other (id int REFERENCES a.t)"
    )
    with connect(warehouse.endpoint()) as connection:
        assert written(connection, [Row(1, None, 2, "b")], keys) == (Written(updated=1), 0)


@pytest.mark.parametrize(
    ("row", "waits"), [(Row(1, None, 1, "a"), False), (Row(1, None, 2, "b"), True)]
)
def test_rows_that_are_the_same_are_not_even_locked(warehouse, row, waits):
    keys = make(warehouse, "plain")
    warehouse.run("INSERT INTO a.t VALUES (1, NULL, 1, 'a', false)")
    with (
        reader(warehouse, "SELECT * FROM a.t FOR UPDATE"),
        connect(warehouse.endpoint()) as connection,
    ):
        connection.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable) if waits else nullcontext():
            assert written(connection, [row], keys) == (Written(), 0)


@pytest.mark.parametrize(
    ("index", "keys", "rows", "missing"),
    [
        ("(id, v)", ("id",), 10, False),
        ("(v, id)", ("id",), 10, True),
        ("(v, id)", ("id", "v"), 10, False),
        ("(lower(v), id)", ("id",), 10, True),
        ("(id) WHERE v = 'a'", ("id",), 10, True),
        ("USING brin (id)", ("id",), 10, True),
        ("USING hash (id)", ("id",), 10, False),
        ("(v, id)", ("id",), 11, False),
    ],
)
def test_a_large_target_without_an_index_on_the_keys_is_told(
    source18, warehouse18, monkeypatch, index, keys, rows, missing
):
    monkeypatch.setattr(upsert, "_SMALL", rows)
    source18.run("CREATE TABLE t (id int, v text); INSERT INTO t VALUES (1, 'b')")
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int, v text);"
        "INSERT INTO a.t SELECT i, 'a' FROM generate_series(1, 10) AS i;"
        f"CREATE INDEX ON a.t {index}; ANALYZE a.t"
    )
    pipe = Pipeline(
        source18, warehouse18, kind=Kind.ENTITIES, keys=keys, cursor=None, partition=None,
        mode=WindowMode.FULL,
    )  # fmt: skip
    pipe.load(options={"strategy": Strategy.MERGE})
    told = [fields["remedy"] for event, fields in pipe.log.events if "no index" in event]
    assert told == (['CREATE INDEX ON "a"."t" ("id")'] if missing else [])


def test_names_of_any_kind(warehouse, monkeypatch):
    """Quotes, placeholders and 63 bytes in schema, table and column, looked up at their places."""
    monkeypatch.setattr(upsert, "_LOOKUP_ROWS", 0)
    schema, table, key, place, value = 'a"b', "%(t)s", "k" * 63, "p%s", 'v";--'
    target, staged = sql.Identifier(schema, table), sql.Identifier(schema, "s")
    with connect(warehouse.endpoint()) as connection:
        for statement in (
            sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)),
            sql.SQL("CREATE TABLE {} ({} int, {} int, {} text) PARTITION BY LIST ({})").format(
                target, *map(sql.Identifier, (key, place, value, place))
            ),
            sql.SQL("CREATE TABLE {} PARTITION OF {} DEFAULT").format(
                sql.Identifier(schema, "%"), target
            ),
            sql.SQL("CREATE INDEX ON {} ({})").format(target, sql.Identifier(key)),
            sql.SQL("CREATE TABLE {} (LIKE {})").format(staged, target),
            sql.SQL("INSERT INTO {} VALUES (1, 1, 'old'), (2, 2, 'old')").format(target),
            sql.SQL("INSERT INTO {} VALUES (1, 1, '%s'), (2, 3, 'new'), (3, 3, 'new')").format(
                staged
            ),
        ):
            connection.execute(statement)
        found = read_table(connection, TableName(schema, table), label="test")
        way = Upsert(
            connection, found, target, Access.read(connection, found, (key,)), (key, place, value),
            fresh=None, lives=sql.SQL("true"),
        )  # fmt: skip
        with connection.transaction():
            assert way.write(staged, 3) == Written(inserted=1, updated=2)
        rows = connection.execute(sql.SQL("SELECT * FROM {} ORDER BY 1").format(target))
        assert rows.fetchall() == [(1, 1, "%s"), (2, 3, "new"), (3, 3, "new")]
