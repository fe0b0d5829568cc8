"""Bad input: one clear error that names the thing and the next step, and everything stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import supervisor
from airflow.sdk.execution_time.comms import (
    ErrorResponse,
    GetConnection,
    GetVariable,
    GetVariableKeys,
)
from psycopg import sql

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.operators.validate import QualityValidationOperator
from demo.embedded import free_port
from tests.airflow.runs import Interval, Ran
from tests.airflow.shop import ROW_CONTENT, Shop, month

INSIDE = ("/core/", "/postgres/", "/quality/", "/psycopg")


def refused(
    shop: Shop,
    dag: DAG,
    says: str | tuple[str, ...],
    *,
    task: str = "extract",
    interval: Interval | None = None,
    transient: bool = False,
    before: Mapping[str, Any] | None = None,
) -> Ran:
    """Run *dag*, which must end in one clear error in *task* and change nothing."""
    before = before or shop.picture()
    ran = shop.airflow.run(dag, interval or month(1))
    assert ran.state == "failed"
    assert list(ran.errors) == [task]
    message = ran.error(task)
    for part in (says,) if isinstance(says, str) else says:
        assert part in message
    assert "What to do: " in message
    assert "Traceback" not in message
    assert isinstance(ran.errors[task], AirflowFailException) is not transient
    told_once(ran)
    assert shop.picture() == before
    everything = json.dumps([ran.log, str(ran.xcoms())])
    assert shop.warehouse.server.password not in everything
    assert ROW_CONTENT not in everything
    return ran


def told_once(ran: Ran) -> None:
    """The log shows the error once, without the inside of this package or of a driver."""
    shown = [line["exception"] for line in ran.log if "exception" in line]
    assert len(shown) == 1
    (detail,) = shown[0]
    files = [frame["filename"] for frame in detail["frames"]]
    assert [name for name in files if any(part in name for part in INSIDE)] == []


@pytest.fixture
def stranger(shop: Shop) -> str:
    """A role that may log in to both databases and use their schemas, and nothing else."""
    name = f"stranger_{uuid4().hex[:8]}"
    shop.source.run(
        sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'guess-me'").format(sql.Identifier(name))
    )
    shop.warehouse.run(sql.SQL("GRANT USAGE ON SCHEMA a TO {}").format(sql.Identifier(name)))
    return name


def uri(shop: Shop, database: str, user: str, secret: str) -> str:
    return f"postgres://{user}:{secret}@127.0.0.1:{shop.source.server.port}/{database}"


class TestConnections:
    @pytest.mark.parametrize("end", ["source_conn_id", "target_conn_id"])
    def test_missing(self, shop: Shop, end: str) -> None:
        """The connection is named, with the command that makes it."""
        refused(
            shop,
            shop.pipeline(extract={end: "nowhere"}),
            ("no connection 'nowhere'", "airflow connections add nowhere"),
            transient=True,
        )

    @pytest.mark.parametrize("end", ["source_conn_id", "target_conn_id"])
    def test_of_another_kind(self, shop: Shop, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
        """Its type is named."""
        monkeypatch.setenv("AIRFLOW_CONN_WEB", "http://example.invalid")
        refused(
            shop,
            shop.pipeline(extract={end: "web"}),
            ("connection 'web' is of type 'http'",),
        )

    @pytest.mark.parametrize("end", ["SHOP", "DWH"])
    def test_wrong_password(
        self, shop: Shop, stranger: str, monkeypatch: pytest.MonkeyPatch, end: str
    ) -> None:
        """No retry mends it: the login is named, the password is not."""
        monkeypatch.setenv(
            f"AIRFLOW_CONN_{end}", uri(shop, shop.source.name, stranger, "wr0ng-secret")
        )
        ran = refused(
            shop,
            shop.pipeline(),
            (f"connection {end.lower()}", stranger, "check login and password"),
        )
        assert "wr0ng-secret" not in json.dumps(ran.log)

    def test_wrong_database(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        """The database is named."""
        monkeypatch.setenv("AIRFLOW_CONN_SHOP", shop.source.server.airflow_uri("nowhere"))
        refused(shop, shop.pipeline(), ("connection shop", '"nowhere"', "database name"))

    def test_unreachable(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        """The server may come back: transient, naming connection, host and port."""
        port = free_port()
        monkeypatch.setenv("AIRFLOW_CONN_SHOP", f"postgres://u:hush@127.0.0.1:{port}/d")
        refused(
            shop,
            shop.pipeline(),
            ("connection shop", "127.0.0.1", str(port), "check that the server is up"),
            transient=True,
        )

    def test_an_unknown_libpq_keyword(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        """Extras of a connection are libpq keywords; a wrong one is named."""
        monkeypatch.setenv("AIRFLOW_CONN_SHOP", shop.source.airflow_uri() + "?colour=blue")
        refused(shop, shop.pipeline(), ("connection shop", "colour"))

    def test_an_api_that_fails_is_not_a_missing_connection(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Airflow answers a failed request like a missing connection: a retry must be allowed."""
        monkeypatch.delenv("AIRFLOW_CONN_SHOP")
        answer_with_5xx(monkeypatch, GetConnection)
        ran = shop.airflow.run(shop.pipeline(), month(1))
        assert not isinstance(ran.errors["extract"], AirflowFailException)


