"""Rewind and reset: explicit, recorded, and in order with the loads that are at work."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from airflow_etl_provider.core.errors import ConfigurationError, StateError, Superseded
from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.postgres import ledger
from airflow_etl_provider.postgres.rewind import PostgresStoreBinding, rewind
from airflow_etl_provider.postgres.session import connect
from tests.builders import (
    APRIL,
    FEBRUARY,
    JANUARY,
    MARCH,
    fill,
    in_background,
    simple,
    wait_until,
)

JAN, FEB, MAR, APR = (f"2013-0{month}-01 00:00:00+00" for month in (1, 2, 3, 4))


def moved(warehouse, to, stream="t", reason="wrong rates", actor="ada", **options):
    with connect(warehouse.endpoint()) as connection:
        return rewind(connection, stream, to, reason, actor, **options)


@pytest.fixture
def quarter(source18, warehouse18):
    """January, February and March are published."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, APRIL, 90)
    for low, high in ((JANUARY, FEBRUARY), (FEBRUARY, MARCH), (MARCH, APRIL)):
        pipe.load(low, high)
    return pipe


def windows(pipe):
    return [(low, high) for low, high, _ in pipe.coverage()]


def everything(warehouse):
    """All that a rewind may change."""
    return [
        warehouse.run(f"SELECT t::text FROM etl.{table} AS t ORDER BY 1")
        for table in ("streams", "coverage", "watermark_moves", "loads")
    ]


# -- a rewind -------------------------------------------------------------------------------------


def test_a_rewind_moves_back_and_is_recorded(quarter, warehouse18):
    """Position, fence, coverage and the record change together; rows of the target stay."""
    before = quarter.rows()
    at = moved(warehouse18, FEB)
    assert (at.position, at.position_type, at.fence, at.load_id) == (
        FEB,
        "timestamp with time zone",
        4,
        None,
    )
    assert windows(quarter) == [(JAN, FEB)]
    assert quarter.rows() == before
    assert warehouse18.run(
        "SELECT position_from, position_to, fence, reason, actor FROM etl.watermark_moves ORDER BY fence DESC LIMIT 1"
    ) == [(APR, FEB, 4, "wrong rates", "ada")]


def test_the_range_is_loaded_again_and_counts_from_the_new_position(quarter, source18, warehouse18):
    """The next run repairs the store; contiguity starts where the stream was rewound to."""
    moved(warehouse18, FEB)
    source18.run("UPDATE t SET v = 'mended' WHERE ts >= '2013-02-01+00'")
    quarter.load(MARCH, APRIL)
    assert quarter.position() == FEB
    assert (quarter.store.read("t").value, quarter.store.read("t").fence) == (FEB, 4)
    quarter.load(FEBRUARY, MARCH)
    assert (quarter.position(), quarter.store.read("t").value) == (APR, APR)
    assert quarter.rows() == quarter.source_rows()


def test_the_repair_of_the_store_is_logged(quarter, warehouse18):
    moved(warehouse18, FEB)
    quarter.log.events.clear()
    quarter.extract(FEBRUARY, MARCH)
    assert ("watermark repaired from the ledger", FEB) in [
        (event, fields.get("value")) for event, fields in quarter.log.events
    ]


def test_a_rewind_into_a_window_trims_it(quarter, warehouse18):
    at = moved(warehouse18, "2013-02-10 01:00:00.000001+01")
    assert at.position == "2013-02-10 00:00:00.000001+00"
    assert windows(quarter) == [(JAN, FEB), (FEB, "2013-02-10 00:00:00.000001+00")]


