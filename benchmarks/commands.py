"""A whole command, and what it took."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(
    command: list[str], *, folder: Path | None = None, environment: dict[str, str] | None = None
) -> tuple[str, float, resource.struct_rusage]:
    """What it said, wall seconds, and what it and its children used; ends this program if it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        said.seek(0)
        output = said.read()
    if status:
        sys.exit(output)
    return output, wall, usage
