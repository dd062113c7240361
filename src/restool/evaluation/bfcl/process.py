"""The fenced worker as a process: started, spoken to in JSON lines, killed."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from restool.core.errors import EvaluationError

WORKER = Path(__file__).parent / "fenced" / "worker.py"


class WorkerProcess:
    """One running worker in an empty folder of its own. ``description``: what it says about itself on starting.

    Raises `EvaluationError` if it does not start within ``start_seconds``.
    """

    def __init__(self, python: Path, options: dict[str, Any], start_seconds: float):
        self._directory = tempfile.TemporaryDirectory(prefix="restool-bfcl-", ignore_cleanup_errors=True)
        here = Path(self._directory.name)
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC", "HOME": str(here)}
        (here / "empty").mkdir()
        with open(here / "stderr", "wb") as stderr:
            self._process = subprocess.Popen(
                [python, "-I", "-B", WORKER, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=here / "empty",
                env={**environment, "BFCL_PROJECT_ROOT": str(here / "project")},
                start_new_session=True,
            )
        self._buffer = b""
        line = self._read_line(start_seconds)
        if not line:
            message = _last_line(here / "stderr")
            self.kill()
            raise EvaluationError(f"bfcl: the checker does not start: {message}")
        self.description: dict[str, Any] = json.loads(line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def exchange(self, requests: list[dict[str, Any]], seconds: float) -> tuple[list[dict[str, Any]], str | None]:
        """(replies, None), one for each request; if the worker ended or took longer than ``seconds`` over one of
        them, (replies to those before it, ``"time"`` or ``"crash"``), and this process is to be killed."""
        assert self._process.stdin is not None
        replies: list[dict[str, Any]] = []
        try:
            self._process.stdin.write(json.dumps(requests).encode() + b"\n")
            self._process.stdin.flush()
            while len(replies) < len(requests) and (line := self._read_line(seconds)):
                replies.append(json.loads(line))
        except BrokenPipeError:
            pass
        return replies, None if len(replies) == len(requests) else self._how_it_ended()

    def close(self) -> None:
        """Hang up, wait a little, kill what is left."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2.0)
        self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        self._directory.cleanup()

    def _read_line(self, seconds: float) -> bytes:
        """The next line of the worker, or b"" if it closed its output or took longer than ``seconds``."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        pieces = [self._buffer]
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in pieces[-1]:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return b""
                piece = os.read(self._process.stdout.fileno(), 1 << 20)
                if not piece:
                    return b""
                pieces.append(piece)
        line, _, self._buffer = b"".join(pieces).partition(b"\n")
        return line

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(timeout=1.0)  # it closed its output, so it is about to be gone
        except subprocess.TimeoutExpired:
            return "time"
        return "time" if status == -signal.SIGPROF else "crash"


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
