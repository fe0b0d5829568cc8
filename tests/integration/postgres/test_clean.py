"""The janitor drops what the ledger registers and nobody needs, and nothing else."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from uuid6 import uuid7

from airflow_etl_provider.core.errors import ConfigurationError, ContractError, StateError, Stopped
from airflow_etl_provider.core.names import TableName, short_id
from airflow_etl_provider.core.publish import PublishOptions
from airflow_etl_provider.postgres.clean import CleanOptions, clean
from airflow_etl_provider.postgres.session import connect
from airflow_etl_provider.testing import MemoryWatermarkStore, RecordedEvents
from tests.builders import (
    APRIL,
    FEBRUARY,
    JANUARY,
    MARCH,
    fill,
    in_background,
    login,
    reader,
    simple,
    wait_until,
)


def cleaned(warehouse, *, dry_run=False, stop=None, log=None, **options):
    with connect(warehouse.endpoint()) as connection:
        return clean(
            connection,
            CleanOptions(**options),
            stop=stop or threading.Event(),
            log=log or RecordedEvents(),
            dry_run=dry_run,
        )


def names(leftovers):
    return [leftover.table.name for leftover in leftovers]


@pytest.fixture
def pipe(source18, warehouse18):
    made = simple(source18, warehouse18)
    fill(source18, JANUARY, MARCH, 60)
    return made


def aged(pipe, load_id, days):
    """Let everything that happened to a load have happened earlier."""
    pipe.warehouse.run(
        "UPDATE etl.loads SET started_at = started_at - make_interval(days => %(d)s),"
        " staged_at = staged_at - make_interval(days => %(d)s),"
        " validated_at = validated_at - make_interval(days => %(d)s) WHERE load_id = %(id)s",
        {"d": days, "id": load_id},
    )
    pipe.warehouse.run(
        "UPDATE etl.load_partitions SET published_at = published_at - make_interval(days => %(d)s)"
        " WHERE load_id = %(id)s",
        {"d": days, "id": load_id},
    )


def in_state(pipe, state):
    """A staged batch whose load ended so, its table left behind."""
    manifest = pipe.extract(JANUARY, FEBRUARY)
    pipe.warehouse.run(
        "UPDATE etl.loads SET state = %s WHERE load_id = %s", (state, manifest.load_id)
    )
    return manifest


@pytest.mark.parametrize("state", ["abandoned", "superseded", "rolled_back", "published"])
def test_the_staged_table_of_a_load_that_is_over_goes_at_once(pipe, warehouse18, state):
    """Whatever ended it, nobody goes on from there."""
    manifest = in_state(pipe, state)
    done = cleaned(warehouse18)
    assert names(done.dropped) == [manifest.staging.name]
    assert done.dropped[0].load_ids == (manifest.load_id,)
    assert state in done.dropped[0].why
    assert done.bytes > 0
    assert pipe.left_in_staging() == set()


@pytest.mark.parametrize("state", ["rejected", "failed"])
def test_what_people_look_at_stays_for_a_while(pipe, warehouse18, state):
    """A rejected batch is inspected, a failed one gone on from: for as long as told."""
    manifest = in_state(pipe, state)
    assert cleaned(warehouse18).dropped == ()
    aged(pipe, manifest.load_id, 6)
    assert cleaned(warehouse18).dropped == ()
    assert names(cleaned(warehouse18, keep_failed=timedelta(days=5)).dropped) == [
        manifest.staging.name
    ]


@pytest.mark.parametrize("state", ["started", "staged", "validated"])
def test_a_load_that_is_not_finished_keeps_its_table(pipe, warehouse18, state):
    """A retry goes on from there; one that nobody has come back to for long goes."""
    manifest = in_state(pipe, state)
    aged(pipe, manifest.load_id, 29)
    nothing = cleaned(warehouse18, keep_failed=timedelta(0), keep_versions=0)
    assert (nothing.dropped, nothing.busy, nothing.unregistered) == ((), (), ())
    assert pipe.left_in_staging() == {manifest.staging.name}
    aged(pipe, manifest.load_id, 2)
    (gone,) = cleaned(warehouse18).dropped
    assert gone.table == manifest.staging
    assert gone.why == f"staged by a load that lies still, {state}, since more than 30 days"


def test_however_old_one_is_that_is_at_work(pipe, warehouse18):
    manifest = in_state(pipe, "started")
    aged(pipe, manifest.load_id, 400)
    with warehouse18.connect() as connection:
        connection.execute(
            "INSERT INTO etl.sessions (load_id, side, pid, backend_start) SELECT %s, 'target', pid, backend_start"
            " FROM pg_stat_activity WHERE pid = pg_backend_pid()",
            (manifest.load_id,),
        )
        connection.commit()
        assert cleaned(warehouse18).dropped == ()
    assert names(cleaned(warehouse18).dropped) == [manifest.staging.name]


def test_whoever_comes_back_to_one_that_is_gone_is_told_what_to_do(pipe, warehouse18):
    manifest = pipe.staged(JANUARY, FEBRUARY)
    aged(pipe, manifest.load_id, 31)
    assert names(cleaned(warehouse18).dropped) == [manifest.staging.name]
    with pytest.raises(ContractError, match=r"is gone\nWhat to do: clear extract and downstream"):
        pipe.publish(manifest)


def test_fills_go_with_the_table_they_were_filled_from(source18, warehouse18):
    """A window of several partitions has a table for each; a crash before tidying leaves them all."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, MARCH, 60)
    manifest = pipe.staged(JANUARY, MARCH)
    for number in range(2):
        warehouse18.run(f"CREATE TABLE etl_staging.{manifest.staging.name}_p{number} ()")
    assert cleaned(warehouse18).dropped == ()
    warehouse18.run("UPDATE etl.loads SET state = 'abandoned'")
    assert len(cleaned(warehouse18).dropped) == 3
    assert pipe.left_in_staging() == set()


