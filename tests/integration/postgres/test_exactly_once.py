"""Exactly once: any try, any number of times, at once or one after the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from uuid6 import uuid7

from airflow_etl_provider.core.errors import ContractError, StateError, Superseded, TransientError
from airflow_etl_provider.core.window import Window
from airflow_etl_provider.postgres.ledger import LEDGER_VERSION
from tests.builders import (
    APRIL,
    FEBRUARY,
    JANUARY,
    MARCH,
    Pipeline,
    fill,
    in_background,
    reader,
    simple,
    wait_until,
)


class DuringPublish:
    """A stop flag that does something once, when publish first looks at it (before its attempts)."""

    def __init__(self, work):
        self._work = work

    def is_set(self):
        work, self._work = self._work, None
        if work is not None:
            work()
        return False


def test_publishing_twice_changes_nothing(source, warehouse):
    """A retry after the commit says that it is done, and touches nothing."""
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 10)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    first = pipe.publish(manifest)
    before = pipe.picture()
    again = pipe.publish(manifest)
    assert (first.already, again.already) == (False, True)
    assert again.rows_inserted == first.rows_inserted == 10
    assert [p.name for p in again.partitions] == [p.name for p in first.partitions]
    assert pipe.picture() == before


def test_replacing_twice_changes_nothing(source18, warehouse18):
    """The same for ``replace``: counts are those of the first time."""
    pipe = _snapshot(source18, warehouse18)
    manifest = pipe.staged()
    first = pipe.publish(manifest)
    again = pipe.publish(manifest)
    assert (again.already, again.rows_inserted) == (True, first.rows_inserted)


def _snapshot(source, warehouse):
    source.run(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')"
    )
    warehouse.run("CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, v text)")
    from airflow_etl_provider.core.load import Kind

    return Pipeline(source, warehouse, kind=Kind.SNAPSHOTS, cursor=None, partition=None)


def _publish_at_once(pipe, manifests):
    """Publish all, started together; answers results and errors."""
    barrier = Barrier(len(manifests))

    def one(manifest):
        barrier.wait()
        try:
            return pipe.publish(manifest)
        except Exception as error:  # noqa: BLE001
            return error

    with ThreadPoolExecutor(len(manifests)) as pool:
        return list(pool.map(one, manifests))


def test_two_publishes_of_one_load_at_the_same_moment(source, warehouse):
    """A zombie and its successor: one publishes; the other finds that, or may be tried again."""
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 500)
    for _ in range(4):
        manifest = pipe.staged(JANUARY, FEBRUARY)
        outcomes = _publish_at_once(pipe, [manifest, manifest])
        bad = [
            o for o in outcomes if isinstance(o, Exception) and not isinstance(o, TransientError)
        ]
        assert bad == []
        assert pipe.publish(manifest).already
        assert pipe.rows() == pipe.source_rows()


def test_the_other_try_publishes_while_this_one_prepares(source18, warehouse18):
    """Between the first look and the locks another try may be done: that is success, not failure."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 10)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    done = pipe.publish(manifest, stop=DuringPublish(lambda: pipe.publish(manifest)))
    assert done.already
    assert pipe.rows() == pipe.source_rows()


def test_the_other_try_replaces_while_this_one_waits(source18, warehouse18):
    """The same for ``replace``: the second waits on the ledger's row and finds the load published."""
    pipe = _snapshot(source18, warehouse18)
    manifest = pipe.staged()
    outcomes = _publish_at_once(pipe, [manifest, manifest])
    assert sorted(o.already for o in outcomes) == [False, True]
    assert pipe.rows() == pipe.source_rows()


def test_an_older_load_does_not_replace_a_newer_one(source, warehouse):
    """A late batch of the same window is abandoned: readers keep what was read later."""
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 5)
    older = pipe.staged(JANUARY, FEBRUARY)
    source.run("UPDATE t SET v = 'newer'")
    newer = pipe.staged(JANUARY, FEBRUARY)
    pipe.publish(newer)
    late = pipe.publish(older)
    assert (late.changed, late.overtaken_by) == (False, newer.load_id)
    assert pipe.state(older.load_id) == "abandoned"
    assert warehouse.run("SELECT DISTINCT v FROM a.t") == [("newer",)]


def test_an_older_load_that_prepares_while_a_newer_one_publishes(source18, warehouse18):
    """Being overtaken is looked for under the stream's lock, not only at the start."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 5)
    older = pipe.staged(JANUARY, FEBRUARY)
    source18.run("UPDATE t SET v = 'newer'")
    newer = pipe.staged(JANUARY, FEBRUARY)
    late = pipe.publish(older, stop=DuringPublish(lambda: pipe.publish(newer)))
    assert warehouse18.run("SELECT DISTINCT v FROM a.t") == [("newer",)]
    assert (late.changed, late.overtaken_by) == (False, newer.load_id)
    assert pipe.state(older.load_id) == "abandoned"
    assert pipe.coverage()[0][2] == newer.load_id


def test_an_older_load_that_waits_for_locks_while_a_newer_one_publishes(source18, warehouse18):
    """The same between two attempts: the older batch must not win because it waited longer."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 5)
    pipe.load(JANUARY, FEBRUARY)
    older = pipe.staged(JANUARY, FEBRUARY)
    source18.run("UPDATE t SET v = 'newer'")
    newer = pipe.staged(JANUARY, FEBRUARY)
    with reader(warehouse18, "SELECT count(*) FROM a.t") as blocking:

        def log(event, **fields):
            if event == "waiting for locks":
                blocking.rollback()
                pipe.publish(newer)

        late = pipe.publish(older, log=log)
    assert warehouse18.run("SELECT DISTINCT v FROM a.t") == [("newer",)]
    assert (late.changed, late.overtaken_by) == (False, newer.load_id)


