"""Fixed statements, by name, from the ``.sql`` files beside this module."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from psycopg import sql

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def script(name: str) -> str:
    """The whole text of ``sql/<name>.sql``."""
    return files("airflow_etl_provider.postgres").joinpath("sql", f"{name}.sql").read_text("utf-8")


@cache
def queries(name: str) -> dict[str, sql.SQL]:
    """The named statements of ``sql/<name>.sql``; values are ``%(named)s`` parameters."""
    _, *rest = _NAME.split(script(name))
    return {
        # The files are part of this package, so their text is as trusted as this line.
        title: sql.SQL(body.strip())
        for title, body in zip(rest[::2], rest[1::2], strict=True)
    }
