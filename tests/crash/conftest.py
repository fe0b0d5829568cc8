"""One laboratory for all tests of crashes: its cases are prepared once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.lab import Lab
from tests.folders import server_folder


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with server_folder(tmp_path_factory.mktemp("server")) as folder:
        made = Lab(tmp_path_factory.mktemp("crash"), folder / "data")
        yield made
        made.close()
