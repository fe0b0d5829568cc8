"""What others do to the target between staging and publication: noticed, and nothing is lost by it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_etl_provider.core.errors import (
    CatalogError,
    ContractError,
    DataError,
    LockBudgetExceeded,
    Superseded,
)
from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.postgres import swap_merge
from tests.builders import (
    FEBRUARY,
    JANUARY,
    MARCH,
    Pipeline,
    fill,
    group_and_member,
    reader,
    simple,
)
from tests.integration.postgres.test_swap_merge import Interrupted, day, entities, put

DELETE_INSERT, SWAP, SWAP_MERGE = Strategy.DELETE_INSERT, Strategy.SWAP, Strategy.SWAP_MERGE


class When:
    """A stop that is never set; the first time it is asked for, it does something."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def is_set(self) -> bool:
        work, self._work = self._work, None
        if work is not None:
            work()
        return False


def two_months(source, warehouse, **changes: Any) -> Pipeline:
    pipe = simple(source, warehouse, **changes)
    fill(source, JANUARY, MARCH, 59)
    pipe.load(JANUARY, FEBRUARY)
    pipe.load(FEBRUARY, MARCH)
    source.run("UPDATE t SET v = 'newer'")
    return pipe


RECUT = """
    CREATE TABLE keep AS SELECT * FROM a.t; DROP TABLE a.t_2013_01, a.t_2013_02;
    CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-03-01Z');
    INSERT INTO a.t SELECT * FROM keep; DROP TABLE keep
"""


DROPPED, DETACHED = "DROP TABLE a.t_2013_01", "ALTER TABLE a.t DETACH PARTITION a.t_2013_01"


class TestPartitions:
    def test_one_that_is_cut_differently_by_now_is_not_replaced(self, source18, warehouse18):
        """Its name says January, its bounds say two months: a swap would lose February."""
        pipe = two_months(source18, warehouse18)
        manifest = pipe.staged(JANUARY, FEBRUARY)
        warehouse18.run(RECUT)
        before = pipe.picture()
        with pytest.raises(CatalogError, match="cut differently"):
            pipe.publish(manifest)
        assert pipe.picture() == before
        assert pipe.state(manifest.load_id) == "validated"
        assert pipe.publish(manifest, strategy=DELETE_INSERT).rows_inserted == 31
        assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'newer'") == 31
        assert warehouse18.value("SELECT count(*) FROM a.t") == 59

    def test_one_that_is_cut_differently_while_the_new_one_is_made(self, source18, warehouse18):
        pipe = two_months(source18, warehouse18)
        manifest = pipe.staged(JANUARY, FEBRUARY)
        with pytest.raises(CatalogError, match="cut differently"):
            pipe.publish(manifest, stop=When(lambda: warehouse18.run(RECUT)))
        assert warehouse18.value("SELECT count(*) FROM a.t") == 59

    @pytest.mark.parametrize("during", [False, True])
    def test_one_that_was_renamed_is_still_the_one(self, source18, warehouse18, during):
        """The bound says which it is; the new one bears the new name."""
        pipe = two_months(source18, warehouse18)
        manifest = pipe.staged(JANUARY, FEBRUARY)

        def rename() -> None:
            warehouse18.run("ALTER TABLE a.t_2013_01 RENAME TO january")

        if not during:
            rename()
        done = pipe.publish(manifest, stop=When(rename if during else lambda: None))
        assert [part.name for part in done.partitions] == ["a.january"]
        assert warehouse18.value("SELECT count(*) FROM a.january WHERE v = 'newer'") == 31

    @pytest.mark.parametrize(
        ("strategy", "during", "how"),
        [
            (SWAP, False, DROPPED),
            (SWAP, True, DROPPED),
            (SWAP, True, DETACHED),
            (SWAP_MERGE, True, DROPPED),
            (SWAP_MERGE, True, DETACHED),
            (DELETE_INSERT, False, DETACHED),
        ],
    )
    def test_one_that_is_gone_is_made_anew(self, source18, warehouse18, strategy, during, how):
        """Somebody dropped it: what was read stands there afterwards, and a try that it tripped is transient."""
        pipe = two_months(source18, warehouse18)
        manifest = pipe.staged(JANUARY, FEBRUARY)
        if not during:
            warehouse18.run(how)
        stop = When((lambda: warehouse18.run(how)) if during else (lambda: None))
        try:
            pipe.publish(manifest, stop=stop, strategy=strategy)
        except Superseded:
            assert pipe.state(manifest.load_id) == "validated"
            warehouse18.run("DROP TABLE IF EXISTS a.t_2013_01")
            pipe.publish(manifest, strategy=strategy)
        except (CatalogError, DataError) as error:
            # Detached, it still bears the name that the new one is to have; or rows have lost their place.
            assert "a.t" in str(error)  # noqa: PT017
            assert how.startswith("ALTER")
            warehouse18.run("DROP TABLE a.t_2013_01")
            pipe.publish(manifest, strategy=strategy)
        assert warehouse18.value("SELECT count(*) FROM a.t_2013_01 WHERE v = 'newer'") == 31