def test_coverage_behind_a_gap_is_cut_too(source18, warehouse18):
    """What was published ahead of the position lies above the rewind and is loaded again."""
    pipe = simple(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    pipe.load(MARCH, APRIL)
    moved(warehouse18, "2013-01-15 00:00:00+00")
    assert windows(pipe) == [(JAN, "2013-01-15 00:00:00+00")]


def test_a_rewind_to_the_position_itself_loads_what_lies_ahead_again(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    pipe.load(MARCH, APRIL)
    assert moved(warehouse18, FEB).fence == 2
    assert windows(pipe) == [(JAN, FEB)]


def test_a_watermark_window_begins_at_the_new_position(quarter, source18, warehouse18):
    moved(warehouse18, MAR)
    quarter.mode, quarter.partition = WindowMode.WATERMARK, None
    manifest = quarter.extract()
    assert manifest.window.low == MAR


def test_below_the_first_window_ever_loaded(quarter, warehouse18):
    """The position wins over the origin: a stream may be sent further back than it began."""
    moved(warehouse18, "2012-12-01 00:00:00+00")
    assert windows(quarter) == []
    quarter.load(JANUARY, FEBRUARY)
    assert quarter.position() == "2012-12-01 00:00:00+00"
    quarter.load(datetime(2012, 12, 1, tzinfo=UTC), JANUARY)
    assert quarter.position() == FEB


# -- a reset --------------------------------------------------------------------------------------


def test_a_reset_stream_is_as_if_it_had_never_loaded(quarter, warehouse18):
    """Position, origin and coverage go, the fence does not; the next load says where it starts."""
    before = quarter.rows()
    at = moved(warehouse18, None)
    assert (at.position, at.position_type, at.fence) == (None, None, 4)
    assert warehouse18.run("SELECT position, origin FROM etl.streams") == [(None, None)]
    assert quarter.coverage() == []
    assert quarter.rows() == before
    quarter.load(FEBRUARY, MARCH)
    assert quarter.position() == MAR
    assert quarter.store.read("t").value == MAR


def test_the_store_follows_a_reset(quarter, warehouse18):
    """An older fence is brought in line also where there is no position to show."""
    moved(warehouse18, None)
    quarter.extract(FEBRUARY, MARCH)
    stored = quarter.store.read("t")
    assert (stored.value, stored.type, stored.fence) == (None, None, 4)


def test_a_stream_that_never_published_can_be_reset(source18, warehouse18):
    pipe = simple(source18, warehouse18, origin=JANUARY)
    batch = pipe.staged(FEBRUARY, MARCH)
    assert moved(warehouse18, None).fence == 1
    assert pipe.state(batch.load_id) == "abandoned"


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "reason", "said"),
    [
        ("2013-04-01 00:00:00.000001+00", "x", "above the position"),
        ("tuesday-ish", "x", "not a value of type timestamp with time zone"),
        ("2013-02-01", "x", "has no time zone"),
        ("2013-02-01 00:00:00", "x", "has no time zone"),
        ("-infinity", "x", "reset the stream"),
        (FEB, "", "needs a reason"),
        (FEB, " \n", "needs a reason"),
    ],
)
def test_what_is_refused_changes_nothing(quarter, warehouse18, to, reason, said):
    before = everything(warehouse18)
    with pytest.raises(ConfigurationError) as raised:
        moved(warehouse18, to, reason=reason)
    assert said in str(raised.value)
    assert everything(warehouse18) == before


def test_a_stream_that_is_not_there(quarter, warehouse18):
    with pytest.raises(ConfigurationError, match="did you mean 't'"):
        moved(warehouse18, FEB, stream="tt")


def test_a_stream_without_a_position_cannot_be_rewound(source18, warehouse18):
    pipe = simple(source18, warehouse18, origin=JANUARY)
    pipe.load(FEBRUARY, MARCH)
    with pytest.raises(ConfigurationError, match="no position yet"):
        moved(warehouse18, FEB)


def test_a_value_inside_the_callers_transaction(quarter, warehouse18):
    """A refusal takes back the rewind, not what the caller did before."""
    with connect(warehouse18.endpoint()) as connection, connection.transaction():
        connection.execute("UPDATE etl.streams SET kind = 'entities'")
        with pytest.raises(ConfigurationError):
            rewind(connection, "t", "tuesday-ish", "x", "ada")
    assert warehouse18.value("SELECT kind FROM etl.streams") == "entities"


