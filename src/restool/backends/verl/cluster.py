"""Ray over the nodes of a Slurm allocation: started inside it, ended with it.

A run on one node needs nothing of this: verl starts Ray itself. On several nodes the job runs this program on the first
of them, which starts Ray's head here and a worker on every other node through ``srun``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from restool.core.errors import RunError
from restool.settings import VerlSettings

_PORT = 6379
_WAIT_S = 300.0


@contextmanager
def ray(chosen: VerlSettings, python: Path, report: Callable[[str], None]) -> Iterator[str | None]:
    """The address of a running Ray over ``chosen.nodes`` nodes; None on one node, where verl starts its own."""
    if chosen.nodes == 1:
        yield None
        return
    allocated = int(os.environ.get("SLURM_JOB_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
    if allocated < chosen.nodes:
        raise RunError(f"backend.verl.nodes={chosen.nodes}, but this job has {allocated}; use --profile slurm")
    program = str(python.parent / "ray")
    address = f"{socket.gethostbyname(socket.gethostname())}:{_PORT}"
    head, workers = commands(program, address, chosen)
    processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in (head, workers)]
    try:
        _wait(program, address, chosen.nodes, processes)
        report(f"Ray runs on {chosen.nodes} nodes, head {address}")
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(60)


def commands(program: str, address: str, chosen: VerlSettings) -> tuple[list[str], list[str]]:
    """The two commands: Ray's head on this node, and its workers on all other nodes of the allocation."""
    count = [f"--num-gpus={chosen.gpus_per_node}", "--disable-usage-stats", "--block"]
    host, port = address.split(":")
    head = [program, "start", "--head", f"--node-ip-address={host}", f"--port={port}", *count]
    others = str(chosen.nodes - 1)
    step = ["srun", "--overlap", f"--nodes={others}", f"--ntasks={others}", "--ntasks-per-node=1"]
    step += [f"--gpus-per-node={chosen.gpus_per_node}", f"--exclude={socket.gethostname().partition('.')[0]}"]
    return head, [*step, program, "start", f"--address={address}", *count]


def _wait(program: str, address: str, nodes: int, processes: list[subprocess.Popen[bytes]]) -> None:
    """Until every node has joined."""
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            break
        status = subprocess.run(
            [program, "status", f"--address={address}"], capture_output=True, text=True, check=False
        )
        if status.stdout.count("node_") >= nodes:
            return
        time.sleep(3)
    raise RunError(f"Ray did not come up on {nodes} nodes within {_WAIT_S:.0f} s (head {address})")
