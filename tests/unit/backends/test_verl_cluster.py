"""Ray over the nodes of a job: what is asked of Slurm and of Ray, and that nothing of it stays. Fake programs take the
place of both; `tests/slurm/test_verl_on_two_nodes.py` has the real ones."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from small_runs import settings

from restool.backends.verl import cluster, configuration, launch, node
from restool.core.errors import RunError
from restool.experiments import compose_run

# Writes down what it was given, leaves a process with a session of its own behind, and stays, as `ray start --block`.
RAY = """#!/bin/sh
env > "$0.$SLURMD_NODENAME"
echo "$@" >> "$0.$SLURMD_NODENAME"
setsid sleep 600 &
echo $! $$ >> "$0.processes"
for option in "$@"; do case $option in --temp-dir=*) mkdir "${option#--temp-dir=}/session";; esac; done
[ -e "$0.broken" ] && { echo "no port"; exit 1; }
echo "Ray runtime started."
exec sleep 600
"""
# Runs its command as if on the other node.
SRUN = """#!/bin/sh
env > "$0.environment"
echo "$@" > "$0.arguments"
while case $1 in --*) true;; *) false;; esac; do shift; done
SLURMD_NODENAME=n2 exec "$@"
"""
SQUEUE = """#!/bin/sh
[ "$2" = --jobs=7 ] && echo "n[1-3]"
"""
SCONTROL = """#!/bin/sh
case "$*" in "show hostnames n[1-3]") printf "n1\\nn2\\nn3\\n";; *) echo "NodeName=n2 NodeAddr=127.0.0.1 Port=1";; esac
"""
PROGRAM = """
import sys
from pathlib import Path
from small_runs import settings
from restool.backends.verl import cluster, launch, supervision
chosen = settings("backend=verl_cpu", "backend.verl.nodes=2")
with supervision.leaving_on_sigterm():
    with cluster.ray(chosen, Path(sys.argv[1]), launch.variables("cpu"), Path(sys.argv[2]), print):
        sys.stdin.read()
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The folder of the fake programs, as a job on node n1 of three finds them."""
    for name, text in {"ray-python": RAY, "srun": SRUN, "squeue": SQUEUE, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_GPUS": "16", "SLURM_CONF": "c", "SLURMD_NODENAME": "n1"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def chosen(*overrides: str):
    return settings("backend=verl_cpu", "backend.verl.nodes=2", *overrides)


def started(programs: Path):
    variables = launch.variables("cpu")
    return cluster.ray(chosen(), programs / "ray-python", variables, programs / "ray.log", lambda line: None)


def test_ray_spans_the_nodes_of_the_job_and_ends(programs):
    with started(programs) as address:
        port = address.removeprefix("127.0.0.1:")
        assert int(port) not in (0, 6379)
        processes = of_ray(programs)
        assert all(process.is_running() for process in processes)
    assert not any(process.is_running() for process in processes)

    step = (programs / "srun.arguments").read_text()
    assert "--overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist=n2 --mem=0" in step
    asked = (programs / "srun.environment").read_text()
    assert "SLURM_JOB_ID=7" in asked
    assert "SLURM_CONF=c" in asked
    assert "SLURM_NNODES" not in asked
    assert "SLURM_GPUS" not in asked
    for name in ("n1", "n2"):  # every process of Ray has what the program has
        seen = (programs / f"ray-python.{name}").read_text()
        for variable in ("VERL_PLATFORM=cpu", "VERL_USE_EXTERNAL_MODULES=", "PYTHONPATH=", "RAY_START_HOOK="):
            assert variable in seen, (name, variable)
        assert "RAY_ADDRESS" not in seen
        assert "--num-cpus=32 --object-store-memory=500000000 --num-gpus=1" in seen
    folders = {
        word for name in ("n1", "n2") for word in (programs / f"ray-python.{name}").read_text().split("--temp-dir=")[1:]
    }
    assert len(folders) == 2, "a folder each, also on one machine"
    assert not any(Path(folder.split()[0]).exists() for folder in folders)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_of_ray_outlives_the_program(programs, kind):
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM, programs / "ray-python", programs / "ray.log"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert b"Ray runs on 2 nodes" in process.stdout.readline()
    left = of_ray(programs)
    process.send_signal(kind)
    assert process.wait(60) == (128 + kind if kind == signal.SIGTERM else -kind)
    head_itself = left[1]
    expected = left if kind == signal.SIGTERM else [head_itself, *left[2:]]  # Ray's own processes die with `ray start`
    deadline = time.monotonic() + 30
    other = folder_of(programs, "n2")
    while other.exists() or any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in expected):
        assert time.monotonic() < deadline, expected
        time.sleep(0.1)
    for each in left:
        if each.is_running():
            each.kill()
    assert folder_of(programs, "n1").exists() == (kind == signal.SIGKILL), "nobody is left to remove it"
    shutil.rmtree(folder_of(programs, "n1"), ignore_errors=True)


def folder_of(programs: Path, node_name: str) -> Path:
    return Path((programs / f"ray-python.{node_name}").read_text().split("--temp-dir=")[1].split()[0])


def of_ray(programs: Path) -> list[psutil.Process]:
    """What the head left behind, the head itself, and the same of the other node."""
    return [psutil.Process(int(word)) for word in (programs / "ray-python.processes").read_text().split()]


def test_a_head_that_does_not_come_up_is_told_in_one_line(programs):
    (programs / "ray-python.broken").touch()
    with pytest.raises(RunError, match="Ray came up on 0 of 1 nodes: no port") as error, started(programs):
        pass
    assert "\n" not in str(error.value)


def test_a_job_with_too_few_nodes_another_machine_and_no_job_are_refused(programs, monkeypatch):
    wanted = settings("backend=verl_cpu", "backend.verl.nodes=4")
    with pytest.raises(RunError, match="nodes=4, but this job has 3"), cluster.ray(wanted, Path(), {}, Path(), print):
        pass
    monkeypatch.setenv("SLURMD_NODENAME", "login")
    with pytest.raises(RunError, match="none of the job's nodes"), started(programs):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "8")  # unknown to Slurm
    with pytest.raises(RunError, match="squeue does not say which nodes"), started(programs):
        pass
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(RunError, match="this job has 1; use --profile slurm"), started(programs):
        pass


def test_gpus_and_cpus_of_each_node_are_those_that_the_job_asked_for():
    wanted = compose_run(["backend=verl_2nodes", "model=qwen3_1.7b"])
    head = cluster.head_command(Path("/env/bin/python"), "10.0.0.1:4000", 4001, wanted)
    place = ["--node-ip-address=10.0.0.1", "--port=4000", "--ray-client-server-port=4001"]
    assert head[:5] == ["/env/bin/python", "-m", "ray.scripts.scripts", "start", "--head"]
    assert set(place) <= set(head)
    others = cluster.others_command(Path("/env/bin/python"), "10.0.0.1:4000", ["b", "c"], wanted)
    assert {"--nodes=2", "--ntasks=2", "--nodelist=b,c"} <= set(others)
    for command in (head, others):
        assert {"--num-cpus=64", "--num-gpus=8", "--min-worker-port=0", "--max-worker-port=0", "--block"} <= set(
            command
        )


def test_who_joins_a_ray_does_not_say_what_it_has():
    def ray_init(nodes: int) -> dict[str, object]:
        values = configuration.values(chosen(f"backend.verl.nodes={nodes}"), Path("r"), Path("p"), Path("m"))
        return {key.rpartition(".")[2]: value for key, value in values.items() if key.startswith("ray_kwargs")}

    assert ray_init(1) == {
        "num_cpus": 32,
        "num_gpus": 1,
        "object_store_memory": 500_000_000,
        "include_dashboard": False,
    }
    assert ray_init(2) == {"include_dashboard": False}


def test_folders_of_ray_are_short_whatever_the_machine_calls_its_own(monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/scratch/of/a/job/with/a/long/name")
    with node.folder() as folder:
        assert len(str(folder)) <= 26
        assert folder.is_dir()
    assert not folder.exists()


def test_the_folder_of_a_killed_process_goes_with_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "_LONGEST", 1000)
    monkeypatch.setattr(node.tempfile, "gettempdir", lambda: str(tmp_path))
    program = (
        "import tempfile, sys; tempfile.tempdir = sys.argv[1]; from restool.backends.verl import node; "
        "node._LONGEST = 1000\nwith node.folder() as f: (f / 'session').mkdir(); print(f, flush=True); input()"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    alive, killed = (Path(process.stdout.readline().strip()) for process in started)
    started[1].kill()
    started[1].wait()
    assert killed.is_dir()
    with node.folder() as own:
        assert {alive, own} == set(tmp_path.iterdir())
    started[0].communicate("\n")
    assert not list(tmp_path.iterdir())