def test_forward_only_when_said(quarter, warehouse18):
    """Rows in between are skipped; nothing that was published ahead is lost."""
    batch = quarter.staged(MARCH, APRIL)
    at = moved(warehouse18, "2013-06-01 00:00:00+00", allow_forward=True)
    assert (at.position, at.fence) == ("2013-06-01 00:00:00+00", 4)
    assert len(quarter.coverage()) == 3
    assert quarter.state(batch.load_id) == "validated"


# -- every type that orders a stream --------------------------------------------------------------

TYPES = [
    ("bigint", ["1", "10", "100"], "9", "9", [("1", "9")]),
    ("integer", ["-5", "7", "1000"], "7", "7", [("-5", "7")]),
    ("numeric", ["1.5", "10", "1e3"], "9.50", "9.50", [("1.5", "9.50")]),
    ("date", ["2013-01-01", "2013-02-01", "2013-03-01"], "2013-02-15", "2013-02-15",
     [("2013-01-01", "2013-02-01"), ("2013-02-01", "2013-02-15")]),
    ("timestamp without time zone", ["2013-01-01 00:00:00", "2013-02-01 00:00:00", "2013-03-01 00:00:00"],
     "2013-02-01", "2013-02-01 00:00:00", [("2013-01-01 00:00:00", "2013-02-01 00:00:00")]),
    ("timestamp(3) with time zone", ["0044-03-15 00:00:00+00 BC", "2013-02-01 00:00:00+00", "2013-03-01 00:00:00+00"],
     "0044-03-16 00:00:00+00 BC", "0044-03-16 00:00:00+00 BC",
     [("0044-03-15 00:00:00+00 BC", "0044-03-16 00:00:00+00 BC")]),
    ("text", ["", "B", "a"], "infinity", None, None),
    ("text", ["", "B", "b"], "Z{}%'\"", "Z{}%'\"", [("", "B"), ("B", "Z{}%'\"")]),
    ("uuid", [f"01900000-0000-7000-8000-00000000000{n}" for n in "13f"],
     "01900000-0000-7000-8000-000000000002", "01900000-0000-7000-8000-000000000002",
     [("01900000-0000-7000-8000-000000000001", "01900000-0000-7000-8000-000000000002")]),
]  # fmt: skip


def known(warehouse, cursor_type, marks):
    """A stream that stands at the last of *marks*, its windows between them."""
    with connect(warehouse.endpoint()) as connection:
        ledger.ensure_ledger(connection, label="warehouse")
    warehouse.run(
        "INSERT INTO etl.streams (stream, target, kind, position, position_type, fence)"
        " VALUES ('s', 'a.t', 'events', %s, %s, 5)",
        (marks[-1], cursor_type),
    )
    for low, high in pairwise(marks):
        warehouse.run(
            "INSERT INTO etl.coverage VALUES ('s', %s, %s, '[)', gen_random_uuid())", (low, high)
        )


@pytest.mark.parametrize(("cursor_type", "marks", "to", "position", "left"), TYPES)
def test_values_compare_as_the_stream_orders_them(
    warehouse18, cursor_type, marks, to, position, left
):
    """Numbers as numbers, dates as dates, text byte by byte: never one as another."""
    known(warehouse18, cursor_type, marks)
    if position is None:
        with pytest.raises(ConfigurationError, match="above the position"):
            moved(warehouse18, to, stream="s")
        return
    at = moved(warehouse18, to, stream="s")
    assert (at.position, at.position_type, at.fence) == (position, cursor_type, 6)
    cut = warehouse18.run('SELECT low, high FROM etl.coverage ORDER BY low COLLATE "C", high')
    assert sorted(cut) == sorted(left)


def test_every_server_moves_every_type(warehouse):
    """The statements suit each supported server."""
    known(warehouse, "uuid", [f"01900000-0000-7000-8000-00000000000{n}" for n in "13f"])
    assert moved(warehouse, "01900000-0000-7000-8000-000000000002", stream="s").fence == 6
    assert moved(warehouse, None, stream="s").position is None


