"""One run of verl over two nodes of a real Slurm, given by the bare command: Ray over both, one worker on each.

A CPU run of the tiny model, so that it needs no GPU; how GPUs reach Ray is tested with fake ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster import COMMAND, SOON

pytestmark = pytest.mark.slow

NODE_MEMORY_MB = 13_000
RUN = "results/verl_tiny/runs/tiny-grpo-fraction-s0"
OVERRIDES = [
    "experiment.matrix.methods=[grpo]",
    "method.start=base",
    "method.entropy_coefficient=0.1",  # an untrained model gets no reward, and its weights are to change
    "backend.verl.nodes=2",
    "training.rl.steps=2",
    "training.rl.checkpoint_every=1",
]
CALL = [*COMMAND, *SOON, "--retries", "0", f"{RUN}/done.json"]
CALL += ["--config", "experiment=verl_tiny", f"overrides={json.dumps(OVERRIDES)}"]
PATIENCE = 1500  # seconds, for a busy machine


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for the jobs' temporary files, by whose name in their variables all their processes are known.

    As short as the machine's own must be for Ray to work below it.
    """
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as folder:
        yield Path(folder)


def test_a_run_over_two_nodes_finishes_and_leaves_nothing_running(site, slurm, temporary):
    began = time.monotonic()
    with memory_of_jobs(temporary) as peak:
        done = site.call(*CALL, timeout=2400, TMPDIR=str(temporary))
    gb = {name: f"{value / 2**20:.1f} GB" for name, value in peak.items()}
    print(f"verl over two nodes: {time.monotonic() - began:.0f} s, at most {gb} of all processes together")
    assert done.status == 0, done.output[-3000:] + logs(site)
    run = site.path / RUN
    layout = json.loads((run / "ray.json").read_text())
    nodes = [node["id"] for node in layout["nodes"]]
    assert len(set(nodes)) == 2
    assert [worker["rank"] for worker in layout["workers"]] == [0, 1]
    assert sorted(worker["node"] for worker in layout["workers"]) == sorted(nodes), "a worker on each"
    check_metrics(run)
    assert (run / "done.json").exists()
    assert not (run / "checkpoints").exists()
    wait_for_the_end(slurm, temporary)
    assert not list(temporary.glob("restool-ray-*"))


def test_every_node_gives_all_its_gpus_to_ray(site):
    """As many as a run on GPUs would ask for; a program takes the place of Ray."""
    for name in ("spread.smk", "spread.py"):
        shutil.copy(Path(__file__).with_name(name), site.path)
    flags = ["--slurm-status-command", "squeue", "--retries", "0"]
    done = site.call(*COMMAND, *SOON, *flags, "-s", "spread.smk", timeout=600)
    assert done.status == 0, done.output[-4000:] + "".join(p.read_text() for p in site.path.glob("ray.log"))
    for node in ("n1", "n2"):
        assert (site.path / "out" / node).read_text().split()[0] == "0,1"


def test_nothing_is_left_of_a_cancelled_job_and_the_next_call_resumes(site, slurm, temporary):
    process = site.start(*CALL, output=subprocess.DEVNULL, TMPDIR=str(temporary))
    try:
        saved = site.path / RUN / "checkpoints/latest_checkpointed_iteration.txt"
        slurm.wait_for(lambda: saved.exists() and saved.read_text() == "1", "checkpoint", PATIENCE)
        assert {node for node, _ in of_jobs(temporary)} == {"n1", "n2"}
        slurm.ask("scancel", *[line.split("|")[0] for line in slurm.jobs()])
        wait_for_the_end(slurm, temporary)
        assert process.wait(PATIENCE) != 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert not (site.path / RUN / "done.json").exists()

    done = site.call(*CALL, timeout=2400, TMPDIR=str(temporary))
    assert done.status == 0, done.output[-3000:] + logs(site)
    assert "resuming after step 1" in logs(site)
    check_metrics(site.path / RUN)
    wait_for_the_end(slurm, temporary)


def wait_for_the_end(slurm, temporary: Path) -> None:
    """Slurm's own part of a job ends a moment after it has said that the job is over."""
    slurm.wait_for(lambda: not of_jobs(temporary), f"end of {commands(temporary)}", 60)


def commands(temporary: Path) -> list[str]:
    found = []
    for _, pid in of_jobs(temporary):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:150])
    return found


def check_metrics(run: Path) -> None:
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2]
    for row in metrics:
        assert row["grad/norm"] > 0
        assert row["sampler/logprob_gap_mean"] < 1e-5, "both samplers have the trainer's weights"
        assert row["sampler/logprob_gap_max"] < 5e-5


def logs(site) -> str:
    paths = [site.path / "results/verl_tiny/logs/train" / f"{Path(RUN).name}.log"]
    paths += [site.path / RUN / name for name in ("ray.log", "verl.log")]
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in paths if path.exists())


def of_jobs(temporary: Path) -> list[tuple[str, int]]:
    """Node and process id of all that runs in a job of Slurm, or was started by one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = dict(
                entry.split(b"=", 1) for entry in (folder / "environ").read_bytes().split(b"\0") if b"=" in entry
            )
            is_zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            of_job = b"SLURM_JOB_ID" in variables and variables.get(b"TMPDIR") == str(temporary).encode()
            if of_job and not is_zombie:
                found.append((variables.get(b"SLURMD_NODENAME", b"").decode(), int(folder.name)))
    return found


@contextmanager
def memory_of_jobs(temporary: Path) -> Iterator[dict[str, int]]:
    """The largest sums of memory of the jobs' processes seen meanwhile, in kB: Pss counts shared pages once."""
    peak = {"Pss": 0, "Rss": 0}
    over = threading.Event()

    def look() -> None:
        while not over.wait(2):
            sums = dict.fromkeys(peak, 0)
            for _, pid in of_jobs(temporary):
                with contextlib.suppress(OSError):
                    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                        name, _, rest = line.partition(":")
                        if name in sums:
                            sums[name] += int(rest.split()[0])
            peak.update({name: max(value, sums[name]) for name, value in peak.items()})

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
