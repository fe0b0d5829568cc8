"""The commands that move, on a real warehouse and a real Airflow API."""

from __future__ import annotations

from tests import airflow_environment  # isort: skip  (before anything imports Airflow)  # noqa: F401

import io
import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from http.client import HTTPConnection
from uuid import uuid4

import pytest

from airflow_etl_provider.cli.main import main
from airflow_etl_provider.core.watermark import Watermark
from airflow_etl_provider.postgres.ledger import ensure_ledger
from airflow_etl_provider.postgres.session import connect
from tests.builders import MARCH
from tests.conftest import Database

JAN, FEB, MAR, APR = (f"2013-0{month}-01 00:00:00+00" for month in (1, 2, 3, 4))
REASON = ("--reason", "wrong rates")


@dataclass(frozen=True)
class Stream:
    """A stream that stands at the end of March at fence 3, shown by its Variable."""

    warehouse: Database
    stream: str

    def position(self):
        return self.warehouse.value("SELECT position FROM etl.streams")

    def coverage(self):
        return self.warehouse.run("SELECT low, high FROM etl.coverage ORDER BY low")

    def watermark(self, value=APR, fence=3):
        """What the Variable would hold."""
        kind = "timestamp with time zone"
        return Watermark(
            self.stream, value, kind, fence, None, None, None, MARCH, None, None
        ).as_text()


@pytest.fixture
def pipe(warehouse18):
    made = Stream(warehouse18, f"t_{uuid4().hex[:8]}")
    with connect(warehouse18.endpoint()) as connection:
        ensure_ledger(connection, label="warehouse")
        connection.execute(
            "INSERT INTO etl.streams (stream, target, kind, store, origin, position, position_type, fence)"
            " VALUES (%s, 'a.t', 'events', 'variable', %s, %s, 'timestamp with time zone', 3)",
            (made.stream, JAN, APR),
        )
        for low, high in ((JAN, FEB), (FEB, MAR), (MAR, APR)):
            connection.execute(
                "INSERT INTO etl.coverage VALUES (%s, %s, %s, '[)', gen_random_uuid())",
                (made.stream, low, high),
            )
    return made


