"""The shipped gallery is the gallery of the installed Great Expectations."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from airflow_etl_provider.quality.gallery import FILE, read_gallery, write_gallery

# Great Expectations imports modules that Python 3.11 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_")


def test_gallery_is_current(tmp_path: Path) -> None:
    """After an upgrade, ``python -m airflow_etl_provider.quality.gallery`` writes it anew."""
    fresh = tmp_path / FILE
    write_gallery(fresh)
    shipped = files("airflow_etl_provider.quality").joinpath(FILE).read_text(encoding="utf-8")
    assert json.loads(fresh.read_text(encoding="utf-8")) == json.loads(shipped)


def test_gallery_knows_required_kwargs_and_columns() -> None:
    """The two facts a suite is checked by, on one type that has both kinds."""
    kwargs = read_gallery()["expect_column_values_to_be_in_set"].kwargs
    assert {name for name, kwarg in kwargs.items() if kwarg.required} == {"column", "value_set"}
    assert {name for name, kwarg in kwargs.items() if kwarg.names_columns} == {"column"}
