"""From the settings of a run to settings of verl 0.9.1, as dotted keys of its configuration.

verl's own defaults stay where they are; this module says what differs. Methods are carried in two ways
(`algorithms.Algorithm.verl`): the token weights are folded into the advantages, which is exact for the surrogates that
are homogeneous in them, or, where the normaliser is that of verl's own micro-batches, they travel beside the
advantages to a policy loss of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restool import algorithms
from restool.algorithms import Algorithm
from restool.backends.verl import cpu_only
from restool.core.errors import ConfigurationError
from restool.settings import RunSettings, VerlSettings

TRAINER = "restool"
REINFORCED, SUPERVISED = "ppo_trainer", "sft_trainer_engine"  # verl's names for the configurations of its trainers
POLICY_LOSS = "restool_weighted_token_mean"
KEPT_CHECKPOINTS = 2
# Our aggregates → verl's, with the aggregate whose shares verl's has when every token weighs the same.
AGGREGATES = {
    "token_mean": ("token-mean", "token_mean"),
    "weighted_token_mean": ("token-mean", "token_mean"),
    "sequence_mean": ("seq-mean-token-mean", "sequence_mean"),
    "weighted_sequence_mean": ("seq-mean-token-mean", "sequence_mean"),
    "constant_length": ("seq-mean-token-sum-norm", "constant_length"),
}
_LOSSES = {"ppo_clip": "vanilla", "gspo": "gspo"}
_NEVER = 1e30  # a dual clip that never acts; verl has no switch for it
_ENDLESS = 10**6  # epochs: the number of steps decides


def check(settings: RunSettings) -> None:
    """ConfigurationError for what verl cannot carry, with the reason."""
    verl(settings)
    record, rl = algorithms.get(settings.method.algorithm), settings.training.rl
    if record.kind == "sft":
        _check_sft(settings)
    if record.kind != "rl":
        return
    if not record.verl:
        raise ConfigurationError(f"{record.id}: verl has no place for its {record.surrogate} loss; use backend=local")
    if settings.method.beta_prompts:
        raise ConfigurationError(
            "method.beta_prompts: verl gives no gradient of single answers to measure beta with; "
            "give the values as method.weights.beta, or use backend=local"
        )
    if rl.final_learning_rate != 1:
        raise ConfigurationError(
            f"training.rl.final_learning_rate={rl.final_learning_rate}: verl has no linear decay; "
            "set it to 1 (constant, as released), or use backend=local"
        )
    if rl.prompts % rl.minibatches:
        raise ConfigurationError(
            f"training.rl.minibatches={rl.minibatches} does not divide prompts={rl.prompts}, as verl demands"
        )
    if rl.normaliser_tokens not in (None, rl.micro_tokens):
        raise ConfigurationError(
            f"training.rl.normaliser_tokens={rl.normaliser_tokens}: verl normalises by whole mini-batches (null) or by "
            f"its own micro-batches (training.rl.micro_tokens={rl.micro_tokens})"
        )
    longest = settings.data.max_prompt_tokens + rl.max_new_tokens
    if rl.micro_tokens < longest:
        raise ConfigurationError(
            f"training.rl.micro_tokens={rl.micro_tokens} must hold a prompt with its answer; raise it to {longest}"
        )


def _check_sft(settings: RunSettings) -> None:
    sft, devices = settings.training.sft, verl(settings).gpus_per_node
    if sft.batch % devices:
        raise ConfigurationError(
            f"training.sft.batch={sft.batch}: verl gives each of backend.verl.gpus_per_node={devices} devices as many "
            "demonstrations; choose a multiple"
        )
    if sft.micro_tokens < sft.max_tokens:
        raise ConfigurationError(
            f"training.sft.micro_tokens={sft.micro_tokens} must hold the longest demonstration; raise it to "
            f"training.sft.max_tokens={sft.max_tokens}"
        )


def verl(settings: RunSettings) -> VerlSettings:
    """The section ``backend.verl``; ConfigurationError if there is none."""
    if settings.backend.verl is None:
        raise ConfigurationError("backend.name=verl needs the section backend.verl; use backend=verl or verl_cpu")
    return settings.backend.verl


def by_micro_batch(settings: RunSettings) -> bool:
    """Whether token weights go to our policy loss, whose normaliser is that of verl's micro-batches."""
    record = algorithms.get(settings.method.algorithm)
    return record.aggregate == "weighted_token_mean" and settings.training.rl.normaliser_tokens is not None


