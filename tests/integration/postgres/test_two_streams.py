"""Two streams that load into one table do not take each other's rows away."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import timedelta

import pytest

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.core.settle import SettleOptions
from airflow_etl_provider.postgres import ledger
from airflow_etl_provider.postgres.rewind import rewind
from airflow_etl_provider.testing import MemoryWatermarkStore
from tests.builders import (
    FEBRUARY,
    JANUARY,
    MARCH,
    SOURCE_TABLE,
    Pipeline,
    fill,
    simple,
)


def other(pipe: Pipeline, **changes) -> Pipeline:
    """A second stream into the table of the first."""
    return replace(pipe, **{"stream": "us", "store": MemoryWatermarkStore()} | changes)


def loaded(source, warehouse) -> Pipeline:
    """Stream ``eu`` has loaded January; the source then holds other rows, those of ``us``."""
    eu = simple(source, warehouse, stream="eu")
    fill(source, JANUARY, MARCH, 20)
    eu.load(JANUARY, FEBRUARY)
    source.run("UPDATE t SET id = id + 1000, v = 'us'")
    return eu


@pytest.mark.parametrize("strategy", ["auto", "swap", "swap_merge", "delete_insert"])
def test_a_window_that_another_stream_has_loaded(source18, warehouse18, strategy):
    eu = loaded(source18, warehouse18)
    before = eu.picture()
    with pytest.raises(
        ConfigurationError, match=r"stream 'us' .* rows of stream 'eu' out of a\.t"
    ) as e:
        other(eu).load(JANUARY, FEBRUARY, options={"strategy": Strategy(strategy)})
    assert "watermark reset eu" in (e.value.remedy or "")
    assert eu.picture() == before


def test_everything_replaced(source18, warehouse18):
    """A load of everything has no window that could be compared. The old name of a stream is reset."""
    source18.run(SOURCE_TABLE)
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint PRIMARY KEY, ts timestamptz, v text)"
    )
    eu = Pipeline(
        source18,
        warehouse18,
        stream="eu",
        kind=Kind.SNAPSHOTS,
        cursor=None,
        mode=WindowMode.FULL,
        partition=None,
    )
    fill(source18, JANUARY, FEBRUARY, 10)
    eu.load()
    with pytest.raises(ConfigurationError, match="rows of stream 'eu'"):
        other(eu).load()
    was_reset(warehouse18, "eu")
    assert other(eu).load().strategy is Strategy.REPLACE
    with pytest.raises(ConfigurationError, match="rows of stream 'us'"):
        eu.load()


def test_windows_that_do_not_touch(source18, warehouse18):
    eu = loaded(source18, warehouse18)
    other(eu).load(FEBRUARY, MARCH)
    assert warehouse18.value("SELECT count(*) FROM a.t") == 20


@pytest.mark.parametrize("strategy", [Strategy.MERGE, Strategy.SWAP_MERGE])
def test_entities_by_key_take_nothing_away(source18, warehouse18, strategy):
    eu = loaded(source18, warehouse18)
    there = warehouse18.value("SELECT count(*) FROM a.t")
    us = other(eu, kind=Kind.ENTITIES, keys=("id", "ts"), mode=WindowMode.FULL)
    us.load(options={"strategy": Strategy.MERGE})
    us.load(options={"strategy": strategy})
    assert warehouse18.value("SELECT count(*) FROM a.t") == there + 20


def test_windows_of_another_column_cannot_be_compared(source18, warehouse18):
    eu = loaded(source18, warehouse18)
    settle = SettleOptions(delay=timedelta(0))
    us = other(eu, cursor="id", partition=None, mode=WindowMode.WATERMARK, settle=settle)
    with pytest.raises(ConfigurationError, match="rows of stream 'eu'"):
        us.load(options={"strategy": Strategy.DELETE_INSERT})


def was_reset(warehouse, stream: str) -> None:
    with warehouse.connect() as connection:
        rewind(connection, stream, None, reason="renamed", actor="ada")


def test_a_stream_that_got_another_name(source18, warehouse18):
    """The old name is reset, which lets go of what it covered."""
    eu = simple(source18, warehouse18, stream="eu")
    fill(source18, JANUARY, FEBRUARY, 10)
    eu.load(JANUARY, FEBRUARY)
    was_reset(warehouse18, "eu")
    other(eu).load(JANUARY, FEBRUARY)
    assert eu.rows() == eu.source_rows()
    with pytest.raises(ConfigurationError, match="rows of stream 'us'"):
        eu.load(JANUARY, FEBRUARY)


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE, Strategy.DELETE_INSERT])
def test_the_first_loads_of_two_streams_at_the_same_moment(
    source18, warehouse18, monkeypatch, strategy
):
    """The one that comes second sees what the other has published, and leaves it alone."""
    eu = simple(source18, warehouse18, stream="eu")
    warehouse18.run(
        "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
    )
    fill(source18, JANUARY, FEBRUARY, 20)
    us = other(eu)
    of_eu, of_us = (stream.staged(JANUARY, FEBRUARY) for stream in (eu, us))
    enter, entered = ledger.enter_publish, []
    with ThreadPoolExecutor(1) as pool:
        beside = []

        def slowly(connection, manifest, strategy):
            """Once ``us`` has looked at what others have published, ``eu`` publishes."""
            at = enter(connection, manifest, strategy)
            if manifest.stream == "us":
                entered.append(at)
                if len(entered) == 2:
                    beside.append(pool.submit(eu.publish, of_eu, strategy=strategy))
                    wait(beside, timeout=1)
            return at

        monkeypatch.setattr(ledger, "enter_publish", slowly)
        us.publish(of_us, strategy=strategy)
    assert isinstance(beside[0].exception(), ConfigurationError)
    assert "would take rows of stream 'us'" in str(beside[0].exception())
    assert warehouse18.value("SELECT count(*) FROM a.t") == 20
