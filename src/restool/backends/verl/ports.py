"""Ports of this machine that nobody uses. Standard library only: both sides of the environment of verl ask."""

from __future__ import annotations

import socket


def free(count: int) -> list[int]:
    """``count`` different ports that were free on every address a moment ago."""
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports
