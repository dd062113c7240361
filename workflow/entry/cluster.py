"""What a killed call left in a Slurm queue: found by name and folder, stopped before anything new is submitted.

Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

PREFIX = "restool_"  # of job names: slurm-jobname-prefix in profiles/slurm
LOGS = Path("results") / ".slurm-logs"  # slurm-logdir there: exists once something was submitted
PATIENCE_SECONDS = 90  # a job that does not stop by itself is killed after Slurm's KillWait, 30 s by default
TIMEOUT_SECONDS = 60
_FIELDS = "%i|%u|%j|%Z"


class Unknown(Exception):
    """Slurm does not answer, or the jobs do not end; the message says what to do."""


def stop_leftovers(folder: Path) -> list[str]:
    """Cancel the jobs that an earlier call submitted from ``folder`` and wait until they are gone; returns their ids.

    Only for the holder of the folder's lock: then whatever still runs belongs to a call that was killed.
    """
    if not (folder / LOGS).is_dir() or shutil.which("squeue") is None:
        return []
    found = leftovers(folder)
    if found:
        print(f"Cancelling {len(found)} Slurm job(s) that an earlier, killed call left: {', '.join(found)}", flush=True)
        _ask("scancel", *found)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := leftovers(folder):
            if time.monotonic() > deadline:
                raise Unknown(f"Slurm jobs of an earlier call do not end: {', '.join(left)}; try again when they have")
            time.sleep(0.5)
    return found


def leftovers(folder: Path) -> list[str]:
    """Ids of the jobs in Slurm's queue that restool submitted from ``folder``, ending ones included."""
    here = os.path.realpath(folder)
    rows = (line.strip().split("|", 3) for line in _ask("squeue", "--noheader", "--format", _FIELDS).splitlines())
    return [row[0] for row in rows if len(row) == 4 and row[2].startswith(PREFIX) and os.path.realpath(row[3]) == here]


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unknown(f"{command[0]} does not answer ({error}); try again when Slurm does") from None
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise Unknown(f"{command[0]} failed ({reason}); an earlier call may have left jobs running: try again later")
    return done.stdout
