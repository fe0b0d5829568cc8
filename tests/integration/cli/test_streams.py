"""The commands that look, on a real warehouse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import psycopg
import pytest

from airflow_etl_provider.cli.main import main
from airflow_etl_provider.core.errors import DataError
from tests.builders import APRIL, FEBRUARY, JANUARY, MARCH, fill, simple

JAN, FEB, MAR, APR = (f"2013-0{month}-01 00:00:00+00" for month in (1, 2, 3, 4))
#: Stands in every row, and must stand in no answer.
ROW_CONTENT = "row "


@pytest.fixture
def ask(warehouse18, capsys):
    """Run a command on the warehouse; its exit code, and its answer for people or for programs."""

    def command(*argv, people=False):
        given = [*argv, "--dsn", warehouse18.conninfo]
        code = main(given if people else [*given, "--json"])
        out = capsys.readouterr().out
        assert ROW_CONTENT not in out
        return code, out if people else json.loads(out)

    return command


@pytest.fixture
def pipe(source18, warehouse18):
    made = simple(source18, warehouse18, origin=JANUARY)
    fill(source18, JANUARY, APRIL, 90)
    return made


class TestStatus:
    def test_one_line_per_stream(self, ask, pipe):
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(MARCH, APRIL)
        code, (stream,) = ask("status")
        assert code == 0
        assert (stream["stream"], stream["target"], stream["kind"]) == ("t", "a.t", "events")
        assert (stream["position"], stream["store"]) == (FEB, "memory")
        assert (stream["gaps"], stream["last_state"], stream["dead_pending"]) == (1, "published", 0)
        lag = datetime.now(UTC) - FEBRUARY
        assert abs(stream["lag_seconds"] - lag.total_seconds()) < 600
        code, text = ask("status", people=True)
        title, line = text.splitlines()
        assert title.split()[:3] == ["STREAM", "TARGET", "KIND"]
        assert line.split()[:3] == ["t", "a.t", "events"]

    def test_no_streams_yet(self, ask, pipe, warehouse18):
        pipe.load(JANUARY, FEBRUARY)
        warehouse18.run(
            "TRUNCATE etl.streams, etl.loads, etl.coverage, etl.watermark_moves CASCADE"
        )
        assert ask("status") == (0, [])
        assert "no streams yet" in ask("status", people=True)[1]

    def test_dead_letters_that_wait(self, ask, pipe, warehouse18):
        """Counted, never shown."""
        load = pipe.load(JANUARY, FEBRUARY)
        warehouse18.run(
            "INSERT INTO etl.dead_letters (stream, load_id, record, row_hash, ordinal, reason, error_class, status)"
            " SELECT 't', %s, '{\"v\": \"row 1\"}', n::text, n, 'bad', 'x',"
            "        CASE WHEN n < 3 THEN 'pending' ELSE 'replayed' END FROM generate_series(1, 5) AS n",
            (load.load_id,),
        )
        assert ask("status")[1][0]["dead_pending"] == 2

    def test_streams_of_every_type(self, ask, pipe, warehouse18):
        """Only an instant has a lag that is known to the second."""
        pipe.load(JANUARY, FEBRUARY)
        for name, cursor_type, position, low in (
            ("b", "bigint", "10", "9"),
            ("d", "date", "2013-01-03", "2013-01-02"),
            ("i", "timestamp with time zone", "-infinity", "-infinity"),
            ("n", None, None, None),
            ("u", "uuid", "01900000-0000-7000-8000-00000000000f", "01900000-0000-7000-8000-000000000001"),
        ):  # fmt: skip
            warehouse18.run(
                "INSERT INTO etl.streams (stream, target, kind, position, position_type) VALUES (%s, 'a.x', 'events', %s, %s)",
                (name, position, cursor_type),
            )
            if low is not None:
                warehouse18.run(
                    "INSERT INTO etl.coverage VALUES (%s, %s, %s, '[)', gen_random_uuid())",
                    (name, low, position),
                )
        code, streams = ask("status")
        assert code == 0
        assert {s["stream"]: s["lag_seconds"] is None for s in streams} == {
            "b": True, "d": True, "i": True, "n": True, "t": False, "u": True,
        }  # fmt: skip
        assert {s["gaps"] for s in streams} == {0}


class TestCoverage:
    def test_windows_that_touch_are_one(self, ask, pipe):
        pipe.load(FEBRUARY, MARCH)
        pipe.load(JANUARY, FEBRUARY)
        code, data = ask("coverage", "t")
        assert code == 0
        assert data["covered"] == [{"low": JAN, "high": MAR, "bounds": "[)", "windows": 2}]
        assert data["gaps"] == []

    def test_gaps_are_findings(self, ask, pipe):
        """Also the one between the stream's start and the first window."""
        pipe.load(FEBRUARY, MARCH)
        pipe.load(APRIL, datetime(2013, 5, 1, tzinfo=UTC))
        code, data = ask("coverage", "t")
        assert code == 1
        assert data["gaps"] == [{"low": JAN, "high": FEB}, {"low": MAR, "high": APR}]
        code, text = ask("coverage", "t", people=True)
        assert code == 1
        assert f"missing  [{MAR}, {APR})" in text

    def test_nothing_is_published(self, ask, pipe):
        pipe.staged(JANUARY, FEBRUARY)
        code, data = ask("coverage", "t")
        assert (code, data["covered"], data["gaps"]) == (0, [], [])
        assert "nothing is published" in ask("coverage", "t", people=True)[1]

    def test_on_every_server(self, source, warehouse, capsys):
        """The statements suit each supported server."""
        pipe = simple(source, warehouse)
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(MARCH, APRIL)
        for argv, expected in (
            (["status"], 0),
            (["coverage", "t"], 1),
            (["loads", "t"], 0),
            (["watermark", "show", "t"], 0),
        ):
            assert main([*argv, "--dsn", warehouse.conninfo, "--json"]) == expected
            json.loads(capsys.readouterr().out)