class TestSource:
    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("public.Orders", ("no table", "there is public.orders")),
            ("public.ordres", ("no table", "public.orders")),
            ("shop.orders", ("no table shop.orders", "there is public.orders")),
            ("a.b.c.d", ("a.b.c.d", "schema.table")),
        ],
    )
    def test_table_that_is_not_there(self, shop: Shop, name: str, says: tuple[str, ...]) -> None:
        """The nearest one is named."""
        refused(shop, shop.pipeline(extract={"source": name}), says)

    def test_column_that_is_not_there(self, shop: Shop) -> None:
        """The nearest one is named, and all that there are."""
        refused(
            shop,
            shop.pipeline(extract={"columns": ["id", "at", "notes"]}),
            ("public.orders has no column 'notes'", "'note'", "id, at, note, amount"),
        )

    def test_cursor_that_is_not_there(self, shop: Shop) -> None:
        """And it is said that it was meant as the cursor."""
        refused(
            shop,
            shop.pipeline(extract={"cursor": "created", "partition": None}),
            ("no column 'created'", "the cursor"),
        )

    def test_cursor_that_cannot_order(self, shop: Shop) -> None:
        """Refused by the catalog, before any row is read."""
        refused(
            shop,
            shop.pipeline(extract={"cursor": "note", "kind": "entities", "partition": None}),
            ("type text", "date or timestamp"),
        )

    def test_no_privilege(self, shop: Shop, stranger: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The GRANT that would help is written out."""
        monkeypatch.setenv("AIRFLOW_CONN_SHOP", uri(shop, shop.source.name, stranger, "guess-me"))
        refused(
            shop,
            shop.pipeline(),
            (f"role {stranger} may not read", f"GRANT SELECT ON public.orders TO {stranger}"),
        )

    def test_rows_without_a_cursor(self, shop: Shop) -> None:
        """No window would ever hold them."""
        shop.source.run(
            "ALTER TABLE orders ALTER at DROP NOT NULL; UPDATE orders SET at = NULL WHERE id < 3"
        )
        refused(shop, shop.pipeline(), ("3 rows of public.orders have no value in the cursor",))

    def test_no_cursor(self, shop: Shop) -> None:
        """An interval needs one."""
        refused(shop, shop.pipeline(extract={"cursor": None, "partition": None}), "no cursor")

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"window": "weekly"}, "window='weekly' is unknown"),
            ({"kind": "facts"}, "kind='facts' is unknown"),
            ({"null_cursor": "skip"}, "null_cursor='skip'"),
            ({"partition": {"every": "month"}}, "is not a partitioning"),
            ({"partition": {"column": "at", "every": "moon"}}, "'moon' are unknown"),
            ({"partition": {"column": "id", "every": "month"}}, "must be the partition column"),
            (
                {"timezone": "Mars/Olympus", "source": "public.walls", "partition": None},
                "Mars/Olympus",
            ),
            ({"origin": "long ago"}, "long ago"),
            ({"keys": ["identity"]}, "no column 'identity', named as a key"),
        ],
    )
    def test_argument_that_is_not_known(self, shop: Shop, wrong: dict[str, Any], says: str) -> None:
        """Every argument is checked in our words."""
        shop.source.run(
            "CREATE TABLE walls (id bigint, at timestamp NOT NULL, note text, amount int)"
        )
        refused(shop, shop.pipeline(extract=wrong), says)


class TestTarget:
    @pytest.mark.parametrize("name", ["a.order", "a.Orders"])
    def test_table_that_is_not_there(self, shop: Shop, name: str) -> None:
        """Before any row is read."""
        refused(shop, shop.pipeline(extract={"target": name}), ("no table", "a.orders"))

    def test_column_that_is_not_there(self, shop: Shop) -> None:
        """Rows are not lost in silence: every column of the source has a place."""
        shop.source.run("ALTER TABLE orders ADD colour text")
        refused(shop, shop.pipeline(), ("colour", "columns=[...]"))

    def test_not_partitioned(self, shop: Shop) -> None:
        """Known before data moves: no partition of it can be swapped."""
        shop.warehouse.run("CREATE TABLE a.flat (LIKE a.orders)")
        refused(
            shop,
            shop.pipeline(extract={"target": "a.flat"}),
            ("a.flat is not partitioned", "PARTITION BY RANGE (at)"),
        )

    @pytest.mark.parametrize(
        ("cut", "says"),
        [
            ("LIST (note)", "partitioned by LIST (note), not by RANGE (at)"),
            ("HASH (id)", "partitioned by HASH (id)"),
            ("RANGE (id)", "partitioned by RANGE (id), not by RANGE (at)"),
            ("RANGE (at, id)", "RANGE (at, id)"),
            ("RANGE (date_trunc('day', at AT TIME ZONE 'UTC'))", "an expression"),
        ],
    )
    def test_partitioned_otherwise(self, shop: Shop, cut: str, says: str) -> None:
        """How it is partitioned is said."""
        shop.warehouse.run(
            "CREATE TABLE a.other (id bigint, at timestamptz NOT NULL, note text, amount int)"
            f" PARTITION BY {cut}"
        )
        refused(shop, shop.pipeline(extract={"target": "a.other"}), says)

    def test_cut_differently(self, shop: Shop) -> None:
        """Days where months are declared."""
        shop.warehouse.run(
            "CREATE TABLE a.day PARTITION OF a.orders FOR VALUES FROM ('2013-01-05') TO ('2013-01-06')"
        )
        refused(shop, shop.pipeline(), ("a.orders is cut differently", "a.day"))

    def test_rows_in_the_default_partition(self, shop: Shop) -> None:
        """How many and which rows are in the way, and where."""
        shop.warehouse.run("CREATE TABLE a.rest PARTITION OF a.orders DEFAULT")
        shop.warehouse.run("INSERT INTO a.orders VALUES (1, '2013-01-03', 'lost', 1)")
        refused(shop, shop.pipeline(), ("DEFAULT partition a.rest", "1 rows", "move them"))

    def test_name_of_the_partition_is_taken(self, shop: Shop) -> None:
        """A table of somebody else is not replaced."""
        shop.warehouse.run("CREATE TABLE a.orders_2013_01 (id int)")
        refused(shop, shop.pipeline(), ("a.orders_2013_01", "exists"))

    def test_no_privilege(self, shop: Shop, stranger: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A role that may not make the ledger is told what to grant."""
        monkeypatch.setenv("AIRFLOW_CONN_DWH", uri(shop, shop.warehouse.name, stranger, "guess-me"))
        refused(shop, shop.pipeline(), (stranger, "GRANT"))

    def test_a_stream_belongs_to_one_target(self, shop: Shop) -> None:
        """Its first load binds it."""
        shop.load(1)
        shop.warehouse.run(
            "CREATE TABLE a.others (LIKE a.orders INCLUDING ALL) PARTITION BY RANGE (at)"
        )
        refused(
            shop,
            shop.pipeline(extract={"target": "a.others"}),
            ("is bound to a.orders", "a stream id of its own"),
        )

    def test_a_refused_first_load_binds_nothing(self, shop: Shop) -> None:
        """A typing error in the first run must not own the stream id for ever."""
        shop.warehouse.run(
            "CREATE TABLE a.others (LIKE a.orders INCLUDING ALL) PARTITION BY RANGE (at)"
        )
        shop.source.run(
            "ALTER TABLE orders ALTER at DROP NOT NULL; UPDATE orders SET at = NULL WHERE id < 3"
        )
        ran = shop.airflow.run(shop.pipeline(extract={"target": "a.others"}), month(1))
        assert ran.state == "failed"
        shop.source.run("DELETE FROM orders WHERE at IS NULL")
        assert shop.airflow.run(shop.pipeline(), month(1)).state == "success"

    def test_a_publish_that_would_lose_most_rows(self, shop: Shop) -> None:
        """The brake names the partition, the share and the way on."""
        shop.load(1)
        shop.source.run("DELETE FROM orders WHERE id % 10 <> 0")
        before = shop.picture()
        ran = shop.airflow.run(shop.pipeline(), month(1))
        assert "900 of 1,000 rows (90%)" in ran.error("publish")
        assert "max_shrink" in ran.error("publish")
        assert isinstance(ran.errors["publish"], AirflowFailException)
        after = shop.picture()
        assert {**after, "tables": before["tables"]} == before

    def test_a_run_may_be_told_that_most_rows_go(self, shop: Shop) -> None:
        """The param counts for that run alone; nonsense in it is refused by name."""
        shop.load(1)
        shop.source.run("DELETE FROM orders WHERE id % 10 <> 0")
        ran = shop.airflow.run(shop.pipeline(), month(1), conf={"max_shrink": "most"})
        assert "param max_shrink" in ran.error("publish")
        told = shop.airflow.run(shop.pipeline(), month(1), conf={"max_shrink": 0.9})
        assert told.state == "success"
        assert shop.warehouse.value("SELECT count(*) FROM a.orders") == 100
        shop.source.run("DELETE FROM orders WHERE id % 100 <> 0")
        assert shop.airflow.run(shop.pipeline(), month(1)).state == "failed"


class TestSuites:
    def test_unknown_expectation_is_an_import_error(self, shop: Shop) -> None:
        """Long before data moves; the nearest one is named."""
        with pytest.raises(ConfigurationError) as caught, shop.dag():
            QualityValidationOperator(
                task_id="validate",
                conn_id="dwh",
                table="a.orders",
                expectations=[
                    {"type": "expect_column_value_to_not_be_null", "kwargs": {"column": "id"}}
                ],
            )
        assert "expect_column_values_to_not_be_null" in str(caught.value)

    def test_unknown_column(self, shop: Shop) -> None:
        """Named with the nearest by extract, before a row moves."""
        misspelt = {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "nota"}}
        dag = shop.pipeline(expectations=[misspelt])
        found = refused(shop, dag, ("no column 'nota'", "in an expectation", "'note'"))
        assert found.task_states()["validate"] == "upstream_failed"

    def test_unknown_column_of_a_batch_that_is_there(self, shop: Shop) -> None:
        """Named with the nearest; the batch waits, so that a mended suite can let it pass."""
        with shop.dag() as dag:
            shop.extract()
        batch = shop.airflow.run(dag, month(1)).xcom("extract")
        before = shop.picture()
        with shop.dag() as dag:
            QualityValidationOperator(
                task_id="validate",
                batch=batch,
                expectations=[
                    {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "nota"}}
                ],
            )
        ran = shop.airflow.run(dag, None)
        assert "nota" in ran.error("validate")
        assert "note" in ran.error("validate")
        told_once(ran)
        assert isinstance(ran.errors["validate"], AirflowFailException)
        assert shop.loads() == ["staged"]
        assert shop.picture() == before

    def test_missing_table(self, shop: Shop) -> None:
        """Validate alone on a table that is not there."""
        with shop.dag() as dag:
            QualityValidationOperator(task_id="check", conn_id="shop", table="public.ordres")
        refused(shop, dag, ("no table public.ordres",), task="check")

    def test_no_privilege(self, shop: Shop, stranger: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Validate alone on a table that may not be read; the GRANT that would help is written out."""
        monkeypatch.setenv("AIRFLOW_CONN_SHOP", uri(shop, shop.source.name, stranger, "guess-me"))
        with shop.dag() as dag:
            QualityValidationOperator(
                task_id="check",
                conn_id="shop",
                table="public.orders",
                expectations=[
                    {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "id"}}
                ],
            )
        says = (
            f"role {stranger} may not read public.orders",
            "permission denied",
            f"GRANT SELECT ON public.orders TO {stranger}",
        )
        refused(shop, dag, says, task="check")

    def test_no_privilege_on_the_schema(
        self, shop: Shop, stranger: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The table's privilege alone does not help, and the one that is missing is named."""
        role = sql.Identifier(stranger)
        shop.source.run(
            sql.SQL(
                "CREATE SCHEMA shut; CREATE TABLE shut.orders AS SELECT 1 AS id; GRANT SELECT ON shut.orders TO {}"
            ).format(role)
        )
        monkeypatch.setenv("AIRFLOW_CONN_SHOP", uri(shop, shop.source.name, stranger, "guess-me"))
        with shop.dag() as dag:
            QualityValidationOperator(
                task_id="check",
                conn_id="shop",
                table="shut.orders",
                expectations=[
                    {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "id"}}
                ],
            )
        says = (
            f"role {stranger} may not read shut.orders",
            "permission denied",
            f"What to do: GRANT USAGE ON SCHEMA shut TO {stranger}",
        )
        refused(shop, dag, says, task="check")

    @pytest.mark.parametrize(
        "batch",
        [
            "flights",
            7,
            {"rows": 3},
            {"load_id": "x", "version": 99},
            {"load_id": "x", "version": 1},
        ],
    )
    def test_a_batch_that_is_none(self, shop: Shop, batch: Any) -> None:
        """What is expected, and where to take it from."""
        with shop.dag() as dag:
            QualityValidationOperator(task_id="validate", batch=batch)
        refused(shop, dag, (), task="validate")