def values(settings: RunSettings, run: Path, prepared: Path, start: Path) -> dict[str, Any]:
    """Dotted keys of verl's configuration → values, for a run that `check` lets pass."""
    record = algorithms.get(settings.method.algorithm)
    found = {
        **_data(settings, prepared),
        **_model(settings, start),
        **_actor(settings, record),
        **_sampler(settings),
        **_reward(settings, record),
        **_trainer(settings, run),
    }
    if record.advantage == "gae":
        found |= _critic(settings, start)
    if settings.backend.device == "cpu":
        found |= cpu_only.SETTINGS
        if verl(settings).nodes == 1:  # else Ray is there already: see `cluster`
            here = {**cpu_only.RAY, "num_gpus": verl(settings).gpus_per_node}
            found |= {f"ray_kwargs.ray_init.{name}": value for name, value in here.items()}
    return found


def _data(settings: RunSettings, prepared: Path) -> dict[str, Any]:
    switches = {} if settings.model.thinking is None else {"enable_thinking": settings.model.thinking}
    rows = [str(prepared / "train.parquet")]
    return {
        "data.train_files": rows,
        "data.val_files": rows,  # never read: models are evaluated by our own evaluation
        "data.train_batch_size": settings.training.rl.prompts,
        "data.max_prompt_length": settings.data.max_prompt_tokens,
        "data.max_response_length": settings.training.rl.max_new_tokens,
        "data.truncation": "error" if settings.data.overlong == "drop" else "left",
        "data.dataloader_num_workers": 0,
        "data.apply_chat_template_kwargs": switches,
    }


def _model(settings: RunSettings, start: Path) -> dict[str, Any]:
    return {
        "actor_rollout_ref.model.path": str(start),
        "actor_rollout_ref.model.use_remove_padding": verl(settings).remove_padding,
        "actor_rollout_ref.model.enable_gradient_checkpointing": settings.model.tiny is None,
        "actor_rollout_ref.model.external_lib": "restool.backends.verl.inside.losses",
    }


def _actor(settings: RunSettings, record: Algorithm) -> dict[str, Any]:
    method, rl, actor = settings.method, settings.training.rl, "actor_rollout_ref.actor"
    penalty = method.kl_coefficient > 0 and not record.kl_in_reward
    return {
        f"{actor}.strategy": "fsdp2",
        f"{actor}.fsdp_config.strategy": "fsdp2",
        "actor_rollout_ref.ref.strategy": "fsdp2",
        **_offload(settings, f"{actor}.fsdp_config"),
        f"{actor}.ppo_mini_batch_size": rl.prompts // rl.minibatches,
        f"{actor}.ppo_epochs": rl.epochs,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": rl.micro_tokens,
        **_optimiser(settings, actor, rl.learning_rate),
        f"{actor}.clip_ratio_low": method.clip_low,
        f"{actor}.clip_ratio_high": method.clip_high,
        f"{actor}.clip_ratio_c": _NEVER if method.clip_dual is None else method.clip_dual,
        f"{actor}.policy_loss.loss_mode": POLICY_LOSS if by_micro_batch(settings) else _LOSSES[record.surrogate],
        f"{actor}.loss_agg_mode": AGGREGATES[record.aggregate][0],
        f"{actor}.loss_scale_factor": rl.max_new_tokens if record.aggregate == "constant_length" else None,
        f"{actor}.entropy_coeff": method.entropy_coefficient,
        f"{actor}.use_kl_loss": penalty,
        f"{actor}.kl_loss_coef": method.kl_coefficient,
        f"{actor}.kl_loss_type": "low_var_kl",
    }


