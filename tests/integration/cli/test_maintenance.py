"""The commands that keep a warehouse in order, on a real one."""

from __future__ import annotations

import json

import pytest

from airflow_etl_provider.cli.main import main
from tests.builders import FEBRUARY, JANUARY, fill, simple


@pytest.fixture
def ask(warehouse18, capsys):
    """Run a command on the warehouse; its exit code, and its answer for people or for programs."""

    def command(*argv, people=False):
        given = [*argv, "--dsn", warehouse18.conninfo]
        code = main(given if people else [*given, "--json"])
        out = capsys.readouterr().out
        return code, out if people else json.loads(out)

    return command


@pytest.fixture
def pipe(source18, warehouse18):
    """January, published three times over; two older versions are kept."""
    made = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 30)
    for number in range(3):
        source18.run("UPDATE t SET v = v || %s", (str(number),))
        made.load(JANUARY, FEBRUARY, options={"keep_versions": 9})
    return made


class TestClean:
    def test_what_is_dropped_is_said(self, ask, pipe, warehouse18):
        warehouse18.run("CREATE TABLE etl_staging.notes ()")
        code, data = ask("clean", "--keep-versions", "1")
        assert (code, data["dry_run"], data["busy"]) == (0, False, [])
        (gone,) = data["dropped"]
        assert gone["table"] not in pipe.left_in_staging()
        assert "beyond the newest 1" in gone["why"]
        assert gone["bytes"] == data["bytes"] > 0
        assert data["unregistered"] == ["etl_staging.notes"]
        assert len(pipe.left_in_staging()) == 2

    def test_a_look_before(self, ask, pipe):
        """Only said, and nothing dropped."""
        before = pipe.left_in_staging()
        code, text = ask("clean", "--dry-run", "--keep-versions", "0", people=True)
        assert code == 0
        title, *lines = text.splitlines()
        assert title.split() == ["TABLE", "BYTES", "WHY"]
        assert [line.split()[:2] for line in lines] == [["would", "go"]] * 2
        assert pipe.left_in_staging() == before

    def test_the_limits(self, ask, pipe):
        assert ask("clean", "--keep-versions", "2")[1]["dropped"] == []
        assert ask("clean", "--keep-versions", "2", "--keep-previous", "1")[1]["dropped"] == []
        assert len(ask("clean", "--keep-versions", "2", "--keep-bytes", "0")[1]["dropped"]) == 2

    def test_nothing_to_do(self, ask, pipe):
        ask("clean")
        assert ask("clean", people=True) == (0, "nothing to clean\n")

    def test_without_a_ledger(self, ask):
        code, data = ask("clean")
        assert code == 1
        assert "no ledger" in data["error"]


class TestRollback:
    @pytest.fixture
    def last(self, pipe, warehouse18):
        """The id of the load that is live."""
        return warehouse18.value("SELECT load_id::text FROM etl.loads ORDER BY seq DESC LIMIT 1")

    def test_a_load_is_taken_back(self, ask, pipe, last):
        """Seen in the list of loads, with who and why; a second time it says that it is done."""
        before = pipe.rows()
        code, data = ask("rollback", last, "--reason", "wrong rates", "--yes")
        assert (code, data["load_id"], data["already_rolled_back"]) == (0, last, False)
        assert list(data["kept"]) == ["a.t_2013_01"]
        assert pipe.rows() != before
        (load, *_) = ask("loads", "t")[1]
        assert load["state"] == "rolled_back"
        assert load["error"].startswith("rolled back by ")
        assert load["error"].endswith(": wrong rates")
        assert ask("coverage", "t")[1]["covered"] == []
        code, text = ask("rollback", last, "--reason", "again", "--yes", people=True)
        assert code == 0
        assert "was rolled back before" in text

    def test_the_watermark_with_it(self, ask, pipe, last):
        data = ask("rollback", last, "--reason", "x", "--yes", "--move-watermark")[1]
        assert (data["watermark_moved"], data["position"]) == (True, "2013-01-01 00:00:00+00")
        assert pipe.position() == "2013-01-01 00:00:00+00"

    def test_what_others_have_written(self, ask, pipe, warehouse18, last):
        """Refused with figures, until somebody says that it may go."""
        warehouse18.run("INSERT INTO a.t VALUES (5000, '2013-01-07Z', 'by an application')")
        code, data = ask("rollback", last, "--reason", "x", "--yes")
        assert code == 1
        assert "1 were written since" in data["error"]
        assert "--discard-changes" in data["remedy"]
        assert ask("rollback", last, "--reason", "x", "--yes", "--discard-changes")[0] == 0

    def test_for_people(self, ask, pipe, last):
        code, text = ask("rollback", last, "--reason", "x", "--yes", people=True)
        assert code == 0
        assert "a.t_2013_01" in text
        assert "next: " in text

    def test_nobody_to_ask(self, ask, pipe, last):
        before = pipe.picture()
        code, data = ask("rollback", last, "--reason", "x")
        assert code == 2
        assert "--yes" in data["error"]
        assert pipe.picture() == before

    def test_a_refusal_says_what_to_do(self, ask, pipe, warehouse18):
        first = warehouse18.value("SELECT load_id::text FROM etl.loads ORDER BY seq LIMIT 1")
        code, data = ask("rollback", first, "--reason", "x", "--yes")
        assert code == 1
        assert data["error"]
        assert data["remedy"]
