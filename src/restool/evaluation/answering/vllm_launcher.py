"""Runs inside an environment that has vLLM: its server, which ends when the process that started it does.

    python vllm_launcher.py PARENT --model ... --port ...

Two processes: the server, and this one, which waits for it and sees to it that it ends, also where vLLM does not
listen (its server waits for ever for an engine that could not be started). Both are in one process group, of which the
caller makes this one the head. Standard library only until vLLM itself is imported; nothing of restool is there.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PATIENCE = 15
"""Seconds between asking the server to end and killing its group."""


def die_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when ``parent`` is gone, also if it was killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before the request was made
        sys.exit(1)


def wait_for(server: int) -> int:
    """The exit status of ``server``, negative for a signal. SIGTERM goes on to it; what then does not end is killed."""

    def end(*_: object) -> None:
        os.kill(server, signal.SIGTERM)
        signal.alarm(_PATIENCE)

    signal.signal(signal.SIGALRM, lambda *_: os.killpg(0, signal.SIGKILL))
    signal.signal(signal.SIGTERM, end)
    return os.waitstatus_to_exitcode(os.waitpid(server, 0)[1])


def leave(status: int) -> None:
    """End as the server has."""
    if status < 0:
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    die_with(int(sys.argv.pop(1)))
    launcher = os.getpid()
    server = os.fork()
    if server:
        leave(wait_for(server))
    die_with(launcher)
    # The folder of this file would come first on the path, and modules here are named like libraries.
    sys.path.pop(0)
    # The module, not the `vllm serve` command: that one asks for a distribution named "vllm", and the CPU builds
    # have another name.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