def test_an_older_full_load_does_not_replace_a_newer_one(source18, warehouse18):
    """The same for snapshots."""
    pipe = _snapshot(source18, warehouse18)
    older = pipe.staged()
    source18.run("UPDATE t SET v = 'newer'")
    newer = pipe.staged()
    pipe.publish(newer)
    assert pipe.publish(older).overtaken_by == newer.load_id
    assert warehouse18.run("SELECT DISTINCT v FROM a.t") == [("newer",)]


def test_older_and_newer_snapshots_at_the_same_moment(source18, warehouse18):
    """Whoever comes first, readers end with the newer one."""
    pipe = _snapshot(source18, warehouse18)
    pipe.load()
    for number in range(4):
        source18.run("UPDATE t SET v = %s", (f"older {number}",))
        older = pipe.staged()
        source18.run("UPDATE t SET v = %s", (f"newer {number}",))
        newer = pipe.staged()
        outcomes = _publish_at_once(pipe, [older, newer])
        assert not any(isinstance(o, Exception) for o in outcomes), outcomes
        assert warehouse18.run("SELECT DISTINCT v FROM a.t") == [(f"newer {number}",)]


def test_a_load_replaced_by_a_newer_one_of_its_own_run_is_refused(source18, warehouse18):
    """A cleared extract mints a new load; the old batch of that run may not be published."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 5)
    first = pipe.staged(JANUARY, FEBRUARY, run_id="r")
    pipe.staged(JANUARY, FEBRUARY, run_id="r")
    with pytest.raises(StateError, match="replaced by load"):
        pipe.publish(first)
    assert pipe.rows() == []
    assert pipe.state(first.load_id) == "abandoned"


def test_four_months_published_in_parallel(source, warehouse):
    """Publishes of one stream put themselves in order; nothing is lost, doubled or left behind."""
    pipe = simple(source, warehouse)
    bounds = [
        (JANUARY, FEBRUARY),
        (FEBRUARY, MARCH),
        (MARCH, APRIL),
        (APRIL, APRIL.replace(month=5)),
    ]
    for number, (low, high) in enumerate(bounds):
        fill(source, low, high, 200, first=number * 1000)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda bound: pipe.load(*bound), bounds))
    assert pipe.rows() == pipe.source_rows()
    assert pipe.position() == "2013-05-01 00:00:00+00"
    assert len(pipe.coverage()) == 4
    assert not any(d.already for d in done)
    assert pipe.left_in_staging() == set()
    stored = pipe.store.read("t")
    assert stored is not None
    assert stored.value == "2013-05-01 00:00:00+00"


def test_two_first_loads_create_the_ledger_at_once(source, warehouse):
    """The ledger is made once; both loads go on."""
    pipes = [simple(source, warehouse)]
    source.run("CREATE TABLE u (LIKE t INCLUDING ALL)")
    warehouse.run("CREATE TABLE a.u (LIKE a.t INCLUDING ALL) PARTITION BY RANGE (ts)")
    from airflow_etl_provider.core.names import TableName

    pipes.append(
        Pipeline(
            source,
            warehouse,
            stream="u",
            table=TableName("public", "u"),
            target=TableName("a", "u"),
        )
    )
    barrier = Barrier(4)

    def run(pipe):
        barrier.wait()
        return pipe.extract(JANUARY, FEBRUARY)

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(run, pipes * 2))
    assert len({manifest.load_id for manifest in done}) == 4
    assert warehouse.value(
        "SELECT array_agg(version ORDER BY version) FROM etl.schema_version"
    ) == list(range(1, LEDGER_VERSION + 1))


def test_a_retry_of_extract_returns_the_batch_that_stands(source18, warehouse18):
    """What an earlier try staged is not read again."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 5)
    load_id = str(uuid7())
    first = pipe.extract(JANUARY, FEBRUARY, load_id=load_id)
    source18.run("DELETE FROM t")
    again = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
    assert again == first
    assert pipe.left_in_staging() == {first.staging.name}


