"""What Slurm is asked beside Snakemake's plugin: what a killed call left in the queue, and whether it keeps accounts.

Standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

PREFIX = "restool_"  # of job names: slurm-jobname-prefix in profiles/slurm
LOGS = Path("results") / ".slurm-logs"  # slurm-logdir there: exists once something was submitted
PATIENCE_SECONDS = 90  # a job that does not stop by itself is killed after Slurm's KillWait, 30 s by default
TIMEOUT_SECONDS = 60
SHORTEST_MEMORY_SECONDS = 300  # the plugin looks every three minutes at most
_FIELDS = "%i|%u|%j|%Z"


class Unknown(Exception):
    """Slurm does not answer, or the jobs do not end; the message says what to do."""


def is_used(arguments: list[str]) -> bool:
    """Whether these arguments of Snakemake, or its environment, name Slurm as the place where jobs run."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    named = [value for flag, value in pairs if flag in ("--profile", "--executor", "-e")]
    named += [a.split("=", 1)[1] for a in arguments if a.startswith(("--profile=", "--executor="))]
    named.append(os.environ.get("SNAKEMAKE_PROFILE", ""))
    return any(os.path.basename(name.rstrip("/")) == "slurm" for name in named)


def status_flags(arguments: list[str]) -> list[str]:
    """What to add to a call of Snakemake on a cluster that keeps no accounts.

    The plugin asks `sacct` how jobs are doing wherever that program is installed, and would wait for ever where it has
    nothing to say. Raises Unknown if `squeue` cannot tell either, because it forgets finished jobs too soon.
    """
    if any(a.startswith("--slurm-status-command") for a in arguments) or shutil.which("squeue") is None:
        return []
    try:
        _ask("sacct", "--noheader", "--allocations")
        return []
    except Unknown:
        pass
    kept = re.search(r"^MinJobAge\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    if kept is None or int(kept[1]) < SHORTEST_MEMORY_SECONDS:
        raise Unknown(
            f"this cluster keeps no accounts (sacct fails) and forgets finished jobs too soon; ask its administrator "
            f"for slurmdbd, or for MinJobAge of at least {SHORTEST_MEMORY_SECONDS} in slurm.conf"
        )
    return ["--slurm-status-command", "squeue"]


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
