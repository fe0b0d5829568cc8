"""Arguments, exit codes, and what standard output may carry."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from airflow_etl_provider.cli.main import main


def run(capsys, *argv):
    """Exit code, standard output, standard error."""
    try:
        code = main(argv)
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["watermark"],
        ["status"],
        ["status", "--dsn", "dbname=a", "--service", "b"],
        ["statu", "--dsn", "dbname=a"],
        ["status", "--ds", "dbname=a"],
        ["coverage", "--dsn", "dbname=a"],
        ["loads", "t", "--dsn", "dbname=a", "--limit", "0"],
        ["loads", "t", "--dsn", "dbname=a", "--limit", "x"],
        ["watermark", "rewind", "t", "--dsn", "dbname=a", "--to", "1"],
        ["watermark", "rewind", "t", "--dsn", "dbname=a", "--reason", "x"],
        ["watermark", "reset", "t", "--dsn", "dbname=a"],
        ["watermark", "reset", "t", "--dsn", "dbname=a", "--reason", "x", "--to", "1"],
        ["watermark", "repair", "--dsn", "dbname=a"],
        ["watermark", "repair", "t", "--dsn", "dbname=a", "--api-url", "example.org"],
        ["watermark", "repair", "t", "--dsn", "dbname=a", "--api-url", "https://example.org"],
        ["clean", "--dsn", "dbname=a", "--keep-versions", "-1"],
        ["clean", "--dsn", "dbname=a", "--keep-failed", "soon"],
        ["clean", "--dsn", "dbname=a", "--keep-previous=-1"],
        ["rollback", "--dsn", "dbname=a", "--reason", "x"],
        ["dead-letters"],
        ["dead-letters", "list", "--dsn", "dbname=a", "--status", "lost"],
        ["dead-letters", "list", "--dsn", "dbname=a", "--load", "7"],
        ["dead-letters", "show", "--dsn", "dbname=a"],
        ["dead-letters", "show", "x", "--dsn", "dbname=a"],
        ["dead-letters", "replay", "--dsn", "dbname=a", "--all"],
        ["dead-letters", "replay", "t", "--dsn", "dbname=a", "--set", "v"],
        ["dead-letters", "discard", "--dsn", "dbname=a", "--id", "1"],
        ["rollback", "01a1fc5d-3b34-7778-b26a-09de6eb1fdb8", "--dsn", "dbname=a"],
        ["lint"],
        ["lint", "/no/such/folder"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told(capsys, monkeypatch, argv):
    """Exit code 2, a reason on standard error, and nothing on standard output."""
    monkeypatch.delenv("AIRFLOW_API_TOKEN", raising=False)
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["status", "--help"], ["watermark", "rewind", "--help"], ["doctor", "--help"]],
)
def test_help(capsys, argv):
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert "--help" in out


@pytest.mark.parametrize(
    "dsn", ["host=h password=hunter2 nonsense", "postgresql://u:hunter2@h:x y/d", "hunter2"]
)
def test_a_connection_string_that_cannot_be_read_is_not_repeated(capsys, dsn):
    """Part of it is the password."""
    code, out, err = run(capsys, "status", "--dsn", dsn, "--json")
    assert code == 2
    assert "hunter2" not in out + err
    assert "--dsn" in json.loads(out)["error"]


def test_a_server_that_is_not_there(capsys):
    """One sentence and a way on; exit code 1."""
    argv = ("status", "--dsn", "host=127.0.0.1 port=1 dbname=d password=hunter2 connect_timeout=2")
    code, out, err = run(capsys, *argv)
    assert (code, out) == (1, "")
    assert "database d" in err
    assert "what to do" in err
    assert "hunter2" not in err
    code, out, _ = run(capsys, *argv, "--json")
    assert code == 1
    assert set(json.loads(out)) == {"error", "remedy"}


def test_a_service_that_is_not_there(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "none"))
    code, _, err = run(capsys, "status", "--service", "nowhere")
    assert code == 1
    assert "service nowhere" in err


def test_nothing_heavy_is_loaded():
    """The commands start at once: Airflow only where a connection of Airflow is named."""
    program = (
        "import sys\n"
        "from airflow_etl_provider.cli.main import main\n"
        "code = main(['status', '--dsn', 'host=127.0.0.1 port=1 connect_timeout=2'])\n"
        "heavy = {'airflow', 'sqlalchemy', 'pandas', 'great_expectations'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code != 1 or heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
