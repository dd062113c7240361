"""Small models, and prepared data that train in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import begin, settings

from restool import preparation
from restool.backends.local import train
from restool.runs import RunDirectory


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data without benchmarks: nothing here needs them, and nothing goes to the network."""
    out = tmp_path_factory.mktemp("prepared") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("restool.data.fetch._read_url", _offline)
        patch.setattr("restool.data.fetch._FIRST_WAIT_S", 0.001)
        preparation.prepare(settings(), out, report=lambda line: None)
    return out


def _offline(url: str) -> bytes:
    raise OSError(f"offline: {url}")


@pytest.fixture
def trained(prepared: Path, tmp_path: Path) -> Callable[..., RunDirectory]:
    """Train with overrides and return the finished run."""

    def run(*overrides: str, name: str = "run", report: Callable[[str], None] = lambda line: None) -> RunDirectory:
        chosen = settings(*overrides)
        directory = begin(tmp_path / name, prepared, chosen)
        train(directory, chosen, prepared, prepared / "model", report=report)
        return directory

    return run


@pytest.fixture(scope="session")
def imitator(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has seen some demonstrations: it writes tags and a little more."""
    chosen = settings("method=sft", "training.sft.steps=60", "training.sft.checkpoint_every=60")
    run = begin(tmp_path_factory.mktemp("imitator") / "run", prepared, chosen)
    train(run, chosen, prepared, prepared / "model", report=lambda line: None)
    return run.model


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