def test_unregistered_tables_are_named_and_stay(pipe, warehouse18):
    """Also those that look like ours."""
    manifest = in_state(pipe, "abandoned")
    strangers = {"notes", f"{manifest.staging.name}_px", f"{manifest.staging.name}0"}
    for name in strangers:
        warehouse18.run(f"CREATE TABLE etl_staging.{name} ()")
    log = RecordedEvents()
    done = cleaned(warehouse18, log=log)
    assert names(done.dropped) == [manifest.staging.name]
    assert {table.name for table in done.unregistered} == strangers
    assert pipe.left_in_staging() == strangers
    assert "tables that no load registered" in log.names()


def test_an_attached_partition_is_never_dropped(pipe, warehouse18):
    """Whatever the ledger says about its name, and even where it lives in the staging schema."""
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run(
        "ALTER TABLE a.t_2013_01 SET SCHEMA etl_staging;"
        "UPDATE etl.loads SET staging = 'etl_staging.t_2013_01', state = 'abandoned';"
        "UPDATE etl.load_partitions SET previous = 'etl_staging.t_2013_01'"
    )
    assert cleaned(warehouse18, keep_versions=0).dropped == ()
    assert len(pipe.rows()) == 32


def test_a_table_elsewhere_is_never_dropped(pipe, warehouse18):
    """Users publish tables of their own, and the ledger then names them."""
    in_state(pipe, "abandoned")
    warehouse18.run("CREATE TABLE a.mine ()")
    warehouse18.run("UPDATE etl.loads SET staging = 'a.mine'")
    assert cleaned(warehouse18).dropped == ()
    assert warehouse18.value("SELECT to_regclass('a.mine') IS NOT NULL")


def test_a_table_that_two_loads_name_needs_the_word_of_both(pipe, warehouse18):
    """One of them may still be at work on it."""
    over = in_state(pipe, "abandoned")
    other = pipe.extract(FEBRUARY, MARCH)
    warehouse18.run(
        "UPDATE etl.loads SET staging = %s WHERE load_id = %s",
        (str(over.staging), other.load_id),
    )
    assert cleaned(warehouse18).dropped == ()
    assert over.staging.name in pipe.left_in_staging()


