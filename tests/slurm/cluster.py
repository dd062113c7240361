"""A real Slurm on this machine for the tests: one controller, nodes with two fake GPUs each, no accounting.

Two nodes are there for what may happen to them, two in a partition of their own for what must be left alone meanwhile.

    python tests/slurm/cluster.py install | up | down        (root, on Debian)

Debian's slurmd may run several times on one host. The configuration lies in /etc/slurm, because the jobs of Snakemake's
plugin drop SLURM_CONF; a configuration there that is not ours is left alone. Every call of a client has a time limit:
without a controller they hang for minutes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import debian

FOLDER = Path("/etc/slurm")
STATE = FOLDER / "restool-tests"
MARK = "# written by restool's tests"
PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"]
PROGRAMS = ["slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "munged"]
PARTITIONS = {"cpus": ["n1", "n2"], "gpus": ["n1", "n2"], "apart": ["n3", "n4"]}
NODES = sorted({node for nodes in PARTITIONS.values() for node in nodes})
GPUS, CPUS, MEMORY_MB = 2, 4, 6000
PORT = 16817
# The command that people give, what they write about this cluster, and how often Snakemake looks after its jobs here.
COMMAND = ["snakemake", "--cores", "all", "--profile", "slurm"]
SITE = "partition: cpus\ngpu_partition: gpus\ngpu_model: h200\n"
SOON = ["--slurm-init-seconds-before-status-checks", "3"]


def install() -> str | None:
    """Install Slurm if it is not there. Returns why none can be started here, or None."""
    if any(_program(name) is None for name in PROGRAMS) and (problem := debian.install(*PACKAGES)):
        return problem
    return missing()


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    lacking = [name for name in PROGRAMS if _program(name) is None]
    if lacking:
        return f"Slurm is not installed ({', '.join(lacking)}): apt-get install {' '.join(PACKAGES)}"
    if os.geteuid() != 0:
        return "starting a Slurm needs root"
    if (FOLDER / "slurm.conf").exists() and MARK not in (FOLDER / "slurm.conf").read_text():
        return f"{FOLDER}/slurm.conf belongs to another Slurm"
    return None


def up(memory_mb: int = MEMORY_MB) -> None:
    """Start the cluster afresh, with nodes that say they have so much memory, and wait until both are idle."""
    down()
    _write_files(memory_mb)
    munge = [f"--{name}={STATE}/munge/{value}" for name, value in MUNGE.items()]
    _run(_program("munged"), "--force", *munge)
    start_controller()
    for node in NODES:
        start_node(node)
    wait_for(lambda: set(ask("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()) == set(NODES), "idle nodes")


def down() -> None:
    """Stop every daemon by its pid file, with the jobs that it runs, and remove what was written."""
    if STATE.exists():
        if (STATE / "ctld.pid").exists():
            with contextlib.suppress(subprocess.SubprocessError):
                ask("scancel", "--user=root")
                time.sleep(1)
        for file in sorted(STATE.glob("*.pid"), reverse=True):
            stop(file)
        stop(STATE / "munge" / "pid")
        shutil.rmtree(STATE, ignore_errors=True)
    for name in ("slurm.conf", "gres.conf"):
        path = FOLDER / name
        if path.exists() and MARK in path.read_text():
            path.unlink()


def start_controller() -> None:
    _run(_program("slurmctld"))


def stop_controller() -> None:
    stop(STATE / "ctld.pid")


def start_node(name: str) -> None:
    _run(_program("slurmd"), "-N", name)


def kill_node(name: str) -> None:
    """As if its power had gone: the daemon and all that runs in its jobs."""
    stop(STATE / f"slurmd.{name}.pid", signal.SIGKILL)
    for pid in _steps_of(name):
        _kill(pid, signal.SIGKILL)
    ask("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=test")


def revive_node(name: str) -> None:
    start_node(name)

    def is_back() -> bool:
        with contextlib.suppress(subprocess.CalledProcessError):  # refused where it came back by itself
            ask("scontrol", "update", f"NodeName={name}", "State=RESUME")
        return not ask("sinfo", "-h", "-n", name, "-o", "%t").startswith(("down", "drain"))

    wait_for(is_back, f"node {name}")


def pause_jobs(word: str) -> None:
    """Stop the processes of jobs in whose command ``word`` occurs, as if they had become very slow."""
    for node in NODES:
        for pid in _steps_of(node):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if word.encode() in command:
                    _kill(pid, signal.SIGSTOP)


def ask(*command: str) -> str:
    """What a client says; a minute at most."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def jobs() -> list[str]:
    """``id|name|state|node|comment`` of every job that is not over, those apart left out."""
    states, partitions = "PENDING,RUNNING,COMPLETING", "cpus,gpus"
    return ask("squeue", "-h", "-o", "%i|%j|%T|%N|%k", "-t", states, "-p", partitions).splitlines()