@pytest.mark.parametrize(
    ("cursor_type", "position", "to", "said"),
    [
        ("timestamp without time zone", "2013-03-01 00:00:00", "2013-02-01 00:00:00+01", "names a time zone"),
        ("timestamp without time zone", "2013-03-01 00:00:00", "epoch", "names a time zone"),
        ("date", "2013-03-01", "2013-02-01 00:00:00Z", "names a time zone"),
        ("bigint", "10", "1.5", "not a value of type bigint"),
        ("bigint", "10", "", "not a value of type bigint"),
        ("numeric", "10", "NaN", "reset the stream"),
        ("numeric", "10", "-Infinity", "reset the stream"),
        ("uuid", "01900000-0000-7000-8000-00000000000f", "9", "not a value of type uuid"),
    ],
)  # fmt: skip
def test_what_no_stream_can_stand_at(warehouse18, cursor_type, position, to, said):
    """Naive and aware times are never taken for each other."""
    known(warehouse18, cursor_type, [position])
    with pytest.raises(ConfigurationError, match=said):
        moved(warehouse18, to, stream="s")


# -- loads that are at work -----------------------------------------------------------------------


def test_a_batch_read_before_the_rewind_is_not_published_over_it(quarter, source18, warehouse18):
    """It is abandoned, says why, and its clear reads the window anew."""
    batch = quarter.staged(MARCH, APRIL)
    moved(warehouse18, FEB)
    assert quarter.state(batch.load_id) == "abandoned"
    assert FEB in warehouse18.value(
        "SELECT error FROM etl.loads WHERE load_id = %s", (batch.load_id,)
    )
    before = quarter.picture()
    with pytest.raises(StateError, match=r"is abandoned .*, not validated"):
        quarter.publish(batch)
    assert quarter.picture() == before


def test_a_backfill_read_before_the_rewind_is_not_published_either(quarter, warehouse18):
    """It would mark the range as covered with what was read before."""
    batch = quarter.staged(MARCH, APRIL, run_type="backfill")
    moved(warehouse18, FEB)
    with pytest.raises(StateError):
        quarter.publish(batch)
    assert windows(quarter) == [(JAN, FEB)]


def test_a_load_below_the_rewind_goes_on(quarter, source18, warehouse18):
    """Its window is not loaded again, so nothing is lost or undone by it."""
    source18.run("UPDATE t SET v = 'later' WHERE ts < '2013-02-01+00'")
    batch = quarter.staged(JANUARY, FEBRUARY)
    moved(warehouse18, FEB)
    assert quarter.publish(batch).rows_inserted == 31
    assert quarter.position() == FEB


def test_an_audit_does_not_bring_an_abandoned_load_back(quarter, warehouse18):
    """Also a rejected batch, which a corrected suite could pass otherwise, is from before."""
    batch = quarter.extract(MARCH, APRIL)
    warehouse18.run("UPDATE etl.loads SET state = 'rejected' WHERE load_id = %s", (batch.load_id,))
    moved(warehouse18, FEB)
    with pytest.raises(Superseded):
        quarter.waive(batch)


def test_an_extract_at_work_keeps_nothing(quarter, warehouse18):
    """Its snapshot may be older than the reason for the rewind; its retry reads the window anew."""

    def at_work(event, **fields):
        if event == "extract started":
            moved(warehouse18, FEB)

    quarter.log = at_work
    staged = quarter.left_in_staging()
    with pytest.raises(Superseded):
        quarter.extract(MARCH, APRIL)
    assert quarter.left_in_staging() == staged
    assert warehouse18.value("SELECT state FROM etl.loads ORDER BY seq DESC LIMIT 1") == "abandoned"


def test_published_loads_keep_their_history(quarter, warehouse18):
    moved(warehouse18, None)
    assert warehouse18.run("SELECT DISTINCT state FROM etl.loads") == [("published",)]


# -- side by side ---------------------------------------------------------------------------------


