"""Folders for servers that need not outlast the tests, in memory where there is room for them.

The servers of the tests make and drop thousands of databases, which costs a disk several times what it costs memory.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

_MEMORY = Path("/dev/shm")
_PREFIX = "airflow_etl_tests_"
_LOCK = "in_use"
#: A whole run writes about four.
_ENOUGH_BYTES = 8 << 30


def scratch(what: str) -> Path:
    """A new folder that every account may enter, and that is gone when this process ends."""
    where = _MEMORY if _has_room() else Path(tempfile.gettempdir())
    _remove_leftovers(where)
    made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{what}_", dir=where))
    made.chmod(0o755)
    held = (made / _LOCK).open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    atexit.register(_remove, made, os.getpid(), held)
    return made


def _has_room() -> bool:
    return (
        os.access(_MEMORY, os.W_OK)
        and shutil.disk_usage(_MEMORY).free > _ENOUGH_BYTES
        and psutil.virtual_memory().available > 2 * _ENOUGH_BYTES
    )


def _remove_leftovers(where: Path) -> None:
    """Those of runs that were killed: nobody holds their locks any more."""
    for lock in where.glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError), lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


def _remove(folder: Path, owner: int, held: IO[str]) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
        held.close()
