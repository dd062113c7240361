"""Programs from Debian's packages that slow tests need and a machine may lack."""

from __future__ import annotations

import os
import shutil
import subprocess


def install(*packages: str) -> str | None:
    """Install packages without asking. Returns why that cannot be, in one line, or None."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return f"installing {' '.join(packages)} needs root and apt-get"
    quietly = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True, "text": True}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", *command], timeout=900, **quietly)
    said = " ".join(done.stderr.split())[-200:]
    return f"apt-get could not install {' '.join(packages)}: {said}" if done.returncode else None
