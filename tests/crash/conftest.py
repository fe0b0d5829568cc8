"""One laboratory for all tests of crashes: its cases are prepared once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.lab import Lab
from tests.scratch import scratch


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    made = Lab(scratch("crash"))
    yield made
    made.close()
