"""The secrets of ``docker-compose.yaml``, drawn on the machine that runs it."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path


def draw() -> dict[str, str]:
    """A value for every secret that the compose file requires."""
    return {
        "POSTGRES_PASSWORD": secrets.token_hex(24),
        "AIRFLOW_API_SECRET_KEY": secrets.token_urlsafe(48),
        "AIRFLOW_FERNET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "AIRFLOW_JWT_SECRET": secrets.token_urlsafe(48),
    }


def write(path: Path) -> bool:
    """Write the secrets to *path*, readable by its owner only; an existing file is kept."""
    if path.exists():
        return False
    lines = [f"{name}={value}\n" for name, value in draw().items()]
    path.touch(mode=0o600)
    path.write_text("".join(lines))
    return True
