"""Mistakes in pipeline files are found before Airflow finds them."""

from __future__ import annotations

from tests import airflow_environment  # isort: skip  (before anything imports Airflow)  # noqa: F401

import json

import pytest

from airflow_etl_provider.cli import lint as lint_module
from airflow_etl_provider.cli.main import main

WHOLE = """
pipeline: flights
stream: flights
kind: events
schedule: "@monthly"
start_date: 2013-01-01
source: {conn_id: s, table: public.flights, cursor: time_hour}
target: {conn_id: t, table: a.flights, partition: {column: time_hour, every: month}}
"""


@pytest.fixture
def linted(capsys, tmp_path):
    """Lint a folder with these files: exit code and the JSON answer."""

    def lint(files):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        code = main(["lint", str(tmp_path), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return lint


def test_a_folder_in_order(linted):
    code, data = linted({"flights.yaml": WHOLE})
    assert (code, data) == (0, {"pipelines": ["flights"], "complete": True, "problems": []})


def test_an_empty_folder_is_in_order(linted):
    assert linted({}) == (0, {"pipelines": [], "complete": True, "problems": []})


def test_mistakes_come_with_file_and_line(linted, tmp_path):
    """Each once, those of a broken file beside those of others."""
    code, data = linted(
        {
            "flights.yaml": WHOLE.replace("kind: events", "kind: event"),
            "broken.yaml": "pipeline: [",
        }
    )
    assert code == 1
    places = [(problem["file"], problem["line"], problem["path"]) for problem in data["problems"]]
    assert (str(tmp_path / "flights.yaml"), 4, "kind") in places
    assert any(file == str(tmp_path / "broken.yaml") for file, _, _ in places)


def test_what_only_the_factory_sees(linted):
    """Expectations, schedules, and stream ids that Airflow would mask."""
    code, data = linted(
        {"flights.yaml": WHOLE.replace("stream: flights", "stream: flights.password")}
    )
    assert code == 1
    assert "stream" in data["problems"][0]["path"]


def test_two_files_of_one_name(linted):
    code, data = linted({"flights.yaml": WHOLE, "flights.yml": WHOLE})
    assert code == 1
    assert [problem["remedy"] for problem in data["problems"]] == ["keep one of the two"]


def test_people_read_lines_that_editors_open(capsys, tmp_path):
    (tmp_path / "flights.yaml").write_text(WHOLE.replace("kind: events", "kind: event"))
    assert main(["lint", str(tmp_path)]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'flights.yaml'}:4: kind: ")
    assert last == "1 mistake in 1 pipeline"


def test_without_airflow_the_files_are_still_read(monkeypatch, capsys, tmp_path):
    """And the answer says what was not looked at."""
    monkeypatch.setattr(lint_module.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "flights.yaml").write_text(WHOLE)
    assert main(["lint", str(tmp_path)]) == 0
    assert "Airflow is not installed" in capsys.readouterr().out
