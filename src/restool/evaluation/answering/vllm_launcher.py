"""Runs inside an environment that has vLLM: its server, which ends when the process that started it does.

    python vllm_launcher.py PARENT --model ... --port ...

Standard library only until vLLM itself is imported; nothing of restool is there.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when ``parent`` is gone, also if it was killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before the request was made
        sys.exit(1)


if __name__ == "__main__":
    die_with(int(sys.argv.pop(1)))
    # The folder of this file would come first on the path, and modules here are named like libraries.
    sys.path.pop(0)
    # The module, not the `vllm serve` command: that one asks for a distribution named "vllm", and the CPU builds
    # have another name.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
