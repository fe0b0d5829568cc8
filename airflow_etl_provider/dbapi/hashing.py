"""Keyed hashes of personal values: HMAC-SHA-256 (RFC 2104) of a value's UTF-8 text, in lower-case hexadecimal.

Equal keys give equal hashes whichever database computes them, for every value of which the databases
write the same text: text itself, integers, dates and bytes (``\\x`` and hexadecimal). What they write in
different ways, such as fractions and times, is hashed as the source writes it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

_BLOCK = 64


def pads(key: str) -> tuple[bytes, bytes]:
    """The inner and the outer pad of *key*, for databases that have SHA-256 but no HMAC."""
    raw = key.encode()
    if len(raw) > _BLOCK:
        raw = hashlib.sha256(raw).digest()
    padded = raw.ljust(_BLOCK, b"\0")
    return bytes(byte ^ 0x36 for byte in padded), bytes(byte ^ 0x5C for byte in padded)


def hasher(key: str) -> Callable[[Any], str | None]:
    """The hash of one value, for databases that call Python: ``None`` stays ``None``."""
    keyed = hmac.new(key.encode(), digestmod=hashlib.sha256)

    def hashed(value: Any) -> str | None:
        if value is None:
            return None
        text = f"\\x{value.hex()}" if isinstance(value, bytes) else str(value)
        found = keyed.copy()
        found.update(text.encode())
        return found.hexdigest()

    return hashed
