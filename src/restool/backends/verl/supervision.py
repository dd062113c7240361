"""A program that is looked after: it ends when this process does, and when it no longer gets on; nothing of it stays.

verl waits for ever for a worker that failed while it took new weights, and vLLM says every minute that it waits. So a
line of a log counts as progress only if it says something new.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from restool.core.errors import RunError

MARK = "RESTOOL_BELONGS_TO"  # in the environment of the program and of all that it starts, wherever these move to
_SAYS_GOODBYE_S = 30.0
_NUMBERS = re.compile(r"\b(?=\w*\d)[\da-fA-F.:x-]+\b|\d+")


@contextmanager
def started(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path | None = None,
    *,
    listens: bool = False,
    says_goodbye_s: float | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` in a process group of its own, its output behind that in ``log``; end all of it afterwards.

    Without ``log`` its output is that of this process. ``listens``: its input ends when this process does or wants it
    to, and it ends then; any other is killed when this process is. ``says_goodbye_s``: how long it may take to end by
    itself when it is told to (default: half a minute).
    """
    name = uuid.uuid4().hex
    with log.open("ab") if log else contextlib.nullcontext() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if listens else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if log else None,
            env={**environment, MARK: name},
            start_new_session=True,
            preexec_fn=None if listens else end_with_parent,
        )
    try:
        yield process
    finally:
        _end(process, _SAYS_GOODBYE_S if says_goodbye_s is None else says_goodbye_s)
        _sweep(name)


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Whoever is told to end (scancel, a time limit) ends what it started first; once is enough to be told."""

    def leave(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stall:
    """Raises RunError when nothing new has been heard for ``minutes``. ``log`` is read from where it ends now."""

    def __init__(self, log: Path, minutes: float, clock: Callable[[], float] = time.monotonic):
        self._log, self._minutes, self._clock = log, minutes, clock
        self._place = log.stat().st_size if log.exists() else 0
        self._known: set[int] = set()  # hashes: logs of long runs are long
        self._steps, self._heard = -1, clock()

    def check(self, steps: int) -> None:
        """``steps``: how many steps of the run are done; call it every few seconds."""
        if self._says_something_new() or steps != self._steps:
            self._steps, self._heard = steps, self._clock()
        if self._clock() - self._heard > 60 * self._minutes:
            raise RunError(
                f"verl neither finished a step nor said anything new for {self._minutes:g} minutes "
                f"(backend.verl.stall_minutes) and was ended; the same command goes on from the last checkpoint "
                f"(its output: {self._log})"
            )

    def _says_something_new(self) -> bool:
        """Whether whole lines have come that differ from all before in more than numbers."""
        with self._log.open("rb") as log:
            log.seek(self._place)
            new = log.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._place += len(whole)
        found = {hash(_NUMBERS.sub("#", line)) for line in whole.decode(errors="replace").splitlines()}
        is_new = not found <= self._known
        self._known |= found
        return is_new


def _end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    if process.stdin:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    if process.poll() is None:
        process.terminate()  # Ray stops its processes on this
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _sweep(name: str) -> None:
    """Kill what carries the mark: Ray's workers have sessions of their own, and outlive a driver that was killed."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == name:
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=10)


def end_with_parent() -> None:
    """In the child: die when the parent does, however it dies; two runs in one directory would spoil it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
