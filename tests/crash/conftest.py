"""One laboratory for all tests of crashes: its cases are prepared once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.lab import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("crash"))
    yield made
    made.close()