def _optimiser(settings: RunSettings, section: str, learning_rate: float) -> dict[str, Any]:
    rl = settings.training.rl
    return {
        f"{section}.optim.lr": learning_rate,
        f"{section}.optim.betas": list(rl.betas),
        f"{section}.optim.weight_decay": rl.weight_decay,
        f"{section}.optim.clip_grad": rl.gradient_clip,
        f"{section}.grad_clip": rl.gradient_clip,
    }


def _offload(settings: RunSettings, section: str) -> dict[str, Any]:
    return {f"{section}.{what}_offload": verl(settings).offload for what in ("param", "optimizer")}


def _sampler(settings: RunSettings) -> dict[str, Any]:
    rl, chosen, rollout = settings.training.rl, verl(settings), "actor_rollout_ref.rollout"
    length = settings.data.max_prompt_tokens + rl.max_new_tokens
    return {
        f"{rollout}.name": "vllm",
        f"{rollout}.n": rl.samples,
        f"{rollout}.temperature": rl.temperature,
        f"{rollout}.seed": settings.seed,
        f"{rollout}.dtype": settings.model.dtype,
        f"{rollout}.tensor_model_parallel_size": chosen.tensor_parallel,
        f"{rollout}.gpu_memory_utilization": chosen.memory_share,
        f"{rollout}.max_model_len": length,
        f"{rollout}.max_num_batched_tokens": max(length, 8192),
        f"{rollout}.agent.num_workers": chosen.workers,
    }


def _reward(settings: RunSettings, record: Algorithm) -> dict[str, Any]:
    in_reward = settings.method.kl_coefficient > 0 and record.kl_in_reward
    return {
        "reward.num_workers": verl(settings).workers,
        "reward.reward_manager.source": "importlib",
        "reward.reward_manager.name": "RewardManager",
        "reward.reward_manager.module.path": "pkg://restool.backends.verl.inside.reward",
        "algorithm.adv_estimator": "gae" if record.advantage == "gae" else "grpo",
        "algorithm.use_kl_in_reward": in_reward,
        "algorithm.kl_ctrl.kl_coef": settings.method.kl_coefficient,
    }


def _trainer(settings: RunSettings, run: Path) -> dict[str, Any]:
    rl, chosen = settings.training.rl, verl(settings)
    return {
        "trainer.v1.trainer_mode": TRAINER,
        "trainer.device": settings.backend.device if settings.backend.device != "auto" else "cuda",
        "trainer.nnodes": chosen.nodes,
        "trainer.n_gpus_per_node": chosen.gpus_per_node,
        "trainer.logger": [],  # our trainer writes metrics.jsonl
        "trainer.project_name": "restool",
        "trainer.experiment_name": run.name,
        "trainer.default_local_dir": str(run / "checkpoints"),
        "trainer.resume_mode": "auto",
        "trainer.save_freq": rl.checkpoint_every,
        "trainer.max_actor_ckpt_to_keep": KEPT_CHECKPOINTS,
        "trainer.max_critic_ckpt_to_keep": KEPT_CHECKPOINTS,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.total_epochs": _ENDLESS,
        "trainer.total_training_steps": rl.steps,
    }


def _critic(settings: RunSettings, start: Path) -> dict[str, Any]:
    rl = settings.training.rl
    rate = rl.critic_learning_rate
    assert rate is not None  # `algorithms.check` has seen to it
    return {
        "critic.enable": True,
        "critic.strategy": "fsdp2",
        "critic.fsdp.strategy": "fsdp2",
        "critic.model.path": str(start),
        "critic.model.use_remove_padding": verl(settings).remove_padding,
        "critic.model.enable_gradient_checkpointing": settings.model.tiny is None,
        "critic.ppo_max_token_len_per_gpu": rl.micro_tokens,
        "critic.ppo_epochs": rl.critic_epochs or rl.epochs,
        **_optimiser(settings, "critic", rate),
        **_offload(settings, "critic.fsdp"),
    }
