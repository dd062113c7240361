"""One node of a Ray over several: started, looked after, and ended with all that it started.

python -m restool.backends.verl.node PYTHON -m ray... start ...    on every node but the first, through ``srun``
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from restool.backends.verl import supervision

# Told to end, Ray waits half a minute for its work to go elsewhere, which is as long as Slurm waits before it kills.
SAYS_GOODBYE_S = 1.0
_LOOK_EVERY_S = 1.0
_PREFIX, _IN_USE = "restool-ray-", "in-use.lock"
_LONGEST = 16  # of a base folder: the paths of Ray's sockets below it may have 107 characters in all


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder of this machine for Ray, short and of this run alone; removed afterwards.

    What a process that was killed (-9) could not remove, the next one here removes.
    """
    usual = tempfile.gettempdir()
    base = Path(usual if len(usual) <= _LONGEST else "/tmp")
    _sweep(base)
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    try:
        with FileLock(path / _IN_USE):
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sweep(base: Path) -> None:
    """Remove the folders whose process is gone: its lock went with it, however it ended. Others' are left alone."""
    for lock in base.glob(f"{_PREFIX}*/{_IN_USE}"):
        with contextlib.suppress(OSError, Timeout), FileLock(lock, timeout=0):
            shutil.rmtree(lock.parent, ignore_errors=True)


def started(
    command: list[str], temporary: Path, environment: Mapping[str, str], log: Path | None = None
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """``command`` (`ray start`) with its folder; see `supervision.started`."""
    whole = [*command, f"--temp-dir={temporary}"]
    return supervision.started(whole, environment, log, says_goodbye_s=SAYS_GOODBYE_S)


def main(command: list[str]) -> int:
    """Run ``command`` until it ends, until this process is told to, or until whoever started it is gone.

    The last is what the end of the input says: ``srun`` hands it on; told to end, it would kill the step at once.
    """
    with (
        supervision.leaving_on_sigterm(),
        folder() as temporary,
        started(command, temporary, os.environ) as process,
    ):
        while process.poll() is None:
            if select.select([0], [], [], _LOOK_EVERY_S)[0] and not os.read(0, 4096):
                return 0
        return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
