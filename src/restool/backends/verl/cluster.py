"""Ray over the nodes of a Slurm allocation: started inside it, ended with it.

A run on one node needs nothing of this: verl starts Ray itself. On several nodes the job runs this program on one of
them, which starts Ray's head here and a node of Ray on each of the others through ``srun``. Slurm is asked which nodes
these are: a job step, as Snakemake's jobs are, knows of its own only. Ports are free ones, and every node's folder is
its own, so that several runs, and several nodes on one machine, are not in each other's way.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from restool import costs
from restool.backends.verl import cpu_only, node, ports, supervision
from restool.backends.verl.configuration import verl
from restool.core.errors import RunError
from restool.settings import RunSettings

_WAIT_S = 600.0
_ANSWER_S = 60.0
_STARTED = b"Ray runtime started."  # what `ray start` says once its node is known to the head
# Of a job's variables: how it is called, and where Slurm is. The others say what its steps ask for by default.
_KEPT = {"SLURM_JOB_ID", "SLURM_CONF"}


@contextmanager
def ray(
    settings: RunSettings, python: Path, environment: Mapping[str, str], log: Path, report: Callable[[str], None]
) -> Iterator[str | None]:
    """The address of a running Ray over the nodes that the settings ask for; None for one, where verl starts its own.

    ``environment``: the variables of the program, which all of Ray's processes inherit. ``log``: where Ray's output
    goes.
    """
    nodes = verl(settings).nodes
    if nodes == 1:
        yield None
        return
    others = _other_nodes(nodes)
    port, unused = ports.free(2)
    address = f"{_address_facing(others[0])}:{port}"
    begin = log.stat().st_size if log.exists() else 0
    with node.folder() as temporary:
        head = head_command(python, address, unused, settings)
        with node.started(head, temporary, environment, log) as first:
            _wait(log, begin, 1, [first])
            rest = others_command(python, address, others, settings)
            with supervision.started(rest, _of_srun(environment), log, listens=True) as second:
                _wait(log, begin, nodes, [first, second])
                report(f"Ray runs on {nodes} nodes: its head {address} here, the others on {', '.join(others)}")
                yield address


def head_command(python: Path, address: str, client_port: int, settings: RunSettings) -> list[str]:
    """Ray's head on this node. ``client_port``: of a server that nobody uses, but whose default port may be taken."""
    host, port = address.split(":")
    place = [f"--node-ip-address={host}", f"--port={port}", f"--ray-client-server-port={client_port}"]
    return [*_start(python), "--head", *place, "--include-dashboard=false", *_options(settings)]


def others_command(python: Path, address: str, others: list[str], settings: RunSettings) -> list[str]:
    """A node of Ray on each of the ``others``, with all that the job has there: one step of the job."""
    count = len(others)
    step = ["srun", "--overlap", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"]
    step += [f"--nodelist={','.join(others)}", "--mem=0", "--cpu-bind=quiet,none", "--kill-on-bad-exit=1"]
    start = [*_start(python), f"--address={address}", *_options(settings)]
    return [*step, sys.executable, "-m", node.__name__, *start]


def _start(python: Path) -> list[str]:
    """The command ``ray start``, whose script says where the environment was built, which may have moved since."""
    return [str(python), "-m", "ray.scripts.scripts", "start"]


def _options(settings: RunSettings) -> list[str]:
    """What holds for every node. Workers take free ports: Ray's own range is the same for two nodes on one machine."""
    devices = verl(settings).gpus_per_node
    given = {"num_cpus": costs.THREADS_PER_GPU * devices}
    if settings.backend.device == "cpu":
        given = cpu_only.RAY
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in {**given, "num_gpus": devices}.items()]
    return [*sizes, "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats", "--block"]


def _other_nodes(wanted: int) -> list[str]:
    """The nodes of this job besides this one, as Slurm calls them; RunError if there are fewer than asked for."""
    job = os.environ.get("SLURM_JOB_ID")
    names = _ask("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip() if job else ""
    nodes = _ask("scontrol", "show", "hostnames", names).split() if names else []
    if len(nodes) < wanted:
        raise RunError(f"backend.verl.nodes={wanted}, but this job has {len(nodes) or 1}; use --profile slurm")
    here = os.environ.get("SLURMD_NODENAME")
    if here not in nodes:  # as in the shell of `salloc`
        raise RunError(f"this machine is none of the job's nodes ({', '.join(nodes)}): start it there, with srun -n1")
    return [name for name in nodes if name != here][: wanted - 1]


def _address_facing(other: str) -> str:
    """This machine's address on the way to node ``other``: it may have several, and its name may mean none of them."""
    found = re.search(r"\bNodeAddr=(\S+)", _ask("scontrol", "--oneliner", "show", "node", other))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
            probe.connect((found[1] if found else other, 9))
            return probe.getsockname()[0]
    except OSError as error:
        raise RunError(f"no way to node {other} from here: {error}") from error


def _ask(*command: str) -> str:
    """What a client of Slurm says."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise RunError(f"{command[0]} does not say which nodes this job has: {' '.join(str(said).split())}") from error
    return done.stdout


def _of_srun(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for a step that asks for what its command line says and nothing else."""
    return {key: value for key, value in environment.items() if key in _KEPT or not key.startswith(("SLURM_", "SRUN_"))}


def _wait(log: Path, begin: int, nodes: int, processes: list[subprocess.Popen[bytes]]) -> None:
    """Until so many nodes have said, in ``log`` from ``begin`` on, that they are there."""
    deadline = time.monotonic() + _WAIT_S
    said = b""
    while time.monotonic() < deadline:
        ended = any(process.poll() is not None for process in processes)
        with log.open("rb") as file:
            file.seek(begin)
            said = file.read()
        if said.count(_STARTED) >= nodes and not ended:
            return
        if ended:
            break
        time.sleep(0.5)
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip(" -")]
    cause = lines[-1][-200:] if lines else "it printed nothing"
    raise RunError(f"Ray came up on {said.count(_STARTED)} of {nodes} nodes: {cause} (all of its output: {log})")