class TestTarget:
    @pytest.mark.parametrize(
        ("strategy", "during"), [(SWAP, True), (SWAP_MERGE, True), (DELETE_INSERT, False)]
    )
    def test_one_that_was_renamed_is_named(self, source18, warehouse18, strategy, during):
        """The error says what there is instead; nothing is changed, and under its old name it is published."""
        pipe = two_months(source18, warehouse18)
        manifest = pipe.staged(JANUARY, FEBRUARY)

        def rename() -> None:
            warehouse18.run("ALTER TABLE a.t RENAME TO u")

        if not during:
            rename()
        with pytest.raises(CatalogError, match=r"has no table a\.t"):
            pipe.publish(manifest, strategy=strategy, stop=When(rename if during else lambda: None))
        assert pipe.state(manifest.load_id) == "validated"
        assert warehouse18.value("SELECT count(*) FROM a.u WHERE v = 'newer'") == 0
        warehouse18.run("ALTER TABLE a.u RENAME TO t")
        pipe.publish(manifest, strategy=strategy)
        assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'newer'") == 31


def batch_for(strategy: Strategy, source, warehouse) -> tuple[Pipeline, Any]:
    """A target with rows, and a batch to be published by *strategy*."""
    if strategy is Strategy.MERGE:
        pipe = entities(source, warehouse)
        put(source, *[(n, day(n), day(1), "first") for n in range(1, 20)])
        pipe.load()
        source.run("UPDATE t SET v = 'newer', changed = changed + interval '1 h' WHERE id > 3")
        return pipe, pipe.staged()
    pipe = two_months(source, warehouse)
    return pipe, pipe.staged(*((JANUARY, FEBRUARY) if strategy is SWAP else (day(3), day(20))))


STRATEGIES = [SWAP, SWAP_MERGE, DELETE_INSERT, Strategy.MERGE]


class TestColumns:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_what_no_longer_fits_is_refused_with_the_remedy(self, source18, warehouse18, strategy):
        """A column dropped, renamed or of another type: nothing changes; staged anew, it is published or explained."""
        pipe, manifest = batch_for(strategy, source18, warehouse18)
        for change in ("RENAME v TO w", "DROP w", "ADD v int"):
            warehouse18.run(f"ALTER TABLE a.t {change}")
            before = pipe.picture()
            with pytest.raises(ContractError, match="clear extract and downstream") as caught:
                pipe.publish(manifest, strategy=strategy)
            assert "v" in caught.value.what
            assert pipe.picture() == before
            assert pipe.state(manifest.load_id) == "validated"

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_a_column_that_was_added_keeps_its_values(self, source18, warehouse18, strategy):
        """Of rows that the batch does not replace; those that it brings have what the column defaults to."""
        pipe, manifest = batch_for(strategy, source18, warehouse18)
        warehouse18.run("ALTER TABLE a.t ADD note text; UPDATE a.t SET note = 'kept'")
        pipe.publish(manifest, strategy=strategy)
        if strategy is SWAP:
            assert warehouse18.run("SELECT DISTINCT note FROM a.t_2013_01") == [(None,)]
            return
        kept = warehouse18.value("SELECT count(*) FROM a.t WHERE note = 'kept'")
        assert kept == warehouse18.value("SELECT count(*) FROM a.t") - (
            0 if strategy is Strategy.MERGE else 17
        )

    def test_a_column_that_is_added_while_another_load_is_waited_for(
        self, source18, warehouse18, monkeypatch
    ):
        """The columns are those of the moment when rows are read, not of the start."""
        pipe, manifest = batch_for(SWAP_MERGE, source18, warehouse18)
        claim_leaves = swap_merge.SwapMerge._claim_leaves
        altered = Interrupted(
            lambda: warehouse18.run("ALTER TABLE a.t ADD note text; UPDATE a.t SET note = 'kept'")
        )

        def claimed(*args: Any) -> None:
            altered()
            claim_leaves(*args)

        monkeypatch.setattr(swap_merge.SwapMerge, "_claim_leaves", claimed)
        pipe.publish(manifest, strategy=SWAP_MERGE)
        assert warehouse18.value("SELECT count(*) FROM a.t WHERE note = 'kept'") == 59 - 17

    @pytest.mark.parametrize(
        "change",
        [
            "ADD note text DEFAULT 'kept'",
            "ALTER v SET NOT NULL",
            "ADD CONSTRAINT filled CHECK (v <> '')",
            "ALTER v TYPE varchar(40)",
        ],
    )
    def test_partitions_that_were_built_before_are_built_anew(
        self, source18, warehouse18, monkeypatch, change
    ):
        """Between the build and the exchange the table was altered."""
        pipe, manifest = batch_for(SWAP_MERGE, source18, warehouse18)
        altered = Interrupted(lambda: warehouse18.run(f"ALTER TABLE a.t {change}"))
        monkeypatch.setattr(swap_merge, "wait_out", altered)
        pipe.publish(manifest, strategy=SWAP_MERGE)
        assert altered.done
        assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'newer'") == 17
        assert warehouse18.value("SELECT count(*) FROM a.t") == 59