@pytest.fixture
def ask(capsys, warehouse18):
    """Run ``watermark …`` by connection string: exit code, and the answer as JSON."""

    def command(*argv, by=("--dsn", warehouse18.conninfo)):
        code = main(["watermark", *argv, *by, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return command


@pytest.fixture(scope="module")
def _metadata():
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture
def variable(_metadata, pipe):
    """The Variable as the metadata database holds it; with an argument it is set."""
    from airflow.models.variable import Variable
    from airflow.utils.session import create_session

    key = f"etl.watermark.{pipe.stream}"

    def access(text=None):
        with create_session() as session:
            if text is not None:
                Variable.set(key, text, session=session)
            row = session.query(Variable).filter(Variable.key == key).one_or_none()
            return None if row is None else row.get_val()

    return access


#: An API server that tells its port, and nothing else.
API_SERVER = """
import os
tell = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
import uvicorn
from airflow.api_fastapi.app import create_app

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], file=tell, flush=True)

Server(uvicorn.Config(create_app(apps="core"), host="127.0.0.1", port=0, log_level="error")).run()
"""


@pytest.fixture(scope="module")
def api(_metadata):
    """A real API server; its address and a token."""
    environment = {
        **os.environ,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(64),
    }
    with subprocess.Popen(
        [sys.executable, "-c", API_SERVER],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        port = int(server.stdout.readline())
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/auth/token")
        token = json.loads(connection.getresponse().read())["access_token"]
        connection.close()
        yield f"http://127.0.0.1:{port}", token
        server.terminate()


class TestRewind:
    def test_it_moves_and_says_what_follows(self, ask, pipe, warehouse18):
        code, data = ask("rewind", pipe.stream, "--to", FEB, *REASON, "--yes")
        assert code == 0
        assert (data["position_from"], data["position"], data["fence"]) == (APR, FEB, 4)
        assert data["store_in_line"] is False
        assert "next run" in data["store_note"]
        reason, actor = warehouse18.run(
            "SELECT reason, actor FROM etl.watermark_moves ORDER BY fence DESC LIMIT 1"
        )[0]
        assert reason == "wrong rates"
        assert actor.endswith("by airflow-etl")

    def test_a_reset(self, ask, pipe):
        code, data = ask("reset", pipe.stream, *REASON, "--yes")
        assert (code, data["position"], data["fence"]) == (0, None, 4)
        assert pipe.coverage() == []

    def test_a_stream_of_the_ledger_alone_needs_nothing_more(self, ask, pipe, warehouse18):
        warehouse18.run("UPDATE etl.streams SET store = 'ledger'")
        _, data = ask("rewind", pipe.stream, "--to", FEB, *REASON, "--yes")
        assert data["store_in_line"] is True

    @pytest.mark.parametrize(
        ("argv", "code", "said"),
        [
            (["rewind", "{}", "--to", "2014-01-01 00:00:00+00", *REASON, "--yes"], 1, "above the position"),
            (["rewind", "{}", "--to", "yesterdayish", *REASON, "--yes"], 1, "not a value"),
            (["rewind", "{}", "--to", FEB, "--reason", " ", "--yes"], 1, "reason"),
            (["rewind", "nothing", "--to", FEB, *REASON, "--yes"], 1, "knows no stream"),
            (["rewind", "{}", "--to", FEB, *REASON], 2, "--yes"),
            (["reset", "{}", *REASON], 2, "--yes"),
        ],
    )  # fmt: skip
    def test_what_is_refused(self, ask, pipe, argv, code, said):
        """With its reason, and nothing is changed."""
        answer = ask(*(word.replace("{}", pipe.stream) for word in argv))
        assert answer[0] == code
        assert said in answer[1]["error"]
        assert pipe.position() == APR

    def test_forward_when_said(self, ask, pipe):
        argv = ("rewind", pipe.stream, "--to", "2014-01-01 00:00:00+00", *REASON, "--yes")
        assert ask(*argv, "--allow-forward")[1]["position"] == "2014-01-01 00:00:00+00"

    @pytest.mark.parametrize(
        ("answer", "code", "position"), [("y\n", 0, FEB), ("Yes\n", 0, FEB), ("n\n", 2, APR), ("", 2, APR)]
    )  # fmt: skip
    def test_people_are_asked(self, pipe, warehouse18, capsys, monkeypatch, answer, code, position):
        """The question names the move; only a yes is one."""
        terminal = io.StringIO(answer)
        terminal.isatty = lambda: True
        monkeypatch.setattr("sys.stdin", terminal)
        argv = ["watermark", "rewind", pipe.stream, "--to", FEB, *REASON]
        assert main([*argv, "--dsn", warehouse18.conninfo]) == code
        assert pipe.position() == position
        out, err = capsys.readouterr()
        assert f"from {APR} to {FEB}?" in err
        assert ("fence 4" in out) is (code == 0)


class TestTheVariable:
    """Written from outside a task, by whichever way there is."""

    def stored(self, variable, pipe):
        return Watermark.from_text(variable(), stream=pipe.stream, where="here")

    def test_by_the_api(self, ask, pipe, api, variable, monkeypatch):
        """Made where it was missing, changed where it stood."""
        url, token = api
        monkeypatch.setenv("AIRFLOW_API_TOKEN", token)
        for to, fence in ((MAR, 4), (FEB, 5)):
            code, data = ask("rewind", pipe.stream, "--to", to, *REASON, "--yes", "--api-url", url)
            assert (code, data["store_in_line"]) == (0, True)
            stored = self.stored(variable, pipe)
            assert (stored.value, stored.fence) == (to, fence)
        code, data = ask("reset", pipe.stream, *REASON, "--yes", "--api-url", f"{url}/api/v2/")
        assert (code, data["store_in_line"]) == (0, True)
        assert self.stored(variable, pipe).value is None

    def test_on_an_airflow_host(self, ask, pipe, warehouse18, variable, monkeypatch):
        """The connection is Airflow's own, and so is the metadata database."""
        monkeypatch.setenv("AIRFLOW_CONN_DWH", warehouse18.airflow_uri())
        code, data = ask(
            "rewind", pipe.stream, "--to", FEB, *REASON, "--yes", by=("--conn-id", "dwh")
        )
        assert (code, data["store_in_line"]) == (0, True)
        assert self.stored(variable, pipe).value == FEB

    def test_a_connection_that_airflow_does_not_have(self, ask, pipe):
        code, data = ask("show", pipe.stream, by=("--conn-id", "nowhere"))
        assert code == 1
        assert "no connection 'nowhere'" in data["error"]

    @pytest.mark.parametrize("way", ["api", "host"])
    def test_a_repair_discards_an_edit_by_hand(
        self, ask, pipe, warehouse18, api, variable, monkeypatch, way
    ):
        """Also a value that is no watermark at all."""
        monkeypatch.setenv("AIRFLOW_API_TOKEN", api[1])
        monkeypatch.setenv("AIRFLOW_CONN_DWH", warehouse18.airflow_uri())
        options = {} if way == "api" else {"by": ("--conn-id", "dwh")}
        more = ("--api-url", api[0]) if way == "api" else ()
        for text in (
            pipe.watermark(value=JAN),
            "not JSON",
        ):
            variable(text)
            code, data = ask("repair", pipe.stream, *more, **options)
            assert (code, data["repaired"]) == (0, True)
            assert self.stored(variable, pipe).value == APR

    def test_a_rewind_does_not_discard_one(self, ask, pipe, api, variable, monkeypatch):
        """The move is done and recorded; the copy is left for those who edited it."""
        monkeypatch.setenv("AIRFLOW_API_TOKEN", api[1])
        later = pipe.watermark(fence=4)
        variable(later)
        code, data = ask("rewind", pipe.stream, "--to", FEB, *REASON, "--yes", "--api-url", api[0])
        assert (code, data["position"], data["store_in_line"]) == (0, FEB, False)
        assert "edited by hand" in data["store_note"]
        assert variable() == later

    def test_a_token_that_is_refused(self, ask, pipe, api, monkeypatch):
        """Named by its variable, never shown; a rewind before it is done all the same."""
        monkeypatch.setenv("AIRFLOW_API_TOKEN", "hunter2")
        code, data = ask("repair", pipe.stream, "--api-url", api[0])
        assert code == 1
        assert "refused the token" in data["error"]
        assert "hunter2" not in json.dumps(data)
        code, data = ask("rewind", pipe.stream, "--to", FEB, *REASON, "--yes", "--api-url", api[0])
        assert (code, data["store_in_line"], pipe.position()) == (0, False, FEB)

    def test_a_server_that_is_not_there(self, ask, pipe, monkeypatch):
        monkeypatch.setenv("AIRFLOW_API_TOKEN", "hunter2")
        code, data = ask("repair", pipe.stream, "--api-url", "http://127.0.0.1:1")
        assert code == 1
        assert "did not answer" in data["error"]

    def test_a_metadata_database_that_is_not_there(
        self, ask, pipe, warehouse18, variable, monkeypatch
    ):
        """Workers have connections but not the metadata database: what it would say is not shown."""
        import airflow.utils.session

        def broken():
            raise RuntimeError("postgresql://airflow:hunter2@db/airflow is down")

        monkeypatch.setattr(airflow.utils.session, "create_session", broken)
        monkeypatch.setenv("AIRFLOW_CONN_DWH", warehouse18.airflow_uri())
        code, data = ask("repair", pipe.stream, by=("--conn-id", "dwh"))
        assert code == 1
        assert "hunter2" not in json.dumps(data)
        assert "--api-url" in data["remedy"]


class TestRepairElsewhere:
    def test_nothing_here_can_write_it(self, ask, pipe):
        code, data = ask("repair", pipe.stream)
        assert (code, data["repaired"]) == (1, False)
        assert "--api-url" in data["note"]

    def test_the_ledger_alone(self, ask, pipe, warehouse18):
        warehouse18.run("UPDATE etl.streams SET store = 'ledger'")
        assert ask("repair", pipe.stream)[0] == 0

    def test_an_assets_state_is_written_by_tasks(self, ask, pipe, warehouse18):
        warehouse18.run("UPDATE etl.streams SET store = 'asset_state'")
        code, data = ask("repair", pipe.stream)
        assert (code, data["repaired"]) == (1, False)
        assert "next run" in data["note"]
