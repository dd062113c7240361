"""What can be known about the backend verl without verl: what it refuses, and that folded weights are exact."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from small_runs import settings

from restool import algorithms, backends, costs, files
from restool.algorithms import ALGORITHMS
from restool.backends import demonstrations
from restool.backends.demonstrations import Curriculum
from restool.backends.verl import configuration, folding, supervised
from restool.core.aggregates import AGGREGATES
from restool.core.errors import ConfigurationError
from restool.experiments import compose_run, load_plan
from restool.models import chat, loading
from restool.models.offsets import Decoder

ROOT = Path(__file__).resolve().parents[3]
STEPWISE = ["schedule=step", "backend=verl"]
VERL = ["backend=verl_cpu", "training.rl.final_learning_rate=1"]


@pytest.mark.parametrize("record", [r for r in ALGORITHMS.values() if r.verl], ids=lambda record: record.id)
def test_folded_weights_give_every_token_its_share(record):
    generator = torch.Generator().manual_seed(1)
    mask_BT = torch.arange(9) < torch.tensor([9, 1, 4, 7, 2, 9, 5, 3])[:, None]
    weight_BT = torch.rand(mask_BT.shape, generator=generator) * (torch.rand(mask_BT.shape, generator=generator) > 0.3)
    batch_B = folding.mini_batches(8, 2, 4)
    assert batch_B.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    factor_BT = folding.factors(record, mask_BT, weight_BT * mask_BT, batch_B, 9)
    loss_BT = torch.randn(mask_BT.shape, generator=generator)
    for number in (0, 1):
        rows = batch_B == number
        native = AGGREGATES[configuration.AGGREGATES[record.aggregate][1]]
        folded = native((loss_BT * factor_BT)[rows], mask_BT[rows], length=9)
        ours = algorithms.aggregate(record)(loss_BT[rows], mask_BT[rows], weight_BT[rows], length=9)
        assert torch.allclose(folded, ours, atol=1e-6)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.rl.final_learning_rate=0.5", "verl has no linear decay"),
        ("training.rl.minibatches=3", "does not divide"),
        ("training.rl.micro_tokens=64", "raise it to"),
        ("training.rl.normaliser_tokens=77", "its own micro-batches"),
        ("backend.verl=null", "use backend=verl or verl_cpu"),
        ("method=sft training.sft.batch=8 backend.verl.gpus_per_node=3", "choose a multiple"),
        ("method=rsft training.sft.micro_tokens=64", "raise it to training.sft.max_tokens"),
    ],
)
def test_what_verl_cannot_carry_is_refused_with_the_reason(override, reason):
    with pytest.raises(ConfigurationError, match=reason):
        backends.check(settings(*VERL, *override.split()))


def test_measured_beta_is_refused_and_given_beta_is_not():
    with pytest.raises(ConfigurationError, match="beta"):
        backends.check(settings(*VERL, "method=optimal", "method.beta_prompts=1"))
    given = "+method.weights.beta={format: 1.0, name: 1.0, arguments: 1.0, think: 1.0, response: 1.0, other: 1.0}"
    backends.check(settings(*VERL, "method=optimal", "method.beta_prompts=0", given))


def test_the_released_normaliser_goes_through_the_policy_loss():
    chosen = settings(*VERL, "method=rest_released", "training.rl.normaliser_tokens=8192")
    values = configuration.values(chosen, Path("run"), Path("prepared"), Path("model"))
    assert values["actor_rollout_ref.actor.policy_loss.loss_mode"] == configuration.POLICY_LOSS
    folded = settings(*VERL, "method=rest_released")
    values = configuration.values(folded, Path("run"), Path("prepared"), Path("model"))
    assert values["actor_rollout_ref.actor.policy_loss.loss_mode"] == "vanilla"


def test_the_settings_of_the_released_script_reach_verl():
    chosen = compose_run(
        ["model=qwen3_1.7b", "method=rest_released", "data=rlla_4k", "training=paper", "reward=rest", *STEPWISE]
    )
    values = configuration.values(chosen, Path("run"), Path("prepared"), Path("model"))
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    expected = {
        "data.train_batch_size": 512,
        "data.max_prompt_length": 2048,
        "data.max_response_length": 2048,
        f"{actor}.ppo_mini_batch_size": 64,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": 16384,
        f"{actor}.optim.lr": 1e-6,
        f"{actor}.use_kl_loss": False,
        f"{rollout}.n": 4,
        f"{rollout}.gpu_memory_utilization": 0.5,
        "algorithm.adv_estimator": "grpo",
        "trainer.n_gpus_per_node": 8,
        "trainer.save_freq": 15,
        "trainer.total_training_steps": 105,
        "trainer.val_before_train": False,
    }
    assert {key: values[key] for key in expected} == expected


def test_every_line_of_the_released_script_is_in_the_table():
    page = (ROOT / "docs" / "verl.md").read_text()
    table = page[page.index("## Settings of the released script") : page.index("## Devices")]
    named = set(re.findall(r"`([\w.]+)`", table))
    assert {name.rpartition(".")[2] for name in RELEASED} <= {name.rpartition(".")[2] for name in named}


# fmt: off
RELEASED = [
    "EXPERIMENT_NAME", "WITHLENGTH", "REFINEDREWARD", "COARSEREWARD", "STRICTMATCH", "CORRECTMAX1",
    "MAX1STEP30MAX3", "SCHEDULEREWARD", "SCHEDULELENGTH", "USE_THINKING_SEMANTIC", "data.train_files",
    "data.val_files", "data.train_batch_size", "data.val_batch_size", "data.max_prompt_length",
    "data.max_response_length", "actor.optim.lr", "model.use_remove_padding", "actor.ppo_mini_batch_size",
    "actor.use_dynamic_bsz", "actor.use_kl_loss", "actor.kl_loss_coef", "actor.kl_loss_type",
    "model.enable_gradient_checkpointing", "rollout.name", "rollout.tensor_model_parallel_size",
    "rollout.gpu_memory_utilization", "rollout.n", "actor.loss_agg_mode", "ref.fsdp_config.param_offload",
    "critic.optim.lr", "critic.model.path", "algorithm.kl_ctrl.kl_coef", "algorithm.adv_estimator",
    "trainer.logger", "trainer.val_before_train", "trainer.n_gpus_per_node", "trainer.nnodes",
    "trainer.critic_warmup", "trainer.save_freq", "trainer.test_freq", "trainer.project_name",
    "trainer.experiment_name", "trainer.total_epochs",
]
# fmt: on


def test_verl_tiny_plans_its_environment_and_its_one_cpu(tmp_path):
    plan = load_plan("verl_tiny", results=tmp_path, write=False)
    assert plan.environments == ["verl-cpu"]
    assert {run.kind for run in plan.runs} == {"sft", "rl"}
    assert {run.environment for run in plan.runs} == {"verl-cpu"}
    assert all(run.resources["gpus"] == 0 for run in plan.runs)


def test_supervised_runs_take_the_devices_of_one_node():
    chosen = [
        "model=qwen3_14b",
        "method=tsft",
        "data=rlla_4k",
        "training=paper",
        "schedule=none",
        "backend=verl_2nodes",
    ]
    found = compose_run(chosen)
    backends.check(found)
    needed = costs.resources(found.model_dump(mode="json"), "sft")
    assert (needed["gpus"], needed["nodes"]) == (8, 1)
    values = supervised.values(found, Path("run"), Path("model"))
    expected = {
        "data.train_batch_size": 32,
        "data.max_token_len_per_gpu": 16384,
        "optim.lr": 5e-6,
        "optim.betas": [0.9, 0.95],
        "optim.weight_decay": 0.1,
        "optim.clip_grad": 1.0,
        "trainer.n_gpus_per_node": 8,
        "trainer.nnodes": 1,
        "trainer.save_freq": 5,
    }
    assert {key: values[key] for key in expected} == expected


def test_verl_is_given_what_the_local_backend_trains_on(prepared, tmp_path):
    """Order, ids, weights and learning rates of every step."""
    chosen = settings(*VERL, "method=tsft", "training.sft.steps=20", "training.sft.batch=7", "seed=3")
    steps = supervised.write(chosen, tmp_path, prepared, prepared / "model", print)
    written = files.read_json(tmp_path / supervised.FILE)
    tokenizer = loading.load_tokenizer(prepared / "model")
    curriculum = Curriculum(demonstrations.read(prepared, tokenizer, chosen, print), chosen.training.sft, 3)
    decoder = Decoder(tokenizer, chat.stop_ids(tokenizer))
    assert steps == len(written["steps"]) == len(written["factors"]) == 20
    for step in (1, 2, 11, 20):
        batch = curriculum.batch(step)
        weight_BT, _ = demonstrations.weights(algorithms.get("tsft"), batch, decoder, {"factor": 2.0})
        for example, place, weight_T in zip(batch, written["steps"][step - 1], weight_BT.tolist(), strict=True):
            found = written["examples"][place]
            assert found["ids"] == example.prompt + example.answer
            assert found["weights"] == weight_T[: len(example.answer)]
            assert set(found["weights"]) == {1.0, 2.0}