class TestIndexes:
    @pytest.mark.parametrize("strategy", [SWAP, SWAP_MERGE])
    def test_one_that_was_added_and_one_that_was_dropped(self, source18, warehouse18, strategy):
        """A try had made its tables ready; the next one gives them what the parent has by now."""
        pipe, manifest = batch_for(strategy, source18, warehouse18)
        warehouse18.run("CREATE INDEX gone ON a.t (v, id)")
        with reader(warehouse18, "SELECT count(*) FROM a.t"), pytest.raises(LockBudgetExceeded):
            pipe.publish(manifest, strategy=strategy, lock_deadline=timedelta(seconds=0.4))
        warehouse18.run("DROP INDEX a.gone; CREATE INDEX an_early_one ON a.t (v)")
        pipe.publish(manifest, strategy=strategy)
        assert warehouse18.run(
            "SELECT i.indrelid::regclass::text, count(*), count(h.inhrelid) FROM pg_index AS i"
            " LEFT JOIN pg_inherits AS h ON h.inhrelid = i.indexrelid"
            " WHERE i.indrelid IN (SELECT relid FROM pg_partition_tree('a.t') WHERE isleaf) GROUP BY 1 ORDER BY 1"
        ) == [("a.t_2013_01", 2, 2), ("a.t_2013_02", 2, 2)]

    def test_one_that_is_added_at_the_last_moment(self, source18, warehouse18):
        """Between two attempts: the try is transient, and the next one has it."""
        pipe, manifest = batch_for(SWAP, source18, warehouse18)
        with pytest.raises(Superseded, match=r"does not exist \(42P01\): another try"):
            pipe.publish(
                manifest, stop=When(lambda: warehouse18.run("CREATE INDEX an_early_one ON a.t (v)"))
            )
        pipe.publish(manifest)
        assert pipe.state(manifest.load_id) == "published"


class TestRights:
    """What the role may do is taken away in the middle: said with what would help, and nothing is changed."""

    @pytest.fixture
    def roles(self, warehouse18):
        """The owner of the target, and a member of it who loads."""
        with group_and_member(warehouse18) as roles:
            yield roles

    @pytest.mark.parametrize("during", [False, True])
    @pytest.mark.parametrize("strategy", [SWAP, SWAP_MERGE])
    def test_of_the_owner(self, source18, warehouse18, roles, strategy, during):
        group, role = roles
        pipe = simple(source18, warehouse18)
        fill(source18, JANUARY, MARCH, 59)
        warehouse18.run(f"GRANT ALL ON SCHEMA a TO {group}; ALTER TABLE a.t OWNER TO {group}")
        pipe.warehouse_role = role
        pipe.load(JANUARY, FEBRUARY)
        source18.run("UPDATE t SET v = 'newer'")
        manifest = pipe.staged(*((JANUARY, FEBRUARY) if strategy is SWAP else (day(3), day(20))))

        def withdraw() -> None:
            warehouse18.run(f"REVOKE {group} FROM {role['user']}")

        if not during:
            withdraw()
        with pytest.raises(CatalogError) as caught:
            pipe.publish(
                manifest, strategy=strategy, stop=When(withdraw if during else lambda: None)
            )
        assert caught.value.remedy
        assert pipe.state(manifest.load_id) == "validated"
        assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'newer'") == 0
        warehouse18.run(f"GRANT {group} TO {role['user']}")
        pipe.publish(manifest, strategy=strategy)
        pipe.warehouse_role = {}
        assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'newer'") in (31, 17)

    @pytest.mark.parametrize(
        ("strategy", "right"), [(DELETE_INSERT, "DELETE"), (Strategy.MERGE, "UPDATE")]
    )
    def test_to_write(self, source18, warehouse18, roles, strategy, right):
        _, role = roles
        pipe, manifest = batch_for(strategy, source18, warehouse18)
        warehouse18.run(
            f"GRANT USAGE ON SCHEMA a, etl, etl_staging TO {role['user']};"
            f"GRANT ALL ON ALL TABLES IN SCHEMA a, etl, etl_staging TO {role['user']};"
            f"REVOKE {right} ON a.t FROM {role['user']}"
        )
        pipe.warehouse_role = role
        before = pipe.picture()
        with pytest.raises(CatalogError, match=rf"lacks {right} on a\.t") as caught:
            pipe.publish(manifest, strategy=strategy)
        assert f"GRANT {right} ON a.t" in (caught.value.remedy or "")
        assert pipe.picture() == before