class TestVersions:
    @pytest.fixture
    def previous(self, pipe, source18):
        """Three replaced versions of January, newest first, with their loads."""
        pipe.load(JANUARY, FEBRUARY)
        kept = []
        for _ in range(3):
            source18.run("UPDATE t SET v = v || '.'")
            load = pipe.load(JANUARY, FEBRUARY, options={"keep_versions": 9})
            kept.insert(0, (load.partitions[0].previous.removeprefix("etl_staging."), load.load_id))
        return kept

    @pytest.mark.parametrize(("keep", "left"), [(0, 0), (1, 1), (2, 2), (9, 3)])
    def test_the_newest_stay(self, pipe, warehouse18, previous, keep, left):
        done = cleaned(warehouse18, keep_versions=keep)
        assert pipe.left_in_staging() == {name for name, _ in previous[:left]}
        assert set(names(done.dropped)) == {name for name, _ in previous[left:]}
        assert pipe.rows()

    def test_but_not_for_ever(self, pipe, warehouse18, previous):
        aged(pipe, previous[0][1], 8)
        aged(pipe, previous[1][1], 9)
        aged(pipe, previous[2][1], 10)
        assert names(cleaned(warehouse18, keep_versions=9, keep_previous=timedelta(days=9, hours=12)).dropped) == [
            previous[2][0]
        ]  # fmt: skip
        assert len(cleaned(warehouse18, keep_versions=9).dropped) == 2

    def test_nor_without_limit(self, pipe, warehouse18, previous):
        """The newest fit first."""
        size = warehouse18.value(
            "SELECT pg_total_relation_size(%s::regclass)", (f"etl_staging.{previous[0][0]}",)
        )
        cleaned(warehouse18, keep_versions=9, keep_bytes=size)
        assert pipe.left_in_staging() == {previous[0][0]}

    def test_versions_that_are_gone_do_not_count(self, pipe, warehouse18, previous):
        warehouse18.run(f"DROP TABLE etl_staging.{previous[0][0]}")
        cleaned(warehouse18, keep_versions=1)
        assert pipe.left_in_staging() == {previous[1][0]}

    def test_unless_told_they_stay_as_their_publish_said(self, pipe, source18, previous):
        """The last one of the stream: what it is told counts from there on."""
        assert cleaned(pipe.warehouse).dropped == ()
        assert len(pipe.left_in_staging()) == 3
        aged(pipe, previous[2][1], 8)
        assert names(cleaned(pipe.warehouse).dropped) == [previous[2][0]]
        # Nothing was recorded by older releases.
        pipe.warehouse.run("UPDATE etl.loads SET options = options - 'keep_versions'")
        cleaned(pipe.warehouse)
        assert pipe.left_in_staging() == {previous[0][0]}

    def test_the_newest_fit_first_however_small_the_others_are(self, pipe, source18, warehouse18):
        options = {"keep_versions": 9}
        pipe.load(JANUARY, FEBRUARY, options=options)
        source18.run(
            "UPDATE t SET v = (SELECT string_agg(md5(i::text || id), '') FROM generate_series(1, 500) AS i)"
        )
        pipe.load(JANUARY, FEBRUARY, options=options)
        source18.run("UPDATE t SET v = 'small'")
        pipe.load(JANUARY, FEBRUARY, options=options)
        sizes = {
            name: warehouse18.value(
                "SELECT pg_total_relation_size(%s::regclass)", (f"etl_staging.{name}",)
            )
            for name in pipe.left_in_staging()
        }
        small, large = sorted(sizes.values())
        assert small * 2 < large
        cleaned(warehouse18, keep_bytes=large - 1)
        assert pipe.left_in_staging() == set()

    def test_a_reader_of_a_version_is_not_disturbed(self, pipe, warehouse18, previous):
        """What is in use stays and is said; the next time it goes."""
        with reader(warehouse18, f"SELECT count(*) FROM etl_staging.{previous[2][0]}"):
            done = cleaned(warehouse18, keep_versions=1)
        assert names(done.dropped) == [previous[1][0]]
        assert [(item.table.name, item.stays) for item in done.busy] == [
            (previous[2][0], "it is in use")
        ]
        assert names(cleaned(warehouse18, keep_versions=1).dropped) == [previous[2][0]]

    def test_whoever_builds_on_a_version_keeps_it(self, pipe, warehouse18, previous):
        """No cascade."""
        warehouse18.run(f"CREATE VIEW a.old AS SELECT * FROM etl_staging.{previous[2][0]}")
        (stays,) = cleaned(warehouse18, keep_versions=1).busy
        assert "depends on it" in stays.stays

    def test_looking_changes_nothing(self, pipe, warehouse18, previous):
        before = pipe.left_in_staging()
        done = cleaned(warehouse18, keep_versions=1, dry_run=True)
        assert names(done.dropped) == sorted(name for name, _ in previous[1:])
        assert done.as_json()["dry_run"] is True
        assert pipe.left_in_staging() == before

    def test_two_at_once(self, pipe, warehouse18, previous):
        """Each table is dropped once, and neither fails."""
        with (
            in_background(lambda: cleaned(warehouse18, keep_versions=1)) as one,
            in_background(lambda: cleaned(warehouse18, keep_versions=1)) as two,
        ):
            pass
        dropped = names(one.result().dropped) + names(two.result().dropped)
        again = names(cleaned(warehouse18, keep_versions=1).dropped)
        assert sorted(dropped + again) == sorted(name for name, _ in previous[1:])
        assert pipe.left_in_staging() == {previous[0][0]}

    def test_a_stop_ends_it_between_two_tables(self, pipe, warehouse18, previous):
        stop = threading.Event()
        with pytest.raises(Stopped, match="1 tables are gone"):
            cleaned(warehouse18, keep_versions=1, stop=stop, log=lambda event, **_: stop.set())
        assert len(pipe.left_in_staging()) == 2

    def test_a_role_that_does_not_own_them(self, pipe, warehouse18, previous):
        """Said, and no reason to fail."""
        warehouse18.run("ALTER SCHEMA etl_staging OWNER TO CURRENT_USER")
        role = f"janitor_{short_id(str(uuid7()))}"
        warehouse18.run(
            f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA etl, etl_staging TO {role};"
            f"GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA etl TO {role}"
        )
        try:
            with connect(warehouse18.endpoint(user=role, password="x")) as connection:
                done = clean(
                    connection,
                    CleanOptions(keep_versions=1),
                    stop=threading.Event(),
                    log=RecordedEvents(),
                )
        finally:
            warehouse18.run(f"DROP OWNED BY {role}; DROP ROLE {role}")
        assert done.dropped == ()
        assert len(done.busy) == 2
        assert all("does not own" in item.stays for item in done.busy)

    def test_a_role_that_may_not_write_the_ledger(self, pipe, warehouse18, previous):
        """It owns the tables: what it lacks is said, and what would help."""
        grants = (
            "GRANT USAGE, CREATE ON SCHEMA etl_staging TO {role}; GRANT USAGE ON SCHEMA etl TO {role};"
            "GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA etl TO {role};"
            "REVOKE UPDATE ON etl.retired_partitions FROM {role}"
        )
        with login(warehouse18, grants) as role:
            for name, _ in previous:
                warehouse18.run(f"ALTER TABLE etl_staging.{name} OWNER TO {role['user']}")
            with connect(warehouse18.endpoint(**role)) as connection:
                done = clean(
                    connection,
                    CleanOptions(keep_versions=1),
                    stop=threading.Event(),
                    log=RecordedEvents(),
                )
            for name, _ in previous:
                warehouse18.run(f"ALTER TABLE etl_staging.{name} OWNER TO CURRENT_USER")
        assert done.dropped == ()
        assert len(done.busy) == 2
        for item in done.busy:
            assert "permission denied for table retired_partitions" in item.stays
            assert (
                f"GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA etl TO {role['user']}" in item.stays
            )


