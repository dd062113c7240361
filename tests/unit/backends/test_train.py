"""The backend's entrance: what it refuses, and what it leaves behind."""

from __future__ import annotations

import psutil
import pytest
import torch
from small_runs import begin, settings

from restool.backends import train
from restool.core.errors import ConfigurationError, ModelError
from restool.models import loading


def test_base_arm_exports_its_start_model(trained, prepared):
    run = trained("method=base")
    ours, _ = loading.load(run.model)
    theirs, _ = loading.load(prepared / "model")
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert run.done()["steps"] == 0
    assert not run.metrics()


def test_exported_model_is_the_trained_one(trained, prepared):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = trained("method=sft", "training.sft.steps=30")
    model = AutoModelForCausalLM.from_pretrained(run.model)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    ids = tokenizer.encode("<think> x </think>", return_tensors="pt")
    before = AutoModelForCausalLM.from_pretrained(prepared / "model")(ids).logits
    assert (model(ids).logits - before).abs().max() > 0.1
    assert model.config.use_cache


@pytest.mark.parametrize("damage", ["missing", "empty", "torn"])
def test_broken_start_model_is_one_clear_line(damage, prepared, tmp_path):
    import shutil

    start = tmp_path / "start"
    if damage == "empty":
        start.mkdir()
    if damage == "torn":
        shutil.copytree(prepared / "model", start)
        weights = start / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:500])
    chosen = settings("method=sft")
    run = begin(tmp_path / "run", prepared, chosen)
    with pytest.raises(ModelError) as error:
        train(run, chosen, prepared, start, report=lambda line: None)
    assert "\n" not in str(error.value)
    assert str(start) in str(error.value)
    assert not run.is_done


def test_a_backend_without_its_section_is_refused(prepared, tmp_path):
    chosen = settings()
    chosen = chosen.model_copy(update={"backend": chosen.backend.model_copy(update={"name": "verl"})})
    with pytest.raises(ConfigurationError, match="use backend=verl or verl_cpu"):
        train(begin(tmp_path / "run", prepared, chosen), chosen, prepared, prepared / "model", report=print)


def test_a_critic_without_memory_for_it_is_refused_before_anything_starts(trained):
    room = psutil.virtual_memory().total / 16  # parameters whose training state fills this machine
    fits = f"model.parameters={0.7 * room:.0f}"
    critic = "training.rl.critic_learning_rate=1e-3"
    lines: list[str] = []
    with pytest.raises(ConfigurationError, match=r"ppo on tiny needs .* critic .* a method without a critic"):
        trained(fits, critic, "method=ppo", name="ppo", report=lines.append)
    assert not lines
    with pytest.raises(ConfigurationError, match=r"policy .* use a smaller model, a machine with more memory"):
        trained(f"model.parameters={1.1 * room:.0f}", "method=sft", name="large")
    assert trained(fits, "method=grpo", "training.rl.steps=1", name="grpo").is_done


def test_done_record(trained):
    done = trained("method=grpo").done()
    assert done["steps"] == 5
    assert done["tokens"] > 0
    assert done["cpu_seconds"] > 0
    assert done["wall_seconds"] > 0
    assert "reward/total" in done["metrics"]
