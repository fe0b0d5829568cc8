"""Folders for servers that need not outlast the tests, in memory where there is room for them.

The servers of the tests make and drop thousands of databases, which costs a disk several times what it costs memory.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import psutil

_MEMORY = Path("/dev/shm")
_PREFIX = "airflow_etl_tests_"
#: A whole run writes about four.
_ENOUGH_BYTES = 8 << 30


def scratch(what: str) -> Path:
    """A new folder that every account may enter, and that is gone when this process ends."""
    where = _MEMORY if _has_room() else Path(tempfile.gettempdir())
    _remove_leftovers(where)
    made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}_{what}_", dir=where))
    made.chmod(0o755)
    atexit.register(_remove, made, os.getpid())
    return made


def _has_room() -> bool:
    return (
        os.access(_MEMORY, os.W_OK)
        and shutil.disk_usage(_MEMORY).free > _ENOUGH_BYTES
        and psutil.virtual_memory().available > 2 * _ENOUGH_BYTES
    )


def _remove_leftovers(where: Path) -> None:
    """Those of runs that were killed."""
    for left in where.glob(f"{_PREFIX}*_*_*"):
        owner = left.name.removeprefix(_PREFIX).partition("_")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