class TestAfterAPublish:
    """Where no janitor runs, a publish into the table keeps to the limits that it was told."""

    def versions(self, pipe, source18, *windows, **options):
        """Load windows once more, changed; the versions that this replaces."""
        source18.run("UPDATE t SET v = v || '.'")
        return [
            pipe.load(low, high, options={"keep_versions": 9} | options)
            .partitions[0]
            .previous.removeprefix("etl_staging.")
            for low, high in windows
        ]

    @pytest.fixture
    def both(self, pipe):
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        return (JANUARY, FEBRUARY), (FEBRUARY, MARCH)

    def test_the_newest_of_each_partition_stay(self, pipe, source18, both):
        first, _ = both
        for _ in range(3):
            (last,) = self.versions(pipe, source18, first, keep_versions=1)
        assert pipe.left_in_staging() == {last}
        self.versions(pipe, source18, first, keep_versions=0)
        assert pipe.left_in_staging() == set()

    def test_those_of_other_partitions_go_by_their_age(self, pipe, source18, both):
        first, second = both
        (old,) = self.versions(pipe, source18, first)
        pipe.warehouse.run(
            "UPDATE etl.load_partitions SET published_at = published_at - interval '8 days'"
        )
        (new,) = self.versions(pipe, source18, second, keep_previous=timedelta(days=9))
        assert pipe.left_in_staging() == {old, new}
        (newer,) = self.versions(pipe, source18, second, keep_versions=1)
        assert pipe.left_in_staging() == {newer}

    def test_all_of_a_table_fit_into_the_bytes(self, pipe, source18, warehouse18, both):
        first, second = both
        (old,) = self.versions(pipe, source18, first)
        size = warehouse18.value(
            "SELECT pg_total_relation_size(%s::regclass)", (f"etl_staging.{old}",)
        )
        (new,) = self.versions(pipe, source18, second, keep_bytes=size)
        assert pipe.left_in_staging() == {new}
        self.versions(pipe, source18, second, keep_bytes=0)
        assert pipe.left_in_staging() == set()

    def test_those_of_another_stream_go_by_what_that_was_told(self, pipe, source18, both):
        """Two streams load partitions of one table, and only one of them keeps many versions for long."""
        first, second = both[0], (MARCH, APRIL)
        fill(source18, *second, 5, first=900)
        kept = [
            *self.versions(
                pipe, source18, first, keep_versions=5, keep_previous=timedelta(days=90)
            ),
            *self.versions(
                pipe, source18, first, keep_versions=5, keep_previous=timedelta(days=90)
            ),
        ]
        pipe.warehouse.run(
            "UPDATE etl.load_partitions SET published_at = published_at - interval '60 days'"
        )
        other = replace(pipe, stream="other", store=MemoryWatermarkStore())
        other.load(*second)
        for number in range(2):
            (last,) = self.versions(other, source18, second, keep_versions=1, keep_bytes=1 << 20)
            assert pipe.left_in_staging() == {*kept, last}, number
        assert cleaned(pipe.warehouse).dropped == ()
        self.versions(other, source18, second, keep_bytes=0)
        assert pipe.left_in_staging() == {*kept}
        (newest,) = self.versions(pipe, source18, first, keep_versions=1)
        assert pipe.left_in_staging() == {newest}

    def test_those_of_another_table_are_not_its_business(self, pipe, source18, warehouse18, both):
        (mine,) = self.versions(pipe, source18, both[0])
        warehouse18.run("CREATE TABLE a.u (LIKE a.t INCLUDING ALL) PARTITION BY RANGE (ts)")
        other = replace(pipe, stream="u", target=TableName("a", "u"), store=MemoryWatermarkStore())
        for _ in range(2):
            other.load(JANUARY, FEBRUARY, options={"keep_versions": 0})
        assert pipe.left_in_staging() == {mine}

    def test_a_reader_of_a_version_is_not_waited_for(self, pipe, source18, both):
        first, second = both
        (old,) = self.versions(pipe, source18, first)
        with reader(pipe.warehouse, f"SELECT count(*) FROM etl_staging.{old}"):
            self.versions(pipe, source18, second, keep_versions=0)
            assert pipe.left_in_staging() == {old}
        self.versions(pipe, source18, second, keep_versions=0)
        assert pipe.left_in_staging() == set()

    @pytest.mark.parametrize("options", [{"keep_previous": timedelta(-1)}, {"keep_bytes": -1}])
    def test_what_cannot_be_meant_is_refused(self, options):
        with pytest.raises(ConfigurationError):
            PublishOptions(**options)


