"""One node of a Ray over several: started, looked after, and ended with all that it started.

python -m restool.backends.verl.node PYTHON -m ray... start ...    on every node but the first, through ``srun``
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from restool.backends.verl import supervision

_LONGEST = 16  # of a base folder: the paths of Ray's sockets below it may have 107 characters in all


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder of this machine for Ray, short and of this run alone; removed afterwards."""
    base = tempfile.gettempdir()
    path = Path(tempfile.mkdtemp(prefix="restool-ray-", dir=base if len(base) <= _LONGEST else "/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def main(command: list[str]) -> int:
    """Run ``command`` until it ends or this process is told to; the exit status is its own."""
    with (
        supervision.leaving_on_sigterm(),
        folder() as temporary,
        supervision.started([*command, f"--temp-dir={temporary}"], os.environ) as process,
    ):
        return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
