"""Random numbers that need no state: every purpose has its own seed, a function of (run, step) alone."""

from __future__ import annotations

import hashlib


def derived_seed(*parts: int | str) -> int:
    """A seed for one purpose, a function of ``parts`` alone: ``derived_seed(seed, "sampling", step)``."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
