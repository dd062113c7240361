"""The client of the fenced worker: the only way in which this package asks BFCL's code anything.

One process per `Checker`, so nothing is left over from one checkpoint to the next. An answer that hangs, crashes
or exhausts the worker costs its own score: the worker is killed, another is started, the next answer is checked.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restool import environments
from restool.core.errors import EvaluationError
from restool.evaluation.bfcl.fenced.decoding import TEXT_CAP, clean

WORKER = Path(__file__).parent / "fenced" / "worker.py"


@dataclass(frozen=True)
class Limits:
    """What one worker may use. The time of an item is processor time, so that a busy machine changes no score;
    ``wall_seconds`` is for what waits without computing."""

    item_seconds: float = 2.0
    wall_seconds: float = 60.0
    start_seconds: float = 120.0
    memory_bytes: int = 1 << 30
    processor_seconds: int = 900
    file_bytes: int = 1 << 20


class Checker:
    """``with Checker(categories) as checker: checker.check(category, id, text)``.

    ``folder``: a directory of our own files in BFCL's format (``<category>.jsonl``, ``possible_answer/``) instead
    of the package's data. Raises `ToolEnvironmentError` if the ``bfcl`` environment is not built.
    """

    def __init__(self, categories: list[str], *, folder: Path | None = None, limits: Limits | None = None):
        self.categories = list(categories)
        self.folder = folder
        self.limits = limits or Limits()
        self.restarts = -1
        self.description: dict[str, Any] = {}
        self._python = environments.python("bfcl")
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._buffer = b""

    def __enter__(self) -> Checker:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def entries(self, category: str) -> list[dict[str, Any]]:
        """The category's entries as shown to models: id, question, function."""
        reply = self._ask({"op": "entries", "category": category}, self.limits.start_seconds)
        if "entries" not in reply:
            raise EvaluationError(f"bfcl: cannot read category '{category}': {reply.get('error') or reply['failure']}")
        return reply["entries"]

    def check(self, category: str, entry: str, text: str) -> dict[str, Any]:
        """The verdict on one answer: ``correct``, ``error_type``, ``error``, ``calls``, ``unreadable``, ``capped``.

        ``failure`` (``time``, ``memory``, ``nesting``, ``refused``, ``crash`` or ``checker_error``) is set when
        the answer broke the checker; it is then wrong, and the reason is its error type.
        """
        request = {"op": "check", "category": category, "id": entry, "text": clean(text[: TEXT_CAP + 1])}
        reply = self._ask(request, self.limits.wall_seconds)
        if reply.get("failure") == "crash":  # perhaps not this answer's doing: an answer that crashes does so again
            reply = self._ask(request, self.limits.wall_seconds)
        if "failure" not in reply:
            return {**reply, "failure": None}
        error_type = f"failure:{reply['failure']}"
        unknown = {"correct": False, "error": reply.get("error"), "calls": None, "unreadable": True, "capped": False}
        return {**unknown, "error_type": error_type, "failure": reply["failure"]}

    def fence(self) -> dict[str, Any]:
        """What stood between the answers and this machine, for the summary."""
        kinds = {"namespace": "own empty network namespace", "guard": "audit hook only (namespaces not permitted)"}
        limits = self.limits
        return {
            "network": kinds[self.description["network"]],
            "memory_bytes": limits.memory_bytes,
            "item_processor_seconds": limits.item_seconds,
            "text_cap": TEXT_CAP,
            "restarts": self.restarts,
        }

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """One request, one reply; a worker that dies or hangs is replaced and the request counts as failed."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._read_line(seconds)
        except BrokenPipeError:
            line = b""
        if line:
            return json.loads(line)
        status = self._kill()
        self._start()
        return {"failure": "time" if status in (None, -signal.SIGPROF) else "crash"}

    def _start(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="restool-bfcl-", ignore_cleanup_errors=True)
        here = Path(self._directory.name)
        options = {
            "categories": self.categories,
            "folder": str(self.folder.resolve()) if self.folder else None,
            "item_seconds": self.limits.item_seconds,
            "memory_bytes": self.limits.memory_bytes,
            "processor_seconds": self.limits.processor_seconds,
            "file_bytes": self.limits.file_bytes,
        }
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC", "HOME": str(here)}
        (here / "empty").mkdir()
        with open(here / "stderr", "wb") as stderr:
            self._process = subprocess.Popen(
                [self._python, "-I", "-B", WORKER, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=here / "empty",
                env={**environment, "BFCL_PROJECT_ROOT": str(here / "project")},
                start_new_session=True,
            )
        self._buffer = b""
        self.restarts += 1
        line = self._read_line(self.limits.start_seconds)
        if not line:
            self._kill_process()
            raise EvaluationError(f"bfcl: the checker does not start: {_last_line(here / 'stderr')}")
        self.description = json.loads(line)

    def _read_line(self, seconds: float) -> bytes:
        """The next line of the worker, or b"" if it closed its output or took longer than ``seconds``."""
        assert self._process is not None
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

    def _kill(self) -> int | None:
        """End the worker; its status if it had ended by itself, None if it had to be killed."""
        assert self._process is not None
        try:
            status = self._process.wait(timeout=1.0)  # it closed its output, so it is about to be gone
        except subprocess.TimeoutExpired:
            status = None
        self._kill_process()
        return status

    def _kill_process(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]
        if self._directory is not None:
            self._directory.cleanup()

    def _stop(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2.0)
        self._kill_process()


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