def edited(**changes: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **changes})


class TestWatermark:
    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (lambda _: "2013-02-01", "does not hold JSON"),
            (lambda _: "", "does not hold JSON"),
            (lambda text: text[:-20], "does not hold JSON"),
            (lambda _: "[]", "does not hold a watermark"),
            (edited(version=2), "does not hold a watermark of version 1"),
            (edited(stream="flights"), "the watermark of another stream ('flights')"),
            (edited(fence="1"), "no whole watermark"),
            (edited(fence=True), "no whole watermark"),
            (edited(value=7), "no whole watermark"),
            (edited(advanced_at="soon"), "advanced_at"),
            (edited(value="2013-01-01 00:00:00+00"), "edited by hand"),
            (edited(value=None), "edited by hand"),
            (edited(fence=7), "ahead of the ledger"),
        ],
    )  # fmt: skip
    def test_unreadable_or_edited(
        self, shop: Shop, damage: Callable[[str], str], says: str
    ) -> None:
        """Never repaired in silence, never taken for absent: the run stops and says what to do."""
        shop.load(1)
        text = shop.airflow.variable(shop.key())
        assert text is not None
        shop.airflow.set_variable(shop.key(), damage(text))
        refused(shop, shop.pipeline(), (f"Variable {shop.key()}", says), interval=month(2))
        self.no_load_is_left_open(shop)

    def no_load_is_left_open(self, shop: Shop) -> None:
        """A load that was refused is not said to be at work."""
        assert "started" not in shop.loads()

    def test_deleted_it_is_written_anew(self, shop: Shop) -> None:
        """What the errors above tell people to do."""
        shop.load(1)
        shop.airflow.delete_variables()
        shop.load(2)
        assert shop.agreed() == ("2013-03-01 00:00:00+00", 2)

    def test_an_older_one_is_repaired(self, shop: Shop) -> None:
        """It lags behind the ledger: that is what the ledger is for."""
        shop.load(1)
        old = shop.airflow.variable(shop.key())
        shop.load(2)
        shop.airflow.set_variable(shop.key(), old or "")
        with shop.dag() as dag:
            shop.extract()
        ran = shop.airflow.run(dag, month(3))
        assert ran.state == "success", ran.errors
        assert shop.agreed() == ("2013-03-01 00:00:00+00", 2)

    def test_shadowed_by_the_environment(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        """It would never move again, without a word."""
        shop.load(1)
        name = f"AIRFLOW_VAR_{shop.key().upper()}"
        monkeypatch.setenv(name, shop.airflow.variable(shop.key()) or "")
        refused(shop, shop.pipeline(), (name, "shadows", "remove"), interval=month(2))
        self.no_load_is_left_open(shop)

    def test_shadowed_by_the_environment_before_the_first_load(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Refused before data moves, not after the first publish."""
        monkeypatch.setenv(f"AIRFLOW_VAR_{shop.key().upper()}", "{}")
        before = shop.picture()
        ran = shop.airflow.run(shop.pipeline(), month(1))
        assert list(ran.errors) == ["extract"]
        assert shop.rows() == 0
        assert shop.picture()["published"] == before["published"]

    @pytest.mark.parametrize("value", ["same", "older"])
    def test_shadowed_by_a_secrets_backend(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        """What is written is never read back: said as such, whatever the backend answers."""
        old = shop.load(1) and shop.airflow.variable(shop.key())
        shop.load(2)
        answers = {"same": shop.airflow.variable(shop.key()), "older": old}

        class Backend:
            def get_variable(self, key: str, **_: Any) -> str | None:
                return answers[value] if key == shop.key() else None

            def get_connection(self, *_: Any, **__: Any) -> None:
                return None

        real = supervisor.ensure_secrets_backend_loaded
        monkeypatch.setattr(
            supervisor, "ensure_secrets_backend_loaded", lambda: [Backend(), *real()]
        )
        ran = shop.airflow.run(shop.pipeline(), month(3))
        assert ran.state == "failed"
        (message,) = map(str, ran.errors.values())
        assert "shadowed by a secrets backend" in message
        assert shop.agreed()[0] == shop.warehouse.value("SELECT position FROM etl.streams")

    @pytest.mark.parametrize(
        ("stream", "says"),
        [
            ("Orders", "does not match"),
            ("orders 2", "does not match"),
            ("orders/2", "does not match"),
            ("", "does not match"),
            ("x" * 101, "does not match"),
            ("token_orders", "takes for a secret's name"),
            ("orders.password.resets", "takes for a secret's name"),
        ],
    )
    def test_stream_id_that_cannot_be_a_key(self, shop: Shop, stream: str, says: str) -> None:
        """URL-unsafe ids collide in silence, and some would show as *** in every log."""
        refused(shop, shop.pipeline(extract={"stream": stream}), says)

    @pytest.mark.parametrize("answers", [(GetVariable,), (GetVariable, GetVariableKeys)])
    def test_an_api_that_fails_is_not_an_absent_watermark(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch, answers: tuple[type, ...]
    ) -> None:
        """Taken for absent, the stream would start over: it is transient, and nothing is written."""
        shop.load(1)
        before = shop.picture()
        answer_with_5xx(monkeypatch, *answers)
        refused(
            shop,
            shop.pipeline(),
            (),
            interval=month(2),
            transient=True,
            before=before,
        )
        self.no_load_is_left_open(shop)

    def test_an_api_that_fails_before_the_first_load(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The list of keys confirms absence; a failed list confirms nothing."""
        answer_with_5xx(monkeypatch, GetVariable, GetVariableKeys)
        ran = shop.airflow.run(shop.pipeline(), month(1))
        assert not isinstance(ran.errors["extract"], AirflowFailException)
        assert shop.rows() == 0

    def test_a_value_that_cannot_be_decrypted(self, shop: Shop) -> None:
        """Reads as missing while the key is there: said, with the way out."""
        from airflow.models.variable import Variable
        from airflow.utils.session import create_session
        from sqlalchemy import update

        shop.load(1)
        with create_session() as session:
            session.execute(
                update(Variable).where(Variable.key == shop.key()).values({"val": "gibberish"})
            )
        ran = shop.airflow.run(shop.pipeline(), month(2))
        assert "fernet" in ran.error("extract")
        assert shop.rows() == 1000


def answer_with_5xx(monkeypatch: pytest.MonkeyPatch, *requests: type) -> None:
    """The API server fails on these requests; the client has given up retrying."""
    send = supervisor.InProcessSupervisorComms.send

    def answer(self: Any, msg: Any) -> Any:
        if isinstance(msg, requests):
            failure = ErrorResponse(
                error=ErrorType.API_SERVER_ERROR, detail={"status_code": 503, "message": "busy"}
            )
            raise AirflowRuntimeError(failure)  # as the client in a worker does
        return send(self, msg)

    monkeypatch.setattr(supervisor.InProcessSupervisorComms, "send", answer)


def test_a_password_in_a_message_of_ours_is_masked(shop: Shop) -> None:
    """Passwords of connections never reach a log, not even when somebody took one for a name."""
    ran = shop.airflow.run(shop.pipeline(extract={"source": shop.source.server.password}), month(1))
    assert shop.source.server.password not in json.dumps(ran.log)
