"""Supervised runs through verl's trainer on a CPU: the losses of the local backend, also when killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from small_runs import begin, settings

from restool import backends, environments
from restool.models import loading

pytestmark = pytest.mark.slow

STEPS, EVERY = 12, 3
SAME = [f"training.sft.steps={STEPS}", f"training.sft.checkpoint_every={EVERY}", "training.sft.batch=8", "seed=1"]
TRAIN = """
import sys
from pathlib import Path
from small_runs import begin, settings
from restool import backends
run, prepared, *overrides = sys.argv[1:]
chosen = settings(*overrides)
directory = begin(Path(run), Path(prepared), chosen)
backends.train(directory, chosen, Path(prepared), Path(prepared) / "model", report=lambda line: print(line, flush=True))
"""


def train(folder: Path, prepared: Path, *overrides: str):
    chosen = settings(*SAME, *overrides)
    run = begin(folder, prepared, chosen)
    backends.train(run, chosen, prepared, prepared / "model", report=lambda line: None)
    return run


@pytest.fixture(scope="module", autouse=True)
def environment():
    environments.build("verl-cpu")


@pytest.mark.parametrize(("method", "processes"), [("sft", 1), ("tsft", 2)])
def test_losses_and_weights_are_the_local_backends(method, processes, prepared, tmp_path):
    overrides = [f"method={method}", "training.sft.micro_tokens=1024"]
    ours = train(tmp_path / "local", prepared, *overrides)
    parallel = f"backend.verl.gpus_per_node={processes}"
    theirs = train(tmp_path / "verl", prepared, *overrides, "backend=verl_cpu", parallel)
    assert len(theirs.metrics()) == theirs.done()["steps"] == STEPS
    for a, b in zip(ours.metrics(), theirs.metrics(), strict=True):
        for name in ("step", "loss/sft", "grad/norm", "learning_rate", "tokens", "length/mean"):
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-9), (a["step"], name)
    assert ours.metrics()[-1]["loss/sft"] < ours.metrics()[0]["loss/sft"] - 0.05
    trained, same = (loading.load(run.model)[0].state_dict() for run in (ours, theirs))
    assert max(float((trained[name] - same[name]).abs().max()) for name in trained) < 1e-4
    assert not theirs.checkpoints.exists()


def test_a_killed_run_leaves_nothing_running_and_ends_as_an_undisturbed_one(prepared, tmp_path):
    overrides = ["method=tsft", "backend=verl_cpu"]
    whole = train(tmp_path / "whole", prepared, *overrides)
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "run"), str(prepared), *SAME, *overrides]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL)
    note = tmp_path / "run/checkpoints/latest_checkpointed_iteration.txt"
    deadline = time.monotonic() + 300
    while not note.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(started) >= 2, "a launcher and what it launched"
    _, alive = psutil.wait_procs(started, timeout=20)
    assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    step = int(note.read_text())
    assert EVERY <= step < STEPS

    lines: list[str] = []
    chosen = settings(*SAME, *overrides)
    run = begin(tmp_path / "run", prepared, chosen)
    backends.train(run, chosen, prepared, prepared / "model", report=lines.append)
    assert any(f"resuming after step {step}" in line for line in lines)
    for a, b in zip(whole.metrics(), run.metrics(), strict=True):
        assert (a["step"], a["loss/sft"], a["grad/norm"]) == (b["step"], b["loss/sft"], b["grad/norm"])
    first, second = (loading.load(r.model)[0].state_dict() for r in (whole, run))
    assert all(torch.equal(first[name], second[name]) for name in first)