class TestLoads:
    def test_newest_first(self, ask, pipe):
        first = pipe.load(JANUARY, FEBRUARY)
        second = pipe.extract(FEBRUARY, MARCH)
        code, data = ask("loads", "t")
        assert code == 0
        assert [load["load_id"] for load in data] == [second.load_id, first.load_id]
        assert [load["state"] for load in data] == ["staged", "published"]
        assert (data[1]["window_low"], data[1]["window_high"]) == (JAN, FEB)
        assert data[1]["rows_staged"] == data[1]["rows_inserted"] == 31
        assert len(ask("loads", "t", "--limit", "1")[1]) == 1

    def test_errors_are_shown_in_a_line(self, ask, pipe, warehouse18):
        load = pipe.extract(JANUARY, FEBRUARY)
        warehouse18.run(
            "UPDATE etl.loads SET error = E'first line\\nsecond' WHERE load_id = %s",
            (load.load_id,),
        )
        _, text = ask("loads", "t", people=True)
        assert "first line" in text
        assert "second" not in text

    def test_what_failed_tells_no_row(self, ask, pipe, source18):
        """An error of the data names the row's number, not the row."""
        source18.run(
            "ALTER TABLE t ALTER ts DROP NOT NULL; INSERT INTO t VALUES (1000, NULL, 'row x')"
        )
        with pytest.raises(DataError):
            pipe.extract(JANUARY, FEBRUARY)
        (load,) = ask("loads", "t")[1]
        assert load["state"] == "failed"
        assert load["error"]


class TestShow:
    def test_position_and_moves(self, ask, pipe):
        pipe.load(JANUARY, FEBRUARY)
        pipe.load(FEBRUARY, MARCH)
        code, data = ask("watermark", "show", "t")
        assert code == 0
        assert (data["position"], data["fence"], data["type"]) == (
            MAR,
            2,
            "timestamp with time zone",
        )
        assert [(m["from"], m["to"], m["reason"]) for m in data["moves"]] == [
            (FEB, MAR, "published"),
            (None, FEB, "published"),
        ]
        assert len(ask("watermark", "show", "t", "--limit", "1")[1]["moves"]) == 1
        _, text = ask("watermark", "show", "t", people=True)
        assert f"position  {MAR}" in text

    def test_a_stream_that_never_moved(self, ask, pipe):
        pipe.extract(FEBRUARY, MARCH)
        code, data = ask("watermark", "show", "t")
        assert (code, data["position"], data["moves"]) == (0, None, [])


@pytest.mark.parametrize("argv", [["coverage"], ["loads"], ["watermark", "show"]])
def test_a_stream_that_is_not_there(ask, pipe, argv):
    """The nearest name is offered."""
    pipe.load(JANUARY, FEBRUARY)
    code, data = ask(*argv, "tt")
    assert code == 1
    assert "did you mean 't'" in data["error"]


class TestWithoutALedger:
    @pytest.mark.parametrize(
        "argv",
        [
            ["status"],
            ["coverage", "t"],
            ["loads", "t"],
            ["watermark", "show", "t"],
            ["watermark", "repair", "t"],
            ["watermark", "reset", "t", "--reason", "x", "--yes"],
        ],
        ids=" ".join,
    )
    def test_it_is_said(self, ask, argv):
        """And nothing is made."""
        code, data = ask(*argv)
        assert code == 1
        assert "no ledger" in data["error"]
        assert data["remedy"]

    def test_a_newer_one(self, ask, pipe, warehouse18):
        pipe.load(JANUARY, FEBRUARY)
        warehouse18.run("INSERT INTO etl.schema_version VALUES (999)")
        code, data = ask("status")
        assert code == 1
        assert "version 999" in data["error"]

    def test_a_role_that_may_not_read_it(self, pipe, warehouse18, capsys):
        pipe.load(JANUARY, FEBRUARY)
        role = f"reader_{warehouse18.name}"
        warehouse18.run(f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2'")
        dsn = psycopg.conninfo.make_conninfo(warehouse18.conninfo, user=role, password="hunter2")
        try:
            code = main(["status", "--dsn", dsn])
        finally:
            warehouse18.run(f"DROP ROLE {role}")
        out, err = capsys.readouterr()
        assert (code, out) == (1, "")
        assert "permission denied" in err
        assert "hunter2" not in err


def test_as_a_program_of_its_own(pipe, warehouse18, tmp_path):
    """By a service file, with the answer alone on standard output."""
    pipe.load(JANUARY, FEBRUARY)
    given = psycopg.conninfo.conninfo_to_dict(warehouse18.conninfo)
    lines = "\n".join(f"{key}={value}" for key, value in given.items())
    (tmp_path / "services").write_text(f"[dwh]\n{lines}\n")
    done = subprocess.run(
        [sys.executable, "-c", "from airflow_etl_provider.cli.main import run; run()",
         "watermark", "rewind", "t", "--to", JAN, "--reason", "test", "--yes", "--json", "--service", "dwh"],
        env={**os.environ, "PGSERVICEFILE": str(tmp_path / "services")},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["position"] == JAN
    assert "watermark rewound" in done.stderr