@pytest.fixture
def waiting():
    """Starts work in the background and returns once it waits for a lock."""
    with ExitStack() as stack:

        def start(warehouse, work):
            future = stack.enter_context(in_background(work))
            wait_until(
                lambda: warehouse.run(
                    "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    " AND datname = current_database()"
                ),
                "a session that waits for a lock",
            )
            return future

        yield start


def test_a_publish_that_waits_for_a_rewind_sees_it(quarter, source18, warehouse18, waiting):
    """The rewind holds the stream's row; the publish behind it changes nothing."""
    source18.run("UPDATE t SET v = 'later'")
    batch = quarter.staged(MARCH, APRIL)
    before = quarter.rows()
    with connect(warehouse18.endpoint()) as connection:
        with connection.transaction():
            rewind(connection, "t", FEB, "wrong rates", "ada")
            publishing = waiting(warehouse18, lambda: quarter.publish(batch))
        with pytest.raises(StateError):
            publishing.result(30)
    assert quarter.rows() == before
    assert quarter.position() == FEB


def test_a_rewind_that_waits_for_a_publish_starts_from_it(quarter, source18, warehouse18, waiting):
    """What was published while the rewind waited is above it, and is undone with the rest."""
    moved(warehouse18, FEB)
    batch = quarter.staged(FEBRUARY, MARCH)
    with connect(warehouse18.endpoint()) as connection:
        with connection.transaction():
            at = ledger.enter_publish(connection, batch, Strategy.SWAP)
            assert at.position == FEB
            rewinding = waiting(warehouse18, lambda: moved(warehouse18, "2013-02-15 00:00:00+00"))
            connection.execute(
                "UPDATE etl.streams SET position = %s, fence = fence + 1 WHERE stream = 't'", (MAR,)
            )
        assert rewinding.result(30).fence == 6
    assert warehouse18.run(
        "SELECT position_from, position_to FROM etl.watermark_moves ORDER BY fence DESC LIMIT 1"
    ) == [(MAR, "2013-02-15 00:00:00+00")]


def test_two_rewinds_at_once_are_put_in_order(quarter, warehouse18, waiting):
    with connect(warehouse18.endpoint()) as connection:
        with connection.transaction():
            rewind(connection, "t", FEB, "first", "ada")
            second = waiting(warehouse18, lambda: moved(warehouse18, MAR, reason="second"))
        with pytest.raises(ConfigurationError, match="above the position"):
            second.result(30)
    assert quarter.position() == FEB


# -- the store a stream is bound to ---------------------------------------------------------------


def test_no_ledger_no_store(warehouse18):
    binding = PostgresStoreBinding(warehouse18.endpoint())
    assert binding.bound_store("t") is None
    assert binding.position("t") is None


def test_a_stream_that_never_loaded_has_no_store(quarter, warehouse18):
    binding = PostgresStoreBinding(warehouse18.endpoint())
    assert binding.bound_store("other") is None
    assert binding.position("other") is None


def test_another_store_keeps_position_and_fence(quarter, warehouse18):
    binding = PostgresStoreBinding(warehouse18.endpoint())
    before = binding.position("t")
    assert binding.bound_store("t") == "memory"
    binding.bind_store("t", "ledger")
    assert (binding.bound_store("t"), binding.position("t")) == ("ledger", before)


def test_a_store_is_bound_in_order_with_publishes(quarter, warehouse18, waiting):
    """It takes the stream's row, as they do."""
    binding = PostgresStoreBinding(warehouse18.endpoint())
    with warehouse18.connect() as holder:
        with holder.transaction():
            holder.execute("SELECT FROM etl.streams WHERE stream = 't' FOR UPDATE")
            bound = waiting(warehouse18, lambda: binding.bind_store("t", "ledger"))
            assert not bound.done()
        bound.result(30)
    assert binding.bound_store("t") == "ledger"


def test_a_run_with_its_own_load_is_told_apart(quarter, warehouse18):
    """After a rewind no load is said to have moved the stream."""
    moved(warehouse18, FEB)
    quarter.extract(MARCH, MARCH + timedelta(days=1))
    assert quarter.store.read("t").load_id is None
