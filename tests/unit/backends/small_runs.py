"""Settings of runs that take a second, and their run directories."""

from __future__ import annotations

from pathlib import Path

from restool import files, runs
from restool.experiments import compose_run
from restool.runs import RunDirectory
from restool.settings import RunSettings

SMALL = [
    "data.synthetic.train_rows=24",
    "data.synthetic.demonstrations=120",
    "data.synthetic.held_out_rows=8",
    "data.synthetic.transfer_rows=4",
    "model.tiny.hidden_size=32",
    "model.tiny.layers=2",
    "model.tiny.heads=2",
    "model.tiny.kv_heads=1",
    "model.tiny.head_dim=16",
    "model.tiny.feed_forward=64",
    "model.tiny.vocabulary=400",
    "backend.device=cpu",
    "training.sft.steps=8",
    "training.sft.checkpoint_every=3",
    "training.rl.steps=5",
    "training.rl.prompts=4",
    "training.rl.samples=4",
    "training.rl.minibatches=2",
    "training.rl.max_new_tokens=24",
    "training.rl.checkpoint_every=2",
    "training.rl.rollouts_every=2",
]


def settings(*overrides: str) -> RunSettings:
    return compose_run([*SMALL, *overrides])


def begin(path: Path, prepared: Path, chosen: RunSettings) -> RunDirectory:
    """A run directory as the command line makes it."""
    fingerprint = files.read_json(prepared / "manifest.json")["fingerprint"]
    return runs.open_run(path, chosen, {"data": fingerprint, "start": "test"})
