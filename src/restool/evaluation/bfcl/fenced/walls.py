"""Walls around a process that handles model output with somebody else's code.

First the kernel's (no network, limits on memory, processor time, file size and processes), then an audit hook,
which cannot be removed again and refuses whatever scoring never needs. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import Any

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REFUSED = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.kill",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.setxattr",
    "os.removexattr",
    "os.putenv",
    "os.unsetenv",
    "os.chdir",
    "shutil.",
    "tempfile.",
    "ctypes.",
    "builtins.input",
    "builtins.breakpoint",
    "cpython.run_",
    "pty.spawn",
    "signal.pthread_kill",
    "sys.setprofile",
    "sys.settrace",
    "urllib.",
    "http.",
    "ftplib.",
    "smtplib.",
    "sqlite3.",
    "webbrowser.",
)


class Refused(Exception):
    """The code behind the walls tried something that scoring never needs."""


def cut_network() -> str:
    """Leave this process without any network device; must run before threads start. Returns how.

    ``"namespace"``: an own, empty network namespace. ``"guard"``: the system forbids those, so that only the
    audit hook of :func:`seal` stands between the code and a socket.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
            return "namespace"
    except (OSError, AttributeError):
        pass
    return "guard"


def set_limits(memory_bytes: int, processor_seconds: int, file_bytes: int) -> None:
    """Limits of the whole process; no core dumps, no further processes (root is exempt from the last)."""
    for what, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, processor_seconds),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))


def limit_item(seconds: float) -> None:
    """Kill this process when it has used ``seconds`` of processor time from now on; 0 takes the limit away.

    The default action of SIGPROF ends the process whatever it is doing: a Python-level handler would not run
    inside a long multiplication of huge integers.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def seal(writable: str | None = None) -> None:
    """From now on: no sockets, no processes, no writing (but below ``writable``), no keyboard. Cannot be undone."""

    def is_ours(path: Any) -> bool:
        return bool(writable) and isinstance(path, str) and os.path.realpath(path).startswith(f"{writable}/")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            flags = arguments[2] if len(arguments) > 2 else 0
            if isinstance(flags, int) and flags & _WRITING and not is_ours(arguments[0]):
                raise Refused(f"open for writing: {arguments[0]!r}")
        elif event.startswith(_REFUSED) and not (event in ("os.mkdir", "os.remove") and is_ours(arguments[0])):
            raise Refused(event)

    sys.addaudithook(hook)