def wait_for(condition, what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(subprocess.SubprocessError):
            if condition():
                return
        assert time.monotonic() < deadline, f"no {what} after {seconds} s"
        time.sleep(0.2)


def stop(pid_file: Path, kind: signal.Signals = signal.SIGTERM) -> None:
    """End the daemon that wrote the file and wait until it is gone."""
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    _kill(pid, kind)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            _kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    pid_file.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------ parts

MUNGE = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
CONFIGURATION = """{mark}
ClusterName=restool
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
SlurmctldPidFile={state}/ctld.pid
SlurmdPidFile={state}/slurmd.%n.pid
SlurmdSpoolDir={state}/spool/%n
StateSaveLocation={state}/saved
SlurmctldLogFile={state}/ctld.log
SlurmdLogFile={state}/slurmd.%n.log
AuthType=auth/munge
AuthInfo=socket={state}/munge/sock,cred_expire=20
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
KillWait=2
OverTimeLimit=0
MinJobAge=86400
SlurmdTimeout=30
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
"""


def _write_files(memory_mb: int) -> None:
    for folder in ("munge", "saved", *(f"spool/{node}" for node in NODES)):
        (STATE / folder).mkdir(parents=True, exist_ok=True)
    STATE.chmod(0o755)
    (STATE / "munge").chmod(0o711)
    key = STATE / "munge" / "key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(1024))
    host = socket.gethostname()
    lines = [CONFIGURATION.format(mark=MARK, host=host, port=PORT, state=STATE)]
    devices = [MARK]
    for number, node in enumerate(NODES, 1):
        place = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={PORT + number}"
        size = f"CPUs={CPUS} RealMemory={memory_mb} Gres=gpu:h200:{GPUS}"
        lines.append(f"NodeName={node} {place} {size} State=UNKNOWN")
        for device in range(GPUS):  # only a character device makes Slurm set CUDA_VISIBLE_DEVICES
            os.mknod(STATE / f"{node}-gpu{device}", 0o020666, os.makedev(1, 3))
        devices.append(f"NodeName={node} Name=gpu Type=h200 File={STATE}/{node}-gpu[0-{GPUS - 1}]")
    for number, (partition, nodes) in enumerate(PARTITIONS.items()):
        default = "NO" if number else "YES"
        lines.append(f"PartitionName={partition} Nodes={','.join(nodes)} Default={default} MaxTime=600 State=UP")
    (FOLDER / "gres.conf").write_text("\n".join(devices) + "\n")
    (FOLDER / "slurm.conf").write_text("\n".join(lines) + "\n")


def _steps_of(node: str) -> list[int]:
    """slurmstepd processes of a node, and all that they started."""
    parents: dict[int, list[int]] = {}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            name, rest = (folder / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            parents.setdefault(int(rest.split()[1]), []).append(int(folder.name))
            environ = (folder / "environ").read_bytes()
            works_for = f"SLURMD_NODENAME={node}".encode() in environ.split(b"\0")
            if works_for or (name == "slurmstepd" and str(STATE / "spool" / node) in os.readlink(folder / "cwd")):
                found.append(int(folder.name))
    for pid in found:  # grows as it goes
        found += [child for child in parents.get(pid, []) if child not in found]
    return found


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _kill(pid: int, kind: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, kind)


if __name__ == "__main__":
    if problem := install() if sys.argv[1] == "install" else missing():
        sys.exit(problem)
    {"install": lambda: None, "up": up, "down": down}[sys.argv[1]]()