def test_a_retry_of_extract_whose_batch_is_gone_reads_again(source18, warehouse18):
    """A batch that somebody dropped is made anew: the retry converges."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 5)
    load_id = str(uuid7())
    first = pipe.extract(JANUARY, FEBRUARY, load_id=load_id)
    warehouse18.run(f"DROP TABLE {first.staging}")
    again = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
    pipe.publish(pipe.waive(again))
    assert pipe.rows() == pipe.source_rows()


def test_two_tries_of_one_extract_at_once(source18, warehouse18):
    """A zombie that still copies when its successor has staged keeps nothing."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 50_000)
    pipe.load(FEBRUARY, MARCH)
    load_id = str(uuid7())
    barrier = Barrier(2)

    def run(number):
        barrier.wait()
        try:
            return pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=number)
        except Exception as error:  # noqa: BLE001
            return error

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(run, (1, 2)))
    errors = [o for o in outcomes if isinstance(o, Exception)]
    assert all(isinstance(error, Superseded) for error in errors), errors
    batches = {o.staging.name for o in outcomes if not isinstance(o, Exception)}
    assert len(batches) == 1
    assert pipe.left_in_staging() == batches


def test_a_batch_changed_after_its_audit_is_not_published(source, warehouse):
    """Publish counts what it shows; what nobody audited is refused."""
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 10)
    for change in ("DELETE FROM {} WHERE id = 1", "INSERT INTO {} VALUES (99, '2013-01-02', 'x')"):
        manifest = pipe.staged(JANUARY, FEBRUARY)
        warehouse.run(change.format(manifest.staging))
        with pytest.raises(ContractError, match="were staged and audited"):
            pipe.publish(manifest)
        assert pipe.rows() == []
        assert pipe.coverage() == []


@pytest.mark.parametrize("strategy", ["swap", "replace"])
def test_a_batch_rewritten_between_counting_and_showing_is_not_published(
    source18, warehouse18, strategy
):
    """Counting and showing happen under one lock: a writer in between cannot slip in."""
    pipe = simple(source18, warehouse18) if strategy == "swap" else _snapshot(source18, warehouse18)
    bounds = (JANUARY, FEBRUARY) if strategy == "swap" else ()
    if strategy == "swap":
        fill(source18, JANUARY, FEBRUARY, 10)
        pipe.load(*bounds)
    manifest = pipe.staged(*bounds)
    with reader(warehouse18, "SELECT count(*) FROM a.t") as blocking:
        if strategy == "replace":
            warehouse18.run(f"DELETE FROM {manifest.staging} WHERE id = 1")

        def log(event, **fields):
            if event == "waiting for locks":
                # After the first attempt's count, before the second's locks.
                warehouse18.run(f"DELETE FROM {manifest.staging} WHERE id = 1")
                blocking.rollback()

        with pytest.raises(ContractError, match="were staged and audited"):
            pipe.publish(manifest, log=log)


def test_a_batch_that_is_gone_is_named(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    warehouse18.run(f"DROP TABLE {manifest.staging}")
    with pytest.raises(ContractError, match="is gone"):
        pipe.publish(manifest)


def test_an_unaudited_or_rejected_batch_is_not_published(source18, warehouse18):
    """Only the ledger's verdict counts, not what travels in XCom."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 3)
    manifest = pipe.extract(JANUARY, FEBRUARY)
    with pytest.raises(StateError, match="staged, not validated"):
        pipe.publish(manifest)
    warehouse18.run("UPDATE etl.loads SET state = 'rejected'")
    with pytest.raises(StateError, match="rejected, not validated"):
        pipe.publish(manifest)
    assert pipe.rows() == []


def test_a_stop_before_the_commit_changes_nothing(source18, warehouse18):
    """The flag is tested last thing before COMMIT: a stopped publish publishes nothing."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 3)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    before = pipe.picture()

    class AtTheEnd:
        looks = 0

        def is_set(self):
            self.looks += 1
            return self.looks > 1

    from airflow_etl_provider.core.errors import Stopped

    with pytest.raises(Stopped):
        pipe.publish(manifest, stop=AtTheEnd())
    assert pipe.picture() == before
    assert pipe.state(manifest.load_id) == "validated"
    assert pipe.publish(manifest).rows_inserted == 3


def test_a_second_publish_waits_for_the_first_to_commit(source18, warehouse18):
    """The stream's row orders publishes: one that holds it makes the others wait, not fail."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 3)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    with reader(warehouse18, "SELECT FROM etl.streams FOR UPDATE") as holding:
        with in_background(lambda: pipe.publish(manifest)) as publishing:
            wait_until(
                lambda: warehouse18.value(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    " AND datname = current_database()"
                ),
                "publish waits for the stream's row",
            )
            holding.rollback()
        assert publishing.result().rows_inserted == 3


def test_a_try_that_was_taken_over_does_not_fail_its_successor(source18, warehouse18):
    """Promise 2: the first try ends late, with an error, while the second one copies the same load."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 5)
    request = pipe.request(JANUARY, FEBRUARY, try_number=2)
    area = pipe.staging()
    area.bind(request)
    area.begin(request, Window("2013-01-01", "2013-02-01", "timestamp with time zone"))
    area.fail(request.load_id, "the server ended the connection", try_number=1)
    assert pipe.state(request.load_id) == "started"
    area.fail(request.load_id, "the server ended the connection", try_number=2)
    assert pipe.state(request.load_id) == "failed"
