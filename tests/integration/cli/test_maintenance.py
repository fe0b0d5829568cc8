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
        code, data = ask("clean")
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
