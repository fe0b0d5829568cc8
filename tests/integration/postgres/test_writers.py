"""Writers that are not ours at work on the target: nobody's rows are lost, and nobody is waited for for ever."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_etl_provider.core.errors import LockBudgetExceeded
from airflow_etl_provider.core.load import Strategy
from tests.builders import FEBRUARY, JANUARY, fill, in_background, reader, simple, wait_until
from tests.integration.postgres.test_swap_merge import day, entities, put

SHORT = {"lock_budget": timedelta(milliseconds=100), "lock_deadline": timedelta(milliseconds=400)}


def batch(strategy: Strategy, source, warehouse) -> Any:
    """A target with rows 1 to 9 and a batch that changes all of them."""
    if strategy is Strategy.DELETE_INSERT:
        pipe = simple(source, warehouse)
        fill(source, JANUARY, day(10), 9)
        pipe.load(JANUARY, FEBRUARY)
        source.run("UPDATE t SET v = 'ours'")
        return pipe, pipe.staged(JANUARY, day(10))
    pipe = entities(source, warehouse)
    put(source, *[(n, day(n), day(1), "first") for n in range(1, 10)])
    pipe.load()
    source.run("UPDATE t SET v = 'ours', changed = changed + interval '1 h'")
    return pipe, pipe.staged()


def waiting(database) -> Any:
    return database.value(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'etl:test' AND wait_event_type = 'Lock'"
        " AND datname = current_database()"
    )


@pytest.mark.parametrize("strategy", [Strategy.MERGE, Strategy.DELETE_INSERT])
def test_one_who_holds_a_row_is_named_at_the_deadline(source18, warehouse18, strategy):
    """An idle transaction of somebody else does not hang the publish; the load stays validated."""
    pipe, manifest = batch(strategy, source18, warehouse18)
    before = pipe.picture()
    with reader(warehouse18, "UPDATE a.t SET v = v WHERE id = 3", "by hand") as session:
        with pytest.raises(LockBudgetExceeded) as caught:
            pipe.publish(manifest, strategy=strategy, **SHORT)
        for word in (f"pid {session.info.backend_pid}", "by hand", "idle in transaction"):
            assert word in str(caught.value)
        assert pipe.picture() == before
        assert pipe.state(manifest.load_id) == "validated"
        session.rollback()
    pipe.publish(manifest, strategy=strategy, **SHORT)
    assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'ours'") == 9


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.MERGE])
def test_one_who_holds_the_row_of_the_stream_is_named(source18, warehouse18, strategy):
    pipe, manifest = batch(
        Strategy.DELETE_INSERT if strategy is Strategy.SWAP else strategy, source18, warehouse18
    )
    with (
        reader(warehouse18, "SELECT FROM etl.streams FOR UPDATE", "by hand") as session,
        pytest.raises(LockBudgetExceeded, match=f"pid {session.info.backend_pid}"),
    ):
        pipe.publish(manifest, **SHORT)
    pipe.publish(manifest, **SHORT)


FOREIGN = {
    "insert": "INSERT INTO a.t (id, ts, {extra}v) VALUES (70, '2013-01-20Z', {value}'theirs')",
    "update": "UPDATE a.t SET v = 'theirs', ts = '2013-01-25Z' WHERE id = 3",
    "move": "UPDATE a.t SET ts = '2013-02-20Z', v = 'theirs' WHERE id = 3",
    "delete": "DELETE FROM a.t WHERE id = 3",
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("strategy", [Strategy.MERGE, Strategy.DELETE_INSERT])
def test_rows_that_others_write_in_the_middle(source18, warehouse18, strategy, what):
    """Written and not yet committed when the publish begins: it waits for what it needs, and loses nothing.

    What lies outside the window, or has another key, is there afterwards as its writer left it; a key of the
    batch is as the batch says, whatever happened to it meanwhile, and stands there once.
    """
    pipe, manifest = batch(strategy, source18, warehouse18)
    warehouse18.run(
        "CREATE TABLE IF NOT EXISTS a.t_2013_02 PARTITION OF a.t FOR VALUES FROM ('2013-02-01Z') TO ('2013-03-01Z')"
    )
    merges = strategy is Strategy.MERGE
    statement = FOREIGN[what].format(
        extra="changed, " if merges else "", value="'2013-01-01Z', " if merges else ""
    )
    with (
        reader(warehouse18, statement, "theirs") as writer,
        in_background(lambda: pipe.publish(manifest, strategy=strategy)) as publishing,
    ):
        wait_until(lambda: publishing.done() or waiting(warehouse18), "the publish ends or waits")
        writer.commit()
    publishing.result()
    found = warehouse18.run("SELECT id, v FROM a.t ORDER BY 1, 2")
    ours = [(number, "ours") for number in range(1, 10)]
    if what == "insert":
        assert found == [*ours, (70, "theirs")]
    elif merges or what == "delete":
        assert found == ours
    else:
        # A row that left the window is theirs now; the window is what the source says.
        assert found == sorted([*ours, (3, "theirs")])
