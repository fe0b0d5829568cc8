"""The compose file cannot be started here, so everything about it that can be known is checked."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo import compose_env
from demo.__main__ import parser
from demo.airflow_process import COMPONENTS, MIGRATE, SETTINGS

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE = REPOSITORY / "docker-compose.yaml"
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]+\}")
SECRET_NAME = re.compile(r"PASSWORD|SECRET|FERNET|TOKEN", re.IGNORECASE)
URL_PASSWORD = re.compile(r"://[^:@/\s]+:(?P<password>.+?)@(?=[\w.-]+:\d)")


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return document


def services() -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"]
    return found


def airflow_services() -> dict[str, Any]:
    return {
        name: service
        for name, service in services().items()
        if service.get("command", [""])[0] == "airflow"
    }


def strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a document with the key it stands under."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from strings(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from strings(value, key)
    elif isinstance(node, str):
        yield key, node


def test_compose_file_follows_the_specification() -> None:
    """Docker's own schema accepts it."""
    checker = Path(sys.executable).with_name("check-jsonschema")
    checked = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", COMPOSE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_secrets_come_from_the_environment_only() -> None:
    """A password, key or token is required from outside and has no default."""
    for key, value in strings(compose()):
        if SECRET_NAME.search(key):
            assert REQUIRED.fullmatch(value), f"{key} holds a literal"
        if "://" in value and "@" in value:
            match = URL_PASSWORD.search(value)
            assert match is not None, f"{key}: URL in an unknown form"
            assert REQUIRED.fullmatch(match["password"]), f"{key} holds a literal password"


def test_one_command_draws_every_required_secret() -> None:
    """``python -m demo compose-env`` writes exactly what the compose file asks for."""
    assert set(REQUIRED.findall(COMPOSE.read_text())) == set(compose_env.draw())


def test_drawn_secrets_fit_where_they_are_used(tmp_path: Path) -> None:
    """No character needs quoting in a URL or in ``.env``, and a second draw changes nothing."""
    path = tmp_path / ".env"
    assert compose_env.write(path)
    written = path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert re.fullmatch(r"(\w+=[\w=-]+\n)+", written)
    assert not compose_env.write(path)
    assert path.read_text() == written


@pytest.mark.parametrize("name", sorted(services()))
def test_service_runs_a_command_that_the_demo_runs_natively(name: str) -> None:
    """Nothing happens only in containers: what is tried without Docker is what they run."""
    command = services()[name].get("command")
    if command is None:
        assert services()[name]["image"].startswith("postgres:")
    elif command[0] == "airflow":
        assert tuple(command[1:]) in {MIGRATE, *COMPONENTS.values()}
    else:
        assert command[:3] == ["python", "-m", "demo"]
        parser().parse_args(command[3:])


def test_every_component_of_airflow_is_a_service() -> None:
    """None is forgotten, the triggerer included."""
    commands = {tuple(service["command"][1:]) for service in airflow_services().values()}
    assert commands == {MIGRATE, *COMPONENTS.values()}


def test_containers_get_the_settings_of_the_native_demo() -> None:
    """Recovery times and lineage behave alike in both."""
    for service in airflow_services().values():
        environment = service["environment"]
        assert {name: environment[name] for name in SETTINGS} == dict(SETTINGS)


def test_long_running_services_are_watched() -> None:
    """What is meant to stay up has a health check."""
    for name, service in services().items():
        if service["restart"] != "no":
            assert "healthcheck" in service, name


def test_published_ports_are_local() -> None:
    """The user interface lets everybody in as admin, so only this machine may reach it."""
    for service in services().values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_image_matches_the_pinned_airflow() -> None:
    """The base image and constraints.txt name one version of Airflow."""
    dockerfile = services()["scheduler"]["build"]["dockerfile_inline"]
    image = re.search(r"FROM apache/airflow:([\d.]+)-python", dockerfile)
    pinned = re.search(
        r"^apache-airflow==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE
    )
    assert image is not None
    assert pinned is not None
    assert image[1] == pinned[1].strip()
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", dockerfile, re.MULTILINE)
    for source in " ".join(copied).split():
        assert (REPOSITORY / source).exists(), source
