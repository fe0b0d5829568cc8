"""Where servers under test keep their data: in memory where there is room, since most of what they do is to make files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_MEMORY = Path("/dev/shm")
_NEEDED = 6 * 1024**3
_PREFIX = "airflow-etl-tests-"


@contextmanager
def server_folder(otherwise: Path) -> Iterator[Path]:
    """A folder for a server, gone with the block; *otherwise* where there is little memory."""
    if not _has_room():
        yield otherwise
        return
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_MEMORY))
    # Run as root, the server has a user of its own.
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _has_room() -> bool:
    return (
        _MEMORY.is_mount()
        and shutil.disk_usage(_MEMORY).free > _NEEDED
        and psutil.virtual_memory().available > _NEEDED
    )


def _sweep() -> None:
    """Remove what runs left behind that were killed."""
    for folder in _MEMORY.glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
