"""The commands for rows that were set aside, on a real warehouse."""

from __future__ import annotations

import json

import pytest

from airflow_etl_provider.cli.main import main
from tests.builders import FEBRUARY, JANUARY, MARCH
from tests.integration.postgres.test_quarantine import NOT_NULL, V_PRESENT, flawed


@pytest.fixture
def ask(warehouse18, capsys):
    """Run a command on the warehouse; its exit code, and its answer for people or for programs."""

    def command(*argv, people=False):
        given = ["dead-letters", *argv, "--dsn", warehouse18.conninfo]
        code = main(given if people else [*given, "--json"])
        out = capsys.readouterr().out
        return code, out if people else json.loads(out)

    return command


@pytest.fixture
def pipe(source18, warehouse18):
    """Two months, published without the third and the fortieth row."""
    made = flawed(source18, warehouse18)
    made.publish(made.audit(made.extract(JANUARY, MARCH), [V_PRESENT]))
    return made


@pytest.fixture
def ids(pipe):
    return [letter for (letter,) in pipe.letters("id")]


class TestList:
    def test_pending_letters_are_a_finding(self, ask, pipe, ids):
        code, data = ask("list")
        assert (code, data["total"]) == (1, 2)
        assert [letter["id"] for letter in data["letters"]] == ids
        assert data["counts"] == [
            {"stream": "t", "status": "pending", "reason": f"{NOT_NULL}(v)", "letters": 2}
        ]
        assert "record" not in data["letters"][0]

    def test_for_people(self, ask, pipe):
        code, text = ask("list", "t", "--limit", "1", people=True)
        assert code == 1
        assert text.splitlines()[0].split() == ["LETTERS", "STREAM", "STATUS", "REASON"]
        assert "1 more: --limit" in text

    def test_by_status_and_load(self, ask, pipe, ids, warehouse18):
        load_id = warehouse18.value("SELECT load_id::text FROM etl.loads")
        assert ask("list", "t", "--load", load_id)[1]["total"] == 2
        assert ask("list", "--status", "held", "--status", "discarded") == (
            0,
            {"letters": [], "counts": [], "total": 0},
        )
        assert ask("list", "--status", "replayed", people=True) == (0, "no dead letters\n")

    def test_an_unknown_stream_is_told(self, ask, pipe):
        code, data = ask("list", "tt")
        assert code == 1
        assert "no stream 'tt'; did you mean 't'?" in data["error"]

    def test_without_a_ledger(self, ask):
        code, data = ask("list")
        assert code == 1
        assert "no ledger" in data["error"]


class TestShow:
    def test_a_letter_with_its_row(self, ask, pipe, ids):
        code, data = ask("show", str(ids[0]))
        assert code == 0
        assert data["record"]["id"] == "3"
        assert data["record"]["v"] is None
        code, text = ask("show", str(ids[0]), people=True)
        assert "v   NULL" in text
        assert f"{NOT_NULL}(v)" in text

    def test_one_that_does_not_exist(self, ask, pipe):
        code, data = ask("show", "999")
        assert code == 1
        assert "999 does not exist" in data["error"]


