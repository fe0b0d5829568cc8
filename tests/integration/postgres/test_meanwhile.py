"""What others do to the target between staging and publication: noticed, and nothing is lost by it."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_etl_provider.core.errors import CatalogError, DataError, Superseded
from airflow_etl_provider.core.load import Strategy
from tests.builders import FEBRUARY, JANUARY, MARCH, Pipeline, fill, simple

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


class TestPartitions:
    def test_one_that_is_cut_differently_by_now_is_not_replaced(self, source, warehouse):
        """Its name says January, its bounds say two months: a swap would lose February."""
        pipe = two_months(source, warehouse)
        manifest = pipe.staged(JANUARY, FEBRUARY)
        warehouse.run(RECUT)
        before = pipe.picture()
        with pytest.raises(CatalogError, match="cut differently"):
            pipe.publish(manifest)
        assert pipe.picture() == before
        assert pipe.state(manifest.load_id) == "validated"
        assert pipe.publish(manifest, strategy=DELETE_INSERT).rows_inserted == 31
        assert warehouse.value("SELECT count(*) FROM a.t WHERE v = 'newer'") == 31
        assert warehouse.value("SELECT count(*) FROM a.t") == 59

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
        ("strategy", "during"),
        [
            (SWAP, False),
            (SWAP, True),
            (SWAP_MERGE, False),
            (SWAP_MERGE, True),
            (DELETE_INSERT, False),
        ],
    )
    @pytest.mark.parametrize(
        "how", ["DROP TABLE a.t_2013_01", "ALTER TABLE a.t DETACH PARTITION a.t_2013_01"]
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
        ("strategy", "during"),
        [
            (SWAP, False),
            (SWAP, True),
            (SWAP_MERGE, False),
            (SWAP_MERGE, True),
            (DELETE_INSERT, False),
        ],
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
