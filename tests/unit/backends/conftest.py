"""Small models, and prepared data that train in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from restool import files, preparation, runs
from restool.backends.local import train
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


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    patch = pytest.MonkeyPatch()
    patch.setenv("RESTOOL_MIRROR", str(tmp_path_factory.mktemp("empty")))
    patch.setattr("restool.data.fetch.Fetcher._download", _offline, raising=False)
    out = tmp_path_factory.mktemp("prepared") / "tiny"
    preparation.prepare(settings(), out, report=lambda line: None)
    patch.undo()
    return out


def _offline(*_: object, **__: object) -> None:
    raise OSError("offline")


@pytest.fixture
def trained(prepared: Path, tmp_path: Path) -> Callable[..., RunDirectory]:
    """Train with overrides and return the finished run."""

    def run(*overrides: str, name: str = "run", report: Callable[[str], None] = lambda line: None) -> RunDirectory:
        chosen = settings(*overrides)
        directory = begin(tmp_path / name, prepared, chosen)
        train(directory, chosen, prepared, prepared / "model", report=report)
        return directory

    return run


@pytest.fixture
def model() -> torch.nn.Module:
    """A Qwen3 with random weights large enough for distributions that differ."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()