class TestReplay:
    def test_with_a_value_for_all(self, ask, pipe, warehouse18):
        code, data = ask("replay", "t", "--all", "--set", "v=a = b", "--yes")
        assert (code, data["replayed"]) == (0, 2)
        assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'a = b'") == 2
        row = warehouse18.run(
            "SELECT dag_id, run_type FROM etl.loads WHERE load_id = %s", (data["load_ids"][0],)
        )
        assert row == [("airflow-etl", "manual")]

    def test_what_fails_again_is_a_finding(self, ask, pipe, ids):
        code, text = ask(
            "replay", "t", "--id", str(ids[0]), "--set-null", "v", "--yes", people=True
        )
        assert code == 1
        assert "failed again  1" in text
        assert pipe.letters("retries") == [(1,), (0,)]

    def test_with_an_edited_letter(self, ask, pipe, ids, tmp_path, warehouse18):
        """What `show --json` prints goes back as it is, but for what was mended."""
        letter = ask("show", str(ids[1]))[1]
        letter["record"]["v"] = "edited"
        file = tmp_path / "letter.json"
        file.write_text(json.dumps(letter))
        code, data = ask("replay", "t", "--corrections", str(file), "--yes")
        assert (code, data["replayed"]) == (0, 1)
        assert warehouse18.value("SELECT v FROM a.t WHERE id = 40") == "edited"

    def test_with_corrections_by_id_and_a_suite(self, ask, pipe, ids, tmp_path):
        corrections, suite = tmp_path / "mended.json", tmp_path / "suite.json"
        corrections.write_text(json.dumps({str(ids[0]): {"v": "x"}, str(ids[1]): {"v": "long"}}))
        suite.write_text(
            json.dumps([{"type": "expect_column_value_lengths_to_equal", "kwargs": {"column": "v", "value": 1}}])
        )  # fmt: skip
        code, data = ask(
            "replay", "t", "--corrections", str(corrections), "--suite", str(suite), "--yes"
        )
        assert (code, data["replayed"], data["failed"]) == (1, 1, 1)

    @pytest.mark.parametrize("text", ["[1]", "{", '{"x": {}}', '{"7": 5}'])
    def test_what_is_no_correction_is_told(self, ask, pipe, tmp_path, text):
        file = tmp_path / "wrong.json"
        file.write_text(text)
        code, data = ask("replay", "t", "--corrections", str(file), "--yes")
        assert code == 2
        assert "--corrections" in data["error"]

    def test_letters_are_named_and_asked_about(self, ask, pipe, ids):
        assert ask("replay", "t", "--yes")[0] == 2
        assert ask("replay", "t", "--all")[0] == 2
        assert pipe.letters("status") == [("pending",)] * 2


class TestDiscard:
    def test_with_a_reason(self, ask, pipe, ids):
        code, data = ask("discard", "--id", str(ids[0]), "--reason", "test data", "--yes")
        assert (code, data) == (0, {"discarded": [ids[0]], "others": {}})
        status, resolution, at = pipe.letters("status, resolution, resolved_at")[0]
        assert (status, at is None) == ("discarded", False)
        assert resolution.endswith("by airflow-etl: test data")
        again = ask("discard", "--id", str(ids[0]), "--reason", "again", "--yes")
        assert again == (1, {"discarded": [], "others": {"discarded": 1}})
        assert pipe.replay(values={"v": "x"}).replayed == 1

    def test_all_of_a_stream_or_a_load(self, ask, pipe, ids, warehouse18):
        assert ask("discard", "--reason", "x", "--yes")[0] == 2
        assert ask("discard", "--stream", "t", "--reason", "x", "--yes")[0] == 2
        load_id = warehouse18.value("SELECT load_id::text FROM etl.loads")
        given = ("--stream", "t", "--load", load_id, "--reason", "x", "--yes")
        assert ask("discard", *given)[1]["discarded"] == ids
        assert ask("discard", "--stream", "t", "--all", "--reason", "x", "--yes")[0] == 0

    def test_one_that_does_not_exist(self, ask, pipe, ids):
        code, data = ask("discard", "--id", "999", "--id", str(ids[0]), "--reason", "x", "--yes")
        assert code == 1
        assert "999 does not exist" in data["error"]
        assert pipe.letters("status")[0] == ("pending",)

    def test_letters_of_a_load_that_is_not_published_stay(self, ask, pipe):
        pipe.audit(pipe.extract(JANUARY, FEBRUARY), [V_PRESENT])
        held = pipe.letters("id")[-1][0]
        code, data = ask("discard", "--id", str(held), "--reason", "x", "--yes")
        assert (code, data["others"]) == (1, {"held": 1})