def test_beside_a_load_that_is_staging_slices(source18, warehouse18):
    """Cleaned again and again while slices arrive: nothing of the load is touched before it is published."""
    pipe = simple(source18, warehouse18, options={"slice_rows": 2_000})
    fill(source18, JANUARY, FEBRUARY, 20_000)
    source18.run("CREATE INDEX ON t (ts)")
    source18.run("VACUUM ANALYZE t")
    with in_background(lambda: pipe.load(JANUARY, FEBRUARY)) as loading:
        wait_until(lambda: "slice staged" in pipe.log.names(), "the first slice")
        while not loading.done():
            done = cleaned(warehouse18, keep_failed=timedelta(0), keep_versions=0)
            assert [item.why for item in done.dropped if "published" not in item.why] == []
    loading.result()
    assert pipe.rows() == pipe.source_rows()


def test_a_load_that_is_taken_up_between_looking_and_dropping(pipe, warehouse18):
    """The loads are locked and looked at again: a failed one that is retried keeps its slices."""
    manifest = in_state(pipe, "failed")
    with (
        warehouse18.connect() as retry,
        in_background(lambda: cleaned(warehouse18, keep_failed=timedelta(0))) as cleaning,
        retry.transaction(),
    ):
        retry.execute(
            "UPDATE etl.loads SET state = 'started' WHERE load_id = %s", (manifest.load_id,)
        )
        wait_until(cleaning.done, "the janitor gives way")
    assert cleaning.result().dropped == ()
    assert pipe.left_in_staging() == {manifest.staging.name}


def test_without_a_ledger(warehouse18):
    with pytest.raises(StateError, match="no ledger"):
        cleaned(warehouse18)


def test_on_every_server(source, warehouse):
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 30)
    pipe.load(JANUARY, FEBRUARY)
    kept = pipe.load(JANUARY, FEBRUARY).partitions[0].previous
    over = in_state(pipe, "abandoned")
    done = cleaned(warehouse)
    assert names(done.dropped) == [over.staging.name]
    assert pipe.left_in_staging() == {kept.removeprefix("etl_staging.")}


@pytest.mark.parametrize(
    "options",
    [{"keep_failed": timedelta(-1)}, {"keep_unfinished": timedelta(-1)}, {"keep_previous": timedelta(-1)}, {"keep_versions": -1}, {"keep_bytes": -1}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(options):
    with pytest.raises(ConfigurationError):
        CleanOptions(**options)
