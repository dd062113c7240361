"""Killed at any moment, a run resumes and ends bit for bit as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_runs import begin, settings

from restool.backends.local import checkpoints, train
from restool.models import loading

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from small_runs import begin, settings
from restool.backends.local import train
chosen = settings(*{overrides!r})
prepared = Path({prepared!r})
train(begin(Path({path!r}), prepared, chosen), chosen, prepared, prepared / "model", report=print)
"""
RUNS = {
    "sft": ["method=sft", "training.sft.steps=24", "training.sft.checkpoint_every=5"],
    "rl": ["method=rest_fixed", "training.rl.steps=16", "training.rl.checkpoint_every=3"],
    "ppo": [
        "method=ppo",
        "training.rl.critic_learning_rate=1e-3",
        "training.rl.steps=10",
        "training.rl.checkpoint_every=3",
    ],
}
VARYING = ("time/", "throughput/", "timestamp")


def essence(run) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Metrics without times, and final weights."""
    metrics = [{k: v for k, v in row.items() if not k.startswith(VARYING)} for row in run.metrics()]
    return metrics, loading.load(run.model)[0].state_dict()


@pytest.mark.parametrize("kind", RUNS)
def test_kill_9_at_random_moments(kind, trained, prepared, tmp_path):
    expected_metrics, expected_weights = essence(trained(*RUNS[kind], name="whole"))
    chosen = settings(*RUNS[kind])
    path = tmp_path / "killed"
    root = str(Path(__file__).parent)
    code = SCRIPT.format(root=root, overrides=RUNS[kind], prepared=str(prepared), path=str(path))
    moments = random.Random(kind)
    kills = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        steps = _lines(path)
        while process.poll() is None and _lines(path) == steps:  # wait until it works
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.25))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills > 0
    run = begin(path, prepared, chosen)
    lines: list[str] = []
    train(run, chosen, prepared, prepared / "model", report=lines.append)
    metrics, weights = essence(run)
    assert metrics == expected_metrics
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected_weights.items())
    assert run.rollouts() == _rollouts(tmp_path / "whole")
    assert run.is_done
    assert not run.checkpoints.exists()


def _rollouts(path: Path) -> list:
    from restool.runs import RunDirectory

    return RunDirectory(path).rollouts()


def _lines(path: Path) -> int:
    metrics = path / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


class Interrupted(Exception):
    pass


def interrupt(path: Path, prepared: Path, overrides: list[str], line: str):
    """Train until a progress line begins with ``line``, then stop as an error would."""

    def report(text: str) -> None:
        if text.startswith(line):
            raise Interrupted

    chosen = settings(*overrides)
    run = begin(path, prepared, chosen)
    with pytest.raises(Interrupted):
        train(run, chosen, prepared, prepared / "model", report=report)
    return run, chosen


def test_resuming_says_so_and_repeats_no_step(trained, prepared, tmp_path):
    run, chosen = interrupt(tmp_path / "run", prepared, RUNS["rl"], "step 8/")
    assert [row["step"] for row in run.metrics()] == list(range(1, 9))
    assert [p.name for p in sorted(run.checkpoints.iterdir())] == ["step-000003.pt", "step-000006.pt"]
    lines: list[str] = []
    train(run, chosen, prepared, prepared / "model", report=lines.append)
    assert "run: resuming after step 6" in lines
    assert [row["step"] for row in run.metrics()] == list(range(1, 17))
    assert essence(run)[0] == essence(trained(*RUNS["rl"], name="whole"))[0]


def test_a_damaged_checkpoint_is_passed_over(prepared, tmp_path):
    run, chosen = interrupt(tmp_path / "run", prepared, RUNS["rl"], "step 8/")
    newest = run.checkpoints / "step-000006.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    (run.checkpoints / ".step-000009.pt.77.tmp").write_bytes(b"torn")
    lines: list[str] = []
    train(run, chosen, prepared, prepared / "model", report=lines.append)
    assert any("step-000006.pt cannot be read" in line for line in lines)
    assert "run: resuming after step 3" in lines
    assert [row["step"] for row in run.metrics()] == list(range(1, 17))


def test_a_checkpoint_ahead_of_its_log_is_passed_over(prepared, tmp_path):
    run, chosen = interrupt(tmp_path / "run", prepared, RUNS["rl"], "step 8/")
    lines = run.metrics_path.read_text().splitlines(keepends=True)
    run.metrics_path.write_text("".join(lines[:4]) + lines[4][:20])
    said: list[str] = []
    train(run, chosen, prepared, prepared / "model", report=said.append)
    assert "run: resuming after step 3" in said
    assert [row["step"] for row in run.metrics()] == list(range(1, 17))


def test_killed_between_model_and_done(trained, prepared):
    run = trained(*RUNS["sft"])
    weights = essence(run)[1]
    (run.path / "done.json").unlink()  # checkpoints are gone too: all of it is done again
    train(run, settings(*RUNS["sft"]), prepared, prepared / "model", report=lambda line: None)
    assert all(torch.equal(tensor, essence(run)[1][name]) for name, tensor in weights.items())


def test_a_full_disk_is_one_clear_line(prepared, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    chosen = settings("method=sft")
    run = begin(tmp_path / "run", prepared, chosen)
    from restool.files import FileError

    with pytest.raises(FileError, match=r"cannot write the checkpoint .*step-000003"):
        train(run, chosen, prepared, prepared / "model", report=lambda line: None)
    assert not list(run.checkpoints.iterdir())


def test_without_checkpoints_training_starts_anew(prepared, tmp_path):
    run, chosen = interrupt(tmp_path / "run", prepared, RUNS["rl"], "step 8/")
    shutil.rmtree(run.checkpoints)
    train(run, chosen, prepared, prepared / "model", report=lambda line: None)
    assert [row["step"] for row in run.metrics()] == list(range(1, 17))
    assert sorted({row["step"] for row in run.rollouts()}) == [1, 2, 4, 6, 8, 10, 12, 14, 16]
